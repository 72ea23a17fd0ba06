"""Read-only views of the two queues, for looking at a ring: tests, metrics, curiosity."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from uring.flags import SQRingFlags

if TYPE_CHECKING:
    from uring._uring import CData


class _QueueView:
    __slots__ = ("_counters",)

    _NAMES: tuple[str, ...] = ()

    def __init__(self, counters: "Callable[[], CData]") -> None:
        self._counters = counters

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._NAMES)
        return f"{type(self).__name__}({shown})"


class SubmissionQueueView(_QueueView):
    """
    The submission queue, as it is at each look; the kernel may have moved on a moment later.

    `head` and `tail` are the ones shared with the kernel, unsigned 32-bit and wrapping: it has
    taken what is below `head`, and may take what is below `tail`. `sqe_head` and `sqe_tail` are the
    ring's own: what is between them is queued and not yet submitted.
    """

    __slots__ = ("_pending",)

    _NAMES = ("head", "tail", "mask", "flags", "dropped", "entries", "sqe_head", "sqe_tail")

    def __init__(self, counters: "Callable[[], CData]", pending: Callable[[], int]) -> None:
        super().__init__(counters)
        self._pending = pending

    @property
    def head(self) -> int:
        """How many SQEs the kernel has taken."""
        return int(self._counters().sq_head)

    @property
    def tail(self) -> int:
        """How many SQEs the kernel may take."""
        return int(self._counters().sq_tail)

    @property
    def mask(self) -> int:
        """`entries` - 1."""
        return int(self._counters().sq_mask)

    @property
    def flags(self) -> SQRingFlags:
        """What the kernel wants us to know: NEED_WAKEUP, CQ_OVERFLOW, TASKRUN."""
        return SQRingFlags(self._counters().sq_flags)

    @property
    def dropped(self) -> int:
        """How many SQEs the kernel dropped because their index was invalid; 0, as ours are not."""
        return int(self._counters().sq_dropped)

    @property
    def entries(self) -> int:
        """How many SQEs the queue holds."""
        return int(self._counters().sq_entries)

    @property
    def sqe_head(self) -> int:
        """How many SQEs were handed to the kernel."""
        return int(self._counters().sq_tail)

    @property
    def sqe_tail(self) -> int:
        """How many SQEs were queued."""
        pending = self._pending()
        return (int(self._counters().sq_tail) + pending) & 0xFFFFFFFF


class CompletionQueueView(_QueueView):
    """
    The completion queue, as it is at each look.

    `head` and `tail` are shared with the kernel, unsigned 32-bit and wrapping: it has posted what
    is below `tail`, and we have taken what is below `head`. With CQE_MIXED all of it counts places,
    of which a large CQE takes two, and not CQEs.
    """

    __slots__ = ()

    _NAMES = ("head", "tail", "mask", "overflow", "entries")

    @property
    def head(self) -> int:
        """How many CQEs were taken."""
        return int(self._counters().cq_head)

    @property
    def tail(self) -> int:
        """How many CQEs the kernel has posted."""
        return int(self._counters().cq_tail)

    @property
    def mask(self) -> int:
        """`entries` - 1."""
        return int(self._counters().cq_mask)

    @property
    def overflow(self) -> int:
        """How many CQEs the kernel lost for want of memory; those that wait do not count."""
        return int(self._counters().cq_overflow)

    @property
    def entries(self) -> int:
        """How many CQEs the queue holds; more than that wait in the kernel."""
        return int(self._counters().cq_entries)
