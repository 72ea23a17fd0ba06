"""
Provided buffer rings: groups of buffers from which the kernel picks when the data is there.

A group belongs to one ring and is known there by its number, the buffer group id (bgid). What the
kernel has put into its buffers comes as leases: see _leases.
"""

import struct
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, Self

from uring import _memory
from uring._checks import check_range
from uring._ffi import lib
from uring.errors import UringError
from uring.flags import Opcode, PbufRingFlags, SQEFlags
from uring.sqe import buffer_group, is_drained, is_linked

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from uring._leases import Block
    from uring._uring import CData

COUNT_MAX: Final = 32768  # IORING_MAX_ENTRIES bounds io_register_pbuf_ring(), too
SIZE_MAX: Final = 2**31 - 1
_BUF_REG: Final = struct.Struct("=QIHH24x")  # struct io_uring_buf_reg
_BUF_STATUS: Final = struct.Struct("=II32x")  # struct io_uring_buf_status


def check_count(count: int) -> int:
    """Return a count of buffers, a power of two."""
    check_range("count", count, 1, COUNT_MAX)
    if count & (count - 1):
        raise ValueError(
            f"count must be a power of two, not {count}; use {1 << count.bit_length()}"
        )
    return count


def registration(block: "Block", bgid: int, flags: PbufRingFlags) -> "CData":
    """Encode a struct io_uring_buf_reg; without an array of ours when the kernel makes it."""
    address = 0 if flags & PbufRingFlags.MMAP else block.array_address
    pin, _, _ = _memory.readable(_BUF_REG.pack(address, block.count, bgid, flags))
    return pin


def unregistration(bgid: int) -> "CData":
    """Encode a struct io_uring_buf_reg that only names the group."""
    pin, _, _ = _memory.readable(_BUF_REG.pack(0, 0, bgid, 0))
    return pin


def status_request(bgid: int) -> tuple[bytearray, "CData"]:
    """Encode a struct io_uring_buf_status, and pin it for the answer."""
    request = bytearray(_BUF_STATUS.pack(bgid, 0))
    pin, _, _ = _memory.writable(request)
    return request, pin


def status_head(answer: bytearray) -> int:
    """How many buffers the kernel has taken, wrapping at 2**16."""
    head: int = _BUF_STATUS.unpack(answer)[1]
    return head & 0xFFFF


class _BufferGroup:
    """What the two kinds of group have in common."""

    __slots__ = ("__weakref__", "_block", "_ring", "bgid", "flags")

    def __init__(self, ring: Any, block: "Block", bgid: int, flags: PbufRingFlags) -> None:
        # Weakly: an operation in flight holds the group, and must not keep its ring from the
        # collector. The ring has the memory until it is closed.
        self._ring: Callable[[], Any] = weakref.ref(ring)
        self._block = block
        self.bgid = bgid
        """The buffer group id, 0..65535."""
        self.flags = flags
        """MMAP: the kernel made the array; INC: buffers are consumed bit by bit."""

    @property
    def count(self) -> int:
        """How many buffers there are."""
        return self._block.count

    @property
    def size(self) -> int:
        """How many bytes each of them has."""
        return self._block.size

    @property
    def closed(self) -> bool:
        """Whether the group is unregistered, or its ring closed."""
        ring = self._ring()
        return ring is None or ring.closed or not ring._has_group(self.bgid, self._block)

    @property
    def inside(self) -> int:
        """
        How many buffers the kernel has, as it says itself; one that is partly filled counts.

        Raises:
            ValueError: the group is closed.
            RegisterError: EINVAL, the kernel is older than 6.8, and does not say.

        Kernel: 6.8. liburing: io_uring_buf_ring_available(3).
        """
        if self.closed:
            raise ValueError(f"{self!r} is closed")
        head: int = self._ring()._group_head(self.bgid)
        tail: int = self._block.shim.tail
        return (tail - head) & 0xFFFF

    def close(self) -> None:
        """
        Unregister the group. May be called any number of times.

        Operations that wait for a buffer of it complete with ENOBUFS when data comes; until they
        have, no other group can have its number. Leases stay valid.

        Kernel: 5.19. liburing: io_uring_unregister_buf_ring(3).
        """
        ring = self._ring()
        if ring is not None and not self.closed:
            ring._unregister_group(self.bgid, self._block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<{'closed ' if self.closed else ''}{type(self).__name__} bgid={self.bgid}"
            f" of {self.count} x {self.size} bytes>"
        )


class BufferRing(_BufferGroup):
    """
    A group of buffers that the kernel fills; `Ring.register_buffer_ring()` makes it.

    Operations name it as their `group`: `RecvMultishot(sock, buffers)`. Their results are leases,
    and a buffer goes back to the kernel when its lease is gone. When all are out, operations
    complete with ENOBUFS: give leases back, and queue the operation again.

    Kernel: 5.19. liburing: io_uring_setup_buf_ring(3).
    """

    __slots__ = ()


