"""What starts from a path."""

import os
from typing import Any, Final

import attrs

from uring import _file_memory, _memory
from uring._checks import check_range
from uring.file_flags import AtFlags, RenameFlags, ResolveFlags, StatxMask
from uring.flags import Opcode
from uring.operations._base import MakesFile, operation
from uring.operations._named import Named
from uring.sqe import UINT32_MAX, Fixed, HasFileno, descriptor, file_index

__all__ = [
    "Linkat",
    "Mkdirat",
    "Openat",
    "Openat2",
    "Renameat",
    "Statx",
    "Symlinkat",
    "Unlinkat",
]

_AT_FDCWD: Final = -100  # linux/fcntl.h: relative to the current working directory


def _directory(dir_fd: int | HasFileno | None) -> int:
    """``sqe->fd`` for the directory that a relative path starts from."""
    if dir_fd is None:
        return _AT_FDCWD
    if isinstance(dir_fd, Fixed):
        raise TypeError(
            f"a path cannot start from {dir_fd!r}: the kernel takes no registered file there, but a"
            " descriptor, or what has a fileno()"
        )
    return descriptor(dir_fd)


def _directory_in_len(dir_fd: int | HasFileno | None) -> int:
    """The same where the kernel reads it from the 32 bits of ``sqe->len``."""
    number = _directory(dir_fd)
    return check_range("new_dir_fd", number, -(2**31), 2**31 - 1) & UINT32_MAX


@operation
class Openat(Named, MakesFile):
    """
    Open a file. Equivalent: openat(2); the arguments are those of os.open.

    Args:
        path: str, bytes or os.PathLike.
        open_flags: os.O_* flags.
        mode: the permissions of a file that is created, less the umask.
        dir_fd: the directory that a relative path starts from; None is the current one, at the
            time when the kernel looks.
        cloexec: set O_CLOEXEC, as Python does for its own files; of no meaning with a slot.
        slot: make a registered file instead of a descriptor: `Fixed(index)`, whatever it held, or
            AUTO for a free one. With O_CLOEXEC in open_flags that is EINVAL.

    Lifetime: the path is copied and held until the completion.
    Completion: res is the new descriptor; it is the caller's to close. One that nobody has copied
        out when the ring closes is closed with it. With a slot, `result()` is the `Fixed`, and res
        0 for a given one, the index for AUTO. With a slot, ENFILE when AUTO finds none free, EINVAL
        for one out of range; without a table, ENFILE for AUTO and ENXIO else. An error has the path
        in `filename`.

    Kernel: 5.6; slots 5.15, AUTO 5.19.
    liburing: io_uring_prep_openat(3), io_uring_prep_openat_direct(3).
    """

    opcode = Opcode.OPENAT

    path: _memory.PathLike
    open_flags: int = os.O_RDONLY
    mode: int = 0o777
    dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)

    def _encode(self: Any) -> tuple[bytes, object]:
        pin, address = _memory.path(self._path)
        flags = self._with_cloexec("open_flags", os.O_CLOEXEC)
        fd = _directory(self._dir_fd)
        return self._pack(fd, 0, address, self._mode, flags, 0, 0, file_index(self._slot)), pin


