"""Pipes: making them, and moving data through them without copying it to this process."""

import os
from typing import Any, Final

import attrs

from uring import _file_memory
from uring._checks import check_range
from uring.flags import Opcode, SpliceFlags
from uring.operations._base import MakesFile, Operation, operation
from uring.sqe import (
    AUTO,
    UINT32_MAX,
    UINT64_MAX,
    FileLike,
    Filename,
    Fixed,
    file_field,
    file_index,
)

__all__ = ["Pipe", "Splice", "Tee"]

_ERESTARTSYS: Final = 512  # include/linux/errno.h; Linux 6.18 lets it out
_FD_IN_FIXED: Final = int(SpliceFlags.FD_IN_FIXED)


@operation
class Pipe(MakesFile):
    """
    Make a pipe. Equivalent: pipe2(2).

    Args:
        pipe_flags: os.O_NONBLOCK, and os.O_DIRECT to read in packets, as they were written.
        cloexec: set O_CLOEXEC on both ends, as Python does; of no meaning with a slot.
        slot: make registered files instead of descriptors: with `Fixed(index)` that one and the
            next, whatever they held; with AUTO two free ones, not always neighbours.

    Lifetime: the room for the two numbers is the ring's, until the result has been read.
    Completion: res is 0. `result()` is (the end to read from, the end to write to): descriptors,
        which are the caller's to close, or `Fixed` when there is a slot. Descriptors that nobody
        has copied out when the ring closes are closed with it. It cannot share its user_data.
        EMFILE or ENFILE when there is no descriptor, or not two free slots; EINVAL when a slot is
        out of range.

    Kernel: 6.16. liburing: io_uring_prep_pipe(3), io_uring_prep_pipe_direct(3).
    """

    opcode = Opcode.PIPE

    pipe_flags: int = 0
    cloexec: bool = attrs.field(default=True, kw_only=True)

    _keeps_memory = True
    _is_sole = True

    def _encode(self) -> tuple[bytes, object]:
        room = _file_memory.PipeRoom()
        flags = self._with_cloexec("pipe_flags", os.O_CLOEXEC)
        file = file_index(self.slot)
        return self._pack(addr=room.address, op_flags=flags, splice_fd_in=file), room

    def _result(self, _res: int, memory: object, _flags: int) -> object:
        if isinstance(self.slot, Fixed):
            return self.slot, Fixed(self.slot.index + 1)
        if not isinstance(memory, _file_memory.PipeRoom):
            return None
        read, write = memory.decode()
        return (Fixed(read), Fixed(write)) if self.slot is AUTO else (read, write)

    def _descriptors(self, _res: int, memory: object, _flags: int) -> tuple[int, ...]:
        if self.slot is None and isinstance(memory, _file_memory.PipeRoom):
            return memory.decode()
        return ()


class _Splices(Operation):
    """An operation with a second file, which has a number and a flag of its own."""

    __slots__ = ()

    def _remember(self: Any, prepared: tuple[bytes, object]) -> None:
        if isinstance(self._fd_in, int | Fixed) and isinstance(self._fd_out, int | Fixed):
            self._prepared = prepared

    def _error_context(self, number: int) -> tuple[str, Filename]:
        note, filename = super()._error_context(number)
        if number == _ERESTARTSYS:
            note += ": cancelled while it waited for a pipe (ERESTARTSYS, the kernel's own number)"
        return note, filename

    def _encode_both(self: Any, off: int, off_in: int) -> tuple[bytes, object]:
        flags = check_range("splice_flags", self._splice_flags, 0, UINT32_MAX)
        if flags & _FD_IN_FIXED:
            raise ValueError("SPLICE_F_FD_IN_FIXED is set by itself: give fd_in as Fixed(index)")
        number, is_fixed = file_field(self._fd_in)
        check_range("fd_in", number, -(2**31), 2**31 - 1)
        record = self._pack(
            self._fd_out,
            off=off,
            addr=off_in,
            len=self._length,
            op_flags=flags | _FD_IN_FIXED if is_fixed else flags,
            splice_fd_in=number & 0xFFFFFFFF,
        )
        return record, None


@operation
class Splice(_Splices):
    """
    Move data between a pipe and another file, or two pipes. Equivalent: splice(2).

    It may move less than was asked for. It runs on a thread of the kernel's, which waits there for
    a pipe that is empty or full.

    Args:
        fd_in: the file to read from.
        fd_out: the file to write to. One of the two must be a pipe.
        length: how much to move at most, in bytes; at most 2**32 - 1.
        off_in: where to read, in bytes; -1 uses and moves the file's position, and is all that a
            pipe takes (ESPIPE else).
        off_out: where to write, in the same way.
        splice_flags: os.SPLICE_F_MOVE, SPLICE_F_NONBLOCK (EAGAIN, rather than wait for the pipe; a
            socket is waited for unless it has O_NONBLOCK itself) and SPLICE_F_MORE.

    Completion: res is the number of bytes moved; 0 at the end of the input. Cancelled while it
        waits, it completes with an errno of the kernel's own, 512, as a note on the error says.

    Kernel: 5.7. liburing: io_uring_prep_splice(3).
    """

    opcode = Opcode.SPLICE

    fd_in: FileLike = attrs.field(kw_only=True)
    fd_out: FileLike = attrs.field(kw_only=True)
    length: int = attrs.field(kw_only=True)
    off_in: int = attrs.field(default=-1, kw_only=True)
    off_out: int = attrs.field(default=-1, kw_only=True)
    splice_flags: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        off_in, off_out = (UINT64_MAX if off == -1 else off for off in (self.off_in, self.off_out))
        for name, off in (("off_in", off_in), ("off_out", off_out)):
            if not isinstance(off, int):
                raise TypeError(f"{name} must be an integer, not {off!r}")
            if not 0 <= off <= UINT64_MAX:
                raise ValueError(f"{name} must be 0 or more, or -1 for the position; not {off}")
        return self._encode_both(off_out, off_in)


@operation
class Tee(_Splices):
    """
    Copy what is in a pipe to another one, and leave it in the first. Equivalent: tee(2).

    Args:
        fd_in: the pipe to read from.
        fd_out: the pipe to write to; another one.
        length: how much to copy at most, in bytes; at most 2**32 - 1.
        splice_flags: os.SPLICE_F_NONBLOCK: EAGAIN, rather than wait for a pipe.

    Completion: res is the number of bytes copied; 0 when the input is empty and has no writer.
        Cancelled while it waits, it completes with errno 512, as `Splice`.

    Kernel: 5.8. liburing: io_uring_prep_tee(3).
    """

    opcode = Opcode.TEE

    fd_in: FileLike = attrs.field(kw_only=True)
    fd_out: FileLike = attrs.field(kw_only=True)
    length: int = attrs.field(kw_only=True)
    splice_flags: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._encode_both(0, 0)
