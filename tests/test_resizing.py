"""Other sizes for the queues of a living ring: nothing is lost, nothing leaks, nobody is hurt."""

import contextlib
import errno
import gc
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uring
from uring import Nop, Read, Ring
from uring import SetupFlags as F
from uring._ffi import ffi, lib

DEFER = F.DEFER_TASKRUN | F.SINGLE_ISSUER
SHAPES = [F(0), F.NO_SQARRAY, F.SQE128, F.CQE32, F.SQE128 | F.CQE32 | F.NO_SQARRAY]
SIZES = [16, 4, 1, 2, 1024, 8, 32, 32, 8]


@pytest.fixture(params=SHAPES, ids=str)
def owned(request: pytest.FixtureRequest, ring_refusal: str) -> Iterator[Ring]:
    """A ring of eight entries that can be resized."""
    assert not ring_refusal
    with Ring(8, flags=DEFER | request.param) as ring:
        yield ring


def sizes(ring: Ring) -> tuple[int, int]:
    """What the ring says of itself, which is one thing."""
    params = ring.params.sq_entries, ring.params.cq_entries
    assert params == (ring.sq.entries, ring.cq.entries) == (ring.sq.mask + 1, ring.cq.mask + 1)
    return params


def numbers(ring: Ring, count: int) -> list[int]:
    """The user_data of so many completions."""
    taken: list[int] = []
    while len(taken) < count:
        taken += ring.copy_cqes(wait_nr=1, timeout=20).user_data.tolist()
    return taken


def publish(ring: Ring, count: int, first: int) -> None:
    """Place NOPs in the SQ that the kernel is not told of."""
    size = 128 if ring.flags & F.SQE128 else 64
    shim = ring._shim
    for number in range(first, first + count):
        place = (shim.sq_tail[0] & ring.sq.mask) * size
        sqe = bytes(32) + number.to_bytes(8, sys.byteorder)
        shim.sqes[place : place + size] = sqe.ljust(size, b"\0")
        shim.sq_tail[0] = (shim.sq_tail[0] + 1) & 0xFFFFFFFF


def mapped() -> int:
    """How many bytes of rings this process has mapped."""
    total = 0
    for line in Path("/proc/self/maps").read_text("ascii").splitlines():
        if line.endswith("[io_uring]"):
            start, end = line.split()[0].split("-")
            total += int(end, 16) - int(start, 16)
    return total


# ---- what it does ----


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_resize_maps_what_a_new_ring_maps(shape: F) -> None:
    """A ring of 4096 entries has as much memory mapped, however it came to have them."""
    others = mapped()
    with Ring(4096, flags=DEFER | shape):
        expected = mapped()
    with Ring(8, flags=DEFER | shape) as ring:
        ring.resize(4096)
        assert mapped() == expected > others


@pytest.mark.parametrize("entries", SIZES)
def test_resize_gives_the_sizes_that_were_asked_for(owned: Ring, entries: int) -> None:
    """Params, views and room follow; the ring works, and is full when it should be."""
    owned.resize(entries)
    least = 1 if owned.flags & F.NO_SQARRAY else 4
    assert sizes(owned) == (entries, max(2 * entries, least))
    for _ in range(3):
        queued = [owned.queue(Nop()) for _ in range(entries)]
        with pytest.raises(uring.SubmissionQueueFull):
            owned.queue(Nop())
        assert owned.submit_and_wait(entries) == entries
        assert numbers(owned, entries) == queued


@pytest.mark.parametrize(("asked", "granted"), [(8, 8), (9, 16), (100, 128), (65536, 65536)])
def test_resize_takes_cq_entries(owned: Ring, asked: int, granted: int) -> None:
    """They are rounded up to a power of two, as they are by Ring()."""
    owned.resize(8, cq_entries=asked)
    assert sizes(owned) == (8, granted)
    owned.queue_all([Nop()] * 8)
    owned.submit()
    owned.resize(8)
    assert sizes(owned) == (8, 16)
    assert len(numbers(owned, 8)) == 8


def test_resize_keeps_what_is_queued(owned: Ring) -> None:
    """Operations that Python holds are submitted afterwards, chains whole."""
    queued = owned.queue_all(uring.link(Nop(), Nop(), Nop()))
    owned.resize(4)
    queued.append(owned.queue(Nop()))
    owned.resize(16)
    assert owned.submit_and_wait(4) == 4
    assert [cqe.res for cqe in owned.peek_cqes()] == [0] * 4
    assert sorted(numbers(owned, 4)) == queued


