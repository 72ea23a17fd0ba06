"""
The structures of file operations, as pins: open_how, attribute names, and what the kernel fills.

A `Room` is memory of this package's own that the kernel writes for one operation. What is made of
it (a `StatxResult`, the bytes of an attribute) is a copy and the caller's.
"""

import os
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, overload

import attrs

from uring import _memory
from uring._checks import check_range
from uring._values import value
from uring.file_flags import StatxAttributes, StatxMask

if TYPE_CHECKING:
    from uring._uring import CData

_T = TypeVar("_T")

OPEN_HOW: Final = struct.Struct("=QQQ")
STATX_SIZE: Final = 256
_FDS: Final = struct.Struct("=ii")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def open_how(flags: int, mode: int, resolve: int) -> "tuple[CData, int, int]":
    """Pin a struct open_how: (pin, address, size)."""
    fields = {"open_flags": flags, "mode": mode, "resolve": resolve}
    for name, number in fields.items():
        check_range(name, number, 0, 2**64 - 1)
    return _memory.readable(OPEN_HOW.pack(flags, mode, resolve))


def attribute(name: str | bytes) -> "tuple[CData, int]":
    """Pin the name of an extended attribute as a C string: (pin, address)."""
    if not isinstance(name, str | bytes):
        raise TypeError(f"an attribute's name is str or bytes, not {type(name).__name__}")
    return _memory.c_string(os.fsencode(name), "attribute", name)


class Room:
    """Memory that the kernel fills for one operation, and the pins of what else it reads for it."""

    __slots__ = ("_memory", "_others", "address")

    def __init__(self, size: int, *others: object) -> None:
        self._memory, self.address, _ = _memory.writable(bytearray(size))
        self._others = others

    def take(self, length: int) -> bytes:
        """Copy the first bytes."""
        return _memory.bytes_of(self._memory, 0, length)


