"""Programs that use the ring of an event loop, and do to the loop what should not be done."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio
import uvloop
from hostile_harness import collect, join, main, program, settled_descriptors

import uring
import uring.aio

Main = Callable[[], Coroutine[Any, Any, None]]


def run_everywhere(main_task: Main) -> None:
    """Run a program on each kind of loop."""
    asyncio.run(main_task())
    uvloop.run(main_task())
    trio.run(main_task)


async def nothing() -> None:
    """Do nothing: for what a loop keeps once it was there, as uvloop does a pipe for signals."""


async def turns(count: int) -> None:
    """Let others go on so many times, on any loop."""
    ring = uring.aio.ring()
    for _ in range(count):
        await ring.do(uring.Nop())


@program
def ctrl_c_frees_all_buffers() -> None:
    """SIGINT with 1,000 reads in flight: KeyboardInterrupt comes out, and each buffer can grow."""
    inlet, outlet = os.pipe()
    for run in (asyncio.run, uvloop.run):
        buffers = [bytearray(16) for _ in range(1000)]

        async def work(buffers: list[bytearray] = buffers) -> None:
            ring = uring.aio.ring()
            reads = [ring.do(uring.Read(inlet, buffer)) for buffer in buffers]
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            await asyncio.gather(*reads)

        try:
            run(work())
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("nobody was interrupted")
        for buffer in buffers:
            buffer.append(0)
        os.write(outlet, b"x" * 64)
        assert all(buffer == bytes(17) for buffer in buffers)
        assert len(os.read(inlet, 100)) == 64


@program
def ctrl_c_ends_a_run_of_trio() -> None:
    """The same with trio, whose tasks are cancelled by it."""
    inlet, outlet = os.pipe()
    buffers = [bytearray(16) for _ in range(500)]

    async def read(ring: uring.aio.Ring, buffer: bytearray) -> None:
        await ring.do(uring.Read(inlet, buffer))

    async def work() -> None:
        ring = uring.aio.ring()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        async with trio.open_nursery() as nursery:
            for buffer in buffers:
                nursery.start_soon(read, ring, buffer)

    caught: list[BaseException] = []
    try:
        trio.run(work)
    except BaseException as error:  # noqa: BLE001 - alone, or in a group
        caught.append(error)
    if isinstance(caught[0], BaseExceptionGroup):
        caught = list(caught[0].exceptions)
    assert [type(error) for error in caught] == [KeyboardInterrupt], caught
    caught.clear()
    for buffer in buffers:
        buffer.append(0)
    os.write(outlet, b"x" * 64)
    assert all(buffer == bytes(17) for buffer in buffers)


@program
def collector_at_every_allocation() -> None:
    """With the collector at work all the time, tasks and streams come and go, and all is closed."""
    run_everywhere(nothing)
    before = settled_descriptors()

    async def work() -> None:
        ring = uring.aio.ring()
        inlet, outlet = os.pipe()
        for i in range(60):
            stream = ring.stream(uring.PollMultishot(inlet, 1))
            os.write(outlet, b"x")
            await anext(stream)
            os.read(inlet, 1)
            await stream.aclose()
            del stream
            await ring.run([uring.Nop()] * (i + 1))
            fd = await ring.do(uring.Openat("/"))
            await ring.do(uring.Close(fd))
        os.close(inlet)
        os.close(outlet)

    gc.set_threshold(1)
    run_everywhere(work)
    gc.set_threshold(700)
    assert settled_descriptors() == before


@program
def coroutines_closed_by_another_threads_collector() -> None:
    """Coroutines that wait are collected in another thread: it touches no loop, nothing is lost."""
    inlet, outlet = os.pipe()
    buffers = [bytearray(8) for _ in range(50)]

    async def work() -> None:
        ring = uring.aio.ring()
        waiting = [ring.do(uring.Read(inlet, buffer)) for buffer in buffers]
        for coroutine in waiting:
            coroutine.send(None)
        await turns(2)
        cycle: list[object] = [waiting]
        cycle.append(cycle)
        del cycle, waiting, coroutine
        thread = threading.Thread(target=collect)
        thread.start()
        while thread.is_alive():
            await turns(1)
        await turns(5)
        os.write(outlet, b"x" * 8)
        await ring.aclose()

    asyncio.run(work())
    for buffer in buffers:
        buffer.append(0)


@program
def loop_closed_under_its_tasks() -> None:
    """A loop is closed with 200 reads in flight: what is left is collected, and not written."""
    inlet, outlet = os.pipe()
    buffers = [bytearray(8) for _ in range(200)]
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):

        async def work() -> None:
            ring = uring.aio.ring()
            for buffer in buffers:
                task = asyncio.ensure_future(ring.do(uring.Read(inlet, buffer)))
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is asyncio's
            await turns(3)

        loop = factory()
        loop.run_until_complete(work())
        loop.close()
        del loop
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # as of everything that is left open
            collect()
        os.write(outlet, b"x" * 8)
        for buffer in buffers:
            buffer.append(0)
            assert buffer == bytes(9)
            del buffer[8:]
        assert os.read(inlet, 100) == b"x" * 8


@program
def exit_with_work_in_flight() -> None:
    """The interpreter ends inside a running loop, with reads in flight and a stream open."""
    inlet, _outlet = os.pipe()

    async def work() -> None:
        ring = uring.aio.ring()
        task = asyncio.ensure_future(ring.do(uring.Read(inlet, bytearray(8))))
        await turns(3)
        del task
        raise SystemExit(0)

    with contextlib.suppress(SystemExit):
        asyncio.run(work())


@program
def forks_within_a_running_loop() -> None:
    """A child that is forked in a task, with reads in flight, ends; the parent's go on."""
    inlet, outlet = os.pipe()

    async def work() -> None:
        ring = uring.aio.ring()
        buffer = bytearray(8)
        results: list[int] = []

        async def read() -> None:
            results.append(await ring.do(uring.Read(inlet, buffer)))

        async def fork() -> None:
            await turns(2)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    ring.plain.queue(uring.Nop())
                except uring.RingClosedError:
                    code = 0
                os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222 - the child is quick
            os.write(outlet, b"parent")
            await turns(2)

        if asyncio._get_running_loop() is None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(fork)
        else:
            await asyncio.gather(read(), fork())
        assert (results, bytes(buffer)) == ([6], b"parent\0\0")

    run_everywhere(work)


