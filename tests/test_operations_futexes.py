"""Futexes: encoded and on the real kernel."""

import array
import errno
import gc
import json
import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

import uring
from uring import FutexFlags, FutexWait, FutexWaiter, FutexWaitv, FutexWake, _memory

LAYOUTS: Final = json.loads(
    (Path(__file__).parent / "data" / "layouts.json").read_text(encoding="ascii")
)["structs"]
PRIVATE: Final = FutexFlags.SIZE_U32 | FutexFlags.PRIVATE
NUMA: Final = FutexFlags.SIZE_U32 | FutexFlags.NUMA
SHARED: Final = mmap.mmap(-1, mmap.PAGESIZE)
"""Memory whose alignment is known."""
WORD: Final = memoryview(SHARED)[64:68]
ADDRESS: Final = _memory.readable(WORD)[1]


def nonzero(op: uring.Operation) -> dict[str, Any]:
    """The fields of the encoded record that are not 0."""
    return {name: number for name, number in attrs.asdict(op.sqe()).items() if number}


def set_word(value: int, word: memoryview = WORD) -> None:
    """Store the value of a futex."""
    word[:4] = value.to_bytes(4, sys.byteorder)


@pytest.fixture(autouse=True)
def _clear() -> None:
    SHARED[:] = bytes(len(SHARED))


# ---- encoding: fields and values by hand from linux/io_uring.h and linux/futex.h ----

ALL_BITS: Final = 0xFFFFFFFF

VECTORS: Final[list[tuple[uring.Operation, dict[str, int]]]] = [
    (
        FutexWait(WORD, 5),
        {"opcode": 51, "fd": 0x2, "addr": ADDRESS, "off": 5, "addr3": ALL_BITS},
    ),
    (
        FutexWait(WORD, 0, mask=3, futex_flags=PRIVATE),
        {"opcode": 51, "fd": 0x82, "addr": ADDRESS, "addr3": 3},
    ),
    (
        FutexWait(memoryview(SHARED)[64:65], 255, mask=1, futex_flags=FutexFlags.SIZE_U8),
        {"opcode": 51, "addr": ADDRESS, "off": 255, "addr3": 1},
    ),
    (
        FutexWait(memoryview(SHARED)[64:66], 65535, mask=1, futex_flags=FutexFlags.SIZE_U16),
        {"opcode": 51, "fd": 0x1, "addr": ADDRESS, "off": 65535, "addr3": 1},
    ),
    (
        FutexWait(memoryview(SHARED)[64:72], 2**64 - 1, mask=1, futex_flags=FutexFlags.SIZE_U64),
        {"opcode": 51, "fd": 0x3, "addr": ADDRESS, "off": 2**64 - 1, "addr3": 1},
    ),
    (
        FutexWait(memoryview(SHARED)[64:72], 5, mask=1, futex_flags=NUMA | FutexFlags.MPOL),
        {"opcode": 51, "fd": 0xE, "addr": ADDRESS, "off": 5, "addr3": 1},
    ),
    (
        FutexWake(WORD),
        {"opcode": 52, "fd": 0x2, "addr": ADDRESS, "off": 1, "addr3": ALL_BITS},
    ),
    (
        FutexWake(WORD, 2**31 - 1, mask=3, futex_flags=PRIVATE),
        {"opcode": 52, "fd": 0x82, "addr": ADDRESS, "off": 2**31 - 1, "addr3": 3},
    ),
]


@pytest.mark.parametrize(("op", "expected"), VECTORS, ids=lambda value: repr(value)[:70])
def test_futex_operation_encodes_what_the_header_says(
    op: uring.Operation, expected: dict[str, int]
) -> None:
    """The fields of the record are those of the header, and all others are 0."""
    assert nonzero(op) == expected


