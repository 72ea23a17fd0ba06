"""Registered buffers: the objects, how long the memory is held, tags, clones, and the pool."""

import errno
import gc
import mmap
import os
import struct
import tempfile
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

import uring
from uring import (
    SQE,
    BufferPool,
    BufferPoolEmpty,
    FixedBuffer,
    Opcode,
    RegisterError,
    Ring,
    SetupFlags,
)
from uring._memory import fixed_part
from uring.registry import buffers as registry

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Memory(bytearray):
    """A bytearray that can be watched, and can have something with it."""

    lent: FixedBuffer


@pytest.fixture
def zero() -> Iterator[int]:
    """Give a descriptor of a file with a thousand x."""
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 1000)
        file.flush()
        yield file.fileno()


def raw(fd: int, part: FixedBuffer, user_data: int = 1, *, off: int = 0) -> SQE:
    """READ_FIXED as a raw record, which pins nothing."""
    _pin, address, length, index = fixed_part(part, None, write=True)
    return SQE(
        Opcode.READ_FIXED,
        fd=fd,
        off=off,
        addr=address,
        len=length,
        buf_index=index,
        user_data=user_data,
    )


def read(ring: Ring, fd: int, part: FixedBuffer) -> int:
    """Read into a part of a registered buffer: the res."""
    ring.queue(raw(fd, part))
    ring.submit()
    return ring.copy_cqe(timeout=10).res


def tags(ring: Ring) -> list[tuple[int, int, int]]:
    """Copy out what is there."""
    return [(cqe.user_data, cqe.res, cqe.flags) for cqe in ring.copy_cqes()]


def is_pinned(memory: bytearray) -> bool:
    """Whether the bytearray is exported, so that it cannot be resized."""
    try:
        memory.append(0)
    except BufferError:
        return True
    memory.pop()
    return False


def errno_of(call: Callable[[], object], words: str) -> int:
    """Call what is refused with these words: the errno. Keeps no traceback, which has pins."""
    with pytest.raises(RegisterError, match=words) as refused:
        call()
    return refused.value.errno or 0


# ---- the object ----


def test_buffers_are_a_sequence_of_fixed_buffers(ring: Ring, zero: int) -> None:
    """`buffers[i]` is all of buffer i, its slices are parts of it, and the kernel writes there."""
    first, second = bytearray(100), array("q", [0] * 10)
    buffers = ring.register_buffers([first, None, second])
    assert (len(buffers), len(buffers[0]), len(buffers[-1])) == (3, 100, 80)
    assert buffers[-1].buf_index == 2
    assert read(ring, zero, buffers[0][10:20]) == 10
    assert first == bytes(10) + b"x" * 10 + bytes(80)
    assert read(ring, zero, buffers[2][8:][:8]) == 8
    assert second[1] == int.from_bytes(b"x" * 8, "little")
    assert second[2] == 0
    for index in (3, -4):
        with pytest.raises(IndexError, match="3 slots"):
            buffers[index]
    with pytest.raises(TypeError, match="index"):
        buffers[True]
    with pytest.raises(ValueError, match="slot 1 is empty"):
        buffers[1]
    assert repr(buffers) == "<RegisteredBuffers of 3 slots, 2 filled with 180 bytes>"


def test_buffers_end_with_their_block(ring: Ring, zero: int) -> None:
    """Leaving the block unregisters; closing again does nothing, and the memory is free."""
    memory = bytearray(8)
    with ring.register_buffers([memory]) as buffers:
        part = buffers[0]
        assert read(ring, zero, part) == 8
    assert buffers.closed
    buffers.close()
    assert repr(buffers).startswith("<closed RegisteredBuffers")
    assert read(ring, zero, part) == -errno.EFAULT
    del part, buffers
    assert not is_pinned(memory)
    with pytest.raises(RegisterError, match="register first") as refused:
        ring.unregister_buffers()
    assert refused.value.errno == errno.ENXIO


