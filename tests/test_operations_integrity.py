"""Protection information of reads and writes: encoded, and as far as the kernel takes it here."""

import errno
import gc
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import uring
from uring import IntegrityFlags, ProtectionInfo, _memory, _structures

DATA: Final = mmap.mmap(-1, 4096)

# Each class that takes it, with a number that every record has besides.
READS: Final[dict[str, Callable[..., uring.Operation]]] = {
    "Readv": lambda fd, **more: uring.Readv(fd, [DATA], **more),
    "ReadFixed": lambda fd, **more: uring.ReadFixed(fd, DATA, buf_index=0, **more),
    "ReadvFixed": lambda fd, **more: uring.ReadvFixed(fd, [DATA], buf_index=0, **more),
}
WRITES: Final[dict[str, Callable[..., uring.Operation]]] = {
    "Writev": lambda fd, **more: uring.Writev(fd, [DATA], **more),
    "WriteFixed": lambda fd, **more: uring.WriteFixed(fd, DATA, buf_index=0, **more),
    "WritevFixed": lambda fd, **more: uring.WritevFixed(fd, [DATA], buf_index=0, **more),
}
BOTH: Final = READS | WRITES


def number(encoded: bytes) -> int:
    """An unsigned number as the kernel reads it."""
    return int.from_bytes(encoded, sys.byteorder)


def address_of(buffer: Any) -> int:
    """Where a buffer lies."""
    _, address, _ = _memory.readable(buffer)
    return address


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("flag", [0, *IntegrityFlags, 7])
def test_protection_is_the_kernels_struct_behind_the_record(kind: str, flag: int) -> None:
    """attr_ptr leads to flags, tag, length, address, seed and zero; attr_type_mask is PI, 1."""
    info = bytearray(b"sixteen bytes...")
    pi = ProtectionInfo(info, pi_flags=flag, app_tag=0x1234, seed=2**64 - 2)  # type: ignore[arg-type]  # plain numbers, too
    record, pins = BOTH[kind](5, pi=pi)._encode()
    assert number(record[56:64]) == 1
    attributes, lent = pins[1]  # type: ignore[index]  # the read's own pins come first
    struct = _memory.bytes_of(attributes)
    assert number(record[48:56]) == _memory.address_of(attributes)
    assert len(struct) == 32
    assert number(struct[0:2]) == flag
    assert number(struct[2:4]) == 0x1234
    assert number(struct[4:8]) == 16
    assert number(struct[8:16]) == address_of(info) == _memory.address_of(lent)
    assert number(struct[16:24]) == 2**64 - 2
    assert number(struct[24:32]) == 0


@pytest.mark.parametrize("kind", BOTH)
def test_protection_changes_nothing_else(kind: str) -> None:
    """The other fields are those of the operation without it, which has 0 there."""
    with_it = BOTH[kind](5, offset=7, rw_flags=1, ioprio=2, pi=ProtectionInfo(bytearray(8)))
    without = BOTH[kind](5, offset=7, rw_flags=1, ioprio=2)
    first, second = with_it._encode()[0], without._encode()[0]
    vectored = kind.lower().endswith(("v", "vfixed"))  # then addr is that of an array of its own
    assert first[:16] == second[:16]
    assert first[16:24] == second[16:24] or vectored
    assert first[24:48] == second[24:48]
    assert second[48:] == bytes(16)


@pytest.mark.parametrize(
    ("pi", "message"),
    [
        (b"12345678", "pi must be a ProtectionInfo"),
        (ProtectionInfo(bytearray(8), pi_flags=65536), "pi_flags must be in"),  # type: ignore[arg-type]  # wrong on purpose
        (ProtectionInfo(bytearray(8), pi_flags="x"), "pi_flags must be an"),  # type: ignore[arg-type]  # wrong on purpose
        (ProtectionInfo(bytearray(8), app_tag=-1), "app_tag must be in"),
        (ProtectionInfo(bytearray(8), seed=2**64), "seed must be in"),
        (ProtectionInfo("x"), "bytes-like"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    ids=lambda value: repr(value)[:60],
)
@pytest.mark.parametrize("kind", BOTH)
def test_protection_refuses_what_does_not_fit(kind: str, pi: Any, message: str) -> None:
    """TypeError or ValueError, whose message names the field, before the kernel sees it."""
    with pytest.raises((TypeError, ValueError), match=message):
        BOTH[kind](5, pi=pi).sqe()


def test_protection_of_reads_must_be_writable() -> None:
    """A read fills it, so bytes are refused; a write only looks at it."""
    pi = ProtectionInfo(b"12345678")
    for make in READS.values():
        with pytest.raises(TypeError, match="read-only bytes"):
            make(5, pi=pi).sqe()
    for make in WRITES.values():
        assert make(5, pi=pi).sqe().attr_type_mask == 1


def test_protection_is_a_value() -> None:
    """Two of one buffer are equal; the repr is short; it cannot be changed."""
    info = bytearray(8)
    pi = ProtectionInfo(info, app_tag=1)
    assert pi == ProtectionInfo(info, app_tag=1) != ProtectionInfo(info)
    assert "bytearray of 8 bytes" in repr(uring.Readv(5, [DATA], pi=pi))
    with pytest.raises(AttributeError):
        pi.app_tag = 2  # type: ignore[misc]  # wrong on purpose


@pytest.mark.parametrize("kind", BOTH)
def test_protection_of_a_file_without_it_is_einval(drive: Any, tmp_path: Path, kind: str) -> None:
    """The kernel reads the struct, and finds that a file of a file system has no such thing."""
    (tmp_path / "file").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "file", os.O_RDWR)
    drive.ring.register_buffers([DATA])
    assert drive.one(BOTH[kind](fd)).res == 4096
    drive.fails(BOTH[kind](fd, pi=ProtectionInfo(bytearray(64))), errno.EINVAL)
    os.close(fd)


def test_protection_is_pinned_until_the_completion(drive: Any, pipe: tuple[int, int]) -> None:
    """Its buffer cannot be resized while in flight, outlives its names, and goes afterwards."""

    class Info(bytearray):
        """One that can be referred to weakly."""

    info = Info(64)
    is_there = weakref.ref(info)
    held = uring.PollAdd(pipe[0])
    read = uring.Readv(pipe[0], [bytearray(4)], pi=ProtectionInfo(info))
    drive.submit(*uring.hardlink(held, read))
    with pytest.raises(BufferError):
        info.append(0)
    del info, read, held
    gc.collect()
    assert is_there() is not None
    os.write(pipe[1], b"data")
    drive.take(2)
    assert drive.ring.in_flight == 0
    gc.collect()
    assert is_there() is None


def test_protection_is_told_of_by_the_kernel(ring: uring.Ring) -> None:
    """The feature RW_ATTR says that it is taken notice of; another kind of attribute is EINVAL."""
    assert ring.features & uring.Features.RW_ATTR
    ring.queue(uring.SQE(uring.Opcode.READ, attr_type_mask=2, user_data=1))
    ring.submit()
    assert ring.copy_cqe(timeout=10).res == -errno.EINVAL
    assert _structures.ATTR_PI.size == 32
