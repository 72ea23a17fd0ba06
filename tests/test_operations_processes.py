"""Waiting for children: encoded and on the real kernel."""

import errno
import gc
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import pytest

import uring
from uring import Waitid, WaitidResult, _structures

Spawn = Callable[[str], int]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Give what starts a shell with one line, and end what is left of them."""
    children: list[int] = []

    def start(line: str) -> int:
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", line], {"PATH": os.defpath})
        children.append(pid)
        return pid

    yield start
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue  # its test has reaped it


def outcome(pid: int, status: int, code: int) -> WaitidResult:
    """What a wait tells of a child of ours."""
    return WaitidResult(pid, os.getuid(), signal.SIGCHLD, status, code)


# ---- encoding: fields and values by hand from linux/io_uring.h ----


@pytest.mark.parametrize(
    ("idtype", "number"), [(os.P_ALL, 0), (os.P_PID, 1), (os.P_PGID, 2), (os.P_PIDFD, 3)]
)
def test_waitid_encodes_what_the_header_says(idtype: int, number: int) -> None:
    """The fields of the record are those of the header, and all others are 0."""
    assert idtype == number
    record = attrs.asdict(Waitid(idtype, 77, 0x5).sqe())
    assert record.pop("off")
    assert {name: value for name, value in record.items() if value} == {
        "opcode": 50,
        "fd": 77,
        "splice_fd_in": 0x5,
    } | ({"len": number} if number else {})


@pytest.mark.parametrize("option", [0x1, 0x2, 0x4, 0x8, 0x1000000, 0x20000000, 0x40000000, 2**31])
def test_waitid_encodes_each_option(option: int) -> None:
    """All options of linux/wait.h fit, also __WCLONE, the highest bit, and change nothing else."""
    encoded = Waitid(os.P_PID, 77, option)._encode()[0]
    assert encoded[44:48] == option.to_bytes(4, sys.byteorder)
    other = Waitid(os.P_PID, 77, 0)._encode()[0]
    assert encoded[:8] + encoded[16:44] + encoded[48:] == other[:8] + other[16:44] + other[48:]


def test_waitid_reads_the_layout_of_the_header() -> None:
    """Signal, errno and code come first; behind them, aligned to a pointer, pid, uid and status."""
    room = _structures.ChildInfo()
    assert room.decode() == (0, 0, 0, 0, 0)
    assert _structures._SIGINFO.size == struct.calcsize("iii0PiIi")


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Waitid("P_PID", 1, 4), "idtype must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
        (Waitid(-1, 1, 4), "idtype must be in"),
        (Waitid(1, -1, 4), "id must be in"),
        (Waitid(1, 2**31, 4), "id must be in"),
        (Waitid(1, uring.Fixed(1), 4), "id must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
        (Waitid(1, True, 4), "id must be an integer"),  # noqa: FBT003 - wrong on purpose
        (Waitid(1, 1, 2**32), "options must be in"),
        (Waitid(1, 1, -1), "options must be in"),
        (Waitid(1, 1, "x"), "options must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    ids=lambda value: repr(value)[:60],
)
def test_waitid_refuses_what_does_not_fit(op: uring.Operation, message: str) -> None:
    """TypeError or ValueError, whose message names the field, before the kernel sees it."""
    with pytest.raises((TypeError, ValueError), match=message):
        op.sqe()


# ---- on the kernel ----


def test_waitid_gives_the_exit_status_and_reaps(drive: Any, spawn: Spawn) -> None:
    """The result is what os.waitid would give; then there is no such child any more."""
    pid = spawn("exit 7")
    op = Waitid(os.P_PID, pid, os.WEXITED)
    cqe = drive.one(op)
    assert (cqe.res, cqe.result()) == (0, outcome(pid, 7, os.CLD_EXITED))
    assert isinstance(drive.fails(op, errno.ECHILD), ChildProcessError)


def test_waitid_waits_for_the_end(drive: Any, spawn: Spawn) -> None:
    """Pending while the child runs, it tells of the signal that ended it."""
    pid = spawn("exec sleep 60")
    drive.submit(Waitid(os.P_PID, pid, os.WEXITED))
    gc.collect()
    assert drive.ring.copy_cqes() == uring.Completions()
    os.kill(pid, signal.SIGKILL)
    assert drive.take()[0].result() == outcome(pid, signal.SIGKILL, os.CLD_KILLED)


def test_waitid_gives_what_os_waitid_gives(drive: Any, spawn: Spawn) -> None:
    """Field by field the same, the child being left to the second by WNOWAIT."""
    pid = spawn("exit 3")
    options = os.WEXITED | os.WNOWAIT
    ours = drive.result(Waitid(os.P_PID, pid, options))
    theirs = os.waitid(os.P_PID, pid, os.WEXITED)
    assert theirs is not None
    assert [*attrs.astuple(ours)] == [*theirs]
    assert [field.name for field in attrs.fields(WaitidResult)] == [
        name for name in dir(theirs) if name.startswith("si_")
    ] or set(attrs.asdict(ours)) == {name for name in dir(theirs) if name.startswith("si_")}


def test_waitid_with_wnohang_has_nothing_to_tell(drive: Any, spawn: Spawn) -> None:
    """While the child runs, WNOHANG completes at once, and the result is None."""
    pid = spawn("exec sleep 60")
    cqe = drive.one(Waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG))
    assert (cqe.res, cqe.result()) == (0, None)


def test_waitid_of_a_pidfd_a_group_and_any(drive: Any, spawn: Spawn) -> None:
    """The child is found by its descriptor, by its group, and among all."""
    pid = spawn("exit 3")
    expected = outcome(pid, 3, os.CLD_EXITED)
    pidfd = os.pidfd_open(pid)
    options = os.WEXITED | os.WNOWAIT
    assert drive.result(Waitid(os.P_PIDFD, pidfd, options)) == expected
    assert drive.result(Waitid(os.P_PGID, os.getpgid(0), options)) == expected
    assert drive.result(Waitid(os.P_ALL, 0, options)) == expected
    os.close(pidfd)


def test_waitid_tells_of_stops_and_continuations(drive: Any, spawn: Spawn) -> None:
    """WSTOPPED and WCONTINUED tell of a child that lives on."""
    pid = spawn("exec sleep 60")
    drive.submit(Waitid(os.P_PID, pid, os.WSTOPPED))
    os.kill(pid, signal.SIGSTOP)
    assert drive.take()[0].result() == outcome(pid, signal.SIGSTOP, os.CLD_STOPPED)
    drive.submit(Waitid(os.P_PID, pid, os.WCONTINUED))
    os.kill(pid, signal.SIGCONT)
    assert drive.take()[0].result() == outcome(pid, signal.SIGCONT, os.CLD_CONTINUED)


def test_waitid_fails_as_the_os_does(drive: Any) -> None:
    """Nobody's child is ECHILD; no option, an unknown one and an unknown type are EINVAL."""
    drive.fails(Waitid(os.P_PID, 1, os.WEXITED), errno.ECHILD)
    drive.fails(Waitid(os.P_PID, 1, 0), errno.EINVAL)
    drive.fails(Waitid(os.P_PID, 1, os.WEXITED | 0x100), errno.EINVAL)
    drive.fails(Waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | 2**31), errno.ECHILD)  # __WCLONE
    drive.fails(Waitid(9, 1, os.WEXITED), errno.EINVAL)
    drive.fails(Waitid(os.P_PID, 0, os.WEXITED), errno.EINVAL)


