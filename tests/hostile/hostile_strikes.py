"""Calls that are struck by Ctrl-C wherever it can strike: queueing, submitting, copying out."""

import gc
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from hostile_harness import Tracked, join, main, program
from hostile_tracer import NO_FLAGS, Sweep, World

import uring

_F = uring.SetupFlags
_SKIP = uring.SQEFlags.CQE_SKIP_SUCCESS


def _world(
    nops: int = 0,
    *,
    busy: bool = False,
    submitted: int = 0,
    kept: bool = False,
    shared: bool = False,
    flags: _F = NO_FLAGS,
) -> World:
    """A ring in a state of its own, as far as calls take other ways because of it."""
    world = World(flags)
    if busy:
        world.hang()
    for _ in range(submitted):
        world.nop()
    if shared:
        for _ in range(2):
            world.made.append(world.ring.queue(uring.Read(world.inlet, bytearray(1)), user_data=1))
    if submitted or shared:
        world.ring.submit_and_wait(submitted)
    if kept:
        world.nop()
        world.nop()
        world.ring.submit_and_wait(2)
        world.results.append(world.ring.copy_cqes(1))
    for _ in range(nops):
        world.nop()
    return world


_States = dict[str, Callable[[], World]]


def _each(sweep: Sweep, act: Callable[[World], object], **states: Callable[[], World]) -> None:
    for name, make in states.items():
        sweep.strike(name, make, act)


def _reading(world: World) -> uring.Read:
    return uring.Read(world.inlet, Tracked(8))


@program
def struck_queue() -> None:
    """Whatever strikes queue(): the operation is queued or it is not, and all else is as it was."""
    sweep = Sweep()
    states: _States = {
        "fresh": _world,
        "busy": partial(_world, busy=True),
        "owned": partial(_world, flags=_F.SINGLE_ISSUER | _F.DEFER_TASKRUN),
        "full": partial(_world, nops=8),
    }

    class File:
        def fileno(self) -> int:
            return 0

    def nop(world: World) -> None:
        with suppress(uring.SubmissionQueueFull):
            world.ring.queue(uring.Nop(), user_data=world.number())

    def drawn(world: World) -> None:
        world.unknown += 3
        with suppress(uring.SubmissionQueueFull):
            world.ring.queue(uring.Nop(flags=uring.SQEFlags.ASYNC))
            world.ring.queue(uring.Fsync(File()))
            world.ring.queue(uring.SQE(uring.Opcode.NOP, user_data=world.number()))

    def claiming(world: World) -> None:
        world.ring.queue(uring.Nop(), user_data=world.number())
        world.ring.queue(uring.Socket(user_data=world.number()))

    _each(sweep, nop, **states)
    _each(sweep, drawn, **states)
    sweep.run()


@program
def struck_submit() -> None:
    """Whatever strikes submit(): each operation is submitted once, now or with the next one."""
    sweep = Sweep()
    states: _States = {
        "one": partial(_world, 1),
        "three": partial(_world, 3),
        "one, busy": partial(_world, 1, busy=True),
        "three, busy": partial(_world, 3, busy=True),
        "behind others": partial(_world, 2, submitted=2),
        "kept": partial(_world, 2, kept=True),
        "large": partial(_world, 2, flags=_F.SQE128),
        "polled": partial(_world, 2, flags=_F.SQPOLL),
    }
    _each(sweep, lambda w: w.ring.submit(), **states)
    sweep.run()


@program
def struck_submit_and_wait() -> None:
    """Whatever strikes submit_and_wait(): the same, and no completion is lost."""
    sweep = Sweep()
    states: _States = {
        "one": partial(_world, 1),
        "three": partial(_world, 3),
        "one, busy": partial(_world, 1, busy=True),
        "behind others": partial(_world, 2, submitted=2),
        "kept": partial(_world, 2, kept=True),
        "deferred": partial(_world, 2, flags=_F.SINGLE_ISSUER | _F.DEFER_TASKRUN),
    }
    _each(sweep, lambda w: w.ring.submit_and_wait(1), **states)
    _each(sweep, lambda w: w.ring.submit_and_wait(9, timeout=0.0001), **states)
    sweep.run()


@program
def struck_copy_cqe() -> None:
    """Whatever strikes copy_cqe(): the completion is handed out, or still there."""
    sweep = Sweep()
    _each(sweep, lambda w: w.results.append(w.ring.copy_cqe(timeout=5)), **_READY)
    sweep.run()


_READY: _States = {
    "one": partial(_world, submitted=1),
    "three": partial(_world, submitted=3),
    "one, busy": partial(_world, submitted=1, busy=True),
    "three, busy": partial(_world, submitted=3, busy=True),
    "kept": partial(_world, kept=True),
    "kept and more": partial(_world, 2, kept=True),
    "large": partial(_world, submitted=3, flags=_F.CQE32),
    "deferred": partial(_world, submitted=3, flags=_F.SINGLE_ISSUER | _F.DEFER_TASKRUN),
}


