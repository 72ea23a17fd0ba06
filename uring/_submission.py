"""
The submission side: from a record to an SQE that the kernel has taken.

`_pending` is a list whose item 0 is how many records were placed before those behind it, so that
trimming what was placed is one slice assignment: whole, or not done at all. Appending takes no
lock; that can put as many records too many into the list as there are threads in the middle of
`queue()`, which `_submit` puts up with.

Why records wait in a Python list: one call into C for each, which encodes into the SQ directly,
costs 2.6 times what the `liburing` binding does for a batch of NOPs; a list handed over at submit,
1.2. A record is a tuple: a flat list of four items an operation is cheaper to take apart (1.4 ns an
item against 10) and dearer to fill, which evens out, and a tuple has an identity.
"""

import errno
import sys
import traceback
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from uring._claims import (
    FIRST_DRAWN,
    Record,
    keeps_to_its_kind,
    operation_of,
    skips,
)
from uring._ffi import ffi, lib
from uring._inflight import Recent
from uring._order import check_drains
from uring._records import RecordSide
from uring._setup import RingParams
from uring.errors import SubmissionQueueFull
from uring.flags import SetupFlags
from uring.registry.buffer_rings import check_group
from uring.sqe import NO_FLAGS, SQE_SIZE, UINT32_MAX, Queueable, is_drained, is_linked

if TYPE_CHECKING:
    from uring._uring import CData

_ANOTHER_WAS_FASTER: Final = -errno.ESTALE
_NO_ROOM: Final = -errno.ENOSPC


def _high(chosen: int | None) -> list[int]:
    """The number, if it was chosen and might be one that the ring draws."""
    return [] if chosen is None or chosen < FIRST_DRAWN else [chosen]


def needs_claims(op: Queueable, record: Record) -> bool:
    """Whether it must claim its number: it skips its CQE, makes a descriptor or notifies."""
    if skips(record):
        return True
    return record[0] < FIRST_DRAWN and (op._is_sole or keeps_to_its_kind(op))


