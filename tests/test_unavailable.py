"""
What cannot run on this kernel or machine: each with its reason, which the test run lists.

The refusal is asserted, so that what becomes possible is noticed.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import uring
from uring import SetupFlags, TimeoutFlags

F = SetupFlags
Refusal = Callable[[uring.Ring, Path], object]


def completes(make: Callable[[int], uring.Operation], number: int) -> Refusal:
    """An operation, made for a regular file, that completes with an errno."""

    def refuse(ring: uring.Ring, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            ring.queue(make(fd))
            ring.submit()
            assert ring.copy_cqe(timeout=10).res == -number
        finally:
            os.close(fd)

    return refuse


def raises(kind: type[Exception], call: Callable[[uring.Ring], object]) -> Refusal:
    """A call that raises."""

    def refuse(ring: uring.Ring, _path: Path) -> None:
        with pytest.raises(kind):
            call(ring)

    return refuse


def polled_read(_ring: uring.Ring, path: Path) -> None:
    """A read on a ring that polls, from a file system that cannot."""
    path.write_bytes(bytes(4096))
    fd = os.open(path, os.O_RDONLY)
    try:
        with uring.Ring(4, flags=F.IOPOLL) as ring:
            ring.queue(uring.Read(fd, bytearray(512)))
            ring.submit()
            assert ring.copy_cqe(timeout=10).res == -errno.EOPNOTSUPP
    finally:
        os.close(fd)


UNAVAILABLE: Final[dict[str, tuple[str, Refusal]]] = {
    "Nop128": (
        "the kernel lacks the opcode (6.19)",
        raises(uring.UnsupportedError, lambda ring: ring.queue(uring.Nop128())),
    ),
    "UringCmd128": (
        "the kernel lacks the opcode (6.19)",
        raises(uring.UnsupportedError, lambda ring: ring.queue(uring.UringCmd128(0, cmd_op=0))),
    ),
    "RecvZc": (
        "no network card here gives a zero-copy receive queue",
        completes(lambda fd: uring.RecvZc(fd, zcrx_ifq_idx=0), errno.EINVAL),
    ),
    "Getsockname": (
        "the kernel lacks the socket command (6.19)",
        completes(uring.Getsockname, errno.EOPNOTSUPP),
    ),
    "BlockDiscard, done": (
        "needs a block device that may be written",
        completes(lambda fd: uring.BlockDiscard(fd, length=512), errno.EOPNOTSUPP),
    ),
    "ProtectionInfo, taken": (
        "no device here keeps integrity metadata",
        completes(
            lambda fd: uring.Readv(fd, [bytearray(512)], pi=uring.ProtectionInfo(bytearray(8))),
            errno.EINVAL,
        ),
    ),
    "TimeoutFlags.IMMEDIATE_ARG": (
        "the kernel lacks the flag (7.1)",
        completes(
            lambda _: uring.Timeout(0, timeout_flags=TimeoutFlags.IMMEDIATE_ARG), errno.EINVAL
        ),
    ),
    "PollMultishot(level=True)": (
        "the kernel refuses ADD_LEVEL",
        completes(lambda fd: uring.PollMultishot(fd, level=True), errno.EINVAL),
    ),
    "reads on a ring with IOPOLL": ("no file system or device here can be polled", polled_read),
    "SetupFlags.SQE_MIXED": (
        "the kernel lacks the flag (6.19)",
        raises(uring.UnsupportedError, lambda _: uring.Ring(4, flags=F.SQE_MIXED)),
    ),
    "SetupFlags.SQ_REWIND": (
        "the kernel lacks the flag (7.0)",
        raises(uring.UnsupportedError, lambda _: uring.Ring(4, flags=F.SQ_REWIND | F.NO_SQARRAY)),
    ),
    "Ring.register_zcrx": (
        "no network card here gives a zero-copy receive queue",
        raises(
            uring.RegisterError,
            lambda ring: ring.register_zcrx("lo", 0, area_size=4096, rq_entries=8),
        ),
    ),
    "Ring.register_bpf_filter": (
        "the kernel lacks the register opcode (7.0)",
        raises(
            uring.UnsupportedError,
            lambda ring: ring.register_bpf_filter(uring.BpfFilter(0, [(6, 0, 0, 1)])),
        ),
    ),
}


@pytest.mark.parametrize("what", UNAVAILABLE)
def test_what_cannot_run_here_is_refused(
    ring: uring.Ring, tmp_path: Path, unavailable: Callable[[str, str], None], what: str
) -> None:
    """The kernel or the package says no, and the run says so with the reason."""
    reason, refuse = UNAVAILABLE[what]
    refuse(ring, tmp_path / "file")
    unavailable(what, reason)
    assert ring.in_flight == 0


def test_reasons_are_for_what_there_is() -> None:
    """Each entry that names an operation or a method names one of the package's."""
    for what in UNAVAILABLE:
        name = what.partition(",")[0].partition("(")[0]
        value: Any = uring
        for part in name.split("."):
            value = None if " " in name else getattr(value, part)
        assert value is not None or " " in name
