"""What is compared: uring's ways to await an operation, and a thread's."""

import os
from collections.abc import Callable
from functools import partial

from aio_cases import ALONE, CACHED, CALLS, DIRECT, FSYNC, PINNED, READS
from aio_loops import Loop, Main
from aio_work import AioWork
from cases import Task
from ways import Ways
from work import BLOCK

import uring.aio
from uring import Fsync, Openat, Read, ReadMany, Statx, Write

Repeats = dict[str, int]
"""By the task's name, where it should not be the task's own."""


class Awaited:
    """Programs on one loop, each with the number of repeats as its argument."""

    def __init__(self, name: str, work: AioWork, loop: Loop) -> None:
        self.name = name
        self.work = work
        self.loop = loop
        self.ways = Ways()
        self.repeats = Repeats()

    def add(self, task: Task, main: Main, repeats: int = 0) -> None:
        """Offer a way of a task."""
        self.ways[task.name] = partial(self.loop.run, main)
        if repeats:
            self.repeats[task.name] = repeats

    def add_reads(self, make: Callable[[int], Main], *, cached: int, direct: int) -> None:
        """Offer the tasks that read; `make` is given the descriptor."""
        for task in READS:
            fd = self.work.file_of(task.name)
            if fd != -1:
                self.add(task, make(fd), direct if task == DIRECT else cached)

    def close(self) -> None:
        """Close the loop."""
        self.loop.close()


class Do(Awaited):
    """`await ring.do(operation)`: one operation, new each time."""

    def __init__(self, name: str, work: AioWork, loop: Loop, *, has_calls: bool) -> None:
        super().__init__(name, work, loop)
        self.add_reads(self.reads, cached=160, direct=40)
        self.add(ALONE, self.alone, 1000)
        if has_calls:
            for task, main in zip(
                CALLS, (self.statx, self.openat, self.write, self.fsync), strict=True
            ):
                self.add(task, main, {FSYNC: 4}.get(task, 100))

    def reads(self, fd: int) -> Main:
        """Read at random."""
        work, loop = self.work, self.loop

        async def main(repeats: int) -> int:
            do = uring.aio.ring().do

            async def read(number: int) -> int:
                page, count = work.pages[number], 0
                for offset in work.offsets[number][:repeats]:
                    count += await do(Read(fd, page, offset))
                work.got[number] = page
                return count

            return await loop.together(read)

        return main

    async def alone(self, repeats: int) -> int:
        """Read at random, in one task."""
        work, do, count = self.work, uring.aio.ring().do, 0
        fd, page = work.fd, work.pages[0]
        for offset in work.offsets[0][:repeats]:
            count += await do(Read(fd, page, offset))
        work.got[0] = page
        return count

    async def statx(self, repeats: int) -> int:
        """Ask for the size."""
        paths, do = self.work.paths, uring.aio.ring().do

        async def ask(number: int) -> int:
            path, total = paths[number], 0
            for _ in range(repeats):
                total += (await do(Statx(path))).size
            return total

        return await self.loop.together(ask)

    async def openat(self, repeats: int) -> int:
        """Open and close."""
        paths, do, close = self.work.paths, uring.aio.ring().do, os.close

        async def open_one(number: int) -> int:
            path = paths[number]
            for _ in range(repeats):
                close(await do(Openat(path)))
            return repeats

        return await self.loop.together(open_one)

    async def write(self, repeats: int) -> int:
        """Write the first block of a file."""
        work, do = self.work, uring.aio.ring().do

        async def write_one(number: int) -> int:
            fd, page, count = work.written[number], work.pages[number], 0
            for _ in range(repeats):
                count += await do(Write(fd, page, 0))
            return count

        return await self.loop.together(write_one)

    async def fsync(self, repeats: int) -> int:
        """Sync what was written."""
        work, do = self.work, uring.aio.ring().do

        async def sync_one(number: int) -> int:
            fd, page = work.written[number], work.pages[number]
            for _ in range(repeats):
                os.pwrite(fd, page, 0)
                await do(Fsync(fd))
            return repeats

        return await self.loop.together(sync_one)


class Run(Awaited):
    """`await ring.run(ReadMany(...))`: 64 reads at once, at new places each time."""

    def __init__(self, name: str, work: AioWork, loop: Loop) -> None:
        super().__init__(name, work, loop)
        self.add_reads(self.reads, cached=400, direct=50)

    def reads(self, fd: int) -> Main:
        """Read at random, in one task."""
        work = self.work

        async def main(repeats: int) -> int:
            run, count = uring.aio.ring().run, 0
            for offsets in work.batches[:repeats]:
                done = await run(ReadMany(fd, work.memory, offsets))
                count += sum(done.raise_first().res)
            work.got = list(work.pages)
            return count

        return main