@pytest.mark.parametrize("entries", [8, 16, 128])
def test_resize_keeps_completions(owned: Ring, entries: int) -> None:
    """What is in the queue, in the shim and in Python comes out afterwards, in order, once."""
    queued = owned.queue_all([Nop() for _ in range(8)])
    owned.submit()
    assert owned.copy_cqe().user_data == queued.pop(0)
    owned.peek_cqes()
    queued += owned.queue_all([Nop() for _ in range(5)])
    owned.submit()
    owned.resize(entries)
    assert owned.cq_ready() == 12
    assert [cqe.user_data for cqe in owned.peek_cqes()] == queued[: len(owned.peek_cqes())]
    assert numbers(owned, 12) == queued
    assert (owned.in_flight, owned.cq_ready()) == (0, 0)


@pytest.mark.parametrize("entries", [4, 8, 64])
def test_resize_keeps_what_the_kernel_has_not_taken(owned: Ring, entries: int) -> None:
    """SQEs that are in the queue, at any place in it, are executed afterwards."""
    for turn in range(5):
        publish(owned, 3, first=turn * 3)
        owned.resize(entries if turn % 2 else 8)
        assert owned.sq_ready() == 3
        assert owned.submit() == 3
        assert numbers(owned, 3) == [turn * 3, turn * 3 + 1, turn * 3 + 2]


@pytest.mark.parametrize("place", [2**32 - 2, 2**31 - 2, 2**32 - 8])
def test_resize_where_the_counters_wrap(ring_refusal: str, place: int) -> None:
    """Around the end of the 32 bits, where the kernel copies nothing, nothing is lost either."""
    assert not ring_refusal
    with Ring(8, flags=DEFER) as ring:
        # As after so many operations: the kernel keeps heads and tails of its own, and takes these
        # from the queue when it is resized.
        shim = ring._shim
        for counter in (shim.sq_head, shim.sq_tail):
            counter[0] = place
        publish(ring, 4, first=7)
        before = ring.sq.head, ring.sq.tail
        ring.resize(16)
        assert (ring.sq.head, ring.sq.tail) == before == (place, (place + 4) & 0xFFFFFFFF)
        found = [ring._placed_number((place + i) & 0xFFFFFFFF) for i in range(4)]
        assert found == [7, 8, 9, 10]
        for counter in (shim.sq_head, shim.sq_tail):
            counter[0] = 0


@pytest.mark.parametrize("head", [2**32 - 2, 2**31 - 2, 6])
def test_resize_where_the_counters_of_completions_wrap(ring_refusal: str, head: int) -> None:
    """The same for completions, which are in the queue and not in the shim."""
    assert not ring_refusal
    with Ring(8, flags=DEFER) as ring:
        shim = ring._shim
        for place in range(head, head + 5):
            cqe = struct.pack("=QiI", place - head, 0, 0)
            shim.cqes[place % 16 * 16 : place % 16 * 16 + 16] = cqe
        shim.cq_head[0] = shim.cq_taken = head
        shim.cq_tail[0] = (head + 5) & 0xFFFFFFFF
        assert ring.cq_ready() == 5
        ring.resize(32)
        assert ring.copy_cqes().user_data.tolist() == [0, 1, 2, 3, 4]
        assert ring.cq.head == ring.cq.tail == (head + 5) & 0xFFFFFFFF
        assert shim.cq_head[0] == ring.cq.head


def test_resize_keeps_operations_in_flight(owned: Ring) -> None:
    """Reads that wait complete in their buffers, which nobody else holds, after many sizes."""
    pipes = [os.pipe() for _ in range(4)]
    for reader, _ in pipes:
        owned.queue(Read(reader, bytearray(8), offset=-1))
    owned.submit()
    for entries in SIZES:
        owned.resize(entries)
        gc.collect()
        assert owned.in_flight == 4
    for index, (_, writer) in enumerate(pipes):
        os.write(writer, bytes([index]) * 8)
    owned.submit_and_wait(4)
    done = owned.copy_cqes()
    assert sorted(bytes(cqe.op.buffer)[0] for cqe in done if isinstance(cqe.op, Read)) == [
        *range(4)
    ]
    assert done.res.tolist() == [8] * 4
    for fd in [fd for pipe in pipes for fd in pipe]:
        os.close(fd)


