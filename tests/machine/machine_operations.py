"""
Operations to be queued, each with what may come of it.

A builder makes one of two numbers that somebody draws: `a` says which of a kind, `b` how. It
returns None where there is nothing of that kind to be done at the moment.
"""

import errno
import os
import socket
from typing import Final

import attrs
from machine_model import Cancelling, Comparing, Dropped, Expected, Reading, RingModel, Writing
from machine_words import GUARD, WORD, Channel
from machine_world import (
    FILE_BYTES,
    PART_BYTES,
    GroupModel,
    PartTarget,
    Receiving,
    Registered,
    World,
)

import uring
from uring import Fixed, SQEFlags

ASYNC: Final = SQEFlags.ASYNC
NO_FLAGS: Final = SQEFlags(0)
_ENDED: Final = frozenset({0, -errno.ENOENT, -errno.EALREADY})


@attrs.define(eq=False)
class Place:
    """A ring with what belongs to it alone."""

    world: World
    model: RingModel
    registered: Registered
    groups: list[GroupModel]

    def channel(self, number: int) -> Channel:
        """One of the channels."""
        return self.world.channels[number % len(self.world.channels)]

    def file(self, fd: int, *, is_fixed: int) -> int | Fixed:
        """A file as it is, or as a registered one."""
        return self.registered.slots.get(fd, fd) if is_fixed else fd

    def live(self, number: int, kind: type[Expected] = Expected) -> Expected | None:
        """One of the operations in flight, of this kind; None when there is none."""
        found = [one for one in self.model.operations() if isinstance(one, kind)]
        return found[number % len(found)] if found else None


# ---- reading and writing ----


def nop(_place: Place, a: int, b: int) -> Expected:
    """Nothing, or a failure that is asked for."""
    if a % 4 == 3:
        res = -(b % 100 + 1)
        return Expected(uring.Nop(res=res), frozenset({res}))
    return Expected(uring.Nop(flags=ASYNC if a % 8 == 4 else NO_FLAGS))


def read(place: Place, a: int, b: int) -> Expected:
    """Read from a channel, in one of the ways that there are."""
    channel = place.channel(a)
    kind, way = b % 8, b // 8
    size = WORD * (1 + way % 16)
    fd = place.file(channel.reader, is_fixed=way & 1)
    flags = ASYNC if b % 64 == 63 else NO_FLAGS
    if kind == 4:
        part = place.registered.borrow()
        if part is not None:
            return _read_part(place, channel, PartTarget(part, size), fd)
    guard = 0 if kind == 1 else GUARD
    targets = [place.world.target(size, guard=guard) for _ in range(1 + (kind in {2, 3}))]
    lent = [target.lend() for target in targets]
    op: uring.Operation
    if kind == 2:
        op = uring.Readv(fd, lent, flags=flags)
    elif kind == 3 and channel.is_socket:
        op = uring.Recvmsg(fd, lent)
    elif kind == 5 and channel.is_socket:
        op = uring.Recv(fd, lent[0], socket.MSG_WAITALL, flags=flags)
    elif kind == 3:
        op = uring.Readv(fd, lent)
    elif kind == 6 and channel.is_socket:
        op = uring.Recv(fd, lent[0], flags=flags)
    else:
        op = uring.Read(fd, lent[0], flags=flags)
    cls = Dropped if kind == 7 else Reading
    return cls(
        op,
        fd=channel.reader,
        targets=targets,
        lent=[target.own() for target in targets if not guard],
        channel=channel,
    )


class _Borrowing(Reading):
    """A read into a part of registered memory."""

    registered: Registered

    def let_go(self) -> None:
        """See `Expected`."""
        (target,) = self.targets
        assert isinstance(target, PartTarget)
        self.targets = []
        self.registered.give_back(target.part)


def _read_part(place: Place, channel: Channel, target: PartTarget, fd: int | Fixed) -> Expected:
    op = uring.ReadFixed(fd, target.part[GUARD : GUARD + target.size], offset=-1)
    one = _Borrowing(op, fd=channel.reader, targets=[target], channel=channel)
    one.registered = place.registered
    return one


