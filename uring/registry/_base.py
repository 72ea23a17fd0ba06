"""
What all registrations share: what a ring holds for them, and how they end.

What the kernel knows of memory or files is known here in a `Held`, which the ring holds and which
knows nothing of the ring. The objects that users get hold the ring, and are current as long as the
ring's `Held` names what they stand for; so a ring that is dropped goes at once, and an object whose
registration was replaced ends nothing that is not its own.

One lock for all rings guards the tables, so that they change in the order in which the kernel
changed its own; cloning changes one ring's by another's. Nobody waits for a ring's own lock while
holding it.
"""

import contextlib
import errno
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import attrs

from uring._checks import check_range
from uring.errors import RegisterError, RingClosedError, UringError
from uring.flags import RegisterOpcode
from uring.sqe import UINT64_MAX

if TYPE_CHECKING:
    from uring._leases import Block
    from uring._pledges import Alias
    from uring._uring import CData


@attrs.define
class FileTable:
    """The registered files of a ring."""

    count: int


@attrs.define(eq=False)
class BufferTable:
    """The registered buffers of a ring: a pin for each, or None where the slot is empty."""

    pins: "list[CData | None]"


@attrs.define(eq=False)
class Held:
    """
    What a ring keeps for its registrations.

    Freed memory is used again at the same pages that the kernel has pinned, so an operation in
    flight on a buffer that was let go would write into somebody else's. Therefore pins outlive
    their registration: they wait in `lingering` until nothing is in flight.
    """

    files: FileTable | None = None
    buffers: BufferTable | None = None
    eventfd: object | None = None
    napi: object | None = None
    groups: "dict[int, Block]" = attrs.field(factory=dict)
    """The memory of the groups of provided buffers, by bgid."""
    provided: dict[tuple[int, int], object] = attrs.field(factory=dict)
    """Memory that operations have given to the kernel for good, by address and length."""
    unsure: dict[int, object] = attrs.field(factory=dict)
    """Pins of a registration whose outcome is not known, or never will be: it was cut off."""
    lingering: tuple[object, ...] = ()
    """Pins of what is unregistered, and may be in use by what was in flight at that moment."""
    alias: "Alias | None" = None
    """The descriptor by which messages reach the ring, once there was one: see _pledges."""
    for_life: list[object] = attrs.field(factory=list)
    """What stays registered until the ring is closed."""
    refuge: list[Any] = attrs.field(factory=lambda: [None])
    """Where the ring is kept when its end is cut off and nobody else has it: see Ring.__del__."""

    def let_go(self, pins: object) -> None:
        """Keep what is unregistered, until `forget` takes it."""
        while True:  # a signal handler may do the same in the middle
            before = self.lingering
            after = (*before, pins)
            if self.lingering is before:  # no call from here to the store
                self.lingering = after
                return


class Registrar(Protocol):
    """What registrations ask of their ring."""

    _held: Held

    @property
    def closed(self) -> bool:
        """Whether the ring is closed."""

    def fileno(self) -> int:
        """The ring's descriptor."""

    def _register(self, opcode: RegisterOpcode, argument: "CData", count: int) -> int: ...
    def _expect(self, number: int) -> None: ...
    def _unexpect(self, number: int) -> None: ...
    def _forget_lingering(self) -> None: ...


class _Guard:
    """The lock, anew in the child of a fork: whoever held it is not there."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.RLock()


GUARD: Final = _Guard()


class Registration:
    """
    Something registered with a ring, which it keeps alive; as a context manager it ends with it.

    Dropping the object ends nothing: what is registered stays so until `close()`, or until the ring
    is closed.
    """

    __slots__ = ("__weakref__", "_ring")

    def __init__(self, ring: Registrar) -> None:
        self._ring = ring

    def _is_current(self) -> bool:
        raise NotImplementedError

    def _unregister(self) -> None:
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether it is no longer registered, or its ring is closed."""
        return self._ring.closed or not self._is_current()

    def close(self) -> None:
        """Unregister it. Does nothing when that has been done, or when the ring is closed."""
        if self.closed:
            return
        try:
            self._unregister()
        except RingClosedError:
            if not self._ring.closed:
                raise
        except RegisterError as error:
            if error.errno != errno.ENXIO:  # somebody was faster
                raise

    def _state(self) -> str:
        return "closed " if self.closed else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@contextlib.contextmanager
def descriptor_of(ring: Registrar) -> Iterator[int]:
    """
    Give a descriptor of the ring that stays its own for the while.

    The ring's may be closed by another thread, and its number be somebody else's a moment later.
    """
    fd = os.dup(ring.fileno())
    try:
        ring.fileno()  # still open: so it was the ring's that was duplicated
        yield fd
    finally:
        os.close(fd)


def checked_tags(tags: Iterable[int] | None, is_empty: list[bool]) -> list[int] | None:
    """Check tags against the slots that they are for, of which some stay empty; None for none."""
    if tags is None:
        return None
    numbers = [operator.index(t) if type(t) is not bool and isinstance(t, int) else t for t in tags]
    if len(numbers) != len(is_empty):
        raise ValueError(f"{len(is_empty)} slots need as many tags, not {len(numbers)}")
    for number, empty in zip(numbers, is_empty, strict=True):
        check_range("a tag", number, 0, UINT64_MAX)
        if number and empty:
            raise ValueError(f"the tag {number} is for a slot that stays empty: give it 0")
    return numbers


def expecting(ring: Registrar, tags: list[int] | None, register: Callable[[], int]) -> int:
    """
    Register, with the tags' completions expected; gives what `register` gives.

    It gives how many slots were filled; of the others nothing is expected in the end.
    """
    expected: list[int] = []
    filled = 0
    try:
        for tag in tags or ():
            if tag:
                ring._expect(tag)
            expected.append(tag)
        filled = register()
    except (UringError, ValueError):  # else it was cut off, and perhaps they are registered
        _unexpect(ring, expected)
        raise
    _unexpect(ring, expected[filled:])
    return filled


def _unexpect(ring: Registrar, tags: list[int]) -> None:
    for tag in tags:
        if tag:
            with contextlib.suppress(RingClosedError):
                ring._unexpect(tag)
