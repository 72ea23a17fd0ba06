"""What all tests share: a ring, and the rule that a missing kernel feature never goes unseen."""

import ctypes
import fcntl
import gc
import json
import mmap
import os
import platform
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from aio import KITS, Kit

import uring
import uring.aio
from uring import _memory
from uring._ffi import lib
from uring.aio import _backend
from uring.flags import RegisterOpcode

LAYOUTS: Final = json.loads((Path(__file__).parent / "data" / "layouts.json").read_text("ascii"))
SECONDS: Final = 10  # the end of a wait that should not take any time: a failure, not a hang

NO_RING = "rings are not to be had here"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --require-ring."""
    parser.addoption(
        "--require-ring",
        action="store_true",
        help="fail, and do not skip, where the kernel refuses to make a ring",
    )


UNAVAILABLE: Final = pytest.StashKey[dict[str, str]]()


@pytest.fixture
def unavailable(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Give what notes that something cannot run here, and why; the end of the run lists it."""
    noted = request.config.stash.setdefault(UNAVAILABLE, {})
    return noted.__setitem__


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what cannot run here."""
    noted = terminalreporter.config.stash.get(UNAVAILABLE, {})
    if noted:
        terminalreporter.section("refused here, as the tests expect")
        for what, reason in noted.items():
            terminalreporter.write_line(f"{what}: {reason}")


@pytest.fixture(scope="session")
def ring_refusal() -> str:
    """Why this machine makes no rings; empty when it does."""
    try:
        uring.Ring(1).close()
    except uring.SetupError as error:
        return str(error)
    return ""


@pytest.fixture
def ring(ring_refusal: str, request: pytest.FixtureRequest) -> Iterator[uring.Ring]:
    """Give an open ring of eight entries, and close it."""
    if ring_refusal:
        if request.config.getoption("--require-ring"):
            pytest.fail(f"{NO_RING}: {ring_refusal}")
        pytest.skip(f"{NO_RING}: {ring_refusal}")  # the pure parts can be tested all the same
    with uring.Ring(8) as made:
        yield made


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Have no ring cancel anything, nor wait long for it; give what is kept for ever instead."""
    made: list[object] = []
    monkeypatch.setattr(uring.Ring, "_cancel_all", lambda _: None)
    monkeypatch.setattr(uring._teardown, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(uring._teardown, "keep_for_ever", made.append)
    return made


class Drive:
    """A ring with what most tests of operations do: run some, and look at what comes."""

    seconds = SECONDS

    def __init__(self, ring: uring.Ring) -> None:
        self.ring = ring

    def submit(self, *ops: uring.Operation) -> list[int]:
        """Queue the operations and submit; give their numbers."""
        numbers = self.ring.queue_all(ops)
        self.ring.submit()
        return numbers

    def take(self, count: int = 1) -> list[uring.CQE]:
        """Give the next completions, in the order in which they come."""
        return [self.ring.copy_cqe(timeout=self.seconds) for _ in range(count)]

    def collect(self, numbers: list[int]) -> list[uring.CQE]:
        """Give the one completion of each number, in their order; no others may come."""
        found = {cqe.user_data: cqe for cqe in self.take(len(numbers))}
        return [found[number] for number in numbers]

    def run(self, *ops: uring.Operation) -> list[uring.CQE]:
        """Submit the operations and give the one completion of each, in their order."""
        return self.collect(self.submit(*ops))

    def one(self, op: uring.Operation) -> uring.CQE:
        """Run one operation, which leaves nothing in flight."""
        (cqe,) = self.run(op)
        assert self.ring.in_flight == 0
        return cqe

    def result(self, op: uring.Operation) -> object:
        """Run one operation and give its result."""
        return self.one(op).result()

    def fails(self, op: uring.Operation, number: int) -> OSError:
        """Run an operation that fails with the errno; give its error, which names the operation."""
        cqe = self.one(op)
        assert cqe.res == -number
        error = cqe.error
        assert error is not None
        assert (type(error), error.errno) == (type(OSError(number, "")), number)
        assert error.__notes__[0].startswith(f"in {op!r}")
        with pytest.raises(type(error)):
            cqe.result()
        return error

    def is_quiet(self) -> bool:
        """Whether nothing has completed, all task work being done."""
        return not self.ring.copy_cqes() and self.one(uring.Nop()).res == 0


@pytest.fixture
def drive(ring: uring.Ring) -> Drive:
    """Give an open ring of eight entries in the hands of a `Drive`."""
    return Drive(ring)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give a pipe as (read end, write end), and close what is still open of it."""
    ends = os.pipe()
    yield ends
    for end in ends:
        if Path(f"/proc/self/fd/{end}").exists():
            os.close(end)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """Give the descriptor of a file of ten bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two connected stream sockets."""
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a TCP socket that listens on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def udp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two UDP sockets, each with a name and not connected."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as right,
    ):
        for sock in (left, right):
            sock.settimeout(SECONDS)
            sock.bind(("127.0.0.1", 0))
        yield left, right


@pytest.fixture
def descriptors() -> Callable[[], set[str]]:
    """Give every descriptor that is open, but not that of the listing itself."""
    gc.collect()  # what others have left must not go in the middle
    listing = Path("/proc/self/fd")
    return lambda: {path.name for path in listing.iterdir() if path.is_symlink()}


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Wait for what another thread or the kernel brings about, and gives no descriptor for."""

    def _until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.001)  # lets the others run; there is no descriptor to wait on

    return _until


