"""The ring that tasks await; how it works, `_exchange` tells."""

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, Self, overload

from uring.aio._detect import running_kind
from uring.aio._exchange import ENDS_OF_CANCELLED, Exchange
from uring.aio._kinds import ALONE_AND_ONCE, check_number
from uring.aio._loop import ENDING
from uring.aio._streams import UNREAD_MAX, Stream
from uring.batch import Batch
from uring.completions import CQE, Completions
from uring.errors import RingClosedError, SetupError
from uring.flags import SetupFlags
from uring.ring import NO_SETUP_FLAGS
from uring.ring import Ring as PlainRing
from uring.sqe import NO_FLAGS, Queueable
from uring.statx import StatxCompletions, StatxMany

_OWN_FLAGS: Final = SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN
_NOT_HERE: Final = SetupFlags.SQPOLL | SetupFlags.IOPOLL | SetupFlags.R_DISABLED
_CQ_ENTRIES_MAX: Final = 65536


class Ring(Exchange):
    """
    A ring that the tasks of the running event loop await: asyncio's, uvloop's or trio's.

    `uring.aio.ring()` gives the one that the loop has; this makes another. Use it as an
    asynchronous context manager, or call `aclose()`. It is used in the loop's thread alone.

    Args:
        entries: the size of the submission queue, as for `uring.Ring`: how many operations one
            system call submits. More than that may be begun in one turn: they take turns.
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
        flags: SetupFlags = NO_SETUP_FLAGS,
    ) -> None:
        super().__init__(running_kind()(), _plain_ring(entries, cq_entries, flags))
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
                its memory is free, also when it is cancelled: the peer has the data then, or the
                connection is gone. Not one that is linked: `run()` does chains.

        Cancellation: the kernel is asked to end the operation, and the task sees its cancellation
            when it has. Then all memory is the caller's again. When the operation was done all the
            same, under asyncio a note on the CancelledError says so, and a descriptor that it has
            made is closed; under trio the result is returned, and the next checkpoint is cancelled.

        Returns:
            What the operation's docstring promises.

        Raises:
            OSError: the operation failed.
            ValueError, TypeError: it cannot be queued, or completes several times -> `stream()`;
                or it has a user_data that is in flight, or one from 2**63 on, which are the ring's.
            RingClosedError: the ring is closed, or was closed meanwhile.
        """
        number: int | None = None
        try:
            is_ordinary = op._flags is NO_FLAGS and op._user_data is None  # type: ignore[attr-defined]  # see _values
        except AttributeError:  # an SQE; or what cannot be queued
            is_ordinary = False
        if not is_ordinary or op.__class__ not in ALONE_AND_ONCE:
            number = self._checked_number(op, is_single=True)
        call = self._loop.call()
        number = self._enlist(op, call, number)
        try:
            came = await call
        except BaseException as error:
            came = await self._after_all(op, number, call, error)
            if came is None:
                raise
        if came.__class__ is int:  # a count: no CQE was made
            return came
        if isinstance(came, CQE) and (self._refusal is None or came.res not in ENDS_OF_CANCELLED):
            return came.result()
        if isinstance(came, Exception):
            raise came
        closed = RingClosedError(self._refusal or "the ring is closed")
        closed.may_be_done = came is None  # type: ignore[attr-defined]  # for who would do it again
        raise closed

    def stream(self, op: Queueable, *, limit: int = UNREAD_MAX) -> Stream:
        """
        Begin an operation that completes several times, and iterate over its completions.

        For the multishot operations, and for zero-copy sends, whose release comes second::

            async with ring.stream(AcceptMultishot(listener)) as accepted:
                async for cqe in accepted:
                    tasks.create_task(serve(cqe.result()))

        An operation that completes once is a stream of one.

        Args:
            op: the operation, not linked.
            limit: how many completions may be unread before the kernel is told to stop meanwhile;
                from 1 to 2**32 - 1.

        Raises:
            ValueError, TypeError, RingClosedError: as for `do()`.
        """
        return Stream(self, op, limit)

    @overload
    async def run(self, operations: StatxMany) -> StatxCompletions: ...
    @overload
    async def run(self, operations: Batch | Iterable[Queueable]) -> Completions: ...
    async def run(self, operations: Batch | Iterable[Queueable]) -> Completions:
        """
        Do any number of operations, and give their completions, in the order of the operations.

        For chains, and for many at once: it is one wait for all of them. As `uring.Ring.run()`,
        which says what is taken and raised, but that other tasks go on meanwhile. Its timeout is
        `asyncio.timeout()` or `trio.fail_after()`.

        Cancellation: what is in flight is cancelled and waited for, and what has not begun does
            not. All results are lost, though what was done is done; new descriptors are closed.
        """
        self._check_open()
        batch = self.plain._checked(operations)
        for number in batch._chosen:
            check_number(number)
        if not batch._count:
            await self._loop.checkpoint()
            return batch._nothing
        run, result = self.plain._set_off(batch)
        try:
            if result != 0:
                await self._wait_for_run(run, result)
            else:
                await self._loop.checkpoint()
            self._check_open()
            return self.plain._results(run)
        except BaseException:
            self._empty_slots(run.landings())
            self.plain._leave(run)
            del batch, run  # what catches this has the frame, and the buffers are the caller's
            raise

    # ---- closing ----

    def loop_ends(self) -> None:
        """Take note that the loop ends; for the loop."""
        _ended.add(self._loop.key)

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
            return f"<uring.aio.Ring closed: {self._refusal}>"
        return (
            f"<uring.aio.Ring of {len(self._takers)} operations and {len(self._runs)} runs"
            " in flight>"
        )


