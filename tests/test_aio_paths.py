"""uring.aio's functions against those of os: the same results, errors and files."""

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from aio import KITS, Kit

from uring import aio
from uring.aio._backend import Backend

pytestmark = pytest.mark.usefixtures("undecided", "ring", "backend")

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


@pytest.fixture(params=["io_uring", "threads"])
def backend(request: pytest.FixtureRequest, undecided: None) -> Backend:  # noqa: ARG001 - before
    """Force each backend."""
    aio.use_backend(request.param)
    name: Backend = request.param
    return name


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """Make the same tree at the same place, again and again; it is the current directory."""
    count = 0

    def make() -> Path:
        nonlocal count
        root = tmp_path / "tree"
        if root.exists():
            monkeypatch.chdir(tmp_path)
            root.rename(tmp_path / f"before{count}")
            count += 1
        (root / "directory" / "below").mkdir(parents=True)
        (root / "empty").mkdir()
        (root / "file").write_bytes(b"content")
        (root / "directory" / "one").write_bytes(b"1")
        (root / "link").symlink_to("file")
        (root / "dangling").symlink_to("nowhere")
        (root / "to directory").symlink_to("directory")
        os.setxattr(root / "file", "user.there", b"value")
        os.mkfifo(root / "fifo")
        monkeypatch.chdir(root)
        return root

    yield make
    monkeypatch.chdir("/")


def seen(root: Path) -> list[tuple[object, ...]]:
    """All that one sees of a tree."""
    found: list[tuple[object, ...]] = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        is_link = path.is_symlink()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        names = [] if is_link else os.listxattr(path)
        values = {name: os.getxattr(path, name) for name in names}
        target = path.readlink() if is_link else None
        found.append((path.relative_to(root), status.st_mode, status.st_nlink, content, target))
        found.append((values,))
    return found


def outcome(call: Callable[[], object]) -> object:
    """What a call gives; or of its error what os says of one."""
    try:
        return call()
    except (OSError, ValueError, TypeError) as error:
        names = [getattr(error, name, None) for name in ("errno", "filename", "filename2")]
        return type(error), *names, str(error) if isinstance(error, OSError) else ""


