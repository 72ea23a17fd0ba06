"""Sending and receiving on sockets."""

from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _memory, _sockaddr
from uring._sockaddr import Address
from uring.flags import Opcode, SendRecvFlags
from uring.operations._base import SELECT, Operation, all_lent, encode_lent, lent, operation
from uring.operations._groups import Filling, Selecting, received_flags
from uring.operations._socket_flags import NO_SENDRECV, checked
from uring.sqe import FileLike, buffer_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

_SEND: Final = int(Opcode.SEND)
_RECV: Final = int(Opcode.RECV)

__all__ = [
    "Recv",
    "RecvBundle",
    "RecvBundleMultishot",
    "RecvMultishot",
    "RecvSelect",
    "Send",
    "SendBundle",
    "SendSelect",
    "SendVectorized",
    "Sendto",
]


@operation
class Send(Operation):
    """
    Send a buffer on a connected socket. Equivalent: send(2); never raises SIGPIPE.

    In a chain only with MSG_WAITALL does a short send cancel what is linked behind it.

    Args:
        fd: the socket.
        buffer: readable memory, at most 2**32 - 1 bytes.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for room before it tries.

    Lifetime: the buffer is pinned until the completion.
    Completion: res is the number of bytes sent, which may be fewer.

    Kernel: 5.6; POLL_FIRST 5.19. liburing: io_uring_prep_send(3).
    """

    opcode = Opcode.SEND

    fd: FileLike
    buffer: "Buffer" = lent()
    msg_flags: int = 0
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self: Any) -> tuple[bytes, object]:
        ioprio = self._ioprio_flags
        if ioprio is not NO_SENDRECV:
            ioprio = checked(ioprio)
        return encode_lent(self, _SEND, self._buffer, False, 0, self._msg_flags, ioprio)  # noqa: FBT003 - hot


@operation
class Sendto(Operation):
    """
    Send a buffer to an address. Equivalent: sendto(2); never raises SIGPIPE.

    Args:
        fd: the socket, which need not be connected.
        buffer: readable memory, at most 2**32 - 1 bytes; one datagram.
        address: where to, as `Connect` has it.
        msg_flags: socket.MSG_*.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for room before it tries.

    Lifetime: the buffer is pinned, and a copy of the address held, until the completion.
    Completion: res is the number of bytes sent.

    Kernel: 5.6; with an address 6.1. liburing: io_uring_prep_sendto(3).
    """

    opcode = Opcode.SEND

    fd: FileLike
    buffer: "Buffer" = lent()
    address: Address
    msg_flags: int = 0
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pin, address, length = _memory.readable(self.buffer)
        to, addr2, addr_len = _sockaddr.destination(self.address)
        fields = addr2, address, length, self.msg_flags, checked(self.ioprio_flags), 0, addr_len
        return self._pack(self.fd, *fields), (pin, to)


