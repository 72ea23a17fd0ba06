"""
Every shape of ring: one set of tests, on each shape that io_uring_setup(2) knows.

A shape that the kernel lacks is not passed over: its tests then assert that it is refused, with
UnsupportedSetupError. IOPOLL rings take next to nothing, and have tests of their own at the end.
"""

import contextlib
import errno
import gc
import mmap
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import uring
from uring import (
    SQE,
    AsyncCancel,
    Batch,
    CQEFlags,
    Fsync,
    Nop,
    NopFlags,
    Opcode,
    PollFlags,
    Read,
    ReadMany,
    Ring,
    SetupFlags,
    SQEFlags,
    SQRingFlags,
    SubmissionQueueFull,
    Timeout,
    Write,
    WriteMany,
    WrongThreadError,
    link,
)
from uring._ffi import ffi, lib
from uring.operations._base import operation

F = SetupFlags
OWNED = F.SINGLE_ISSUER | F.REGISTERED_FD_ONLY
DEFERRED = F.DEFER_TASKRUN | F.SINGLE_ISSUER
REGISTERED = F.NO_MMAP | F.REGISTERED_FD_ONLY

SHAPES = [
    F(0),
    F.CLAMP,
    F.CQSIZE,
    F.ATTACH_WQ,
    F.SUBMIT_ALL,
    F.COOP_TASKRUN,
    F.COOP_TASKRUN | F.TASKRUN_FLAG,
    F.SINGLE_ISSUER,
    F.R_DISABLED,
    F.R_DISABLED | DEFERRED | F.CQE_MIXED,
    DEFERRED,
    DEFERRED | F.TASKRUN_FLAG | F.CQE32,
    DEFERRED | F.NO_SQARRAY | F.SUBMIT_ALL,
    F.NO_SQARRAY,
    F.SQE128,
    F.CQE32,
    F.SQE128 | F.CQE32,
    F.CQE_MIXED,
    F.CQE_MIXED | F.SQE128 | F.NO_SQARRAY,
    F.CQE_MIXED | DEFERRED,
    F.CQE_MIXED | F.SQPOLL,
    F.NO_MMAP,
    F.NO_MMAP | F.NO_SQARRAY | F.CQE_MIXED,
    F.NO_MMAP | F.SQE128 | F.CQE32,
    F.NO_MMAP | F.SQPOLL,
    REGISTERED,
    REGISTERED | F.CQE_MIXED | F.SQE128 | DEFERRED,
    REGISTERED | F.SQPOLL,
    REGISTERED | F.R_DISABLED,
    F.SQPOLL,
    F.SQPOLL | F.SINGLE_ISSUER,
    F.SQPOLL | F.NO_SQARRAY | F.SQE128,
    F.SQPOLL | F.SQ_AFF,
]


@attrs.frozen
class Shape:
    """Setup flags, and what else such a ring needs."""

    flags: SetupFlags
    host: Ring | None = None

    def ring(self, entries: int = 4) -> Ring:
        """Make such a ring, ready for use."""
        arguments: dict[str, Any] = {}
        if self.flags & F.CQSIZE:
            arguments["cq_entries"] = 2 * entries
        if self.flags & F.ATTACH_WQ:
            arguments["attach_wq"] = self.host
        if self.flags & F.SQ_AFF:
            arguments["sq_thread_cpu"] = min(os.sched_getaffinity(0))
        if self.flags & F.SQPOLL:
            arguments["sq_thread_idle_ms"] = 20  # so that it falls asleep in the middle, too
        by_argument = F.CQSIZE | F.ATTACH_WQ | F.SQ_AFF
        ring = Ring(entries, flags=self.flags & ~by_argument, **arguments)
        if self.flags & F.R_DISABLED:
            ring.enable()
        return ring

    @property
    def is_owned(self) -> bool:
        """Whether one thread alone may use it."""
        return bool(self.flags & OWNED)


def named(flags: SetupFlags) -> str:
    """A name for a test's id."""
    return flags.name or "plain"


@pytest.fixture(params=SHAPES, ids=named)
def shape(request: pytest.FixtureRequest, ring: Ring) -> Shape:
    """Give each shape in turn; one that the kernel lacks must be refused as such."""
    flags: SetupFlags = request.param
    if not uring.probe().supports(flags):
        with pytest.raises(uring.UnsupportedSetupError, match="which needs Linux"):
            Shape(flags, ring).ring()
        pytest.xfail(f"this kernel lacks {flags!r}, and says so")
    return Shape(flags, ring)


@pytest.fixture
def shaped(shape: Shape) -> Iterator[Ring]:
    """Give a ring of four entries, of each shape."""
    with shape.ring() as made:
        yield made
        assert made.in_flight == 0


def submit_each(ring: Ring, ops: list[Any]) -> None:
    """Queue and submit any number of operations, as there is room."""
    for op in ops:
        while True:
            try:
                ring.queue(op)
            except SubmissionQueueFull:
                ring.submit()
            else:
                break
    ring.submit()


def collect(ring: Ring, count: int) -> list[uring.CQE]:
    """Copy out exactly so many completions."""
    found: list[uring.CQE] = []
    while len(found) < count:
        taken = ring.copy_cqes(wait_nr=1, timeout=10)
        assert len(taken) > 0, f"{len(found)} of {count} came"
        found += taken
    assert len(found) == count
    return found


