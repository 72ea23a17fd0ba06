"""Streams of an event loop: the completions of one operation, one after the other."""

import errno
import gc
import os
import select
import socket
import struct
import warnings
from collections.abc import Callable
from functools import partial

import pytest
from aio import KITS, Kit, has, until

import uring
import uring.aio
from uring import (
    AcceptMultishot,
    Nop,
    PollMultishot,
    Read,
    RecvMultishot,
    SendZc,
    StreamEnd,
    TimeoutMultishot,
)

SOON = 20.0


@pytest.fixture(params=KITS, ids=lambda kit: kit.name, autouse=True)
def kit(request: pytest.FixtureRequest, ring: uring.Ring) -> Kit:  # noqa: ARG001 - asks for it
    """Give each event loop in turn, where there are rings."""
    made: Kit = request.param
    return made


def connect(listener: socket.socket, count: int) -> list[socket.socket]:
    """Make that many connections."""
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def close_at_once(sock: socket.socket) -> None:
    """Close with a reset, so that nothing of it stays in the kernel."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_accepts_come_one_by_one(kit: Kit, listener: socket.socket) -> None:
    """20 connections, made before and while the stream is read: 20 descriptors."""

    async def main() -> None:
        ring = uring.aio.ring()
        clients = connect(listener, 5)
        found = []
        async with ring.stream(AcceptMultishot(listener)) as accepted:
            async for cqe in accepted:
                found.append(cqe.result())
                if len(found) in {5, 10, 15}:
                    clients += connect(listener, 5)
                if len(found) == 20:
                    break
        assert accepted.outcome is StreamEnd.CANCELLED
        assert len({os.fstat(fd).st_ino for fd in found}) == 20
        for fd in found:
            os.close(fd)
        for client in clients:
            client.close()

    kit.run(main)


def test_receives_are_leases_and_end_with_the_file(
    kit: Kit, pair: tuple[socket.socket, socket.socket]
) -> None:
    """All that was sent comes in order, in leases; the peer's end is the end of the stream."""
    left, right = pair

    async def main() -> None:
        ring = uring.aio.ring()
        sent = b"".join(struct.pack("I", i) for i in range(3000))
        got = bytearray()
        with ring.plain.register_buffer_ring(8, size=64) as buffers:

            async def send() -> None:
                view = memoryview(sent)
                while view:
                    view = view[await ring.do(uring.Send(left, view[:5000])) :]
                left.shutdown(socket.SHUT_WR)

            async def receive() -> StreamEnd | None:
                while True:
                    async with ring.stream(RecvMultishot(right, buffers)) as received:
                        async for cqe in received:
                            with cqe.result() as lease:
                                got.extend(bytes(lease))
                    if received.outcome is not StreamEnd.NO_BUFFERS:
                        return received.outcome

            _, outcome = await kit.all(send, receive)
            assert outcome is StreamEnd.END_OF_FILE
            assert got == sent
            assert buffers.inside == 8

    kit.run(main)


def test_dry_group_is_an_outcome(kit: Kit, pair: tuple[socket.socket, socket.socket]) -> None:
    """When all leases are out the stream ends with NO_BUFFERS, and raises nothing."""
    left, right = pair
    left.send(b"x" * 100)

    async def main() -> None:
        ring = uring.aio.ring()
        with ring.plain.register_buffer_ring(2, size=10) as buffers:
            stream = ring.stream(RecvMultishot(right, buffers))
            leases = [cqe.result() async for cqe in stream]
            assert stream.outcome is StreamEnd.NO_BUFFERS
            assert [bytes(lease) for lease in leases] == [b"x" * 10] * 2

    kit.run(main)


def test_slow_reader_is_waited_for(kit: Kit, listener: socket.socket) -> None:
    """
    With a limit of 4 no more than a few are unread, and all 40 connections come in the end.

    What the stream does not take stays in the listener's own queue.
    """

    async def main() -> None:
        ring = uring.aio.ring()
        listener.listen(64)
        clients = connect(listener, 20)
        found: list[int] = []
        unread: list[int] = []
        async with ring.stream(AcceptMultishot(listener), limit=4) as accepted:
            for _ in range(40):
                if len(found) == 10:
                    clients += connect(listener, 20)
                cqe = await anext(accepted)
                found.append(cqe.result())
                for _ in range(3):
                    await kit.sleep(0)
                unread.append(len(accepted._unread))
            assert accepted.outcome is None
        assert max(unread) < 20, "the kernel was not asked to stop"
        assert accepted.outcome is StreamEnd.CANCELLED
        for fd in found:
            os.close(fd)
        for client in clients:
            client.close()

    kit.run(main)


