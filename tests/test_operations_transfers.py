"""Sending and receiving on sockets, with and without a copy, on the real kernel."""

import ctypes
import errno
import gc
import mmap
import os
import socket
import struct
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

import uring
from uring import _memory
from uring._ffi import lib
from uring._leases import Lease
from uring.flags import CQEFlags, RegisterOpcode, SendRecvFlags, SetupFlags, SQEFlags
from uring.operations._groups import GroupPin

SECONDS: Final = 10
POLL_FIRST: Final = SendRecvFlags.RECVSEND_POLL_FIRST
REPORT_USAGE: Final = SendRecvFlags.SEND_ZC_REPORT_USAGE
HERE: Final = ("127.0.0.1", 1)
BUFFER: Final = bytearray(5)
BUFFERS: Final = (BUFFER, BUFFER)
FIXED: Final = bytearray(5)

One = Callable[[Any], uring.CQE]
Fails = Callable[[Any, int], OSError]
Drain = Callable[[], list[uring.CQE]]
Provide = Callable[..., Any]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give two sockets that are connected by TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname(), timeout=SECONDS)
        right, _ = listener.accept()
    right.settimeout(SECONDS)
    with left, right:
        yield left, right


@pytest.fixture
def registered(ring: uring.Ring) -> Iterator[memoryview]:
    """Give a page that is registered as buffer 1 of two."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[:10] = b"0123456789"
    pin, address, _ = _memory.writable(page)
    iovecs, _, _ = _memory.readable(struct.pack("NNNN", 0, 0, address, mmap.PAGESIZE))
    register = int(RegisterOpcode.REGISTER_BUFFERS)
    assert lib.uring_register(ring._shim, register, iovecs, 2) == 0
    yield memoryview(page)
    ring.close()
    del pin


def start(ring: uring.Ring, op: uring.Operation) -> int:
    """Queue an operation and submit it."""
    number = ring.queue(op)
    ring.submit()
    return number


def received(sock: socket.socket, count: int) -> bytes:
    """As many bytes as that, of a stream."""
    found = b""
    while len(found) < count:
        found += sock.recv(count - len(found))
    return found


# ---- encoding ----

SELECT: Final = int(SQEFlags.BUFFER_SELECT)
TO: Final = {"addr2": ..., "addr_len": 16}

RECORDS: Final[list[tuple[uring.Operation, dict[str, Any]]]] = [
    (uring.Send(9, BUFFER, 3), {"addr": ..., "len": 5, "msg_flags": 3}),
    (uring.Send(9, BUFFER, ioprio_flags=POLL_FIRST), {"addr": ..., "len": 5, "ioprio": 1}),
    (uring.Sendto(9, BUFFER, HERE, 3), {"addr": ..., "len": 5, "msg_flags": 3, **TO}),
    (
        uring.Sendto(9, BUFFER, ("::1", 1), ioprio_flags=POLL_FIRST),
        {"addr": ..., "len": 5, "ioprio": 1, "addr2": ..., "addr_len": 28},
    ),
    (uring.SendVectorized(9, BUFFERS, 3), {"addr": ..., "len": 2, "msg_flags": 3, "ioprio": 32}),
    (
        uring.SendVectorized(9, BUFFERS, address=HERE, ioprio_flags=POLL_FIRST),
        {"addr": ..., "len": 2, "ioprio": 33, **TO},
    ),
    (uring.SendSelect(9, 7, 3), {"buf_group": 7, "msg_flags": 3, "flags": SELECT}),
    (
        uring.SendSelect(9, 7, length=4, address=HERE, ioprio_flags=POLL_FIRST),
        {"buf_group": 7, "len": 4, "ioprio": 1, "flags": SELECT, **TO},
    ),
    (uring.SendBundle(9, 7, 3), {"buf_group": 7, "msg_flags": 3, "ioprio": 16, "flags": SELECT}),
    (
        uring.SendBundle(9, 7, length=4, address=HERE, ioprio_flags=POLL_FIRST),
        {"buf_group": 7, "len": 4, "ioprio": 17, "flags": SELECT, **TO},
    ),
    (uring.Recv(9, BUFFER, 3), {"addr": ..., "len": 5, "msg_flags": 3}),
    (uring.Recv(9, BUFFER, ioprio_flags=POLL_FIRST), {"addr": ..., "len": 5, "ioprio": 1}),
    (uring.RecvSelect(9, 7, 3), {"buf_group": 7, "msg_flags": 3, "flags": SELECT}),
    (
        uring.RecvSelect(9, 65535, length=4, ioprio_flags=POLL_FIRST),
        {"buf_group": 65535, "len": 4, "ioprio": 1, "flags": SELECT},
    ),
    (uring.RecvMultishot(9, 7, 3), {"buf_group": 7, "msg_flags": 3, "ioprio": 2, "flags": SELECT}),
    (
        uring.RecvMultishot(9, 7, length=4, total_length=8, ioprio_flags=POLL_FIRST),
        {"buf_group": 7, "len": 4, "optlen": 8, "ioprio": 3, "flags": SELECT},
    ),
    (uring.RecvBundle(9, 7, 3), {"buf_group": 7, "msg_flags": 3, "ioprio": 16, "flags": SELECT}),
    (
        uring.RecvBundle(9, 7, length=4, ioprio_flags=POLL_FIRST),
        {"buf_group": 7, "len": 4, "ioprio": 17, "flags": SELECT},
    ),
    (
        uring.RecvBundleMultishot(9, 7, 3),
        {"buf_group": 7, "msg_flags": 3, "ioprio": 18, "flags": SELECT},
    ),
    (
        uring.RecvBundleMultishot(9, 7, length=4, total_length=8, ioprio_flags=POLL_FIRST),
        {"buf_group": 7, "len": 4, "optlen": 8, "ioprio": 19, "flags": SELECT},
    ),
    (uring.SendZc(9, BUFFER, 3), {"addr": ..., "len": 5, "msg_flags": 3}),
    (
        uring.SendZc(9, BUFFER, address=HERE, ioprio_flags=POLL_FIRST | REPORT_USAGE),
        {"addr": ..., "len": 5, "ioprio": 9, **TO},
    ),
    (
        uring.SendZcFixed(9, BUFFER, 3, buf_index=6),
        {"addr": ..., "len": 5, "msg_flags": 3, "buf_index": 6, "ioprio": 4},
    ),
    (
        uring.SendZcFixed(9, uring.FixedBuffer(memoryview(FIXED), 8), address=HERE),
        {"addr": ..., "len": 5, "buf_index": 8, "ioprio": 4, **TO},
    ),
    (
        uring.SendZcFixed(9, BUFFER, buf_index=6, ioprio_flags=POLL_FIRST | REPORT_USAGE),
        {"addr": ..., "len": 5, "buf_index": 6, "ioprio": 13},
    ),
    (uring.SendZcVectorized(9, BUFFERS, 3), {"addr": ..., "len": 2, "msg_flags": 3, "ioprio": 32}),
    (
        uring.SendZcVectorized(9, BUFFERS, address=HERE, ioprio_flags=REPORT_USAGE),
        {"addr": ..., "len": 2, "ioprio": 40, **TO},
    ),
    (
        uring.RecvZc(9, zcrx_ifq_idx=3, length=4, ioprio_flags=POLL_FIRST),
        {"zcrx_ifq_idx": 3, "len": 4, "ioprio": 3},
    ),
    (uring.RecvZc(9), {"ioprio": 2}),
]


@pytest.mark.parametrize(("op", "expected"), RECORDS, ids=str)
def test_transfer_encodes_field_by_field(
    assert_record: Callable[..., None], op: uring.Operation, expected: dict[str, Any]
) -> None:
    """Each has the fields that io_uring.h gives it, and nothing anywhere else."""
    assert_record(op, fd=9, **expected)


def test_transfer_points_to_the_buffer_and_the_address() -> None:
    """`addr` is the buffer's own memory, and `addr2` a struct sockaddr_in."""
    buffer = bytearray(b"hello")
    where = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    for op in (
        uring.Sendto(9, buffer, ("127.0.0.1", 258)),
        uring.SendZc(9, buffer, address=("127.0.0.1", 258)),
    ):
        record, pin = op._encode()
        addr2, addr = struct.unpack_from("=QQ", record, 8)
        assert addr == where
        assert ctypes.string_at(addr2, 16) == b"\2\0\1\2\x7f\0\0\1" + bytes(8)
        del pin
    assert sys.byteorder == "little"


