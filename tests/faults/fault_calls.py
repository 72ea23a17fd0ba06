"""Scenarios: the life of a ring, in which each system call can fail."""

import contextlib
import errno
import functools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import fault_harness as harness
import pytest
from fault_common import pipe
from fault_harness import Call, Fault, Flow, also, scenario
from hostile_harness import until

import uring
from uring import Batch, Nop, Read, Restriction, Ring
from uring import RegisterOpcode as Register
from uring import SetupFlags as F
from uring._ffi import ffi
from uring._inflight import InFlight

CONTENT = bytes(range(256)) * 16
DEFER = F.DEFER_TASKRUN | F.SINGLE_ISSUER

_file = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process
_file.write(CONTENT)
_file.flush()
FILE = _file.fileno()


@contextlib.contextmanager
def no_sync_cancel() -> Iterator[None]:
    """Have the kernel refuse to cancel by a call, as one does that lacks it."""
    pins = ffi.new("char[]", b"\xff" * 64)  # flags and reserved fields that nobody knows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uring.ring.sync_cancel_any", lambda: pins)
        patch.setattr("uring._running.sync_cancel", lambda _number: pins)
        yield


def use(flow: Flow, ring: Ring, count: int = 6) -> None:
    """Read, and look at what came."""
    reads = [Read(FILE, flow.memory(64), offset=64 * i) for i in range(count)]
    numbers = [ring.queue(op) for op in reads]
    assert ring.sq_ready() == ring.in_flight == count
    flow.submit(ring)
    cqes = flow.reap(ring, count)
    assert sorted(cqe.user_data for cqe in cqes) == numbers
    for index, op in enumerate(reads):
        assert op.buffer == CONTENT[64 * index : 64 * index + 64]
    assert (ring.sq_ready(), ring.in_flight, ring.cq_ready()) == (0, 0, 0)


