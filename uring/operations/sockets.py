"""Making, connecting and using sockets."""

import socket
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from uring import _memory
from uring.flags import Opcode
from uring.operations._base import Operation, encode_lent, lent, operation, with_care
from uring.sqe import FileLike

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SEND: Final = int(Opcode.SEND)
_RECV: Final = int(Opcode.RECV)

__all__ = ["Accept", "Connect", "Recv", "Send", "Shutdown", "Socket"]


@operation
class Socket(Operation):
    """
    Create a socket. Equivalent: socket(2).

    Args:
        domain: socket.AF_*.
        type: socket.SOCK_*, with SOCK_NONBLOCK if wanted.
        protocol: 0 for the default of the two.
        cloexec: set SOCK_CLOEXEC, as Python does.

    Completion: res is the new descriptor, for `socket.socket(fileno=...)`; it is the caller's to
        close. One that nobody has copied out when the ring closes is closed with it.

    Kernel: 5.19. liburing: io_uring_prep_socket(3).
    """

    opcode = Opcode.SOCKET

    domain: int = socket.AF_INET
    type: int = socket.SOCK_STREAM
    protocol: int = 0
    cloexec: bool = attrs.field(default=True, kw_only=True)

    _makes_descriptor = True
    _prepared: Literal[False] = with_care()

    def _encode(self) -> tuple[bytes, object]:
        kind = self.type | socket.SOCK_CLOEXEC if self.cloexec else self.type
        return self._pack(self.domain, off=kind, len=self.protocol), None


@operation
class Accept(Operation):
    """
    Accept one connection from a listening socket. Equivalent: accept4(2).

    Args:
        fd: the listening socket.
        address: whether the peer's address is wanted.
        accept_flags: SOCK_NONBLOCK or 0.
        cloexec: set SOCK_CLOEXEC on the new descriptor, as Python does.

    Lifetime: the room for the address is the ring's, until the result has been read.
    Completion: res is the new descriptor, for `socket.socket(fileno=...)`; it is the caller's to
        close. `result()` is the descriptor, or (descriptor, address) when the address was asked
        for; the address is None when the operation shared its user_data. A descriptor that nobody
        has copied out when the ring closes is closed with it.

    Kernel: 5.5. liburing: io_uring_prep_accept(3).
    """

    opcode = Opcode.ACCEPT

    fd: FileLike
    address: bool = attrs.field(default=False, kw_only=True)
    accept_flags: int = attrs.field(default=0, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)

    _makes_descriptor = True
    _prepared: Literal[False] = with_care()
    _keeps_memory = True

    def _encode(self) -> tuple[bytes, object]:
        flags = self.accept_flags | socket.SOCK_CLOEXEC if self.cloexec else self.accept_flags
        if not self.address:
            return self._pack(self.fd, op_flags=flags), None
        room = _memory.SockaddrRoom()
        encoded = self._pack(self.fd, addr=room.address, off=room.length_address, op_flags=flags)
        return encoded, room

    def _result(self, res: int, memory: object, _flags: int) -> object:
        if not self.address:
            return res
        # Without the room when it shared its user_data: which one it was cannot be told.
        return res, memory.decode() if isinstance(memory, _memory.SockaddrRoom) else None


@operation
class Connect(Operation):
    """
    Connect a socket. Equivalent: connect(2).

    Args:
        fd: the socket.
        address: as the socket module has it, but with numeric hosts only (a name takes a
            blocking look-up): (host, port) for AF_INET, (host, port, flowinfo, scope_id) or
            (host, port) with a colon in the host for AF_INET6, a path for AF_UNIX, with a leading
            null byte for an abstract one.

    Lifetime: the address is copied and held until the completion.
    Completion: res is 0.

    Kernel: 5.5. liburing: io_uring_prep_connect(3).
    """

    opcode = Opcode.CONNECT

    fd: FileLike
    address: _memory.Address

    def _encode(self) -> tuple[bytes, object]:
        pin, address, length = _memory.sockaddr(self.address)
        return self._pack(self.fd, addr=address, off=length), pin


@operation
class Send(Operation):
    """
    Send a buffer on a connected socket. Equivalent: send(2); never raises SIGPIPE.

    Args:
        fd: the socket.
        buffer: readable memory, at most 2**32 - 1 bytes.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until all is sent.

    Lifetime: the buffer is pinned until the completion.
    Completion: res is the number of bytes sent, which may be fewer.

    Kernel: 5.6. liburing: io_uring_prep_send(3).
    """

    opcode = Opcode.SEND

    fd: FileLike
    buffer: "Buffer" = lent()
    msg_flags: int = 0

    def _encode(self: Any) -> tuple[bytes, object]:
        return encode_lent(self, _SEND, self._buffer, False, 0, self._msg_flags)  # noqa: FBT003 - hot


@operation
class Recv(Operation):
    """
    Receive from a connected socket into a buffer. Equivalent: recv(2).

    Args:
        fd: the socket.
        buffer: writable memory, at most 2**32 - 1 bytes.
        msg_flags: socket.MSG_*; with MSG_WAITALL the kernel goes on until the buffer is full.

    Lifetime: the buffer is pinned until the completion.
    Completion: res is the number of bytes received; 0 when the peer has shut down.

    Kernel: 5.6. liburing: io_uring_prep_recv(3).
    """

    opcode = Opcode.RECV

    fd: FileLike
    buffer: "Buffer" = lent()
    msg_flags: int = 0

    def _encode(self: Any) -> tuple[bytes, object]:
        return encode_lent(self, _RECV, self._buffer, True, 0, self._msg_flags)  # noqa: FBT003 - hot


@operation
class Shutdown(Operation):
    """
    Shut down one or both directions of a connection. Equivalent: shutdown(2).

    Args:
        fd: the socket.
        how: socket.SHUT_RD, SHUT_WR or SHUT_RDWR.

    Completion: res is 0.

    Kernel: 5.11. liburing: io_uring_prep_shutdown(3).
    """

    opcode = Opcode.SHUTDOWN

    fd: FileLike
    how: int

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, len=self.how), None
