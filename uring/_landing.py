"""
What CQEs are of: the operations that they complete, and what those are to be told besides.

It is looked for once for each look at the queue, in the order of arrival, which provided buffers
depend on (see _leases); what was promised for an operation that has failed is taken back.
"""

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
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_MORE: Final = int(CQEFlags.MORE)
_BUFFER: Final = int(CQEFlags.BUFFER)
_BUF_MORE: Final = int(CQEFlags.BUF_MORE)
_NOTIF: Final = int(CQEFlags.NOTIF)


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
        seen = result >> 32
        flags = completions.flags.tolist() if seen & (_MORE | _BUFFER | _NOTIF) else None
        if seen & _NOTIF and flags is not None:
            self._disown(subjects, flags)
        landing = None
        if is_final and result >> 32 & _BUFFER and flags is not None:
            landing = self._land(subjects, completions.res.tolist(), flags)
        if is_final and self._in_flight.has_pledges:
            self._settle_pledges(subjects, completions.res.tolist())
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
            if isinstance(group, BufferRing | SendBufferRing):
                lease = landing.lease(
                    group._block,
                    flag >> CQE_BUFFER_SHIFT,
                    max(0, results[index]),
                    has_more=bool(flag & _BUF_MORE),
                )
                if isinstance(group, BufferRing):
                    memory = pin.with_lease(lease) if isinstance(pin, GroupPin) else lease
                    subjects[index] = Answer(subject.operation, memory)
                else:
                    landing.sent.append(lease)
                    group._block.is_unsure = group._block.is_unsure or results[index] < 0
        return landing

    @staticmethod
    def _disown(subjects: list[Subject], flags: list[int]) -> None:
        """A notification is of nobody who asks for none: see InFlight.is_stray()."""
        for index, flag in enumerate(flags):
            operation = operation_of(subjects[index])
            if flag & _NOTIF and operation is not None and not operation._notifies:
                subjects[index] = None

    @staticmethod
    def _settle_pledges(subjects: list[Subject], results: list[int]) -> None:
        """What was promised for an operation that has failed is taken back."""
        for subject, res in zip(subjects, results, strict=True):
            if isinstance(subject, Answer) and isinstance(subject.memory, Pledge):
                subject.memory.settle(res)
