"""The flags that the kernel reads in ``sqe->ioprio``, of operations on sockets."""

from typing import Final

from uring.flags import AcceptFlags, SendRecvFlags

NO_SENDRECV: Final = SendRecvFlags(0)
NO_ACCEPT: Final = AcceptFlags(0)
POLL_FIRST: Final = SendRecvFlags.RECVSEND_POLL_FIRST
ZC_FLAGS: Final = POLL_FIRST | SendRecvFlags.SEND_ZC_REPORT_USAGE
ACCEPT_FLAGS: Final = AcceptFlags.DONTWAIT | AcceptFlags.POLL_FIRST


def checked(
    flags: SendRecvFlags | AcceptFlags, allowed: SendRecvFlags | AcceptFlags = POLL_FIRST
) -> int:
    """Refuse flags that make another operation of this one, and would misread its fields."""
    kind = type(allowed)
    if type(flags) not in {kind, int}:
        raise TypeError(f"ioprio_flags must be {kind.__name__}, not {flags!r}")
    if flags & ~allowed:
        raise ValueError(f"ioprio_flags may be {allowed!r}, not {kind(flags)!r}")
    return flags