CALLS: Final[list[Call]] = [
    ("mkdir", ("new",), {}),
    ("mkdir", (Path("new"), 0o700), {}),
    ("mkdir", (b"new",), {"mode": 0o750}),
    ("mkdir", (Path("directory"),), {}),
    ("mkdir", ("missing/new",), {}),
    ("mkdir", ("",), {}),
    ("mkdir", ("file/new",), {}),
    ("mkdir", ("n" * 300,), {}),
    ("mkdir", ("a\0b",), {}),
    ("mkdir", (5,), {}),
    ("mkdir", (None,), {}),
    ("makedirs", ("a/b/c",), {}),
    ("makedirs", ("a/b/",), {"mode": 0o700}),
    ("makedirs", ("a/./b/.",), {}),
    ("makedirs", ("a/../b",), {}),
    ("makedirs", (b"a/b",), {}),
    ("makedirs", (Path("directory/new/one"),), {}),
    ("makedirs", ("directory/below",), {}),
    ("makedirs", ("directory/below",), {"exist_ok": True}),
    ("makedirs", ("file",), {"exist_ok": True}),
    ("makedirs", ("file/a/b",), {"exist_ok": True}),
    ("makedirs", ("dangling/a",), {}),
    ("makedirs", ("to directory/a/b",), {}),
    ("makedirs", ("",), {}),
    ("makedirs", (".",), {}),
    ("makedirs", ("/",), {}),
    ("makedirs", ("/",), {"exist_ok": True}),
    ("rename", ("file", "other"), {}),
    ("rename", ("file", "directory/one"), {}),
    ("rename", (Path("file"), Path("empty")), {}),
    ("rename", ("directory", "empty"), {}),
    ("rename", ("empty", "directory"), {}),
    ("rename", ("missing", b"other"), {}),
    ("rename", ("directory", "directory/below/new"), {}),
    ("replace", ("file", "directory/one"), {}),
    ("replace", ("missing", "directory/one"), {}),
    ("link", ("file", "other"), {}),
    ("link", ("link", "other"), {}),
    ("link", ("link", "other"), {"follow_symlinks": False}),
    ("link", ("file", "link"), {}),
    ("link", ("directory", "other"), {}),
    ("link", (Path("missing"), Path("other")), {}),
    ("symlink", ("anything", "new"), {}),
    ("symlink", (b"any", b"new"), {"target_is_directory": True}),
    ("symlink", (Path("any"), Path("file")), {}),
    ("symlink", ("", "new"), {}),
    ("unlink", ("file",), {}),
    ("unlink", ("link",), {}),
    ("unlink", (Path("missing"),), {}),
    ("unlink", (b"directory",), {}),
    ("remove", ("directory/one",), {}),
    ("remove", ("empty",), {}),
    ("rmdir", ("empty",), {}),
    ("rmdir", ("directory",), {}),
    ("rmdir", ("file",), {}),
    ("rmdir", ("to directory",), {}),
    ("getxattr", ("file", "user.there"), {}),
    ("getxattr", (Path("link"), b"user.there"), {}),
    ("getxattr", ("file", "user.missing"), {}),
    ("getxattr", ("file", Path("user.there")), {}),
    ("getxattr", ("file", "unknown.there"), {}),
    ("getxattr", ("missing", "user.there"), {}),
    ("getxattr", (9999, "user.there"), {}),
    ("setxattr", ("file", "user.new", b"value"), {}),
    ("setxattr", ("file", "user.new", bytearray(3), os.XATTR_CREATE), {}),
    ("setxattr", ("file", "user.there", b"", os.XATTR_CREATE), {}),
    ("setxattr", ("file", "user.new", b"", os.XATTR_REPLACE), {}),
    ("setxattr", ("file", "user.there", b"other"), {"flags": os.XATTR_REPLACE}),
    ("setxattr", (b"missing", "user.new", b""), {}),
    ("setxattr", (9999, "user.new", b""), {}),
    ("stat", ("missing",), {}),
    ("stat", (b"file/missing",), {}),
    ("stat", (Path("dangling"),), {}),
    ("stat", ("",), {}),
    ("stat", (9999,), {}),
    ("stat", (-100,), {}),
    ("stat", (0,), {"dir_fd": 3}),
    ("stat", ("a\0b",), {}),
    ("stat", (1.5,), {}),
    ("lstat", ("missing",), {}),
]


@pytest.mark.parametrize("call", CALLS, ids=repr)
def test_functions_do_what_those_of_os_do(
    backend: Backend, tree: Callable[[], Path], call: Call
) -> None:
    """The result, or the error with its names, and the whole tree afterwards are the same."""
    name, args, kwargs = call

    async def body() -> object:
        return await getattr(aio, name)(*args, **kwargs)

    root = tree()
    expected = outcome(lambda: getattr(os, name)(*args, **kwargs)), seen(root)
    root = tree()
    found = outcome(lambda: _run(body)), seen(root)
    assert found == expected
    assert aio.backend() == backend


def _run(body: Callable[[], Awaitable[object]]) -> object:
    return KITS[0].run(body)


def fields(status: os.stat_result) -> dict[str, object]:
    """All of a result, the floats among them as they are."""
    return {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}


@pytest.mark.parametrize(
    "path",
    ["file", "link", "directory", "to directory", "fifo", "/dev/null", "/proc/self/exe", "."],
)
def test_stat_gives_what_os_gives(kit: Kit, tree: Callable[[], Path], path: str) -> None:
    """Every field, by path, descriptor and directory, followed and not, in every loop."""
    root = tree()
    os.utime("file", ns=(-1_500_000_001, 4_102_444_800_123_456_789))
    dir_fd = os.open(root, os.O_PATH)
    fd = os.open(path, os.O_PATH)

    asked = os.stat

    async def body() -> None:
        pairs = [
            (await aio.stat(path), asked(path)),
            (await aio.stat(path, follow_symlinks=False), asked(path, follow_symlinks=False)),
            (await aio.lstat(Path(path)), os.lstat(path)),
            (await aio.stat(path.encode(), dir_fd=dir_fd), asked(path, dir_fd=dir_fd)),
            (await aio.lstat(path, dir_fd=dir_fd), os.lstat(path, dir_fd=dir_fd)),
            (await aio.stat(fd), asked(fd)),
        ]
        for found, expected in pairs:
            assert type(found) is os.stat_result
            assert fields(found) == fields(expected)
            assert found == expected

    kit.run(body)
    os.close(dir_fd)
    os.close(fd)


