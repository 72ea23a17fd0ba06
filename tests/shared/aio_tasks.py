"""Tasks that tests of uring.aio begin and cancel, whichever loop runs."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import trio

SECONDS: Final = 60


def is_trio() -> bool:
    """Whether the caller is a task of trio's."""
    return trio.lowlevel.in_trio_task()


@contextlib.asynccontextmanager
async def begun(function: Callable[..., Any], *args: Any) -> AsyncIterator[tuple[Any, list[Any]]]:
    """Have a function run in a task: what cancels that, and where its end will be put."""
    ends: list[Any] = []

    async def body() -> None:
        try:
            ends.append(await function(*args))
        except (asyncio.CancelledError, trio.Cancelled) as error:
            ends.append(error)
            raise
        except Exception as error:  # noqa: BLE001 - to be looked at
            ends.append(error)

    if is_trio():
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def in_scope() -> None:
                with scope:
                    await body()

            nursery.start_soon(in_scope)
            yield scope.cancel, ends
    else:
        task = asyncio.ensure_future(body())
        yield task.cancel, ends
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None


async def turns(count: int = 5) -> None:
    """Let other tasks go on."""
    for _ in range(count):
        if is_trio():
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread brings about."""
    for _ in range(SECONDS * 1000):
        if condition():
            return
        await turns()
        threading.Event().wait(0.001)  # lets the thread run
    raise AssertionError(f"not within {SECONDS} s")


def is_cancelled(end: object) -> bool:
    """Whether a task ended by being cancelled."""
    return isinstance(end, asyncio.CancelledError | trio.Cancelled)
