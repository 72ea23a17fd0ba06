"""
Functions as `os` and `shutil` have them, to be awaited.

Each takes what its namesake takes, gives what that gives, and raises the same errors with the same
file names. What io_uring has no opcode for is not here: listing directories, reading symbolic
links, changing permissions, owners and times, listing and removing extended attributes, and those
of a symbolic link itself. Call `os` in a thread for them.
"""

import contextlib
import errno
import os
import stat as modes
from typing import TYPE_CHECKING, Final, NoReturn

from uring._memory import PathLike
from uring.aio._backend import do
from uring.aio._contents import read_bytes, write_bytes
from uring.aio._copies import copyfile
from uring.file_flags import AtFlags, StatxMask
from uring.operations import (
    Fgetxattr,
    Fsetxattr,
    Getxattr,
    Linkat,
    Mkdirat,
    Renameat,
    Setxattr,
    Statx,
    Symlinkat,
    Unlinkat,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer, TypeIs

    from uring._file_memory import StatxResult

__all__ = [
    "copyfile",
    "getxattr",
    "link",
    "lstat",
    "makedirs",
    "mkdir",
    "read_bytes",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "setxattr",
    "stat",
    "symlink",
    "unlink",
    "write_bytes",
]

_NO_FLAGS: Final = AtFlags(0)
_NS: Final = 1_000_000_000


def _stat_result(found: "StatxResult") -> os.stat_result:
    """What os.stat() makes of the same answer."""
    times = (found.atime_ns, found.mtime_ns, found.ctime_ns)
    whole = [time // _NS for time in times]
    exact = [time // _NS + 1e-9 * (time % _NS) for time in times]
    numbers = (found.mode, found.ino, found.dev, found.nlink, found.uid, found.gid, found.size)
    names = ("st_atime", "st_mtime", "st_ctime")
    more: dict[str, object] = dict(zip(names, exact, strict=True))
    more |= {f"{name}_ns": time for name, time in zip(names, times, strict=True)}
    more |= {"st_blksize": found.blksize, "st_blocks": found.blocks, "st_rdev": found.rdev}
    return os.stat_result((*numbers, *whole), more)


def _refuse(error: OSError, *names: object) -> NoReturn:
    """Raise an error as `os` would, with these names of files."""
    text = error.strerror
    named = (names[0],) if len(names) == 1 else (names[0], None, names[1])
    raise OSError(error.errno, text, *named) from error


def _is_number(path: object) -> "TypeIs[int]":
    return isinstance(path, int)


async def stat(
    path: PathLike | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
) -> os.stat_result:
    """
    Ask what a file is: as os.stat().

    Args:
        path: the file; or a descriptor, of an open file.
        dir_fd: the directory that a relative path starts from; None is the current one.
        follow_symlinks: whether a symbolic link stands for its target.
    """
    flags = AtFlags.NO_AUTOMOUNT  # as stat(2)
    if not follow_symlinks:
        flags |= AtFlags.SYMLINK_NOFOLLOW
    mask = StatxMask.BASIC_STATS
    if not _is_number(path):
        op = Statx(path, mask=mask, statx_flags=flags, dir_fd=dir_fd)
        return _stat_result(await do(op))
    if dir_fd is not None:
        raise ValueError("stat: can't specify dir_fd without matching path")
    if not follow_symlinks:
        raise ValueError("stat: cannot use fd and follow_symlinks together")
    if path < 0:  # one of which stands for the current directory
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), path)
    op = Statx("", mask=mask, statx_flags=flags | AtFlags.EMPTY_PATH, dir_fd=path)
    try:
        return _stat_result(await do(op))
    except OSError as error:
        _refuse(error, path)


async def lstat(path: PathLike, *, dir_fd: int | None = None) -> os.stat_result:
    """Ask what a file is, and not what a symbolic link leads to: as os.lstat()."""
    return await stat(os.fspath(path), dir_fd=dir_fd, follow_symlinks=False)


async def mkdir(path: PathLike, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    """Make a directory, with these permissions less the umask: as os.mkdir()."""
    await do(Mkdirat(path, mode, dir_fd=dir_fd))


async def makedirs(name: PathLike, mode: int = 0o777, exist_ok: bool = False) -> None:
    """
    Make a directory, and those above it that are missing: as os.makedirs().

    Args:
        name: the directory.
        mode: its permissions, less the umask; those above it get 0o777.
        exist_ok: whether it may be there already.
    """
    path = os.fspath(name)
    above, last = os.path.split(path)
    if not last:  # there are slashes at the end
        above, last = os.path.split(above)
    if above and last and not await _exists(above):
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            await makedirs(above, exist_ok=exist_ok)
        if last in {".", b"."}:
            return
    try:
        await mkdir(path, mode)
    except OSError:  # some file systems have other errors than EEXIST here
        if not exist_ok or not await _is_directory(path):
            raise


async def _exists(path: PathLike) -> bool:
    return await _mode(path) is not None


async def _is_directory(path: PathLike) -> bool:
    mode = await _mode(path)
    return mode is not None and modes.S_ISDIR(mode)


async def _mode(path: PathLike) -> int | None:
    try:
        return (await stat(path)).st_mode
    except (OSError, ValueError):
        return None


async def rename(
    src: PathLike, dst: PathLike, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """Give a file another name, replacing what has that: as os.rename()."""
    await do(Renameat(src, dst, old_dir_fd=src_dir_fd, new_dir_fd=dst_dir_fd))


async def replace(
    src: PathLike, dst: PathLike, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """Give a file another name, replacing what has that: as os.replace()."""
    await rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


async def link(
    src: PathLike,
    dst: PathLike,
    *,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
    follow_symlinks: bool = False,
) -> None:
    """
    Give a file one more name: as os.link().

    Args:
        src: the file.
        dst: the new name, which must be free.
        src_dir_fd: the directory that a relative src starts from; None is the current one.
        dst_dir_fd: the same for dst.
        follow_symlinks: whether the name is for the target of a symbolic link. os.link() says it
            does that unless told otherwise, and on Linux does not; this does what it says.
    """
    flags = AtFlags.SYMLINK_FOLLOW if follow_symlinks else _NO_FLAGS
    await do(Linkat(src, dst, hardlink_flags=flags, old_dir_fd=src_dir_fd, new_dir_fd=dst_dir_fd))


async def symlink(
    src: PathLike,
    dst: PathLike,
    target_is_directory: bool = False,  # noqa: ARG001 - as os has it
    *,
    dir_fd: int | None = None,
) -> None:
    """
    Make a symbolic link: as os.symlink().

    Args:
        src: what it says.
        dst: where it is.
        target_is_directory: of no meaning on Linux.
        dir_fd: the directory that a relative dst starts from; None is the current one.
    """
    try:
        await do(Symlinkat(src, dst, dir_fd=dir_fd))
    except OSError as error:
        _refuse(error, os.fspath(src), os.fspath(dst))


async def unlink(path: PathLike, *, dir_fd: int | None = None) -> None:
    """Remove a name, and the file with its last one: as os.unlink()."""
    await do(Unlinkat(path, dir_fd=dir_fd))


async def remove(path: PathLike, *, dir_fd: int | None = None) -> None:
    """Remove a name, and the file with its last one: as os.remove()."""
    await unlink(path, dir_fd=dir_fd)


async def rmdir(path: PathLike, *, dir_fd: int | None = None) -> None:
    """Remove an empty directory: as os.rmdir()."""
    await do(Unlinkat(path, unlink_flags=AtFlags.REMOVEDIR, dir_fd=dir_fd))


async def getxattr(path: PathLike | int, attribute: str | bytes | os.PathLike[str]) -> bytes:
    """Read an extended attribute of a file, or of an open one: as os.getxattr()."""
    name = os.fsencode(attribute)
    if not _is_number(path):
        value: bytes = await do(Getxattr(path, name))
        return value
    try:
        value = await do(Fgetxattr(path, name))
    except OSError as error:
        _refuse(error, path)
    return value


async def setxattr(
    path: PathLike | int,
    attribute: str | bytes | os.PathLike[str],
    value: "Buffer",
    flags: int = 0,
) -> None:
    """
    Set an extended attribute of a file, or of an open one: as os.setxattr().

    Args:
        path: the file; or a descriptor, of an open file.
        attribute: its name, with the namespace, as "user.mime_type".
        value: what it gets.
        flags: os.XATTR_CREATE (it must be new), os.XATTR_REPLACE (it must be there), or 0.
    """
    name = os.fsencode(attribute)
    if not _is_number(path):
        await do(Setxattr(path, name, value, flags))
        return
    try:
        await do(Fsetxattr(path, name, value, flags))
    except OSError as error:
        _refuse(error, path)
