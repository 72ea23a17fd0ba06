"""
What all operations share, so that one operation is its fields, where they go, and what it returns.

An operation is a frozen value. Its `_encode` pins the memory that it lends, with the functions of
`_memory`, and hands the SQE's fields to `_pack`; its docstring and `_result` say what the
completion means. Everything else is here, once.
"""

import errno
import operator
import struct
import sys
from collections.abc import Iterable
from typing import Any, ClassVar, Final, Literal, NoReturn, TypeVar, dataclass_transform

import attrs

from uring import _memory
from uring._checks import check_range
from uring._memory import BYTES, FixedBuffer, address_of, is_buffer, lend
from uring._values import value
from uring.flags import Opcode, SQEFlags
from uring.sqe import (
    AUTO,
    NO_FLAGS,
    UINT64_MAX,
    FileLike,
    Filename,
    Fixed,
    Queueable,
    Slot,
    descriptor,
    explain,
    file_field,
    record_pack,
)

_T = TypeVar("_T")


def describe(buffer: object) -> str:
    """A short repr of a buffer, which may be of any length."""
    if isinstance(buffer, FixedBuffer):
        return repr(buffer)
    try:
        return f"<{type(buffer).__name__} of {memoryview(buffer).nbytes} bytes>"  # type: ignore[arg-type]  # it may be anything
    except (TypeError, ValueError, BufferError):  # a wrong argument must still have a repr
        return f"<{type(buffer).__name__}>"


def lent() -> Any:
    """Declare a field that holds a buffer: it compares by identity, and its repr is short."""
    return attrs.field(eq=id, repr=describe)


def _as_tuple(buffers: Any) -> Any:
    """Take what an iterator gives, once; what is no sequence of buffers is refused at queue()."""
    if type(buffers) in {tuple, list}:
        return tuple(buffers)
    if isinstance(buffers, str) or not isinstance(buffers, Iterable) or is_buffer(buffers):
        return buffers
    return tuple(buffers)


def all_lent() -> Any:
    """Declare a field that holds a sequence of buffers."""
    return attrs.field(
        eq=id,
        converter=_as_tuple,
        repr=lambda buffers: f"<{type(buffers).__name__} of buffers>",
    )


def position(offset: Any) -> int:
    """``sqe->off`` for a file offset: -1 is the file's own position."""
    if not isinstance(offset, int):
        raise TypeError(f"offset must be an integer, not {offset!r}")
    exact: int = operator.index(offset)
    if exact < -1:
        raise ValueError(f"offset must be 0 or more, or -1 for the file's position; not {offset}")
    return UINT64_MAX if exact == -1 else exact


def stream_field(write_stream: object) -> int:
    """``sqe->write_stream``, the first byte of ``sqe->splice_fd_in``."""
    number = check_range("write_stream", write_stream, 0, 255)
    return number << 24 if sys.byteorder == "big" else number


_OLDEST: Final = (5, 6)
"""The oldest Linux that this package is for: see errors._missing."""

_CARE: Final = (
    *("_is_probed", "_is_sole", "_reaches_out", "_lends_to_ring"),
    *("_keeps_memory", "_makes_descriptor", "_takes_buffer"),
)
"""What of a class wants more than the shortest way, in being queued or in its completions."""


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field, lent, all_lent))
def operation(cls: type[_T]) -> type[_T]:
    """
    Make an operation class of its annotations: see `_values`.

    What is newer than the oldest kernel that this package is for is asked of the kernel when it is
    queued. That, and whatever else `_CARE` names, is kept off the shortest way there.
    """
    made: Any = cls
    opcode = vars(cls).get("opcode")
    if opcode is not None and tuple(map(int, opcode.since.split("."))) > _OLDEST:
        made._is_probed = True
    if any(getattr(cls, each, False) for each in _CARE):
        made._prepared = attrs.field(default=False, init=False, eq=False, repr=False)
        made.__annotations__ = {**made.__annotations__, "_prepared": Literal[False]}
    return value(cls)


_NO_OBJECT: Final = (int, Fixed, type(None))
"""What may stand for a file without being an object with `fileno()`."""


