"""
The completion side: from CQEs in the ring to completions in the caller's hands.

`_had` is how many CQEs we have had from the shim, and `_kept` those of them that were not handed
out yet. The shim takes CQEs out of the queue into its inbox, and keeps them there until we say,
with the next call, that we have them: a call whose result was lost is made again and gives the
same. The two change together, right after a look that they are still what the new values were made
of, and no call stands between that and the end: a signal handler, which CPython runs after calls,
and other threads find all of it done or none.

Two ways lead there. The short one, for the common case that what comes back is exactly what was
submitted last, costs one call into C and no lock (a `with` on one is 115 ns, as much as all of
`queue()`): its stores stand together behind one look at everything that they rest on. The long one
holds the lock and retires through the table. Taking CQEs and moving the head in two calls
would cost 60 ns more; having submit bring the CQEs along was not faster, as they must not be
consumed before `copy_cqes()` is called.
"""

import errno
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

from uring._checks import check_range
from uring._ffi import ffi, lib
from uring._landing import LandingSide
from uring._memory import nanoseconds
from uring._setup import RingParams
from uring.completions import CQE, EMPTY, Completions
from uring.errors import UnsupportedError
from uring.flags import CQEFlags, Features
from uring.registry.waits import NEVER_NS, Timeout, WaitArg, WaitEnd
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_MORE: Final = int(CQEFlags.MORE)
_BUFFER: Final = int(CQEFlags.BUFFER)
_BUF_MORE: Final = int(CQEFlags.BUF_MORE)
_NOT_PLAIN: Final = (_MORE | _BUFFER) << 32
_cqe: Final = struct.Struct("=QiI").unpack_from
_uring_take: Final = lib.uring_take


def deadline_ns(timeout: float | None) -> int:
    """The end of a wait on CLOCK_MONOTONIC, as the shim takes it: -1 for none."""
    return -1 if timeout is None else time.monotonic_ns() + nanoseconds(timeout)


def others(kept: Completions, streamed: frozenset[int]) -> list[int]:
    """The places of completions that are not for streams."""
    return [i for i, number in enumerate(kept.user_data.tolist()) if number not in streamed]


def without(kept: Completions, place: int) -> Completions:
    """All but one."""
    return kept[:place] + kept[place + 1 :] or EMPTY


def parted(kept: Completions, places: list[int]) -> tuple[Completions, Completions]:
    """The completions at these places, and the rest."""
    chosen = set(places)
    left = [place for place in range(kept._count) if place not in chosen]
    return kept._only(places) or EMPTY, kept._only(left) or EMPTY


