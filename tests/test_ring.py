"""The ring itself: the seed's tests first, then every rule of queue -> submit -> wait -> copy."""

import copy
import errno
import gc
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uring
from uring import (
    SQE,
    Accept,
    AsyncCancel,
    CQEFlags,
    Fixed,
    Fsync,
    Nop,
    Opcode,
    Openat,
    PollAdd,
    Read,
    Readv,
    Ring,
    RingClosedError,
    SetupFlags,
    SQEFlags,
    SQRingFlags,
    SubmissionQueueFull,
    Timeout,
    Write,
    Writev,
    link,
)

# ---- the four tests of the seed, with every counter that they look at ----


def test_nop_moves_every_counter_by_one(ring_refusal: str) -> None:
    """One NOP takes each counter of both queues from 0 to 1, at its own moment."""
    assert not ring_refusal
    with Ring(1) as ring:
        assert (ring.sq.entries, ring.cq.entries) == (1, 2)
        assert (ring.sq.mask, ring.cq.mask) == (0, 1)
        assert (ring.sq.sqe_head, ring.sq.sqe_tail) == (0, 0)
        user_data = ring.queue(Nop(), user_data=0xAAAAAAAA)
        assert user_data == 0xAAAAAAAA
        assert (ring.sq.sqe_head, ring.sq.sqe_tail) == (0, 1)
        assert (ring.sq.head, ring.sq.tail, ring.cq.head, ring.cq.tail) == (0, 0, 0, 0)
        assert (ring.sq_ready(), ring.cq_ready(), ring.in_flight) == (1, 0, 1)

        assert ring.submit() == 1
        assert (ring.sq.sqe_head, ring.sq.sqe_tail) == (1, 1)
        assert (ring.sq.head, ring.sq.tail, ring.cq.head, ring.cq.tail) == (1, 1, 0, 1)
        assert (ring.sq_ready(), ring.cq_ready(), ring.in_flight) == (0, 1, 1)

        assert ring.copy_cqe() == uring.CQE(0xAAAAAAAA, 0, 0)
        assert (ring.cq.head, ring.cq_ready(), ring.in_flight) == (1, 0, 0)

        ring.queue(Nop().drained(), user_data=0xBBBBBBBB)
        assert ring.submit_and_wait(1) == 1
        assert ring.copy_cqe() == uring.CQE(0xBBBBBBBB, 0, 0)
        assert (ring.sq.dropped, ring.cq.overflow) == (0, 0)
        assert (ring.sq.head, ring.cq.head) == (2, 2)


def test_readv_reads_a_registered_file_through_a_full_queue() -> None:
    """A readv of a fixed file fills a queue of one; a second operation is refused, not lost."""
    with Ring(1) as ring, Path("/dev/zero").open("rb", buffering=0) as zero:
        ring.register_files([zero, -1])
        buffer = bytearray(b"*" * 128)
        ring.queue(Readv(Fixed(0), [buffer]), user_data=0xCCCCCCCC)
        with pytest.raises(SubmissionQueueFull, match="1 entries has 0 free, 1 needed"):
            ring.queue(Nop())
        assert (ring.sq_ready(), ring.in_flight) == (1, 1)
        assert ring.submit() == 1
        assert ring.copy_cqe() == uring.CQE(0xCCCCCCCC, 128, 0)
        assert buffer == bytes(128)
        ring.unregister_files()


def test_writev_and_fsync_and_readv_run_in_a_chain(tmp_path: Path) -> None:
    """A linked writev, fsync and readv complete in order, and the data went round."""
    payload = b"*" * 128
    buffer = bytearray(128)
    with Ring(4) as ring, (tmp_path / "f").open("w+b", buffering=0) as file:
        ring.queue(Writev(file, [payload], 17).linked(), user_data=1)
        ring.queue(Fsync(file).linked(), user_data=2)
        ring.queue(Readv(file, [buffer], 17), user_data=3)
        assert (ring.sq_ready(), ring.sq.sqe_tail) == (3, 3)
        assert ring.submit_and_wait(3) == 3
        assert (ring.sq_ready(), ring.cq_ready(), ring.sq.tail) == (0, 3, 3)
        assert list(ring.copy_cqes()) == [uring.CQE(1, 128), uring.CQE(2, 0), uring.CQE(3, 128)]
        assert (ring.cq_ready(), ring.in_flight) == (0, 0)
    assert buffer == payload


def test_write_then_read_linked_sees_what_was_written(tmp_path: Path) -> None:
    """A read linked behind a write of the same place reads what the write wrote."""
    buffer = bytearray(20)
    with Ring(2) as ring, (tmp_path / "f").open("w+b", buffering=0) as file:
        ring.queue_all(link(Write(file, b"z" * 20, 10), Read(file, buffer, 10)))
        assert ring.submit_and_wait(2) == 2
        assert [cqe.res for cqe in ring.copy_cqes()] == [20, 20]
    assert buffer == b"z" * 20


# ---- queueing ----


def test_queue_draws_numbers_that_are_never_reused(ring: Ring) -> None:
    """Numbers that the ring draws start at 2**63 and rise by one."""
    assert [ring.queue(Nop()) for _ in range(3)] == [2**63, 2**63 + 1, 2**63 + 2]
    ring.submit()
    ring.copy_cqes()
    assert ring.queue(Nop()) == 2**63 + 3


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1, 2**64 - 1])
def test_user_data_is_passed_through_untouched(ring: Ring, number: int) -> None:
    """Every 64-bit number comes back as it was given, by argument or by the operation."""
    ring.queue(Nop(), user_data=number)
    ring.queue(Nop(user_data=number))
    ring.submit()
    assert list(ring.copy_cqes().user_data) == [number, number]


@pytest.mark.parametrize("number", [-1, 2**64, 1.5, "1", True])
def test_queue_refuses_what_is_no_user_data(ring: Ring, number: object) -> None:
    """A user_data that is no unsigned 64-bit integer is refused, and the ring is as it was."""
    with pytest.raises((TypeError, ValueError), match="user_data"):
        ring.queue(Nop(), user_data=number)  # type: ignore[arg-type]  # wrong on purpose
    assert (ring.sq_ready(), ring.in_flight) == (0, 0)


@pytest.mark.parametrize("op", [None, 3, "nop", Nop, object()])
def test_queue_refuses_what_is_no_operation(ring: Ring, op: object) -> None:
    """Only operations and SQEs are queued."""
    with pytest.raises(TypeError, match="queues operations and SQEs"):
        ring.queue(op)  # type: ignore[arg-type]  # wrong on purpose
    assert (ring.sq_ready(), ring.in_flight) == (0, 0)


def test_queue_all_queues_nothing_when_one_is_refused(ring: Ring) -> None:
    """An operation that cannot be encoded keeps those before it out, too."""
    with pytest.raises(TypeError):
        ring.queue_all([Nop(), Read(0, b"read-only")])
    with pytest.raises(SubmissionQueueFull, match="never fit"):
        ring.queue_all([Nop()] * 9)
    ring.queue_all([Nop()] * 5)
    with pytest.raises(SubmissionQueueFull, match="3 free, 4 needed"):
        ring.queue_all([Nop()] * 4)
    assert (ring.sq_ready(), ring.in_flight) == (5, 5)
    ring.queue_all([Nop()] * 3)
    assert ring.submit() == 8
    assert len(ring.copy_cqes()) == 8


