"""
Columns of integers and buffers, for many reads or writes that are encoded in one call.

The integers may stand in anything that has the buffer protocol or is a sequence. They are copied
first, as 64-bit numbers: what the C code checks is then what it uses, whatever others do to the
original meanwhile.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from uring import _memory
from uring._ffi import ffi, lib
from uring.sqe import UINT32_MAX, file_field

if TYPE_CHECKING:
    from uring._uring import CData

_NATIVE: Final = "@=<" if sys.byteorder == "little" else "@=>!"
_SIGNED: Final = frozenset("bhilqn")
_UNSIGNED: Final = frozenset("BHILQN")
PARTS_MAX: Final = UINT32_MAX // 64  # so that the SQEs have a size of 32 bits


class Lent(NamedTuple):
    """The pins of a batch's buffers."""

    pins: object
    base: int | None
    """The address of the one buffer; None when each part has its own."""


def integers(values: Any, name: str) -> "CData":
    """Copy a buffer or a sequence of integers: an array of int64_t."""
    if not _memory.is_buffer(values):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(
                f"{name} must be a buffer or a sequence of integers, not {type(values).__name__}"
            )
        try:
            values = array("q", values)
        except (TypeError, OverflowError) as error:
            refusal = ValueError if isinstance(error, OverflowError) else TypeError
            raise refusal(f"{name} must be integers of 64 bits: {error}") from None
    view = memoryview(values)
    kind = view.format[1:] if view.format[0] in _NATIVE else view.format
    if kind not in _SIGNED | _UNSIGNED:
        raise TypeError(
            f"{name} must be a buffer of integers in the machine's byte order, not of format"
            f" {view.format!r}"
        )
    if view.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not {view.ndim}")
    count = len(view)
    out = ffi.new("int64_t[]", count)
    pin, _ = _memory.pinned(view if view.c_contiguous else view.tobytes(), write=False)
    lib.uring_widen(out, pin, view.itemsize, kind in _SIGNED, count)
    return out


def _files(fds: Any, count: int) -> "tuple[CData, CData]":
    """The descriptors of a sequence of files or a buffer: (the numbers, flags to add or NULL)."""
    if _memory.is_buffer(fds):
        numbers, flags = integers(fds, "fd"), ffi.NULL
    elif isinstance(fds, Sequence) and not isinstance(fds, str):
        if {*map(type, fds)} == {int}:
            numbers, flags = integers(fds, "fd"), ffi.NULL
            _check_count("fd", len(numbers), count)
            return numbers, flags
        fields = [file_field(fd) for fd in fds]
        numbers = integers([number for number, _ in fields], "fd")
        flags, _ = _memory.pinned(bytes([flag for _, flag in fields]), write=False)
    else:
        raise TypeError(
            "fd must be a file, a sequence of files or a buffer of descriptors, not"
            f" {type(fds).__name__}"
        )
    _check_count("fd", len(numbers), count)
    return numbers, flags


def one_or_many(buffer: Any) -> Any:
    """The buffer, or a tuple of buffers that nobody can change any more."""
    if _memory.is_buffer(buffer):
        return buffer
    if isinstance(buffer, str) or not isinstance(buffer, Sequence):
        raise TypeError(
            f"buffer must be a buffer or a sequence of buffers, not {type(buffer).__name__}"
        )
    return tuple(buffer)


def _check_count(name: str, found: int, count: int) -> None:
    if found != count:
        raise ValueError(f"{name} has {found} items, and offsets {count}: there must be as many")


def _set_buffers(parts: "CData", buffer: Any, count: int, *, write: bool) -> tuple[Lent, object]:
    if not isinstance(buffer, tuple):
        pin, size = _memory.pinned(buffer, write=write)
        parts.buffer, parts.size = pin, size
        return Lent(pin, _memory.address_of(pin)), None
    _check_count("buffer", len(buffer), count)
    pins = _memory.all_pinned(buffer, write=write)
    pointers = ffi.new("char *[]", pins)
    sizes = integers(list(map(len, pins)), "buffer")
    parts.buffers, parts.sizes = pointers, sizes
    return Lent(pins, None), (pointers, sizes)


def _set_lengths(parts: "CData", lengths: Any, count: int) -> object:
    if lengths is None and parts.buffers != ffi.NULL:
        parts.lengths = parts.sizes
    elif lengths is None:
        size = int(parts.size)
        if count and size % count:
            raise ValueError(
                f"a buffer of {size} bytes cannot be cut into {count} equal parts: give lengths"
            )
        parts.length = size // count if count else 0
    elif isinstance(lengths, int) and not isinstance(lengths, bool):
        if not 0 <= lengths <= UINT32_MAX:
            raise ValueError(f"lengths must be in 0..{UINT32_MAX}, not {lengths}")
        parts.length = lengths
    else:
        column = integers(lengths, "lengths")
        _check_count("lengths", len(column), count)
        parts.lengths = column
        return column
    return None


def encode_parts(
    pattern: bytes, fds: Any, buffer: Any, offsets: Any, lengths: Any, *, write: bool
) -> "tuple[CData, Lent]":
    """
    Encode one SQE for each offset: (the SQEs, the pins of the buffers).

    `pattern` is what all begin as; with `fds` None its file is that of all. `buffer` is what
    `one_or_many` gave, and `write` says that the kernel writes into it.
    """
    offset_column = integers(offsets, "offsets")
    count = len(offset_column)
    if count > PARTS_MAX:
        raise ValueError(f"one batch has at most {PARTS_MAX} parts, not {count}")
    parts = ffi.new("struct uring_parts *")
    parts.count = count
    parts.offsets = offset_column
    pattern_pin, _ = _memory.pinned(pattern, write=False)
    parts.pattern = pattern_pin
    if fds is not None:
        numbers, flags = _files(fds, count)
        parts.fds, parts.flags = numbers, flags
    lent, _keep_buffers = _set_buffers(parts, buffer, count, write=write)
    _keep_lengths = _set_lengths(parts, lengths, count)
    sqes = ffi.new("char[]", count * len(pattern))
    wrong = lib.uring_encode_parts(sqes, parts)
    if wrong:
        raise _explain(parts, wrong >> 3, wrong & 7)
    return sqes, lent


def _explain(parts: "CData", index: int, what: int) -> ValueError:
    length = parts.lengths[index] if parts.lengths != ffi.NULL else parts.length
    if what == lib.PART_OFFSET:
        return ValueError(f"part {index}: offset must be 0 or more, not {parts.offsets[index]}")
    if what == lib.PART_LENGTH:
        return ValueError(f"part {index}: length must be in 0..{UINT32_MAX}, not {length}")
    if what == lib.PART_FD:
        return ValueError(f"part {index}: {parts.fds[index]} is no descriptor")
    if parts.buffers != ffi.NULL:
        room = f"its buffer has {parts.sizes[index]}"
    else:
        room = f"the buffer of {parts.size} ends before that"
    return ValueError(f"part {index} has {length} bytes, but {room}")