class CompletionSide(LandingSide):
    """Waiting and copying out."""

    def __init__(self, shim: "CData", inbox: "CData", params: RingParams) -> None:
        super().__init__(shim, inbox, params)
        self._landed = memoryview(ffi.buffer(inbox))
        self._cq_limit = params.cq_entries
        self._had = 0
        self._kept: Completions = EMPTY
        self._streamed: frozenset[int] = frozenset()
        """The numbers whose completions are for their streams alone: see _streaming."""

    def cq_ready(self) -> int:
        """
        Return how many completions `copy_cqes()` would give without entering the kernel.

        More may be waiting there: on a full queue, or with DEFER_TASKRUN. Those that open streams
        will take count, too.
        """
        self._check_open()
        with self._lock:
            kept = self._kept
            return self._posted() + kept._count

    def copy_cqes(
        self,
        max_nr: int | None = None,
        *,
        wait_nr: int = 0,
        timeout: Timeout = None,
        min_timeout: float | None = None,
    ) -> Completions:
        """
        Copy completions out of the ring, and consume them. Submits nothing.

        What is ready is returned at once. Only if nothing is, it waits for `wait_nr`. What it
        returns never changes afterwards, and what was in flight for it is released. Those of open
        streams are left to them.

        Args:
            max_nr: at most so many; None takes all.
            wait_nr: how many to wait for when none is ready; 0 does not wait.
            timeout: of the wait, in seconds; None waits without end. When the time is over, what
                there is by then is returned, which may be nothing. Or an item of the ring's
                `WaitRegion`, which holds both times.
            min_timeout: in seconds, at most `timeout`: when so much time is over, one completion
                is enough, and if there is none the first one ends the wait. For batches: waits for
                `wait_nr` while that is worth it, and still wakes only once.

        Raises:
            RingClosedError: the ring is closed, or was closed by another thread during the wait.
            UnsupportedError: the kernel lacks FEAT_MIN_TIMEOUT, and nothing was waited for -> do
                without `min_timeout`, or wait twice.

        Kernel: 5.4; `min_timeout` 6.12. liburing: io_uring_wait_cqes_min_timeout(3).
        """
        if self._is_guarded:
            self._check_use()
        if max_nr is None and wait_nr == 0 and timeout is None and min_timeout is None:
            recent = self._take_recent()
            return self._take(None) if recent is None else recent
        if max_nr is not None:
            check_range("max_nr", max_nr, 0, UINT32_MAX)
        check_range("wait_nr", wait_nr, 0, UINT32_MAX)
        end: int | WaitEnd
        if min_timeout is None and not isinstance(timeout, WaitArg):  # as _end(), without a call
            end = deadline_ns(timeout)
        else:
            end = self._end(timeout, min_timeout)
        may_wait = wait_nr > 0 and max_nr != 0
        while (taken := self._take(max_nr)) is EMPTY and may_wait:
            may_wait = self._wait_until(wait_nr, end, is_for_others=True)
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
        if self._is_guarded:
            self._check_use()
        # The shortest way: the one operation that is in flight has ended. A result of 1 is one CQE
        # without flags, so of 16 bytes also where there are others.
        in_flight = self._in_flight
        record = in_flight.single
        if record is not None and self._kept is EMPTY and not self._handovers:
            had = self._had
            if _uring_take(self._shim, had, 1) == 1:
                user_data, res, flags = _cqe(self._landed)
                cqe = CQE(user_data, res, flags, record[2])
                after = had + 1
                # No call and nothing made between this look and the end.
                if (
                    user_data == record[0]
                    and in_flight.single is record
                    and self._had == had
                    and self._kept is EMPTY
                    and not self._handovers
                    and not self._streamed
                ):
                    in_flight.single = None
                    self._had = after
                    return cqe
        end_ns = deadline_ns(timeout)
        may_wait = True
        while (taken := self._take_one()) is None and may_wait:
            may_wait = self._wait(1, end_ns, is_for_others=True)
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
                had, kept = self._had, self._kept
                if self._streamed:
                    return self._fetch_others()[:max_nr] or EMPTY
                if kept is not EMPTY:
                    return kept[:max_nr]
                limit = self._limit(max_nr)
                room = ffi.new("char[]", max(limit, 1) * self._cqe_size)
                result = self._check_enter(lib.uring_peek(self._shim, had, limit, room))
                completions, _, _ = self._settled(memoryview(ffi.buffer(room)), result, 0)
                if self._had == had:  # else a handler copied them out meanwhile
                    return completions or EMPTY

    def cq_advance(self, count: int) -> None:
        """
        Consume completions without copying them out, as after `peek_cqes()`.

        Args:
            count: how many, at most `cq_ready()`, without those of open streams.

        Raises:
            ValueError: fewer are ready; nothing was consumed.
        """
        self._check_use()
        check_range("count", count, 0, UINT32_MAX)
        with self._lock:
            ready = self._fetch_others()._count if self._streamed else self.cq_ready()
            if count > ready:
                raise ValueError(f"{ready} completions are ready, not {count}")
            while count > 0:
                taken = self._take(count)
                if taken is EMPTY:  # a signal handler was here meanwhile
                    return
                count -= taken._count

    def _take_recent(self) -> Completions | None:
        """Copy out what was submitted last, if it is all that is in flight and has all ended."""
        had, in_flight = self._had, self._in_flight
        recent, single = in_flight.recent, in_flight.single
        if recent is not None:
            numbers, records = recent
        elif single is not None:
            numbers, records = single[0].to_bytes(8, sys.byteorder), [single]
        else:
            return None
        if self._kept is not EMPTY or self._handovers:
            return None
        result = _uring_take(self._shim, had, self._cq_limit)
        count = result & UINT32_MAX
        if result & _NOT_PLAIN or count != len(records):
            return None
        size = self._cqe_size
        raw = bytes(self._landed[: count * size])
        if (
            memoryview(raw).cast("Q")[:: size // 8] != memoryview(numbers).cast("Q")
            # With a number twice, which of the two came first could not be told.
            or (count > 1 and not lib.uring_is_increasing(numbers, count))
        ):
            return None
        taken = Completions(raw, [record[2] for record in records], cqe_size=size)
        after = had + count
        # No call and nothing made from this look to the last store.
        if (
            self._had == had
            and self._kept is EMPTY
            and in_flight.recent is recent
            and in_flight.single is single
            and not self._handovers
            and not self._streamed
        ):
            in_flight.recent = in_flight.single = None
            self._had = after
            return taken
        return None

    def _take(self, max_nr: int | None) -> Completions:
        """Copy out and consume: EMPTY when there is nothing."""
        while True:
            kept = self._kept
            if self._streamed:
                return self._take_others(max_nr)
            if kept is EMPTY:
                if not self._fetch(max_nr):
                    return EMPTY
                continue
            if max_nr is None or max_nr >= kept._count:
                given, left = kept, EMPTY
            else:
                given, left = kept[:max_nr], kept[max_nr:]
            # From here on no call, or Ctrl-C could lose what is given.
            if self._kept is kept and not self._streamed:
                self._kept = left
                return given

    def _take_others(self, max_nr: int | None) -> Completions:
        """As `_take`, of what is not for streams."""
        while True:
            kept, streamed = self._kept, self._streamed
            places = others(kept, streamed)[:max_nr]
            if not places:
                with self._lock:
                    if self._kept is kept and (max_nr == 0 or not self._fetch_more(None)):
                        return EMPTY
                continue
            given, left = parted(kept, places)
            # No call from here to the end.
            if self._kept is kept and self._streamed is streamed:
                self._kept = left
                return given

    def _fetch_others(self) -> Completions:
        """Fetch all that is ready, and look at what of it is not for streams. The lock is held."""
        while self._fetch_more(None):
            pass
        kept = self._kept
        return parted(kept, others(kept, self._streamed))[0]

    def _take_one(self) -> CQE | None:
        """Copy one completion out; the object is made before it is consumed."""
        while True:
            kept, streamed = self._kept, self._streamed
            if kept is EMPTY:
                if not self._fetch(1):
                    return None
                continue
            place = 0
            if streamed:
                places = others(kept, streamed)
                if not places:
                    with self._lock:
                        if self._kept is kept and not self._fetch_more(None):
                            return None
                    continue
                place = places[0]
            cqe = kept[place]
            left = without(kept, place) if kept._count > 1 else EMPTY
            if self._kept is kept and self._streamed is streamed:
                self._kept = left
                return cqe

    def _fetch(self, max_nr: int | None) -> bool:
        """Move CQEs from the ring to `_kept`; False when there are none."""
        with self._lock:
            while self._kept is EMPTY:
                if not self._fetch_more(max_nr):
                    return False
            return True

    def _fetch_more(self, max_nr: int | None) -> bool:
        """
        Move CQEs from the ring behind those in `_kept`, or find that another has: then True, too.

        The lock is held. What comes back to back with a kept batch is joined to it.
        """
        in_flight = self._in_flight
        if self._handovers:
            self._trim()  # so that who is about to enter what ends here notices
        if in_flight.ended is not None:
            in_flight.retire()
        had, kept = self._had, self._kept
        result = lib.uring_take(self._shim, had, self._limit(max_nr))
        if result <= 0:
            self._check_enter(result)
            return self._had != had
        completions, ended, landing = self._settled(self._landed, result, had, is_final=True)
        joined = kept + completions if kept else completions
        after = had + completions._count
        if self._had == had and self._kept is kept:  # no call from here to the last store
            in_flight.is_quiet = False
            try:
                in_flight.ended = ended
                self._kept = joined
                self._had = after
                if landing is not None:
                    landing.mark.is_final = 1
                    self._stays = landing.stays
            except BaseException:  # only a trace function's, amid the stores: none is left undone
                in_flight.ended, self._kept, self._had = ended, joined, after
                if landing is not None:
                    landing.mark.is_final, self._stays = 1, landing.stays
                raise
            in_flight.retire()
        return True

    def _limit(self, max_nr: int | None) -> int:
        return self._cq_limit if max_nr is None or max_nr > self._cq_limit else max_nr

    def _wait(self, wait_nr: int, end_ns: int, *, is_for_others: bool = False) -> bool:
        """
        Wait without the lock: True when the CQEs came, False when the time is over.

        With `is_for_others` what is kept for streams does not count.
        """
        while True:
            missing = wait_nr - self._count_kept(is_for_others=is_for_others)
            if missing <= 0:
                return True
            result = lib.uring_wait(self._shim, self._had, missing, end_ns)
            if self._refusal is not None:
                self._check_open()
            if result == 0:
                return True
            if result == -errno.ETIME:
                return False
            if result not in {-errno.EINTR, -errno.EAGAIN}:
                self._fail("io_uring_enter", result)

    def _end(self, timeout: Timeout, min_timeout: float | None) -> int | WaitEnd:
        """When a wait that begins now is to end; the number alone when that says it."""
        arg = None
        if isinstance(timeout, WaitArg):
            if min_timeout is not None:
                raise ValueError("min_timeout stands in the registered arguments: set() it there")
            if not timeout._is_of(self._shim):
                raise ValueError(f"{timeout!r} was registered with another ring")
            arg = timeout
            timeout, min_timeout = arg.timeout, arg.min_timeout
        elif min_timeout is None:
            return deadline_ns(timeout)
        else:
            if timeout is not None and min_timeout > timeout:
                raise ValueError(f"min_timeout {min_timeout} is longer than timeout {timeout}")
            if not self._params.features & Features.MIN_TIMEOUT:
                raise UnsupportedError(
                    errno.EOPNOTSUPP, "this kernel lacks IORING_FEAT_MIN_TIMEOUT of Linux 6.12"
                )
        min_ns = NEVER_NS if min_timeout is None else deadline_ns(min_timeout)
        return WaitEnd(deadline_ns(timeout), min_ns, arg)

    def _wait_until(self, wait_nr: int, end: int | WaitEnd, *, is_for_others: bool = False) -> bool:
        """As `_wait`, for all kinds of waits."""
        if isinstance(end, int):
            return self._wait(wait_nr, end, is_for_others=is_for_others)
        while True:
            end_ns, min_ns = end.end_ns, end.min_ns
            missing = wait_nr - self._count_kept(is_for_others=is_for_others)
            if end.arg is None and min_ns == NEVER_NS:
                return self._wait(wait_nr, end_ns, is_for_others=is_for_others)
            if 0 < missing < wait_nr:  # one is there, so the wait ends with the minimum time
                limit_ns = min_ns if end_ns < 0 else min(min_ns, end_ns)
                return self._wait(wait_nr, limit_ns, is_for_others=is_for_others)
            if missing <= 0:
                return True
            if end.arg is None:
                result = lib.uring_wait_min(self._shim, self._had, missing, min_ns, end_ns)
            else:
                index = end.arg.index
                end.arg = None  # what is left after a signal, the kernel is told
                result = lib.uring_wait_registered(
                    self._shim, self._had, missing, min_ns, end_ns, index
                )
            if self._refusal is not None:
                self._check_open()
            if result in {0, -errno.ETIME}:
                return result == 0
            if result not in {-errno.EINTR, -errno.EAGAIN}:
                self._fail("io_uring_enter", result)

    def _count_kept(self, *, is_for_others: bool) -> int:
        """How many completions are kept; for others than streams, if so."""
        kept, streamed = self._kept, self._streamed
        return len(others(kept, streamed)) if is_for_others and streamed else kept._count

    def _wait_beyond(self, had: int, end_ns: int) -> bool:
        """Wait until more was had than that, or is ready; False when the time is over."""
        while self._had == had:
            result = lib.uring_wait(self._shim, had, 1, end_ns)
            if self._refusal is not None:
                self._check_open()
            if result == 0:
                return True
            if result == -errno.ETIME:
                return self._had != had
            if result not in {-errno.EINTR, -errno.EAGAIN}:
                self._fail("io_uring_enter", result)
        return True

    def _posted(self) -> int:
        return self._check_enter(lib.uring_ready(self._shim, self._had))