# ---- what every shape does ----


def test_nop_moves_every_counter_by_one(shape: Shape) -> None:
    """One NOP takes each counter from 0 to 1, and the shape is as asked."""
    with shape.ring() as ring:
        assert ring.flags & shape.flags == shape.flags
        assert (ring.sq.entries, ring.cq.entries) == (4, 8)
        assert (ring.sq.mask, ring.cq.mask) == (3, 7)
        assert (ring.sq.sqe_head, ring.sq.sqe_tail, ring.sq.tail) == (0, 0, 0)
        assert ring.queue(Nop(), user_data=0xAAAAAAAA) == 0xAAAAAAAA
        assert (ring.sq.sqe_head, ring.sq.sqe_tail, ring.sq.tail) == (0, 1, 0)
        assert (ring.sq_ready(), ring.cq_ready(), ring.in_flight) == (1, 0, 1)
        assert ring.submit_and_wait(1) == 1
        assert (ring.sq.head, ring.sq.tail, ring.cq.tail) == (1, 1, 1)
        assert (ring.sq_ready(), ring.cq_ready(), ring.in_flight) == (0, 1, 1)
        cqe = ring.copy_cqe()
        assert (cqe.user_data, cqe.res, cqe.flags) == (0xAAAAAAAA, 0, 0)
        assert cqe.big_cqe == ((0, 0) if shape.flags & F.CQE32 else None)
        assert (ring.cq.head, ring.cq_ready(), ring.in_flight) == (1, 0, 0)
        assert (ring.sq.dropped, ring.cq.overflow) == (0, 0)


def test_single_operations_read_and_write(shaped: Ring, tmp_path: Path) -> None:
    """What is written to a file, is durable, and is read again is the same."""
    with (tmp_path / "file").open("w+b") as file:
        buffer = bytearray(10)
        for op in (Write(file, b"0123456789", 0), Fsync(file), Read(file, buffer, 0)):
            shaped.queue(op)
            assert shaped.submit_and_wait() == 1
            cqe = shaped.copy_cqe(timeout=10)
            assert cqe.op is op
            assert cqe.result() in {10, 0}
        assert buffer == b"0123456789"
        shaped.queue(Read(-1, buffer, 0))
        shaped.submit_and_wait()
        assert shaped.copy_cqe().res == -errno.EBADF


def test_pipe_is_read_after_the_read_was_submitted(shaped: Ring, pipe: tuple[int, int]) -> None:
    """A read waits for the bytes that come later, and a wait with a timeout returns before."""
    buffer = bytearray(4)
    shaped.queue(Read(pipe[0], buffer))
    assert shaped.submit() == 1
    assert not shaped.copy_cqes(wait_nr=1, timeout=0.01)
    with pytest.raises(TimeoutError):
        shaped.copy_cqe(timeout=0.01)
    os.write(pipe[1], b"abcd")
    assert shaped.copy_cqe(timeout=10).result() == 4
    assert buffer == b"abcd"


def test_batch_reads_what_a_batch_wrote(shaped: Ring, tmp_path: Path) -> None:
    """`run()` of more parts than fit in any queue gives each its result, in order."""
    count, size = 100, 512
    source = os.urandom(count * size)
    with (tmp_path / "file").open("w+b") as file:
        offsets = range(0, count * size, size)
        done = shaped.run(WriteMany(file, source, offsets, size), timeout=30)
        assert done.res.tolist() == [size] * count
        target = bytearray(count * size)
        done = shaped.run(ReadMany(file, target, offsets), timeout=30)
        assert done.res.tolist() == [size] * count
        assert target == source


def test_run_keeps_the_order_and_what_others_wait_for(
    shaped: Ring, pipe: tuple[int, int], shape: Shape
) -> None:
    """A batch of several kinds runs beside an operation in flight, twice, and gives its numbers."""
    buffer = bytearray(1)
    waiting = shaped.queue(Read(pipe[0], buffer))
    shaped.submit()
    ops = [SQE(Opcode.NOP, op_flags=NopFlags.INJECT_RESULT, len=i) for i in range(50)]
    if shape.flags & (F.CQE32 | F.CQE_MIXED):
        ops[::3] = [nop32(i) for i in range(0, 50, 3)]
    chosen = [attrs.evolve(op, user_data=7 + i) for i, op in enumerate(ops)]
    for batch in (Batch(ops), ops, Batch(chosen)):
        done = shaped.run(batch, timeout=30)
        if not shape.flags & (F.CQE32 | F.CQE_MIXED):
            assert done.res.tolist() == list(range(50))
            continue
        for i, cqe in enumerate(done):
            assert cqe.res == (0 if i % 3 == 0 else i)
            plain = (0, 0) if shape.flags & F.CQE32 else None
            assert cqe.big_cqe == ((i, i + 1) if i % 3 == 0 else plain)
    os.write(pipe[1], b"x")
    assert shaped.copy_cqe(timeout=10).user_data == waiting


