"""
The raw submission queue entry: 64 bytes, as the kernel reads them.

`record_pack` is the one place that knows the layout. `Queueable` is what a ring can queue: the
typed operations, and `SQE` for what has no class. `Fixed` names a registered file where a
descriptor is expected; `file_field` turns whatever names a file into what the record holds.
"""

import operator
import struct
import sys
import traceback
from collections.abc import Callable, Iterable
from enum import Enum
from typing import (
    ClassVar,
    Final,
    Literal,
    Protocol,
    Self,
    SupportsIndex,
    TypeVar,
    runtime_checkable,
)

import attrs

from uring._checks import check_range
from uring.flags import (
    FILE_INDEX_ALLOC,
    AcceptFlags,
    CQEFlags,
    Opcode,
    PollFlags,
    SendRecvFlags,
    SQEFlags,
    TimeoutFlags,
    UringCmdFlags,
)

SQE_SIZE: Final = 64
UINT32_MAX: Final = 2**32 - 1
UINT64_MAX: Final = 2**64 - 1
NO_FLAGS: Final = SQEFlags(0)

_RECORD: Final = struct.Struct("=BBHiQQIIQHHIQQ")
record_pack: Final = _RECORD.pack
"""Encode the fields in the order of `_FIELDS`; struct.error when one does not fit."""

_FIELDS: Final = (
    ("opcode", 0, 2**8 - 1),
    ("flags", 0, 2**8 - 1),
    ("ioprio", 0, 2**16 - 1),
    ("fd", -(2**31), 2**31 - 1),
    ("off", 0, UINT64_MAX),
    ("addr", 0, UINT64_MAX),
    ("len", 0, UINT32_MAX),
    ("op_flags", 0, UINT32_MAX),
    ("user_data", 0, UINT64_MAX),
    ("buf_index", 0, 2**16 - 1),
    ("personality", 0, 2**16 - 1),
    ("splice_fd_in", 0, UINT32_MAX),
    ("addr3", 0, UINT64_MAX),
    ("attr_type_mask", 0, UINT64_MAX),
)

LINKED: Final = int(SQEFlags.IO_LINK | SQEFlags.IO_HARDLINK)
_DRAIN: Final = int(SQEFlags.IO_DRAIN)
_FIXED_FILE: Final = int(SQEFlags.FIXED_FILE)


@runtime_checkable
class HasFileno(Protocol):
    """A file, a socket, a selector: anything with a `fileno()` method."""

    def fileno(self) -> int:
        """The descriptor."""


@attrs.frozen
class Fixed:
    """
    A registered file, by its index in the ring's table; the kernel calls it a direct descriptor.

    Stands wherever an operation takes `fd`. The index counts from 0; one that is empty or out of
    range completes with EBADF.

    Kernel: 5.1. liburing: io_uring_register_files(3).
    """

    index: int = attrs.field()

    @index.validator
    def _check(self, _attribute: object, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"Fixed() takes an integer index, not {value!r}")
        if not 0 <= operator.index(value) < 2**31:
            raise ValueError(f"Fixed() takes an index from 0 to 2**31 - 1, not {value}")


FileLike = int | HasFileno | Fixed


class Auto(Enum):
    """The type of `AUTO`, of which there is one."""

    AUTO = "AUTO"

    def __repr__(self) -> str:
        return self.name


AUTO: Final = Auto.AUTO
"""
Instead of `Fixed(index)` where an operation makes a registered file: the kernel picks a free slot.

Its result is then the slot. ENFILE when none is free. Kernel: 5.19.
"""

Slot = Fixed | Auto


def file_index(slot: Slot | None) -> int:
    """``sqe->file_index``: the slot plus one, or 0 for an ordinary descriptor."""
    if slot is None:
        return 0
    if slot is AUTO:
        return FILE_INDEX_ALLOC
    if not isinstance(slot, Fixed):
        raise TypeError(f"a slot is Fixed(index) or AUTO, not {slot!r}")
    return operator.index(slot.index) + 1


def check_message_flags(target_flags: int) -> int:
    """
    Return flags that a message gives to a completion.

    SKIP and F_32 say how long a CQE is; with them the target would misread all that follow.
    """
    exact = check_range("target_flags", target_flags, 0, UINT32_MAX)
    if exact & (CQEFlags.SKIP | CQEFlags.F_32):
        raise ValueError("target_flags must not have SKIP or F_32: the kernel alone sets them")
    return exact


