"""Operations on the ring itself: nothing at all, and cancelling."""

import attrs

from uring.flags import CancelFlags, Opcode
from uring.operations._base import Operation, operation
from uring.operations._targets import Targeting

__all__ = ["AsyncCancel", "Nop"]


@operation
class Nop(Operation):
    """
    Do nothing, and complete: for tests, for measurements, and to wake a thread that waits.

    Completion: res is 0.

    Kernel: 5.1. liburing: io_uring_prep_nop(3).
    """

    opcode = Opcode.NOP

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(), None


@operation
class AsyncCancel(Targeting):
    """
    Cancel an operation in flight by its user_data.

    The target's own completion still comes: with ECANCELED, or with its result if it was faster.
    Its memory is pinned until then.

    Args:
        target: the user_data of the operation to cancel.
        all: cancel every operation with this user_data, not only the first found (kernel 5.19).

    Completion: res is 0, or with `all` how many were found; ENOENT when there was none, EALREADY
        when the target is running and may or may not be interrupted.

    Kernel: 5.5. liburing: io_uring_prep_cancel64(3).
    """

    opcode = Opcode.ASYNC_CANCEL

    all: bool = attrs.field(default=False, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        flags = CancelFlags.ALL if self.all else 0
        return self._pack(addr=self.target, op_flags=flags), None
