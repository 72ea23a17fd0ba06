"""Messages with addresses and control data, on the real kernel."""

import array
import ctypes
import errno
import gc
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uring
from uring import _messages
from uring._leases import Lease
from uring.flags import SendRecvFlags, SQEFlags
from uring.operations._groups import GroupPin

SECONDS: Final = 10
POLL_FIRST: Final = SendRecvFlags.RECVSEND_POLL_FIRST
REPORT_USAGE: Final = SendRecvFlags.SEND_ZC_REPORT_USAGE
CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
SELECT: Final = int(SQEFlags.BUFFER_SELECT)
HERE: Final = ("127.0.0.1", 258)
BUFFER: Final = bytearray(5)
BUFFERS: Final = (BUFFER, BUFFER)
RECEIVING: Final[Any] = (
    (uring.Recvmsg, BUFFERS),
    (uring.RecvmsgSelect, 7),
    (uring.RecvmsgMultishot, 7),
)
IP_TOS: Final = (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("i", 0x10))

One = Callable[[Any], uring.CQE]
Fails = Callable[[Any, int], OSError]
Drain = Callable[[], list[uring.CQE]]
Provide = Callable[..., Any]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def udp(udp: Pair) -> Pair:
    """Give two UDP sockets, each with a name and not connected; the second tells IP_TOS."""
    udp[1].setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    return udp


@pytest.fixture
def null() -> Iterator[int]:
    """Give a descriptor to send."""
    fd = os.open("/dev/null", os.O_RDONLY)
    yield fd
    os.close(fd)


def start(ring: uring.Ring, op: uring.Operation) -> int:
    """Queue an operation and submit it."""
    number = ring.queue(op)
    ring.submit()
    return number


def rights(*fds: int) -> list[tuple[int, int, Any]]:
    """Control data that sends descriptors."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


# ---- encoding ----

RECORDS: Final[list[tuple[uring.Operation, dict[str, Any]]]] = [
    (uring.Sendmsg(9, BUFFERS, (), 3), {"msg_flags": 3}),
    (uring.Sendmsg(9, BUFFERS, ioprio_flags=POLL_FIRST), {"ioprio": 1}),
    (uring.SendmsgZc(9, BUFFERS, (), 3), {"msg_flags": 3}),
    (uring.SendmsgZc(9, BUFFERS, ioprio_flags=POLL_FIRST | REPORT_USAGE), {"ioprio": 9}),
    (
        uring.SendmsgZcFixed(9, BUFFERS, (), 3, buf_index=6),
        {"msg_flags": 3, "buf_index": 6, "ioprio": 4},
    ),
    (
        uring.SendmsgZcFixed(9, BUFFERS, buf_index=6, ioprio_flags=POLL_FIRST | REPORT_USAGE),
        {"buf_index": 6, "ioprio": 13},
    ),
    (uring.Recvmsg(9, BUFFERS), {"msg_flags": CLOEXEC}),
    (
        uring.Recvmsg(9, BUFFERS, msg_flags=3, cloexec=False, ioprio_flags=POLL_FIRST),
        {"msg_flags": 3, "ioprio": 1},
    ),
    (uring.RecvmsgSelect(9, 7), {"msg_flags": CLOEXEC, "buf_group": 7, "flags": SELECT}),
    (
        uring.RecvmsgSelect(9, 7, msg_flags=3, cloexec=False, ioprio_flags=POLL_FIRST),
        {"msg_flags": 3, "ioprio": 1, "buf_group": 7, "flags": SELECT},
    ),
    (
        uring.RecvmsgMultishot(9, 7),
        {"msg_flags": CLOEXEC, "ioprio": 2, "buf_group": 7, "flags": SELECT},
    ),
    (
        uring.RecvmsgMultishot(9, 7, msg_flags=3, cloexec=False, ioprio_flags=POLL_FIRST),
        {"msg_flags": 3, "ioprio": 3, "buf_group": 7, "flags": SELECT},
    ),
]


@pytest.mark.parametrize(("op", "expected"), RECORDS, ids=str)
def test_message_encodes_field_by_field(
    assert_record: Callable[..., None], op: uring.Operation, expected: dict[str, Any]
) -> None:
    """Each has a struct msghdr, the fields that io_uring.h gives it, and nothing anywhere else."""
    assert_record(op, fd=9, addr=..., len=1, **expected)


class Iovec(ctypes.Structure):
    """struct iovec of the C library."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    """struct msghdr of the C library."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


def msghdr(op: uring.Operation) -> tuple[Any, object]:
    """The struct msghdr that an operation points to, and what keeps it."""
    record, pin = op._encode()
    (address,) = struct.unpack_from("=Q", record, 16)
    return Msghdr.from_address(address), pin


