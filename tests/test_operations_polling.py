"""Polls that repeat or are changed, and epoll: encoded and on the real kernel."""

import errno
import gc
import os
import select
import struct
import weakref
from collections.abc import Iterator
from typing import Any, Final

import attrs
import pytest
from shared import Wrapper

import uring
from uring import EpollOp, _memory, _structures
from uring.flags import CQEFlags

Pipe = tuple[int, int]
IN: Final = select.POLLIN
OUT: Final = select.POLLOUT
MORE: Final = int(CQEFlags.MORE)


def nonzero(op: uring.Operation) -> dict[str, Any]:
    """The fields of the encoded record that are not 0."""
    return {name: number for name, number in attrs.asdict(op.sqe()).items() if number}


def shown(cqe: uring.CQE) -> tuple[int, int, int]:
    """What a completion has."""
    return cqe.user_data, cqe.res, cqe.flags


@pytest.fixture
def epoll() -> Iterator[select.epoll]:
    """Give an epoll instance."""
    with select.epoll() as made:
        yield made


# ---- encoding: fields and values by hand from linux/io_uring.h ----

VECTORS: Final[list[tuple[uring.Operation, dict[str, Any]]]] = [
    (uring.PollMultishot(9, IN), {"opcode": 6, "fd": 9, "len": 0x1, "op_flags": 1}),
    (uring.PollMultishot(9, OUT, level=True), {"opcode": 6, "fd": 9, "len": 0x9, "op_flags": 4}),
    (
        uring.PollAdd(9, select.EPOLLEXCLUSIVE | IN),
        {"opcode": 6, "fd": 9, "op_flags": 1 << 28 | 1},
    ),
    (uring.PollUpdate(5, events=OUT), {"opcode": 7, "addr": 5, "len": 0x2, "op_flags": 4}),
    (uring.PollUpdate(5, events=0), {"opcode": 7, "addr": 5, "len": 0x2}),
    (uring.PollUpdate(5, new_user_data=6), {"opcode": 7, "addr": 5, "off": 6, "len": 0x4}),
    (uring.PollUpdate(5, new_user_data=0), {"opcode": 7, "addr": 5, "len": 0x4}),
    (
        uring.PollUpdate(5, events=IN, new_user_data=6, multishot=True),
        {"opcode": 7, "addr": 5, "off": 6, "len": 0x7, "op_flags": 1},
    ),
    (
        uring.EpollCtl(9, op=EpollOp.ADD, fd=4, events=select.EPOLLIN),
        {"opcode": 29, "fd": 9, "off": 4, "len": 1, "addr": ...},
    ),
    (uring.EpollCtl(9, op=EpollOp.DEL, fd=4), {"opcode": 29, "fd": 9, "off": 4, "len": 2}),
    (
        uring.EpollCtl(Wrapper(9), op=EpollOp.MOD, fd=Wrapper(4)),
        {"opcode": 29, "fd": 9, "off": 4, "len": 3, "addr": ...},
    ),
    (uring.EpollWait(9, 3), {"opcode": 59, "fd": 9, "len": 3, "addr": ...}),
]


@pytest.mark.parametrize(("op", "expected"), VECTORS, ids=lambda value: repr(value)[:70])
def test_polling_operation_encodes_what_the_header_says(
    op: uring.Operation, expected: dict[str, Any]
) -> None:
    """The fields of the record are those of the header, and all others are 0."""
    found = nonzero(op)
    if expected.get("addr") is ...:
        expected = expected | {"addr": found["addr"]}
    assert found == expected


