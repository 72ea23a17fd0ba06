"""Registrations, groups, leases and messages that are struck by Ctrl-C wherever it can strike."""

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from hostile_buffers import Case
from hostile_harness import Tracked, collect, drain, main, program, refused
from hostile_tracer import NO_FLAGS, Sweep, World

import uring

_F = uring.SetupFlags


class Registering(World):
    """A ring with registrations, of which nothing must be left that nobody can undo."""

    def __init__(self, flags: uring.SetupFlags = NO_FLAGS) -> None:
        super().__init__(flags)
        self.memory: list[weakref.ref[Tracked]] = []
        self.eventfd = os.eventfd(0)

    def buffer(self) -> Tracked:
        """Memory that nobody holds when all is over."""
        made = Tracked(4096)
        self.memory.append(weakref.ref(made))
        return made

    def settle(self, *, may_lose: bool) -> None:
        """Undo all of it, and do it again."""
        ring = self.ring
        undo: list[Callable[[], None]] = [
            ring.unregister_files,
            ring.unregister_buffers,
            ring.unregister_eventfd,
        ]
        for each in undo:
            with suppress(uring.RegisterError):
                each()
        for each in undo:
            refused(uring.RegisterError, "nothing is registered", each)
        ring.register_files([self.inlet, -1])
        ring.register_buffers([bytearray(64)])
        ring.register_eventfd(self.eventfd)
        for each in undo:
            each()
        self.made.clear()
        ring.run([uring.Nop()])
        ring.copy_cqes()
        os.close(self.eventfd)
        super().settle(may_lose=may_lose)
        # Of a registration that was cut off nobody knows whether it is one, as long as the ring is.
        if any(ref() is not None for ref in self.memory):
            collect()
        assert [ref() for ref in self.memory] == [None] * len(self.memory), "pinned for ever"


def _with_files() -> Registering:
    world = Registering()
    world.made.append(world.ring.register_files([0, world.inlet, -1, -1]))
    return world


def _with_buffers() -> Registering:
    world = Registering()
    world.made.append(world.ring.register_buffers([world.buffer(), world.buffer(), None]))
    return world


@program
def struck_registering() -> None:
    """Whatever strikes registering: it is done, or not done, and can be undone and done again."""
    sweep = Sweep()
    strike = sweep.strike
    for state in (Registering, partial(Registering, _F.SINGLE_ISSUER | _F.DEFER_TASKRUN)):
        strike("files", state, lambda w: w.made.append(w.ring.register_files([0, w.inlet])))
        strike("buffers", state, lambda w: w.made.append(w.ring.register_buffers([w.buffer()])))
        strike("eventfd", state, lambda w: w.made.append(w.ring.register_eventfd(w.eventfd)))
    strike("sparse", Registering, lambda w: w.made.append(w.ring.register_files_sparse(4)))
    strike("files update", _with_files, lambda w: w.made[0].update(1, [w.outlet, -1]))
    strike("buffers update", _with_buffers, lambda w: w.made[0].update(1, [w.buffer(), None]))
    strike("unregister files", _with_files, lambda w: w.ring.unregister_files())
    strike("close files", _with_files, lambda w: w.made[0].close())
    strike("unregister buffers", _with_buffers, lambda w: w.ring.unregister_buffers())
    strike("close buffers", _with_buffers, lambda w: w.made[0].close())
    sweep.run()


class Numbered(World):
    """A ring with files that have tags, whose completions come when they go."""

    def settle(self, *, may_lose: bool) -> None:
        """Undo it, and take what comes of that."""
        with suppress(uring.RegisterError):
            self.ring.unregister_files()
        refused(uring.RegisterError, "nothing is registered", self.ring.unregister_files)
        while taken := self.ring.copy_cqes(wait_nr=1, timeout=0.005):
            self.results.append(taken)
        self.reserved.update(self.maybe)
        super().settle(may_lose=may_lose)