@pytest.fixture(scope="session")
def in_thread() -> Callable[[Callable[[], object]], None]:
    """Call in another thread, and raise here what it raises."""

    def _in_thread(call: Callable[[], object]) -> None:
        raised: list[BaseException] = []

        def body() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - handed on
                raised.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        if raised:
            raise raised[0]

    return _in_thread


# ---- for operations of one family ----


@pytest.fixture
def drain(ring: uring.Ring) -> Callable[[], list[uring.CQE]]:
    """Give the completions up to the last one of an operation, without MORE."""

    def _drain() -> list[uring.CQE]:
        found = [ring.copy_cqe(timeout=SECONDS)]
        while found[-1].more:
            found.append(ring.copy_cqe(timeout=SECONDS))
        return found

    return _drain


@pytest.fixture
def one(drive: Drive) -> Callable[[Any], uring.CQE]:
    """Run one operation that completes once, and leaves nothing in flight."""
    return drive.one


@pytest.fixture
def fails(drive: Drive) -> Callable[[Any, int], OSError]:
    """Run an operation that fails with the errno; give its error, which names the operation."""
    return drive.fails


@pytest.fixture(scope="session")
def assert_record() -> Callable[..., None]:
    """
    Check that an operation has these fields of struct io_uring_sqe, and 0 everywhere else.

    `...` stands for anything but 0: an address.
    """
    layout = LAYOUTS["structs"]["io_uring_sqe"]["fields"]

    def _assert_record(op: uring.Operation, **expected: Any) -> None:
        record = bytearray(op._encode()[0])
        expected.setdefault("opcode", int(op.opcode))
        for name, value in expected.items():
            start, size = layout[name]["offset"], layout[name]["size"]
            found = int.from_bytes(record[start : start + size], sys.byteorder)
            assert found != 0 if value is ... else found == value, name
            record[start : start + size] = bytes(size)
        assert record == bytes(64), record.hex(" ")

    return _assert_record


class Provided:
    """A group of provided buffers, registered by hand: a ring of struct io_uring_buf."""

    def __init__(self, ring: uring.Ring, entries: int, size: int, bgid: int) -> None:
        self.entries, self.size, self.bgid = entries, size, bgid
        self.memory = bytearray(entries * size)
        self._map = mmap.mmap(-1, max(mmap.PAGESIZE, 16 * entries))
        self._pin, self._address, _ = _memory.writable(self.memory)
        self._map_pin, address, _ = _memory.writable(self._map)
        self._tail = 0
        argument = struct.pack("=QIHH24x", address, entries, bgid, 0)
        register = int(RegisterOpcode.REGISTER_PBUF_RING)
        pin, _, _ = _memory.readable(argument)
        assert lib.uring_register(ring._shim, register, pin, 1) == 0
        self.give(*range(entries))

    def give(self, *bids: int) -> None:
        """Give buffers to the kernel, in this order."""
        for bid in bids:
            place = 16 * (self._tail % self.entries)
            address = self._address + bid * self.size
            struct.pack_into("=QIH", self._map, place, address, self.size, bid)
            self._tail += 1
        struct.pack_into("=H", self._map, 14, self._tail & 0xFFFF)

    def fill(self, *contents: bytes) -> None:
        """Write into the first buffers, for them to be sent."""
        for bid, content in enumerate(contents):
            self.memory[bid * self.size : bid * self.size + len(content)] = content

    def __getitem__(self, bid: int | None) -> bytes:
        assert bid is not None
        return bytes(self.memory[bid * self.size : (bid + 1) * self.size])


@pytest.fixture
def provide(ring: uring.Ring) -> Iterator[Callable[..., Provided]]:
    """Make groups of provided buffers, of a number of entries and their size; all are given."""
    kept: list[Provided] = []

    def _provide(entries: int, size: int, bgid: int = 7) -> Provided:
        kept.append(Provided(ring, entries, size, bgid))
        return kept[-1]

    yield _provide
    ring.close()  # before the memory is gone
    kept.clear()


USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04


@pytest.fixture
def missing_page() -> Iterator[tuple[mmap.mmap, int, threading.Event]]:
    """Give a page, its address, and the event until which whoever touches it is held up."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(USERFAULTFD.get(platform.machine(), -1), os.O_CLOEXEC)
    if fd < 0:
        why = f"no userfaultfd(2) here: {os.strerror(ctypes.get_errno())}"
        pytest.skip(why)  # nothing else holds up C, or the kernel, at a place of our choice
    memory, released = mmap.mmap(-1, mmap.PAGESIZE), threading.Event()
    exported = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(exported)
    fcntl.ioctl(fd, UFFDIO_API, struct.pack("=QQQ", 0xAA, 0, 0))
    fcntl.ioctl(fd, UFFDIO_REGISTER, struct.pack("=QQQQ", address, mmap.PAGESIZE, 1, 0))

    def give() -> None:
        released.wait(20)
        fcntl.ioctl(fd, UFFDIO_ZEROPAGE, struct.pack("=QQQQ", address, mmap.PAGESIZE, 0, 0))

    giver = threading.Thread(target=give)
    giver.start()
    yield memory, address, released
    released.set()
    giver.join()
    os.close(fd)


# ---- for uring.aio ----


@pytest.fixture(params=KITS, ids=lambda kit: kit.name)
def kit(request: pytest.FixtureRequest) -> Kit:
    """Give each kind of event loop."""
    made: Kit = request.param
    return made


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end without a choice of backend, and without a warning having been given."""
    monkeypatch.delenv(_backend.ENVIRONMENT, raising=False)
    choice = _backend._choice
    uring.aio.use_backend(None)
    choice.has_warned = False
    yield
    uring.aio.use_backend(None)
    choice.has_warned = False
