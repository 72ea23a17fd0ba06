"""
The operations, a file per family.

files, paths, polling, timeouts, control; of sockets: sockets (making and connecting), transfers,
zerocopy, messages, socket_commands.

`_base` holds the mechanism that they share, `_targets` what names another operation, `_groups` what
takes a buffer from a group, `_socket_flags` the flags that sockets have in common.
"""

from uring.operations._base import Operation
from uring.operations.control import AsyncCancel, Nop
from uring.operations.files import Close, Fsync, Read, Readv, Write, Writev
from uring.operations.messages import Recvmsg, RecvmsgMultishot, RecvmsgSelect, Sendmsg
from uring.operations.paths import Openat
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
    "Fsync",
    "Getsockname",
    "Getsockopt",
    "LinkTimeout",
    "Listen",
    "Nop",
    "Openat",
    "Operation",
    "PollAdd",
    "PollRemove",
    "Read",
    "Readv",
    "Recv",
    "RecvBundle",
    "RecvBundleMultishot",
    "RecvMultishot",
    "RecvSelect",
    "RecvZc",
    "Recvmsg",
    "RecvmsgMultishot",
    "RecvmsgSelect",
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
    "Shutdown",
    "Siocinq",
    "Siocoutq",
    "Socket",
    "Timeout",
    "TimeoutRemove",
    "TxTimestamp",
    "Write",
    "Writev",
]
