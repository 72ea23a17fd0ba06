"""
Messages: the kernel's struct msghdr and what belongs to it, and the `Message` that comes of one.

struct msghdr is pinned together with what it points to: the address, the control data and the
array of buffers. Control data is a row of struct cmsghdr, each with the bytes that follow it.
"""

import array
import socket
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _memory
from uring._checks import check_range
from uring._leases import Lease
from uring._memory import FixedBuffer
from uring._sockaddr import SOCKADDR_MAX, Address, decode_sockaddr, encode_sockaddr
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from uring._uring import CData

_MSGHDR: Final = struct.Struct("PIPNPNi0P")
"""struct user_msghdr: name, namelen, iov, iovlen, control, controllen, flags."""

_CMSGHDR: Final = struct.Struct("Nii")
"""struct cmsghdr: its length with what follows, level, type."""

_IOVEC: Final = struct.Struct("NN")

_RECVMSG_OUT: Final = struct.Struct("=IIII")
"""struct io_uring_recvmsg_out: namelen, controllen, payloadlen, flags."""

_SCM_PIDFD: Final = 4  # linux/socket.h; the socket module does not have it
_MSG_CMSG_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_MSG_CMSG_COMPAT: Final = 0x80000000  # linux/socket.h
CONTROL_MAX: Final = 2**31 - 1

Ancillary = tuple[int, int, bytes]
"""One piece of control data: (level, type, data), as socket.sendmsg has it."""


@attrs.frozen
class Message:
    """
    A message that was received: its length, and what came with it.

    Args:
        length: how many bytes were received; with MSG_TRUNC among the flags of the operation, how
            many the datagram had, whether there was room for them or not.
        ancillary: the control data, a tuple of (level, type, data).
        msg_flags: what the kernel says of the message: socket.MSG_TRUNC (the data was cut off),
            MSG_CTRUNC (the control data was), MSG_EOR, MSG_OOB, MSG_ERRQUEUE.
        address: where it came from, as the socket module has it, or a `Sockaddr`; None when there
            is none or it was not asked for.
        payload: the bytes of the data in the provided buffer that the kernel took; None when the
            operation had buffers of its own, or the group was given by its number.
        lease: the `Lease` of that buffer, without which `payload` must not be read.
    """

    length: int
    ancillary: tuple[Ancillary, ...] = ()
    msg_flags: int = 0
    address: Address | None = None
    payload: memoryview | None = None
    lease: Lease | None = None

    def descriptors(self) -> list[int]:
        """The file descriptors that came with it (SCM_RIGHTS, SCM_PIDFD): yours to close."""
        return descriptors_in(self.ancillary)


# ---- control data ----


_WORD: Final = struct.calcsize("N")


def _aligned(length: int) -> int:
    return -(-length // _WORD) * _WORD


_HEADER: Final = _aligned(_CMSGHDR.size)


def own_ancillary(ancillary: Any) -> Any:
    """Copy control data; what has the wrong shape stays, and is refused when it is encoded."""
    try:
        return tuple((level, kind, bytes(memoryview(data))) for level, kind, data in ancillary)
    except (TypeError, ValueError):
        return ancillary


def encode_control(ancillary: object) -> bytes:
    """The control data of a message that is sent."""
    if not isinstance(ancillary, tuple):
        raise TypeError(f"ancillary must be a sequence of (level, type, data), not {ancillary!r}")
    parts = []
    for piece in ancillary:
        if not isinstance(piece, tuple) or len(piece) != 3 or not isinstance(piece[2], bytes):
            raise TypeError(f"control data is (level, type, data), and not {piece!r}")
        level, kind, data = piece
        try:
            header = _CMSGHDR.pack(_HEADER + len(data), level, kind)
        except struct.error:
            raise ValueError(
                f"level and type of control data are 32-bit integers, not {(level, kind)!r}"
            ) from None
        padded = header.ljust(_HEADER, b"\0") + data
        parts.append(padded.ljust(_HEADER + _aligned(len(data)), b"\0"))
    return b"".join(parts)


def parse_control(control: bytes | memoryview) -> tuple[Ancillary, ...]:
    """The pieces of control data; one that is cut off keeps what there is of it."""
    found = []
    place = 0
    while place + _CMSGHDR.size <= len(control):
        length, level, kind = _CMSGHDR.unpack_from(control, place)
        if length < _HEADER:
            break
        found.append((level, kind, bytes(control[place + _HEADER : place + length])))
        place += _aligned(length)
    return tuple(found)


def descriptors_in(ancillary: Iterable[Ancillary]) -> list[int]:
    """The descriptors that the kernel made for control data that was received."""
    found = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind in {socket.SCM_RIGHTS, _SCM_PIDFD}:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) // numbers.itemsize * numbers.itemsize])
            found += [number for number in numbers if number >= 0]  # a pidfd may be an errno
    return found


# ---- struct msghdr ----

_NAME: Final = 64
_CONTROL: Final = _NAME + SOCKADDR_MAX
"""Behind the struct there is room for an address, and behind that for the control data."""


