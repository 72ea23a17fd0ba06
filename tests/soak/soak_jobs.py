"""What is queued: each maker gives a chain of jobs, and what to do once it was submitted."""

import contextlib
import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

from soak_watch import FILLER, GUARD, FaultError, Guarded
from soak_world import (
    BLOCK,
    CONTENT,
    Job,
    World,
    any_file,
    expect_data,
    expect_res,
    fixed_view,
    nothing,
    waiting_bytes,
)

import uring
from uring import AUTO, CQE, Fixed, SQEFlags, hardlink, link

Action = Callable[[], None]
Made = tuple[list[Job], Action]
Maker = Callable[[World, random.Random], "Made | None"]

_GONE: Final = (errno.ENOENT, errno.EALREADY, errno.EBUSY, errno.ECANCELED)
"""What an operation that aims at another one says when that was faster."""


def nop(world: World, rng: random.Random) -> Made:
    """Nothing, in a completion of 16 or 32 bytes."""
    number = world.number()
    if world.has_big_cqes and rng.random() < 0.5:
        words = number, number ^ 0xFFFFFFFF

        def check(cqe: CQE) -> None:
            if cqe.big_cqe != words:
                raise FaultError(f"the extra words are {cqe.big_cqe}, not {words}")

        return [Job("big nop", number, uring.Nop(user_data=number, big_cqe=words), check)], nothing
    return [Job("nop", number, uring.Nop(user_data=number), expect_res(0))], nothing


def read(world: World, rng: random.Random) -> Made:
    """Some of a file, sometimes in a worker thread."""
    number, size = world.number(), rng.randint(1, 2 * BLOCK)
    offset = rng.randrange(len(CONTENT) - size)
    buffer = Guarded(size)
    flags = SQEFlags.ASYNC if rng.random() < 0.1 else SQEFlags(0)
    op = uring.Read(any_file(world, rng), buffer.view, offset, user_data=number, flags=flags)
    check = expect_data(buffer, CONTENT[offset : offset + size])
    return [Job("read", number, op, check, lambda: world.sample(buffer))], nothing


def read_fixed(world: World, rng: random.Random) -> Made | None:
    """Some of a file into a registered buffer."""
    if not world.pieces:
        return None
    index, number = world.pieces.popleft(), world.number()
    buffer, offset = world.fixed[index], rng.randrange(len(CONTENT) - BLOCK)
    buffer.view[:] = bytes([FILLER]) * BLOCK
    size = rng.randint(1, BLOCK)
    view = fixed_view(world, index)[:size]
    op = uring.ReadFixed(any_file(world, rng), view, offset, user_data=number)
    check = expect_data(buffer, CONTENT[offset : offset + size])
    return [Job("read fixed", number, op, check, lambda: world.pieces.append(index))], nothing


def write_chain(world: World, rng: random.Random) -> Made | None:
    """A write, the fsync behind it, and a read of what was written."""
    if not world.slots:
        return None
    slot, offset = world.slots.popleft(), rng.randrange(len(CONTENT) - BLOCK)
    data, buffer = CONTENT[offset : offset + BLOCK], Guarded(BLOCK)
    one, two, three = world.number(), world.number(), world.number()
    file = world.files.scratch if rng.random() < 0.5 else Fixed(1)
    ops = link(
        uring.Write(file, data, slot * BLOCK, user_data=one),
        uring.Fsync(file, user_data=two),
        uring.Read(file, buffer.view, slot * BLOCK, user_data=three),
    )

    def done() -> None:
        world.sample(buffer)
        world.slots.append(slot)

    return [
        Job("write", one, ops[0], expect_res(BLOCK)),
        Job("fsync", two, ops[1], expect_res(0)),
        Job("read back", three, ops[2], expect_data(buffer, data), done),
    ], nothing


# ---- races ----


