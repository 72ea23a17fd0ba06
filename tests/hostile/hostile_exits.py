"""Programs that end, with rings in every state, in every way; what comes of it is seen outside."""

import atexit
import contextlib
import importlib
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from typing import Any

from hostile_harness import main, program, random_reads, refused, until

import uring

_kept: list[Any] = []


def _busy() -> uring.Ring:
    """A ring that is left with work in flight: a read that waits, and workers that write."""
    ring = uring.Ring(8)
    inlet, outlet = os.pipe()
    _kept.extend([ring, outlet])
    ring.queue(uring.Read(inlet, bytearray(8)))
    random_reads(ring, os.open("/dev/urandom", os.O_RDONLY), 2)
    return ring


_WAITS: list[Callable[[uring.Ring], object]] = [
    lambda ring: ring.copy_cqes(wait_nr=100),
    lambda ring: [ring.copy_cqe() for _ in range(100)],
    lambda ring: ring.submit_and_wait(100),
    lambda ring: ring.submit_and_wait(100, timeout=100),
    lambda ring: ring.run([uring.Timeout(100), uring.Nop()]),
    lambda ring: list(ring.stream(uring.Timeout(100, count=3))),
]


def _after_the_package(check: Callable[[], None]) -> None:
    """Call `check` at exit, behind the package's own handler; it fails by an exit code of 3."""

    def checked() -> None:
        try:
            check()
        except Exception:  # noqa: BLE001 - an exit handler cannot fail in any other way
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(3)

    # They run in reverse order; so this one as if it were registered before the package's own.
    atexit.unregister(uring._teardown._at_exit)
    atexit.register(checked)
    atexit.register(uring._teardown._at_exit)


@program
def daemon_threads_are_told_why() -> None:
    """Daemon threads in each kind of wait: the error that each gets says that it is the end."""
    told: list[str] = []

    def listen(wait: Callable[[uring.Ring], object]) -> None:
        try:
            wait(ring)
        except uring.RingClosedError as error:
            told.append(str(error))

    def all_told() -> None:
        until(lambda: len(told) == len(_WAITS))
        assert all("interpreter ended" in words for words in told), told

    ring = _busy()
    _after_the_package(all_told)
    for wait in _WAITS:
        threading.Thread(target=listen, args=(wait,), daemon=True).start()
    until(lambda: ring.in_flight >= 5)
    time.sleep(0.05)  # nothing tells that a thread has entered the kernel


@program
def daemon_threads_that_say_nothing() -> None:
    """The same, where the threads take the error and go on at once with other rings."""

    def go_on(wait: Callable[[uring.Ring], object]) -> None:
        with contextlib.suppress(uring.RingClosedError):
            wait(ring)
        with contextlib.suppress(BaseException):
            while True:
                with uring.Ring(2) as other:
                    other.run([uring.Nop()] * 9)

    ring = _busy()
    for wait in _WAITS:
        threading.Thread(target=go_on, args=(wait,), daemon=True).start()
    until(lambda: ring.in_flight >= 5)


@program
def handlers_before_the_package() -> None:
    """Exit handlers that run first find a ring that works, others one that is closed."""
    ring = _busy()

    def use() -> None:
        assert not ring.closed
        assert list(ring.run([uring.Nop()] * 9).res) == [0] * 9
        with uring.Ring(2) as own:
            own.run([uring.Nop()])

    def find_closed() -> None:
        refused(uring.RingClosedError, "interpreter ended", ring.submit)
        ring.close()
        own = uring.Ring(2)
        own.run([uring.Nop()])
        _kept.append(own)

    _after_the_package(find_closed)
    atexit.register(use)


@program
def globals_are_torn_down() -> None:
    """Rings in the globals of modules, in builtins and in cycles; destructors use them there."""

    class Late:
        def __init__(self, ring: uring.Ring) -> None:
            self.ring = ring
            self.me = self

        def __del__(self) -> None:
            for call in (self.ring.submit, self.ring.copy_cqes, self.ring.close):
                with contextlib.suppress(uring.RingClosedError):
                    call()

    module = types.ModuleType("of_rings")
    module.ring = _busy()  # type: ignore[attr-defined]  # that is what is tried
    module.late = Late(module.ring)  # type: ignore[attr-defined]  # the same
    sys.modules["of_rings"] = module
    import builtins  # noqa: PLC0415 - nothing else here needs it

    builtins.ring = _busy()  # type: ignore[attr-defined]  # the same
    builtins.late = Late(builtins.ring)  # type: ignore[attr-defined]  # the same
    ring = _busy()
    _kept.append(ring.stream(uring.Timeout(100, count=3)))
    _kept.append(ring.register_buffer_ring(4, size=64))
    _kept.append(uring.Batch([uring.Read(0, bytearray(64))]))
    Late(ring)


@program
def uncaught_exception_holds_the_ring() -> None:
    """An exception that nobody catches, whose traceback holds rings that are in use."""
    ring = _busy()
    ring.copy_cqe(timeout=0.0001)
    ring.copy_cqe(timeout=0.0001)


@program
def handler_ends_the_program_amid_a_wait() -> None:
    """sys.exit() in a handler, amid each kind of wait in turn: its exit code comes out."""
    ring = _busy()
    left = list(_WAITS)

    def end(_number: int, _frame: object) -> None:
        sys.exit(5 if not left else 6)

    signal.signal(signal.SIGALRM, end)
    while left:
        wait = left.pop()
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        while not left:  # a wait ends at once where a completion was left by the one before
            wait(ring)
        try:
            while True:
                wait(ring)
        except SystemExit as ended:
            assert ended.code == 6  # noqa: PT017 - no test of pytest
    raise AssertionError("not ended")


@program
def ended_at_once() -> None:
    """os._exit() with work in flight and threads in waits."""
    ring = _busy()
    for wait in _WAITS:
        threading.Thread(target=wait, args=(ring,), daemon=True).start()
    until(lambda: ring.in_flight >= 5)
    sys.stdout.write("held\n")
    sys.stdout.flush()
    os._exit(7)


@program
def threads_go_on_behind_the_main_one() -> None:
    """A thread that is no daemon works on when the main one has ended: with a ring that works."""
    ring = uring.Ring(8)
    _kept.append(ring)

    def work() -> None:
        threading.main_thread().join()
        for _ in range(50):
            assert list(ring.run([uring.Nop()] * 9).res) == [0] * 9
        ring.close()

    threading.Thread(target=work).start()


_SUBINTERPRETER = """
import sys
try:
    import uring
except ImportError as error:
    assert "subinterpreter" in str(error), error
    assert "process" in str(error), error
else:
    raise AssertionError("imported")
"""


@program
def subinterpreters_are_refused() -> None:
    """In a subinterpreter of either kind the import is an ImportError that says so."""
    if sys.version_info >= (3, 13):
        interpreters = importlib.import_module("_interpreters")

        kinds: list[dict[str, object]] = [{"config": "isolated"}, {"config": "legacy"}]
    else:
        interpreters = importlib.import_module("_xxsubinterpreters")

        kinds = [{"isolated": True}, {"isolated": False}]
    with uring.Ring(4) as ring:
        for kind in kinds:
            for _ in range(3):
                made: Any = (
                    interpreters.create(kind["config"])
                    if "config" in kind
                    else interpreters.create(**kind)
                )
                failure = interpreters.run_string(made, _SUBINTERPRETER)
                assert failure is None, failure
                interpreters.destroy(made)
            assert list(ring.run([uring.Nop()] * 9).res) == [0] * 9


if __name__ == "__main__":
    main()
