"""
Files for asynchronous programs: `open()`, which takes what the built-in one takes.

The layers, from the top: `_text` above `_buffered` above `_raw`; `_iobase` has what they share.
"""

import io
import operator
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, overload

from uring.aio._backend import do
from uring.aio._buffered import BufferedRandom, BufferedReader, BufferedWriter
from uring.aio._iobase import IOBase
from uring.aio._raw import FileIO
from uring.aio._text import TextIOWrapper
from uring.operations import Openat

if TYPE_CHECKING:
    from _typeshed import (
        OpenBinaryMode,
        OpenBinaryModeReading,
        OpenBinaryModeUpdating,
        OpenBinaryModeWriting,
        OpenTextMode,
        StrOrBytesPath,
    )

__all__ = [
    "BufferedRandom",
    "BufferedReader",
    "BufferedWriter",
    "FileIO",
    "Opening",
    "TextIOWrapper",
    "open",
]

F = TypeVar("F", bound=IOBase)
_Opener = Callable[[Any, int], int]

_FLAGS: Final = {
    "r": 0,
    "w": os.O_CREAT | os.O_TRUNC,
    "x": os.O_CREAT | os.O_EXCL,
    "a": os.O_CREAT | os.O_APPEND,
}
_BLOCK_MAX: Final = 8 << 20
_NO_LINES: Final = (
    "line buffering (buffering=1) isn't supported in binary mode, "
    "the default buffer size will be used"
)


class Opening(Generic[F]):
    """What `open()` gives: await it for the file, or use it as an asynchronous context manager."""

    def __init__(self, coroutine: Coroutine[Any, Any, F]) -> None:
        self._coroutine = coroutine
        self._file: F | None = None

    def __await__(self) -> Generator[Any, Any, F]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> F:
        self._file = file = await self._coroutine
        return file

    async def __aexit__(self, *_error: object) -> None:
        if self._file is not None:
            await self._file.close()


