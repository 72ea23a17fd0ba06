"""Operations on rings themselves: nothing at all, cancelling, messages between rings."""

from typing import Any, ClassVar, Final

import attrs

from uring._checks import check_range
from uring.flags import CancelFlags, MsgRingCommand, MsgRingFlags, NopFlags, Opcode
from uring.operations._base import Operation, held, operation, ordinary
from uring.operations._targets import Targeting
from uring.sqe import (
    AUTO,
    NO_FLAGS,
    SQE_SIZE,
    UINT32_MAX,
    FileLike,
    Fixed,
    HasFileno,
    Slot,
    check_message_flags,
    file_field,
    file_index,
)

__all__ = [
    "AsyncCancel",
    "AsyncCancelAny",
    "AsyncCancelFd",
    "AsyncCancelOp",
    "MsgRing",
    "MsgRingFd",
    "Nop",
    "Nop128",
]


def _signed32(name: str, number: object) -> int:
    """The 32 bits of a result, which is a signed number."""
    return check_range(name, number, -(2**31), 2**31 - 1) & UINT32_MAX


_NO_FLAGS: Final = NopFlags(0)

# What one flag of a nop needs, and where it is: the field that must be given with it.
_NOP_FIELDS: Final = (
    (NopFlags.INJECT_RESULT, "res"),
    (NopFlags.FILE, "fd"),
    (NopFlags.FIXED_BUFFER, "buf_index"),
    (NopFlags.CQE32, "big_cqe"),
)


@operation
class Nop(Operation):
    """
    Do nothing, and complete: for tests, for measurements, and to wake a thread that waits.

    What is given besides is for tests of the ring: each of it sets its own flag.

    Args:
        nop_flags: `NopFlags`: TW, to complete by way of task work; the others follow from the
            arguments below.
        res: what the result is to be, from -2**31 to 2**31 - 1 (INJECT_RESULT).
        fd: a file to look up and let go again (FILE; FIXED_FILE for `Fixed`); EBADF without it.
        buf_index: a registered buffer to look up (FIXED_BUFFER); EFAULT when there is none.
        big_cqe: the two extra words of the completion (CQE32), on rings with SetupFlags.CQE32;
            elsewhere EINVAL.

    Completion: res is 0, or what was given; `CQE.big_cqe` is what was given.

    Kernel: 5.1; res 6.10; fd, buf_index 6.13; TW 6.15; big_cqe 6.18.
    liburing: io_uring_prep_nop(3).
    """

    opcode = Opcode.NOP

    nop_flags: NopFlags = attrs.field(default=_NO_FLAGS, kw_only=True)
    res: int | None = attrs.field(default=None, kw_only=True)
    fd: FileLike | None = attrs.field(default=None, kw_only=True)
    buf_index: int | None = attrs.field(default=None, kw_only=True)
    big_cqe: tuple[int, int] | None = attrs.field(default=None, kw_only=True)

    _plain: ClassVar[bytes] = bytes([opcode]).ljust(SQE_SIZE, b"\0")

    def _encode(self: Any) -> tuple[bytes, object]:
        if (
            self._nop_flags is _NO_FLAGS
            and self._res is None
            and self._fd is None
            and self._buf_index is None
            and self._big_cqe is None
        ):  # what nearly all of them are
            if self._flags is NO_FLAGS and type(self._personality) is int and not self._personality:
                return self._plain, None
            return self._pack(), None
        return self._encode_options(), None

    def _encode_options(self) -> bytes:
        flags = check_range("nop_flags", self.nop_flags, 0, UINT32_MAX)
        for flag, name in _NOP_FIELDS:
            if getattr(self, name) is not None:
                flags |= flag
            elif flags & flag:
                raise ValueError(f"{flag!r} needs {name}, which sets it")
        fd = 0
        if self.fd is not None:
            # A file of a nop is not that of its SQE: the kernel looks it up by the nop's own flag.
            fd, is_fixed = file_field(self.fd)
            flags |= NopFlags.FIXED_FILE if is_fixed else 0
        if flags & NopFlags.FIXED_FILE and not isinstance(self.fd, Fixed):
            raise ValueError(f"{NopFlags.FIXED_FILE!r} needs fd=Fixed(index), which sets it")
        length = 0 if self.res is None else _signed32("res", self.res)
        off, addr = self._extra_words()
        buf_index = self.buf_index or 0
        return self._pack(fd, off, addr, length, op_flags=flags, buf_index=buf_index)

    def _extra_words(self) -> tuple[int, int]:
        if self.big_cqe is None:
            return 0, 0
        if not isinstance(self.big_cqe, tuple) or len(self.big_cqe) != 2:
            raise TypeError(f"big_cqe must be a tuple of two integers, not {self.big_cqe!r}")
        return self.big_cqe


