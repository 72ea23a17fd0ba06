"""Programs in which signals arrive by the thousand, while the ring is used."""

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from hostile_harness import drain, is_in_the_package, join, main, once, program

import uring

if TYPE_CHECKING:
    from types import FrameType


class Flood:
    """Counts SIGALRM, which comes every so often, and has a handler do something each time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.count = 0

    def start(self, action: "object" = None) -> None:
        """Begin: `action` is called with no arguments, in the handler."""

        def handler(_number: int, _frame: object) -> None:
            self.count += 1
            if callable(action):
                action()

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


@program
def handlers_run_during_waits_and_the_wait_goes_on() -> None:
    """Each kind of wait runs some 20 handlers, and ends with what it waited for, or in time."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        for place in range(4):
            flood = Flood(0.01)

            def arrive(flood: Flood = flood) -> None:
                if flood.count == 20:
                    os.write(outlet, b"x")

            ring.queue(uring.Read(inlet, bytearray(8)), user_data=place)
            if place < 3:
                ring.submit()
            flood.start(arrive)
            started = time.monotonic()
            if place == 0:
                assert ring.copy_cqe().user_data == 0
            elif place == 1:
                assert ring.copy_cqes(wait_nr=1, timeout=10).user_data.tolist() == [1]
            elif place == 2:
                assert ring.submit_and_wait(1) == 0
            else:
                assert ring.submit_and_wait(1, timeout=10) == 1
            assert flood.count >= 20
            assert time.monotonic() - started < 5
            flood.stop()
            drain(ring)
        flood = Flood(0.003)
        flood.start()
        started = time.monotonic()
        assert len(ring.copy_cqes(wait_nr=1, timeout=0.1)) == 0
        assert 0.1 <= time.monotonic() - started < 1, "signals lengthen or cut a wait"
        assert flood.count >= 10
        flood.stop()


@program
def handler_that_uses_the_ring_loses_nothing() -> None:
    """A handler every 0.2 ms that queues, submits and copies amid the same: each number once."""
    with uring.Ring(32) as ring:
        queued: list[int] = []
        got: list[int] = []

        def use(count: int) -> None:
            for _ in range(count):
                try:
                    number = ring.queue(uring.Nop())
                except uring.SubmissionQueueFull:
                    break
                queued.append(number)
            ring.submit()
            got.extend(ring.copy_cqes().user_data.tolist())

        flood = Flood(0.0002)
        flood.start(lambda: use(3))
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            use(5)
            ring.submit_and_wait(0)
            got.extend(ring.copy_cqes(wait_nr=1, timeout=0.001).user_data.tolist())
        flood.stop()
        assert flood.count > 300
        got.extend(cqe.user_data for cqe in drain(ring, 2))
        once(got)
        assert set(got) == set(queued)
        assert len(got) > 1000


@program
def ctrl_c_storm_leaves_the_ring_whole() -> None:
    """SIGINT every millisecond or so, caught and gone on: nothing doubled, nothing stuck."""
    with uring.Ring(16) as ring:
        got: list[int] = []
        interrupts = 0
        stop = threading.Event()

        def shoot() -> None:
            while not stop.wait(0.0005):
                os.kill(os.getpid(), signal.SIGINT)

        def work() -> None:
            while True:
                for _ in range(3):
                    ring.queue(uring.Nop())
                ring.submit()
                got.extend(ring.copy_cqes(wait_nr=1, timeout=0.01).user_data.tolist())

        def interrupt(_number: int, frame: "FrameType | None") -> None:
            if is_in_the_package(frame):  # nothing would catch it in start(), for one
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
        thread = threading.Thread(target=shoot)
        thread.start()
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            try:
                try:
                    work()
                except uring.SubmissionQueueFull:
                    ring.submit()
            except KeyboardInterrupt:
                interrupts += 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop.set()
        join(thread)
        assert interrupts > 50, interrupts
        got.extend(cqe.user_data for cqe in drain(ring, 3))
        once(got)
        assert ring.in_flight == 0
        seen: list[int] = []
        other = threading.Thread(target=lambda: seen.append(ring.in_flight), daemon=True)
        other.start()
        join(other, 2)
        assert seen == [0]
        ring.queue(uring.Nop(), user_data=1)
        assert ring.submit_and_wait(timeout=5) == 1
        assert ring.copy_cqes().user_data.tolist() == [1]


@program
def ctrl_c_ends_every_wait() -> None:
    """One SIGINT ends each kind of wait at once, and the ring stays usable."""
    with uring.Ring(8) as ring:
        for wait in (
            lambda: ring.copy_cqes(wait_nr=1),
            ring.copy_cqe,
            lambda: ring.copy_cqe(timeout=20),
            ring.submit_and_wait,
            lambda: ring.submit_and_wait(3, timeout=20),
        ):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            started = time.monotonic()
            timer.start()
            try:
                wait()
            except KeyboardInterrupt:
                assert time.monotonic() - started < 2
            else:
                raise AssertionError("the wait ended without Ctrl-C")
            join(timer)
            ring.queue(uring.Nop(), user_data=7)
            assert ring.submit_and_wait(timeout=5) == 1
            assert ring.copy_cqe().user_data == 7


if __name__ == "__main__":
    main()