def write(place: Place, a: int, b: int) -> Expected | None:
    """Write to a channel, in one of the ways that there are."""
    channel = place.channel(a)
    if channel.is_shut or not channel.is_roomy:
        return None
    kind, way = b % 8, b // 8
    planned = channel.plan(place.world.next_write(), 1 + way % 48)
    memory = place.world.memory(planned.content())
    middle = len(memory) // 8 * WORD
    halves = [memoryview(memory)[:middle], memoryview(memory)[middle:]]
    fd = place.file(channel.writer, is_fixed=way & 1)
    flags = ASYNC if b % 64 == 63 else NO_FLAGS
    op: uring.Operation
    is_zero_copy = False
    lent = [memory]
    if kind == 1 or (kind == 2 and channel.is_socket):
        op = uring.Writev(fd, halves, flags=flags) if kind == 1 else uring.Sendmsg(fd, halves)
        lent = []  # the views pin it, too
    elif kind == 3 and channel.is_socket:
        op = uring.Send(fd, memory, flags=flags)
    elif kind in {4, 5} and channel.is_socket and not place.model.was_drained:
        op = uring.SendZc(fd, memory)
        is_zero_copy = True
    else:
        op = uring.Write(fd, memory, flags=flags)
    one = Writing(op, fd=channel.writer, channel=channel, write=planned)
    one.is_multishot = is_zero_copy
    one.lent = lent
    if channel.kind == "socket" and is_zero_copy:
        one.results = frozenset({-errno.EOPNOTSUPP})
    return one


class FileWriting(Expected):
    """A write to a part of the file that is its own."""

    content: bytes = b""
    offset = 0
    world: World

    def _allows(self, cqe: uring.CQE) -> bool:
        return cqe.res == len(self.content)

    def effect(self, cqe: uring.CQE) -> None:
        """See `Expected`."""
        if cqe.res > 0:
            self.world.known.append((self.offset, self.content))


def file(place: Place, a: int, b: int) -> Expected | None:
    """Write, read or sync the file."""
    world, kind = place.world, a % 4
    fd = place.file(world.file, is_fixed=b & 1)
    size = 1 + b % PART_BYTES
    if kind == 0:
        return Expected(uring.Fsync(fd, datasync=bool(b & 2)), fd=world.file)
    if kind == 1:
        content = bytes([b % 251]) * size
        memory = world.memory(content)
        one = FileWriting(uring.Write(fd, memory, world.file_end), fd=world.file, lent=[memory])
        one.content, one.offset, one.world = content, world.file_end, world
        world.file_end += size
        return one
    offset, content = world.known[b % len(world.known)]
    start = b * 7 % len(content) if len(content) == FILE_BYTES else 0
    content = content[start : start + size]
    if kind == 2:
        target = world.target(len(content))
        op: uring.Operation = uring.Read(fd, target.lend(), offset + start)
        reading = Comparing(op, fd=world.file, targets=[target])
    else:
        part = place.registered.borrow()
        if part is None:
            return None
        target = PartTarget(part, len(content))
        lent = part[GUARD : GUARD + len(content)]
        reading = _ComparingPart(uring.ReadFixed(fd, lent, offset + start), fd=world.file)
        reading.targets, reading.registered = [target], place.registered
    reading.content = content
    return reading


class _ComparingPart(Comparing, _Borrowing):
    """The same into registered memory."""


# ---- waiting ----


def timeout(place: Place, a: int, b: int) -> Expected | None:
    """Wait for time, or for completions; end or change such a wait."""
    kind = a % 6
    if kind == 0:
        return Expected(uring.Timeout(b % 4 * 0.0005), frozenset({-errno.ETIME}))
    if kind == 1:
        op = uring.Timeout(1000.0, count=b % 4)
        return _Long(op, frozenset({-errno.ETIME, 0} if b % 4 else {-errno.ETIME}))
    if kind == 2:
        multi = uring.TimeoutMultishot(0.0005, count=1 + b % 4)
        return Expected(multi, frozenset({-errno.ETIME}), is_multishot=True)
    target = place.live(b, _Long)
    if target is None:
        return None
    number = target.number
    if kind == 3:
        return Expected(uring.TimeoutUpdate(number, b % 4 * 0.001), _ENDED)
    return Cancelling(uring.TimeoutRemove(number), _ENDED, finds=lambda one: one.number == number)


class _Long(Expected):
    """A timeout that ends when somebody ends it."""


