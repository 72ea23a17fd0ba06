"""
Files with a buffer, which behave as the buffered ones of the io module do, call by call.

The buffer is a window on the file: `_at` is where the reader or writer is in it, up to `_end` it
holds what was read, and between `_dirty` and `_dirty_end` what is to be written. `_raw_at` is where
the position of the raw file is in the window. A file that is open for both has but one window, and
goes back with the raw position before it writes, or reads anew.

What a task has not got when it is cancelled is put back into the window, or stays in it: a read
that is cancelled takes nothing, and a write that is cancelled has taken all.
"""

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from uring.aio._iobase import IOBase, bytes_of, exclusive, room_of, size_of
from uring.aio._raw import FileIO, late_result

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NONE: Final = -1
"""In place of `_end` or `_dirty_end`: there is nothing of that kind in the window."""
_WOULD_BLOCK: Final = "write could not complete without blocking"


class _Buffered(IOBase):
    """What readers and writers have in common."""

    _raw: FileIO | None = None
    _reads = False
    _writes = False

    def __init__(self, raw: FileIO, size: int) -> None:
        self._raw = raw
        self._size = size
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._at = self._raw_at = self._dirty = 0
        self._end = self._dirty_end = _NONE

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
        raw = self._attached()
        if raw.closed:
            raise ValueError(f"{doing} closed file")
        return raw

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._attached().closed

    @property
    def name(self) -> Any:
        """What it was opened by: a path, or a descriptor."""
        return self._attached().name

    @property
    def mode(self) -> str:
        """The mode of the file underneath."""
        return self._attached().mode

    def fileno(self) -> int:
        """Return the descriptor; what is buffered is not written for it."""
        return self._attached().fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._attached().isatty()

    def readable(self) -> bool:
        """Whether it is open for reading."""
        return self._reads and self._attached().readable()

    def writable(self) -> bool:
        """Whether it is open for writing."""
        return self._writes and self._attached().writable()

    def seekable(self) -> bool:
        """Whether it has positions."""
        return self._attached().seekable()

    # ---- the window ----

    def _ahead(self) -> int:
        """How many bytes have been read, and not been taken."""
        return max(0, self._end - self._at) if self._end != _NONE else 0

    def _lead(self) -> int:
        """By how much the position of the raw file is beyond that of this one."""
        if self._raw_at < 0 or (self._end == _NONE and self._dirty_end == _NONE):
            return 0
        return self._raw_at - self._at

    def _take(self, count: int) -> bytes:
        start = self._at
        self._at = start + count
        return bytes(self._view[start : start + count])

    def _move_to(self, at: int) -> None:
        self._at = at
        if self._end != _NONE:
            self._end = max(self._end, at)

    def _put(self, data: "bytes | memoryview[int]") -> None:
        """Overwrite what is at the position, and move on; the window grows if it has to."""
        start, end = self._at, self._at + len(data)
        if end > len(self._buffer):
            self._resize(end)
        self._view[start:end] = data
        if self._dirty_end == _NONE or self._dirty > start:
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
        """Read once, behind what is there; 0 at the end, -1 when there is nothing yet."""
        start = max(0, self._end)
        count = await self._attached()._read(self._view[start : self._size])
        if count is None:
            return -1
        if count > 0:
            self._end = self._raw_at = start + count
        return count

    async def _flush(self) -> None:
        """Write what is to be written."""
        if self._dirty_end != _NONE and self._dirty < self._dirty_end:
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
                if count is None:
                    raise BlockingIOError(errno.EAGAIN, _WOULD_BLOCK, 0)
                self._has_written(count)
        self._clean()

    def _has_written(self, count: int) -> None:
        if count > 0:
            self._dirty += count
            self._raw_at = self._dirty

    def _clean(self) -> None:
        self._dirty, self._dirty_end = 0, _NONE

    def _begin_write(self) -> None:
        if self._end == _NONE and self._dirty_end == _NONE:
            self._at = self._raw_at = 0

    async def _flush_and_rewind(self) -> None:
        """Write what is to be written, and let go of what was read ahead."""
        await self._flush()
        if self._reads:
            try:
                self._attached()._seek(-self._lead(), os.SEEK_CUR)
            finally:
                self._end = _NONE

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
        if whence not in range(os.SEEK_HOLE + 1):
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
            self._end = _NONE
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
        self._raw = None
        return raw

    async def _flush_to_leave(self) -> None:
        self._checked("flush of")
        await self._flush_and_rewind()

    async def _settled(self, *, writes: bool) -> FileIO:
        raw = self._attached()
        if not raw.closed and (self._dirty_end != _NONE or (writes and self._ahead())):
            await self.flush()
        return raw

    @exclusive
    async def close(self) -> None:
        """
        Flush and close; a second time it does nothing.

        The file is closed whatever happens. When the task is cancelled meanwhile, what is left to
        write is written, and the file closed, in this thread: except what has no positions, such
        as a pipe, is only given what it takes without waiting.
        """
        raw = self._attached()
        if raw.closed:
            return
        try:
            await self._flush_to_leave()
        except Exception:
            await raw.close()
            raise
        except BaseException:
            self._leave()
            raise
        await raw.close()

    def _leave(self, unwritten: bytes = b"") -> None:
        """Close now, and in this thread."""
        try:
            self._write_now(unwritten)
        finally:
            self._attached()._release()

    def _is_unclosed(self) -> bool:
        return self._raw is not None and not self._raw.closed

    def _drop(self, source: object, unwritten: bytes = b"") -> None:
        try:
            self._write_now(unwritten)
        finally:
            self._attached()._drop(source)

    def _write_now(self, unwritten: bytes) -> None:
        """Write what is buffered, and more, now and in this thread."""
        raw = self._attached()
        if unwritten:
            self._begin_write()
            self._put(unwritten)
        if self._dirty_end != _NONE and self._dirty < self._dirty_end:
            if raw.seekable():
                raw._seek(self._dirty - self._at - self._lead(), os.SEEK_CUR)
            raw._write_now(self._view[self._dirty : self._dirty_end])
            self._clean()


