"""
Whole files at once: `read_bytes` and `write_bytes`.

On a ring each file is a chain into a slot of a table of registered files, which is there for the
call only: open and read; or open, write, close. So a file costs no descriptor, and one wait serves
many. Until a read finds the end, or all is written, it is gone on with on the same open file. Where
files are registered already, by whoever uses the ring or by another call, ordinary descriptors take
the place of the slots, in steps.

Each operation says where it reads or writes; what has no places takes no notice. The file's own
position would not do: when a write was short, as its continuation failed, Linux 6.18 leaves it.
"""

import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from uring._checks import check_range
from uring._memory import PathLike
from uring.aio._backend import do_each_on, do_on, usable_ring
from uring.aio._ring import Ring
from uring.aio._threads import Job, do_all
from uring.completions import CQE
from uring.errors import RegisterError, UnsupportedError, UringError, operation_error
from uring.flags import Opcode, SQEFlags
from uring.operations import Close, Nop, Openat, Read, Write
from uring.probe import known_opcodes
from uring.sqe import FileLike, Fixed, Queueable

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")
_PathT = TypeVar("_PathT", bound=PathLike)  # a mapping's keys are of one type
_PATH: Final = (str, bytes, os.PathLike)

IN_FLIGHT: Final = 64
"""So that a window fills no more than the submission queue of a loop's ring, of 256."""
IN_FLIGHT_MAX: Final = 4096

_FIRST_READ: Final = 65536
"""How much of a file a chain reads: four files in five of a Linux system are shorter than that."""
_ALONE: Final = 16384
"""The same for a file that is read by itself: for so little memory no new pages are needed."""
_READ_MAX: Final = 8 * 1024 * 1024
_WRITE_MAX: Final = 1 << 30  # the kernel stops at 2**31 - 4096, and that is no multiple of anything
_LINK: Final = SQEFlags.IO_LINK
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_WITH_SLOTS: Final = Opcode.LINKAT
"""Of the kernel release that first opened into slots, 5.15; the opcode of opening is older."""


class _File:
    """A file of which something is left to be read or written."""

    __slots__ = ("done", "error", "file", "left", "name", "parts")

    def __init__(self, name: str | bytes, left: "memoryview[int]") -> None:
        self.name = name
        self.left = left
        """Room for the first read; or what has not been written."""
        self.file: FileLike | None = None
        """What is open."""
        self.parts: list[Buffer] = []
        self.done = 0
        self.error: OSError | None = None

    def fail(self, number: int, note: str = "") -> None:
        """Take an error, which names the file."""
        if self.error is None:
            self.error = operation_error(number, note, self.name)

    def took(self, cqe: CQE) -> bool:
        """Whether an operation went well; its error is this file's."""
        if cqe.res < 0:
            self.fail(-cqe.res, f"in {cqe.op!r}")
        return cqe.res >= 0

    def room(self) -> "memoryview[int]":
        """Where to read next: the rest of what it has, and then as much again as it has read."""
        if not self.left:
            self.left = _room(max(_FIRST_READ, min(self.done, _READ_MAX)))
        return self.left

    def read(self, count: int) -> None:
        """Keep what was read there."""
        self.parts.append(self.left[:count])
        self.wrote(count)

    def wrote(self, count: int) -> None:
        """Drop what was written, or the room that is taken."""
        self.done += count
        self.left = self.left[count:]


def _room(size: int) -> "memoryview[int]":
    """Make room whose pages cost nothing until they are used: they cost more than all else here."""
    return memoryview(mmap.mmap(-1, size))


_spare: Final[list["memoryview[int]"]] = [_room(IN_FLIGHT * _FIRST_READ)]
"""Room for the first reads of one call at a time, the pages of which are there already."""


