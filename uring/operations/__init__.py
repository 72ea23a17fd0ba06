"""
The operations, a file per family: files, paths, sockets, polling, timeouts, control.

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
from uring.operations.files import (
    Close,
    Fsync,
    Read,
    ReadMultishot,
    ReadSelect,
    Readv,
    SyncFileRange,
    Write,
    Writev,
)
from uring.operations.fixed import ReadFixed, ReadvFixed, WriteFixed, WritevFixed
from uring.operations.futexes import FutexFlags, FutexWait, FutexWaiter, FutexWaitv, FutexWake
from uring.operations.paths import (
    Linkat,
    Mkdirat,
    Openat,
    Openat2,
    Renameat,
    Statx,
    Symlinkat,
    Unlinkat,
)
from uring.operations.pipes import Pipe, Splice, Tee
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
from uring.operations.space import Fadvise, Fallocate, Ftruncate, Madvise
from uring.operations.timeouts import (
    LinkTimeout,
    LinkTimeoutUpdate,
    Timeout,
    TimeoutMultishot,
    TimeoutRemove,
    TimeoutUpdate,
)
from uring.operations.xattrs import Fgetxattr, Fsetxattr, Getxattr, Setxattr

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
    "Fadvise",
    "Fallocate",
    "Fgetxattr",
    "FilesAlloc",
    "FilesUpdate",
    "FixedFdInstall",
    "Fsetxattr",
    "Fsync",
    "Ftruncate",
    "FutexFlags",
    "FutexWait",
    "FutexWaiter",
    "FutexWaitv",
    "FutexWake",
    "Getxattr",
    "LinkTimeout",
    "LinkTimeoutUpdate",
    "Linkat",
    "Madvise",
    "Mkdirat",
    "MsgRing",
    "MsgRingFd",
    "Nop",
    "Nop128",
    "Openat",
    "Openat2",
    "Operation",
    "Pipe",
    "PollAdd",
    "PollMultishot",
    "PollRemove",
    "PollUpdate",
    "ProvideBuffers",
    "Read",
    "ReadFixed",
    "ReadMultishot",
    "ReadSelect",
    "Readv",
    "ReadvFixed",
    "Recv",
    "RemoveBuffers",
    "Renameat",
    "Send",
    "Setxattr",
    "Shutdown",
    "Socket",
    "Splice",
    "Statx",
    "Symlinkat",
    "SyncFileRange",
    "Tee",
    "Timeout",
    "TimeoutMultishot",
    "TimeoutRemove",
    "TimeoutUpdate",
    "Unlinkat",
    "UringCmd",
    "UringCmd128",
    "UringCmdMultishot",
    "Waitid",
    "WaitidResult",
    "Write",
    "WriteFixed",
    "Writev",
    "WritevFixed",
]