@overload
def open(
    file: "StrOrBytesPath | int",
    mode: "OpenTextMode" = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> Opening[TextIOWrapper]: ...
@overload
def open(
    file: "StrOrBytesPath | int",
    mode: "OpenBinaryMode",
    buffering: Literal[0],
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> Opening[FileIO]: ...
@overload
def open(
    file: "StrOrBytesPath | int",
    mode: "OpenBinaryModeUpdating",
    buffering: Literal[-1, 1] = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> Opening[BufferedRandom]: ...
@overload
def open(
    file: "StrOrBytesPath | int",
    mode: "OpenBinaryModeWriting",
    buffering: Literal[-1, 1] = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> Opening[BufferedWriter]: ...
@overload
def open(
    file: "StrOrBytesPath | int",
    mode: "OpenBinaryModeReading",
    buffering: Literal[-1, 1] = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> Opening[BufferedReader]: ...
@overload
def open(
    file: "StrOrBytesPath | int",
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> Opening[Any]: ...
def open(
    file: "StrOrBytesPath | int",
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> Opening[Any]:
    r"""
    Open a file.

    The arguments, the modes and the exceptions are those of the built-in open(). Use it either
    way::

        async with uring.aio.open("names.txt") as file:
            async for line in file:
                ...
        file = await uring.aio.open("data", "rb")

    The file has the methods of the built-in one. Those that read, write, seek, flush or close are
    to be awaited; what only looks, as `closed`, `fileno()` or `readable()`, is as ever, and so is
    `reconfigure()`, which does not flush here. Besides, there are `pread()`, `pwrite()`, `fsync()`,
    `fdatasync()` and `fallocate()`.

    One task at a time: a call while another task waits for the same file is a RuntimeError. Only
    `pread()` and `pwrite()` may be many.

    Cancellation: a read that is cancelled takes nothing: the next one gives what it would have
        given. A write that is cancelled has taken all: what is not in the file yet comes with the
        next flush. `close()` closes in any case. Without a buffer, a write may have been done.

    A descriptor that is non-blocking is waited for as any other. A FIFO may be open for reading
    before there is a writer: then the first read waits for one.

    Lifetime: a file that is dropped unclosed warns (ResourceWarning), writes what it has buffered,
        and gives its descriptor back. It keeps its position itself: that of the descriptor follows
        when `fileno()` is called, and when a file closes that was opened from a descriptor.

    Args:
        file: a path, or a descriptor.
        mode: "r", "w", "x" or "a"; with "b" for bytes instead of text, and "+" for both directions.
        buffering: 0 for none, in binary files; 1 to flush at the end of each line, in text files;
            or the size of the buffer in bytes. -1 has the file system say.
        encoding: that of the text; None is the locale's.
        errors: what is done about text that cannot be encoded or decoded.
        newline: None, "", "\n", "\r" or "\r\n", as for the built-in open().
        closefd: whether a descriptor that was given is closed with the file.
        opener: called with the path and the flags instead of opening; gives a descriptor. It runs
            in this thread.

    Raises:
        OSError: it cannot be opened; as the built-in one raises it, as all others.
    """
    if isinstance(mode, str):
        if "b" not in mode:
            encoding = io.text_encoding(encoding, 2)
        elif buffering == 1:
            warnings.warn(_NO_LINES, RuntimeWarning, stacklevel=2)
    opening = _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    return Opening(opening)


async def _open(
    file: Any,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool,
    opener: _Opener | None,
) -> Any:
    raw_mode, is_binary = _parsed(mode, encoding, errors, newline)
    buffering = operator.index(buffering)
    if not -1 << 31 <= buffering < 1 << 31:
        raise OverflowError("Python int too large to convert to C int")
    raw = await _open_raw(file, raw_mode, opener, closefd=closefd)
    try:
        is_tty = not raw._is_regular and raw.isatty()
        line_buffering = not is_binary and (buffering == 1 or (buffering < 0 and is_tty))
        size = _buffer_size(raw) if buffering < 0 or buffering == 1 else buffering
        if _is_unbuffered(size, is_binary=is_binary):
            return raw
        made = BufferedRandom if "+" in mode else BufferedReader if "r" in mode else BufferedWriter
        buffer = made(raw, size)
        if is_binary:
            return buffer
        text = TextIOWrapper(buffer, encoding, errors, newline, line_buffering=line_buffering)
        text.mode = mode
    except BaseException:
        raw._release()
        raise
    return text


def _is_unbuffered(size: int, *, is_binary: bool) -> bool:
    if size == 0 and not is_binary:
        raise ValueError("can't have unbuffered text I/O")
    return size == 0


def _parsed(mode: str, encoding: object, errors: object, newline: object) -> tuple[str, bool]:
    """Check a mode, and what goes with it; give that of the file underneath, and whether binary."""
    if not isinstance(mode, str):
        raise TypeError(f"open() argument 'mode' must be str, not {type(mode).__name__}")
    if set(mode) - set("rwxabt+") or len(mode) > len(set(mode)):
        raise ValueError(f"invalid mode: {mode!r}")
    is_binary = "b" in mode
    kinds = [kind for kind in mode if kind in _FLAGS]
    if is_binary and "t" in mode:
        raise ValueError("can't have text and binary mode at once")
    if len(kinds) > 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
        if not isinstance(value, str | None):
            kind = type(value).__name__
            raise TypeError(f"open() argument {name!r} must be str or None, not {kind}")
        if is_binary and value is not None:
            article = "an" if name != "newline" else "a"
            raise ValueError(f"binary mode doesn't take {article} {name} argument")
    if not kinds:
        raise ValueError(
            "Must have exactly one of create/read/write/append mode and at most one plus"
        )
    return kinds[0] + ("+" if "+" in mode else ""), is_binary


async def _open_raw(file: Any, mode: str, opener: _Opener | None, *, closefd: bool) -> FileIO:
    if isinstance(file, int):
        if file < 0:
            raise ValueError("negative file descriptor")
        return FileIO(file, file, mode, closefd=closefd, is_ours=False)
    path = os.fspath(file)
    if not closefd:
        raise ValueError("Cannot use closefd=False with file name")
    access = os.O_RDWR if "+" in mode else os.O_RDONLY if mode == "r" else os.O_WRONLY
    flags = access | _FLAGS[mode[0]] | os.O_CLOEXEC
    sys.audit("open", path, mode, flags)
    if opener is None:
        fd: int = await do(Openat(path, flags, 0o666))
    else:
        fd = _opened_by(opener, path, flags)
    try:
        return FileIO(fd, path, mode, closefd=True, is_ours=opener is None)
    except BaseException:
        os.close(fd)
        raise


def _opened_by(opener: _Opener, path: object, flags: int) -> int:
    fd = opener(path, flags)
    if not isinstance(fd, int):
        raise TypeError("expected integer from opener")
    if fd < 0:
        raise ValueError(f"opener returned {fd}")
    os.set_inheritable(fd, False)  # noqa: FBT003 - it has no keyword
    return fd


def _buffer_size(raw: FileIO) -> int:
    if sys.version_info >= (3, 14):
        return max(min(raw._blksize, _BLOCK_MAX), io.DEFAULT_BUFFER_SIZE)
    return raw._blksize