def test_chain_runs_in_order_and_ends_at_a_failure(shaped: Ring, tmp_path: Path) -> None:
    """What is linked is done one after the other; behind a failure all is ECANCELED."""
    with (tmp_path / "file").open("w+b") as file:
        buffer = bytearray(3)
        shaped.queue_all(link(Write(file, b"abc", 0), Fsync(file), Read(file, buffer, 0)))
        shaped.submit_and_wait(3)
        assert [cqe.res for cqe in collect(shaped, 3)] == [3, 0, 3]
        assert buffer == b"abc"
    shaped.queue_all(link(Nop(), Read(-1, buffer), Nop(), Nop()))
    shaped.submit_and_wait(4)
    found = collect(shaped, 4)
    assert [c.res for c in found] == [0, -errno.EBADF, -errno.ECANCELED, -errno.ECANCELED]


def test_drain_holds_back_what_comes_after(shaped: Ring, pipe: tuple[int, int]) -> None:
    """A drained NOP, and the one behind it, complete only when the read before them has."""
    buffer = bytearray(1)
    shaped.queue(Read(pipe[0], buffer, user_data=1))
    shaped.queue(Nop(user_data=2).drained())
    shaped.queue(Nop(user_data=3))
    shaped.submit()
    assert not shaped.copy_cqes(wait_nr=1, timeout=0.02)
    os.write(pipe[1], b"x")
    assert [cqe.user_data for cqe in collect(shaped, 3)] == [1, 2, 3]


def test_cancel_ends_a_pending_read(shaped: Ring, pipe: tuple[int, int]) -> None:
    """AsyncCancel gives 0, and its target ECANCELED."""
    shaped.queue(Read(pipe[0], bytearray(1), user_data=5))
    shaped.submit()
    shaped.queue(AsyncCancel(5, user_data=6))
    shaped.submit()
    assert {c.user_data: c.res for c in collect(shaped, 2)} == {5: -errno.ECANCELED, 6: 0}


def test_timeout_expires(shaped: Ring) -> None:
    """A Timeout of a millisecond ends with ETIME, not before its time."""
    start = time.monotonic()
    shaped.queue(Timeout(0.001))
    shaped.submit_and_wait()
    assert shaped.copy_cqe(timeout=10).res == -errno.ETIME
    assert time.monotonic() - start >= 0.001


def test_more_completions_than_entries_are_all_kept(
    shaped: Ring, until: Callable[..., None]
) -> None:
    """Forty NOPs in a queue of eight overflow it, and all forty are copied out, each once."""
    submit_each(shaped, [Nop(user_data=n) for n in range(1, 41)])
    if not shaped.flags & F.DEFER_TASKRUN:  # which posts nothing before it is asked
        until(lambda: SQRingFlags.CQ_OVERFLOW in shaped.sq.flags)
    assert shaped.cq_ready() <= 8
    assert sorted(cqe.user_data for cqe in collect(shaped, 40)) == list(range(1, 41))
    assert (shaped.cq_ready(), shaped.cq.overflow, shaped.in_flight) == (0, 0, 0)


def test_both_queues_wrap_thousands_of_times(shaped: Ring) -> None:
    """Two thousand NOPs on four entries come back in their order."""
    number = 0
    while number < 2000:
        count = number % 4 + 1
        submit_each(shaped, [Nop(user_data=number + i) for i in range(count)])
        assert [c.user_data for c in collect(shaped, count)] == list(range(number, number + count))
        number += count


def test_peek_leaves_and_advance_consumes(shaped: Ring) -> None:
    """Peeked completions are there still, in order, until they are advanced over."""
    for start in range(0, 30, 3):
        for n in range(start, start + 3):
            shaped.queue(Nop(user_data=n))
        shaped.submit_and_wait(3)
        for _ in range(2):
            assert [c.user_data for c in shaped.peek_cqes()] == [start, start + 1, start + 2]
        assert [c.user_data for c in shaped.peek_cqes(1)] == [start]
        assert shaped.cq_ready() == shaped.in_flight == 3
        shaped.cq_advance(1)
        assert shaped.copy_cqe().user_data == start + 1
        with pytest.raises(ValueError, match="1 completions are ready, not 2"):
            shaped.cq_advance(2)
        shaped.cq_advance(1)
        assert not shaped.peek_cqes()


def test_wait_for_a_full_queue_ends_when_it_is_full(shaped: Ring) -> None:
    """Waiting for eight, or for more than the queue holds, ends with eight, and not with seven."""
    for wait_nr in (8, 100):
        submit_each(shaped, [Nop() for _ in range(7)])
        assert shaped.submit_and_wait(wait_nr, timeout=0.01) == 0
        shaped.queue(Nop())
        shaped.submit_and_wait(wait_nr)
        assert shaped.cq_ready() == 8
        assert len(shaped.copy_cqes()) == 8


def test_multishot_poll_posts_again_and_again(shaped: Ring, pipe: tuple[int, int]) -> None:
    """Each byte is one more completion with MORE, until it is cancelled."""
    events = select.POLLIN if sys.byteorder == "little" else select.POLLIN << 16
    poll = SQE(Opcode.POLL_ADD, fd=pipe[0], len=PollFlags.ADD_MULTI, op_flags=events, user_data=9)
    shaped.queue(poll)
    shaped.submit()
    for _ in range(10):
        os.write(pipe[1], b"x")
        cqe = shaped.copy_cqe(timeout=10)
        assert (cqe.user_data, cqe.more, cqe.res & select.POLLIN) == (9, True, select.POLLIN)
        os.read(pipe[0], 1)
    assert shaped.in_flight == 1
    shaped.queue(AsyncCancel(9, user_data=10))
    shaped.submit()
    assert {(c.user_data, c.more, c.res) for c in collect(shaped, 2)} == {
        (9, False, -errno.ECANCELED),
        (10, False, 0),
    }


