"""Provided buffer rings: what leases promise, and how groups begin and end."""

import array
import contextlib
import ctypes
import errno
import gc
import mmap
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import uring
from uring import (
    BufferRing,
    Lease,
    ReadMultishot,
    ReadSelect,
    RecvBundle,
    RecvBundleMultishot,
    RecvmsgMultishot,
    RecvmsgSelect,
    RecvMultishot,
    RecvSelect,
    SendBufferRing,
    SendBundle,
    SendSelect,
)

SECONDS: Final = 10
Letters: Final = ctypes.c_char * 5
"""An array over the memory of others, as numpy has it."""
Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture
def packets() -> Iterator[Sockets]:
    """Give two connected sockets that keep messages apart."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def take(ring: uring.Ring) -> Any:
    """Give the result of the next completion."""
    return ring.copy_cqe(timeout=SECONDS).result()


def receive(ring: uring.Ring, file: Any, group: BufferRing) -> Any:
    """Receive once, and give the lease."""
    ring.queue(RecvSelect(file, group))
    ring.submit()
    return take(ring)


def receive_all(ring: uring.Ring, op: Any, total: int) -> list[Lease]:
    """Receive until so many bytes are there; a bundle may leave a part of what there is."""
    leases: list[Lease] = []
    more = False
    while sum(map(len, leases)) < total:
        if not more:
            ring.queue(op)
            ring.submit()
        cqe = ring.copy_cqe(timeout=SECONDS)
        more = cqe.more
        leases.append(cqe.result())
        del cqe
    return leases


def refusals(ring: uring.Ring, op: Any) -> list[tuple[type[Exception], str]]:
    """How `queue` and `queue_all` refuse an operation; they leave nothing behind."""
    found = []
    attempts: list[Callable[[], object]] = [
        lambda: ring.queue(op),
        lambda: ring.queue_all([uring.Nop(), op]),
    ]
    for attempt in attempts:
        with pytest.raises((TypeError, ValueError)) as caught:
            attempt()
        found.append((type(caught.value), str(caught.value)))
        assert (ring.in_flight, ring.sq_ready()) == (0, 0)
    return found


# ---- leases ----


def test_lease_has_what_was_received(ring: uring.Ring, pair: Sockets) -> None:
    """A lease is the bytes of one completion, by length, view, views, bytes and truth."""
    with ring.register_buffer_ring(2, size=16) as group:
        pair[1].send(b"hello")
        lease = receive(ring, pair[0], group)
        assert (len(lease), bytes(lease), bool(lease)) == (5, b"hello", True)
        assert lease.view == b"hello"
        assert [bytes(view) for view in lease.views] == [b"hello"]
        assert lease.view.format == "B"
        assert not lease.view.readonly
        assert repr(lease) == "<Lease of 5 bytes in 1 buffer>"


def test_lease_is_empty_and_false_at_the_end(ring: uring.Ring, pair: Sockets) -> None:
    """At the end of a stream the result is a lease without buffers, and none was taken."""
    with ring.register_buffer_ring(2, size=16) as group:
        pair[1].close()
        lease = receive(ring, pair[0], group)
        assert isinstance(lease, Lease)
        assert (len(lease), bytes(lease), bool(lease), lease.views) == (0, b"", False, ())
        assert lease.view == b""
        lease.release()
        assert group.inside == 2


@pytest.mark.parametrize("way", ["release", "with", "drop"])
def test_buffer_goes_back(ring: uring.Ring, pair: Sockets, way: str) -> None:
    """Released, left as a context manager or dropped, a lease gives its buffer back, once."""
    with ring.register_buffer_ring(2, size=16) as group:
        pair[1].send(b"hello")
        lease = receive(ring, pair[0], group)
        assert group.inside == 1
        if way == "release":
            lease.release()
            lease.release()
        elif way == "with":
            with lease as same:
                assert same is lease
        if way != "drop":
            assert (len(lease), bytes(lease), lease.views) == (0, b"", ())
        del lease
        assert group.inside == 2


def test_unread_completions_give_their_buffers_back(ring: uring.Ring, pair: Sockets) -> None:
    """Completions that nobody looked at give their buffers back when they are dropped."""
    with ring.register_buffer_ring(4, size=16) as group:
        for _ in range(3):
            pair[1].send(b"hello")
            ring.queue(RecvSelect(pair[0], group))
            ring.submit()
        completions = ring.copy_cqes(wait_nr=3)
        while len(completions) < 3:
            completions += ring.copy_cqes(wait_nr=1)
        assert group.inside == 1
        del completions
        assert group.inside == 4
        pair[1].send(b"hello")
        ring.queue(RecvSelect(pair[0], group))
        ring.submit_and_wait()
        ring.cq_advance(1)
        assert group.inside == 4


def test_released_view_cannot_be_read(ring: uring.Ring, pair: Sockets) -> None:
    """After release() the view that was taken of a lease raises, and shows no later data."""
    with ring.register_buffer_ring(1, size=16) as group:
        pair[1].send(b"hello")
        lease = receive(ring, pair[0], group)
        view = lease.view
        lease.release()
        with pytest.raises(ValueError, match="released"):
            bytes(view)


@pytest.mark.parametrize("kind", ["slice", "cast", "memoryview", "array"])
def test_buffer_is_ours_as_long_as_something_is_made_of_it(
    ring: uring.Ring, pair: Sockets, kind: str
) -> None:
    """Whatever was made of a view keeps the buffer from the kernel, also after release()."""
    with ring.register_buffer_ring(1, size=16) as group:
        pair[1].send(b"hello")
        lease = receive(ring, pair[0], group)
        kept: Any
        if kind == "slice":
            kept = lease.view[1:4]
        elif kind == "cast":
            kept = lease.view.cast("c")
        elif kind == "memoryview":
            kept = memoryview(lease.view)
        else:
            kept = Letters.from_buffer(lease.view)
        lease.release()
        del lease
        gc.collect()
        pair[1].send(b"WORLD")
        with pytest.raises(OSError, match="No buffer space") as caught:
            receive(ring, pair[0], group)
        assert caught.value.errno == errno.ENOBUFS
        expected = b"ell" if kind == "slice" else b"hello"
        assert bytes(kept)[: len(expected)] == expected
        del kept
        gc.collect()
        assert group.inside == 1
        assert bytes(receive(ring, pair[0], group)) == b"WORLD"


def test_slice_alone_is_enough(ring: uring.Ring, pair: Sockets) -> None:
    """A slice outlives lease, completion, group, registration and ring, and keeps its bytes."""
    group = ring.register_buffer_ring(2, size=16)
    pair[1].send(b"hello")
    part = receive(ring, pair[0], group).view[1:]
    group.close()
    del group
    ring.close()
    gc.collect()
    assert bytes(part) == b"ello"
    part[:2] = b"xy"
    assert bytes(part) == b"xylo"


def test_lease_outlives_the_group(ring: uring.Ring, pair: Sockets) -> None:
    """Leases stay readable after close(), and giving them back then does nothing."""
    group = ring.register_buffer_ring(2, size=16)
    pair[1].send(b"hello")
    lease = receive(ring, pair[0], group)
    group.close()
    assert group.closed
    assert bytes(lease) == b"hello"
    other = ring.register_buffer_ring(2, size=16)
    assert other.bgid == group.bgid
    lease.release()
    assert other.inside == 2
    other.close()


def test_writes_to_a_lease_reach_nobody_else(ring: uring.Ring, pair: Sockets) -> None:
    """The memory may be written by its holder: the next user of the buffer sees its own data."""
    with ring.register_buffer_ring(1, size=8) as group:
        pair[1].send(b"hello")
        with receive(ring, pair[0], group) as lease:
            lease.view[:] = b"XXXXX"
            assert bytes(lease) == b"XXXXX"
        pair[1].send(b"again")
        assert bytes(receive(ring, pair[0], group)) == b"again"


def test_memory_is_freed_with_the_last_of_it(ring: uring.Ring, pair: Sockets) -> None:
    """Group closed and leases gone, nothing holds the memory any more."""
    group = ring.register_buffer_ring(2, size=16)
    block = weakref.ref(group._block.shim)
    pair[1].send(b"hello")
    lease = receive(ring, pair[0], group)
    group.close()
    del group
    gc.collect()
    assert block() is not None
    del lease
    gc.collect()
    assert block() is None


def test_leases_of_a_cycle_go_back(ring: uring.Ring, pair: Sockets) -> None:
    """A lease in a cycle is given back by the collector."""
    with ring.register_buffer_ring(2, size=16) as group:
        pair[1].send(b"hello")
        loop: list[Any] = [receive(ring, pair[0], group)]
        loop.append(loop)
        gc.collect()
        assert group.inside == 1
        del loop
        gc.collect()
        assert group.inside == 2


# ---- the kernel takes, and gets back ----


def test_no_buffers_is_an_error_until_one_is_back(ring: uring.Ring, pair: Sockets) -> None:
    """Two buffers out, the third receive is ENOBUFS; given back 1, 0 they are taken 1, 0."""
    with ring.register_buffer_ring(2, size=4) as group:
        pair[1].send(b"aaaabbbbccccdddd")
        leases, bids = [], []
        for _ in range(2):
            ring.queue(RecvSelect(pair[0], group))
            ring.submit()
            cqe = ring.copy_cqe(timeout=SECONDS)
            leases.append(cqe.result())
            bids.append(cqe.buffer_id)
        del cqe
        assert bids == [0, 1]
        with pytest.raises(OSError, match=r".") as caught:
            receive(ring, pair[0], group)
        assert caught.value.errno == errno.ENOBUFS
        leases.pop(1).release()
        leases.pop(0).release()
        for bid, data in ((1, b"cccc"), (0, b"dddd")):
            ring.queue(RecvSelect(pair[0], group))
            ring.submit()
            cqe = ring.copy_cqe(timeout=SECONDS)
            leases.append(cqe.result())
            assert (cqe.buffer_id, bytes(leases[-1])) == (bid, data)
        del cqe


@pytest.mark.slow
@pytest.mark.parametrize("incremental", [False, True])
def test_tail_wraps(ring: uring.Ring, pipe: tuple[int, int], *, incremental: bool) -> None:
    """70,000 stays in a group of four, past the wrap of its 16-bit tail: all data is right."""
    with ring.register_buffer_ring(4, size=4, incremental=incremental) as group:
        held: list[tuple[bytes, Lease]] = []
        ring.queue(ReadMultishot(pipe[0], group))
        ring.submit()
        for count in range(70_000):
            word = b"%04x" % (count & 0xFFFF)
            os.write(pipe[1], word)
            cqe = ring.copy_cqe(timeout=SECONDS)
            held.append((word, cqe.result()))
            assert cqe.more
            del cqe
            if len(held) == 3:  # go back in another order than they came
                for place in (count % 3, 0):
                    word, lease = held.pop(place)
                    assert bytes(lease) == word
                    lease.release()
        held.clear()
        assert group.inside == 4
        assert group._block.shim.tail == (4 + 70_000) & 0xFFFF
        os.close(pipe[1])
        assert not ring.copy_cqe(timeout=SECONDS).more


def _out_of_order(ring: uring.Ring, file: socket.socket, group: BufferRing) -> None:
    """Take all four buffers of a group, and give them back as 2, 0, 3, 1."""
    leases = {}
    for _ in range(4):
        ring.queue(RecvSelect(file, group))
        ring.submit()
        cqe = ring.copy_cqe(timeout=SECONDS)
        leases[cqe.buffer_id] = cqe.result()
    del cqe
    for bid in (2, 0, 3, 1):
        leases.pop(bid).release()


@pytest.mark.parametrize("kernel_memory", [False, True])
@pytest.mark.parametrize("multishot", [False, True])
def test_bundle_goes_by_the_order_of_the_ring(
    ring: uring.Ring, pair: Sockets, *, multishot: bool, kernel_memory: bool
) -> None:
    """A bundle from buffers that stand as 2, 0, 3, 1 has its bytes in the order of arrival."""
    with ring.register_buffer_ring(4, size=4, kernel_memory=kernel_memory) as group:
        pair[1].send(b"0123456789abcdef")
        _out_of_order(ring, pair[0], group)
        data = b"ABCDEFGHIJKLM"
        pair[1].send(data)
        kind = RecvBundleMultishot if multishot else RecvBundle
        lease, rest = receive_all(ring, kind(pair[0], group), 13)
        assert [bytes(view) for view in lease.views] == [b"ABCD", b"EFGH", b"IJKL"]
        assert repr(lease) == "<Lease of 12 bytes in 3 buffers>"
        assert (bytes(lease), bytes(rest)) == (data[:12], data[12:])
        with pytest.raises(ValueError, match="use views, or bytes"):
            _ = lease.view
        lease.release()
        assert group.inside == 3
        rest.release()
        assert group.inside == 4


def test_part_of_a_bundle_keeps_one_buffer(ring: uring.Ring, pair: Sockets) -> None:
    """Of a bundle each buffer goes back by itself: a slice of one keeps only that one."""
    with ring.register_buffer_ring(4, size=4) as group:
        pair[1].send(b"ABCDEFGHIJKLM")
        lease, last = receive_all(ring, RecvBundle(pair[0], group), 13)
        part = lease.views[2][1:]
        assert group.inside == 0
        lease.release()
        assert bytes(part) == b"JKL"
        assert group.inside == 2
        last.release()
        assert group.inside == 3
        del part
        assert group.inside == 4


@pytest.mark.parametrize("length", [3, 4, 5, 8, 9])
def test_bundle_of_a_length(ring: uring.Ring, pair: Sockets, length: int) -> None:
    """Whatever a bundle with a length leaves, what follows lands in other buffers, in order."""
    with ring.register_buffer_ring(16, size=4) as group:
        pair[1].send(b"ABCDEFGHIJKLM")
        leases = receive_all(ring, RecvBundle(pair[0], group, length=length), 13)
        assert b"".join(map(bytes, leases)) == b"ABCDEFGHIJKLM"
        leases.clear()
        assert group.inside == 16


# ---- incremental groups ----


def test_incremental_buffer_has_many_completions(ring: uring.Ring, pair: Sockets) -> None:
    """Completions on one buffer, copied out together and looked at backwards, are each right."""
    with ring.register_buffer_ring(2, size=16, incremental=True) as group:
        assert group.flags == uring.PbufRingFlags.INC
        ring.queue(RecvMultishot(pair[0], group))
        ring.submit()
        words = [b"AAAAAA", b"BBBBBB", b"CCCC", b"DDDDDDDD"]
        for count, word in enumerate(words, 1):
            pair[1].send(word)
            ring.submit_and_wait(count, timeout=SECONDS)
        completions = ring.copy_cqes()
        assert [cqe.buffer_id for cqe in completions] == [0, 0, 0, 1]
        assert [bytes(completions[i].result()) for i in (3, 2, 1, 0)] == words[::-1]
        assert group.inside == 1
        leases = [cqe.result() for cqe in completions]
        del completions
        leases.pop(0).release()
        leases.pop(1).release()
        assert group.inside == 1, "a part of the first buffer is still lent"
        leases.pop(0).release()
        assert group.inside == 2, "the second is not used up, and was never given back"
        assert bytes(leases[0]) == b"DDDDDDDD"
        pair[1].close()
        assert not ring.copy_cqe(timeout=SECONDS).more


def test_incremental_parts_are_apart_in_time(ring: uring.Ring, pair: Sockets) -> None:
    """A part given back before the buffer is used up lets the kernel go on, and not start anew."""
    with ring.register_buffer_ring(1, size=16, incremental=True) as group:
        seen = []
        for word in (b"AAAAAA", b"BBBBBB", b"CCCC", b"DDDDDD"):
            pair[1].send(word)
            with receive(ring, pair[0], group) as lease:
                seen.append(bytes(lease))
        assert seen == [b"AAAAAA", b"BBBBBB", b"CCCC", b"DDDDDD"]
        assert group.inside == 1


def test_incremental_held_part_is_not_overwritten(ring: uring.Ring, pair: Sockets) -> None:
    """What is lent of a buffer stays as it is while the kernel fills the rest, and then waits."""
    with ring.register_buffer_ring(1, size=8, incremental=True) as group:
        pair[1].send(b"AAAA")
        first = receive(ring, pair[0], group)
        pair[1].send(b"BBBB")
        receive(ring, pair[0], group).release()
        pair[1].send(b"CCCC")
        with pytest.raises(OSError, match=r".") as caught:
            receive(ring, pair[0], group)
        assert caught.value.errno == errno.ENOBUFS
        assert bytes(first) == b"AAAA"
        first.release()
        assert bytes(receive(ring, pair[0], group)) == b"CCCC"


@pytest.mark.parametrize("multishot", [False, True])
def test_incremental_bundle_spans_buffers(
    ring: uring.Ring, pair: Sockets, *, multishot: bool
) -> None:
    """A bundle that begins in the middle of a buffer goes on at the start of the next."""
    with ring.register_buffer_ring(4, size=8, incremental=True) as group:
        kind = RecvBundleMultishot if multishot else RecvBundle
        sent = [b"abc", b"0123456789", b"x", b"ABCDEFGH", b"klm"]
        held: list[Lease] = []
        armed = False
        for count, word in enumerate(sent, 1):
            pair[1].send(word)
            while sum(map(len, held)) < sum(map(len, sent[:count])):
                if not armed:
                    ring.queue(kind(pair[0], group))
                    ring.submit()
                cqe = ring.copy_cqe(timeout=SECONDS)
                armed = cqe.more
                held.append(cqe.result())
                del cqe
        assert b"".join(map(bytes, held)) == b"".join(sent)
        assert [len(lease.views) for lease in held].count(2) >= 1
        assert group.inside == 1, "25 bytes use up three buffers of 8"
        held.clear()
        assert group.inside == 4
        if armed:
            pair[1].close()
            assert not ring.copy_cqe(timeout=SECONDS).more


@pytest.mark.parametrize(
    "kind", [RecvSelect, RecvMultishot, RecvBundle, RecvBundleMultishot, ReadMultishot]
)
def test_end_of_a_stream_uses_up_no_buffer(
    ring: uring.Ring, pair: Sockets, kind: Callable[..., Any]
) -> None:
    """After data and the end, a buffer that is partly filled is in the ring once, and goes on."""
    with ring.register_buffer_ring(2, size=64, incremental=True) as group:
        is_read = kind is ReadMultishot
        inlet, outlet = os.pipe() if is_read else (pair[0].fileno(), pair[1].fileno())
        for count in range(3):
            if not is_read and count:
                ours, theirs = socket.socketpair()
                inlet, outlet = ours.detach(), theirs.detach()
            elif count:
                inlet, outlet = os.pipe()
            os.write(outlet, b"abcdef")
            ring.queue(kind(inlet, group))
            ring.submit()
            cqe = ring.copy_cqe(timeout=SECONDS)
            assert bytes(cqe.result()) == b"abcdef"
            if not cqe.more:
                ring.queue(kind(inlet, group))
                ring.submit()
            if outlet == pair[1].fileno():
                pair[1].close()
            else:
                os.close(outlet)
            end = ring.copy_cqe(timeout=SECONDS)
            assert (end.res, end.buffer_id, end.more) == (0, None, False)
            assert not end.result()
            if inlet != pair[0].fileno():
                os.close(inlet)
            del cqe, end
            assert group.inside == 2


# ---- registering ----


def test_group_tells_what_it_is(ring: uring.Ring) -> None:
    """Count, size, bgid, flags and repr are what was asked for; closing is idempotent."""
    group = ring.register_buffer_ring(4, size=100, bgid=3)
    assert (group.count, group.size, group.bgid, group.flags) == (4, 100, 3, 0)
    assert (group.inside, group.closed) == (4, False)
    assert repr(group) == "<BufferRing bgid=3 of 4 x 100 bytes>"
    group.close()
    group.close()
    assert repr(group) == "<closed BufferRing bgid=3 of 4 x 100 bytes>"
    with pytest.raises(ValueError, match="is closed"):
        _ = group.inside


@pytest.mark.parametrize(
    ("count", "size", "words"),
    [
        (0, 8, "count must be in 1..32768"),
        (3, 8, "power of two, not 3; use 4"),
        (65536, 8, "count must be in 1..32768"),
        (4, 0, "size must be in"),
        (4, 2**31, "size must be in"),
        (4, -1, "size must be in"),
    ],
)
def test_wrong_numbers_are_refused(ring: uring.Ring, count: int, size: int, words: str) -> None:
    """Counts and sizes out of range are ValueError, of both kinds of group."""
    with pytest.raises(ValueError, match=words):
        ring.register_buffer_ring(count, size=size)
    with pytest.raises(ValueError, match=words):
        ring.register_send_buffer_ring(count, size=size)
    with pytest.raises(TypeError):
        ring.register_buffer_ring(4, size="8")  # type: ignore[arg-type]  # on purpose
    assert ring.register_buffer_ring(4, size=8).bgid == 0


def test_groups_are_numbered(ring: uring.Ring) -> None:
    """A group without a number gets the lowest that is free; one that is in use is refused."""
    groups = [ring.register_buffer_ring(1, size=8) for _ in range(3)]
    assert [group.bgid for group in groups] == [0, 1, 2]
    with pytest.raises(ValueError, match="buffer group 1 is registered already"):
        ring.register_send_buffer_ring(1, size=8, bgid=1)
    groups[1].close()
    assert ring.register_send_buffer_ring(1, size=8).bgid == 1
    assert ring.register_buffer_ring(1, size=8, bgid=65535).bgid == 65535
    with pytest.raises(ValueError, match=r"bgid must be in 0\.\.65535"):
        ring.register_buffer_ring(1, size=8, bgid=65536)


def test_number_of_a_closed_group_is_not_given_to_another_while_it_is_named(
    ring: uring.Ring, pair: Sockets
) -> None:
    """Until an operation on a closed group has ended, no other group can have its number."""
    receiver, sender = pair
    closed = ring.register_buffer_ring(1, size=8)
    ring.queue(RecvMultishot(receiver, closed))
    ring.submit()
    closed.close()
    other = ring.register_buffer_ring(64, size=8)  # whose buffers have higher ids
    assert other.bgid != closed.bgid
    with pytest.raises(ValueError, match="was closed"):
        ring.register_buffer_ring(64, size=8, bgid=closed.bgid)
    sender.sendall(b"for one")
    assert ring.copy_cqe(timeout=SECONDS).res == -errno.ENOBUFS
    assert (other.inside, ring.in_flight) == (64, 0)
    assert ring.register_buffer_ring(64, size=8, bgid=closed.bgid).inside == 64


def test_many_groups(ring: uring.Ring, packets: Sockets) -> None:
    """Three hundred groups at once: each receive takes from its own."""
    groups = [ring.register_buffer_ring(1, size=8, kernel_memory=i % 2 > 0) for i in range(300)]
    for group in groups[::-7]:
        packets[1].send(b"%d" % group.bgid)
        lease = receive(ring, packets[0], group)
        assert bytes(lease) == b"%d" % group.bgid
        assert group.inside == 0
        del lease
    assert {group.inside for group in groups} == {1}
    for group in groups:
        group.close()


@pytest.mark.parametrize("incremental", [False, True])
def test_kernel_memory(ring: uring.Ring, pair: Sockets, *, incremental: bool) -> None:
    """A group whose array the kernel has made works the same, and ends the same."""
    group = ring.register_buffer_ring(4, size=8, kernel_memory=True, incremental=incremental)
    assert bool(group.flags & uring.PbufRingFlags.MMAP)
    pair[1].send(b"hello")
    lease = receive(ring, pair[0], group)
    group.close()
    assert bytes(lease) == b"hello"
    lease.release()
    again = ring.register_buffer_ring(4, size=8, kernel_memory=True, incremental=incremental)
    assert again.inside == 4


def test_biggest_group(ring: uring.Ring, pair: Sockets) -> None:
    """32768 buffers are one group, whose last one can be filled."""
    with ring.register_buffer_ring(32768, size=4) as group:
        assert group.inside == 32768
        pair[1].send(b"abcd" * 32768, socket.MSG_DONTWAIT)
        ring.queue(RecvBundle(pair[0], group))
        ring.submit()
        lease = take(ring)
        assert set(map(bytes, lease.views)) == {b"abcd"}


def test_too_much_memory_is_a_clear_error(
    ring: uring.Ring, descriptors: Callable[[], set[str]]
) -> None:
    """64 TiB of buffers are RegisterError with ENOMEM and the sizes, and leave nothing."""
    before = descriptors()
    for register in (ring.register_buffer_ring, ring.register_send_buffer_ring):
        with pytest.raises(uring.RegisterError, match="32768 buffers of 2147483647") as caught:
            register(32768, size=2**31 - 1)
        assert caught.value.errno == errno.ENOMEM
    assert descriptors() == before
    assert ring.register_buffer_ring(1, size=8).bgid == 0


def test_number_in_use_behind_our_back(ring: uring.Ring, provide: Callable[..., Any]) -> None:
    """A number that the kernel knows of otherwise is EEXIST, and what has it stays registered."""
    provide(2, 8, bgid=5)
    for _ in range(2):
        with pytest.raises(uring.RegisterError) as caught:
            ring.register_buffer_ring(2, size=8, bgid=5)
        assert caught.value.errno == errno.EEXIST
    assert ring.register_buffer_ring(2, size=8, bgid=6).inside == 2


def test_groups_end_with_their_ring(pair: Sockets) -> None:
    """When its ring is closed a group is closed, and so it is when the ring is gone."""
    with uring.Ring(8) as ring:
        fills, sends = (
            ring.register_buffer_ring(2, size=8),
            ring.register_send_buffer_ring(2, size=8),
        )
        pair[1].send(b"hello")
        lease = receive(ring, pair[0], fills)
    for _ in range(2):
        assert (fills.closed, sends.closed) == (True, True)
        with pytest.raises(ValueError, match="is closed"):
            sends.put(b"x")
        fills.close()
        sends.close()
        ring = None  # type: ignore[assignment]  # now it is gone
        gc.collect()
    assert bytes(lease) == b"hello"


# ---- what is refused ----


def test_group_of_another_ring_is_refused(ring: uring.Ring, pair: Sockets) -> None:
    """A group of another ring is ValueError, and nothing is queued."""
    with uring.Ring(8) as other:
        group = other.register_buffer_ring(2, size=8)
        ring.register_buffer_ring(2, size=8)
        for found in refusals(ring, RecvSelect(pair[0], group)):
            assert found[0] is ValueError
            assert "belongs to another ring" in found[1]


def test_closed_group_is_refused(ring: uring.Ring, pair: Sockets) -> None:
    """A closed group is ValueError, also when another has its number now."""
    group = ring.register_buffer_ring(2, size=8)
    group.close()
    ring.register_buffer_ring(2, size=8, bgid=group.bgid)
    for found in refusals(ring, RecvMultishot(pair[0], group)):
        assert found[0] is ValueError
        assert "is closed" in found[1]


def test_wrong_kind_of_group_is_refused(ring: uring.Ring, pair: Sockets) -> None:
    """Receiving into a group to send from is TypeError, and so is the other way round."""
    fills, sends = ring.register_buffer_ring(2, size=8), ring.register_send_buffer_ring(2, size=8)
    for kind in (RecvSelect, RecvMultishot, RecvBundle, ReadMultishot, RecvmsgSelect):
        for found in refusals(ring, kind(pair[0], sends)):
            assert found == (TypeError, f"{kind.__name__} takes a BufferRing, not {sends!r}")
    for send in (SendSelect, SendBundle):
        for found in refusals(ring, send(pair[0], fills)):
            assert found == (TypeError, f"{send.__name__} takes a SendBufferRing, not {fills!r}")


def test_incremental_group_is_refused_to_what_takes_more_than_it_uses(
    ring: uring.Ring, pair: Sockets
) -> None:
    """Incremental groups go neither with ReadSelect, nor ASYNC, nor MSG_WAITALL."""
    group = ring.register_buffer_ring(2, size=64, incremental=True)
    wrong = [
        ReadSelect(pair[0], group),
        RecvSelect(pair[0], group, flags=uring.SQEFlags.ASYNC),
        RecvSelect(pair[0], group, socket.MSG_WAITALL),
        RecvBundle(pair[0], group, socket.MSG_WAITALL),
        RecvmsgSelect(pair[0], group, msg_flags=socket.MSG_WAITALL),
        RecvmsgMultishot(pair[0], group, flags=uring.SQEFlags.ASYNC),
        ReadMultishot(pair[0], group, flags=uring.SQEFlags.ASYNC),
    ]
    for op in wrong:
        for found in refusals(ring, op):
            assert found[0] is ValueError
            assert "is incremental" in found[1]
    pair[1].send(b"hello")
    assert bytes(receive(ring, pair[0], group)) == b"hello"


EAGER = [
    *((kind, True) for kind in (RecvSelect, RecvBundle, RecvBundleMultishot, RecvmsgSelect)),
    (ReadMultishot, True),
    (RecvBundle, False),
]
"""
What takes buffers of which it does not tell, when a worker of the kernel runs it, and whether that
is so of incremental ones alone.
"""
LINK = uring.SQEFlags.IO_LINK
DRAIN = uring.SQEFlags.IO_DRAIN


def refuses(words: str, call: Callable[[], object]) -> None:
    """Expect the refusal of an incremental group, or of a bundle."""
    with pytest.raises(ValueError, match=f"(is incremental|takes several buffers), .*{words}"):
        call()


@pytest.mark.parametrize(("kind", "incremental"), EAGER)
@pytest.mark.parametrize("flag", [LINK, uring.SQEFlags.IO_HARDLINK])
def test_incremental_group_is_refused_in_chains(
    ring: uring.Ring,
    pair: Sockets,
    kind: Callable[..., Any],
    flag: uring.SQEFlags,
    *,
    incremental: bool,
) -> None:
    """
    First or later in a chain, pending or not; behind its end it may be queued.

    So is a bundle, from any group.
    """
    group = ring.register_buffer_ring(2, size=64, incremental=incremental)
    op, first = kind(pair[0], group), uring.Nop(flags=flag)
    refuses("outside of chains", lambda: ring.queue(kind(pair[0], group, flags=flag)))
    refuses("outside of chains", lambda: ring.queue_all([first, op]))
    refuses("outside of chains", lambda: ring.queue_all([first, first, op, uring.Nop()]))
    assert ring.sq_ready() == 0
    ring.queue(first)
    refuses("outside of chains", lambda: ring.queue(op))
    refuses("outside of chains", lambda: ring.queue(op, user_data=7))
    refuses("outside of chains", lambda: ring.queue_all([op]))
    ring.queue_all([uring.Nop(), op])
    ring.queue(first)
    ring.submit()
    ring.queue(op)  # the kernel has taken the chain, and so ended it


def test_incremental_group_is_refused_behind_a_published_link(pair: Sockets) -> None:
    """The same where the kernel has not taken the chain: it might take both at once."""
    with uring.Ring(4, flags=uring.SetupFlags.R_DISABLED) as ring:
        group = ring.register_buffer_ring(2, size=64, incremental=True)
        ring.queue(uring.Nop(flags=LINK))
        ring._is_disabled = False  # else it would not come so far
        with pytest.raises(uring.EnterError):
            ring.submit()
        assert len(ring._pending) == 1
        assert ring.sq_ready() == 1, "published, and not taken"
        refuses("outside of chains", lambda: ring.queue(RecvSelect(pair[0], group)))


@pytest.mark.parametrize(("kind", "incremental"), EAGER)
@pytest.mark.parametrize("how", ["queue", "numbered", "queue_all", "batch", "many"])
def test_incremental_group_is_refused_where_there_was_a_drain(
    ring: uring.Ring,
    pair: Sockets,
    kind: Callable[..., Any],
    how: str,
    tmp_path: Path,
    *,
    incremental: bool,
) -> None:
    """
    Once a ring was given anything with IO_DRAIN, however that came, but not what was refused.

    So is a bundle, from any group.
    """
    group = ring.register_buffer_ring(2, size=64, incremental=incremental)
    op, drain = kind(pair[0], group), uring.Nop(flags=DRAIN)
    refuses("IO_DRAIN", lambda: ring.queue(kind(pair[0], group, flags=DRAIN)))
    with pytest.raises(uring.SubmissionQueueFull):
        ring.queue_all([drain] * 1000)
    ring.queue(op)
    assert ring.sq_ready() == 1
    if how in {"batch", "many"}:
        with pytest.raises(ValueError, match=r"queued and must come before.*: submit\(\) first"):
            ring.run([drain])
        ring.submit()
        ring.cancel(any=True)
        while ring.in_flight:  # or the drain would wait for it
            ring.copy_cqe(timeout=SECONDS)
    if how == "queue":
        ring.queue(drain)
    elif how == "numbered":
        ring.queue(drain, user_data=9)
    elif how == "queue_all":
        ring.queue_all([uring.Nop(), drain])
    elif how == "batch":
        ring.run([uring.Nop(), uring.Nop(), drain], timeout=SECONDS)
    else:
        (tmp_path / "a").write_bytes(b"x")
        with (tmp_path / "a").open("rb") as file:
            ring.run(uring.ReadMany(file, bytearray(1), [0], flags=DRAIN), timeout=SECONDS)
    refuses("IO_DRAIN", lambda: ring.queue(op))
    refuses("IO_DRAIN", lambda: ring.queue(op, user_data=7))
    refuses("IO_DRAIN", lambda: ring.queue_all([op, uring.Nop()]))


def test_bundle_is_refused_that_is_not_received_in_one_go(ring: uring.Ring, pair: Sockets) -> None:
    """In a worker, or waiting for all, it would have buffers that others have got meanwhile."""
    group = ring.register_buffer_ring(2, size=8)
    for wrong in (
        RecvBundle(pair[0], group, flags=uring.SQEFlags.ASYNC),
        RecvBundle(pair[0], group, socket.MSG_WAITALL),
        RecvBundle(pair[0], group, socket.MSG_WAITALL, length=16),
    ):
        for found in refusals(ring, wrong):
            assert found[0] is ValueError
            assert "takes several buffers, which goes neither with ASYNC nor with MSG" in found[1]
    assert ring.sq_ready() == 0


@pytest.mark.parametrize("is_drained", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_multishot_bundles_of_several_sockets_are_not_mixed_up(
    *, is_drained: bool, is_async: bool
) -> None:
    """Wherever they are begun: each lease has what its own socket was sent."""
    size, count = 1 << 14, 8
    flags = uring.SQEFlags.ASYNC if is_async else uring.SQEFlags(0)
    with uring.Ring(16) as ring, contextlib.ExitStack() as stack:
        group = ring.register_buffer_ring(64, size=size)
        pairs = [socket.socketpair() for _ in range(count)]
        for sock in (sock for pair in pairs for sock in pair):
            stack.enter_context(sock)
        for mark, (_, peer) in enumerate(pairs):
            peer.sendall(bytes([mark]) * size * 3)
        before = [uring.Nop(flags=DRAIN)] if is_drained else []
        ops = [RecvBundleMultishot(sock, group, flags=flags) for sock, _ in pairs]
        ring.queue_all([*before, *ops])
        ring.submit()
        left = dict.fromkeys(ops, size * 3)
        while any(left.values()):
            cqe = ring.copy_cqe(timeout=SECONDS)
            if isinstance(cqe.op, RecvBundleMultishot):
                assert set(bytes(cqe.result())) == {ops.index(cqe.op)}
                left[cqe.op] -= cqe.res


@pytest.mark.parametrize("kind", [RecvMultishot, RecvmsgMultishot])
@pytest.mark.parametrize("is_drained", [False, True])
def test_incremental_receive_that_a_worker_begins(
    ring: uring.Ring, pair: Sockets, kind: Callable[..., Any], *, is_drained: bool
) -> None:
    """Behind a drain, or linked to what a worker runs, these use up just what they tell."""
    before: list[uring.Operation] = [uring.Nop(flags=uring.SQEFlags.ASYNC | LINK)]
    if is_drained:
        before = [uring.Timeout(0.01), uring.Nop(flags=DRAIN)]
    with ring.register_buffer_ring(2, size=512, incremental=True) as group:
        ring.queue_all([*before, kind(pair[0], group)])
        ring.submit()
        for _ in before:
            ring.copy_cqe(timeout=SECONDS)
        for word in (b"A" * 8, b"B" * 16, b"C" * 8):
            pair[1].send(word)
            cqe = ring.copy_cqe(timeout=SECONDS)
            assert (cqe.buffer_id, cqe.more) == (0, True)
            result = cqe.result()
            assert bytes(result if isinstance(result, Lease) else result.payload) == word
        pair[1].close()
        assert not ring.copy_cqe(timeout=SECONDS).more


@pytest.mark.parametrize("incremental", [False, True])
def test_group_in_a_batch_is_refused(ring: uring.Ring, pair: Sockets, *, incremental: bool) -> None:
    """An operation on a group cannot be prepared, for leases are made as completions come."""
    group = ring.register_buffer_ring(2, size=8, incremental=incremental)
    with pytest.raises(ValueError, match="group"):
        uring.Batch([RecvSelect(pair[0], group)])
    with pytest.raises(ValueError, match="group"):
        ring.run([RecvSelect(pair[0], group)])
    assert ring.in_flight == 0


def test_group_operations_share_no_number(ring: uring.Ring, pair: Sockets) -> None:
    """Two operations on a group under one number are refused; alone it is kept."""
    group = ring.register_buffer_ring(2, size=8)
    ring.queue(RecvSelect(pair[0], group), user_data=5)
    for op in (RecvSelect(pair[0], group), uring.Nop()):
        with pytest.raises(ValueError, match="user_data 0x5 is in use"):
            ring.queue(op, user_data=5)
    ring.submit()
    pair[1].send(b"hello")
    assert bytes(take(ring)) == b"hello"
    assert ring.in_flight == 0


# ---- looking without taking ----


def test_peek_lends_nothing(ring: uring.Ring, pair: Sockets) -> None:
    """peek_cqes() makes no lease; copy_cqes() then gives it, and cq_advance() gives it back."""
    with ring.register_buffer_ring(2, size=8) as group:
        for word in (b"one", b"two"):
            pair[1].send(word)
            ring.queue(RecvSelect(pair[0], group))
            ring.submit_and_wait()
            for _ in range(3):
                (peeked,) = ring.peek_cqes()
                assert (peeked.res, peeked.buffer_id is None) == (3, False)
                assert not isinstance(peeked.result(), Lease)
                del peeked
            assert ring.in_flight == 1
            assert group.inside == 1
            if word == b"one":
                (cqe,) = ring.copy_cqes()
                assert bytes(cqe.result()) == b"one"
                del cqe
            else:
                ring.cq_advance(1)
            assert group.inside == 2


def test_number_of_a_group_of_the_ring_is_refused(ring: uring.Ring, pair: Sockets) -> None:
    """By its number nobody would know what was taken from it; a raw record is not looked at."""
    with ring.register_buffer_ring(2, size=8) as group:
        with pytest.raises(ValueError, match="give the object"):
            ring.queue(RecvSelect(pair[0], group.bgid))
        assert ring.sq_ready() == 0
        pair[1].send(b"one")
        ring.queue(raw_receive(pair[0], group))
        ring.submit()
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert (cqe.result(), cqe.buffer_id) == (3, 0)


def raw_receive(sock: socket.socket, group: BufferRing, ioprio: int = 0) -> uring.SQE:
    """A receive into a group that the ring knows nothing of."""
    return uring.SQE(
        uring.Opcode.RECV,
        flags=uring.SQEFlags.BUFFER_SELECT,
        ioprio=ioprio,
        fd=sock.fileno(),
        buf_index=group.bgid,
    )


# ---- ends in the middle ----


@pytest.mark.parametrize("kernel_memory", [False, True])
def test_unregistered_under_a_multishot(
    ring: uring.Ring, pair: Sockets, *, kernel_memory: bool
) -> None:
    """With its group closed a waiting receive ends with ENOBUFS when data comes."""
    group = ring.register_buffer_ring(2, size=8, kernel_memory=kernel_memory)
    ring.queue(RecvMultishot(pair[0], group))
    ring.submit()
    pair[1].send(b"one")
    first = ring.copy_cqe(timeout=SECONDS)
    assert first.more
    group.close()
    pair[1].send(b"two")
    last = ring.copy_cqe(timeout=SECONDS)
    assert (last.res, last.more) == (-errno.ENOBUFS, False)
    assert bytes(first.result()) == b"one"
    assert ring.in_flight == 0


def test_unread_completions_of_a_closed_incremental_group(ring: uring.Ring, pair: Sockets) -> None:
    """What was received before the group was closed is found where it is; then all is let go of."""
    group = ring.register_buffer_ring(2, size=16, incremental=True)
    ring.queue(RecvMultishot(pair[0], group))
    ring.submit()
    for word in (b"abc", b"defgh", b"ij"):
        pair[1].send(word)
    assert bytes(take(ring)) == b"abc"
    group.close()
    assert [bytes(take(ring)) for _ in range(2)] == [b"defgh", b"ij"]
    pair[1].close()
    while ring.in_flight:
        ring.copy_cqe(timeout=SECONDS)
    block = weakref.ref(group._block.shim)
    del group
    ring.register_buffer_ring(1, size=8).close()
    gc.collect()
    assert block() is None


@pytest.mark.parametrize("holds", [True, False])
def test_memory_stays_while_something_may_write(
    ring: uring.Ring, pair: Sockets, *, holds: bool
) -> None:
    """Of a dropped group, until the receive has ended that holds it, or only knows its number."""
    group: BufferRing | None = ring.register_buffer_ring(2, size=64)
    assert group is not None
    block = weakref.ref(group._block.shim)
    op: uring.Operation | uring.SQE = RecvMultishot(pair[0], group)
    ring.queue(op if holds else raw_receive(pair[0], group, uring.SendRecvFlags.RECV_MULTISHOT))
    ring.submit()
    group.close()
    group = op = None  # type: ignore[assignment]  # so that only the ring has them
    gc.collect()
    assert block() is not None
    pair[1].send(b"x" * 64)
    while ring.copy_cqe(timeout=SECONDS).more:
        pass
    ring.register_buffer_ring(1, size=8).close()  # a look at what lingers
    gc.collect()
    assert block() is None


def test_lease_in_a_cycle_with_its_group_is_collected(ring: uring.Ring, pair: Sockets) -> None:
    """The collector may let go of the memory first; the buffer that comes back finds that."""
    for kernel_memory in (False, True):
        group = ring.register_buffer_ring(2, size=8, kernel_memory=kernel_memory)
        pair[1].send(b"hello")
        cycle: list[object] = [group, receive(ring, pair[0], group)]
        cycle.append(cycle)
        group.close()
        block = weakref.ref(group._block.shim)
        del cycle, group
        gc.collect()
        assert block() is None


def test_canaries_of_dropped_groups(ring: uring.Ring, pair: Sockets) -> None:
    """Memory that is allocated after a group was closed is never written by the kernel."""
    for _ in range(20):
        group = ring.register_buffer_ring(2, size=mmap.PAGESIZE)
        ring.queue(RecvMultishot(pair[0], group))
        ring.submit()
        group.close()
        del group
        gc.collect()
        canaries = [mmap.mmap(-1, 4 * mmap.PAGESIZE) for _ in range(4)]
        pair[1].send(b"\xff" * 2 * mmap.PAGESIZE)
        assert ring.copy_cqe(timeout=SECONDS).res == -errno.ENOBUFS
        pair[0].recv(1 << 20)
        assert all(canary[:] == bytes(len(canary)) for canary in canaries)


def test_ring_closed_with_leases_and_multishots(pair: Sockets) -> None:
    """Closing a ring ends what waits on its groups; unread leases go, held ones stay."""
    with uring.Ring(8) as ring:
        group = ring.register_buffer_ring(4, size=8)
        ring.queue(RecvMultishot(pair[0], group))
        ring.submit()
        pair[1].send(b"one")
        held = take(ring)
        pair[1].send(b"two")
        ring.submit_and_wait(timeout=SECONDS)
    assert ring.in_flight == 0
    assert bytes(held) == b"one"
    held.release()


def test_threads_give_back_while_another_registers(pair: Sockets) -> None:
    """Leases released by a thread while another closes and makes groups disturb nobody."""
    leases: list[Any] = []
    stop = threading.Event()

    def release() -> None:
        while not stop.is_set() or leases:
            if leases:
                leases.pop().release()

    with uring.Ring(8) as ring:
        thread = threading.Thread(target=release)
        thread.start()
        try:
            for _ in range(300):
                group = ring.register_buffer_ring(4, size=4)
                pair[1].send(b"aaaabbbbcccc")
                for word in (b"aaaa", b"bbbb", b"cccc"):
                    lease = receive(ring, pair[0], group)
                    assert bytes(lease) == word
                    leases.append(lease)
                    del lease
                group.close()
        finally:
            stop.set()
            thread.join(SECONDS)


# ---- sending ----


def test_send_ring_sends_in_order(ring: uring.Ring, pair: Sockets) -> None:
    """What was put is sent in its order with one completion, and the buffers are free again."""
    with ring.register_send_buffer_ring(4, size=8) as group:
        assert isinstance(group, SendBufferRing)
        assert (group.free, group.inside) == (4, 0)
        assert [group.put(word) for word in (b"one", b"two", b"three")] == [3, 2, 1]
        assert (group.free, group.inside) == (1, 3)
        ring.queue(SendBundle(pair[0], group))
        ring.submit()
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert (cqe.result(), cqe.buffer_id) == (11, 0)
        assert pair[1].recv(64) == b"onetwothree"
        assert (group.free, group.inside) == (4, 0)


def test_put_refuses(ring: uring.Ring) -> None:
    """Put when all is out is BufferError, nothing or too much ValueError; no buffer is lost."""
    with ring.register_send_buffer_ring(2, size=4) as group:
        for wrong in (b"", b"12345"):
            with pytest.raises(ValueError, match="one buffer takes 1 to 4 bytes"):
                group.put(wrong)
        with pytest.raises(TypeError):
            group.put("text")  # type: ignore[arg-type]  # on purpose
        assert group.free == 2
        group.put(array.array("H", [1, 2]))
        group.put(memoryview(b"xyz"))
        with pytest.raises(BufferError, match="all 2 buffers are waiting to be sent"):
            group.put(b"a")
        assert (group.free, group.inside) == (0, 2)


def test_send_select_sends_one_each(ring: uring.Ring, packets: Sockets) -> None:
    """SendSelect sends the buffers one by one, whole, and frees each with its completion."""
    with ring.register_send_buffer_ring(4, size=8) as group:
        for word in (b"one", b"two", b"three"):
            group.put(word)
        for free, word in enumerate((b"one", b"two", b"three"), 2):
            ring.queue(SendSelect(packets[0], group))
            ring.submit()
            assert take(ring) == len(word)
            assert packets[1].recv(64) == word
            assert group.free == free


def test_partial_send_frees_what_was_sent(ring: uring.Ring, pair: Sockets) -> None:
    """Bytes that were not put are never sent, whatever part of the buffers a send takes."""
    with ring.register_send_buffer_ring(8, size=4) as group:
        for word in (b"aaaa", b"bb", b"cccc", b"d"):
            group.put(word)
        sent = b""
        for _ in range(8):
            if not group.inside:
                break
            ring.queue(SendBundle(pair[0], group, length=5))
            ring.submit()
            while True:
                cqe = ring.copy_cqe(timeout=SECONDS)
                sent += pair[1].recv(cqe.result(), socket.MSG_WAITALL) if cqe.res else b""
                if not cqe.more:
                    break
        assert sent == b"aaaabbccccd"
        assert (group.free, group.inside) == (8, 0)


def test_send_ring_is_used_again_and_again(ring: uring.Ring, pair: Sockets) -> None:
    """A thousand rounds of uneven words in an uneven order: all bytes come, none twice."""
    with ring.register_send_buffer_ring(4, size=8) as group:
        expected, got = b"", b""
        for count in range(1000):
            for part in range(1 + count % 4):
                word = b"%d.%d;" % (count % 100, part)
                group.put(word)
                expected += word
            ring.queue(SendBundle(pair[0], group))
            ring.submit()
            while True:
                cqe = ring.copy_cqe(timeout=SECONDS)
                got += pair[1].recv(cqe.result(), socket.MSG_WAITALL)
                if not cqe.more:
                    break
            del cqe
            assert group.free == 4
        assert got == expected


def test_bundle_that_a_worker_would_send_is_cancelled(ring: uring.Ring, pair: Sockets) -> None:
    """The kernel sends nothing of it, and takes no buffer; the next one sends all, in order."""
    with ring.register_send_buffer_ring(4, size=8) as group:
        for word in (b"one", b"two"):
            group.put(word)
        ring.queue(SendBundle(pair[0], group, flags=uring.SQEFlags.ASYNC))
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).res == -errno.ECANCELED
        assert (group.free, group.inside) == (2, 2)
        ring.queue(SendBundle(pair[0], group))
        ring.submit()
        assert take(ring) == 6
        assert pair[1].recv(64) == b"onetwo"


def test_failing_send_gives_its_buffer_back(ring: uring.Ring, pair: Sockets) -> None:
    """Whether a failed send used its buffers or left them, they are in the ring or free."""
    with ring.register_send_buffer_ring(4, size=8) as group:
        pair[1].close()
        for kind in (SendSelect, SendBundle):
            group.put(b"one")
            group.put(b"two")
            ring.queue(kind(pair[0], group, socket.MSG_NOSIGNAL))
            ring.submit()
            while True:
                cqe = ring.copy_cqe(timeout=SECONDS)
                if not cqe.more:
                    break
            assert cqe.res == -errno.EPIPE
            del cqe
            assert group.free + group.inside == 4
            other, ours = socket.socketpair()
            with other, ours:
                while group.inside:
                    ring.queue(SendBundle(ours, group))
                    ring.submit()
                    while ring.copy_cqe(timeout=SECONDS).more:
                        pass
            assert (group.free, group.inside) == (4, 0)


def test_failing_bundle_loses_no_buffer(ring: uring.Ring, pair: Sockets) -> None:
    """A bundle that fails frees all that it took, but not what another send is sending."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, theirs, ring.register_send_buffer_ring(4, size=1 << 16) as group:
        group.put(b"x" * (1 << 16))
        group.put(b"y" * (1 << 16))
        waiting = ring.queue(SendBundle(ours, group))
        ring.submit()
        group.put(b"one")
        group.put(b"two")
        pair[1].close()
        failing = ring.queue(SendBundle(pair[0], group, socket.MSG_NOSIGNAL))
        ring.submit()
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert (cqe.user_data, cqe.res) == (failing, -errno.EPIPE)
        del cqe
        assert group.inside == 0
        assert group.free == 1, "whose the others are cannot be told while one is sending"
        group.put(b"three")
        with pytest.raises(BufferError):
            group.put(b"four")
        got = b""
        while len(got) < 2 << 16:
            got += theirs.recv(1 << 18)
        assert got == b"x" * (1 << 16) + b"y" * (1 << 16)
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert (cqe.user_data, cqe.res) == (waiting, 2 << 16)
        del cqe
        assert group.free == 3
        group.put(b"four")
        ring.queue(SendBundle(ours, group))
        ring.submit()
        assert take(ring) == 9
        assert theirs.recv(64) == b"threefour"
        assert (group.free, group.inside) == (4, 0)


