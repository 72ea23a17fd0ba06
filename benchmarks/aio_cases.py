"""The tasks of the comparison of awaited operations, and the bars to which we hold ourselves."""

from dataclasses import dataclass

from cases import Task

IN_FLIGHT = 64
CACHED = Task("cached", "4 KiB random reads, page cache", IN_FLIGHT, 40)
PINNED = Task("cached, pinned", "the same, on one processor", IN_FLIGHT, 40)
DIRECT = Task("direct", "4 KiB random reads, O_DIRECT", IN_FLIGHT, 10)
ALONE = Task("alone", "one cached read at a time", 1, 500)
STATX = Task("statx", "statx", IN_FLIGHT, 20)
OPENAT = Task("openat", "openat, then os.close", IN_FLIGHT, 20)
WRITE = Task("write", "write of 4 KiB", IN_FLIGHT, 20)
FSYNC = Task("fsync", "os.pwrite of 4 KiB, then fsync", IN_FLIGHT, 4)
READS = [CACHED, PINNED, DIRECT]
CALLS = [STATX, OPENAT, WRITE, FSYNC]
TASKS = [*READS, ALONE, *CALLS]

TO_THREAD = "asyncio.to_thread"
DO = "ring.do, asyncio"
RUN = "ring.run(ReadMany) of 64"
BEST_PEER = "the best peer"
PEERS = ["aiofiles", "caio", "caio, sqpoll=False", "uringio"]
"""What else there is to await files with; threads without more are not among them."""


@dataclass(frozen=True)
class Bar:
    """How many times as fast as another we want to be."""

    task: Task
    ours: str
    against: str
    times: float


BARS = [
    Bar(CACHED, DO, TO_THREAD, 8),
    Bar(CACHED, DO, BEST_PEER, 2),
    Bar(CACHED, RUN, TO_THREAD, 25),
    Bar(DIRECT, DO, TO_THREAD, 5),
]
