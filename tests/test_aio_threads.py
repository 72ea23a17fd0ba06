"""Operations in threads: the same as on a ring, and nothing left behind by who is cancelled."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from aio import KITS, Kit
from aio_tasks import SECONDS, begun, is_cancelled, is_trio, turns, until
from shared import Tracked

import uring
from uring import AtFlags, Fixed, RenameFlags, StatxResult, aio
from uring._file_memory import STATX_FIELDS
from uring.aio import _threads
from uring.aio._backend import Backend, do, do_each

BACKENDS: Final[tuple[Backend, ...]] = ("io_uring", "threads")


pytestmark = pytest.mark.usefixtures("undecided")


# ---- the same results and errors ----


class Place:
    """A directory with a few files, and what operations are about."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        (root / "file").write_bytes(b"0123456789")
        (root / "directory").mkdir()
        (root / "full").mkdir()
        (root / "full" / "one").touch()
        (root / "link").symlink_to("file")
        self.fd = os.open(root / "file", os.O_RDWR)
        self.dir_fd = os.open(root, os.O_RDONLY)
        os.setxattr(root / "file", "user.there", b"value")
        self.buffers = [bytearray(4), bytearray(4)]

    def close(self) -> None:
        """Close what is open."""
        os.close(self.fd)
        os.close(self.dir_fd)


A: Final = AtFlags
KEEP: Final = uring.FallocateFlags.KEEP_SIZE
OPERATIONS: Final[dict[str, Callable[[Place], uring.Operation]]] = {
    "Read": lambda p: uring.Read(p.fd, p.buffers[0], 3),
    "Read, position": lambda p: uring.Read(p.fd, p.buffers[0], -1),
    "Read, end": lambda p: uring.Read(p.fd, p.buffers[0], 10),
    "Read, closed": lambda p: uring.Read(9999, p.buffers[0]),
    "Read, directory": lambda p: uring.Read(p.dir_fd, p.buffers[0]),
    "Read, offset": lambda p: uring.Read(p.fd, p.buffers[0], 2**63),
    "Read, RWF": lambda p: uring.Read(p.fd, p.buffers[0], rw_flags=1 << 30),
    "Write": lambda p: uring.Write(p.fd, b"abc", 12),
    "Write, position": lambda p: uring.Write(p.fd, b"abc", -1),
    "Write, append": lambda p: uring.Write(p.fd, b"abc", 0, rw_flags=os.RWF_APPEND),
    "Write, forbidden": lambda p: uring.Write(p.dir_fd, b"abc"),
    "Readv": lambda p: uring.Readv(p.fd, p.buffers, 4),
    "Writev": lambda p: uring.Writev(p.fd, [b"x", b"yz"], 1),
    "Fsync": lambda p: uring.Fsync(p.fd),
    "Fsync, datasync": lambda p: uring.Fsync(p.fd, datasync=True),
    "Fsync, closed": lambda _: uring.Fsync(9999),
    "Fallocate": lambda p: uring.Fallocate(p.fd, length=100),
    "Fallocate, mode": lambda p: uring.Fallocate(p.fd, offset=50, length=50, mode=KEEP),
    "Fallocate, nothing": lambda p: uring.Fallocate(p.fd, length=0),
    "Ftruncate": lambda p: uring.Ftruncate(p.fd, 3),
    "Ftruncate, directory": lambda p: uring.Ftruncate(p.dir_fd, 3),
    "Unlinkat": lambda p: uring.Unlinkat(p.root / "file"),
    "Unlinkat, missing": lambda p: uring.Unlinkat("missing", dir_fd=p.dir_fd),
    "Unlinkat, directory": lambda p: uring.Unlinkat(p.root / "directory"),
    "Unlinkat, REMOVEDIR": lambda p: uring.Unlinkat(
        "directory", dir_fd=p.dir_fd, unlink_flags=A.REMOVEDIR
    ),
    "Unlinkat, full": lambda p: uring.Unlinkat(p.root / "full", unlink_flags=A.REMOVEDIR),
    "Mkdirat": lambda p: uring.Mkdirat("new", 0o700, dir_fd=p.dir_fd),
    "Mkdirat, there": lambda p: uring.Mkdirat(p.root / "directory"),
    "Renameat": lambda p: uring.Renameat("file", "other", old_dir_fd=p.dir_fd, new_dir_fd=p.dir_fd),
    "Renameat, NOREPLACE": lambda p: uring.Renameat(
        p.root / "file", p.root / "link", rename_flags=RenameFlags.NOREPLACE
    ),
    "Renameat, EXCHANGE": lambda p: uring.Renameat(
        p.root / "file", p.root / "directory", rename_flags=RenameFlags.EXCHANGE
    ),
    "Linkat": lambda p: uring.Linkat(p.root / "link", p.root / "other"),
    "Linkat, FOLLOW": lambda p: uring.Linkat(
        "link", "new", old_dir_fd=p.dir_fd, new_dir_fd=p.dir_fd, hardlink_flags=A.SYMLINK_FOLLOW
    ),
    "Linkat, there": lambda p: uring.Linkat(p.root / "file", p.root / "link"),
    "Symlinkat": lambda p: uring.Symlinkat("what", "new", dir_fd=p.dir_fd),
    "Symlinkat, there": lambda p: uring.Symlinkat("what", p.root / "file"),
    "Getxattr": lambda p: uring.Getxattr(p.root / "link", "user.there"),
    "Getxattr, length": lambda p: uring.Getxattr(p.root / "file", "user.there", size=0),
    "Getxattr, room": lambda p: uring.Getxattr(p.root / "file", "user.there", size=2),
    "Getxattr, missing": lambda p: uring.Getxattr(bytes(p.root / "file"), "user.missing"),
    "Fgetxattr": lambda p: uring.Fgetxattr(p.fd, "user.there"),
    "Fgetxattr, missing": lambda p: uring.Fgetxattr(p.fd, "user.missing"),
    "Setxattr": lambda p: uring.Setxattr(p.root / "file", "user.new", b"value"),
    "Setxattr, CREATE": lambda p: uring.Setxattr(
        p.root / "file", "user.there", b"", os.XATTR_CREATE
    ),
    "Fsetxattr": lambda p: uring.Fsetxattr(p.fd, "user.new", b"value"),
    "Fsetxattr, REPLACE": lambda p: uring.Fsetxattr(p.fd, "user.new", b"", os.XATTR_REPLACE),
    "Openat, missing": lambda p: uring.Openat(p.root / "missing"),
    "Openat, EXCL": lambda p: uring.Openat(p.root / "file", os.O_CREAT | os.O_EXCL),
    "Openat2, BENEATH": lambda p: uring.Openat2(
        "../file", dir_fd=p.dir_fd, resolve=uring.ResolveFlags.BENEATH
    ),
    "Statx, missing": lambda p: uring.Statx(p.root / "missing"),
    "Statx, closed": lambda _: uring.Statx("", dir_fd=9999, statx_flags=A.EMPTY_PATH),
    "Close, closed": lambda _: uring.Close(9999),
    "path with a null byte": lambda _: uring.Mkdirat("a\0b"),
    "path of no type": lambda _: uring.Mkdirat(5),  # type: ignore[arg-type]  # on purpose
    "read-only buffer": lambda p: uring.Read(p.fd, b"1234"),
    "no descriptor": lambda _: uring.Read("0", bytearray(1)),  # type: ignore[arg-type]  # the same
}


