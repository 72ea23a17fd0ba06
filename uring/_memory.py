"""
What the kernel may touch, as pins.

Most functions turn a Python value into a pin and its address: the address goes into an SQE, and the
memory behind it stays where it is as long as the pin is referenced. A pin of a caller's buffer is
a buffer export, so resizing a bytearray or closing an mmap under the kernel's hands raises
BufferError there and then. This is the only file that names from_buffer and uring_address;
_columns.py, operations/_base.py and the two files.py use them as `lend` and `address_of`.
"""

import math
import operator
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, count
from typing import TYPE_CHECKING, Final

from uring._ffi import ffi, lib
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from uring._uring import CData

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_PATH_CODEC: Final = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
_TIMESPEC: Final = struct.Struct("=qq")  # struct __kernel_timespec
_iovec: Final = struct.Struct("NN").pack
"""struct iovec: a pointer and a size_t."""

IOV_MAX: Final = 1024
"""How many parts one vectored read or write takes (UIO_MAXIOV in linux/uio.h)."""

BYTES: Final = ffi.typeof("char[]")
lend: Final = ffi.from_buffer
"""lend(BYTES, buffer, writable): pin a buffer, for operations that have no time for `writable`."""
address_of: Final = lib.uring_address
"""The address of pinned memory."""


def readable(buffer: "Buffer") -> "tuple[CData, int, int]":
    """Pin memory that the kernel reads: (pin, address, length)."""
    try:
        pin = lend(BYTES, buffer)
    except (TypeError, ValueError, BufferError) as error:
        raise _refusal(buffer, writable=False) from error
    length, address = len(pin), address_of(pin)
    if length > UINT32_MAX:
        raise _too_long(length)
    return _steady(pin, buffer, address, length), address, length


def writable(buffer: "Buffer") -> "tuple[CData, int, int]":
    """Pin memory that the kernel writes: (pin, address, length)."""
    try:
        pin = lend(BYTES, buffer, True)  # noqa: FBT003 - a keyword costs 150 ns here
    except (TypeError, ValueError, BufferError) as error:
        raise _refusal(buffer, writable=True) from error
    length, address = len(pin), address_of(pin)
    if length > UINT32_MAX:
        raise _too_long(length)
    return _steady(pin, buffer, address, length), address, length


def pinned(buffer: "Buffer", *, write: bool) -> "tuple[CData, int]":
    """Pin memory of any length, of which operations get parts: (pin, length)."""
    try:
        pin = lend(BYTES, buffer, write)
    except (TypeError, ValueError, BufferError) as error:
        raise _refusal(buffer, writable=write) from error
    length = len(pin)
    steady = _steady(pin, buffer, address_of(pin), length)
    return steady if len(steady) == length else _part(steady, address_of(pin), length), length


def _part(whole: "CData", address: int, length: int) -> "CData":
    """A pin of a part of pinned memory, which keeps the pin of all of it; see `_steady`."""
    start = ffi.addressof(whole, address - address_of(whole))
    keeping = ffi.gc(start, partial(operator.is_, whole))  # in C, where no signal cuts it off
    return lend(BYTES, ffi.buffer(keeping, length))


def all_pinned(buffers: "Sequence[Buffer]", *, write: bool) -> "list[CData]":
    """Pin many buffers."""
    try:
        return [lend(BYTES, buffer, write) for buffer in buffers]
    except (TypeError, ValueError, BufferError):
        return [pinned(buffer, write=write)[0] for buffer in buffers]


def span(buffer: "Buffer", *, write: bool) -> "tuple[CData, int, int]":
    """Pin memory of any length: (pin, address, length)."""
    pin, length = pinned(buffer, write=write)
    address = address_of(pin)
    return _steady(pin, buffer, address, length), address, length


def _steady(pin: "CData", buffer: object, address: int, length: int) -> "CData":
    """
    A pin of the same memory that does not export a memoryview, but what that is a view of.

    Up to CPython 3.12.6 the collector crashes when it clears a memoryview that is exported
    (python/cpython#77894), as one is that dies in a cycle with a pin of it. Where pins of a
    memoryview are made all the same, their holders let go of them before: see Batch and Ring.
    """
    if type(buffer) is not memoryview:
        return pin
    try:
        whole = lend(BYTES, buffer.obj)
    except (TypeError, ValueError, BufferError):
        return pin
    start = address_of(whole)
    is_inside = start <= address and address + length <= start + len(whole)
    return whole if is_inside else pin


