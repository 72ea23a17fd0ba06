"""What a restricted ring may do: whoever gets its descriptor can do no more."""

import struct
from typing import TYPE_CHECKING, Final, Self

import attrs

from uring import _memory
from uring._checks import check_range
from uring.flags import Opcode, RegisterOpcode, RestrictionOpcode, SQEFlags
from uring.sqe import Queueable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uring._uring import CData

_RESTRICTION: Final = struct.Struct("=HB13x")  # struct io_uring_restriction


@attrs.frozen
class Restriction:
    """
    One thing that a restricted ring allows or requires; made by the class methods.

    Kernel: 5.10. liburing: io_uring_register_restrictions(3).
    """

    kind: RestrictionOpcode
    value: int
    """The opcode, or the flags."""

    @classmethod
    def allow_opcode(cls, opcode: Opcode | type[Queueable] | Queueable) -> Self:
        """Allow an opcode, named by itself or by an operation that has it."""
        number = opcode if isinstance(opcode, Opcode) else getattr(opcode, "opcode", None)
        if not isinstance(number, int):  # the class SQE has a descriptor there
            raise TypeError(f"an Opcode, an operation or its class, not {opcode!r}")
        return cls(RestrictionOpcode.SQE_OP, check_range("opcode", int(number), 0, 255))

    @classmethod
    def allow_opcodes(cls, *opcodes: Opcode | type[Queueable] | Queueable) -> tuple[Self, ...]:
        """Allow several opcodes: a restriction for each."""
        return tuple(map(cls.allow_opcode, opcodes))

    @classmethod
    def allow_register(cls, opcode: RegisterOpcode) -> Self:
        """Allow one kind of io_uring_register(2)."""
        if not isinstance(opcode, RegisterOpcode):
            raise TypeError(f"a RegisterOpcode, not {opcode!r}")
        return cls(RestrictionOpcode.REGISTER_OP, int(opcode))

    @classmethod
    def sqe_flags_allowed(cls, flags: SQEFlags) -> Self:
        """Allow operations to have these flags; without this, those that are required only."""
        return cls(RestrictionOpcode.SQE_FLAGS_ALLOWED, _checked(flags))

    @classmethod
    def sqe_flags_required(cls, flags: SQEFlags) -> Self:
        """Refuse operations that lack one of these flags."""
        return cls(RestrictionOpcode.SQE_FLAGS_REQUIRED, _checked(flags))


def _checked(flags: SQEFlags) -> int:
    if not isinstance(flags, SQEFlags):
        raise TypeError(f"flags must be SQEFlags, not {flags!r}")
    return check_range("flags", int(flags), 0, 255)


def restrictions_argument(
    restrictions: "Iterable[Restriction | Iterable[Restriction]]",
) -> "tuple[CData, int]":
    """Encode an array of struct io_uring_restriction: (the array, its length)."""
    flat: list[Restriction] = []
    for each in restrictions:
        flat += [each] if isinstance(each, Restriction) else each
    for restriction in flat:
        if not isinstance(restriction, Restriction):
            raise TypeError(f"restrictions are Restriction.allow_...(), not {restriction!r}")
    if not flat:
        raise ValueError("without a restriction the ring could do nothing: give at least one")
    records = b"".join(_RESTRICTION.pack(each.kind, each.value) for each in flat)
    pin, _, _ = _memory.readable(records)
    return pin, len(flat)