def in_a_thread(function: Callable[[], None]) -> None:
    """Run it in a thread of its own, with whose end the kernel forgets what it has registered."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result(harness.LIMIT_SECONDS)


def shape(flow: Flow, flags: F, entries: int = 8) -> None:
    """Make a ring of a shape, use it and close it."""
    with flow.ring(entries, flags=flags) as ring:
        use(flow, ring)
        flow.end()


@scenario
def setup_plain(flow: Flow) -> None:
    """A ring without flags."""
    shape(flow, F(0))


@scenario
def setup_deferred(flow: Flow) -> None:
    """A ring whose inbox is a mapping of its own."""
    shape(flow, DEFER)


@scenario
def setup_own_memory(flow: Flow) -> None:
    """A ring in memory of ours."""
    shape(flow, F.NO_MMAP)


@scenario
def setup_registered(flow: Flow) -> None:
    """A ring without a descriptor."""
    in_a_thread(lambda: shape(flow, F.NO_MMAP | F.REGISTERED_FD_ONLY))


@scenario
def setup_poller(flow: Flow) -> None:
    """A ring with a thread of the kernel that submits, and sleeps soon."""
    with flow.ring(8, flags=F.SQPOLL, idle_ms=1) as ring:
        use(flow, ring)
        flow.end()


@scenario
def setup_undone(flow: Flow) -> None:
    """Rings that cannot be mapped, or kept from a child, and are taken back."""
    for call, first in ((Call.MADVISE, 0), (Call.MADVISE, 1), (Call.MMAP, 1), (Call.SETUP, 0)):
        flags = F.NO_MMAP if call is Call.SETUP else F(0)
        with also(Fault(call, errno.ENOMEM, first)), contextlib.suppress(uring.SetupError):
            Ring(8, flags=flags).close()
    shape(flow, F(0))


# ---- queues ----


@scenario
def queue_short_ways(flow: Flow) -> None:
    """One operation at a time, by the shortest ways."""
    with flow.ring(8) as ring:
        for index in range(3):
            op = Read(FILE, flow.memory(64), offset=64 * index)
            number = ring.queue(op)
            flow.attempt(ring.submit_and_wait)
            cqe = flow.attempt(lambda: ring.copy_cqe(timeout=flow.seconds))
            assert (cqe.user_data, cqe.res) == (number, 64)
            assert op.buffer == CONTENT[64 * index : 64 * index + 64]
            flow.numbers.append(number)


@scenario
def queue_overflow(flow: Flow) -> None:
    """More completions than the queue has room for, on rings of several kinds."""
    for flags in (F(0), DEFER, F.CQE_MIXED, F.SQE128 | F.CQE32):
        with flow.ring(4, flags=flags) as ring:
            for _ in range(6):
                ring.queue_all([Nop() for _ in range(4)])
                flow.submit(ring)
            flow.reap(ring, 24)
            assert ring.in_flight == 0


@scenario
def queue_peek(flow: Flow) -> None:
    """Peeking, advancing and counting, where completions show up only when one enters."""
    with flow.ring(4, flags=DEFER) as ring:
        ring.queue_all([Nop(user_data=number) for number in range(4)])
        flow.submit(ring)
        while len(peeked := flow.attempt(ring.peek_cqes)) < 4:
            continue
        assert [cqe.user_data for cqe in peeked] == [0, 1, 2, 3]
        ring.cq_advance(3)
        assert flow.attempt(lambda: ring.copy_cqe(timeout=flow.seconds)).user_data == 3
        assert ring.in_flight == 0
        read, write = os.pipe()
        ring.queue(Read(read, flow.memory(8), offset=-1))
        flow.submit(ring)
        os.write(write, b"12345678")
        deadline = time.monotonic() + flow.seconds
        while not flow.attempt(ring.peek_cqes) and time.monotonic() < deadline:
            continue
        flow.reap(ring, 1)
        os.close(read)
        os.close(write)


@scenario
def queue_poller_room(flow: Flow) -> None:
    """A poller that sleeps, and a queue that is full."""
    with flow.ring(2, flags=F.SQPOLL, idle_ms=1) as ring:
        for index in range(6):
            if index % 2 == 0:
                while flow.attempt(lambda: ring.wait_sq_room(timeout=flow.seconds)) < 2:
                    flow.relent()  # or nothing would ever wake a poller that sleeps
            ring.queue(Nop())
            if index % 2:
                flow.attempt(ring.submit)
        flow.reap(ring, 6)


@scenario
def queue_poller_asleep(flow: Flow) -> None:
    """A queue that is full because the poller sleeps, and was not woken."""
    with flow.ring(2, flags=F.SQPOLL, idle_ms=1) as ring:
        until(lambda: ring.sq.flags & uring.SQRingFlags.NEED_WAKEUP)
        ring.queue_all([Nop(), Nop()])
        with also(Fault(Call.ENTER, errno.EBUSY)), contextlib.suppress(uring.EnterError):
            ring.submit()
        lasts = flow.fault.count > 1  # then it would wait without end
        while flow.attempt(lambda: ring.wait_sq_room(timeout=0.01 if lasts else None)) == 0:
            flow.relent()
            flow.attempt(ring.submit)
        until(lambda: ring.sq.flags & uring.SQRingFlags.NEED_WAKEUP)
        with also(Fault(Call.ENTER, errno.EBUSY)), contextlib.suppress(uring.EnterError):
            ring.queue_all([Nop(), Nop()])
            ring.submit()
        while flow.attempt(lambda: ring.wait_sq_room(timeout=flow.seconds)) == 0:
            flow.relent()
        flow.submit(ring)
        flow.reap(ring, 4)


@scenario
def queue_refused(flow: Flow) -> None:
    """Chains, with one that the kernel refuses outright in the middle."""
    with flow.ring(8) as ring:
        numbers = ring.queue_all(
            [
                *uring.link(Nop(), Read(FILE, flow.memory(64), offset=0)),
                uring.SQE(200, user_data=3),
                *uring.link(Read(FILE, flow.memory(64), offset=0), Nop()),
            ]
        )
        flow.submit(ring)
        cqes = flow.reap(ring, 5)
        assert sorted(cqe.user_data for cqe in cqes) == sorted(numbers)
        assert {cqe.user_data: cqe.res for cqe in cqes}[3] == -22


# ---- waits ----


@scenario
def wait_kinds(flow: Flow) -> None:
    """Waits that end by time, with a minimum time, and for what another thread brings."""
    with pipe() as (read, write), flow.ring(4) as ring:
        ring.queue(Read(read, flow.memory(8), offset=-1))
        flow.submit(ring)
        assert not flow.attempt(lambda: ring.copy_cqes(wait_nr=1, timeout=0.002))
        assert not flow.attempt(lambda: ring.copy_cqes(wait_nr=2, timeout=0.003, min_timeout=0.001))
        flow.times_out(lambda: ring.copy_cqe(timeout=0.002))
        os.write(write, b"12345678")
        flow.reap(ring, 1)


@scenario
def wait_registered(flow: Flow) -> None:
    """A region for the arguments of waits, the kernel's own and ours."""
    with flow.ring(4, flags=F.R_DISABLED) as ring:
        try:
            region = ring.register_wait_region()
        except uring.RegisterError as error:
            flow.check(error)
            return  # the kernel may have it all the same, and gives none a second time
        flow.attempt(ring.enable)
        region[0].set(timeout=0.002)
        assert not flow.attempt(lambda: ring.copy_cqes(wait_nr=1, timeout=region[0]))
        use(flow, ring, 4)


