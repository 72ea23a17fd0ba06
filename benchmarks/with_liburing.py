"""
The tasks as a program with `liburing` from PyPI does them.

It keeps no buffer alive: all of ours outlive the ring. After a wrap of its queue `cqe[i]` is wrong,
so completions are taken by `CqeIter`. It reads into bytearrays alone: with O_DIRECT it gets some
that happen to start on a page.
"""

from functools import partial
from typing import Any

import liburing as untyped  # type: ignore[import-untyped,import-not-found,unused-ignore]  # untyped, and not always there
from ways import Ways, repeated
from work import ENTRIES, NOPS, READS, Line, Memory, Work

peer: Any = untyped


class Liburing:
    """One ring, and one Cqe through which all completions are read."""

    name = "liburing"

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ring = peer.Ring()
        peer.io_uring_queue_init(ENTRIES, self.ring)
        self.cqe = peer.Cqe()
        self.pairs = [peer.Iovec(pair) for pair in work.pairs]
        self.parts = peer.Iovec(work.parts)
        self.ways: Ways = {
            "nop256": repeated(self.nop_batch),
            "nop1": repeated(self.nop_single),
            "read64": repeated(partial(self.read_batch, work.file.fileno(), work.buffers)),
            "read1": repeated(self.read_single),
            "readv64": repeated(self.readv_batch),
            "chain": repeated(self.chain),
        }
        if work.direct != -1 and work.page_bytearrays:
            direct = partial(self.read_batch, work.direct, work.page_bytearrays)
            self.ways["direct64"] = repeated(direct)
        for name, line in work.lines.items():
            self.ways[f"echo {name}"] = repeated(partial(self.echo, line))

    def close(self) -> None:
        """Close the ring."""
        peer.io_uring_queue_exit(self.ring)

    def _finish(self, count: int) -> int:
        """Submit, wait, and read user_data and res of each completion."""
        ring, cqe, total = self.ring, self.cqe, 0
        peer.io_uring_submit_and_wait(ring, count)
        for _ in peer.CqeIter(ring, cqe):
            entry = cqe[0]
            total += entry.user_data + entry.res
        peer.io_uring_cq_advance(ring, count)
        return total

    def nop_batch(self) -> int:
        """256 NOPs at once."""
        ring = self.ring
        for number in range(NOPS):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_nop(sqe)
            sqe.user_data = number
        return self._finish(NOPS)

    def nop_single(self) -> int:
        """256 NOPs, one after the other."""
        ring, cqe, total = self.ring, self.cqe, 0
        for number in range(NOPS):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_nop(sqe)
            sqe.user_data = number
            peer.io_uring_submit_and_wait(ring, 1)
            peer.io_uring_wait_cqe(ring, cqe)
            entry = cqe[0]
            total += number + entry.res
            peer.io_uring_cqe_seen(ring, entry)
        return total

    def read_batch(self, fd: int, buffers: Memory) -> int:
        """64 reads at once."""
        ring = self.ring
        for number, (buffer, offset) in enumerate(zip(buffers, self.work.offsets, strict=True)):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_read(sqe, fd, buffer, offset)
            sqe.user_data = number
        return self._finish(READS)

    def read_single(self) -> int:
        """64 reads, one after the other."""
        ring, cqe, fd, total = self.ring, self.cqe, self.work.file.fileno(), 0
        pairs = zip(self.work.buffers, self.work.offsets, strict=True)
        for number, (buffer, offset) in enumerate(pairs):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_read(sqe, fd, buffer, offset)
            sqe.user_data = number
            peer.io_uring_submit_and_wait(ring, 1)
            peer.io_uring_wait_cqe(ring, cqe)
            entry = cqe[0]
            total += number + entry.res
            peer.io_uring_cqe_seen(ring, entry)
        return total

    def readv_batch(self) -> int:
        """64 reads at once, each into two buffers, whose iovecs are made once."""
        ring, fd = self.ring, self.work.file.fileno()
        for number, (pair, offset) in enumerate(zip(self.pairs, self.work.offsets, strict=True)):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_readv(sqe, fd, pair, offset)
            sqe.user_data = number
        return self._finish(READS)

    def chain(self) -> int:
        """A writev, and linked to it an fsync."""
        ring, fd = self.ring, self.work.written.fileno()
        sqe = peer.io_uring_get_sqe(ring)
        peer.io_uring_prep_writev(sqe, fd, self.parts, 0)
        sqe.flags = peer.IOSQE_IO_LINK
        sqe.user_data = 0
        sqe = peer.io_uring_get_sqe(ring)
        peer.io_uring_prep_fsync(sqe, fd)
        sqe.user_data = 1
        return self._finish(2)

    def echo(self, line: Line) -> int:
        """One recv or send in flight on each connection."""
        ring, cqe, count = self.ring, self.cqe, len(line.fds)
        left, still_open, total = [line.trips] * count, count, 0
        fds, buffers = line.fds, line.buffers
        for number in range(count):
            sqe = peer.io_uring_get_sqe(ring)
            peer.io_uring_prep_recv(sqe, fds[number], buffers[number])
            sqe.user_data = number
        while still_open:
            peer.io_uring_submit_and_wait(ring, 1)
            taken = 0
            for _ in peer.CqeIter(ring, cqe):
                entry = cqe[0]
                number = entry.user_data
                total += entry.res
                taken += 1
                if number < count:
                    sqe = peer.io_uring_get_sqe(ring)
                    peer.io_uring_prep_send(sqe, fds[number], buffers[number])
                    sqe.user_data = number + count
                    continue
                number -= count
                left[number] -= 1
                if left[number]:
                    sqe = peer.io_uring_get_sqe(ring)
                    peer.io_uring_prep_recv(sqe, fds[number], buffers[number])
                    sqe.user_data = number
                else:
                    still_open -= 1
            peer.io_uring_cq_advance(ring, taken)
        return total
