"""The tasks as a program with `uring-api` does them, as far as it can."""

from functools import partial
from typing import Any

import uring_api as untyped  # type: ignore[import-untyped,import-not-found,unused-ignore]  # untyped, and not always there
from ways import Ways, repeated
from work import ENTRIES, READS, Line, Memory, Work

peer: Any = untyped


class UringApi:
    """One ring. There is no NOP, readv, writev, fsync or link."""

    name = "uring-api"

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ring = peer.Ring(ENTRIES)
        self.ways: Ways = {
            "read64": repeated(partial(self.read_batch, work.file.fileno(), work.buffers)),
            "read1": repeated(self.read_single),
        }
        if work.direct != -1:
            direct = partial(self.read_batch, work.direct, work.pages)
            self.ways["direct64"] = repeated(direct)
        for name, line in work.lines.items():
            self.ways[f"echo {name}"] = repeated(partial(self.echo, line))

    def close(self) -> None:
        """Close the ring."""
        self.ring.close()

    def read_batch(self, fd: int, buffers: Memory) -> int:
        """64 reads at once; wait() submits them."""
        ring, taken, total = self.ring, 0, 0
        for number, (buffer, offset) in enumerate(zip(buffers, self.work.offsets, strict=True)):
            ring.prepare_read(fd, buffer, offset, number)
        while taken < READS:
            completions = ring.wait()
            taken += len(completions)
            for completion in completions:
                total += completion.user_data + completion.res
        return total

    def read_single(self) -> int:
        """64 reads, one after the other."""
        ring, fd, total = self.ring, self.work.file.fileno(), 0
        pairs = zip(self.work.buffers, self.work.offsets, strict=True)
        for number, (buffer, offset) in enumerate(pairs):
            ring.prepare_read(fd, buffer, offset, number)
            total += number + ring.wait()[0].res
        return total

    def echo(self, line: Line) -> int:
        """One recv or send in flight on each connection."""
        ring, count, fds, buffers = self.ring, len(line.fds), line.fds, line.buffers
        left, still_open, total = [line.trips] * count, count, 0
        for number in range(count):
            ring.prepare_recv(fds[number], buffers[number], 0, number)
        while still_open:
            for completion in ring.wait():
                number = completion.user_data
                total += completion.res
                if number < count:
                    ring.prepare_send(fds[number], buffers[number], 0, number + count)
                    continue
                number -= count
                left[number] -= 1
                if left[number]:
                    ring.prepare_recv(fds[number], buffers[number], 0, number)
                else:
                    still_open -= 1
        return total
