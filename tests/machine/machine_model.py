"""
The model of one ring: what is in flight in it, and what may come of that.

An `Expected` is one operation: what its completions may say (`allows`), what they mean for the
memory, channels and descriptors that it is about (`effect`), and what is to be looked at when it
has ended and nobody saw its completions (`unseen`). What the kernel may do in either order is a set
of allowed outcomes; what it must not do at all fails.

A `RingModel` is a ring and its operations by user_data. It says after every step how many are in
flight, and that every completion is one of those, comes once, and is of the right operation.
"""

import errno
import os
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
from machine_words import (
    Channel,
    Memory,
    Target,
    Write,
    assert_pinned,
    assert_resizable,
    filled,
)

import uring
from uring import CQE, Completions, Ring

STATISTICS: Final[Counter[str]] = Counter()
"""What was driven: operations by class, refusals, completions."""

_INTERRUPTED: Final = {-errno.ECANCELED, -errno.EINTR}


@attrs.define(eq=False, repr=False)
class Expected:
    """One operation, and what may come of it."""

    op: uring.Operation | None
    """None when nobody but the ring is to hold it."""
    results: frozenset[int] = frozenset({0})
    """The results that are allowed besides those that a subclass has."""
    is_multishot: bool = False
    may_cancel: bool = False
    """Whether somebody may have cancelled it: a cancel, a timeout, the chain that it is in."""
    fd: int = -1
    """The file that it can be found by."""
    number: int = 0
    targets: list[Target] = attrs.field(factory=list)
    lent: list[Memory] = attrs.field(factory=list)
    """What must be pinned as long as it is in flight, and no longer."""
    dropped: "list[weakref.ref[Memory]]" = attrs.field(factory=list)
    """The same of what nobody but the ring holds."""
    channel: Channel | None = None
    write: Write | None = None
    chain: "Sequence[Expected]" = ()
    """Those that skip their completions, and the last one, which does not; else empty."""
    is_streamed: bool = False
    is_leased: bool = False
    """Whether its results are only with what is copied out, and not with what is peeked at."""
    makes_descriptor: bool = False

    def __repr__(self) -> str:
        cancels = ", may be cancelled" if self.may_cancel else ""
        return f"<{type(self).__name__} {self.number:#x} of {self.op!r}{cancels}>"

    @property
    def is_notifying(self) -> bool:
        """Whether it ends with a notification, also when it was cancelled before it began."""
        return False

    def allows(self, cqe: CQE) -> bool:
        """Whether this completion may be of this operation."""
        if cqe.more and not self.is_multishot:
            return False
        if self.may_cancel and cqe.res in _INTERRUPTED:
            return True
        return cqe.res in self.results or self._allows(cqe)

    def _allows(self, cqe: CQE) -> bool:
        return self.makes_descriptor and cqe.res > 2

    def effect(self, cqe: CQE) -> None:
        """What a completion means, that is certainly of this operation."""
        if self.makes_descriptor and cqe.res > 2:
            assert cqe.result() == cqe.res
            os.close(cqe.res)

    def unseen(self) -> None:
        """Look at what it has done, when that is over and nobody has seen its completions."""

    def let_go(self) -> None:
        """Give back what it had, now that it has ended."""


class Reading(Expected):
    """A read into targets of ours."""

    def _allows(self, cqe: CQE) -> bool:
        channel = self.channel
        if channel is None or cqe.more:
            return False
        if cqe.res == 0:
            return channel.is_shut
        return 0 < cqe.res <= sum(target.size for target in self.targets)

    def effect(self, cqe: CQE) -> None:
        """See `Expected`."""
        content = filled(self.targets, max(0, cqe.res))
        if self.channel is not None:
            self.channel.arrived(content)

    def unseen(self) -> None:
        """See `Expected`."""
        found = b"".join([target.found() for target in self.targets])
        if self.channel is not None:
            self.channel.arrived(found)


