"""Programs that run into limits, and into filters that come in the middle of a ring's life."""

import errno
import gc
import os
import resource
import socket
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

from fault_common import Memory, be_impatient
from fault_filters import refuse
from hostile_harness import collect, descriptors, drain, main, program, refused, until

import uring
from uring import Nop, Openat, Read, Ring, SQEFlags
from uring import SetupFlags as F

ENTER, REGISTER = 426, 427
_R = resource


def limited(which: int, soft: int) -> Callable[[], None]:
    """Set a soft limit; gives what sets it back."""
    former = _R.getrlimit(which)
    _R.setrlimit(which, (soft, former[1]))
    return lambda: _R.setrlimit(which, former)


@program
def no_descriptors() -> None:
    """Neither a ring nor what operations open gets a descriptor; then all do."""
    listener = socket.create_server(("127.0.0.1", 0))
    ring = Ring(8)
    client = socket.create_connection(listener.getsockname())
    before = descriptors()
    lowest = os.dup(0)
    os.close(lowest)
    back = limited(_R.RLIMIT_NOFILE, lowest)
    refused(uring.SetupError, "RLIMIT_NOFILE", lambda: Ring(8))
    for op in (
        Openat("/dev/null", os.O_RDONLY),
        uring.Accept(listener),
        uring.Socket(socket.AF_INET, socket.SOCK_STREAM),
    ):
        ring.queue(op)
        ring.submit()
        error = ring.copy_cqe(timeout=10).error
        assert error is not None
        assert error.errno == errno.EMFILE
    done = ring.run([Openat("/dev/null", os.O_RDONLY), Nop()])
    assert done.res.tolist() == [-errno.EMFILE, 0]
    refused(uring.RegisterError, "RLIMIT_NOFILE", lambda: ring.register_files_sparse(4096))
    stream = ring.stream(uring.AcceptMultishot(listener))
    refused(OSError, "Too many open files", lambda: stream.take(timeout=10))
    back()
    assert ring.in_flight == 0
    assert descriptors() == before
    os.close(ring.run([uring.Accept(listener)])[0].result())
    ring.close()
    client.close()
    listener.close()


@program
def no_locked_memory() -> None:
    """A user that may lock 64 KiB registers no more, and what was refused is not pinned."""
    _R.setrlimit(_R.RLIMIT_MEMLOCK, (65536, 65536))
    os.setresuid(65534, 65534, 65534)
    large = bytearray(1 << 20)
    with Ring(8) as ring:
        for call in (
            lambda: ring.register_buffers([large]),
            lambda: ring.register_buffers([bytearray(4096), large]),
        ):
            refused(uring.RegisterError, "RLIMIT_MEMLOCK", call)
        collect()  # the error is in a cycle with who caught it
        large.extend(b"x")
        small = ring.register_buffers([bytearray(4096), None])
        refused(uring.RegisterError, "RLIMIT_MEMLOCK", lambda: small.update(1, [large]))
        collect()
        large.extend(b"x")
        small.close()
        group = ring.register_buffer_ring(64, size=4096)
        group.close()
        assert ring.run([Nop()])[0].res == 0


@program
def no_address_space() -> None:
    """Neither rings nor groups can be mapped: each says so by its own error; then they can."""
    with Ring(8) as ring:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * _R.getpagesize()
        before = descriptors()
        back = limited(_R.RLIMIT_AS, used + (1 << 19))
        for flags in (F(0), F.DEFER_TASKRUN | F.SINGLE_ISSUER, F.NO_MMAP):
            try:
                Ring(32768, flags=flags)
            except (uring.SetupError, MemoryError) as error:
                number = getattr(error, "errno", errno.ENOMEM)
            assert number == errno.ENOMEM, flags
        refused(
            uring.RegisterError,
            "no memory for 4096 buffers",
            lambda: ring.register_buffer_ring(4096, size=65536),
        )
        assert ring.run([Nop()])[0].res == 0
        back()
        collect()
        assert descriptors() == before
        Ring(32768).close()


def in_use() -> tuple[Ring, int, int]:
    """A ring with a read in flight, and the ends of its pipe."""
    be_impatient()
    warnings.simplefilter("always")
    read, write = os.pipe()
    ring = Ring(8)
    memory = Memory(64)
    ring.queue(Read(read, memory, offset=-1))
    ring.submit()
    return ring, read, write


def use(ring: Ring, calls: tuple[int, ...], why: str, fd: int) -> None:
    """Use a ring to which calls are forbidden."""
    if ENTER in calls:
        refused(uring.EnterError, why, ring.submit)
        refused(uring.EnterError, why, lambda: ring.copy_cqe(timeout=1))
    if REGISTER in calls:
        refused(uring.RegisterError, why, lambda: ring.register_files([fd]))


