"""
What CQEs are of: the operations that they complete, and what those are to be told besides.

It is looked for once for each look at the queue, in the order of arrival, which provided buffers
depend on (see _leases); what was promised for an operation that has failed is taken back.
"""

import errno
from typing import TYPE_CHECKING, Final

from uring._claims import Ended, Subject, operation_of
from uring._core import Core
from uring._leases import Landing
from uring._pledges import Pledge
from uring._setup import RingParams
from uring.completions import Answer, Completions, cqe_size
from uring.flags import CQE_BUFFER_SHIFT, CQEFlags
from uring.operations._groups import GroupPin
from uring.registry.buffer_rings import BufferRing, SendBufferRing
from uring.sqe import SQE, UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_MORE: Final = int(CQEFlags.MORE)
_NOTIF: Final = int(CQEFlags.NOTIF)
_CANCELLED: Final = -errno.ECANCELED
_BUFFER: Final = int(CQEFlags.BUFFER)
_BUF_MORE: Final = int(CQEFlags.BUF_MORE)
_GROUPS: Final = BufferRing, SendBufferRing


class LandingSide(Core):
    """Telling what CQEs are of."""

    def __init__(self, shim: "CData", inbox: "CData", params: RingParams) -> None:
        super().__init__(shim, inbox, params)
        self._cqe_size = cqe_size(params.flags)

    def _settled(
        self, cqes: memoryview, result: int, had: int, *, is_final: bool = False
    ) -> tuple[Completions, Ended, Landing | None]:
        """
        What the shim has answered: (the completions, what they end, the buffers that they have).

        Leases are made only for what is about to be had. The lock is held.
        """
        size = self._cqe_size
        raw = bytes(cqes[: (result & UINT32_MAX) * size])
        numbers = memoryview(raw).cast("Q")[:: size // 8].tolist()
        subjects = self._in_flight.look_up(numbers)
        completions = Completions(raw, subjects, cqe_size=size)
        flags = completions.flags.tolist() if result >> 32 & (_MORE | _BUFFER) else None
        landing = None
        if is_final and result >> 32 & _BUFFER and flags is not None:
            landing = self._land(subjects, completions.res.tolist(), flags)
        has_notified = result >> 32 & _NOTIF
        if is_final and (has_notified or self._in_flight.has_pledges):
            results = completions.res.tolist()
            self._settle_pledges(subjects, results)
            if has_notified or _CANCELLED in results:
                flags = self._ending(subjects, results, completions.flags.tolist())
        return completions, (had, numbers, flags), landing

    def _land(self, subjects: list[Subject], results: list[int], flags: list[int]) -> Landing:
        """Put leases in the place of the groups that buffers were taken from."""
        landing = Landing(self._stays)
        for index, flag in enumerate(flags):
            subject = subjects[index]
            if not flag & _BUFFER or not isinstance(subject, Answer):
                continue
            pin = subject.memory
            group = pin.group if isinstance(pin, GroupPin) else pin
            if isinstance(group, _GROUPS):
                res = results[index]
                lease = landing.lease(
                    group._block,
                    flag >> CQE_BUFFER_SHIFT,
                    res if res > 0 else 0,  # noqa: FURB136 - a call of max() costs as much as a view
                    has_more=flag & _BUF_MORE != 0,
                )
                if isinstance(group, BufferRing):
                    memory = pin.with_lease(lease) if isinstance(pin, GroupPin) else lease
                    subjects[index] = Answer(subject.operation, memory)
                else:
                    landing.sent.append(lease)
                    group._block.is_unsure = group._block.is_unsure or res < 0
        return landing

    @staticmethod
    def _ending(subjects: list[Subject], results: list[int], flags: list[int]) -> list[int]:
        """
        The flags, with MORE where a CQE ends nothing although it has none.

        A chain that fails cancels the zero-copy sends in it without MORE, and their notifications
        come all the same (io_fail_links() in io_uring/timeout.c). A notification that comes when
        its operation has ended otherwise must not end another one with the same number. Of an SQE
        that shares its number nobody knows what it is.
        """
        for index, (subject, res) in enumerate(zip(subjects, results, strict=True)):
            operation = operation_of(subject)
            if operation is None or (
                isinstance(operation, SQE)
                and isinstance(subject, Answer)
                and not subject.is_certain
            ):
                continue
            is_late = flags[index] & _NOTIF and not operation._notifies
            is_early = not flags[index] & _NOTIF and operation._notifies and res == _CANCELLED
            if is_late or is_early:
                flags[index] |= _MORE
        return flags

    @staticmethod
    def _settle_pledges(subjects: list[Subject], results: list[int]) -> None:
        """What was promised for an operation that has failed is taken back."""
        for subject, res in zip(subjects, results, strict=True):
            if isinstance(subject, Answer) and isinstance(subject.memory, Pledge):
                subject.memory.settle(res)