def test_transfer_of_several_buffers_points_to_an_array_of_them() -> None:
    """`addr` is an array of struct iovec: address and length of each."""
    buffers = [bytearray(b"ab"), bytearray(b"cde")]
    places = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    for op in (uring.SendVectorized(9, buffers), uring.SendZcVectorized(9, buffers)):
        record, pin = op._encode()
        (addr,) = struct.unpack_from("=Q", record, 16)
        assert ctypes.string_at(addr, 32) == struct.pack("=QQQQ", places[0], 2, places[1], 3)
        del pin


BIG: Final = 2**32
OTHER: Final = SendRecvFlags.RECV_MULTISHOT
GROUP: Final[Any] = "group"

WRONG: Final[list[tuple[uring.Operation, type[Exception]]]] = [
    *((kind(0, BUFFER, ioprio_flags=OTHER), ValueError) for kind in (uring.Send, uring.Recv)),
    (uring.Send(0, BUFFER, ioprio_flags=SendRecvFlags.RECVSEND_BUNDLE), ValueError),
    (uring.Send(0, BUFFER, ioprio_flags=REPORT_USAGE), ValueError),
    (uring.Send(0, BUFFER, ioprio_flags=True), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Recv(0, BUFFER, ioprio_flags=uring.AcceptFlags.MULTISHOT), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Sendto(0, "text", HERE), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Sendto(0, BUFFER, None), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Sendto(0, BUFFER, ("localhost", 1)), ValueError),
    (uring.SendVectorized(0, BUFFER), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.SendVectorized(0, [b"x"] * 1025), ValueError),
    (uring.SendVectorized(0, BUFFERS, ioprio_flags=SendRecvFlags(32)), ValueError),
    (uring.SendZc(0, None), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.SendZc(0, BUFFER, ioprio_flags=SendRecvFlags.RECVSEND_FIXED_BUF), ValueError),
    (uring.SendZc(0, BUFFER, address=5), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.SendZcFixed(0, BUFFER), TypeError),
    (uring.SendZcFixed(0, BUFFER, buf_index=2**16), ValueError),
    (uring.SendZcFixed(0, uring.FixedBuffer(memoryview(FIXED), 1), buf_index=2), ValueError),
    (uring.SendZcVectorized(0, None), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.RecvZc(0, zcrx_ifq_idx=-1), ValueError),
    (uring.RecvZc(0, length=BIG), ValueError),
    (uring.RecvMultishot(0, 1, total_length=BIG), ValueError),
    (uring.RecvBundleMultishot(0, 1, total_length=-1), ValueError),
    *(
        (kind(0, 1, **wrong), error)
        for kind in (
            uring.SendSelect,
            uring.SendBundle,
            uring.RecvSelect,
            uring.RecvMultishot,
            uring.RecvBundle,
            uring.RecvBundleMultishot,
        )
        for wrong, error in (
            ({"length": BIG}, ValueError),
            ({"length": -1}, ValueError),
            ({"msg_flags": "x"}, TypeError),
            ({"ioprio_flags": OTHER}, ValueError),
        )
    ),
    *(
        (kind(0, group), error)
        for kind in (uring.SendSelect, uring.SendBundle, uring.RecvSelect, uring.RecvMultishot)
        for group, error in ((GROUP, TypeError), (-1, ValueError), (2**16, ValueError))
    ),
]


