"""The numbers of file system calls, and struct statx, against data from the kernel's headers."""

import copy
import json
import os
import pickle
import struct
import sys
from datetime import UTC, datetime
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Final

import pytest

import uring
from uring import _file_memory, file_flags

DATA: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "file_flags.json").read_text(encoding="ascii")
)
LAYOUTS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "layouts.json").read_text(encoding="ascii")
)["structs"]

# The kernel's prefix -> the enumeration; the longest prefix that fits wins.
PREFIXES: Final[dict[str, Any]] = {
    "AT_": file_flags.AtFlags,
    "FALLOC_FL_": file_flags.FallocateFlags,
    "IO_INTEGRITY_": file_flags.IntegrityFlags,
    "MADV_": file_flags.MadviseAdvice,
    "RENAME_": file_flags.RenameFlags,
    "RESOLVE_": file_flags.ResolveFlags,
    "STATX_": file_flags.StatxMask,
    "STATX_ATTR_": file_flags.StatxAttributes,
    "SYNC_FILE_RANGE_": file_flags.SyncFileRangeFlags,
}


def place(name: str) -> tuple[Any, str]:
    """The enumeration and the name that a constant has here."""
    prefix = max((p for p in PREFIXES if name.startswith(p)), key=len)
    return PREFIXES[prefix], name.removeprefix(prefix)


@pytest.mark.parametrize("constant", DATA["constants"], ids=lambda constant: constant["name"])
def test_file_flags_have_the_kernels_name_and_value(constant: dict[str, Any]) -> None:
    """The constant is a member of its enumeration, with the header's value."""
    enumeration, name = place(constant["name"])
    assert enumeration.__members__[name] == constant["value"]


def test_file_flags_have_no_member_that_the_headers_lack() -> None:
    """Every member stands for exactly one constant of the headers."""
    ours = {
        (enumeration, name)
        for enumeration in vars(file_flags).values()
        if isinstance(enumeration, type)
        and issubclass(enumeration, IntEnum | IntFlag)
        and not enumeration.__name__.startswith("_")
        for name in enumeration.__members__
    }
    assert ours == {place(constant["name"]) for constant in DATA["constants"]}
    assert set(PREFIXES.values()) == {enumeration for enumeration, _ in ours}


# Where the record has one name for what the kernel has in two fields.
TIMES: Final = ("atime", "btime", "ctime", "mtime")


def decoded(fields: dict[str, int]) -> uring.StatxResult:
    """What is made of a struct statx whose fields have these values, and are 0 else."""
    memory = bytearray(DATA["statx"]["size"])
    for name, value in fields.items():
        field = DATA["statx"]["fields"][name]
        start, size = field["offset"], field["size"]
        memory[start : start + size] = value.to_bytes(size, sys.byteorder)
    return uring.StatxResult(bytes(memory))


@pytest.mark.parametrize("name", DATA["statx"]["fields"])
def test_statx_reads_each_field_where_the_kernel_writes_it(name: str) -> None:
    """A field that is all ones but for its sign is read whole, and nothing else changes."""
    value = 2 ** (8 * DATA["statx"]["fields"][name]["size"] - 1) - 1
    field, _, part = name.removeprefix("stx_").partition(".")
    expected = value * 1_000_000_000 if part == "tv_sec" else value
    if part:
        field += "_ns"
    empty, found = decoded({}), decoded({name: value})
    assert getattr(found, field) == expected
    changed = {f for f in DIRECT if getattr(found, f) != getattr(empty, f)}
    assert changed == {field}


DIRECT: Final = _file_memory.STATX_FIELDS


def test_statx_record_has_every_field_of_the_struct() -> None:
    """Each field of the kernel's is one of the record, the two halves of a time being one."""
    names = {name.removeprefix("stx_").partition(".")[0] for name in DATA["statx"]["fields"]}
    assert {name.removesuffix("_ns") for name in DIRECT} == names
    assert DATA["statx"]["size"] == _file_memory.STATX_SIZE


def test_open_how_is_the_kernels() -> None:
    """The three fields lie where struct open_how has them."""
    layout = LAYOUTS["open_how"]
    pin, address, size = _file_memory.open_how(1, 2, 3)
    assert address
    assert size == layout["size"]
    encoded = bytes(uring._memory.bytes_of(pin))
    for value, name in enumerate(("flags", "mode", "resolve"), 1):
        (found,) = struct.unpack_from("=Q", encoded, layout["fields"][name]["offset"])
        assert found == value


def test_statx_times_before_1970_and_beyond_what_datetime_holds() -> None:
    """A negative time is before 1970, one too large raises OverflowError, and ns have both."""
    mask = {"stx_mask": int(file_flags.StatxMask.MTIME)}
    seconds = {"stx_mtime.tv_sec": 2**64 - 1, "stx_mtime.tv_nsec": 999_999_999}
    before = decoded(mask | seconds)
    assert before.mtime_ns == -1
    assert before.mtime == datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    beyond = decoded(mask | {"stx_mtime.tv_sec": 2**40})
    assert beyond.mtime_ns == 2**40 * 1_000_000_000
    with pytest.raises(OverflowError):
        _ = beyond.mtime


def test_statx_time_that_the_mask_lacks_is_none() -> None:
    """Each of the four is there when its bit is, and None when it is not."""
    bits = dict(zip(TIMES, ("ATIME", "BTIME", "CTIME", "MTIME"), strict=True))
    for name in TIMES:
        mask = int(file_flags.StatxMask[bits[name]])
        result = decoded({"stx_mask": mask, f"stx_{name}.tv_sec": 7})
        assert getattr(result, name) == datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC)
        assert all(getattr(result, other) is None for other in TIMES if other != name)


def test_statx_devices_are_os_numbers() -> None:
    """`dev` and `rdev` are what os.makedev makes of the halves."""
    fields = dict.fromkeys(("stx_dev_major", "stx_rdev_minor"), 3) | {
        "stx_dev_minor": 4,
        "stx_rdev_major": 5,
    }
    result = decoded(fields)
    assert (result.dev, result.rdev) == (os.makedev(3, 4), os.makedev(5, 3))


def test_statx_result_is_a_value() -> None:
    """It compares and hashes by what the kernel wrote, is copied and pickled, and never changes."""
    fields = {"stx_size": 7, "stx_mask": int(file_flags.StatxMask.SIZE)}
    result: Any = decoded(fields)
    assert result == decoded(fields) != decoded(fields | {"stx_ino": 1})
    assert hash(result) == hash(decoded(fields))
    for again in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert again == result
    assert repr(result).startswith(f"StatxResult(mask={file_flags.StatxMask.SIZE!r}, blksize=0, ")
    assert " size=7, " in repr(result)
    assert type(result.mask) is file_flags.StatxMask
    assert type(result.attributes) is type(result.attributes_mask) is file_flags.StatxAttributes
    for name in (*DIRECT, "mtime", "colour"):
        with pytest.raises(AttributeError):
            setattr(result, name, 1)


def test_statx_result_is_made_of_a_whole_structure_that_cannot_change() -> None:
    """Too few bytes, too many, and memory that somebody could write are refused."""
    wrong: list[Any] = [b"", bytes(255), bytes(257), bytearray(256), None]
    for encoded in wrong:
        with pytest.raises(ValueError, match="256 bytes"):
            uring.StatxResult(encoded)
