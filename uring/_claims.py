"""
Numbers that cannot be shared: what a user_data belongs to while it is in flight.

Operations may share a number, as the kernel allows; the memory of all then stays until all have
ended. Where that is not enough, because a completion would then say too little to give memory or
a descriptor back, the number is claimed: by a chain that skips completions, by what makes
descriptors, by a batch that is run, by what comes from outside.

Claims are made before the look whether others have the number, so that who comes in between, from
a signal handler, refuses himself; `claims_made` tells who reads and then writes that he was not
alone. No call into C, no ring. The caller holds the ring's lock.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs

from uring._order import notifies
from uring._pledges import Pledge
from uring.completions import Answer
from uring.flags import Opcode, SQEFlags
from uring.sqe import Queueable, is_linked

FIRST_DRAWN: Final = 2**63
"""From here upwards the ring draws the numbers of operations that were given none."""

_HARD: Final = int(SQEFlags.IO_HARDLINK)
_SKIP: Final = int(SQEFlags.CQE_SKIP_SUCCESS)


Subject = Queueable | Answer | None
Record = tuple[int, bytes, Subject, object]
"""(user_data, the encoded SQE, what its completions are of, pins): a tuple, for it is made for
every operation, and an attrs object would cost ten times as much."""

Ended = tuple[int, list[int], list[int] | None]
"""(how many CQEs were had before, the user_data of each, their flags unless none has MORE)"""


def skips(record: Record) -> bool:
    """Whether the operation posts no CQE when it succeeds."""
    return bool(record[1][1] & _SKIP)


def keeps_to_its_kind(op: Queueable) -> bool:
    """Whether it shares its number only with operations of its own class."""
    return op._makes_descriptor or notifies(op)


def operation_of(subject: Subject) -> Queueable | None:
    """The operation, whatever else its completion needs."""
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


class Shared:
    """Operations in flight under one user_data."""

    __slots__ = ("finished", "records", "subject")

    def __init__(self, first: Record) -> None:
        self.records = {id(first): first}  # by identity, so that a thousand are no slower than two
        self.finished: set[int] = set()  # places of terminal CQEs: retiring twice is retiring once
        self.subject = first[2]

    def add(self, record: Record) -> None:
        self.records[id(record)] = record
        if record[2] is not self.subject:
            known, added = operation_of(self.subject), operation_of(record[2])
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


@attrs.frozen
class Renamed:
    """A poll whose user_data was or is being changed: it ends with any of these numbers."""

    numbers: tuple[int, ...]
    """First that under which it is in the table."""


@attrs.frozen
class Expected:
    """
    CQEs that come from outside, and end no operation here.

    A message from another ring, or the release of a tagged resource.
    """

    count: int
    last: int = -1
    """The place of the last one that came: retiring twice is retiring once."""


Claim = Chain | Sole | Renamed | Expected | RunInFlight | type[Queueable]
"""What a user_data belongs to, alone, while it is in flight."""


class Claims:
    """The claims of one ring, and of its table what they are compared with."""

    __slots__ = (
        "claims",
        "claims_made",
        "ended",
        "entries",
        "has_drained",
        "has_high",
        "is_quiet",
        "runs",
        "shared",
    )

    def __init__(self) -> None:
        self.is_quiet = True
        """
        Whether nothing is in `entries`, `shared`, `claims` or `ended`. Made False before that ends.
        """
        self.runs: dict[int, RunInFlight] = {}
        """The batches that are being run, with their memory; their CQEs never come here."""
        self.entries: dict[int, Record] = {}
        self.shared: dict[int, Shared] = {}
        self.claims: dict[int, Claim] = {}
        self.has_high = False
        """Whether a number from FIRST_DRAWN upwards was ever chosen: a run must look for those."""
        self.has_drained = False
        """Whether anything with IO_DRAIN ever came, which sends others to the kernel's workers."""
        self.claims_made = 0  # how often: who reads and then writes looks whether it was alone
        self.ended: Ended | None = None
        """What was copied out and is not retired yet."""

    def index(self) -> None:
        """Enter in the dict what is not there yet."""

    def retire(self) -> None:
        """Let go of what `ended` says has ended."""

    def claim(self, records: Sequence[Record]) -> dict[int, Claim]:
        """
        What `records` claim of their user_data. Changes nothing of theirs.

        A chain with skipping operations claims the numbers of all its members. An operation that
        makes a descriptor claims the number that it was given for its own kind: if its CQE could be
        another's, nobody could tell a descriptor that must be closed from a count; nor what has
        ended, of a zero-copy send. (Numbers that the ring draws are not shared by accident, and
        need no claim.)

        Raises:
            ValueError: two of them, or one and what is claimed already, cannot share a number, or
                nothing in a chain would say that a skipping operation has ended.
        """
        found: dict[int, Claim] = dict(self._chains(records))
        for record in records:
            operation = operation_of(record[2])
            if operation is None or record[0] >= FIRST_DRAWN:
                continue
            if operation._is_sole:
                found.setdefault(record[0], Sole(type(operation)))
            elif keeps_to_its_kind(operation):
                found.setdefault(record[0], type(operation))
        seen: set[int] = set()
        for record in records:
            number, kind = record[0], type(operation_of(record[2]))
            self.check_claim(number, self.claims.get(number), kind)
            claim = found.get(number)
            if isinstance(claim, Sole) and number not in seen:
                seen.add(number)  # the one that may have it, if no second one comes
            elif not isinstance(claim, Chain):
                self.check_claim(number, claim, kind)
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

    def expect(self, number: int, pending: list[Any], pledge: Pledge | None = None) -> None:
        """
        Reserve a number for one more CQE from outside. The caller holds the lock, and has trimmed.

        Raises:
            ValueError: an operation has the number; the CQE would end it.
        """
        if self.ended is not None:
            self.retire()
        while True:
            claim = self.claims.get(number)
            if not isinstance(claim, Expected):
                break
            more = Expected(claim.count + 1, claim.last)
            # No call from here to the store; `unexpect` may have been here.
            if number in self.claims and self.claims[number] is claim:
                self.claims[number] = more
                if pledge is not None:
                    pledge.is_settled = False
                return
        self.check_claim(number, claim)
        found: dict[int, Claim] = {number: Expected(1)}
        self._make_claims(found, pending)
        if pledge is not None:  # no call between the end of that and the store
            pledge.is_settled = False

    def unexpect(self, number: int) -> None:
        """Take back one `expect`: the CQE will not come. Needs no lock."""
        while True:
            claim = self.claims.get(number)
            if not isinstance(claim, Expected):
                return
            left = Expected(claim.count - 1, claim.last)
            # No call from here to the end.
            if number in self.claims and self.claims[number] is claim:
                if left.count:
                    self.claims[number] = left
                else:
                    del self.claims[number]
                return

    def rename(self, numbers: tuple[int, int], pending: list[Any], pledge: Pledge) -> None:
        """
        Prepare for an operation in flight to go on under another number.

        Raises:
            ValueError: one of the two is shared, or claimed, or the new one is in use.
        """
        if self.ended is not None:
            self.retire()
        self.index()
        old, new = numbers
        known = self.entries.get(old)
        sharing = {id(r) for r in (known, *pending[1:]) if r is not None and r[0] == old}
        if old in self.shared or len(sharing) > 1:
            raise ValueError(f"user_data {old:#x} is shared: nobody can tell which one is renamed")
        claim = self.claims.get(old)
        if not isinstance(claim, Renamed):
            self.check_claim(old, claim)
            claim = Renamed((old,))
        if new in claim.numbers:  # back to one that it had
            pledge.is_settled = False
            return
        self.check_claim(new, self.claims.get(new))
        claim = Renamed((*claim.numbers, new))
        renamed = dict.fromkeys(claim.numbers, claim)
        self._make_claims({new: claim}, pending)
        pledge.is_settled = False  # no call from the end of that to the update
        self.claims.update(renamed)

    def unrename(self, numbers: tuple[int, int], pending: list[Any]) -> None:
        """
        Take back a `rename`, if what it was for is not there.

        If it is, it keeps the number until it ends: another update may have given it that one.
        """
        self.index()
        claim = self.claims.get(numbers[1])
        if not isinstance(claim, Renamed):
            return
        first = claim.numbers[0]
        if first not in self.entries and not [r for r in pending[1:] if r[0] == first]:
            for number in claim.numbers:
                if self.claims.get(number) is claim:
                    self.claims.pop(number, None)

    def _make_claims(self, found: dict[int, Claim], pending: list[Any]) -> None:
        """Claim numbers before the look whether others have them: see _claim_and_append."""
        self.claims_made += 1
        self.is_quiet = False
        self.has_high = self.has_high or max(found) >= FIRST_DRAWN
        before = self.claimed(found)
        try:
            self.claims.update(found)
            self.check_runs(found)
            self.check_claims(found, pending[1:])  # after the claims: see above
        except BaseException:
            for number, claim in found.items():
                if isinstance(claim, Expected):  # others may have counted up meanwhile
                    self.unexpect(number)
            self.withdraw(
                {n: each for n, each in found.items() if not isinstance(each, Expected)}, before
            )
            raise

    def claimed(self, numbers: Iterable[int]) -> dict[int, Claim | None]:
        """What these numbers belong to now."""
        return {number: self.claims.get(number) for number in numbers}

    def withdraw(self, found: Mapping[int, Claim], before: dict[int, Claim | None]) -> None:
        """
        Take back claims for what is not queued after all, but those that there were before.

        One that stayed would be taken for that of whoever has the number, whose completion would
        then end others, or not even itself. Only the claim of a kind of operation may stay while
        somebody has the number: he may be of that kind.
        """
        self.index()
        for number, claim in found.items():
            is_used = number in self.entries or number in self.shared
            if self.claims.get(number) is not claim:  # a signal handler has made another
                continue
            if before[number] is None and not (is_used and isinstance(claim, type)):
                self.claims.pop(number, None)

    def _kinds(
        self, numbers: set[int], pending: Sequence[Record]
    ) -> Iterator[tuple[int, type[Queueable | None]]]:
        """The kinds of operations that have one of these numbers already."""
        self.index()
        for number in numbers & self.entries.keys():
            yield number, type(operation_of(self.entries[number][2]))
        for number in numbers & self.shared.keys():
            yield number, type(operation_of(self.shared[number].subject))
        for record in pending:
            if record[0] in numbers:
                yield record[0], type(operation_of(record[2]))

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
            what = f"of {claim.kind.__name__}, whose completions only it can explain,"
        elif isinstance(claim, Renamed):
            what = "of a poll that gets another user_data"
        elif isinstance(claim, Expected):
            what = "that comes from outside, of a message or a tagged resource,"
        elif isinstance(claim, type):
            why = "which notifies" if claim._notifies is True else "whose result is a descriptor"
            what = f"of {claim.__name__}, {why},"
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
            if is_linked(record[1]) and stop < len(records):
                continue
            members, start = records[start:stop], stop
            if any(map(skips, members)):
                chain = self._chain(members, is_open=is_linked(record[1]))
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
        makers = [operation_of(record[2]) for record in members[:skipping]]
        if any(maker and (maker._makes_descriptor or maker._is_sole) for maker in makers):
            raise ValueError(
                "with CQE_SKIP_SUCCESS nobody would learn of the new descriptor, or of the buffer,"
                " so nobody could give it back"
            )
        numbers = tuple(record[0] for record in members)
        if len(set(numbers)) < len(numbers):
            raise ValueError(
                "in a chain with CQE_SKIP_SUCCESS every operation needs a user_data of its own"
            )
        return Chain(numbers, skipping)

    def _ended_by(self, number: int) -> Iterable[int]:
        chain = self.claims.get(number)
        if isinstance(chain, Renamed):
            return chain.numbers
        if not isinstance(chain, Chain):
            return (number,)
        # A member that ended before may have left its number to an operation outside the chain.
        return [each for each in chain.ended_by(number) if self.claims.get(each) is chain]
