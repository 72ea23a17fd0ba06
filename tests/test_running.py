"""Batches on real rings: order, chains, numbers, threads, timeouts, and what is left behind."""

import array
import errno
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest
from shared import Tracked

import uring
from uring import (
    SQE,
    Accept,
    Batch,
    Fixed,
    Fsync,
    LinkTimeout,
    Nop,
    Opcode,
    Openat,
    Operation,
    PollAdd,
    Read,
    ReadMany,
    Recv,
    Ring,
    RingClosedError,
    SetupFlags,
    Socket,
    SQEFlags,
    Statx,
    Timeout,
    Write,
    WriteMany,
    _completion,
    _memory,
    hardlink,
    link,
)
from uring.completions import Answer

CANCELED: Final = -errno.ECANCELED
SOON: Final = 5.0
"""Seconds in which everything here ends by far, and which no 30 s of patience go into."""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    """Give a file of 64 KiB of which every two bytes are different."""
    path = tmp_path / "numbers"
    path.write_bytes(array.array("H", range(1 << 15)).tobytes())
    with path.open("r+b", buffering=0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _stdin_stays() -> Iterator[None]:
    """Have descriptor 0 open, and open again behind a test that lost it."""
    if not Path("/proc/self/fd/0").exists():
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    kept = os.dup(0)
    yield
    os.dup2(kept, 0)
    os.close(kept)


@contextmanager
def promptly() -> Iterator[None]:
    """Assert that what is inside ends soon."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SOON


def is_whole(ring: Ring) -> None:
    """Assert that nothing is in flight, and that the ring works in every way."""
    assert (ring.in_flight, ring.sq_ready(), ring.cq_ready()) == (0, 0, 0)
    number = ring.queue(Nop())
    ring.submit_and_wait(1)
    assert list(ring.copy_cqes().user_data) == [number]
    assert list(ring.run([Nop(), Nop()], timeout=SOON).res) == [0, 0]
    assert ring.in_flight == 0


class Running:
    """A run in a thread of its own."""

    def __init__(self, ring: Ring, operations: Any, timeout: float | None = 20) -> None:
        self.completions: uring.Completions | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(ring, operations, timeout))
        self._thread.start()

    def _work(self, ring: Ring, operations: Any, timeout: float | None) -> None:
        try:
            self.completions = ring.run(operations, timeout=timeout)
        except BaseException as error:  # noqa: BLE001 - looked at by whoever joins
            self.error = error

    def join(self) -> uring.Completions:
        """What it returned."""
        self._thread.join(SOON)
        assert not self._thread.is_alive(), "the run hangs"
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # or its traceback and this frame would keep the buffers in a cycle
        assert self.completions is not None
        return self.completions


# ---- order and size ----


@pytest.mark.parametrize("entries", [1, 8, 256])
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 5000])
def test_run_gives_results_in_order(file: BinaryIO, entries: int, count: int) -> None:
    """Any number of reads of different lengths, on any ring: each result stands at its place."""
    lengths = [1 + index % 13 for index in range(count)]
    offsets = [index * 13 % 65_000 for index in range(count)]
    buffer = bytearray(sum(lengths))
    content = os.pread(file.fileno(), 1 << 16, 0)
    with Ring(entries) as ring:
        batch = ReadMany(file, buffer, offsets, lengths)
        for _ in range(2):
            buffer[:] = bytes(len(buffer))
            done = ring.run(batch).raise_first()
            assert list(done.res) == lengths
            assert buffer == b"".join(
                content[o : o + n] for o, n in zip(offsets, lengths, strict=True)
            )
        assert list(ring.run([Nop()] * count).res) == [0] * count
        is_whole(ring)


def test_run_gives_results_in_order_when_they_end_in_reverse(ring: Ring) -> None:
    """Timeouts that end one before the other, the last one first, are given first to last."""
    batch = Batch([*(Timeout(0.03 - 0.003 * index) for index in range(10)), Nop()])
    done = ring.run(batch)
    assert list(done.res) == [-errno.ETIME] * 10 + [0]
    assert list(done.user_data) == list(range(done[0].user_data, done[0].user_data + 11))
    assert [cqe.op for cqe in done] == list(batch)
    assert done.raise_first() is done


def test_run_mixes_results_and_failures(ring: Ring, file: BinaryIO) -> None:
    """Failures stand among the results, and raise_first() names the first by its index."""
    done = ring.run([Nop(), Read(file, bytearray(3)), Fsync(-1), SQE(200), Nop()])
    assert list(done.res) == [0, 3, -errno.EBADF, -errno.EINVAL, 0]
    with pytest.raises(OSError, match="Bad file") as raised:
        done.raise_first()
    assert any("completion 2 of 5" in note for note in raised.value.__notes__)


def test_run_takes_any_iterable_and_nothing(ring: Ring) -> None:
    """A generator is run as a list is, and an empty one gives no completions."""
    assert len(ring.run(Nop() for _ in range(20))) == 20
    assert (
        len(ring.run([]))
        == len(ring.run(Batch([])))
        == len(ring.run(ReadMany(0, bytearray(), [])))
        == 0
    )
    is_whole(ring)


def test_results_of_one_run_do_not_change_with_the_next(ring: Ring, file: BinaryIO) -> None:
    """Completions of the same batch own their bytes: a second and a third run leave them."""
    batch = ReadMany([file, -1], bytearray(8), [0, 0])
    first = ring.run(batch)
    kept = (list(first.user_data), list(first.res))
    second = ring.run(batch)
    ring.run(batch)
    assert (list(first.user_data), list(first.res)) == kept
    assert second[0].user_data == first[0].user_data + 2


def test_run_writes_what_is_read_back(ring: Ring, file: BinaryIO) -> None:
    """WriteMany and ReadMany, with registered files too, move every byte to its place."""
    ring.register_files([file])
    source = random.Random(1).randbytes(1 << 14)
    target = bytearray(1 << 14)
    offsets = list(range(0, 1 << 14, 128))
    random.Random(2).shuffle(offsets)
    parts = [memoryview(source)[offset : offset + 128] for offset in offsets]
    assert sum(ring.run(WriteMany(Fixed(0), parts, offsets)).res) == 1 << 14
    files: list[Any] = [file, Fixed(0)] * 64
    done = ring.run(ReadMany(files, target, range(0, 1 << 14, 128))).raise_first()
    assert target == source
    assert done[1].op is not None
    assert done[1].op.fd == Fixed(0)  # type: ignore[attr-defined]  # it is a Read


def test_run_keeps_what_others_queued(ring: Ring) -> None:
    """What was queued before is not lost, and its completion comes to copy_cqes() alone."""
    mine = [ring.queue(Nop()) for _ in range(3)]
    assert list(ring.run([Nop()] * 30).res) == [0] * 30
    assert ring.in_flight == 3
    ring.submit_and_wait(3)
    assert list(ring.copy_cqes().user_data) == mine
    is_whole(ring)


# ---- chains ----


def chains(seed: int, longest: int, count: int) -> tuple[list[Operation], list[int]]:
    """Chains of all lengths and kinds, some broken somewhere, and what must come of them."""
    dice = random.Random(seed)
    ops: list[Operation] = []
    wanted: list[int] = []
    while len(ops) < count:
        length, is_hard = dice.randint(1, longest), dice.random() < 0.5
        broken = dice.randrange(length) if dice.random() < 0.6 else length
        members = [Fsync(-1) if place == broken else Nop() for place in range(length)]
        if dice.random() < 0.3:
            members[0] = members[0].drained()
        ops += hardlink(*members) if is_hard else link(*members)
        for place in range(length):
            behind = CANCELED if place > broken and not is_hard else 0
            wanted.append(-errno.EBADF if place == broken else behind)
    return ops, wanted


@pytest.mark.parametrize(("entries", "longest"), [(1, 1), (4, 4), (4, 3), (8, 5), (32, 32)])
def test_chains_stay_whole_across_the_end_of_the_queue(entries: int, longest: int) -> None:
    """Linked, hard-linked and drained chains that straddle the queue's end fail exactly as one."""
    with Ring(entries) as ring:
        for seed in range(10):
            ops, wanted = chains(seed, longest, 300)
            batch = Batch(ops)
            for _ in range(2):
                assert list(ring.run(batch, timeout=SOON).res) == wanted
        is_whole(ring)


def test_chain_longer_than_the_ring_is_refused(ring: Ring) -> None:
    """Nine linked operations on a ring of eight are refused whole; eight are run."""
    with pytest.raises(ValueError, match="a chain of 9 operations does not fit in 8 entries"):
        ring.run([Nop(), *link(*[Nop()] * 9), Nop()])
    is_whole(ring)
    assert list(ring.run([Nop(), *link(Fsync(-1), *[Nop()] * 7), Nop()]).res) == [
        *[0, -errno.EBADF],
        *[CANCELED] * 7,
        0,
    ]
    assert list(ring.run([Nop()] * 3 + [Nop().linked()] * 8).res) == [0] * 11


def test_last_link_does_not_reach_beyond_the_batch(ring: Ring) -> None:
    """A batch that ends in a link does not take along what is submitted behind it."""
    batch = Batch([Fsync(-1).linked()])
    ring.queue(Nop())
    assert list(ring.run(batch).res) == [-errno.EBADF]
    ring.submit_and_wait(1)
    assert list(ring.copy_cqes().res) == [0]


def test_link_timeout_ends_its_operation(ring: Ring, pipe: tuple[int, int]) -> None:
    """A LinkTimeout in a batch cancels the read before it, and both have their result."""
    done = ring.run([*link(Read(pipe[0], bytearray(1)), LinkTimeout(0.01)), Nop()], timeout=SOON)
    assert list(done.res) == [CANCELED, -errno.ETIME, 0]


# ---- numbers ----


def test_chosen_user_data_comes_back() -> None:
    """0, the greatest, and numbers of the ring's own kind stand where they were given."""
    chosen = [0, 1, 2**63 - 1, 2**63 + 10_000, 2**64 - 1]
    ops = [op for number in chosen for op in (Nop(user_data=number), Nop())]
    with Ring(4) as ring:
        for _ in range(3):
            done = ring.run([*ops, SQE(Opcode.NOP, user_data=9)])
            assert list(done.user_data)[0:10:2] == chosen
            assert done[-1].user_data == 9
            assert len(set(done.user_data)) == 11
        is_whole(ring)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_chosen_number_is_not_drawn_for_another_of_the_batch(ring: Ring, place: int) -> None:
    """A number that an operation chose is not given to another one of the same batch."""
    ops: list[Operation] = [Timeout(0.01), Nop(), Fsync(-1)]
    for chosen in range(2**63, 2**63 + 12):
        given: list[Any] = [*ops]
        given[place] = (
            Timeout(0.01, user_data=chosen),
            Nop(user_data=chosen),
            Fsync(-1, user_data=chosen),
        )[place]
        done = ring.run(given, timeout=SOON)
        assert list(done.res) == [-errno.ETIME, 0, -errno.EBADF]
        assert len(set(done.user_data)) == 3
        assert done[place].user_data == chosen
    is_whole(ring)


def test_number_in_use_is_refused(
    ring: Ring, until: Callable[..., None], pipe: tuple[int, int]
) -> None:
    """A chosen number that is queued, in flight or another run's is refused; nothing is lost."""
    batch = Batch([Nop(), Nop(user_data=5)])
    ring.queue(Read(pipe[0], bytearray(1)), user_data=5)
    with pytest.raises(ValueError, match="user_data 0x5 is in use"):
        ring.run(batch)
    assert (ring.sq_ready(), ring.in_flight) == (1, 1)
    ring.submit()
    with pytest.raises(ValueError, match="user_data 0x5 is in use"):
        ring.run(batch)
    assert (ring.sq_ready(), ring.in_flight) == (0, 1)
    os.write(pipe[1], b"x")
    assert [cqe.res for cqe in ring.copy_cqes(wait_nr=1)] == [1]
    assert ring.run(batch)[1].user_data == 5
    other = Running(ring, [Read(pipe[0], bytearray(1), user_data=5)])
    until(lambda: ring.in_flight == 1)
    for call in (lambda: ring.run(batch), lambda: ring.queue(Nop(user_data=5))):
        with pytest.raises(ValueError, match="user_data 0x5 is in use"):
            call()
    os.write(pipe[1], b"x")
    assert list(other.join().res) == [1]
    is_whole(ring)


def test_drawn_numbers_are_not_those_that_another_run_chose(
    ring: Ring, until: Callable[..., None], pipe: tuple[int, int]
) -> None:
    """While a run has a number of the ring's kind, no run and no queue() draws that one."""
    first = ring.run([Nop()])[0].user_data
    buffer = bytearray(4)
    other = Running(ring, [Read(pipe[0], buffer, user_data=first + 8)])
    until(lambda: ring.in_flight == 1)
    done = ring.run([Timeout(0.01) for _ in range(20)], timeout=SOON)
    assert list(done.res) == [-errno.ETIME] * 20
    assert first + 8 not in list(done.user_data)
    os.write(pipe[1], b"ok")
    assert [(cqe.user_data, cqe.res) for cqe in other.join()] == [(first + 8, 2)]
    other = Running(ring, [Read(pipe[0], buffer, user_data=first + 50)])
    until(lambda: ring.in_flight == 1)
    numbers = []
    for _ in range(60):
        numbers.append(ring.queue(Nop()))
        ring.submit()
        ring.copy_cqes()
    assert len({*numbers, first + 50}) == 61
    os.write(pipe[1], b"ok")
    assert list(other.join().res) == [2]
    is_whole(ring)


def test_drawn_numbers_are_not_those_that_were_queued(ring: Ring, pipe: tuple[int, int]) -> None:
    """What was queued under a number of the ring's kind is not mistaken for a part of a run."""
    first = ring.queue(Nop())
    ring.queue(Read(pipe[0], bytearray(4)), user_data=first + 9)
    ring.submit()
    assert ring.copy_cqe().user_data == first
    for _ in range(4):
        done = ring.run([Nop()] * 5)
        assert first + 9 not in list(done.user_data)
    os.write(pipe[1], b"abc")
    assert [(cqe.user_data, cqe.res) for cqe in ring.copy_cqes(wait_nr=1)] == [(first + 9, 3)]
    is_whole(ring)


# ---- results in memory of their own ----


def test_accept_tells_each_run_its_own_address(ring: Ring) -> None:
    """A batch of Accepts with addresses, run again and again, gives each peer's own address."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        batch = Batch([Accept(server, address=True), Nop(), Accept(server, address=True)])
        seen: list[uring.Completions] = []
        peers = []
        for _ in range(3):
            for _ in range(2):
                peer = stack.enter_context(socket.create_connection(server.getsockname()))
                peers.append(peer.getsockname())
            seen.append(ring.run(batch, timeout=SOON))
        results = [cqe.result() for done in seen for cqe in (done[0], done[2])]
        for fd, _ in results:
            os.close(fd)
        assert {address for _, address in results} == set(peers)
        assert [op.sqe() for op in (batch[1],)] == [Nop().sqe()]


def test_openat_opens_a_new_file_in_each_run(
    ring: Ring, descriptors: Callable[[], set[str]]
) -> None:
    """The same batch of opens gives new descriptors each time, and closes none."""
    batch = Batch([Openat("/dev/null"), Socket(), Openat("/no/such/file")])
    before = descriptors()
    opened = [fd for _ in range(3) for fd in ring.run(batch).res if fd >= 0]
    assert len(set(opened)) == 6
    assert descriptors() - before == {str(fd) for fd in opened}
    for fd in opened:
        os.close(fd)


# ---- memory of each run ----


def rooms(completions: uring.Completions) -> list[object]:
    """The memory that the kernel wrote for each."""
    return [cqe._subject.memory for cqe in completions if isinstance(cqe._subject, Answer)]


def test_run_encodes_an_operation_with_memory_once(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations that are run, and the first run of a batch, are encoded once; others anew."""
    made: list[object] = []
    encode = Statx._encode

    def counted(op: Statx) -> tuple[bytes, object]:
        made.append(op)
        return encode(op)

    monkeypatch.setattr(Statx, "_encode", counted)
    assert ring.run([Statx("/"), Nop(), Statx("/dev")])[2].result().ino
    assert len(made) == 2
    batch = Batch([Statx("/"), Nop(), Statx("/dev")])
    first = rooms(ring.run(batch).raise_first())
    assert len(made) == 4
    second = rooms(ring.run(batch).raise_first())
    assert len(made) == 6
    assert len({*map(id, first + second)}) == 4


def test_first_runs_of_a_batch_at_once_share_no_memory(ring: Ring) -> None:
    """Four threads run a new batch at the same time, 50 times: no two runs have the same rooms."""
    barrier = threading.Barrier(4)
    for _ in range(50):
        batch = Batch([Statx("/"), Statx("/dev")])
        found: list[uring.Completions] = []

        def work(batch: Batch = batch, found: list[uring.Completions] = found) -> None:
            barrier.wait(SOON)
            found.append(ring.run(batch, timeout=SOON).raise_first())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        every = [room for completions in found for room in rooms(completions)]
        assert len({*map(id, every)}) == 8
        assert {done[1].result().ino for done in found} == {Path("/dev").stat().st_ino}


def test_memory_of_a_run_that_was_cut_short_is_in_no_other(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """After a run that was left, the next one of the same batch has rooms of its own."""
    inlet, outlet = pipe
    batch = Batch([Statx("/"), Read(inlet, bytearray(1))])
    (first,) = batch._first_pins[0]
    with pytest.raises(TimeoutError, match="were cancelled"):
        ring.run(batch, timeout=0.05)
    os.write(outlet, b"x")
    done = ring.run(batch, timeout=SOON).raise_first()
    assert done[0].result().ino == Path("/").stat().st_ino
    (second,) = rooms(done)
    assert second is not first
    is_whole(ring)


# ---- timeouts and cancelling ----


def hung(kind: str, stack: ExitStack, buffer: bytearray) -> list[Operation]:
    """Operations that do not end by themselves."""
    near, far = socket.socketpair()
    inlet, outlet = os.pipe()
    server = socket.create_server(("127.0.0.1", 0))
    for each in (near, far, server):
        stack.enter_context(each)
    stack.callback(os.close, inlet)
    stack.callback(os.close, outlet)
    kinds: dict[str, list[Any]] = {
        "Recv": [Recv(near, buffer)],
        "PollAdd": [PollAdd(inlet)],
        "Accept": [Accept(server, address=True)],
        "Read": [Read(inlet, buffer)],
        "Timeout": [Timeout(1000)],
        "async": [Read(inlet, buffer, flags=SQEFlags.ASYNC)],
        "many": [Read(inlet, buffer) for _ in range(100)],
        "linked": [*link(Read(inlet, buffer), Nop(), Nop())],
        "hard-linked": [*hardlink(Recv(near, buffer), Timeout(1000), Nop())],
        "drained": [Read(inlet, buffer), Nop().drained(), Recv(near, buffer)],
        "chosen": [Read(inlet, buffer, user_data=0), Recv(near, buffer, user_data=2**64 - 1)],
        "parts": list(ReadMany(inlet, buffer, range(50), 1)),
    }
    return kinds[kind]


HUNG: Final = [
    *("Recv", "PollAdd", "Accept", "Read", "Timeout", "async"),
    *("many", "linked", "hard-linked", "drained", "chosen", "parts"),
]


@pytest.mark.parametrize("kind", HUNG)
@pytest.mark.parametrize("timeout", [0, 0.02])
def test_timeout_cancels_and_leaves_nothing(
    kind: str, timeout: float, descriptors: Callable[[], set[str]]
) -> None:
    """Whatever hangs is cancelled, promptly: nothing is in flight, pinned or open afterwards."""
    buffer = Tracked(64)
    with Ring(8) as ring, ExitStack() as stack, promptly():
        ops = [Nop(), *hung(kind, stack, buffer), Openat("/dev/null"), Nop()]
        before = descriptors()
        with pytest.raises(TimeoutError, match=rf"of {len(ops)} operations had ended"):
            ring.run(ops, timeout=timeout)
        assert ring.in_flight == 0
        assert descriptors() == before
        ops.clear()
        alive = weakref.ref(buffer)
        buffer.append(0)
        del buffer
        assert alive() is None
        is_whole(ring)


def test_timeout_of_zero_lets_through_what_ends_at_once(ring: Ring) -> None:
    """With no time at all, operations that end while they are submitted are still given."""
    assert list(ring.run([Nop()] * 3, timeout=0).res) == [0, 0, 0]


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_run_refuses_what_is_no_time(ring: Ring, timeout: Any) -> None:
    """A timeout is a number of seconds from 0; anything else runs nothing."""
    with pytest.raises((TypeError, ValueError), match="time in seconds"):
        ring.run([Openat("/dev/null")], timeout=timeout)
    is_whole(ring)


def test_descriptor_zero_is_not_taken_for_the_result_of_what_never_ran(
    pipe: tuple[int, int],
    descriptors: Callable[[], set[str]],
) -> None:
    """A run that is left with opens that were never submitted closes no descriptor of others."""
    with Ring(1) as ring:
        ops: list[Operation] = [Read(pipe[0], bytearray(1)) for _ in range(4)]
        ops += [Openat("/dev/null"), Socket()]
        before = descriptors()
        with pytest.raises(TimeoutError):
            ring.run(ops, timeout=0.02)
        assert descriptors() == before


def test_descriptor_zero_is_closed_when_a_lost_result_is_it(
    pipe: tuple[int, int], descriptors: Callable[[], set[str]]
) -> None:
    """When the lost open was given the number 0, that is closed as any other."""
    with Ring(8) as ring:
        os.close(0)
        with pytest.raises(TimeoutError):
            ring.run([Openat("/dev/null"), Read(pipe[0], bytearray(1))], timeout=0.02)
        assert "0" not in descriptors()


def test_timeout_leaves_other_operations_alone(ring: Ring, pipe: tuple[int, int]) -> None:
    """Cancelling a run, its operation 0 included, cancels nothing that was queued beside it."""
    numbers = [ring.queue(Read(pipe[0], bytearray(1))) for _ in range(3)]
    ring.submit()
    ops = [Timeout(1000, user_data=0), Timeout(1000), *link(Timeout(1000), Nop())]
    with promptly(), pytest.raises(TimeoutError):
        ring.run(ops, timeout=0.02)
    assert ring.in_flight == 3
    os.write(pipe[1], b"abc")
    ring.submit_and_wait(3)
    assert sorted((cqe.user_data, cqe.res) for cqe in ring.copy_cqes()) == [(n, 1) for n in numbers]
    is_whole(ring)


def test_drained_operation_behind_one_of_others_can_be_left(
    ring: Ring, until: Callable[..., None], pipe: tuple[int, int]
) -> None:
    """A run that waits behind somebody else's read is left promptly, and the read goes on."""
    ring.queue(Read(pipe[0], bytearray(1)), user_data=7)
    ring.submit()
    with promptly(), pytest.raises(TimeoutError):
        ring.run([Nop().drained()], timeout=0.02)
    os.write(pipe[1], b"x")
    assert [(cqe.user_data, cqe.res) for cqe in ring.copy_cqes(wait_nr=1)] == [(7, 1)]
    until(lambda: ring.in_flight == 0)


@pytest.mark.parametrize("kind", HUNG)
def test_ctrl_c_cancels_and_leaves_nothing(kind: str, descriptors: Callable[[], set[str]]) -> None:
    """An exception from a signal handler leaves the run, with everything cancelled and free."""
    buffer = Tracked(64)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with Ring(8) as ring, ExitStack() as stack, promptly():
            ops = [*hung(kind, stack, buffer), Openat("/dev/null")]
            opened = descriptors()
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(KeyboardInterrupt):
                ring.run(ops)
            assert ring.in_flight == 0
            assert descriptors() == opened
            ops.clear()
            buffer.append(0)
            is_whole(ring)
    finally:
        signal.signal(signal.SIGALRM, before)


# ---- signals ----


@contextmanager
def alarms(seconds: float, handler: Callable[[], object]) -> Iterator[None]:
    """Have a handler called every so often."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_signal_handlers_run_and_the_run_goes_on(ring: Ring, pipe: tuple[int, int]) -> None:
    """Handlers run while a run waits, which goes on until what it waits for has come."""
    seen: list[int] = []

    def handler() -> None:
        seen.append(len(seen))
        if len(seen) == 20:
            os.write(pipe[1], b"x")

    with alarms(0.002, handler):
        assert list(ring.run([Read(pipe[0], bytearray(4)), Nop()], timeout=20).res) == [1, 0]
    assert len(seen) >= 20


def test_handler_may_run_batches_during_a_run(pipe: tuple[int, int]) -> None:
    """A handler runs the same and other batches, queues and copies, in the middle of a run."""
    with Ring(4) as ring:
        nops = Batch([Nop()] * 9)
        sums: list[int] = []
        numbers: list[int] = []
        got: list[int] = []

        def handler() -> None:
            numbers.append(ring.queue(Nop()))
            ring.submit()
            done = ring.run(nops)
            sums.append(len(set(done.user_data)) + sum(done.res))
            got.extend(ring.copy_cqes().user_data)
            if len(sums) == 30:
                os.write(pipe[1], b"x")

        with alarms(0.002, handler):
            assert ring.run([*[Nop()] * 20, Read(pipe[0], bytearray(4))], timeout=20)[-1].res == 1
            for _ in range(200):
                assert list(ring.run(nops).res) == [0] * 9
        got.extend(ring.copy_cqes().user_data)
        assert set(sums) == {9}
        assert got == numbers
        is_whole(ring)


# ---- threads ----


def test_one_batch_runs_in_many_threads_at_once(file: BinaryIO) -> None:
    """Four threads run the same batch on one ring, 300 times each: every result is right."""
    buffer = bytearray(257)
    batch = ReadMany(file, buffer, range(257))
    chain = Batch(link(Fsync(-1), *[Nop()] * 6))
    wrong: list[object] = []
    with Ring(8) as ring:

        def work() -> None:
            for _ in range(300):
                done = ring.run(batch, timeout=20)
                if list(done.res) != [1] * 257 or len(set(done.user_data)) != 257:
                    wrong.append(done)
                done = ring.run(chain, timeout=20)
                if list(done.res) != [-errno.EBADF, *[CANCELED] * 6]:
                    wrong.append(done)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)
        is_whole(ring)


def queue(ring: Ring) -> int:
    """Queue a NOP, as soon as the runs of others leave room for it."""
    while True:
        try:
            return ring.queue(Nop())
        except uring.SubmissionQueueFull:
            ring.submit()


@pytest.mark.slow
@pytest.mark.parametrize("entries", [1, 8])
def test_runs_beside_waits_lose_nothing_and_hang_nobody(entries: int) -> None:
    """Thousands of waits and thousands of runs on one ring: each thread gets exactly its own."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    stop = threading.Event()
    failed: list[object] = []
    counts = [0, 0]
    with Ring(entries) as ring:

        def run(place: int) -> None:
            batch = Batch([Nop()] * (1 + 20 * place))
            try:
                while not stop.is_set():
                    done = ring.run(batch, timeout=20)
                    assert not any(done.res)
                    assert len(set(done.user_data)) == len(batch)
                    counts[place] += 1
            except BaseException as error:  # noqa: BLE001 - looked at below
                failed.append(error)

        threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        try:
            rounds = 0
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and not failed:
                number = queue(ring)
                ring.submit_and_wait(1, timeout=10 if rounds % 2 else None)
                assert list(ring.copy_cqes().user_data) == [number], "woken for nothing, or lost"
                number = queue(ring)
                ring.submit()
                assert ring.copy_cqe(timeout=10).user_data == number
                rounds += 1
        finally:
            stop.set()
            for thread in threads:
                thread.join(SOON)
            sys.setswitchinterval(before)
        assert not failed
        assert min(*counts, rounds) > 100, "somebody starved"
        is_whole(ring)


def test_flooded_completion_queue_holds_up_no_run() -> None:
    """Completions that nobody copies, ten times what the queue holds, are all there after runs."""
    with Ring(4) as ring:
        numbers = []
        for _ in range(20):
            numbers += ring.queue_all([Nop()] * 4)
            ring.submit()
        assert list(ring.run([Nop()] * 100, timeout=SOON).res) == [0] * 100
        for _ in range(20):
            numbers += ring.queue_all([Nop()] * 4)
            ring.submit()
            assert list(ring.run([Nop()] * 9, timeout=SOON).res) == [0] * 9
        got: list[int] = []
        while taken := ring.copy_cqes():
            got += taken.user_data
        assert sorted(got) == numbers
        is_whole(ring)


def test_flood_during_a_run_is_kept(pipe: tuple[int, int]) -> None:
    """What floods the completion queue while a run waits is kept for copy_cqes(), whole."""
    with Ring(4) as ring:
        running = Running(ring, [*[Nop()] * 50, Read(pipe[0], bytearray(1))])
        numbers = []
        for _ in range(100):
            numbers += ring.queue_all([Nop(), Timeout(0)])
            ring.submit()
        os.write(pipe[1], b"x")
        assert list(running.join().res) == [0] * 50 + [1]
        got: list[int] = []
        while len(got) < len(numbers):
            taken = ring.copy_cqes(wait_nr=1, timeout=SOON)
            assert taken, "lost"
            got += taken.user_data
        assert sorted(got) == numbers
        is_whole(ring)


def test_wait_that_a_run_has_overtaken_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is about to wait when a run puts the completions aside for him gets them at once."""
    with Ring(2) as ring:
        real: Any = _completion.lib  # type: ignore[attr-defined]  # not for others, but here

        class HeldUp:
            """The shim, but on the way into the first wait a run keeps what is there."""

            is_first = True

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def uring_wait(self, shim: Any, had: int, *arguments: int) -> int:
                if self.is_first:
                    self.is_first = False
                    ring.queue_all([Nop(), Nop()])
                    ring.submit()
                    ring._keep_completions()
                    ring._keep_completions()
                return int(real.uring_wait(shim, had, *arguments))

        monkeypatch.setattr(_completion, "lib", HeldUp())
        with promptly():
            assert len(ring.copy_cqes(wait_nr=2, timeout=2 * SOON)) == 2


@pytest.mark.parametrize("kind", ["all placed", "more than fits", "chain", "drained"])
def test_close_by_another_thread_ends_a_run(
    kind: str,
    pipe: tuple[int, int],
    descriptors: Callable[[], set[str]],
    until: Callable[..., None],
) -> None:
    """A run whose ring is closed says so at once, with nothing pinned or left open."""
    buffer = bytearray(8)
    read = Read(pipe[0], buffer)
    kinds: dict[str, tuple[list[Any], int]] = {
        "all placed": ([Openat("/dev/null"), read, read], 2),
        "more than fits": ([Openat("/dev/null"), *[read] * 50], 8),
        "chain": ([*link(Timeout(1000), Openat("/dev/null")), read], 3),
        "drained": ([read, Nop().drained(), Timeout(1000, user_data=2**64 - 1)], 3),
    }
    ops, placed = kinds[kind]
    before = descriptors()
    ring = Ring(4)
    running = Running(ring, ops, None)
    until(lambda: ring.in_flight == placed)
    with promptly():
        ring.close()
        with pytest.raises(RingClosedError):
            running.join()
    assert ring.in_flight == 0
    kinds.clear()
    ops.clear()
    del running, read
    buffer.append(0)
    assert descriptors() == before


def test_wrong_thread_is_told() -> None:
    """A run from a thread that does not own its SINGLE_ISSUER ring is refused, and no other."""
    with Ring(4, flags=SetupFlags.SINGLE_ISSUER) as ring:
        with pytest.raises(uring.WrongThreadError, match="SINGLE_ISSUER"):
            Running(ring, [Nop()]).join()
        is_whole(ring)


# ---- refusals ----


def test_refused_run_leaves_the_ring_as_it_was(
    ring: Ring, descriptors: Callable[[], set[str]]
) -> None:
    """Whatever is wrong with the operations, nothing is submitted, and what was queued stays."""
    number = ring.queue(Nop())
    wrong: list[Any] = [
        *(None, 5, "nop", Nop(), SQE(0), [None], [Nop(), Read(0, b"x")], [Nop()] * 3 + [Nop]),
        [Openat("/dev/null"), Nop(user_data=2**64)],
        [Openat("/dev/null"), Nop(flags=SQEFlags.CQE_SKIP_SUCCESS)],
        [Openat("/dev/null"), SQE(Opcode.READ_MULTISHOT)],
        link(*[Openat("/dev/null")] * 9),
    ]
    before = descriptors()
    for operations in wrong:
        with pytest.raises((TypeError, ValueError)):
            ring.run(operations)
        assert (ring.sq_ready(), ring.in_flight, ring.cq_ready()) == (1, 1, 0)
    assert descriptors() == before
    ring.submit()
    assert ring.copy_cqe().user_data == number
    is_whole(ring)


def test_run_on_a_closed_or_disabled_ring_is_refused() -> None:
    """A closed ring says closed; a disabled one EBADFD until it is enabled."""
    ring = Ring(2)
    ring.close()
    for operations in ([Nop()], [], Batch([Nop()])):
        with pytest.raises(RingClosedError):
            ring.run(operations)
    with Ring(2, flags=SetupFlags.R_DISABLED) as disabled:
        with pytest.raises(uring.EnterError) as refused:
            disabled.run([Nop()])
        assert refused.value.errno == errno.EBADFD
        assert disabled.in_flight == 0
        disabled.enable()
        is_whole(disabled)


# ---- shapes ----

SHAPES: Final = [
    SetupFlags(0),
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
    SetupFlags.R_DISABLED | SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN,
]


def ours() -> list[SetupFlags]:
    """The shapes that this kernel has, as it says."""
    return [flags for flags in SHAPES if not flags & ~uring.probe().setup_flags]


@pytest.fixture(params=ours(), ids=repr)
def shaped(request: pytest.FixtureRequest) -> Iterator[Ring]:
    """Give a ring of four entries of each shape that this kernel has."""
    with Ring(4, flags=request.param) as made:
        if request.param & SetupFlags.R_DISABLED:
            made.enable()
        yield made


def test_every_shape_runs_batches(shaped: Ring, file: BinaryIO) -> None:
    """Reads, workers' reads, chains and chosen numbers, many times the ring's size, in order."""
    buffer = bytearray(300)
    for flags in (SQEFlags(0), SQEFlags.ASYNC):
        reads = ReadMany(file, buffer, range(300), flags=flags)
        assert list(shaped.run(reads, timeout=SOON).res) == [1] * 300
        assert buffer == os.pread(file.fileno(), 300, 0)
    ops, wanted = chains(3, 4, 100)
    batch = Batch([*ops, Nop(user_data=0)])
    done = shaped.run(batch, timeout=SOON)
    assert (list(done.res), done[-1].user_data) == ([*wanted, 0], 0)
    is_whole(shaped)


def test_every_shape_keeps_the_completions_of_others(shaped: Ring, pipe: tuple[int, int]) -> None:
    """What was in flight before, and ends during a run, comes to copy_cqes() with its data."""
    buffer = bytearray(4)
    number = shaped.queue(Read(pipe[0], buffer))
    shaped.submit()
    chain = link(Write(pipe[1], b"data"), Timeout(0.01))
    done = shaped.run([*chain, *[Nop()] * 20], timeout=SOON)
    assert list(done.res) == [4, -errno.ETIME, *[0] * 20]
    (cqe,) = shaped.copy_cqes(wait_nr=1, timeout=SOON)
    assert (cqe.user_data, cqe.res, buffer) == (number, 4, b"data")
    is_whole(shaped)


def test_every_shape_ends_with_its_timeout(shaped: Ring, pipe: tuple[int, int]) -> None:
    """A run that hangs is cancelled on every shape of ring, and nothing stays pinned."""
    buffer = bytearray(4)
    for _ in range(3):
        with promptly(), pytest.raises(TimeoutError):
            shaped.run([Nop(), *[Read(pipe[0], buffer) for _ in range(20)]], timeout=0.02)
        assert shaped.in_flight == 0
        buffer.append(0)
    is_whole(shaped)


def test_one_batch_runs_on_rings_of_different_shapes() -> None:
    """A batch goes from a plain ring to one with large CQEs and back, and is right on each."""
    batch = Batch([Fsync(-1), *[Nop()] * 9])
    with Ring(4) as plain, Ring(4, flags=SetupFlags.CQE32) as large:
        for ring in (plain, large, plain, large, large, plain):
            done = ring.run(batch)
            assert list(done.res) == [-errno.EBADF] + [0] * 9
            assert (done[0].big_cqe is None) == (ring is plain)


def test_iopoll_ring_runs_batches(file: BinaryIO) -> None:
    """An IOPOLL ring runs NOPs, and what cannot be polled for is EOPNOTSUPP at its place."""
    with Ring(4, flags=SetupFlags.IOPOLL) as ring:
        ops = [Nop(), Read(file, bytearray(1)), Nop()] * 10
        assert list(ring.run(ops, timeout=SOON).res) == [0, -errno.EOPNOTSUPP, 0] * 10
        assert ring.in_flight == 0


# ---- operations that post twice ----


def test_run_waits_for_the_notification_of_a_zero_copy_send() -> None:
    """Of a zero-copy send the result is the first completion, and its notification has come."""
    payload = b"z" * 10_000
    pin, address, length = _memory.readable(payload)
    assert uring.probe().supports(Opcode.SEND_ZC)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0] as far,
        Ring(4) as ring,
    ):
        send = SQE(Opcode.SEND_ZC, fd=near.fileno(), addr=address, len=length)
        for extra in ([], [Nop()] * 20):
            done = ring.run([send, *extra, send], timeout=SOON)
            for cqe in (done[0], done[-1]):
                assert (cqe.res, cqe.more, cqe.is_notification) == (length, True, False)
            assert len(ring.copy_cqes(wait_nr=1, timeout=0.05)) == 0
            taken = 0
            while taken < 2 * length:
                taken += len(far.recv(1 << 16))
        is_whole(ring)
    del pin


def test_failed_zero_copy_send_has_one_result(ring: Ring) -> None:
    """A zero-copy send that fails outright, beside others, is one result as any other."""
    done = ring.run([SQE(Opcode.SEND_ZC, fd=-1), Nop(), SQE(Opcode.SEND_ZC, fd=0)], timeout=SOON)
    assert done[0].res == -errno.EBADF
    assert done[2].res < 0
    is_whole(ring)


def test_runs_many_times_leave_nothing(
    ring: Ring, descriptors: Callable[[], set[str]], file: BinaryIO
) -> None:
    """Numbers, descriptors and what is in flight are as before after a thousand runs."""
    batches = [ReadMany(file, bytearray(8), range(8)), Batch([Nop(), Nop(user_data=3)])]
    before = descriptors()
    for batch in itertools.islice(itertools.cycle(batches), 1000):
        with suppress(TimeoutError):
            ring.run(batch, timeout=0)
    assert descriptors() == before
    is_whole(ring)
