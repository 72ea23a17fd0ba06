"""
The kernel's numbers: one enumeration per field, under the kernel's own names without their prefix.

Every member knows the first kernel release that has it (`since`; None where no release is
established, and for a combination of flags). The values are those of linux/io_uring.h up to 7.2,
written out here so that neither the build nor the run depends on the age of the installed header;
a test compares all of them with data compiled from that header.
"""

from enum import IntEnum, IntFlag
from typing import Final, Self


class _Since:
    since: str | None = None


class _Number(_Since, IntEnum):
    """A number that names one thing."""

    def __new__(cls, value: int, since: str | None = None) -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.since = since
        return member


class _Bits(_Since, IntFlag):
    """Bits that combine."""

    def __new__(cls, value: int, since: str | None = None) -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.since = since
        return member


class Opcode(_Number):
    """``sqe->opcode``: what one SQE asks for."""

    NOP = 0, "5.1"
    READV = 1, "5.1"
    WRITEV = 2, "5.1"
    FSYNC = 3, "5.1"
    READ_FIXED = 4, "5.1"
    WRITE_FIXED = 5, "5.1"
    POLL_ADD = 6, "5.1"
    POLL_REMOVE = 7, "5.1"
    SYNC_FILE_RANGE = 8, "5.2"
    SENDMSG = 9, "5.3"
    RECVMSG = 10, "5.3"
    TIMEOUT = 11, "5.4"
    TIMEOUT_REMOVE = 12, "5.5"
    ACCEPT = 13, "5.5"
    ASYNC_CANCEL = 14, "5.5"
    LINK_TIMEOUT = 15, "5.5"
    CONNECT = 16, "5.5"
    FALLOCATE = 17, "5.6"
    OPENAT = 18, "5.6"
    CLOSE = 19, "5.6"
    FILES_UPDATE = 20, "5.6"
    STATX = 21, "5.6"
    READ = 22, "5.6"
    WRITE = 23, "5.6"
    FADVISE = 24, "5.6"
    MADVISE = 25, "5.6"
    SEND = 26, "5.6"
    RECV = 27, "5.6"
    OPENAT2 = 28, "5.6"
    EPOLL_CTL = 29, "5.6"
    SPLICE = 30, "5.7"
    PROVIDE_BUFFERS = 31, "5.7"
    REMOVE_BUFFERS = 32, "5.7"
    TEE = 33, "5.8"
    SHUTDOWN = 34, "5.11"
    RENAMEAT = 35, "5.11"
    UNLINKAT = 36, "5.11"
    MKDIRAT = 37, "5.15"
    SYMLINKAT = 38, "5.15"
    LINKAT = 39, "5.15"
    MSG_RING = 40, "5.18"
    FSETXATTR = 41, "5.19"
    SETXATTR = 42, "5.19"
    FGETXATTR = 43, "5.19"
    GETXATTR = 44, "5.19"
    SOCKET = 45, "5.19"
    URING_CMD = 46, "5.19"
    SEND_ZC = 47, "6.0"
    SENDMSG_ZC = 48, "6.1"
    READ_MULTISHOT = 49, "6.7"
    WAITID = 50, "6.7"
    FUTEX_WAIT = 51, "6.7"
    FUTEX_WAKE = 52, "6.7"
    FUTEX_WAITV = 53, "6.7"
    FIXED_FD_INSTALL = 54, "6.8"
    FTRUNCATE = 55, "6.9"
    BIND = 56, "6.11"
    LISTEN = 57, "6.11"
    RECV_ZC = 58, "6.15"
    EPOLL_WAIT = 59, "6.15"
    READV_FIXED = 60, "6.15"
    WRITEV_FIXED = 61, "6.15"
    PIPE = 62, "6.16"
    NOP128 = 63, "6.19"
    URING_CMD128 = 64, "6.19"


class SQEFlags(_Bits):
    """
    ``sqe->flags``: how the kernel treats one SQE.

    - ASYNC: goes to a worker thread at once, and is not tried first.
    - IO_DRAIN: starts when all that was submitted before has ended; what follows waits for it.
    - IO_LINK, IO_HARDLINK: the next one waits for it: see `link()` and `hardlink()`.
    - CQE_SKIP_SUCCESS: no completion when it succeeds. Only for the first ones of a chain that ends
      with one that has a completion, and is queued at once: see `Ring.queue_all()`.
    - FIXED_FILE, BUFFER_SELECT: set by operations that are given `Fixed`, or a group.
    """

    FIXED_FILE = 0x1, "5.1"
    IO_DRAIN = 0x2, "5.2"
    IO_LINK = 0x4, "5.3"
    IO_HARDLINK = 0x8, "5.5"
    ASYNC = 0x10, "5.6"
    BUFFER_SELECT = 0x20, "5.7"
    CQE_SKIP_SUCCESS = 0x40, "5.17"


