"""
A ring bound to an event loop: what tasks queue in one turn is submitted at its end, once.

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
import sys
import time
import weakref
from collections.abc import Iterable
from typing import Any, Final, Protocol, Self

from uring._running import Run
from uring.aio._asyncio import AsyncioLoop
from uring.aio._loop import Call, Loop
from uring.aio._streams import UNREAD_MAX, Stream
from uring.batch import Batch
from uring.completions import CQE, Completions, close_all, descriptors_of
from uring.errors import (
    EnterError,
    RingClosedError,
    SetupError,
    SubmissionQueueFull,
    UringError,
)
from uring.flags import CQEFlags, SetupFlags, SQEFlags
from uring.operations import (
    AcceptMultishot,
    AsyncCancel,
    Close,
    PollMultishot,
    ReadMultishot,
    RecvBundleMultishot,
    RecvmsgMultishot,
    RecvMultishot,
    RecvZc,
    SendBundle,
    Timeout,
    TimeoutMultishot,
    UringCmdMultishot,
)
from uring.ring import Ring as PlainRing
from uring.sqe import AUTO, NO_FLAGS, SQE, Fixed, Queueable, encoded, is_multishot

_CANCEL_SECONDS: Final = 30.0  # as Ring.close() waits for what it has cancelled
_REMIND_SECONDS: Final = 0.05  # then what is still there is cancelled again
_REMIND_SECONDS_MAX: Final = 1.6
_TRY_AGAIN: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.EINTR})
_NO_FLAGS: Final = SetupFlags(0)
_OWN_FLAGS: Final = SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN
_NOT_HERE: Final = SetupFlags.SQPOLL | SetupFlags.IOPOLL | SetupFlags.R_DISABLED
_MORE: Final = int(CQEFlags.MORE)
CQ_ENTRIES_MAX: Final = 65536
_ALONE: Final = SQEFlags.IO_LINK | SQEFlags.IO_HARDLINK | SQEFlags.CQE_SKIP_SUCCESS
_SEVERAL: Final = frozenset(
    {
        AcceptMultishot,
        PollMultishot,
        ReadMultishot,
        RecvBundleMultishot,
        RecvMultishot,
        RecvZc,
        RecvmsgMultishot,
        SendBundle,
        TimeoutMultishot,
        UringCmdMultishot,
    }
)
"""What completes any number of times."""
_ENDS_OF_CANCELLED: Final = frozenset({-errno.ECANCELED, -errno.EINTR})


class _Taker(Protocol):
    """Who takes the completions of an operation."""

    def take(self, cqe: CQE) -> None:
        """Take one."""

    def fail(self, error: Exception) -> None:
        """Take it that the operation could not be queued when its turn came."""

    def wake(self) -> None:
        """Notice that the ring is closed."""


class Ring:
    """
    A ring that the tasks of the running event loop await: asyncio's, uvloop's or trio's.

    `uring.aio.ring()` gives the one that the loop has; this makes another. Use it as an
    asynchronous context manager, or call `aclose()`. It is used in the loop's thread alone.

    Args:
        entries: the size of the submission queue, as for `uring.Ring`. More operations than that
            may be begun at once: they take turns.
        cq_entries: that of the completion queue; the default is four times `entries`.
        flags: further `SetupFlags`. SINGLE_ISSUER and DEFER_TASKRUN are added where the kernel has
            them (6.1). Not SQPOLL, IOPOLL or R_DISABLED.

    Lifetime: it is closed with the loop, by what asyncio.run(), uvloop.run() and trio.run() do at
        their end.

    Raises:
        RuntimeError: no event loop is running.
        SetupError, UnsupportedError: as for `uring.Ring`.

    Kernel: 5.6. Source: io_uring_register_eventfd(3).
    """

    def __init__(
        self,
        entries: int = 256,
        *,
        cq_entries: int | None = None,
        flags: SetupFlags = _NO_FLAGS,
    ) -> None:
        self._loop = running_loop()
        self._takers: dict[int, _Taker] = {}
        self._runs: dict[Call, Run] = {}
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
        self._ends: dict[int, list[Call]] = {}
        """Who waits for the end of an operation that is somebody else's."""
        self._remind_seconds = _REMIND_SECONDS
        self._give_up = 0.0
        self._refusal: str | None = None
        self._eventfd = -1
        self.plain = _plain_ring(entries, cq_entries, flags)
        """
        The `uring.Ring` underneath: for registering files, buffers and groups of buffers, and for
        looking. What is queued there, or copied out, is lost to this one.
        """
        try:
            self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.plain.register_eventfd(self._eventfd)
            self._loop.watch(self._eventfd, self._on_ready)
            self._loop.close_with_loop(self)
        except BaseException:
            self.close()
            raise

    # ---- operations ----

    async def do(self, op: Queueable) -> Any:
        """
        Do one operation, and give its result.

        What all tasks queue in one turn of the loop is submitted at its end, in one system call.

        Args:
            op: an operation, or an `SQE`, that completes once; a zero-copy send is waited for until
                its memory is free. Not one that is linked: `run()` does chains.

        Cancellation: the kernel is asked to end the operation, and the task sees its cancellation
            when it has. Then all memory is the caller's again. When the operation was done all the
            same, under asyncio a note on the CancelledError says so, and a descriptor that it has
            made is closed; under trio the result is returned, and the next checkpoint is cancelled.

        Returns:
            What the operation's docstring promises.

        Raises:
            OSError: the operation failed.
            ValueError, TypeError: it cannot be queued, or completes several times -> `stream()`.
            RingClosedError: the ring is closed, or was closed meanwhile.
        """
        self._check_single(op)
        call = self._loop.call(self._on_cancel)
        call.number = self._enlist(op, call)
        try:
            await call
        except BaseException as error:
            self._on_left(call, op, error)
            raise
        cqe = call.cqe
        if call.error is not None:
            raise call.error
        if cqe is None or (self._refusal is not None and cqe.res == -errno.ECANCELED):
            raise RingClosedError(self._refusal or "the ring is closed")
        return cqe.result()

    def stream(self, op: Queueable, *, limit: int = UNREAD_MAX) -> Stream:
        """
        Begin an operation that completes several times, and iterate over its completions.

        For the multishot operations, and for zero-copy sends, whose release comes second::

            async with ring.stream(AcceptMultishot(listener)) as accepted:
                async for cqe in accepted:
                    tasks.create_task(serve(cqe.result()))

        Args:
            op: the operation, not linked.
            limit: how many completions may be unread before the kernel is told to stop meanwhile.

        Raises:
            ValueError, TypeError, RingClosedError: as for `do()`.
        """
        self._check_alone(op)
        return Stream(self, op, limit)

    async def run(self, operations: Batch | Iterable[Queueable]) -> Completions:
        """
        Do any number of operations, and give their completions, in the order of the operations.

        For chains, and for many at once: it is one wait for all of them. As `uring.Ring.run()`,
        which says what is taken and raised, but that other tasks go on meanwhile.

        Cancellation: what is in flight is cancelled and waited for, and what has not begun does
            not. All results are lost, though what was done is done; new descriptors are closed.
        """
        self._check_open()
        batch = self.plain._checked(operations)
        if not batch._count:
            await self._loop.checkpoint()
            return batch._nothing
        run, result = self.plain._set_off(batch)
        try:
            if result != 0:
                await self._wait_for_run(run, result)
            else:
                await self._loop.checkpoint()
            return self.plain._results(run)
        except BaseException:
            if self._refusal is None:
                self.plain._leave(run)
            raise

    # ---- closing ----

    @property
    def closed(self) -> bool:
        """Whether it is closed, or is being closed."""
        return self._refusal is not None or self.plain.closed

    async def aclose(self) -> None:
        """
        Close the ring: cancel what is in flight, wait for it, and give everything back.

        A barrier, also for a task that is cancelled: when it returns, the kernel no longer touches
        any memory. Tasks that wait get RingClosedError, if their operation had not ended well.
        """
        if self._refusal is not None:
            return
        self._refusal = "the ring is closed"
        try:
            await self._drain()
        finally:
            self.close()

    def close(self) -> None:
        """Close the ring at once: wait for the kernel, and not for tasks. Mind `aclose()`."""
        self._refusal = self._refusal or "the ring is closed"
        eventfd, self._eventfd = self._eventfd, -1
        if eventfd < 0:
            self.plain.close()
            return
        self._loop.unwatch(eventfd)
        self.plain.close()
        os.close(eventfd)
        takers, runs = self._takers, self._runs
        self._takers, self._runs = {}, {}
        if self._loop.is_here():
            for waiting in (*takers.values(), *runs):
                waiting.wake()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        eventfd = getattr(self, "_eventfd", -1)
        if eventfd >= 0:  # the ring underneath warns, and takes back what is in flight
            self._eventfd = -1
            os.close(eventfd)

    def __repr__(self) -> str:
        if self._refusal is not None:
            return f"<aio.Ring closed: {self._refusal}>"
        return f"<aio.Ring of {len(self._takers)} operations and {len(self._runs)} runs in flight>"

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise RingClosedError(self._refusal)
        self.plain._check_open()

    async def _drain(self) -> None:
        for number in list(self._takers):
            self._ask_to_cancel(number)
        for run in self._runs.values():
            self.plain._cancel_run(run)
        self._give_up = time.monotonic() + _CANCEL_SECONDS
        if self._takers or self._runs:
            self._remind()
            self._drained = self._loop.call(lambda _call: None)
            await self._drained

    # ---- cancelling ----

    def _waiter(self) -> Call:
        """Make a wait that can be cancelled at once."""
        return self._loop.call(_wake)

    def _on_cancel(self, call: Call) -> None:
        self._ask_to_cancel(call.number)

    def _on_cancel_run(self, call: Call) -> None:
        self.plain._cancel_run(self._runs[call])
        self._remind()

    def _ask_to_cancel(self, number: int) -> None:
        if number in self._takers:
            self._doomed.add(number)
            self._queue_cancel(number)
            self._remind()

    def _cancel_soon(self, number: int) -> None:
        """Do that for what was dropped, if it can be done here; else close() will."""
        if self._refusal is None and self._loop.is_here():
            self._ask_to_cancel(number)

    async def _cancel_and_wait(self, number: int) -> None:
        """Cancel an operation and wait for its terminal completion."""
        while number in self._takers:
            self._ask_to_cancel(number)
            call = self._loop.call(lambda _call: None)
            self._ends.setdefault(number, []).append(call)
            await call

    def _queue_cancel(self, number: int) -> None:
        op = AsyncCancel(number)
        try:
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
            self._drained.wake()
        self._doomed &= self._takers.keys()
        late = [run for call, run in self._runs.items() if call.is_cancelled or self._drained]
        if not self._doomed and not late:
            self._remind_seconds = _REMIND_SECONDS
            return
        self._remind_seconds = min(2 * self._remind_seconds, _REMIND_SECONDS_MAX)
        for number in self._doomed:
            self._queue_cancel(number)
        for run in late:
            self.plain._cancel_run(run)
        self._remind()

    def _on_left(self, call: Call, op: Queueable, error: BaseException) -> None:
        """Look after what nobody will have."""
        cqe = call.cqe
        if cqe is None:  # the coroutine was closed, maybe after the loop
            call.is_dropped = True
            self._cancel_soon(call.number)
        elif cqe.res not in _ENDS_OF_CANCELLED:
            close_all([None, *descriptors_of(cqe)])
            if getattr(op, "slot", None) is AUTO and cqe.res >= 0 and self._refusal is None:
                self._queue(Close(Fixed(cqe.res)))
                self._schedule()
            error.add_note(f"{op!r} was done all the same: res is {cqe.res}")

    # ---- queueing ----

    def _check_alone(self, op: Queueable) -> None:
        flags = getattr(op, "flags", NO_FLAGS)
        if flags is not NO_FLAGS and isinstance(flags, int) and flags & _ALONE:
            raise ValueError(
                f"{op!r} is part of a chain, or skips its completion: give all of it to run()"
            )

    def _check_single(self, op: Queueable) -> None:
        self._check_alone(op)
        kind = type(op)
        if kind in _SEVERAL or (kind is SQE and is_multishot(encoded(op)[0])):
            raise ValueError(f"{op!r} completes any number of times: use stream()")

    def _enlist(self, op: Queueable, taker: _Taker) -> int:
        """Queue an operation; give its number."""
        self._check_open()
        if getattr(op, "user_data", None) in self._takers:
            raise ValueError(f"an operation with user_data {op.user_data} is in flight")
        number = self._queue(op)
        self._takers[number] = taker
        if not self._is_due:
            self._is_due = True
            self._loop.at_end_of_turn(self._flush)
        return number

    def _queue(self, op: Queueable) -> int:
        if not self._backlog:
            with contextlib.suppress(SubmissionQueueFull):
                return self.plain.queue(op)
            self._submit()
            with contextlib.suppress(SubmissionQueueFull):
                return self.plain.queue(op)
        encoded(op)  # what cannot be is refused here and now
        number = self.plain._draw(1) if op.user_data is None else op.user_data
        self._backlog.append((op, number))
        return number

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.at_end_of_turn(self._flush)

    def _flush(self) -> None:
        """Submit what was queued, and give out what has completed meanwhile."""
        self._is_due = False
        if self._eventfd == -1:
            return
        is_stuck = not self._submit()
        while self._backlog and self._make_room():
            is_stuck = not self._submit()
        self._harvest()
        if is_stuck or self._backlog:
            self._schedule()

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
                taker.take(CQE(number, -errno.ECANCELED, 0, op))
            else:
                try:
                    self.plain._queue(op, number, is_drawn=op.user_data is None)
                except SubmissionQueueFull:
                    self._backlog.appendleft((op, number))
                    return has_moved
                except (TypeError, ValueError, UringError) as error:
                    if taker is not None:
                        del self._takers[number]
                        taker.fail(error)
            has_moved = True
        return has_moved

    # ---- what comes ----

    def _on_ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        self._harvest()

    def _harvest(self) -> None:
        """Give out all completions that there are."""
        plain, takers = self.plain, self._takers
        while done := plain.copy_cqes():
            for number, flags, cqe in zip(
                done.user_data.tolist(), done.flags.tolist(), done, strict=True
            ):
                taker = takers.get(number)
                if taker is None:
                    self._on_stray(cqe)
                    continue
                if not flags & _MORE:
                    del takers[number]
                taker.take(cqe)
                if self._ends and number not in takers:
                    for call in self._ends.pop(number, ()):
                        call.wake()
        if self._runs:
            self._go_on()
        if self._drained is not None and not takers and not self._runs:
            self._drained.wake()

    def _on_stray(self, cqe: CQE) -> None:
        """Take what nobody waits for: what came of a cancellation, or the reminder."""
        if cqe.user_data == self._reminder:
            self._on_reminder()
        else:
            close_all([None, *descriptors_of(cqe)])

    # ---- runs ----

    async def _wait_for_run(self, run: Run, result: int) -> None:
        call = self._loop.call(self._on_cancel_run)
        self._runs[call] = run
        if result == errno.EINTR or not run.in_flight:
            self._schedule()
        await call
        if self._refusal is not None and run.in_flight:
            raise RingClosedError(self._refusal)

    def _go_on(self) -> None:
        for call, run in list(self._runs.items()):
            result = self.plain._go_on(run)
            if result == 0:
                del self._runs[call]
                call.wake()
            elif result == errno.EINTR or not run.in_flight:
                self._schedule()


