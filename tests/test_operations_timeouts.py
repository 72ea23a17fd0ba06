"""Timeouts in nanoseconds, repeated and updated: encoded and on the real kernel."""

import errno
import gc
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

import uring
from uring import TimeoutFlags, _memory
from uring.flags import CQEFlags, SQEFlags, SQRingFlags

Pipe = tuple[int, int]
MORE: Final = int(CQEFlags.MORE)
LAYOUTS: Final = json.loads(
    (Path(__file__).parent / "data" / "layouts.json").read_text(encoding="ascii")
)["structs"]
NS: Final = 1_000_000_000
LONG: Final = 60
"""Seconds that no test takes."""


def nonzero(op: uring.Operation) -> dict[str, Any]:
    """The fields of the encoded record that are not 0."""
    return {name: number for name, number in attrs.asdict(op.sqe()).items() if number}


# ---- encoding: fields and values by hand from linux/io_uring.h ----

F: Final = TimeoutFlags
ADDRESS: Final = ...
"""In an expectation: the address of the time, whatever it is."""

VECTORS: Final[list[tuple[uring.Operation, dict[str, Any]]]] = [
    (uring.Timeout(1), {"opcode": 11, "addr": ADDRESS, "len": 1}),
    (uring.Timeout(time_ns=1, count=7), {"opcode": 11, "addr": ADDRESS, "len": 1, "off": 7}),
    *(
        (
            uring.Timeout(1, timeout_flags=flag),
            {"opcode": 11, "addr": ADDRESS, "len": 1, "op_flags": bit},
        )
        for flag, bit in ((F.ABS, 0x1), (F.BOOTTIME, 0x4), (F.REALTIME, 0x8), (F.ABS | 0x20, 0x21))
    ),
    (
        uring.Timeout(1.5, timeout_flags=F.IMMEDIATE_ARG),
        {"opcode": 11, "addr": 3 * NS // 2, "len": 1, "op_flags": 0x80},
    ),
    (
        uring.TimeoutMultishot(1),
        {"opcode": 11, "addr": ADDRESS, "len": 1, "op_flags": 0x40},
    ),
    (
        uring.TimeoutMultishot(1, count=3, timeout_flags=F.BOOTTIME | F.ETIME_SUCCESS),
        {"opcode": 11, "addr": ADDRESS, "len": 1, "off": 3, "op_flags": 0x64},
    ),
    (
        uring.TimeoutMultishot(time_ns=5, timeout_flags=F.IMMEDIATE_ARG | F.REALTIME),
        {"opcode": 11, "addr": 5, "len": 1, "op_flags": 0xC8},
    ),
    (uring.LinkTimeout(1), {"opcode": 15, "addr": ADDRESS, "len": 1}),
    (
        uring.LinkTimeout(time_ns=5, timeout_flags=F.IMMEDIATE_ARG | F.ABS),
        {"opcode": 15, "addr": 5, "len": 1, "op_flags": 0x81},
    ),
    (uring.TimeoutRemove(5), {"opcode": 12, "addr": 5}),
    (uring.TimeoutUpdate(5, 1), {"opcode": 12, "addr": 5, "off": ADDRESS, "op_flags": 0x2}),
    (
        uring.TimeoutUpdate(5, 1, timeout_flags=F.ABS),
        {"opcode": 12, "addr": 5, "off": ADDRESS, "op_flags": 0x3},
    ),
    (
        uring.TimeoutUpdate(5, time_ns=7, timeout_flags=F.IMMEDIATE_ARG),
        {"opcode": 12, "addr": 5, "off": 7, "op_flags": 0x82},
    ),
    (
        uring.LinkTimeoutUpdate(5, 1, timeout_flags=F.ABS),
        {"opcode": 12, "addr": 5, "off": ADDRESS, "op_flags": 0x13},
    ),
    (
        uring.LinkTimeoutUpdate(5, time_ns=7, timeout_flags=F.IMMEDIATE_ARG),
        {"opcode": 12, "addr": 5, "off": 7, "op_flags": 0x92},
    ),
]


@pytest.mark.parametrize(("op", "expected"), VECTORS, ids=lambda value: repr(value)[:70])
def test_timeout_operation_encodes_what_the_header_says(
    op: uring.Operation, expected: dict[str, Any]
) -> None:
    """The fields of the record are those of the header, and all others are 0."""
    found = nonzero(op)
    known = {n: found.get(n) if value is ADDRESS else value for n, value in expected.items()}
    assert found == known


MAKERS: Final[list[Callable[..., uring.Operation]]] = [
    uring.Timeout,
    uring.TimeoutMultishot,
    uring.LinkTimeout,
    lambda *given, **more: uring.TimeoutUpdate(5, *given, **more),
    lambda *given, **more: uring.LinkTimeoutUpdate(5, *given, **more),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("given", "seconds", "nanoseconds"),
    [
        ({"seconds": 3}, 3, 0),
        ({"seconds": 0.5}, 0, NS // 2),
        ({"seconds": 1e-12}, 0, 1),
        ({"time_ns": 0}, 0, 0),
        ({"time_ns": 1_700_000_000_123_456_789}, 1_700_000_000, 123_456_789),
        ({"time_ns": 2**33 * NS}, 2**33, 0),
    ],
)
def test_timeout_lends_the_time_in_whole_nanoseconds(
    make: Callable[..., uring.Operation], given: dict[str, Any], seconds: int, nanoseconds: int
) -> None:
    """The struct holds seconds and nanoseconds, without loss where whole ones were given."""
    _, pin = make(**given)._encode()
    encoded = _memory.bytes_of(pin)  # type: ignore[arg-type]  # it is one
    layout = LAYOUTS["__kernel_timespec"]
    assert len(encoded) == layout["size"]
    for name, expected in (("tv_sec", seconds), ("tv_nsec", nanoseconds)):
        field = layout["fields"][name]
        start = field["offset"]
        assert int.from_bytes(encoded[start : start + field["size"]], "little") == expected


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"seconds": 1, "time_ns": 1},
        {"seconds": None},
        {"seconds": -1},
        {"seconds": 2**33},
        {"seconds": float("nan")},
        {"seconds": "1"},
        {"seconds": True},
        {"time_ns": -1},
        {"time_ns": 2**33 * NS + 1},
        {"time_ns": 1.0},
        {"time_ns": True},
        {"seconds": 1, "timeout_flags": F.UPDATE},
        {"seconds": 1, "timeout_flags": F.LINK_TIMEOUT_UPDATE},
        {"seconds": 1, "timeout_flags": F.MULTISHOT},
        {"seconds": 1, "timeout_flags": "ABS"},
    ],
    ids=repr,
)
def test_timeout_refuses_what_is_no_time(
    make: Callable[..., uring.Operation], given: dict[str, Any]
) -> None:
    """No time, two times, one out of range, and flags of another class: TypeError or ValueError."""
    with pytest.raises((TypeError, ValueError), match=r"time|seconds"):
        make(**given).sqe()