def test_queue_all_of_one_operation_says_what_takes_it(ring: Ring) -> None:
    """An operation that is not in a sequence is for queue()."""
    one: Any = uring.Nop()
    with pytest.raises(TypeError, match=r"queue\(\) takes Nop\(\)"):
        ring.queue_all(one)


def test_queue_all_of_nothing_is_nothing(ring: Ring) -> None:
    """An empty batch is allowed, and so is submitting it."""
    assert ring.queue_all([]) == []
    assert ring.submit() == 0


def test_raw_sqe_is_queued_as_it_is(ring: Ring) -> None:
    """The escape hatch takes its own user_data, which may be 0, and cqe.op is the record."""
    record = SQE(Opcode.NOP)
    assert ring.queue(record) == 0
    assert ring.queue(SQE(Opcode.NOP, user_data=5)) == 5
    assert ring.queue(SQE(Opcode.NOP, user_data=5), user_data=6) == 6
    ring.submit()
    cqes = ring.copy_cqes()
    assert list(cqes.user_data) == [0, 5, 6]
    assert cqes[0].op is record


# ---- submitting ----


def test_submit_goes_on_behind_an_sqe_that_the_kernel_refuses(ring: Ring) -> None:
    """A bad opcode in the middle completes with EINVAL and holds up nobody."""
    ring.queue_all([Nop(), SQE(200, user_data=7), Nop()])
    assert ring.submit() == 3
    assert [cqe.res for cqe in ring.copy_cqes()] == [0, -errno.EINVAL, 0]


def test_chain_with_an_invalid_member_fails_whole(ring: Ring) -> None:
    """All of a chain completes when one of it is refused: the others with ECANCELED."""
    ring.queue_all(link(Nop(), SQE(200, user_data=7), Nop()))
    assert ring.submit_and_wait(3) == 3
    assert list(ring.copy_cqes().res) == [-errno.ECANCELED, -errno.EINVAL, -errno.ECANCELED]


def test_reserved_sqe_flag_is_refused_by_the_kernel(ring: Ring) -> None:
    """Flag bit 7 of an SQE completes with EINVAL."""
    ring.queue(Nop(flags=SQEFlags(1 << 7)))
    ring.submit()
    assert ring.copy_cqe().res == -errno.EINVAL


def test_indices_wrap_with_user_data_in_order() -> None:
    """Twenty thousand operations through four entries come back in order."""
    with Ring(4) as ring:
        for first in range(0, 20_000, 4):
            ring.queue_all(Nop(user_data=number) for number in range(first, first + 4))
            assert ring.submit() == 4
            assert list(ring.copy_cqes().user_data) == list(range(first, first + 4))
        assert ring.sq.tail == ring.cq.head == 20_000


def test_overflowing_completions_wait_in_the_kernel() -> None:
    """A CQ of 8 holds back what does not fit of 16, and copying gives all of it."""
    with Ring(4) as ring:
        for _ in range(4):
            ring.queue_all([Nop()] * 4)
            assert ring.submit() == 4
        assert (ring.cq_ready(), ring.cq.overflow) == (8, 0)
        assert SQRingFlags.CQ_OVERFLOW in ring.sq.flags
        first = ring.copy_cqes()
        rest = ring.copy_cqes()
        assert sorted([*first.user_data, *rest.user_data]) == list(range(2**63, 2**63 + 16))
        assert SQRingFlags.CQ_OVERFLOW not in ring.sq.flags
        assert len(ring.copy_cqes()) == 0
        assert ring.in_flight == 0


def test_records_that_another_submit_has_placed_are_not_entered_again(ring: Ring) -> None:
    """A submit that was cut off after placing leaves nothing behind that would never end."""
    ring.queue_all([Nop(user_data=1), Nop(user_data=2)])
    start, recent = ring._begin_handover()
    assert ring._place(start, recent) & 0xFFFFFFFF == 2
    ring._handovers = 0  # as if the placing came right after the reader's own look at it
    assert list(ring.copy_cqes().user_data) == [1, 2]
    ring._handovers = 1
    assert ring.submit() == 0
    assert (ring.in_flight, ring.sq_ready()) == (0, 0)


def test_maker_of_descriptors_shares_its_number_with_its_kind_only(ring: Ring) -> None:
    """Beside an open with the same number nothing else is queued, so no descriptor is mistaken."""
    opening = Openat("/dev/null", user_data=5)
    ring.queue(opening)
    for queue in (
        lambda: ring.queue(Nop(), user_data=5),
        lambda: ring.queue_all([Nop(user_data=5)]),
    ):
        with pytest.raises(ValueError, match="of Openat, whose result is a descriptor"):
            queue()
    ring.queue(opening)
    ring.queue(Nop(), user_data=6)
    with pytest.raises(ValueError, match="cannot be shared"):
        ring.queue(opening, user_data=6)
    assert ring.sq_ready() == 3
    ring.submit_and_wait(3)
    for cqe in ring.copy_cqes():
        if cqe.user_data == 5:
            os.close(cqe.res)
    ring.queue(Nop(), user_data=5)
    assert ring.in_flight == 1


# ---- copying out ----


def test_copy_cqes_returns_what_is_ready_at_once(ring: Ring) -> None:
    """With something ready, wait_nr does not wait for more."""
    ring.queue(Nop())
    ring.submit()
    assert len(ring.copy_cqes(wait_nr=8)) == 1


def test_copy_cqes_honours_max_nr(ring: Ring) -> None:
    """At most max_nr are taken; the others stay, in order; 0 takes none and does not wait."""
    ring.queue_all(Nop(user_data=number) for number in range(5))
    ring.submit()
    assert list(ring.copy_cqes(2).user_data) == [0, 1]
    assert len(ring.copy_cqes(0, wait_nr=9)) == 0
    assert (ring.cq_ready(), ring.in_flight) == (3, 3)
    assert list(ring.copy_cqes(99).user_data) == [2, 3, 4]


def test_copied_completions_never_change(ring: Ring) -> None:
    """What was copied out stays as it was while the ring goes round."""
    ring.queue(Nop(), user_data=1)
    ring.submit()
    kept = ring.copy_cqes()
    for number in range(100):
        ring.queue(Nop(), user_data=number)
        ring.submit()
        ring.copy_cqe()
    assert list(kept) == [uring.CQE(1, 0)]


def test_peek_leaves_and_advance_consumes(ring: Ring, pipe: tuple[int, int]) -> None:
    """Peeked completions stay in the ring with their pins until they are advanced over."""
    buffer = bytearray(4)
    os.write(pipe[1], b"data")
    ring.queue(Read(pipe[0], buffer), user_data=1)
    ring.queue(Nop(), user_data=2)
    ring.submit()
    assert list(ring.peek_cqes().user_data) == [1, 2]
    assert list(ring.peek_cqes(1).user_data) == [1]
    assert ring.peek_cqes()[0].op == ring.peek_cqes()[0].op is not None
    assert (ring.cq_ready(), ring.in_flight, ring.cq.head) == (2, 2, 0)
    with pytest.raises(BufferError):
        buffer.append(0)
    with pytest.raises(ValueError, match="2 completions are ready, not 3"):
        ring.cq_advance(3)
    ring.cq_advance(0)
    ring.cq_advance(1)
    buffer.append(0)
    assert (ring.cq_ready(), ring.in_flight, ring.cq.head) == (1, 1, 1)
    assert list(ring.copy_cqes().user_data) == [2]


