"""
What a ring can be told besides: how waits are made, and how large its queues are.

Other sizes come about in one step in C, which keeps every other thread out meanwhile. Python's own
idea of the sizes follows, and until it has, it is the smaller one of both: what does not fit
afterwards is refused from before the step on, and room is always counted with the sizes that C has.
The inbox has room for the largest queue there is, so it never moves.
"""

import contextlib
import errno
import mmap
from typing import TYPE_CHECKING, Final, NoReturn

import attrs

from uring import _memory
from uring._checks import check_range
from uring._completion import deadline_ns
from uring._ffi import ffi, lib
from uring._running import RunSide
from uring._setup import check_cq_entries, check_entries
from uring.completions import EMPTY
from uring.errors import RegisterError, RingClosedError, UnsupportedError
from uring.flags import CQRingFlags, EnterFlags, Features, RegisterOpcode, SetupFlags
from uring.registry.waits import WAIT_SIZE, WaitEnd, WaitRegion
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from uring._uring import CData

_COUNT_MAX: Final = 2**16  # of registered waits: 4 MiB, more than anybody needs


class WaitingSide(RunSide):
    """How a ring waits, and for how much it has room."""

    # Of the class until it changes: with more than 30 attributes of its own an object of CPython
    # 3.11 loses the fast way to all of them, which costs queue() a tenth.
    _region_pins: "tuple[CData, ...]" = ()
    """The memory of registered waits."""

    # ---- waits ----

    def _submit_and_wait(self, wait_nr: int, end: int | WaitEnd) -> int:
        submitted = self._submit()
        if submitted >> 32 < wait_nr or self._kept is not EMPTY:
            self._wait_until(wait_nr, end)
        return submitted & UINT32_MAX

    @property
    def iowait_enabled(self) -> bool:
        """
        Whether a thread that waits while operations are in flight counts as waiting for a disk.

        So it is from the start. It keeps the processor from sleeping deeply, which disks gain from;
        servers waste power, and seem busy to those who watch iowait. May be changed at any time,
        for waits that begin from then on.

        Raises:
            UnsupportedError: set to False where the kernel lacks FEAT_NO_IOWAIT.

        Kernel: 6.15. liburing: io_uring_set_iowait(3).
        """
        return not self._shim.wait_flags & EnterFlags.NO_IOWAIT

    @iowait_enabled.setter
    def iowait_enabled(self, enabled: bool) -> None:
        self._check_use()
        enabled = _checked_bool("iowait_enabled", enabled)
        if not enabled and not self._params.features & Features.NO_IOWAIT:
            raise UnsupportedError(
                errno.EOPNOTSUPP, "this kernel lacks IORING_FEAT_NO_IOWAIT of Linux 6.15"
            )
        flags = 0 if enabled else int(EnterFlags.NO_IOWAIT)
        self._check_enter(lib.uring_set_wait_flags(self._shim, flags))

    @property
    def eventfd_enabled(self) -> bool:
        """
        Whether completions signal the ring's eventfd, if one is registered.

        So it is from the start. May be changed at any time, also before one is registered; what
        completes at that very moment may go either way.

        Raises:
            UnsupportedError: set to False where the kernel has no such switch.

        Kernel: 5.8. liburing: io_uring_cq_eventfd_toggle(3).
        """
        return not self._counters().cq_flags & CQRingFlags.EVENTFD_DISABLED

    @eventfd_enabled.setter
    def eventfd_enabled(self, enabled: bool) -> None:
        self._check_use()
        enabled = _checked_bool("eventfd_enabled", enabled)
        flags = 0 if enabled else int(CQRingFlags.EVENTFD_DISABLED)
        result = lib.uring_set_cq_flags(self._shim, flags)
        if result == -errno.EOPNOTSUPP:
            raise UnsupportedError(errno.EOPNOTSUPP, "switching an eventfd off needs Linux 5.8")
        self._check_enter(result)

    def register_wait_region(
        self, count: int = 63, *, memory: "Buffer | None" = None
    ) -> WaitRegion:
        """
        Register memory for the arguments of waits; its items can be given instead of timeouts.

        A wait then copies nothing in. Only for a ring with `SetupFlags.R_DISABLED` that was not
        enabled yet, once, and not with IOPOLL.

        Args:
            count: how many there are at least; it is rounded up to fill pages (63 in 4096 bytes).
            memory: for them, whole pages, as an `mmap.mmap` has; it is overwritten with zeroes, and
                `count` does not matter. None: the kernel's own.

        Lifetime: `memory` is held until the ring is closed.

        Raises:
            RegisterError: EINVAL, the ring is enabled, or the kernel lacks the call; EBUSY, it has
                been called before.
            ValueError, TypeError: memory that is not writable, or not whole pages.

        Kernel: 6.13. liburing: io_uring_register_region(3).
        """
        self._check_use()
        check_range("count", count, 1, _COUNT_MAX)
        if self._params.flags & SetupFlags.IOPOLL:
            raise UnsupportedError(errno.EOPNOTSUPP, "an IOPOLL ring does not wait: it polls")
        # One more than there are: up to 7.0 the kernel reads the first one instead of the last
        # (array_index_nospec() in io_get_ext_arg_reg() has a bound that is one too low).
        size = -(-(count + 1) * WAIT_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE
        pin = None
        if memory is not None:
            pin, address, size = _memory.writable(memory)
            if (address | size) % mmap.PAGESIZE or size == 0:
                raise ValueError(f"memory must be whole pages of {mmap.PAGESIZE} bytes: an mmap")
        given = ffi.NULL if pin is None else pin
        self._region_pins += (given,)  # before the kernel has it, which never gives it back
        result = lib.uring_register_region(self._shim, given, size)
        if result < 0:
            self._region_pins = tuple(pin for pin in self._region_pins if pin is not given)
            detail = RegisterOpcode.REGISTER_MEM_REGION.name
            if result == -errno.EINVAL:
                detail += " works only on an R_DISABLED ring before enable(), from Linux 6.13 on"
            self._fail("io_uring_register", result, detail=detail)
        return WaitRegion(self._shim, size // WAIT_SIZE - 1, self._store_wait)

    def _store_wait(self, index: int, timeout_ns: int, min_usec: int) -> None:
        self._check_open()
        self._check_enter(lib.uring_region_set(self._shim, index, timeout_ns, min_usec))

    def wait_sq_room(self, *, timeout: float | None = None) -> int:
        """
        Wait until the kernel's thread has taken SQEs, so that there is room in the queue.

        For SQPOLL rings: elsewhere `submit()` makes room itself. It wakes the thread when it
        sleeps, runs without the GIL, and signal handlers run meanwhile.

        Args:
            timeout: in seconds; None waits without end. The kernel knows no end of this wait: with
                one the ring looks every millisecond.

        Returns:
            How many SQEs there is room for, those included that are queued and not yet submitted;
            0 when the time is over.

        Raises:
            ValueError: the ring has no SQPOLL.
            RingClosedError: the ring is closed, or was closed by another thread during the wait.

        Kernel: 5.10. liburing: io_uring_sqring_wait(3).
        """
        self._check_use()
        if not self._is_sqpoll:
            raise ValueError("only an SQPOLL ring makes room by itself: submit() instead")
        if self._is_disabled:  # its thread takes nothing
            self._fail("io_uring_enter", -errno.EBADFD)
        end_ns = deadline_ns(timeout)
        while True:
            result = lib.uring_wait_sq(self._shim, end_ns)
            if self._refusal is not None:
                self._check_open()
            if result > 0:
                return result
            if result == -errno.ETIME:
                return 0
            if result not in {-errno.EINTR, -errno.EAGAIN}:
                self._fail("io_uring_enter", result)

    # ---- sizes ----

    def resize(self, entries: int, *, cq_entries: int | None = None) -> None:
        """
        Give the queues other sizes; what is queued, in flight or not copied out yet stays.

        For rings with `SetupFlags.DEFER_TASKRUN`, from their owner. Other threads may look at the
        ring meanwhile, but not poll its descriptor: kernels before 7.0, or an early 6.18, do not
        guard that.

        Args:
            entries: as for `Ring`.
            cq_entries: the same; None is twice `entries`. The least is a cache line's worth: 4.

        Raises:
            ValueError, TypeError: sizes that cannot be.
            UnsupportedError: the ring has no DEFER_TASKRUN, and no kernel resizes others; or it has
                NO_MMAP or CQE_MIXED, which is not done here.
            RegisterError: EOVERFLOW, what is queued or not copied out does not fit -> submit, copy
                out, resize again; EBUSY, a batch is being run, or somebody waits; EINVAL, the
                kernel lacks the call. The ring is as it was.
            RegisterError: ENOTRECOVERABLE, there was no memory to map the new queues. The ring is
                closed, and what was in flight is kept until the process ends.

        Kernel: 6.13. liburing: io_uring_resize_rings(3).
        """
        self._check_use()
        check_entries(entries)
        cq_entries = 2 * entries if cq_entries is None else check_cq_entries(cq_entries, entries)
        cq_entries = 1 << (cq_entries - 1).bit_length()  # as the kernel would
        if not self._params.flags & SetupFlags.DEFER_TASKRUN:
            raise UnsupportedError(
                errno.EOPNOTSUPP, "only rings with SetupFlags.DEFER_TASKRUN can be resized"
            )
        if self._params.flags & (SetupFlags.NO_MMAP | SetupFlags.CQE_MIXED):
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                "rings with SetupFlags.NO_MMAP or CQE_MIXED keep their size: make a new ring",
            )
        with self._lock:
            self._settle_runs()
            if self._in_flight.runs:
                raise RegisterError(errno.EBUSY, "a batch is being run: resize before or after it")
            counters = self._trim()
            published = (counters.sq_tail - counters.sq_head) & UINT32_MAX
            queued = int(published) + len(self._pending) - 1
            if queued > entries:
                raise RegisterError(
                    errno.EOVERFLOW,
                    f"{queued} operations are queued, which {entries} entries cannot hold:"
                    " submit() first",
                )
            self._resize(entries, cq_entries)

    def _resize(self, entries: int, cq_entries: int) -> None:
        params = ffi.new("struct uring_params *")
        params.flags = SetupFlags.CQSIZE
        params.sq_entries, params.cq_entries = entries, cq_entries
        smaller = min(entries, self._params.sq_entries)
        self._params = attrs.evolve(self._params, sq_entries=smaller)
        try:
            result = lib.uring_resize(self._shim, self._had, params)
        finally:
            with contextlib.suppress(RingClosedError):
                self._follow_sizes()
        if result == -errno.ENOTRECOVERABLE:
            self._finish(0.0)  # C has closed the descriptor: keeps what was in flight
            raise RegisterError(
                errno.ENOTRECOVERABLE,
                "there was no memory to map the ring in its new size: it is closed",
            )
        if result < 0:
            self._fail_resize(result, cq_entries)

    def _finish(self, seconds: float, why: str = "the ring is closed") -> None:
        """Close; the ring has it."""
        raise NotImplementedError

    def _follow_sizes(self) -> None:
        """Take the sizes that C has."""
        while True:
            before = self._params
            counters = self._counters()
            params = attrs.evolve(
                before,
                sq_entries=int(counters.sq_entries),
                cq_entries=int(counters.cq_entries),
            )
            if self._params is before:  # no call and nothing made between this and the last store
                self._params = params
                self._cq_limit = params.cq_entries
                self._room = 0  # ask again
                return

    def _fail_resize(self, result: int, cq_entries: int) -> NoReturn:
        if result == -errno.EOVERFLOW:
            raise RegisterError(
                errno.EOVERFLOW,
                f"more completions are ready than {cq_entries} entries hold: copy them out first",
            )
        if result == -errno.EBUSY:
            raise RegisterError(errno.EBUSY, "somebody waits, or runs a batch, on this ring")
        if result == -errno.EOPNOTSUPP:
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                "this kernel does not say where the new queues are: use SetupFlags.NO_SQARRAY",
            )
        detail = RegisterOpcode.REGISTER_RESIZE_RINGS.name
        if result == -errno.EINVAL:
            detail += " needs Linux 6.13"
        self._fail("io_uring_register", result, detail=detail)


def _checked_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value