@pytest.mark.slow
def test_resize_again_and_again_under_load(owned: Ring) -> None:
    """Random sizes between random work: every operation completes once, in the end."""
    chance, expected, seen = random.Random(6), set[int](), []
    refused: list[int | None] = []
    for _ in range(2000):
        for _ in range(chance.randrange(6)):
            if owned.sq_ready() < owned.params.sq_entries:
                expected.add(owned.queue(Nop()))
        if chance.random() < 0.6:
            owned.submit()
        if chance.random() < 0.4:
            seen += owned.copy_cqes(chance.choice([None, 1, 3])).user_data.tolist()
        try:
            owned.resize(1 << chance.randrange(8), cq_entries=256)
        except uring.RegisterError as error:
            refused.append(error.errno)
        sizes(owned)
    owned.submit()
    while owned.in_flight:
        seen += owned.copy_cqes(wait_nr=1).user_data.tolist()
    assert set(refused) == {errno.EOVERFLOW}
    assert (sorted(seen), len(seen)) == (sorted(expected), len(expected))


def test_resize_keeps_completions_that_overflowed(ring_refusal: str) -> None:
    """What waits in the kernel because the CQ was full comes after all."""
    assert not ring_refusal
    with Ring(4, flags=DEFER) as ring:
        queued = []
        for _ in range(5):
            queued += ring.queue_all([Nop() for _ in range(4)])
            ring.submit()
        assert ring.sq.flags & uring.SQRingFlags.CQ_OVERFLOW
        ring.resize(32)
        assert numbers(ring, 20) == queued


def test_resize_leaves_batches_and_the_switches_alone(owned: Ring) -> None:
    """A batch that was run before runs again; the eventfd stays off, iowait too."""
    batch = uring.Batch([Nop()] * 100)
    owned.eventfd_enabled = owned.iowait_enabled = False
    for entries in SIZES:
        assert owned.run(batch).res.tolist() == [0] * 100
        owned.resize(entries)
        assert not owned.eventfd_enabled
    assert owned.run(batch).res.tolist() == [0] * 100


def test_resize_says_nothing_of_task_work(owned: Ring) -> None:
    """The flags that the kernel sets in a new queue do not stay: each look would enter it."""
    owned.resize(16)
    assert owned.sq.flags == 0


def test_resize_leaks_nothing(owned: Ring) -> None:
    """Two hundred times, and as many mappings and descriptors as before."""

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return maps.count("[io_uring]"), len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    for turn in range(200):
        owned.resize(SIZES[turn % len(SIZES)])
    assert held() == before


def test_resize_by_a_disabled_ring(ring_refusal: str) -> None:
    """A ring may be resized before it is enabled."""
    assert not ring_refusal
    with Ring(8, flags=DEFER | F.R_DISABLED) as ring:
        ring.queue(Nop())
        ring.resize(32)
        ring.enable()
        assert ring.submit_and_wait() == 1


# ---- what it refuses ----


def refuses(
    ring: Ring, entries: int, match: str, number: int, cq_entries: int | None = None
) -> None:
    """A RegisterError, and nothing has changed."""
    before = sizes(ring), ring.sq_ready(), ring.cq_ready(), ring.in_flight
    with pytest.raises(uring.RegisterError, match=match) as refused:
        ring.resize(entries, cq_entries=cq_entries)
    assert refused.value.errno == number
    assert (sizes(ring), ring.sq_ready(), ring.cq_ready(), ring.in_flight) == before


def test_resize_refuses_sizes_for_what_is_there(owned: Ring) -> None:
    """Queued, placed and unread: each must fit; all of it comes out afterwards."""
    owned.queue_all([Nop(user_data=n) for n in range(5)])
    refuses(owned, 4, "5 operations are queued", errno.EOVERFLOW)
    owned.submit()
    refuses(owned, 2, "more completions are ready than 4 entries", errno.EOVERFLOW)
    owned.peek_cqes()
    refuses(owned, 4, "more completions are ready than 4", errno.EOVERFLOW, 4)
    assert owned.copy_cqe().user_data == 0
    owned.resize(4, cq_entries=4)
    assert sizes(owned) == (4, 4)
    publish(owned, 3, first=5)
    refuses(owned, 2, "3 operations are queued", errno.EOVERFLOW)
    owned.queue(Nop(user_data=8))
    owned.submit()
    assert numbers(owned, 8) == [*range(1, 9)]


def test_resize_that_the_kernel_refuses_changes_nothing(owned: Ring) -> None:
    """The kernel's own EOVERFLOW and EINVAL, as the shim hands them on."""
    params = ffi.new("struct uring_params *")
    params.flags, params.sq_entries, params.cq_entries = F.CQSIZE, 65536, 65536
    owned.queue_all([Nop()] * 8)
    owned.submit()
    assert lib.uring_resize(owned._shim, owned._had, params) == -errno.EINVAL
    params.sq_entries, params.cq_entries = 4, 4
    assert lib.uring_resize(owned._shim, owned._had, params) == -errno.EOVERFLOW
    assert sizes(owned) == (8, 16)
    assert len(numbers(owned, 8)) == 8


