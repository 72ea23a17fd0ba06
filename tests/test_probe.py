"""What the kernel says that it has, against what was measured of it and against what it does."""

import errno
import os
import sys
from collections.abc import Callable
from typing import cast

import attrs
import pytest

from uring import _kernel
from uring._ffi import lib
from uring._setup import setup
from uring.errors import RegisterError, UnsupportedError
from uring.flags import (
    EnterFlags,
    Features,
    Opcode,
    RegisterOpcode,
    SetupFlags,
    SQEFlags,
    ZcrxAreaFlags,
    ZcrxFeatures,
    ZcrxRegisterFlags,
)
from uring.operations import Nop, Read
from uring.probe import Probe, ScqQuery, ZcrxQuery, probe
from uring.ring import Ring
from uring.sqe import SQE

probe_module = sys.modules["uring.probe"]  # `uring.probe` is the function

pytestmark = pytest.mark.usefixtures("ring")

PROBE = Probe(
    release="5.6.0",
    opcodes=frozenset({Opcode.NOP, Opcode.READ}),
    features=Features.NODROP | Features.FAST_POLL,
    setup_flags=SetupFlags.SQPOLL | SetupFlags.CQSIZE,
    last_register_opcode=None,
)


def test_probe_names_the_running_kernel() -> None:
    """The release is that of uname(2)."""
    assert probe().release == os.uname().release


def test_probe_agrees_with_a_ring() -> None:
    """The features are those that a ring of this process was granted."""
    with Ring(1) as ring:
        assert probe().features == ring.features


def test_probe_agrees_with_what_was_measured() -> None:
    """On Linux 6.18 the probe finds what a C program of its own was told there."""
    if not os.uname().release.startswith("6.18."):
        pytest.skip(f"the measurements are of 6.18.44, not of {os.uname().release}")
    found = probe()
    assert found.opcodes == {Opcode(number) for number in range(63)}
    assert found.features == 0x3FFFF
    assert found.setup_flags == 0x7FFFF
    assert found.last_register_opcode == 35
    assert (found.opcode_count, found.query_count) == (63, 1)
    assert found.enter_flags == EnterFlags(0xFF)
    assert found.sqe_flags == SQEFlags(0x7F)
    assert (found.zcrx, found.scq) == (None, None)


def test_trial_setups_find_what_the_query_says() -> None:
    """Where the kernel can be asked for its setup flags, one trial ring per flag finds the same."""
    found = probe()
    if found.last_register_opcode is None:
        pytest.skip("this kernel has no REGISTER_QUERY")
    ring, _inbox, _params, _end = setup(
        1, SetupFlags(0), cq_entries=None, sq_thread_cpu=None, sq_thread_idle_ms=None, wq_fd=None
    )
    known = SetupFlags(sum(SetupFlags))
    assert probe_module.try_setup_flags(ring) == found.setup_flags & known
    lib.uring_exit(ring)


def test_probe_without_a_query_tries_each_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without REGISTER_QUERY the setup flags are the same, and the register opcodes are unknown."""
    queried = probe()
    monkeypatch.setattr(probe_module, "query_opcodes", lambda _ring: None)
    tried = probe()
    assert tried.last_register_opcode is None
    later = (tried.opcode_count, tried.enter_flags, tried.sqe_flags, tried.query_count)
    assert (*later, tried.zcrx, tried.scq) == (None,) * 6
    assert tried.opcodes == queried.opcodes
    if queried.last_register_opcode is not None:
        assert tried.setup_flags == queried.setup_flags & SetupFlags(sum(SetupFlags))


@pytest.mark.parametrize("has_query", [True, False])
def test_probe_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, descriptors: Callable[[], set[str]], *, has_query: bool
) -> None:
    """A probe closes every ring that it made, also those of the trials."""
    if not has_query:
        monkeypatch.setattr(probe_module, "query_opcodes", lambda _ring: None)
    before = descriptors()
    for _ in range(3):
        probe()
    assert descriptors() == before


class _Refusing:
    """The shim, but for io_uring_register(2), which answers with one errno."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __getattr__(self, name: str) -> object:
        return getattr(lib, name)

    def uring_register(self, *_arguments: object) -> int:
        """Refuse."""
        return -self._number


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [
        (errno.EINVAL, UnsupportedError, "5.6"),  # what 5.4 and 5.5 say
        (errno.EPERM, RegisterError, "io_uring_register: Operation not permitted"),
    ],
)
def test_probe_says_why_the_kernel_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[Exception],
    words: str,
    descriptors: Callable[[], set[str]],
) -> None:
    """A kernel without REGISTER_PROBE is Unsupported, a refusal is a RegisterError; no leak."""
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(probe_module, "lib", _Refusing(number))
        with pytest.raises(expected, match=words):
            probe()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (Opcode.READ, True),
        (Opcode.WRITE, False),
        (Read, True),
        (Nop(), True),
        (SQE(Opcode.READ), True),
        (SQE(200), False),
        (SetupFlags.SQPOLL, True),
        (SetupFlags.SQPOLL | SetupFlags.CQSIZE, True),
        (SetupFlags.SQPOLL | SetupFlags.IOPOLL, False),
        (Features.NODROP, True),
        (Features.NODROP | Features.EXT_ARG, False),
    ],
)
def test_supports_is_true_only_of_what_is_all_there(what: Opcode, *, expected: bool) -> None:
    """`supports()` takes opcodes, operations, classes and flags, and wants all of what is asked."""
    assert PROBE.supports(what) is expected


@pytest.mark.parametrize(
    ("last", "opcode", "expected"),
    [
        (35, RegisterOpcode.REGISTER_QUERY, True),
        (35, RegisterOpcode.REGISTER_ZCRX_CTRL, False),
        (None, RegisterOpcode.REGISTER_PROBE, True),
        (None, RegisterOpcode.REGISTER_PERSONALITY, False),
    ],
)
def test_supports_knows_register_opcodes(
    last: int | None, opcode: RegisterOpcode, *, expected: bool
) -> None:
    """A register opcode is supported up to the last one; unless told, up to REGISTER_PROBE."""
    assert attrs.evolve(PROBE, last_register_opcode=last).supports(opcode) is expected


def test_probe_of_a_newer_kernel_tells_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 6.19 says of zero-copy receive and of a ring's memory is kept in records."""
    answers = {
        "OPCODES": (65, 38, 0, 1, 0xFF, 0x7F, 3),
        "ZCRX": (3, 1, 2, 1, 64, 128),
        "SCQ": (64, 4096),
    }
    for module in (probe_module, _kernel):
        monkeypatch.setattr(module, "query", lambda _, opcode, _answer: answers[opcode.name])
    found = probe()
    assert (found.last_register_opcode, found.query_count) == (37, 3)
    assert found.zcrx == ZcrxQuery(
        ZcrxRegisterFlags.IMPORT | ZcrxRegisterFlags.NODEV,
        ZcrxAreaFlags.DMABUF,
        2,
        ZcrxFeatures.RX_PAGE_SIZE,
        64,
        128,
    )
    assert found.scq == ScqQuery(64, 4096)


@pytest.mark.parametrize("what", [22, "READ", None, SQE, object()])
def test_supports_refuses_what_could_mean_anything(what: object) -> None:
    """A bare int, which could be an opcode or a flag, and what has no opcode are TypeErrors."""
    with pytest.raises(TypeError, match="supports"):
        PROBE.supports(cast("Opcode", what))


def test_probe_record_is_frozen() -> None:
    """A Probe cannot be changed."""
    with pytest.raises(AttributeError):
        PROBE.release = "6.0"  # type: ignore[misc]  # wrong on purpose