@pytest.mark.parametrize("argument", [{"max_nr": -1}, {"wait_nr": -1}, {"wait_nr": 1.5}])
def test_copy_cqes_refuses_negative_counts(ring: Ring, argument: dict[str, int]) -> None:
    """Counts are unsigned integers."""
    with pytest.raises((TypeError, ValueError), match="_nr must be"):
        ring.copy_cqes(**argument)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_waits_refuse_what_is_no_time(ring: Ring, timeout: float) -> None:
    """A timeout is a number of seconds from 0."""
    ring.queue(Nop())
    for call in (ring.copy_cqe, ring.submit_and_wait):
        with pytest.raises((TypeError, ValueError), match="time in seconds"):
            call(timeout=timeout)
    assert ring.sq_ready() == 1


# ---- waiting ----


def test_waits_end_with_their_timeout(ring: Ring, pipe: tuple[int, int]) -> None:
    """When the time is over, nothing was consumed and the operation goes on."""
    buffer = bytearray(1)
    ring.queue(Read(pipe[0], buffer))
    start = time.monotonic()
    assert ring.submit_and_wait(1, timeout=0.02) == 1
    assert len(ring.copy_cqes(wait_nr=1, timeout=0.02)) == 0
    with pytest.raises(TimeoutError, match=r"0\.02 s"):
        ring.copy_cqe(timeout=0.02)
    assert time.monotonic() - start >= 0.06
    with pytest.raises(TimeoutError):
        ring.copy_cqe(timeout=0)
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=5).res == 1


def test_wait_for_more_than_the_cq_holds_ends(ring: Ring) -> None:
    """A wait for more completions than fit is a wait for a full queue."""
    for _ in range(2):
        ring.queue_all([Nop()] * 8)
        ring.submit()
    assert ring.submit_and_wait(1_000_000) == 0
    assert ring.cq_ready() == 16


