"""The floor that both sides of a ring stand on: shim, in-flight table, and who may use them."""

import errno
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

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
    from uring._pledges import Pledge
    from uring._uring import CData

NOT_PLAIN: Final = SetupFlags.SQPOLL | SetupFlags.SQE128 | SetupFlags.CQE32
_OWNED: Final = SetupFlags.SINGLE_ISSUER | SetupFlags.REGISTERED_FD_ONLY
"""Flags with which the kernel lets one thread alone use a ring."""
FORKED: Final = "the ring was made before a fork, and belongs to the parent: make a new one"
NO_FD: Final = -2
"""Instead of a descriptor, in an open ring that has none: REGISTERED_FD_ONLY."""
CLOSED: Final = -1
"""Instead of a count, in the pending of a ring that is closing: nothing is handed over any more."""


def lives(native_id: int, thread: threading.Thread | None) -> bool:
    """Whether a thread is alive: its native id, and the object, which threading keeps as long."""
    if thread is None or not thread.is_alive():
        return False  # the kernel may show it for a moment more
    return Path(f"/proc/self/task/{native_id}").exists()


class Core:
    """
    What a ring is before it does anything.

    `_lock` guards the table, the pending records and what was taken, in all that is not a step by
    itself (see ring.py). It is re-entrant, because a signal handler may come back into the ring,
    and never held in a wait.

    A ring has at most 29 attributes: from there on CPython 3.11 keeps them in a dict of its own,
    and one operation at a time takes 300 ns more (SHARED_KEYS_MAX_SIZE in its dictobject.c).
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
        self._is_plain = not params.flags & (NOT_PLAIN | SetupFlags.R_DISABLED)
        """
        Whether the shortest ways are open: the kernel takes at once, an SQE is 64 bytes, and a CQE
        without flags 16.
        """
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
        if not self._is_disabled or params.flags & SetupFlags.REGISTERED_FD_ONLY:
            self._own()

    def _expect(self, number: int, pledge: "Pledge | None" = None) -> None:
        """
        Reserve a user_data for one CQE that no operation of this ring posts.

        Several may be expected under one number. A pledge is told when that is done.

        Raises:
            ValueError: an operation in flight has it; the CQE would be taken for its own.
        """
        self._check_open()
        with self._lock:
            self._trim()
            self._in_flight.expect(number, self._pending, pledge)

    def _unexpect(self, number: int) -> None:
        """
        Give a reserved number back: the completion does not come.

        Takes no lock: who does this for another ring holds his own, and so may the other way round.
        """
        self._in_flight.unexpect(number)

    def _rename(self, numbers: tuple[int, int], pledge: "Pledge") -> None:
        """Prepare for the operation in flight under the first number to go on under the second."""
        with self._lock:
            self._trim()
            self._in_flight.rename(numbers, self._pending, pledge)

    def _unrename(self, numbers: tuple[int, int]) -> None:
        with self._lock:
            self._in_flight.unrename(numbers, self._pending)

    def _own(self) -> None:
        if self._params.flags & _OWNED:
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
                f"this ring has SetupFlags.{(self._params.flags & _OWNED).name} and belongs to the"
                f" thread with native id {owner}; this is thread {own}: use it from its owner"
                " (that of an event loop: in tasks of the loop), or make it without that flag"
            )

    def _check_enter(self, result: int) -> int:
        if result < 0:
            self._fail("io_uring_enter", result)
        return result

    def _fail(self, call: str, result: int, *, detail: str = "") -> NoReturn:
        if result == -errno.ESHUTDOWN:
            raise RingClosedError(self._refusal or "the ring is closed")
        is_strange = result == -errno.EEXIST or (result == -errno.EBADF and self._shim.fd < 0)
        # A thread that got the same native id; else it is what the kernel says of this one.
        if is_strange and self._owner and self._owner_object() is not threading.current_thread():
            raise WrongThreadError(f"this ring belongs to thread {self._owner}, which has ended")
        if result == -errno.EOWNERDEAD and self._is_forked():
            self._refuse(FORKED)
            raise RingClosedError(FORKED)
        raise call_error(call, -result, detail=detail)

    def _is_forked(self) -> bool:
        """Whether EOWNERDEAD is the shim's word for a fork; the kernel's is for a dead poller."""
        counters = ffi.new("struct uring_counters *")
        return lib.uring_counters(self._shim, counters) == -errno.EOWNERDEAD

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