class SetupFlags(_Bits):
    """
    ``params->flags``: the shape of a ring, asked for at io_uring_setup(2).

    - IOPOLL, HYBRID_IOPOLL: completions are looked for in the device. For reads and writes of files
      that are opened with O_DIRECT, on devices that poll: of others they end with EOPNOTSUPP, and
      what cannot be polled ends with EINVAL.
    - SQPOLL: a thread of the kernel takes what is queued; SQ_AFF binds it to a processor.
    - CLAMP: sizes that are too large are cut to the largest, not refused.
    - R_DISABLED: nothing is submitted before `Ring.enable()`.
    - SUBMIT_ALL: a refused SQE does not stop a submit. `Ring.submit()` goes on in any case.
    - SINGLE_ISSUER: one thread alone uses the ring. DEFER_TASKRUN: completions are posted only when
      that thread enters the kernel. COOP_TASKRUN: they do not interrupt a running thread.
    - SQE128: SQEs have 128 bytes, as some operations need; CQE32: CQEs have 32, see `CQE.big_cqe`.
      CQE_MIXED: those that need it have, and take two places in a queue of four at least.
    - NO_MMAP: the ring lies in memory of this process, not of the kernel.
    - REGISTERED_FD_ONLY: no descriptor is made. Only the thread that makes the ring can use it, and
      the ring ends with it; a thread can have 16. `Ring.fd` is -1.
    - NO_SQARRAY: without the indirection between the queue and its SQEs; nothing else changes.

    `Ring` does not drive SQE_MIXED and SQ_REWIND.
    """

    IOPOLL = 0x1, "5.1"
    SQPOLL = 0x2, "5.1"
    SQ_AFF = 0x4, "5.1"
    CQSIZE = 0x8, "5.5"
    CLAMP = 0x10, "5.6"
    ATTACH_WQ = 0x20, "5.6"
    R_DISABLED = 0x40, "5.10"
    SUBMIT_ALL = 0x80, "5.18"
    COOP_TASKRUN = 0x100, "5.19"
    TASKRUN_FLAG = 0x200, "5.19"
    SQE128 = 0x400, "5.19"
    CQE32 = 0x800, "5.19"
    SINGLE_ISSUER = 0x1000, "6.0"
    DEFER_TASKRUN = 0x2000, "6.1"
    NO_MMAP = 0x4000, "6.5"
    REGISTERED_FD_ONLY = 0x8000, "6.5"
    NO_SQARRAY = 0x10000, "6.6"
    HYBRID_IOPOLL = 0x20000, "6.13"
    CQE_MIXED = 0x40000, "6.18"
    SQE_MIXED = 0x80000, "6.19"
    SQ_REWIND = 0x100000, "7.0"


class Features(_Bits):
    """``params->features``: what the kernel says that it can do."""

    SINGLE_MMAP = 0x1, "5.4"
    NODROP = 0x2, "5.5"
    SUBMIT_STABLE = 0x4, "5.5"
    RW_CUR_POS = 0x8, "5.6"
    CUR_PERSONALITY = 0x10, "5.6"
    FAST_POLL = 0x20, "5.7"
    POLL_32BITS = 0x40, "5.9"
    SQPOLL_NONFIXED = 0x80, "5.11"
    EXT_ARG = 0x100, "5.11"
    NATIVE_WORKERS = 0x200, "5.12"
    RSRC_TAGS = 0x400, "5.13"
    CQE_SKIP = 0x800, "5.17"
    LINKED_FILE = 0x1000, "5.17"
    REG_REG_RING = 0x2000, "6.3"
    RECVSEND_BUNDLE = 0x4000, "6.10"
    MIN_TIMEOUT = 0x8000, "6.12"
    RW_ATTR = 0x10000, "6.14"
    NO_IOWAIT = 0x20000, "6.15"


class EnterFlags(_Bits):
    """The flags of io_uring_enter(2)."""

    GETEVENTS = 0x1, "5.1"
    SQ_WAKEUP = 0x2, "5.1"
    SQ_WAIT = 0x4, "5.10"
    EXT_ARG = 0x8, "5.11"
    REGISTERED_RING = 0x10, "5.18"
    ABS_TIMER = 0x20, "6.12"
    EXT_ARG_REG = 0x40, "6.13"
    NO_IOWAIT = 0x80, "6.15"


