"""
Where the file layer has its operations done: on the ring of the loop, or in threads.

Threads do it where this process gets no ring (a container's seccomp filter, a sysctl, an old
kernel), and for an operation that the kernel's rings lack; the first time with a RuntimeWarning
that says why. The ring itself, `uring.aio.ring()`, never falls back.
"""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from uring.aio import _threads
from uring.aio._exchange import INTERRUPTED
from uring.aio._ring import Ring, is_ending, ring
from uring.completions import CQE, close_all, uncollected_descriptors
from uring.errors import RegisterError, RingClosedError, SetupError, UnsupportedError, UringError
from uring.flags import SQEFlags
from uring.operations import Close
from uring.ring import Ring as PlainRing
from uring.sqe import Queueable

Backend = Literal["io_uring", "threads"]

ENVIRONMENT: Final = "URING_AIO_BACKEND"
_BACKENDS: Final[tuple[Backend, ...]] = ("io_uring", "threads")
_PACKAGE: Final = str(Path(__file__).parent)
_NO_RING: Final = (SetupError, UnsupportedError, RegisterError)
"""What says that there is no ring for a loop; the last, when its eventfd cannot be registered."""
_PASSING: Final = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE})
"""Reasons that may be gone next time: those of others are remembered."""


class _Choice:
    """What was asked for, and what was found out."""

    __slots__ = ("forced", "has_warned", "is_made", "refusal")

    def __init__(self) -> None:
        self.is_made = False
        """Whether `forced` is what is wanted; until then, what the environment says."""
        self.forced: Backend | None = None
        self.refusal: UringError | None = None
        """Why this process gets no rings."""
        self.has_warned = False

    def make(self, wanted: object, source: str) -> None:
        """Take what is wanted; an unknown name is refused."""
        for known in (None, *_BACKENDS):
            if wanted == known:
                self.is_made, self.forced, self.refusal = True, known, None
                return
        raise ValueError(f'{source} must be "io_uring" or "threads", not {wanted!r}')


_choice: Final = _Choice()


def use_backend(name: Backend | None) -> None:
    """
    Force where the file layer has its operations done, in all of the process, from now on.

    Files that are open already go on there, too. Without this, it is a ring wherever there is one,
    and threads elsewhere: those of the loop's default executor, or of `trio.to_thread`.

    Args:
        name: "threads"; or "io_uring", with which what cannot be done on a ring raises SetupError
            or UnsupportedError; or None for what the environment variable URING_AIO_BACKEND says,
            and a ring wherever there is one if that says nothing.

    Raises:
        ValueError: there is no such backend.
    """
    if name is None:
        _choice.make(os.environ.get(ENVIRONMENT) or None, ENVIRONMENT)
    else:
        _choice.make(name, "a backend")


def backend() -> Backend:
    """
    Tell where the file layer has its operations done, here and now: "io_uring" or "threads".

    It looks whether a ring is to be had, unless that is known. In a loop that makes its ring. A
    single operation that the kernel's rings lack may be done in a thread all the same.

    Raises:
        ValueError: the environment variable URING_AIO_BACKEND names no backend.
    """
    forced = _forced()
    if forced is not None:
        return forced
    if _choice.refusal is None:
        try:
            ring()
        except _NO_RING as error:
            _remember(error)
            return "threads"
        except RingClosedError:  # the loop is ending
            return "threads"
        except RuntimeError:  # outside of a loop
            return _backend_outside()
    return "io_uring" if _choice.refusal is None else "threads"


def _backend_outside() -> Backend:
    try:
        PlainRing(1).close()
    except _NO_RING as error:
        _remember(error)
        return "threads"
    return "io_uring"


def _forced() -> Backend | None:
    if not _choice.is_made:
        use_backend(None)
    return _choice.forced


def usable_ring() -> Ring | None:
    """
    Give the ring of the loop; None when threads are to be used.

    Raises:
        SetupError: there is none, and io_uring is forced.
    """
    forced = _choice.forced if _choice.is_made else _forced()
    if forced == "threads" or (_choice.refusal is not None and forced is None):
        return None
    try:
        return ring()
    except _NO_RING as error:
        _fall_back(error)
        _remember(error)
        return None
    except RingClosedError:  # the loop is ending
        return None


