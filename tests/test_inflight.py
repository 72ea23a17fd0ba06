"""The in-flight table by itself: what stays, for how long, and who is told. No ring."""

import gc
import itertools
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import uring
from uring._claims import Record, skips
from uring._inflight import UNKNOWN, InFlight
from uring.completions import Answer
from uring.flags import CQEFlags, SQEFlags
from uring.sqe import Queueable, is_linked

MORE: Final = int(CQEFlags.MORE)
LINK: Final = SQEFlags.IO_LINK
HARD: Final = SQEFlags.IO_HARDLINK
SKIP: Final = SQEFlags.CQE_SKIP_SUCCESS

places = itertools.count()


def record(number: int, op: Queueable | None = None, pins: object = None) -> Record:
    """A record as the submission side makes it."""
    op = uring.Nop() if op is None else op
    return number, op.sqe().encode(), op, pins


def flagged(number: int, flags: SQEFlags, op: type[Any] = uring.Nop) -> Record:
    """A record of a Nop with flags."""
    return record(number, op(flags=flags))


def post(table: InFlight, *numbers: int, flags: list[int] | None = None) -> None:
    """Let CQEs come in: what the completion side does."""
    table.retire()
    first = next(places)
    for _ in numbers:
        next(places)
    table.ended = first, list(numbers), flags
    table.retire()


def claim(
    table: InFlight, records: list[Record] | tuple[Record, ...], pending: list[Record] | None = None
) -> dict[int, Any]:
    """What the records claim, beside what is in the table and pending."""
    found = table.claim(records)
    table.check_claims(found, pending or [])
    return found


def entered(*records: Record) -> InFlight:
    """A table with records in it, chains too, as the ring enters them."""
    table = InFlight()
    table.claims.update(claim(table, records))
    table.add([0, *records])
    return table


# ---- one operation per user_data ----


def test_inflight_holds_a_record_until_its_terminal_completion() -> None:
    """The record is in the table from `add` until a CQE without MORE was retired."""
    first = record(1)
    table = entered(first)
    assert (len(table), first in table, table.numbers()) == (1, True, [1])
    assert table.look_up([1]) == [first[2]]
    post(table, 1, flags=[MORE])
    assert first in table
    post(table, 1, flags=[0])
    assert (len(table), first in table, table.numbers()) == (0, False, [])


def test_inflight_is_empty_before_and_after_and_not_between() -> None:
    """However the one or the many are kept, `is_empty` is False until the last has ended."""
    table = InFlight()
    assert table.is_empty
    table.single = record(1)
    assert not table.is_empty
    table.index()  # into the entries
    assert not table.is_empty
    post(table, 1)
    assert table.is_empty
    table.add([0, record(2), record(3)])  # kept as they were submitted
    assert not table.is_empty
    post(table, 2)
    assert not table.is_empty
    post(table, 3)
    assert table.is_empty


def test_inflight_is_not_empty_while_a_ring_runs_a_batch(ring_refusal: str) -> None:
    """A run counts, though its completions come to nobody else."""
    assert not ring_refusal
    with uring.Ring(8) as ring:
        run, _ = ring._set_off(uring.Batch([uring.Timeout(60)]))
        assert not ring._in_flight.is_empty
        ring._leave(run)
        assert ring.run([uring.Nop()]).raise_first().res.tolist() == [0]


def test_inflight_looking_up_changes_nothing() -> None:
    """Looking a number up, any number of times, leaves the table as it was."""
    first = record(1)
    table = entered(first)
    assert table.look_up([1, 1, 2, 1]) == [first[2], first[2], None, first[2]]
    assert first in table


def test_inflight_adding_a_record_again_changes_nothing() -> None:
    """A record handed over twice, as after an interrupted submit, counts once."""
    first, second = record(1), record(2)
    table = entered(first)
    table.add([0, first])
    table.add([0, first, second])
    assert len(table) == 2
    assert table.look_up([1]) == [first[2]]
    post(table, 1, 2)
    assert len(table) == 0


def test_inflight_ignores_a_completion_that_it_does_not_know() -> None:
    """A CQE with a number that is not in flight ends nothing, and its subject is None."""
    table = entered(record(1))
    post(table, 2, 2)
    assert len(table) == 1
    assert table.look_up([2]) == [UNKNOWN[2]] == [None]


