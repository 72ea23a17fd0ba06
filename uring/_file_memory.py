"""
The structures of file operations, as pins: open_how, attribute names, and what the kernel fills.

A `Room` is memory of this package's own that the kernel writes for one operation. What is made of
it (a `StatxResult`, the bytes of an attribute) is a copy and the caller's.
"""

import operator
import os
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import attrs

from uring import _memory
from uring.file_flags import StatxAttributes, StatxMask

if TYPE_CHECKING:
    from uring._uring import CData

OPEN_HOW: Final = struct.Struct("=QQQ")
STATX: Final = struct.Struct("=IIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIIIQIIQIIIII4x64x")
TIMES: Final = slice(11, 19)
"""Where `STATX` has seconds and nanoseconds of atime, btime, ctime and mtime."""
_FDS: Final = struct.Struct("=ii")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def open_how(flags: int, mode: int, resolve: int) -> "tuple[CData, int, int]":
    """Pin a struct open_how: (pin, address, size)."""
    fields = {"open_flags": flags, "mode": mode, "resolve": resolve}
    for name, number in fields.items():
        if not isinstance(number, int):
            raise TypeError(f"{name} must be an integer, not {number!r}")
        if not 0 <= operator.index(number) < 2**64:
            raise ValueError(f"{name} must be in 0..2**64 - 1, not {number}")
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
        super().__init__(STATX.size, *others)

    def decode(self) -> "StatxResult":
        """What the kernel said about the file."""
        return decode_statx(self.take(STATX.size))


def decode_statx(encoded: bytes) -> "StatxResult":
    """Read a struct statx."""
    fields = STATX.unpack(encoded)
    mask, blksize, attributes, *ids, attributes_mask = fields[: TIMES.start]
    stamps = fields[TIMES]
    times = [
        seconds * 1_000_000_000 + nanoseconds
        for seconds, nanoseconds in zip(stamps[::2], stamps[1::2], strict=True)
    ]
    flags = StatxMask(mask), blksize, StatxAttributes(attributes)
    values = *flags, *ids, StatxAttributes(attributes_mask), *times, *fields[TIMES.stop :]
    return StatxResult(*values)


@attrs.frozen
class StatxResult:
    """
    What `Statx` found out about a file: struct statx, field by field without the prefix stx_.

    Only what `mask` names is the file's; the rest is 0, or made up by the file system. `blksize`,
    `attributes`, `attributes_mask`, `dev_major` and `dev_minor` are always there.

    Source: statx(2), linux/stat.h.
    """

    mask: StatxMask
    blksize: int
    """The size of a block that is good to read or write, in bytes."""
    attributes: StatxAttributes
    nlink: int
    uid: int
    gid: int
    mode: int
    """The type and the permissions, for the functions of the stat module."""
    ino: int
    size: int
    """In bytes."""
    blocks: int
    """How many blocks of 512 bytes, whatever `blksize` is."""
    attributes_mask: StatxAttributes
    """Which bits of `attributes` the file system knows about."""
    atime_ns: int
    """The last access, in nanoseconds since 1970; so are the next three."""
    btime_ns: int
    """The birth of the file."""
    ctime_ns: int
    """The last change of what statx shows."""
    mtime_ns: int
    """The last change of the contents."""
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int
    mnt_id: int
    """As in /proc/self/mountinfo, or, with MNT_ID_UNIQUE in the mask, never used again."""
    dio_mem_align: int
    """How memory must be aligned for O_DIRECT, in bytes; 0 when the file cannot do that."""
    dio_offset_align: int
    """How offsets and lengths must be."""
    subvol: int
    atomic_write_unit_min: int
    """The smallest write with RWF_ATOMIC, in bytes."""
    atomic_write_unit_max: int
    atomic_write_segments_max: int
    dio_read_offset_align: int
    """How offsets must be aligned for reads, when less is needed for those; else 0."""
    atomic_write_unit_max_opt: int
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
