"""The world around the rings: files, channels, memory that is registered, groups of buffers."""

import errno
import mmap
import os
import random
import socket
import tempfile
import weakref
from typing import Final

import attrs
from machine_model import Expected, RingModel
from machine_words import CANARY, GUARD, Channel, Memory, Target

import uring
from uring import CQE, BufferRing, Fixed, FixedBuffer, Lease

FILE_BYTES: Final = 4096
PART_BYTES: Final = 64
"""The longest transfer; of a provided buffer, and of a part of registered memory."""
_PARTS: Final = 8


class World:
    """What the rings of one run work on."""

    def __init__(self) -> None:
        self.channels = [Channel(kind) for kind in ("pipe", "socket", "tcp", "pipe")]
        # In memory, if that can be: a busy disk takes its time for an fsync.
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.file, self.path = tempfile.mkstemp(prefix="uring-machine-", dir=folder)
        self.known = [(0, random.Random(FILE_BYTES).randbytes(FILE_BYTES))]
        """Parts of the file that nobody writes to any more."""
        os.pwrite(self.file, self.known[0][1], 0)
        self.file_end = FILE_BYTES
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")
        self.listener.listen(64)
        self.futex = mmap.mmap(-1, mmap.PAGESIZE)
        self.clients: list[socket.socket] = []
        self.groups: list[GroupModel] = []
        """All that there ever were."""
        self.writes = 0
        self.chosen = 1 << 20
        self.references: list[weakref.ref[Memory]] = []
        """Of everything that was lent."""
        self.baits: list[Memory] = []
        """Memory that was allocated when other memory of its size had just been dropped."""

    def target(self, size: int, *, guard: int = GUARD) -> Target:
        """Make memory for the kernel to write to."""
        target = Target(size, guard=guard)
        self.references.append(weakref.ref(target.own()))
        return target

    def memory(self, content: bytes) -> Memory:
        """Make memory for the kernel to read from."""
        memory = Memory(content)
        self.references.append(weakref.ref(memory))
        return memory

    def next_write(self) -> int:
        """Return a number for a write."""
        self.writes += 1
        return self.writes

    def next_number(self) -> int:
        """Return a user_data that nobody has had."""
        self.chosen += 1
        return self.chosen

    def connect(self) -> None:
        """Connect somebody to the listener."""
        if len(self.clients) < 32:
            client = socket.socket(socket.AF_UNIX)
            client.connect(self.listener.getsockname())
            self.clients.append(client)

    def bait(self) -> None:
        """Allocate memory where some may have been freed too early."""
        self.baits = [Memory(bytes([CANARY]) * (PART_BYTES + 2 * GUARD)) for _ in range(8)]

    def assert_holds(self) -> None:
        """What nobody asked to be written must be as it was."""
        for bait in self.baits:
            assert bait.count(CANARY) == len(bait), "memory that was never lent is written to"

    def finish(self) -> None:
        """Settle all accounts: no ring is open any more."""
        self.assert_holds()
        for group in self.groups:
            group.assert_unchanged()
            group.release(len(group.held))
        for channel in self.channels:
            channel.finish()
        size = os.fstat(self.file).st_size
        assert size <= self.file_end
        for offset, content in self.known:
            assert os.pread(self.file, len(content), offset) == content

    def close(self) -> None:
        """Close everything."""
        for channel in self.channels:
            channel.close()
        for each in (*self.clients, self.listener):
            each.close()
        os.close(self.file)
        os.unlink(self.path)  # noqa: PTH108 - beside os.close()
        self.groups.clear()
        self.channels.clear()

    def assert_collected(self) -> None:
        """Nobody may hold anything that was lent."""
        alive = [memory for reference in self.references if (memory := reference()) is not None]
        assert not alive, (
            f"{len(alive)} of {len(self.references)} are still held: {len(alive[0])} bytes"
        )


@attrs.define(eq=False)
class Held:
    """A lease that is kept, or a view of it that outlives it; it must not change."""

    lease: Lease | None
    views: tuple[memoryview, ...]
    content: bytes

    def assert_holds(self) -> None:
        """Nobody may have written there."""
        assert b"".join(self.views) == self.content, "a lease has changed under its holder"


