"""Rings and what hangs on them, dropped where it is least convenient."""

import gc
import os
import select
import socket
import sys
import threading
import time
import warnings
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from hostile_harness import (
    Tracked,
    collect,
    descriptors,
    drain,
    join,
    main,
    program,
    refused,
    settled_descriptors,
)

import uring

if TYPE_CHECKING:
    from collections.abc import Callable

_F = uring.SetupFlags


def _everything(ring: uring.Ring, ours: socket.socket, theirs: socket.socket) -> list[Any]:
    """One of each thing that hangs on a ring, and operations in flight on most of them."""
    group = ring.register_buffer_ring(4, size=64)
    sending = ring.register_send_buffer_ring(4, size=64)
    sending.put(b"word")
    theirs.send(b"hello")
    ring.queue(uring.RecvSelect(ours, group))
    ring.submit_and_wait()
    cqe = ring.copy_cqe()
    lease = cqe.result()
    buffers = ring.register_buffers([Tracked(4096), None])
    files = ring.register_files([ours, -1])
    eventfd = os.eventfd(0)
    event = ring.register_eventfd(eventfd)
    os.close(eventfd)
    stream = ring.stream(uring.RecvMultishot(uring.Fixed(0), group))
    batch = uring.Batch([uring.Read(ours, Tracked(64)), uring.Nop()])
    region: list[Any] = [lease, lease.views, cqe, group, sending, buffers, files, event, stream]
    ring.queue(uring.Recv(ours, Tracked(64)))
    ring.queue(uring.ReadFixed(ours, buffers[0][:64]))
    ring.queue(uring.Socket())
    ring.submit()
    ring.queue(uring.Nop())
    return [*region, batch, ring.sq, ring.cq, ring]


def _silent() -> None:
    warnings.simplefilter("ignore", ResourceWarning)


@program
def everything_in_one_cycle_goes() -> None:
    """A ring with all that hangs on it in reference cycles: nothing stays or is written."""
    _silent()
    canaries: list[bytearray] = []

    def make(count: int) -> None:
        for number in range(count):
            ours, theirs = socket.socketpair()
            ring = uring.Ring(
                16, flags=_F(0) if number % 2 else _F.SINGLE_ISSUER | _F.DEFER_TASKRUN
            )
            things = _everything(ring, ours, theirs)
            holder = {"things": things, "number": number}
            things[number % len(things) :] += [holder, things]
            del ring, things, holder
            if number % 3 == 0:
                collect()
            theirs.close()
            ours.close()
            canaries.extend(bytearray(b"\xaa") * size for size in (64, 256, 4096))

    make(4)
    collect()
    before = settled_descriptors()
    make(60)
    collect()
    assert settled_descriptors() == before
    assert all(canary.count(0xAA) == len(canary) for canary in canaries), "overwritten"


class _Lazarus(uring.Ring):
    """A ring that comes back when it is dropped: before it is closed, or behind that."""

    risen: "list[_Lazarus]" = []  # noqa: RUF012 - of the class, for there the dead come back
    first = True

    def __del__(self) -> None:
        if self.first:
            self.risen.append(self)
        super().__del__()
        if not self.first:
            self.risen.append(self)


@program
def resurrected_ring_is_closed() -> None:
    """A ring that its __del__ brings back is closed, and says so; what is in flight was ended."""
    _silent()
    inlet, _outlet = os.pipe()
    before = settled_descriptors()
    for first in (True, False):
        ring = _Lazarus(8)
        ring.first = first
        buffer = Tracked(8)
        alive = weakref.ref(buffer)
        ring.queue(uring.Read(inlet, buffer))
        ring.submit()
        del buffer, ring
        collect()
        (ring,) = _Lazarus.risen
        _Lazarus.risen.clear()
        assert ring.closed
        assert alive() is None
        refused(uring.RingClosedError, "dropped", ring.submit)
        refused(uring.RingClosedError, "dropped", ring.copy_cqes)
        refused(uring.RingClosedError, "dropped", partial(ring.run, [uring.Nop()]))
        ring.close()
        del ring
        assert settled_descriptors() == before