@program
def struck_copy_cqes() -> None:
    """Whatever strikes copy_cqes(): what it did not return is still there, and comes once."""
    sweep = Sweep()
    _each(sweep, lambda w: w.results.append(w.ring.copy_cqes()), **_READY)
    _each(sweep, lambda w: w.results.append(w.ring.copy_cqes(1)), **_READY)
    _each(sweep, lambda w: w.results.append(w.ring.copy_cqes(wait_nr=9, timeout=0.001)), **_READY)
    _each(sweep, lambda w: w.ring.peek_cqes(), **_READY)
    sweep.run()


@program
def struck_queue_all() -> None:
    """Whatever strikes queue_all(): all are queued or none, a chain is not split."""
    sweep = Sweep()
    states: _States = {
        "fresh": _world,
        "busy": partial(_world, busy=True),
        "pending": partial(_world, 1),
        "full": partial(_world, 7),
    }

    def chain(world: World) -> None:
        numbers = [world.number() for _ in range(3)]
        with suppress(uring.SubmissionQueueFull):
            world.ring.queue_all(uring.link(*[uring.Nop(user_data=n) for n in numbers]))

    def silent(world: World) -> None:
        number = world.number()
        with suppress(uring.SubmissionQueueFull):
            first = uring.Nop(flags=_SKIP, user_data=number + 1000)
            world.ring.queue_all(uring.link(first, uring.Nop(user_data=number)))

    _each(sweep, chain, **states)
    _each(sweep, silent, **states)
    sweep.run()


@program
def struck_waits() -> None:
    """Whatever strikes a wait: it ends, what came is still there, and others are not waited for."""
    sweep = Sweep()
    states: _States = {
        "one": partial(_world, submitted=1, busy=True),
        "deferred": partial(_world, submitted=1, flags=_F.SINGLE_ISSUER | _F.DEFER_TASKRUN),
        "kept": partial(_world, kept=True),
    }

    def wait(world: World) -> None:
        with suppress(TimeoutError):
            for _ in range(3):
                world.results.append(world.ring.copy_cqe(timeout=0.0005))

    _each(sweep, wait, **states)
    _each(
        sweep,
        lambda w: w.results.append(
            w.ring.copy_cqes(3, wait_nr=3, timeout=0.001, min_timeout=0.0005)
        ),
        **states,
    )
    _each(sweep, lambda w: w.ring.submit_and_wait(3, timeout=0.001, min_timeout=0.0005), **states)
    polled: _States = {"polled": partial(_world, nops=2, flags=_F.SQPOLL)}
    _each(sweep, lambda w: w.ring.wait_sq_room(timeout=1), **polled)
    sweep.run()


@program
def struck_peek_and_advance() -> None:
    """Whatever strikes cq_advance(): what was peeked at is consumed, or it is still there."""
    sweep = Sweep()

    def advance(world: World) -> None:
        peeked = world.ring.peek_cqes()
        world.maybe += peeked.user_data.tolist()
        world.sure = [n for n in world.sure if n not in world.maybe]
        world.ring.cq_advance(len(peeked))

    _each(sweep, advance, **_READY)
    sweep.run()


_RUNNING: _States = {
    "fresh": _world,
    "busy": partial(_world, 2, busy=True),
    "kept": partial(_world, kept=True),
    "deferred": partial(_world, 1, flags=_F.SINGLE_ISSUER | _F.DEFER_TASKRUN),
}


@program
def struck_run() -> None:
    """Whatever strikes run(): its operations end, its memory is free; others are left alone."""
    sweep = Sweep()

    def operations(world: World) -> None:
        world.made.append(world.ring.run([uring.Nop()] * 20))

    def chosen(world: World) -> None:
        ops = [uring.Nop(user_data=2**63 + 99), uring.Read(-1, bytearray(8)), uring.Fsync(-1)]
        world.made.append(world.ring.run(ops))

    _each(sweep, operations, **_RUNNING)
    _each(sweep, chosen, **_RUNNING)
    _each(sweep, lambda w: w.made.append(w.ring.run(_NOPS)), **_RUNNING)
    sweep.run()


@program
def struck_run_that_is_cut_off() -> None:
    """The same of a run whose time is over: what it began is cancelled, and ends."""
    sweep = Sweep()

    def batch(world: World) -> None:
        with suppress(TimeoutError):
            world.ring.run(_HANGING, timeout=0.0002)

    _each(sweep, batch, **_RUNNING)
    sweep.run()


_NOPS = uring.Batch([uring.Nop()] * 3)
_HANGING = uring.Batch([uring.Nop(), uring.Timeout(100)])


