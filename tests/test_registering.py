"""What a ring asks of the kernel past its queues: each call, its refusals and its records."""

import errno
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import pytest

import uring
from uring import (
    SQE,
    BpfFilter,
    BpfFilterFlags,
    CQEFlags,
    Fixed,
    NapiSettings,
    NapiTracking,
    Nop,
    Opcode,
    PollAdd,
    Read,
    RegisterError,
    RegisterOpcode,
    Restriction,
    Ring,
    RingClosedError,
    SetupFlags,
    SQEFlags,
    UnsupportedError,
    ZcrxControl,
    ZcrxEvent,
    errors,
)
from uring._pledges import Pledge
from uring.registry import bpf, cancel, eventfd, restrictions, workers, zcrx

ECANCELED = -errno.ECANCELED


def polls(ring: Ring, fd: int, *numbers: int) -> None:
    """Have polls in flight under these numbers."""
    for number in numbers:
        ring.queue(PollAdd(fd, select.POLLIN, user_data=number))
    ring.submit()


def ended(ring: Ring) -> list[tuple[int, int]]:
    """Copy out what is there."""
    return [(cqe.user_data, cqe.res) for cqe in ring.copy_cqes()]


# ---- cancel ----


def test_cancel_finds_one_or_all_or_none(ring: Ring, pipe: tuple[int, int]) -> None:
    """One, unless all are meant; how many there were; 0 when there is none."""
    polls(ring, pipe[0], 5, 5, 5, 6)
    assert ring.cancel(7) == 0
    assert ring.cancel(7, all=True) == 0
    assert ring.cancel(5) == 1
    assert ended(ring) == [(5, ECANCELED)]
    assert ring.cancel(5, all=True) == 2
    assert ended(ring) == [(5, ECANCELED)] * 2
    assert ring.in_flight == 1
    assert ring.cancel(any=True) == 1
    assert ended(ring) == [(6, ECANCELED)]
    assert ring.cancel(any=True, all=True) == 0


def test_cancel_chooses_by_file_and_opcode(ring: Ring, pipe: tuple[int, int]) -> None:
    """A descriptor, a registered file, an opcode, and these together with the user_data."""
    left, right = socket.socketpair()
    with left, right:
        files = ring.register_files([left])
        polls(ring, pipe[0], 1, 1)
        polls(ring, left.fileno(), 2)
        ring.queue(uring.Recv(files[0], bytearray(1), user_data=3))
        ring.submit()
        assert ring.cancel(fd=right) == 0
        assert ring.cancel(fd=left, target_opcode=Opcode.READ) == 0
        assert ring.cancel(fd=pipe[0]) == 1
        assert ended(ring) == [(1, ECANCELED)]
        assert ring.cancel(4, target_opcode=Opcode.POLL_ADD, all=True) == 0
        assert ring.cancel(1, target_opcode=Opcode.POLL_ADD, all=True) == 1
        assert ended(ring) == [(1, ECANCELED)]
        assert ring.cancel(fd=files[0], target_opcode=Opcode.RECV) == 1
        assert ended(ring) == [(3, ECANCELED)]
        assert ring.cancel(2, fd=left, all=True) == 1
        assert ended(ring) == [(2, ECANCELED)]
        with pytest.raises(RegisterError, match="slot is empty") as refused:
            ring.cancel(fd=Fixed(9))
        assert refused.value.errno == errno.EBADF


def big_read(ring: Ring, fd: int) -> None:
    """Have a read of random numbers run in a worker thread of the kernel."""
    buffer = bytearray(2**28)
    ring.queue(Read(fd, buffer, user_data=9, flags=SQEFlags.ASYNC))
    ring.submit()
    while not any(buffer[:64]):  # until it is being written
        assert not ring.cq_ready()


def test_cancel_waits_for_what_is_running(ring: Ring) -> None:
    """What a worker has begun is waited for: when it returns, the completion is there."""
    with Path("/dev/urandom").open("rb", buffering=0) as source:
        big_read(ring, source.fileno())
        assert ring.cancel(9) == 1
        assert ring.cq_ready() == 1
        assert 0 < ring.copy_cqe(timeout=10).res < 2**28


