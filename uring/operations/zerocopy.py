"""
Sending without a copy, and receiving without one.

A zero-copy send completes twice: first with its result, and with `CQE.more`; then with a
notification, `CQE.is_notification`, when the network has let go of the memory. A failure may
complete once or twice: `more` says which, but for one that the failure of its chain has cancelled:
that completes with ECANCELED, without `more`, and all the same with a notification.

Linux 6.18 counts the notification among what comes before the send itself. So with IO_DRAIN it
would wait for itself for ever, and nothing could cancel it; and the same becomes of one that is
submitted while a drained operation waits, in a chain with one, or as the first one after that has
ended. So they are refused on a ring that was ever given an operation with IO_DRAIN: send by copy
there, or on another ring.
"""

from typing import TYPE_CHECKING, Any

import attrs

from uring import _memory, _messages, _sockaddr
from uring._messages import Ancillary, own_ancillary
from uring._sockaddr import Address
from uring.flags import Opcode, SendRecvFlags
from uring.operations._base import Operation, all_lent, lent, operation
from uring.operations._socket_flags import NO_SENDRECV, POLL_FIRST, ZC_FLAGS, checked
from uring.sqe import FileLike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from uring._memory import FixedBuffer

__all__ = [
    "RecvZc",
    "SendZc",
    "SendZcFixed",
    "SendZcVectorized",
    "SendmsgZc",
    "SendmsgZcFixed",
]