def test_message_header_is_as_long_as_in_c() -> None:
    """Its size is that of the C library's, and the name stands behind it."""
    assert _messages._MSGHDR.size == ctypes.sizeof(Msghdr) <= _messages._NAME


SENDS: Final[list[Callable[..., uring.Operation]]] = [
    uring.Sendmsg,
    uring.SendmsgZc,
    lambda *args, **kwargs: uring.SendmsgZcFixed(*args, **kwargs, buf_index=1),
]


@pytest.mark.parametrize("kind", SENDS, ids=str)
def test_sendmsg_points_to_all_that_is_sent(kind: Callable[..., uring.Operation]) -> None:
    """Buffers, control data in the C library's form, and the address are where msghdr says."""
    buffers = [bytearray(b"ab"), bytearray(b"cde")]
    header, pin = msghdr(kind(9, buffers, [(1, 2, b"xyz"), (3, 4, b"")], 0, HERE))
    assert [ctypes.string_at(header.iov[i].base, header.iov[i].len) for i in range(2)] == buffers
    assert header.iovlen == 2
    assert header.iov[0].base == ctypes.addressof(ctypes.c_char.from_buffer(buffers[0]))
    name = ctypes.string_at(header.name, header.namelen)
    assert name == b"\2\0\1\2\x7f\0\0\1" + bytes(8)
    control = ctypes.string_at(header.control, header.controllen)
    assert control == (
        struct.pack("Nii", socket.CMSG_LEN(3), 1, 2)
        + b"xyz"
        + bytes(5)
        + struct.pack("Nii", socket.CMSG_LEN(0), 3, 4)
    )
    assert len(control) == socket.CMSG_SPACE(3) + socket.CMSG_SPACE(0)
    assert header.flags == 0
    del pin


@pytest.mark.parametrize("kind", SENDS, ids=str)
def test_sendmsg_without_the_rest_points_to_buffers_alone(
    kind: Callable[..., uring.Operation],
) -> None:
    """No address and no control data are null pointers of length 0."""
    header, pin = msghdr(kind(9, [BUFFER]))
    assert (header.name, header.namelen, header.control, header.controllen) == (None, 0, None, 0)
    assert header.iovlen == 1
    del pin


def test_recvmsg_has_room_for_what_is_wanted() -> None:
    """128 bytes for an address or none, `ancbufsize` for control data, and the buffers."""
    header, pin = msghdr(uring.Recvmsg(9, BUFFERS, ancbufsize=100))
    assert (header.namelen, header.controllen, header.iovlen) == (128, 100, 2)
    assert header.name + 128 <= header.control
    del pin
    header, pin = msghdr(uring.Recvmsg(9, [], address=False))
    assert (header.name, header.namelen, header.control, header.controllen) == (None, 0, None, 0)
    assert header.iovlen == 0
    del pin


def test_recvmsg_of_a_group_has_no_buffers_of_its_own() -> None:
    """One buffer of a length and no address, or none; a multishot has lengths alone."""
    header, pin = msghdr(uring.RecvmsgSelect(9, 7, length=300, ancbufsize=100))
    assert (header.namelen, header.controllen, header.iovlen) == (128, 100, 1)
    assert (header.iov[0].base, header.iov[0].len) == (None, 300)
    del pin
    header, pin = msghdr(uring.RecvmsgSelect(9, 7, address=False))
    assert (header.name, header.namelen, header.iovlen, bool(header.iov)) == (None, 0, 0, False)
    del pin
    header, pin = msghdr(uring.RecvmsgMultishot(9, 7, namelen=16, ancbufsize=100))
    assert (header.namelen, header.controllen, header.iovlen) == (16, 100, 0)
    assert (header.name, header.control, bool(header.iov)) == (None, None, False)
    del pin


FIXED: Final = bytearray(8)
PART: Final = uring.FixedBuffer(memoryview(FIXED), 1)
COMPAT: Final = 0x80000000
SKIP: Final = SQEFlags.CQE_SKIP_SUCCESS

