"""Many questions about files in one batch: encoding, answers, columns, lifetime, refusals."""

import errno
import gc
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pytest

import uring
from uring import (
    SQE,
    AtFlags,
    Batch,
    Completions,
    Opcode,
    Read,
    Ring,
    SQEFlags,
    Statx,
    StatxCompletions,
    StatxMany,
    StatxMask,
    StatxResult,
    _columns,
    _file_memory,
    _memory,
    statx,
)
from uring.completions import EMPTY

SOON: Final = 10.0
FDCWD: Final = -100
COUNT: Final = 300


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Make more files than a ring has entries, each of another size, and give their paths."""
    paths = [tmp_path / f"file {number}" for number in range(COUNT)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(number))
    return [*map(str, paths)]


def names(batch: StatxMany) -> list[bytes]:
    """The C strings that the SQEs of a batch point to."""
    pin: Any = batch._pins[0]
    base, text = _memory.address_of(pin[0]), _memory.bytes_of(pin[0])
    starts = [sqe.addr - base for sqe in records(_memory.bytes_of(batch._sqes))]
    return [text[start : text.index(b"\0", start)] for start in starts]


def records(encoded: bytes) -> list[SQE]:
    """SQEs, read back."""
    return [SQE.decode(encoded[start : start + 64]) for start in range(0, len(encoded), 64)]


# ---- encoding ----


PATHS: Final[dict[str, list[Any]]] = {
    "str": ["a", "", "b\udcff/\xe9", "c" * 5000],
    "bytes": [b"a", b"", b"b\xff/\xc3\xa9", b"c" * 5000],
    "mixed": ["a", PurePosixPath("b"), b"\xff", ""],
    "one": ["a"],
    "none": [],
}


@pytest.mark.parametrize("kind", PATHS)
def test_statx_many_encodes_each_path(kind: str) -> None:
    """Each SQE points to the C string that its path is, whatever the others are."""
    paths = PATHS[kind]
    batch = StatxMany(paths)
    assert names(batch) == [*map(os.fsencode, paths)]
    assert len(batch) == len(paths)


def test_statx_many_encodes_what_statx_does() -> None:
    """All fields but the two addresses are those of a Statx with the same arguments."""
    options: dict[str, Any] = {
        "mask": StatxMask.SIZE,
        "statx_flags": AtFlags.SYMLINK_NOFOLLOW,
        "dir_fd": 5,
        "flags": SQEFlags.ASYNC,
        "personality": 7,
    }
    batch = StatxMany(["a", "b"], **options)
    sqes, _, _ = batch._for_run()
    for sqe in records(_memory.bytes_of(sqes)):
        expected = SQE(
            Opcode.STATX,
            SQEFlags.ASYNC,
            fd=5,
            off=sqe.off,
            addr=sqe.addr,
            len=int(StatxMask.SIZE),
            op_flags=int(AtFlags.SYMLINK_NOFOLLOW),
            personality=7,
        )
        assert sqe == expected
    assert list(batch) == [Statx("a", **options), Statx("b", **options)]
    (plain,) = records(_memory.bytes_of(StatxMany(["a"])._sqes))
    assert (plain.fd, plain.len, plain.op_flags, plain.flags) == (FDCWD, 0xFFF, 0, 0)


def test_statx_many_has_room_of_its_own_for_each_answer_of_each_run() -> None:
    """In one run the rooms lie 256 bytes apart, and no two runs have one in common."""
    batch = StatxMany(["a"] * 5)
    runs = [batch._for_run() for _ in range(3)]
    rooms = [[sqe.off for sqe in records(_memory.bytes_of(sqes))] for sqes, _, _ in runs]
    for (first, *rest), (_, _, arena) in zip(rooms, runs, strict=True):
        assert first == arena.address  # type: ignore[attr-defined]  # it is one
        assert rest == [first + 256 * place for place in range(1, 5)]
    assert len({room for run in rooms for room in run}) == 15


def test_statx_many_is_a_sequence() -> None:
    """Length, index, slice, iteration and `in` are those of a list of its Statx."""
    paths: list[Any] = ["a", b"b", PurePosixPath("c")]
    batch = StatxMany(iter(paths))
    every = [Statx("a"), Statx(b"b"), Statx(PurePosixPath("c"))]
    assert list(batch) == every
    assert (batch[0], batch[-1], batch[1:]) == (every[0], every[2], every[1:])
    assert every[1] in batch
    assert repr(batch) == "<StatxMany of 3 paths>"
    assert isinstance(batch, Batch)
    with pytest.raises(IndexError):
        batch[3]
    with pytest.raises(TypeError, match="immutable"):
        batch.__init__(["x"])  # type: ignore[misc]  # to see it refused
    changing: Any = batch
    with pytest.raises(AttributeError):
        changing.colour = 1


# ---- answers ----


def test_statx_many_says_what_os_stat_does(ring: Ring, files: list[str]) -> None:
    """Results and columns are those of os.stat, for more files than the ring has entries."""
    done = ring.run(StatxMany(files), timeout=SOON).raise_first()
    expected = [os.stat(path) for path in files]  # noqa: PTH116 - what it is compared with
    assert type(done) is StatxCompletions
    assert set(done.res) == {0}
    assert done.size.tolist() == [*range(COUNT)] == [status.st_size for status in expected]
    assert done.ino.tolist() == [status.st_ino for status in expected]
    assert done.mode.tolist() == [status.st_mode for status in expected]
    assert done.uid.tolist() == [status.st_uid for status in expected]
    assert done.mtime_ns == [status.st_mtime_ns for status in expected]
    assert done.atime_ns == [status.st_atime_ns for status in expected]
    for cqe, path, status in zip(done, files, expected, strict=True):
        result = cqe.result()
        assert type(result) is StatxResult
        assert (result.ino, result.mtime_ns) == (status.st_ino, status.st_mtime_ns)
        assert cqe.op == Statx(path)


def test_statx_columns_are_the_fields_of_the_results(ring: Ring, files: list[str]) -> None:
    """For every field, the column has what each result has, and cannot be written."""
    everything = StatxMask(sum(bit for bit in StatxMask if bit.bit_count() == 1))
    done = ring.run(StatxMany([*files[:3], "/dev/null", "/"], mask=everything)).raise_first()
    for name in _file_memory.STATX_FIELDS:
        column = getattr(done, name)
        assert list(column) == [getattr(cqe.result(), name) for cqe in done]
        assert name.endswith("_ns") or column.readonly
        assert getattr(StatxCompletions, name) is vars(StatxCompletions)[name]
    assert done.rdev_minor[3] == os.minor(Path("/dev/null").stat().st_rdev)


@pytest.mark.parametrize(
    "part",
    [
        *(slice(2, 5), slice(None, None, -1), slice(None, None, 3), slice(7, 1, -2)),
        *(slice(-3, None), slice(5, 5), slice(9, 2), slice(3, None, -1), slice(0, 0)),
    ],
)
def test_statx_columns_of_a_slice_are_slices(ring: Ring, files: list[str], part: slice) -> None:
    """A slice of completions has the columns, results and operations of its own part."""
    done = ring.run(StatxMany(files[:10])).raise_first()
    some = done[part]
    assert type(some) is StatxCompletions
    assert some.size.tolist() == [*range(10)][part] == [cqe.result().size for cqe in some]
    assert some.mtime_ns == done.mtime_ns[part]
    assert [cqe.op for cqe in some] == [Statx(path) for path in files[:10][part]]
    assert some[::-1].size.tolist() == [*range(10)][part][::-1]
    assert some[1:].size.tolist() == [*range(10)][part][1:]


def test_statx_columns_are_of_one_run_alone(ring: Ring, files: list[str]) -> None:
    """What was joined keeps its results and has no columns; made up ones say TypeError."""
    one, two = (ring.run(StatxMany(files[start : start + 2])) for start in (3, 5))
    joined = one + two
    assert type(joined) is Completions
    assert [cqe.result().size for cqe in joined] == [3, 4, 5, 6]
    for name in ("size", "mtime_ns"):
        with pytest.raises(TypeError, match="run of a StatxMany"):
            getattr(StatxCompletions(), name)


def test_statx_many_tells_failures_apart(ring: Ring, files: list[str]) -> None:
    """Missing files among many are errors with their path, and all others have their answers."""
    paths: list[Any] = [*files[:100]]
    paths[7], paths[50] = "missing", PurePosixPath("/dev/null/x")
    done = ring.run(StatxMany(paths), timeout=SOON)
    assert [i for i, res in enumerate(done.res) if res] == [7, 50]
    assert [done.res[7], done.res[50]] == [-errno.ENOENT, -errno.ENOTDIR]
    expected = [0 if i in {7, 50} else i for i in range(100)]
    assert done.size.tolist() == expected
    with pytest.raises(FileNotFoundError) as raised:
        done.raise_first()
    assert raised.value.filename == "missing"
    assert "completion 7 of 100" in "".join(raised.value.__notes__)
    with pytest.raises(NotADirectoryError) as other:
        done[50].result()
    assert other.value.filename == "/dev/null/x"


def test_statx_many_of_nothing_has_empty_columns(ring: Ring) -> None:
    """No paths are no completions, with every column."""
    done = ring.run(StatxMany([]))
    assert (type(done), len(done), done == EMPTY) == (StatxCompletions, 0, True)
    for name in _file_memory.STATX_FIELDS:
        assert list(getattr(done, name)) == []
    assert done.raise_first()[:].size.tolist() == []


def test_statx_many_takes_a_directory_and_its_flags(ring: Ring, tmp_path: Path) -> None:
    """Relative paths start from dir_fd, links are not followed when asked, "" is dir_fd itself."""
    (tmp_path / "file").write_bytes(b"four")
    (tmp_path / "link").symlink_to("file")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        plain = ring.run(StatxMany(["file", "link"], dir_fd=directory)).raise_first()
        assert plain.size.tolist() == [4, 4]
        flags = AtFlags.SYMLINK_NOFOLLOW | AtFlags.EMPTY_PATH
        own = ring.run(StatxMany(["link", ""], dir_fd=directory, statx_flags=flags)).raise_first()
        assert own.ino.tolist() == [(tmp_path / "link").lstat().st_ino, tmp_path.stat().st_ino]
    finally:
        os.close(directory)


def test_statx_many_runs_on_rings_of_other_shapes(files: list[str]) -> None:
    """On a ring with large CQEs the results and the columns are the same."""
    batch = StatxMany(files[:20])
    for flags in (uring.SetupFlags(0), uring.SetupFlags.CQE32, uring.SetupFlags(0)):
        with Ring(4, flags=flags) as ring:
            done = ring.run(batch, timeout=SOON).raise_first()
            assert done.size.tolist() == [*range(20)] == [cqe.result().size for cqe in done]
            assert done[3:5].size.tolist() == [3, 4]


def test_statx_many_answers_stay_what_they_were(ring: Ring, tmp_path: Path) -> None:
    """A second run of a batch, and the end of the ring, change nothing in what the first gave."""
    path = tmp_path / "file"
    path.write_bytes(b"1")
    batch = StatxMany([path])
    first = ring.run(batch).raise_first()
    column = first.size
    path.write_bytes(b"22")
    second = ring.run(batch).raise_first()
    ring.close()
    result = first[0].result()
    del first, batch
    gc.collect()
    assert (column.tolist(), result.size, second.size.tolist()) == ([1], 1, [2])


# ---- lifetime ----


def test_statx_many_copies_its_paths(ring: Ring, files: list[str]) -> None:
    """The list can change, and it and the paths can go, before the run."""
    paths = [bytes([*os.fsencode(path)]) for path in files]
    batch = StatxMany(paths)
    paths.clear()
    gc.collect()
    trash = [b"x" * len(path) for path in files]
    done = ring.run(batch, timeout=SOON).raise_first()
    assert done.size.tolist() == [*range(COUNT)]
    assert len(trash) == COUNT


class Held:
    """A read that holds back what drains, until it is let go."""

    def __init__(self, ring: Ring, pipe: tuple[int, int]) -> None:
        self._ring, self._outlet = ring, pipe[1]
        ring.queue(Read(pipe[0], bytearray(1)))
        ring.submit()

    def let_go(self) -> None:
        """End the read, and take its completion."""
        os.write(self._outlet, b"x")
        assert [cqe.res for cqe in self._ring.copy_cqes(wait_nr=1, timeout=SOON)] == [1]


def test_statx_many_may_be_dropped_while_another_thread_runs_it(
    ring: Ring, until: Callable[..., None], pipe: tuple[int, int], files: list[str]
) -> None:
    """The run alone keeps the paths and the room until it has ended."""
    held = Held(ring, pipe)
    found: list[StatxCompletions] = []
    batches = [StatxMany(files, flags=SQEFlags.IO_DRAIN)]
    thread = threading.Thread(target=lambda: found.append(ring.run(batches.pop(), timeout=SOON)))
    thread.start()
    until(lambda: not batches and ring.in_flight > 1)
    files.clear()
    gc.collect()
    trash = [bytearray(256) for _ in range(COUNT)]
    held.let_go()
    thread.join(SOON)
    assert found[0].raise_first().size.tolist() == [*range(COUNT)]
    assert not any(map(any, trash))


def test_statx_many_runs_in_many_threads_at_once(ring: Ring, files: list[str]) -> None:
    """Four threads run one batch 20 times: each answer is right, and no two share memory."""
    batch = StatxMany(files)
    found: list[StatxCompletions] = []

    def work() -> None:
        found.extend([ring.run(batch, timeout=SOON) for _ in range(20)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert len(found) == 80
    for done in found:
        assert done.raise_first().size.tolist() == [*range(COUNT)]
    arenas: list[Any] = [done._subjects for done in found]
    assert len({answers._arena.address for answers in arenas}) == 80


def cut_short_by_timeout(ring: Ring, batch: StatxMany) -> BaseException:
    """Run a batch that does not end."""
    with pytest.raises(TimeoutError) as raised:
        ring.run(batch, timeout=0.02)
    return raised.value


def cut_short_by_ctrl_c(ring: Ring, batch: StatxMany) -> BaseException:
    """The same."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt) as raised:
            ring.run(batch)
    finally:
        signal.signal(signal.SIGALRM, before)
    return raised.value


