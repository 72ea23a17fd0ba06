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
