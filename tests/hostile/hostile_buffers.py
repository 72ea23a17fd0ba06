"""Programs that misuse provided buffers, streams and messages, or cut them off at every place."""

import faulthandler
import gc
import os
import queue
import resource
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hostile_harness import (
    collect,
    descriptors,
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
from hostile_interrupt import Strike, interrupt, sweep

import uring
from uring import RecvMultishot, RecvSelect, StreamEnd


class Precise(Strike):
    """
    Passes over the returns from functions in Python.

    There CPython looks for signals when a function starts, and when C returns, and not in between;
    `__init__` returns to C, which returns to its caller.
    """

    _left: tuple[FrameType | None, str] | None = None

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "return":
            self._left = frame.f_back, frame.f_code.co_name
        elif event == "opcode" and self._left is not None:
            (caller, name), self._left = self._left, None
            if caller is frame and name != "__init__":
                self._before[frame] = ""
        return super()._step(frame, event, argument)

    def __exit__(self, *_raised: object) -> None:
        super().__exit__(None, None, None)
        self._left = None  # a frame holds leases


def _quietly(unraisable: "sys.UnraisableHookArgs") -> None:
    """Pass over the interrupts of finalizers, and what is dropped open because of one."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt | ResourceWarning):
        sys.__unraisablehook__(unraisable)


def _sweep(attempt: Callable[[int], Strike]) -> None:
    sys.unraisablehook = _quietly
    sweep(attempt)


def _attempt(body: Callable[["Case"], None]) -> Callable[[int], Strike]:
    """One attempt: the body is cut off at a place, and then all must be as it was."""

    def attempt(place: int) -> Strike:
        case = Case()
        strike = Precise(place, interrupt)
        try:
            with suppress(KeyboardInterrupt), strike:
                body(case)
            case.settle()
        finally:
            case.end()
        return strike

    return attempt


class Case:
    """A ring with a group and two sockets."""

    def __init__(self) -> None:
        self.ring = uring.Ring(8)
        self.group = self.ring.register_buffer_ring(4, size=16, bgid=9)
        self.ours, self.theirs = socket.socketpair()
        self.kept: list[Any] = []
        self.before = descriptors()

    def receive(self, word: bytes = b"hello") -> Any:
        """Send and receive."""
        self.theirs.send(word)
        self.ring.queue(RecvSelect(self.ours, self.group))
        self.ring.submit()
        return self.ring.copy_cqe(timeout=5).result()

    def settle(self) -> None:
        """Take what is left and drop it: then every buffer is in the group, and all works."""
        self.kept.clear()
        for _ in range(100):
            self.ring.submit()
            self.ring.copy_cqes(wait_nr=1, timeout=0.001)
            if not self.ring.in_flight:
                break
            self.ring.cancel(any=True)
        assert self.ring.in_flight == 0
        self.ours.settimeout(0)
        with suppress(BlockingIOError):
            self.ours.recv(1 << 16)
        self.ours.settimeout(None)
        if not self.group.closed:
            assert self.group.inside == 4, f"{self.group.inside} of 4 buffers are there"
            for count in range(9):
                assert bytes(self.receive(b"%d" % count)) == b"%d" % count
            self.group.close()
        self.group = self.ring.register_buffer_ring(4, size=16)
        assert self.group.bgid == 0, "a group is registered that nobody has"
        assert bytes(self.receive(b"x")) == b"x"
        assert descriptors() == self.before

    def end(self) -> None:
        """Close all of it."""
        self.ring.close()
        self.ours.close()
        self.theirs.close()


@program
def ctrl_c_around_leases() -> None:
    """KeyboardInterrupt may leave any call on leases: no buffer is lost, or there twice."""

    def body(case: Case) -> None:
        case.kept.append(case.receive())
        with case.receive(b"other") as lease:
            assert bytes(lease) == b"other"
        case.kept.pop().release()
        case.theirs.send(b"peeked")
        case.ring.queue(RecvSelect(case.ours, case.group))
        case.ring.submit_and_wait(1, timeout=5)
        case.ring.peek_cqes()
        case.ring.cq_advance(1)

    _sweep(_attempt(body))


@program
def ctrl_c_around_bundles() -> None:
    """The same of bundles, and of incremental groups."""

    def body(case: Case) -> None:
        case.theirs.send(b"a" * 16 + b"b" * 16 + b"c")
        case.ring.queue(uring.RecvBundle(case.ours, case.group))
        case.ring.submit()
        case.kept.append(case.ring.copy_cqe(timeout=5).result())
        case.ring.queue(uring.RecvBundle(case.ours, case.group))
        case.ring.submit()
        case.kept.extend(case.ring.copy_cqes(wait_nr=1, timeout=5))
        case.kept.pop(0).release()

    _sweep(_attempt(body))


@program
def ctrl_c_around_incremental_groups() -> None:
    """What an interrupted look made of a buffer that is being filled does not count."""

    def attempt(place: int) -> Strike:
        ring = uring.Ring(8)
        ours, theirs = socket.socketpair()
        group = ring.register_buffer_ring(2, size=16, incremental=True)
        strike = Precise(place, interrupt)

        def look(timeout: float) -> None:
            assert [cqe.result() for cqe in ring.copy_cqes(wait_nr=1, timeout=timeout)]

        try:
            with suppress(KeyboardInterrupt), strike:
                for word in (b"aaaaaa", b"bbbbbb", b"cccccc"):
                    theirs.send(word)
                    ring.queue(RecvSelect(ours, group))
                    ring.submit()
                    look(5)
            while ring.in_flight:
                ring.submit()
                ring.copy_cqes(wait_nr=1, timeout=0.01)
                ring.cancel(any=True)
            for word in (b"123", b"456789ab", b"cdefghi", b"jklm"):
                theirs.send(word)
            expected = b"123456789abcdefghijklm"
            rest = b""
            while not rest.endswith(expected):
                ring.queue(RecvSelect(ours, group))
                ring.submit()
                rest += bytes(ring.copy_cqe(timeout=5).result())
            assert group.inside == 2
        finally:
            ring.close()
            ours.close()
            theirs.close()
        return strike

    _sweep(attempt)


@program
def ctrl_c_around_groups() -> None:
    """KeyboardInterrupt may leave register and close: no group stays that nobody can close."""

    def body(case: Case) -> None:
        for kernel_memory in (False, True):
            made = case.ring.register_buffer_ring(2, size=8, bgid=0, kernel_memory=kernel_memory)
            case.kept.append(made)
            made.close()
        send = case.ring.register_send_buffer_ring(2, size=8)
        case.kept.append(send)
        send.close()
        case.group.close()

    def attempt(place: int) -> Strike:
        case = Case()
        strike = Precise(place, interrupt)
        try:
            with suppress(KeyboardInterrupt), strike:
                body(case)
            for group in [*case.kept, case.group]:
                group.close()
                assert group.closed
            case.kept.clear()
            case.settle()
        finally:
            case.end()
        return strike

    _sweep(attempt)


@program
def ctrl_c_around_puts() -> None:
    """KeyboardInterrupt may leave put() and the sending: every buffer is free in the end."""

    def attempt(place: int) -> Strike:
        ring = uring.Ring(8)
        ours, theirs = socket.socketpair()
        group = ring.register_send_buffer_ring(4, size=8)
        strike = Precise(place, interrupt)

        def send_all() -> None:
            drain(ring)
            while group.inside:
                ring.queue(uring.SendBundle(ours, group))
                drain(ring)

        try:
            with suppress(KeyboardInterrupt), strike:
                for word in (b"one", b"two", b"three"):
                    group.put(word)
                ring.queue(uring.SendBundle(ours, group))
                ring.submit()
                ring.copy_cqe(timeout=5)
                group.put(b"four")
            send_all()
            for count in range(12):  # each buffer thrice
                for _ in range(4):
                    group.put(b"%d" % count)
                refused(BufferError, "all 4 buffers", lambda: group.put(b"x"))
                send_all()
        finally:
            ring.close()
            ours.close()
            theirs.close()
        return strike

    _sweep(attempt)


@program
def ctrl_c_around_streams() -> None:
    """KeyboardInterrupt may leave a stream: closed then, it leaves no descriptor and no buffer."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:

        def attempt(place: int) -> Strike:
            ring = uring.Ring(8)
            before = descriptors()
            clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
            strike = Precise(place, interrupt)
            taken: list[int] = []
            try:
                with suppress(KeyboardInterrupt), strike:
                    with ring.stream(uring.AcceptMultishot(server)) as stream:
                        cqe = stream.take(timeout=5)
                        assert cqe is not None
                        taken.append(cqe.res)  # res is a slot: no call before it is ours
                        ring.submit_and_wait(1, timeout=0.001)
                        ring.copy_cqes()
                    assert stream.outcome is StreamEnd.CANCELLED
                gc.collect()
                for fd in taken:
                    os.close(fd)
                ring.close()
                for client in clients:
                    client.close()
                now = descriptors()
                assert len(now) == len(before) - 1, (sorted(before), sorted(now))
            finally:
                ring.close()
                for client in clients:
                    client.close()
                while (backlog := _accepted(server)) is not None:
                    backlog.close()
            return strike

        _sweep(attempt)


def _accepted(server: socket.socket) -> socket.socket | None:
    server.settimeout(0)
    try:
        return server.accept()[0]
    except BlockingIOError:
        return None
    finally:
        server.settimeout(None)


@program
def ctrl_c_around_messages() -> None:
    """KeyboardInterrupt may leave the sending of a message: no completion ends another's."""

    def attempt(place: int) -> Strike:
        with uring.Ring(8) as source, uring.Ring(8) as target:
            strike = Precise(place, interrupt)
            with suppress(KeyboardInterrupt), strike:
                source.queue(uring.MsgRing(target, target_user_data=5))
                source.submit()
                source.copy_cqe(timeout=5)
                target.copy_cqe(timeout=5)
                source.queue_all(
                    uring.link(uring.Nop(res=-1), uring.MsgRing(target, target_user_data=6))
                )
                source.submit()
                while source.in_flight:
                    source.copy_cqes(wait_nr=1, timeout=5)
            drain(source)
            while target.copy_cqes():
                pass
            for _ in range(2):
                source.queue(uring.MsgRing(target, target_user_data=7))
                source.submit()
                assert source.copy_cqe(timeout=5).res == 0
            refused(ValueError, "in use", lambda: target.queue(uring.Nop(), user_data=7))
            for _ in range(2):
                assert target.copy_cqe(timeout=5).user_data == 7
            assert target.queue(uring.Nop(), user_data=7) == 7
            target.submit_and_wait(1)
            target.copy_cqe(timeout=5)
            assert target.in_flight == 0
        return strike

    _sweep(attempt)


@program
def finalizers_use_the_ring_as_leases_go() -> None:
    """Leases in cycles whose finalizers receive, give back and look: nothing is lost."""
    case = Case()

    class Node:
        def __init__(self, lease: Any) -> None:
            self.lease = lease
            self.itself = self

        def __del__(self) -> None:
            assert bytes(self.lease) == b"hello"
            with suppress(OSError):  # the group may be dry
                case.receive(b"again").release()
            assert 0 <= case.group.inside <= 4

    gc.set_threshold(1, 1, 1)
    for _ in range(300):
        Node(case.receive())
        case.ring.copy_cqes()
        collect()
    gc.set_threshold(700, 10, 10)
    collect()
    case.settle()
    case.end()


@program
def child_reads_its_lease_and_disturbs_nobody() -> None:
    """After a fork the child's lease stays as it was; nothing that it does reaches the parent."""
    case = Case()
    group = case.group
    leases = [case.receive(b"%d" % i * 8) for i in range(4)]
    to_child, from_parent = os.pipe()

    def look() -> None:
        os.read(to_child, 1)  # meanwhile the parent has filled the buffers anew
        assert [bytes(lease) for lease in leases] == [b"%d" % i * 8 for i in range(4)]
        leases[0].view[:] = b"X" * 8
        group.close()
        leases.clear()
        collect()
        refused(uring.RingClosedError, "fork", case.ring.copy_cqes)
        case.ring.close()
        assert group.closed

    child = forked(look)
    leases.clear()
    assert group.inside == 4
    again = [case.receive(b"%d" % (9 - i) * 8) for i in range(4)]
    os.write(from_parent, b"x")
    assert exit_code(child) == 0
    assert [bytes(lease) for lease in again] == [b"%d" % (9 - i) * 8 for i in range(4)]
    assert group.inside == 0
    again.clear()
    assert group.inside == 4
    os.close(to_child)
    os.close(from_parent)
    case.before = descriptors()
    case.settle()
    case.end()


@program
def child_exits_with_leases_and_streams() -> None:
    """A child that ends by itself, with leases and a stream alive: no word, and no wait."""
    case = Case()
    held = case.receive()
    stream = case.ring.stream(RecvMultishot(case.ours, case.group))
    faulthandler.cancel_dump_traceback_later()  # its thread is not in the child, which waits for it
    child = os.fork()
    if child == 0:
        sys.exit(0)  # with all that Python does then
    assert exit_code(child) == 0
    case.theirs.send(b"word")
    cqe = stream.take(timeout=5)
    assert cqe is not None
    assert bytes(cqe.result()) == b"word"
    assert bytes(held) == b"hello"
    del cqe, held
    stream.close()
    case.settle()
    case.end()


@program
def threads_give_back_while_groups_come_and_go() -> None:
    """Six threads release leases while the group is closed and its number used again."""
    case = Case()
    leases: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def release() -> None:
        for lease in iter(leases.get, None):
            part = lease.view[1:]
            lease.release()
            assert bytes(part) == b"ello"
            del lease, part  # or the group lives until the next one comes

    threads = [threading.Thread(target=release, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    sys.setswitchinterval(1e-5)
    for count in range(400):
        group = case.ring.register_buffer_ring(4, size=8, kernel_memory=count % 2 > 0)
        closers = [threading.Thread(target=group.close) for _ in range(3)]
        for _ in range(4):
            case.theirs.send(b"hello")
            case.ring.queue(RecvSelect(case.ours, group))
            case.ring.submit()
            leases.put(case.ring.copy_cqe(timeout=5).result())
        for closer in closers:
            closer.start()
        for closer in closers:
            join(closer)
        assert group.closed
    sys.setswitchinterval(0.005)
    for _ in threads:
        leases.put(None)
    for thread in threads:
        join(thread)
    case.settle()
    case.end()


@program
def threads_race_for_one_number() -> None:
    """A close that comes late never unregisters the group that has the number by then."""
    with uring.Ring(8) as ring:
        sys.setswitchinterval(1e-6)
        for _ in range(300):
            old = ring.register_buffer_ring(1, size=8)
            made: list[Any] = []

            def close_and_make(old: Any = old, made: list[Any] = made) -> None:
                old.close()
                with suppress(ValueError):
                    made.append(ring.register_buffer_ring(1, size=8, bgid=old.bgid))
                old.close()

            threads = [threading.Thread(target=close_and_make) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                join(thread)
            assert len(made) == 1
            assert made[0].inside == 1
            made[0].close()


@program
def other_threads_release_leases_of_a_single_issuer() -> None:
    """With SINGLE_ISSUER any thread may give leases back; only the owner may close the group."""
    flags = uring.SetupFlags.SINGLE_ISSUER | uring.SetupFlags.DEFER_TASKRUN
    ours, theirs = socket.socketpair()
    with ours, theirs, uring.Ring(8, flags=flags) as ring:
        group = ring.register_buffer_ring(4, size=8)
        leases: list[Any] = []
        ring.queue(RecvMultishot(ours, group))
        ring.submit()
        for _ in range(4):
            theirs.send(b"hello")
            leases.append(ring.copy_cqe(timeout=5).result())
        assert group.inside == 0

        def release() -> None:
            refused(uring.WrongThreadError, "SINGLE_ISSUER", group.close)
            while leases:
                leases.pop().release()

        thread = threading.Thread(target=release)
        thread.start()
        join(thread)
        assert group.inside == 4
        assert not group.closed


@program
def dropped_ring_with_groups_and_multishots() -> None:
    """A ring that is dropped with groups, a multishot and unread data warns, and leaves nothing."""
    before = settled_descriptors()
    for _ in range(20):
        ours, theirs = socket.socketpair()
        ring = uring.Ring(8)
        groups = [ring.register_buffer_ring(4, size=8), ring.register_buffer_ring(4, size=8)]
        sends = ring.register_send_buffer_ring(2, size=8)
        sends.put(b"x")
        blocks = [weakref.ref(group._block.shim) for group in groups]
        ring.queue(RecvMultishot(ours, groups[0]))
        ring.submit()
        theirs.send(b"one")
        held = ring.copy_cqe(timeout=5).result()
        theirs.send(b"two")
        gone = weakref.ref(ring)
        del ring
        collect()
        assert gone() is None
        assert bytes(held) == b"one"
        assert all(group.closed for group in groups)
        del groups
        collect()
        assert blocks[0]() is not None
        assert blocks[1]() is None
        held.release()
        del held, sends
        collect()
        assert blocks[0]() is None
        ours.close()
        theirs.close()
    assert settled_descriptors() == before


@program
def exit_with_everything_alive() -> None:
    """The interpreter ends with leases, streams, groups and sends alive: no crash and no hang."""
    case = Case()
    sends = case.ring.register_send_buffer_ring(4, size=8)
    sends.put(b"never")
    stream = case.ring.stream(RecvMultishot(case.ours, case.group))
    case.theirs.send(b"word")
    cqe = stream.take(timeout=5)
    assert cqe is not None
    loop: list[Any] = [case, stream, cqe, cqe.result(), cqe.result().view[1:], sends]
    loop.append(loop)
    sys.modules["hostile_keeps"] = loop  # type: ignore[assignment]  # to be torn down late


@program
def groups_beyond_the_memory_limit() -> None:
    """Groups that do not fit in the memory are a clear error, and leave nothing."""
    with uring.Ring(8) as ring:
        before = descriptors()
        size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), resource.RLIM_INFINITY))
        for count, each in ((32768, 2**31 - 1), (32768, 1 << 16), (1, 2**31 - 1), (512, 1 << 20)):
            for register in (ring.register_buffer_ring, ring.register_send_buffer_ring):
                words = f"{count} buffers of {each} bytes"
                refused(uring.RegisterError, words, partial(register, count, size=each))
        groups = [ring.register_buffer_ring(16, size=1 << 20, bgid=i) for i in range(4)]
        assert [group.inside for group in groups] == [16] * 4
        for group in groups:
            group.close()
        assert descriptors() == before


@program
def memory_of_a_closed_group_is_nobody_elses() -> None:
    """Groups that are closed under receives: what is allocated next is never written."""
    case = Case()
    for _ in range(50):
        group = case.ring.register_buffer_ring(4, size=1 << 16)
        raw = RecvMultishot(case.ours, group).sqe()  # only the number: it holds nothing
        number = case.ring.queue(raw, user_data=5)
        case.ring.queue(RecvMultishot(case.ours, group))
        case.ring.submit()
        group.close()
        del group
        canaries = [bytearray(1 << 16) for _ in range(8)]
        case.theirs.send(b"\xff" * (1 << 16))
        until(lambda: case.ring.copy_cqes(wait_nr=1, timeout=1) and not case.ring.in_flight)
        assert all(not any(canary) for canary in canaries), number
        case.ours.recv(1 << 20)
    case.settle()
    case.end()


if __name__ == "__main__":
    main()
