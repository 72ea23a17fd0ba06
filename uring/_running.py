"""
Running batches: submit all, wait for all, in one loop in C without the GIL.

A run is in the in-flight table, with all that the kernel may touch for it, from before its first
SQE is placed until the shim says that its last terminal CQE has come. Its CQEs go to their places
in C, whoever takes them out of the queue; the table and `copy_cqes()` never see them.

The loop in C does not wait: it comes back when there is nothing to do but wait. So signals that
came meanwhile are handled before the wait begins, and a wait submits nothing, so that the kernel
can say EINTR. Whoever leaves a run before its end (Ctrl-C, a timeout, an error) cancels what is in
flight and waits for it; whoever leaves that, too, leaves the run in the table as an orphan, which
the next one to come by lets go when it has ended.
"""

import contextlib
import errno
import time
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, overload

from uring import _memory
from uring._claims import FIRST_DRAWN, RunInFlight, operation_of
from uring._completion import CompletionSide, deadline_ns
from uring._ffi import ffi, lib
from uring._order import check_drains, notifies
from uring._setup import RingParams
from uring._submission import SubmissionSide
from uring.batch import Batch
from uring.completions import CQE, Completions, close_all, uncollected_descriptors
from uring.errors import UringError
from uring.flags import RegisterOpcode, SQEFlags
from uring.operations import AsyncCancel
from uring.registry.buffer_rings import is_eager
from uring.registry.cancel import CANCEL_ANSWERS, sync_cancel
from uring.sqe import SQE_SIZE, UINT32_MAX, Queueable
from uring.statx import StatxCompletions, StatxMany

if TYPE_CHECKING:
    from uring._uring import CData

CANCEL_SECONDS: Final = 30.0
"""How long a run that is left early waits for what it has cancelled; as long as close() does."""

_NOT_POSTED: Final = UINT32_MAX  # instead of flags, where no CQE has landed yet
_DRAIN: Final = int(SQEFlags.IO_DRAIN)
_new: Final = object.__new__
_NO_BATCH: Final = Batch(())
_uring_run_begin: Final = lib.uring_run_begin
_CANCEL_SLICE_NS: Final = 50_000_000  # then what is still there is cancelled again


