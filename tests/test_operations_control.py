"""Nops, cancelling, messages between rings, drivers' commands: encoded and on the real kernel."""

import errno
import gc
import os
import socket
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from shared import Wrapper

import uring
from uring import Opcode
from uring.flags import CancelFlags, MsgRingFlags, NopFlags, SetupFlags, SocketCommand, SQEFlags

Pipe = tuple[int, int]
FIXED: Final = uring.Fixed(9)


def nonzero(op: uring.Operation) -> dict[str, Any]:
    """The fields of the encoded record that are not 0."""
    return {name: number for name, number in attrs.asdict(op.sqe()).items() if number}


@pytest.fixture
def other(ring: uring.Ring) -> Iterator[uring.Ring]:
    """Give a second ring."""
    assert not ring.closed
    with uring.Ring(4) as made:
        yield made


@pytest.fixture
def big_ring(ring: uring.Ring) -> Iterator[uring.Ring]:
    """Give a ring whose completions have two extra words."""
    assert not ring.closed
    with uring.Ring(4, flags=SetupFlags.CQE32) as made:
        yield made


# ---- encoding: fields and values by hand from linux/io_uring.h ----

MSG: Final = 40
CMD: Final = 46
DISCARD: Final = 0x1200  # _IO(0x12, 0), where _IOC_NONE is 0, as on x86 and ARM
CANCEL: Final = 14
POLL_ADD: Final = 6

