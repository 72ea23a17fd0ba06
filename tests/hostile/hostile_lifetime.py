"""Programs that close rings at the wrong time, twice, too late, or never."""

import atexit
import contextlib
import copy
import gc
import os
import pickle
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_harness import (
    Tracked,
    checksums,
    collect,
    descriptors,
    drain,
    main,
    program,
    random_reads,
    refused,
    settled_descriptors,
    until,
)

import uring

SKIP = uring.SQEFlags.CQE_SKIP_SUCCESS


def _still(buffers: list[bytearray]) -> None:
    before = checksums(buffers)
    time.sleep(0.3)  # nothing tells that a worker of the kernel writes no more
    assert checksums(buffers) == before, "written to after the end"


@program
def close_is_a_barrier_for_workers() -> None:
    """After close() returns no worker of the kernel writes to memory that it was lent."""
    fd = os.open("/dev/urandom", os.O_RDONLY)
    for delay in (0, 0.002, 0.01):
        ring = uring.Ring(8)
        buffers = random_reads(ring, fd)
        time.sleep(delay)  # nothing tells how far a worker has come
        ring.close()
        assert ring.in_flight == 0
        _still(buffers)


def _drop_and_reuse() -> None:
    fd = os.open("/dev/urandom", os.O_RDONLY)
    size = 60_000  # small enough for malloc to hand out again what was just freed
    for _ in range(2):
        ring = uring.Ring(8)
        for _ in range(4):
            parts = [bytearray(size) for _ in range(300)]
            ring.queue(uring.Readv(fd, parts, flags=uring.SQEFlags.ASYNC))
        ring.submit()
        del parts
        time.sleep(0.002)  # nothing tells that a worker has started
        del ring
        gc.collect()
        canaries = [bytearray(b"\xaa") * size for _ in range(1200)]
        time.sleep(0.1)  # nor that it writes no more
        assert all(canary.count(0xAA) == size for canary in canaries), "overwritten"
        ring = uring.Ring(8)
        buffers = random_reads(ring, fd)
        time.sleep(0.002)  # nothing tells that a worker has started
        del ring
        gc.collect()
        _still(buffers)


