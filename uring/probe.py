"""
What this kernel has: asked of the kernel itself, never guessed from its release.

Opcodes come from REGISTER_PROBE, features from the setup of a ring, setup flags from REGISTER_QUERY
or, before 6.18, from one trial ring per flag. Nothing is remembered between calls: a process may be
put under a seccomp filter at any time.
"""

import errno
import os
import struct
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from uring import _memory
from uring._ffi import lib
from uring._kernel import query_opcodes, try_setup_flags
from uring._setup import setup
from uring.errors import UnsupportedError, call_error
from uring.flags import (
    Features,
    Opcode,
    ProbeFlags,
    RegisterOpcode,
    SetupFlags,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uring._uring import CData

_PROBE_SIZE: Final = 16  # struct io_uring_probe, before its array
_PROBE_OP: Final = struct.Struct("=BxH4x")  # struct io_uring_probe_op
_PROBE_OPS_MAX: Final = 256  # an opcode is one byte; the kernel refuses to fill in more


class HasOpcode(Protocol):
    """An operation or its class; an `SQE`."""

    @property
    def opcode(self) -> int:
        """The opcode that the kernel is asked for."""


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

    def supports(self, what: Opcode | SetupFlags | Features | HasOpcode) -> bool:
        """
        Return whether the kernel has it: an opcode, an operation or its class, flags, features.

        Of an operation only the opcode is looked at. A mode that came later under the same number
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
        opcode = what if isinstance(what, Opcode) else getattr(what, "opcode", None)
        if not isinstance(opcode, int):
            raise TypeError(
                "supports() takes an Opcode, an operation or its class, SetupFlags, or Features;"
                f" not {what!r}"
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

    Kernel: 5.6. liburing: io_uring_get_probe(3).
    """
    ring, _inbox, params = setup(
        1, SetupFlags(0), cq_entries=None, sq_thread_cpu=None, sq_thread_idle_ms=None, wq_fd=None
    )
    try:
        opcodes = frozenset(_probe_opcodes(ring))
        setup_flags, last_register_opcode = query_opcodes(ring) or (try_setup_flags(ring), None)
    finally:
        lib.uring_exit(ring)
    return Probe(
        release=os.uname().release,
        opcodes=opcodes,
        features=params.features,
        setup_flags=setup_flags,
        last_register_opcode=last_register_opcode,
    )


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
