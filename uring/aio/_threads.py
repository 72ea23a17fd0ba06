"""
Operations in a thread, where there are no rings: the system call that each stands for.

An operation is encoded here as it is for a ring, which checks it and pins its memory; a table says
with which function of the C library the record's fields are what the kernel would be asked; and
what that answers is a `CQE`, whose result or error is then the very same. So there is no second
description of what operations mean.

The task waits until the thread has let go of the memory, also when it is cancelled meanwhile: a
thread cannot be interrupted. So what waits for others, such as opening a FIFO, ends no sooner.
"""

import asyncio
import ctypes
import errno
import select
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, NoReturn, TypeVar

from uring.aio._asyncio import AsyncioLoop
from uring.aio._detect import running_kind
from uring.completions import CQE, Answer, close_all, descriptors_of
from uring.errors import UnsupportedError
from uring.flags import FsyncFlags, Opcode
from uring.operations import Close
from uring.sqe import SQE, SQE_SIZE, UINT64_MAX, Queueable, encoded

_T = TypeVar("_T")

_libc: Final = ctypes.CDLL(None, use_errno=True)
_KINDS: Final[Mapping[str, Any]] = {
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "n": ctypes.c_ssize_t,
    "p": ctypes.c_void_p,
    "q": ctypes.c_int64,
}
_OPENAT2: Final = 437  # since 424 new system calls have the same number on all machines
_RWF_NOWAIT: Final = 8  # linux/fs.h; os has it only where the C library does
_IOVEC: Final = struct.Struct("@PN")


def _ask(name: str, codes: str, *arguments: int) -> int:
    """Call a function of the C library: what it returns, or its negative errno."""
    kinds = [_KINDS[code] for code in codes]
    try:
        function = _libc[name]  # with types of its own, unlike an attribute, which all share
    except AttributeError:
        return -errno.ENOSYS
    function.restype, function.argtypes = kinds[0], kinds[1:]
    while True:
        res = int(function(*arguments))
        if res >= 0:
            return res
        number = ctypes.get_errno()
        if number != errno.EINTR or name == "close":  # which has closed it all the same
            return -number


def _plain(name: str, codes: str, *fields: str) -> Callable[[SQE], int]:
    """Make the call whose arguments are these fields of the record."""
    return lambda sqe: _ask(name, codes, *[getattr(sqe, field) for field in fields])


def _transfer(sqe: SQE) -> int:
    """Read or write, as the kernel does for a ring: at no position where there is none."""
    is_write = sqe.opcode in {Opcode.WRITE, Opcode.WRITEV}
    address, count = sqe.addr, sqe.len
    if sqe.opcode in {Opcode.READ, Opcode.WRITE}:
        iovec = ctypes.create_string_buffer(_IOVEC.pack(sqe.addr, sqe.len))
        address, count = ctypes.addressof(iovec), 1
    name, events = ("pwritev2", select.POLLOUT) if is_write else ("preadv2", select.POLLIN)
    offset = -1 if sqe.off == UINT64_MAX else sqe.off
    while True:
        res = _ask(name, "nipiqi", sqe.fd, address, count, offset, sqe.op_flags)
        if res == -errno.ESPIPE and offset != -1:
            offset = -1
        elif res == -errno.EAGAIN and not sqe.op_flags & _RWF_NOWAIT:
            poll = select.poll()
            poll.register(sqe.fd, events)
            poll.poll()
        else:
            return res


def _fsync(sqe: SQE) -> int:
    return _ask("fdatasync" if sqe.op_flags & FsyncFlags.DATASYNC else "fsync", "ii", sqe.fd)


def _openat2(sqe: SQE) -> int:
    return _ask("syscall", "nnippn", _OPENAT2, sqe.fd, sqe.addr, sqe.off, sqe.len)


_CALLS: Final[Mapping[int, Callable[[SQE], int]]] = {
    Opcode.OPENAT: _plain("openat", "iipiu", "fd", "addr", "op_flags", "len"),
    Opcode.OPENAT2: _openat2,
    Opcode.CLOSE: _plain("close", "ii", "fd"),
    Opcode.READ: _transfer,
    Opcode.WRITE: _transfer,
    Opcode.READV: _transfer,
    Opcode.WRITEV: _transfer,
    Opcode.FSYNC: _fsync,
    Opcode.FALLOCATE: _plain("fallocate", "iiiqq", "fd", "len", "off", "addr"),
    Opcode.FTRUNCATE: _plain("ftruncate", "iiq", "fd", "off"),
    Opcode.STATX: _plain("statx", "iipiup", "fd", "addr", "op_flags", "len", "off"),
    Opcode.UNLINKAT: _plain("unlinkat", "iipi", "fd", "addr", "op_flags"),
    Opcode.MKDIRAT: _plain("mkdirat", "iipu", "fd", "addr", "len"),
    Opcode.RENAMEAT: _plain("renameat2", "iipipu", "fd", "addr", "len", "off", "op_flags"),
    Opcode.LINKAT: _plain("linkat", "iipipi", "fd", "addr", "len", "off", "op_flags"),
    Opcode.SYMLINKAT: _plain("symlinkat", "ipip", "addr", "fd", "off"),
    Opcode.GETXATTR: _plain("getxattr", "npppn", "addr3", "addr", "off", "len"),
    Opcode.FGETXATTR: _plain("fgetxattr", "nippn", "fd", "addr", "off", "len"),
    Opcode.SETXATTR: _plain("setxattr", "ipppni", "addr3", "addr", "off", "len", "op_flags"),
    Opcode.FSETXATTR: _plain("fsetxattr", "iippni", "fd", "addr", "off", "len", "op_flags"),
}
"""The first letter of the codes is what is returned; operations/*.py say what lies where."""

