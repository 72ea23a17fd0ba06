"""The tasks in plain Python, as far as it has them: preadv, pread, fsync, sockets with epoll."""

import os
import select
from functools import partial

from ways import Ways, repeated
from work import BLOCK, Line, Memory, Work


class Python:
    """System calls into buffers that are kept."""

    name = "Python"

    def __init__(self, work: Work) -> None:
        self.work = work
        reads = repeated(partial(self.read, work.file.fileno(), work.buffers))
        self.ways: Ways = {
            "read64": reads,
            "read64/pread": repeated(self.read_into_new_bytes),
            "read1": reads,
            "readv64": repeated(self.readv),
            "chain": repeated(self.chain),
        }
        if work.direct != -1:
            self.ways["direct64"] = repeated(partial(self.read, work.direct, work.pages))
        for name, line in work.lines.items():
            echo = self.echo_one if len(line.fds) == 1 else self.echo
            self.ways[f"echo {name}"] = repeated(partial(echo, line))

    def close(self) -> None:
        """There is nothing to close."""

    def read(self, fd: int, buffers: Memory) -> int:
        """64 times os.preadv."""
        total, preadv = 0, os.preadv
        for number, (buffer, offset) in enumerate(zip(buffers, self.work.offsets, strict=True)):
            total += number + preadv(fd, [buffer], offset)
        return total

    def read_into_new_bytes(self) -> int:
        """64 times os.pread."""
        fd, total, pread = self.work.file.fileno(), 0, os.pread
        for number, offset in enumerate(self.work.offsets):
            total += number + len(pread(fd, BLOCK, offset))
        return total

    def readv(self) -> int:
        """64 times os.preadv into two buffers."""
        fd, total, preadv = self.work.file.fileno(), 0, os.preadv
        for number, (pair, offset) in enumerate(
            zip(self.work.pairs, self.work.offsets, strict=True)
        ):
            total += number + preadv(fd, pair, offset)
        return total

    def chain(self) -> int:
        """os.pwritev, then os.fsync."""
        fd = self.work.written.fileno()
        written = os.pwritev(fd, self.work.parts, 0)
        os.fsync(fd)
        return written + 1  # the fsync's user_data

    def echo_one(self, line: Line) -> int:
        """One connection: a blocking recv and a send in turn."""
        (connection,), (buffer,), total = line.sockets, line.buffers, 0
        for _ in range(line.trips):
            total += connection.recv_into(buffer) + connection.send(buffer)
        return total

    def echo(self, line: Line) -> int:
        """Many: whichever epoll names."""
        number_of = {fd: number for number, fd in enumerate(line.fds)}
        left, still_open, total = [line.trips] * len(line.fds), len(line.fds), 0
        sockets, buffers = line.sockets, line.buffers
        with select.epoll() as epoll:
            for fd in line.fds:
                epoll.register(fd, select.EPOLLIN)
            while still_open:
                for fd, _ in epoll.poll():
                    number = number_of[fd]
                    connection, buffer = sockets[number], buffers[number]
                    total += connection.recv_into(buffer) + connection.send(buffer)
                    left[number] -= 1
                    if not left[number]:
                        epoll.unregister(fd)
                        still_open -= 1
        return total
