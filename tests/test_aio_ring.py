"""The ring of an event loop: operations and batches that tasks await."""

import asyncio
import contextlib
import contextvars
import errno
import gc
import os
import random
import select
import socket
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
import uvloop
from aio import KITS, Kit, has, until

import uring
import uring.aio
from uring import (
    AUTO,
    SQE,
    AcceptMultishot,
    Batch,
    Close,
    FilesAlloc,
    Fixed,
    Fsync,
    Nop,
    Opcode,
    Openat,
    Pipe,
    PollAdd,
    PollFlags,
    PollMultishot,
    PollUpdate,
    Read,
    ReadMany,
    Recv,
    RingClosedError,
    SendZc,
    SetupFlags,
    SQEFlags,
    Timeout,
    Write,
    link,
)

SOON = 20.0


@pytest.fixture(params=KITS, ids=lambda kit: kit.name, autouse=True)
def kit(request: pytest.FixtureRequest, ring: uring.Ring) -> Kit:  # noqa: ARG001 - asks for it
    """Give each event loop in turn, where there are rings."""
    made: Kit = request.param
    return made


# ---- one operation ----


def test_do_gives_typed_results_and_errors(kit: Kit, file: int) -> None:
    """A count, a descriptor, a record; and the OSError of an errno with the operation as a note."""

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(4)
        assert await ring.do(Read(file, buffer, 3)) == 4
        assert buffer == b"3456"
        root = os.stat("/")  # noqa: PTH116 - for a test it may block
        assert (await ring.do(uring.Statx("/"))).ino == root.st_ino
        number = await ring.do(Openat("/"))
        assert os.path.samestat(os.fstat(number), root)
        assert await ring.do(Close(number)) == 0
        with pytest.raises(FileNotFoundError) as caught:
            await ring.do(Openat("/no/such"))
        assert caught.value.filename == "/no/such"
        assert caught.value.__notes__ == ["in Openat(path='/no/such')"]
        assert await ring.do(Timeout(0.001)) is True
        assert await ring.do(SQE(Opcode.NOP)) == 0

    kit.run(main)


def test_ring_is_one_for_each_loop_and_closed_with_it(kit: Kit) -> None:
    """ring() gives the same within a loop, another in the next, and each ends with its loop."""

    async def main() -> uring.aio.Ring:
        ring = uring.aio.ring()
        await kit.sleep(0)
        assert uring.aio.ring() is ring
        assert not ring.closed
        return ring

    first, second = kit.run(main), kit.run(main)
    assert first is not second
    assert first.closed
    assert first.plain.closed
    assert first.plain.in_flight == 0
    with pytest.raises(RuntimeError, match="no event loop is running"):
        uring.aio.ring()


