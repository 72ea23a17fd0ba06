"""Registering groups of provided buffers: see registry.buffer_rings and _leases."""

import errno
from typing import Any, TypeVar

from uring._calls import CallSide
from uring._checks import check_range
from uring._claims import Record, operation_of
from uring._ffi import lib
from uring._leases import Block
from uring.errors import RegisterError, UringError, call_error
from uring.flags import PbufRingFlags, RegisterOpcode
from uring.registry.buffer_rings import (
    SIZE_MAX,
    BufferRing,
    SendBufferRing,
    check_count,
    registration,
    status_head,
    status_request,
    unregistration,
)
from uring.sqe import buffer_group

BGID_MAX = 65535
_Group = TypeVar("_Group", BufferRing, SendBufferRing)


class ProvideSide(CallSide):
    """Registering groups of provided buffers."""

    def register_buffer_ring(
        self,
        count: int,
        *,
        size: int,
        bgid: int | None = None,
        incremental: bool = False,
        kernel_memory: bool = False,
    ) -> BufferRing:
        """
        Make and register a group of buffers for the kernel to fill.

        Args:
            count: how many, a power of two from 1 to 32768.
            size: the bytes of each, up to 2**31 - 1. The memory is taken at once, and belongs to
                the ring: 2 KiB for packets, 16 KiB and more for streams.
            bgid: its number, 0..65535; None takes the lowest that is free.
            incremental: let several completions share one buffer, each using only what it needs,
                so that `size` can be large (kernel 6.12). For sockets and pipes only, of which
                nobody else reads, and neither with MSG_WAITALL nor ASYNC, which take more than
                they use. What takes a buffer but `RecvMultishot` and `RecvmsgMultishot` must stand
                outside of chains, on a ring that is never given an operation with IO_DRAIN.
            kernel_memory: have the kernel make the array of entries, which is mapped here (kernel
                6.4); the buffers are always ours.

        Lifetime: the memory stays until the group is closed, nothing in flight can use it, and no
            lease is left. A `BufferRing` that is dropped stays registered until the ring closes.

        Raises:
            ValueError: `bgid` is in use, if only by an operation in flight that was queued when it
                was another group's; or a number is out of range.
            RegisterError: EEXIST, the number is in use behind our back; EINVAL, the kernel lacks
                provided buffer rings or a flag; ENOMEM.

        Kernel: 5.19. liburing: io_uring_setup_buf_ring(3).
        """
        flags = PbufRingFlags(0)
        if incremental:
            flags |= PbufRingFlags.INC
        if kernel_memory:
            flags |= PbufRingFlags.MMAP
        return self._register_group(BufferRing, count, size, bgid, flags)

    def register_send_buffer_ring(
        self, count: int, *, size: int, bgid: int | None = None
    ) -> SendBufferRing:
        """
        Make and register a group of buffers to send from.

        Args:
            count: how many, a power of two from 1 to 32768.
            size: the bytes of each, up to 2**31 - 1.
            bgid: its number, 0..65535; None takes the lowest that is free.

        Raises:
            ValueError, RegisterError: as for `register_buffer_ring()`.

        Kernel: 6.10. liburing: io_uring_setup_buf_ring(3).
        """
        return self._register_group(SendBufferRing, count, size, bgid, PbufRingFlags(0))

    def _register_group(
        self, kind: type[_Group], count: int, size: int, bgid: int | None, flags: PbufRingFlags
    ) -> _Group:
        self._check_use()
        check_count(count)
        check_range("size", size, 1, SIZE_MAX)
        is_incremental, is_outgoing = bool(flags & PbufRingFlags.INC), kind is SendBufferRing
        try:
            block = Block(count, size, is_incremental=is_incremental, is_outgoing=is_outgoing)
        except (OSError, MemoryError) as error:
            why = f"there is no memory for {count} buffers of {size} bytes"
            raise call_error("io_uring_register", errno.ENOMEM, advice=why) from error
        is_refused = True
        try:
            number = self._reserve_group(block, bgid)
            request = registration(block, number, flags)
            is_refused = False
            try:
                self._register(RegisterOpcode.REGISTER_PBUF_RING, request, 1)
            except UringError:
                is_refused = True
                raise
            if flags & PbufRingFlags.MMAP:
                self._map_group(block, number)
            if not is_outgoing:
                for bid in range(count):
                    block.give(bid)
            group = kind(self, block, number, flags)
        except BaseException:  # nobody else would ever close it
            for place in [n for n, known in list(self._held.groups.items()) if known is block]:
                if is_refused:
                    self._held.groups.pop(place, None)
                else:
                    self._unregister_group(place, block)
            raise
        return group

    def _map_group(self, block: Block, bgid: int) -> None:
        result = lib.uring_buffers_map(self._shim, block.shim, bgid)
        if result < 0:
            why = "the entries of the group, which the kernel has made, cannot be mapped"
            raise call_error("io_uring_register", -result, advice=why)

    def _reserve_group(self, block: Block, bgid: int | None) -> int:
        """Enter the block under its number, before the kernel is told of its memory."""
        if bgid is not None:
            check_range("bgid", bgid, 0, BGID_MAX)
        with self._lock:  # who queues an operation on a group looks and appends with it
            named = self._named_groups()
            if bgid is not None:
                if bgid in named and bgid not in self._held.groups:
                    raise ValueError(
                        f"an operation in flight takes buffers from group {bgid}, which was closed:"
                        " copy its completion out first, or take another number"
                    )
                if self._held.groups.setdefault(bgid, block) is not block:
                    raise ValueError(f"buffer group {bgid} is registered already: close it first")
                return bgid
            for number in range(BGID_MAX + 1):
                if number in named:
                    continue
                if self._held.groups.setdefault(number, block) is block:
                    return number
        raise ValueError("all 65536 buffer groups are registered")

    def _named_groups(self) -> set[int]:
        """
        The groups that operations take from which are queued or in flight. The lock is held.

        The kernel goes by the number each time that it takes a buffer, and we by the group that the
        operation was given: a number that stood for another one meanwhile would lend the wrong
        memory.
        """
        self._trim()
        records = [record for record in self._pending[1:] if record not in self._in_flight]
        ops = [*self._takers(), *_takers_of(records)]
        return {buffer_group(op.group) for op in ops}

    def _takers(self) -> list[Any]:
        """The operations in flight that take buffers from groups. The lock is held."""
        in_flight = self._in_flight
        if in_flight.ended is not None:
            in_flight.retire()
        in_flight.index()
        records = list(in_flight.entries.values())
        for shared in list(in_flight.shared.values()):
            records += shared.records.values()
        return _takers_of(records)

    def _unregister_group(self, bgid: int, block: Block) -> None:
        self._check_use()
        with self._lock:  # else who comes second could unregister what has the number next
            if self._held.groups.get(bgid) is not block:
                return
            try:
                self._register(RegisterOpcode.UNREGISTER_PBUF_RING, unregistration(bgid), 1)
            except RegisterError as error:
                if error.errno != errno.ENOENT:  # else done before, and cut off right after
                    raise
            lib.uring_buffers_close(block.shim)
            self._held.let_go(block)
            self._held.groups.pop(bgid, None)
            self._forget_lingering()

    def _has_group(self, bgid: int, block: Block) -> bool:
        return self._held.groups.get(bgid) is block

    def _is_taking_from(self, group: SendBufferRing) -> bool:
        """Whether an operation in flight may have taken buffers of the group. The lock is held."""
        takers = self._takers()
        return bool([op for op in takers if op.group is group or op.group == group.bgid])

    def _group_head(self, bgid: int) -> int:
        self._check_use()
        answer, pin = status_request(bgid)
        self._register(RegisterOpcode.REGISTER_PBUF_STATUS, pin, 1)
        return status_head(answer)


def _takers_of(records: list[Record]) -> list[Any]:
    """The operations among these that take buffers from groups."""
    ops: list[Any] = [operation_of(record[2]) for record in records]
    return [op for op in ops if op is not None and op._takes_buffer]
