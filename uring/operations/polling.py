"""Waiting until a descriptor is ready."""

import select
import sys

from uring.flags import Opcode
from uring.operations._base import Operation, operation
from uring.operations._targets import Targeting
from uring.sqe import FileLike

__all__ = ["PollAdd", "PollRemove"]


def _poll32(events: int) -> int:
    """``sqe->poll32_events``: on big-endian machines the kernel wants its halves swapped."""
    if sys.byteorder == "big":
        return events >> 16 & 0xFFFF | (events & 0xFFFF) << 16
    return events


@operation
class PollAdd(Operation):
    """
    Wait once until a file is ready. Equivalent: poll(2) on one descriptor.

    Args:
        fd: the file.
        events: select.POLL* bits to wait for; POLLERR and POLLHUP are always included.

    Completion: res is the bits that are set. `PollRemove` makes it complete with ECANCELED.

    Kernel: 5.1. liburing: io_uring_prep_poll_add(3).
    """

    opcode = Opcode.POLL_ADD

    fd: FileLike
    events: int = select.POLLIN

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, op_flags=_poll32(self.events)), None


@operation
class PollRemove(Targeting):
    """
    End a `PollAdd` that is in flight; it completes with ECANCELED.

    Args:
        target: the user_data of the poll.

    Completion: res is 0; ENOENT when no such poll is in flight, EALREADY when it is completing.

    Kernel: 5.1. liburing: io_uring_prep_poll_remove(3).
    """

    opcode = Opcode.POLL_REMOVE