@pytest.mark.parametrize("count", [-1, 2**32, 1.0, True])
@pytest.mark.parametrize("kind", [uring.Timeout, uring.TimeoutMultishot])
def test_timeout_refuses_what_is_no_count(
    kind: Callable[..., uring.Operation], count: object
) -> None:
    """The kernel reads 32 bits of it: more, and what is no integer, is refused."""
    with pytest.raises((TypeError, ValueError), match="count"):
        kind(1, count=count).sqe()


def test_timeout_multishot_and_updates_refuse_flags_that_are_not_theirs() -> None:
    """A repeated timeout has no ABS, and an update keeps the clock of its target."""
    for op in (
        uring.TimeoutMultishot(1, timeout_flags=F.ABS),
        uring.TimeoutUpdate(1, 1, timeout_flags=F.BOOTTIME),
        uring.LinkTimeoutUpdate(1, 1, timeout_flags=F.REALTIME),
    ):
        with pytest.raises(ValueError, match="timeout_flags may be"):
            op.sqe()


# ---- on the kernel ----


def test_timeout_in_nanoseconds_counts_from_1970(drive: Any) -> None:
    """A time of day given whole is not over before it is."""
    due = time.time_ns() + 20_000_000
    op = uring.Timeout(time_ns=due, timeout_flags=F.ABS | F.REALTIME)
    assert drive.result(op) is True
    assert time.time_ns() >= due


def test_timeout_multishot_comes_count_times(drive: Any) -> None:
    """All but the last have MORE, all are ETIME, and none is an error."""
    drive.submit(uring.TimeoutMultishot(0.005, count=3))
    cqes = drive.take(3)
    assert [(cqe.res, cqe.flags) for cqe in cqes] == [
        (-errno.ETIME, MORE),
        (-errno.ETIME, MORE),
        (-errno.ETIME, 0),
    ]
    assert [(cqe.error, cqe.result()) for cqe in cqes] == [(None, True)] * 3
    assert drive.ring.in_flight == 0


@pytest.mark.parametrize("flags", [F(0), F.BOOTTIME, F.REALTIME, F.ETIME_SUCCESS])
def test_timeout_multishot_goes_on_until_removed(drive: Any, flags: TimeoutFlags) -> None:
    """Without a count there is no end but by removal, with ECANCELED, which is no error."""
    drive.submit(uring.TimeoutMultishot(time_ns=5_000_000, timeout_flags=flags, user_data=1))
    assert all(cqe.more and cqe.result() for cqe in drive.take(3))
    (number,) = drive.submit(uring.TimeoutRemove(1))
    last = {}
    while drive.ring.in_flight:
        (cqe,) = drive.take()
        last[cqe.user_data] = cqe
    assert last[number].res == 0
    assert (last[1].res, last[1].more, last[1].error, last[1].result()) == (
        -errno.ECANCELED,
        False,
        None,
        False,
    )


