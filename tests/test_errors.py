"""The exception tree, what a failed call of the ring says, and what a failed operation gives."""

import errno
import os
import resource
from typing import Final

import pytest

import uring
from uring import errors

CALLS: Final = {
    "io_uring_setup": uring.SetupError,
    "mmap of the ring": uring.SetupError,
    "io_uring_enter": uring.EnterError,
    "io_uring_register": uring.RegisterError,
}


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (uring.UringError, (Exception,)),
        (uring.SetupError, (uring.UringError, OSError)),
        (uring.UnsupportedError, (uring.UringError, OSError)),
        (uring.UnsupportedSetupError, (uring.SetupError, uring.UnsupportedError, OSError)),
        (uring.EnterError, (uring.UringError, OSError)),
        (uring.RegisterError, (uring.UringError, OSError)),
        (uring.SubmissionQueueFull, (uring.UringError,)),
        (uring.RingClosedError, (uring.UringError, ValueError)),
        (uring.WrongThreadError, (uring.UringError, RuntimeError)),
    ],
)
def test_error_classes_have_their_bases(
    kind: type[Exception], bases: tuple[type[Exception], ...]
) -> None:
    """Each class is a UringError, and the builtin error that its condition has elsewhere."""
    for base in (*bases, uring.UringError):
        assert issubclass(kind, base) or kind is base


def test_error_tree_is_exported_whole() -> None:
    """Every exception of the module is a UringError and is public under `uring`."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in found:
        if issubclass(kind, BaseException):
            assert issubclass(kind, uring.UringError)
            assert getattr(uring, kind.__name__) is kind
            assert kind.__name__ in uring.__all__


def test_error_of_a_full_or_closed_ring_is_no_os_error() -> None:
    """What never reached the kernel has no errno."""
    for kind in (uring.SubmissionQueueFull, uring.RingClosedError, uring.WrongThreadError):
        assert not issubclass(kind, OSError)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOMEM, errno.EIO])
def test_call_error_has_the_errno_and_names_the_call(call: str, number: int) -> None:
    """The class is the call's, errno is set, and the message has the call and the errno's text."""
    error = errors.call_error(call, number)
    assert isinstance(error, CALLS[call])
    assert isinstance(error, OSError)
    assert error.errno == number
    assert f"{call}: {os.strerror(number)}" in str(error)
    assert type(error).__module__.startswith("uring")


@pytest.mark.parametrize(
    ("call", "number", "advice"),
    [
        ("io_uring_setup", errno.ENOSYS, "Linux 5.6"),
        ("io_uring_setup", errno.ENOMEM, "RLIMIT_MEMLOCK is "),
        ("io_uring_setup", errno.EMFILE, "RLIMIT_NOFILE is "),
        ("io_uring_setup", errno.ENFILE, "fs.file-max"),
        ("io_uring_setup", errno.ENXIO, "attach_wq"),
        ("io_uring_setup", errno.EBADF, "attach_wq"),
        ("mmap of the ring", errno.ENOMEM, "ulimit -l"),
        ("mmap of the ring", errno.EAGAIN, "ulimit -l"),
        ("io_uring_enter", errno.EAGAIN, "submit again"),
        ("io_uring_enter", errno.EBUSY, "copy them"),
        ("io_uring_enter", errno.EBADFD, "enable()"),
        ("io_uring_enter", errno.EBADR, "dropped"),
        ("io_uring_enter", errno.EBADF, "closed the ring's descriptor"),
        ("io_uring_enter", errno.EOPNOTSUPP, "replaced the ring's descriptor"),
        ("io_uring_register", errno.EBUSY, "unregister it first"),
        ("io_uring_register", errno.ENXIO, "register first"),
        ("io_uring_register", errno.EBADF, "not open"),
        ("io_uring_register", errno.EMFILE, "RLIMIT_NOFILE is "),
        ("io_uring_register", errno.ENOMEM, "RLIMIT_MEMLOCK is "),
        ("io_uring_register", errno.EINVAL, "out of the range"),
        ("io_uring_register", errno.EBADFD, "enabled once"),
        ("io_uring_register", errno.EACCES, "restriction"),
    ],
)
def test_call_error_says_why_here_and_what_to_do(call: str, number: int, advice: str) -> None:
    """The message of a known errno of a call holds its advice, and the detail that was given."""
    message = str(errors.call_error(call, number, detail="DETAIL"))
    assert advice in message
    assert message.endswith("; DETAIL")


def test_call_error_advice_covers_every_row() -> None:
    """Each row of the advice belongs to a call that has a class, and is in the message."""
    for call, number in errors._ADVICE:
        assert call in CALLS
        plain = f"[Errno {number}] {call}: {os.strerror(number)}"
        assert len(str(errors.call_error(call, number))) > len(plain)


def test_call_error_memory_limit_has_the_number() -> None:
    """The limit is named with its present value."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"RLIMIT_NOFILE is {soft} " in str(errors.call_error("io_uring_setup", errno.EMFILE))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_call_error_of_a_kernel_without_io_uring_is_unsupported(number: int) -> None:
    """Setup that the kernel lacks is UnsupportedError and SetupError at once."""
    error = errors.call_error("io_uring_setup", number)
    assert type(error) is uring.UnsupportedSetupError
    assert error.errno == number
    assert type(errors.call_error("io_uring_enter", number)) is uring.EnterError


