"""
Registered buffers: memory that the kernel has pinned, for operations that take a `FixedBuffer`.

The kernel pins pages; what keeps Python from using the memory for something else are the exports
in the ring's `Held`. They stay from before the registration until it is over, and then until
nothing is in flight that could still use them.
"""

import errno
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Self

from uring import _memory
from uring._checks import check_range
from uring._ffi import ffi
from uring._memory import FixedBuffer
from uring.errors import BufferPoolEmpty, UringError, register_error
from uring.flags import CloneBuffersFlags, RegisterOpcode, RsrcFlags
from uring.registry._base import (
    GUARD,
    BufferTable,
    Registrar,
    Registration,
    checked_tags,
    descriptor_of,
    expecting,
)
from uring.registry.files import RSRC_REGISTER, RSRC_UPDATE2, uint64s
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from uring._uring import CData

_CLONE: Final = struct.Struct("=IIIII12x")  # struct io_uring_clone_buffers
_iovec: Final = struct.Struct("NN").pack


def buffers_argument(
    buffers: "Iterable[Buffer | None]",
) -> "tuple[CData, list[CData | None]]":
    """
    Pin buffers and an array of struct iovec over them: (the array, a pin for each).

    Registering read-only memory is refused by the kernel only where the pages are read-only, and
    those of an immutable object are not: so they are refused here.
    """
    if isinstance(buffers, str) or not isinstance(buffers, Iterable) or _memory.is_buffer(buffers):
        raise TypeError(f"buffers must be a sequence of buffers, not one {type(buffers).__name__}")
    pins = [None if each is None else _memory.pinned(each, write=True)[0] for each in buffers]
    if not pins:
        raise ValueError("at least one buffer must be given")
    array = bytearray()
    for index, pin in enumerate(pins):
        if pin is not None and not len(pin):
            raise ValueError(f"buffer {index} is empty: give None for an empty slot")
        array += _iovec(0, 0) if pin is None else _iovec(_memory.address_of(pin), len(pin))
    return _memory.pinned(array, write=False)[0], pins


class RegisteredBuffers(Registration):
    """
    The registered buffers of a ring, as `Ring.register_buffers()` gives them.

    `buffers[i]` is all of buffer i as a `FixedBuffer`, and a slice of that is a part of it. Leaving
    a `with` block, or `close()`, unregisters all of them.

    Lifetime: the ring pins the memory until it is unregistered or replaced, and until nothing is in
        flight that was so at that moment: this is looked at when something is registered or
        unregistered, and when the ring is closed. Resizing a bytearray meanwhile raises
        BufferError.

    Kernel: 5.1. liburing: io_uring_registered_buffers(7).
    """

    __slots__ = ("_table",)

    def __init__(self, ring: Registrar, table: BufferTable) -> None:
        super().__init__(ring)
        self._table = table

    def __len__(self) -> int:
        return len(self._table.pins)

    def __getitem__(self, index: int) -> FixedBuffer:
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(f"an index is an int, not {index!r}")
        count = len(self._table.pins)
        if not -count <= index < count:
            raise IndexError(f"there are {count} slots, and no {index}")
        index %= count
        pin = self._table.pins[index]
        if pin is None:
            raise ValueError(f"slot {index} is empty: fill it with update()")
        return FixedBuffer(_memory.view_of(pin), index)

    def __iter__(self) -> Iterator[FixedBuffer]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        filled = [len(pin) for pin in self._table.pins if pin is not None]
        return (
            f"<{self._state()}RegisteredBuffers of {len(self)} slots, {len(filled)} filled with"
            f" {sum(filled)} bytes>"
        )

    def update(
        self,
        index: int,
        buffers: "Iterable[Buffer | None]",
        *,
        tags: Iterable[int] | None = None,
    ) -> int:
        """
        Replace the buffers in the slots from `index` on.

        Operations in flight go on with the memory that they started with. One that the kernel has
        not begun (behind a link, or in the queue of an SQPOLL ring) completes with EFAULT.

        Args:
            index: the first slot, from 0.
            buffers: writable memory; None empties a slot.
            tags: a number for each: once it is replaced, and no operation uses it any more, a
                completion comes whose user_data is the tag, and whose res is 0. 0 means none.

        Returns:
            How many slots were updated. When these are fewer than given, the kernel refused the
            buffer after them, whose slot is as it was.

        Lifetime: as for the others; the replaced ones as if they were unregistered.

        Raises:
            TypeError: a buffer is read-only.
            RegisterError: EFAULT, the first cannot be pinned; EINVAL, past the end of the table;
                ENXIO, these buffers are unregistered.
            ValueError: a tag is in use, or for a slot that stays empty.

        Kernel: 5.13. liburing: io_uring_register_buffers_update_tag(3).
        """
        check_range("index", index, 0, UINT32_MAX)
        array, pins = buffers_argument(buffers)
        marks = checked_tags(tags, [pin is None for pin in pins])
        _tags_pin, tags_address = uint64s(marks)
        address = _memory.address_of(array)
        record = RSRC_UPDATE2.pack(index, 0, address, tags_address, len(pins), 0)
        done = expecting(self._ring, marks, lambda: self._update(index, record, pins))
        self._ring._forget_lingering()
        return done

    def _update(self, index: int, record: bytes, pins: "list[CData | None]") -> int:
        argument, _, _ = _memory.readable(record)
        held, opcode = self._ring._held, RegisterOpcode.REGISTER_BUFFERS_UPDATE
        with GUARD.lock:
            if not self._ring.closed and not self._is_current():
                raise register_error(opcode, errno.ENXIO)
            held.unsure[id(pins)] = pins
            try:
                done = self._ring._register(opcode, argument, len(record))
            except UringError:
                held.unsure.pop(id(pins), None)
                raise
            part = slice(index, index + done)
            held.let_go(self._table.pins[part])
            self._table.pins[part] = pins[:done]
            held.unsure.pop(id(pins), None)
        return done

    def _is_current(self) -> bool:
        return self._ring._held.buffers is self._table

    def _unregister(self) -> None:
        with GUARD.lock:
            if self._is_current():
                _unregister(self._ring)
        self._ring._forget_lingering()