class SQRingFlags(_Bits):
    """``sq->flags``: what the kernel wants the application to know or do."""

    NEED_WAKEUP = 0x1, "5.1"
    CQ_OVERFLOW = 0x2, "5.8"
    TASKRUN = 0x4, "5.19"


class CQRingFlags(_Bits):
    """``cq->flags``: what the application tells the kernel."""

    EVENTFD_DISABLED = 0x1, "5.8"


class CQEFlags(_Bits):
    """
    ``cqe->flags``; the bits from `CQE_BUFFER_SHIFT` up are a buffer id when BUFFER is set.

    - MORE: others of the same operation follow. NOTIF: the second one of a zero-copy send.
    - BUF_MORE: the kernel goes on filling that buffer. SOCK_NONEMPTY: the socket has more data.
    - F_32: one of 32 bytes, on CQE_MIXED rings. SKIP: filling at the end of their queue.
    - TSTAMP_HW: of `TxTimestamp`, a time that the network card took.
    """

    BUFFER = 0x1, "5.7"
    MORE = 0x2, "5.13"
    SOCK_NONEMPTY = 0x4, "5.19"
    NOTIF = 0x8, "6.0"
    BUF_MORE = 0x10, "6.12"
    SKIP = 0x20, "6.18"
    F_32 = 0x8000, "6.18"  # CQE_F_32; a name cannot start with a digit
    TSTAMP_HW = 0x10000, "6.17"


class RegisterOpcode(_Number):
    """The operation of io_uring_register(2)."""

    REGISTER_BUFFERS = 0, "5.1"
    UNREGISTER_BUFFERS = 1, "5.1"
    REGISTER_FILES = 2, "5.1"
    UNREGISTER_FILES = 3, "5.1"
    REGISTER_EVENTFD = 4, "5.2"
    UNREGISTER_EVENTFD = 5, "5.2"
    REGISTER_FILES_UPDATE = 6, "5.5"
    REGISTER_EVENTFD_ASYNC = 7, "5.6"
    REGISTER_PROBE = 8, "5.6"
    REGISTER_PERSONALITY = 9, "5.6"
    UNREGISTER_PERSONALITY = 10, "5.6"
    REGISTER_RESTRICTIONS = 11, "5.10"
    REGISTER_ENABLE_RINGS = 12, "5.10"
    REGISTER_FILES2 = 13, "5.13"
    REGISTER_FILES_UPDATE2 = 14, "5.13"
    REGISTER_BUFFERS2 = 15, "5.13"
    REGISTER_BUFFERS_UPDATE = 16, "5.13"
    REGISTER_IOWQ_AFF = 17, "5.14"
    UNREGISTER_IOWQ_AFF = 18, "5.14"
    REGISTER_IOWQ_MAX_WORKERS = 19, "5.15"
    REGISTER_RING_FDS = 20, "5.18"
    UNREGISTER_RING_FDS = 21, "5.18"
    REGISTER_PBUF_RING = 22, "5.19"
    UNREGISTER_PBUF_RING = 23, "5.19"
    REGISTER_SYNC_CANCEL = 24, "6.0"
    REGISTER_FILE_ALLOC_RANGE = 25, "6.0"
    REGISTER_PBUF_STATUS = 26, "6.8"
    REGISTER_NAPI = 27, "6.9"
    UNREGISTER_NAPI = 28, "6.9"
    REGISTER_CLOCK = 29, "6.12"
    REGISTER_CLONE_BUFFERS = 30, "6.12"
    REGISTER_SEND_MSG_RING = 31, "6.13"
    REGISTER_ZCRX_IFQ = 32, "6.15"
    REGISTER_RESIZE_RINGS = 33, "6.13"
    REGISTER_MEM_REGION = 34, "6.13"
    REGISTER_QUERY = 35, "6.18"
    REGISTER_ZCRX_CTRL = 36, "6.19"
    REGISTER_BPF_FILTER = 37, "7.0"


class FsyncFlags(_Bits):
    """``sqe->fsync_flags``."""

    DATASYNC = 0x1, "5.1"


class TimeoutFlags(_Bits):
    """``sqe->timeout_flags`` of the timeout operations."""

    ABS = 0x1, "5.4"
    UPDATE = 0x2, "5.11"
    BOOTTIME = 0x4, "5.15"
    REALTIME = 0x8, "5.15"
    LINK_TIMEOUT_UPDATE = 0x10, "5.15"
    ETIME_SUCCESS = 0x20, "5.16"
    MULTISHOT = 0x40, "6.4"
    IMMEDIATE_ARG = 0x80, "7.1"
    CLOCK_MASK = 0xC
    UPDATE_MASK = 0x12


