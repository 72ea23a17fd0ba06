"""The other ways to wait: minimum times, registered arguments, room in the SQ, and what counts."""

import contextlib
import errno
import json
import mmap
import os
import re
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

import uring
from uring import Nop, Read, Ring, WaitRegion
from uring import SetupFlags as F
from uring._ffi import ffi, lib
from uring.registry.waits import WAIT_SIZE

DEFER = F.DEFER_TASKRUN | F.SINGLE_ISSUER
SHAPES = [F(0), F.SINGLE_ISSUER | F.COOP_TASKRUN, DEFER]
LAYOUTS = json.loads((Path(__file__).parent / "data" / "layouts.json").read_text(encoding="utf-8"))
LONG = 20.0  # never reached, unless a test is about to fail
SHORT = 0.05


@contextlib.contextmanager
def takes(least: float, most: float = LONG / 2) -> Iterator[None]:
    """What is inside lasts so many seconds."""
    start = time.monotonic()
    yield
    assert least <= time.monotonic() - start < most


@contextlib.contextmanager
def later(seconds: float, fd: int) -> Iterator[None]:
    """Write a byte after a while, from another thread."""
    timer = threading.Timer(seconds, os.write, (fd, b"x"))
    timer.start()
    yield
    timer.join()


@contextlib.contextmanager
def started(timer: threading.Timer) -> Iterator[None]:
    """What happens meanwhile."""
    timer.start()
    yield
    timer.join()


@contextlib.contextmanager
def alarms(every: float) -> Iterator[list[int]]:
    """A signal again and again, whose handler counts."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mappings_and_descriptors() -> tuple[int, int]:
    """How many mappings and descriptors of rings this process has."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    fds = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return maps.count("[io_uring]"), len([fd for fd in fds if "[io_uring]" in fd])


# ---- minimum times ----


@pytest.mark.parametrize("flags", SHAPES)
def test_min_timeout_ends_with_what_is_there(flags: F, ring_refusal: str) -> None:
    """One of four is ready: the wait ends with the minimum time, long before the other."""
    assert not ring_refusal
    with Ring(8, flags=flags) as ring:
        ring.queue(Nop())
        with takes(SHORT):
            assert ring.submit_and_wait(4, timeout=LONG, min_timeout=SHORT) == 1
        assert len(ring.copy_cqes()) == 1


@pytest.mark.parametrize("flags", SHAPES)
@pytest.mark.parametrize("timeout", [LONG, None])
def test_min_timeout_over_the_first_one_ends_the_wait(
    flags: F, timeout: float | None, pipe: tuple[int, int]
) -> None:
    """Nothing is ready when the minimum time is over: the wait goes on until one is."""
    with Ring(8, flags=flags) as ring:
        ring.queue(Read(pipe[0], bytearray(1), offset=-1))
        ring.submit()
        with takes(4 * SHORT), later(4 * SHORT, pipe[1]):
            assert len(ring.copy_cqes(wait_nr=4, timeout=timeout, min_timeout=SHORT)) == 1


@pytest.mark.parametrize("flags", SHAPES)
def test_min_timeout_and_nothing_comes(flags: F) -> None:
    """The wait ends with its timeout, not with the minimum time."""
    with Ring(8, flags=flags) as ring, takes(3 * SHORT):
        assert not ring.copy_cqes(wait_nr=4, timeout=3 * SHORT, min_timeout=SHORT)


def test_min_timeout_is_not_waited_for_when_all_are_there(ring: Ring) -> None:
    """Four of four end the wait at once."""
    ring.queue_all([Nop()] * 4)
    with takes(0):
        ring.submit_and_wait(4, timeout=2 * LONG, min_timeout=LONG)
    assert len(ring.copy_cqes()) == 4


def test_min_timeout_counts_what_was_taken_before(ring: Ring) -> None:
    """One that was fetched, and given back in part, is one that is there."""
    ring.queue_all([Nop()] * 2)
    ring.submit()
    ring.copy_cqe()
    ring.peek_cqes()
    ring.queue_all([Nop()] * 2)
    ring.submit()
    ring.copy_cqes(1)
    with takes(SHORT):
        ring.submit_and_wait(8, min_timeout=SHORT)
    assert ring.cq_ready() == 2