@scenario
def wait_without_ext_arg(flow: Flow) -> None:
    """The way of kernels before 5.11, which polls."""
    with pipe() as (read, write), flow.ring(4) as ring:
        ring._shim.features &= ~int(uring.Features.EXT_ARG)
        ring.queue(Read(read, flow.memory(8), offset=-1))
        flow.submit(ring)
        assert not flow.attempt(lambda: ring.copy_cqes(wait_nr=1, timeout=0.002))
        ring.queue(Nop())
        flow.submit(ring)
        flow.attempt(lambda: ring.submit_and_wait(2, timeout=0.003))
        os.write(write, b"12345678")
        flow.reap(ring, 2)


# ---- batches and streams ----


@scenario
def run_batches(flow: Flow) -> None:
    """Batches larger than the ring, with the completions of others in between."""
    for flags in (F(0), DEFER):
        with flow.ring(4, flags=flags) as ring:
            number = ring.queue(Nop())
            flow.submit(ring)
            room = [flow.memory(64) for _ in range(24)]
            batch = Batch([Read(FILE, part, offset=64 * i) for i, part in enumerate(room)])
            done = flow.attempt(functools.partial(ring.run, batch, timeout=flow.seconds))
            assert done.res.tolist() == [64] * 24
            assert b"".join(room) == CONTENT[: 64 * 24]
            assert ring.in_flight == 1
            assert flow.reap(ring, 1)[0].user_data == number
            assert flow.attempt(
                lambda: ring.run([uring.Timeout(1e-4)], timeout=flow.seconds)
            ).res.tolist() == [-62]


@scenario
def run_cut_short(flow: Flow) -> None:
    """A batch whose time is over: what is in flight is cancelled and waited for."""
    with pipe() as (read, _), flow.ring(4) as ring:
        batch = Batch([Read(read, flow.memory(8), offset=-1) for _ in range(6)])
        try:
            ring.run(batch, timeout=0.002)
        except TimeoutError:
            pass
        except uring.UringError as error:
            flow.check(error)
        else:
            raise AssertionError("it ended")
        flow.attempt(lambda: ring.run([Nop()]))
        assert ring.in_flight == 0 or flow.fault.count > 1
        flow.end()


@scenario
def stream_closed(flow: Flow) -> None:
    """A stream of accepted connections that is closed while it runs, with one unread."""
    with socket.create_server(("127.0.0.1", 0)) as listener, flow.ring(4) as ring:
        ring.queue(uring.AcceptMultishot(listener, user_data=7))
        try:
            stream = ring.stream(uring.PollMultishot(listener, user_data=9))
        except uring.EnterError as error:
            flow.check(error)
            flow.submit(ring)  # it stays queued; its completions come as any other's
            flow.end()
            return
        with socket.create_connection(listener.getsockname()):
            cqe = flow.attempt(lambda: stream.take(timeout=flow.seconds))
            assert cqe is not None
            flow.end()
            with contextlib.suppress(uring.UringError):
                stream.close()
            if stream.outcome is None:
                stream.close()


