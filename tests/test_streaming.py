"""Streams: the completions of one operation, apart from all others, and how they end."""

import errno
import gc
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

import uring
from uring import StreamEnd
from uring._ffi import lib

SECONDS: Final = 10
Sockets = tuple[socket.socket, socket.socket]


def connect(listener: socket.socket, count: int) -> list[socket.socket]:
    """Connect so often."""
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def quiet(ring: uring.Ring) -> bool:
    """Whether nothing is left, and the ring works."""
    assert (ring.in_flight, len(ring.copy_cqes())) == (0, 0)
    number = ring.queue(uring.Nop())
    ring.submit_and_wait()
    return ring.copy_cqe(timeout=SECONDS).user_data == number


# ---- every operation that posts more than once ----


def test_accept_stream(ring: uring.Ring, listener: socket.socket) -> None:
    """AcceptMultishot: a descriptor for each connection, whose owner the caller is."""
    with ring.stream(uring.AcceptMultishot(listener)) as stream:
        clients = connect(listener, 3)
        for _ in clients:
            cqe = stream.take(timeout=SECONDS)
            assert cqe is not None
            with socket.socket(fileno=cqe.result()) as accepted:
                assert accepted.getpeername() in [each.getsockname() for each in clients]
    assert stream.outcome is StreamEnd.CANCELLED
    assert stream.terminal is not None
    assert stream.terminal.res == -errno.ECANCELED
    for client in clients:
        client.close()
    assert quiet(ring)


@pytest.mark.parametrize("kind", [uring.RecvMultishot, uring.RecvBundleMultishot])
def test_recv_stream(ring: uring.Ring, pair: Sockets, kind: Callable[..., Any]) -> None:
    """Receiving streams give leases, and end at the end of the stream."""
    with (
        ring.register_buffer_ring(4, size=16) as group,
        ring.stream(kind(pair[0], group)) as stream,
    ):
        pair[1].sendall(b"one")
        first = next(stream)
        assert bytes(first.result()) == b"one"
        pair[1].sendall(b"two")
        pair[1].close()
        assert b"".join(bytes(cqe.result()) for cqe in stream) == b"two"
        assert stream.outcome is StreamEnd.END_OF_FILE
        assert stream.take() is None
        assert list(stream) == []
        del first
        assert group.inside == 4
    assert quiet(ring)


def test_recvmsg_stream(ring: uring.Ring) -> None:
    """RecvmsgMultishot gives datagrams until it is closed."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
        ring.register_buffer_ring(4, size=512) as group,
    ):
        ours.bind(("127.0.0.1", 0))
        with ring.stream(uring.RecvmsgMultishot(ours, group)) as stream:
            for word in (b"one", b"two"):
                theirs.sendto(word, ours.getsockname())
                cqe = next(stream)
                assert cqe.res > len(word)
                assert word in bytes(cqe._subject.memory.lease)  # type: ignore[union-attr]  # raw
                del cqe
        assert stream.outcome is StreamEnd.CANCELLED
        assert group.inside == 4
    assert quiet(ring)


def test_read_stream(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """ReadMultishot gives what is written to a pipe, until its end."""
    with (
        ring.register_buffer_ring(4, size=16) as group,
        ring.stream(uring.ReadMultishot(pipe[0], group)) as stream,
    ):
        os.write(pipe[1], b"one")
        assert bytes(next(stream).result()) == b"one"
        os.write(pipe[1], b"two")
        os.close(pipe[1])
        assert [bytes(cqe.result()) for cqe in stream] == [b"two"]
    assert stream.outcome is StreamEnd.END_OF_FILE
    assert quiet(ring)


def test_poll_stream(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """PollMultishot tells of each change."""
    with ring.stream(uring.PollMultishot(pipe[0])) as stream:
        for _ in range(3):
            os.write(pipe[1], b"x")
            assert next(stream).result() & select.POLLIN
        assert repr(stream).endswith(": running>")
    assert stream.outcome is StreamEnd.CANCELLED
    assert repr(stream).endswith(": cancelled>")
    assert quiet(ring)


def test_timeout_stream(ring: uring.Ring) -> None:
    """TimeoutMultishot gives as many as were asked for, the last one included."""
    with ring.stream(uring.TimeoutMultishot(0.001, count=3)) as stream:
        assert [cqe.res for cqe in stream] == [-errno.ETIME] * 3
    assert stream.outcome is StreamEnd.FINISHED
    assert stream.terminal is not None
    assert not stream.terminal.more
    assert quiet(ring)


@pytest.mark.parametrize("broken", [False, True])
def test_send_zc_stream(ring: uring.Ring, *, broken: bool) -> None:
    """A zero-copy send gives its result and then its notification, also when it failed."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        if broken:
            ours.shutdown(socket.SHUT_WR)
        op = uring.SendZc(ours, b"x" * 100, socket.MSG_NOSIGNAL)
        with ring.stream(op) as stream:
            first, second = stream
        assert first.res == (-errno.EPIPE if broken else 100)
        assert first.more
        assert second.is_notification
        assert stream.outcome is StreamEnd.FINISHED
    assert quiet(ring)


