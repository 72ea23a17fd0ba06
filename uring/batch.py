"""
Prepared batches: operations encoded and pinned once, to be run any number of times.

`Batch` is made of operations. `ReadMany` and `WriteMany` are batches of one kind that are made of
columns, without an object for each part; so is `StatxMany`, in statx.py. What running one means is
`Ring.run()`'s business.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, overload

from uring import _columns, _memory
from uring._order import check_drains, may_notify, notifies
from uring.completions import EMPTY, Answer, Completions
from uring.flags import SQEFlags
from uring.operations import Read, Write
from uring.sqe import (
    LINKED,
    NO_FLAGS,
    SQE,
    SQE_SIZE,
    UINT64_MAX,
    FileLike,
    Fixed,
    HasFileno,
    Queueable,
    encoded,
    is_drained,
    is_linked,
    is_multishot,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from uring._uring import CData

Subjects = Sequence[Queueable | Answer]

_SKIP: Final = int(SQEFlags.CQE_SKIP_SUCCESS)
_FIXED_FILE: Final = int(SQEFlags.FIXED_FILE)


class _Pins(list[Any]):
    """
    One item: the pins of a batch. Dropped before the collector clears what they are of.

    See _memory._steady. No Python runs for that, so that no Ctrl-C is lost in it. A run holds the
    item, not this: its memory stays until the ring lets go of it.
    """

    __slots__ = ()
    __del__ = list.clear


class Batch:
    """
    Operations that are encoded once and run with `Ring.run()` any number of times.

    Immutable. A chain, as `link()` makes one, stays whole; a link on the last operation is left
    out, for nothing of the batch follows it. One batch may be run on several rings
    and by several threads at once; what it reads into is then theirs to sort out. The descriptor
    of an object with `fileno()` is asked for now: keep the object open as long as the batch is run.

    An operation without a `user_data` gets a number of the ring's own in each run, and so does an
    `SQE` whose user_data is 0.

    Args:
        operations: operations and SQEs, in order.

    Lifetime: every buffer is pinned as long as the batch exists, or a run of it is in flight;
        resizing one raises BufferError. `del batch` lets them go.

    Raises:
        TypeError: something is no operation, or cannot be encoded -> the message says which.
        ValueError: the same; or one is multishot or has CQE_SKIP_SUCCESS, and so has not exactly
            one result; or one has an SQE of 128 bytes; or two were given the same user_data.

    Kernel: 5.4; the operations may need more. Source: io_uring_enter(2).
    """

    __slots__ = (
        "__weakref__",
        "_chosen",
        "_count",
        "_first_pins",
        "_fresh",
        "_has_drained",
        "_longest_chain",
        "_notifies",
        "_ops",
        "_pins",
        "_runs",
        "_sqes",
    )

    _completions: ClassVar[type[Completions]] = Completions
    """What a run gives."""
    _nothing: ClassVar[Completions] = EMPTY
    """What a run of no operations gives."""
    _ops: Sequence[Queueable]
    _count: int
    _sqes: "CData"
    _pins: _Pins
    _fresh: Sequence[int]
    """The operations whose memory the kernel writes for their result: each run has its own."""
    _first_pins: list[list[object]]
    """The pins of those as they were encoded here, until one run has taken them."""
    _chosen: dict[int, int]
    """The numbers that operations were given: user_data -> index."""
    _longest_chain: int
    _has_drained: bool
    """Whether any operation has IO_DRAIN."""
    _notifies: bool
    """Whether any is a zero-copy send."""
    _runs: list[Any]
    """Runs that have ended, whose memory the next one takes: see _running."""

    def __init__(self, operations: Iterable[Queueable]) -> None:
        self._check_new()
        if isinstance(operations, Queueable | str | bytes) or not isinstance(operations, Iterable):
            raise TypeError(
                f"a batch is made of a sequence of operations, not one {type(operations).__name__}:"
                " use [operation]"
            )
        ops = tuple(operations)
        records, pins, fresh, first_pins = [], [], [], []
        for index, op in enumerate(ops):
            record, pin = _encode(index, op)
            records.append(record)
            pins.append(pin)
            if pin is not None and op._keeps_memory:
                fresh.append(index)
                first_pins.append(pin)
        check_drains(ops, records)
        if records and is_linked(records[-1]):  # else to whatever is submitted behind it
            last = records[-1]
            records[-1] = bytes([last[0], last[1] & ~LINKED]) + last[2:]
        self._fresh = fresh
        self._first_pins = _Pins([first_pins])
        self._chosen = _chosen(ops)
        self._longest_chain = _longest_chain(records)
        sqes, _ = _memory.pinned(b"".join(records), write=False)
        self._hold(ops, sqes, pins)
        self._notifies = may_notify(ops) and any(map(notifies, ops))

    def _hold(self, ops: Sequence[Queueable], sqes: "CData", pins: object) -> None:
        self._ops = ops
        self._count = len(ops)
        self._pins = _Pins([pins])
        self._runs = []
        flags = {*_memory.bytes_of(sqes)[1::SQE_SIZE]}
        self._has_drained = is_drained(*[bytes([0, each]) for each in flags])
        self._notifies = False
        self._sqes = sqes

    def _check_new(self) -> None:
        if hasattr(self, "_sqes"):
            raise TypeError(f"a {type(self).__name__} is immutable: make another one")

    def _for_run(self) -> "tuple[CData, Subjects, object]":
        """What one run needs: the SQEs, what its completions are of, and pins of its own."""
        if not self._fresh:
            return self._sqes, self._ops, None
        subjects: list[Queueable | Answer] = list(self._ops)
        try:  # one call takes them: whoever comes next, or in between, finds none
            pins = self._first_pins.pop()
        except IndexError:
            sqes, pins = self._encode_again()
        else:
            sqes = self._sqes
        for index, pin in zip(self._fresh, pins, strict=True):
            subjects[index] = Answer(self._ops[index], pin)
        return sqes, subjects, pins

    def _encode_again(self) -> "tuple[CData, list[object]]":
        """The SQEs, and pins, of another run."""
        sqes = bytearray(_memory.bytes_of(self._sqes))
        pins: list[object] = []
        for index in self._fresh:
            record, pin = encoded(self._ops[index])
            start = index * SQE_SIZE
            flags = sqes[start + 1]
            sqes[start : start + SQE_SIZE] = record
            sqes[start + 1] = flags  # without the link that was taken away
            pins.append(pin)
        return _memory.pinned(sqes, write=False)[0], pins

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Queueable: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Queueable]: ...
    def __getitem__(self, index: int | slice) -> Queueable | Sequence[Queueable]:
        return self._ops[index]

    def __iter__(self) -> Iterator[Queueable]:
        return iter(self._ops)

    __contains__ = Sequence.__contains__
    __reversed__ = Sequence.__reversed__
    index = Sequence.index
    count = Sequence.count

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} operations>"


Sequence.register(Batch)  # a subclass of it would make run()'s isinstance(x, Batch) 300 ns


def _encode(index: int, op: Queueable) -> tuple[bytes, object]:
    if not isinstance(op, Queueable):
        raise TypeError(f"operation {index} of the batch is not an operation: {op!r}")
    record, pin = op._prepared or encoded(op)
    if is_multishot(record) or op._is_multishot:
        raise ValueError(
            f"operation {index}, {op!r}, is multishot: it has many results, and a run gives one"
            " for each operation; use stream()"
        )
    if op._reaches_out or (op._takes_buffer and not isinstance(op.group, int)):  # type: ignore[attr-defined]  # what takes one has it
        raise ValueError(
            f"operation {index}, {op!r}, is not for a batch: what it takes or promises is accounted"
            " for in the order in which single operations are queued and complete; queue() it,"
            " or do() it in uring.aio"
        )
    if len(record) != SQE_SIZE:
        raise ValueError(
            f"operation {index}, {op!r}, has an SQE of {len(record)} bytes, and a batch holds those"
            f" of {SQE_SIZE}: queue() it, or do() it in uring.aio"
        )
    if record[1] & _SKIP:
        raise ValueError(
            f"operation {index}, {op!r}, has CQE_SKIP_SUCCESS: a run waits for the result of every"
            " operation"
        )
    return record, pin


def _chosen(ops: Sequence[Queueable]) -> dict[int, int]:
    chosen: dict[int, int] = {}
    for index, op in enumerate(ops):
        number = op.user_data
        if number is None or (number == 0 and isinstance(op, SQE)):
            continue
        if type(number) is not int or not 0 <= number <= UINT64_MAX:
            raise ValueError(f"{op!r}: user_data must be an integer in 0..2**64 - 1")
        if number in chosen:
            raise ValueError(
                f"operations {chosen[number]} and {index} of the batch have the same user_data"
                f" {number:#x}: each needs one of its own, or none"
            )
        chosen[number] = index
    return chosen


def _longest_chain(encoded: Sequence[bytes]) -> int:
    longest = length = 0
    for record in encoded:
        length += 1
        longest = max(longest, length)
        if not is_linked(record):
            length = 0
    return longest


# ---- many of one kind, from columns ----


def check_independent(flags: SQEFlags) -> None:
    """Refuse flags that not all parts of a batch may have."""
    if int(flags) & (LINKED | _SKIP):
        raise ValueError(
            "the parts are independent, and a run gives the result of each: flags may not"
            " have IO_LINK, IO_HARDLINK or CQE_SKIP_SUCCESS"
        )


class _Many(Batch):
    __slots__ = ()

    _kind: type[Read] | type[Write]

    def __init__(
        self,
        fd: "FileLike | Sequence[FileLike] | Buffer",
        buffer: "Buffer | Sequence[Buffer]",
        offsets: "Sequence[int] | Buffer",
        lengths: "int | Sequence[int] | Buffer | None" = None,
        *,
        rw_flags: int = 0,
        ioprio: int = 0,
        flags: SQEFlags = NO_FLAGS,
        personality: int = 0,
    ) -> None:
        check_independent(flags)
        self._check_new()
        if fd is None:
            raise TypeError(
                "fd must be a file, a sequence of files or a buffer of descriptors, not NoneType"
            )
        one_file = isinstance(fd, int | Fixed | HasFileno)
        buffer = _columns.one_or_many(buffer)
        pattern = self._kind(
            fd if one_file else 0,  # type: ignore[arg-type]  # narrowed by the line above
            bytearray(1),
            rw_flags=rw_flags,
            ioprio=ioprio,
            flags=flags,
            personality=personality,
        )
        write = self._kind is Read
        sqes, lent = _columns.encode_parts(
            pattern._encode()[0], None if one_file else fd, buffer, offsets, lengths, write=write
        )
        self._fresh = ()
        self._first_pins = []
        self._chosen = {}
        self._longest_chain = 1
        self._hold(_Parts(self._kind, sqes, buffer, lent.base), sqes, (lent, fd))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} parts>"


class ReadMany(_Many):
    """
    Many reads, as a batch. Equivalent: pread(2) for each part.

    It is what `Batch([Read(fd, part, offset) ...])` is, without the objects. The parts run in no
    order, and each may be short. A part costs its 64 bytes and some nanoseconds.
    `ring.run(ReadMany(...)).res` says how many bytes came for each; `cqe.op` shows a part as a
    `Read`.

    Args:
        fd: the file; or a sequence of files, or a buffer of descriptors, one for each part: the
            column `res` of a run of `Openat`, for one.
        buffer: writable memory, which the parts fill one after the other; or a sequence of
            writable buffers, one for each part.
        offsets: where each part starts in its file, in bytes, from 0: a sequence of integers or a
            buffer of them, such as an array.array, a numpy array, or a memoryview. Their count is
            the count of parts. (-1, the file's own position, is for `Read`.)
        lengths: how many bytes each part has, 0..2**32 - 1: one integer for all, or a sequence or
            buffer of integers; what one buffer has beyond them is left alone. None: the parts of
            one buffer are equal, and of many buffers all is filled.
        rw_flags: RWF_* flags, as os.preadv has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.
        flags: `SQEFlags` that all parts have, such as ASYNC.
        personality: registered credentials to run under, 0..65535; 0 means the caller's own.

    Lifetime: the buffers are pinned as long as the batch exists. The integers are copied.
    Completion: res is the number of bytes read, 0 at the end of the file.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the columns differ in length, or a part is negative, too long, or beyond its
            buffer -> the message says which part.

    Kernel: 5.6. liburing: io_uring_prep_read(3).
    """

    __slots__ = ()
    _kind = Read


class WriteMany(_Many):
    """
    Many writes, as a batch. Equivalent: pwrite(2) for each part.

    It is what `Batch([Write(fd, part, offset) ...])` is, without the objects. The parts run in no
    order, and each may be short. Durable only after an `Fsync` that starts when all of them have
    ended.

    Args:
        fd: the file; or a sequence of files, or a buffer of descriptors, one for each part.
        buffer: memory whose parts are written, one after the other; or a sequence of buffers, one
            for each part.
        offsets: where each part goes in its file, in bytes; as for `ReadMany`.
        lengths: how many bytes each part has; as for `ReadMany`.
        rw_flags: RWF_* flags, as os.pwritev has them.
        ioprio: I/O priority, as ioprio_set(2) has it; 0 is the thread's own.
        flags: `SQEFlags` that all parts have, such as ASYNC.
        personality: registered credentials to run under, 0..65535; 0 means the caller's own.

    Lifetime: the buffers are pinned as long as the batch exists; changing their bytes changes what
        the next run writes. The integers are copied.
    Completion: res is the number of bytes written.

    Raises:
        TypeError, ValueError: as for `ReadMany`.

    Kernel: 5.6. liburing: io_uring_prep_write(3).
    """

    __slots__ = ()
    _kind = Write


class _Parts(Sequence[Queueable]):
    """The parts of a ReadMany or WriteMany as operations, each made when it is looked at."""

    __slots__ = ("_base", "_buffer", "_kind", "_sqes")

    def __init__(
        self,
        kind: type[Read] | type[Write],
        sqes: "CData",
        buffer: "Buffer | Sequence[Buffer]",
        base: int | None,
    ) -> None:
        self._kind = kind
        self._sqes = sqes
        self._buffer = buffer
        self._base = base  # the address of the one buffer, or None when there are many

    def __len__(self) -> int:
        return len(self._sqes) // SQE_SIZE

    @overload
    def __getitem__(self, index: int) -> Queueable: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Queueable]: ...
    def __getitem__(self, index: int | slice) -> Queueable | Sequence[Queueable]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        sqe = SQE.decode(_memory.bytes_of(self._sqes, place * SQE_SIZE, SQE_SIZE))
        buffer: Any = self._buffer
        if self._base is None:
            part = memoryview(buffer[place]).cast("B")[: sqe.len]
        else:
            start = sqe.addr - self._base
            part = memoryview(buffer).cast("B")[start : start + sqe.len]
        return self._kind(
            Fixed(sqe.fd) if sqe.flags & _FIXED_FILE else sqe.fd,
            part,
            sqe.off,
            rw_flags=sqe.op_flags,
            ioprio=sqe.ioprio,
            flags=SQEFlags(sqe.flags & ~_FIXED_FILE),
            personality=sqe.personality,
        )
