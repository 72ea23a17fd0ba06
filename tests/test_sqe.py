"""The raw record: its layout, its round trip, and the flags that make chains. No ring."""

import json
import struct
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uring
from uring import sqe

STRUCTS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "layouts.json").read_text(encoding="ascii")
)["structs"]

KERNEL_NAMES: Final = {
    "opcode": "opcode",
    "flags": "flags",
    "ioprio": "ioprio",
    "fd": "fd",
    "off": "off",
    "addr": "addr",
    "len": "len",
    "op_flags": "rw_flags",  # one name of many for the union
    "user_data": "user_data",
    "buf_index": "buf_index",
    "personality": "personality",
    "splice_fd_in": "splice_fd_in",
    "addr3": "addr3",
}
RANGES: Final = {name: (low, high) for name, low, high in sqe._FIELDS}


def number(name: str) -> st.SearchStrategy[int]:
    """Any value that the field holds."""
    return st.integers(*RANGES[name])


RECORDS: Final = st.builds(
    uring.SQE,
    flags=number("flags").map(uring.SQEFlags),
    **{name: number(name) for name in KERNEL_NAMES if name != "flags"},
)


@pytest.mark.parametrize(("ours", "theirs"), KERNEL_NAMES.items())
def test_sqe_packs_each_field_where_the_kernel_reads_it(ours: str, theirs: str) -> None:
    """The field set to all ones, and nothing else, fills exactly its bytes of the kernel's."""
    field = STRUCTS["io_uring_sqe"]["fields"][theirs]
    all_ones = -1 if ours == "fd" else 256 ** field["size"] - 1
    values = {"opcode": 0, ours: all_ones}
    if ours == "flags":
        values["flags"] = uring.SQEFlags(all_ones)
    expected = bytearray(64)
    expected[field["offset"] : field["offset"] + field["size"]] = b"\xff" * field["size"]
    assert uring.SQE(**values).encode() == expected  # type: ignore[arg-type]  # flags is one


def test_sqe_has_a_field_for_every_byte_but_the_last_eight() -> None:
    """The fields cover bytes 0..55 of the kernel's record once each, and the rest stays zero."""
    fields = STRUCTS["io_uring_sqe"]["fields"]
    covered = sorted(
        place
        for name in KERNEL_NAMES.values()
        for place in range(fields[name]["offset"], fields[name]["offset"] + fields[name]["size"])
    )
    assert covered == list(range(56))
    assert sqe._RECORD.size == sqe.SQE_SIZE == STRUCTS["io_uring_sqe"]["size"] == 64


@pytest.mark.parametrize("alias", ["addr2", "cmd_op", "splice_off_in", "file_index", "optlen"])
def test_sqe_aliases_of_the_kernel_start_where_a_field_of_ours_does(alias: str) -> None:
    """A name of a kernel union that operations write to starts at a field that `pack` has."""
    fields = STRUCTS["io_uring_sqe"]["fields"]
    starts = {fields[name]["offset"] for name in KERNEL_NAMES.values()}
    assert fields[alias]["offset"] in starts


@given(RECORDS)
def test_sqe_decodes_what_it_encoded(record: uring.SQE) -> None:
    """Any record, encoded to 64 bytes and decoded, is equal to itself."""
    encoded = record.encode()
    assert len(encoded) == 64
    assert uring.SQE.decode(encoded) == record
    assert uring.SQE.decode(encoded).encode() == encoded


@given(RECORDS, number("user_data"))
def test_sqe_decode_replaces_only_the_user_data(record: uring.SQE, user_data: int) -> None:
    """A user_data given to `decode`, 0 too, takes the place of the one in the record."""
    decoded = uring.SQE.decode(record.encode(), user_data)
    assert decoded == attrs.evolve(record, user_data=user_data)


def test_sqe_takes_offset_minus_one() -> None:
    """An `off` of -1 is encoded as all ones, as the kernel's "current position" is."""
    assert uring.SQE(0, off=-1).encode()[8:16] == b"\xff" * 8


@given(st.sampled_from(sorted(RANGES)), st.data())
def test_sqe_out_of_range_field_is_named(name: str, data: st.DataObject) -> None:
    """A number just or far outside of the field raises ValueError with field and number."""
    low, high = RANGES[name]
    below = st.integers(max_value=low - (2 if name == "off" else 1))
    value = data.draw(below | st.integers(min_value=high + 1))
    values: dict[str, Any] = {"opcode": 0, name: value}
    with pytest.raises(ValueError, match=rf"^{name} must be in .*not {value}$"):
        uring.SQE(**values).encode()


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("value", [1.0, "1", None, b"1"])
def test_sqe_field_of_the_wrong_type_is_named(name: str, value: object) -> None:
    """What is no integer raises TypeError with the field's name."""
    values: dict[str, Any] = {"opcode": 0, name: value}
    with pytest.raises(TypeError, match=f"^{name} must be an integer, not "):
        uring.SQE(**values).encode()


