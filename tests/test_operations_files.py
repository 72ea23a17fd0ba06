"""Reading, writing, syncing and laying out files, registered buffers and pipes, on this kernel."""

import ctypes
import errno
import gc
import mmap
import os
import struct
import weakref
from collections.abc import Callable
from typing import Any, Final

import pytest
from shared import Wrapper, assert_refused

import uring
from uring import AUTO, SQE, Fixed, FixedBuffer, Opcode, SQEFlags
from uring._leases import Lease
from uring.file_flags import FallocateFlags, MadviseAdvice, SyncFileRangeFlags

SECONDS: Final = 10  # the end of a wait that should not take any time: a failure, not a hang
PAGE: Final = mmap.PAGESIZE
NORESERVE: Final = 0x4000  # MAP_NORESERVE, which mmap has from Python 3.13
ALL_ONES: Final = 2**64 - 1
GROUP: Final = 7
REGISTERED: Final = 3  # the index of the registered buffer in the tests below
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

Ends = tuple[int, int]


def encoded(op: uring.Operation) -> tuple[SQE, Any]:
    """The record of an operation, and what keeps the memory that it points to."""
    record, pins = op._encode()
    return SQE.decode(record), pins


def address_of(buffer: Any) -> int:
    """Where writable memory lies; it must stay alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def vectors(address: int, count: int) -> list[tuple[int, int]]:
    """Read an array of struct iovec."""
    return list(struct.iter_unpack("NN", ctypes.string_at(address, 16 * count)))


class SomeGroup:
    """A group of provided buffers, as far as an operation looks at it."""

    bgid = GROUP


@pytest.fixture
def memory(ring: uring.Ring) -> memoryview:
    """Give four pages, the ring's registered buffer REGISTERED; those before it are empty."""
    view = memoryview(mmap.mmap(-1, 4 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    parts = [0] * (2 * REGISTERED) + [address_of(view), len(view)]
    array = struct.pack(f"{len(parts)}N", *parts)
    done = _LIBC.syscall(427, ring.fd, 0, ctypes.c_char_p(array), REGISTERED + 1)
    assert done == 0, os.strerror(ctypes.get_errno())
    return view


@pytest.fixture
def provided(drive: Any) -> bytearray:
    """Give the memory of GROUP, which has four buffers of eight bytes."""
    buffers = bytearray(32)
    provide = SQE(
        Opcode.PROVIDE_BUFFERS, fd=4, addr=address_of(buffers), len=8, buf_index=GROUP, user_data=1
    )
    assert drive.one(provide).res == 0
    return buffers


# ---- the records ----

SIMPLE: Final[list[tuple[uring.Operation, SQE]]] = [
    (uring.Fsync(5), SQE(Opcode.FSYNC, fd=5)),
    (uring.Fsync(5, datasync=True), SQE(Opcode.FSYNC, fd=5, op_flags=1)),
    (uring.Fsync(5, offset=7, length=9), SQE(Opcode.FSYNC, fd=5, off=7, len=9)),
    (
        uring.SyncFileRange(5, offset=2**40, length=9),
        SQE(Opcode.SYNC_FILE_RANGE, fd=5, off=2**40, len=9, op_flags=7),
    ),
    *(
        (
            uring.SyncFileRange(5, sync_range_flags=flag),
            SQE(Opcode.SYNC_FILE_RANGE, fd=5, op_flags=int(flag)),
        )
        for flag in SyncFileRangeFlags
    ),
    # fallocate(fd, mode, offset, len): mode in `len`, the length in `addr`
    (
        uring.Fallocate(5, offset=7, length=2**40),
        SQE(Opcode.FALLOCATE, fd=5, off=7, addr=2**40),
    ),
    *(
        (
            uring.Fallocate(5, length=9, mode=mode),
            SQE(Opcode.FALLOCATE, fd=5, addr=9, len=int(mode)),
        )
        for mode in FallocateFlags
    ),
    (uring.Ftruncate(5, 2**40), SQE(Opcode.FTRUNCATE, fd=5, off=2**40)),
    (
        uring.Fadvise(5, os.POSIX_FADV_DONTNEED, offset=7, length=9),
        SQE(Opcode.FADVISE, fd=5, off=7, len=9, op_flags=4),
    ),
    (uring.Fadvise(5, 3, length=2**32 - 1), SQE(Opcode.FADVISE, fd=5, len=2**32 - 1, op_flags=3)),
    (uring.Fadvise(5, 3, length=2**32), SQE(Opcode.FADVISE, fd=5, addr=2**32, op_flags=3)),
    (
        uring.ReadSelect(5, 9, length=11, offset=13, rw_flags=8, ioprio=17),
        SQE(
            Opcode.READ,
            SQEFlags.BUFFER_SELECT,
            ioprio=17,
            fd=5,
            off=13,
            len=11,
            op_flags=8,
            buf_index=9,
        ),
    ),
    (
        uring.ReadSelect(5, SomeGroup(), offset=-1),
        SQE(Opcode.READ, SQEFlags.BUFFER_SELECT, fd=5, off=ALL_ONES, buf_index=GROUP),
    ),
    (
        uring.ReadMultishot(5, 9, offset=-1, rw_flags=8, ioprio=17),
        SQE(
            Opcode.READ_MULTISHOT,
            SQEFlags.BUFFER_SELECT,
            ioprio=17,
            fd=5,
            off=ALL_ONES,
            op_flags=8,
            buf_index=9,
        ),
    ),
    (
        uring.ReadMultishot(5, SomeGroup(), length=11),
        SQE(Opcode.READ_MULTISHOT, SQEFlags.BUFFER_SELECT, fd=5, len=11, buf_index=GROUP),
    ),
    (
        uring.Splice(fd_in=5, fd_out=6, length=7),
        SQE(Opcode.SPLICE, fd=6, off=ALL_ONES, addr=ALL_ONES, len=7, splice_fd_in=5),
    ),
    (
        uring.Splice(fd_in=5, fd_out=6, length=7, off_in=8, off_out=9, splice_flags=7),
        SQE(Opcode.SPLICE, fd=6, off=9, addr=8, len=7, op_flags=7, splice_fd_in=5),
    ),
    (
        uring.Splice(fd_in=Fixed(5), fd_out=6, length=7, off_in=8, off_out=9, splice_flags=1),
        SQE(Opcode.SPLICE, fd=6, off=9, addr=8, len=7, op_flags=0x80000001, splice_fd_in=5),
    ),
    (
        uring.Splice(fd_in=-1, fd_out=Fixed(6), length=7, off_in=8, off_out=9),
        SQE(Opcode.SPLICE, SQEFlags.FIXED_FILE, fd=6, off=9, addr=8, len=7, splice_fd_in=2**32 - 1),
    ),
    (
        uring.Tee(fd_in=Wrapper(5), fd_out=Wrapper(6), length=7, splice_flags=2),
        SQE(Opcode.TEE, fd=6, len=7, op_flags=2, splice_fd_in=5),
    ),
    (
        uring.Tee(fd_in=Fixed(5), fd_out=Fixed(6), length=7),
        SQE(Opcode.TEE, SQEFlags.FIXED_FILE, fd=6, len=7, op_flags=0x80000000, splice_fd_in=5),
    ),
]


@pytest.mark.parametrize(("op", "expected"), SIMPLE, ids=repr)
def test_record_has_each_argument_in_its_field(op: uring.Operation, expected: SQE) -> None:
    """Every field of the record is what the man page says, and what is not named is 0."""
    assert op.sqe() == expected


@pytest.mark.parametrize(
    ("op", "flags", "file"),
    [
        (uring.Pipe(), os.O_CLOEXEC, 0),
        (uring.Pipe(cloexec=False), 0, 0),
        (uring.Pipe(os.O_NONBLOCK | os.O_DIRECT), os.O_NONBLOCK | os.O_DIRECT | os.O_CLOEXEC, 0),
        (uring.Pipe(slot=Fixed(4)), 0, 5),
        (uring.Pipe(os.O_NONBLOCK, slot=AUTO), os.O_NONBLOCK, 2**32 - 1),
        (uring.Pipe(os.O_CLOEXEC, slot=Fixed(0)), os.O_CLOEXEC, 1),
    ],
    ids=repr,
)
def test_pipe_record_points_at_room_for_two_numbers(op: uring.Pipe, flags: int, file: int) -> None:
    """`addr` is the room that the result is read from; no O_CLOEXEC of ours with a slot."""
    record, room = encoded(op)
    assert record == SQE(Opcode.PIPE, addr=room.address, op_flags=flags, splice_fd_in=file)
    ctypes.memmove(room.address, struct.pack("=ii", 40, 41), 8)
    assert room.decode() == (40, 41)


@pytest.mark.parametrize(
    ("kind", "opcode"),
    [(uring.ReadFixed, Opcode.READ_FIXED), (uring.WriteFixed, Opcode.WRITE_FIXED)],
)
def test_fixed_record_has_the_memory_and_the_index(kind: Any, opcode: Opcode) -> None:
    """Address and length of the part, in `buf_index` the registered buffer."""
    buffer = bytearray(10)
    part = memoryview(buffer)[2:7]
    expected = SQE(
        opcode, ioprio=4, fd=5, off=13, addr=address_of(buffer) + 2, len=5, op_flags=2, buf_index=9
    )
    assert kind(5, part, 13, buf_index=9, rw_flags=2, ioprio=4).sqe() == expected
    assert kind(5, FixedBuffer(part, 9), 13, rw_flags=2, ioprio=4).sqe() == expected
    assert kind(5, FixedBuffer(part, 9), -1, buf_index=9).sqe().off == ALL_ONES


@pytest.mark.parametrize(
    ("kind", "opcode"),
    [(uring.ReadvFixed, Opcode.READV_FIXED), (uring.WritevFixed, Opcode.WRITEV_FIXED)],
)
def test_vectored_fixed_record_has_the_parts_and_the_index(kind: Any, opcode: Opcode) -> None:
    """`addr` is an array of struct iovec, `len` their count, `buf_index` the buffer."""
    buffer = bytearray(10)
    view = memoryview(buffer)
    for parts, index in (
        ([view[2:7], view[8:]], 9),
        ([FixedBuffer(view[2:7], 9), FixedBuffer(view[8:], 9)], None),
        ([FixedBuffer(view, 9)[2:7], view[8:]], 9),
    ):
        op = kind(5, parts, 13, buf_index=index, rw_flags=2, ioprio=4)
        record, _pins = encoded(op)
        start = address_of(buffer)
        assert vectors(record.addr, 2) == [(start + 2, 5), (start + 8, 2)]
        expected = SQE(
            opcode,
            ioprio=4,
            fd=5,
            off=13,
            addr=record.addr,
            len=2,
            op_flags=2,
            buf_index=9,
        )
        assert record == expected
    assert kind(5, [], buf_index=9).sqe().buf_index == 9
    assert kind(5, []).sqe().len == 0


@pytest.mark.parametrize("kind", [uring.WriteFixed, uring.Writev, uring.WritevFixed])
def test_write_stream_is_the_first_byte_of_its_word(kind: Any) -> None:
    """`write_stream` is a byte where others have splice_fd_in, whatever the byte order."""
    options = {} if kind is uring.Writev else {"buf_index": 0}
    buffer: Any = b"x" if kind is uring.WriteFixed else [b"x"]
    record = kind(5, buffer, write_stream=200, **options).sqe().encode()
    assert record[44:48] == bytes([200, 0, 0, 0])
    for wrong in (-1, 256, "1", None):
        with pytest.raises((TypeError, ValueError), match="write_stream"):
            kind(5, buffer, write_stream=wrong, **options).sqe()


@pytest.mark.parametrize("advice", MadviseAdvice, ids=repr)
def test_madvise_record_has_the_memory_and_the_advice(advice: MadviseAdvice) -> None:
    """Address and length of the buffer, and the advice, by either name of it."""
    memory = mmap.mmap(-1, 2 * PAGE)
    expected = SQE(Opcode.MADVISE, addr=address_of(memory), len=2 * PAGE, op_flags=int(advice))
    assert uring.Madvise(memory, advice).sqe() == expected
    assert uring.Madvise(memory, int(advice)).sqe() == expected


def test_madvise_of_more_than_32_bits_has_its_length_in_off() -> None:
    """A length that `len` cannot hold is given in 64 bits, and not cut off."""
    memory = mmap.mmap(-1, 2**32, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    record = uring.Madvise(memory, MadviseAdvice.DONTNEED).sqe()
    assert (record.len, record.off) == (0, 2**32)


WRONG: Final[list[Any]] = [
    lambda: uring.ReadFixed(0, bytearray(4)),
    lambda: uring.ReadFixed(0, bytearray(4), buf_index=2**16),
    lambda: uring.ReadFixed(0, bytearray(4), buf_index="0"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.ReadFixed(0, b"read-only", buf_index=0),
    lambda: uring.ReadFixed(0, FixedBuffer(memoryview(b"read-only"), 0)),
    lambda: uring.ReadFixed(0, FixedBuffer(memoryview(bytearray(4)), 0), buf_index=1),
    lambda: uring.ReadFixed(0, bytearray(4), -2, buf_index=0),
    lambda: uring.WriteFixed(0, "text", buf_index=0),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.ReadvFixed(0, bytearray(4), buf_index=0),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.ReadvFixed(0, FixedBuffer(memoryview(bytearray(4)), 0)),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.ReadvFixed(0, [bytearray(4)]),
    lambda: uring.ReadvFixed(0, None, buf_index=0),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.ReadvFixed(0, [b"read-only"], buf_index=0),
    lambda: uring.WritevFixed(0, [b""] * 1025, buf_index=0),
    lambda: uring.WritevFixed(0, [FixedBuffer(memoryview(b"x"), index) for index in (0, 1)]),
    lambda: uring.ReadSelect(0, None),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.ReadSelect(0, 2**16),
    lambda: uring.ReadSelect(0, -1),
    lambda: uring.ReadSelect(0, 1, length=2**32),
    lambda: uring.ReadSelect(0, 1, length=-1),
    lambda: uring.ReadSelect(0, 1, offset=-2),
    lambda: uring.ReadMultishot(0, "1"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.ReadMultishot(0, 1, length=2**32),
    lambda: uring.Fsync(0, offset=4096),
    lambda: uring.Fsync(0, offset=-1, length=1),
    lambda: uring.Fsync(0, length=2**32),
    lambda: uring.Fsync(0, length=None),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.SyncFileRange(0, length=2**32),
    lambda: uring.SyncFileRange(0, offset=-1),
    lambda: uring.SyncFileRange(0, sync_range_flags="WRITE"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Fallocate(0, length=2**64),
    lambda: uring.Fallocate(0, length=-1),
    lambda: uring.Fallocate(0, length=1, mode=None),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Ftruncate(0, -1),
    lambda: uring.Ftruncate(0, 2**64),
    lambda: uring.Ftruncate(0, "1"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Fadvise(0, -1),
    lambda: uring.Fadvise(0, 0, length=-1),
    lambda: uring.Fadvise(0, 0, length=2**64),
    lambda: uring.Fadvise(0, 0, length="1"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Madvise("text", 0),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Madvise(bytearray(4), "DONTNEED"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Splice(fd_in=0, fd_out=0, length=2**32),
    lambda: uring.Splice(fd_in=0, fd_out=0, length=-1),
    lambda: uring.Splice(fd_in=2**31, fd_out=0, length=1),
    lambda: uring.Splice(fd_in=-(2**31) - 1, fd_out=0, length=1),
    lambda: uring.Splice(fd_in=0, fd_out=2**31, length=1),
    lambda: uring.Splice(fd_in="0", fd_out=0, length=1),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Splice(fd_in=0, fd_out=None, length=1),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Splice(fd_in=0, fd_out=0, length=1, off_in=-2),
    lambda: uring.Splice(fd_in=0, fd_out=0, length=1, off_out=2**64),
    lambda: uring.Splice(fd_in=0, fd_out=0, length=1, off_out=None),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Splice(fd_in=0, fd_out=0, length=1, splice_flags="MORE"),  # type: ignore[arg-type]  # wrong on purpose
    # it would make a slot of the number 0
    lambda: uring.Splice(fd_in=0, fd_out=0, length=1, splice_flags=0x80000000),
    lambda: uring.Tee(fd_in=0, fd_out=0, length=1, splice_flags=0x80000002),
    lambda: uring.Pipe("O_NONBLOCK"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Pipe(slot=3),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Close(AUTO),  # type: ignore[arg-type]  # wrong on purpose
]


@pytest.mark.parametrize("make", WRONG)
def test_wrong_arguments_are_refused_and_nothing_is_queued(ring: uring.Ring, make: Any) -> None:
    """TypeError or ValueError before any C runs, alone and in a batch; the ring is as it was."""
    assert_refused(ring, make())


@pytest.mark.parametrize("kind", [uring.ReadFixed, uring.WriteFixed])
def test_fixed_without_an_index_says_what_to_do(kind: Any) -> None:
    """Plain memory alone does not say which registered buffer it is in: the message asks."""
    with pytest.raises(TypeError, match="buf_index, or a FixedBuffer"):
        kind(0, bytearray(4)).sqe()


# ---- registered buffers ----


def test_fixed_read_and_write_move_bytes(drive: Any, file: int, memory: memoryview) -> None:
    """They read into and write from the registered memory, at the offset."""
    read = uring.ReadFixed(file, memory[100:104], 3, buf_index=REGISTERED)
    assert drive.one(read).result() == 4
    assert memory[100:104] == b"3456"
    part = FixedBuffer(memory, REGISTERED)[101:103]
    assert drive.one(uring.WriteFixed(file, part, 8)).result() == 2
    assert os.pread(file, 100, 0) == b"0123456745"
    assert drive.one(uring.ReadFixed(file, part, 10)).result() == 0


def test_vectored_fixed_read_and_write_move_bytes(
    drive: Any, file: int, memory: memoryview
) -> None:
    """Parts are filled and written in order; without any, nothing moves."""
    whole = FixedBuffer(memory, REGISTERED)
    parts = [whole[PAGE - 2 : PAGE + 1], whole[:0], whole[:4]]
    assert drive.one(uring.ReadvFixed(file, parts, 1)).result() == 7
    assert bytes(memory[PAGE - 2 : PAGE + 1]) + bytes(memory[:4]) == b"1234567"
    assert drive.one(uring.WritevFixed(file, parts[::-1], 0)).result() == 7
    assert os.pread(file, 100, 0) == b"4567123789"
    for nothing in ([], [whole[:0], whole[:0]]):
        op = uring.ReadvFixed(file, nothing, buf_index=REGISTERED)
        assert drive.one(op).result() == 0


def test_fixed_with_offset_minus_one_moves_the_position(
    drive: Any, file: int, memory: memoryview
) -> None:
    """The file's own position is used and moved."""
    part = FixedBuffer(memory, REGISTERED)[:4]
    os.lseek(file, 2, os.SEEK_SET)
    assert drive.one(uring.ReadFixed(file, part, -1)).result() == 4
    assert drive.one(uring.WritevFixed(file, [part[:2]], -1)).result() == 2
    assert os.lseek(file, 0, os.SEEK_CUR) == 8
    assert os.pread(file, 100, 0) == b"0123452389"


@pytest.mark.parametrize("kind", [uring.ReadFixed, uring.WriteFixed])
def test_fixed_takes_flags_and_a_registered_file(
    ring: uring.Ring, drive: Any, file: int, memory: memoryview, kind: Any
) -> None:
    """`rw_flags` and `ioprio` reach the kernel, and Fixed(i) is a file."""
    ring.register_files([-1, file])
    part = FixedBuffer(memory, REGISTERED)[:4]
    vectored = uring.ReadvFixed if kind is uring.ReadFixed else uring.WritevFixed
    best_effort = 2 << 13 | 4
    assert drive.one(kind(Fixed(1), part, ioprio=best_effort)).result() == 4
    assert drive.one(vectored(Fixed(1), [part], ioprio=best_effort)).result() == 4
    for op in (kind(file, part, rw_flags=1 << 30), vectored(file, [part], rw_flags=1 << 30)):
        drive.fails(op, errno.EOPNOTSUPP)
    for op in (kind(file, part, ioprio=7 << 13), vectored(file, [part], ioprio=7 << 13)):
        drive.fails(op, errno.EINVAL)
    drive.fails(kind(Fixed(0), part), errno.EBADF)


def test_fixed_outside_of_the_registered_buffer_is_efault(
    drive: Any, file: int, memory: memoryview
) -> None:
    """Other memory, a wrong index and an index out of range are EFAULT."""
    assert len(memory) == 4 * PAGE
    other = bytearray(4)
    drive.fails(uring.ReadFixed(file, other, buf_index=REGISTERED), errno.EFAULT)
    drive.fails(uring.WriteFixed(file, other, buf_index=REGISTERED), errno.EFAULT)
    drive.fails(uring.ReadvFixed(file, [other], buf_index=REGISTERED), errno.EFAULT)
    drive.fails(uring.WritevFixed(file, [other], buf_index=REGISTERED), errno.EFAULT)
    drive.fails(uring.ReadFixed(file, memory[:4], buf_index=0), errno.EFAULT)
    drive.fails(uring.ReadvFixed(file, [memory[:4]], buf_index=9), errno.EFAULT)
    assert other == bytes(4)


def test_fixed_without_registered_buffers_is_efault(drive: Any, file: int) -> None:
    """When nothing is registered, every index is wrong."""
    drive.fails(uring.ReadFixed(file, bytearray(4), buf_index=0), errno.EFAULT)


@pytest.mark.parametrize("kind", [uring.ReadFixed, uring.ReadvFixed])
def test_fixed_keeps_the_memory_while_in_flight(
    ring: uring.Ring, drive: Any, pipe: Ends, memory: memoryview, kind: Any
) -> None:
    """A part that nobody else holds any more is filled, and its mmap cannot be closed before."""
    mapping = memory.obj
    assert isinstance(mapping, mmap.mmap)
    part = memory[:4]
    op = kind(pipe[0], part if kind is uring.ReadFixed else [part], buf_index=REGISTERED)
    number = ring.queue(op)
    ring.submit()
    memory.release()
    del op, part
    gc.collect()
    with pytest.raises(BufferError):
        mapping.close()
    os.write(pipe[1], b"abcd")
    assert drive.collect([number])[0].result() == 4
    assert mapping[:4] == b"abcd"


def test_writev_with_a_write_stream_is_written(drive: Any, file: int) -> None:
    """A file that has no streams takes no notice of the number."""
    assert drive.one(uring.Writev(file, [b"ab", b"c"], 1, write_stream=1)).result() == 3
    assert os.pread(file, 5, 0) == b"0abc4"


# ---- provided buffers ----


def test_read_select_reads_into_a_buffer_of_the_group(
    drive: Any, file: int, provided: bytearray
) -> None:
    """At most `length` bytes, at most the buffer, in the buffer that the completion names."""
    expected = {0: b"01234567", 3: b"012", 100: b"01234567"}
    for length, content in expected.items():
        cqe = drive.one(uring.ReadSelect(file, GROUP, length=length))
        assert cqe.result() == len(content)
        assert cqe.buffer_id is not None
        assert bytes(provided[8 * cqe.buffer_id :][: len(content)]) == content
    last = drive.one(uring.ReadSelect(file, SomeGroup(), offset=9))
    assert (last.result(), last.buffer_id) == (1, 3)
    error = drive.fails(uring.ReadSelect(file, GROUP), errno.ENOBUFS)
    assert error.filename is None


def test_read_select_at_the_end_of_a_file_and_of_a_pipe(
    drive: Any, file: int, pipe: Ends, provided: bytearray
) -> None:
    """The end is 0, and takes a buffer, on a file as on a pipe."""
    assert len(provided) == 32
    at_end = drive.one(uring.ReadSelect(file, GROUP, offset=10))
    assert (at_end.result(), at_end.buffer_id) == (0, 0)
    os.close(pipe[1])
    at_end = drive.one(uring.ReadSelect(pipe[0], GROUP))
    assert (at_end.result(), at_end.buffer_id) == (0, 1)


def test_read_select_with_a_registered_file_and_a_wrong_group(
    ring: uring.Ring, drive: Any, file: int, provided: bytearray
) -> None:
    """Fixed(i) is a file; a group that is not there is ENOBUFS, a closed file EBADF."""
    assert len(provided) == 32
    ring.register_files([file])
    assert drive.one(uring.ReadSelect(Fixed(0), GROUP)).result() == 8
    drive.fails(uring.ReadSelect(file, GROUP + 1), errno.ENOBUFS)
    drive.fails(uring.ReadSelect(9999, GROUP), errno.EBADF)


def test_read_multishot_reads_until_the_end(
    ring: uring.Ring, pipe: Ends, provided: bytearray
) -> None:
    """Each piece is a completion with MORE and a buffer; the end is 0 with neither."""
    number = ring.queue(uring.ReadMultishot(pipe[0], GROUP))
    ring.submit()
    os.write(pipe[1], b"0123456789")
    seen = b""
    for piece in (b"01234567", b"89"):
        cqe = ring.copy_cqe(timeout=SECONDS)
        assert (cqe.user_data, cqe.result(), cqe.more) == (number, len(piece), True)
        assert cqe.buffer_id is not None
        seen += provided[8 * cqe.buffer_id :][: len(piece)]
    assert seen == b"0123456789"
    assert ring.in_flight == 1
    os.close(pipe[1])
    last = ring.copy_cqe(timeout=SECONDS)
    assert (last.result(), last.more, last.buffer_id) == (0, False, None)
    assert ring.in_flight == 0


def test_read_multishot_ends_when_the_group_is_empty(
    ring: uring.Ring, pipe: Ends, provided: bytearray
) -> None:
    """After the last buffer comes ENOBUFS, which is terminal, and the rest stays in the pipe."""
    os.write(pipe[1], bytes(40))
    ring.queue(uring.ReadMultishot(pipe[0], GROUP))
    ring.submit()
    cqes = [ring.copy_cqe(timeout=SECONDS) for _ in range(5)]
    assert [cqe.res for cqe in cqes] == [8, 8, 8, 8, -errno.ENOBUFS]
    assert [cqe.more for cqe in cqes] == [True, True, True, True, False]
    assert ring.in_flight == 0
    assert len(os.read(pipe[0], 100)) == 40 - len(provided)


def test_read_multishot_takes_no_length_and_no_file_of_a_disk(
    ring: uring.Ring, drive: Any, pipe: Ends, file: int, provided: bytearray
) -> None:
    """This kernel refuses a length; what cannot be polled is EBADFD; SomeGroup() is a group."""
    assert len(provided) == 32
    drive.fails(uring.ReadMultishot(pipe[0], GROUP, length=4), errno.EINVAL)
    drive.fails(uring.ReadMultishot(file, SomeGroup()), errno.EBADFD)
    ring.register_files([pipe[0]])
    os.write(pipe[1], b"x")
    os.close(pipe[1])
    ring.queue(uring.ReadMultishot(Fixed(0), SomeGroup()))
    ring.submit()
    assert [ring.copy_cqe(timeout=SECONDS).res for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("kind", [uring.ReadSelect, uring.ReadMultishot])
def test_the_end_of_a_pipe_is_an_empty_lease(
    ring: uring.Ring, drive: Any, pipe: Ends, kind: type[uring.ReadSelect | uring.ReadMultishot]
) -> None:
    """As the end of a stream is for a receive, so that a loop may treat every result alike."""
    os.close(pipe[1])
    with (
        ring.register_buffer_ring(2, size=16) as group,
        drive.one(kind(pipe[0], group)).result() as end,
    ):
        assert isinstance(end, uring.Lease)
        assert bytes(end) == b""


def test_read_multishot_is_refused_in_a_batch() -> None:
    """A run has one result for each operation, so what has many is refused."""
    with pytest.raises(ValueError, match="multishot"):
        uring.Batch([uring.ReadMultishot(0, GROUP)])


@pytest.mark.parametrize("kind", [uring.ReadSelect, uring.ReadMultishot])
def test_read_into_a_group_gives_the_lease_when_there_is_one(kind: Any) -> None:
    """The result is the Lease that the ring found, and the count when it has none."""
    group = SomeGroup()
    op, lease = kind(0, group), Lease.__new__(Lease)
    assert op._encode()[1] is group  # which the ring goes by
    assert kind(0, GROUP)._encode()[1] is None
    assert op._result(5, lease, 0) is lease
    assert op._result(5, SomeGroup(), 0) == 5
    assert op._result(5, None, 0) == 5


@pytest.mark.parametrize("kind", [uring.ReadSelect, uring.ReadMultishot])
def test_read_into_a_group_keeps_the_group_while_in_flight(
    ring: uring.Ring, drive: Any, pipe: Ends, kind: Any
) -> None:
    """The object lives until the completion was copied out, and no longer."""
    group = SomeGroup()
    alive = weakref.ref(group)
    number = ring.queue(kind(pipe[0], group))
    ring.submit()
    del group
    gc.collect()
    assert alive() is not None
    os.close(pipe[1])
    assert drive.collect([number])[0].res in {0, -errno.ENOBUFS}
    gc.collect()
    assert alive() is None


# ---- syncing, space, advice ----


@pytest.mark.parametrize(
    "make",
    [
        lambda fd: uring.Fsync(fd, offset=4096, length=100),
        lambda fd: uring.Fsync(fd, datasync=True, length=10),
        lambda fd: uring.SyncFileRange(fd, offset=4096),
        lambda fd: uring.Fallocate(fd, length=10),
        lambda fd: uring.Ftruncate(fd, 5),
        lambda fd: uring.Fadvise(fd, os.POSIX_FADV_WILLNEED),
    ],
)
def test_operation_on_a_file_succeeds_and_fails_as_the_os_does(
    ring: uring.Ring, drive: Any, file: int, make: Any
) -> None:
    """0 on a file and on a registered one; EBADF on a closed number and on an empty slot."""
    ring.register_files([file, -1])
    for fd in (file, Wrapper(file), Fixed(0)):
        assert drive.one(make(fd)).result() == 0
    drive.fails(make(9999), errno.EBADF)
    drive.fails(make(Fixed(1)), errno.EBADF)


def test_sync_file_range_refuses_a_pipe_and_unknown_flags(
    drive: Any, file: int, pipe: Ends
) -> None:
    """A pipe is ESPIPE, a flag that there is not EINVAL; every combination of the three is 0."""
    drive.fails(uring.SyncFileRange(pipe[0]), errno.ESPIPE)
    wrong = uring.SyncFileRange(file, sync_range_flags=SyncFileRangeFlags(8))
    drive.fails(wrong, errno.EINVAL)
    for flags in range(8):
        op = uring.SyncFileRange(file, sync_range_flags=SyncFileRangeFlags(flags))
        assert drive.one(op).result() == 0


def test_fallocate_allocates_punches_and_keeps_the_size(drive: Any, file: int) -> None:
    """Without a mode the file grows; with KEEP_SIZE it does not; PUNCH_HOLE leaves zeros."""
    assert drive.one(uring.Fallocate(file, offset=5, length=10)).result() == 0
    assert os.fstat(file).st_size == 15
    keep = FallocateFlags.KEEP_SIZE
    assert drive.one(uring.Fallocate(file, offset=0, length=10**6, mode=keep)).result() == 0
    assert os.fstat(file).st_size == 15
    assert os.fstat(file).st_blocks * 512 >= 10**6
    punch = FallocateFlags.PUNCH_HOLE | keep
    assert drive.one(uring.Fallocate(file, offset=2, length=3, mode=punch)).result() == 0
    assert os.pread(file, 10, 0) == b"01\0\0\x0056789"


def test_fallocate_fails_as_the_os_does(drive: Any, file: int, pipe: Ends) -> None:
    """No length and a hole that changes the size are refused, and so is a pipe."""
    drive.fails(uring.Fallocate(file, length=0), errno.EINVAL)
    drive.fails(uring.Fallocate(file, length=2**63), errno.EINVAL)
    punch = uring.Fallocate(file, length=1, mode=FallocateFlags.PUNCH_HOLE)
    drive.fails(punch, errno.EOPNOTSUPP)
    drive.fails(uring.Fallocate(pipe[1], length=1), errno.ESPIPE)


def test_ftruncate_sets_the_size(drive: Any, file: int, pipe: Ends) -> None:
    """Shorter, then longer with zeros; a size over 63 bits and a pipe are EINVAL."""
    assert drive.one(uring.Ftruncate(file, 3)).result() == 0
    assert drive.one(uring.Ftruncate(file, 5)).result() == 0
    assert os.pread(file, 10, 0) == b"012\0\0"
    drive.fails(uring.Ftruncate(file, 2**63), errno.EINVAL)
    drive.fails(uring.Ftruncate(pipe[1], 0), errno.EINVAL)


def test_fadvise_takes_every_advice_and_length(drive: Any, file: int, pipe: Ends) -> None:
    """Each of the six is taken, over any length; others are EINVAL, a pipe ESPIPE."""
    advices = [getattr(os, name) for name in dir(os) if name.startswith("POSIX_FADV_")]
    assert len(advices) == 6
    for advice in advices:
        for length in (0, 5, 2**32, 2**62):
            assert drive.one(uring.Fadvise(file, advice, length=length)).result() == 0
    drive.fails(uring.Fadvise(file, 99), errno.EINVAL)
    drive.fails(uring.Fadvise(pipe[0], 0), errno.ESPIPE)


def private(pages: int) -> mmap.mmap:
    """Pages full of x."""
    memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"x" * len(memory)
    return memory


@pytest.mark.parametrize("advice", MadviseAdvice, ids=repr)
def test_madvise_takes_every_advice(drive: Any, advice: MadviseAdvice) -> None:
    """Each is 0 on private pages, or what madvise(2) itself answers there."""
    memory = private(2)
    libc_says = _LIBC.madvise(ctypes.c_void_p(address_of(memory)), len(memory), int(advice))
    expected = 0 if libc_says == 0 else -ctypes.get_errno()
    # The same pages: what is beside them decides whether there is anything to collapse.
    assert drive.one(uring.Madvise(memory, advice)).res == expected


@pytest.mark.parametrize("advice", [MadviseAdvice.DONTNEED, MadviseAdvice.DONTNEED_LOCKED])
def test_madvise_dontneed_zeroes_the_pages_and_no_other(drive: Any, advice: MadviseAdvice) -> None:
    """What is in the buffer reads as zeros, and the pages around it are as they were."""
    memory = private(4)
    middle = memoryview(memory)[PAGE : 3 * PAGE]
    assert drive.one(uring.Madvise(middle, advice)).result() == 0
    assert memory[:PAGE] == memory[3 * PAGE :] == b"x" * PAGE
    assert middle == bytes(2 * PAGE)


def test_madvise_remove_zeroes_shared_memory(drive: Any) -> None:
    """REMOVE frees shared pages, and is EINVAL on private ones."""
    memory = mmap.mmap(-1, PAGE)
    memory[:] = b"x" * PAGE
    assert drive.one(uring.Madvise(memory, mmap.MADV_REMOVE)).result() == 0
    assert memory[:] == bytes(PAGE)
    drive.fails(uring.Madvise(private(1), mmap.MADV_REMOVE), errno.EINVAL)


DESTROYING: Final = [
    MadviseAdvice.DONTNEED,
    MadviseAdvice.DONTNEED_LOCKED,
    MadviseAdvice.FREE,
    MadviseAdvice.REMOVE,
    MadviseAdvice.WIPEONFORK,
]


@pytest.mark.parametrize("advice", DESTROYING, ids=repr)
def test_madvise_refuses_to_destroy_a_part_of_a_page_or_read_only_memory(
    ring: uring.Ring, advice: MadviseAdvice
) -> None:
    """The kernel goes on to the end of the page, where other objects may be: ValueError."""
    memory = private(2)
    view = memoryview(memory)
    for part in (view[: PAGE - 1], view[: PAGE + 1], view[1 : PAGE + 1]):
        with pytest.raises(ValueError, match="whole pages"):
            ring.queue(uring.Madvise(part, advice))
    for read_only in (view.toreadonly(), bytes(2 * PAGE)):
        with pytest.raises(TypeError, match="writable"):
            ring.queue(uring.Madvise(read_only, advice))
    assert ring.in_flight == 0
    assert memory[:] == b"x" * 2 * PAGE


@pytest.mark.parametrize("advice", [mmap.MADV_DONTFORK, mmap.MADV_HWPOISON, 101, 102, 103, 99, -1])
def test_madvise_refuses_what_would_kill_the_process_or_a_child(advice: int) -> None:
    """These, and numbers that this package does not know, are ValueError before any C."""
    with pytest.raises(ValueError, match="refused"):
        uring.Madvise(private(1), advice).sqe()


def test_madvise_wipeonfork_takes_nothing_but_an_mmap() -> None:
    """Memory that is freed for others to use would stay marked: ValueError."""
    owner = bytearray(3 * PAGE)
    start = -address_of(owner) % PAGE
    with pytest.raises(ValueError, match="outlasts"):
        uring.Madvise(memoryview(owner)[start:][:PAGE], MadviseAdvice.WIPEONFORK).sqe()
    uring.Madvise(memoryview(owner)[start:][:PAGE], MadviseAdvice.DONTNEED).sqe()
    uring.Madvise(memoryview(private(2))[PAGE:], MadviseAdvice.WIPEONFORK).sqe()


def test_madvise_wipeonfork_wipes_in_a_child(drive: Any) -> None:
    """A child has zeros where its parent keeps what is there."""
    memory = private(1)
    assert drive.one(uring.Madvise(memory, MadviseAdvice.WIPEONFORK)).result() == 0
    child = os.fork()
    if not child:
        os._exit(memory[:] == bytes(PAGE))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert memory[:] == b"x" * PAGE


def test_madvise_harmless_takes_any_memory_and_fails_as_the_os_does(drive: Any) -> None:
    """Read-only memory and parts of pages are taken; an odd beginning is EINVAL."""
    view = memoryview(private(2))
    assert drive.one(uring.Madvise(view[: PAGE + 1].toreadonly(), mmap.MADV_RANDOM)).result() == 0
    drive.fails(uring.Madvise(view[1:], mmap.MADV_RANDOM), errno.EINVAL)


def test_madvise_keeps_the_memory_while_in_flight(ring: uring.Ring, drive: Any, pipe: Ends) -> None:
    """Until its completion the mmap cannot be closed, whoever has dropped the operation."""
    memory = private(1)
    chain = uring.link(
        uring.Read(pipe[0], bytearray(1)), uring.Madvise(memory, MadviseAdvice.DONTNEED)
    )
    numbers = ring.queue_all(chain)
    ring.submit()
    del chain
    gc.collect()
    with pytest.raises(BufferError):
        memory.close()
    os.write(pipe[1], b"x")
    assert [cqe.result() for cqe in drive.collect(numbers)] == [1, 0]
    assert memory[:] == bytes(PAGE)
    memory.close()


# ---- pipes ----


def test_pipe_gives_two_descriptors(drive: Any) -> None:
    """The result is the end to read from and the end to write to, closed on exec."""
    cqe = drive.one(uring.Pipe())
    assert cqe.res == 0
    read, write = cqe.result()
    assert cqe.result() == (read, write)
    os.write(write, b"hello")
    assert os.read(read, 9) == b"hello"
    for fd in (read, write):
        assert not os.get_inheritable(fd)
        assert os.get_blocking(fd)
        os.close(fd)


def test_pipe_takes_flags(drive: Any) -> None:
    """O_NONBLOCK and O_DIRECT reach the kernel; `cloexec` can be turned off."""
    op = uring.Pipe(os.O_NONBLOCK | os.O_DIRECT, cloexec=False)
    read, write = drive.one(op).result()
    assert os.get_inheritable(read)
    assert not os.get_blocking(write)
    os.write(write, b"ab")
    os.write(write, b"cd")
    assert os.read(read, 9) == b"ab"  # a packet
    os.close(read)
    os.close(write)


def test_pipe_fails_as_the_os_does(descriptors: Callable[[], set[str]], drive: Any) -> None:
    """A flag that pipes lack is EINVAL, and no descriptor is left."""
    before = descriptors()
    drive.fails(uring.Pipe(os.O_APPEND), errno.EINVAL)
    assert descriptors() == before


def test_pipe_in_slots_gives_registered_files(
    ring: uring.Ring, descriptors: Callable[[], set[str]], drive: Any
) -> None:
    """With a slot that and the next are filled, whatever they held; no descriptor is made."""
    ring.register_files([-1] * 4)
    before = descriptors()
    for _ in range(2):
        cqe = drive.one(uring.Pipe(slot=Fixed(1)))
        assert cqe.result() == (Fixed(1), Fixed(2))
        read, write = cqe.result()
        assert drive.one(uring.Write(write, b"hello")).result() == 5
        buffer = bytearray(9)
        assert drive.one(uring.Read(read, buffer)).result() == 5
        assert buffer[:5] == b"hello"
    assert descriptors() == before


def test_pipe_in_slots_that_the_kernel_picks(ring: uring.Ring, drive: Any) -> None:
    """With AUTO the result names two slots that were free; with one left, ENFILE, and it stays."""
    ring.register_files([-1] * 3)
    read, write = drive.one(uring.Pipe(slot=AUTO)).result()
    assert {type(read), type(write)} == {Fixed}
    assert {read.index, write.index} < {0, 1, 2}
    assert drive.one(uring.Write(write, b"hello")).result() == 5
    assert drive.one(uring.Read(read, bytearray(9))).result() == 5
    drive.fails(uring.Pipe(slot=AUTO), errno.ENFILE)
    (left,) = {0, 1, 2} - {read.index, write.index}
    drive.fails(uring.Close(Fixed(left)), errno.EBADF)
    assert drive.one(uring.Close(write)).result() == 0
    assert drive.one(uring.Read(read, bytearray(9))).result() == 0


def test_pipe_in_slots_fails_as_the_os_does(ring: uring.Ring, drive: Any) -> None:
    """Out of range and O_CLOEXEC are EINVAL; the last slot has no next one; no slot is changed."""
    ring.register_files([-1] * 2)
    drive.fails(uring.Pipe(slot=Fixed(2)), errno.EINVAL)
    drive.fails(uring.Pipe(slot=Fixed(1)), errno.EINVAL)
    drive.fails(uring.Pipe(os.O_CLOEXEC, slot=Fixed(0)), errno.EINVAL)
    for index in range(2):
        drive.fails(uring.Close(Fixed(index)), errno.EBADF)


def test_pipe_cannot_share_its_user_data(ring: uring.Ring, pipe: Ends) -> None:
    """Nobody could tell which descriptors came: ValueError, whoever was first."""
    ring.queue(uring.Pipe(user_data=5))
    with pytest.raises(ValueError, match="5"):
        ring.queue(uring.Pipe(user_data=5))
    ring.submit()
    for fd in ring.copy_cqe(timeout=SECONDS).result():
        os.close(fd)
    ring.queue(uring.PollAdd(pipe[0], user_data=6))
    with pytest.raises(ValueError, match="6"):
        ring.queue(uring.Pipe(user_data=6))


def test_pipe_without_its_memory_gives_no_result() -> None:
    """Were the room not known, the result would be None and no number would be closed."""
    assert uring.Pipe()._result(0, None, 0) is None
    assert list(uring.Pipe()._descriptors(0, None, 0)) == []


def test_pipe_that_nobody_collects_is_closed_with_the_ring(
    ring_refusal: str, descriptors: Callable[[], set[str]]
) -> None:
    """Both descriptors are gone after close(), with one pipe per submit and several."""
    assert not ring_refusal
    before = descriptors()
    ring = uring.Ring(8)
    ring.queue(uring.Pipe())
    ring.submit_and_wait(1)
    ring.queue_all([uring.Pipe(), uring.Nop(), uring.Pipe(slot=AUTO)])
    ring.submit_and_wait(4)
    assert len(descriptors()) == len(before) + 5
    ring.close()
    assert descriptors() == before


def test_pipe_in_a_run_gives_two_descriptors_each_time(ring: uring.Ring) -> None:
    """Each run of a batch has results of its own."""
    batch = uring.Batch([uring.Pipe(), uring.Nop(), uring.Pipe()])
    seen = []
    for _ in range(2):
        first, nop, second = ring.run(batch, timeout=SECONDS)
        assert nop.result() == 0
        seen += [*first.result(), *second.result()]
    assert len(set(seen)) == 8
    for fd in seen:
        os.close(fd)


def test_pipe_result_survives_its_operation_and_ring(ring: uring.Ring, drive: Any) -> None:
    """The numbers can be read late, when only the completion is left."""
    cqe = drive.one(uring.Pipe())
    ring.close()
    gc.collect()
    for fd in cqe.result():
        os.close(fd)


def test_splice_moves_from_a_file_to_a_pipe_and_back(drive: Any, file: int, pipe: Ends) -> None:
    """Offsets are those of the file; with -1 its position is used and moved; the end is 0."""
    read, write = pipe
    assert drive.one(uring.Splice(fd_in=file, fd_out=write, length=4, off_in=3)).result() == 4
    assert os.lseek(file, 0, os.SEEK_CUR) == 0
    assert drive.one(uring.Splice(fd_in=read, fd_out=file, length=9, off_out=8)).result() == 4
    assert os.pread(file, 100, 0) == b"012345673456"
    assert drive.one(uring.Splice(fd_in=file, fd_out=write, length=2)).result() == 2
    assert os.lseek(file, 0, os.SEEK_CUR) == 2
    assert os.read(read, 9) == b"01"
    assert drive.one(uring.Splice(fd_in=file, fd_out=write, length=9, off_in=12)).result() == 0
    assert drive.one(uring.Splice(fd_in=file, fd_out=write, length=0)).result() == 0


def test_splice_takes_registered_files_on_either_side(
    ring: uring.Ring, drive: Any, file: int, pipe: Ends
) -> None:
    """Fixed(i) is a file for both, each on its own and together."""
    read, write = pipe
    ring.register_files([-1, write, file])
    for fd_in, fd_out in ((Fixed(2), write), (file, Fixed(1)), (Fixed(2), Fixed(1))):
        op = uring.Splice(fd_in=fd_in, fd_out=fd_out, length=4, off_in=3)
        assert drive.one(op).result() == 4
        assert os.read(read, 9) == b"3456"
    for fd_in, fd_out in ((Fixed(0), write), (file, Fixed(0)), (Fixed(9), write)):
        drive.fails(uring.Splice(fd_in=fd_in, fd_out=fd_out, length=4), errno.EBADF)


def test_splice_fails_as_the_os_does(drive: Any, file: int, pipe: Ends) -> None:
    """Two files are EINVAL, an offset on a pipe ESPIPE, a closed number EBADF, on either side."""
    read, write = pipe
    drive.fails(uring.Splice(fd_in=file, fd_out=file, length=1), errno.EINVAL)
    drive.fails(uring.Splice(fd_in=file, fd_out=write, length=1, off_out=0), errno.ESPIPE)
    drive.fails(uring.Splice(fd_in=9999, fd_out=write, length=1), errno.EBADF)
    drive.fails(uring.Splice(fd_in=-1, fd_out=write, length=1), errno.EBADF)
    drive.fails(uring.Splice(fd_in=file, fd_out=9999, length=1), errno.EBADF)
    wait_not = uring.Splice(fd_in=read, fd_out=file, length=1, splice_flags=os.SPLICE_F_NONBLOCK)
    drive.fails(wait_not, errno.EAGAIN)
    unknown = uring.Splice(fd_in=file, fd_out=write, length=1, splice_flags=16)
    drive.fails(unknown, errno.EINVAL)


def test_splice_waits_for_a_pipe_and_can_be_cancelled(
    ring: uring.Ring, drive: Any, file: int, pipe: Ends
) -> None:
    """
    An empty pipe holds it up, until there is something, or it is cancelled.

    A thread of the kernel's that already waits gives ERESTARTSYS, which no other operation does.
    """
    op = uring.Splice(fd_in=pipe[0], fd_out=file, length=9, off_out=0)
    number = ring.queue(op)
    ring.submit()
    assert not ring.copy_cqes()
    os.write(pipe[1], b"ab")
    assert drive.collect([number])[0].result() == 2
    number = ring.queue(op)
    ring.submit()
    cancel = ring.queue(uring.AsyncCancel(number))
    ring.submit()
    target, _ = drive.collect([number, cancel])
    error = target.error
    assert error is not None
    assert error.errno in {errno.ECANCELED, 512}
    assert ("cancelled while it waited" in error.__notes__[0]) == (error.errno == 512)
    assert ring.in_flight == 0


def test_tee_copies_and_leaves_the_input(ring: uring.Ring, drive: Any, pipe: Ends) -> None:
    """Both pipes have the bytes afterwards; without a writer and bytes the result is 0."""
    read, write = os.pipe()
    ring.register_files([pipe[0], write])
    os.write(pipe[1], b"hello")
    for fd_in, fd_out in ((pipe[0], write), (Fixed(0), Fixed(1))):
        assert drive.one(uring.Tee(fd_in=fd_in, fd_out=fd_out, length=4)).result() == 4
        assert os.read(read, 9) == b"hell"
    assert os.read(pipe[0], 9) == b"hello"
    wait_not = uring.Tee(fd_in=pipe[0], fd_out=write, length=1, splice_flags=os.SPLICE_F_NONBLOCK)
    drive.fails(wait_not, errno.EAGAIN)
    os.close(pipe[1])
    assert drive.one(uring.Tee(fd_in=pipe[0], fd_out=write, length=4)).result() == 0
    os.close(read)
    os.close(write)


def test_tee_fails_as_the_os_does(drive: Any, file: int, pipe: Ends) -> None:
    """What is no pipe and one pipe alone are EINVAL, a closed number EBADF."""
    drive.fails(uring.Tee(fd_in=file, fd_out=pipe[1], length=1), errno.EINVAL)
    drive.fails(uring.Tee(fd_in=pipe[0], fd_out=pipe[1], length=1), errno.EINVAL)
    drive.fails(uring.Tee(fd_in=9999, fd_out=pipe[1], length=1), errno.EBADF)


@pytest.mark.parametrize("side", ["fd_in", "fd_out"])
def test_splice_keeps_both_file_objects_while_in_flight(
    ring: uring.Ring, file: int, pipe: Ends, side: str
) -> None:
    """What was given with a fileno() lives until the completion was copied out, and no longer."""
    given: dict[str, Any] = {"fd_in": pipe[0], "fd_out": file}
    wrapper = Wrapper(given[side])
    alive = weakref.ref(wrapper)
    ring.queue(uring.Splice(**given | {side: wrapper}, length=1, off_out=0))
    ring.submit()
    del wrapper
    gc.collect()
    assert alive() is not None
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).res == 1
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("side", ["fd_in", "fd_out"])
def test_splice_asks_a_file_object_for_its_number_each_time(ring: uring.Ring, side: str) -> None:
    """The number of an object may be another one the next time: it is not remembered."""
    wrapper = Wrapper(9999)
    given: dict[str, Any] = {"fd_in": 9998, "fd_out": 9998, side: wrapper}
    op = uring.Splice(**given, length=1)
    for number in (9999, 9997):
        wrapper.fd = number
        ring.queue(op)
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).res == -errno.EBADF
        record = op.sqe()
        assert (record.splice_fd_in if side == "fd_in" else record.fd) == number
    assert not op._prepared
    numbers = uring.Splice(fd_in=9998, fd_out=Fixed(1), length=1)
    ring.queue(numbers)
    assert numbers._prepared is not None
