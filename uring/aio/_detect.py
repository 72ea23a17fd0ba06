"""Which kind of event loop the caller runs in."""

import sys
from typing import TYPE_CHECKING

from uring.aio._asyncio import AsyncioLoop

if TYPE_CHECKING:
    from uring.aio._trio import TrioLoop


def running_kind() -> "type[AsyncioLoop | TrioLoop]":
    """Find the kind of the loop that the caller runs in: trio's if it is that, else asyncio's."""
    if "trio" in sys.modules:
        from uring.aio._trio import TrioLoop  # noqa: PLC0415 - only where it is there

        if TrioLoop.is_running():
            return TrioLoop
    return AsyncioLoop
