"""What URING_CMD does on a socket: options, queues, names, timestamps."""

import socket
import struct
import sys
from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _memory, _sockaddr
from uring._checks import check_range
from uring.flags import TIMESTAMP_TYPE_SHIFT, CQEFlags, Opcode, SocketCommand, SQEFlags
from uring.operations._base import Operation, operation
from uring.sqe import UINT32_MAX, FileLike

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Getsockname", "Getsockopt", "Setsockopt", "Siocinq", "Siocoutq", "TxTimestamp"]

_SO_GET_FILTER: Final = 26  # asm-generic/socket.h
_SO_PEERPIDFD: Final = 77
_BPF_INSTRUCTION: Final = 8
_INT_MIN: Final = -(2**31)
_INT_MAX: Final = 2**31 - 1
_INT: Final = struct.Struct("=i")


def _halves(first: int, second: int = 0) -> int:
    """Two 32-bit fields as the one of 64 bits that they lie in."""
    return int.from_bytes(
        struct.pack("=II", first & 0xFFFFFFFF, second & 0xFFFFFFFF), sys.byteorder
    )


def _exact(number: Any) -> Any:
    """
    An int that is no more than that: it is compared, and a subclass may lie.

    What is none is taken as it is, and refused when it is encoded.
    """
    return number if isinstance(number, bool) or not isinstance(number, int) else index(number)


def _own_value(value: Any) -> Any:
    """Copy a buffer; what is none is taken as it is, and refused when it is encoded."""
    try:
        return bytes(memoryview(value))
    except (TypeError, ValueError, BufferError):
        return _exact(value)


def _option(level: object, optname: object) -> int:
    """``sqe->addr``: which option it is, as two integers."""
    numbers = {"level": level, "optname": optname}
    checked = [check_range(name, each, _INT_MIN, _INT_MAX) for name, each in numbers.items()]
    return _halves(*checked)


class _OptionRoom:
    """Room for an option that the kernel writes; belongs to one operation in flight."""

    __slots__ = ("_pin", "address")

    def __init__(self, size: int) -> None:
        self._pin, self.address, _ = _memory.writable(bytearray(size))

    def decode(self, length: int) -> bytes:
        return _memory.bytes_of(self._pin, 0, length)


@operation
class Getsockopt(Operation):
    """
    Read a socket option. Equivalent: getsockopt(2).

    Args:
        fd: the socket.
        level: socket.SOL_SOCKET; the kernel (6.18) has no other here and gives EOPNOTSUPP.
        optname: socket.SO_*.
        optlen: how many bytes there is room for; 4, an int, for most options. SO_GET_FILTER counts
            instructions of 8 bytes.

    Lifetime: the room for the value is the ring's, until the result has been read.
    Completion: res is the length of the value, of SO_GET_FILTER in instructions; `result()` is the
        value as bytes, None when the operation shared its user_data. The descriptor that
        SO_PEERPIDFD makes is the caller's to close; one that nobody has copied out when the ring
        closes is closed with it, so this option cannot share its user_data, nor skip its
        completion. ENOPROTOOPT when there is no such option.

    Kernel: 5.19; on sockets 6.7. liburing: io_uring_prep_cmd_sock(3).
    """

    opcode = Opcode.URING_CMD

    fd: FileLike
    level: int = attrs.field(kw_only=True, converter=_exact)
    optname: int = attrs.field(kw_only=True, converter=_exact)
    optlen: int = attrs.field(default=4, kw_only=True)

    _keeps_memory = True

    @property
    def _is_sole(self) -> bool:  # type: ignore[override]  # of the class, for the others
        return (self.level, self.optname) == (socket.SOL_SOCKET, _SO_PEERPIDFD)

    @property
    def _unit(self) -> int:
        # The kernel checks optlen of this one in instructions, and writes eight times as much.
        is_filter = (self.level, self.optname) == (socket.SOL_SOCKET, _SO_GET_FILTER)
        return _BPF_INSTRUCTION if is_filter else 1

    def _encode(self) -> tuple[bytes, object]:
        option = _option(self.level, self.optname)
        optlen = check_range("optlen", self.optlen, 0, _INT_MAX)
        if self._is_sole and optlen < _INT.size:  # the kernel makes it, and tells a part of it
            raise ValueError(f"SO_PEERPIDFD needs optlen {_INT.size}, or nobody could close it")
        if self._is_sole and self.flags & SQEFlags.CQE_SKIP_SUCCESS:
            raise ValueError(
                "with CQE_SKIP_SUCCESS nobody would learn of the new descriptor, so nobody could"
                " close it"
            )
        room = _OptionRoom(optlen * self._unit)
        fields = _halves(SocketCommand.GETSOCKOPT), option
        return self._pack(self.fd, *fields, splice_fd_in=optlen, addr3=room.address), room

    def _result(self, res: int, memory: object, _flags: int) -> bytes | None:
        return memory.decode(res * self._unit) if isinstance(memory, _OptionRoom) else None

    def _descriptors(self, res: int, memory: object, flags: int) -> Iterable[int]:
        value = self._result(res, memory, flags)
        if not self._is_sole or value is None or len(value) != _INT.size:
            return ()
        return _INT.unpack(value)


