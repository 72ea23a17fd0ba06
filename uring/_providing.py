"""Registering groups of provided buffers: see registry.buffer_rings and _leases."""

from uring._calls import CallSide
from uring._checks import check_range
from uring._ffi import lib
from uring._leases import Block
from uring.errors import call_error
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

BGID_MAX = 65535


class ProvideSide(CallSide):
    """Registering groups of provided buffers."""

    def register_buffer_ring(
        self,
        count: int,
        size: int,
        *,
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
                so that `size` can be large (kernel 6.12). For sockets and pipes only, and neither
                with MSG_WAITALL nor ASYNC, which take more than they use.
            kernel_memory: have the kernel make the array of entries, which is mapped here (kernel
                6.4); the buffers are always ours.

        Lifetime: the memory stays until the group is closed, nothing in flight can use it, and no
            lease is left. A `BufferRing` that is dropped stays registered until the ring closes.

        Raises:
            ValueError: `bgid` is in use, or a number is out of range.
            RegisterError: EEXIST, the number is in use behind our back; EINVAL, the kernel lacks
                provided buffer rings or a flag; ENOMEM.

        Kernel: 5.19. liburing: io_uring_setup_buf_ring(3).
        """
        flags = PbufRingFlags(0)
        if incremental:
            flags |= PbufRingFlags.INC
        if kernel_memory:
            flags |= PbufRingFlags.MMAP
        block, bgid = self._register_group(count, size, bgid, flags, is_outgoing=False)
        for bid in range(count):
            block.give(bid)
        return BufferRing(self, block, bgid, flags)

    def register_send_buffer_ring(
        self, count: int, size: int, *, bgid: int | None = None
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
        flags = PbufRingFlags(0)
        block, bgid = self._register_group(count, size, bgid, flags, is_outgoing=True)
        return SendBufferRing(self, block, bgid, flags)

    def _register_group(
        self, count: int, size: int, bgid: int | None, flags: PbufRingFlags, *, is_outgoing: bool
    ) -> tuple[Block, int]:
        self._check_use()
        check_count(count)
        check_range("size", size, 1, SIZE_MAX)
        block = Block(
            count,
            size,
            is_incremental=bool(flags & PbufRingFlags.INC),
            is_outgoing=is_outgoing,
        )
        number = self._reserve_group(block, bgid)
        try:
            self._register(RegisterOpcode.REGISTER_PBUF_RING, registration(block, number, flags), 1)
        except BaseException:
            self._held.groups.pop(number, None)
            raise
        if flags & PbufRingFlags.MMAP:
            result = lib.uring_buffers_map(self._shim, block.shim, number)
            if result < 0:
                self._unregister_group(number, block)
                raise call_error("mmap of the ring", -result)
        return block, number

    def _reserve_group(self, block: Block, bgid: int | None) -> int:
        """Enter the block under its number, before the kernel is told of its memory."""
        if bgid is not None:
            check_range("bgid", bgid, 0, BGID_MAX)
            if self._held.groups.setdefault(bgid, block) is not block:
                raise ValueError(f"buffer group {bgid} is registered already: close it first")
            return bgid
        for number in range(BGID_MAX + 1):
            if self._held.groups.setdefault(number, block) is block:
                return number
        raise ValueError("all 65536 buffer groups are registered")

    def _unregister_group(self, bgid: int, block: Block) -> None:
        self._check_use()
        self._register(RegisterOpcode.UNREGISTER_PBUF_RING, unregistration(bgid), 1)
        lib.uring_buffers_close(block.shim)
        self._held.let_go(block)
        self._forget_lingering()
        with self._lock:
            self._stays = {key: stay for key, stay in self._stays.items() if key is not block}
        if self._held.groups.get(bgid) is block:
            del self._held.groups[bgid]

    def _has_group(self, bgid: int, block: Block) -> bool:
        return self._held.groups.get(bgid) is block

    def _group_head(self, bgid: int) -> int:
        self._check_use()
        answer, pin = status_request(bgid)
        self._register(RegisterOpcode.REGISTER_PBUF_STATUS, pin, 1)
        return status_head(answer)
