"""Batches before any ring: how they are encoded, what they refuse, and what they pin."""

import array
import ctypes
import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import Tracked

import uring
from uring import (
    SQE,
    Accept,
    Batch,
    Fixed,
    Fsync,
    Nop,
    Opcode,
    Openat,
    Operation,
    PollFlags,
    Read,
    ReadMany,
    Recv,
    Send,
    SQEFlags,
    TimeoutFlags,
    Write,
    WriteMany,
    _memory,
    hardlink,
    link,
)
from uring.sqe import Queueable

FORMATS: Final = "bBhHiIlLqQ"
MANY: Final[dict[type[ReadMany | WriteMany], type[Read | Write]]] = {
    ReadMany: Read,
    WriteMany: Write,
}


def raw(batch: Batch) -> bytes:
    """The SQEs that a run of it submits, but for their user_data."""
    return _memory.bytes_of(batch._sqes)


def records(batch: Batch) -> list[SQE]:
    """The same, read back."""
    encoded = raw(batch)
    return [SQE.decode(encoded[start : start + 64]) for start in range(0, len(encoded), 64)]


class Wrapper:
    """A file that counts how often it was asked for its descriptor."""

    def __init__(self, fd: Any) -> None:
        self.fd = fd
        self.asked = 0

    def fileno(self) -> Any:
        """The descriptor."""
        self.asked += 1
        return self.fd


# ---- Batch: encoding ----


def test_batch_encodes_as_each_operation_does() -> None:
    """A batch holds exactly the bytes that each operation gives, in order."""
    buffer = bytearray(64)
    ops = (
        Nop(),
        Read(3, buffer, 5, rw_flags=1, ioprio=2, personality=3),
        Write(Fixed(7), buffer, 2**40),
        Fsync(9, datasync=True),
        Recv(4, buffer, 1),
        Nop(flags=SQEFlags.ASYNC).drained(),
        SQE(Opcode.NOP, off=11, addr=22, addr3=33),
    )
    batch = Batch(ops)
    assert raw(batch) == b"".join(op.sqe().encode() for op in ops)


def test_batch_keeps_every_link_but_the_last() -> None:
    """Links inside a batch stay; one on the last operation, to whatever comes behind, goes."""
    chain = link(Nop(), Nop(), Nop())
    hard = hardlink(Nop(), Nop())
    batch = Batch([*chain, *hard, Nop().linked(), Nop().drained().hard_linked()])
    flags = [int(record.flags) for record in records(batch)]
    assert flags == [4, 4, 0, 8, 0, 4, 2]
    assert batch[-1].flags == SQEFlags.IO_DRAIN | SQEFlags.IO_HARDLINK


@pytest.mark.parametrize("make", [list, tuple, iter, Batch, lambda ops: (op for op in ops)])
def test_batch_is_made_of_any_iterable(make: Callable[[Any], Any]) -> None:
    """A list, a tuple, an iterator, a generator or another batch makes the same batch."""
    ops = [Nop(), Fsync(3)]
    batch = Batch(make(ops))
    assert list(batch) == ops
    assert raw(batch) == b"".join(op.sqe().encode() for op in ops)


def test_batch_asks_a_file_for_its_descriptor_once() -> None:
    """fileno() is called when the batch is made, once for each operation that names it."""
    file = Wrapper(5)
    batch = Batch([Read(file, bytearray(1)), Fsync(file)])
    assert [record.fd for record in records(batch)] == [5, 5]
    assert file.asked == 2


def test_batch_does_not_change_with_the_list_that_made_it() -> None:
    """What is done to the list afterwards does not reach the batch."""
    ops: list[Operation] = [Nop(), Nop()]
    batch = Batch(ops)
    ops.clear()
    assert (len(batch), len(raw(batch))) == (2, 128)


# ---- Batch: refusals ----