def test_close_takes_everything_back(
    shape: Shape, pipe: tuple[int, int], descriptors: Callable[[], set[str]]
) -> None:
    """With reads pending and one queued, close() is a barrier: later bytes stay in the pipe."""
    before = descriptors()
    ring = shape.ring()
    buffers = [bytearray(1) for _ in range(3)]
    for buffer in buffers[:2]:
        ring.queue(Read(pipe[0], buffer))
    ring.submit()
    ring.queue(Read(pipe[0], buffers[2]))
    assert ring.in_flight == 3
    ring.close()
    assert (ring.closed, ring.fd, ring.in_flight) == (True, -1, 0)
    ring.close()
    for buffer in buffers:
        buffer.append(0)  # BufferError while it is lent
    os.write(pipe[1], b"xyz")
    assert os.read(pipe[0], 10) == b"xyz"
    assert descriptors() == before
    with pytest.raises(uring.RingClosedError):
        ring.submit()


def test_dropped_ring_warns_and_leaves_nothing(
    shape: Shape, pipe: tuple[int, int], descriptors: Callable[[], set[str]]
) -> None:
    """A ring dropped with a read in flight gives back its descriptor and the buffer."""
    before = descriptors()
    buffer = bytearray(1)
    ring: Ring | None = shape.ring()
    assert ring is not None
    gone = weakref.ref(ring)
    ring.queue(Read(pipe[0], buffer))
    ring.submit()
    with pytest.warns(ResourceWarning, match="dropped without close"):  # noqa: PT031 - both drop it
        ring = None
        gc.collect()
    assert gone() is None
    buffer.append(0)
    os.write(pipe[1], b"x")
    assert os.read(pipe[0], 10) == b"x"
    assert descriptors() == before


def test_another_thread_wakes_a_waiter_or_is_refused(shaped: Ring, shape: Shape) -> None:
    """One thread waits, another submits; where a ring belongs to its thread, others are told so."""
    errors: list[Exception] = []

    def intrude() -> None:
        try:
            shaped.queue(Nop(user_data=77))
            shaped.submit()
        except WrongThreadError as error:
            errors.append(error)

    thread = threading.Thread(target=intrude)
    if not shape.is_owned:
        thread.start()
        assert shaped.copy_cqe(timeout=10).user_data == 77
        thread.join()
        assert not errors
        return
    thread.start()
    thread.join()
    (error,) = errors
    assert str((shape.flags & OWNED).name) in str(error)
    assert shaped.in_flight == 0


def test_many_threads_share_a_ring(
    shaped: Ring, shape: Shape, in_thread: Callable[..., None]
) -> None:
    """Two threads run batches, two wait for operations of their own; where it may be, all end."""
    if shape.is_owned:
        with pytest.raises(WrongThreadError):
            in_thread(shaped.submit)
        return
    taken: list[int] = []
    lock = threading.Lock()
    done: list[int] = []

    def run() -> None:
        batch = Batch([Nop()] * 64)
        for _ in range(20):
            assert shaped.run(batch, timeout=30).res.tolist() == [0] * 64
        done.append(1)

    def take() -> None:
        while True:
            with lock:
                if len(taken) >= 400:
                    return
            found = [c.user_data for c in shaped.copy_cqes(wait_nr=1, timeout=0.05)]
            with lock:
                taken.extend(found)

    threads = [threading.Thread(target=target) for target in (run, run, take, take)]
    for thread in threads:
        thread.start()
    submit_each(shaped, [Nop(user_data=n) for n in range(400)])
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert (sorted(taken), done) == (list(range(400)), [1, 1])


FORK = """
import os, sys, uring
from uring import SetupFlags
flags = SetupFlags(int(sys.argv[1]))
def made():
    ring = uring.Ring(4, flags=flags)
    if flags & SetupFlags.R_DISABLED:
        ring.enable()
    return ring
ring = made()
if sys.argv[2] == "registered":
    ring.register_ring_fd()
read, write = os.pipe()
buffer = bytearray(1)
ring.queue(uring.Read(read, buffer))
ring.submit()
child = os.fork()
if not child:
    try:
        ring.queue(uring.Nop())
    except uring.RingClosedError as error:
        assert "fork" in str(error), error
    else:
        os._exit(1)
    ring.close()
    with made() as own:
        own.queue(uring.Nop())
        own.submit_and_wait()
        assert own.copy_cqe(timeout=10).res == 0
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
os.write(write, b"x")
assert ring.copy_cqe(timeout=10).res == 1
ring.close()
assert buffer == b"x"
print("fine")
"""


