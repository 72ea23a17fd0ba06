"""
From tasks to the kernel and back: what is queued, submitted, cancelled and given out.

Theory of operation
-------------------

The ring tells an eventfd of completions, and the loop watches that: one wake-up, however many have
come. It is read first, and then completions are copied out until there are none, so that what comes
meanwhile signals it anew: no wake-up is lost. What completes while it is being submitted, as reads
of what is cached do, is given to its task right there.

`SetupFlags.DEFER_TASKRUN` has the kernel do its part only when this thread asks for it, and so it
never interrupts another system call of the loop's thread. Before Linux 6.1 the ring has no flags:
then other waits of the thread may end early (EINTR), after which Python repeats them.

A task that is cancelled goes on when its operation has ended, and not before: the kernel is asked
to cancel it, and again every 50 ms, since it does not find what is just passing from one of its own
hands to another. The reminder is a `Timeout` on the ring itself, so no clock of the loop is needed.

What does not fit in the submission queue waits in a list of its own, cancellations first.
"""

import collections
import contextlib
import errno
import os
import time
from collections.abc import Iterable
from typing import Final

from uring._claims import FIRST_DRAWN
from uring._running import Run
from uring.aio._kinds import COUNTED, check_number, check_renaming, is_several, slots_of
from uring.aio._loop import Call, Loop
from uring.aio._takers import Intake, Keeper, Taker
from uring.completions import CQE, EMPTY, Completions, close_all, descriptors_of
from uring.errors import EnterError, RingClosedError, SubmissionQueueFull, UringError
from uring.flags import SQEFlags
from uring.operations import AsyncCancel, Close, Timeout
from uring.ring import Ring as PlainRing
from uring.sqe import SQE, Queueable, encoded

_CANCEL_SECONDS: Final = 30.0  # as Ring.close() waits for what it has cancelled
_REMIND_SECONDS: Final = 0.05  # then what is still there is cancelled again
_REMIND_SECONDS_MAX: Final = 1.6
_LOOKS_MAX: Final = 8  # then others have a turn
_TRY_AGAIN: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.EINTR})
_ALONE: Final = SQEFlags.IO_LINK | SQEFlags.IO_HARDLINK | SQEFlags.CQE_SKIP_SUCCESS
_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK = 512, 513, 514, 516
INTERRUPTED: Final = frozenset(
    {
        -errno.EINTR,
        # The kernel's own (linux/errno.h), of what waited in a worker, as the opening of a FIFO.
        *(-_ERESTARTSYS, -_ERESTARTNOINTR, -_ERESTARTNOHAND, -_ERESTART_RESTARTBLOCK),
    }
)
"""With what an operation ends if the worker of the kernel is disturbed that is busy with it."""
ENDS_OF_CANCELLED: Final = INTERRUPTED | {-errno.ECANCELED}
"""With what an operation ends that was cancelled, and not done."""


