"""
Several threads on one ring: each runs a program that Hypothesis has drawn, and one takes all.

Every thread has numbers, a pipe and memory of its own, and the ring is everybody's. When all have
ended, each operation must have ended once, with what belongs to it; also when the ring was closed
in the middle.
"""

import contextlib
import gc
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
from hypothesis import strategies as st
from machine_model import STATISTICS, Expected, Reading, Writing
from machine_rules import SECONDS, Shape, descriptors
from machine_words import WORD, Channel
from machine_world import World

import uring
from uring import CQE, Ring

if TYPE_CHECKING:
    from collections.abc import Callable

Step = tuple[int, int]
PROGRAMS: Final = st.lists(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 63)), min_size=1, max_size=30),
    min_size=2,
    max_size=4,
)
_ENDED: Final = frozenset({0, -2, -114, -125})
_LATE: Final = frozenset({-62})


@attrs.define(eq=False)
class Worker:
    """One thread: its program, and what it expects."""

    ring: Ring
    world: World
    place: int
    program: list[Step]
    channel: Channel = attrs.field(factory=lambda: Channel("pipe"))
    expected: dict[int, Expected] = attrs.field(factory=dict)
    messages: set[int] = attrs.field(factory=set)
    failure: BaseException | None = None
    writes: int = 0

    def work(self) -> None:
        """Run the program."""
        try:
            for kind, how in self.program:
                self._step(kind, how)
                STATISTICS["steps"] += 1
        except uring.RingClosedError:
            if not self.ring.closed:
                raise
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            self.failure = error

    def _step(self, kind: int, how: int) -> None:
        ring = self.ring
        actions: list[Callable[[int], object]] = [
            lambda how: self._queue(Expected(uring.Nop(res=how), frozenset({how}))),
            self._read,
            self._write,
            self._feed,
            self._chain,
            lambda _how: ring.submit(),
            self._run,
            self._cancel,
            lambda how: self._queue(Expected(uring.Timeout(how * 1e-5), _LATE)),
            self._stream,
            lambda how: (ring.peek_cqes(how % 4), ring.sq_ready(), ring.in_flight),
            self._message,
        ]
        actions[kind](how)

    def _number(self) -> int:
        return (self.place + 1 << 32) + len(self.expected) + len(self.messages)

    def _queue(self, *each: Expected) -> None:
        """Queue, if there is room, or after a submit."""
        numbered = []
        for one in each:
            number, op = self._number(), one.op
            assert op is not None
            evolved: Any = op  # it is an attrs class
            one.number, one.may_cancel = number, True
            one.op = attrs.evolve(evolved, user_data=number)
            self.expected[number] = one
            numbered.append(one.op)
            STATISTICS[type(op).__name__] += 1
        for _ in range(2):
            try:
                if len(each) == 1:
                    self.ring.queue(numbered[0])
                else:
                    self.ring.queue_all(numbered)
            except uring.SubmissionQueueFull:
                self.ring.submit()
            else:
                return
        for one in each:  # others were faster
            self.expected[one.number] = _Refused(one.op, number=one.number)
            STATISTICS["full queue"] += 1

    def _read(self, how: int) -> None:
        target = self.world.target(WORD * (1 + how % 16))
        op = uring.Read(self.channel.reader, target.lend(), -1)
        self._queue(Reading(op, targets=[target], channel=self.channel))

    def _write(self, how: int) -> None:
        if self.channel.is_roomy:
            self.writes += 1
            write = self.channel.plan(self.writes, 1 + how)
            memory = self.world.memory(write.content())
            op = uring.Write(self.channel.writer, memory, -1)
            self._queue(Writing(op, channel=self.channel, write=write, lent=[memory]))

    def _feed(self, how: int) -> None:
        if self.channel.is_roomy:
            self.writes += 1
            self.channel.feed(self.writes, 1 + how)

    def _chain(self, how: int) -> None:
        ops = uring.link(*[uring.Nop(res=-how if i == 1 else None) for i in range(3)])
        self._queue(*[Expected(op, frozenset({0, -how})) for op in ops])

    def _run(self, how: int) -> None:
        ops = [uring.Nop(res=how * i) for i in range(how % 12)]
        done = self.ring.run(ops, timeout=SECONDS)
        assert done.res.tolist() == [how * i for i in range(how % 12)]

    def _cancel(self, how: int) -> None:
        if how % 8 == 7:
            with contextlib.suppress(TimeoutError):
                self.ring.cancel(any=True, timeout=0.02)
        elif self.expected:
            numbers = [*self.expected]
            self._queue(Expected(uring.AsyncCancel(numbers[how % len(numbers)]), _ENDED))

    def _stream(self, how: int) -> None:
        count = 1 + how % 4
        op = uring.TimeoutMultishot(0.0002, count=count)
        try:
            stream = self.ring.stream(op)
        except uring.SubmissionQueueFull:
            return
        with stream:
            number = stream.user_data
            for cqe in stream if how & 8 else ():
                assert (cqe.user_data, cqe.op) == (number, op)
                assert cqe.res in _LATE | _ENDED  # others cancel, too

    def _message(self, how: int) -> None:
        number = self._number()
        self.messages.add(number)
        op = uring.MsgRing(self.ring, target_user_data=number, target_res=how)
        try:
            self._queue(Expected(op))
        except (ValueError, OSError):  # a ring that is closing is nobody's any more
            if not self.ring.closed:
                raise


