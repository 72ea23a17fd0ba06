"""
What may not stand before what: zero-copy sends and drains.

No ring, and nothing of what is in flight: who queues tells what there is.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from uring.sqe import SQE, Queueable, is_drained, is_linked


def notifies(op: Queueable | None) -> bool:
    """Whether it is a zero-copy send, of which more is known than the bytes of an `SQE`."""
    return op is not None and op._notifies and not isinstance(op, SQE)


def may_notify(ops: Iterable[Queueable]) -> bool:
    """Whether one of these might be a zero-copy send: a quick look, by their classes."""
    kinds: set[Any] = {*map(type, ops)}
    return any(kind._notifies for kind in kinds)


def check_drains(
    ops: Sequence[Queueable],
    encoded: Sequence[bytes],
    chain: Sequence[Queueable | None] = (),
    *,
    has_drained: bool = False,
) -> None:
    """
    Refuse what Linux 6.18 would never complete, nor could cancel: see operations/zerocopy.py.

    Args:
        ops: operations in the order in which they are queued.
        encoded: their SQEs.
        chain: what is queued already, if they go on with a chain.
        has_drained: whether the ring was ever given an operation with IO_DRAIN.

    Raises:
        ValueError: a zero-copy send and a drain do not go together here.
    """
    if not chain and not may_notify(ops):
        return
    send = next(filter(notifies, chain), None)  # of the chain that `op` is in
    for op, record in zip(ops, encoded, strict=True):
        has_drained = has_drained or is_drained(record)
        if notifies(op):
            send = op
        if send is not None and has_drained and (send is op or is_drained(record)):
            raise ValueError(
                f"{send!r} would wait for its own notification, for ever, together with an"
                " operation with IO_DRAIN, or on a ring that was ever given one: copy it, as Send"
                " does, or send on another ring"
            )
        if not is_linked(record):
            send = None