@overload
async def read_bytes(  # type: ignore[overload-overlap]  # a str is one path, whatever it iterates
    paths: PathLike, *, in_flight: int = ...
) -> bytes: ...
@overload
async def read_bytes(
    paths: Iterable[PathLike], *, return_exceptions: Literal[False] = ..., in_flight: int = ...
) -> list[bytes]: ...
@overload
async def read_bytes(
    paths: Iterable[PathLike], *, return_exceptions: bool, in_flight: int = ...
) -> list[bytes | OSError]: ...
async def read_bytes(
    paths: PathLike | Iterable[PathLike],
    *,
    return_exceptions: bool = False,
    in_flight: int = IN_FLIGHT,
) -> bytes | Sequence[bytes | OSError]:
    """
    Read whole files: one, as pathlib.Path.read_bytes(), or any number of them.

    Args:
        paths: one path, or any number of them.
        return_exceptions: have errors in the list in place of the contents, instead of raised.
        in_flight: how many files are open and read at once, 1 to 4096. Each takes 64 KiB of memory,
            and more if it is longer.

    Returns:
        The contents; a list of them, in the order of the paths, when there are several.

    Raises:
        OSError: that of the first of the paths that could not be read, which it names; when all
            that was begun has ended.

    Cancellation: as `Ring.run()` has it; in threads, the files that are being read are read.
    """
    names = _names([paths] if isinstance(paths, _PATH) else paths)
    found = await _in_windows(names, in_flight, _read_window, _read_in_thread)
    _raise_first(found, names, are_returned=return_exceptions)
    return found[0] if isinstance(paths, _PATH) else found


@overload
async def write_bytes(paths: PathLike, data: "Buffer", *, in_flight: int = ...) -> int: ...
@overload
async def write_bytes(
    paths: "Mapping[_PathT, Buffer] | Iterable[tuple[PathLike, Buffer]]",
    *,
    return_exceptions: Literal[False] = ...,
    in_flight: int = ...,
) -> list[int]: ...
@overload
async def write_bytes(
    paths: "Mapping[_PathT, Buffer] | Iterable[tuple[PathLike, Buffer]]",
    *,
    return_exceptions: bool,
    in_flight: int = ...,
) -> list[int | OSError]: ...
async def write_bytes(
    paths: Any,
    data: "Buffer | None" = None,
    *,
    return_exceptions: bool = False,
    in_flight: int = IN_FLIGHT,
) -> int | Sequence[int | OSError]:
    """
    Write whole files: one, as pathlib.Path.write_bytes(), or any number of them.

    A file is made, or made empty first. None is durable before an fsync.

    Args:
        paths: one path; or a mapping from paths to what goes into each, or pairs of those. In what
            order files are written is not defined: name each once.
        data: what goes into the one path.
        return_exceptions: have errors in the list in place of the sizes, instead of raised.
        in_flight: how many files are open and written at once, 1 to 4096.

    Returns:
        How many bytes were written; a list of that, in the order given, when there are several.

    Raises:
        OSError: that of the first of the paths that could not be written, which it names; when all
            that was begun has ended.

    Cancellation: as `Ring.run()` has it, which leaves some files as they were and some shorter than
        they were to be; in threads, those that are being written are written.
    """
    if isinstance(paths, _PATH):
        if data is None:
            raise TypeError("write_bytes() of one path needs its data")
        pairs = [(paths, data)]
    elif data is not None:
        raise TypeError("data is for one path: several have theirs in a mapping, or in pairs")
    else:
        pairs = [*(paths.items() if isinstance(paths, Mapping) else paths)]
        if any(isinstance(pair, _PATH) for pair in pairs):
            raise TypeError(
                "several paths need data for each: a mapping, or pairs of path and data"
            )
    names = _names(path for path, _ in pairs)
    views = [memoryview(content).cast("B") for _, content in pairs]
    todo = [*zip(names, views, strict=True)]
    found = await _in_windows(todo, in_flight, _write_window, _write_in_thread)
    _raise_first(found, names, are_returned=return_exceptions)
    return found[0] if isinstance(paths, _PATH) else found


def _names(paths: Iterable[PathLike]) -> list[str | bytes]:
    """The paths as they are to be named; what cannot be one is refused before anything begins."""
    names = [os.fspath(path) for path in paths]
    for name in names:
        if b"\0" in os.fsencode(name):
            raise ValueError(f"the path {name!r} has a null byte in it")
    return names


def _raise_first(found: list[Any], names: Sequence[str | bytes], *, are_returned: bool) -> None:
    """Raise what there is to be raised; nothing that was found is kept alive by it."""
    failures = [each for each in found if isinstance(each, Exception)]
    others = [each for each in failures if not isinstance(each, OSError)]
    if others or (failures and not are_returned):
        error = (others or failures)[0]
        if len(names) > 1:
            error.add_note(f"{len(failures)} of {len(names)} files failed")
        found.clear()
        try:
            raise error
        finally:
            del error, failures, others