@program
def struck_tags() -> None:
    """Whatever strikes the registering of tags: their numbers are free when all is undone."""
    sweep = Sweep()

    def tagged() -> Numbered:
        world = Numbered()
        tags = [world.number(), world.number()]
        world.made.append(world.ring.register_files([0, world.inlet], tags=tags))
        return world

    def register(world: Numbered) -> None:
        tags = [world.number(), world.number()]
        world.made.append(world.ring.register_files([0, world.inlet], tags=tags))

    sweep.strike("registered", Numbered, register)
    sweep.strike("closed", tagged, lambda w: w.made[0].close())
    sweep.strike("updated", tagged, lambda w: w.made[0].update(0, [-1]))
    sweep.run()


class Grouping(World):
    """A ring on which groups of buffers come and go."""

    def settle(self, *, may_lose: bool) -> None:
        """Close them, and make others under their number."""
        for group in self.made:
            group.close()
            assert group.closed
        self.made.clear()
        for kernel_memory in (False, True):
            group = self.ring.register_buffer_ring(2, size=8, bgid=0, kernel_memory=kernel_memory)
            assert group.inside == 2
            group.close()
        super().settle(may_lose=may_lose)


@program
def struck_groups() -> None:
    """Whatever strikes the making or the closing of a group: none stays that nobody can close."""
    sweep = Sweep()

    def make(world: Grouping, **how: bool) -> None:
        world.made.append(world.ring.register_buffer_ring(2, size=8, bgid=0, **how))

    def send(world: Grouping) -> None:
        world.made.append(world.ring.register_send_buffer_ring(2, size=8))

    def made(how: Callable[[Grouping], None]) -> Grouping:
        world = Grouping()
        how(world)
        return world

    kinds: list[Callable[[Grouping], None]] = [
        make,
        partial(make, kernel_memory=True),
        partial(make, incremental=True),
        send,
    ]
    for kind in kinds:
        sweep.strike("made", Grouping, kind)
        sweep.strike("closed", partial(made, kind), lambda w: w.made[0].close())
    sweep.run()


class Leasing:
    """A ring with a group and a lease of it."""

    def __init__(self, words: int = 1) -> None:
        self.case = Case()
        for _ in range(words):
            self.case.kept.append(self.case.receive())

    def settle(self, *, may_lose: bool) -> None:
        """As `World.settle`; nothing is lost here, for what is dropped goes back."""
        del may_lose
        self.case.settle()
        self.case.end()


@program
def struck_leases() -> None:
    """Whatever strikes the release of a lease, or its making: each buffer is there in the end."""
    sweep = Sweep()

    def leave(world: Leasing) -> None:
        with world.case.kept.pop() as lease:
            bytes(lease)

    def copy(world: Leasing) -> None:
        world.case.kept.append(world.case.ring.copy_cqe(timeout=5))

    def result(world: Leasing) -> None:
        world.case.kept.append(world.case.kept[-1].result())

    def received(*, taken: bool) -> Leasing:
        world = Leasing()
        case = world.case
        case.theirs.send(b"word")
        case.ring.queue(uring.RecvSelect(case.ours, case.group))
        case.ring.submit_and_wait(1, timeout=5)
        if taken:
            case.kept.append(case.ring.copy_cqe(timeout=5))
        return world

    sweep.strike("released", Leasing, lambda w: w.case.kept[0].release())
    sweep.strike("left", Leasing, leave)
    sweep.strike("dropped", Leasing, lambda w: w.case.kept.clear())
    sweep.strike("copied", partial(received, taken=False), copy)
    sweep.strike("looked at", partial(received, taken=True), result)
    sweep.run()