@program
def storms_of_cancellations() -> None:
    """For 5 s tasks of three loops in three threads are cancelled at random: no byte gets lost."""
    run_everywhere(nothing)
    before = settled_descriptors()
    stop = time.monotonic() + 5
    done: list[int] = []

    async def one(ring: uring.aio.Ring, chance: random.Random) -> None:
        inlet, outlet = os.pipe()
        buffer = bytearray(32)
        try:
            while time.monotonic() < stop:
                buffer[:] = bytes(32)
                os.write(outlet, b"ab"[: chance.randrange(3)])
                task = asyncio.ensure_future(
                    ring.do(uring.Read(inlet, buffer))
                    if chance.random() < 0.5
                    else ring.run([uring.Openat("/"), uring.Read(inlet, buffer)])
                )
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and not isinstance(task.result(), int):
                    os.close(task.result()[0].result())
                buffer.append(0)
                del buffer[32:]
                assert bytes(buffer).strip(b"\0") in {b"", b"a", b"ab"}
                os.write(outlet, b"!")
                assert os.read(inlet, 100).endswith(b"!")
                done.append(1)
        finally:
            os.close(inlet)
            os.close(outlet)

    async def work(seed: int) -> None:
        ring = uring.aio.ring()
        await asyncio.gather(*[one(ring, random.Random(seed * 100 + i)) for i in range(20)])

    threads = [
        threading.Thread(target=run, args=(lambda seed=seed: work(seed),))
        for seed, run in enumerate([_run_asyncio, _run_uvloop])
    ]
    for thread in threads:
        thread.start()
    asyncio.run(work(7))
    for thread in threads:
        join(thread, 30)
    assert len(done) > 500
    assert settled_descriptors() == before


def _run_asyncio(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]  # it is a coroutine


def _run_uvloop(work: Callable[[], Awaitable[None]]) -> None:
    uvloop.run(work())  # type: ignore[arg-type]  # the same


if __name__ == "__main__":
    main()