def test_min_timeout_goes_on_after_signals(ring: Ring) -> None:
    """Handlers run meanwhile, and neither time starts again."""
    ring.queue(Nop())
    with alarms(0.02) as seen, takes(0.3, 3.0):
        ring.submit_and_wait(4, timeout=LONG, min_timeout=0.3)
    assert len(seen) > 3
    ring.copy_cqes()
    with alarms(0.02) as seen, takes(0.3, 3.0):
        ring.submit_and_wait(4, timeout=0.3, min_timeout=0.1)
    assert len(seen) > 3


def test_min_timeout_while_another_thread_waits(
    ring: Ring, until: Callable[..., None], pipe: tuple[int, int]
) -> None:
    """A waiter keeps the head where it is; what was taken before it does not end this wait."""
    thread = threading.Thread(target=ring.submit_and_wait, args=(5,), kwargs={"timeout": LONG})
    thread.start()
    until(lambda: lib.uring_waiters(ring._shim) > 0)
    ring.queue_all([Nop()] * 2)
    ring.submit()
    assert len(ring.copy_cqes()) == 2
    with takes(4 * SHORT):
        assert not ring.copy_cqes(wait_nr=3, timeout=4 * SHORT, min_timeout=SHORT)
    ring.queue(Read(pipe[0], bytearray(1), offset=-1))
    ring.submit()
    with takes(3 * SHORT), later(3 * SHORT, pipe[1]):
        assert len(ring.copy_cqes(wait_nr=3, timeout=LONG, min_timeout=SHORT)) == 1
    ring.queue_all([Nop()] * 4)
    ring.submit()
    thread.join(LONG)
    assert not thread.is_alive()


@pytest.mark.parametrize(("timeout", "min_timeout"), [(1, 2), (0, 0.001), (None, -1), (None, "1")])
def test_min_timeout_that_cannot_be_is_refused(
    ring: Ring, timeout: float | None, min_timeout: float
) -> None:
    """A longer one than the timeout is ValueError, as is one that no time is; nothing submitted."""
    ring.queue(Nop())
    for wait in (ring.submit_and_wait, ring.copy_cqes):
        with pytest.raises((ValueError, TypeError), match=r"min_timeout|seconds"):
            wait(wait_nr=1, timeout=timeout, min_timeout=min_timeout)
    assert ring.sq_ready() == 1


def test_min_timeout_needs_its_feature(ring: Ring) -> None:
    """Without FEAT_MIN_TIMEOUT it is refused before anything is submitted or waited for."""
    assert ring.features & uring.Features.MIN_TIMEOUT
    ring._params = attrs.evolve(ring.params, features=uring.Features.EXT_ARG)
    ring.queue(Nop())
    with takes(0), pytest.raises(uring.UnsupportedError, match=r"MIN_TIMEOUT of Linux 6\.12"):
        ring.submit_and_wait(4, timeout=2 * LONG, min_timeout=LONG)
    assert ring.sq_ready() == 1


def test_closing_ends_a_wait_with_min_timeout(ring: Ring) -> None:
    """Another thread closes the ring: RingClosedError."""
    timer = threading.Timer(SHORT, ring.close)
    with takes(SHORT), started(timer), pytest.raises(uring.RingClosedError):
        ring.copy_cqes(wait_nr=4, min_timeout=LONG)


# ---- what a wait counts as ----


def blocked() -> int:
    """How many threads of the whole system are in iowait."""
    found = re.search(r"procs_blocked (\d+)", Path("/proc/stat").read_text(encoding="ascii"))
    assert found
    return int(found[1])


def fewest_blocked(enough: int) -> int:
    """The smallest number that is seen: for 0.3 s, and for 10 s while it is more than enough."""
    start, least = time.monotonic(), blocked()
    while (passed := time.monotonic() - start) < 0.3 or (least > enough and passed < 10):
        time.sleep(0.005)
        least = min(least, blocked())
    return least