def test_cancel_says_when_the_time_is_over(ring: Ring) -> None:
    """Without time to wait, what is running is left to end, with a TimeoutError."""
    with Path("/dev/urandom").open("rb", buffering=0) as source:
        for _ in range(50):  # seldom one ends at once, while the kernel looks
            big_read(ring, source.fileno())
            try:
                ring.cancel(9, timeout=0)
            except TimeoutError as error:
                assert "still running" in str(error)  # noqa: PT017 - not each of them raises
                break
            finally:
                assert ring.copy_cqe(timeout=10).user_data == 9
        else:
            pytest.fail("all had ended at once")


class _Slow:
    """The shim, whose first REGISTER_SYNC_CANCELs give these answers."""

    def __init__(self, *answers: int) -> None:
        self.answers = [*answers]
        self.waits: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(uring._ffi.lib, name)

    def uring_register(self, _ring: object, _opcode: int, argument: object, _count: int) -> int:
        """Give the next answer."""
        record = uring._memory.bytes_of(argument)  # type: ignore[arg-type]  # pinned
        _, _, _, seconds, nanoseconds, _ = cancel._SYNC_CANCEL.unpack(record)
        self.waits.append(seconds * 10**9 + nanoseconds)
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("answers", "how", "expected"),
    [
        ((-errno.ETIME, -errno.ETIME, 0), {"target": 1}, 1),
        ((-errno.ETIME, -errno.ENOENT), {"target": 1}, 1),
        ((-errno.EINTR, -errno.ENOENT), {"target": 1}, 0),
        ((-errno.ETIME, 0), {"target": 1, "all": True}, 1),
        ((-errno.ETIME, 3), {"any": True}, 3),
        ((-errno.EINTR, 3), {"any": True}, 3),
    ],
)
def test_cancel_waits_in_slices(
    ring: Ring,
    monkeypatch: pytest.MonkeyPatch,
    answers: tuple[int, ...],
    how: dict[str, int],
    expected: int,
) -> None:
    """A wait is made of short ones, and a signal does not end it; what was waited for counts."""
    slow = _Slow(*answers)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["uring._calls"], "lib", slow)
        assert ring.cancel(**how) == expected  # type: ignore[arg-type]  # of two kinds
    assert slow.answers == []
    assert max(slow.waits) <= 10**8


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({}, ValueError, "what is to be cancelled"),
        ({"all": True}, ValueError, "what is to be cancelled"),
        ({"any": True, "target": 1}, ValueError, "give it alone"),
        ({"any": True, "fd": 1}, ValueError, "give it alone"),
        ({"target": 2**64}, ValueError, "target"),
        ({"target": "x"}, TypeError, "target"),
        ({"target_opcode": 256}, ValueError, "opcode"),
        ({"fd": -1}, ValueError, "fd"),
        ({"fd": "x"}, TypeError, "file"),
        ({"target": 1, "timeout": -1}, ValueError, "time"),
    ],
)
def test_cancel_wants_to_know_what(
    ring: Ring, how: dict[str, object], kind: type[Exception], words: str
) -> None:
    """Nothing, or too much, and what does not fit is refused before the kernel is asked."""
    with pytest.raises(kind, match=words):
        ring.cancel(**how)  # type: ignore[arg-type]  # wrong on purpose


def test_cancel_on_a_closed_ring_is_refused(ring: Ring) -> None:
    """A closed ring has nothing to cancel."""
    ring.close()
    with pytest.raises(RingClosedError):
        ring.cancel(1)


# ---- messages ----


def test_message_is_a_completion_of_its_target(ring: Ring) -> None:
    """The user_data, the res and the flags are as given; the sender has none."""
    with Ring(2) as target:
        ring.send_message(target, target_user_data=7, target_res=5)
        ring.send_message(target.fd, target_user_data=2**64 - 1, target_res=-(2**31))
        ring.send_message(
            target, target_user_data=0, target_res=2**31 - 1, target_flags=CQEFlags.SOCK_NONEMPTY
        )
        ring.send_message(ring, target_user_data=1)
        found = [(cqe.user_data, cqe.res, cqe.flags) for cqe in target.copy_cqes()]
        flags = CQEFlags.SOCK_NONEMPTY
        assert found == [(7, 5, 0), (2**64 - 1, -(2**31), 0), (0, 2**31 - 1, flags)]
        assert ended(ring) == [(1, 0)]