class Messaging(World):
    """Two rings; messages go from the one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.target = uring.Ring(8)

    def settle(self, *, may_lose: bool) -> None:
        """Take what came to either, and send another message."""
        drain(self.ring)
        while self.target.copy_cqes():
            pass
        assert not self.target._in_flight.claims, "a number is reserved that does not come"
        for _ in range(2):
            self.ring.queue(uring.MsgRing(self.target, target_user_data=7), user_data=70)
            self.ring.submit()
            assert self.ring.copy_cqe(timeout=5).res == 0
            assert self.target.copy_cqe(timeout=5).user_data == 7
        self.target.close()
        self.results.clear()
        self.made.clear()
        super().settle(may_lose=may_lose)


@program
def struck_messages() -> None:
    """Whatever strikes a message: no number stays reserved, and no descriptor stays open."""
    sweep = Sweep()

    def queue(world: Messaging) -> None:
        world.unknown = 9
        world.ring.queue(uring.MsgRing(world.target, target_user_data=5))

    def queue_all(world: Messaging) -> None:
        world.unknown = 9
        message = uring.MsgRing(world.target, target_user_data=5)
        world.ring.queue_all(uring.link(uring.Nop(res=-1), message))

    def nowhere(world: Messaging) -> None:
        world.unknown = 9
        world.ring.queue(uring.MsgRing(world.inlet, target_user_data=5))

    def send(world: Messaging) -> None:
        world.ring.send_message(world.target, target_user_data=5)

    def queued() -> Messaging:
        world = Messaging()
        queue(world)
        return world

    sweep.strike("queued", Messaging, queue)
    sweep.strike("linked", Messaging, queue_all)
    sweep.strike("to no ring", Messaging, nowhere)
    sweep.strike("at once", Messaging, send)
    sweep.strike("submitted", queued, lambda w: w.ring.submit())
    sweep.run()


class Renaming(World):
    """A ring with a poll in flight, that gets another number."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown = 9
        self.ring.queue(uring.PollAdd(self.inlet, 1), user_data=50)
        self.sure.clear()
        self.maybe += [50, 51, 52]
        self.ring.submit()

    def settle(self, *, may_lose: bool) -> None:
        """End the poll."""
        for _ in range(100):
            self.ring.submit()
            self.ring.cancel(any=True)
            self.results.append(self.ring.copy_cqes(wait_nr=1, timeout=0.01))
            if not self.ring.in_flight:
                break
        assert self.ring.in_flight == 0
        super().settle(may_lose=may_lose)


@program
def struck_renaming() -> None:
    """Whatever strikes the update of a poll's number: it ends under one, and both are free."""
    sweep = Sweep()

    def update(world: Renaming) -> None:
        world.ring.queue(uring.PollUpdate(50, new_user_data=51))

    def updated() -> Renaming:
        world = Renaming()
        update(world)
        return world

    sweep.strike("queued", Renaming, update)
    sweep.strike("submitted", updated, lambda w: w.ring.submit_and_wait(1, timeout=1))
    sweep.run()


@program
def struck_calls() -> None:
    """Whatever strikes what is done at once, or the making of a batch: it is done, or it is not."""
    sweep = Sweep()

    def hanging() -> World:
        world = World()
        world.hang()
        return world

    def cancel(world: World) -> None:
        world.ring.cancel(2, timeout=1)

    class Cancelled(World):
        def settle(self, *, may_lose: bool) -> None:
            drain_all = self.ring.copy_cqes(wait_nr=1, timeout=0.01)
            if drain_all:
                self.results.append(drain_all)
                self.pinned.clear()
            super().settle(may_lose=may_lose)

    def to_cancel() -> World:
        world = Cancelled()
        world.hang()
        return world

    deferred = partial(World, _F.SINGLE_ISSUER | _F.DEFER_TASKRUN | _F.NO_SQARRAY)

    def resize(world: World) -> None:
        world.ring.resize(16)
        world.ring.resize(4)

    def register_fd(world: World) -> None:
        world.ring.register_ring_fd()
        world.ring.unregister_ring_fd()

    def batch(world: World) -> None:
        buffer = bytearray(64)
        world.made.append(uring.Batch([uring.Readv(world.inlet, [buffer] * 3), uring.Nop()]))
        world.made.append(uring.ReadMany(world.inlet, buffer, range(4)))

    sweep.strike("cancelled", to_cancel, cancel)
    sweep.strike("resized", deferred, resize)
    sweep.strike("registered", World, register_fd)
    sweep.strike("batch", hanging, batch)
    sweep.strike("looked at", hanging, lambda w: repr(w.ring) + repr(w.ring.sq) + repr(w.ring.cq))
    sweep.run()


if __name__ == "__main__":
    main()
