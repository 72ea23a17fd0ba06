"""Where the file layer does its operations, how that is chosen, and what is said of it."""

import asyncio
import errno
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from aio import Kit
from aio_tasks import SECONDS

import uring
from uring import CQE, Close, Nop, Openat, Write, aio
from uring.aio._backend import ENVIRONMENT, do, do_each, do_each_on

FAULTS: Final = Path(__file__).parent / "faults"
IO_URING_SETUP: Final = 425
IO_URING_REGISTER: Final = 427


pytestmark = pytest.mark.usefixtures("undecided")


SCRIPT: Final = """
import asyncio, os, sys, warnings
sys.path.insert(0, sys.argv[1])
from fault_filters import refuse
from uring import aio
import uring

refuse(int(sys.argv[2]), int(sys.argv[3]))
caught = []
warnings.showwarning = lambda message, kind, name, line, *_: caught.append((kind, name, message))
warnings.simplefilter("always")

async def body():
    for _ in range(3):
        await aio.stat("/")
        await aio.write_bytes(sys.argv[4], b"content")
        assert await aio.read_bytes(sys.argv[4]) == b"content"

"""


def run_refused(
    rest: str, path: Path, *, number: int = IO_URING_SETUP, error: int = errno.EPERM, env: str = ""
) -> str:
    """Run the script in a process that gets no rings: what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT + rest, FAULTS, str(number), str(error), path],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, ENVIRONMENT: env},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
def test_without_io_uring_threads_do_it(tmp_path: Path, error: int) -> None:
    """Files work, and backend() says by what; trio is not imported; a second loop is the same."""
    rest = (
        "asyncio.run(body())\nasyncio.run(body())\n"
        "print(aio.backend(), 'trio' in sys.modules, len(caught))\n"
    )
    found = run_refused(rest, tmp_path / "file", error=error)
    assert found == "threads False 1\n"


def test_warning_says_why_and_what_to_do(tmp_path: Path) -> None:
    """It is one RuntimeWarning, of the line of the caller's, with the reason and two remedies."""
    rest = (
        "async def both():\n    await body()\n"
        "    await asyncio.gather(aio.stat('/'), aio.stat('/'))\n"
        "asyncio.run(both())\n"
        "for kind, name, message in caught:\n    print(kind.__name__, name, message)\n"
    )
    found = run_refused(rest, tmp_path / "file")
    assert found.count("\n") == 1
    assert found.startswith("RuntimeWarning <string> uring.aio does file operations in threads")
    for part in ("seccomp filter", "seccomp=unconfined", "use_backend('threads')", ENVIRONMENT):
        assert part in found


def test_ring_whose_eventfd_is_refused_is_none(tmp_path: Path) -> None:
    """Where io_uring_register(2) is forbidden, threads do it, too."""
    rest = "asyncio.run(body())\nprint(aio.backend(), len(caught))\n"
    found = run_refused(rest, tmp_path / "file", number=IO_URING_REGISTER)
    assert found == "threads 1\n"


@pytest.mark.parametrize("how", ["call", "environment"])
def test_forced_io_uring_does_not_fall_back(tmp_path: Path, how: str) -> None:
    """The ring's own SetupError is raised, by all functions and without a warning."""
    rest = (
        "try:\n    asyncio.run(body())\n"
        "except uring.SetupError as error:\n"
        "    print(aio.backend(), error.errno, 'seccomp' in str(error), len(caught))\n"
    )
    env = "io_uring" if how == "environment" else ""
    first = "" if env else "aio.use_backend('io_uring')\n"
    found = run_refused(first + rest, tmp_path / "file", env=env)
    assert found == "io_uring 1 True 0\n"


@pytest.mark.parametrize("how", ["call", "environment"])
def test_forced_threads_are_no_reason_to_warn(tmp_path: Path, how: str) -> None:
    """Nothing is asked of io_uring, and nothing said."""
    rest = "asyncio.run(body())\nprint(aio.backend(), len(caught))\n"
    env = "threads" if how == "environment" else ""
    first = "" if env else "aio.use_backend('threads')\n"
    assert run_refused(first + rest, tmp_path / "file", env=env) == "threads 0\n"


def test_core_never_falls_back(tmp_path: Path) -> None:
    """`uring.aio.ring()` raises SetupError after files have fallen back, and before."""
    rest = (
        "async def core():\n"
        "    for _ in range(2):\n"
        "        try:\n            aio.ring()\n"
        "        except uring.SetupError as error:\n            print(error.errno)\n"
        "        await body()\n"
        "asyncio.run(core())\n"
    )
    assert run_refused(rest, tmp_path / "file") == "1\n1\n"