def test_single_completion_is_a_stream_of_one(ring: uring.Ring) -> None:
    """What completes once gives that completion, and has finished."""
    with ring.stream(uring.Nop()) as stream:
        assert [cqe.res for cqe in stream] == [0]
    assert stream.outcome is StreamEnd.FINISHED
    assert quiet(ring)


# ---- ends ----


def test_failure_is_raised(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """An operation that fails raises its error once, with itself as a note, and has ended."""
    op = uring.AcceptMultishot(pipe[0])
    with ring.stream(op) as stream:
        with pytest.raises(OSError, match="Socket operation on non-socket") as caught:
            next(stream)
        assert caught.value.errno == errno.ENOTSOCK
        assert repr(op) in caught.value.__notes__[0]
        assert stream.outcome is StreamEnd.FAILED
        assert list(stream) == []
    assert quiet(ring)


def test_group_that_runs_dry_is_an_outcome(ring: uring.Ring, pair: Sockets) -> None:
    """Without buffers a stream ends with NO_BUFFERS; with them given back another goes on."""
    with ring.register_buffer_ring(2, size=4) as group:
        pair[1].sendall(b"aaaabbbbcccc")
        with ring.stream(uring.RecvMultishot(pair[0], group)) as stream:
            leases = [cqe.result() for cqe in stream]
        assert [bytes(lease) for lease in leases] == [b"aaaa", b"bbbb"]
        assert stream.outcome is StreamEnd.NO_BUFFERS
        leases.clear()
        with ring.stream(uring.RecvMultishot(pair[0], group)) as stream:
            assert bytes(next(stream).result()) == b"cccc"
        assert group.inside == 2
    assert quiet(ring)


def test_last_data_is_given(ring: uring.Ring, pair: Sockets) -> None:
    """A terminal completion that brings data is given like any other."""
    with ring.register_buffer_ring(4, size=4) as group:
        pair[1].sendall(b"aaaabbbbcccc")
        op = uring.RecvMultishot(pair[0], group, total_length=8)
        with ring.stream(op) as stream:
            assert [bytes(cqe.result()) for cqe in stream] == [b"aaaa", b"bbbb"]
        assert stream.outcome is StreamEnd.FINISHED
    assert quiet(ring)


def test_cancelled_by_another(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """Cancelled by somebody else, a stream ends without an error."""
    with ring.stream(uring.PollMultishot(pipe[0])) as stream:
        assert ring.cancel(stream.user_data) == 1
        assert list(stream) == []
        assert stream.outcome is StreamEnd.CANCELLED
    assert quiet(ring)


def test_early_close_closes_unread_descriptors(
    ring: uring.Ring, descriptors: Callable[[], set[str]], listener: socket.socket
) -> None:
    """Connections that were accepted and not read are closed: as many descriptors as before."""
    before = descriptors()
    with ring.stream(uring.AcceptMultishot(listener)) as stream:
        clients = connect(listener, 5)
        first = next(stream).result()
        deadline = time.monotonic() + SECONDS
        while ring._kept._count < 4:  # all are there, and unread
            assert time.monotonic() < deadline
            assert len(ring.copy_cqes()) == 0
    os.close(first)
    for client in clients[1:]:
        client.settimeout(SECONDS)
        assert client.recv(1) == b"", "nobody has the other end"
    for client in clients:
        client.close()
    assert descriptors() == before
    assert quiet(ring)


def test_early_close_gives_unread_buffers_back(ring: uring.Ring, pair: Sockets) -> None:
    """Buffers of completions that were not read are the kernel's again."""
    with ring.register_buffer_ring(8, size=4) as group:
        pair[1].sendall(b"aaaabbbbccccdddd")
        with ring.stream(uring.RecvMultishot(pair[0], group)) as stream:
            held = next(stream).result()
        assert group.inside == 7
        assert bytes(held) == b"aaaa"
        held.release()
        assert group.inside == 8
    assert quiet(ring)


def test_exception_in_the_loop(
    ring: uring.Ring, descriptors: Callable[[], set[str]], listener: socket.socket
) -> None:
    """An exception in the loop comes out of the with block, and the stream is closed."""
    before = descriptors()
    clients = []

    def serve() -> None:
        with ring.stream(uring.AcceptMultishot(listener)) as stream:
            clients.extend(connect(listener, 3))
            for cqe in stream:
                os.close(cqe.result())
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        serve()
    for client in clients:
        client.close()
    assert descriptors() == before
    assert quiet(ring)


def test_close_is_idempotent(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """close() may be called any number of times, before and after the end."""
    stream = ring.stream(uring.PollMultishot(pipe[0]))
    stream.close()
    stream.close()
    assert stream.outcome is StreamEnd.CANCELLED
    assert stream.take() is None
    assert quiet(ring)


def test_dropped_stream_warns(ring: uring.Ring, listener: socket.socket) -> None:
    """A stream that is dropped open warns and is cancelled; its completions are copy_cqes()'s."""
    stream: uring.Stream | None = ring.stream(uring.AcceptMultishot(listener))
    assert stream is not None
    clients = connect(listener, 2)
    os.close(next(stream).result())
    number = stream.user_data
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        stream = None
    seen: list[uring.CQE] = []
    while not seen or seen[-1].more:
        seen.append(ring.copy_cqe(timeout=SECONDS))
        if seen[-1].res >= 0:
            os.close(seen[-1].result())
    assert {cqe.user_data for cqe in seen} == {number}
    assert seen[-1].res == -errno.ECANCELED
    for client in clients:
        client.close()
    assert quiet(ring)


def test_dropped_stream_is_cancelled_when_warnings_are_errors(
    ring: uring.Ring, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning that is an error does not keep a dropped stream from being cancelled."""
    monkeypatch.setattr("sys.unraisablehook", lambda _unraisable: None)
    stream = ring.stream(uring.PollMultishot(pipe[0]))
    del stream
    gc.collect()
    assert ring.copy_cqe(timeout=SECONDS).res == -errno.ECANCELED
    assert quiet(ring)


def test_ring_closed_during_a_stream(
    listener: socket.socket, descriptors: Callable[[], set[str]]
) -> None:
    """With its ring closed take() raises, close() does nothing, and nothing is left open."""
    before = descriptors()
    with uring.Ring(8) as ring:
        stream = ring.stream(uring.AcceptMultishot(listener))
        clients = connect(listener, 3)
        os.close(next(stream).result())
    with pytest.raises(uring.RingClosedError):
        stream.take()
    stream.close()
    for client in clients:
        client.close()
    assert descriptors() == before


@pytest.mark.parametrize("is_made_late", [False, True])
def test_completions_of_a_stream_on_a_closing_ring_come_to_nobody(
    ring: uring.Ring,
    listener: socket.socket,
    descriptors: Callable[[], set[str]],
    *,
    is_made_late: bool,
) -> None:
    """A thread that copies out while the ring is being closed gets no stream's descriptors."""
    before = descriptors()
    clients = connect(listener, 3)
    op = uring.AcceptMultishot(listener)
    if is_made_late:
        submit = ring.submit

        def cut_off() -> int:
            submit()
            ring._refuse("the ring is closed")  # another thread begins to close it
            raise uring.RingClosedError

        ring.submit = cut_off  # type: ignore[method-assign]  # what Stream's maker calls
        with pytest.raises(uring.RingClosedError):
            ring.stream(op)
    else:
        stream = ring.stream(op)
        ring._refuse("the ring is closed")
        stream.close()
    assert [*ring._take(None)] == []  # copy_cqes(), behind its look whether the ring is open
    ring.close()
    for client in clients:
        client.close()
    assert descriptors() <= before


def test_ring_closed_under_a_waiting_stream(
    pipe: tuple[int, int], until: Callable[..., None]
) -> None:
    """A thread that waits on a stream gets RingClosedError when the ring is closed."""
    raised: list[BaseException] = []
    ring = uring.Ring(8)
    stream = ring.stream(uring.PollMultishot(pipe[0]))

    def wait() -> None:
        try:
            stream.take()
        except BaseException as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: lib.uring_waiters(ring._shim) == 1)
    ring.close()
    thread.join(SECONDS)
    assert [type(error) for error in raised] == [uring.RingClosedError]


# ---- apart from the others ----


def test_copy_cqes_leaves_streams_alone(ring: uring.Ring, pair: Sockets) -> None:
    """What is of an open stream is neither copied, peeked at nor advanced over, but counted."""
    with ring.register_buffer_ring(8, size=4) as group:
        with ring.stream(uring.RecvMultishot(pair[0], group)) as stream:
            pair[1].sendall(b"aaaabbbb")
            assert ring.copy_cqes(wait_nr=1, timeout=0.02) == uring.Completions()
            with pytest.raises(TimeoutError):
                ring.copy_cqe(timeout=0.02)
            assert (ring.cq_ready(), len(ring.peek_cqes())) == (2, 0)
            numbers = ring.queue_all([uring.Nop(), uring.Nop(), uring.Nop(), uring.Nop()])
            ring.submit()
            assert ring.cq_ready() == 6
            assert ring.peek_cqes(2).user_data.tolist() == numbers[:2]
            assert ring.copy_cqe().user_data == numbers[0]
            assert ring.copy_cqes(1).user_data.tolist() == numbers[1:2]
            with pytest.raises(ValueError, match="2 completions are ready, not 3"):
                ring.cq_advance(3)
            ring.cq_advance(1)
            pair[1].close()
            assert ring.copy_cqes().user_data.tolist() == numbers[3:]
            assert [bytes(cqe.result()) for cqe in stream] == [b"aaaa", b"bbbb"]
        assert stream.outcome is StreamEnd.END_OF_FILE
        assert group.inside == 8
    assert quiet(ring)


@pytest.mark.parametrize("op", [uring.Nop(), uring.Nop(user_data=7)])
def test_one_completion_is_left_to_its_stream(ring: uring.Ring, op: uring.Nop) -> None:
    """Also one that is all that is in flight, and has ended, is its stream's alone."""
    with ring.stream(op) as stream:
        assert len(ring.copy_cqes()) == 0
        with pytest.raises(TimeoutError):
            ring.copy_cqe(timeout=0.01)
        assert next(stream).user_data == stream.user_data
    assert quiet(ring)


def test_two_streams_and_others(ring: uring.Ring, pipe: tuple[int, int], pair: Sockets) -> None:
    """Two streams read in turns, with other operations in between: each gets its own, in order."""
    with (
        ring.register_buffer_ring(16, size=8) as group,
        ring.stream(uring.ReadMultishot(pipe[0], group)) as pipes,
        ring.stream(uring.RecvMultishot(pair[0], group)) as sockets,
    ):
        for count in range(50):
            os.write(pipe[1], b"p%d" % count)
            pair[1].send(b"s%d" % count)
            number = ring.queue(uring.Nop())
            ring.submit()
            order = [sockets, pipes] if count % 2 else [pipes, sockets]
            for stream in order:
                name = b"p" if stream is pipes else b"s"
                cqe = stream.take(timeout=SECONDS)
                assert cqe is not None
                assert bytes(cqe.result()) == name + b"%d" % count
                del cqe
            assert ring.copy_cqe(timeout=SECONDS).user_data == number
        ring.run([uring.Nop()] * 20)
        os.write(pipe[1], b"last")
        assert bytes(next(pipes).result()) == b"last"
    assert quiet(ring)


def test_second_stream_of_a_number_is_refused(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """Two streams of one user_data cannot be told apart: ValueError, and the first goes on."""
    with ring.stream(uring.PollMultishot(pipe[0], user_data=5)) as stream:
        with pytest.raises(ValueError, match="there is a stream of user_data 0x5 already"):
            ring.stream(uring.PollMultishot(pipe[0], user_data=5))
        os.write(pipe[1], b"x")
        assert next(stream).user_data == 5
        assert ring.in_flight == 1
    assert quiet(ring)


@pytest.mark.parametrize("wrong", [None, 5, uring.Nop, [uring.Nop()]])
def test_stream_of_no_operation_is_refused(ring: uring.Ring, wrong: Any) -> None:
    """What is no operation is TypeError, as with queue()."""
    with pytest.raises(TypeError, match="the ring queues operations and SQEs"):
        ring.stream(wrong)
    assert quiet(ring)


def test_refused_stream_leaves_nothing(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """When the operation cannot be queued, its number is free, and nothing is kept apart."""
    for _ in range(8):
        ring.queue(uring.Nop())
    with pytest.raises(uring.SubmissionQueueFull):
        ring.stream(uring.PollMultishot(pipe[0], user_data=5))
    with pytest.raises(ValueError, match="user_data"):
        ring.stream(uring.Nop(user_data=-1))
    ring.queue_all([])
    ring.submit()
    ring.queue(uring.Nop(user_data=5))
    ring.submit()
    seen: list[int] = []
    while len(seen) < 9:
        seen += ring.copy_cqes(wait_nr=1, timeout=SECONDS).user_data.tolist()
    assert 5 in seen
    assert quiet(ring)


def test_stream_submits_what_is_queued(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """What was queued before is submitted with the stream."""
    number = ring.queue(uring.Nop())
    with ring.stream(uring.PollMultishot(pipe[0])):
        assert ring.sq_ready() == 0
        assert ring.copy_cqe(timeout=SECONDS).user_data == number


def test_run_in_between(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """A batch that is run while a stream is open gets its results, and the stream its own."""
    with ring.stream(uring.PollMultishot(pipe[0])) as stream:
        os.write(pipe[1], b"x")
        assert len(ring.run([uring.Nop()] * 50)) == 50
        assert next(stream).res & select.POLLIN
    assert quiet(ring)


# ---- waiting ----


def test_take_times_out(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """take() raises TimeoutError when nothing comes, and the stream goes on; 0 does not wait."""
    with ring.stream(uring.PollMultishot(pipe[0])) as stream:
        for timeout in (0, 0.02):
            start = time.monotonic()
            with pytest.raises(TimeoutError, match="no completion came within"):
                stream.take(timeout=timeout)
            assert time.monotonic() - start >= timeout
        os.write(pipe[1], b"x")
        assert stream.take(timeout=0) is not None
    assert quiet(ring)


def test_take_waits_beyond_what_is_kept(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """Completions of others that wait to be copied out end no wait, and delay none."""
    with ring.stream(uring.PollMultishot(pipe[0])) as stream:
        ring.queue_all([uring.Nop()] * 5)
        ring.submit()
        with pytest.raises(TimeoutError):
            stream.take(timeout=0.02)
        timer = threading.Timer(0.05, os.write, (pipe[1], b"x"))
        timer.start()
        assert stream.take(timeout=SECONDS) is not None
        timer.join()
        assert len(ring.copy_cqes()) == 5
    assert quiet(ring)


def test_copy_cqes_waits_beside_streams(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """copy_cqes() waits for others, whatever comes for streams meanwhile."""
    with ring.stream(uring.PollMultishot(pipe[0])) as stream:
        for _ in range(3):
            os.write(pipe[1], b"x")
        ring.queue(uring.Timeout(0.05))
        ring.submit()
        used = time.process_time()
        (cqe,) = ring.copy_cqes(wait_nr=1, timeout=SECONDS)
        assert cqe.res == -errno.ETIME
        assert time.process_time() - used < 0.04, "it waited, and did not turn round"
        assert next(stream).more
    assert quiet(ring)


def test_submit_and_wait_counts_streams(ring: uring.Ring, pair: Sockets) -> None:
    """What is kept for streams counts as ready for submit_and_wait(), as what is in the queue."""
    with (
        ring.register_buffer_ring(4, size=8) as group,
        ring.stream(uring.RecvMultishot(pair[0], group)) as stream,
    ):
        for word in (b"one", b"two"):
            pair[1].send(word)
            ring.submit_and_wait(1, timeout=SECONDS)
            assert len(ring.copy_cqes()) == 0  # it is fetched now, and kept
        start = time.monotonic()
        ring.submit_and_wait(2, timeout=SECONDS)
        assert time.monotonic() - start < SECONDS / 2
        assert [bytes(next(stream).result()) for _ in range(2)] == [b"one", b"two"]


def test_threads_with_a_stream_each(ring: uring.Ring, until: Callable[..., None]) -> None:
    """Four threads with a stream each and one that copies the rest: all get all of their own."""
    words, wrong = 200, []
    pipes = [os.pipe() for _ in range(4)]
    others = 0
    leave = threading.Event()  # the kernel cancels what a thread has submitted when that ends

    def read(inlet: int) -> None:
        try:
            got, outcome = b"", None
            with ring.register_buffer_ring(64, size=16) as group:
                # Ended early by an overflow, or by a reader that is slow, it is made again.
                while outcome is not StreamEnd.END_OF_FILE:
                    assert outcome in {None, StreamEnd.FINISHED, StreamEnd.NO_BUFFERS}
                    with ring.stream(uring.ReadMultishot(inlet, group)) as stream:
                        got += b"".join(bytes(cqe.result()) for cqe in stream)
                    outcome = stream.outcome
            assert got == b"".join(b"%04d" % i for i in range(words))
        except BaseException as error:  # noqa: BLE001 - shown below
            wrong.append(error)
        finally:
            read_all.append(inlet)
            leave.wait(SECONDS)

    read_all: list[int] = []
    threads = [threading.Thread(target=read, args=(inlet,)) for inlet, _ in pipes]
    for thread in threads:
        thread.start()
    for count in range(words):
        for _, outlet in pipes:
            os.write(outlet, b"%04d" % count)
        with ring._lock:  # so that the queue is not full of what other threads are queueing
            ring.queue(uring.Nop())
            ring.submit()
        others += len(ring.copy_cqes(wait_nr=1, timeout=SECONDS))
    for _, outlet in pipes:
        os.close(outlet)
    until(lambda: len(read_all) == len(pipes))
    leave.set()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    for inlet, _ in pipes:
        os.close(inlet)
    assert wrong == []
    others += len(ring.copy_cqes())
    assert others == words
    assert quiet(ring)


def test_two_threads_on_one_stream(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """Threads that share a stream share its completions, and all of them see its end."""
    assert not ring.closed  # there are rings here
    got: list[bytes] = []
    with uring.Ring(8, cq_entries=1024) as big, big.register_buffer_ring(512, size=16) as group:
        stream = big.stream(uring.ReadMultishot(pipe[0], group))

        def read() -> None:
            while (cqe := stream.take(timeout=SECONDS)) is not None:
                got.append(bytes(cqe.result()))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for count in range(300):
            os.write(pipe[1], b"%04d" % count)
        os.close(pipe[1])
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        joined = b"".join(got)
        assert sorted(joined[i : i + 4] for i in range(0, len(joined), 4)) == [
            b"%04d" % i for i in range(300)
        ]
        stream.close()
        assert stream.outcome is StreamEnd.END_OF_FILE


@pytest.mark.parametrize(
    "flags",
    [
        uring.SetupFlags.SINGLE_ISSUER | uring.SetupFlags.DEFER_TASKRUN,
        uring.SetupFlags.COOP_TASKRUN | uring.SetupFlags.TASKRUN_FLAG,
        uring.SetupFlags.SQPOLL,
        uring.SetupFlags.CQE32,
    ],
)
def test_streams_on_every_ring(pipe: tuple[int, int], flags: uring.SetupFlags) -> None:
    """Streams work the same whoever runs the kernel's part, and however long a record is."""
    with uring.Ring(8, flags=flags) as ring, ring.register_buffer_ring(4, size=8) as group:
        with ring.stream(uring.ReadMultishot(pipe[0], group)) as stream:
            for word in (b"one", b"two"):
                os.write(pipe[1], word)
                cqe = stream.take(timeout=SECONDS)
                assert cqe is not None
                assert bytes(cqe.result()) == word
                del cqe
            with pytest.raises(TimeoutError):
                stream.take(timeout=0.01)
            number = ring.queue(uring.Nop())
            ring.submit()
            assert ring.copy_cqe(timeout=SECONDS).user_data == number
        assert stream.outcome is StreamEnd.CANCELLED
        assert group.inside == 4


def test_overflow_ends_a_stream_and_loses_nothing(
    ring: uring.Ring, descriptors: Callable[[], set[str]], listener: socket.socket
) -> None:
    """When the completion queue overflows, all connections come all the same, in some streams."""
    before = descriptors()
    clients = connect(listener, 40)
    accepted = 0
    while accepted < 40:
        with ring.stream(uring.AcceptMultishot(listener)) as stream:
            for cqe in stream:
                os.close(cqe.result())
                accepted += 1
                if accepted == 40:
                    break
    assert accepted == 40
    for client in clients:
        client.close()
    assert descriptors() == before
    assert quiet(ring)


def test_stream_that_another_submits_keeps_its_completion(ring_refusal: str) -> None:
    """Submitted and waited for by somebody else, alone, it is not given out by copy_cqe()."""
    assert not ring_refusal
    told: list[BaseException] = []

    class Hasty(uring.Ring):
        """A ring that another thread uses at the worst moment."""

        def submit(self) -> int:
            """Wait at once, and take what comes."""
            submitted = self.submit_and_wait(1)
            with pytest.raises(TimeoutError) as info:
                self.copy_cqe(timeout=0)
            told.append(info.value)
            return submitted

    with Hasty(4) as ring, ring.stream(uring.Nop()) as stream:
        assert [cqe.res for cqe in stream] == [0]
    assert len(told) == 1
