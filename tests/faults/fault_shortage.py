"""
Scenarios: the life of a ring in a Python that is out of memory.

The k-th allocation of a scenario fails, alone or with those that follow, for each k until the
scenario passes without having reached it. After MemoryError nothing has changed: the same call,
made again, does it all.
"""

import errno
import faulthandler
import functools
import gc
import os
import signal
import socket
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

from fault_common import Memory, be_impatient, pipe
from fault_harness import (
    EXHAUSTIVE,
    FOREVER,
    LIMIT_SECONDS,
    NO_FLAGS,
    SECONDS,
    faults,
)
from hostile_harness import collect, descriptors, once, until

import uring
from uring import Batch, Nop, Openat, Read, Ring
from uring import SetupFlags as F

_T = TypeVar("_T")

BURSTS: Final = (1, 3) if sys.version_info < (3, 12) else ()
"""
How many allocations fail in a row: the second and third are those of who handles the first.

Not all that follow: CPython then tries for ever to note where an exception was (lasti in ceval.c).
None from 3.12 on: that crashes by itself when a frame or a weak reference cannot be made
(_PyEvalFramePushAndInit, PyObject_ClearWeakRefs), before anything of ours is seen.
"""

CONTENT: Final = bytes(range(256)) * 16
DEFER: Final = F.DEFER_TASKRUN | F.SINGLE_ISSUER

shorten: Final[Callable[[], None]] = faults.faults_builtin(0)
relieve: Final[Callable[[], None]] = faults.faults_builtin(1)
"""Between the two, allocations of this thread are counted, and fail as planned."""


