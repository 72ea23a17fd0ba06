"""Asynchronous files in each event loop, and apart from any."""

import asyncio
import contextlib
import gc
import io
import os
import pickle
import pty
import resource
import warnings
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aio import KITS, Kit, has, until

import uring
import uring.aio
from uring.aio import _raw, files
from uring.aio._backend import do
from uring.aio._iobase import BUSY


@pytest.fixture(params=KITS, ids=lambda kit: kit.name)
def kit(request: pytest.FixtureRequest) -> Kit:
    """Give each event loop."""
    made: Kit = request.param
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the path of a file of three lines."""
    made = tmp_path / "file"
    made.write_bytes(b"one\ntwo\r\nthree")
    return made


def _bytes_in(path: Path) -> bytes:
    return path.read_bytes()


def _drop(kept: list[Any]) -> None:
    kept.clear()
    gc.collect()


# ---- in every loop ----


def test_files_are_awaited_or_entered(kit: Kit, path: Path) -> None:
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
        assert _bytes_in(path).endswith(b"three!")

    kit.run(body)


def test_many_files_are_read_at_once(kit: Kit, tmp_path: Path) -> None:
    """A hundred files that wait at the same time each give their own."""
    for number in range(100):
        (tmp_path / str(number)).write_text(f"{number}\n" * 5000, encoding="utf-8")
    found: dict[int, str] = {}

    async def read(number: int) -> None:
        async with files.open(tmp_path / str(number)) as file:
            found[number] = "".join([line async for line in file])

    async def body() -> None:
        await kit.all(*[partial(read, number) for number in range(100)])

    kit.run(body)
    assert found == {number: f"{number}\n" * 5000 for number in range(100)}


def test_pipes_are_read_and_written(kit: Kit, pipe: tuple[int, int]) -> None:
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

    kit.run(body)


def test_a_cancelled_read_of_a_pipe_loses_nothing(kit: Kit, pipe: tuple[int, int]) -> None:
    """What was read before the cancellation, and what comes after it, the next one gives."""

    async def body() -> None:
        async with files.open(pipe[0], encoding="utf-8") as reader:
            os.write(pipe[1], b"begun, ")
            assert await kit.within(0.02, reader.readline)
            assert await kit.within(0.02, lambda: reader.read(100))
            os.write(pipe[1], "done: €\nmore".encode())
            assert await reader.readline() == "begun, done: €\n"
            os.close(pipe[1])
            assert await reader.read() == "more"

    kit.run(body)


def test_a_cancelled_write_is_taken_and_written_later(kit: Kit, pipe: tuple[int, int]) -> None:
    """What a full pipe does not take is buffered when the task is cancelled, and comes once."""
    text = "0123456789\n" * 40_000

    async def body() -> None:
        writer = await files.open(pipe[1], "w", encoding="utf-8")
        assert await kit.within(0.02, lambda: writer.write(text))
        got = bytearray()

        async def drain() -> None:
            async with files.open(pipe[0], "rb", buffering=0) as reader:
                while part := await reader.read(65536):
                    got.extend(part)

        await kit.all(drain, writer.close)
        assert got.decode() == text

    kit.run(body)


def test_a_cancelled_close_closes_and_writes(
    kit: Kit, path: Path, descriptors: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled in close() leaves neither a descriptor nor what it has written."""
    before = descriptors()

    class Cancelled(BaseException):
        pass

    async def cancels(op: Any) -> Any:
        if isinstance(op, uring.Write | uring.Close):
            raise Cancelled
        return await do(op)

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
    kit.run(body)
    assert path.read_bytes() == b"texts"


@pytest.mark.parametrize("mode", ["w", "ab", "rb"])
def test_files_of_generators_are_closed_with_the_loop(
    mode: str, kit: Kit, path: Path, descriptors: Callable[[], set[str]]
) -> None:
    """What a generator has written that was left unfinished is there, and makes no other ring."""
    before = descriptors()
    data: Any = b"left" if "b" in mode else "left"
    left = []

    async def generate() -> AsyncGenerator[None, None]:
        async with files.open(path, mode) as file:
            if mode != "rb":
                await file.write(data)
            yield

    async def body() -> None:
        uring.aio.ring()
        before.update(descriptors())
        for _ in range(5):
            left.append(generate())
            await anext(left[-1])
            await kit.sleep(0)

    kit.run(body)
    assert descriptors() <= before
    assert path.read_bytes().endswith(b"left") == (mode != "rb")