@pytest.mark.parametrize(("op", "kind"), WRONG, ids=str)
def test_transfer_refuses_wrong_arguments(op: uring.Operation, kind: type[Exception]) -> None:
    """TypeError or ValueError before anything is queued; nothing is cut off or stays pinned."""
    with pytest.raises(kind):
        op.sqe()
    BUFFER.append(0)
    BUFFER.pop()


# ---- sending ----


def test_sendto_goes_to_the_address(one: One, fails: Fails, udp: Pair) -> None:
    """The datagram arrives from the sender's own name; a wrong family is EAFNOSUPPORT."""
    left, right = udp
    assert one(uring.Sendto(left, b"hello", right.getsockname())).result() == 5
    assert right.recvfrom(9) == (b"hello", left.getsockname())
    fails(uring.Sendto(left, b"hello", "path" * 10), errno.EAFNOSUPPORT)
    fails(uring.Send(left, b"hello"), errno.EDESTADDRREQ)


def test_sendto_by_unix_and_inet6(one: One, fails: Fails) -> None:
    """Addresses of the other families arrive as well."""
    for family, address in (
        (socket.AF_UNIX, b"\0uring-" + os.urandom(8)),
        (socket.AF_INET6, ("::1", 0)),
    ):
        if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
            pytest.skip("this machine has no IPv6")
        with (
            socket.socket(family, socket.SOCK_DGRAM) as left,
            socket.socket(family, socket.SOCK_DGRAM) as right,
        ):
            right.bind(address)
            assert one(uring.Sendto(left, b"hello", right.getsockname())).result() == 5
            assert right.recv(9) == b"hello"
            name = right.getsockname()
        if family == socket.AF_UNIX:
            with socket.socket(family, socket.SOCK_DGRAM) as left:
                fails(uring.Sendto(left, b"hello", name), errno.ECONNREFUSED)


def test_send_vectorized_sends_all_in_order(one: One, fails: Fails, pair: Pair, udp: Pair) -> None:
    """Several buffers are one stream, and one datagram; empty ones and none at all too."""
    assert one(uring.SendVectorized(pair[0], [b"ab", b"", bytearray(b"cde")])).result() == 5
    assert received(pair[1], 5) == b"abcde"
    left, right = udp
    op = uring.SendVectorized(left, (b"ab", b"c"), address=right.getsockname())
    assert one(op).result() == 3
    assert right.recvfrom(9) == (b"abc", left.getsockname())
    assert one(uring.SendVectorized(left, [], address=right.getsockname())).result() == 0
    assert right.recv(9) == b""
    fails(uring.SendVectorized(9999, [b"x"]), errno.EBADF)


def test_send_poll_first_sends(one: One, pair: Pair) -> None:
    """With room in the socket it goes through as without the flag."""
    assert one(uring.Send(pair[0], b"ab", ioprio_flags=POLL_FIRST)).result() == 2
    assert received(pair[1], 2) == b"ab"


def test_recv_poll_first_waits_for_data(ring: uring.Ring, pair: Pair) -> None:
    """Nothing completes until something was sent."""
    buffer = bytearray(4)
    start(ring, uring.Recv(pair[0], buffer, ioprio_flags=POLL_FIRST))
    assert not ring.copy_cqes()
    pair[1].send(b"abcd")
    assert ring.copy_cqe(timeout=SECONDS).result() == 4
    assert buffer == b"abcd"


