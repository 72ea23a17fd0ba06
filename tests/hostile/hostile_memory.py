"""Programs that drop, resize, mistake or mistreat the memory that they lend to the kernel."""

import ctypes
import mmap
import os
import socket
import tempfile
import weakref
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostile_harness import Tracked, collect, drain, main, program, refused, until

import uring

if TYPE_CHECKING:
    from collections.abc import Callable


@program
def dropped_buffer_is_written_and_no_other() -> None:
    """A buffer dropped in flight lives until its completion; what is allocated then is ours."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        buffer = Tracked(4096)
        seen = weakref.ref(buffer)
        ring.queue(uring.Read(inlet, buffer))
        ring.submit()
        del buffer
        collect()
        canaries = [bytearray(b"\xaa" * 4096) for _ in range(2000)]
        os.write(outlet, b"x" * 4096)
        until(ring.cq_ready)
        collect()
        held = seen()
        assert held is not None
        assert bytes(held) == b"x" * 4096
        del held
        completions = ring.copy_cqes()
        assert completions.res.tolist() == [4096]
        assert all(canary == b"\xaa" * 4096 for canary in canaries)
        del completions
        collect()
        assert seen() is None, "kept for longer than needed"


@program
def resized_buffer_is_refused() -> None:
    """A bytearray cannot be resized in flight, gets its data, and can be resized afterwards."""
    inlet, outlet = os.pipe()
    with uring.Ring(8) as ring:
        buffer = bytearray(64)
        changes: list[Callable[[], object]] = [
            lambda: buffer.append(1),
            lambda: buffer.extend(bytes(1 << 20)),
            buffer.clear,
            buffer.pop,
            lambda: buffer.__delitem__(slice(0, 32)),
            lambda: buffer.__imul__(1000),
        ]
        ring.queue(uring.Read(inlet, buffer))
        for _ in range(2):  # queued, then in flight
            for change in changes:
                refused(BufferError, "cannot be re-sized", change)
            ring.submit()
        os.write(outlet, b"right data")
        assert ring.copy_cqe(timeout=5).res == 10
        assert buffer == b"right data".ljust(64, b"\0")
        buffer.extend(bytes(1 << 20))


@program
def every_kind_of_buffer_is_pinned() -> None:
    """Whatever exports a buffer is filled, and cannot move or go away while it is in flight."""
    strided: list[object] = [memoryview(bytearray(64))[::2], memoryview(bytearray(64))[::-1]]
    inlet, outlet = os.pipe()
    # Without BytesIO: CPython itself crashes when a cycle with its getbuffer() is collected.
    view = memoryview(bytearray(64))
    numbers = array("I", range(16))
    mapped = mmap.mmap(-1, 4096)
    pointers = (ctypes.c_uint16 * 32)()
    grid = memoryview(bytearray(64)).cast("B", (8, 8))
    window = memoryview(bytearray(128))[32:96]
    cases: list[tuple[Any, int, Callable[[], object] | None]] = [
        (view, 64, view.release),
        (numbers, 64, lambda: numbers.append(1)),
        (mapped, 4096, mapped.close),
        (mapped, 4096, lambda: mapped.resize(1 << 20)),
        (pointers, 64, None),
        (grid, 64, grid.release),
        (window, 64, window.release),
    ]
    with uring.Ring(8) as ring:
        for buffer, size, change in cases:
            ring.queue(uring.Read(inlet, buffer))
            ring.submit()
            if change is not None:
                refused(BufferError, "", change)
            os.write(outlet, bytes(range(1, 65)) * (size // 64))
            assert ring.copy_cqe(timeout=5).res == size
            assert bytes(memoryview(buffer).cast("B")) == bytes(range(1, 65)) * (size // 64)
        for wrong in strided:
            refused(ValueError, "contiguous", lambda w=wrong: ring.queue(uring.Read(inlet, w)))  # type: ignore[misc]  # mypy infers no lambda with a default
        view.release()
        refused(ValueError, "released", lambda: ring.queue(uring.Read(inlet, view)))
        mapped.close()
        refused(ValueError, "closed", lambda: ring.queue(uring.Read(inlet, mapped)))
        for fixed in (b"12345678", memoryview(b"12345678"), memoryview(bytearray(8)).toreadonly()):
            refused(TypeError, "read-only", lambda f=fixed: ring.queue(uring.Read(inlet, f)))  # type: ignore[misc]  # mypy infers no lambda with a default
            refused(TypeError, "read-only", lambda f=fixed: ring.queue(uring.Readv(inlet, [f])))  # type: ignore[misc]  # mypy infers no lambda with a default
            refused(TypeError, "read-only", lambda f=fixed: ring.queue(uring.Recv(inlet, f)))  # type: ignore[misc]  # mypy infers no lambda with a default
        assert ring.in_flight == 0
        assert ring.sq.sqe_tail == ring.sq.sqe_head == ring.sq.head


@program
def temporaries_live_until_the_kernel_has_read_them() -> None:
    """Paths, addresses, times and iovecs that nobody else holds are intact when they are read."""
    server = socket.create_server(("127.0.0.1", 0))
    with tempfile.TemporaryDirectory() as folder, uring.Ring(256) as ring:
        names = [f"{folder}/{'n' * 100}{i}" for i in range(60)]
        for name in names:
            ring.queue(uring.Openat(os.fsencode("".join(name)), os.O_CREAT | os.O_WRONLY))
        for _ in range(60):
            ring.queue(uring.Timeout(float("0.01")))
        clients = [socket.socket() for _ in range(20)]
        for client in clients:
            ring.queue(uring.Connect(client, tuple(server.getsockname())))
        inlet, outlet = os.pipe()
        for i in range(60):
            ring.queue(uring.Writev(outlet, [bytes([65 + i]) * 7, bytearray([65 + i]) * 9]))
        collect()
        junk = [bytes([255]) * size for size in range(8, 300) for _ in range(50)]
        ring.submit()
        done = [drain(ring)]
        assert len(junk) == 292 * 50
        kinds = [(type(cqe.op), cqe.res) for cqe in done[0]]
        assert kinds.count((uring.Timeout, -62)) == 60
        assert kinds.count((uring.Connect, 0)) == 20
        assert kinds.count((uring.Writev, 16)) == 60
        assert sorted(map(str, Path(folder).iterdir())) == sorted(names)
        for sock in (*clients, server):
            sock.close()
        written = os.read(inlet, 4096)
        assert sorted(written[i : i + 16] for i in range(0, 960, 16)) == [
            bytes([65 + i]) * 16 for i in range(60)
        ]


@program
def huge_buffer_is_refused() -> None:
    """5 GiB do not fit in a 32-bit length: ValueError, by each operation, and nothing is queued."""
    huge = mmap.mmap(-1, 5 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # NORESERVE
    cases: list[uring.Operation] = [
        uring.Read(0, huge),
        uring.Write(1, huge),
        uring.Readv(0, [bytearray(1), huge]),
        uring.Writev(1, [huge]),
        uring.Send(1, huge),
        uring.Recv(1, huge),
    ]
    with uring.Ring(8) as ring:
        for op in cases:
            refused(ValueError, "4294967295", lambda op=op: ring.queue(op))  # type: ignore[misc]  # mypy infers no lambda with a default
        assert (ring.in_flight, ring.sq_ready()) == (0, 0)
    cases.clear()
    collect()
    huge.close()  # BufferError if anything still held it


@program
def wrong_arguments_leave_the_ring_as_it_was() -> None:
    """Every argument of every operation, of a wrong type or size: refused, and nothing changes."""
    inlet, _ = os.pipe()
    closed = Path("/dev/null").open()  # noqa: SIM115 - closed at once
    closed.close()

    class Raises:
        def fileno(self) -> int:
            raise ZeroDivisionError("fileno")

    class Negative:
        def fileno(self) -> int:
            return -1

    class Text:
        def fileno(self) -> int:
            return "7"  # type: ignore[return-value]  # wrong on purpose

    good: dict[type[uring.Operation], tuple[Any, ...]] = {
        uring.Read: (inlet, bytearray(8), 0),
        uring.Write: (inlet, b"", 0),
        uring.Readv: (inlet, [bytearray(8)], 0),
        uring.Writev: (inlet, [b""], 0),
        uring.Fsync: (inlet,),
        uring.Close: (inlet,),
        uring.Openat: ("/dev/null", 0, 0),
        uring.PollAdd: (inlet, 1),
        uring.PollRemove: (1,),
        uring.Socket: (1, 1, 0),
        uring.Accept: (inlet,),
        uring.Connect: (inlet, "/x"),
        uring.Send: (inlet, b"", 0),
        uring.Recv: (inlet, bytearray(8), 0),
        uring.Shutdown: (inlet, 0),
        uring.Timeout: (1,),
        uring.TimeoutRemove: (1,),
        uring.LinkTimeout: (1,),
        uring.AsyncCancel: (1,),
        uring.Nop: (),
    }
    everywhere = [
        None,
        "7\0",
        1j,
        object(),
        [object()],
        {"": 1},
        2**70,
        -(2**70),
        [2**70],
        [b"x", None],
    ]
    files = [closed, Raises(), Negative(), Text(), True, Raises]
    options: list[dict[str, Any]] = [{"flags": f} for f in ("1", 256, -1, None)]
    options += [{"personality": p} for p in (65536, -1, "x")]
    numbers: list[dict[str, Any]] = [{"user_data": u} for u in (2**64, -1, "x", 1.0, True)]
    with uring.Ring(8) as ring:
        state = (repr(ring.sq), repr(ring.cq), ring.in_flight, ring.sq_ready())
        count = 0

        def refuse(*args: Any, **kwargs: Any) -> None:
            nonlocal count
            kind, *rest = args
            for call in (ring.queue, lambda op: ring.queue_all([uring.Nop(), op])):
                try:
                    call(kind(*rest, **kwargs))
                except (TypeError, ValueError, ZeroDivisionError):
                    count += 1
                else:
                    raise AssertionError(f"taken: {kind.__name__}{rest}{kwargs}")
                assert (repr(ring.sq), repr(ring.cq), ring.in_flight, ring.sq_ready()) == state

        for kind, args in good.items():
            for place in range(len(args)):
                extra = files if place == 0 and args[0] is inlet else []
                for wrong in (*everywhere, *extra):
                    refuse(kind, *args[:place], wrong, *args[place + 1 :])
            for keywords in (*options, *numbers):
                refuse(kind, *args, **keywords)
        for anything in (None, 1, "nop", uring.Nop, b"", uring.SQE, object()):
            refused(TypeError, "", lambda a=anything: ring.queue(a))  # type: ignore[misc]  # mypy infers no lambda with a default
        assert count > 500
        assert ring.queue(uring.Nop()) >= 2**63
        assert ring.submit() == 1


if __name__ == "__main__":
    main()