class GroupModel:
    """A group of provided buffers, and the leases that are kept of it."""

    def __init__(self, world: World, ring: uring.Ring, *, count: int, incremental: bool) -> None:
        world.groups.append(self)
        self.group: BufferRing = ring.register_buffer_ring(
            count, size=PART_BYTES, incremental=incremental
        )
        self.incremental = incremental
        self.held: list[Held] = []

    def lease(self, cqe: CQE, policy: int) -> bytes:
        """Take a lease out of a completion; do with it as `policy` says."""
        lease = cqe.result()
        assert isinstance(lease, Lease)
        assert len(lease) == cqe.res
        content = bytes(lease)
        views = lease.views
        if policy == 0:
            lease.release()
        elif policy == 1:
            self.held.append(Held(lease, views, content))
        elif policy == 2 and views:
            self.held.append(Held(None, tuple(view[:] for view in views), content))
            lease.release()
        return content

    def release(self, count: int) -> None:
        """Give the oldest leases back."""
        for held in self.held[:count]:
            for view in held.views if held.lease is None else ():
                view.release()
            if held.lease is not None:
                held.lease.release()
        del self.held[:count]

    def assert_unchanged(self) -> None:
        """What is lent must be as it was."""
        for held in self.held:
            held.assert_holds()

    def assert_holds(self, model: RingModel) -> None:
        """All buffers must be with the kernel, or in our hands."""
        self.assert_unchanged()
        is_used = any(
            isinstance(one, Receiving) and one.group is self for one in model.operations()
        )
        if is_used or self.group.closed or model.ring.cq_ready():
            return
        inside, out = self.group.inside, sum(len(held.views) for held in self.held)
        if self.incremental:
            assert inside + out >= self.group.count >= inside
            assert inside == self.group.count or self.held
        else:
            assert inside + out == self.group.count, (inside, out, self.group.count)


class Receiving(Expected):
    """A read or receive into buffers of a group."""

    group: GroupModel
    policy = 0

    def _allows(self, cqe: CQE) -> bool:
        assert self.channel is not None
        if cqe.res > 0:
            return cqe.buffer_id is not None
        if cqe.res == 0:
            return self.channel.is_shut and not cqe.more
        refused = {-errno.ENOBUFS, -errno.ENOENT} if self.group.group.closed else {-errno.ENOBUFS}
        return cqe.res in refused and not cqe.more

    def effect(self, cqe: CQE) -> None:
        """See `Expected`."""
        assert self.channel is not None
        if cqe.res > 0:
            self.channel.arrived(self.group.lease(cqe, self.policy))

    def unseen(self) -> None:
        """See `Expected`."""
        assert self.channel is not None
        self.channel.is_lossy = True


class Registered:
    """What is registered with a ring: both ends of each channel, the file, memory in parts."""

    def __init__(self, ring: uring.Ring, world: World) -> None:
        ends = [end for channel in world.channels for end in (channel.reader, channel.writer)]
        shut = {
            channel.writer
            for channel in world.channels
            if channel.is_shut and not channel.is_socket
        }
        fds = [-1 if end in shut else end for end in ends]
        ring.register_files([*fds, world.file, -1, -1])
        self.made: list[Fixed] = []
        """Slots that operations have filled."""
        self.slots = {end: Fixed(i) for i, end in enumerate(ends) if end not in shut}
        self.slots[world.file] = Fixed(len(ends))
        part = PART_BYTES + 2 * GUARD
        self.memory = world.memory(bytes([CANARY]) * part * _PARTS)
        buffers = ring.register_buffers([self.memory])
        whole = buffers[0]
        self.parts = [whole[i * part : (i + 1) * part] for i in range(_PARTS)]

    def borrow(self) -> FixedBuffer | None:
        """A part of the registered memory that nobody uses, with guards."""
        return self.parts.pop() if self.parts else None

    def give_back(self, part: FixedBuffer) -> None:
        """It is to be used again."""
        part.view[:] = bytes([CANARY]) * len(part.view)
        self.parts.append(part)

    def end(self) -> None:
        """The ring is closed: the memory must not be pinned any more."""
        self.parts.clear()


class PartTarget(Target):
    """A part of registered memory."""

    __slots__ = ("part",)

    def __init__(self, part: FixedBuffer, size: int) -> None:
        self.size = size
        self.guard = GUARD
        self.memory = part.view
        self.part = part
