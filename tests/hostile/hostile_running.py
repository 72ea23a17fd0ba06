"""Programs that interrupt, close, fork and drop rings and batches in the middle of a run."""

import dis
import errno
import gc
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hostile_harness import (
    Worker,
    checksums,
    close_amid,
    collect,
    descriptors,
    exit_code,
    forked,
    is_in_the_package,
    join,
    main,
    once,
    program,
    refused,
    settled_descriptors,
    until,
)
from hostile_interrupt import Account, Strike, sweep

import uring

if TYPE_CHECKING:
    from types import FrameType


def _is_no_place() -> bool:
    """
    Whether what is struck is a place only because of the tracing, where CPython runs no handler.

    One is between the end of `_run()` and that of its caller, where what is lost would be lost by
    no fault of anybody; the other between an exception and the `except` that takes it.
    """
    frame: FrameType = sys._getframe(2).f_locals["frame"]
    names = {each.offset: each.opname for each in dis.get_instructions(frame.f_code)}
    name = names.get(frame.f_lasti)
    return name == "PUSH_EXC_INFO" or (name == "RETURN_VALUE" and frame.f_code.co_name == "run")


def _interrupt() -> None:
    if not _is_no_place():
        raise KeyboardInterrupt


def _close_results(completions: uring.Completions) -> None:
    for cqe in completions:
        if isinstance(cqe.op, uring.Openat) and cqe.res >= 0:
            os.close(cqe.res)


def _is_whole(ring: uring.Ring) -> None:
    until(lambda: ring.in_flight == 0, 1)
    assert list(ring.run([uring.Nop()] * 9, timeout=3).res) == [0] * 9
    number = ring.queue(uring.Nop())
    ring.submit_and_wait(1, timeout=3)
    assert ring.copy_cqes().user_data.tolist() == [number]
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(ring.in_flight), daemon=True)
    other.start()
    join(other, 1)
    assert seen == [0]


Make = Callable[[int, bytearray], list[uring.Operation]]


def _plain(_inlet: int, buffer: bytearray) -> list[uring.Operation]:
    zero = os.open("/dev/zero", os.O_RDONLY)
    reads = [uring.Read(zero, buffer) for _ in range(3)]
    return [uring.Openat("/dev/null"), *reads, *[uring.Nop()] * 5, uring.Close(zero)]


def _with_numbers(_inlet: int, buffer: bytearray) -> list[uring.Operation]:
    return [
        *uring.link(uring.Openat("/dev/null", user_data=3), uring.Nop(user_data=2**63 + 4)),
        uring.Read(-1, buffer, user_data=0),
        *[uring.Nop()] * 5,
    ]


def _hanging(inlet: int, buffer: bytearray) -> list[uring.Operation]:
    return [uring.Openat("/dev/null"), uring.Read(inlet, buffer), uring.Timeout(100)]


def _cut(make: Make, timeout: float | None) -> None:
    inlet, outlet = os.pipe()

    def attempt(place: int) -> Strike:
        ring = uring.Ring(4)
        before = descriptors()
        buffer = bytearray(8)
        strike = Strike(place, _interrupt)
        try:
            ops = make(inlet, buffer)
            with suppress(KeyboardInterrupt, TimeoutError):
                with strike:
                    done = ring.run(ops, timeout=timeout)
                _close_results(done)
            ops.clear()
            _is_whole(ring)
            buffer.append(0)
            if make is _plain:  # what never ran has not closed it
                for name in descriptors() - before:
                    assert str(Path(f"/proc/self/fd/{name}").readlink()) == "/dev/zero", "leaked"
                    os.close(int(name))
            assert descriptors() == before, descriptors() ^ before
        finally:
            ring.close()
        return strike

    sweep(attempt, least=20)
    os.close(inlet)
    os.close(outlet)


@program
def ctrl_c_at_every_place_of_a_run() -> None:
    """KeyboardInterrupt may leave a run anywhere: no descriptor, pin or operation stays behind."""
    _cut(_plain, None)
    _cut(_with_numbers, None)


@program
def ctrl_c_at_every_place_of_a_run_that_is_cancelled() -> None:
    """The same for a run whose time is over, also while it cancels what is in flight."""
    _cut(_hanging, 0.001)


@program
def handler_uses_the_ring_at_every_place_of_a_run() -> None:
    """A handler may run, queue, submit, copy and look amid a run: each gets its own results."""
    nops = uring.Batch([uring.Nop()] * 3)

    def use(account: Account) -> None:
        account.queue(2)
        assert list(account.ring.run(nops, timeout=3).res) == [0] * 3
        account.ring.submit()
        account.copy(1)
        assert account.ring.in_flight >= 0
        assert repr(account.ring)
        assert list(account.ring.run([uring.Nop(user_data=9)], timeout=3).user_data) == [9]
        account.queue()

    def attempt(place: int) -> Strike:
        account = Account()
        strike = Strike(place, lambda: use(account))
        ops = [uring.Fsync(-1), *[uring.Nop()] * 20, uring.Nop(user_data=5)]
        try:
            with strike:
                done = account.ring.run(ops, timeout=3)
            assert list(done.res) == [-errno.EBADF] + [0] * 21
            assert len(set(done.user_data)) == 22
            with strike, suppress(TimeoutError):
                account.ring.run([uring.Timeout(100), uring.Nop()], timeout=0.001)
            account.settle()
            assert set(account.got) == set(account.queued), "lost or made up"
        finally:
            account.ring.close()
        return strike

    sweep(attempt)