class Dropped(Reading):
    """The same when nobody but the ring holds the memory: the completion brings it back."""

    size = 0

    def drop(self) -> None:
        """Let go of the memory, and of all that holds it."""
        self.dropped = [weakref.ref(target.own()) for target in self.targets]
        self.size = sum(target.size for target in self.targets)
        self.targets, self.op = [], None

    def _allows(self, cqe: CQE) -> bool:
        return super()._allows(cqe) or (self.op is None and 0 < cqe.res <= self.size)

    def effect(self, cqe: CQE) -> None:
        """See `Expected`."""
        op: Any = cqe.op
        content = Target.of(op.buffer.obj).filled(max(0, cqe.res))
        assert self.channel is not None
        self.channel.arrived(content)

    def unseen(self) -> None:
        """See `Expected`."""
        assert self.channel is not None
        self.channel.is_lossy = True


class Comparing(Reading):
    """A read of what is known to be there."""

    content: bytes = b""

    def _allows(self, cqe: CQE) -> bool:
        return cqe.res == len(self.content)

    def effect(self, cqe: CQE) -> None:
        """See `Expected`."""
        found = filled(self.targets, max(0, cqe.res))
        assert found == self.content[: max(0, cqe.res)]

    def unseen(self) -> None:
        """See `Expected`."""
        found = b"".join([target.found() for target in self.targets])
        assert self.content.startswith(found)


class Writing(Expected):
    """A write of words; with `is_multishot` it posts twice."""

    is_done = False

    @property
    def is_notifying(self) -> bool:
        """See `Expected`."""
        return self.is_multishot

    def _allows(self, cqe: CQE) -> bool:
        assert self.write is not None
        if cqe.is_notification:
            return self.is_multishot and not cqe.more
        if cqe.res == -errno.EPIPE:
            return self.channel is not None and self.channel.is_shut
        return 0 < cqe.res <= self.write.count * 4

    def effect(self, cqe: CQE) -> None:
        """See `Expected`."""
        assert self.write is not None
        if cqe.is_notification:
            assert self.is_done
            return
        assert not self.is_done
        self.is_done = True
        self.write.end(max(0, cqe.res))

    def unseen(self) -> None:
        """See `Expected`."""
        self.is_done = True


