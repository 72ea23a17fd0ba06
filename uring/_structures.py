"""
Small structures that the kernel reads or writes beside the caller's buffers.

Epoll events, futex words and those who wait for them, what became of a child, protection
information, arrays of descriptors. All are built with the functions of `_memory`, which says what a
pin is. A class here is a room: memory that the kernel writes and `decode()` reads; it belongs to
one operation in flight. Sources: linux/eventpoll.h, linux/futex.h, linux/io_uring.h,
asm-generic/siginfo.h.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring.sqe import HasFileno, descriptor

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from uring._uring import CData

INT_MAX: Final = 2**31 - 1

# ---- struct epoll_event: packed on x86, so that 32 and 64 bits have one layout ----

_IS_X86: Final = os.uname().machine in {"x86_64", "i386", "i486", "i586", "i686"}
EPOLL_EVENT: Final = struct.Struct("=IQ" if _IS_X86 else "=I4xQ")
EPOLL_EVENTS_MAX: Final = INT_MAX // EPOLL_EVENT.size
"""How many events one wait takes (EP_MAX_EVENTS in fs/eventpoll.c)."""


def epoll_event(events: int, data: int) -> "tuple[CData, int]":
    """Pin a struct epoll_event: (pin, address)."""
    pin, address, _ = _memory.readable(EPOLL_EVENT.pack(events, data))
    return pin, address


class EpollEvents:
    """Room for the events that one wait gives."""

    __slots__ = ("_memory", "address")

    def __init__(self, count: int) -> None:
        self._memory, self.address, _ = _memory.writable(bytearray(count * EPOLL_EVENT.size))

    def decode(self, count: int) -> list[tuple[int, int]]:
        """The first `count` events, as (data, events)."""
        encoded = _memory.bytes_of(self._memory, 0, count * EPOLL_EVENT.size)
        return [(data, events) for events, data in EPOLL_EVENT.iter_unpack(encoded)]


# ---- futexes ----

_WAITV: Final = struct.Struct("=QQII")  # struct futex_waitv
_FUTEX2_SIZE_MASK: Final = 0x3
_FUTEX2_NUMA: Final = 0x4
FUTEX_WAITV_MAX: Final = 128


def futex_size(futex_flags: int) -> int:
    """How many bytes the value of a futex with these flags has."""
    return 1 << (futex_flags & _FUTEX2_SIZE_MASK)


def futex_word(word: "Buffer", futex_flags: int) -> "tuple[CData, int]":
    """
    Pin the memory of one futex: (pin, address).

    With NUMA it is two words, and the kernel writes the second one: the node.
    """
    is_numa = bool(futex_flags & _FUTEX2_NUMA)
    size = futex_size(futex_flags) * (2 if is_numa else 1)
    pin, address, length = (_memory.writable if is_numa else _memory.readable)(word)
    if length != size:
        raise ValueError(
            f"the word has {length} bytes, but a futex with these flags has {size}: pass a slice of"
            " memoryview(buffer)"
        )
    if address % size:
        raise ValueError(f"the word of a futex must lie at a multiple of {size} bytes in memory")
    return pin, address


def futex_waiters(waiters: "Sequence[tuple[Buffer, int, int]]") -> tuple[object, int]:
    """Pin an array of struct futex_waitv over (word, value, flags): (pins, address)."""
    words = [futex_word(word, flags) for word, _, flags in waiters]
    encoded = b"".join(
        [
            _WAITV.pack(value, address, flags, 0)
            for (_, address), (_, value, flags) in zip(words, waiters, strict=True)
        ]
    )
    pin, address, _ = _memory.readable(encoded)
    return (pin, words), address


# ---- siginfo_t, as waitid(2) fills it ----

_SIGINFO_SIZE: Final = 128  # SI_MAX_SIZE
_SIGINFO: Final = struct.Struct("=iii4xiIi" if struct.calcsize("P") == 8 else "=iiiiIi")


class ChildInfo:
    """Room for what a wait says of a child."""

    __slots__ = ("_memory", "address")

    def __init__(self) -> None:
        self._memory, self.address, _ = _memory.writable(bytearray(_SIGINFO_SIZE))

    def decode(self) -> tuple[int, int, int, int, int]:
        """As os.waitid_result: (si_pid, si_uid, si_signo, si_status, si_code)."""
        encoded = _memory.bytes_of(self._memory, 0, _SIGINFO.size)
        signo, _, code, pid, uid, status = _SIGINFO.unpack(encoded)
        return pid, uid, signo, status, code


# ---- protection information ----

ATTR_PI: Final = struct.Struct("=HHIQQQ")  # struct io_uring_attr_pi


def protection(
    buffer: "Buffer", numbers: tuple[int, int, int], *, write: bool
) -> tuple[object, int]:
    """Pin a struct io_uring_attr_pi over a buffer, of (flags, app_tag, seed): (pins, address)."""
    flags, app_tag, seed = numbers
    data, place, length = (_memory.writable if write else _memory.readable)(buffer)
    pin, address, _ = _memory.readable(ATTR_PI.pack(flags, app_tag, length, place, seed, 0))
    return (pin, data), address


# ---- arrays of descriptors ----


class Descriptors:
    """An array of descriptors; where the kernel picks slots, it writes them over these."""

    __slots__ = ("_memory", "address", "count")

    def __init__(self, fds: Iterable[int | HasFileno], lowest: int) -> None:
        numbers = [descriptor(fd) for fd in fds]
        if not numbers:
            raise ValueError("at least one file must be given")
        for number in numbers:
            if not lowest <= number <= INT_MAX:
                raise ValueError(f"a descriptor must be in {lowest}..2**31 - 1, not {number}")
        encoded = bytearray(struct.pack(f"={len(numbers)}i", *numbers))
        self._memory, self.address, _ = _memory.writable(encoded)
        self.count = len(numbers)

    def decode(self, count: int) -> list[int]:
        """The first `count` numbers, as they are now."""
        return list(struct.unpack(f"={count}i", _memory.bytes_of(self._memory, 0, 4 * count)))