@pytest.mark.slow
@pytest.mark.parametrize("enabled", [True, False])
def test_iowait_counts_only_where_it_is_enabled(
    enabled: bool, ring_refusal: str, pipe: tuple[int, int], until: Callable[..., None]
) -> None:
    """Twelve threads that wait are in iowait (procs_blocked in /proc/stat), or are not."""
    assert not ring_refusal
    rings = [Ring(2) for _ in range(12)]
    ends: list[int] = []

    def wait(ring: Ring) -> None:
        # Only who has something in flight can be in iowait.
        ring.queue(Read(pipe[0], bytearray(1), offset=-1))
        ends.append(ring.submit_and_wait(1, timeout=2 * LONG))

    threads = [threading.Thread(target=wait, args=[ring]) for ring in rings]
    for ring, thread in zip(rings, threads, strict=True):
        ring.iowait_enabled = enabled
        thread.start()
    until(lambda: all(lib.uring_waiters(ring._shim) for ring in rings))
    time.sleep(SHORT)  # from being counted to being asleep; were it too short, True would fail
    least = fewest_blocked(12 if enabled else 11)
    os.write(pipe[1], bytes(12))
    for ring, thread in zip(rings, threads, strict=True):
        thread.join()
        ring.close()
    assert (least >= 12) == enabled
    assert ends == [1] * 12


def test_iowait_needs_its_feature(ring: Ring) -> None:
    """Without FEAT_NO_IOWAIT only the way it is can be had; and it takes booleans."""
    ring._params = attrs.evolve(ring.params, features=uring.Features.EXT_ARG)
    with pytest.raises(uring.UnsupportedError, match=r"NO_IOWAIT of Linux 6\.15"):
        ring.iowait_enabled = False
    ring.iowait_enabled = True
    assert ring.iowait_enabled
    with pytest.raises(TypeError, match="iowait_enabled must be True or False"):
        ring.iowait_enabled = 0  # type: ignore[assignment]  # is refused


@pytest.mark.parametrize("flags", [*SHAPES, F.IOPOLL, F.SQPOLL])
def test_waits_work_without_iowait(flags: F, ring_refusal: str) -> None:
    """The kernel knows the flag on every kind of ring; waits end as ever."""
    assert not ring_refusal
    with Ring(8, flags=flags) as ring:
        ring.iowait_enabled = False
        assert not ring.iowait_enabled
        ring.queue_all([Nop()] * 2)
        ring.submit_and_wait(2, timeout=LONG)
        assert len(ring.copy_cqes()) == 2
        with takes(SHORT):
            assert not ring.copy_cqes(wait_nr=1, timeout=SHORT)
        assert len(ring.run([Nop()] * 40)) == 40


# ---- eventfd ----


def test_eventfd_is_signalled_only_where_it_is_enabled(ring: Ring) -> None:
    """Completions count in the eventfd until it is disabled, and again afterwards."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    ring._register(uring.RegisterOpcode.REGISTER_EVENTFD, ffi.new("int *", fd), 1)
    for enabled in (True, False, True):
        ring.eventfd_enabled = enabled
        assert ring.eventfd_enabled == enabled
        ring.queue(Nop())
        ring.submit_and_wait()
        ring.copy_cqe()
        if enabled:
            assert os.eventfd_read(fd) == 1
        else:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd)
    os.close(fd)


def test_eventfd_enabled_is_a_boolean(ring: Ring) -> None:
    """An int is TypeError; a closed ring RingClosedError."""
    with pytest.raises(TypeError, match="eventfd_enabled must be True or False"):
        ring.eventfd_enabled = 1  # type: ignore[assignment]  # is refused
    ring.close()
    with pytest.raises(uring.RingClosedError):
        ring.eventfd_enabled = False


# ---- the clock of the ring ----


@pytest.mark.parametrize("clock", [time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME])
def test_waits_end_in_time_on_either_clock(ring: Ring, clock: int) -> None:
    """Times are relative, so a ring whose clock is BOOTTIME waits as long as any other."""
    ring._register(uring.RegisterOpcode.REGISTER_CLOCK, ffi.new("uint32_t[4]", [clock, 0, 0, 0]), 0)
    with takes(SHORT):
        assert not ring.copy_cqes(wait_nr=1, timeout=SHORT)
    ring.queue(Nop())
    with takes(SHORT):
        ring.submit_and_wait(2, timeout=LONG, min_timeout=SHORT)


# ---- registered waits ----


@pytest.fixture(params=[None, 8192], ids=["kernel's memory", "ours"])
def waits(request: pytest.FixtureRequest, ring_refusal: str) -> Iterator[tuple[Ring, WaitRegion]]:
    """A ring with a region of the kernel's memory, and one with memory of ours."""
    assert not ring_refusal
    memory = request.param and mmap.mmap(-1, request.param)
    with Ring(8, flags=F.R_DISABLED) as ring:
        region = ring.register_wait_region(8, memory=memory)
        ring.enable()
        yield ring, region