@scenario
def stream_of_one(flow: Flow) -> None:
    """A zero-copy send, whose release comes second, as a stream that is read to its end."""
    left, right = socket.socketpair()
    with left, right, flow.ring(4) as ring:
        memory = flow.memory(64)
        try:
            stream = ring.stream(uring.SendZc(left, memory))
        except uring.EnterError as error:
            flow.check(error)
            flow.submit(ring)
            flow.reap(ring, 2)
            return
        with stream:
            taken = []
            while (cqe := flow.attempt(lambda: stream.take(timeout=flow.seconds))) is not None:
                taken.append(cqe)
        assert [cqe.more for cqe in taken] in ([True, False], [False])
        assert ring.in_flight == 0


# ---- registering ----


@scenario
def register_files(flow: Flow) -> None:
    """Files: registered, replaced, used, unregistered; with tags, in a range, with slots made."""
    with flow.ring(4) as ring:
        files = flow.attempt(lambda: ring.register_files([FILE, -1, -1]))
        assert flow.attempt(lambda: ring.register_files_update(1, [FILE])) == 1
        room = flow.memory(64)
        ring.queue(Read(files[1], room, offset=64))
        flow.submit(ring)
        flow.reap(ring, 1)
        assert room == CONTENT[64:128]
        flow.attempt(lambda: ring.register_file_alloc_range(2, count=1))
        flow.attempt(ring.unregister_files)
        tagged = flow.attempt(lambda: ring.register_files([FILE, FILE], tags=[5, 6]))
        assert flow.attempt(lambda: tagged.update(0, [FILE], tags=[7])) == 1
        flow.attempt(tagged.close)
        assert sorted(cqe.user_data for cqe in flow.reap(ring, 3)) == [5, 6, 7]
        flow.attempt(lambda: ring.register_files_sparse(2))
        flow.end()


@scenario
def register_buffers(flow: Flow) -> None:
    """Buffers: registered, replaced, cloned, used, unregistered; their memory is let go."""
    with flow.ring(4) as ring, flow.ring(4) as other:
        first, second = flow.memory(4096), flow.memory(4096)
        buffers = flow.attempt(lambda: ring.register_buffers([first, None]))
        assert flow.attempt(lambda: buffers.update(1, [second])) == 1
        ring.queue(uring.ReadFixed(FILE, buffers[1][:64], offset=0))
        flow.submit(ring)
        flow.reap(ring, 1)
        assert second[:64] == CONTENT[:64]
        clone = flow.attempt(lambda: other.clone_buffers(buffers))
        flow.attempt(clone.close)
        flow.attempt(ring.unregister_buffers)
        tagged = flow.attempt(lambda: ring.register_buffers([first], tags=[3]))
        flow.attempt(tagged.close)
        assert [cqe.user_data for cqe in flow.reap(ring, 1)] == [3]
        flow.attempt(lambda: ring.register_buffers_sparse(2))
        flow.attempt(ring.unregister_buffers)


@scenario
def register_groups(flow: Flow) -> None:
    """Groups of provided buffers: ours, the kernel's own, and to send from."""
    left, right = socket.socketpair()
    with left, right, flow.ring(4) as ring:
        flow.raised.clear()
        for kernel_memory in (False, True):
            make = functools.partial(ring.register_buffer_ring, 2, size=64)
            group = flow.attempt(functools.partial(make, kernel_memory=kernel_memory))
            for _ in range(4):  # more than there are: each is given back
                right.send(CONTENT[:32])
                ring.queue(uring.RecvSelect(left, group=group))
                flow.submit(ring)
                with flow.reap(ring, 1)[0].result() as lease:
                    assert bytes(lease) == CONTENT[:32]
            flow.attempt(group.close)
        sending = flow.attempt(lambda: ring.register_send_buffer_ring(2, size=64))
        flow.attempt(sending.close)
        assert not ring._held.groups
        assert not [error for error in flow.raised if isinstance(error, uring.SetupError)]


