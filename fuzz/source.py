"""
Where the fuzzers in Python take their values from: the bytes of one input.

Some are what a field wants, others only look like it. Those that run code when they are looked at
do to a `World` what the input says: close its ring, queue on it, resize a buffer, raise.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import mmap
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

IS_REPLAY: Final = sys.argv[1:2] == ["--replay"]
ATHERIS: Any = None if IS_REPLAY else importlib.import_module("atheris")

# Before anybody else imports it: atheris sees which way the code goes that it has rewritten.
with contextlib.nullcontext() if IS_REPLAY else ATHERIS.instrument_imports(include=["uring"]):
    import uring

EDGES: Final = (
    *(0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**100),
    *(-1, -2, -(2**31), -(2**31) - 1, -(2**63), -(2**64)),
)
SMALL_MAX: Final = 4096
TEXTS: Final = ("", "a", "x" * 107, "x" * 108, "y" * 5000, "a\0b", "\0abstract", "\udc80", "\ud800")
HOSTS: Final = ("127.0.0.1", "::1", "", "<broadcast>", "fe80::1%1", "fe80::1%lo", "host", "1.2.3")


class MischiefError(Exception):
    """What a value raises when it is looked at; whoever looks may let it through."""


class Input:
    """The bytes of an input, one after the other; zeros behind its end."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self._place = 0

    def __bool__(self) -> bool:
        return self._place < len(self._encoded)

    def take(self, count: int) -> bytes:
        """So many bytes, or as many as there are."""
        taken = self._encoded[self._place : self._place + count]
        self._place += count
        return taken

    def byte(self) -> int:
        """One byte."""
        return int.from_bytes(self.take(1), "little")

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1."""
        return (self.byte() | self.byte() << 8 if limit > 256 else self.byte()) % limit

    def chance(self, percent: int) -> bool:
        """True in so many of a hundred cases; False at the end of the input."""
        return bool(self) and self.byte() * 100 < percent * 256

    def pick(self, values: Sequence[Any]) -> Any:
        """One of them."""
        return values[self.below(len(values))]

    def integer(self) -> int:
        """An integer of any size, often at the edge of something."""
        kind = self.byte()
        if kind < 96:
            return kind
        if kind < 208:
            return int(EDGES[kind % len(EDGES)])
        return int.from_bytes(self.take(kind & 15), "little", signed=bool(kind & 16))


class World:
    """A ring, buffers and files, and what values do to them when they are looked at."""

    def __init__(self, source: Input, descriptors: Sequence[int]) -> None:
        flags = source.pick(
            [uring.SetupFlags(0)] * 5
            + [uring.SetupFlags.SQE128, uring.SetupFlags.CQE32 | uring.SetupFlags.SQE128]
        )
        self.source = source
        self.ring = uring.Ring(8, flags=flags)
        self.buffers = [bytearray(64), bytearray(4096), bytearray()]
        self.descriptors = descriptors
        self.is_disturbed = False

    def act(self) -> None:
        """Do what the input says."""
        choice = self.source.below(12)
        if choice == 1:
            raise MischiefError
        if choice == 2:
            self.is_disturbed = True
            self.ring.close()
        elif choice == 3:
            self.is_disturbed = True
            with contextlib.suppress(uring.UringError):
                self.ring.queue(uring.Nop())
        elif choice == 4:
            with contextlib.suppress(BufferError):
                self.source.pick(self.buffers).extend(bytes(100))
        elif choice == 5:
            with contextlib.suppress(BufferError):
                self.source.pick(self.buffers).clear()
        elif choice == 6:
            gc.collect(0)
        elif choice == 7:
            raise TypeError("mischief")

    def close(self) -> None:
        """End it: everything must have been let go of."""
        self.ring.close()


def indexes(world: World) -> Any:
    """An integer of another type, which may do anything when it is looked at."""
    number = world.source.integer()

    class Index:
        def __index__(self) -> int:
            world.act()
            return number

    class Liar(int):
        def __index__(self) -> int:
            world.act()
            return number

        def __lt__(self, _other: object) -> bool:
            return False

        __gt__ = __ge__ = __le__ = __lt__

        def __eq__(self, _other: object) -> bool:
            return True

        __hash__ = int.__hash__

    return Index() if world.source.chance(50) else Liar(world.source.below(256))


def files(world: World) -> Any:
    """Something with a fileno()."""
    number = world.source.pick([*world.descriptors, -1, 2**31, 2**64, None, "3", True, 1.5])

    class File:
        def fileno(self) -> Any:
            world.act()
            return number

    return File()


def paths(world: World) -> Any:
    """Something with a __fspath__()."""
    name = world.source.pick([*TEXTS, b"a", b"a\0b", 3, None])

    class Named:
        def __fspath__(self) -> Any:
            world.act()
            return name

    return Named()


def groups(world: World) -> Any:
    """Something with a bgid."""
    number = world.source.integer()

    class Grouped:
        @property
        def bgid(self) -> int:
            world.act()
            return number

    return Grouped()


HUGE: Final = mmap.mmap(-1, (4 << 30) + 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
"""More than one operation can move; MAP_NORESERVE, and nobody touches it."""


def released() -> memoryview:
    """A view of nothing any more."""
    view = memoryview(b"abc")
    view.release()
    return view


def buffers(world: World, *, most: int | None = None) -> Any:
    """A buffer of any kind, or what is nearly one; of the first kinds, up to `most`."""
    whole: bytearray = world.source.pick(world.buffers)
    kinds: list[Callable[[], Any]] = [
        lambda: whole,
        lambda: whole,
        lambda: memoryview(whole),
        lambda: memoryview(whole)[1:5],
        lambda: memoryview(whole)[::2],
        lambda: memoryview(whole).toreadonly(),
        lambda: memoryview(whole)[:16].cast("B", (2, 8)) if len(whole) >= 16 else whole,
        lambda: bytes(8),
        lambda: array.array("i", [1, 2]),
        lambda: mmap.mmap(-1, 4096),
        ctypes.c_char * 8,
        lambda: pickle.PickleBuffer(whole),
        lambda: uring.FixedBuffer(memoryview(whole), world.source.below(4)),
        released,
        lambda: HUGE,
        lambda: memoryview(HUGE)[: world.source.pick([2**32 - 1, 2**32])],
    ]
    return world.source.pick(kinds[:most])()


def sequences(world: World) -> Any:
    """A sequence of anything, which may lie about its length and act while it is walked."""
    items = [anything(world, is_deep=True) for _ in range(world.source.below(4))]
    length = world.source.below(100) - 1  # one that is huge is MemoryError, before uring sees it

    class Lying(Sequence[Any]):
        def __len__(self) -> int:
            world.act()
            return length

        def __getitem__(self, index: Any) -> Any:
            world.act()
            return items[index]

    def generate() -> Iterator[Any]:
        for item in items:
            world.act()
            yield item

    class Long(list[Any]):
        def __len__(self) -> int:
            return length

        def __iter__(self) -> Iterator[Any]:
            world.act()
            return super().__iter__()

    kinds: list[Callable[[], Any]] = [
        lambda: items,
        lambda: tuple(items),
        Lying,
        generate,
        lambda: Long(items),
        lambda: dict.fromkeys(range(len(items))),
        lambda: items * 600,
    ]
    return world.source.pick(kinds)()


def anything(world: World, *, is_deep: bool = False) -> Any:
    """A value of any type."""
    source = world.source
    kinds: list[Callable[[], Any]] = [
        source.integer,
        source.integer,
        lambda: indexes(world),
        lambda: files(world),
        lambda: buffers(world, most=-2),  # whoever copies a huge one needs as much memory
        lambda: paths(world),
        lambda: groups(world),
        lambda: source.pick([None, True, 1.5, float("nan"), float("inf"), 1e300, 3j, object, ...]),
        lambda: source.pick(TEXTS),
        lambda: source.take(source.below(32)),
        lambda: uring.Fixed(source.below(9)),
        lambda: source.pick([uring.AUTO, uring.SQEFlags.ASYNC, uring.Opcode.NOP]),
        lambda: addresses(world),
        lambda: world.ring,
    ]
    if not is_deep:
        kinds.append(lambda: sequences(world))
    return source.pick(kinds)()


def addresses(world: World) -> Any:
    """A socket address, mostly."""
    source = world.source
    kinds: list[Callable[[], Any]] = [
        lambda: (source.pick(HOSTS), source.integer()),
        lambda: (source.pick(HOSTS), source.below(65536), source.integer(), source.integer()),
        lambda: source.pick(TEXTS),
        lambda: uring.Sockaddr(source.take(source.below(20)).ljust(2, b"\0")),
        lambda: (source.pick(HOSTS), indexes(world)),
    ]
    return source.pick(kinds)()


def small_descriptors() -> list[int]:
    """A pipe and /dev/null, on which nothing is ever submitted."""
    return [*os.pipe(), os.open(os.devnull, os.O_RDWR)]


def run(one: Callable[[bytes], None]) -> None:
    """Fuzz, or with `--replay` run each input in the files and folders that are named."""
    gc.collect()
    gc.freeze()  # what is there stays, and need not be looked at for each input
    if not IS_REPLAY:
        ATHERIS.Setup(sys.argv, one)
        ATHERIS.Fuzz()
    count = 0
    for name in sys.argv[2:]:
        path = Path(name)
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            one(file.read_bytes())
            count += 1
    sys.stdout.write(f"replayed {count} inputs\n")
