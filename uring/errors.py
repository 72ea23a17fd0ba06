"""
What can go wrong, as one tree under `UringError`, and the two ways from an errno to an exception.

A ring's own system call that fails raises a `UringError` that is an OSError too; its message says
which call, why it happens *here*, and what to do (`call_error`). An operation that fails is the
OSError that Python raises everywhere else for that errno, with the operation as a note
(`operation_error`). Wrong arguments are ValueError or TypeError and never reach the kernel.
"""

import errno
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from uring.flags import RegisterOpcode


class UringError(Exception):
    """The base of everything that `uring` itself raises, except ValueError and TypeError."""


class SetupError(UringError, OSError):
    """
    The kernel refused to make a ring.

    The message names the reason and the remedy: a seccomp filter, a sysctl, a limit, a flag that
    this kernel lacks. `errno` is the kernel's.
    """


class UnsupportedError(UringError, OSError):
    """
    This kernel, or this version of `uring`, lacks what was asked for.

    Ask `uring.probe()` first, or do without; the message names the kernel release that has it.
    """


class UnsupportedSetupError(SetupError, UnsupportedError):
    """The kernel cannot make such a ring at all: it is too old, or built without io_uring."""


class EnterError(UringError, OSError):
    """
    io_uring_enter(2) failed while submitting or waiting.

    Nothing is lost: what was queued stays queued, what completed stays in the ring. Follow the
    message and call again.
    """


class RegisterError(UringError, OSError):
    """io_uring_register(2) failed; the ring and its earlier registrations are as they were."""


class SubmissionQueueFull(UringError):  # noqa: N818 - a condition, as queue.Full is
    """
    There is no room for the operation, or for all of a chain; nothing was queued.

    Submit and queue it again, or make the ring with more `entries`.
    """


class BufferPoolEmpty(UringError):  # noqa: N818 - a condition, as queue.Empty is
    """
    Every slice of a `BufferPool` is lent.

    Copy completions out and give slices back, then ask again; or make the pool larger.
    """


class RingClosedError(UringError, ValueError):
    """
    The ring is closed, is being closed by another thread, or was made before a fork.

    A ring belongs to the process that made it: make a new one in the child.
    """


class WrongThreadError(UringError, RuntimeError):
    """
    A ring made with SINGLE_ISSUER or REGISTERED_FD_ONLY was used by a thread that does not own it.

    Use it from the thread named in the message, or make the ring without that flag.
    """


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def refusal_reason() -> str:
    """Why this process may not make rings, as far as the process itself can see."""
    level = _read("/proc/sys/kernel/io_uring_disabled").strip()
    if level == "2":
        return "the sysctl kernel.io_uring_disabled is 2, which forbids io_uring to everybody"
    if level == "1":
        return (
            "the sysctl kernel.io_uring_disabled is 1, which allows io_uring only to CAP_SYS_ADMIN"
            " and to the group in kernel.io_uring_group"
        )
    if "\nSeccomp:\t2" in _read("/proc/self/status"):
        return (
            "a seccomp filter is active in this process (Docker's default profile forbids io_uring;"
            " run with --security-opt seccomp=unconfined, or with a profile that allows"
            " io_uring_setup, io_uring_enter and io_uring_register)"
        )
    return "a security module or a seccomp filter forbids it"


def _missing() -> str:
    needed = "Linux 5.6 or newer, built with CONFIG_IO_URING, is needed"
    reason = refusal_reason()
    hint = f"; or {reason}" if "seccomp filter is" in reason else ""
    return f"this kernel has no io_uring ({needed}){hint}"


def _limit(name: str, which: int, remedy: str) -> str:
    soft, hard = resource.getrlimit(which)
    shown = ["unlimited" if n == resource.RLIM_INFINITY else str(n) for n in (soft, hard)]
    return f"{name} is {shown[0]} (hard limit {shown[1]}): {remedy}"


def _memory_limit() -> str:
    return "out of memory for the ring; " + _limit(
        "RLIMIT_MEMLOCK", resource.RLIMIT_MEMLOCK, "ask for fewer entries, or raise `ulimit -l`"
    )


def _descriptor_limit() -> str:
    return _limit("RLIMIT_NOFILE", resource.RLIMIT_NOFILE, "close files, or raise `ulimit -n`")