@pytest.fixture
def alarm() -> Iterator[list[int]]:
    """Deliver SIGALRM after 20 ms to a handler that notes it."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(len(seen)))
    yield seen
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_signal_handler_runs_and_the_wait_goes_on(
    ring: Ring, pipe: tuple[int, int], alarm: list[int]
) -> None:
    """A handler runs during submit_and_wait and during copy_cqes, which then keep waiting."""
    ring.queue(Read(pipe[0], bytearray(1)))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    start = time.monotonic()
    assert ring.submit_and_wait(1, timeout=0.15) == 1
    assert len(ring.copy_cqes(wait_nr=1, timeout=0.15)) == 0
    assert time.monotonic() - start >= 0.3
    assert len(alarm) >= 4


def test_ctrl_c_ends_a_wait_and_leaves_the_ring_usable(
    ring: Ring, pipe: tuple[int, int], alarm: list[int]
) -> None:
    """An exception from a handler leaves the wait; the operation is still in flight."""
    del alarm
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for wait in (ring.submit_and_wait, ring.copy_cqe):
        ring.queue(Read(pipe[0], bytearray(1)))
        ring.submit()
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            wait()
    assert ring.in_flight == 2
    os.write(pipe[1], b"xy")
    assert ring.submit_and_wait(2) == 0
    assert [cqe.res for cqe in ring.copy_cqes()] == [1, 1]


def test_other_threads_run_during_a_wait(ring: Ring, pipe: tuple[int, int]) -> None:
    """The wait does not hold the GIL: the thread that ends it runs meanwhile."""
    ring.queue(Read(pipe[0], bytearray(1)))
    writer = threading.Timer(0.02, os.write, (pipe[1], b"x"))
    writer.start()
    ring.submit_and_wait(1, timeout=10)
    assert ring.copy_cqe(timeout=0).res == 1
    writer.join()


def test_wake_by_nop_from_another_thread(ring: Ring) -> None:
    """A thread that waits sees what another thread submits meanwhile."""
    seen: list[uring.CQE] = []
    waiter = threading.Thread(target=lambda: seen.append(ring.copy_cqe(timeout=10)))
    waiter.start()
    ring.queue(Nop(), user_data=3)
    ring.submit()
    waiter.join()
    assert seen == [uring.CQE(3, 0)]


# ---- lifetime ----


def test_buffer_is_pinned_from_queue_to_its_completion(ring: Ring, pipe: tuple[int, int]) -> None:
    """Resizing raises from queue() on, and works again once the completion was copied."""
    buffer = bytearray(4)
    ring.queue(Read(pipe[0], buffer))
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    ring.submit()
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    os.write(pipe[1], b"data")
    cqe = ring.copy_cqe()
    buffer.extend(b"more")
    assert (cqe.result(), buffer) == (4, b"datamore")


def test_dropped_buffer_is_still_written_to(ring: Ring, pipe: tuple[int, int]) -> None:
    """A buffer that nobody references stays where it is until the completion."""
    ring.queue(Read(pipe[0], bytearray(4096)))
    ring.submit()
    gc.collect()
    blocks = [bytearray(4096) for _ in range(100)]
    os.write(pipe[1], b"x" * 4096)
    cqe = ring.copy_cqe()
    assert cqe.res == 4096
    assert not any(any(block) for block in blocks)
    assert isinstance(cqe.op, Read)
    assert cqe.op.buffer == b"x" * 4096


def test_buffers_of_shared_user_data_stay_until_all_have_ended(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """The kernel does not say which of several ended, so all memory waits for the last."""
    buffers = [bytearray(1) for _ in range(3)]
    for buffer in buffers:
        ring.queue(Read(pipe[0], buffer), user_data=9)
    ring.submit()
    for left in (2, 1):
        os.write(pipe[1], b"x")
        assert ring.copy_cqe().op is None
        assert ring.in_flight == left
        for buffer in buffers:
            with pytest.raises(BufferError):
                buffer.append(0)
    os.write(pipe[1], b"x")
    assert ring.copy_cqe().result() == 1
    for buffer in buffers:
        buffer.append(0)
    assert ring.in_flight == 0


def test_multishot_keeps_its_entry_until_the_terminal_completion(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """A completion with MORE ends nothing; the one without it does."""
    multishot = SQE(Opcode.POLL_ADD, fd=pipe[0], len=1, op_flags=1, user_data=4)
    ring.queue(multishot)
    for _ in range(2):
        os.write(pipe[1], b"x")
        ring.submit()
        cqe = ring.copy_cqe(timeout=5)
        assert (cqe.more, cqe.op, ring.in_flight) == (True, multishot, 1)
        os.read(pipe[0], 1)
    ring.queue(AsyncCancel(4), user_data=5)
    ring.submit_and_wait(2)
    ended = {cqe.user_data: cqe for cqe in ring.copy_cqes()}
    assert (ended[4].res, ended[4].more, ended[4].op) == (-errno.ECANCELED, False, multishot)
    assert ring.in_flight == 0


def test_skipping_operation_hands_its_memory_to_the_next_in_its_chain(
    ring: Ring, tmp_path: Path
) -> None:
    """Its buffer is pinned until the CQE of the operation behind it, which ends both."""
    data = bytearray(b"data")
    with (tmp_path / "f").open("w+b", buffering=0) as file:
        skip = Write(file, data, flags=SQEFlags.CQE_SKIP_SUCCESS)
        ring.queue_all(link(skip, Fsync(file, user_data=2)))
        assert ring.in_flight == 2
        with pytest.raises(BufferError):
            data.append(0)
        ring.submit_and_wait(1)
        assert list(ring.copy_cqes()) == [uring.CQE(2, 0)]
    data.append(0)
    assert ring.in_flight == 0


def test_skipping_operation_that_fails_ends_its_chain(ring: Ring) -> None:
    """The kernel posts the failure and nothing for those behind it; nothing stays in flight."""
    data = bytearray(1)
    skip = SQEFlags.CQE_SKIP_SUCCESS
    chain = link(Nop(flags=skip), Write(999, data, flags=skip, user_data=1), Write(1, data), Nop())
    ring.queue_all(chain)
    assert ring.submit_and_wait(1) == 4
    assert list(ring.copy_cqes()) == [uring.CQE(1, -errno.EBADF)]
    assert ring.in_flight == 0
    data.append(0)
    ring.queue(Nop(), user_data=1)
    ring.submit()
    assert list(ring.copy_cqes()) == [uring.CQE(1, 0)]


def test_skipping_operation_without_a_successor_is_refused(ring: Ring) -> None:
    """Nothing would ever say that it has ended, so it is not queued."""
    skip = Nop(flags=SQEFlags.CQE_SKIP_SUCCESS)
    chains = [[skip], [skip.linked()], link(Nop(), skip), link(Nop(), skip, Nop())]
    timed = link(skip, uring.LinkTimeout(1), Nop())
    for chain in (*chains, [skip.hard_linked(), Nop()], timed):
        with pytest.raises(ValueError, match="CQE_SKIP_SUCCESS"):
            ring.queue_all(chain)
    with pytest.raises(ValueError, match="CQE_SKIP_SUCCESS"):
        ring.queue(skip.linked())
    assert (ring.sq_ready(), ring.in_flight) == (0, 0)


def test_number_of_a_skipping_chain_cannot_be_shared(ring: Ring) -> None:
    """Such a chain needs numbers of its own as long as it is in flight."""
    skip = Nop(flags=SQEFlags.CQE_SKIP_SUCCESS, user_data=1)
    with pytest.raises(ValueError, match="user_data of its own"):
        ring.queue_all(link(skip, Nop(user_data=1)))
    ring.queue_all(link(skip, Nop(user_data=2)))
    for number in (1, 2):
        with pytest.raises(ValueError, match="cannot be shared"):
            ring.queue(Nop(), user_data=number)
        with pytest.raises(ValueError, match="cannot be shared"):
            ring.queue_all([Nop(user_data=number)])
    ring.submit()
    assert list(ring.copy_cqes()) == [uring.CQE(2, 0)]
    ring.queue_all([Nop(user_data=1), Nop(user_data=2)])
    ring.submit()
    assert list(ring.copy_cqes().user_data) == [1, 2]


# ---- registered files ----


def test_registered_files_can_be_updated_and_unregistered(ring: Ring) -> None:
    """Slots are filled, replaced, emptied and left alone; misuse keeps the kernel's errno."""
    with Path("/dev/zero").open("rb", buffering=0) as zero:
        ring.register_files([zero, -1, -1])
    assert read_fixed(ring, 0) == 4  # the kernel holds the file
    assert read_fixed(ring, 1) == -errno.EBADF
    assert read_fixed(ring, 3) == -errno.EBADF
    with Path("/dev/zero").open("rb", buffering=0) as zero:
        assert ring.register_files_update(1, [-2, zero]) == 2
        assert [read_fixed(ring, slot) for slot in range(3)] == [4, -errno.EBADF, 4]
        assert ring.register_files_update(0, [-1]) == 1
        assert read_fixed(ring, 0) == -errno.EBADF
        with pytest.raises(uring.RegisterError) as refused:
            ring.register_files_update(3, [zero])
        assert refused.value.errno == errno.EINVAL
        with pytest.raises(uring.RegisterError, match="already registered") as refused:
            ring.register_files([zero])
        assert refused.value.errno == errno.EBUSY
    ring.unregister_files()
    with pytest.raises(uring.RegisterError, match="nothing is registered") as refused:
        ring.unregister_files()
    assert refused.value.errno == errno.ENXIO


def read_fixed(ring: Ring, slot: int) -> int:
    """Read four bytes from a registered file: res."""
    ring.queue(Read(Fixed(slot), bytearray(4)))
    ring.submit()
    return ring.copy_cqe().res


@pytest.mark.parametrize("fds", [[], [9999], [-3], ["x"], [2**31], 5])
def test_register_files_refuses_what_is_no_file(ring: Ring, fds: list[int]) -> None:
    """Nothing, a closed descriptor, a bad number and a wrong type are each refused."""
    with pytest.raises((TypeError, ValueError, uring.RegisterError)):
        ring.register_files(fds)
    with pytest.raises(uring.RegisterError):
        ring.unregister_files()


# ---- shapes of rings ----


SHAPES = [
    SetupFlags(0),
    SetupFlags.SUBMIT_ALL,
    SetupFlags.CLAMP,
    SetupFlags.SQE128,
    SetupFlags.CQE32,
    SetupFlags.SQE128 | SetupFlags.CQE32,
    SetupFlags.NO_SQARRAY,
    SetupFlags.SQPOLL,
    SetupFlags.COOP_TASKRUN,
    SetupFlags.COOP_TASKRUN | SetupFlags.TASKRUN_FLAG,
    SetupFlags.SINGLE_ISSUER,
    SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN,
    SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN | SetupFlags.TASKRUN_FLAG,
    SetupFlags.R_DISABLED,
    SetupFlags.R_DISABLED | SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN,
]


@pytest.fixture(params=SHAPES, ids=repr)
def shaped(request: pytest.FixtureRequest) -> Iterator[Ring]:
    """Give a ring of each shape that this kernel has."""
    missing = request.param & ~uring.probe().setup_flags
    if missing:
        pytest.skip(f"this kernel has no {missing!r}")
    with Ring(4, flags=request.param) as ring:
        if request.param & SetupFlags.R_DISABLED:
            ring.enable()
        yield ring


def test_every_shape_completes_nops_in_order(shaped: Ring) -> None:
    """A hundred NOPs through four entries come back one by one and in order."""
    for first in range(0, 100, 4):
        shaped.queue_all(Nop(user_data=number) for number in range(first, first + 4))
        assert shaped.submit_and_wait(4) == 4
        assert list(shaped.copy_cqes()) == [uring.CQE(n, 0) for n in range(first, first + 4)]
    assert (shaped.in_flight, shaped.cq.overflow, shaped.sq.dropped) == (0, 0, 0)


