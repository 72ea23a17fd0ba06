"""The flags that the kernel reads in ``sqe->ioprio``, of operations on sockets."""

from typing import Final

from uring._checks import check_flags
from uring.flags import AcceptFlags, SendRecvFlags

NO_SENDRECV: Final = SendRecvFlags(0)
NO_ACCEPT: Final = AcceptFlags(0)
POLL_FIRST: Final = SendRecvFlags.RECVSEND_POLL_FIRST
ZC_FLAGS: Final = POLL_FIRST | SendRecvFlags.SEND_ZC_REPORT_USAGE
ACCEPT_FLAGS: Final = AcceptFlags.DONTWAIT | AcceptFlags.POLL_FIRST


def checked(
    flags: SendRecvFlags | AcceptFlags, allowed: SendRecvFlags | AcceptFlags = POLL_FIRST
) -> int:
    """Refuse flags that would misread the operation's fields."""
    return check_flags("ioprio_flags", flags, allowed)
