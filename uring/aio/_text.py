"""
Text files: what io.TextIOWrapper does, above an asynchronous file with a buffer.

Text is decoded a chunk at a time. `_decoded` is the last one, of which `_used` characters have been
given out. `_snapshot` says where it came from: the state in which the decoder was when it had
nothing buffered, and all bytes that it was given since. From these `tell()` makes its cookie: see
`_cookies`.

The codecs are the standard library's, and so is what becomes of line ends.
"""

import operator
import os
import sys
from typing import Any, Final

from uring.aio import _cookies
from uring.aio._iobase import BUSY, IfCancelled, exclusive, size_of
from uring.aio._raw import FileIO
from uring.aio._textbase import Snapshot, TextBase

_KEEPS_DECODED: Final = sys.version_info >= (3, 13)
"""Whether io.TextIOWrapper keeps text that it has decoded in next(), when it cannot tell()."""
_BOMS_OF_C: Final = frozenset({"utf-16", "utf-32"})


class TextIOWrapper(TextBase):
    """A text file, as `uring.aio.open(...)` gives it. As io.TextIOWrapper."""

    _CHUNK_SIZE = 8192  # as io.TextIOWrapper's, or a file would be elsewhere after a write

    # ---- reading ----

    def _check_reads(self) -> None:
        self._check_open()
        if self._decoder is None:
            self._unsupported("not readable")

    def _forget(self) -> None:
        self._decoded, self._used, self._snapshot = None, 0, None
        self._is_told = False

    def _forget_told(self) -> None:
        """Do so as io.TextIOWrapper does it, when all is read, or something is written."""
        if self._is_told or not _KEEPS_DECODED:
            self._forget()
        else:
            self._snapshot = None

    def _take(self, count: int) -> str:
        """Give out what is decoded: `count` characters at most, or all."""
        decoded, start = self._decoded or "", self._used
        end = len(decoded) if count < 0 else min(len(decoded), start + count)
        self._used = end
        return decoded[start:end]

    async def _read_chunk(self, size: int = 0) -> bool:
        """Decode the next chunk; False at the end of the file."""
        self._check_reads()
        buffered, flags = self._decoder.getstate() if self._seekable else (b"", 0)
        if size > 0:
            size = min(int(max(self._ratio, 1.0) * size), sys.maxsize)
        chunk: bytes = await self._attached().read1(max(self._CHUNK_SIZE, size))
        decoded: str = self._decoder.decode(chunk, not chunk)
        self._decoded, self._used = decoded, 0
        self._ratio = len(chunk) / len(decoded) if decoded else 0.0
        if self._seekable:
            self._snapshot = flags, buffered + chunk
            self._is_told = self._is_told or self._telling
        self._chunks.append((decoded, chunk, self._snapshot))
        return bool(chunk or decoded)

    def _go_back(self, decoded: str | None, used: int, snapshot: Snapshot | None) -> None:
        """Undo what a call has read, for a task that is cancelled: it stays decoded."""
        self._decoded, self._used = decoded, used
        if self._chunks:
            texts, chunks, snapshots = zip(*self._chunks, strict=True)
            self._decoded = "".join([decoded or "", *texts])
            if snapshot is None:
                snapshot, chunks = snapshots[0], chunks[1:]
            snapshot = (snapshot[0], b"".join([snapshot[1], *chunks])) if snapshot else None
        self._snapshot = snapshot

    async def read(self, size: int | None = -1, /) -> str:
        """Read `size` characters, or fewer at the end of the file; all there is without a size."""
        size = size_of(size)
        self._check_reads()
        decoded = self._decoded
        if decoded and 0 <= size <= len(decoded) - self._used and not self._is_busy:
            return self._take(size)
        return await self._read(size)

    @exclusive
    async def _read(self, size: int) -> str:
        await self._write_pending()
        if size < 0:
            data = await self._attached().read()
            rest = self._decoder.decode(data, final=True)
            text: str = self._take(-1) + rest
            self._forget_told()
            return text
        before = self._decoded, self._used, self._snapshot
        self._chunks.clear()
        parts = [self._take(size)]
        missing = size - len(parts[0])
        with IfCancelled(lambda _error: self._go_back(*before)):
            while missing > 0 and await self._read_chunk(missing):
                parts.append(self._take(missing))
                missing -= len(parts[-1])
        return "".join(parts)

    async def readline(self, size: int = -1, /) -> str:
        """Read up to the end of a line, or `size` characters; empty at the end of the file."""
        limit = size if type(size) is int else operator.index(size)
        if abs(limit) > sys.maxsize:
            raise OverflowError("Python int too large to convert to C ssize_t")
        self._check_open()
        if limit < 0 and not self._is_busy and (line := self._line_at_hand()):
            return line
        return await self._readline(limit)

    async def __anext__(self) -> str:
        self._check_open()
        self._telling = False
        start, decoded = self._used, self._decoded
        if self._is_plain and decoded and not self._is_busy:  # nearly always
            end = self._used = decoded.find("\n", start) + 1 or start
            if end > start:
                return decoded[start:end]
        line = (not self._is_busy and self._line_at_hand()) or await self._readline(-1)
        if not line:
            self._snapshot, self._is_told = None, False
            self._telling = self._seekable
            raise StopAsyncIteration
        return line

    def _line_at_hand(self) -> str:
        """Take the next line if all of it is decoded; else nothing."""
        decoded, start = self._decoded, self._used
        if not decoded:
            return ""
        end, _ = self._find_end(decoded, start)
        if end < 0:
            return ""
        self._used = end
        return decoded[start:end]

    def _find_end(self, text: str, start: int) -> tuple[int, int]:
        """
        Find the end of the line that starts at `start`.

        Returns:
            Where the line ends, -1 if it goes on; and up to where it goes on for certain, since
            half of a line end may be the last there is.
        """
        line_end = self._line_end
        if self._newline != "":
            found = text.find(line_end, start)
            if found >= 0:
                return found + len(line_end), 0
            half = len(line_end) > 1 and text.endswith(line_end[0], start)
            return -1, len(text) - half
        found = text.find("\n", start)
        early = text.find("\r", start, found if found >= 0 else len(text))
        if early >= 0:
            return early + (2 if early + 1 == found else 1), 0
        return (found + 1, 0) if found >= 0 else (-1, len(text))

    @exclusive
    async def _readline(self, limit: int) -> str:
        await self._write_pending()
        before = self._decoded, self._used, self._snapshot
        self._chunks.clear()
        with IfCancelled(lambda _error: self._go_back(*before)):
            return await self._join_line(limit)

    async def _join_line(self, limit: int) -> str:
        parts: list[str] = []
        length = 0
        half = ""
        while True:
            while not self._decoded:
                if not await self._read_chunk():
                    self._forget()
                    return "".join([*parts, half])
            text = half + self._decoded
            start = 0 if half else self._used
            end, safe = self._find_end(text, start)
            is_end = end >= 0
            if not is_end:
                end = safe
            if 0 <= limit <= end - start + length:
                end, is_end = start + limit - length, True
            parts.append(text[start:end])
            length += end - start
            if is_end:
                self._used = end - len(half)
                return "".join(parts)
            half = text[end:]
            self._decoded, self._used = None, 0

    # ---- writing ----

    def _encode(self, text: str) -> bytes:
        try:
            encoded: bytes = self._encoder.encode(text)
        except UnicodeError:
            if self._codec_name in _BOMS_OF_C:  # which the original takes for written then
                self._encoder.setstate(0)
            raise
        return encoded

    async def write(self, text: str, /) -> int:
        """
        Write; give the number of characters, which is that of all.

        One that is cancelled has taken all as well: what has not got into the file by then is
        buffered, and written with the next flush.
        """
        if not isinstance(text, str):
            name = "None" if text is None else type(text).__name__
            raise TypeError(f"write() argument must be str, not {name}")
        self._check_open()
        if self._encoder is None:
            self._unsupported("not writable")
        if self._is_busy:
            raise RuntimeError(BUSY)
        is_flushed = self._line_buffering and ("\n" in text or "\r" in text)
        length = len(text)
        if self._newline in {"\r", "\r\n"}:
            text = text.replace("\n", self._line_end)
        data = self._encode(text)
        if self._pending_size + len(data) >= self._CHUNK_SIZE or is_flushed or self._write_through:
            with IfCancelled(lambda _error: self._turn_to_writing()):
                await self._write_out(data, is_flushed=is_flushed)
        else:
            self._pend(data)
        self._turn_to_writing()
        return length

    def _turn_to_writing(self) -> None:
        self._forget_told()
        if self._decoder is not None:
            self._decoder.reset()

    @exclusive
    async def _write_out(self, data: bytes, *, is_flushed: bool) -> None:
        if self._pending_size + len(data) > self._CHUNK_SIZE:
            with IfCancelled(lambda _error: self._pend(data)):
                await self._write_pending()
        self._pend(data)
        if self._pending_size >= self._CHUNK_SIZE or is_flushed or self._write_through:
            await self._write_pending()
        if is_flushed:
            await self._attached().flush()

    def _pend(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_size += len(data)

    def _take_pending(self) -> bytes:
        data = b"".join(self._pending)
        self._pending, self._pending_size = [], 0
        return data

    async def _write_pending(self) -> None:
        if self._pending:
            await self._attached().write(self._take_pending())

    async def _flush(self) -> None:
        self._check_open()
        self._telling = self._seekable
        await self._write_pending()
        await self._attached().flush()

    @exclusive
    async def flush(self) -> None:
        """Write what is buffered to the file."""
        await self._flush()

    # ---- the position ----

    @exclusive
    async def tell(self) -> int:
        """Return the position: an opaque number for `seek()`, the same as io.TextIOWrapper's."""
        return await self._tell()

    async def _tell(self) -> int:
        self._check_open()
        if not self._seekable:
            self._unsupported("underlying stream is not seekable")
        if not self._telling:
            raise OSError("telling position disabled by next() call")
        await self._flush()
        position = self._attached()._tell()
        if self._decoder is None or self._snapshot is None:
            return position
        flags, data = self._snapshot
        start = _cookies.Cookie(position - len(data), flags)
        if self._used == 0:
            return start.pack()
        state = self._decoder.getstate()
        try:
            return _cookies.locate(self._decoder, start, data, self._used, self._ratio).pack()
        finally:
            self._decoder.setstate(state)

    @exclusive
    async def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """
        Go to where a `tell()` was, or to the beginning, or the end.

        Args:
            cookie: what `tell()` gave; 0 for the beginning, or with another `whence`.
            whence: os.SEEK_SET; or os.SEEK_CUR or os.SEEK_END, with 0.
        """
        whence = operator.index(whence)
        self._check_open()
        if not self._seekable:
            self._unsupported("underlying stream is not seekable")
        if whence == os.SEEK_END:
            return await self._seek_end(cookie)
        if whence == os.SEEK_CUR:
            if cookie != 0:
                self._unsupported("can't do nonzero cur-relative seeks")
            cookie = await self._tell()
        elif whence != os.SEEK_SET:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if cookie < 0:
            raise ValueError(f"negative seek position {cookie!r}")
        await self._flush()
        target = _cookies.Cookie.unpack(int(cookie))
        buffer = self._attached()
        await buffer.seek(target.start)
        self._forget()
        if self._decoder is not None:
            target.set_up(self._decoder)
            self._snapshot, self._is_told = (target.flags, b""), True
            if target.skip:
                await self._read_up_to(target)
        if self._encoder is not None:
            self._reset_encoder(is_start=target.is_start)
        return cookie

    async def _read_up_to(self, target: _cookies.Cookie) -> None:
        data = await self._attached().read(target.feed)
        self._snapshot = target.flags, data
        self._decoded = decoded = self._decoder.decode(data, target.needs_eof)
        if len(decoded) < target.skip:
            raise OSError("can't restore logical file position")
        self._used = target.skip

    async def _seek_end(self, offset: int) -> int:
        if offset != 0:
            self._unsupported("can't do nonzero end-relative seeks")
        await self._flush()
        self._forget()
        if self._decoder is not None:
            self._decoder.reset()
        position = await self._attached().seek(0, os.SEEK_END)
        if self._encoder is not None:
            self._reset_encoder(is_start=position == 0)
        return position

    def _reset_encoder(self, *, is_start: bool) -> None:
        if is_start:
            self._encoder.reset()
        else:
            self._encoder.setstate(0)

    @exclusive
    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file shorter or longer: `size` bytes, by default up to the position."""
        await self._flush()
        return await self._attached().truncate(size)

    # ---- the end ----

    @exclusive
    async def detach(self) -> Any:
        """Flush, and give the binary file underneath; this one is of no use then."""
        buffer = self._attached()
        await self._flush()
        self._buffer, buffer._is_below = None, False
        return buffer

    async def _settled(self, *, writes: bool) -> FileIO:
        if self._pending and not self._attached().closed:
            await self.flush()
        return await self._attached()._settled(writes=writes)

    async def _flush_to_leave(self) -> None:
        await self._flush()

    def _leave(self) -> None:
        self._attached()._leave(self._take_pending())

    def _is_unclosed(self) -> bool:
        return self._buffer is not None and self._buffer._is_unclosed()

    def _drop(self, source: object) -> None:
        self._attached()._drop(source, self._take_pending())
