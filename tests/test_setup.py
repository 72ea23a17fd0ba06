"""From the arguments of `Ring()` to a ring, or to an error that names them."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uring
from uring import _setup
from uring.flags import Features, SetupFlags

NOTHING = dict.fromkeys(("cq_entries", "sq_thread_cpu", "sq_thread_idle_ms", "attach_wq"))
F = SetupFlags


@pytest.fixture(autouse=True)
def _rings(request: pytest.FixtureRequest) -> None:
    """Skip, or fail with --require-ring, where rings are not to be had."""
    request.getfixturevalue("ring")


@pytest.mark.parametrize(
    ("entries", "valid"),
    [
        (0, 1),
        (-1, 1),
        (-(2**40), 1),
        (3, 4),
        (5, 8),
        (100, 128),
        (32767, 32768),
        (32769, 32768),
        (2**32, 32768),
        (2**64 + 1, 32768),
    ],
)
def test_setup_refuses_entries_and_names_the_next_valid(entries: int, valid: int) -> None:
    """What is no power of two from 1 to 32768 raises ValueError with what to use."""
    with pytest.raises(ValueError, match=rf"not {entries}; use {valid}$"):
        uring.Ring(entries)


@given(st.integers(-(2**40), 2**40))
def test_setup_names_a_valid_number_of_entries(entries: int) -> None:
    """The number that an error tells to use is accepted, and the nearest above where there is."""
    try:
        _setup.check_entries(entries)
    except ValueError as error:
        valid = int(str(error).rpartition(" ")[2])
        _setup.check_entries(valid)
        assert valid == 32768 or valid // 2 < max(entries, 1) <= valid
    else:
        assert entries.bit_count() == 1
        assert 1 <= entries <= 32768


@pytest.mark.parametrize("entries", [True, False, "8", 8.0, None, b"8"])
def test_setup_refuses_entries_that_are_no_integer(entries: Any) -> None:
    """A bool, a string, a float raise TypeError."""
    with pytest.raises(TypeError, match="entries must be an int"):
        uring.Ring(entries)


@pytest.mark.parametrize("entries", [1, 2, 256])
def test_setup_completion_queue_is_twice_the_submission_queue(entries: int) -> None:
    """Without `cq_entries` the kernel grants twice `entries`; params and views agree."""
    with uring.Ring(entries) as ring:
        assert (ring.params.sq_entries, ring.params.cq_entries) == (entries, 2 * entries)
        assert (ring.sq.entries, ring.cq.entries) == (entries, 2 * entries)
        assert (ring.sq.mask, ring.cq.mask) == (entries - 1, 2 * entries - 1)


@pytest.mark.slow
def test_setup_takes_the_largest_ring() -> None:
    """32768 entries give 65536 completions."""
    with uring.Ring(32768) as ring:
        assert (ring.params.sq_entries, ring.params.cq_entries) == (32768, 65536)


@pytest.mark.parametrize(("asked", "granted"), [(4, 4), (5, 8), (8, 8), (100, 128)])
def test_setup_rounds_cq_entries_up(asked: int, granted: int) -> None:
    """The kernel rounds `cq_entries` up to a power of two, and CQSIZE is in force."""
    with uring.Ring(4, cq_entries=asked) as ring:
        assert ring.params.cq_entries == granted == ring.cq.entries
        assert ring.flags & F.CQSIZE


@pytest.mark.parametrize("cq_entries", [0, 1, 3, -1, 65537, 2**32])
def test_setup_refuses_cq_entries_out_of_range(cq_entries: int) -> None:
    """Fewer than `entries`, or more than 65536, raise ValueError with the range."""
    with pytest.raises(ValueError, match=rf"cq_entries must be in 4\.\.65536, not {cq_entries}"):
        uring.Ring(4, cq_entries=cq_entries)


@pytest.mark.parametrize(
    "argument", ["cq_entries", "sq_thread_cpu", "sq_thread_idle_ms", "attach_wq"]
)
@pytest.mark.parametrize("value", [True, "8", 8.0])
def test_setup_refuses_arguments_that_are_no_integer(argument: str, value: object) -> None:
    """TypeError names the argument."""
    values: dict[str, Any] = {argument: value}
    with pytest.raises(TypeError, match=argument):
        uring.Ring(8, flags=F(0) if argument in {"cq_entries", "attach_wq"} else F.SQPOLL, **values)


@pytest.mark.parametrize("number", [-1, 2**31, 2**32, 2**64])
def test_setup_refuses_an_attach_wq_that_is_no_descriptor(number: int) -> None:
    """A number that no descriptor has raises ValueError with the argument's name."""
    with pytest.raises(ValueError, match="attach_wq"):
        uring.Ring(8, attach_wq=number)


