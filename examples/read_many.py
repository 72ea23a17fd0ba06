"""
Load random records of a file, and small files: in a plain loop, with threads, and with a ring.

From the page cache, which is warm as the data were just written; and from the disk, with O_DIRECT.

    python examples/read_many.py
"""

import argparse
import mmap
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from pathlib import Path
from statistics import median
from timeit import timeit

import uring

SIZE, DEPTH, THREADS, ROUNDS = 4096, 128, 16, 5  # SIZE: of a record, and of a file
Call = Callable[..., object]
Items = Sequence[int] | Sequence[str]


def read_file(flags: int, buffers: list[memoryview], path: str) -> None:
    """Open, read and close one file."""
    fd = os.open(path, flags)
    os.readv(fd, buffers)
    os.close(fd)


def ring_read(ring: uring.Ring, fd: int, memory: memoryview, offsets: Sequence[int]) -> None:
    """Read all records of a file in one run."""
    ring.run(uring.ReadMany(fd, memory, offsets)).raise_first()


def ring_read_files(ring: uring.Ring, flags: int, memory: memoryview, paths: list[str]) -> None:
    """Open all files in one run, read them in another, and close them."""
    # A chain of Openat (into a direct descriptor), Read and Close for each file takes 10 us instead
    # of 5, and 16 instead of 8 from the disk: it has three operations to encode, and this has one.
    opened = ring.run([uring.Openat(path, flags) for path in paths])
    try:
        ring.run(uring.ReadMany(opened.raise_first().res, memory, [0] * len(paths))).raise_first()
    finally:
        for fd in filter((-1).__lt__, opened.res):
            os.close(fd)  # a Close in a run takes 1 us more


def compare(what: str, data: bytes, items: Items, source: int, read: Call, in_ring: Call) -> None:
    """Time the ways in turns, so that noise hits all alike; check the bytes; print the medians."""
    memory = memoryview(mmap.mmap(-1, len(items) * SIZE))  # page-aligned, as O_DIRECT wants it
    work = [(source, [memory[i * SIZE :][:SIZE]], item) for i, item in enumerate(items)]
    with ThreadPoolExecutor(THREADS) as pool, uring.Ring(DEPTH) as ring:
        ways: dict[str, Call] = {
            "plain loop": lambda: list(starmap(read, work)),
            f"{THREADS} threads": lambda: list(pool.map(list, [starmap(read, work)] * THREADS)),
            "ring": lambda: in_ring(ring, source, memory, items),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for way in list(ways) * ROUNDS:
            memory[:] = bytes(len(memory))
            times[way].append(timeit(ways[way], number=1) / len(items) * 1e6)
            if bytes(memory) != data[: len(memory)]:
                sys.exit(f"error: {what}: the {way} did not read what was written")
    for way, us in zip(ways, map(median, times.values()), strict=True):
        print(f"{what:21}{way:11}{us:6.2f} us{median(times['plain loop']) / us:7.1f} times as fast")


def main() -> None:
    """Read the command line, make the data, and load them."""
    parser = argparse.ArgumentParser(description="Load data in three ways, check and time them.")
    parser.add_argument("--records", type=int, default=2048, help="how many, of 4 KiB")
    parser.add_argument("--files", type=int, default=512, help="how many, of 4 KiB each")
    parser.add_argument("--dir", default="/var/tmp", help="for the data")  # noqa: S108 - a disk
    args = parser.parse_args()
    if not 1 <= min(args.records, args.files) <= max(args.records, args.files) <= 100_000:
        parser.error("--records and --files must be in 1..100000")
    for how, flags in ("warm cache", os.O_RDONLY), ("disk", os.O_DIRECT):
        try:
            with tempfile.TemporaryDirectory(dir=args.dir) as directory:
                data = os.urandom(max(args.records, args.files) * SIZE)
                offsets = random.sample(range(0, len(data), SIZE), args.records)
                chosen = b"".join(data[offset : offset + SIZE] for offset in offsets)
                paths = [f"{directory}/{i}" for i in range(args.files)]
                for i, path in enumerate(paths):
                    Path(path).write_bytes(data[i * SIZE : (i + 1) * SIZE])
                Path(directory, "records").write_bytes(data)
                with os.fdopen(os.open(f"{directory}/records", flags), "rb", 0) as file:
                    compare("records, " + how, chosen, offsets, file.fileno(), os.preadv, ring_read)
                compare("files, " + how, data, paths, flags, read_file, ring_read_files)
        except (OSError, uring.UringError) as error:
            sys.exit(f"{'no O_DIRECT here' if flags else 'error'}: {error}")


if __name__ == "__main__":
    main()
