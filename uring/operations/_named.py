"""Operations on what has a path, which their errors name."""

import os

from uring.operations._base import Operation
from uring.sqe import Filename


class Named(Operation):
    """An operation whose error names the file, in the field `_path_field`, or two of them."""

    __slots__ = ()

    _path_field = "path"
    _second_path_field = ""

    def _error_context(self, number: int) -> tuple[str, Filename]:
        note, _ = super()._error_context(number)
        path = os.fspath(getattr(self, self._path_field))
        if not self._second_path_field:
            return note, path
        return note, (path, os.fspath(getattr(self, self._second_path_field)))