def test_setup_attach_wq_that_is_no_ring_is_a_setup_error(pipe: tuple[int, int]) -> None:
    """A descriptor that is closed, or not a ring's, raises SetupError about attach_wq."""
    closed = os.dup(pipe[0])
    os.close(closed)
    for fd in (closed, pipe[0]):
        with pytest.raises(uring.SetupError, match=r"attach_wq|Invalid argument"):
            uring.Ring(8, attach_wq=fd)


def test_setup_attach_wq_takes_a_ring(ring: uring.Ring) -> None:
    """A ring, or its descriptor, is attached to, and ATTACH_WQ is in force."""
    for other in (ring, ring.fd):
        with uring.Ring(8, attach_wq=other) as attached:
            assert attached.flags & F.ATTACH_WQ
            assert attached.params.wq_fd == ring.fd


def test_setup_attach_wq_refuses_a_closed_ring() -> None:
    """A ring that is closed raises RingClosedError."""
    ring = uring.Ring(8)
    ring.close()
    with pytest.raises(uring.RingClosedError):
        uring.Ring(8, attach_wq=ring)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (F.TASKRUN_FLAG, ("TASKRUN_FLAG", "COOP_TASKRUN")),
        (F.DEFER_TASKRUN, ("DEFER_TASKRUN", "SINGLE_ISSUER")),
        (F.HYBRID_IOPOLL, ("HYBRID_IOPOLL", "IOPOLL")),
        (F.REGISTERED_FD_ONLY, ("REGISTERED_FD_ONLY", "NO_MMAP")),
        (F.SQ_REWIND, ("SQ_REWIND", "NO_SQARRAY")),
        (F.SQPOLL | F.COOP_TASKRUN, ("SQPOLL", "COOP_TASKRUN")),
        (F.SQPOLL | F.DEFER_TASKRUN | F.SINGLE_ISSUER, ("SQPOLL", "DEFER_TASKRUN")),
        (F.CQE32 | F.CQE_MIXED, ("CQE32", "CQE_MIXED")),
        (F.SQE128 | F.SQE_MIXED, ("SQE128", "SQE_MIXED")),
        (F.CQSIZE, ("CQSIZE", "cq_entries")),
        (F.SQ_AFF, ("SQ_AFF", "sq_thread_cpu")),
        (F.ATTACH_WQ, ("ATTACH_WQ", "attach_wq")),
    ],
    ids=repr,
)
def test_setup_refuses_flags_that_cannot_stand_alone_or_together(
    flags: SetupFlags, named: tuple[str, str]
) -> None:
    """ValueError names both sides of what is wrong."""
    with pytest.raises(ValueError, match=rf"{named[0]}.*{named[1]}"):
        uring.Ring(8, flags=flags)


@pytest.mark.parametrize(
    ("argument", "named"),
    [("sq_thread_cpu", "SQ_AFF.*SQPOLL"), ("sq_thread_idle_ms", "sq_thread_idle_ms needs.*SQPOLL")],
)
def test_setup_refuses_poller_arguments_without_a_poller(argument: str, named: str) -> None:
    """Arguments of the SQPOLL thread without SQPOLL raise ValueError."""
    values: dict[str, Any] = {argument: 1}
    with pytest.raises(ValueError, match=named):
        uring.Ring(8, **values)


