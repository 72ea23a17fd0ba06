"""
The operations, a file per family.

    files  paths  sockets          what is read and written
    polling  timeouts  futexes     what is waited for
    processes  commands            children; what drivers have
    control  resources             rings themselves; their tables of files and buffers

`_base` holds the mechanism that they share, `_targets` what names another operation.
"""

from uring.operations._base import Operation
from uring.operations.commands import UringCmd, UringCmd128, UringCmdMultishot
from uring.operations.control import (
    AsyncCancel,
    AsyncCancelAny,
    AsyncCancelFd,
    AsyncCancelOp,
    MsgRing,
    MsgRingFd,
    Nop,
    Nop128,
)
from uring.operations.files import Close, Fsync, Read, Readv, Write, Writev
from uring.operations.futexes import FutexFlags, FutexWait, FutexWaiter, FutexWaitv, FutexWake
from uring.operations.paths import Openat
from uring.operations.polling import (
    EpollCtl,
    EpollOp,
    EpollWait,
    PollAdd,
    PollMultishot,
    PollRemove,
    PollUpdate,
)
from uring.operations.processes import Waitid, WaitidResult
from uring.operations.resources import (
    FilesAlloc,
    FilesUpdate,
    FixedFdInstall,
    ProvideBuffers,
    RemoveBuffers,
)
from uring.operations.sockets import Accept, Connect, Recv, Send, Shutdown, Socket
from uring.operations.timeouts import (
    LinkTimeout,
    LinkTimeoutUpdate,
    Timeout,
    TimeoutMultishot,
    TimeoutRemove,
    TimeoutUpdate,
)

__all__ = [
    "Accept",
    "AsyncCancel",
    "AsyncCancelAny",
    "AsyncCancelFd",
    "AsyncCancelOp",
    "Close",
    "Connect",
    "EpollCtl",
    "EpollOp",
    "EpollWait",
    "FilesAlloc",
    "FilesUpdate",
    "FixedFdInstall",
    "Fsync",
    "FutexFlags",
    "FutexWait",
    "FutexWaiter",
    "FutexWaitv",
    "FutexWake",
    "LinkTimeout",
    "LinkTimeoutUpdate",
    "MsgRing",
    "MsgRingFd",
    "Nop",
    "Nop128",
    "Openat",
    "Operation",
    "PollAdd",
    "PollMultishot",
    "PollRemove",
    "PollUpdate",
    "ProvideBuffers",
    "Read",
    "Readv",
    "Recv",
    "RemoveBuffers",
    "Send",
    "Shutdown",
    "Socket",
    "Timeout",
    "TimeoutMultishot",
    "TimeoutRemove",
    "TimeoutUpdate",
    "UringCmd",
    "UringCmd128",
    "UringCmdMultishot",
    "Waitid",
    "WaitidResult",
    "Write",
    "Writev",
]