WRONG: Final[list[tuple[uring.Operation, type[Exception]]]] = [
    *(
        (kind(0, *given), error)
        for kind in (uring.Sendmsg, uring.SendmsgZc)
        for given, error in (
            ((BUFFER,), TypeError),
            ((["text"],), TypeError),
            (([BUFFER] * 1025,), ValueError),
            ((BUFFERS, 5), TypeError),
            ((BUFFERS, [(1, 2)]), TypeError),
            ((BUFFERS, ((1, 2),)), TypeError),
            ((BUFFERS, [(1, 2, "text")]), TypeError),
            ((BUFFERS, ((1, 2, "text"),)), TypeError),
            ((BUFFERS, [("x", 2, b"")]), ValueError),
            ((BUFFERS, [(2**31, 2, b"")]), ValueError),
            ((BUFFERS, (), "flags"), TypeError),
            ((BUFFERS, (), COMPAT), ValueError),
            ((BUFFERS, (), -1), ValueError),
            ((BUFFERS, (), 0, 5), TypeError),
            ((BUFFERS, (), 0, ("localhost", 1)), ValueError),
        )
    ),
    (uring.Sendmsg(0, BUFFERS, ioprio_flags=SendRecvFlags.RECVSEND_BUNDLE), ValueError),
    (uring.SendmsgZc(0, BUFFERS, ioprio_flags=SendRecvFlags.RECVSEND_FIXED_BUF), ValueError),
    (uring.SendmsgZcFixed(0, BUFFERS), TypeError),
    (uring.SendmsgZcFixed(0, BUFFER, buf_index=1), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.SendmsgZcFixed(0, [PART], buf_index=2), ValueError),
    (uring.SendmsgZcFixed(0, [PART, uring.FixedBuffer(memoryview(FIXED), 2)]), ValueError),
    (uring.SendmsgZcFixed(0, [BUFFER], buf_index=2**16), ValueError),
    (uring.Recvmsg(0, [b"read-only"]), TypeError),
    (uring.Recvmsg(0, BUFFER), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    *(
        (kind(0, what, **wrong), error)
        for kind, what in RECEIVING
        for wrong, error in (
            ({"ancbufsize": -1}, ValueError),
            ({"ancbufsize": 2**31}, ValueError),
            ({"ancbufsize": "x"}, TypeError),
            ({"ancbufsize": True}, TypeError),
            ({"msg_flags": COMPAT}, ValueError),
            ({"msg_flags": 2**32}, ValueError),
            ({"msg_flags": None}, TypeError),
            ({"ioprio_flags": SendRecvFlags.RECV_MULTISHOT}, ValueError),
            ({"ancbufsize": 24, "flags": SKIP}, ValueError),
        )
    ),
    (uring.RecvmsgSelect(0, 7, length=-1), ValueError),
    (uring.RecvmsgSelect(0, 7, length=2**32), ValueError),
    (uring.RecvmsgMultishot(0, 7, namelen=129), ValueError),
    (uring.RecvmsgMultishot(0, 7, namelen=None), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.RecvmsgMultishot(0, "7"), TypeError),  # type: ignore[arg-type]  # wrong on purpose
]


@pytest.mark.parametrize(("op", "kind"), WRONG, ids=str)
def test_message_refuses_wrong_arguments(op: uring.Operation, kind: type[Exception]) -> None:
    """TypeError or ValueError before anything is queued; nothing is cut off or stays pinned."""
    with pytest.raises(kind):
        op.sqe()
    BUFFER.append(0)
    BUFFER.pop()


# ---- control data ----

PIECES: Final = st.lists(
    st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 99), st.binary(max_size=40))
)


@given(PIECES)
def test_control_data_is_parsed_as_it_was_encoded(pieces: list[tuple[int, int, bytes]]) -> None:
    """What goes in comes out, and takes the space that the socket module counts."""
    encoded = _messages.encode_control(tuple(pieces))
    assert _messages.parse_control(encoded) == tuple(pieces)
    assert len(encoded) == sum(socket.CMSG_SPACE(len(data)) for _, _, data in pieces)


@given(PIECES, st.integers(0, 200))
def test_control_data_that_is_cut_off_is_parsed_as_far_as_it_goes(
    pieces: list[tuple[int, int, bytes]], length: int
) -> None:
    """Whole pieces stay, the last may have less data, and nothing is invented."""
    found = _messages.parse_control(_messages.encode_control(tuple(pieces))[:length])
    assert len(found) <= len(pieces)
    for ours, theirs in zip(found, pieces, strict=False):
        assert ours[:2] == theirs[:2]
        assert theirs[2].startswith(ours[2])
    assert list(found[:-1]) == pieces[: max(len(found) - 1, 0)]


@given(st.binary(max_size=200))
def test_control_data_of_any_bytes_is_parsed_safely(garbage: bytes) -> None:
    """No bytes make it fail, run on without end, or give more than there is."""
    found = _messages.parse_control(garbage)
    assert sum(len(data) for _, _, data in found) <= len(garbage)
    _messages.descriptors_in(found)


def test_descriptors_are_found_in_rights_and_pidfds_alone() -> None:
    """Of SCM_RIGHTS and SCM_PIDFD every whole int that is a descriptor; of nothing else."""
    found = _messages.descriptors_in(
        [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("iii", 5, 6, -1) + b"\1\0"),
            (socket.SOL_SOCKET, 4, struct.pack("i", 7)),
            (socket.SOL_SOCKET, 4, struct.pack("i", -errno.ESRCH)),
            (socket.SOL_SOCKET, 2, struct.pack("iii", 8, 9, 10)),
            (socket.IPPROTO_IP, socket.SCM_RIGHTS, struct.pack("i", 11)),
        ]
    )
    assert found == [5, 6, 7]