def listing(root: Path) -> list[tuple[object, ...]]:
    """All there is in a tree."""
    found: list[tuple[object, ...]] = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        target = str(path.readlink()) if path.is_symlink() else None
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        values = {} if target else {name: os.getxattr(path, name) for name in os.listxattr(path)}
        what = (status.st_mode, status.st_nlink, status.st_blocks, target, content, values)
        found.append((path.relative_to(root), *what))
    return found


def outcome(error: Exception) -> tuple[object, ...]:
    """What one sees of an error."""
    names = [getattr(error, name, None) for name in ("errno", "filename", "filename2")]
    return type(error), str(error), *names, getattr(error, "__notes__", [])


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize("what", OPERATIONS)
def test_threads_do_what_the_ring_does(tmp_path: Path, what: str) -> None:
    """Result or error, what is in buffers and what becomes of the files is the same, seen whole."""

    async def body() -> object:
        try:
            return await do(OPERATIONS[what](place))
        except (OSError, TypeError, ValueError) as error:
            return outcome(error)

    found = []
    for name in BACKENDS:
        aio.use_backend(name)
        place = Place(tmp_path / "place")
        end = asyncio.run(body())
        position = os.lseek(place.fd, 0, os.SEEK_CUR)
        place.close()
        found.append((end, place.buffers, position, listing(place.root)))
        place.root.rename(tmp_path / name)
    assert repr(found[1]) == repr(found[0])


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize("path", ["/proc/self/exe", "/dev/null", "/", "/proc/self/status", "link"])
@pytest.mark.parametrize("flags", [A(0), A.SYMLINK_NOFOLLOW])
def test_statx_in_a_thread_gives_every_field(tmp_path: Path, path: str, flags: AtFlags) -> None:
    """The structure is filled as the ring fills it, and has the same type."""
    (tmp_path / "link").symlink_to("nowhere")
    found: list[StatxResult] = []
    for name in BACKENDS:
        aio.use_backend(name)
        with contextlib.suppress(FileNotFoundError):
            found.append(asyncio.run(do(uring.Statx(tmp_path / path, statx_flags=flags))))
    shown = [{name: getattr(each, name) for name in STATX_FIELDS} for each in found]
    assert all(type(each) is StatxResult for each in found)
    assert shown[:1] == shown[1:]
    assert bool(shown) is (path != "link" or bool(flags))


