"""Programs that fill, overflow, wrap, poison and misread the two queues."""

import errno
import itertools
import os
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

from hostile_harness import Tracked, collect, drain, main, once, program, refused, until

import uring

if TYPE_CHECKING:
    from collections.abc import Callable

F = uring.SetupFlags
SKIP = uring.SQEFlags.CQE_SKIP_SUCCESS


@program
def full_queue_says_so() -> None:
    """The fifth operation on a ring of 4 is SubmissionQueueFull; a chain of 5 never fits."""
    with uring.Ring(4) as ring:
        for _ in range(3):
            ring.queue(uring.Nop())
        refused(
            uring.SubmissionQueueFull, "submit() first", lambda: ring.queue_all([uring.Nop()] * 2)
        )
        ring.queue(uring.Nop())
        refused(uring.SubmissionQueueFull, "4 entries", lambda: ring.queue(uring.Nop()))
        refused(uring.SubmissionQueueFull, "never", lambda: ring.queue_all([uring.Nop()] * 5))
        assert (ring.sq_ready(), ring.in_flight, ring.submit()) == (4, 4, 4)
        assert len(drain(ring)) == 4


@program
def indexing_after_a_wrap_is_right() -> None:
    """Batches that lie across the end of the queue read the same by index, iteration and column."""
    with uring.Ring(4, cq_entries=8) as ring:
        number = 0
        kept = []
        for size in itertools.islice(itertools.cycle((3, 4, 1, 2, 4)), 500):
            numbers = list(range(number, number + size))
            for n in numbers:
                ring.queue(uring.Nop(), user_data=n)
            ring.submit()
            peeked = ring.peek_cqes()
            batch = ring.copy_cqes()
            kept.append((batch, numbers))
            assert peeked == batch
            number += size
        for batch, numbers in kept:  # and nothing that came later has changed them
            assert [batch[i].user_data for i in range(len(batch))] == numbers
            assert [batch[-i].user_data for i in range(1, len(batch) + 1)] == numbers[::-1]
            assert [cqe.user_data for cqe in batch] == batch.user_data.tolist() == numbers
            assert [cqe.user_data for cqe in batch[::-1]] == numbers[::-1]
        for column in (kept[0][0].user_data, kept[0][0].res, kept[0][0].flags):
            refused(TypeError, "read-only", lambda c=column: c.__setitem__(0, 1))  # type: ignore[misc]  # mypy infers no lambda with a default


@program
def overflow_loses_nothing() -> None:
    """16 and 200 completions on a completion queue of 8: all of them come, once."""
    for total in (16, 200):
        for flags in (F(0), F.SINGLE_ISSUER | F.DEFER_TASKRUN, F.COOP_TASKRUN):
            with uring.Ring(4, cq_entries=8, flags=flags) as ring:
                for number in range(total):
                    ring.queue(uring.Nop(), user_data=number)
                    ring.submit()
                assert ring.cq.overflow == 0
                got = [cqe.user_data for cqe in drain(ring)]
                once(got)
                assert set(got) == set(range(total)), flags
                assert ring.in_flight == 0


@program
def bad_opcode_amid_a_batch_holds_up_nobody() -> None:
    """NOP, opcode 200, NOP: three completions of one submit, the middle one EINVAL."""
    for flags in (F(0), F.SUBMIT_ALL, F.SQPOLL):
        with uring.Ring(8, flags=flags) as ring:
            ring.queue(uring.Nop(), user_data=1)
            ring.queue(uring.SQE(200), user_data=2)
            ring.queue(uring.Nop(), user_data=3)
            assert ring.submit() == 3
            got = {cqe.user_data: cqe.res for cqe in drain(ring)}
            assert got == {1: 0, 2: -errno.EINVAL, 3: 0}
            assert ring.sq_ready() == 0


