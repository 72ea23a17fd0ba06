"""
A ring: queue -> submit -> wait -> copy out.

Theory of operation
-------------------

`queue()` pins what the kernel will touch, encodes 64 bytes, and appends one record to a list: no
call into C, no lock. `submit()` enters the records in the in-flight table, has the shim copy all of
them into the submission queue in one call, and enters the kernel. `copy_cqes()` has the shim take
completions out of the queue in one call and retires what they end. Between the two the table holds
every operation with its memory; nothing else does. `run()` has a loop in C do all of it for a whole
batch, which is in the table as one.

Any thread may call anything. So may a signal handler, which CPython runs after any call that Python
makes, and a finalizer, which before 3.12 it may run where an object is made; and from a handler a
KeyboardInterrupt may leave. What keeps that sound:

- Every step is made whole by stores that stand together, right after a look that what they were
  made of still stands, with no call and nothing made in between; and it can be repeated.
  * The list of pending records carries, as item 0, how many were placed before them. Trimming it
    is one slice assignment. The shim places records only if as many were placed as the caller
    believes, so what two callers hand over at once is placed once.
  * The shim keeps completions that it took until we say that we have them. A call whose result was
    lost is made again.
- One lock guards the table and the lists in all that is not such a step by itself. It is never held
  in a system call that waits. It is re-entrant, for the handlers. It is taken with `with` alone:
  between `acquire()` and `try` a signal would leave it held.
- Closing seals the submission side in the shim, cancels, wakes who waits, and reaps until the table
  is empty. Only then is memory given back.

CPython runs handlers, and raises what PyThreadState_SetAsyncExc() was given, in the same places and
in no others: where a function begins, where a loop goes round, and where a call into C returns,
before its result is stored. It does not where a function in Python returns, nor between stores.
Each of these places is struck by tests. A finalizer in Python can be cut off before its first line,
so what must not be lost is let go of in C; a ring that is dropped open, and not closed, may be lost
like that, and so keeps its descriptor.

Less of this holds against a tracer in Python (sys.settrace(), as a debugger has): it runs code, and
lets threads run, between any two lines. An exception that it raises there can leave the lock taken
(in `with` itself) for other threads, a user_data reserved, a completion lost with the call that
should have returned it, and a run uncancelled until the ring is closed. Memory in flight stays
pinned even then, and no completion comes twice.

What it costs, per operation in batches of 256 NOPs: 130 ns to queue, 35 to enter in the table and
hand over, 66 in the kernel, 30 to copy out and retire (CPython 3.11 on the machine of
benchmarks/README.md). One at a time, submit_and_wait() and copy_cqe() have a way of their own:
1.3 times the cost of three methods that do the same and check nothing.
"""

import contextlib
import errno
import sys
import threading
import time
import warnings
from typing import Final, NoReturn, Self

from uring import _teardown
from uring._checks import check_range
from uring._core import CLOSED, FORKED, NO_FD, lives
from uring._ffi import ffi, lib
from uring._inflight import InFlight
from uring._providing import ProvideSide
from uring._registering import RegisterSide
from uring._ringfd import RingFdSide
from uring._setup import RingParams, setup
from uring._streaming import StreamSide
from uring._views import CompletionQueueView, SubmissionQueueView
from uring._waiting import WaitingSide
from uring.completions import EMPTY, close_all, uncollected_descriptors
from uring.errors import EnterError, RingClosedError
from uring.flags import Features, Opcode, RegisterOpcode, SetupFlags
from uring.operations import AsyncCancelAny
from uring.registry._base import Held
from uring.registry.cancel import CANCEL_ANSWERS, sync_cancel_any
from uring.registry.waits import Timeout
from uring.sqe import SQE, UINT32_MAX

NO_SETUP_FLAGS: Final = SetupFlags(0)
_uring_submit_one: Final = lib.uring_submit_one
_WAIT_SLICE_NS: Final = 50_000_000  # how often a closing ring cancels what is still there, again


