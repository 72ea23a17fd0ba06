"""
The cases: which tasks there are, in which ways uring does them, and what the figures should be.

A task is work that every library does in its way; a case is a row of the table: a task, one of
uring's ways, and the bar: to which ratio of the medians we hold ourselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from work import GROWTH, NOPS, READS

LIBRARIES = ["C", "uring", "liburing", "uring-api", "Python"]  # in the order of the table
PEERS = ["liburing", "uring-api"]  # the best of which uring is compared with


@dataclass(frozen=True)
class Task:
    """Work to be measured: nanoseconds are divided by the operations in it."""

    name: str
    title: str
    operations: int
    repeats: int
    """In one measurement, so that it takes a millisecond or more, and no interrupt is all of it."""


@dataclass(frozen=True)
class Case:
    """One row."""

    task: Task
    how: str = ""
    """Which of uring's ways, in words."""
    way: str = ""
    """Its name: "uring" offers it as "task/way"."""
    bars: Mapping[str, float] = field(default_factory=dict)
    """The library that it is compared with, and the largest ratio to it that is good enough."""

    @property
    def title(self) -> str:
        """The row's name."""
        return ": ".join(filter(None, [self.task.title, self.how]))

    @property
    def key(self) -> str:
        """The name of uring's way."""
        return "/".join(filter(None, [self.task.name, self.way]))


NOP256 = Task("nop256", f"NOP x{NOPS}", NOPS, 48)
NOP1 = Task("nop1", "NOP x1", NOPS, 6)
READ64 = Task("read64", f"READ 4 KiB x{READS}", READS, 48)
READ1 = Task("read1", "READ 4 KiB x1", READS, 12)
DIRECT64 = Task("direct64", f"READ 4 KiB O_DIRECT x{READS}", READS, 1)
READV64 = Task("readv64", f"READV 2x2 KiB x{READS}", READS, 12)
CHAIN = Task("chain", "WRITEV 4 KiB + FSYNC, linked", 1, 4)
ECHOES = [
    Task("echo pair x1", "echo 64 B, socketpair, 1 connection", 200, 1),
    Task("echo pair x50", "echo 64 B, socketpairs, 50 connections", 500, 1),
    Task("echo TCP x1", "echo 64 B, TCP, 1 connection", 200, 1),
    Task("echo TCP x50", "echo 64 B, TCP, 50 connections", 500, 1),
]
RUNS = [Task(f"run {n}", f"run(Batch) of NOP x{n}", n, max(1, 16384 // (n + 4))) for n in GROWTH]

_KNOWN_IN_ADVANCE = {"C": 1.05, "Python": 0.85, "liburing": 0.80}
CASES = [
    Case(NOP256, "queued, columns", "columns", {"liburing": 1.3}),
    Case(NOP256, "queued, CQE objects", "objects", {"liburing": 2.4}),
    Case(NOP256, "run(Batch)", "run", {"C": 1.10}),
    Case(NOP1, bars={"liburing": 1.6}),
    Case(READ64, "new Read each", "new", {"liburing": 1.5, "uring-api": 1.5}),
    Case(READ64, "run(Batch)", "run", _KNOWN_IN_ADVANCE),
    Case(READ64, "run(ReadMany)", "many", _KNOWN_IN_ADVANCE),
    Case(READ1),
    Case(DIRECT64, "new Read each", "new"),
    Case(DIRECT64, "run(ReadMany)", "many"),
    Case(READV64, "new Readv each"),
    Case(CHAIN),
    *map(Case, ECHOES),
    *map(Case, RUNS),
]
