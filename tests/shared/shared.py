"""What the tests of several modules use and no fixture can give, for it is needed as they load."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import uring

HOSTILE: Final = Path(__file__).resolve().parent.parent / "hostile"
_SECONDS: Final = 300  # beyond the limit that a hostile program has by itself
_FORKING: Final = "ignore:This process (pid=:DeprecationWarning"
"""From 3.15 on os.fork() warns of the harness's watchdog, which is a thread, if not Python's."""


def run_hostile(
    module: str, name: str, *, warnings: str = "error", says: str = "", code: int = 0
) -> str:
    """
    Run a hostile program to its end, which must be with exit code `code`; gives what it printed.

    `says` is what its standard error must have, and "" is nothing at all.
    """
    options = ("-X", "faulthandler", f"-W{warnings}", f"-W{_FORKING}")
    command = [sys.executable, *options, f"hostile_{module}.py", name]
    # Files, not pipes: a child of the program that hangs would hold those open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        ended = subprocess.run(
            command, cwd=HOSTILE, timeout=_SECONDS, stdout=out, stderr=err, check=False
        )
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    assert ended.returncode == code, stdout + stderr
    assert (says in stderr) if says else stderr == "", stdout + stderr
    return stdout


class Tracked(bytearray):
    """A bytearray that can be referred to weakly."""


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
