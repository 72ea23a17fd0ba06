"""
Copying a file with several reads and writes in flight, in bounded memory.

Half of the buffers are written while the other half is read: one wait for both. Nothing is guessed
about the size of the source: it may grow or shrink meanwhile, and the end is where a read finds it.
"""

import errno
import mmap
import os
import shutil
import stat as modes
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from uring._checks import check_range
from uring._memory import PathLike
from uring.aio._backend import do, do_each, late_result
from uring.completions import CQE
from uring.file_flags import AtFlags
from uring.operations import Close, Openat, Read, Statx, Write

CHUNK: Final = 256 * 1024
"""With chunks of 64 KiB, 128 MiB in the page cache take 1.7 times as long; with 1 MiB, 0.9."""
IN_FLIGHT: Final = 8
_CHUNK_MAX: Final = 1 << 30
_IN_FLIGHT_MAX: Final = 1024
_ITSELF: Final = AtFlags.EMPTY_PATH


async def copyfile(
    src: PathLike, dst: PathLike, *, chunk: int = CHUNK, in_flight: int = IN_FLIGHT
) -> PathLike:
    """
    Copy the contents of a file: as shutil.copyfile(), which follows symbolic links.

    Args:
        src: the file to copy.
        dst: the file to make, or to overwrite.
        chunk: how much one operation reads or writes, in bytes: up to 2**30.
        in_flight: how many chunks are in memory, and so in flight, at most: 2 to 1024. Half of them
            are read while the others are written.

    Returns:
        `dst`.

    Raises:
        shutil.SameFileError: both are the same file.
        shutil.SpecialFileError: one is a named pipe.
        OSError: as shutil.copyfile(); what could not be read or written names both.

    Cancellation: what is in flight is ended first; what was copied until then stays.
    """
    check_range("chunk", chunk, 1, _CHUNK_MAX)
    check_range("in_flight", in_flight, 2, _IN_FLIGHT_MAX)
    source, target = os.fspath(src), os.fspath(dst)
    await _check(src, dst, source, target)
    reading = await do(Openat(source, os.O_RDONLY))
    try:
        given = await do(Statx("", statx_flags=_ITSELF, dir_fd=reading))
        if modes.S_ISDIR(given.mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), source)
        async with _opened_new(target) as writing:
            found = await do(Statx("", statx_flags=_ITSELF, dir_fd=writing))
            with _naming_both(source, target):
                # What has no size, as the files in /proc, is dear to read but from its front.
                if modes.S_ISREG(given.mode) and given.size and modes.S_ISREG(found.mode):
                    await _copy(reading, writing, chunk, in_flight)
                else:
                    await _pump(reading, writing, chunk)
    finally:
        os.close(reading)
    return dst


@contextmanager
def _naming_both(source: str | bytes, target: str | bytes) -> Iterator[None]:
    """Name both files in what is raised."""
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, error.strerror, source, None, target) from error


async def _check(src: PathLike, dst: PathLike, source: str | bytes, target: str | bytes) -> None:
    """Refuse what shutil refuses."""
    found = []
    for path in (source, target):
        try:
            found.append(await do(Statx(path)))
        except OSError:
            continue  # opening it will tell
        if modes.S_ISFIFO(found[-1].mode):
            raise shutil.SpecialFileError(f"`{os.fsdecode(path)}` is a named pipe")
    if len(found) == 2 and (found[0].dev, found[0].ino) == (found[1].dev, found[1].ino):
        raise shutil.SameFileError(f"{src!r} and {dst!r} are the same file")


@asynccontextmanager
async def _opened_new(path: str | bytes) -> AsyncIterator[int]:
    """Open the target; what closing it says counts, as it may be what could not be written."""
    try:
        fd = await do(Openat(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
    except IsADirectoryError as error:
        try:
            await do(Statx(path))
        except OSError:
            raise FileNotFoundError(f"Directory does not exist: {os.fsdecode(path)}") from error
        raise
    try:
        yield fd
    except BaseException:
        os.close(fd)  # at once: a task that is cancelled cannot wait
        raise
    try:
        await do(Close(fd))
    except OSError:  # it is closed, whatever is wrong
        raise
    except BaseException as error:
        if late_result(error) is None:
            os.close(fd)
        raise


async def _copy(reading: int, writing: int, chunk: int, in_flight: int) -> None:
    """Copy between regular files, where each operation has a place of its own."""
    room = memoryview(mmap.mmap(-1, chunk * in_flight))
    parts = [room[i * chunk : (i + 1) * chunk] for i in range(in_flight)]
    free, busy = parts[: in_flight // 2], parts[in_flight // 2 :]
    writes: list[Write] = []
    place, is_end = 0, False
    while writes or not is_end:
        reads = [Read(reading, part, place + i * chunk) for i, part in enumerate(free)]
        done = await do_each(writes if is_end else [*writes, *reads])
        for write, cqe in zip(writes, done, strict=False):
            await _write_rest(writing, write.buffer, cqe.result(), write.offset)  # type: ignore[arg-type]  # a view
        found = [] if is_end else _all_read(done[len(writes) :], chunk)
        writes = [
            Write(writing, part[:count], place + i * chunk)
            for i, (part, count) in enumerate(zip(free, found, strict=False))
        ]
        place, is_end = place + sum(found), not found
        free, busy = busy, free


def _all_read(done: Sequence[CQE], chunk: int) -> list[int]:
    """How much was read of each part, as far as they follow each other; none at the end."""
    counts: list[int] = []
    for cqe in done:
        count = cqe.result()
        if count:
            counts.append(count)
        if count < chunk:
            break
    return counts


async def _write_rest(writing: int, view: "memoryview[int]", count: int, offset: int) -> None:
    """Write what a write that was short has left."""
    while count < len(view):
        more = await do(Write(writing, view[count:], offset + count))
        if not more:
            raise OSError(errno.EIO, "the kernel takes no more, and gives no reason")
        count += more


async def _pump(reading: int, writing: int, chunk: int) -> None:
    """Copy from or to what may have no places, such as a terminal: one after the other."""
    room = memoryview(bytearray(chunk))
    place = 0
    while count := await do(Read(reading, room, place)):
        await _write_rest(writing, room[:count], 0, place)
        place += count