@operation
class Openat2(Named, MakesFile):
    """
    Open a file, with a say in where the path may lead. Equivalent: openat2(2).

    Args:
        path: str, bytes or os.PathLike.
        open_flags: os.O_* flags; unlike `Openat`, one that the kernel does not know is EINVAL.
        mode: the permissions of a file that is created, less the umask; None is 0o777 for what
            creates one. Anything but 0 for what creates none is EINVAL.
        resolve: `ResolveFlags`: BENEATH or IN_ROOT keep the path below dir_fd, NO_SYMLINKS and its
            like refuse what may lead elsewhere (ELOOP, EXDEV), CACHED answers EAGAIN rather than
            read from a disk.
        dir_fd: the directory that a relative path starts from; None is the current one, at the
            time when the kernel looks.
        cloexec: set O_CLOEXEC, as Python does for its own files; of no meaning with a slot.
        slot: make a registered file instead of a descriptor: `Fixed(index)`, whatever it held, or
            AUTO for a free one. With O_CLOEXEC in open_flags that is EINVAL.

    Lifetime: the path is copied and held until the completion.
    Completion: res is the new descriptor; it is the caller's to close. One that nobody has copied
        out when the ring closes is closed with it. With a slot, `result()` is the `Fixed`, and res
        0 for a given one, the index for AUTO. With a slot, ENFILE when AUTO finds none free, EINVAL
        for one out of range; without a table, ENFILE for AUTO and ENXIO else. An error has the path
        in `filename`.

    Kernel: 5.6; slots 5.15, AUTO 5.19.
    liburing: io_uring_prep_openat2(3), io_uring_prep_openat2_direct(3).
    """

    opcode = Opcode.OPENAT2

    path: _memory.PathLike
    open_flags: int = os.O_RDONLY
    mode: int | None = None
    resolve: ResolveFlags = attrs.field(default=ResolveFlags(0), kw_only=True)
    dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)
    cloexec: bool = attrs.field(default=True, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pin, address = _memory.path(self.path)
        flags, mode = self._with_cloexec("open_flags", os.O_CLOEXEC), self.mode
        if mode is None:
            creates = flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE
            mode = 0o777 if creates else 0
        how, how_address, size = _file_memory.open_how(flags, mode, self.resolve)
        record = self._pack(
            _directory(self.dir_fd),
            off=how_address,
            addr=address,
            len=size,
            splice_fd_in=file_index(self.slot),
        )
        return record, (pin, how)


@operation
class Statx(Named):
    """
    Ask what a file is: its type, size, times and more. Equivalent: statx(2).

    Args:
        path: str, bytes or os.PathLike; "" is dir_fd itself, with EMPTY_PATH.
        mask: `StatxMask`: what is wanted. File systems may give more, or less.
        statx_flags: `AtFlags`: SYMLINK_NOFOLLOW, NO_AUTOMOUNT, EMPTY_PATH, STATX_FORCE_SYNC,
            STATX_DONT_SYNC; the last two are for network file systems.
        dir_fd: the directory that a relative path starts from, or with EMPTY_PATH any file; None is
            the current one, at the time when the kernel looks.

    Lifetime: the path is copied and held until the completion; the room for the answer is the
        ring's, until the result has been read.
    Completion: res is 0. `result()` is a `StatxResult`; None when the operation shared its
        user_data. An error has the path in `filename`.

    Kernel: 5.6. liburing: io_uring_prep_statx(3).
    """

    opcode = Opcode.STATX

    path: _memory.PathLike
    mask: StatxMask = attrs.field(default=StatxMask.BASIC_STATS | StatxMask.BTIME, kw_only=True)
    statx_flags: AtFlags = attrs.field(default=AtFlags(0), kw_only=True)
    dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)

    _keeps_memory = True

    def _encode(self) -> tuple[bytes, object]:
        pin, address = _memory.path(self.path)
        room = _file_memory.StatxRoom(pin)
        record = self._pack(
            _directory(self.dir_fd),
            off=room.address,
            addr=address,
            len=self.mask,
            op_flags=self.statx_flags,
        )
        return record, room

    def _result(self, _res: int, memory: object, _flags: int) -> object:
        return memory.decode() if isinstance(memory, _file_memory.StatxRoom) else None


@operation
class Unlinkat(Named):
    """
    Remove a name, and the file with its last one. Equivalent: unlinkat(2).

    Args:
        path: str, bytes or os.PathLike.
        unlink_flags: AtFlags.REMOVEDIR removes an empty directory, and nothing else.
        dir_fd: the directory that a relative path starts from; None is the current one, at the
            time when the kernel looks.

    Lifetime: the path is copied and held until the completion.
    Completion: res is 0. An error has the path in `filename`.

    Kernel: 5.11. liburing: io_uring_prep_unlinkat(3).
    """

    opcode = Opcode.UNLINKAT

    path: _memory.PathLike
    unlink_flags: AtFlags = attrs.field(default=AtFlags(0), kw_only=True)
    dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pin, address = _memory.path(self.path)
        fd = _directory(self.dir_fd)
        return self._pack(fd, addr=address, op_flags=self.unlink_flags), pin


