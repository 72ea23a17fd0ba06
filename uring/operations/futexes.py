"""Futexes: waiting until a word in memory changes, and waking who waits for it."""

from enum import IntFlag
from typing import TYPE_CHECKING, Final

import attrs

from uring import _structures
from uring._checks import check_range
from uring.flags import Opcode
from uring.operations._base import Operation, describe, lent, operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = ["FutexFlags", "FutexWait", "FutexWaiter", "FutexWaitv", "FutexWake"]


class FutexFlags(IntFlag):
    """
    What kind of futex a word is. Who waits and who wakes must agree on PRIVATE.

    SIZE_* are a number in the lower two bits; kernels up to 6.18 have SIZE_U32 alone, and answer
    EINVAL to the others. Source: FUTEX2_* in linux/futex.h.
    """

    SIZE_U8 = 0x0
    SIZE_U16 = 0x1
    SIZE_U32 = 0x2
    SIZE_U64 = 0x3
    NUMA = 0x4
    """The word has a second one behind it, for the node, which the kernel may write: 6.16."""
    MPOL = 0x8
    """The node follows from the memory policy: 6.16."""
    PRIVATE = 0x80
    """Used by the threads of this process only, which is faster."""


MATCH_ANY: Final = 0xFFFFFFFF  # FUTEX_BITSET_MATCH_ANY
_U32: Final = FutexFlags.SIZE_U32


def _kind(futex_flags: int) -> tuple[int, int]:
    """The flags as an int that is no more than that, and the highest value of such a word."""
    flags = check_range("futex_flags", futex_flags, 0, 2**31 - 1)
    return flags, (1 << 8 * _structures.futex_size(flags)) - 1


@operation
class FutexWait(Operation):
    """
    Wait until somebody wakes the waiters of a word in memory. Equivalent: futex_wait(2).

    The kernel compares and goes to wait in one step, so no wake-up in between is lost. One may come
    for no reason: look at the word again.

    Args:
        word: the 4 bytes of the futex, at a multiple of 4 in memory, such as
            `memoryview(mmap)[:4]`; with NUMA 8 bytes, writable.
        value: what it must hold for the wait to begin.
        mask: bits of which a `FutexWake` must have one in common, not 0.
        futex_flags: `FutexFlags`; the default works between processes, in shared memory, as well.

    Lifetime: the word is pinned until the completion.
    Completion: res is 0 when it was woken; EAGAIN (BlockingIOError) when the word held something
        else than `value`.

    Kernel: 6.7. liburing: io_uring_prep_futex_wait(3).
    """

    opcode = Opcode.FUTEX_WAIT

    word: "Buffer" = lent()
    value: int
    mask: int = attrs.field(default=MATCH_ANY, kw_only=True)
    futex_flags: FutexFlags = attrs.field(default=_U32, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        flags, highest = _kind(self.futex_flags)
        value = check_range("value", self.value, 0, highest)
        mask = check_range("mask", self.mask, 0, highest)
        pin, address = _structures.futex_word(self.word, flags)
        return self._pack(flags, off=value, addr=address, addr3=mask), pin


@operation
class FutexWake(Operation):
    """
    Wake who waits for a word in memory. Equivalent: futex_wake(2).

    Args:
        word: the 4 bytes of the futex, as `FutexWait` takes them.
        count: how many waiters to wake at most.
        mask: bits of which a waiter's mask must have one, not 0.
        futex_flags: `FutexFlags`, the same as those of who waits.

    Lifetime: the word is pinned until the completion.
    Completion: res is how many were woken.

    Kernel: 6.7. liburing: io_uring_prep_futex_wake(3).
    """

    opcode = Opcode.FUTEX_WAKE

    word: "Buffer" = lent()
    count: int = 1
    mask: int = attrs.field(default=MATCH_ANY, kw_only=True)
    futex_flags: FutexFlags = attrs.field(default=_U32, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        flags, highest = _kind(self.futex_flags)
        mask = check_range("mask", self.mask, 0, highest)
        count = check_range("count", self.count, 0, 2**31 - 1)
        pin, address = _structures.futex_word(self.word, flags)
        return self._pack(flags, off=count, addr=address, addr3=mask), pin


@attrs.frozen
class FutexWaiter:
    """
    One of the futexes that `FutexWaitv` waits for: a word, and what it must hold.

    Args:
        word: the 4 bytes of the futex, as `FutexWait` takes them.
        value: what it must hold for the wait to begin.
        futex_flags: `FutexFlags`, the same as those of who wakes.

    Source: struct futex_waitv in linux/futex.h.
    """

    word: "Buffer" = attrs.field(eq=id, repr=describe)
    value: int
    futex_flags: FutexFlags = attrs.field(default=_U32, kw_only=True)


@operation
class FutexWaitv(Operation):
    """
    Wait until somebody wakes the waiters of one of several words. Equivalent: futex_waitv(2).

    Args:
        waiters: from 1 to 128 `FutexWaiter`s.

    Lifetime: all words are pinned until the completion.
    Completion: res is the index of one that was woken, of which there may be more; EAGAIN
        (BlockingIOError) when one of the words held something else than its value.

    Kernel: 6.7. liburing: io_uring_prep_futex_waitv(3).
    """

    opcode = Opcode.FUTEX_WAITV

    waiters: "Sequence[FutexWaiter]" = attrs.field(
        converter=lambda waiters: tuple(waiters) if hasattr(waiters, "__iter__") else waiters
    )

    def _encode(self) -> tuple[bytes, object]:
        waiters = self.waiters
        if not isinstance(waiters, tuple) or not all(isinstance(w, FutexWaiter) for w in waiters):
            raise TypeError(f"waiters must be a sequence of FutexWaiter, not {waiters!r}")
        if not 1 <= len(waiters) <= _structures.FUTEX_WAITV_MAX:
            raise ValueError(
                f"one wait takes 1 to {_structures.FUTEX_WAITV_MAX} futexes, not {len(waiters)}"
            )
        words = []
        for waiter in waiters:
            flags, highest = _kind(waiter.futex_flags)
            words.append((waiter.word, check_range("value", waiter.value, 0, highest), flags))
        pins, address = _structures.futex_waiters(words)
        return self._pack(addr=address, len=len(waiters)), pins