@pytest.mark.usefixtures("ring")
def test_message_wakes_who_waits() -> None:
    """A thread that waits for completions of its own ring is woken from another thread."""
    flags = SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN
    rings: list[Ring] = []
    found: list[int] = []
    is_ready = threading.Event()

    def wait() -> None:
        with Ring(2, flags=flags) as target:
            rings.append(target)
            is_ready.set()
            found.append(target.copy_cqe(timeout=10).user_data)

    thread = threading.Thread(target=wait)
    thread.start()
    assert is_ready.wait(10)
    rings[0].send_message(rings[0], target_user_data=42)  # from a thread that does not own it
    thread.join()
    assert found == [42]


def test_message_is_expected_by_its_target(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target reserves the number first, and gives it back when the message fails."""
    told: list[tuple[Ring, int]] = []

    def expect(target: Ring, number: int, pledge: Pledge) -> None:
        told.append((target, number))
        pledge.is_settled = False

    monkeypatch.setattr(Ring, "_expect", expect)
    monkeypatch.setattr(Ring, "_unexpect", lambda ring, number: told.append((ring, -number)))
    with Ring(2, flags=SetupFlags.R_DISABLED) as target:
        with pytest.raises(RegisterError, match="not enabled") as refused:
            ring.send_message(target, target_user_data=7)
        assert refused.value.errno == errno.EBADFD
        assert told == [(target, 7), (target, -7)]
        target.enable()
        ring.send_message(target, target_user_data=8)
        assert told[2:] == [(target, 8)]


def test_message_to_what_is_no_ring_is_refused(
    ring: Ring, descriptors: Callable[[], set[str]], pipe: tuple[int, int]
) -> None:
    """A pipe, what is not open, and a closed ring get nothing; no descriptor is left."""
    before = descriptors()
    with pytest.raises(RegisterError, match="no ring") as refused:
        ring.send_message(pipe[0], target_user_data=1)
    assert refused.value.errno == errno.EBADFD
    with pytest.raises(RegisterError, match="not open") as refused:
        ring.send_message(9999, target_user_data=1)
    assert refused.value.errno == errno.EBADF
    target = Ring(1)
    target.close()
    with pytest.raises(RingClosedError):
        ring.send_message(target, target_user_data=1)
    with pytest.raises(TypeError, match="file"):
        ring.send_message("x", target_user_data=1)  # type: ignore[arg-type]  # wrong on purpose
    assert descriptors() == before
    ring.close()
    with pytest.raises(RingClosedError):
        ring.send_message(pipe[0], target_user_data=1)


@pytest.mark.parametrize(
    ("user_data", "res", "flags"),
    [(-1, 0, None), (2**64, 0, None), (0, 2**31, None), (0, 0, 2**32), (0, 0, -1)],
)
def test_message_does_not_truncate(ring: Ring, user_data: int, res: int, flags: int | None) -> None:
    """A number that does not fit is a ValueError."""
    with pytest.raises(ValueError, match="must be in"):
        ring.send_message(ring, target_user_data=user_data, target_res=res, target_flags=flags)


# ---- eventfd ----


def test_eventfd_is_told_of_completions(ring: Ring) -> None:
    """It is readable once something completes, and no more when it is unregistered."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        with ring.register_eventfd(fd) as registered:
            assert (registered.fileno(), registered.only_async) == (fd, False)
            ring.queue_all([Nop(), Nop()])
            ring.submit()
            assert os.eventfd_read(fd) >= 1
            with pytest.raises(RegisterError, match="unregister it first") as refused:
                ring.register_eventfd(fd)
            assert refused.value.errno == errno.EBUSY
            assert repr(registered) == f"<RegisteredEventfd {fd}>"
        registered.close()
        assert registered.closed
        ring.queue(Nop())
        ring.submit()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        with pytest.raises(RegisterError, match="register first") as refused:
            ring.unregister_eventfd()
        assert refused.value.errno == errno.ENXIO
    finally:
        os.close(fd)


def test_eventfd_of_async_is_told_only_of_what_workers_did(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """With `only_async` a worker's completion is told of; one at once, or after a poll, is not."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        registered = ring.register_eventfd(fd, only_async=True)
        assert repr(registered) == f"<RegisteredEventfd {fd}, only_async=True>"
        ring.queue(Nop())
        polls(ring, pipe[0], 1)
        os.write(pipe[1], b"x")
        assert [ring.copy_cqe(timeout=10).res for _ in range(2)] == [0, select.POLLIN]
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        ring.queue(Nop(flags=SQEFlags.ASYNC))
        ring.submit()
        assert ring.copy_cqe(timeout=10).res == 0
        assert os.eventfd_read(fd) == 1
        former = registered
        ring.unregister_eventfd()
        ring.register_eventfd(fd)
        former.close()  # not its own any more
        ring.unregister_eventfd()
    finally:
        os.close(fd)


def test_eventfd_that_is_none_is_refused(ring: Ring, pipe: tuple[int, int]) -> None:
    """A pipe is no eventfd, and what is not open is not."""
    for fd, number, words in (
        (pipe[0], errno.EINVAL, r"os\.eventfd"),
        (9999, errno.EBADF, "not open"),
    ):
        with pytest.raises(RegisterError, match=words) as refused:
            ring.register_eventfd(fd)
        assert refused.value.errno == number
        with pytest.raises(RegisterError, match=words):
            ring.register_eventfd(fd, only_async=True)
    with pytest.raises(ValueError, match="descriptor"):
        ring.register_eventfd(2**31)
    with pytest.raises(TypeError, match="file"):
        ring.register_eventfd("x")  # type: ignore[arg-type]  # wrong on purpose


# ---- personalities ----


def test_personality_lives_until_its_block_ends(ring: Ring) -> None:
    """An operation with the id runs; after the end it is EINVAL, and closing again is fine."""
    with ring.register_personality() as first, ring.register_personality() as second:
        assert first.id != second.id
        assert repr(first) == f"<Personality {first.id}>"
        ring.queue(Nop(personality=first.id))
        ring.submit()
        assert ring.copy_cqe(timeout=10).res == 0
    first.close()
    assert first.closed
    ring.queue(Nop(personality=first.id))
    ring.submit()
    assert ring.copy_cqe(timeout=10).res == -errno.EINVAL
    third = ring.register_personality()
    ring.close()
    assert third.closed
    third.close()


def test_personality_that_is_gone_says_so(ring: Ring) -> None:
    """What the kernel says of an id that it does not have."""
    personality = ring.register_personality()
    personality.id += 100
    with pytest.raises(RegisterError, match="unregistered already") as refused:
        personality.close()
    assert refused.value.errno == errno.EINVAL


PERSONALITY = """
import os, sys, uring
os.umask(0o077)
path = sys.argv[1]
with open(path, "w") as file:
    file.write("secret")
ring = uring.Ring(4)
root = ring.register_personality()
os.seteuid(65534)
nobody = ring.register_personality()
found = []
for personality in (0, root.id, nobody.id):
    ring.queue(uring.Openat(path, os.O_RDONLY, personality=personality))
    ring.submit()
    found.append(ring.copy_cqe(timeout=10).res >= 0)
print(found)
ring.close()
"""


@pytest.mark.usefixtures("ring")
def test_personality_is_whose_rights_count(tmp_path: Path) -> None:
    """A file of root's is opened with root's personality by a process that is nobody's by then."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o001)
    command = [sys.executable, "-W", "ignore", "-c", PERSONALITY, str(tmp_path / "secret")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[False, True, False]\n", "")


# ---- restrictions ----


def test_restricted_ring_only_reads_registered_files() -> None:
    """A ring that may READ registered files refuses everything else."""
    with (
        Path("/dev/zero").open("rb", buffering=0) as zero,
        Ring(8, flags=SetupFlags.R_DISABLED) as ring,
    ):
        ring.register_files([zero])
        ring.register_restrictions(
            [
                Restriction.allow_opcode(Read),
                Restriction.sqe_flags_required(SQEFlags.FIXED_FILE),
                Restriction.sqe_flags_allowed(SQEFlags.IO_LINK),
                Restriction.allow_register(RegisterOpcode.REGISTER_SYNC_CANCEL),
            ]
        )
        ring.enable()
        buffer = bytearray(4)
        operations = [
            Read(Fixed(0), buffer),
            Read(zero, buffer),
            Nop(),
            Read(Fixed(0), buffer).linked(),
            Read(Fixed(0), buffer),
            Read(Fixed(0), buffer).drained(),
        ]
        found = []
        for operation in operations:
            ring.queue(operation)
            ring.submit()
            found.append(ring.copy_cqe(timeout=10).res)
        assert found == [4, -errno.EACCES, -errno.EACCES, 4, 4, -errno.EACCES]
        for call in (ring.unregister_files, ring.enable, ring.register_personality):
            with pytest.raises(RegisterError, match="restriction") as refused:
                call()
            assert refused.value.errno == errno.EACCES
        assert ring.cancel(1) == 0


def test_restricted_ring_closes_at_once_when_it_may_cancel(pipe: tuple[int, int]) -> None:
    """With REGISTER_SYNC_CANCEL allowed, what is in flight is taken back by close()."""
    ring = Ring(2, flags=SetupFlags.R_DISABLED)
    ring.register_restrictions(
        [
            Restriction.allow_opcodes(Read, Opcode.NOP),
            Restriction.allow_register(RegisterOpcode.REGISTER_SYNC_CANCEL),
        ]
    )
    ring.enable()
    buffer = bytearray(1)
    ring.queue(Read(pipe[0], buffer))
    ring.submit()
    start = time.monotonic()
    ring.close()
    assert time.monotonic() - start < 10
    buffer.append(0)


def test_restrictions_come_once_and_before_the_ring_is_enabled(ring: Ring) -> None:
    """A ring that is enabled is not restricted any more, and none is twice."""
    nop = Restriction.allow_opcode(Nop())
    with pytest.raises(RegisterError, match="R_DISABLED") as refused:
        ring.register_restrictions([nop])
    assert refused.value.errno == errno.EBADFD
    with Ring(2, flags=SetupFlags.R_DISABLED) as disabled:
        with pytest.raises(RegisterError, match="lacks an opcode") as refused:
            disabled.register_restrictions([Restriction(uring.RestrictionOpcode.SQE_OP, 200)])
        assert refused.value.errno == errno.EINVAL
        disabled.register_restrictions([nop])
        with pytest.raises(RegisterError, match="they stay") as refused:
            disabled.register_restrictions([nop])
        assert refused.value.errno == errno.EBUSY


def test_restrictions_are_encoded_as_the_kernel_has_them() -> None:
    """Each kind has its number and its value, in records of 16 bytes."""
    given: list[Restriction | Iterable[Restriction]] = [
        Restriction.allow_register(RegisterOpcode.REGISTER_FILES),
        Restriction.allow_opcodes(Opcode.READ, SQE(Opcode.WRITE)),
        Restriction.sqe_flags_allowed(SQEFlags.IO_LINK | SQEFlags.ASYNC),
        Restriction.sqe_flags_required(SQEFlags.FIXED_FILE),
    ]
    pin, count = restrictions.restrictions_argument(given)
    expected = [(0, 2), (1, 22), (1, 23), (2, 0x14), (3, 1)]
    assert count == len(expected)
    packed = b"".join(struct.pack("=HB13x", *each) for each in expected)
    assert uring._memory.bytes_of(pin) == packed


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Restriction.allow_opcode(cast("Opcode", 22)), TypeError),
        (lambda: Restriction.allow_opcode(SQE), TypeError),
        (lambda: Restriction.allow_register(cast("RegisterOpcode", 2)), TypeError),
        (lambda: Restriction.sqe_flags_allowed(cast("SQEFlags", 1)), TypeError),
        (lambda: Restriction.sqe_flags_allowed(SQEFlags(256)), ValueError),
        (lambda: restrictions.restrictions_argument([]), ValueError),
        (lambda: restrictions.restrictions_argument([()]), ValueError),
        (lambda: restrictions.restrictions_argument([cast("Restriction", "x")]), TypeError),
    ],
)
def test_restrictions_that_mean_nothing_are_refused(
    make: Callable[[], object], kind: type[Exception]
) -> None:
    """A bare number could be anything, and no restriction at all would allow nothing."""
    with pytest.raises(kind):
        make()