@pytest.mark.parametrize(("msg_flags", "follower"), [(0, 0), (socket.MSG_WAITALL, -125)])
def test_chain_after_a_short_send_or_recv(
    ring: uring.Ring, pair: Pair, *, msg_flags: int, follower: int
) -> None:
    """With MSG_WAITALL it cancels what is linked behind it, and without it does not."""
    flags = msg_flags | socket.MSG_DONTWAIT
    pair[1].send(b"abc")
    for op in (
        uring.Send(pair[0], bytes(50_000_000), flags),
        uring.Recv(pair[0], bytearray(9), flags),
    ):
        ring.queue_all(uring.link(op, uring.Nop()))
        ring.submit()
        transfer, nop = (ring.copy_cqe(timeout=SECONDS) for _ in range(2))
        assert 0 < transfer.result() < len(op.buffer)  # type: ignore[arg-type]  # both are sized
        assert nop.res == follower


def test_send_takes_fixed(ring: uring.Ring, one: One, pair: Pair) -> None:
    """Sends name a registered file as they do a descriptor."""
    ring.register_files([pair[0]])
    file = uring.Fixed(0)
    assert one(uring.Send(file, b"a")).result() == 1
    assert one(uring.SendVectorized(file, [b"b", b"c"])).result() == 2
    assert received(pair[1], 3) == b"abc"


# ---- sending without a copy ----


def both(cqes: list[uring.CQE]) -> tuple[uring.CQE, uring.CQE]:
    """The result and the notification of a zero-copy send."""
    result, notification = cqes
    assert (result.more, result.is_notification) == (True, False)
    assert (notification.more, notification.is_notification) == (False, True)
    assert (notification.error, notification.result()) == (None, None)
    assert notification.user_data == result.user_data
    return result, notification


def test_send_zc_completes_twice(ring: uring.Ring, drain: Drain, pair: Pair, udp: Pair) -> None:
    """The count with MORE, then a notification with no result; the bytes arrive."""
    start(ring, uring.SendZc(pair[0], b"hello"))
    result, notification = both(drain())
    assert (result.result(), notification.res) == (5, 0)
    assert received(pair[1], 5) == b"hello"
    assert ring.in_flight == 0
    left, right = udp
    start(ring, uring.SendZc(left, b"hello", address=right.getsockname()))
    assert both(drain())[0].result() == 5
    assert right.recvfrom(9) == (b"hello", left.getsockname())


def test_send_zc_pins_its_buffer_until_the_notification(
    ring: uring.Ring, drain: Drain, pair: Pair
) -> None:
    """Between the two completions the buffer cannot be resized; afterwards it can."""
    buffer = bytearray(b"hello")
    start(ring, uring.SendZc(pair[0], buffer))
    assert ring.copy_cqe(timeout=SECONDS).more
    assert ring.in_flight == 1
    with pytest.raises(BufferError):
        buffer.append(0)
    (notification,) = drain()
    assert notification.is_notification
    buffer.append(0)


def test_send_zc_reports_that_it_copied_after_all(
    ring: uring.Ring, drain: Drain, pair: Pair
) -> None:
    """On the loopback the notification's res has the bit, which is no error."""
    start(ring, uring.SendZc(pair[0], bytes(1000), ioprio_flags=REPORT_USAGE))
    result, notification = both(drain())
    assert result.result() == 1000
    assert notification.res & 0xFFFFFFFF == uring.NOTIF_USAGE_ZC_COPIED
    assert (result.was_copied, notification.was_copied) == (False, True)


BROKEN: Final = uring.Nop(res=-errno.EIO).linked()
"""The head of a chain that is broken before anything behind it begins."""


def test_run_does_not_count_the_notification_of_what_never_began(
    ring: uring.Ring, pair: Pair, pipe: tuple[int, int]
) -> None:
    """A run waits for all of its operations, whatever else the kernel posts under their numbers."""
    os.write(pipe[1], b"data")
    late = uring.Read(pipe[0], bytearray(4), flags=uring.SQEFlags.ASYNC)
    sending = uring.SendZc(pair[0], b"data")
    done = ring.run([BROKEN, sending, late])
    assert done.res.tolist() == [-errno.EIO, -errno.ECANCELED, 4]
    with pytest.raises(TimeoutError):
        ring.run([BROKEN, sending, uring.Read(pipe[0], bytearray(4))], timeout=0.05)


def test_send_zc_failures_complete_twice_too(ring: uring.Ring, drain: Drain, pair: Pair) -> None:
    """EPIPE, EBADF and EOPNOTSUPP come with MORE and are followed by a notification."""
    left, right = socket.socketpair()
    pair[0].shutdown(socket.SHUT_WR)
    for sock, number in ((pair[0], errno.EPIPE), (left, errno.EOPNOTSUPP), (9999, errno.EBADF)):
        for op in (
            uring.SendZc(sock, b"x"),
            uring.SendZcVectorized(sock, [b"x"]),
            uring.SendmsgZc(sock, [b"x"]),
        ):
            start(ring, op)
            result, _ = both(drain())
            assert result.error is not None
            assert result.error.errno == number
            assert ring.in_flight == 0
    left.close()
    right.close()