class HasBgid(Protocol):
    """A group of provided buffers, as it is registered."""

    @property
    def bgid(self) -> int:
        """The buffer group id."""


Group = HasBgid | int


def buffer_group(group: Group) -> int:
    """``sqe->buf_group``: the id of a group of provided buffers."""
    if type(group) is int:
        return group
    bgid = getattr(group, "bgid", None)
    if not isinstance(bgid, int) or isinstance(bgid, bool):
        raise TypeError(f"a buffer group is a BufferRing or the number of one, not {group!r}")
    return bgid


def file_field(fd: FileLike) -> tuple[int, int]:
    """The number for ``sqe->fd`` and the SQE flag that goes with it."""
    if isinstance(fd, Fixed):
        return fd.index, _FIXED_FILE
    return descriptor(fd), 0


def descriptor(fd: int | HasFileno) -> int:
    """The descriptor behind an int or an object with `fileno()`; no range check for an int."""
    # Not isinstance(fd, HasFileno): looking at a protocol takes 15 us.
    if type(fd) is int:
        return fd
    fileno = getattr(fd, "fileno", None)
    if fileno is None:
        if not isinstance(fd, bool) and isinstance(fd, SupportsIndex):
            return operator.index(fd)
        what = repr(fd) if isinstance(fd, bool) else type(fd).__name__
        raise TypeError(f"a file is an integer, has a fileno(), or is Fixed(index); not {what}")
    number = fileno()
    if not isinstance(number, int):
        raise TypeError(f"fileno() of {fd!r} returned {number!r}, not an integer")
    if number < 0:
        raise ValueError(f"{fd!r} is closed: its fileno() is {number}")
    return number


def explain(
    *fields: object, called: Callable[[str, object], str] = lambda name, _value: name
) -> None:
    """
    Name the field that `record_pack` refused, all of them being given in its order.

    `called` tells what who gave it calls a field, from its name here and its value.
    """
    for (name, low, high), value in zip(_FIELDS, fields, strict=True):
        if not hasattr(value, "__index__"):
            raise TypeError(f"{called(name, value)} must be an integer, not {value!r}") from None
        if not low <= operator.index(value) <= high:
            raise ValueError(f"{called(name, value)} must be in {low}..{high}, not {value!r}")


_IOPRIO, _LEN, _OP_FLAGS = slice(2, 4), slice(24, 28), slice(28, 32)
_MULTISHOT: Final = {
    int(Opcode.POLL_ADD): (_LEN, PollFlags.ADD_MULTI),
    int(Opcode.TIMEOUT): (_OP_FLAGS, TimeoutFlags.MULTISHOT),
    int(Opcode.ACCEPT): (_IOPRIO, AcceptFlags.MULTISHOT),
    int(Opcode.SEND): (_IOPRIO, SendRecvFlags.RECVSEND_BUNDLE),
    int(Opcode.RECV): (_IOPRIO, SendRecvFlags.RECV_MULTISHOT),
    int(Opcode.RECVMSG): (_IOPRIO, SendRecvFlags.RECV_MULTISHOT),
    int(Opcode.RECV_ZC): (_IOPRIO, SendRecvFlags.RECV_MULTISHOT),
    int(Opcode.URING_CMD): (_OP_FLAGS, UringCmdFlags.MULTISHOT),
    int(Opcode.URING_CMD128): (_OP_FLAGS, UringCmdFlags.MULTISHOT),
}
"""Where an opcode has its multishot flag, and which one that is."""


def is_multishot(record: bytes) -> bool:
    """Whether an encoded operation may post any number of completions."""
    if record[0] == Opcode.READ_MULTISHOT:
        return True
    field, flag = _MULTISHOT.get(record[0], (_LEN, 0))
    return bool(int.from_bytes(record[field], sys.byteorder) & flag)


def is_linked(record: bytes) -> bool:
    """Whether the operation behind an encoded one belongs to the same chain."""
    return bool(record[1] & LINKED)


def is_drained(*records: bytes) -> bool:
    """Whether one of these encoded operations starts only when all before it have completed."""
    flags = 0
    for record in records:
        flags |= record[1]
    return flags & _DRAIN != 0


