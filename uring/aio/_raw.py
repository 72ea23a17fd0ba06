"""
A file without a buffer: its descriptor, and its position.

The position of a file on a disk is kept here, and every read and write says where: so a cancelled
one moves nothing, whatever the kernel has done. What has no positions, such as a pipe, and what
has its own idea of them, such as a terminal, is read and written at the kernel's.
"""

import contextlib
import errno
import fcntl
import mmap
import operator
import os
import select
import stat
import sys
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any, Final

from uring.aio._backend import do, late_result
from uring.aio._iobase import (
    CLOSED,
    IOBase,
    bytes_of,
    exclusive,
    room_of,
    size_of,
    warn_of_unclosed,
)
from uring.errors import UringError
from uring.file_flags import FallocateFlags
from uring.operations import Close, Fallocate, Fsync, Ftruncate, Read, Write

if TYPE_CHECKING:
    from typing_extensions import Buffer

_IO_MAX: Final = 0x7FFFF000  # MAX_RW_COUNT of the kernel's include/linux/fs.h, for pages of 4 KiB
_CHUNK: Final = 8192
_CHUNK_MAX: Final = 1 << 20
_MAPPED: Final = 32 << 20  # from here on malloc(3) maps memory anew each time, too
_SURELY_TAKEN: Final = select.PIPE_BUF  # by what poll(2) says is writable


def zeros(size: int) -> bytearray | mmap.mmap:
    """Make memory to read into; that of much costs nothing until it is used."""
    if size > _MAPPED:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return bytearray(size)


