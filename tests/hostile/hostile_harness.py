"""
What the hostile programs share.

A program is a function that misuses a ring through the public API and asserts what comes of it. It
runs as a process of its own: `python hostile_signals.py NAME` prints HELD as its last line when
every assertion held. Nothing else that a process can do, a crash included, prints that.
"""

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Final

import uring

HELD: Final = "held"
LIMIT_SECONDS: Final = 100
"""After which a program shows where it hangs, and ends. Each takes a few, under load many."""

URANDOM_BYTES: Final = 16 << 20
"""A read of /dev/urandom that keeps a worker of the kernel busy for some 40 ms."""

PROGRAMS: Final = str(Path(__file__).resolve().parent)
PACKAGE: Final = str(Path(uring.__file__).resolve().parent)
"""The folders of these programs, and of what they try."""


class Tracked(bytearray):
    """A bytearray that can be referred to weakly."""


_programs: Final[dict[str, Callable[[], None]]] = {}


def program(function: Callable[[], None]) -> Callable[[], None]:
    """Make `function` a program that can be named on the command line."""
    _programs[function.__name__] = function
    return function


def main() -> None:
    """Run the program that the command line names."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    _programs[sys.argv[1]]()
    sys.stdout.write(f"{HELD}\n")
    sys.stdout.flush()


def is_in_the_package(frame: FrameType | None) -> bool:
    """Whether this runs on behalf of the package, and not of the program itself."""
    while frame is not None and not frame.f_code.co_filename.startswith(PROGRAMS):
        if frame.f_code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that another thread or the kernel brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.001)  # lets the others run; what is waited for gives no descriptor to wait on


def descriptors() -> set[str]:
    """Every descriptor that is open, but not that of the listing itself."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def settled_descriptors() -> set[str]:
    """Every descriptor that is open once all that is garbage has been collected."""
    collect()
    return descriptors()


def collect() -> None:
    """Collect what is unreachable, and what becomes so by that."""
    for _ in range(3):
        gc.collect()


def drain(ring: uring.Ring, seconds: float = 10.0) -> list[uring.CQE]:
    """Submit and copy out until nothing is in flight."""
    deadline = time.monotonic() + seconds
    taken: list[uring.CQE] = []
    while ring.in_flight or ring.cq_ready():
        assert time.monotonic() < deadline, f"{ring.in_flight} never completed; got {taken[-8:]}"
        ring.submit()
        taken += ring.copy_cqes(wait_nr=1, timeout=0.2)
    return taken


def once(numbers: Iterable[int]) -> None:
    """Assert that no number comes twice."""
    twice = {number: count for number, count in Counter(numbers).items() if count > 1}
    assert not twice, f"came more than once: {twice}"


def refused(error: type[BaseException], words: str, call: Callable[[], object]) -> None:
    """Assert that `call` raises exactly `error`, and that its message has `words`."""
    try:
        result = call()
    except error as raised:
        caught = raised
    else:
        raise AssertionError(f"not refused: {result!r}")
    assert type(caught) is error, repr(caught)
    assert words in str(caught), f"{words!r} is not in {caught}"


class Worker(threading.Thread):
    """A thread that keeps what its body raises, for the one who has joined it to look at."""

    def __init__(self, body: Callable[..., object], *arguments: object) -> None:
        super().__init__(target=body, args=arguments)
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do what the body does."""
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001 - whoever joins looks at it
            error.__traceback__ = error.__context__ = None  # whose frames hold rings and buffers
            self.error = error


def join(thread: threading.Thread, seconds: float = 10.0) -> None:
    """Wait for a thread that must end."""
    thread.join(seconds)
    assert not thread.is_alive(), f"{thread.name} hangs"


def forked(body: Callable[[], object]) -> int:
    """Fork a child that ends with 0 once `body` has returned, and with 1 if it raises; its pid."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException as error:  # noqa: BLE001 - shown, for the parent sees only a number
            sys.stderr.write(f"in the child: {error!r}\n")
        finally:
            os._exit(code)
    return child


def exit_code(child: int, seconds: float = 10.0) -> int:
    """Wait for a child that must end: what it ended with, or less than 0 when a signal ended it."""
    status = 0

    def has_ended() -> bool:
        nonlocal status
        ended, status = os.waitpid(child, os.WNOHANG)
        return ended == child

    try:
        until(has_ended, seconds)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def close_amid(
    ring: uring.Ring, bodies: list[Callable[[], object]], pause: float | None = None
) -> None:
    """Close the ring while a thread for each body goes round with it: all are told, and soon."""
    going = threading.Barrier(len(bodies) + 1)

    def work(body: Callable[[], object]) -> None:
        going.wait()
        while True:
            body()

    threads = [Worker(work, body) for body in bodies]
    for thread in threads:
        thread.start()
    going.wait()
    if pause is not None:
        time.sleep(pause)  # any moment will do
    started = time.monotonic()
    ring.close()
    assert time.monotonic() - started < 1, "close() waited for what was never submitted"
    for thread in threads:
        join(thread, 3)
    caught = [thread.error for thread in threads]
    assert {type(error) for error in caught} == {uring.RingClosedError}, caught


def checksums(buffers: Iterable[bytearray]) -> list[int]:
    """One number for what each buffer holds."""
    return [zlib.crc32(buffer) for buffer in buffers]


def random_reads(
    ring: uring.Ring, fd: int, count: int = 4, *, user_data: int | None = None
) -> list[bytearray]:
    """Start reads in the kernel's workers, which the closing of a descriptor does not stop."""
    buffers = [bytearray(URANDOM_BYTES) for _ in range(count)]
    for buffer in buffers:
        ring.queue(uring.Read(fd, buffer, flags=uring.SQEFlags.ASYNC, user_data=user_data))
    ring.submit()
    return buffers
