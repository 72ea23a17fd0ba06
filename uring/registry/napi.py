"""Busy polling of network devices while a thread waits for completions."""

import struct
from typing import TYPE_CHECKING, Final

import attrs

from uring import _memory
from uring._checks import check_range
from uring.flags import NapiOpcode, NapiTracking, RegisterOpcode
from uring.registry._base import GUARD, Registrar, Registration
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

_NAPI: Final = struct.Struct("=IBB2xI4x")  # struct io_uring_napi


@attrs.frozen
class NapiSettings:
    """
    How a ring polls network devices.

    Source: struct io_uring_napi in linux/io_uring.h.
    """

    busy_poll_timeout_us: int
    """For how long, in microseconds."""
    prefer_busy_poll: bool = attrs.field(kw_only=True)
    """As SO_PREFER_BUSY_POLL of a socket."""
    tracking: NapiTracking | int = attrs.field(default=NapiTracking.DYNAMIC, kw_only=True)
    """How device queues are found; a number that this package does not know stays one."""


class NapiBusyPoll(Registration):
    """
    Busy polling of a ring, as `Ring.register_napi()` switches it on.

    Leaving a `with` block, or `close()`, switches it off.

    Kernel: 6.9. liburing: io_uring_register_napi(3).
    """

    __slots__ = ("_token", "previous", "settings")

    def __init__(
        self, ring: Registrar, token: object, settings: NapiSettings, previous: NapiSettings
    ) -> None:
        super().__init__(ring)
        self._token = token
        self.settings = settings
        """What was asked for."""
        self.previous = previous
        """What was in force before."""

    def __repr__(self) -> str:
        return f"<{self._state()}NapiBusyPoll {self.settings!r}>"

    def add(self, napi_id: int) -> None:
        """
        Poll one more device queue; for `NapiTracking.STATIC`.

        Args:
            napi_id: as SO_INCOMING_NAPI_ID has it.

        Raises:
            RegisterError: EEXIST, it was added already; EINVAL, ids are tracked dynamically, or it
                is no id.

        Kernel: 6.13. liburing: io_uring_register_napi(3).
        """
        self._change(NapiOpcode.STATIC_ADD_ID, napi_id)

    def remove(self, napi_id: int) -> None:
        """
        Poll a device queue no longer.

        Raises:
            RegisterError: ENOENT, it was not added.

        Kernel: 6.13. liburing: io_uring_register_napi(3).
        """
        self._change(NapiOpcode.STATIC_DEL_ID, napi_id)

    def _change(self, opcode: NapiOpcode, napi_id: int) -> None:
        check_range("napi_id", napi_id, 0, UINT32_MAX)
        _, argument = _argument(0, opcode, napi_id, is_preferred=False)
        self._ring._register(RegisterOpcode.REGISTER_NAPI, argument, 1)

    def _is_current(self) -> bool:
        return self._ring._held.napi is self._token

    def _unregister(self) -> None:
        with GUARD.lock:
            if self._is_current():
                unregister_napi(self._ring)


def _argument(
    timeout_us: int, opcode: NapiOpcode, parameter: int, *, is_preferred: bool
) -> "tuple[bytearray, CData]":
    record = bytearray(_NAPI.pack(timeout_us, is_preferred, opcode, parameter))
    pin, _, _ = _memory.writable(record)  # the kernel answers with what was in force
    return record, pin


def register_napi(ring: Registrar, settings: NapiSettings) -> NapiBusyPoll:
    """Switch busy polling on."""
    check_range("busy_poll_timeout_us", settings.busy_poll_timeout_us, 0, UINT32_MAX)
    check_range("tracking", settings.tracking, 0, UINT32_MAX)
    record, argument = _argument(
        settings.busy_poll_timeout_us,
        NapiOpcode.REGISTER_OP,
        settings.tracking,
        is_preferred=settings.prefer_busy_poll,
    )
    token = object()
    with GUARD.lock:
        ring._register(RegisterOpcode.REGISTER_NAPI, argument, 1)
        ring._held.napi = token
    return NapiBusyPoll(ring, token, settings, _settings(record))


def unregister_napi(ring: Registrar) -> NapiSettings:
    """Switch busy polling off: what was in force; the kernel does not tell the tracking."""
    record, argument = _argument(0, NapiOpcode.REGISTER_OP, 0, is_preferred=False)
    with GUARD.lock:
        ring._register(RegisterOpcode.UNREGISTER_NAPI, argument, 1)
        ring._held.napi = None
    return _settings(record)


def _settings(record: bytearray) -> NapiSettings:
    timeout_us, is_preferred, _, tracking = _NAPI.unpack(record)
    known = {int(each) for each in NapiTracking}
    return NapiSettings(
        timeout_us,
        prefer_busy_poll=bool(is_preferred),
        tracking=NapiTracking(tracking) if tracking in known else tracking,
    )
