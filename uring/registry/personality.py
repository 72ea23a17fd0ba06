"""Personalities: the credentials of a moment, for operations to run with."""

from uring._ffi import ffi
from uring.flags import RegisterOpcode
from uring.registry._base import GUARD, Registrar, Registration


class Personality(Registration):
    """
    The credentials that a thread had when it called `Ring.register_personality()`.

    An operation with `personality=personality.id` runs with them. Leaving a `with` block, or
    `close()`, unregisters them; what is in flight keeps them.

    Kernel: 5.6. liburing: io_uring_register_personality(3).
    """

    __slots__ = ("_is_over", "id")

    def __init__(self, ring: Registrar, id: int) -> None:
        super().__init__(ring)
        self.id = id
        """What operations take as `personality`; from 1."""
        self._is_over = False

    def __repr__(self) -> str:
        return f"<{self._state()}Personality {self.id}>"

    def _is_current(self) -> bool:
        return not self._is_over

    def _unregister(self) -> None:
        with GUARD.lock:
            if not self._is_over:
                self._ring._register(RegisterOpcode.UNREGISTER_PERSONALITY, ffi.NULL, self.id)
                self._is_over = True
