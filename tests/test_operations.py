"""Every operation on the real kernel: its result, its failure, its encoding."""

import errno
import gc
import os
import select
import signal
import socket
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import Wrapper

import uring
from uring.flags import SQEFlags, TimeoutFlags

SECONDS: Final = 10  # the end of a wait that should not take any time: a failure, not a hang

Pipe = tuple[int, int]


@pytest.fixture(params=["inet", "inet6", "unix", "abstract"])
def any_listener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """Give a socket that listens, one of each family."""
    monkeypatch.chdir(tmp_path)
    families: dict[str, tuple[int, Any]] = {
        "inet": (socket.AF_INET, ("127.0.0.1", 0)),
        "inet6": (socket.AF_INET6, ("::1", 0)),
        "unix": (socket.AF_UNIX, "listener"),
        "abstract": (socket.AF_UNIX, b"\0uring-" + os.urandom(8)),
    }
    family, address = families[request.param]
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.socket(family) as sock:
        sock.bind(address)
        sock.listen()
        yield sock


# ---- every class: how it names a file ----

BUFFER: Final = bytearray(4)
BUFFERS: Final = (BUFFER,)  # compared by identity
HERE: Final = ("127.0.0.1", 1)

WITH_FD: Final[dict[type[uring.Operation], Callable[[Any, SQEFlags], uring.Operation]]] = {
    uring.Accept: lambda fd, flags: uring.Accept(fd, flags=flags),
    uring.Connect: lambda fd, flags: uring.Connect(fd, ("127.0.0.1", 1), flags=flags),
    uring.Fadvise: lambda fd, flags: uring.Fadvise(fd, 3, offset=7, length=9, flags=flags),
    uring.Fallocate: lambda fd, flags: uring.Fallocate(fd, offset=7, length=9, flags=flags),
    uring.Fgetxattr: lambda fd, flags: uring.Fgetxattr(fd, "user.x", size=9, flags=flags),
    uring.Fsetxattr: lambda fd, flags: uring.Fsetxattr(fd, "user.x", BUFFER, 1, flags=flags),
    uring.EpollWait: lambda fd, flags: uring.EpollWait(fd, 3, flags=flags),
    uring.Fsync: lambda fd, flags: uring.Fsync(fd, datasync=True, flags=flags),
    uring.Ftruncate: lambda fd, flags: uring.Ftruncate(fd, 7, flags=flags),
    uring.PollAdd: lambda fd, flags: uring.PollAdd(fd, select.POLLOUT, flags=flags),
    uring.PollMultishot: lambda fd, flags: uring.PollMultishot(fd, select.POLLOUT, flags=flags),
    uring.Read: lambda fd, flags: uring.Read(fd, BUFFER, 7, rw_flags=1, ioprio=2, flags=flags),
    uring.ReadFixed: lambda fd, flags: uring.ReadFixed(fd, BUFFER, 7, buf_index=3, flags=flags),
    uring.ReadMultishot: lambda fd, flags: uring.ReadMultishot(fd, 3, offset=7, flags=flags),
    uring.ReadSelect: lambda fd, flags: uring.ReadSelect(fd, 3, length=9, flags=flags),
    uring.Readv: lambda fd, flags: uring.Readv(fd, BUFFERS, 7, ioprio=2, flags=flags),
    uring.ReadvFixed: lambda fd, flags: uring.ReadvFixed(fd, BUFFERS, 7, buf_index=3, flags=flags),
    uring.Recv: lambda fd, flags: uring.Recv(fd, BUFFER, 3, flags=flags),
    uring.Send: lambda fd, flags: uring.Send(fd, BUFFER, 3, flags=flags),
    uring.Shutdown: lambda fd, flags: uring.Shutdown(fd, 1, flags=flags),
    uring.SyncFileRange: lambda fd, flags: uring.SyncFileRange(fd, length=9, flags=flags),
    uring.BlockDiscard: lambda fd, flags: uring.BlockDiscard(fd, length=9, flags=flags),
    uring.UringCmd: lambda fd, flags: uring.UringCmd(fd, cmd_op=3, flags=flags),
    uring.UringCmd128: lambda fd, flags: uring.UringCmd128(fd, cmd_op=3, flags=flags),
    uring.UringCmdMultishot: lambda fd, flags: uring.UringCmdMultishot(
        fd, cmd_op=3, group=7, flags=flags
    ),
    uring.Write: lambda fd, flags: uring.Write(fd, BUFFER, 7, rw_flags=1, ioprio=2, flags=flags),
    uring.AcceptMultishot: lambda fd, flags: uring.AcceptMultishot(fd, flags=flags),
    uring.Bind: lambda fd, flags: uring.Bind(fd, HERE, flags=flags),
    uring.Getsockname: lambda fd, flags: uring.Getsockname(fd, peer=True, flags=flags),
    uring.Getsockopt: lambda fd, flags: uring.Getsockopt(fd, level=1, optname=2, flags=flags),
    uring.Listen: lambda fd, flags: uring.Listen(fd, 5, flags=flags),
    uring.RecvBundle: lambda fd, flags: uring.RecvBundle(fd, 7, 3, flags=flags),
    uring.RecvBundleMultishot: lambda fd, flags: uring.RecvBundleMultishot(fd, 7, 3, flags=flags),
    uring.RecvMultishot: lambda fd, flags: uring.RecvMultishot(fd, 7, 3, flags=flags),
    uring.RecvSelect: lambda fd, flags: uring.RecvSelect(fd, 7, 3, flags=flags),
    uring.RecvZc: lambda fd, flags: uring.RecvZc(fd, zcrx_ifq_idx=1, flags=flags),
    uring.Recvmsg: lambda fd, flags: uring.Recvmsg(fd, BUFFERS, flags=flags),
    uring.RecvmsgMultishot: lambda fd, flags: uring.RecvmsgMultishot(fd, 7, flags=flags),
    uring.RecvmsgSelect: lambda fd, flags: uring.RecvmsgSelect(fd, 7, flags=flags),
    uring.SendBundle: lambda fd, flags: uring.SendBundle(fd, 7, 3, flags=flags),
    uring.SendSelect: lambda fd, flags: uring.SendSelect(fd, 7, 3, flags=flags),
    uring.SendVectorized: lambda fd, flags: uring.SendVectorized(fd, BUFFERS, 3, flags=flags),
    uring.SendZc: lambda fd, flags: uring.SendZc(fd, BUFFER, 3, flags=flags),
    uring.SendZcFixed: lambda fd, flags: uring.SendZcFixed(fd, BUFFER, buf_index=6, flags=flags),
    uring.SendZcVectorized: lambda fd, flags: uring.SendZcVectorized(fd, BUFFERS, flags=flags),
    uring.Sendmsg: lambda fd, flags: uring.Sendmsg(fd, BUFFERS, flags=flags),
    uring.SendmsgZc: lambda fd, flags: uring.SendmsgZc(fd, BUFFERS, flags=flags),
    uring.SendmsgZcFixed: lambda fd, flags: uring.SendmsgZcFixed(
        fd, BUFFERS, buf_index=6, flags=flags
    ),
    uring.Sendto: lambda fd, flags: uring.Sendto(fd, BUFFER, HERE, 3, flags=flags),
    uring.Setsockopt: lambda fd, flags: uring.Setsockopt(
        fd, level=1, optname=2, value=3, flags=flags
    ),
    uring.Siocinq: lambda fd, flags: uring.Siocinq(fd, flags=flags),
    uring.Siocoutq: lambda fd, flags: uring.Siocoutq(fd, flags=flags),
    uring.TxTimestamp: lambda fd, flags: uring.TxTimestamp(fd, flags=flags),
    uring.WriteFixed: lambda fd, flags: uring.WriteFixed(fd, BUFFER, 7, buf_index=3, flags=flags),
    uring.Writev: lambda fd, flags: uring.Writev(fd, BUFFERS, 7, ioprio=2, flags=flags),
    uring.WritevFixed: lambda fd, flags: uring.WritevFixed(
        fd, BUFFERS, 7, buf_index=3, flags=flags
    ),
}
# These name a file as well, but encode it in a way of their own, and have tests of their own.
OTHERWISE_FD: Final = {
    uring.AsyncCancelFd,
    uring.Close,
    uring.FixedFdInstall,
    uring.EpollCtl,
    uring.Nop,
    uring.Nop128,
}
# What a class sets in `flags` by itself.
OWN_FLAGS: Final[dict[type[uring.Operation], SQEFlags]] = {
    uring.FixedFdInstall: SQEFlags.FIXED_FILE,
    **{kind: SQEFlags.BUFFER_SELECT for kind in WITH_FD if "group" in attrs.fields_dict(kind)},
}
WITHOUT_FD: Final[dict[type[uring.Operation], Callable[[SQEFlags], uring.Operation]]] = {
    uring.AsyncCancel: lambda flags: uring.AsyncCancel(5, flags=flags),
    uring.AsyncCancelAny: lambda flags: uring.AsyncCancelAny(flags=flags),
    uring.AsyncCancelFd: lambda flags: uring.AsyncCancelFd(5, flags=flags),
    uring.AsyncCancelOp: lambda flags: uring.AsyncCancelOp(uring.Opcode.READ, flags=flags),
    uring.Close: lambda flags: uring.Close(5, flags=flags),
    uring.Getxattr: lambda flags: uring.Getxattr("x", "user.x", size=9, flags=flags),
    uring.LinkTimeout: lambda flags: uring.LinkTimeout(1, flags=flags),
    uring.Linkat: lambda flags: uring.Linkat("x", "y", flags=flags),
    uring.Madvise: lambda flags: uring.Madvise(BUFFER, 0, flags=flags),
    uring.Mkdirat: lambda flags: uring.Mkdirat("x", flags=flags),
    uring.EpollCtl: lambda flags: uring.EpollCtl(5, op=uring.EpollOp.ADD, fd=6, flags=flags),
    uring.FilesAlloc: lambda flags: uring.FilesAlloc([5], flags=flags),
    uring.FilesUpdate: lambda flags: uring.FilesUpdate([5], 2, flags=flags),
    uring.FixedFdInstall: lambda flags: uring.FixedFdInstall(uring.Fixed(5), flags=flags),
    uring.FutexWait: lambda flags: uring.FutexWait(BUFFER, 5, flags=flags),
    uring.FutexWaitv: lambda flags: uring.FutexWaitv([uring.FutexWaiter(BUFFER, 5)], flags=flags),
    uring.FutexWake: lambda flags: uring.FutexWake(BUFFER, flags=flags),
    uring.LinkTimeout: lambda flags: uring.LinkTimeout(1, flags=flags),
    uring.LinkTimeoutUpdate: lambda flags: uring.LinkTimeoutUpdate(5, 1, flags=flags),
    uring.MsgRing: lambda flags: uring.MsgRing(5, target_user_data=6, flags=flags),
    uring.MsgRingFd: lambda flags: uring.MsgRingFd(
        5, source=uring.Fixed(1), slot=uring.AUTO, target_user_data=6, flags=flags
    ),
    uring.Nop: lambda flags: uring.Nop(flags=flags),
    uring.Nop128: lambda flags: uring.Nop128(flags=flags),
    uring.Openat: lambda flags: uring.Openat("x", flags=flags),
    uring.Openat2: lambda flags: uring.Openat2("x", flags=flags),
    uring.Pipe: lambda flags: uring.Pipe(flags=flags),
    uring.PollRemove: lambda flags: uring.PollRemove(5, flags=flags),
    uring.Renameat: lambda flags: uring.Renameat("x", "y", flags=flags),
    uring.Setxattr: lambda flags: uring.Setxattr("x", "user.x", BUFFER, flags=flags),
    uring.PollUpdate: lambda flags: uring.PollUpdate(5, events=1, flags=flags),
    uring.ProvideBuffers: lambda flags: uring.ProvideBuffers(BUFFER, bgid=5, flags=flags),
    uring.RemoveBuffers: lambda flags: uring.RemoveBuffers(1, bgid=5, flags=flags),
    uring.Socket: lambda flags: uring.Socket(flags=flags),
    uring.Splice: lambda flags: uring.Splice(fd_in=5, fd_out=6, length=7, flags=flags),
    uring.Statx: lambda flags: uring.Statx("x", flags=flags),
    uring.Symlinkat: lambda flags: uring.Symlinkat("x", "y", flags=flags),
    uring.Tee: lambda flags: uring.Tee(fd_in=5, fd_out=6, length=7, flags=flags),
    uring.Timeout: lambda flags: uring.Timeout(1, flags=flags),
    uring.TimeoutMultishot: lambda flags: uring.TimeoutMultishot(1, flags=flags),
    uring.TimeoutRemove: lambda flags: uring.TimeoutRemove(5, flags=flags),
    uring.Unlinkat: lambda flags: uring.Unlinkat("x", flags=flags),
    uring.TimeoutUpdate: lambda flags: uring.TimeoutUpdate(5, 1, flags=flags),
    uring.Waitid: lambda flags: uring.Waitid(os.P_PID, 5, os.WEXITED, flags=flags),
}
ADDRESSES: Final[dict[Any, tuple[str, ...]]] = dict.fromkeys(
    (
        uring.Fgetxattr,
        uring.Fsetxattr,
        uring.Getsockname,
        uring.Getsockopt,
        uring.Getxattr,
        uring.Linkat,
        uring.Openat2,
        uring.Renameat,
        uring.Sendto,
        uring.Setsockopt,
        uring.Setxattr,
        uring.Statx,
        uring.Symlinkat,
        uring.LinkTimeoutUpdate,
        uring.TimeoutUpdate,
        uring.Waitid,
    ),
    ("addr", "off", "addr3"),
)
"""Where an operation has addresses of temporary memory besides `addr`."""
ALL: Final = {
    kind
    for kind in map(vars(uring).get, uring.__all__)
    if isinstance(kind, type) and issubclass(kind, uring.Operation) and kind is not uring.Operation
}
OTHER_FLAGS: Final = sorted(set(SQEFlags) - {SQEFlags.FIXED_FILE, SQEFlags.BUFFER_SELECT})
FLAGS: Final = [
    SQEFlags(0),
    *[flag for flag in SQEFlags if flag is not SQEFlags.BUFFER_SELECT],
    SQEFlags.ASYNC | SQEFlags.IO_LINK | SQEFlags.IO_DRAIN,
]