def test_wait_region_fills_whole_pages(waits: tuple[Ring, WaitRegion]) -> None:
    """63 in a page; each is the same object each time, and says what it was set to."""
    ring, region = waits
    assert len(region) in {63, 127}
    assert region[-1] is region[len(region) - 1]
    region[3].set(timeout=2, min_timeout=1)
    assert repr(region[3]) == "WaitArg(index=3, timeout=2, min_timeout=1)"
    assert [arg.index for arg in region] == list(range(len(region)))
    with pytest.raises(IndexError):
        region[len(region)]
    assert not ring.closed


def test_registered_wait_lasts_as_long_as_it_says(waits: tuple[Ring, WaitRegion]) -> None:
    """Timeout, minimum time and completions end it, each as they do without a region."""
    ring, region = waits
    arg = region[len(region) - 1]
    arg.set(timeout=SHORT)
    with takes(SHORT):
        assert not ring.copy_cqes(wait_nr=1, timeout=arg)
    arg.set(timeout=LONG, min_timeout=SHORT)
    ring.queue(Nop())
    with takes(SHORT):
        ring.submit_and_wait(4, timeout=arg)
    arg.set(timeout=LONG)
    ring.queue_all([Nop()] * 3)
    with takes(0):
        ring.submit_and_wait(4, timeout=arg)
    assert len(ring.copy_cqes()) == 4
    arg.set()
    ring.queue(Nop())
    assert ring.submit_and_wait(timeout=arg) == 1


def test_registered_wait_goes_on_after_signals(waits: tuple[Ring, WaitRegion]) -> None:
    """Handlers run meanwhile, and the times do not start again."""
    ring, region = waits
    region[1].set(timeout=0.3)
    with alarms(0.02) as seen, takes(0.3, 3.0):
        assert not ring.copy_cqes(wait_nr=1, timeout=region[1])
    assert len(seen) > 3
    region[1].set(timeout=LONG, min_timeout=0.3)
    ring.queue(Nop())
    with alarms(0.02) as seen, takes(0.3, 3.0):
        ring.submit_and_wait(4, timeout=region[1])
    assert len(seen) > 3


def test_registered_wait_ends_when_the_ring_is_closed(waits: tuple[Ring, WaitRegion]) -> None:
    """Closing wakes it, and afterwards the region refuses to be changed."""
    ring, region = waits
    timer = threading.Timer(SHORT, ring.close)
    with takes(SHORT), started(timer), pytest.raises(uring.RingClosedError):
        ring.copy_cqes(wait_nr=1, timeout=region[0])
    ring.close()
    with pytest.raises(uring.RingClosedError):
        region[0].set(timeout=1)
    assert region[0].timeout is None


def test_registered_wait_takes_what_is_in_the_memory(ring_refusal: str) -> None:
    """The kernel reads the memory itself: what is written there by hand is how long it lasts."""
    assert not ring_refusal
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    with Ring(8, flags=F.R_DISABLED) as ring:
        region = ring.register_wait_region(memory=memory)
        ring.enable()
        region[1].set(timeout=1.5, min_timeout=0.25)
        assert struct.unpack("=qqIIQI28x", memory[64:128]) == (1, 500_000_000, 250_000, 1, 0, 0)
        memory[64:88] = struct.pack("=qqII", 0, 50_000_000, 0, uring.RegWaitFlags.TS)
        region[1]._times = None, None
        with takes(SHORT):
            assert not ring.copy_cqes(wait_nr=1, timeout=region[1])
    assert LAYOUTS["structs"]["io_uring_reg_wait"]["size"] == WAIT_SIZE
    fields = LAYOUTS["structs"]["io_uring_reg_wait"]["fields"]
    assert [fields[n]["offset"] for n in ("min_wait_usec", "flags", "sigmask")] == [16, 20, 24]


