"""Asynchronous files do what the built-in ones do."""

import array
import asyncio
import contextlib
import errno
import gc
import itertools
import os
import resource
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aio_scripts import (
    BYTES_SCRIPTS,
    TEXT_SCRIPTS,
    Opened,
    Step,
    bytes_files,
    differences,
    have,
    make_folders,
    text_files,
)
from hypothesis import given, settings

import uring.aio
from uring.aio import _raw, files

SETTINGS = settings(max_examples=250, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with one place for each kind of file."""
    return make_folders(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Give one loop for many scripts."""
    with asyncio.Runner() as made:
        yield made


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
    *[("r", 0), ("w", 0), ("r", -1, "nonsense"), ("r", -1, "hex")],
    *[("r", -1, None, None, "x"), ("r", -1, None, None, b"\n"), (b"r",), (None,), ("r", "x")],
    ("r", -1, None, None, None, False),
]


def _raised(call: Callable[[], Any]) -> tuple[Any, ...]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - compared
        call()
    error = caught.value
    args: tuple[Any, ...] = () if isinstance(error, TypeError) else error.args
    return type(error), args, getattr(error, "filename", None)


def _run_open(*args: Any, **keywords: Any) -> Any:
    async def body() -> Any:
        return await files.open(*args, **keywords)

    return asyncio.run(body())


def _give(result: object, *_args: object) -> object:
    return result


@pytest.mark.parametrize("before", [[], [Step("seek", (0,))]], ids=["at once", "after a seek"])
def test_text_files_take_turns_as_the_built_in_ones_do(
    before: list[Step], runner: asyncio.Runner, folder: Path
) -> None:
    """Reading, writing, iterating and asking for the position, in every order of three calls."""
    opened = Opened("r+", -1, "ascii", None, "\n", b"a\nbb\nc\nd\n")
    names = ["__next__", "read", "readline", "flush", "tell"]
    calls = [
        *[Step(name) for name in names],
        *[Step("read", (3,)), Step("write", ("XY",)), Step("seek", (0,))],
        Step("reconfigure", (), {"newline": ""}),
    ]
    for script in itertools.product(calls, repeat=3):
        assert runner.run(differences(opened, [*before, *script], folder)) == [], script


@pytest.mark.parametrize("args", WRONG_ARGUMENTS, ids=repr)
def test_open_refuses_what_the_built_in_one_refuses(args: tuple[Any, ...], path: Path) -> None:
    """Wrong arguments raise the same exceptions, and leave no descriptor open."""
    theirs = _raised(partial(open, path, *args))
    assert _raised(partial(_run_open, path, *args)) == theirs


@pytest.mark.parametrize(
    "keywords",
    [
        *({name: b"x"} for name in ("encoding", "errors", "newline", "buffering")),
        *({"buffering": wrong} for wrong in (None, 1.5, 1 << 31, -1 << 40)),
    ],
    ids=repr,
)
def test_arguments_of_other_types_leave_the_file_alone(
    keywords: dict[str, Any], path: Path
) -> None:
    """They are refused as by the built-in open(), before a file is made empty."""
    theirs = _raised(partial(open, path, "w", **keywords))
    assert _raised(partial(_run_open, path, "w", **keywords))[0] is theirs[0]
    assert path.read_bytes() == b"one\ntwo\r\nthree"


@pytest.mark.parametrize("file", [-1, 1.5, None, "a\0b", b"missing", "missing", 123456])
def test_open_refuses_the_files_that_the_built_in_one_refuses(file: Any) -> None:
    """What cannot be opened raises the same exceptions, with the path in `filename`."""
    theirs = _raised(partial(open, file))
    ours = _raised(partial(_run_open, file))
    assert ours[0] is theirs[0]
    assert ours[2] == theirs[2]