def uint64s(numbers: "Buffer") -> "CData":
    """Pin an array of unsigned 64-bit integers, for the shim to read."""
    return ffi.from_buffer("uint64_t[]", numbers)


def bytes_of(pin: "CData", start: int = 0, length: int | None = None) -> bytes:
    """Copy pinned memory."""
    stop = len(pin) if length is None else start + length
    copied: bytes = ffi.buffer(pin)[start:stop]
    return copied


def view_of(pin: "CData") -> memoryview:
    """Pinned memory as bytes; the view keeps the pin."""
    return memoryview(ffi.buffer(pin))


def is_buffer(value: object) -> bool:
    """Whether `value` is itself one buffer."""
    try:
        memoryview(value).release()  # type: ignore[arg-type]  # to find out
    except (TypeError, ValueError, BufferError):
        return False
    return True


def _too_long(length: int) -> ValueError:
    return ValueError(
        f"the buffer has {length} bytes, but one operation moves at most {UINT32_MAX}:"
        " pass a slice of memoryview(buffer)"
    )


def _refusal(buffer: object, *, writable: bool) -> Exception:
    wanted = "a writable bytes-like object" if writable else "a bytes-like object"
    if isinstance(buffer, FixedBuffer):
        return TypeError(
            f"the buffer must be {wanted}, not {buffer!r}: that is for operations whose names end"
            " in Fixed, and its `view` for others"
        )
    try:
        view = memoryview(buffer)  # type: ignore[arg-type]  # to learn what is wrong with it
    except (TypeError, ValueError, BufferError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        return kind(f"the buffer must be {wanted}, not {type(buffer).__name__} ({error})")
    with view:
        if not view.c_contiguous:
            return ValueError("the buffer must be C-contiguous: a strided view cannot be lent")
        if writable and view.readonly:
            return TypeError(
                f"the kernel writes into the buffer: it must be {wanted},"
                f" not read-only {type(buffer).__name__}"
            )
    return TypeError(f"the buffer must be {wanted}, not {type(buffer).__name__}")


class FixedBuffer:
    """
    A part of a registered buffer, as `RegisteredBuffers` gives them; slicing one gives another.

    Stands where `ReadFixed`, `WriteFixed` and their like take a buffer, and exports its memory, as
    `memoryview(part.view)`. It keeps the memory, not the registration: once that is gone,
    operations on it complete with EFAULT.
    """

    __slots__ = ("buf_index", "view")

    def __init__(self, view: memoryview, buf_index: int) -> None:
        self.view = view
        """The memory."""
        self.buf_index = buf_index
        """The index of the registered buffer that it lies in."""

    def __len__(self) -> int:
        return self.view.nbytes

    def __getitem__(self, part: slice) -> "FixedBuffer":
        if not isinstance(part, slice):
            raise TypeError(f"a FixedBuffer is cut with a slice, not {part!r}: see its `view`")
        return FixedBuffer(self.view[part], self.buf_index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} bytes in registered buffer {self.buf_index}>"


def fixed_part(
    buffer: "Buffer | FixedBuffer", buf_index: int | None, *, write: bool
) -> "tuple[CData, int, int, int]":
    """Pin memory inside a registered buffer: (pin, address, length, the buffer's index)."""
    if isinstance(buffer, FixedBuffer):
        if buf_index not in {None, buffer.buf_index}:
            raise ValueError(f"{buffer!r} was given with buf_index {buf_index}")
        pin = (writable if write else readable)(buffer.view)
        return *pin, buffer.buf_index
    if buf_index is None:
        raise TypeError(
            "which registered buffer is it in? Give buf_index, or a FixedBuffer, as"
            " Ring.register_buffers() returns them"
        )
    pin = (writable if write else readable)(buffer)
    return *pin, buf_index


def fixed_iovecs(
    buffers: "Iterable[Buffer | FixedBuffer]", buf_index: int | None, *, write: bool
) -> tuple[object, int, int, int]:
    """Pin parts of one registered buffer and a struct iovec over each: (.., count, its index)."""
    if isinstance(buffers, str) or not isinstance(buffers, Iterable) or is_buffer(buffers):
        raise TypeError(f"buffers must be a sequence of buffers, not one {type(buffers).__name__}")
    parts = [fixed_part(part, buf_index, write=write) for part in buffers]
    if len(parts) > IOV_MAX:
        raise ValueError(f"one operation takes at most {IOV_MAX} buffers, not {len(parts)}")
    indices = {part[3] for part in parts}
    if len(indices) > 1:
        raise ValueError(f"the buffers must lie in one registered buffer, not in {sorted(indices)}")
    filled = [part for part in parts if part[2]]  # an empty one is EFAULT here, unlike in iovecs()
    array, address, _ = readable(b"".join(_iovec(part[1], part[2]) for part in filled))
    return (array, parts), address, len(filled), indices.pop() if indices else buf_index or 0


def iovecs(buffers: "Iterable[Buffer]", *, write: bool) -> tuple[object, int, int]:
    """Pin buffers and an array of struct iovec over them: (pins, address, count)."""
    is_plain = type(buffers) is tuple  # else the look costs more than the rest
    if not is_plain and (
        isinstance(buffers, str) or not isinstance(buffers, Iterable) or is_buffer(buffers)
    ):
        raise TypeError(f"buffers must be a sequence of buffers, not one {type(buffers).__name__}")
    buffers = tuple(buffers)
    parts = all_pinned(buffers, write=write)
    if len(parts) > IOV_MAX:
        raise ValueError(f"one operation takes at most {IOV_MAX} buffers, not {len(parts)}")
    for part in parts:
        if len(part) > UINT32_MAX:
            raise _too_long(len(part))
    array = b"".join([_iovec(address_of(part), len(part)) for part in parts])
    if memoryview in map(type, buffers):
        whole = zip(parts, buffers, strict=True)
        parts = [_steady(part, buffer, address_of(part), len(part)) for part, buffer in whole]
    pin = lend(BYTES, array)
    return (pin, parts), address_of(pin), len(parts)


def path(name: PathLike) -> "tuple[CData, int]":
    """Pin a path as a C string: (pin, address)."""
    encoded = name.encode(*_PATH_CODEC) if type(name) is str else os.fsencode(name)
    return c_string(encoded, "path", name)


def c_string(encoded: bytes, what: str, name: object) -> "tuple[CData, int]":
    """Pin bytes with a null byte behind them, and none in them: (pin, address)."""
    string = b"".join((encoded, b"\0"))  # what a subclass of bytes says of itself is not asked for
    if string.find(b"\0") + 1 != len(string):
        raise ValueError(f"the {what} {name!r} has a null byte in it")
    pin = lend(BYTES, string)
    return pin, address_of(pin)


def paths(names: "Sequence[PathLike]") -> "tuple[CData, array[int]]":
    """Pin many paths as C strings, one behind the other: (pin, the address of each)."""
    kinds = {*map(type, names)}
    if kinds == {str}:
        joined = "\0".join(names).encode(*_PATH_CODEC)  # type: ignore[arg-type]  # all are str
    else:
        joined = b"\0".join(names if kinds <= {bytes} else map(_fsencode, count(), names))  # type: ignore[arg-type]  # all are bytes
    encoded = joined.split(b"\0") if names else []
    if len(encoded) != len(names):
        for index, name in enumerate(names):
            if b"\0" in os.fsencode(name):
                raise ValueError(f"path {index}, {name!r}, has a null byte in it")
        raise ValueError("a path has a null byte in it")
    pin = lend(BYTES, joined + b"\0")
    lengths = map((1).__add__, map(len, encoded))  # with the null byte
    return pin, array("Q", accumulate(lengths, initial=address_of(pin)))[: len(names)]


def _fsencode(index: int, name: PathLike) -> bytes:
    if not isinstance(name, str | bytes | os.PathLike):
        raise TypeError(f"path {index} must be str, bytes or os.PathLike, not {name!r}")
    return os.fsencode(name)


def timespec(time_ns: int) -> "tuple[CData, int]":
    """Pin a struct __kernel_timespec of so many nanoseconds: (pin, address)."""
    whole, fraction = divmod(time_ns, 1_000_000_000)
    pin, address, _ = readable(_TIMESPEC.pack(whole, fraction))
    return pin, address


def nanoseconds(seconds: float) -> int:
    """Seconds as whole nanoseconds, rounded up, so that nothing ends before its time."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"a time in seconds must be an int or a float, not {seconds!r}")
    seconds = operator.index(seconds) if isinstance(seconds, int) else float(seconds)
    if not 0 <= seconds < 2**33:  # also refuses NaN; 2**33 s are 272 years and fit 64 bits
        raise ValueError(f"a time in seconds must be in 0..2**33, not {seconds!r}")
    whole = int(seconds)
    return whole * 1_000_000_000 + math.ceil((seconds - whole) * 1_000_000_000)
