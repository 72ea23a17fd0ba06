"""
What is worked on: one file, the buffers and the connections, the same for every library.

Nothing here is made anew while the clock runs: buffers are kept, offsets fixed, files open.
"""

import mmap
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import floor
import machine

ENTRIES = 256  # of every ring
NOPS = 256
READS = 64
BLOCK = 4096
PART = BLOCK // 2  # of a readv and of a writev
STRIDE = 16 * BLOCK  # from one read to the next, so that a disk sees 64 reads and not one long one
MESSAGE = 64
Memory = Sequence[bytearray | mmap.mmap]
GROWTH = [1, 8, 64, 512, 4096, 32768]  # operations in one run
CLIENT = Path(__file__).with_name("echo_client.py")
_PAGE_TRIES = 400 * READS  # malloc gives a start of a page about once in 256 times


class Line:
    """Connections to a client that always has one message under way on each of them."""

    def __init__(self, family: str, count: int, *, trips: int, client: Sequence[str]) -> None:
        self.trips = trips  # on each connection, in one call
        pairs = [_tcp_pair() if family == "TCP" else socket.socketpair() for _ in range(count)]
        self.sockets = [server for server, _ in pairs]
        self.fds = [server.fileno() for server in self.sockets]
        self.buffers = [bytearray(MESSAGE) for _ in pairs]
        fds = [end.fileno() for _, end in pairs]
        self._client = subprocess.Popen([*client, str(MESSAGE), *map(str, fds)], pass_fds=fds)
        for _, end in pairs:
            end.close()

    def close(self) -> None:
        """Close the connections: this ends the client."""
        for server in self.sockets:
            server.close()
        self._client.wait()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (server, client):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server, client


class Work:
    """All of it. A context manager: the connections end with it."""

    def __init__(self, folder: Path, floor: Path) -> None:
        self.floor = floor
        self.offsets = array("q", [number * STRIDE for number in range(READS)])
        self.buffers = [bytearray(BLOCK) for _ in range(READS)]
        self.pages = [mmap.mmap(-1, BLOCK) for _ in range(READS)]
        self.page_bytearrays = _page_bytearrays(READS)
        self.pairs = [[bytearray(PART), bytearray(PART)] for _ in range(READS)]
        self.parts = [bytearray(os.urandom(PART)) for _ in range(2)]
        content = os.urandom(READS * STRIDE)
        self._expected = b"".join([content[start : start + BLOCK] for start in self.offsets])
        path = folder / "read"
        path.write_bytes(content)
        self.file = path.open("rb", buffering=0)
        os.fsync(self.file.fileno())
        self.written = (folder / "written").open("w+b", buffering=0)
        self.direct, self.direct_refusal = open_direct(path, self.pages[0])
        here, elsewhere = bind()
        client = [sys.executable, str(CLIENT), str(floor)]
        one, many = [*client, str(here)], [*client, str(elsewhere)]
        self.lines = {
            "pair x1": Line("UNIX", 1, trips=200, client=one),
            "pair x50": Line("UNIX", 50, trips=10, client=many),
            "TCP x1": Line("TCP", 1, trips=200, client=one),
            "TCP x50": Line("TCP", 50, trips=10, client=many),
        }

    def clear(self) -> None:
        """Zero what is read into, so that it can be seen who has read."""
        for memory in self._read_into().values():
            for buffers in memory:
                for buffer in buffers:
                    buffer[:] = bytes(len(buffer))

    def was_read(self, task: str) -> bool:
        """Whether the buffers of a task hold what the file holds; true of one that reads none."""
        memory = self._read_into().get(task)
        return memory is None or any(b"".join(each) == self._expected for each in memory)

    def _read_into(self) -> dict[str, list[Memory]]:
        return {
            "read64": [self.buffers],
            "read1": [self.buffers],
            "readv64": [[part for pair in self.pairs for part in pair]],
            "direct64": [self.pages, self.page_bytearrays],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for line in self.lines.values():
            line.close()
        self.file.close()
        self.written.close()
        if self.direct != -1:
            os.close(self.direct)


def open_direct(path: Path, page: mmap.mmap) -> tuple[int, str]:
    """Open a file with O_DIRECT, and read one page: (descriptor, ""), or (-1, why not)."""
    kind = machine.filesystem(path)
    refusal = f"O_DIRECT is left out: on {kind}, where {path.parent.parent} is, "
    if kind in machine.IN_MEMORY:
        return -1, f"{refusal}there is no disk"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        return -1, f"{refusal}open says {error.strerror}"
    try:
        os.preadv(fd, [page], 0)
    except OSError as error:
        os.close(fd)
        return -1, f"{refusal}a read of 4 KiB says {error.strerror}"
    return fd, ""


def bind() -> tuple[int, int]:
    """
    Bind this process to a processor: (that one, another one if there is one).

    Two that take turns are quickest, and steady, on one processor: on two, the figure is the time
    that an idle one needs to wake up. Many connections keep two busy.
    """
    here, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {here})
    return here, others[0] if others else here


def _page_bytearrays(count: int) -> list[bytearray]:
    """Bytearrays that happen to start on a page, for who takes nothing else; [] without luck."""
    found, others = [], []
    for _ in range(_PAGE_TRIES):
        candidate = bytearray(BLOCK)
        if floor.address(candidate) % BLOCK == 0:
            found.append(candidate)
            if len(found) == count:
                return found
        else:
            others.append(candidate)  # kept until the end, so that malloc goes on to the next place
    return []