def named(kind: object) -> str:
    """The name of a parametrised class."""
    return getattr(kind, "__name__", "") or repr(kind)


def test_operations_are_all_tested_here() -> None:
    """Every exported operation stands in one of the tables above, and has a file where due."""
    assert set(WITH_FD) | set(WITHOUT_FD) == ALL
    assert {kind for kind in ALL if "fd" in attrs.fields_dict(kind)} == {*WITH_FD, *OTHERWISE_FD}


def fields(op: uring.Operation) -> dict[str, Any]:
    """The encoded fields that do not depend on where temporary memory lies."""
    record = attrs.asdict(op.sqe())
    if not isinstance(op, uring.Read | uring.Write | uring.Recv | uring.Send):
        for name in ADDRESSES.get(type(op), ("addr",)):
            del record[name]
    return record


@pytest.mark.parametrize("flags", FLAGS, ids=repr)
@pytest.mark.parametrize("kind", WITH_FD, ids=named)
def test_operation_fixed_file_sets_its_bit_and_nothing_else(
    kind: type[uring.Operation], flags: SQEFlags
) -> None:
    """int, fileno() and Fixed of one number encode alike, but for FIXED_FILE, under any flags."""
    make = WITH_FD[kind]
    plain = fields(make(9, flags))
    assert plain["fd"] == 9
    assert plain["flags"] == flags | OWN_FLAGS.get(kind, SQEFlags(0))
    assert fields(make(Wrapper(9), flags)) == plain
    assert fields(make(uring.Fixed(9), flags)) == plain | {
        "flags": plain["flags"] | SQEFlags.FIXED_FILE
    }