def _packed(number: int) -> bytes:
    return number.to_bytes(8, sys.byteorder)


class Ring(StreamSide, WaitingSide, RegisterSide, ProvideSide, RingFdSide):
    """
    An io_uring: a submission queue and a completion queue shared with the kernel.

    Use it as a context manager, or call `close()`. A ring may be used from any thread; one may wait
    while others queue and submit. It belongs to the process that made it. What a thread leaves in
    flight when it ends completes with ECANCELED when it next could go on: the kernel's rule.

    Args:
        entries: the size of the submission queue, a power of two from 1 to 32768; with CLAMP also
            more, which is cut down to that.
        flags: `SetupFlags`, which says what each does.
        cq_entries: the size of the completion queue, from `entries` to 65536, rounded up by the
            kernel to a power of two; the default is twice `entries`. More completions than that
            wait in the kernel; none is lost. With CQE_MIXED it counts places of 16 bytes.
        sq_thread_cpu: the processor that the SQPOLL thread is bound to.
        sq_thread_idle_ms: after how many milliseconds without work the SQPOLL thread sleeps; the
            kernel's default is 1000.
        attach_wq: a ring whose worker threads (and SQPOLL thread) this one shares.

    Lifetime: dropped open, it warns with ResourceWarning, cancels what is in flight, and keeps for
        ever what it cannot take back.

    Raises:
        ValueError, TypeError: arguments that cannot work -> the message names them.
        SetupError: the kernel refuses -> the message says why here, and what to do.
        UnsupportedError: the kernel, or this version of `uring`, lacks what was asked for.

    Kernel: 5.4. liburing: io_uring_queue_init_params(3).
    """

    def __init__(
        self,
        entries: int = 256,
        *,
        flags: SetupFlags = NO_SETUP_FLAGS,
        cq_entries: int | None = None,
        sq_thread_cpu: int | None = None,
        sq_thread_idle_ms: int | None = None,
        attach_wq: "Ring | int | None" = None,
    ) -> None:
        if hasattr(self, "_shim"):
            raise TypeError("a Ring is set up once: make another one")
        if isinstance(attach_wq, Ring):
            attach_wq = attach_wq.fileno()
        shim, inbox, params, end = setup(
            entries,
            flags,
            cq_entries=cq_entries,
            sq_thread_cpu=sq_thread_cpu,
            sq_thread_idle_ms=sq_thread_idle_ms,
            wq_fd=attach_wq,
        )
        super().__init__(shim, inbox, params)
        self._closing_lock = threading.RLock()
        self._held.refuge = _teardown.watch(self)
        self._fd = int(shim.fd) if shim.fd >= 0 else NO_FD
        ffi.gc(end, None)  # from here on __del__ does it, which waits for what is in flight

    # ---- looking at it ----

    @property
    def fd(self) -> int:
        """The ring's descriptor; -1 once the ring is closed, and with REGISTERED_FD_ONLY always."""
        return max(self._fd, -1)

    @property
    def params(self) -> RingParams:
        """What the kernel granted at setup; the sizes are those of the last `resize()`."""
        return self._params

    @property
    def flags(self) -> SetupFlags:
        """The setup flags that are in force."""
        return self._params.flags

    @property
    def features(self) -> Features:
        """What the kernel says that it can do."""
        return self._params.features

    @property
    def sq(self) -> SubmissionQueueView:
        """A read-only view of the submission queue."""
        return SubmissionQueueView(self._counters, self._pending_count)

    @property
    def cq(self) -> CompletionQueueView:
        """A read-only view of the completion queue."""
        return CompletionQueueView(self._counters)

    @property
    def in_flight(self) -> int:
        """
        How many operations were queued whose terminal completion was not copied out.

        Of a batch that is being run, those count that were submitted and have not ended.
        """
        self._settle_runs()
        if self._refusal is not None:
            return len(self._in_flight)
        with self._lock:
            self._trim()
            if self._in_flight.ended is not None:  # who copied out was cut off
                self._in_flight.retire()
            waiting = [record for record in self._records() if record not in self._in_flight]
            return len(self._in_flight) + len(waiting)

    def __repr__(self) -> str:
        if self._refusal is not None:
            return f"<Ring closed: {self._refusal}>"
        params = self._params
        return (
            f"<Ring fd={self.fd} entries={params.sq_entries}/{params.cq_entries}"
            f" flags={params.flags!r} in_flight={self.in_flight}>"
        )

    # ---- submitting and waiting ----

    def submit_and_wait(
        self, wait_nr: int = 1, *, timeout: Timeout = None, min_timeout: float | None = None
    ) -> int:
        """
        Submit all that is queued, and wait until `wait_nr` completions are there.

        The wait runs without the GIL. Signal handlers run, and it goes on; Ctrl-C ends it, and the
        ring stays usable. Without completions to come it lasts for ever.

        Args:
            wait_nr: how many completions must be ready, those that were before included.
            timeout: in seconds; None waits without end. When the time is over it returns, too.
            min_timeout: as for `copy_cqes()`; so is an item of a `WaitRegion` as `timeout`.

        Returns:
            How many operations were submitted.

        Raises:
            RingClosedError: the ring is closed, or was closed by another thread during the wait.
            EnterError: as for `submit()`.

        Kernel: 5.4; `min_timeout` 6.12. liburing: io_uring_submit_and_wait_min_timeout(3).
        """
        if self._is_guarded:
            self._check_use()
        if type(wait_nr) is not int or wait_nr >> 32:
            check_range("wait_nr", wait_nr, 0, UINT32_MAX)
        # The shortest way: one operation is pending, nothing is in flight, and nobody else is
        # handing over; it is in flight from the two stores on, as after _begin_handover().
        pending, in_flight = self._pending, self._in_flight
        if (
            len(pending) == 2  # a call: looked at again below
            and wait_nr == 1
            and timeout is None
            and min_timeout is None
            and self._is_plain
            and self._kept is EMPTY
        ):
            start, record = pending[0], pending[-1]
            after = start + 1 & UINT32_MAX
            # No call and nothing made between this look and the two stores.
            if (
                in_flight.single is None
                and in_flight.is_quiet
                and in_flight.recent is None
                and not self._handovers
                and record is not start
                and pending[1] is record  # else one was queued meanwhile
            ):
                self._handovers = 1
                in_flight.single = record
                try:
                    result = _uring_submit_one(self._shim, start, record[1], record[0])
                except BaseException:
                    self._abort_handover()
                    raise
                if result & UINT32_MAX == 1 and pending[0] == start:
                    # No call and nothing made between the look and the end.
                    del pending[1]
                    pending[0] = after
                    self._handovers -= 1
                    if result == 1:  # taken, and not ready
                        self._wait(1, -1)
                    return 1
                submitted = self._hand_over(start, (_packed(record[0]), [record]), result)
                if submitted >> 32 < 1:
                    self._wait(1, -1)
                return submitted & UINT32_MAX
        return self._submit_and_wait(wait_nr, self._end(timeout, min_timeout))

    # ---- closing ----

    def close(self) -> None:
        """
        Close the ring: cancel what is in flight, wait for it, and give everything back.

        A barrier: when it returns, the kernel no longer touches any memory. What was queued and not
        submitted is dropped; descriptors that operations made and nobody copied out are closed;
        threads that wait get RingClosedError. May be called any number of times.

        What the kernel does not give back in 30 s is kept for ever, with a RuntimeWarning.

        Raises:
            WrongThreadError: the ring has SINGLE_ISSUER and its owner is alive -> close it there.

        Kernel: 5.4. liburing: io_uring_queue_exit(3).
        """
        if self._fd == -1:
            return
        with self._closing_lock:
            if self._fd == -1:
                return
            if self._owner is not None and self._owner_lives():
                self._check_owner(self._owner)
            self._finish(_teardown.CLOSE_SECONDS)

    def __reduce__(self) -> NoReturn:
        """Refuse: two objects for one ring would each think that they own it."""
        raise TypeError("a Ring cannot be copied or pickled: make another one")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) == -1:
            return
        try:
            self._abandon("was dropped without close()")
        except BaseException:  # cut off: what is in flight must not go with the ring
            if self._fd != -1:
                self._held.refuge[0] = self  # makes nothing, for which there may be no memory
            raise

    def _abandon(self, why: str) -> None:
        """End a ring that nobody closed; see _teardown."""
        if self._fd == -1:
            return
        try:
            if self._refusal is None:  # else close() was called, and an exception cut it off
                warnings.warn(f"{self!r} {why}", ResourceWarning, source=self, stacklevel=3)
        finally:  # also when warnings are errors
            self._finish(_teardown.DROP_SECONDS, f"the ring {why}, and is closed")

    def _die_in_child(self) -> None:
        """Forget everything: the ring and the memory in flight are the parent's."""
        self._refuse(FORKED)
        self._lock = threading.RLock()  # whoever held them is not here
        self._closing_lock = threading.RLock()
        lib.uring_exit(self._shim)
        self._fd = -1
        self._in_flight = InFlight()
        self._held = Held()
        self._pending[:] = [0]

    def _finish(self, seconds: float, why: str = "the ring is closed") -> None:
        """
        Close, whoever calls: in steps that can each be cut off by an exception and done again.

        The kernel lets only the owner of a SINGLE_ISSUER ring enter it or cancel in it, and the end
        of that thread does not end its operations: from elsewhere there is no more to do than to
        reap what is there already.
        """
        self._refuse(why)
        is_mine = self._owner is None or self._owner == threading.get_native_id()
        seconds = seconds if is_mine else 0.0
        sealed = lib.uring_seal(self._shim)
        if sealed == -errno.EOWNERDEAD:
            self._die_in_child()
        elif sealed == 0:  # else it is unmapped already, and this call was cut off after that
            with contextlib.suppress(RingClosedError):  # a signal handler was faster
                self._quiesce(time.monotonic() + seconds, can_enter=is_mine)
            if lib.uring_waiters(self._shim):  # it would wait for them
                _teardown.keep_for_ever((self._shim, self._inbox, self._region_pins))
            else:
                lib.uring_exit(self._shim)
        for block in list(self._held.groups.values()):
            lib.uring_buffers_close(block.shim)
        left = len(self._in_flight)
        if left:
            _teardown.keep_for_ever((self._in_flight, self._held))
        self._region_pins = ()
        self._fd = -1  # from here on nobody ends it again
        _teardown.forget(self)
        self._held = Held()
        if left:
            warnings.warn(
                f"{left} operations of a ring could not be taken back from the"
                f" kernel within {seconds} s; their memory is kept until the process ends",
                RuntimeWarning,
                stacklevel=3,
            )

    def _owner_lives(self) -> bool:
        return self._owner is not None and lives(self._owner, self._owner_object())

    def _quiesce(self, deadline: float, *, can_enter: bool) -> None:
        """Drop what was not submitted, wake who waits, reap until nothing is in flight."""
        with self._lock:
            self._trim()
            for record in self._records():
                self._in_flight.discard(record)
            self._pending[:] = [CLOSED]
        while True:
            with contextlib.suppress(EnterError):  # what is left in flight tells
                self._reap(can_enter=can_enter)
            self._settle_runs()
            is_waited = can_enter and lib.uring_waiters(self._shim) > 0
            is_done = not self._in_flight and not is_waited
            if is_done or not can_enter or time.monotonic() >= deadline:
                return
            if lib.uring_sealed_submit(self._shim, self._placed(), b"", b"", 0) < 0:
                self._discard_published()
            self._cancel_all()
            if is_waited:
                self._post_nops()
                time.sleep(0.001)  # they need the GIL to leave
                continue
            end_ns = time.monotonic_ns() + _WAIT_SLICE_NS
            result = lib.uring_sealed_wait(self._shim, self._had, 1, end_ns)
            if result not in {0, -errno.EINTR, -errno.EAGAIN, -errno.ETIME}:
                time.sleep(0.001)  # the kernel refuses to wait: completions may come all the same

    def _post_nops(self) -> None:
        """Post completions, so that threads in a wait wake and see that the ring is closing."""
        # As many as the CQ holds: a full one wakes everybody, whatever number they wait for.
        count = min(self._params.sq_entries, 64)
        nops = bytes([Opcode.NOP]).ljust(64, b"\0") * count
        numbers = _packed(self._unused_number()) * count
        for _ in range(0, self._params.cq_entries, count):
            lib.uring_sealed_submit(self._shim, self._placed(), nops, numbers, count)
            if not lib.uring_waiters(self._shim):
                return

    def _reap(self, *, can_enter: bool) -> None:
        """Consume all completions, and close the descriptors that nobody has collected."""
        while True:
            close_all(self._unread)
            kept = self._kept
            if kept is EMPTY:
                if not (can_enter or self._posted()) or not self._fetch(None):
                    return
                continue
            unread = [None, *uncollected_descriptors(kept)]
            if self._kept is kept:  # no call from here to the second store
                self._unread = unread
                self._kept = EMPTY

    def _discard_published(self) -> None:
        """
        Take out the SQEs that the kernel refuses to take: a disabled ring, a seccomp filter.

        They are published, and the next enter that is not refused would still take them. So each
        becomes a NOP first, of a number that nobody has; what is found then, is not found again.
        An SQPOLL thread looks by itself: there they stay. So do those of runs.
        """
        if self._is_sqpoll:
            return
        nop = SQE(Opcode.NOP, user_data=self._unused_number()).encode()
        with self._lock:
            counters = self._counters()
            place = int(counters.sq_head)
            while place != counters.sq_tail:
                number = self._placed_number(place)
                if number in self._in_flight.numbers():
                    self._replace_placed(place, nop)
                    self._in_flight.discard_number(number)
                place = (place + 1) & UINT32_MAX

    def _cancel_all(self) -> None:
        """Ask the kernel to cancel all that is in flight; whether it did, the reaping tells."""
        request = sync_cancel_any()
        result = lib.uring_register(self._shim, RegisterOpcode.REGISTER_SYNC_CANCEL, request, 1)
        if result >= 0 or result in CANCEL_ANSWERS:
            if self._is_sqpoll:  # some of what it has in workers its own thread alone can find
                sqe = AsyncCancelAny().sqe().encode()
                own = _packed(self._unused_number())
                lib.uring_sealed_submit(self._shim, self._placed(), sqe, own, 1)
            return
        # Before 6.0, or where registering is forbidden: one ASYNC_CANCEL for each.
        runs = list(self._in_flight.runs.values())
        numbers = [
            *self._in_flight.numbers(),
            *(n for run in runs for n in run.numbers_of(run.unended())),
        ]
        chunk = self._params.sq_entries
        for start in range(0, len(numbers), chunk):
            targets = numbers[start : start + chunk]
            sqes = b"".join([SQE(Opcode.ASYNC_CANCEL, addr=target).encode() for target in targets])
            own = _packed(self._unused_number()) * len(targets)
            lib.uring_sealed_submit(self._shim, self._placed(), sqes, own, len(targets))

    def _unused_number(self) -> int:
        """A user_data whose completions end nothing that is in flight."""
        used = set(self._in_flight.numbers())
        number = self._draw(1)
        while number in used:
            number = self._draw(1)
        return number
