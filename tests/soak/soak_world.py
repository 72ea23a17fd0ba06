"""
One ring under load, and what its operations work on: files, pipes, registered things, buffers.

A `Job` is one operation with what its completion has to be. Whoever copies completions out hands
them to `World.end()`, which looks each up by its number.
"""

import array
import contextlib
import errno
import fcntl
import itertools
import os
import random
import struct
import tempfile
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from soak_watch import GUARD, FaultError, Guarded, Tally

import uring
from uring import Fixed, SetupFlags

ENTRIES: Final = 64
BLOCK: Final = 4096
SLOTS: Final = 32
"""Blocks of the scratch file, each of which one chain writes and reads at a time."""

CONTENT: Final = array.array("I", range(1 << 18)).tobytes()
"""1 MiB in which no two words are the same."""

KEPT_SAMPLES: Final = 400

SHAPES: Final = {
    "default": SetupFlags(0),
    "defer": SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN,
    "sqpoll": SetupFlags.SQPOLL,
    "mixed": SetupFlags.CQE_MIXED,
    "wide": SetupFlags.SQE128 | SetupFlags.CQE32,
    "sqpoll mixed": SetupFlags.SQPOLL | SetupFlags.CQE_MIXED,
    "coop": SetupFlags.COOP_TASKRUN | SetupFlags.TASKRUN_FLAG,
    "defer mixed": SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN | SetupFlags.CQE_MIXED,
}


def nothing() -> None:
    """Do nothing."""


@dataclass(slots=True, eq=False)
class Job:
    """One operation, and what is to become of it."""

    kind: str
    number: int
    op: uring.Operation | None
    """None: a message that comes from elsewhere."""
    check: Callable[[uring.CQE], None]
    """Called for each completion that is not among `outcomes`; raises `FaultError`."""
    done: Callable[[], None] = nothing
    """Called once it has ended, in whatever way: gives back what it used."""
    outcomes: tuple[int, ...] = ()
    """Errors that are as good as success."""
    storms: int = 0