def test_inflight_releases_the_pins_with_the_record() -> None:
    """A bytearray can be resized exactly when its record has been retired."""
    buffer = bytearray(8)
    table = entered(record(1, pins=memoryview(buffer)))
    post(table, 1, flags=[MORE])
    with pytest.raises(BufferError):
        buffer.append(1)
    post(table, 1)
    buffer.append(1)


def test_inflight_discard_takes_out_what_was_never_seen() -> None:
    """A discarded record is gone; discarding it again, or one that was not in, does nothing."""
    first, second = record(1), record(2)
    table = entered(first, second)
    for _ in range(2):
        table.discard(first)
        assert (len(table), first in table, second in table) == (1, False, True)
    table.discard(record(2))
    assert second in table


def test_inflight_more_is_read_from_the_flag_of_its_own_completion() -> None:
    """In one batch, MORE keeps its own record only, whatever the order."""
    table = entered(record(1), record(2), record(3))
    post(table, 1, 2, 3, flags=[0, MORE, 0])
    assert table.numbers() == [2]


# ---- a shared user_data ----


def test_inflight_shared_number_keeps_all_until_all_have_ended() -> None:
    """Of three operations with one number none is let go before the third terminal CQE."""
    buffers = [bytearray(8) for _ in range(3)]
    table = entered(*(record(7, pins=memoryview(buffer)) for buffer in buffers))
    for left in (3, 2, 1):
        assert len(table) == left
        for buffer in buffers:
            with pytest.raises(BufferError):
                buffer.append(1)
        post(table, 7)
    assert len(table) == 0
    for buffer in buffers:
        buffer.append(1)


def test_inflight_shared_number_does_not_count_more() -> None:
    """A CQE with MORE ends none of those that share the number."""
    table = entered(record(7), record(7))
    post(table, 7, 7, flags=[MORE, MORE])
    assert len(table) == 2
    post(table, 7, 7)
    assert len(table) == 0


def test_inflight_sharing_later_than_a_completion_counts_anew() -> None:
    """A number that was retired and used again needs a completion of its own."""
    table = entered(record(7))
    post(table, 7)
    table.add([0, record(7), record(7)])
    post(table, 7)
    assert len(table) == 1
    table.add([0, record(7)])
    assert len(table) == 2
    post(table, 7, 7)
    assert len(table) == 0


def test_inflight_subject_of_a_shared_number_is_uncertain() -> None:
    """One operation shared twice is itself; alike ones are uncertain; unlike ones are unknown."""
    one, other = uring.Nop(personality=1), uring.Nop(personality=2)
    assert entered(record(7, one), record(7, one)).look_up([7]) == [one]
    (subject,) = entered(record(7, one), record(7, other)).look_up([7])
    assert isinstance(subject, Answer)
    assert not subject.is_certain
    assert entered(record(7, one), record(7, uring.Fsync(0))).look_up([7, 8]) == [None, None]


def test_inflight_discarding_of_a_shared_number_lets_the_rest_go_on() -> None:
    """With one of two discarded, one completion ends the other."""
    first, second = record(7), record(7)
    table = entered(first, second)
    table.discard(first)
    assert (len(table), first in table, second in table) == (1, False, True)
    post(table, 7)
    assert len(table) == 0


def test_inflight_discarding_the_last_of_a_shared_number_ends_it() -> None:
    """With one of two ended and the other discarded, nothing is left."""
    first, second = record(7), record(7)
    table = entered(first, second)
    post(table, 7)
    table.discard(second)
    assert (len(table), table.numbers()) == (0, [])


# ---- retiring, interrupted ----


def test_inflight_retire_twice_is_retire_once() -> None:
    """Retiring the same CQEs again ends nothing more, for single and for shared numbers."""
    table = entered(record(1), record(7), record(7), record(7))
    ended = 100, [1, 7], [0, 0]
    for _ in range(3):
        table.ended = ended
        table.retire()
        assert len(table) == 2
        assert table.ended is None


class Interrupted(BaseException):
    """What a signal handler may raise in the middle."""