def test_every_shape_sees_a_late_completion_by_peeking(shaped: Ring, pipe: tuple[int, int]) -> None:
    """Without any wait, polling alone sees that a pipe became readable."""
    buffer = bytearray(4)
    shaped.queue(Read(pipe[0], buffer), user_data=1)
    shaped.submit()
    assert len(shaped.peek_cqes()) == 0
    os.write(pipe[1], b"data")
    deadline = time.monotonic() + 10
    while not (peeked := shaped.peek_cqes()):
        assert time.monotonic() < deadline
    assert list(peeked) == [uring.CQE(1, 4, peeked[0].flags)]
    shaped.cq_advance(1)
    assert (buffer, shaped.in_flight) == (b"data", 0)


def test_every_shape_closes_with_work_in_flight(shaped: Ring, pipe: tuple[int, int]) -> None:
    """Closing cancels what waits, and gives its memory back."""
    buffer = bytearray(4)
    shaped.queue_all([Read(pipe[0], buffer), Timeout(1000), PollAdd(pipe[0])])
    shaped.submit()
    start = time.monotonic()
    shaped.close()
    assert time.monotonic() - start < 5
    assert (shaped.in_flight, shaped.fd, shaped.closed) == (0, -1, True)
    buffer.append(0)


def test_cqe32_ring_shows_the_extra_words() -> None:
    """Each CQE of a CQE32 ring has two more words, and the columns skip them."""
    nop_with_words = SQE(Opcode.NOP, op_flags=uring.NopFlags.CQE32, off=11, addr=22, user_data=1)
    with Ring(4, flags=SetupFlags.CQE32) as ring:
        for _ in range(5):
            ring.queue_all([Nop(user_data=7), nop_with_words])
            ring.submit()
            cqes = ring.copy_cqes()
            assert list(cqes.user_data) == [7, 1]
            if cqes[1].res == -errno.EINVAL:
                pytest.skip("this kernel has no NOP with extra words (6.18)")
            assert [cqe.big_cqe for cqe in cqes] == [(0, 0), (11, 22)]


def test_iopoll_ring_completes_and_refuses_buffered_reads(tmp_path: Path) -> None:
    """An IOPOLL ring takes NOPs, and what cannot be polled for is EOPNOTSUPP."""
    (tmp_path / "f").write_bytes(b"x" * 4096)
    with Ring(4, flags=SetupFlags.IOPOLL) as ring, (tmp_path / "f").open("rb") as file:
        ring.queue_all([Nop(), Read(file, bytearray(1))])
        ring.submit()
        assert list(ring.copy_cqes().res) == [0, -errno.EOPNOTSUPP]
        assert len(ring.copy_cqes(wait_nr=1, timeout=0.02)) == 0


def test_disabled_ring_refuses_to_submit_until_enabled() -> None:
    """R_DISABLED keeps operations queued; enable() lets them go; twice is an error."""
    with Ring(4, flags=SetupFlags.R_DISABLED) as ring:
        ring.queue(Nop(), user_data=1)
        with pytest.raises(uring.EnterError, match=r"call enable\(\) first") as refused:
            ring.submit()
        assert refused.value.errno == errno.EBADFD
        assert (ring.sq_ready(), ring.in_flight) == (1, 1)
        ring.enable()
        assert ring.submit() == 1
        assert ring.copy_cqe() == uring.CQE(1, 0)
        with pytest.raises(uring.RegisterError, match="not disabled"):
            ring.enable()


@pytest.mark.parametrize("flags", [SetupFlags(0), SetupFlags.SQPOLL], ids=repr)
def test_disabled_ring_closes_at_once(flags: SetupFlags) -> None:
    """What a disabled ring has queued is dropped by close(), not waited for."""
    ring = Ring(4, flags=SetupFlags.R_DISABLED | flags)
    ring.queue(Nop())
    with pytest.raises(uring.EnterError, match="enable"):
        ring.submit()
    start = time.monotonic()
    ring.close()
    assert time.monotonic() - start < 5
    assert ring.in_flight == 0


def test_published_operations_that_the_kernel_refuses_are_dropped() -> None:
    """What is in the queue and was never taken is dropped by close(), not waited for."""
    data = [bytearray(1) for _ in range(4)]
    for number in (None, 7):
        ring = Ring(4, flags=SetupFlags.R_DISABLED)
        ring._is_disabled = False  # so that it is the kernel who refuses
        for buffer in data:
            ring.queue(Write(1, buffer), user_data=number)
        with pytest.raises(uring.EnterError):
            ring.submit()
        assert ring.sq.tail == 4
        start = time.monotonic()
        ring.close()
        assert time.monotonic() - start < 5
        assert ring.in_flight == 0
    for buffer in data:
        buffer.append(0)


def test_waits_are_bounded_on_kernels_without_ext_arg(
    ring: Ring, pipe: tuple[int, int], alarm: list[int]
) -> None:
    """Before 5.11 the ring's descriptor is polled: same outcomes, signals included."""
    ring._shim.features &= ~int(uring.Features.EXT_ARG)
    ring.queue_all([Read(pipe[0], bytearray(1)), Read(pipe[0], bytearray(1))])
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    assert ring.submit_and_wait(1, timeout=0.05) == 2
    assert time.monotonic() - start >= 0.05
    assert len(alarm) == 1
    os.write(pipe[1], b"x")
    ring.submit_and_wait(1, timeout=10)
    ring.submit_and_wait(2, timeout=0.02)
    assert ring.cq_ready() == 1
    os.write(pipe[1], b"x")
    ring.submit_and_wait(2, timeout=10)
    assert [cqe.res for cqe in ring.copy_cqes()] == [1, 1]
    assert len(ring.copy_cqes(wait_nr=1, timeout=0)) == 0
    ring.queue(Read(pipe[0], bytearray(1)))
    ring.submit()
    ring.close()
    assert ring.in_flight == 0


def test_sqpoll_thread_that_sleeps_is_woken() -> None:
    """A submit after NEED_WAKEUP was set wakes the poller, and so does one with nothing new."""
    with Ring(4, flags=SetupFlags.SQPOLL, sq_thread_idle_ms=1) as ring:
        for _ in range(3):
            deadline = time.monotonic() + 10
            while SQRingFlags.NEED_WAKEUP not in ring.sq.flags:
                assert time.monotonic() < deadline
            ring.queue(Nop(), user_data=1)
            ring.submit()
            assert ring.copy_cqe(timeout=10) == uring.CQE(1, 0)


def test_sqpoll_queue_fills_and_empties_with_the_poller() -> None:
    """Thousands of operations go through four entries; a full queue says so and then has room."""
    done = 0
    with Ring(4, flags=SetupFlags.SQPOLL) as ring:
        queued = 0
        while done < 2000:
            try:
                while queued < 2000:
                    ring.queue(Nop(), user_data=queued)
                    queued += 1
            except SubmissionQueueFull:
                assert ring.sq_ready() == 4
            ring.submit()
            for cqe in ring.copy_cqes(wait_nr=1):
                assert cqe.user_data == done
                done += 1
        assert (ring.in_flight, ring.sq_ready()) == (0, 0)


