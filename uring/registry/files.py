"""
Registered files: a table in the kernel whose entries operations name by `Fixed(index)`.

The kernel holds its own reference to each file, so the descriptors may be closed afterwards.
"""

import errno
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring._checks import check_range
from uring._ffi import ffi
from uring.errors import register_error
from uring.flags import REGISTER_FILES_SKIP, RegisterOpcode, RsrcFlags
from uring.registry._base import (
    GUARD,
    FileTable,
    Registrar,
    Registration,
    checked_tags,
    expecting,
)
from uring.sqe import UINT32_MAX, Fixed, HasFileno, descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uring._uring import CData

_UPDATE: Final = struct.Struct("=IIQ")  # struct io_uring_files_update
RSRC_REGISTER: Final = struct.Struct("=IIQQQ")  # struct io_uring_rsrc_register
RSRC_UPDATE2: Final = struct.Struct("=IIQQII")  # struct io_uring_rsrc_update2
_RANGE: Final = struct.Struct("=IIQ")  # struct io_uring_file_index_range


def files_argument(fds: "Iterable[int | HasFileno]") -> "tuple[CData, list[int]]":
    """
    Encode descriptors and files as REGISTER_FILES takes them: (the array, what is in it).

    Raises:
        TypeError, ValueError: something is not a file, a number is out of range, or there is
            nothing at all -> the message names it.
    """
    if isinstance(fds, str | bytes) or not isinstance(fds, Iterable):
        raise TypeError(f"fds must be a sequence of files, not {fds!r}")
    numbers = [descriptor(fd) for fd in fds]
    if not numbers:
        raise ValueError("at least one file must be given")
    for number in numbers:
        if not -2 <= number < 2**31:
            raise ValueError(f"a descriptor is in 0..2**31 - 1, or -1 or -2; not {number}")
    pin, _, _ = _memory.readable(struct.pack(f"={len(numbers)}i", *numbers))
    return pin, numbers


def uint64s(numbers: list[int] | None) -> "tuple[CData | None, int]":
    """Pin an array of tags: (pin, address); the address is 0 for none."""
    if numbers is None:
        return None, 0
    pin, address, _ = _memory.readable(struct.pack(f"={len(numbers)}Q", *numbers))
    return pin, address


class RegisteredFiles(Registration):
    """
    The registered files of a ring, as `Ring.register_files()` gives them.

    `files[i]` is `Fixed(i)`, for operations. Leaving a `with` block, or `close()`, unregisters all
    of them; operations in flight keep the file that they started with.

    Kernel: 5.1. liburing: io_uring_registered_files(7).
    """

    __slots__ = ("_table",)

    def __init__(self, ring: Registrar, table: FileTable) -> None:
        super().__init__(ring)
        self._table = table

    def __len__(self) -> int:
        return self._table.count

    def __getitem__(self, index: int) -> Fixed:
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(f"an index is an int, not {index!r}")
        count = self._table.count
        if not -count <= index < count:
            raise IndexError(f"there are {count} slots, and no {index}")
        return Fixed(index % count)

    def __iter__(self) -> "Iterator[Fixed]":
        return map(Fixed, range(len(self)))

    def __repr__(self) -> str:
        return f"<{self._state()}RegisteredFiles of {len(self)} slots>"

    def update(
        self,
        index: int,
        fds: "Iterable[int | HasFileno]",
        *,
        tags: "Iterable[int] | None" = None,
    ) -> int:
        """
        Replace the files in the slots from `index` on.

        Operations in flight keep the file that they started with.

        Args:
            index: the first slot, from 0.
            fds: descriptors or objects with `fileno()`; -1 empties a slot, REGISTER_FILES_SKIP
                leaves it alone.
            tags: a number for each: once it is replaced, and no operation uses it any more, a
                completion comes whose user_data is the tag, and whose res is 0. 0 means none.

        Returns:
            How many slots were updated. When these are fewer than given, the kernel refused the
            file after them, whose slot is empty now.

        Raises:
            RegisterError: EBADF, the first is not open; EINVAL, past the end of the table; ENXIO,
                these files are unregistered.
            ValueError: a tag is in use, or for a slot that stays empty.

        Kernel: 5.13; without tags 5.5. liburing: io_uring_register_files_update_tag(3).
        """
        return update_files(self._ring, index, fds, tags, self._table)

    def _is_current(self) -> bool:
        return self._ring._held.files is self._table

    def _unregister(self) -> None:
        with GUARD.lock:
            if self._is_current():
                unregister_files(self._ring)


