"""Where the file layer has its operations done."""

from typing import Any

import uring
from uring.sqe import Queueable


async def do(op: Queueable) -> Any:
    """Do an operation, and give its result or raise its error."""
    with uring.Ring(8) as ring:
        return ring.run([op])[0].result()