def test_attach_wq_takes_a_ring(ring: Ring) -> None:
    """A ring can share the workers of another; what is none is refused by name."""
    with Ring(4, attach_wq=ring) as attached:
        attached.queue(Nop())
        attached.submit_and_wait(1)
        assert SetupFlags.ATTACH_WQ in attached.flags
    with Path("/dev/null").open("rb") as file, pytest.raises(uring.SetupError, match="attach_wq"):
        Ring(4, attach_wq=file.fileno())


def test_single_issuer_ring_refuses_another_thread(pipe: tuple[int, int]) -> None:
    """Every call from another thread is a WrongThreadError, and the owner is not disturbed."""
    refused: list[Exception] = []

    def intrude(ring: Ring) -> None:
        calls: list[Callable[[], object]] = [
            lambda: ring.queue(Nop()),
            lambda: ring.cq_advance(0),
            ring.submit,
            ring.submit_and_wait,
            ring.copy_cqes,
            ring.copy_cqe,
            ring.peek_cqes,
            ring.close,
        ]
        for call in calls:
            with pytest.raises(uring.WrongThreadError, match="SINGLE_ISSUER") as error:
                call()
            refused.append(error.value)

    with Ring(4, flags=SetupFlags.SINGLE_ISSUER) as ring:
        ring.queue(Read(pipe[0], bytearray(1)), user_data=1)
        ring.submit()
        thread = threading.Thread(target=intrude, args=(ring,))
        thread.start()
        thread.join()
        assert (len(refused), ring.in_flight) == (8, 1)
        os.write(pipe[1], b"x")
        assert ring.copy_cqe(timeout=10) == uring.CQE(1, 1)