def forked(flags: SetupFlags, registered: str = "") -> None:
    """Run the program above with rings of this shape."""
    # From Python 3.15 on os.fork() warns of the kernel's thread for an SQPOLL ring.
    told = ("-W", "error", "-W", "ignore:This process (pid=:DeprecationWarning")
    command = [sys.executable, *told, "-c", FORK, str(int(flags)), registered]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_fork_leaves_the_ring_to_the_parent(shape: Shape) -> None:
    """The child is told, has rings of the shape for its own, and the parent's goes on."""
    forked(shape.flags & ~(F.CQSIZE | F.ATTACH_WQ | F.SQ_AFF))


# ---- SQE128 ----


@operation
class Wide(uring.Operation):
    """A NOP whose SQE is one of 128 bytes."""

    opcode = Opcode.NOP

    tail: bytes
    _is_probed = True  # kept off the shortest way, as what has 128 bytes must be

    def _encode(self) -> tuple[bytes, object]:
        return self._pack() + self.tail, None


def placed(ring: Ring, place: int) -> bytes:
    """The 128 bytes at a place in the SQ."""
    content: bytes = ffi.buffer(ring._shim.sqes + place * 128, 128)[:]
    return content


@pytest.mark.parametrize("more", [F(0), F.NO_SQARRAY, F.NO_MMAP | F.CQE_MIXED, F.SQPOLL], ids=named)
def test_sqe_of_128_bytes_is_placed_whole(more: SetupFlags) -> None:
    """All 128 bytes arrive, alone and among others; one of 64 has zeroes behind it."""
    with Ring(4, flags=F.SQE128 | more) as ring:
        tail = bytes(range(1, 65))
        ring.queue(Wide(tail), user_data=0x1122)
        ring.submit_and_wait()
        assert ring.copy_cqe().res == 0
        assert placed(ring, 0) == bytes(32) + (0x1122).to_bytes(8, sys.byteorder) + bytes(24) + tail
        ring.queue_all([Nop(user_data=1), Wide(tail), Nop(user_data=2), Nop(user_data=3)])
        ring.submit_and_wait(4)
        assert len(ring.copy_cqes()) == 4
        tails = [placed(ring, n)[64:] for n in range(4)]
        assert tails == [bytes(64), bytes(64), tail, bytes(64)]
        ring.run([Nop()] * 8)
        assert [placed(ring, n)[64:] for n in range(4)] == [bytes(64)] * 4


@pytest.mark.parametrize("flags", [F(0), F.CQE32, F.NO_MMAP], ids=named)
def test_sqe_of_128_bytes_is_refused_elsewhere(flags: SetupFlags) -> None:
    """Without SQE128 it is a ValueError that names the flag, and nothing is queued."""
    with Ring(4, flags=flags) as ring:
        for queue in (ring.queue, lambda op: ring.queue_all([Nop(), op])):
            with pytest.raises(ValueError, match=r"128 bytes, which takes .*SQE128"):
                queue(Wide(bytes(64)))
        assert (ring.sq_ready(), ring.in_flight) == (0, 0)


def test_sqe_of_128_bytes_is_refused_by_a_batch() -> None:
    """A batch holds SQEs of 64 bytes: the message names queue()."""
    with pytest.raises(ValueError, match=r"operation 1, .* 128 bytes, .* queue\(\) it"):
        Batch([Nop(), Wide(bytes(64))])


# ---- CQE_MIXED: CQEs of 16 and of 32 bytes ----


def nop32(number: int, user_data: int = 0) -> SQE:
    """A NOP whose CQE is one of 32 bytes, with these two words."""
    flags = int(NopFlags.CQE32)
    return SQE(Opcode.NOP, off=number, addr=number + 1, op_flags=flags, user_data=user_data)


def either(number: int, *, is_big: bool) -> Any:
    """A NOP whose CQE has 32 or 16 bytes."""
    return nop32(number, number) if is_big else Nop(user_data=number)


def seen(cqe: uring.CQE) -> tuple[int, bool]:
    """Which one it is, and whether it was a big one; looks at what a CQE of its size has."""
    is_big = bool(cqe.flags & CQEFlags.F_32)
    assert cqe.res == 0
    assert cqe.flags & ~CQEFlags.F_32 == 0
    assert cqe.big_cqe == ((cqe.user_data, cqe.user_data + 1) if is_big else None)
    return cqe.user_data, is_big


MIXED = pytest.mark.parametrize(
    "flags",
    [F(0), DEFERRED, F.NO_MMAP | F.NO_SQARRAY, F.SQE128, REGISTERED, F.COOP_TASKRUN],
    ids=named,
)


def mixed_ring(entries: int, flags: SetupFlags) -> Ring:
    """Make one with a CQ that is not below the least."""
    return Ring(entries, flags=F.CQE_MIXED | flags, cq_entries=max(4, 2 * entries))


