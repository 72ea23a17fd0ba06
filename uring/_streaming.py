"""
Streams: the completions of one operation that posts several, one after the other.

A stream takes from the ring what carries its number, and leaves the rest to `copy_cqes()`, which
leaves to it what is its own. What it takes is given out in the same step, as everywhere: no signal
handler finds a completion that is neither in the ring nor in somebody's hands. So between the
stores that take it and the caller no call is made, not even that which lets go of a lock.
"""

import contextlib
import errno
import time
import warnings
from collections.abc import Iterator
from enum import Enum
from typing import Final, Self

from uring._checks import check_range
from uring._completion import deadline_ns, without
from uring._running import RunSide
from uring.completions import CQE, close_all, descriptors_of
from uring.errors import UringError
from uring.sqe import UINT64_MAX, Queueable

_CLOSE_SECONDS: Final = 30.0  # as Ring.close() waits for what it has cancelled
_SLICE_NS: Final = 50_000_000  # then what is still there is cancelled again


class StreamEnd(Enum):
    """Why a `Stream` has ended."""

    FINISHED = "finished"
    """
    The last completion brought a result like those before it.

    What was asked for is complete, or the kernel stopped early (after an overflow of the completion
    queue, for one): make another stream if more is to come.
    """

    END_OF_FILE = "end of file"
    """The peer has shut down, or the file has ended."""

    NO_BUFFERS = "no buffers"
    """The group of provided buffers ran dry: release leases, and make another stream."""

    CANCELLED = "cancelled"
    """It was cancelled, by `close()` or by somebody else."""

    FAILED = "failed"
    """The operation failed; the stream has raised its error."""


_FINISHED: Final = StreamEnd.FINISHED
_FAILED: Final = StreamEnd.FAILED


def end_of(op: Queueable, terminal: CQE) -> StreamEnd:
    """Why the terminal completion has ended it."""
    number = -terminal.res
    if number in op._ordinary or terminal.is_notification:
        return StreamEnd.FINISHED
    if number > 0:
        ends = {
            errno.ENOBUFS: StreamEnd.NO_BUFFERS,
            errno.ECANCELED: StreamEnd.CANCELLED,
        }
        return ends.get(number, StreamEnd.FAILED)
    if number == 0 and op._ends_with_zero and terminal.buffer_id is None:
        return StreamEnd.END_OF_FILE
    return StreamEnd.FINISHED


class Stream(Iterator[CQE]):
    """
    The completions of one operation, as they come: `Ring.stream()` makes it.

    Iterating waits, submits nothing, and ends behind the terminal completion; `outcome` then tells
    why. Each completion is there once: its descriptor is the caller's to close, its lease the
    caller's to release. Leaving the `with` block early cancels the operation, waits for its end,
    closes the descriptors that nobody has seen and gives the unread buffers back.
    """

    __slots__ = ("__weakref__", "_is_open", "_ring", "op", "outcome", "terminal", "user_data")

    def __init__(self, ring: "StreamSide", op: Queueable, user_data: int) -> None:
        self._ring = ring
        self._is_open = True
        self.op = op
        """The operation."""
        self.user_data = user_data
        """The number that its completions carry."""
        self.outcome: StreamEnd | None = None
        """Why it has ended; None while it has not."""
        self.terminal: CQE | None = None
        """The terminal completion, once it was seen."""

    def __next__(self) -> CQE:
        cqe = self.take()
        if cqe is None:
            raise StopIteration
        return cqe

    def take(self, *, timeout: float | None = None) -> CQE | None:
        """
        Return the next completion, waiting for it; None when the stream has ended.

        Args:
            timeout: in seconds; None waits without end.

        Raises:
            TimeoutError: the time is over, and none has come; the stream goes on.
            OSError: the operation failed. What is an outcome (see `StreamEnd`) is no failure.
            RingClosedError: the ring is closed.
        """
        ring, end_ns = self._ring, deadline_ns(timeout)
        while self.outcome is None:
            had = ring._had
            taken = ring._take_own(self)
            if taken is not None:
                cqe, outcome = taken
                if outcome is None or outcome is _FINISHED:
                    return cqe
                if outcome is _FAILED:
                    cqe.result()
                return None
            if self.outcome is None and not ring._wait_beyond(had, end_ns):
                raise TimeoutError(errno.ETIMEDOUT, f"no completion came within {timeout} s")
        return None

    def close(self) -> None:
        """
        End the stream: cancel the operation, wait for its end, let go of what was not read.

        May be called any number of times. What the kernel does not end within 30 s stays in flight,
        with a RuntimeWarning; its completions then come out of `Ring.copy_cqes()`.
        """
        if self._ring._refusal is None:  # else what is left is the closing ring's to take back
            if self.outcome is None:
                self._ring._end_stream(self, time.monotonic() + _CLOSE_SECONDS)
            self._ring._set_apart(self.user_data, is_ended=True)
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if (
            getattr(self, "_is_open", False)
            and self.outcome is None
            and self._ring._refusal is None
        ):
            try:
                warnings.warn(
                    f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2
                )
            finally:  # also when warnings are errors
                self._ring._set_apart(self.user_data, is_ended=True)
                with contextlib.suppress(UringError):  # no wait in here; the ring's close() will
                    self._ring._cancel([self.user_data])

    def __repr__(self) -> str:
        state = "running" if self.outcome is None else self.outcome.value
        return f"<Stream of {self.op!r}: {state}>"