@pytest.mark.parametrize(
    ("operations", "error", "words"),
    [
        (Nop(), TypeError, "a sequence of operations, not one Nop"),
        (SQE(Opcode.NOP), TypeError, "a sequence of operations, not one SQE"),
        ("nop", TypeError, "a sequence of operations, not one str"),
        (b"nop", TypeError, "a sequence of operations, not one bytes"),
        (None, TypeError, "a sequence of operations, not one NoneType"),
        (5, TypeError, "a sequence of operations, not one int"),
        ([Nop(), None], TypeError, "operation 1 of the batch is not an operation: None"),
        ([Nop], TypeError, "operation 0 of the batch is not an operation"),
        ([[Nop()]], TypeError, "operation 0 of the batch is not an operation"),
        ([Nop(), Read(0, b"read-only")], TypeError, "read-only bytes"),
        ([Nop(), Read(2**31, bytearray(1))], ValueError, "fd must be in"),
        ([Nop(), Fsync(-(2**31) - 1)], ValueError, "fd must be in"),
        ([Nop(), SQE(256)], ValueError, "opcode must be in"),
        ([Openat("a\0b")], ValueError, "null byte"),
        ([Nop(), Nop().linked(), Nop(user_data=-1)], ValueError, "user_data"),
        ([Nop(user_data=2**64)], ValueError, "user_data"),
        ([Nop(user_data=5), Nop(), Nop(user_data=5)], ValueError, "operations 0 and 2"),
        ([Nop(user_data=0), Nop(user_data=0)], ValueError, "the same user_data 0x0"),
        ([SQE(0, user_data=7), Nop(user_data=7)], ValueError, "the same user_data 0x7"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_batch_refuses_what_cannot_be_run(
    operations: Any, error: type[Exception], words: str
) -> None:
    """What is no sequence of operations that can be encoded is refused, and the message says so."""
    with pytest.raises(error, match=words):
        Batch(operations)


@pytest.mark.parametrize(
    "op",
    [
        SQE(Opcode.POLL_ADD, len=int(PollFlags.ADD_MULTI)),
        SQE(Opcode.TIMEOUT, op_flags=int(TimeoutFlags.MULTISHOT)),
        SQE(Opcode.ACCEPT, ioprio=1),
        SQE(Opcode.RECV, ioprio=2),
        SQE(Opcode.RECVMSG, ioprio=2),
        SQE(Opcode.READ_MULTISHOT),
    ],
    ids=repr,
)
def test_batch_refuses_multishot(op: Queueable) -> None:
    """An operation with many results is refused, by its index."""
    with pytest.raises(ValueError, match=r"operation 1, .*multishot.*; use stream\(\)"):
        Batch([Nop(), op])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_batch_refuses_silent_operations(place: int) -> None:
    """CQE_SKIP_SUCCESS is refused wherever it stands, also in a chain."""
    ops = [Nop(), Nop(), Nop()]
    ops[place] = Nop(flags=SQEFlags.CQE_SKIP_SUCCESS)
    for each in (ops, link(*ops)):
        with pytest.raises(ValueError, match=f"operation {place}, .*CQE_SKIP_SUCCESS"):
            Batch(each)


def test_batch_takes_many_that_were_given_no_number() -> None:
    """Operations without a user_data, and SQEs with 0, may be as many as they like."""
    batch = Batch([Nop(), Nop(), SQE(Opcode.NOP), SQE(Opcode.NOP), Nop(user_data=0)])
    assert len(batch) == 5


# ---- Batch: what it is ----


def test_batch_is_a_sequence() -> None:
    """Length, index, slice, iteration and `in` are those of a tuple of its operations."""
    ops = tuple(Nop(user_data=number) for number in range(5))
    batch = Batch(ops)
    assert isinstance(batch, Sequence)
    assert (len(batch), batch[0], batch[-1], tuple(batch[1:4:2])) == (5, ops[0], ops[4], ops[1:4:2])
    assert tuple(batch) == ops
    assert tuple(reversed(batch)) == ops[::-1]
    assert ops[2] in batch
    assert (batch.index(ops[3]), batch.count(ops[3])) == (3, 1)
    with pytest.raises(IndexError):
        batch[5]
    assert len(Batch([])) == 0
    assert list(Batch([])) == []


def test_batch_is_immutable() -> None:
    """Neither items nor attributes can be set or deleted on a batch of any kind."""
    for batch in (Batch([Nop()]), ReadMany(0, bytearray(1), [0])):
        changing: Any = batch
        with pytest.raises(TypeError):
            changing[0] = Nop()
        with pytest.raises(TypeError):
            del changing[0]
        with pytest.raises(AttributeError):
            changing.colour = 1


def test_repr_says_how_many() -> None:
    """The repr of a batch is short, whatever is in it."""
    assert repr(Batch([Nop()] * 1000)) == "<Batch of 1000 operations>"
    assert repr(ReadMany(0, bytearray(6), [0, 1, 2])) == "<ReadMany of 3 parts>"
    assert repr(WriteMany(0, b"", [])) == "<WriteMany of 0 parts>"


# ---- pins ----


def several(make: Callable[[bytearray], Batch]) -> tuple[bytearray, Batch]:
    """A buffer and the batch that pins it."""
    buffer = bytearray(16)
    return buffer, make(buffer)


@pytest.mark.parametrize(
    "make",
    [
        lambda buffer: Batch([Read(0, buffer), Nop()]),
        lambda buffer: Batch([uring.Readv(0, [bytearray(1), buffer])]),
        lambda buffer: Batch([Send(0, memoryview(buffer)[4:])]),
        lambda buffer: Batch(iter([Write(0, buffer)])),
        lambda buffer: ReadMany(0, buffer, [0, 8]),
        lambda buffer: WriteMany(0, buffer, [0, 8]),
        lambda buffer: ReadMany(0, [bytearray(4), buffer], [0, 8]),
        lambda buffer: WriteMany([0, Fixed(1)], (buffer, buffer), [0, 8], [1, 2]),
    ],
)
def test_batch_pins_its_buffers_as_long_as_it_lives(
    make: Callable[[bytearray], Batch],
) -> None:
    """A bytearray cannot be resized while a batch has it, and can right after `del batch`."""
    buffer, batch = several(make)
    with pytest.raises(BufferError):
        buffer.append(0)
    with pytest.raises(BufferError):
        buffer.clear()
    assert len(batch) > 0
    del batch
    buffer.append(0)


def test_refused_batch_pins_nothing() -> None:
    """What was pinned before the refusal is let go of at once."""
    buffer = bytearray(8)
    makes: list[Callable[[], Batch]] = [
        lambda: Batch([Read(0, buffer), None]),  # type: ignore[list-item]  # wrong on purpose
        lambda: ReadMany(0, buffer, [0, 8], [4, 5]),
        lambda: ReadMany(0, [buffer, b"read-only"], [0, 8]),
        lambda: ReadMany(0, buffer, [-1]),
        lambda: WriteMany([0, 2**31], buffer, [0, 4]),
    ]
    for make in makes:
        with pytest.raises((TypeError, ValueError)):
            make()
        buffer.append(0)
        del buffer[-1]


def test_batch_keeps_temporaries() -> None:
    """Buffers that nobody else holds live as long as the batch, and no longer."""
    buffers = [Tracked(8) for _ in range(3)]
    alive = [weakref.ref(buffer) for buffer in buffers]
    batches = [
        Batch([Read(0, buffers[0])]),
        ReadMany(0, buffers[1], [0]),
        ReadMany(0, [buffers[2]], [0]),
    ]
    buffers.clear()
    assert all(ref() is not None for ref in alive)
    batches.clear()
    assert [ref() for ref in alive] == [None] * 3


def test_batch_can_be_referred_to_weakly_and_ends_without_the_collector() -> None:
    """The last reference ends a batch of any kind: it is in no cycle."""
    makes: list[Callable[[], Batch]] = [
        lambda: Batch([Accept(0, address=True), Read(0, bytearray(1))]),
        lambda: ReadMany(0, bytearray(1), [0]),
    ]
    for make in makes:
        batch: Batch | None = make()
        assert batch is not None
        alive = weakref.ref(batch)
        batch = None
        assert alive() is None


def test_closed_mmap_is_refused_while_a_batch_has_it() -> None:
    """An mmap cannot be closed under a batch."""
    room = mmap.mmap(-1, 4096)
    batch = ReadMany(0, room, range(0, 4096, 1024))
    with pytest.raises(BufferError):
        room.close()
    del batch
    room.close()


# ---- ReadMany and WriteMany: encoding ----


def expected(
    kind: type[Read | Write],
    files: Sequence[Any],
    parts: Sequence[memoryview],
    offsets: Sequence[int],
    **options: Any,
) -> bytes:
    """What the operations would be, one by one."""
    return b"".join(
        kind(file, part, offset, **options).sqe().encode()
        for file, part, offset in zip(files, parts, offsets, strict=True)
    )


def cut(buffer: bytearray, lengths: Sequence[int]) -> list[memoryview]:
    """The parts of one buffer, one after the other."""
    ends = list(itertools.accumulate(lengths, initial=0))
    view = memoryview(buffer)
    return [view[start:stop] for start, stop in itertools.pairwise(ends)]


def limits(code: str) -> tuple[int, int]:
    """The least and the greatest number of an array's typecode."""
    bits = 8 * array.array(code).itemsize
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if code.islower() else (0, 2**bits - 1)


SHAPES: Final[dict[str, Callable[[str, list[int]], Any]]] = {
    "array": array.array,
    "memoryview": lambda code, values: memoryview(array.array(code, values)),
    "readonly": lambda code, values: memoryview(array.array(code, values)).toreadonly(),
    "every other": lambda code, values: memoryview(
        array.array(code, [x for value in values for x in (value, 0)])
    )[::2],
    "backwards": lambda code, values: memoryview(array.array(code, values[::-1]))[::-1],
    "cast": lambda code, values: memoryview(array.array(code, values).tobytes()).cast(code),  # type: ignore[call-overload]  # the code is not a literal
    "list": lambda _code, values: values,
    "tuple": lambda _code, values: tuple(values),
}


@st.composite
def columns(draw: st.DrawFn, most: int) -> tuple[Any, list[int]]:
    """A column of integers in some shape, and the same as a list."""
    code = draw(st.sampled_from(FORMATS))
    high = min(limits(code)[1], most)
    values = draw(st.lists(st.integers(0, high), max_size=12))
    shape = draw(st.sampled_from(sorted(SHAPES)))
    return SHAPES[shape](code, values), values


FILES: Final = st.one_of(
    st.integers(-1, 2**31 - 1), st.integers(0, 2**31 - 1).map(Fixed), st.just(Wrapper(17))
)
OPTIONS: Final = st.fixed_dictionaries(
    {},
    optional={
        "rw_flags": st.integers(0, 2**32 - 1),
        "ioprio": st.integers(0, 2**16 - 1),
        "personality": st.integers(0, 2**16 - 1),
        "flags": st.sampled_from([SQEFlags.ASYNC, SQEFlags.IO_DRAIN, SQEFlags.ASYNC]),
    },
)


@given(st.sampled_from(sorted(MANY, key=repr)), columns(2**63 - 1), st.data(), FILES, OPTIONS)
def test_many_encodes_as_single_operations_do(
    many: type[ReadMany | WriteMany],
    column: tuple[Any, list[int]],
    data: st.DataObject,
    file: Any,
    options: dict[str, Any],
) -> None:
    """Whatever integers, files and options: the bytes are those of one Read or Write for each."""
    given_offsets, offsets = column
    count = len(offsets)
    lengths = data.draw(st.lists(st.integers(0, 127), min_size=count, max_size=count))
    code = data.draw(st.sampled_from(FORMATS))
    shape = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))]
    buffer = bytearray(sum(lengths) + data.draw(st.integers(0, 9)))
    batch = many(file, buffer, given_offsets, shape(code, lengths), **options)
    kind = MANY[many]
    assert raw(batch) == expected(kind, [file] * count, cut(buffer, lengths), offsets, **options)
    assert [op.sqe() for op in batch] == records(batch)