class Files:
    """What all rings read and write."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="soak-")
        self.path = Path(self._directory.name, "content")
        self.path.write_bytes(CONTENT)
        self.content = os.open(self.path, os.O_RDONLY)
        self.scratch = os.open(Path(self._directory.name, "scratch"), os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.scratch, SLOTS * BLOCK)

    def close(self) -> None:
        """Remove them."""
        os.close(self.content)
        os.close(self.scratch)
        self._directory.cleanup()


class World:
    """One ring, its tables, and what is in flight."""

    def __init__(self, tally: Tally, files: Files, shape: str, seed: str) -> None:
        self.tally, self.files, self.shape, self.seed = tally, files, shape, seed
        flags = SHAPES[shape]
        mixed = bool(flags & SetupFlags.CQE_MIXED)
        self.cq_entries = ENTRIES * (4 if mixed else 2)
        self.is_owned = bool(flags & SetupFlags.SINGLE_ISSUER)
        self.is_polled = bool(flags & SetupFlags.SQPOLL)
        self.has_big_cqes = mixed or bool(flags & SetupFlags.CQE32)
        self.stopping = threading.Event()
        self.drained = threading.Event()
        self.is_closing = False
        self.outstanding: dict[int, Job] = {}
        self.todo: deque[list[Job]] = deque()
        """What follows from what has ended."""
        self.samples: list[Guarded] = []
        """Buffers that nothing may hold any more."""
        self.storms = 0
        self._storming: set[int] = set()
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Make the ring and its tables; the calling thread owns it if any does."""
        self.ring = uring.Ring(ENTRIES, flags=SHAPES[self.shape], cq_entries=self.cq_entries)
        ring, files = self.ring, self.files
        ring.register_files_sparse(64)
        ring.register_files_update(0, [files.content, files.scratch, files.content, files.content])
        ring.register_file_alloc_range(8, count=24)
        self.fixed = [Guarded(BLOCK) for _ in range(12)]
        self.registered = ring.register_buffers([each.memory for each in self.fixed])
        self.pieces = deque(range(8))
        """Slots that nobody uses; those from 8 on are replaced while they are in use."""
        self.swapped = deque(range(8, 12))
        self.slots = deque(range(SLOTS))
        self.pipes = deque(os.pipe() for _ in range(24))
        self.descriptors = {*itertools.chain.from_iterable(self.pipes)}
        """What is to be closed in the end."""
        self.group = ring.register_buffer_ring(8, size=64)

    def rng(self, name: str) -> random.Random:
        """Return the numbers of one role: the same for the same seed."""
        return random.Random(f"{self.seed} {name}")

    # ---- putting jobs into the ring ----

    def number(self) -> int:
        """Return the next number; nobody else on this ring chooses any."""
        return next(self._numbers)

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue operations, as one chain if they are linked."""
        for job in jobs:
            job.storms = self.storms
            self.outstanding[job.number] = job
        self.tally.expect(len(jobs))
        self.tally.peak(len(self.outstanding))
        ops = [job.op for job in jobs if job.op is not None]
        while True:
            try:
                self.ring.queue_all(ops)
            except uring.SubmissionQueueFull:
                self.make_room()
            else:
                return

    def make_room(self) -> None:
        """Submit; with SQPOLL, wait until the kernel has taken some."""
        self.submit()
        if self.is_polled:
            with contextlib.suppress(TimeoutError):
                self.ring.wait_sq_room(timeout=1)

    def submit(self) -> None:
        """Submit, and once more if the kernel takes no more for now."""
        try:
            self.ring.submit()
        except uring.EnterError as error:
            if error.errno not in {errno.EBUSY, errno.EAGAIN}:
                raise
            self.tally.add("enter_refused")

    def begin_storm(self, number: int) -> None:
        """Expect from now on that anything may be cancelled."""
        self._storming.add(number)
        self.storms += 1

    def end_storm(self, number: int) -> None:
        """Expect it no longer of what is queued from now on."""
        self.storms += 1
        self._storming.discard(number)

    def may_cancel(self, storms: int) -> bool:
        """Whether what was begun at `storms` may have been cancelled by somebody else."""
        return bool(self._storming) or self.storms != storms or self.stopping.is_set()

    # ---- taking completions ----

    def end(self, cqes: Iterable[uring.CQE]) -> None:
        """Look at completions."""
        for cqe in cqes:
            job = self.outstanding.get(cqe.user_data)
            if job is None:
                self.tally.add("doubled")
                self.tally.fault(f"{self.shape}: nobody waits for {cqe!r}, or not any more")
                continue
            try:
                self._look_at(job, cqe)
            except Exception as error:  # noqa: BLE001 - a fault is told, and the soak goes on
                self.tally.fault_of(f"{self.shape}: {job.kind}: {cqe!r}", error)
            if not cqe.more:
                self._settle(job)

    def _look_at(self, job: Job, cqe: uring.CQE) -> None:
        if cqe.res == -errno.ECANCELED and errno.ECANCELED not in job.outcomes:
            if not self.may_cancel(job.storms):
                raise FaultError("cancelled by nobody")
            self.tally.add("cancelled")
        elif -cqe.res in job.outcomes:
            self.tally.add("cancelled" if cqe.res == -errno.ECANCELED else "other_outcomes")
        else:
            job.check(cqe)

    def _settle(self, job: Job) -> None:
        del self.outstanding[job.number]
        job.done()
        self.tally.ended(job.kind)

    def sample(self, buffer: Guarded) -> None:
        """Let go of a buffer, and remember some, to see later that all have let go."""
        buffer.release()
        if len(self.samples) < KEPT_SAMPLES:
            self.samples.append(buffer)

    def check_samples(self) -> None:
        """Look whether anything still has the buffers that were used: the ring has ended."""
        for buffer in self.samples:
            try:
                buffer.memory.append(0)
            except BufferError:
                self.tally.fault(f"{self.shape}: a buffer of {buffer.size} bytes is still pinned")
                return

    # ---- the end ----

    def drain(self, seconds: float = 40.0) -> None:
        """Cancel what does not end by itself, and copy out until nothing is in flight."""
        deadline = time.monotonic() + seconds
        while self.outstanding or self.ring.in_flight:
            if time.monotonic() > deadline:
                break
            self.submit()
            with contextlib.suppress(TimeoutError):
                self.ring.cancel(any=True, timeout=1)
            self.end(self.ring.copy_cqes(wait_nr=1, timeout=0.05))
        self.end(self.ring.copy_cqes())
        if self.ring.in_flight:
            self.tally.fault(f"{self.shape}: {self.ring.in_flight} in flight after a drain")
        if self.outstanding:
            self.tally.add("lost", len(self.outstanding))
            kinds = sorted({job.kind for job in self.outstanding.values()})
            self.tally.fault(f"{self.shape}: {len(self.outstanding)} lost, of {kinds}")
            self.outstanding.clear()

    def close(self) -> None:
        """Close the ring, with work in flight or not."""
        self.is_closing = True
        self.ring.close()

    def leave(self) -> None:
        """Let go of all else; the ring is closed, and all threads have left it."""
        if self.ring.in_flight:
            self.tally.fault(f"{self.shape}: {self.ring.in_flight} in flight after close()")
        self.tally.add("abandoned", len(self.outstanding))
        self.outstanding.clear()
        self.todo.clear()
        for fd in self.descriptors:
            os.close(fd)
        for each in self.fixed:
            self.sample(each)
        del self.registered, self.group, self.ring


# ---- what jobs are checked by ----


def expect_res(wanted: int) -> Callable[[uring.CQE], None]:
    """Check for one result."""

    def check(cqe: uring.CQE) -> None:
        if cqe.res != wanted:
            raise FaultError(f"res is {cqe.res}, not {wanted}")

    return check


def expect_data(buffer: Guarded, wanted: bytes) -> Callable[[uring.CQE], None]:
    """Check for all of the data, and nothing around it."""

    def check(cqe: uring.CQE) -> None:
        expect_res(len(wanted))(cqe)
        buffer.check(wanted)

    return check


def waiting_bytes(fd: int) -> int:
    """How many bytes are in a pipe."""
    found: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    return found


def fixed_view(world: World, index: int) -> uring.FixedBuffer:
    """Return the part between the canaries of a registered buffer."""
    return world.registered[index][GUARD:-GUARD]


def any_file(world: World, rng: random.Random) -> int | Fixed:
    """Return the file with the content, in one of its forms."""
    files: list[int | Fixed] = [world.files.content, Fixed(0), Fixed(2), Fixed(3)]
    return rng.choice(files)
