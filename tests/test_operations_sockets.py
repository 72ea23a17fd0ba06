"""Making, naming and connecting sockets, and asking them things, on the real kernel."""

import contextlib
import ctypes
import errno
import gc
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

import uring
from uring.flags import AcceptFlags, CQEFlags, SetupFlags, SQEFlags

SECONDS: Final = 10
ALLOC: Final = 0xFFFFFFFF  # IORING_FILE_INDEX_ALLOC
SO_GET_FILTER: Final = 26
SO_PEERPIDFD: Final = 77
SO_TIMESTAMPING: Final = 37

One = Callable[[Any], uring.CQE]
Fails = Callable[[Any, int], OSError]
Drain = Callable[[], list[uring.CQE]]
AssertRecord = Callable[..., None]


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    """Give a UDP socket with a name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def connect(listener: socket.socket, count: int) -> list[socket.socket]:
    """Connect clients, which wait to be accepted."""
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


# ---- encoding ----

STREAM: Final = int(socket.SOCK_STREAM)
CLOEXEC: Final = int(socket.SOCK_CLOEXEC)
DONTWAIT, POLL_FIRST = AcceptFlags.DONTWAIT, AcceptFlags.POLL_FIRST

RECORDS: Final[list[tuple[uring.Operation, dict[str, Any]]]] = [
    (uring.Socket(), {"fd": 2, "off": STREAM | CLOEXEC}),
    (uring.Socket(10, 2, 17, cloexec=False), {"fd": 10, "off": 2, "len": 17}),
    (uring.Socket(slot=uring.Fixed(3)), {"fd": 2, "off": STREAM, "file_index": 4}),
    (uring.Socket(slot=uring.AUTO), {"fd": 2, "off": STREAM, "file_index": ALLOC}),
    (uring.Accept(9), {"fd": 9, "accept_flags": CLOEXEC}),
    (uring.Accept(9, cloexec=False, accept_flags=0o4000), {"fd": 9, "accept_flags": 0o4000}),
    (uring.Accept(9, slot=uring.Fixed(0)), {"fd": 9, "file_index": 1}),
    (uring.Accept(9, slot=uring.AUTO), {"fd": 9, "file_index": ALLOC}),
    (
        uring.Accept(9, address=True, slot=uring.AUTO),
        {"fd": 9, "addr": ..., "addr2": ..., "file_index": ALLOC},
    ),
    (uring.Accept(9, ioprio_flags=DONTWAIT), {"fd": 9, "accept_flags": CLOEXEC, "ioprio": 2}),
    (uring.Accept(9, ioprio_flags=POLL_FIRST), {"fd": 9, "accept_flags": CLOEXEC, "ioprio": 4}),
    (uring.AcceptMultishot(9), {"fd": 9, "accept_flags": CLOEXEC, "ioprio": 1}),
    (uring.AcceptMultishot(9, slot=uring.AUTO), {"fd": 9, "file_index": ALLOC, "ioprio": 1}),
    (
        uring.AcceptMultishot(
            9, accept_flags=0o4000, ioprio_flags=DONTWAIT | POLL_FIRST, cloexec=False
        ),
        {"fd": 9, "accept_flags": 0o4000, "ioprio": 7},
    ),
    (uring.Bind(9, ("127.0.0.1", 80)), {"fd": 9, "addr": ..., "addr2": 16}),
    (uring.Bind(9, ("::1", 80)), {"fd": 9, "addr": ..., "addr2": 28}),
    (uring.Bind(9, uring.Sockaddr(bytes(12))), {"fd": 9, "addr": ..., "addr2": 12}),
    (uring.Connect(9, ("127.0.0.1", 80)), {"fd": 9, "addr": ..., "addr2": 16}),
    (uring.Listen(9, 77), {"fd": 9, "len": 77}),
    (uring.Shutdown(9, 2), {"fd": 9, "len": 2}),
    (
        uring.Getsockopt(9, level=1, optname=7),
        {"fd": 9, "cmd_op": 2, "level": 1, "optname": 7, "optlen": 4, "optval": ...},
    ),
    (
        uring.Setsockopt(9, level=6, optname=1, value=b"abc"),
        {"fd": 9, "cmd_op": 3, "level": 6, "optname": 1, "optlen": 3, "optval": ...},
    ),
    (
        uring.Setsockopt(9, level=6, optname=1, value=-1),
        {"fd": 9, "cmd_op": 3, "level": 6, "optname": 1, "optlen": 4, "optval": ...},
    ),
    (uring.Siocinq(9), {"fd": 9}),
    (uring.Siocoutq(9), {"fd": 9, "cmd_op": 1}),
    (uring.TxTimestamp(9), {"fd": 9, "cmd_op": 4}),
    (uring.Getsockname(9), {"fd": 9, "cmd_op": 5, "addr": ..., "addr3": ...}),
    (
        uring.Getsockname(9, peer=True),
        {"fd": 9, "cmd_op": 5, "addr": ..., "addr3": ..., "optlen": 1},
    ),
]


@pytest.mark.parametrize(("op", "expected"), RECORDS, ids=str)
def test_socket_operation_encodes_field_by_field(
    assert_record: AssertRecord, op: uring.Operation, expected: dict[str, Any]
) -> None:
    """Each has the fields that io_uring.h gives it, and nothing anywhere else."""
    assert_record(op, **expected)


def test_socket_options_are_read_from_and_written_to_pinned_memory() -> None:
    """The value that the record points to is the one that was given, as the kernel reads it."""
    for value, expected in (
        (7, struct.pack("i", 7)),
        (bytearray(b"abc"), b"abc"),
        (True, b"\1\0\0\0"),
    ):
        op = uring.Setsockopt(0, level=1, optname=2, value=value)
        record, pin = op._encode()
        address = int.from_bytes(record[48:56], sys.byteorder)
        assert ctypes.string_at(address, len(expected)) == expected
        del pin


WRONG: Final[list[tuple[uring.Operation, type[Exception]]]] = [
    (uring.Socket(slot=3), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Socket("inet"), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Accept(0, slot="auto"), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Accept(0, ioprio_flags=AcceptFlags.MULTISHOT), ValueError),
    (uring.Accept(0, ioprio_flags=True), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.AcceptMultishot(0, slot=uring.Fixed(1)), ValueError),
    (uring.AcceptMultishot(0, slot=1), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.AcceptMultishot(0, ioprio_flags=uring.SendRecvFlags(4)), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Bind(0, ("localhost", 1)), ValueError),
    (uring.Bind(0, 5), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Listen(0, -1), ValueError),
    (uring.Listen(0, 2**32), ValueError),
    (uring.Getsockopt(0, level="x", optname=1), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Getsockopt(0, level=1, optname=2**31), ValueError),
    (uring.Getsockopt(0, level=1, optname=1, optlen=-1), ValueError),
    (uring.Getsockopt(0, level=1, optname=1, optlen=2**31), ValueError),
    (uring.Getsockopt(0, level=1, optname=1, optlen=True), TypeError),
    (uring.Setsockopt(0, level=1, optname=1, value=2**31), ValueError),
    (uring.Setsockopt(0, level=1, optname=1, value="on"), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Setsockopt(0, level=1, optname=1, value=None), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (
        uring.Getsockopt(0, level=1, optname=SO_PEERPIDFD, flags=SQEFlags.CQE_SKIP_SUCCESS),
        ValueError,
    ),
]


@pytest.mark.parametrize(("op", "kind"), WRONG, ids=str)
def test_socket_operation_refuses_wrong_arguments(
    op: uring.Operation, kind: type[Exception]
) -> None:
    """TypeError or ValueError before anything is queued, and nothing is cut off."""
    with pytest.raises(kind):
        op.sqe()


@pytest.mark.parametrize(
    ("encoded", "kind"),
    [("x", TypeError), (b"", ValueError), (b"a", ValueError), (bytes(129), ValueError)],
)
def test_sockaddr_refuses_what_is_no_address(encoded: Any, kind: type[Exception]) -> None:
    """It takes bytes, 2..128 of them."""
    with pytest.raises(kind):
        uring.Sockaddr(encoded)


def test_sockaddr_knows_its_family() -> None:
    """`family` is what the first two bytes say."""
    assert uring.Sockaddr(struct.pack("=HI", socket.AF_VSOCK, 1)).family == socket.AF_VSOCK


# ---- registered files ----


def test_socket_makes_registered_files(
    ring: uring.Ring, descriptors: Callable[[], set[str]], one: One, fails: Fails
) -> None:
    """A slot is filled and is the result; AUTO takes free ones, then ENFILE; no descriptor."""
    ring.register_files([-1] * 3)
    before = descriptors()
    assert one(uring.Socket(slot=uring.Fixed(1))).result() == uring.Fixed(1)
    others = {one(uring.Socket(slot=uring.AUTO)).result() for _ in range(2)}
    assert others == {uring.Fixed(0), uring.Fixed(2)}
    fails(uring.Socket(slot=uring.AUTO), errno.ENFILE)
    fails(uring.Socket(slot=uring.Fixed(3)), errno.EINVAL)
    fails(uring.Socket(type=STREAM | CLOEXEC, slot=uring.Fixed(0)), errno.EINVAL)
    assert descriptors() == before


def test_slot_without_a_table_is_a_failure(fails: Fails) -> None:
    """AUTO is ENFILE and a slot ENXIO when no files are registered."""
    fails(uring.Socket(slot=uring.AUTO), errno.ENFILE)
    fails(uring.Socket(slot=uring.Fixed(0)), errno.ENXIO)


def test_fixed_socket_is_bound_listens_accepts_and_talks(
    ring: uring.Ring, one: One, fails: Fails
) -> None:
    """A server that has no descriptor but its client's: every step takes Fixed."""
    ring.register_files([-1] * 3)
    server = one(uring.Socket(slot=uring.AUTO)).result()
    assert (
        one(
            uring.Setsockopt(server, level=socket.SOL_SOCKET, optname=socket.SO_REUSEADDR, value=1)
        ).result()
        == 0
    )
    for port in range(20000 + os.getpid() % 20000, 60000):
        if (bound := one(uring.Bind(server, ("127.0.0.1", port)))).res != -errno.EADDRINUSE:
            break
    assert bound.result() == 0
    assert one(uring.Listen(server, 5)).result() == 0
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, address = one(uring.Accept(server, address=True, slot=uring.AUTO)).result()
        assert (served, address) == (uring.Fixed(1), client.getsockname())
        assert one(uring.Send(served, b"hello")).result() == 5
        assert client.recv(9) == b"hello"
    assert one(uring.Accept(server, ioprio_flags=DONTWAIT)).res == -errno.EAGAIN
    second = socket.create_connection(("127.0.0.1", port))
    assert one(uring.Accept(server, slot=uring.Fixed(2))).result() == uring.Fixed(2)
    second.close()
    assert one(uring.Recv(uring.Fixed(2), bytearray(1))).result() == 0
    assert one(uring.Shutdown(server, socket.SHUT_RDWR)).result() == 0
    fails(uring.Accept(server), errno.EINVAL)


