"""Who takes the completions of an operation, besides the calls of `_loop`."""

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from uring.aio._loop import Call
from uring.completions import CQE


class Taker(Protocol):
    """Who takes the completions of an operation, in the words of asyncio's futures."""

    def done(self) -> bool:
        """Whether it takes no more."""

    def set_result(self, result: Any, /) -> None:
        """
        Take a completion, or a count, if the completion has nothing else to tell.

        Or an exception, when it could not be queued as its turn came; None when the ring is closed.
        """


class Keeper:
    """Takes the completion of an operation whose task was cancelled."""

    __slots__ = ("_let_go", "call", "came")

    def __init__(self, call: Call | None, let_go: Callable[[CQE], None]) -> None:
        self._let_go = let_go
        self.call = call
        """Who waits for it; None: nobody ever will."""
        self.came: CQE | int | None = None

    def done(self) -> bool:
        """Say that it takes what comes."""
        return False

    def set_result(self, result: CQE | int | Exception | None, /) -> None:
        """Keep it, or let go of what it has made."""
        if isinstance(result, CQE | int):
            self.came = result
        if self.call is not None:
            self.call.set_result(None)
        elif isinstance(result, CQE):
            self._let_go(result)


class Reader(Protocol):
    """A stream, as its intake sees it."""

    def _take(self, news: CQE | Exception | None) -> None:
        """Take what has come."""

    def _has(self, cqe: CQE) -> bool:
        """Whether this is what it took last."""


class Intake:
    """What the ring knows of a stream: enough for one that was dropped to be noticed."""

    __slots__ = ("_let_go", "_stream")

    def __init__(self, stream: Reader, let_go: Callable[[CQE], None]) -> None:
        self._let_go = let_go
        self._stream = weakref.ref(stream)

    def done(self) -> bool:
        """Say that completions can still be taken."""
        return False

    def set_result(self, result: CQE | Exception | None, /) -> None:
        """Pass on what has come, or let go of what nobody will see; None closes the ring."""
        stream = self._stream()
        if stream is not None:
            stream._take(result)
        elif isinstance(result, CQE):
            self._let_go(result)

    def has(self, cqe: CQE) -> bool:
        """Whether the stream has taken it."""
        stream = self._stream()
        return stream is not None and stream._has(cqe)