def test_ancillary_data_is_copied_when_the_operation_is_made() -> None:
    """A later change of the array or the list changes nothing, and the value can be hashed."""
    numbers = array.array("i", [1])
    pieces: list[Any] = [(1, 1, numbers)]
    op = uring.Sendmsg(9, BUFFERS, pieces)
    numbers[0] = 2
    pieces.clear()
    assert op.ancillary == ((1, 1, struct.pack("i", 1)),)
    assert hash(op) == hash(uring.Sendmsg(9, BUFFERS, [(1, 1, struct.pack("i", 1))]))


# ---- one message ----


def test_sendmsg_and_recvmsg_talk(one: One, udp: Pair) -> None:
    """Several buffers, an address and control data arrive, as the socket module shows them."""
    left, right = udp
    to = right.getsockname()
    assert one(uring.Sendmsg(left, [b"ab", b"", b"cde"], [IP_TOS], address=to)).result() == 5
    buffers = [bytearray(3), bytearray(10)]
    cqe = one(uring.Recvmsg(right, buffers, ancbufsize=socket.CMSG_SPACE(1)))
    assert cqe.res == 5
    assert cqe.result() == uring.Message(
        5, ((socket.IPPROTO_IP, socket.IP_TOS, b"\x10"),), 0, left.getsockname()
    )
    assert (buffers[0], buffers[1][:2]) == (b"abc", b"de")
    assert cqe.result().descriptors() == []


def test_recvmsg_agrees_with_python(one: One, udp: Pair) -> None:
    """Length, control data, flags and address are what socket.recvmsg gives."""
    left, right = udp
    for size, ancbufsize in ((10, 100), (3, 100), (10, 5), (0, 0)):
        for _ in range(2):
            left.sendto(b"hello", right.getsockname())
        data, ancillary, flags, address = right.recvmsg(size, ancbufsize)
        message = one(uring.Recvmsg(right, [bytearray(size)], ancbufsize=ancbufsize)).result()
        assert message == uring.Message(len(data), tuple(ancillary), flags, address)


def test_recvmsg_options(ring: uring.Ring, one: One, fails: Fails, udp: Pair) -> None:
    """Without an address it is None; MSG_TRUNC tells the whole length; POLL_FIRST waits."""
    left, right = udp
    left.sendto(b"hello", right.getsockname())
    op = uring.Recvmsg(right, [bytearray(2)], address=False, msg_flags=socket.MSG_TRUNC)
    assert one(op).result() == uring.Message(5, (), socket.MSG_TRUNC | socket.MSG_CTRUNC)
    start(ring, uring.Recvmsg(right, [bytearray(9)], ioprio_flags=POLL_FIRST))
    assert not ring.copy_cqes()
    left.sendto(b"hello", right.getsockname())
    assert ring.copy_cqe(timeout=SECONDS).result().length == 5
    fails(uring.Recvmsg(right, [bytearray(2)], msg_flags=socket.MSG_DONTWAIT), errno.EAGAIN)
    fails(uring.Recvmsg(9999, [bytearray(2)]), errno.EBADF)
    fails(uring.Sendmsg(left, [b"x"]), errno.EDESTADDRREQ)
    fails(uring.Sendmsg(left, [b"x"], [(1, 99, b"")], address=right.getsockname()), errno.EINVAL)


def test_recvmsg_of_a_stream(one: One, pair: Pair) -> None:
    """There is no address; the end is 0; MSG_WAITALL fills all buffers."""
    pair[0].send(b"ab")
    assert one(uring.Recvmsg(pair[1], [bytearray(9)])).result() == uring.Message(2, (), 0, None)
    pair[0].send(b"abcdef")
    buffers = [bytearray(2), bytearray(2)]
    assert one(uring.Recvmsg(pair[1], buffers, msg_flags=socket.MSG_WAITALL)).result().length == 4
    assert buffers == [b"ab", b"cd"]
    pair[0].close()
    pair[1].recv(9)
    assert one(uring.Recvmsg(pair[1], [bytearray(9)])).result().length == 0


def test_messages_of_every_family_tell_the_address(one: One, tmp_path: Path) -> None:
    """AF_UNIX by path and abstract, and AF_INET6."""
    cases: list[tuple[int, Any]] = [
        (socket.AF_UNIX, str(tmp_path / "s")),
        (socket.AF_UNIX, b"\0uring-" + os.urandom(8)),
    ]
    if socket.has_dualstack_ipv6():
        cases.append((socket.AF_INET6, ("::1", 0)))
    for family, address in cases:
        with (
            socket.socket(family, socket.SOCK_DGRAM) as left,
            socket.socket(family, socket.SOCK_DGRAM) as right,
        ):
            left.bind(address)
            right.bind(("::1", 0) if family == socket.AF_INET6 else b"\0uring-" + os.urandom(8))
            op = uring.Sendmsg(left, [b"x"], address=right.getsockname())
            assert one(op).result() == 1
            message = one(uring.Recvmsg(right, [bytearray(1)])).result()
            assert message.address == left.getsockname()


