"""read_bytes, write_bytes and copyfile: whole files, many at once, in bounded memory."""

import errno
import os
import resource
import select
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from aio import KITS, Kit
from aio_tasks import begun, is_cancelled, turns, until

import uring
from uring import aio
from uring.aio import _contents, _copies
from uring.aio._backend import Backend, do_each

pytestmark = pytest.mark.usefixtures("undecided", "ring")

FIRST: Final = 65536
SIZES: Final = (0, 1, FIRST - 1, FIRST, FIRST + 1, 2 * FIRST, 3 * FIRST + 7, 1_000_003)


@pytest.fixture(params=["io_uring", "threads", "io_uring without slots"])
def backend(
    request: pytest.FixtureRequest,
    undecided: None,  # noqa: ARG001 - before
    monkeypatch: pytest.MonkeyPatch,
) -> Backend:
    """Force each backend; the ring also where its table of files is somebody else's."""
    name, _, without = request.param.partition(" ")
    aio.use_backend(name)
    if without:
        make = aio.Ring.__init__

        def with_files(self: aio.Ring, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **kwargs)
            self.plain.register_files_sparse(1)

        monkeypatch.setattr(aio.Ring, "__init__", with_files)
    chosen: Backend = name
    return chosen


@pytest.fixture
def files(tmp_path: Path) -> dict[Path, bytes]:
    """Give files of sizes around those that matter, with their contents."""
    made = {tmp_path / f"size {size}": os.urandom(size) for size in SIZES}
    for path, content in made.items():
        path.write_bytes(content)
    return made


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Give a FIFO."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def made_up() -> Iterator[Path]:
    """Give a file of 120 KB whose size is said to be 0: the arguments of a process."""
    command = ["sh", "-c", "echo; read line", "x" * 120_000]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        path = Path(f"/proc/{process.pid}/cmdline")
        assert process.stdout is not None
        process.stdout.readline()  # before that they may not be there yet
        assert path.stat().st_size == 0
        yield path
        process.communicate(b"\n")


@pytest.fixture(autouse=True)
def tight(descriptors: Callable[[], set[str]]) -> Iterator[None]:
    """See that no descriptor is left; what uvloop opens once for all is none of ours."""
    KITS[1].run(turns)
    before = descriptors()
    yield
    assert descriptors() == before


# ---- reading ----


@pytest.mark.usefixtures("backend")
def test_read_bytes_reads_files_whole(kit: Kit, files: dict[Path, bytes]) -> None:
    """One, or all of a list in its order, whatever their sizes and the kinds of their paths."""

    async def body() -> None:
        for path, content in files.items():
            assert await aio.read_bytes(path) == content
        assert await aio.read_bytes(files) == [*files.values()]
        names = [str(path) if i % 2 else bytes(path) for i, path in enumerate(files)] * 30
        assert await aio.read_bytes(names) == [*files.values()] * 30
        assert await aio.read_bytes(iter(names[:3]), in_flight=1) == [*files.values()][:3]
        assert await aio.read_bytes([]) == []

    kit.run(body)


@pytest.mark.usefixtures("backend")
def test_read_bytes_reads_what_has_no_size(kit: Kit, fifo: Path, made_up: Path) -> None:
    """A FIFO is read once, to its end; so are files whose sizes are made up."""
    content = os.urandom(3 * FIRST + 1)
    writer = threading.Thread(target=fifo.write_bytes, args=(content,))
    arguments = made_up.read_bytes()
    assert len(arguments) > FIRST

    async def body() -> None:
        writer.start()
        assert await aio.read_bytes(fifo) == content
        assert await aio.read_bytes(made_up) == arguments
        assert await aio.read_bytes("/dev/null") == b""

    kit.run(body)
    writer.join()