def test_buffers_of_a_former_registration_end_nothing(ring: Ring, zero: int) -> None:
    """An object whose buffers were unregistered leaves those alone that came after."""
    former = ring.register_buffers([bytearray(8)])
    ring.unregister_buffers()
    buffers = ring.register_buffers([bytearray(8)])
    assert former.closed
    former.close()
    with pytest.raises(RegisterError, match="nothing is registered"):
        former.update(0, [None])
    assert read(ring, zero, buffers[0]) == 8


def test_buffers_of_a_closed_ring_close_without_a_word(ring: Ring) -> None:
    """After the ring is closed, close() does nothing and update() says that the ring is closed."""
    buffers = ring.register_buffers([bytearray(8)])
    ring.close()
    assert buffers.closed
    buffers.close()
    with pytest.raises(uring.RingClosedError):
        buffers.update(0, [None])


def test_buffers_in_a_fork_close_without_a_word(ring: Ring, zero: int) -> None:
    """In the child of a fork, which has no ring, close() does nothing."""
    buffers = ring.register_buffers([mmap.mmap(-1, 4096)])
    child = os.fork()
    if not child:
        buffers.close()
        os._exit(buffers.closed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert read(ring, zero, buffers[0][:8]) == 8


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ([b"immutable"], TypeError, "writable"),
        ([memoryview(bytearray(4)).toreadonly()], TypeError, "writable"),
        ([mmap.mmap(-1, 4096, prot=mmap.PROT_READ)], TypeError, "writable"),
        ([bytearray(4), 3], TypeError, "bytes-like"),
        ([memoryview(bytearray(8))[::2]], ValueError, "contiguous"),
        ([bytearray(4), bytearray()], ValueError, "buffer 1 is empty"),
        ([], ValueError, "at least one"),
        (bytearray(4), TypeError, "sequence of buffers"),
        ("text", TypeError, "sequence of buffers"),
        (7, TypeError, "sequence of buffers"),
    ],
)
def test_buffers_that_cannot_be_are_refused_by_name(
    ring: Ring, given: "list[Buffer]", kind: type[Exception], words: str
) -> None:
    """Read-only, strided and empty memory, and what is no memory, never reaches the kernel."""
    with pytest.raises(kind, match=words):
        ring.register_buffers(given)
    ring.register_buffers([bytearray(4)])  # nothing was registered


def test_kernel_would_write_into_an_immutable_object(ring: Ring) -> None:
    """The refusal of read-only objects is ours: the kernel takes the memory of bytes."""
    memory = b"immutable" * 10
    array_pin = uring._memory.pinned(memory, write=False)[0]
    iovec = registry._iovec(uring._memory.address_of(array_pin), len(memory))
    argument, _, _ = uring._memory.readable(iovec)
    assert ring._register(uring.RegisterOpcode.REGISTER_BUFFERS, argument, 1) == 0
    ring.unregister_buffers()


