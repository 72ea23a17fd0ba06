"""Waiting until descriptors are ready: one by one, and through an epoll instance."""

import select
import sys
from enum import IntEnum

import attrs

from uring import _structures
from uring._checks import check_range
from uring.flags import Opcode, PollFlags
from uring.operations._base import Operation, held, operation, ordinary
from uring.operations._targets import Targeting
from uring.sqe import UINT32_MAX, UINT64_MAX, FileLike, HasFileno

__all__ = [
    "EpollCtl",
    "EpollOp",
    "EpollWait",
    "PollAdd",
    "PollMultishot",
    "PollRemove",
    "PollUpdate",
]


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
class PollMultishot(Operation):
    """
    Tell each time that a file becomes ready, until it is removed. Like epoll(7) with EPOLLET.

    It tells of changes: a file that stays ready is not told of again, and several changes may be
    told of at once. Files that cannot be waited for, such as regular ones, complete once.

    Args:
        fd: the file.
        events: select.POLL* bits to wait for; POLLERR and POLLHUP are always included.
        level: tell of readiness, not of changes to it. Kernels from 6.0 define the flag
            (ADD_LEVEL), and 6.18 answers EINVAL.

    Completion: res is the bits that are set, each time with MORE; without MORE it has ended: with
        ECANCELED after `PollRemove`, or with bits, when the completion queue had overflowed: queue
        it again.

    Kernel: 5.1; multishot 5.13. liburing: io_uring_prep_poll_multishot(3).
    """

    opcode = Opcode.POLL_ADD

    fd: FileLike
    events: int = select.POLLIN
    level: bool = attrs.field(default=False, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        flags = PollFlags.ADD_MULTI | (PollFlags.ADD_LEVEL if self.level else PollFlags(0))
        return self._pack(self.fd, len=flags, op_flags=_poll32(self.events)), None


@operation
class PollRemove(Targeting):
    """
    End a `PollAdd` or `PollMultishot` that is in flight; it completes with ECANCELED.

    Args:
        target: the user_data of the poll.

    Completion: res is 0; ENOENT when no such poll is in flight, EALREADY when it is completing.

    Kernel: 5.1. liburing: io_uring_prep_poll_remove(3).
    """

    opcode = Opcode.POLL_REMOVE


@operation
class PollUpdate(Targeting):
    """
    Change what a `PollAdd` or `PollMultishot` in flight waits for, or the number it goes by.

    It goes on as the kind that it is; if it is ready for the new events, it completes at once.

    Args:
        target: the user_data of the poll.
        events: the select.POLL* bits to wait for from now on; None leaves them.
        new_user_data: the user_data of its completions from now on; None leaves it. It must not be
            in use, and neither it nor `target` can be shared with others until the poll has ended.
        multishot: set ADD_MULTI. 6.18 takes it, but a poll stays what it is.

    Completion: res is 0; ENOENT when no such poll is in flight, EALREADY when it is completing, and
        then nothing is changed.

    Kernel: 5.1; updates 5.13. liburing: io_uring_prep_poll_update(3).
    """

    opcode = Opcode.POLL_REMOVE

    events: int | None = attrs.field(default=None, kw_only=True)
    new_user_data: int | None = attrs.field(default=None, kw_only=True)
    multishot: bool = attrs.field(default=False, kw_only=True)

    _reaches_out = True

    def _renaming(self) -> tuple[int, int] | None:
        return None if self.new_user_data is None else (self.target, self.new_user_data)

    def _encode(self) -> tuple[bytes, object]:
        flags = PollFlags(0)
        if self.events is not None:
            flags |= PollFlags.UPDATE_EVENTS
        if self.new_user_data is not None:
            flags |= PollFlags.UPDATE_USER_DATA
        if not flags:
            raise ValueError("give events or new_user_data: without both it would be a PollRemove")
        if self.multishot:
            flags |= PollFlags.ADD_MULTI
        events = 0 if self.events is None else _poll32(self.events)
        off = 0 if self.new_user_data is None else self.new_user_data
        return self._pack(off=off, addr=self.target, len=flags, op_flags=events), None


# ---- epoll ----


class EpollOp(IntEnum):
    """
    What `EpollCtl` does to an epoll instance.

    Source: EPOLL_CTL_* in linux/eventpoll.h.
    """

    ADD = 1
    DEL = 2
    MOD = 3


@operation
class EpollCtl(Operation):
    """
    Change what an epoll instance watches. Equivalent: epoll_ctl(2).

    Args:
        epfd: the epoll instance, such as a select.epoll; not a registered file.
        op: `EpollOp`: ADD, MOD or DEL.
        fd: the file to watch, or no longer; not a registered file.
        events: select.EPOLL* bits.
        data: a number of 64 bits that its events carry; None is the number of `fd`, which is what
            select.epoll goes by.

    Lifetime: the event is copied and held until the completion, the objects as well.
    Completion: res is 0; EEXIST when it is watched already, ENOENT when it is not, EPERM when it
        cannot be waited for, as a regular file.

    Kernel: 5.6. liburing: io_uring_prep_epoll_ctl(3).
    """

    opcode = Opcode.EPOLL_CTL

    epfd: int | HasFileno
    op: EpollOp = attrs.field(kw_only=True)
    fd: int | HasFileno = attrs.field(kw_only=True)
    events: int = attrs.field(default=0, kw_only=True)
    data: int | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        epfd, fd = ordinary("epfd", self.epfd), ordinary("fd", self.fd)
        fd, op = check_range("fd", fd, 0, 2**31 - 1), check_range("op", self.op, 0, 2**31 - 1)
        if op == EpollOp.DEL:  # takes no event
            return self._pack(epfd, off=fd, len=op), held(self.epfd, self.fd)
        events = check_range("events", self.events, 0, UINT32_MAX)
        data = fd if self.data is None else check_range("data", self.data, 0, UINT64_MAX)
        pin, address = _structures.epoll_event(events, data)
        return self._pack(epfd, off=fd, addr=address, len=op), pin


@operation
class EpollWait(Operation):
    """
    Wait for events of an epoll instance. Equivalent: epoll_wait(2), without a timeout.

    Args:
        fd: the epoll instance, such as a select.epoll.
        maxevents: how many events at most; each takes 12 or 16 bytes.

    Lifetime: the room for the events is the ring's, until the result has been read.
    Completion: res is how many events there are; `result()` is a list of so many (data, events), or
        None when the operation shared its user_data. Of what was registered with select.epoll, only
        the lower 32 bits of data mean something: the descriptor.

    Kernel: 6.15. liburing: io_uring_prep_epoll_wait(3).
    """

    opcode = Opcode.EPOLL_WAIT

    fd: FileLike
    maxevents: int = 64

    _keeps_memory = True

    def _encode(self) -> tuple[bytes, object]:
        count = check_range("maxevents", self.maxevents, 1, _structures.EPOLL_EVENTS_MAX)
        room = _structures.EpollEvents(count)
        return self._pack(self.fd, addr=room.address, len=count), room

    def _result(self, res: int, memory: object, _flags: int) -> list[tuple[int, int]] | None:
        return memory.decode(res) if isinstance(memory, _structures.EpollEvents) else None
