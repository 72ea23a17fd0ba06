"""Reading, writing and syncing what is open."""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _memory
from uring._memory import BYTES, address_of, lend
from uring.file_flags import SyncFileRangeFlags
from uring.flags import FsyncFlags, Opcode
from uring.operations._base import (
    SELECT,
    Operation,
    all_lent,
    encode_lent,
    lent,
    operation,
    pack_lent,
    position,
    stream_field,
)
from uring.operations._groups import Filling
from uring.operations._integrity import ProtectionInfo, with_protection
from uring.sqe import NO_FLAGS, FileLike, Fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = [
    "Close",
    "Fsync",
    "Read",
    "ReadMultishot",
    "ReadSelect",
    "Readv",
    "SyncFileRange",
    "Write",
    "Writev",
]

_CLOSE_TAKES: Final = "Close() takes a descriptor number or Fixed(index)"


def _encoder(opcode: int, *, writable: bool) -> Callable[[Any], tuple[bytes, object]]:
    """Make the `_encode` of reads or writes, with what `encode_lent` does for all first in line."""
    opcode = int(opcode)

    def _encode(self: Any) -> tuple[bytes, object]:
        fd, offset, flags = self._fd, self._offset, self._flags
        if type(fd) is int and type(offset) is int:
            try:
                pin = lend(BYTES, self._buffer, writable)
                record = pack_lent(
                    opcode,
                    flags,
                    self._ioprio,
                    fd,
                    offset,
                    address_of(pin),
                    len(pin),
                    self._rw_flags,
                    self._personality,
                )
                if flags is NO_FLAGS or not record[1] & SELECT:
                    return record, pin
            except (struct.error, TypeError, ValueError, BufferError):
                pass  # told apart below, as is what is rare
        off = position(offset)
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
        offset: where to write, in bytes; -1 uses and moves the file's position (which Linux 6.18
            does not move when less than all is written: then say where to go on).
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
        pi: `ProtectionInfo`, on devices that have it. `Read` has no such field, to stay fast.

    Lifetime: every buffer is pinned until the completion, that of `pi` as well.
    Completion: res is the number of bytes read in all, 0 at the end of the file.

    Kernel: 5.1; pi 6.14. liburing: io_uring_prep_readv2(3).
    """

    opcode = Opcode.READV

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    offset: int = 0
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)
    pi: ProtectionInfo | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_vector(self, write=True)


@operation
class Writev(Operation):
    """
    Write several buffers to a file, in order. Equivalent: pwritev2(2).

    Args:
        fd: the file.
        buffers: a sequence of up to 1024 buffers.
        offset: where to write, in bytes; -1 uses and moves the file's position (which Linux 6.18
            does not move when less than all is written: then say where to go on).
        rw_flags: RWF_* flags, as os.pwritev has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.
        write_stream: where a block device with several write streams (FDP) puts the data, from 1;
            0 is its default. Others take no notice. `Write` has no such field, to stay fast.
        pi: `ProtectionInfo`, on devices that have it. `Write` has no such field, to stay fast.

    Lifetime: every buffer is pinned until the completion, that of `pi` as well.
    Completion: res is the number of bytes written in all.

    Kernel: 5.1; pi 6.14; write_stream 6.16. liburing: io_uring_prep_writev2(3).
    """

    opcode = Opcode.WRITEV

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    offset: int = 0
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)
    write_stream: int = attrs.field(default=0, kw_only=True)
    pi: ProtectionInfo | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_vector(self, write=False, write_stream=self.write_stream)


def _encode_vector(self: Any, *, write: bool, write_stream: int = 0) -> tuple[bytes, object]:
    pins, address, count = _memory.iovecs(self._buffers, write=write)
    off, splice_fd_in = position(self._offset), stream_field(write_stream)
    options = self._rw_flags, self._ioprio, 0, splice_fd_in
    encoded = self._pack(self._fd, off, address, count, *options), pins
    return encoded if self._pi is None else with_protection(encoded, self._pi, write=write)


class _Selects(Filling):
    """A read into a buffer that the kernel takes from a group when there is something to read."""

    __slots__ = ()

    _ends_with_zero = True

    def _encode(self: Any) -> tuple[bytes, object]:
        encoded: tuple[bytes, object] = self._select(
            off=position(self._offset),
            len=self._length,
            op_flags=self._rw_flags,
            ioprio=self._ioprio,
        )
        return encoded


@operation
class ReadSelect(_Selects):
    """
    Read once from a file into a provided buffer. Equivalent: pread(2).

    The buffer is taken when there is something to read, so that reads that wait hold no memory.

    Args:
        fd: the file.
        group: where the buffer comes from: a `BufferRing`, not an incremental one, or the number of
            a group.
        length: how much to read at most, in bytes; 0 for as much as the buffer holds. It never
            reads more than that.
        offset: where to read, in bytes; -1 uses and moves the file's position.
        rw_flags: RWF_* flags, as os.preadv has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.

    Lifetime: the group is held until the completion.
    Completion: res is the number of bytes read, 0 at the end of the file, which takes a buffer as
        well; `CQE.buffer_id` says which. `result()` is the `Lease` of the buffer when the group is
        a `BufferRing`, else the number of bytes. ENOBUFS when the group has no buffer, or is not
        there.

    Kernel: 5.6; groups 5.7. liburing: io_uring_prep_read(3), IOSQE_BUFFER_SELECT.
    """

    opcode = Opcode.READ
    _is_gradual = False  # a read from a disk uses up what it asked for, however much it gets

    length: int = attrs.field(default=0, kw_only=True)
    offset: int = attrs.field(default=0, kw_only=True)
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)


@operation
class ReadMultishot(_Selects):
    """
    Read from a pipe or the like whenever there is something, each time into a provided buffer.

    One submission, any number of completions: as long as `CQE.more`, further ones follow. Ends at
    the end of the file, at an error, when the group has no buffer left, and when the completion
    queue has overflowed: queue it again then.

    Args:
        fd: a file that can be polled: a pipe, a terminal, a tun device.
        group: where the buffers come from: a `BufferRing`, or the number of another group.
        length: how much to read at a time. Linux 6.18 takes only 0, as much as a buffer holds, and
            answers EINVAL to anything else.
        offset: of no meaning for a pipe.
        rw_flags: RWF_* flags, as os.preadv has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.

    Lifetime: the group is held until the last completion.
    Completion: res is the number of bytes read, in the buffer that `CQE.buffer_id` names; on the
        last one 0 at the end of the file, or an error, without a buffer. `result()` is the `Lease`
        of the buffer, empty at the end of the file, when the group is a `BufferRing`; else the
        number of bytes. ENOBUFS when the group has no buffer, or is not there; EBADFD when the file
        cannot be polled, as those on a disk.

    Kernel: 6.7. liburing: io_uring_prep_read_multishot(3).
    """

    opcode = Opcode.READ_MULTISHOT

    length: int = attrs.field(default=0, kw_only=True)
    offset: int = attrs.field(default=0, kw_only=True)
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)


@operation
class Fsync(Operation):
    """
    Flush a file to its device. Equivalent: fsync(2), or fdatasync(2).

    Covers writes that had *completed* when it started, and no others: link it behind them.

    Args:
        fd: the file.
        datasync: leave out metadata that is not needed to read the data back.
        offset: where the part begins that must be flushed, in bytes. The file system may flush
            more, and many flush all.
        length: how long that part is; with 0, and offset 0, all of the file.

    Completion: res is 0.

    Raises:
        ValueError: an offset without a length: the kernel would flush next to nothing -> give both.

    Kernel: 5.1. liburing: io_uring_prep_fsync(3).
    """

    opcode = Opcode.FSYNC

    fd: FileLike
    datasync: bool = False
    offset: int = attrs.field(default=0, kw_only=True)
    length: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        flags = FsyncFlags.DATASYNC if self.datasync else 0
        if self.offset and not self.length:  # else up to the byte at offset: fs/sync.c has an end
            raise ValueError("an offset needs a length: 0 does not mean up to the end here")
        return self._pack(self.fd, off=self.offset, len=self.length, op_flags=flags), None


@operation
class SyncFileRange(Operation):
    """
    Write a part of a file back from the page cache. Equivalent: sync_file_range(2).

    Makes nothing durable: neither metadata, such as where a new block is, nor the device's own
    cache are flushed. For that there is `Fsync`.

    Args:
        fd: the file.
        offset: where the part begins, in bytes.
        length: how long it is, at most 2**32 - 1 bytes; 0 for up to the end of the file.
        sync_range_flags: `SyncFileRangeFlags`: WAIT_BEFORE, WRITE, WAIT_AFTER, in this order.

    Completion: res is 0.

    Kernel: 5.2. liburing: io_uring_prep_sync_file_range(3).
    """

    opcode = Opcode.SYNC_FILE_RANGE

    fd: FileLike
    offset: int = attrs.field(default=0, kw_only=True)
    length: int = attrs.field(default=0, kw_only=True)
    sync_range_flags: SyncFileRangeFlags = attrs.field(
        default=SyncFileRangeFlags.WRITE_AND_WAIT, kw_only=True
    )

    def _encode(self) -> tuple[bytes, object]:
        flags = self.sync_range_flags
        return self._pack(self.fd, off=self.offset, len=self.length, op_flags=flags), None


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

    Kernel: 5.6; Fixed 5.15. liburing: io_uring_prep_close(3), io_uring_prep_close_direct(3).
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