def test_send_zc_that_skips_is_einval(ring: uring.Ring, pair: Pair) -> None:
    """CQE_SKIP_SUCCESS is refused by the kernel: one completion, and the chain behind it goes."""
    skip = SQEFlags.CQE_SKIP_SUCCESS
    ring.queue_all(uring.link(uring.SendZc(pair[0], b"x", flags=skip), uring.Nop(user_data=1)))
    ring.submit()
    cqe = ring.copy_cqe(timeout=SECONDS)
    assert (cqe.res, cqe.more) == (-errno.EINVAL, False)
    while ring.in_flight:
        assert ring.copy_cqe(timeout=SECONDS).res == -errno.ECANCELED


def test_send_zc_fixed_sends_registered_memory(
    ring: uring.Ring, drain: Drain, pair: Pair, udp: Pair, registered: memoryview
) -> None:
    """A part of the registered buffer arrives; other memory, or another index, is EFAULT."""
    part = uring.FixedBuffer(registered[2:7], 1)
    for op in (
        uring.SendZcFixed(pair[0], part),
        uring.SendZcFixed(pair[0], part.view, buf_index=1),
    ):
        start(ring, op)
        assert both(drain())[0].result() == 5
        assert received(pair[1], 5) == b"23456"
    left, right = udp
    start(ring, uring.SendZcFixed(left, part[1:], address=right.getsockname()))
    assert both(drain())[0].result() == 4
    assert right.recv(9) == b"3456"
    for op in (
        uring.SendZcFixed(pair[0], bytearray(5), buf_index=1),
        uring.SendZcFixed(pair[0], part.view, buf_index=0),
        uring.SendZcFixed(pair[0], part.view, buf_index=2),
    ):
        start(ring, op)
        assert both(drain())[0].res == -errno.EFAULT


def test_send_zc_vectorized_sends_all_in_order(
    ring: uring.Ring, drain: Drain, pair: Pair, udp: Pair
) -> None:
    """Several buffers are one stream, and one datagram."""
    start(ring, uring.SendZcVectorized(pair[0], [b"ab", b"", bytearray(b"cde")]))
    assert both(drain())[0].result() == 5
    assert received(pair[1], 5) == b"abcde"
    left, right = udp
    start(ring, uring.SendZcVectorized(left, [b"a", b"b"], address=right.getsockname()))
    assert both(drain())[0].result() == 2
    assert right.recv(9) == b"ab"


def test_send_zc_keeps_temporaries_alive(ring: uring.Ring, pair: Pair) -> None:
    """Buffers that nobody else has arrive whole, though they are dropped before the submit."""
    size = 100_000
    ring.queue_all(
        uring.link(
            uring.SendZc(pair[0], b"a" * size, socket.MSG_WAITALL),
            uring.SendZcVectorized(pair[0], [b"b" * size] * 2, socket.MSG_WAITALL),
        )
    )
    gc.collect()
    filler = [bytes(size) for _ in range(10)]
    ring.submit()
    assert received(pair[1], size) == b"a" * size
    assert received(pair[1], 2 * size) == b"b" * 2 * size
    while ring.in_flight:
        assert ring.copy_cqe(timeout=SECONDS).res >= 0
    del filler


def test_send_zc_in_a_run_gives_its_result(ring: uring.Ring, pair: Pair) -> None:
    """Of the two completions the run keeps the first, and waits for both."""
    done = ring.run([uring.SendZc(pair[0], b"ab"), uring.Send(pair[0], b"c")])
    assert [cqe.result() for cqe in done] == [2, 1]
    assert ring.in_flight == 0
    assert sorted(received(pair[1], 3)) == sorted(b"abc")


def test_recv_zc_needs_a_queue(fails: Fails, pair: Pair) -> None:
    """Without a registered queue, and on a ring without large completions, it is EINVAL."""
    fails(uring.RecvZc(pair[0]), errno.EINVAL)
    flags = SetupFlags.CQE32 | SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN
    with uring.Ring(4, flags=flags) as ring:
        start(ring, uring.RecvZc(pair[0]))
        assert ring.copy_cqe(timeout=SECONDS).res == -errno.EINVAL


# ---- groups of provided buffers ----


def test_send_select_sends_the_next_buffer(
    one: One, fails: Fails, pair: Pair, udp: Pair, provide: Provide
) -> None:
    """The buffers go in their order, cut to `length`; an empty group is ENOBUFS, none ENOENT."""
    group = provide(4, 4)
    group.fill(b"0000", b"1111", b"2222", b"3333")
    cqe = one(uring.SendSelect(pair[0], group.bgid))
    assert (cqe.result(), cqe.buffer_id) == (4, 0)
    assert one(uring.SendSelect(pair[0], group.bgid, length=2)).buffer_id == 1
    assert received(pair[1], 6) == b"000011"
    left, right = udp
    cqe = one(uring.SendSelect(left, group.bgid, address=right.getsockname()))
    assert (cqe.result(), cqe.buffer_id) == (4, 2)
    assert right.recvfrom(9) == (b"2222", left.getsockname())
    assert one(uring.SendSelect(pair[0], group.bgid)).result() == 4
    fails(uring.SendSelect(pair[0], group.bgid), errno.ENOBUFS)
    fails(uring.SendSelect(pair[0], 99), errno.ENOENT)
    fails(uring.SendBundle(pair[0], 99), errno.ENOENT)


