"""What the ring asks of an event loop, whichever it is: `AsyncioLoop` and `TrioLoop` answer."""

from collections.abc import Callable, Generator
from typing import Any, Protocol

from uring.completions import CQE, close_all, descriptors_of


class Call(Protocol):
    """
    What one task waits for: the terminal completion of an operation, or whatever else will come.

    Cancelling the task does not end the wait. It has the ring cancel the operation, and the task
    goes on when that has ended.
    """

    number: int
    """The user_data of the operation."""
    cqe: CQE | None
    """Its result, once it has ended."""
    error: Exception | None
    """Why it could not even be queued."""
    is_cancelled: bool
    """Whether the task was cancelled while it waited."""
    is_dropped: bool
    """Whether nobody waits any more, or ever will."""

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait."""

    def take(self, cqe: CQE) -> None:
        """Take a completion; the first is the result, the terminal one ends the wait."""
        if self.cqe is None:
            self.cqe = cqe
        if not cqe.more:
            if self.is_dropped:
                close_all([None, *descriptors_of(self.cqe)])
            else:
                self.wake()

    def fail(self, error: Exception) -> None:
        """Take it that the operation could not be queued."""
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Let the task go on; it is cancelled then, if it was to be."""


class Closing(Protocol):
    """What is to be closed with the loop."""

    def close(self) -> None:
        """Close it, waiting for nothing but the kernel."""

    async def aclose(self) -> None:
        """Close it."""


class Loop(Protocol):
    """A running event loop."""

    key: object
    """What stands for it: the same for all that is found in one loop."""

    def call(self, cancel: Callable[[Any], None]) -> Call:
        """
        Make something for the running task to wait for.

        Args:
            cancel: called with it when the task is cancelled meanwhile; what it does must lead to
                `wake()`.
        """

    def at_end_of_turn(self, act: Callable[[], None]) -> object:
        """Call something when the tasks that can go on now have done so."""

    def watch(self, fd: int, act: Callable[[], None]) -> None:
        """Call something whenever a descriptor is readable."""

    def unwatch(self, fd: int) -> None:
        """End that."""

    def close_with_loop(self, closing: Closing) -> None:
        """Have something closed when the loop ends."""

    def is_here(self) -> bool:
        """Whether the calling thread runs this loop, and it is not closed."""

    async def checkpoint(self) -> None:
        """Let other tasks go on, where tasks are expected to do so; be cancelled, if it is time."""