@MIXED
@pytest.mark.parametrize("entries", [1, 2, 4, 16])
def test_mixed_completions_come_whole_and_in_order(flags: SetupFlags, entries: int) -> None:
    """Thousands of both sizes in every order, over the wrap with its filler, by every way out."""
    order = random.Random(entries)
    number = 0
    with mixed_ring(entries, flags) as ring:
        for turn in range(1500):
            count = order.randint(1, entries)
            sent = [(number + i, order.random() < 0.5) for i in range(count)]
            number += count
            submit_each(ring, [either(n, is_big=is_big) for n, is_big in sent])
            if turn % 5 == 0:
                ring.submit_and_wait(count)
                assert ring.cq_ready() == count
                got = [seen(cqe) for cqe in ring.copy_cqes()]
            elif turn % 5 == 1:
                got = [seen(ring.copy_cqe(timeout=10)) for _ in range(count)]
            elif turn % 5 == 2:
                ring.submit_and_wait(count)
                got = [seen(cqe) for cqe in ring.peek_cqes()]
                assert [seen(cqe) for cqe in ring.peek_cqes(1)] == got[:1]
                ring.cq_advance(count)
            elif turn % 5 == 3:
                got = [seen(cqe) for cqe in collect(ring, count)]
            else:
                got = []
                while len(got) < count:
                    got += [seen(cqe) for cqe in ring.copy_cqes(1, wait_nr=1, timeout=10)]
            assert got == sent
            assert (ring.cq_ready(), ring.in_flight) == (0, 0)


@MIXED
@pytest.mark.parametrize("entries", [1, 2, 4])
def test_mixed_completions_overflow_and_none_is_lost(flags: SetupFlags, entries: int) -> None:
    """Many times more than the queue holds, of both sizes, wait in the kernel."""
    with mixed_ring(entries, flags) as ring:
        for offset in range(4):
            sent = [(n, (n + offset) % 4 != 0) for n in range(100)]
            submit_each(ring, [either(n, is_big=is_big) for n, is_big in sent])
            assert sorted(seen(cqe) for cqe in collect(ring, 100)) == sent
        assert ring.cq.overflow == 0


@MIXED
@pytest.mark.parametrize("entries", [1, 2, 4, 8])
def test_mixed_completions_taken_as_they_come(flags: SetupFlags, entries: int) -> None:
    """Submitted and copied out at random, with and without overflow, each comes once and whole."""
    order = random.Random(entries)
    number, pending = 0, dict[int, bool]()
    with mixed_ring(entries, flags) as ring:
        for _ in range(4000):
            if order.random() < 0.4 and len(pending) < 6 * entries:
                for _ in range(order.randint(1, entries)):
                    number += 1
                    pending[number] = order.random() < 0.6
                    ring.queue(either(number, is_big=pending[number]))
                ring.submit()
                continue
            before = ring.cq_ready()
            taken = ring.copy_cqes(order.choice([1, 2, 3, None]))
            assert bool(taken) == bool(pending)
            assert len(taken) >= min(before, 1)
            for cqe in taken:
                assert seen(cqe) == (cqe.user_data, pending.pop(cqe.user_data))
        assert ring.in_flight == len(pending)


@MIXED
@pytest.mark.parametrize("entries", [1, 2, 8])
def test_mixed_completions_of_a_run_go_to_their_places(flags: SetupFlags, entries: int) -> None:
    """A batch of both sizes is all there, in its order, while another completion waits."""
    with mixed_ring(entries, flags) as ring:
        ring.queue(nop32(5, 12345))
        ring.submit_and_wait()
        batch = Batch([nop32(n) if n % 3 else Nop() for n in range(500)])
        for _ in range(3):
            done = ring.run(batch, timeout=30)
            shown = [cqe.big_cqe for cqe in done]
            assert shown == [(n, n + 1) if n % 3 else None for n in range(500)]
            assert [cqe.big_cqe for cqe in done[1::3]] == shown[1::3]
            assert [bool(flag) for flag in done.flags] == [bool(n % 3) for n in range(500)]
        assert ring.copy_cqe().big_cqe == (5, 6)


@pytest.mark.parametrize("wait_nr", [1, 3, 5, 8])
@pytest.mark.parametrize("flags", [F(0), DEFERRED], ids=named)
def test_mixed_wait_counts_completions_not_places(flags: SetupFlags, wait_nr: int) -> None:
    """A wait for N ends with N, also where N big ones do not fit in the queue at once."""
    with Ring(4, flags=F.CQE_MIXED | flags) as ring:
        for turn in range(20):
            ops = [nop32(turn, n) for n in range(wait_nr - 1)]
            submit_each(ring, ops)
            assert ring.submit_and_wait(wait_nr, timeout=0.002) == 0  # one is missing
            ring.queue(nop32(turn, wait_nr))
            ring.submit_and_wait(wait_nr, timeout=10)
            taken = ring.copy_cqes()
            assert len(taken) == wait_nr
            assert {cqe.big_cqe for cqe in taken} == {(turn, turn + 1)}


@pytest.mark.parametrize("is_registered", [False, True], ids=["min_timeout", "registered"])
@pytest.mark.parametrize("flags", [F(0), DEFERRED], ids=named)
def test_mixed_wait_with_more_to_it_counts_completions_not_places(
    flags: SetupFlags, *, is_registered: bool
) -> None:
    """With a minimum time, or with registered arguments, a wait for N big ones gets all N, too."""
    read, write = os.pipe()
    with Ring(8, flags=F.CQE_MIXED | F.R_DISABLED | flags, cq_entries=8) as ring:
        region = ring.register_wait_region()
        ring.enable()
        region[0].set(timeout=2, min_timeout=2)
        ring.queue_all(link(Read(read, bytearray(1)), *(nop32(1, n) for n in range(6))))
        ring.submit()
        writing = threading.Timer(0.05, os.write, (write, b"x"))
        writing.start()
        if is_registered:
            taken = ring.copy_cqes(wait_nr=7, timeout=region[0])
        else:
            taken = ring.copy_cqes(wait_nr=7, timeout=2, min_timeout=2)
        writing.join()
        assert len(taken) == 7
    os.close(read)
    os.close(write)