class Run:
    """One pass over a batch: its memory, and what of it the kernel has."""

    __slots__ = (
        "_opened",
        "batch",
        "cqe_size",
        "cqes",
        "first",
        "is_orphan",
        "landed",
        "numbers",
        "own_pins",
        "pins",
        "shim",
        "sqes",
        "subjects",
    )

    def __init__(self, batch: Batch, cqe_size: int) -> None:
        self.batch = batch
        self.first = 0
        """The first of its numbers; also what the ring knows it by."""
        self.is_orphan = False
        self.sqes, self.subjects, self.own_pins = batch._for_run()
        self.pins = batch._pins[0]
        self.cqe_size = cqe_size
        self.cqes = ffi.new("char[]", batch._count * cqe_size)
        self.landed = memoryview(ffi.buffer(self.cqes))
        self.numbers: tuple[CData, CData] | None = None
        self.shim = ffi.new("struct uring_run *")
        self.shim.sqes, self.shim.cqes = self.sqes, self.cqes
        self.shim.count = batch._count
        self._opened: list[int | None] | None = None

    def assign_numbers(self) -> None:
        """Give each operation its number; the shim finds it again in the pairs, by bisection."""
        count = self.batch._count
        numbers = array("Q", range(self.first, self.first + count))
        for number, index in self.batch._chosen.items():
            numbers[index] = number
        pairs = array("Q")
        for pair in sorted(zip(numbers, range(count), strict=True)):
            pairs.extend(pair)
        self.numbers = _memory.uint64s(numbers), _memory.uint64s(pairs)
        self.shim.numbers, self.shim.by_number = self.numbers

    @property
    def in_flight(self) -> int:
        """How many of its operations were placed whose terminal CQE has not come."""
        ended = int(self.shim.ended)  # first: both grow meanwhile
        return max(0, int(self.shim.placed) - ended)

    def has(self, number: int) -> bool:
        """Whether one of its operations has this user_data."""
        return number in self.batch._chosen or 0 <= number - self.first < self.batch._count

    def overlaps(self, numbers: range) -> bool:
        """Whether any of its operations has one of these."""
        own = range(self.first, self.first + self.batch._count)
        is_apart = own.stop <= numbers.start or numbers.stop <= own.start
        return not is_apart or bool([n for n in self.batch._chosen if n in numbers])

    def completions(self) -> Completions:
        """The results, in the order of the operations."""
        return Completions(bytes(self.landed), self.subjects, self.cqe_size)

    def landings(self) -> list[CQE]:
        """The completions that have come."""
        if self.shim.first_number != self.first:  # not begun
            return []
        return [
            cqe for cqe in self.completions()[: int(self.shim.placed)] if cqe.flags != _NOT_POSTED
        ]

    def unended(self) -> list[int]:
        """The indices of what was placed and has posted nothing yet."""
        flags = self.completions().flags.tolist()
        return [i for i in range(int(self.shim.placed)) if flags[i] == _NOT_POSTED]

    def numbers_of(self, indices: list[int]) -> list[int]:
        """The user_data of these operations."""
        if self.numbers is None:
            return [self.first + i for i in indices]
        return [self.numbers[0][i] for i in indices]

    def is_held_up(self) -> bool:
        """
        Whether something that is in flight has IO_DRAIN, and so may hold up all behind it.

        The kernel finds nothing there to be cancelled (io_queue_deferred in io_uring/io_uring.c):
        it ends when what was submitted before it has, which may be somebody else's.
        """
        flags = _memory.bytes_of(self.sqes)[1::SQE_SIZE]
        return any([flags[i] & _DRAIN for i in self.unended()])  # noqa: C419 - no generator: ring.py

    def close_descriptors(self) -> None:
        """Close what its operations have opened, for nobody will get the results; once."""
        if self.shim.first_number != self.first:  # not begun: these are the results of another pass
            return
        if self._opened is None:
            opened = [None, *uncollected_descriptors(self.completions())]
            if self._opened is None:  # no call between this and the store
                self._opened = opened
        close_all(self._opened)

    def let_go(self) -> None:
        """Hold no memory any more: a traceback may still have it when it has ended."""
        self.batch, self.pins, self.own_pins, self.subjects = _NO_BATCH, (), (), ()


