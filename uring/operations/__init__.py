"""
The operations, a file per family: files, paths, sockets, polling, timeouts, control.

`_base` holds the mechanism that they share, `_targets` what names another operation.
"""

from uring.operations._base import Operation
from uring.operations.control import AsyncCancel, Nop
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
from uring.operations.polling import PollAdd, PollRemove
from uring.operations.sockets import Accept, Connect, Recv, Send, Shutdown, Socket
from uring.operations.space import Fadvise, Fallocate, Ftruncate, Madvise
from uring.operations.timeouts import LinkTimeout, Timeout, TimeoutRemove
from uring.operations.xattrs import Fgetxattr, Fsetxattr, Getxattr, Setxattr

__all__ = [
    "Accept",
    "AsyncCancel",
    "Close",
    "Connect",
    "Fadvise",
    "Fallocate",
    "Fgetxattr",
    "Fsetxattr",
    "Fsync",
    "Ftruncate",
    "Getxattr",
    "LinkTimeout",
    "Linkat",
    "Madvise",
    "Mkdirat",
    "Nop",
    "Openat",
    "Openat2",
    "Operation",
    "Pipe",
    "PollAdd",
    "PollRemove",
    "Read",
    "ReadFixed",
    "ReadMultishot",
    "ReadSelect",
    "Readv",
    "ReadvFixed",
    "Recv",
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
    "TimeoutRemove",
    "Unlinkat",
    "Write",
    "WriteFixed",
    "Writev",
    "WritevFixed",
]