# ---- accept ----


def test_accept_dontwait_fails_when_nobody_waits(
    one: One, fails: Fails, listener: socket.socket
) -> None:
    """EAGAIN at once without a connection; with one, it is accepted."""
    fails(uring.Accept(listener, ioprio_flags=DONTWAIT), errno.EAGAIN)
    (client,) = connect(listener, 1)
    with client:
        os.close(one(uring.Accept(listener, ioprio_flags=DONTWAIT)).result())


def test_accept_poll_first_waits(ring: uring.Ring, listener: socket.socket) -> None:
    """Nothing completes until somebody connects."""
    ring.queue(uring.Accept(listener, ioprio_flags=POLL_FIRST))
    ring.submit()
    assert not ring.copy_cqes()
    (client,) = connect(listener, 1)
    with client:
        os.close(ring.copy_cqe(timeout=SECONDS).result())


@pytest.mark.parametrize("cloexec", [True, False])
def test_accept_multishot_gives_one_descriptor_each(
    ring: uring.Ring, listener: socket.socket, *, cloexec: bool
) -> None:
    """Every connection is a completion with MORE; cancelling ends it with ECANCELED."""
    number = ring.queue(
        uring.AcceptMultishot(listener, cloexec=cloexec, accept_flags=socket.SOCK_NONBLOCK)
    )
    ring.submit()
    for client in connect(listener, 3):
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert cqe.more
        fd = cqe.result()
        assert os.get_inheritable(fd) is not cloexec
        assert not os.get_blocking(fd)
        with client, socket.socket(fileno=fd) as served:
            assert served.getpeername() == client.getsockname()
    assert ring.in_flight == 1
    ring.queue(uring.AsyncCancel(number))
    ring.submit()
    found = {cqe.user_data: cqe for cqe in (ring.copy_cqe(timeout=SECONDS) for _ in range(2))}
    assert found.pop(number).res == -errno.ECANCELED
    assert [cqe.result() for cqe in found.values()] == [0]
    assert ring.in_flight == 0


