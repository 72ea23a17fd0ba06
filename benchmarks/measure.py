"""
The measurement: every way of every task in turn, round after round, in one process.

So a machine whose speed drifts does so for all. The order of the tasks, and of the libraries
within a task, is drawn anew in each round; a task's libraries follow each other closely. Garbage
collection stays on.
"""

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import machine
from cases import Task
from ways import Way

from uring import Completions


@dataclass(frozen=True)
class Entry:
    """A library's way of doing a task."""

    task: Task
    peer: str
    key: str
    way: Way
    own_repeats: int = 0
    """How often in one measurement, where that is not as the task says."""

    @property
    def repeats(self) -> int:
        """How often in one measurement."""
        return self.own_repeats or self.task.repeats


@dataclass(frozen=True)
class Figure:
    """Nanoseconds per operation, over all rounds."""

    median: float
    min: float
    max: float


Key = tuple[str, str]
"""A library and the name of its way."""
Figures = dict[Key, Figure]
Samples = dict[Key, list[float]]
"""Nanoseconds per operation in each round."""


@dataclass(frozen=True)
class Round:
    """One measurement of a task: who needed how long, and how busy others were meanwhile."""

    others: float
    times: dict[Key, float]


Shares = dict[Task, float]
"""The largest share of the processors' time that others had in a round that counts, 0..1."""


class Checked(Protocol):
    """What is worked on, as far as the check before the measurement needs it."""

    def clear(self) -> None:
        """Forget what was read."""

    def was_read(self, task: str, /) -> bool:
        """Whether a way of the task has read what the file holds; true of one that reads none."""


def check(entries: Sequence[Entry], work: Checked) -> None:
    """See that all ways of a task give the same results, before any is measured."""
    sums: dict[str, int] = {}
    for entry in entries:
        work.clear()
        total = checksum(entry.way(1))
        if total != sums.setdefault(entry.task.name, total):
            raise SystemExit(f"{entry.peer} {entry.key}: not the results of the others")
        if not entry.key.endswith("/pread") and not work.was_read(entry.task.name):
            raise SystemExit(f"{entry.peer} {entry.key}: the buffers do not hold the file")


def checksum(result: object) -> int:
    """Return the sum of user_data and res; results of a run are in the order of its operations."""
    if isinstance(result, Completions):
        return sum(result.res.tolist()) + sum(range(len(result)))
    if not isinstance(result, int):
        raise TypeError(f"a way returned {result!r}")
    return result


def measure(entries: Sequence[Entry], rounds: int) -> Figures:
    """Measure all entries so often, after a round that warms up and does not count."""
    samples, _ = sample(entries, rounds)
    return {key: figure_of(values) for key, values in samples.items()}


def sample(entries: Sequence[Entry], rounds: int, *, counted: int = 0) -> tuple[Samples, Shares]:
    """
    Measure all entries so often: their times, and what others had of the processors meanwhile.

    Args:
        entries: what to measure.
        rounds: how often, after a round that warms up and does not count.
        counted: how many rounds of each task count: those in which others were least busy. 0: all.
    """
    taken: dict[Task, list[Round]] = {entry.task: [] for entry in entries}
    start = time.monotonic()
    for number in range(-1, rounds):
        progress(number, rounds, time.monotonic() - start)
        for task, group in groupby(shuffled(entries), key=lambda entry: entry.task):
            busy = machine.Busy()
            times = {(entry.peer, entry.key): timed(entry) for entry in group}
            if number >= 0:
                taken[task].append(Round(busy.others(), times))
    progress(rounds, rounds, time.monotonic() - start)
    samples: Samples = {(entry.peer, entry.key): [] for entry in entries}
    shares: Shares = {}
    for task, all_rounds in taken.items():
        quietest = sorted(all_rounds, key=lambda each: each.others)[: counted or rounds]
        shares[task] = quietest[-1].others
        for each in quietest:
            for key, nanoseconds in each.times.items():
                samples[key].append(nanoseconds)
    return samples, shares


def figure_of(values: Sequence[float]) -> Figure:
    """Sum the rounds up."""
    return Figure(statistics.median(values), min(values), max(values))


def shuffled(entries: Sequence[Entry]) -> list[Entry]:
    """Draw an order: of the tasks, and within each of its entries."""
    tasks = list({entry.task: None for entry in entries})
    places = {task: place for place, task in enumerate(random.sample(tasks, len(tasks)))}
    drawn = random.sample(entries, len(entries))
    return sorted(drawn, key=lambda entry: places[entry.task])


def timed(entry: Entry) -> float:
    """Do the task `repeats` times: nanoseconds per operation."""
    way, repeats = entry.way, entry.repeats
    start = time.perf_counter_ns()
    way(repeats)
    return (time.perf_counter_ns() - start) / repeats / entry.task.operations


def progress(done: int, rounds: int, seconds: float) -> None:
    """Show on a terminal how far it is."""
    if sys.stderr.isatty():
        end = "\n" if done == rounds else ""
        text = f"\r{max(done, 0)}/{rounds} rounds, {seconds:.0f} s "
        print(text, end=end, file=sys.stderr, flush=True)