@scenario
def register_others(flow: Flow) -> None:
    """An eventfd, credentials, worker threads, a clock, busy polling, the ring itself."""
    eventfd = os.eventfd(0)
    with flow.ring(4) as ring:
        event = flow.attempt(lambda: ring.register_eventfd(eventfd))
        use(flow, ring, 2)
        flow.attempt(event.close)
        personality = flow.attempt(ring.register_personality)
        flow.attempt(personality.close)
        flow.attempt(lambda: ring.register_iowq_affinity(os.sched_getaffinity(0)))
        flow.attempt(ring.unregister_iowq_affinity)
        flow.attempt(lambda: ring.register_iowq_max_workers(bounded=4))
        flow.attempt(lambda: ring.register_clock(1))
        flow.attempt(lambda: ring.register_napi(busy_poll_timeout_us=1))
        flow.attempt(ring.unregister_napi)
        flow.attempt(ring.register_ring_fd)
        use(flow, ring, 2)
        flow.attempt(ring.unregister_ring_fd)
        use(flow, ring, 2)
    os.close(eventfd)


@scenario
def closed_registered(flow: Flow) -> None:
    """A ring that is registered with a thread and closed there; what is left goes with it."""

    def live() -> None:
        with flow.ring(4) as ring:
            flow.attempt(ring.register_ring_fd)
            use(flow, ring, 2)
            flow.end()

    in_a_thread(live)


@scenario
def register_restrictions(flow: Flow) -> None:
    """A ring that is restricted and then enabled."""
    with flow.ring(4, flags=F.R_DISABLED) as ring:
        allowed = [
            Restriction.allow_register(opcode)
            for opcode in (Register.REGISTER_ENABLE_RINGS, Register.REGISTER_SYNC_CANCEL)
        ]
        reading = Restriction.allow_opcode(Read)
        flow.attempt(lambda: ring.register_restrictions([*allowed, reading]))
        flow.attempt(ring.enable)
        use(flow, ring, 2)


@scenario
def register_messages(flow: Flow) -> None:
    """Messages to another ring, by a call and by an operation; cancelling by a call."""
    with pipe() as (read, _), flow.ring(4) as ring, flow.ring(4) as target:
        flow.attempt(lambda: ring.send_message(target, target_user_data=5, target_res=7))
        assert flow.reap(target, 1)[0].res == 7
        ring.queue(uring.MsgRing(target, target_user_data=6, target_res=8, user_data=1))
        flow.submit(ring)
        flow.reap(ring, 1)
        flow.reap(target, 1)
        ring.queue(Read(read, flow.memory(8), offset=-1, user_data=9))
        flow.submit(ring)
        flow.attempt(lambda: ring.cancel(9, timeout=flow.seconds))
        assert flow.reap(ring, 1)[0].res == -125


@scenario
def probing(flow: Flow) -> None:
    """What the kernel has, asked of it."""
    found = flow.attempt(uring.probe)
    assert found.supports(uring.Opcode.NOP)


# ---- sizes ----


@scenario
def resized(flow: Flow) -> None:
    """A ring whose queues get other sizes while something is in flight, queued and unread."""
    with pipe() as (read, write), flow.ring(8, flags=DEFER) as ring:
        number = ring.queue(Read(read, flow.memory(8), offset=-1))
        ring.queue(Nop())
        flow.submit(ring)
        ring.queue(Nop())
        for entries in (32, 4):
            try:
                flow.attempt(functools.partial(ring.resize, entries))
            except uring.RingClosedError:
                assert ring.closed
                assert getattr(flow.raised[0], "errno", 0) == errno.ENOTRECOVERABLE
                flow.is_lost = True
                return
        flow.submit(ring)
        os.write(write, b"12345678")
        assert number in [cqe.user_data for cqe in flow.reap(ring, 3)]