class _Refused(Expected):
    """What was not queued in the end: nothing may come of it."""

    def allows(self, cqe: CQE) -> bool:  # noqa: ARG002 - nothing at all
        return False


class Crowd:
    """The threads, and who takes the completions."""

    def __init__(self, shape: Shape, programs: list[list[Step]]) -> None:
        self.before = descriptors()
        self.world = World()
        self.ring = shape.open()
        self.workers = [Worker(self.ring, self.world, i, p) for i, p in enumerate(programs)]
        self.taken: list[CQE] = []
        self.failure: BaseException | None = None
        self._are_done = threading.Event()

    def _take(self) -> None:
        how = 0
        try:
            while not self._are_done.is_set() or self.ring.in_flight or self.ring.cq_ready():
                how += 1
                if how % 4 == 0:
                    with contextlib.suppress(TimeoutError):
                        self.taken.append(self.ring.copy_cqe(timeout=0.002))
                    continue
                self.taken += self.ring.copy_cqes(how % 7 or None, wait_nr=1, timeout=0.002)
        except uring.RingClosedError:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            self.failure = error

    def go(self, *, closes: bool) -> None:
        """Run all, to the end or until the ring is closed."""
        taker = threading.Thread(target=self._take)
        threads = [threading.Thread(target=worker.work) for worker in self.workers]
        for thread in (taker, *threads):
            thread.start()
        if closes:
            self.ring.close()
        for thread in threads:
            thread.join(2 * SECONDS)
            assert not thread.is_alive(), "a thread hangs"
        self._are_done.set()
        deadline = time.monotonic() + SECONDS
        while not closes and taker.is_alive():
            assert time.monotonic() < deadline, f"{self.ring.in_flight} never ended"
            with contextlib.suppress(TimeoutError):
                self.ring.submit()
                self.ring.cancel(any=True, timeout=0.05)
            taker.join(0.001)
        taker.join(SECONDS)
        self.ring.close()
        failures = [self.failure, *[worker.failure for worker in self.workers]]
        for failed in failures:
            if failed is not None:
                raise failed

    def settle(self, *, closes: bool) -> None:
        """Account for all that came."""
        expected = {n: one for worker in self.workers for n, one in worker.expected.items()}
        messages = {number for worker in self.workers for number in worker.messages}
        ended: set[int] = set()
        for cqe in self.taken:
            number = cqe.user_data
            STATISTICS["completions"] += 1
            assert number not in ended, f"{cqe} came twice"
            ended.add(number)
            if number in messages:
                assert cqe.op is None
                continue
            if closes and number not in expected:  # of a stream that was cut off as it began
                assert isinstance(cqe.op, uring.TimeoutMultishot)
                continue
            one = expected[number]
            assert cqe.op is one.op
            assert one.allows(cqe), f"{cqe} must not come of {one}"
            one.effect(cqe)
        for number, one in expected.items():
            is_over = number in ended or isinstance(one, _Refused)
            assert is_over or closes, f"{one} never ended"
            if number not in ended:
                one.unseen()
        for worker in self.workers:
            worker.channel.finish()
            worker.channel.close()

    def end(self) -> None:
        """Look for what is left."""
        assert self.ring.in_flight == 0
        self.workers.clear()
        self.taken.clear()
        del self.ring  # what a thread queued just when it was closed goes with it
        self.world.close()
        gc.collect()
        self.world.assert_collected()
        assert descriptors() <= self.before, descriptors() - self.before


def run_crowd(shape: Shape, programs: list[list[Step]], *, closes: bool) -> None:
    """Run programs in threads of their own on one ring."""
    STATISTICS["examples"] += 1
    crowd = Crowd(shape, programs)
    crowd.go(closes=closes)
    crowd.settle(closes=closes)
    crowd.end()