class Interrupting(dict[int, Any]):
    """A dict that is interrupted at its n-th `pop` or `get`: before the call or after it."""

    def __init__(self, content: dict[int, Any], after_calls: int, *, late: bool) -> None:
        super().__init__(content)
        self.left, self.late = after_calls, late

    def _count(self) -> bool:
        self.left -= 1
        return self.left == -1

    def _interrupted(self, call: Callable[..., Any], *args: Any) -> Any:
        is_now = self._count()
        if is_now and not self.late:
            raise Interrupted
        value = call(*args)
        if is_now:
            raise Interrupted
        return value

    def pop(self, *args: Any) -> Any:
        """Pop, with the interruption before or after."""
        return self._interrupted(super().pop, *args)

    def get(self, *args: Any) -> Any:
        """Look up, with the interruption before or after."""
        return self._interrupted(super().get, *args)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.data(),
    st.integers(0, 8),
    st.booleans(),
)
def test_inflight_retire_can_be_cut_off_and_repeated(
    numbers: list[int], data: st.DataObject, after_calls: int, late: bool
) -> None:
    """Interrupted at any point and then repeated, it ends what it would have ended at once."""
    posted = data.draw(st.lists(st.sampled_from(numbers), max_size=8))
    flags = data.draw(
        st.none() | st.lists(st.sampled_from([0, MORE]), min_size=len(posted), max_size=len(posted))
    )
    plain, cut = (entered(*(record(number) for number in numbers)) for _ in range(2))
    for table in (plain, cut):
        table.ended = 50, posted, flags
        table.index()
    plain.retire()
    cut.entries = Interrupting(cut.entries, after_calls, late=late)
    cut.shared = Interrupting(cut.shared, after_calls, late=late)
    for _ in range(5):
        try:
            cut.retire()
        except Interrupted:
            assert cut.ended is not None
    assert cut.ended is None
    assert (len(cut), sorted(cut.numbers())) == (len(plain), sorted(plain.numbers()))


def test_inflight_add_retires_first() -> None:
    """A completion that is still to be retired does not end what is added after it."""
    table = entered(record(1))
    table.ended = 0, [1], None
    again = record(1)
    table.add([0, again])
    assert again in table
    assert len(table) == 1


class Reentering(dict[int, Any]):
    """A dict at whose first `get` a signal handler comes back and retires everything."""

    table: InFlight

    def get(self, *args: Any) -> Any:
        """Look up, after the handler has run."""
        if self.table.ended is not None:
            self.table.entries = dict(self)
            self.table.retire()
            self.table.add([0, record(2)])
        return super().get(*args)


def test_inflight_retire_notices_a_handler_that_retired() -> None:
    """A number that a handler queued anew in the middle is not ended by the older completion."""
    table = entered(record(1), record(2))
    table.index()
    entries = Reentering(table.entries)
    entries.table = table
    table.entries = entries
    table.ended = 0, [1, 2], [0, 0]
    table.retire()
    assert table.numbers() == [2]


def test_inflight_retire_leaves_a_claim_that_a_destructor_has_made() -> None:
    """What is queued from the destructor of what ends, under the same number, keeps its claim."""
    table = entered(flagged(5, SKIP | LINK), record(6, pins=object()))

    class Pin:
        def __del__(self) -> None:
            table.retire()  # as a reader that comes back does
            table.claims.update(claim(table, chain))
            table.add([2, *chain])

    chain = [flagged(5, SKIP | LINK), flagged(6, SQEFlags(0))]
    table.index()
    table.entries[5] = (*table.entries[5][:3], Pin())
    post(table, 6)
    gc.collect()
    assert set(table.claims) == {5, 6}
    post(table, 6)
    assert (len(table), table.claims) == (0, {})


# ---- CQE_SKIP_SUCCESS ----


def test_inflight_reads_the_flags_of_the_encoded_record() -> None:
    """A record is linked with either link flag, and skips with CQE_SKIP_SUCCESS."""
    assert [is_linked(flagged(1, f)[1]) for f in (SQEFlags(0), LINK, HARD, SKIP)] == [0, 1, 1, 0]
    assert [skips(flagged(1, f)) for f in (SQEFlags(0), LINK, SKIP | LINK)] == [0, 0, 1]


def test_inflight_chain_is_ended_by_the_one_that_posts() -> None:
    """The completion of the operation that posts ends those before it that skipped theirs."""
    table = entered(flagged(1, SKIP | LINK), flagged(2, SKIP | LINK), flagged(3, SQEFlags(0)))
    assert len(table) == 3
    post(table, 3)
    assert (len(table), table.claims) == (0, {})


