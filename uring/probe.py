"""
What this kernel has: asked of the kernel itself, never guessed from its release.

Opcodes come from REGISTER_PROBE, features from the setup of a ring, all else from REGISTER_QUERY;
before 6.18 setup flags come from one trial ring per flag, and the rest stays unknown. `probe()`
remembers nothing between calls: a process may be put under a seccomp filter at any time. Only the
opcodes are remembered, for rings to look at: the kernel that runs does not change.
"""

import errno
import os
import struct
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from uring import _memory
from uring._ffi import lib
from uring._kernel import query, query_opcodes, try_setup_flags
from uring._setup import setup
from uring.errors import UnsupportedError, UringError, call_error
from uring.flags import (
    EnterFlags,
    Features,
    Opcode,
    ProbeFlags,
    QueryOpcode,
    RegisterOpcode,
    SetupFlags,
    SQEFlags,
    ZcrxAreaFlags,
    ZcrxFeatures,
    ZcrxRegisterFlags,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uring._uring import CData

_PROBE_SIZE: Final = 16  # struct io_uring_probe, before its array
_PROBE_OP: Final = struct.Struct("=BxH4x")  # struct io_uring_probe_op
_PROBE_OPS_MAX: Final = 256  # an opcode is one byte; the kernel refuses to fill in more

_QUERY_ZCRX: Final = struct.Struct("=QQIIII8x")  # struct io_uring_query_zcrx
_QUERY_SCQ: Final = struct.Struct("=QQ")  # struct io_uring_query_scq


class HasOpcode(Protocol):
    """An operation or its class; an `SQE`."""

    @property
    def opcode(self) -> int:
        """The opcode that the kernel is asked for."""


@attrs.frozen
class ZcrxQuery:
    """
    What the kernel says of zero-copy receive.

    Kernel: 6.19. Source: struct io_uring_query_zcrx in linux/io_uring/query.h.
    """

    register_flags: ZcrxRegisterFlags
    area_flags: ZcrxAreaFlags
    control_count: int
    """How many commands REGISTER_ZCRX_CTRL has."""
    features: ZcrxFeatures
    rq_header_size: int
    """Bytes before the entries of a refill ring."""
    rq_header_alignment: int


@attrs.frozen
class ScqQuery:
    """
    What the kernel says of the memory of SQ and CQ.

    Kernel: 6.19. Source: struct io_uring_query_scq in linux/io_uring/query.h.
    """

    header_size: int
    header_alignment: int


@attrs.frozen
class Probe:
    """
    What one kernel has, as `probe()` found it.

    Only what this version of `uring` knows by name is listed as an opcode. A flag or a feature that
    it does not know is kept as a bit.
    """

    release: str
    """The kernel's release as uname(2) has it, to show to people."""

    opcodes: frozenset[Opcode] = attrs.field(repr=lambda opcodes: f"<{len(opcodes)} opcodes>")
    """The opcodes that the kernel was built with."""

    features: Features
    """What the kernel says that it can do."""

    setup_flags: SetupFlags
    """The setup flags that the kernel knows, those that `Ring` does not drive included."""

    last_register_opcode: int | None
    """The highest opcode of io_uring_register(2); None before 6.18, where nobody tells."""

    opcode_count: int | None = None
    """How many opcodes the kernel has numbers for; None before 6.18, as for all that follow."""

    enter_flags: EnterFlags | None = None
    """The flags of io_uring_enter(2) that the kernel knows."""

    sqe_flags: SQEFlags | None = None
    """The flags of an SQE that the kernel knows."""

    query_count: int | None = None
    """How many of `QueryOpcode` the kernel answers."""

    zcrx: ZcrxQuery | None = None
    """What it says of zero-copy receive; None before 6.19."""

    scq: ScqQuery | None = None
    """What it says of the memory of a ring; None before 6.19."""

    def supports(self, what: Opcode | RegisterOpcode | SetupFlags | Features | HasOpcode) -> bool:
        """
        Return whether the kernel has it: an opcode, an operation or its class, flags, features.

        Of a `RegisterOpcode` it says whether the kernel has the number; before 6.18 nobody tells,
        and what came after REGISTER_PROBE, by which this was found, counts as missing. Of an
        operation only the opcode is looked at. A mode that came later under the same number
        (the multishot forms, a flag) is not told apart: its docstring names its kernel release.

        Args:
            what: of flags and features that are combined, the kernel must have all.

        Raises:
            TypeError: it is none of these, such as a bare int, which could mean any of them.
        """
        if isinstance(what, SetupFlags):
            return what & self.setup_flags == what
        if isinstance(what, Features):
            return what & self.features == what
        if isinstance(what, RegisterOpcode):
            last = self.last_register_opcode
            return what <= (RegisterOpcode.REGISTER_PROBE if last is None else last)
        opcode = what if isinstance(what, Opcode) else getattr(what, "opcode", None)
        if not isinstance(opcode, int):
            raise TypeError(
                "supports() takes an Opcode, an operation or its class, a RegisterOpcode,"
                f" SetupFlags, or Features; not {what!r}"
            )
        return opcode in self.opcodes


def probe() -> Probe:
    """
    Ask the kernel what it has. Makes a small ring for it and closes it again.

    The answer is about the kernel, and about this moment: limits, a security module or the file at
    hand may still refuse what the kernel has.

    Raises:
        SetupError: rings are not to be had here -> the message says why, and what to do.
        UnsupportedError: the kernel has rings and cannot be asked -> it is older than 5.6.
        RegisterError: something, such as a seccomp filter, forbids io_uring_register(2).

    Kernel: 5.6; with REGISTER_QUERY 6.18. liburing: io_uring_get_probe(3).
    """
    ring, _inbox, params, _end = setup(
        1, SetupFlags(0), cq_entries=None, sq_thread_cpu=None, sq_thread_idle_ms=None, wq_fd=None
    )
    try:
        opcodes = frozenset(_probe_opcodes(ring))
        queried = query_opcodes(ring)
        setup_flags = queried[3] if queried else try_setup_flags(ring)
        zcrx = query(ring, QueryOpcode.ZCRX, _QUERY_ZCRX) if queried else None
        scq = query(ring, QueryOpcode.SCQ, _QUERY_SCQ) if queried else None
    finally:
        lib.uring_exit(ring)
    return Probe(
        release=os.uname().release,
        opcodes=opcodes,
        features=params.features,
        setup_flags=SetupFlags(setup_flags),
        last_register_opcode=queried[1] - 1 if queried else None,
        opcode_count=queried[0] if queried else None,
        enter_flags=EnterFlags(queried[4]) if queried else None,
        sqe_flags=SQEFlags(queried[5]) if queried else None,
        query_count=queried[6] if queried else None,
        zcrx=_zcrx_query(*zcrx) if zcrx else None,
        scq=ScqQuery(*scq) if scq else None,
    )


def last_register_opcode(ring: "CData") -> int | None:
    """The highest opcode of io_uring_register(2), asked through an open ring; None as in Probe."""
    queried = query_opcodes(ring)
    return queried[1] - 1 if queried else None


def _zcrx_query(
    register_flags: int, area_flags: int, control_count: int, features: int, *header: int
) -> ZcrxQuery:
    return ZcrxQuery(
        ZcrxRegisterFlags(register_flags),
        ZcrxAreaFlags(area_flags),
        control_count,
        ZcrxFeatures(features),
        *header,
    )


_remembered: list[frozenset[Opcode]] = []


def known_opcodes(ring: "CData") -> frozenset[Opcode] | None:
    """The opcodes of the running kernel; None where one cannot ask."""
    if not _remembered:
        try:
            _remembered.append(frozenset(_probe_opcodes(ring)))
        except UringError:  # a restricted ring, a seccomp filter: the completion will tell
            return None
    return _remembered[0]


def _probe_opcodes(ring: "CData") -> "Iterator[Opcode]":
    answer = bytearray(_PROBE_SIZE + _PROBE_OPS_MAX * _PROBE_OP.size)  # the kernel wants zeroes
    pin, _, _ = _memory.writable(answer)
    result = lib.uring_register(ring, RegisterOpcode.REGISTER_PROBE, pin, _PROBE_OPS_MAX)
    if result == -errno.EINVAL:
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            "this kernel cannot say which opcodes it has: REGISTER_PROBE needs Linux"
            f" {RegisterOpcode.REGISTER_PROBE.since}",
        )
    if result < 0:
        raise call_error("io_uring_register", -result, detail=RegisterOpcode.REGISTER_PROBE.name)
    known = {int(opcode) for opcode in Opcode}
    count = answer[1]  # ops_len: how many the kernel filled in
    for number, flags in _PROBE_OP.iter_unpack(answer[_PROBE_SIZE:][: count * _PROBE_OP.size]):
        if flags & ProbeFlags.SUPPORTED and number in known:
            yield Opcode(number)
