"""
What the programs share that run under faults: what is to fail, and what must hold all the same.

They run with `faults.c` preloaded. A program counts the calls that a scenario makes, and then runs
the scenario anew for each of them and each errno that the kernel may answer there. Whatever is
raised must be what the documentation says; the call is made again; and in the end all that was
submitted has completed once, all memory is intact and free again, and no descriptor is left.
"""

import ctypes
import errno
import faulthandler
import gc
import os
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final, TypeVar

import attrs
from fault_common import Memory, be_impatient
from hostile_harness import collect, descriptors, once

import uring
from uring.flags import RegisterOpcode

_T = TypeVar("_T")

EXHAUSTIVE: Final = os.environ.get("URING_FAULTS", "") == "all"
"""Whether to inject every errno at every call; else a few at each."""

NO_FLAGS: Final = uring.SetupFlags(0)
FOREVER: Final = 2**31
LIMIT_SECONDS: Final = 60.0  # of one run: then it shows where it hangs, and dies
SECONDS: Final = 20.0  # the end of a wait that should not take any time


class Call(IntEnum):
    """What can be made to fail: the calls of the shim, numbered as in faults.c."""

    SETUP = 0
    ENTER = 1
    REGISTER = 2
    MMAP = 3
    MUNMAP = 4
    MADVISE = 5
    CLOSE = 6
    POLL = 7
    NANOSLEEP = 8
    MALLOC = 9


class How(IntEnum):
    """What becomes of a call that is made to fail."""

    NOT_DONE = 0
    DONE = 1
    CUT = 2


_E = errno
# What each call can answer: its man page, and where that is silent the source of Linux 6.18.
ERRNOS: Final[dict[Call, tuple[int, ...]]] = {
    Call.SETUP: (
        *(_E.ENOMEM, _E.EMFILE, _E.EPERM, _E.EINVAL, _E.ENOSYS, _E.ENFILE, _E.EFAULT, _E.EACCES),
        *(_E.EAGAIN, _E.EBADF, _E.ENXIO, _E.EOVERFLOW),
    ),
    Call.ENTER: (
        *(_E.EAGAIN, _E.EBUSY, _E.EINTR, _E.EBADR, _E.ENOMEM, _E.EPERM, _E.EBADF, _E.EBADFD),
        *(_E.EFAULT, _E.EINVAL, _E.ENXIO, _E.EOPNOTSUPP, _E.EOWNERDEAD, _E.ENOSYS, _E.EACCES),
    ),
    Call.REGISTER: (
        *(_E.ENOMEM, _E.EINVAL, _E.EINTR, _E.EPERM, _E.EBUSY, _E.EFAULT, _E.EBADF, _E.EMFILE),
        *(_E.EACCES, _E.EBADFD, _E.EEXIST, _E.ENXIO, _E.EOPNOTSUPP, _E.EOVERFLOW, _E.ENFILE),
        *(_E.ENOENT, _E.ENOSYS, _E.EAGAIN),
    ),
    Call.MMAP: (_E.ENOMEM, _E.EAGAIN, _E.EACCES, _E.EINVAL, _E.EPERM, _E.ENFILE, _E.EOVERFLOW),
    Call.MUNMAP: (_E.ENOMEM, _E.EINVAL),
    Call.MADVISE: (_E.ENOMEM, _E.EAGAIN, _E.EINVAL),
    Call.CLOSE: (_E.EINTR, _E.EIO, _E.ENOSPC, _E.EDQUOT),
    Call.POLL: (_E.EINTR, _E.ENOMEM, _E.EINVAL),
    Call.NANOSLEEP: (_E.EINTR,),
    Call.MALLOC: (_E.ENOMEM,),
}

_R = RegisterOpcode
# What the kernel says only where it is so: that there is nothing, so that all is done.
UNTRUE: Final[dict[int, set[int]]] = {
    _R.UNREGISTER_BUFFERS: {_E.ENXIO},
    _R.UNREGISTER_FILES: {_E.ENXIO},
    _R.UNREGISTER_EVENTFD: {_E.ENXIO},
    _R.UNREGISTER_PBUF_RING: {_E.ENOENT},
    _R.UNREGISTER_PERSONALITY: {_E.EINVAL},
    _R.REGISTER_SYNC_CANCEL: {_E.ENOENT},
}

# ---- the preloaded library ----


class _Plan(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("opcode", ctypes.c_int32),
        ("how", ctypes.c_int32),
        ("result", ctypes.c_int32),
        ("cut_to", ctypes.c_int32),
    ]


faults: Final = ctypes.PyDLL(None)  # PyDLL: what is asked of it needs the GIL, or is short
faults.faults_plan.argtypes = [ctypes.c_int32, ctypes.POINTER(_Plan)]
faults.faults_plan.restype = None
faults.faults_builtin.restype = ctypes.py_object