class PollFlags(_Bits):
    """``sqe->len`` of POLL_ADD and POLL_REMOVE."""

    ADD_MULTI = 0x1, "5.13"
    UPDATE_EVENTS = 0x2, "5.13"
    UPDATE_USER_DATA = 0x4, "5.13"
    ADD_LEVEL = 0x8, "6.0"


class CancelFlags(_Bits):
    """``sqe->cancel_flags``: what ASYNC_CANCEL matches on."""

    ALL = 0x1, "5.19"
    FD = 0x2, "5.19"
    ANY = 0x4, "5.19"
    FD_FIXED = 0x8, "6.0"
    USERDATA = 0x10, "6.6"
    OP = 0x20, "6.6"


class SpliceFlags(_Bits):
    """``sqe->splice_flags`` that io_uring adds to splice(2)'s own."""

    FD_IN_FIXED = 0x80000000, "5.7"


class SendRecvFlags(_Bits):
    """``sqe->ioprio`` of the send and receive operations."""

    RECVSEND_POLL_FIRST = 0x1, "5.19"
    RECV_MULTISHOT = 0x2, "6.0"
    RECVSEND_FIXED_BUF = 0x4, "6.0"
    SEND_ZC_REPORT_USAGE = 0x8, "6.2"
    RECVSEND_BUNDLE = 0x10, "6.10"
    SEND_VECTORIZED = 0x20, "6.17"


class AcceptFlags(_Bits):
    """``sqe->ioprio`` of ACCEPT."""

    MULTISHOT = 0x1, "5.19"
    DONTWAIT = 0x2, "6.10"
    POLL_FIRST = 0x4, "6.10"


class MsgRingCommand(_Number):
    """``sqe->addr`` of MSG_RING: what is sent."""

    DATA = 0, "5.18"
    SEND_FD = 1, "6.0"


class MsgRingFlags(_Bits):
    """``sqe->msg_ring_flags``."""

    CQE_SKIP = 0x1, "6.0"
    FLAGS_PASS = 0x2, "6.3"


class FixedFdFlags(_Bits):
    """``sqe->install_fd_flags`` of FIXED_FD_INSTALL."""

    NO_CLOEXEC = 0x1, "6.8"


class NopFlags(_Bits):
    """``sqe->nop_flags``: for tests of the ring itself."""

    INJECT_RESULT = 0x1, "6.10"
    FILE = 0x2, "6.13"
    FIXED_FILE = 0x4, "6.13"
    FIXED_BUFFER = 0x8, "6.13"
    TW = 0x10, "6.15"
    CQE32 = 0x20, "6.18"


class UringCmdFlags(_Bits):
    """``sqe->uring_cmd_flags``."""

    FIXED = 0x1, "6.1"
    MULTISHOT = 0x2, "6.18"
    MASK = 0x3


class SocketCommand(_Number):
    """``sqe->cmd_op`` of URING_CMD on a socket."""

    SIOCINQ = 0, "6.7"
    SIOCOUTQ = 1, "6.7"
    GETSOCKOPT = 2, "6.7"
    SETSOCKOPT = 3, "6.7"
    TX_TIMESTAMP = 4, "6.17"
    GETSOCKNAME = 5, "6.19"


class RwAttrFlags(_Bits):
    """``sqe->attr_type_mask`` of reads and writes."""

    PI = 0x1, "6.14"


class MmapOffset(_Number):
    """The offsets at which mmap(2) finds the parts of a ring."""

    SQ_RING = 0, "5.1"
    CQ_RING = 0x8000000, "5.1"
    SQES = 0x10000000, "5.1"
    PBUF_RING = 0x80000000, "6.4"
    PBUF_SHIFT = 16, "6.4"
    MMAP_MASK = 0xF8000000, "5.19"


class RsrcFlags(_Bits):
    """``io_uring_rsrc_register.flags``."""

    SPARSE = 0x1, "5.19"


class ProbeFlags(_Bits):
    """``io_uring_probe_op.flags``."""

    SUPPORTED = 0x1, "5.6"


class WorkerKind(_Number):
    """The two kinds of io-wq worker, as REGISTER_IOWQ_MAX_WORKERS counts them."""

    BOUND = 0, "5.15"
    UNBOUND = 1, "5.15"


