"""
Guards that nothing else misses when they are gone, above all those against one's own handlers.

What a signal handler does amid a call is done here by an object that is looked at there.
"""

import contextlib
import ctypes
import errno
import gc
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest
from shared import in_child

import uring
from uring import (
    SQE,
    Batch,
    CQEFlags,
    EpollCtl,
    EpollOp,
    Fsync,
    MsgRing,
    Nop,
    Opcode,
    Openat,
    Read,
    Recv,
    Ring,
    SendSelect,
    SetupFlags,
    SQEFlags,
    Write,
    _columns,
    _completion,
    _memory,
    _records,
    _streaming,
    _submission,
    _teardown,
    _waiting,
    completions,
)
from uring._claims import Claims, Record
from uring._core import Core
from uring._ffi import ffi, lib
from uring._inflight import InFlight
from uring._leases import Block
from uring._messages import parse_control
from uring._pledges import Alias, Pledge
from uring._running import Run
from uring.registry._base import GUARD, Registrar, descriptor_of

SKIP: Final = SQEFlags.CQE_SKIP_SUCCESS
LINK: Final = SQEFlags.IO_LINK
SECONDS: Final = 10
DEFER: Final = SetupFlags.DEFER_TASKRUN | SetupFlags.SINGLE_ISSUER


def record(number: int, flags: SQEFlags = SQEFlags(0), pins: object = None) -> Record:  # noqa: B008 - immutable
    """A record as the submission side makes it."""
    op = Nop(flags=flags)
    return number, op.sqe().encode(), op, pins


def entered(*records: Record) -> InFlight:
    """A table with records in it, each in the dict."""
    table = InFlight()
    table.claims.update(table.claim(records))
    table.add([0, *records])
    table.index()
    return table


class Hooked(dict[int, Any]):
    """A dict at which something happens, once, when it is looked at."""

    hook: Callable[[], object] | None = None

    def _look(self) -> None:
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()

    def get(self, *args: Any) -> Any:
        """Look up, after the handler has run."""
        self._look()
        return super().get(*args)

    def keys(self) -> Any:
        """Give the keys, after the handler has run."""
        self._look()
        return super().keys()

    @property
    def pop(self) -> Any:
        """Give what takes out, after the handler has run."""
        self._look()
        return super().pop


def hooked(table: InFlight, hook: Callable[[], object]) -> None:
    """Have something happen when the entries of the table are looked at next."""
    table.entries = entries = Hooked(table.entries)
    entries.hook = hook


def retires_and_queues(table: InFlight) -> Callable[[], None]:
    """What a handler does that takes what has ended, and submits the number 2 anew."""

    def hook() -> None:
        table.retire()
        table.add([0, record(2)])
        table.index()

    return hook


def until(condition: Callable[[], object]) -> None:
    """Wait for something that the kernel or another thread brings about."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def descriptors() -> set[str]:
    """Every descriptor that is open, but not that of the listing itself."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


# ---- the in-flight table ----


@pytest.mark.parametrize("flags", [None, [0, 0]])
def test_retire_ends_nothing_that_was_queued_in_the_middle(flags: list[int] | None) -> None:
    """A handler has retired the same, and used a number again: that one stays."""
    table = entered(record(1), record(2), record(9))
    hooked(table, retires_and_queues(table))
    table.ended = 0, [1, 2], flags
    table.retire()
    assert sorted(table.numbers()) == [2, 9]


def test_add_enters_nothing_that_was_placed_in_the_middle() -> None:
    """A handler has submitted the same, and it has ended: it is not entered."""
    table = entered(record(1))
    pending: list[Any] = [0, record(7)]

    def hook() -> None:
        pending[:] = [1]

    hooked(table, hook)
    table.add(pending)
    assert table.numbers() == [1]


