"""
Asking about many files in one batch: `StatxMany`, and what a run of it gives.

The paths are C strings in one piece of memory, which the batch keeps. The kernel writes its answers
into another, which each run has to itself. They stay there: a `StatxResult` is made when one is
looked at, and the columns of `StatxCompletions` read the memory without making any.
"""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, overload

from uring import _memory
from uring._columns import PARTS_MAX
from uring._file_memory import STATX_SIZE, Field, StatxArena, StatxPart, StatxResult
from uring._memory import PathLike
from uring.batch import Batch, check_independent
from uring.completions import Answer, Completions
from uring.file_flags import AtFlags, StatxMask
from uring.flags import SQEFlags
from uring.operations import Statx
from uring.sqe import NO_FLAGS, SQE_SIZE, HasFileno, Queueable

if TYPE_CHECKING:
    from uring._uring import CData

_NO_FLAGS: Final = AtFlags(0)
_WORDS: Final = SQE_SIZE // 8
_OFF: Final = 1
_ADDR: Final = 2
"""Where an SQE has off and addr, in words of 64 bits."""


class _Questions(Sequence[Queueable]):
    """The Statx of each path, made when it is looked at."""

    __slots__ = ("_make", "_paths")

    def __init__(self, make: Callable[[PathLike], Statx], paths: Sequence[PathLike]) -> None:
        self._make = make
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Queueable: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Queueable]: ...
    def __getitem__(self, index: int | slice) -> Queueable | Sequence[Queueable]:
        if isinstance(index, slice):
            return [*map(self._make, self._paths[index])]
        return self._make(self._paths[index])


class _Answers(Sequence[Answer]):
    """Of all or some of a run, what its completions are of; made when it is looked at."""

    __slots__ = ("_arena", "_places", "_questions")

    def __init__(self, questions: _Questions, arena: StatxArena, places: range) -> None:
        self._questions = questions
        self._arena = arena
        self._places = places

    def column(self, code: str, offset: int) -> memoryview:
        """A number out of each answer."""
        places = self._places
        stop = None if places and places.stop < 0 else places.stop  # before the first
        return self._arena.column(code, offset)[places.start : stop : places.step]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Answer]: ...
    def __getitem__(self, index: int | slice) -> Answer | Sequence[Answer]:
        if isinstance(index, slice):
            return _Answers(self._questions, self._arena, self._places[index])
        place = self._places[index]
        return Answer(self._questions[place], StatxPart(self._arena, place))

    def __iter__(self) -> Iterator[Answer]:
        return map(self.__getitem__, range(len(self)))


def _answers(completions: Completions) -> _Answers:
    answers = completions._subjects
    if not isinstance(answers, _Answers):
        raise TypeError("only what a run of a StatxMany gave, and slices of that, have columns")
    return answers


class _Column:
    """The number that is one field, of each file."""

    __slots__ = ("_code", "_offset")

    def __init__(self, field: Field[Any]) -> None:
        self._code, self._offset = field.codes, field.offset

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Completions, owner: type) -> memoryview: ...
    def __get__(self, instance: Completions | None, owner: type) -> Self | memoryview:
        return self if instance is None else _answers(instance).column(self._code, self._offset)


class _Times:
    """A time of each file, in nanoseconds."""

    __slots__ = ("_offset",)

    def __init__(self, field: Field[int]) -> None:
        self._offset = field.offset

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Completions, owner: type) -> list[int]: ...
    def __get__(self, instance: Completions | None, owner: type) -> Self | list[int]:
        if instance is None:
            return self
        answers = _answers(instance)
        seconds = answers.column("q", self._offset).tolist()
        nanoseconds = answers.column("I", self._offset + 8).tolist()
        return [s * 1_000_000_000 + ns for s, ns in zip(seconds, nanoseconds, strict=True)]


