"""Numbers from outside: messages between rings, and polls that get another number."""

import errno
import gc
import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

import uring
from uring import MsgRing, PollAdd, PollMultishot, PollUpdate
from uring._claims import Expected, Renamed
from uring._pledges import Alias

SECONDS: Final = 10
NUMBER: Final = 77
SKIP: Final = uring.SQEFlags.CQE_SKIP_SUCCESS


@pytest.fixture
def target(ring: uring.Ring) -> Iterator[uring.Ring]:
    """Give a second ring."""
    assert not ring.closed
    with uring.Ring(8) as made:
        yield made


def send(ring: uring.Ring, target: Any, **fields: Any) -> uring.CQE:
    """Send a message, and give its completion here."""
    ring.queue(MsgRing(target, target_user_data=NUMBER, **fields))
    ring.submit()
    return ring.copy_cqe(timeout=SECONDS)


def is_free(ring: uring.Ring, number: int = NUMBER) -> bool:
    """Whether an operation may have the number."""
    try:
        ring.queue(uring.Nop(user_data=number))
    except ValueError as error:
        if f"user_data {number:#x} is in use" not in str(error):
            raise
        return False
    ring.submit_and_wait()
    while ring.copy_cqe(timeout=SECONDS).user_data != number:
        pass
    return True


# ---- messages ----


def test_message_reserves_its_number(ring: uring.Ring, target: uring.Ring) -> None:
    """From when it is queued until it is read there, no operation has a message's number."""
    ring.queue(MsgRing(target, target_user_data=NUMBER, target_res=5))
    assert not is_free(target)
    ring.submit()
    assert not is_free(target)
    assert ring.copy_cqe(timeout=SECONDS).result() == 0
    assert not is_free(target)
    assert len(target.peek_cqes()) == 1
    assert not is_free(target)
    cqe = target.copy_cqe(timeout=SECONDS)
    assert (cqe.user_data, cqe.res, cqe.op) == (NUMBER, 5, None)
    assert is_free(target)
    assert (ring.in_flight, target.in_flight) == (0, 0)


@pytest.mark.parametrize("state", ["queued", "submitted"])
def test_message_under_a_number_in_use_is_refused(
    ring: uring.Ring, target: uring.Ring, pipe: tuple[int, int], state: str
) -> None:
    """A message that would end an operation there is ValueError, and nothing is queued."""
    buffer = bytearray(4)
    target.queue(uring.Read(pipe[0], buffer, user_data=NUMBER))
    if state == "submitted":
        target.submit()
    message = MsgRing(target, target_user_data=NUMBER)
    for attempt in (ring.queue, lambda op: ring.queue_all([uring.Nop(), op])):
        with pytest.raises(ValueError, match="comes from outside"):
            attempt(message)
    with pytest.raises(ValueError, match="comes from outside"):
        ring.send_message(target, target_user_data=NUMBER)
    assert (ring.in_flight, ring.sq_ready()) == (0, 0)
    target.submit()
    os.write(pipe[1], b"data")
    assert target.copy_cqe(timeout=SECONDS).res == 4
    assert buffer == b"data"
    assert send(ring, target).res == 0
    assert target.copy_cqe(timeout=SECONDS).user_data == NUMBER


def test_number_of_a_batch_is_refused(ring: uring.Ring, target: uring.Ring) -> None:
    """A batch cannot have a number that a message has, and has it afterwards."""
    batch = uring.Batch([uring.Nop(user_data=NUMBER)])
    assert send(ring, target).res == 0
    with pytest.raises(ValueError, match="comes from outside"):
        target.run(batch)
    assert target.copy_cqe().user_data == NUMBER
    assert len(target.run(batch)) == 1