# ---- workers, clock, network devices ----


def worker_cpus(ring: Ring, fd: int) -> list[str]:
    """The processors that this thread's workers may run on, one of them being at work."""
    ring.queue(Read(fd, bytearray(1), flags=SQEFlags.ASYNC, user_data=9))
    ring.submit()
    found: list[str] = []
    while not found:
        for path in Path("/proc/self/task").iterdir():
            status = (path / "status").read_text(encoding="ascii")
            if status.startswith(f"Name:\tiou-wrk-{threading.get_native_id()}\n"):
                found.append(status.partition("Cpus_allowed_list:\t")[2].partition("\n")[0])
    ring.cancel(9)
    ring.copy_cqe(timeout=10)
    return found


@pytest.mark.usefixtures("ring")
def test_iowq_affinity_binds_the_workers(pipe: tuple[int, int]) -> None:
    """Workers run on the processors given, and nowhere else."""
    cpus = sorted(os.sched_getaffinity(0))
    found: list[list[str]] = []

    def work() -> None:  # workers belong to the thread
        with Ring(2) as ring:
            ring.register_iowq_affinity([cpus[-1]])
            found.append(worker_cpus(ring, pipe[0]))
            ring.unregister_iowq_affinity()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert set(found[0]) == {str(cpus[-1])}