@operation
class SendZc(Operation):
    """
    Send a buffer without copying it. Equivalent: send(2) or sendto(2) with MSG_ZEROCOPY.

    For large buffers: with small ones a copy costs less than the notification. What is sent within
    the machine is copied in the end.

    Args:
        fd: a TCP or UDP socket; others give EOPNOTSUPP.
        buffer: readable memory, at most 2**32 - 1 bytes.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for room before it tries;
            SEND_ZC_REPORT_USAGE makes the notification say whether the data was copied after all:
            `CQE.was_copied`.

    Lifetime: the buffer is pinned until the notification; changing its bytes before then may change
        what is sent. A copy of the address is held as long.
    Completion: res is the number of bytes sent, which may be fewer, with `CQE.more`; then comes
        the notification, whose `result()` is None. CQE_SKIP_SUCCESS is EINVAL.

    Kernel: 6.0; REPORT_USAGE 6.2. liburing: io_uring_prep_send_zc(3).
    """

    opcode = Opcode.SEND_ZC
    _notifies = True

    fd: FileLike
    buffer: "Buffer" = lent()
    msg_flags: int = 0
    address: Address | None = attrs.field(default=None, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return _send_zc(self, _memory.readable(self.buffer), 0)


@operation
class SendZcFixed(Operation):
    """
    Send memory inside a registered buffer without copying it, or looking it up.

    Args:
        fd: a TCP or UDP socket; others give EOPNOTSUPP.
        buffer: a `FixedBuffer`, or memory inside the registered buffer `buf_index`.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        buf_index: which registered buffer the memory is in; None when it is a `FixedBuffer`.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`, as in `SendZc`.

    Lifetime: the buffer is pinned until the notification; changing its bytes before then may change
        what is sent. A copy of the address is held as long.
    Completion: res is the number of bytes sent, which may be fewer, with `CQE.more`; then comes
        the notification, whose `result()` is None. EFAULT when the memory is not inside the
        registered buffer.

    Kernel: 6.0. liburing: io_uring_prep_send_zc_fixed(3).
    """

    opcode = Opcode.SEND_ZC
    _notifies = True

    fd: FileLike
    buffer: "Buffer | FixedBuffer" = lent()
    msg_flags: int = 0
    buf_index: int | None = attrs.field(default=None, kw_only=True)
    address: Address | None = attrs.field(default=None, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        *part, index = _memory.fixed_part(self.buffer, self.buf_index, write=False)
        return _send_zc(self, part, SendRecvFlags.RECVSEND_FIXED_BUF, index)


@operation
class SendZcVectorized(Operation):
    """
    Send several buffers, in order, without copying them.

    Args:
        fd: a TCP or UDP socket; others give EOPNOTSUPP.
        buffers: a sequence of up to 1024 buffers.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`, as in `SendZc`.

    Lifetime: every buffer is pinned until the notification; changing its bytes before then may
        change what is sent. A copy of the address is held as long.
    Completion: res is the number of bytes sent in all, which may be fewer, with `CQE.more`; then
        comes the notification, whose `result()` is None. EINVAL on kernels that do not have it:
        `SendmsgZc` does the same there.

    Kernel: 6.0; vectorized 6.17. liburing: io_uring_prep_send_zc(3), with IORING_SEND_VECTORIZED.
    """

    opcode = Opcode.SEND_ZC
    _notifies = True

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    msg_flags: int = 0
    address: Address | None = attrs.field(default=None, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        parts = _memory.iovecs(self.buffers, write=False)
        return _send_zc(self, parts, SendRecvFlags.SEND_VECTORIZED)


def _send_zc(self: Any, part: Any, kind: int, buf_index: int = 0) -> tuple[bytes, object]:
    pin, address, length = part
    to, addr2, addr_len = _sockaddr.optional_destination(self._address)
    ioprio = checked(self._ioprio_flags, ZC_FLAGS) | kind
    fields = addr2, address, length, self._msg_flags, ioprio, buf_index, addr_len
    return self._pack(self._fd, *fields), (pin, to)


@operation
class SendmsgZc(Operation):
    """
    Send a message without copying its data. Equivalent: sendmsg(2) with MSG_ZEROCOPY.

    Args:
        fd: a TCP or UDP socket; others give EOPNOTSUPP.
        buffers: a sequence of up to 1024 buffers.
        ancillary: control data, a sequence of (level, type, data), copied when this is made.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`, as in `SendZc`.

    Lifetime: every buffer is pinned until the notification; changing its bytes before then may
        change what is sent. Copies of the rest are held as long.
    Completion: res is the number of bytes sent in all, which may be fewer, with `CQE.more`; then
        comes the notification, whose `result()` is None. CQE_SKIP_SUCCESS is EINVAL.

    Kernel: 6.1. liburing: io_uring_prep_sendmsg_zc(3).
    """

    opcode = Opcode.SENDMSG_ZC
    _notifies = True

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    ancillary: "Sequence[Ancillary]" = attrs.field(default=(), converter=own_ancillary)
    msg_flags: int = 0
    address: Address | None = None
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pins, place = _messages.sendmsg(self.buffers, self.ancillary, self.address)
        ioprio = checked(self.ioprio_flags, ZC_FLAGS)
        flags = _messages.checked_flags(self.msg_flags)
        return self._pack(self.fd, addr=place, len=1, op_flags=flags, ioprio=ioprio), pins


@operation
class SendmsgZcFixed(Operation):
    """
    Send a message of parts of a registered buffer without copying them, or looking them up.

    Args:
        fd: a TCP or UDP socket; others give EOPNOTSUPP.
        buffers: a sequence of up to 1024 `FixedBuffer`s, or of memory inside the registered buffer
            `buf_index`; all in one.
        ancillary: control data, a sequence of (level, type, data), copied when this is made.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        address: where to, as `Connect` has it; None on a connected socket.
        buf_index: which registered buffer that is; None when they are `FixedBuffer`s.
        ioprio_flags: `SendRecvFlags`, as in `SendZc`.

    Lifetime: every buffer is pinned until the notification; changing its bytes before then may
        change what is sent. Copies of the rest are held as long.
    Completion: res is the number of bytes sent in all, which may be fewer, with `CQE.more`; then
        comes the notification, whose `result()` is None. EFAULT when memory is not inside the
        registered buffer.

    Kernel: 6.1; registered buffers 6.15. liburing: io_uring_prep_sendmsg_zc_fixed(3).
    """

    opcode = Opcode.SENDMSG_ZC
    _notifies = True

    fd: FileLike
    buffers: "Sequence[Buffer | FixedBuffer]" = all_lent()
    ancillary: "Sequence[Ancillary]" = attrs.field(default=(), converter=own_ancillary)
    msg_flags: int = 0
    address: Address | None = None
    buf_index: int | None = attrs.field(default=None, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        parts, index = _messages.fixed_parts(self.buffers, self.buf_index)
        pins, place = _messages.sendmsg(parts, self.ancillary, self.address)
        ioprio = checked(self.ioprio_flags, ZC_FLAGS) | SendRecvFlags.RECVSEND_FIXED_BUF
        flags = _messages.checked_flags(self.msg_flags)
        fields = place, 1, flags, ioprio, index
        return self._pack(self.fd, 0, *fields), pins


@operation
class RecvZc(Operation):
    """
    Receive again and again into memory that the network card fills itself, without a copy.

    Needs a zero-copy receive queue of a card that can split headers from data, registered with
    `Ring.register_zcrx()`, and a ring with CQE32 and DEFER_TASKRUN.

    Args:
        fd: a TCP socket whose data arrives at the queue.
        zcrx_ifq_idx: the number of the registered queue, as `ZcrxQueue.id` has it.
        length: end when so many bytes have been received; 0 goes on without end.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Completion: res is the number of bytes received, with `CQE.more`; the first word of
        `CQE.big_cqe` says where they are: an offset into the area in its lower ZCRX_AREA_SHIFT
        bits, the area above. They are yours until you give them back in the queue's refill ring.
        The one without `more` is the last: 0 when the peer has shut down. EINVAL on a ring of
        another kind, or without such a queue.

    Kernel: 6.15. liburing: io_uring_prep_rw(3), with IORING_OP_RECV_ZC.
    """

    opcode = Opcode.RECV_ZC

    fd: FileLike
    zcrx_ifq_idx: int = attrs.field(default=0, kw_only=True)
    length: int = attrs.field(default=0, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    _ends_with_zero = True

    def _encode(self) -> tuple[bytes, object]:
        ioprio = checked(self.ioprio_flags, POLL_FIRST) | SendRecvFlags.RECV_MULTISHOT
        index = self.zcrx_ifq_idx
        return self._pack(self.fd, len=self.length, ioprio=ioprio, splice_fd_in=index), None