@operation
class Setsockopt(Operation):
    """
    Set a socket option. Equivalent: setsockopt(2).

    Args:
        fd: the socket.
        level: socket.SOL_SOCKET, IPPROTO_TCP, IPPROTO_IPV6, ...
        optname: socket.SO_*, TCP_*, IPV6_*, ...
        value: an int, in -2**31..2**31 - 1, or the bytes of another type. Where these hold
            addresses, as for SO_ATTACH_FILTER, what is there is yours to keep until the completion.

    Lifetime: the value is copied when this is made, and held until the completion.
    Completion: res is 0; ENOPROTOOPT when there is no such option.

    Kernel: 5.19; on sockets 6.7. liburing: io_uring_prep_cmd_sock(3).
    """

    opcode = Opcode.URING_CMD

    fd: FileLike
    level: int = attrs.field(kw_only=True, converter=_exact)
    optname: int = attrs.field(kw_only=True, converter=_exact)
    value: "int | Buffer" = attrs.field(kw_only=True, converter=_own_value)

    def _encode(self) -> tuple[bytes, object]:
        option = _option(self.level, self.optname)
        value = self.value
        if isinstance(value, int):
            value = _INT.pack(check_range("value", int(value), _INT_MIN, _INT_MAX))
        if not isinstance(value, bytes):
            raise TypeError(f"value must be an int or a bytes-like object, not {value!r}")
        pin, address, length = _memory.readable(value)
        fields = _halves(SocketCommand.SETSOCKOPT), option
        return self._pack(self.fd, *fields, splice_fd_in=length, addr3=address), pin


@operation
class Siocinq(Operation):
    """
    Ask how much a socket has received that nobody has read. Equivalent: ioctl(2) with SIOCINQ.

    Args:
        fd: a TCP or UDP socket; on others, AF_UNIX among them, EOPNOTSUPP.

    Completion: res is the number of bytes; of UDP, of the next datagram.

    Kernel: 5.19; on sockets 6.7. liburing: io_uring_prep_cmd_sock(3).
    """

    opcode = Opcode.URING_CMD

    fd: FileLike

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, off=_halves(SocketCommand.SIOCINQ)), None


@operation
class Siocoutq(Operation):
    """
    Ask how much a socket has still to send. Equivalent: ioctl(2) with SIOCOUTQ.

    Args:
        fd: a TCP or UDP socket; on others, AF_UNIX among them, EOPNOTSUPP.

    Completion: res is the number of bytes that were sent and not acknowledged yet.

    Kernel: 5.19; on sockets 6.7. liburing: io_uring_prep_cmd_sock(3).
    """

    opcode = Opcode.URING_CMD

    fd: FileLike

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, off=_halves(SocketCommand.SIOCOUTQ)), None


@attrs.frozen
class TransmitTime:
    """
    When something that a socket sent has left, as `TxTimestamp` tells.

    Source: io_uring_get_cqe_tx_timestamp() in linux/io_uring.h, socket(7) SO_TIMESTAMPING.
    """

    key: int
    """Which of what was sent: SOF_TIMESTAMPING_OPT_ID counts them from 0."""
    time_ns: int
    """The time, in nanoseconds of the clock that took it: the system's or the card's."""
    kind: int
    """Where it was taken: 0 SCM_TSTAMP_SND, the driver; 1 SCM_TSTAMP_SCHED; 2 SCM_TSTAMP_ACK."""
    is_hardware: bool
    """Whether the card took it."""


@operation
class TxTimestamp(Operation):
    """
    Learn again and again when something that a socket sent has left.

    The socket must have SO_TIMESTAMPING with SOF_TIMESTAMPING_OPT_TSONLY; the ring CQE32.

    Args:
        fd: the socket.

    Completion: res is the key of what was sent, which SOF_TIMESTAMPING_OPT_ID counts, with
        `CQE.more`; `result()` is a `TransmitTime`. Goes on until it is cancelled. EINVAL without
        CQE32.

    Kernel: 5.19; timestamps 6.17. liburing: io_uring_prep_cmd_sock(3).
    """

    opcode = Opcode.URING_CMD

    fd: FileLike

    _is_multishot = True
    _reads_big_cqe = True

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, off=_halves(SocketCommand.TX_TIMESTAMP)), None

    def _big_result(self, res: int, flags: int, words: tuple[int, int] | None) -> TransmitTime:
        seconds, nanoseconds = words or (0, 0)
        return TransmitTime(
            key=res & UINT32_MAX,
            time_ns=seconds * 1_000_000_000 + nanoseconds,
            kind=flags >> TIMESTAMP_TYPE_SHIFT & 3,
            is_hardware=bool(flags & CQEFlags.TSTAMP_HW),
        )


@operation
class Getsockname(Operation):
    """
    Ask for the address of a socket, or of its peer. Equivalent: getsockname(2), getpeername(2).

    Args:
        fd: the socket.
        peer: ask for that of the peer.

    Lifetime: the room for the address is the ring's, until the result has been read.
    Completion: res is 0; `result()` is the address, as the socket module has it, or a `Sockaddr`;
        None when the operation shared its user_data. EOPNOTSUPP before 6.19.

    Kernel: 5.19; names 6.19. liburing: io_uring_prep_cmd_getsockname(3).
    """

    opcode = Opcode.URING_CMD

    fd: FileLike
    peer: bool = attrs.field(default=False, kw_only=True)

    _keeps_memory = True

    def _encode(self) -> tuple[bytes, object]:
        room = _sockaddr.SockaddrRoom()
        name = _halves(SocketCommand.GETSOCKNAME)
        addresses = {"addr": room.address, "addr3": room.length_address}
        return self._pack(self.fd, off=name, splice_fd_in=bool(self.peer), **addresses), room

    def _result(self, _res: int, memory: object, _flags: int) -> _sockaddr.Address | None:
        return memory.decode() if isinstance(memory, _sockaddr.SockaddrRoom) else None