def test_iowq_affinity_is_a_mask() -> None:
    """Each processor is a bit of an array of longs; none at all, or a negative one, is refused."""
    pin, size = workers.affinity_argument([0, 3, 64])
    assert (uring._memory.bytes_of(pin), size) == (struct.pack("=QQ", 9, 1), 16)
    for cpus in ([], [-1], [2**16]):
        with pytest.raises(ValueError, match="processor"):
            workers.affinity_argument(cpus)


def test_iowq_max_workers_gives_the_limits_before(ring: Ring) -> None:
    """0 leaves a limit, and what comes back is what was in force."""
    before = ring.register_iowq_max_workers(bounded=3, unbounded=5)
    assert ring.register_iowq_max_workers() == (3, 5)
    assert ring.register_iowq_max_workers(bounded=4) == (3, 5)
    assert ring.register_iowq_max_workers(unbounded=2**31 - 1) == (4, 5)
    bounded, unbounded = ring.register_iowq_max_workers(bounded=before[0], unbounded=before[1])
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    assert bounded == 4
    assert limit in {unbounded, resource.RLIM_INFINITY}
    with pytest.raises(RegisterError, match=r"2\*\*31") as refused:
        ring.register_iowq_max_workers(bounded=2**31)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="unbounded"):
        ring.register_iowq_max_workers(unbounded=2**32)