@operation
class SendVectorized(Operation):
    """
    Send several buffers, in order, on a socket. Equivalent: sendmsg(2) without control data.

    Args:
        fd: the socket.
        buffers: a sequence of up to 1024 buffers.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for room before it tries.

    Lifetime: every buffer is pinned, and a copy of the address held, until the completion.
    Completion: res is the number of bytes sent in all, which may be fewer; EINVAL on kernels that
        do not have it: `Sendmsg` does the same there.

    Kernel: 5.6; vectorized 6.17. liburing: io_uring_prep_send(3), with IORING_SEND_VECTORIZED.
    """

    opcode = Opcode.SEND

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    msg_flags: int = 0
    address: Address | None = attrs.field(default=None, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pins, address, count = _memory.iovecs(self.buffers, write=False)
        to, addr2, addr_len = _sockaddr.optional_destination(self.address)
        ioprio = checked(self.ioprio_flags) | SendRecvFlags.SEND_VECTORIZED
        fields = addr2, address, count, self.msg_flags, ioprio, 0, addr_len
        return self._pack(self.fd, *fields), (pins, to)


class _SendsGroup(Selecting):
    """What sends from a group of provided buffers."""

    __slots__ = ()

    _sends_buffer = True

    def _send_group(self: Any, bundle: int = 0) -> tuple[bytes, object]:
        to, addr2, addr_len = _sockaddr.optional_destination(self._address)
        encoded: tuple[bytes, object] = self._select(
            to,
            off=addr2,
            len=self._length,
            op_flags=self._msg_flags,
            ioprio=checked(self._ioprio_flags) | bundle,
            splice_fd_in=addr_len,
        )
        return encoded


@operation
class SendSelect(_SendsGroup):
    """
    Send the next buffer of a group of provided buffers. Equivalent: send(2).

    Which buffer it is is decided when the socket takes it, so that operations that wait on one
    socket send the buffers in their order.

    Args:
        fd: the socket.
        group: the `SendBufferRing`, or the number of another group.
        msg_flags: socket.MSG_*.
        length: send at most so many bytes of the buffer; 0 sends all of it.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for room before it tries.

    Lifetime: the group is held until the completion, and a copy of the address.
    Completion: res is the number of bytes sent, from the buffer `CQE.buffer_id`; ENOBUFS when the
        group was empty, ENOENT when there is none.

    Kernel: 5.6; provided buffers 6.10. liburing: io_uring_prep_send(3), with IOSQE_BUFFER_SELECT.
    """

    opcode = Opcode.SEND

    msg_flags: int = 0
    length: int = attrs.field(default=0, kw_only=True)
    address: Address | None = attrs.field(default=None, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._send_group()


@operation
class SendBundle(_SendsGroup):
    """
    Send the buffers of a group of provided buffers, in order, until there are none.

    Args:
        fd: the socket.
        group: the `SendBufferRing`, or the number of another group.
        msg_flags: socket.MSG_*; MSG_WAITALL is always set.
        length: send at most so many bytes up to the first completion, in whole buffers; 0 takes
            as many as there are.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for room before it tries.

    Lifetime: the group is held until the last completion, and a copy of the address.
    Completion: res is the number of bytes sent from several buffers, the first of which is
        `CQE.buffer_id`, with `CQE.more` as long as there may be others. ENOBUFS when the group was
        empty, ENOENT when there is none; ECANCELED where a worker of the kernel would run it: with
        ASYNC, linked to what a worker ran, or first behind an operation with IO_DRAIN.

    Kernel: 5.6; bundles 6.10. liburing: io_uring_prep_send_bundle(3).
    """

    opcode = Opcode.SEND

    msg_flags: int = 0
    length: int = attrs.field(default=0, kw_only=True)
    address: Address | None = attrs.field(default=None, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._send_group(SendRecvFlags.RECVSEND_BUNDLE)


@operation
class Recv(Operation):
    """
    Receive from a connected socket into a buffer. Equivalent: recv(2).

    In a chain only with MSG_WAITALL does a short one cancel what is linked behind it.

    Args:
        fd: the socket.
        buffer: writable memory, at most 2**32 - 1 bytes.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until the buffer is full.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: the buffer is pinned until the completion.
    Completion: res is the number of bytes received; 0 when the peer has shut down. With MSG_TRUNC
        it is that of the whole datagram, which may be more than the buffer has.

    Kernel: 5.6; POLL_FIRST 5.19. liburing: io_uring_prep_recv(3).
    """

    opcode = Opcode.RECV

    fd: FileLike
    buffer: "Buffer" = lent()
    msg_flags: int = 0
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self: Any) -> tuple[bytes, object]:
        ioprio = self._ioprio_flags
        if ioprio is not NO_SENDRECV:
            ioprio = checked(ioprio)
        return encode_lent(self, _RECV, self._buffer, True, 0, self._msg_flags, ioprio)  # noqa: FBT003 - hot


class _RecvsGroup(Filling):
    """What receives into a group of provided buffers."""

    __slots__ = ()

    def _recv_group(self: Any, kind: int = 0, total_length: int = 0) -> tuple[bytes, object]:
        group, ioprio = self._group, self._ioprio_flags
        kind = kind if ioprio is NO_SENDRECV else checked(ioprio) | kind
        flags = received_flags(self._msg_flags, group)
        encoded = self._pack(  # as _select(), in half the time
            self._fd,
            len=self._length,
            op_flags=flags,
            ioprio=kind,
            buf_index=buffer_group(group),
            splice_fd_in=total_length,
            sqe_flags=SELECT,
        )
        return encoded, None if isinstance(group, int) else group


@operation
class RecvSelect(_RecvsGroup):
    """
    Receive into a buffer that the kernel takes from a group when there is data.

    Equivalent: recv(2).

    Args:
        fd: the socket.
        group: the `BufferRing`, or the number of another group.
        msg_flags: socket.MSG_*; not MSG_TRUNC with a `BufferRing`.
        length: receive at most so many bytes; 0 for as many as the buffer has.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: the group is held until the completion.
    Completion: res is the number of bytes received, and `result()` the `Lease` of the buffer that
        they are in, empty when the peer has shut down; or the number, when the group was given by
        its own. ENOBUFS when the group was empty, or there is none.

    Kernel: 5.6; provided buffers 5.7. liburing: io_uring_prep_recv(3), with IOSQE_BUFFER_SELECT.
    """

    opcode = Opcode.RECV

    msg_flags: int = 0
    length: int = attrs.field(default=0, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._recv_group()


@operation
class RecvMultishot(_RecvsGroup):
    """
    Receive again and again, each time into a buffer that the kernel takes from a group.

    Args:
        fd: the socket.
        group: the `BufferRing`, or the number of another group.
        msg_flags: socket.MSG_*; not MSG_TRUNC with a `BufferRing`, and MSG_WAITALL is EINVAL.
        length: receive at most so many bytes each time; 0 for as many as the buffer has. Others
            than 0 need 6.17.
        total_length: end when so many bytes have been received in all, or more, for a buffer is
            filled as far as it goes; 0 goes on without end. Others than 0 need 6.17.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: the group is held until the last completion.
    Completion: res is the number of bytes received, with `CQE.more`; `result()` is the `Lease` of
        the buffer that they are in, or the number when the group was given by its own. The one
        without `more` is the last: empty when the peer has shut down, or sent an empty datagram;
        ENOBUFS when the group was empty, or there is none; data when `total_length` was reached
        or the completion queue was full.

    Kernel: 5.6; multishot 6.0. liburing: io_uring_prep_recv_multishot(3).
    """

    opcode = Opcode.RECV
    _waits_for_data = True

    msg_flags: int = 0
    length: int = attrs.field(default=0, kw_only=True)
    total_length: int = attrs.field(default=0, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    _ends_with_zero = True

    def _encode(self) -> tuple[bytes, object]:
        return self._recv_group(SendRecvFlags.RECV_MULTISHOT, self.total_length)


@operation
class RecvBundle(_RecvsGroup):
    """
    Receive into as many buffers of a group as the data that is there fills.

    With a `BufferRing` only outside of chains, without ASYNC, and on a ring that was never given an
    operation with IO_DRAIN: a worker of the kernel would take one buffer after the other, and other
    operations those between, as Linux 6.18 does. Use `RecvSelect` or `RecvBundleMultishot` there.

    Args:
        fd: the socket, of which nobody else reads: an operation that is too late for its data again
            and again (127 times) goes to a worker as well, and its lease may have the buffers, and
            the bytes, of other operations.
        group: the `BufferRing`, or the number of another group.
        msg_flags: socket.MSG_*; neither MSG_TRUNC nor MSG_WAITALL with a `BufferRing`.
        length: how many bytes to receive; 0 for as many as there are. Linux 6.18 may give more than
            that, what the buffers hold.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: the group is held until the completion.
    Completion: res is the number of bytes received in all, into buffers that follow each other in
        the group, the first of which is `CQE.buffer_id`; `result()` is their `Lease`, empty when
        the peer has shut down; or the number, when the group was given by its own. It may leave
        data that was there: CQEFlags.SOCK_NONEMPTY says so. ENOBUFS when the group was empty,
        ENOENT when there is none. Where somebody else reads the same socket all the same, Linux
        6.18 may tell of no buffer: `result()` is then the number, and what it took is lost to the
        group.

    Kernel: 5.6; bundles 6.10. liburing: io_uring_prep_recv(3), with IORING_RECVSEND_BUNDLE.
    """

    opcode = Opcode.RECV
    _takes_several = True

    msg_flags: int = 0
    length: int = attrs.field(default=0, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._recv_group(SendRecvFlags.RECVSEND_BUNDLE)


@operation
class RecvBundleMultishot(_RecvsGroup):
    """
    Receive again and again, each time into as many buffers of a group as the data fills.

    Args:
        fd: the socket.
        group: the `BufferRing`, or the number of another group.
        msg_flags: socket.MSG_*; not MSG_TRUNC with a `BufferRing`, and MSG_WAITALL is EINVAL.
        length: receive at most so many bytes each time; 0 for as many as there are. Others than 0
            need 6.17.
        total_length: end when so many bytes have been received in all, or more, for a buffer is
            filled as far as it goes; 0 goes on without end. Others than 0 need 6.17.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: the group is held until the last completion.
    Completion: res is the number of bytes received, with `CQE.more`, into buffers that follow each
        other in the group, the first of which is `CQE.buffer_id`; `result()` is their `Lease`, or
        the number when the group was given by its own. The one without `more` is the last, as with
        `RecvMultishot`; ENOENT when there is no such group.

    Kernel: 5.6; bundles 6.10. liburing: io_uring_prep_recv_multishot(3), with
    IORING_RECVSEND_BUNDLE.
    """

    opcode = Opcode.RECV

    msg_flags: int = 0
    length: int = attrs.field(default=0, kw_only=True)
    total_length: int = attrs.field(default=0, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    _ends_with_zero = True

    def _encode(self) -> tuple[bytes, object]:
        kind = SendRecvFlags.RECV_MULTISHOT | SendRecvFlags.RECVSEND_BUNDLE
        return self._recv_group(kind, self.total_length)