@pytest.mark.parametrize("turns", range(6))
def test_reading_can_be_cancelled_and_goes_on(
    kit: Kit, turns: int, listener: socket.socket
) -> None:
    """A task that is cancelled while it waits for the next completion loses none."""

    async def main() -> None:
        ring = uring.aio.ring()
        found = []
        async with ring.stream(AcceptMultishot(listener)) as accepted:
            client = connect(listener, 1)
            was_cancelled, cqe = await kit.cut_off(turns, lambda: anext(accepted))
            found.append(await anext(accepted) if was_cancelled else cqe)
            client += connect(listener, 1)
            found.append(await anext(accepted))
        for cqe in found:
            os.close(cqe.result())
        assert len({cqe.res for cqe in found}) == 2
        for each in client:
            each.close()

    kit.run(main)


def test_leaving_early_closes_what_nobody_has_seen(
    kit: Kit, listener: socket.socket, descriptors: Callable[[], set[str]]
) -> None:
    """Ten connections of which three are read: the other seven are closed, the stream is over."""

    async def main() -> None:
        ring = uring.aio.ring()
        listener.listen(64)
        before = descriptors()
        clients = connect(listener, 10)
        async with ring.stream(AcceptMultishot(listener)) as accepted:
            for _ in range(3):
                os.close((await anext(accepted)).result())
            for _ in range(5):
                await kit.sleep(0)
            assert len(accepted._unread) == 7
        for client in clients:
            close_at_once(client)
        assert descriptors() == before
        assert not ring._takers
        with pytest.raises(StopAsyncIteration):
            await anext(accepted)
        await accepted.aclose()

    kit.run(main)


@pytest.mark.parametrize("turns", range(5))
def test_closing_waits_for_the_kernel_though_cancelled(
    kit: Kit, turns: int, listener: socket.socket, descriptors: Callable[[], set[str]]
) -> None:
    """A task that is cancelled anywhere in the block leaves no operation and no descriptor."""

    async def main() -> None:
        ring = uring.aio.ring()
        before = descriptors()
        clients = connect(listener, 3)

        async def accept() -> None:
            async with ring.stream(AcceptMultishot(listener)) as accepted:
                async for cqe in accepted:
                    os.close(cqe.result())

        assert await kit.cut_off(turns, accept) == (True, None)
        assert not ring._takers
        for client in clients:
            close_at_once(client)
        assert descriptors() == before

    kit.run(main)


def test_dropped_stream_warns_and_is_cancelled(
    kit: Kit, listener: socket.socket, descriptors: Callable[[], set[str]]
) -> None:
    """A stream that nobody closes warns; what it has, and what still comes, is closed."""

    async def main() -> None:
        ring = uring.aio.ring()
        before = descriptors()
        clients = connect(listener, 3)
        accepted = ring.stream(AcceptMultishot(listener))
        os.close((await anext(accepted)).result())
        with pytest.warns(ResourceWarning, match="was dropped without aclose"):
            del accepted  # which drops it
        gc.collect()
        clients += connect(listener, 1)
        assert not await kit.within(SOON, lambda: gone(ring))
        for client in clients:
            close_at_once(client)
        assert descriptors() == before

    async def gone(ring: uring.aio.Ring) -> None:
        while ring._takers:
            await kit.sleep(0.001)

    kit.run(main)


def test_stream_is_read_by_one_task(kit: Kit, listener: socket.socket) -> None:
    """A second task that reads at the same time is refused, and the first one goes on."""

    async def main() -> None:
        ring = uring.aio.ring()
        async with ring.stream(AcceptMultishot(listener)) as accepted:

            async def second() -> None:
                await until(kit, lambda: accepted._waiter is not None)
                with pytest.raises(RuntimeError, match="another task is reading"):
                    await anext(accepted)
                connect(listener, 1)[0].close()

            cqe, _ = await kit.all(lambda: anext(accepted), second)
            os.close(cqe.result())

    kit.run(main)


