"""
The event loops: how each runs a program, 64 tasks at once, and a function in a thread.

Those of asyncio's kind stay from one measurement to the next, and so do their rings and threads.
trio has none that stays: starting it is in its figures, less than a hundredth of them.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from aio_cases import IN_FLIGHT

Main = Callable[..., Coroutine[Any, Any, int]]
Worker = Callable[[int], Coroutine[Any, Any, int]]


class Loop(Protocol):
    """A loop."""

    def run(self, main: Main, /, *arguments: object) -> int:
        """Run a program."""

    async def together(self, worker: Worker) -> int:
        """Run 64 tasks, and return the sum of what they return."""

    @property
    def in_thread(self) -> Callable[..., Awaitable[Any]]:
        """Call a function in a thread."""

    def close(self) -> None:
        """Close it."""


class Asyncio:
    """A loop of asyncio's, or of who has its interface."""

    def __init__(
        self, factory: Callable[[], asyncio.AbstractEventLoop] | None = None, threads: int = 0
    ) -> None:
        self._runner = asyncio.Runner(loop_factory=factory)
        self.in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread
        if threads:  # and not min(32, processors + 4)
            self._runner.get_loop().set_default_executor(ThreadPoolExecutor(threads))

    def run(self, main: Main, /, *arguments: object) -> int:
        """Run a program."""
        return self._runner.run(main(*arguments))

    async def together(self, worker: Worker) -> int:
        """Run 64 tasks, and return the sum of what they return."""
        return sum(await asyncio.gather(*map(worker, range(IN_FLIGHT))))

    def close(self) -> None:
        """Close it, and what is bound to it."""
        self._runner.close()


class Trio:
    """A run of trio's."""

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self.in_thread: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync

    def run(self, main: Main, /, *arguments: object) -> int:
        """Run a program."""
        signal.set_wakeup_fd(-1)  # uringio's loop leaves one behind, of which trio would warn
        result: int = self._trio.run(main, *arguments)
        return result

    async def together(self, worker: Worker) -> int:
        """Run 64 tasks, and return the sum of what they return."""
        results = []

        async def work(number: int) -> None:
            results.append(await worker(number))

        async with self._trio.open_nursery() as nursery:
            for number in range(IN_FLIGHT):
                nursery.start_soon(work, number)
        return sum(results)

    def close(self) -> None:
        """There is nothing to close."""