def test_accept_multishot_fills_slots_until_there_are_none(
    ring: uring.Ring, descriptors: Callable[[], set[str]], drain: Drain, listener: socket.socket
) -> None:
    """With AUTO each is a registered file; the one too many ends it with ENFILE."""
    ring.register_files([-1] * 2)
    before = descriptors()
    clients = connect(listener, 3)
    ring.queue(uring.AcceptMultishot(listener, slot=uring.AUTO))
    ring.submit()
    first, second, last = drain()
    assert [first.result(), second.result()] == [uring.Fixed(0), uring.Fixed(1)]
    assert last.res == -errno.ENFILE
    for client in clients:
        client.close()
    assert descriptors() == before


def test_accept_multishot_dontwait_ends_when_nobody_waits(
    ring: uring.Ring, drain: Drain, listener: socket.socket
) -> None:
    """Those who wait are accepted, and then it is EAGAIN without MORE."""
    clients = connect(listener, 2)
    ring.queue(uring.AcceptMultishot(listener, ioprio_flags=DONTWAIT))
    ring.submit()
    *accepted, last = drain()
    assert len(accepted) == len(clients)
    assert last.res == -errno.EAGAIN
    for cqe, client in zip(accepted, clients, strict=True):
        os.close(cqe.result())
        client.close()