@pytest.mark.parametrize("cut_short", [cut_short_by_timeout, cut_short_by_ctrl_c])
def test_statx_many_that_is_left_in_flight_keeps_its_memory(
    ring: Ring,
    until: Callable[..., None],
    pipe: tuple[int, int],
    files: list[str],
    cut_short: Callable[[Ring, StatxMany], BaseException],
) -> None:
    """What is held up is answered or cancelled later, in memory that nobody else has got."""
    held = Held(ring, pipe)
    batch = StatxMany(files[:6], flags=SQEFlags.IO_DRAIN)
    error = cut_short(ring, batch)
    assert "still in flight; their memory is kept" in "".join(error.__notes__)
    del batch, error
    gc.collect()
    trash = [bytearray(6 * 256) for _ in range(100)]
    (run,) = ring._in_flight.runs.values()
    assert run.in_flight == 6
    held.let_go()
    until(lambda: not ring.copy_cqes() and ring.in_flight == 0)
    left: Any = run
    sizes = left.own_pins.column("Q", StatxResult.size.offset).tolist()
    for number, res in enumerate(left.completions().res):
        assert (res, sizes[number]) in {(0, number), (-errno.ECANCELED, 0)}
    assert not any(map(any, trash))
    assert ring.run(StatxMany(files), timeout=SOON).raise_first().size.tolist() == [*range(COUNT)]
    assert not ring._in_flight.runs


