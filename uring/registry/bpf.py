"""Filters in classic BPF, which the kernel asks about each operation of a ring."""

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import attrs

from uring import _memory
from uring._checks import check_range
from uring.flags import BpfCommand, BpfFilterFlags
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter in linux/filter.h
_BPF: Final = struct.Struct("=HH4xIIIB3xQ40x")  # struct io_uring_bpf with its filter
_INSTRUCTIONS_MAX: Final = 4096  # BPF_MAXINSNS

Instruction = tuple[int, int, int, int]
"""One instruction of classic BPF: (code, jt, jf, k)."""


def _instructions(given: Iterable[Instruction]) -> tuple[Instruction, ...]:
    return tuple(given)


@attrs.frozen
class BpfFilter:
    """
    A filter for the operations with one opcode; the program returns 1 to let one pass, or 0.

    Args:
        opcode: the opcode that it is asked about.
        instructions: the program, as (code, jt, jf, k), of at most 4096. It reads a struct
            io_uring_bpf_ctx: the user_data, opcode and flags of the SQE, then `pdu_size` bytes that
            say more of some operations.
        filter_flags: `BpfFilterFlags`; DENY_REST denies all opcodes that have no filter.
        pdu_size: how many bytes the program expects behind the first 16.

    Kernel: 7.0. liburing: io_uring_register_bpf_filter(3).
    """

    opcode: int
    instructions: tuple[Instruction, ...] = attrs.field(converter=_instructions)
    filter_flags: BpfFilterFlags = attrs.field(default=BpfFilterFlags(0), kw_only=True)
    pdu_size: int = attrs.field(default=0, kw_only=True)


def filter_argument(bpf: BpfFilter) -> "tuple[CData, CData]":
    """Encode a struct io_uring_bpf: (the struct, the program that it points to)."""
    if not isinstance(bpf, BpfFilter):
        raise TypeError(f"a filter is a BpfFilter, not {bpf!r}")
    check_range("opcode", bpf.opcode, 0, UINT32_MAX)
    check_range("filter_flags", bpf.filter_flags, 0, UINT32_MAX)
    check_range("pdu_size", bpf.pdu_size, 0, 255)
    count = check_range("the number of instructions", len(bpf.instructions), 1, _INSTRUCTIONS_MAX)
    try:
        program = b"".join(_INSTRUCTION.pack(*each) for each in bpf.instructions)
    except struct.error as error:
        raise ValueError(f"an instruction is (code, jt, jf, k): {error}") from error
    program_pin, address, _ = _memory.readable(program)
    record = _BPF.pack(
        BpfCommand.FILTER, 0, bpf.opcode, bpf.filter_flags, count, bpf.pdu_size, address
    )
    pin, _, _ = _memory.readable(record)
    return pin, program_pin