class PipeRace:
    """A read of a pipe, against a write and a cancel: the bytes are read, or still there."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.pipe = world, world.pipes.popleft()
        self.number, self.size = world.number(), rng.randint(1, 64)
        offset = rng.randrange(len(CONTENT) - 64)
        self.data = CONTENT[offset : offset + self.size]
        self.written = self.read = 0
        self._lock, self._open_ends = threading.Lock(), 2

    def check(self, cqe: CQE) -> None:
        """Take down how much was read."""
        if cqe.res <= 0:
            raise FaultError(f"a read of a pipe gave {cqe.res}")
        self.read = cqe.res

    def end(self) -> None:
        """Called by the reader and by the writer; the second gives the pipe back."""
        with self._lock:
            self._open_ends -= 1
            if self._open_ends:
                return
        left = waiting_bytes(self.pipe[0])
        if left + self.read != self.written:
            self.world.tally.fault(f"{self.written} written, {self.read} read and {left} left")
        if left:
            os.read(self.pipe[0], left)
        self.world.pipes.append(self.pipe)

    def write(self) -> None:
        """Write what the read waits for."""
        self.written = os.write(self.pipe[1], self.data)

    def act(self, rng: random.Random) -> None:
        """Write and cancel, in any order, by any means."""
        steps: list[Action] = [self.write]
        if rng.random() < 0.8:
            steps.append(lambda: self.cancel(rng))
        rng.shuffle(steps)
        try:
            for step in steps:
                step()
        finally:
            self.end()

    def cancel(self, rng: random.Random) -> None:
        """By number or by file, at once or as an operation."""
        world, kind = self.world, rng.randrange(4)
        if kind == 0:
            with contextlib.suppress(TimeoutError):
                world.ring.cancel(self.number, timeout=1)
        elif kind == 1:
            with contextlib.suppress(TimeoutError):
                world.ring.cancel(fd=self.pipe[0], all=True, timeout=1)
        else:
            number = world.number()
            op = (
                uring.AsyncCancel(self.number, user_data=number)
                if kind == 2
                else uring.AsyncCancelFd(self.pipe[0], target=self.number, user_data=number)
            )
            world.put([Job("cancel", number, op, expect_res(0), outcomes=_GONE)])
            world.submit()


def pipe_race(world: World, rng: random.Random) -> Made | None:
    """See `PipeRace`."""
    if not world.pipes:
        return None
    race, buffer = PipeRace(world, rng), Guarded(64)

    def check(cqe: CQE) -> None:
        race.check(cqe)
        buffer.check(race.data[: cqe.res])

    def done() -> None:
        world.sample(buffer)
        race.end()

    op: uring.Operation = uring.Read(race.pipe[0], buffer.view, user_data=race.number)
    jobs = [Job("pipe race", race.number, op, check, done, (errno.ECANCELED,))]
    if rng.random() < 0.3:
        number = world.number()
        pair = link(op, uring.LinkTimeout(rng.uniform(0.0001, 0.003), user_data=number))
        jobs[0].op = pair[0]
        outcomes = (errno.ETIME, *_GONE)
        jobs.append(Job("link timeout", number, pair[1], expect_res(0), outcomes=outcomes))
    return jobs, lambda: race.act(rng)


def swapped_buffer(world: World, rng: random.Random) -> Made | None:
    """A registered buffer replaced while a read into it waits: the old one gets the data."""
    if not world.pipes or not world.swapped:
        return None
    index, race = world.swapped.popleft(), PipeRace(world, rng)
    old, new = world.fixed[index], Guarded(BLOCK)
    view = fixed_view(world, index)[: race.size]

    def check(cqe: CQE) -> None:
        race.check(cqe)
        old.check(race.data[: cqe.res])
        new.check(b"")

    def act() -> None:
        try:
            world.registered.update(index, [new.memory])
            world.fixed[index] = new
            race.write()
        finally:
            race.end()

    def done() -> None:
        world.sample(old)
        race.end()
        world.swapped.append(index)

    op = uring.ReadFixed(race.pipe[0], view, user_data=race.number)
    # What the poller has not taken by then finds the new buffer, and is not of it.
    outcomes = (errno.EFAULT,) if world.is_polled else ()
    return [Job("swapped buffer", race.number, op, check, done, outcomes)], act


def timeout(world: World, rng: random.Random) -> Made:
    """A timeout that expires, or is removed, or both at once."""
    number, seconds = world.number(), rng.uniform(0.0002, 0.02)
    op = uring.Timeout(seconds, user_data=number)
    if rng.random() < 0.5:
        return [Job("timeout", number, op, expect_res(-errno.ETIME))], nothing
    second = world.number()
    jobs = [
        Job("timeout", number, op, expect_res(-errno.ETIME), outcomes=(errno.ECANCELED,)),
        Job(
            "timeout remove",
            second,
            uring.TimeoutRemove(number, user_data=second),
            expect_res(0),
            outcomes=_GONE,
        ),
    ]
    return jobs, nothing


def multishot_timeout(world: World, rng: random.Random) -> Made:
    """Three expiries; fewer if the completion queue overflows meanwhile."""
    number, seen = world.number(), [0]

    def check(cqe: CQE) -> None:
        seen[0] += 1
        expect_res(-errno.ETIME)(cqe)
        if seen[0] > 3 or (seen[0] == 3 and cqe.more):
            raise FaultError(f"expiry {seen[0]} of 3")

    op = uring.TimeoutMultishot(rng.uniform(0.0002, 0.003), count=3, user_data=number)
    return [Job("multishot timeout", number, op, check)], nothing


def storm(world: World, rng: random.Random) -> Made:
    """Cancel everything, or every read."""
    number = world.number()
    op = (
        uring.AsyncCancelAny(user_data=number)
        if rng.random() < 0.5
        else uring.AsyncCancelOp(uring.Read.opcode, all=True, user_data=number)
    )

    def check(cqe: CQE) -> None:
        if cqe.res < 0:
            raise FaultError(f"cancelling all gave {cqe.res}")

    world.begin_storm(number)
    return [Job("cancel any", number, op, check, lambda: world.end_storm(number))], nothing


# ---- descriptors and tables ----


def descriptor(world: World, rng: random.Random) -> Made:
    """A socket, or the two ends of a pipe."""
    number = world.number()
    op: uring.Operation = (
        uring.Socket(socket.AF_UNIX, user_data=number)
        if rng.random() < 0.5
        else uring.Pipe(user_data=number)
    )

    def check(cqe: CQE) -> None:
        result = cqe.result()
        for fd in result if isinstance(result, tuple) else (result,):
            os.close(fd)

    return [Job("descriptor", number, op, check)], nothing


def direct(world: World, rng: random.Random) -> Made:
    """A file opened into a slot; then it is read there, and taken out of it."""
    number = world.number()

    def check(cqe: CQE) -> None:
        slot = cqe.result()
        if not isinstance(slot, Fixed) or not 8 <= slot.index < 32:
            raise FaultError(f"a file in slot {slot}")
        world.todo.append(_use_direct(world, slot, size))

    size = rng.randint(1, BLOCK)
    op = uring.Openat(world.files.path, slot=AUTO, user_data=number)
    return [Job("direct open", number, op, check, outcomes=(errno.ENFILE,))], nothing


def _use_direct(world: World, slot: Fixed, size: int) -> list[Job]:
    one, two, three = world.number(), world.number(), world.number()
    buffer = Guarded(size)
    ops = hardlink(
        uring.Read(slot, buffer.view, 0, user_data=one),
        uring.FixedFdInstall(slot, user_data=two),
        uring.Close(slot, user_data=three),
    )

    def close(cqe: CQE) -> None:
        fd = cqe.result()
        if not isinstance(fd, int) or os.pread(fd, size, 0) != CONTENT[:size]:
            raise FaultError(f"the wrong file was installed as {fd}")
        os.close(fd)

    check = expect_data(buffer, CONTENT[:size])
    return [
        Job("direct read", one, ops[0], check, lambda: world.sample(buffer)),
        Job("install", two, ops[1], close),
        Job("direct close", three, ops[2], expect_res(0)),
    ]


def swapped_file(world: World, rng: random.Random) -> Made:
    """Replace a registered file by itself, while it is being read."""
    world.ring.register_files_update(rng.choice([2, 3]), [world.files.content])
    return read(world, rng)


def message(world: World, rng: random.Random) -> Made | None:
    """A completion that comes from outside."""
    number, res = world.number(), rng.randrange(2**31)
    job = Job("message", number, None, expect_res(res), storms=world.storms)
    world.outstanding[number] = job
    world.tally.expect(1)
    world.ring.send_message(world.ring, target_user_data=number, target_res=res)
    return None


def failing(world: World, rng: random.Random) -> Made:
    """What fails at once."""
    number = world.number()
    op: uring.Operation = rng.choice(
        [
            uring.Openat("/no/such/file", user_data=number),
            uring.Close(Fixed(60), user_data=number),
            uring.Read(Fixed(63), bytearray(8), user_data=number),
        ]
    )
    wanted = errno.ENOENT if isinstance(op, uring.Openat) else errno.EBADF

    def check(cqe: CQE) -> None:
        if cqe.error is None or cqe.error.errno != wanted:
            raise FaultError(f"the error is {cqe.error!r}")

    return [Job("failing", number, op, check)], nothing


# ---- tens of thousands in flight ----


def flood(world: World, rng: random.Random, count: int) -> None:
    """Reads of four bytes from one pipe; half of them get a word, and the others are cancelled."""
    ends = os.pipe()
    world.descriptors.update(ends)
    seen: set[bytes] = set()
    left = [count + 1]
    written = bytearray()

    def one_less() -> None:
        left[0] -= 1
        if not left[0]:
            _settle_flood(world, ends, bytes(written), seen)

    def done_with(buffer: Guarded) -> Action:
        def done() -> None:
            world.sample(buffer)
            one_less()

        return done

    def check_of(buffer: Guarded) -> Callable[[CQE], None]:
        def check(cqe: CQE) -> None:
            expect_res(4)(cqe)
            word = bytes(buffer.memory[GUARD : GUARD + 4])
            if word in seen:
                raise FaultError(f"the word {word.hex()} came twice")
            seen.add(word)

        return check

    for _ in range(count):
        number, buffer = world.number(), Guarded(4)
        op = uring.Read(ends[0], buffer.view, user_data=number)
        outcomes = (errno.ECANCELED,)
        job = Job("flood", number, op, check_of(buffer), done_with(buffer), outcomes)
        world.put([job])
    world.submit()
    words = min(count // 2, 8192)
    written += CONTENT[: os.write(ends[1], CONTENT[: 4 * words])]
    if rng.random() < 0.5:
        with contextlib.suppress(TimeoutError):
            world.ring.cancel(fd=ends[0], all=True, timeout=5)
    number = world.number()
    cancel = uring.AsyncCancelFd(ends[0], all=True, user_data=number)

    def check_count(cqe: CQE) -> None:
        if not 0 <= cqe.res <= count:
            raise FaultError(f"{cqe.res} of {count} were cancelled")

    world.put([Job("cancel", number, cancel, check_count, one_less)])
    world.submit()


def _settle_flood(world: World, ends: tuple[int, int], written: bytes, seen: set[bytes]) -> None:
    left = waiting_bytes(ends[0])
    rest = os.read(ends[0], left) if left else b""
    came = b"".join(sorted(seen, key=lambda word: struct.unpack("=I", word)))
    words = sorted(struct.unpack(f"={len(came + rest) // 4}I", came + rest))
    if struct.pack(f"={len(words)}I", *words) != written:
        world.tally.fault(f"of {len(written)} bytes {len(came)} were read and {left} are left")
    world.descriptors.difference_update(ends)
    for end in ends:
        os.close(end)


MAKERS: Final[dict[Maker, int]] = {
    nop: 10,
    read: 14,
    read_fixed: 8,
    write_chain: 4,
    pipe_race: 10,
    swapped_buffer: 3,
    timeout: 5,
    multishot_timeout: 2,
    storm: 1,
    descriptor: 3,
    direct: 4,
    swapped_file: 2,
    message: 3,
    failing: 2,
}