def test_messages_are_counted(ring: uring.Ring, target: uring.Ring) -> None:
    """Of several messages under one number the last one that is read frees it."""
    for _ in range(3):
        assert send(ring, target).res == 0
    ring.send_message(target, target_user_data=NUMBER, target_res=9)
    for left in (3, 2, 1):
        assert target.copy_cqe(timeout=SECONDS).user_data == NUMBER
        assert target._in_flight.claims[NUMBER].count == left  # type: ignore[union-attr]  # Expected
        assert not is_free(target)
    assert target.copy_cqe(timeout=SECONDS).res == 9
    assert is_free(target)


def test_message_with_more_is_no_end(ring: uring.Ring, target: uring.Ring) -> None:
    """A message that passes flags of its own ends nothing there but itself."""
    target.queue(uring.Timeout(0.01))
    target.submit()
    assert send(ring, target, target_flags=int(uring.CQEFlags.SOCK_NONEMPTY)).res == 0
    seen = {target.copy_cqe(timeout=SECONDS).user_data for _ in range(2)}
    assert NUMBER in seen
    assert target.in_flight == 0
    assert is_free(target)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("way", ["cancelled", "full", "refused", "unsubmitted", "failed"])
def test_number_is_given_back(target: uring.Ring, way: str, *, silent: bool) -> None:
    """A message that never comes gives its number back, also one that says nothing on success."""
    message = MsgRing(target, target_user_data=NUMBER, flags=SKIP if silent else uring.SQEFlags(0))
    with uring.Ring(4) as ring:
        if way == "cancelled":
            message = MsgRing(target, target_user_data=NUMBER)  # a silent one may have succeeded
            ring.queue_all(uring.link(uring.Nop(res=-1), message, uring.Nop()))
            ring.submit()
            while ring.in_flight:
                ring.copy_cqes(wait_nr=1, timeout=SECONDS)
        elif way == "full":
            with pytest.raises(uring.SubmissionQueueFull):
                ring.queue_all([*uring.link(message, uring.Nop())] * 3)
        elif way == "refused":
            with pytest.raises(ValueError, match="could never be freed"):
                ring.queue_all(uring.link(message, uring.Nop(), uring.Nop(flags=SKIP)))
        elif way == "failed":
            disabled = uring.Ring(4, flags=uring.SetupFlags.R_DISABLED)
            with disabled:
                other = MsgRing(disabled, target_user_data=NUMBER, flags=message.flags)
                ring.queue_all(uring.link(other, uring.Nop()))
                ring.submit()
                while ring.in_flight:
                    ring.copy_cqes(wait_nr=1, timeout=SECONDS)
                assert disabled._in_flight.claims == {}
        else:
            ring.queue_all(uring.link(message, uring.Nop()))
            assert not is_free(target)
    gc.collect()
    assert target._in_flight.claims == {}
    assert is_free(target)


def test_silent_message_that_succeeds_keeps_its_number(
    ring: uring.Ring, target: uring.Ring
) -> None:
    """A message that posts nothing here still has its number there, until it is read."""
    ring.queue_all(uring.link(MsgRing(target, target_user_data=NUMBER, flags=SKIP), uring.Nop()))
    ring.submit()
    assert ring.copy_cqe(timeout=SECONDS).res == 0
    assert ring.in_flight == 0
    gc.collect()
    assert not is_free(target)
    assert target.copy_cqe(timeout=SECONDS).user_data == NUMBER
    assert is_free(target)


def test_messages_that_share_a_number_here_keep_it_there(
    ring: uring.Ring, target: uring.Ring, pipe: tuple[int, int]
) -> None:
    """Two messages under one user_data here: their number there is free when both are read."""
    message = MsgRing(target, target_user_data=NUMBER)
    for _ in range(2):
        ring.queue(message, user_data=1)
    ring.submit()
    assert [ring.copy_cqe(timeout=SECONDS).res for _ in range(2)] == [0, 0]
    gc.collect()
    for _ in range(2):
        with pytest.raises(ValueError, match="comes from outside"):
            target.queue(uring.Read(pipe[0], bytearray(4), user_data=NUMBER))
        assert target.copy_cqe(timeout=SECONDS).user_data == NUMBER
    assert is_free(target)


