"""Messages: data in several buffers, with addresses and control data."""

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _memory, _messages
from uring._messages import Ancillary, Message, MessageRoom, own_ancillary
from uring._sockaddr import SOCKADDR_MAX, Address
from uring.flags import Opcode, SendRecvFlags, SQEFlags
from uring.operations._base import Operation, all_lent, operation
from uring.operations._groups import GroupPin, Selecting, lease_of, received_flags
from uring.operations._socket_flags import NO_SENDRECV, checked
from uring.sqe import FileLike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = ["Recvmsg", "RecvmsgMultishot", "RecvmsgSelect", "Sendmsg"]

_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_SKIP: Final = int(SQEFlags.CQE_SKIP_SUCCESS)


@operation
class Sendmsg(Operation):
    """
    Send a message: several buffers, control data, an address. Equivalent: sendmsg(2).

    Never raises SIGPIPE. Descriptors that control data names (SCM_RIGHTS) are looked up when the
    kernel sends it: keep them open until the completion.

    Args:
        fd: the socket.
        buffers: a sequence of up to 1024 buffers.
        ancillary: control data, a sequence of (level, type, data), copied when this is made.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.
        address: where to, as `Connect` has it; None on a connected socket.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for room before it tries.

    Lifetime: every buffer is pinned, and copies of the rest held, until the completion.
    Completion: res is the number of bytes sent in all, which may be fewer.

    Kernel: 5.3. liburing: io_uring_prep_sendmsg(3).
    """

    opcode = Opcode.SENDMSG

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    ancillary: "Sequence[Ancillary]" = attrs.field(default=(), converter=own_ancillary)
    msg_flags: int = 0
    address: Address | None = None
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pins, place = _messages.sendmsg(self.buffers, self.ancillary, self.address)
        flags, ioprio = _messages.checked_flags(self.msg_flags), checked(self.ioprio_flags)
        return self._pack(self.fd, addr=place, len=1, op_flags=flags, ioprio=ioprio), pins


def _recv_flags(op: Any) -> int:
    """Encode ``sqe->msg_flags``; refuse what would lose descriptors."""
    if op._ancbufsize and op._flags & _SKIP:
        raise ValueError(
            "with CQE_SKIP_SUCCESS nobody would learn of descriptors in the control data, so nobody"
            " could close them"
        )
    flags = _messages.checked_flags(op._msg_flags)
    return flags | _CLOEXEC if op._cloexec else flags