class Shortage:
    """One run of a scenario."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        self.raised: list[BaseException] = []
        self.numbers: list[int] = []
        self.watched: list[weakref.ref[Memory]] = []
        faults.faults_plan_allocations(first, count)

    def __str__(self) -> str:
        return f"allocation {self.first} and {self.count - 1} more"

    def memory(self, size: int = 64) -> Memory:
        """Memory that must be gone in the end, and not before its operation has ended."""
        made = Memory(size)
        self.watched.append(weakref.ref(made))
        return made

    def short(self, call: Callable[[], _T], state: Callable[[], object] = lambda: None) -> _T:
        """Make a call while memory is short; again with enough if it fails, the state unchanged."""
        before = state()
        error: BaseException | None = None
        shorten()
        try:
            result = call()
            relieve()
        except (MemoryError, RuntimeError, SystemError, TypeError, uring.UringError) as raised:
            relieve()
            error = raised
        if error is None:
            return result
        is_silent = type(error) is SystemError and "without" in str(error)
        is_locks = type(error) is RuntimeError and "can't allocate lock" in str(error)  # CPython's
        number = getattr(error, "errno", 0)
        is_paths = type(error) is TypeError and "not PosixPath" in str(error)  # CPython's, too
        is_strange = is_silent or is_locks or is_paths
        assert isinstance(error, MemoryError) or is_strange or number == errno.ENOMEM, repr(error)
        assert faults.faults_allocations_failed(), f"{self}: {error!r}"
        error.__traceback__ = error.__context__ = None
        self.raised.append(error)
        faults.faults_plan_allocations(0, 0)
        after = state()
        # What undoes a call may fail, too, if more than one allocation does.
        assert before == after or self.count > 1, f"{self}: {before} became {after}"
        return call()

    def ring(self, entries: int, flags: F = NO_FLAGS) -> Ring:
        """A ring whose counters are beyond the numbers that CPython has made in advance."""
        ring = Ring(entries, flags=flags, cq_entries=512)
        while ring.cq.tail < 300:
            ring.queue_all([Nop()] * entries)
            ring.submit_and_wait(entries)
            ring.copy_cqes()
        return ring

    def reap(self, ring: Ring, count: int) -> list[uring.CQE]:
        """Copy out, one or all at a time, until so many completions have come."""
        taken: list[uring.CQE] = []

        def state() -> object:  # what is in our hands already, and not yet in the caller's
            return ring.cq_ready()

        ring.submit_and_wait(count, timeout=SECONDS)
        while len(taken) < count:
            if len(taken) % 2:
                taken.append(self.short(lambda: ring.copy_cqe(timeout=SECONDS), state))
            else:
                taken += self.short(lambda: ring.copy_cqes(2), state)
        self.numbers += [cqe.user_data for cqe in taken if not cqe.more]
        return taken


Scenario = Callable[[Shortage], None]
_scenarios: Final[dict[str, Scenario]] = {}


def scenario(function: Scenario) -> Scenario:
    """Make `function` a scenario that can be named on the command line."""
    _scenarios[function.__name__] = function
    return function


# ---- the scenarios ----


@scenario
def setup(flow: Shortage) -> None:
    """Rings of several shapes are made, and closed."""
    for flags in (F(0), DEFER, F.NO_MMAP):
        ring = flow.short(functools.partial(Ring, 4, flags=flags))
        flow.short(ring.close)
        assert (ring.closed, ring.fd) == (True, -1)


@scenario
def queue(flow: Shortage) -> None:
    """Operations of several kinds are queued, by themselves and together, and submitted."""
    left, right = socket.socketpair()
    fd = os.open("/dev/zero", os.O_RDONLY)
    with left, right, flow.ring(16) as ring:

        def state() -> object:
            return ring.sq_ready(), ring.in_flight

        def add(op: uring.Operation) -> None:
            flow.short(lambda: ring.queue(op), state)

        add(Nop())
        add(Read(fd, flow.memory(), offset=0))
        add(uring.Readv(fd, [flow.memory(), flow.memory()], offset=0))
        add(uring.Openat("/dev/null", os.O_RDONLY))
        add(uring.Timeout(1e-9))
        add(uring.Statx("/dev/null"))
        chain = uring.link(Nop(), Read(fd, flow.memory(), offset=0))
        flow.short(lambda: ring.queue_all(chain), state)
        assert ring.sq_ready() == ring.in_flight == 8
        flow.short(ring.submit, lambda: ring.in_flight)
        for cqe in flow.reap(ring, 8):
            if isinstance(cqe.op, Openat):
                os.close(cqe.result())
        assert (ring.sq_ready(), ring.in_flight) == (0, 0)
    os.close(fd)


@scenario
def pins(flow: Shortage) -> None:
    """Memory in flight that nobody else holds stays until its completion, and no longer."""
    with pipe() as (read, write), flow.ring(4) as ring:
        for way in (ring.submit, lambda: ring.submit_and_wait(0), ring.submit_and_wait):
            ring.queue(Read(read, flow.memory(), offset=-1))
            waits = way == ring.submit_and_wait
            if waits:
                os.write(write, b"x" * 64)
            flow.short(way)
            canaries = [Memory(64) for _ in range(8)]
            assert flow.watched[-1]() is not None
            if not waits:
                os.write(write, b"x" * 64)
            until(ring.cq_ready)  # a wait would leave the shortest ways
            cqe = flow.short(lambda: ring.copy_cqe(timeout=SECONDS), ring.cq_ready)
            assert (cqe.res, type(cqe.op)) == (64, Read)
            assert not any(map(any, canaries))


@scenario
def look(flow: Shortage) -> None:
    """Peeking, advancing, counting; on a ring that is entered for its completions."""
    with flow.ring(4, DEFER) as ring:
        ring.queue_all([Nop(user_data=number) for number in range(4)])

        def state() -> object:
            return ring.in_flight

        flow.short(ring.submit, state)
        assert len(flow.short(ring.peek_cqes, state)) == 4
        assert flow.short(lambda: ring.in_flight) == 4
        assert flow.short(ring.cq_ready) == 4
        flow.short(lambda: ring.cq_advance(1), ring.cq_ready)
        assert ring.cq_ready() == 3
        assert [cqe.user_data for cqe in flow.reap(ring, 3)] == [1, 2, 3]


@scenario
def recent(flow: Shortage) -> None:
    """What was submitted last is copied out at once, each with its operation."""
    with flow.ring(4) as ring:
        ops = [Nop() for _ in range(4)]
        numbers = flow.short(lambda: ring.queue_all(ops), ring.sq_ready)
        flow.short(ring.submit)
        until(lambda: ring.cq_ready() == 4)
        done = flow.short(ring.copy_cqes, ring.cq_ready)
        assert [cqe.op for cqe in done] == ops
        assert done.user_data.tolist() == numbers
        assert ring.in_flight == 0


@scenario
def shared(flow: Shortage) -> None:
    """Operations that share a number, and chains that skip their completions."""
    with flow.ring(8) as ring:
        fd = os.open("/dev/zero", os.O_RDONLY)

        def state() -> object:
            return ring.sq_ready(), ring.in_flight

        for _ in range(3):
            flow.short(lambda: ring.queue(Read(fd, flow.memory(), offset=0), user_data=5), state)
        silent = Read(fd, flow.memory(), offset=0, flags=uring.SQEFlags.CQE_SKIP_SUCCESS)
        chain = uring.link(silent, Nop())
        flow.short(lambda: ring.queue_all(chain), state)
        flow.short(ring.submit, lambda: ring.in_flight)
        ring.submit_and_wait(4)
        assert len(flow.short(ring.copy_cqes, ring.cq_ready)) == 4
        assert ring.in_flight == 0
        os.close(fd)


@scenario
def run(flow: Shortage) -> None:
    """Batches, prepared and not, that make descriptors too."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    with flow.ring(4) as ring:
        number = ring.queue(Nop())
        ring.submit()

        def state() -> object:
            return ring.in_flight, len(descriptors())

        for _ in range(2):
            ops = [Read(fd, flow.memory(), offset=0), Openat("/dev/null", os.O_RDONLY), Nop()]
            done = flow.short(functools.partial(ring.run, [*ops, *ops]), state)
            assert [cqe.res >= 0 for cqe in done] == [True] * 6
            os.close(done[1].result())
            os.close(done[4].result())
        batch = Batch([Nop(user_data=index) for index in range(9)])
        assert flow.short(functools.partial(ring.run, batch), state).res.tolist() == [0] * 9
        assert ring.in_flight == 1
        assert flow.reap(ring, 1)[0].user_data == number
    os.close(fd)