async def do(op: Queueable) -> Any:
    """
    Do an operation, and give its result or raise its error.

    When the loop is ending, and has closed its ring, threads do what generators have left to do.

    Cancellation: as `Ring.do()` has it. In a thread, what has begun cannot be interrupted: the task
        is cancelled when it has ended.
    """
    bound = usable_ring()
    if bound is not None:
        try:
            return await do_on(bound, op)
        except UnsupportedError as error:
            _fall_back(error)
        except RingClosedError as error:
            if not is_ending() or getattr(error, "may_be_done", False):
                raise
    return await _threads.do(op)


async def do_on(bound: Ring, op: Queueable) -> Any:
    """
    Do an operation on a ring, and again where it was interrupted, as Python does (PEP 475).

    On Linux 6.18 whatever a worker is busy with may end with EINTR, and with nothing done, when
    another ring of the thread is closed.
    """
    while True:
        try:
            return await bound.do(op)
        except OSError as error:
            if isinstance(error, UringError) or not _is_to_be_repeated(op, -(error.errno or 0)):
                raise


def _is_to_be_repeated(op: Queueable, res: int) -> bool:
    return res in INTERRUPTED and type(op) is not Close  # which has closed it all the same


async def do_each(ops: Sequence[Queueable]) -> Sequence[CQE]:
    """Do operations that do not depend on each other, in no order: one wait for all of them."""
    bound = usable_ring()
    if bound is not None:
        try:
            return await do_each_on(bound, ops)
        except UnsupportedError as error:
            _fall_back(error)
    return await _threads.each(ops)


async def do_each_on(bound: Ring, ops: Sequence[Queueable]) -> Sequence[CQE]:
    """Do operations on a ring, and again what was interrupted, with what is linked behind it."""
    done = await bound.run(ops)
    if INTERRUPTED.isdisjoint(done.res):
        return done
    each = [*done]
    while again := _interrupted(ops, each):
        try:
            repeated = await bound.run([ops[place] for place in again])
        except BaseException:
            close_all([None, *uncollected_descriptors(each)])
            raise
        for place, cqe in zip(again, repeated, strict=True):
            each[place] = cqe
    return each


def _interrupted(ops: Sequence[Queueable], done: Sequence[CQE]) -> list[int]:
    """The places of those, and of what they have cancelled."""
    found = []
    is_behind = False
    for place, (op, cqe) in enumerate(zip(ops, done, strict=True)):
        if is_behind or _is_to_be_repeated(op, cqe.res):
            found.append(place)
            is_behind = bool(op.flags & SQEFlags.IO_LINK)
    return found


def late_result(error: BaseException) -> int | None:
    """
    Say what an operation did that was done although its task was cancelled.

    Where the task is given the cancellation instead of the result, the error has it.
    """
    result: int | None = getattr(error, "late_result", None)
    return result


def _remember(error: UringError) -> None:
    if getattr(error, "errno", None) not in _PASSING:
        _choice.refusal = error


def _fall_back(error: UringError) -> None:
    """Say once why threads are used, and what to do; where io_uring is forced, raise."""
    if _choice.forced == "io_uring":
        raise error
    if _choice.has_warned:
        return
    _choice.has_warned = True
    warnings.warn(
        f"uring.aio does file operations in threads, for io_uring is not to be had here: {error}."
        f" To have this without a warning, call uring.aio.use_backend('threads'), or set"
        f" {ENVIRONMENT}=threads",
        RuntimeWarning,
        stacklevel=callers_level(),
    )


def callers_level() -> int:
    """Where the caller of the package stands, counted as warnings.warn() does in who asks."""
    level = 1
    with contextlib.suppress(ValueError):  # all of the stack is the package's
        while sys._getframe(level).f_code.co_filename.startswith(_PACKAGE):
            level += 1
    return level