@pytest.mark.parametrize("idle", [0, -1, 2**31])
def test_setup_refuses_an_idle_time_out_of_range(idle: int) -> None:
    """0 would silently be the kernel's default: it raises ValueError, as too large ones do."""
    with pytest.raises(ValueError, match=r"sq_thread_idle_ms must be in 1"):
        uring.Ring(8, flags=F.SQPOLL, sq_thread_idle_ms=idle)


NOT_DRIVEN = pytest.mark.parametrize(
    ("flags", "name", "since"),
    [(F.SQE_MIXED, "SQE_MIXED", "6.19"), (F.NO_SQARRAY | F.SQ_REWIND, "SQ_REWIND", "7.0")],
    ids=repr,
)


@NOT_DRIVEN
def test_setup_of_a_flag_that_the_kernel_lacks_names_its_release(
    flags: SetupFlags, name: str, since: str
) -> None:
    """The error is a SetupError and an UnsupportedError, for the missing flag alone."""
    if uring.probe().supports(flags):
        pytest.fail(f"this kernel knows {name}: it is refused for another reason now")
    with pytest.raises(
        uring.UnsupportedSetupError, match=rf"{name}.* needs Linux {since}$"
    ) as info:
        uring.Ring(8, flags=flags)
    assert "SQARRAY" not in str(info.value)
    assert info.value.errno == errno.EINVAL


@NOT_DRIVEN
def test_setup_refuses_what_this_version_does_not_drive(
    monkeypatch: pytest.MonkeyPatch, flags: SetupFlags, name: str, since: str
) -> None:
    """On a kernel that knows such a flag, UnsupportedError says that this package is the reason."""
    monkeypatch.setattr(_setup, "query_opcodes", lambda _ring: (0, 0, 0, sum(F), 0, 0, 0))
    with pytest.raises(uring.UnsupportedError, match=f"uring does not drive.*{name}") as info:
        uring.Ring(8, flags=flags)
    assert not isinstance(info.value, uring.SetupError)
    assert since not in str(info.value)


@pytest.mark.parametrize("is_queried", [True, False])
def test_setup_asks_the_kernel_which_flag_it_lacks(
    monkeypatch: pytest.MonkeyPatch, *, is_queried: bool
) -> None:
    """When the kernel says EINVAL, it is asked, by query or trial, which flags it knows."""
    monkeypatch.setattr(_setup, "_NOT_DRIVEN", F(0))
    if not is_queried:
        monkeypatch.setattr(_setup, "query_opcodes", lambda _ring: None)
    with pytest.raises(uring.UnsupportedSetupError, match=r"SQE_MIXED.* needs Linux 6\.19$"):
        uring.Ring(8, flags=F.SQE_MIXED | F.CQE32)


@pytest.mark.parametrize("entries", [32769, 100_000, 2**32 - 1])
def test_setup_with_clamp_takes_more_entries_than_there_are(entries: int) -> None:
    """CLAMP cuts `entries` and `cq_entries` to the largest; the other refusals stand."""
    with uring.Ring(entries, flags=F.CLAMP, cq_entries=entries) as ring:
        assert (ring.params.sq_entries, ring.params.cq_entries) == (32768, 65536)


@pytest.mark.parametrize("entries", [0, 3, 32767, 2**32, -1])
def test_setup_with_clamp_refuses_other_entries_as_ever(entries: int) -> None:
    """What is not above 32768, or not of 32 bits, is as wrong as without CLAMP."""
    with pytest.raises(ValueError, match="entries must be a power of two"):
        uring.Ring(entries, flags=F.CLAMP)