def test_timeout_multishot_ends_when_the_queue_overflows(drive: Any) -> None:
    """Completions that nobody reads fill the queue; one that finds no room in it is the last."""
    drive.submit(uring.TimeoutMultishot(time_ns=100_000))
    limit = time.monotonic() + drive.seconds
    while not drive.ring.sq.flags & SQRingFlags.CQ_OVERFLOW:
        assert time.monotonic() < limit
    *others, last = drive.take(drive.ring.cq.entries + 1)
    assert all(cqe.more for cqe in others)
    assert (last.res, last.flags, last.result()) == (-errno.ETIME, 0, True)
    assert drive.ring.in_flight == 0


def test_timeout_update_moves_the_end(drive: Any) -> None:
    """A timeout far away is over soon after the update."""
    drive.submit(uring.Timeout(LONG, user_data=1))
    (number,) = drive.submit(uring.TimeoutUpdate(1, 0.001))
    gc.collect()
    assert {cqe.user_data: cqe.res for cqe in drive.take(2)} == {number: 0, 1: -errno.ETIME}
    assert drive.ring.in_flight == 0


def test_timeout_update_with_abs_goes_by_the_clock_of_its_target(drive: Any) -> None:
    """The absolute time of an update is on the clock that the timeout has."""
    start = uring.Timeout(LONG, timeout_flags=F.REALTIME, user_data=1)
    drive.submit(start)
    due = time.time_ns() + 1_000_000
    (number,) = drive.submit(uring.TimeoutUpdate(1, time_ns=due, timeout_flags=F.ABS))
    assert {cqe.user_data: cqe.res for cqe in drive.take(2)} == {number: 0, 1: -errno.ETIME}
    assert time.time_ns() >= due


def test_timeout_update_takes_the_count_away(drive: Any) -> None:
    """After an update completions no longer count, and repeats have no end."""
    drive.submit(uring.Timeout(LONG, count=3, user_data=1))
    assert drive.run(uring.TimeoutUpdate(1, LONG))[0].res == 0
    drive.run(*[uring.Nop()] * 4)
    drive.submit(uring.TimeoutRemove(1))
    assert sorted(cqe.res for cqe in drive.take(2)) == [-errno.ECANCELED, 0]
    drive.submit(uring.TimeoutMultishot(LONG, count=1, user_data=1))
    (number,) = drive.submit(uring.TimeoutUpdate(1, 0.001))
    cqes = [cqe for cqe in drive.take(4) if cqe.user_data != number]
    assert all(cqe.more for cqe in cqes)
    drive.submit(uring.TimeoutRemove(1))
    while drive.ring.in_flight:
        drive.take()


def test_timeout_update_of_nothing_is_enoent(drive: Any, pipe: Pipe) -> None:
    """A number that no timeout has is ENOENT; each kind finds only its own."""
    for op in (uring.TimeoutUpdate(999, 1), uring.LinkTimeoutUpdate(999, 1)):
        error = drive.fails(op, errno.ENOENT)
        assert "nothing in flight has this user_data" in error.__notes__[0]
    drive.submit(uring.Timeout(LONG, user_data=1))
    assert drive.run(uring.LinkTimeoutUpdate(1, 0))[0].res == -errno.ENOENT
    drive.submit(uring.TimeoutRemove(1))
    drive.take(2)
    assert pipe


def test_link_timeout_update_moves_the_end(drive: Any, pipe: Pipe) -> None:
    """A limit far away strikes soon after the update, which no TimeoutUpdate can do."""
    buffer = bytearray(4)
    drive.submit(
        uring.Read(pipe[0], buffer, user_data=5, flags=SQEFlags.IO_LINK),
        uring.LinkTimeout(LONG, user_data=6),
    )
    assert drive.run(uring.TimeoutUpdate(6, 0))[0].res == -errno.ENOENT
    (number,) = drive.submit(uring.LinkTimeoutUpdate(6, 0.001))
    assert {cqe.user_data: cqe.res for cqe in drive.take(3)} == {
        number: 0,
        5: -errno.ECANCELED,
        6: -errno.ETIME,
    }


def test_timeout_immediate_arg_is_refused_by_kernels_before_7_1(drive: Any) -> None:
    """6.18 does not know the flag: EINVAL, whatever the class."""
    flag = F.IMMEDIATE_ARG
    for op in (
        uring.Timeout(1, timeout_flags=flag),
        uring.TimeoutMultishot(1, timeout_flags=flag),
        uring.TimeoutUpdate(1, 1, timeout_flags=flag),
        uring.LinkTimeoutUpdate(1, 1, timeout_flags=flag),
    ):
        drive.fails(op, errno.EINVAL)
    nop, limit = drive.run(*uring.link(uring.Nop(), uring.LinkTimeout(1, timeout_flags=flag)))
    assert (nop.res, limit.res) == (-errno.ECANCELED, -errno.EINVAL)


def test_timespec_is_two_signed_64_bit_numbers() -> None:
    """What is encoded has the size of two long longs, whatever the machine."""
    pin, _ = _memory.timespec(NS + 1)
    assert _memory.bytes_of(pin) == struct.pack("=qq", 1, 1)
