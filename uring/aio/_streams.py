"""Streams: the completions of one operation that posts several, as an asynchronous iterator."""

import collections
import errno
import warnings
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Self

from uring._checks import check_range
from uring._streaming import StreamEnd, end_of
from uring.aio._exchange import Exchange
from uring.aio._takers import Intake
from uring.completions import CQE
from uring.operations import (
    AcceptMultishot,
    PollMultishot,
    ReadMultishot,
    RecvBundleMultishot,
    RecvmsgMultishot,
    RecvMultishot,
)
from uring.sqe import UINT32_MAX, Queueable

if TYPE_CHECKING:
    from uring.aio._loop import Call

UNREAD_MAX: Final = 256
"""How many completions are kept for a slow reader before the kernel must stop: a ring's entries."""

_CAN_PAUSE: Final = (
    AcceptMultishot,
    PollMultishot,
    ReadMultishot,
    RecvMultishot,
    RecvBundleMultishot,
    RecvmsgMultishot,
)
"""What loses nothing when it is cancelled and begun again: what is not told yet, is told then."""


class Stream(AsyncIterator[CQE]):
    """
    The completions of one operation, as they come: `Ring.stream()` makes it.

    Iterating ends behind the terminal completion; `outcome` then tells why. Each completion is
    there once: its descriptor is the reader's to close, its lease the reader's to release. One task
    may read it at a time.

    When as many are unread as `limit` says, the operation is cancelled, and begun again when they
    have been read: what a slow reader does not accept or receive waits in the kernel. Timers and
    commands of drivers are not paused, as nobody would keep what they have to tell meanwhile.

    Leaving the `async with` block early cancels the operation, waits for its end, closes the
    descriptors that nobody has seen and gives the unread buffers back.
    """

    def __init__(self, ring: Exchange, op: Queueable, limit: int) -> None:
        self._is_open = False  # for __del__, should one of the next raise
        check_range("limit", limit, 1, UINT32_MAX)
        self._ring = ring
        self._limit = limit
        self._can_pause = isinstance(op, _CAN_PAUSE)
        self._pause_is_asked = False
        self._is_paused = False
        self._unread: collections.deque[CQE] = collections.deque()
        self._waiter: Call | None = None
        self._closers: list[Call] = []
        """Who waits for its end."""
        self._error: Exception | CQE | None = None
        self.op = op
        """The operation."""
        self.outcome: StreamEnd | None = None
        """Why it has ended; None while it has not."""
        self.terminal: CQE | None = None
        """The terminal completion, once it has come."""
        self._intake = Intake(self, ring._let_go)
        number = ring._checked_number(op, is_single=False)
        self.number = ring._enlist(op, self._intake, number)
        """The user_data of its completions."""
        self._is_open = True

    # ---- reading ----

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CQE:
        """
        Return the next completion.

        Raises:
            StopAsyncIteration: the stream has ended.
            OSError: the operation failed; raised once. What is an outcome is no failure.
            RuntimeError: another task is reading.
            RingClosedError: the ring is closed.
        """
        if self._waiter is not None:
            raise RuntimeError(f"another task is reading from {self!r}")
        while not self._unread:
            if self.outcome is not None:
                error, self._error = self._error, None
                if isinstance(error, CQE):
                    error = error.error
                raise StopAsyncIteration if error is None else error
            self._ring._check_open()
            if self._is_paused:
                number = self._ring._checked_number(self.op, is_single=False)
                self.number = self._ring._enlist(self.op, self._intake, number)
                self._is_paused = False
            self._waiter = self._ring._loop.call()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._unread.popleft()

    # ---- what comes ----

    def _take(self, news: CQE | Exception | None) -> None:
        if isinstance(news, CQE):
            self._take_cqe(news)
        elif news is not None:  # it could not be queued when there was room at last
            self._error = news
            self.outcome = StreamEnd.FAILED
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        has_ended = self.outcome is not None or self._is_paused or news is None
        while self._closers and has_ended:
            self._closers.pop().set_result(None)

    def _has(self, cqe: CQE) -> bool:
        return bool(self._unread) and self._unread[-1] == cqe

    def _take_cqe(self, cqe: CQE) -> None:
        if not cqe.more:
            if self._pause_is_asked and self._can_pause and cqe.res == -errno.ECANCELED:
                self._is_paused = True
            else:
                self._end(cqe)
            self._pause_is_asked = False
            return
        self._unread.append(cqe)
        if len(self._unread) >= self._limit and self._can_pause and not self._pause_is_asked:
            self._pause_is_asked = True
            self._ring._ask_to_cancel(self.number)

    def _end(self, terminal: CQE) -> None:
        self.terminal = terminal
        self.outcome = end_of(self.op, terminal)
        if self.outcome is StreamEnd.FINISHED:
            self._unread.append(terminal)
        elif self.outcome is StreamEnd.FAILED:
            self._error = terminal  # its error is made for the reader: it may ask caller's objects

    # ---- leaving ----

    async def aclose(self) -> None:
        """
        End the stream: cancel the operation, wait for its end, let go of what was not read.

        May be called any number of times. It waits for the kernel also when the task is cancelled.
        """
        self._is_open = False
        self._can_pause = False
        try:
            if self._ring._takers.get(self.number) is self._intake:
                last = self._ring._loop.lasting_call()
                self._closers.append(last)
                self._ring._ask_to_cancel(self.number)
                await last
        finally:
            self._drop_unread()
            if self._is_paused:
                self.outcome = StreamEnd.CANCELLED

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    def _drop_unread(self) -> None:
        while self._unread:
            self._ring._let_go(self._unread.popleft())

    def __del__(self) -> None:
        if not self._is_open:
            return
        try:
            if self.outcome is None and not self._ring.closed:
                warnings.warn(
                    f"{self!r} was dropped without aclose()", ResourceWarning, stacklevel=2
                )
        finally:  # also when warnings are errors
            self._drop_unread()
            if self.outcome is None and not self._is_paused:
                self._ring._cancel_soon(self.number)

    def __repr__(self) -> str:
        state = "running" if self.outcome is None else self.outcome.value
        return f"<Stream of {self.op!r}: {state}>"