@program
def handler_closes_the_ring_at_every_place_of_a_run() -> None:
    """A handler may close the ring amid a run: that says closed, and nothing stays behind."""
    inlet, outlet = os.pipe()
    for timeout in (None, 0.001):

        def attempt(place: int, timeout: float | None = timeout) -> Strike:
            before = descriptors()
            ring = uring.Ring(4)
            buffer = bytearray(8)
            ops = _hanging(inlet, buffer) if timeout else _with_numbers(inlet, buffer)
            strike = Strike(place, ring.close)
            with suppress(uring.RingClosedError, TimeoutError):
                with strike:
                    done = ring.run(ops, timeout=timeout)
                _close_results(done)
            ring.close()
            assert ring.in_flight == 0, "in flight"
            ops.clear()
            buffer.append(0)
            assert descriptors() == before, descriptors() ^ before
            return strike

        sweep(attempt, least=10)
    os.close(outlet)


@program
def garbage_is_collected_at_every_place_of_a_run() -> None:
    """The collector may run anywhere in a run, with the table looked at: nothing in use goes."""
    inlet, _outlet = os.pipe()
    ring = uring.Ring(4)

    def look() -> None:
        gc.collect(1)
        assert ring.in_flight >= 0
        canaries.append([bytearray(b"\xaa") * size for size in range(16, 512, 16)])

    canaries: list[list[bytearray]] = []

    def attempt(place: int) -> Strike:
        strike = Strike(place, look)
        canaries.clear()
        with strike, suppress(TimeoutError):
            ring.run([uring.Read(inlet, bytearray(64)) for _ in range(9)], timeout=0.001)
        _is_whole(ring)
        assert all(c.count(0xAA) == len(c) for each in canaries for c in each), "overwritten"
        return strike

    sweep(attempt)
    ring.close()


@program
def ctrl_c_storm_over_runs_leaves_the_ring_whole() -> None:
    """SIGINT every millisecond or so amid runs that hang: nothing is pinned, open or in flight."""
    inlet, _outlet = os.pipe()
    ring = uring.Ring(8)
    before = descriptors()
    buffer = bytearray(8)
    stop = threading.Event()

    def storm() -> None:
        dice = random.Random(1)
        while not stop.wait(dice.uniform(0.0003, 0.003)):
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt(_number: int, frame: "FrameType | None") -> None:
        if is_in_the_package(frame):  # nothing would catch it in start(), or between the attempts
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    deadline = time.monotonic() + 3
    count = 0
    while time.monotonic() < deadline:
        with suppress(KeyboardInterrupt, TimeoutError):
            count += 1
            ring.run([*[uring.Read(inlet, buffer)] * 30, uring.Timeout(100)], timeout=0.01)
    stop.set()
    join(thread)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert count > 100
    until(lambda: ring.in_flight == 0)
    _is_whole(ring)
    collect()
    buffer.append(0)
    assert descriptors() == before, descriptors() ^ before
    ring.close()


@program
def dropped_batches_and_rings_live_as_long_as_their_run() -> None:
    """What only a run still refers to, the ring and the batch, is there until it has ended."""
    inlet, outlet = os.pipe()
    before = settled_descriptors()

    def work() -> None:
        ring = uring.Ring(4)
        buffer = bytearray(16)
        done = ring.run(uring.ReadMany(inlet, buffer, range(16)), timeout=5)
        assert list(done.res) == [1] * 16, done
        assert sorted(buffer) == list(range(16)), buffer
        ring.close()

    for _ in range(20):
        thread = Worker(work)
        thread.start()
        canaries = []
        for number in range(16):
            collect()
            canaries += [bytearray(b"\xaa") * size for size in range(16, 1024, 16)]
            os.write(outlet, bytes([number]))
        join(thread)
        assert thread.error is None, thread.error
        assert all(canary.count(0xAA) == len(canary) for canary in canaries), "overwritten"
    assert settled_descriptors() == before