@pytest.mark.usefixtures("backend")
def test_read_bytes_raises_the_first_failure(kit: Kit, files: dict[Path, bytes]) -> None:
    """In the order of the paths, naming its own, or all in place of the contents."""
    first, second = [*files][:2]
    missing, directory = first.parent / "missing", str(first.parent)

    async def body() -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await aio.read_bytes(missing)
        assert (caught.value.filename, caught.value.errno) == (str(missing), errno.ENOENT)
        with pytest.raises(IsADirectoryError) as other:
            await aio.read_bytes([first, directory, missing, second])
        assert (other.value.filename, other.value.errno) == (directory, errno.EISDIR)
        assert other.value.__notes__[-1] == "2 of 4 files failed"
        found = await aio.read_bytes([missing, first, directory], return_exceptions=True)
        assert [type(each) for each in found] == [FileNotFoundError, bytes, IsADirectoryError]
        assert found[1] == files[first]

    kit.run(body)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("wrong", [5, None, ["a", 5], ["a\0b"], "a\0b", b"\0"])
def test_read_bytes_refuses_what_is_no_path(wrong: Any) -> None:
    """TypeError, or ValueError for a null byte, before anything is opened."""

    async def body() -> None:
        await aio.read_bytes(wrong)

    with pytest.raises((TypeError, ValueError)):
        _run(body)


def test_read_bytes_is_one_chain_for_each_file(
    files: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is short two waits serve all, without a descriptor; slots are given back."""
    short = [path for path, content in files.items() if len(content) < FIRST]
    runs: list[list[uring.Operation]] = []

    async def body() -> None:
        bound = aio.ring()
        run = bound.run

        async def counted(ops: Any) -> uring.Completions:
            runs.append([*ops])
            done: uring.Completions = await run(ops)
            return done

        monkeypatch.setattr(bound, "run", counted)
        await aio.read_bytes(short)
        await aio.write_bytes(dict.fromkeys(short, b"new"))
        bound.plain.register_files_sparse(1)

    _run(body)
    names = [[type(op).__name__ for op in ops] for ops in runs]
    assert [names[0], names[2]] == [
        ["Openat", "Read"] * len(short),
        ["Openat", "Write", "Close"] * len(short),
    ]
    assert all(op.slot is not None for op in runs[0] if isinstance(op, uring.Openat))


# ---- writing ----


@pytest.mark.usefixtures("backend")
def test_write_bytes_writes_files_whole(kit: Kit, files: dict[Path, bytes]) -> None:
    """One, a mapping, or pairs: made with 0o666 less the umask, or made empty first."""
    one = next(iter(files)).parent / "one"
    others = {path.with_suffix(".new"): content for path, content in files.items()}

    async def body() -> None:
        assert await aio.write_bytes(one, b"content") == 7
        assert one.read_bytes() == b"content"
        assert await aio.write_bytes(str(one), memoryview(b"new")) == 3
        assert one.read_bytes() == b"new"
        assert await aio.write_bytes(others) == [*SIZES]
        assert await aio.write_bytes([(path, b"x") for path in files], in_flight=3) == [1] * 8
        assert await aio.write_bytes({}) == []

    mask = os.umask(0o027)
    try:
        kit.run(body)
    finally:
        os.umask(mask)
    assert {path: path.read_bytes() for path in others} == others
    assert {path.read_bytes() for path in files} == {b"x"}
    assert one.stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("backend")
def test_write_bytes_goes_on_where_a_write_was_short(kit: Kit, fifo: Path) -> None:
    """All of a megabyte comes out of a FIFO, once and in order."""
    content = os.urandom(1_000_003)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))

    async def body() -> None:
        reader.start()
        assert await aio.write_bytes(fifo, content) == len(content)

    kit.run(body)
    reader.join()
    assert got == [content]


@pytest.mark.usefixtures("backend")
def test_write_bytes_raises_the_first_failure(kit: Kit, tmp_path: Path) -> None:
    """What cannot be opened, and what cannot be written in full, is named; the rest is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    long, missing = tmp_path / "long", tmp_path / "missing" / "file"

    async def body() -> None:
        with pytest.raises(OSError, match="No space left") as caught:
            await aio.write_bytes("/dev/full", b"x")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * FIRST, hard))
        try:
            found = await aio.write_bytes(
                {missing: b"x", long: bytes(20 * FIRST), tmp_path / "other": b"other"},
                return_exceptions=True,
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        failures = [each for each in found if isinstance(each, OSError)]
        assert [each.errno for each in failures] == [errno.ENOENT, errno.EFBIG]
        assert [each.filename for each in failures] == [str(missing), str(long)]
        assert found[2] == 5

    kit.run(body)
    assert (tmp_path / "other").read_bytes() == b"other"
    assert long.stat().st_size == 10 * FIRST


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "wrong",
    [("a",), ("a", "text"), ({"a": "text"},), ({"a": b""}, b""), ([("a\0", b"")],), (5, b"")],
)
def test_write_bytes_refuses_what_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: tuple[Any, ...]
) -> None:
    """TypeError or ValueError, and no file is made."""
    monkeypatch.chdir(tmp_path)

    async def body() -> None:
        await aio.write_bytes(*wrong)

    with pytest.raises((TypeError, ValueError)):
        _run(body)
    assert [*tmp_path.iterdir()] == []


