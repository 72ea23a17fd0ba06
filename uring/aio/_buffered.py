"""
Binary files with a buffer, which behave as those of the io module do, call by call.

What a task has not got when it is cancelled is put back into the window, or stays in it: a read
that is cancelled takes nothing, and a write that is cancelled has taken all.
"""

import operator
import os
from typing import TYPE_CHECKING, NoReturn

from uring.aio._backend import late_result
from uring.aio._iobase import IfCancelled, bytes_of, exclusive, room_of, size_of
from uring.aio._raw import FileIO
from uring.aio._window import NONE, Window

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Reads(Window):
    """What can be read."""

    _reads = True

    async def _begin(self) -> None:
        """Make the window empty, to read anew."""
        if self._writes:
            await self._flush_and_rewind()
        self._end = NONE

    async def _begin_after(self, have: int) -> None:
        """Do so when `have` bytes were taken already."""
        try:
            await self._begin()
        except BaseException:
            self._at -= have
            raise

    async def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or fewer at the end of the file; all there is without a size."""
        size = size_of(size)
        if size < -1:
            self._attached()
            raise ValueError("read length must be non-negative or -1")
        self._checked("read of")
        if 0 <= size <= self._ahead() and not self._is_busy:
            return self._take(size)
        return await self._read(size)

    @exclusive
    async def _read(self, size: int) -> bytes:
        have = self._ahead()
        parts: list[bytes | memoryview[int]] = [self._take(have)] if have else []
        await self._begin_after(have)
        try:
            if size < 0:
                return await self._read_all(parts)
            return await self._read_more(parts, size - have)
        except BaseException:
            self._put_back(parts)
            raise

    async def _read_all(self, parts: "list[bytes | memoryview[int]]") -> bytes:
        rest = await self._attached()._readall()
        if not parts:
            return rest
        return b"".join([*parts, rest])

    async def _read_more(self, parts: "list[bytes | memoryview[int]]", missing: int) -> bytes:
        """Read whole blocks at once, and the last one into the window."""
        raw, size = self._attached(), self._size
        while whole := missing // size * size:
            part = await raw._read_some(whole)
            if not part:
                return b"".join(parts)
            parts.append(part)
            missing -= len(part)
        self._at = self._raw_at = self._end = 0
        while missing > 0 and self._end < size:
            count = min(await self._fill(), missing)
            if not count:
                break
            parts.append(self._take(count))
            missing -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)  # type: ignore[return-value]  # bytes, all of them

    async def read1(self, size: int = -1, /) -> bytes:
        """Read what is buffered, or once from the file, up to `size` bytes."""
        size = size_of(operator.index(size))
        self._checked("read of")
        if size < 0:
            size = self._size
        if size == 0:
            return b""
        have = self._ahead()
        if have > 0 and not self._is_busy:
            return self._take(min(have, size))
        return await self._read1(size)

    @exclusive
    async def _read1(self, size: int) -> bytes:
        await self._begin()
        return await self._attached()._read_some(size)

    @exclusive
    async def peek(self, size: int = 0, /) -> bytes:
        """Give what is buffered, having read once from the file if that is nothing; take none."""
        del size  # as io's own does
        self._checked("peek of")
        if self._writes:
            await self._flush_and_rewind()
        have = self._ahead()
        if not have:
            self._end = NONE
            have = await self._fill()
            self._at = 0
        return bytes(self._view[self._at : self._at + have])

    @exclusive
    async def readinto(self, buffer: "Buffer", /) -> int:
        """Fill a buffer; give how many bytes, fewer than it holds at the end of the file."""
        view = room_of(buffer, "readinto")
        self._checked("readinto of")
        return await self._read_into(view, is_once=False)

    @exclusive
    async def readinto1(self, buffer: "Buffer", /) -> int:
        """Put what is buffered into a buffer, or read once from the file into it."""
        view = room_of(buffer, "readinto1")
        self._checked("readinto of")
        return await self._read_into(view, is_once=True)

    async def _read_into(self, view: "memoryview[int]", *, is_once: bool) -> int:
        have = done = min(self._ahead(), len(view))
        view[:have] = self._view[self._at : self._at + have]
        self._at += have
        if have == len(view) and (have or self._ahead()):
            return have
        await self._begin_after(have)
        self._at = 0
        raw = self._attached()
        try:
            while done < len(view):
                missing = len(view) - done
                if missing > self._size:
                    count = await raw._read(view[done:])
                elif is_once and done:
                    break
                else:
                    count = await self._fill()
                    count = min(count, missing)
                    view[done : done + count] = self._view[self._at : self._at + count]
                    self._at += count
                if not count:
                    break
                done += count
                if is_once:
                    break
        except BaseException:
            self._put_back([view[:done]])
            raise
        return done

    async def __anext__(self) -> bytes:
        self._checked("readline of")
        if not self._is_busy and self._end != NONE:
            start = self._at
            if (found := self._buffer.find(b"\n", start, self._end)) >= 0:
                self._at = end = found + 1
                return bytes(self._view[start:end])
        line = await self._readline(-1)
        if not line:
            raise StopAsyncIteration
        return line

    async def readline(self, size: int | None = -1, /) -> bytes:
        """Read up to the end of a line, or `size` bytes; empty at the end of the file."""
        limit = size_of(size)
        self._checked("readline of")
        if not self._is_busy and self._end != NONE:
            start = self._at
            end = self._end if limit < 0 else min(self._end, start + limit)
            if (found := self._buffer.find(b"\n", start, end)) >= 0:
                self._at = end = found + 1
                return bytes(self._view[start:end])
        return await self._readline(limit)

    @exclusive
    async def _readline(self, limit: int) -> bytes:
        have = self._ahead()
        if 0 <= limit <= have:
            return self._take(limit)
        parts: list[bytes | memoryview[int]] = [self._take(have)] if have else []
        await self._begin_after(have)
        limit -= have
        try:
            while True:
                self._end = NONE
                count = await self._fill()
                if not count:
                    break
                self._at = 0
                if 0 <= limit < count:
                    count = limit
                found = self._buffer.find(b"\n", 0, count)
                parts.append(self._take(found + 1 if found >= 0 else count))
                limit -= count
                if found >= 0 or limit == 0:
                    break
        except BaseException:
            self._put_back(parts)
            raise
        return b"".join(parts)


class _Writes(Window):
    """What can be written."""

    _writes = True

    async def write(self, data: "Buffer", /) -> int:
        """
        Write; give the number of bytes, which is that of all.

        One that is cancelled has taken all as well: what has not got into the file by then is
        buffered, and written with the next flush.
        """
        view = bytes_of(data)
        self._checked("write to")
        self._begin_write()
        count = len(view)
        if self._at + count <= self._size and not self._is_busy:
            self._put(view)
            return count
        return await self._write(view)

    @exclusive
    async def _write(self, data: "bytes | memoryview[int]") -> int:
        with IfCancelled(lambda _error: self._put(data)):
            await self._flush()
        raw = self._attached()
        lead = self._lead()
        if lead:
            raw._seek(-lead, os.SEEK_CUR)
            self._raw_at -= lead
        total = len(data)
        rest = memoryview(data)
        with IfCancelled(lambda error: self._keep(rest[max(0, late_result(error) or 0) :])):
            while len(rest) > self._size:
                rest = rest[await raw._write(rest) :]
        self._keep(rest)
        return total

    def _keep(self, rest: "memoryview[int]") -> None:
        """Have what is left of a write be all that is in the window."""
        self._end = self._dirty_end = NONE
        self._at = self._raw_at = self._dirty = 0
        self._put(rest)


class BufferedReader(_Reads):
    """A binary file that is read, as `uring.aio.open(..., "rb")` gives it. As io.BufferedReader."""

    async def write(self, _data: "Buffer", /) -> int:
        """Refuse: it is open for reading."""
        self._unsupported("write")

    @exclusive
    async def flush(self) -> None:
        """Do nothing."""
        self._check_open()

    async def _flush_to_leave(self) -> None:
        self._check_open()


class BufferedWriter(_Writes):
    """A binary file that is written, as `uring.aio.open(..., "wb")` gives it: io.BufferedWriter."""

    async def read(self, _size: int | None = -1, /) -> NoReturn:
        """Refuse: it is open for writing."""
        self._unsupported("read")

    async def read1(self, _size: int = -1, /) -> NoReturn:
        """Refuse: it is open for writing."""
        self._unsupported("read1")

    async def readinto(self, buffer: "Buffer", /) -> NoReturn:
        """Refuse: it is open for writing."""
        room_of(buffer, "readinto")
        self._unsupported("read")

    async def readinto1(self, buffer: "Buffer", /) -> NoReturn:
        """Refuse: it is open for writing."""
        room_of(buffer, "readinto1")
        self._unsupported("read1")

    async def readline(self, size: int | None = -1, /) -> bytes:
        """Refuse: it is open for writing."""
        if size_of(size) != 0:
            self._unsupported("read")
        return b""


class BufferedRandom(_Reads, _Writes):
    """A binary file for both, as `uring.aio.open(..., "r+b")` gives it. As io.BufferedRandom."""

    def __init__(self, raw: FileIO, size: int) -> None:
        if not raw.seekable():
            raw._unsupported("File or stream is not seekable.")
        super().__init__(raw, size)
