"""
The guards of the shim one by one, called as the package never calls it, or not twice at once.

A thread is held up inside of the shim by memory that is not there yet (see `missing_page`).
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

import pytest
from fault_filters import ask
from shared import in_child

import uring
from uring import Nop, Opcode, PollAdd, Read, Ring, SetupFlags, Timeout
from uring._ffi import ffi, lib
from uring.flags import CQEFlags, NopFlags, SQRingFlags

NOP = bytes(64)
DEFER = SetupFlags.DEFER_TASKRUN | SetupFlags.SINGLE_ISSUER
MissingPage = tuple[mmap.mmap, int, threading.Event]
SECONDS = 10.0
COUNT = 0xFFFFFFFF  # the low half of what the shim returns


def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def nops(ring: Ring, first: int, count: int) -> None:
    """Have so many completions posted, which begin with this number."""
    for number in range(first, first + count):
        assert lib.uring_submit_one(ring._shim, number, NOP, number) & COUNT == 1


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


LOOKS: dict[str, Callable[[Any], int]] = {
    "take": lambda shim: lib.uring_take(shim, 0, 4),
    "peek": lambda shim: lib.uring_peek(shim, 0, 4, ffi.new("char[]", 64)),
    "ready": lambda shim: lib.uring_ready(shim, 0),
    "wait": lambda shim: lib.uring_wait(shim, 0, 1, 0),
    "wait_min": lambda shim: lib.uring_wait_min(shim, 0, 1, 0, 0),
    "run": lambda shim: begin_at(shim, NOP)[0],
}


@pytest.mark.parametrize("name", LOOKS)
def test_one_thread_at_a_time_looks(ring: Ring, missing_page: MissingPage, name: str) -> None:
    """Who comes while another is copying completions out does not move them under his hands."""
    memory, _, released = missing_page
    nops(ring, 0, 4)
    copying = Call(lib.uring_peek, ring._shim, 0, 4, ffi.from_buffer("char[]", memory))
    with leaving(copying, released):
        looking = Call(LOOKS[name], ring._shim)
        looking.join(0.1)
        assert looking.is_alive()
    assert looking.ended() is not None


def test_one_thread_at_a_time_gives_buffers(ring: Ring, missing_page: MissingPage) -> None:
    """Two that come back at once stand in two places of the ring."""
    memory, _, released = missing_page
    group = ring.register_send_buffer_ring(4, size=16)
    shim, array = group._block.shim, group._block.shim.ring
    place = ffi.from_buffer("char[]", memory)
    shim.ring = place
    first = Call(lib.uring_buffers_give, shim, 2, 16)
    with leaving(first, released):
        second = Call(lib.uring_buffers_give, shim, 3, 16)
        second.join(0.1)
        assert second.is_alive()
    assert (first.ended(), second.ended(), shim.tail) == (0, 0, 2)
    assert [shim.bids[0], shim.bids[1]] == [2, 3]
    shim.ring = array


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


@pytest.mark.parametrize("flags", [SetupFlags(0), SetupFlags.CQE_MIXED], ids=str)
def test_inbox_takes_no_more_than_it_holds(ring_refusal: str, flags: SetupFlags) -> None:
    """What does not fit in it stays in the queue, whatever is asked for."""
    assert not ring_refusal
    with Ring(8, flags=flags) as ring:
        shim, entries = ring._shim, ring.params.cq_entries
        nops(ring, 0, 4)
        assert lib.uring_take(shim, 0, 4) & COUNT == 4
        nops(ring, 4, entries - 1)
        assert lib.uring_take(shim, 0, 4 * entries) & COUNT == entries
        assert lib.uring_take(shim, entries, 4 * entries) & COUNT == 3


def test_wait_for_more_than_fits_ends_with_a_full_queue(ring: Ring) -> None:
    """Of whatever kind it is; else it would never end."""
    nops(ring, 0, ring.params.cq_entries)
    late = time.monotonic_ns() + 10**10
    assert lib.uring_wait(ring._shim, 0, 1000, late) == 0
    assert lib.uring_wait_min(ring._shim, 0, 1000, late, late) == 0


@pytest.mark.parametrize("flag", [SetupFlags.NO_MMAP, SetupFlags.CQE_MIXED])
def test_resize_is_refused_by_rings_in_memory_of_ours(ring_refusal: str, flag: SetupFlags) -> None:
    """And by those with completions of two sizes: neither is driven, and they stay as they are."""
    assert not ring_refusal
    with Ring(4, flags=DEFER | flag) as ring:
        params = ffi.new("struct uring_params *")
        params.flags, params.sq_entries, params.cq_entries = SetupFlags.CQSIZE, 8, 16
        assert lib.uring_resize(ring._shim, 0, params) == -errno.EOPNOTSUPP
        assert (ring.sq.entries, ring.cq.entries) == (4, 8)


def test_resize_counts_what_is_in_the_inbox(ring_refusal: str) -> None:
    """Completions that were taken and not acknowledged must fit beside those in the queue."""
    assert not ring_refusal
    with Ring(8, flags=DEFER) as ring:
        nops(ring, 0, 4)
        assert lib.uring_take(ring._shim, 0, 4) & COUNT == 4
        nops(ring, 4, 14)
        params = ffi.new("struct uring_params *")
        params.flags, params.sq_entries, params.cq_entries = SetupFlags.CQSIZE, 8, 16
        assert lib.uring_resize(ring._shim, 0, params) == -errno.EOVERFLOW
        assert lib.uring_resize(ring._shim, 2, params) == 0
        assert lib.uring_take(ring._shim, 2, 16) & COUNT == 16


def test_submit_counts_no_completion_of_a_batch(ring: Ring, pipe: tuple[int, int]) -> None:
    """What has ended of a batch is not what one waits for who has submitted something else."""
    running = Call(lambda: len(ring.run([Read(pipe[0], bytearray(1)) for _ in range(2)])))
    until(lambda: lib.uring_waiters(ring._shim))
    os.write(pipe[1], b"x")  # the run waits for both, and leaves the first where it is
    until(lambda: ring.cq.tail == 1)
    ring.queue(Timeout(0.01))
    ring.submit_and_wait()
    assert len(ring.copy_cqes()) == 1
    os.write(pipe[1], b"x")
    assert running.ended() == 2


def test_task_work_that_waits_is_fetched(ring_refusal: str, pipe: tuple[int, int]) -> None:
    """With TASKRUN_FLAG a look enters the kernel when that says so, though something is there."""
    assert not ring_refusal
    flags = SetupFlags.DEFER_TASKRUN | SetupFlags.SINGLE_ISSUER | SetupFlags.TASKRUN_FLAG
    with Ring(8, flags=flags) as ring:
        ring.queue_all([Read(pipe[0], bytearray(1)), Nop()])
        ring.submit()
        os.write(pipe[1], b"x")
        assert ring.sq.flags & SQRingFlags.TASKRUN
        assert len(ring.copy_cqes()) == 2


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


def test_child_gives_no_buffer_to_the_parents_kernel(ring: Ring) -> None:
    """The array of a group is shared with the parent: in a child nothing is written to it."""
    group = ring.register_buffer_ring(4, size=16)
    shim = group._block.shim
    assert in_child(lambda: lib.uring_buffers_give(shim, 0, 16) == -errno.EOWNERDEAD)
    assert group.inside == 4


def test_child_does_not_unmap_what_has_the_place_of_the_parents_array(ring: Ring) -> None:
    """What lies in the child where the array was in the parent is somebody else's."""
    group = ring.register_buffer_ring(256, size=16, kernel_memory=True)
    shim = group._block.shim
    address = int(ffi.cast("uintptr_t", shim.ring))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p

    def is_mapped() -> bool:
        return f"{address:x}-" in Path("/proc/self/maps").read_text("utf-8")

    def look() -> bool:
        was_there = is_mapped()
        place, size = ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE)
        fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
        libc.mmap(place, size, mmap.PROT_READ, fixed, -1, ctypes.c_long(0))
        lib.uring_buffers_free(shim)
        return not was_there and is_mapped()

    assert is_mapped()
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