Filename = str | bytes | tuple[str | bytes, str | bytes] | None
"""What an error names: a path, two of them, or none."""


def encoded(op: "Queueable") -> tuple[bytes, object]:
    """
    What `_encode` gives.

    When it fails, no frame of the traceback goes on holding a pin that it made before: the
    collector could crash on it, see _memory._steady.
    """
    try:
        return op._encode()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


class Queueable:
    """
    What a ring can queue. Not for use by itself: see `Operation` and `SQE`.

    `_encode` gives the 64 bytes (with user_data 0: the ring fills it in) and whatever must stay
    alive until the terminal completion. The rest says what a completion means. A class whose
    `_prepared` is False may give 128 bytes, for a ring with SQE128.
    """

    __slots__ = ()

    flags: SQEFlags
    user_data: int | None
    _flags: SQEFlags
    """The same, where `_prepared` is not False: see _values."""
    _prepared: tuple[bytes, object] | Literal[False] | None
    """
    What `_encode` gives, once it is known that it would be the same each time: see `_remember`.
    None when it may not be; False when, besides, a completion of this kind needs care.
    """

    _keeps_memory: ClassVar[bool] = False
    """Whether `_result` reads what the kernel wrote, so the pins are its memory and are kept."""

    _makes_descriptor: ClassVar[bool] = False
    """Whether a result >= 0 is a new descriptor of this process, which must not be lost."""

    _notifies: ClassVar[bool] = False
    """Whether it completes twice, the second time with a notification: a zero-copy send."""

    _is_multishot: ClassVar[bool] = False
    """Whether it may post any number of completions though no flag in its record says so."""

    _ordinary: ClassVar[frozenset[int]] = frozenset()
    """Errnos that are an ordinary outcome of this operation and not an error."""

    def _encode(self) -> tuple[bytes, object]:
        raise TypeError(f"{type(self).__name__} is a base class: queue one of its subclasses")

    def _remember(self, _prepared: tuple[bytes, object]) -> None:
        """Keep what `_encode` gave, if the next call would give the same."""

    _is_sole: ClassVar[bool] = False
    """Whether it must not share its user_data: only its own memory can explain its completions."""

    _is_probed: ClassVar[bool] = False
    """Whether the kernel must be asked for its opcode before it is queued."""

    _reaches_out: ClassVar[bool] = False
    """Whether more than its own completion must be seen to: one of the next three says what."""

    def _message(self) -> "tuple[int | HasFileno, int] | None":
        """The ring and the user_data of the CQE that it posts there, if it posts one."""
        return None

    def _renaming(self) -> tuple[int, int] | None:
        """The user_data that an operation in flight has, and the one that it will have."""
        return None

    _lends_to_ring: ClassVar[bool] = False
    """Whether the kernel keeps using its memory after its completion, until the ring is closed."""

    _ends_with_zero: ClassVar[bool] = False
    """Whether a result of 0 means that no more will come: the end of a file, or of a stream."""

    _takes_buffer: ClassVar[bool] = False
    """Whether the kernel picks its buffer from a group, which is then in the field `group`."""

    _sends_buffer: ClassVar[bool] = False
    """Whether that buffer is one to send, and not one to be filled."""

    _takes_several: ClassVar[bool] = False
    """Whether one completion tells of several buffers, but names only the first of them."""

    _is_gradual: ClassVar[bool] = True
    """Whether it uses up just as much of an incremental buffer as it tells."""

    _waits_for_data: ClassVar[bool] = False
    """Whether that is so even where a worker of the kernel runs it: no data, no buffer."""

    def _result(self, res: int, _memory: object, _flags: int) -> object:
        return res

    _reads_big_cqe: ClassVar[bool] = False
    """Whether `_big_result` says what the completion means, and not `_result`."""

    def _big_result(self, res: int, _flags: int, _words: tuple[int, int] | None) -> object:
        return res

    def _descriptors(self, res: int, _memory: object, _flags: int) -> Iterable[int]:
        """The new descriptors of this process that a result >= 0 stands for."""
        return (res,) if self._makes_descriptor else ()

    def _error_context(self, _number: int) -> tuple[str, Filename]:
        return f"in {self!r}", None

    def sqe(self, user_data: int = 0) -> "SQE":
        """
        Encode the operation as the raw record, for reading and for tests.

        Of a record of 128 bytes, the fields of its first 64. Addresses in it are those of memory
        that may be gone by the time this returns: queue the operation itself, not this.
        """
        return SQE.decode(encoded(self)[0][:SQE_SIZE], user_data)

    def linked(self) -> Self:
        """Return a copy with IOSQE_IO_LINK: the next one starts when this one has succeeded."""
        return self._with(SQEFlags.IO_LINK)

    def hard_linked(self) -> Self:
        """Return a copy with IOSQE_IO_HARDLINK: the next one starts when this one has ended."""
        return self._with(SQEFlags.IO_HARDLINK)

    def drained(self) -> Self:
        """
        Return a copy with IOSQE_IO_DRAIN: starts when all submitted before it has ended.

        A ring that was given one refuses zero-copy sends from then on, `RecvBundle`, and what takes
        incremental buffers but `RecvMultishot` and `RecvmsgMultishot`: Linux 6.18 would not do them
        right.
        """
        return self._with(SQEFlags.IO_DRAIN)

    def _with(self, flag: SQEFlags) -> Self:
        return attrs.evolve(self, flags=SQEFlags(self.flags) | flag)  # type: ignore[misc]  # each subclass is attrs