@pytest.mark.parametrize("incremental", [False, True])
def test_failing_operations_use_up_no_buffer(
    ring: uring.Ring, pair: Sockets, pipe: tuple[int, int], *, incremental: bool
) -> None:
    """Reads of what cannot be read and cancelled receives leave all buffers in the group."""
    folder = os.open(".", os.O_RDONLY)
    group = ring.register_buffer_ring(2, size=64, incremental=incremental)
    ops = [
        ReadMultishot(folder, group),
        RecvSelect(pipe[0], group),
        RecvMultishot(999, group),
        RecvMultishot(pair[0], group, length=1 << 20),
        RecvmsgMultishot(pair[0], group, namelen=100),
    ]
    if not incremental:
        ops += [ReadSelect(folder, group), ReadSelect(pipe[1], group), ReadSelect(pair[0], group)]
    pair[1].send(b"x")
    for op in ops:
        ring.queue(op)
        ring.submit()
        number = ring.queue(uring.AsyncCancelAny())
        ring.submit()
        ended: set[int] = set()
        while len(ended) < 2:
            cqe = ring.copy_cqe(timeout=SECONDS)
            ended |= set() if cqe.more else {cqe.user_data}
            assert cqe.res < 0 or cqe.res == 1 or cqe.user_data == number
        del cqe
        assert group.inside == 2, op
    group.close()
    os.close(folder)