def test_failure_is_raised_once(kit: Kit, file: int) -> None:
    """An operation that fails raises its error at the first reading; then the stream is over."""

    async def main() -> None:
        ring = uring.aio.ring()
        stream = ring.stream(AcceptMultishot(file))
        with pytest.raises(OSError, match="socket") as caught:
            await anext(stream)
        assert caught.value.errno == errno.ENOTSOCK
        assert stream.outcome is StreamEnd.FAILED
        assert stream.terminal is not None
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    kit.run(main)


def test_zero_copy_send_gives_its_result_and_its_release(kit: Kit, listener: socket.socket) -> None:
    """The stream of a zero-copy send has two completions: the count, and the notification."""

    async def main() -> None:
        ring = uring.aio.ring()
        (left,) = connect(listener, 1)
        right = listener.accept()[0]
        with left, right:
            async with ring.stream(SendZc(left, b"data")) as sent:
                cqes = [cqe async for cqe in sent]
            assert [cqe.is_notification for cqe in cqes] == [False, True]
            assert cqes[0].result() == 4
            assert right.recv(10) == b"data"

    kit.run(main)


def test_other_operations_are_streams_of_one(kit: Kit, file: int) -> None:
    """What completes once is a stream of one completion, with all that belongs to it."""

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(3)
        cqes = [cqe async for cqe in ring.stream(Read(file, buffer, 0))]
        assert [cqe.result() for cqe in cqes] == [3]
        assert cqes[0].op is not None

    kit.run(main)


def test_timer_ticks_until_its_count(kit: Kit) -> None:
    """A multishot timeout of five ticks five times, and is finished."""

    async def main() -> None:
        stream = uring.aio.ring().stream(TimeoutMultishot(0.001, count=5))
        assert [cqe.result() async for cqe in stream] == [True] * 5
        assert stream.outcome is StreamEnd.FINISHED

    kit.run(main)


def test_stream_ends_with_its_ring(kit: Kit, pipe: tuple[int, int]) -> None:
    """A reader that waits when the ring is closed gets RingClosedError, and so does the next."""

    async def main() -> None:
        ring = uring.aio.Ring(8)
        stream = ring.stream(PollMultishot(pipe[0], select.POLLIN))

        async def read() -> None:
            with pytest.raises(uring.RingClosedError):
                await anext(stream)

        async def close() -> None:
            await until(kit, lambda: stream._waiter is not None)
            ring.close()

        await kit.all(read, close)
        with pytest.raises(uring.RingClosedError):
            await anext(stream)
        await stream.aclose()

    kit.run(main)


@pytest.mark.parametrize("limit", [0, -1, "4", 2**32])
def test_limit_that_cannot_be_is_refused(kit: Kit, limit: object, listener: socket.socket) -> None:
    """A limit is 1 or more, and an integer; nothing is queued."""

    async def main() -> None:
        ring = uring.aio.ring()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises((ValueError, TypeError), match="limit"):
                ring.stream(AcceptMultishot(listener), limit=limit)  # type: ignore[arg-type]  # on purpose
        with pytest.raises(ValueError, match="part of a chain"):
            ring.stream(Nop().linked())
        assert ring.plain.in_flight == 0

    kit.run(main)


# ---- found by breaking it ----


async def paused(kit: Kit, stream: uring.aio.Stream) -> None:
    """Wait until a stream of which nothing is read has been paused."""
    while not stream._is_paused:
        await kit.sleep(0.005)


async def close_unread(stream: uring.aio.Stream) -> None:
    """Read what there is until an error, and close it."""
    while True:
        os.close((await anext(stream)).result())


def test_number_of_a_paused_stream_is_taken(
    kit: Kit, listener: socket.socket, pipe: tuple[int, int]
) -> None:
    """It says so instead of going on, loses nothing, and goes on when the number is free again."""

    async def main() -> None:
        ring = uring.aio.ring()
        clients = connect(listener, 3)
        async with ring.stream(AcceptMultishot(listener, user_data=7), limit=1) as accepted:
            await paused(kit, accepted)

            async def read() -> None:
                while 7 not in ring._takers:  # trio begins tasks in any order
                    await kit.sleep(0)
                with pytest.raises(ValueError, match="7 is in flight"):
                    await close_unread(accepted)
                os.write(pipe[1], b"x")

            other = Read(pipe[0], bytearray(1), user_data=7)
            assert not await kit.within(SOON, lambda: kit.all(lambda: ring.do(other), read))
            clients += connect(listener, 1)
            os.close((await anext(accepted)).result())
        for client in clients:
            client.close()

    kit.run(main)