def test_messages_take_fixed(ring: uring.Ring, one: One, pair: Pair) -> None:
    """Both ends may be registered files."""
    ring.register_files(pair)
    assert one(uring.Sendmsg(uring.Fixed(0), [b"ab"])).result() == 2
    assert one(uring.Recvmsg(uring.Fixed(1), [bytearray(9)])).result().length == 2


def test_messages_keep_temporaries_alive(ring: uring.Ring, udp: Pair) -> None:
    """Buffers, address and control data may be gone before the kernel looks."""
    left, right = udp
    ring.queue(
        uring.Sendmsg(left, [b"a" * 1000, bytearray(1000)], [IP_TOS], address=right.getsockname())
    )
    gc.collect()
    filler = [bytes(1000) for _ in range(100)]
    ring.submit()
    assert ring.copy_cqe(timeout=SECONDS).result() == 2000
    data, ancillary, _, address = right.recvmsg(9999, 100)
    assert (data, address) == (b"a" * 1000 + bytes(1000), left.getsockname())
    assert ancillary == [(socket.IPPROTO_IP, socket.IP_TOS, b"\x10")]
    buffer = bytearray(10)
    start(ring, uring.Recvmsg(right, [buffer], ancbufsize=100))
    with pytest.raises(BufferError):
        buffer.append(0)
    gc.collect()
    left.sendto(b"hello", right.getsockname())
    cqe = ring.copy_cqe(timeout=SECONDS)
    ring.close()
    gc.collect()
    assert cqe.result().address == left.getsockname()
    assert cqe.result() == cqe.result()
    del filler


def test_recvmsg_in_a_batch_has_a_room_for_each_run(ring: uring.Ring, udp: Pair) -> None:
    """Results of an earlier run stay as they were."""
    left, right = udp
    batch = uring.Batch([uring.Recvmsg(right, [bytearray(9)], ancbufsize=100)])
    left.sendto(b"a", right.getsockname())
    first = ring.run(batch)
    right.sendto(b"bc", right.getsockname())
    second = ring.run(batch)
    assert (first[0].result().length, first[0].result().address) == (1, left.getsockname())
    assert (second[0].result().length, second[0].result().address) == (2, right.getsockname())


def test_sendmsg_zc_sends_all_in_order(ring: uring.Ring, drain: Drain, udp: Pair) -> None:
    """Buffers, address and control data go, in two completions."""
    left, right = udp
    op = uring.SendmsgZc(left, [b"ab", b"c"], [IP_TOS], address=right.getsockname())
    start(ring, op)
    result, notification = drain()
    assert (result.result(), notification.is_notification) == (3, True)
    assert right.recvmsg(9, 100) == (
        b"abc",
        [(socket.IPPROTO_IP, socket.IP_TOS, b"\x10")],
        0,
        left.getsockname(),
    )


# ---- descriptors ----


@pytest.mark.parametrize("cloexec", [True, False])
def test_descriptors_are_received(one: One, pair: Pair, null: int, *, cloexec: bool) -> None:
    """They are new ones of the same file, closed on exec unless told otherwise."""
    assert one(uring.Sendmsg(pair[0], [b"x"], rights(null, null))).result() == 1
    space = socket.CMSG_SPACE(8)
    message = one(
        uring.Recvmsg(pair[1], [bytearray(1)], ancbufsize=space, cloexec=cloexec)
    ).result()
    fds = message.descriptors()
    assert len(set(fds)) == 2
    for fd in fds:
        assert os.path.sameopenfile(fd, null)
        assert os.get_inheritable(fd) is not cloexec
        os.close(fd)
    assert message.msg_flags == 0


def test_descriptors_without_room_are_closed_by_the_kernel(
    one: One, pair: Pair, null: int, descriptors: Callable[[], set[str]]
) -> None:
    """Control data that is cut off is marked CTRUNC, and holds the descriptors that there are."""
    for space, count in ((0, 0), (10, 0), (socket.CMSG_LEN(4), 1)):
        pair[0].sendmsg([b"x"], rights(null, null))
        before = descriptors()
        message = one(uring.Recvmsg(pair[1], [bytearray(1)], ancbufsize=space)).result()
        assert message.msg_flags & socket.MSG_CTRUNC
        assert len(message.descriptors()) == len(descriptors() - before) == count
        for fd in message.descriptors():
            os.close(fd)


