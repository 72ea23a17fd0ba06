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
   operation that does post (`_claims` sees to it), and the CQE of that one ends both.

A signal handler may run between any two calls that Python makes, raise KeyboardInterrupt there, or
come back into the ring. So nothing is taken out until the reader has made sure of the CQEs:
`look_up` only reads; the ring then stores how many CQEs it has had and this table's `ended` in one
go; `retire` does what `ended` says and may be cut off and repeated. The caller holds the ring's
lock, but for the stores to `recent` and `single` that the short ways make right after a look (see
ring.py). No call into C, no ring: this is tested by itself.
"""

import errno
import itertools
from array import array
from typing import Any, Final

from uring._claims import Claims, Ended, Expected, Record, Renamed, Shared, Subject
from uring._pledges import Pledge
from uring.flags import CQEFlags

Recent = tuple[bytes, list[Record]]
"""(the user_data of each as an array of uint64_t, the records): as they were submitted."""

UNKNOWN: Final[Record] = (0, b"", None, None)

_MORE: Final = int(CQEFlags.MORE)


class InFlight(Claims):
    """The table of one ring. Its length counts operations whose terminal CQE is still to come."""

    __slots__ = ("has_pledges", "recent", "single")

    def __init__(self) -> None:
        super().__init__()
        self.single: Record | None = None
        """The one operation that is in flight, or None."""
        self.recent: Recent | None = None
        """All that is in flight, as it was submitted, or None."""
        self.has_pledges = False
        """Whether completions must be looked at one by one: see _pledges."""

    @property
    def is_empty(self) -> bool:
        """Whether no operation is in flight, as far as can be told at once; False may be wrong."""
        return self.is_quiet and self.recent is None and self.single is None and not self.runs

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
                        shared[number] = Shared(known)
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
        if self.has_pledges:
            for record in records:
                if isinstance(record[3], Pledge):
                    record[3].is_handed_over = True
        if not records:
            return start, added
        if self.is_quiet and not self.has_pledges:
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
            group = Shared(known)
            group.add(record)
            if pending[0] == start:
                self.shared[number] = group
                del self.entries[number]

    def discard(self, record: Record) -> None:
        """Take out a record whose SQE the kernel has not seen and never will."""
        if isinstance(record[3], Pledge):
            record[3].settle(-errno.ECANCELED)
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
        if self.claims:
            return [self._subject(self._entered_as(number)) for number in numbers]
        if not self.shared:
            get = self.entries.get
            if len(numbers) == 1:  # setting up the loop below would cost as much as the rest
                return [get(numbers[0], UNKNOWN)[2]]
            return [record[2] for record in map(get, numbers, itertools.repeat(UNKNOWN))]
        return [self._subject(number) for number in numbers]

    def _subject(self, number: int) -> Subject:
        group = self.shared.get(number)
        return self.entries.get(number, UNKNOWN)[2] if group is None else group.subject

    def _entered_as(self, number: int) -> int:
        claim = self.claims.get(number)
        return claim.numbers[0] if isinstance(claim, Renamed) else number

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
                if not self._retire_one(number, place, ended):
                    return
        if self.ended is ended:  # no call from here to the end
            self.ended = None
            if not self.entries and not self.shared and not self.claims:
                self.is_quiet = True

    def _retire_one(self, number: int, place: int, ended: Ended) -> bool:
        """Let go of what the terminal CQE at `place` has ended; as `_end`."""
        if isinstance(self.claims.get(number), Expected):
            return self._count_down(number, place, ended)
        return all([self._end(each, place, ended) for each in self._ended_by(number)])  # noqa: C419 - no generator: ring.py

    def _count_down(self, number: int, place: int, ended: Ended) -> bool:
        """Note that a CQE from outside has come; as `_end`."""
        while True:
            claim = self.claims.get(number)
            if not isinstance(claim, Expected):
                return True
            rest = Expected(claim.count - 1, place)
            left, is_new = rest.count, place > claim.last
            if self.ended is not ended:  # no call from here to the end
                return False
            if number in self.claims and self.claims[number] is claim:  # else `unexpect` was here
                if is_new and left:
                    self.claims[number] = rest
                elif is_new:
                    del self.claims[number]
                return True

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
