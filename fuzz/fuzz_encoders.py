"""
Operations, batches and their like, of fields of any kind, encoded and queued; never submitted.

Whatever comes in: it is refused with TypeError, ValueError, OSError or a UringError, or with what
the value itself has raised; and a refusal leaves the ring as it was. What is accepted is encoded
as it says, with its buffers pinned, and once the ring is closed everything is let go of.
"""

import gc
import inspect
from collections.abc import Callable
from typing import Any, Final

import attrs
from source import (
    SMALL_MAX,
    TEXTS,
    Input,
    MischiefError,
    World,
    addresses,
    anything,
    buffers,
    files,
    indexes,
    paths,
    run,
    sequences,
    small_descriptors,
)

import uring
from uring import SQE, FutexFlags, Opcode, SQEFlags, _memory
from uring._ffi import ffi
from uring.sqe import UINT64_MAX

REFUSALS: Final = (
    *(TypeError, ValueError, OSError, uring.UringError, MischiefError),
    NotImplementedError,  # of a memoryview of several dimensions that is gone through
)
DESCRIPTORS: Final = small_descriptors()
OPERATIONS: Final = [
    value
    for value in vars(uring.operations).values()
    if inspect.isclass(value) and issubclass(value, uring.Operation) and "opcode" in dir(value)
]
ADDED: Final = int(SQEFlags.FIXED_FILE | SQEFlags.BUFFER_SELECT)
SAYS_ELSEWHERE: Final = (uring.Close, uring.EpollCtl, uring.Nop, uring.AsyncCancelFd)
"""What does not name its file in ``sqe->fd``, or a slot with FIXED_FILE."""
# A number in one of these is an amount of memory; more than this is refused, or costs just that.
AMOUNTS: Final = {"ancbufsize", "maxevents", "optlen", "size"}


def some_files(world: World) -> Any:
    """A file, or nearly one."""
    number = world.source.pick([*DESCRIPTORS, -1, 2**31 - 1])
    return world.source.pick([number, uring.Fixed(world.source.below(9)), files(world), None])


def some_paths(world: World) -> Any:
    """A path, or nearly one."""
    source = world.source
    return source.pick([source.pick(TEXTS), b"a", paths(world), source.integer()])


def some_control(world: World) -> Any:
    """Control data."""
    source = world.source
    count = source.below(4)
    return [(source.integer(), source.integer(), source.take(9)) for _ in range(count)]


def some_waiters(world: World) -> Any:
    """Those of a wait for several futexes."""
    number = world.source.integer
    flags = FutexFlags(world.source.below(8))
    return [uring.FutexWaiter(buffers(world), number(), futex_flags=flags) for _ in range(2)]


WANTED: Final[dict[str, Callable[[World], Any]]] = {
    **dict.fromkeys(("fd", "fd_in", "fd_out", "epfd", "ring"), some_files),
    **dict.fromkeys(("dir_fd", "old_dir_fd", "new_dir_fd"), some_files),
    **dict.fromkeys(("buffer", "word"), buffers),
    "buffers": lambda world: [buffers(world) for _ in range(world.source.below(4))],
    **dict.fromkeys(("path", "oldpath", "newpath", "target", "linkpath", "name"), some_paths),
    "address": lambda world: world.source.pick([addresses(world), True, None]),
    "ancillary": some_control,
    **dict.fromkeys(
        ("slot", "source"),
        lambda world: world.source.pick([uring.Fixed(world.source.below(9)), uring.AUTO, None]),
    ),
    "fds": lambda world: [
        world.source.pick([*DESCRIPTORS, -1, files(world)]) for _ in range(world.source.below(4))
    ],
    "waiters": some_waiters,
    "flags": lambda world: SQEFlags(world.source.byte() & 0x7F),
    "seconds": lambda world: world.source.pick([0, 1.5, 1e-9, 2.0**33, None]),
    **dict.fromkeys(AMOUNTS, lambda world: world.source.below(SMALL_MAX)),
    "target_opcode": lambda world: world.source.pick(list(Opcode)),
}