@pytest.mark.parametrize("entries", [0, 3, 32769, -1, True, "8", 8.0])
def test_resize_refuses_what_is_no_size(owned: Ring, entries: Any) -> None:
    """As Ring() does."""
    with pytest.raises((ValueError, TypeError), match="entries must be"):
        owned.resize(entries)
    with pytest.raises((ValueError, TypeError), match="cq_entries must be"):
        owned.resize(8, cq_entries=entries if entries != 32769 else 65537)


@pytest.mark.parametrize("flags", [F(0), F.SQPOLL, F.SINGLE_ISSUER | F.COOP_TASKRUN, F.IOPOLL])
def test_resize_is_for_rings_with_defer_taskrun(flags: F, ring_refusal: str) -> None:
    """Others are refused by us, and would be by the kernel."""
    assert not ring_refusal
    with Ring(8, flags=flags) as ring:
        with pytest.raises(uring.UnsupportedError, match="DEFER_TASKRUN"):
            ring.resize(16)
        params = ffi.new("struct uring_params *")
        params.sq_entries = 16
        opcode = uring.RegisterOpcode.REGISTER_RESIZE_RINGS
        assert lib.uring_register(ring._shim, opcode, params, 1) == -errno.EINVAL


@pytest.mark.parametrize("flags", [F.NO_MMAP, F.CQE_MIXED])
def test_shapes_that_keep_their_size(flags: F, ring_refusal: str) -> None:
    """Rings in memory of ours, or with CQEs of two sizes, say so, and work on."""
    assert not ring_refusal
    with Ring(8, flags=flags | F.SINGLE_ISSUER | F.DEFER_TASKRUN) as ring:
        with pytest.raises(uring.UnsupportedError, match="keep their size"):
            ring.resize(16)
        assert list(ring.run([uring.Nop()] * 9).res) == [0] * 9


def test_resize_belongs_to_the_owner(owned: Ring) -> None:
    """Another thread gets WrongThreadError; a closed ring RingClosedError."""
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            owned.resize(16)
        except uring.WrongThreadError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert (len(errors), sizes(owned)) == (1, (8, 16))
    owned.close()
    with pytest.raises(uring.RingClosedError):
        owned.resize(16)


