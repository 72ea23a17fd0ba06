"""
What a ring asks of the kernel past its queues, through io_uring_register(2).

Here are the call itself and what its answers mean, what is done by a call alone (enabling,
cancelling, sending), and what the ring holds for all that `registry` registers.
"""

import contextlib
import errno
import io
import time
from typing import TYPE_CHECKING, Final

from uring import _memory
from uring._checks import check_range
from uring._completion import deadline_ns
from uring._core import NO_FD, NOT_PLAIN, Core
from uring._ffi import ffi, lib
from uring._pledges import MessagePledge, Pledge
from uring._records import reached_by
from uring.errors import RingClosedError, UnsupportedError, UringError, register_error
from uring.flags import MsgRingFlags, Opcode, RegisterOpcode
from uring.probe import last_register_opcode
from uring.registry import cancel as _cancel
from uring.sqe import (
    SQE,
    UINT32_MAX,
    UINT64_MAX,
    FileLike,
    HasFileno,
    check_message_flags,
    descriptor,
)

if TYPE_CHECKING:
    from uring._uring import CData

_CANCEL_SLICE_NS: Final = 100_000_000  # so that a close() need not wait for one who cancels
_OF_THE_RING: Final = frozenset({errno.ESHUTDOWN, errno.EOWNERDEAD})