VECTORS: Final[list[tuple[uring.Operation, dict[str, int]]]] = [
    (uring.Nop(), {}),
    (uring.Nop(res=7), {"op_flags": 0x1, "len": 7}),
    (uring.Nop(res=0), {"op_flags": 0x1}),
    (uring.Nop(res=-5), {"op_flags": 0x1, "len": 2**32 - 5}),
    (uring.Nop(fd=9), {"op_flags": 0x2, "fd": 9}),
    (uring.Nop(fd=Wrapper(9)), {"op_flags": 0x2, "fd": 9}),
    (uring.Nop(fd=FIXED), {"op_flags": 0x6, "fd": 9}),
    (uring.Nop(buf_index=3), {"op_flags": 0x8, "buf_index": 3}),
    (uring.Nop(nop_flags=NopFlags.TW), {"op_flags": 0x10}),
    (uring.Nop(big_cqe=(5, 6)), {"op_flags": 0x20, "off": 5, "addr": 6}),
    (
        uring.Nop(nop_flags=NopFlags.TW | NopFlags.INJECT_RESULT, res=1, fd=FIXED, big_cqe=(5, 6)),
        {"op_flags": 0x37, "len": 1, "fd": 9, "off": 5, "addr": 6},
    ),
    (uring.Nop128(res=7), {"opcode": 63, "op_flags": 0x1, "len": 7}),
    (uring.AsyncCancel(5), {"opcode": CANCEL, "addr": 5}),
    (uring.AsyncCancel(5, all=True), {"opcode": CANCEL, "addr": 5, "op_flags": 0x1}),
    (
        uring.AsyncCancel(5, target_opcode=Opcode.POLL_ADD),
        {"opcode": CANCEL, "addr": 5, "len": POLL_ADD, "op_flags": 0x30},
    ),
    (
        uring.AsyncCancel(5, target_opcode=Opcode.NOP, all=True),
        {"opcode": CANCEL, "addr": 5, "op_flags": 0x31},
    ),
    (uring.AsyncCancelFd(9), {"opcode": CANCEL, "fd": 9, "op_flags": 0x2}),
    (uring.AsyncCancelFd(Wrapper(9)), {"opcode": CANCEL, "fd": 9, "op_flags": 0x2}),
    (uring.AsyncCancelFd(FIXED), {"opcode": CANCEL, "fd": 9, "op_flags": 0xA}),
    (uring.AsyncCancelFd(9, all=True), {"opcode": CANCEL, "fd": 9, "op_flags": 0x3}),
    (
        uring.AsyncCancelFd(9, target_opcode=Opcode.POLL_ADD),
        {"opcode": CANCEL, "fd": 9, "len": POLL_ADD, "op_flags": 0x22},
    ),
    (uring.AsyncCancelFd(9, target=5), {"opcode": CANCEL, "fd": 9, "addr": 5, "op_flags": 0x12}),
    (uring.AsyncCancelFd(9, target=0), {"opcode": CANCEL, "fd": 9, "op_flags": 0x12}),
    (
        uring.AsyncCancelFd(FIXED, all=True, target=5, target_opcode=Opcode.POLL_ADD),
        {"opcode": CANCEL, "fd": 9, "addr": 5, "len": POLL_ADD, "op_flags": 0x3B},
    ),
    (
        uring.AsyncCancelOp(Opcode.POLL_ADD),
        {"opcode": CANCEL, "len": POLL_ADD, "op_flags": 0x20},
    ),
    (uring.AsyncCancelOp(Opcode.NOP, all=True), {"opcode": CANCEL, "op_flags": 0x21}),
    (uring.AsyncCancelAny(), {"opcode": CANCEL, "op_flags": 0x4}),
    (uring.MsgRing(9, target_user_data=5), {"opcode": MSG, "fd": 9, "off": 5}),
    (uring.MsgRing(Wrapper(9), target_user_data=5), {"opcode": MSG, "fd": 9, "off": 5}),
    (
        uring.MsgRing(9, target_user_data=2**64 - 1, target_res=-5),
        {"opcode": MSG, "fd": 9, "off": 2**64 - 1, "len": 2**32 - 5},
    ),
    (
        uring.MsgRing(9, target_user_data=5, target_res=3, target_flags=0x10001),
        {"opcode": MSG, "fd": 9, "off": 5, "len": 3, "op_flags": 0x2, "splice_fd_in": 0x10001},
    ),
    (
        uring.MsgRing(9, target_user_data=5, target_flags=0),
        {"opcode": MSG, "fd": 9, "off": 5, "op_flags": 0x2},
    ),
    (
        uring.MsgRingFd(9, source=uring.Fixed(4), slot=uring.Fixed(2), target_user_data=5),
        {"opcode": MSG, "fd": 9, "addr": 1, "off": 5, "splice_fd_in": 3, "addr3": 4},
    ),
    (
        uring.MsgRingFd(
            9, source=uring.Fixed(4), slot=uring.AUTO, target_user_data=5, cqe_skip=True
        ),
        {
            "opcode": MSG,
            "fd": 9,
            "addr": 1,
            "off": 5,
            "splice_fd_in": 2**32 - 1,
            "addr3": 4,
            "op_flags": 0x1,
        },
    ),
    (uring.UringCmd(9, cmd_op=3), {"opcode": CMD, "fd": 9, "off": 3}),
    (
        uring.UringCmd(
            9,
            cmd_op=2**32 - 1,
            cmd=struct.pack("=QQ", 5, 6),
            addr=7,
            len=8,
            optlen=4,
            uring_cmd_flags=uring.UringCmdFlags.FIXED,
            buf_index=2,
        ),
        {
            "opcode": CMD,
            "fd": 9,
            "off": 2**32 - 1,
            "addr": 7,
            "len": 8,
            "splice_fd_in": 4,
            "op_flags": 0x1,
            "buf_index": 2,
            "addr3": 5,
            "attr_type_mask": 6,
        },
    ),
    (uring.UringCmd128(9, cmd_op=3), {"opcode": 64, "fd": 9, "off": 3}),
    (
        uring.BlockDiscard(9, offset=4096, length=512),
        {"opcode": CMD, "fd": 9, "off": DISCARD, "addr": 4096, "addr3": 512},
    ),
    (
        uring.BlockDiscard(9, length=2**64 - 1),
        {"opcode": CMD, "fd": 9, "off": DISCARD, "addr3": 2**64 - 1},
    ),
    (
        uring.UringCmdMultishot(9, cmd_op=3, group=7),
        {
            "opcode": CMD,
            "fd": 9,
            "off": 3,
            "op_flags": 0x2,
            "buf_index": 7,
            "flags": SQEFlags.BUFFER_SELECT,
        },
    ),
]


@pytest.mark.parametrize(("op", "expected"), VECTORS, ids=lambda value: repr(value)[:70])
def test_control_operation_encodes_what_the_header_says(
    op: uring.Operation, expected: dict[str, int]
) -> None:
    """The fields of the record are those of the header, and all others are 0."""
    assert nonzero(op) == expected


def test_uring_cmd_puts_its_bytes_at_the_end_of_the_record() -> None:
    """Up to 16 bytes of a command are bytes 48 to 63, and more make a record of 128 bytes."""
    short, _ = uring.UringCmd(9, cmd_op=3, cmd=b"0123456789abcdef")._encode()
    assert len(short) == 64
    assert short[48:] == b"0123456789abcdef"
    long, _ = uring.UringCmd(9, cmd_op=3, cmd=b"0123456789abcdefg")._encode()
    assert len(long) == 128
    assert long[:48] == short[:48]
    assert long[48:] == b"0123456789abcdefg".ljust(80, b"\0")
    full, _ = uring.UringCmd(9, cmd_op=3, cmd=bytes(range(80)))._encode()
    assert full[48:] == bytes(range(80))


