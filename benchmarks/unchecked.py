"""
What the ways of three methods cost that check nothing: how much there is to be gained at most.

    python benchmarks/unchecked.py

The same work as in the cases NOP x1 and READ x64, new Read each, through the package's own shim and
classes, with no check of an argument, a thread, a fork or a closed ring, no table of what is in
flight, no lock, and nothing that a signal handler could not upset. Beside it the package, in turn.
"""

# ruff: noqa: SLF001 - it looks behind the door on purpose

import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from typing import Any

from uring import CQE, Completions, Nop, Read, Ring
from uring._ffi import lib
from uring._memory import BYTES, address_of, lend
from uring.completions import _CQE
from uring.operations._base import pack_lent

ENTRIES, READS, BLOCK, ROUNDS, REPEATS = 256, 64, 4096, 60, 32


class Unchecked:
    """A ring on which anything goes wrong that can."""

    def __init__(self) -> None:
        self.ring = Ring(ENTRIES)  # owns the memory
        self.shim, self.inbox = self.ring._shim, memoryview(self.ring._landed)
        self.placed = self.had = 0
        self.pending: list[tuple[int, bytes, object, object]] = []

    def queue(self, op: Nop, *, user_data: int) -> int:
        """Append a record."""
        encoded, _ = op._prepared or op._encode()
        self.pending.append((user_data, encoded, op, None))
        return user_data

    def queue_read(self, op: Read, *, user_data: int) -> int:
        """Pin, encode and append."""
        slots: Any = op  # whose names mypy does not know
        pin = lend(BYTES, slots._buffer, True)  # noqa: FBT003 - as the package does
        fields = slots._fd, slots._offset, address_of(pin), len(pin)
        self.pending.append((user_data, pack_lent(22, 0, 0, *fields, 0, 0), op, pin))
        return user_data

    def submit_and_wait(self, wait_nr: int = 1) -> int:
        """Place and submit; everything completes at once here."""
        records, self.pending = self.pending, []
        if wait_nr == 1:
            number, encoded, _, _ = records[0]
            lib.uring_submit_one(self.shim, self.placed, encoded, number)
            self.placed += 1
            return 1
        sqes = b"".join([record[1] for record in records])
        numbers = array("Q", [record[0] for record in records]).tobytes()
        lib.uring_submit(self.shim, self.placed, sqes, numbers, len(records))
        self.placed += len(records)
        return wait_nr

    def copy_cqe(self) -> CQE:
        """Take one completion."""
        lib.uring_take(self.shim, self.had, 1)
        self.had += 1
        return CQE(*_CQE.unpack_from(self.inbox))

    def copy_cqes(self) -> Completions:
        """Take all completions."""
        count = lib.uring_take(self.shim, self.had, 2 * ENTRIES)
        self.had += count
        return Completions(bytes(self.inbox[: 16 * count]))


def main() -> None:
    """Measure and print: nanoseconds per operation, medians of interleaved rounds."""
    ring, bare, nop = Ring(ENTRIES), Unchecked(), Nop()
    buffers = [bytearray(BLOCK) for _ in range(READS)]

    def single(way: Ring | Unchecked) -> None:
        for number in range(READS):
            way.queue(nop, user_data=number)
            way.submit_and_wait(1)
            assert way.copy_cqe().res == 0

    with tempfile.TemporaryFile() as file:
        file.write(bytes(READS * BLOCK))
        file.flush()
        fd = file.fileno()

        def reads(way: Ring | Unchecked, queue: Callable[..., int]) -> None:
            for number, buffer in enumerate(buffers):
                queue(Read(fd, buffer, offset=number * BLOCK), user_data=number)
            way.submit_and_wait(READS)
            assert way.copy_cqes().res.tolist() == [BLOCK] * READS

        cases: dict[str, Callable[[], None]] = {
            "NOP x1, uring": lambda: single(ring),
            "NOP x1, unchecked": lambda: single(bare),
            "new Read x64, uring": lambda: reads(ring, ring.queue),
            "new Read x64, unchecked": lambda: reads(bare, bare.queue_read),
        }
        figures: dict[str, list[float]] = {name: [] for name in cases}
        for name in list(cases) * ROUNDS:
            start = time.perf_counter_ns()
            for _ in range(REPEATS):
                cases[name]()
            figures[name].append((time.perf_counter_ns() - start) / REPEATS / READS)
    for name, values in figures.items():
        shown = f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"
        sys.stdout.write(f"{name:25}{shown:>24} ns\n")
    ring.close()
    bare.ring.close()


if __name__ == "__main__":
    main()
