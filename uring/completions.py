"""
What the kernel answered: `CQE`, one immutable record, and `Completions`, a batch of them.

A `Completions` owns its bytes, so nothing that happens to the ring afterwards changes it. It makes
a CQE only when one is looked at; the columns `user_data`, `res` and `flags` read the bytes without
making any.
"""

import collections
import contextlib
import errno
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Self, overload

import attrs

from uring._values import value
from uring.errors import operation_error
from uring.flags import CQE_BUFFER_SHIFT, NOTIF_USAGE_ZC_COPIED, CQEFlags, SetupFlags
from uring.sqe import Queueable

CQE_SIZE: Final = 16
_CQE32_SIZE: Final = 32
_MIXED_SIZE: Final = 40
"""
Of a CQE that comes from a CQE_MIXED ring: of those that have F_32, the first 32 bytes count, of
others 16. The size is one of its own because it tells the ring's kind: CQE32 rings set no F_32.
"""
_CQE: Final = struct.Struct("=QiI")
_BIG_CQE: Final = struct.Struct("=QQ")
_RES_SIGN: Final = 11 if sys.byteorder == "little" else 8
"""The byte of a CQE that has the sign of res in its highest bit."""
_F_32: Final = int(CQEFlags.F_32)
_BUFFER: Final = int(CQEFlags.BUFFER)
_MORE: Final = int(CQEFlags.MORE)
_NOTIF: Final = int(CQEFlags.NOTIF)


def cqe_size(flags: SetupFlags) -> int:
    """How many bytes a CQE of such a ring has when the shim has taken it."""
    if flags & SetupFlags.CQE_MIXED:
        return _MIXED_SIZE
    return _CQE32_SIZE if flags & SetupFlags.CQE32 else CQE_SIZE


@value
class Answer:
    """What stands behind a completion when the operation alone does not say it."""

    operation: Queueable
    memory: object = None
    """What the kernel wrote for it, besides the caller's buffers."""
    is_certain: bool = True
    """False when several operations shared the user_data, so it may have been another of them."""


@value
class CQE:
    """
    One completion queue entry.

    `res` is the kernel's raw result: what the operation's docstring says, or a negative errno.
    `result()` gives the same as Python would: the operation's own type, or its OSError.
    Two are equal when `user_data`, `res` and `flags` are.

    Source: struct io_uring_cqe in linux/io_uring.h.
    """

    user_data: int
    res: int
    flags: int = 0
    _subject: Queueable | Answer | None = attrs.field(default=None, eq=False, alias="subject")
    big_cqe: tuple[int, int] | None = attrs.field(default=None, eq=False)
    """
    The two extra words that a ring with SetupFlags.CQE32 has in each CQE, and one with CQE_MIXED in
    those with CQEFlags.F_32; else None.
    """

    @property
    def op(self) -> Queueable | None:
        """
        The operation that this completes, as it was queued.

        None when the ring does not know: a number that was not queued here, or one that several
        operations shared while they were in flight.
        """
        subject = self._subject
        if isinstance(subject, Answer):
            return subject.operation if subject.is_certain else None
        return subject

    @property
    def more(self) -> bool:
        """Whether further completions of the same operation follow. False on its terminal one."""
        return bool(self.flags & _MORE)

    @property
    def buffer_id(self) -> int | None:
        """The id of the provided buffer that holds the result, or None."""
        return self.flags >> CQE_BUFFER_SHIFT if self.flags & _BUFFER else None

    @property
    def is_notification(self) -> bool:
        """Whether this is the second completion of a zero-copy send: the memory is free."""
        return bool(self.flags & _NOTIF)

    @property
    def was_copied(self) -> bool:
        """Whether this is a notification that says that the data was copied after all."""
        return self.is_notification and bool(self.res & NOTIF_USAGE_ZC_COPIED)

    @property
    def error(self) -> OSError | None:
        """
        The operation's error, or None.

        A failed operation gives the OSError subclass of its errno, with the operation as a note.
        None for a success, for a notification, and for an outcome that is ordinary for its
        operation, as ETIME is for a timeout.
        """
        res = self.res
        if res >= 0 or self.is_notification:
            return None
        subject = self._subject
        if subject is None:
            return operation_error(-res, f"user_data {self.user_data:#x}")
        is_certain = True
        if isinstance(subject, Answer):
            is_certain = subject.is_certain
            subject = subject.operation
        if -res in subject._ordinary:
            return None
        note, filename = subject._error_context(-res)
        if not is_certain:
            note, filename = f"in one of several operations with {self.user_data:#x}", None
        return operation_error(-res, note, filename)

    def result(self) -> Any:
        """
        Return what the operation's docstring promises, or raise `error`.

        A count for reads and writes, a descriptor for opens; None for a notification.
        """
        error = self.error
        if error is not None:
            try:
                raise error
            finally:
                del error  # it has this frame, and those of all who called
        if self.is_notification:
            return None
        subject = self._subject
        if subject is None:
            return self.res
        if isinstance(subject, Answer):
            return subject.operation._result(self.res, subject.memory, self.flags)
        if subject._reads_big_cqe:
            return subject._big_result(self.res, self.flags, self.big_cqe)
        return subject._result(self.res, None, self.flags)

    def __repr__(self) -> str:
        name = errno.errorcode.get(-self.res, "") if self.res < 0 else ""
        shown = f"{self.res} ({name})" if name else f"{self.res}"
        op = f", op={self.op!r}" if self.op is not None else ""
        return f"CQE(user_data={self.user_data:#x}, res={shown}, flags={self.flags:#x}{op})"


