"""
From the arguments of `Ring()` to a mapped ring, or to an error that says what is wrong with them.

What the kernel would answer with a bare EINVAL is refused here, by name, before any C runs; what
only the kernel can know becomes a SetupError with its reason.
"""

import errno
import mmap
from typing import TYPE_CHECKING, Final

import attrs

from uring import _memory
from uring._checks import check_range
from uring._ffi import ffi, lib
from uring._kernel import query_opcodes, try_setup_flags
from uring.completions import cqe_size
from uring.errors import UnsupportedError, UnsupportedSetupError, call_error
from uring.flags import Features, SetupFlags
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uring._uring import CData

ENTRIES_MAX: Final = 32768  # IORING_MAX_ENTRIES in io_uring/io_uring.h
CQ_ENTRIES_MAX: Final = 2 * ENTRIES_MAX

_MIXED_ENTRIES_MIN: Final = 4  # see mixed_head() in _cq.h; the kernel wants 2

_F = SetupFlags
# What a flag needs, and what it cannot stand with: io_uring_setup(2), io_uring_sanitise_params().
_NEEDS: Final = (
    (_F.SQ_AFF, _F.SQPOLL),
    (_F.TASKRUN_FLAG, _F.COOP_TASKRUN | _F.DEFER_TASKRUN),
    (_F.DEFER_TASKRUN, _F.SINGLE_ISSUER),
    (_F.HYBRID_IOPOLL, _F.IOPOLL),
    (_F.REGISTERED_FD_ONLY, _F.NO_MMAP),
    (_F.SQ_REWIND, _F.NO_SQARRAY),
)
_EXCLUDES: Final = (
    (_F.SQPOLL, _F.COOP_TASKRUN | _F.TASKRUN_FLAG | _F.DEFER_TASKRUN),
    (_F.CQE32, _F.CQE_MIXED),
    (_F.SQE128, _F.SQE_MIXED),
)
_BY_ARGUMENT: Final = (
    (_F.CQSIZE, "cq_entries"),
    (_F.SQ_AFF, "sq_thread_cpu"),
    (_F.ATTACH_WQ, "attach_wq"),
)
_NOT_DRIVEN: Final = _F.SQE_MIXED | _F.SQ_REWIND


@attrs.frozen
class RingParams:
    """
    What the kernel granted at setup.

    Source: struct io_uring_params in linux/io_uring.h, without the offsets.
    """

    sq_entries: int
    cq_entries: int
    flags: SetupFlags
    sq_thread_cpu: int
    sq_thread_idle_ms: int
    features: Features
    wq_fd: int


def check_entries(entries: int, *, is_clamped: bool = False) -> None:
    """Refuse a size that the kernel would refuse, or would silently round up."""
    if not isinstance(entries, int) or isinstance(entries, bool):
        raise TypeError(f"entries must be an int, not {entries!r}")
    if is_clamped and ENTRIES_MAX < entries <= UINT32_MAX:
        return
    if 1 <= entries <= ENTRIES_MAX and entries & (entries - 1) == 0:
        return
    valid = min(max(1, 1 << max(entries - 1, 0).bit_length()), ENTRIES_MAX)
    raise ValueError(
        f"entries must be a power of two from 1 to {ENTRIES_MAX}, not {entries}; use {valid}"
    )


def check_flags(flags: SetupFlags, given: "Mapping[str, object]") -> SetupFlags:
    """Refuse combinations that cannot work; add the flags that the other arguments imply."""
    if not isinstance(flags, int) or isinstance(flags, bool):
        raise TypeError(f"flags must be SetupFlags, not {flags!r}")
    flags = SetupFlags(flags)
    for flag, argument in _BY_ARGUMENT:
        if given[argument] is not None:
            flags |= flag
        elif flags & flag:
            raise ValueError(f"{flag!r} is set by passing {argument}")
    if given["sq_thread_idle_ms"] is not None and not flags & _F.SQPOLL:
        raise ValueError("sq_thread_idle_ms needs SetupFlags.SQPOLL")
    for flag, needed in _NEEDS:
        if flags & flag and not flags & needed:
            raise ValueError(f"{flag!r} needs {needed!r}")
    for flag, excluded in _EXCLUDES:
        if flags & flag and flags & excluded:
            raise ValueError(f"{flag!r} cannot stand with {flags & excluded!r}")
    unknown = int(flags) & ~sum(SetupFlags)
    if unknown:
        raise ValueError(f"flags has bits that no kernel knows: {unknown:#x}")
    return flags


