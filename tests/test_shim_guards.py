"""
The guards of the shim one by one, called as the package never calls it, or not twice at once.

A thread is held up inside of the shim by memory that is not there yet (see `missing_page`).
"""

import contextlib
import errno
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uring
from uring import Nop, Read, Ring, SetupFlags, Timeout
from uring._ffi import ffi, lib
from uring.flags import SQRingFlags

NOP = bytes(64)
MissingPage = tuple[mmap.mmap, int, threading.Event]
SECONDS = 10.0
COUNT = 0xFFFFFFFF  # the low half of what the shim returns


def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[..., int], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._call, self._arguments = call, arguments
        self.answer: int | None = None
        self.start()

    def run(self) -> None:
        """Make it."""
        self.answer = self._call(*self._arguments)

    def is_held_up(self) -> bool:
        """Whether it has come to the memory that is not there."""
        return "userfault" in Path(f"/proc/self/task/{self.native_id}/wchan").read_text("ascii")

    def ended(self) -> int | None:
        """The answer."""
        self.join(SECONDS)
        assert not self.is_alive()
        return self.answer


def in_child(look: Callable[[], bool]) -> bool:
    """What `look` says in the child of a fork."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if look() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


@contextlib.contextmanager
def leaving(call: Call, released: threading.Event) -> Iterator[None]:
    """Let a thread go on that is held up, whatever becomes of the block."""
    try:
        until(call.is_held_up)
        yield
    finally:
        released.set()
        call.join(SECONDS)


# ---- threads that meet in the shim ----


def test_one_thread_at_a_time_places(ring: Ring, missing_page: MissingPage) -> None:
    """Who comes while another is copying his SQE places nothing of what that one has placed."""
    memory, _, released = missing_page
    first = Call(lib.uring_submit_one, ring._shim, 0, ffi.from_buffer("char[]", memory), 1)
    with leaving(first, released):
        second = Call(lib.uring_submit_one, ring._shim, 0, NOP, 2)
        second.join(0.1)
    assert (first.ended() or 0) & COUNT == 1
    assert second.ended() == -errno.ESTALE
    assert ring.copy_cqe(timeout=SECONDS).user_data == 1


def test_exit_waits_for_who_is_inside_and_lets_nobody_in(missing_page: MissingPage) -> None:
    """Nothing is unmapped under a thread that is copying, and none that comes later gets in."""
    memory, _, released = missing_page
    ring = Ring(8)
    shim = ring._shim
    for number in range(4):
        assert lib.uring_submit_one(shim, number, NOP, number) & COUNT == 1
    copying = Call(lib.uring_peek, shim, 0, 4, ffi.from_buffer("char[]", memory))
    with leaving(copying, released):
        exiting = Call(lib.uring_exit, shim)
        until(lambda: lib.uring_set_wait_flags(shim, 0) == -errno.ESHUTDOWN)
        exiting.join(0.1)
        assert exiting.is_alive()
    assert (copying.ended() or 0) & COUNT == 4
    assert exiting.ended() == 0
    ring.close()


def test_who_is_behind_gets_nothing_that_another_has(ring: Ring) -> None:
    """An older count than the one that was acknowledged gives nothing, and changes nothing."""
    shim, room = ring._shim, ffi.new("char[]", 16 * 8)
    for number in range(4):
        assert lib.uring_submit_one(shim, number, NOP, number) & COUNT == 1
    assert lib.uring_take(shim, 0, 3) & COUNT == 3
    assert lib.uring_take(shim, 2, 1) & COUNT == 1  # acknowledges two
    assert lib.uring_take(shim, 0, 4) & COUNT == 0
    assert lib.uring_peek(shim, 1, 4, room) & COUNT == 0
    soon = time.monotonic_ns() + 50_000_000
    assert lib.uring_wait(shim, 0, 8, soon) == -errno.EAGAIN
    assert lib.uring_wait_min(shim, 0, 8, soon, soon) == -errno.EAGAIN
    assert lib.uring_take(shim, 2, 4) & COUNT == 2
    assert [int.from_bytes(ffi.buffer(ring._inbox)[at : at + 8], "little") for at in (0, 16)] == [
        2,
        3,
    ]


def test_completions_are_given_again_until_they_are_acknowledged(ring: Ring) -> None:
    """Who asks again with the same count gets the same completions."""
    for number in range(3):
        assert lib.uring_submit_one(ring._shim, number, NOP, number) & COUNT == 1
    assert lib.uring_take(ring._shim, 0, 2) & COUNT == 2
    assert lib.uring_take(ring._shim, 0, 3) & COUNT == 3
    assert lib.uring_ready(ring._shim, 1) == 2


def test_inbox_takes_no_more_than_it_holds(ring: Ring) -> None:
    """What does not fit in it stays in the queue, whatever is asked for."""
    entries = ring.params.cq_entries
    for number in range(4):
        assert lib.uring_submit_one(ring._shim, number, NOP, number) & COUNT == 1
    assert lib.uring_take(ring._shim, 0, 4) & COUNT == 4
    for number in range(4, 4 + entries):
        assert lib.uring_submit_one(ring._shim, number, NOP, number) & COUNT == 1
    assert lib.uring_take(ring._shim, 0, 4 * entries) & COUNT == entries
    assert lib.uring_take(ring._shim, entries, 4 * entries) & COUNT == 4


def test_submit_counts_no_completion_of_a_batch(ring: Ring, pipe: tuple[int, int]) -> None:
    """What has ended of a batch is not what one waits for who has submitted something else."""
    batch = uring.Batch([Read(pipe[0], bytearray(1)), Nop()])
    running = Call(lambda: len(ring.run(batch)))
    until(lambda: lib.uring_waiters(ring._shim))
    for _ in range(3):
        ring.queue(Timeout(0.01))
        ring.submit_and_wait()
        assert len(ring.copy_cqes()) == 1
    os.write(pipe[1], b"x")
    assert running.ended() == 2


def test_task_work_that_waits_is_fetched(ring_refusal: str, pipe: tuple[int, int]) -> None:
    """With TASKRUN_FLAG a look enters the kernel when that says that something waits."""
    assert not ring_refusal
    command = ["sh", "-c", "sleep 0.05; printf x"]
    with Ring(8, flags=SetupFlags.COOP_TASKRUN | SetupFlags.TASKRUN_FLAG) as ring:
        shim, spins = ring._shim, range(10_000_000)
        for _ in range(5):
            ring.queue(Read(pipe[0], bytearray(1)))
            ring.submit()
            tail = shim.cq_tail[0]
            with subprocess.Popen(command, stdout=pipe[1]):
                for _ in spins:  # no system call in here, for any would run the task work
                    if shim.sq_flags[0] & SQRingFlags.TASKRUN or shim.cq_tail[0] != tail:
                        break
                assert len(ring.copy_cqes()) == 1


def test_sqe_of_128_bytes_does_not_go_into_64(ring: Ring) -> None:
    """The shim refuses it by itself; nothing is placed."""
    assert lib.uring_submit128(ring._shim, 0, bytes(128), bytes(8), 1) == -errno.EINVAL
    assert ring.sq.tail == 0


# ---- forks ----


def test_mappings_are_not_there_in_a_child(ring: Ring) -> None:
    """The child of a fork has no page of the ring's queues."""
    assert ring.fd >= 0
    maps = Path("/proc/self/maps")
    assert "anon_inode:[io_uring]" in maps.read_text("utf-8")
    assert in_child(lambda: "anon_inode:[io_uring]" not in maps.read_text("utf-8"))


