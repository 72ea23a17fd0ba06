"""Reading into and writing from registered buffers, which the kernel has mapped already."""

from typing import TYPE_CHECKING, Any

import attrs

from uring import _memory
from uring.flags import Opcode
from uring.operations._base import Operation, all_lent, lent, operation, position, stream_field
from uring.operations._integrity import ProtectionInfo, with_protection
from uring.sqe import FileLike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = ["ReadFixed", "ReadvFixed", "WriteFixed", "WritevFixed"]


def _encode_part(self: Any, *, write: bool, write_stream: int = 0) -> tuple[bytes, object]:
    part = _memory.fixed_part(self._buffer, self._buf_index, write=write)
    encoded = _encode(self, *part, write_stream)
    return encoded if self._pi is None else with_protection(encoded, self._pi, write=write)


def _encode_parts(self: Any, *, write: bool, write_stream: int = 0) -> tuple[bytes, object]:
    parts = _memory.fixed_iovecs(self._buffers, self._buf_index, write=write)
    encoded = _encode(self, *parts, write_stream)
    return encoded if self._pi is None else with_protection(encoded, self._pi, write=write)


def _encode(
    self: Any, pins: object, address: int, length: int, buf_index: int, write_stream: int
) -> tuple[bytes, object]:
    record = self._pack(
        self._fd,
        off=position(self._offset),
        addr=address,
        len=length,
        op_flags=self._rw_flags,
        ioprio=self._ioprio,
        buf_index=buf_index,
        splice_fd_in=stream_field(write_stream),
    )
    return record, pins


@operation
class ReadFixed(Operation):
    """
    Read from a file into a part of a registered buffer. Equivalent: pread(2).

    Saves the kernel looking the pages up for each operation. A read may be short.

    Args:
        fd: the file.
        buffer: a `FixedBuffer`, or writable memory inside a registered buffer; its length is how
            much to read, at most 2**32 - 1 bytes (the kernel itself stops at 2**31 - 4096).
        offset: where to read, in bytes; -1 uses and moves the file's position.
        buf_index: which registered buffer the memory is in; None when it is a `FixedBuffer`.
        rw_flags: RWF_* flags, as os.preadv has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.
        pi: `ProtectionInfo`, on devices that have it.

    Lifetime: the memory is pinned until the completion, that of `pi` as well.
    Completion: res is the number of bytes read, 0 at the end of the file. EFAULT when the memory is
        not in that buffer, or there is no such buffer.

    Kernel: 5.1; pi 6.14. liburing: io_uring_prep_read_fixed(3).
    """

    opcode = Opcode.READ_FIXED

    fd: FileLike
    buffer: "Buffer | _memory.FixedBuffer" = lent()
    offset: int = 0
    buf_index: int | None = attrs.field(default=None, kw_only=True)
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)
    pi: ProtectionInfo | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_part(self, write=True)


@operation
class WriteFixed(Operation):
    """
    Write a part of a registered buffer to a file. Equivalent: pwrite(2).

    A write may be short. Durable only after an `Fsync` that starts when this has ended: link them.

    Args:
        fd: the file.
        buffer: a `FixedBuffer`, or memory inside a registered buffer, all of which is written; at
            most 2**32 - 1 bytes (the kernel itself stops at 2**31 - 4096).
        offset: where to write, in bytes; -1 uses and moves the file's position (which Linux 6.18
            does not move when less than all is written: then say where to go on).
        buf_index: which registered buffer the memory is in; None when it is a `FixedBuffer`.
        rw_flags: RWF_* flags, as os.pwritev has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.
        write_stream: where a block device with several write streams (FDP) puts the data, from 1;
            0 is its default. Others take no notice.
        pi: `ProtectionInfo`, on devices that have it.

    Lifetime: the memory is pinned until the completion, that of `pi` as well; changing its bytes
        before then changes what is written.
    Completion: res is the number of bytes written. EFAULT when the memory is not in that buffer, or
        there is no such buffer.

    Kernel: 5.1; pi 6.14; write_stream 6.16. liburing: io_uring_prep_write_fixed(3).
    """

    opcode = Opcode.WRITE_FIXED

    fd: FileLike
    buffer: "Buffer | _memory.FixedBuffer" = lent()
    offset: int = 0
    buf_index: int | None = attrs.field(default=None, kw_only=True)
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)
    write_stream: int = attrs.field(default=0, kw_only=True)
    pi: ProtectionInfo | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_part(self, write=False, write_stream=self.write_stream)


@operation
class ReadvFixed(Operation):
    """
    Read from a file into several parts of one registered buffer, in order. Equivalent: preadv2(2).

    Args:
        fd: the file.
        buffers: a sequence of up to 1024 parts, as `ReadFixed` takes one; all in the same buffer.
        offset: where to read, in bytes; -1 uses and moves the file's position.
        buf_index: which registered buffer that is; None when they are `FixedBuffer`s.
        rw_flags: RWF_* flags, as os.preadv has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.
        pi: `ProtectionInfo`, on devices that have it.

    Lifetime: the memory is pinned until the completion, that of `pi` as well.
    Completion: res is the number of bytes read in all, 0 at the end of the file. EFAULT when a part
        is not in that buffer, or there is no such buffer.

    Kernel: 6.15. liburing: io_uring_prep_readv_fixed(3).
    """

    opcode = Opcode.READV_FIXED

    fd: FileLike
    buffers: "Sequence[Buffer | _memory.FixedBuffer]" = all_lent()
    offset: int = 0
    buf_index: int | None = attrs.field(default=None, kw_only=True)
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)
    pi: ProtectionInfo | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_parts(self, write=True)


@operation
class WritevFixed(Operation):
    """
    Write several parts of one registered buffer to a file, in order. Equivalent: pwritev2(2).

    Args:
        fd: the file.
        buffers: a sequence of up to 1024 parts, as `WriteFixed` takes one; all in the same buffer.
        offset: where to write, in bytes; -1 uses and moves the file's position (which Linux 6.18
            does not move when less than all is written: then say where to go on).
        buf_index: which registered buffer that is; None when they are `FixedBuffer`s.
        rw_flags: RWF_* flags, as os.pwritev has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.
        write_stream: where a block device with several write streams (FDP) puts the data, from 1;
            0 is its default. Others take no notice.
        pi: `ProtectionInfo`, on devices that have it.

    Lifetime: the memory is pinned until the completion, that of `pi` as well.
    Completion: res is the number of bytes written in all. EFAULT when a part is not in that buffer,
        or there is no such buffer.

    Kernel: 6.15; write_stream 6.16. liburing: io_uring_prep_writev_fixed(3).
    """

    opcode = Opcode.WRITEV_FIXED

    fd: FileLike
    buffers: "Sequence[Buffer | _memory.FixedBuffer]" = all_lent()
    offset: int = 0
    buf_index: int | None = attrs.field(default=None, kw_only=True)
    rw_flags: int = attrs.field(default=0, kw_only=True)
    ioprio: int = attrs.field(default=0, kw_only=True)
    write_stream: int = attrs.field(default=0, kw_only=True)
    pi: ProtectionInfo | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _encode_parts(self, write=False, write_stream=self.write_stream)