def test_mixed_count_has_each_completion_once() -> None:
    """Where the tail has passed a full queue by one, its first completion does not count twice."""
    with Ring(4, flags=F.CQE_MIXED, cq_entries=4) as ring:
        # The third waits in the kernel behind a filler, over which the fourth is written.
        ring.queue_all([either(n, is_big=n in {1, 2}) for n in range(4)])
        ring.submit()
        assert ring.cq.tail - ring.cq.head == 5
        assert ring.cq_ready() == 3
        assert sorted(map(seen, ring.copy_cqes(wait_nr=4))) == [
            (0, False),
            (1, True),
            (2, True),
            (3, False),
        ]


def test_mixed_completion_over_a_filler_outlives_a_look_that_empties_the_backlog() -> None:
    """What was written over a filler is not given back to the kernel before it is taken."""
    with Ring(4, flags=F.CQE_MIXED, cq_entries=4) as ring:
        ring.queue_all([either(n, is_big=n > 0) for n in range(3)])
        ring.submit()
        assert len(ring.copy_cqes(max_nr=2)) == 2  # and the filler, behind which the third waits
        ring.queue(either(3, is_big=False))
        ring.submit()  # over the filler
        ring.peek_cqes()  # the kernel is entered, and the third has room now
        ring.queue(either(4, is_big=True))
        ring.submit()  # behind a filler, in the same place
        taken: list[uring.CQE] = []
        while len(taken) < 3:
            taken.append(ring.copy_cqe(timeout=10))
        assert sorted(map(seen, taken)) == [(2, True), (3, False), (4, True)]
        assert ring.in_flight == 0


def test_mixed_waiters_of_several_threads_all_end() -> None:
    """Threads that wait for all that the queue holds wake when big ones fill it early."""
    with Ring(4, flags=F.CQE_MIXED) as ring:
        for _ in range(8):
            counts: list[int] = []

            def wait(wait_nr: int, counts: list[int] = counts) -> None:
                while sum(counts) < 24:
                    counts.append(len(ring.copy_cqes(wait_nr=wait_nr, timeout=0.02)))

            threads = [threading.Thread(target=wait, args=(n,)) for n in (1, 7, 8)]
            for thread in threads:
                thread.start()
            submit_each(ring, [nop32(1, n) for n in range(24)])
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            assert sum(counts) == 24


def test_mixed_waiter_wakes_when_one_place_is_left_and_two_are_needed(
    until: Callable[..., None],
) -> None:
    """A wait for all eight goes on when seven places are taken and a big one waits behind them."""
    with Ring(4, flags=F.CQE_MIXED) as ring:
        for start in range(8):  # each place once as the one that is left
            taken: list[uring.CQE] = []

            def wait(taken: list[uring.CQE] = taken) -> None:
                taken += ring.copy_cqes(wait_nr=8, timeout=10)

            thread = threading.Thread(target=wait)
            thread.start()
            until(lambda: lib.uring_waiters(ring._shim) == 1)
            sizes = [False, True, True, True, True, False, False, False]
            for n, is_big in enumerate(sizes):
                ring.queue(either(n, is_big=is_big))
                ring.submit()
            thread.join(30)
            assert not thread.is_alive()
            assert sorted(map(seen, taken)) == list(enumerate(sizes)), start
            ring.run([Nop()] * (1 + (start - ring.cq.tail) % 8))


def test_mixed_completions_are_joined_only_to_their_like() -> None:
    """Completions of a mixed ring are no CQE32 completions: joining the two is refused."""
    with Ring(4, flags=F.CQE_MIXED) as mixed, Ring(4, flags=F.CQE32) as big:
        runs = [ring.run([nop32(1), nop32(2)]) for ring in (mixed, big)]
        assert [cqe.big_cqe for cqe in runs[0] + runs[0]] == [(1, 2), (2, 3)] * 2
        with pytest.raises(ValueError, match="cannot be joined"):
            _ = runs[0] + runs[1]
        batch = Batch([nop32(9), Nop()])
        for ring, plain in ((mixed, None), (big, (0, 0)), (mixed, None)):  # one batch, both shapes
            assert [cqe.big_cqe for cqe in ring.run(batch)] == [(9, 10), plain]


@pytest.mark.parametrize("flags", [F(0), F.SQE128], ids=named)
def test_big_completions_need_the_flag(flags: SetupFlags) -> None:
    """Without CQE32 or CQE_MIXED a NOP with CQE32 completes with EINVAL."""
    with Ring(4, flags=flags) as ring:
        assert ring.run([nop32(1)]).res.tolist() == [-errno.EINVAL]


# ---- NO_MMAP: the ring in memory of ours ----


def lent_maps(ring: Ring) -> list[str]:
    """The lines of /proc/self/smaps' flags for the mapping that the ring lies in."""
    start = int(ffi.cast("uintptr_t", ring._shim.sqes))
    flags, inside = [], False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= start < high
        elif inside and head == "VmFlags:":
            flags += line.split()[1:]
    return flags