def _msghdr(
    parts: tuple[object, int, int], name: bytes, namelen: int, control: bytes
) -> "tuple[CData, int]":
    """Pin a struct msghdr, with an address and control data behind it: (pin, its address)."""
    _, iov, count = parts
    memory = bytearray(_CONTROL) + control
    memory[_NAME : _NAME + len(name)] = name
    pin, place, _ = _memory.writable(memory)
    pointers = place + _NAME if namelen else 0, place + _CONTROL if control else 0
    fields = pointers[0], namelen, iov, count, pointers[1], len(control), 0
    _MSGHDR.pack_into(memory, 0, *fields)
    return pin, place


def sendmsg(
    buffers: "Iterable[Buffer]", ancillary: object, address: Address | None
) -> tuple[object, int]:
    """Pin a message to be sent: (pins, the address of its struct msghdr)."""
    parts = _memory.iovecs(buffers, write=False)
    name = b"" if address is None else encode_sockaddr(address)
    pin, place = _msghdr(parts, name, len(name), encode_control(ancillary))
    return (pin, parts), place


def fixed_parts(
    buffers: "Iterable[Buffer | FixedBuffer]", buf_index: int | None
) -> "tuple[tuple[Buffer, ...], int]":
    """Buffers that lie in one registered buffer: (their memory, its index)."""
    if not isinstance(buffers, tuple):
        raise TypeError(f"buffers must be a sequence of buffers, not one {type(buffers).__name__}")
    found = {part.buf_index for part in buffers if isinstance(part, FixedBuffer)}
    if buf_index is not None:
        found.add(buf_index)
    if len(found) > 1:
        raise ValueError(f"all buffers must lie in one registered buffer, not in {sorted(found)}")
    if not found:
        raise TypeError(
            "which registered buffer are they in? Give buf_index, or FixedBuffers, as"
            " Ring.register_buffers() returns them"
        )
    views = tuple(part.view if isinstance(part, FixedBuffer) else part for part in buffers)
    return views, found.pop()


class MessageRoom:
    """
    What the kernel writes of a message besides its data: msghdr, address, control data.

    Belongs to one operation in flight; the decoded message is the caller's.
    """

    __slots__ = ("_parts", "_pin", "address")

    def __init__(self, parts: tuple[object, int, int], ancbufsize: int, *, is_named: bool) -> None:
        """Take what `iovecs` or `provided` gave, and how much control data there may be."""
        control = bytes(check_range("ancbufsize", ancbufsize, 0, CONTROL_MAX))
        self._parts = parts
        self._pin, self.address = _msghdr(parts, b"", SOCKADDR_MAX if is_named else 0, control)

    def decode(self, length: int, lease: Lease | None = None) -> Message:
        """The message that the kernel wrote, which has so many bytes of data."""
        memory = _memory.bytes_of(self._pin)
        _, namelen, _, _, _, controllen, msg_flags = _MSGHDR.unpack_from(memory)
        address = decode_sockaddr(memory[_NAME : _NAME + min(namelen, SOCKADDR_MAX)])
        control = parse_control(memory[_CONTROL : _CONTROL + controllen])
        msg_flags &= ~_MSG_CMSG_CLOEXEC  # which the kernel gives back as it got it
        payload = None if lease is None else lease.view
        return Message(length, control, msg_flags, address, payload, lease)


def provided(length: int) -> tuple[object, int, int]:
    """Pin the array that says how much of a provided buffer may be filled; 0 is all of it."""
    if not check_range("length", length, 0, UINT32_MAX):
        return None, 0, 0
    pin, place, _ = _memory.readable(_IOVEC.pack(0, length))
    return pin, place, 1


def multishot(namelen: int, ancbufsize: int) -> tuple[object, int]:
    """Pin a struct msghdr that only says how much room each message has: (pin, its address)."""
    check_range("namelen", namelen, 0, SOCKADDR_MAX)
    check_range("ancbufsize", ancbufsize, 0, CONTROL_MAX)
    pin, place, _ = _memory.readable(_MSGHDR.pack(0, namelen, 0, 0, 0, ancbufsize, 0))
    return pin, place


def decode_multishot(lease: Lease, namelen: int, ancbufsize: int) -> Message:
    """
    The message that lies in a provided buffer behind its header, address and control data.

    Raises:
        ValueError: the buffer is too short to have these.
    """
    view = lease.view
    name = _RECVMSG_OUT.size
    control = name + namelen
    payload = control + ancbufsize
    if len(view) < payload:
        raise ValueError(
            f"the buffer has {len(view)} bytes, and the header, the address and the control data"
            f" alone take {payload}: it is not what this operation received"
        )
    filled, controllen, length, msg_flags = _RECVMSG_OUT.unpack_from(view)
    return Message(
        length,
        parse_control(view[control : control + min(controllen, ancbufsize)]),
        msg_flags & ~_MSG_CMSG_CLOEXEC,
        decode_sockaddr(bytes(view[name : name + min(filled, namelen)])),
        view[payload:],
        lease,
    )


def checked_flags(msg_flags: int) -> int:
    """Refuse the flag that makes the kernel write its structures for 32-bit processes."""
    exact = check_range("msg_flags", msg_flags, 0, UINT32_MAX)
    if exact & _MSG_CMSG_COMPAT:
        raise ValueError("msg_flags must not have MSG_CMSG_COMPAT (0x80000000)")
    return exact
