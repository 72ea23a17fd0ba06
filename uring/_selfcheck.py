"""The simplest real work, with a look at its outcome that does without io_uring."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Final

import attrs

from uring.completions import CQE
from uring.errors import UringError
from uring.operations import Fsync, Nop, Operation, Readv, Writev
from uring.ring import Ring
from uring.sqe import link

_CHECK_SECONDS: Final = 10.0
"""How long one check may wait: enough for an fsync on a busy disk, short enough for a CI log."""

_CHECK_ENTRIES: Final = 8
_CHECK_NUMBER: Final = 0x75726E67  # any number: it has to come back
_CHECK_PARTS: Final = (b"uring\n", bytes(range(256)) * 33, b"\xa5" * 4096)
"""Three parts of unlike lengths, over a page in all, so that a mix-up shows."""


@attrs.frozen
class Failure:
    """A call of the library that failed: the errno, and what it says."""

    errno: int | None
    message: str


@attrs.frozen
class Check:
    """One step of the self-check; `error` is None when it held."""

    name: str
    error: str | None
    is_tried: bool = True


def describe(error: OSError | UringError) -> Failure:
    """Say what a failed call says."""
    number = error.errno if isinstance(error, OSError) else None
    return Failure(number, getattr(error, "strerror", None) or str(error))


class _CheckError(Exception):
    """A check did not hold; the text says how."""


def self_check() -> Iterator[Check]:
    """Do the simplest real work, and look at its outcome without io_uring."""
    error = _attempt(_check_nop)
    yield Check("nop", error)
    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("readv", _check_readv),
        ("writev + fsync", _check_writev_fsync),
    )
    for name, check in checks:
        # A ring that cannot even do nothing takes long to close: do not make another.
        if error is None:
            yield Check(name, _attempt(check))
        else:
            yield Check(name, "not tried, since nop failed", is_tried=False)


def _attempt(check: Callable[[], None]) -> str | None:
    try:
        check()
    except _CheckError as error:
        return str(error)
    except (OSError, UringError) as error:
        notes: list[str] = getattr(error, "__notes__", [])
        return "; ".join([describe(error).message, *notes])
    return None


def _check_nop() -> None:
    with Ring(_CHECK_ENTRIES) as ring:
        cqe = _run(ring, Nop(user_data=_CHECK_NUMBER))[0]
        _expect("user_data", cqe.user_data, _CHECK_NUMBER)
        _expect("res", cqe.res, 0)


def _check_readv() -> None:
    content = b"".join(_CHECK_PARTS)
    with _temporary_file() as file, Ring(_CHECK_ENTRIES) as ring:
        try:
            taken = file.write(content)
        except OSError as error:
            raise _CheckError(f"the temporary file takes nothing: {error.strerror}") from error
        # RLIMIT_FSIZE, or a disk that is nearly full, must not look like a fault of readv.
        _expect("the count of bytes that the temporary file takes", taken, len(content))
        buffers = [bytearray(len(part)) for part in _CHECK_PARTS]
        count = _run(ring, Readv(file, buffers))[0].result()
        _expect("the count of bytes read", count, len(content))
        if b"".join(buffers) != content:
            raise _CheckError("what was read is not what is in the file")


def _check_writev_fsync() -> None:
    content = b"".join(_CHECK_PARTS)
    with _temporary_file() as file, Ring(_CHECK_ENTRIES) as ring:
        written, synced = _run(ring, *link(Writev(file, _CHECK_PARTS), Fsync(file)))
        _expect("the count of bytes written", written.result(), len(content))
        _expect("the result of fsync", synced.result(), 0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        if os.read(file.fileno(), len(content) + 1) != content:
            raise _CheckError("what is in the file is not what was written")


def _run(ring: Ring, *operations: Operation) -> list[CQE]:
    """Submit, wait, and give the completions in the order of the operations."""
    numbers = ring.queue_all(operations)
    ring.submit_and_wait(len(operations), timeout=_CHECK_SECONDS)
    done = {cqe.user_data: cqe for cqe in ring.copy_cqes()}
    if set(done) != set(numbers):
        raise _CheckError(
            f"{len(done)} of {len(numbers)} completions came within {_CHECK_SECONDS:.0f} s"
        )
    return [done[number] for number in numbers]


def _expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise _CheckError(f"{what} is {got!r} and should be {wanted!r}")


def _temporary_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError as error:
        is_full = error.errno in {errno.EMFILE, errno.ENFILE}
        remedy = "raise `ulimit -n`" if is_full else "set TMPDIR to a directory that is writable"
        raise _CheckError(f"no temporary file to work on: {error.strerror}; {remedy}") from error