def test_what_is_not_for_files_is_refused_in_threads() -> None:
    """Operations and registered files that a ring alone has are UnsupportedError there."""
    aio.use_backend("threads")
    flagged = uring.Fsync(0, personality=1)
    for op in (uring.Nop(), uring.Read(Fixed(0), bytearray(1)), flagged, uring.Timeout(1)):
        with pytest.raises(uring.UnsupportedError, match="threads do what files need"):
            asyncio.run(do(op))


def test_opening_in_a_thread_gives_a_descriptor_of_its_own(kit: Kit, tmp_path: Path) -> None:
    """It is not inherited, has the mode less the umask, and is closed by Close."""
    aio.use_backend("threads")

    async def body() -> None:
        fd = await do(uring.Openat(tmp_path / "new", os.O_RDWR | os.O_CREAT, 0o666))
        assert not os.get_inheritable(fd)
        how = uring.Openat2(tmp_path / "new", os.O_RDONLY)
        other = await do(how)
        assert await do(uring.Write(fd, b"abc")) == 3
        assert os.pread(other, 9, 0) == b"abc"
        for each in (fd, other):
            assert await do(uring.Close(each)) == 0
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(each)

    mask = os.umask(0o027)
    try:
        kit.run(body)
    finally:
        os.umask(mask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_reads_in_a_thread_need_no_position(kit: Kit, pipe: tuple[int, int]) -> None:
    """A pipe is read at any offset, also a non-blocking one, which is waited for."""
    aio.use_backend("threads")
    os.set_blocking(pipe[0], False)
    room = bytearray(8)

    async def body() -> None:
        async with begun(do, uring.Read(pipe[0], room, 12345)) as (_, ends):
            await turns()
            await do(uring.Write(pipe[1], b"late", 7))
            await until(lambda: ends)
        assert (ends, bytes(room[:4])) == ([4], b"late")
        with pytest.raises(BlockingIOError):
            await do(uring.Read(pipe[0], room, rw_flags=os.RWF_NOWAIT))

    kit.run(body)


def test_many_at_once_in_threads(kit: Kit, tmp_path: Path) -> None:
    """A thousand reads at once get their own bytes; do_each() keeps the order."""
    aio.use_backend("threads")
    path = tmp_path / "file"
    path.write_bytes(bytes(range(250)) * 4)
    rooms = [bytearray(1) for _ in range(1000)]
    fd = os.open(path, os.O_RDONLY)

    async def body() -> list[int]:
        reads = [uring.Read(fd, room, place) for place, room in enumerate(rooms)]
        return [cqe.result() for cqe in await do_each(reads)]

    assert kit.run(body) == [1] * 1000
    assert b"".join(rooms) == path.read_bytes()
    os.close(fd)


# ---- cancelling in threads ----


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold operations in their threads: (one has begun, go on)."""
    aio.use_backend("threads")
    has_begun, go_on = threading.Event(), threading.Event()
    perform = _threads._perform

    def held_up(*args: Any) -> uring.CQE:
        has_begun.set()
        assert go_on.wait(SECONDS)
        return perform(*args)

    monkeypatch.setattr(_threads, "_perform", held_up)
    return has_begun, go_on


def test_cancelled_task_waits_for_its_thread(
    kit: Kit, held: tuple[threading.Event, threading.Event], file: int
) -> None:
    """While the thread has the buffer the task goes on waiting, however often it is cancelled."""
    has_begun, go_on = held
    room = Tracked(4)

    async def body() -> list[Any]:
        async with begun(do, uring.Read(file, room)) as (cancel, ends):
            await until(has_begun.is_set)
            for _ in range(3):
                cancel()
                await turns()
                assert ends == []
                with pytest.raises(BufferError):
                    room.append(0)
            go_on.set()
            await until(lambda: ends)
            assert bytes(room) == b"0123"
            room.clear()
        return ends

    (end,) = kit.run(body)
    if kit.name == "trio":
        assert end == 4  # as of every thread of trio's: what was done is told
    else:
        assert is_cancelled(end)
        assert "was done all the same: res is 4" in end.__notes__[0]


@pytest.mark.parametrize("kit", KITS[:2], ids=["asyncio", "uvloop"])
def test_what_has_not_begun_is_withdrawn(
    kit: Kit, held: tuple[threading.Event, threading.Event], file: int
) -> None:
    """With all threads busy a cancelled task goes on at once, and its buffer is never written."""
    has_begun, go_on = held
    room = bytearray(4)

    async def body() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with (
            begun(do, uring.Fsync(file)) as (_, first),
            begun(do, uring.Read(file, room)) as (cancel, ends),
        ):
            await until(has_begun.is_set)
            cancel()
            await turns()
            assert is_cancelled(ends[0])
            assert first == []
            room.clear()
            room.extend(b"mine")
            go_on.set()
        assert first == [0]

    kit.run(body)
    assert room == b"mine"


def test_trio_withdraws_what_waits_for_a_thread(
    held: tuple[threading.Event, threading.Event], file: int
) -> None:
    """With no thread left the task is cancelled at once, and its buffer is free."""
    has_begun, go_on = held
    room = bytearray(4)

    async def body() -> None:
        trio.to_thread.current_default_thread_limiter().total_tokens = 1
        async with begun(do, uring.Fsync(file)) as (_, first):
            await until(has_begun.is_set)
            async with begun(do, uring.Read(file, room)) as (cancel, ends):
                await turns()
                cancel()
                await turns()
                assert is_cancelled(ends[0])
                room.clear()
            assert first == []
            go_on.set()
        assert first == [0]

    trio.run(body)


def test_descriptor_that_nobody_will_have_is_closed(
    kit: Kit,
    held: tuple[threading.Event, threading.Event],
    tmp_path: Path,
    descriptors: Callable[[], set[str]],
) -> None:
    """An open of a task that was cancelled leaves no descriptor; trio's task gets it after all."""
    has_begun, go_on = held

    async def body() -> None:
        op = uring.Openat(tmp_path, os.O_RDONLY)
        async with begun(do, op) as (cancel, ends):
            await until(has_begun.is_set)
            cancel()
            go_on.set()
            await until(lambda: ends)
        if not is_cancelled(ends[0]):
            assert kit.name == "trio"
            os.close(ends[0])

    before = descriptors()
    kit.run(body)
    assert descriptors() == before


def test_close_is_done_for_a_cancelled_task(
    kit: Kit, held: tuple[threading.Event, threading.Event], file: int
) -> None:
    """Even one that no thread has begun with: a descriptor is not left open."""
    has_begun, go_on = held
    fd = os.dup(file)

    async def body() -> None:
        if is_trio():
            trio.to_thread.current_default_thread_limiter().total_tokens = 1
        else:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with begun(do, uring.Fsync(file)):
            await until(has_begun.is_set)
            async with begun(do, uring.Close(fd)) as (cancel, ends):
                await turns()
                cancel()
                await turns()
                assert ends == []
                go_on.set()

    kit.run(body)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_close_tells_whether_it_was_done(kit: Kit, backend: Backend, file: int) -> None:
    """The error has `late_result` if the descriptor is gone, and none if it is still there."""
    aio.use_backend(backend)

    async def body() -> None:
        for count in range(1, 5):  # with no turn it would not have begun
            fd = os.dup(file)
            async with begun(do, uring.Close(fd)) as (cancel, ends):
                await turns(count)
                cancel()
                await until(lambda: ends)
            end = ends[0]
            is_done = end == 0 or getattr(end, "late_result", None) == 0
            if is_done:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(fd)
            else:
                os.close(fd)

    kit.run(body)


def test_error_of_a_cancelled_task_is_told(
    kit: Kit, held: tuple[threading.Event, threading.Event]
) -> None:
    """What failed in the thread is not lost: it is raised, or a note of the cancellation."""
    has_begun, go_on = held

    async def body() -> Any:
        async with begun(do, uring.Mkdirat("/")) as (cancel, ends):
            await until(has_begun.is_set)
            cancel()
            go_on.set()
            await until(lambda: ends)
        return ends[0]

    end = kit.run(body)
    assert isinstance(end, FileExistsError) or "res is -17" in end.__notes__[0]
