"""
The buffer of a file, and what readers and writers do with it alike.

The buffer is a window on the file: `_at` is where the reader or writer is in it, up to `_end` it
holds what was read, and between `_dirty` and `_dirty_end` what is to be written. `_raw_at` is where
the position of the raw file is in the window. A file that is open for both has but one window, and
goes back with the raw position before it writes, or reads anew.
"""

import contextlib
import operator
import os
import sys
from typing import Final

from uring.aio._backend import late_result
from uring.aio._iobase import Above, exclusive
from uring.aio._raw import FileIO, zeros

NONE: Final = -1
"""In place of `_end` or `_dirty_end`: there is nothing of that kind in the window."""


class Window(Above):
    """What readers and writers have in common: the buffer, and the way to the file."""

    _raw: FileIO | None = None
    _reads = False
    _writes = False

    def __init__(self, raw: FileIO, size: int) -> None:
        self._raw = raw
        raw._is_below = True
        self._size = size
        self._buffer = zeros(size)
        self._view = memoryview(self._buffer)
        self._at = self._raw_at = self._dirty = 0
        self._end = self._dirty_end = NONE

    def __repr__(self) -> str:
        name = f" name={self._raw.name!r}" if self._raw is not None else ""
        return f"<uring.aio.{type(self).__name__}{name}>"

    # ---- what it is ----

    @property
    def raw(self) -> FileIO:
        """The file without the buffer; None once detached."""
        return self._raw  # type: ignore[return-value]  # as io's own types have it

    def _attached(self) -> FileIO:
        raw = self._raw
        if raw is None:
            raise ValueError("raw stream has been detached")
        return raw

    def _checked(self, doing: str) -> FileIO:
        raw = self._raw
        if raw is None or raw._fd < 0:
            self._attached()
            raise ValueError(f"{doing} closed file")
        return raw

    @property
    def mode(self) -> str:
        """The mode of the file underneath."""
        return self._attached().mode

    def readable(self) -> bool:
        """Whether it is open for reading."""
        return self._reads and self._attached().readable()

    def writable(self) -> bool:
        """Whether it is open for writing."""
        return self._writes and self._attached().writable()

    # ---- the window ----

    def _ahead(self) -> int:
        """How many bytes have been read, and not been taken."""
        return max(0, self._end - self._at) if self._end != NONE else 0

    def _lead(self) -> int:
        """By how much the position of the raw file is beyond that of this one."""
        if self._raw_at < 0 or (self._end == NONE and self._dirty_end == NONE):
            return 0
        return self._raw_at - self._at

    def _take(self, count: int) -> bytes:
        start = self._at
        self._at = start + count
        return bytes(self._view[start : start + count])

    def _move_to(self, at: int) -> None:
        self._at = at
        if self._end != NONE:
            self._end = max(self._end, at)

    def _put(self, data: "bytes | memoryview[int]") -> None:
        """Overwrite what is at the position, and move on; the window grows if it has to."""
        start, end = self._at, self._at + len(data)
        if end > len(self._buffer):
            self._resize(end)
        self._view[start:end] = data
        if self._dirty_end == NONE or self._dirty > start:
            self._dirty = start
        self._move_to(end)
        self._dirty_end = max(self._dirty_end, end)

    def _resize(self, size: int) -> None:
        """Have another buffer: an operation may still lend the one there was."""
        buffer = bytearray(size)
        kept = min(size, len(self._buffer))
        buffer[:kept] = self._view[:kept]
        self._buffer, self._view = buffer, memoryview(buffer)

    def _put_back(self, parts: "list[bytes | memoryview[int]]") -> None:
        """Have what was read up to the raw position be what is read next."""
        data = b"".join(parts)
        if data:
            if len(data) > len(self._buffer):
                self._resize(len(data))
            self._view[: len(data)] = data
            self._at, self._end, self._raw_at = 0, len(data), len(data)

    async def _fill(self) -> int:
        """Read once, behind what is there; 0 at the end."""
        start = max(0, self._end)
        count = await self._attached()._read(self._view[start : self._size])
        if count:
            self._end = self._raw_at = start + count
        return count

    async def _flush(self) -> None:
        """Write what is to be written."""
        if self._dirty_end != NONE and self._dirty < self._dirty_end:
            raw = self._attached()
            back = self._lead() + self._at - self._dirty
            if back:
                raw._seek(-back, os.SEEK_CUR)
                self._raw_at -= back
            while self._dirty < self._dirty_end:
                try:
                    count = await raw._write(self._view[self._dirty : self._dirty_end])
                except BaseException as error:
                    self._has_written(late_result(error) or 0)
                    raise
                self._has_written(count)
        self._clean()

    def _has_written(self, count: int) -> None:
        if count > 0:
            self._dirty += count
            self._raw_at = self._dirty

    def _clean(self) -> None:
        self._dirty, self._dirty_end = 0, NONE

    def _begin_write(self) -> None:
        if self._end == NONE and self._dirty_end == NONE:
            self._at = self._raw_at = 0

    async def _flush_and_rewind(self) -> None:
        """Write what is to be written, and let go of what was read ahead."""
        await self._flush()
        if self._reads:
            try:
                self._attached()._seek(-self._lead(), os.SEEK_CUR)
            finally:
                self._end = NONE

    # ---- all of them ----

    @exclusive
    async def flush(self) -> None:
        """Write what is buffered to the file, and forget what was read ahead."""
        self._checked("flush of")
        await self._flush_and_rewind()

    async def tell(self) -> int:
        """Return the position."""
        return self._tell()

    def _tell(self) -> int:
        return self._attached()._tell() - self._lead()

    @exclusive
    async def seek(self, target: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position: from the beginning, from where it is, from the end."""
        raw = self._attached()
        if operator.index(whence) not in range(os.SEEK_HOLE + 1):
            raise ValueError(f"whence value {whence} unsupported")
        raw = self._checked("seek of")
        if not raw.seekable():
            self._unsupported("File or stream is not seekable.")
        target = _offset(target)
        if whence in {os.SEEK_SET, os.SEEK_CUR} and self._reads and self._ahead() > 0:
            here = raw._tell()
            step = target - (here - self._lead()) if whence == os.SEEK_SET else target
            if -self._at <= step <= self._ahead():
                self._at += step
                return here - self._lead()
        if self._writes:
            await self._flush()
        if whence == os.SEEK_CUR:
            target -= self._lead()
        position = raw._seek(target, whence)
        self._raw_at = -1
        if self._reads:
            self._end = NONE
        return position

    @exclusive
    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file shorter or longer: `size` bytes, by default up to the position."""
        raw = self._checked("truncate of")
        if not self._writes:
            self._unsupported("truncate")
        await self._flush_and_rewind()
        raw._check_writable()
        size = raw._tell() if size is None else size
        await raw._truncate(size)
        return size

    @exclusive
    async def detach(self) -> FileIO:
        """Flush, and give the file underneath; this one is of no use then."""
        raw = self._attached()
        await self._flush_to_leave()
        self._raw, raw._is_below = None, False
        return raw

    async def _flush_to_leave(self) -> None:
        self._checked("flush of")
        await self._flush_and_rewind()

    async def _settled(self, *, writes: bool) -> FileIO:
        raw = self._attached()
        if not raw.closed and (self._dirty_end != NONE or (writes and self._ahead())):
            await self.flush()
        return raw

    def _leave(self, unwritten: bytes = b"") -> None:
        """Write and close now, and in this thread."""
        try:
            self._write_now(unwritten)
        finally:
            self._attached()._release()

    def _is_unclosed(self) -> bool:
        return self._raw is not None and not self._raw.closed

    def _drop(self, source: object, unwritten: bytes = b"") -> None:
        try:
            with contextlib.suppress(OSError):  # nobody could be told
                self._write_now(unwritten)
        finally:
            self._attached()._drop(source)

    def _write_now(self, unwritten: bytes) -> None:
        """Write what is buffered, and more, now and in this thread."""
        raw = self._attached()
        if unwritten:
            self._begin_write()
            self._put(unwritten)
        if self._dirty_end != NONE and self._dirty < self._dirty_end:
            if raw.seekable():
                raw._seek(self._dirty - self._at - self._lead(), os.SEEK_CUR)
            raw._write_now(self._view[self._dirty : self._dirty_end])
            self._clean()


def _offset(target: int) -> int:
    target = operator.index(target)
    if not -sys.maxsize - 1 <= target <= sys.maxsize:
        raise ValueError("cannot fit 'int' into an offset-sized integer")
    return target