def test_add_forgets_nothing_that_was_entered_in_the_middle() -> None:
    """What a handler has handed over in the short way is there afterwards."""
    table = InFlight()

    class Pending(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if isinstance(index, slice):
                table.recent = (9).to_bytes(8, "little"), [record(9)]
            return super().__getitem__(index)

    table.add(Pending([0, record(7)]))
    assert 9 in table.numbers()


def test_chain_ends_nothing_that_has_its_former_number() -> None:
    """A number of a silent operation that has ended is somebody else's when the rest ends."""
    table = entered(record(1, SKIP | LINK), record(2, LINK), record(3))
    table.ended = 0, [2], None
    table.retire()
    table.add([0, record(1)])
    table.ended = 1, [3], None
    table.retire()
    assert table.numbers() == [1]


def test_silent_chain_has_no_number_twice() -> None:
    """Nobody could tell which of the two has ended."""
    with pytest.raises(ValueError, match="a user_data of its own"):
        InFlight().claim([record(1, SKIP | LINK), record(1)])


def test_silent_chains_of_one_call_share_no_number() -> None:
    """Nor can two chains that are queued at once."""
    chains = [record(1, SKIP | LINK), record(2), record(1, SKIP | LINK), record(3)]
    with pytest.raises(ValueError, match="in a chain with CQE_SKIP_SUCCESS"):
        InFlight().claim(chains)


def test_completion_from_outside_is_counted_once() -> None:
    """However often it is retired, because a reader was cut off."""
    table = InFlight()
    for _ in range(2):
        table.expect(5, [0])
    ended = 0, [5], None
    for _ in range(2):
        table.ended = ended
        table.retire()
    assert 5 in table.claims
    table.ended = 1, [5], None
    table.retire()
    assert 5 not in table.claims


# ---- promises ----


class Noted(Pledge):
    """A promise that notes how often it was taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.is_settled = False  # as when it was given to a ring
        self.count = 0

    def _take_back(self) -> None:
        self.count += 1


def test_promise_is_taken_back_once() -> None:
    """A failure that is told twice gives one number back."""
    pledge = Noted()
    pledge.settle(-1)
    pledge.settle(-1)
    assert pledge.count == 1


def test_promise_of_what_the_kernel_never_took_is_taken_back() -> None:
    """Also when it was handed over: discarding it says what became of it."""
    pledge = Noted()
    pledge.is_handed_over = True
    discarded = record(1, pins=pledge)
    table = InFlight()
    table.discard(discarded)
    assert pledge.count == 1


# ---- queueing ----


def test_silent_chain_is_not_queued_behind_an_open_one(ring: Ring) -> None:
    """It would be part of that one, of which nobody knows how it ends."""
    ring.queue(Nop().linked())
    with pytest.raises(ValueError, match="linked to this chain"):
        ring.queue_all([Nop(flags=SKIP | LINK), Nop()])
    assert ring.sq_ready() == 1


def test_handler_that_queues_amid_claims_is_noticed(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler has linked to a silent chain, after the look, has it refused."""
    check, calls = Claims.check_claims, [0]

    def check_claims(self: Claims, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == 1:
            ring.queue(Nop().linked())
        check(self, *args)

    monkeypatch.setattr(Claims, "check_claims", check_claims)
    with pytest.raises(ValueError, match="linked to this chain"):
        ring.queue_all([Nop(flags=SKIP | LINK), Nop()])
    assert ring.sq_ready() == 1
    assert not ring._in_flight.claims


def test_operation_that_needs_care_is_queued_by_the_owner_alone(ring_refusal: str) -> None:
    """With SINGLE_ISSUER, also where queue() takes the long way."""
    assert not ring_refusal
    with Ring(4, flags=SetupFlags.SINGLE_ISSUER) as ring:
        told: list[type[Exception]] = []

        def queue() -> None:
            try:
                ring.queue(SQE(Opcode.NOP))
            except uring.UringError as error:
                told.append(type(error))

        thread = threading.Thread(target=queue)
        thread.start()
        thread.join()
        assert told == [uring.WrongThreadError]
        assert ring.sq_ready() == 0


def test_operation_that_closes_its_ring_is_not_queued() -> None:
    """A number is given for what will be submitted, and for nothing else."""
    ring = Ring(4)

    class Closing:
        def fileno(self) -> int:
            ring.close()
            return 0

    with pytest.raises(uring.RingClosedError):
        ring.queue(Fsync(Closing(), flags=SQEFlags.ASYNC))


def test_disabled_poller_says_so(ring_refusal: str) -> None:
    """The kernel does not, for its thread is not asked by a submit."""
    assert not ring_refusal
    with Ring(4, flags=SetupFlags.SQPOLL | SetupFlags.R_DISABLED) as ring:
        ring.queue(Nop())
        with pytest.raises(uring.EnterError, match="enable"):
            ring.submit()


def test_number_that_a_run_has_drawn_is_not_chosen_for_another(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """Its completion would be taken for one of the run."""
    number = ring._next_number
    thread = threading.Thread(target=ring.run, args=[[Read(pipe[0], bytearray(1))]])
    thread.start()
    try:
        until(lambda: lib.uring_waiters(ring._shim))
        with pytest.raises(ValueError, match="in a batch that is being run"):
            ring.queue(Nop(), user_data=number)
        with pytest.raises(ValueError, match="in a batch that is being run"):
            ring.queue_all([Nop(user_data=number)])
        with pytest.raises(ValueError, match="in a batch that is being run"):
            ring.run([Nop(user_data=number)])
    finally:
        os.write(pipe[1], b"x")
        thread.join()


# ---- submitting and copying out ----


class Door:
    """The door to the shim, with one function replaced."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function

    def __getattr__(self, name: str) -> Any:
        return self._function if name == self._name else getattr(lib, name)


def interrupted(*_: object) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def test_what_is_in_flight_is_not_forgotten_for_what_is_submitted_next(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """Of two that are submitted one after the other, both stay pinned until they have ended."""
    buffers = [bytearray(1), bytearray(1)]
    for buffer in buffers:
        ring.queue(Read(pipe[0], buffer))
        ring.submit()
    assert ring.in_flight == 2
    for buffer in buffers:
        with pytest.raises(BufferError):
            buffer.clear()
    os.write(pipe[1], b"xy")
    ring.submit_and_wait(2)
    assert all(cqe.op for cqe in ring.copy_cqes())


def test_handover_that_is_cut_off_is_over(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be handed over is still queued, and nobody is believed to be handing over."""
    ring.queue(Nop())
    with monkeypatch.context() as patch:
        patch.setattr(_submission, "lib", Door("uring_submit_one", interrupted))
        with pytest.raises(KeyboardInterrupt):
            ring.submit()
    assert (ring._handovers, ring.sq_ready()) == (0, 1)
    assert ring.submit_and_wait() == 1
    assert len(ring.copy_cqes()) == 1


def test_submit_that_must_stop_cuts_no_chain(ring: Ring) -> None:
    """As many records as fit are handed over, but for the beginning of a chain."""
    linked, last = record(1, LINK), record(2)
    ring._shim.sq_tail[0] = 6  # what the kernel has not taken yet
    assert ring._fitting([last, linked, last]) == 1
    assert ring._fitting([last, last, linked, last]) == 2
    assert ring._fitting([linked, linked, last]) == 0
    ring._shim.sq_tail[0] = 0
    assert ring._fitting([linked] * 9) == 8  # which would never fit


def test_trimming_is_noticed_by_who_was_trimming(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler has trimmed, amid the same, is trimmed once: nothing is dropped with it."""
    for number in (7, 8):
        ring.queue(Nop(), user_data=number)
    assert lib.uring_submit_one(ring._shim, 0, bytes(64), 7) & 0xFFFFFFFF == 1
    counters, calls = Core._counters, [0]

    def look(self: Core) -> Any:
        found = counters(self)
        calls[0] += 1
        if calls[0] == 1:
            ring._trim()
        return found

    monkeypatch.setattr(Core, "_counters", look)
    ring._trim()
    assert (ring._pending[0], [pending[0] for pending in ring._pending[1:]]) == (1, [8])
    monkeypatch.undo()
    assert ring.submit_and_wait(2) == 1
    assert ring.copy_cqes().user_data.tolist() == [7, 8]


def test_copying_trims_what_another_has_placed(ring: Ring) -> None:
    """So that who is about to enter it in the table, and it has ended, notices."""
    ring.queue(Nop(), user_data=7)
    ring._handovers = 1  # as of one who was cut off
    assert lib.uring_submit_one(ring._shim, 0, bytes(64), 7) & 0xFFFFFFFF == 1
    assert len(ring.copy_cqes()) == 1
    assert ring._pending == [1]
    ring._handovers = 0


@pytest.mark.parametrize(
    "copy", [lambda ring: [*ring.copy_cqes(2)], lambda ring: [ring.copy_cqe()]]
)
def test_copying_gives_nothing_that_a_handler_has_taken(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, copy: Callable[[Ring], list[uring.CQE]]
) -> None:
    """A handler that copies amid the same gets some, and the other call the others: each once."""
    queued = ring.queue_all([Nop()] * 4)
    ring.submit()
    ring._keep_completions()
    cut, seen = uring.Completions.__getitem__, list[int]()

    def look(self: uring.Completions, index: Any) -> Any:
        if not seen:
            seen.append(0)
            seen[:] = ring.copy_cqes(3).user_data.tolist()
        return cut(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(uring.Completions, "__getitem__", look)
        seen += [cqe.user_data for cqe in copy(ring)]
    seen += ring.copy_cqes().user_data.tolist()
    assert seen == queued


def test_copying_what_was_submitted_last_gives_nothing_that_a_handler_has_taken(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of the way that holds no lock."""
    queued = ring.queue_all([Nop()] * 4)
    ring.submit()
    seen = list[int]()

    def look(*args: Any) -> int:
        if not seen:
            seen.extend(ring.copy_cqes(3).user_data.tolist())
        return int(lib.uring_is_increasing(*args))

    monkeypatch.setattr(_completion, "lib", Door("uring_is_increasing", look))
    seen += ring.copy_cqes().user_data.tolist()
    assert seen == queued
    assert ring.in_flight == 0


def test_completion_that_is_set_apart_is_not_copied(ring: Ring) -> None:
    """A stream's own, when another thread has submitted and waited for it in the shortest way."""
    ring._set_apart(5)
    ring.queue(Nop(), user_data=5)
    ring.submit_and_wait()
    with pytest.raises(TimeoutError):
        ring.copy_cqe(timeout=0)
    assert not ring.copy_cqes()
    ring._set_apart(5, is_ended=True)
    assert ring.copy_cqe(timeout=SECONDS).user_data == 5


def test_completions_in_another_order_are_of_their_own_operations(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """What was submitted last may end in any order."""
    other = os.pipe()
    reads = [Read(pipe[0], bytearray(1)), Read(other[0], bytearray(1))]
    ring.queue_all(reads)
    ring.submit()
    for end in (other[1], pipe[1]):
        os.write(end, b"x")
    until(lambda: ring.cq_ready() == 2)
    assert ring._in_flight.recent  # the short way is open
    assert [cqe.op for cqe in ring.copy_cqes()] == reads[::-1]
    for end in other:
        os.close(end)


def test_completion_from_outside_does_not_end_the_operation_in_flight(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """One that carries another number is of nothing that is known, and ends nothing."""
    with Ring(1) as sender:
        sender.queue(SQE(Opcode.MSG_RING, fd=ring.fd, off=9))
        sender.submit_and_wait()
    read = Read(pipe[0], bytearray(1))
    ring.queue(read)
    ring.submit_and_wait()
    stranger = ring.copy_cqe(timeout=SECONDS)
    assert (stranger.user_data, stranger.op, ring.in_flight) == (9, None, 1)
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).op is read


# ---- streams ----


def test_stream_gives_nothing_that_a_handler_has_taken(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that reads the same stream amid a read of it: each completion comes once."""
    stream = ring.stream(Nop())
    cut, seen = uring.Completions.__getitem__, list[uring.CQE | None]()

    def look(self: uring.Completions, index: Any) -> Any:
        if not seen:
            seen.append(None)
            seen[:] = [stream.take(timeout=SECONDS)]
        return cut(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(uring.Completions, "__getitem__", look)
        seen.append(stream.take(timeout=SECONDS))
    assert [cqe is None for cqe in seen] == [False, True]


def test_stream_of_a_closed_ring_sets_nothing_apart(ring: Ring) -> None:
    """It is refused before anything is done for it."""
    ring.close()
    with pytest.raises(uring.RingClosedError):
        ring.stream(Nop())
    assert not ring._streamed


def test_streams_are_ended_one_at_a_time(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one's descriptors, which are still to be closed, would be replaced by another's."""
    held = []

    def close_all(unread: list[int | None]) -> None:
        held.append(ring._lock._is_owned())  # type: ignore[attr-defined]  # what it is for
        completions.close_all(unread)

    monkeypatch.setattr(_streaming, "close_all", close_all)
    ring.stream(Nop()).close()
    assert held
    assert all(held)


# ---- batches ----


def test_run_that_could_not_be_cancelled_stays_in_the_table(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """What a drain holds up is in flight, with its memory, until it has ended."""
    buffer = bytearray(1)
    ring.queue(Read(pipe[0], bytearray(1)))
    ring.submit()
    with pytest.raises(TimeoutError):
        ring.run([Read(pipe[0], buffer).drained()], timeout=0.02)
    assert ring.in_flight == 2
    with pytest.raises(BufferError):
        buffer.clear()
    os.write(pipe[1], b"xy")
    ring.copy_cqe(timeout=SECONDS)
    until(lambda: not ring.in_flight)
    buffer.clear()


def test_run_keeps_the_memory_when_the_collector_has_cleared_its_batch(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """As it does with a batch in a cycle: the kernel may still write to its buffers."""
    buffer = bytearray(1)
    ring.queue(Read(pipe[0], bytearray(1)))
    ring.submit()
    batch = Batch([Read(pipe[0], buffer).drained()])
    with pytest.raises(TimeoutError):
        ring.run(batch, timeout=0.02)
    batch._pins.clear()  # what its finalizer does
    gc.collect()
    with pytest.raises(BufferError):
        buffer.clear()
    os.write(pipe[1], b"xy")
    until(lambda: ring.copy_cqes() or not ring.in_flight)
    until(lambda: not ring.in_flight)


def test_run_that_is_left_starts_nothing_more(pipe: tuple[int, int]) -> None:
    """What had no room in the ring when the time was over is not submitted afterwards."""
    inlet, outlet = os.pipe()
    os.set_blocking(inlet, False)
    reads = [Read(pipe[0], bytearray(1)) for _ in range(2)]
    with Ring(1) as ring:
        assert ring.params.cq_entries == len(reads)
        with pytest.raises(TimeoutError):
            ring.run([*reads, Write(outlet, b"x")], timeout=0.02)
        assert ring.in_flight == 0
    with pytest.raises(BlockingIOError):
        os.read(inlet, 1)
    for end in (inlet, outlet):
        os.close(end)


def test_run_that_was_not_begun_closes_no_descriptor() -> None:
    """What is in its memory are the results of another pass, which has given them to somebody."""
    run = Run(Batch([Openat("/dev/null")]), 16)
    fd = os.open("/dev/null", os.O_RDONLY)
    run.landed[8:16] = struct.pack("=iI", fd, 0)
    run.first, run.shim.first_number = 5, 4
    run.close_descriptors()
    os.close(fd)


def test_message_is_not_for_a_batch(ring: Ring) -> None:
    """What it promises to its target is accounted for one by one."""
    with pytest.raises(ValueError, match="not for a batch"):
        Batch([MsgRing(ring, target_user_data=1)])


def test_column_of_integers_is_a_copy() -> None:
    """What another thread changes afterwards, or amid the check, is not what is used."""
    numbers = array("q", [1, 2])
    column = _columns.integers(numbers, "offsets")
    numbers[0] = 9
    assert list(column) == [1, 2]


def test_resize_amid_a_run_is_refused(ring_refusal: str) -> None:
    """Also by a handler, when the run is in the table and not in the shim yet."""
    assert not ring_refusal
    with Ring(4, flags=DEFER) as ring:
        run = Run(Batch([Nop()]), 16)
        ring._in_flight.runs[run.first] = run
        with pytest.raises(uring.RegisterError, match="a batch is being run"):
            ring.resize(8)
        del ring._in_flight.runs[run.first]


@pytest.mark.parametrize("entries", [2, 8])
def test_ring_that_is_resized_has_the_smaller_size(
    ring_refusal: str, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    """Until the step is done, what fits in neither is refused."""
    assert not ring_refusal
    seen = []
    with Ring(4, flags=DEFER) as ring:

        def resize(*args: Any) -> int:
            seen.append(ring.params.sq_entries)
            return int(lib.uring_resize(*args))

        monkeypatch.setattr(_waiting, "lib", Door("uring_resize", resize))
        ring.resize(entries)
        assert (seen, ring.params.sq_entries) == ([min(4, entries)], entries)


def test_inbox_of_a_ring_that_can_be_resized_has_room_for_the_largest_queue(
    ring_refusal: str,
) -> None:
    """It never moves, for C writes to it without asking."""
    assert not ring_refusal
    with Ring(4, flags=DEFER) as ring:
        assert len(ring._inbox) == 65536 * 16


# ---- what is registered ----


def test_former_registration_ends_nothing(ring: Ring) -> None:
    """Nor does one that was replaced between the look and the lock."""
    former = ring.register_files([0]), ring.register_buffers([bytearray(8)])
    for each in former:
        each.close()
    current = ring.register_files([0]), ring.register_buffers([bytearray(8)])
    for registration in former:
        registration._unregister()
    assert [each.closed for each in current] == [False, False]


def test_former_buffers_are_not_cloned(ring: Ring) -> None:
    """The kernel would clone those that there are, and nobody would keep their memory."""
    former = ring.register_buffers([bytearray(8)])
    former.close()
    ring.register_buffers([bytearray(8)])
    with Ring(2) as other, pytest.raises(uring.RegisterError) as caught:
        other.clone_buffers(former)
    assert caught.value.errno == errno.ENXIO


def test_descriptor_of_a_ring_that_is_closed_meanwhile_is_not_given(ring: Ring) -> None:
    """What was duplicated may be somebody else's by then, and is closed again."""
    answers = [ring.fd]

    class Closing:
        def fileno(self) -> int:
            if not answers:
                raise uring.RingClosedError("the ring is closed")
            return answers.pop()

    before = descriptors()
    with pytest.raises(uring.RingClosedError), descriptor_of(cast("Registrar", Closing())):
        answers.append(-1)  # not reached
    assert not answers
    assert descriptors() == before


# ---- provided buffers ----


def test_view_of_a_buffer_keeps_the_memory_of_its_group() -> None:
    """When nobody else has it any more."""

    def blocks() -> int:
        gc.collect()
        return sum(type(each) is Block for each in gc.get_objects())

    before, mark = blocks(), ffi.new("struct uring_mark *")
    block = Block(4, 16, is_incremental=False, is_outgoing=False)
    view = block.stay(0, mark)
    del block
    assert blocks() == before + 1
    view.release()
    del view
    assert blocks() == before


def outgoing() -> Block:
    """The memory of a group to send from, with one buffer that was given."""
    block = Block(4, 16, is_incremental=False, is_outgoing=True)
    assert block.free is not None
    block.given[block.free.pop()] = 1
    return block


def test_buffer_that_was_sent_is_taken_back_once() -> None:
    """And not for the time before the one for which it was given last."""
    block = outgoing()
    (bid,) = block.given
    block.take_back(bid, 0)
    assert (len(block.free or ()), [*block.given]) == (3, [bid])
    for _ in range(2):
        block.take_back(bid, 1)
    assert (len(block.free or ()), [*block.given]) == (4, [])


def test_look_that_does_not_count_takes_no_buffer_back() -> None:
    """What it made is dropped, and the buffer may still be being sent."""
    block, mark = outgoing(), ffi.new("struct uring_mark *")
    (bid,) = block.given
    view = block.stay(bid, mark)
    del view
    assert [*block.given] == [bid]
    view = block.stay(bid, mark)
    mark.is_final = 1
    del view
    assert not block.given


def test_handler_that_puts_amid_a_put_has_another_buffer(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each put has its own, whatever comes in between."""
    group = ring.register_send_buffer_ring(4, size=16)
    part, calls = Block.part, [0]

    def hooked_part(self: Block, bid: int) -> memoryview:
        calls[0] += 1
        if calls[0] == 1:
            group.put(b"inner")
        return part(self, bid)

    monkeypatch.setattr(Block, "part", hooked_part)
    group.put(b"outer")
    assert (group.free, len(group._block.given), group.inside) == (2, 2, 2)


def test_buffers_that_wait_to_be_sent_are_not_taken_back(ring: Ring) -> None:
    """A full group is full, though nothing is in flight."""
    group = ring.register_send_buffer_ring(2, size=4)
    group.put(b"1111")
    group.put(b"2222")
    with pytest.raises(BufferError):
        group.put(b"3333")
    assert (group.free, group.inside) == (0, 2)


def test_buffer_that_is_being_sent_is_not_filled_again(ring: Ring) -> None:
    """A worker of the kernel that waits for room in the socket has taken it for good."""
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                left.send(bytes(65536))
        left.settimeout(None)
        group = ring.register_send_buffer_ring(2, size=4)
        group.put(b"1111")
        ring.queue(SendSelect(left, group, flags=SQEFlags.ASYNC))
        ring.submit()
        until(lambda: not group.inside)
        group.put(b"2222")
        with pytest.raises(BufferError):
            group.put(b"3333")
        assert ring.cancel(any=True) == 1
        ring.copy_cqe(timeout=SECONDS)


# ---- closing ----


def test_poller_may_yet_take_what_is_published(ring_refusal: str) -> None:
    """So what it has not taken stays in the table, with its memory."""
    assert not ring_refusal
    with Ring(4, flags=SetupFlags.SQPOLL | SetupFlags.R_DISABLED) as ring:
        ring._in_flight.add([0, record(1)])
        lib.uring_submit_one(ring._shim, 0, bytes(64), 1)
        assert ring.sq.tail == 1
        ring._discard_published()
        assert ring._in_flight.numbers() == [1]
        ring._in_flight.discard_number(1)


def test_what_is_given_up_is_not_done_later(ring_refusal: str, pipe: tuple[int, int]) -> None:
    """An SQE that is published and let go of is a NOP for who has the kernel take it yet."""
    assert not ring_refusal
    write = Write(pipe[1], b"x")._encode()[0]
    os.set_blocking(pipe[0], False)
    for flags in (SetupFlags(0), SetupFlags.SQE128):
        with Ring(4, flags=SetupFlags.R_DISABLED | flags) as ring:
            for place, number in enumerate((1, 2)):
                ring._in_flight.add([0, record(number)])
                answer = lib.uring_submit_one(ring._shim, place, write, number)
                assert answer == -errno.EBADFD
            ring._discard_published()
            assert ring._in_flight.numbers() == []
            ring.enable()
            ring.submit()
            assert {cqe.user_data for cqe in ring.copy_cqes()}.isdisjoint({1, 2})
            assert (ring.sq.head, ring.cq.tail) == (2, 2)
            with pytest.raises(BlockingIOError):
                os.read(pipe[0], 2)


def test_ring_whose_end_is_cut_off_is_ended_again(
    ring_refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be taken back is not forgotten before it is kept: the next close() does it."""
    assert not ring_refusal
    ring = Ring(4)
    ring._in_flight.add([0, record(1)])
    cuts, kept = ["once"], list[Any]()

    def keep(memory: object) -> None:
        if cuts:
            cuts.pop()
            raise KeyboardInterrupt
        kept.append(memory)

    monkeypatch.setattr(_teardown, "keep_for_ever", keep)
    with pytest.raises(KeyboardInterrupt):
        ring._finish(0)
    assert ring in _teardown.open_rings()
    with pytest.warns(RuntimeWarning, match="kept until the process ends"):
        ring.close()
    assert [memory[0] is ring._in_flight for memory in kept] == [True]


def test_disabled_ring_is_its_own_who_enables_it(ring_refusal: str) -> None:
    """With SINGLE_ISSUER a ring that is not enabled yet belongs to nobody."""
    assert not ring_refusal
    ring = Ring(4, flags=SetupFlags.SINGLE_ISSUER | SetupFlags.R_DISABLED)
    seen: list[int] = []

    def use() -> None:
        with ring:
            ring.enable()
            ring.queue(Nop())
            ring.submit_and_wait()
            seen.append(len(ring.copy_cqes()))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [1]


def test_handover_that_is_cut_off_does_not_hold_up_closing(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was entered in the table and never placed is dropped with the rest."""
    ring.queue(Nop())
    with monkeypatch.context() as patch:
        patch.setattr(_submission, "lib", Door("uring_submit_one", interrupted))
        with pytest.raises(KeyboardInterrupt):
            ring.submit()
    ring.close()
    assert ring.in_flight == 0


def test_ring_that_its_owner_waits_on_is_kept_and_not_waited_for(
    ring_refusal: str, pipe: tuple[int, int]
) -> None:
    """Whoever ends it from outside, as the end of the interpreter does, goes on."""
    assert not ring_refusal
    made: list[Ring] = []
    told: list[str] = []

    def wait() -> None:
        ring = Ring(4, flags=SetupFlags.SINGLE_ISSUER)
        made.append(ring)
        ring.queue(Read(pipe[0], bytearray(1)))
        try:
            ring.submit_and_wait()
        except uring.RingClosedError as error:
            told.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    until(lambda: made and lib.uring_waiters(made[0]._shim))
    with pytest.warns(RuntimeWarning, match="kept until the process ends"):
        made[0]._finish(0)
    os.write(pipe[1], b"x")
    thread.join(SECONDS)
    assert told == ["the ring is closed"]


def test_ring_is_closed_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second waits for the first, and has nothing left to do."""
    ring, finish = Ring(2), Ring._finish
    begun, released = threading.Event(), threading.Event()
    seen = list[int]()

    def held_up(self: Ring, seconds: float) -> None:
        seen.append(threading.get_native_id())
        begun.set()
        released.wait(SECONDS)
        finish(self, seconds)

    monkeypatch.setattr(Ring, "_finish", held_up)
    threads = [threading.Thread(target=ring.close) for _ in range(2)]
    threads[0].start()
    assert begun.wait(SECONDS)
    threads[1].start()
    threads[1].join(0.1)
    released.set()
    for thread in threads:
        thread.join(SECONDS)
    assert (len(seen), ring.fd) == (1, -1)


def test_groups_of_a_closed_ring_give_nothing(ring: Ring) -> None:
    """A buffer that comes back after close() stays where it is."""
    group = ring.register_send_buffer_ring(4, size=16)
    ring.close()
    shim = group._block.shim
    assert lib.uring_buffers_give(shim, 0, 16) == -errno.ESHUTDOWN
    assert shim.tail == 0


def output(program: str) -> str:
    """What a program says on standard output and error."""
    command = [sys.executable, "-W", "default", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return ended.stdout + ended.stderr


def test_ring_that_is_open_at_the_end_is_ended_there() -> None:
    """And not when the collector comes to it, which may be never."""
    program = "import uring; ring = uring.Ring(2)"
    assert "was still open when the interpreter ended" in output(program)


def test_what_is_kept_for_ever_outlives_the_interpreter() -> None:
    """What the kernel may yet write to is not freed with the modules at the end."""
    program = """
import os
from uring import _teardown

class Memory:
    def __del__(self, write=os.write):
        write(1, b"gone\\n")

if {is_kept}:
    _teardown.keep_for_ever(Memory())
else:
    memory = Memory()
"""
    assert output(program.format(is_kept=False)) == "gone\n"
    assert output(program.format(is_kept=True)) == ""


# ---- forks ----


def test_child_of_a_fork_that_python_did_not_make_forgets_the_ring(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """Closing it there gives the descriptor back, and says nothing of what is in flight."""
    ring.queue(Read(pipe[0], bytearray(1)))
    ring.submit()
    fd = ring.fd

    def look() -> bool:
        ring.close()
        return ring.in_flight == 0 and not Path(f"/proc/self/fd/{fd}").exists()

    assert in_child(look, ctypes.PyDLL(None).fork)
    assert ring.in_flight == 1


def test_child_of_a_fork_has_locks_of_its_own(ring: Ring) -> None:
    """What a thread of the parent's holds at that moment is nobody's in the child."""
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with ring._lock, ring._closing_lock, GUARD.lock:
            held.set()
            released.wait(SECONDS)

    def look() -> bool:
        locks = [ring._lock, ring._closing_lock, GUARD.lock]
        return all(lock.acquire(timeout=1) for lock in locks)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(SECONDS)
    found = in_child(look)
    released.set()
    thread.join()
    assert found


def test_child_of_a_fork_holds_nothing_for_the_ring(ring: Ring, pipe: tuple[int, int]) -> None:
    """What is in flight is the parent's, and so is what is registered."""
    ring.queue(Read(pipe[0], bytearray(1)))
    ring.submit()
    ring.register_buffers([bytearray(16)])
    assert in_child(lambda: not ring._in_flight and ring._held.buffers is None)
    assert ring._held.buffers is not None


# ---- messages ----


def test_message_says_nothing_of_the_size_of_its_completion(ring: Ring) -> None:
    """SKIP and F_32 say how long a CQE is: one that has them would be read as another."""
    for flag in (CQEFlags.SKIP, CQEFlags.F_32):
        with pytest.raises(ValueError, match="flags"):
            ring.send_message(ring, target_user_data=1, target_flags=flag)
        with pytest.raises(ValueError, match="flags"):
            ring.queue(MsgRing(ring, target_user_data=1, target_flags=flag))
    assert (ring.sq_ready(), ring.cq.tail) == (0, 0)


def test_message_to_a_ring_that_is_closed_meanwhile_keeps_no_descriptor(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was duplicated is nobody's, or somebody else's; the closed ring does not hold it."""
    target = Ring(2)
    made = Alias(ring.fd)

    def alias(fd: int) -> Alias:
        target.close()
        return made if fd == target_fd else Alias(fd)

    target_fd = target.fd
    monkeypatch.setattr(_records, "Alias", alias)
    with contextlib.suppress(uring.RingClosedError, ValueError):
        ring.queue(MsgRing(target_fd, target_user_data=1))
    assert target._held.alias is None


# ---- who may do what, and when ----


def elsewhere(call: Callable[[], object]) -> BaseException | None:
    """What a call in another thread raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - it is looked at
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


OWNED: Final[dict[str, Callable[[Ring], object]]] = {
    "copy_cqes": lambda ring: ring.copy_cqes(),
    "copy_cqe": lambda ring: ring.copy_cqe(timeout=0),
    "peek_cqes": lambda ring: ring.peek_cqes(),
    "cq_advance": lambda ring: ring.cq_advance(0),
    "submit": lambda ring: ring.submit(),
    "submit_and_wait": lambda ring: ring.submit_and_wait(),
    "run": lambda ring: ring.run([Nop()]),
    "run nothing": lambda ring: ring.run([]),
    "stream": lambda ring: ring.stream(Nop()),
    "cancel": lambda ring: ring.cancel(any=True),
    "resize": lambda ring: ring.resize(8),
    "iowait_enabled": lambda ring: setattr(ring, "iowait_enabled", True),
    "eventfd_enabled": lambda ring: setattr(ring, "eventfd_enabled", True),
    "register_wait_region": lambda ring: ring.register_wait_region(),
    "register_buffer_ring": lambda ring: ring.register_buffer_ring(2, size=16),
    "register_ring_fd": lambda ring: ring.register_ring_fd(),
}


@pytest.mark.parametrize("name", OWNED)
def test_owner_alone_calls(ring_refusal: str, name: str) -> None:
    """With SINGLE_ISSUER another thread is told so, and nothing has happened."""
    assert not ring_refusal
    with Ring(4, flags=DEFER) as ring:
        number = ring.queue(Nop())
        error = elsewhere(lambda: OWNED[name](ring))
        assert type(error) is uring.WrongThreadError
        assert "use it from its owner" in str(error)  # the kernel refuses, too, and says less
        assert (ring.sq_ready(), ring.in_flight, ring.params.sq_entries) == (1, 1, 4)
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).user_data == number


LOCKED: Final[dict[str, Callable[[Ring], object]]] = {
    "queue_all": lambda ring: ring.queue_all([Nop()]),
    "queue a claim": lambda ring: ring.queue(Openat("/dev/null"), user_data=9),
    "submit": lambda ring: ring.submit(),
    "copy_cqes": lambda ring: ring.copy_cqes(1),
    "peek_cqes": lambda ring: ring.peek_cqes(),
    "cq_advance": lambda ring: ring.cq_advance(0),
    "cq_ready": lambda ring: ring.cq_ready(),
    "sq_ready": lambda ring: ring.sq_ready(),
    "in_flight": lambda ring: ring.in_flight,
    "expect": lambda ring: ring._expect(5),
    "rename": lambda ring: ring._rename((1, 2), Noted()),
    "unrename": lambda ring: ring._unrename((1, 2)),
    "run of a number": lambda ring: ring.run([Nop(user_data=7)]),
    "resize": lambda ring: ring.resize(8),
    "register_ring_fd": lambda ring: ring.register_ring_fd(),
    "close": lambda ring: ring.close(),
}


@pytest.mark.parametrize("name", LOCKED)
def test_lock_is_taken_by(ring_refusal: str, name: str) -> None:
    """Whoever looks at the table and changes it waits for who is doing so."""
    assert not ring_refusal
    holds, released = threading.Event(), threading.Event()
    with Ring(4, flags=DEFER) as ring:
        ring.queue(Nop())
        ring.submit()
        ring.queue(Nop())

        def hold() -> None:
            with ring._lock:
                holds.set()
                released.wait(0.1)
                held.append(name)

        held: list[str] = []
        thread = threading.Thread(target=hold)
        thread.start()
        assert holds.wait(SECONDS)
        LOCKED[name](ring)
        assert held == [name]
        thread.join()


# ---- operations ----


def test_control_data_shorter_than_its_header_ends_it() -> None:
    """A length that does not even cover the length is none; what follows is nobody's."""
    header = struct.pack("@nii", 8, 1, 2)
    assert parse_control(header + header) == ()


def test_receive_pins_its_buffer(ring: Ring) -> None:
    """A bytearray cannot be resized while something may come into it."""
    left, right = socket.socketpair()
    with left, right:
        buffer = bytearray(4)
        ring.queue(Recv(left, buffer))
        ring.submit()
        with pytest.raises(BufferError):
            buffer.clear()
        right.send(b"data")
        assert ring.copy_cqe(timeout=SECONDS).res == 4
        buffer.clear()


def test_number_of_an_object_is_asked_for_each_time(ring: Ring) -> None:
    """An operation that lends no memory does not remember the descriptor of an object."""

    class Moving:
        number = 3

        def fileno(self) -> int:
            return self.number

    moving = Moving()
    for operation in (Fsync(moving), EpollCtl(moving, op=EpollOp.DEL, fd=4)):
        ring.queue(operation)
        before = ring._pending[-1][1]
        moving.number += 1
        ring.queue(operation)
        assert ring._pending[-1][1] != before


def test_array_of_registered_parts_is_pinned() -> None:
    """The kernel reads it when it runs the operation."""
    part = uring.FixedBuffer(memoryview(bytearray(8)), 0)
    pins, address, count, index = _memory.fixed_iovecs([part, part[:4]], None, write=True)
    array_pin, parts = cast("tuple[Any, list[Any]]", pins)
    assert _memory.address_of(array_pin) == address
    assert (len(array_pin), count, index, len(parts)) == (32, 2, 0, 2)