def test_wait_region_leaves_out_what_the_kernel_takes_for_another(ring_refusal: str) -> None:
    """The last item of the memory is not given away, for the kernel reads the first one instead."""
    assert not ring_refusal
    with Ring(8, flags=F.R_DISABLED) as ring:
        region = ring.register_wait_region()
        ring.enable()
        region[0].set(timeout=SHORT)
        assert lib.uring_region_set(ring._shim, 63, int(LONG * 1e9), 0) == 0
        with takes(SHORT):
            never = 2**63 - 1
            assert lib.uring_wait_registered(ring._shim, 0, 1, never, -1, 63) == -errno.ETIME


def test_wait_region_holds_its_memory_until_the_ring_is_closed(ring_refusal: str) -> None:
    """The mmap cannot be closed before, and can be afterwards; a refusal holds nothing."""
    assert not ring_refusal
    memory, other = mmap.mmap(-1, mmap.PAGESIZE), mmap.mmap(-1, mmap.PAGESIZE)
    ring = Ring(8, flags=F.R_DISABLED)
    region = ring.register_wait_region(memory=memory)
    with pytest.raises(uring.RegisterError) as refused:
        ring.register_wait_region(memory=other)
    assert refused.value.errno == errno.EBUSY
    del refused  # its traceback has the frames
    other.close()
    with pytest.raises(BufferError):
        memory.close()
    ring.close()
    memory.close()
    assert len(region) == 63


def test_wait_regions_are_unmapped_with_their_ring(ring_refusal: str) -> None:
    """Fifty rings with a region each leave no mapping and no descriptor."""
    assert not ring_refusal
    before = mappings_and_descriptors()
    for _ in range(50):
        with Ring(8, flags=F.R_DISABLED) as ring:
            ring.register_wait_region()
            assert mappings_and_descriptors() == (before[0] + 3, before[1] + 1)
    assert mappings_and_descriptors() == before


def test_wait_region_is_refused_where_it_cannot_be(ring: Ring) -> None:
    """An enabled ring, an IOPOLL ring, odd memory, and counts that are none."""
    with pytest.raises(uring.RegisterError, match=r"R_DISABLED ring before enable\(\)"):
        ring.register_wait_region()
    with Ring(8, flags=F.R_DISABLED | F.IOPOLL) as polled, pytest.raises(uring.UnsupportedError):
        polled.register_wait_region()
    with Ring(8, flags=F.R_DISABLED) as disabled:
        page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        for odd in (bytearray(64), memoryview(page)[64 : 64 + mmap.PAGESIZE], bytearray(0)):
            with pytest.raises(ValueError, match="whole pages"):
                disabled.register_wait_region(memory=odd)
        with pytest.raises(TypeError):
            disabled.register_wait_region(memory=bytes(mmap.PAGESIZE))
        for count in (0, -1, 2**16 + 1):
            with pytest.raises(ValueError, match="count must be in"):
                disabled.register_wait_region(count)
        assert len(disabled.register_wait_region(64)) == 127


def test_registered_wait_is_refused_where_it_cannot_be(waits: tuple[Ring, WaitRegion]) -> None:
    """Times that cannot be, another ring's region, and a minimum time besides."""
    ring, region = waits
    for times in ({"timeout": -1}, {"timeout": 1, "min_timeout": 2}, {"min_timeout": 1}):
        with pytest.raises(ValueError, match=r"seconds|min_timeout"):
            region[0].set(**times)
    with pytest.raises(ValueError, match="less than 4294 s"):
        region[0].set(timeout=2**32, min_timeout=5000)
    assert (region[0].timeout, region[0].min_timeout) == (None, None)
    with pytest.raises(ValueError, match="min_timeout stands in the registered arguments"):
        ring.copy_cqes(wait_nr=1, timeout=region[0], min_timeout=1)
    with Ring(8) as other, pytest.raises(ValueError, match="registered with another ring"):
        other.copy_cqes(wait_nr=1, timeout=region[0])
    beyond = len(region) + 1
    assert lib.uring_region_set(ring._shim, beyond, 0, 0) == -errno.EFAULT
    assert lib.uring_wait_registered(ring._shim, ring._had, 1, 0, -1, beyond) == -errno.EFAULT


# ---- room in the SQ ----


def fill(ring: Ring) -> None:
    """Publish as many NOPs as fit, and wake nobody."""
    for _ in range(ring.params.sq_entries - ring.sq.tail + ring.sq.head):
        place = ring._shim.sq_tail[0] & ring.sq.mask
        ring._shim.sqes[place * 64 : place * 64 + 64] = bytes(64)
        ring._shim.sq_tail[0] += 1