def test_write_bytes_of_paths_without_data_says_what_it_takes() -> None:
    """Paths alone are no pairs, also where a path of two characters looks like one."""
    for paths in (["long name"], ["ab"], [b"ab"]):

        async def body(paths: Any = paths) -> None:
            await aio.write_bytes(paths)

        with pytest.raises(TypeError, match="a mapping, or pairs of path and data"):
            _run(body)


@pytest.mark.parametrize("number", [0, 4097, True, "1"])
def test_in_flight_is_in_range(number: Any) -> None:
    """It is an integer of at least 1; of copyfile() 2."""

    async def body(function: Any, *args: Any) -> None:
        await function(*args, in_flight=number)

    calls: list[tuple[Any, ...]] = [(aio.read_bytes, ["/"]), (aio.write_bytes, {})]
    for call in (*calls, (aio.copyfile, "/", "/")):
        with pytest.raises((TypeError, ValueError), match="in_flight"):
            _run(body, *call)


def test_long_writes_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is longer than one operation moves is gone on with, and closed after that."""
    monkeypatch.setattr(_contents, "_WRITE_MAX", 1000)
    content = os.urandom(4321)

    async def body() -> None:
        todo = {
            tmp_path / "long": content,
            tmp_path / "short": b"x",
            tmp_path / "even": bytes(1000),
        }
        assert await aio.write_bytes(todo) == [4321, 1, 1000]

    _run(body)
    assert (tmp_path / "long").read_bytes() == content


# ---- cancelling ----


@pytest.mark.parametrize("slots", [True, False])
def test_cancelled_read_lets_go_of_all(kit: Kit, fifo: Path, slots: bool) -> None:
    """Of a chain that waits for a FIFO nothing stays open, and the table of files is free again."""
    kept = os.open(fifo, os.O_RDWR)  # so that it is opened, and never read

    async def body() -> None:
        bound = aio.ring()
        table = None if slots else bound.plain.register_files_sparse(1)
        async with begun(aio.read_bytes, [fifo, "/etc/passwd"]) as (cancel, ends):
            await turns(20)
            assert ends == []
            cancel()
            await until(lambda: ends)
        assert is_cancelled(ends[0])
        if table is not None:
            table.close()
        bound.plain.register_files_sparse(1)

    kit.run(body)
    os.close(kept)


def test_dropped_read_keeps_its_memory(fifo: Path) -> None:
    """What the kernel may still read into is not used for another call."""
    reading = memoryview(b"")

    async def body() -> None:
        nonlocal reading
        (reading,) = _contents._spare
        coroutine = aio.read_bytes([fifo, "/etc/passwd"])
        coroutine.send(None)
        coroutine.close()

    _run(body)
    assert all(room is not reading for room in _contents._spare)


def test_room_that_another_thread_takes_is_made_anew(
    files: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be gone between a look and the taking of it."""
    gone = type("Gone", (list,), {"__bool__": lambda _: True})
    monkeypatch.setattr(_contents, "_spare", gone())
    assert KITS[0].run(aio.read_bytes, files) == [*files.values()]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("what", ["read", "write", "copy"])
