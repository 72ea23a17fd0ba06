"""What the tests of several modules use and no fixture can give, for it is needed as they load."""

import os
from collections.abc import Callable
from typing import Any

import pytest

import uring


class Wrapper:
    """Something with a fileno() and nothing else."""

    def __init__(self, fd: Any) -> None:
        self.fd = fd

    def fileno(self) -> Any:
        """The descriptor."""
        return self.fd


def in_child(look: Callable[[], bool], fork: Callable[[], int] = os.fork) -> bool:
    """What `look` says in the child of a fork."""
    child = fork()
    if child == 0:
        try:
            os._exit(0 if look() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


def assert_refused(ring: uring.Ring, op: uring.Operation) -> None:
    """TypeError or ValueError for this operation alone and among others; nothing is queued."""
    with pytest.raises((TypeError, ValueError)):
        ring.queue(op)
    with pytest.raises((TypeError, ValueError)):
        ring.queue_all([uring.Nop(), op])
    with pytest.raises((TypeError, ValueError)):
        uring.Batch([op])
    assert (ring.sq_ready(), ring.in_flight) == (0, 0)