@pytest.mark.parametrize("entries", [2, 64, 4096])
@pytest.mark.parametrize("more", [F(0), F.SQE128 | F.CQE32, F.NO_SQARRAY | F.CQE_MIXED], ids=named)
def test_no_mmap_memory_is_large_enough_and_not_inherited(entries: int, more: SetupFlags) -> None:
    """Rings of any size work to the last entry, in anonymous memory that a fork leaves out."""
    with Ring(entries, flags=F.NO_MMAP | more) as ring:
        assert "dc" in lent_maps(ring)  # VM_DONTCOPY
        for _ in range(3):
            submit_each(ring, [Nop()] * (2 * entries))
            assert len(ring.copy_cqes(wait_nr=2 * entries, timeout=10)) == 2 * entries


@pytest.mark.parametrize("flags", [F.NO_MMAP, REGISTERED], ids=named)
def test_no_mmap_memory_is_given_back(flags: SetupFlags) -> None:
    """A thousand rings, opened and closed, leave no mapping behind."""

    def maps() -> int:
        return len(Path("/proc/self/maps").read_text(encoding="ascii").splitlines())

    with Ring(64, flags=flags):
        pass
    before = maps()
    for _ in range(1000):
        with Ring(64, flags=flags) as ring:
            ring.queue(Nop())
            ring.submit_and_wait()
    assert maps() <= before + 2


# ---- IOPOLL: completions that are looked for ----


IOPOLL = pytest.mark.parametrize(
    "more",
    [F(0), F.HYBRID_IOPOLL, F.NO_MMAP | F.SQE128 | F.CQE32, F.CQE_MIXED, F.SQPOLL, DEFERRED],
    ids=named,
)


@IOPOLL
def test_iopoll_ring_does_nops_by_every_way(more: SetupFlags) -> None:
    """NOPs, one at a time, in batches, over the end of the queues, and run."""
    with Ring(4, flags=F.IOPOLL | more) as ring:
        for n in range(50):
            ring.queue(Nop(user_data=n))
            ring.submit_and_wait()
            assert ring.copy_cqe(timeout=10).user_data == n
        submit_each(ring, [Nop(user_data=n) for n in range(8)])
        ring.submit_and_wait(8)
        assert sorted(cqe.user_data for cqe in ring.copy_cqes()) == list(range(8))
        assert ring.run([Nop()] * 100, timeout=30).res.tolist() == [0] * 100


@IOPOLL
def test_iopoll_read_needs_a_device_that_polls(more: SetupFlags, tmp_path: Path) -> None:
    """No file system here polls: a read ends with EOPNOTSUPP, buffered or direct, alone or run."""
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    page = mmap.mmap(-1, 4096)
    for flags in (0, os.O_DIRECT):
        with contextlib.ExitStack() as stack:
            fd = os.open(path, os.O_RDONLY | flags)
            stack.callback(os.close, fd)
            ring = stack.enter_context(Ring(4, flags=F.IOPOLL | more))
            ring.queue(Read(fd, page, 0))
            ring.submit_and_wait()
            cqe = ring.copy_cqe(timeout=10)
            assert cqe.res == -errno.EOPNOTSUPP, "something polls here: test it for real"
            assert isinstance(cqe.error, OSError)
            assert ring.run([Read(fd, page, 0)] * 9).res.tolist() == [-errno.EOPNOTSUPP] * 9


def test_iopoll_ring_refuses_what_cannot_be_polled(pipe: tuple[int, int]) -> None:
    """Timeouts, polls, fsyncs and the like complete with EINVAL."""
    with Ring(4, flags=F.IOPOLL) as ring, socket.socket() as a_socket:
        receive = uring.Recv(a_socket, bytearray(1))
        ops = [Timeout(1), uring.PollAdd(pipe[0]), Fsync(0), receive, AsyncCancel(1)]
        assert ring.run(ops).res.tolist() == [-errno.EINVAL] * 5


def test_skip_success_works_on_every_size(shaped: Ring) -> None:
    """A chain whose first skips its CQE posts one."""
    first = Nop(flags=SQEFlags.CQE_SKIP_SUCCESS | SQEFlags.IO_LINK)
    shaped.queue_all([first, Nop(user_data=3)])
    shaped.submit_and_wait()
    assert [cqe.user_data for cqe in collect(shaped, 1)] == [3]


@pytest.mark.slow
def test_sqpoll_ring_takes_back_what_a_worker_is_blocked_in(pipe: tuple[int, int]) -> None:
    """A read that follows in a chain, in a worker: runs and close() cancel it; neither gives up."""
    nop = uring.Nop(flags=uring.SQEFlags.ASYNC)
    chain = uring.link(nop, uring.Read(pipe[0], bytearray(4), -1))
    with uring.Ring(8, flags=F.SQPOLL) as ring:
        with pytest.raises(TimeoutError) as caught:
            ring.run(chain, timeout=0.05)
        assert not hasattr(caught.value, "__notes__")  # it would say what is still in flight
        ring.queue_all(chain)
        ring.submit()
        assert ring.copy_cqe(timeout=10).res == 0
    assert ring.in_flight == 0
