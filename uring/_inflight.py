"""
What is in flight: user_data -> the operation and the memory that the kernel may touch for it.

The table is not built until it is needed. What is submitted while nothing else is in flight stays
as it is (`recent`, or `single` when it is one), and when exactly these numbers come back, in this
order and without MORE, all of it has ended: comparing the two columns (2 ns an operation) says as
much as entering each in a dict and taking it out again (20 + 16 ns). Whatever does not fit that
picture has them entered in the dict first (`index`), and is looked up.

Three rules.

1. A record stays from before its SQE can be seen by the kernel until its *terminal* CQE (MORE
   clear) has been copied out. `res` decides nothing: a failed zero-copy send still posts twice.
2. Several operations may share a user_data. The kernel does not say which of them a CQE ends, so
   all of their memory stays until as many terminal CQEs have come.
3. An operation with CQE_SKIP_SUCCESS posts only when it fails. In its chain it stands before an
   operation that does post (`claim` sees to it), and the CQE of that one ends both.

A signal handler may run between any two calls that Python makes, raise KeyboardInterrupt there, or
come back into the ring. So nothing is taken out until the reader has made sure of the CQEs:
`look_up` only reads; the ring then stores how many CQEs it has had and this table's `ended` in one
go; `retire` does what `ended` says and may be cut off and repeated. The caller holds the ring's
lock, but for the stores to `recent` and `single` that the short ways make right after a look (see
ring.py). No call into C, no ring: this is tested by itself.
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import attrs

from uring.completions import Answer
from uring.flags import CQEFlags, Opcode, SQEFlags
from uring.sqe import Queueable

Subject = Queueable | Answer | None
Record = tuple[int, bytes, Subject, object]
"""(user_data, the encoded SQE, what its completions are of, pins): a tuple, for it is made for
every operation, and an attrs object would cost ten times as much."""

Recent = tuple[bytes, list[Record]]
"""(the user_data of each as an array of uint64_t, the records): as they were submitted."""

Ended = tuple[int, list[int], list[int] | None]
"""(how many CQEs were had before, the user_data of each, their flags unless none has MORE)"""

UNKNOWN: Final[Record] = (0, b"", None, None)

FIRST_DRAWN: Final = 2**63
"""From here upwards the ring draws the numbers of operations that were given none."""

_LINKED: Final = int(SQEFlags.IO_LINK | SQEFlags.IO_HARDLINK)
_HARD: Final = int(SQEFlags.IO_HARDLINK)
_SKIP: Final = int(SQEFlags.CQE_SKIP_SUCCESS)
_MORE: Final = int(CQEFlags.MORE)


def is_linked(record: Record) -> bool:
    """Whether the next SQE belongs to the same chain."""
    return bool(record[1][1] & _LINKED)


def skips(record: Record) -> bool:
    """Whether the operation posts no CQE when it succeeds."""
    return bool(record[1][1] & _SKIP)


def _operation(subject: Subject) -> Queueable | None:
    return subject.operation if isinstance(subject, Answer) else subject


class RunInFlight(Protocol):
    """A batch that is being run, as far as others than its runner look at it: see _running.Run."""

    batch: Any
    first: int
    is_orphan: bool
    shim: Any

    @property
    def in_flight(self) -> int:
        """How many of its operations the kernel has."""

    def has(self, number: int) -> bool:
        """Whether one of its operations has this user_data."""

    def overlaps(self, numbers: range) -> bool:
        """Whether any of its operations has one of these."""

    def unended(self) -> list[int]:
        """The indices of what was placed and has posted nothing yet."""

    def numbers_of(self, indices: list[int]) -> list[int]:
        """The user_data of these operations."""

    def close_descriptors(self) -> None:
        """Close what its operations have opened; once."""


class _Shared:
    """Operations in flight under one user_data."""

    __slots__ = ("finished", "records", "subject")

    def __init__(self, first: Record) -> None:
        self.records = {id(first): first}  # by identity, so that a thousand are no slower than two
        self.finished: set[int] = set()  # places of terminal CQEs: retiring twice is retiring once
        self.subject = first[2]

    def add(self, record: Record) -> None:
        self.records[id(record)] = record
        if record[2] is not self.subject:
            known, added = _operation(self.subject), _operation(record[2])
            is_alike = known is not None and type(added) is type(known)
            self.subject = Answer(known, None, is_certain=False) if known and is_alike else None


@attrs.frozen
class Chain:
    """A chain with operations that skip their CQE: they come first, then those that post."""

    numbers: tuple[int, ...]
    skipping: int
    """How many of the first ones skip."""

    def ended_by(self, number: int) -> tuple[int, ...]:
        """
        Everything that has ended when `number` has posted its terminal CQE; `number` comes last.

        The skipping ones before it. And when `number` itself skips, it has failed; then the kernel
        cancels all that is behind it and posts nothing for them (io_fail_links in
        io_uring/timeout.c).
        """
        place = self.numbers.index(number)
        if place < self.skipping:
            return (*self.numbers[:place], *self.numbers[place + 1 :], number)
        return (*self.numbers[: self.skipping], number)


@attrs.frozen
class Sole:
    """An operation whose memory says what it made: nobody could tell if it shared its number."""

    kind: type[Queueable]


Claim = Chain | Sole | RunInFlight | type[Queueable]
"""The chain, run, or one kind of operation, that a user_data belongs to while it is in flight."""


class InFlight:
    """The table of one ring. Its length counts operations whose terminal CQE is still to come."""

    __slots__ = (
        "claims",
        "claims_made",
        "ended",
        "entries",
        "has_high",
        "is_quiet",
        "recent",
        "runs",
        "shared",
        "single",
    )

    def __init__(self) -> None:
        self.is_quiet = True
        """
        Whether nothing is in `entries`, `shared`, `claims` or `ended`. Made False before that ends.
        """
        self.single: Record | None = None
        """The one operation that is in flight, or None."""
        self.recent: Recent | None = None
        """All that is in flight, as it was submitted, or None."""
        self.runs: dict[int, RunInFlight] = {}
        """The batches that are being run, with their memory; their CQEs never come here."""
        self.entries: dict[int, Record] = {}
        self.shared: dict[int, _Shared] = {}
        self.claims: dict[int, Claim] = {}
        self.has_high = False
        """Whether a number from FIRST_DRAWN upwards was ever chosen: a run must look for those."""
        self.claims_made = 0  # how often: who reads and then writes looks whether it was alone
        self.ended: Ended | None = None
        """What was copied out and is not retired yet."""

    def __len__(self) -> int:
        self.index()
        groups = self.shared.values()
        return (
            len(self.entries)
            + sum(len(g.records) - len(g.finished) for g in groups)
            + sum(run.in_flight for run in list(self.runs.values()))
        )

    def __contains__(self, record: Record) -> bool:
        self.index()
        group = self.shared.get(record[0])
        if group is not None:
            return id(record) in group.records
        return self.entries.get(record[0]) is record

    def numbers(self) -> list[int]:
        """Every user_data in flight, but for those of runs."""
        self.index()
        return [*self.entries, *self.shared]

    def index(self) -> None:
        """
        Enter in the dict what is not there yet.

        Done again, or by two at once, it is done once: all of it is made ready, and then stored
        with no call in between, if it still is what that was made of.
        """
        while (single := self.single) is not None or self.recent is not None:
            recent = self.recent
            entries, shared = dict(self.entries), dict(self.shared)
            for record in (*(recent[1] if recent else ()), *((single,) if single else ())):
                number = record[0]
                known = entries.get(number)
                if known is None and number not in shared:
                    entries[number] = record
                elif known is not record:
                    if known is not None:
                        shared[number] = _Shared(known)
                        del entries[number]
                    shared[number].add(record)
            if self.recent is recent and self.single is single:  # no call from here to the end
                self.is_quiet = False
                self.entries = entries
                self.shared = shared
                self.recent = self.single = None

    def add(self, pending: list[Any]) -> tuple[int, Recent]:
        """
        Enter what is pending: (how many were placed before it, the numbers and the records).

        Records that are in already stay in. A handler that came back into the ring may have
        submitted and even finished them after they were read here, which moves `pending[0]`: that
        is looked at right before each change, as in `retire`.
        """
        if self.ended is not None:
            self.retire()
        self.index()
        records = pending[:]
        start: int = records[0]
        del records[0]
        numbers = [record[0] for record in records]
        added = array("Q", numbers).tobytes(), records
        if not records:
            return start, added
        if self.is_quiet:
            if pending[0] == start and self.recent is None and self.single is None:
                self.recent = added
            return start, added
        self.is_quiet = False
        fresh = dict(zip(numbers, records, strict=True))
        if (
            len(fresh) == len(records)
            and self.entries.keys().isdisjoint(fresh)
            and (not self.shared or self.shared.keys().isdisjoint(fresh))
        ):
            if pending[0] == start:
                self.entries.update(fresh)
        else:
            for record in records:
                self._add(record, pending, start)
        return start, added

    def _add(self, record: Record, pending: list[Any], start: int) -> None:
        number = record[0]
        known = self.entries.get(number)
        group = self.shared.get(number)
        if group is not None:
            if pending[0] == start:
                group.add(record)  # by identity: once
        elif known is None:
            if pending[0] == start:
                self.entries[number] = record
        elif known is not record:
            group = _Shared(known)
            group.add(record)
            if pending[0] == start:
                self.shared[number] = group
                del self.entries[number]

    def discard(self, record: Record) -> None:
        """Take out a record whose SQE the kernel has not seen and never will."""
        if record not in self:
            return
        group = self.shared.get(record[0])
        if group is None:
            self.claims.pop(record[0], None)
            del self.entries[record[0]]
            return
        del group.records[id(record)]
        if len(group.records) <= len(group.finished):
            self.claims.pop(record[0], None)
            del self.shared[record[0]]

    def look_up(self, numbers: list[int]) -> list[Subject]:
        """Say what each CQE is of. Changes nothing that can be seen."""
        self.index()
        if not self.shared:
            get = self.entries.get
            if len(numbers) == 1:  # setting up the loop below would cost as much as the rest
                return [get(numbers[0], UNKNOWN)[2]]
            return [record[2] for record in map(get, numbers, itertools.repeat(UNKNOWN))]
        return [
            self.shared[number].subject
            if number in self.shared
            else self.entries.get(number, UNKNOWN)[2]
            for number in numbers
        ]

    def retire(self) -> None:
        """
        Let go of what `ended` says has ended.

        Every check that `ended` is still ours stands right before the call that changes the table.
        CPython runs signal handlers after calls, and (before 3.12) finalizers of garbage when a
        container is made; not between the two. So who came back into the ring from one of those and
        retired all of this is noticed.
        """
        ended = self.ended
        if ended is None:
            return
        self.index()
        first, numbers, flags = ended
        if flags is None and not self.shared and not self.claims:
            if len(numbers) == 1:
                self.entries.pop(numbers[0], None)
            else:
                popped = map(self.entries.pop, numbers, itertools.repeat(None))
                gone: list[Record | None] = []  # made before the look: see above
                if self.ended is not ended:
                    return
                gone.extend(popped)  # kept to the end, so that no destructor runs in the middle
        else:
            for place, number in enumerate(numbers, first):
                if flags is not None and flags[place - first] & _MORE:
                    continue
                for each in self._ended_by(number):
                    if not self._end(each, place, ended):
                        return
        if self.ended is ended:  # no call from here to the end
            self.ended = None
            if not self.entries and not self.shared and not self.claims:
                self.is_quiet = True

    def _ended_by(self, number: int) -> Iterable[int]:
        chain = self.claims.get(number)
        if not isinstance(chain, Chain):
            return (number,)
        # A member that ended before may have left its number to an operation outside the chain.
        return [each for each in chain.ended_by(number) if self.claims.get(each) is chain]

    def _end(self, number: int, place: int, ended: Ended) -> bool:
        """
        End what has this number, if `ended` is still what is to be retired; else False.

        The locals hold what is taken out, so that no destructor runs between the look and the end.
        """
        _record, _claim = self.entries.get(number), self.claims.get(number)
        group = self.shared.get(number)
        if group is not None:
            if self.ended is not ended:
                return False
            group.finished.add(place)
            if len(group.finished) < len(group.records):
                return True
        if self.ended is not ended:  # no call from here to the end
            return False
        if number in self.entries:  # of a group, too, if forming it was cut off
            del self.entries[number]
        if number in self.shared:
            del self.shared[number]
        if number in self.claims:
            del self.claims[number]
        return True

    def discard_number(self, number: int) -> None:
        """Take out one record with this user_data; of those that share it, the youngest."""
        self.index()
        group = self.shared.get(number)
        record = self.entries.get(number) if group is None else [*group.records.values()][-1]
        if record is not None:
            self.discard(record)

    # ---- numbers that cannot be shared with anything ----

    def claim(self, records: Sequence[Record]) -> dict[int, Claim]:
        """
        What `records` claim of their user_data. Changes nothing.

        A chain with skipping operations claims the numbers of all its members. An operation that
        makes a descriptor claims the number that it was given for its own kind: if its CQE could be
        another's, nobody could tell a descriptor that must be closed from a count. (Numbers that
        the ring draws are not shared by accident, and need no claim.)

        Raises:
            ValueError: two of them, or one and what is claimed already, cannot share a number, or
                nothing in a chain would say that a skipping operation has ended.
        """
        found: dict[int, Claim] = dict(self._chains(records))
        for record in records:
            operation = _operation(record[2])
            if operation is None or record[0] >= FIRST_DRAWN:
                continue
            if operation._is_sole:
                self.check_claim(record[0], found.get(record[0]))
                found[record[0]] = Sole(type(operation))
            elif operation._makes_descriptor:
                found.setdefault(record[0], type(operation))
        for record in records:
            number, kind = record[0], type(_operation(record[2]))
            self.check_claim(number, self.claims.get(number), kind)
            if not isinstance(found.get(number), Chain | Sole):
                self.check_claim(number, found.get(number), kind)
        return found

    def check_claims(self, found: dict[int, Claim], pending: Sequence[Record]) -> None:
        """
        Look whether others in flight or pending have the numbers that `claim` found.

        Raises:
            ValueError: there are such, and they cannot share them.
        """
        if found:
            for number, kind in self._kinds({*found}, pending):
                self.check_claim(number, found[number], kind)

    def is_claimed(self, numbers: range) -> bool:
        """Whether any of these is claimed, or has been drawn or chosen by a run."""
        runs = list(self.runs.values())
        if any([number in numbers for number in list(self.claims)]):  # noqa: C419 - see ring.py
            return True
        return bool([run for run in runs if run.overlaps(numbers)])

    def check_runs(self, numbers: Iterable[int], *, besides: RunInFlight | None = None) -> None:
        """
        Look whether a run has a number that is now chosen for something else.

        Raises:
            ValueError: it has; the one's completion would be taken for the other's.
        """
        for run in list(self.runs.values()):
            for number in numbers:
                if run is not besides and run.has(number):
                    self.check_claim(number, run)

    def withdraw(self, found: dict[int, Claim]) -> None:
        """Take back claims for what is not queued after all."""
        self.index()
        for number in found:
            if number not in self.entries and number not in self.shared:
                self.claims.pop(number, None)

    def _kinds(
        self, numbers: set[int], pending: Sequence[Record]
    ) -> Iterator[tuple[int, type[Queueable | None]]]:
        """The kinds of operations that have one of these numbers already."""
        self.index()
        for number in numbers & self.entries.keys():
            yield number, type(_operation(self.entries[number][2]))
        for number in numbers & self.shared.keys():
            yield number, type(_operation(self.shared[number].subject))
        for record in pending:
            if record[0] in numbers:
                yield record[0], type(_operation(record[2]))

    @staticmethod
    def check_claim(
        number: int, claim: Claim | None, kind: type[Queueable | None] | None = None
    ) -> None:
        """
        Look whether an operation of this kind may have a number that is claimed.

        Raises:
            ValueError: it may not.
        """
        if claim is None or claim is kind:
            return
        if isinstance(claim, Chain):
            what = "in a chain with CQE_SKIP_SUCCESS"
        elif isinstance(claim, Sole):
            what = f"of {claim.kind.__name__}, whose memory holds its descriptors"
        elif isinstance(claim, type):
            what = f"of {claim.__name__}, whose result is a descriptor"
        else:
            what = "in a batch that is being run"
        raise ValueError(
            f"user_data {number:#x} is in use, and one {what} cannot be shared with others: use"
            " another, or wait for its completion"
        )

    def _chains(self, records: Sequence[Record]) -> dict[int, Chain]:
        found: dict[int, Chain] = {}
        start = 0
        for stop, record in enumerate(records, 1):
            if is_linked(record) and stop < len(records):
                continue
            members, start = records[start:stop], stop
            if any(map(skips, members)):
                chain = self._chain(members, is_open=is_linked(record))
                for number in chain.numbers:
                    self.check_claim(number, found.get(number))
                found.update(dict.fromkeys(chain.numbers, chain))
        return found

    @staticmethod
    def _chain(members: Sequence[Record], *, is_open: bool) -> Chain:
        flags = [record[1][1] for record in members]
        skipping = sum(1 for flag in flags if flag & _SKIP)
        # A LinkTimeout posts when its time is over: that says nothing of the one before it.
        timed = any(record[1][0] == Opcode.LINK_TIMEOUT for record in members)
        # A hard link goes on after a failure, unless the chain failed before it ran, and then the
        # kernel posts nothing for the rest: the CQE is the same.
        hard = any(flag & _HARD for flag in flags[:skipping])
        late = any(flag & _SKIP for flag in flags[skipping:])
        if timed or hard or late or is_open or flags[-1] & _SKIP:
            raise ValueError(
                "an operation with CQE_SKIP_SUCCESS says nothing when it succeeds, so its memory"
                " could never be freed: put such operations first in a chain that ends with one"
                " that posts, with plain links and without a LinkTimeout, and queue all of it with"
                " one queue_all()"
            )
        makers = [_operation(record[2]) for record in members[:skipping]]
        if any(maker is not None and maker._makes_descriptor for maker in makers):
            raise ValueError(
                "with CQE_SKIP_SUCCESS nobody would learn of the new descriptor, so nobody could"
                " close it"
            )
        numbers = tuple(record[0] for record in members)
        if len(set(numbers)) < len(numbers):
            raise ValueError(
                "in a chain with CQE_SKIP_SUCCESS every operation needs a user_data of its own"
            )
        return Chain(numbers, skipping)
