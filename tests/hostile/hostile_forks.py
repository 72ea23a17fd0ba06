"""Rings that children inherit, are given or make; and threads that a ring does not belong to."""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]  # they lack it
from typing import Any

from hostile_harness import (
    LIMIT_SECONDS,
    Worker,
    collect,
    drain,
    exit_code,
    forked,
    join,
    main,
    program,
    refused,
    until,
)

import uring

_F = uring.SetupFlags


def _works(ring: uring.Ring) -> None:
    assert list(ring.run([uring.Nop()] * 9, timeout=5).res) == [0] * 9
    number = ring.queue(uring.Nop())
    assert ring.submit_and_wait(1, timeout=5) == 1
    assert ring.copy_cqe(timeout=5).user_data == number


@program
def child_does_what_it_likes_with_an_inherited_ring() -> None:
    """A child uses, closes and drops a ring and all that hangs on it: the parent goes on."""
    inlet, outlet = os.pipe()
    ring = uring.Ring(8)
    buffer = bytearray(8)
    group = ring.register_buffer_ring(4, size=64)
    files = ring.register_files([inlet])
    memory = bytearray(4096)
    buffers = ring.register_buffers([memory])
    batch = uring.Batch([uring.Nop()] * 3)
    stream = ring.stream(uring.PollMultishot(inlet, 1))
    ring.queue(uring.Read(inlet, buffer), user_data=7)
    ring.submit()
    holder: dict[str, Any] = {"ring": ring, "group": group, "stream": stream, "files": files}

    def use() -> None:
        calls: list[Callable[[], object]] = [
            lambda: ring.queue(uring.Nop()),
            ring.submit,
            lambda: ring.copy_cqes(wait_nr=1),
            lambda: ring.run(batch),
            lambda: ring.stream(uring.Timeout(1)),
            lambda: ring.register_buffer_ring(4, size=64),
            lambda: next(stream),
        ]
        for call in calls:
            refused(uring.RingClosedError, "fork", call)

    def close() -> None:
        for each in (stream, group, files, buffers, ring):
            each.close()
        with uring.Ring(4) as own:
            _works(own)

    def drop() -> None:
        nonlocal ring, group, stream, files, buffers
        holder.clear()
        del ring, group, stream, files, buffers
        collect()
        with uring.Ring(4) as own:
            _works(own)

    def leave() -> None:
        with stream, group, files, buffers:
            refused(uring.RingClosedError, "fork", ring.__enter__)

    def chain() -> None:
        assert exit_code(forked(use)) == 0
        close()

    for body in (use, close, leave, chain, drop):
        assert exit_code(forked(body)) == 0, body.__name__
        _works(ring)
        assert group.inside == 4
        assert list(ring.run([uring.ReadFixed(-1, buffers[0][:8])]).res) == [-9]
    os.write(outlet, b"12345678")
    while not any(cqe.user_data == 7 for cqe in ring.copy_cqes(wait_nr=1, timeout=5)):
        ring.submit()
    assert buffer == b"12345678"
    stream.close()
    ring.close()


@program
def child_ends_by_itself() -> None:
    """A child that ends as programs do, with an inherited ring in use: no word, and no wait."""
    inlet, outlet = os.pipe()
    ring = uring.Ring(8)
    ring.queue(uring.Read(inlet, bytearray(8)), user_data=7)
    ring.submit()
    for _ in range(5):
        sys.stdout.flush()
        faulthandler.cancel_dump_traceback_later()  # whose thread the child would wait for
        child = os.fork()
        if child == 0:
            sys.exit(4)
        faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
        assert exit_code(child) == 4
    os.write(outlet, bytes(8))
    assert ring.copy_cqe(timeout=5).res == 8
    ring.close()