def test_descriptors_that_nobody_collects_are_closed(
    ring: uring.Ring, descriptors: Callable[[], set[str]], pair: Pair, null: int
) -> None:
    """Those of a message that was not copied out are closed with the ring."""
    start(ring, uring.Recvmsg(pair[1], [bytearray(1)], ancbufsize=100))
    before = descriptors()
    pair[0].sendmsg([b"x"], rights(null, null))
    ring.submit_and_wait(1, timeout=SECONDS)
    assert len(descriptors() - before) == 2
    ring.close()
    assert not descriptors() - before


def test_descriptors_in_a_run_that_is_left_are_closed(
    ring: uring.Ring, descriptors: Callable[[], set[str]], pair: Pair, null: int
) -> None:
    """A run that times out gives no results, and closes what was received."""
    pair[0].sendmsg([b"x"], rights(null))
    before = descriptors()
    left, right = socket.socketpair()
    with left, right:
        ops = [
            uring.Recvmsg(pair[1], [bytearray(1)], ancbufsize=100),
            uring.Recvmsg(right, [bytearray(1)], ancbufsize=100),
        ]
        with pytest.raises(TimeoutError):
            ring.run(ops, timeout=0.05)
    assert not descriptors() - before


def test_messages_share_no_user_data(ring: uring.Ring, pair: Pair) -> None:
    """What may hold descriptors has its number to itself: ValueError for another, of any kind."""
    start(ring, uring.Recvmsg(pair[1], [bytearray(1)], user_data=5))
    others: list[uring.Operation] = [
        uring.Recvmsg(pair[1], [bytearray(1)], user_data=5),
        uring.Nop(user_data=5),
        uring.RecvmsgSelect(pair[1], 7, user_data=5),
        uring.RecvmsgMultishot(pair[1], 7, user_data=5),
    ]
    for other in others:
        with pytest.raises(ValueError, match="user_data 0x5 is in use"):
            ring.queue(other)
    pair[0].send(b"x")
    assert ring.copy_cqe(timeout=SECONDS).result().length == 1


def test_message_result_without_its_room_is_none() -> None:
    """When the memory is not known there is no message, and no descriptor in it."""
    for op in (uring.Recvmsg(3, BUFFERS), uring.RecvmsgSelect(3, 7)):
        assert op._result(5, None, 0) is None
        assert list(op._descriptors(5, None, 0)) == []


# ---- groups of provided buffers ----


def leased(view: memoryview) -> Lease:
    """A lease of one buffer, as the ring makes them."""
    return Lease((view,))


class Ringlike:
    """What a group of provided buffers looks like to an operation."""

    bgid = 7


def test_recvmsg_select_fills_a_buffer_of_the_group(
    ring: uring.Ring, one: One, fails: Fails, udp: Pair, provide: Provide
) -> None:
    """The data is in the buffer, and address and control data in the message."""
    left, right = udp
    group = provide(4, 8)
    start(ring, uring.RecvmsgSelect(right, group.bgid, ancbufsize=100))
    assert not ring.copy_cqes()
    left.sendto(b"hello", right.getsockname())
    cqe = ring.copy_cqe(timeout=SECONDS)
    assert group[cqe.buffer_id] == b"hello\0\0\0"
    assert cqe.result() == uring.Message(
        5, ((socket.IPPROTO_IP, socket.IP_TOS, b"\0"),), 0, left.getsockname()
    )
    left.sendto(b"hello", right.getsockname())
    cqe = one(uring.RecvmsgSelect(right, group.bgid, length=3, address=False))
    assert group[cqe.buffer_id] == b"hel\0\0\0\0\0"
    truncated = socket.MSG_TRUNC | socket.MSG_CTRUNC
    assert cqe.result() == uring.Message(3, (), truncated)
    fails(uring.RecvmsgSelect(right, 99), errno.ENOBUFS)


def test_recvmsg_select_gives_the_lease() -> None:
    """Its pin holds group and room; with a Lease the message has that and its bytes."""
    group = Ringlike()
    op = uring.RecvmsgSelect(9, group, ancbufsize=100)
    _, pin = op._encode()
    assert isinstance(pin, GroupPin)
    assert pin.group is group
    lease = leased(memoryview(b"hello"))
    message = op._result(5, pin.with_lease(lease), 1)
    assert message is not None
    assert (message.lease, message.payload, message.length) == (lease, b"hello", 5)
    assert op._result(5, pin, 0) == attrs.evolve(message, lease=None, payload=None)


def test_recvmsg_select_closes_descriptors_that_nobody_collects(
    ring: uring.Ring, descriptors: Callable[[], set[str]], pair: Pair, null: int, provide: Provide
) -> None:
    """Control data is in memory of the ring's, so they are closed whatever the group is."""
    group = provide(4, 8)
    pair[0].sendmsg([b"x"], rights(null))
    before = descriptors()
    start(ring, uring.RecvmsgSelect(pair[1], group.bgid, ancbufsize=100))
    ring.submit_and_wait(1, timeout=SECONDS)
    assert len(descriptors() - before) == 1
    ring.close()
    assert not descriptors() - before