def test_send_bundle_sends_all_buffers(
    ring: uring.Ring, drain: Drain, fails: Fails, pair: Pair, provide: Provide
) -> None:
    """All that are there go; more than 256 in several completions, the last without MORE."""
    group = provide(512, 4)
    contents = [b"%04d" % bid for bid in range(512)]
    group.fill(*contents)
    start(ring, uring.SendBundle(pair[0], group.bgid))
    cqes = drain()
    assert len(cqes) > 1
    assert sum(cqe.result() for cqe in cqes) == 2048
    assert [cqe.buffer_id for cqe in cqes] == [0, 256]
    assert received(pair[1], 2048) == b"".join(contents)
    fails(uring.SendBundle(pair[0], group.bgid), errno.ENOBUFS)
    group.give(7, 3)
    start(ring, uring.SendBundle(pair[0], group.bgid))
    (cqe,) = drain()
    assert (cqe.result(), cqe.buffer_id) == (8, 7)
    assert received(pair[1], 8) == b"00070003"


def test_send_bundle_length_limits_its_beginning(
    ring: uring.Ring, drain: Drain, pair: Pair, provide: Provide
) -> None:
    """The first completion has at most so many bytes; then the rest goes."""
    group = provide(4, 4)
    group.fill(b"0000", b"1111", b"2222", b"3333")
    start(ring, uring.SendBundle(pair[0], group.bgid, length=8))
    results = [cqe.result() for cqe in drain()]
    assert results[0] <= 8
    assert sum(results) == 16
    assert received(pair[1], 16) == b"0000111122223333"


def test_recv_select_fills_a_buffer_of_the_group(
    ring: uring.Ring, one: One, fails: Fails, pair: Pair, provide: Provide
) -> None:
    """It takes one when there is data, and none at the end of the stream."""
    group = provide(4, 4)
    start(ring, uring.RecvSelect(pair[0], group.bgid))
    assert not ring.copy_cqes()
    pair[1].send(b"abcdefgh")
    cqe = ring.copy_cqe(timeout=SECONDS)
    assert (cqe.result(), group[cqe.buffer_id]) == (4, b"abcd")
    assert cqe.flags & CQEFlags.SOCK_NONEMPTY
    cqe = one(uring.RecvSelect(pair[0], group.bgid, length=3))
    assert (cqe.result(), group[cqe.buffer_id]) == (3, b"efg\0")
    cqe = one(uring.RecvSelect(pair[0], group.bgid, ioprio_flags=POLL_FIRST))
    assert (cqe.result(), cqe.buffer_id) == (1, 2)
    fails(uring.RecvSelect(pair[0], 99, socket.MSG_DONTWAIT), errno.ENOBUFS)
    fails(uring.RecvSelect(pair[0], group.bgid, socket.MSG_DONTWAIT), errno.EAGAIN)
    pair[1].close()
    cqe = one(uring.RecvSelect(pair[0], group.bgid))
    assert (cqe.result(), cqe.buffer_id) == (0, None)


def test_recv_multishot_goes_on_until_there_are_no_buffers(
    ring: uring.Ring, drain: Drain, pair: Pair, provide: Provide
) -> None:
    """Each message takes a buffer, with MORE; then it is ENOBUFS without."""
    group = provide(2, 4)
    start(ring, uring.RecvMultishot(pair[0], group.bgid))
    for bid, content in enumerate((b"ab", b"cdef")):
        pair[1].send(content)
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert (cqe.result(), cqe.buffer_id, cqe.more) == (len(content), bid, True)
        assert group[bid][: len(content)] == content
    assert ring.in_flight == 1
    pair[1].send(b"x")
    (last,) = drain()
    assert (last.res, last.buffer_id) == (-errno.ENOBUFS, None)
    assert ring.in_flight == 0


def test_recv_multishot_ends_with_the_stream(
    ring: uring.Ring, drain: Drain, pair: Pair, provide: Provide
) -> None:
    """The peer's end is 0 without MORE."""
    group = provide(4, 4)
    start(ring, uring.RecvMultishot(pair[0], group.bgid))
    pair[1].send(b"ab")
    pair[1].close()
    assert [(cqe.result(), cqe.buffer_id) for cqe in drain()] == [(2, 0), (0, None)]


def test_recv_multishot_ends_with_an_empty_datagram(
    ring: uring.Ring, drain: Drain, udp: Pair, provide: Provide
) -> None:
    """For the kernel 0 bytes are an end, of UDP too."""
    group = provide(4, 4)
    start(ring, uring.RecvMultishot(udp[0], group.bgid))
    for content in (b"ab", b""):
        udp[1].sendto(content, udp[0].getsockname())
    assert [cqe.result() for cqe in drain()] == [2, 0]