async def _in_windows(
    todo: Sequence[_T],
    in_flight: int,
    on_ring: Callable[[Ring, Sequence[_T]], Any],
    in_thread: Callable[[_T], Any],
) -> list[Any]:
    """Do so many at a time, on the ring or in threads."""
    check_range("in_flight", in_flight, 1, IN_FLIGHT_MAX)
    found: list[Any] = []
    rest = iter(todo)
    while window := [*islice(rest, in_flight)]:
        bound = usable_ring()
        if bound is None:
            found += await do_all([Job(partial(in_thread, item)) for item in window])
        else:
            found += await on_ring(bound, window)
    return found


# ---- in threads ----


def _read_in_thread(name: str | bytes) -> bytes:
    with _naming(name), open(name, "rb", buffering=0) as file:  # noqa: PTH123 - bytes, too
        return file.readall()


def _write_in_thread(todo: "tuple[str | bytes, memoryview[int]]") -> int:
    name, view = todo
    with _naming(name), open(name, "wb") as file:  # noqa: PTH123 - bytes, too
        return file.write(view)


@contextmanager
def _naming(name: str | bytes) -> Iterator[None]:
    """Name the file in what is raised: reading and writing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = name
        raise


# ---- on a ring ----


@contextmanager
def _slots(bound: Ring, count: int) -> Iterator[Sequence[Fixed]]:
    """Give slots for files, if they can be had; what is left in them is closed."""
    if count == 1 or _WITH_SLOTS not in (known_opcodes(bound.plain._shim) or ()):
        yield ()
        return
    try:
        table = bound.plain.register_files_sparse(count)
    except (RegisterError, UnsupportedError):
        yield ()
        return
    try:
        yield [*table]
    finally:
        if not bound.plain.closed:
            table.close()


async def _read_alone(bound: Ring, name: str | bytes) -> bytes:
    """Read one file: a chain would not be submitted together with what other tasks do."""
    fd = await do_on(bound, Openat(name))
    try:
        room = memoryview(bytearray(_ALONE))
        parts: list[Buffer] = []
        place = 0
        with _naming(name):
            while count := await do_on(bound, Read(fd, room, place)):
                parts.append(room[:count])
                place += count
                room = room[count:] or _room(max(_FIRST_READ, min(place, _READ_MAX)))
        return b"".join(parts)
    finally:
        os.close(fd)  # at once, as it is for reading; a task that is cancelled cannot wait


async def _read_window(bound: Ring, names: "Sequence[str | bytes]") -> "list[bytes | OSError]":
    if len(names) == 1:
        try:
            return [await _read_alone(bound, names[0])]
        except OSError as error:
            return [error]
    with _first_room(len(names)) as room:
        files = []
        for place, name in enumerate(names):
            start = place * _FIRST_READ
            files.append(_File(name, room[start : start + _FIRST_READ]))
        with _slots(bound, len(names)) as slots:
            if slots:
                await _read_chains(bound, files, slots)
                await _read_on(bound, files)
            else:
                with _closing(files):
                    await _open(bound, files, os.O_RDONLY)
                    await _read_on(bound, files)
        return [b"".join(each.parts) if each.error is None else each.error for each in files]


@contextmanager
def _first_room(count: int) -> Iterator["memoryview[int]"]:
    """Give room for the first reads of so many files."""
    try:
        room = _spare.pop() if count <= IN_FLIGHT else _room(count * _FIRST_READ)
    except IndexError:  # another call has it, maybe that of another thread
        room = _room(count * _FIRST_READ)
    try:
        yield room
    except GeneratorExit:  # of a coroutine that is dropped: it does not wait for the kernel
        room = _room(IN_FLIGHT * _FIRST_READ)
        raise
    finally:
        if not _spare and len(room) == IN_FLIGHT * _FIRST_READ:
            _spare.append(room)


async def _each(bound: Ring, ops: Sequence[Queueable]) -> Sequence[CQE]:
    """Do all; one alone is submitted together with what other tasks have."""
    if len(ops) != 1:
        return await do_each_on(bound, ops)
    try:
        res = await do_on(bound, ops[0])
    except OSError as error:
        if isinstance(error, UringError) or error.errno is None:
            raise
        res = -error.errno
    return [CQE(0, res, 0, ops[0])]


async def _read_chains(bound: Ring, files: Sequence[_File], slots: Sequence[Fixed]) -> None:
    """Open each and read; only what reads nothing is at its end, whatever kind of file it is."""
    ops: list[Queueable] = []
    for each, slot in zip(files, slots, strict=True):
        ops += Openat(each.name, slot=slot, flags=_LINK), Read(slot, each.room())
    done = await do_each_on(bound, ops)
    for each, slot, opened, read in zip(files, slots, done[::2], done[1::2], strict=True):
        if each.took(opened) and each.took(read) and read.res:
            each.read(read.res)
            each.file = slot


async def _open(bound: Ring, files: Sequence[_File], flags: int) -> None:
    done = await _each(bound, [Openat(each.name, flags, 0o666) for each in files])
    for each, cqe in zip(files, done, strict=True):
        if each.took(cqe):
            each.file = cqe.res


async def _read_on(bound: Ring, files: Sequence[_File]) -> None:
    """Read all that is open to its end."""
    rest = [each for each in files if each.file is not None]
    while rest:
        done = await _each(bound, [Read(each.file, each.room(), each.done) for each in rest])  # type: ignore[arg-type]  # it is open
        going_on = []
        for each, cqe in zip(rest, done, strict=True):
            if each.took(cqe) and cqe.res:
                each.read(cqe.res)
                going_on.append(each)
        rest = going_on


@contextmanager
def _closing(files: Sequence[_File]) -> Iterator[None]:
    """Close the descriptors at the end, at once: a task that is cancelled cannot wait for that."""
    try:
        yield
    finally:
        for each in files:
            if isinstance(each.file, int):
                try:
                    os.close(each.file)
                except OSError as error:  # what it could not write
                    each.fail(error.errno or errno.EIO)


async def _write_window(
    bound: Ring, todo: "Sequence[tuple[str | bytes, memoryview[int]]]"
) -> "list[int | OSError]":
    files = [_File(name, view) for name, view in todo]
    with _slots(bound, len(files)) as slots:
        if slots:
            await _write_chains(bound, files, slots)
            await _write_on(bound, files)
            await _close(bound, files)
        else:
            with _closing(files):
                await _open(bound, files, _NEW)
                await _write_on(bound, files)
    return [each.done if each.error is None else each.error for each in files]


async def _write_chains(bound: Ring, files: Sequence[_File], slots: Sequence[Fixed]) -> None:
    """Open each, write, and close it if all was written: a short write ends the chain."""
    ops: list[Queueable] = []
    for each, slot in zip(files, slots, strict=True):
        ops += (
            Openat(each.name, _NEW, 0o666, slot=slot, flags=_LINK),
            Write(slot, each.left[:_WRITE_MAX], flags=_LINK),
            Close(slot) if len(each.left) <= _WRITE_MAX else Nop(),
        )
    done = await _each(bound, ops)
    for place, (each, slot) in enumerate(zip(files, slots, strict=True)):
        opened, written, closed = done[3 * place : 3 * place + 3]
        if each.took(opened) and each.took(written):
            each.wrote(written.res)
            if each.left:
                each.file = slot
            else:
                each.took(closed)


async def _write_on(bound: Ring, files: Sequence[_File]) -> None:
    """Write all that is left to be written into what is open."""
    rest = [each for each in files if each.file is not None and each.left]
    while rest:
        ops = [Write(each.file, each.left[:_WRITE_MAX], each.done) for each in rest]  # type: ignore[arg-type]  # it is open
        going_on = []
        for each, cqe in zip(rest, await _each(bound, ops), strict=True):
            if not each.took(cqe):
                continue
            each.wrote(cqe.res)
            if not cqe.res:
                each.fail(errno.EIO, "the kernel takes no more, and gives no reason")
            elif each.left:
                going_on.append(each)
        rest = going_on


async def _close(bound: Ring, files: Sequence[_File]) -> None:
    """Empty the slots of what was gone on with: that can fail, too."""
    rest = [each for each in files if isinstance(each.file, Fixed)]
    done = await _each(bound, [Close(each.file) for each in rest])  # type: ignore[arg-type]  # it is
    for each, cqe in zip(rest, done, strict=True):
        each.took(cqe)
