"""Registered files: the object, its tags and its end, and what the kernel is told."""

import errno
import gc
import os
import socket
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uring
from uring import SQE, Fixed, Opcode, RegisterError, Ring, SetupFlags, SQEFlags
from uring.registry import files as registry


@pytest.fixture
def zero() -> Iterator[int]:
    """Give a descriptor of /dev/zero."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    yield fd
    os.close(fd)


def read(ring: Ring, file: Fixed) -> int:
    """Read four bytes of a registered file: the res."""
    ring.queue(uring.Read(file, bytearray(4)))
    ring.submit()
    return ring.copy_cqe(timeout=10).res


def tags(ring: Ring) -> list[tuple[int, int, int]]:
    """Copy out what is there."""
    return [(cqe.user_data, cqe.res, cqe.flags) for cqe in ring.copy_cqes()]


def test_files_are_a_sequence_of_fixed(ring: Ring, zero: int) -> None:
    """The object has a length, and gives Fixed(i) for an index from either end."""
    files = ring.register_files([zero, -1, zero])
    assert len(files) == 3
    assert [*files] == [files[0], files[1], files[2]] == [Fixed(0), Fixed(1), Fixed(2)]
    assert files[-1] == Fixed(2)
    for index in (3, -4):
        with pytest.raises(IndexError, match="3 slots"):
            files[index]
    with pytest.raises(TypeError, match="index"):
        files[True]
    assert [read(ring, file) for file in files] == [4, -errno.EBADF, 4]
    assert repr(files) == "<RegisteredFiles of 3 slots>"


def test_files_end_with_their_block(ring: Ring, zero: int) -> None:
    """Leaving the block unregisters; closing again does nothing, and the repr says so."""
    with ring.register_files([zero]) as files:
        assert not files.closed
        assert read(ring, files[0]) == 4
    assert files.closed
    files.close()
    assert read(ring, files[0]) == -errno.EBADF
    assert repr(files) == "<closed RegisteredFiles of 1 slots>"
    with pytest.raises(RegisterError) as refused:
        ring.unregister_files()
    assert refused.value.errno == errno.ENXIO


def test_files_of_a_former_registration_end_nothing(ring: Ring, zero: int) -> None:
    """An object whose files were unregistered leaves those alone that came after."""
    former = ring.register_files([zero])
    ring.unregister_files()
    ring.register_files([zero])
    assert former.closed
    former.close()
    assert read(ring, Fixed(0)) == 4
    with pytest.raises(RegisterError, match="nothing is registered") as refused:
        former.update(0, [-1])
    assert refused.value.errno == errno.ENXIO
    assert read(ring, Fixed(0)) == 4


def test_files_of_a_closed_ring_close_without_a_word(ring: Ring, zero: int) -> None:
    """After the ring is closed, close() does nothing and update() says that the ring is closed."""
    files = ring.register_files([zero])
    ring.close()
    assert files.closed
    files.close()
    with pytest.raises(uring.RingClosedError):
        files.update(0, [zero])


def test_files_in_a_fork_close_without_a_word(ring: Ring, zero: int) -> None:
    """In the child of a fork, which has no ring, close() does nothing."""
    files = ring.register_files([zero])
    child = os.fork()
    if not child:
        files.close()
        os._exit(files.closed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert read(ring, files[0]) == 4


@pytest.mark.usefixtures("ring")
def test_files_keep_their_ring_and_no_longer(zero: int) -> None:
    """The object keeps the ring alive; when both are dropped the ring goes without a collection."""
    ring = Ring(2)
    alive = weakref.ref(ring)
    files = ring.register_files([zero])
    del ring
    gc.collect()
    found = alive()
    assert found is not None
    found.close()
    del found
    gc.disable()
    try:
        del files
        assert alive() is None
    finally:
        gc.enable()


def test_files_sparse_are_filled_by_updates_and_operations(ring: Ring, zero: int) -> None:
    """Empty slots are registered, filled by update() and by operations, and emptied again."""
    with ring.register_files_sparse(4) as files:
        assert len(files) == 4
        assert read(ring, files[1]) == -errno.EBADF
        assert files.update(1, [zero, -2, zero]) == 3
        assert [read(ring, file) for file in files] == [-errno.EBADF, 4, -errno.EBADF, 4]
        assert files.update(1, [-1]) == 1
        assert read(ring, files[1]) == -errno.EBADF
        with pytest.raises(RegisterError, match="past the end") as refused:
            files.update(3, [zero, zero])
        assert refused.value.errno == errno.EINVAL


def test_files_update_stops_at_what_is_refused(ring: Ring, zero: int) -> None:
    """A file that is not open ends an update: those before it are in, and its slot is empty."""
    files = ring.register_files([zero, zero, zero])
    assert files.update(0, [zero, 9999, zero]) == 1
    assert [read(ring, file) for file in files] == [4, -errno.EBADF, 4]
    with pytest.raises(RegisterError, match="not open") as refused:
        files.update(1, [9999])
    assert refused.value.errno == errno.EBADF


def test_files_tags_come_when_files_go(ring: Ring, zero: int) -> None:
    """A tag is a completion with res 0 once its file is replaced, emptied or unregistered."""
    files = ring.register_files([zero, -1, zero, zero], tags=[7, 0, 8, 0])
    assert files.update(0, [zero, zero], tags=[10, 11]) == 2
    assert tags(ring) == [(7, 0, 0)]
    assert files.update(0, [-1], tags=[0]) == 1
    assert tags(ring) == [(10, 0, 0)]
    files.close()
    assert sorted(tags(ring)) == [(8, 0, 0), (11, 0, 0)]


def test_files_tag_waits_for_operations(ring: Ring, pipe: tuple[int, int]) -> None:
    """The tag of a file in use comes after the operation that uses it has ended."""
    files = ring.register_files([pipe[0]], tags=[7])
    buffer = bytearray(4)
    ring.queue(uring.Read(files[0], buffer, user_data=1))
    ring.submit()
    files.close()
    assert tags(ring) == []
    os.write(pipe[1], b"data")
    found = [ring.copy_cqe(timeout=10) for _ in range(2)]
    assert [(cqe.user_data, cqe.res) for cqe in found] == [(1, 4), (7, 0)]
    assert buffer == b"data"


def test_files_tags_are_expected_when_they_can_come(
    ring: Ring, zero: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tag is reserved before its registration; of what was not registered, given back."""
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(Ring, "_expect", lambda _, number: told.append(("expect", number)))
    monkeypatch.setattr(Ring, "_unexpect", lambda _, number: told.append(("unexpect", number)))
    files = ring.register_files([zero, zero], tags=[5, 0])
    assert told == [("expect", 5)]
    told.clear()
    assert files.update(0, [zero, 9999], tags=[6, 7]) == 1
    assert told == [("expect", 6), ("expect", 7), ("unexpect", 7)]
    told.clear()
    with pytest.raises(RegisterError):
        ring.register_files([zero], tags=[9])
    assert told == [("expect", 9), ("unexpect", 9)]