def decoded(op: uring.RecvmsgMultishot, group: Any, cqe: uring.CQE) -> uring.Message:
    """The message in the buffer of a completion, as if the ring had leased it."""
    lease = leased(memoryview(group[cqe.buffer_id])[: cqe.res])
    pin = GroupPin(group, None).with_lease(lease)
    message = op._result(cqe.res, pin, cqe.flags)
    assert isinstance(message, uring.Message)
    assert message.lease is lease
    return message


def test_recvmsg_multishot_gives_message_after_message(
    ring: uring.Ring, drain: Drain, udp: Pair, provide: Provide
) -> None:
    """Each buffer holds header, address, control data and data; then it is ENOBUFS."""
    left, right = udp
    space = socket.CMSG_SPACE(1)
    group = provide(2, 16 + 16 + space + 8)
    op = uring.RecvmsgMultishot(right, group.bgid, namelen=16, ancbufsize=space)
    start(ring, op)
    gc.collect()
    for content, flags in ((b"hello", 0), (b"0123456789", socket.MSG_TRUNC)):
        left.sendto(content, right.getsockname())
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert cqe.more
        assert cqe.result() == cqe.res == 16 + 16 + space + len(content[:8])
        message = decoded(op, group, cqe)
        assert message.payload == content[:8]
        assert (message.msg_flags, message.address) == (flags, left.getsockname())
        assert message.ancillary == ((socket.IPPROTO_IP, socket.IP_TOS, b"\0"),)
        assert message.length == len(content[:8])
    left.sendto(b"x", right.getsockname())
    (last,) = drain()
    assert last.res == -errno.ENOBUFS
    assert ring.in_flight == 0


def test_recvmsg_multishot_tells_what_was_cut_off(
    ring: uring.Ring, udp: Pair, provide: Provide
) -> None:
    """A name that does not fit is a Sockaddr, the whole length comes with MSG_TRUNC."""
    left, right = udp
    group = provide(4, 16 + 4 + 8)
    op = uring.RecvmsgMultishot(right, group.bgid, namelen=4, msg_flags=socket.MSG_TRUNC)
    start(ring, op)
    left.sendto(b"0123456789", right.getsockname())
    message = decoded(op, group, ring.copy_cqe(timeout=SECONDS))
    assert (message.length, message.payload) == (10, b"01234567")
    assert message.msg_flags == socket.MSG_TRUNC | socket.MSG_CTRUNC
    port = left.getsockname()[1].to_bytes(2, "big")
    assert message.address == uring.Sockaddr(struct.pack("=H", socket.AF_INET) + port)


def test_recvmsg_multishot_without_a_name(ring: uring.Ring, udp: Pair, provide: Provide) -> None:
    """With `namelen` 0 the address is None."""
    left, right = udp
    group = provide(4, 24)
    op = uring.RecvmsgMultishot(right, group.bgid, namelen=0)
    start(ring, op)
    left.sendto(b"ab", right.getsockname())
    message = decoded(op, group, ring.copy_cqe(timeout=SECONDS))
    assert (message.address, message.payload) == (None, b"ab")


@pytest.mark.parametrize("is_stream", [False, True])
def test_recvmsg_multishot_ends_with_a_message_without_data(
    ring: uring.Ring, drain: Drain, udp: Pair, pair: Pair, provide: Provide, *, is_stream: bool
) -> None:
    """The end of a stream is one, and so is an empty datagram: no MORE."""
    group = provide(4, 64)
    op = uring.RecvmsgMultishot((pair if is_stream else udp)[1], group.bgid, namelen=16)
    start(ring, op)
    if is_stream:
        pair[0].send(b"ab")
        pair[0].close()
    else:
        udp[0].sendto(b"ab", udp[1].getsockname())
        udp[0].sendto(b"", udp[1].getsockname())
    assert [bytes(decoded(op, group, cqe).payload or b"") for cqe in drain()] == [b"ab", b""]


def test_recvmsg_multishot_fails_as_the_kernel_says(
    ring: uring.Ring, drain: Drain, fails: Fails, udp: Pair, provide: Provide
) -> None:
    """A buffer too short for what is before the data is EFAULT, MSG_WAITALL EINVAL."""
    group = provide(4, 16 + 15)
    left, right = udp
    fails(uring.RecvmsgMultishot(right, 7, msg_flags=socket.MSG_WAITALL), errno.EINVAL)
    fails(uring.RecvmsgMultishot(right, 99), errno.ENOBUFS)
    left.sendto(b"ab", right.getsockname())
    start(ring, uring.RecvmsgMultishot(right, group.bgid, namelen=16))
    (last,) = drain()
    assert last.res == -errno.EFAULT