def test_clock_is_monotonic_or_boottime(ring: Ring) -> None:
    """Waits go on with either clock; another one is refused."""
    for clock in (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC):
        ring.register_clock(clock)
        with pytest.raises(TimeoutError):
            ring.copy_cqe(timeout=0.01)
    with pytest.raises(RegisterError, match="CLOCK_BOOTTIME") as refused:
        ring.register_clock(time.CLOCK_REALTIME)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="clock_id"):
        ring.register_clock(-1)


def test_napi_is_switched_on_and_off(ring: Ring) -> None:
    """The settings before are given back; the end switches it off."""
    with ring.register_napi(busy_poll_timeout_us=100) as first:
        assert first.previous == NapiSettings(0, prefer_busy_poll=False, tracking=255)
        assert first.previous.tracking is NapiTracking.INACTIVE
        second = ring.register_napi(
            busy_poll_timeout_us=50, prefer_busy_poll=True, tracking=NapiTracking.STATIC
        )
        assert second.previous == NapiSettings(100, prefer_busy_poll=False)
        assert (first.closed, second.closed) == (True, False)
        second.add(70000)
        with pytest.raises(RegisterError, match="added already") as refused:
            second.add(70000)
        assert refused.value.errno == errno.EEXIST
        second.remove(70000)
        with pytest.raises(RegisterError, match="not added") as refused:
            second.remove(70000)
        assert refused.value.errno == errno.ENOENT
    assert not second.closed  # it was not the first one's to end
    assert ring.unregister_napi() == NapiSettings(50, prefer_busy_poll=True)
    assert second.closed
    second.close()
    assert ring.unregister_napi() == NapiSettings(0, prefer_busy_poll=False)
    with ring.register_napi(busy_poll_timeout_us=1) as third:
        assert "busy_poll_timeout_us=1," in repr(third)
        with pytest.raises(RegisterError, match="tracked dynamically"):
            third.add(70000)
    assert repr(third).startswith("<closed NapiBusyPoll")


def test_napi_is_refused_where_it_cannot_be(ring: Ring) -> None:
    """A ring with IOPOLL polls by itself, and a time that does not fit is a ValueError."""
    with Ring(2, flags=SetupFlags.IOPOLL) as polling:
        with pytest.raises(RegisterError, match="IOPOLL") as refused:
            polling.register_napi(busy_poll_timeout_us=1)
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="busy_poll_timeout_us"):
        ring.register_napi(busy_poll_timeout_us=-1)


# ---- what this kernel or this machine lacks ----


