"""
The state machine: two rings of this process, and everything that is done to them.

What Hypothesis draws does not depend on what the kernel did: numbers, which choose among what there
is. After each step the model must hold; at the end every operation has ended once, every word that
was sent has come once, and no descriptor, pin or buffer is left.
"""

import contextlib
import errno
import functools
import gc
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs
import machine_operations as build
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from machine_model import STATISTICS, Cancelling, Dropped, Expected, RingModel, assert_same
from machine_operations import Place
from machine_words import assert_resizable
from machine_world import GroupModel, Registered, World

import uring
from uring import SetupFlags, SQEFlags

NO_FLAGS: Final = SetupFlags(0)
NUMBER: Final = st.integers(0, 255)
COUNT: Final = st.integers(1, 4)
SECONDS: Final = 20.0
"""The end of what should not take any time."""

_SIMPLE: Final = (build.nop, build.file, build.read, build.write)
_SKIP: Final = SQEFlags.CQE_SKIP_SUCCESS


def step(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a method a rule, and note what it was called with."""

    def decorate(method: Callable[..., None]) -> Any:
        @rule(**strategies)  # type: ignore[call-overload]  # mypy takes any name for `targets`
        @functools.wraps(method)
        def noted(self: "Machine", **drawn: Any) -> None:
            shown = ", ".join(f"{name}={value!r}" for name, value in drawn.items())
            self.history.append(f"{method.__name__}({shown})")
            method(self, **drawn)

        return noted

    return decorate


@attrs.frozen
class Shape:
    """How the rings are made."""

    flags: SetupFlags = NO_FLAGS
    entries: int = 8
    cq_entries: int | None = None

    def open(self) -> uring.Ring:
        """Make one."""
        idle = 2 if self.flags & SetupFlags.SQPOLL else None
        return uring.Ring(
            self.entries, flags=self.flags, cq_entries=self.cq_entries, sq_thread_idle_ms=idle
        )


def descriptors() -> set[str]:
    """Every descriptor that is open, but not that of the listing itself."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


@attrs.define(eq=False)
class StreamModel:
    """A stream, and the operation that it is of."""

    stream: uring.Stream
    one: Expected


@attrs.define(eq=False)
class Home(Place):
    """A ring with all that belongs to it."""

    streams: list[StreamModel] = attrs.field(factory=list)
    batches: list[tuple[uring.Batch, Sequence[Expected]]] = attrs.field(factory=list)


class Machine(RuleBasedStateMachine):
    """See above; a class for each shape sets it."""

    shape: ClassVar[Shape] = Shape()

    def __init__(self) -> None:
        super().__init__()
        self.homes: list[Home] = []
        self.history: list[str] = []
        """
        The steps so far. They are shown when one fails, for the next time the kernel may do things
        in another order, and Hypothesis then has nothing to show.
        """
        self.before: set[str] = set()
        self.ends_by_closing = False
        self.incremental = False

    @initialize(ends_by_closing=st.booleans(), incremental=st.booleans())
    def begin(self, *, ends_by_closing: bool, incremental: bool) -> None:
        """Make the world and two rings."""
        self.history.append(f"begin({ends_by_closing=}, {incremental=})")
        self.before = descriptors()
        self.world = World()
        self.ends_by_closing = ends_by_closing
        self.incremental = incremental
        self.homes = [self._open(self.shape), self._open(Shape())]
        STATISTICS["examples"] += 1

    def _open(self, shape: Shape) -> Home:
        ring = shape.open()
        model = RingModel(ring, shape.entries)
        groups = [
            GroupModel(self.world, ring, count=4, incremental=False),
            GroupModel(self.world, ring, count=2, incremental=self.incremental),
        ]
        return Home(self.world, model, Registered(ring, self.world), groups)

    def _home(self, which: int) -> Home:
        """The first ring more often than the second."""
        return self.homes[which % 4 == 0]

    # ---- queueing ----

    def _queue(self, home: Home, one: Expected | None, number: int = 0) -> None:
        if one is not None:
            # Some share a number; what nobody else holds does not, for its completion tells of it.
            shares = 0 < number <= 3 and build.shares(one)
            home.model.queue(one, user_data=number if shares else None)
        if number > 6:
            home.model.submitted(home.model.ring.submit())

    @step(which=NUMBER, a=NUMBER, b=NUMBER, number=st.integers(0, 12))
    def queue_read(self, which: int, a: int, b: int, number: int) -> None:
        """Queue a read."""
        home = self._home(which)
        self._queue(home, build.read(home, a, b), number)

    @step(which=NUMBER, a=NUMBER, b=NUMBER, number=st.integers(0, 12))
    def queue_write(self, which: int, a: int, b: int, number: int) -> None:
        """Queue a write."""
        home = self._home(which)
        self._queue(home, build.write(home, a, b), number)

    @step(which=NUMBER, kind=NUMBER, a=NUMBER, b=NUMBER, number=st.integers(0, 9))
    def queue_other(self, which: int, kind: int, a: int, b: int, number: int) -> None:
        """Queue something else."""
        home = self._home(which)
        builder = build.OTHERS[kind % len(build.OTHERS)]
        self._queue(home, builder(home, a, b), number)

    @step(which=NUMBER, a=NUMBER, b=NUMBER)
    def queue_receive(self, which: int, a: int, b: int) -> None:
        """Queue a read or a receive into provided buffers."""
        home = self._home(which)
        self._queue(home, build.receive(home, a, b))

    @step(which=NUMBER, a=NUMBER, b=NUMBER)
    def queue_cancel(self, which: int, a: int, b: int) -> None:
        """Queue a cancel."""
        home = self._home(which)
        one = build.cancel(home, a, b)
        if isinstance(one, Cancelling) and home.model.queue(one):
            home.model.cancelling(one.finds)

    @step(which=NUMBER, a=NUMBER, b=NUMBER, count=st.integers(1, 48))
    def exchange(self, which: int, a: int, b: int, count: int) -> None:
        """Write to a channel, read from it, and take what comes."""
        home = self._home(which)
        channel = home.channel(a)
        if not channel.is_shut and channel.is_roomy:
            channel.feed(self.world.next_write(), count)
        self._queue(home, (build.read if b % 4 == 3 else build.receive)(home, a, b), 7)
        home.model.took(home.model.ring.copy_cqes(wait_nr=1, timeout=0.001))

    @step(which=NUMBER, back=st.booleans(), b=NUMBER)
    def queue_message(self, which: int, b: int, *, back: bool) -> None:
        """Queue a message to the other ring, or to the own."""
        home = self._home(which)
        other = home if back else self.homes[home is self.homes[0]]
        self._queue(home, build.message(home, other.model, b))

    @step(
        which=NUMBER,
        kinds=st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=2, max_size=4),
        how=NUMBER,
    )
    def queue_chain(self, which: int, kinds: list[tuple[int, int, int]], how: int) -> None:
        """Queue a chain: linked or hard-linked, with a timeout, or with skipped completions."""
        home = self._home(which)
        if how % 4 == 3:
            self._queue_skipping(home, len(kinds), how)
            return
        made = [_SIMPLE[kind % 4](home, a, b) for kind, a, b in kinds]
        chain = [one for one in made if one is not None and not isinstance(one, Dropped)]
        for one in chain[:-1]:
            assert one.op is not None
            one.op = one.op.hard_linked() if how % 4 == 1 else one.op.linked()
        for one in chain:
            one.may_cancel = True
        if how % 4 == 2 and chain:
            last = chain[-1]
            assert last.op is not None
            last.op = last.op.linked()
            chain.append(build.link_timeout(how))
        if chain:
            home.model.queue(*chain)

    def _queue_skipping(self, home: Home, count: int, how: int) -> None:
        nops = [
            uring.Nop(flags=_SKIP, res=-5 if how & 4 and i == 1 else None) for i in range(count)
        ]
        ops = uring.link(*nops, uring.Nop())
        results = frozenset({0, -5})
        chain = [Expected(op, results, may_cancel=True) for op in ops]
        for one in chain:
            one.chain = chain
        home.model.queue(*chain)

    @step(which=NUMBER, how=NUMBER)
    def queue_drain(self, which: int, how: int) -> None:
        """Queue what waits for all before it."""
        self._queue(
            self._home(which),
            Expected(uring.Nop(res=how).drained(), frozenset({how, -errno.EOPNOTSUPP})),
        )

    @step(which=NUMBER, how=NUMBER)
    def refuse(self, which: int, how: int) -> None:
        """What is refused leaves the ring as it was, and pins nothing."""
        home = self._home(which)
        model, ring, world = home.model, home.model.ring, self.world
        wrong = (ValueError, TypeError, BufferError, OverflowError, uring.SubmissionQueueFull)
        memory = world.memory(b"lent")
        reader = world.channels[0].reader
        calls: list[Callable[[], object]] = [
            lambda: ring.queue(uring.Read(reader, b"read-only")),
            lambda: ring.queue(uring.Read(reader, memory, offset=-2)),
            lambda: ring.queue(uring.Readv(reader, [memory, b"read-only"])),
            lambda: ring.queue_all([uring.Read(reader, memory), uring.Read("no file", memory)]),  # type: ignore[arg-type]  # it is wrong
            lambda: ring.queue_all([uring.Nop(flags=_SKIP)]),
            lambda: ring.queue(uring.Nop(), user_data=1 << 64),
            lambda: ring.queue_all([uring.Write(reader, memory), uring.Nop(res=1 << 40)]),
            lambda: ring.run([uring.Read(reader, memory), uring.Read(reader, b"read-only")]),
            lambda: ring.stream(uring.Read(reader, b"read-only")),
            lambda: ring.cq_advance(1 << 20),
        ]
        if home.streams:  # it fetches all, to see which are theirs
            del calls[-1]
        model.refused(wrong, calls[how % len(calls)])
        assert_resizable(memory)

    # ---- handing over ----

    @step(which=NUMBER)
    def submit(self, which: int) -> None:
        """Submit all that is queued."""
        model = self._home(which).model
        model.submitted(model.ring.submit())

    @step(which=NUMBER, count=COUNT)
    def submit_and_wait(self, which: int, count: int) -> None:
        """Submit, and wait for a moment."""
        model = self._home(which).model
        model.submitted(model.ring.submit_and_wait(count, timeout=0.001))

    @step(
        which=NUMBER,
        kinds=st.lists(st.tuples(NUMBER, NUMBER, NUMBER), max_size=12),
        is_kept=st.booleans(),
    )
    def run(self, which: int, kinds: list[tuple[int, int, int]], *, is_kept: bool) -> None:
        """Run a batch of what ends by itself; what was queued before stays queued."""
        home = self._home(which)
        if home.model.is_held_up:
            return
        made = [(build.nop if kind & 1 else build.file)(home, a, b) for kind, a, b in kinds]
        each = [one for one in made if one is not None]
        batch = uring.Batch([one.op for one in each if one.op is not None])
        self._run(home, batch, each)
        for one in each:
            one.let_go()
        nops = [one for one in each if isinstance(one.op, uring.Nop)]
        if is_kept and nops:
            again = uring.Batch([one.op for one in nops if one.op is not None])
            home.batches = [*home.batches[-1:], (again, nops)]

    @step(which=NUMBER)
    def run_again(self, which: int) -> None:
        """Run a prepared batch once more."""
        home = self._home(which)
        if home.batches and not home.model.is_held_up:
            self._run(home, *home.batches[0])

    def _run(self, home: Home, batch: uring.Batch, each: Sequence[Expected]) -> None:
        for one in each:
            one.may_cancel = any(finds(one) for finds in home.model.cancels)
        done = home.model.ring.run(batch, timeout=SECONDS)
        assert len(done) == len(each)
        for one, cqe in zip(each, done, strict=True):
            assert cqe.op is one.op
            assert one.allows(cqe), f"{cqe} must not come of {one}"
            one.effect(cqe)
            STATISTICS[f"run {type(one.op).__name__}"] += 1

    @step(which=NUMBER, a=NUMBER, b=NUMBER)
    def run_out_of_time(self, which: int, a: int, b: int) -> None:
        """Run reads that may never end, for a moment."""
        home = self._home(which)
        if home.model.is_held_up:
            return
        each = [build.read(home, a + i, b & ~7) for i in range(2)]
        try:
            done = home.model.ring.run([one.op for one in each if one.op], timeout=0.001)
        except TimeoutError as error:
            left = getattr(error, "__notes__", [])
        else:
            left = None
        if left is not None:
            assert not left
            for one in each:
                one.unseen()
            STATISTICS["run out of time"] += 1
            return
        for one, cqe in zip(each, done, strict=True):
            assert one.allows(cqe)
            one.effect(cqe)

    # ---- completions ----

    @step(which=NUMBER, how=NUMBER, count=COUNT)
    def take(self, which: int, how: int, count: int) -> None:
        """Take completions, in each of the ways that there are."""
        model = self._home(which).model
        ring, kind = model.ring, how % 7
        if kind == 0:
            with contextlib.suppress(TimeoutError):
                model.took_one(ring.copy_cqe(timeout=0.0))
        elif kind == 1:
            taken = ring.copy_cqes(count)
            assert len(taken) <= count
            model.took(taken)
        elif kind == 2:
            model.took(ring.copy_cqes(wait_nr=count, timeout=0.001))
        elif kind == 3:
            peeked = ring.peek_cqes(count)
            taken = ring.copy_cqes(len(peeked))
            assert_same(peeked, taken)
            model.took(taken)
        elif kind == 4:
            peeked = ring.peek_cqes(count)
            ring.cq_advance(len(peeked))
            model.took(peeked, is_peeked=True)
        else:
            is_ignored = how % 16 == 5
            model.took(ring.copy_cqes(), is_ignored=is_ignored)

    # ---- streams, groups ----

    @step(which=NUMBER, a=NUMBER, b=NUMBER)
    def open_stream(self, which: int, a: int, b: int) -> None:
        """Begin a stream of what posts several times."""
        home = self._home(which)
        model = home.model
        one = build.streamed(home, a, b)
        if one is None or len(home.streams) == 3:
            return
        assert one.op is not None
        if not model.is_sqpoll and len(model.pending) == model.entries:
            model.refused((uring.SubmissionQueueFull,), lambda: model.ring.stream(one.op))  # type: ignore[arg-type]  # it is one
            return
        try:
            stream = model.ring.stream(one.op)
        except uring.SubmissionQueueFull:
            assert model.is_sqpoll
            return
        one.is_streamed = True
        model.entered_stream(one, stream)
        home.streams.append(StreamModel(stream, one))

    @step(which=NUMBER, number=NUMBER, count=COUNT)
    def take_from_stream(self, which: int, number: int, count: int) -> None:
        """Take what there is of a stream."""
        home = self._home(which)
        if home.streams:
            self._take_from(home, home.streams[number % len(home.streams)], count)

    @staticmethod
    def _take_from(home: Home, each: StreamModel, count: int) -> None:
        stream, model = each.stream, home.model
        for _ in range(count):
            try:
                cqe = stream.take(timeout=0.0)
            except TimeoutError:
                return
            except FileNotFoundError:  # the group of a bundle is closed: so says the terminal one
                assert stream.outcome is uring.StreamEnd.FAILED
                cqe = None
            if stream.outcome is not None:
                assert stream.terminal is not None
                assert cqe is None or cqe is stream.terminal
                home.streams.remove(each)
                model.took_one(stream.terminal, is_streamed=True)
                return
            assert cqe is not None
            model.took_one(cqe, is_streamed=True)

    def _take_from_all(self, home: Home) -> None:
        for each in list(home.streams):  # not in the caller: a completion that is kept has a buffer
            self._take_from(home, each, 64)

    @step(which=NUMBER, number=NUMBER)
    def close_stream(self, which: int, number: int) -> None:
        """Leave a stream early; that submits what is queued."""
        home = self._home(which)
        if home.streams and not home.model.is_held_up:
            self._close(home, home.streams[number % len(home.streams)])

    @staticmethod
    def _close(home: Home, each: StreamModel) -> None:
        each.one.unseen()
        each.stream.close()
        if not home.model.ring.sq_ready():  # it submits, to cancel, if the operation has not ended
            home.model.submitted(0, is_all=False)
        assert each.stream.terminal is not None
        home.model.left_stream(each.one)
        home.streams.remove(each)

    @step(which=NUMBER, number=NUMBER, count=COUNT)
    def release(self, which: int, number: int, count: int) -> None:
        """Give leases back."""
        groups = self._home(which).groups
        groups[number % len(groups)].release(count)

    @step(which=NUMBER, number=NUMBER)
    def replace_group(self, which: int, number: int) -> None:
        """Unregister a group, with operations on it and leases out, and register another."""
        home = self._home(which)
        place = number % len(home.groups)
        old = home.groups[place]
        old.group.close()
        home.groups[place] = GroupModel(
            self.world, home.model.ring, count=old.group.count, incremental=old.incremental
        )

    # ---- what happens elsewhere ----

    @step(number=NUMBER, count=st.integers(1, 64))
    def feed(self, number: int, count: int) -> None:
        """Write to a channel, past the rings."""
        channel = self.world.channels[number % len(self.world.channels)]
        if not channel.is_shut and channel.is_roomy:
            channel.feed(self.world.next_write(), count)

    @step(number=NUMBER)
    def shut(self, number: int) -> None:
        """End a channel, if nothing names that end."""
        channel = self.world.channels[number % len(self.world.channels)]
        named = [one.fd for home in self.homes for one in home.model.operations()]
        if number % 4 == 3 and channel.writer not in named:
            channel.shut()

    @step()
    def connect(self) -> None:
        """Connect somebody, for who accepts."""
        self.world.connect()

    @step(which=NUMBER, b=NUMBER, is_any=st.booleans())
    def cancel_now(self, which: int, b: int, *, is_any: bool) -> None:
        """Cancel past the queue."""
        home = self._home(which)
        target = home.live(b)
        if target is None:
            return
        number = target.number
        for one in home.model.operations():
            one.may_cancel = one.may_cancel or is_any or one.number == number
        with contextlib.suppress(TimeoutError):
            if is_any:
                home.model.ring.cancel(any=True, timeout=0.05)
            else:
                home.model.ring.cancel(number, all=bool(b & 1), timeout=0.05)

    @step(which=NUMBER, entries=st.sampled_from([4, 8, 16, 32]), factor=st.sampled_from([1, 2, 4]))
    def resize(self, which: int, entries: int, factor: int) -> None:
        """Give the queues other sizes, if they can have any."""
        model = self._home(which).model
        ring = model.ring
        if not ring.flags & SetupFlags.DEFER_TASKRUN or ring.flags & SetupFlags.CQE_MIXED:
            model.refused(
                (uring.UnsupportedError, uring.RegisterError),
                lambda: ring.resize(entries, cq_entries=entries * factor),
            )
            return
        before = ring.params
        try:
            ring.resize(entries, cq_entries=entries * factor)
        except uring.RegisterError:
            assert ring.params == before
            assert len(model.pending) > entries or ring.cq_ready() > entries * factor
            STATISTICS["resize refused"] += 1
        else:
            assert ring.params.sq_entries == entries
            model.entries = entries
            STATISTICS["resize"] += 1

    @step()
    def collect(self) -> None:
        """Collect garbage, and allocate where it was."""
        gc.collect(0)
        self.world.bait()

    # ---- ends ----

    def _settle(self, home: Home) -> None:
        """Submit all, cancel all, and take all, until nothing is in flight."""
        model, ring = home.model, home.model.ring
        model.cancels.append(lambda _one: True)
        for one in model.operations():
            one.may_cancel = True
        deadline = time.monotonic() + SECONDS
        while model.live or not model.owed <= {*model.came}:
            assert time.monotonic() < deadline, f"never ended: {list(model.live.values())[:9]}"
            if model.is_sqpoll:  # what its workers go on with in a chain is found from inside alone
                self._queue(home, Cancelling(uring.AsyncCancelAny()))
            model.submitted(ring.submit())
            with contextlib.suppress(TimeoutError):
                ring.cancel(any=True, timeout=0.05)
            model.took(ring.copy_cqes(wait_nr=1, timeout=0.001))
            self._take_from_all(home)
        model.cancels.clear()
        model.took(ring.copy_cqes())  # messages may be left
        assert (ring.in_flight, ring.cq_ready(), ring.sq_ready()) == (0, 0, 0)
        for group in home.groups:
            group.assert_holds(model)

    def _end(self, home: Home, how: int) -> None:
        """Close a ring: with nothing in flight, in the middle of it, or by dropping it."""
        model = home.model
        if how == 0:
            self._settle(home)
        if how == 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                model.ring.__del__()
        else:
            model.ring.close()
        model.closed()
        home.registered.end()

    @step(which=NUMBER, how=st.integers(0, 2))
    def reopen(self, which: int, how: int) -> None:
        """Close a ring and make another one."""
        if which % 8 > 1:
            return
        home = self._home(which)
        self._end(home, how)
        place = self.homes.index(home)
        self.homes[place] = self._open(self.shape if place == 0 else Shape())
        STATISTICS["rings closed"] += 1

    @invariant()
    def holds(self) -> None:
        """Compare the rings with the model, and look at all memory."""
        STATISTICS["steps"] += 1
        for home in self.homes:
            home.model.assert_holds()
            for group in home.groups:
                group.assert_holds(home.model)
        if self.homes:
            self.world.assert_holds()

    def teardown(self) -> None:
        """End everything, and look for what is left."""
        if not self.homes:
            return
        if isinstance(sys.exc_info()[1], Exception):
            self._clean_up()
            return
        try:
            self._finish()
        except Exception:
            self._clean_up()
            raise

    def _finish(self) -> None:
        while self.homes:
            self._end(self.homes[-1], int(self.ends_by_closing))
            self.homes.pop()
        world = self.world
        world.finish()
        world.close()
        gc.collect()
        world.assert_collected()
        assert descriptors() <= self.before, descriptors() - self.before

    def _clean_up(self) -> None:
        """Show what has failed, and let the next example begin afresh."""
        if not STATISTICS["failures"]:
            traceback.print_exc()
            sys.stderr.write("The steps of the first failure:\n" + "\n".join(self.history) + "\n")
        STATISTICS["failures"] += 1
        for home in self.homes:
            home.model.ring.close()
        with contextlib.suppress(OSError):
            self.world.close()