class _Reads(_Buffered):
    """What can be read."""

    _reads = True

    async def _begin(self) -> None:
        """Make the window empty, to read anew."""
        if self._writes:
            await self._flush_and_rewind()
        self._end = _NONE

    async def _begin_after(self, have: int) -> None:
        """Do so when `have` bytes were taken already."""
        try:
            await self._begin()
        except BaseException:
            self._at -= have
            raise

    async def read(self, size: int | None = -1, /) -> bytes | None:
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
    async def _read(self, size: int) -> bytes | None:
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

    async def _read_all(self, parts: "list[bytes | memoryview[int]]") -> bytes | None:
        rest = await self._attached()._readall()
        if not parts:
            return rest
        return b"".join([*parts, rest or b""])

    async def _read_more(
        self, parts: "list[bytes | memoryview[int]]", missing: int
    ) -> bytes | None:
        """Read whole blocks at once, and the last one into the window."""
        raw, size = self._attached(), self._size
        while whole := missing // size * size:
            part = await raw._read_some(whole)
            if part is None and not parts:
                return None
            if not part:
                return b"".join(parts)
            parts.append(part)
            missing -= len(part)
        self._at = self._raw_at = self._end = 0
        while missing > 0 and self._end < size:
            count = await self._fill()
            if count < 0 and not parts:
                return None
            if count <= 0:
                break
            count = min(count, missing)
            parts.append(self._take(count))
            missing -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)  # type: ignore[return-value]  # bytes, all of them

    async def read1(self, size: int = -1, /) -> bytes:
        """Read what is buffered, or once from the file, up to `size` bytes."""
        size = self._size if size < 0 else size
        self._checked("read of")
        if size == 0:
            return b""
        have = self._ahead()
        if have > 0 and not self._is_busy:
            return self._take(min(have, size))
        return await self._read1(size)

    @exclusive
    async def _read1(self, size: int) -> bytes:
        await self._begin()
        return await self._attached()._read_some(size) or b""

    @exclusive
    async def peek(self, size: int = 0, /) -> bytes:
        """Give what is buffered, having read once from the file if that is nothing; take none."""
        del size  # as io's own does
        self._checked("peek of")
        if self._writes:
            await self._flush_and_rewind()
        have = self._ahead()
        if not have:
            self._end = _NONE
            have = max(0, await self._fill())
            self._at = 0
        return bytes(self._view[self._at : self._at + have])

    @exclusive
    async def readinto(self, buffer: "Buffer", /) -> int | None:
        """Fill a buffer; give how many bytes, fewer than it holds at the end of the file."""
        view = room_of(buffer, "readinto")
        self._checked("readinto of")
        return await self._read_into(view, is_once=False)

    @exclusive
    async def readinto1(self, buffer: "Buffer", /) -> int | None:
        """Put what is buffered into a buffer, or read once from the file into it."""
        view = room_of(buffer, "readinto1")
        self._checked("readinto of")
        return await self._read_into(view, is_once=True)

    async def _read_into(self, view: "memoryview[int]", *, is_once: bool) -> int | None:
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
                    if count > 0:
                        count = min(count, missing)
                        view[done : done + count] = self._view[:count]
                        self._at += count
                if not count or count < 0:
                    return None if count != 0 and not done else done
                done += count
                if is_once:
                    break
        except BaseException:
            self._put_back([view[:done]])
            raise
        return done

    async def readline(self, size: int | None = -1, /) -> bytes:
        """Read up to the end of a line, or `size` bytes; empty at the end of the file."""
        limit = size_of(size)
        self._checked("readline of")
        if not self._is_busy and self._end != _NONE:
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
                self._end = _NONE
                count = await self._fill()
                if count <= 0:
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