def test_open_refuses_directories(tmp_path: Path, descriptors: Callable[[], set[str]]) -> None:
    """A directory is an IsADirectoryError, for reading and for writing."""
    before = descriptors()
    for mode in ("rb", "wb", "r+b"):
        theirs = _raised(partial(open, tmp_path, mode))
        assert _raised(partial(_run_open, tmp_path, mode)) == theirs
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

    with (tmp_path / "theirs").open(mode, encoding="utf-8") as file:
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
    with open("elsewhere", "rb", opener=opener) as file:
        assert file.readable()
    assert calls[0] == calls[1]
    for result in (-1, "x", None):
        bad: Any = partial(_give, result)
        theirs = _raised(partial(open, "x", opener=bad))
        assert _raised(partial(_run_open, "x", opener=bad)) == theirs


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
    positions: list[int] = []

    async def body(fd: int) -> None:
        async with files.open(fd, "rb", closefd=False, buffering=4) as file:
            assert await file.read(2) == b"ne"

    with path.open("rb", buffering=0) as outer:
        fd = outer.fileno()
        for _ in range(2):
            os.lseek(fd, 1, os.SEEK_SET)
            if not positions:
                with open(fd, "rb", closefd=False, buffering=4) as file:
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


def test_state_that_no_position_has_room_for_is_refused(
    runner: asyncio.Runner, folder: Path
) -> None:
    """tell() amid ISO 2022-KR, whose decoder has states above 2**31: OverflowError for both."""
    opened = Opened("r", -1, "iso2022_kr", None, None, b'\x1b$)C\x0e"f\x0f', chunk=1)
    script = [Step("read", (1,)), Step("tell"), Step("read"), Step("tell"), Step("seek", (0,))]
    assert runner.run(differences(opened, script, folder)) == []


def test_states_of_iso_2022_that_are_none_do_not_crash(path: Path) -> None:
    """A seek() to what was not a tell() gives some text, where io may crash the interpreter."""
    path.write_bytes(b'\x0e*"0\x1b$' * 2000)

    async def body() -> None:
        for encoding in ("iso2022_jp", "iso2022_kr"):
            async with files.open(path, encoding=encoding, errors="replace") as file:
                await file.seek(7)
                assert len(await file.read()) > 1000

    asyncio.run(body())


@pytest.mark.parametrize("size", [1 << 30, 1 << 33, sys.maxsize])
@pytest.mark.parametrize(("mode", "buffering"), [("rb", 0), ("rb", -1), ("r+b", 100), ("r", -1)])
def test_reading_far_more_than_there_is_costs_nothing(
    mode: str, buffering: int, size: int, path: Path
) -> None:
    """Whatever size is asked for, the memory used is that of what is read; of pread() as well."""

    async def body() -> None:
        async with files.open(path, mode, buffering) as file:
            assert len(await file.read(size)) == (14 if "b" in mode else 13)
            if "b" in mode:
                assert await file.pread(size, 9) == b"three"
                assert await file.pread(size, 1 << 40) == b""

    tracemalloc.start()
    try:
        asyncio.run(body())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_buffer_of_any_size_costs_what_is_in_it(path: Path) -> None:
    """Buffers of two gigabytes are read from, searched for lines, and written from."""

    async def body() -> None:
        async with files.open(path, "r+b", (1 << 31) - 1) as file:
            assert await file.readline() == b"one\n"
            assert [line async for line in file] == [b"two\r\n", b"three"]
            await file.write(b"!" * 10)
        assert path.read_bytes() == b"one\ntwo\r\nthree!!!!!!!!!!"  # noqa: ASYNC240 - it is here

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asyncio.run(body())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 100_000  # kilobytes