@operation
class Mkdirat(Named):
    """
    Make a directory. Equivalent: mkdirat(2).

    Args:
        path: str, bytes or os.PathLike.
        mode: its permissions, less the umask.
        dir_fd: the directory that a relative path starts from; None is the current one, at the
            time when the kernel looks.

    Lifetime: the path is copied and held until the completion.
    Completion: res is 0. An error has the path in `filename`.

    Kernel: 5.15. liburing: io_uring_prep_mkdirat(3).
    """

    opcode = Opcode.MKDIRAT

    path: _memory.PathLike
    mode: int = 0o777
    dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        pin, address = _memory.path(self.path)
        return self._pack(_directory(self.dir_fd), addr=address, len=self.mode), pin


@operation
class Symlinkat(Named):
    """
    Make a symbolic link. Equivalent: symlinkat(2).

    Args:
        target: what the link says: any str, bytes or os.PathLike, whether there is such a file or
            not. A relative one starts from where the link is.
        linkpath: where the link is made.
        dir_fd: the directory that a relative linkpath starts from; None is the current one, at the
            time when the kernel looks.

    Lifetime: both paths are copied and held until the completion.
    Completion: res is 0. An error has the linkpath in `filename`.

    Kernel: 5.15. liburing: io_uring_prep_symlinkat(3).
    """

    opcode = Opcode.SYMLINKAT

    target: _memory.PathLike
    linkpath: _memory.PathLike
    dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)

    _path_field = "linkpath"

    def _encode(self) -> tuple[bytes, object]:
        target, target_address = _memory.path(self.target)
        link, link_address = _memory.path(self.linkpath)
        fd = _directory(self.dir_fd)
        return self._pack(fd, off=link_address, addr=target_address), (target, link)


@operation
class Linkat(Named):
    """
    Give a file one more name. Equivalent: linkat(2).

    Args:
        oldpath: the file: str, bytes or os.PathLike; "" is old_dir_fd itself, with EMPTY_PATH.
        newpath: the new name, which must be free.
        hardlink_flags: `AtFlags`: SYMLINK_FOLLOW, when oldpath is a symbolic link and its target is
            meant; EMPTY_PATH, which older kernels allow to CAP_DAC_READ_SEARCH only.
        old_dir_fd: the directory that a relative oldpath starts from, or with EMPTY_PATH the file;
            None is the current one, at the time when the kernel looks.
        new_dir_fd: the same for newpath.

    Lifetime: both paths are copied and held until the completion.
    Completion: res is 0. An error has the paths in `filename` and `filename2`.

    Kernel: 5.15. liburing: io_uring_prep_linkat(3).
    """

    opcode = Opcode.LINKAT

    oldpath: _memory.PathLike
    newpath: _memory.PathLike
    hardlink_flags: AtFlags = attrs.field(default=AtFlags(0), kw_only=True)
    old_dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)
    new_dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)

    _path_field = "oldpath"
    _second_path_field = "newpath"

    def _encode(self) -> tuple[bytes, object]:
        return _encode_two(self, self.hardlink_flags)


@operation
class Renameat(Named):
    """
    Give a file another name, or another place on its file system. Equivalent: renameat2(2).

    Args:
        oldpath: the file: str, bytes or os.PathLike.
        newpath: the new name; an existing file of that name is replaced.
        rename_flags: `RenameFlags`: NOREPLACE, EXCHANGE, WHITEOUT.
        old_dir_fd: the directory that a relative oldpath starts from; None is the current one, at
            the time when the kernel looks.
        new_dir_fd: the same for newpath.

    Lifetime: both paths are copied and held until the completion.
    Completion: res is 0. An error has the paths in `filename` and `filename2`.

    Kernel: 5.11. liburing: io_uring_prep_renameat(3).
    """

    opcode = Opcode.RENAMEAT

    oldpath: _memory.PathLike
    newpath: _memory.PathLike
    rename_flags: RenameFlags = attrs.field(default=RenameFlags(0), kw_only=True)
    old_dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)
    new_dir_fd: int | HasFileno | None = attrs.field(default=None, kw_only=True)

    _path_field = "oldpath"
    _second_path_field = "newpath"

    def _encode(self) -> tuple[bytes, object]:
        return _encode_two(self, self.rename_flags)


def _encode_two(self: Linkat | Renameat, flags: int) -> tuple[bytes, object]:
    old, old_address = _memory.path(self.oldpath)
    new, new_address = _memory.path(self.newpath)
    record = self._pack(
        _directory(self.old_dir_fd),
        off=new_address,
        addr=old_address,
        len=_directory_in_len(self.new_dir_fd),
        op_flags=flags,
    )
    return record, (old, new)
