"""
What is read and written in the comparison of awaited operations, the same for all.

The file is too large for a processor's caches, and its blocks say their number, so that each read
can be seen to have brought what it should. All offsets are drawn before the clock starts.
"""

import contextlib
import mmap
import os
import random
from array import array
from pathlib import Path
from typing import Self

from aio_cases import ALONE, IN_FLIGHT, READS
from work import BLOCK, open_direct

BLOCKS = 1 << 14  # 64 MiB
REPEATS_MAX = 1000
READ_TASKS = {task.name for task in READS}


def content(offset: int) -> bytes:
    """Return the block that starts there."""
    return offset.to_bytes(8, "little") * (BLOCK // 8)


class AioWork:
    """All of it. A context manager: the files are closed with it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "read"
        with self.path.open("wb") as file:
            file.writelines(map(content, range(0, BLOCKS * BLOCK, BLOCK)))
            file.flush()
            os.fsync(file.fileno())
        drawn = random.Random(BLOCKS)
        self.offsets = [
            array("q", [drawn.randrange(BLOCKS) * BLOCK for _ in range(REPEATS_MAX)])
            for _ in range(IN_FLIGHT)
        ]
        """Where each of those in flight reads, one after the other."""
        self.batches = [array("q", each) for each in zip(*self.offsets, strict=True)]
        """The same for who reads with all at once."""
        self.memory = memoryview(mmap.mmap(-1, IN_FLIGHT * BLOCK))
        self.pages = [self.memory[start:][:BLOCK] for start in range(0, len(self.memory), BLOCK)]
        self.got: list[bytes | memoryview] = [b""] * IN_FLIGHT
        """What each of those in flight has read last."""
        self.fd = os.open(self.path, os.O_RDONLY)
        self.direct, self.direct_refusal = open_direct(self.path, mmap.mmap(-1, BLOCK))
        self.paths = [str(folder / f"small {number}") for number in range(IN_FLIGHT)]
        for path in self.paths:
            Path(path).write_bytes(content(0))
        self.written = [os.open(path, os.O_RDWR) for path in self.paths]

    def file_of(self, task: str) -> int:
        """Return the descriptor that a task reads from; -1 when it cannot be done here."""
        return self.direct if task == "direct" else self.fd

    def clear(self) -> None:
        """Forget what was read."""
        self.got = [b""] * IN_FLIGHT
        self.memory[:] = bytes(len(self.memory))

    def was_read(self, task: str) -> bool:
        """Whether the first block of each of those in flight was read last; true of other tasks."""
        readers = IN_FLIGHT if task in READ_TASKS else int(task == ALONE.name)
        firsts = [content(offsets[0]) for offsets in self.offsets[:readers]]
        return [bytes(block) for block in self.got[:readers]] == firsts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for fd in (self.fd, self.direct, *self.written):
            with contextlib.suppress(OSError):
                os.close(fd)
