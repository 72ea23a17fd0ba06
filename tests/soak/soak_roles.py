"""
Who uses a ring: a submitter, a runner of batches, a consumer of streams, a reaper.

Each takes one step after the other. On most rings each is a thread of its own; a ring that belongs
to one thread has them take turns. Beside them a thread opens, closes and drops rings of its own.
"""

import contextlib
import errno
import gc
import os
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable
from typing import Final

from soak_jobs import MAKERS, Action, flood
from soak_watch import FILLER, GUARD, FaultError, Guarded, Tally
from soak_world import BLOCK, CONTENT, SHAPES, Files, World, any_file

import uring
from uring import SetupFlags, SQEFlags, StreamEnd

CROWD: Final = 3000
"""So many jobs at once, floods aside."""

PATIENCE: Final = 30.0
"""The end of a wait for what must come."""


class Role:
    """One who takes steps."""

    def __init__(self, world: World) -> None:
        self.world, self.ring, self.tally = world, world.ring, world.tally
        self.rng = world.rng(type(self).__name__)

    def step(self) -> None:
        """Do a little."""
        raise NotImplementedError


class Submitter(Role):
    """Queues jobs and submits them."""

    flood_size = 0
    """How many reads the first step begins with."""

    def step(self) -> None:
        """Queue and submit some, then do what races them."""
        world, rng = self.world, self.rng
        if self.flood_size:
            count, self.flood_size = self.flood_size, 0
            flood(world, rng, count)
        if len(world.outstanding) > CROWD:
            self.ring.sq_ready()  # or it would not see that the ring is closed
            time.sleep(0.001)  # the reaper's turn
            return
        actions: list[Action] = []
        while world.todo:
            world.put(world.todo.popleft())
        for make in rng.choices([*MAKERS], [*MAKERS.values()], k=rng.randint(1, 24)):
            made = make(world, rng)
            if made is not None:
                world.put(made[0])
                actions.append(made[1])
        world.submit()
        for action in actions:
            action()


class Reaper(Role):
    """Copies completions out, by every method."""

    def step(self) -> None:
        """Take some; now and then doze first, so that the queue overflows."""
        world, ring, rng = self.world, self.ring, self.rng
        if rng.random() < 0.02:
            time.sleep(rng.uniform(0, 0.02))
        if ring.sq.flags & uring.SQRingFlags.CQ_OVERFLOW:
            self.tally.add("overflows_seen")
        kind = rng.randrange(8)
        if kind == 0:
            with contextlib.suppress(TimeoutError):
                world.end([ring.copy_cqe(timeout=0.02)])
        elif kind == 1:
            peeked = ring.peek_cqes(rng.randint(1, 16))
            ring.cq_advance(len(peeked))
            world.end(peeked)
        elif kind == 2:
            world.end(ring.copy_cqes(rng.randint(1, 100)))
        else:
            world.end(ring.copy_cqes(wait_nr=rng.randint(1, 4), timeout=0.02))


