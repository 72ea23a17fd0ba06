"""The arguments for the worker threads of a ring, and for its clock."""

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring._checks import check_range
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_MAX_WORKERS: Final = struct.Struct("=II")  # indexed by WorkerKind
_CLOCK: Final = struct.Struct("=I12x")  # struct io_uring_clock_register
_CPU_MAX: Final = 2**16 - 1  # far more than CONFIG_NR_CPUS can be


def affinity_argument(cpus: Iterable[int]) -> "tuple[CData, int]":
    """Encode a set of processors as a mask: (the mask, its size in bytes)."""
    mask = 0
    for cpu in cpus:
        mask |= 1 << check_range("a processor's number", cpu, 0, _CPU_MAX)
    if not mask:
        raise ValueError("at least one processor must be given")
    size = (mask.bit_length() + 63) // 64 * 8
    # An array of longs: on a big-endian machine the order within each is the machine's.
    longs = [mask >> 64 * place & (2**64 - 1) for place in range(size // 8)]
    pin, _, length = _memory.readable(struct.pack(f"={len(longs)}Q", *longs))
    return pin, length


def max_workers_argument(bounded: int, unbounded: int) -> "tuple[bytearray, CData]":
    """Encode two limits, instead of which the kernel writes those before."""
    check_range("bounded", bounded, 0, UINT32_MAX)
    check_range("unbounded", unbounded, 0, UINT32_MAX)
    record = bytearray(_MAX_WORKERS.pack(bounded, unbounded))
    pin, _, _ = _memory.writable(record)
    return record, pin


def max_workers(record: bytearray) -> tuple[int, int]:
    """The limits that the kernel wrote: (bounded, unbounded)."""
    bounded, unbounded = _MAX_WORKERS.unpack(record)
    return bounded, unbounded


def clock_argument(clock_id: int) -> "CData":
    """Encode a struct io_uring_clock_register."""
    check_range("clock_id", clock_id, 0, UINT32_MAX)
    pin, _, _ = _memory.readable(_CLOCK.pack(clock_id))
    return pin