@program
def resurrected_by_another_it_works_on() -> None:
    """What another's __del__ brings back of a cycle, before the ring's own, is what it was."""
    _silent()
    risen: list[Any] = []

    class Raiser:
        def __init__(self, things: list[Any]) -> None:
            self.things = things
            self.me = self

        def __del__(self) -> None:
            risen.append(self.things)

    before = settled_descriptors()
    for _ in range(20):
        ours, theirs = socket.socketpair()
        Raiser(_everything(uring.Ring(16), ours, theirs))
        collect()
        things = risen.pop()
        ring = things[-1]
        if not ring.closed:
            ring.cancel(any=True)
            drain(ring)
            assert list(ring.run([uring.Nop()] * 9).res) == [0] * 9
            assert bytes(things[0]) == b"hello"
        for thing in (things[8], *things[3:8]):
            thing.close()
        ring.close()
        del things, ring, thing
        collect()
        ours.close()
        theirs.close()
    assert settled_descriptors() == before


@program
def weakref_callbacks_use_the_ring() -> None:
    """The callback of what was in flight, of a lease's view or of a stream: it may do anything."""
    inlet, outlet = os.pipe()
    with uring.Ring(16) as ring:
        count = 0
        kept: list[Any] = []

        def use(_reference: object) -> None:
            nonlocal count
            count += 1
            assert list(ring.run([uring.Nop()] * 3).res) == [0] * 3
            with suppress(uring.SubmissionQueueFull):
                ring.queue(uring.Nop(user_data=1))
            ring.submit()
            kept.append(ring.copy_cqes(1))
            assert ring.in_flight >= 0

        for number in range(100):
            buffer = Tracked(8)
            kept.append(weakref.ref(buffer, use))
            ring.queue(uring.Read(inlet, buffer))
            if number % 2:
                chain = uring.Batch([uring.Write(outlet, buffer)])
                kept.append(weakref.ref(chain, use))
                ring.run(chain)
                del chain
            else:
                os.write(outlet, bytes(8))
            del buffer
            ring.submit_and_wait()
            ring.copy_cqes()
            if number % 10 == 0:
                kept[:] = [each for each in kept if isinstance(each, weakref.ref)]
        drain(ring)
        collect()
        assert count >= 100, count


@program
def destructors_use_the_ring_that_lets_them_go() -> None:
    """What is in flight goes amid a copy, a run or a close: its __del__ may use this ring."""
    _silent()
    log: list[str] = []

    class File:
        """Is let go with the operation that names it, wherever that is."""

        def __init__(self, ring: uring.Ring, fd: int) -> None:
            self.ring = ring
            self.fd = fd

        def fileno(self) -> int:
            return self.fd

        def __del__(self) -> None:
            try:
                self.ring.queue(uring.Nop())
                self.ring.submit()
                self.ring.copy_cqes()
                self.ring.run([uring.Nop()] * 3)
                log.append("used")
            except uring.RingClosedError:
                log.append("closed")
            self.ring.close() if len(log) % 7 == 0 else gc.collect(0)

    inlet, _outlet = os.pipe()
    before = settled_descriptors()
    for number in range(60):
        ring = uring.Ring(8)
        for _ in range(3):
            ring.queue(uring.Read(File(ring, inlet), bytearray(8)))
            ring.queue(uring.Fsync(File(ring, inlet)))
        with suppress(uring.RingClosedError):
            ring.submit()
            ring.copy_cqes(wait_nr=1, timeout=1)
            ring.run([uring.Fsync(File(ring, inlet)), uring.Nop()])
        if number % 2:
            ring.close()
        del ring
        collect()
    assert {"used", "closed"} <= set(log), set(log)
    assert len(log) >= 60 * 6, len(log)
    assert settled_descriptors() == before