@operation
class Nop128(Nop):
    """
    Do nothing in a record of 128 bytes: a `Nop` for tests of such rings.

    Needs a ring with SetupFlags.SQE128 or SQE_MIXED.

    Completion: res is as that of `Nop`. A kernel without the opcode, as 6.18 is: UnsupportedError
        when it is queued.

    Kernel: 6.19. liburing: io_uring_prep_nop128(3).
    """

    opcode = Opcode.NOP128
    _plain: ClassVar[bytes] = bytes([opcode]).ljust(SQE_SIZE, b"\0")


# ---- cancelling ----


def _opcode(opcode: object) -> tuple[int, int]:
    """``sqe->len`` and the flag for an opcode to match; nothing for None."""
    if opcode is None:
        return 0, 0
    # The kernel reads one byte of it.
    return check_range("target_opcode", opcode, 0, 255), int(CancelFlags.OP)


@operation
class AsyncCancel(Targeting):
    """
    Cancel an operation in flight by its user_data.

    The target's own completion still comes, and its memory is pinned until then: with ECANCELED, or
    with its result if it was faster. What a worker of the kernel is busy with may end with EINTR,
    or, as the opening of a FIFO on 6.18, with 512, the kernel's ERESTARTSYS.

    Args:
        target: the user_data of the operation to cancel.
        all: cancel every operation with this user_data, not only the first found (kernel 5.19).
        target_opcode: cancel it only if it has this opcode (kernel 6.6).

    Completion: res is 0 (1 for a `FutexWait`, `FutexWaitv` or `Waitid`), or with `all` how many
        were found, which may be 0; without it ENOENT when there was none, EALREADY when the
        target is running and may or may not be interrupted.

    Kernel: 5.5. liburing: io_uring_prep_cancel64(3).
    """

    opcode = Opcode.ASYNC_CANCEL

    all: bool = attrs.field(default=False, kw_only=True)
    target_opcode: Opcode | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        length, flags = _opcode(self.target_opcode)
        if flags:
            flags |= CancelFlags.USERDATA
        if self.all:
            flags |= CancelFlags.ALL
        return self._pack(addr=self.target, len=length, op_flags=flags), None


@operation
class AsyncCancelFd(Operation):
    """
    Cancel operations in flight by the file that they are on.

    What counts is the open file, not its number: an operation on `Fixed(index)` and one on a
    descriptor match each other when both are of the same open file, and a duplicate matches as
    well. Timeouts, futexes and waits for children have no file. Their own completions still come.

    Args:
        fd: the file.
        all: cancel every operation on it, not only the first found.
        target_opcode: cancel only operations with this opcode (kernel 6.6).
        target: cancel only operations with this user_data (kernel 6.6).

    Completion: res is 0, or with `all` how many were found, which may be 0; without it ENOENT when
        there was none, EALREADY when it is running. EBADF when the file is not open.

    Kernel: 5.5; by file 5.19; Fixed 6.0. liburing: io_uring_prep_cancel_fd(3).
    """

    opcode = Opcode.ASYNC_CANCEL

    fd: FileLike
    all: bool = attrs.field(default=False, kw_only=True)
    target_opcode: Opcode | None = attrs.field(default=None, kw_only=True)
    target: int | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        fd, is_fixed = file_field(self.fd)
        length, flags = _opcode(self.target_opcode)
        flags |= CancelFlags.FD | (CancelFlags.FD_FIXED if is_fixed else 0)
        if self.all:
            flags |= CancelFlags.ALL
        addr = 0
        if self.target is not None:
            addr = self.target
            flags |= CancelFlags.USERDATA
        return self._pack(fd, addr=addr, len=length, op_flags=flags), None