def test_nop128_and_uring_cmd128_encode_as_they_are_placed() -> None:
    """A Nop128 is 64 bytes, for the rest is 0; a UringCmd128 is 128 whatever its command."""
    assert len(uring.Nop128()._encode()[0]) == 64
    record, _ = uring.UringCmd128(9, cmd_op=3, cmd=b"xy")._encode()
    assert record == uring.UringCmd128(9, cmd_op=3)._encode()[0][:48] + b"xy".ljust(80, b"\0")


WRONG: Final[list[tuple[uring.Operation, str]]] = [
    (uring.Nop(nop_flags=NopFlags.INJECT_RESULT), "needs res"),
    (uring.Nop(nop_flags=NopFlags.FILE), "needs fd"),
    (uring.Nop(nop_flags=NopFlags.FIXED_BUFFER), "needs buf_index"),
    (uring.Nop(nop_flags=NopFlags.CQE32), "needs big_cqe"),
    (uring.Nop(nop_flags=NopFlags.FIXED_FILE, fd=1), "needs fd=Fixed"),
    (uring.Nop(nop_flags=NopFlags.FIXED_FILE), "needs fd=Fixed"),
    (uring.Nop(nop_flags="TW"), "nop_flags"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Nop(res=2**31), "res must be in"),
    (uring.Nop(res=-(2**31) - 1), "res must be in"),
    (uring.Nop(res=1.0), "res must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Nop(res=True), "res must be an integer"),
    (uring.Nop(buf_index=65536), "buf_index must be in"),
    (uring.Nop(fd="x"), "a file is"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Nop(big_cqe=(1,)), "big_cqe"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.Nop(big_cqe=(1, 2**64)), "addr must be in"),
    (uring.AsyncCancel(5, target_opcode=256), "target_opcode must be in"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.AsyncCancel(5, target_opcode="x"), "target_opcode must be an"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.AsyncCancelFd(None), "a file is"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.AsyncCancelFd(2**31), "fd must be in"),
    (uring.AsyncCancelFd(1, target=2**64), "target must be in"),
    (uring.AsyncCancelFd(1, target_opcode=-1), "target_opcode must be in"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.AsyncCancelOp(None), "AsyncCancelAny"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.AsyncCancelOp(256), "target_opcode must be in"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.MsgRing("x", target_user_data=1), "a file is"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.MsgRing(FIXED, target_user_data=1), "ring must be a descriptor"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.MsgRing(1, target_user_data=2**64), "target_user_data must be in"),
    (uring.MsgRing(1, target_user_data=1, target_res=2**31), "target_res must be in"),
    (uring.MsgRing(1, target_user_data=1, target_flags=2**32), "target_flags must be in"),
    (
        uring.MsgRingFd(1, source=0, slot=uring.AUTO, target_user_data=1),  # type: ignore[arg-type]  # wrong on purpose
        "source must be Fixed",
    ),
    (
        uring.MsgRingFd(1, source=FIXED, slot=None, target_user_data=1),  # type: ignore[arg-type]  # wrong on purpose
        "slot must be",
    ),
    (
        uring.MsgRingFd(1, source=FIXED, slot=3, target_user_data=1),  # type: ignore[arg-type]  # wrong on purpose
        "a slot is",
    ),
    (uring.UringCmd(1, cmd_op=2**32), "cmd_op must be in"),
    (uring.UringCmd(1, cmd_op="x"), "cmd_op must be an"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.UringCmd(1, cmd_op=1, cmd=bytes(81)), "at most 80 bytes"),
    (uring.UringCmd(1, cmd_op=1, cmd="x"), "cmd must be bytes"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.UringCmd(1, cmd_op=1, len=2**32), "len must be in"),
    (uring.UringCmd(1, cmd_op=1, buf_index=65536), "buf_index must be in"),
    (
        uring.UringCmd(1, cmd_op=1, uring_cmd_flags=uring.UringCmdFlags.MULTISHOT),
        "UringCmdMultishot",
    ),
    (uring.UringCmd(1, cmd_op=1, uring_cmd_flags="x"), "uring_cmd_flags"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.BlockDiscard(1, length=2**64), "length must be in"),
    (uring.BlockDiscard(1, offset=-1, length=1), "offset must be in"),
    (uring.BlockDiscard(1, length="x"), "length must be an"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.UringCmdMultishot(1, cmd_op=1, group="x"), "a buffer group is"),  # type: ignore[arg-type]  # wrong on purpose
]


@pytest.mark.parametrize(("op", "message"), WRONG, ids=lambda value: repr(value)[:60])
def test_control_operation_refuses_what_does_not_fit(op: uring.Operation, message: str) -> None:
    """TypeError or ValueError, whose message names the field, before the kernel sees it."""
    with pytest.raises((TypeError, ValueError), match=message):
        op.sqe()


# ---- nop ----


def test_nop_result_is_what_was_injected(drive: Any) -> None:
    """A count is the result, and a negative errno its error."""
    assert drive.result(uring.Nop(res=7)) == 7
    assert drive.result(uring.Nop(res=2**31 - 1)) == 2**31 - 1
    error = drive.fails(uring.Nop(res=-errno.ENOENT), errno.ENOENT)
    assert isinstance(error, FileNotFoundError)
    drive.fails(uring.Nop(res=-errno.EIO, nop_flags=NopFlags.TW), errno.EIO)


def test_nop_looks_up_the_file(drive: Any, pipe: Pipe) -> None:
    """An open or a registered file is found, and another is EBADF."""
    drive.ring.register_files([pipe[0], -1])
    for found in (pipe[0], Wrapper(pipe[1]), uring.Fixed(0)):
        assert drive.result(uring.Nop(fd=found)) == 0
    for missing in (9999, uring.Fixed(1), uring.Fixed(2)):
        drive.fails(uring.Nop(fd=missing), errno.EBADF)


def test_nop_looks_up_the_registered_buffer(drive: Any) -> None:
    """A ring without registered buffers answers EFAULT."""
    drive.fails(uring.Nop(buf_index=0), errno.EFAULT)


def test_nop_by_way_of_task_work_completes(drive: Any) -> None:
    """With TW the completion comes all the same."""
    assert drive.result(uring.Nop(nop_flags=NopFlags.TW, res=3)) == 3


def test_nop_extra_words_come_out_of_a_big_ring(drive: Any, big_ring: uring.Ring) -> None:
    """On a ring with CQE32 `big_cqe` is what was given, and without CQE32 it is EINVAL."""
    drive.fails(uring.Nop(big_cqe=(5, 6)), errno.EINVAL)
    (cqe,) = big_ring.run([uring.Nop(big_cqe=(2**64 - 1, 6), res=9)])
    assert (cqe.res, cqe.big_cqe) == (9, (2**64 - 1, 6))
    (cqe,) = big_ring.run([uring.Nop()])
    assert (cqe.res, cqe.big_cqe) == (0, (0, 0))


def test_nop_flag_that_no_kernel_has_is_refused_by_the_kernel(drive: Any) -> None:
    """A flag without a name gets as far as the kernel, which answers EINVAL."""
    drive.fails(uring.Nop(nop_flags=NopFlags(0x8000)), errno.EINVAL)


@pytest.mark.parametrize(
    "op", [uring.Nop128(), uring.UringCmd128(0, cmd_op=1), uring.UringCmd128(0, cmd_op=1, cmd=b"x")]
)
def test_opcode_that_the_kernel_lacks_is_refused_when_it_is_queued(
    ring: uring.Ring, op: uring.Operation
) -> None:
    """UnsupportedError names the class, the opcode and the release; the ring is as it was."""
    has_it = uring.probe().supports(op)
    for queue in (ring.queue, lambda one: ring.queue_all([uring.Nop(), one])):
        if has_it:  # a kernel of 6.19 or later, where these are refused for their length
            with pytest.raises(ValueError, match="128"):
                queue(op)
            continue
        with pytest.raises(uring.UnsupportedError, match=f"{type(op).__name__}: .* needs Linux"):
            queue(op)
    assert ring.sq_ready() == ring.in_flight == 0


def test_opcode_that_the_kernel_lacks_completes_with_einval_as_a_raw_record(drive: Any) -> None:
    """The kernel itself says no more than EINVAL of an opcode that it does not know."""
    drive.fails(uring.SQE(200), errno.EINVAL)


# ---- cancelling ----


@pytest.fixture
def polls(drive: Any, pipe: Pipe) -> Iterator[Any]:
    """Give what puts polls of the pipe's read end in flight; they must have ended afterwards."""

    def start(*numbers: int, fd: Any = pipe[0]) -> None:
        drive.submit(*(uring.PollAdd(fd, user_data=number) for number in numbers))

    yield start
    assert drive.ring.in_flight == 0


def outcome(drive: Any, op: uring.Operation, count: int) -> tuple[int, list[int]]:
    """Run an operation that cancels: its res, and the numbers of what it has cancelled."""
    (number,) = drive.submit(op)
    res, cancelled = None, []
    for cqe in drive.take(count + 1):
        if cqe.user_data == number:
            res = cqe.res
        else:
            assert cqe.res == -errno.ECANCELED
            cancelled.append(cqe.user_data)
    assert res is not None
    return res, sorted(cancelled)


def test_async_cancel_fd_cancels_one_or_all(drive: Any, polls: Any, pipe: Pipe) -> None:
    """Without `all` one operation of the file is cancelled; with it all are, and are counted."""
    polls(1, 2, 3)
    res, (first,) = outcome(drive, uring.AsyncCancelFd(pipe[0]), 1)
    assert res == 0
    assert outcome(drive, uring.AsyncCancelFd(pipe[0], all=True), 2) == (
        2,
        sorted({1, 2, 3} - {first}),
    )
    drive.fails(uring.AsyncCancelFd(pipe[0]), errno.ENOENT)
    assert drive.result(uring.AsyncCancelFd(pipe[0], all=True)) == 0
    drive.fails(uring.AsyncCancelFd(9999), errno.EBADF)


def test_async_cancel_fd_leaves_other_files_alone(drive: Any, polls: Any, pipe: Pipe) -> None:
    """What is in flight on another file goes on."""
    left, right = socket.socketpair()
    with left, right:
        polls(1)
        polls(2, fd=left)
        assert outcome(drive, uring.AsyncCancelFd(pipe[0], all=True), 1) == (1, [1])
        right.send(b"x")
        (cqe,) = drive.take()
        assert (cqe.user_data, cqe.res) == (2, 1)


def test_async_cancel_fd_goes_by_the_open_file(drive: Any, polls: Any, pipe: Pipe) -> None:
    """A registered file, its descriptor and a duplicate of that are one and the same."""
    drive.ring.register_files([pipe[0], -1])
    copy = os.dup(pipe[0])
    polls(1, fd=uring.Fixed(0))
    assert outcome(drive, uring.AsyncCancelFd(copy), 1) == (0, [1])
    os.close(copy)
    polls(1, 2)
    assert outcome(drive, uring.AsyncCancelFd(uring.Fixed(0), all=True), 2) == (2, [1, 2])
    drive.fails(uring.AsyncCancelFd(uring.Fixed(0)), errno.ENOENT)
    drive.fails(uring.AsyncCancelFd(uring.Fixed(1)), errno.EBADF)


def test_async_cancel_fd_with_more_criteria(drive: Any, polls: Any, pipe: Pipe) -> None:
    """An opcode and a user_data narrow it down; what does not fit both goes on."""
    buffer = bytearray(4)
    polls(1, 2)
    drive.submit(uring.Read(pipe[0], buffer, user_data=3))
    cancel = uring.AsyncCancelFd
    assert (
        outcome(drive, cancel(pipe[0], target=3, target_opcode=Opcode.POLL_ADD, all=True), 0)[0]
        == 0
    )
    assert outcome(drive, cancel(pipe[0], target=2), 1) == (0, [2])
    assert outcome(drive, cancel(pipe[0], target_opcode=Opcode.READ, all=True), 1) == (1, [3])
    assert outcome(drive, cancel(pipe[0], all=True), 1) == (1, [1])


def test_async_cancel_with_an_opcode(drive: Any, polls: Any) -> None:
    """The user_data and the opcode must both fit."""
    polls(1)
    drive.submit(uring.Timeout(60, user_data=1))
    (number,) = drive.submit(uring.AsyncCancel(1, target_opcode=Opcode.READ))
    (cqe,) = drive.take()
    assert (cqe.user_data, cqe.res) == (number, -errno.ENOENT)
    for opcode in (Opcode.TIMEOUT, Opcode.POLL_ADD):
        assert outcome(drive, uring.AsyncCancel(1, target_opcode=opcode, all=True), 1) == (1, [1])


def test_async_cancel_op_cancels_one_or_all(drive: Any, polls: Any, pipe: Pipe) -> None:
    """Operations of the kind are cancelled, one or all, and no others."""
    buffer = bytearray(4)
    polls(1, 2)
    drive.submit(uring.Read(pipe[0], buffer, user_data=3))
    res, (first,) = outcome(drive, uring.AsyncCancelOp(Opcode.POLL_ADD), 1)
    assert res == 0
    assert outcome(drive, uring.AsyncCancelOp(Opcode.POLL_ADD, all=True), 1) == (1, [3 - first])
    assert drive.run(uring.AsyncCancelOp(Opcode.POLL_ADD))[0].res == -errno.ENOENT
    assert drive.run(uring.AsyncCancelOp(Opcode.POLL_ADD, all=True))[0].res == 0
    assert outcome(drive, uring.AsyncCancelOp(uring.Read.opcode), 1) == (0, [3])


def test_async_cancel_any_cancels_everything(drive: Any, polls: Any, pipe: Pipe) -> None:
    """Whatever is in flight is cancelled and counted; then there is nothing, which is 0."""
    buffer = bytearray(4)
    polls(1, 2)
    drive.submit(uring.Read(pipe[0], buffer, user_data=3), uring.Timeout(60, user_data=4))
    assert outcome(drive, uring.AsyncCancelAny(), 4) == (4, [1, 2, 3, 4])
    assert drive.result(uring.AsyncCancelAny()) == 0


def test_async_cancel_fd_with_any_is_refused_by_the_kernel(drive: Any, pipe: Pipe) -> None:
    """ANY takes no other criterion: what no class makes is EINVAL as a raw record."""
    flags = CancelFlags.ANY | CancelFlags.FD
    sqe = uring.SQE(Opcode.ASYNC_CANCEL, fd=pipe[0], op_flags=flags, user_data=1)
    drive.ring.queue(sqe)
    drive.ring.submit()
    assert drive.take()[0].res == -errno.EINVAL


# ---- messages between rings ----


def test_msg_ring_posts_a_completion_in_the_other_ring(drive: Any, other: uring.Ring) -> None:
    """The other ring has the user_data and the res that were sent, and no operation."""
    for res in (5, -errno.ENOENT, 0):
        assert drive.result(uring.MsgRing(other, target_user_data=77, target_res=res)) == 0
        cqe = other.copy_cqe(timeout=drive.seconds)
        assert (cqe.user_data, cqe.res, cqe.flags, cqe.op) == (77, res, 0, None)
    assert other.in_flight == 0


def test_msg_ring_takes_a_descriptor(drive: Any, other: uring.Ring) -> None:
    """The ring may be named by its number; it cannot be registered as a file, and EBADF says so."""
    assert drive.result(uring.MsgRing(other.fd, target_user_data=77)) == 0
    assert other.copy_cqe(timeout=drive.seconds).user_data == 77
    with pytest.raises(uring.RegisterError) as refused:
        drive.ring.register_files([other.fd])
    assert refused.value.errno == errno.EBADF


def test_msg_ring_to_itself_posts_both(drive: Any) -> None:
    """A ring may send to itself: the message and the sender's completion come."""
    (number,) = drive.submit(uring.MsgRing(drive.ring, target_user_data=77, target_res=5))
    assert {(cqe.user_data, cqe.res) for cqe in drive.take(2)} == {(number, 0), (77, 5)}
    assert drive.ring.in_flight == 0


def test_msg_ring_passes_flags(drive: Any, other: uring.Ring) -> None:
    """`target_flags` are the flags of the completion there."""
    message = uring.MsgRing(other, target_user_data=77, target_res=5, target_flags=0x10001)
    assert drive.result(message) == 0
    cqe = other.copy_cqe(timeout=drive.seconds)
    assert (cqe.res, cqe.flags, cqe.buffer_id) == (5, 0x10001, 1)


def test_msg_ring_to_a_big_ring_has_empty_extra_words(drive: Any, big_ring: uring.Ring) -> None:
    """A ring with CQE32 takes messages; the two extra words are 0."""
    assert drive.result(uring.MsgRing(big_ring, target_user_data=77, target_res=5)) == 0
    cqe = big_ring.copy_cqe(timeout=drive.seconds)
    assert (cqe.res, cqe.big_cqe) == (5, (0, 0))


def test_msg_ring_overflows_the_other_ring_without_loss(drive: Any, other: uring.Ring) -> None:
    """More messages than the completion queue there takes all arrive, and the sender sees 0."""
    for number in range(20):
        assert drive.result(uring.MsgRing(other, target_user_data=number)) == 0
    found = [other.copy_cqe(timeout=drive.seconds).user_data for _ in range(20)]
    assert sorted(found) == list(range(20))


def test_msg_ring_fails_where_no_ring_is(drive: Any, pipe: Pipe) -> None:
    """A file that is no ring, and a ring that is not enabled, are EBADFD; a closed number EBADF."""
    drive.fails(uring.MsgRing(pipe[0], target_user_data=77), errno.EBADFD)
    drive.fails(uring.MsgRing(9999, target_user_data=77), errno.EBADF)
    with uring.Ring(4, flags=SetupFlags.R_DISABLED) as disabled:
        drive.fails(uring.MsgRing(disabled, target_user_data=77), errno.EBADFD)


def test_msg_ring_to_a_closed_ring_is_refused(drive: Any, other: uring.Ring) -> None:
    """A closed Ring is refused when the message is queued."""
    message = uring.MsgRing(other, target_user_data=77)
    drive.result(message)
    other.close()
    with pytest.raises(uring.RingClosedError):
        drive.ring.queue(message)
    assert drive.ring.in_flight == 0


def test_msg_ring_data_with_cqe_skip_is_refused_by_the_kernel(drive: Any, pipe: Pipe) -> None:
    """CQE_SKIP is for files alone: on a message without one, which no class makes, it is EINVAL."""
    assert pipe
    sqe = uring.SQE(Opcode.MSG_RING, fd=drive.ring.fd, op_flags=MsgRingFlags.CQE_SKIP, user_data=1)
    drive.ring.queue(sqe)
    drive.ring.submit()
    assert drive.take()[0].res == -errno.EINVAL


def test_msg_ring_fd_sends_a_registered_file(drive: Any, other: uring.Ring, pipe: Pipe) -> None:
    """The file is in the other ring's slot, and works there; the res there is 0."""
    drive.ring.register_files([pipe[0]])
    other.register_files([-1, -1])
    slot = uring.Fixed(1)
    message = uring.MsgRingFd(other, source=uring.Fixed(0), slot=slot, target_user_data=77)
    assert drive.result(message) == slot
    cqe = other.copy_cqe(timeout=drive.seconds)
    assert (cqe.user_data, cqe.res) == (77, 0)
    os.write(pipe[1], b"abc")
    buffer = bytearray(4)
    (read,) = other.run([uring.Read(slot, buffer)])
    assert (read.res, buffer) == (3, b"abc\0")


def test_msg_ring_fd_into_a_free_slot_tells_it_to_both(
    drive: Any, other: uring.Ring, pipe: Pipe
) -> None:
    """With AUTO the slot is the result here and the res there, until there is none: ENFILE."""
    drive.ring.register_files([pipe[0]])
    other.register_files([-1, -1])
    message = uring.MsgRingFd(other, source=uring.Fixed(0), slot=uring.AUTO, target_user_data=77)
    for index in range(2):
        assert drive.result(message) == uring.Fixed(index)
        assert other.copy_cqe(timeout=drive.seconds).res == index
    drive.fails(message, errno.ENFILE)


def test_msg_ring_fd_with_cqe_skip_says_nothing_there(
    drive: Any, other: uring.Ring, pipe: Pipe
) -> None:
    """The file arrives and no completion does."""
    drive.ring.register_files([pipe[0]])
    other.register_files([-1])
    slot = uring.Fixed(0)
    send = uring.MsgRingFd(other, source=slot, slot=slot, target_user_data=77, cqe_skip=True)
    assert drive.result(send) == slot
    (nop,) = other.run([uring.Nop(fd=slot)])
    assert nop.res == 0
    assert other.cq_ready() == 0


def test_msg_ring_fd_fails_for_each_reason(drive: Any, other: uring.Ring, pipe: Pipe) -> None:
    """No table there ENXIO; no file here EBADF; beyond the table, and to itself, EINVAL."""
    zero = uring.Fixed(0)

    def send(ring: Any = other, source: uring.Fixed = zero, slot: uring.Fixed = zero) -> Any:
        return uring.MsgRingFd(ring, source=source, slot=slot, target_user_data=77)

    drive.fails(send(), errno.EBADF)
    drive.ring.register_files([pipe[0], -1])
    drive.fails(send(), errno.ENXIO)
    other.register_files([-1])
    drive.fails(send(source=uring.Fixed(1)), errno.EBADF)
    drive.fails(send(slot=uring.Fixed(1)), errno.EINVAL)
    drive.fails(send(drive.ring), errno.EINVAL)
    drive.fails(send(pipe[0]), errno.EBADFD)
    assert other.cq_ready() == 0


def test_msg_ring_is_encoded_anew_for_an_object(drive: Any, other: uring.Ring) -> None:
    """The number of an object with fileno() is asked for each time that it is queued."""
    drive.ring.register_files([0])
    wrapper = Wrapper(other.fd)
    for message in (
        uring.MsgRing(wrapper, target_user_data=77),
        uring.MsgRingFd(
            wrapper, source=uring.Fixed(0), slot=uring.Fixed(0), target_user_data=77, cqe_skip=True
        ),
    ):
        results = []
        for fd in (other.fd, 9999):
            wrapper.fd = fd
            drive.ring.queue(message)
            drive.ring.submit()
            results.append(drive.take()[0].res)
        assert results[0] in {0, -errno.ENXIO}
        assert results[1] == -errno.EBADF
    assert other.copy_cqe(timeout=drive.seconds).user_data == 77


def test_msg_ring_keeps_the_object_while_in_flight(drive: Any, other: uring.Ring) -> None:
    """What was given with a fileno() lives until the completion has been copied out."""
    wrapper = Wrapper(other.fd)
    alive = weakref.ref(wrapper)
    drive.submit(uring.MsgRing(wrapper, target_user_data=77))
    del wrapper
    gc.collect()
    assert alive() is not None
    assert drive.take()[0].res == 0
    gc.collect()
    assert alive() is None
    assert other.copy_cqe(timeout=drive.seconds).user_data == 77


# ---- commands of drivers ----


def test_uring_cmd_asks_a_socket(drive: Any) -> None:
    """SIOCINQ of a socket is the number of bytes that wait in it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        served, _ = server.accept()
        with client, served:
            client.send(b"12345")
            assert drive.run(uring.PollAdd(served))[0].res == 1
            inquire = uring.UringCmd(served, cmd_op=SocketCommand.SIOCINQ)
            assert drive.result(inquire) == 5
            drive.ring.register_files([served])
            inquire = uring.UringCmd(uring.Fixed(0), cmd_op=SocketCommand.SIOCINQ)
            assert drive.result(inquire) == 5


def test_uring_cmd_on_what_has_no_commands_is_eopnotsupp(drive: Any, pipe: Pipe) -> None:
    """A pipe has no commands, a socket not this one; a closed number is EBADF."""
    drive.fails(uring.UringCmd(pipe[0], cmd_op=1), errno.EOPNOTSUPP)
    with socket.socket() as sock:
        drive.fails(uring.UringCmd(sock, cmd_op=0xFFFF), errno.EOPNOTSUPP)
    drive.fails(uring.UringCmd(9999, cmd_op=1), errno.EBADF)


@pytest.mark.parametrize("flags", [SetupFlags(0), SetupFlags.SQE128, SetupFlags.CQE32])
def test_uring_cmd_on_any_ring_reaches_the_driver(drive: Any, flags: SetupFlags) -> None:
    """/dev/null takes any command, and answers 0."""
    null = os.open(os.devnull, os.O_RDWR)
    with uring.Ring(4, flags=flags) as ring:
        (cqe,) = ring.run([uring.UringCmd(null, cmd_op=1, cmd=bytes(range(16)))])
        assert cqe.result() == 0
    drive.fails(
        uring.UringCmd(null, cmd_op=1, uring_cmd_flags=uring.UringCmdFlags(4)), errno.EINVAL
    )
    os.close(null)


def test_block_discard_reaches_the_driver(drive: Any, tmp_path: Path) -> None:
    """/dev/null takes any command; a file is no block device, and a closed number is EBADF."""
    null = os.open(os.devnull, os.O_RDWR)
    assert drive.result(uring.BlockDiscard(null, length=512)) == 0
    drive.ring.register_files([null])
    assert drive.result(uring.BlockDiscard(uring.Fixed(0), offset=512, length=512)) == 0
    os.close(null)
    with (tmp_path / "file").open("wb") as file:
        drive.fails(uring.BlockDiscard(file, length=512), errno.EOPNOTSUPP)
    drive.fails(uring.BlockDiscard(9999, length=512), errno.EBADF)


def test_uring_cmd_multishot_reaches_the_driver(drive: Any, pipe: Pipe) -> None:
    """6.18 takes MULTISHOT with a group, so the pipe's EOPNOTSUPP is the answer."""
    drive.fails(uring.UringCmdMultishot(pipe[0], cmd_op=1, group=7), errno.EOPNOTSUPP)


def test_uring_cmd_multishot_without_a_group_is_refused_by_the_kernel(drive: Any) -> None:
    """MULTISHOT without BUFFER_SELECT, which no class makes, is EINVAL."""
    drive.ring.queue(uring.SQE(Opcode.URING_CMD, op_flags=2, user_data=1))
    drive.ring.submit()
    assert drive.take()[0].res == -errno.EINVAL


def test_uring_cmd128_is_no_opcode_of_kernels_before_6_19(drive: Any) -> None:
    """6.18 answers EINVAL to the number; the 128 bytes need a ring that takes them."""
    drive.ring.queue(uring.SQE(Opcode.URING_CMD128, user_data=1))
    drive.ring.submit()
    assert drive.take()[0].res == -errno.EINVAL