def test_inflight_chain_waits_for_the_terminal_completion() -> None:
    """MORE of the operation that posts ends nothing of the chain."""
    table = entered(flagged(1, SKIP | LINK), flagged(2, SQEFlags(0)))
    post(table, 2, flags=[MORE])
    assert len(table) == 2
    post(table, 2)
    assert len(table) == 0


def test_inflight_chain_goes_on_behind_the_first_that_posts() -> None:
    """What posts after the first one that posts needs its own completion."""
    table = entered(flagged(1, SKIP | LINK), flagged(2, LINK), flagged(3, SQEFlags(0)))
    post(table, 2)
    assert table.numbers() == [3]
    post(table, 3)
    assert len(table) == 0


def test_inflight_chain_is_ended_by_a_failure_of_one_that_skips() -> None:
    """A skipping operation that posts has failed, and the kernel posts nothing for the rest."""
    table = entered(flagged(1, SKIP | LINK), flagged(2, SKIP | LINK), flagged(3, SQEFlags(0)))
    post(table, 2)
    assert (len(table), table.claims) == (0, {})


@pytest.mark.parametrize(
    "records",
    [
        [flagged(1, SKIP)],
        [flagged(1, SKIP | LINK)],
        [flagged(1, LINK), flagged(2, SKIP)],
        [flagged(1, LINK), flagged(2, SKIP | LINK), flagged(3, SQEFlags(0))],
        [flagged(1, SKIP), flagged(2, SQEFlags(0))],
        [flagged(1, SKIP | HARD), flagged(2, SQEFlags(0))],
        [flagged(1, SKIP | LINK), record(2, uring.LinkTimeout(1))],
        [flagged(1, SKIP | LINK), flagged(1, SQEFlags(0))],
        [record(9), flagged(1, SKIP | LINK), flagged(9, LINK)],
    ],
    ids=[
        "alone",
        "open",
        "last",
        "behind one that posts",
        "not linked",
        "hard link",
        "link timeout",
        "one number",
        "open after another",
    ],
)
def test_inflight_chain_that_could_not_end_is_refused(records: list[Record]) -> None:
    """Without something that posts behind it, a skipping operation raises ValueError."""
    with pytest.raises(ValueError, match="CQE_SKIP_SUCCESS"):
        claim(InFlight(), records)


@pytest.mark.parametrize("number", [1, 2])
def test_inflight_chain_needs_numbers_of_its_own(number: int) -> None:
    """A number of the chain that is in flight already, alone, shared or in a chain, is refused."""
    for table in (
        entered(record(number)),
        entered(record(number), record(number)),
        entered(flagged(number, SKIP | LINK), flagged(9, SQEFlags(0))),
    ):
        with pytest.raises(ValueError, match="cannot be shared"):
            claim(table, [flagged(1, SKIP | LINK), flagged(2, SQEFlags(0))])


def test_inflight_chains_without_skips_are_not_kept() -> None:
    """Ordinary chains need no bookkeeping; only the chain that skips has some."""
    table = InFlight()
    assert claim(table, [flagged(1, LINK), flagged(2, SQEFlags(0))]) == {}
    found = claim(
        table,
        [flagged(1, LINK), flagged(2, SQEFlags(0)), flagged(3, SKIP | LINK), record(4), record(5)],
    )
    assert sorted(found) == [3, 4]


def test_inflight_number_of_a_maker_of_descriptors_is_for_its_kind() -> None:
    """Openat may share a number with Openat, in any order, and with nothing else."""
    opens, nop = [record(1, uring.Openat("/")) for _ in range(3)], record(1, uring.Nop())
    assert claim(InFlight(), opens) == {1: uring.Openat}
    table = entered(*opens)
    assert claim(table, [record(2)]) == {}
    for known, new, pending in (
        (table, nop, []),
        (InFlight(), opens[0], [nop]),
        (entered(nop), opens[0], []),
        (entered(nop, record(1, uring.Fsync(0))), opens[0], []),
    ):
        with pytest.raises(ValueError, match="cannot be shared"):
            claim(known, [new], pending)
    for batch in ([opens[0], nop], [nop, opens[0]]):
        with pytest.raises(ValueError, match="of Openat"):
            claim(InFlight(), batch)
    post(table, 1, 1)
    assert table.claims == {1: uring.Openat}
    post(table, 1)
    assert (table.claims, claim(table, [nop])) == ({}, {})
    drawn = record(2**63, uring.Openat("/"))
    assert claim(InFlight(), [drawn]) == {}


