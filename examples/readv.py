"""
Print a file, as cat(1) does: read it into several buffers at once, through a registered file.

Registering a file once saves the kernel from looking its descriptor up for every operation;
`uring.Fixed(0)` then names the first one registered. A read may be short, so each one goes on where
the last one ended, until one returns nothing.

    python examples/readv.py README.md
"""

import argparse
import signal
import sys
from pathlib import Path

import uring

BUFFER_SIZES = (4096, 16384, 65536)  # any sizes: Readv fills one after the other


def print_file(ring: uring.Ring, fd: uring.Fixed) -> int:
    """Write the whole file to stdout; return how many bytes it has."""
    buffers = [memoryview(bytearray(size)) for size in BUFFER_SIZES]
    offset = 0
    while True:
        ring.queue(uring.Readv(fd, buffers, offset))
        ring.submit_and_wait(1)
        cqe = ring.copy_cqe()
        if cqe.error is not None:
            raise cqe.error
        if cqe.res == 0:
            return offset
        rest = cqe.res
        for buffer in buffers:
            sys.stdout.buffer.write(buffer[:rest])
            rest = max(0, rest - len(buffer))
        sys.stdout.flush()
        offset += cqe.res


def main() -> None:
    """Read the command line, and register the file."""
    parser = argparse.ArgumentParser(description="Print a file with Readv.")
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args().file
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this program as it ends cat
    try:
        with path.open("rb", buffering=0) as file, uring.Ring(8) as ring:
            ring.register_files([file])
            count = print_file(ring, uring.Fixed(0))
    except (OSError, uring.UringError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
