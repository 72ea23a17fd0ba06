"""The tasks as a program with uring does them."""

from collections.abc import Callable
from functools import partial

from ways import Ways, repeated
from work import ENTRIES, GROWTH, NOPS, READS, Line, Memory, Work

from uring import (
    Batch,
    Completions,
    Fsync,
    Nop,
    Read,
    ReadMany,
    Readv,
    Recv,
    Ring,
    Send,
    Writev,
    link,
)


class Uring:
    """One ring; an operation that stays the same is made once, as its immutability invites to."""

    name = "uring"

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ring = Ring(ENTRIES)
        self.nop = Nop()
        self.ways: Ways = {
            "nop256/columns": repeated(self.nop_columns),
            "nop256/objects": repeated(self.nop_objects),
            "nop256/run": self._run(Batch([self.nop] * NOPS)),
            "nop1": repeated(self.nop_single),
            "read64/new": repeated(partial(self.read_batch, work.file.fileno(), work.buffers)),
            "read64/run": self._run(self._prepared_reads()),
            "read64/many": self._run(ReadMany(work.file, work.buffers, work.offsets)),
            "read1": repeated(self.read_single),
            "readv64": repeated(self.readv_batch),
            "chain": repeated(self.chain),
        }
        if work.direct != -1:
            direct = repeated(partial(self.read_batch, work.direct, work.pages))
            self.ways["direct64/new"] = direct
            self.ways["direct64/many"] = self._run(ReadMany(work.direct, work.pages, work.offsets))
        for name, line in work.lines.items():
            self.ways[f"echo {name}"] = repeated(self._echo(line))
        for count in GROWTH:
            self.ways[f"run {count}"] = self._run(Batch([self.nop] * count))

    def close(self) -> None:
        """Close the ring."""
        self.ring.close()

    def nop_columns(self) -> int:
        """Queue 256 NOPs, submit, wait; read user_data and res from the columns."""
        ring, nop = self.ring, self.nop
        for number in range(NOPS):
            ring.queue(nop, user_data=number)
        ring.submit_and_wait(NOPS)
        cqes = ring.copy_cqes()
        return sum(cqes.user_data.tolist()) + sum(cqes.res.tolist())

    def nop_objects(self) -> int:
        """The same with a CQE object for each."""
        ring, nop = self.ring, self.nop
        for number in range(NOPS):
            ring.queue(nop, user_data=number)
        ring.submit_and_wait(NOPS)
        return sum([cqe.user_data + cqe.res for cqe in ring.copy_cqes()])

    def nop_single(self) -> int:
        """256 times: queue, submit_and_wait(1), copy_cqe()."""
        ring, nop, total = self.ring, self.nop, 0
        for number in range(NOPS):
            ring.queue(nop, user_data=number)
            ring.submit_and_wait(1)
            total += number + ring.copy_cqe().res
        return total

    def read_batch(self, fd: int, buffers: Memory) -> int:
        """64 new Read operations at once."""
        ring = self.ring
        for number, (buffer, offset) in enumerate(zip(buffers, self.work.offsets, strict=True)):
            ring.queue(Read(fd, buffer, offset), user_data=number)
        ring.submit_and_wait(READS)
        cqes = ring.copy_cqes()
        return sum(cqes.user_data.tolist()) + sum(cqes.res.tolist())

    def read_single(self) -> int:
        """64 new Read operations, one after the other."""
        ring, fd, total = self.ring, self.work.file.fileno(), 0
        pairs = zip(self.work.buffers, self.work.offsets, strict=True)
        for number, (buffer, offset) in enumerate(pairs):
            ring.queue(Read(fd, buffer, offset), user_data=number)
            ring.submit_and_wait(1)
            total += number + ring.copy_cqe().res
        return total

    def readv_batch(self) -> int:
        """64 new Readv operations at once, each into two buffers."""
        ring, fd = self.ring, self.work.file.fileno()
        for number, (pair, offset) in enumerate(
            zip(self.work.pairs, self.work.offsets, strict=True)
        ):
            ring.queue(Readv(fd, pair, offset), user_data=number)
        ring.submit_and_wait(READS)
        cqes = ring.copy_cqes()
        return sum(cqes.user_data.tolist()) + sum(cqes.res.tolist())

    def chain(self) -> int:
        """A new Writev, and linked to it a new Fsync."""
        ring, fd = self.ring, self.work.written.fileno()
        ring.queue_all(link(Writev(fd, self.work.parts, user_data=0), Fsync(fd, user_data=1)))
        ring.submit_and_wait(2)
        cqes = ring.copy_cqes()
        return sum(cqes.user_data.tolist()) + sum(cqes.res.tolist())

    def _prepared_reads(self) -> Batch:
        fd = self.work.file.fileno()
        pairs = zip(self.work.buffers, self.work.offsets, strict=True)
        return Batch([Read(fd, buffer, offset) for buffer, offset in pairs])

    def _run(self, batch: Batch) -> "Callable[[int], Completions]":
        """Run all of a batch, and see that none has failed."""
        ring = self.ring

        def way(repeats: int) -> Completions:
            for _ in range(repeats):
                completions = ring.run(batch)
                completions.raise_first()
            return completions

        return way

    def _echo(self, line: Line) -> Callable[[], int]:
        """One Recv or Send in flight on each connection; both are made once, with its number."""
        ring, count = self.ring, len(line.fds)
        ends = list(enumerate(zip(line.fds, line.buffers, strict=True)))
        receives = [Recv(fd, buffer, user_data=i) for i, (fd, buffer) in ends]
        sends = [Send(fd, buffer, user_data=i + count) for i, (fd, buffer) in ends]

        def echo() -> int:
            left, still_open, total = [line.trips] * count, count, 0
            for receive in receives:
                ring.queue(receive)
            while still_open:
                ring.submit_and_wait(1)
                cqes = ring.copy_cqes()
                for number, res in zip(cqes.user_data.tolist(), cqes.res.tolist(), strict=True):
                    total += res
                    if number < count:
                        ring.queue(sends[number])
                        continue
                    left[number - count] -= 1
                    if left[number - count]:
                        ring.queue(receives[number - count])
                    else:
                        still_open -= 1
            return total

        return echo