class MemRegionTypeFlags(_Bits):
    """``io_uring_region_desc.flags``."""

    USER = 0x1, "6.13"


class MemRegionFlags(_Bits):
    """``io_uring_mem_region_reg.flags``."""

    REG_WAIT_ARG = 0x1, "6.13"


class CloneBuffersFlags(_Bits):
    """``io_uring_clone_buffers.flags``."""

    SRC_REGISTERED = 0x1, "6.12"
    DST_REPLACE = 0x2, "6.13"


class PbufRingFlags(_Bits):
    """``io_uring_buf_reg.flags`` of a provided buffer ring."""

    MMAP = 0x1, "6.4"
    INC = 0x2, "6.12"


class NapiOpcode(_Number):
    """``io_uring_napi.opcode``."""

    REGISTER_OP = 0, "6.13"
    STATIC_ADD_ID = 1, "6.13"
    STATIC_DEL_ID = 2, "6.13"


class NapiTracking(_Number):
    """``io_uring_napi.op_param``: how NAPI ids are tracked."""

    DYNAMIC = 0, "6.13"
    STATIC = 1, "6.13"
    INACTIVE = 255, "6.13"


class RestrictionOpcode(_Number):
    """``io_uring_restriction.opcode``: what one restriction allows or requires."""

    REGISTER_OP = 0, "5.10"
    SQE_OP = 1, "5.10"
    SQE_FLAGS_ALLOWED = 2, "5.10"
    SQE_FLAGS_REQUIRED = 3, "5.10"


class RegWaitFlags(_Bits):
    """``io_uring_reg_wait.flags``."""

    TS = 0x1, "6.13"


class QueryOpcode(_Number):
    """What REGISTER_QUERY is asked for."""

    OPCODES = 0, "6.18"
    ZCRX = 1, "6.19"
    SCQ = 2, "6.19"
    ZCRX_EVENT = 3


class BpfFilterFlags(_Bits):
    """``io_uring_bpf_filter.flags``."""

    DENY_REST = 0x1, "7.0"
    SZ_STRICT = 0x2, "7.0"


class BpfCommand(_Number):
    """``io_uring_bpf.cmd_type``."""

    FILTER = 1, "7.0"


class ZcrxAreaFlags(_Bits):
    """``io_uring_zcrx_area_reg.flags``."""

    DMABUF = 0x1, "6.16"


class ZcrxRegisterFlags(_Bits):
    """``io_uring_zcrx_ifq_reg.flags``."""

    IMPORT = 0x1, "6.19"
    NODEV = 0x2


class ZcrxFeatures(_Bits):
    """What REGISTER_QUERY says of zero-copy receive."""

    RX_PAGE_SIZE = 0x1
    EVENT = 0x2


class ZcrxEvent(_Number):
    """The events that a zero-copy receive queue reports."""

    ALLOC_FAIL = 0
    COPY = 1


class ZcrxEventFlags(_Bits):
    """``zcrx_event_desc.flags``."""

    STATS = 0x1


class ZcrxControl(_Number):
    """What REGISTER_ZCRX_CTRL is asked for."""

    FLUSH_RQ = 0, "6.19"
    EXPORT = 1, "6.19"
    ARM_EVENT = 2


FILE_INDEX_ALLOC: Final = 0xFFFFFFFF
"""``sqe->file_index``: the kernel picks a free slot (a direct descriptor) (kernel 5.19)."""

CQE_BUFFER_SHIFT: Final = 16
"""Where the buffer id starts in ``cqe->flags`` (kernel 5.7)."""

NOTIF_USAGE_ZC_COPIED: Final = 0x80000000
"""``cqe->res`` of a notification: the data was copied after all (kernel 6.2)."""

REGISTER_FILES_SKIP: Final = -2
"""In an update of registered files: leave this slot alone (kernel 5.12)."""

REGISTER_USE_REGISTERED_RING: Final = 0x80000000
"""Combined with a register opcode: the ring fd is a registered index (kernel 6.3)."""

TIMESTAMP_HW_SHIFT: Final = 16
"""Where the hardware bit of a TX timestamp is in ``cqe->flags`` (kernel 6.17)."""

TIMESTAMP_TYPE_SHIFT: Final = 17
"""Where the type of a TX timestamp starts in ``cqe->flags`` (kernel 6.17)."""

ZCRX_AREA_SHIFT: Final = 48
"""Where the area id starts in a zero-copy receive offset (kernel 6.15)."""

ZCRX_AREA_MASK: Final = -0x1000000000000
"""The area id in a zero-copy receive offset, before the shift (kernel 6.15)."""