class SendBufferRing(_BufferGroup):
    """
    A group of buffers that we fill and the kernel sends, in the order in which they were `put()`.

    `Ring.register_send_buffer_ring()` makes it. `SendBundle(sock, group)` sends all that is there
    with one completion; a buffer is free again once that was copied out.

    Kernel: 6.10. liburing: io_uring_setup_buf_ring(3).
    """

    __slots__ = ()

    @property
    def free(self) -> int:
        """How many buffers `put()` can fill."""
        ring = self._ring()
        if self._block.is_unsure and ring is not None:
            with ring._lock:
                self._reclaim()
        return len(self._block.free or ())

    def put(self, buffer: "Buffer") -> int:
        """
        Copy bytes into a free buffer, and give it to the kernel behind those that it has.

        Args:
            buffer: readable memory of 1 to `size` bytes, which is yours again afterwards.

        Returns:
            How many buffers are still free.

        Raises:
            BufferError: none is free -> queue a send, and copy its completion out.
            ValueError: `buffer` is empty or longer than `size`, or the group is closed.
        """
        ring = self._ring()
        if ring is None or self.closed:
            raise ValueError(f"{self!r} is closed")
        block, give = self._block, lib.uring_buffers_give
        free = [] if block.free is None else block.free
        with ring._lock, memoryview(buffer).cast("B") as view:
            length = len(view)
            if not 1 <= length <= block.size:
                raise ValueError(f"one buffer takes 1 to {block.size} bytes, not {length}")
            while True:
                if not free:
                    self._reclaim()
                bid = free[-1] if free else -1
                if bid < 0:
                    raise BufferError(
                        f"all {block.count} buffers are waiting to be sent: queue a send and copy"
                        " its completion out"
                    )
                part, shim = block.part(bid)[:length], block.shim
                # From here no call but the last, or Ctrl-C could lose the buffer.
                if free and free[-1] == bid:
                    part[:] = view
                    block.lengths[bid] = length
                    del free[-1]
                    block.given[bid] = block.turn
                    block.turn += 1
                    give(shim, bid, length)
                    return len(free)

    def _reclaim(self) -> None:
        """
        Take back the buffers of which no completion tells.

        A bundle that fails has taken several, and its completion names the first. The ring's lock
        is held, so that nothing is put meanwhile.
        """
        block, ring = self._block, self._ring()
        given = list(block.given.items())
        try:
            waiting = block.waiting(ring._group_head(self.bgid))
        except UringError:  # closed; or a kernel before 6.8, or the owner's to ask
            return
        if ring._is_taking_from(self):  # asked last: what is submitted from here on takes others
            return
        block.is_unsure = False
        for bid, turn in given:
            if bid not in waiting:
                block.take_back(bid, turn)


_MSG_WAITALL: Final = 0x100
_OP_FLAGS: Final = slice(28, 32)  # of the record
_WAITERS: Final = frozenset({int(Opcode.RECV), int(Opcode.RECVMSG)})


def is_eager(op: Any) -> bool:
    """Whether it might take buffers of which it does not tell, if a worker of the kernel ran it."""
    if op is None or not op._takes_buffer or not isinstance(op.group, BufferRing):
        return False
    return op._takes_several or (op.group._block.is_incremental and not op._waits_for_data)


def check_group(op: Any, record: bytes, ring: Any, before: bytes | None = None) -> None:
    """
    Look whether an operation may take buffers from its group on this ring.

    `before` is the SQE that will stand before it, unless that is queued already.

    Raises:
        ValueError, TypeError: it may not -> the message says why.
    """
    group = op.group
    if not isinstance(group, BufferRing | SendBufferRing):
        if buffer_group(group) in ring._held.groups:
            raise ValueError(
                f"group {buffer_group(group)} is a BufferRing of this ring: give the object, which"
                " keeps count of its buffers, and not its number"
            )
        return
    if group.closed:
        raise ValueError(f"{group!r} is closed")
    if group._ring() is not ring:
        raise ValueError(f"{group!r} belongs to another ring")
    wanted = SendBufferRing if op._sends_buffer else BufferRing
    if not isinstance(group, wanted):
        raise TypeError(f"{type(op).__name__} takes a {wanted.__name__}, not {group!r}")
    if group._block.is_incremental or op._takes_several:
        _check_inline(op, record, ring, before)


def _check_inline(op: Any, record: bytes, ring: Any, before: bytes | None) -> None:
    """
    Refuse what might take more than it tells, or buffers that do not follow each other.

    Where the next one begins could then not be told, nor what a bundle is made of. Measured on
    6.18: what a worker of the kernel runs uses up what it asks for of an incremental buffer, each
    time that it tries, and not what it gets; and a bundle takes its second buffer there, like one
    with MSG_WAITALL that has to wait, when others may have taken the one behind its first
    (io_recv_buf_select() in io_uring/net.c). To a worker goes what is ASYNC; what is linked to
    something that ran there; and whatever is submitted while a drain waits, up to the first
    operation behind its end (`drain_active` in io_init_req() of io_uring/io_uring.c). A drain
    within a chain does that to the chain's first operation.
    """
    name = type(op).__name__
    why, instead = f"{name} takes several buffers", "RecvSelect"
    if op.group._block.is_incremental:
        why, instead = f"{op.group!r} is incremental", "RecvMultishot"
        if not op._is_gradual:
            raise ValueError(f"{why}, which does not go with single reads: use ReadMultishot")
    flags = int.from_bytes(record[_OP_FLAGS], sys.byteorder)
    waits_for_all = record[0] in _WAITERS and flags & _MSG_WAITALL
    if record[1] & SQEFlags.ASYNC or waits_for_all:
        raise ValueError(f"{why}, which goes neither with ASYNC nor with MSG_WAITALL")
    if op._waits_for_data:
        return
    if is_linked(record) or (ring._is_behind_link() if before is None else is_linked(before)):
        raise ValueError(
            f"{why}, which goes with {name} only outside of chains: queue it alone, or use"
            f" {instead}"
        )
    if is_drained(record) or ring._in_flight.has_drained:
        raise ValueError(
            f"{why}, which goes with {name} only on a ring that was never given an operation with"
            f" IO_DRAIN: use {instead}, or another ring"
        )
