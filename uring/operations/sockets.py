"""Making, naming, connecting and closing down sockets."""

import socket
from typing import Final

import attrs

from uring import _sockaddr
from uring._sockaddr import Address
from uring.flags import AcceptFlags, Opcode
from uring.operations._base import MakesFile, Operation, operation
from uring.operations._socket_flags import ACCEPT_FLAGS, NO_ACCEPT, checked
from uring.sqe import AUTO, FileLike, file_index

__all__ = ["Accept", "AcceptMultishot", "Bind", "Connect", "Listen", "Shutdown", "Socket"]

_CLOEXEC: Final = int(socket.SOCK_CLOEXEC)


@operation
class Socket(MakesFile):
    """
    Create a socket. Equivalent: socket(2).

    Args:
        domain: socket.AF_*.
        type: socket.SOCK_*, with SOCK_NONBLOCK if wanted.
        protocol: 0 for the default of the two.
        cloexec: set SOCK_CLOEXEC, as Python does; of no meaning with a slot.
        slot: make a registered file and no descriptor: `Fixed(index)` for this slot, or AUTO for
            a free one.

    Completion: res is the new descriptor, for `socket.socket(fileno=...)`; it is the caller's to
        close. One that nobody has copied out when the ring closes is closed with it. With a slot
        `result()` is the `Fixed`; ENFILE when AUTO finds none free, EINVAL for one out of range;
        without a table, ENFILE for AUTO and ENXIO else.

    Kernel: 5.19. liburing: io_uring_prep_socket(3), io_uring_prep_socket_direct(3).
    """

    opcode = Opcode.SOCKET

    domain: int = socket.AF_INET
    type: int = socket.SOCK_STREAM
    protocol: int = 0
    cloexec: bool = attrs.field(default=True, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        kind = self._with_cloexec("type", _CLOEXEC)
        slot = file_index(self.slot)
        return self._pack(self.domain, off=kind, len=self.protocol, splice_fd_in=slot), None


@operation
class Accept(MakesFile):
    """
    Accept one connection from a listening socket. Equivalent: accept4(2).

    Args:
        fd: the listening socket.
        address: whether the peer's address is wanted.
        accept_flags: SOCK_NONBLOCK or 0.
        ioprio_flags: `AcceptFlags`: DONTWAIT fails with EAGAIN when nobody is waiting, POLL_FIRST
            waits for a connection before it tries.
        cloexec: set SOCK_CLOEXEC on the new descriptor, as Python does; of no meaning with a slot.
        slot: make a registered file and no descriptor: `Fixed(index)` for this slot, or AUTO for
            a free one.

    Lifetime: the room for the address is the ring's, until the result has been read.
    Completion: res is the new descriptor, for `socket.socket(fileno=...)`; it is the caller's to
        close. `result()` is the descriptor (with a slot the `Fixed`), or (descriptor, address)
        when the address was asked for; the address is None when the operation shared its
        user_data. A descriptor that nobody has copied out when the ring closes is closed with it.

    Kernel: 5.5; slots 5.15, AUTO 5.19, DONTWAIT and POLL_FIRST 6.10.
    liburing: io_uring_prep_accept(3), io_uring_prep_accept_direct(3).
    """

    opcode = Opcode.ACCEPT

    fd: FileLike
    address: bool = attrs.field(default=False, kw_only=True)
    accept_flags: int = attrs.field(default=0, kw_only=True)
    ioprio_flags: AcceptFlags = attrs.field(default=NO_ACCEPT, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)

    _keeps_memory = True

    def _encode(self) -> tuple[bytes, object]:
        ioprio = checked(self.ioprio_flags, ACCEPT_FLAGS)
        if not self.address:
            return _accept(self, ioprio), None
        room = _sockaddr.SockaddrRoom()
        return _accept(self, ioprio, room.address, room.length_address), room

    def _result(self, res: int, memory: object, flags: int) -> object:
        made = super()._result(res, memory, flags)
        if not self.address:
            return made
        # Without the room when it shared its user_data: which one it was cannot be told.
        return made, memory.decode() if isinstance(memory, _sockaddr.SockaddrRoom) else None


@operation
class AcceptMultishot(MakesFile):
    """
    Accept connections from a listening socket until it fails or is cancelled.

    There is no `address`: the kernel would write those of all connections to one place. Ask the
    socket, `getpeername()`.

    Args:
        fd: the listening socket.
        accept_flags: SOCK_NONBLOCK or 0, for each.
        ioprio_flags: `AcceptFlags`: DONTWAIT ends it when nobody is waiting any more, with EAGAIN;
            POLL_FIRST waits for a connection before it tries.
        cloexec: set SOCK_CLOEXEC on each new descriptor, as Python does; of no meaning with a slot.
        slot: AUTO makes each a registered file in a free slot; a slot of its own is refused.

    Completion: res is a new descriptor, with `CQE.more`, once for each connection; it is the
        caller's to close. With AUTO `result()` is the `Fixed`. The one without `more` is the last:
        a failure, ECANCELED when it was cancelled, ENFILE (and a connection lost) when AUTO found
        no free slot, or a connection when the completion queue was full: queue it anew.
        A descriptor that nobody has copied out when the ring closes is closed with it.

    Raises:
        TypeError, ValueError: a slot other than AUTO -> leave it out.

    Kernel: 5.5; multishot 5.19. liburing: io_uring_prep_multishot_accept(3),
    io_uring_prep_multishot_accept_direct(3).
    """

    opcode = Opcode.ACCEPT

    fd: FileLike
    accept_flags: int = attrs.field(default=0, kw_only=True)
    ioprio_flags: AcceptFlags = attrs.field(default=NO_ACCEPT, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        if self.slot is not None and self.slot is not AUTO:
            file_index(self.slot)
            raise ValueError(f"each connection needs a slot of its own: AUTO, not {self.slot!r}")
        ioprio = checked(self.ioprio_flags, ACCEPT_FLAGS) | AcceptFlags.MULTISHOT
        return _accept(self, ioprio), None


def _accept(op: Accept | AcceptMultishot, ioprio: int, address: int = 0, length: int = 0) -> bytes:
    flags = op._with_cloexec("accept_flags", _CLOEXEC)
    slot = file_index(op.slot)
    return op._pack(
        op.fd, off=length, addr=address, op_flags=flags, ioprio=ioprio, splice_fd_in=slot
    )


@operation
class Bind(Operation):
    """
    Give a socket its own address. Equivalent: bind(2).

    Args:
        fd: the socket.
        address: as `Connect` has it; port 0 lets the kernel choose, and a path of AF_UNIX is made.

    Lifetime: the address is copied and held until the completion.
    Completion: res is 0; EADDRINUSE when another socket has the address.

    Kernel: 6.11. liburing: io_uring_prep_bind(3).
    """

    opcode = Opcode.BIND

    fd: FileLike
    address: Address

    def _encode(self) -> tuple[bytes, object]:
        pin, address, length = _sockaddr.sockaddr(self.address)
        return self._pack(self.fd, addr=address, off=length), pin


@operation
class Listen(Operation):
    """
    Let a socket accept connections. Equivalent: listen(2).

    Args:
        fd: the socket, which has an address.
        backlog: how many connections may wait to be accepted, at most net.core.somaxconn; 128 as
            Python has it.

    Completion: res is 0.

    Kernel: 6.11. liburing: io_uring_prep_listen(3).
    """

    opcode = Opcode.LISTEN

    fd: FileLike
    backlog: int = 128

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, len=self.backlog), None


@operation
class Connect(Operation):
    """
    Connect a socket. Equivalent: connect(2).

    Args:
        fd: the socket.
        address: as the socket module has it, but with numeric hosts only (a name takes a
            blocking look-up): (host, port) for AF_INET, (host, port, flowinfo, scope_id) or
            (host, port) with a colon in the host for AF_INET6, a path for AF_UNIX, with a leading
            null byte for an abstract one, or a `Sockaddr` for any other family.

    Lifetime: the address is copied and held until the completion.
    Completion: res is 0.

    Kernel: 5.5. liburing: io_uring_prep_connect(3).
    """

    opcode = Opcode.CONNECT

    fd: FileLike
    address: Address

    def _encode(self) -> tuple[bytes, object]:
        pin, address, length = _sockaddr.sockaddr(self.address)
        return self._pack(self.fd, addr=address, off=length), pin


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
