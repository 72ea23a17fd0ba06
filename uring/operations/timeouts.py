"""Time: waiting for it, limiting others by it."""

import errno
from typing import Any, ClassVar, Final

import attrs

from uring import _memory
from uring._checks import check_flags, check_range
from uring.flags import Opcode, TimeoutFlags
from uring.operations._base import Operation, operation
from uring.operations._targets import Targeting
from uring.sqe import UINT32_MAX

__all__ = [
    "LinkTimeout",
    "LinkTimeoutUpdate",
    "Timeout",
    "TimeoutMultishot",
    "TimeoutRemove",
    "TimeoutUpdate",
]

_F: Final = TimeoutFlags
_CLOCKS: Final = _F.ABS | _F.BOOTTIME | _F.REALTIME
_LINK_FLAGS: Final = _CLOCKS | _F.IMMEDIATE_ARG
_FLAGS: Final = _LINK_FLAGS | _F.ETIME_SUCCESS
_MULTISHOT_FLAGS: Final = _FLAGS & ~_F.ABS
_UPDATE_FLAGS: Final = _F.ABS | _F.IMMEDIATE_ARG
_TIME_NS_MAX: Final = 2**33 * 1_000_000_000


def _lent_time(self: Any) -> tuple[object, int]:
    """Pin the time, which is given in one way or the other: (pin, address), or (None, time)."""
    if (self.seconds is None) == (self.time_ns is None):
        raise TypeError(f"{type(self).__name__}() takes either seconds or time_ns")
    if self.time_ns is None:
        time_ns = _memory.nanoseconds(self.seconds)
    else:
        time_ns = check_range("time_ns", self.time_ns, 0, _TIME_NS_MAX)
    if self.timeout_flags & _F.IMMEDIATE_ARG:
        return None, time_ns
    return _memory.timespec(time_ns)


@operation
class _TimesOut(Operation):
    """A completion with ETIME means that the time is over, which is what was asked for."""

    seconds: float | None = None
    time_ns: int | None = attrs.field(default=None, kw_only=True)
    timeout_flags: TimeoutFlags = attrs.field(default=TimeoutFlags(0), kw_only=True)

    _ordinary = frozenset({errno.ETIME, errno.ECANCELED})

    def _encode_time(
        self, allowed: TimeoutFlags, kind: int = 0, *, count: int = 0
    ) -> tuple[bytes, object]:
        flags = check_flags("timeout_flags", self.timeout_flags, allowed) | kind
        pin, address = _lent_time(self)
        check_range("count", count, 0, UINT32_MAX)  # the kernel reads no more of it
        return self._pack(addr=address, len=1, off=count, op_flags=flags), pin

    def _result(self, res: int, _memory: object, _flags: int) -> bool:
        return res == -errno.ETIME


@operation
class Timeout(_TimesOut):
    """
    Complete when a time is over, or when enough other operations have completed.

    Args:
        seconds: how long, as a float or int, from 0 to 2**33; with TimeoutFlags.ABS, until when
            on the clock. Rounded up to whole nanoseconds.
        count: complete as well after so many completions of other operations; 0 for time alone.
        time_ns: the same as `seconds`, in whole nanoseconds, and instead of it; a float has none of
            them left when it counts from 1970.
        timeout_flags: `TimeoutFlags`: ABS, BOOTTIME, REALTIME, ETIME_SUCCESS (which keeps a chain
            going when the time is over), IMMEDIATE_ARG (the time stands in the record itself:
            kernel 7.1; 6.18 answers EINVAL).

    Lifetime: the time is copied and held until the completion.
    Completion: res is -ETIME when the time was over, 0 when `count` was reached, -ECANCELED when
        it was removed. None of these is an error; `result()` is whether the time was over.

    Kernel: 5.4; clocks 5.15; ETIME_SUCCESS 5.16. liburing: io_uring_prep_timeout(3).
    """

    opcode = Opcode.TIMEOUT

    count: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._encode_time(_FLAGS, count=self.count)


@operation
class TimeoutMultishot(_TimesOut):
    """
    Complete each time that an interval is over, until it is removed.

    Each interval starts when the kernel has told of the one before it, so they drift.

    Args:
        seconds: the interval, as a float or int, from 0 to 2**33.
        count: how many times; 0 for without end.
        time_ns: the same as `seconds`, in whole nanoseconds, and instead of it.
        timeout_flags: `TimeoutFlags`: BOOTTIME, REALTIME, ETIME_SUCCESS, IMMEDIATE_ARG (kernel 7.1;
            6.18 answers EINVAL).

    Lifetime: the time is copied and held until the terminal completion.
    Completion: res is -ETIME each time, with MORE but for the last of `count`; -ECANCELED, without
        MORE, when it was removed. None of these is an error; `result()` is whether it was time.
        It ends with -ETIME without MORE as well when the completion queue had overflowed.

    Kernel: 5.4; multishot 6.4. liburing: io_uring_prep_timeout(3).
    """

    opcode = Opcode.TIMEOUT

    count: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._encode_time(_MULTISHOT_FLAGS, _F.MULTISHOT, count=self.count)