def test_accept_multishot_descriptors_that_nobody_collects_are_closed(
    ring: uring.Ring, descriptors: Callable[[], set[str]], listener: socket.socket
) -> None:
    """Three connections that were accepted and not copied out are closed with the ring."""
    ring.queue(uring.AcceptMultishot(listener))
    ring.submit()
    clients = connect(listener, 3)
    while ring.cq_ready() < 3:
        ring.submit_and_wait(1, timeout=SECONDS)
    before = descriptors()
    ring.close()
    assert len(before - descriptors()) == 3 + 1
    for client in clients:
        assert client.recv(1) == b""
        client.close()


def test_accept_multishot_of_what_does_not_listen_is_einval(
    fails: Fails, udp: socket.socket
) -> None:
    """One completion, EOPNOTSUPP for a UDP socket and EINVAL for a TCP one, without MORE."""
    fails(uring.AcceptMultishot(udp), errno.EOPNOTSUPP)
    with socket.socket() as sock:
        fails(uring.AcceptMultishot(sock), errno.EINVAL)


def test_accept_multishot_is_refused_in_a_run(ring: uring.Ring, listener: socket.socket) -> None:
    """A run has one result for each operation: ValueError for what posts any number."""
    many: list[uring.Operation] = [
        uring.AcceptMultishot(listener),
        uring.RecvMultishot(listener, 1),
        uring.RecvBundleMultishot(listener, 1),
        uring.RecvmsgMultishot(listener, 1),
        uring.SendBundle(listener, 1),
        uring.RecvZc(listener),
        uring.TxTimestamp(listener),
    ]
    for op in many:
        with pytest.raises(ValueError, match="multishot"):
            ring.run([op])


# ---- bind and listen ----


