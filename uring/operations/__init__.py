"""
The operations, a file per family: files, paths, sockets, polling, timeouts, control.

`_base` holds the mechanism that they share, `_targets` what names another operation.
"""

from uring.operations._base import Operation
from uring.operations.control import AsyncCancel, Nop
from uring.operations.files import Close, Fsync, Read, Readv, Write, Writev
from uring.operations.paths import Openat
from uring.operations.polling import PollAdd, PollRemove
from uring.operations.sockets import Accept, Connect, Recv, Send, Shutdown, Socket
from uring.operations.timeouts import LinkTimeout, Timeout, TimeoutRemove

__all__ = [
    "Accept",
    "AsyncCancel",
    "Close",
    "Connect",
    "Fsync",
    "LinkTimeout",
    "Nop",
    "Openat",
    "Operation",
    "PollAdd",
    "PollRemove",
    "Read",
    "Readv",
    "Recv",
    "Send",
    "Shutdown",
    "Socket",
    "Timeout",
    "TimeoutRemove",
    "Write",
    "Writev",
]