@program
def one_user_data_may_be_shared() -> None:
    """1000 reads under one number: all memory stays until the last has ended, then none."""
    inlet, outlet = os.pipe()
    with uring.Ring(1024) as ring:
        refs = []
        for _ in range(1000):
            buffer = Tracked(1)
            refs.append(weakref.ref(buffer))
            assert ring.queue(uring.Read(inlet, buffer), user_data=0) == 0
            del buffer
        ring.submit()
        os.write(outlet, b"x" * 999)
        done = 0
        while done < 999:
            done += len(ring.copy_cqes(wait_nr=1, timeout=5))
        collect()
        assert ring.in_flight == 1
        alive = [ref() for ref in refs]
        assert None not in alive
        del alive
        os.write(outlet, b"x")
        assert ring.copy_cqe(timeout=5).res == 1
        collect()
        assert all(ref() is None for ref in refs)
        assert ring.in_flight == 0


@program
def operation_may_be_queued_again_in_flight() -> None:
    """One operation value queued 8 times reads 8 times, under one number or under eight."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        for number in (None, 7):
            buffer = bytearray(1)
            op = uring.Read(inlet, buffer, user_data=number)
            ring.queue_all([op] * 8)
            ring.submit()
            os.write(outlet, b"abcdefgh")
            done = drain(ring)
            assert [cqe.res for cqe in done] == [1] * 8
            assert len({cqe.user_data for cqe in done}) == (8 if number is None else 1)
            buffer.append(0)


@program
def sleeping_poller_is_woken() -> None:
    """An SQPOLL thread that has gone to sleep is woken by submit and by a wait."""
    with uring.Ring(8, flags=F.SQPOLL, sq_thread_idle_ms=10) as ring:
        for number in range(4):
            until(lambda: ring.sq.flags & uring.SQRingFlags.NEED_WAKEUP, 5)
            ring.queue(uring.Nop(), user_data=number)
            if number % 2:
                ring.submit_and_wait(1, timeout=5)
            else:
                ring.submit()
            assert ring.copy_cqe(timeout=5).user_data == number
        for number in range(20_000):  # the poller is awake, asleep, or about to sleep
            ring.queue(uring.Nop(), user_data=number)
            ring.submit()
            assert ring.copy_cqe(timeout=5).user_data == number


@program
def deferred_completions_show_up_when_peeked() -> None:
    """On a DEFER_TASKRUN ring a peek and a copy that do not wait find what is there."""
    for flags in (F(0), F.TASKRUN_FLAG):
        with uring.Ring(8, flags=F.SINGLE_ISSUER | F.DEFER_TASKRUN | flags) as ring:
            inlet, outlet = os.pipe()
            for look in (ring.peek_cqes, ring.copy_cqes):
                ring.queue(uring.Read(inlet, bytearray(4)))
                ring.submit()
                assert len(look()) == 0
                os.write(outlet, b"data")
                until(look, 2)
                ring.cq_advance(ring.cq_ready())  # what was only peeked at
            assert ring.in_flight == 0


@program
def peek_and_advance_are_checked() -> None:
    """Memory stays pinned after a peek; an advance past what is ready is refused whole."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        buffer = bytearray(4)
        ring.queue(uring.Read(inlet, buffer))
        ring.queue(uring.Nop())
        os.write(outlet, b"peek")
        ring.submit()
        assert len(ring.peek_cqes(1)) == 1
        assert len(ring.peek_cqes()) == len(ring.peek_cqes(10**6)) == 2
        assert ring.in_flight == 2
        refused(BufferError, "", lambda: buffer.append(1))
        refused(ValueError, "2 completions are ready", lambda: ring.cq_advance(3))
        for wrong in (-1, 2**32, 2**70):
            refused(ValueError, "count", lambda w=wrong: ring.cq_advance(w))  # type: ignore[misc]  # mypy infers no lambda with a default
        refused(TypeError, "count", lambda: ring.cq_advance(1.0))  # type: ignore[arg-type]  # wrong on purpose
        assert (ring.in_flight, ring.cq_ready()) == (2, 2)
        ring.cq_advance(2)
        ring.cq_advance(0)
        refused(ValueError, "0 completions are ready", lambda: ring.cq_advance(1))
        assert (ring.in_flight, ring.cq_ready()) == (0, 0)
        buffer.append(1)


