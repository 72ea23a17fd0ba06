"""
Echo servers: what the processor does for one message that comes and goes, loop by loop.

Each serves 50 connections of a client in another process, on another processor where there is one.
Counted is the processor's time of this process, user's and kernel's.
"""

import asyncio
import contextlib
import importlib
import json
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import floor
import machine
from aio_report import spread
from measure import Figure, figure_of, progress
from report import refresh
from work import CLIENT, MESSAGE, Line, bind

import uring.aio
from uring import BufferRing, Recv, RecvMultishot, Send

CONNECTIONS, WARM_UP, MESSAGES = 50, 2_000, 20_000
PACKAGES = ["uring", "uvloop"]
PROTOCOL = "uvloop, Protocol"
BEGIN = "<!-- results: written by benchmarks/aio_serving.py -->"
Figures = Mapping[str, Figure]
Serve = Callable[[socket.socket, "Counter"], Coroutine[Any, Any, None]]
"""Serves one connection, in a task, until it is cancelled."""


class Counter:
    """Counts messages, and what the processor has done for them after some that warm up."""

    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._left = WARM_UP + MESSAGES
        self._start = 0

    def count(self) -> None:
        """Count one that was sent back."""
        self._left -= 1
        if self._left == MESSAGES:
            self._start = time.process_time_ns()
        elif self._left == 0:
            self.done.set_result((time.process_time_ns() - self._start) / MESSAGES)


class Echo(asyncio.Protocol):
    """A protocol, as loops call it without tasks."""

    def __init__(self, counter: Counter) -> None:
        self._count = counter.count

    def connection_made(self, transport: Any) -> None:  # uvloop's is no asyncio.Transport
        """Keep the way back."""
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._write(data)
        self._count()


async def by_protocol(server: socket.socket, counter: Counter) -> None:
    """Have the loop call a protocol."""
    loop = asyncio.get_running_loop()
    server.settimeout(0)
    transport, _ = await loop.connect_accepted_socket(lambda: Echo(counter), server)
    try:
        await loop.create_future()
    finally:
        transport.abort()


async def by_streams(server: socket.socket, counter: Counter) -> None:
    """Await the streams of asyncio."""
    server.settimeout(0)
    reader, writer = await asyncio.open_connection(sock=server)
    while data := await reader.read(MESSAGE):
        writer.write(data)
        await writer.drain()
        counter.count()


async def by_sockets(server: socket.socket, counter: Counter) -> None:
    """Await the socket calls of the loop."""
    loop, buffer = asyncio.get_running_loop(), bytearray(MESSAGE)
    server.settimeout(0)
    while size := await loop.sock_recv_into(server, buffer):
        await loop.sock_sendall(server, memoryview(buffer)[:size])
        counter.count()


async def by_do(server: socket.socket, counter: Counter) -> None:
    """Await one operation after the other."""
    do, buffer = uring.aio.ring().do, bytearray(MESSAGE)
    while size := await do(Recv(server, buffer)):
        await do(Send(server, memoryview(buffer)[:size]))
        counter.count()


async def by_stream(server: socket.socket, counter: Counter, buffers: BufferRing) -> None:
    """Receive again and again by one operation; send by a system call."""
    async with uring.aio.ring().stream(RecvMultishot(server, buffers)) as received:
        async for cqe in received:
            with cqe.result() as lease:
                server.send(lease.view)
            counter.count()


def streaming() -> Serve:
    """Give all connections buffers to share."""
    return partial(by_stream, buffers=uring.aio.ring().plain.register_buffer_ring(64, size=4096))


WAYS: dict[str, tuple[str, Callable[[], Serve]]] = {
    PROTOCOL: ("uvloop", lambda: by_protocol),
    "asyncio, Protocol": ("asyncio", lambda: by_protocol),
    "asyncio, streams": ("asyncio", lambda: by_streams),
    "asyncio, sock_recv_into and sock_sendall": ("asyncio", lambda: by_sockets),
    "asyncio, ring.do(Recv) and ring.do(Send)": ("asyncio", lambda: by_do),
    "uvloop, ring.do(Recv) and ring.do(Send)": ("uvloop", lambda: by_do),
    "asyncio, ring.stream(RecvMultishot) and socket.send": ("asyncio", streaming),
    "uvloop, ring.stream(RecvMultishot) and socket.send": ("uvloop", streaming),
}
"""The module of the loop, and what makes a server once the loop runs."""


async def serve(make: Callable[[], Serve], servers: Sequence[socket.socket]) -> float:
    """Serve until all messages are counted: nanoseconds for each."""
    counter, one = Counter(), make()
    tasks = [asyncio.ensure_future(one(server, counter)) for server in servers]
    ended = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
    await asyncio.wait([counter.done, ended], return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, ended):
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, asyncio.CancelledError):
            raise SystemExit(f"a connection ended: {result!r}")
    return float(counter.done.result())


def measured(name: str, client: Sequence[str]) -> float:
    """Serve a client of its own in one way: nanoseconds for each message."""
    module, make = WAYS[name]
    factory = importlib.import_module(module).new_event_loop
    with (
        contextlib.closing(Line("TCP", CONNECTIONS, trips=0, client=client)) as line,
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        return runner.run(serve(make, line.sockets))


def compare(*, rounds: int, only: str, folder: Path, write: bool) -> None:
    """Measure the ways whose name has `only` in it, print the figures, and write them down."""
    names = [name for name in WAYS if only.lower() in name.lower()]
    if not names:
        raise SystemExit(f"no way has {only!r} in its name: {[*WAYS]}")
    place = machine.describe(folder, PACKAGES)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        library = floor.build(Path(scratch))
        _, elsewhere = bind()
        client = [sys.executable, str(CLIENT), str(library), str(elsewhere)]
        start = time.monotonic()
        for number in range(rounds):
            progress(number, rounds, time.monotonic() - start)
            for name in random.sample(names, len(names)):
                samples[name].append(measured(name, client) / 1000)
        progress(rounds, rounds, time.monotonic() - start)
    costs = {name: figure_of(values) for name, values in samples.items()}
    times = {
        name: figure_of([own / other for own, other in zip(values, samples[PROTOCOL], strict=True)])
        for name, values in samples.items()
        if PROTOCOL in samples
    }
    print(table(place, rounds, costs, times))
    if write:
        record(Path(__file__).parent, place, rounds, costs, times)


def table(place: Mapping[str, str], rounds: int, costs: Figures, times: Figures) -> str:
    """Return the page's part."""
    lines = [
        f"{machine.sentence(place)}.",
        f"Medians, with minimum and maximum, of {rounds} rounds.",
        "",
        f"| {CONNECTIONS} connections, {MESSAGE} bytes | us per round trip | times {PROTOCOL} |",
        "|---|--:|--:|",
    ]
    for name, cost in costs.items():
        ratio = spread(times[name], 2) if times else ""
        lines.append(f"| {name} | {spread(cost, 1)} | {ratio} |")
    return "\n".join(lines)


def record(
    folder: Path, place: Mapping[str, str], rounds: int, costs: Figures, times: Figures
) -> None:
    """Refresh aio_serving.json and the table in docs/async.md."""
    recorded = {
        "machine": place,
        "rounds": rounds,
        "unit": "us of the processor's time per round trip",
        "ways": {
            name: {**asdict(cost), f"times {PROTOCOL}": asdict(times[name])}
            for name, cost in costs.items()
        },
    }
    path = folder / "aio_serving.json"
    path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    refresh(folder.parent / "docs" / "async.md", BEGIN, table(place, rounds, costs, times))
