"""Operations on a buffer that the kernel takes from a group of provided buffers."""

import operator
import socket
from typing import Any, ClassVar, Final, Literal

from uring._leases import Lease
from uring.flags import SQEFlags
from uring.operations._base import Operation, operation, with_care
from uring.sqe import SQE, FileLike, Group, Queueable, buffer_group

_SELECT: Final = int(SQEFlags.BUFFER_SELECT)


def check_select(op: Queueable, encoded: bytes) -> None:
    """
    Refuse the flag of what takes a buffer from a group on what has memory of its own.

    Raises:
        ValueError: it has it; the kernel would take a buffer, and nobody would give it back.
    """
    if encoded[1] & _SELECT and not op._takes_buffer and not isinstance(op, SQE):
        raise ValueError(
            f"{op!r} has SQEFlags.BUFFER_SELECT, and no group: use the class that has one, such as"
            " ReadSelect, which sets the flag itself"
        )


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
    _prepared: Literal[False] = with_care()

    @property
    def _is_sole(self) -> bool:  # type: ignore[override]  # of the class, for the others
        return not isinstance(self.group, int)  # only it can say whose buffer a completion names

    def _select(self, memory: object = None, **fields: Any) -> tuple[bytes, object]:
        """Encode it, and pin the group and what memory is lent besides."""
        group = self.group
        encoded = self._pack(self.fd, buf_index=buffer_group(group), sqe_flags=_SELECT, **fields)
        if memory is not None:
            return encoded, GroupPin(group, memory)
        return encoded, None if isinstance(group, int) else group


def lease_of(memory: object) -> Lease | None:
    """The buffer that the kernel took, if it did and the ring knows it."""
    if isinstance(memory, GroupPin):
        return memory.lease
    return memory if isinstance(memory, Lease) else None


def received_flags(msg_flags: int, group: Group) -> int:
    """Refuse the flag that makes ``cqe->res`` more than the kernel has put into the buffer."""
    if not isinstance(msg_flags, int):
        raise TypeError(f"msg_flags must be an integer, not {msg_flags!r}")
    msg_flags = operator.index(msg_flags)
    if msg_flags & socket.MSG_TRUNC and not isinstance(group, int):
        raise ValueError(
            "with MSG_TRUNC the result may be more than the buffer has, so nobody could tell which"
            " buffers it is about: use RecvmsgMultishot, whose messages tell both"
        )
    return msg_flags
