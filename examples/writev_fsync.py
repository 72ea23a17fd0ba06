"""
Write lines to a file so that they survive a power cut: Writev, and linked behind it Fsync.

Operations of a ring run in any order. A link makes the fsync wait for the write, and cancels it
should the write fail or be short. Then the rest is written and synced in the same way. A new file's
name is on disk once its directory is synced, too.

    python examples/writev_fsync.py FILE "first line" "second line"
    dmesg | python examples/writev_fsync.py FILE
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import uring

BUFFERS_MAX = 1024  # the kernel's UIO_MAXIOV: no Writev takes more


def write_durably(ring: uring.Ring, file: BinaryIO, lines: Iterable[bytes], offset: int) -> int:
    """Write at most BUFFERS_MAX lines at `offset`, and sync; return the offset behind them."""
    rest = [memoryview(line) for line in lines]
    while True:
        ring.queue_all(uring.link(uring.Writev(file, rest, offset), uring.Fsync(file)))
        ring.submit_and_wait(2)
        written, synced = ring.copy_cqes()
        if written.error is not None:
            raise written.error
        offset += written.res
        rest = drop(rest, written.res)
        if not rest:
            if synced.error is not None:
                raise synced.error
            return offset
        # Short: the link is broken, `synced` is ECANCELED, and nothing is durable yet.


def drop(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Leave out the first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def main() -> None:
    """Read the command line, and write the lines in batches."""
    parser = argparse.ArgumentParser(description="Write lines durably, with Writev and Fsync.")
    parser.add_argument("file", type=Path)
    parser.add_argument("text", nargs="*", help="the lines; without any, they are read from stdin")
    arguments = parser.parse_args()
    path: Path = arguments.file
    texts = (os.fsencode(text) + b"\n" for text in arguments.text)
    lines = iter(texts if arguments.text else sys.stdin.buffer)
    try:
        with path.open("wb", buffering=0) as file, uring.Ring(8) as ring:
            offset = write_durably(ring, file, (), 0)  # an empty file is worth a sync, too
            while batch := list(itertools.islice(lines, BUFFERS_MAX)):
                offset = write_durably(ring, file, batch, offset)
    except (OSError, uring.UringError) as error:
        sys.exit(f"error: {error}")
    print(f"{offset} bytes written and synced")


if __name__ == "__main__":
    main()
