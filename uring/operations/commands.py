"""Commands that a driver gives its own meaning, as ioctl(2) does."""

import os
from typing import Any, Final

import attrs

from uring._checks import check_range
from uring._leases import Lease
from uring.flags import Opcode, SQEFlags, UringCmdFlags
from uring.operations._base import Operation, operation
from uring.sqe import UINT32_MAX, UINT64_MAX, FileLike, Group, buffer_group

__all__ = ["BlockDiscard", "UringCmd", "UringCmd128", "UringCmdMultishot"]

# Where the command's own bytes start in the record, and how many there are in one of either size.
_CMD_AT: Final = 48
_CMD_MAX: Final = 16
_CMD128_MAX: Final = 80

# BLOCK_URING_CMD_DISCARD in linux/blkdev.h is _IO(0x12, 0), which has one bit more in these ports.
_HAS_IOC_NONE: Final = os.uname().machine.startswith(("alpha", "mips", "ppc", "sparc"))
_DISCARD: Final = 0x20001200 if _HAS_IOC_NONE else 0x1200


@operation
class _Command(Operation):
    """What all commands have; `len` and `addr` are named by the record's fields."""

    fd: FileLike
    cmd_op: int = attrs.field(kw_only=True)
    cmd: bytes = attrs.field(default=b"", kw_only=True)
    addr: int = attrs.field(default=0, kw_only=True)
    len: int = attrs.field(default=0, kw_only=True)
    optlen: int = attrs.field(default=0, kw_only=True)

    def _record(self: Any, flags: int, buf_index: int, sqe_flags: int = 0) -> bytes:
        # What is above 32 bits is another field, which must be 0.
        cmd_op, cmd = check_range("cmd_op", self.cmd_op, 0, UINT32_MAX), self.cmd
        if not isinstance(cmd, bytes):
            raise TypeError(f"cmd must be bytes, not {type(cmd).__name__}")
        if len(cmd) > _CMD128_MAX:
            raise ValueError(f"a command has at most {_CMD128_MAX} bytes, not {len(cmd)}")
        record: bytes = self._pack(
            self.fd,
            off=cmd_op,
            addr=self.addr,
            len=self.len,
            op_flags=flags,
            buf_index=buf_index,
            splice_fd_in=self.optlen,
            sqe_flags=sqe_flags,
        )
        is_long = len(cmd) > _CMD_MAX or self.opcode == Opcode.URING_CMD128
        return record[:_CMD_AT] + cmd.ljust(_CMD128_MAX if is_long else _CMD_MAX, b"\0")


def _one_shot(flags: object) -> int:
    """Refuse the flag that makes another operation of this one, and would misread its group."""
    exact = check_range("uring_cmd_flags", flags, 0, UINT32_MAX)
    if exact & UringCmdFlags.MULTISHOT:
        raise ValueError("UringCmdFlags.MULTISHOT makes an UringCmdMultishot of it: use that")
    return exact


@operation
class UringCmd(_Command):
    """
    Give a command to the driver of a file: asynchronous ioctl(2), for those that have it.

    NVMe, ublk, FUSE, block devices, sockets and others do; what the fields mean is theirs to say.
    The safety promise ends here: memory whose address stands in `cmd` or `addr` is not known to the
    ring. Keep it alive and in place until the completion, and give no other addresses.

    Args:
        fd: the file.
        cmd_op: the driver's number of the command, 32 bits.
        cmd: its own bytes: up to 16, or up to 80 on rings with SetupFlags.SQE128.
        addr: the record's `addr`; for sockets `level` in its lower and `optname` in its upper half.
        len: the record's `len`.
        optlen: the record's `optlen`, which for others than sockets is `file_index`.
        uring_cmd_flags: `UringCmdFlags`: FIXED, with `buf_index` (kernel 6.1).
        buf_index: the registered buffer that the command uses, with FIXED.

    Completion: res is what the driver says; EOPNOTSUPP when it has no commands, or not this one. On
        rings with CQE32 it may say more in `CQE.big_cqe`.

    Kernel: 5.19. liburing: io_uring_prep_uring_cmd(3).
    """

    opcode = Opcode.URING_CMD

    uring_cmd_flags: UringCmdFlags = attrs.field(default=UringCmdFlags(0), kw_only=True)
    buf_index: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        return self._record(_one_shot(self.uring_cmd_flags), self.buf_index), None


@operation
class UringCmd128(UringCmd):
    """
    Give a command of up to 80 bytes, in a record of 128: as `UringCmd`, with all it says.

    Needs a ring with SetupFlags.SQE128 or SQE_MIXED; with the first `UringCmd` does the same.

    Completion: res is as that of `UringCmd`. A kernel without the opcode, as 6.18 is:
        UnsupportedError when it is queued.

    Kernel: 6.19. liburing: io_uring_prep_uring_cmd128(3).
    """

    opcode = Opcode.URING_CMD128


@operation
class UringCmdMultishot(_Command):
    """
    Give a command that completes again and again, each time with a provided buffer.

    The safety promise ends here, as it does for `UringCmd`.

    Args:
        fd: the file.
        cmd_op: the driver's number of the command, 32 bits.
        group: the group of provided buffers, or its number.
        cmd: its own bytes: up to 16, or up to 80 on rings with SetupFlags.SQE128.
        addr: the record's `addr`.
        len: the record's `len`.
        optlen: the record's `optlen`, which for others than sockets is `file_index`.

    Lifetime: the group is held until the last completion.
    Completion: res is what the driver says, usually how much of the buffer it filled; `result()` is
        the `Lease` of that buffer when the group is a `BufferRing`. EOPNOTSUPP when the driver has
        no such command. The last one has no MORE.

    Kernel: 5.19; MULTISHOT 6.18. liburing: io_uring_prep_uring_cmd(3).
    """

    opcode = Opcode.URING_CMD

    group: Group = attrs.field(kw_only=True)

    _keeps_memory = True
    _takes_buffer = True

    @property
    def _is_sole(self) -> bool:  # type: ignore[override]  # of the class, for the others
        return not isinstance(self.group, int)

    def _encode(self) -> tuple[bytes, object]:
        bgid = buffer_group(self.group)
        record = self._record(UringCmdFlags.MULTISHOT, bgid, SQEFlags.BUFFER_SELECT)
        return record, None if isinstance(self.group, int) else self.group

    def _result(self, res: int, memory: object, _flags: int) -> object:
        return memory if isinstance(memory, Lease) else res


@operation
class BlockDiscard(Operation):
    """
    Tell a block device that a part of it is not needed. Equivalent: ioctl(2) with BLKDISCARD.

    What was there is lost: it may read as zeros, as before, or as anything. Nothing is guaranteed
    about reads and writes of the same part that are in flight meanwhile.

    Args:
        fd: the block device, open for writing.
        offset: where the part begins, in bytes; a multiple of the device's logical block.
        length: how long it is, in bytes; such a multiple, too, and at least one.

    Completion: res is 0. EINVAL for a part that is not of whole blocks, or not inside the device;
        EBADF when it is not open for writing; EOPNOTSUPP on what is no block device, or does not
        discard.

    Kernel: 5.19; discards 6.12. liburing: io_uring_prep_cmd_discard(3).
    """

    opcode = Opcode.URING_CMD

    fd: FileLike
    offset: int = attrs.field(default=0, kw_only=True)
    length: int = attrs.field(kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        offset = check_range("offset", self.offset, 0, UINT64_MAX)
        length = check_range("length", self.length, 0, UINT64_MAX)
        return self._pack(self.fd, off=_DISCARD, addr=offset, addr3=length), None
