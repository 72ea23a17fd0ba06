"""
Which setup flags and register opcodes the kernel knows: asked of the kernel itself.

From 6.18 on there is REGISTER_QUERY, before it one trial ring for each flag.
"""

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring._ffi import ffi, lib
from uring.flags import QueryOpcode, RegisterOpcode, SetupFlags

if TYPE_CHECKING:
    from uring._uring import CData

_QUERY_HEADER: Final = struct.Struct("=QQIIi12x")  # struct io_uring_query_hdr
_QUERY_OPCODES: Final = struct.Struct("=IIQQQQI4x")  # struct io_uring_query_opcode

_F = SetupFlags
# What must be set beside a flag for the kernel to take it: io_uring_setup(2).
_COMPANIONS: Final = {
    _F.SQ_AFF: _F.SQPOLL,
    _F.TASKRUN_FLAG: _F.COOP_TASKRUN,
    _F.DEFER_TASKRUN: _F.SINGLE_ISSUER,
    _F.REGISTERED_FD_ONLY: _F.NO_MMAP,
    _F.HYBRID_IOPOLL: _F.IOPOLL,
    _F.SQ_REWIND: _F.NO_SQARRAY,
}


def query_opcodes(ring: "CData") -> tuple[int, ...] | None:
    """Ask for the fields of struct io_uring_query_opcode; None where one cannot ask."""
    return query(ring, QueryOpcode.OPCODES, _QUERY_OPCODES)


def query(ring: "CData", opcode: QueryOpcode, answer: struct.Struct) -> tuple[int, ...] | None:
    """Ask the kernel through an open ring; None where one cannot ask for this."""
    record = bytearray(_QUERY_HEADER.size + answer.size)
    pin, address, _ = _memory.writable(record)
    _QUERY_HEADER.pack_into(record, 0, 0, address + _QUERY_HEADER.size, opcode, answer.size, 0)
    if lib.uring_register(ring, RegisterOpcode.REGISTER_QUERY, pin, 0) < 0:
        return None
    *_, result = _QUERY_HEADER.unpack_from(record)
    return None if result < 0 else answer.unpack_from(record, _QUERY_HEADER.size)


def try_setup_flags(ring: "CData") -> SetupFlags:
    """Try each flag with a ring of its own."""
    found = SetupFlags(0)
    for flag in SetupFlags:
        if _knows_setup_flag(flag, ring.fd):
            found |= flag
    return found


def _knows_setup_flag(flag: SetupFlags, wq_fd: int) -> bool:
    """
    Whether the kernel knows a flag.

    Its first test is for bits that it does not know, with EINVAL. So any other errno proves that it
    knows the flag: EFAULT for NO_MMAP without memory, EPERM for SQPOLL before 5.11.
    """
    params = ffi.new("struct uring_params *")
    params.flags = flag | _COMPANIONS.get(flag, SetupFlags(0))
    if flag is SetupFlags.CQSIZE:
        params.cq_entries = 2
    elif flag is SetupFlags.ATTACH_WQ:
        params.wq_fd = wq_fd
    elif flag is SetupFlags.SQ_AFF:
        params.sq_thread_cpu = min(os.sched_getaffinity(0))  # processor 0 need not be online
    trial = ffi.gc(ffi.new("struct uring *"), lib.uring_exit)
    error = lib.uring_setup(trial, 1, params)
    lib.uring_exit(trial)
    return error != -errno.EINVAL