@operation
class Operation(Queueable):
    """
    One request to the kernel: an inert, immutable value, until a ring queues it.

    The same value may be queued any number of times, also while it is in flight. Each class says
    what its fields mean, what `CQE.res` is on success, and which kernel release has it.

    Args:
        user_data: the 64-bit number that its completions carry; None lets the ring draw one.
        flags: `SQEFlags`, such as ASYNC or CQE_SKIP_SUCCESS; `linked()` and its like add to them.
            Not BUFFER_SELECT, which follows from a `group`.
        personality: registered credentials to run under, 0..65535; 0 means the caller's own.
    """

    opcode: ClassVar[Opcode]
    __attrs_attrs__: ClassVar[tuple[Any, ...]]

    _prepared: tuple[bytes, object] | Literal[False] | None = attrs.field(
        default=None, init=False, eq=False, repr=False
    )
    user_data: int | None = attrs.field(default=None, kw_only=True)
    flags: SQEFlags = attrs.field(default=NO_FLAGS, kw_only=True)
    personality: int = attrs.field(default=0, kw_only=True)

    def __repr__(self) -> str:
        """Show the operation as it would be written: what is at its default is left out."""
        fields = [field for field in attrs.fields(type(self)) if field.init]
        own = [field for field in fields if not field.kw_only]
        options = [field for field in fields if field.kw_only]
        shown = []
        for field in (*own, *options):
            given = getattr(self, field.name)
            if (
                field.eq_key is None
                and field.default is not attrs.NOTHING
                and given == field.default
            ):
                continue
            text = field.repr(given) if callable(field.repr) else repr(given)
            shown.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _remember(self: Any, prepared: tuple[bytes, object]) -> None:
        """
        Keep the encoding of an operation that lends no memory and names no Python object.

        The number of an object with `fileno()` may be another one next time.
        """
        if prepared[1] is None and isinstance(getattr(self, "_fd", 0), _NO_OBJECT):
            self._prepared = prepared

    def _own_name(self, name: str, given: object) -> str:
        """What this operation calls a field of the record, if what it holds was given as it is."""
        fields = [field.name for field in attrs.fields(type(self)) if field.init]
        own = [field for field in fields if getattr(self, field) is given]
        return own[0] if len(own) == 1 else name

    def _pack(  # defaults by position: those of keyword-only arguments cost 10 ns each
        self: Any,
        fd: FileLike = 0,
        off: int = 0,
        addr: int = 0,
        len: int = 0,
        op_flags: int = 0,
        ioprio: int = 0,
        buf_index: int = 0,
        splice_fd_in: int = 0,
        addr3: int = 0,
        sqe_flags: int = 0,
    ) -> bytes:
        flags = self._flags
        if sqe_flags:
            flags = operator.index(flags) | sqe_flags
        if type(fd) is not int:
            fd, fixed = file_field(fd)
            if fixed:
                flags = operator.index(flags) | fixed
        try:
            record = record_pack(
                self.opcode,
                flags,
                ioprio,
                fd,
                off,
                addr,
                len,
                op_flags,
                0,
                buf_index,
                self._personality,
                splice_fd_in,
                addr3,
                0,
            )
        except struct.error:
            personality = self._personality
            fields = (off, addr, len, op_flags, 0, buf_index, personality, splice_fd_in, addr3)
            try:
                explain(self.opcode, flags, ioprio, fd, *fields, called=self._own_name)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self!r}: {error}") from None
            raise
        if flags is not NO_FLAGS and record[1] & SELECT and not sqe_flags & SELECT:
            refuse_selecting(self)
        return record


SELECT: Final = int(SQEFlags.BUFFER_SELECT)


def refuse_selecting(op: Operation) -> NoReturn:
    """
    Refuse BUFFER_SELECT, which makes another operation of one that has no group.

    The kernel would leave the operation's own buffer alone, and take one from the group whose
    number the record happens to have; nobody would give that back. Looked for in the record, and
    only when there are flags: there it is cheap.
    """
    raise ValueError(
        f"{type(op).__name__} has no group of provided buffers, so flags must not have"
        " BUFFER_SELECT: use an operation with a group, such as ReadSelect or RecvSelect"
    )


def ordinary(name: str, file: object) -> int:
    """A descriptor, where the kernel does not look for a registered file."""
    if isinstance(file, Fixed):
        raise TypeError(f"{name} must be a descriptor or have a fileno(): not {file!r}")
    return descriptor(file)  # type: ignore[arg-type]  # it says what is wrong


def held(*files: object) -> object:
    """
    What is to be remembered as pins of an operation that names these files in other fields than fd.

    None if all are numbers: an encoding with an object's `fileno()` in it must not be made once
    for all.
    """
    return None if all(isinstance(file, int) for file in files) else files


@operation
class MakesFile(Operation):
    """An operation that makes a descriptor, or a registered file when it is given a slot."""

    slot: Slot | None = attrs.field(default=None, kw_only=True)

    @property
    def _makes_descriptor(self) -> bool:  # type: ignore[override]  # of the class, for the others
        return self.slot is None

    @property
    def _is_sole(self) -> bool:  # type: ignore[override]  # the same
        # Under one number with another that makes a descriptor, nobody could tell which res is one.
        return self.slot is not None

    def _with_cloexec(self: Any, name: str, bit: int) -> int:
        """The flags in the field `name`, with CLOEXEC unless a registered file is made."""
        flags: int = check_range(name, getattr(self, name), 0, UINT64_MAX)
        return flags | bit if self.cloexec and self.slot is None else flags

    def _error_context(self, number: int) -> tuple[str, Filename]:
        note, filename = super()._error_context(number)
        if self.slot is not None and number == errno.ENFILE:
            note += ": no slot is free, or no files are registered"
        if self.slot is not None and number == errno.ENXIO:
            note += ": no files are registered, so there are no slots"
        return note, filename

    def _result(self, res: int, _memory: object, _flags: int) -> object:
        """Return the new descriptor, or the slot that was filled."""
        if self.slot is None:
            return res
        return Fixed(res) if self.slot is AUTO else self.slot


pack_lent: Final = struct.Struct("=BBHiQQII10xH20x").pack
"""The fields of an operation on one buffer, without those that are zero in all of them."""


def encode_lent(
    op: Any,
    opcode: int,
    buffer: Any,
    writable: bool,
    off: int,
    op_flags: int,
    ioprio: int = 0,
) -> tuple[bytes, object]:
    """Encode an operation on a file and one buffer, and pin that: a read, write, send or recv."""
    try:
        fd, flags = op._fd, op._flags
        if type(fd) is not int:
            fd, fixed = file_field(fd)
            if fixed:
                flags = operator.index(flags) | fixed
        pin = lend(BYTES, buffer, writable)
        record = pack_lent(
            opcode,
            flags,
            ioprio,
            fd,
            off,
            address_of(pin),
            len(pin),
            op_flags,
            op._personality,
        )
    except (struct.error, TypeError, ValueError, BufferError):  # what is wrong is told apart below
        pin, address, length = (_memory.writable if writable else _memory.readable)(buffer)
        fields = {"off": off, "addr": address, "len": length, "op_flags": op_flags}
        return op._pack(op._fd, **fields, ioprio=ioprio), pin
    if flags is not NO_FLAGS and record[1] & SELECT:
        refuse_selecting(op)
    return record, pin