def test_empty_send_ring(ring: uring.Ring, pair: Sockets) -> None:
    """Sending from an empty group is ENOBUFS, and takes nothing."""
    with ring.register_send_buffer_ring(4, size=8) as group:
        for kind in (SendSelect, SendBundle):
            ring.queue(kind(pair[0], group))
            ring.submit()
            assert ring.copy_cqe(timeout=SECONDS).res == -errno.ENOBUFS
        assert (group.free, group.inside) == (4, 0)


def test_blocked_send_frees_only_what_was_sent(ring: uring.Ring, pair: Sockets) -> None:
    """With the socket full a bundle waits; its buffers are free when it has completed."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ring.register_send_buffer_ring(8, size=4096) as group:
        expected = b""
        for letter in b"abcdefgh":
            group.put(bytes([letter]) * 4096)
            expected += bytes([letter]) * 4096
        ring.queue(SendBundle(pair[0], group))
        ring.submit()
        got = b""
        while len(got) < len(expected):
            got += pair[1].recv(1 << 16)
        assert got == expected
        sent = 0
        while sent < len(expected):
            sent += take(ring)
        assert (group.free, group.inside) == (8, 0)


def test_puts_of_threads_are_apart(ring: uring.Ring, packets: Sockets) -> None:
    """Threads that put at the same time fill different buffers, with all of their bytes."""
    with ring.register_send_buffer_ring(64, size=1024) as group:

        def put(letter: int) -> None:
            for _ in range(16):
                group.put(bytes([letter]) * 1024)

        threads = [threading.Thread(target=put, args=(letter,)) for letter in b"abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert group.free == 0
        seen = []
        for _ in range(64):
            ring.queue(SendSelect(packets[0], group))
            ring.submit()
            assert take(ring) == 1024
            seen.append(packets[1].recv(2048))
        assert sorted(seen) == sorted(bytes([letter]) * 1024 for letter in b"abcd" * 16)
        assert group.free == 64