class CallSide(Core):
    """Calling the kernel."""

    def fileno(self) -> int:
        """
        Return the descriptor, for poll(2) and the like: readable when completions are there.

        Never so with DEFER_TASKRUN, which posts completions only when the ring is entered.

        Raises:
            RingClosedError: the ring is closed.
            io.UnsupportedOperation: the ring has REGISTERED_FD_ONLY, and so none.
        """
        self._check_open()
        if self._fd == NO_FD:
            raise io.UnsupportedOperation("a ring with REGISTERED_FD_ONLY has no descriptor")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether `close()` was called, or the ring was left behind by a fork."""
        return self._refusal is not None

    @property
    def in_flight(self) -> int:
        """How many operations are in flight; see Ring."""
        raise NotImplementedError

    def enable(self) -> None:
        """
        Enable a ring that was made with `SetupFlags.R_DISABLED`.

        With SINGLE_ISSUER the calling thread becomes its owner.

        Raises:
            RegisterError: EBADFD, the ring is enabled already; EACCES, the same, and a restriction
                forbids even this.

        Kernel: 5.10. liburing: io_uring_enable_rings(3).
        """
        self._register(RegisterOpcode.REGISTER_ENABLE_RINGS, ffi.NULL, 0)
        self._is_disabled = False
        self._own()
        is_plain = not self._params.flags & NOT_PLAIN and not self._in_flight.has_pledges
        self._is_plain = is_plain

    # ---- at once: cancelling and sending ----

    def cancel(
        self,
        target: int | None = None,
        *,
        fd: FileLike | None = None,
        target_opcode: Opcode | None = None,
        any: bool = False,
        all: bool = False,
        timeout: float | None = None,
    ) -> int:
        """
        Cancel operations in flight, and wait until those that are running have ended.

        Goes past the submission queue. What is queued and not submitted is not found, and neither
        is what a worker of an SQPOLL ring goes on with in a chain: `AsyncCancel` does. The
        completions of the targets come as ever: with ECANCELED, or with a result.

        Args:
            target: their user_data.
            fd: their file (kernel 6.0).
            target_opcode: their opcode (kernel 6.6).
            any: whatever is in flight; stands alone.
            all: not only the first that all of the above are true of.
            timeout: in seconds, for how long to wait; None waits without end.

        Returns:
            How many were found: with `all` or `any` a count, else 1; 0 when there was none, and
            seldom also when it was just passing to a worker thread, or ended as soon as that was
            told to stop. When it had to wait, the count is not certain, but at least 1.

        Raises:
            TimeoutError: something is still running -> its completion comes when it has ended.
            RegisterError: EBADF, `fd` is not open.

        Kernel: 6.0. liburing: io_uring_register_sync_cancel(3).
        """
        choice = _cancel.chosen(target, fd, target_opcode, any=any, all=all)
        end_ns = deadline_ns(timeout)
        waited = False
        while True:
            left_ns = _CANCEL_SLICE_NS
            if end_ns >= 0:
                left_ns = min(max(end_ns - time.monotonic_ns(), 0), left_ns)
            self._check_use()
            argument = _cancel.cancel_argument(choice, left_ns)
            opcode = RegisterOpcode.REGISTER_SYNC_CANCEL
            result = lib.uring_register(self._shim, opcode, argument, 1)
            if result >= 0:
                return result if any or (all and not waited) else max(result, 1)
            if result == -errno.ENOENT:
                return int(waited)
            if result not in {-errno.ETIME, -errno.EINTR}:
                self._raise(opcode, result)
            waited = waited or result == -errno.ETIME
            if 0 <= end_ns <= time.monotonic_ns():
                raise TimeoutError(errno.ETIMEDOUT, "what was to be cancelled is still running")

    def send_message(
        self,
        ring: "CallSide | int | HasFileno",
        *,
        target_user_data: int,
        target_res: int = 0,
        target_flags: int | None = None,
    ) -> None:
        """
        Post a completion to a ring, at once and past all queues. Equivalent: `MsgRing`.

        This ring only lends itself to the call: any thread may make it, and the target may be this
        ring.

        Args:
            ring: the target, a `Ring` of this process or its descriptor.
            target_user_data: the user_data of the completion there, 0..2**64 - 1.
            target_res: its res, -2**31..2**31 - 1.
            target_flags: its flags, as `CQEFlags`, but for SKIP and F_32, which say how long a CQE
                is; None leaves them 0.

        Raises:
            RegisterError: EBADFD, the target is no ring, or not enabled; EOVERFLOW, its completion
                queue is full and the kernel has no memory.
            ValueError: something in flight on the target has this user_data, or the target is a
                ring of another process.
            RingClosedError: this ring or the target is closed.

        Kernel: 6.13. liburing: io_uring_register_sync_msg(3).
        """
        number = check_range("target_user_data", target_user_data, 0, UINT64_MAX)
        res = check_range("target_res", target_res, -(2**31), 2**31 - 1)
        op_flags, passed = MsgRingFlags(0), 0
        if target_flags is not None:
            passed = check_message_flags(target_flags)
            op_flags = MsgRingFlags.FLAGS_PASS
        self._check_open()

        def send(fd: int, pledge: Pledge | None = None) -> None:
            message = SQE(
                Opcode.MSG_RING,
                fd=fd,
                off=number,
                len=res & UINT32_MAX,
                op_flags=op_flags,
                splice_fd_in=passed,
            )
            argument, _, _ = _memory.readable(message.encode())
            opcode = RegisterOpcode.REGISTER_SEND_MSG_RING
            if pledge is not None:  # no call between this and the system call
                pledge.is_handed_over = True
            result = lib.uring_register_blind(opcode, argument, 1)
            if result < 0:
                self._raise(RegisterOpcode.REGISTER_SEND_MSG_RING, result)

        pledge: MessagePledge | None = None
        fd = check_range("ring", descriptor(ring), 0, 2**31 - 1)
        target, alias = reached_by(fd)
        try:
            if target is None or alias is None:
                send(-1 if alias is None else alias.fd)
                return
            pledge = MessagePledge(target, number, alias)
            try:
                send(alias.fd, pledge)
            except UringError:
                pledge.settle(-1)
                raise
        finally:
            pledge = alias = None  # or the traceback of an error would keep the descriptor

    # ---- how it is done ----

    def _forget_lingering(self) -> None:
        """
        Let the pins go of what was unregistered, if nothing in flight can be using it.

        With the groups that are closed goes where their buffers stood: completions that were there
        before are told from that, too.
        """
        held = self._held
        before = held.lingering
        if not before:
            return
        stays, groups = self._stays, [*held.groups.values()]
        left = {block: stay for block, stay in stays.items() if block in groups}
        with contextlib.suppress(RingClosedError):
            # No call from the look to the stores.
            if not self.in_flight and held.lingering is before and self._stays is stays:
                held.lingering = ()
                self._stays = left

    def _register(self, opcode: RegisterOpcode, argument: "CData", count: int) -> int:
        self._check_use()
        result = lib.uring_register(self._shim, opcode, argument, count)
        if result < 0:
            self._raise(opcode, result)
        return result

    def _raise(self, opcode: RegisterOpcode, result: int) -> None:
        """Raise what a refusal means: of the ring, of the kernel as such, or of this call."""
        is_foreign = result == -errno.EEXIST and self._owner is not None
        if (is_foreign and self._owner_object() is None) or -result in _OF_THE_RING:
            self._fail("io_uring_register", result, detail=opcode.name)
        if result == -errno.EINVAL and opcode > RegisterOpcode.REGISTER_PROBE:
            last = last_register_opcode(self._shim)
            if last is not None and opcode > last:
                raise UnsupportedError(
                    errno.EOPNOTSUPP,
                    f"this kernel lacks {opcode.name}: it needs Linux {opcode.since}",
                )
        raise register_error(opcode, -result)
