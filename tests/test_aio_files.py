"""Asynchronous files: what the built-in ones do, and what they cannot."""

import asyncio
import contextlib
import gc
import io
import os
import pickle
import pty
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aio import LOOPS
from aio_scripts import (
    BYTES_SCRIPTS,
    TEXT_SCRIPTS,
    Opened,
    Step,
    bytes_files,
    differences,
    make_folders,
    text_files,
)
from hypothesis import given, settings

import uring
import uring.aio
from uring.aio import _raw, files
from uring.aio._iobase import BUSY

SETTINGS = settings(max_examples=250, deadline=None)
Run = Callable[..., Any]


async def _do_here(op: Any) -> Any:
    return await uring.aio.ring().do(op)


@pytest.fixture(autouse=True)
def rings(ring_refusal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every operation done by the ring of the loop."""
    if not ring_refusal:
        monkeypatch.setattr(_raw, "do", _do_here)
        monkeypatch.setattr(files, "do", _do_here)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with one place for each kind of file."""
    return make_folders(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Give one loop for many scripts."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    """Give what runs an async function, in each loop."""
    function: Run = LOOPS[request.param]
    return function


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the path of a file of three lines."""
    made = tmp_path / "file"
    made.write_bytes(b"one\ntwo\r\nthree")
    return made


# ---- as the built-in files ----


@SETTINGS
@given(opened=bytes_files(), script=BYTES_SCRIPTS)
def test_binary_files_do_what_the_built_in_ones_do(
    opened: Opened, script: list[Step], runner: asyncio.Runner, folder: Path
) -> None:
    """The same calls give the same results, exceptions, positions and bytes."""
    assert runner.run(differences(opened, script, folder)) == []


@SETTINGS
@given(opened=text_files(), script=TEXT_SCRIPTS)
def test_text_files_do_what_the_built_in_ones_do(
    opened: Opened, script: list[Step], runner: asyncio.Runner, folder: Path
) -> None:
    """The same calls give the same results, exceptions, cookies and bytes."""
    assert runner.run(differences(opened, script, folder)) == []


WRONG_ARGUMENTS: list[tuple[Any, ...]] = [
    *[(mode,) for mode in ("", "b", "rr", "rw", "z", "rbt", "r++", "U", "bt", "+", "rt+b")],
    *[("rb", -1, "utf-8"), ("rb", -1, None, "strict"), ("rb", -1, None, None, "\n")],
    *[("r", 0), ("w", 0), ("r", -1, "nonsense"), ("r", -1, "hex"), ("r", -1, None, "nonsense")],
    *[("r", -1, None, None, "x"), ("r", -1, None, None, b"\n"), (b"r",), (None,), ("r", "x")],
    ("r", -1, None, None, None, False),
]


def _raised(call: Callable[[], Any]) -> tuple[Any, ...]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - compared
        call()
    error = caught.value
    args: tuple[Any, ...] = () if isinstance(error, TypeError) else error.args
    return type(error), args, getattr(error, "filename", None)


async def _opened(*args: Any, **keywords: Any) -> Any:
    return await files.open(*args, **keywords)


@pytest.mark.parametrize("args", WRONG_ARGUMENTS, ids=repr)
def test_open_refuses_what_the_built_in_one_refuses(args: tuple[Any, ...], path: Path) -> None:
    """Wrong arguments raise the same exceptions, and leave no descriptor open."""
    theirs = _raised(lambda: io.open(path, *args))
    assert _raised(lambda: asyncio.run(_opened(path, *args))) == theirs


@pytest.mark.parametrize("file", [-1, 1.5, None, "a\0b", b"missing", "missing", 123456])
def test_open_refuses_the_files_that_the_built_in_one_refuses(file: Any) -> None:
    """What cannot be opened raises the same exceptions, with the path in `filename`."""
    theirs = _raised(lambda: io.open(file))
    ours = _raised(lambda: asyncio.run(_opened(file)))
    assert ours[0] is theirs[0]
    assert ours[2] == theirs[2]


def test_open_refuses_directories(tmp_path: Path, descriptors: Callable[[], set[str]]) -> None:
    """A directory is an IsADirectoryError, for reading and for writing."""
    before = descriptors()
    for mode in ("rb", "wb", "r+b"):
        theirs = _raised(lambda mode=mode: io.open(tmp_path, mode))
        assert _raised(lambda mode=mode: asyncio.run(_opened(tmp_path, mode))) == theirs
    assert descriptors() == before


@pytest.mark.parametrize("mode", ["r", "w", "a", "x", "r+", "w+", "a+", "x+"])
def test_open_uses_the_flags_of_the_built_in_one(mode: str, tmp_path: Path) -> None:
    """A file is opened with the same flags, and made with the same permissions."""
    if mode[0] == "r":
        (tmp_path / "theirs").touch()
        (tmp_path / "ours").touch()
    seen: list[tuple[int, int]] = []

    def note(fd: int) -> None:
        status = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
        seen.append((int(status.split("flags:\t")[1].split()[0], 8), os.fstat(fd).st_mode))

    async def body() -> None:
        async with files.open(tmp_path / "ours", mode) as file:
            note(file.fileno())

    with io.open(tmp_path / "theirs", mode, encoding="utf-8") as file:
        note(file.fileno())
    asyncio.run(body())
    assert seen[0] == seen[1]


def test_open_calls_its_opener(path: Path) -> None:
    """An opener is called with path and flags; what it may not give is refused."""
    calls: list[Any] = []

    def opener(name: Any, flags: int) -> int:
        calls.append((name, flags))
        return os.open(path, flags)

    async def body() -> None:
        async with files.open("elsewhere", "rb", opener=opener) as file:
            assert await file.readline() == b"one\n"
            assert file.name == "elsewhere"
            assert not os.get_inheritable(file.fileno())

    asyncio.run(body())
    with io.open("elsewhere", "rb", opener=opener) as file:
        assert file.readable()
    assert calls[0] == calls[1]
    for result in (-1, "x", None):
        bad: Any = lambda _name, _flags, result=result: result  # noqa: E731 - made three times
        theirs = _raised(lambda bad=bad: io.open("x", opener=bad))
        assert _raised(lambda bad=bad: asyncio.run(_opened("x", opener=bad))) == theirs


def test_open_warns_as_the_built_in_one(path: Path, tmp_path: Path) -> None:
    """No encoding is an EncodingWarning where Python is told to warn; binary lines warn, too."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, sys, warnings\n"
        "from uring.aio import files\n"
        "async def body():\n"
        "    with warnings.catch_warnings(record=True) as seen:\n"
        "        warnings.simplefilter('always')\n"
        "        async with files.open(sys.argv[1]): pass\n"
        "    assert [(w.category, w.filename, w.lineno) for w in seen] == "
        "[(EncodingWarning, __file__, 6)], seen\n"
        "asyncio.run(body())\n",
        encoding="utf-8",
    )
    code = f"import runpy, sys; sys.argv[1:] = [{str(path)!r}]; runpy.run_path({str(script)!r})"
    status = os.spawnv(
        os.P_WAIT, sys.executable, [sys.executable, "-X", "warn_default_encoding", "-c", code]
    )
    assert status == 0
    with pytest.warns(RuntimeWarning, match="line buffering"):
        opening = files.open(path, "rb", 1)

    async def body() -> None:
        async with opening:
            pass

    asyncio.run(body())


def test_descriptors_are_left_where_the_built_in_files_leave_them(path: Path) -> None:
    """With closefd=False the descriptor stays open, at the position of the file."""
    positions = []

    async def body(fd: int) -> None:
        async with files.open(fd, "rb", closefd=False, buffering=4) as file:
            assert await file.read(2) == b"ne"

    with path.open("rb", buffering=0) as outer:
        fd = outer.fileno()
        for _ in range(2):
            os.lseek(fd, 1, os.SEEK_SET)
            if not positions:
                with io.open(fd, "rb", closefd=False, buffering=4) as file:
                    assert file.read(2) == b"ne"
            else:
                asyncio.run(body(fd))
            positions.append(os.lseek(fd, 0, os.SEEK_CUR))
    assert positions[0] == positions[1] == 5


def test_fileno_moves_the_position_of_the_descriptor(path: Path) -> None:
    """Who reads on at fileno() reads on where the file is."""

    async def body() -> None:
        async with files.open(path, "rb", buffering=0) as file:
            assert await file.read(4) == b"one\n"
            assert os.read(file.fileno(), 3) == b"two"

    asyncio.run(body())


def test_states_of_iso_2022_that_are_none_do_not_crash(path: Path) -> None:
    """A seek() to what was not a tell() gives some text, where io may crash the interpreter."""
    path.write_bytes(b'\x0e*"0\x1b$' * 2000)

    async def body() -> None:
        for encoding in ("iso2022_jp", "iso2022_kr"):
            async with files.open(path, encoding=encoding, errors="replace") as file:
                await file.seek(7)
                assert len(await file.read()) > 1000

    asyncio.run(body())


# ---- in every loop ----


def test_files_are_awaited_or_entered(run: Run, path: Path) -> None:
    """`await open()` gives the file, and `async with open()` closes it."""

    async def body() -> None:
        file = await files.open(path)
        assert [line async for line in file] == ["one\n", "two\n", "three"]
        await file.close()
        await file.close()
        assert file.closed
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            await file.read()
        async with files.open(path, "r+b") as entered:
            assert await entered.readlines() == [b"one\n", b"two\r\n", b"three"]
            await entered.write(b"!")
        assert entered.closed
        assert path.read_bytes().endswith(b"three!")

    run(body)


def test_many_files_are_read_at_once(run: Run, tmp_path: Path) -> None:
    """A hundred files that wait at the same time each give their own."""
    for number in range(100):
        (tmp_path / str(number)).write_text(f"{number}\n" * 5000, encoding="utf-8")
    found: dict[int, str] = {}

    async def read(number: int) -> None:
        async with files.open(tmp_path / str(number)) as file:
            found[number] = "".join([line async for line in file])

    async def body() -> None:
        await gather([lambda number=number: read(number) for number in range(100)])

    run(body)
    assert found == {number: f"{number}\n" * 5000 for number in range(100)}


async def gather(calls: list[Callable[[], Any]]) -> list[BaseException]:
    """Run all at once, whatever the loop; give what was raised."""
    raised: list[BaseException] = []

    async def call_one(call: Callable[[], Any]) -> None:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - handed on
            raised.append(error)

    if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_run():
        async with sys.modules["trio"].open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(call_one, call)
    else:
        await asyncio.gather(*[call_one(call) for call in calls])
    return raised


async def cancelled(call: Callable[[], Any]) -> None:
    """Begin a call, and cancel it when it waits."""
    if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_run():
        with sys.modules["trio"].move_on_after(0.02) as scope:
            await call()
        assert scope.cancelled_caught
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await call()


def test_pipes_are_read_and_written(run: Run, pipe: tuple[int, int]) -> None:
    """What has no positions is read and written as it comes, in binary and in text."""

    async def body() -> None:
        async with files.open(pipe[0], "rb") as reader, files.open(pipe[1], "w") as writer:
            assert not reader.seekable()
            assert await writer.write("one\ntwo\nthree") == 13
            await writer.flush()
            assert await reader.readline() == b"one\n"
            assert await reader.read(2) == b"tw"
            for call in (reader.tell, lambda: reader.pread(1, 0), lambda: writer.pwrite(b"x", 0)):
                with pytest.raises(OSError, match="Illegal seek"):
                    await call()
            with pytest.raises(io.UnsupportedOperation):
                await writer.tell()
            await writer.close()
            assert await reader.read() == b"o\nthree"
            assert await reader.read() == b""

    run(body)


def test_a_cancelled_read_of_a_pipe_loses_nothing(run: Run, pipe: tuple[int, int]) -> None:
    """What was read before the cancellation, and what comes after it, is what the next one gives."""

    async def body() -> None:
        async with files.open(pipe[0], encoding="utf-8") as reader:
            os.write(pipe[1], b"begun, ")
            await cancelled(reader.readline)
            await cancelled(lambda: reader.read(100))
            os.write(pipe[1], "done: €\nmore".encode())
            assert await reader.readline() == "begun, done: €\n"
            os.close(pipe[1])
            assert await reader.read() == "more"

    run(body)


def test_a_cancelled_write_is_taken_and_written_later(run: Run, pipe: tuple[int, int]) -> None:
    """What a full pipe does not take is buffered when the task is cancelled, and comes once."""
    text = "0123456789\n" * 40_000

    async def body() -> None:
        writer = await files.open(pipe[1], "w", encoding="utf-8")
        await cancelled(lambda: writer.write(text))
        got = bytearray()

        async def drain() -> None:
            async with files.open(pipe[0], "rb", buffering=0) as reader:
                while part := await reader.read(65536):
                    got.extend(part)

        assert await gather([drain, writer.close]) == []
        assert got.decode() == text

    run(body)


def test_a_cancelled_close_closes_and_writes(
    run: Run, path: Path, descriptors: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled in close() leaves neither a descriptor nor what it has written."""
    before = descriptors()

    class Cancelled(BaseException):
        pass

    async def cancels(op: Any) -> Any:
        if isinstance(op, uring.Write | uring.Close):
            raise Cancelled
        return await _do_here(op)

    async def body() -> None:
        uring.aio.ring()
        before.update(descriptors())
        for mode, text in (("wb", b"bytes"), ("w", "text"), ("a", "s"), ("rb", None)):
            file = await files.open(path, mode)
            if text is not None:
                await file.write(text)
            with pytest.raises(Cancelled):
                await file.close()
            assert file.closed
        assert descriptors() == before

    monkeypatch.setattr(_raw, "do", cancels)
    run(body)
    assert path.read_bytes() == b"texts"


def test_a_second_task_is_refused(run: Run, pipe: tuple[int, int]) -> None:
    """A call while another task waits for the same file is a RuntimeError, and disturbs nothing."""

    async def body() -> None:
        async with files.open(pipe[0], "rb") as reader:
            got: list[bytes] = []

            async def first() -> None:
                got.append(await reader.readline())

            async def second() -> None:
                for call in (reader.readline, reader.close, lambda: reader.read(1), reader.peek):
                    with pytest.raises(RuntimeError, match=BUSY.split(":", maxsplit=1)[0]):
                        await call()
                os.write(pipe[1], b"line\n")

            assert await gather([first, second]) == []
            assert got == [b"line\n"]
        os.close(pipe[1])

    run(body)


def test_pread_and_pwrite_use_no_position(run: Run, path: Path) -> None:
    """They read and write the caller's memory, many at once, and flush what was written first."""

    async def body() -> None:
        path.write_bytes(bytes(1000))
        async with files.open(path, "r+b") as file:
            assert await file.read(1) == b"\0"
            assert await file.write(b"x" * 9) == 9
            room = bytearray(20)
            assert await file.pread(memoryview(room)[5:15], 0) == 10
            assert room == bytes(6) + b"x" * 9 + bytes(5)
            assert await file.tell() == 10
            calls = [
                lambda number=number: file.pwrite(bytes([number]) * 10, number * 10)
                for number in range(100)
            ]
            assert await gather(calls) == []
            assert await file.tell() == 10
            assert await file.read(5) == bytes([1]) * 5
            assert await file.pread(3, 990) == b"ccc"
            assert await file.pread(30, 1000) == b""
            with pytest.raises(OSError, match="Invalid argument"):
                await file.pread(3, -1)
        async with files.open(path, "rb") as file:
            with pytest.raises(io.UnsupportedOperation):
                await file.pwrite(b"x", 0)
        async with files.open(path, "w") as text:
            await text.write("text")
            with pytest.raises(io.UnsupportedOperation):
                await text.pread(1, 0)
            assert await text.pwrite(b"T", 0) == 1
            await text.fsync()
            assert path.read_bytes() == b"Text"
        with pytest.raises(ValueError, match="closed file"):
            await text.pwrite(b"x", 0)

    run(body)


def test_syncing_and_allocating_flush_first(run: Run, path: Path) -> None:
    """fsync(), fdatasync() and fallocate() come after what was written before them."""

    async def body() -> None:
        for name, args in (("fsync", ()), ("fdatasync", ()), ("fallocate", (0, 0, 100))):
            async with files.open(path, "w", encoding="utf-8") as file:
                await file.write("written")
                await getattr(file, name)(*args)
                assert path.read_bytes()[:7] == b"written"
            with pytest.raises(ValueError, match="closed file"):
                await getattr(file, name)(*args)
        assert path.stat().st_size == 100
        async with files.open(path, "r+b", buffering=0) as raw:
            with pytest.raises(OSError, match="Invalid argument"):
                await raw.fallocate(0, 0, 0)

    run(body)


# ---- apart from loops ----


def test_fifos_are_opened_without_waiting_in_this_thread(tmp_path: Path) -> None:
    """open() of a FIFO waits for the other end while other tasks go on."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def read() -> str:
        async with files.open(fifo) as file:
            return await file.read()

    async def write() -> None:
        async with files.open(fifo, "w") as file:
            await file.write("through\n" * 20_000)

    async def body() -> None:
        text, _ = await asyncio.gather(read(), write())
        assert text == "through\n" * 20_000

    asyncio.run(body())


def test_terminals_are_line_buffered() -> None:
    """Text for a terminal goes out at the end of each line."""
    master, slave = pty.openpty()

    async def body() -> None:
        async with files.open(slave, "w") as file:
            assert file.isatty()
            assert file.line_buffering
            await file.write("half")
            await file.write(" and whole\n")
            assert os.read(master, 100) == b"half and whole\r\n"

    asyncio.run(body())
    os.close(master)


def test_files_that_do_not_wait_say_so(pipe: tuple[int, int]) -> None:
    """On a non-blocking descriptor there is None, or BlockingIOError with what was taken."""
    os.set_blocking(pipe[0], False)
    os.set_blocking(pipe[1], False)

    async def body() -> None:
        async with files.open(pipe[0], "rb") as reader:
            assert await reader.read(5) is None
            assert await reader.read() is None
            assert await reader.read1() == b""
            assert await reader.readinto(bytearray(5)) is None
            writer = await files.open(pipe[1], "wb", buffering=100)
            with pytest.raises(BlockingIOError) as caught:
                await writer.write(bytes(1 << 20))
            assert caught.value.characters_written == (1 << 16) + 100
            assert len(await reader.read()) == 1 << 16
            await writer.close()
            assert await reader.read() == bytes(100)

    asyncio.run(body())


def test_files_of_proc_are_read_to_their_end() -> None:
    """A file that says it is empty, and is not, is read all the same."""

    async def body() -> None:
        async with files.open("/proc/self/mounts") as file:
            assert await file.read() == Path("/proc/self/mounts").read_text(encoding="utf-8")

    asyncio.run(body())


def test_a_whole_file_takes_one_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """read() of all asks for one byte more than there is, and believes a short answer."""
    seen: list[Any] = []

    async def note(op: Any) -> Any:
        seen.append(op)
        return await _do_here(op)

    async def body() -> None:
        async with files.open(path, "rb") as file:
            assert len(await file.read()) == 14
            await file.seek(0)
            assert [line async for line in file]

    monkeypatch.setattr(_raw, "do", note)
    asyncio.run(body())
    assert [type(op).__name__ for op in seen] == ["Read", "Read", "Read", "Close"]
    assert len(seen[0].buffer) == 15


@pytest.mark.parametrize("mode", ["w", "wb", "a", "r+b"])
def test_dropped_files_warn_write_and_close(
    mode: str, path: Path, descriptors: Callable[[], set[str]]
) -> None:
    """A file that is dropped says so, and leaves neither a descriptor nor what it has written."""
    before = descriptors()
    data: Any = b"dropped" if "b" in mode else "dropped"

    async def body() -> Any:
        file = await files.open(path, mode)
        await file.write(data)
        return [file]

    kept = asyncio.run(body())  # the loop is closed when it is dropped
    with pytest.warns(ResourceWarning, match="unclosed file <uring.aio"):
        kept.clear()
        gc.collect()
    assert b"dropped" in path.read_bytes()
    assert descriptors() == before


def test_dropped_files_never_wait(pipe: tuple[int, int]) -> None:
    """What a full pipe does not take is lost when a file is dropped, instead of stopping all."""
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while os.write(pipe[1], bytes(4096)):
            pass
    os.set_blocking(pipe[1], True)

    async def body() -> Any:
        file = await files.open(pipe[1], "wb")
        await file.write(b"never")
        return [file]

    kept = asyncio.run(body())
    with pytest.warns(ResourceWarning):
        kept.clear()
    assert not Path(f"/proc/self/fd/{pipe[1]}").exists()


def test_detached_and_borrowed_files_are_dropped_in_silence(path: Path) -> None:
    """Only a file that would close its descriptor warns, and only one at a time."""

    async def body(fd: int) -> None:
        text = await files.open(path)
        buffer = await text.detach()
        raw = await buffer.detach()
        for file in (text, buffer):
            with pytest.raises(ValueError, match="has been detached"):
                await file.read()
        assert await raw.readall() == path.read_bytes()
        await raw.close()
        await files.open(fd, "rb", closefd=False)

    with warnings.catch_warnings(), path.open("rb") as outer:
        warnings.simplefilter("error")
        asyncio.run(body(outer.fileno()))
        gc.collect()


def test_files_are_not_pickled(path: Path) -> None:
    """They refuse it, as the built-in ones do."""

    async def body() -> None:
        async with files.open(path) as file:
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(file)

    asyncio.run(body())


def test_an_opening_that_is_not_awaited_warns(path: Path) -> None:
    """open() without await is a coroutine that was never awaited."""
    with pytest.warns(RuntimeWarning, match="never awaited"):
        files.open(path)
        gc.collect()
