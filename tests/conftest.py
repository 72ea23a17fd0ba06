"""What all tests share: a ring, and the rule that a missing kernel feature never goes unseen."""

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
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


class Drive:
    """A ring with what most tests of operations do: run some, and look at what comes."""

    seconds = 10
    """The end of a wait that should not take any time: a failure, not a hang."""

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

    def run(self, *ops: uring.Operation) -> list[uring.CQE]:
        """Submit the operations and give the one completion of each, in their order."""
        numbers = self.submit(*ops)
        found = {cqe.user_data: cqe for cqe in self.take(len(ops))}
        return [found[number] for number in numbers]

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
        assert type(error) is type(OSError(number, ""))
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
def kernel_layout() -> Callable[..., None]:
    """
    Give a check of a `struct.Struct` against the kernel's layout.

    Called with the kernel's name of the struct, ours, and the kernel's names of our fields in our
    order, it fails unless both have one size and each field is at its place, with its size.
    """
    path = Path(__file__).parent / "data" / "layouts.json"
    structs = json.loads(path.read_text(encoding="ascii"))["structs"]

    def check(name: str, ours: struct.Struct, *fields: str) -> None:
        kernel = structs[name]
        assert ours.size == kernel["size"]
        zeros = [0] * len(fields)
        for place, field in enumerate(fields):
            packed = ours.pack(*zeros[:place], 1, *zeros[place + 1 :])
            start, size = kernel["fields"][field]["offset"], kernel["fields"][field]["size"]
            expected = bytearray(ours.size)
            one = (1).to_bytes(size, sys.byteorder)
            expected[start : start + size] = one
            assert packed == expected, field

    return check