def test_waitid_can_be_cancelled(drive: Any, spawn: Spawn) -> None:
    """Cancelled by its number it is ECANCELED, the cancel counts 1, and the child is left."""
    pid = spawn("exec sleep 60")
    drive.submit(Waitid(os.P_PID, pid, os.WEXITED, user_data=1))
    (number,) = drive.submit(uring.AsyncCancel(1))
    assert {cqe.user_data: cqe.res for cqe in drive.take(2)} == {1: -errno.ECANCELED, number: 1}
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[0] == pid


def test_waitid_twice_under_one_user_data_has_no_result(drive: Any, spawn: Spawn) -> None:
    """Which child it was cannot be told: the result is None, and both are reaped."""
    pids = [spawn("exit 0"), spawn("exit 1")]
    for pid in pids:
        drive.ring.queue(Waitid(os.P_PID, pid, os.WEXITED, user_data=5))
    drive.ring.submit()
    assert [(cqe.res, cqe.result()) for cqe in drive.take(2)] == [(0, None)] * 2
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)


def test_waitid_result_can_be_read_late(drive: Any, spawn: Spawn) -> None:
    """The result outlives the ring, and is the same each time."""
    pid = spawn("exit 5")
    cqe = drive.one(Waitid(os.P_PID, pid, os.WEXITED))
    drive.ring.close()
    gc.collect()
    assert cqe.result() == cqe.result() == outcome(pid, 5, os.CLD_EXITED)


CODES: Final = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_STOPPED, os.CLD_CONTINUED)


def test_waitid_result_is_a_value() -> None:
    """Results compare by their fields, and cannot be changed."""
    for code in CODES:
        assert outcome(1, 2, code) == outcome(1, 2, code)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        outcome(1, 2, 3).si_pid = 4  # type: ignore[misc]  # wrong on purpose
