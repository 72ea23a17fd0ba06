"""Operations on a buffer that the kernel takes from a group of provided buffers."""

import errno
import socket
from typing import Any, ClassVar, Final

from uring._checks import check_range
from uring._leases import Lease
from uring.flags import CQEFlags
from uring.operations._base import SELECT, Operation, operation
from uring.sqe import UINT32_MAX, FileLike, Filename, Group, buffer_group

_MSG_TRUNC: Final = int(socket.MSG_TRUNC)  # plain integers are combined ten times faster


class GroupPin:
    """
    The pin of an operation that lends memory besides a group of provided buffers.

    What becomes of it when the kernel has taken a buffer is `with_lease()`.
    """

    __slots__ = ("group", "lease", "memory")

    def __init__(self, group: Group, memory: object, lease: Lease | None = None) -> None:
        self.group = group
        self.memory = memory
        self.lease = lease

    def with_lease(self, lease: Lease) -> "GroupPin":
        """The same with the buffer that was taken."""
        return GroupPin(self.group, self.memory, lease)


@operation
class Selecting(Operation):
    """An operation that takes a buffer from `group` when it has something to do with it."""

    fd: FileLike
    group: Group

    _keeps_memory: ClassVar[bool] = True
    _takes_buffer: ClassVar[bool] = True

    @property
    def _is_sole(self) -> bool:  # type: ignore[override]  # of the class, for the others
        return not isinstance(self.group, int)  # only it can say whose buffer a completion names

    def _error_context(self, number: int) -> tuple[str, Filename]:
        note, filename = super()._error_context(number)
        if number == errno.ENOBUFS:
            note += ": the group has no buffer left, or there is no such group"
        if number == errno.ENOENT:
            note += ": there is no such group"
        return note, filename

    def _select(self, memory: object = None, **fields: Any) -> tuple[bytes, object]:
        """Encode it, and pin the group and what memory is lent besides."""
        group = self.group
        encoded = self._pack(self.fd, buf_index=buffer_group(group), sqe_flags=SELECT, **fields)
        if memory is not None:
            return encoded, GroupPin(group, memory)
        return encoded, None if isinstance(group, int) else group


class Filling(Selecting):
    """An operation that fills the buffer that it takes, and whose result is that buffer."""

    __slots__ = ()

    def _result(self, res: int, memory: object, flags: int) -> Lease | int:
        """Return what came; an empty lease at the end; the number when the group is not known."""
        if isinstance(memory, Lease):
            return memory
        is_end = res == 0 and not flags & CQEFlags.BUFFER
        return Lease() if is_end and memory is not None else res


def lease_of(memory: object) -> Lease | None:
    """The buffer that the kernel took, if it did and the ring knows it."""
    if isinstance(memory, GroupPin):
        return memory.lease
    return memory if isinstance(memory, Lease) else None


def received_flags(msg_flags: int, group: Group) -> int:
    """Refuse the flag that makes ``cqe->res`` more than the kernel has put into the buffer."""
    exact = check_range("msg_flags", msg_flags, 0, UINT32_MAX)
    if exact & _MSG_TRUNC and not isinstance(group, int):
        raise ValueError(
            "with MSG_TRUNC the result may be more than the buffer has, so nobody could tell which"
            " buffers it is about: use RecvmsgMultishot, whose messages tell both"
        )
    return exact