@scenario
def run_cut_short(flow: Shortage) -> None:
    """A batch whose time is over."""
    with pipe() as (read, _), flow.ring(4) as ring:
        ops = [Read(read, flow.memory(), offset=-1) for _ in range(2)]

        def timed() -> bool:
            try:
                ring.run(ops, timeout=0.001)
            except TimeoutError:
                return True
            return False

        assert flow.short(timed)
        until(lambda: ring.in_flight == 0)  # what was cut off is cancelled by who comes next
        assert ring.run([Nop()])[0].res == 0


@scenario
def stream(flow: Shortage) -> None:
    """A stream of accepted connections: each is there once, and none leaks."""
    with socket.create_server(("127.0.0.1", 0)) as listener, flow.ring(4) as ring:
        accepted = ring.stream(uring.AcceptMultishot(listener))
        for _ in range(3):
            with socket.create_connection(listener.getsockname()):
                cqe = flow.short(lambda: accepted.take(timeout=SECONDS), lambda: ring.in_flight)
                assert cqe is not None
                os.close(flow.short(cqe.result))
        with socket.create_connection(listener.getsockname()):
            flow.short(accepted.close)
        assert ring.in_flight == 0


@scenario
def begin_stream(flow: Shortage) -> None:
    """A stream that is begun: refused, nothing of it is left behind that is not in flight."""
    with pipe() as (read, write), flow.ring(4) as ring:
        poll = flow.short(lambda: ring.stream(uring.PollMultishot(read)))
        os.write(write, b"x")
        assert poll.take(timeout=SECONDS) is not None
        poll.close()
        ring.cancel(any=True, all=True)
        while ring.in_flight:  # of the one whose stream could not be made
            ring.submit()
            ring.copy_cqes(wait_nr=1, timeout=SECONDS)


@scenario
def lease(flow: Shortage) -> None:
    """Provided buffers: each completion has its bytes, and every buffer comes back."""
    left, right = socket.socketpair()
    with left, right, flow.ring(4) as ring:
        group = flow.short(
            lambda: ring.register_buffer_ring(2, size=64), lambda: [*ring._held.groups]
        )
        for index in range(5):
            right.send(bytes([index]) * 8)
            flow.short(
                lambda: ring.queue(uring.RecvSelect(left, group=group)), lambda: ring.in_flight
            )
            ring.submit_and_wait()
            cqe = flow.short(lambda: ring.copy_cqe(timeout=SECONDS), ring.cq_ready)
            received = flow.short(cqe.result)
            assert bytes(received) == bytes([index]) * 8
            flow.short(received.release)
            del received, cqe
        assert group.inside == 2
        flow.short(group.close)