def register_files(
    ring: Registrar, fds: "Iterable[int | HasFileno]", tags: "Iterable[int] | None"
) -> RegisteredFiles:
    """Register files, with tags if there are any."""
    files, numbers = files_argument(fds)
    count = len(numbers)
    marks = checked_tags(tags, [number < 0 for number in numbers])
    _tags_pin, tags_address = uint64s(marks)
    if marks is None:
        opcode, argument, size = RegisterOpcode.REGISTER_FILES, files, count
    else:
        record = RSRC_REGISTER.pack(count, 0, 0, _memory.address_of(files), tags_address)
        opcode, size = RegisterOpcode.REGISTER_FILES2, len(record)
        argument, _, _ = _memory.readable(record)
    return _register(ring, opcode, argument, size, FileTable(count), marks)


def register_files_sparse(ring: Registrar, count: int) -> RegisteredFiles:
    """Register empty slots."""
    check_range("count", count, 1, UINT32_MAX)
    record = RSRC_REGISTER.pack(count, RsrcFlags.SPARSE, 0, 0, 0)
    argument, _, _ = _memory.readable(record)
    opcode = RegisterOpcode.REGISTER_FILES2
    return _register(ring, opcode, argument, len(record), FileTable(count), None)


def _register(
    ring: Registrar,
    opcode: RegisterOpcode,
    argument: "CData",
    size: int,
    table: FileTable,
    tags: list[int] | None,
) -> RegisteredFiles:
    def register() -> int:
        with GUARD.lock:
            ring._register(opcode, argument, size)
            ring._held.files = table
        return table.count

    expecting(ring, tags, register)
    return RegisteredFiles(ring, table)


def unregister_files(ring: Registrar) -> None:
    """Unregister all files."""
    with GUARD.lock:
        ring._register(RegisterOpcode.UNREGISTER_FILES, ffi.NULL, 0)
        ring._held.files = None


def update_files(
    ring: Registrar,
    index: int,
    fds: "Iterable[int | HasFileno]",
    tags: "Iterable[int] | None",
    table: FileTable | None,
) -> int:
    """Replace files, in `table` or whatever is registered: how many."""
    check_range("index", index, 0, UINT32_MAX)
    files, numbers = files_argument(fds)
    is_empty = [number in {-1, REGISTER_FILES_SKIP} for number in numbers]
    marks = checked_tags(tags, is_empty)
    _tags_pin, tags_address = uint64s(marks)
    address = _memory.address_of(files)
    if marks is None:
        record = _UPDATE.pack(index, 0, address)
        opcode, size = RegisterOpcode.REGISTER_FILES_UPDATE, len(numbers)
    else:
        record = RSRC_UPDATE2.pack(index, 0, address, tags_address, len(numbers), 0)
        opcode, size = RegisterOpcode.REGISTER_FILES_UPDATE2, len(record)
    argument, _, _ = _memory.readable(record)

    def update() -> int:
        with GUARD.lock:
            if table is not None and not ring.closed and ring._held.files is not table:
                raise register_error(opcode, errno.ENXIO)
            return ring._register(opcode, argument, size)

    return expecting(ring, marks, update)


def alloc_range_argument(start: int, count: int) -> "CData":
    """Encode a struct io_uring_file_index_range."""
    check_range("start", start, 0, UINT32_MAX)
    check_range("count", count, 0, UINT32_MAX)
    pin, _, _ = _memory.readable(_RANGE.pack(start, count, 0))
    return pin