@program
def silent_chains_release_everything() -> None:
    """Every chain of two and three with CQE_SKIP_SUCCESS ends, wherever it fails."""
    read, write = os.pipe()
    numbering = itertools.count(1)  # an SQE has no number drawn for it

    kinds: list[Callable[[uring.SQEFlags], Any]] = [
        lambda flags: uring.Nop(flags=flags),
        lambda flags: uring.Fsync(-1, flags=flags),
        lambda flags: uring.SQE(200, flags=flags, user_data=next(numbering)),
        lambda flags: uring.Read(read, bytearray(8), rw_flags=8, flags=flags),  # RWF_NOWAIT
        lambda flags: uring.Write(write, b"12", flags=flags | uring.SQEFlags.ASYNC),
        lambda flags: uring.Read(read, bytearray(8), flags=flags),  # waits until cancelled
    ]
    link = uring.SQEFlags.IO_LINK  # hard links are refused in such chains
    stuck: Counter[str] = Counter()
    ring = uring.Ring(16)
    cases = (
        (picked, skipping)
        for length in (2, 3)
        for picked in itertools.product(range(len(kinds)), repeat=length)
        for skipping in range(1, length)
    )
    for picked, skipping in cases:
        flags = [link] * (len(picked) - 1) + [uring.SQEFlags(0)]
        flags = [flag | SKIP if i < skipping else flag for i, flag in enumerate(flags)]
        numbers = ring.queue_all([kinds[k](flag) for k, flag in zip(picked, flags, strict=True)])
        ring.submit()
        deadline = time.monotonic() + 0.5
        for number in numbers if 5 in picked else ():
            until(lambda: not ring.sq_ready())  # noqa: B023 - called at once
            ring.queue(uring.AsyncCancel(number))
            ring.submit()
        while ring.in_flight and time.monotonic() < deadline:
            ring.copy_cqes(wait_nr=1, timeout=0.02)
        if ring.in_flight:
            stuck[f"{picked} {skipping}"] = ring.in_flight
            if len(stuck) > 3:
                break
            ring = uring.Ring(16)
    assert not stuck, f"{len(stuck)} kinds of chain never end: {list(stuck.items())[:5]}"
    ring.close()


@program
def silent_chain_pins_until_its_last_completion() -> None:
    """The memory of a silent read stays until its chain has ended, whatever else completes."""
    inlet, outlet = os.pipe()
    with uring.Ring(16) as ring:
        buffer = Tracked(8)
        alive = weakref.ref(buffer)
        chain = uring.link(
            uring.Read(inlet, buffer, user_data=4, flags=SKIP), uring.Nop(user_data=5)
        )
        ring.queue_all(chain)
        del buffer, chain
        refused(ValueError, "cannot be shared", lambda: ring.queue(uring.Nop(), user_data=5))
        refused(ValueError, "cannot be shared", lambda: ring.queue(uring.Nop(user_data=4)))
        ring.queue(uring.Nop(), user_data=6)
        ring.submit()
        assert ring.copy_cqe(timeout=5).user_data == 6
        collect()
        assert alive() is not None
        assert ring.in_flight == 2
        os.write(outlet, b"12345678")
        assert ring.copy_cqe(timeout=5).user_data == 5
        collect()
        assert alive() is None
        assert ring.in_flight == 0
        for op in (uring.Nop(flags=SKIP), uring.SQE(0, flags=SKIP)):
            refused(ValueError, "never be freed", lambda op=op: ring.queue(op))  # type: ignore[misc]  # mypy infers no lambda with a default


class _Liar(int):
    """Says that it is an int, and lies about everything else."""

    calls = 0

    @property  # type: ignore[misc]  # lies about its class
    def __class__(self) -> type:
        return int

    def __eq__(self, _other: object) -> bool:
        type(self).calls += 1
        return type(self).calls % 2 == 0

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __le__(self, _other: object) -> bool:
        return True

    __ge__ = __lt__ = __gt__ = __le__

    def __int__(self) -> int:
        return 2**80

    def __index__(self) -> int:
        return -1


class _Wide(_Liar):
    """The same, but what it says its class is, it is."""

    @property  # type: ignore[misc]  # lies about its class
    def __class__(self) -> type:
        return _Wide


