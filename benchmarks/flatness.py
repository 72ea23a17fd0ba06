"""Whether memory stays flat: what is resident, open and allocated while operations run."""

import gc
import os
import socket
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uring import Batch, Nop, Read, ReadMany, Readv, Recv, Ring, Send

ENTRIES = 256
READS = 64
BLOCK = 4096
LOOKS = 10
RESIDENT_MAX = 1 << 20  # bytes that a flat one may grow: the allocator's own unrest
BLOCKS_MAX = 1000  # objects: caches that fill late


@dataclass(frozen=True)
class Kind:
    """A way of running operations: `call` runs so many of them at once."""

    name: str
    operations: int
    call: Callable[[], object]


@dataclass(frozen=True)
class Look:
    """What the process holds."""

    resident: int
    descriptors: int
    blocks: int


def look() -> Look:
    """Look at this process, without the garbage."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return Look(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(list(Path("/proc/self/fd").iterdir())),
        sys.getallocatedblocks(),
    )


@contextmanager
def kinds() -> Iterator[list[Kind]]:
    """Set all kinds up, on one ring and one file."""
    offsets = array("q", range(0, READS * BLOCK, BLOCK))
    buffers = [bytearray(BLOCK) for _ in range(READS)]
    nop = Nop()
    left, right = socket.socketpair()
    with tempfile.TemporaryFile() as file, left, right, Ring(ENTRIES) as ring:
        file.write(os.urandom(READS * BLOCK))
        file.flush()

        def nop_queued() -> None:
            for number in range(ENTRIES):
                ring.queue(nop, user_data=number)
            ring.submit_and_wait(ENTRIES)
            sum(ring.copy_cqes().res.tolist())

        def nop_single() -> None:
            ring.queue(nop)
            ring.submit_and_wait(1)
            ring.copy_cqe().result()

        def read_new() -> None:
            for buffer, offset in zip(buffers, offsets, strict=True):
                ring.queue(Read(file, buffer, offset))
            ring.submit_and_wait(READS)
            for cqe in ring.copy_cqes():
                cqe.result()

        def readv_linked() -> None:
            for buffer, offset in zip(buffers[::2], offsets[::2], strict=True):
                read = Readv(file, [buffer], offset)
                ring.queue_all([read.linked(), read])
            ring.submit_and_wait(READS)
            ring.copy_cqes().raise_first()

        def send_and_recv() -> None:
            for operation in send, recv:
                ring.queue(operation)
                ring.submit_and_wait(1)
                ring.copy_cqe().result()

        send, recv = Send(left, b"x" * 64), Recv(right, bytearray(64))
        nops, reads = Batch([nop] * ENTRIES), ReadMany(file, buffers, offsets)
        yield [
            Kind("NOP queued x256", ENTRIES, nop_queued),
            Kind("NOP one at a time", 1, nop_single),
            Kind("READ new each x64", READS, read_new),
            Kind("READV new each x64, linked in pairs", READS, readv_linked),
            Kind("SEND and RECV, one at a time", 2, send_and_recv),
            Kind("run(list of new NOPs) x256", ENTRIES, lambda: ring.run([nop] * ENTRIES)),
            Kind("run(Batch) NOP x256", ENTRIES, lambda: ring.run(nops).raise_first()),
            Kind("run(ReadMany) x64", READS, lambda: ring.run(reads).raise_first()),
        ]


def watch(kind: Kind, operations: int) -> list[Look]:
    """Run a kind, and look at the start, after a tenth of it as warm-up, and ten times more."""
    calls = max(1, operations // kind.operations // LOOKS)
    looks = []
    for _ in range(LOOKS + 1):
        for _ in range(calls):
            kind.call()
        looks.append(look())
    return looks


def is_flat(looks: list[Look]) -> bool:
    """Whether the process holds no more at the end than at the start."""
    start, end = looks[0], looks[-1]
    return (
        end.resident - start.resident <= RESIDENT_MAX
        and end.descriptors <= start.descriptors
        and end.blocks - start.blocks <= BLOCKS_MAX
    )


def examine(operations: int) -> int:
    """Watch all kinds and print what was seen: 0 when all are flat, else 1."""
    print("resident memory in KiB at the start and after each tenth; then the growth")
    result = 0
    with kinds() as made:
        for kind in made:
            looks = watch(kind, operations)
            start, end = looks[0], looks[-1]
            resident = " ".join([f"{each.resident >> 10}" for each in looks])
            verdict = "flat" if is_flat(looks) else "NOT FLAT"
            result |= verdict != "flat"
            print(f"{kind.name}, {operations:,} operations: {verdict}")
            print(f"    {resident}")
            print(
                f"    {(end.resident - start.resident) >> 10:+} KiB,"
                f" descriptors {start.descriptors} to {end.descriptors},"
                f" allocated blocks {end.blocks - start.blocks:+}",
                flush=True,
            )
    return result
