"""Event loops, and the little that tests need of each in the same words."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio
import uvloop

import uring.aio

Function = Callable[..., Awaitable[Any]]


class Kit(Protocol):
    """An event loop."""

    name: str

    def run(self, function: Function, *args: Any) -> Any:
        """Run a coroutine function in a new loop, to its end."""

    async def all(self, *functions: Function) -> list[Any]:
        """Run functions as tasks at once: their results."""

    async def sleep(self, seconds: float) -> None:
        """Let others go on; for a turn, with 0."""

    async def cut_off(self, turns: int, function: Function) -> tuple[bool, Any]:
        """Cancel a task after so many turns: whether it was cancelled, and what it gave else."""

    async def within(self, seconds: float, function: Function) -> bool:
        """Cancel what takes longer: whether it did."""


async def until(kit: Kit, is_so: Callable[[], bool]) -> None:
    """Wait for something to be so."""
    while not is_so():
        await kit.sleep(0.001)


def has(ring: uring.aio.Ring, count: int = 1) -> Callable[[], bool]:
    """Whether the kernel has so many operations of a ring."""
    return lambda: ring.plain.in_flight >= count and not ring.plain.sq_ready()


class _Asyncio:
    """asyncio, or a loop with its interface."""

    def __init__(self, name: str, factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
        self.name = name
        self._factory = factory

    def run(self, function: Function, *args: Any) -> Any:
        async def main() -> Any:
            return await function(*args)

        with asyncio.Runner(loop_factory=self._factory) as runner:
            return runner.run(main())

    async def all(self, *functions: Function) -> list[Any]:
        async def work(function: Function) -> Any:
            return await function()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(function)) for function in functions]
        return [task.result() for task in tasks]

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def cut_off(self, turns: int, function: Function) -> tuple[bool, Any]:
        async def work() -> Any:
            return await function()

        task = asyncio.ensure_future(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return (True, None) if task.cancelled() else (False, task.result())

    async def within(self, seconds: float, function: Function) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await function()
                return False
        return True


class _Trio:
    """trio."""

    name = "trio"

    def run(self, function: Function, *args: Any) -> Any:
        async def main() -> Any:
            return await function(*args)

        return trio.run(main)

    async def all(self, *functions: Function) -> list[Any]:
        results: list[Any] = [None] * len(functions)

        async def work(place: int, function: Function) -> None:
            results[place] = await function()

        async with trio.open_nursery() as nursery:
            for place, function in enumerate(functions):
                nursery.start_soon(work, place, function)
        return results

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def cut_off(self, turns: int, function: Function) -> tuple[bool, Any]:
        results: list[Any] = []
        scope = trio.CancelScope()

        async def work() -> None:
            with scope:
                results.append(await function())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        return (False, results[0]) if results else (True, None)

    async def within(self, seconds: float, function: Function) -> bool:
        with trio.move_on_after(seconds) as scope:
            await function()
        return scope.cancelled_caught


KITS: Final[list[Kit]] = [
    _Asyncio("asyncio", None),
    _Asyncio("uvloop", uvloop.new_event_loop),
    _Trio(),
]
LOOPS: Final[dict[str, Callable[..., Any]]] = {kit.name: kit.run for kit in KITS}
