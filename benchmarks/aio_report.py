"""Telling how awaited operations compare: on the terminal, in files, and in docs/async.md."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import aio_picture
import machine
from aio_cases import ALONE, BARS, BEST_PEER, CALLS, DO, PEERS, READS, TO_THREAD, Bar
from cases import Task
from measure import Figure, Samples, Shares, figure_of
from report import DASH, refresh

BEGIN = "<!-- results: written by benchmarks/aio_reads.py -->"
NANOSECONDS = 1e9


@dataclass(frozen=True)
class Verdict:
    """A bar, and how uring stands to it."""

    bar: Bar
    against: str
    ratio: Figure

    @property
    def is_met(self) -> bool:
        """Whether it is as many times as fast, as printed."""
        return round(self.ratio.median, 1) >= self.bar.times

    def __str__(self) -> str:
        met = "met" if self.is_met else "**missed**"
        named = (
            f"{self.bar.against}, {self.against}" if self.bar.against == BEST_PEER else self.against
        )
        return (
            f"{self.bar.task.title}: `{self.bar.ours}` is {spread(self.ratio, 1)} times as fast as"
            f" {named}; bar {self.bar.times:g}: {met}"
        )


@dataclass(frozen=True)
class Quiet:
    """Which rounds count."""

    rounds: int
    counted: int
    shares: Shares

    def __str__(self) -> str:
        return (
            f"Medians, with minimum and maximum, of those {self.counted} of {self.rounds} rounds in"
            f" which other programs were least busy: at most {max(self.shares.values()):.0%} of the"
            " processors' time."
        )


def names(task: Task, samples: Samples) -> list[str]:
    """Return who has done a task, in the order of the table."""
    return [name for name, key in samples if key == task.name]


def done(tasks: Sequence[Task], samples: Samples) -> list[Task]:
    """Return the tasks that somebody has done: O_DIRECT may be none."""
    return [task for task in tasks if names(task, samples)]


def ratio(task: Task, ours: str, other: str, samples: Samples) -> Figure:
    """Return how many times as fast one is as the other, of each round."""
    pairs = zip(samples[ours, task.name], samples[other, task.name], strict=True)
    return figure_of([theirs / own for own, theirs in pairs])


def rate(values: Sequence[float]) -> Figure:
    """Return thousands of operations per second."""
    return figure_of([NANOSECONDS / value / 1000 for value in values])


def verdicts(tasks: Sequence[Task], samples: Samples) -> list[Verdict]:
    """Compare with the bars."""
    found = []
    for bar in BARS:
        there = names(bar.task, samples) if bar.task in tasks else []
        against = bar.against
        if against == BEST_PEER:
            peers = [name for name in PEERS if name in there]
            key = bar.task.name
            against = min(peers, key=lambda name: median(samples[name, key]), default="")
        if bar.ours in there and against in there:
            found.append(Verdict(bar, against, ratio(bar.task, bar.ours, against, samples)))
    return found


def spread(figure: Figure, digits: int) -> str:
    """Put a figure into words: the median, and the range."""
    low, high = (f"{each:,.{digits}f}" for each in (figure.min, figure.max))
    return f"{figure.median:,.{digits}f} ({low}-{high})"


def show(tasks: Sequence[Task], samples: Samples, place: Mapping[str, str], quiet: Quiet) -> None:
    """Print all figures."""
    print(f"{machine.sentence(place)}\n{quiet}")
    for task in tasks:
        print(f"\n{task.title}; others had {quiet.shares[task]:.0%} of the processors' time")
        print(f"  {'':31}{'us per operation':26}{'1,000 per second':26}times {TO_THREAD}")
        for name in names(task, samples):
            values = samples[name, task.name]
            line = f"{microseconds(task, name, samples):26}"
            line += f"{spread(rate(values), 1):26}"
            if (TO_THREAD, task.name) in samples:
                line += spread(ratio(task, name, TO_THREAD, samples), 2)
            print(f"  {name:31}{line}")
    print()
    for verdict in verdicts(tasks, samples):
        print(str(verdict).replace("*", "").replace("`", ""))


# ---- files ----


def write(
    folder: Path,
    tasks: Sequence[Task],
    samples: Samples,
    place: Mapping[str, str],
    quiet: Quiet,
) -> None:
    """Refresh aio_results.json, aio_results.png and the tables in docs/async.md."""
    found = verdicts(tasks, samples)
    recorded = {
        "machine": place,
        "rounds": quiet.rounds,
        "rounds that count": quiet.counted,
        "others": {task.title: share for task, share in quiet.shares.items()},
        "unit": "ns per operation",
        "tasks": {
            task.title: {
                name: {
                    **asdict(figure_of(samples[name, task.name])),
                    f"times {TO_THREAD}": asdict(ratio(task, name, TO_THREAD, samples)),
                }
                for name in names(task, samples)
            }
            for task in tasks
        },
        "bars": [
            {
                "task": each.bar.task.title,
                "ours": each.bar.ours,
                "against": each.against,
                "bar": each.bar.times,
                "ratio": asdict(each.ratio),
                "met": each.is_met,
            }
            for each in found
        ],
    }
    path = folder / "aio_results.json"
    path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    rates = {
        task.title: {name: rate(samples[name, task.name]) for name in names(task, samples)}
        for task in done(READS, samples)
    }
    aio_picture.draw(folder / "aio_results.png", rates, machine.sentence(place))
    body = tables(samples, place, quiet, found)
    refresh(folder.parent / "docs" / "async.md", BEGIN, body)


def tables(
    samples: Samples, place: Mapping[str, str], quiet: Quiet, found: Sequence[Verdict]
) -> str:
    """Return the page's part: where, the picture, the tables, the bars."""
    readers = dict.fromkeys([name for task in READS for name in names(task, samples)])
    callers = [DO, TO_THREAD]
    reads = [part for task in done(READS, samples) for part in (task.title, "times")]
    lines = [
        f"{machine.sentence(place)}.",
        str(quiet),
        "",
        "![thousands of reads per second](../benchmarks/aio_results.png)",
        "",
        "Thousands of operations per second, 64 in flight, and how many times that is",
        f"`{TO_THREAD}` in the same round:",
        "",
        f"| | {' | '.join(reads)} |",
        f"|---|{'--:|' * len(reads)}",
        *(reading(name, samples) for name in readers),
        "",
        "Microseconds per call, 64 in flight, on asyncio:",
        "",
        f"| | {' | '.join(callers)} | times |",
        "|---|--:|--:|--:|",
        *(calling(task, samples) for task in CALLS),
        "",
        "Microseconds for one cached read after the other, in one task:",
        "",
        "| | |",
        "|---|--:|",
        *(f"| {name} | {microseconds(ALONE, name, samples)} |" for name in names(ALONE, samples)),
        "",
        "To what we hold ourselves:",
        "",
        *(f"- {verdict}" for verdict in found),
    ]
    return "\n".join(lines)


def microseconds(task: Task, name: str, samples: Samples) -> str:
    """Put the time of an operation into words."""
    return spread(figure_of([each / 1000 for each in samples[name, task.name]]), 1)


def reading(name: str, samples: Samples) -> str:
    """Return one row of the table of reads."""
    cells = []
    for task in done(READS, samples):
        if (name, task.name) in samples:
            cells.append(spread(rate(samples[name, task.name]), 0))
            cells.append(f"{ratio(task, name, TO_THREAD, samples).median:.1f}")
        else:
            cells += [DASH, DASH]
    return f"| {' | '.join([name, *cells])} |"


def calling(task: Task, samples: Samples) -> str:
    """Return one row of the table of calls."""
    cells = [microseconds(task, name, samples) for name in (DO, TO_THREAD)]
    cells.append(f"{ratio(task, DO, TO_THREAD, samples).median:.1f}")
    return f"| {' | '.join([task.title, *cells])} |"