def test_message_to_the_own_ring(ring: uring.Ring) -> None:
    """A ring may send to itself: both completions come, and the number is free again."""
    ring.queue(MsgRing(ring, target_user_data=NUMBER, target_res=3), user_data=1)
    with pytest.raises(ValueError, match="in use"):
        ring.queue(uring.Nop(user_data=NUMBER))
    ring.submit()
    seen: dict[int, int] = {}
    while len(seen) < 2:
        cqe = ring.copy_cqe(timeout=SECONDS)
        seen[cqe.user_data] = cqe.res
    assert seen == {1: 0, NUMBER: 3}
    assert (ring.in_flight, ring._in_flight.claims) == (0, {})


def test_message_of_the_own_number_is_refused(ring: uring.Ring) -> None:
    """A message to the own ring under its own user_data would end itself: ValueError."""
    with pytest.raises(ValueError, match="in use"):
        ring.queue(MsgRing(ring, target_user_data=NUMBER), user_data=NUMBER)
    assert (ring.in_flight, ring._in_flight.claims) == (0, {})


def test_message_by_the_number_of_the_descriptor(ring: uring.Ring, target: uring.Ring) -> None:
    """The descriptor of a ring stands for it, number or object."""
    assert send(ring, target.fd).res == 0
    assert not is_free(target)
    assert target.copy_cqe(timeout=SECONDS).user_data == NUMBER
    assert is_free(target)


def test_duplicate_of_a_ring_is_refused(ring: uring.Ring, target: uring.Ring) -> None:
    """A descriptor that is a ring but not one that is known here is ValueError."""
    duplicate = os.dup(target.fd)
    try:
        with pytest.raises(ValueError, match="not made by this process"):
            ring.queue(MsgRing(duplicate, target_user_data=NUMBER))
        with pytest.raises(ValueError, match="not made by this process"):
            ring.send_message(duplicate, target_user_data=NUMBER)
        raw = uring.SQE(uring.Opcode.MSG_RING, fd=duplicate, off=NUMBER)
        ring.queue(raw)
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).res == 0
    finally:
        os.close(duplicate)
    assert target.copy_cqe(timeout=SECONDS).user_data == NUMBER


def test_message_to_what_is_no_ring(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """What is no ring, or nothing at all, is the kernel's to refuse."""
    for wrong, number in ((pipe[0], errno.EBADFD), (999, errno.EBADF)):
        assert send(ring, wrong).res == -number


def test_duplicate_goes_with_what_holds_it(pipe: tuple[int, int]) -> None:
    """It is closed once and by itself; one that could not be made closes nothing."""
    first = os.dup(0)
    made = Alias(pipe[0])
    number = made.fd
    assert os.path.sameopenfile(number, pipe[0])
    del made
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Alias(number)
    assert os.path.sameopenfile(first, 0)
    os.close(first)


def test_message_to_a_closed_ring_is_refused(ring: uring.Ring) -> None:
    """A closed ring is RingClosedError, when the message is queued."""
    other = uring.Ring(4)
    other.close()
    with pytest.raises(uring.RingClosedError):
        ring.queue(MsgRing(other, target_user_data=NUMBER))
    assert ring.in_flight == 0


def test_target_closed_with_the_message_under_way(ring: uring.Ring) -> None:
    """A target that is closed before the message is submitted: it reaches that, and no other."""
    with uring.Ring(4) as other:
        ring.queue(MsgRing(other, target_user_data=NUMBER))
        number = other.fd
    with uring.Ring(4) as another:  # under the same number
        assert another.fd == number
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).res == 0
        assert len(another.copy_cqes()) == 0
    assert ring.in_flight == 0