@program
def struck_run_that_makes_descriptors() -> None:
    """Whatever strikes such a run(): descriptors are handed out or closed."""
    sweep = Sweep()

    def open_two(world: World) -> None:
        world.made.append(world.ring.run([uring.Openat("/dev/null"), uring.Socket()]))

    class Opening(World):
        def end(self) -> None:
            for completions in self.made:
                for fd in completions.res.tolist():
                    os.close(fd)
            super().end()

    sweep.strike("run", Opening, open_two)
    sweep.run()


class Streaming(World):
    """A ring with a poll that fires for ever: of a pipe with a byte in it, which is read."""

    def __init__(self) -> None:
        super().__init__()
        os.write(self.outlet, b"x")
        self.unknown = 99
        self.stream: uring.Stream | None = None
        self.taken: list[uring.CQE | None] = []

    def settle(self, *, may_lose: bool) -> None:
        """End the stream, and what of it has none."""
        self.maybe += [cqe.user_data for cqe in self.taken if cqe is not None]
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        for _ in range(50):
            if not self.ring.in_flight:
                break
            self.ring.submit()
            self.ring.cancel(any=True)
            self.results.append(self.ring.copy_cqes(wait_nr=1, timeout=0.01))
        self.results.append(self.ring.copy_cqes())
        os.read(self.inlet, 1)
        super().settle(may_lose=may_lose)


@program
def struck_streams() -> None:
    """Whatever strikes a stream: closed then, it leaves nothing in flight, and others alone."""
    sweep = Sweep()

    def opened() -> Streaming:
        world = Streaming()
        world.stream = world.ring.stream(uring.PollMultishot(world.inlet, select.POLLIN))
        return world

    def taken() -> Streaming:
        world = opened()
        world.nop()
        world.ring.submit_and_wait(2)
        return world

    def make(world: Streaming) -> None:
        world.stream = world.ring.stream(uring.PollMultishot(world.inlet, select.POLLIN))

    def leave(world: Streaming) -> None:
        assert world.stream is not None
        with world.stream as stream:
            world.taken.append(stream.take(timeout=5))

    sweep.strike("made", Streaming, make)
    for state in (opened, taken):
        sweep.strike("taken", state, lambda w: w.taken.append(w.stream.take(timeout=5)))
        sweep.strike("next", state, lambda w: w.taken.append(next(w.stream)))
        sweep.strike("closed", state, lambda w: w.stream.close())
        sweep.strike("left", state, leave)
    sweep.run()


class Closing(World):
    """A ring that is closed once more when it was struck."""

    def settle(self, *, may_lose: bool) -> None:
        """Close it; nothing may be left, and no lock."""
        del may_lose  # nobody asks what has come
        self.ring.close()
        assert self.ring.closed
        assert self.ring.fd == -1
        assert self.ring.in_flight == 0
        assert [reference() for _, reference in self.pinned] == [None] * len(self.pinned)
        closer = threading.Thread(target=self.ring.close, daemon=True)
        closer.start()
        join(closer, 5)
        self.end()


def _closing(nops: int = 0, *, flags: _F = NO_FLAGS, openings: int = 0) -> Closing:
    world = Closing(flags)
    world.hang()
    for _ in range(openings):
        world.ring.queue(uring.Openat("/dev/null"))
    world.ring.submit()
    for _ in range(nops):
        world.nop()
    return world


@program
def struck_close() -> None:
    """Whatever strikes close() or __exit__: close() once more closes it, and all memory is free."""
    sweep = Sweep()
    states: _States = {
        "hanging": _closing,
        "pending": partial(_closing, 3),
        "with descriptors": partial(_closing, openings=2),
        "deferred": partial(_closing, 1, flags=_F.SINGLE_ISSUER | _F.DEFER_TASKRUN),
        "polled": partial(_closing, flags=_F.SQPOLL),
    }
    _each(sweep, lambda w: w.ring.close(), **states)
    _each(sweep, lambda w: w.ring.__exit__(None, None, None), **states)
    sweep.run()


class Unmade(World):
    """Where a ring is to be made."""

    def settle(self, *, may_lose: bool) -> None:
        """Close what was made, and see to what is dropped."""
        for made in self.made:
            made.close()
        self.made.clear()
        gc.collect(0)
        super().settle(may_lose=may_lose)


@program
def struck_setup() -> None:
    """Whatever strikes Ring(): no descriptor and no mapping stays behind."""
    sweep = Sweep()

    def make(world: World, *, flags: uring.SetupFlags) -> None:
        world.made.append(uring.Ring(4, flags=flags))

    for flags in (_F(0), _F.NO_MMAP, _F.SINGLE_ISSUER | _F.DEFER_TASKRUN):
        sweep.strike("made", Unmade, partial(make, flags=flags))
    sweep.run()


if __name__ == "__main__":
    main()
