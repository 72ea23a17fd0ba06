"""Programs that lie about numbers: descriptors that become others', user_data that is in use."""

import contextlib
import os
import select
import socket
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from hostile_harness import (
    Tracked,
    collect,
    drain,
    exit_code,
    forked,
    join,
    main,
    program,
    refused,
    settled_descriptors,
    until,
)

import uring

if TYPE_CHECKING:
    from collections.abc import Callable

IN_USE = "in use"


def _read(ring: uring.Ring, number: int) -> "tuple[weakref.ref[Tracked], int]":
    """Submit a read of an empty pipe: its buffer, and where to write so that it completes."""
    inlet, outlet = os.pipe()
    buffer = Tracked(4096)
    ring.queue(uring.Read(inlet, buffer, user_data=number))
    ring.submit()
    return weakref.ref(buffer), outlet


def _is_whole(ring: uring.Ring, reads: "list[tuple[weakref.ref[Tracked], int]]") -> None:
    """Assert that these reads, all that the ring has, hold their memory until they end."""
    time.sleep(0.02)  # nothing tells that a completion that must not come does not come
    ring.copy_cqes()
    collect()
    assert all(buffer() is not None for buffer, _ in reads), "freed in flight"
    assert ring.in_flight == len(reads)
    for _, outlet in reads:
        os.write(outlet, b"x")
    results = [cqe.result() for cqe in drain(ring)]
    assert results == [1] * len(reads)
    collect()
    assert all(buffer() is None for buffer, _ in reads), "kept after its completion"
    started = time.monotonic()
    ring.close()
    assert time.monotonic() - started < 5


@program
def message_does_not_reach_the_next_ring_of_that_number() -> None:
    """A message whose ring is closed before it is sent does not go to the ring made after it."""
    for is_named in (True, False):
        target, sender = uring.Ring(4), uring.Ring(4)
        number = target.fd
        sender.queue(uring.MsgRing(target if is_named else number, target_user_data=5))
        target.close()
        later = uring.Ring(4)
        assert later.fd == number
        reads = [_read(later, 5)]
        sender.submit()
        assert len(sender.copy_cqes()) == 1
        _is_whole(later, reads)
        sender.close()


@program
def message_to_no_ring_does_not_reach_one_that_is_made_later() -> None:
    """A descriptor that was no ring, or not open, when the message was queued: none gets it."""
    for is_open in (True, False):
        number = os.open("/dev/null", os.O_RDONLY)
        if not is_open:
            os.close(number)
        with uring.Ring(4) as sender:
            if not is_open:
                assert sender.fd == number
                number = os.dup(0)
                os.close(number)
            sender.queue(uring.MsgRing(number, target_user_data=5))
            if is_open:
                os.close(number)
            later = uring.Ring(4)
            assert later.fd == number
            reads = [_read(later, 5)]
            sender.submit()
            assert sender.copy_cqe(timeout=5).res < 0
            _is_whole(later, reads)


@program
def messages_keep_no_descriptor() -> None:
    """Messages go by one descriptor for each ring that gets some; it is closed with that ring."""
    outside = settled_descriptors()
    target, sender = uring.Ring(64), uring.Ring(64)
    sender.queue(uring.MsgRing(target, target_user_data=5))
    sender.submit()
    assert len(sender.copy_cqes()) == len(target.copy_cqes()) == 1
    before = settled_descriptors()
    assert len(before) == len(outside) + 3
    for _ in range(100):
        for ring in (target, target.fd, 0, 12345):
            sender.queue(uring.MsgRing(ring, target_user_data=5))
        sender.submit()
        assert len(sender.copy_cqes()) == 4
        assert len(target.copy_cqes()) == 2
    assert settled_descriptors() == before
    for _ in range(64):
        sender.queue(uring.MsgRing(target, target_user_data=5))
    assert settled_descriptors() == before  # one for all
    target.close()
    sender.close()
    assert settled_descriptors() == outside


class _Liar:
    """Tells one descriptor the first time, and another one from then on."""

    def __init__(self, first: int, then: int) -> None:
        self.numbers = [then, first]

    def fileno(self) -> int:
        """The descriptor, perhaps."""
        return self.numbers.pop() if len(self.numbers) > 1 else self.numbers[0]


