"""What starts from a path."""

import os
from typing import Any, Literal

import attrs

from uring import _memory
from uring.flags import Opcode
from uring.operations._base import Operation, operation, with_care
from uring.sqe import HasFileno, descriptor

__all__ = ["Openat"]

_AT_FDCWD = -100  # linux/fcntl.h: relative to the current working directory


@operation
class Openat(Operation):
    """
    Open a file. Equivalent: openat(2); the arguments are those of os.open.

    Args:
        path: str, bytes or os.PathLike.
        open_flags: os.O_* flags.
        mode: the permissions of a file that is created, less the umask.
        dir_fd: the directory that a relative path starts from; None is the current one, at the
            time when the kernel looks.
        cloexec: set O_CLOEXEC, as Python does for its own files.

    Lifetime: the path is copied and held until the completion.
    Completion: res is the new descriptor; it is the caller's to close. One that nobody has copied
        out when the ring closes is closed with it.
    Raises: from `CQE.result()`, FileNotFoundError and the like, with the path in `filename`.

    Kernel: 5.6. liburing: io_uring_prep_openat(3).
    """

    opcode = Opcode.OPENAT

    path: _memory.PathLike
    open_flags: int = os.O_RDONLY
    mode: int = 0o777
    dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)

    _makes_descriptor = True
    _prepared: Literal[False] = with_care()

    def _encode(self: Any) -> tuple[bytes, object]:
        pin, address = _memory.path(self._path)
        dir_fd, flags = self._dir_fd, self._open_flags
        if self._cloexec:
            flags |= os.O_CLOEXEC
        fd = _AT_FDCWD if dir_fd is None else descriptor(dir_fd)
        return self._pack(fd, 0, address, self._mode, flags), pin

    def _error_context(self, number: int) -> tuple[str, str | bytes | None]:
        return super()._error_context(number)[0], os.fspath(self.path)