def test_stat_rounds_times_as_os_does(tree: Callable[[], Path]) -> None:
    """Of a thousand times, before 1970 and after, each is the same float and the same integer."""
    tree()
    random = Random(1)
    ends = [10**9, 10**11, 10**16, 2**31 * 10**9]
    times = [random.randrange(-ends[i % 4], ends[i % 4]) for i in range(1000)]

    async def body() -> None:
        for time in times:
            os.utime("file", ns=(time, time))
            assert fields(await aio.stat("file")) == fields(os.lstat("file"))

    _run(body)


def test_relative_paths_start_from_directories(tree: Callable[[], Path]) -> None:
    """dir_fd, src_dir_fd and dst_dir_fd are those of os; so is what becomes of the tree."""
    steps: list[Call] = [
        ("mkdir", ("new",), {"dir_fd": 0}),
        ("symlink", ("x", "new/link"), {"dir_fd": 0}),
        ("rename", ("one", "file"), {"src_dir_fd": 1, "dst_dir_fd": 0}),
        ("replace", ("link", "moved"), {"src_dir_fd": 0, "dst_dir_fd": 1}),
        ("link", ("file", "another"), {"src_dir_fd": 0, "dst_dir_fd": 1, "follow_symlinks": False}),
        ("unlink", ("another",), {"dir_fd": 1}),
        ("remove", ("fifo",), {"dir_fd": 0}),
        ("rmdir", ("below",), {"dir_fd": 1}),
    ]

    def directories(root: Path, kwargs: dict[str, Any]) -> dict[str, Any]:
        fds = [os.open(root, os.O_PATH), os.open(root / "directory", os.O_PATH)]
        opened.extend(fds)
        return {k: fds[v] if k.endswith("dir_fd") else v for k, v in kwargs.items()}

    opened: list[int] = []
    root = tree()
    for name, args, kwargs in steps:
        getattr(os, name)(*args, **directories(root, kwargs))
    expected = seen(root)
    root = tree()

    async def body() -> None:
        for name, args, kwargs in steps:
            await getattr(aio, name)(*args, **directories(root, kwargs))

    _run(body)
    assert seen(root) == expected
    for fd in opened:
        os.close(fd)


def test_link_follows_when_it_is_told_to(tree: Callable[[], Path]) -> None:
    """follow_symlinks=True gives the target one more name, as os.link() says and does not."""
    tree()

    async def body() -> None:
        await aio.link("link", "other", follow_symlinks=True)

    _run(body)
    assert Path("other").samefile("file")
    assert not Path("other").is_symlink()


def test_attributes_of_open_files(tree: Callable[[], Path]) -> None:
    """Both functions take a descriptor, and values of 60000 bytes where they fit."""
    tree()
    fd = os.open("file", os.O_RDWR)

    async def body() -> None:
        assert await aio.getxattr(fd, "user.there") == b"value"
        await aio.setxattr(fd, "user.there", b"other" * 100)
        assert await aio.getxattr("file", "user.there") == b"other" * 100

    _run(body)
    assert os.getxattr("file", "user.there") == b"other" * 100
    os.close(fd)


def test_modes_are_less_the_umask(tree: Callable[[], Path]) -> None:
    """Of mkdir() and makedirs(), as os has it: what is above gets 0o777."""
    root = tree()
    mask = os.umask(0o027)

    async def body() -> None:
        await aio.mkdir("new", 0o777)
        await aio.makedirs("a/b", 0o700)

    try:
        _run(body)
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE((root / name).stat().st_mode) for name in ("new", "a", "a/b")]
    assert modes == [0o750, 0o750, 0o700]


def test_many_at_once(kit: Kit, tree: Callable[[], Path]) -> None:
    """Five hundred directories made, asked about and removed by as many tasks at once."""
    root = tree()

    async def one(number: int) -> int:
        name = f"d{number}"
        await aio.mkdir(name)
        found = await aio.stat(name)
        await aio.rmdir(name)
        return found.st_ino

    async def body() -> list[int]:
        return await kit.all(*[lambda number=number: one(number) for number in range(500)])

    assert all(kit.run(body))
    assert len([*root.iterdir()]) == 7