@program
def threads_end_with_rings_of_their_own() -> None:
    """Rings of threads that end, in locals, thread-locals and cycles: they go, and so do files."""
    _silent()
    inlet, _outlet = os.pipe()
    before = settled_descriptors()
    store = threading.local()
    deferred = _F.SINGLE_ISSUER | _F.DEFER_TASKRUN

    def busy(flags: uring.SetupFlags) -> uring.Ring:
        ring = uring.Ring(8, flags=flags)
        ring.queue(uring.Read(inlet, bytearray(64)))
        ring.submit()
        return ring

    def in_locals(flags: uring.SetupFlags) -> None:
        busy(flags)

    def in_thread_locals(flags: uring.SetupFlags) -> None:
        store.ring = busy(flags)

    def in_a_cycle(flags: uring.SetupFlags) -> None:
        ring = busy(flags)
        cycle: list[Any] = [ring]
        cycle.append(cycle)
        del ring, cycle
        gc.collect()

    targets: list[Callable[[uring.SetupFlags], None]] = [in_locals, in_thread_locals, in_a_cycle]
    for _ in range(10):
        for flags in (_F(0), _F.SINGLE_ISSUER, deferred):
            threads = [threading.Thread(target=target, args=(flags,)) for target in targets]
            for thread in threads:
                thread.start()
            for thread in threads:
                join(thread)
            del threads, thread
    collect()
    assert settled_descriptors() == before


@program
def ring_of_a_thread_that_ended_serves_others() -> None:
    """What a thread left in flight when it ended completes; the ring goes on in other threads."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        for _ in range(50):
            numbers: list[int] = []

            def begin(numbers: list[int] = numbers) -> None:
                numbers.append(ring.queue(uring.Read(inlet, bytearray(8))))
                numbers.append(ring.queue(uring.Nop()))
                ring.submit()

            thread = threading.Thread(target=begin)
            thread.start()
            join(thread)
            os.write(outlet, bytes(8))
            came = [cqe.user_data for cqe in drain(ring)]
            assert sorted(came) == sorted(numbers)
            if select.select([inlet], [], [], 0)[0]:  # it was cancelled, and has read nothing
                assert len(os.read(inlet, 9)) == 8


@program
def slices_of_registered_memoryviews_die_in_cycles() -> None:
    """Memoryviews, what is registered of them, slices and operations: collected in any order."""
    _silent()
    before = settled_descriptors()
    for number in range(60):
        ring = uring.Ring(8)
        whole = memoryview(Tracked(16384))
        parts = [whole[start : start + 4096] for start in range(0, 16384, 4096)]
        buffers = ring.register_buffers(parts)
        fixed = [buffers[index][8:64] for index in range(4)]
        views = [memoryview(each.view)[4:8] for each in fixed]
        inlet, outlet = os.pipe()
        batch = uring.Batch([uring.Read(inlet, parts[0]), uring.Readv(inlet, parts[1:3])])
        ring.queue(uring.ReadFixed(inlet, fixed[0]))
        ring.queue(uring.Read(inlet, views[1]))
        if number % 2:
            ring.submit()
        things: list[Any] = [whole, *parts, buffers, *fixed, *views, batch, ring]
        things.insert(number % len(things), things)
        if number % 3 == 0:
            buffers.close()
        del ring, whole, parts, buffers, fixed, views, batch, things
        collect()
        os.close(inlet)
        os.close(outlet)
    assert settled_descriptors() == before


@program
def polling_rings_are_dropped() -> None:
    """Rings with SQPOLL, and with mixed CQEs, dropped with work in flight: they go at once."""
    _silent()
    warnings.simplefilter("ignore", RuntimeWarning)  # a thread of the kernel may be late
    inlet, _outlet = os.pipe()
    before = settled_descriptors()
    longest = 0.0
    for number in range(60):
        flags = _F.SQPOLL | (_F.CQE_MIXED if number % 2 else _F(0))
        ring = uring.Ring(8, flags=flags, sq_thread_idle_ms=(1, 10)[number % 2])
        for _ in range(number % 5):
            ring.queue(uring.Read(inlet, bytearray(8)))
        for _ in range(number % 3):
            ring.queue(uring.Nop())
        ring.submit()
        if number % 4 > 1:
            ring.copy_cqes(wait_nr=1, timeout=0.001)
        started = time.monotonic()
        del ring
        longest = max(longest, time.monotonic() - started)
    assert longest < 10, longest
    assert settled_descriptors() == before
    assert descriptors() == before
    sys.stdout.write(f"longest drop: {longest:.3f} s\n")


if __name__ == "__main__":
    main()
