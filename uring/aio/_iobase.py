"""
What all asynchronous files have in common, as io.IOBase is to the built-in ones.

A file is used by one task at a time: a call that comes while another one waits is refused, since
both would want the same position. `pread()` and `pwrite()` are the exception; they have none.
"""

import contextlib
import functools
import operator
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterable
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar, cast

from uring.aio._backend import callers_level

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from uring.aio._raw import FileIO

P = ParamSpec("P")
R = TypeVar("R")
B = TypeVar("B", bound="IOBase")

CLOSED = "I/O operation on closed file"
BUSY = "another task is using this file: let one task do so, or use pread() and pwrite()"


def exclusive(
    method: Callable[Concatenate[B, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[B, P], Coroutine[Any, Any, R]]:
    """Make a method that refuses to run while another one of the same file waits."""

    @functools.wraps(method)
    async def alone(self: B, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._is_busy:
            raise RuntimeError(BUSY)
        self._is_busy = True
        try:
            return await method(self, *args, **kwargs)
        finally:
            self._is_busy = False
            if self._is_doomed:
                self._end_now()

    return cast("Callable[Concatenate[B, P], Coroutine[Any, Any, R]]", alone)


class IfCancelled:
    """A block that undoes something when the task is cancelled in it; not when it fails."""

    __slots__ = ("_undo",)

    def __init__(self, undo: Callable[[BaseException], object]) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and not isinstance(error, Exception):
            self._undo(error)


def size_of(size: Any) -> int:
    """Check a size that may be None, which is -1."""
    if type(size) is int and -sys.maxsize <= size <= sys.maxsize:
        return size
    if size is None:
        return -1
    try:
        size = operator.index(size)
    except TypeError:
        name = type(size).__name__
        raise TypeError(f"argument should be integer or None, not '{name}'") from None
    if abs(size) > sys.maxsize:
        raise OverflowError("cannot fit 'int' into an index-sized integer")
    return int(size)


def bytes_of(data: "Buffer") -> "bytes | memoryview[int]":
    """Look at what is to be written as so many bytes."""
    if type(data) is bytes:
        return data
    try:
        view = memoryview(data)
    except TypeError:
        name = type(data).__name__
        raise TypeError(f"a bytes-like object is required, not '{name}'") from None
    return _flat(view)


def room_of(buffer: "Buffer", method: str) -> "memoryview[int]":
    """Look at what is to be read into as so many bytes."""
    try:
        view = memoryview(buffer)
    except TypeError:
        view = memoryview(b"")
    if view.readonly or not view.c_contiguous:
        name = type(buffer).__name__
        which = "argument 1" if sys.version_info >= (3, 13) else "argument"
        raise TypeError(f"{method}() {which} must be read-write bytes-like object, not {name}")
    return _flat(view)


def _flat(view: "memoryview[Any]") -> "memoryview[int]":
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view.cast("B") if view.nbytes else memoryview(bytearray())


class IOBase:
    """An asynchronous file; see `uring.aio.open()`."""

    _is_busy = False
    """Whether a task waits for something of this file."""
    _is_doomed = False
    """Whether it is to be closed as soon as no task waits for it."""
    _is_below = False
    """Whether another file writes to this one, and ends with it: a cycle may end it first."""

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._is_busy and error is not None:
            self._is_doomed = True  # what is wrong is not that another task is not done
        else:
            await self.close()

    def __aiter__(self) -> Self:
        self._check_open()
        return self

    async def __anext__(self) -> Any:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} instances")

    def __del__(self) -> None:
        if not self._is_below and self._is_unclosed():
            self._drop(self)

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        raise NotImplementedError

    def _is_unclosed(self) -> bool:
        raise NotImplementedError

    def _drop(self, source: object) -> None:
        """Write what is buffered and close, now and in this thread; warn that `source` was open."""
        raise NotImplementedError

    async def _settled(self, *, writes: bool) -> "FileIO":
        """
        Write what is buffered; give the file underneath.

        Args:
            writes: whether it is to be written to: then what was read ahead is let go of, too.
        """
        raise NotImplementedError

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{CLOSED}.")

    def _unsupported(self, name: str) -> NoReturn:
        raise UnsupportedOperation(name)

    def readable(self) -> bool:
        """Whether it can be read; without it, reads raise `io.UnsupportedOperation`."""
        return False

    def writable(self) -> bool:
        """Whether it can be written; without it, writes raise `io.UnsupportedOperation`."""
        return False

    # ---- lines ----

    async def readline(self, size: Any = -1, /) -> Any:
        """Read up to the end of a line, or `size` bytes or characters; empty at the end."""
        raise NotImplementedError

    async def readlines(self, hint: int | None = -1, /) -> list[Any]:
        """Read all lines, or until there are more than `hint` bytes or characters of them."""
        limit = size_of(hint)
        lines: list[Any] = []
        length = 0
        async for line in self:
            lines.append(line)
            length += len(line)
            if 0 < limit < length:
                break
        return lines

    async def write(self, data: Any, /) -> Any:
        """Write, and give how many bytes or characters were taken."""
        raise NotImplementedError

    async def writelines(self, lines: Iterable[Any], /) -> None:
        """Write one after the other; nothing is put in between."""
        self._check_open()
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """Write what is buffered to the file; `fsync()` is what makes it durable."""
        raise NotImplementedError

    async def close(self) -> None:
        """
        Flush and close; a second time it does nothing.

        The file is closed whatever happens. When the task is cancelled meanwhile, what is left to
        write is written, and the file closed, in this thread: except what has no positions, such
        as a pipe, is only given what it takes without waiting. So it is done, too, when another
        task is using the file, as soon as it is not; that is a RuntimeError here.
        """
        if self._is_busy:
            self._is_doomed = True
            raise RuntimeError(f"{BUSY}. It is closed as soon as that is done")
        await self._close()

    async def _close(self) -> None:
        raise NotImplementedError

    def _end_now(self) -> None:
        self._is_doomed = False
        if self._is_unclosed():
            with contextlib.suppress(OSError):  # whose task this is has not written it
                self._leave()

    def _leave(self) -> None:
        """Write what is buffered and close, now and in this thread."""
        raise NotImplementedError

    # ---- beside the position ----

    async def pread(self, buffer_or_size: "Buffer | int", offset: int) -> Any:
        """
        Read at an offset, once, straight from the file.

        What is buffered for writing is flushed first. The position is neither used nor moved, so
        that any number of tasks may do this at once; flush before, if anything was written.

        Args:
            buffer_or_size: writable memory, to be filled; or a number of bytes.
            offset: where to read, in bytes.

        Returns:
            How many bytes were read into the buffer; or the bytes. It may be less than was asked
            for, and is nothing at the end of the file.

        Lifetime: the buffer is the caller's again when this ends, also when it is cancelled.

        Equivalent: pread(2).

        Raises:
            io.UnsupportedOperation: the file is not open for reading.
            OSError: it failed; ESPIPE for what has no positions.
        """
        return await (await self._settled(writes=False))._read_at(buffer_or_size, offset)

    async def pwrite(self, buffer: "Buffer", offset: int) -> int:
        """
        Write at an offset, once, straight to the file.

        What is buffered for writing is flushed first, and what a binary file has read ahead is let
        go of. The position is neither used nor moved, so that any number of tasks may do this at
        once. In mode "a" Linux appends, whatever the offset.

        Args:
            buffer: readable memory; not to be changed meanwhile.
            offset: where to write, in bytes.

        Returns:
            How many bytes were written. It may be less than all.

        Equivalent: pwrite(2).

        Raises:
            io.UnsupportedOperation: the file is not open for writing.
            OSError: it failed; ESPIPE for what has no positions.
        """
        return await (await self._settled(writes=True))._write_at(buffer, offset)

    async def fsync(self) -> None:
        """
        Flush, and wait until the device has all.

        Equivalent: fsync(2).
        """
        await (await self._settled(writes=False))._sync(datasync=False)

    async def fdatasync(self) -> None:
        """
        Flush, and wait until the device has the data.

        Equivalent: fdatasync(2).
        """
        await (await self._settled(writes=False))._sync(datasync=True)

    async def fallocate(self, mode: int, offset: int, length: int) -> None:
        """
        Flush, and allocate, free or zero a part of the file.

        Args:
            mode: `FallocateFlags`; 0 allocates, and makes the file longer where it has to.
            offset: where the part begins, in bytes.
            length: how long it is, in bytes; at least 1.

        Equivalent: fallocate(2).
        """
        await (await self._settled(writes=True))._allocate(mode, offset, length)


class Above(IOBase):
    """A file that is above another one, which knows most about it."""

    def _attached(self) -> Any:
        """Give the file underneath; refuse when it was detached."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        is_closed: bool = self._attached().closed
        return is_closed

    @property
    def name(self) -> Any:
        """What it was opened by: a path, or a descriptor."""
        return self._attached().name

    @exclusive
    async def _close(self) -> None:
        below = self._attached()
        if below.closed:
            return
        try:
            await self._flush_to_leave()
        except Exception:
            await below.close()
            raise
        except BaseException:
            with contextlib.suppress(OSError):  # the cancellation is what is told
                self._leave()
            raise
        else:
            await below.close()

    async def _flush_to_leave(self) -> None:
        """Write what is buffered; there will be nothing more."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Return the descriptor; what is buffered is not written for it."""
        number: int = self._attached().fileno()
        return number

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return bool(self._attached().isatty())

    def readable(self) -> bool:
        """Whether it is open for reading."""
        return bool(self._attached().readable())

    def writable(self) -> bool:
        """Whether it is open for writing."""
        return bool(self._attached().writable())

    def seekable(self) -> bool:
        """Whether it has positions."""
        return bool(self._attached().seekable())


def warn_of_unclosed(source: object) -> None:
    """Warn of a file that was dropped and not closed."""
    text = f"unclosed file {source!r}"
    warnings.warn(text, ResourceWarning, stacklevel=callers_level(), source=source)
