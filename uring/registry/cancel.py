"""Cancelling from outside the queues, as closing a ring does."""

import errno
import struct
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring.flags import CancelFlags

if TYPE_CHECKING:
    from uring._uring import CData

_SYNC_CANCEL: Final = struct.Struct("=QiIqqB31x")  # struct io_uring_sync_cancel_reg


CANCEL_ANSWERS: Final = frozenset({-errno.ENOENT, -errno.EALREADY, -errno.ETIME, -errno.EINTR})
"""What the kernel answers when it understood, besides how many it found."""


def sync_cancel(number: int) -> "CData":
    """Encode a REGISTER_SYNC_CANCEL of one operation that does not wait for the outcome."""
    pin, _, _ = _memory.readable(_SYNC_CANCEL.pack(number, -1, 0, 0, 0, 0))
    return pin


def sync_cancel_any() -> "CData":
    """Encode a REGISTER_SYNC_CANCEL of everything in flight that does not wait for the outcome."""
    flags = CancelFlags.ANY | CancelFlags.ALL
    pin, _, _ = _memory.readable(_SYNC_CANCEL.pack(0, -1, flags, 0, 0, 0))
    return pin
