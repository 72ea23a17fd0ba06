"""Extended attributes: names with a few bytes behind them, that files have besides contents."""

from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _file_memory, _memory
from uring._checks import check_range
from uring.flags import Opcode
from uring.operations._base import Operation, lent, operation
from uring.operations._named import Named
from uring.sqe import FileLike

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Fgetxattr", "Fsetxattr", "Getxattr", "Setxattr"]

XATTR_SIZE_MAX: Final = 65536
"""How long a value can be (linux/limits.h): with so much room ERANGE cannot happen."""


class _Gets(Operation):
    """What the kernel writes is the value, and res its length."""

    __slots__ = ()

    _keeps_memory = True

    def _result(self: Any, res: int, memory: object, _flags: int) -> object:
        if self._size == 0:
            return res
        return memory.take(res) if isinstance(memory, _file_memory.Room) else None


def _room(size: object, *pins: object) -> tuple[int, object]:
    """The address of room for a value, and the pins of all that the kernel touches."""
    number = check_range("size", size, 0, XATTR_SIZE_MAX)
    if number == 0:
        return 0, pins
    room = _file_memory.Room(number, *pins)
    return room.address, room


@operation
class Getxattr(Named, _Gets):
    """
    Read an extended attribute of the file at a path. Equivalent: getxattr(2).

    Args:
        path: str, bytes or os.PathLike; symbolic links are followed.
        name: the attribute's, with its namespace, as "user.mime_type".
        size: how much room the value gets, in bytes, as long as the completion is kept; at most
            65536, which is enough for any. With 0 only its length is asked for.

    Lifetime: the path and the name are copied and held until the completion; the room for the value
        is the ring's, until the result has been read.
    Completion: res is the length of the value. `result()` is the value, as bytes, or with size 0
        its length; None when the operation shared its user_data. ENODATA when the file has no such
        attribute, ERANGE when the room is too small. An error has the path in `filename`.

    Kernel: 5.19. liburing: io_uring_prep_getxattr(3).
    """

    opcode = Opcode.GETXATTR

    path: _memory.PathLike
    name: str | bytes
    size: int = attrs.field(default=XATTR_SIZE_MAX, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        path, path_address = _memory.path(self.path)
        name, name_address = _file_memory.attribute(self.name)
        value_address, pins = _room(self.size, path, name)
        record = self._pack(off=value_address, addr=name_address, len=self.size, addr3=path_address)
        return record, pins


@operation
class Fgetxattr(_Gets):
    """
    Read an extended attribute of an open file. Equivalent: fgetxattr(2).

    Args:
        fd: the file.
        name: the attribute's, with its namespace, as "user.mime_type".
        size: how much room the value gets, in bytes, as long as the completion is kept; at most
            65536, which is enough for any. With 0 only its length is asked for.

    Lifetime: the name is copied and held until the completion; the room for the value is the
        ring's, until the result has been read.
    Completion: res is the length of the value. `result()` is the value, as bytes, or with size 0
        its length; None when the operation shared its user_data. ENODATA when the file has no such
        attribute, ERANGE when the room is too small.

    Kernel: 5.19. liburing: io_uring_prep_fgetxattr(3).
    """

    opcode = Opcode.FGETXATTR

    fd: FileLike
    name: str | bytes
    size: int = attrs.field(default=XATTR_SIZE_MAX, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        name, name_address = _file_memory.attribute(self.name)
        value_address, pins = _room(self.size, name)
        return self._pack(self.fd, off=value_address, addr=name_address, len=self.size), pins


@operation
class Setxattr(Named):
    """
    Set an extended attribute of the file at a path. Equivalent: setxattr(2).

    Args:
        path: str, bytes or os.PathLike; symbolic links are followed.
        name: the attribute's, with its namespace, as "user.mime_type".
        value: readable memory; at most 65536 bytes, and less on many file systems.
        xattr_flags: os.XATTR_CREATE (it must be new), os.XATTR_REPLACE (it must be there), or 0.

    Lifetime: the path and the name are copied, the value is pinned, until the completion.
    Completion: res is 0. EEXIST with XATTR_CREATE, ENODATA with XATTR_REPLACE, E2BIG for too long a
        value, EOPNOTSUPP for a namespace that the file system does not have. An error has the path
        in `filename`.

    Kernel: 5.19. liburing: io_uring_prep_setxattr(3).
    """

    opcode = Opcode.SETXATTR

    path: _memory.PathLike
    name: str | bytes
    value: "Buffer" = lent()
    xattr_flags: int = 0

    def _encode(self) -> tuple[bytes, object]:
        path, path_address = _memory.path(self.path)
        name, name_address = _file_memory.attribute(self.name)
        value, value_address, length = _memory.readable(self.value)
        record = self._pack(
            off=value_address,
            addr=name_address,
            len=length,
            op_flags=self.xattr_flags,
            addr3=path_address,
        )
        return record, (path, name, value)


@operation
class Fsetxattr(Operation):
    """
    Set an extended attribute of an open file. Equivalent: fsetxattr(2).

    Args:
        fd: the file.
        name: the attribute's, with its namespace, as "user.mime_type".
        value: readable memory; at most 65536 bytes, and less on many file systems.
        xattr_flags: os.XATTR_CREATE (it must be new), os.XATTR_REPLACE (it must be there), or 0.

    Lifetime: the name is copied, the value is pinned, until the completion.
    Completion: res is 0. EEXIST with XATTR_CREATE, ENODATA with XATTR_REPLACE, E2BIG for too long a
        value, EOPNOTSUPP for a namespace that the file system does not have.

    Kernel: 5.19. liburing: io_uring_prep_fsetxattr(3).
    """

    opcode = Opcode.FSETXATTR

    fd: FileLike
    name: str | bytes
    value: "Buffer" = lent()
    xattr_flags: int = 0

    def _encode(self) -> tuple[bytes, object]:
        name, name_address = _file_memory.attribute(self.name)
        value, value_address, length = _memory.readable(self.value)
        record = self._pack(
            self.fd,
            off=value_address,
            addr=name_address,
            len=length,
            op_flags=self.xattr_flags,
        )
        return record, (name, value)
