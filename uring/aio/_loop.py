"""What the ring asks of an event loop, whichever it is: `AsyncioLoop` and `TrioLoop` answer."""

from collections.abc import Callable, Generator
from typing import Any, Final, Protocol

ENDING: Final = "the event loop is ending, and has closed its ring"


class Call(Protocol):
    """
    What one task waits for, in the words of asyncio's futures.

    Those are the calls of asyncio: the most common, and in C.
    """

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for the result, which is None when the ring was closed."""

    def done(self) -> bool:
        """Whether it has a result, or was cancelled."""

    def set_result(self, result: Any, /) -> None:
        """Let the task go on."""


class Closing(Protocol):
    """What is to be closed with the loop."""

    def loop_ends(self) -> None:
        """Take note that the loop ends."""

    def close(self) -> None:
        """Close it, waiting for nothing but the kernel."""

    async def aclose(self) -> None:
        """Close it."""


class Loop(Protocol):
    """A running event loop."""

    call: Callable[[], Call]
    """Make something for the running task to wait for, until it is cancelled."""
    lasting_call: Callable[[], Call]
    """Make a wait that a cancelled task goes on with until there is a result."""
    keeps_results: bool
    """Whether a task that is cancelled may have a result all the same, and is cancelled later."""

    @property
    def key(self) -> object:
        """What stands for it: the same for all that is found in one loop."""

    @property
    def at_end_of_turn(self) -> Callable[[Callable[[], None]], object]:
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