class RingModel:
    """A ring, and what is in flight in it."""

    def __init__(self, ring: Ring, entries: int) -> None:
        self.ring = ring
        self.entries = entries
        self.is_sqpoll = bool(ring.flags & uring.SetupFlags.SQPOLL)
        self.live: dict[int, list[Expected]] = {}
        self.finished: Counter[int] = Counter()
        """How many of those that share a number have ended."""
        self.pending: list[Expected] = []
        self.outside: Counter[int] = Counter()
        """Completions that messages may bring, by number."""
        self.came: Counter[int] = Counter()
        """And those that have come."""
        self.owed: set[int] = set()
        """Messages that must come, for who sent them was told so."""
        self.is_closed = False
        self.has_drained = False
        """Whether there was a drain since nothing was in flight."""
        self.was_drained = False
        """Whether there ever was one."""
        self.cancels: list[Callable[[Expected], bool]] = []
        """What cancels in flight may find: operations that come later, too."""
        self.stale: list[Callable[[], None]] = []
        """Checks to be made of what has ended."""

    @property
    def is_held_up(self) -> bool:
        """
        Whether the kernel may hold up all that is submitted, until what is in flight has ended.

        So it is behind a drain that waits. And measured on 6.18 what is submitted after a drain has
        ended may wait for all that is in flight, too (io_queue_deferred() goes on deferring until
        it finds the list empty); nothing of that can be cancelled.
        """
        if not self.live:
            self.has_drained = False
        return self.has_drained

    @property
    def in_flight(self) -> int:
        """How many operations are in flight."""
        return sum(map(len, self.live.values())) - self.finished.total()

    def operations(self) -> list[Expected]:
        """Everything in flight."""
        return [each for group in self.live.values() for each in group]

    # ---- queueing ----

    def queue(self, *each: Expected, user_data: int | None = None) -> bool:
        """Queue operations, one with a number of choice or a chain; False when they do not fit."""
        ring, before = self.ring, self._counts()
        fits = len(self.pending) + len(each) <= self.entries
        try:
            if len(each) == 1:
                op = each[0].op
                assert op is not None
                numbers = [ring.queue(op, user_data=user_data)]
                del op  # it may be dropped below
            else:
                numbers = ring.queue_all([one.op for one in each if one.op is not None])
        except uring.SubmissionQueueFull:
            assert self.is_sqpoll or not fits
            assert self._counts() == before
            STATISTICS["full queue"] += 1
            return False
        assert self.is_sqpoll or fits
        self._entered(each, numbers)
        self.pending += each
        return True

    def _entered(self, each: Sequence[Expected], numbers: Sequence[int]) -> None:
        for one, number in zip(each, numbers, strict=True):
            one.number = number
            one.may_cancel = one.may_cancel or any(finds(one) for finds in self.cancels)
            self.live.setdefault(number, []).append(one)
            STATISTICS[type(one.op).__name__] += 1
            is_drained = one.op is not None and one.op.flags & uring.SQEFlags.IO_DRAIN
            self.has_drained = self.has_drained or bool(is_drained)
            self.was_drained = self.was_drained or bool(is_drained)
            if isinstance(one, Dropped):
                one.drop()

    def entered_stream(self, one: Expected, stream: uring.Stream) -> None:
        """Note what `Ring.stream()` has queued and submitted."""
        self._entered([one], [stream.user_data])
        self.pending.clear()

    def refused(self, errors: tuple[type[Exception], ...], call: Callable[[], object]) -> None:
        """Assert that a call is refused, and that the ring is as it was."""
        before = self._counts()
        try:
            call()
        except errors:
            STATISTICS["refused"] += 1
        else:
            raise AssertionError("not refused")
        assert self._counts() == before

    def _counts(self) -> tuple[int, int]:
        ring = self.ring
        return (0, 0) if self.is_sqpoll else (ring.in_flight, ring.sq_ready())

    def cancelling(self, finds: Callable[[Expected], bool]) -> None:
        """Note that a cancel is under way, which may find such operations until it has ended."""
        self.cancels.append(finds)
        for one in self.operations():
            one.may_cancel = one.may_cancel or finds(one)

    def left_stream(self, one: Expected) -> None:
        """Note that a stream was closed, which takes all of its completions."""
        del self.live[one.number]
        self._forget(one)

    def submitted(self, count: int, *, is_all: bool = True) -> None:
        """Note that the ring says that it has submitted so many."""
        if not self.is_sqpoll:
            assert count == len(self.pending) or not is_all, (count, len(self.pending))
        self.pending.clear()

    # ---- completions ----

    def took(
        self, completions: Completions, *, is_ignored: bool = False, is_peeked: bool = False
    ) -> None:
        """Account for completions that were copied out, by index, by column and by iteration."""
        count = len(completions)
        STATISTICS["completions"] += count
        rows = list(zip(completions.user_data, completions.res, completions.flags, strict=True))
        assert len(rows) == count
        for place, cqe in enumerate(completions):
            assert (cqe.user_data, cqe.res, int(cqe.flags)) == rows[place]
            indexed = completions.__getitem__(place)
            assert indexed == cqe == completions[place - count]
            assert indexed.op is cqe.op
            self.took_one(cqe, is_ignored=is_ignored, is_peeked=is_peeked)

    def took_one(
        self,
        cqe: CQE,
        *,
        is_streamed: bool = False,
        is_ignored: bool = False,
        is_peeked: bool = False,
    ) -> None:
        """Account for one completion."""
        number = cqe.user_data
        group = self.live.get(number)
        if group is None:
            self.came[number] += 1
            assert self.came[number] <= self.outside[number], f"{cqe} is of nothing in flight"
            assert cqe.op is None
            return
        assert group[0].is_streamed == is_streamed, f"{cqe} was given to somebody else"
        allowing = [one for one in group if one.allows(cqe)]
        assert allowing, f"{cqe} must not come of {group}"
        if len(group) == 1:
            assert cqe.op is group[0].op or group[0].op is None
            assert cqe.op is not None
            if (is_ignored and not group[0].makes_descriptor) or (is_peeked and group[0].is_leased):
                group[0].unseen()
            else:
                group[0].effect(cqe)
        else:
            assert cqe.op is None or cqe.op in [one.op for one in group]
        if cqe.more:
            return
        if group[0].is_notifying and cqe.res == -errno.ECANCELED and not cqe.is_notification:
            return  # its chain was broken before it began
        self._ended(number, group)

    def _ended(self, number: int, group: list[Expected]) -> None:
        if group[0].chain:
            self._ended_chain(group[0])
            return
        self.finished[number] += 1
        if self.finished[number] < len(group):
            return
        del self.finished[number]
        del self.live[number]
        for one in group:
            if len(group) > 1:
                one.unseen()
            self._forget(one)

    def _ended_chain(self, one: Expected) -> None:
        """One of a chain has posted: all that skip have ended, and if it skips, all the others."""
        others = one.chain if one is not one.chain[-1] else one.chain[:-1]
        for other in {*others, one}:
            del self.live[other.number]
            if other is not one:
                other.unseen()
            self._forget(other)

    def _forget(self, one: Expected) -> None:
        for memory in one.lent:
            assert_resizable(memory)
        one.let_go()
        if one.targets:
            self.stale += [_still(target) for target in one.targets]
            del self.stale[:-16]
        if isinstance(one, Cancelling) and one.finds in self.cancels:
            self.cancels.remove(one.finds)

    # ---- the end ----

    def closed(self) -> None:
        """The ring was closed: nothing is in flight any more, nor anything pinned."""
        assert self.ring.in_flight == 0
        self.is_closed = True
        self.cancels.clear()
        for one in self.operations():
            one.unseen()
            self._forget(one)
        self.live.clear()
        self.pending.clear()
        self.finished.clear()

    def assert_holds(self) -> None:
        """What must be true after every step."""
        ready = self.ring.cq_ready()
        counted, expected = self.ring.in_flight, self.in_flight
        # What was fetched for streams and not given to them has been retired; of a chain that
        # skips completions, one ends all.
        skipping = sum(len(one.chain) > 1 for one in self.operations())
        assert expected - ready - skipping <= counted <= expected, (counted, expected, ready)
        if not ready:
            assert counted == expected, (counted, expected)
        pending = {id(one) for one in self.pending}
        if not self.is_sqpoll:
            assert self.ring.sq_ready() == len(pending), f"{self.ring.sq}, not {self.pending}"
        for one in self.operations():
            for target in one.targets:
                target.assert_guarded()
                if id(one) in pending and not self.is_sqpoll:
                    target.filled(0)
            if not ready:
                for memory in one.lent:
                    assert_pinned(memory)
                assert all(reference() is not None for reference in one.dropped)
        for check in self.stale:
            check()


def assert_same(peeked: Completions, taken: Completions) -> None:
    """What was peeked at must be what is then copied out."""
    assert len(peeked) == len(taken)
    assert taken == peeked
    assert hash(taken) == hash(peeked)


def _still(target: Target) -> Callable[[], None]:
    """A check that memory stays as it is now."""
    before = bytes(target.memory)

    def check() -> None:
        assert bytes(target.memory) == before, "written after its completion"

    return check


@attrs.define(eq=False, repr=False)
class Cancelling(Expected):
    """An operation that ends others."""

    finds: Callable[[Expected], bool] = lambda _one: True

    def _allows(self, cqe: CQE) -> bool:
        return cqe.res >= 0 or cqe.res in {-errno.ENOENT, -errno.EALREADY}