class MovingCount(dict[int, Any]):
    """A dict during whose look-ups a handler submits everything, and it ends."""

    pending: list[Any]

    def get(self, *args: Any) -> Any:
        """Look up, and let the handler run."""
        self.pending[:] = [self.pending[0] + len(self.pending) - 1]
        return super().get(*args)


class MovingPending(list[Any]):
    """A list that a handler submits as soon as it has been read, and all of it ends."""

    def __getitem__(self, index: Any) -> Any:
        """Read, and let the handler run if all was read."""
        found = super().__getitem__(index)
        if isinstance(index, slice):
            self[:] = [self[0] + len(self) - 1]
        return found


@pytest.mark.parametrize("known", [[], [7], [7, 7]])
def test_inflight_add_notices_a_handler_that_submitted(known: list[int]) -> None:
    """What a handler handed over in the middle, and what has ended since, is not entered again."""
    table = entered(*(record(number) for number in known))
    table.index()
    pending: list[Any] = [0, record(7)]
    if not known:
        pending = MovingPending(pending)
    elif len(known) < 2:
        entries = MovingCount(table.entries)
        entries.pending = pending
        table.entries = entries
    else:
        shared = MovingCount(table.shared)
        shared.pending = pending
        table.shared = shared
    assert table.add(pending)[0] == 0
    assert len(table) == len(known)


class Model(RuleBasedStateMachine):
    """The table against a list: numbers, how many are in flight, and pins that live as long."""

    def __init__(self) -> None:
        super().__init__()
        self.table = InFlight()
        self.place = 0
        self.alive: dict[int, list[tuple[Record, bytearray]]] = {}
        self.ended: dict[int, int] = {}
        self.last: Any = None

    def _fresh(self, number: int) -> Record:
        buffer = bytearray(1)
        made = record(number, uring.Nop(), memoryview(buffer))
        self.alive.setdefault(number, []).append((made, buffer))
        return made

    def _settle(self, number: int) -> None:
        group = self.alive.get(number, [])
        if group and self.ended.get(number, 0) >= len(group):
            del self.alive[number]
            self.ended.pop(number, None)

    @rule(numbers=st.lists(st.integers(0, 4), max_size=4))
    def add(self, numbers: list[int]) -> None:
        """Enter some operations, numbers shared or not."""
        self.table.add([0, *(self._fresh(number) for number in numbers)])

    @rule(
        posted=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 0, MORE])), max_size=5),
        plain=st.booleans(),
    )
    def complete(self, posted: list[tuple[int, int]], *, plain: bool) -> None:
        """Let CQEs come in, of any number, and retire them."""
        numbers = [number for number, _ in posted]
        flags = None if plain else [flag for _, flag in posted]
        self.last = self.place, numbers, flags
        self.place += len(numbers)
        self.table.ended = self.last
        self.table.retire()
        for number, flag in posted:
            if number in self.alive and (plain or not flag):
                self.ended[number] = self.ended.get(number, 0) + 1
                self._settle(number)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """Take back one that the kernel never saw."""
        number = data.draw(st.sampled_from(sorted(self.alive)))
        index = data.draw(st.integers(0, len(self.alive[number]) - 1))
        made, _ = self.alive[number][index]
        self.table.discard(made)
        self.alive[number] = [pair for pair in self.alive[number] if pair[0] is not made]
        if not self.alive[number]:
            del self.alive[number]
            self.ended.pop(number, None)
        else:
            self._settle(number)

    @invariant()
    def agrees(self) -> None:
        """Length, numbers and membership are the model's; what is in flight is never overlooked."""
        left = sum(len(group) - self.ended.get(n, 0) for n, group in self.alive.items())
        assert not (self.table.is_empty and left)
        assert len(self.table) == left
        assert sorted(self.table.numbers()) == sorted(self.alive)
        for group in self.alive.values():
            for made, _ in group:
                assert made in self.table

    @invariant()
    def pins_live(self) -> None:
        """What is in the table is what the table refers to: no record too few, none too many."""
        held = [*self.table.entries.values()]
        for group in self.table.shared.values():
            held += group.records.values()
        assert {id(made) for made in held} == {
            id(made) for group in self.alive.values() for made, _ in group
        }


TestInFlightModel = Model.TestCase
TestInFlightModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