def _wake(call: Call) -> None:
    call.wake()


def _plain_ring(entries: int, cq_entries: int | None, flags: SetupFlags) -> PlainRing:
    if flags & _NOT_HERE:
        raise ValueError(f"{flags & _NOT_HERE!r} does not go with an event loop")
    if cq_entries is None and isinstance(entries, int):
        cq_entries = min(4 * entries, CQ_ENTRIES_MAX)
    try:
        return PlainRing(entries, flags=flags | _OWN_FLAGS, cq_entries=cq_entries)
    except SetupError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.1
            raise
        return PlainRing(entries, flags=flags, cq_entries=cq_entries)


def running_loop() -> Loop:
    """
    Find the event loop that the caller runs in.

    Raises:
        RuntimeError: there is none.
    """
    if "trio" in sys.modules:
        from uring.aio import _trio  # noqa: PLC0415 - only where it is there

        if _trio.is_running():
            return _trio.TrioLoop()
    try:
        return AsyncioLoop()
    except RuntimeError:
        raise RuntimeError(
            "no event loop is running here: call this in a coroutine, under asyncio, uvloop or trio"
        ) from None


_rings: "weakref.WeakKeyDictionary[object, weakref.ref[Ring]]" = weakref.WeakKeyDictionary()
"""The ring of each loop; weakly, for a ring has its loop."""


def ring() -> Ring:
    """
    Return the ring of the running event loop; made when it is first asked for.

    It is closed with the loop. See `Ring`.

    Raises:
        RuntimeError: no event loop is running.
        SetupError, UnsupportedError: there are no rings to be had -> the message says why.
    """
    loop = running_loop()
    known = _rings.get(loop.key)
    found = known() if known is not None else None
    if found is None or found.closed:
        found = Ring()
        _rings[loop.key] = weakref.ref(found)
    return found
