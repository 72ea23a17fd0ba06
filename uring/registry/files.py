"""
Registered files: a table in the kernel whose entries operations name by `Fixed(index)`.

The kernel holds its own reference to each file, so the descriptors may be closed afterwards.
"""

import struct
from typing import TYPE_CHECKING

from uring import _memory
from uring.sqe import HasFileno, descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uring._uring import CData


def files_argument(fds: "Iterable[int | HasFileno]") -> "tuple[CData, int]":
    """
    Encode descriptors and files as REGISTER_FILES takes them: (the array, its length).

    Raises:
        TypeError, ValueError: something is not a file, a number is out of range, or there is
            nothing at all -> the message names it.
    """
    numbers = [descriptor(fd) for fd in fds]
    if not numbers:
        raise ValueError("at least one file must be given")
    for number in numbers:
        if not -2 <= number < 2**31:
            raise ValueError(f"a descriptor is in 0..2**31 - 1, or -1 or -2; not {number}")
    pin, _, _ = _memory.readable(struct.pack(f"={len(numbers)}i", *numbers))
    return pin, len(numbers)


def update_argument(offset: int, fds: "Iterable[int | HasFileno]") -> "tuple[CData, CData, int]":
    """Encode a struct io_uring_files_update: (the struct, the array it points to, its length)."""
    files, count = files_argument(fds)
    pin, _, _ = _memory.readable(struct.pack("=IIQ", offset, 0, _memory.address_of(files)))
    return pin, files, count