# (call, errno) -> why it happens here and what to do about it. Sources: io_uring_setup(2),
# io_uring_enter(2), io_uring_register(2), and this project's own trials.
_ADVICE: Final[Mapping[tuple[str, int], str | Callable[[], str]]] = {
    ("io_uring_setup", errno.EPERM): refusal_reason,
    ("io_uring_setup", errno.EACCES): refusal_reason,
    ("io_uring_setup", errno.ENOSYS): _missing,
    ("io_uring_setup", errno.ENOMEM): _memory_limit,
    ("mmap of the ring", errno.ENOMEM): _memory_limit,
    ("mmap of the ring", errno.EAGAIN): _memory_limit,
    ("io_uring_setup", errno.EMFILE): _descriptor_limit,
    ("io_uring_setup", errno.ENFILE): "the system's table of open files is full (fs.file-max)",
    ("io_uring_setup", errno.ENXIO): "attach_wq does not name a ring",
    ("io_uring_setup", errno.EBADF): "attach_wq does not name an open descriptor",
    ("io_uring_enter", errno.EPERM): refusal_reason,
    ("io_uring_enter", errno.EACCES): refusal_reason,
    ("io_uring_enter", errno.ENOSYS): refusal_reason,
    ("io_uring_register", errno.EPERM): refusal_reason,
    ("io_uring_register", errno.ENOSYS): refusal_reason,
    ("io_uring_enter", errno.EAGAIN): (
        "the kernel has no memory for more requests; copy completions out, then submit again"
    ),
    ("io_uring_enter", errno.ENOMEM): (
        "the kernel has no memory for more requests; wait for others to end, then try again"
    ),
    ("io_uring_enter", errno.EIO): "a tracer or a filter interrupts this call every time",
    ("io_uring_enter", errno.EBUSY): (
        "completions are waiting to be copied out; copy them, then submit again"
    ),
    ("io_uring_enter", errno.EBADFD): "the ring was made R_DISABLED: call enable() first",
    ("io_uring_enter", errno.EBADR): (
        "the kernel had no memory to keep completions that did not fit, and dropped some"
    ),
    ("io_uring_enter", errno.EOWNERDEAD): (
        "the kernel's thread that polls the submission queue has ended: close the ring"
    ),
    ("io_uring_enter", errno.EBADF): "somebody closed the ring's descriptor behind its back",
    ("io_uring_enter", errno.EOPNOTSUPP): "somebody replaced the ring's descriptor",
    ("io_uring_register", errno.EBUSY): "already registered: unregister it first",
    ("io_uring_register", errno.ENXIO): "nothing is registered: register first",
    ("io_uring_register", errno.EBADF): "one of the descriptors is not open",
    ("io_uring_register", errno.EMFILE): _descriptor_limit,
    ("io_uring_register", errno.ENOMEM): _memory_limit,
    ("io_uring_register", errno.EINVAL): (
        "out of the range of what is registered, or this kernel lacks the call"
    ),
    ("io_uring_register", errno.EBADFD): "the ring is not disabled: it can be enabled once",
    ("io_uring_register", errno.EACCES): "a restriction of this ring forbids it",
}