def setup(
    entries: int,
    flags: SetupFlags,
    *,
    cq_entries: int | None,
    sq_thread_cpu: int | None,
    sq_thread_idle_ms: int | None,
    wq_fd: int | None,
) -> "tuple[CData, CData, RingParams, CData]":
    """
    Make a ring and map it: (the shim's struct, its inbox, what the kernel granted, its end).

    The inbox is where the shim leaves completions; it must be kept as long as the struct. The end
    closes the ring when it is dropped, until who has the ring takes that over with
    `ffi.gc(end, None)`. It is not the struct itself: the collector finalizes what is in a cycle in
    any order, and somebody may still look at the struct afterwards.
    """
    given = {
        "cq_entries": cq_entries,
        "sq_thread_cpu": sq_thread_cpu,
        "sq_thread_idle_ms": sq_thread_idle_ms,
        "attach_wq": wq_fd,
    }
    flags = check_flags(flags, given)
    check_entries(entries, is_clamped=_F.CLAMP in flags)
    if flags & _NOT_DRIVEN:
        raise _lacking(flags) or UnsupportedError(
            errno.EOPNOTSUPP, f"this version of uring does not drive {flags & _NOT_DRIVEN!r}"
        )
    params = ffi.new("struct uring_params *")
    params.flags = flags
    if cq_entries is not None:
        params.cq_entries = check_cq_entries(cq_entries, entries, is_clamped=_F.CLAMP in flags)
    if sq_thread_cpu is not None:
        params.sq_thread_cpu = check_range("sq_thread_cpu", sq_thread_cpu, 0, 2**31 - 1)
    if sq_thread_idle_ms is not None:
        # 0 would mean the kernel's default of one second, not "never idle".
        params.sq_thread_idle = check_range("sq_thread_idle_ms", sq_thread_idle_ms, 1, 2**31 - 1)
    if wq_fd is not None:
        params.wq_fd = check_range("attach_wq", wq_fd, 0, 2**31 - 1)
    if flags & _F.CQE_MIXED and (params.cq_entries or 2 * entries) < _MIXED_ENTRIES_MIN:
        raise ValueError(
            f"CQE_MIXED needs a completion queue of {_MIXED_ENTRIES_MIN} at least: pass cq_entries"
        )
    # The end owns the descriptor and the mappings from the first moment: an exception in here,
    # Ctrl-C included, leaves them to it.
    ring = ffi.new("struct uring *")
    end = ffi.gc(ring, lib.uring_exit)
    error = lib.uring_setup(ring, entries, params)
    if error < 0:
        # Without flags there is nothing to ask for, and the question would be asked without end.
        lacking = _lacking(flags) if error == -errno.EINVAL and flags else None
        detail = _detail(-error, flags, sq_thread_cpu)
        raise lacking or call_error("io_uring_setup", -error, detail=detail)
    inbox = _inbox(params)
    error = lib.uring_map(ring, params, inbox)
    if error == -errno.EOPNOTSUPP:
        raise UnsupportedSetupError(
            errno.EOPNOTSUPP,
            "this kernel lacks IORING_FEAT_SINGLE_MMAP: uring needs Linux 5.4 for it, and 5.6 for"
            " most operations",
        )
    if error < 0:
        raise call_error("mmap of the ring", -error)
    return ring, inbox, _granted(params), end


def _inbox(params: "CData") -> "CData":
    """
    Memory for the CQEs that the shim has taken.

    A ring that can be resized has it for the largest CQ there is, so that it never moves: the
    system gives the pages when they are first used.
    """
    size = cqe_size(params.flags)
    if not params.flags & SetupFlags.DEFER_TASKRUN:
        return ffi.new("char[]", params.cq_entries * size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        pin, _, _ = _memory.writable(mmap.mmap(-1, CQ_ENTRIES_MAX * size, flags))
    except OSError as error:
        raise call_error("mmap of the ring", error.errno or errno.ENOMEM) from error
    return pin


def check_cq_entries(cq_entries: int, entries: int, *, is_clamped: bool = False) -> int:
    """Refuse a size of the completion queue that the kernel would refuse."""
    most = UINT32_MAX if is_clamped else CQ_ENTRIES_MAX
    return check_range("cq_entries", cq_entries, min(entries, ENTRIES_MAX), most)


def _granted(params: "CData") -> RingParams:
    return RingParams(
        params.sq_entries,
        params.cq_entries,
        SetupFlags(params.flags),
        params.sq_thread_cpu,
        params.sq_thread_idle,
        Features(params.features),
        params.wq_fd,
    )


def _lacking(flags: SetupFlags) -> UnsupportedSetupError | None:
    """The error that says which of the flags this kernel does not know; None when it knows all."""
    ring, _inbox, _params, _end = setup(
        1, SetupFlags(0), cq_entries=None, sq_thread_cpu=None, sq_thread_idle_ms=None, wq_fd=None
    )
    try:
        queried = query_opcodes(ring)
        known = SetupFlags(queried[3]) if queried else try_setup_flags(ring)
    finally:
        lib.uring_exit(ring)
    unknown = [f"{flag.name}, which needs Linux {flag.since}" for flag in flags & ~known]
    if not unknown:
        return None
    return UnsupportedSetupError(
        errno.EINVAL,
        f"io_uring_setup: this kernel does not know SetupFlags.{' and '.join(unknown)}",
    )


def _detail(error: int, flags: SetupFlags, sq_thread_cpu: int | None) -> str:
    if error != errno.EINVAL:
        return ""
    lines = []
    if sq_thread_cpu is not None:
        lines.append(f"sq_thread_cpu {sq_thread_cpu} must be a processor that is online")
    if flags & SetupFlags.ATTACH_WQ:
        lines.append("attach_wq must be a ring, and one with SQPOLL if this is to have it")
    return "the kernel refuses something that was asked for: " + ", ".join(lines) if lines else ""