def test_bind_names_a_socket(one: One, fails: Fails, tmp_path: Path) -> None:
    """By every family the name is the one given; AF_UNIX without one gets an abstract name."""
    with socket.socket() as sock:
        assert one(uring.Bind(sock, ("127.0.0.1", 0))).result() == 0
        assert sock.getsockname()[0] == "127.0.0.1"
        taken = sock.getsockname()
        sock.listen()
        with socket.socket() as another:
            fails(uring.Bind(another, taken), errno.EADDRINUSE)
        fails(uring.Bind(sock, taken), errno.EINVAL)
    for name, shown in ((str(tmp_path / "s"), str(tmp_path / "s")), (b"\0uring-x", b"\0uring-x")):
        with socket.socket(socket.AF_UNIX) as sock:
            assert one(uring.Bind(sock, name)).result() == 0
            assert sock.getsockname() == shown
    with socket.socket(socket.AF_UNIX) as sock:
        assert one(uring.Bind(sock, "")).result() == 0
        assert sock.getsockname().startswith(b"\0")


def test_bind_of_an_inet6_socket(one: One) -> None:
    """A name with a colon is of AF_INET6."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_INET6) as sock:
        assert one(uring.Bind(sock, ("::1", 0))).result() == 0
        assert sock.getsockname()[0] == "::1"


def test_bind_takes_a_raw_address_of_another_family(one: One, fails: Fails) -> None:
    """A Sockaddr goes to the kernel as it is: AF_NETLINK here."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        address = struct.pack("=HHII", socket.AF_NETLINK, 0, 0, 0)
        assert one(uring.Bind(sock, uring.Sockaddr(address))).result() == 0
        assert sock.getsockname()[0] != 0
        fails(uring.Bind(sock, uring.Sockaddr(address[:4])), errno.EINVAL)


def test_bind_and_listen_on_what_is_no_socket_are_enotsock(fails: Fails) -> None:
    """ENOTSOCK for both; a UDP socket cannot listen, EOPNOTSUPP."""
    directory = os.open("/", os.O_RDONLY)
    fails(uring.Bind(directory, ("127.0.0.1", 0)), errno.ENOTSOCK)
    fails(uring.Listen(directory), errno.ENOTSOCK)
    os.close(directory)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fails(uring.Listen(sock), errno.EOPNOTSUPP)


def test_bind_keeps_a_copy_of_its_address(ring: uring.Ring) -> None:
    """The operation and its address may be gone before the kernel looks."""
    with socket.socket() as sock:
        ring.queue(uring.Bind(sock, ("127.0.0.1", 0)))
        gc.collect()
        filler = [bytes(16) for _ in range(1000)]
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).result() == 0
        assert sock.getsockname()[0] == "127.0.0.1"
        del filler


# ---- options ----


def test_getsockopt_and_setsockopt_agree_with_python(one: One, udp: socket.socket) -> None:
    """What is set is what Python reads, and the other way round; the result is the bytes."""
    option: dict[str, Any] = {"level": socket.SOL_SOCKET, "optname": socket.SO_RCVBUF}
    cqe = one(uring.Getsockopt(udp, **option))
    assert cqe.res == 4
    assert struct.unpack("i", cqe.result()) == (udp.getsockopt(*option.values()),)
    assert cqe.result() == cqe.result()
    assert one(uring.Setsockopt(udp, **option, value=10000)).result() == 0
    assert udp.getsockopt(*option.values()) == 20000
    linger: dict[str, Any] = {"level": socket.SOL_SOCKET, "optname": socket.SO_LINGER}
    assert one(uring.Setsockopt(udp, **linger, value=struct.pack("ii", 1, 5))).result() == 0
    assert one(uring.Getsockopt(udp, **linger, optlen=100)).result() == struct.pack("ii", 1, 5)
    assert one(uring.Getsockopt(udp, **linger, optlen=3)).result() == struct.pack("ii", 1, 5)[:3]


def test_setsockopt_takes_every_level_and_getsockopt_only_one(
    one: One, fails: Fails, listener: socket.socket
) -> None:
    """TCP_NODELAY can be set; reading at a level other than SOL_SOCKET is EOPNOTSUPP."""
    option: dict[str, Any] = {"level": socket.IPPROTO_TCP, "optname": socket.TCP_NODELAY}
    assert one(uring.Setsockopt(listener, **option, value=1)).result() == 0
    assert listener.getsockopt(*option.values()) == 1
    fails(uring.Getsockopt(listener, **option), errno.EOPNOTSUPP)