# ---- threads whose enters are held up ----

# By a filter of the kernel's (seccomp) that asks a listener, which is the test: so it can do
# something where a thread has made up its mind and the kernel has not seen it yet, and can have a
# call fail as it seldom does by itself. A filter is for one thread, and ends with it.
ENTER: Final = 426  # on every architecture but alpha
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
_GO_ON: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


class HeldCall(threading.Thread):
    """A call in a thread of its own; leaving the block lets it go on."""

    def __init__(self, call: Callable[..., int], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._call, self._arguments = call, arguments
        self._ready = threading.Event()
        self._fd = -1
        self.answer: int | None = None

    def run(self) -> None:
        """Make it."""
        self._fd = ask(ENTER)
        self._ready.set()
        self.answer = self._call(*self._arguments)

    def __enter__(self) -> Self:
        self.start()
        assert self._ready.wait(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)  # then the kernel answers ENOSYS to what is still asked
        self.join(SECONDS)

    def entering(self) -> int:
        """Wait until it enters: what names this time."""
        told = bytearray(80)  # struct seccomp_notif
        fcntl.ioctl(self._fd, _RECEIVE, told)
        (number,) = struct.unpack_from("=Q", told)
        return int(number)

    def go_on(self, number: int, error: int | None = None) -> None:
        """Let the kernel do what is asked, or answer with `error`; 0 stands for nothing done."""
        answer = struct.pack("=QqiI", number, 0, -(error or 0), _GO_ON if error is None else 0)
        fcntl.ioctl(self._fd, _SEND, answer)

    def refuse(self, error: int) -> None:
        """Answer with `error` to all that it asks until it has ended."""
        asked = select.poll()
        asked.register(self._fd, select.POLLIN)
        while self.is_alive():
            if (self._fd, select.POLLIN) in asked.poll(10):
                self.go_on(self.entering(), error)

    def ended(self) -> int:
        """The answer."""
        self.join(SECONDS)
        assert self.answer is not None
        return self.answer


def test_submit_that_is_interrupted_goes_on(ring: Ring) -> None:
    """EINTR is no error of a submit: the SQE is taken, once."""
    with HeldCall(lib.uring_submit_one, ring._shim, 0, NOP, 1) as submitting:
        submitting.go_on(submitting.entering(), errno.EINTR)
        submitting.go_on(submitting.entering())  # a flush, which helps where something can
        submitting.go_on(submitting.entering())
        assert submitting.ended() & COUNT == 1
    assert ring.cq.tail == 1


def test_submit_of_which_nothing_is_taken_ends(ring: Ring) -> None:
    """It does not ask again and again; the SQE stays where it is."""
    with HeldCall(lib.uring_submit_one, ring._shim, 0, NOP, 1) as submitting:
        submitting.go_on(submitting.entering(), 0)
        assert submitting.ended() == 0
    assert (ring.sq.head, ring.sq.tail) == (0, 1)


def test_resize_does_not_wait_for_who_waits(ring_refusal: str) -> None:
    """Who may stay long in there is told of."""
    assert not ring_refusal
    with Ring(4, flags=DEFER) as ring:
        params = ffi.new("struct uring_params *")
        params.flags, params.sq_entries, params.cq_entries = SetupFlags.CQSIZE, 8, 16
        with HeldCall(lib.uring_wait, ring._shim, 0, 1, -1) as waiting:
            number = waiting.entering()
            resizing = Call(lib.uring_resize, ring._shim, 0, params)
            resizing.join(SECONDS)
            answer = resizing.answer
            waiting.go_on(number, errno.EINTR)
            assert answer == -errno.EBUSY
            assert waiting.ended() == -errno.EINTR


def test_head_stands_still_for_who_is_about_to_wait(ring: Ring) -> None:
    """What another takes between one's counting and one's waiting still ends the wait."""
    shim = ring._shim
    with HeldCall(lib.uring_wait, shim, 0, 1, -1) as waiting:
        number = waiting.entering()
        nops(ring, 0, 1)
        assert lib.uring_take(shim, 0, 1) & COUNT == 1
        waiting.go_on(number)
        waiting.join(1)
        is_stuck = waiting.is_alive()
        nops(ring, 1, 1)  # or it would be so for ever
        assert not is_stuck
        assert waiting.ended() == 0


def test_nobody_begins_to_wait_on_a_full_queue_that_others_must_leave(ring: Ring) -> None:
    """Who comes while the head stands still, and nothing can be posted, does not join them."""
    shim, entries = ring._shim, ring.params.cq_entries
    with HeldCall(lib.uring_wait, shim, 0, entries, -1) as waiting:
        number = waiting.entering()
        nops(ring, 0, entries)
        assert lib.uring_take(shim, 0, entries) & COUNT == entries
        assert lib.uring_take(shim, entries, 1) & COUNT == 0
        with HeldCall(lib.uring_wait, shim, entries, 1, -1) as second:
            second.join(1)
            assert not second.is_alive()
            assert second.answer == -errno.EAGAIN
        waiting.go_on(number)
        assert waiting.ended() == -errno.EAGAIN


def test_look_waits_until_what_has_overflowed_can_be_posted(ring: Ring) -> None:
    """The queue is full of what was taken, and stays so until the waiters have left."""
    shim, entries = ring._shim, ring.params.cq_entries
    with HeldCall(lib.uring_wait, shim, 0, entries, -1) as waiting:
        number = waiting.entering()
        nops(ring, 0, entries + 1)
        assert lib.uring_take(shim, 0, entries) & COUNT == entries
        looking = Call(lib.uring_take, shim, entries, 1)
        looking.join(0.1)
        waiting.go_on(number)
        assert (looking.ended() or 0) & COUNT == 1
        assert waiting.ended() == -errno.EAGAIN


@pytest.mark.parametrize("look", [lib.uring_take, lib.uring_peek])
def test_look_that_is_interrupted_finds_nothing(look: Any, ring_refusal: str) -> None:
    """EINTR is no error of a look: the next one finds what is there."""
    assert not ring_refusal
    room = ffi.new("char[]", 64)
    with Ring(4, flags=DEFER) as ring:
        more = () if look is lib.uring_take else (room,)
        with HeldCall(look, ring._shim, 0, 4, *more) as looking:
            looking.go_on(looking.entering(), errno.EINTR)
            assert looking.ended() == 0


# ---- batches ----


@pytest.mark.parametrize(
    ("refused", "told"), [(errno.EAGAIN, errno.ENOMEM), (errno.EINTR, errno.EIO)]
)
def test_run_that_the_kernel_goes_on_refusing_says_so(ring: Ring, refused: int, told: int) -> None:
    """It does not wait for what was never taken; that stays published, and a later call ends it."""
    kept = list[Any]()

    def call() -> int:
        kept.extend(begin(ring, NOP))
        return int(kept[0])

    with HeldCall(call) as running:
        running.refuse(refused)
        assert running.ended() == -told
    assert (ring.sq.head, ring.sq.tail, kept[1].placed, kept[1].ended) == (0, 1, 1, 0)
    assert lib.uring_run(ring._shim, kept[1]) == 0
    assert kept[1].ended == 1


def test_batch_that_the_kernel_goes_on_refusing_raises(ring: Ring) -> None:
    """ENOMEM; what it has published is in flight, and ended by whoever runs next."""
    told = list[BaseException]()

    def call() -> int:
        with pytest.raises(uring.EnterError) as info:
            ring.run([Nop()], timeout=SECONDS)
        told.append(info.value)
        return 0

    with HeldCall(call) as running:
        running.refuse(errno.EAGAIN)
        assert running.ended() == 0
    assert [getattr(error, "errno", None) for error in told] == [errno.ENOMEM]
    assert "still in flight" in str([getattr(error, "__notes__", None) for error in told])
    assert ring.run([Nop()], timeout=SECONDS).res.tolist() == [0]
    assert ring.in_flight == 0


def post(ring: Ring, number: int, res: int, flags: CQEFlags) -> None:
    """Write a completion into the queue, which the kernel knows nothing of."""
    shim = ring._shim
    place = (shim.cq_tail[0] & ring.cq.mask) * 16
    shim.cqes[place : place + 16] = struct.pack("=QiI", number, res, flags)
    shim.cq_tail[0] += 1


def test_notification_behind_the_end_of_a_send_ends_nothing(
    ring_refusal: str, pipe: tuple[int, int]
) -> None:
    """A send that has failed without MORE is not counted again for what else is in flight."""
    assert not ring_refusal
    poll = PollAdd(pipe[0], 1)._encode()[0]
    with Ring(8) as ring:
        shim = ring._shim
        answer, run, _kept = begin(ring, poll * 2)
        assert answer == -errno.EAGAIN
        sqes = ffi.from_buffer("char[]", bytes([Opcode.SEND_ZC]) + poll[1:] + poll)
        run.sqes = sqes  # as if the first were a send
        post(ring, 100, -errno.EPERM, CQEFlags(0))
        post(ring, 100, 0, CQEFlags.NOTIF)
        assert lib.uring_run(shim, run) == -errno.EAGAIN
        assert (run.placed, run.ended) == (2, 1)
        post(ring, 101, 1, CQEFlags(0))
        assert lib.uring_run(shim, run) == 0


def begin(ring: Ring, sqes: bytes, first: int = 100) -> tuple[int, Any, Any]:
    """Begin a run at the door of the shim: (its answer, what must be kept)."""
    return begin_at(ring._shim, sqes, first)


def begin_at(shim: Any, sqes: bytes, first: int = 100) -> tuple[int, Any, Any]:
    """Do the same without a Ring."""
    run = ffi.new("struct uring_run *")
    count = len(sqes) // 64
    kept = ffi.from_buffer("char[]", sqes), ffi.new("char[]", 16 * count)
    run.sqes, run.cqes = kept
    run.count = count
    return lib.uring_run_begin(shim, run, first), run, kept


def test_peek_beyond_a_full_inbox_shows_nothing_of_a_run(ring: Ring, pipe: tuple[int, int]) -> None:
    """What is still in the queue then may be the run's."""
    shim, entries = ring._shim, ring.params.cq_entries
    record, _pin = Read(pipe[0], bytearray(1))._encode()
    answer, run, _kept = begin(ring, record)
    assert answer == -errno.EAGAIN
    nops(ring, 0, entries)
    assert lib.uring_take(shim, 0, entries) & COUNT == entries
    nops(ring, entries, 4)
    os.write(pipe[1], b"x")
    until(lambda: ring.cq.tail == entries + 5)
    assert lib.uring_peek(shim, 0, 64, ffi.new("char[]", 16 * 64)) & COUNT == entries
    assert lib.uring_take(shim, entries, 64) & COUNT == 4
    assert lib.uring_run(shim, run) == 0


def test_sealed_ring_takes_no_new_run(ring: Ring) -> None:
    """It is refused, and no completion is taken for one of it."""
    assert lib.uring_seal(ring._shim) == 0
    answer, _run, _kept = begin(ring, NOP, first=7)
    assert answer == -errno.ESHUTDOWN
    number = (7).to_bytes(8, "little")
    assert lib.uring_sealed_submit(ring._shim, 0, NOP, number, 1) & COUNT == 1
    assert lib.uring_ready(ring._shim, 0) == 1


def test_run_that_is_let_go_is_looked_for_in_the_kernel(
    ring_refusal: str, pipe: tuple[int, int]
) -> None:
    """Whether it has ended, with DEFER_TASKRUN only an enter tells."""
    assert not ring_refusal
    with Ring(4, flags=DEFER) as ring:
        record, _pin = Read(pipe[0], bytearray(1))._encode()
        answer, run, _kept = begin(ring, record)
        assert answer == -errno.EAGAIN
        assert lib.uring_run_release(ring._shim, run) == -errno.EAGAIN
        os.write(pipe[1], b"x")
        assert lib.uring_run_release(ring._shim, run) == 0


def test_sealed_ring_takes_no_more_of_a_run(ring: Ring, pipe: tuple[int, int]) -> None:
    """What was placed ends; what was not is not placed any more."""
    read = Read(pipe[0], bytearray(1))
    record, _pin = read._encode()
    answer, run, _kept = begin(ring, record * 20)
    assert (answer, run.placed) == (-errno.EAGAIN, 16)
    assert lib.uring_seal(ring._shim) == 0
    os.write(pipe[1], bytes(16))
    until(lambda: ring.cq.tail == 16)
    assert lib.uring_run(ring._shim, run) == -errno.ESHUTDOWN
    assert run.placed == 16
    lib.uring_run_stop(run)
    assert lib.uring_run_release(ring._shim, run) == 0


def test_chain_that_does_not_fit_any_more_is_an_error(ring: Ring) -> None:
    """As when the ring was made smaller behind the caller's back: it does not wait for ever."""
    linked = Nop().linked()._encode()[0]
    answer, run, _kept = begin(ring, linked * 8 + NOP)
    assert answer == -errno.EOVERFLOW
    lib.uring_run_stop(run)
    assert lib.uring_run_release(ring._shim, run) == 0


def test_run_is_not_placed_behind_a_chain_that_is_open(ring: Ring) -> None:
    """What fails there, published and not taken by the kernel yet, does not cancel the batch."""
    shim = ring._shim
    failing = Read(-1, bytearray(1)).linked()._encode()[0]
    shim.sqes[0:64] = failing
    shim.sq_tail[0] = 1
    assert ring.run([Nop()]).res.tolist() == [0]
    assert ring.copy_cqe(timeout=SECONDS).res == -errno.EBADF


def test_run_that_never_has_to_wait_looks_at_the_clock(ring: Ring) -> None:
    """Hundreds of thousands of reads that end at once do not outlast the timeout."""
    count = 400_000
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        batch = uring.ReadMany(fd, bytearray(count), array("q", bytes(8 * count)), 1)
        with pytest.raises(TimeoutError, match=r"when \d+ of 400000 operations"):
            ring.run(batch, timeout=0.01)
    finally:
        os.close(fd)


def test_run_fetches_what_the_kernel_holds_back(ring_refusal: str) -> None:
    """What ends at once by task work is no timeout, though nothing was waited for."""
    assert not ring_refusal
    with Ring(4, flags=DEFER) as ring:
        assert ring.run([Nop(nop_flags=NopFlags.TW)], timeout=0).res.tolist() == [0]


def test_resize_does_nothing_where_the_array_is_not_known() -> None:
    """Where it is in the new queues, the kernel does not say; where it should be is compared."""
    shim, params = ffi.new("struct uring *"), ffi.new("struct uring_params *")
    params.flags = DEFER
    assert lib.uring_setup(shim, 32, params) == 0
    offset = int.from_bytes(ffi.buffer(params)[64:68], "little")  # sq_off.array
    ffi.buffer(params)[64:68] = (offset - 64).to_bytes(4, "little")
    inbox = ffi.new("char[]", 16 * 65536)
    try:
        assert lib.uring_map(shim, params, inbox) == 0
        sizes = ffi.new("struct uring_params *")
        sizes.flags, sizes.sq_entries, sizes.cq_entries = SetupFlags.CQSIZE, 64, 128
        assert lib.uring_resize(shim, 0, sizes) == -errno.EOPNOTSUPP
    finally:
        assert lib.uring_exit(shim) == 0
