"""
Add up a tree: with os.walk and os.lstat, with os.scandir and DirEntry.stat, and with a ring.

Nothing in io_uring lists a directory: os.scandir finds the names. `uring.StatxMany` asks about 256
of them at a time, on threads of the kernel's, and gives the answers as columns.

    python examples/tree_stat.py /usr
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from time import ctime, perf_counter

import uring

COUNT, ROUNDS, NOFOLLOW = 256, 5, uring.AtFlags.SYMLINK_NOFOLLOW
Row = tuple[int, int, bytes]  # the mtime in nanoseconds, the size and the path of an entry


def entries(top: bytes) -> Iterator[os.DirEntry[bytes]]:
    """Find all that is below a directory, less what may not be listed, as os.walk does."""
    directories = [top]
    while directories:
        with suppress(PermissionError), os.scandir(directories.pop()) as scan:
            for entry in scan:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                yield entry


def by_ring(top: bytes) -> Iterator[Row]:
    """Ask about COUNT names in a run."""
    found = entries(top)
    with uring.Ring() as ring:
        while paths := [entry.path for entry in islice(found, COUNT)]:
            done = ring.run(uring.StatxMany(paths, statx_flags=NOFOLLOW)).raise_first()
            yield from zip(done.mtime_ns, done.size, paths, strict=True)


def by_walk(top: bytes) -> Iterator[Row]:
    """Ask about each name."""
    for directory, directories, files in os.walk(top):
        for path in [os.path.join(directory, name) for name in directories + files]:  # noqa: PTH118 - a Path for each name would cost more than what is measured
            yield (status := os.lstat(path)).st_mtime_ns, status.st_size, path


def by_scandir(top: bytes) -> Iterator[Row]:
    """Ask about each entry."""
    for entry in entries(top):
        status = entry.stat(follow_symlinks=False)
        yield status.st_mtime_ns, status.st_size, entry.path


def main() -> None:
    """Read the command line, let the ways take turns, and print what they found."""
    parser = argparse.ArgumentParser(description="Add up a tree in three ways, and time them.")
    parser.add_argument("directory", metavar="DIR")
    directory: str = parser.parse_args().directory
    ways = {"os.walk, os.lstat": by_walk, "os.scandir, .stat": by_scandir, "ring": by_ring}
    times: dict[str, list[float]] = {way: [] for way in ways}
    totals = set()
    try:
        for way in list(ways) * ROUNDS:
            began = perf_counter()
            rows = list(ways[way](os.fsencode(directory)))
            times[way].append(perf_counter() - began)
            total = sum(size for _, size, _ in rows)
            totals.add((len(rows), total, max(rows, default=(0, 0, b""))))
    except (OSError, uring.UringError) as error:
        sys.exit(f"error: {error}")
    if len(totals) > 1:
        sys.exit("error: the tree changed meanwhile, or the ways have not found the same")
    count, size, (mtime, _, path) = totals.pop()
    newest = f"{ctime(mtime // 10**9)}, {os.fsdecode(path)}"
    print(f"{count} entries, {size} bytes; the last change: {newest}")
    for way, seconds in times.items():
        faster = min(times["os.walk, os.lstat"]) / min(seconds)
        print(f"{way:19}{min(seconds):8.3f} s{faster:6.1f} times as fast")


if __name__ == "__main__":
    main()
