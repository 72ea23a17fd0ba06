"""The space that a file takes, and what the kernel is told about how files and memory are used."""

import mmap
from typing import TYPE_CHECKING, Final

import attrs

from uring import _memory
from uring.file_flags import FallocateFlags, MadviseAdvice
from uring.flags import Opcode
from uring.operations._base import Operation, lent, operation
from uring.sqe import UINT32_MAX, FileLike

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Fadvise", "Fallocate", "Ftruncate", "Madvise"]

_HARMLESS: Final = frozenset(
    {
        MadviseAdvice.NORMAL,
        MadviseAdvice.RANDOM,
        MadviseAdvice.SEQUENTIAL,
        MadviseAdvice.WILLNEED,
        MadviseAdvice.DOFORK,
        MadviseAdvice.MERGEABLE,
        MadviseAdvice.UNMERGEABLE,
        MadviseAdvice.HUGEPAGE,
        MadviseAdvice.NOHUGEPAGE,
        MadviseAdvice.DONTDUMP,
        MadviseAdvice.DODUMP,
        MadviseAdvice.KEEPONFORK,
        MadviseAdvice.COLD,
        MadviseAdvice.PAGEOUT,
        MadviseAdvice.POPULATE_READ,
        MadviseAdvice.POPULATE_WRITE,
        MadviseAdvice.COLLAPSE,
    }
)
"""Advice that changes no byte, here or in a child, also where the kernel rounds up to a page."""

_DESTROYING: Final = frozenset(
    {
        MadviseAdvice.DONTNEED,
        MadviseAdvice.FREE,
        MadviseAdvice.REMOVE,
        MadviseAdvice.WIPEONFORK,
        MadviseAdvice.DONTNEED_LOCKED,
    }
)
"""Advice after which memory may read as zeros, here or in a child."""


def _is_mmap(buffer: "Buffer") -> bool:
    """Whether the memory is unmapped when the object that it belongs to ends."""
    with memoryview(buffer) as view:
        return isinstance(view.obj, mmap.mmap)


@operation
class Fallocate(Operation):
    """
    Allocate, free or zero a part of a file. Equivalent: fallocate(2).

    Args:
        fd: the file, open for writing.
        offset: where the part begins, in bytes.
        length: how long it is, in bytes; at least 1.
        mode: `FallocateFlags`; 0 allocates, and makes the file longer where it has to. PUNCH_HOLE
            goes with KEEP_SIZE only.

    Completion: res is 0.

    Kernel: 5.6. liburing: io_uring_prep_fallocate(3).
    """

    opcode = Opcode.FALLOCATE

    fd: FileLike
    offset: int = attrs.field(default=0, kw_only=True)
    length: int = attrs.field(kw_only=True)
    mode: FallocateFlags = attrs.field(default=FallocateFlags(0), kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        # The kernel reads the length from `addr` and the mode from `len`.
        return self._pack(self.fd, off=self.offset, addr=self.length, len=self.mode), None


@operation
class Ftruncate(Operation):
    """
    Make a file shorter or longer. Equivalent: ftruncate(2).

    Args:
        fd: the file, open for writing.
        length: the size that it gets, in bytes; what is added reads as zeros.

    Completion: res is 0.

    Kernel: 6.9. liburing: io_uring_prep_ftruncate(3).
    """

    opcode = Opcode.FTRUNCATE

    fd: FileLike
    length: int

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(self.fd, off=self.length), None


@operation
class Fadvise(Operation):
    """
    Say how a part of a file is going to be used. Equivalent: posix_fadvise(2).

    Args:
        fd: the file.
        advice: os.POSIX_FADV_*.
        offset: where the part begins, in bytes.
        length: how long it is, in bytes; 0 for up to the end of the file. Older kernels answer
            EINVAL to more than 2**32 - 1.

    Completion: res is 0, which does not mean that the advice was taken.

    Kernel: 5.6. liburing: io_uring_prep_fadvise(3), io_uring_prep_fadvise64(3).
    """

    opcode = Opcode.FADVISE

    fd: FileLike
    advice: int
    offset: int = attrs.field(default=0, kw_only=True)
    length: int = attrs.field(default=0, kw_only=True)

    def _encode(self) -> tuple[bytes, object]:
        if not isinstance(self.length, int):
            raise TypeError(f"length must be an integer, not {self.length!r}")
        is_long = self.length > UINT32_MAX  # what `len` cannot hold goes in `addr`
        addr, len_ = (self.length, 0) if is_long else (0, self.length)
        return self._pack(self.fd, self.offset, addr, len_, op_flags=self.advice), None


@operation
class Madvise(Operation):
    """
    Say how memory is going to be used. Equivalent: madvise(2).

    The kernel knows pages only. It wants the beginning of one (EINVAL else; an mmap has that) and
    goes on to the end of the last one, also when the buffer ends before. So the advice that makes
    memory read as zeros (DONTNEED, DONTNEED_LOCKED, FREE, REMOVE, WIPEONFORK) is only taken for
    writable memory of whole pages: behind a part of one there may be another object. And WIPEONFORK
    is only taken for an mmap, or a memoryview of one: other memory would keep it when it is freed,
    and be zeros in a child under whatever object lies there then.

    Args:
        buffer: the memory, of any length; older kernels answer EINVAL to more than 2**32 - 1 bytes.
        advice: `MadviseAdvice`, or mmap.MADV_*.

    Lifetime: the buffer is pinned until the completion.
    Completion: res is 0, which does not always mean that the advice was taken.

    Raises:
        ValueError: advice that this class refuses, as `MadviseAdvice` tells, a part of a page that
            would be destroyed, or WIPEONFORK -> use an mmap, or cut the memoryview to whole pages.
        TypeError: read-only memory that would be destroyed.

    Kernel: 5.6. liburing: io_uring_prep_madvise(3), io_uring_prep_madvise64(3).
    """

    opcode = Opcode.MADVISE

    buffer: "Buffer" = lent()
    advice: int

    def _encode(self) -> tuple[bytes, object]:
        destroys = self.advice in _DESTROYING
        if not destroys and self.advice not in _HARMLESS:
            raise ValueError(
                f"advice {self.advice!r} is refused: this package does not know it to be safe,"
                " or an access to the memory would kill the process or a child; see MadviseAdvice"
            )
        pin, address, length = _memory.span(self.buffer, write=destroys)
        if destroys and (address % mmap.PAGESIZE or length % mmap.PAGESIZE):
            raise ValueError(
                f"{MadviseAdvice(self.advice)!r} destroys whole pages of {mmap.PAGESIZE} bytes, but"
                f" the buffer is {length} bytes at {address:#x}: use an mmap, or cut the memoryview"
            )
        if self.advice == MadviseAdvice.WIPEONFORK and not _is_mmap(self.buffer):
            raise ValueError("WIPEONFORK outlasts the buffer, unless that is an mmap: use one")
        is_long = length > UINT32_MAX  # what `len` cannot hold goes in `off`
        off, len_ = (length, 0) if is_long else (0, length)
        return self._pack(off=off, addr=address, len=len_, op_flags=self.advice), pin
