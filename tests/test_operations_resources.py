"""Registered files and provided buffers changed by operations: encoded and on the real kernel."""

import errno
import gc
import os
import struct
import weakref
from collections.abc import Callable
from typing import Any, Final

import attrs
import pytest
from shared import Wrapper

import uring
from uring import _memory
from uring.flags import SQEFlags

Pipe = tuple[int, int]
BUFFER: Final = bytearray(64)


class Owner(Wrapper):
    """Something that closes its descriptor when nobody has it any more."""

    def __del__(self) -> None:
        os.close(self.fd)


def nonzero(op: uring.Operation) -> dict[str, Any]:
    """The fields of the encoded record that are not 0."""
    return {name: number for name, number in attrs.asdict(op.sqe()).items() if number}


# ---- encoding: fields and values by hand from linux/io_uring.h ----

VECTORS: Final[list[tuple[uring.Operation, dict[str, int]]]] = [
    (uring.FilesUpdate([5, -1, -2], 7), {"opcode": 20, "off": 7, "len": 3}),
    (uring.FilesUpdate([5], 0), {"opcode": 20, "len": 1}),
    (uring.FilesAlloc([5, Wrapper(6)]), {"opcode": 20, "off": 2**32 - 1, "len": 2}),
    (
        uring.FixedFdInstall(uring.Fixed(9)),
        {"opcode": 54, "fd": 9, "flags": SQEFlags.FIXED_FILE},
    ),
    (
        uring.FixedFdInstall(uring.Fixed(9), cloexec=False),
        {"opcode": 54, "fd": 9, "flags": SQEFlags.FIXED_FILE, "op_flags": 0x1},
    ),
    (
        uring.ProvideBuffers(BUFFER, 4, bgid=3, bid=7),
        {"opcode": 31, "fd": 4, "len": 16, "off": 7, "buf_index": 3},
    ),
    (uring.ProvideBuffers(BUFFER, bgid=0), {"opcode": 31, "fd": 1, "len": 64}),
    (
        uring.ProvideBuffers(bytearray(65536), 65536, bgid=65535),
        {"opcode": 31, "fd": 65536, "len": 1, "buf_index": 65535},
    ),
    (uring.RemoveBuffers(4, bgid=3), {"opcode": 32, "fd": 4, "buf_index": 3}),
]


@pytest.mark.parametrize(("op", "expected"), VECTORS, ids=lambda value: repr(value)[:70])
def test_resource_operation_encodes_what_the_header_says(
    op: uring.Operation, expected: dict[str, int]
) -> None:
    """The fields of the record are those of the header, and all others but addr are 0."""
    found = nonzero(op)
    if op.opcode in {uring.Opcode.FILES_UPDATE, uring.Opcode.PROVIDE_BUFFERS}:
        assert found.pop("addr")
    assert found == expected


def test_files_update_encodes_an_array_of_ints() -> None:
    """The memory at addr is an array of 32-bit numbers, and that of ProvideBuffers the caller's."""
    record, array = uring.FilesUpdate([Wrapper(6), -1, -2], 0)._encode()
    assert array.decode(3) == [6, -1, -2]  # type: ignore[attr-defined]  # of Descriptors
    assert int.from_bytes(record[16:24], "little") == array.address  # type: ignore[attr-defined]  # the same
    pin, address, _ = _memory.writable(BUFFER)
    assert uring.ProvideBuffers(BUFFER, bgid=0).sqe().addr == address
    assert len(pin) == 64


