"""What sorts of operations there are, for who awaits them."""

import sys
from typing import Final

from uring import operations
from uring._claims import FIRST_DRAWN
from uring.completions import CQE
from uring.flags import Opcode, PollFlags
from uring.operations import (
    AcceptMultishot,
    FilesAlloc,
    MsgRingFd,
    PollMultishot,
    ReadMultishot,
    RecvBundleMultishot,
    RecvmsgMultishot,
    RecvMultishot,
    RecvZc,
    SendBundle,
    TimeoutMultishot,
    UringCmdMultishot,
)
from uring.sqe import AUTO, SQE, Fixed, Queueable, is_multishot

SEVERAL: Final = frozenset(
    {
        AcceptMultishot,
        PollMultishot,
        ReadMultishot,
        RecvBundleMultishot,
        RecvMultishot,
        RecvZc,
        RecvmsgMultishot,
        SendBundle,
        TimeoutMultishot,
        UringCmdMultishot,
    }
)
"""What completes any number of times."""
COUNTED: Final = frozenset(
    kind
    for kind in vars(operations).values()
    if isinstance(kind, type)
    and issubclass(kind, Queueable)
    and kind._result is Queueable._result
    and kind._makes_descriptor is False
    and kind._descriptors is Queueable._descriptors
    and not (kind._reads_big_cqe or kind._keeps_memory or kind in SEVERAL)
)
"""What a result >= 0 of is a count, and nothing else."""

_ANY_OF_SEVERAL: Final = tuple(SEVERAL)  # and what is made of them
ALONE_AND_ONCE: Final = frozenset(
    kind
    for kind in vars(operations).values()
    if isinstance(kind, type)
    and issubclass(kind, Queueable)
    and kind._renaming is Queueable._renaming
    and kind not in SEVERAL
)
"""What can be awaited with no further look, when it has neither flags nor a number."""


def is_several(op: Queueable) -> bool:
    """Whether it completes any number of times."""
    return isinstance(op, _ANY_OF_SEVERAL) or (isinstance(op, SQE) and is_multishot(op.encode()))


def check_number(number: int) -> None:
    """Refuse a user_data that the ring itself might give to another operation."""
    if number >= FIRST_DRAWN:
        raise ValueError(f"user_data {number:#x}: those from 2**63 on are the ring's own to give")


def check_renaming(op: Queueable) -> None:
    """Refuse what would have an operation end under a number that nobody waits for."""
    if op._renaming() is not None or (isinstance(op, SQE) and _renames(op.encode())):
        raise ValueError(f"{op!r}: what is awaited keeps its user_data")


def _renames(record: bytes) -> bool:
    flags = int.from_bytes(record[24:28], sys.byteorder)  # len
    return record[0] == Opcode.POLL_REMOVE and bool(flags & PollFlags.UPDATE_USER_DATA)


def slots_of(cqe: CQE) -> list[Fixed]:
    """The slots of this ring that the kernel has chosen for what an operation has made."""
    op = cqe.op
    is_chosen = getattr(op, "slot", None) is AUTO and not isinstance(op, MsgRingFd)
    if cqe.res < 0 or not (is_chosen or isinstance(op, FilesAlloc)):
        return []
    made = cqe.result()
    return [made] if isinstance(made, Fixed) else [*made]