@attrs.frozen
class Fault:
    """The calls `first` to `first + count - 1` of one kind fail, in one way."""

    call: Call
    error: int = 0
    first: int = 0
    count: int = 1
    opcode: int = -1
    how: How = How.NOT_DONE
    result: int = 0
    cut_to: int = 0

    def __str__(self) -> str:
        what = errno.errorcode.get(self.error, str(self.result))
        which = f" of {RegisterOpcode(self.opcode).name}" if self.opcode >= 0 else ""
        times = "from then on" if self.count == FOREVER else f"{self.count} times"
        return f"{self.call.name}{which}: {what} ({self.how.name}) at {self.first}, {times}"


def _plan(which: int, fault: Fault | None) -> None:
    plan = _Plan(-1)
    if fault is not None:
        plan = _Plan(*(int(value) for value in attrs.astuple(fault)))
    faults.faults_plan(which, ctypes.byref(plan))


def stop() -> None:
    """Have nothing fail any more."""
    _plan(0, None)
    _plan(1, None)


@contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Have it fail inside the block, or until `stop()`."""
    _plan(0, fault)
    try:
        yield
    finally:
        totals["faults"] += faults.faults_hits()
        stop()


@contextmanager
def also(fault: Fault) -> Iterator[None]:
    """Have this fail, too: so that the other fault can hit what happens in case of an error."""
    _plan(1, fault)
    try:
        yield
    finally:
        _plan(1, None)


totals: Final = {"faults": 0, "runs": 0}


def sites() -> list[int]:
    """The call sites at which faults have hit, as offsets in the shim's module."""
    room = (ctypes.c_uint64 * 4096)()
    return list(room[: faults.faults_sites(room)])


# ---- one run ----


_OF_SETUP: Final = {Call.SETUP, Call.MMAP, Call.MADVISE}
_OF_ENTER: Final = {Call.ENTER, Call.POLL, Call.NANOSLEEP}
_RUN: Final = {_E.EAGAIN: _E.ENOMEM, _E.EINTR: _E.EIO}
"""What a batch says instead."""


def expected(fault: Fault, error: BaseException) -> bool:
    """Whether this is how the documentation says that such a fault shows up."""
    number = getattr(error, "errno", None)
    call, given = fault.call, fault.error
    if isinstance(error, TimeoutError):  # the time went by with a kernel that says EINTR
        return fault.count == FOREVER and given in {_E.EINTR, _E.EAGAIN}
    if isinstance(error, uring.SetupError):
        return call in _OF_SETUP and number == given
    if isinstance(error, uring.EnterError):
        return call in _OF_ENTER and number in {given, _RUN.get(given)}
    if isinstance(error, uring.UnsupportedError):
        return given in {_E.EINVAL, _E.EOPNOTSUPP} and number == _E.EOPNOTSUPP
    maps = call in {Call.MMAP, Call.MADVISE} and number in {_E.ENOMEM, _E.ENOTRECOVERABLE}
    return isinstance(error, uring.RegisterError) and (number == given or maps)


