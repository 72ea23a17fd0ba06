"""Cancelling from outside the queues: what a ring is asked for, and how closing one does it."""

import errno
import struct
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring._checks import check_range
from uring.flags import CancelFlags, Opcode, SQEFlags
from uring.sqe import UINT64_MAX, FileLike, file_field

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


Choice = tuple[int, int, CancelFlags, int]
"""What is to be cancelled: (user_data, descriptor, flags, opcode)."""


def chosen(
    target: int | None, fd: FileLike | None, opcode: Opcode | None, *, any: bool, all: bool
) -> Choice:
    """Check what is to be cancelled."""
    if any and not (target is fd is opcode is None):
        raise ValueError("any=True means whatever is in flight: give it alone")
    if target is fd is opcode is None and not any:
        raise ValueError("what is to be cancelled? Give a target, fd, target_opcode, or any=True")
    flags = CancelFlags.ANY if any else CancelFlags(0)
    if all:
        flags |= CancelFlags.ALL
    if target is not None:
        check_range("target", target, 0, UINT64_MAX)
        if not (fd is opcode is None):
            flags |= CancelFlags.USERDATA
    number = -1
    if fd is not None:
        number, sqe_flags = file_field(fd)
        check_range("fd", number, 0, 2**31 - 1)
        flags |= CancelFlags.FD
        if sqe_flags & SQEFlags.FIXED_FILE:
            flags |= CancelFlags.FD_FIXED
    if opcode is not None:
        check_range("target_opcode", opcode, 0, 255)
        flags |= CancelFlags.OP
    return target or 0, number, flags, opcode or 0


def cancel_argument(choice: Choice, wait_ns: int) -> "CData":
    """Encode a REGISTER_SYNC_CANCEL that waits for `wait_ns` for what is running."""
    target, fd, flags, opcode = choice
    record = _SYNC_CANCEL.pack(target, fd, flags, *divmod(wait_ns, 1_000_000_000), opcode)
    pin, _, _ = _memory.readable(record)
    return pin