class _Twin(uring.Ring):
    """A ring that says that it is another one."""

    other: uring.Ring

    def fileno(self) -> int:
        """The other one's descriptor."""
        return self.other.fileno()


class _LyingInt(int):
    """An int that is, by what it says, any other one."""

    def _yes(self, _other: object) -> bool:
        return True

    def _no(self, _other: object) -> bool:
        return False

    def _none(self, _other: object) -> int:
        return 0

    def _one(self, _other: object) -> int:
        return 1

    def __bool__(self) -> bool:
        return False

    def __hash__(self) -> int:
        return 77

    __eq__ = __ne__ = _no
    __lt__ = __le__ = __gt__ = __ge__ = _yes
    __and__ = __rand__ = __add__ = __radd__ = __mod__ = _none
    __mul__ = __rmul__ = __lshift__ = __rshift__ = _one


@program
def lying_target_of_a_message_is_taken_at_its_word() -> None:
    """What counts of a target is what it said for the record, whatever it says afterwards."""
    sender, null = uring.Ring(4), os.open("/dev/null", os.O_RDONLY)
    target = uring.Ring(4)
    reads = [_read(target, 5)]
    twin = _Twin(4)
    twin.other = target
    number: Any = _LyingInt(5)
    for ring, user_data in ((_Liar(target.fd, null), 5), (twin, 5), (target, number)):
        message = uring.MsgRing(ring, target_user_data=user_data)
        refused(ValueError, IN_USE, lambda op=message: sender.queue(op))  # type: ignore[misc]  # mypy infers no lambda with a default
    for ring in (_Liar(target.fd, null), _Liar(null, target.fd)):
        with contextlib.suppress(ValueError, uring.RegisterError):
            sender.send_message(ring, target_user_data=5)
    refused(ValueError, IN_USE, lambda: sender.send_message(target, target_user_data=number))
    _is_whole(target, reads)
    twin.close()
    sender.close()


@program
def refused_number_leaves_what_has_it_alone() -> None:
    """A number that is refused for being in use: whoever has it ends as ever, and none with it."""
    skip = uring.SQEFlags.CQE_SKIP_SUCCESS
    attempts: list[Callable[[uring.Ring], object]] = [
        lambda ring: ring.queue(uring.PollUpdate(5, new_user_data=6)),
        lambda ring: ring.queue(uring.MsgRing(ring, target_user_data=6)),
        lambda ring: ring.send_message(ring, target_user_data=6),
        lambda ring: ring.register_files([0], tags=[6]),
        lambda ring: ring.register_buffers([bytearray(8)], tags=[6]),
        lambda ring: ring.queue_all(
            uring.link(uring.Nop(user_data=5, flags=skip), uring.Nop(user_data=6))
        ),
        lambda ring: ring.queue(uring.Pipe(user_data=6)),
        lambda ring: ring.queue(uring.Openat("/dev/null", user_data=6)),
        lambda ring: ring.run([uring.Nop(user_data=6)]),
    ]
    for attempt in attempts:
        ring = uring.Ring(8)
        reads = [_read(ring, 5), _read(ring, 6)]
        refused(ValueError, IN_USE, lambda: attempt(ring))  # noqa: B023 - called at once
        os.write(reads[1][1], b"x")
        assert ring.copy_cqe(timeout=5).user_data == 6
        _is_whole(ring, reads[:1])


@program
def refused_operation_takes_no_claim_with_it() -> None:
    """What waits under a number keeps its claim when another with that number is refused."""
    server = socket.create_server(("127.0.0.1", 0))
    before = settled_descriptors()
    ring = uring.Ring(8)
    _read(ring, 6)
    ring.queue(uring.Accept(server, user_data=5))
    both = [uring.Accept(server, user_data=5), uring.Accept(server, user_data=6)]
    refused(ValueError, IN_USE, lambda: ring.queue_all(both))
    refused(ValueError, IN_USE, lambda: ring.queue(uring.Nop(user_data=5)))
    ring.submit()
    client = socket.create_connection(server.getsockname())
    until(lambda: ring.cq_ready() == 1)
    ring.close()
    client.close()
    assert len(settled_descriptors()) == len(before) + 2  # the pipe of the read
    server.close()


