"""The ring's own tables, changed in the order of the queue: registered files, provided buffers."""

from typing import TYPE_CHECKING, Any, Final

import attrs

from uring import _memory, _structures
from uring._checks import check_range
from uring.flags import FILE_INDEX_ALLOC, FixedFdFlags, Opcode
from uring.operations._base import Operation, lent, operation
from uring.sqe import Fixed, HasFileno

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = ["FilesAlloc", "FilesUpdate", "FixedFdInstall", "ProvideBuffers", "RemoveBuffers"]

_BIDS_MAX: Final = 65536  # MAX_BIDS_PER_BGID in io_uring/kbuf.c


def _files(fds: Any) -> Any:
    """Take what an iterator gives, once; what is no sequence of files is refused at queue()."""
    return fds if isinstance(fds, int | str | bytes) or not hasattr(fds, "__iter__") else tuple(fds)


def _array(fds: Any, lowest: int) -> _structures.Descriptors:
    if not isinstance(fds, tuple):
        raise TypeError(f"fds must be a sequence of files, not {fds!r}")
    return _structures.Descriptors(fds, lowest)


@operation
class FilesUpdate(Operation):
    """
    Replace registered files, in the order of the queue. Equivalent: `register_files_update()`.

    Operations that are in flight on a file that is replaced go on with it.

    Args:
        fds: descriptors or objects with `fileno()`; -1 empties a slot, REGISTER_FILES_SKIP leaves
            it alone.
        offset: the first slot, 0..2**31 - 1.

    Lifetime: the array is copied, and held with the files until the completion.
    Completion: res is how many slots were done, which is fewer when a later file is not open;
        EBADF when the first is not, or is a ring; ENXIO without a table, EINVAL beyond its end.

    Kernel: 5.6. liburing: io_uring_prep_files_update(3).
    """

    opcode = Opcode.FILES_UPDATE

    fds: "Sequence[int | HasFileno]" = attrs.field(converter=_files)
    offset: int

    def _encode(self) -> tuple[bytes, object]:
        # FILE_INDEX_ALLOC as an offset would be another operation, with a result in memory.
        offset = check_range("offset", self.offset, 0, 2**31 - 1)
        array = _array(self.fds, -2)
        return self._pack(off=offset, addr=array.address, len=array.count), array


@operation
class FilesAlloc(Operation):
    """
    Register files in free slots that the kernel picks. Equivalent: FILES_UPDATE with ALLOC.

    Args:
        fds: descriptors or objects with `fileno()`.

    Lifetime: the array is copied, and held with the files until the completion.
    Completion: res is how many were registered, which is fewer when a later file is not open or
        there is no more room; `result()` is a list of so many `Fixed`, in the order of the files,
        or None when the operation shared its user_data. EBADF when the first file is not open,
        ENFILE when no slot is free, ENXIO without a table.

    Kernel: 5.6; ALLOC 6.0. liburing: io_uring_prep_files_update(3).
    """

    opcode = Opcode.FILES_UPDATE

    fds: "Sequence[int | HasFileno]" = attrs.field(converter=_files)

    _keeps_memory = True

    def _encode(self) -> tuple[bytes, object]:
        array = _array(self.fds, 0)
        return self._pack(off=FILE_INDEX_ALLOC, addr=array.address, len=array.count), array

    def _result(self, res: int, memory: object, _flags: int) -> list[Fixed] | None:
        if not isinstance(memory, _structures.Descriptors):
            return None
        return [Fixed(slot) for slot in memory.decode(res)]


@operation
class FixedFdInstall(Operation):
    """
    Make an ordinary descriptor of a registered file, which stays registered.

    Args:
        fd: the registered file, `Fixed(index)`.
        cloexec: set O_CLOEXEC, as Python does for its own files.

    Completion: res is the new descriptor; it is the caller's to close. One that nobody has copied
        out when the ring closes is closed with it. EBADF when the slot is empty; EINVAL under
        another personality than the caller's own.

    Kernel: 6.8. liburing: io_uring_prep_fixed_fd_install(3).
    """

    opcode = Opcode.FIXED_FD_INSTALL

    fd: Fixed
    cloexec: bool = attrs.field(default=True, kw_only=True)

    _makes_descriptor = True

    def _encode(self) -> tuple[bytes, object]:
        if not isinstance(self.fd, Fixed):
            raise TypeError(f"fd must be Fixed(index), not {self.fd!r}")
        return self._pack(self.fd, op_flags=0 if self.cloexec else FixedFdFlags.NO_CLOEXEC), None


@operation
class ProvideBuffers(Operation):
    """
    Give a group buffers from which reads and receives may take: the older way, without a ring.

    One that is taken is gone from the group until it is provided again. A `BufferRing` needs no
    operation for that, and is faster; a group is either the one or the other.

    Args:
        buffer: writable memory, which is cut into `count` buffers of the same size.
        count: how many, from 1 to 65536; the length must be a multiple of it.
        bgid: the number of the group, 0..65535; it is made when it is new.
        bid: the number of the first buffer, which the completion that takes it tells in
            `CQE.buffer_id`; the others have the numbers that follow, up to 65535.

    Lifetime: the memory is pinned until the ring is closed: nothing tells when the kernel has let
        go of it.
    Completion: res is 0; EINVAL when the group is a `BufferRing`, ENOMEM when some were not added.

    Kernel: 5.7. liburing: io_uring_prep_provide_buffers(3).
    """

    opcode = Opcode.PROVIDE_BUFFERS

    buffer: "Buffer" = lent()
    count: int = 1
    bgid: int = attrs.field(kw_only=True)
    bid: int = attrs.field(default=0, kw_only=True)

    _reaches_out = True
    _lends_to_ring = True

    def _encode(self) -> tuple[bytes, object]:
        count = check_range("count", self.count, 1, _BIDS_MAX)
        bid = check_range("bid", self.bid, 0, _BIDS_MAX - count)
        bgid = check_range("bgid", self.bgid, 0, 65535)
        pin, address, length = _memory.writable(self.buffer)
        size, rest = divmod(length, count)
        if rest or not size:
            raise ValueError(f"a buffer of {length} bytes is not {count} buffers of the same size")
        return self._pack(count, off=bid, addr=address, len=size, buf_index=bgid), pin


@operation
class RemoveBuffers(Operation):
    """
    Take buffers out of a group that `ProvideBuffers` filled, those first that came first.

    Their memory stays pinned until the ring is closed, for operations may have taken them already.

    Args:
        count: how many at most, from 1 to 65536.
        bgid: the number of the group.

    Completion: res is how many were taken out, which may be 0; ENOENT when there is no such group,
        EINVAL when it is a `BufferRing`.

    Kernel: 5.7. liburing: io_uring_prep_remove_buffers(3).
    """

    opcode = Opcode.REMOVE_BUFFERS

    count: int
    bgid: int = attrs.field(kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        count = check_range("count", self.count, 1, _BIDS_MAX)
        return self._pack(count, buf_index=check_range("bgid", self.bgid, 0, 65535)), None