_QueueableT = TypeVar("_QueueableT", bound=Queueable)


@attrs.frozen(slots=False)
class SQE(Queueable):
    """
    One submission queue entry as the kernel reads it, field by field.

    `ring.queue(SQE(...))` is the escape hatch for what has no class yet. It is outside the safety
    promise: memory that `addr` points to is yours to keep alive until the terminal completion, and
    its `user_data` is passed on as it is; that of a zero-copy send must not be shared.

    Source: struct io_uring_sqe in linux/io_uring.h.
    """

    opcode: int
    flags: SQEFlags = NO_FLAGS
    ioprio: int = 0
    fd: int = 0
    off: int = 0
    addr: int = 0
    len: int = 0
    op_flags: int = 0
    user_data: int = 0
    buf_index: int = 0
    personality: int = 0
    splice_fd_in: int = 0
    addr3: int = 0
    attr_type_mask: int = 0

    _prepared = False

    @property
    def _notifies(self) -> bool:  # type: ignore[override]  # of the class, for the others
        return self.opcode in {Opcode.SEND_ZC, Opcode.SENDMSG_ZC}

    @property
    def _is_sole(self) -> bool:  # type: ignore[override]  # the same
        return self._notifies  # or its notification might be taken for that of a `SendZc`

    def encode(self) -> bytes:
        """
        Encode the 64 bytes, the `user_data` included.

        Raises:
            TypeError, ValueError: a field is no integer, or does not fit -> the message says which.
        """
        fields = attrs.astuple(self, recurse=False)
        fields = (*fields[:4], UINT64_MAX if self.off == -1 else self.off, *fields[5:])
        try:
            return record_pack(*fields)
        except struct.error:
            explain(*fields)
            raise

    @classmethod
    def decode(cls, record: bytes, user_data: int | None = None) -> Self:
        """Read the record back; `user_data`, when given, replaces the one in it."""
        opcode, flags, *rest = _RECORD.unpack(record)
        if user_data is not None:
            rest[6] = user_data
        return cls(opcode, SQEFlags(flags), *rest)

    def _encode(self) -> tuple[bytes, object]:
        return self.encode(), None


def link(*operations: _QueueableT) -> tuple[_QueueableT, ...]:
    """
    Make a chain: each operation starts when the one before it has succeeded.

    All but the last get IOSQE_IO_LINK. The first that fails, or reads or writes less than asked,
    ends the chain: those behind it complete with ECANCELED. Queue the result with
    `Ring.queue_all()`, which never splits it.

    Kernel: 5.3. Source: io_uring_enter(2), IOSQE_IO_LINK.
    """
    return (*(operation.linked() for operation in operations[:-1]), *operations[-1:])


def hardlink(*operations: _QueueableT) -> tuple[_QueueableT, ...]:
    """
    Make a chain: each operation starts when the one before it has ended, well or not.

    All but the last get IOSQE_IO_HARDLINK. Queue the result with `Ring.queue_all()`.

    Kernel: 5.5. Source: io_uring_enter(2), IOSQE_IO_HARDLINK.
    """
    return (*(operation.hard_linked() for operation in operations[:-1]), *operations[-1:])