def test_unknown_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By use_backend(), and from the environment when it is looked at."""
    with pytest.raises(ValueError, match='a backend must be "io_uring" or "threads", not \'uvloop'):
        aio.use_backend("uvloop")  # type: ignore[arg-type]  # on purpose
    monkeypatch.setenv(ENVIRONMENT, "epoll")
    with pytest.raises(ValueError, match=f"{ENVIRONMENT} must be"):
        aio.use_backend(None)
    monkeypatch.setenv(ENVIRONMENT, "threads")
    aio.use_backend(None)
    assert aio.backend() == "threads"
    aio.use_backend("io_uring")  # before the environment
    assert aio.backend() == "io_uring"
    monkeypatch.setenv(ENVIRONMENT, "")
    aio.use_backend(None)


@pytest.mark.usefixtures("ring")
def test_backend_is_the_ring_where_there_is_one(kit: Kit) -> None:
    """In a loop and outside, without a warning; in a loop that is its one ring."""

    async def body() -> None:
        assert aio.backend() == "io_uring"
        bound = aio.ring()
        assert await do(uring.Nop()) == 0
        assert aio.ring() is bound

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert aio.backend() == "io_uring"
        kit.run(body)


@pytest.mark.usefixtures("ring")
def test_lack_of_descriptors_is_not_remembered() -> None:
    """Without one left for a ring a thread does it; with one again the ring does."""

    async def body() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.open("/", os.O_RDONLY)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            with pytest.warns(RuntimeWarning, match="RLIMIT_NOFILE"):
                await aio.stat("/")
            assert aio.backend() == "threads"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert aio.backend() == "io_uring"
        await aio.stat("/")

    asyncio.run(body())


@pytest.mark.usefixtures("ring")
def test_operation_that_the_kernel_lacks_is_done_in_a_thread(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone, with a warning that names it; where io_uring is forced it is UnsupportedError."""
    known = frozenset({*uring.probe().opcodes}) - {uring.Opcode.MKDIRAT}
    monkeypatch.setattr(probe_module_of_ring(), "_remembered", [known])

    async def body() -> None:
        with pytest.warns(RuntimeWarning, match="lacks Mkdirat"):
            await aio.mkdir(tmp_path / "one")
        await aio.mkdir(tmp_path / "two")
        assert aio.backend() == "io_uring"
        done = await do_each([uring.Mkdirat(tmp_path / "three")])
        assert [cqe.res for cqe in done] == [0]
        aio.use_backend("io_uring")
        with pytest.raises(uring.UnsupportedError, match="lacks Mkdirat"):
            await aio.mkdir(tmp_path / "four")

    kit.run(body)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def probe_module_of_ring() -> Any:
    """The module that remembers the kernel's opcodes: its name is a function's, too."""
    return sys.modules["uring.probe"]


# ---- what a disturbed worker has not done ----


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize("at_once", [False, True])
def test_interrupted_operation_is_done_again(kit: Kit, tmp_path: Path, *, at_once: bool) -> None:
    """As Python does, for nobody has cancelled the task; what was cancelled is not."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def open_it() -> int:
        op = Openat(fifo, os.O_WRONLY | os.O_CREAT)  # a worker waits there for who reads
        try:
            opened: int = (await do_each([op]))[0].result() if at_once else await do(op)
        except OSError as error:
            return -(error.errno or 0)
        return opened

    async def disturb() -> tuple[int, int]:
        answer = -errno.ENOENT
        while answer == -errno.ENOENT:
            await kit.sleep(0.001)
            try:
                answer = await aio.ring().do(uring.AsyncCancelOp(uring.Opcode.OPENAT))
            except OSError as error:
                answer = -(error.errno or 0)
        return answer, os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    async def body() -> None:
        answer = 0
        while answer == 0:  # it was cancelled before a worker had it
            writer, (answer, reader) = await kit.all(open_it, disturb)
            os.close(reader)
            assert answer in {0, -errno.EALREADY}
            assert writer == -errno.ECANCELED if answer == 0 else writer >= 0
        os.close(writer)

    kit.run(body)


class Scripted(list[CQE]):
    """What a ring that answers as it was told has answered."""

    @property
    def res(self) -> list[int]:
        """As `Completions` has them."""
        return [cqe.res for cqe in self]


class Disturbed:
    """A ring whose workers are disturbed where it is told so."""

    def __init__(self, *answers: Sequence[int]) -> None:
        self.answers = list(answers)
        self.asked: list[list[Any]] = []

    async def run(self, ops: list[Any]) -> Scripted:
        """Answer, and note what was asked; without an answer the task is cancelled."""
        self.asked.append(ops)
        if not self.answers:
            raise asyncio.CancelledError
        answers = zip(ops, self.answers.pop(0), strict=True)
        return Scripted(CQE(0, res, 0, op) for op, res in answers)


@pytest.mark.parametrize("interrupted", [-errno.EINTR, -512])
def test_chains_go_on_with_what_was_interrupted(interrupted: int) -> None:
    """What is linked behind it was cancelled, and is done with it; nothing else, and no close."""
    link = uring.SQEFlags.IO_LINK
    opened, written = Openat("name", flags=link), Write(3, b"content", flags=link)
    chain = [opened, written, Close(3)]
    cancelled = -errno.ECANCELED
    ring = Disturbed(
        [3, interrupted, cancelled, interrupted, cancelled, cancelled, 0, interrupted, -errno.EIO],
        [interrupted, cancelled, 3, 7, 0],
        [7, interrupted],
    )
    ops = [*chain, *chain, Nop(), Close(4), Nop()]
    done = asyncio.run(do_each_on(ring, ops))  # type: ignore[arg-type]  # as far as it is asked
    assert [cqe.res for cqe in done] == [3, 7, interrupted, 3, 7, 0, 0, interrupted, -errno.EIO]
    assert [cqe.op for cqe in done] == ops
    assert ring.asked == [ops, [*chain[1:], *chain], chain[1:]]


def test_what_was_opened_is_closed_when_the_repetition_is_cancelled() -> None:
    """The descriptors of what was done at once are lost to the caller."""
    fd = os.open("/dev/null", os.O_RDONLY)
    ring = Disturbed([fd, -errno.EINTR])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(do_each_on(ring, [Openat("one"), Openat("two")]))  # type: ignore[arg-type]  # as above
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
