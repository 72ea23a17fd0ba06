"""
What a ring is when the system fails it: nothing is lost, nothing leaks, and every error says so.

The programs under tests/faults run as processes of their own, with tests/faults/faults.c preloaded,
which makes the calls of the shim fail, or the allocations of Python. By default they inject a few
errnos at each call; with URING_FAULTS=all in the environment, every one.
"""

import functools
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from uring import _uring

pytestmark = pytest.mark.slow

HERE: Final = Path(__file__).parent / "faults"
IS_EXHAUSTIVE: Final = os.environ.get("URING_FAULTS") == "all"
SECONDS: Final = 900 if IS_EXHAUSTIVE else 240
CALLS: Final = re.findall(
    r"^@scenario\ndef (\w+)", (HERE / "fault_calls.py").read_text(), re.MULTILINE
)
SHORTAGES: Final = re.findall(
    r"^@scenario\ndef (\w+)", (HERE / "fault_shortage.py").read_text(), re.MULTILINE
)


@functools.cache
def library() -> str:
    """Compile the library that makes things fail."""
    folder = tempfile.mkdtemp(prefix="uring-faults-")
    made = f"{folder}/libfaults.so"
    subprocess.run(
        ["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-o", made, "faults.c"],
        cwd=HERE,
        check=True,
    )
    return made


def run(program: str, *arguments: str, preload: bool = True) -> list[str]:
    """Run a program to its end; gives the words of its last line."""
    places = [str(HERE.parent / "hostile"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    if preload:
        env["LD_PRELOAD"] = f"{os.environ.get('LD_PRELOAD', '')} {library()}".strip()
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", program, *arguments],
        cwd=HERE,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    return ended.stdout.splitlines()[-1].split()


@functools.cache
def swept(name: str) -> tuple[int, int, frozenset[int]]:
    """Run a scenario under its faults: (runs, faults, the call sites that were hit)."""
    runs, faults, *sites = map(int, run("fault_calls.py", name))
    return runs, faults, frozenset(sites)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_may_fail(ring_refusal: str, name: str) -> None:
    """Each call of the scenario fails, in each way: it says so, goes on, and nothing is lost."""
    assert not ring_refusal
    runs, faults, sites = swept(name)
    assert runs > 20
    assert faults > 20
    assert sites


@pytest.mark.parametrize("name", SHORTAGES)
def test_every_allocation_may_fail(ring_refusal: str, name: str) -> None:
    """Each allocation of the scenario fails: MemoryError, and the ring is as it was."""
    assert not ring_refusal
    (count,) = map(int, run("fault_shortage.py", name))
    assert count > 10 or sys.version_info >= (3, 12)  # see BURSTS: then it just runs


# ---- whether every call of the shim was made to fail ----

_SYSTEM: Final = {
    *("syscall", "mmap", "mmap64", "munmap", "madvise", "close", "poll", "nanosleep", "malloc"),
}
_AT_IMPORT: Final = "fork_page_map"
"""Runs before any plan can be made: see test_import_survives_without_the_page."""
_FUNCTION: Final = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_INSTRUCTION: Final = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)(?:.*<([^>+]+)(?:@plt)?>)?")


def _calls(module: str) -> Iterator[tuple[str, int, str]]:
    """The direct calls in a module: (the function, where it returns to, what is called)."""
    command = ["objdump", "-d", "--no-show-raw-insn", module]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    function = pending = ""
    for line in text.splitlines():
        if begins := _FUNCTION.match(line):
            function, pending = begins[1], ""
        elif found := _INSTRUCTION.match(line):
            if pending:
                yield function, int(found[1], 16), pending
            pending = (found[3] or "") if found[2] in {"call", "bl"} else ""


def call_sites() -> dict[int, str]:
    """
    Where the shim's functions call the system, directly or by way of others: with their names.

    cffi's own functions call twice; of theirs, the name stands for both.
    """
    calls = [
        (function, site, called.removesuffix("@plt"))
        for function, site, called in _calls(str(_uring.__file__))
        if not function.startswith("_cffi_d_")  # those are for C, which nobody writes
    ]
    reaching = set(_SYSTEM)
    while more := {f for f, _, called in calls if called in reaching} - reaching:
        reaching |= more
    return {
        site: f"{function} calls {called}"
        for function, site, called in calls
        if called in reaching and function != _AT_IMPORT
    }


def test_every_call_site_was_hit(ring_refusal: str) -> None:
    """Each place where the shim calls the system was on the stack when a call was made to fail."""
    assert not ring_refusal
    sites = call_sites()
    assert len(sites) > 30
    hit = frozenset[int]().union(*(swept(name)[2] for name in CALLS))
    seen = {name for site, name in sites.items() if site in hit and name.startswith("_cffi_f_")}
    assert not [name for site, name in sites.items() if site not in hit and name not in seen]


def test_import_survives_without_the_page(ring_refusal: str) -> None:
    """Where the page that tells forks apart cannot be had, rings are refused with ENOMEM."""
    assert not ring_refusal
    assert run("fault_import.py", preload=False) == ["held"]


# ---- limits, filters, workers ----

LIMITS: Final = re.findall(
    r"^@program\ndef (\w+)", (HERE / "fault_limits.py").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_met_without_harm(ring_refusal: str, name: str) -> None:
    """The program runs into a limit or a filter: it is told, and what it asserts holds."""
    assert not ring_refusal
    assert run("fault_limits.py", name, preload=False) == ["held"]


# ---- being killed ----


def test_killed_process_has_written_what_it_reported(ring_refusal: str) -> None:
    """SIGKILL amid chains of write and fsync: each that was reported stands in the file."""
    assert not ring_refusal
    seed = int(os.environ.get("URING_SEED", str(random.randrange(2**32))))
    rounds = 300 if IS_EXHAUSTIVE else 16
    found = run("fault_kill.py", str(rounds), str(seed), preload=False)
    assert found[0] == str(rounds), f"seed {seed}"
    assert int(found[1]) > rounds, f"seed {seed}"