def test_one_pread_moves_no_more_than_the_kernel_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer that is too large for one operation is filled, or written, as far as that goes."""
    monkeypatch.setattr(_raw, "_IO_MAX", 5)

    async def body() -> None:
        async with files.open(path, "r+b") as file:
            room = array.array("i", bytes(8))
            assert await file.pread(room, 0) == 5
            assert room.tobytes() == b"one\nt\0\0\0"
            assert await file.pread(8, 4) == b"two\r\n"
            assert await file.pwrite(array.array("i", b"ONE\nTWO!"), 0) == 5
            assert await file.read() == b"ONE\nTwo\r\nthree"

    asyncio.run(body())


@pytest.mark.parametrize("buffering", [1, 100])
def test_what_is_decoded_is_there_when_a_write_has_failed(buffering: int, path: Path) -> None:
    """A write() that raises leaves a text file that is read where the built-in one is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())

    async def body(opening: Any, name: Path) -> list[Any]:
        file = await have(opening(name, "r+", buffering))
        found = [await have(file.readline())]
        with pytest.raises(OSError, match="File too large"):
            await have(file.write("x" * 10_000 + "\n"))
        found.append(await have(file.readline()))
        await have(file.close())
        return found

    resource.setrlimit(resource.RLIMIT_FSIZE, (14, hard))
    try:
        theirs = asyncio.run(body(open, other))
        assert asyncio.run(body(files.open, path)) == theirs == ["one\n", "two\n"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("mode", ["r", "rb", "r+b", "raw"])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        *[(name, (-1 << 70,)) for name in ("read", "readline", "readlines", "read1")],
        *[("seek", (0, "x")), ("seek", (0, 1.0)), ("seek", (sys.maxsize, os.SEEK_CUR))],
        ("readinto", (memoryview(bytearray(8))[::2],)),
    ],
)
def test_numbers_and_buffers_are_refused_as_by_the_built_in_files(
    name: str, args: tuple[Any, ...], mode: str, path: Path
) -> None:
    """What does not fit, and what has gaps, raises the same exceptions."""

    async def raised(opening: Any) -> Any:
        file = await have(opening(path, "rb", 0) if mode == "raw" else opening(path, mode))
        await have(file.read(1))
        try:
            return await have(getattr(file, name)(*args))
        except Exception as error:  # noqa: BLE001 - compared
            return type(error)
        finally:
            await have(file.close())

    assert asyncio.run(raised(files.open)) == asyncio.run(raised(open))


@pytest.mark.parametrize("name", ["read", "read1", "readline", "readlines", "seek"])
@pytest.mark.parametrize("wrong", [1.5, "1"])
def test_what_is_no_size_moves_nothing(name: str, wrong: Any, path: Path) -> None:
    """A number of another type is a TypeError, and the file goes on where it was."""

    async def body() -> None:
        async with files.open(path, "rb") as file:
            assert await file.read(1) == b"o"
            with pytest.raises(TypeError):
                await getattr(file, name)(wrong)
            assert await file.tell() == 1
            assert await file.read() == b"ne\ntwo\r\nthree"

    asyncio.run(body())


@pytest.mark.parametrize("length", [8191, 8192, 8193])
def test_text_goes_on_to_the_buffer_when_there_is_a_chunk(length: int, path: Path) -> None:
    """What a write() leaves for the next flush is as much as the built-in file leaves."""

    async def body() -> int:
        async with files.open(path, "w", 100) as file:
            await file.write("x" * length)
            return os.fstat(file.fileno()).st_size

    with path.open("w", 100, encoding="utf-8") as file:
        file.write("x" * length)
        expected = os.fstat(file.fileno()).st_size
    assert asyncio.run(body()) == expected


def test_appending_to_the_limit_leaves_the_position_of_the_built_in_file(path: Path) -> None:
    """It is behind what was written, also when that is not all; what fails does not move it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())

    async def body(opening: Any, name: Path) -> list[Any]:
        file = await have(opening(name, "a+b", 0))
        await have(file.seek(0))
        found = []
        for size in (2, 10, 10, 1):
            found += [await have(file.read(4)), await have(file.tell())]
            try:
                found.append(await have(file.write(b"x" * size)))
            except OSError as error:
                found.append(error.errno)
            found += [await have(file.tell()), await have(file.seek(5 - size // 2))]
        await have(file.close())
        return found

    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        theirs = asyncio.run(body(open, other))
        assert asyncio.run(body(files.open, path)) == theirs
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 4 in theirs  # bytes that were written, of 10
    assert errno.EFBIG in theirs


class Name(str):
    """A path that can be waited for to be gone."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("call", ["read_bytes", "write_bytes", "copyfile", "open", "write"])
def test_what_has_failed_keeps_nothing_alive(call: str, tmp_path: Path) -> None:
    """When its exception is gone, so are its file and its arguments, without a collection."""
    refs: list[Any] = []

    async def body() -> None:
        name = Name(tmp_path / "missing" / "file")
        full = await files.open("/dev/full", "wb", 0)
        refs.extend([weakref.ref(name), weakref.ref(full)])
        with contextlib.suppress(OSError):
            if call == "read_bytes":
                await uring.aio.read_bytes([name, name])
            elif call == "write_bytes":
                await uring.aio.write_bytes(name, b"x")
            elif call == "copyfile":
                await uring.aio.copyfile(name, name)
            elif call == "open":
                await files.open(name)
            else:
                await full.write(b"x")
        await full.close()

    gc.disable()
    try:
        asyncio.run(body())
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