def test_source_closed_after_the_message(target: uring.Ring) -> None:
    """A message outlives the ring that sent it, and so does its claim on the number."""
    with uring.Ring(4) as ring:
        assert send(ring, target).res == 0
    gc.collect()
    assert not is_free(target)
    assert target.copy_cqe(timeout=SECONDS).user_data == NUMBER
    assert is_free(target)


def test_target_with_operations_in_flight(
    ring: uring.Ring, target: uring.Ring, pipe: tuple[int, int]
) -> None:
    """Messages between the completions of others end nothing of theirs."""
    buffer = bytearray(4)
    target.queue(uring.Read(pipe[0], buffer))
    target.submit()
    for count in range(20):
        assert send(ring, target, target_res=count).res == 0
        target.queue(uring.Nop())
        target.submit()
        assert target.in_flight == 2
        assert {target.copy_cqe(timeout=SECONDS).user_data for _ in range(2)} >= {NUMBER}
        assert target.in_flight == 1
    os.write(pipe[1], b"data")
    assert target.copy_cqe(timeout=SECONDS).res == 4
    assert target.in_flight == 0


@pytest.mark.parametrize("failing", [False, True])
def test_threads_that_send_to_each_other(
    ring: uring.Ring, target: uring.Ring, *, failing: bool
) -> None:
    """Two threads that send each other messages, which may fail, never wait for each other."""
    rounds, wrong = 500, []
    arrived: dict[int, int] = {}

    def talk(own: uring.Ring, other: uring.Ring) -> None:
        try:
            came = 0
            for count in range(rounds):
                head = uring.Nop(res=-1 if failing else 0)
                own.queue_all(uring.link(head, MsgRing(other, target_user_data=count)))
                own.submit()
                ended = 0
                while ended < 2:
                    for cqe in own.copy_cqes(wait_nr=1, timeout=SECONDS):
                        is_message = cqe.user_data < rounds
                        came += is_message
                        ended += not is_message
            arrived[own.fd] = came
        except BaseException as error:  # noqa: BLE001 - shown below
            wrong.append(error)

    pairs = ((ring, target), (target, ring))
    threads = [threading.Thread(target=talk, args=each, daemon=True) for each in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
        assert not thread.is_alive(), "they wait for each other"
    assert wrong == []
    for each in (ring, target):
        while (left := len(each.copy_cqes())) > 0:  # the queue overflows
            arrived[each.fd] += left
        assert arrived[each.fd] == (0 if failing else rounds)
        assert (each.in_flight, each._in_flight.claims) == (0, {})


def test_failed_message_waits_for_no_lock_of_its_target(
    ring: uring.Ring, target: uring.Ring
) -> None:
    """A failed message gives its number back though another thread holds the target's lock."""
    ring.queue_all(uring.link(uring.Nop(res=-1), MsgRing(target, target_user_data=NUMBER)))
    ring.submit_and_wait(2)
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(len(ring.copy_cqes())), daemon=True)
    with target._lock:
        thread.start()
        thread.join(SECONDS)
        assert done == [2]
    assert target._in_flight.claims == {}


def test_tagged_resource_reserves_its_number(ring: uring.Ring) -> None:
    """The tag of a registered file is reserved until its completion is read."""
    with socket.socket() as file:
        ring.register_files([file], tags=[NUMBER])
    assert not is_free(ring)
    ring.unregister_files()
    while (cqe := ring.copy_cqe(timeout=SECONDS)).user_data != NUMBER:
        pass
    assert (cqe.res, cqe.flags) == (0, 0)
    assert is_free(ring)


# ---- polls ----


def update(ring: uring.Ring, *args: int, **fields: Any) -> int:
    """Update a poll, and give what the kernel says."""
    number = ring.queue(PollUpdate(*args, **fields))
    ring.submit()
    cqe = ring.copy_cqe(timeout=SECONDS)
    assert cqe.user_data == number
    return cqe.res


