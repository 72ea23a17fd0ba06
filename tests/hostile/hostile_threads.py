"""Programs that use one ring from many threads, close it under them, and fork among them."""

import ctypes
import errno
import hashlib
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from hostile_harness import (
    Worker,
    checksums,
    close_amid,
    descriptors,
    drain,
    exit_code,
    forked,
    join,
    main,
    once,
    program,
    random_reads,
    refused,
    until,
)

import uring


@program
def wait_lets_other_threads_run() -> None:
    """While one thread waits, another counts on and ends the wait."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        counted = 0

        def count() -> None:
            nonlocal counted
            while counted < 100_000:
                counted += 1
            os.write(outlet, b"go")

        for wait in (
            lambda: ring.copy_cqes(wait_nr=1),
            ring.copy_cqe,
            lambda: ring.submit_and_wait(1),
            lambda: ring.copy_cqes(wait_nr=1, timeout=20),
        ):
            counted = 0
            ring.queue(uring.Read(inlet, bytearray(2)))
            ring.submit()
            thread = threading.Thread(target=count)
            thread.start()
            wait()
            assert counted == 100_000
            join(thread)
            drain(ring)


@program
def close_wakes_whoever_waits() -> None:
    """Threads that wait for 1, 100 and more than ever fit get RingClosedError at once."""
    calls: list[Callable[[uring.Ring], object]] = [
        lambda ring: ring.copy_cqes(wait_nr=1),
        lambda ring: ring.copy_cqes(wait_nr=100),
        lambda ring: ring.copy_cqes(wait_nr=2**32 - 1, timeout=600),
        uring.Ring.copy_cqe,
        lambda ring: ring.submit_and_wait(1),
        lambda ring: ring.submit_and_wait(100, timeout=600),
    ]
    for entries in (1, 8, 256):
        ring = uring.Ring(entries)
        ready = threading.Barrier(len(calls) + 1)

        def wait(
            call: Callable[[uring.Ring], object],
            ring: uring.Ring = ring,
            ready: threading.Barrier = ready,
        ) -> None:
            ready.wait()
            call(ring)

        threads = [Worker(wait, call) for call in calls]
        for thread in threads:
            thread.start()
        ready.wait()
        time.sleep(0.05)  # nothing tells that a thread has entered the kernel
        started = time.monotonic()
        ring.close()
        for thread in threads:
            join(thread, 2)
        assert time.monotonic() - started < 2
        caught = [thread.error for thread in threads]
        assert {type(error) for error in caught} == {uring.RingClosedError}, caught


@program
def close_is_a_barrier_under_a_waiter_whatever_the_user_data() -> None:
    """What wakes the waiters is not mistaken for the end of operations that chose user_data 0."""
    fd = os.open("/dev/urandom", os.O_RDONLY)
    for number in (0, 1, 2**63 - 1, 2**64 - 1):
        ring = uring.Ring(8)
        buffers = random_reads(ring, fd, user_data=number)

        def wait(ring: uring.Ring = ring) -> None:
            try:
                while True:
                    ring.copy_cqes(wait_nr=16)
            except uring.RingClosedError:
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.01)  # nothing tells that the thread has entered the kernel
        ring.close()
        before = checksums(buffers)
        time.sleep(0.2)  # nor that a worker writes no more
        assert checksums(buffers) == before, f"written after close(), user_data {number}"
        join(thread)


@program
def producers_and_reapers_lose_nothing() -> None:
    """Four producers, a reaper that waits and one that polls: each of 24,000 numbers comes once."""
    each = 6000
    sys.setswitchinterval(1e-5)
    ring = uring.Ring(64)  # closed only when all went well: it would wait
    got: list[list[int]] = [[], []]
    done = threading.Event()

    def produce(base: int) -> None:
        for number in range(base, base + each):
            while True:
                try:
                    ring.queue(uring.Nop(), user_data=number)
                    break
                except uring.SubmissionQueueFull:
                    ring.submit()
            if number % 3 == 0:
                ring.submit()
        ring.submit()

    def reap(mine: list[int], wait_nr: int) -> None:
        while not done.is_set():
            mine += ring.copy_cqes(wait_nr=wait_nr, timeout=0.01).user_data.tolist()

    producers = [threading.Thread(target=produce, args=(i * each,)) for i in range(4)]
    reapers = [threading.Thread(target=reap, args=(got[i], 8 * i)) for i in range(2)]
    for thread in producers + reapers:
        thread.start()
    for thread in producers:
        join(thread, 20)
    try:
        until(lambda: len(got[0]) + len(got[1]) >= 4 * each, 3)
    finally:
        done.set()
    for thread in reapers:
        join(thread)
    numbers = got[0] + got[1] + [cqe.user_data for cqe in ring.copy_cqes()]
    once(numbers)
    assert set(numbers) == set(range(4 * each))
    assert ring.in_flight == 0
    ring.close()


@program
def chains_stay_whole_while_others_submit() -> None:
    """A chain's broken first link cancels all of it, whatever three other threads submit."""
    sys.setswitchinterval(1e-5)
    ring = uring.Ring(64, cq_entries=4096)  # closed only when all went well: it would wait
    stop = threading.Event()
    split: list[object] = []

    def chains(length: int) -> None:
        head = uring.Fsync(-1)
        chain = uring.link(head, *[uring.Nop() for _ in range(length - 1)])
        while not stop.is_set():
            with suppress(uring.SubmissionQueueFull):
                ring.queue_all(chain)
            ring.submit()

    def singles() -> None:
        while not stop.is_set():
            with suppress(uring.SubmissionQueueFull):
                ring.queue(uring.Timeout(0))
            ring.submit()

    threads = [threading.Thread(target=chains, args=(n,)) for n in (3, 7)]
    threads += [threading.Thread(target=singles)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline and not split:
        for cqe in ring.copy_cqes(wait_nr=1, timeout=0.1):
            if isinstance(cqe.op, uring.Nop) and cqe.res != -errno.ECANCELED:
                split += [cqe]
    stop.set()
    for thread in threads:
        join(thread)
    assert not split, f"ran behind a link that failed: {split[:3]}"
    drain(ring)
    ring.close()


@program
def close_races_submitters_and_leaves_nothing() -> None:
    """close() while others queue and submit is prompt, and nothing stays in flight."""
    sys.setswitchinterval(1e-6)
    for _ in range(60):
        ring = uring.Ring(16)

        def work(ring: uring.Ring = ring) -> None:
            with suppress(uring.SubmissionQueueFull):
                ring.queue(uring.Nop())
            ring.submit()
            ring.copy_cqes()

        close_amid(ring, [work] * 3)
        assert ring.in_flight == 0


@program
def close_races_waiters_and_hangs_nobody() -> None:
    """close() while threads are just about to wait ends all of them: no wait begins after it."""
    sys.setswitchinterval(1e-6)
    for _ in range(150):
        ring = uring.Ring(4)
        close_amid(ring, [partial(ring.copy_cqes, wait_nr=1)] * 3)


@program
def wait_that_begins_during_a_close_is_refused() -> None:
    """A thread held up on its way into a wait, until the close is under way, does not get stuck."""
    fd = os.open("/dev/urandom", os.O_RDONLY)
    for _ in range(20):
        ring = uring.Ring(8)
        buffers = random_reads(ring, fd)
        held_up = threading.Event()
        told: list[str] = []

        def hold_up(frame: FrameType, _event: str, _argument: object) -> None:
            if frame.f_code.co_name == "_wait":
                held_up.set()  # noqa: B023 - the thread ends within the loop
                while not ring.closed:  # noqa: B023  # called before the loop goes on
                    time.sleep(0)  # lets the one who closes go on

        def wait(ring: uring.Ring = ring, told: list[str] = told) -> None:
            sys.settrace(hold_up)
            try:
                ring.copy_cqes(wait_nr=100)
            except uring.RingClosedError:
                told.append("closed")

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert held_up.wait(5)
        closer = threading.Thread(target=ring.close, daemon=True)
        closer.start()
        join(closer, 3)
        join(thread, 3)
        assert told == ["closed"]
        assert len(buffers) == 4


@program
def eight_threads_close_at_once() -> None:
    """close() by eight threads at once closes the ring once, and raises in none."""
    for _ in range(50):
        before = descriptors()
        ring = uring.Ring(8)
        ring.queue(uring.Timeout(100))
        ring.submit()

        def close(ring: uring.Ring = ring) -> None:
            ring.close()
            assert ring.fd == -1

        threads = [Worker(close) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            join(thread, 3)
        assert [thread.error for thread in threads] == [None] * 8
        assert descriptors() == before


@program
def wrong_thread_is_told() -> None:
    """SINGLE_ISSUER from another thread: WrongThreadError from each call, and the owner goes on."""
    for extra in (uring.SetupFlags(0), uring.SetupFlags.DEFER_TASKRUN):
        with uring.Ring(8, flags=uring.SetupFlags.SINGLE_ISSUER | extra) as ring:
            calls: list[Callable[[], object]] = [
                lambda: ring.queue(uring.Nop()),
                lambda: ring.queue_all([uring.Nop()]),
                ring.submit,
                ring.submit_and_wait,
                ring.copy_cqes,
                lambda: ring.copy_cqe(timeout=1),
                ring.peek_cqes,
                lambda: ring.cq_advance(0),
                lambda: ring.register_files([0]),
                ring.close,
            ]
            ring.queue(uring.Nop(), user_data=1)
            ring.submit()
            raised: list[str] = []

            def other(
                calls: list[Callable[[], object]] = calls, raised: list[str] = raised
            ) -> None:
                for call in calls:
                    try:
                        call()
                    except uring.WrongThreadError as error:
                        raised.append(str(error))

            thread = threading.Thread(target=other)
            thread.start()
            join(thread)
            assert len(raised) == len(calls)
            owner = f"native id {threading.main_thread().native_id}"
            assert all(owner in message for message in raised)
            assert ring.copy_cqe(timeout=5).user_data == 1


@program
def ring_outlives_its_threads() -> None:
    """Rings whose threads have ended, with work in flight, are closed promptly by another."""
    warnings.simplefilter("always", RuntimeWarning)  # what only the owner could cancel is kept
    inlet, outlet = os.pipe()
    flags = uring.SetupFlags
    for chosen in (flags(0), flags.SINGLE_ISSUER, flags.SINGLE_ISSUER | flags.DEFER_TASKRUN):
        for closer_is_new in (False, True):
            rings: list[uring.Ring] = []

            def make(chosen: uring.SetupFlags = chosen, rings: list[uring.Ring] = rings) -> None:
                ring = uring.Ring(8, flags=chosen)
                ring.queue(uring.Read(inlet, bytearray(8)))
                ring.queue(uring.Nop())
                ring.submit()
                rings.append(ring)

            thread = threading.Thread(target=make)
            thread.start()
            join(thread)
            before = len(descriptors())
            started = time.monotonic()
            if closer_is_new:  # which often gets the identity of the one that ended
                thread = threading.Thread(target=rings[0].close)
                thread.start()
                join(thread, 5)
            else:
                rings[0].close()
            assert time.monotonic() - started < 2, (chosen, closer_is_new)
            assert rings[0].fd == -1
            assert len(descriptors()) == before - 1
    os.close(outlet)


# ---- fork ----


def _check_refused(ring: uring.Ring) -> None:
    calls: list[Callable[[], object]] = [
        lambda: ring.queue(uring.Nop()),
        lambda: ring.queue_all([uring.Nop()]),
        ring.submit,
        ring.submit_and_wait,
        ring.copy_cqes,
        ring.copy_cqe,
        ring.peek_cqes,
        ring.fileno,
        lambda: ring.register_files([0]),
    ]
    for call in calls:
        refused(uring.RingClosedError, "fork", call)
    assert ring.closed
    assert ring.fd == -1
    assert "fork" in repr(ring)
    ring.close()


@program
def fork_leaves_the_ring_to_the_parent() -> None:
    """The child is told; its own ring works; the parent's operation completes with its data."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        buffer = bytearray(8)
        number = ring.queue(uring.Read(inlet, buffer))
        ring.submit()
        ring.queue(uring.Nop(), user_data=5)
        fd = ring.fd

        def child() -> None:
            _check_refused(ring)
            assert not Path(f"/proc/self/fd/{fd}").is_symlink()
            with uring.Ring(8) as own:
                own.queue(uring.Nop(), user_data=9)
                assert own.submit_and_wait() == 1
                assert own.copy_cqe().user_data == 9
                assert exit_code(forked(lambda: _check_refused(own))) == 0

        assert exit_code(forked(child)) == 0
        os.write(outlet, b"for dad!")
        assert ring.submit_and_wait(2, timeout=5) == 1
        assert {c.user_data: c.res for c in ring.copy_cqes()} == {number: 8, 5: 0}
        assert buffer == b"for dad!"


@program
def fork_behind_pythons_back_is_noticed() -> None:
    """A fork(2) that Python did not make: the child's calls into the ring say fork, too."""
    libc = ctypes.PyDLL(None)
    with uring.Ring(8) as ring:
        ring.queue(uring.Nop(), user_data=1)
        pid = libc.fork()
        if pid == 0:
            status = 1
            try:
                refused(uring.RingClosedError, "fork", ring.submit)
                refused(uring.RingClosedError, "fork", ring.copy_cqes)
                refused(uring.RingClosedError, "fork", lambda: ring.register_files([0]))
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert ring.submit_and_wait(1, timeout=5) == 1
        assert ring.copy_cqe(timeout=5).user_data == 1


@program
def fork_while_another_thread_holds_every_lock() -> None:
    """The child of a fork in the middle of a close() or of heavy use does not hang on a lock."""
    fd = os.open("/dev/urandom", os.O_RDONLY)
    sys.setswitchinterval(1e-5)
    with uring.Ring(8) as busy:
        stop = threading.Event()

        def use() -> None:
            while not stop.is_set():
                busy.queue(uring.Nop())
                busy.submit()
                busy.copy_cqes()

        thread = threading.Thread(target=use)
        thread.start()
        for _ in range(10):

            def child() -> None:
                _check_refused(busy)
                assert busy.in_flight == 0
                assert busy.cq_ready is not None

            assert exit_code(forked(child)) == 0
        stop.set()
        join(thread)
    for _ in range(3):
        ring = uring.Ring(8)
        buffers = random_reads(ring, fd)
        closer = threading.Thread(target=ring.close)
        closer.start()
        until(lambda ring=ring: ring.closed)  # type: ignore[misc]  # mypy infers no lambda with a default
        assert exit_code(forked(ring.close)) == 0
        join(closer)
        assert len(buffers) == 4


def _in_spawned(number: int) -> int:
    with uring.Ring(8) as ring:
        ring.queue(uring.Nop(), user_data=number)
        ring.submit_and_wait()
        return ring.copy_cqe().user_data


@program
def multiprocessing_works_beside_a_ring() -> None:
    """Processes forked or spawned use rings of their own, and the parent's is untouched."""
    with uring.Ring(8) as ring:
        ring.queue(uring.Timeout(100), user_data=1)
        ring.submit()
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.map(_in_spawned, range(6)) == list(range(6))
        ring.queue(uring.TimeoutRemove(1), user_data=2)
        ring.submit_and_wait(2, timeout=5)
        assert sorted((c.user_data, c.res) for c in ring.copy_cqes()) == [(1, -125), (2, 0)]


@program
def fork_of_a_child_does_not_touch_memory_in_flight() -> None:
    """Data that arrives after a fork arrives in the parent's buffer only."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        buffer = bytearray(1 << 16)
        empty = hashlib.sha256(buffer).digest()
        ring.queue(uring.Read(inlet, buffer))
        ring.submit()

        def child() -> None:
            os.write(outlet, b"z" * 4096)
            assert hashlib.sha256(buffer).digest() == empty

        assert exit_code(forked(child)) == 0
        assert ring.copy_cqe(timeout=5).res == 4096
        assert buffer[:4096] == b"z" * 4096


if __name__ == "__main__":
    main()