class _Writes(_Buffered):
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
        try:
            await self._flush()
        except BlockingIOError as error:
            return self._put_some(data, error)
        except Exception:
            raise
        except BaseException:
            self._put(data)
            raise
        raw = self._attached()
        lead = self._lead()
        if lead:
            raw._seek(-lead, os.SEEK_CUR)
            self._raw_at -= lead
        total = len(data)
        rest = memoryview(data)
        while len(rest) > self._size:
            try:
                count = await raw._write(rest)
            except Exception:
                raise
            except BaseException as error:
                self._keep(rest[max(0, late_result(error) or 0) :])
                raise
            if count is None:
                self._keep(rest[: self._size])
                written = total - len(rest) + self._size
                raise BlockingIOError(errno.EAGAIN, _WOULD_BLOCK, written)
            rest = rest[count:]
        self._keep(rest)
        return total

    def _keep(self, rest: "memoryview[int]") -> None:
        """Have what is left of a write be all that is in the window."""
        self._end = self._dirty_end = _NONE
        self._at = self._raw_at = self._dirty = 0
        self._put(rest)

    def _put_some(self, data: "bytes | memoryview[int]", error: BlockingIOError) -> int:
        """Take what there is room for, when a non-blocking file takes nothing."""
        if self._reads:
            self._end = _NONE
        dirty = bytes(self._view[self._dirty : self._dirty_end])
        self._raw_at -= self._dirty
        self._at, self._dirty, self._dirty_end = 0, 0, _NONE
        self._put(dirty)
        room = max(0, self._size - self._at)
        self._put(data[:room])
        if len(data) <= room:
            return len(data)
        raise BlockingIOError(errno.EAGAIN, _WOULD_BLOCK, room) from error


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
    """A binary file that is written, as `uring.aio.open(..., "wb")` gives it. As io.BufferedWriter."""

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
        if size_of(size) == 0:
            return b""
        self._unsupported("read")


class BufferedRandom(_Reads, _Writes):
    """A binary file for both, as `uring.aio.open(..., "r+b")` gives it. As io.BufferedRandom."""


def _offset(target: int) -> int:
    target = target.__index__() if hasattr(target, "__index__") else _not_an_integer(target)
    if not -sys.maxsize - 1 <= target <= sys.maxsize:
        raise ValueError("cannot fit 'int' into an offset-sized integer")
    return target


def _not_an_integer(target: object) -> NoReturn:
    raise TypeError(f"'{type(target).__name__}' object cannot be interpreted as an integer")
