"""
Strikes a call at each place where CPython looks for signals, and at each opcode besides.

Where CPython looks is for CPython to say: it differs from version to version, and is neither after
each call nor only there. So nothing here knows these places. A tracer in C counts opcodes, and at
one of them has SIGINT arrive; the interpreter goes on and finds it wherever it looks next. Then
the sweep goes on with the first opcode behind that, until the call gets through. So each place is
struck, as it would be by a signal that arrives at any moment.

The same with PyThreadState_SetAsyncExc, which is found in the same places; and, harder than any
program can be struck, with an exception that the tracer raises at the opcode itself.
"""

import ctypes
import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

from hostile_harness import PACKAGE, PROGRAMS, Tracked, descriptors, is_in_the_package, once

import uring

NO_FLAGS: Final = uring.SetupFlags(0)
_FAILURES_MAX: Final = 8
_SECONDS: Final = 20  # of one attempt


class How(IntEnum):
    """What happens at the opcode."""

    SIGNAL = 0
    """SIGINT arrives, and its handler raises KeyboardInterrupt when the interpreter looks."""
    ASYNCHRONOUS = 1
    """PyThreadState_SetAsyncExc, found in the same places."""
    AT_ONCE = 2
    """KeyboardInterrupt is raised there and then, which only a tracer can do."""


_CHOSEN: Final = os.environ.get("URING_STRIKES", "signal:1000")
LEAST: Final = {How[way.upper()]: int(n) for way, n in (c.split(":") for c in _CHOSEN.split(","))}
"""How often at least a program is struck in each way: it begins again until then."""
_STRIDE: Final = {How.AT_ONCE: int(os.environ.get("URING_STRIDE", "5"))}
"""Of how many opcodes one is struck, where that is not each: the next pass takes others."""


class _Strike(ctypes.Structure):
    _fields_ = (
        ("package", ctypes.c_char_p),
        ("programs", ctypes.c_char_p),
        ("place", ctypes.c_long),
        ("seen", ctypes.c_long),
        ("landed", ctypes.c_long),
        ("how", ctypes.c_int),
        ("line", ctypes.c_int),
        ("has_struck", ctypes.c_int),
        ("file", ctypes.c_char * 200),
    )


def _compiled() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "strike.so"
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), "strike.c"]
        subprocess.run(command, cwd=PROGRAMS, check=True, timeout=60)
        return ctypes.PyDLL(str(library))


_tracer: Final = _compiled()
sys._getframe().f_trace_opcodes = True  # 3.12 looks, when tracing begins, if any frame ever had it


