"""
Copy a file with registered files and buffers, and without, and time both.

What is registered the kernel need not look up (a file) or pin in memory (a buffer) for each block.
It shows where a block costs little else: the batches are prepared, and only their runs are timed.

    python examples/fixed_io.py            copies 1 MiB of random bytes
    python examples/fixed_io.py FILE
"""

import argparse
import mmap
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import uring

BLOCK, ROUNDS, DEPTH = 4096, 31, 64


def prepare(ring: uring.Ring, files: list[int], memory: mmap.mmap) -> dict[str, list[uring.Batch]]:
    """Encode reads of all blocks, and writes, in both ways."""
    ring.register_files(files)
    pool = uring.BufferPool(ring.register_buffers([memory]), BLOCK)
    blocks = [(pool.lend(), offset) for offset in range(0, len(memory), BLOCK)]
    plain = [(lent.view, offset) for lent, offset in blocks]
    source, target = files
    return {
        "plain": [
            uring.Batch(uring.Read(source, *block) for block in plain),
            uring.Batch(uring.Write(target, *block) for block in plain),
        ],
        "registered": [
            uring.Batch(uring.ReadFixed(uring.Fixed(0), *block) for block in blocks),
            uring.Batch(uring.WriteFixed(uring.Fixed(1), *block) for block in blocks),
        ],
    }


def compare(where: str, flags: int, source: Path, target: Path) -> None:
    """Copy in turns, check what each way has copied, and print what a block costs."""
    data = source.read_bytes()
    memory = mmap.mmap(-1, -(-len(data) // BLOCK) * BLOCK)
    files = [os.open(source, os.O_RDONLY | flags), os.open(target, os.O_RDWR | flags)]
    with uring.Ring(DEPTH) as ring:
        ways = prepare(ring, files, memory)
        times: dict[str, list[list[float]]] = {way: [[], []] for way in ways}
        for turn, way in enumerate(list(ways) * ROUNDS):
            if turn < len(ways):  # nothing is left of an earlier copy
                memory[:] = bytes(len(memory))
                target.write_bytes(memory)
            for batch, taken in zip(ways[way], times[way], strict=True):
                began = perf_counter()
                ring.run(batch).raise_first()
                taken.append((perf_counter() - began) / len(batch) * 1e6)
            if turn < len(ways) and target.read_bytes()[: len(data)] != data:
                sys.exit(f"error: {where}, {way}: the copy differs from the file")
    for fd in files:
        os.close(fd)
    for what, plain, registered in zip(("read", "write"), *times.values(), strict=True):
        us, fixed_us = median(plain), median(registered)
        verdict = f"{us / fixed_us:.2f} times as fast" if us > fixed_us * 1.05 else "no faster here"
        print(f"{where:12}{what:7}{us:7.2f} us, registered{fixed_us:7.2f} us: {verdict}")


def main() -> None:
    """Read the command line, and compare."""
    parser = argparse.ArgumentParser(description="Copy a file in two ways, check and time them.")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--dir", default="/var/tmp", help="for the copy")  # noqa: S108 - a disk
    args = parser.parse_args()
    for where, flags in ("page cache", os.O_RDONLY), ("O_DIRECT", os.O_DIRECT):
        try:
            with tempfile.TemporaryDirectory(dir=args.dir) as directory:
                source, target = args.file or Path(directory, "source"), Path(directory, "target")
                if args.file is None:
                    source.write_bytes(os.urandom(1024 * 1024))
                if source.exists() and not (source.is_file() and source.stat().st_size):
                    sys.exit(f"error: {source} is not a regular file with something in it")
                target.touch()
                compare(where, flags, source, target)
        except (OSError, uring.UringError) as error:
            sys.exit(f"{'no O_DIRECT here' if flags else 'error'}: {error}")


if __name__ == "__main__":
    main()
