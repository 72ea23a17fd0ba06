"""
The operations, a file per family.

files, paths, polling, timeouts, control; of sockets: sockets (making and connecting), transfers,
zerocopy, messages, socket_commands.

`_base` holds the mechanism that they share, `_targets` what names another operation, `_groups` what
takes a buffer from a group, `_socket_flags` the flags that sockets have in common.
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
from uring.operations.messages import Recvmsg, RecvmsgMultishot, RecvmsgSelect, Sendmsg
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
from uring.operations.socket_commands import (
    Getsockname,
    Getsockopt,
    Setsockopt,
    Siocinq,
    Siocoutq,
    TxTimestamp,
)
from uring.operations.sockets import (
    Accept,
    AcceptMultishot,
    Bind,
    Connect,
    Listen,
    Shutdown,
    Socket,
)
from uring.operations.space import Fadvise, Fallocate, Ftruncate, Madvise
from uring.operations.timeouts import LinkTimeout, Timeout, TimeoutRemove
from uring.operations.transfers import (
    Recv,
    RecvBundle,
    RecvBundleMultishot,
    RecvMultishot,
    RecvSelect,
    Send,
    SendBundle,
    SendSelect,
    Sendto,
    SendVectorized,
)
from uring.operations.xattrs import Fgetxattr, Fsetxattr, Getxattr, Setxattr
from uring.operations.zerocopy import (
    RecvZc,
    SendmsgZc,
    SendmsgZcFixed,
    SendZc,
    SendZcFixed,
    SendZcVectorized,
)

__all__ = [
    "Accept",
    "AcceptMultishot",
    "AsyncCancel",
    "Bind",
    "Close",
    "Connect",
    "Fadvise",
    "Fallocate",
    "Fgetxattr",
    "Fsetxattr",
    "Fsync",
    "Ftruncate",
    "Getsockname",
    "Getsockopt",
    "Getxattr",
    "LinkTimeout",
    "Linkat",
    "Listen",
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
    "RecvBundle",
    "RecvBundleMultishot",
    "RecvMultishot",
    "RecvSelect",
    "RecvZc",
    "Recvmsg",
    "RecvmsgMultishot",
    "RecvmsgSelect",
    "Renameat",
    "Send",
    "SendBundle",
    "SendSelect",
    "SendVectorized",
    "SendZc",
    "SendZcFixed",
    "SendZcVectorized",
    "Sendmsg",
    "SendmsgZc",
    "SendmsgZcFixed",
    "Sendto",
    "Setsockopt",
    "Setxattr",
    "Shutdown",
    "Siocinq",
    "Siocoutq",
    "Socket",
    "Splice",
    "Statx",
    "Symlinkat",
    "SyncFileRange",
    "Tee",
    "Timeout",
    "TimeoutRemove",
    "TxTimestamp",
    "Unlinkat",
    "Write",
    "WriteFixed",
    "Writev",
    "WritevFixed",
]