@operation
class Recvmsg(Operation):
    """
    Receive a message into several buffers, with its address and control data.

    Equivalent: recvmsg(2).

    Args:
        fd: the socket.
        buffers: a sequence of up to 1024 writable buffers.
        ancbufsize: how many bytes of control data there is room for, as socket.CMSG_SPACE() counts
            them; what does not fit is lost, with MSG_CTRUNC.
        msg_flags: socket.MSG_*.
        address: whether the sender's address is wanted.
        cloexec: set MSG_CMSG_CLOEXEC, so that descriptors that are received are closed on exec.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: every buffer is pinned until the completion; the room for the rest is the ring's,
        until the result has been read.
    Completion: res is the number of bytes received; 0 when the peer has shut down. `result()` is a
        `Message`. Descriptors in its control data are the caller's to close; those of a completion
        that nobody has copied out when the ring closes are closed with it. For their sake it
        cannot share its user_data with others, nor, with control data, skip its completion.

    Kernel: 5.3. liburing: io_uring_prep_recvmsg(3).
    """

    opcode = Opcode.RECVMSG

    fd: FileLike
    buffers: "Sequence[Buffer]" = all_lent()
    ancbufsize: int = attrs.field(default=0, kw_only=True)
    msg_flags: int = attrs.field(default=0, kw_only=True)
    address: bool = attrs.field(default=True, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    _keeps_memory = True
    _is_sole = True

    def _encode(self) -> tuple[bytes, object]:
        parts = _memory.iovecs(self.buffers, write=True)
        room = MessageRoom(parts, self.ancbufsize, is_named=self.address)
        flags, ioprio = _recv_flags(self), checked(self.ioprio_flags)
        return self._pack(self.fd, addr=room.address, len=1, op_flags=flags, ioprio=ioprio), room

    def _result(self, res: int, memory: object, _flags: int) -> Message | None:
        return memory.decode(res) if isinstance(memory, MessageRoom) else None

    def _descriptors(self, res: int, memory: object, flags: int) -> Iterable[int]:
        message = self._result(res, memory, flags)
        return [] if message is None else message.descriptors()


@operation
class RecvmsgSelect(Selecting):
    """
    Receive a message into a buffer that the kernel takes from a group when there is one.

    Equivalent: recvmsg(2).

    Args:
        fd: the socket.
        group: the `BufferRing`, or the number of another group.
        length: receive at most so many bytes; 0 for as many as the buffer has.
        ancbufsize: how many bytes of control data there is room for, as socket.CMSG_SPACE() counts
            them; what does not fit is lost, with MSG_CTRUNC.
        msg_flags: socket.MSG_*; not MSG_TRUNC with a `BufferRing`.
        address: whether the sender's address is wanted.
        cloexec: set MSG_CMSG_CLOEXEC, so that descriptors that are received are closed on exec.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: the group is held until the completion; the room for address and control data is the
        ring's, until the result has been read.
    Completion: res is the number of bytes received; 0 when the peer has shut down. `result()` is a
        `Message` with the `Lease` of the buffer that they are in. ENOBUFS when the group was empty.
        Descriptors in the control data are as those of `Recvmsg`.

    Kernel: 5.3; provided buffers 5.7. liburing: io_uring_prep_recvmsg(3), with IOSQE_BUFFER_SELECT.
    """

    opcode = Opcode.RECVMSG

    length: int = attrs.field(default=0, kw_only=True)
    ancbufsize: int = attrs.field(default=0, kw_only=True)
    msg_flags: int = attrs.field(default=0, kw_only=True)
    address: bool = attrs.field(default=True, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    _is_sole = True

    def _encode(self) -> tuple[bytes, object]:
        parts = _messages.provided(self.length)
        room = MessageRoom(parts, self.ancbufsize, is_named=self.address)
        ioprio = checked(self.ioprio_flags)
        flags = received_flags(_recv_flags(self), self.group)
        return self._select(room, addr=room.address, len=1, op_flags=flags, ioprio=ioprio)

    def _result(self, res: int, memory: object, _flags: int) -> Message | None:
        room = memory.memory if isinstance(memory, GroupPin) else None
        return room.decode(res, lease_of(memory)) if isinstance(room, MessageRoom) else None

    def _descriptors(self, res: int, memory: object, flags: int) -> Iterable[int]:
        message = self._result(res, memory, flags)
        return [] if message is None else message.descriptors()


@operation
class RecvmsgMultishot(Selecting):
    """
    Receive message after message, each into a buffer that the kernel takes from a group.

    A buffer holds a header of 16 bytes, `namelen` bytes for the address, `ancbufsize` bytes for the
    control data, and the data in what is left.

    Args:
        fd: the socket.
        group: the `BufferRing`, or the number of another group.
        namelen: how many bytes of each buffer are for the address, 0..128; 28 are enough for
            AF_INET6, 0 when it is not wanted. One that does not fit is cut off, to a `Sockaddr`.
        ancbufsize: how many bytes of each buffer are for the control data, as socket.CMSG_SPACE()
            counts them; what does not fit is lost, with MSG_CTRUNC.
        msg_flags: socket.MSG_*; MSG_WAITALL is refused with EINVAL.
        cloexec: set MSG_CMSG_CLOEXEC, so that descriptors that are received are closed on exec.
        ioprio_flags: `SendRecvFlags`: RECVSEND_POLL_FIRST waits for data before it tries.

    Lifetime: the group is held until the last completion.
    Completion: res is the number of bytes that are used of the buffer, with `CQE.more`; `result()`
        is a `Message` with its `Lease`, or the number when the group was given by its own. The one
        without `more` is the last: a message without data, which an empty datagram is and the end
        of a stream; any when the completion queue was full; ENOBUFS when the group was empty,
        EFAULT when a buffer is too short for what comes before the data. Descriptors in the
        control data are as those of `Recvmsg`; when the group was given by its number they are
        the caller's in every case.

    Kernel: 5.3; multishot 6.0. liburing: io_uring_prep_recvmsg_multishot(3).
    """

    opcode = Opcode.RECVMSG
    _waits_for_data = True

    namelen: int = attrs.field(default=SOCKADDR_MAX, kw_only=True)
    ancbufsize: int = attrs.field(default=0, kw_only=True)
    msg_flags: int = attrs.field(default=0, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)
    ioprio_flags: SendRecvFlags = attrs.field(default=NO_SENDRECV, kw_only=True)

    _is_sole = True

    def _encode(self) -> tuple[bytes, object]:
        pin, place = _messages.multishot(self.namelen, self.ancbufsize)
        ioprio = checked(self.ioprio_flags) | SendRecvFlags.RECV_MULTISHOT
        flags = _recv_flags(self)
        return self._select(pin, addr=place, len=1, op_flags=flags, ioprio=ioprio)

    def _result(self, res: int, memory: object, _flags: int) -> Message | int:
        lease = lease_of(memory)
        if lease is None:
            return res
        return _messages.decode_multishot(lease, self.namelen, self.ancbufsize)

    def _descriptors(self, res: int, memory: object, flags: int) -> Iterable[int]:
        message = self._result(res, memory, flags)
        return message.descriptors() if isinstance(message, Message) else []