def plausible(world: World, name: str) -> Any:
    """What the field of this name wants, by and large."""
    source = world.source
    wanted = WANTED.get(name)
    if wanted is not None:
        return wanted(world)
    return source.pick([source.integer(), source.byte(), None, indexes(world), True])


def fields_of(world: World, cls: type[Any]) -> dict[str, Any]:
    """Values for the fields of a class: what must be given, and some of the rest."""
    source = world.source
    given = {}
    for field in attrs.fields(cls):
        if not field.init or (field.default is not attrs.NOTHING and source.chance(70)):
            continue
        is_wild = source.chance(15) and field.name not in AMOUNTS
        given[field.name] = anything(world) if is_wild else plausible(world, field.name)
    return given


def state(ring: uring.Ring) -> tuple[object, ...]:
    """What a refusal must leave as it was."""
    if ring.closed:
        return ()
    sqes = ffi.buffer(ring._shim.sqes, 8 * 64)[:]
    return ring.sq_ready(), ring.in_flight, ring.cq_ready(), ring.sq.tail, ring.sq.head, sqes


def check_buffer(op: Any, sqe: SQE) -> None:
    """The kernel gets the address of the buffer, no more than it has, and nobody can resize it."""
    buffer = getattr(op, "buffer", None)
    if buffer is None:
        return
    if isinstance(buffer, uring.FixedBuffer):
        buffer = buffer.view
    pin, address, length = _memory.span(buffer, write=False)
    del pin
    assert sqe.addr == address
    if isinstance(op, uring.ProvideBuffers):
        assert sqe.fd * sqe.len <= length
    else:
        assert sqe.len <= length
    if isinstance(buffer, bytearray):
        try:
            buffer.append(0)
        except BufferError:
            return
        raise AssertionError(f"{op!r} does not pin its buffer")


def check_queued(world: World, op: Any, number: int) -> None:
    """The record of an operation says what its fields say."""
    record = world.ring._pending[-1]
    assert record[0] == number
    assert len(record[1]) in {64, 128}
    if len(record[1]) == 128:
        assert uring.SetupFlags.SQE128 in world.ring.flags
    sqe = SQE.decode(record[1][:64], number)
    assert sqe.encode()[:32] == record[1][:32]
    assert sqe.encode()[40:] == record[1][40:64]
    assert 0 <= number <= UINT64_MAX
    assert sqe.opcode == op.opcode
    if type(op.flags) in {int, SQEFlags}:
        assert int(op.flags) & ~int(sqe.flags) == 0
        assert int(sqe.flags) & ~ADDED & ~int(op.flags) == 0
    if type(op.personality) is int:
        assert sqe.personality == op.personality
    fd = getattr(op, "fd", None)
    check_buffer(op, sqe)
    if isinstance(op, SAYS_ELSEWHERE):
        return
    if isinstance(fd, uring.Fixed):
        assert (sqe.fd, sqe.flags & SQEFlags.FIXED_FILE) == (fd.index, SQEFlags.FIXED_FILE)
    elif type(fd) is int:
        assert sqe.fd == fd
        if type(op.flags) in {int, SQEFlags}:
            assert not int(sqe.flags) & ADDED & ~int(op.flags) & SQEFlags.FIXED_FILE


def queue_one(world: World, made: list[Any]) -> None:
    """Make an operation and queue it, or be refused."""
    ring, source = world.ring, world.source
    before = state(ring)
    try:
        op = source.pick(OPERATIONS)
        op = op(**fields_of(world, op))
        if source.chance(10):
            op = source.pick([type(op).linked, type(op).hard_linked, type(op).drained])(op)
        number = source.pick([None, None, None, source.integer(), indexes(world)])
        count = ring.in_flight if not world.is_disturbed else 0
        number = ring.queue(op, user_data=number)
    except REFUSALS:
        assert world.is_disturbed or state(ring) == before
        return
    made.append(op)
    if not world.is_disturbed:
        assert ring.in_flight == count + 1
        check_queued(world, op, number)
    if source.chance(10):
        look_at(op)