def test_poll_goes_on_under_another_number(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """Completions before an update have the old number, those after it the new one."""
    op = PollMultishot(pipe[0], user_data=1)
    ring.queue(op)
    ring.submit()
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).user_data == 1
    assert update(ring, 1, new_user_data=2) == 0
    assert ring.in_flight == 1
    os.write(pipe[1], b"x")
    cqe = ring.copy_cqe(timeout=SECONDS)
    while cqe.user_data == 1:  # the update itself looks, and may tell of what was there
        cqe = ring.copy_cqe(timeout=SECONDS)
    assert (cqe.user_data, cqe.more) == (2, True)
    assert cqe.op is op
    assert ring.in_flight == 1
    for number in (1, 2):
        assert not is_free(ring, number)
    assert ring.cancel(2) == 1
    last = ring.copy_cqe(timeout=SECONDS)
    while last.more:
        last = ring.copy_cqe(timeout=SECONDS)
    assert (last.user_data, last.res, last.op) == (2, -errno.ECANCELED, op)
    assert (ring.in_flight, ring._in_flight.claims) == (0, {})
    assert is_free(ring, 1)
    assert is_free(ring, 2)


def test_poll_gets_its_number_back(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """A poll may get a number and its old one again, any number of times."""
    ring.queue(PollAdd(pipe[0], user_data=1))
    ring.submit()
    for _ in range(50):
        assert update(ring, 1, new_user_data=2) == 0
        assert update(ring, 2, new_user_data=3) == 0
        assert update(ring, 3, new_user_data=1) == 0
    assert ring._in_flight.claims[1] == Renamed((1, 2, 3))
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).user_data == 1
    assert (ring.in_flight, ring._in_flight.claims) == (0, {})


def test_repeated_update_that_fails_takes_nothing_back(
    ring: uring.Ring, pipe: tuple[int, int]
) -> None:
    """The same update again fails with ENOENT, and the poll still ends under the new number."""
    ring.queue(PollAdd(pipe[0], user_data=1))
    ring.submit()
    assert update(ring, 1, new_user_data=2) == 0
    assert update(ring, 1, new_user_data=2) == -errno.ENOENT
    assert update(ring, 1, new_user_data=3) == -errno.ENOENT
    os.write(pipe[1], b"x")
    cqe = ring.copy_cqe(timeout=SECONDS)
    assert (cqe.user_data, cqe.result()) == (2, select.POLLIN)
    assert (ring.in_flight, ring._in_flight.claims) == (0, {})


def test_old_update_does_not_disturb_a_new_poll(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """An update that comes too late fails, and a later poll and update of those numbers stand."""
    ring.queue(PollAdd(pipe[0], user_data=1))
    ring.submit()
    ring.queue(PollUpdate(1, new_user_data=2, user_data=10))
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).user_data == 1
    os.read(pipe[0], 1)
    ring.submit()
    ring.queue(PollAdd(pipe[0], user_data=1))
    ring.queue(PollUpdate(1, new_user_data=2, user_data=11))
    ring.submit()
    results: dict[int, int] = {}
    while len(results) < 2:
        cqe = ring.copy_cqe(timeout=SECONDS)
        results[cqe.user_data] = cqe.res
    assert results == {10: -errno.ENOENT, 11: 0}
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).user_data == 2
    assert (ring.in_flight, ring._in_flight.claims) == (0, {})


@pytest.mark.parametrize("queued", [False, True])
def test_update_of_nothing_gives_the_numbers_back(ring: uring.Ring, *, queued: bool) -> None:
    """An update of a poll that is not there reserves nothing after it has failed."""
    ring.queue(PollUpdate(1, new_user_data=2))
    if queued:
        ring.submit()
        assert ring.copy_cqe(timeout=SECONDS).res == -errno.ENOENT
        assert ring._in_flight.claims == {}
        assert is_free(ring, 1)
        assert is_free(ring, 2)
    else:
        assert not is_free(ring, 2)


