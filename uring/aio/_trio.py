"""trio."""

import os
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import trio

from uring.aio._loop import ENDING, Call, Closing
from uring.errors import RingClosedError

_ABORT = trio.lowlevel.Abort


class _TrioCall:
    """A wait for a result."""

    __slots__ = ("_abort", "_has_result", "_result", "_task")

    def __init__(self, abort: trio.lowlevel.Abort) -> None:
        self._abort = abort
        self._has_result = False
        self._result: Any = None
        self._task: trio.lowlevel.Task | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait, as every wait of trio's."""
        if not self._has_result:
            self._task = trio.lowlevel.current_task()
            wait = trio.lowlevel.wait_task_rescheduled(self._on_cancel)  # noqa: ASYNC105 - it is, below
            yield from wait.__await__()
        return self._result

    def _on_cancel(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        if self._abort is _ABORT.SUCCEEDED:
            self._task = None
        return self._abort

    def done(self) -> bool:
        """Whether it has a result."""
        return self._has_result

    def set_result(self, result: Any, /) -> None:
        """Let the task go on."""
        task, self._task = self._task, None
        if not self._has_result:
            self._has_result = True
            self._result = result
            if task is not None:
                trio.lowlevel.reschedule(task)


class TrioLoop:
    """A run of trio's, and the system task in which it looks after a ring."""

    keeps_results = True
    """As in trio itself, where a call is either cancelled or done."""

    def __init__(self) -> None:
        self.key = self._token = self.running_key()
        self._pid = os.getpid()
        self._act: Callable[[], None] | None = None
        self._idle: trio.lowlevel.Task | None = None
        self._watched: tuple[int, Callable[[], None]] | None = None
        self._scope = trio.CancelScope()
        self.call: Callable[[], Call] = partial(_TrioCall, _ABORT.SUCCEEDED)
        self.lasting_call: Callable[[], Call] = partial(_TrioCall, _ABORT.FAILED)

    @staticmethod
    def is_running() -> bool:
        """Whether the caller is in a task of trio's."""
        return trio.lowlevel.in_trio_task()

    @staticmethod
    def running_key() -> trio.lowlevel.TrioToken:
        """Find what stands for the run that the caller is in."""
        return trio.lowlevel.current_trio_token()

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
        if self.is_here() and os.getpid() == self._pid:  # a child's epoll is its parent's
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
        try:
            trio.lowlevel.spawn_system_task(self._serve, closing, name="uring.aio")
        except RuntimeError:
            raise RingClosedError(ENDING) from None

    async def _serve(self, closing: Closing) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._turns)
        finally:
            closing.loop_ends()
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
