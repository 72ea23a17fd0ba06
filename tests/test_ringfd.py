"""Rings that a thread has registered, and rings that are nothing else: REGISTERED_FD_ONLY."""

import errno
import io
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import pytest

import uring
from uring import Nop, Read, Ring, SetupFlags, WrongThreadError
from uring._ffi import lib

F = SetupFlags
ONLY = F.NO_MMAP | F.REGISTERED_FD_ONLY

pytestmark = pytest.mark.usefixtures("ring")


def works(ring: Ring) -> None:
    """A NOP goes through: alone, in a batch, and run."""
    ring.queue(Nop(), user_data=7)
    assert ring.submit_and_wait() == 1
    assert ring.copy_cqe(timeout=10).user_data == 7
    ring.queue_all([Nop()] * 4)
    ring.submit_and_wait(4)
    assert len(ring.copy_cqes()) == 4
    assert ring.run([Nop()] * 20, timeout=30).res.tolist() == [0] * 20


# ---- register_ring_fd() ----


def test_registered_ring_is_entered_by_its_index(
    ring: Ring, in_thread: Callable[..., None], pipe: tuple[int, int]
) -> None:
    """With its descriptor replaced, the thread that registered it goes on, and no other can."""
    ring.register_ring_fd()
    kept = os.dup(ring.fd)
    os.dup2(pipe[0], ring.fd)
    try:
        works(ring)
        ring.queue(Nop())
        with pytest.raises(uring.EnterError, match="replaced the ring's descriptor"):
            in_thread(ring.submit)
        ring.submit_and_wait()
        assert ring.copy_cqe().res == 0
    finally:
        os.dup2(kept, ring.fd)
        os.close(kept)
    in_thread(lambda: works(ring))
    ring.unregister_ring_fd()
    works(ring)


def test_registering_twice_and_unregistering_twice_is_refused(ring: Ring) -> None:
    """EBUSY and ENXIO, and the ring works all the while."""
    with pytest.raises(uring.RegisterError) as info:
        ring.unregister_ring_fd()
    assert info.value.errno == errno.ENXIO
    for _ in range(40):  # more often than there are indices
        ring.register_ring_fd()
        with pytest.raises(uring.RegisterError) as info:
            ring.register_ring_fd()
        assert info.value.errno == errno.EBUSY
        works(ring)
        ring.unregister_ring_fd()
    works(ring)


def test_index_that_has_had_its_day_hits_no_other_ring() -> None:
    """A ring whose index another has now goes by its descriptor, and each gets its own."""
    with Ring(4) as first, Ring(4) as second:
        first.register_ring_fd()
        index = first._shim.ring_index
        first.unregister_ring_fd()
        second.register_ring_fd()
        assert second._shim.ring_index == index
        for turn in range(5):
            first.queue(Nop(), user_data=turn)
            first.submit()
            assert (first.cq_ready(), second.cq_ready()) == (1, 0)
            assert first.copy_cqe().user_data == turn
            works(second)
        first.register_ring_fd()
        assert first._shim.ring_index != index
        works(first)
        works(second)


def test_thread_registers_sixteen_rings_and_no_more() -> None:
    """The seventeenth is refused; each of the others works; closing them frees the indices."""
    for _ in range(3):
        rings = [Ring(2) for _ in range(17)]
        for ring in rings[:16]:
            ring.register_ring_fd()
        with pytest.raises(uring.RegisterError) as info:
            rings[16].register_ring_fd()
        assert info.value.errno == errno.EBUSY
        for ring in reversed(rings):
            ring.queue(Nop())
            ring.submit_and_wait()
            assert ring.copy_cqe().res == 0
            ring.close()


def test_registration_of_another_thread_stands_while_it_lives(ring: Ring) -> None:
    """While it lives nobody else registers or unregisters; when it has ended, others may."""
    registered, end = threading.Event(), threading.Event()

    def hold() -> None:
        ring.register_ring_fd()
        registered.set()
        assert end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert registered.wait(60)
        for call in (ring.register_ring_fd, ring.unregister_ring_fd):
            with pytest.raises(WrongThreadError, match=str(thread.native_id)):
                call()
        works(ring)
    finally:
        end.set()
        thread.join()
    with pytest.raises(uring.RegisterError):
        ring.unregister_ring_fd()
    ring.register_ring_fd()
    works(ring)


def test_closing_from_another_thread_leaves_the_others_rings_alone(
    in_thread: Callable[..., None],
) -> None:
    """The index that a ring closed elsewhere leaves behind is not taken for a new ring's."""

    def register() -> None:
        ring = Ring(4)
        ring.register_ring_fd()
        in_thread(ring.close)
        with Ring(4) as other:
            assert other._shim.registration == 0
            works(other)
            other.register_ring_fd()
            assert other._shim.ring_index == 1  # the kernel holds the first until this thread ends
            works(other)

    in_thread(register)


def test_registering_a_closed_ring_is_refused() -> None:
    """RingClosedError, as for everything else."""
    ring = Ring(4)
    ring.register_ring_fd()
    ring.close()
    for call in (ring.register_ring_fd, ring.unregister_ring_fd):
        with pytest.raises(uring.RingClosedError):
            call()
    assert lib.uring_register_fd(ring._shim) == -errno.ESHUTDOWN
    assert lib.uring_unregister_fd(ring._shim) == -errno.ESHUTDOWN