def look_at(op: Any) -> None:
    """A repr, a comparison, and the record by itself."""
    try:
        repr(op)
        assert op == op or op != op  # noqa: PLR0124 - whatever its fields answer
        op.sqe(5)
        hash(op)
    except REFUSALS:
        return


def queue_all(world: World, made: list[Any]) -> None:
    """All or none of several."""
    ring, source = world.ring, world.source
    before = state(ring)
    try:
        ops = [
            cls(**fields_of(world, cls))
            for cls in (source.pick(OPERATIONS) for _ in range(source.below(5)))
        ]
        ring.queue_all(source.pick([ops, uring.link(*ops), iter(ops), sequences(world)]))
    except REFUSALS:
        assert world.is_disturbed or state(ring) == before
        return
    made += ops


def batch(world: World, made: list[Any]) -> None:
    """A batch of operations or of columns; each part lies in its buffer."""
    source = world.source
    kind = source.pick([uring.Batch, uring.ReadMany, uring.WriteMany, uring.StatxMany])
    try:
        if kind is uring.Batch:
            classes = [source.pick(OPERATIONS) for _ in range(source.below(5))]
            made.append(kind([cls(**fields_of(world, cls)) for cls in classes]))
        elif kind is uring.StatxMany:
            names = [source.pick([*TEXTS, b"a", paths(world)]) for _ in range(source.below(5))]
            made.append(kind(source.pick([names, sequences(world)])))
        else:
            many(world, kind, made)
    except REFUSALS:
        return


def column(world: World, count: int) -> Any:
    """A column of integers."""
    source = world.source
    numbers = [source.pick([source.below(64), source.integer()]) for _ in range(count)]
    if source.chance(30):
        return sequences(world) if source.chance(30) else indexes(world)
    return source.pick([numbers, tuple(numbers), memoryview(bytes(source.below(64))).cast("h")])


def many(world: World, kind: type[Any], made: list[Any]) -> None:
    """Many reads or writes at once."""
    source = world.source
    count = source.below(6)
    whole = buffers(world)
    buffer = source.pick([whole, [buffers(world) for _ in range(count)], sequences(world)])
    fd = source.pick([DESCRIPTORS[0], uring.Fixed(3), files(world), column(world, count)])
    lengths = source.pick([None, source.below(64), column(world, count), source.integer()])
    made.append(kind(fd, buffer, column(world, count), lengths))
    if world.is_disturbed or buffer is not whole:
        return
    pin, address, length = _memory.span(whole, write=False)
    del pin
    encoded = ffi.buffer(made[-1]._sqes)[:]
    for place in range(0, len(encoded), 64):
        sqe = SQE.decode(encoded[place : place + 64])
        assert address <= sqe.addr
        assert sqe.addr + sqe.len <= address + length


def look(world: World) -> None:
    """Calls that neither submit nor wait."""
    source = world.source
    calls = [
        world.ring.peek_cqes,
        world.ring.copy_cqes,
        world.ring.cq_advance,
        world.ring.unregister_files,
        uring.SQE,
        uring.Sockaddr,
        uring.Fixed,
        uring.Completions,
    ]
    try:
        source.pick(calls)(anything(world))
    except REFUSALS:
        return


def one_input(encoded: bytes) -> None:
    """What the input says, and the end: nothing is held any more."""
    world = World(Input(encoded), DESCRIPTORS)
    made: list[Any] = []
    steps = [queue_one] * 6 + [queue_all, batch]
    for _ in range(16):
        if not world.source:
            break
        if world.source.chance(10):
            look(world)
        else:
            world.source.pick(steps)(world, made)
    world.close()
    made.clear()
    for _ in range(3):  # what is unreachable, and what becomes so by that
        gc.collect()
    for buffer in world.buffers:
        buffer.append(0)  # BufferError if somebody still has a pin of it


if __name__ == "__main__":
    run(one_input)
