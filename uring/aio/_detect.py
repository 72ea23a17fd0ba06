"""Which event loop the caller runs in."""

import sys

from uring.aio._asyncio import AsyncioLoop
from uring.aio._loop import Loop


def running_loop() -> Loop:
    """
    Find the event loop that the caller runs in.

    Raises:
        RuntimeError: there is none.
    """
    if "trio" in sys.modules:
        from uring.aio import _trio  # noqa: PLC0415 - only where it is there

        if _trio.is_running():
            return _trio.TrioLoop()
    try:
        return AsyncioLoop()
    except RuntimeError:
        raise RuntimeError(
            "no event loop is running here: call this in a coroutine, under asyncio, uvloop or trio"
        ) from None
