"""Other packages with which files can be awaited, each as its own documentation uses it."""

import os
from functools import partial
from typing import Any

from aio_cases import ALONE, CACHED, DIRECT, PINNED
from aio_loops import Asyncio
from aio_ways import Awaited
from aio_work import AioWork
from work import BLOCK


class Aiofiles(Awaited):
    """Threads, with file objects: one for each task, as they have a position and no pread."""

    def __init__(self, name: str, work: AioWork, module: Any) -> None:
        super().__init__(name, work, Asyncio())
        self._open = module.open
        self._files: list[Any] = []
        self.add(CACHED, partial(self.reads, os.O_RDONLY), 12)
        self.add(PINNED, partial(self.reads, os.O_RDONLY), 12)
        if work.direct != -1:
            self.add(DIRECT, partial(self.direct_reads, os.O_DIRECT), 6)

    async def open(self, flags: int) -> Any:
        """Open the file."""

        def opener(path: str, mode: int) -> int:
            return os.open(path, mode | flags)

        return await self._open(self.work.path, "rb", buffering=0, opener=opener)

    async def reads(self, flags: int, repeats: int) -> int:
        """Seek and read."""
        work = self.work

        async def read(number: int) -> int:
            block, count = b"", 0
            file = await self.open(flags)
            for offset in work.offsets[number][:repeats]:
                await file.seek(offset)
                block = await file.read(BLOCK)
                count += len(block)
            work.got[number] = block
            await file.close()
            return count

        return await self.loop.together(read)

    async def direct_reads(self, flags: int, repeats: int) -> int:
        """Seek and read into a page."""
        work = self.work

        async def read(number: int) -> int:
            page, count = work.pages[number], 0
            file = await self.open(flags)
            for offset in work.offsets[number][:repeats]:
                await file.seek(offset)
                count += await file.readinto(page)
            work.got[number] = page
            await file.close()
            return count

        return await self.loop.together(read)


class Caio(Awaited):
    """One context. Its own bytes are no pages, so that it cannot read with O_DIRECT."""

    def __init__(self, name: str, work: AioWork, module: Any, **options: object) -> None:
        super().__init__(name, work, Asyncio())
        self._context: Any = None
        self._make = partial(module.AsyncioContext, **options)
        self.add(CACHED, self.reads, 120)
        self.add(PINNED, self.reads, 120)
        self.add(ALONE, self.alone, 1000)

    @property
    def context(self) -> Any:
        """The context, made in the loop."""
        if self._context is None:
            self._context = self._make()
        return self._context

    async def alone(self, repeats: int) -> int:
        """Read at random, in one task."""
        work, read_block = self.work, self.context.read
        block, count = b"", 0
        for offset in work.offsets[0][:repeats]:
            block = await read_block(BLOCK, work.fd, offset)
            count += len(block)
        work.got[0] = block
        return count

    async def reads(self, repeats: int) -> int:
        """Read at random."""
        work, read_block = self.work, self.context.read

        async def read(number: int) -> int:
            block, count = b"", 0
            for offset in work.offsets[number][:repeats]:
                block = await read_block(BLOCK, work.fd, offset)
                count += len(block)
            work.got[number] = block
            return count

        return await self.loop.together(read)

    def close(self) -> None:
        """Close the context in its loop, and this."""
        self.loop.run(self._close)
        super().close()

    async def _close(self) -> int:
        if self._context is not None:
            self._context.close()
        return 0


class Uringio(Awaited):
    """Its own event loop. It opens no file with O_DIRECT here."""

    def __init__(self, name: str, work: AioWork, module: Any) -> None:
        super().__init__(name, work, Asyncio(module.UringioLoop))
        self._open = module.open_file
        self.add(CACHED, self.reads, 100)
        self.add(PINNED, self.reads, 100)
        self.add(ALONE, self.alone, 1000)

    async def alone(self, repeats: int) -> int:
        """Read at random, in one task."""
        work = self.work
        file = await self._open(path=str(work.path))
        block, count = b"", 0
        for offset in work.offsets[0][:repeats]:
            block = await file.read(size=BLOCK, offset=offset)
            count += len(block)
        work.got[0] = block
        await file.close()
        return count

    async def reads(self, repeats: int) -> int:
        """Read at random."""
        work = self.work
        file = await self._open(path=str(work.path))
        read_block = file.read

        async def read(number: int) -> int:
            block, count = b"", 0
            for offset in work.offsets[number][:repeats]:
                block = await read_block(size=BLOCK, offset=offset)
                count += len(block)
            work.got[number] = block
            return count

        total = await self.loop.together(read)
        await file.close()
        return total