def zcrx_ring() -> Ring:
    """A ring that may have a zero-copy receive queue."""
    flags = SetupFlags.DEFER_TASKRUN | SetupFlags.SINGLE_ISSUER | SetupFlags.CQE32
    return Ring(8, flags=flags)


def test_zcrx_is_asked_of_the_kernel(ring: Ring) -> None:
    """Without a device that can do it the kernel says why not, and nothing is held."""
    if not uring.probe().supports(RegisterOpcode.REGISTER_ZCRX_IFQ):
        with pytest.raises(UnsupportedError):
            ring.register_zcrx("lo", 0, area_size=4096, rq_entries=8)
        return
    with zcrx_ring() as able:
        for interface, number in (
            (2**31 - 1, errno.ENODEV),
            ("no such one", errno.ENODEV),
            ("lo", errno.EOPNOTSUPP),
        ):
            with pytest.raises(RegisterError, match="network interface") as refused:
                able.register_zcrx(interface, 0, area_size=4096, rq_entries=8)
            assert refused.value.errno == number
        assert able._held.for_life == []
    with pytest.raises(RegisterError, match="DEFER_TASKRUN and CQE32") as refused:
        ring.register_zcrx("lo", 0, area_size=4096, rq_entries=8)
    assert refused.value.errno == errno.EINVAL


def test_zcrx_queue_reads_what_the_kernel_wrote(ring: Ring) -> None:
    """The id, the offsets and the token are where the kernel puts them; commands need 6.19."""
    request = zcrx.ZcrxRequest(
        3, 1, area_size=5000, rq_entries=8, rx_buf_len=0, zcrx_flags=uring.ZcrxRegisterFlags(0)
    )
    request.record[32:44] = struct.pack("=III", 0, 4, 64)  # offsets.head, .tail, .rqes
    request.record[64:68] = struct.pack("=I", 6)  # zcrx_id
    request.area_record[16:24] = struct.pack("=Q", 1 << uring.ZCRX_AREA_SHIFT)
    queue = zcrx.ZcrxQueue(ring, request)
    assert (queue.id, queue.refill_offsets, queue.area_token) == (6, (0, 4, 64), 1 << 48)
    assert (queue.area.nbytes, queue.refill_ring.nbytes) == (8192, 8192)
    assert repr(queue) == "<ZcrxQueue 6: queue 1 of interface 3>"
    if not uring.probe().supports(RegisterOpcode.REGISTER_ZCRX_CTRL):
        for call in (queue.flush, queue.export, lambda: queue.arm_event(ZcrxEvent.COPY)):
            with pytest.raises(UnsupportedError, match=r"REGISTER_ZCRX_CTRL.* 6\.19"):
                call()


def test_zcrx_request_has_its_fields_in_place() -> None:
    """The three records point to each other and to memory of whole pages."""
    request = zcrx.ZcrxRequest(
        3,
        1,
        area_size=5000,
        rq_entries=8,
        rx_buf_len=8192,
        zcrx_flags=uring.ZcrxRegisterFlags.NODEV,
    )
    area, region = (
        uring._memory.address_of(uring._memory.pinned(each, write=True)[0])
        for each in (request.area_record, request.region_record)
    )
    record = request.record
    assert struct.unpack_from("=IIIIQQ", record) == (3, 1, 8, 2, area, region)
    assert struct.unpack_from("=IIQ", record, 64) == (0, 8192, 0)
    memory = uring._memory.address_of(uring._memory.pinned(request.area, write=True)[0])
    assert struct.unpack_from("=QQ", request.area_record) == (memory, 8192)
    memory = uring._memory.address_of(uring._memory.pinned(request.refill, write=True)[0])
    assert struct.unpack_from("=QQI", request.region_record) == (memory, 8192, 1)
    arm = zcrx.control_record(6, ZcrxControl.ARM_EVENT, ZcrxEvent.COPY)
    assert struct.unpack_from("=II16xI", arm) == (6, 2, 1)
    for wrong in ({"queue": -1}, {"area_size": 0}, {"rq_entries": 0}, {"rx_buf_len": -1}):
        arguments = {"queue": 0, "area_size": 1, "rq_entries": 1, "rx_buf_len": 0, **wrong}
        with pytest.raises(ValueError, match=next(iter(wrong))):
            zcrx.ZcrxRequest(1, zcrx_flags=uring.ZcrxRegisterFlags(0), **arguments)
    with pytest.raises(OSError, match="interface"):
        zcrx.ZcrxRequest(
            "none",
            0,
            area_size=1,
            rq_entries=1,
            rx_buf_len=0,
            zcrx_flags=uring.ZcrxRegisterFlags(0),
        )