def test_cancelled_at_any_turn(
    kit: Kit, files: dict[Path, bytes], tmp_path: Path, what: str
) -> None:
    """No descriptor is left, and what was given is whole or cancelled; see also `tight`."""
    source = [*files][-1]
    functions: dict[str, Callable[[], Any]] = {
        "read": lambda: aio.read_bytes(files),
        "write": lambda: aio.write_bytes({tmp_path / "x": bytes(100), tmp_path / "y": b"y"}),
        "copy": lambda: aio.copyfile(source, tmp_path / "copy", chunk=100_000),
    }
    given: dict[str, object] = {
        "read": [*files.values()],
        "write": [100, 1],
        "copy": tmp_path / "copy",
    }

    async def body() -> None:
        for count in range(12):
            is_cut, result = await kit.cut_off(count, functions[what])
            assert is_cut or result == given[what]
        assert await functions[what]() == given[what]

    kit.run(body)


# ---- copying ----

CHUNK: Final = 1000


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 1999, 2000, 4000, 4001, 12_345])
@pytest.mark.parametrize("in_flight", [2, 3, 8])
def test_copyfile_copies(tmp_path: Path, size: int, in_flight: int) -> None:
    """All sizes around those of the chunks, over a longer file; it returns what it was given."""
    source, target = tmp_path / "source", tmp_path / "target"
    content = os.urandom(size)
    source.write_bytes(content)
    target.write_bytes(bytes(20_000))

    async def body() -> object:
        return await aio.copyfile(source, target, chunk=CHUNK, in_flight=in_flight)

    assert _run(body) is target
    assert target.read_bytes() == content


@pytest.mark.usefixtures("backend")
def test_copyfile_copies_in_every_loop(kit: Kit, files: dict[Path, bytes], tmp_path: Path) -> None:
    """With its defaults, eight at once, through symbolic links and over names in bytes."""
    (tmp_path / "link").symlink_to([*files][-1].name)

    async def body() -> None:
        pairs = [(path, path.with_suffix(".copy")) for path in files]
        await kit.all(*[lambda pair=pair: aio.copyfile(*pair) for pair in pairs])
        await aio.copyfile(bytes(tmp_path / "link"), bytes(tmp_path / "from link"))

    kit.run(body)
    for path, content in files.items():
        assert path.with_suffix(".copy").read_bytes() == content
    assert (tmp_path / "from link").read_bytes() == [*files.values()][-1]
    assert not (tmp_path / "from link").is_symlink()


