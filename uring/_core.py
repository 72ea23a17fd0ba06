"""The floor that both sides of a ring stand on: shim, in-flight table, and who may use them."""

import errno
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from uring._ffi import ffi, lib
from uring._inflight import InFlight
from uring._setup import RingParams
from uring.errors import RingClosedError, WrongThreadError, call_error
from uring.flags import SetupFlags
from uring.registry._base import Held
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring._leases import Stays
    from uring._uring import CData

FORKED = "the ring was made before a fork, and belongs to the parent: make a new one"
CLOSED = -1
"""Instead of a count, in the pending of a ring that is closing: nothing is handed over any more."""


class Core:
    """
    What a ring is before it does anything.

    `_lock` guards the table, the pending records and what was taken, in all that is not a step by
    itself (see ring.py). It is re-entrant, because a signal handler may come back into the ring,
    and never held in a wait.
    """

    def __init__(self, shim: "CData", inbox: "CData", params: RingParams) -> None:
        self._shim = shim
        self._inbox = inbox
        self._params = params
        self._fd = -1  # until all is set up: then there is something to close
        self._lock = threading.RLock()
        self._in_flight = InFlight()
        self._pending: list[Any] = [0]
        """How many records were placed in the SQ so far, and those that are queued behind them."""
        self._handovers = 0
        """How many calls are (or were cut off) between entering records and trimming them."""
        self._refusal: str | None = None
        """Why the ring may not be used any more, or None."""
        self._is_guarded = False
        """Whether `_check_use` may have something to say."""
        is_sqpoll, is_big = params.flags & SetupFlags.SQPOLL, params.flags & SetupFlags.CQE32
        self._can_be_plain = not (is_sqpoll or is_big)
        self._is_plain = self._can_be_plain and not params.flags & SetupFlags.R_DISABLED
        """Whether the shortest ways are open: the kernel takes at once, and a CQE is 16 bytes."""
        self._owner: int | None = None
        """
        The native id of the one thread that may use it, or None. Not the ident, which Python gives
        to the next thread when this one has ended.
        """
        self._owner_object: Callable[[], threading.Thread | None] = lambda: None
        self._own_thread = threading.local()
        """Has the attribute `is_here` in the owner, and in no other thread."""
        self._held = Held()
        """What is kept for what is registered."""
        self._stays: Stays = {}
        """Of incremental groups, the buffer that is being filled."""
        self._is_disabled = bool(params.flags & SetupFlags.R_DISABLED)
        if not self._is_disabled:
            self._own()

    def _expect(self, number: int) -> None:
        """
        Reserve a user_data for one CQE that no operation of this ring posts.

        Several may be expected under one number.

        Raises:
            ValueError: an operation in flight has it; the CQE would be taken for its own.
        """
        self._check_open()
        with self._lock:
            self._trim()
            self._in_flight.expect(number, self._pending)

    def _unexpect(self, number: int) -> None:
        """
        Give a reserved number back: the completion does not come.

        Takes no lock: who does this for another ring holds his own, and so may the other way round.
        """
        self._in_flight.unexpect(number)

    def _rename(self, numbers: tuple[int, int]) -> None:
        """Prepare for the operation in flight under the first number to go on under the second."""
        with self._lock:
            self._trim()
            self._in_flight.rename(numbers, self._pending)

    def _unrename(self, numbers: tuple[int, int]) -> None:
        with self._lock:
            self._in_flight.unrename(numbers, self._pending)

    def _own(self) -> None:
        if self._params.flags & SetupFlags.SINGLE_ISSUER:
            self._is_guarded = True
            self._owner = threading.get_native_id()
            self._own_thread.is_here = True
            self._owner_object = weakref.ref(threading.current_thread())

    def _refuse(self, why: str) -> None:
        self._is_guarded = True
        self._is_plain = False
        self._refusal = why

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise RingClosedError(self._refusal)

    def _check_use(self) -> None:
        if self._refusal is not None:
            raise RingClosedError(self._refusal)
        if self._owner is not None:
            try:  # asking for the native id is a system call
                self._own_thread.is_here  # noqa: B018 - the look is the check
            except AttributeError:
                self._check_owner(self._owner)

    def _check_owner(self, owner: int) -> None:
        own = threading.get_native_id()
        if owner != own:
            raise WrongThreadError(
                "this ring has SetupFlags.SINGLE_ISSUER and belongs to the thread with native id"
                f" {owner}; this is thread {own}: use it from its owner, or make it without that"
                " flag"
            )

    def _check_enter(self, result: int) -> int:
        if result < 0:
            self._fail("io_uring_enter", result)
        return result

    def _fail(self, call: str, result: int, *, detail: str = "") -> NoReturn:
        if result == -errno.ESHUTDOWN:
            raise RingClosedError(self._refusal or "the ring is closed")
        if result == -errno.EEXIST and self._owner is not None:
            raise WrongThreadError(f"this ring belongs to thread {self._owner}, which has ended")
        if result == -errno.EOWNERDEAD:
            self._refuse(FORKED)
            raise RingClosedError(FORKED)
        raise call_error(call, -result, detail=detail)

    def _counters(self) -> "CData":
        counters = ffi.new("struct uring_counters *")
        result = lib.uring_counters(self._shim, counters)
        if result < 0:
            self._fail("io_uring_enter", result)
        return counters

    def _trim(self) -> "CData":
        """Drop from the pending what the shim has placed: the counters. The lock is held."""
        pending = self._pending
        while True:
            base = pending[0]
            counters = self._counters()
            moved = [int(counters.placed)]
            count = (moved[0] - base) & UINT32_MAX
            placed = slice(0, count + 1)
            if base == CLOSED:
                return counters
            if pending[0] == base:  # no call and nothing made between this line and the end
                if count:
                    pending[placed] = moved
                return counters