def test_recvmsg_multishot_of_too_short_a_buffer_is_a_value_error() -> None:
    """What cannot hold the header, the address and the control data is no message."""
    op = uring.RecvmsgMultishot(9, Ringlike(), namelen=16, ancbufsize=24)
    whole = memoryview(bytes(16 + 16 + 24))
    message = op._result(56, leased(whole), 1)
    assert isinstance(message, uring.Message)
    assert (message.payload, message.address, message.ancillary) == (b"", None, ())
    with pytest.raises(ValueError, match="the buffer has 55 bytes"):
        op._result(55, leased(whole[:55]), 1)


def test_recvmsg_multishot_never_reads_past_its_parts() -> None:
    """Lengths in the header that are larger than the parts are cut to them."""
    op = uring.RecvmsgMultishot(9, Ringlike(), namelen=4, ancbufsize=24)
    header = struct.pack("=IIII", 1000, 1000, 1000, 0)
    name = struct.pack("=HH", socket.AF_INET, 1)
    control = struct.pack("Nii", 2000, 1, 1) + struct.pack("ii", 5, 6)
    message = op._result(0, leased(memoryview(header + name + control + b"xyz")), 1)
    assert isinstance(message, uring.Message)
    assert (message.length, message.payload) == (1000, b"xyz")
    assert message.address == uring.Sockaddr(name)
    assert message.ancillary == ((1, 1, struct.pack("ii", 5, 6)),)


def test_recvmsg_multishot_knows_the_descriptors_in_its_lease(
    ring: uring.Ring, pair: Pair, null: int, provide: Provide
) -> None:
    """Control data in the buffer names new descriptors; without the lease nobody knows of them."""
    space = socket.CMSG_SPACE(4)
    group = provide(4, 128)
    op = uring.RecvmsgMultishot(pair[1], group.bgid, namelen=0, ancbufsize=space)
    start(ring, op)
    pair[0].sendmsg([b"x"], rights(null))
    cqe = ring.copy_cqe(timeout=SECONDS)
    (fd,) = decoded(op, group, cqe).descriptors()
    assert os.path.sameopenfile(fd, null)
    assert not os.get_inheritable(fd)
    lease = leased(memoryview(group[cqe.buffer_id])[: cqe.res])
    assert list(op._descriptors(cqe.res, lease, cqe.flags)) == [fd]
    assert list(op._descriptors(cqe.res, None, cqe.flags)) == []
    os.close(fd)


# ---- with the rings that keep books ----


def test_recvmsg_select_into_a_buffer_ring(ring: uring.Ring, one: One, udp: Pair) -> None:
    """The message has the lease, whose buffer goes back when both are gone."""
    left, right = udp
    group = ring.register_buffer_ring(2, size=8)
    left.sendto(b"hello", right.getsockname())
    message = one(uring.RecvmsgSelect(right, group, ancbufsize=100)).result()
    assert (message.payload, message.address) == (b"hello", left.getsockname())
    assert message.ancillary == ((socket.IPPROTO_IP, socket.IP_TOS, b"\0"),)
    assert group.inside == 1
    del message
    gc.collect()
    assert group.inside == 2


def test_recvmsg_multishot_into_a_buffer_ring(
    ring: uring.Ring, descriptors: Callable[[], set[str]], pair: Pair, null: int
) -> None:
    """Each message has its lease; descriptors that nobody has seen are closed with the stream."""
    space = socket.CMSG_SPACE(4)
    group = ring.register_buffer_ring(4, size=128)
    op = uring.RecvmsgMultishot(pair[1], group, namelen=0, ancbufsize=space)
    with ring.stream(op) as stream:
        pair[0].sendmsg([b"first"], rights(null))
        cqe = stream.take(timeout=SECONDS)
        assert cqe is not None
        message = cqe.result()
        assert message.payload == b"first"
        (fd,) = message.descriptors()
        os.close(fd)
        before = descriptors()
        pair[0].sendmsg([b"second"], rights(null))
        while not ring.cq_ready():
            ring.submit_and_wait(1, timeout=SECONDS)
        assert len(descriptors() - before) == 1
    assert not descriptors() - before
    del cqe, message
    gc.collect()
    assert group.inside == 4


def test_recvmsg_descriptors_in_a_buffer_ring_are_closed_with_the_ring(
    ring: uring.Ring, descriptors: Callable[[], set[str]], pair: Pair, null: int
) -> None:
    """A message that lies in the completion queue when the ring closes leaks nothing."""
    group = ring.register_buffer_ring(4, size=128)
    space = socket.CMSG_SPACE(4)
    ring.queue(uring.RecvmsgMultishot(pair[1], group, namelen=0, ancbufsize=space))
    ring.submit()
    before = descriptors()
    pair[0].sendmsg([b"x"], rights(null))
    while not ring.cq_ready():
        ring.submit_and_wait(1, timeout=SECONDS)
    assert len(descriptors() - before) == 1
    ring.close()
    assert not descriptors() - before
