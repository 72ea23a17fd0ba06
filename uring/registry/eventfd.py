"""A registered eventfd: the kernel adds to it when completions are posted."""

import struct
from typing import TYPE_CHECKING

from uring import _memory
from uring._ffi import ffi
from uring.flags import RegisterOpcode
from uring.registry._base import GUARD, Registrar, Registration
from uring.sqe import HasFileno, descriptor

if TYPE_CHECKING:
    from uring._uring import CData


class RegisteredEventfd(Registration):
    """
    An eventfd that is told of completions, as `Ring.register_eventfd()` gives it.

    The count is a hint, not a number of completions: several may be told of at once, and one may be
    there that was not told of. So after each reading of it copy out all that is there.

    Kernel: 5.2. liburing: io_uring_register_eventfd(3).
    """

    __slots__ = ("_fd", "_token", "only_async")

    def __init__(
        self, ring: Registrar, fd: int | HasFileno, token: object, *, only_async: bool
    ) -> None:
        super().__init__(ring)
        self._fd = fd
        self._token = token
        self.only_async = only_async
        """Whether it is told only of what worker threads have completed."""

    def fileno(self) -> int:
        """Return the eventfd's descriptor, which is the caller's to close."""
        return descriptor(self._fd)

    def __repr__(self) -> str:
        only = ", only_async=True" if self.only_async else ""
        return f"<{self._state()}RegisteredEventfd {self._fd!r}{only}>"

    def _is_current(self) -> bool:
        return self._ring._held.eventfd is self._token

    def _unregister(self) -> None:
        with GUARD.lock:
            if self._is_current():
                unregister_eventfd(self._ring)


def register_eventfd(
    ring: Registrar, fd: int | HasFileno, *, only_async: bool
) -> RegisteredEventfd:
    """Register an eventfd."""
    opcode = RegisterOpcode.REGISTER_EVENTFD
    if only_async:
        opcode = RegisterOpcode.REGISTER_EVENTFD_ASYNC
    argument = fd_argument(descriptor(fd))
    token = object()
    with GUARD.lock:
        ring._register(opcode, argument, 1)
        ring._held.eventfd = token
    return RegisteredEventfd(ring, fd, token, only_async=only_async)


def fd_argument(fd: int) -> "CData":
    """Encode one descriptor."""
    if not -(2**31) <= fd < 2**31:
        raise ValueError(f"a descriptor is in 0..2**31 - 1, not {fd}")
    pin, _, _ = _memory.readable(struct.pack("=i", fd))
    return pin


def unregister_eventfd(ring: Registrar) -> None:
    """Unregister the eventfd."""
    with GUARD.lock:
        ring._register(RegisterOpcode.UNREGISTER_EVENTFD, ffi.NULL, 0)
        ring._held.eventfd = None