class FileIO(IOBase):
    """
    A file without a buffer, as `uring.aio.open(..., buffering=0)` gives it. As io.FileIO.

    Each read and write is one operation of the kernel's. One that is cancelled has not moved the
    position; a write may have been done, wholly or in part, all the same.
    """

    _fd = -1

    def __init__(self, fd: int, name: object, mode: str, *, closefd: bool, is_ours: bool) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        self.name = name
        self._closefd = closefd
        self._is_ours = is_ours
        """Whether nobody else can have moved the descriptor's own position, or cares for it."""
        self._is_created = "x" in mode
        self._readable = "r" in mode or "+" in mode
        self._writable = mode != "r"
        self._is_named_for_appending = self._appends = "a" in mode
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._is_positional = self._is_regular or stat.S_ISBLK(status.st_mode)
        self._position = 0
        self._can_seek: bool | None = self._is_positional or None
        self._identity = status.st_dev, status.st_ino
        self._blksize = status.st_blksize if status.st_blksize > 1 else _CHUNK
        self._unread = b""
        """What a pipe has given to a read that was cancelled."""
        if not is_ours:
            self._appends = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
            if self._is_positional:
                self._position = os.lseek(fd, 0, os.SEEK_CUR)
        if self._is_named_for_appending:
            with contextlib.suppress(OSError):
                self._position = os.lseek(fd, 0, os.SEEK_END)
        self._fd = fd

    def __repr__(self) -> str:
        if self._fd < 0:
            return "<uring.aio.FileIO [closed]>"
        return f"<uring.aio.FileIO name={self.name!r} mode={self.mode!r} closefd={self._closefd!r}>"

    # ---- what it is ----

    @property
    def mode(self) -> str:
        """The mode, as io.FileIO writes it."""
        if self._is_created:
            return "xb+" if self._readable else "xb"
        if self._is_named_for_appending:
            return "ab+" if self._readable else "ab"
        if self._readable:
            return "rb+" if self._writable else "rb"
        return "wb"

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._fd < 0

    @property
    def closefd(self) -> bool:
        """Whether the descriptor is closed with it."""
        return self._closefd

    def fileno(self) -> int:
        """
        Return the descriptor.

        Its own position is moved to where the file is, for whoever reads on there.
        """
        self._check()
        if self._is_positional:
            os.lseek(self._fd, self._position, os.SEEK_SET)
        return self._fd

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        self._check()
        return os.isatty(self._fd)

    def readable(self) -> bool:
        """Whether it is open for reading."""
        self._check()
        return self._readable

    def writable(self) -> bool:
        """Whether it is open for writing."""
        self._check()
        return self._writable

    def seekable(self) -> bool:
        """Whether it has positions."""
        self._check()
        if self._can_seek is None:
            try:
                os.lseek(self._fd, 0, os.SEEK_CUR)
            except OSError:
                self._can_seek = False
            else:
                self._can_seek = True
        return self._can_seek

    def _check(self) -> None:
        if self._fd < 0:
            raise ValueError(CLOSED)

    def _check_readable(self) -> None:
        self._check()
        if not self._readable:
            raise UnsupportedOperation("File not open for reading")

    def _check_writable(self) -> None:
        self._check()
        if not self._writable:
            raise UnsupportedOperation("File not open for writing")

    # ---- the position ----

    def _seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check()
        if not self._is_positional:
            return os.lseek(self._fd, offset, whence)
        if whence == os.SEEK_CUR:
            offset, whence = self._position + offset, os.SEEK_SET
            if offset > sys.maxsize:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = os.lseek(self._fd, offset, whence)
        return self._position

    def _tell(self) -> int:
        self._check()
        return self._position if self._is_positional else os.lseek(self._fd, 0, os.SEEK_CUR)

    @exclusive
    async def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position: from the beginning, from where it is, from the end."""
        return self._seek(offset, operator.index(whence))

    async def tell(self) -> int:
        """Return the position."""
        return self._tell()

    @exclusive
    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file shorter or longer: `size` bytes, by default up to the position."""
        self._check_writable()
        size = self._tell() if size is None else size
        await self._truncate(size)
        return size

    async def _truncate(self, size: int) -> None:
        if type(size) is int and 0 <= size < 1 << 63:
            try:
                await do(Ftruncate(self._fd, size))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return
        os.ftruncate(self._fd, size)  # before Linux 6.9; or it says what is wrong

    # ---- reading ----

    async def _read(self, view: "memoryview[int]") -> int:
        """Read once, and move on."""
        if self._unread:
            size = min(len(view), len(self._unread))
            view[:size], self._unread = self._unread[:size], self._unread[size:]
            return size
        if len(view) > _IO_MAX:
            view = view[:_IO_MAX]
        elif not view:
            return 0
        offset = self._position if self._is_positional else -1
        try:
            count: int = await do(Read(self._fd, view, offset))
        except BaseException as error:
            if offset == -1 and (late := late_result(error) or 0) > 0:
                self._unread = bytes(view[:late])
            raise
        self._position += count
        return count

    @exclusive
    async def readinto(self, buffer: "Buffer", /) -> int:
        """Read once, straight into a buffer; give how many bytes, 0 at the end of the file."""
        view = room_of(buffer, "readinto")
        self._check_readable()
        return await self._read(view)

    @exclusive
    async def read(self, size: int | None = -1, /) -> bytes:
        """Read once, up to `size` bytes; all there is without a size. Empty at the end."""
        size = size_of(size)
        self._check_readable()
        if size < 0:
            return await self._readall()
        return await self._read_some(size)

    async def _read_some(self, size: int) -> bytes:
        room = self._room(size, self._position)
        return bytes(room[: await self._read(room)])

    def _room(self, size: int, offset: int) -> "memoryview[int]":
        """Make room to read so much: but less, if the file ends before."""
        size = min(size, _IO_MAX)
        if size > _CHUNK_MAX and self._is_regular:
            chunks = max(0, os.fstat(self._fd).st_size - offset) // _CHUNK_MAX + 1
            size = min(size, chunks * _CHUNK_MAX)  # whole ones, for O_DIRECT
        return memoryview(zeros(size))

    @exclusive
    async def readall(self) -> bytes:
        """Read up to the end of the file."""
        self._check()
        return await self._readall()

    async def _readall(self) -> bytes:
        """Read all there is; a file that stat(2) knows the size of takes one read."""
        expected = 0
        if self._is_regular:
            expected = max(0, os.fstat(self._fd).st_size - self._position)
        size = expected + 1 if expected else _CHUNK
        parts: list[bytes] = []
        total = 0
        try:
            while True:
                part = await self._read_some(size)
                if not part:
                    break
                parts.append(part)
                total += len(part)
                if total == expected and len(part) < size:
                    break  # the size is what was said; those of /proc say 0
                size = min(max(2 * len(part), _CHUNK), _CHUNK_MAX)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._put_back(parts, total)
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _put_back(self, parts: list[bytes], total: int) -> None:
        if self._is_positional:
            self._position -= total
        else:
            self._unread = b"".join(parts) + self._unread

    @exclusive
    async def _readline(self, limit: int) -> bytes:
        """Read a line; byte by byte where what is too much cannot be given back."""
        if limit:
            self._check_readable()
        size = _CHUNK if self._is_positional else 1
        parts: list[bytes] = []
        total = 0
        try:
            while limit < 0 or total < limit:
                part = await self._read_some(size if limit < 0 else min(size, limit - total))
                if not part:
                    break
                end = part.find(b"\n") + 1 or len(part)
                self._position -= len(part) - end
                parts.append(part[:end])
                total += end
                if parts[-1].endswith(b"\n"):
                    break
        except BaseException as error:
            if not isinstance(error, Exception):
                self._put_back(parts, total)
            raise
        return b"".join(parts)

    async def readline(self, size: int | None = -1, /) -> bytes:
        """Read up to the end of a line, or `size` bytes; empty at the end of the file."""
        return await self._readline(size_of(size))

    # ---- writing ----

    async def _write(self, data: "bytes | memoryview[int]") -> int:
        """Write once, and move on."""
        if len(data) > _IO_MAX:
            data = memoryview(data)[:_IO_MAX]
        elif not data:
            return 0
        offset = self._place_to_write()
        try:
            count: int = await do(Write(self._fd, data, offset))
        except BaseException as error:
            self._moved_on(late_result(error) or 0)
            raise
        self._moved_on(count)
        return count

    def _place_to_write(self) -> int:
        if not self._is_positional:
            return -1
        if self._appends:  # where that is, the position of the descriptor tells afterwards
            os.lseek(self._fd, self._position, os.SEEK_SET)
            return -1
        return self._position

    def _moved_on(self, count: int) -> None:
        """Go behind what was written; that may be something even when nothing is said."""
        if not (self._appends and self._is_positional):
            self._position += max(0, count)
            return
        place = os.lseek(self._fd, 0, os.SEEK_CUR)
        if place == self._position and count > 0:  # Linux 6.18, when not all could be written
            place = os.lseek(self._fd, 0, os.SEEK_END)
        self._position = place

    @exclusive
    async def write(self, data: "Buffer", /) -> int:
        """Write once; give how many bytes were taken, which may be less than all."""
        view = bytes_of(data)
        self._check_writable()
        return await self._write(view)

    @exclusive
    async def flush(self) -> None:
        """Do nothing: there is no buffer."""
        self._check_open()

    # ---- beside the position ----

    async def _settled(self, *, writes: bool) -> "FileIO":
        del writes
        return self

    def _check_offset(self, offset: int) -> None:
        """Refuse what io_uring takes no notice of, or for the position of the descriptor."""
        if not 0 <= offset < 1 << 63:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not self.seekable():
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    async def _read_at(self, buffer_or_size: "Buffer | int", offset: int) -> Any:
        self._check_readable()
        self._check_offset(offset)
        if not isinstance(buffer_or_size, int):
            return await do(Read(self._fd, _one_go(buffer_or_size), offset))
        if buffer_or_size < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        room = self._room(buffer_or_size, offset)
        return bytes(room[: await do(Read(self._fd, room, offset))])

    async def _write_at(self, buffer: "Buffer", offset: int) -> int:
        self._check_writable()
        self._check_offset(offset)
        count: int = await do(Write(self._fd, _one_go(buffer), offset))
        return count

    async def _sync(self, *, datasync: bool) -> None:
        self._check()
        await do(Fsync(self._fd, datasync))

    async def _allocate(self, mode: int, offset: int, length: int) -> None:
        self._check()
        flags = FallocateFlags(mode)
        await do(Fallocate(self._fd, offset=offset, length=length, mode=flags))

    # ---- the end ----

    @exclusive
    async def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._leave_position(fd)
        if self._closefd:
            try:
                await do(Close(fd))
            except OSError as error:
                if isinstance(error, UringError):  # it was never begun
                    self._close_now(fd)
                raise  # else Linux has freed the descriptor, whatever is wrong
            except BaseException as error:
                if late_result(error) is None:
                    self._close_now(fd)
                raise

    def _leave_position(self, fd: int) -> None:
        """Leave a descriptor that others may have where the built-in files would."""
        if self._is_positional and not self._is_ours:
            with contextlib.suppress(OSError):
                os.lseek(fd, self._position, os.SEEK_SET)

    def _close_now(self, fd: int) -> None:
        """Close a descriptor, if it still is that of this file."""
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) == self._identity:
                os.close(fd)

    def _is_unclosed(self) -> bool:
        return self._fd >= 0

    def _drop(self, source: object) -> None:
        try:
            if self._closefd:
                warn_of_unclosed(source)
        finally:
            self._release()

    def _leave(self) -> None:
        self._release()

    def _release(self) -> None:
        """Close now, and in this thread."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._leave_position(fd)
            if self._closefd:
                self._close_now(fd)

    def _write_now(self, data: "bytes | memoryview[int]") -> None:
        """
        Write now, and in this thread, as much as goes.

        What has no position, such as a pipe, is given what it takes without waiting.
        """
        rest = memoryview(data)
        while rest and self._fd >= 0:
            if self._is_positional and not self._appends:
                count = os.pwrite(self._fd, rest, self._position)
            elif self._is_positional or _takes(self._fd):
                count = os.write(self._fd, rest[:_SURELY_TAKEN])
            else:
                return
            self._moved_on(count)
            rest = rest[count:]


def _one_go(buffer: "Buffer") -> "Buffer":
    """As much of a buffer as one operation moves."""
    view = memoryview(buffer)
    return buffer if view.nbytes <= _IO_MAX else view.cast("B")[:_IO_MAX]


def _takes(fd: int) -> bool:
    """Whether a write of _SURELY_TAKEN bytes would not wait."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