WRONG: Final[list[tuple[uring.Operation, str]]] = [
    (uring.FilesUpdate([], 0), "at least one file"),
    (uring.FilesUpdate(5, 0), "fds must be a sequence"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.FilesUpdate("5", 0), "fds must be a sequence"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.FilesUpdate(["5"], 0), "a file is"),  # type: ignore[list-item]  # wrong on purpose
    (uring.FilesUpdate([uring.Fixed(1)], 0), "a file is"),  # type: ignore[list-item]  # wrong on purpose
    (uring.FilesUpdate([-3], 0), "a descriptor must be in"),
    (uring.FilesUpdate([2**31], 0), "a descriptor must be in"),
    (uring.FilesUpdate([5], 2**32 - 1), "offset must be in"),
    (uring.FilesUpdate([5], -1), "offset must be in"),
    (uring.FilesUpdate([5], uring.AUTO), "offset must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.FilesAlloc([]), "at least one file"),
    (uring.FilesAlloc([-1]), "a descriptor must be in"),
    (uring.FixedFdInstall(5), "fd must be Fixed"),  # type: ignore[arg-type]  # wrong on purpose
    (uring.ProvideBuffers(b"read-only", bgid=0), "writable"),
    (uring.ProvideBuffers(BUFFER, 5, bgid=0), "not 5 buffers of the same size"),
    (uring.ProvideBuffers(bytearray(), bgid=0), "not 1 buffers"),
    (uring.ProvideBuffers(BUFFER, 0, bgid=0), "count must be in"),
    (uring.ProvideBuffers(BUFFER, 65537, bgid=0), "count must be in"),
    (uring.ProvideBuffers(BUFFER, count=True, bgid=0), "count must be an integer"),
    (uring.ProvideBuffers(BUFFER, 4, bgid=0, bid=65533), "bid must be in"),
    (uring.ProvideBuffers(BUFFER, bgid=65536), "bgid must be in"),
    (uring.RemoveBuffers(0, bgid=0), "count must be in"),
    (uring.RemoveBuffers(65537, bgid=0), "count must be in"),
    (uring.RemoveBuffers(1, bgid=-1), "bgid must be in"),
]


@pytest.mark.parametrize(("op", "message"), WRONG, ids=lambda value: repr(value)[:60])
def test_resource_operation_refuses_what_does_not_fit(op: uring.Operation, message: str) -> None:
    """TypeError or ValueError, whose message names the field, and nothing stays pinned."""
    with pytest.raises((TypeError, ValueError), match=message):
        op.sqe()
    BUFFER.append(0)
    BUFFER.pop()


# ---- registered files ----


def test_files_update_replaces_empties_and_skips(drive: Any, pipe: Pipe) -> None:
    """A slot gets the file, is emptied, or is left alone; the result is how many there were."""
    drive.ring.register_files([pipe[0], pipe[0], pipe[0]])
    update = uring.FilesUpdate([Wrapper(pipe[1]), -1, uring.REGISTER_FILES_SKIP], 0)
    assert drive.result(update) == 3
    assert drive.result(uring.Write(uring.Fixed(0), b"abc")) == 3
    drive.fails(uring.Nop(fd=uring.Fixed(1)), errno.EBADF)
    buffer = bytearray(4)
    assert drive.result(uring.Read(uring.Fixed(2), buffer)) == 3
    assert buffer == b"abc\0"


def test_files_update_takes_an_iterator_once(drive: Any, pipe: Pipe) -> None:
    """What an iterator gives is taken when the operation is made, so it can be queued twice."""
    drive.ring.register_files([-1, -1])
    update = uring.FilesUpdate(iter(pipe), 0)  # type: ignore[arg-type]  # an iterator, on purpose
    for _ in range(2):
        assert drive.result(update) == 2


def test_files_update_is_short_behind_a_bad_file(drive: Any, pipe: Pipe) -> None:
    """The slots before a file that is not open are done and counted; alone it is EBADF."""
    drive.ring.register_files([-1, -1])
    assert drive.result(uring.FilesUpdate([pipe[0], 9999], 0)) == 1
    assert drive.result(uring.Nop(fd=uring.Fixed(0))) == 0
    drive.fails(uring.FilesUpdate([9999], 0), errno.EBADF)
    drive.fails(uring.FilesUpdate([drive.ring], 0), errno.EBADF)


def test_files_update_fails_outside_the_table(drive: Any, pipe: Pipe) -> None:
    """Without a table it is ENXIO, beyond its end EINVAL."""
    drive.fails(uring.FilesUpdate([pipe[0]], 0), errno.ENXIO)
    drive.ring.register_files([-1])
    drive.fails(uring.FilesUpdate([pipe[0]], 1), errno.EINVAL)
    drive.fails(uring.FilesUpdate(pipe, 0), errno.EINVAL)


def test_files_alloc_gives_the_slots_that_were_free(drive: Any, pipe: Pipe) -> None:
    """The result names the slots, in the order of the files, and the files are in them."""
    drive.ring.register_files([-1, pipe[0], -1, -1])
    assert drive.result(uring.FilesAlloc(pipe)) == [uring.Fixed(0), uring.Fixed(2)]
    assert drive.result(uring.Write(uring.Fixed(2), b"abc")) == 3
    assert drive.result(uring.Read(uring.Fixed(0), bytearray(4))) == 3
    cqe = drive.one(uring.FilesAlloc(pipe))
    assert (cqe.res, cqe.result()) == (1, [uring.Fixed(3)])
    drive.fails(uring.FilesAlloc(pipe), errno.ENFILE)


def test_files_alloc_fails_for_each_reason(drive: Any, pipe: Pipe) -> None:
    """Without a table it is ENXIO; a file that is not open is EBADF, or ends the list."""
    drive.fails(uring.FilesAlloc(pipe), errno.ENXIO)
    drive.ring.register_files([-1, -1, -1])
    drive.fails(uring.FilesAlloc([9999]), errno.EBADF)
    assert drive.result(uring.FilesAlloc([pipe[0], 9999, pipe[1]])) == [uring.Fixed(0)]


def test_files_alloc_result_can_be_read_again_and_late(drive: Any, pipe: Pipe) -> None:
    """The slots stay the same however late the result is read."""
    drive.ring.register_files([-1, -1])
    cqe = drive.one(uring.FilesAlloc(pipe))
    drive.ring.close()
    gc.collect()
    assert cqe.result() == cqe.result() == [uring.Fixed(0), uring.Fixed(1)]


def test_files_alloc_twice_under_one_user_data_has_no_slots(drive: Any, pipe: Pipe) -> None:
    """Which slots went to which cannot be told then: the count is there, the result is None."""
    drive.ring.register_files([-1, -1])
    for fd in pipe:
        drive.ring.queue(uring.FilesAlloc([fd], user_data=5))
    drive.ring.submit()
    for cqe in drive.take(2):
        assert (cqe.res, cqe.result()) == (1, None)


def test_files_alloc_in_a_batch_registers_its_files_each_time(drive: Any, pipe: Pipe) -> None:
    """The slots that the kernel writes over the array do not become files of the next run."""
    drive.ring.register_files([-1] * 4)
    batch = uring.Batch([uring.FilesAlloc(pipe)])
    for first in (0, 2):
        (cqe,) = drive.ring.run(batch)
        assert cqe.result() == [uring.Fixed(first), uring.Fixed(first + 1)]
        assert drive.result(uring.Write(uring.Fixed(first + 1), b"x")) == 1


def test_files_update_keeps_its_files_until_it_has_run(drive: Any, pipe: Pipe) -> None:
    """A file object that nobody else has lives until the completion, and its number is still it."""
    drive.ring.register_files([-1])
    file = Owner(os.dup(pipe[1]))
    alive = weakref.ref(file)
    waiting, update = drive.ring.queue_all(
        uring.link(uring.PollAdd(pipe[0]), uring.FilesUpdate([file], 0))
    )
    drive.ring.submit()
    del file
    gc.collect()
    assert alive() is not None
    noise = [bytearray(b"\xff" * 4) for _ in range(1000)]  # where the array was, if it is gone
    os.write(pipe[1], b"x")
    assert {cqe.user_data: cqe.res for cqe in drive.take(2)} == {waiting: 1, update: 1}
    gc.collect()
    assert alive() is None
    assert drive.result(uring.Write(uring.Fixed(0), b"y")) == 1
    assert len(noise) == 1000


@pytest.mark.parametrize("cloexec", [True, False])
def test_fixed_fd_install_makes_a_descriptor(drive: Any, pipe: Pipe, *, cloexec: bool) -> None:
    """The result is a descriptor of the same open file, closed on exec unless told otherwise."""
    drive.ring.register_files([pipe[1]])
    fd = drive.result(uring.FixedFdInstall(uring.Fixed(0), cloexec=cloexec))
    assert fd not in pipe
    assert os.get_inheritable(fd) is not cloexec
    os.write(fd, b"abc")
    os.close(fd)
    assert os.read(pipe[0], 9) == b"abc"
    assert drive.result(uring.Nop(fd=uring.Fixed(0))) == 0


def test_fixed_fd_install_of_an_empty_slot_is_ebadf(drive: Any, pipe: Pipe) -> None:
    """An empty slot, one beyond the table, and no table are EBADF."""
    drive.fails(uring.FixedFdInstall(uring.Fixed(0)), errno.EBADF)
    drive.ring.register_files([-1, pipe[0]])
    drive.fails(uring.FixedFdInstall(uring.Fixed(0)), errno.EBADF)
    drive.fails(uring.FixedFdInstall(uring.Fixed(2)), errno.EBADF)


def test_fixed_fd_install_closes_what_nobody_took(
    drive: Any, pipe: Pipe, descriptors: Callable[[], set[str]]
) -> None:
    """A descriptor that nobody has copied out when the ring closes is closed with it."""
    drive.ring.register_files([pipe[0]])
    before = len(descriptors())
    drive.submit(*[uring.FixedFdInstall(uring.Fixed(0))] * 3)
    assert len(descriptors()) == before + 3
    drive.ring.close()
    assert len(descriptors()) == before - 1


# ---- provided buffers ----


def selecting_read(fd: int, bgid: int) -> uring.SQE:
    """A read into whichever buffer the group has next."""
    return uring.SQE(
        uring.Opcode.READ, SQEFlags.BUFFER_SELECT, fd=fd, buf_index=bgid, off=-1, user_data=1
    )


def take_read(drive: Any, fd: int, bgid: int) -> uring.CQE:
    """Run such a read."""
    drive.ring.queue(selecting_read(fd, bgid))
    drive.ring.submit()
    (cqe,) = drive.take()
    assert isinstance(cqe, uring.CQE)
    return cqe


def test_provide_buffers_are_taken_in_order_and_then_gone(drive: Any, pipe: Pipe) -> None:
    """Reads take the buffers one after the other and tell which; then it is ENOBUFS."""
    memory = bytearray(8)
    assert drive.result(uring.ProvideBuffers(memory, 2, bgid=3, bid=7)) == 0
    for number, sent in ((7, b"abcd"), (8, b"ef")):
        os.write(pipe[1], sent)
        cqe = take_read(drive, pipe[0], 3)
        assert (cqe.res, cqe.buffer_id) == (len(sent), number)
    assert memory == b"abcdef\0\0"
    os.write(pipe[1], b"gh")
    assert take_read(drive, pipe[0], 3).res == -errno.ENOBUFS
    assert drive.result(uring.ProvideBuffers(memory, bgid=3, bid=2)) == 0
    cqe = take_read(drive, pipe[0], 3)
    assert (cqe.res, cqe.buffer_id) == (2, 2)
    assert memory == b"ghcdef\0\0"


def test_remove_buffers_counts_what_was_there(drive: Any) -> None:
    """The result is how many were taken out; a group that was never made is ENOENT."""
    memory = bytearray(16)
    drive.result(uring.ProvideBuffers(memory, 4, bgid=3))
    assert drive.result(uring.RemoveBuffers(1, bgid=3)) == 1
    assert drive.result(uring.RemoveBuffers(65536, bgid=3)) == 3
    assert drive.result(uring.RemoveBuffers(1, bgid=3)) == 0
    drive.fails(uring.RemoveBuffers(1, bgid=4), errno.ENOENT)


def test_remove_buffers_takes_the_first_ones(drive: Any, pipe: Pipe) -> None:
    """What came first is taken out first, so the next read gets what came after it."""
    memory = bytearray(16)
    drive.result(uring.ProvideBuffers(memory, 4, bgid=3))
    drive.result(uring.RemoveBuffers(2, bgid=3))
    os.write(pipe[1], b"abcd")
    assert take_read(drive, pipe[0], 3).buffer_id == 2
    assert memory == b"\0" * 8 + b"abcd" + b"\0" * 4


def test_provide_buffers_are_pinned_while_in_flight(drive: Any, pipe: Pipe) -> None:
    """Memory that waits to be provided cannot be resized."""
    memory = bytearray(8)
    drive.submit(*uring.link(uring.PollAdd(pipe[0]), uring.ProvideBuffers(memory, bgid=3)))
    with pytest.raises(BufferError):
        memory.append(0)
    os.write(pipe[1], b"x")
    assert sorted(cqe.res for cqe in drive.take(2)) == [0, 1]
    assert drive.result(uring.RemoveBuffers(9, bgid=3)) == 1


def test_provide_buffers_keeps_its_memory_until_the_ring_is_closed(ring: uring.Ring) -> None:
    """It stays pinned beyond the completion, once however often it is provided; then it goes."""
    memory = bytearray(8)
    for _ in range(3):
        ring.queue(uring.ProvideBuffers(memory, 2, bgid=3))
        ring.submit_and_wait()
        assert ring.copy_cqe().res == 0
    with pytest.raises(BufferError):
        memory.append(0)
    assert len(ring._held.provided) == 1
    ring.close()
    memory.append(0)


def test_descriptors_are_ints_in_memory() -> None:
    """An array of descriptors is what the kernel's int is: 4 bytes each."""
    _, array = uring.FilesAlloc([1, 2])._encode()
    assert array.count * struct.calcsize("i") == 8  # type: ignore[attr-defined]  # of Descriptors
