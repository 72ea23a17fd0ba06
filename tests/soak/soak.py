"""
Keep rings busy in every way at once, for as long as one likes, and find out whether they hold.

Rounds of some seconds follow each other: a ring of the next shape, four threads on it (or one, if
it belongs to one), and a fifth that opens and ends others. Half of the rounds end in an orderly
way, when each completion must have come once; the others by `close()` under everybody. After each
the process must have what it had before. All data is checked. See soak_watch for what is a fault.

    python tests/soak/soak.py --minutes 10
    python tests/soak/soak.py --minutes 1 --seed 7 --json

The seed decides what each thread does next; which of them is first is decided by the machine. The
exit code is 1 if anything was off, or if nothing moved for --hang seconds: then the stacks of all
threads are shown.
"""

import argparse
import faulthandler
import functools
import json
import os
import platform
import random
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from soak_roles import Churner, Consumer, Reaper, Role, Runner, Submitter
from soak_watch import Flatness, Tally
from soak_world import SHAPES, Files, World

from uring import RingClosedError

JOIN_SECONDS: Final = 90.0
"""In which a thread has to end that was told to: close() alone may take 30."""


class Round:
    """One ring from its beginning to its end."""

    def __init__(self, tally: Tally, files: Files, shape: str, seed: str) -> None:
        self.tally, self.rng = tally, random.Random(seed)
        self.world = World(tally, files, shape, seed)
        self.is_orderly = self.rng.random() < 0.5
        self.parked = threading.Semaphore(0)
        self.flood_size = 0
        """How many reads to begin with."""
        self.roles: list[Role] = []

    def open(self) -> None:
        """Make the ring, and those who use it."""
        self.world.open()
        self.roles = [kind(self.world) for kind in (Submitter, Runner, Consumer, Reaper)]
        for role in self.roles:
            if isinstance(role, Submitter):
                role.flood_size = self.flood_size

    def threads(self) -> list[threading.Thread]:
        """Those who use the ring; none has started."""
        if self.world.is_owned:
            return [self.thread("owner", self.take_turns)]
        self.open()
        return [
            self.thread(type(role).__name__, functools.partial(self.go_on, role))
            for role in self.roles
        ]

    def thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Make a thread whose exceptions are faults."""

        def guarded() -> None:
            try:
                target()
            except RingClosedError as error:
                if not self.world.is_closing:
                    self.tally.fault_of(f"{self.world.shape}: {name}", error)
            except BaseException as error:  # noqa: BLE001 - whatever it is
                self.tally.fault_of(f"{self.world.shape}: {name}", error)

        return threading.Thread(target=guarded, name=name)

    def step(self, role: Role) -> None:
        """Take a step; a fault is told, and the soak goes on."""
        try:
            role.step()
        except RingClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            if not (self.world.is_closing and isinstance(error, ValueError)):
                self.tally.fault_of(f"{self.world.shape}: {type(role).__name__}", error)

    def go_on(self, role: Role) -> None:
        """Take steps; stay until all is drained, for the kernel cancels what a thread leaves."""
        world = self.world
        while not world.stopping.is_set():
            self.step(role)
        if isinstance(role, Reaper):
            for _ in self.roles[1:]:
                while not self.parked.acquire(blocking=False):  # they may wait for completions
                    self.step(role)
            world.drain()
            world.drained.set()
        else:
            self.parked.release()
            world.drained.wait()

    def take_turns(self) -> None:
        """Do what the four do, in the thread that owns the ring, and close it there."""
        world = self.world
        self.open()
        while not world.stopping.is_set():
            for role in self.roles:
                self.step(role)
        if self.is_orderly:
            world.drain()
        world.close()

    def end(self) -> None:
        """End it, in an orderly way or not; called by a thread that has no part in it."""
        world = self.world
        if self.is_orderly or world.is_owned:
            world.stopping.set()
        else:
            world.close()

    def leave(self) -> None:
        """Let go of everything, and look whether the ring has done so as well."""
        self.world.close()
        self.world.leave()
        self.roles.clear()


class Soak:
    """All of it."""

    def __init__(self, seed: int, hang_seconds: float) -> None:
        self.seed, self.hang_seconds = seed, hang_seconds
        self.tally = Tally()
        self.flatness = Flatness(self.tally)
        self.stop_churning = threading.Event()
        self._moved = -1
        warnings.simplefilter("ignore", ResourceWarning)  # rings are dropped on purpose
        warnings.simplefilter("always", RuntimeWarning)  # but what the kernel keeps is not
        warnings.showwarning = lambda message, *_, **__: self.tally.warned(str(message))
        sys.unraisablehook = lambda bad: self.tally.fault(f"in a destructor: {bad.exc_value!r}")

    def pat(self) -> None:
        """Hold off the watchdog, if anything has moved since the last time."""
        moved = self.tally.moved()
        if moved != self._moved:
            self._moved = moved
            faulthandler.dump_traceback_later(self.hang_seconds, exit=True)

    def churn(self, files: Files, seed: str) -> None:
        """End rings until the round is over."""
        churner = Churner(self.tally, files, seed)
        while not self.stop_churning.is_set():
            try:
                churner.step()
            except Exception as error:  # noqa: BLE001 - whatever it is
                self.tally.fault_of("churn", error)
        churner.end()

    def join(self, thread: threading.Thread) -> None:
        """Wait for a thread that has been told to end."""
        deadline = time.monotonic() + JOIN_SECONDS
        while thread.is_alive():
            if time.monotonic() > deadline:
                self.tally.fault(f"{thread.name} hangs")
                faulthandler.dump_traceback(all_threads=True)
                self.report(is_json=False)
                sys.stdout.flush()
                os._exit(1)  # a thread that hangs would hold up the interpreter's end
            thread.join(0.25)
            self.pat()

    def round(self, number: int, files: Files, seconds: float, flood_size: int) -> None:
        """Run one ring for some seconds."""
        shape = [*SHAPES][number % len(SHAPES)]
        seed = f"{self.seed} {number}"
        this = Round(self.tally, files, shape, seed)
        if number // len(SHAPES) % 2 == 0:
            this.flood_size = flood_size
        self.stop_churning.clear()
        threads = this.threads()
        threads.append(threading.Thread(target=self.churn, args=(files, seed), name="churn"))
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.25, seconds))
            self.pat()
        self.stop_churning.set()
        this.end()
        for thread in threads:
            self.join(thread)
        this.leave()
        samples = this.world
        del this, threads, thread
        self.flatness.measure()
        samples.check_samples()
        self.tally.add("rounds")

    def run(self, minutes: float, seconds: float, flood_size: int) -> None:
        """Run rounds until the time is over; at least one."""
        files = Files()
        self.pat()  # it has a thread
        self.flatness = Flatness(self.tally)  # with all of that
        deadline, number = time.monotonic() + 60 * minutes, 0
        while not number or time.monotonic() < deadline:
            self.round(number, files, seconds, flood_size)
            number += 1
            self.pat()
        self.flatness.check_growth()
        files.close()
        faulthandler.cancel_dump_traceback_later()

    def show(self, report: dict[str, Any]) -> None:
        """Print a report for people; the faults are on stderr."""
        lines = []
        for name, value in report.items():
            shown = value
            if isinstance(value, dict):
                shown = "  ".join(f"{key}: {count}" for key, count in value.items())
            if name == "points":
                shown = "".join(f"\n  {point}" for point in value)
            if name != "faults":
                lines.append(f"{name}: {shown}")
        lines.append("FAILED" if report["faults"] else "held")
        sys.stdout.write("\n".join(lines) + "\n")

    def report(self, *, is_json: bool) -> bool:
        """Print what was done and seen; return whether all is well."""
        tally, points = self.tally, self.flatness.points
        missing = tally.counts["expected"] - tally.counts["seen"] - tally.counts["abandoned"]
        if missing != tally.counts["lost"]:
            tally.fault(f"{missing} completions are neither seen nor abandoned nor lost")
        step = max(len(points) // 8, 1)
        report = {
            "seed": self.seed,
            "kernel": platform.release(),
            "python": platform.python_version(),
            "operations": dict(sorted(tally.done.items())),
            "counts": dict(sorted(tally.counts.items())),
            "in_flight_peak": tally.in_flight_peak,
            "points": points[step - 1 :: step],
            "fault_kinds": dict(tally.fault_kinds),
            "faults": tally.faults,
        }
        if is_json:
            sys.stdout.write(json.dumps(report, indent=2) + "\n")
        else:
            self.show(report)
        return not tally.faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, and soak."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; default 10")
    parser.add_argument("--seed", type=int, help="to do the same again; default: a random one")
    parser.add_argument("--round", type=float, default=3.0, help="seconds for each ring; default 3")
    parser.add_argument("--flood", type=int, default=20_000, help="reads in flight at once")
    parser.add_argument(
        "--hang", type=float, default=120.0, help="seconds until the watchdog bites"
    )
    parser.add_argument("--json", action="store_true", help="report as JSON")
    args = parser.parse_args(arguments)
    seed = random.randrange(2**32) if args.seed is None else args.seed
    sys.stderr.write(f"seed {seed}\n")
    faulthandler.enable()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    soak = Soak(seed, args.hang)
    soak.run(args.minutes, args.round, args.flood)
    return 0 if soak.report(is_json=args.json) else 1


if __name__ == "__main__":
    sys.exit(main())
