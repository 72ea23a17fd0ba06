"""The comparison from end to end: set up, check, measure, tell."""

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import floor
import machine
import report
from cases import CASES, LIBRARIES, Case, Task
from measure import Entry, check, measure
from ways import Ways
from work import Work

HERE = Path(__file__).resolve().parent
MODULES = {
    "C": ("with_c", "Floor"),
    "uring": ("with_uring", "Uring"),
    "liburing": ("with_liburing", "Liburing"),
    "uring-api": ("with_uring_api", "UringApi"),
    "Python": ("with_python", "Python"),
}


class Entrant(Protocol):
    """A library, as a `with_` module drives it."""

    name: str
    ways: Ways

    def close(self) -> None:
        """Give everything back."""


def compare(*, rounds: int, only: str, folder: Path, write: bool) -> None:
    """Measure the cases whose title has `only` in it, print them, and write them down."""
    cases = [case for case in CASES if only.lower() in case.title.lower()]
    if not cases:
        raise SystemExit(f"no case has {only!r} in its name: {[case.title for case in CASES]}")
    with contextlib.ExitStack() as stack:
        place = machine.describe(folder)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(".d", ".scratch-", folder)))
        work = stack.enter_context(Work(scratch, floor.build(scratch)))
        if work.direct_refusal:
            print(work.direct_refusal, file=sys.stderr)
        entries = []
        for name in LIBRARIES:
            entrant = enter(name, work)
            if entrant is not None:
                stack.callback(entrant.close)
                entries += entries_of(entrant, cases)
        check(entries, work)
        figures = measure(entries, rounds)
    measured = [case for case in cases if ("uring", case.key) in figures]
    report.show(measured, figures, place)
    if write:
        report.write(HERE, measured, figures, place, rounds=rounds)


def enter(name: str, work: Work) -> Entrant | None:
    """Set a library up; None when it is not installed."""
    module, entrant = MODULES[name]
    try:
        made: Entrant = getattr(importlib.import_module(module), entrant)(work)
    except ModuleNotFoundError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None
    return made


def entries_of(entrant: Entrant, cases: Sequence[Case]) -> list[Entry]:
    """Return an entrant's ways of the cases' tasks; of uring's those that the cases name."""
    tasks: dict[str, Task] = {case.task.name: case.task for case in cases}
    wanted = {case.key for case in cases}
    found = []
    for key, way in entrant.ways.items():
        task = tasks.get(key.partition("/")[0])
        if task is not None and (entrant.name != "uring" or key in wanted):
            found.append(Entry(task, entrant.name, key, way))
    return found