@pytest.mark.usefixtures("backend")
def test_copyfile_copies_what_has_no_places(tmp_path: Path, made_up: Path) -> None:
    """From /proc, from a device that ends at once, and to one; to a terminal in order."""
    master, slave = os.openpty()
    content, got = b"0123456789" * 30, b""
    (tmp_path / "source").write_bytes(content)

    async def body() -> None:
        await aio.copyfile(made_up, tmp_path / "arguments", chunk=10_000)
        await aio.copyfile("/dev/null", tmp_path / "null")
        await aio.copyfile(tmp_path / "source", "/dev/null")
        await aio.copyfile(tmp_path / "source", os.ttyname(slave), chunk=7)

    _run(body)
    assert (tmp_path / "arguments").read_bytes() == made_up.read_bytes()
    assert (tmp_path / "null").read_bytes() == b""
    while len(got) < len(content):  # the kernel hands it on in its own time, in parts
        assert select.select([master], [], [], 20)[0]
        got += os.read(master, 1000)
    assert got == content
    os.close(master)
    os.close(slave)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("file", "file"),
        ("file", "link"),
        ("file", "hard"),
        ("missing", "new"),
        ("missing", "missing"),
        ("file", "directory"),
        ("file", "nowhere/"),
        ("file", "directory/"),
        ("file", "nowhere/new"),
        ("directory", "new"),
        ("fifo", "new"),
        ("file", "fifo"),
        ("file", b"directory"),
        (None, "new"),
    ],
)
def test_copyfile_fails_as_shutil_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, target: Any
) -> None:
    """The same type, errno, names and text of the error, and the same files are left."""
    errors, left = [], []
    for name in ("one", "two"):
        root = tmp_path / name
        (root / "directory").mkdir(parents=True)
        (root / "file").write_bytes(b"content")
        (root / "link").symlink_to("file")
        (root / "hard").hardlink_to(root / "file")
        os.mkfifo(root / "fifo")
        monkeypatch.chdir(root)

        async def body() -> object:
            return await aio.copyfile(source, target)

        with pytest.raises((OSError, TypeError)) as caught:
            _run(body) if name == "one" else shutil.copyfile(source, target)
        error = caught.value
        names = [getattr(error, each, None) for each in ("errno", "filename", "filename2")]
        text = str(error) if isinstance(error, OSError) else ""
        errors.append((type(error), *names, text))
        left.append(sorted((path.name, path.lstat().st_size) for path in root.rglob("*")))
    assert errors[0] == errors[1]
    assert left[0] == left[1]


@pytest.mark.usefixtures("backend")
def test_disk_full_is_told(kit: Kit, tmp_path: Path) -> None:
    """What copyfile() cannot write names the source and the target."""
    (tmp_path / "source").write_bytes(bytes(10))

    async def body() -> None:
        with pytest.raises(OSError, match="No space left") as caught:
            await aio.copyfile(tmp_path / "source", "/dev/full")
        assert caught.value.filename == str(tmp_path / "source")
        assert caught.value.filename2 == "/dev/full"

    kit.run(body)


def test_copyfile_keeps_chunks_in_flight_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the chunks are read while the other half is written, in the memory of all."""
    (tmp_path / "source").write_bytes(os.urandom(100_000))
    waits: list[tuple[int, int]] = []
    addresses: set[int] = set()

    async def counted(ops: Any) -> Any:
        writes = [op for op in ops if isinstance(op, uring.Write)]
        waits.append((len(writes), len(ops) - len(writes)))
        addresses.update(uring._memory.span(op.buffer, write=False)[1] for op in ops)
        return await do_each(ops)

    monkeypatch.setattr(_copies, "do_each", counted)

    async def body() -> None:
        await aio.copyfile(tmp_path / "source", tmp_path / "copy", chunk=1000, in_flight=8)

    _run(body)
    assert waits[0] == (0, 4)
    assert {*waits[1:-1]} == {(4, 4)}
    assert len(addresses) == 8


def test_copyfile_survives_short_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When reads and writes do less than asked, what is missing is done, in its place."""
    content = os.urandom(50_000)
    (tmp_path / "source").write_bytes(content)
    random = Random(1)

    async def cut(ops: Any) -> Any:
        shorter = []
        for op in ops:
            length = random.choice([len(op.buffer), max(1, len(op.buffer) // 2)])
            shorter.append(type(op)(op.fd, op.buffer[:length], op.offset))
        return await do_each(shorter)

    monkeypatch.setattr(_copies, "do_each", cut)

    async def body() -> None:
        await aio.copyfile(tmp_path / "source", tmp_path / "copy", chunk=1000, in_flight=6)

    _run(body)
    assert (tmp_path / "copy").read_bytes() == content


def _run(function: Callable[..., Any], *args: Any) -> Any:
    """Run it in asyncio."""
    return KITS[0].run(function, *args)