class Runner(Role):
    """Runs batches."""

    def step(self) -> None:
        """Run one of several kinds."""
        kinds = (self.mixed, self.mixed, self.columns, self.written, self.cut, self.descriptors)
        self.rng.choice(kinds)()

    def note(self, kind: str, done: uring.Completions, count: int, storms: int) -> list[bool]:
        """Count results, and tell which were not cancelled."""
        if len(done) != count:
            raise FaultError(f"{len(done)} results of {count}")
        self.tally.expect(count)
        self.tally.ended(kind, count)
        results = done.res.tolist()
        cancelled = results.count(-errno.ECANCELED)
        if cancelled and not self.world.may_cancel(storms):
            raise FaultError(f"{cancelled} of a run cancelled by nobody")
        self.tally.add("cancelled", cancelled)
        return [res != -errno.ECANCELED for res in results]

    def mixed(self) -> None:
        """NOPs and reads, prepared once and run twice."""
        rng, count = self.rng, self.rng.randint(1, 150)
        buffers = [Guarded(64) for _ in range(count)]
        offsets = [rng.randrange(len(CONTENT) - 64) for _ in buffers]
        file = any_file(self.world, rng)
        batch = uring.Batch(
            uring.Read(file, buffer.view, offset) if offset % 3 else uring.Nop()
            for buffer, offset in zip(buffers, offsets, strict=True)
        )
        for _ in range(2):
            storms = self.world.storms
            went = self.note("run", self.ring.run(batch), count, storms)
            for buffer, offset, did in zip(buffers, offsets, went, strict=True):
                if did:
                    buffer.check(CONTENT[offset : offset + 64] if offset % 3 else b"")
                buffer.view[:] = bytes([FILLER]) * 64
        del batch
        for buffer in buffers[:4]:
            self.world.sample(buffer)

    def columns(self) -> None:
        """Blocks of a file into one buffer, as columns."""
        count = self.rng.randint(1, 64)
        first = self.rng.randrange(256 - count) * 1024
        buffer = Guarded(count * 1024)
        offsets = range(first, first + count * 1024, 1024)
        reads = uring.ReadMany(any_file(self.world, self.rng), buffer.view, offsets)
        storms = self.world.storms
        if all(self.note("run", self.ring.run(reads), count, storms)):
            buffer.check(CONTENT[first : first + count * 1024])
        del reads
        self.world.sample(buffer)

    def written(self) -> None:
        """A chain in a run."""
        if not self.world.slots:
            return
        slot, buffer = self.world.slots.popleft(), Guarded(BLOCK)
        offset, file = self.rng.randrange(len(CONTENT) - BLOCK), self.world.files.scratch
        data, at, storms = CONTENT[offset : offset + BLOCK], slot * BLOCK, self.world.storms
        chain = uring.link(
            uring.Write(file, data, at), uring.Fsync(file), uring.Read(file, buffer.view, at)
        )
        if all(self.note("run", self.ring.run(chain), 3, storms)):
            buffer.check(data)
        del chain
        self.world.sample(buffer)
        self.world.slots.append(slot)

    def cut(self) -> None:
        """A run that does not end by itself."""
        if not self.world.pipes:
            return
        pipe, buffer = self.world.pipes.popleft(), Guarded(8)
        storms = self.world.storms
        try:
            ops = [uring.Nop(), uring.Read(pipe[0], buffer.view), uring.Nop()]
            done = self.ring.run(ops, timeout=self.rng.uniform(0, 0.005))
        except TimeoutError:
            self.tally.add("runs_cut")
        else:
            self.note("run", done, 3, storms)
            del done
        del ops
        buffer.check(b"")
        self.world.sample(buffer)
        self.world.pipes.append(pipe)

    def descriptors(self) -> None:
        """Sockets, made in a run."""
        storms, count = self.world.storms, self.rng.randint(1, 5)
        done = self.ring.run([uring.Socket(socket.AF_UNIX) for _ in range(count)])
        for cqe in done:
            if cqe.res >= 0:
                os.close(cqe.res)
        self.note("run", done, count, storms)


