"""The C shim through its door: the layout of its structs, and what its functions refuse."""

import errno
import json
import time
from pathlib import Path

import pytest

import uring
from uring._ffi import ffi, lib

DATA = Path(__file__).parent / "data" / "layouts.json"
LAYOUTS = json.loads(DATA.read_text(encoding="utf-8"))["structs"]
NOP = bytes(64)


def test_params_have_the_layout_of_the_kernels() -> None:
    """Our uring_params has the size of io_uring_params, and each field its offset."""
    kernel = LAYOUTS["io_uring_params"]
    assert ffi.sizeof("struct uring_params") == kernel["size"] == 120
    fields = {"sq_thread_idle", "sq_thread_cpu", "sq_entries", "cq_entries", "flags", "features"}
    for name in (*fields, "wq_fd"):
        assert ffi.offsetof("struct uring_params", name) == kernel["fields"][name]["offset"]


def test_placing_needs_the_count_of_what_was_placed(ring: uring.Ring) -> None:
    """Who does not know of all that was placed places nothing, so nothing is placed twice."""
    assert lib.uring_submit(ring._shim, 1, NOP, bytes(8), 1) == -errno.ESTALE
    assert lib.uring_submit(ring._shim, 0, NOP, bytes(8), 1) & 0xFFFFFFFF == 1
    assert lib.uring_submit(ring._shim, 0, NOP, bytes(8), 1) == -errno.ESTALE
    assert ring.sq.tail == 1


def test_placing_is_all_or_none(ring: uring.Ring) -> None:
    """Nine SQEs do not go into eight entries, not even the first of them."""
    assert lib.uring_submit(ring._shim, 0, NOP * 9, bytes(72), 9) == -errno.ENOSPC
    assert (ring.sq.tail, ring.cq.tail) == (0, 0)


def test_sealed_ring_serves_only_its_closer(ring: uring.Ring) -> None:
    """After the seal, submitting and waiting are for the one who sealed it."""
    assert lib.uring_sealed_submit(ring._shim, 0, NOP, bytes(8), 1) == -errno.ESHUTDOWN
    assert lib.uring_seal(ring._shim) == 0
    assert lib.uring_submit(ring._shim, 0, NOP, bytes(8), 1) == -errno.ESHUTDOWN
    assert lib.uring_wait(ring._shim, 0, 1, 0) == -errno.ESHUTDOWN
    assert lib.uring_wait_min(ring._shim, 0, 1, 0, -1) == -errno.ESHUTDOWN
    assert lib.uring_wait_sq(ring._shim, -1) == -errno.ESHUTDOWN
    params = ffi.new("struct uring_params *")
    assert lib.uring_resize(ring._shim, 0, params) == -errno.ESHUTDOWN
    assert lib.uring_sealed_submit(ring._shim, 0, NOP, bytes(8), 1) & 0xFFFFFFFF == 1
    assert lib.uring_sealed_wait(ring._shim, 0, 1, 0) == 0


def test_exited_ring_refuses_everybody(ring: uring.Ring) -> None:
    """Each function says ESHUTDOWN once the mappings are gone, and exiting again is nothing."""
    shim, room, run = ring._shim, ffi.new("char[]", 16), ffi.new("struct uring_run *")
    ring.close()
    assert lib.uring_exit(shim) == 0
    refused = [
        lib.uring_submit(shim, 0, NOP, bytes(8), 1),
        lib.uring_sealed_submit(shim, 0, NOP, bytes(8), 1),
        lib.uring_wait(shim, 0, 1, -1),
        lib.uring_submit_one(shim, 0, NOP, 0),
        lib.uring_take(shim, 0, 1),
        lib.uring_peek(shim, 0, 1, room),
        lib.uring_ready(shim, 0),
        lib.uring_run_begin(shim, run, 0),
        lib.uring_run(shim, run),
        lib.uring_run_wait(shim, run, -1),
        lib.uring_run_release(shim, run),
        lib.uring_register(shim, 3, ffi.NULL, 0),
        lib.uring_counters(shim, ffi.new("struct uring_counters *")),
        lib.uring_seal(shim),
        lib.uring_wait_min(shim, 0, 1, 0, -1),
        lib.uring_wait_registered(shim, 0, 1, 0, -1, 0),
        lib.uring_register_region(shim, ffi.NULL, 4096),
        lib.uring_region_set(shim, 0, 0, 0),
        lib.uring_wait_sq(shim, -1),
        lib.uring_set_wait_flags(shim, 0),
        lib.uring_set_cq_flags(shim, 0),
        lib.uring_resize(shim, 0, ffi.new("struct uring_params *")),
    ]
    assert refused == [-errno.ESHUTDOWN] * len(refused)


def test_never_mapped_ring_refuses_everybody() -> None:
    """A zeroed struct is not a ring, and exiting it closes nothing."""
    shim = ffi.new("struct uring *")
    assert lib.uring_wait(shim, 0, 1, -1) == -errno.ESHUTDOWN
    assert lib.uring_exit(shim) == 0


@pytest.mark.parametrize("left_ns", [-(10**9), 0, 5_000_000])
def test_wait_ends_at_its_deadline(ring: uring.Ring, left_ns: int) -> None:
    """A deadline in the past ends at once, one in the future not before its time."""
    deadline = time.monotonic_ns() + left_ns
    assert lib.uring_wait(ring._shim, 0, 1, deadline) == -errno.ETIME
    assert time.monotonic_ns() >= deadline
