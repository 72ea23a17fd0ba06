"""Operations that name another one, in flight, by its user_data."""

import errno

from uring.operations._base import Operation, operation
from uring.sqe import Filename


@operation
class Targeting(Operation):
    """An operation on the operation whose user_data is `target`."""

    target: int

    def _encode(self) -> tuple[bytes, object]:
        return self._pack(addr=self.target), None

    def _error_context(self, number: int) -> tuple[str, Filename]:
        note, filename = super()._error_context(number)
        if number == errno.ENOENT:
            note += ": nothing in flight has this user_data; it has ended, or never was submitted"
        return note, filename