def test_single_issuer_ring_of_an_ended_thread_can_be_closed(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has completed is reaped; what nobody can cancel any more is kept, and said."""
    kept: list[object] = []
    monkeypatch.setattr(uring._teardown, "keep_for_ever", kept.append)
    buffer = bytearray(1)
    rings = [Ring(4, flags=SetupFlags.R_DISABLED | SetupFlags.SINGLE_ISSUER) for _ in range(2)]

    def leave() -> None:
        for ring, op in zip(rings, (Nop(), Read(pipe[0], buffer)), strict=True):
            ring.enable()
            ring.queue(op)
            ring.submit()

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    for ring in rings:
        while ring._owner_lives():  # join() returns a little before the kernel's thread is gone
            pass
    rings[0].close()
    assert (rings[0].in_flight, len(kept)) == (0, 0)
    with pytest.warns(RuntimeWarning, match="1 operations"):
        rings[1].close()
    assert len(kept) == 1
    with pytest.raises(BufferError):
        buffer.append(0)


# ---- closing ----


def test_closed_ring_refuses_everything_and_closes_again(ring: Ring) -> None:
    """Every call says that the ring is closed; close() may be repeated."""
    ring.queue(Nop())
    ring.close()
    ring.close()
    assert (ring.fd, ring.closed, ring.in_flight) == (-1, True, 0)
    calls: list[Callable[[], object]] = [
        lambda: ring.queue(Nop()),
        lambda: ring.queue_all([Nop()]),
        lambda: ring.register_files([0]),
        lambda: ring.cq_advance(0),
        lambda: ring.sq.head,
        lambda: ring.cq.head,
        ring.submit,
        ring.submit_and_wait,
        ring.copy_cqe,
        ring.copy_cqes,
        ring.peek_cqes,
        ring.sq_ready,
        ring.cq_ready,
        ring.fileno,
        ring.enable,
        ring.unregister_files,
        ring.__enter__,
    ]
    for call in calls:
        with pytest.raises(RingClosedError, match="closed"):
            call()
    assert "closed" in repr(ring)


def test_close_drops_what_was_never_submitted(ring: Ring, tmp_path: Path) -> None:
    """Queued and not submitted, an operation never runs, and its memory is given back."""
    data = bytearray(b"data")
    with (tmp_path / "f").open("w+b", buffering=0) as file:
        ring.queue(Write(file, data))
        ring.close()
        assert file.read() == b""
    data.append(0)


def test_close_wakes_a_thread_that_waits(ring: Ring) -> None:
    """A wait for one, and a wait for a hundred, end with RingClosedError."""
    ended: list[Exception] = []

    def wait(wait_nr: int) -> None:
        with pytest.raises(RingClosedError) as error:
            ring.submit_and_wait(wait_nr)
        ended.append(error.value)

    threads = [threading.Thread(target=wait, args=(wait_nr,)) for wait_nr in (1, 100)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while uring._ffi.lib.uring_waiters(ring._shim) < 2:
        assert time.monotonic() < deadline
    ring.close()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 2


def test_close_wakes_a_thread_that_waits_behind_a_drain(ring: Ring, pipe: tuple[int, int]) -> None:
    """A NOP that would wake it is held up by a drained operation: that is cancelled first."""
    ended: list[Exception] = []
    ring.queue_all([Read(pipe[0], bytearray(1)), Nop().drained()])
    ring.submit()

    def wait() -> None:
        with pytest.raises(RingClosedError) as error:
            ring.copy_cqe()
        ended.append(error.value)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while uring._ffi.lib.uring_waiters(ring._shim) < 1:
        assert time.monotonic() < deadline
    start = time.monotonic()
    ring.close()
    thread.join(10)
    assert (len(ended), ring.in_flight) == (1, 0)
    assert time.monotonic() - start < 5


def test_nops_that_wake_waiters_end_nothing(ring: Ring, pipe: tuple[int, int]) -> None:
    """What a closing ring posts for its waiters has a number that nothing in flight has."""
    buffer = bytearray(1)
    ring.queue_all([Read(pipe[0], buffer, user_data=n) for n in (0, 2**63, 2**64 - 1)])
    ring.submit()
    assert uring._ffi.lib.uring_seal(ring._shim) == 0
    ring._post_nops()
    assert ring.cq_ready() == 8
    ring._reap(can_enter=True)
    assert (ring.cq_ready(), ring.in_flight) == (0, 3)
    with pytest.raises(BufferError):
        buffer.append(0)


def test_close_passes_over_a_descriptor_that_was_closed_already(ring: Ring) -> None:
    """Who peeks and closes what an open made does not break close(), nor the others' closing."""
    ring.queue_all([Openat("/dev/null"), Openat("/dev/null"), Openat("/dev/null")])
    ring.submit_and_wait(3)
    made = [cqe.res for cqe in ring.peek_cqes()]
    os.close(made[1])
    ring.close()
    assert not any(Path(f"/proc/self/fd/{fd}").exists() for fd in made)


def test_ring_is_neither_copied_nor_made_twice(ring: Ring) -> None:
    """Two objects for one ring, or two rings for one object, would lose track of memory."""
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.copy(ring)
    with pytest.raises(TypeError, match="cannot be copied"):
        pickle.dumps(ring)
    with pytest.raises(TypeError, match="set up once"):
        ring.__init__(8)  # type: ignore[misc]  # that is the point
    ring.queue(Nop())
    assert ring.submit() == 1


def test_interrupted_copy_is_made_up_for(ring: Ring) -> None:
    """What was fetched and not handed out counts as ready, once, and is handed out first."""
    ring.queue_all(Nop(user_data=number) for number in range(4))
    ring.submit()
    assert ring._fetch(3)
    assert ring.cq_ready() == 4
    assert ring.submit_and_wait(4) == 0
    assert ring.submit_and_wait(2) == 0
    ring.queue(Nop(), user_data=4)
    assert ring.submit_and_wait(5) == 1
    assert list(ring.peek_cqes(2).user_data) == [0, 1]
    assert ring.copy_cqe().user_data == 0
    ring.cq_advance(1)
    assert [*ring.copy_cqes().user_data, *ring.copy_cqes().user_data] == [2, 3, 4]


def test_close_closes_descriptors_that_nobody_collected(ring: Ring) -> None:
    """An accepted and an opened descriptor that were never copied out do not leak."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ring.queue_all([Accept(server), Openat("/dev/null")])
        with socket.create_connection(server.getsockname()):
            ring.submit_and_wait(2, timeout=10)
            made = [cqe.res for cqe in ring.peek_cqes()]
            assert all(Path(f"/proc/self/fd/{fd}").exists() for fd in made)
            ring.close()
            assert len(made) == 2
            assert not any(Path(f"/proc/self/fd/{fd}").exists() for fd in made)


def test_dropped_ring_warns_and_leaks_nothing(
    pipe: tuple[int, int], descriptors: Callable[[], set[str]]
) -> None:
    """A hundred rings dropped open, with work in flight, warn and give all back."""
    buffer = bytearray(1)
    before = descriptors()
    for _ in range(100):
        ring = Ring(2)
        ring.queue(Read(pipe[0], buffer))
        ring.submit()
        with pytest.warns(ResourceWarning, match=r"dropped without close\(\)"):
            del ring
    assert descriptors() == before
    buffer.append(0)


def test_close_falls_back_to_cancelling_one_by_one(
    ring: Ring, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel lacks REGISTER_SYNC_CANCEL, each operation is cancelled by an SQE."""

    class OldKernel:
        def __getattr__(self, name: str) -> object:
            return getattr(uring._ffi.lib, name)

        def uring_register(self, *_: object) -> int:
            return -errno.EINVAL

    monkeypatch.setattr("uring.ring.lib", OldKernel())
    buffers = [bytearray(1) for _ in range(8)]
    ring.queue_all(Read(pipe[0], buffer, user_data=i // 2) for i, buffer in enumerate(buffers))
    ring.submit()
    ring.close()
    assert ring.in_flight == 0
    for buffer in buffers:
        buffer.append(0)


def test_what_cannot_be_taken_back_is_kept_and_said(
    ring: Ring, pipe: tuple[int, int], kept: list[object]
) -> None:
    """When the time to close is over, the memory is kept for ever, with a RuntimeWarning."""
    buffer = bytearray(1)
    ring.queue(Read(pipe[0], buffer))
    ring.submit()
    with pytest.warns(RuntimeWarning, match="1 operations .* kept until the process ends"):
        ring.close()
    assert (ring.fd, len(kept)) == (-1, 1)
    with pytest.raises(BufferError):
        buffer.append(0)


def test_mmap_buffer_cannot_be_closed_in_flight(ring: Ring, pipe: tuple[int, int]) -> None:
    """An mmap that is lent raises BufferError on close, and closes afterwards."""
    memory = mmap.mmap(-1, 4096)
    ring.queue(Read(pipe[0], memory))
    ring.submit()
    with pytest.raises(BufferError):
        memory.close()
    os.write(pipe[1], b"data")
    assert ring.copy_cqe(timeout=10).res == 4
    assert memory[:4] == b"data"
    memory.close()


# ---- counters at the edge of 32 bits, on a shim whose queue is our own memory ----


def test_copy_goes_over_the_edge_of_the_counters(ring: Ring) -> None:
    """CQEs are copied in order across 2**32 and across the end of the array, and the head moves."""
    ffi, lib = uring._ffi.ffi, uring._ffi.lib
    head, tail = ffi.new("uint32_t *", 2**32 - 3), ffi.new("uint32_t *", 2)
    entries = ring.cq.entries
    cqes = ffi.new("uint64_t[]", 2 * entries)
    for place in range(-3, 2):
        cqes[2 * (place % entries)] = 100 + place
    shim = ring._shim
    saved = shim.cq_head, shim.cq_tail, shim.cqes
    shim.cq_head, shim.cq_tail, shim.cqes = head, tail, ffi.cast("char *", cqes)
    shim.cq_taken = head[0]
    try:
        assert ring.cq_ready() == 5
        assert list(ring.copy_cqes(2).user_data) == [97, 98]
        assert (ring._had, head[0], ring.cq.head) == (2, 2**32 - 1, 2**32 - 1)
        assert list(ring.peek_cqes().user_data) == [99, 100, 101]
        ring.cq_advance(1)
        assert list(ring.copy_cqes().user_data) == [100, 101]
        assert (ring._had, head[0], ring.cq_ready()) == (5, 2, 0)
        assert lib.uring_wait(shim, 5, 1, 0) == -errno.ETIME
    finally:
        shim.cq_head, shim.cq_tail, shim.cqes = saved
        shim.cq_taken = 0


def test_placing_goes_over_the_edge_of_the_counters(ring: Ring) -> None:
    """SQEs are placed in order across 2**32, and a full queue is told by the difference."""
    ffi, lib = uring._ffi.ffi, uring._ffi.lib
    head, tail = ffi.new("uint32_t *", 2**32 - 2), ffi.new("uint32_t *", 2**32 - 2)
    sqes = ffi.new("uint64_t[]", 8 * 8)
    shim = ring._shim
    saved = shim.sq_head, shim.sq_tail, shim.sqes
    shim.sq_head, shim.sq_tail, shim.sqes = head, tail, ffi.cast("char *", sqes)
    shim.placed = ring._pending[0] = 2**32 - 2
    try:
        ring.queue_all(Nop(user_data=number) for number in range(8))
        assert (ring.sq.sqe_head, ring.sq.sqe_tail, ring.sq_ready()) == (2**32 - 2, 6, 8)
        assert ring.submit() == 0  # the kernel's own queue is empty: it takes nothing
        assert tail[0] == 6
        assert [sqes[8 * ((2**32 - 2 + i) % 8) + 4] for i in range(8)] == list(range(8))
        with pytest.raises(SubmissionQueueFull):
            ring.queue(Nop())
        assert (ring.sq_ready(), ring._pending) == (8, [6])
        stale = lib.uring_submit(shim, 5, bytes(64), bytes(8), 1)
        assert stale == -errno.ESTALE
    finally:
        shim.sq_head, shim.sq_tail, shim.sqes = saved
        ring._pending[:] = [0]
        shim.placed = 0
        ring._in_flight.recent = None


def test_flags_of_completions_are_the_kernels(ring: Ring) -> None:
    """A receive that leaves more in the socket says so in its flags."""
    left, right = socket.socketpair()
    with left, right:
        right.send(b"data")
        ring.queue(uring.Recv(left, bytearray(2)))
        ring.submit()
        cqe = ring.copy_cqe(timeout=10)
        assert (cqe.res, cqe.more) == (2, False)
        assert CQEFlags(cqe.flags) & CQEFlags.SOCK_NONEMPTY


# ---- the shortest ways ----


def test_copying_one_completion_keeps_the_words_of_a_big_one() -> None:
    """copy_cqe() after submit_and_wait() gives both extra words of a 32-byte CQE."""
    with Ring(8, flags=SetupFlags.CQE32) as ring:
        ring.queue(SQE(Opcode.NOP, op_flags=uring.NopFlags.CQE32, off=11, addr=22))
        ring.submit_and_wait()
        assert ring.copy_cqe().big_cqe == (11, 22)


@pytest.mark.parametrize("copy", [Ring.copy_cqe, lambda ring: ring.copy_cqes()[0]])
@pytest.mark.parametrize("submit", [Ring.submit, Ring.submit_and_wait])
def test_copying_one_completion_with_more_ends_nothing(
    ring: Ring, copy: Callable[[Ring], uring.CQE], submit: Callable[[Ring], int]
) -> None:
    """The one operation in flight stays there after a completion that has MORE."""
    inlet, outlet = os.pipe()
    ring.queue(SQE(Opcode.POLL_ADD, fd=inlet, len=uring.PollFlags.ADD_MULTI, op_flags=1))
    os.write(outlet, b"x")
    submit(ring)
    assert copy(ring).more
    assert ring.in_flight == 1
    ring.close()
    os.close(inlet)
    os.close(outlet)


def test_submitting_one_notices_what_a_handler_queues_meanwhile(ring: Ring) -> None:
    """What is queued in the middle of submit_and_wait() is submitted once, and nothing is lost."""
    queued: list[int] = []

    def profile(_frame: Any, event: str, argument: Any) -> None:
        if event == "c_return" and argument is len and not queued:
            queued.append(ring.queue(Nop(), user_data=78))

    ring.queue(Nop(), user_data=77)
    sys.setprofile(profile)
    try:
        ring.submit_and_wait()
    finally:
        sys.setprofile(None)
    ring.submit()
    assert queued == [78]
    assert list(ring.copy_cqes().user_data) == [77, 78]
    assert (ring.in_flight, ring.sq_ready(), ring.cq_ready()) == (0, 0, 0)


def test_close_wakes_who_waits_for_many(until: Callable[..., None]) -> None:
    """A thread that waits for 65536 completions on a ring of one entry is told, and promptly."""
    ring = Ring(1, cq_entries=65536)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            ring.submit_and_wait(65536)
        except uring.RingClosedError as error:
            told.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    until(lambda: uring._ffi.lib.uring_waiters(ring._shim) >= 1)
    started = time.monotonic()
    ring.close()
    thread.join(5)
    assert len(told) == 1
    assert time.monotonic() - started < 5


def test_empty_completions_are_nobodys_to_change(ring: Ring) -> None:
    """Completions refuse to be set up again, so the empty ones of all rings stay empty."""
    with pytest.raises(TypeError, match="immutable"):
        ring.copy_cqes().__init__(bytes(16))  # type: ignore[misc]  # what an attacker would do
    assert len(ring.copy_cqes()) == 0


def test_two_operations_with_one_number_are_not_told_apart(
    ring: uring.Ring, until: Callable[..., None], pipe: tuple[int, int]
) -> None:
    """Under a shared number the second may end first, so no completion claims to be of either."""
    reads, feeds = os.pipe()
    try:
        ring.queue_all([uring.Read(fd, bytearray(8), user_data=5) for fd in (pipe[0], reads)])
        ring.submit()
        for count, (outlet, data) in enumerate(((feeds, b"x"), (pipe[1], b"abc")), 1):
            os.write(outlet, data)
            until(lambda: ring.cq_ready() == count)  # noqa: B023 - the lambda ends within the loop
        completions = ring.copy_cqes()
    finally:
        os.close(reads)
        os.close(feeds)
    assert [(cqe.res, cqe.op) for cqe in completions] == [(1, None), (3, None)]
    assert ring.in_flight == 0


def test_refused_operations_leave_the_claims_of_others(
    ring: uring.Ring, pipe: tuple[int, int]
) -> None:
    """A number that makes descriptors stays apart when another queueing of it was refused."""
    ring.queue(uring.Openat("/", user_data=5))
    ring.queue(uring.PollAdd(pipe[0], user_data=6))
    with pytest.raises(ValueError, match="0x6 is in use"):
        ring.queue_all([uring.Openat("/", user_data=5), uring.Pipe(user_data=6)])
    with pytest.raises(ValueError, match="0x5 is in use"):
        ring.queue(uring.Nop(), user_data=5)
    assert ring.in_flight == 2


@pytest.mark.parametrize("order", [1, -1])
def test_what_must_be_alone_is_refused_a_shared_number_at_once(
    ring: uring.Ring, order: int
) -> None:
    """Of two operations of one queue_all(), in either order, and of two of the same kind."""
    for other in (uring.Nop(user_data=6), uring.Pipe(user_data=6)):
        with pytest.raises(ValueError, match="0x6 is in use"):
            ring.queue_all([other, uring.Pipe(user_data=6)][::order])
    assert ring.in_flight == 0


def test_ring_in_a_cycle_is_closed_for_who_is_collected_after_it(pipe: tuple[int, int]) -> None:
    """A finalizer of the same cycle that looks at the ring finds it closed, its memory there."""
    told: list[str] = []

    class Late:
        """Made after the ring, so collected after it."""

        def __init__(self, ring: uring.Ring, buffer: bytearray) -> None:
            self.ring, self.buffer, self.itself = ring, buffer, self

        def __del__(self) -> None:
            with pytest.raises(uring.RingClosedError) as info:  # asks the shim at once
                self.ring.sq.head  # noqa: B018 - the look is the test
            told.append(str(info.value))
            self.buffer.append(0)  # no export is left: the kernel has given it back

    def cycle() -> None:
        ring = uring.Ring(8)
        late = Late(ring, bytearray(8))
        ring.queue(uring.Read(pipe[0], late.buffer))
        ring.submit()
        ring._late = late  # type: ignore[attr-defined]  # to close the cycle

    cycle()
    with pytest.warns(ResourceWarning, match="without close"):
        gc.collect()
    assert told == ["the ring was dropped without close(), and is closed"]


@pytest.mark.parametrize(
    "queue",
    [lambda ring, op: ring.queue(op), lambda ring, op: ring.queue_all([op])],
    ids=["queue", "queue_all"],
)
def test_queue_lets_go_of_what_comes_while_the_ring_is_closed(
    ring: uring.Ring, queue: Callable[[uring.Ring, uring.Operation], object]
) -> None:
    """A file that closes the ring when it is asked for its number leaves no buffer pinned."""

    class Closer:
        def fileno(self) -> int:
            ring.close()
            return 0

    buffer = bytearray(8)
    with pytest.raises(uring.RingClosedError):
        queue(ring, uring.Read(Closer(), buffer))
    buffer.append(0)
