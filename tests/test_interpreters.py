"""Which interpreters are refused, and what of the others the package relies on."""

import dis
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from array import array
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

import uring
from uring import _memory

ROOT: Final = Path(__file__).parents[1]

SECONDS: Final = 10.0
IO_URING_ENTER: Final = "426"  # on every architecture

PRETEND: Final = {
    "another implementation": (
        "sys.implementation = types.SimpleNamespace(**vars(sys.implementation) | {'name': 'pypy'})",
        r"needs CPython, and this is pypy: .* run the program with CPython",
    ),
    "a free-threaded build": (
        "sys.abiflags = 't'",
        r"needs the GIL, and this CPython is free-threaded: .* run the program with an ordinary",
    ),
    "another system": ("sys.platform = 'darwin'", r"needs Linux"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("lie", "answer"), PRETEND.values(), ids=PRETEND)
def test_import_is_refused_where_the_promise_does_not_hold(lie: str, answer: str) -> None:
    """On another interpreter or system, importing raises ImportError, which says what to do."""
    # ctypes, for one, looks at the platform when it is loaded: that is not what is asked here.
    program = f"import attrs, asyncio, ctypes, sys, types\n{lie}\nimport uring\n"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(f"ImportError: uring {answer}.*", done.stderr.splitlines()[-1])


def test_import_is_not_refused_when_nobody_lies() -> None:
    """The program of the test above runs when nothing is changed in it."""
    program = "import attrs, asyncio, ctypes, sys, types\nimport uring\n"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_array_that_is_lent_cannot_be_resized() -> None:
    """As a bytearray and an mmap, which test_memory.py has, an array counts its exports."""
    memory = array("B", bytes(8))
    pin, _, _ = _memory.writable(memory)
    with pytest.raises(BufferError):
        memory.append(1)
    del pin
    memory.append(1)


class Steps:
    """What stands between a look and the last store in the package, in all its forms."""

    __slots__ = ("held", "kept", "number", "numbers", "table")

    def __init__(self) -> None:
        self.held: object = None
        self.kept: list[int] = [0]
        self.number = 0
        self.numbers = [0, 1, 2, 3]
        self.table = {0: 0}

    def run(self, going: list[None]) -> None:
        """Take steps, of which none is a call, as long as there is something in the list."""
        kept, slices, step, one = self.kept, slice(0, 2), self.number, [1]
        while going:
            if self.kept is kept and self.number == step and not self.held:
                self.held = kept
                self.number = step + 1
                step = self.number
                self.numbers[slices] = kept
                self.numbers[0:0] = one
                if 1 in self.table and self.table[1] is step:
                    self.table[0] = step
                elif 1 not in self.table:
                    self.table[1] = step
                    del self.table[1]
                self.held = None


def places_after_calls(function: Callable[..., object]) -> set[int]:
    """The offsets of calls, of the ways back in loops, of the beginning, and those behind each."""
    found: set[int] = set()
    behind = False
    for instruction in dis.get_instructions(function):
        breaks = instruction.opname.startswith(("CALL", "JUMP_BACKWARD", "RESUME", "POP_JUMP_BACK"))
        if breaks or behind:
            found.add(instruction.offset)
        behind = breaks
    first_in_loop = {
        int(instruction.argval)
        for instruction in dis.get_instructions(function)
        if "JUMP_BACKWARD" in instruction.opname or "POP_JUMP_BACK" in instruction.opname
    }
    return found | first_in_loop


@pytest.mark.slow
def test_interpreter_runs_handlers_after_calls_only() -> None:
    """A signal handler, and so another thread, never comes between two stores without a call."""
    steps = Steps()
    seen: dict[int, int] = {}
    going = [None] * 2000

    def note(_number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code is Steps.run.__code__ and going:
            seen[frame.f_lasti] = seen.get(frame.f_lasti, 0) + 1
            going.pop()

    before = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 50e-6, 50e-6)
    try:
        steps.run(going)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sum(seen.values()) == 2000
    assert set(seen) <= places_after_calls(Steps.run), seen


def test_lease_goes_back_although_the_thread_that_took_it_waits(ring: uring.Ring) -> None:
    """A buffer that another thread lets go of is the kernel's at once, for the next bytes."""
    left, right = socket.socketpair()
    taker = threading.get_native_id()
    leases: queue.SimpleQueue[uring.Lease] = queue.SimpleQueue()

    def release() -> None:
        lease = leases.get(timeout=SECONDS)
        state = Path(f"/proc/self/task/{taker}/syscall")
        while state.read_text(encoding="ascii").split()[0] != IO_URING_ENTER:
            time.sleep(0.001)  # until the taker waits in the kernel, which tells nobody
        lease.release()
        del lease
        ring.queue(uring.RecvSelect(right, buffers))
        ring.submit()

    with left, right, ring.register_buffer_ring(1, size=3) as buffers:
        left.sendall(b"onetwo")
        ring.queue(uring.RecvSelect(right, buffers))
        ring.submit()
        leases.put(ring.copy_cqe(timeout=SECONDS).result())
        thread = threading.Thread(target=release)
        thread.start()
        with ring.copy_cqe(timeout=SECONDS).result() as lease:
            assert bytes(lease) == b"two"
        thread.join(SECONDS)


def test_versions_are_the_same_everywhere() -> None:
    """The classifiers name the versions of CPython that docs/interpreters.md says were run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    classified = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    page = (ROOT / "docs" / "interpreters.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| CPython (3\.\d+)\.\d+ \|", page, re.MULTILINE) == classified