class StreamSide(RunSide):
    """Streams."""

    def stream(self, op: Queueable) -> Stream:
        """
        Submit an operation that completes several times, and iterate over its completions.

        For the multishot operations, and for zero-copy sends, whose release comes second. Submits
        what else is queued, too. Other completions are left for `copy_cqes()`, and any number of
        streams may be read side by side::

            with ring.stream(AcceptMultishot(listener)) as accepted:
                for cqe in accepted:
                    serve(cqe.result())

        Args:
            op: the operation; alone, not linked. One without a user_data gets a number of the
                ring's own, and one that was given must not be shared with others.

        Raises:
            ValueError, TypeError, SubmissionQueueFull, RingClosedError: as for `queue()`.
            EnterError: as for `submit()`.

        Kernel: 5.4; the operation may need more. Source: io_uring_multishot(7).
        """
        self._check_use()
        self._check_operation(op)
        is_drawn = op.user_data is None
        number = self._draw(1) if op.user_data is None else op.user_data
        check_range("user_data", number, 0, UINT64_MAX)
        self._set_apart(number)  # first: another thread may submit and copy out
        try:
            self._queue(op, number, is_drawn=is_drawn)
            self.submit()
            return Stream(self, op, number)
        except BaseException:
            if self._refusal is None:  # as in Stream.close()
                self._set_apart(number, is_ended=True)
            raise

    def _set_apart(self, number: int, *, is_ended: bool = False) -> None:
        """Keep the completions of a number from `copy_cqes()`, or do so no longer."""
        while True:
            before = self._streamed
            if not is_ended and number in before:
                raise ValueError(f"there is a stream of user_data {number:#x} already")
            after = before - {number} if is_ended else before | {number}
            if self._streamed is before:  # no call between this and the store
                self._streamed = after
                return

    def _take_own(
        self, stream: Stream, *, is_dropped: bool = False
    ) -> tuple[CQE, StreamEnd | None] | None:
        """
        Copy out the next completion of a stream, and note its end in the same step.

        And when nobody is going to read it, the descriptors that have to be closed.
        """
        self._check_use()
        number = stream.user_data
        while True:
            kept, unread, streamed = self._kept, self._unread, self._streamed
            numbers = kept.user_data.tolist()
            if stream.outcome is not None:
                return None
            if number not in numbers:
                with self._lock:
                    if self._kept is kept and not self._fetch_more(None):
                        return None
                continue
            place = numbers.index(number)
            cqe, left = kept[place], without(kept, place)
            outcome = None if cqe.more else end_of(stream.op, cqe)
            terminal, still = (None, streamed) if cqe.more else (cqe, streamed - {number})
            if is_dropped:
                unread = [None, *descriptors_of(cqe)]
            taken = cqe, outcome
            # No call from here to the end.
            if self._kept is kept and self._streamed is streamed:
                self._kept = left
                self._unread = unread
                self._streamed = still
                stream.outcome = outcome
                stream.terminal = terminal
                return taken

    def _end_stream(self, stream: Stream, deadline: float) -> None:
        self._check_use()
        while True:
            had = self._had
            self._drop_own(stream)
            if stream.outcome is not None:
                return
            if time.monotonic() >= deadline:
                warnings.warn(
                    f"{stream!r} could not be cancelled within {_CLOSE_SECONDS} s; its memory is"
                    " kept until it ends",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return
            self._submit()  # what was queued and could not be submitted cannot be cancelled
            self._cancel([stream.user_data])
            self._wait_beyond(had, time.monotonic_ns() + _SLICE_NS)

    def _drop_own(self, stream: Stream) -> None:
        """Consume what is there of a stream, and close the descriptors that it has made."""
        with self._lock:  # one at a time, or one's descriptors would be overwritten by another's
            while True:
                close_all(self._unread)
                if stream.outcome is not None or self._take_own(stream, is_dropped=True) is None:
                    return
