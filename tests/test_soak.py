"""The soak runs; it finds each kind of fault when one is planted; and its measure of growth."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

SOAK: Final = Path(__file__).parent / "soak" / "soak.py"
SECONDS: Final = 300  # for some seconds of work, on a machine with other work

AFTER: Final = """
import runpy, sys
import uring
del sys.argv[0]
{plant}
sys.path.insert(0, {folder!r})
runpy.run_path({path!r}, run_name="__main__")
"""


def soak(plant: str = "", *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a short soak, with something planted: exit code, report, and what was on stderr."""
    program = AFTER.format(plant=plant, folder=str(SOAK.parent), path=str(SOAK))
    options = ["--seed", "4", "--minutes", "0.01", "--round", "1", "--flood", "500", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, "soak.py", *options, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.mark.slow
def test_soak_holds(ring_refusal: str) -> None:
    """A round on a ring for all threads: every completion is accounted for, and nothing is left."""
    assert not ring_refusal
    code, report, told = soak()
    assert (code, report.get("faults"), told) == (0, [], "seed 4\n")
    counts = report["counts"]
    assert counts["lost"] == counts["doubled"] == 0
    assert counts["expected"] == counts["seen"] + counts["abandoned"]
    assert report["in_flight_peak"] >= 500
    for kind in ("read", "run", "stream", "pipe race", "write", "flood", "direct close"):
        assert report["operations"][kind] > 0


LOSE: Final = """
copy, lost = uring.Ring.copy_cqes, []
def lose(ring, *arguments, **options):
    taken = copy(ring, *arguments, **options)
    if not lost and len(taken):
        lost.append(taken[0])
        return taken[1:]
    return taken
uring.Ring.copy_cqes = lose
"""

DOUBLE: Final = """
copy = uring.Ring.copy_cqes
uring.Ring.copy_cqes = lambda *a, **o: [cqe for cqe in copy(*a, **o) for _ in range(2)]
"""

KEEP_PINS: Final = """
from uring import _memory
pinned, kept = _memory.pinned, []
def keep(*arguments, **options):
    pin = pinned(*arguments, **options)
    kept.append(pin[0])
    return pin
_memory.pinned = keep
"""

KEEP_RINGS: Final = """
enable, kept = uring.Ring.register_files, []
def keep(ring, *arguments):
    kept.append(ring)
    return enable(ring, *arguments)
uring.Ring.register_files = keep
"""

KEEP_LEASES: Final = """
kept = []
uring.Lease.release = lambda lease: kept.append(lease)
"""

LEAK: Final = """
import os
close = uring.Ring.close
def leak(ring):
    os.dup(0)
    close(ring)
uring.Ring.close = leak
"""

WRITE_LATE: Final = """
import time
sleep, read, late = time.sleep, uring.Read, []
class Noted(uring.Read):
    def __init__(self, fd, buffer, *arguments, **options):
        read.__init__(self, fd, buffer, *arguments, **options)
        late.append(buffer)
def write(seconds):
    for buffer in late:
        if len(buffer) == 65536:
            buffer[0] ^= 1
    late.clear()
    sleep(seconds)
time.sleep, uring.Read = write, Noted
"""

CORRUPT: Final = """
result = uring.CQE.result
def corrupt(cqe):
    value = result(cqe)
    if isinstance(value, uring.Lease) and len(value):
        value.view[0] ^= 1
    return value
uring.CQE.result = corrupt
"""

HANG: Final = """
import threading
def hang(ring, *arguments, **options):
    with ring._lock:
        threading.Event().wait()
uring.Ring.copy_cqes = uring.Ring.copy_cqe = uring.Ring.peek_cqes = hang
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "words"),
    [
        pytest.param(LOSE, "1 lost, of", id="a lost completion"),
        pytest.param(DOUBLE, "nobody waits for CQE", id="doubled completions"),
        pytest.param(KEEP_PINS, " pinned", id="pins that stay"),
        pytest.param(KEEP_RINGS, "open_rings: ", id="rings that stay"),
        pytest.param(KEEP_LEASES, "were not given back", id="buffers that stay"),
        pytest.param(LEAK, "descriptors: ", id="leaked descriptors"),
        pytest.param(WRITE_LATE, "was written to after close", id="a write after close()"),
        pytest.param(CORRUPT, "not the bytes at 0 of", id="wrong data"),
    ],
)
def test_soak_finds_what_is_planted(plant: str, words: str) -> None:
    """With one fault planted it ends with 1, and names it."""
    code, report, told = soak(plant)
    assert code == 1, told
    assert any(words in fault for fault in report["faults"]), told


@pytest.mark.slow
def test_soak_shows_all_stacks_when_nothing_moves() -> None:
    """Where every thread is stuck, the watchdog shows where, and ends it with 1."""
    code, report, told = soak(HANG, "--hang", "4")
    assert (code, report) == (1, {})
    assert "Timeout (0:00:04)!" in told
    assert "in hang" in told


def test_growth_is_told_from_wavering(monkeypatch: pytest.MonkeyPatch) -> None:
    """What grows steadily is seen; what wavers, shrinks, or grows once is not."""
    monkeypatch.syspath_prepend(str(SOAK.parent))
    import soak_watch  # noqa: PLC0415 - of the folder that was just put there

    growth = soak_watch.growth
    assert growth(range(0, 4000, 100)) == 2000
    assert growth([1000, 1010] * 20) == 0
    assert growth(range(4000, 0, -100)) == 0
    assert growth([0] * 20 + [5000] * 20) == 0
    assert growth([0, 5000]) == 0