@pytest.mark.parametrize("cq_entries", [None, 2, 3])
def test_setup_of_mixed_completions_needs_four_entries(cq_entries: int | None) -> None:
    """Where one completion may take two places, a queue of two has no room for what goes wrong."""
    with pytest.raises(ValueError, match="completion queue of 4 at least: pass cq_entries"):
        uring.Ring(1, flags=F.CQE_MIXED, cq_entries=cq_entries)
    uring.Ring(1, flags=F.CQE_MIXED, cq_entries=4).close()
    uring.Ring(2, flags=F.CQE_MIXED).close()


@pytest.mark.parametrize("flags", [1 << 21, 1 << 31, 1 << 40])
def test_setup_refuses_bits_without_a_name(flags: int) -> None:
    """A bit that no kernel knows raises ValueError with the bit."""
    with pytest.raises(ValueError, match=f"{flags:#x}"):
        uring.Ring(8, flags=F(flags))


@pytest.mark.parametrize("flags", [True, None, "SQPOLL", 1.0])
def test_setup_refuses_flags_that_are_no_flags(flags: Any) -> None:
    """TypeError for what is not an integer, and for a bool."""
    with pytest.raises(TypeError, match="flags must be SetupFlags"):
        uring.Ring(8, flags=flags)


def test_setup_check_flags_adds_what_the_arguments_imply() -> None:
    """Each argument that was given sets its flag; none sets none."""
    assert _setup.check_flags(F(0), NOTHING) == F(0)
    assert _setup.check_flags(F(0), NOTHING | {"cq_entries": 8}) == F.CQSIZE
    assert _setup.check_flags(F.SQPOLL, NOTHING | {"sq_thread_cpu": 0}) == F.SQPOLL | F.SQ_AFF
    assert _setup.check_flags(F(0), NOTHING | {"attach_wq": 3}) == F.ATTACH_WQ
    assert type(_setup.check_flags(F.CLAMP, NOTHING)) is F


def test_setup_params_are_what_the_kernel_granted(ring: uring.Ring) -> None:
    """The record is frozen, and the ring's flags and features are its own."""
    params = ring.params
    assert isinstance(params, uring.RingParams)
    assert ring.flags is params.flags
    assert ring.features is params.features
    assert isinstance(params.features, Features)
    assert Features.SINGLE_MMAP in params.features
    with pytest.raises(AttributeError):
        params.cq_entries = 1  # type: ignore[misc]  # wrong on purpose


def test_setup_params_of_a_poller_are_what_was_asked() -> None:
    """The processor and the idle time are in the params."""
    cpu = min(os.sched_getaffinity(0))
    with uring.Ring(8, flags=F.SQPOLL, sq_thread_cpu=cpu, sq_thread_idle_ms=77) as ring:
        assert (ring.params.sq_thread_cpu, ring.params.sq_thread_idle_ms) == (cpu, 77)
        assert F.SQPOLL | F.SQ_AFF in ring.flags


def test_setup_of_an_offline_processor_says_so() -> None:
    """A processor that is not there is the kernel's EINVAL, and the message names it."""
    with pytest.raises(uring.SetupError, match=r"sq_thread_cpu 100000 must be a processor"):
        uring.Ring(8, flags=F.SQPOLL, sq_thread_cpu=100_000)


def test_setup_refused_leaves_no_descriptor(descriptors: Callable[[], set[str]]) -> None:
    """No refusal, by us or by the kernel, leaves a descriptor open."""
    before = descriptors()
    refused: list[dict[str, Any]] = [
        {"entries": 3},
        {"cq_entries": 1},
        {"flags": F.SQE_MIXED},
        {"flags": F.SQPOLL, "sq_thread_cpu": 100_000},
        {"flags": F.SQPOLL | F.NO_MMAP, "sq_thread_cpu": 100_000},
    ]
    for arguments in refused:
        with pytest.raises((ValueError, OSError), match=r"."):
            uring.Ring(**arguments)
    assert descriptors() == before