def test_sq_room_wakes_a_poller_that_sleeps(ring_refusal: str, until: Callable[..., None]) -> None:
    """The queue is full and its thread asleep: the wait wakes it, with and without a timeout."""
    assert not ring_refusal
    with Ring(8, flags=F.SQPOLL, sq_thread_idle_ms=1) as ring:
        assert ring.wait_sq_room() == 8
        for timeout in (None, LONG):
            until(lambda: ring.sq.flags & uring.SQRingFlags.NEED_WAKEUP)
            fill(ring)
            with takes(0):
                assert ring.wait_sq_room(timeout=timeout) == 8
            ring.copy_cqes(wait_nr=8)


def test_sq_room_lets_a_producer_outrun_the_poller(ring_refusal: str) -> None:
    """Whoever waits when the queue is full gets everything through."""
    assert not ring_refusal
    done = 0
    with Ring(4, cq_entries=1024, flags=F.SQPOLL) as ring:
        for _ in range(1000):
            try:
                ring.queue(Nop())
            except uring.SubmissionQueueFull:
                ring.submit()
                assert ring.wait_sq_room() >= 1
                ring.queue(Nop())
            ring.submit()
        while done < 1000:
            done += len(ring.copy_cqes(wait_nr=1, timeout=LONG))


def test_sq_room_is_for_pollers(ring: Ring) -> None:
    """Without SQPOLL it is refused, and so it is on a disabled and on a closed ring."""
    with pytest.raises(ValueError, match=r"submit\(\) instead"):
        ring.wait_sq_room()
    with (
        Ring(8, flags=F.SQPOLL | F.R_DISABLED) as disabled,
        pytest.raises(uring.EnterError, match="enable"),
    ):
        disabled.wait_sq_room()
    ring.close()
    with pytest.raises(uring.RingClosedError):
        ring.wait_sq_room()


@pytest.fixture
def stuck(
    missing_page: tuple[mmap.mmap, int, threading.Event],
    pipe: tuple[int, int],
    ring_refusal: str,
) -> Iterator[tuple[Ring, threading.Event]]:
    """Give a full ring whose poller is held up, and the event that lets it go on."""
    assert not ring_refusal
    _, page, released = missing_page
    with Ring(8, flags=F.SQPOLL) as ring:
        ring.queue(uring.SQE(uring.Opcode.READV, fd=pipe[0], addr=page, len=1))
        ring.queue_all([Nop()] * 7)
        ring.submit()
        yield ring, released
        released.set()


def test_sq_room_is_waited_for(stuck: tuple[Ring, threading.Event]) -> None:
    """With a timeout it ends with it, and without one with room; handlers run meanwhile."""
    ring, released = stuck
    with takes(SHORT):
        assert ring.wait_sq_room(timeout=SHORT) == 0
    timer = threading.Timer(0.3, released.set)
    with alarms(0.02) as seen, takes(0.3):
        timer.start()
        assert ring.wait_sq_room() == 8
    assert len(seen) > 3


def test_sq_room_is_waited_for_without_the_gil(stuck: tuple[Ring, threading.Event]) -> None:
    """Another thread runs while one is blocked in the kernel, and Ctrl-C ends the wait."""
    ring, _ = stuck
    timer = threading.Timer(SHORT, os.kill, (os.getpid(), signal.SIGINT))
    with takes(SHORT), started(timer), pytest.raises(KeyboardInterrupt):
        ring.wait_sq_room()


def test_closing_ends_a_wait_for_sq_room(
    stuck: tuple[Ring, threading.Event], until: Callable[..., None]
) -> None:
    """Who waits while the ring is closed by another thread gets RingClosedError."""
    ring, released = stuck
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            ring.wait_sq_room()
        except uring.RingClosedError as error:
            errors.append(error)

    waiter, closer = threading.Thread(target=wait), threading.Thread(target=ring.close)
    waiter.start()
    until(lambda: lib.uring_waiters(ring._shim) > 0)
    closer.start()
    until(lambda: ring.closed)
    released.set()
    closer.join(LONG)
    waiter.join(LONG)
    assert not waiter.is_alive()
    assert not closer.is_alive()
    assert len(errors) == 1