@program
def dropped_ring_does_not_touch_reused_memory() -> None:
    """A ring dropped with work in flight: what is allocated right afterwards is not written to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _drop_and_reuse()
    assert [w.category for w in caught] == [ResourceWarning] * 4


@program
def dropped_ring_is_as_safe_when_warnings_are_errors() -> None:
    """The same under -W error, where the warning is an exception in __del__."""
    failed: list[str] = []
    sys.unraisablehook = lambda unraisable: failed.append(repr(unraisable.exc_value))
    warnings.simplefilter("error")
    before = len(descriptors())
    _drop_and_reuse()
    assert len(failed) == 4, failed
    assert all(name.startswith("ResourceWarning") for name in failed)
    assert len(settled_descriptors()) == before + 1


@program
def hundred_dropped_rings_leak_nothing_and_warn() -> None:
    """100 rings dropped open: 100 ResourceWarnings that name the ring, and no descriptor left."""
    inlet, _ = os.pipe()
    before = settled_descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(100):
            ring = uring.Ring(4)
            ring.queue(uring.Read(inlet, bytearray(8)))
            ring.submit()
            del ring
        collect()
    assert [w.category for w in caught] == [ResourceWarning] * 100
    assert all("<Ring fd=" in str(w.message) for w in caught)
    assert settled_descriptors() == before


@program
def dropped_ring_ends_without_the_collector() -> None:
    """Dropping the last reference ends a ring there and then, as with files."""
    gc.disable()
    before = descriptors()
    warnings.simplefilter("ignore")
    ring = uring.Ring(4)
    del ring
    assert descriptors() == before


@program
def ten_thousand_rings_leak_nothing() -> None:
    """10,000 rings made, used and closed: the descriptors and the memory are as before."""

    def use(count: int) -> None:
        for number in range(count):
            with uring.Ring(2) as ring:
                ring.queue(uring.Nop(), user_data=number)
                ring.submit_and_wait()
                assert ring.copy_cqe().user_data == number

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    use(500)
    before, size = settled_descriptors(), resident()
    use(9500)
    assert settled_descriptors() == before
    assert resident() - size < 8 << 20


def _every_call(ring: uring.Ring) -> list[Callable[[], object]]:
    return [
        lambda: ring.queue(uring.Nop()),
        lambda: ring.queue_all([uring.Nop()]),
        ring.submit,
        ring.submit_and_wait,
        ring.copy_cqes,
        ring.copy_cqe,
        ring.peek_cqes,
        lambda: ring.cq_advance(1),
        ring.cq_ready,
        ring.sq_ready,
        ring.fileno,
        ring.enable,
        ring.unregister_files,
        lambda: ring.register_files([0]),
        lambda: ring.register_files_update(0, [0]),
        lambda: ring.sq.head,
        lambda: ring.cq.tail,
        ring.__enter__,
    ]


@program
def use_after_close_and_before_init_is_refused() -> None:
    """Every call on a closed ring is RingClosedError; on one never made, an exception."""
    ring = uring.Ring(8)
    ring.queue(uring.Timeout(100))
    ring.submit()
    ring.close()
    ring.close()
    for call in _every_call(ring):
        refused(uring.RingClosedError, "closed", call)
    assert (ring.fd, ring.in_flight, ring.closed) == (-1, 0, True)
    assert "closed" in repr(ring)
    empty = uring.Ring.__new__(uring.Ring)
    for call in _every_call(empty):
        with contextlib.suppress(AttributeError, uring.RingClosedError):
            call()
            raise AssertionError("a ring that was never made works")
    del empty
    gc.collect()


@program
def ring_is_not_made_twice() -> None:
    """Calling __init__ on a ring in use is refused, or at least frees nothing that is in flight."""
    fd = os.open("/dev/urandom", os.O_RDONLY)
    ring = uring.Ring(8)
    buffers = [weakref.ref(b) for b in _tracked_reads(ring, fd)]
    with contextlib.suppress(uring.UringError, RuntimeError, TypeError):
        ring.__init__(8)  # type: ignore[misc]  # that is the point
    collect()
    alive = [ref() is not None for ref in buffers]
    assert all(alive), "freed in flight"
    assert len(drain(ring)) == len(buffers)
    ring.close()


def _tracked_reads(ring: uring.Ring, fd: int) -> list[Tracked]:
    buffers = [Tracked(16 << 20) for _ in range(2)]
    for buffer in buffers:
        ring.queue(uring.Read(fd, buffer, flags=uring.SQEFlags.ASYNC))
    ring.submit()
    return buffers


@program
def ring_is_not_copied() -> None:
    """A ring cannot be copied or pickled: two that share a queue would read completions twice."""
    inlet, outlet = os.pipe()
    ring = uring.Ring(2)
    ring.queue(uring.Nop(), user_data=5)
    ring.submit_and_wait()
    assert len(ring.copy_cqes()) == 1
    buffer = Tracked(8)
    alive = weakref.ref(buffer)
    ring.queue(uring.Read(inlet, buffer), user_data=5)
    ring.submit()
    del buffer
    duplicates: list[Callable[[uring.Ring], Any]] = [copy.copy, copy.deepcopy, pickle.dumps]
    for duplicate in duplicates:
        with contextlib.suppress(TypeError):
            twin = duplicate(ring)
            completions = twin.copy_cqes()
            collect()
            assert alive() is not None, "freed in flight: a copy read an old completion again"
            raise AssertionError(f"{duplicate} made a ring that read {completions}")
    os.write(outlet, b"x")
    assert ring.copy_cqe(timeout=5).res == 1
    ring.close()


@program
def uncollected_descriptors_are_closed_with_the_ring() -> None:
    """What accept, openat and socket opened and nobody copied out is closed by close()."""
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    before = descriptors()
    for extra in ([], [uring.Nop(user_data=7)], [uring.Timeout(0, user_data=7)]):
        # alone, sharing one number, and sharing it with operations that open nothing
        for number in (None, 7):
            ring = uring.Ring(16)
            ring.queue(uring.Openat("/dev/null", user_data=number))
            if number is None:
                ring.queue(uring.Socket())
                ring.queue(uring.Accept(server, address=True))
                again = socket.create_connection(server.getsockname())
            with contextlib.suppress(ValueError):  # it may refuse to share such a number
                for op in extra:
                    ring.queue(op)
            ring.submit()
            if number is None:
                until(lambda ring=ring: ring.cq_ready() >= 3)  # type: ignore[misc]  # mypy infers no lambda with a default
                again.close()
            ring.close()
            assert descriptors() == before, f"leaked, number {number}, beside {extra}"
    client.close()
    server.close()


@program
def silent_success_opens_no_descriptor() -> None:
    """CQE_SKIP_SUCCESS on what makes a descriptor leaks none: nobody would learn its number."""
    with uring.Ring(8) as ring:
        before = descriptors()
        for op in (uring.Openat("/dev/null", flags=SKIP), uring.Socket(flags=SKIP)):
            with contextlib.suppress(ValueError):
                ring.queue_all(uring.link(op, uring.Nop()))
            drain(ring)
            assert descriptors() == before, f"{op} leaked"


@program
def disabled_ring_closes_at_once() -> None:
    """An R_DISABLED ring that refused its submit is closed without waiting for what never ran."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ring = uring.Ring(8, flags=uring.SetupFlags.R_DISABLED)
        ring.queue(uring.Nop())
        refused(uring.EnterError, "R_DISABLED", ring.submit)
        started = time.monotonic()
        ring.close()
        assert time.monotonic() - started < 1
    assert [str(w.message) for w in caught] == []