def test_child_unmaps_nothing_and_waits_for_nobody(ring: Ring, missing_page: MissingPage) -> None:
    """In a child the ring is let go of at once, though a thread of the parent's is inside."""
    memory, _, released = missing_page
    ring.queue(Nop())
    ring.submit()
    copying = Call(lib.uring_peek, ring._shim, 0, 1, ffi.from_buffer("char[]", memory))
    ended = threading.Event()

    def fork() -> int:
        assert in_child(lambda: lib.uring_exit(ring._shim) == 0)
        ended.set()
        return 0

    with leaving(copying, released):
        Call(fork)
        assert ended.wait(SECONDS)
    assert (copying.ended() or 0) & COUNT == 1


def test_closed_array_of_a_parents_group_is_not_unmapped_in_a_child(ring: Ring) -> None:
    """What lies there in the child is somebody else's."""
    group = ring.register_buffer_ring(256, size=16, kernel_memory=True)
    shim = group._block.shim
    address = int(ffi.cast("uintptr_t", shim.ring))

    def look() -> bool:
        place = f"{address:x}-"
        return place not in Path("/proc/self/maps").read_text("utf-8")

    assert not look()
    assert in_child(look)


# ---- memory ----


def test_refused_setup_gives_its_memory_back() -> None:
    """The memory of a NO_MMAP ring that the kernel refuses is not left mapped."""

    def mapped() -> int:
        return len(Path("/proc/self/maps").read_text("utf-8").splitlines())

    def refused() -> None:
        with pytest.raises(uring.SetupError):
            Ring(8, flags=SetupFlags.NO_MMAP, attach_wq=2**31 - 1)

    refused()
    before = mapped()
    size = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    for _ in range(300):
        refused()
    grown = int(Path("/proc/self/statm").read_text("ascii").split()[0]) - size
    assert mapped() <= before + 8
    assert grown * mmap.PAGESIZE < 300 * 2 * mmap.PAGESIZE


def test_only_buffers_that_there_are_go_to_the_kernel(ring: Ring) -> None:
    """A buffer beyond the last, or longer than it is, is refused; and has no place in the ring."""
    group = ring.register_send_buffer_ring(4, size=16)
    shim = group._block.shim
    assert lib.uring_buffers_give(shim, 4, 16) == -errno.EINVAL
    assert lib.uring_buffers_give(shim, 0, 17) == -errno.EINVAL
    assert lib.uring_buffers_behind(shim, 4, 1) == -errno.EINVAL
    assert shim.tail == 0
    group.close()
    assert lib.uring_buffers_give(shim, 0, 16) == -errno.ESHUTDOWN
    assert shim.tail == 0


def test_arguments_beyond_the_region_are_refused() -> None:
    """The region of registered waits has an end, which the shim knows."""
    with Ring(8, flags=SetupFlags.R_DISABLED) as ring:
        assert lib.uring_region_set(ring._shim, 0, -1, 0) == -errno.EFAULT
        region = ring.register_wait_region()
        assert lib.uring_region_set(ring._shim, len(region), -1, 0) == 0
        assert lib.uring_region_set(ring._shim, len(region) + 1, -1, 0) == -errno.EFAULT
        assert lib.uring_region_set(ring._shim, 2**32 - 1, -1, 0) == -errno.EFAULT


def test_flags_of_the_cq_are_not_written_where_there_are_none() -> None:
    """Before Linux 5.8 their offset is 0, where the head of the SQ is."""
    shim, params = ffi.new("struct uring *"), ffi.new("struct uring_params *")
    assert lib.uring_setup(shim, 4, params) == 0
    ffi.buffer(params)[104:108] = bytes(4)  # cq_off.flags
    inbox = ffi.new("char[]", 16 * params.cq_entries)
    try:
        assert lib.uring_map(shim, params, inbox) == 0
        assert lib.uring_set_cq_flags(shim, 1) == -errno.EOPNOTSUPP
    finally:
        assert lib.uring_exit(shim) == 0
