"""
The registering side: what a ring is told through io_uring_register(2), but for its own shape.

What is registered lives in `registry`, by subject; here are the methods of a ring that begin it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from uring._calls import CallSide
from uring._checks import check_range
from uring._ffi import ffi
from uring.flags import NapiTracking, RegisterOpcode, ZcrxRegisterFlags
from uring.registry import buffers as _buffers
from uring.registry import eventfd as _eventfd
from uring.registry import files as _files
from uring.registry import napi as _napi
from uring.registry import workers as _workers
from uring.registry import zcrx as _zcrx
from uring.registry.bpf import BpfFilter, filter_argument
from uring.registry.buffers import RegisteredBuffers
from uring.registry.eventfd import RegisteredEventfd
from uring.registry.files import RegisteredFiles
from uring.registry.napi import NapiBusyPoll, NapiSettings
from uring.registry.personality import Personality
from uring.registry.restrictions import Restriction, restrictions_argument
from uring.registry.zcrx import ZcrxQueue
from uring.sqe import UINT32_MAX, HasFileno

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NO_ZCRX_FLAGS = ZcrxRegisterFlags(0)


class RegisterSide(CallSide):
    """Registering."""

    # ---- files ----

    def register_files(
        self, fds: Iterable[int | HasFileno], *, tags: Iterable[int] | None = None
    ) -> RegisteredFiles:
        """
        Register files, so that operations can name them `Fixed(index)`, in the order given.

        The kernel takes its own reference: the descriptors may be closed afterwards. The files stay
        registered when the result is ignored.

        Args:
            fds: descriptors or objects with `fileno()`; -1 leaves a slot empty.
            tags: a number for each: once a file is replaced or unregistered, and no operation uses
                it any more, a completion comes whose user_data is the tag, and whose res is 0. 0
                means none (kernel 5.13).

        Raises:
            RegisterError: EBUSY, files are registered already -> unregister or update them; EBADF,
                one is not open; EMFILE, more than RLIMIT_NOFILE.
            ValueError: a tag is in use, or for a slot that stays empty.

        Kernel: 5.1; empty slots 5.5. liburing: io_uring_register_files(3).
        """
        return _files.register_files(self, fds, tags)

    def register_files_sparse(self, count: int) -> RegisteredFiles:
        """
        Register `count` empty slots for files.

        Operations that make a file can put it there (`slot=AUTO`), and `update()` can.

        Raises:
            RegisterError: EBUSY, files are registered already -> unregister or update them; EMFILE,
                more than RLIMIT_NOFILE.

        Kernel: 5.19. liburing: io_uring_register_files_sparse(3).
        """
        return _files.register_files_sparse(self, count)

    def register_files_update(self, offset: int, fds: Iterable[int | HasFileno]) -> int:
        """
        Replace registered files from slot `offset` on.

        Operations in flight keep the file that they started with.

        Args:
            offset: the first slot, from 0.
            fds: descriptors or objects with `fileno()`; -1 empties a slot, REGISTER_FILES_SKIP
                leaves it alone.

        Returns:
            How many slots were updated; see `RegisteredFiles.update()`.

        Raises:
            RegisterError: ENXIO, nothing is registered; EINVAL, past the end of the table.

        Kernel: 5.5; REGISTER_FILES_SKIP 5.12. liburing: io_uring_register_files_update(3).
        """
        check_range("offset", offset, 0, UINT32_MAX)
        return _files.update_files(self, offset, fds, None, None)

    def register_file_alloc_range(self, start: int, *, count: int) -> None:
        """
        Say in which slots the kernel may put a file for `slot=AUTO`; until then in all.

        Args:
            start: the first slot, from 0.
            count: how many; with none, AUTO finds no free slot.

        Raises:
            RegisterError: EINVAL, past the end of the table, or there is none; EOVERFLOW, past the
                end of any.

        Kernel: 6.0. liburing: io_uring_register_file_alloc_range(3).
        """
        argument = _files.alloc_range_argument(start, count)
        self._register(RegisterOpcode.REGISTER_FILE_ALLOC_RANGE, argument, 0)

    def unregister_files(self) -> None:
        """
        Unregister all files.

        Raises:
            RegisterError: ENXIO, none are registered.

        Kernel: 5.1. liburing: io_uring_unregister_files(3).
        """
        _files.unregister_files(self)

    # ---- buffers ----

    def register_buffers(
        self, buffers: "Iterable[Buffer | None]", *, tags: Iterable[int] | None = None
    ) -> RegisteredBuffers:
        """
        Register buffers, which spares the kernel the pinning of pages for each operation.

        They are named by operations as `FixedBuffer`: `buffers[i]`, or a slice of it. They stay
        registered when the result is ignored.

        Args:
            buffers: writable memory, each of up to 1 GiB; None leaves a slot empty (kernel 5.19).
            tags: a number for each: once a buffer is replaced or unregistered, and no operation
                uses it any more, a completion comes whose user_data is the tag, and whose res is 0.
                0 means none (kernel 5.13).

        Lifetime: the ring pins the memory until it is unregistered, and nothing is in flight that
            was so at that moment. Resizing a bytearray until then raises BufferError.

        Raises:
            TypeError: a buffer is read-only.
            RegisterError: EBUSY, buffers are registered already -> unregister or update them;
                EFAULT, one cannot be pinned; ENOMEM, more than RLIMIT_MEMLOCK; EINVAL, more than
                16384.
            ValueError: a tag is in use, or for a slot that stays empty.

        Kernel: 5.1. liburing: io_uring_register_buffers(3).
        """
        return _buffers.register_buffers(self, buffers, tags)

    def register_buffers_sparse(self, count: int) -> RegisteredBuffers:
        """
        Register `count` empty slots for buffers, to be filled by `update()` or `clone_buffers()`.

        Raises:
            RegisterError: EBUSY, buffers are registered already -> unregister or update them;
                EINVAL, more than 16384.

        Kernel: 5.19. liburing: io_uring_register_buffers_sparse(3).
        """
        return _buffers.register_buffers_sparse(self, count)

    def clone_buffers(
        self,
        source: RegisteredBuffers,
        *,
        source_index: int = 0,
        index: int = 0,
        count: int | None = None,
        replace: bool = False,
    ) -> RegisteredBuffers:
        """
        Register in this ring what is registered in another one, at less cost.

        From then on the two are independent of each other. Tags are not taken along.

        Args:
            source: the other ring's buffers, with their empty slots.
            source_index: the first slot to take (kernel 6.13).
            index: the first slot to fill here; those before it stay empty (kernel 6.13).
            count: how many; None takes all from `source_index` on.
            replace: allow this ring to have buffers already. Those in the way are let go, the
                others stay, and the objects of the former registration end (kernel 6.13).

        Returns:
            All buffers of this ring.

        Lifetime: as for `register_buffers()`, for each ring by itself.

        Raises:
            RegisterError: EBUSY, this ring has buffers already; ENXIO, the source is unregistered;
                EINVAL or EOVERFLOW, past its end.

        Kernel: 6.12. liburing: io_uring_clone_buffers_offset(3).
        """
        return _buffers.clone_buffers(
            self, source, source_index=source_index, index=index, count=count, replace=replace
        )

    def unregister_buffers(self) -> None:
        """
        Unregister all buffers; operations in flight go on with their memory.

        Raises:
            RegisterError: ENXIO, none are registered.

        Kernel: 5.1. liburing: io_uring_unregister_buffers(3).
        """
        _buffers.unregister_buffers(self)

    # ---- an eventfd, credentials, restrictions ----

    def register_eventfd(
        self, fd: int | HasFileno, *, only_async: bool = False
    ) -> RegisteredEventfd:
        """
        Have the kernel add to an eventfd when it posts completions.

        Args:
            fd: the eventfd, which stays the caller's: the kernel takes its own reference.
            only_async: tell only of what a worker thread of the kernel has completed; neither of
                what completed at once, nor of what waited for its file to be ready (kernel 5.6).

        Raises:
            RegisterError: EBUSY, one is registered already; EINVAL, it is no eventfd; EBADF, it is
                not open.

        Kernel: 5.2. liburing: io_uring_register_eventfd(3).
        """
        return _eventfd.register_eventfd(self, fd, only_async=only_async)

    def unregister_eventfd(self) -> None:
        """
        Unregister the eventfd.

        Raises:
            RegisterError: ENXIO, none is registered.

        Kernel: 5.2. liburing: io_uring_unregister_eventfd(3).
        """
        _eventfd.unregister_eventfd(self)

    def register_personality(self) -> Personality:
        """
        Register the credentials that the calling thread has now.

        Kernel: 5.6. liburing: io_uring_register_personality(3).
        """
        number = self._register(RegisterOpcode.REGISTER_PERSONALITY, ffi.NULL, 0)
        return Personality(self, number)

    def register_restrictions(
        self, restrictions: Iterable[Restriction | Iterable[Restriction]]
    ) -> None:
        """
        Say what the ring may do, from `enable()` on and for ever; all else is refused with EACCES.

        For a ring that is to be handed on. It is made with `SetupFlags.R_DISABLED`. Allow
        REGISTER_SYNC_CANCEL or ASYNC_CANCEL too: without one `close()` cannot cancel what is in
        flight, and waits for it.

        Args:
            restrictions: what is allowed and required. Without any that allows io_uring_register(2)
                nothing can be registered any more; without any that allows an opcode, no operation
                is allowed.

        Raises:
            RegisterError: EBADFD, the ring is enabled already; EBUSY, it has restrictions already;
                EINVAL, this kernel lacks an opcode that is named.

        Kernel: 5.10. liburing: io_uring_register_restrictions(3).
        """
        argument, count = restrictions_argument(restrictions)
        self._register(RegisterOpcode.REGISTER_RESTRICTIONS, argument, count)

    def register_bpf_filter(self, bpf: BpfFilter) -> None:
        """
        Have a program in classic BPF asked about each operation with one opcode, from now on.

        Raises:
            UnsupportedError: the kernel lacks the call.

        Kernel: 7.0. liburing: io_uring_register_bpf_filter(3).
        """
        argument, _program = filter_argument(bpf)
        self._register(RegisterOpcode.REGISTER_BPF_FILTER, argument, 1)

    # ---- worker threads, clock, network devices ----

    def register_iowq_affinity(self, cpus: Iterable[int]) -> None:
        """
        Let the ring's worker threads run on these processors only.

        They are those of the calling thread's rings.

        Args:
            cpus: numbers of processors; those that are not there are ignored.

        Kernel: 5.14. liburing: io_uring_register_iowq_aff(3).
        """
        argument, size = _workers.affinity_argument(cpus)
        self._register(RegisterOpcode.REGISTER_IOWQ_AFF, argument, size)

    def unregister_iowq_affinity(self) -> None:
        """
        Let the ring's worker threads run on every processor again.

        Kernel: 5.14. liburing: io_uring_unregister_iowq_aff(3).
        """
        self._register(RegisterOpcode.UNREGISTER_IOWQ_AFF, ffi.NULL, 0)

    def register_iowq_max_workers(self, *, bounded: int = 0, unbounded: int = 0) -> tuple[int, int]:
        """
        Limit how many worker threads there may be.

        Args:
            bounded: for work that ends in bounded time, such as reading files; 0 leaves it.
            unbounded: for work that may last, such as reading sockets; 0 leaves it. More than
                RLIMIT_NPROC allows is as much as that.

        Returns:
            The limits before: (bounded, unbounded).

        Raises:
            RegisterError: EINVAL, a limit of 2**31 or more.

        Kernel: 5.15. liburing: io_uring_register_iowq_max_workers(3).
        """
        record, argument = _workers.max_workers_argument(bounded, unbounded)
        self._register(RegisterOpcode.REGISTER_IOWQ_MAX_WORKERS, argument, 2)
        return _workers.max_workers(record)

    def register_clock(self, clock_id: int) -> None:
        """
        Choose the clock by which the kernel times waits for completions.

        With CLOCK_BOOTTIME the time that the machine is suspended counts.

        Args:
            clock_id: `time.CLOCK_MONOTONIC`, which is the default, or `time.CLOCK_BOOTTIME`.

        Raises:
            RegisterError: EINVAL, any other clock.

        Kernel: 6.12. liburing: io_uring_register_clock(3).
        """
        self._register(RegisterOpcode.REGISTER_CLOCK, _workers.clock_argument(clock_id), 0)

    def register_napi(
        self,
        *,
        busy_poll_timeout_us: int,
        prefer_busy_poll: bool = False,
        tracking: NapiTracking = NapiTracking.DYNAMIC,
    ) -> NapiBusyPoll:
        """
        Have waits for completions poll network devices busily before they sleep.

        Args:
            busy_poll_timeout_us: for how long to poll, in microseconds.
            prefer_busy_poll: as SO_PREFER_BUSY_POLL of a socket.
            tracking: whether the kernel finds the device queues by the sockets in use (DYNAMIC), or
                `NapiBusyPoll.add()` names them (STATIC, kernel 6.13).

        Raises:
            RegisterError: EINVAL, the ring has IOPOLL.

        Kernel: 6.9. liburing: io_uring_register_napi(3).
        """
        settings = NapiSettings(
            busy_poll_timeout_us, prefer_busy_poll=prefer_busy_poll, tracking=tracking
        )
        return _napi.register_napi(self, settings)

    def unregister_napi(self) -> NapiSettings:
        """
        Switch busy polling off; returns what was in force, without the tracking.

        Kernel: 6.9. liburing: io_uring_unregister_napi(3).
        """
        return _napi.unregister_napi(self)

    def register_zcrx(
        self,
        interface: int | str,
        queue: int,
        *,
        area_size: int,
        rq_entries: int,
        rx_buf_len: int = 0,
        zcrx_flags: ZcrxRegisterFlags = _NO_ZCRX_FLAGS,
    ) -> ZcrxQueue:
        """
        Take over a receive queue of a network device, for zero-copy receive.

        Needs CAP_NET_ADMIN, a driver that can do it, and a ring with DEFER_TASKRUN and CQE32. Only
        the registration is driven; the refill ring is the caller's to fill.

        Args:
            interface: the network interface, by number or by name.
            queue: the number of the receive queue.
            area_size: bytes that the device may write to, rounded up to pages.
            rq_entries: entries of the refill ring; the kernel rounds up to a power of two.
            rx_buf_len: the size of a piece that the device writes; 0 is the kernel's default.
            zcrx_flags: `ZcrxRegisterFlags`.

        Lifetime: the memory is made here, and kept until the ring is closed.

        Raises:
            RegisterError: ENODEV, no such interface; EOPNOTSUPP, its driver cannot; EINVAL, the
                ring lacks the flags; EPERM, no CAP_NET_ADMIN.

        Kernel: 6.15. liburing: io_uring_register_ifq(3).
        """
        request = _zcrx.ZcrxRequest(
            interface,
            queue,
            area_size=area_size,
            rq_entries=rq_entries,
            rx_buf_len=rx_buf_len,
            zcrx_flags=zcrx_flags,
        )
        return _zcrx.register_zcrx(self, request)