_ELSEWHERE: Final = ("flags", "personality", "buf_index", "splice_fd_in", "attr_type_mask")
"""Fields of the record that mean something to a ring alone."""


def _prepare(op: Queueable) -> Callable[[], CQE]:
    """Check an operation and pin its memory: what is left to do in a thread."""
    record, pins = encoded(op)
    sqe = SQE.decode(record[:SQE_SIZE])
    call = _CALLS.get(sqe.opcode)
    if call is None or any(getattr(sqe, field) for field in _ELSEWHERE):
        raise UnsupportedError(
            errno.EOPNOTSUPP, f"without io_uring threads do what files need, and not {op!r}"
        )
    return partial(_perform, call, sqe, op, pins)


def _perform(call: Callable[[SQE], int], sqe: SQE, op: Queueable, pins: object) -> CQE:
    return CQE(0, call(sqe), 0, Answer(op, pins) if op._keeps_memory else op)


class Job(Generic[_T]):
    """Something to be done in a thread, once, unless it is withdrawn before that begins."""

    __slots__ = ("_work", "discard", "is_firm")

    def __init__(
        self,
        work: Callable[[], _T],
        discard: Callable[[_T], None] = lambda _: None,
        *,
        is_firm: bool = False,
    ) -> None:
        self._work = [work]
        self.discard = discard
        """Called with a result that nobody will have."""
        self.is_firm = is_firm
        """Whether it is done even for a task that is cancelled."""

    def run(self) -> _T | Exception | None:
        """Do it: the result, or the error; None if it was withdrawn."""
        try:
            work = self._work.pop()
        except IndexError:
            return None
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - handed on
            return error

    def withdraw(self) -> bool:
        """Take it back; False when it has begun. It holds on to nothing afterwards."""
        try:
            self._work.pop()  # one step: whoever has it has it alone
        except IndexError:
            return False
        return True


async def do(op: Queueable) -> Any:
    """Do an operation, and give its result or raise its error: as `Ring.do()`."""
    (cqe,) = await each([op])
    return cqe.result()


async def each(ops: Sequence[Queueable]) -> list[CQE]:
    """Do operations, in no order, and give what came of each."""
    jobs = [Job(_prepare(op), _discard, is_firm=type(op) is Close) for op in ops]
    done: list[CQE] = []
    outcomes = await do_all(jobs)
    for outcome in outcomes:
        if isinstance(outcome, Exception):  # no memory, say: what an operation raises is a CQE
            _give_up(jobs, outcomes, outcome)
        done.append(outcome)
    return done


def _discard(cqe: CQE) -> None:
    close_all([None, *descriptors_of(cqe)])


async def do_all(jobs: Sequence[Job[_T]]) -> list[_T | Exception]:
    """
    Do jobs in threads, in no order, and give the result or the error of each.

    Of a task that is cancelled what has begun is waited for, and what has not is withdrawn.
    """
    if running_kind() is AsyncioLoop:
        return await _do_all_in_asyncio(jobs)
    return await _do_all_in_trio(jobs)


async def _do_all_in_asyncio(jobs: Sequence[Job[_T]]) -> list[_T | Exception]:
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[_T | Exception | None]] = []
    failure: BaseException | None = None
    try:
        for job in jobs:
            futures.append(loop.run_in_executor(None, job.run))  # noqa: PERF401 - one may fail
    except RuntimeError as error:  # no thread can be started
        failure = error
        _withdraw(jobs, futures)
    while waiting := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(waiting)  # which leaves them alone when it is cancelled
        except asyncio.CancelledError as error:
            failure = error
            _withdraw(jobs, futures)
    results = [None if future.cancelled() else future.result() for future in futures]
    return _outcomes(jobs, results, failure)


async def _do_all_in_trio(jobs: Sequence[Job[_T]]) -> list[_T | Exception]:
    import trio  # noqa: PLC0415 - it runs

    results: list[_T | Exception | None] = [None] * len(jobs)
    failure: BaseException | None = None

    async def do_one(index: int) -> None:
        with trio.CancelScope(shield=jobs[index].is_firm):
            results[index] = await trio.to_thread.run_sync(jobs[index].run)

    try:
        if len(jobs) == 1:
            await do_one(0)
        else:
            async with trio.open_nursery() as nursery:
                for index in range(len(jobs)):
                    nursery.start_soon(do_one, index)
    except BaseException as error:  # noqa: BLE001 - raised again
        failure = error
        _withdraw(jobs)
    return _outcomes(jobs, results, failure)


def _withdraw(
    jobs: Sequence[Job[_T]], futures: Sequence["asyncio.Future[_T | Exception | None]"] = ()
) -> None:
    for index, job in enumerate(jobs):
        if not job.is_firm and job.withdraw() and index < len(futures):
            futures[index].cancel()


def _outcomes(
    jobs: Sequence[Job[_T]],
    results: Sequence[_T | Exception | None],
    failure: BaseException | None,
) -> list[_T | Exception]:
    if failure is not None:
        _give_up(jobs, results, failure)
    return [result for result in results if result is not None]  # none was withdrawn


def _give_up(
    jobs: Sequence[Job[_T]], results: Sequence[_T | Exception | None], failure: BaseException
) -> NoReturn:
    """Look after what nobody will have, and raise."""
    for job, result in zip(jobs, results, strict=False):
        if isinstance(result, Exception):
            if result is not failure:
                failure.add_note(f"besides, in a thread: {result!r}")
        elif result is not None:
            job.discard(result)
            if isinstance(result, CQE):
                failure.late_result = result.res  # type: ignore[attr-defined]  # as Ring.do()
                failure.add_note(f"{result.op!r} was done all the same: res is {result.res}")
    raise failure