def register_buffers(
    ring: Registrar, buffers: "Iterable[Buffer | None]", tags: Iterable[int] | None
) -> RegisteredBuffers:
    """Register buffers, with tags if there are any."""
    array, pins = buffers_argument(buffers)
    marks = checked_tags(tags, [pin is None for pin in pins])
    _tags_pin, tags_address = uint64s(marks)
    if marks is None:
        opcode, argument, size = RegisterOpcode.REGISTER_BUFFERS, array, len(pins)
    else:
        record = RSRC_REGISTER.pack(len(pins), 0, 0, _memory.address_of(array), tags_address)
        opcode, size = RegisterOpcode.REGISTER_BUFFERS2, len(record)
        argument, _, _ = _memory.readable(record)
    return _register(ring, opcode, argument, size, BufferTable(pins), marks)


def register_buffers_sparse(ring: Registrar, count: int) -> RegisteredBuffers:
    """Register empty slots."""
    check_range("count", count, 1, UINT32_MAX)
    record = RSRC_REGISTER.pack(count, RsrcFlags.SPARSE, 0, 0, 0)
    argument, _, _ = _memory.readable(record)
    ring._forget_lingering()
    opcode, held = RegisterOpcode.REGISTER_BUFFERS2, ring._held
    with GUARD.lock:
        ring._register(opcode, argument, len(record))
        # Made after the kernel has said that it is no more than 16384.
        held.buffers = table = BufferTable([None] * count)
    return RegisteredBuffers(ring, table)


def _register(
    ring: Registrar,
    opcode: RegisterOpcode,
    argument: "CData",
    size: int,
    table: BufferTable,
    tags: list[int] | None,
) -> RegisteredBuffers:
    def register() -> int:
        held = ring._held
        with GUARD.lock:
            held.unsure[id(table)] = table
            try:
                ring._register(opcode, argument, size)
            except UringError:
                held.unsure.pop(id(table), None)
                raise
            held.buffers = table
            held.unsure.pop(id(table), None)
        return len(table.pins)

    ring._forget_lingering()
    expecting(ring, tags, register)
    return RegisteredBuffers(ring, table)


def unregister_buffers(ring: Registrar) -> None:
    """Unregister all buffers."""
    with GUARD.lock:
        _unregister(ring)
    ring._forget_lingering()


def _unregister(ring: Registrar) -> None:
    """The same, with the lock held, and the pins kept."""
    # What a signal handler registers right after the call is not among these.
    held = ring._held
    former, unsure = held.buffers, dict(held.unsure)
    ring._register(RegisterOpcode.UNREGISTER_BUFFERS, ffi.NULL, 0)
    held.let_go((former, unsure))
    for key in unsure:
        held.unsure.pop(key, None)
    if held.buffers is former:
        held.buffers = None


def clone_buffers(
    ring: Registrar,
    source: RegisteredBuffers,
    *,
    source_index: int,
    index: int,
    count: int | None,
    replace: bool,
) -> RegisteredBuffers:
    """Register in `ring` what is registered in another one."""
    if not isinstance(source, RegisteredBuffers):
        raise TypeError(f"buffers are cloned from RegisteredBuffers, not {source!r}")
    check_range("source_index", source_index, 0, UINT32_MAX)
    check_range("index", index, 0, UINT32_MAX)
    if count is None:
        count = max(len(source) - source_index, 1)
    check_range("count", count, 1, UINT32_MAX)
    with descriptor_of(source._ring) as fd:
        flags = CloneBuffersFlags.DST_REPLACE if replace else CloneBuffersFlags(0)
        argument, _, _ = _memory.readable(_CLONE.pack(fd, flags, source_index, index, count))
        table = _clone(ring, source, argument, index, slice(source_index, source_index + count))
    ring._forget_lingering()
    return RegisteredBuffers(ring, table)


