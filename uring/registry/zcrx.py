"""
Zero-copy receive: a receive queue of a network device that writes into memory of ours.

Here is its registration, and no more: `RecvZc` on the ring, the refill ring and the set-up of the
device (header split, flow steering) are the caller's.
"""

import errno
import mmap
import socket
import struct
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring._checks import check_range
from uring.errors import register_error
from uring.flags import (
    MemRegionTypeFlags,
    RegisterOpcode,
    ZcrxControl,
    ZcrxEvent,
    ZcrxRegisterFlags,
)
from uring.registry._base import Registrar
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_AREA: Final = struct.Struct("=QQQII16x")  # struct io_uring_zcrx_area_reg
_REGION: Final = struct.Struct("=QQIIQ32x")  # struct io_uring_region_desc
_IFQ: Final = struct.Struct("=IIIIQQIII20xIIQ16x")  # struct io_uring_zcrx_ifq_reg
_CONTROL: Final = struct.Struct("=II16xI44x")  # struct zcrx_ctrl
_RQE_SIZE: Final = 16  # struct io_uring_zcrx_rqe


class ZcrxRequest:
    """What REGISTER_ZCRX_IFQ takes: records that point to each other, and the memory."""

    def __init__(
        self,
        interface: int | str,
        queue: int,
        *,
        area_size: int,
        rq_entries: int,
        rx_buf_len: int,
        zcrx_flags: ZcrxRegisterFlags,
    ) -> None:
        if isinstance(interface, str):
            interface = _index(interface)
        check_range("interface", interface, 0, UINT32_MAX)
        check_range("queue", queue, 0, UINT32_MAX)
        check_range("area_size", area_size, 1, 2**47)
        check_range("rq_entries", rq_entries, 1, 2**15)
        check_range("rx_buf_len", rx_buf_len, 0, UINT32_MAX)
        check_range("zcrx_flags", zcrx_flags, 0, UINT32_MAX)
        # Mappings of their own: the device may write until the kernel has taken the ring apart,
        # which is after close() has returned, and pages that were mapped are not used again.
        self.area = mmap.mmap(-1, -(-area_size // mmap.PAGESIZE) * mmap.PAGESIZE)
        refill_size = mmap.PAGESIZE + rq_entries * _RQE_SIZE
        self.refill = mmap.mmap(-1, -(-refill_size // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._pins = [_memory.pinned(each, write=True)[0] for each in (self.area, self.refill)]
        area, region = (_memory.address_of(pin) for pin in self._pins)
        self.area_record = bytearray(_AREA.pack(area, len(self.area), 0, 0, 0))
        self.region_record = bytearray(
            _REGION.pack(region, len(self.refill), MemRegionTypeFlags.USER, 0, 0)
        )
        addresses = [self._pin(each) for each in (self.area_record, self.region_record)]
        self.record = bytearray(
            _IFQ.pack(
                *(interface, queue, rq_entries, zcrx_flags),
                *(*addresses, 0, 0, 0, 0, rx_buf_len, 0),
            )
        )
        self._pin(self.record)

    def _pin(self, record: bytearray) -> int:
        pin, address, _ = _memory.writable(record)
        self._pins.append(pin)
        return address

    @property
    def argument(self) -> "CData":
        """The struct io_uring_zcrx_ifq_reg."""
        return self._pins[-1]


def _index(name: str) -> int:
    """The number of a network interface; without one, what the kernel says to a wrong number."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise register_error(RegisterOpcode.REGISTER_ZCRX_IFQ, errno.ENODEV) from None


class ZcrxQueue:
    """
    A receive queue that `Ring.register_zcrx()` has taken over; it stays so until the ring closes.

    Kernel: 6.15. liburing: io_uring_register_ifq(3).
    """

    __slots__ = ("_request", "_ring")

    def __init__(self, ring: Registrar, request: ZcrxRequest) -> None:
        self._ring = ring
        self._request = request

    @property
    def id(self) -> int:
        """What `RecvZc` takes as the queue's id."""
        return int(_IFQ.unpack(self._request.record)[9])

    @property
    def area(self) -> memoryview:
        """The memory that the device writes to."""
        return memoryview(self._request.area)

    @property
    def area_token(self) -> int:
        """What an entry of the refill ring has in the upper bits of its offset."""
        return int(_AREA.unpack(self._request.area_record)[2])

    @property
    def refill_ring(self) -> memoryview:
        """The memory of the refill ring; `refill_offsets` says where in it is what."""
        return memoryview(self._request.refill)

    @property
    def refill_offsets(self) -> tuple[int, int, int]:
        """Where in the refill ring are its head, its tail and its entries."""
        head, tail, rqes = _IFQ.unpack(self._request.record)[6:9]
        return head, tail, rqes

    def __repr__(self) -> str:
        interface, queue, *_ = _IFQ.unpack(self._request.record)
        return f"<ZcrxQueue {self.id}: queue {queue} of interface {interface}>"

    def flush(self) -> None:
        """
        Have the kernel take what is in the refill ring.

        Raises:
            UnsupportedError: the kernel lacks the call.

        Kernel: 6.19. liburing: io_uring_register_zcrx_ctrl(3).
        """
        self._control(ZcrxControl.FLUSH_RQ, 0)

    def export(self) -> int:
        """
        Return a new descriptor by which another ring can share the queue; the caller closes it.

        Raises:
            UnsupportedError: the kernel lacks the call.

        Kernel: 6.19. liburing: io_uring_register_zcrx_ctrl(3).
        """
        return int(_CONTROL.unpack(self._control(ZcrxControl.EXPORT, 0))[2])

    def arm_event(self, event: ZcrxEvent) -> None:
        """
        Have the kernel tell of an event once more.

        Raises:
            UnsupportedError: the kernel lacks the call.

        liburing: io_uring_register_zcrx_ctrl(3).
        """
        self._control(ZcrxControl.ARM_EVENT, check_range("event", event, 0, UINT32_MAX))

    def _control(self, command: ZcrxControl, parameter: int) -> bytearray:
        record = control_record(self.id, command, parameter)
        pin, _, _ = _memory.writable(record)
        self._ring._register(RegisterOpcode.REGISTER_ZCRX_CTRL, pin, 0)
        return record


def control_record(id: int, command: ZcrxControl, parameter: int) -> bytearray:
    """Encode a struct zcrx_ctrl; the kernel may answer in it."""
    return bytearray(_CONTROL.pack(id, command, parameter))


def register_zcrx(ring: Registrar, request: ZcrxRequest) -> ZcrxQueue:
    """Register a receive queue; its memory stays until the ring is closed."""
    ring._held.for_life.append(request)  # before the call: it may be cut off after it
    try:
        ring._register(RegisterOpcode.REGISTER_ZCRX_IFQ, request.argument, 1)
    except OSError:
        ring._held.for_life.remove(request)
        raise
    return ZcrxQueue(ring, request)
