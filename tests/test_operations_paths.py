"""What starts from a path, and extended attributes, on this kernel."""

import ctypes
import errno
import gc
import os
import stat
import struct
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from shared import Wrapper, assert_refused

import uring
from uring import AUTO, SQE, Fixed, Opcode, SQEFlags, StatxResult
from uring.file_flags import AtFlags, RenameFlags, ResolveFlags, StatxAttributes, StatxMask

SECONDS: Final = 10  # the end of a wait that should not take any time: a failure, not a hang
AT_FDCWD: Final = -100
FDCWD_IN_LEN: Final = 2**32 - 100

Ends = tuple[int, int]


def encoded(op: uring.Operation) -> tuple[SQE, Any]:
    """The record of an operation, and what keeps the memory that it points to."""
    record, pins = op._encode()
    return SQE.decode(record), pins


def text(address: int) -> bytes:
    """The C string at an address."""
    return ctypes.string_at(address)


@pytest.fixture
def fails(drive: Any) -> Callable[..., None]:
    """Run an operation that fails with the errno, and with an error that names it and the file."""

    def _fails(op: uring.Operation, number: int, filename: Any = None) -> None:
        error = drive.fails(op, number)
        assert error.filename == (None if filename is None else os.fspath(filename))

    return _fails


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Give the descriptor of a directory that has a file of ten bytes."""
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


# ---- the records ----

ONE_PATH: Final[list[tuple[uring.Operation, SQE]]] = [
    (
        uring.Openat("p", os.O_WRONLY, 0o640),
        SQE(Opcode.OPENAT, fd=AT_FDCWD, len=0o640, op_flags=os.O_WRONLY | os.O_CLOEXEC),
    ),
    (
        uring.Openat("p", dir_fd=5, cloexec=False),
        SQE(Opcode.OPENAT, fd=5, len=0o777),
    ),
    (
        uring.Openat("p", dir_fd=5, slot=Fixed(3)),
        SQE(Opcode.OPENAT, fd=5, len=0o777, splice_fd_in=4),
    ),
    (
        uring.Openat("p", os.O_CLOEXEC, slot=AUTO),
        SQE(Opcode.OPENAT, fd=AT_FDCWD, len=0o777, op_flags=os.O_CLOEXEC, splice_fd_in=2**32 - 1),
    ),
    (uring.Unlinkat("p"), SQE(Opcode.UNLINKAT, fd=AT_FDCWD)),
    (
        uring.Unlinkat("p", unlink_flags=AtFlags.REMOVEDIR, dir_fd=Wrapper(5)),
        SQE(Opcode.UNLINKAT, fd=5, op_flags=0x200),
    ),
    (uring.Mkdirat("p"), SQE(Opcode.MKDIRAT, fd=AT_FDCWD, len=0o777)),
    (uring.Mkdirat("p", 0o700, dir_fd=5), SQE(Opcode.MKDIRAT, fd=5, len=0o700)),
]


@pytest.mark.parametrize(("op", "expected"), ONE_PATH, ids=repr)
def test_record_of_one_path(op: uring.Operation, expected: SQE) -> None:
    """`fd` is the directory, `addr` the path with its end, and the rest what the man page says."""
    record, _pins = encoded(op)
    assert text(record.addr) == b"p"
    assert uring.SQE(**{**vars_of(record), "addr": 0}) == expected


def vars_of(record: SQE) -> dict[str, Any]:
    """The fields of a record."""
    return {field.name: getattr(record, field.name) for field in SQE.__attrs_attrs__}


@pytest.mark.parametrize(
    ("op", "expected", "how"),
    [
        (uring.Openat2("p"), SQE(Opcode.OPENAT2, fd=AT_FDCWD), (os.O_CLOEXEC, 0, 0)),
        (
            uring.Openat2("p", os.O_CREAT, dir_fd=5, cloexec=False),
            SQE(Opcode.OPENAT2, fd=5),
            (os.O_CREAT, 0o777, 0),
        ),
        (
            uring.Openat2("p", os.O_TMPFILE, slot=Fixed(3)),
            SQE(Opcode.OPENAT2, fd=AT_FDCWD, splice_fd_in=4),
            (os.O_TMPFILE, 0o777, 0),
        ),
        (
            uring.Openat2("p", os.O_DIRECTORY, 0o600, slot=AUTO),
            SQE(Opcode.OPENAT2, fd=AT_FDCWD, splice_fd_in=2**32 - 1),
            (os.O_DIRECTORY, 0o600, 0),
        ),
        *(
            (
                uring.Openat2("p", resolve=flag, cloexec=False),
                SQE(Opcode.OPENAT2, fd=AT_FDCWD),
                (0, 0, int(flag)),
            )
            for flag in ResolveFlags
        ),
    ],
    ids=repr,
)
def test_openat2_record_points_at_a_struct_open_how(
    op: uring.Operation, expected: SQE, how: tuple[int, int, int]
) -> None:
    """`off` is the struct of three 64-bit words, `len` its size, `addr` the path."""
    record, _pins = encoded(op)
    assert text(record.addr) == b"p"
    assert record.len == 24
    assert struct.unpack("=QQQ", ctypes.string_at(record.off, 24)) == how
    assert SQE(**{**vars_of(record), "addr": 0, "off": 0, "len": 0}) == expected


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (uring.Statx("p"), SQE(Opcode.STATX, fd=AT_FDCWD, len=0xFFF)),
        (
            uring.Statx("p", mask=StatxMask.SIZE, dir_fd=5),
            SQE(Opcode.STATX, fd=5, len=0x200),
        ),
        *(
            (
                uring.Statx("p", statx_flags=flag),
                SQE(Opcode.STATX, fd=AT_FDCWD, len=0xFFF, op_flags=int(flag)),
            )
            for flag in AtFlags
        ),
    ],
    ids=repr,
)
def test_statx_record_points_at_room_for_the_answer(op: uring.Operation, expected: SQE) -> None:
    """`addr` is the path, `off` 256 bytes of room, `len` the mask."""
    record, room = encoded(op)
    assert text(record.addr) == b"p"
    assert record.off == room.address
    assert room.take(256) == bytes(256)
    assert SQE(**{**vars_of(record), "addr": 0, "off": 0}) == expected


TWO_PATHS: Final[list[tuple[uring.Operation, SQE]]] = [
    (uring.Symlinkat("p", "q"), SQE(Opcode.SYMLINKAT, fd=AT_FDCWD)),
    (uring.Symlinkat("p", "q", dir_fd=5), SQE(Opcode.SYMLINKAT, fd=5)),
    (uring.Linkat("p", "q"), SQE(Opcode.LINKAT, fd=AT_FDCWD, len=FDCWD_IN_LEN)),
    (
        uring.Linkat("p", "q", old_dir_fd=5, new_dir_fd=6, hardlink_flags=AtFlags.SYMLINK_FOLLOW),
        SQE(Opcode.LINKAT, fd=5, len=6, op_flags=0x400),
    ),
    (
        uring.Linkat("p", "q", old_dir_fd=Wrapper(5), hardlink_flags=AtFlags.EMPTY_PATH),
        SQE(Opcode.LINKAT, fd=5, len=FDCWD_IN_LEN, op_flags=0x1000),
    ),
    (uring.Renameat("p", "q"), SQE(Opcode.RENAMEAT, fd=AT_FDCWD, len=FDCWD_IN_LEN)),
    (
        uring.Renameat("p", "q", new_dir_fd=Wrapper(6)),
        SQE(Opcode.RENAMEAT, fd=AT_FDCWD, len=6),
    ),
    *(
        (
            uring.Renameat("p", "q", rename_flags=flag, old_dir_fd=5),
            SQE(Opcode.RENAMEAT, fd=5, len=FDCWD_IN_LEN, op_flags=int(flag)),
        )
        for flag in RenameFlags
    ),
]


@pytest.mark.parametrize(("op", "expected"), TWO_PATHS, ids=repr)
def test_record_of_two_paths(op: uring.Operation, expected: SQE) -> None:
    """`addr` is the first path and `off` the second; `len` has the second directory."""
    record, _pins = encoded(op)
    assert (text(record.addr), text(record.off)) == (b"p", b"q")
    assert SQE(**{**vars_of(record), "addr": 0, "off": 0}) == expected


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (uring.Getxattr("p", "user.n"), SQE(Opcode.GETXATTR, len=65536)),
        (uring.Getxattr("p", b"user.n", size=9), SQE(Opcode.GETXATTR, len=9)),
        (uring.Getxattr("p", "user.n", size=0), SQE(Opcode.GETXATTR)),
        (uring.Fgetxattr(5, "user.n", size=9), SQE(Opcode.FGETXATTR, fd=5, len=9)),
        (
            uring.Fgetxattr(Fixed(5), "user.n", size=0),
            SQE(Opcode.FGETXATTR, SQEFlags.FIXED_FILE, fd=5),
        ),
    ],
    ids=repr,
)
def test_getxattr_record_has_name_path_and_room(op: Any, expected: SQE) -> None:
    """`addr` is the name, `addr3` the path, `off` the room, which is not there for size 0."""
    record, pins = encoded(op)
    assert text(record.addr) == b"user.n"
    if isinstance(op, uring.Getxattr):
        assert text(record.addr3) == b"p"
    if op.size:
        assert record.off == pins.address
        assert len(pins.take(op.size)) == op.size
    else:
        assert record.off == 0
    assert SQE(**{**vars_of(record), "addr": 0, "off": 0, "addr3": 0}) == expected


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (uring.Setxattr("p", "user.n", b"value"), SQE(Opcode.SETXATTR, len=5)),
        (
            uring.Setxattr("p", b"user.n", bytearray(b"value"), os.XATTR_CREATE),
            SQE(Opcode.SETXATTR, len=5, op_flags=1),
        ),
        (
            uring.Fsetxattr(5, "user.n", memoryview(b"value"), os.XATTR_REPLACE),
            SQE(Opcode.FSETXATTR, fd=5, len=5, op_flags=2),
        ),
        (
            uring.Fsetxattr(Fixed(5), "user.n", b"value"),
            SQE(Opcode.FSETXATTR, SQEFlags.FIXED_FILE, fd=5, len=5),
        ),
    ],
    ids=repr,
)
def test_setxattr_record_has_name_path_and_value(op: Any, expected: SQE) -> None:
    """`addr` is the name, `off` the value and `len` its length, `addr3` the path."""
    record, _pins = encoded(op)
    assert text(record.addr) == b"user.n"
    assert ctypes.string_at(record.off, 5) == b"value"
    if isinstance(op, uring.Setxattr):
        assert text(record.addr3) == b"p"
    assert SQE(**{**vars_of(record), "addr": 0, "off": 0, "addr3": 0}) == expected


WITH_PATH: Final[dict[str, Callable[..., uring.Operation]]] = {
    "Openat": uring.Openat,
    "Openat2": uring.Openat2,
    "Statx": uring.Statx,
    "Unlinkat": uring.Unlinkat,
    "Mkdirat": uring.Mkdirat,
    "Symlinkat": lambda path, **options: uring.Symlinkat("target", path, **options),
    "Linkat": lambda path, dir_fd=None: uring.Linkat(path, "new", old_dir_fd=dir_fd),
    "Linkat to": lambda path, dir_fd=None: uring.Linkat("old", path, new_dir_fd=dir_fd),
    "Renameat": lambda path, dir_fd=None: uring.Renameat(path, "new", old_dir_fd=dir_fd),
    "Renameat to": lambda path, dir_fd=None: uring.Renameat("old", path, new_dir_fd=dir_fd),
}
"""How each operation is made of a path and a directory."""
WITH_PATH_ALONE: Final[dict[str, Callable[..., uring.Operation]]] = {
    "Getxattr": lambda path: uring.Getxattr(path, "user.n"),
    "Setxattr": lambda path: uring.Setxattr(path, "user.n", b""),
    "target": lambda path: uring.Symlinkat(path, "link"),
}


@pytest.mark.parametrize("dir_fd", [Fixed(0), AUTO, True, "/", 1.0, b"/"], ids=repr)
@pytest.mark.parametrize("make", WITH_PATH.values(), ids=WITH_PATH)
def test_directory_is_a_descriptor_or_has_a_fileno(make: Any, dir_fd: Any) -> None:
    """The kernel takes no registered file there, and nobody takes anything else: TypeError."""
    wanted = "takes no registered file there" if isinstance(dir_fd, Fixed) else r"fileno\(\)"
    with pytest.raises(TypeError, match=wanted):
        make("x", dir_fd=dir_fd).sqe()


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1])
@pytest.mark.parametrize("make", WITH_PATH.values(), ids=WITH_PATH)
def test_directory_over_31_bits_is_refused(make: Any, number: int) -> None:
    """A number that would be cut off is ValueError."""
    with pytest.raises(ValueError, match=f"fd must be in .*, not {number}"):
        make("x", dir_fd=number).sqe()


@pytest.mark.parametrize("path", [5, None, "a\0b", b"a\0b", bytearray(b"x")], ids=repr)
@pytest.mark.parametrize(
    "make", (WITH_PATH | WITH_PATH_ALONE).values(), ids=WITH_PATH | WITH_PATH_ALONE
)
def test_path_is_str_bytes_or_pathlike_without_null(make: Any, path: Any) -> None:
    """A number, None and a null byte, at which C would end, are TypeError or ValueError."""
    with pytest.raises((TypeError, ValueError)):
        make(path).sqe()


WRONG: Final[list[Any]] = [
    lambda: uring.Openat("x", slot=0),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Openat("x", mode=-1),
    lambda: uring.Openat2("x", -1),
    lambda: uring.Openat2("x", 2**64),
    lambda: uring.Openat2("x", 0, -1),
    lambda: uring.Openat2("x", 0, 2**64),
    lambda: uring.Openat2("x", "r"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Openat2("x", resolve="BENEATH"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Openat2("x", resolve=ResolveFlags(2**64)),
    lambda: uring.Openat2("x", slot=True),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Statx("x", mask=None),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Statx("x", mask=StatxMask(2**32)),
    lambda: uring.Statx("x", statx_flags="EMPTY_PATH"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Unlinkat("x", unlink_flags=AtFlags(2**32)),
    lambda: uring.Mkdirat("x", 2**32),
    lambda: uring.Mkdirat("x", "755"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Linkat("x", "y", hardlink_flags=AtFlags(2**32)),
    lambda: uring.Renameat("x", "y", rename_flags=None),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Getxattr("x", "user.n", size=-1),
    lambda: uring.Getxattr("x", "user.n", size=65537),
    lambda: uring.Getxattr("x", "user.n", size="9"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Getxattr("x", "user.\0"),
    lambda: uring.Getxattr("x", 5),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Getxattr("x", Path("user.n")),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Fgetxattr(0, None),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Fgetxattr(0, "user.n", size=2**40),
    lambda: uring.Setxattr("x", "user.n", "text"),  # type: ignore[arg-type]  # wrong on purpose
    lambda: uring.Setxattr("x", "user.n", b"", -1),
    lambda: uring.Fsetxattr(0, b"user.\0", b""),
    lambda: uring.Fsetxattr(0, "user.n", None),  # type: ignore[arg-type]  # wrong on purpose
]


@pytest.mark.parametrize("make", WRONG)
def test_wrong_arguments_are_refused_and_nothing_is_queued(ring: uring.Ring, make: Any) -> None:
    """TypeError or ValueError before any C runs, alone and in a batch; the ring is as it was."""
    assert_refused(ring, make())


# ---- all of them: where the path starts, and which file an error names ----


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
@pytest.mark.parametrize(
    "name", [name for name in WITH_PATH if name not in {"Linkat to", "Renameat to"}]
)
def test_failure_names_the_file(
    fails: Callable[..., None], tmp_path: Path, name: str, kind: Any
) -> None:
    """What is below a missing directory is FileNotFoundError with the path in `filename`."""
    path = kind(tmp_path / "missing" / "x")
    fails(WITH_PATH[name](path), errno.ENOENT, path)


@pytest.mark.parametrize("name", WITH_PATH)
def test_closed_directory_is_ebadf(
    fails: Callable[..., None], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path from a number that is not open fails, with a file in the error."""
    monkeypatch.chdir(tmp_path)
    Path("old").write_bytes(b"")
    filename = "old" if name.endswith(" to") else "x"
    fails(WITH_PATH[name]("x", dir_fd=9999), errno.EBADF, filename)


