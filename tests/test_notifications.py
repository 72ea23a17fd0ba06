"""Zero-copy sends that are cancelled: what ends them is their notification."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import uring
from uring import SQE, AsyncCancel, Nop, Opcode, Read, Ring, SendmsgZc, SendZc, SendZcVectorized
from uring import SetupFlags as F
from uring import SQEFlags as S

SECONDS = 10
MODES = [F(0), F.DEFER_TASKRUN | F.SINGLE_ISSUER, F.SQPOLL, F.CQE_MIXED]
SENDS: list[Callable[..., Any]] = [
    SendZc,
    lambda fd, data, **more: SendZcVectorized(fd, [data], **more),
    lambda fd, data, **more: SendmsgZc(fd, [data], **more),
]


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    """A socket that is connected to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.connect(made.getsockname())
        yield made


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A TCP socket that takes no more bytes for now."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as made,
        server.accept()[0],
    ):
        made.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while made.send(bytes(1 << 16)):
                pass
        made.settimeout(None)
        yield made


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("flags", MODES, ids=str)
def test_batch_ends_whose_chain_cancels_a_zero_copy_send(
    flags: F, send: Callable[..., Any], udp: socket.socket
) -> None:
    """Result and notification of a cancelled send count once, whatever comes behind it."""
    with Ring(8, flags=flags) as ring:
        for _ in range(3):
            failed = [Read(-1, bytearray(1)).linked(), send(udp, b"abc").linked(), Nop()]
            done = ring.run([*failed, send(udp, b"abc"), Nop()], timeout=SECONDS)
            assert done.res.tolist() == [-9, -125, -125, 3, 0]
            assert ring.in_flight == 0
        assert len(ring.copy_cqes()) == 0


@pytest.mark.parametrize("flags", MODES, ids=str)
def test_cancelled_zero_copy_send_is_in_flight_until_its_notification(
    flags: F, udp: socket.socket
) -> None:
    """ECANCELED without MORE leaves the buffer pinned; the notification lets go of it."""
    buffer = bytearray(100)
    with Ring(8, flags=flags) as ring:
        ring.queue_all([Read(-1, bytearray(1)).linked(), SendZc(udp, buffer, user_data=5)])
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).res == -9
        first = ring.copy_cqe(timeout=SECONDS)
        assert (first.user_data, first.res, first.more) == (5, -125, False)
        assert ring.in_flight == 1
        with pytest.raises(BufferError):
            buffer.append(0)
        with pytest.raises(ValueError, match="of SendZc, which notifies, cannot be shared"):
            ring.queue(Read(0, bytearray(1), user_data=5))
        last = ring.copy_cqe(timeout=SECONDS)
        assert (last.user_data, last.is_notification, last.result()) == (5, True, None)
        assert ring.in_flight == 0
        buffer.append(0)
        ring.queue(Nop(user_data=5))


@pytest.mark.parametrize("sqe_flags", [S(0), S.ASYNC], ids=str)
@pytest.mark.parametrize("flags", MODES, ids=str)
def test_zero_copy_send_that_is_cancelled_ends(flags: F, sqe_flags: S, full: socket.socket) -> None:
    """A send that waits for room, or for its turn, ends with its notification when cancelled."""
    with Ring(8, flags=flags) as ring:
        ring.queue(SendZc(full, bytes(1 << 20), flags=sqe_flags, user_data=5))
        ring.submit()
        ring.queue(AsyncCancel(5, user_data=6))
        taken: list[uring.CQE] = []
        ring.submit()
        while ring.in_flight:
            taken.append(ring.copy_cqe(timeout=SECONDS))
            if taken[-1].res == -errno.EALREADY:  # a worker was about to begin with it: once more
                ring.queue(AsyncCancel(5, user_data=6))
                ring.submit()
        assert [cqe.is_notification for cqe in taken if cqe.user_data == 5][-1]


@pytest.mark.parametrize("flags", MODES, ids=str)
def test_close_ends_a_zero_copy_send_that_waits_behind_another(
    flags: F, full: socket.socket
) -> None:
    """Closing cancels the chain, and is done when the notification has come; nothing is kept."""
    buffer = bytearray(100)
    with Ring(8, flags=flags) as ring:
        ring.queue_all([SendZc(full, bytes(1 << 20)).linked(), SendZc(full, buffer)])
        ring.submit()
    buffer.append(0)


@pytest.mark.parametrize("send", SENDS)
def test_drained_zero_copy_send_is_refused(
    ring: Ring, udp: socket.socket, send: Callable[..., Any]
) -> None:
    """It would wait for its own notification: ValueError, also in a run; nothing is queued."""
    drained = send(udp, b"abc").drained()
    for call in (lambda: ring.queue(drained), lambda: ring.run([Nop(), drained])):
        with pytest.raises(ValueError, match="would wait for its own notification"):
            call()
    assert (ring.sq_ready(), ring.in_flight) == (0, 0)


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("how", ["queue", "queue_all", "run"])
def test_zero_copy_send_is_refused_where_there_was_a_drain(
    ring: Ring, udp: socket.socket, send: Callable[..., Any], how: str
) -> None:
    """The first behind a drain would hang with all that follows, though the drain has ended."""
    sends = send(udp, b"abc"), send(udp, b"abc", user_data=5)
    ring.queue(sends[0])  # in front of a drain it may stand
    if how == "run":
        with pytest.raises(ValueError, match=r"queued and must come before.*: submit\(\) first"):
            ring.run([Nop().drained()])
        ring.submit()
    if how == "queue":
        ring.queue(Nop().drained())
    elif how == "queue_all":
        ring.queue_all([sends[1], Nop(), Nop().drained()])
    else:
        ring.run([sends[1], Nop().drained()], timeout=SECONDS)
    ring.submit()
    while ring.in_flight:
        assert ring.copy_cqe(timeout=SECONDS).res >= 0
    for op in sends:
        calls: list[Callable[[], object]] = [
            lambda op=op: ring.queue(op),  # type: ignore[misc]  # mypy cannot infer it
            lambda op=op: ring.queue_all([Nop(), op]),  # type: ignore[misc]  # the same
            lambda op=op: ring.run([Nop(), op]),  # type: ignore[misc]  # the same
        ]
        for call in calls:
            with pytest.raises(ValueError, match="ever given one"):
                call()
    assert list(ring.run([Nop()] * 9, timeout=SECONDS).res) == [0] * 9
    assert ring.in_flight == 0