@pytest.mark.parametrize("flags", [SQEFlags.BUFFER_SELECT, SQEFlags.BUFFER_SELECT | 0x14, 0x20])
@pytest.mark.parametrize("kind", sorted(ALL, key=named), ids=named)
def test_operation_takes_a_buffer_from_a_group_that_it_names_or_from_none(
    kind: type[uring.Operation], flags: SQEFlags
) -> None:
    """BUFFER_SELECT raises ValueError, but where there is a group: there it is set anyway."""
    make = WITHOUT_FD.get(kind) or (lambda flags: WITH_FD[kind](9, flags))
    op = make(flags)
    if "group" in attrs.fields_dict(kind):
        assert fields(op) == fields(make(SQEFlags(0))) | {"flags": flags}
        return
    with pytest.raises(ValueError, match=rf"{kind.__name__} has no group .* BUFFER_SELECT"):
        op.sqe()
    with pytest.raises(ValueError, match="BUFFER_SELECT"):
        uring.Batch([op])


def test_recv_with_buffer_select_takes_nothing_from_a_group(
    ring: uring.Ring, drive: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A Recv cannot drain group 0 behind its back, and the ring is as it was."""
    left, right = pair
    buffers = ring.register_buffer_ring(2, size=16, bgid=0)
    with pytest.raises(ValueError, match="use an operation with a group"):
        ring.queue(uring.Recv(left, bytearray(4), flags=SQEFlags.BUFFER_SELECT))
    assert (ring.sq_ready(), ring.in_flight, buffers.inside) == (0, 0, 2)
    right.send(b"data")
    assert bytes(drive.one(uring.RecvSelect(left, buffers)).result()) == b"data"


@pytest.mark.parametrize("kind", WITH_FD, ids=named)
@given(
    number=st.integers(0, 2**31 - 1),
    chosen=st.sets(st.sampled_from(OTHER_FLAGS)),
    personality=st.integers(0, 2**16 - 1),
)
@settings(max_examples=25, deadline=None)
def test_operation_takes_any_file_under_any_flags(
    kind: type[uring.Operation], number: int, chosen: set[SQEFlags], personality: int
) -> None:
    """Any number in any of the three ways, any flags and personality are in the record as given."""
    flags = SQEFlags(sum(chosen))
    own = OWN_FLAGS.get(kind, SQEFlags(0))
    for fd, bit in ((number, 0), (Wrapper(number), 0), (uring.Fixed(number), SQEFlags.FIXED_FILE)):
        record = attrs.evolve(WITH_FD[kind](fd, flags), personality=personality).sqe()  # type: ignore[misc]  # each is attrs
        assert (record.fd, record.flags) == (number, flags | own | bit)
        assert (record.opcode, record.personality) == (kind.opcode, personality)


@pytest.mark.parametrize("fd", [True, None, "9", 9.0, b"9", Wrapper("9")], ids=repr)
@pytest.mark.parametrize("kind", WITH_FD, ids=named)
def test_operation_refuses_what_names_no_file(kind: type[uring.Operation], fd: object) -> None:
    """What is neither a number, nor has a fileno(), nor is Fixed, raises TypeError."""
    with pytest.raises(TypeError):
        WITH_FD[kind](fd, SQEFlags(0)).sqe()


@pytest.mark.parametrize("fd", [2**31, -(2**31) - 1])
@pytest.mark.parametrize("kind", WITH_FD, ids=named)
def test_operation_refuses_a_descriptor_over_31_bits(kind: type[uring.Operation], fd: int) -> None:
    """A number that would be cut off raises ValueError about fd."""
    with pytest.raises(ValueError, match=rf": fd must be in .*, not {fd}$"):
        WITH_FD[kind](fd, SQEFlags(0)).sqe()


@pytest.mark.parametrize("kind", sorted(ALL, key=named), ids=named)
def test_operation_encodes_its_opcode_flags_and_personality(kind: type[uring.Operation]) -> None:
    """Opcode, every SQE flag and the personality are in the record; user_data is the ring's."""
    make = WITHOUT_FD.get(kind) or (lambda flags: WITH_FD[kind](9, flags))
    for flags in FLAGS:
        made: Any = make(flags)
        op = attrs.evolve(made, personality=77, user_data=5)
        record, numbered = op.sqe(), op.sqe(6)
        assert record.opcode == kind.opcode
        assert record.flags == flags | OWN_FLAGS.get(kind, SQEFlags(0))
        assert (record.personality, record.user_data) == (77, 0)
        moved = {name: getattr(numbered, name) for name in ADDRESSES.get(kind, ("addr",))}
        assert attrs.evolve(record, user_data=6, **moved) == numbered


@pytest.mark.parametrize("kind", sorted(ALL, key=named), ids=named)
def test_operation_is_an_immutable_value(kind: type[uring.Operation]) -> None:
    """Fields cannot be assigned; the same arguments make an equal value; repr names the class."""
    make = WITHOUT_FD.get(kind) or (lambda flags: WITH_FD[kind](9, flags))
    assert make(SQEFlags(0)) == make(SQEFlags(0))
    assert hash(make(SQEFlags(0))) == hash(make(SQEFlags(0)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        make(SQEFlags(0)).personality = 1  # type: ignore[misc]  # wrong on purpose
    assert repr(make(SQEFlags(0))).startswith(f"{kind.__name__}(")
    assert make(SQEFlags(0)) != make(SQEFlags.ASYNC)


def test_close_fixed_empties_the_slot_without_the_fixed_flag() -> None:
    """Close of Fixed(n) has fd 0 and file_index n + 1, and no FIXED_FILE, which would be EBADF."""
    record = uring.Close(uring.Fixed(9), flags=SQEFlags.ASYNC).sqe()
    assert (record.fd, record.splice_fd_in, record.flags) == (0, 10, SQEFlags.ASYNC)
    assert (uring.Close(9).sqe().fd, uring.Close(9).sqe().splice_fd_in) == (9, 0)


@pytest.mark.parametrize("fd", [True, None, "9", 9.0, Wrapper(9)], ids=repr)
def test_close_refuses_what_would_close_twice(fd: Any) -> None:
    """A Python file would close its number once more: TypeError, as for what is no file."""
    with pytest.raises(TypeError, match="Close"):
        uring.Close(fd).sqe()


@pytest.mark.parametrize("number", [-1, 2**64, "1", 1.0, None], ids=repr)
@pytest.mark.parametrize("kind", [uring.AsyncCancel, uring.PollRemove, uring.TimeoutRemove])
def test_operation_refuses_a_target_that_is_no_user_data(
    kind: type[uring.Operation], number: Any
) -> None:
    """A target is an integer of 64 bits; else TypeError or ValueError."""
    with pytest.raises((TypeError, ValueError), match=r"addr|target"):
        kind(number).sqe()  # type: ignore[call-arg]  # wrong on purpose


WRONG: Final[list[Any]] = [
    None,
    "nop",
    uring.Nop,
    b"\0" * 64,
    uring.Operation(),
    uring.Nop(user_data=-1),
    uring.Nop(user_data=2**64),
    uring.Nop(user_data="1"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Nop(user_data=True),
    uring.Nop(personality=2**16),
    uring.Nop(flags="ASYNC"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Nop(flags=SQEFlags(256)),
    uring.Read(0, b"read-only"),
    uring.Read(0, "text"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Read(0, BUFFER, -2),
    uring.Read(0, BUFFER, "0"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Read(0, BUFFER, 2**64),
    uring.Read(0, BUFFER, rw_flags=-1),
    uring.Read(0, BUFFER, ioprio=2**16),
    uring.Write(0, None),  # type: ignore[arg-type]  # wrong on purpose
    uring.Readv(0, BUFFER),  # type: ignore[arg-type]  # wrong on purpose
    uring.Readv(0, [b"read-only"]),
    uring.Readv(0, None),  # type: ignore[arg-type]  # wrong on purpose
    uring.Writev(0, [b"x"] * 1025),
    uring.Close(Wrapper(1)),  # type: ignore[arg-type]  # wrong on purpose
    uring.Openat(5),  # type: ignore[arg-type]  # wrong on purpose
    uring.Openat("a\0b"),
    uring.Openat("x", "r"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Openat("x", dir_fd="/"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Connect(0, ("localhost", 80)),
    uring.Connect(0, 80),  # type: ignore[arg-type]  # wrong on purpose
    uring.Send(0, "text"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Recv(0, b"read-only"),
    uring.Shutdown(0, -1),
    uring.Timeout(-1),
    uring.Timeout("1"),  # type: ignore[arg-type]  # wrong on purpose
    uring.Timeout(1, count=-1),
    uring.Timeout(1, timeout_flags=TimeoutFlags.MULTISHOT),
    uring.Timeout(1, timeout_flags=TimeoutFlags.UPDATE),
    uring.LinkTimeout(1, timeout_flags=TimeoutFlags.ETIME_SUCCESS),
    uring.PollAdd(0, -1),
    uring.PollAdd(0, "in"),  # type: ignore[arg-type]  # wrong on purpose
]


@pytest.mark.parametrize("op", WRONG, ids=repr)
def test_queue_of_wrong_arguments_leaves_the_ring_as_it_was(ring: uring.Ring, op: Any) -> None:
    """TypeError or ValueError, alone and among others, and nothing is queued or in flight."""
    ring.queue(uring.Nop())
    before = repr(ring.sq), ring.sq_ready(), ring.in_flight
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        ring.queue(op)
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        ring.queue_all([uring.Nop(), op])
    assert (repr(ring.sq), ring.sq_ready(), ring.in_flight) == before
    BUFFER.append(0)  # nothing is pinned
    BUFFER.pop()


def test_timeout_refuses_a_count_over_32_bits() -> None:
    """The kernel reads 32 bits of the count: more raises ValueError, and is not cut off."""
    with pytest.raises(ValueError, match=r"count|off"):
        uring.Timeout(1, count=2**32 + 1).sqe()


# ---- control ----


def test_nop_completes_with_zero(drive: Any) -> None:
    """A Nop completes with 0, its own user_data, itself as `op`, and no flag."""
    nop = uring.Nop(user_data=0x42)
    cqe = drive.one(nop)
    assert cqe == uring.CQE(0x42, 0, 0)
    assert cqe.op is nop
    assert cqe.result() == 0


def test_nop_with_unknown_personality_or_flag_fails(ring: uring.Ring, drive: Any) -> None:
    """An unregistered personality and a reserved flag are EINVAL; BUFFER_SELECT is refused."""
    drive.fails(uring.Nop(personality=77), errno.EINVAL)
    drive.fails(uring.Nop(flags=SQEFlags(128)), errno.EINVAL)
    selecting = uring.SQE(uring.Opcode.NOP, SQEFlags.BUFFER_SELECT, user_data=1)
    assert drive.one(selecting).res == -errno.EOPNOTSUPP
    with pytest.raises(ValueError, match="BUFFER_SELECT"):
        ring.queue(uring.Nop(flags=SQEFlags.BUFFER_SELECT))
    raw = drive.one(uring.SQE(uring.Opcode.NOP, flags=SQEFlags.BUFFER_SELECT))
    assert raw.res == -errno.EOPNOTSUPP


def test_sqe_with_a_bad_opcode_fails_alone(drive: Any) -> None:
    """An opcode that no kernel has is EINVAL, and what is queued behind it runs."""
    bad = uring.SQE(200, user_data=1)
    first, second = drive.run(bad, uring.Nop(user_data=2))
    assert first.res == -errno.EINVAL
    assert first.op is bad
    assert isinstance(first.error, OSError)
    assert second.res == 0


def test_sqe_in_a_linked_chain_that_is_invalid_fails_the_whole_chain(drive: Any) -> None:
    """With a bad member, those before and behind it are ECANCELED and it is EINVAL itself."""
    chain = uring.link(uring.Nop(user_data=1), uring.SQE(200, user_data=2), uring.Nop(user_data=3))
    assert [cqe.res for cqe in drive.run(*chain)] == [-errno.ECANCELED, -errno.EINVAL, -125]


def test_sqe_invalid_in_a_chain_that_skips_leaves_nothing_in_flight(ring: uring.Ring) -> None:
    """When a later member is invalid, the one CQE of the skipping head ends all of the chain."""
    skipping = uring.Nop(flags=SQEFlags.CQE_SKIP_SUCCESS)
    ring.queue_all(uring.link(skipping, uring.SQE(200, user_data=2), uring.Nop()))
    ring.submit()
    assert list(ring.copy_cqes(wait_nr=1, timeout=SECONDS).res) == [-errno.ECANCELED]
    assert ring.in_flight == 0


def test_async_cancel_ends_its_target(ring: uring.Ring, drive: Any, pipe: Pipe) -> None:
    """The cancel completes with 0 and the target with ECANCELED."""
    read = uring.Read(pipe[0], bytearray(4))
    number = ring.queue(read)
    cancel = ring.queue(uring.AsyncCancel(number))
    ring.submit()
    target, canceller = drive.collect([number, cancel])
    assert (target.res, canceller.res, canceller.result()) == (-errno.ECANCELED, 0, 0)
    assert target.error is not None
    assert ring.in_flight == 0


def test_async_cancel_of_nothing_is_enoent(drive: Any) -> None:
    """A number that is not in flight is ENOENT, with a note that says so; with `all` it is 0."""
    error = drive.fails(uring.AsyncCancel(999), errno.ENOENT)
    assert "nothing in flight has this user_data" in error.__notes__[0]
    assert error.filename is None
    assert drive.one(uring.AsyncCancel(999, all=True)).result() == 0


def test_async_cancel_all_counts_what_it_found(ring: uring.Ring, pipe: Pipe) -> None:
    """With `all` every operation of the number is cancelled and counted; without it, one."""
    for _ in range(3):
        ring.queue(uring.PollAdd(pipe[0], user_data=5))
    for is_all, expected in ((False, 0), (True, 2)):
        ring.queue(uring.AsyncCancel(5, all=is_all, user_data=6))
        ring.submit()
        while (cqe := ring.copy_cqe(timeout=SECONDS)).user_data != 6:
            assert cqe.res == -errno.ECANCELED
        assert cqe.result() == expected
    while ring.in_flight:
        assert ring.copy_cqe(timeout=SECONDS).res == -errno.ECANCELED


# ---- files ----


def test_read_fills_the_buffer_from_the_offset(drive: Any, file: int) -> None:
    """The result is the count, the bytes are the file's, and the file's position stays."""
    buffer = bytearray(4)
    assert drive.one(uring.Read(file, buffer, 3)).result() == 4
    assert buffer == b"3456"
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


def test_read_at_the_end_is_short_and_then_zero(drive: Any, file: int) -> None:
    """What is there is read, then 0; the rest of the buffer stays as it was."""
    buffer = bytearray(b"________")
    assert drive.one(uring.Read(file, buffer, 8)).result() == 2
    assert buffer == b"89______"
    assert drive.one(uring.Read(file, buffer, 10)).result() == 0


def test_read_with_offset_minus_one_moves_the_position(drive: Any, file: int) -> None:
    """The file's own position is used and moved, as by read(2)."""
    buffer = bytearray(4)
    os.lseek(file, 2, os.SEEK_SET)
    assert drive.one(uring.Read(file, buffer, -1)).result() == 4
    assert buffer == b"2345"
    assert os.lseek(file, 0, os.SEEK_CUR) == 6


def test_read_of_a_pipe_waits_for_data(ring: uring.Ring, drive: Any, pipe: Pipe) -> None:
    """A read of an empty pipe completes when something was written, and with 0 at its end."""
    buffer = bytearray(4)
    number = ring.queue(uring.Read(pipe[0], buffer))
    ring.submit()
    assert ring.copy_cqes() == uring.Completions()
    os.write(pipe[1], b"ab")
    (cqe,) = drive.collect([number])
    assert cqe.result() == 2
    assert buffer[:2] == b"ab"
    os.close(pipe[1])
    assert drive.one(uring.Read(pipe[0], buffer)).result() == 0


def test_read_fails_as_the_os_does(drive: Any, pipe: Pipe) -> None:
    """A closed number is EBADF; a directory EISDIR; RWF_NOWAIT without data BlockingIOError."""
    drive.fails(uring.Read(9999, bytearray(4)), errno.EBADF)
    directory = os.open("/", os.O_RDONLY)
    drive.fails(uring.Read(directory, bytearray(4)), errno.EISDIR)
    os.close(directory)
    os.set_blocking(pipe[0], False)
    nowait = uring.Read(pipe[0], bytearray(4), rw_flags=os.RWF_NOWAIT)
    assert isinstance(drive.fails(nowait, errno.EAGAIN), BlockingIOError)


def test_write_writes_all_of_the_buffer(drive: Any, file: int) -> None:
    """The result is the count, and the bytes are in the file at the offset."""
    assert drive.one(uring.Write(file, b"abcd", 8)).result() == 4
    assert os.pread(file, 100, 0) == b"01234567abcd"
    assert drive.one(uring.Write(file, memoryview(b"XY"), -1)).result() == 2
    assert os.pread(file, 2, 0) == b"XY"


def test_write_with_rwf_append_goes_to_the_end(drive: Any, file: int) -> None:
    """`rw_flags` reach the kernel: RWF_APPEND writes at the end whatever the offset."""
    assert drive.one(uring.Write(file, b"ab", 0, rw_flags=os.RWF_APPEND)).result() == 2
    assert os.pread(file, 100, 0) == b"0123456789ab"


def test_write_to_a_pipe_without_reader_is_a_broken_pipe(drive: Any, pipe: Pipe) -> None:
    """EPIPE is BrokenPipeError; a file open for reading is EBADF."""
    drive.fails(uring.Write(pipe[0], b"x"), errno.EBADF)
    os.close(pipe[0])
    drive.fails(uring.Write(pipe[1], b"x"), errno.EPIPE)


def test_readv_and_writev_scatter_and_gather(drive: Any, file: int) -> None:
    """Buffers are written in order and read in order, empty ones too; the count is of all."""
    assert drive.one(uring.Writev(file, [b"ab", b"", bytearray(b"cde")], 1)).result() == 5
    assert os.pread(file, 10, 0) == b"0abcde6789"
    buffers = [bytearray(3), bytearray(0), bytearray(20)]
    assert drive.one(uring.Readv(file, buffers, 0)).result() == 10
    assert buffers[0] + buffers[2][:7] == b"0abcde6789"
    os.lseek(file, 8, os.SEEK_SET)
    assert drive.one(uring.Readv(file, (bytearray(1),), -1)).result() == 1
    assert os.lseek(file, 0, os.SEEK_CUR) == 9


def test_readv_and_writev_of_nothing_move_nothing(drive: Any, file: int) -> None:
    """No buffers at all give 0."""
    assert drive.one(uring.Readv(file, [])).result() == 0
    assert drive.one(uring.Writev(file, [])).result() == 0


def test_readv_and_writev_fail_as_the_os_does(drive: Any) -> None:
    """A closed number is EBADF."""
    drive.fails(uring.Readv(9999, [bytearray(4)]), errno.EBADF)
    drive.fails(uring.Writev(9999, [b"x"]), errno.EBADF)


def test_writev_does_not_see_a_later_change_of_the_list(drive: Any, file: int) -> None:
    """A list is taken as it is when the operation is made."""
    buffers = [b"ab"]
    op = uring.Writev(file, buffers)
    buffers.append(b"cd")
    assert drive.one(op).result() == 2


def test_writev_of_an_iterator_can_be_queued_twice(drive: Any, file: int) -> None:
    """An iterator of buffers is refused, or taken whole once: the second time writes the same."""
    try:
        op = uring.Writev(file, iter([b"ab", b"cd"]))  # type: ignore[arg-type]  # wrong on purpose
        op.sqe()
    except TypeError:
        return
    assert drive.one(op).result() == 4
    assert drive.one(op).result() == 4


@pytest.mark.parametrize("datasync", [False, True])
def test_fsync_flushes(drive: Any, file: int, *, datasync: bool) -> None:
    """The result is 0, and DATASYNC is set when asked for."""
    op = uring.Fsync(file, datasync=datasync)
    assert drive.one(op).result() == 0
    assert op.sqe().op_flags == (1 if datasync else 0)


def test_fsync_fails_as_the_os_does(drive: Any, pipe: Pipe) -> None:
    """A pipe cannot be synced: EINVAL; a closed number is EBADF."""
    drive.fails(uring.Fsync(pipe[0]), errno.EINVAL)
    drive.fails(uring.Fsync(9999), errno.EBADF)


def test_close_closes_the_descriptor(drive: Any, pipe: Pipe) -> None:
    """The number is free afterwards; closing it again is EBADF."""
    copy = os.dup(pipe[0])
    assert drive.one(uring.Close(copy)).result() == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)
    drive.fails(uring.Close(copy), errno.EBADF)


def test_close_of_fixed_empties_the_slot(ring: uring.Ring, drive: Any, file: int) -> None:
    """A registered file is gone after Close, the descriptor is not; again is EBADF, out EINVAL."""
    ring.register_files([file])
    assert drive.one(uring.Read(uring.Fixed(0), bytearray(4))).result() == 4
    assert drive.one(uring.Close(uring.Fixed(0))).result() == 0
    drive.fails(uring.Read(uring.Fixed(0), bytearray(4)), errno.EBADF)
    drive.fails(uring.Close(uring.Fixed(0)), errno.EBADF)
    drive.fails(uring.Close(uring.Fixed(1)), errno.EINVAL)
    os.fstat(file)


def test_fixed_without_a_table_or_out_of_range_is_ebadf(
    ring: uring.Ring, drive: Any, file: int
) -> None:
    """An index that names nothing is EBADF."""
    drive.fails(uring.Fsync(uring.Fixed(0)), errno.EBADF)
    ring.register_files([file, -1])
    for index in (1, 2, 2**31 - 1):
        drive.fails(uring.Fsync(uring.Fixed(index)), errno.EBADF)


def test_operation_keeps_the_file_object_while_in_flight(ring: uring.Ring, pipe: Pipe) -> None:
    """What was given with a fileno() lives until the completion was copied out, and no longer."""
    wrapper = Wrapper(pipe[0])
    alive = weakref.ref(wrapper)
    ring.queue(uring.Read(wrapper, bytearray(1)))
    ring.submit()
    del wrapper
    gc.collect()
    assert alive() is not None
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).res == 1
    gc.collect()
    assert alive() is None


# ---- paths ----


def test_openat_gives_a_descriptor(drive: Any, tmp_path: Path) -> None:
    """The result is a descriptor of the path, made with flags and mode, closed on exec."""
    path = tmp_path / "new"
    mask = os.umask(0)
    try:
        fd = drive.one(uring.Openat(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)).result()
    finally:
        os.umask(mask)
    assert isinstance(fd, int)
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    os.close(fd)
    assert path.read_bytes() == b"x"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_openat_takes_any_kind_of_path(
    drive: Any, tmp_path: Path, kind: Callable[[Any], Any]
) -> None:
    """str, bytes and PathLike open the same file, with names that no encoding knows too."""
    path = tmp_path / os.fsdecode(b"\xff-\xc3\xa4")
    path.write_bytes(b"")
    fd = drive.one(uring.Openat(kind(path))).result()
    assert isinstance(fd, int)
    assert os.path.sameopenfile(fd, fd)
    assert os.fstat(fd).st_ino == path.stat().st_ino
    os.close(fd)


@pytest.mark.parametrize("wrap", [int, Wrapper])
def test_openat_starts_from_dir_fd(drive: Any, tmp_path: Path, wrap: Callable[[int], Any]) -> None:
    """A relative path starts from the directory, given as a number or as an object."""
    (tmp_path / "name").write_bytes(b"")
    directory = os.open(tmp_path, os.O_PATH)
    fd = drive.one(uring.Openat("name", dir_fd=wrap(directory))).result()
    assert isinstance(fd, int)
    os.close(fd)
    os.close(directory)


def test_openat_without_dir_fd_starts_from_the_current_directory(
    drive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path by itself is found in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("name").write_bytes(b"")
    fd = drive.one(uring.Openat("name")).result()
    assert isinstance(fd, int)
    os.close(fd)


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_openat_failure_names_the_file(
    drive: Any, tmp_path: Path, kind: Callable[[Any], Any]
) -> None:
    """A missing file is FileNotFoundError with the path in `filename`, as os.open has it."""
    path = kind(tmp_path / "missing")
    error = drive.fails(uring.Openat(path), errno.ENOENT)
    with pytest.raises(FileNotFoundError) as expected:
        os.open(path, os.O_RDONLY)
    assert error.filename == os.fspath(expected.value.filename)


def test_openat_fails_as_the_os_does(drive: Any, tmp_path: Path) -> None:
    """Existing is FileExistsError, a directory IsADirectoryError, no directory likewise."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    drive.fails(uring.Openat(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), errno.EEXIST)
    drive.fails(uring.Openat(tmp_path, os.O_WRONLY), errno.EISDIR)
    drive.fails(uring.Openat(path / "below"), errno.ENOTDIR)
    drive.fails(uring.Openat("x", dir_fd=9999), errno.EBADF)
    drive.fails(uring.Openat(""), errno.ENOENT)


# ---- sockets ----


def test_socket_gives_a_descriptor(drive: Any) -> None:
    """The result is a socket of the family and type asked for, closed on exec."""
    made = [
        (uring.Socket(), socket.AF_INET, socket.SOCK_STREAM),
        (uring.Socket(socket.AF_INET, socket.SOCK_DGRAM), socket.AF_INET, socket.SOCK_DGRAM),
        (uring.Socket(socket.AF_UNIX), socket.AF_UNIX, socket.SOCK_STREAM),
    ]
    for op, family, kind in made:
        fd = drive.one(op).result()
        assert isinstance(fd, int)
        with socket.socket(fileno=fd) as sock:
            assert (sock.family, sock.type) == (family, kind)
            assert not sock.get_inheritable()
            assert os.get_blocking(fd)


def test_socket_takes_nonblock_and_protocol(drive: Any) -> None:
    """SOCK_NONBLOCK and the protocol reach the kernel."""
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    fd = drive.one(uring.Socket(socket.AF_INET, kind, socket.IPPROTO_TCP)).result()
    assert isinstance(fd, int)
    assert not os.get_blocking(fd)
    with socket.socket(fileno=fd) as sock:
        assert sock.proto == socket.IPPROTO_TCP


def test_socket_fails_as_the_os_does(drive: Any) -> None:
    """A family or a protocol that there is not is an OSError."""
    drive.fails(uring.Socket(99), errno.EAFNOSUPPORT)
    drive.fails(uring.Socket(socket.AF_INET, 99), errno.EINVAL)


def make_descriptor(drive: Any, op: uring.Operation) -> int:
    """Run an operation that makes a descriptor, and give that."""
    fd = drive.one(op).result()
    assert isinstance(fd, int)
    return fd


@pytest.mark.parametrize("cloexec", [True, False, None])
def test_descriptors_are_closed_on_exec_unless_told_otherwise(
    drive: Any, listener: socket.socket, cloexec: bool | None
) -> None:
    """Openat, Socket and Accept set CLOEXEC by default and with True, and not with False."""
    given: dict[str, Any] = {} if cloexec is None else {"cloexec": cloexec}
    with socket.create_connection(listener.getsockname()):
        for op in (
            uring.Openat("/", **given),
            uring.Socket(**given),
            uring.Accept(listener, **given),
        ):
            fd = make_descriptor(drive, op)
            assert os.get_inheritable(fd) is (cloexec is False)
            os.close(fd)


def test_accept_connect_send_and_recv_talk(drive: Any, any_listener: socket.socket) -> None:
    """Over every family: connect is 0, accept a descriptor, send and recv are counts."""
    address = any_listener.getsockname()
    with socket.socket(any_listener.family) as client:
        accept, connect = drive.run(uring.Accept(any_listener), uring.Connect(client, address))
        assert connect.result() == 0
        fd = accept.result()
        assert isinstance(fd, int)
        with socket.socket(fileno=fd) as served:
            buffer = bytearray(9)
            sent, received = drive.run(uring.Send(client, b"hello"), uring.Recv(served, buffer))
            assert (sent.result(), received.result()) == (5, 5)
            assert buffer[:5] == b"hello"
            assert drive.one(uring.Shutdown(client, socket.SHUT_WR)).result() == 0
            assert drive.one(uring.Recv(served, buffer)).result() == 0


def test_accept_with_address_gives_the_peer(drive: Any, any_listener: socket.socket) -> None:
    """With `address` the result is (descriptor, address), as the socket module has it."""
    with socket.socket(any_listener.family) as client:
        if any_listener.family == socket.AF_UNIX:
            client.bind(b"\0uring-client-" + os.urandom(8))
        client.connect(any_listener.getsockname())
        result = drive.one(uring.Accept(any_listener, address=True)).result()
        assert isinstance(result, tuple)
        fd, address = result
        with socket.socket(fileno=fd) as served:
            assert address == client.getsockname() == served.getpeername()


def test_accept_with_address_of_a_nameless_peer(drive: Any, tmp_path: Path) -> None:
    """A UNIX client that was not bound has the empty address."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
        result = drive.one(uring.Accept(server, address=True)).result()
        assert isinstance(result, tuple)
        os.close(result[0])
        assert result[1] == ""


def test_accept_result_can_be_read_again(
    ring: uring.Ring, drive: Any, listener: socket.socket
) -> None:
    """The address stays the same however often and however late the result is read."""
    with socket.create_connection(listener.getsockname()) as client:
        cqe = drive.one(uring.Accept(listener, address=True))
        ring.close()
        gc.collect()
        first, again = cqe.result(), cqe.result()
        assert first == again
        assert isinstance(first, tuple)
        os.close(first[0])
        assert first[1] == client.getsockname()


def test_accept_twice_under_one_user_data_gives_both(
    ring: uring.Ring, listener: socket.socket
) -> None:
    """Two accepts with one number give two descriptors, though nobody knows whose address."""
    for _ in range(2):
        ring.queue(uring.Accept(listener, address=True, user_data=5))
    ring.submit()
    address = listener.getsockname()
    with socket.create_connection(address), socket.create_connection(address):
        cqes = [ring.copy_cqe(timeout=SECONDS) for _ in range(2)]
        for cqe in cqes:
            os.close(cqe.res)
        for cqe in cqes:
            assert cqe.op is None
            assert cqe.result() in {cqe.res, (cqe.res, None)}


def test_accept_takes_nonblock(drive: Any, listener: socket.socket) -> None:
    """`accept_flags` reach the kernel."""
    with socket.create_connection(listener.getsockname()):
        fd = make_descriptor(drive, uring.Accept(listener, accept_flags=socket.SOCK_NONBLOCK))
        assert not os.get_blocking(fd)
        os.close(fd)


def test_accept_fails_as_the_os_does(
    drive: Any, pipe: Pipe, pair: tuple[socket.socket, socket.socket]
) -> None:
    """What does not listen is EINVAL, what is no socket ENOTSOCK."""
    drive.fails(uring.Accept(pair[0]), errno.EINVAL)
    drive.fails(uring.Accept(pipe[0]), errno.ENOTSOCK)
    drive.fails(uring.Accept(pipe[0], address=True), errno.ENOTSOCK)


def test_connect_refused_is_connection_refused_error(
    drive: Any, listener: socket.socket, tmp_path: Path
) -> None:
    """Nobody listening is ConnectionRefusedError, a missing path FileNotFoundError."""
    address = listener.getsockname()
    listener.close()
    with socket.socket() as client:
        drive.fails(uring.Connect(client, address), errno.ECONNREFUSED)
    with socket.socket(socket.AF_UNIX) as client:
        drive.fails(uring.Connect(client, str(tmp_path / "missing")), errno.ENOENT)


def test_send_to_a_closed_peer_is_a_broken_pipe_without_a_signal(
    drive: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    """EPIPE is BrokenPipeError, and SIGPIPE never comes."""
    seen: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _frame: seen.append(number))
    try:
        pair[1].close()
        drive.fails(uring.Send(pair[0], b"x"), errno.EPIPE)
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert seen == []


def test_recv_with_waitall_fills_the_buffer(
    ring: uring.Ring, drive: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    """MSG_WAITALL goes on over several messages; MSG_PEEK leaves what it read."""
    buffer = bytearray(6)
    number = ring.queue(uring.Recv(pair[0], buffer, socket.MSG_WAITALL))
    ring.submit()
    pair[1].sendall(b"abc")
    assert not ring.copy_cqes()
    pair[1].sendall(b"def")
    assert drive.collect([number])[0].result() == 6
    assert buffer == b"abcdef"
    pair[1].sendall(b"xy")
    assert drive.one(uring.Recv(pair[0], buffer, socket.MSG_PEEK)).result() == 2
    assert pair[0].recv(9) == b"xy"


def test_recv_and_send_on_what_is_no_socket_are_enotsock(drive: Any, pipe: Pipe) -> None:
    """ENOTSOCK for both, and for shutdown."""
    drive.fails(uring.Recv(pipe[0], bytearray(1)), errno.ENOTSOCK)
    drive.fails(uring.Send(pipe[1], b"x"), errno.ENOTSOCK)
    drive.fails(uring.Shutdown(pipe[0], socket.SHUT_RD), errno.ENOTSOCK)


def test_recv_of_a_reset_connection_is_connection_reset_error(
    drive: Any, listener: socket.socket
) -> None:
    """A peer that resets gives ConnectionResetError."""
    with socket.create_connection(listener.getsockname()) as client:
        served, _ = listener.accept()
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        served.close()
        drive.fails(uring.Recv(client, bytearray(1)), errno.ECONNRESET)


# ---- polling ----


def test_poll_add_gives_the_events(ring: uring.Ring, drive: Any, pipe: Pipe) -> None:
    """A ready file completes with the bits that are set, of those asked for and of HUP and ERR."""
    assert drive.one(uring.PollAdd(pipe[1], select.POLLOUT)).result() == select.POLLOUT
    number = ring.queue(uring.PollAdd(pipe[0]))
    ring.submit()
    assert not ring.copy_cqes()
    os.write(pipe[1], b"x")
    assert drive.collect([number])[0].result() == select.POLLIN
    os.close(pipe[1])
    assert drive.one(uring.PollAdd(pipe[0], 0)).result() == select.POLLHUP


def test_poll_remove_ends_the_poll(ring: uring.Ring, drive: Any, pipe: Pipe) -> None:
    """The removal is 0 and the poll ECANCELED."""
    number = ring.queue(uring.PollAdd(pipe[0]))
    ring.submit()
    remove = ring.queue(uring.PollRemove(number))
    ring.submit()
    assert [cqe.res for cqe in drive.collect([number, remove])] == [-errno.ECANCELED, 0]
    assert ring.in_flight == 0


def test_poll_fails_as_the_os_does(drive: Any) -> None:
    """Removing what is not there is ENOENT, polling a closed number EBADF."""
    error = drive.fails(uring.PollRemove(999), errno.ENOENT)
    assert "nothing in flight" in error.__notes__[0]
    drive.fails(uring.PollAdd(9999), errno.EBADF)


# ---- timeouts ----


def test_timeout_over_is_no_error(drive: Any) -> None:
    """The completion is ETIME, which is no error; the result is True; not before its time."""
    start = time.monotonic()
    cqe = drive.one(uring.Timeout(0.02))
    assert time.monotonic() - start >= 0.02
    assert (cqe.res, cqe.error, cqe.result()) == (-errno.ETIME, None, True)


def test_timeout_with_count_completes_after_so_many(drive: Any) -> None:
    """When `count` completions have come the result is 0: the time was not over."""
    timeout, _ = drive.run(uring.Timeout(SECONDS, count=1), uring.Nop())
    assert (timeout.res, timeout.error, timeout.result()) == (0, None, False)


def test_timeout_absolute_in_the_past_is_over(drive: Any) -> None:
    """With ABS the time is one on the clock, by each of the clocks."""
    for clock in (TimeoutFlags(0), TimeoutFlags.BOOTTIME, TimeoutFlags.REALTIME):
        op = uring.Timeout(1, timeout_flags=TimeoutFlags.ABS | clock)
        assert drive.one(op).result() is True


def test_timeout_remove_ends_the_timeout(ring: uring.Ring, drive: Any) -> None:
    """The removal is 0, and the timeout ECANCELED, which is no error: it was not over."""
    number = ring.queue(uring.Timeout(SECONDS))
    remove = ring.queue(uring.TimeoutRemove(number))
    ring.submit()
    timeout, removal = drive.collect([number, remove])
    assert removal.result() == 0
    assert (timeout.res, timeout.error, timeout.result()) == (-errno.ECANCELED, None, False)


def test_timeout_fails_when_it_is_wrong(drive: Any) -> None:
    """Two clocks are EINVAL, and removing what is not there ENOENT: these are errors."""
    both = TimeoutFlags.BOOTTIME | TimeoutFlags.REALTIME
    drive.fails(uring.Timeout(1, timeout_flags=both), errno.EINVAL)
    error = drive.fails(uring.TimeoutRemove(999), errno.ENOENT)
    assert "nothing in flight" in error.__notes__[0]


@pytest.mark.parametrize(
    ("flags", "follower"),
    [(TimeoutFlags(0), -errno.ECANCELED), (TimeoutFlags.ETIME_SUCCESS, 0)],
)
def test_timeout_in_a_chain_breaks_it_unless_it_is_success(
    drive: Any, flags: TimeoutFlags, follower: int
) -> None:
    """ETIME breaks a chain; with ETIME_SUCCESS the next one runs. The result is True in both."""
    chain = uring.link(uring.Timeout(0.001, timeout_flags=flags), uring.Nop())
    timeout, nop = drive.run(*chain)
    assert (timeout.res, timeout.result(), nop.res) == (-errno.ETIME, True, follower)


def test_link_timeout_strikes(ring: uring.Ring, drive: Any, pipe: Pipe) -> None:
    """When the time is over, the operation is ECANCELED and the timeout's result True."""
    chain = uring.link(uring.Read(pipe[0], bytearray(1)), uring.LinkTimeout(0.01))
    read, timeout = drive.run(*chain)
    assert read.res == -errno.ECANCELED
    assert (timeout.error, timeout.result()) == (None, True)
    assert ring.in_flight == 0


def test_link_timeout_does_not_strike(drive: Any, pipe: Pipe) -> None:
    """When the operation is faster, the timeout's result is False and no error."""
    os.write(pipe[1], b"x")
    chain = uring.link(uring.Read(pipe[0], bytearray(1)), uring.LinkTimeout(SECONDS))
    read, timeout = drive.run(*chain)
    assert read.result() == 1
    assert (timeout.error, timeout.result()) == (None, False)


def test_link_timeout_alone_is_einval(drive: Any) -> None:
    """Not linked behind anything, it is EINVAL."""
    drive.fails(uring.LinkTimeout(1), errno.EINVAL)


# ---- chains and order ----


@pytest.mark.parametrize(("chain", "follower"), [(uring.link, -125), (uring.hardlink, 0)])
def test_chain_after_a_short_read(drive: Any, file: int, chain: Any, follower: int) -> None:
    """A short read cancels what is linked behind it, and not what is hard-linked."""
    read, nop = drive.run(*chain(uring.Read(file, bytearray(4096)), uring.Nop()))
    assert (read.result(), nop.res) == (10, follower)


@pytest.mark.parametrize(("chain", "follower"), [(uring.link, -125), (uring.hardlink, 0)])
def test_chain_after_a_failure(drive: Any, chain: Any, follower: int) -> None:
    """A failure cancels all that is linked behind it, and nothing that is hard-linked."""
    cqes = drive.run(*chain(uring.Fsync(9999), uring.Nop(), uring.Nop()))
    assert [cqe.res for cqe in cqes] == [-errno.EBADF, follower, follower]


def test_chain_runs_in_order(drive: Any, file: int) -> None:
    """A linked write, sync and read see each other's effect."""
    buffer = bytearray(4)
    chain = uring.link(
        uring.Write(file, b"abcd"), uring.Fsync(file, datasync=True), uring.Read(file, buffer)
    )
    assert [cqe.result() for cqe in drive.run(*chain)] == [4, 0, 4]
    assert buffer == b"abcd"


def test_drained_operation_waits_for_all_before_it(ring: uring.Ring, pipe: Pipe) -> None:
    """Behind a read that waits, a drained one and all after it wait too; then all in order."""
    ring.queue(uring.Read(pipe[0], bytearray(1), user_data=1))
    ring.queue(uring.Nop(user_data=2).drained())
    ring.queue(uring.Nop(user_data=3))
    ring.submit()
    assert not ring.copy_cqes()
    os.write(pipe[1], b"x")
    order = [ring.copy_cqe(timeout=SECONDS).user_data for _ in range(3)]
    assert order == [1, 2, 3]


def test_skipped_completions_leave_nothing_in_flight(ring: uring.Ring) -> None:
    """With CQE_SKIP_SUCCESS only the last posts when all succeed, and only what fails else."""
    skip = SQEFlags.CQE_SKIP_SUCCESS
    for first, expected in ((uring.Nop(flags=skip), 0), (uring.Fsync(9999, flags=skip), -9)):
        ring.queue_all(uring.link(first, uring.Nop()))
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).res == expected
        assert not ring.copy_cqes()
        assert ring.in_flight == 0


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (uring.Openat("x", "r"), "open_flags must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
        (uring.Accept(0, accept_flags="x"), "accept_flags must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
        (uring.Shutdown(0, "x"), "how must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
        (uring.Ftruncate(0, -2), "length must be in"),
        (uring.Listen(0, -3), "backlog must be in"),
        (uring.Splice(fd_in=-7, fd_out=0, length=-7), "len must be in"),
    ],
)
def test_operation_refusal_names_the_field_that_was_given(
    operation: uring.Operation, words: str
) -> None:
    """By the operation's own name, or by the record's when two fields had the same value."""
    with pytest.raises((TypeError, ValueError), match=words):
        operation.sqe()


def test_operation_on_a_registered_buffer_shows_which_one() -> None:
    """A FixedBuffer is no buffer to Python, and has a repr of its own."""
    part = uring.FixedBuffer(memoryview(bytearray(4)), 2)
    assert repr(part) in repr(uring.ReadFixed(0, part))


def test_operation_on_any_memory_refuses_a_registered_buffer() -> None:
    """It is no buffer to Python: the message says which operations take it."""
    part: Any = uring.FixedBuffer(memoryview(bytearray(4)), 2)
    with pytest.raises(TypeError, match="end in Fixed"):
        uring.Read(0, part).sqe()


def test_operation_without_a_free_slot_or_a_group_says_so(ring: uring.Ring) -> None:
    """The kernel's errnos, which speak of the system's files, have a note that tells more."""
    with Path(__file__).open("rb") as file:
        for op, words in [
            (uring.Socket(slot=uring.AUTO), "no slot is free"),
            (uring.Socket(slot=uring.Fixed(0)), "no files are registered"),
            (uring.ReadSelect(file, 7, length=1), "no buffer left"),
        ]:
            (cqe,) = ring.run([op])
            assert cqe.error is not None
            assert words in cqe.error.__notes__[0]


class _Lie(int):
    """An int that compares and computes as another one."""

    __hash__ = int.__hash__

    def _no(self, _other: object) -> bool:
        return False

    def _yes(self, _other: object) -> bool:
        return True

    def _none(self, _other: object) -> int:
        return 0

    __eq__ = _no
    __lt__ = __le__ = __gt__ = __ge__ = _yes
    __and__ = __rand__ = __mul__ = __rmul__ = __add__ = _none


class _File:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def fileno(self) -> object:
        """Not a descriptor."""
        return self.answer


WRONG_NUMBERS: Final = [
    0,
    -1,
    -2,
    2**16,
    2**31,
    -(2**31) - 1,
    2**32,
    2**63,
    2**64,
    2**200,
    True,
    1.5,
]
WRONG_VALUES: Final = [
    *(*WRONG_NUMBERS, *map(_Lie, WRONG_NUMBERS[:-2]), float("inf"), float("nan")),
    *(None, "x", "\0", b"\0", b"x" * 300, (), [], [None], {}, object(), int, uring.AUTO),
    *(uring.Fixed(2**31 - 1), memoryview(bytes(8)), memoryview(bytearray(8))[::2], bytearray()),
    *map(_File, (-1, 2**31, 2**70, "x", None, _Lie(-1))),
    *(("127.0.0.1", 2**20), ("::1", 1, 2**40, 0), ("h", 1), [(1, 2)], [(2**40, 1, b"x")]),
    *([uring.FutexWaiter(bytearray(4), 2**33)], [uring.FutexWaiter(bytearray(3), 2)]),
    *SQEFlags,
]


@pytest.mark.parametrize("kind", [*WITH_FD, *WITHOUT_FD], ids=named)
def test_wrong_values_are_refused_and_change_nothing(kind: type[uring.Operation]) -> None:
    """Each field with each wrong value: taken, or a TypeError or ValueError, and all as before."""
    plain: Any = WITH_FD[kind](5, SQEFlags(0)) if kind in WITH_FD else WITHOUT_FD[kind](SQEFlags(0))
    refused = 0
    for field in attrs.fields(kind):
        if not field.init:
            continue
        with uring.Ring(256) as ring:
            for value in WRONG_VALUES:
                before = ring.sq_ready(), ring.in_flight
                try:
                    op = attrs.evolve(plain, **{field.name: value})
                    ring.queue_all([uring.Nop(), op])
                except (TypeError, ValueError, uring.UnsupportedError):
                    refused += 1
                    assert (ring.sq_ready(), ring.in_flight) == before, (field.name, value)
    assert refused > len(WRONG_VALUES)
