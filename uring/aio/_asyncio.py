"""asyncio, and whatever has its interface, such as uvloop."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from uring.aio._loop import Call, Closing


class _LastingFuture(asyncio.Future[Any]):
    """A future that is cancelled only when it would have a result."""

    _is_cancelled = False
    _message: Any = None

    def cancel(self, msg: Any = None) -> bool:
        """Note that the task was cancelled."""
        if self.done():
            return False
        self._is_cancelled = True
        self._message = msg
        return True

    def set_result(self, result: Any, /) -> None:
        """Let the task go on, or be cancelled now."""
        if self.done():
            return
        if self._is_cancelled:
            super().cancel(self._message)
        else:
            super().set_result(result)


class AsyncioLoop:
    """A loop of asyncio's."""

    keeps_results = False
    """An asyncio.timeout() that a task leaves without CancelledError would not be one."""

    def __init__(self) -> None:
        self.key = self._loop = self.running_key()
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._guard: AsyncGenerator[None, None] | None = None
        self.at_end_of_turn: Callable[[Callable[[], None]], object] = self._loop.call_soon
        self.call: Callable[[], Call] = self._loop.create_future
        self.lasting_call: Callable[[], Call] = partial(_LastingFuture, loop=self._loop)

    @staticmethod
    def running_key() -> asyncio.AbstractEventLoop:
        """
        Find the loop that the caller runs in.

        Raises:
            RuntimeError: there is none.
        """
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "no event loop is running here: call this in a coroutine, under asyncio, uvloop"
                " or trio"
            ) from None

    def watch(self, fd: int, act: Callable[[], None]) -> None:
        """Add a reader."""
        self._loop.add_reader(fd, act)

    def unwatch(self, fd: int) -> None:
        """Remove the reader, if the loop still is."""
        if self.is_here() and os.getpid() == self._pid:  # a child's epoll is its parent's
            self._loop.remove_reader(fd)

    def is_here(self) -> bool:
        """Whether this is its thread, and it is not closed."""
        return threading.get_ident() == self._thread and not self._loop.is_closed()

    async def checkpoint(self) -> None:
        """Do nothing: asyncio expects no task to stop when it need not."""

    def close_with_loop(self, closing: Closing) -> None:
        """
        Have something closed when the loop ends.

        There is no hook for that but this: a loop closes its asynchronous generators, in
        shutdown_asyncgens(), which asyncio.run() and its like call.
        """

        async def guard() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                closing.loop_ends()
                await closing.aclose()

        self._guard = guard()
        with contextlib.suppress(StopIteration):  # up to its yield, where nothing is waited for
            self._guard.__anext__().__await__().__next__()