@program
def ring_in_a_cycle_and_in_a_destructor_ends() -> None:
    """Rings in reference cycles, and in __del__ of others, are ended by the collector."""
    before = settled_descriptors()
    warnings.simplefilter("ignore")
    inlet, _outlet = os.pipe()

    class Node:
        def __init__(self) -> None:
            self.me = self
            self.ring = uring.Ring(4)
            self.ring.queue(uring.Read(inlet, bytearray(8)))
            self.ring.submit()

        def __del__(self) -> None:
            self.ring.queue(uring.Nop())
            self.ring.submit()
            log.append(self.ring.in_flight)
            with uring.Ring(2) as other:
                other.queue(uring.Nop())
                log.append(other.submit_and_wait())

    log: list[int] = []
    for _ in range(20):
        Node()
    collect()
    assert log == [2, 1] * 20
    assert len(settled_descriptors()) == len(before) + 2


# ---- the end of the interpreter: what these print comes before the end, their exit code after ----

_left: list[object] = []


def _leave_ring_busy() -> uring.Ring:
    ring = uring.Ring(8)
    _left.append(ring)
    random_reads(ring, os.open("/dev/urandom", os.O_RDONLY))
    inlet, outlet = os.pipe()
    _left.append(outlet)
    ring.queue(uring.Read(inlet, bytearray(8)))
    ring.submit()
    return ring


@program
def exit_with_work_in_flight() -> None:
    """The interpreter ends with work in flight: promptly, with exit code 0."""
    _leave_ring_busy()


@program
def exit_with_daemon_threads_in_the_ring() -> None:
    """The interpreter ends while daemon threads wait on one ring and keep another busy."""
    ring = _leave_ring_busy()
    busy = uring.Ring(8)
    _left.append(busy)

    def wait() -> None:
        with contextlib.suppress(uring.RingClosedError):
            while True:
                ring.copy_cqes(wait_nr=100)

    def work() -> None:
        with contextlib.suppress(uring.RingClosedError):
            while True:
                busy.queue(uring.Nop())
                busy.submit_and_wait()
                busy.copy_cqes()

    for target in (wait, wait, work):
        threading.Thread(target=target, daemon=True).start()
    time.sleep(0.05)  # nothing tells that a thread has entered the kernel


@program
def exit_with_rings_born_at_the_end() -> None:
    """Rings that are made by exit handlers and destructors during the end do no harm."""

    class Late:
        def __del__(self) -> None:
            _left.append(uring.Ring(4))

    def late() -> None:
        _leave_ring_busy()

    atexit.register(late)
    _left.append(Late())


if __name__ == "__main__":
    main()
