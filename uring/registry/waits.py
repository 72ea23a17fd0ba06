"""
Registered waits: the arguments of waits, in memory that the kernel has already.

An item of the region stands where `Ring.copy_cqes()` and `Ring.submit_and_wait()` take a timeout.
The kernel then reads two times from memory that it shares, and copies nothing.
"""

from typing import TYPE_CHECKING, Final

from uring import _memory
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uring._uring import CData

WAIT_SIZE: Final = 64
"""sizeof(struct io_uring_reg_wait)."""

NEVER_NS: Final = 2**63 - 1
"""The end of a minimum time that a wait does not have."""


class WaitEnd:
    """When one wait ends, on CLOCK_MONOTONIC, besides by what it waits for."""

    __slots__ = ("arg", "end_ns", "min_ns")

    def __init__(self, end_ns: int, min_ns: int, arg: "WaitArg | None") -> None:
        self.end_ns = end_ns
        """When the time is over; -1 for never."""
        self.min_ns = min_ns
        """From when on one completion is enough; NEVER_NS when it is not."""
        self.arg = arg
        """Where the same stands in the kernel's memory, until it has been used."""


class WaitArg:
    """
    One item of a `WaitRegion`: how long a wait lasts, in memory that the kernel shares.

    Before the first `set()` it waits without end.

    Kernel: 6.13. liburing: io_uring_submit_and_wait_reg(3).
    """

    __slots__ = ("_region", "_times", "index")

    def __init__(self, region: "WaitRegion", index: int) -> None:
        self._region = region
        self.index = index
        """Its place in the region."""
        self._times: tuple[float | None, float | None] = (None, None)

    @property
    def timeout(self) -> float | None:
        """After how many seconds the wait ends; None: never."""
        return self._times[0]

    @property
    def min_timeout(self) -> float | None:
        """From when on, in seconds, one completion is enough; None: never."""
        return self._times[1]

    def set(self, *, timeout: float | None = None, min_timeout: float | None = None) -> None:
        """
        Change the times, for waits that begin from now on.

        Args:
            timeout: in seconds; None waits without end.
            min_timeout: in seconds, at most `timeout` and less than 4294; as for
                `Ring.copy_cqes()`. Without a `timeout` the kernel would end the wait with it, so
                it needs one.

        Raises:
            ValueError, TypeError: the times cannot be -> nothing was changed.
            RingClosedError: the ring is closed.
        """
        min_usec, timeout_ns = 0, -1
        if timeout is not None:
            timeout_ns = _memory.nanoseconds(timeout)
        if min_timeout is not None:
            if timeout is None or min_timeout > timeout:
                raise ValueError(f"min_timeout {min_timeout} needs a timeout that is not shorter")
            min_usec = -(-_memory.nanoseconds(min_timeout) // 1000)
            if min_usec > UINT32_MAX:
                raise ValueError(f"min_timeout must be less than 4294 s here, not {min_timeout}")
        self._region._store(self.index, timeout_ns, min_usec)
        self._times = (timeout, min_timeout or None)

    def _is_of(self, shim: "CData") -> bool:
        """Whether it was registered with this ring."""
        return self._region._shim is shim

    def __repr__(self) -> str:
        timeout, min_timeout = self._times
        return f"WaitArg(index={self.index}, timeout={timeout!r}, min_timeout={min_timeout!r})"


Timeout = float | WaitArg | None
"""How long a wait may last: seconds, a registered argument, or without end."""


class WaitRegion:
    """
    Memory for the arguments of waits, registered with one ring; `region[i]` is a `WaitArg`.

    Made by `Ring.register_wait_region()`. The kernel has one for each ring, until that is closed.

    Kernel: 6.13. liburing: io_uring_register_region(3).
    """

    __slots__ = ("_args", "_shim", "_store")

    def __init__(self, shim: "CData", count: int, store: "Callable[[int, int, int], None]") -> None:
        self._shim = shim
        self._store = store
        self._args = [WaitArg(self, index) for index in range(count)]

    def __len__(self) -> int:
        return len(self._args)

    def __getitem__(self, index: int) -> WaitArg:
        return self._args[index]

    def __iter__(self) -> "Iterator[WaitArg]":
        return iter(self._args)

    def __repr__(self) -> str:
        return f"<WaitRegion of {len(self)} waits>"