def test_absolute_path_does_not_care_for_the_directory(drive: Any, tmp_path: Path) -> None:
    """With a path from the root the directory is not even looked at."""
    assert drive.one(uring.Mkdirat(tmp_path / "new", dir_fd=9999)).result() == 0
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("name", [*WITH_PATH, *WITH_PATH_ALONE])
def test_temporaries_live_until_the_operation_has_run(
    ring: uring.Ring, tmp_path: Path, pipe: Ends, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a read that waits, all that was given may be dropped: it works as if it had not."""
    monkeypatch.chdir(tmp_path)
    Path("old").write_bytes(b"")
    Path(f"{name}-file").write_bytes(b"0123456789")
    made = WITH_PATH.get(name) or WITH_PATH_ALONE[name]
    op: Any = made(os.fsencode(f"{name}-file")[:])
    ring.queue_all(uring.hardlink(uring.Read(pipe[0], bytearray(1)), op))
    ring.submit()
    del op
    gc.collect()
    junk = [os.urandom(n) for n in range(300)]  # in the place of what was freed too early
    os.write(pipe[1], b"x")
    first, second = (ring.copy_cqe(timeout=SECONDS) for _ in range(2))
    assert first.res == 1
    allowed = {
        "Mkdirat": -errno.EEXIST,
        "Symlinkat": -errno.EEXIST,
        "Linkat to": -errno.EEXIST,
        "Getxattr": -errno.ENODATA,
    }
    if name in {"Openat", "Openat2"}:
        os.close(second.result())
    else:
        assert second.res == allowed.get(name, 0)
    if name == "Statx":
        assert second.result().size == 10
    assert len(junk) == 300


@pytest.mark.parametrize("flags", [uring.SetupFlags.SQPOLL, uring.SetupFlags.SQE128])
def test_operations_work_on_other_kinds_of_rings(
    ring_refusal: str, tmp_path: Path, flags: uring.SetupFlags
) -> None:
    """A poller, which reads the records later, and records of 128 bytes change no result."""
    assert not ring_refusal
    path = tmp_path / "x"
    with uring.Ring(8, flags=flags) as ring:
        ops = [
            uring.Openat2(path, os.O_CREAT | os.O_RDWR),
            uring.Setxattr(str(path), "user.n", bytearray(b"value")),
            uring.Getxattr(str(path), "user.n"),
            uring.Statx(str(path)),
            uring.Renameat(str(path), f"{path}y"),
            uring.Pipe(),
        ]
        numbers = ring.queue_all(uring.link(*ops))
        del ops
        ring.submit()
        gc.collect()
        results = {
            cqe.user_data: cqe.result()
            for cqe in ring.copy_cqes(wait_nr=len(numbers), timeout=SECONDS)
        }
        fd, done, value, found, renamed, ends = (results[number] for number in numbers)
    assert (done, value, found.size, renamed) == (0, b"value", 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["xy"]
    for number in (fd, *ends):
        os.close(number)


@pytest.mark.parametrize(
    "make",
    [
        lambda wrapper: uring.Statx("file", dir_fd=wrapper),
        lambda wrapper: uring.Linkat("file", "/proc/x", old_dir_fd=wrapper),
        lambda wrapper: uring.Renameat("/proc/x", "y", new_dir_fd=wrapper),
    ],
)
def test_directory_object_lives_until_the_completion(
    ring: uring.Ring, directory: int, pipe: Ends, make: Any
) -> None:
    """What was given with a fileno() is kept until the completion was copied out, no longer."""
    wrapper = Wrapper(directory)
    alive = weakref.ref(wrapper)
    ring.queue_all(uring.hardlink(uring.Read(pipe[0], bytearray(1)), make(wrapper)))
    ring.submit()
    del wrapper
    gc.collect()
    assert alive() is not None
    os.write(pipe[1], b"x")
    for _ in range(2):
        assert ring.copy_cqe(timeout=SECONDS).res != -errno.EBADF
    gc.collect()
    assert alive() is None


# ---- opening ----


@pytest.mark.parametrize("kind", [uring.Openat, uring.Openat2])
def test_open_into_a_given_slot(
    ring: uring.Ring, descriptors: Callable[[], set[str]], drive: Any, directory: int, kind: Any
) -> None:
    """The result is the slot, whatever it held before, and no descriptor is made."""
    ring.register_files([-1] * 3)
    before = descriptors()
    for _ in range(2):
        cqe = drive.one(kind("file", dir_fd=directory, slot=Fixed(1)))
        assert (cqe.res, cqe.result()) == (0, Fixed(1))
        buffer = bytearray(4)
        assert drive.one(uring.Read(cqe.result(), buffer, 3)).result() == 4
        assert buffer == b"3456"
    assert drive.one(uring.Close(Fixed(1))).result() == 0
    assert descriptors() == before


@pytest.mark.parametrize("kind", [uring.Openat, uring.Openat2])
def test_open_into_a_slot_that_the_kernel_picks(
    ring: uring.Ring, drive: Any, fails: Callable[..., None], directory: int, kind: Any
) -> None:
    """With AUTO the result is the slot that was free; ENFILE when none is, or there is no table."""
    op = kind("file", dir_fd=directory, slot=AUTO)
    fails(op, errno.ENFILE, "file")
    ring.register_files([-1] * 3)
    slots = [drive.one(op).result() for _ in range(3)]
    assert sorted(slot.index for slot in slots) == [0, 1, 2]
    assert {type(slot) for slot in slots} == {Fixed}
    fails(op, errno.ENFILE, "file")
    assert drive.one(uring.Close(slots[1])).result() == 0
    assert drive.one(op).result() == slots[1]


@pytest.mark.parametrize("kind", [uring.Openat, uring.Openat2])
def test_open_into_a_slot_fails_as_the_os_does(
    ring: uring.Ring, fails: Callable[..., None], directory: int, kind: Any
) -> None:
    """Without a table ENXIO, out of range EINVAL, O_CLOEXEC EINVAL; a missing file ENOENT."""
    fails(kind("file", dir_fd=directory, slot=Fixed(0)), errno.ENXIO, "file")
    ring.register_files([-1])
    fails(kind("file", dir_fd=directory, slot=Fixed(1)), errno.EINVAL, "file")
    cloexec = kind("file", os.O_CLOEXEC, dir_fd=directory, slot=Fixed(0))
    fails(cloexec, errno.EINVAL, "file")
    fails(kind("missing", dir_fd=directory, slot=AUTO), errno.ENOENT, "missing")
    fails(uring.Close(Fixed(0)), errno.EBADF)


def test_open_read_and_close_of_a_slot_in_one_chain(
    ring: uring.Ring, drive: Any, directory: int
) -> None:
    """The slot can be used behind the open in the same submission."""
    ring.register_files([-1])
    buffer = bytearray(4)
    slot = Fixed(0)
    chain = uring.link(
        uring.Openat("file", dir_fd=directory, slot=slot),
        uring.Read(slot, buffer),
        uring.Close(slot),
    )
    assert [cqe.result() for cqe in drive.run(*chain)] == [slot, 4, 0]
    assert buffer == b"0123"


@pytest.mark.parametrize("kind", [uring.Openat, uring.Openat2])
def test_open_that_nobody_collects_is_closed_and_a_slot_is_no_descriptor(
    directory: int, ring_refusal: str, kind: Any, descriptors: Callable[[], set[str]]
) -> None:
    """close() closes the new descriptor; the 0 of a slot is not taken for standard input."""
    assert not ring_refusal
    before = descriptors()
    ring = uring.Ring(8)
    ring.register_files([-1] * 2)
    for options in ({}, {"slot": Fixed(0)}, {"slot": AUTO}):
        ring.queue(kind("file", dir_fd=directory, **options))
    ring.submit_and_wait(3)
    assert len(descriptors()) == len(before) + 2
    ring.close()
    assert descriptors() == before


def test_open_into_a_slot_does_not_share_its_user_data(ring: uring.Ring, directory: int) -> None:
    """Beside an open that makes a descriptor nobody could tell which result is one: ValueError."""
    ring.register_files([-1])
    plain = uring.Openat("file", dir_fd=directory, user_data=5)
    slotted = uring.Openat("file", dir_fd=directory, user_data=5, slot=Fixed(0))
    for first, second in ((plain, slotted), (slotted, plain)):
        ring.queue(first)
        with pytest.raises(ValueError, match="5"):
            ring.queue(second)
        ring.submit()
        result = ring.copy_cqe(timeout=SECONDS).result()
        if first is plain:
            os.close(result)


def test_openat2_creates_with_the_mode(
    drive: Any, fails: Callable[..., None], tmp_path: Path, directory: int
) -> None:
    """A mode is given to what is created, by default 0o777, less the umask."""
    mask = os.umask(0o027)
    try:
        for name, mode, expected in (("a", None, 0o750), ("b", 0o666, 0o640)):
            op = uring.Openat2(name, os.O_CREAT | os.O_RDWR, mode, dir_fd=directory)
            fd = drive.one(op).result()
            assert not os.get_inheritable(fd)
            os.close(fd)
            assert (tmp_path / name).stat().st_mode & 0o777 == expected
        os.close(drive.one(uring.Openat2(tmp_path, os.O_TMPFILE | os.O_RDWR)).result())
    finally:
        os.umask(mask)
    fails(uring.Openat2("file", 0, 0o600, dir_fd=directory), errno.EINVAL, "file")
    fails(uring.Openat2("file", 1 << 40, dir_fd=directory), errno.EINVAL, "file")


def test_openat2_without_cloexec_is_inheritable(drive: Any, directory: int) -> None:
    """`cloexec` can be turned off."""
    fd = drive.one(uring.Openat2("file", dir_fd=directory, cloexec=False)).result()
    assert os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("resolve", "path", "number"),
    [
        (ResolveFlags.BENEATH, "../x", errno.EXDEV),
        (ResolveFlags.BENEATH, "/etc", errno.EXDEV),
        (ResolveFlags.IN_ROOT, "/etc/passwd", errno.ENOENT),
        (ResolveFlags.NO_SYMLINKS, "link", errno.ELOOP),
        (ResolveFlags.NO_MAGICLINKS, "/proc/self/exe", errno.ELOOP),
        (ResolveFlags.NO_XDEV, "/proc/self", errno.EXDEV),
        (ResolveFlags(1 << 40), "file", errno.EINVAL),
    ],
)
def test_openat2_resolve_keeps_the_path_in(
    drive: Any,
    fails: Callable[..., None],
    tmp_path: Path,
    directory: int,
    resolve: ResolveFlags,
    path: str,
    number: int,
) -> None:
    """What the flag forbids is an error, and the file itself is opened under all of them."""
    (tmp_path / "link").symlink_to("file")
    fails(uring.Openat2(path, resolve=resolve, dir_fd=directory), number, path)
    allowed = resolve if resolve in list(ResolveFlags) else ResolveFlags.CACHED
    os.close(drive.one(uring.Openat2("file", resolve=allowed, dir_fd=directory)).result())


# ---- statx ----


def test_statx_says_what_os_stat_says(drive: Any, tmp_path: Path, directory: int) -> None:
    """Every field that os.stat has is the same, and the times agree in every form."""
    path = tmp_path / "file"
    os.utime(path, ns=(1_000_000_123, 1_700_000_000_987_654_321))
    result = drive.one(uring.Statx("file", dir_fd=directory)).result()
    assert isinstance(result, StatxResult)
    known = path.stat()
    assert stat.S_ISREG(result.mode)
    for name in ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "blksize", "blocks", "rdev"):
        assert getattr(result, name) == getattr(known, f"st_{name}"), name
    for name in ("atime", "mtime", "ctime"):
        ns = getattr(known, f"st_{name}_ns")
        assert getattr(result, f"{name}_ns") == ns
        when = getattr(result, name)
        assert when == datetime.fromtimestamp(ns // 10**9, UTC).replace(
            microsecond=ns % 10**9 // 1000
        )
        assert when.tzinfo is UTC
    assert result.mtime_ns == 1_700_000_000_987_654_321
    assert result.mask & StatxMask.BASIC_STATS == StatxMask.BASIC_STATS


def test_statx_of_a_device_a_link_and_the_root(drive: Any, tmp_path: Path) -> None:
    """The rdev of a device; the link itself with SYMLINK_NOFOLLOW, else its target; MOUNT_ROOT."""
    device = drive.one(uring.Statx("/dev/null")).result()
    assert (device.rdev_major, device.rdev_minor) == (1, 3)
    assert device.rdev == os.stat("/dev/null").st_rdev  # noqa: PTH116 - what it is compared with
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    assert stat.S_ISCHR(drive.one(uring.Statx(link)).result().mode)
    itself = drive.one(uring.Statx(link, statx_flags=AtFlags.SYMLINK_NOFOLLOW)).result()
    assert stat.S_ISLNK(itself.mode)
    root = drive.one(uring.Statx("/")).result()
    assert root.attributes & StatxAttributes.MOUNT_ROOT
    assert not drive.one(uring.Statx(tmp_path)).result().attributes & StatxAttributes.MOUNT_ROOT


@pytest.mark.parametrize("wrap", [int, Wrapper])
def test_statx_of_an_open_file(
    drive: Any, fails: Callable[..., None], file: int, wrap: Any
) -> None:
    """An empty path with EMPTY_PATH is the file that is given; without the flag it is ENOENT."""
    op = uring.Statx("", statx_flags=AtFlags.EMPTY_PATH, dir_fd=wrap(file))
    assert drive.one(op).result().ino == os.fstat(file).st_ino
    fails(uring.Statx("", dir_fd=wrap(file)), errno.ENOENT, "")


def test_statx_mask_says_what_is_valid(drive: Any, directory: int) -> None:
    """More can be asked for, and what comes is in the mask; unknown bits are left out."""
    everything = StatxMask(sum(bit for bit in StatxMask if bit.bit_count() == 1))
    result = drive.one(uring.Statx("file", mask=everything, dir_fd=directory)).result()
    assert result.mask & StatxMask.MNT_ID_UNIQUE
    assert result.mnt_id > 2**31  # one of the new kind, which is never used again
    old = drive.one(uring.Statx("file", mask=StatxMask.MNT_ID, dir_fd=directory)).result()
    assert 0 < old.mnt_id < 2**31
    assert not old.mask & StatxMask.MNT_ID_UNIQUE
    unknown = uring.Statx("file", mask=StatxMask(1 << 30), dir_fd=directory)
    assert not drive.one(unknown).result().mask & (1 << 30)
    for flag in (AtFlags.STATX_FORCE_SYNC, AtFlags.STATX_DONT_SYNC, AtFlags.NO_AUTOMOUNT):
        assert (
            drive.one(uring.Statx("file", statx_flags=flag, dir_fd=directory)).result().size == 10
        )


def test_statx_fails_as_the_os_does(fails: Callable[..., None], directory: int) -> None:
    """The reserved bit, both kinds of syncing at once and a flag of others are EINVAL."""
    for options in (
        {"mask": StatxMask(1 << 31)},
        {"statx_flags": AtFlags.STATX_FORCE_SYNC | AtFlags.STATX_DONT_SYNC},
        {"statx_flags": AtFlags.REMOVEDIR},
    ):
        op = uring.Statx("file", dir_fd=directory, **options)
        fails(op, errno.EINVAL, "file")
    fails(uring.Statx("file/x", dir_fd=directory), errno.ENOTDIR, "file/x")


def test_statx_result_can_be_read_again_and_late(
    ring: uring.Ring, drive: Any, directory: int
) -> None:
    """The answer is the completion's: another one, and the end of the ring, do not change it."""
    cqe = drive.one(uring.Statx("file", dir_fd=directory))
    other = drive.one(uring.Statx("/"))
    ring.close()
    gc.collect()
    assert cqe.result() == cqe.result()
    assert cqe.result().size == 10
    assert other.result().ino != cqe.result().ino


def test_results_with_memory_under_one_user_data_are_none(
    ring: uring.Ring, directory: int, file: int
) -> None:
    """Nobody knows whose memory it was: the result is None, and an error is still one."""
    os.setxattr(file, "user.n", b"value")
    for make, expected in (
        (lambda: uring.Statx("file", dir_fd=directory, user_data=5), None),
        (lambda: uring.Fgetxattr(file, "user.n", user_data=5), None),
        (lambda: uring.Fgetxattr(file, "user.n", size=0, user_data=5), 5),
        (lambda: uring.Getxattr(f"/proc/self/fd/{file}", "user.n", user_data=5), None),
    ):
        for _ in range(2):  # by themselves, so that their order is not known
            ring.queue(make())
            ring.submit()
        for _ in range(2):
            cqe = ring.copy_cqe(timeout=SECONDS)
            assert cqe.op is None
            assert cqe.result() == expected
    for _ in range(2):
        ring.queue(uring.Statx("missing", dir_fd=directory, user_data=5))
        ring.submit()
    for _ in range(2):
        cqe = ring.copy_cqe(timeout=SECONDS)
        with pytest.raises(FileNotFoundError):
            cqe.result()


def test_results_in_a_run_are_of_each_operation(
    ring: uring.Ring, directory: int, file: int
) -> None:
    """A batch that is run twice gives each its own answer, which stays what it was."""
    os.setxattr(file, "user.n", b"old")
    batch = uring.Batch(
        [
            uring.Statx("file", dir_fd=directory),
            uring.Fgetxattr(file, "user.n"),
            uring.Statx("/"),
        ]
    )
    first = ring.run(batch, timeout=SECONDS)
    os.setxattr(file, "user.n", b"newer")
    os.ftruncate(file, 3)
    second = ring.run(batch, timeout=SECONDS)
    assert [run[0].result().size for run in (first, second)] == [10, 3]
    assert [run[1].result() for run in (first, second)] == [b"old", b"newer"]
    assert first[2].result().ino == os.stat("/").st_ino  # noqa: PTH116 - what it is compared with


# ---- names ----


def test_mkdirat_and_unlinkat_make_and_remove(
    drive: Any, fails: Callable[..., None], tmp_path: Path, directory: int
) -> None:
    """A directory with the mode less the umask; REMOVEDIR for it, nothing for a file."""
    mask = os.umask(0o027)
    try:
        assert drive.one(uring.Mkdirat("new", 0o775, dir_fd=directory)).result() == 0
    finally:
        os.umask(mask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750
    fails(uring.Mkdirat("new", dir_fd=directory), errno.EEXIST, "new")
    fails(uring.Unlinkat("new", dir_fd=directory), errno.EISDIR, "new")
    remove = uring.Unlinkat("new", unlink_flags=AtFlags.REMOVEDIR, dir_fd=directory)
    assert drive.one(remove).result() == 0
    fails(remove, errno.ENOENT, "new")
    assert drive.one(uring.Unlinkat(tmp_path / "file")).result() == 0
    assert list(tmp_path.iterdir()) == []
    fails(uring.Unlinkat("x", unlink_flags=AtFlags.EMPTY_PATH), errno.EINVAL, "x")


def test_unlinkat_of_what_is_no_empty_directory(
    fails: Callable[..., None], tmp_path: Path, directory: int
) -> None:
    """REMOVEDIR refuses a file, and a directory that has something in it."""
    remove = AtFlags.REMOVEDIR
    fails(uring.Unlinkat("file", unlink_flags=remove, dir_fd=directory), errno.ENOTDIR, "file")
    fails(uring.Unlinkat(tmp_path, unlink_flags=remove), errno.ENOTEMPTY, tmp_path)


def test_symlinkat_makes_a_link_to_whatever(
    drive: Any, fails: Callable[..., None], tmp_path: Path, directory: int
) -> None:
    """The target is taken as it is; an existing link is FileExistsError that names the link."""
    target = os.fsdecode(b"no/such/\xff")
    assert drive.one(uring.Symlinkat(target, "link", dir_fd=directory)).result() == 0
    assert (tmp_path / "link").readlink() == Path(target)
    fails(uring.Symlinkat("x", "link", dir_fd=directory), errno.EEXIST, "link")
    fails(uring.Symlinkat("", "empty", dir_fd=directory), errno.ENOENT, "empty")


def test_linkat_gives_one_more_name(
    drive: Any, fails: Callable[..., None], tmp_path: Path, directory: int
) -> None:
    """Both names are of one file; from one directory to another; a symlink itself or its target."""
    (tmp_path / "sub").mkdir()
    sub = os.open(tmp_path / "sub", os.O_PATH)
    op = uring.Linkat("file", "other", old_dir_fd=directory, new_dir_fd=sub)
    assert drive.one(op).result() == 0
    assert (tmp_path / "sub" / "other").samefile(tmp_path / "file")
    fails(op, errno.EEXIST, "file")
    os.close(sub)
    (tmp_path / "link").symlink_to("file")
    for name, flags in (("itself", AtFlags(0)), ("target", AtFlags.SYMLINK_FOLLOW)):
        op = uring.Linkat(tmp_path / "link", tmp_path / name, hardlink_flags=flags)
        assert drive.one(op).result() == 0
        assert (tmp_path / name).is_symlink() == (name == "itself")
    fails(uring.Linkat(tmp_path, tmp_path / "x"), errno.EPERM, tmp_path)


def test_linkat_of_an_open_file(
    drive: Any, fails: Callable[..., None], tmp_path: Path, file: int
) -> None:
    """With EMPTY_PATH the file that is given gets the name."""
    op = uring.Linkat("", tmp_path / "again", old_dir_fd=file, hardlink_flags=AtFlags.EMPTY_PATH)
    assert drive.one(op).result() == 0
    assert (tmp_path / "again").samefile(tmp_path / "file")
    fails(uring.Linkat("", tmp_path / "x", old_dir_fd=file), errno.ENOENT, "")


def test_renameat_moves_and_replaces(
    drive: Any, fails: Callable[..., None], tmp_path: Path, directory: int
) -> None:
    """The file has the new name, in the other directory, in the place of what had it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "new").write_bytes(b"x")
    sub = os.open(tmp_path / "sub", os.O_PATH)
    op = uring.Renameat("file", "new", old_dir_fd=directory, new_dir_fd=Wrapper(sub))
    assert drive.one(op).result() == 0
    os.close(sub)
    assert (tmp_path / "sub" / "new").read_bytes() == b"0123456789"
    assert not (tmp_path / "file").exists()
    fails(uring.Renameat(tmp_path / "file", tmp_path / "x"), errno.ENOENT, tmp_path / "file")


def test_renameat_flags_reach_the_kernel(
    drive: Any,
    fails: Callable[..., None],
    tmp_path: Path,
    directory: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NOREPLACE refuses an existing target, EXCHANGE swaps the two; both at once are EINVAL."""
    monkeypatch.chdir(tmp_path)
    Path("other").write_bytes(b"x")
    assert directory
    replace_not = uring.Renameat("file", "other", rename_flags=RenameFlags.NOREPLACE)
    fails(replace_not, errno.EEXIST, "file")
    swap = uring.Renameat("file", "other", rename_flags=RenameFlags.EXCHANGE)
    assert drive.one(swap).result() == 0
    assert Path("file").read_bytes() == b"x"
    both = RenameFlags.NOREPLACE | RenameFlags.EXCHANGE
    fails(uring.Renameat("file", "other", rename_flags=both), errno.EINVAL, "file")


# ---- extended attributes ----


def test_xattr_is_set_and_read_by_path(drive: Any, tmp_path: Path, directory: int) -> None:
    """The value is the bytes that were set, in any kind of buffer; with size 0 only its length."""
    assert directory
    path = tmp_path / "file"
    for value in (b"hello", bytearray(b"other"), memoryview(b"longer value"), b"", b"\0\xff"):
        assert drive.one(uring.Setxattr(path, "user.n", value)).result() == 0
        cqe = drive.one(uring.Getxattr(os.fsencode(path), b"user.n"))
        assert cqe.res == len(value)
        assert cqe.result() == bytes(value) == os.getxattr(path, "user.n")
        assert drive.one(uring.Getxattr(path, "user.n", size=0)).result() == len(value)


def test_xattr_is_set_and_read_by_file(ring: uring.Ring, drive: Any, file: int) -> None:
    """The same for open files, given in each way."""
    ring.register_files([file])
    files: tuple[Any, ...] = (file, Wrapper(file), Fixed(0))
    for number, fd in enumerate(files):
        value = b"value" * number
        assert drive.one(uring.Fsetxattr(fd, "user.n", value)).result() == 0
        assert os.getxattr(file, "user.n") == value
        assert drive.one(uring.Fgetxattr(fd, "user.n")).result() == value
        assert drive.one(uring.Fgetxattr(fd, "user.n", size=0)).result() == len(value)


def test_xattr_room_may_be_exact_or_too_small(
    drive: Any, fails: Callable[..., None], file: int
) -> None:
    """As many bytes as the value has are enough; one less is ERANGE."""
    os.setxattr(file, "user.n", b"hello")
    assert drive.one(uring.Fgetxattr(file, "user.n", size=5)).result() == b"hello"
    assert drive.one(uring.Fgetxattr(file, "user.n", size=6)).result() == b"hello"
    fails(uring.Fgetxattr(file, "user.n", size=4), errno.ERANGE)


def test_xattr_flags_reach_the_kernel(
    drive: Any, fails: Callable[..., None], tmp_path: Path, file: int
) -> None:
    """CREATE refuses what is there, REPLACE what is not, unknown flags are EINVAL."""
    path = tmp_path / "file"
    create = uring.Setxattr(path, "user.n", b"x", os.XATTR_CREATE)
    assert drive.one(create).result() == 0
    fails(create, errno.EEXIST, path)
    fails(uring.Fsetxattr(file, "user.n", b"x", os.XATTR_CREATE), errno.EEXIST)
    fails(uring.Setxattr(path, "user.m", b"x", os.XATTR_REPLACE), errno.ENODATA, path)
    fails(uring.Fsetxattr(file, "user.m", b"x", os.XATTR_REPLACE), errno.ENODATA)
    assert drive.one(uring.Fsetxattr(file, "user.n", b"y", os.XATTR_REPLACE)).result() == 0
    fails(uring.Fsetxattr(file, "user.n", b"y", 4), errno.EINVAL)


def test_xattr_fails_as_the_os_does(fails: Callable[..., None], tmp_path: Path, file: int) -> None:
    """A missing file or attribute, a namespace that there is not, too long a value, a closed fd."""
    path, missing = tmp_path / "file", tmp_path / "missing"
    fails(uring.Getxattr(missing, "user.n"), errno.ENOENT, missing)
    fails(uring.Setxattr(missing, "user.n", b""), errno.ENOENT, missing)
    fails(uring.Getxattr(path, "user.n"), errno.ENODATA, path)
    fails(uring.Fgetxattr(file, "user.n"), errno.ENODATA)
    fails(uring.Setxattr(path, "nonsense.n", b""), errno.EOPNOTSUPP, path)
    fails(uring.Setxattr(path, "user.n", bytes(65537)), errno.E2BIG, path)
    fails(uring.Getxattr(path, ""), errno.ERANGE, path)
    fails(uring.Fgetxattr(9999, "user.n"), errno.EBADF)
    fails(uring.Fsetxattr(9999, "user.n", b""), errno.EBADF)
    fails(uring.Fgetxattr(Fixed(0), "user.n"), errno.EBADF)


def test_xattr_temporaries_live_until_the_operation_has_run(
    ring: uring.Ring, file: int, pipe: Ends
) -> None:
    """Behind a read that waits, name, value and room may be dropped: they are kept."""
    value = bytearray(b"value")
    ring.queue_all(
        uring.link(
            uring.Read(pipe[0], bytearray(1)),
            uring.Fsetxattr(file, "user." + "n" * 10, value),
            uring.Fgetxattr(file, "user." + "n" * 10),
        )
    )
    ring.submit()
    with pytest.raises(BufferError):
        value.clear()
    gc.collect()
    junk = [os.urandom(n) for n in range(300)]
    os.write(pipe[1], b"x")
    results = [ring.copy_cqe(timeout=SECONDS).result() for _ in range(3)]
    assert results == [1, 0, b"value"]
    value.clear()
    assert len(junk) == 300