def closed_under(*calls: int, error: int = errno.EPERM, is_kept: bool, is_dropped: bool) -> None:
    """Forbid the calls in the middle, use the ring all the same, and end it."""
    ring, read, write = in_use()
    before = descriptors()
    for call in calls:
        refuse(call, error)
    ring.queue(Read(read, bytearray(8), offset=-1))
    use(ring, calls, os.strerror(error), read)
    fd = str(ring.fd)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not is_dropped:
            ring.close()
        del ring
        collect()
    kept = [warning for warning in caught if warning.category is RuntimeWarning]
    assert bool(kept) == is_kept, [str(warning.message) for warning in caught]
    # Not by a weak reference: the collector clears those before a finalizer keeps what they name.
    assert any(type(each) is Memory for each in gc.get_objects()) == is_kept
    assert descriptors() == before - {fd}
    canaries = [bytearray(64) for _ in range(64)]
    os.write(write, b"x" * 64)
    assert not any(map(any, canaries))


@program
def enter_forbidden() -> None:
    """Entering is forbidden: what is in flight is cancelled by a call, and nothing is kept."""
    closed_under(ENTER, is_kept=False, is_dropped=False)


@program
def enter_forbidden_and_dropped() -> None:
    """The same, and the ring is dropped."""
    closed_under(ENTER, error=errno.ENOSYS, is_kept=False, is_dropped=True)


@program
def register_forbidden() -> None:
    """Registering is forbidden: what is in flight is cancelled by operations."""
    closed_under(REGISTER, is_kept=False, is_dropped=False)


@program
def register_forbidden_and_dropped() -> None:
    """The same, and the ring is dropped."""
    closed_under(REGISTER, error=errno.ENOSYS, is_kept=False, is_dropped=True)


@program
def all_forbidden() -> None:
    """Nothing can be cancelled: the memory is kept, close() ends all the same and says so."""
    closed_under(ENTER, REGISTER, is_kept=True, is_dropped=False)


@program
def all_forbidden_and_dropped() -> None:
    """The same, and the ring is dropped."""
    closed_under(ENTER, REGISTER, is_kept=True, is_dropped=True)


@program
def forbidden_from_the_start() -> None:
    """Rings can be made and not used: each call says so, and closing is quick."""
    refuse(ENTER, errno.EACCES)
    refuse(REGISTER, errno.EACCES)
    before = descriptors()
    ring = Ring(8)
    ring.queue(Nop())
    refused(uring.EnterError, "Permission denied", ring.submit)
    refused(uring.RegisterError, "Permission denied", uring.probe)
    ring.close()
    collect()
    assert descriptors() == before


@program
def one_worker() -> None:
    """With one worker of each kind all work ends, however much of it blocks."""
    read, write = os.pipe()
    zero = os.open("/dev/zero", os.O_RDONLY)
    with Ring(64) as ring:
        ring.register_iowq_max_workers(bounded=1, unbounded=1)
        blocked = [Read(read, Memory(8), offset=-1, flags=SQEFlags.ASYNC) for _ in range(8)]
        ring.queue_all(blocked)
        ring.submit()
        with Path("/proc/self/exe").open("rb") as file:
            bounded = [Read(file, bytearray(64), offset=0, flags=SQEFlags.ASYNC)] * 16
            done = ring.run(bounded, timeout=10)
        assert done.res.tolist() == [64] * 16
        for _ in range(8):
            os.write(write, b"12345678")
        assert [cqe.res for cqe in drain(ring)] == [8] * 8
    os.close(zero)
    os.close(read)
    os.close(write)


@program
def one_worker_blocked_at_the_end() -> None:
    """A ring whose only worker is blocked, with work behind it, closes and keeps nothing."""
    read, write = os.pipe()
    warnings.simplefilter("error")
    ring = Ring(16)
    ring.register_iowq_max_workers(bounded=1, unbounded=1)
    memory = [Memory(64) for _ in range(8)]
    watched = [weakref.ref(each) for each in memory]
    ring.queue_all([Read(read, each, offset=-1, flags=SQEFlags.ASYNC) for each in memory])
    ring.submit()
    memory.clear()
    ring.close()
    until(lambda: not [each for each in watched if each() is not None])
    canaries = [bytearray(64) for _ in range(64)]
    os.write(write, b"x" * 64)
    assert not any(map(any, canaries))
    os.close(read)
    os.close(write)


if __name__ == "__main__":
    main()