def test_a_close_at_the_end_of_the_loop_tells_what_is_wrong() -> None:
    """What cannot be written by then is no less an error."""

    async def body() -> None:
        file = await files.open("/dev/full", "w")
        await file.write("never")
        ring = uring.aio.ring()
        ring.loop_ends()
        await ring.aclose()
        with pytest.raises(OSError, match="No space left"):
            await file.close()
        assert file.closed

    asyncio.run(body())


def test_a_second_task_is_refused(kit: Kit, pipe: tuple[int, int]) -> None:
    """A call while another task waits for the same file is a RuntimeError, and disturbs nothing."""

    async def body() -> None:
        async with files.open(pipe[0], "rb") as reader:
            got: list[bytes] = []

            async def first() -> None:
                got.append(await reader.readline())

            async def second() -> None:
                while not reader._is_busy:
                    await kit.sleep(0)
                for call in (reader.readline, partial(reader.read, 1), reader.peek):
                    with pytest.raises(RuntimeError, match=BUSY.split(":", maxsplit=1)[0]):
                        await call()
                os.write(pipe[1], b"line\n")

            await kit.all(first, second)
            assert got == [b"line\n"]
        os.close(pipe[1])

    kit.run(body)


@pytest.mark.parametrize("is_error", [False, True], ids=["close", "error"])
@pytest.mark.parametrize("mode", ["r", "rb"])
def test_what_is_closed_amid_the_call_of_another_task_is_closed_behind_it(
    mode: str, kit: Kit, pipe: tuple[int, int], *, is_error: bool
) -> None:
    """close() says so; an exception in the block is not hidden by that. The call goes on."""

    async def body() -> None:
        got: list[Any] = []

        async def first(reader: Any) -> None:
            got.append(await reader.readline())

        async def second(reader: Any) -> None:
            while not reader._is_busy:
                await kit.sleep(0)
            if is_error:
                with pytest.raises(KeyError):
                    async with reader:
                        raise KeyError
            else:
                with pytest.raises(RuntimeError, match="as soon as that is done"):
                    await reader.close()
            assert not reader.closed
            os.write(pipe[1], b"line\n")

        reader = await files.open(pipe[0], mode)
        await kit.all(lambda: first(reader), lambda: second(reader))
        assert got == ["line\n" if mode == "r" else b"line\n"]
        assert reader.closed
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pipe[0])
        os.close(pipe[1])

    kit.run(body)


def test_what_is_written_is_kept_when_another_task_closes(kit: Kit, path: Path) -> None:
    """A flush is under way: all gets into the file, which is closed then."""

    async def body() -> None:
        writer = await files.open(path, "w")
        await writer.write("written")

        async def close() -> None:
            while not writer._is_busy:
                await kit.sleep(0)
            with pytest.raises(RuntimeError, match="as soon as that is done"):
                await writer.close()

        await kit.all(writer.flush, close)
        assert writer.closed

    kit.run(body)
    assert path.read_text(encoding="ascii") == "written"


def test_pread_and_pwrite_use_no_position(kit: Kit, path: Path) -> None:
    """They read and write the caller's memory, many at once, and flush what was written first."""
    path.write_bytes(bytes(1000))

    async def body() -> None:
        async with files.open(path, "r+b") as file:
            assert await file.read(1) == b"\0"
            assert await file.write(b"x" * 9) == 9
            room = bytearray(20)
            assert await file.pread(memoryview(room)[5:15], 0) == 10
            assert room == bytes(6) + b"x" * 9 + bytes(5)
            assert await file.tell() == 10
            pwrite = file.pwrite
            await kit.all(
                *[partial(pwrite, bytes([number]) * 10, number * 10) for number in range(100)]
            )
            assert await file.tell() == 10
            assert await file.read(5) == bytes([1]) * 5
            assert await file.pread(3, 990) == b"ccc"
            assert await file.pread(30, 1000) == b""
            for wrong in ((3, -1), (3, (1 << 64) - 1), (3, 1 << 63), (-1, 0)):
                with pytest.raises(OSError, match="Invalid argument"):
                    await file.pread(*wrong)
            with pytest.raises(OSError, match="Invalid argument"):
                await file.pwrite(b"x", (1 << 64) - 1)
        async with files.open(path, "rb") as file:
            with pytest.raises(io.UnsupportedOperation):
                await file.pwrite(b"x", 0)
        async with files.open(path, "w") as text:
            await text.write("text")
            with pytest.raises(io.UnsupportedOperation):
                await text.pread(1, 0)
            assert await text.pwrite(b"T", 0) == 1
            await text.fsync()
            assert _bytes_in(path) == b"Text"
        with pytest.raises(ValueError, match="closed file"):
            await text.pwrite(b"x", 0)

    kit.run(body)


