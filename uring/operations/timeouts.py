"""Time: waiting for it, limiting others by it."""

import errno
from typing import Final

import attrs

from uring import _memory
from uring.flags import Opcode, TimeoutFlags
from uring.operations._base import Operation, operation
from uring.operations._targets import Targeting
from uring.sqe import UINT32_MAX

__all__ = ["LinkTimeout", "Timeout", "TimeoutRemove"]

_CLOCKS: Final = TimeoutFlags.ABS | TimeoutFlags.BOOTTIME | TimeoutFlags.REALTIME
_LINK_FLAGS: Final = int(_CLOCKS)
_FLAGS: Final = int(_CLOCKS | TimeoutFlags.ETIME_SUCCESS)


def _checked(flags: int, allowed: int) -> int:
    """Refuse flags that make another operation of this one, and would misread its fields."""
    if not isinstance(flags, int):
        raise TypeError(f"timeout_flags must be TimeoutFlags, not {flags!r}")
    if flags & ~allowed:
        raise ValueError(
            f"timeout_flags may be a combination of {TimeoutFlags(allowed)!r},"
            f" not {TimeoutFlags(flags)!r}"
        )
    return flags


class _TimesOut(Operation):
    """A completion with ETIME means that the time is over, which is what was asked for."""

    __slots__ = ()

    _ordinary = frozenset({errno.ETIME, errno.ECANCELED})

    def _result(self, res: int, _memory: object, _flags: int) -> bool:
        return res == -errno.ETIME


@operation
class Timeout(_TimesOut):
    """
    Complete when a time is over, or when enough other operations have completed.

    Args:
        seconds: how long, as a float or int, from 0 to 2**33; with TimeoutFlags.ABS, until when
            on the clock.
        count: complete as well after so many completions of other operations; 0 for time alone.
        timeout_flags: `TimeoutFlags`: ABS, BOOTTIME, REALTIME, ETIME_SUCCESS (which keeps a chain
            going when the time is over).

    Lifetime: the time is copied and held until the completion.
    Completion: res is -ETIME when the time was over, 0 when `count` was reached, -ECANCELED when
        it was removed. None of these is an error; `result()` is whether the time was over.

    Kernel: 5.4; clocks 5.15; ETIME_SUCCESS 5.16. liburing: io_uring_prep_timeout(3).
    """

    opcode = Opcode.TIMEOUT

    seconds: float
    count: int = attrs.field(default=0, kw_only=True)
    timeout_flags: TimeoutFlags = attrs.field(default=TimeoutFlags(0), kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pin, address = _memory.timespec(self.seconds)
        flags = _checked(self.timeout_flags, _FLAGS)
        if not isinstance(self.count, int) or not 0 <= self.count <= UINT32_MAX:  # else cut by C
            raise ValueError(f"count must be an integer in 0..{UINT32_MAX}, not {self.count!r}")
        return self._pack(addr=address, len=1, off=self.count, op_flags=flags), pin


@operation
class LinkTimeout(_TimesOut):
    """
    Limit the operation that it is linked behind: `link(operation, LinkTimeout(seconds))`.

    When the time is over, that operation is cancelled and completes with ECANCELED.

    Args:
        seconds: how long, as a float or int, from 0 to 2**33.
        timeout_flags: `TimeoutFlags`: ABS, BOOTTIME, REALTIME.

    Lifetime: the time is copied and held until the completion.
    Completion: res is -ETIME when it struck, -ECANCELED when the operation was faster (ENOENT on
        some kernels). `result()` is whether it struck. Alone, not linked: EINVAL.

    Kernel: 5.5. liburing: io_uring_prep_link_timeout(3).
    """

    opcode = Opcode.LINK_TIMEOUT
    _ordinary = frozenset({errno.ETIME, errno.ECANCELED, errno.ENOENT})

    seconds: float
    timeout_flags: TimeoutFlags = attrs.field(default=TimeoutFlags(0), kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pin, address = _memory.timespec(self.seconds)
        flags = _checked(self.timeout_flags, _LINK_FLAGS)
        return self._pack(addr=address, len=1, op_flags=flags), pin


@operation
class TimeoutRemove(Targeting):
    """
    End a `Timeout` that is in flight; it completes with ECANCELED.

    Args:
        target: the user_data of the timeout.

    Completion: res is 0; ENOENT when no such timeout is in flight, EBUSY when it is completing.

    Kernel: 5.5. liburing: io_uring_prep_timeout_remove(3).
    """

    opcode = Opcode.TIMEOUT_REMOVE