class SubmissionSide(RecordSide):
    """Queueing and submitting."""

    def __init__(self, shim: "CData", inbox: "CData", params: RingParams) -> None:
        super().__init__(shim, inbox, params)
        self._is_sqpoll = bool(params.flags & SetupFlags.SQPOLL)
        self._room = params.sq_entries  # as many may be pending without asking the kernel

    def sq_ready(self) -> int:
        """Return how many operations are queued that the kernel has not taken yet."""
        self._check_open()
        with self._lock:
            counters = self._trim()
            published = (counters.sq_tail - counters.sq_head) & UINT32_MAX
            return int(published) + len(self._pending) - 1

    def queue(self, op: Queueable, *, user_data: int | None = None) -> int:  # noqa: PLR0912 - the shortest way
        """
        Queue an operation; do not submit it.

        From here to its terminal completion the ring holds the operation and pins its memory.

        Args:
            op: an operation, or an `SQE`.
            user_data: the number that its completions carry, 0..2**64 - 1; None takes the
                operation's own, or else the next number from 2**63 upwards, never used twice.
                Several may share one; the memory of all is then kept until all have ended, and
                `cqe.op` is None, for nobody can tell which one a completion is of.

        Returns:
            The user_data.

        Raises:
            SubmissionQueueFull: there is no room -> submit, and queue it again.
            ValueError, TypeError: the operation cannot be encoded, or its user_data cannot be
                shared with what is in flight (see CQE_SKIP_SUCCESS and operations that make a
                descriptor) -> the message says why. The ring is as it was.
            UnsupportedError: the kernel lacks its opcode; asked for what is newer than Linux 5.6.
            RingClosedError: the ring is closed.

        Kernel: 5.4; the operation may need more. liburing: io_uring_get_sqe(3).
        """
        # The shortest way, for what needs no care; everything else goes by way of _record().
        try:
            prepared = op._prepared
        except AttributeError:
            return self._queue(op, user_data)
        if prepared is None and op._flags is NO_FLAGS:  # else _record() looks at them
            try:  # as encoded()
                prepared = op._encode()
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)
                raise
            if prepared[1] is None:
                op._remember(prepared)
        if prepared and type(user_data) is int and not user_data >> 63:
            number = user_data
        elif not prepared:
            return self._queue(op, user_data)
        else:
            chosen = op.user_data if user_data is None else user_data
            if chosen is None:
                chosen = self._next_number  # as _draw()
                self._next_number = chosen + 1
            elif type(chosen) is not int or chosen >> 63:
                return self._queue(op, user_data)
            number = chosen
        pending = self._pending
        if len(pending) <= self._room:
            try:
                encoded, pins = prepared
            except TypeError:  # a class has such an attribute, too
                self._check_operation(op)
                raise
            record = number, encoded, op, pins
            if self._is_guarded:
                self._check_use()
            if not self._in_flight.claims:  # no call and nothing made between this and the next
                pending.append(record)
                return number
        return self._queue(op, user_data)

    def _queue(self, op: Queueable, user_data: int | None, *, is_drawn: bool = False) -> int:
        if self._is_guarded:
            self._check_use()
        record = self._record(op, user_data)
        if op._reaches_out:
            record = self._pledged(op, record)
        high = [] if is_drawn else _high(op.user_data if user_data is None else user_data)
        pending = self._pending
        if len(pending) > self._room:
            self._make_room(1)
        # With a number of its own choice a maker of descriptors must not share it with others, and
        # a number of the ring's kind that was chosen must not be one that a run has drawn; and
        # what has IO_DRAIN is to be known to who queues behind it.
        needs_care = high or needs_claims(op, record) or is_drained(record[1])
        if needs_care or self._in_flight.claims:
            with self._lock:
                self._check_place([op], [record])
                self._claim_and_append([record], high)
        elif op._takes_buffer or op._notifies:
            with self._lock:
                while True:
                    has_drained = self._in_flight.has_drained
                    self._check_place([op], [record])
                    if self._in_flight.has_drained == has_drained:  # no call to the next line
                        pending.append(record)
                        break
        else:  # no call between the look at the claims and this
            pending.append(record)
        self._check_kept()
        return record[0]

    def queue_all(self, ops: Iterable[Queueable]) -> list[int]:
        """
        Queue operations in order, all or none; do not submit them.

        What is linked in `ops` is submitted as one chain, whatever other threads do meanwhile.

        Returns:
            The user_data of each.

        Raises:
            SubmissionQueueFull: not all of them fit -> submit, and queue them again; more than
                `entries` never do.
            ValueError, TypeError, UnsupportedError: as for `queue()`. Nothing was queued.
            RingClosedError: the ring is closed.

        Kernel: 5.4; the operations may need more. liburing: io_uring_get_sqe(3).
        """
        self._check_use()
        if isinstance(ops, Queueable):
            raise TypeError(f"queue_all() takes a sequence of operations: queue() takes {ops!r}")
        ops = [*ops]
        records = [self._record(op, None) for op in ops]
        for index, op in enumerate(ops):
            if op._reaches_out:
                records[index] = self._pledged(op, records[index])
        numbers = [record[0] for record in records]
        high = [number for op in ops for number in _high(op.user_data)]
        needs_care = bool(high) or any(map(needs_claims, ops, records))
        needs_care = needs_care or is_drained(*[record[1] for record in records])
        with self._lock:
            if len(records) > self._params.sq_entries:
                raise SubmissionQueueFull(
                    f"{len(records)} operations never fit in {self._params.sq_entries} entries:"
                    " queue fewer at once, or make the ring with more entries"
                )
            if len(self._pending) - 1 + len(records) > self._room:
                self._make_room(len(records))
            self._check_place(ops, records)
            if needs_care or self._in_flight.claims:
                self._claim_and_append(records, high)
            else:  # no call between the look at the claims and this
                self._pending.extend(records)
        self._check_kept()
        return numbers

    def _check_kept(self) -> None:
        """Let go of what came into the list after the ring was closed, and say so."""
        if self._refusal is not None:
            del self._pending[1:]  # never to be submitted; what the kernel has is in flight
            self._check_open()

    def _is_behind_link(self) -> bool:
        """Whether what is queued next goes on with a chain; the lock is held."""
        last = self._pending[-1]
        if not isinstance(last, int):
            return is_linked(last[1])
        counters = self._counters()
        if counters.sq_head == counters.sq_tail:  # the kernel ends a chain with what it takes
            return False
        tail = (counters.sq_tail - 1) & UINT32_MAX
        return is_linked(ffi.buffer(self._placed_sqe(tail), SQE_SIZE)[:])

    def _open_chain(self) -> list[Queueable | None]:
        """The operations of the chain that what is queued next goes on with."""
        chain: list[Queueable | None] = []
        last = self._pending[-1]
        if isinstance(last, int) or not is_linked(last[1]):
            return chain
        for record in reversed(self._records()):
            if not is_linked(record[1]):
                break
            chain.append(operation_of(record[2]))
        return chain

    def _check_place(self, ops: Sequence[Queueable], records: Sequence[Record]) -> None:
        """
        Look whether operations may stand where they are to be queued, and take from their groups.

        The lock is held: with it groups are closed and others get their numbers, and drains queued.
        """
        chain = self._open_chain()
        kinds: set[Any] = {*map(type, ops)}
        takes = notifies = False
        for kind in kinds:  # as any(), at a fifth of the time
            takes = takes or kind._takes_buffer
            notifies = notifies or kind._notifies
        if not (chain or takes or notifies):
            return
        encoded = [record[1] for record in records]
        if chain or notifies:
            check_drains(ops, encoded, chain, has_drained=self._in_flight.has_drained)
        before = None
        for op, record in zip(ops, encoded, strict=True) if takes else ():
            if op._takes_buffer:
                check_group(op, record, self, before)
            before = record

    def _claim_and_append(self, records: Sequence[Record], high: Sequence[int]) -> None:
        """
        Append records whose numbers others must not share, or which must not share others'.

        The claims are made before it is known that nobody else has the numbers, so that a handler
        which queues in the middle refuses itself; and when one has made claims in the middle, all
        is looked at again. `high` are numbers of the ring's own kind that somebody has chosen. The
        lock is held.
        """
        in_flight = self._in_flight
        if high:
            in_flight.has_high = True  # before the look: who draws looks the other way round
            in_flight.check_runs(high)
        has_drained = is_drained(*[record[1] for record in records])
        while True:
            self._trim()
            before = in_flight.claims_made
            found = in_flight.claim(records)
            if in_flight.claims_made != before:
                continue
            in_flight.claims_made = mine = before + 1
            in_flight.is_quiet = in_flight.is_quiet and not found
            former = in_flight.claimed(found)
            try:
                in_flight.claims.update(found)
                pending = self._records()
                self._check_link(pending, records)
                in_flight.check_claims(found, pending)
            except BaseException:
                in_flight.withdraw(found, former)
                raise
            if in_flight.claims_made == mine:  # no call between this line and the last
                if has_drained:
                    in_flight.has_drained = True
                self._pending.extend(records)
                return
            in_flight.withdraw(found, former)

    @staticmethod
    def _check_link(pending: Sequence[Record], records: Sequence[Record]) -> None:
        if pending and is_linked(pending[-1][1]) and any(map(skips, records)):
            raise ValueError(
                "the operation queued last is linked to this chain, which has CQE_SKIP_SUCCESS:"
                " queue the whole chain with one queue_all()"
            )

    def _make_room(self, count: int) -> None:
        with self._lock:
            counters = self._trim()
            unconsumed = (counters.sq_tail - counters.sq_head) & UINT32_MAX
            entries = int(counters.sq_entries)
            self._room = entries - int(unconsumed)
            if len(self._pending) - 1 + count > self._room:
                remedy = "wait_sq_room()" if self._is_sqpoll else "submit() first"
                raise SubmissionQueueFull(
                    f"the submission queue of {entries} entries has"
                    f" {self._room - len(self._pending) + 1} free, {count} needed: {remedy}"
                )

    def submit(self) -> int:
        """
        Submit all that is queued; do not wait.

        An operation that the kernel refuses outright gets a completion that says so, and those
        behind it are submitted all the same. With SQPOLL the kernel's thread takes them in its own
        time, and is woken when it sleeps.

        Returns:
            How many the kernel took (with SQPOLL: how many were handed to it).

        Raises:
            EnterError: the kernel takes no more for now -> copy completions out and submit again;
                nothing is lost.
            RingClosedError: the ring is closed.

        Kernel: 5.4. liburing: io_uring_submit(3).
        """
        self._check_use()
        return self._submit() & UINT32_MAX

    def _submit(self) -> int:
        """Hand over what is pending: (CQEs ready << 32 | SQEs taken)."""
        if self._is_disabled:  # the kernel would say so, too, but not with SQPOLL
            self._fail("io_uring_enter", -errno.EBADFD)
        pending, in_flight = self._pending, self._in_flight
        start, records = pending[0], pending[1:]
        recent = array("Q", [record[0] for record in records]).tobytes(), records
        moved, placed = [(start + len(records)) & UINT32_MAX], slice(0, len(records) + 1)
        # The short way: one look, then the two stores that _begin_handover() makes with the lock.
        if (
            self._handovers
            or not in_flight.is_quiet
            or in_flight.recent is not None
            or in_flight.single is not None
            or pending[0] != start
            or not self._is_plain
            or not records
        ):
            return self._hand_over()
        self._handovers = 1
        in_flight.recent = recent
        result = self._place(start, recent)
        if result & UINT32_MAX != len(records):
            return self._hand_over(start, recent, result)
        if pending[0] == start:  # no call and nothing made between this line and the next
            pending[placed] = moved
        self._handovers -= 1
        return result

    def _abort_handover(self) -> None:
        with self._lock:
            self._trim()
            self._handovers -= 1

    def _hand_over(
        self, start: int = 0, recent: Recent | None = None, result: int | None = None
    ) -> int:
        """
        Hand over what is pending, whatever stands in the way; as `_submit` returns.

        Goes on from a handover that was begun, with what `_place` answered.
        """
        taken = 0
        while True:
            if recent is None:
                start, recent = self._begin_handover()
                result = self._place(start, recent)
            numbers, records = recent
            count = len(records)
            if result == _NO_ROOM:
                # The kernel would not take what is there, or threads queued past the end at the
                # same moment: get rid of the former, then go on with as much as there is room for.
                result = self._place(start, (b"", []))
                if result >= 0:
                    taken += result & UINT32_MAX
                    fitting = self._fitting(records)
                    records = records[:fitting]
                    result = self._place(start, (numbers[: 8 * fitting], records))
            if result is not None and result >= 0:
                self._end_handover(start, len(records))
                if result & UINT32_MAX != len(records):
                    self._room = 0  # some are still there, or there were some: ask again
                taken += result & UINT32_MAX
                if len(records) == count:
                    return result & ~UINT32_MAX | taken
                recent = None
                continue
            with self._lock:
                self._trim()
                self._handovers -= 1
            if result not in {_ANOTHER_WAS_FASTER, _NO_ROOM}:
                self._room = 0
                self._fail("io_uring_enter", int(result or 0))
            recent = None

    def _begin_handover(self) -> tuple[int, Recent]:
        """
        Enter what is pending in the table: (how many were placed before, what is pending).

        What another call has placed and not trimmed yet may have ended already, and must not be
        entered again: `_handovers` counts such calls, also those that an exception cut off.
        """
        with self._lock:
            self._check_open()  # again, for close() has dropped what was pending
            if self._handovers:
                self._trim()
            self._handovers += 1
            entered = self._in_flight.add(self._pending)
        self._check_open()  # a signal handler may have closed it
        return entered

    def _place(self, start: int, recent: Recent) -> int:
        """Place SQEs and submit, as `uring_submit` returns; cut off, it ends the handover."""
        numbers, records = recent
        if self._is_sqpoll:
            self._room = 0  # from here on only the kernel knows
        try:
            if self._has_sqe128:
                sqes = b"".join([record[1].ljust(2 * SQE_SIZE, b"\0") for record in records])
                return lib.uring_submit128(self._shim, start, sqes, numbers, len(records))
            if len(records) == 1:
                return lib.uring_submit_one(self._shim, start, records[0][1], records[0][0])
            sqes = b"".join([record[1] for record in records])
            return lib.uring_submit(self._shim, start, sqes, numbers, len(records))
        except BaseException:
            self._abort_handover()
            raise

    def _fitting(self, records: Sequence[Record]) -> int:
        """How many of the first records fit without cutting a chain, unless it would never fit."""
        counters = self._counters()
        entries = int(counters.sq_entries)
        room = entries - int((counters.sq_tail - counters.sq_head) & UINT32_MAX)
        whole = min(room, len(records))
        while 0 < whole < len(records) and is_linked(records[whole - 1][1]):
            whole -= 1
        return whole if whole or room < entries else room

    def _end_handover(self, start: int, count: int) -> None:
        """Trim what was placed. No lock: the GIL is not let go of between look and store."""
        pending = self._pending
        placed, moved = slice(0, count + 1), [(start + count) & UINT32_MAX]
        if pending[0] == start:  # no call and nothing made between this line and the next
            pending[placed] = moved
        self._handovers -= 1

    def _records(self) -> list[Record]:
        return self._pending[1:]

    def _placed(self) -> int:
        return int(self._counters().placed)

    def _placed_sqe(self, place: int) -> Any:
        """The address of the SQE at `place`."""
        size = SQE_SIZE * (2 if self._has_sqe128 else 1)
        return self._shim.sqes + (place & int(self._counters().sq_mask)) * size

    def _placed_number(self, place: int) -> int:
        """The user_data in the SQE at `place`."""
        number: bytes = ffi.buffer(self._placed_sqe(place) + 32, 8)[:]
        return int.from_bytes(number, sys.byteorder)

    def _replace_placed(self, place: int, sqe: bytes) -> None:
        """Put another SQE in the place of one that the kernel has not taken."""
        ffi.memmove(self._placed_sqe(place), sqe, SQE_SIZE)

    def _pending_count(self) -> int:
        self._check_open()
        with self._lock:
            self._trim()
            return len(self._pending) - 1