def poll(place: Place, a: int, b: int) -> Expected:
    """Wait until a channel can be read."""
    channel = place.channel(a)
    fd = place.file(channel.reader, is_fixed=b & 1)
    is_multishot = bool(b & 2)
    op = uring.PollMultishot(fd) if is_multishot else uring.PollAdd(fd)
    return _Polling(op, fd=channel.reader, is_multishot=is_multishot)


class _Polling(Expected):
    """A poll of what others read from, too."""

    def _allows(self, cqe: uring.CQE) -> bool:
        return cqe.res > 0


def futex(place: Place, a: int, b: int) -> Expected:
    """Wait for a word in memory, or wake who does."""
    word = memoryview(place.world.futex)[:4]
    if a % 3 == 0:
        return _Waking(uring.FutexWake(word, 1 + b % 3))
    if a % 3 == 1:
        return Expected(uring.FutexWait(word, 1), frozenset({-errno.EAGAIN}))
    return Expected(uring.FutexWait(word, 0))


class _Waking(Expected):
    """It wakes whom it finds."""

    def _allows(self, cqe: uring.CQE) -> bool:
        return 0 <= cqe.res <= 3


# ---- cancelling ----


def cancel(place: Place, a: int, b: int) -> Expected | None:
    """Cancel by number, by file, by opcode, or everything."""
    kind = a % 5
    if kind == 0:
        return Cancelling(uring.AsyncCancelAny(), finds=lambda _one: True)
    if kind == 1:
        channel = place.channel(b)
        if channel.is_shut:
            return None
        fd = channel.reader if b & 64 else channel.writer
        file_ = place.file(fd, is_fixed=b & 32)
        cancelling = uring.AsyncCancelFd(file_, all=bool(b & 16))
        closed = frozenset({-errno.EBADF})  # by the time that it is submitted
        return Cancelling(cancelling, closed, finds=lambda one: one.fd == fd)
    target = place.live(b)
    if target is None:
        return None
    if kind == 2 and target.op is not None:
        opcode = target.op.opcode
        op = uring.AsyncCancelOp(opcode, all=bool(b & 1))
        return Cancelling(op, finds=lambda one: one.op is None or one.op.opcode == opcode)
    number = target.number
    by_number = uring.AsyncCancel(number, all=bool(b & 1))
    return Cancelling(by_number, finds=lambda one: one.number == number)


# ---- making descriptors ----


def maker(place: Place, a: int, b: int) -> Expected | None:  # noqa: PLR0911 - one for each kind
    """Make a descriptor, or a registered file; or close one of those."""
    world, kind = place.world, a % 8
    if kind == 0:
        return Expected(uring.Openat(world.path), makes_descriptor=True)
    if kind == 1:
        return Expected(uring.Openat(world.path + "-"), frozenset({-errno.ENOENT}))
    if kind == 2:
        return Expected(uring.Socket(socket.AF_UNIX), makes_descriptor=True)
    if kind == 3:
        return _Piping(uring.Pipe())
    if kind == 4:
        op = uring.Accept(world.listener)
        return Expected(op, fd=world.listener.fileno(), makes_descriptor=True)
    if kind == 5:
        return _accepting(world)
    if kind == 6:
        one = _Filling(uring.Openat(world.path, slot=uring.AUTO), frozenset({-errno.ENFILE}))
        one.registered = place.registered
        return one
    made = place.registered.made
    if not made:
        return None
    return _Closing(uring.Close(made.pop(b % len(made))))


def _accepting(world: World) -> Expected:
    return Expected(
        uring.AcceptMultishot(world.listener),
        fd=world.listener.fileno(),
        is_multishot=True,
        makes_descriptor=True,
    )


class _Piping(Expected):
    """It makes two descriptors, which stand in its memory."""

    def effect(self, cqe: uring.CQE) -> None:
        """See `Expected`."""
        if cqe.res == 0:
            for fd in cqe.result():
                assert fd > 2
                os.close(fd)


class _Filling(Expected):
    """It fills a slot of the table of registered files."""

    registered: Registered

    def _allows(self, cqe: uring.CQE) -> bool:
        return cqe.res >= 0

    def effect(self, cqe: uring.CQE) -> None:
        """See `Expected`."""
        if cqe.res >= 0:
            slot = cqe.result()
            assert isinstance(slot, Fixed)
            assert slot not in self.registered.slots.values()
            self.registered.made.append(slot)