class Strike:
    """A place, and what came of striking there."""

    def __init__(self, place: int, how: How) -> None:
        self._c = _Strike(PACKAGE.encode(), PROGRAMS.encode(), place, 0, -1, how)
        self._landed_in = ""

    @property
    def has_struck(self) -> bool:
        """Whether there was such a place."""
        return bool(self._c.has_struck)

    @property
    def where(self) -> str:
        """The line that was struck."""
        return f"{Path(os.fsdecode(self._c.file)).name}:{self._c.line}{self._landed_in}"

    @property
    def next(self) -> int:
        """The next place that has not been struck."""
        return int(max(self._c.place + 1, self._c.landed))

    def _land(self, _number: int, frame: FrameType | None) -> None:
        if is_in_the_package(frame):
            assert frame is not None
            self._landed_in = f" -> {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._land)
        _tracer.strike_begin(ctypes.byref(self._c))
        return self

    def __exit__(self, *_raised: object) -> None:
        self.end()

    def end(self) -> None:
        """Strike no more; once more, for this may be cut off itself."""
        _tracer.strike_end()
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class World:
    """A ring with something in flight, and what is known of every number that was given to it."""

    def __init__(self, flags: uring.SetupFlags = NO_FLAGS, entries: int = 8) -> None:
        self.before = descriptors()
        self.ring = uring.Ring(entries, flags=flags)
        self.inlet, self.outlet = os.pipe()
        self.sure: list[int] = []
        """Numbers that must come."""
        self.maybe: list[int] = []
        """Numbers that may come: what was being queued."""
        self.unknown = 0
        """How many may come under numbers that the ring has drawn and nobody was told."""
        self.results: list[Any] = []
        """What came: filled with one call, which cannot be struck in the middle."""
        self.reserved: set[int] = set()
        """Numbers that may stay reserved: of tags whose registering was cut off."""
        self.made: list[Any] = []
        self.pinned: list[tuple[int, weakref.ref[Tracked]]] = []
        self._next = 1

    def nop(self) -> int:
        """A NOP, queued before anything strikes."""
        self._next += 1
        self.sure.append(self.ring.queue(uring.Nop(), user_data=self._next))
        return self._next

    def number(self) -> int:
        """A number for what is queued while it may be struck."""
        self._next += 1
        self.maybe.append(self._next)
        return self._next

    def hang(self) -> None:
        """Submit a read that does not end before the end, into memory that only the ring holds."""
        self._next += 1
        buffer = Tracked(64)
        self.sure.append(self.ring.queue(uring.Read(self.inlet, buffer), user_data=self._next))
        self.pinned.append((self._next, weakref.ref(buffer)))
        self.ring.submit()

    def came(self) -> list[int]:
        """Every number that came."""
        numbers: list[int] = []
        for each in self.results:
            numbers += [each.user_data] if isinstance(each, uring.CQE) else each.user_data.tolist()
        return numbers

    def settle(self, *, may_lose: bool) -> None:
        """Take what is left: all must have come, once, the ring must be usable and empty."""
        ring = self.ring
        if ring.closed:
            self.end()
            return
        for _, reference in self.pinned:
            buffer = reference()
            assert buffer is not None, "freed in flight"
            with suppress(BufferError):
                buffer.append(0)
                raise AssertionError("not pinned in flight")
            del buffer
        os.write(self.outlet, b"x" * 64 * len(self.pinned))
        for _ in range(400):
            if not ring.in_flight and not ring.cq_ready():
                break
            ring.submit()
            self.results.append(ring.copy_cqes(wait_nr=1, timeout=0.01))
        assert ring.in_flight == 0, f"{ring.in_flight} never completed"
        assert ring.cq_ready() == 0
        came = self.came()
        once([n for n in came if n < 2**63 or not self.unknown])
        lost = set(self.sure) - set(came)
        assert may_lose or not lost, f"lost {lost}"
        made_up = [n for n in came if n not in self.sure and n not in self.maybe]
        assert len([n for n in made_up if n >= 2**63]) <= self.unknown, f"made up {made_up}"
        assert not [n for n in made_up if n < 2**63], f"made up {made_up}"
        self.results.clear()
        assert [r() for _, r in self.pinned] == [None] * len(self.pinned), "pinned for ever"
        table = ring._in_flight
        # What is struck amid its claims, or amid taking them back, keeps a number from others.
        claims = table.claims.keys() - (table.claims.keys() if may_lose else self.reserved)
        left = [table.entries, table.shared, claims, table.runs, table.recent, table.single]
        assert not any(left), f"the table has {left}"
        self.is_usable(for_others=not may_lose)
        self.end()

    def is_usable(self, *, for_others: bool) -> None:
        """The ring must work as ever; for other threads, too, unless a lock may be left taken."""
        ring = self.ring
        number = ring.queue(uring.Nop())
        assert ring.submit_and_wait(1, timeout=5) == 1
        assert ring.copy_cqes().user_data.tolist() == [number]
        assert list(ring.run([uring.Nop()] * 9, timeout=5).res) == [0] * 9
        if for_others and ring._owner is None:
            seen: list[int] = []
            other = threading.Thread(target=lambda: seen.append(ring.in_flight), daemon=True)
            other.start()
            other.join(5)
            assert seen == [0], "a lock was left behind"

    def end(self) -> None:
        """Close all of it: no descriptor may be left."""
        self.made.clear()
        self.ring.close()
        for end in (self.inlet, self.outlet):
            with suppress(OSError):
                os.close(end)
        left = descriptors() - self.before
        assert not left, f"leaked {[Path(f'/proc/self/fd/{fd}').readlink() for fd in left]}"


Act = Callable[[World], object]


class Sweep:
    """Strikes programs everywhere, and says where that did harm, and how often they were struck."""

    def __init__(self) -> None:
        self._programs: list[tuple[str, Callable[[], World], Act]] = []
        self.counts: Counter[How] = Counter()
        self.failures: dict[str, list[str]] = {}
        sys.unraisablehook = _quietly

    def strike(self, name: str, make: Callable[[], Any], act: Callable[[Any], object]) -> None:
        """Have `act` be struck in a world of its own, each time."""
        self._programs.append((name, make, act))

    def _pass(self, name: str, make: Callable[[], World], act: Act, how: How, place: int) -> int:
        landed = 0
        while len(self.failures) < _FAILURES_MAX:
            faulthandler.dump_traceback_later(_SECONDS, exit=True)
            world = make()
            strike = Strike(place, how)
            is_struck = False
            try:
                try:
                    with strike:
                        act(world)
                except KeyboardInterrupt:
                    is_struck = True
                strike.end()
                world.settle(may_lose=how is How.AT_ONCE)
            except BaseException as error:
                what = f"{name}, {how.name}: {type(error).__name__}: {error}"[:240]
                self.failures.setdefault(what, []).append(strike.where)
                if os.environ.get("URING_STRIKES_RAISE"):
                    raise
            landed += is_struck
            if not strike.has_struck:
                break
            place = max(strike.next, place + _STRIDE.get(how, 1))
        return landed

    def run(self) -> None:
        """Strike all of them, everywhere; show what went wrong, and how often it was struck."""
        for how, least in LEAST.items():
            for turn in itertools.count():
                if self.failures:
                    break
                count, first = self.counts[how], turn % _STRIDE.get(how, 1)
                for name, make, act in self._programs:
                    self.counts[how] += self._pass(name, make, act, how, first)
                if self.counts[how] >= least or self.counts[how] == count:
                    break
        shown = [f"{what} <- {sorted(set(where))[:6]}" for what, where in self.failures.items()]
        assert not shown, "\n".join(shown)
        counts = ", ".join(f"{how.name.lower()} {self.counts[how]}" for how in LEAST)
        sys.stdout.write(f"strikes: {counts}\n")


def _quietly(unraisable: "sys.UnraisableHookArgs") -> None:
    """Pass over the interrupts of finalizers, and what is dropped open because of one."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt | ResourceWarning):
        sys.__unraisablehook__(unraisable)