@operation
class AsyncCancelOp(Operation):
    """
    Cancel operations in flight by what they are. Their own completions still come.

    Args:
        target_opcode: the opcode of the operations to cancel, such as `Recv.opcode`.
        all: cancel every one of them, not only the first found.

    Completion: res is 0 (1 for a `FutexWait`, `FutexWaitv` or `Waitid`), or with `all` how many
        were found, which may be 0; without it ENOENT when there was none, EALREADY when it is
        running.

    Kernel: 5.5; by opcode 6.6. liburing: io_uring_prep_cancel64(3).
    """

    opcode = Opcode.ASYNC_CANCEL

    target_opcode: Opcode
    all: bool = attrs.field(default=False, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        if self.target_opcode is None:
            raise TypeError("target_opcode must be an Opcode: AsyncCancelAny() cancels everything")
        length, flags = _opcode(self.target_opcode)
        if self.all:
            flags |= CancelFlags.ALL
        return self._pack(len=length, op_flags=flags), None


@operation
class AsyncCancelAny(Operation):
    """
    Cancel all operations in flight in this ring. Their own completions still come.

    What runs in a worker and cannot be interrupted, such as a read from a disk, still ends by
    itself.

    Completion: res is how many were found, which may be 0.

    Kernel: 5.5; ANY 5.19. liburing: io_uring_prep_cancel64(3).
    """

    opcode = Opcode.ASYNC_CANCEL

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(op_flags=CancelFlags.ANY), None


# ---- messages from ring to ring ----


@operation
class MsgRing(Operation):
    """
    Post a completion in another ring, or in this one: to wake who waits there, and say why.

    The other ring may be any thread's. Nothing is in flight there: its reader gets a `CQE` whose
    `op` is None. From when it is queued to its completion the message has a descriptor of its own
    for the ring, so that closing that does not send it to the next ring of the same number; all
    messages to one ring share it.

    Args:
        ring: the other `Ring`, one of this process, or its descriptor; a ring cannot be a
            registered file.
        target_user_data: the user_data of the completion there. It belongs to messages from when
            this is queued until the completion is copied out there: one that is in use there is
            refused with ValueError when this is queued, and operations are refused it.
        target_res: the res of the completion there, from -2**31 to 2**31 - 1.
        target_flags: its flags, as `CQEFlags`, but for SKIP and F_32, which say how long a CQE is
            (kernel 6.3).

    Completion: res is 0 once the completion is posted there, which overflows like any other; EBADFD
        when it is no ring, or one that is not enabled yet; EOVERFLOW when there was no memory.

    Kernel: 5.18. liburing: io_uring_prep_msg_ring(3), io_uring_prep_msg_ring_cqe_flags(3).
    """

    opcode = Opcode.MSG_RING

    ring: int | HasFileno
    target_user_data: int = attrs.field(kw_only=True)
    target_res: int = attrs.field(default=0, kw_only=True)
    target_flags: int | None = attrs.field(default=None, kw_only=True)

    _reaches_out = True

    def _message(self) -> tuple[int | HasFileno, int]:
        return self.ring, self.target_user_data

    def _encode(self) -> tuple[bytes, object]:
        res = _signed32("target_res", self.target_res)
        passed = self.target_flags is not None
        record = self._pack(
            ordinary("ring", self.ring),
            off=self.target_user_data,
            addr=MsgRingCommand.DATA,
            len=res,
            op_flags=MsgRingFlags.FLAGS_PASS if passed else 0,
            splice_fd_in=check_message_flags(self.target_flags or 0),
        )
        return record, held(self.ring)


@operation
class MsgRingFd(Operation):
    """
    Send a registered file to another ring's table, and post a completion there.

    Both rings then have it; each lets go of its own with `Close(Fixed(index))`.

    Args:
        ring: the other `Ring`, one of this process, or its descriptor; EINVAL for the same ring.
        source: the registered file of this ring.
        slot: where it goes in the other ring's table; what is there is replaced. `AUTO` lets the
            kernel pick a free slot, whose number is then the res of the completion there.
        target_user_data: the user_data of the completion there, as for `MsgRing`.
        cqe_skip: post no completion there.

    Completion: res is 0, or with AUTO the slot; `result()` is the slot, as `Fixed` in the other
        ring. EBADF when `source` is empty, ENXIO when the other ring has no table, EINVAL when the
        slot is beyond it, ENFILE when none is free, EBADFD when it is no ring, EOVERFLOW when the
        file was sent but the completion could not be posted.

    Kernel: 5.18; files 6.0. liburing: io_uring_prep_msg_ring_fd(3).
    """

    opcode = Opcode.MSG_RING

    ring: int | HasFileno
    source: Fixed = attrs.field(kw_only=True)
    slot: Slot = attrs.field(kw_only=True)
    target_user_data: int = attrs.field(kw_only=True)
    cqe_skip: bool = attrs.field(default=False, kw_only=True)

    _reaches_out = True

    def _message(self) -> tuple[int | HasFileno, int] | None:
        return None if self.cqe_skip else (self.ring, self.target_user_data)

    def _encode(self) -> tuple[bytes, object]:
        if not isinstance(self.source, Fixed):
            raise TypeError(f"source must be Fixed(index), not {self.source!r}")
        if self.slot is None:
            raise TypeError("slot must be Fixed(index) or AUTO, not None")
        record = self._pack(
            ordinary("ring", self.ring),
            off=self.target_user_data,
            addr=MsgRingCommand.SEND_FD,
            op_flags=MsgRingFlags.CQE_SKIP if self.cqe_skip else 0,
            splice_fd_in=file_index(self.slot),
            addr3=self.source.index,
        )
        return record, held(self.ring)

    def _result(self, res: int, _memory: object, _flags: int) -> Slot:
        return Fixed(res) if self.slot is AUTO else self.slot
