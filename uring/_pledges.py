"""
What queueing an operation promises to others than itself.

A message posts a completion on another ring, under a number that must not be in use there. An
update of a poll gives an operation in flight another number. Such a promise is made before the
operation is queued, and taken back when it comes to nothing: when the operation was never handed
over, or has failed. An operation that was handed over and says nothing (it skips its completion, or
shares its number) may have succeeded: its promise stands.

A message goes to a file, by the number that the operation has from when it is queued to when the
kernel looks. Meanwhile the number may be closed and be another ring's; so the operation gets a
number of its own, an `Alias`. A ring keeps its own as long as it is open.
"""

import os
from typing import Final, Protocol

from uring._ffi import ffi, lib

UNKNOWN_RING: Final = (
    "this ring was not made by this process, so nobody can tell which numbers are in flight there;"
    " a message that has one of them would end an operation. Send it as an SQE(...) if you know"
)


class Promised(Protocol):
    """A ring, as far as promises go: see _core."""

    def _expect(self, number: int, pledge: "Pledge | None" = None) -> None: ...
    def _unexpect(self, number: int) -> None: ...
    def _rename(self, numbers: tuple[int, int], pledge: "Pledge") -> None: ...
    def _unrename(self, numbers: tuple[int, int]) -> None: ...


class Alias:
    """A descriptor of an open file that stays its own as long as this is referenced."""

    __slots__ = ("_end", "fd")

    def __init__(self, fd: int) -> None:
        made = ffi.new("struct uring_alias *")
        self._end = ffi.gc(made, lib.uring_alias_close)  # in C, where no signal cuts it off
        result = lib.uring_alias(made, fd)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        self.fd = int(made.fd)
        """Its number."""


class Pledge:
    """One promise. Dropped before its operation was handed over, it is taken back."""

    __slots__ = ("is_handed_over", "is_settled")

    def __init__(self) -> None:
        self.is_settled = True
        """
        Whether there is nothing to take back. The ring that it is given to says when there is, in
        one step with making a note of it: an interrupt finds both or neither.
        """
        self.is_handed_over = False
        """Whether the kernel may have its operation: being dropped then says nothing."""

    def settle(self, res: int) -> None:
        """Note the result of the operation; again is as good as once. May be called with a lock."""
        if self.is_settled:
            return
        self.is_settled = True
        if res < 0:
            self._take_back()

    def _take_back(self) -> None:
        raise NotImplementedError

    def __del__(self) -> None:
        if not getattr(self, "is_settled", True) and not self.is_handed_over:
            self._take_back()


class MessagePledge(Pledge):
    """A completion that will come on another ring."""

    __slots__ = ("_alias", "_number", "_ring")

    def __init__(self, ring: Promised, number: int, alias: Alias) -> None:
        super().__init__()
        self._alias = alias
        self._ring = ring
        self._number = number
        ring._expect(number, self)

    def _take_back(self) -> None:
        self._ring._unexpect(self._number)


class RenamePledge(Pledge):
    """A number that an operation in flight will have instead of its own."""

    __slots__ = ("_numbers", "_ring")

    def __init__(self, ring: Promised, numbers: tuple[int, int]) -> None:
        super().__init__()
        self._ring = ring
        self._numbers = numbers
        ring._rename(numbers, self)

    def _take_back(self) -> None:
        self._ring._unrename(self._numbers)