@pytest.mark.parametrize(
    ("limits", "expected", "is_last"),
    [
        ({"length": 3}, [3, 3, 3, 1], False),
        ({"total_length": 6}, [4, 4], True),
        ({"length": 3, "total_length": 6}, [3, 3], True),
    ],
)
def test_recv_multishot_limits(
    ring: uring.Ring,
    pair: Pair,
    provide: Provide,
    *,
    limits: Any,
    expected: list[int],
    is_last: bool,
) -> None:
    """`length` is for each time, `total_length` for all of them, to the buffer that reaches it."""
    group = provide(8, 4)
    pair[1].send(bytes(10))
    start(ring, uring.RecvMultishot(pair[0], group.bgid, **limits))
    cqes = [ring.copy_cqe(timeout=SECONDS) for _ in expected]
    assert [cqe.result() for cqe in cqes] == expected
    assert cqes[-1].more is not is_last
    assert ring.in_flight == (not is_last)


def test_recv_multishot_fails_as_the_kernel_says(
    fails: Fails, pair: Pair, provide: Provide
) -> None:
    """MSG_WAITALL is EINVAL, a group that there is not ENOBUFS, and no socket ENOTSOCK."""
    provide(4, 4, 7)
    fails(uring.RecvMultishot(pair[0], 7, socket.MSG_WAITALL), errno.EINVAL)
    fails(uring.RecvBundleMultishot(pair[0], 7, socket.MSG_WAITALL), errno.EINVAL)
    fails(uring.RecvMultishot(pair[0], 99), errno.ENOBUFS)
    directory = os.open("/", os.O_RDONLY)
    for kind in (uring.RecvMultishot, uring.RecvBundle, uring.RecvSelect, uring.SendBundle):
        fails(kind(directory, 7), errno.ENOTSOCK)
    os.close(directory)


def test_recv_multishot_is_cancelled(ring: uring.Ring, pair: Pair, provide: Provide) -> None:
    """ECANCELED without MORE."""
    number = start(ring, uring.RecvMultishot(pair[0], provide(4, 4).bgid))
    start(ring, uring.AsyncCancel(number))
    found = {cqe.user_data: cqe for cqe in (ring.copy_cqe(timeout=SECONDS) for _ in range(2))}
    assert (found[number].res, found[number].more) == (-errno.ECANCELED, False)
    assert ring.in_flight == 0