def test_one_turn_is_submitted_once(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 100 tasks queue in one turn is one call of submit(), and so is one wake-up for all."""

    async def main() -> None:
        ring = uring.aio.ring()
        calls = []
        submit = ring.plain.submit
        monkeypatch.setattr(ring.plain, "submit", lambda: calls.append(submit()))
        await kit.all(*[lambda: ring.do(Nop())] * 100)
        assert [count for count in calls if count] == [100]

    kit.run(main)


@pytest.mark.parametrize("entries", [1, 4, 256])
def test_full_queue_waits_its_turn(kit: Kit, entries: int) -> None:
    """Thousands of operations at once on a ring of any size: each gives its result."""

    async def main() -> None:
        async with uring.aio.Ring(entries) as ring:
            results = await kit.all(*[lambda: ring.do(Nop())] * 3000)
            assert results == [0] * 3000
            assert await kit.all(*[lambda: ring.do(Timeout(0.01))] * 1000) == [True] * 1000

    kit.run(main)


def test_thousands_of_reads_bring_their_own_bytes(kit: Kit, tmp_path: Path) -> None:
    """4,000 tasks read from a file at once, each what stands at its place."""
    content = random.Random(1).randbytes(1 << 20)
    (tmp_path / "data").write_bytes(content)

    async def main() -> None:
        ring = uring.aio.ring()
        with (tmp_path / "data").open("rb") as data:

            async def read(place: int) -> None:
                buffer = bytearray(200)
                assert await ring.do(Read(data, buffer, place)) == 200
                assert buffer == content[place : place + 200]

            await kit.all(*[lambda place=place: read(place * 250) for place in range(4000)])

    kit.run(main)


@pytest.mark.parametrize(
    ("op", "error", "says"),
    [
        (AcceptMultishot(0), ValueError, r"any number of times: use stream\(\)"),
        (SQE(Opcode.READ_MULTISHOT), ValueError, "any number of times"),
        (Nop().linked(), ValueError, r"part of a chain"),
        (Nop(flags=SQEFlags.CQE_SKIP_SUCCESS), ValueError, "skips its completion"),
        ("nop", TypeError, "not str"),
        (Read(0, b"read-only"), TypeError, "read-only|writable"),
        (Read("x", bytearray(1)), TypeError, "fileno"),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_what_cannot_be_awaited_is_refused(
    kit: Kit, op: Any, error: type[Exception], says: str
) -> None:
    """What completes several times, or not alone, and what is wrong: nothing is queued."""

    async def main() -> None:
        ring = uring.aio.ring()
        with pytest.raises(error, match=says):
            await ring.do(op)
        assert ring.plain.in_flight == 0
        assert await ring.do(Nop()) == 0

    kit.run(main)


def test_number_in_flight_is_not_given_twice(kit: Kit, pipe: tuple[int, int]) -> None:
    """A user_data that the caller chose is refused while it is in flight, and free afterwards."""

    async def main() -> None:
        ring = uring.aio.ring()

        async def second() -> None:
            await kit.sleep(0)
            with pytest.raises(ValueError, match="user_data 7 is in flight"):
                await ring.do(Nop(user_data=7))
            os.write(pipe[1], b"x")

        await kit.all(lambda: ring.do(Read(pipe[0], bytearray(1), user_data=7)), second)
        assert await ring.do(Nop(user_data=7)) == 0

    kit.run(main)


def test_zero_copy_send_is_over_when_its_memory_is_free(kit: Kit, listener: socket.socket) -> None:
    """do(SendZc) gives the count, and only when the notification has come: nothing is in flight."""

    async def main() -> None:
        ring = uring.aio.ring()
        with (
            socket.create_connection(listener.getsockname()) as left,
            listener.accept()[0] as right,
        ):
            data = bytearray(b"x" * 5000)
            count = await ring.do(SendZc(left, data))
            assert count > 0
            assert ring.plain.in_flight == 0
            data.append(0)
            buffer = bytearray(5000)
            got = 0
            while got < count:
                got += await ring.do(Recv(right, memoryview(buffer)[got:]))
            assert buffer[:count] == b"x" * count

    kit.run(main)


def test_zero_copy_send_ends_with_its_connection(kit: Kit, listener: socket.socket) -> None:
    """To a peer that does not read it keeps its memory, also when cancelled, until a reset."""

    async def main() -> None:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
        data, ended = bytearray(8 << 20), []

        async def send() -> None:
            await kit.within(0.05, lambda: uring.aio.ring().do(SendZc(left, data)))
            ended.append(send)

        async def reset() -> None:
            await kit.sleep(0.3)
            assert not ended
            with pytest.raises(BufferError):
                data.append(0)
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            left.close()

        with right:
            await kit.all(send, reset)
        data.append(0)

    kit.run(main)


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 2**64, -1])
def test_numbers_of_the_ring_are_not_given_away(
    kit: Kit, number: int, pipe: tuple[int, int]
) -> None:
    """A user_data from 2**63 on, which the ring may have in use, is refused; all below are free."""

    async def main() -> None:
        ring = uring.aio.ring()
        with pytest.raises(ValueError, match="user_data"):
            await ring.do(Read(pipe[0], bytearray(1), user_data=number))
        with pytest.raises(ValueError, match="user_data"):
            await ring.run([Nop(user_data=number)])
        with pytest.raises(ValueError, match="user_data"):
            ring.stream(PollMultishot(pipe[0], select.POLLIN, user_data=number))
        assert ring.plain.in_flight == 0
        for low in (0, 1, 2**63 - 1):
            assert await ring.do(Nop(user_data=low)) == 0

    kit.run(main)


def test_what_is_awaited_keeps_its_number(kit: Kit, pipe: tuple[int, int]) -> None:
    """A poll cannot be renamed: its end would come under a number that nobody waits for."""

    async def main() -> None:
        ring = uring.aio.ring()

        async def rename() -> None:
            await kit.sleep(0)
            for op in (
                PollUpdate(5, new_user_data=6),
                SQE(Opcode.POLL_REMOVE, addr=5, off=6, len=PollFlags.UPDATE_USER_DATA),
            ):
                with pytest.raises(ValueError, match="keeps its user_data"):
                    await ring.do(op)
            os.write(pipe[1], b"x")

        poll = PollAdd(pipe[0], select.POLLIN, user_data=5)
        assert (await kit.all(lambda: ring.do(poll), rename))[0]

    kit.run(main)


def test_class_of_ones_own_is_what_it_is_made_of(kit: Kit, listener: socket.socket) -> None:
    """A class derived from a multishot operation is refused as that would be."""

    class Mine(AcceptMultishot):
        pass

    async def main() -> None:
        with pytest.raises(ValueError, match=r"use stream\(\)"):
            await uring.aio.ring().do(Mine(listener))

    kit.run(main)


# ---- cancellation ----


def test_cancelled_read_lets_go_of_its_buffer(kit: Kit, pipe: tuple[int, int]) -> None:
    """When the task sees its cancellation the kernel is done: no byte comes, and it can grow."""

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(b"canary")
        was_free = []

        async def read() -> None:
            try:
                await ring.do(Read(pipe[0], buffer))
            except BaseException:
                was_free.append(ring.plain.in_flight)
                buffer.extend(b"!")  # BufferError, if it were still pinned
                raise

        for turns in range(6):
            del buffer[6:]
            assert await kit.cut_off(turns, read) == (True, None)
        os.write(pipe[1], b"12345678")
        assert buffer == b"canary!"
        target = bytearray(8)
        assert await ring.do(Read(pipe[0], target)) == 8
        # The reminder is all that may still be there.
        assert max(was_free, default=0) <= 2
        assert was_free

    kit.run(main)


@pytest.mark.parametrize("turns", range(8))
def test_descriptor_that_won_the_race_is_not_lost(
    kit: Kit, turns: int, descriptors: Callable[[], set[str]]
) -> None:
    """An open that is cancelled in any turn: its descriptor is given to the task, or closed."""

    async def main() -> None:
        ring = uring.aio.ring()
        before = descriptors()
        was_cancelled, number = await kit.cut_off(turns, lambda: ring.do(Openat("/")))
        if not was_cancelled:
            os.close(number)
        assert descriptors() == before

    kit.run(main)


@pytest.mark.parametrize("turns", range(8))
def test_slot_that_won_the_race_is_emptied(kit: Kit, turns: int) -> None:
    """The same of a registered file in a slot that the kernel chose: the only one is free again."""

    async def main() -> None:
        ring = uring.aio.ring()
        with ring.plain.register_files([-1]):
            was_cancelled, _ = await kit.cut_off(turns, lambda: ring.do(Openat("/", slot=AUTO)))
            if was_cancelled:
                await kit.sleep(0)
                await kit.sleep(0)
                assert await ring.do(Openat("/", slot=AUTO)) == Fixed(0)

    kit.run(main)


def test_result_that_won_the_race_is_told(kit: Kit, pipe: tuple[int, int]) -> None:
    """A read that had its bytes: trio's task has the count, others a note on their cancellation."""
    os.write(pipe[1], b"bytes")
    notes: list[str] = []

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(5)

        async def read() -> Any:
            try:
                return await ring.do(Read(pipe[0], buffer))
            except BaseException as error:
                notes.extend(getattr(error, "__notes__", ()))
                raise

        was_cancelled, count = await kit.cut_off(2, read)
        assert buffer == b"bytes"
        if kit.name == "trio":
            assert (was_cancelled, count) == (False, 5)
        else:
            assert was_cancelled
            assert [note[-30:] for note in notes] == ["was done all the same: res is 5"[-30:]]

    kit.run(main)


def test_opening_of_a_fifo_is_cancelled(kit: Kit, tmp_path: Path) -> None:
    """A worker of the kernel waits for the other end, and ends with an errno that is its own."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

    async def main() -> None:
        ring = uring.aio.Ring(8)
        for _ in range(5):
            was_cancelled, _ = await kit.cut_off(5, lambda: ring.do(Openat(fifo, flags)))
            assert was_cancelled

        async def wait() -> None:
            with pytest.raises(RingClosedError):
                await ring.do(Openat(fifo, flags))

        async def close() -> None:
            await until(kit, has(ring))
            await ring.aclose()

        await kit.all(wait, close)

    kit.run(main)


def test_timeouts_are_those_of_the_loop(kit: Kit, pipe: tuple[int, int]) -> None:
    """asyncio.timeout() and trio.move_on_after() end an operation, and a batch, in the kernel."""

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(8)
        assert await kit.within(0.02, lambda: ring.do(Read(pipe[0], buffer)))
        buffer.append(0)
        assert await kit.within(0.02, lambda: ring.run([Nop(), Read(pipe[0], buffer)]))
        buffer.append(0)
        assert not await kit.within(SOON, lambda: ring.do(Nop()))
        os.write(pipe[1], b"whole")
        assert await ring.do(Read(pipe[0], buffer)) == 5

    kit.run(main)


def test_cancelling_what_waits_for_room_never_begins_it(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cancelled before there was room for it does not run; the kernel takes nothing yet."""

    async def main() -> None:
        async with uring.aio.Ring(1) as ring:
            submit = ring.plain.submit

            def refuse() -> int:
                raise uring.EnterError(errno.EAGAIN, "not now")

            monkeypatch.setattr(ring.plain, "submit", refuse)

            async def write() -> None:
                await kit.all(*[lambda: ring.do(Write(pipe[1], b"x"))] * 50)

            async def cut_off() -> None:
                await kit.cut_off(3, write)

            async def allow() -> None:
                for _ in range(20):
                    await kit.sleep(0)
                monkeypatch.setattr(ring.plain, "submit", submit)

            await kit.all(cut_off, allow)
            os.write(pipe[1], b"end")
            assert os.read(pipe[0], 100) in {b"end", b"xend"}  # one was in the queue itself
            assert not ring._takers

    kit.run(main)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_closing_ends_what_waits_for_room_and_was_cancelled_just_now(
    factory: Callable[[], asyncio.AbstractEventLoop],
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task has not seen its cancellation, and its future takes no result any more."""
    said: list[dict[str, Any]] = []

    def refuse() -> int:
        raise uring.EnterError(errno.EAGAIN, "not now")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: said.append(what))
        ring = uring.aio.Ring(1)
        with monkeypatch.context() as patch:
            patch.setattr(ring.plain, "submit", refuse)
            read = Read(pipe[0], bytearray(1))
            tasks = [asyncio.ensure_future(ring.do(read)) for _ in range(3)]
            await asyncio.sleep(0)
            assert len(ring._backlog) == 2
        for task in tasks:
            task.cancel()
        await ring.aclose()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert not said


@pytest.mark.parametrize("is_run", [False, True], ids=["do", "run"])
def test_cancellation_waits_for_what_cannot_be_stopped(kit: Kit, *, is_run: bool) -> None:
    """A read that a worker of the kernel is busy with ends first, and so frees its buffer."""

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(16 << 20)
        fd = await ring.do(Openat("/dev/urandom"))
        op = Read(fd, buffer, flags=SQEFlags.ASYNC)

        async def read() -> None:
            try:
                await (ring.run([op]) if is_run else ring.do(op))
            finally:
                buffer.append(0)  # BufferError, if it were still pinned

        await kit.within(0.005, read)
        assert len(buffer) == (16 << 20) + 1
        await ring.do(Close(fd))

    kit.run(main)


@pytest.mark.slow
def test_cancellation_at_random_times_corrupts_nothing(kit: Kit) -> None:
    """
    2,000 reads from pipes are cancelled at random while bytes are written; buffers are reused.

    Each byte that was written is either read, or still in the pipe, or told of in the result that
    was in time; no buffer changes outside of a read.
    """
    chance = random.Random(5)

    async def main() -> None:
        ring = uring.aio.ring()

        async def one(place: int) -> None:
            inlet, outlet = os.pipe()
            os.set_blocking(inlet, False)
            buffer = bytearray(64)
            own = bytes([place % 250 + 1])
            try:
                for _ in range(40):
                    buffer[:] = bytes(64)
                    written = chance.randrange(3)
                    os.write(outlet, own * written)
                    turns = chance.randrange(5)
                    was_cancelled, count = await kit.cut_off(
                        turns, lambda: ring.do(Read(inlet, buffer))
                    )
                    found = buffer.count(own)
                    assert buffer == own * found + bytes(64 - found)
                    if not was_cancelled:
                        assert count == found
                    buffer.extend(b"grow")
                    del buffer[64:]
                    before = bytes(buffer)
                    os.write(outlet, own)
                    await kit.sleep(0)
                    assert buffer == before
                    os.read(inlet, 64)
            finally:
                os.close(inlet)
                os.close(outlet)

        await kit.all(*[lambda place=place: one(place) for place in range(50)])

    kit.run(main)


def test_cancel_that_the_kernel_missed_is_repeated(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first request to cancel finds nothing, as in a race, the next one does."""
    asked: list[int] = []

    async def main() -> None:
        ring = uring.aio.ring()
        real = uring.AsyncCancel

        def missing(number: int) -> Any:
            asked.append(number)
            return real(number if len(asked) > 2 else 1)

        monkeypatch.setattr("uring.aio._exchange.AsyncCancel", missing)
        assert await kit.within(0.01, lambda: ring.do(Read(pipe[0], bytearray(1))))

    kit.run(main)
    assert len(asked) == 3


def test_what_comes_before_the_reset_is_found(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completion that comes right before the eventfd is reset is not slept through."""

    async def main() -> None:
        ring = uring.aio.ring()
        reset = ring._reset_eventfd
        resets: list[int] = []

        def late() -> None:
            if not resets:
                os.write(pipe[1], b"x")
            resets.append(1)
            reset()

        async def nop() -> None:
            await until(kit, has(ring))
            monkeypatch.setattr(ring, "_reset_eventfd", late)
            await ring.do(Nop())

        async def both() -> None:
            await kit.all(lambda: ring.do(Read(pipe[0], bytearray(1))), nop)

        assert not await kit.within(5, both)
        assert resets

    kit.run(main)


# ---- batches ----


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_run_gives_results_in_order(kit: Kit, count: int, file: int) -> None:
    """A batch of any length: the completions are in the order of the operations."""

    async def main() -> None:
        async with uring.aio.Ring(8) as ring:
            target = bytearray(count)
            done = await ring.run(ReadMany(file, target, [i % 10 for i in range(count)], 1))
            assert list(done.res) == [1] * count
            assert target == (b"0123456789" * (count // 10 + 1))[:count]

    kit.run(main)


def test_run_gives_the_completions_of_its_batch(kit: Kit) -> None:
    """Of many statx they have the columns; a batch can be run again, and at once."""

    async def main() -> None:
        ring = uring.aio.ring()
        batch = uring.StatxMany(["/", "/dev", "/no/such"])
        for done in await kit.all(*[lambda: ring.run(batch)] * 3):
            assert list(done.res) == [0, 0, -errno.ENOENT]
            assert done[0].result().ino == os.stat("/").st_ino  # noqa: PTH116 - it may block

    kit.run(main)


def test_run_waits_while_others_go_on(kit: Kit, pipe: tuple[int, int]) -> None:
    """Two batches and single operations at once: each gets its own, whatever comes first."""

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(1)
        waiting = Batch([Read(pipe[0], buffer), Timeout(0.02), Nop()])

        async def others() -> int:
            for _ in range(20):
                assert list((await ring.run([Nop()] * 300)).res) == [0] * 300
                assert await ring.do(Nop()) == 0
            os.write(pipe[1], b"!")
            return 20

        done, count = await kit.all(lambda: ring.run(waiting), others)
        assert list(done.res) == [1, -errno.ETIME, 0]
        assert (buffer, count) == (b"!", 20)

    kit.run(main)


def test_run_keeps_chains_together(kit: Kit, tmp_path: Path) -> None:
    """A chain is done in order, and what stands behind a failure is cancelled."""

    async def main() -> None:
        ring = uring.aio.ring()
        with (tmp_path / "file").open("wb") as file:
            done = await ring.run(link(Write(file, b"one", 0), Write(file, b"two", 3), Fsync(file)))
            assert list(done.res) == [3, 3, 0]
            done = await ring.run(link(Fsync(-1), Write(file, b"lost", 6)))
            assert list(done.res) == [-errno.EBADF, -errno.ECANCELED]
        assert (tmp_path / "file").read_bytes() == b"onetwo"
        with pytest.raises(ValueError, match="does not fit"):
            await ring.run(link(*[Nop()] * 257))

    kit.run(main)


@pytest.mark.parametrize("turns", range(6))
def test_cancelled_run_leaves_nothing(
    kit: Kit, turns: int, pipe: tuple[int, int], descriptors: Callable[[], set[str]]
) -> None:
    """A batch that is cut off in any turn: buffers are free, new descriptors closed."""

    async def main() -> None:
        ring = uring.aio.ring()
        before = descriptors()
        buffer = bytearray(1)
        ops = [*[Openat("/")] * 3, Read(pipe[0], buffer), *[Nop()] * 600]

        async def run() -> None:
            try:
                await ring.run(ops)
            except BaseException:
                buffer.append(1)  # BufferError, if it were still pinned
                raise

        assert await kit.cut_off(turns, run) == (True, None)
        assert descriptors() == before
        assert ring.plain.in_flight <= 1  # the reminder

    kit.run(main)


# ---- the end ----


def test_leaving_the_block_cancels_and_drains(kit: Kit, pipe: tuple[int, int]) -> None:
    """Tasks that still wait get RingClosedError, and their buffers are free by then."""

    async def main() -> None:
        buffers = [bytearray(4) for _ in range(3)]
        told: list[str] = []

        async def wait(ring: uring.aio.Ring, buffer: bytearray, *, is_run: bool) -> None:
            op = Read(pipe[0], buffer)
            with pytest.raises(uring.RingClosedError) as caught:
                await (ring.run([op]) if is_run else ring.do(op))
            buffer.append(0)
            told.append(str(caught.value))

        async def block(made: uring.aio.Ring) -> None:
            async with made:
                await until(kit, has(made, 3))
            assert made.plain.closed

        ring = uring.aio.Ring(8)
        await kit.all(
            lambda: wait(ring, buffers[0], is_run=False),
            lambda: wait(ring, buffers[1], is_run=False),
            lambda: wait(ring, buffers[2], is_run=True),
            lambda: block(ring),
        )
        assert told == ["the ring is closed"] * 3
        with pytest.raises(uring.RingClosedError):
            await ring.do(Nop())
        with pytest.raises(uring.RingClosedError):
            await ring.run([Nop()])
        await ring.aclose()
        ring.close()

    kit.run(main)


def test_descriptors_of_a_loop_are_closed_with_it(
    kit: Kit, descriptors: Callable[[], set[str]]
) -> None:
    """Neither the ring nor its eventfd are left, nor what operations have opened meanwhile."""

    async def main() -> None:
        async with uring.aio.Ring(8) as own:
            await own.do(Nop())
        await uring.aio.ring().do(Nop())

    kit.run(main)  # what is made once, is made
    before = descriptors()
    for _ in range(5):
        kit.run(main)
    gc.collect()
    assert descriptors() == before


def test_error_of_submitting_is_told_to_all(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel has no memory it is asked again; another refusal ends the ring and waits."""

    async def main() -> None:
        ring = uring.aio.ring()
        submit = ring.plain.submit
        answers = [errno.EAGAIN, errno.EBUSY, errno.ENOMEM]

        def refuse() -> int:
            if answers:
                number = answers.pop()
                raise uring.EnterError(number, "no")
            return submit()

        monkeypatch.setattr(ring.plain, "submit", refuse)
        assert await ring.do(Nop()) == 0
        assert not answers
        answers += [errno.EPERM]

        async def wait() -> None:
            with pytest.raises(uring.RingClosedError, match="no"):
                await ring.do(Read(pipe[0], bytearray(1)))

        await kit.all(wait, wait)
        assert ring.closed
        again = uring.aio.ring()
        assert again is not ring
        assert await again.do(Nop()) == 0

    kit.run(main)


def test_kernel_without_deferred_work_has_rings_too(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DEFER_TASKRUN is refused, as before Linux 6.1, a ring without flags does as well."""
    real = uring.Ring

    def old(*args: Any, flags: SetupFlags, **options: Any) -> uring.Ring:
        if flags & SetupFlags.DEFER_TASKRUN:
            raise uring.SetupError(errno.EINVAL, "older than 6.1")
        return real(*args, flags=flags, **options)

    monkeypatch.setattr("uring.aio._ring.PlainRing", old)

    async def main() -> None:
        ring = uring.aio.ring()
        assert not ring.plain.flags & SetupFlags.DEFER_TASKRUN
        assert await kit.all(*[lambda: ring.do(Nop())] * 500) == [0] * 500
        assert await kit.within(0.01, lambda: ring.do(Read(pipe[0], bytearray(1))))

        async def write() -> None:
            await until(kit, has(ring))
            os.write(pipe[1], b"x")

        assert (await kit.all(lambda: ring.do(Read(pipe[0], bytearray(1))), write))[0] == 1

    kit.run(main)


@pytest.mark.parametrize("flag", [SetupFlags.SQPOLL, SetupFlags.IOPOLL, SetupFlags.R_DISABLED])
def test_shapes_that_do_not_go_with_a_loop_are_refused(kit: Kit, flag: SetupFlags) -> None:
    """SQPOLL, IOPOLL and R_DISABLED are refused by name."""

    async def main() -> None:
        with pytest.raises(ValueError, match=str(flag.name)):
            uring.aio.Ring(8, flags=flag)

    kit.run(main)


# ---- among other things ----


@pytest.mark.slow
def test_wakeups_are_never_lost(kit: Kit) -> None:
    """
    10,000 times a thread answers at a time of its own: the task always wakes up.

    One byte goes there and one comes back, so a lost wake-up would be a wait without end.
    """
    there, back = os.pipe(), os.pipe()
    chance = random.Random(3)

    def answer() -> None:
        while byte := os.read(there[0], 1):
            for _ in range(chance.choice([0, 0, 50, 500])):
                pass
            os.write(back[1], byte)

    thread = threading.Thread(target=answer)
    thread.start()

    async def main() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(1)
        for i in range(10_000):
            if i % 2:
                await kit.all(
                    lambda: ring.do(Write(there[1], b"x")), lambda: ring.do(Read(back[0], buffer))
                )
            else:
                os.write(there[1], b"y")
                await (ring.run([Read(back[0], buffer)]) if i % 4 else ring.do(Nop()))
                if not i % 4:
                    assert await ring.do(Read(back[0], buffer)) == 1

    try:
        kit.run(main)
    finally:
        os.close(there[1])
        thread.join(SOON)
        for fd in (there[0], *back):
            os.close(fd)
    assert not thread.is_alive()


def test_two_loops_in_two_threads_share_nothing(kit: Kit, in_thread: Callable[..., None]) -> None:
    """Loops in several threads at once: each has a ring, and all results are their own."""
    rings: set[int] = set()
    at_once = threading.Barrier(3)

    async def main() -> None:
        ring = uring.aio.ring()
        rings.add(id(ring))
        at_once.wait(SOON)
        for _ in range(20):
            assert await kit.all(*[lambda: ring.do(Nop())] * 100) == [0] * 100

    threads = [threading.Thread(target=in_thread, args=[lambda: kit.run(main)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    kit.run(main)
    for thread in threads:
        thread.join(SOON)
    assert len(rings) == 3


def test_ring_of_another_thread_is_refused(kit: Kit, in_thread: Callable[..., None]) -> None:
    """An operation from another thread's loop is WrongThreadError, and the ring goes on."""

    async def main() -> None:
        ring = uring.aio.ring()

        async def elsewhere() -> None:
            with pytest.raises(uring.WrongThreadError):
                await ring.do(Nop())
            with pytest.raises(uring.WrongThreadError):
                ring.close()

        in_thread(lambda: kit.run(elsewhere))
        assert await ring.do(Nop()) == 0

    kit.run(main)


def test_errors_of_one_task_are_its_own(kit: Kit) -> None:
    """A failing operation raises where it is awaited, in the frame of the task; others go on."""

    async def main() -> None:
        ring = uring.aio.ring()

        async def fails_here() -> str:
            try:
                await ring.do(Openat("/no/such"))
            except OSError as error:
                return "".join(traceback.format_tb(error.__traceback__))
            return ""

        text, *rest = await kit.all(fails_here, *[lambda: ring.do(Nop())] * 50)
        assert "fails_here" in text
        assert rest == [0] * 50

    kit.run(main)


def test_context_variables_stay_with_their_task(kit: Kit) -> None:
    """After an await each task finds its own context, as ever."""
    who: contextvars.ContextVar[int] = contextvars.ContextVar("who")

    async def main() -> None:
        ring = uring.aio.ring()

        async def work(number: int) -> None:
            who.set(number)
            for op in (Nop(), Timeout(0.001), Nop()):
                await ring.do(op)
                assert who.get() == number

        await kit.all(*[lambda number=number: work(number) for number in range(30)])

    kit.run(main)


def test_loop_in_a_forked_child_has_a_ring_of_its_own(kit: Kit) -> None:
    """The child of a fork runs a loop of its own with a ring; the parent's loop goes on."""

    async def child() -> None:
        assert await uring.aio.ring().do(Nop()) == 0

    async def main() -> uring.aio.Ring:
        ring = uring.aio.ring()
        assert await ring.do(Nop()) == 0
        return ring

    kit.run(main)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork() beside threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            kit.run(child)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    kit.run(main)


class TestAsyncio:
    """What only asyncio has."""

    def test_loop_closed_with_work_in_flight(self, pipe: tuple[int, int]) -> None:
        """A loop that is closed under its tasks: the ring warns, and takes the memory back."""
        buffer = bytearray(b"canary")
        loop = asyncio.new_event_loop()

        async def main() -> uring.Ring:
            ring = uring.aio.ring()
            tasks.append(asyncio.ensure_future(ring.do(Read(pipe[0], buffer))))
            await until(KITS[0], has(ring))
            assert ring.plain.in_flight == 1
            return ring.plain

        tasks: list[Any] = []
        plain = loop.run_until_complete(main())
        loop.close()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for task in tasks:
                task._log_destroy_pending = False
            del task
            tasks.clear()
            gc.collect()
            plain.close()
        assert not plain.in_flight
        buffer.append(1)
        assert {warning.category for warning in caught} <= {ResourceWarning}

    def test_debug_mode_has_nothing_to_say(self, caplog: pytest.LogCaptureFixture) -> None:
        """With asyncio's debug mode on, thousands of operations log nothing."""

        async def main() -> None:
            ring = uring.aio.ring()
            asyncio.get_running_loop().slow_callback_duration = 30
            await asyncio.gather(*[ring.do(Nop()) for _ in range(3000)])

        asyncio.run(main(), debug=True)
        assert [r.message for r in caplog.records if "selector" not in r.message] == []

    def test_cancelling_twice_is_cancelling_once(self, pipe: tuple[int, int]) -> None:
        """A task that is cancelled again while the kernel lets go sees one CancelledError."""

        async def main() -> None:
            ring = uring.aio.ring()
            buffer = bytearray(1)
            seen = []

            async def read() -> None:
                try:
                    await ring.do(Read(pipe[0], buffer))
                except asyncio.CancelledError as error:
                    buffer.append(0)
                    seen.append(error)
                    raise

            task = asyncio.create_task(read())
            await until(KITS[0], has(ring))
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert len(seen) == 1

        asyncio.run(main())

    def test_coroutine_that_is_closed_cancels_its_operation(self, pipe: tuple[int, int]) -> None:
        """A coroutine that is closed by hand, as the collector does it, leaves nothing behind."""

        async def main() -> None:
            ring = uring.aio.ring()
            buffer = bytearray(1)
            coroutine = ring.do(Read(pipe[0], buffer))
            coroutine.send(None)
            await until(KITS[0], has(ring))
            coroutine.close()
            async with asyncio.timeout(SOON):
                while ring._takers:  # noqa: ASYNC110 - nobody is told
                    await asyncio.sleep(0.001)
            buffer.append(0)

        asyncio.run(main())


# ---- found by breaking it ----


def test_number_of_the_cancelled_is_free_again(kit: Kit, pipe: tuple[int, int]) -> None:
    """Who has the user_data of what was cancelled before is not cancelled in its stead."""

    async def main() -> None:
        ring = uring.aio.ring()
        read = Read(pipe[0], bytearray(1), user_data=7)
        assert await kit.cut_off(3, lambda: ring.do(read)) == (True, None)

        async def write() -> None:
            await ring.do(Timeout(0.2))  # the reminder has come meanwhile
            os.write(pipe[1], b"x")

        assert (await kit.all(lambda: ring.do(read), write))[0] == 1

    kit.run(main)


@pytest.mark.parametrize("is_closing", [False, True], ids=["task", "aclose"])
def test_cancelling_passes_what_drains(
    kit: Kit, pipe: tuple[int, int], *, is_closing: bool
) -> None:
    """An operation with IO_DRAIN waits for a read, and does not keep it from being cancelled."""

    async def main() -> None:
        ring = uring.aio.Ring(8)

        async def read() -> None:
            with contextlib.suppress(RingClosedError):
                await ring.do(Read(pipe[0], bytearray(1)))

        async def drain() -> None:
            await until(kit, has(ring))
            assert await ring.do(Nop(flags=SQEFlags.IO_DRAIN)) == 0

        async def end() -> None:
            await until(kit, has(ring, 2))
            await ring.aclose()

        if is_closing:
            assert not await kit.within(SOON, lambda: kit.all(read, drain, end))
        else:
            assert not await kit.within(SOON, lambda: kit.all(lambda: kit.within(0.1, read), drain))
            await ring.aclose()

    kit.run(main)


@pytest.mark.parametrize("is_broken", [False, True], ids=["close", "break"])
def test_ring_closed_while_it_is_being_closed(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, *, is_broken: bool
) -> None:
    """When close(), or an error, comes while aclose() waits, all who wait for it go on."""

    async def main() -> None:
        ring = uring.aio.Ring(8)

        async def read() -> None:
            with pytest.raises(RingClosedError):
                await ring.do(Read(pipe[0], bytearray(1)))

        async def end() -> None:
            await until(kit, has(ring))
            monkeypatch.setattr(ring, "_queue_cancel", lambda _number: None)
            await ring.aclose()
            assert ring.plain.closed

        async def close() -> None:
            await until(kit, lambda: bool(ring._closers))
            if is_broken:
                ring._break(uring.EnterError(errno.ENXIO, "gone"))
            else:
                ring.close()

        assert not await kit.within(SOON, lambda: kit.all(read, end, end, close))

    kit.run(main)


def test_close_that_fails_tells_all(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a warning of closing is an error, tasks are told, and the eventfd is closed."""

    async def main() -> None:
        ring = uring.aio.Ring(8)
        close = ring.plain.close

        def warn() -> None:
            close()
            monkeypatch.setattr(ring.plain, "close", close)
            raise RuntimeWarning

        async def read() -> None:
            with pytest.raises(RingClosedError):
                await ring.do(Read(pipe[0], bytearray(1)))

        async def end() -> None:
            await until(kit, has(ring))
            monkeypatch.setattr(ring.plain, "close", warn)
            with pytest.raises(RuntimeWarning):
                ring.close()
            assert ring._eventfd == -1

        assert not await kit.within(SOON, lambda: kit.all(read, end))

    kit.run(main)


def test_closed_in_the_turn_in_which_it_is_ready(kit: Kit, pipe: tuple[int, int]) -> None:
    """A ring whose eventfd was found ready, and that is closed before the loop looks at it."""

    async def main() -> None:
        ring = uring.aio.Ring(8)
        os.write(pipe[1], b"x")
        act = ring._on_ready
        ring.close()
        act()
        assert ring.closed

    kit.run(main)


def test_cancelled_while_closing_before_its_turn(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks are cancelled in the turn in which aclose() gives up what waits for room."""

    def refuse() -> int:
        raise uring.EnterError(errno.EAGAIN, "not now")

    async def once(turns: int) -> None:
        ring = uring.aio.Ring(1)
        submit = ring.plain.submit
        monkeypatch.setattr(ring.plain, "submit", refuse)

        async def read() -> None:
            with contextlib.suppress(RingClosedError):
                await ring.do(Read(pipe[0], bytearray(1)))

        async def reads() -> None:
            await kit.all(*[read] * 10)

        async def end() -> None:
            await kit.sleep(0)
            await kit.sleep(0)
            monkeypatch.setattr(ring.plain, "submit", submit)
            await ring.aclose()

        assert not await kit.within(SOON, lambda: kit.all(lambda: kit.cut_off(turns, reads), end))

    async def main() -> None:
        for turns in range(2, 6):
            await once(turns)

    kit.run(main)


def test_file_that_fails_when_its_turn_comes(
    kit: Kit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a fileno() raises once there is room is told to its task, and others go on."""

    class File:
        calls = 0

        def fileno(self) -> int:
            self.calls += 1
            if self.calls > 2:
                raise KeyError("no more")
            return pipe[0]

    async def main() -> None:
        async with uring.aio.Ring(1) as ring:
            submit = ring.plain.submit

            def refuse() -> int:
                raise uring.EnterError(errno.EAGAIN, "not now")

            monkeypatch.setattr(ring.plain, "submit", refuse)

            async def fails() -> None:
                await kit.sleep(0)
                with pytest.raises(KeyError):
                    await ring.do(Read(File(), bytearray(1)))

            async def allow() -> None:
                await until(kit, lambda: len(ring._backlog) == 2)
                monkeypatch.setattr(ring.plain, "submit", submit)

            nop = lambda: ring.do(Nop())  # noqa: E731 - a function, in one word
            assert not await kit.within(SOON, lambda: kit.all(nop, nop, fails, allow))

    kit.run(main)


def test_slots_of_what_was_cancelled_are_emptied(kit: Kit, pipe: tuple[int, int]) -> None:
    """Whatever fills slots of the kernel's choice, and no slot that was full before."""
    os.write(pipe[1], b"x")

    async def main() -> None:
        ring = uring.aio.ring()
        with ring.plain.register_files([pipe[0], -1, -1, -1]):
            for turns in range(6):
                for op in (Pipe(slot=AUTO), FilesAlloc([pipe[1]])):
                    was_cancelled, made = await kit.cut_off(turns, lambda op=op: ring.do(op))
                    for slot in () if was_cancelled else made:
                        await ring.do(Close(slot))
                batch = [Openat("/", slot=AUTO), Timeout(0.02)]
                was_cancelled, done = await kit.cut_off(turns, lambda batch=batch: ring.run(batch))
                if not was_cancelled:
                    await ring.do(Close(done[0].result()))
                await ring.do(Timeout(0.01))
            free = [await ring.do(Openat("/", slot=AUTO)) for _ in range(3)]
            assert {*free} == {Fixed(1), Fixed(2), Fixed(3)}
            assert await ring.do(Read(Fixed(0), bytearray(1))) == 1

    kit.run(main)


def test_child_that_closes_its_copy_leaves_the_parent_alone(
    kit: Kit, pipe: tuple[int, int]
) -> None:
    """The loop of the parent is still told of completions: parent and child share its epoll."""

    async def main() -> None:
        ring = uring.aio.Ring(8)

        async def fork() -> None:
            await until(kit, has(ring))
            pid = os.fork()
            if pid == 0:
                ring.close()
                os._exit(int(not ring.closed))
            assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222 - for a test it may block
            os.write(pipe[1], b"x")

        read = Read(pipe[0], bytearray(1))
        assert not await kit.within(SOON, lambda: kit.all(lambda: ring.do(read), fork))
        await ring.aclose()

    kit.run(main)


class _Struck(SystemExit):
    """What a signal handler raises."""


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_exception_at_any_line_loses_no_completion(
    kit: Kit, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """SystemExit comes out of the loop, from any line that gives results out; it is run again."""
    names = {"_flush", "_on_ready", "_harvest", "_deal_out", "_submit", "_go_on", "_give"}
    left = [0]

    def local(_frame: FrameType, event: str, _arg: object) -> Any:
        left[0] -= event == "line"
        if left[0] == 0 and event == "line":
            raise _Struck
        return local

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        is_ours = frame.f_globals["__name__"] == "uring.aio._exchange"
        return local if left[0] > 0 and is_ours and frame.f_code.co_name in names else None

    async def begin() -> list[asyncio.Task[Any]]:
        ring = uring.aio.ring()
        tasks = [
            asyncio.ensure_future(coroutine)
            for coroutine in (
                ring.do(Openat("/")),
                ring.do(Timeout(0.005)),
                ring.run([Timeout(0.005), Nop()]),
                ring.do(Nop()),
            )
        ]
        await asyncio.sleep(0)
        return tasks

    line = 0
    while left[0] <= 0 and kit.name == "asyncio":
        line += 1
        with asyncio.Runner(loop_factory=factory) as runner:
            loop = runner.get_loop()
            tasks = loop.run_until_complete(begin())
            waiting = loop.create_task(asyncio.wait(tasks, timeout=SOON))
            left[0] = line
            sys.settrace(trace)
            try:
                loop.run_until_complete(waiting)
            except _Struck:
                pass
            finally:
                sys.settrace(None)
            _, pending = loop.run_until_complete(waiting)
            assert not pending, f"struck at line {line}"
            os.close(tasks[0].result())
    assert line == 0 or line > 30


def test_trio_is_the_guest_of_asyncio() -> None:
    """Both have a ring, side by side in one thread."""

    async def guest() -> int:
        results = await KITS[2].all(*[lambda: uring.aio.ring().do(Timeout(0.001))] * 50)
        return len(results)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        for _ in range(50):
            assert await uring.aio.ring().do(Timeout(0.001))
        return int((await done).unwrap())

    assert asyncio.run(main()) == 50


def test_loop_that_goes_on_in_another_thread(in_thread: Callable[..., None]) -> None:
    """ring() gives one there that can be used there."""

    async def main() -> int:
        return int(await uring.aio.ring().do(Nop()))

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(main()) == 0
    in_thread(lambda: loop.run_until_complete(main()))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_loops_that_take_turns_have_a_ring_each() -> None:
    """ring() is that of the loop that runs now, not of the one that ran last in this thread."""

    async def found() -> uring.aio.Ring:
        ring = uring.aio.ring()
        assert await ring.do(Nop()) == 0
        return ring

    loops = [asyncio.new_event_loop() for _ in range(2)]
    first, second = (loop.run_until_complete(found()) for loop in loops)
    assert first is not second
    assert loops[0].run_until_complete(found()) is first
    assert loops[1].run_until_complete(found()) is second
    for loop in loops:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def test_descriptor_that_was_not_given_out_is_closed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, descriptors: Callable[[], set[str]]
) -> None:
    """An exception came before it was, and the ring was closed before the loop went on."""

    def strike(_done: object) -> None:
        raise _Struck

    async def main() -> None:
        ring = uring.aio.Ring(8)
        before = descriptors()
        ring._enlist(Openat("/"), ring._loop.call())
        monkeypatch.setattr(ring, "_deal_out", strike)
        with pytest.raises(_Struck):
            ring._flush()
        assert len(descriptors() - before) == 1
        ring.close()
        assert not descriptors() - before

    kit.run(main)
