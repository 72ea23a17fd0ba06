"""
Add up a tree: with os.walk and os.lstat, with os.scandir and DirEntry.stat, and with a ring.

Nothing in io_uring lists a directory: os.scandir finds the names. 256 statx(2) at a time run on
threads of the kernel's. A `uring.Statx` for each is safe, and slower than os.lstat; so here raw
SQEs are encoded once, and run again with other names in their memory, which is ours to look after:
it must stay where it is until the run has ended.

    python examples/tree_stat.py /usr
"""

import argparse
import os
import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from time import ctime, perf_counter

import uring

COUNT, PATH, STATX, ROUNDS = 256, 4096, 256, 5  # PATH, STATX: bytes for a path, a struct statx
SIZE, MTIME, END = 40 // 8, 112 // 8, STATX // 8  # where that has stx_size and stx_mtime, in words
AT_FDCWD, NOFOLLOW, BASIC = -100, uring.AtFlags.SYMLINK_NOFOLLOW, uring.StatxMask.BASIC_STATS
Row = tuple[int, int, bytes]  # the mtime in seconds, the size and the path of an entry


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
    names, answers = array("B", bytes(COUNT * PATH)), array("q", bytes(COUNT * STATX))
    (addr, _), (off, _), memory = names.buffer_info(), answers.buffer_info(), memoryview(names)
    head, tail = (uring.Opcode.STATX, uring.SQEFlags(0), 0, AT_FDCWD), (BASIC, NOFOLLOW)
    places = [(off + i * STATX, addr + i * PATH) for i in range(COUNT)]
    batch, found = uring.Batch(uring.SQE(*head, *place, *tail) for place in places), entries(top)
    with uring.Ring() as ring:
        while paths := [entry.path for entry in islice(found, COUNT)]:
            for i, path in enumerate(paths):
                name = (path + b"\0")[:PATH]  # without an end it is ENAMETOOLONG
                memory[i * PATH : i * PATH + len(name)] = name
            ring.run(batch)[: len(paths)].raise_first()  # old names may follow
            yield from zip(answers[MTIME::END], answers[SIZE::END], paths, strict=False)


def by_walk(top: bytes) -> Iterator[Row]:
    """Ask about each name."""
    for directory, directories, files in os.walk(top):
        for path in [os.path.join(directory, name) for name in directories + files]:  # noqa: PTH118
            yield int((status := os.lstat(path)).st_mtime), status.st_size, path


def by_scandir(top: bytes) -> Iterator[Row]:
    """Ask about each entry."""
    for entry in entries(top):
        status = entry.stat(follow_symlinks=False)
        yield int(status.st_mtime), status.st_size, entry.path


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
            totals.add(
                (len(rows), sum(size for _, size, _ in rows), max(rows, default=(0, 0, b"")))
            )
    except (OSError, uring.UringError) as error:
        sys.exit(f"error: {error}")
    if len(totals) > 1:
        sys.exit("error: the tree changed meanwhile, or the ways have not found the same")
    count, size, (mtime, _, path) = totals.pop()
    print(f"{count} entries, {size} bytes; the last change: {ctime(mtime)}, {os.fsdecode(path)}")
    for way, seconds in times.items():
        faster = min(times["os.walk, os.lstat"]) / min(seconds)
        print(f"{way:19}{min(seconds):8.3f} s{faster:6.1f} times as fast")


if __name__ == "__main__":
    main()
