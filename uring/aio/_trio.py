"""trio."""

import errno
from collections.abc import Callable, Generator
from typing import Any, Final

import outcome
import trio

from uring.aio._loop import Call, Closing
from uring.completions import CQE

_ENDS_OF_CANCELLED: Final = frozenset({-errno.ECANCELED, -errno.EINTR})


class TrioCall(Call):
    """A wait that is cancelled only when the kernel has let go; what has ended well stays so."""

    __slots__ = ("_cancel", "_raise", "_task", "cqe", "error", "is_cancelled", "is_dropped", "number")

    def __init__(self, cancel: Callable[[Call], None]) -> None:
        self.number = 0
        self.cqe: CQE | None = None
        self.error: Exception | None = None
        self.is_cancelled = False
        self.is_dropped = False
        self._cancel = cancel
        self._raise: Callable[[], Any] | None = None
        self._task: trio.lowlevel.Task | None = None

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait, as every wait of trio's."""
        self._task = trio.lowlevel.current_task()
        yield from trio.lowlevel.wait_task_rescheduled(self._abort).__await__()

    def _abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        self._raise = raise_cancel
        self.is_cancelled = True
        self._cancel(self)
        return trio.lowlevel.Abort.FAILED

    def wake(self) -> None:
        """Let the task go on."""
        task, self._task = self._task, None
        if task is None:
            return
        has_ended = self.cqe is not None and self.cqe.res not in _ENDS_OF_CANCELLED
        if self._raise is None or has_ended:
            trio.lowlevel.reschedule(task)
        else:
            trio.lowlevel.reschedule(task, outcome.capture(self._raise))


class TrioLoop:
    """A run of trio's, and the system task in which it looks after a ring."""

    def __init__(self) -> None:
        self.key = self._token = trio.lowlevel.current_trio_token()
        self._act: Callable[[], None] | None = None
        self._idle: trio.lowlevel.Task | None = None
        self._watched: tuple[int, Callable[[], None]] | None = None
        self._scope = trio.CancelScope()

    def call(self, cancel: Callable[[Call], None]) -> TrioCall:
        """Make a wait."""
        return TrioCall(cancel)

    def at_end_of_turn(self, act: Callable[[], None]) -> None:
        """Call it in the next turn, in which what this one has woken goes on."""
        self._act = act
        if self._idle is not None:
            trio.lowlevel.reschedule(self._idle)
            self._idle = None

    def watch(self, fd: int, act: Callable[[], None]) -> None:
        """Have the system task wait for it."""
        self._watched = fd, act

    def unwatch(self, fd: int) -> None:
        """End the system task."""
        self._watched = None
        if self.is_here():
            trio.lowlevel.notify_closing(fd)
            self._scope.cancel()

    def is_here(self) -> bool:
        """Whether this run goes on, and this is its thread."""
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    async def checkpoint(self) -> None:
        """Be a checkpoint."""
        await trio.lowlevel.checkpoint()

    def close_with_loop(self, closing: Closing) -> None:
        """Start the system task, which the end of the run cancels."""
        trio.lowlevel.spawn_system_task(self._serve, closing, name="uring.aio")

    async def _serve(self, closing: Closing) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._turns)
        finally:
            closing.close()

    async def _watch(self) -> None:
        while self._watched is not None:
            fd, act = self._watched
            try:
                await trio.lowlevel.wait_readable(fd)
            except trio.ClosedResourceError:
                return
            act()

    async def _turns(self) -> None:
        while True:
            act, self._act = self._act, None
            if act is None:
                self._idle = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
            else:
                act()
                await trio.lowlevel.checkpoint()

    def _stop_waiting(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._idle = None
        return trio.lowlevel.Abort.SUCCEEDED


def is_running() -> bool:
    """Whether the caller is in a task of trio's."""
    return trio.lowlevel.in_trio_task()