def test_syncing_and_allocating_flush_first(kit: Kit, path: Path) -> None:
    """fsync(), fdatasync() and fallocate() come after what was written before them."""

    async def body() -> None:
        for name, args in (("fsync", ()), ("fdatasync", ()), ("fallocate", (0, 0, 100))):
            async with files.open(path, "w", encoding="utf-8") as file:
                await file.write("written")
                await getattr(file, name)(*args)
                assert _bytes_in(path)[:7] == b"written"
            with pytest.raises(ValueError, match="closed file"):
                await getattr(file, name)(*args)
        assert len(_bytes_in(path)) == 100
        async with files.open(path, "r+b", buffering=0) as raw:
            with pytest.raises(OSError, match="Invalid argument"):
                await raw.fallocate(0, 0, 0)

    kit.run(body)


# ---- apart from loops ----


def test_fifos_are_opened_without_waiting_in_this_thread(tmp_path: Path) -> None:
    """Opening one, or the first read of it, waits for the other end while other tasks go on."""
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


@pytest.mark.parametrize("mode", ["r+", "r+b", "w+", "a+b"])
def test_what_has_no_positions_is_not_opened_for_both(mode: str, pipe: tuple[int, int]) -> None:
    """Of a pipe or a terminal one buffer cannot serve two directions: as the built-in open()."""
    master, slave = pty.openpty()

    async def body(fd: int) -> None:
        with pytest.raises(io.UnsupportedOperation, match="is not seekable"):
            await files.open(fd, mode, closefd=False)
        await files.open(fd, "r+b", 0, closefd=False)

    for fd in (slave, pipe[0]):
        asyncio.run(body(fd))
    os.close(master)
    os.close(slave)


def test_non_blocking_pipes_are_waited_for(pipe: tuple[int, int]) -> None:
    """A read of an empty pipe and a write to a full one wait, whatever the descriptor's flags."""
    os.set_blocking(pipe[0], False)
    os.set_blocking(pipe[1], False)

    async def read() -> bytes:
        async with files.open(pipe[0], "rb") as reader:
            return await reader.read()

    async def write() -> None:
        async with files.open(pipe[1], "wb") as writer:
            assert await writer.write(bytes(1 << 20)) == 1 << 20

    async def body() -> None:
        got, _ = await asyncio.gather(read(), write())
        assert got == bytes(1 << 20)

    asyncio.run(body())


def test_files_of_proc_are_read_to_their_end() -> None:
    """A file that says it is empty, and is not, is read all the same."""

    async def body() -> None:
        async with files.open("/proc/self/mounts") as file:
            assert await file.read() == _bytes_in(Path("/proc/self/mounts")).decode()

    asyncio.run(body())


def test_a_whole_file_takes_one_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """read() of all asks for one byte more than there is, and believes a short answer."""
    seen: list[Any] = []

    async def note(op: Any) -> Any:
        seen.append(op)
        return await do(op)

    async def body() -> None:
        async with files.open(path, "rb") as file:
            assert len(await file.read()) == 14
            await file.seek(0)
            assert [line async for line in file]

    monkeypatch.setattr(_raw, "do", note)
    asyncio.run(body())
    assert [type(op).__name__ for op in seen] == ["Read"] * 4 + ["Close"]
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
    with pytest.warns(ResourceWarning, match="unclosed file <uring.aio") as seen:
        _drop(kept)
    assert [warning.filename for warning in seen] == [__file__]
    assert b"dropped" in path.read_bytes()
    assert descriptors() == before


@pytest.mark.parametrize("how", [("r", -1), ("rb", -1), ("rb", 0)], ids=repr)
def test_warnings_of_dropped_files_are_of_the_line_that_drops(
    how: tuple[str, int], path: Path
) -> None:
    """As those of the built-in files: they are seen where something can be done about them."""

    async def body() -> Any:
        return [await files.open(path, *how)]

    kept = asyncio.run(body())
    with pytest.warns(ResourceWarning) as seen:
        kept.clear()
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize("mode", ["w", "wb", "r+", "r+b"])
def test_files_that_are_dropped_in_a_cycle_write(mode: str, path: Path) -> None:
    """Whatever part of a file the garbage collector takes first, all that was written is there."""

    async def body() -> Any:
        file = await files.open(path, mode)
        await file.write(b"dropped" if "b" in mode else "dropped")
        cycle: list[Any] = [file]
        cycle.append(cycle)
        return [cycle]

    kept = asyncio.run(body())
    with pytest.warns(ResourceWarning, match=r"unclosed file <uring.aio.(Text|Buffered)") as seen:
        _drop(kept)
    assert len(seen) == 1
    assert path.read_bytes().startswith(b"dropped")


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
        assert await raw.readall() == _bytes_in(path)
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