def test_statx_many_can_be_left_at_once(ring: Ring, files: list[str]) -> None:
    """A run without any time ends or is cancelled, and the next one is right."""
    batch = StatxMany(files * 30)
    for _ in range(5):
        try:
            done = ring.run(batch, timeout=0)
        except TimeoutError:
            assert ring.in_flight == 0
        else:
            assert done.raise_first().size.tolist() == [*range(COUNT)] * 30
    assert ring.run(batch, timeout=60).raise_first().size.tolist() == [*range(COUNT)] * 30


# ---- refusals ----


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("path", "paths must be a sequence of paths, not one str"),
        (b"path", "not one bytes"),
        (Path("path"), r"not one \w*Path"),
        (5, "not one int"),
        (None, "not one NoneType"),
        (["a", 5], "path 1 must be str, bytes or os.PathLike, not 5"),
        ([b"a", bytearray(b"b")], "path 1 must be"),
        (["a", None], "path 1 must be"),
        (bytearray(b"path"), "path 0 must be .* not 112"),
    ],
    ids=str,
)
def test_statx_many_refuses_what_is_no_path(paths: Any, message: str) -> None:
    """One path, and what is none, are TypeErrors that say which."""
    with pytest.raises(TypeError, match=message):
        StatxMany(paths)


@pytest.mark.parametrize(
    "paths", [["a", "b\0c"], [b"a", b"\0"], ["a", PurePosixPath("b\0")], [b"a", "\0"]], ids=str
)
def test_statx_many_refuses_null_bytes(paths: list[Any]) -> None:
    """A path with a null byte in it is a ValueError that says which."""
    with pytest.raises(ValueError, match=r"path 1, .*, has a null byte"):
        StatxMany(paths)