class Exchange:
    """What passes operations from tasks to a ring, and completions back."""

    def __init__(self, loop: Loop, plain: PlainRing) -> None:
        self._loop = loop
        self.plain = plain
        """
        The `uring.Ring` underneath: for registering files, buffers and groups of buffers, and for
        looking. What is queued there, or copied out, is lost to this one.
        """
        self._takers: dict[int, Taker] = {}
        self._runs: dict[Run, Call] = {}
        """Who waits for the end of each."""
        self._backlog: collections.deque[tuple[Queueable, int]] = collections.deque()
        """What there was no room for, each with the number that it will have."""
        self._doomed: set[int] = set()
        """What was asked to be cancelled, and has not ended."""
        self._is_due = False
        """Whether the loop will call `_flush`."""
        self._reminder: int | None = None
        """The number of the timer behind which what is doomed is cancelled again."""
        self._drained: Call | None = None
        """Who waits until nothing is in flight."""
        self._closers: list[Call] = []
        """Who waits for somebody else to have closed the ring."""
        self._undealt: Completions = EMPTY
        """What was copied out of the ring, and has not been given to whose it is."""
        self._late: dict[int, CQE] = {}
        """What has come between the cancelling of a task and its next step."""
        self._firsts: dict[int, CQE] = {}
        """The results of zero-copy sends whose memory is not free yet."""
        self._remind_seconds = _REMIND_SECONDS
        self._give_up = 0.0
        self._refusal: str | None = None
        self._eventfd = -1

    @property
    def closed(self) -> bool:
        """Whether it is closed, or is being closed."""
        return self._refusal is not None or self.plain.closed

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise RingClosedError(self._refusal)
        self.plain._check_open()

    # ---- closing ----

    def close(self) -> None:
        """
        Close the ring at once: wait for the kernel, and not for tasks. Mind `aclose()`.

        Raises:
            WrongThreadError: another thread runs the loop.
        """
        try:
            self.plain.close()
        finally:  # also when it was cut off, or a warning is an error
            if self.plain.closed:
                self._tell_all()

    def _tell_all(self) -> None:
        """Let all go on that wait for a ring that is closed."""
        self._refusal = self._refusal or "the ring is closed"
        eventfd, self._eventfd = self._eventfd, -1
        if eventfd >= 0:
            self._loop.unwatch(eventfd)
            os.close(eventfd)
        drained, self._drained = self._drained, None
        takers = [*self._takers.values(), *self._runs.values(), *self._closers, drained]
        self._takers, self._runs, self._closers = {}, {}, []
        if self._loop.is_here():
            for taker in takers:
                if taker is not None and not taker.done():
                    taker.set_result(None)
        undealt, self._undealt = self._undealt, EMPTY
        for cqe in [*self._late.values(), *undealt]:
            self._let_go(cqe)
        self._late.clear()

    async def aclose(self) -> None:
        """
        Close the ring: cancel what is in flight, wait for it, and give everything back.

        A barrier, also for a task that is cancelled: when it returns, the kernel no longer touches
        any memory. Tasks that wait get RingClosedError, if their operation had not ended well.
        """
        if self._refusal is not None:
            if self._drained is not None:
                last = self._loop.lasting_call()
                self._closers.append(last)
                await last
            self.close()  # one that was cut off is gone on with
            return
        self._refusal = "the ring is closed"
        try:
            for number in list(self._takers):
                self._ask_to_cancel(number)
            for run in list(self._runs):
                self.plain._cancel_run(run)
            self._give_up = time.monotonic() + _CANCEL_SECONDS
            if self._takers or self._runs:
                self._remind()
                self._drained = self._loop.lasting_call()
                await self._drained
        finally:
            self.close()

    def _let_go(self, cqe: CQE) -> None:
        """Close what an operation has made whose result nobody will have."""
        close_all([None, *descriptors_of(cqe)])
        self._empty_slots([cqe])

    def _empty_slots(self, done: Iterable[CQE]) -> None:
        if self.closed or not self._loop.is_here():
            return
        for cqe in done:
            for slot in slots_of(cqe):
                self._queue(Close(slot))
                self._schedule()

    # ---- cancelling ----

    async def _after_all(
        self, op: Queueable, number: int, call: Call, error: BaseException
    ) -> CQE | int | None:
        """
        Cancel the operation of a task that is cancelled, and wait for its end.

        The completion is returned if the task shall have it.
        """
        cqe: CQE | int | None = self._late.pop(number, None)
        if self._takers.get(number) is call:
            if isinstance(error, GeneratorExit):  # no task, and maybe no loop
                self._takers[number] = Keeper(None, self._let_go)
                self._cancel_soon(number)
                return None
            last = self._loop.lasting_call()
            keeper = self._takers[number] = Keeper(last, self._let_go)
            self._ask_to_cancel(number)
            try:
                await last
            except BaseException:  # GeneratorExit; or cancelled once more, which comes at the end
                if keeper.came is None:
                    keeper.call = None
                    raise
            cqe = keeper.came
        elif cqe is None and call.done():
            with contextlib.suppress(BaseException):  # it is cancelled, and has no result
                cqe = await call
        res = cqe.res if isinstance(cqe, CQE) else cqe
        if not isinstance(res, int) or res in ENDS_OF_CANCELLED:
            return None
        if self._loop.keeps_results and not isinstance(error, GeneratorExit):
            return cqe
        if isinstance(cqe, CQE):
            self._let_go(cqe)
        error.late_result = res  # type: ignore[attr-defined]  # for who must know, as of a Close
        with contextlib.suppress(Exception):  # what a repr() raises
            error.add_note(f"{op!r} was done all the same: res is {res}")
        return None

    def _ask_to_cancel(self, number: int) -> None:
        if number in self._takers:
            self._doomed.add(number)
            self._queue_cancel(number)
            self._remind()

    def _cancel_soon(self, number: int) -> None:
        """Do that for what was dropped, if it can be done here; else close() will."""
        if not self.closed and self._loop.is_here():
            self._ask_to_cancel(number)

    def _queue_cancel(self, number: int) -> None:
        op = AsyncCancel(number)
        try:
            if self.plain._in_flight.has_drained:  # that operation might wait behind a drain
                self._submit()
                self.plain._cancel([number])
            else:
                self.plain.queue(op)
        except SubmissionQueueFull:
            self._backlog.appendleft((op, self.plain._draw(1)))
        self._schedule()

    def _remind(self) -> None:
        if self._reminder is None:
            self._reminder = self._queue(Timeout(self._remind_seconds))
            self._schedule()

    def _on_reminder(self) -> None:
        """Cancel again what the kernel has not found; it may have been between two places."""
        self._reminder = None
        if self._drained is not None and time.monotonic() > self._give_up:
            self._end_draining()
        self._doomed &= self._takers.keys()
        late = [run for run in list(self._runs) if run.is_orphan or self._drained is not None]
        if not self._doomed and not late:
            self._remind_seconds = _REMIND_SECONDS
            return
        self._remind_seconds = min(2 * self._remind_seconds, _REMIND_SECONDS_MAX)
        for number in list(self._doomed):
            self._queue_cancel(number)
        for run in late:
            self.plain._cancel_run(run)
        self._remind()

    # ---- queueing ----

    def _checked_number(self, op: Queueable, *, is_single: bool) -> int | None:
        """Refuse what cannot be awaited alone; give the number that it must have, if any."""
        if not isinstance(op, Queueable):
            return None  # queue() will say so
        if isinstance(op.flags, int) and op.flags & _ALONE:
            raise ValueError(
                f"{op!r} is part of a chain, or skips its completion: give all of it to run()"
            )
        if is_single and is_several(op):
            raise ValueError(f"{op!r} completes any number of times: use stream()")
        check_renaming(op)
        if isinstance(op, SQE) and op.user_data == 0:
            return self.plain._draw(1)
        if isinstance(op.user_data, int):
            check_number(op.user_data)
            if op.user_data in self._takers:
                raise ValueError(f"an operation with user_data {op.user_data} is in flight")
            self._doomed.discard(op.user_data)  # who had it before was
        return None

    def _enlist(self, op: Queueable, taker: Taker, number: int | None = None) -> int:
        """Queue an operation; give the number that it has, if it was not given one."""
        if self._refusal is not None:
            self._check_open()
        if number is None and not self._backlog:
            try:
                number = self.plain.queue(op)
            except SubmissionQueueFull:
                self._submit()
                number = self._queue(op)
        else:
            number = self._queue(op, number)
        self._takers[number] = taker
        if not self._is_due:
            self._is_due = True
            self._loop.at_end_of_turn(self._flush)
        return number

    def _queue(self, op: Queueable, number: int | None = None) -> int:
        if not self._backlog and number is None:
            with contextlib.suppress(SubmissionQueueFull):
                return self.plain.queue(op)
        encoded(op)  # what cannot be is refused here and now
        if number is None:
            number = self.plain._draw(1) if op.user_data is None else op.user_data
        self._backlog.append((op, number))
        return number

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.at_end_of_turn(self._flush)

    def _flush(self) -> None:
        """Submit what was queued, and give out what has completed meanwhile."""
        try:
            self._is_due = False
            if self._eventfd == -1:
                return
            is_stuck = not self._submit()
            while self._backlog and self._make_room():
                is_stuck = not self._submit()
            self._harvest()
        except UringError as error:
            self._break(error)
            return
        except (
            BaseException
        ):  # a signal handler's: what is left undone is done when the loop goes on
            self._schedule()
            raise
        if is_stuck or self._backlog:
            self._schedule()

    def _break(self, error: UringError) -> None:
        """Close a ring that works no more; who waits is told why."""
        self._refusal = self._refusal or f"the ring is closed: {error}"
        self.close()

    def _submit(self) -> bool:
        """Submit; False when the kernel has no memory for it just now."""
        try:
            self.plain.submit()
        except EnterError as error:
            if error.errno not in _TRY_AGAIN:
                raise
            return False
        return True

    def _make_room(self) -> bool:
        """Queue what has waited for room; False when there is none."""
        has_moved = False
        while self._backlog:
            op, number = self._backlog.popleft()
            taker = self._takers.get(number)
            if number in self._doomed and taker is not None:
                del self._takers[number]
                if not taker.done():
                    taker.set_result(CQE(number, -errno.ECANCELED, 0, op))
            else:
                try:
                    self.plain._queue(op, number, is_drawn=number >= FIRST_DRAWN)
                except SubmissionQueueFull:
                    self._backlog.appendleft((op, number))
                    return has_moved
                except Exception as error:  # noqa: BLE001 - fileno() is the caller's, and may raise any
                    if taker is not None:
                        del self._takers[number]
                        if not taker.done():
                            taker.set_result(error)
            has_moved = True
        return has_moved

    # ---- what comes ----

    def _on_ready(self) -> None:
        try:
            if self._eventfd == -1:  # closed in the turn in which it was found ready
                return
            self._reset_eventfd()
            self._harvest(is_reset=True)
        except UringError as error:
            self._break(error)
        except BaseException:  # as in _flush()
            self._schedule()
            raise

    def _reset_eventfd(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)

    def _harvest(self, *, is_reset: bool = False) -> None:
        """
        Give out all completions that there are.

        Between the reset of the eventfd and the end there is a look that finds none; or nothing is
        in flight, so that none can come that has a taker; or, when they keep coming, another turn.
        """
        plain = self.plain
        for _ in range(_LOOKS_MAX):
            if not self._undealt._count:
                self._undealt = plain.copy_cqes()
            if not self._undealt._count:
                break
            self._deal_out(self._undealt)
            if not is_reset:  # the loop need not wake up for what came just now
                is_reset = True
                self._reset_eventfd()
            if plain._in_flight.is_empty:
                break
        else:
            self._schedule()
        if self._runs:
            self._go_on()
        if self._drained is not None and not self._takers and not self._runs:
            self._end_draining()

    def _end_draining(self) -> None:
        """Let those close the ring that wait for it: the first may be gone."""
        for call in [self._drained, *self._closers]:
            if call is not None:
                call.set_result(None)

    def _deal_out(self, done: Completions) -> None:
        """Give completions to whose they are."""
        takers = self._takers
        place, taker = 0, None
        try:
            for place, (number, res, flags, subject) in enumerate(done._rows()):
                taker = takers.get(number)
                if taker is None:
                    self._on_stray(done[place])
                elif flags or taker.done():
                    self._give(taker, done[place])
                elif res >= 0 and subject.__class__ in COUNTED and taker.__class__ is not Intake:
                    del takers[number]
                    taker.set_result(res)
                else:
                    cqe = done[place]
                    del takers[number]
                    taker.set_result(cqe)
        except BaseException:  # a signal handler's
            self._undealt = self._left(done, place, taker)
            raise
        self._undealt = EMPTY

    def _left(self, done: Completions, place: int, taker: Taker | None) -> Completions:
        """What is still to be given out, when an exception has come at a place."""
        cqe = done[place]
        entered = self._takers.get(cqe.user_data)
        if entered is not None:
            is_given = isinstance(entered, Intake) and entered.has(cqe)
        else:
            is_given = cqe.user_data != self._reminder
            if taker is not None and not taker.done() and not isinstance(taker, Keeper | Intake):
                taker.set_result(cqe)
        return done[place + 1 :] if is_given else done[place:]

    def _give(self, taker: Taker, cqe: CQE) -> None:
        """Give a completion to whose it is: the first is the result, the terminal one the end."""
        number = cqe.user_data
        if not isinstance(taker, Intake):
            if cqe.more:
                self._firsts[number] = cqe
                return
            cqe = self._firsts.pop(number, cqe)
            del self._takers[number]
        elif not cqe.more:
            del self._takers[number]
        if taker.done():
            self._late[number] = cqe
        else:
            taker.set_result(cqe)

    def _on_stray(self, cqe: CQE) -> None:
        """Take what nobody waits for: what came of a cancellation, or the reminder."""
        if cqe.user_data == self._reminder:
            self._on_reminder()
        else:
            self._let_go(cqe)

    # ---- runs ----

    async def _wait_for_run(self, run: Run, result: int) -> None:
        call = self._runs[run] = self._loop.call()
        if result == errno.EINTR or not run.in_flight:
            self._schedule()
        try:
            await call
        except GeneratorExit:  # no task, and maybe no loop
            if self._runs.pop(run, None) is not None and self._loop.is_here():
                self.plain._cancel_run(run)
            raise
        except BaseException:
            if run in self._runs:
                run.is_orphan = True
                self._runs[run] = last = self._loop.lasting_call()
                self.plain._cancel_run(run)
                self._remind()
                await last
            raise

    def _go_on(self) -> None:
        for run, call in list(self._runs.items()):
            if run not in self._runs:  # a coroutine was closed meanwhile
                continue
            result = self.plain._go_on(run)
            if result == 0:
                if not call.done():
                    call.set_result(None)
                self._runs.pop(run, None)
            elif result == errno.EINTR or not run.in_flight:
                self._schedule()