@given(st.lists(FILES, max_size=9), st.data())
def test_many_encodes_many_files_and_buffers(files: list[Any], data: st.DataObject) -> None:
    """Files of all kinds in one batch keep each its own number and flag, buffer and length."""
    count = len(files)
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    buffers = [bytearray(size) for size in sizes]
    lengths = data.draw(st.sampled_from([None, [size // 2 for size in sizes], 1]))
    batch = WriteMany(files, buffers, range(count), lengths)
    lent = [1] * count if isinstance(lengths, int) else lengths or sizes
    parts = [memoryview(b)[:n] for b, n in zip(buffers, lent, strict=True)]
    assert raw(batch) == expected(Write, files, parts, range(count))


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_many_reads_each_format_to_its_limit(code: str, shape: str) -> None:
    """The greatest number of each integer format, as far as the kernel takes it, arrives whole."""
    high = min(limits(code)[1], 2**63 - 1)
    values = [0, high, 1]
    batch = ReadMany(0, bytearray(3), SHAPES[shape](code, values))
    assert [record.off for record in records(batch)] == values


@pytest.mark.parametrize("code", "bhilq")
def test_many_refuses_negative_numbers_of_each_format(code: str) -> None:
    """-1 in a signed format of any size is refused as -1, not taken for a large number."""
    column = array.array(code, [0, -1])
    with pytest.raises(ValueError, match=r"part 1: offset must be 0 or more, not -1"):
        ReadMany(0, bytearray(2), column)
    with pytest.raises(ValueError, match=r"part 1: length must be in 0\.\.4294967295, not -1"):
        ReadMany(0, bytearray(2), [0, 0], column)


@pytest.mark.parametrize("code", "bBhHiIlLqQ")
def test_many_takes_descriptors_from_any_buffer(code: str) -> None:
    """A buffer of descriptors of any integer format gives each part its file."""
    batch = ReadMany(array.array(code, [3, 100, 0]), bytearray(3), range(3))
    assert [(record.fd, int(record.flags)) for record in records(batch)] == [
        (3, 0),
        (100, 0),
        (0, 0),
    ]


@pytest.mark.parametrize(
    "kind", [ctypes.c_int8, ctypes.c_uint16, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64]
)
def test_many_takes_ctypes_arrays_of_integers(kind: Any) -> None:
    """A ctypes array, whose format names the byte order, is a buffer of integers like another."""
    batch = ReadMany(0, bytearray(2), (kind * 2)(5, 100), (kind * 2)(1, 1))
    assert [record.off for record in records(batch)] == [5, 100]


def test_many_copies_the_integers() -> None:
    """Changing the columns afterwards changes nothing, and they are not pinned."""
    offsets, lengths, files = array.array("q", [0, 8]), array.array("i", [4, 4]), [3, 4]
    batch = ReadMany(files, bytearray(8), offsets, lengths)
    before = raw(batch)
    for column in (offsets, lengths):
        column[0] = 99
        column.append(1)
    files[0] = 77
    assert raw(batch) == before


def test_many_cuts_one_buffer_in_equal_parts() -> None:
    """Without lengths the parts of one buffer are equal and lie one after the other."""
    buffer = bytearray(12)
    batch = ReadMany(0, buffer, range(0, 300, 100))
    assert raw(batch) == expected(Read, [0] * 3, cut(buffer, [4, 4, 4]), range(0, 300, 100))


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(16),
        array.array("d", [0.0, 0.0]),
        memoryview(bytearray(16)).cast("B", (4, 4)),
        (ctypes.c_int * 4)(),
        (ctypes.c_char * 16)(),
        memoryview(bytearray(20))[2:18],
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_parts_show_as_operations_for_every_kind_of_buffer(buffer: Any) -> None:
    """A part of any buffer is a Read whose own encoding is that of the part."""
    batch = ReadMany(Fixed(3), buffer, [0, 7], flags=SQEFlags.ASYNC, rw_flags=1, personality=2)
    for op, record in zip(batch, records(batch), strict=True):
        assert isinstance(op, Read)
        assert op.sqe() == record
        assert (op.fd, op.flags, op.user_data) == (Fixed(3), SQEFlags.ASYNC, None)
    assert [attrs.evolve(op, fd=1).sqe().fd for op in batch[:]] == [1, 1]  # type: ignore[misc]  # they are Reads


def test_parts_show_what_they_were_made_of() -> None:
    """Emptying the list of buffers does not change what the parts show."""
    buffers = [bytearray(4) for _ in range(3)]
    kept = list(buffers)
    batch = ReadMany(0, buffers, [0, 4, 8])
    buffers.clear()
    shown = [op.sqe().addr for op in batch]
    assert shown == [_memory.writable(buffer)[1] for buffer in kept]


def test_parts_may_be_empty() -> None:
    """A part of no bytes, of one buffer or of an empty one, is encoded and shown as that."""
    for batch in (
        ReadMany(0, bytearray(4), [0, 1, 2], [4, 0, 0]),
        ReadMany(0, [bytearray(4), bytearray(), bytearray(2)], [0, 1, 2], [4, 0, 0]),
        ReadMany(0, bytearray(), [0, 1, 2], 0),
    ):
        assert [record.len for record in records(batch)][1:] == [0, 0]
        assert [len(op.buffer) for op in batch][1:] == [0, 0]  # type: ignore[attr-defined]  # they are Reads
    assert len(WriteMany(0, b"", [])) == 0
    assert len(ReadMany([], [], [], [])) == 0


def test_many_takes_gigabytes_without_an_object_each(tmp_path: Path) -> None:
    """A hundred thousand parts over a sparse map of 4 GiB are each where they should be."""
    path = tmp_path / "sparse"
    with path.open("w+b") as file:
        os.ftruncate(file.fileno(), 1 << 32)
        with mmap.mmap(file.fileno(), 1 << 32) as room:
            count, size = 1 << 16, 1 << 16
            batch = WriteMany(0, room, range(0, count * size, size))
            last = SQE.decode(raw(batch)[-64:])
            first = SQE.decode(raw(batch)[:64])
            assert last.addr - first.addr == (count - 1) * size
            assert (last.off, last.len) == ((count - 1) * size, size)
            del batch


# ---- ReadMany and WriteMany: refusals ----

EIGHT: Final = bytearray(8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0, EIGHT, 5), TypeError, "offsets must be a buffer or a sequence of integers, not int"),
        ((0, EIGHT, "ab"), TypeError, "offsets must be .*not str"),
        ((0, EIGHT, None), TypeError, "offsets must be .*not NoneType"),
        ((0, EIGHT, {0, 4}), TypeError, "offsets must be .*not set"),
        ((0, EIGHT, iter([0])), TypeError, "offsets must be .*not list_iterator"),
        ((0, EIGHT, ["a"]), TypeError, "offsets must be integers"),
        ((0, EIGHT, [1.0]), TypeError, "offsets must be integers"),
        ((0, EIGHT, [2**64]), ValueError, "offsets must be integers of 64 bits"),
        ((0, EIGHT, [2**63]), ValueError, "offset"),
        ((0, EIGHT, [-(2**63) - 1]), ValueError, "offset"),
        ((0, EIGHT, array.array("Q", [2**63])), ValueError, "part 0: offset"),
        ((0, EIGHT, array.array("d", [0.0])), TypeError, "not of format 'd'"),
        ((0, EIGHT, memoryview(b"ab").cast("c")), TypeError, "not of format 'c'"),
        ((0, EIGHT, memoryview(b"ab").cast("?")), TypeError, r"not of format '\?'"),
        ((0, EIGHT, memoryview(bytes(8)).cast("B", (2, 4))), ValueError, "one dimension, not 2"),
        ((0, EIGHT, [0, -1]), ValueError, "part 1: offset must be 0 or more, not -1"),
        ((0, EIGHT, [0, 1, 2]), ValueError, "8 bytes cannot be cut into 3 equal parts"),
        ((0, EIGHT, [0, 1], 5), ValueError, "part 1 has 5 bytes, but the buffer of 8 ends"),
        ((0, EIGHT, [0, 1], [8, 1]), ValueError, "part 1 has 1 bytes, but the buffer of 8 ends"),
        ((0, EIGHT, [0, 1], [1]), ValueError, "lengths has 1 items, and offsets 2"),
        ((0, EIGHT, [0, 1], [1, 2, 3]), ValueError, "lengths has 3 items, and offsets 2"),
        ((0, EIGHT, [0], -1), ValueError, r"lengths must be in 0\.\.4294967295, not -1"),
        ((0, EIGHT, [0], 2**32), ValueError, "lengths must be in"),
        ((0, EIGHT, [0], [2**32]), ValueError, "part 0: length must be in"),
        ((0, EIGHT, [0, 1], [2**63 - 1, 1]), ValueError, "part 0: length must be in"),
        ((0, EIGHT, [0], True), TypeError, "lengths must be"),
        ((0, EIGHT, [0], 1.0), TypeError, "lengths must be"),
        ((0, EIGHT, [0], [1.5]), TypeError, "lengths must be integers"),
        ((0, [EIGHT], [0, 1]), ValueError, "buffer has 1 items, and offsets 2"),
        ((0, [EIGHT, EIGHT], [0, 1], 9), ValueError, "part 0 has 9 bytes, but its buffer has 8"),
        ((0, [EIGHT, EIGHT], [0, 1], [8, 9]), ValueError, "part 1 has 9 bytes, but its buffer"),
        ((0, [EIGHT, None], [0, 1]), TypeError, "must be a writable bytes-like object"),
        ((0, [EIGHT, b"x"], [0, 1]), TypeError, "read-only bytes"),
        ((0, b"12345678", [0]), TypeError, "read-only bytes"),
        ((0, "12345678", [0]), TypeError, "a buffer or a sequence of buffers, not str"),
        ((0, None, [0]), TypeError, "a buffer or a sequence of buffers, not NoneType"),
        ((0, memoryview(bytearray(16))[::2], [0]), ValueError, "C-contiguous"),
        (([0], EIGHT, [0, 1]), ValueError, "fd has 1 items, and offsets 2"),
        ((array.array("i", [0] * 3), EIGHT, [0, 1]), ValueError, "fd has 3 items, and offsets 2"),
        (([0, 2**31], EIGHT, [0, 1]), ValueError, "part 1: 2147483648 is no descriptor"),
        (([0, 2**64], EIGHT, [0, 1]), ValueError, "fd must be"),
        (([0, True], EIGHT, [0, 1]), TypeError, "not True"),
        (([0, None], EIGHT, [0, 1]), TypeError, "not NoneType"),
        (([0, Wrapper(-1)], EIGHT, [0, 1]), ValueError, "is closed"),
        (("0", EIGHT, [0]), TypeError, "not str"),
        ((None, EIGHT, [0]), TypeError, "not NoneType"),
        ((True, EIGHT, [0]), TypeError, "not True"),
        ((1.0, EIGHT, [0]), TypeError, "not float"),
        ((2**31, EIGHT, [0]), ValueError, "fd must be in"),
        ((Wrapper("3"), EIGHT, [0]), TypeError, "not an integer"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_many_refuses_wrong_columns(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    """What is of the wrong kind or does not fit is refused, and the message names the place."""
    with pytest.raises(error, match=words):
        ReadMany(*arguments)


@pytest.mark.parametrize(
    "flags", [SQEFlags.IO_LINK, SQEFlags.IO_HARDLINK, SQEFlags.CQE_SKIP_SUCCESS]
)
def test_many_refuses_flags_that_bind_parts(flags: SQEFlags) -> None:
    """Links and silence are refused: the parts are independent, and each has its result."""
    for many in MANY:
        with pytest.raises(ValueError, match="the parts are independent"):
            many(0, bytearray(1), [0], flags=flags | SQEFlags.ASYNC)


@pytest.mark.parametrize("name", ["rw_flags", "ioprio", "personality"])
def test_many_refuses_options_that_do_not_fit(name: str) -> None:
    """An option that does not fit in its field is refused by its name."""
    options: dict[str, Any] = {name: 2**32}
    with pytest.raises(ValueError, match="must be in"):
        ReadMany(0, bytearray(1), [0], **options)


class Liar(list[Any]):
    """A list whose length is not that of what it gives."""

    def __len__(self) -> int:
        return 1000


def test_many_believes_no_length_that_is_not_there() -> None:
    """A sequence that says 1000 and gives one is refused: no part has an address of its own."""
    with pytest.raises(ValueError, match="buffer has 1 items, and offsets 1000"):
        ReadMany(0, Liar([bytearray(8)]), range(1000), 0)
    with pytest.raises(ValueError, match="fd has 1 items, and offsets 1000"):
        ReadMany(Liar([0]), bytearray(1000), range(1000))
    with pytest.raises(ValueError, match="lengths has 1 items, and offsets 1000"):
        ReadMany(0, bytearray(1000), range(1000), Liar([1]))
    assert len(ReadMany(0, bytearray(1), Liar([0]))) == 1


@pytest.mark.parametrize("kind", [uring.Batch, uring.ReadMany, uring.WriteMany])
def test_batch_refuses_to_be_set_up_again(kind: Any) -> None:
    """A second __init__ would drop pins that a run needs: TypeError, and the pins stay."""
    buffer = bytearray(8)
    args = ([Read(0, buffer)],) if kind is uring.Batch else (0, buffer, [0])
    batch = kind(*args)
    with pytest.raises(TypeError, match="immutable"):
        batch.__init__(*args)
    with pytest.raises(BufferError):
        buffer.append(0)