def test_call_error_of_a_ring_that_was_shut_is_closed() -> None:
    """The shim's ESHUTDOWN is RingClosedError, not an OSError."""
    error = errors.call_error("io_uring_enter", errno.ESHUTDOWN)
    assert type(error) is uring.RingClosedError


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"/proc/sys/kernel/io_uring_disabled": "2\n"}, "io_uring_disabled is 2"),
        ({"/proc/sys/kernel/io_uring_disabled": "1\n"}, "io_uring_group"),
        (
            {
                "/proc/sys/kernel/io_uring_disabled": "0\n",
                "/proc/self/status": "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n",
            },
            "seccomp=unconfined",
        ),
        ({"/proc/self/status": "Name:\tx\nSeccomp:\t0\n"}, "security module"),
        ({}, "security module"),
    ],
)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_refusal_reason_is_what_the_process_can_see(
    files: dict[str, str], reason: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused setup names the sysctl, the seccomp filter, or neither when neither is seen."""
    monkeypatch.setattr(errors, "_read", lambda path: files.get(path, ""))
    assert reason in errors.refusal_reason()
    assert reason in str(errors.call_error("io_uring_setup", number))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, PermissionError),
        (errno.EACCES, PermissionError),
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.EAGAIN, BlockingIOError),
        (errno.EINPROGRESS, BlockingIOError),
        (errno.ECHILD, ChildProcessError),
        (errno.EPIPE, BrokenPipeError),
        (errno.ECONNREFUSED, ConnectionRefusedError),
        (errno.ECONNRESET, ConnectionResetError),
        (errno.ECONNABORTED, ConnectionAbortedError),
        (errno.EINTR, InterruptedError),
        (errno.ESRCH, ProcessLookupError),
        (errno.ETIMEDOUT, TimeoutError),
        (errno.EBADF, OSError),
    ],
)
def test_operation_error_is_the_builtin_subclass(number: int, kind: type[OSError]) -> None:
    """The class is the one that Python raises for that errno; the note is what was given."""
    error = errors.operation_error(number, "in Read(fd=3)")
    assert type(error) is kind
    assert (error.errno, error.strerror) == (number, os.strerror(number))
    assert error.filename is None
    assert error.__notes__ == ["in Read(fd=3)"]


@pytest.mark.parametrize("filename", ["a/b", b"a/b"])
def test_operation_error_has_the_filename(filename: str | bytes) -> None:
    """The path, str or bytes, is the error's filename."""
    error = errors.operation_error(errno.ENOENT, "", filename)
    assert type(error) is FileNotFoundError
    assert error.filename == filename
    assert not hasattr(error, "__notes__")