class Completions(Sequence[CQE]):
    """
    An immutable sequence of completions.

    Those of `Ring.run()` are in the order of the operations, others in that of the ring.

    A sequence of `CQE`, made when looked at. `user_data`, `res` and `flags` are memoryviews over
    the same bytes, one number per completion, without an object each.
    """

    __slots__ = ("_count", "_raw", "_size", "_subjects")

    def __init__(
        self,
        raw: bytes = b"",
        subjects: Sequence[Queueable | Answer | None] = (),
        cqe_size: int = CQE_SIZE,
    ) -> None:
        if hasattr(self, "_raw"):
            raise TypeError("Completions are immutable")
        self._count = count = len(raw) // cqe_size
        if count * cqe_size != len(raw):
            raise ValueError(f"raw must hold whole CQEs of {cqe_size} bytes, not {len(raw)} bytes")
        self._raw = raw
        self._subjects = subjects
        self._size = cqe_size

    @property
    def user_data(self) -> memoryview:
        """The `user_data` of each completion: unsigned 64-bit."""
        return memoryview(self._raw).cast("Q")[:: self._size // 8]

    @property
    def res(self) -> memoryview:
        """The raw result of each completion: signed 32-bit."""
        return memoryview(self._raw).cast("i")[2 :: self._size // 4]

    @property
    def flags(self) -> memoryview:
        """The `CQEFlags` of each completion: unsigned 32-bit."""
        return memoryview(self._raw).cast("I")[3 :: self._size // 4]

    def raise_first(self) -> Self:
        """
        Raise the first failure, with its index as a note; without one, return the completions.

        What is an ordinary outcome, such as the ETIME of a `Timeout`, is no failure (see
        `CQE.error`), and neither is a short read or write: look at `res` for those. The index
        counts from 0 in this sequence: after `Ring.run()` it is the operation's place.

        Returns:
            These completions, so that calls can be chained.

        Raises:
            OSError: an operation failed -> the subclass of its errno, with the operation and the
                index as notes.
        """
        if self._raw[_RES_SIGN :: self._size].isascii():  # a look at all signs at the speed of C
            return self
        for index, res in enumerate(self.res.tolist()):
            error = self[index].error if res < 0 else None
            if error is not None:
                error.add_note(f"completion {index} of {self._count}")
                raise error
        return self

    def _rows(self) -> Iterable[tuple[int, int, int, Queueable | Answer | None]]:
        """(user_data, res, flags, subject) of each, without a `CQE`."""
        if self._count == 1:  # columns of one take a microsecond
            subject = self._subjects[0] if self._subjects else None
            return [(*_CQE.unpack_from(self._raw), subject)]
        return zip(
            self.user_data.tolist(),
            self.res.tolist(),
            self.flags.tolist(),
            self._subjects or [None] * self._count,
            strict=True,
        )

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> CQE: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> CQE | Self:
        if isinstance(index, slice):
            size = self._size
            chosen = range(*index.indices(len(self)))
            if chosen.step == 1:
                raw = self._raw[chosen.start * size : max(chosen.start, chosen.stop) * size]
            else:
                raw = b"".join(self._raw[i * size : (i + 1) * size] for i in chosen)
            return type(self)(raw, self._subjects[index], cqe_size=size)
        count = self._count
        place = index + count if index < 0 else index
        if not 0 <= place < count:
            raise IndexError(f"completion {index} of {count}")
        user_data, res, flags = _CQE.unpack_from(self._raw, place * self._size)
        subject = self._subjects[place] if self._subjects else None
        if self._size == CQE_SIZE or (self._size == _MIXED_SIZE and not flags & _F_32):
            return CQE(user_data, res, flags, subject)
        big_cqe = _BIG_CQE.unpack_from(self._raw, place * self._size + CQE_SIZE)
        return CQE(user_data, res, flags, subject, big_cqe)

    def _only(self, places: Sequence[int]) -> "Completions":
        """Those at these places."""
        size, subjects = self._size, self._subjects
        raw = b"".join([self._raw[place * size : (place + 1) * size] for place in places])
        chosen = [subjects[place] for place in places] if subjects else ()
        return Completions(raw, chosen, cqe_size=size)

    def __iter__(self) -> Iterator[CQE]:
        if self._size > CQE_SIZE:
            return map(self.__getitem__, range(len(self)))
        return map(
            CQE,
            self.user_data.tolist(),
            self.res.tolist(),
            self.flags.tolist(),
            self._subjects or [None] * len(self),
        )

    def __add__(self, other: object) -> "Completions":
        """Join completions of rings whose CQEs have one size; what is empty goes with all."""
        if not isinstance(other, Completions):
            return NotImplemented
        if not self._count or not other._count:
            return self if self._count else other
        if self._size != other._size:
            raise ValueError(
                "completions of a ring with CQE32 or CQE_MIXED cannot be joined to others"
            )
        known = [each._subjects or [None] * each._count for each in (self, other)]
        return Completions(self._raw + other._raw, [*known[0], *known[1]], self._size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Completions):
            return NotImplemented
        return len(self) == len(other) and all(map(CQE.__eq__, self, other))

    def __hash__(self) -> int:
        return hash((*self.user_data, *self.res, *self.flags))

    def __repr__(self) -> str:
        shown = [repr(cqe) for cqe in self[:8]]
        rest = [f"... {len(self) - 8} more"] if len(self) > 8 else []
        return f"Completions([{', '.join(shown + rest)}])"


def descriptors_of(cqe: CQE) -> list[int]:
    """What the operation that this completes has opened."""
    subject = cqe._subject
    if subject is None or cqe.res < 0 or cqe.is_notification:
        return []
    if isinstance(subject, Answer):
        return [*subject.operation._descriptors(cqe.res, subject.memory, cqe.flags)]
    return [*subject._descriptors(cqe.res, None, cqe.flags)]


def uncollected_descriptors(completions: Iterable[CQE]) -> list[int]:
    """What the operations in `completions` have opened."""
    return [number for cqe in completions for number in descriptors_of(cqe)]


def close_all(descriptors: list[int | None]) -> None:
    """
    Close and take out what is behind the None that `descriptors` begins with.

    In one call from taking out to closing, so that no signal comes between and none is closed
    twice. One that somebody peeked at and closed already is passed over.
    """
    while len(descriptors) > 1:
        with contextlib.suppress(OSError, IndexError):  # closed already; or by another thread
            collections.deque(map(os.close, iter(descriptors.pop, None)), maxlen=0)
        if not descriptors:
            descriptors.append(None)


EMPTY: Final = Completions()