def test_registration_is_the_owners_with_single_issuer(in_thread: Callable[..., None]) -> None:
    """Others are refused as for every use."""
    with Ring(4, flags=F.SINGLE_ISSUER | F.DEFER_TASKRUN) as ring:
        with pytest.raises(WrongThreadError):
            in_thread(ring.register_ring_fd)
        ring.register_ring_fd()
        works(ring)


def test_registered_ring_waits_and_is_cancelled(ring: Ring, pipe: tuple[int, int]) -> None:
    """Waits with a timeout, and a close with a read in flight, work by index."""
    ring.register_ring_fd()
    buffer = bytearray(1)
    ring.queue(Read(pipe[0], buffer))
    ring.submit()
    assert not ring.copy_cqes(wait_nr=1, timeout=0.01)
    ring.close()
    buffer.append(0)
    os.write(pipe[1], b"x")
    assert os.read(pipe[0], 2) == b"x"


# ---- REGISTERED_FD_ONLY ----


def test_ring_without_a_descriptor_says_so(descriptors: Callable[[], set[str]]) -> None:
    """`fd` is -1 and `fileno()` says why, `closed` tells the truth, and no descriptor is made."""
    before = descriptors()
    ring = Ring(4, flags=ONLY)
    assert descriptors() == before
    assert (ring.fd, ring.closed) == (-1, False)
    with pytest.raises(io.UnsupportedOperation, match="REGISTERED_FD_ONLY has no descriptor"):
        ring.fileno()
    with pytest.raises(io.UnsupportedOperation):
        Ring(4, attach_wq=ring)
    for call in (ring.register_ring_fd, ring.unregister_ring_fd):
        with pytest.raises(io.UnsupportedOperation, match="from setup to close"):
            call()
    assert "fd=-1" in repr(ring)
    works(ring)
    ring.register_files([0])
    ring.unregister_files()
    ring.close()
    assert (ring.fd, ring.closed) == (-1, True)
    with pytest.raises(uring.RingClosedError):
        ring.fileno()
    ring.close()


def test_ring_without_a_descriptor_gives_its_index_back() -> None:
    """Forty in a row, of which sixteen fit at once; the seventeenth is a SetupError."""
    for _ in range(40):
        with Ring(4, flags=ONLY) as ring:
            works(ring)
    rings = [Ring(4, flags=ONLY) for _ in range(16)]
    with pytest.raises(uring.SetupError) as info:
        Ring(2, flags=ONLY)
    assert info.value.errno == errno.EBUSY
    for ring in rings:
        works(ring)
        ring.close()


def test_ring_without_a_descriptor_belongs_to_its_thread(in_thread: Callable[..., None]) -> None:
    """Every use from another thread, also close(), raises WrongThreadError that names the flag."""
    with Ring(4, flags=ONLY) as ring:
        for call in (ring.submit, lambda: ring.queue(Nop()), ring.copy_cqes, ring.close):
            with pytest.raises(WrongThreadError, match="REGISTERED_FD_ONLY"):
                in_thread(call)
        works(ring)


def test_ring_without_a_descriptor_can_be_closed_after_its_thread(
    in_thread: Callable[..., None],
) -> None:
    """When the owner has ended, with nothing in flight, another thread closes it in silence."""
    rings: list[Ring] = []

    def make() -> None:
        rings.append(Ring(4, flags=ONLY))
        works(rings[0])

    in_thread(make)
    (ring,) = rings
    with pytest.raises(WrongThreadError):
        ring.submit()
    ring.close()
    assert ring.closed


def test_ring_without_a_descriptor_keeps_what_its_ended_thread_left(
    pipe: tuple[int, int], in_thread: Callable[..., None]
) -> None:
    """Memory that the kernel has not given back when the owner has ended is kept, and said."""
    rings: list[Ring] = []
    buffer = bytearray(1)

    def make() -> None:
        rings.append(Ring(4, flags=ONLY))
        rings[0].queue(Read(pipe[0], buffer))
        rings[0].submit()

    in_thread(make)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rings[0].close()
    if rings[0].in_flight:  # the kernel ends the ring in its own time
        assert [warning.category for warning in caught] == [RuntimeWarning]
        with pytest.raises(BufferError):
            buffer.append(0)
    else:
        assert not caught
        buffer.append(0)


def test_ring_without_a_descriptor_is_dropped_and_its_index_is_free() -> None:
    """Dropped rings give back their indices: more than sixteen can be dropped."""
    for _ in range(20):
        with pytest.warns(ResourceWarning, match="dropped"):
            Ring(2, flags=ONLY).queue(Nop())


FORK = """
import os, uring
from uring import SetupFlags
ring = uring.Ring(4)
ring.register_ring_fd()
child = os.fork()
if not child:
    try:
        ring.queue(uring.Nop())
        ring.submit()
    except uring.RingClosedError as error:
        assert "fork" in str(error), error
    else:
        os._exit(1)
    with uring.Ring(4) as own:  # the kernel's table of the child is empty
        for turn in range(2):
            own.queue(uring.Nop())
            own.submit_and_wait()
            assert own.copy_cqe(timeout=10).res == 0
            if not turn:
                own.register_ring_fd()
                assert own._shim.ring_index == 0
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
ring.queue(uring.Nop())
ring.submit_and_wait()
assert ring.copy_cqe(timeout=10).res == 0
ring.close()
print("fine")
"""


def test_fork_leaves_the_registration_to_the_parent() -> None:
    """The child has no registered rings, and registers its own."""
    command = [sys.executable, "-W", "error", "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
