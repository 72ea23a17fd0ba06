"""What all programs share that run under faults or into limits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from uring import _running, _streaming, _teardown

PATIENCE: Final = {
    _teardown: ("CLOSE_SECONDS", "DROP_SECONDS"),
    _running: ("CANCEL_SECONDS",),
    _streaming: ("_CLOSE_SECONDS",),
}
"""How long the package waits for what cannot be cancelled: 30 s, which would be too long here."""


def be_impatient() -> None:
    """Wait for what cannot be cancelled as long as is enough to see it."""
    for module, names in PATIENCE.items():
        for name in names:
            assert hasattr(module, name)
            setattr(module, name, 0.3)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Give a pipe as (read end, write end), and close both."""
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        os.close(read)
        os.close(write)


class Memory(bytearray):
    """Memory whose end can be seen."""