class _Closing(Expected):
    """It empties a slot that is filled."""


# ---- groups of buffers, messages ----


def receive(place: Place, a: int, b: int) -> Expected | None:
    """Receive into a group of provided buffers."""
    if not place.groups:
        return None
    group = place.groups[b % len(place.groups)]
    if group.group.closed:
        return None
    return receiving(place, group, a, b // 2)


def receiving(place: Place, group: GroupModel, a: int, b: int) -> Receiving:
    """The same from this group."""
    channel = place.channel(a)
    kind, buffers = b % 5, group.group
    if group.incremental and kind in {1, 2}:
        kind = 0  # not looked into yet: what of an incremental buffer a bundle is about
    if group.incremental and place.model.was_drained:  # nothing else goes with it then
        sockets = [one for one in place.world.channels if one.is_socket]
        channel, kind = sockets[a % len(sockets)], 4
    if kind == 2 and place.model.was_drained:  # a worker would take buffers that are not together
        kind = 1
    fd = place.file(channel.reader, is_fixed=b & 1)
    op: uring.Operation
    if kind == 0:
        op = (
            uring.ReadMultishot(fd, buffers, offset=-1)
            if not channel.is_socket
            else (uring.RecvMultishot(fd, buffers))
        )
    elif kind == 1 and channel.is_socket:
        op = uring.RecvBundleMultishot(fd, buffers)
    elif kind == 2 and channel.is_socket:
        op = uring.RecvBundle(fd, buffers)
    elif kind == 3 and channel.is_socket:
        op = uring.RecvSelect(fd, buffers)
    elif channel.is_socket:
        op = uring.RecvMultishot(fd, buffers)
    elif group.incremental:  # single reads do not go with it
        op = uring.ReadMultishot(fd, buffers, offset=-1)
    else:
        op = uring.ReadSelect(fd, buffers, offset=-1)
    is_multishot = isinstance(
        op, uring.RecvMultishot | uring.RecvBundleMultishot | uring.ReadMultishot
    )
    one = Receiving(op, fd=channel.reader, channel=channel, is_multishot=is_multishot)
    one.group, one.policy, one.is_leased = group, b // 5 % 4, True
    return one


def message(place: Place, target: RingModel, b: int) -> Expected | None:
    """Send a message to a ring."""
    number = place.world.next_number()
    op = uring.MsgRing(target.ring, target_user_data=number, target_res=b)
    return _Messaging(op, target=target, message=number)


@attrs.define(eq=False, repr=False)
class _Messaging(Expected):
    """A message, which may come from when it is queued."""

    target: RingModel | None = None
    message: int = 0

    def __attrs_post_init__(self) -> None:
        assert self.target is not None
        self.target.outside[self.message] += 1

    def _allows(self, _cqe: uring.CQE) -> bool:
        return self.target is not None and self.target.is_closed

    def effect(self, cqe: uring.CQE) -> None:
        """See `Expected`."""
        assert self.target is not None
        if cqe.res == 0:
            self.target.owed.add(self.message)


def link_timeout(b: int) -> Expected:
    """What ends the operation before it in a chain."""
    results = frozenset({-errno.ETIME, -errno.ENOENT, -errno.EALREADY})
    return Expected(uring.LinkTimeout(b % 8 * 0.0005), results, may_cancel=True)


def streamed(place: Place, a: int, b: int) -> Expected | None:
    """What posts several times."""
    kind = a % 4
    if kind == 0:
        return timeout(place, 2, b)
    if kind == 1:
        return poll(place, a, b | 2)
    if kind == 2:
        return _accepting(place.world)
    channel = place.channel(b)
    return receive(place, place.world.channels.index(channel), b & 3)


def shares(one: Expected) -> bool:
    """Whether others may have its number: of several nobody can tell which one has ended."""
    if isinstance(one.op, uring.Recvmsg) or one.is_notifying:  # only they explain their results
        return False
    return type(one) in {Reading, Writing, Comparing, FileWriting} or isinstance(one.op, uring.Nop)


OTHERS: Final = (nop, file, timeout, poll, futex, maker)
