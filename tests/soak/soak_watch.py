"""
What a soak counts, what it measures, and what it calls a fault.

The counts are the soak's own: each completion is looked up by a number that the soak has chosen, in
a table that the ring does not know. What is expected and never comes is lost, what comes once more
is doubled. Between rounds, when all rings are closed and all threads have ended, the process must
have what it had at the beginning; what may waver, memory, must not grow from one quarter to the
next.
"""

import gc
import re
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from uring import _teardown

SHOWN_OF_A_KIND: Final = 3
SETTLE_SECONDS: Final = 20.0
"""The kernel frees a ring, its pages and its threads some time after the descriptor is closed."""

BLOCKS_SLACK: Final = 3000
"""Blocks of the interpreter's memory: a round has made and freed a hundred times as many."""

RSS_SLACK_KB: Final = 16 * 1024
"""The C allocator keeps what is free between blocks in use; a leak of a buffer a round is more."""

GUARD: Final = 64
FILLER: Final = 0xA5


_NOTHING: Final = memoryview(b"")


class Guarded:
    """A buffer with canaries on both sides, filled with what nobody reads."""

    __slots__ = ("memory", "size", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = bytearray([FILLER]) * (size + 2 * GUARD)
        self.view = memoryview(self.memory)[GUARD:-GUARD]

    def check(self, expected: bytes) -> None:
        """Check that it begins with these bytes, and that nothing else was written."""
        rest = bytes([FILLER]) * (self.size - len(expected) + GUARD)
        wanted = bytes([FILLER]) * GUARD + expected + rest
        if self.memory != wanted:
            at = next(
                i for i, pair in enumerate(zip(self.memory, wanted, strict=True)) if _no(pair)
            )
            raise FaultError(
                f"byte {at - GUARD} of {self.size} is wrong, where {len(expected)} were due"
            )

    def release(self) -> None:
        """Let go of our own view, so that only pins of the ring are left."""
        self.view = _NOTHING


def _no(pair: tuple[int, int]) -> bool:
    return pair[0] != pair[1]


class FaultError(Exception):
    """Something is off."""


class Tally:
    """The counts of one soak, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        """What has ended, by kind."""
        self.counts: Counter[str] = Counter(
            dict.fromkeys(
                (
                    *("expected", "seen", "lost", "doubled", "abandoned", "cancelled"),
                    *("no_buffers", "kept_and_said"),
                ),
                0,
            )
        )
        self.faults: list[str] = []
        self.fault_kinds: Counter[str] = Counter()
        """By their last lines, without the numbers."""
        self.in_flight_peak = 0

    def warned(self, text: str) -> None:
        """Note a RuntimeWarning: that of a dropped ring which had no time is as promised."""
        if "within 1.0 s; their memory is kept" in text:
            self.add("kept_and_said")
        else:
            self.fault(f"a warning: {text}")

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[name] += count

    def ended(self, kind: str, count: int = 1) -> None:
        """Note that so many of a kind have ended, each with the completion that was expected."""
        with self._lock:
            self.done[kind] += count
            self.counts["seen"] += count

    def expect(self, count: int) -> None:
        """Note that so many completions have to come."""
        with self._lock:
            self.counts["expected"] += count

    def peak(self, count: int) -> None:
        """Note how much is in flight."""
        self.in_flight_peak = max(self.in_flight_peak, count)

    def fault(self, text: str) -> None:
        """Note that something is off; the soak goes on."""
        kind = re.sub(r"[0-9a-fx]*\d[0-9a-fx]*", "#", text.strip().splitlines()[-1])
        with self._lock:
            self.fault_kinds[kind] += 1
            if self.fault_kinds[kind] <= SHOWN_OF_A_KIND:
                self.faults.append(text)
                sys.stderr.write(f"FAULT: {text}\n")

    def fault_of(self, where: str, error: BaseException) -> None:
        """Note an exception that nobody expected."""
        if isinstance(error, FaultError):
            self.fault(f"{where}: {error}")
        else:
            self.fault(f"{where}: {''.join(traceback.format_exception(error))}")

    def moved(self) -> int:
        """Return a number that changes while anything happens."""
        with self._lock:
            return sum(self.counts.values()) + sum(self.done.values())


# ---- what must stay flat ----


def tasks() -> list[str]:
    """The names of all threads, the kernel's workers and pollers included."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found.append((task / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return sorted(found)


def status_kb(name: str) -> int:
    """A number of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def state() -> dict[str, int]:
    """What must be the same whenever all rings are closed."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    mappings = Path("/proc/self/maps").read_text().splitlines()
    return {
        "descriptors": len(links),
        "threads": len(tasks()),
        "pinned_kb": status_kb("VmPin"),
        "locked_kb": status_kb("VmLck"),
        "open_rings": len(_teardown.open_rings()),
        "kept_for_ever": len(_teardown._kept),
        "ring_mappings": sum("[io_uring]" in line for line in mappings),
    }


class Flatness:
    """The state between rounds: what must be the same, and what must not grow."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._first = state()
        self.points: list[dict[str, int]] = []

    def measure(self) -> dict[str, int]:
        """Take a point; what is not back after some seconds is a fault."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            for _ in range(3):
                gc.collect()
            found = state()
            if found == self._first or time.monotonic() > deadline:
                break
            if found | {"kept_for_ever": 0} == self._first | {"kept_for_ever": 0}:
                break  # what is kept is kept
            time.sleep(0.05)  # the kernel does not tell when it is done
        said = self._tally.counts["kept_and_said"]
        for name, value in found.items():
            if name == "kept_for_ever" and value <= said:
                continue
            if value != self._first[name]:
                first = self._first[name]
                more = f": {tasks()}" if name == "threads" else ""
                self._tally.fault(f"{name}: {value} between rounds, {first} at the start{more}")
        self._first = found  # one leak is one fault
        point = found | {"rss_kb": status_kb("VmRSS"), "blocks": sys.getallocatedblocks()}
        self.points.append(point)
        return point

    def check_growth(self) -> None:
        """Look whether memory has grown since it was warm."""
        for name, slack in (("blocks", BLOCKS_SLACK), ("rss_kb", RSS_SLACK_KB)):
            grown = growth([point[name] for point in self.points])
            if grown > slack:
                self._tally.fault(f"{name} has grown by {grown}, and is still growing")


def growth(values: Sequence[int]) -> int:
    """
    How much the values have grown from their second quarter to their last.

    The first quarter is for what is made once. Medians, since single points waver. What has stopped
    growing is no leak: so no more than six times what the last quarter alone has grown, which for
    steady growth would be four times.
    """
    quarter = len(values) // 4
    if quarter < 4:
        return 0
    early, late = values[quarter : 2 * quarter], values[-quarter:]
    half = len(late) // 2
    recent = statistics.median(late[-half:]) - statistics.median(late[:half])
    total = statistics.median(late) - statistics.median(early)
    return int(max(min(total, recent * 6), 0))