def test_epoll_event_has_the_layout_of_the_header() -> None:
    """32 bits of events and 64 of data: 12 bytes on x86, where they are packed, 16 elsewhere."""
    size = 12 if os.uname().machine == "x86_64" else 16
    assert _structures.EPOLL_EVENT.size == size
    op = uring.EpollCtl(9, op=EpollOp.ADD, fd=4, events=0x80000001, data=2**64 - 2)
    _, pin = op._encode()
    encoded = _memory.bytes_of(pin)  # type: ignore[arg-type]  # it is one
    assert encoded[:4] == struct.pack("=I", 0x80000001)
    assert encoded[-8:] == struct.pack("=Q", 2**64 - 2)
    _, pin = uring.EpollCtl(9, op=EpollOp.ADD, fd=4)._encode()
    assert _memory.bytes_of(pin)[-8:] == struct.pack("=Q", 4)  # type: ignore[arg-type]  # it is one


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (uring.PollMultishot(9, -1), "events must be in"),
        (uring.PollMultishot(9, 2**32), "events must be in"),
        (uring.PollUpdate(5), "give events or new_user_data"),
        (uring.PollUpdate(5, multishot=True), "give events or new_user_data"),
        (uring.PollUpdate(5, new_user_data=2**64), "new_user_data must be in"),
        (uring.PollUpdate(2**64, events=1), "target must be in"),
        (uring.PollUpdate(5, events=-1), "events must be in"),
        (uring.EpollCtl(uring.Fixed(1), op=EpollOp.DEL, fd=1), "epfd must be a descriptor"),  # type: ignore[arg-type]  # wrong on purpose
        (uring.EpollCtl(1, op=EpollOp.DEL, fd=uring.Fixed(1)), "fd must be a descriptor"),  # type: ignore[arg-type]  # wrong on purpose
        (uring.EpollCtl(1, op=EpollOp.DEL, fd=-1), "fd must be in"),
        (uring.EpollCtl(2**31, op=EpollOp.DEL, fd=1), "fd must be in"),
        (uring.EpollCtl("x", op=EpollOp.DEL, fd=1), "a file is"),  # type: ignore[arg-type]  # wrong on purpose
        (uring.EpollCtl(1, op="ADD", fd=1), "op must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
        (uring.EpollCtl(1, op=EpollOp.ADD, fd=1, events=2**32), "events must be in"),
        (uring.EpollCtl(1, op=EpollOp.ADD, fd=1, data=2**64), "data must be in"),
        (uring.EpollCtl(1, op=EpollOp.ADD, fd=1, data=-1), "data must be in"),
        (uring.EpollWait(1, 0), "maxevents must be in"),
        (uring.EpollWait(1, 2**31), "maxevents must be in"),
        (uring.EpollWait(1, 2.0), "maxevents must be an integer"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    ids=lambda value: repr(value)[:60],
)
def test_polling_operation_refuses_what_does_not_fit(op: uring.Operation, message: str) -> None:
    """TypeError or ValueError, whose message names the field, before the kernel sees it."""
    with pytest.raises((TypeError, ValueError), match=message):
        op.sqe()


# ---- polls ----


def test_poll_multishot_tells_of_each_change(drive: Any, pipe: Pipe) -> None:
    """Each write is told of with MORE, a file that stays ready is not; then ECANCELED ends it."""
    drive.submit(uring.PollMultishot(pipe[0], user_data=1))
    for _ in range(3):
        os.write(pipe[1], b"x")
        (cqe,) = drive.take()
        assert shown(cqe) == (1, IN, MORE)
        assert cqe.result() == IN
    (number,) = drive.submit(uring.PollRemove(1))
    found = {cqe.user_data: (cqe.res, cqe.flags) for cqe in drive.take(2)}
    assert found == {number: (0, 0), 1: (-errno.ECANCELED, 0)}
    assert drive.ring.in_flight == 0


def test_poll_multishot_of_a_registered_file(drive: Any, pipe: Pipe) -> None:
    """A registered file is waited for as any other, and one that is ready is told of at once."""
    drive.ring.register_files([pipe[0]])
    os.write(pipe[1], b"x")
    drive.submit(uring.PollMultishot(uring.Fixed(0), user_data=1))
    assert shown(drive.take()[0]) == (1, IN, MORE)
    drive.submit(uring.AsyncCancel(1))
    assert sorted(cqe.res for cqe in drive.take(2)) == [-errno.ECANCELED, 0]


def test_poll_multishot_of_a_regular_file_completes_once(drive: Any) -> None:
    """What cannot be waited for is ready, and has ended; a closed number is EBADF."""
    with open("/etc/hostname", "rb") as file:  # noqa: PTH123 - a file object is what is tested
        assert drive.result(uring.PollMultishot(file, IN)) == IN
    drive.fails(uring.PollMultishot(9999), errno.EBADF)


def test_poll_multishot_ends_when_the_queue_overflows(drive: Any, pipe: Pipe) -> None:
    """A completion that finds no room in the queue is the last, and has the bits all the same."""
    drive.submit(uring.PollMultishot(pipe[0]))
    room = drive.ring.cq.entries
    for _ in range(room + 3):
        os.write(pipe[1], b"x")
    *others, last = drive.take(room + 1)
    assert {(cqe.res, cqe.flags) for cqe in others} == {(IN, MORE)}
    assert (last.res, last.flags) == (IN, 0)
    assert drive.ring.in_flight == 0


@pytest.mark.parametrize(
    "op",
    [
        uring.PollMultishot(0),
        uring.TimeoutMultishot(1, count=1),
        uring.UringCmdMultishot(0, cmd_op=1, group=7),
    ],
    ids=repr,
)
def test_multishot_operations_are_refused_by_a_run(drive: Any, op: uring.Operation) -> None:
    """A run gives one result for each operation, so what has many is refused there."""
    with pytest.raises(ValueError, match="multishot"):
        drive.ring.run([op])


def test_poll_multishot_by_level_is_refused_by_6_18(drive: Any, pipe: Pipe) -> None:
    """The kernel has the flag in its header and answers EINVAL to it."""
    drive.fails(uring.PollMultishot(pipe[0], level=True), errno.EINVAL)


def test_poll_multishot_keeps_its_file_until_it_has_ended(drive: Any, pipe: Pipe) -> None:
    """The object is alive as long as completions may come, and no longer."""
    wrapper = Wrapper(pipe[0])
    alive = weakref.ref(wrapper)
    drive.submit(uring.PollMultishot(wrapper, user_data=1))
    del wrapper
    os.write(pipe[1], b"x")
    assert drive.take()[0].more
    gc.collect()
    assert alive() is not None
    drive.submit(uring.PollRemove(1))
    drive.take(2)
    gc.collect()
    assert alive() is None


def test_poll_update_changes_the_events(drive: Any, pair: Any) -> None:
    """A poll for input that is changed to output completes at once; the update is 0."""
    drive.submit(uring.PollAdd(pair[0], IN, user_data=1))
    (number,) = drive.submit(uring.PollUpdate(1, events=OUT))
    assert {cqe.user_data: cqe.res for cqe in drive.take(2)} == {number: 0, 1: OUT}
    assert drive.ring.in_flight == 0


@pytest.mark.parametrize("multishot", [True, False])
def test_poll_update_leaves_the_kind_as_it_is(drive: Any, pair: Any, *, multishot: bool) -> None:
    """ADD_MULTI in an update makes nothing multishot, and its absence ends nothing."""
    drive.submit(uring.PollAdd(pair[0], IN, user_data=1))
    drive.submit(uring.PollMultishot(pair[0], IN, user_data=2))
    for target in (1, 2):
        update = uring.PollUpdate(target, events=IN, multishot=multishot)
        assert drive.run(update)[0].res == 0
    pair[1].send(b"x")
    assert {shown(cqe) for cqe in drive.take(2)} == {(1, IN, 0), (2, IN, MORE)}
    drive.submit(uring.PollRemove(2))
    drive.take(2)
    assert drive.ring.in_flight == 0


def test_poll_update_gives_another_number(drive: Any, pair: Any) -> None:
    """Completions carry the new number from the update on, and the old one is not found."""
    # It gets its old number back before the end: the ring goes by that to let go of it.
    drive.submit(uring.PollMultishot(pair[0], IN, user_data=1))
    assert drive.run(uring.PollUpdate(1, new_user_data=55))[0].res == 0
    pair[1].send(b"x")
    assert shown(drive.take()[0]) == (55, IN, MORE)
    assert drive.run(uring.PollUpdate(1, events=IN))[0].res == -errno.ENOENT
    (number,) = drive.submit(uring.PollUpdate(55, new_user_data=1))
    assert {shown(cqe) for cqe in drive.take(2)} == {(number, 0, 0), (1, IN, MORE)}
    drive.submit(uring.PollRemove(1))
    assert sorted(cqe.res for cqe in drive.take(2)) == [-errno.ECANCELED, 0]
    assert drive.ring.in_flight == 0


def test_poll_update_of_nothing_is_enoent(drive: Any) -> None:
    """A number that no poll has is ENOENT, with a note that says so."""
    error = drive.fails(uring.PollUpdate(999, events=IN), errno.ENOENT)
    assert "nothing in flight has this user_data" in error.__notes__[0]
    drive.submit(uring.Timeout(60, user_data=1))
    assert drive.run(uring.PollUpdate(1, events=IN))[0].res == -errno.ENOENT
    drive.submit(uring.TimeoutRemove(1))
    drive.take(2)


# ---- epoll ----


def test_epoll_ctl_adds_changes_and_removes(drive: Any, epoll: select.epoll, pipe: Pipe) -> None:
    """What select.epoll then sees is what was asked for."""
    os.write(pipe[1], b"x")
    add = uring.EpollCtl(epoll, op=EpollOp.ADD, fd=pipe[0], events=select.EPOLLIN)
    assert drive.result(add) == 0
    assert epoll.poll(0) == [(pipe[0], select.EPOLLIN)]
    modify = uring.EpollCtl(epoll, op=EpollOp.MOD, fd=pipe[0], events=select.EPOLLIN, data=77)
    assert drive.result(modify) == 0
    assert epoll.poll(0) == [(77, select.EPOLLIN)]
    assert drive.result(uring.EpollCtl(epoll, op=EpollOp.DEL, fd=Wrapper(pipe[0]))) == 0
    assert epoll.poll(0) == []


def test_epoll_ctl_fails_as_the_os_does(drive: Any, epoll: select.epoll, pipe: Pipe) -> None:
    """Twice is EEXIST, what is not there ENOENT, a regular file EPERM, a pipe no instance."""
    add = uring.EpollCtl(epoll, op=EpollOp.ADD, fd=pipe[0], events=select.EPOLLIN)
    remove = uring.EpollCtl(epoll, op=EpollOp.DEL, fd=pipe[0])
    drive.fails(remove, errno.ENOENT)
    drive.result(add)
    assert isinstance(drive.fails(add, errno.EEXIST), FileExistsError)
    with open("/etc/hostname", "rb") as file:  # noqa: PTH123 - a file object is what is tested
        drive.fails(uring.EpollCtl(epoll, op=EpollOp.ADD, fd=file), errno.EPERM)
    drive.fails(uring.EpollCtl(epoll, op=EpollOp.ADD, fd=9999), errno.EBADF)
    drive.fails(uring.EpollCtl(pipe[0], op=EpollOp.ADD, fd=pipe[1]), errno.EINVAL)


def test_epoll_ctl_is_encoded_anew_for_an_object(
    drive: Any, epoll: select.epoll, pipe: Pipe
) -> None:
    """The number of an object is asked for each time, also where no memory is lent."""
    with select.epoll() as second:
        instance = Wrapper(-1)
        remove = uring.EpollCtl(instance, op=EpollOp.DEL, fd=pipe[0])
        for made in (epoll, second):
            made.register(pipe[0])
            instance.fd = made.fileno()
            drive.ring.queue(remove)
            drive.ring.submit()
            assert drive.take()[0].res == 0
        drive.fails(remove, errno.ENOENT)


def test_epoll_wait_gives_the_events(drive: Any, epoll: select.epoll, pair: Any) -> None:
    """It waits until there is one; the result is (data, events) of each, at most so many."""
    left, right = pair
    for fd, data in ((left, 2**64 - 1), (right, 5)):
        drive.result(uring.EpollCtl(epoll, op=EpollOp.ADD, fd=fd, events=select.EPOLLIN, data=data))
    drive.submit(uring.EpollWait(epoll, 4))
    assert drive.ring.copy_cqes() == uring.Completions()
    left.send(b"x")
    (cqe,) = drive.take()
    assert (cqe.res, cqe.result()) == (1, [(5, select.EPOLLIN)])
    right.send(b"x")
    found = drive.result(uring.EpollWait(epoll, 4))
    assert sorted(found) == [(5, select.EPOLLIN), (2**64 - 1, select.EPOLLIN)]
    assert len(drive.result(uring.EpollWait(epoll, 1))) == 1


def test_epoll_wait_tells_the_descriptor_of_select_epoll(
    drive: Any, epoll: select.epoll, pipe: Pipe
) -> None:
    """What select.epoll has registered is known by the lower 32 bits; the instance by its slot."""
    epoll.register(pipe[0], select.EPOLLIN)
    os.write(pipe[1], b"x")
    drive.ring.register_files([epoll.fileno()])
    ((data, events),) = drive.result(uring.EpollWait(uring.Fixed(0)))
    assert (data & 0xFFFFFFFF, events) == (pipe[0], select.EPOLLIN)


def test_epoll_wait_fails_where_no_instance_is(drive: Any, pipe: Pipe) -> None:
    """A pipe is EINVAL, a closed number EBADF."""
    drive.fails(uring.EpollWait(pipe[0]), errno.EINVAL)
    drive.fails(uring.EpollWait(9999), errno.EBADF)


def test_epoll_wait_can_be_cancelled(drive: Any, epoll: select.epoll) -> None:
    """Cancelled, it has no events but an error."""
    drive.submit(uring.EpollWait(epoll, user_data=1))
    drive.submit(uring.AsyncCancel(1))
    found = {cqe.user_data: cqe for cqe in drive.take(2)}
    assert found[1].res == -errno.ECANCELED
    with pytest.raises(OSError, match="ancel"):
        found[1].result()


def test_epoll_wait_twice_under_one_user_data_has_no_events(
    drive: Any, epoll: select.epoll, pipe: Pipe
) -> None:
    """Whose events they are cannot be told: the count is there, the result is None."""
    epoll.register(pipe[0], select.EPOLLIN)
    os.write(pipe[1], b"x")
    for _ in range(2):
        drive.ring.queue(uring.EpollWait(epoll, user_data=5))
    drive.ring.submit()
    for cqe in drive.take(2):
        assert (cqe.res, cqe.result()) == (1, None)


def test_epoll_wait_result_can_be_read_late(drive: Any, pipe: Pipe) -> None:
    """The events outlive the ring, the instance and everything else."""
    with select.epoll() as epoll:
        drive.result(
            uring.EpollCtl(epoll, op=EpollOp.ADD, fd=pipe[0], events=select.EPOLLIN, data=6)
        )
        drive.submit(uring.EpollWait(epoll))
        gc.collect()
        os.write(pipe[1], b"x")
        (cqe,) = drive.take()
    drive.ring.close()
    gc.collect()
    assert cqe.result() == cqe.result() == [(6, select.EPOLLIN)]
