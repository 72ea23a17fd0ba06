"""
Copy a file with 16 blocks in flight: each is read, written at the same offset, then the next one.

`user_data` is the index of a buffer. Reads and writes may be short, the source may grow or shrink.

    python examples/cp.py SOURCE TARGET
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

import uring

BLOCKS, BLOCK_SIZE, MIB = 16, 256 * 1024, 1024 * 1024


def copy(ring: uring.Ring, source: BinaryIO, target: BinaryIO) -> int:
    """Copy the source as far as a read finds its end, sync the target, and return the size."""
    size, began = os.fstat(source.fileno()).st_size, time.monotonic()
    next_block, copied, end = BLOCKS * BLOCK_SIZE, 0, sys.maxsize
    buffers = [memoryview(bytearray(BLOCK_SIZE)) for _ in range(BLOCKS)]
    for i, buffer in enumerate(buffers):
        ring.queue(uring.Read(source, buffer, i * BLOCK_SIZE, user_data=i))
    while ring.in_flight:
        ring.submit_and_wait(1)
        for cqe in ring.copy_cqes():
            cqe.result()  # raises OSError if the operation failed
            i = cqe.user_data
            match cqe.op:
                case uring.Read(offset=offset) if cqe.res == 0:
                    end = min(end, offset)
                case uring.Read(offset=offset):
                    ring.queue(uring.Write(target, buffers[i][: cqe.res], offset, user_data=i))
                case uring.Write(offset=offset):
                    copied, offset = copied + cqe.res, offset + cqe.res
                    if offset % BLOCK_SIZE == 0:  # the block is done; else its rest is read (again)
                        offset, next_block = next_block, next_block + BLOCK_SIZE
                    if offset < end:
                        rest = buffers[i][: BLOCK_SIZE - offset % BLOCK_SIZE]
                        ring.queue(uring.Read(source, rest, offset, user_data=i))
        if sys.stderr.isatty():
            rate = copied / MIB / (time.monotonic() - began)
            done = copied / max(size, copied, 1)
            shown = f"[{'#' * int(done * 30):30}] {done:4.0%} {copied} bytes, {rate:.0f} MiB/s "
            print(shown, end="\r" if ring.in_flight else "\n", file=sys.stderr)
    target.truncate(end)  # what was read behind it, if the source grew meanwhile
    ring.queue(uring.Fsync(target))
    ring.submit_and_wait(1)
    ring.copy_cqe().result()
    return end


def main() -> None:
    """Read the command line; copy contents and permissions, durably."""
    parser = argparse.ArgumentParser(description="Copy a file with many blocks in flight.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    paths = parser.parse_args()
    try:
        for path in (paths.source, paths.target):
            if path.exists() and not path.is_file():
                sys.exit(f"error: {path} is not a regular file")
        if paths.target.exists() and paths.source.samefile(paths.target):
            sys.exit(f"error: {paths.source} and {paths.target} are the same file")
        with paths.source.open("rb") as source, paths.target.open("wb") as target:
            os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
            with uring.Ring(BLOCKS) as ring:
                print(f"copied {copy(ring, source, target)} bytes")
    except (OSError, uring.UringError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