@program
def exec_keeps_no_ring() -> None:
    """A program that is executed, with fork or without, inherits no descriptor of a ring."""
    with uring.Ring(8) as ring:
        look = "import os, pathlib; folder = pathlib.Path('/proc/self/fd')"
        look += "; print([*map(os.path.realpath, folder.iterdir())])"
        for inherit in (False, True):
            command = [sys.executable, "-c", look]
            ended = subprocess.run(
                command, capture_output=True, text=True, check=True, close_fds=not inherit
            )
            assert "io_uring" not in ended.stdout, ended.stdout
        _works(ring)


@program
def forks_amid_calls_of_other_threads() -> None:
    """Forks while threads run, wait, queue and close: no child hangs, no thread is disturbed."""
    sys.setswitchinterval(1e-5)
    stop = threading.Event()
    ring = uring.Ring(16)

    def loop(body: Callable[[], object]) -> None:
        while not stop.is_set():
            body()

    def open_and_close() -> None:
        with uring.Ring(4) as other:
            other.run([uring.Nop()] * 9)

    def wait() -> None:
        ring.copy_cqes(wait_nr=1, timeout=0.001)

    def queue() -> None:
        with contextlib.suppress(uring.SubmissionQueueFull):
            ring.queue(uring.Nop())
        ring.submit()

    bodies: list[Callable[[], object]] = [
        lambda: ring.run([uring.Nop()] * 30),
        wait,
        queue,
        open_and_close,
    ]
    threads = [Worker(loop, body) for body in bodies]
    for thread in threads:
        thread.start()

    def child() -> None:
        refused(uring.RingClosedError, "fork", ring.submit)
        ring.close()
        with uring.Ring(4) as own:
            _works(own)

    codes = [exit_code(forked(child)) for _ in range(25)]
    stop.set()
    for thread in threads:
        join(thread)
    assert codes == [0] * 25, codes
    assert [thread.error for thread in threads] == [None] * 4
    drain(ring)
    ring.close()


_inherited: list[uring.Ring] = []


def _with_own(number: int) -> int:
    with uring.Ring(8) as ring:
        ring.queue(uring.Nop(), user_data=number)
        ring.submit_and_wait()
        return ring.copy_cqe().user_data


def _with_inherited(number: int) -> str:
    if not _inherited:
        return f"none {number}"
    try:
        _inherited[0].submit()
    except uring.RingClosedError as error:
        return str(error)
    return "it works"


def _return_a_ring(_number: int) -> uring.Ring:
    return uring.Ring(2)


def _given(_ring: object) -> None:
    """Is never called: a ring cannot be given."""


@program
def multiprocessing_in_each_way() -> None:
    """Pools of each start method: own rings work, inherited ones say fork, none can be given."""
    warnings.simplefilter("ignore", ResourceWarning)  # of those that are refused on their way back
    ring = uring.Ring(8)
    _inherited.append(ring)
    ring.queue(uring.Timeout(100), user_data=1)
    ring.submit()
    for method in ("fork", "forkserver", "spawn"):
        context: Any = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            assert pool.map(_with_own, range(6)) == list(range(6))
            (told,) = pool.map(_with_inherited, [1])
            assert "fork" in told if method == "fork" else told == "none 1", told
            refused(TypeError, "cannot be copied or pickled", lambda: pool.map(_given, [ring]))
            refused(
                MaybeEncodingError,
                "cannot be copied or pickled",
                lambda: pool.map(_return_a_ring, [1]),
            )
        if method != "fork":
            process = context.Process(target=_given, args=(ring,))
            refused(TypeError, "cannot be copied or pickled", process.start)
    refused(TypeError, "cannot be copied or pickled", lambda: pickle.dumps([ring]))
    _works(ring)
    ring.cancel(1)
    assert ring.copy_cqe(timeout=5).user_data == 1
    ring.close()


