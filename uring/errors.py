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
    ("io_uring_enter", errno.EBUSY): (
        "completions are waiting to be copied out; copy them, then submit again"
    ),
    ("io_uring_enter", errno.EBADFD): "the ring was made R_DISABLED: call enable() first",
    ("io_uring_enter", errno.EBADR): (
        "the kernel had no memory to keep completions that did not fit, and dropped some"
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

_CLASSES: Final[Mapping[str, type[UringError]]] = {
    "io_uring_setup": SetupError,
    "mmap of the ring": SetupError,
    "io_uring_enter": EnterError,
    "io_uring_register": RegisterError,
}


def call_error(call: str, number: int, *, detail: str = "") -> UringError:
    """The exception for a system call of the ring itself that failed with errno `number`."""
    if call == "io_uring_enter" and number == errno.ESHUTDOWN:
        return RingClosedError("the ring is closed")
    advice = _ADVICE.get((call, number), "")
    if callable(advice):
        advice = advice()
    parts = [f"{call}: {os.strerror(number)}", advice, detail]
    cls = _CLASSES[call]
    if cls is SetupError and number in {errno.ENOSYS, errno.EOPNOTSUPP}:
        cls = UnsupportedSetupError
    return cls(number, "; ".join(part for part in parts if part))


def operation_error(number: int, note: str, filename: str | bytes | None = None) -> OSError:
    """The builtin exception for an operation that completed with errno `number`."""
    # A message from another ring can carry any number, also one that strerror() cannot take.
    text = os.strerror(number) if number < 2**31 else f"unknown error {number}"
    error = OSError(number, text) if filename is None else OSError(number, text, filename)
    if note:
        error.add_note(note)
    return error