@operation
class LinkTimeout(_TimesOut):
    """
    Limit the operation that it is linked behind: `link(operation, LinkTimeout(seconds))`.

    When the time is over, that operation is cancelled and completes with ECANCELED.

    Args:
        seconds: how long, as a float or int, from 0 to 2**33.
        time_ns: the same as `seconds`, in whole nanoseconds, and instead of it.
        timeout_flags: `TimeoutFlags`: ABS, BOOTTIME, REALTIME, IMMEDIATE_ARG (kernel 7.1; 6.18
            answers EINVAL).

    Lifetime: the time is copied and held until the completion.
    Completion: res is -ETIME when it struck, -ECANCELED when the operation was faster (ENOENT on
        some kernels). `result()` is whether it struck. Alone, not linked: EINVAL.

    Kernel: 5.5. liburing: io_uring_prep_link_timeout(3).
    """

    opcode = Opcode.LINK_TIMEOUT
    _ordinary = frozenset({errno.ETIME, errno.ECANCELED, errno.ENOENT})

    def _encode(self) -> tuple[bytes, object]:
        return self._encode_time(_LINK_FLAGS)


@operation
class TimeoutRemove(Targeting):
    """
    End a `Timeout` or `TimeoutMultishot` that is in flight; it completes with ECANCELED.

    Args:
        target: the user_data of the timeout.

    Completion: res is 0; ENOENT when no such timeout is in flight, EBUSY when it is completing.

    Kernel: 5.5. liburing: io_uring_prep_timeout_remove(3).
    """

    opcode = Opcode.TIMEOUT_REMOVE


@operation
class _Updates(Targeting):
    """Another time for a timeout."""

    seconds: float | None = None
    time_ns: int | None = attrs.field(default=None, kw_only=True)
    timeout_flags: TimeoutFlags = attrs.field(default=TimeoutFlags(0), kw_only=True)

    _kind: ClassVar[TimeoutFlags] = _F.UPDATE

    def _encode(self) -> tuple[bytes, object]:
        flags = check_flags("timeout_flags", self.timeout_flags, _UPDATE_FLAGS) | self._kind
        pin, address = _lent_time(self)
        return self._pack(addr=self.target, off=address, op_flags=flags), pin


@operation
class TimeoutUpdate(_Updates):
    """
    Give a `Timeout` or `TimeoutMultishot` in flight another time, counted from now.

    It keeps its clock. Its `count` is gone: a `Timeout` then completes by time alone, and a
    `TimeoutMultishot` goes on without end.

    Args:
        target: the user_data of the timeout.
        seconds: how long from now, as a float or int, from 0 to 2**33; with ABS, until when on the
            clock of the timeout.
        time_ns: the same as `seconds`, in whole nanoseconds, and instead of it.
        timeout_flags: `TimeoutFlags`: ABS, IMMEDIATE_ARG (kernel 7.1; 6.18 answers EINVAL).

    Lifetime: the time is copied and held until the completion.
    Completion: res is 0; ENOENT when no such timeout is in flight, EALREADY when it is completing.

    Kernel: 5.5; updates 5.11. liburing: io_uring_prep_timeout_update(3).
    """

    opcode = Opcode.TIMEOUT_REMOVE


@operation
class LinkTimeoutUpdate(_Updates):
    """
    Give a `LinkTimeout` in flight another time, counted from now. It keeps its clock.

    Args:
        target: the user_data of the `LinkTimeout`.
        seconds: how long from now, as a float or int, from 0 to 2**33; with ABS, until when on the
            clock of the timeout.
        time_ns: the same as `seconds`, in whole nanoseconds, and instead of it.
        timeout_flags: `TimeoutFlags`: ABS, IMMEDIATE_ARG (kernel 7.1; 6.18 answers EINVAL).

    Lifetime: the time is copied and held until the completion.
    Completion: res is 0; ENOENT when no such timeout is in flight, EALREADY when it is striking.

    Kernel: 5.5; of linked ones 5.15. liburing: io_uring_prep_timeout_update(3).
    """

    opcode = Opcode.TIMEOUT_REMOVE
    _kind = _F.UPDATE | _F.LINK_TIMEOUT_UPDATE