@program
def lying_user_data_is_taken_by_its_value() -> None:
    """Subclasses of int that lie about themselves are taken by their value, or refused."""
    inlet, outlet = os.pipe()
    kinds: tuple[type[_Liar], ...] = (_Liar, _Wide)
    for kind in kinds:
        make: Callable[[int], int] = kind
        for start in range(4):  # whichever comparison it is that comes first
            ring = uring.Ring(8)
            buffer = Tracked(4)
            alive = weakref.ref(buffer)
            ring.queue(uring.Read(inlet, buffer), user_data=5)
            ring.submit()
            del buffer
            for value in (5, 6, 2**70, -1):
                kind.calls = start
                queues: tuple[Callable[[], object], ...] = (
                    lambda: ring.queue(uring.Nop(), user_data=make(value)),  # noqa: B023  # called before the loop goes on
                    lambda: ring.queue(uring.Nop(user_data=make(value))),  # noqa: B023  # called before the loop goes on
                )
                for queue in queues:
                    try:
                        queue()
                    except (TypeError, ValueError):
                        assert value not in {5, 6}
                    else:
                        assert value in {5, 6}, f"{kind.__name__}({value}) was taken"
                    assert ring.submit() <= 1
                collect()
                assert alive() is not None, "freed in flight"
            os.write(outlet, b"data")
            drain(ring, 2)
            ring.close()


@program
def odd_files_are_asked_before_anything_is_queued() -> None:
    """fileno() that queues, raises or closes the ring; descriptors that are subclasses of int."""
    inlet, _outlet = os.pipe()

    class Raises:
        def fileno(self) -> int:
            raise LookupError("no")

    class Queues:
        def __init__(self, ring: uring.Ring) -> None:
            self.ring = ring

        def fileno(self) -> int:
            self.ring.queue(uring.Nop(), user_data=1)
            self.ring.submit()
            self.ring.copy_cqes()
            return inlet

    class Closes(Queues):
        def fileno(self) -> int:
            self.ring.close()
            return 0

    class Number(int):
        def __index__(self) -> int:
            return 2**40

    ring = uring.Ring(4)
    refused(LookupError, "no", lambda: ring.queue(uring.Fsync(Raises())))
    assert ring.in_flight == 0
    ring.queue(uring.PollAdd(Queues(ring)), user_data=2)
    ring.queue_all([uring.Nop(user_data=3), uring.PollAdd(Queues(ring), user_data=4)])
    ring.queue(uring.Fsync(Number(-5)), user_data=5)
    assert ring.in_flight == 4
    assert ring.submit() == 3  # the second fileno() has submitted what the first had queued
    ring.queue(uring.AsyncCancel(2))
    ring.queue(uring.AsyncCancel(4))
    got = {cqe.user_data: cqe.res for cqe in drain(ring)}
    assert set(got) >= {2, 3, 4, 5}
    assert got[5] == -errno.EBADF
    refused(uring.RingClosedError, "closed", lambda: ring.queue(uring.Fsync(Closes(ring))))
    assert (ring.closed, ring.in_flight, ring.fd) == (True, 0, -1)
    for closes in (
        lambda ring: ring.queue_all([uring.Nop(), uring.Fsync(Closes(ring))]),
        lambda ring: ring.register_files([Closes(ring)]),
        lambda ring: ring.register_files_update(0, [Closes(ring)]),
    ):
        ring = uring.Ring(4)
        refused(uring.RingClosedError, "closed", lambda c=closes, r=ring: c(r))  # type: ignore[misc]  # mypy infers no lambda with a default
        assert ring.in_flight == 0


@program
def counters_wrap_on_a_ring_of_one() -> None:
    """A ring with one entry gives 70,000 numbers back in order, past the 16-bit wrap."""
    started = time.monotonic()
    with uring.Ring(1) as ring:
        for number in range(70_000):
            ring.queue(uring.Nop(), user_data=number)
            ring.submit()
            if number % 2:
                assert ring.copy_cqes().user_data.tolist() == [number - 1, number]
    assert time.monotonic() - started < 20


if __name__ == "__main__":
    main()