@pytest.mark.parametrize("send", SENDS)
def test_zero_copy_send_is_refused_in_what_is_drained(
    ring: Ring, udp: socket.socket, send: Callable[..., Any]
) -> None:
    """A drain behind it in its chain is one of the whole chain, and so is one before it."""
    first, drained = send(udp, b"abc").linked(), Nop().drained()
    for ops in ([first, drained], [first, Nop().linked(), drained], [drained, send(udp, b"abc")]):
        for call in (lambda ops=ops: ring.queue_all(ops), lambda ops=ops: uring.Batch(ops)):
            with pytest.raises(ValueError, match="would wait for its own notification"):
                call()
    ring.queue(first)
    ring.queue(Nop().linked())
    with pytest.raises(ValueError, match="would wait for its own notification"):
        ring.queue(drained)
    ring.queue_all([Nop(), send(udp, b"abc")])
    ring.submit()
    while ring.in_flight:
        assert ring.copy_cqe(timeout=SECONDS).res >= 0


def test_notification_ends_nothing_but_its_own_kind(
    ring: uring.Ring, pipe: tuple[int, int], udp: socket.socket
) -> None:
    """A read under the number of a raw send that was cancelled outlives the notification."""
    buffer = bytearray(4)
    encoded = SendZc(udp, b"abc").sqe()
    raw = SQE(Opcode.SEND_ZC, fd=encoded.fd, addr=encoded.addr, len=0, user_data=5)
    ring.queue_all([Read(-1, bytearray(1)).linked(), raw])
    ring.submit()
    assert [ring.copy_cqe(timeout=SECONDS).res for _ in range(2)] == [-9, -125]
    assert ring.in_flight == 1
    assert ring.copy_cqe(timeout=SECONDS).is_notification
    assert ring.in_flight == 0
    ring.queue(Read(pipe[0], buffer, user_data=5))
    ring.submit()
    assert ring.in_flight == 1


def leave_a_notification(
    ring: uring.Ring, udp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Leave the notification of a send with user_data 5 unread, though the send is over for the ring.

    That takes an opcode of which nobody here knows that it notifies. It shares the number, so that
    nobody can tell which of two completions was its own.
    """
    encoded = SendZc(udp, b"abc").sqe()
    raw = SQE(Opcode.SEND_ZC, fd=encoded.fd, addr=encoded.addr, len=0, user_data=5)
    shares = SQE(Opcode.NOP, user_data=5)
    with monkeypatch.context() as unknown:
        unknown.setattr(SQE, "_is_sole", False)
        unknown.setattr(SQE, "_notifies", False)
        ring.queue_all([shares, Read(-1, bytearray(1)).linked(), raw])
        ring.submit()
        assert ring.copy_cqes(3).res.tolist() == [0, -9, -125]
    assert (ring.in_flight, ring.cq_ready()) == (0, 1)


def test_late_notification_does_not_end_the_next_of_its_number(
    ring: uring.Ring, pipe: tuple[int, int], udp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer of a read stays pinned when the notification of a former send comes."""
    buffer = bytearray(4)
    leave_a_notification(ring, udp, monkeypatch)
    ring.queue(Read(pipe[0], buffer, user_data=5))
    ring.submit()
    assert ring.copy_cqe(timeout=SECONDS).is_notification
    assert ring.in_flight == 1
    with pytest.raises(BufferError):
        buffer.append(0)
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).res == 1
    buffer.append(0)


def test_late_notification_does_not_end_an_operation_of_a_batch(
    ring: uring.Ring, pipe: tuple[int, int], udp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with the number of a former send waits for its own completions."""
    leave_a_notification(ring, udp, monkeypatch)
    reads = [Read(pipe[0], bytearray(1), user_data=5), Read(pipe[0], bytearray(1))]
    with pytest.raises(TimeoutError, match="when 0 of 2 operations had ended"):
        ring.run(reads, timeout=0.05)
    assert ring.in_flight == 0
    os.write(pipe[1], b"xy")
    assert ring.run(reads, timeout=SECONDS).res.tolist() == [1, 1]


@pytest.mark.parametrize("opcode", [Opcode.SEND_ZC, Opcode.SENDMSG_ZC])
def test_raw_zero_copy_send_shares_its_number_with_nothing(
    ring: uring.Ring, udp: socket.socket, opcode: Opcode
) -> None:
    """Nor may others take it before the notification has come: theirs would be ended by it."""
    raw = SQE(opcode, fd=udp.fileno(), user_data=5)
    other = SendZc(udp, b"abc", user_data=5)
    for pair in ([raw, raw], [raw, other], [other, raw], [raw, SQE(Opcode.NOP, user_data=5)]):
        with pytest.raises(ValueError, match="user_data 0x5 is in use"):
            ring.queue_all(pair)
        ring.queue(pair[0])
        with pytest.raises(ValueError, match="user_data 0x5 is in use"):
            ring.queue(pair[1])
        ring.submit()
        while ring.in_flight:
            ring.copy_cqe(timeout=SECONDS)