class Flow:
    """One run of a scenario under one fault."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.raised: list[BaseException] = []
        self.numbers: list[int] = []
        """The user_data of what has ended, once for each time that it has."""
        self.watched: list[weakref.ref[Memory]] = []
        self.is_lost = False
        """Whether the fault has cost the ring, with what was in flight."""
        self.is_closing = False
        """Whether the fault outlasts the use of the ring, so that closing it may fail."""

    def memory(self, size: int) -> Memory:
        """Memory that must be gone in the end, and not before its operation has ended."""
        made = Memory(size)
        self.watched.append(weakref.ref(made))
        return made

    def attempt(self, call: Callable[[], _T]) -> _T:
        """Make a call, again if the fault has it fail; a fault that lasts is taken away then."""
        for tries in range(4):
            try:
                return call()
            except (uring.UringError, TimeoutError) as error:
                if not expected(self.fault, error):
                    raise
                self.raised.append(error)
                error.__traceback__ = error.__context__ = None  # they hold memory
            if tries == 1:
                self.relent()
        raise AssertionError(f"{self.fault}: it fails without the fault: {self.raised[-1]!r}")

    def ring(
        self, entries: int, *, flags: uring.SetupFlags = NO_FLAGS, idle_ms: int | None = None
    ) -> uring.Ring:
        """Make a ring, which gives numbers of its own."""
        once(self.numbers)
        self.numbers.clear()
        return self.attempt(lambda: uring.Ring(entries, flags=flags, sq_thread_idle_ms=idle_ms))

    def submit(self, ring: uring.Ring) -> None:
        """Submit until the kernel has taken all; it may take less at a time, or later."""
        deadline = time.monotonic() + SECONDS
        patient = time.monotonic() + 0.2
        while True:
            self.attempt(ring.submit)
            if not ring.sq_ready():
                return
            if time.monotonic() > patient:
                self.relent()  # it has a poller sleep, which nobody can wake
            assert time.monotonic() < deadline, f"{self.fault}: {ring.sq_ready()} are queued"

    def check(self, error: BaseException) -> None:
        """Assert that an error is what the documentation says of the fault."""
        assert expected(self.fault, error), f"{self.fault}: {error!r}"

    def relent(self) -> None:
        """Take away a fault that lasts: what it hinders was tried."""
        if self.fault.count == FOREVER:
            _plan(0, None)

    def end(self) -> None:
        """From here on the fault stays, whatever fails."""
        self.is_closing = True

    def times_out(self, call: Callable[[], object]) -> None:
        """Make a call that ends with TimeoutError."""

        def timed() -> bool:
            try:
                call()
            except TimeoutError:
                return True
            return False

        assert self.attempt(timed), f"{self.fault}: it did not time out"

    @property
    def seconds(self) -> float:
        """For how long to wait for what comes, if nothing hinders it."""
        return 0.05 if self.fault.count == FOREVER else SECONDS

    def reap(self, ring: uring.Ring, count: int) -> list[uring.CQE]:
        """Copy out until so many completions have come."""
        taken: list[uring.CQE] = []
        deadline = time.monotonic() + SECONDS
        while len(taken) < count:
            assert time.monotonic() < deadline, f"{self.fault}: {len(taken)} of {count} came"
            found = self.attempt(lambda: ring.copy_cqes(wait_nr=1, timeout=self.seconds))
            if not found:
                self.relent()
            taken += found
        assert len(taken) == count, f"{self.fault}: {taken}"
        self.numbers += [cqe.user_data for cqe in taken if not cqe.more]
        return taken


Scenario = Callable[[Flow], None]
_scenarios: Final[dict[str, Scenario]] = {}


def scenario(function: Scenario) -> Scenario:
    """Make `function` a scenario that can be named on the command line."""
    _scenarios[function.__name__] = function
    return function


def play(function: Scenario, fault: Fault) -> Flow:
    """Run a scenario under a fault, and look at what is left of it."""
    before = descriptors()
    flow = Flow(fault)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with injected(fault):
            function(flow)
        if any(ref() is not None for ref in flow.watched) or before != descriptors():
            collect()
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    others = [str(warning.message) for warning in caught if str(warning.message) not in told]
    if not (flow.is_lost or (flow.is_closing and fault.count == FOREVER)):
        assert not told, f"{fault}: {told}"
    assert all("was dropped" in text for text in others), f"{fault}: {others}"
    once(flow.numbers)
    alive = [ref() for ref in flow.watched if ref() is not None]
    assert bool(told) >= bool(alive), f"{fault}: memory stays pinned"
    if fault.call is not Call.CLOSE or fault.how is How.DONE:
        assert before == descriptors(), f"{fault}: {before ^ descriptors()}"
    totals["runs"] += 1
    return flow


# ---- the sweep ----


def _opcodes(function: Scenario) -> Iterator[tuple[Call, int, int]]:
    """The kinds of calls that a scenario makes: (call, opcode, how many)."""
    for call in Call:
        for opcode in range(40) if call is Call.REGISTER else [-1]:
            with injected(Fault(call, opcode=opcode, count=0)):
                function(Flow(Fault(call, opcode=opcode, count=0)))
                count = faults.faults_matched()
            if count:
                yield call, opcode, count


def _chosen(errnos: tuple[int, ...], place: int) -> Iterator[int]:
    """All of them, or the first and two that vary from call to call."""
    if EXHAUSTIVE or len(errnos) <= 3:
        yield from errnos
        return
    rest = errnos[1:]
    yield from dict.fromkeys(
        [errnos[0], rest[2 * place % len(rest)], rest[(2 * place + 1) % len(rest)]]
    )


def plans(function: Scenario) -> Iterator[Fault]:
    """Every fault that a scenario is to be run under."""
    for call, opcode, count in _opcodes(function):
        limit = count if EXHAUSTIVE else min(count, 12)
        for place in range(limit):
            untrue = UNTRUE.get(opcode, set()) if call is Call.REGISTER else set()
            for error in _chosen(tuple(e for e in ERRNOS[call] if e not in untrue), place):
                how = How.DONE if call is Call.CLOSE else How.NOT_DONE
                yield Fault(call, error, place, 1, opcode, how)
                yield Fault(call, error, place, FOREVER, opcode, how)
            if call is Call.ENTER:
                yield Fault(call, 0, place, 1, opcode, How.CUT, cut_to=1)
                yield Fault(call, 0, place, FOREVER, opcode, How.CUT, cut_to=1)


def main() -> None:
    """Sweep the scenarios that the command line names; the last line has the figures."""
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)
    be_impatient()
    for name in sys.argv[1:]:
        function = _scenarios[name]
        function(Flow(Fault(Call.SETUP, count=0)))  # what is made once is made
        gc.freeze()  # what is there is there to stay, and need not be looked at each time
        for fault in plans(function):
            signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
            sys.stderr.write(f"{name}: {fault}\n")
            play(function, fault)
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(f"{totals['runs']} {totals['faults']} {' '.join(map(str, sites()))}\n")
