"""
Count the lines, words and bytes of many files at once, as wc does.

    python examples/aio_wc.py FILE...
"""

import argparse
import asyncio
import signal
import sys

import uring
import uring.aio

AT_ONCE = 64
CHUNK = 1 << 18


async def count(path: str, slots: asyncio.Semaphore) -> tuple[int, int, int] | OSError:
    """Count one file: its lines, words and bytes; or say why not."""
    lines = words = size = 0
    is_inside = False
    async with slots:
        try:
            async with uring.aio.open(path, "rb") as file:
                while chunk := await file.read(CHUNK):
                    size += len(chunk)
                    lines += chunk.count(b"\n")
                    words += len(chunk.split())
                    if is_inside and not chunk[:1].isspace():
                        words -= 1  # it began in the chunk before
                    is_inside = not chunk[-1:].isspace()
        except OSError as error:
            return error
    return lines, words, size


async def main(paths: list[str]) -> int:
    """Count all, and print them in the order in which they were named."""
    slots = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.create_task(count(path, slots)) for path in paths]
    for done, task in enumerate(asyncio.as_completed(tasks), 1):
        await task
        if sys.stderr.isatty():
            bar = "#" * (40 * done // len(tasks))
            print(f"\r[{bar:40}] {done}/{len(tasks)}", end="", file=sys.stderr, flush=True)
    if tasks and sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    total, failed = [0, 0, 0], 0
    for path, task in zip(paths, tasks, strict=True):
        result = task.result()
        if isinstance(result, OSError):
            print(f"{path}: {result.strerror}", file=sys.stderr)
            failed = 1
            continue
        total = [a + b for a, b in zip(total, result, strict=True)]
        print("{:8} {:8} {:9}".format(*result), path)
    print("{:8} {:8} {:9}".format(*total), "total, by way of", uring.aio.backend())
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count lines, words and bytes.")
    parser.add_argument("file", nargs="+")
    args = parser.parse_args()
    for number in (signal.SIGPIPE, signal.SIGINT):  # `| head` and Ctrl-C end this as they end wc
        signal.signal(number, signal.SIG_DFL)
    try:
        sys.exit(asyncio.run(main(args.file)))
    except (OSError, ValueError, uring.UringError) as error:
        sys.exit(f"error: {error}")
