"""What all tests share: a ring, and the rule that a missing kernel feature never goes unseen."""

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import uring

NO_RING = "rings are not to be had here"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --require-ring."""
    parser.addoption(
        "--require-ring",
        action="store_true",
        help="fail, and do not skip, where the kernel refuses to make a ring",
    )


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
        # Without the option a machine that forbids io_uring can still test the pure parts.
        pytest.skip(f"{NO_RING}: {ring_refusal}")
    with uring.Ring(8) as made:
        yield made


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give a pipe as (read end, write end), and close what is still open of it."""
    ends = os.pipe()
    yield ends
    for end in ends:
        if Path(f"/proc/self/fd/{end}").exists():
            os.close(end)


USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04


@pytest.fixture
def missing_page() -> Iterator[tuple[mmap.mmap, int, threading.Event]]:
    """Give a page, its address, and the event until which whoever touches it is held up."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(USERFAULTFD.get(platform.machine(), -1), os.O_CLOEXEC)
    if fd < 0:  # no way to hold up C, or a thread of the kernel, at a place of our choice
        pytest.skip(f"no userfaultfd(2) here: {os.strerror(ctypes.get_errno())}")
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