def _clone(
    ring: Registrar, source: RegisteredBuffers, argument: "CData", index: int, part: slice
) -> BufferTable:
    held, opcode = ring._held, RegisterOpcode.REGISTER_CLONE_BUFFERS
    with GUARD.lock:
        if not source._is_current():
            raise register_error(opcode, errno.ENXIO)
        pins = source._table.pins[part]
        held.unsure[id(pins)] = pins
        try:
            ring._register(opcode, argument, 1)
        except UringError:
            held.unsure.pop(id(pins), None)
            raise
        former = held.buffers.pins if held.buffers is not None else []
        end = index + len(pins)
        held.let_go(former[index:end])
        before = [*former[:index], *[None] * (index - len(former))]
        held.buffers = table = BufferTable([*before, *pins, *former[end:]])
        held.unsure.pop(id(pins), None)
    return table


# ---- a pool of equal slices ----


class _Loan:
    """One lending of a slice; it goes back when nobody has it any more, or before."""

    __slots__ = ("_free", "_slice")

    def __init__(self, free: deque[FixedBuffer]) -> None:
        self._free: deque[FixedBuffer] | None = None
        self._slice = free.popleft()
        self._free = free

    def end(self) -> None:
        """Give the slice back; once."""
        free, self._free = self._free, None  # no call between the load and the store
        if free is not None:
            free.append(self._slice)

    __del__ = end


class LentBuffer(FixedBuffer):
    """
    A slice of a `BufferPool`, lent; goes back when a `with` block is left, or by `give_back()`.

    When neither is done it goes back by itself once nobody has it or a slice of it: an operation in
    flight has it. Giving it back while an operation is in flight on it is safe for memory, and the
    next one who borrows it reads what that operation writes.
    """

    __slots__ = ("_loan",)

    def __init__(self, view: memoryview, buf_index: int, loan: _Loan) -> None:
        super().__init__(view, buf_index)
        self._loan = loan

    def __getitem__(self, part: slice) -> "LentBuffer":
        cut = super().__getitem__(part)
        return LentBuffer(cut.view, cut.buf_index, self._loan)

    def give_back(self) -> None:
        """Give it back to the pool, with all slices of it. Does nothing the second time."""
        self._loan.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.give_back()


class BufferPool:
    """
    Equal slices of registered buffers, to lend to one operation after the other.

    `lend()` gives one out, and it comes back by itself, or earlier: see `LentBuffer`. Any thread
    may do either.

    Args:
        buffers: a `FixedBuffer`, or several: `RegisteredBuffers` whose slots are all filled, for
            one. What is left over at the end of one is not used.
        size: bytes in a slice, from 1.

    Raises:
        ValueError: not even one slice fits.
    """

    __slots__ = ("_count", "_free", "_size")

    def __init__(
        self, buffers: "FixedBuffer | Sequence[FixedBuffer] | RegisteredBuffers", size: int
    ) -> None:
        check_range("size", size, 1, UINT32_MAX)
        parts = [buffers] if isinstance(buffers, FixedBuffer) else [*buffers]
        for part in parts:
            if not isinstance(part, FixedBuffer):
                raise TypeError(f"a pool is made of FixedBuffer, not {part!r}")
        self._size = size
        self._free = deque(
            part[start : start + size]
            for part in parts
            for start in range(0, len(part) - size + 1, size)
        )
        self._count = len(self._free)
        if not self._free:
            raise ValueError(f"no slice of {size} bytes fits")

    @property
    def size(self) -> int:
        """Bytes in a slice."""
        return self._size

    @property
    def free(self) -> int:
        """How many slices are not lent; by the time one looks it may have changed."""
        return len(self._free)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<BufferPool of {len(self)} slices of {self._size} bytes, {self.free} free>"

    def lend(self) -> LentBuffer:
        """
        Lend a slice; it holds what the last borrower left in it.

        Raises:
            BufferPoolEmpty: all are lent -> copy completions out, give back, and ask again.
        """
        try:
            loan = _Loan(self._free)
        except IndexError:
            raise BufferPoolEmpty(
                f"all {self._count} slices are lent: give one back first, or make the pool larger"
            ) from None
        return LentBuffer(loan._slice.view, loan._slice.buf_index, loan)