def test_socket_options_fail_as_the_os_does(fails: Fails, udp: socket.socket) -> None:
    """No such option is ENOPROTOOPT, too few bytes EINVAL, and no socket EOPNOTSUPP."""
    fails(uring.Getsockopt(udp, level=socket.SOL_SOCKET, optname=9999), errno.ENOPROTOOPT)
    fails(uring.Setsockopt(udp, level=socket.SOL_SOCKET, optname=9999, value=1), errno.ENOPROTOOPT)
    fails(
        uring.Setsockopt(udp, level=socket.SOL_SOCKET, optname=socket.SO_RCVBUF, value=b"a"),
        errno.EINVAL,
    )
    directory = os.open("/", os.O_RDONLY)
    fails(uring.Getsockopt(directory, level=socket.SOL_SOCKET, optname=2), errno.EOPNOTSUPP)
    os.close(directory)


def test_getsockopt_of_a_filter_has_room_for_its_instructions(one: One, fails: Fails) -> None:
    """The kernel counts in instructions of eight bytes, and writes no byte past the room."""
    program = struct.pack("HBBI", 0x06, 0, 0, 0xFFFF) * 100
    code = ctypes.create_string_buffer(program)
    with socket.socket() as sock:
        argument = struct.pack("HxxxxxxQ", 100, ctypes.addressof(code))
        option: dict[str, Any] = {"level": socket.SOL_SOCKET, "optname": SO_GET_FILTER}
        assert one(uring.Setsockopt(sock, **option, value=argument)).result() == 0
        cqe = one(uring.Getsockopt(sock, **option, optlen=100))
        assert (cqe.res, cqe.result()) == (100, program)
        fails(uring.Getsockopt(sock, **option, optlen=99), errno.EINVAL)
        cqe = one(uring.Getsockopt(sock, **option, optlen=0))
        assert (cqe.res, cqe.result()) == (100, b"")


def test_getsockopt_that_makes_a_descriptor_does_not_leak_it(
    ring: uring.Ring, descriptors: Callable[[], set[str]], one: One
) -> None:
    """SO_PEERPIDFD is the caller's when it was copied out, and closed with the ring when not."""
    left, right = socket.socketpair()
    with left, right:
        peer: Any = uring.Getsockopt(left, level=socket.SOL_SOCKET, optname=SO_PEERPIDFD)
        (fd,) = struct.unpack("i", one(peer).result())
        assert not os.get_inheritable(fd)
        os.close(fd)
        ring.queue(attrs.evolve(peer, user_data=5))
        with pytest.raises(ValueError, match="user_data"):
            ring.queue(attrs.evolve(peer, user_data=5))
        ring.submit_and_wait(1, timeout=SECONDS)
        before = descriptors()
        ring.close()
        assert len(before - descriptors()) == 1 + 1


def test_getsockopt_that_shares_its_user_data_gives_none(
    ring: uring.Ring, udp: socket.socket
) -> None:
    """Whose room it was cannot be told; the length can."""
    option: dict[str, Any] = {"level": socket.SOL_SOCKET, "optname": socket.SO_RCVBUF}
    for _ in range(2):
        ring.queue(uring.Getsockopt(udp, **option, user_data=5))
    ring.submit()
    cqes = [ring.copy_cqe(timeout=SECONDS) for _ in range(2)]
    assert [(cqe.res, cqe.result()) for cqe in cqes] == [(4, None), (4, None)]


def test_getsockopt_in_a_batch_has_a_room_for_each_run(
    ring: uring.Ring, udp: socket.socket
) -> None:
    """Results of an earlier run stay as they were."""
    option: dict[str, Any] = {"level": socket.SOL_SOCKET, "optname": socket.SO_RCVBUF}
    batch = uring.Batch([uring.Getsockopt(udp, **option)])
    first = ring.run(batch)
    udp.setsockopt(option["level"], option["optname"], 10000)
    second = ring.run(batch)
    assert second[0].result() == struct.pack("i", 20000) != first[0].result()


# ---- queues, names, timestamps ----