def test_stream_that_cannot_go_on_says_so(kit: Kit) -> None:
    """Each time that it is read; and it can be closed."""
    listener = socket.create_server(("127.0.0.1", 0))

    async def main() -> None:
        ring = uring.aio.ring()
        clients = connect(listener, 3)

        async def use() -> None:
            async with ring.stream(AcceptMultishot(listener), limit=1) as accepted:
                await paused(kit, accepted)
                listener.close()
                for _ in range(2):
                    with pytest.raises(ValueError, match="-1"):
                        await close_unread(accepted)

        assert not await kit.within(SOON, use)
        for client in clients:
            client.close()

    kit.run(main)


def test_stream_is_closed_by_several(kit: Kit, listener: socket.socket) -> None:
    """Each waits for its end."""

    async def main() -> None:
        ring = uring.aio.ring()
        accepted = ring.stream(AcceptMultishot(listener))
        await until(kit, has(ring))

        async def close() -> None:
            await accepted.aclose()
            assert accepted.number not in ring._takers

        assert not await kit.within(SOON, lambda: kit.all(close, close, close))

    kit.run(main)


def test_reader_does_not_go_on_with_what_is_closed(kit: Kit, listener: socket.socket) -> None:
    """A stream that is closed while it is being paused ends, though somebody waits to read on."""

    async def main() -> None:
        ring = uring.aio.ring()
        clients: list[socket.socket] = []

        async def read(accepted: uring.aio.Stream) -> None:
            async for cqe in accepted:
                os.close(cqe.result())

        async def close(accepted: uring.aio.Stream) -> None:
            await until(kit, lambda: accepted._waiter is not None)
            clients.extend(connect(listener, 1))
            number = accepted.number
            while not accepted._pause_is_asked and not accepted._is_paused:
                await kit.sleep(0)
                if accepted.number != number:  # it was paused, and has gone on, between two looks
                    break
            await accepted.aclose()
            assert accepted.outcome is StreamEnd.CANCELLED
            assert accepted.number not in ring._takers

        for _ in range(20):
            accepted = ring.stream(AcceptMultishot(listener), limit=1)
            clients.clear()
            both = partial(read, accepted), partial(close, accepted)
            assert not await kit.within(SOON, lambda both=both: kit.all(*both))
            for client in clients:
                client.close()

    kit.run(main)


def test_stream_waits_for_the_kernel_while_its_ring_is_closed(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """aclose() of a stream is a barrier also when that of its ring waits."""

    async def main() -> None:
        ring = uring.aio.Ring(8)
        ticks = ring.stream(PollMultishot(pipe[0], select.POLLIN))
        await until(kit, has(ring))
        cancel = ring._queue_cancel
        monkeypatch.setattr(ring, "_queue_cancel", lambda _number: None)

        async def leave() -> None:
            await until(kit, lambda: ring.closed)
            await ticks.aclose()
            assert ticks.number not in ring._takers

        async def allow() -> None:
            await until(kit, lambda: bool(ticks._closers))
            monkeypatch.setattr(ring, "_queue_cancel", cancel)

        await kit.all(ring.aclose, leave, allow)

    kit.run(main)


def test_object_without_a_repr_harms_its_stream_alone(kit: Kit) -> None:
    """The error of a stream is made for its reader; others have their results."""

    class File:
        def fileno(self) -> int:
            return 10**6

        def __repr__(self) -> str:
            raise KeyError("no name")

    async def main() -> None:
        ring = uring.aio.ring()

        async def fails() -> None:
            async with ring.stream(PollMultishot(File(), select.POLLIN)) as polls:
                with pytest.raises((KeyError, OSError)):
                    await anext(polls)

        async def nop() -> None:
            assert await ring.do(uring.Timeout(0.001))

        assert not await kit.within(SOON, lambda: kit.all(fails, nop, fails, nop))

    kit.run(main)