def test_files_tag_in_use_is_refused(
    ring: Ring, zero: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one tag cannot be reserved, nothing is registered, and the others are given back."""
    given_back: list[int] = []

    def expect(_ring: Ring, number: int) -> None:
        if number == 6:
            raise ValueError("in use")

    monkeypatch.setattr(Ring, "_expect", expect)
    monkeypatch.setattr(Ring, "_unexpect", lambda _, number: given_back.append(number))
    with pytest.raises(ValueError, match="in use"):
        ring.register_files([zero, zero], tags=[5, 6])
    assert given_back == [5]
    with pytest.raises(RegisterError):
        ring.unregister_files()


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ([1], ValueError, "2 slots need as many tags"),
        ([1, "x"], TypeError, "a tag must be an int"),
        ([1, True], TypeError, "a tag must be an int"),
        ([1, 2**64], ValueError, r"0\.\.18446744073709551615"),
        ([1, -1], ValueError, r"0\.\.18446744073709551615"),
        ([1, 2], ValueError, "stays empty"),
    ],
)
def test_files_tags_are_checked(
    ring: Ring, zero: int, given: list[int], kind: type[Exception], words: str
) -> None:
    """Tags are numbers, one for each slot, and none for a slot that stays empty."""
    with pytest.raises(kind, match=words):
        ring.register_files([zero, -1], tags=given)
    ring.register_files([zero])  # nothing was registered


@pytest.mark.parametrize("fds", [0, "01", None])
def test_files_are_a_sequence(ring: Ring, fds: Any) -> None:
    """What is no sequence of files is named, before anything is registered."""
    with pytest.raises(TypeError, match="fds must be a sequence of files"):
        ring.register_files(fds)


def test_files_alloc_range_bounds_where_files_are_put(ring: Ring) -> None:
    """The kernel picks slots in the range only, and says ENFILE when it is full."""
    ring.register_files_sparse(8)
    ring.register_file_alloc_range(5, count=2)
    found = []
    for _ in range(3):
        # file_index is all ones: the kernel picks.
        ring.queue(
            SQE(
                Opcode.SOCKET,
                fd=socket.AF_UNIX,
                off=socket.SOCK_STREAM,
                splice_fd_in=uring.FILE_INDEX_ALLOC,
            )
        )
        ring.submit()
        found.append(ring.copy_cqe(timeout=10).res)
    assert found == [5, 6, -errno.ENFILE]
    for start, count, number in ((0, 9, errno.EINVAL), (2**32 - 1, 2, errno.EOVERFLOW)):
        with pytest.raises(RegisterError, match="past the end") as refused:
            ring.register_file_alloc_range(start, count=count)
        assert refused.value.errno == number


def test_files_alloc_range_needs_a_table(ring: Ring) -> None:
    """Without registered files there is no range."""
    with pytest.raises(RegisterError, match="or there is none"):
        ring.register_file_alloc_range(0, count=1)
    with pytest.raises(ValueError, match="count"):
        ring.register_file_alloc_range(0, count=2**32)


def test_files_refusals_keep_the_errno_and_say_why(ring: Ring, zero: int) -> None:
    """Too many slots, a second registration, and a descriptor that is not open."""
    with pytest.raises(RegisterError, match="RLIMIT_NOFILE") as refused:
        ring.register_files_sparse(2**21)
    assert refused.value.errno == errno.EMFILE
    with pytest.raises(RegisterError, match="not open") as refused:
        ring.register_files([zero, 9999], tags=[1, 2])
    assert refused.value.errno == errno.EBADF
    ring.register_files([zero])
    attempts: list[Callable[[], object]] = [
        lambda: ring.register_files([zero]),
        lambda: ring.register_files([zero], tags=[1]),
        lambda: ring.register_files_sparse(1),
    ]
    for register in attempts:
        with pytest.raises(RegisterError, match="unregister or update") as refused:
            register()
        assert refused.value.errno == errno.EBUSY
    for count in (0, 2**32):
        with pytest.raises(ValueError, match="count"):
            ring.register_files_sparse(count)


def test_files_of_a_ring_owned_by_a_thread_are_its_own(zero: int) -> None:
    """With SINGLE_ISSUER the owner registers and closes as ever."""
    with Ring(2, flags=SetupFlags.SINGLE_ISSUER) as ring, ring.register_files([zero]) as files:
        assert read(ring, files[0]) == 4


def test_fixed_flag_survives_links(ring: Ring, zero: int) -> None:
    """An operation on a registered file keeps the fixed flag beside others."""
    files = ring.register_files([zero])
    sqe = uring.Read(files[0], bytearray(4)).linked().sqe()
    assert sqe.flags == SQEFlags.FIXED_FILE | SQEFlags.IO_LINK
    assert Path(f"/proc/self/fd/{zero}").exists()


def test_array_of_files_is_one_of_ints() -> None:
    """Descriptors, empty slots and slots left alone are 32 bits each, with a sign."""
    pin, numbers = registry.files_argument([3, -1, -2])
    assert (numbers, uring._memory.bytes_of(pin)) == ([3, -1, -2], struct.pack("=iii", 3, -1, -2))