@program
def shared_message_keeps_its_number() -> None:
    """Messages that share a user_data: their numbers stay theirs, for nobody knows who failed."""
    target, sender = uring.Ring(8), uring.Ring(8)
    for _ in range(2):
        sender.queue(uring.MsgRing(target, target_user_data=5, user_data=7))
    sender.submit()
    assert len(sender.copy_cqes()) == 2
    collect()
    refused(ValueError, IN_USE, lambda: target.queue(uring.Nop(user_data=5)))
    assert [cqe.op for cqe in target.copy_cqes()] == [None, None]
    target.queue(uring.Nop(user_data=5))
    inlet, outlet = os.pipe()
    sender.queue(uring.PollAdd(inlet, select.POLLIN, user_data=3))
    sender.queue(uring.PollUpdate(3, new_user_data=4, user_data=9))
    sender.queue(uring.Nop(user_data=9))
    sender.submit()
    assert len(sender.copy_cqes()) == 2
    collect()
    refused(ValueError, IN_USE, lambda: sender.queue(uring.Nop(user_data=4)))
    os.write(outlet, b"x")
    assert [cqe.user_data for cqe in drain(sender)] == [4]
    sender.close()
    target.close()


def _send_in_vain(mine: uring.Ring, other: uring.Ring, until_: float) -> None:
    while time.monotonic() < until_:
        for _ in range(8):
            message = uring.MsgRing(other, target_user_data=5)
            mine.queue_all(uring.link(uring.Read(-1, bytearray(1)), message))
        mine.submit()
        mine.copy_cqes()


def _two_rings_in_vain(seconds: float) -> "tuple[list[uring.Ring], list[threading.Thread]]":
    sys.setswitchinterval(1e-6)
    rings, end = [uring.Ring(64), uring.Ring(64)], time.monotonic() + seconds
    threads = [
        threading.Thread(target=_send_in_vain, args=(mine, other, end), daemon=True)
        for mine, other in (rings, rings[::-1])
    ]
    for thread in threads:
        thread.start()
    return rings, threads


@program
def rings_that_message_each_other_do_not_deadlock() -> None:
    """Two threads, each with a ring, whose messages to the other all fail: both go on."""
    rings, threads = _two_rings_in_vain(2)
    for thread in threads:
        join(thread)
    for ring in rings:
        ring.queue(uring.Nop(user_data=5))  # nothing is left of what was expected
        ring.submit()
        assert len(drain(ring)) >= 1
        ring.close()


@program
def fork_amid_messages_does_not_hang_the_child() -> None:
    """The child lets go of messages that were promised to a ring which a thread had locked."""
    rings, threads = _two_rings_in_vain(3)
    while any(thread.is_alive() for thread in threads):
        assert exit_code(forked(lambda: None)) == 0
    for ring in rings:
        ring.close()


@program
def peer_pidfd_that_would_be_cut_off_is_refused() -> None:
    """SO_PEERPIDFD with too little room: the kernel would make it, and nobody could close it."""
    one, other = socket.socketpair()
    with one, other, uring.Ring(4) as ring:
        before = settled_descriptors()
        for length in range(4):
            op = uring.Getsockopt(one, level=socket.SOL_SOCKET, optname=77, optlen=length)
            refused(ValueError, "optlen", lambda op=op: ring.queue(op))  # type: ignore[misc]  # mypy infers no lambda with a default
        ring.queue(uring.Getsockopt(one, level=socket.SOL_SOCKET, optname=77, optlen=8))
        ring.submit_and_wait()
        os.close(int.from_bytes(ring.copy_cqe().result(), sys.byteorder))
        assert settled_descriptors() == before