@program
def cancelled_run_does_not_touch_reused_memory() -> None:
    """After a run has ended with its timeout no worker of the kernel writes to what it was lent."""
    fd = os.open("/dev/urandom", os.O_RDONLY)
    with uring.Ring(8) as ring:
        for delay in (0, 0.001, 0.005, 0.02):
            size = 4 << 20
            buffer = bytearray(8 * size)
            batch = uring.ReadMany(fd, buffer, [0] * 8, size, flags=uring.SQEFlags.ASYNC)
            with suppress(TimeoutError):
                ring.run(batch, timeout=delay)
            assert ring.in_flight == 0
            before = checksums([buffer])
            del batch
            buffer.append(0)
            canaries = [bytearray(b"\xaa") * (size // 8) for _ in range(64)]
            time.sleep(0.05)  # nothing tells that a worker of the kernel writes no more
            assert [zlib.crc32(memoryview(buffer)[:-1])] == before, "written to after the end"
            assert all(canary.count(0xAA) == len(canary) for canary in canaries), "overwritten"


@program
def close_races_runs_and_hangs_nobody() -> None:
    """close() at any moment of three threads' runs: each ends soon, pins and files are free."""
    sys.setswitchinterval(1e-6)
    inlet, _outlet = os.pipe()
    dice = random.Random(1)
    for _ in range(100):
        before = descriptors()
        ring = uring.Ring(4)
        buffer = bytearray(8)

        def work(make: Make, ring: uring.Ring = ring, buffer: bytearray = buffer) -> None:
            _close_results(ring.run(make(inlet, buffer)))

        makes: list[Make] = [_hanging, _opens, _opens]
        close_amid(ring, [partial(work, make) for make in makes], dice.random() / 200)
        assert ring.in_flight == 0
        buffer.append(0)
        assert descriptors() == before, descriptors() ^ before


def _opens(_inlet: int, buffer: bytearray) -> list[uring.Operation]:
    return [uring.Openat("/dev/null"), *[uring.Nop()] * 20, uring.Read(-1, buffer)]


@program
def fork_amid_a_run_leaves_it_to_the_parent() -> None:
    """The child of a fork amid a run is told and has rings of its own; the parent's run goes on."""
    inlet, outlet = os.pipe()
    buffer = bytearray(8)
    with uring.Ring(4) as ring:
        got: list[list[int]] = []
        thread = threading.Thread(
            target=lambda: got.append(
                list(ring.run([*[uring.Nop()] * 9, uring.Read(inlet, buffer)]).res)
            )
        )
        thread.start()
        until(lambda: ring.in_flight == 1)

        def use() -> None:
            refused(uring.RingClosedError, "fork", lambda: ring.run([uring.Nop()]))
            ring.close()
            with uring.Ring(4) as own:
                assert list(own.run([uring.Nop()] * 20).res) == [0] * 20

        children = [forked(use) for _ in range(8)]
        assert [exit_code(child) for child in children] == [0] * 8
        os.write(outlet, b"data")
        join(thread)
        assert got == [[0] * 9 + [4]]
        assert buffer[:4] == b"data"


@program
def fork_in_a_handler_of_a_run_leaves_it_to_the_parent() -> None:
    """A handler that forks amid a run: in the child the run says fork, in the parent it goes on."""
    inlet, outlet = os.pipe()
    buffer = bytearray(8)
    parent = os.getpid()
    children: list[int] = []
    with uring.Ring(4) as ring:

        def handler(_number: int, _frame: object) -> None:
            child = os.fork()
            if child:
                children.append(child)
                os.write(outlet, b"data")

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            done = ring.run([uring.Openat("/dev/null"), uring.Read(inlet, buffer)], timeout=10)
        except uring.RingClosedError as error:
            if os.getpid() != parent:
                os._exit(0 if "fork" in str(error) and buffer == bytes(8) else 2)
            raise
        if os.getpid() != parent:
            os._exit(3)
        assert [exit_code(child) for child in children] == [0]
        assert done[1].res == 4
        assert buffer[:4] == b"data"
        os.fstat(done[0].res)
        _is_whole(ring)


_left: list[object] = []


@program
def exit_with_runs_in_daemon_threads() -> None:
    """The interpreter ends while daemon threads run batches that hang, and others that do not."""
    inlet, outlet = os.pipe()
    ring = uring.Ring(8)
    _left.extend([ring, outlet])
    urandom = os.open("/dev/urandom", os.O_RDONLY)

    def hang() -> None:
        with suppress(uring.RingClosedError):
            ring.run([uring.Read(inlet, bytearray(8)) for _ in range(100)])

    def work() -> None:
        batch = uring.ReadMany(urandom, bytearray(1 << 20), [0] * 4, flags=uring.SQEFlags.ASYNC)
        with suppress(uring.RingClosedError):
            while True:
                ring.run(batch)

    for target in (hang, work, work):
        threading.Thread(target=target, daemon=True).start()
    until(lambda: ring.in_flight > 8)


@program
def threads_that_end_in_a_run_leave_the_ring_usable() -> None:
    """Runs that were begun by threads that have ended since left nothing that is mistaken later."""
    ring = uring.Ring(8)
    numbers: list[int] = []
    for _ in range(200):

        def work() -> None:
            numbers.extend(ring.run([uring.Nop()] * 20).user_data)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            join(thread)
    once(numbers)
    assert len(numbers) == 200 * 60
    _is_whole(ring)
    ring.close()


if __name__ == "__main__":
    main()