def test_an_opening_that_is_used_as_a_file_says_what_is_missing(path: Path) -> None:
    """What a file has is an AttributeError that shows how to get one; hasattr() is as ever."""
    opening = files.open(path)
    with pytest.raises(AttributeError, match=r"^'read' of .* await uring\.aio\.open\("):
        opening.read()  # type: ignore[attr-defined]  # that is the mistake
    assert not hasattr(opening, "write")

    async def body() -> None:
        async with opening as file:
            assert await file.read() != ""

    asyncio.run(body())


def test_an_opening_that_is_not_awaited_warns(path: Path) -> None:
    """open() without await is a coroutine that was never awaited, and is called by its name."""
    with pytest.warns(RuntimeWarning, match=r"'uring\.aio\.open' was never awaited"):
        _drop([files.open(path)])


def test_position_follows_an_append_that_is_short(kit: Kit, path: Path) -> None:
    """Where the kernel takes less than all, tell() and the descriptor are behind what it took."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.stat().st_size

    async def body() -> None:
        async with files.open(path, "ab", 0) as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, hard))
            try:
                assert await file.write(b"abcdef") == 3
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert await file.tell() == size + 3
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == size + 3

    kit.run(body)
    assert path.stat().st_size == size + 3


@pytest.mark.parametrize("buffering", [2, 5, -1])
@pytest.mark.parametrize("name", ["readinto", "readinto1"])
def test_readinto_joins_what_comes_in_parts(
    name: str, buffering: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer that several short reads fill, as of a pipe, has what they have read, in order."""

    async def do_part(op: Any) -> Any:
        if isinstance(op, uring.Read):
            op = uring.Read(op.fd, memoryview(op.buffer)[:3], op.offset)
        return await do(op)

    async def body() -> None:
        async with files.open(path, "rb", buffering) as file:
            room, got = bytearray(8), b""
            while count := await getattr(file, name)(room):
                assert count == 8 or name == "readinto1" or len(got) + count == 14
                got += room[:count]
            assert got == _bytes_in(path)

    monkeypatch.setattr(_raw, "do", do_part)
    asyncio.run(body())


def test_generators_work_in_threads_when_their_loop_has_closed_its_ring(
    kit: Kit, path: Path
) -> None:
    """What is left of them at the end of a loop reads and writes; there is no ring for it."""
    found: list[Any] = []

    async def body() -> None:
        async with files.open(path, "r+b") as file:
            ring = uring.aio.ring()
            assert await file.read(3) == b"one"
            ring.loop_ends()
            await ring.aclose()
            found.append(await file.read(5))
            await file.write(b"THREE")
            found.append(uring.aio.backend())
            with pytest.raises(uring.RingClosedError, match="the event loop is ending"):
                uring.aio.ring()
        found.append(len(await uring.aio.read_bytes(path)))

    kit.run(body)
    assert found == [b"\ntwo\r", "threads", 14]
    assert path.read_bytes() == b"one\ntwo\rTHREEe"


def test_what_the_end_of_a_loop_cuts_off_goes_on_in_a_thread(
    kit: Kit, pipe: tuple[int, int]
) -> None:
    """A read waits for a pipe when the ring is closed, and gets what comes later."""
    got: list[bytes] = []

    async def body() -> None:
        ring = uring.aio.ring()
        async with files.open(pipe[0], "rb", 0) as file:

            async def read() -> None:
                got.append(await file.read(9))

            async def end() -> None:
                await until(kit, has(ring))
                ring.loop_ends()
                await ring.aclose()
                os.write(pipe[1], b"later")

            await kit.all(read, end)
        os.close(pipe[1])

    kit.run(body)
    assert got == [b"later"]


def test_what_may_have_been_done_is_not_done_again(kit: Kit, pipe: tuple[int, int]) -> None:
    """A ring that is closed at once cannot tell what was done: that is an error, and no repeat."""

    async def body() -> None:
        ring = uring.aio.ring()
        async with files.open(pipe[0], "rb", 0) as file:

            async def read() -> None:
                with pytest.raises(uring.RingClosedError):
                    await file.read(9)

            async def end() -> None:
                await until(kit, has(ring))
                ring.loop_ends()
                ring.close()
                os.write(pipe[1], b"later")

            await kit.all(read, end)
        os.close(pipe[1])

    kit.run(body)
