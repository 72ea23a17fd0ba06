"""The event loops that tests of uring.aio run on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
import uvloop

LOOPS: Final[dict[str, Callable[..., Any]]] = {
    "asyncio": lambda function, *args: asyncio.run(function(*args)),
    "uvloop": lambda function, *args: uvloop.run(function(*args)),
    "trio": trio.run,
}
"""By name, what runs an async function with arguments in a loop of its own."""

Runner = Callable[..., Any]
AsyncFunction = Callable[..., Awaitable[Any]]