class RunSide(SubmissionSide, CompletionSide):
    """Running batches."""

    # Of the class until it is set: see Core.
    _cancelling: Run | None = None
    """The run whose operations cancel others, where that takes operations."""

    def __init__(self, shim: "CData", inbox: "CData", params: RingParams) -> None:
        super().__init__(shim, inbox, params)
        self._unread: list[int | None] = [None]
        """Descriptors that nobody has collected, while they are being closed: see close_all."""

    @overload
    def run(self, operations: StatxMany, *, timeout: float | None = None) -> StatxCompletions: ...
    @overload
    def run(
        self, operations: Batch | Iterable[Queueable], *, timeout: float | None = None
    ) -> Completions: ...
    def run(
        self, operations: Batch | Iterable[Queueable], *, timeout: float | None = None
    ) -> Completions:
        """
        Submit operations, any number of them, and wait for all.

        The work is done in one loop in C without the GIL, which submits what there is room for and
        goes on as results come in. What was queued before is not submitted: it stays queued.
        Completions of other operations that arrive meanwhile are kept for `copy_cqes()`. Any number
        of threads may run batches on one ring. Signal handlers run meanwhile, and it goes on.
        Nothing is guaranteed about the order of operations that are not linked or drained.

        Args:
            operations: a `Batch`, which is encoded already, or operations and SQEs. An operation
                without a user_data gets a number of the ring's own; one that was given must not be
                in use.
            timeout: in seconds, 0..2**33, until what has not ended is cancelled; None waits without
                end.

        Returns:
            A completion for each operation, in the order of the operations, whatever order they
            ended in. Failures are among them: see `Completions.raise_first()`. Of an operation
            that posts twice (a zero-copy send) it is the first one, and both have come. New
            descriptors are the caller's to close.

        Raises:
            TypeError, ValueError: as for `Batch`; or a chain is longer than the ring has entries,
                or a user_data is in use. Nothing was submitted.
            TimeoutError: the time is over. What had not ended was cancelled and waited for, for
                30 s more at most; then a note says what is still in flight, and its memory is kept.
                All results are lost, though what was done is done; new descriptors are closed. So
                it is when Ctrl-C, or another exception of a signal handler, comes out of here. The
                ring stays usable. -> give what must not be lost to `queue()`.
            EnterError: the ring is disabled, or the kernel refuses to be entered -> `enable()` it,
                or run it again.
            WrongThreadError: the ring has SINGLE_ISSUER and another owner -> run it there.
            RingClosedError: the ring is closed, or was closed by another thread meanwhile.

        Kernel: 5.4; the operations may need more. Source: io_uring_enter(2).
        """
        if self._is_guarded:
            self._check_use()
        end_ns = -1 if timeout is None else deadline_ns(timeout)
        if self._is_disabled:
            self._fail("io_uring_enter", -errno.EBADFD)
        batch = self._checked(operations)
        if not batch._count:
            return batch._nothing
        return self._run(batch, end_ns)

    def _checked(self, operations: Batch | Iterable[Queueable]) -> Batch:
        """Refuse a batch that this ring cannot run."""
        batch = operations if isinstance(operations, Batch) else Batch(operations)
        if batch._longest_chain > self._params.sq_entries:
            raise ValueError(
                f"a chain of {batch._longest_chain} operations does not fit in"
                f" {self._params.sq_entries} entries, and cannot be split: make the ring with more"
            )
        if batch._notifies and self._in_flight.has_drained:
            check_drains(batch._ops, [bytes(2)] * batch._count, has_drained=True)
        if batch._has_drained:
            with self._lock:  # not between somebody's last look and what he queues upon it
                self._check_queued()
                self._in_flight.has_drained = True
        return batch

    def _run(self, batch: Batch, end_ns: int) -> Completions:  # noqa: PLR0912 - calls cost
        in_flight, size = self._in_flight, self._cqe_size
        if in_flight.runs:
            self._settle_runs()
        try:
            run: Run = batch._runs.pop()
        except IndexError:
            run = Run(batch, size)
        if run.cqe_size != size:  # left by another shape of ring
            run = Run(batch, size)
        run.batch, run.pins = batch, batch._pins[0]
        run.first = first = self._next_number  # no call between this and the store: as _draw()
        self._next_number = first + batch._count
        try:
            if batch._chosen:
                self._claim(run)
            else:
                in_flight.runs[first] = run  # before the look: who chooses looks the other way
                if in_flight.has_high:
                    self._claim(run)
            result = _uring_run_begin(self._shim, run.shim, run.first)
            if result != 0:
                self._drive(run, result, end_ns)
            if self._is_guarded:  # closed meanwhile: these are not results, but what close() left
                self._check_open()
            # __init__ would look at what is certain here: 80 ns
            completions = _new(batch._completions)
            completions._count, completions._raw = batch._count, bytes(run.landed)
            completions._subjects, completions._size = run.subjects, size
            if batch._chosen:
                self._drop(run)
            else:
                del in_flight.runs[run.first]
        except BaseException as error:
            run.is_orphan = True
            self._cut_short(run, error)
            raise
        # From here on no call, or Ctrl-C could lose the results.
        if not batch._fresh:  # for the next one; without a cycle
            run.batch = _NO_BATCH
            run.pins = None
            runs = batch._runs
            try:
                runs += [run]
            except MemoryError:  # then the next one makes its own
                return completions
        return completions

    def _check_queued(self) -> None:
        """Refuse a drain that would come before what was queued in front of it."""
        for record in self._records():
            op = operation_of(record[2])
            if notifies(op) or is_eager(op):
                raise ValueError(
                    f"{op!r} is queued and must come before the IO_DRAIN of a batch: submit() first"
                )

    def _claim(self, run: Run) -> None:
        with self._lock:
            while not self._claim_numbers(run):
                self._in_flight.runs.pop(run.first, None)
                run.first = self._draw(run.batch._count)
        if run.batch._chosen:
            run.assign_numbers()

    def _claim_numbers(self, run: Run) -> bool:
        """
        Enter the run, if nobody else has its numbers; False when one that it has drawn is in use.

        As in `_claim_and_append`, the claims are made before the look. The lock is held.
        """
        in_flight = self._in_flight
        chosen = dict.fromkeys(run.batch._chosen, run)
        in_flight.has_high = in_flight.has_high or max(chosen, default=0) >= FIRST_DRAWN
        while True:
            self._trim()
            before = in_flight.claims_made
            for number in chosen:
                claim = in_flight.claims.get(number)
                if claim is not run:
                    in_flight.check_claim(number, claim)
            in_flight.check_runs(chosen, besides=run)
            in_flight.claims_made = mine = before + 1
            in_flight.is_quiet = in_flight.is_quiet and not chosen
            in_flight.claims.update(chosen)
            in_flight.runs[run.first] = run
            pending = [record[0] for record in self._records()]
            in_flight.check_claims({**chosen}, self._records())
            used = [*in_flight.numbers(), *pending, *in_flight.claims]
            drawn = range(run.first, run.first + run.batch._count)
            if in_flight.claims_made == mine:  # else another has made claims: look at those, too
                return not [number for number in used if number in drawn]

    def _drive(self, run: Run, result: int, end_ns: int) -> None:
        """Go on with a run until it has ended, or the time is over."""
        is_late = False
        while result != 0:
            if result == -errno.ENOBUFS:
                self._keep_completions()
            elif result not in {-errno.EAGAIN, -errno.EINTR}:
                self._fail("io_uring_enter", result)
            elif is_late or 0 <= end_ns <= time.monotonic_ns():
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"the time was over when {run.shim.ended} of {run.batch._count} operations had"
                    " ended; the others were cancelled",
                )
            elif result == -errno.EAGAIN:
                result = lib.uring_run_wait(self._shim, run.shim, end_ns)
                if result not in {0, -errno.EAGAIN, -errno.EINTR, -errno.ETIME}:
                    self._fail("io_uring_enter", result)
                is_late = result == -errno.ETIME  # what came in the last moment still counts
            result = lib.uring_run(self._shim, run.shim)

    def _keep_completions(self) -> None:
        """Empty the shim's inbox: completions of others fill it, and no more fit."""
        with self._lock:
            self._fetch_more(None)

    def _drop(self, run: RunInFlight) -> None:
        """Take a run that has ended from the table."""
        in_flight = self._in_flight
        for number in run.batch._chosen:
            if in_flight.claims.get(number) is run:
                in_flight.claims.pop(number, None)
        in_flight.runs.pop(run.first, None)

    # ---- leaving a run before its end ----

    def _cut_short(self, run: Run, error: BaseException) -> None:
        """Cancel what is in flight, and wait for it."""
        lib.uring_run_stop(run.shim)
        deadline = time.monotonic() + CANCEL_SECONDS
        left: list[int] = []
        while self._refusal is None and time.monotonic() < deadline:
            result = lib.uring_run(self._shim, run.shim)
            if result == -errno.ENOBUFS:
                self._keep_completions()
                continue
            if result not in {-errno.EAGAIN, -errno.EINTR}:
                break
            before, left = left, run.unended()
            if left == before and run.is_held_up():
                break
            self._cancel(run.numbers_of(left))
            slice_ns = time.monotonic_ns() + _CANCEL_SLICE_NS
            lib.uring_run_wait(self._shim, run.shim, slice_ns)
        self._settle(run)
        if run.in_flight and self._refusal is None:
            error.add_note(
                f"{run.in_flight} operations could not be cancelled and are still in flight; their"
                " memory is kept until they end"
            )

    def _cancel(self, numbers: list[int]) -> None:
        """Ask the kernel to cancel operations; what came of it, their completions say."""
        for number in numbers:
            request = sync_cancel(number)
            result = lib.uring_register(self._shim, RegisterOpcode.REGISTER_SYNC_CANCEL, request, 1)
            if result < 0 and result not in CANCEL_ANSWERS:
                self._cancel_by_operations(numbers)
                return
        if self._is_sqpoll:  # measured on 6.18: a worker that goes on with a chain is not found
            self._cancel_by_operations(numbers)

    def _cancel_by_operations(self, numbers: list[int]) -> None:
        """
        The same before 6.0, or where registering is forbidden: in a run of its own.

        Such operations wait behind a drain, so there is one such run at a time.
        """
        if self._cancelling is not None and self._cancelling.in_flight:
            return
        batch = Batch([AsyncCancel(number) for number in numbers])
        self._cancelling = run = Run(batch, self._cqe_size)
        run.first = self._draw(batch._count)
        self._in_flight.runs[run.first] = run
        try:
            result = _uring_run_begin(self._shim, run.shim, run.first)
            with contextlib.suppress(TimeoutError, UringError):  # the run to be cancelled tells
                self._drive(run, result, time.monotonic_ns() + _CANCEL_SLICE_NS)
        finally:
            run.is_orphan = True
            lib.uring_run_stop(run.shim)
            self._settle(run)

    def _settle(self, run: RunInFlight) -> None:
        """Let a run go that nobody waits for, if it has ended; else it stays in the table."""
        result = lib.uring_run_release(self._shim, run.shim)
        if result == -errno.EAGAIN or (result < 0 and run.in_flight):
            return
        run.close_descriptors()
        self._drop(run)

    def _settle_runs(self) -> None:
        """Let all those go; and cancel, again, what who left it was cut off from cancelling."""
        for run in list(self._in_flight.runs.values()):
            if run.is_orphan:
                self._settle(run)
                if run.in_flight and run is not self._cancelling and self._refusal is None:
                    self._cancel(run.numbers_of(run.unended()))

    # ---- for who does not wait here, but is told by an eventfd: see uring.aio ----

    def _set_off(self, batch: Batch) -> tuple[Run, int]:
        """Begin a run, and go as far as is possible without waiting: as `_go_on`."""
        run = Run(batch, self._cqe_size)
        run.first = self._draw(batch._count)
        try:
            self._claim(run)
            return run, self._kept_going(run, _uring_run_begin(self._shim, run.shim, run.first))
        except BaseException:
            self._leave(run)
            raise

    def _go_on(self, run: Run) -> int:
        """
        Go on with a run: 0 when it has ended.

        EAGAIN when there is nothing to do before another completion comes; EINTR when there is,
        and it has taken so long that others should have a turn.
        """
        return self._kept_going(run, lib.uring_run(self._shim, run.shim))

    def _kept_going(self, run: Run, result: int) -> int:
        while result == -errno.ENOBUFS:
            self._keep_completions()
            result = lib.uring_run(self._shim, run.shim)
        if result not in {0, -errno.EAGAIN, -errno.EINTR}:
            self._fail("io_uring_enter", result)
        return -result

    def _results(self, run: Run) -> Completions:
        """What a run that has ended has come to."""
        self._check_open()
        made = run.completions()
        completions = _new(run.batch._completions)
        completions._count, completions._raw = made._count, made._raw
        completions._subjects, completions._size = made._subjects, made._size
        self._drop(run)
        return completions

    def _leave(self, run: Run) -> None:
        """Let a run that nobody waits for any more go when it has ended; nothing more is begun."""
        lib.uring_run_stop(run.shim)
        run.is_orphan = True
        self._settle(run)
        if run.first not in self._in_flight.runs:
            run.let_go()

    def _cancel_run(self, run: Run) -> None:
        """Ask the kernel to end what is in flight of a run; it begins nothing more."""
        lib.uring_run_stop(run.shim)
        self._cancel(run.numbers_of(run.unended()))