def test_siocinq_and_siocoutq_count_bytes(one: One, fails: Fails, listener: socket.socket) -> None:
    """What was sent and not read yet, on TCP and by Fixed; AF_UNIX has no such thing."""
    with socket.create_connection(listener.getsockname()) as client:
        served, _ = listener.accept()
        with served:
            assert one(uring.Siocinq(served)).result() == 0
            client.sendall(b"hello")
            assert one(uring.Siocinq(served)).result() == 5
            assert one(uring.Recv(served, bytearray(2))).result() == 2
            assert one(uring.Siocinq(served)).result() == 3
            assert one(uring.Siocoutq(client)).result() == 0
            served.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setblocking(False)  # noqa: FBT003 - its only argument
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(bytes(65536))
            assert one(uring.Siocoutq(client)).result() > 0
    with socket.socket(socket.AF_UNIX) as sock:
        fails(uring.Siocinq(sock), errno.EOPNOTSUPP)
        fails(uring.Siocoutq(sock), errno.EOPNOTSUPP)


def test_socket_commands_take_fixed(ring: uring.Ring, one: One, udp: socket.socket) -> None:
    """Every command works on a registered file."""
    ring.register_files([udp])
    option: dict[str, Any] = {"level": socket.SOL_SOCKET, "optname": socket.SO_BROADCAST}
    file = uring.Fixed(0)
    assert one(uring.Setsockopt(file, **option, value=True)).result() == 0
    assert one(uring.Getsockopt(file, **option)).result() == struct.pack("i", 1)
    assert one(uring.Siocinq(file)).result() == 0
    assert one(uring.Siocoutq(file)).result() == 0


@pytest.mark.parametrize("peer", [False, True])
def test_getsockname_is_not_in_this_kernel(fails: Fails, udp: socket.socket, *, peer: bool) -> None:
    """Linux 6.18 answers EOPNOTSUPP, for the socket's own name and its peer's."""
    udp.connect(udp.getsockname())
    fails(uring.Getsockname(udp, peer=peer), errno.EOPNOTSUPP)


def test_getsockname_result_without_its_room_is_none() -> None:
    """An operation that shared its user_data does not know whose address it was."""
    op = uring.Getsockname(3)
    assert op._result(0, None, 0) is None
    assert op._result(0, op._encode()[1], 0) == uring.Sockaddr(bytes(128))


def test_tx_timestamp_comes_for_each_datagram(udp: socket.socket) -> None:
    """The keys count the datagrams, with a time on the system's clock, until it is cancelled."""
    wanted = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 11  # TX_SOFTWARE, SOFTWARE, OPT_ID, OPT_TSONLY
    udp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, wanted)
    with uring.Ring(8, flags=SetupFlags.CQE32) as ring:
        number = ring.queue(uring.TxTimestamp(udp))
        ring.submit()
        start = time.time()
        for key in range(2):
            udp.sendto(b"x", udp.getsockname())
            cqe = ring.copy_cqe(timeout=SECONDS)
            assert (cqe.res, cqe.more, cqe.buffer_id) == (key, True, None)
            sent = cqe.result()
            assert (sent.key, sent.kind, sent.is_hardware) == (key, 0, False)
            assert start - 1 <= sent.time_ns / 1e9 <= time.time() + 1
        ring.queue(uring.AsyncCancel(number, user_data=1))
        ring.submit()
        found = {cqe.user_data: cqe for cqe in (ring.copy_cqe(timeout=SECONDS) for _ in range(2))}
        assert (found[number].res, found[number].more) == (-errno.ECANCELED, False)
        assert found[1].result() == 0


def test_tx_timestamp_result_reads_the_flags_of_the_completion() -> None:
    """The type and the card's bit stand in the flags, the time in the extra words."""
    flags = int(CQEFlags.TSTAMP_HW) | 2 << uring.TIMESTAMP_TYPE_SHIFT
    cqe = uring.CQE(1, 7, flags, uring.TxTimestamp(3), (5, 6))
    assert cqe.result() == uring.TransmitTime(7, 5_000_000_006, kind=2, is_hardware=True)


def test_tx_timestamp_needs_large_completions(fails: Fails, udp: socket.socket) -> None:
    """EINVAL on a ring without CQE32."""
    fails(uring.TxTimestamp(udp), errno.EINVAL)
