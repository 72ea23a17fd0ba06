"""The comparison of awaited operations from end to end: set up, check, measure, tell."""

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import aio_report
import machine
from aio_cases import DO, PINNED, RUN, TASKS, TO_THREAD
from aio_loops import Asyncio, Trio
from aio_peers import Aiofiles, Caio, Uringio
from aio_ways import Do, File, Plain, Run, Threads
from aio_work import AioWork
from measure import Entry, check, sample
from ways import Way, Ways

PACKAGES = ["uring", "uvloop", "trio", "aiofiles", "caio", "uringio"]


class Contender(Protocol):
    """Something to compare with, or uring itself."""

    name: str
    ways: Ways
    repeats: dict[str, int]

    def close(self) -> None:
        """Give everything back."""


def _with(module: str, make: Callable[..., Contender]) -> Callable[..., Contender]:
    """Make a contender that is given a module, which may not be installed."""

    def maker(name: str, work: AioWork) -> Contender:
        return make(name, work, importlib.import_module(module))

    return maker


CONTENDERS: dict[str, Callable[[str, AioWork], Contender]] = {
    DO: lambda name, work: Do(name, work, Asyncio(), has_calls=True),
    "ring.do, uvloop": _with(
        "uvloop",
        lambda name, work, uvloop: Do(name, work, Asyncio(uvloop.new_event_loop), has_calls=False),
    ),
    "ring.do, trio": _with(
        "trio", lambda name, work, trio: Do(name, work, Trio(trio), has_calls=False)
    ),
    RUN: lambda name, work: Run(name, work, Asyncio()),
    "uring.aio.open, pread": lambda name, work: File(name, work, Asyncio()),
    TO_THREAD: lambda name, work: Threads(name, work, Asyncio(), has_calls=True),
    "asyncio.to_thread, 64 threads": lambda name, work: Threads(
        name, work, Asyncio(threads=64), has_calls=False
    ),
    "trio.to_thread": _with(
        "trio", lambda name, work, trio: Threads(name, work, Trio(trio), has_calls=False)
    ),
    "aiofiles": _with("aiofiles", Aiofiles),
    "caio": _with("caio.linux_uring_asyncio", Caio),
    "caio, sqpoll=False": _with("caio.linux_uring_asyncio", partial(Caio, sqpoll=False)),
    "uringio": _with("uringio", Uringio),
    "os.pread, no loop": Plain,
}


def compare(*, rounds: int, only: str, folder: Path, write: bool) -> None:
    """Measure the tasks whose title has `only` in it, print them, and write them down."""
    tasks = [task for task in TASKS if only.lower() in task.title.lower()]
    if not tasks:
        raise SystemExit(f"no task has {only!r} in its name: {[task.title for task in TASKS]}")
    with contextlib.ExitStack() as stack:
        place = machine.describe(folder, PACKAGES)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(".d", ".scratch-", folder)))
        work = stack.enter_context(AioWork(scratch))
        if work.direct_refusal:
            print(work.direct_refusal, file=sys.stderr)
        entries = []
        for name, make in CONTENDERS.items():
            contender = enter(name, make, work)
            if contender is not None:
                stack.callback(contender.close)
                entries += [
                    Entry(task, name, task.name, way_of(contender, task.name), repeats)
                    for task in tasks
                    if task.name in contender.ways
                    for repeats in [contender.repeats.get(task.name, 0)]
                ]
        check(entries, work)
        counted = max(1, rounds // 3)
        samples, shares = sample(entries, rounds, counted=counted)
    tasks = [task for task in tasks if task in shares]
    quiet = aio_report.Quiet(rounds, counted, shares)
    aio_report.show(tasks, samples, place, quiet)
    if write:
        aio_report.write(Path(__file__).parent, tasks, samples, place, quiet)


def enter(name: str, make: Callable[[str, AioWork], Contender], work: AioWork) -> Contender | None:
    """Set a contender up; None when it is not installed."""
    try:
        return make(name, work)
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None


def way_of(contender: Contender, task: str) -> Way:
    """Return its way of a task, on the processors that the task says."""
    way = contender.ways[task]
    return partial(on_one_processor, way) if task == PINNED.name else way


def on_one_processor(way: Way, repeats: int) -> object:
    """Do a task with all threads of the process on one processor."""
    processors = os.sched_getaffinity(0)
    move({max(processors)})  # the first one has the interrupts, often
    try:
        return way(repeats)
    finally:
        move(processors)


def move(processors: set[int]) -> None:
    """Bind all threads to some processors; those that they begin inherit it."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), processors)