class File(Awaited):
    """`await file.pread(...)`: the file layer, one file for all tasks."""

    def __init__(self, name: str, work: AioWork, loop: Loop) -> None:
        super().__init__(name, work, loop)
        self.add_reads(self.reads, cached=100, direct=40)

    def reads(self, fd: int) -> Main:
        """Read at random."""
        work, loop = self.work, self.loop

        async def main(repeats: int) -> int:
            file = await uring.aio.open(fd, "rb", 0, closefd=False)
            pread = file.pread

            async def read(number: int) -> int:
                page, count = work.pages[number], 0
                for offset in work.offsets[number][:repeats]:
                    count += await pread(page, offset)
                work.got[number] = page
                return count

            total = await loop.together(read)
            await file.close()
            return total

        return main


class Threads(Awaited):
    """A system call in a thread of the loop's pool."""

    def __init__(self, name: str, work: AioWork, loop: Loop, *, has_calls: bool) -> None:
        super().__init__(name, work, loop)
        self.add(CACHED, self.reads)
        self.add(PINNED, self.reads)
        if work.direct != -1:
            self.add(DIRECT, self.direct_reads)
        if has_calls:
            self.add(ALONE, self.alone)
            for task, call in zip(
                CALLS, (self.statx, self.openat, self.write, self.fsync), strict=True
            ):
                self.add(task, call)

    async def reads(self, repeats: int) -> int:
        """Read at random."""
        work, in_thread = self.work, self.loop.in_thread

        async def read(number: int) -> int:
            block, count = b"", 0
            for offset in work.offsets[number][:repeats]:
                block = await in_thread(os.pread, work.fd, BLOCK, offset)
                count += len(block)
            work.got[number] = block
            return count

        return await self.loop.together(read)

    async def direct_reads(self, repeats: int) -> int:
        """Read at random, into pages: O_DIRECT takes no other memory."""
        work, in_thread = self.work, self.loop.in_thread

        async def read(number: int) -> int:
            page, count = work.pages[number], 0
            pages = [page]
            for offset in work.offsets[number][:repeats]:
                count += await in_thread(os.preadv, work.direct, pages, offset)
            work.got[number] = page
            return count

        return await self.loop.together(read)

    async def alone(self, repeats: int) -> int:
        """Read at random, in one task."""
        work, in_thread = self.work, self.loop.in_thread
        block, count = b"", 0
        for offset in work.offsets[0][:repeats]:
            block = await in_thread(os.pread, work.fd, BLOCK, offset)
            count += len(block)
        work.got[0] = block
        return count

    async def statx(self, repeats: int) -> int:
        """Ask for the size."""
        paths, in_thread = self.work.paths, self.loop.in_thread

        async def ask(number: int) -> int:
            path, total = paths[number], 0
            for _ in range(repeats):
                total += (await in_thread(os.stat, path)).st_size
            return total

        return await self.loop.together(ask)

    async def openat(self, repeats: int) -> int:
        """Open and close."""
        paths, in_thread = self.work.paths, self.loop.in_thread

        async def open_one(number: int) -> int:
            path = paths[number]
            for _ in range(repeats):
                os.close(await in_thread(os.open, path, os.O_RDONLY))
            return repeats

        return await self.loop.together(open_one)

    async def write(self, repeats: int) -> int:
        """Write the first block of a file."""
        work, in_thread = self.work, self.loop.in_thread

        async def write_one(number: int) -> int:
            fd, page, count = work.written[number], work.pages[number], 0
            for _ in range(repeats):
                count += await in_thread(os.pwrite, fd, page, 0)
            return count

        return await self.loop.together(write_one)

    async def fsync(self, repeats: int) -> int:
        """Sync what was written."""
        work, in_thread = self.work, self.loop.in_thread

        async def sync_one(number: int) -> int:
            fd, page = work.written[number], work.pages[number]
            for _ in range(repeats):
                os.pwrite(fd, page, 0)
                await in_thread(os.fsync, fd)
            return repeats

        return await self.loop.together(sync_one)


class Plain:
    """os.pread, where there is nothing to wait for: no loop."""

    def __init__(self, name: str, work: AioWork) -> None:
        self.name = name
        self.work = work
        self.ways = Ways({ALONE.name: self.alone})
        self.repeats = Repeats({ALONE.name: 1000})

    def close(self) -> None:
        """There is nothing to close."""

    def alone(self, repeats: int) -> int:
        """Read at random."""
        work, pread = self.work, os.pread
        block, count = b"", 0
        for offset in work.offsets[0][:repeats]:
            block = pread(work.fd, BLOCK, offset)
            count += len(block)
        work.got[0] = block
        return count