@program
def wrong_threads_are_told_and_do_no_harm() -> None:
    """Every call that enters an owned ring is WrongThreadError elsewhere; the owner goes on."""
    for flags in (_F.SINGLE_ISSUER, _F.SINGLE_ISSUER | _F.DEFER_TASKRUN):
        inlet, outlet = os.pipe()
        ring = uring.Ring(8, flags=flags)
        group = ring.register_buffer_ring(4, size=64)
        files = ring.register_files([inlet])
        buffers = ring.register_buffers([bytearray(64)])
        stream = ring.stream(uring.PollMultishot(inlet, 1))
        batch = uring.Batch([uring.Nop()])
        calls: dict[str, Callable[[], object]] = {
            "queue": lambda: ring.queue(uring.Nop()),  # noqa: B023 - called within the loop, as all
            "queue_all": lambda: ring.queue_all([uring.Nop()]),  # noqa: B023
            "submit": ring.submit,
            "submit_and_wait": ring.submit_and_wait,
            "copy_cqes": lambda: ring.copy_cqes(wait_nr=1),  # noqa: B023
            "copy_cqe": ring.copy_cqe,
            "peek_cqes": ring.peek_cqes,
            "cq_advance": lambda: ring.cq_advance(1),  # noqa: B023
            "run": lambda: ring.run(batch),  # noqa: B023
            "run of operations": lambda: ring.run([uring.Nop()]),  # noqa: B023
            "stream": lambda: ring.stream(uring.Timeout(1)),  # noqa: B023
            "take": lambda: stream.take(timeout=1),  # noqa: B023
            "stream close": stream.close,
            "group close": group.close,
            "group": lambda: ring.register_buffer_ring(4, size=64),  # noqa: B023
            "files": lambda: ring.register_files([0]),  # noqa: B023
            "files close": files.close,
            "buffers close": buffers.close,
            "cancel": lambda: ring.cancel(any=True),  # noqa: B023
            "resize": lambda: ring.resize(16),  # noqa: B023
            "close": ring.close,
            "exit": lambda: ring.__exit__(None, None, None),  # noqa: B023
        }
        told: dict[str, str] = {}

        def other(calls: Any = calls, told: dict[str, str] = told) -> None:
            for name, call in calls.items():
                try:
                    call()
                    told[name] = "nothing"
                except Exception as error:  # noqa: BLE001 - looked at below
                    told[name] = type(error).__name__

        ring.queue(uring.Nop(), user_data=9)
        thread = threading.Thread(target=other)
        thread.start()
        join(thread)
        wrong = {name: what for name, what in told.items() if what != "WrongThreadError"}
        assert not wrong, wrong
        assert ring.submit_and_wait(1, timeout=5) == 1
        assert ring.copy_cqe(timeout=5).user_data == 9
        _works(ring)
        assert group.inside == 4
        os.write(outlet, b"x")
        cqe = stream.take(timeout=5)
        assert cqe is not None
        assert cqe.res == 1
        stream.close()
        group.close()
        ring.close()
        os.close(inlet)
        os.close(outlet)


@program
def handlers_and_threads_close_under_every_wait() -> None:
    """Another thread, or a handler in the wait itself, closes the ring: every wait says closed."""
    waits: list[Callable[[uring.Ring], object]] = [
        lambda ring: ring.copy_cqes(wait_nr=9),
        uring.Ring.copy_cqe,
        lambda ring: ring.submit_and_wait(9),
        lambda ring: ring.submit_and_wait(9, timeout=100),
        lambda ring: ring.copy_cqes(wait_nr=9, timeout=100, min_timeout=50),
        lambda ring: ring.run([uring.Timeout(100)]),
        lambda ring: list(ring.stream(uring.Timeout(100, count=2))),
    ]
    for wait in waits:
        for by_handler in (False, True):
            ring = uring.Ring(8)

            def close(_number: int = 0, _frame: object = None, ring: uring.Ring = ring) -> None:
                ring.close()

            if by_handler:
                signal.signal(signal.SIGALRM, close)
                signal.setitimer(signal.ITIMER_REAL, 0.01)
            else:
                timer = threading.Timer(0.01, close)
                timer.start()
            refused(uring.RingClosedError, "closed", lambda: wait(ring))  # noqa: B023 - at once
            until(lambda ring=ring: ring.fd == -1)  # type: ignore[misc]  # mypy infers no lambda with a default
            if not by_handler:
                join(timer)


if __name__ == "__main__":
    main()
