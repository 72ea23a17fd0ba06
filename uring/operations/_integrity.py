"""Protection information: what a device checks and keeps beside each block of data."""

import sys
from typing import TYPE_CHECKING, Final

import attrs

from uring import _structures
from uring._checks import check_range
from uring.file_flags import IntegrityFlags
from uring.flags import RwAttrFlags
from uring.operations._base import describe
from uring.sqe import UINT64_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ATTR_PTR: Final = 48  # where ``sqe->attr_ptr`` is, and behind it ``sqe->attr_type_mask``
_TYPE_MASK: Final = int(RwAttrFlags.PI).to_bytes(8, sys.byteorder)


@attrs.frozen
class ProtectionInfo:
    """
    The protection information (T10 PI) that goes with the data of one read or write.

    For block devices that are formatted with it, opened with O_DIRECT; others answer EINVAL. How
    many bytes each block has, and what they mean, is the device's to say. Kernels that lack
    Features.RW_ATTR take no notice of it.

    Args:
        buffer: the information of all blocks, in order: writable for reads, which fill it.
        pi_flags: `IntegrityFlags`: what the device checks, CHK_GUARD, CHK_REFTAG, CHK_APPTAG.
        app_tag: the application tag to check for, 0..65535.
        seed: the reference tag of the first block.

    Kernel: 6.14. Source: struct io_uring_attr_pi in linux/io_uring.h.
    """

    buffer: "Buffer" = attrs.field(eq=id, repr=describe)
    pi_flags: IntegrityFlags = attrs.field(default=IntegrityFlags(0), kw_only=True)
    app_tag: int = attrs.field(default=0, kw_only=True)
    seed: int = attrs.field(default=0, kw_only=True)


def with_protection(
    encoded: tuple[bytes, object], pi: ProtectionInfo, *, write: bool
) -> tuple[bytes, object]:
    """Name protection information in the record of a read or write, and pin it besides."""
    if not isinstance(pi, ProtectionInfo):
        raise TypeError(f"pi must be a ProtectionInfo, not {pi!r}")
    numbers = (
        check_range("pi_flags", pi.pi_flags, 0, 65535),
        check_range("app_tag", pi.app_tag, 0, 65535),
        check_range("seed", pi.seed, 0, UINT64_MAX),
    )
    record, pins = encoded
    lent, address = _structures.protection(pi.buffer, numbers, write=write)
    return record[:_ATTR_PTR] + address.to_bytes(8, sys.byteorder) + _TYPE_MASK, (pins, lent)