def _plain_ring(entries: int, cq_entries: int | None, flags: SetupFlags) -> PlainRing:
    if flags & _NOT_HERE:
        raise ValueError(f"{flags & _NOT_HERE!r} does not go with an event loop")
    if cq_entries is None and isinstance(entries, int):
        cq_entries = min(4 * entries, _CQ_ENTRIES_MAX)
    try:
        return PlainRing(entries, flags=flags | _OWN_FLAGS, cq_entries=cq_entries)
    except SetupError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.1
            raise
        return PlainRing(entries, flags=flags, cq_entries=cq_entries)


class _Latest(threading.local):
    """The ring that was asked for last in each thread: nearly always that which is asked for."""

    def __init__(self) -> None:
        self.ring: Callable[[], Ring | None] = lambda: None


_latest: Final = _Latest()
_rings: "weakref.WeakKeyDictionary[object, weakref.ref[Ring]]" = weakref.WeakKeyDictionary()
"""The ring of each loop; weakly, for a ring has its loop."""
_ended: "weakref.WeakSet[object]" = weakref.WeakSet()
"""Loops that have closed their rings at their end: nobody would close another one."""


def ring() -> Ring:
    """
    Return the ring of the running event loop; made when it is first asked for.

    It is closed with the loop. See `Ring`.

    Raises:
        RuntimeError: no event loop is running.
        SetupError, UnsupportedError: there are no rings to be had -> the message says why.
        RingClosedError: the loop is ending, as for what is left of asynchronous generators then.
    """
    key = running_kind().running_key()
    found = _latest.ring()
    if found is None or found._loop.key is not key or found.closed:
        found = _ring_of(key)
        _latest.ring = weakref.ref(found)
    return found


def is_ending() -> bool:
    """Whether the running loop is about to end, and has closed its ring."""
    return running_kind().running_key() in _ended


def _ring_of(key: object) -> Ring:
    if key in _ended:
        raise RingClosedError(ENDING)
    known = _rings.get(key)
    found = known() if known is not None else None
    if found is None or found.closed or not found._loop.is_here():  # it ran in another thread
        found = Ring()
        _rings[key] = weakref.ref(found)
    return found