def test_resize_while_a_batch_runs_is_refused(owned: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a handler in the middle of a run: EBUSY, by Python and by the shim."""
    found: list[int] = []
    read, write = os.pipe()
    batch = [Read(read, bytearray(1), offset=-1)]

    def resize_then_write(shim: Any, run: Any, end_ns: int) -> int:
        with pytest.raises(uring.RegisterError) as refused:
            owned.resize(16)
        found.append(refused.value.errno or 0)
        params = ffi.new("struct uring_params *")
        params.flags, params.sq_entries, params.cq_entries = F.CQSIZE, 16, 32
        found.append(-lib.uring_resize(owned._shim, owned._had, params))
        os.write(write, b"x")
        return waits(shim, run, end_ns)

    waits: Callable[..., int] = lib.uring_run_wait

    class Lib:
        uring_run_wait = staticmethod(resize_then_write)

        def __getattr__(self, name: str) -> object:
            return getattr(lib, name)

    monkeypatch.setattr("uring._running.lib", Lib())
    assert owned.run(batch).res.tolist() == [1]
    assert found == [errno.EBUSY, errno.EBUSY]
    owned.resize(16)
    os.close(read)
    os.close(write)


# ---- other threads, and the end of memory ----


@pytest.mark.slow
def test_resize_while_other_threads_look(ring_refusal: str) -> None:
    """Views and repr of other threads find one of the sizes, and never a ring that is gone."""
    assert not ring_refusal
    found: set[tuple[int, int]] = set()
    errors: list[BaseException] = []
    stop = threading.Event()
    with Ring(8, flags=DEFER) as ring:

        def look() -> None:
            try:
                while not stop.is_set():
                    counters = ring._counters()
                    found.add((counters.sq_mask + 1, counters.cq_mask + 1))
                    assert counters.sq_entries == counters.sq_mask + 1
                    assert "Ring fd" in repr(ring)
                    assert ring.cq_ready() <= 8
            except BaseException as error:  # noqa: BLE001 - to be shown
                errors.append(error)

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(1500):
            ring.resize(8 if turn % 2 else 64)
            ring.queue(Nop())
            assert ring.submit_and_wait() == 1
            ring.copy_cqe()
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert found == {(8, 16), (64, 128)}


def test_resize_waits_for_who_is_inside(
    missing_page: tuple[mmap.mmap, int, threading.Event],
    ring_refusal: str,
    until: Callable[..., None],
) -> None:
    """A thread that is copying out of the queue is not left without it."""
    assert not ring_refusal
    memory, _, released = missing_page
    found: list[int] = []
    with Ring(8, flags=DEFER) as ring:
        ring.queue_all([Nop()] * 4)
        ring.submit()
        room = ffi.from_buffer("char[]", memory)
        copying = threading.Thread(
            target=lambda: found.append(lib.uring_peek(ring._shim, ring._had, 4, room))
        )
        copying.start()
        stat = Path(f"/proc/self/task/{copying.native_id}/wchan")
        until(lambda: "userfault" in stat.read_text(encoding="ascii"))
        start = time.monotonic()
        threading.Timer(0.2, released.set).start()
        ring.resize(64)
        assert time.monotonic() - start >= 0.2
        copying.join()
        assert found == [4]
        assert len(ring.copy_cqes()) == 4


@pytest.mark.slow
def test_resize_from_signal_handlers(ring_refusal: str) -> None:
    """Handlers that resize, queue, submit and copy out, at any point of the same: none is lost."""
    assert not ring_refusal
    chance, seen, queued, errors = random.Random(7), list[int](), list[int](), set[int | None]()

    def work(ring: Ring) -> None:
        if ring.sq_ready() < min(4, ring.params.sq_entries):
            with contextlib.suppress(uring.SubmissionQueueFull):
                queued.append(ring.queue(Nop()))
        if chance.random() < 0.6:
            ring.submit()
        seen.extend(ring.copy_cqes().user_data.tolist())
        try:
            ring.resize(1 << chance.randrange(2, 8))
        except uring.RegisterError as error:
            errors.add(error.errno)

    with Ring(8, flags=DEFER) as ring:
        turns, entered = list[int](), list[int]()

        def handle(_number: int, _frame: object) -> None:
            turns.append(0)
            if len(entered) < 8:  # or it never ends, where this takes longer than the interval
                entered.append(0)
                work(ring)
                entered.pop()

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        try:
            while len(turns) < 500:
                work(ring)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert sizes(ring)
        ring.submit()
        while ring.in_flight:
            seen.extend(ring.copy_cqes(wait_nr=1, timeout=20).user_data.tolist())
    assert sorted(seen) == sorted(queued)
    assert errors <= {errno.EOVERFLOW}


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a process of its own, which can import what is in the folder `faults`."""
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(program)]
    faults = Path(__file__).parent / "faults"
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=faults
    )


@pytest.mark.parametrize("offset", [0x10000000, 0], ids=["SQEs", "rings"])
def test_resize_without_memory_closes_the_ring(ring_refusal: str, offset: int) -> None:
    """Either mapping fails: RegisterError, a closed ring, no descriptor left, and memory kept."""
    assert not ring_refusal
    ended = run(
        f"""
        import errno, gc, os, sys, warnings, weakref
        import uring
        from fault_filters import MMAP, refuse
        from uring import SetupFlags as F

        warnings.simplefilter("always")
        fds = len(os.listdir("/proc/self/fd"))
        ring = uring.Ring(8, flags=F.DEFER_TASKRUN | F.SINGLE_ISSUER)
        read, write = os.pipe()

        class Memory(bytearray):
            pass

        memory = Memory(8)
        alive = weakref.ref(memory)
        ring.queue(uring.Read(read, memory, offset=-1))
        ring.submit()
        del memory
        refuse(MMAP, errno.ENOMEM, {{4: ring.fd, 5: {offset}}})
        try:
            ring.resize(32768)
        except uring.RegisterError as error:
            assert error.errno == errno.ENOTRECOVERABLE, error
        else:
            sys.exit("it could be mapped")
        assert ring.closed and ring.fd == -1
        assert len(os.listdir("/proc/self/fd")) == fds + 2
        for attempt in (ring.submit, ring.copy_cqes, ring.cq_ready, lambda: ring.resize(8)):
            try:
                attempt()
            except uring.RingClosedError:
                continue
            sys.exit("it is open")
        ring.close()
        del ring
        gc.collect()
        assert alive() is not None
        print("held")
        """
    )
    assert (ended.returncode, ended.stdout) == (0, "held\n"), ended.stderr
    assert "1 operations of a ring could not be taken back" in ended.stderr