# The same for one opcode of io_uring_register(2), where the advice above would mislead.
_R: Final = RegisterOpcode
_BUFFERS_FAULT: Final = (
    "one of the buffers cannot be pinned: it is larger than 1 GiB, or maps a file of a disk shared"
)
_BUFFERS_COUNT: Final = "1 to 16384 buffers can be registered, and no tag on an empty slot"
_FILES_COUNT: Final = "at least one slot, and no tag on an empty one"
_PAST_END: Final = "past the end of the table, or a tag on an empty slot"
_BUFFERS_BUSY: Final = "buffers are already registered: unregister or update them"
_FILES_BUSY: Final = "files are already registered: unregister or update them"
_REGISTER_ADVICE: Final[Mapping[tuple[RegisterOpcode, int], str]] = {
    (_R.REGISTER_FILES, errno.EBUSY): _FILES_BUSY,
    (_R.REGISTER_FILES2, errno.EBUSY): _FILES_BUSY,
    (_R.REGISTER_FILES2, errno.EINVAL): _FILES_COUNT,
    (_R.REGISTER_FILES_UPDATE, errno.EINVAL): _PAST_END,
    (_R.REGISTER_FILES_UPDATE2, errno.EINVAL): _PAST_END,
    (_R.REGISTER_FILE_ALLOC_RANGE, errno.EINVAL): "past the end of the table, or there is none",
    (_R.REGISTER_FILE_ALLOC_RANGE, errno.EOVERFLOW): "past the end of any table",
    (_R.REGISTER_BUFFERS, errno.EBUSY): _BUFFERS_BUSY,
    (_R.REGISTER_BUFFERS, errno.EFAULT): _BUFFERS_FAULT,
    (_R.REGISTER_BUFFERS, errno.EINVAL): _BUFFERS_COUNT,
    (_R.REGISTER_BUFFERS2, errno.EBUSY): _BUFFERS_BUSY,
    (_R.REGISTER_BUFFERS2, errno.EFAULT): _BUFFERS_FAULT,
    (_R.REGISTER_BUFFERS2, errno.EINVAL): _BUFFERS_COUNT,
    (_R.REGISTER_BUFFERS_UPDATE, errno.EFAULT): _BUFFERS_FAULT,
    (_R.REGISTER_BUFFERS_UPDATE, errno.EINVAL): _PAST_END,
    (_R.REGISTER_CLONE_BUFFERS, errno.EBUSY): (
        "this ring has buffers already: pass replace=True, or unregister them"
    ),
    (_R.REGISTER_CLONE_BUFFERS, errno.ENXIO): "the other ring has no buffers",
    (_R.REGISTER_CLONE_BUFFERS, errno.EINVAL): "past the end of the other ring's buffers",
    (_R.REGISTER_CLONE_BUFFERS, errno.EOVERFLOW): "past the end of the other ring's buffers",
    (_R.REGISTER_EVENTFD, errno.EINVAL): "the descriptor is no eventfd: make one with os.eventfd()",
    (_R.REGISTER_EVENTFD_ASYNC, errno.EINVAL): (
        "the descriptor is no eventfd: make one with os.eventfd()"
    ),
    (_R.UNREGISTER_PERSONALITY, errno.EINVAL): "it is unregistered already",
    (_R.REGISTER_RESTRICTIONS, errno.EBADFD): (
        "the ring is enabled already: make it with SetupFlags.R_DISABLED, and restrict it before"
        " enable()"
    ),
    (_R.REGISTER_RESTRICTIONS, errno.EBUSY): "the ring has its restrictions, and they stay",
    (_R.REGISTER_RESTRICTIONS, errno.EINVAL): "this kernel lacks an opcode that is named",
    (_R.REGISTER_CLOCK, errno.EINVAL): (
        "waiting takes time.CLOCK_MONOTONIC or time.CLOCK_BOOTTIME; since Linux 6.12"
    ),
    (_R.REGISTER_NAPI, errno.EINVAL): (
        "the ring has IOPOLL, ids are tracked dynamically and none can be added, or this kernel"
        " lacks the call (6.9; static ids 6.13)"
    ),
    (_R.REGISTER_NAPI, errno.EEXIST): "the id was added already",
    (_R.REGISTER_NAPI, errno.ENOENT): "the id was not added",
    (_R.REGISTER_IOWQ_MAX_WORKERS, errno.EINVAL): "a number of workers is below 2**31",
    (_R.REGISTER_SYNC_CANCEL, errno.EBADF): "the descriptor is not open, or the slot is empty",
    (_R.REGISTER_SYNC_CANCEL, errno.EINVAL): (
        "this kernel lacks the call (6.0), or a way to choose (by opcode: 6.6)"
    ),
    (_R.REGISTER_SEND_MSG_RING, errno.EBADFD): "the target is no ring, or is not enabled",
    (_R.REGISTER_SEND_MSG_RING, errno.EBADF): "the target is not open",
    (_R.REGISTER_SEND_MSG_RING, errno.EINVAL): "this kernel lacks the call (6.13)",
    (_R.REGISTER_ZCRX_IFQ, errno.EPERM): "zero-copy receive needs CAP_NET_ADMIN",
    (_R.REGISTER_ZCRX_IFQ, errno.ENODEV): "there is no such network interface",
    (_R.REGISTER_ZCRX_IFQ, errno.EOPNOTSUPP): (
        "the driver of this network interface cannot give its receive queues away"
    ),
    (_R.REGISTER_ZCRX_IFQ, errno.EINVAL): (
        "the ring needs DEFER_TASKRUN and CQE32, and the kernel 6.15"
    ),
}

_CLASSES: Final[Mapping[str, type[UringError]]] = {
    "io_uring_setup": SetupError,
    "mmap of the ring": SetupError,
    "io_uring_enter": EnterError,
    "io_uring_register": RegisterError,
}


def call_error(
    call: str, number: int, *, detail: str = "", advice: str | None = None
) -> UringError:
    """
    The exception for a system call of the ring itself that failed with errno `number`.

    `advice` stands instead of what is said of this call and errno in general.
    """
    if call == "io_uring_enter" and number == errno.ESHUTDOWN:
        return RingClosedError("the ring is closed")
    why = advice or _ADVICE.get((call, number), "")
    parts = [f"{call}: {os.strerror(number)}", why() if callable(why) else why, detail]
    cls = _CLASSES[call]
    if cls is SetupError and number in {errno.ENOSYS, errno.EOPNOTSUPP}:
        cls = UnsupportedSetupError
    return cls(number, "; ".join(part for part in parts if part))


def register_error(opcode: RegisterOpcode, number: int) -> UringError:
    """The exception for an io_uring_register(2) that failed with errno `number`."""
    advice = _REGISTER_ADVICE.get((opcode, number))
    return call_error("io_uring_register", number, detail=opcode.name, advice=advice)


def operation_error(
    number: int, note: str, filename: str | bytes | tuple[str | bytes, str | bytes] | None = None
) -> OSError:
    """The builtin exception for an operation that failed with errno `number`, on a file or two."""
    # A message from another ring can carry any number, also one that strerror() cannot take.
    text = os.strerror(number) if number < 2**31 else f"unknown error {number}"
    if isinstance(filename, tuple):
        error = OSError(number, text, filename[0], None, filename[1])
    else:
        error = OSError(number, text) if filename is None else OSError(number, text, filename)
    if note:
        error.add_note(note)
    return error