class Fickle(os.PathLike[str]):
    """A path that is another one when it is asked again."""

    def __init__(self) -> None:
        self._given = iter(["a\0b"])

    def __fspath__(self) -> str:
        return next(self._given, "a")


def test_statx_many_asks_a_path_once_what_it_is() -> None:
    """A path that says something else the second time is refused for what it said first."""
    with pytest.raises(ValueError, match="has a null byte"):
        StatxMany(["x", Fickle()])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mask": None}, TypeError),
        ({"mask": 2**32}, ValueError),
        ({"mask": -1}, ValueError),
        ({"statx_flags": "EMPTY_PATH"}, TypeError),
        ({"statx_flags": 2**32}, ValueError),
        ({"dir_fd": "x"}, TypeError),
        ({"dir_fd": uring.Fixed(1)}, TypeError),
        ({"personality": 2**16}, ValueError),
        ({"flags": SQEFlags.IO_LINK}, ValueError),
        ({"flags": SQEFlags.IO_HARDLINK}, ValueError),
        ({"flags": SQEFlags.CQE_SKIP_SUCCESS}, ValueError),
    ],
    ids=str,
)
def test_statx_many_refuses_wrong_options(options: dict[str, Any], error: type[Exception]) -> None:
    """What a Statx refuses, and what would take away a result, is refused before any run."""
    with pytest.raises(error):
        StatxMany(["a"], **options)


def test_statx_many_refuses_more_than_32_bits_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """More SQEs than have a size of 32 bits are a ValueError; as many are not."""
    assert _columns.PARTS_MAX == (2**32 - 1) // 64
    monkeypatch.setattr(statx, "PARTS_MAX", 3)
    assert len(StatxMany(["a"] * 3)) == 3
    with pytest.raises(ValueError, match="at most 3 paths, not 4"):
        StatxMany(["a"] * 4)


@pytest.mark.slow
def test_statx_many_takes_a_hundred_thousand(ring: Ring, files: list[str]) -> None:
    """100 000 paths are one batch, and each has its answer."""
    done = ring.run(StatxMany(files[:100] * 1000), timeout=60).raise_first()
    assert done.size.tolist() == [*range(100)] * 1000
