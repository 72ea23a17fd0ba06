"""Reading, writing and syncing what is open."""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _memory
from uring._memory import BYTES, address_of, lend
from uring.flags import FsyncFlags, Opcode
from uring.operations._base import (
    Operation,
    all_lent,
    encode_lent,
    lent,
    operation,
    pack_lent,
)
from uring.sqe import UINT64_MAX, FileLike, Fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = ["Close", "Fsync", "Read", "Readv", "Write", "Writev"]

_CLOSE_TAKES: Final = "Close() takes a descriptor number or Fixed(index)"


def _position(offset: Any) -> int:
    """``sqe->off`` for a file offset: -1 is the file's own position."""
    if not isinstance(offset, int):
        raise TypeError(f"offset must be an integer, not {offset!r}")
    if offset < -1:
        raise ValueError(f"offset must be 0 or more, or -1 for the file's position; not {offset}")
    return UINT64_MAX if offset == -1 else offset


def _encoder(opcode: int, *, writable: bool) -> Callable[[Any], tuple[bytes, object]]:
    """Make the `_encode` of reads or writes, with what `encode_lent` does for all first in line."""
    opcode = int(opcode)

    def _encode(self: Any) -> tuple[bytes, object]:
        fd, offset = self._fd, self._offset
        if type(fd) is int and type(offset) is int:
            try:
                pin = lend(BYTES, self._buffer, writable)
                return pack_lent(
                    opcode,
                    self._flags,
                    self._ioprio,
                    fd,
                    offset,
                    address_of(pin),
                    len(pin),
                    self._rw_flags,
                    self._personality,
                ), pin
            except (struct.error, TypeError, ValueError, BufferError):
                pass  # told apart below, as is what is rare
        off = _position(offset)
        return encode_lent(self, opcode, self._buffer, writable, off, self._rw_flags, self._ioprio)

    return _encode


@operation
class Read(Operation):
    """
    Read from a file into a buffer. Equivalent: pread(2), or read(2) with offset -1.

    A read may be short, on files too; nothing is guaranteed about the order of operations that
    are not linked.

    Args:
        fd: the file.
        buffer: writable memory; its length is how much to read, at most 2**32 - 1 bytes (the
            kernel itself stops at 2**31 - 4096).
        offset: where to read, in bytes; -1 uses and moves the file's position. Ignored by what
            has no position, such as pipes and sockets.
        rw_flags: RWF_* flags, as os.preadv has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.

    Lifetime: the buffer is pinned until the completion; resizing it raises BufferError.
    Completion: res is the number of bytes read, 0 at the end of the file.

    Kernel: 5.6. liburing: io_uring_prep_read(3).
    """

    opcode = Opcode.READ

    fd: FileLike
    buffer: "Buffer" = lent()
    offset: int = 0
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)

    _encode = _encoder(Opcode.READ, writable=True)


@operation
class Write(Operation):
    """
    Write a buffer to a file. Equivalent: pwrite(2), or write(2) with offset -1.

    A write may be short. Durable only after an `Fsync` that starts when this has ended: link them.

    Args:
        fd: the file.
        buffer: readable memory, all of which is written; at most 2**32 - 1 bytes (the kernel
            itself stops at 2**31 - 4096).
        offset: where to write, in bytes; -1 uses and moves the file's position.
        rw_flags: RWF_* flags, as os.pwritev has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.

    Lifetime: the buffer is pinned until the completion; changing its bytes before then changes
    what is written.
    Completion: res is the number of bytes written.

    Kernel: 5.6. liburing: io_uring_prep_write(3).
    """

    opcode = Opcode.WRITE

    fd: FileLike
    buffer: "Buffer" = lent()
    offset: int = 0
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)

    _encode = _encoder(Opcode.WRITE, writable=False)


@operation
class Readv(Operation):
    """
    Read from a file into several buffers, in order. Equivalent: preadv2(2).

    Args:
        fd: the file.
        buffers: a sequence of up to 1024 writable buffers.
        offset: where to read, in bytes; -1 uses and moves the file's position.
        rw_flags: RWF_* flags, as os.preadv has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.

    Lifetime: every buffer is pinned until the completion.
    Completion: res is the number of bytes read in all, 0 at the end of the file.

    Kernel: 5.1. liburing: io_uring_prep_readv2(3).
    """

    opcode = Opcode.READV

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    offset: int = 0
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_vector(self, write=True)


@operation
class Writev(Operation):
    """
    Write several buffers to a file, in order. Equivalent: pwritev2(2).

    Args:
        fd: the file.
        buffers: a sequence of up to 1024 buffers.
        offset: where to write, in bytes; -1 uses and moves the file's position.
        rw_flags: RWF_* flags, as os.pwritev has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.

    Lifetime: every buffer is pinned until the completion.
    Completion: res is the number of bytes written in all.

    Kernel: 5.1. liburing: io_uring_prep_writev2(3).
    """

    opcode = Opcode.WRITEV

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    offset: int = 0
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_vector(self, write=False)


def _encode_vector(self: Any, *, write: bool) -> tuple[bytes, object]:
    pins, address, count = _memory.iovecs(self._buffers, write=write)
    off = _position(self._offset)
    return self._pack(self._fd, off, address, count, self._rw_flags, self._ioprio), pins


@operation
class Fsync(Operation):
    """
    Flush a file to its device. Equivalent: fsync(2), or fdatasync(2).

    Covers writes that had *completed* when it started, and no others: link it behind them.

    Args:
        fd: the file.
        datasync: leave out metadata that is not needed to read the data back.

    Completion: res is 0.

    Kernel: 5.1. liburing: io_uring_prep_fsync(3).
    """

    opcode = Opcode.FSYNC

    fd: FileLike
    datasync: bool = False

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, op_flags=FsyncFlags.DATASYNC if self.datasync else 0), None


@operation
class Close(Operation):
    """
    Close a descriptor, or empty a slot of the table of registered files. Equivalent: close(2).

    Operations that are in flight on the file go on: the kernel holds it for them.

    Args:
        fd: a descriptor number or `Fixed(index)`. A Python file or socket is refused: it would
            close the number once more, when somebody else may have it; pass its `detach()`ed
            descriptor, or call its own `close()`.

    Completion: res is 0. The descriptor is gone even when res is an error other than EBADF.

    Kernel: 5.6; Fixed: 5.15. liburing: io_uring_prep_close(3), io_uring_prep_close_direct(3).
    """

    opcode = Opcode.CLOSE

    fd: int | Fixed

    def _encode(self) -> tuple[bytes, object]:
        if isinstance(self.fd, Fixed):
            # The kernel wants the slot plus one, and no FIXED_FILE flag (EBADF with it).
            return self._pack(splice_fd_in=self.fd.index + 1), None
        if isinstance(self.fd, bool) or not isinstance(self.fd, int):
            raise TypeError(f"{_CLOSE_TAKES}, not {type(self.fd).__name__}")
        return self._pack(self.fd), None
