"""
The completion side: from CQEs in the ring to completions in the caller's hands.

`_read` is the place up to which we have read, and what was copied out and not handed out yet. The
place is ours; the shim makes it the kernel's before each copy, so a copy whose result was lost is
made again. `_read` changes by one store, right after a look that it is still what the new value was
made of, and no call stands between that and the end: a signal handler, which CPython runs after
calls, and other threads find all of it done or none.
"""

import errno
import time
from typing import TYPE_CHECKING, Final

from uring._core import Core
from uring._ffi import ffi, lib
from uring._inflight import Ended
from uring._memory import nanoseconds
from uring._setup import RingParams, check_range
from uring.completions import CQE, CQE_SIZE, EMPTY, Completions
from uring.flags import CQEFlags, SetupFlags
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_MORE: Final = int(CQEFlags.MORE)


def deadline_ns(timeout: float | None) -> int:
    """The end of a wait on CLOCK_MONOTONIC, as the shim takes it: -1 for none."""
    return -1 if timeout is None else time.monotonic_ns() + nanoseconds(timeout)


class CompletionSide(Core):
    """Waiting and copying out."""

    def __init__(self, shim: "CData", params: RingParams) -> None:
        super().__init__(shim, params)
        self._cqe_size = CQE_SIZE * (2 if params.flags & SetupFlags.CQE32 else 1)
        self._landing = ffi.new("char[]", params.cq_entries * self._cqe_size)
        self._landed = ffi.buffer(self._landing)
        self._cq_limit = params.cq_entries
        self._read: tuple[int, Completions] = (0, EMPTY)

    def cq_ready(self) -> int:
        """
        Return how many completions `copy_cqes()` would give without entering the kernel.

        More may be waiting there: on a full queue, or with DEFER_TASKRUN.
        """
        self._check_open()
        with self._lock:
            head, kept = self._read
            return self._posted(head) + kept._count

    def copy_cqes(
        self, max_nr: int | None = None, *, wait_nr: int = 0, timeout: float | None = None
    ) -> Completions:
        """
        Copy completions out of the ring, and consume them. Submits nothing.

        What is ready is returned at once. Only if nothing is, it waits for `wait_nr`. What it
        returns never changes afterwards, and what was in flight for it is released.

        Args:
            max_nr: at most so many; None takes all.
            wait_nr: how many to wait for when none is ready; 0 does not wait.
            timeout: of the wait, in seconds; None waits without end. When the time is over, what
                there is by then is returned, which may be nothing.

        Raises:
            RingClosedError: the ring is closed, or was closed by another thread during the wait.
        """
        self._check_use()
        if max_nr is not None:
            check_range("max_nr", max_nr, 0, UINT32_MAX)
        check_range("wait_nr", wait_nr, 0, UINT32_MAX)
        end_ns = deadline_ns(timeout)
        may_wait = wait_nr > 0 and max_nr != 0
        while (taken := self._take(max_nr)) is EMPTY and may_wait:
            may_wait = self._wait(wait_nr, end_ns)
        return taken

    def copy_cqe(self, *, timeout: float | None = None) -> CQE:
        """
        Copy one completion out of the ring, and consume it; wait for it if none is ready.

        Submits nothing: what is only queued never completes.

        Args:
            timeout: in seconds; None waits without end.

        Raises:
            TimeoutError: the time is over and none has come; nothing was consumed.
            RingClosedError: the ring is closed, or was closed by another thread during the wait.
        """
        self._check_use()
        end_ns = deadline_ns(timeout)
        may_wait = True
        while (taken := self._take_one()) is None and may_wait:
            may_wait = self._wait(1, end_ns)
        if taken is None:
            raise TimeoutError(errno.ETIMEDOUT, f"no completion came within {timeout} s")
        return taken

    def peek_cqes(self, max_nr: int | None = None) -> Completions:
        """
        Look at completions and leave them in the ring; `cq_advance()` consumes them.

        What was in flight for them stays pinned until then. With DEFER_TASKRUN, IOPOLL or after an
        overflow this enters the kernel, without waiting, so that completions can show up.

        Args:
            max_nr: at most so many; None looks at all.
        """
        self._check_use()
        if max_nr is not None:
            check_range("max_nr", max_nr, 0, UINT32_MAX)
        with self._lock:
            while True:
                read = self._read
                if read[1] is not EMPTY:
                    return read[1][:max_nr]
                completions, _ended = self._look(read[0], max_nr)
                if self._read is read:  # else a handler copied them out meanwhile
                    return completions

    def cq_advance(self, count: int) -> None:
        """
        Consume completions without copying them out, as after `peek_cqes()`.

        Args:
            count: how many, at most `cq_ready()`.

        Raises:
            ValueError: fewer are ready; nothing was consumed.
        """
        self._check_use()
        check_range("count", count, 0, UINT32_MAX)
        with self._lock:
            ready = self.cq_ready()
            if count > ready:
                raise ValueError(f"{ready} completions are ready, not {count}")
            while count > 0:
                taken = self._take(count)
                if taken is EMPTY:  # a signal handler was here meanwhile
                    return
                count -= taken._count

    def _take(self, max_nr: int | None) -> Completions:
        """Copy out and consume: EMPTY when there is nothing."""
        while True:
            read = self._read
            head, kept = read
            if kept is EMPTY:
                if not self._fetch(max_nr):
                    return EMPTY
                continue
            if max_nr is None or max_nr >= kept._count:
                given, after = kept, (head, EMPTY)
            else:
                given, after = kept[:max_nr], (head, kept[max_nr:])
            if self._read is read:  # from here on no call, or Ctrl-C could lose what is given
                self._read = after
                return given

    def _take_one(self) -> CQE | None:
        """Copy one completion out; the object is made before it is consumed."""
        while True:
            read = self._read
            head, kept = read
            if kept is EMPTY:
                if not self._fetch(1):
                    return None
                continue
            cqe = kept[0]
            after = (head, kept[1:] if kept._count > 1 else EMPTY)
            if self._read is read:
                self._read = after
                return cqe

    def _fetch(self, max_nr: int | None) -> bool:
        """Move CQEs from the ring to `_read`; False when there are none."""
        in_flight = self._in_flight
        with self._lock:
            if self._handovers:
                self._trim()  # so that who is about to enter what ends here notices
            if in_flight.ended is not None:
                in_flight.retire()
            read = self._read
            if read[1] is not EMPTY:
                return True
            completions, ended = self._look(read[0], max_nr)
            if ended is None:
                return False
            head = (read[0] + completions._count) & UINT32_MAX
            after = (head, completions)
            if self._read is read:  # no call and nothing made from here to the second store
                in_flight.ended = ended
                self._read = after
                in_flight.retire()
                self._check_enter(lib.uring_cq_seek(self._shim, head))
            return True

    def _look(self, head: int, max_nr: int | None) -> tuple[Completions, Ended | None]:
        """Copy CQEs without consuming them: (completions, what they end). The lock is held."""
        limit = self._cq_limit
        if max_nr is not None and max_nr < limit:
            limit = max_nr
        result = lib.uring_cq_copy(self._shim, head, limit, self._landing)
        if result <= 0:
            self._check_enter(result)
            return EMPTY, None
        size = self._cqe_size
        raw: bytes = self._landed[0 : (result & UINT32_MAX) * size]
        numbers = memoryview(raw).cast("Q").tolist()[:: size // 8]
        completions = Completions(raw, self._in_flight.look_up(numbers), cqe_size=size)
        flags = completions.flags.tolist() if result >> 32 & _MORE else None
        return completions, (head, numbers, flags)

    def _wait(self, wait_nr: int, end_ns: int) -> bool:
        """Wait without the lock: True when the CQEs came, False when the time is over."""
        while True:
            result = lib.uring_wait(self._shim, wait_nr, end_ns)
            if self._refusal is not None:
                self._check_open()
            if result == 0:
                return True
            if result == -errno.ETIME:
                return False
            if result not in {-errno.EINTR, -errno.EAGAIN}:
                self._fail("io_uring_enter", result)

    def _posted(self, head: int) -> int:
        return int((self._counters().cq_tail - head) & UINT32_MAX)