@scenario
def register(flow: Shortage) -> None:
    """What is registered is registered, or not, and its memory is held as long."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    with flow.ring(4) as ring:

        def state() -> object:
            return ring._held.files, ring._held.buffers, ring._held.eventfd

        buffers = ring.register_buffers([flow.memory(4096), None])
        other = flow.memory(4096)
        assert flow.short(lambda: buffers.update(1, [other])) == 1
        flow.short(buffers.close)
        flow.short(ring.register_personality)
        flow.short(lambda: ring.cancel(5))
        flow.short(uring.probe)
        state()
    os.close(fd)


@scenario
def resize(flow: Shortage) -> None:
    """Other sizes; what is queued, in flight and unread stays."""
    with flow.ring(8, DEFER) as ring:
        ring.queue(Nop(user_data=1))
        ring.submit()
        ring.queue(Nop(user_data=2))
        flow.short(lambda: ring.resize(32), lambda: (ring.sq_ready(), ring.in_flight))
        flow.short(lambda: ring.resize(4), lambda: (ring.sq_ready(), ring.in_flight))
        assert ring.params.sq_entries == ring.sq.entries == 4
        ring.submit()
        assert sorted(cqe.user_data for cqe in flow.reap(ring, 2)) == [1, 2]


@scenario
def close(flow: Shortage) -> None:
    """A ring is closed with all sorts of things in flight, queued and unread."""
    read, write = os.pipe()
    ring = flow.ring(8)
    ring.queue(Read(read, flow.memory(), offset=-1))
    ring.queue(Openat("/dev/null", os.O_RDONLY))
    ring.queue(Nop())
    ring.submit()
    ring.queue(Read(read, flow.memory(), offset=-1))
    flow.short(ring.close)
    assert (ring.closed, ring.fd, ring.in_flight) == (True, -1, 0)
    os.close(read)
    os.close(write)


@scenario
def drop(flow: Shortage) -> None:
    """A ring is dropped with something in flight and a descriptor unread."""
    read, write = os.pipe()
    rings = [flow.ring(8)]
    rings[0].queue(Read(read, flow.memory(), offset=-1))
    rings[0].queue(Openat("/dev/null", os.O_RDONLY))
    rings[0].submit()
    shorten()
    rings.pop()
    relieve()
    if faults.faults_allocations_failed():
        flow.raised.append(MemoryError())
    faults.faults_plan_allocations(0, 0)
    canaries = [Memory(64) for _ in range(8)]
    os.write(write, b"x" * 64)
    Ring(1).close()  # whoever makes a ring ends those whose end was cut off
    assert not any(map(any, canaries)), f"{flow}: memory in flight was freed"
    os.close(read)
    os.close(write)


# ---- the sweep ----

told: Final[list[object]] = []
"""The categories of warnings, and what was raised where nobody can catch it."""


def _warn(_message: object, category: object = None, **_: object) -> None:
    """In the place of warnings.warn(), which crashes when it can make no frame (3.11)."""
    told.append(category)


def play(function: Scenario, first: int, count: int) -> bool:
    """Run a scenario, and look at what is left of it; whether an allocation failed."""
    before = descriptors()
    flow = Shortage(first, count)
    told.clear()
    function(flow)
    reached = bool(faults.faults_allocations_failed() or flow.raised)
    faults.faults_plan_allocations(0, 0)
    if any(ref() is not None for ref in flow.watched) or before != descriptors():
        flow.raised.clear()
        told.clear()
        collect()
    assert RuntimeWarning not in told, f"{flow}: something is kept for ever"
    once(flow.numbers)
    alive = [ref for ref in flow.watched if ref() is not None]
    # CPython itself leaks arguments of a call for whose cells there is no memory (3.11).
    assert reached or not alive, f"{flow}: memory stays pinned"
    assert before == descriptors(), f"{flow}: {before ^ descriptors()}"
    return reached


def main() -> None:
    """Sweep the scenarios that the command line names; the last line has the figures."""
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)
    be_impatient()
    assert faults.faults_hook_allocators() == 0
    setattr(warnings, "warn", _warn)  # noqa: B010 - to a type checker it is one function for good
    sys.unraisablehook = told.append
    total = 0
    for name in sys.argv[1:]:
        play(_scenarios[name], FOREVER, 1)  # what is made once is made
        gc.freeze()
        for count in BURSTS:
            first, step = 0, 1 if EXHAUSTIVE or count == 1 else 3
            while True:
                signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
                sys.stderr.write(f"{name}: {first} {count}\n")
                if not play(_scenarios[name], first, count):
                    break
                total += 1
                first += step
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(f"{total}\n")


if __name__ == "__main__":
    main()