def test_futex_waitv_encodes_an_array_of_waiters() -> None:
    """At addr lie len structs of the header's layout, one for each waiter, in their order."""
    waiters = [FutexWaiter(WORD, 5), FutexWaiter(WORD, 6, futex_flags=PRIVATE)]
    op = FutexWaitv(iter(waiters))  # type: ignore[arg-type]  # an iterator, on purpose
    record, pins = op._encode()
    assert nonzero(op) == {"opcode": 53, "addr": op.sqe().addr, "len": 2}
    assert len(record) == 64
    encoded = _memory.bytes_of(pins[0])  # type: ignore[index]  # (the array, the words)
    layout = LAYOUTS["futex_waitv"]
    assert len(encoded) == 2 * layout["size"]
    for place, (value, flags) in enumerate([(5, 0x2), (6, 0x82)]):
        part = encoded[place * layout["size"] :]
        expected = {"val": value, "uaddr": ADDRESS, "flags": flags, "__reserved": 0}
        for name, field in layout["fields"].items():
            start = field["offset"]
            found = int.from_bytes(part[start : start + field["size"]], sys.byteorder)
            assert found == expected[name]


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (FutexWait("x", 1), "bytes-like"),  # type: ignore[arg-type]  # wrong on purpose
        (FutexWait(memoryview(SHARED)[:8], 1), "8 bytes, but a futex with these flags has 4"),
        (FutexWait(memoryview(SHARED)[:2], 1), "2 bytes, but"),
        (FutexWait(memoryview(SHARED)[2:6], 1), "multiple of 4"),
        (FutexWait(WORD, 2**32), "value must be in"),
        (FutexWait(WORD, -1), "value must be in"),
        (FutexWait(WORD, "1"), "value must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
        (FutexWait(WORD, 1, mask=2**32), "mask must be in"),
        (FutexWait(WORD, 1, futex_flags="x"), "futex_flags must be"),  # type: ignore[arg-type]  # wrong on purpose
        (FutexWait(WORD, 1, futex_flags=2**31), "futex_flags must be in"),  # type: ignore[arg-type]  # wrong on purpose
        (FutexWait(WORD, 1, futex_flags=NUMA), "4 bytes, but a futex with these flags has 8"),
        (FutexWait(memoryview(SHARED)[4:12], 1, futex_flags=NUMA), "multiple of 8"),
        (FutexWait(bytes(8), 1, futex_flags=NUMA), "read-only"),
        (FutexWake(WORD, -1), "count must be in"),
        (FutexWake(WORD, 2**31), "count must be in"),
        (FutexWake(WORD, 1, mask=-1), "mask must be in"),
        (FutexWake(bytes(8), futex_flags=NUMA), "read-only"),
        (FutexWaitv([]), "1 to 128 futexes, not 0"),
        (FutexWaitv([FutexWaiter(WORD, 1)] * 129), "1 to 128 futexes, not 129"),
        (FutexWaitv([WORD]), "sequence of FutexWaiter"),  # type: ignore[list-item]  # wrong on purpose
        (FutexWaitv(5), "sequence of FutexWaiter"),  # type: ignore[arg-type]  # wrong on purpose
        (FutexWaitv([FutexWaiter(WORD, 2**32)]), "value must be in"),
        (FutexWaitv([FutexWaiter(memoryview(SHARED)[1:5], 1)]), "multiple of 4"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_futex_operation_refuses_what_does_not_fit(op: uring.Operation, message: str) -> None:
    """TypeError or ValueError before the kernel sees it: the word's size, place and value."""
    with pytest.raises((TypeError, ValueError), match=message):
        op.sqe()


def test_futex_waiter_is_a_value() -> None:
    """Waiters on one word with one value are equal, and cannot be changed."""
    assert FutexWaiter(WORD, 1) == FutexWaiter(WORD, 1) != FutexWaiter(WORD, 2)
    assert "memoryview of 4 bytes" in repr(FutexWaiter(WORD, 1))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        FutexWaiter(WORD, 1).value = 2  # type: ignore[misc]  # wrong on purpose


# ---- on the kernel ----


@pytest.mark.parametrize("flags", [FutexFlags.SIZE_U32, PRIVATE], ids=repr)
def test_futex_wake_wakes_who_waits(drive: Any, flags: FutexFlags) -> None:
    """The waiter completes with 0, the wake with how many there were."""
    set_word(5)
    (waiting,) = drive.submit(FutexWait(WORD, 5, futex_flags=flags))
    assert drive.ring.copy_cqes() == uring.Completions()
    (waking,) = drive.submit(FutexWake(WORD, futex_flags=flags))
    found = {cqe.user_data: cqe for cqe in drive.take(2)}
    assert (found[waiting].result(), found[waking].result()) == (0, 1)
    assert drive.result(FutexWake(WORD, futex_flags=flags)) == 0


def test_futex_wake_wakes_as_many_as_asked(drive: Any) -> None:
    """Of three waiters two are woken, then the one that is left; none is asked for nothing."""
    drive.submit(*[FutexWait(WORD, 0, user_data=1)] * 3)
    assert drive.run(FutexWake(WORD, 0))[0].res == 0
    drive.submit(FutexWake(WORD, 2, user_data=2))
    assert sorted((cqe.user_data, cqe.res) for cqe in drive.take(3)) == [(1, 0), (1, 0), (2, 2)]
    drive.submit(FutexWake(WORD, 2, user_data=2))
    assert sorted((cqe.user_data, cqe.res) for cqe in drive.take(2)) == [(1, 0), (2, 1)]


def test_futex_wait_with_another_value_does_not_wait(drive: Any) -> None:
    """The word holds something else: BlockingIOError."""
    set_word(4)
    assert isinstance(drive.fails(FutexWait(WORD, 5), errno.EAGAIN), BlockingIOError)
    waiter = FutexWaitv([FutexWaiter(WORD, 4), FutexWaiter(WORD, 5)])
    assert isinstance(drive.fails(waiter, errno.EAGAIN), BlockingIOError)


def test_futex_mask_says_who_is_woken(drive: Any) -> None:
    """A wake reaches those whose mask has a bit in common with its own; no bit at all is EINVAL."""
    drive.submit(FutexWait(WORD, 0, mask=1))
    assert drive.run(FutexWake(WORD, mask=2))[0].res == 0
    drive.submit(FutexWake(WORD, mask=3))
    assert sorted(cqe.res for cqe in drive.take(2)) == [0, 1]
    drive.fails(FutexWait(WORD, 0, mask=0), errno.EINVAL)
    drive.fails(FutexWake(WORD, mask=0), errno.EINVAL)


def test_futex_private_and_shared_do_not_meet(drive: Any) -> None:
    """A private wake does not reach a waiter who is not."""
    drive.submit(FutexWait(WORD, 0))
    assert drive.run(FutexWake(WORD, futex_flags=PRIVATE))[0].res == 0
    drive.submit(FutexWake(WORD))
    assert sorted(cqe.res for cqe in drive.take(2)) == [0, 1]


def test_futex_wake_reaches_another_process(drive: Any) -> None:
    """In shared memory a waiter is woken by a child of this process."""
    drive.submit(FutexWait(WORD, 0))
    child = os.fork()
    if not child:  # the child: no pytest, no exceptions that get out
        status = 1
        try:
            with uring.Ring(1) as ring:
                status = 0 if ring.run([FutexWake(WORD)])[0].res == 1 else 2
        finally:
            os._exit(status)
    assert drive.take()[0].res == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "flags", [FutexFlags.SIZE_U8, FutexFlags.SIZE_U16, FutexFlags.SIZE_U64], ids=int
)
def test_futex_of_another_size_is_refused_by_6_18(drive: Any, flags: FutexFlags) -> None:
    """Only words of 32 bits are known: EINVAL."""
    word = memoryview(SHARED)[64 : 64 + (1 << flags)]
    drive.fails(FutexWait(word, 1, mask=1, futex_flags=flags), errno.EINVAL)
    drive.fails(FutexWake(word, mask=1, futex_flags=flags), errno.EINVAL)


def test_futex_with_numa_has_its_node_written(drive: Any) -> None:
    """The kernel writes the node behind the word, so both are the caller's, and writable."""
    words = memoryview(SHARED)[64:72]
    words[4:] = b"\xff" * 4
    drive.fails(FutexWait(words, 7, futex_flags=NUMA), errno.EAGAIN)
    assert drive.result(FutexWake(words, futex_flags=NUMA)) == 0
    assert words[4:] != b"\xff" * 4
    drive.submit(FutexWait(words, 0, futex_flags=NUMA))
    drive.submit(FutexWake(words, futex_flags=NUMA))
    assert sorted(cqe.res for cqe in drive.take(2)) == [0, 1]


def test_futex_waitv_tells_which_was_woken(drive: Any) -> None:
    """The result is the index of the word."""
    words = [memoryview(SHARED)[start : start + 4] for start in (0, 8, 16)]
    for index, word in enumerate(words):
        set_word(index, word)
    waiter = FutexWaitv([FutexWaiter(word, index) for index, word in enumerate(words)])
    for index in (2, 0, 1):
        (waiting,) = drive.submit(waiter)
        (waking,) = drive.submit(FutexWake(words[index]))
        found = {cqe.user_data: cqe.result() for cqe in drive.take(2)}
        assert found == {waiting: index, waking: 1}


def test_futex_waitv_takes_128_futexes(drive: Any) -> None:
    """The most that one wait takes."""
    (waiting,) = drive.submit(FutexWaitv([FutexWaiter(WORD, 0)] * 128))
    drive.submit(FutexWake(WORD))
    found = {cqe.user_data: cqe.res for cqe in drive.take(2)}
    assert 0 <= found[waiting] < 128


@pytest.mark.parametrize("op", [FutexWait(WORD, 0), FutexWaitv([FutexWaiter(WORD, 0)])], ids=repr)
def test_futex_wait_can_be_cancelled(drive: Any, op: uring.Operation) -> None:
    """Cancelled by its number, the wait is ECANCELED; the cancel counts 1, unlike others."""
    drive.submit(attrs.evolve(op, user_data=1))  # type: ignore[misc]  # each of them is attrs
    (number,) = drive.submit(uring.AsyncCancel(1))
    found = {cqe.user_data: cqe.res for cqe in drive.take(2)}
    assert found == {1: -errno.ECANCELED, number: 1}
    assert drive.ring.in_flight == 0


@pytest.mark.parametrize("vector", [False, True])
def test_futex_word_is_pinned_while_somebody_waits(drive: Any, *, vector: bool) -> None:
    """Memory that nobody else has stays, and cannot be resized, until the completion."""
    memory = array.array("I", [7])
    op = FutexWaitv([FutexWaiter(memory, 7)]) if vector else FutexWait(memory, 7)
    drive.submit(op)
    with pytest.raises(BufferError):
        memory.append(0)
    wake = FutexWake(memory)
    del op, memory
    gc.collect()
    drive.submit(wake)
    assert sorted(cqe.res for cqe in drive.take(2)) == [0, 1]
    assert drive.ring.in_flight == 0


def test_futex_word_is_free_after_the_completion(drive: Any) -> None:
    """What was pinned can be resized again."""
    memory = array.array("I", [7])
    drive.fails(FutexWait(memory, 8), errno.EAGAIN)
    memory.append(0)
    assert struct.calcsize("I") == memory.itemsize == 4