@program
def lying_ints_do_not_get_past_a_check() -> None:
    """Sizes, flags and options that lie about themselves: taken by their value, or refused."""
    lie: Any = _LyingInt
    one, other = socket.socketpair()
    option = {"level": lie(socket.SOL_SOCKET), "optname": lie(socket.SO_PEERCRED)}
    with one, other, uring.Ring(8) as ring:
        ring.queue(uring.Getsockopt(one, **option, optlen=lie(12)))
        ring.submit_and_wait()
        assert ring.copy_cqe().result()[:4] == os.getpid().to_bytes(4, sys.byteorder)
        compat = uring.Recvmsg(one, [bytearray(8)], msg_flags=lie(0x80000000))
        refused(ValueError, "COMPAT", lambda: ring.queue(compat))
        word = memoryview(bytearray(64))[:4]
        numa = uring.FutexWait(word, 0, futex_flags=lie(2 | 4))
        refused(ValueError, "bytes", lambda: ring.queue(numa))
        silent = uring.Send(other, b"x", flags=lie(uring.SQEFlags.CQE_SKIP_SUCCESS))
        refused(ValueError, "CQE_SKIP_SUCCESS", lambda: ring.queue(silent))
        refused(ValueError, "index", lambda: uring.Fixed(lie(-1)))
        refused(
            ValueError,
            "SKIP",
            lambda: ring.send_message(ring, target_user_data=5, target_flags=lie(1 << 5)),
        )
        long = uring.Recvmsg(one, [bytearray(8)], ancbufsize=lie(2**40))
        refused(ValueError, "ancbufsize", lambda: ring.queue(long))
        assert (ring.sq_ready(), ring.in_flight) == (0, 0)


class _LyingBytes(bytes):
    def __add__(self, _other: object) -> bytes:
        return bytes(self)

    def __contains__(self, _key: object) -> bool:
        return False


class _LyingPath(str):
    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        """Not what the str says."""
        return _LyingBytes(b"/dev/null\0/more")


@program
def lying_paths_end_with_a_null_byte() -> None:
    """A str whose encode() gives what it likes: it has no null byte in it, and one behind it."""
    with uring.Ring(4) as ring:
        for op in (uring.Statx(_LyingPath("x")), uring.Getxattr("/", _LyingPath("x"))):
            refused(ValueError, "null byte", lambda op=op: ring.queue(op))  # type: ignore[misc]  # mypy infers no lambda with a default


class _Node:
    """What holds itself, so that only the collector ends it."""

    def __init__(self, *values: object) -> None:
        self.me = self
        self.values = values


def _failure(op: uring.Operation) -> BaseException:
    try:
        op.sqe()
    except ValueError as error:
        return error
    raise AssertionError(f"not refused: {op!r}")


@program
def memoryview_dies_in_a_cycle_with_what_lends_it() -> None:
    """The collector clears a memoryview and what has pinned it, in whatever order it likes."""
    makers: list[Callable[[memoryview], object]] = [
        lambda view: uring.Batch([uring.Read(0, view)]),
        lambda view: uring.Batch([uring.Readv(0, [view]), uring.Recvmsg(0, [view])]),
        lambda view: uring.ReadMany(0, view, [0]),
        lambda view: uring.WriteMany(0, [view], [0]),
        lambda view: _failure(uring.FutexWait(view, 0)),
        lambda view: _failure(uring.Read(0, view, -5)),
        lambda view: _failure(uring.Read(0, view, 2**64)),
    ]
    for make in makers:
        for part in (slice(None), slice(8, 64)):
            older = [memoryview(bytearray(4096))[part]]
            collect()
            _Node(older[0], make(older.pop()))
            collect()
    ring = uring.Ring(4)
    older = [memoryview(bytearray(4096))]
    collect()
    _Node(older[0], ring.register_buffers([older.pop()]))
    ring.close()
    del ring
    collect()


@program
def buffer_select_needs_a_group() -> None:
    """BUFFER_SELECT on what has memory of its own: no buffer of a group is taken for it."""
    select_flag, fd = uring.SQEFlags.BUFFER_SELECT, os.open("/dev/zero", os.O_RDONLY)
    ops = [
        uring.Read(fd, bytearray(8), flags=select_flag),
        uring.Readv(fd, [bytearray(8)], flags=select_flag),
        uring.Recv(fd, bytearray(8), flags=select_flag),
        uring.Nop(flags=select_flag),
    ]
    with uring.Ring(8) as ring:
        for op in ops:
            for call in (ring.queue, lambda op: ring.queue_all([op]), lambda op: ring.run([op])):
                refused(ValueError, "BUFFER_SELECT", lambda call=call, op=op: call(op))  # type: ignore[misc]  # mypy infers no lambda with a default
        refused(
            ValueError,
            "BUFFER_SELECT",
            lambda: uring.ReadMany(fd, bytearray(8), [0], flags=select_flag),
        )
        assert (ring.sq_ready(), ring.in_flight) == (0, 0)


if __name__ == "__main__":
    main()