@pytest.mark.parametrize("end", ["data", "cancel old", "cancel new", "close"])
def test_poll_ends_under_either_number(pipe: tuple[int, int], end: str) -> None:
    """Queued behind the end of the poll or before, an update leaves nothing in flight."""
    with uring.Ring(8) as ring:
        ring.queue(PollAdd(pipe[0], user_data=1))
        ring.submit()
        if end == "data":
            ring.queue(PollUpdate(1, new_user_data=2, user_data=9))
            os.write(pipe[1], b"x")  # ends it under the old number, and the update is too late
            ring.submit()
        else:
            assert update(ring, 1, new_user_data=2) == 0
            if end == "close":
                ring.close()
                assert ring.in_flight == 0
                return
            assert ring.cancel(1) == 0
            if end == "cancel new":
                assert ring.cancel(2) == 1
            else:
                os.write(pipe[1], b"x")
        while ring.in_flight:
            assert len(ring.copy_cqes(wait_nr=1, timeout=SECONDS)) > 0
        assert ring._in_flight.claims == {}
        assert is_free(ring, 1)
        assert is_free(ring, 2)


def test_updates_that_share_a_number(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """Two updates under one user_data, of which one fails: the poll is found under its number."""
    ring.queue(PollAdd(pipe[0], user_data=1))
    ring.submit()
    for _ in range(2):
        ring.queue(PollUpdate(1, new_user_data=2), user_data=9)
    ring.submit()
    assert sorted(ring.copy_cqe(timeout=SECONDS).res for _ in range(2)) == [-errno.ENOENT, 0]
    gc.collect()
    os.write(pipe[1], b"x")
    assert ring.copy_cqe(timeout=SECONDS).user_data == 2
    assert (ring.in_flight, ring._in_flight.claims) == (0, {})


def test_update_to_a_number_in_use_is_refused(ring: uring.Ring, pipe: tuple[int, int]) -> None:
    """A new number that something has, or an old one that is shared, is ValueError."""
    ring.queue(PollAdd(pipe[0], user_data=1))
    ring.queue(PollAdd(pipe[0], user_data=2))
    ring.submit()
    with pytest.raises(ValueError, match="user_data 0x2 is in use"):
        ring.queue(PollUpdate(1, new_user_data=2))
    ring.queue(PollAdd(pipe[0], user_data=1))
    with pytest.raises(ValueError, match="user_data 0x1 is shared"):
        ring.queue(PollUpdate(1, new_user_data=3))
    assert ring.in_flight == 3
    assert ring._in_flight.claims == {}


def test_unqueued_update_that_is_tried_again(pipe: tuple[int, int]) -> None:
    """An update that found no room is queued later, and works."""
    with uring.Ring(1) as ring:
        ring.queue(PollAdd(pipe[0], user_data=1))
        ring.submit()
        ring.queue(uring.Nop())
        for _ in range(3):
            with pytest.raises(uring.SubmissionQueueFull):
                ring.queue(PollUpdate(1, new_user_data=2))
        ring.submit()
        ring.copy_cqe(timeout=SECONDS)
        assert update(ring, 1, new_user_data=2) == 0
        os.write(pipe[1], b"x")
        assert ring.copy_cqe(timeout=SECONDS).user_data == 2
        assert (ring.in_flight, ring._in_flight.claims) == (0, {})


def test_message_under_the_number_of_a_renamed_poll_is_refused(
    ring: uring.Ring, target: uring.Ring, pipe: tuple[int, int]
) -> None:
    """Neither number of a poll that got another is open to messages."""
    target.queue(PollAdd(pipe[0], user_data=1))
    target.submit()
    assert update(target, 1, new_user_data=2) == 0
    for number in (1, 2):
        with pytest.raises(ValueError, match="a poll that gets another user_data"):
            ring.queue(MsgRing(target, target_user_data=number))


def test_expected_is_a_value() -> None:
    """What is expected counts, and remembers the place of the last one that came."""
    assert Expected(2) == Expected(2, -1)
    assert Expected(2) != Expected(1)