class StatxCompletions(Completions):
    """
    The completions of a run of a `StatxMany`, with the fields of `StatxResult` as columns.

    `completions.size` is beside `completions.res`: a memoryview, one number for each file, without
    an object each. The times are lists of integers. Where `res` is negative all are 0: call
    `raise_first()`, or look at `res`. A slice has columns, too; what was joined with `+` has not.

    Source: statx(2), linux/stat.h.
    """

    __slots__ = ()

    mask = _Column(StatxResult.mask)
    blksize = _Column(StatxResult.blksize)
    attributes = _Column(StatxResult.attributes)
    nlink = _Column(StatxResult.nlink)
    uid = _Column(StatxResult.uid)
    gid = _Column(StatxResult.gid)
    mode = _Column(StatxResult.mode)
    ino = _Column(StatxResult.ino)
    size = _Column(StatxResult.size)
    blocks = _Column(StatxResult.blocks)
    attributes_mask = _Column(StatxResult.attributes_mask)
    atime_ns = _Times(StatxResult.atime_ns)
    btime_ns = _Times(StatxResult.btime_ns)
    ctime_ns = _Times(StatxResult.ctime_ns)
    mtime_ns = _Times(StatxResult.mtime_ns)
    rdev_major = _Column(StatxResult.rdev_major)
    rdev_minor = _Column(StatxResult.rdev_minor)
    dev_major = _Column(StatxResult.dev_major)
    dev_minor = _Column(StatxResult.dev_minor)
    mnt_id = _Column(StatxResult.mnt_id)
    dio_mem_align = _Column(StatxResult.dio_mem_align)
    dio_offset_align = _Column(StatxResult.dio_offset_align)
    subvol = _Column(StatxResult.subvol)
    atomic_write_unit_min = _Column(StatxResult.atomic_write_unit_min)
    atomic_write_unit_max = _Column(StatxResult.atomic_write_unit_max)
    atomic_write_segments_max = _Column(StatxResult.atomic_write_segments_max)
    dio_read_offset_align = _Column(StatxResult.dio_read_offset_align)
    atomic_write_unit_max_opt = _Column(StatxResult.atomic_write_unit_max_opt)


class StatxMany(Batch):
    """
    Many questions about files, as a batch. Equivalent: statx(2) for each path.

    It is what `Batch([Statx(path) ...])` is, without the objects. They are asked in no order, on
    threads of the kernel's; a ring with COOP_TASKRUN or DEFER_TASKRUN has a quarter less of that to
    pay for. `ring.run(StatxMany(paths))` gives `StatxCompletions`, with columns such as `size`;
    there `cqe.result()` is a `StatxResult`, and `cqe.op` shows one as a `Statx`.

    Args:
        paths: str, bytes or os.PathLike, any number of them; looked at now.
        mask: `StatxMask`: what is wanted. File systems may give more, or less.
        statx_flags: `AtFlags`, as for `Statx`, such as SYMLINK_NOFOLLOW.
        dir_fd: the directory that relative paths start from; None is the current one, at the time
            when the kernel looks. Keep an object with `fileno()` open as long as the batch is run.
        flags: `SQEFlags` that all have, such as IO_DRAIN.
        personality: registered credentials to run under, 0..65535; 0 means the caller's own.

    Lifetime: the paths are copied. Each run has room of its own for the answers, 256 bytes each,
        which its completions, and their columns, keep.
    Completion: res is 0.

    Raises:
        TypeError: `paths` is one path, or something in it is none -> the message says which.
        ValueError: a path has a null byte in it, or another argument is out of its range.

    Kernel: 5.6. liburing: io_uring_prep_statx(3).
    """

    __slots__ = ()
    _ops: _Questions
    _completions = StatxCompletions
    _nothing = StatxCompletions(b"", _Answers(_Questions(Statx, ()), StatxArena(0), range(0)))

    def __init__(
        self,
        paths: Iterable[PathLike],
        *,
        mask: StatxMask = StatxMask.BASIC_STATS | StatxMask.BTIME,
        statx_flags: AtFlags = _NO_FLAGS,
        dir_fd: int | HasFileno | None = None,
        flags: SQEFlags = NO_FLAGS,
        personality: int = 0,
    ) -> None:
        check_independent(flags)
        self._check_new()
        if isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable):
            raise TypeError(
                f"paths must be a sequence of paths, not one {type(paths).__name__}: use [path]"
            )
        paths = tuple(paths)
        if len(paths) > PARTS_MAX:
            raise ValueError(f"one batch has at most {PARTS_MAX} paths, not {len(paths)}")
        make = partial(
            Statx,
            mask=mask,
            statx_flags=statx_flags,
            dir_fd=dir_fd,
            flags=flags,
            personality=personality,
        )
        pattern, _ = make("")._encode()
        names, addresses = _memory.paths(paths)
        sqes = array("Q", pattern * len(paths))
        sqes[_OFF::_WORDS] = array("Q", bytes(8 * len(paths)))  # each run has its own
        sqes[_ADDR::_WORDS] = addresses
        self._fresh = range(len(paths))
        self._first_pins = []
        self._chosen = {}
        self._longest_chain = 1
        self._hold(_Questions(make, paths), _memory.pinned(sqes, write=False)[0], (names, dir_fd))

    def _for_run(self) -> "tuple[CData, _Answers, object]":
        count = self._count
        arena = StatxArena(count)
        sqes = array("Q", _memory.bytes_of(self._sqes))
        end = arena.address + count * STATX_SIZE
        sqes[_OFF::_WORDS] = array("Q", range(arena.address, end, STATX_SIZE))
        answers = _Answers(self._ops, arena, range(count))
        return _memory.pinned(sqes, write=False)[0], answers, arena

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} paths>"