def test_bpf_filter_is_encoded_and_needs_its_kernel(ring: Ring) -> None:
    """The record points to the program; a kernel without the call makes it UnsupportedError."""
    allow = (0x06, 0, 0, 1)  # BPF_RET | BPF_K
    made = BpfFilter(Opcode.NOP, [allow], filter_flags=BpfFilterFlags.DENY_REST, pdu_size=24)
    pin, program = bpf.filter_argument(made)
    record = uring._memory.bytes_of(pin)
    assert struct.unpack_from("=HHIIIIB3xQ", record) == (
        *(1, 0, 0, Opcode.NOP, 1, 1, 24),
        uring._memory.address_of(program),
    )
    assert uring._memory.bytes_of(program) == struct.pack("=HBBI", *allow)
    if not uring.probe().supports(RegisterOpcode.REGISTER_BPF_FILTER):
        with pytest.raises(UnsupportedError, match=r"REGISTER_BPF_FILTER.* 7\.0") as refused:
            ring.register_bpf_filter(made)
        assert refused.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (BpfFilter(0, []), ValueError),
        (BpfFilter(0, [(6, 0, 0, 0)] * 4097), ValueError),
        (BpfFilter(-1, [(6, 0, 0, 0)]), ValueError),
        (BpfFilter(0, [(6, 0, 0, 0)], pdu_size=256), ValueError),
        (BpfFilter(0, [(2**16, 0, 0, 0)]), ValueError),
        (BpfFilter(0, [(6, 0, 0)]), ValueError),  # type: ignore[list-item]  # wrong on purpose
        ("text", TypeError),
    ],
)
def test_bpf_filter_that_does_not_fit_is_refused(given: BpfFilter, kind: type[Exception]) -> None:
    """A program has 1 to 4096 instructions of four numbers each."""
    with pytest.raises(kind):
        bpf.filter_argument(given)


# ---- records, errors, objects ----


def test_eventfd_argument_is_one_int() -> None:
    """The descriptor is passed as 32 bits with a sign."""
    assert uring._memory.bytes_of(eventfd.fd_argument(-1)) == b"\xff" * 4


def test_register_errors_advise_by_opcode() -> None:
    """Each row of the advice for one opcode is in the message, instead of the general one."""
    for (opcode, number), advice in errors._REGISTER_ADVICE.items():
        error = errors.register_error(opcode, number)
        assert isinstance(error, RegisterError)
        expected = f"[Errno {number}] io_uring_register: {os.strerror(number)}; {advice}"
        assert str(error) == f"{expected}; {opcode.name}"
    general = errors.register_error(RegisterOpcode.REGISTER_PROBE, errno.EBUSY)
    assert "unregister it first" in str(general)


def test_register_of_an_ended_owners_ring_is_the_wrong_thread() -> None:
    """EEXIST from the kernel, where the ring has an owner that has ended, is WrongThreadError."""
    rings: list[Ring] = []

    def own() -> None:
        rings.append(Ring(1, flags=SetupFlags.SINGLE_ISSUER))

    thread = threading.Thread(target=own)
    thread.start()
    thread.join()
    (ring,) = rings
    del thread  # the look below is then at the kernel's, which is gone a little after the join()
    while ring._owner_lives():
        pass
    with pytest.raises(uring.WrongThreadError):
        ring.register_personality()
    with pytest.raises(uring.WrongThreadError, match="has ended"):
        ring._raise(RegisterOpcode.REGISTER_FILES, -errno.EEXIST)
    ring.close()


def test_registrations_do_not_outlive_their_ring_in_the_exit(tmp_path: Path) -> None:
    """An interpreter that ends with all kinds of registrations open ends well."""
    program = """
    import os, uring
    ring = uring.Ring(4)
    kept = [
        ring.register_files([0]),
        ring.register_buffers([bytearray(100)]),
        ring.register_eventfd(os.eventfd(0)),
        ring.register_personality(),
        ring.register_napi(busy_poll_timeout_us=1),
    ]
    print("end")
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program), encoding="ascii")
    command = [sys.executable, "-W", "ignore", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