@scenario
def resized_in_vain(flow: Flow) -> None:
    """The new queues cannot be mapped: the ring is lost, what was in flight is kept."""
    read, write = os.pipe()
    flow.is_lost = True
    for call, first in ((Call.MMAP, 0), (Call.MMAP, 1), (Call.MADVISE, 0)):
        ring = flow.ring(8, flags=DEFER | F.R_DISABLED)
        with contextlib.suppress(uring.RegisterError):
            ring.register_wait_region()
        flow.attempt(ring.enable)
        ring.queue(Read(read, flow.memory(8), offset=-1))
        flow.submit(ring)
        for _ in range(4):
            with also(Fault(call, errno.ENOMEM, first)), contextlib.suppress(uring.UringError):
                ring.resize(32)
            if not ring.closed:
                flow.relent()
        assert ring.fd == -1
    os.close(read)
    os.close(write)


# ---- the end ----


@scenario
def closed_in_flight(flow: Flow) -> None:
    """A ring that is closed with all sorts of things in flight, queued and unread."""
    with (
        pipe() as (read, _),
        socket.create_server(("127.0.0.1", 0)) as listener,
        flow.ring(8) as ring,
    ):
        ring.queue(Read(read, flow.memory(8), offset=-1))
        ring.queue(Nop())
        ring.queue(uring.AcceptMultishot(listener))
        ring.queue(uring.Openat("/proc/self/status", os.O_RDONLY))
        flow.submit(ring)
        ring.queue(Read(FILE, flow.memory(64), offset=0))
        flow.end()
        ring.close()
        assert (ring.fd, ring.closed) == (-1, True)


@scenario
def closed_unsubmitted(flow: Flow) -> None:
    """A ring that is closed when the kernel has refused to take what was published."""
    (read, write), (other, into) = os.pipe(), os.pipe()
    random = os.open("/dev/urandom", os.O_RDONLY)
    with flow.ring(4) as ring:
        slow = Read(random, bytearray(8 << 20), offset=0, flags=uring.SQEFlags.ASYNC)
        ring.queue(slow)  # so that closing goes around more than once
        ring.queue(Read(read, flow.memory(8), offset=-1), user_data=5)
        flow.submit(ring)
        ring.queue(Read(other, flow.memory(8), offset=-1), user_data=5)  # it may be either
        with also(Fault(Call.ENTER, errno.EPERM, count=harness.FOREVER)):
            with contextlib.suppress(uring.EnterError):
                ring.submit()
            os.write(into, b"12345678")
        flow.end()
        former, let_go = InFlight.discard_number, []

        def discard(table: InFlight, number: int) -> None:
            let_go.append(number)
            former(table, number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(InFlight, "discard_number", discard)
            ring.close()
    os.set_blocking(other, False)
    if let_go:  # then nobody may have taken it
        assert os.read(other, 8) == b"12345678", f"{flow.fault}: memory was let go too early"
    for each in (read, write, other, into, random):
        os.close(each)


@scenario
def closed_by_operations(flow: Flow) -> None:
    """The same where the kernel knows no cancelling by a call."""
    with pipe() as (read, _), flow.ring(4) as ring:
        for _ in range(6):
            ring.queue(Read(read, flow.memory(8), offset=-1))
            flow.submit(ring)
        flow.end()
        with no_sync_cancel():
            ring.close()


@scenario
def dropped_in_flight(flow: Flow) -> None:
    """A ring that is dropped with something in flight."""
    with pipe() as (read, _):
        ring = flow.ring(8)
        ring.queue(Read(read, flow.memory(8), offset=-1))
        flow.submit(ring)
        flow.end()
        del ring


@scenario
def left_to_a_child(flow: Flow) -> None:
    """A fork: the child's ring is dead whatever fails there, the parent's goes on."""
    with flow.ring(4) as ring:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with contextlib.suppress(uring.RingClosedError):
                    ring.submit()
                ring.close()
                code = 0 if ring.closed else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        use(flow, ring, 2)


if __name__ == "__main__":
    harness.main()
