"""
What a queued operation and a reaped completion cost, side by side with `liburing` from PyPI.

    pip install . liburing
    python benchmarks/against_liburing.py

Both do the same work in turn, round after round in one process, so that a machine whose speed
drifts does so for both. The figures are nanoseconds per operation: median, minimum and maximum over
rounds, and the ratio of the medians.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import liburing as peer  # type: ignore[import-untyped,import-not-found,unused-ignore]  # untyped, and not needed to check the rest

from uring import Nop, Read, Ring

ROUNDS = 60
REPEATS = 8  # of each case in a round, so that one round is not one interrupt
NOPS = 256
READS = 64
BLOCK = 4096


class Cases:
    """Each case once for either library: nanoseconds are divided by the operations in it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ring = Ring(256)
        self.peer = peer.Ring()
        peer.io_uring_queue_init(256, self.peer)
        self.cqe = peer.Cqe()
        self.nop = Nop()
        self.buffers = [bytearray(BLOCK) for _ in range(READS)]

    def nop_columns(self) -> int:
        """Queue 256 NOPs, submit, wait; read user_data and res from the columns."""
        ring, nop = self.ring, self.nop
        for number in range(NOPS):
            ring.queue(nop, user_data=number)
        ring.submit_and_wait(NOPS)
        cqes = ring.copy_cqes()
        return sum(cqes.user_data.tolist()) + sum(cqes.res.tolist())

    def nop_objects(self) -> int:
        """The same with a CQE object for each."""
        ring, nop = self.ring, self.nop
        for number in range(NOPS):
            ring.queue(nop, user_data=number)
        ring.submit_and_wait(NOPS)
        return sum(cqe.user_data + cqe.res for cqe in ring.copy_cqes())

    def peer_nop_batch(self) -> int:
        """256 NOPs with liburing: user_data and res of each."""
        ring = self.peer
        for number in range(NOPS):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_nop(sqe)
            sqe.user_data = number
        peer.io_uring_submit_and_wait(ring, NOPS)
        return self._peer_reap(NOPS)

    def _peer_reap(self, count: int) -> int:
        ring, cqe, total = self.peer, self.cqe, 0
        for _ in peer.CqeIter(ring, cqe):  # its cqe[i] is wrong after a wrap
            entry = cqe[0]
            total += entry.user_data + entry.res
        peer.io_uring_cq_advance(ring, count)
        return total

    def nop_single(self) -> int:
        """256 times: queue, submit_and_wait(1), copy_cqe().res."""
        ring, nop, total = self.ring, self.nop, 0
        for number in range(NOPS):
            ring.queue(nop, user_data=number)
            ring.submit_and_wait(1)
            total += ring.copy_cqe().res
        return total

    def peer_nop_single(self) -> int:
        """The same with liburing."""
        ring, cqe, total = self.peer, self.cqe, 0
        for number in range(NOPS):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_nop(sqe)
            sqe.user_data = number
            peer.io_uring_submit_and_wait(ring, 1)
            peer.io_uring_wait_cqe(ring, cqe)
            entry = cqe[0]
            total += entry.res
            peer.io_uring_cqe_seen(ring, entry)
        return total

    def read_batch(self) -> int:
        """64 new Read operations of 4 KiB from the page cache."""
        ring, fd = self.ring, self.fd
        for number, buffer in enumerate(self.buffers):
            ring.queue(Read(fd, buffer, number * BLOCK), user_data=number)
        ring.submit_and_wait(READS)
        cqes = ring.copy_cqes()
        return sum(cqes.user_data.tolist()) + sum(cqes.res.tolist())

    def peer_read_batch(self) -> int:
        """The same with liburing."""
        ring, fd = self.peer, self.fd
        for number, buffer in enumerate(self.buffers):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_read(sqe, fd, buffer, number * BLOCK)
            sqe.user_data = number
        peer.io_uring_submit_and_wait(ring, READS)
        return self._peer_reap(READS)


def measure(cases: dict[str, tuple[Callable[[], int], int]]) -> dict[str, list[float]]:
    """Run all cases in turn, ROUNDS times: nanoseconds per operation."""
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (case, operations) in cases.items():
            start = time.perf_counter_ns()
            for _ in range(REPEATS):
                case()
            figures[name].append((time.perf_counter_ns() - start) / REPEATS / operations)
    return figures


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(READS * BLOCK))
        file.flush()
        made = Cases(file.fileno())
        pairs = [
            ("NOP x256, columns", made.nop_columns, made.peer_nop_batch, NOPS),
            ("NOP x256, objects", made.nop_objects, made.peer_nop_batch, NOPS),
            ("NOP x1", made.nop_single, made.peer_nop_single, NOPS),
            ("READ 4 KiB x64", made.read_batch, made.peer_read_batch, READS),
        ]
        for _, ours, theirs, _ in pairs:
            if ours() != theirs():
                raise SystemExit("the two libraries do not give the same completions")
        cases = {}
        for name, ours, theirs, operations in pairs:
            cases[name] = (ours, operations)
            cases[f"{name} (liburing)"] = (theirs, operations)
        figures = measure(cases)
        made.ring.close()
    print(f"CPython {platform.python_version()}, Linux {platform.release()}; ns per operation")
    print(f"{'':20}{'uring':>24}{'liburing':>24}{'ratio':>8}")
    for name, *_ in pairs:
        both = figures[name], figures[f"{name} (liburing)"]
        shown = [f"{statistics.median(f):.0f} ({min(f):.0f}-{max(f):.0f})" for f in both]
        ratio = statistics.median(both[0]) / statistics.median(both[1])
        print(f"{name:20}{shown[0]:>24}{shown[1]:>24}{ratio:8.2f}")


if __name__ == "__main__":
    main()