class PipeRoom(Room):
    """Room for the two descriptors, or slots, of a pipe."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_FDS.size)

    def decode(self) -> tuple[int, int]:
        """The numbers of the end to read from and of the one to write to."""
        read, write = _FDS.unpack(self.take(_FDS.size))
        return read, write


class StatxRoom(Room):
    """Room for a struct statx."""

    __slots__ = ()

    def __init__(self, *others: object) -> None:
        super().__init__(STATX_SIZE, *others)

    def decode(self) -> "StatxResult":
        """What the kernel said about the file."""
        return StatxResult(self.take(STATX_SIZE))


class StatxArena:
    """Room for a struct statx of each of many files, in one piece."""

    __slots__ = ("_encoded", "_pin", "address")

    def __init__(self, count: int) -> None:
        self._encoded = bytearray(count * STATX_SIZE)
        self._pin, self.address, _ = _memory.span(self._encoded, write=True)

    def take(self, place: int) -> bytes:
        """Copy one of them."""
        return bytes(memoryview(self._encoded)[place * STATX_SIZE : (place + 1) * STATX_SIZE])

    def column(self, code: str, offset: int) -> memoryview:
        """The number at this offset of each."""
        whole = memoryview(self._encoded).toreadonly()
        view: memoryview = whole.cast(code)  # type: ignore[call-overload]  # it is one of them
        return view[offset // view.itemsize :: STATX_SIZE // view.itemsize]


class StatxPart(StatxRoom):
    """One of the structures in an arena."""

    __slots__ = ("_arena", "_place")

    def __init__(self, arena: StatxArena, place: int) -> None:
        self._arena = arena
        self._place = place

    def decode(self) -> "StatxResult":
        """What the kernel said about the file."""
        return StatxResult(self._arena.take(self._place))


class Field(Generic[_T]):
    """
    A field of struct statx, as an attribute of whatever has the structure's bytes in `_encoded`.

    Most of 28 fields are never looked at, so each is decoded when it is.
    """

    __slots__ = ("_make", "_unpack", "codes", "offset")

    def __init__(
        self, codes: str, offset: int, make: Callable[[tuple[int, ...]], _T] = itemgetter(0)
    ) -> None:
        self.codes = codes
        """Of the numbers that it has, as the struct module names them."""
        self.offset = offset
        self._unpack = struct.Struct(f"={codes}").unpack_from
        self._make = make

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: "StatxResult", owner: type) -> _T: ...
    def __get__(self, instance: "StatxResult | None", owner: type) -> Self | _T:
        if instance is None:
            return self
        return self._make(self._unpack(instance._encoded, self.offset))


def _nanoseconds(time: tuple[int, ...]) -> int:
    return time[0] * 1_000_000_000 + time[1]


def _attributes(numbers: tuple[int, ...]) -> StatxAttributes:
    return StatxAttributes(numbers[0])


def _check_size(_instance: object, _field: object, encoded: Any) -> None:
    if type(encoded) is not bytes or len(encoded) != STATX_SIZE:
        raise ValueError(f"a struct statx is {STATX_SIZE} bytes, not {encoded!r}")


@value
class StatxResult:
    """
    What `Statx` found out about a file: struct statx, field by field without the prefix stx_.

    Only what `mask` names is the file's; the rest is 0, or made up by the file system. `blksize`,
    `attributes`, `attributes_mask`, `dev_major` and `dev_minor` are always there. Two are equal
    when all that the kernel wrote is the same.

    Args:
        encoded: the 256 bytes of the structure.

    Source: statx(2), linux/stat.h.
    """

    _encoded: bytes = attrs.field(alias="encoded", validator=_check_size)

    mask = Field("I", 0, lambda numbers: StatxMask(numbers[0]))
    blksize = Field[int]("I", 4)
    """The size of a block that is good to read or write, in bytes."""
    attributes = Field("Q", 8, _attributes)
    nlink = Field[int]("I", 16)
    uid = Field[int]("I", 20)
    gid = Field[int]("I", 24)
    mode = Field[int]("H", 28)
    """The type and the permissions, for the functions of the stat module."""
    ino = Field[int]("Q", 32)
    size = Field[int]("Q", 40)
    """In bytes."""
    blocks = Field[int]("Q", 48)
    """How many blocks of 512 bytes, whatever `blksize` is."""
    attributes_mask = Field("Q", 56, _attributes)
    """Which bits of `attributes` the file system knows about."""
    atime_ns = Field("qI", 64, _nanoseconds)
    """The last access, in nanoseconds since 1970; so are the next three."""
    btime_ns = Field("qI", 80, _nanoseconds)
    """The birth of the file."""
    ctime_ns = Field("qI", 96, _nanoseconds)
    """The last change of what statx shows."""
    mtime_ns = Field("qI", 112, _nanoseconds)
    """The last change of the contents."""
    rdev_major = Field[int]("I", 128)
    rdev_minor = Field[int]("I", 132)
    dev_major = Field[int]("I", 136)
    dev_minor = Field[int]("I", 140)
    mnt_id = Field[int]("Q", 144)
    """As in /proc/self/mountinfo, or, with MNT_ID_UNIQUE in the mask, never used again."""
    dio_mem_align = Field[int]("I", 152)
    """How memory must be aligned for O_DIRECT, in bytes; 0 when the file cannot do that."""
    dio_offset_align = Field[int]("I", 156)
    """How offsets and lengths must be."""
    subvol = Field[int]("Q", 160)
    atomic_write_unit_min = Field[int]("I", 168)
    """The smallest write with RWF_ATOMIC, in bytes."""
    atomic_write_unit_max = Field[int]("I", 172)
    atomic_write_segments_max = Field[int]("I", 176)
    dio_read_offset_align = Field[int]("I", 180)
    """How offsets must be aligned for reads, when less is needed for those; else 0."""
    atomic_write_unit_max_opt = Field[int]("I", 184)
    """Above this, writes with RWF_ATOMIC are slower; 0 when they are not."""

    @property
    def dev(self) -> int:
        """The device that the file is on, as os.stat has it in st_dev."""
        return os.makedev(self.dev_major, self.dev_minor)

    @property
    def rdev(self) -> int:
        """The device that the file is, as os.stat has it in st_rdev."""
        return os.makedev(self.rdev_major, self.rdev_minor)

    @property
    def atime(self) -> datetime | None:
        """
        The last access, in UTC, cut to microseconds; None when `mask` has no ATIME.

        OverflowError for a time that datetime cannot hold, here and in the next three: `atime_ns`
        can.
        """
        return self._time(StatxMask.ATIME, self.atime_ns)

    @property
    def btime(self) -> datetime | None:
        """The birth of the file, in UTC; None when the file system does not keep it."""
        return self._time(StatxMask.BTIME, self.btime_ns)

    @property
    def ctime(self) -> datetime | None:
        """The last change of what statx shows, in UTC; None when `mask` has no CTIME."""
        return self._time(StatxMask.CTIME, self.ctime_ns)

    @property
    def mtime(self) -> datetime | None:
        """The last change of the contents, in UTC; None when `mask` has no MTIME."""
        return self._time(StatxMask.MTIME, self.mtime_ns)

    def _time(self, bit: StatxMask, ns: int) -> datetime | None:
        if not self.mask & bit:
            return None
        return _EPOCH + timedelta(microseconds=ns // 1000)

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in STATX_FIELDS]
        return f"StatxResult({', '.join(shown)})"


STATX_FIELDS: Final = [name for name, field in vars(StatxResult).items() if type(field) is Field]
"""The names, in the order of the structure."""