def test_buffers_refusals_keep_the_errno_and_say_why(ring: Ring) -> None:
    """More than 1 GiB, too many, and a second time; nothing that was refused is held."""
    huge = mmap.mmap(-1, 2**30 + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert errno_of(lambda: ring.register_buffers([huge]), "1 GiB") == errno.EFAULT
    gc.collect()
    huge.close()  # it is not held
    assert errno_of(lambda: ring.register_buffers_sparse(16385), "16384") == errno.EINVAL
    for count in (0, 2**32):
        with pytest.raises(ValueError, match="count"):
            ring.register_buffers_sparse(count)
    ring.register_buffers_sparse(16384)
    memory = bytearray(4)
    for register in (
        lambda: ring.register_buffers([memory]),
        lambda: ring.register_buffers([memory], tags=[1]),
        lambda: ring.register_buffers_sparse(1),
    ):
        assert errno_of(register, "unregister or update") == errno.EBUSY
    gc.collect()
    assert not is_pinned(memory)


# ---- updates and tags ----


def test_buffers_sparse_are_filled_and_emptied(ring: Ring, zero: int) -> None:
    """Empty slots are filled by update(), replaced and emptied; the replaced memory is free."""
    old, new = bytearray(8), bytearray(16)
    with ring.register_buffers_sparse(3) as buffers:
        assert buffers.update(1, [old]) == 1
        assert read(ring, zero, buffers[1]) == 8
        assert is_pinned(old)
        assert buffers.update(0, [None, new]) == 2
        assert not is_pinned(old)
        assert read(ring, zero, buffers[1]) == 16
        assert buffers.update(1, [None]) == 1
        assert not is_pinned(new)
        assert errno_of(lambda: buffers.update(2, [old, new]), "past the end") == errno.EINVAL
        gc.collect()
        assert not is_pinned(old)


def test_update_spares_what_has_begun_and_fails_what_has_not(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """A read that waits gets its data in the old buffer; one behind a link is EFAULT."""
    old, new = bytearray(8), bytearray(8)
    buffers = ring.register_buffers([old])
    first, second = buffers[0][:4], buffers[0][4:]
    ring.queue_all(uring.link(uring.ReadFixed(pipe[0], first), uring.ReadFixed(pipe[0], second)))
    ring.submit()
    buffers.update(0, [new])
    os.write(pipe[1], b"12345678")
    ring.submit_and_wait(2)
    assert [cqe.res for cqe in ring.copy_cqes()] == [4, -errno.EFAULT]
    assert (old, new) == (b"1234\0\0\0\0", bytes(8))


def test_buffers_update_stops_at_what_is_refused(ring: Ring, zero: int) -> None:
    """A buffer that cannot be pinned ends an update: those before it are in, its slot as it was."""
    huge = mmap.mmap(-1, 2**30 + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    first, second = bytearray(8), bytearray(8)
    buffers = ring.register_buffers([bytearray(4), second])
    assert buffers.update(0, [first, huge]) == 1
    huge.close()
    assert [read(ring, zero, part) for part in buffers] == [8, 8]
    assert (is_pinned(first), is_pinned(second)) == (True, True)


def test_buffers_tags_come_when_buffers_go(ring: Ring) -> None:
    """A tag is a completion with res 0 once its buffer is replaced or unregistered."""
    buffers = ring.register_buffers([bytearray(8), None, bytearray(8)], tags=[5, 0, 6])
    assert buffers.update(0, [bytearray(8), bytearray(8)], tags=[7, 8]) == 2
    assert tags(ring) == [(5, 0, 0)]
    buffers.close()
    assert sorted(tags(ring)) == [(6, 0, 0), (7, 0, 0), (8, 0, 0)]
    with pytest.raises(ValueError, match="stays empty"):
        ring.register_buffers([None], tags=[1])


def test_buffers_tag_waits_for_operations(ring: Ring, pipe: tuple[int, int]) -> None:
    """The tag of a buffer in use comes after the operation that uses it has ended."""
    memory = bytearray(4)
    buffers = ring.register_buffers([memory], tags=[5])
    ring.queue(raw(pipe[0], buffers[0]))
    ring.submit()
    buffers.close()
    assert tags(ring) == []
    os.write(pipe[1], b"data")
    found = [ring.copy_cqe(timeout=10) for _ in range(2)]
    assert [(cqe.user_data, cqe.res) for cqe in found] == [(1, 4), (5, 0)]
    assert memory == b"data"


def test_buffers_tags_are_expected_when_they_can_come(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tag is reserved before its registration; of what was not registered, given back."""
    told: list[int] = []
    monkeypatch.setattr(Ring, "_expect", lambda _, number: told.append(number))
    monkeypatch.setattr(Ring, "_unexpect", lambda _, number: told.append(-number))
    buffers = ring.register_buffers([bytearray(4), None], tags=[5, 0])
    assert told == [5]
    with pytest.raises(RegisterError):
        buffers.update(1, [bytearray(4), bytearray(4)], tags=[6, 7])
    assert told == [5, 6, 7, -6, -7]


# ---- how long the memory is held ----


def test_registered_memory_outlives_what_the_caller_has(ring: Ring, zero: int) -> None:
    """With the object and the memory dropped, the memory is held until the ring ends."""
    memory = Memory(8)
    alive = weakref.ref(memory)
    record = raw(zero, ring.register_buffers([memory])[0])
    del memory
    gc.collect()
    held = alive()
    assert held is not None
    ring.queue(record)
    ring.submit()
    assert ring.copy_cqe(timeout=10).res == 8
    assert held == b"x" * 8
    assert is_pinned(held)
    del held
    ring.close()
    assert alive() is None


@pytest.mark.parametrize("how", ["close", "unregister", "update", "replace"])
def test_memory_in_use_is_held_when_it_is_unregistered(
    ring: Ring, pipe: tuple[int, int], how: str
) -> None:
    """What an operation in flight writes to is held until a registration finds none in flight."""
    memory = Memory(8)
    alive = weakref.ref(memory)
    buffers = ring.register_buffers([memory])
    ring.queue(raw(pipe[0], buffers[0]))
    ring.submit()
    with Ring(1) as other:
        if how == "close":
            buffers.close()
        elif how == "unregister":
            ring.unregister_buffers()
        elif how == "update":
            buffers.update(0, [None])
        else:
            source = other.register_buffers([bytearray(4)])
            ring.clone_buffers(source, replace=True)
    del memory, buffers
    gc.collect()
    held = alive()
    assert held is not None
    assert is_pinned(held)
    os.write(pipe[1], b"late")
    assert ring.copy_cqe(timeout=10).res == 4
    assert held[:4] == b"late"
    del held
    if how in {"update", "replace"}:
        ring.unregister_buffers()
    ring.register_buffers_sparse(1)
    assert alive() is None


def test_memory_in_use_is_held_until_the_ring_is_closed(ring: Ring, pipe: tuple[int, int]) -> None:
    """Closing cancels what is in flight, and then lets go of what was unregistered."""
    memory = bytearray(8)
    buffers = ring.register_buffers([memory])
    ring.queue(raw(pipe[0], buffers[0]))
    ring.submit()
    buffers.close()
    del buffers
    assert is_pinned(memory)
    ring.close()
    assert not is_pinned(memory)


def test_memory_that_cannot_be_taken_back_is_kept_for_ever(
    ring: Ring, pipe: tuple[int, int], kept: list[object]
) -> None:
    """When closing cannot end what is in flight, registered memory is kept as well."""
    first, second = bytearray(8), bytearray(8)
    buffers = ring.register_buffers([first, second])
    ring.queue(raw(pipe[0], buffers[0]))
    ring.submit()
    buffers.update(0, [None])
    with pytest.warns(RuntimeWarning, match="kept until the process ends"):
        ring.close()
    del buffers
    gc.collect()
    assert (is_pinned(first), is_pinned(second)) == (True, True)
    kept.clear()
    assert (is_pinned(first), is_pinned(second)) == (False, False)


def test_memory_of_a_registration_that_was_cut_off_is_held(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an exception hides whether it was registered, the memory is held until the end."""
    memory = bytearray(8)
    register = Ring._register

    def cut_off(*arguments: object) -> int:
        register(*arguments)  # type: ignore[arg-type]  # passed on
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ring, "_register", cut_off)
        with pytest.raises(KeyboardInterrupt):
            ring.register_buffers([memory])
    gc.collect()
    assert is_pinned(memory)
    ring.unregister_buffers()
    assert not is_pinned(memory)


def test_updates_change_the_table_in_the_kernels_order(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread has updated the kernel's table and not yet ours, another one waits."""
    buffers = ring.register_buffers_sparse(1)
    first, second = bytearray(64), bytearray(64)
    other = threading.Thread(target=lambda: buffers.update(0, [second]))
    register = Ring._register
    is_second_in = threading.Event()

    def slow(*arguments: object) -> int:
        done = register(*arguments)  # type: ignore[arg-type]  # passed on
        if threading.current_thread() is other:
            is_second_in.set()
        else:
            other.start()
            assert not is_second_in.wait(0.1)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Ring, "_register", slow)
        buffers.update(0, [first])
        other.join()
    assert is_second_in.is_set()
    assert (is_pinned(first), is_pinned(second)) == (False, True)
    with tempfile.TemporaryFile() as file:
        file.write(b"y" * 64)
        file.flush()
        assert read(ring, file.fileno(), buffers[0]) == 64
    assert second == b"y" * 64


# ---- clones ----


def test_clone_has_what_the_source_has(ring: Ring, zero: int) -> None:
    """All slots are taken over, empty ones included, and both rings use the memory."""
    memory = bytearray(8)
    with Ring(2) as other:
        source = other.register_buffers([memory, None])
        with ring.clone_buffers(source) as clone:
            assert (len(clone), clone.closed) == (2, False)
            source.close()
            assert read(ring, zero, clone[0]) == 8
            assert memory == b"x" * 8
            with pytest.raises(ValueError, match="empty"):
                clone[1]
    assert is_pinned(memory)  # by what is still to be had from these objects
    del source, clone
    assert not is_pinned(memory)


def test_clone_pins_for_itself(ring: Ring, zero: int) -> None:
    """When the source's ring is closed the clone's memory is held, for the clone goes on."""
    memory = Memory(8)
    alive = weakref.ref(memory)
    with Ring(2) as other:
        clone = ring.clone_buffers(other.register_buffers([memory]))
    del memory
    gc.collect()
    assert alive() is not None
    assert read(ring, zero, clone[0]) == 8
    clone.close()
    del clone
    assert alive() is None


def test_clone_takes_a_part_to_a_place(ring: Ring, zero: int) -> None:
    """Slots from `source_index` on come to `index`; those before it are empty."""
    with Ring(2) as other:
        source = other.register_buffers([bytearray(n) for n in (1, 2, 3, 4)])
        clone = ring.clone_buffers(source, source_index=1, index=2, count=2)
        assert len(clone) == 4
        assert [len(clone[index]) for index in (2, 3)] == [2, 3]
        assert read(ring, zero, clone[3]) == 3
        for index in (0, 1):
            with pytest.raises(ValueError, match="empty"):
                clone[index]
        with pytest.raises(RegisterError, match="past the end"):
            clone.update(4, [None])


def test_clone_replaces_when_told(ring: Ring, zero: int) -> None:
    """With `replace`, what is in the way goes, the rest stays, and the table may grow."""
    stays, goes = bytearray(10), bytearray(11)
    former = ring.register_buffers([stays, goes], tags=[0, 9])
    with Ring(2) as other:
        source = other.register_buffers([bytearray(2), bytearray(3)])
        with pytest.raises(RegisterError, match="replace=True") as refused:
            ring.clone_buffers(source)
        assert refused.value.errno == errno.EBUSY
        clone = ring.clone_buffers(source, index=1, replace=True)
    assert former.closed
    assert not clone.closed
    assert tags(ring) == [(9, 0, 0)]
    assert [len(part) for part in clone] == [10, 2, 3]
    assert [read(ring, zero, part) for part in clone] == [10, 2, 3]
    del former
    assert (is_pinned(stays), is_pinned(goes)) == (True, False)


def test_clone_of_the_own_ring_moves_buffers(ring: Ring, zero: int) -> None:
    """A ring can be its own source."""
    buffers = ring.register_buffers([bytearray(5)])
    clone = ring.clone_buffers(buffers, index=1, replace=True)
    assert [read(ring, zero, part) for part in clone] == [5, 5]


def test_clone_refusals_keep_the_errno_and_say_why(
    ring: Ring, descriptors: Callable[[], set[str]]
) -> None:
    """Past the end of the source, a source that is gone, a closed ring, and what is no source."""
    other = Ring(2)
    source = other.register_buffers([bytearray(2)])
    for first, count, number in ((1, 1, errno.EOVERFLOW), (0, 2, errno.EINVAL)):
        with pytest.raises(RegisterError, match="past the end") as refused:
            ring.clone_buffers(source, source_index=first, count=count)
        assert refused.value.errno == number
    source.close()
    with pytest.raises(RegisterError, match="other ring has no buffers") as refused:
        ring.clone_buffers(source)
    assert refused.value.errno == errno.ENXIO
    other.close()
    with pytest.raises(uring.RingClosedError):
        ring.clone_buffers(source)
    with pytest.raises(TypeError, match="RegisteredBuffers"):
        ring.clone_buffers(3)  # type: ignore[arg-type]  # wrong on purpose
    before = descriptors()
    with pytest.raises(uring.RingClosedError):
        ring.clone_buffers(source)
    assert descriptors() == before


# ---- the pool ----


def test_pool_lends_each_slice_once(ring: Ring, zero: int) -> None:
    """Slices are equal and distinct, go back at the end of a block, and are read into."""
    memory = bytearray(100)
    pool = BufferPool(ring.register_buffers([memory]), 30)
    assert (len(pool), pool.size, pool.free) == (3, 30, 3)
    with pool.lend() as first, pool.lend() as second, pool.lend() as third:
        assert [len(part) for part in (first, second, third)] == [30, 30, 30]
        assert repr(pool) == "<BufferPool of 3 slices of 30 bytes, 0 free>"
        with pytest.raises(BufferPoolEmpty, match="all 3 slices are lent"):
            pool.lend()
        assert read(ring, zero, second[:5]) == 5
    assert memory == bytes(30) + b"x" * 5 + bytes(65)
    assert pool.free == 3
    first.give_back()
    assert pool.free == 3  # the second time does nothing


def test_pool_gets_back_what_is_dropped() -> None:
    """A slice that nobody has any more is free again; a part of it is as good as itself."""
    pool = BufferPool(FixedBuffer(memoryview(bytearray(8)), 0), 4)
    lent = pool.lend()
    part = lent[1:2]
    assert (len(part), part.buf_index) == (1, 0)
    del lent
    gc.collect()
    assert pool.free == 1
    del part
    gc.collect()
    assert pool.free == 2


def test_pool_slice_is_lent_as_long_as_an_operation_has_it(
    ring: Ring, pipe: tuple[int, int]
) -> None:
    """What is dropped while an operation is in flight on it goes back when that has ended."""
    pool = BufferPool(ring.register_buffers([bytearray(8)]), 8)
    memory = Memory(8)
    memory.lent = pool.lend()  # as an operation on a FixedBuffer has it
    ring.queue(uring.Read(pipe[0], memory))
    del memory
    ring.submit()
    gc.collect()
    assert pool.free == 0
    os.write(pipe[1], b"data")
    assert ring.copy_cqe(timeout=10).res == 4
    gc.collect()
    assert pool.free == 1


@pytest.mark.parametrize(
    ("given", "size", "kind", "words"),
    [
        (FixedBuffer(memoryview(bytearray(8)), 0), 9, ValueError, "no slice of 9 bytes fits"),
        (FixedBuffer(memoryview(bytearray(8)), 0), 0, ValueError, "size"),
        ([bytearray(8)], 4, TypeError, "FixedBuffer"),
    ],
)
def test_pool_of_nothing_is_refused(
    given: FixedBuffer, size: int, kind: type[Exception], words: str
) -> None:
    """A pool has at least one slice, of registered memory."""
    with pytest.raises(kind, match=words):
        BufferPool(given, size)


def test_pool_spans_several_buffers(ring: Ring) -> None:
    """Slices of all buffers are lent, with their indices."""
    buffers = ring.register_buffers([bytearray(8), bytearray(10)])
    pool = BufferPool(buffers, 4)
    lent = [pool.lend() for _ in range(4)]
    assert [part.buf_index for part in lent] == [0, 0, 1, 1]
    assert isinstance(lent[0], FixedBuffer)


def test_array_of_buffers_is_one_of_iovecs() -> None:
    """Each has its address and its length; an empty slot has neither."""
    memory = bytearray(5)
    argument, pins = registry.buffers_argument([None, memory])
    address = uring._memory.address_of(pins[1]) if pins[1] is not None else 0
    assert uring._memory.bytes_of(argument) == struct.pack("@PnPn", 0, 0, address, 5)


def test_buffers_of_a_ring_owned_by_a_thread_are_its_own(zero: int) -> None:
    """With DEFER_TASKRUN the owner registers, reads and closes as ever."""
    flags = SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN
    with Ring(2, flags=flags) as ring, ring.register_buffers([bytearray(4)]) as buffers:
        assert read(ring, zero, buffers[0]) == 4