def test_recv_bundle_fills_several_buffers(
    one: One, fails: Fails, pair: Pair, provide: Provide
) -> None:
    """Whole buffers in their order, from `buffer_id` on; a tail may stay, which the flags say."""
    group = provide(8, 4)
    pair[1].send(b"0123456789")
    data, bid = b"", 0
    while len(data) < 10:
        cqe = one(uring.RecvBundle(pair[0], group.bgid))
        assert cqe.buffer_id == bid
        data += bytes(group.memory[4 * bid : 4 * bid + cqe.result()])
        bid += -(-cqe.result() // 4)
        assert bool(cqe.flags & CQEFlags.SOCK_NONEMPTY) == (len(data) < 10)
    assert (data, bid) == (b"0123456789", 3)
    pair[1].send(b"0123456789")
    assert one(uring.RecvBundle(pair[0], group.bgid, length=6)).result() <= 6
    fails(uring.RecvBundle(pair[0], 99), errno.ENOENT)
    fails(uring.RecvBundleMultishot(pair[0], 99), errno.ENOENT)


def test_recv_bundle_multishot_goes_on(
    ring: uring.Ring, drain: Drain, pair: Pair, provide: Provide
) -> None:
    """Each completion spans the buffers that its data fills; the stream's end is the last."""
    group = provide(8, 4)
    start(ring, uring.RecvBundleMultishot(pair[0], group.bgid))
    data, bid = b"", 0
    for content in (b"0123456789", b"abcdef"):
        pair[1].send(content)
        want = len(data) + len(content)
        while len(data) < want:
            cqe = ring.copy_cqe(timeout=SECONDS)
            assert (cqe.more, cqe.buffer_id) == (True, bid)
            data += bytes(group.memory[4 * bid : 4 * bid + cqe.result()])
            bid += -(-cqe.result() // 4)
    assert data == b"0123456789abcdef"
    pair[1].close()
    assert [cqe.result() for cqe in drain()] == [0]


def test_recv_bundle_multishot_limits(
    ring: uring.Ring, drain: Drain, pair: Pair, provide: Provide
) -> None:
    """`length` bounds each completion, and `total_length` ends it."""
    group = provide(8, 4)
    pair[1].send(bytes(20))
    op = uring.RecvBundleMultishot(pair[0], group.bgid, length=4, total_length=12)
    start(ring, op)
    assert [cqe.result() for cqe in drain()] == [4, 4, 4]


# ---- what becomes of the group ----


class Ringlike:
    """What a group of provided buffers looks like to an operation."""

    bgid = 7


RECEIVING: Final[list[Any]] = [
    uring.RecvSelect,
    uring.RecvMultishot,
    uring.RecvBundle,
    uring.RecvBundleMultishot,
]
SENDING: Final[list[Any]] = [uring.SendSelect, uring.SendBundle]


@pytest.mark.parametrize("kind", [*RECEIVING, *SENDING])
def test_group_object_is_pinned_and_a_number_is_not(kind: Any) -> None:
    """The pin is the group itself, by its bgid in the record."""
    group = Ringlike()
    record, pin = kind(9, group)._encode()
    assert (pin, record[40:42]) == (group, struct.pack("=H", 7))
    assert kind(9, 7)._encode()[1] is None


@pytest.mark.parametrize("kind", RECEIVING)
def test_receives_from_a_group_give_leases(kind: Any) -> None:
    """The Lease that was taken, an empty one at the end, and the number when nothing is known."""
    group = Ringlike()
    lease = Lease((memoryview(b"abc"),))
    assert kind(9, group)._result(3, lease, 1) is lease
    end = kind(9, group)._result(0, group, 0)
    assert isinstance(end, Lease)
    assert len(end) == 0
    for memory, res in ((group, 3), (None, 3), (None, 0)):
        assert kind(9, group)._result(res, memory, 0) == res


@pytest.mark.parametrize("kind", SENDING)
def test_sends_from_a_group_give_the_count(kind: Any) -> None:
    """Whatever became of the buffers; with an address both that and the group are pinned."""
    group = Ringlike()
    op = kind(9, group, address=HERE)
    _, pin = op._encode()
    assert isinstance(pin, GroupPin)
    assert pin.group is group
    lease = Lease((memoryview(b"abc"),))
    for memory in (lease, pin.with_lease(lease), pin, group, None):
        assert op._result(3, memory, 1) == 3


@pytest.mark.parametrize("kind", [*RECEIVING, uring.RecvmsgSelect])
def test_receives_from_a_group_refuse_to_count_more_than_they_got(kind: Any) -> None:
    """MSG_TRUNC may count a whole datagram: ValueError for a group object, not for a number."""
    with pytest.raises(ValueError, match="MSG_TRUNC"):
        kind(9, Ringlike(), msg_flags=socket.MSG_TRUNC).sqe()
    assert kind(9, 7, msg_flags=socket.MSG_TRUNC).sqe().op_flags & socket.MSG_TRUNC


# ---- with the rings that keep books ----


@pytest.mark.parametrize("kind", [uring.RecvSelect, uring.RecvBundle])
def test_receive_into_a_buffer_ring_gives_a_lease(
    ring: uring.Ring, one: One, pair: Pair, kind: Any
) -> None:
    """The bytes are in the lease, and the buffers go back with it; the end is an empty one."""
    group = ring.register_buffer_ring(4, size=8)
    pair[1].send(b"0123456789")
    data = b""
    while len(data) < 10:
        with one(kind(pair[0], group)).result() as lease:
            data += bytes(lease)
    assert data == b"0123456789"
    pair[1].close()
    end = one(kind(pair[0], group)).result()
    assert isinstance(end, Lease)
    assert not end
    del lease
    gc.collect()
    assert group.inside == 4


@pytest.mark.parametrize("kind", [uring.RecvMultishot, uring.RecvBundleMultishot])
def test_multishot_receive_into_a_buffer_ring_streams_leases(
    ring: uring.Ring, pair: Pair, kind: Any
) -> None:
    """Lease after lease, the bytes in order, until the peer has shut down."""
    group = ring.register_buffer_ring(4, size=8)
    data = b""
    with ring.stream(kind(pair[0], group)) as stream:
        for part in (b"0123456789", b"abcdef", b"x"):
            pair[1].send(part)
            want = len(data) + len(part)
            while len(data) < want:
                cqe = stream.take(timeout=SECONDS)
                assert cqe is not None
                with cqe.result() as lease:
                    data += bytes(lease)
        pair[1].close()
        assert stream.take(timeout=SECONDS) is None
        assert stream.outcome is uring.StreamEnd.END_OF_FILE
    assert data == b"0123456789abcdefx"


@pytest.mark.parametrize("kind", SENDING)
def test_send_from_a_send_buffer_ring(ring: uring.Ring, one: One, pair: Pair, kind: Any) -> None:
    """What was put is sent in its order, and its buffers are free again."""
    group = ring.register_send_buffer_ring(4, size=8)
    for part in (b"ab", b"cde"):
        group.put(part)
    sent = 0
    while sent < 5:
        sent += one(kind(pair[0], group)).result()
    assert received(pair[1], 5) == b"abcde"
    assert group.free == 4


def test_group_object_is_held_while_in_flight(
    ring: uring.Ring, pair: Pair, provide: Provide
) -> None:
    """It lives until the last completion was copied out, and no longer."""
    provide(4, 4, 7)
    group = Ringlike()
    alive = weakref.ref(group)
    start(ring, uring.RecvMultishot(pair[0], group))
    del group
    gc.collect()
    pair[1].send(b"ab")
    assert ring.copy_cqe(timeout=SECONDS).more
    gc.collect()
    assert alive() is not None
    pair[1].close()
    assert ring.copy_cqe(timeout=SECONDS).res == 0
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("kind", SENDING)
def test_send_from_a_send_buffer_ring_to_an_address(
    ring: uring.Ring, one: One, udp: Pair, kind: Any
) -> None:
    """The address is pinned beside the group, and the buffers are free again all the same."""
    left, right = udp
    group = ring.register_send_buffer_ring(2, size=8)
    group.put(b"ab")
    assert one(kind(left, group, address=right.getsockname())).result() == 2
    assert right.recv(9) == b"ab"
    assert group.free == 2