def test_sqe_is_immutable() -> None:
    """Assigning to a field raises."""
    record = uring.SQE(0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        record.len = 5  # type: ignore[misc]  # wrong on purpose


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_sqe_decode_refuses_another_length(length: int) -> None:
    """A record that is not 64 bytes long raises."""
    with pytest.raises(struct.error):
        uring.SQE.decode(bytes(length))


# ---- Fixed, and what names a file ----


@pytest.mark.parametrize("index", [0, 1, 2**31 - 1])
def test_fixed_takes_an_index_that_fits(index: int) -> None:
    """The index becomes the number of the file, with FIXED_FILE."""
    assert sqe.file_field(uring.Fixed(index)) == (index, int(uring.SQEFlags.FIXED_FILE))


@pytest.mark.parametrize("index", [-1, 2**31, 2**64])
def test_fixed_refuses_an_index_out_of_range(index: int) -> None:
    """A negative index, or one over 31 bits, raises ValueError with the number."""
    with pytest.raises(ValueError, match=rf"not {index}$"):
        uring.Fixed(index)


@pytest.mark.parametrize("index", [True, 1.0, "1", None])
def test_fixed_refuses_what_is_no_integer(index: Any) -> None:
    """A bool, which is an int to Python, is refused as a float is."""
    with pytest.raises(TypeError, match="integer index"):
        uring.Fixed(index)


def test_fixed_is_not_the_number() -> None:
    """`Fixed(3)` differs from 3, and equals another `Fixed(3)`."""
    assert uring.Fixed(3) == uring.Fixed(3)
    assert uring.Fixed(3) != 3  # that is the point


class File:
    """Something with a fileno() of any kind."""

    def __init__(self, number: object) -> None:
        self.number = number

    def fileno(self) -> Any:
        """Whatever it was made with."""
        return self.number


def test_descriptor_asks_for_the_fileno() -> None:
    """An object with fileno() stands for what it returns, and an int for itself, -1 too."""
    assert sqe.descriptor(File(7)) == 7
    assert sqe.descriptor(-1) == -1


@pytest.mark.parametrize("fd", [None, "3", 3.0, True, False, File("3"), File(None)])
def test_descriptor_refuses_what_names_no_file(fd: Any) -> None:
    """What is neither an integer nor has a fileno() that gives one raises TypeError."""
    with pytest.raises(TypeError, match=r"file|fileno"):
        sqe.descriptor(fd)


def test_descriptor_refuses_a_closed_file() -> None:
    """A file whose fileno() is -1, as a closed socket's is, raises ValueError."""
    with pytest.raises(ValueError, match="closed"):
        sqe.descriptor(File(-1))


# ---- flags and chains ----

OTHER: Final = uring.SQEFlags.ASYNC | uring.SQEFlags.CQE_SKIP_SUCCESS


@pytest.mark.parametrize(
    ("method", "flag"),
    [
        ("linked", uring.SQEFlags.IO_LINK),
        ("hard_linked", uring.SQEFlags.IO_HARDLINK),
        ("drained", uring.SQEFlags.IO_DRAIN),
    ],
)
@pytest.mark.parametrize("op", [uring.Nop(flags=OTHER), uring.SQE(0, OTHER)])
def test_operation_copies_gain_a_flag_and_keep_the_others(
    op: uring.Operation | uring.SQE, method: str, flag: uring.SQEFlags
) -> None:
    """The copy has the flag besides those that were there; the original is as it was."""
    copy = getattr(op, method)()
    assert type(copy) is type(op)
    assert copy.flags == OTHER | flag
    assert copy.sqe().flags == OTHER | flag
    assert op.flags == OTHER
    assert getattr(copy, method)() == copy


def test_operation_copy_keeps_its_encoding_apart() -> None:
    """A copy of an operation that was encoded before does not reuse that encoding."""
    op = uring.Nop()
    assert op.sqe().flags == 0
    assert op.linked().sqe().flags == uring.SQEFlags.IO_LINK
    assert op.drained().linked().sqe().flags == uring.SQEFlags.IO_LINK | uring.SQEFlags.IO_DRAIN


@pytest.mark.parametrize(
    ("chain", "flag"),
    [(uring.link, uring.SQEFlags.IO_LINK), (uring.hardlink, uring.SQEFlags.IO_HARDLINK)],
)
@given(st.lists(RECORDS, max_size=5))
def test_link_flags_all_but_the_last(
    chain: Any, flag: uring.SQEFlags, records: list[uring.SQE]
) -> None:
    """Every member but the last has the flag more than before; the last is what was given."""
    linked = chain(*records)
    assert isinstance(linked, tuple)
    assert linked[-1:] == tuple(records[-1:])
    for before, after in zip(records[:-1], linked[:-1], strict=True):
        assert after == attrs.evolve(before, flags=before.flags | flag)


@pytest.mark.parametrize("chain", [uring.link, uring.hardlink])
def test_link_of_nothing_and_of_one(chain: Any) -> None:
    """A chain of nothing is empty; a chain of one is that one, without a flag."""
    nop = uring.Nop()
    assert chain() == ()
    assert chain(nop) == (nop,)
    assert chain(nop)[0].flags == 0


def test_sqe_flags_of_an_int_become_flags() -> None:
    """A plain integer given as `flags` can be linked all the same."""
    assert uring.SQE(0, 1).linked().flags is uring.SQEFlags.FIXED_FILE | uring.SQEFlags.IO_LINK  # type: ignore[arg-type]  # a plain int on purpose
