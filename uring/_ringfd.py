"""
The ring as a registered file of a thread, which saves the kernel a look-up each time it is entered.

The kernel keeps a table of such rings for each thread, and what is in it holds the ring open. So
one thread has a ring registered at a time, and the shim takes the index in that thread alone.
"""

import io
import threading
import weakref
from typing import TYPE_CHECKING

from uring._core import Core, lives
from uring._ffi import lib
from uring.errors import WrongThreadError
from uring.flags import RegisterOpcode, SetupFlags

if TYPE_CHECKING:
    from collections.abc import Callable


class RingFdSide(Core):
    """Registering the ring's own descriptor."""

    # Of the class until it is set: see Core.
    _registrar: "tuple[int, Callable[[], threading.Thread | None]] | None" = None
    """The thread that has the ring registered, by its native id and weakly; or None."""

    def register_ring_fd(self) -> None:
        """
        Register the ring with the calling thread, whose system calls then take it by its index.

        That saves looking the descriptor up: 50 ns of each system call, where one NOP takes 800.
        Other threads go on as before. One thread at a time can have a ring registered, and
        a thread 16 rings. Closing the ring undoes it; but if another thread closes it, the kernel
        keeps what is left of the ring until this one ends.

        Raises:
            RegisterError: EBUSY, this thread has it registered already, or has 16 rings registered;
                EINVAL, the kernel is too old.
            WrongThreadError: another thread has it registered -> unregister it there.
            UnsupportedOperation: the ring has REGISTERED_FD_ONLY, and so is registered for good.

        Kernel: 5.18. liburing: io_uring_register_ring_fd(3).
        """
        with self._lock:  # or two threads could both find that nobody has
            self._check_ring_fd()
            result = lib.uring_register_fd(self._shim)
            if result < 0:
                detail = RegisterOpcode.REGISTER_RING_FDS.name
                self._fail("io_uring_register", result, detail=detail)
            self._registrar = threading.get_native_id(), weakref.ref(threading.current_thread())

    def unregister_ring_fd(self) -> None:
        """
        Undo `register_ring_fd()`; in the thread that called it.

        Raises:
            RegisterError: ENXIO, it is not registered.
            WrongThreadError: another thread has it registered -> unregister it there.
            UnsupportedOperation: as for `register_ring_fd()`.

        Kernel: 5.18. liburing: io_uring_unregister_ring_fd(3).
        """
        with self._lock:
            self._check_ring_fd()
            result = lib.uring_unregister_fd(self._shim)
            if result < 0:
                detail = RegisterOpcode.UNREGISTER_RING_FDS.name
                self._fail("io_uring_register", result, detail=detail)
            self._registrar = None

    def _check_ring_fd(self) -> None:
        self._check_use()
        if self._params.flags & SetupFlags.REGISTERED_FD_ONLY:
            raise io.UnsupportedOperation(
                "a ring with REGISTERED_FD_ONLY is registered from setup to close"
            )
        if self._registrar is None:
            return
        registrar, thread = self._registrar
        if registrar != threading.get_native_id() and lives(registrar, thread()):
            raise WrongThreadError(
                f"the thread with native id {registrar} has this ring registered: unregister it"
                " there"
            )