class Consumer(Role):
    """Reads streams."""

    open_streams = 0

    def step(self) -> None:
        """Read one of several kinds."""
        try:
            self.rng.choice((self.socket, self.socket, self.pipe, self.accept, self.expiries))()
        finally:
            self.tally.add("abandoned", self.open_streams)  # by an exception
            self.open_streams = 0

    def take(self, stream: uring.Stream) -> uring.CQE | None:
        """Take the next completion, which must come."""
        self.tally.add("stream_completions")
        return stream.take(timeout=PATIENCE)

    def ended(self, stream: uring.Stream, storms: int, *, is_left: bool = False) -> StreamEnd:
        """Count a stream, which has ended by itself, or was left."""
        if stream.outcome is None and self.ring.closed:
            raise uring.RingClosedError
        if stream.outcome is None:
            raise FaultError(f"{stream!r} has not ended")
        self.tally.ended("stream")
        self.open_streams = 0
        if stream.outcome is StreamEnd.NO_BUFFERS:
            self.tally.add("no_buffers")
        if stream.outcome is StreamEnd.CANCELLED:
            self.tally.add("cancelled")
            if not is_left and not self.world.may_cancel(storms):
                raise FaultError(f"{stream!r} was cancelled by nobody")
        return stream.outcome

    def begin(self, op: uring.Operation) -> uring.Stream:
        """Begin a stream."""
        self.tally.expect(1)
        self.open_streams = 1
        while True:
            try:
                return self.ring.stream(op)
            except uring.SubmissionQueueFull:
                self.world.make_room()

    def socket(self) -> None:
        """What comes through a socket, buffers being held until there are none."""
        left, right = socket.socketpair()
        with left, right:
            op = uring.RecvMultishot(right, self.world.group)
            self.receive(op, left.sendall, left.close)

    def pipe(self) -> None:
        """The same through a pipe."""
        inlet, outlet = os.pipe()
        with open(inlet, "rb", 0) as source, open(outlet, "wb", 0) as sink:  # noqa: PTH123 - descriptors
            op = uring.ReadMultishot(source, self.world.group)
            self.receive(op, sink.write, sink.close)

    def receive(
        self,
        op: uring.Operation,
        send: Callable[[bytes], object],
        shut: Callable[[], None],
    ) -> None:
        """Send, and check that all comes, once and in order; or leave early."""
        rng = self.rng
        first, size = rng.randrange(len(CONTENT) // 2), rng.randint(1, 8000)
        send(CONTENT[first : first + size])
        is_early, at = rng.random() < 0.2, first
        if not is_early:
            shut()
        held: list[uring.Lease] = []
        outcome = None
        while outcome is not StreamEnd.END_OF_FILE:
            storms = self.world.storms
            with self.begin(op) as stream:
                while (cqe := self.take(stream)) is not None:
                    lease = cqe.result()
                    if not isinstance(lease, uring.Lease):
                        raise FaultError(f"no lease but {lease!r}")
                    if bytes(lease) != CONTENT[at : at + len(lease)]:
                        raise FaultError(f"not the bytes at {at - first} of {size}")
                    at += len(lease)
                    held.append(lease)
                    if rng.random() < 0.3:
                        self.give_back(held)
                    if is_early and rng.random() < 0.2:
                        break
                    if is_early and at == first + size:
                        break
            outcome = self.ended(stream, storms, is_left=is_early)
            self.give_back(held)
            del cqe
            if is_early:
                break
        if not is_early and at != first + size:
            raise FaultError(f"{at - first} bytes of {size} came")
        self.give_back(held)
        del stream
        lease = None
        self.check_group()

    def check_group(self) -> None:
        """Look whether all buffers are back, once the reaper has let go of what came with them."""
        group, deadline = self.world.group, time.monotonic() + PATIENCE / 3
        while (out := group.count - group.inside) and time.monotonic() < deadline:
            self.tally.add("waits_for_buffers")
            time.sleep(0.001)
        if out:
            raise FaultError(f"{out} buffers of {group.count} were not given back")

    def give_back(self, held: list[uring.Lease]) -> None:
        """Release leases, or drop them."""
        if self.rng.random() < 0.5:
            for lease in held:
                lease.release()
        held.clear()

    def accept(self) -> None:
        """Connections, of which some are accepted and never looked at."""
        storms = self.world.storms
        with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
            listener.bind("")  # a name of the kernel's choice
            listener.listen(8)
            with self.begin(uring.AcceptMultishot(listener)) as stream:
                for _ in range(4):
                    client = stack.enter_context(socket.socket(socket.AF_UNIX))
                    client.connect(listener.getsockname())
                for _ in range(self.rng.randint(0, 4)):
                    cqe = self.take(stream)
                    if cqe is None:
                        break
                    os.close(cqe.res)
            self.ended(stream, storms, is_left=True)

    def expiries(self) -> None:
        """A timeout that expires five times; fewer when the completion queue overflows."""
        storms, seen = self.world.storms, 0
        with self.begin(uring.TimeoutMultishot(0.0005, count=5)) as stream:
            while (cqe := self.take(stream)) is not None:
                seen += 1
                if cqe.res == -errno.ECANCELED and self.world.may_cancel(storms):
                    self.tally.add("cancelled")
                elif cqe.res != -errno.ETIME:
                    raise FaultError(f"an expiry gave {cqe!r}")
        if seen > 5:
            raise FaultError(f"{seen} expiries of 5")
        self.ended(stream, storms)


# ---- rings that are not long for this world ----


class Churner:
    """Opens rings and ends them in every way, with work in flight."""

    def __init__(self, tally: Tally, files: Files, seed: str) -> None:
        self.tally, self.files, self.rng = tally, files, random.Random(f"{seed} churn")
        self.urandom = os.open("/dev/urandom", os.O_RDONLY)

    def step(self) -> None:
        """End one ring."""
        shape = self.rng.choice([*SHAPES])
        flags = SHAPES[shape]
        if self.rng.random() < 0.1:
            flags |= SetupFlags.R_DISABLED
        ring = uring.Ring(8, flags=flags, cq_entries=32)
        if flags & SetupFlags.R_DISABLED:
            ring.close()
            return
        inlet, outlet = os.pipe()
        buffers = self.fill(ring, inlet)
        how = self.rng.choice((self.close, self.drop, self.drop_in_cycle, self.close_elsewhere))
        if how == self.close_elsewhere and flags & SetupFlags.SINGLE_ISSUER:
            how = self.close
        ends = [ring]
        del ring
        kept = self.tally.counts["kept_and_said"]
        how(ends)
        if self.tally.counts["kept_and_said"] != kept:  # its memory is the kernel's for ever
            os.close(inlet)
            os.close(outlet)
            return
        sums = [zlib.crc32(buffer.memory) for buffer in buffers]
        os.write(outlet, CONTENT[:64])
        os.close(inlet)
        os.close(outlet)
        time.sleep(self.rng.uniform(0, 0.005))  # whoever still writes, writes now
        for buffer, before in zip(buffers, sums, strict=True):
            guard = bytes([FILLER]) * GUARD
            if zlib.crc32(buffer.memory) != before:
                self.tally.fault(f"{shape}: memory was written to after {how.__name__}()")
            if buffer.memory[:GUARD] != guard or buffer.memory[-GUARD:] != guard:
                self.tally.fault(f"{shape}: bytes beside a buffer were written to")
            buffer.release()
            try:
                buffer.memory.append(0)
            except BufferError:
                self.tally.fault(f"{shape}: a buffer is pinned after {how.__name__}()")
        self.tally.add(f"rings_{how.__name__}")

    def fill(self, ring: uring.Ring, inlet: int) -> list[Guarded]:
        """Put into a ring what takes a while, what never ends, and what makes descriptors."""
        buffers = [Guarded(64 * 1024), Guarded(16), Guarded(BLOCK)]
        slow, never, registered = buffers
        ring.register_files([self.files.content])
        ring.register_buffers([registered.memory])
        group = ring.register_buffer_ring(4, size=64)
        ring.queue(uring.Read(self.urandom, slow.view, flags=SQEFlags.ASYNC))
        ring.queue(uring.Read(inlet, never.view))
        ring.queue(uring.ReadSelect(inlet, group))
        ring.queue(uring.Timeout(3600))
        ring.queue(uring.Socket(socket.AF_UNIX))
        ring.queue(uring.Openat(self.files.path))
        ring.submit()
        ring.queue(uring.Nop())  # and one that is never submitted
        return buffers

    def close(self, ends: list[uring.Ring]) -> None:
        """Close it."""
        ends.pop().close()

    def drop(self, ends: list[uring.Ring]) -> None:
        """Let go of it."""
        ends.clear()

    def drop_in_cycle(self, ends: list[uring.Ring]) -> None:
        """Leave it to the collector."""
        cycle: list[object] = [ends.pop()]
        cycle.append(cycle)
        del cycle
        gc.collect()

    def close_elsewhere(self, ends: list[uring.Ring]) -> None:
        """Close it in another thread, with somebody waiting."""
        ring = ends.pop()

        def wait() -> None:
            with contextlib.suppress(uring.RingClosedError):
                while True:
                    ring.submit_and_wait(1000)

        waiter = threading.Thread(target=wait)
        closer = threading.Thread(target=ring.close)
        waiter.start()
        closer.start()
        closer.join()
        waiter.join()

    def end(self) -> None:
        """Let go of what all of them read."""
        os.close(self.urandom)
