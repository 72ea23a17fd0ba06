"""The examples, run as a newcomer runs them; and as somebody who wishes them ill."""

import contextlib
import hashlib
import http.client
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Final

import pytest

EXAMPLES: Final = Path(__file__).parent.parent / "examples"
ENVIRONMENT: Final = {**os.environ, "PYTHONWARNINGS": "error"}  # a leak shows on stderr
SECONDS: Final = 60
BLOCK: Final = 256 * 1024  # of cp.py
LINES: Final = {
    "read_many.py": 101,  # two kinds of data, from two places, each loaded in three ways
    "tree_stat.py": 87,  # a tree added up in three ways
    "read_only_ring.py": 95,  # what a ring may do, what it may not, and how one gets round that
    "fixed_io.py": 101,  # reads and writes, registered and not, from the cache and from the disk
    "echo_multishot.py": 167,  # a server, and the clients that show it
    "aio_echo.py": 110,  # the same in tasks
    "aio_static_server.py": 209,  # as much of HTTP as it takes for a browser, and for no more
    "splice_proxy.py": 182,  # a proxy, another one to compare, a client and a target
}

Finished = subprocess.CompletedProcess[bytes]


def command(name: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs an example as it is."""
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def python_after(preparation: str, name: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs an example in a process that was prepared for it."""
    program = (
        "import argparse, os, resource, socket, sys, uring\n"
        "with open(sys.argv[1]) as file: code = compile(file.read(), sys.argv[1], 'exec')\n"
        "del sys.argv[0]\n"
        f"{preparation}\n"
        "exec(code)"
    )
    return [sys.executable, "-c", program, str(EXAMPLES / name), *map(str, arguments)]


def finish(arguments: Sequence[str], stdin: bytes = b"") -> Finished:
    """Run a command to its end."""
    return subprocess.run(
        arguments,
        input=stdin,
        capture_output=True,
        env=ENVIRONMENT,
        timeout=SECONDS,
        check=False,
    )


def run(name: str, *arguments: str | Path, stdin: bytes = b"") -> Finished:
    """Run an example to its end."""
    return finish(command(name, *arguments), stdin)


def run_after(preparation: str, name: str, *arguments: str | Path) -> Finished:
    """Run an example to its end in a process that was prepared for it."""
    return finish(python_after(preparation, name, *arguments))


def assert_succeeds(finished: Finished, stdout: bytes, stderr: bytes = b"") -> None:
    """Check the exit status and everything that was printed."""
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, stdout, stderr)


def assert_fails(finished: Finished, message: str) -> None:
    """Check for exit status 1 and one line on stderr that holds the message, a pattern."""
    assert finished.returncode == 1
    assert re.fullmatch(rf"error: .*{message}.*\n", finished.stderr.decode()), finished.stderr


def pattern(size: int) -> bytes:
    """Bytes in which every four differ, so that a part in the wrong place shows."""
    return array("I", range(size // 4 + 1)).tobytes()[:size]


# ---- all of them ----


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_short(path: Path) -> None:
    """Every example has fewer than 80 lines, but for those whose reason LINES gives."""
    assert len(path.read_text().splitlines()) < LINES.get(path.name, 80)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_imports_nothing_but_uring_and_the_standard_library(path: Path) -> None:
    """Every example imports the standard library, `uring` or `uring.aio`, and nothing below."""
    imported = re.findall(r"^ *(?:import|from) +([\w.]+)", path.read_text(), re.MULTILINE)
    others = {*imported} - {"uring", "uring.aio"}
    assert others != {*imported}
    assert {name.partition(".")[0] for name in others} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_shows_its_usage(path: Path) -> None:
    """Every example explains itself with --help, and says in its first lines how to run it."""
    finished = run(path.name, "--help")
    assert finished.returncode == 0
    assert finished.stdout.startswith(b"usage: ")
    assert f"python examples/{path.name}" in path.read_text().split('"""')[1]


def test_tests_cover_every_example() -> None:
    """Every example is named in this file."""
    text = Path(__file__).read_text()
    assert all(f'"{path.name}"' in text for path in EXAMPLES.glob("*.py"))


# ---- nop ----


def test_nop_shows_the_counters_of_one_nop() -> None:
    """The NOP moves the queue's tail, then its head, then the other queue's tail and head."""
    finished = run("nop.py")
    assert (finished.returncode, finished.stderr) == (0, b"")
    numbers = re.findall(rb"(?:head=|tail=|in flight: )(\d+)", finished.stdout)
    moments = [[int(number) for number in numbers[i : i + 6]] for i in range(0, 24, 6)]
    # sq: head, tail, sqe_tail; cq: head, tail; in flight
    assert moments == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 1],
        [1, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 0],
    ]


def test_nop_refuses_a_size_that_is_no_power_of_two() -> None:
    """A wrong number of entries is one line on stderr that names the next valid one."""
    assert_fails(run("nop.py", "--entries", "3"), "use 4")


def test_nop_reports_that_no_ring_can_be_made() -> None:
    """Without a free descriptor the ring's error is one line that names the limit."""
    no_descriptors = "import shutil; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"
    assert_fails(run_after(no_descriptors, "nop.py"), "RLIMIT_NOFILE is 3")


# ---- readv ----


@pytest.mark.parametrize("size", [0, 1, 4096, 20480, 86016, 86017, 1_000_003])
def test_readv_prints_a_file_of_any_size(tmp_path: Path, size: int) -> None:
    """The output is the file, byte for byte, and stderr has its size."""
    path = tmp_path / "file"
    path.write_bytes(pattern(size))
    assert_succeeds(run("readv.py", path), pattern(size), b"%d bytes\n" % size)


def test_readv_goes_on_after_short_reads() -> None:
    """A pipe whose writer pauses amid the data gives all of it."""
    with subprocess.Popen(
        command("readv.py", "/dev/stdin"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for part in (b"one\n", b"two\x00\xff\n", b"three"):
            child.stdin.write(part)
            child.stdin.flush()
            assert child.stdout.read(len(part)) == part  # so it was read by itself
        child.stdin.close()
        assert child.stdout.read() == b""
    assert child.returncode == 0


def test_readv_prints_a_file_that_has_no_size() -> None:
    """A file under /proc, whose size is 0, is printed."""
    finished = run("readv.py", "/proc/version")
    assert (finished.returncode, finished.stdout) == (0, Path("/proc/version").read_bytes())


def test_readv_refuses_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    """What cannot be opened is one line on stderr, with its path."""
    assert_fails(run("readv.py", tmp_path / "none"), "No such file or directory: '.*none'")
    assert_fails(run("readv.py", tmp_path), "Is a directory")


def test_readv_reports_that_stdout_is_full(tmp_path: Path) -> None:
    """An error of the output is one line on stderr, for a little data and for much."""
    for size in (10, 1_000_000):
        path = tmp_path / "file"
        path.write_bytes(pattern(size))
        with Path("/dev/full").open("wb") as full:
            finished = subprocess.run(
                command("readv.py", path),
                stdout=full,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                timeout=SECONDS,
                check=False,
            )
        assert_fails(finished, "No space left on device")


def test_readv_ends_quietly_when_nobody_reads(tmp_path: Path) -> None:
    """Into a pipe that is closed early it dies of SIGPIPE, as cat does, without a word."""
    path = tmp_path / "file"
    path.write_bytes(pattern(1_000_000))
    with subprocess.Popen(
        command("readv.py", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == -signal.SIGPIPE


# ---- writev_fsync ----


def test_writev_fsync_writes_its_arguments_as_lines(tmp_path: Path) -> None:
    """Each argument is a line, an empty one and one that is not UTF-8 included."""
    path = tmp_path / "file"
    path.write_bytes(pattern(1000))
    finished = run("writev_fsync.py", path, "one", "", os.fsdecode(b"\xff"))
    assert_succeeds(finished, b"7 bytes written and synced\n")
    assert path.read_bytes() == b"one\n\n\xff\n"


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_writev_fsync_writes_any_number_of_lines_from_stdin(tmp_path: Path, count: int) -> None:
    """Stdin is written as it is, with more lines than one Writev takes, and with none."""
    lines = b"".join(b"line %d\n" % number for number in range(count)) + b"without an end"
    finished = run("writev_fsync.py", tmp_path / "file", stdin=lines if count else b"")
    assert finished.returncode == 0
    assert (tmp_path / "file").read_bytes() == (lines if count else b"")


def test_writev_fsync_goes_on_after_short_writes(tmp_path: Path) -> None:
    """When the kernel cuts every write after three bytes, all is written nevertheless."""
    three_at_a_time = (
        "whole = uring.Writev\n"
        "def short(file, buffers, offset):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (offset + 3, resource.RLIM_INFINITY))\n"
        "    return whole(file, buffers, offset)\n"
        "uring.Writev = short"
    )
    path = tmp_path / "file"
    finished = run_after(three_at_a_time, "writev_fsync.py", path, "abcdefg", "", "hijk")
    assert_succeeds(finished, b"14 bytes written and synced\n")
    assert path.read_bytes() == b"abcdefg\n\nhijk\n"


def test_writev_fsync_reports_a_file_that_must_not_grow(tmp_path: Path) -> None:
    """A write that stays short for want of room ends with the reason, after what fits."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))"
    path = tmp_path / "file"
    assert_fails(run_after(limit, "writev_fsync.py", path, "abc", "def"), "File too large")
    assert path.read_bytes() == b"abc\nd"


@pytest.mark.slow
def test_writev_fsync_reports_what_cannot_be_opened_or_synced(tmp_path: Path) -> None:
    """A directory, a missing directory, and a device that cannot sync are one line each."""
    assert_fails(run("writev_fsync.py", tmp_path, "text"), "Is a directory")
    assert_fails(run("writev_fsync.py", tmp_path / "no" / "file", "text"), "No such file")
    assert_fails(run("writev_fsync.py", "/dev/null", "text"), "Invalid argument")


# ---- cp ----


@pytest.mark.parametrize("size", [0, 1, 262143, 262144, 262145, 16 * 262144, 16 * 262144 + 1])
def test_cp_copies_a_file_of_any_size(tmp_path: Path, size: int) -> None:
    """The copy is the source, byte for byte, whatever the target held before."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(pattern(size))
    target.write_bytes(b"x" * 300_000)
    assert_succeeds(run("cp.py", source, target), b"copied %d bytes\n" % size)
    assert target.read_bytes() == pattern(size)


@pytest.mark.slow
def test_cp_copies_many_megabytes(tmp_path: Path) -> None:
    """The hash of a copy of 40 MB is that of the source."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(pattern(40_000_001))
    assert_succeeds(run("cp.py", source, target), b"copied 40000001 bytes\n")
    with source.open("rb") as one, target.open("rb") as other:
        digests = [hashlib.file_digest(file, "sha256").digest() for file in (one, other)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o751])
def test_cp_keeps_the_permissions(tmp_path: Path, mode: int) -> None:
    """The target has the source's permissions, whatever the umask."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"text")
    source.chmod(mode)
    assert run("cp.py", source, target).returncode == 0
    assert target.stat().st_mode & 0o7777 == mode


def test_cp_copies_a_file_that_has_no_size(tmp_path: Path) -> None:
    """A file under /proc, whose size is 0 and whose reads are short, is copied."""
    source, target = Path("/proc/crypto"), tmp_path / "target"
    assert run("cp.py", source, target).returncode == 0
    assert target.read_bytes() == source.read_bytes()


def test_cp_goes_on_after_short_reads_and_writes(tmp_path: Path) -> None:
    """The copy is whole when the kernel reads and writes less than it was asked to."""
    short = (
        "Read, Write = uring.Read, uring.Write\n"
        "class ShortRead(Read):\n"
        "    def _encode(self):\n"
        "        return Read(self.fd, self.buffer[:50_000], self.offset)._encode()\n"
        "class ShortWrite(Write):\n"
        "    def _encode(self):\n"
        "        return Write(self.fd, self.buffer[:30_000], self.offset)._encode()\n"
        "uring.Read, uring.Write = ShortRead, ShortWrite"
    )
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(pattern(6_000_001))
    assert_succeeds(run_after(short, "cp.py", source, target), b"copied 6000001 bytes\n")
    assert target.read_bytes() == pattern(6_000_001)


@pytest.mark.parametrize(
    ("before", "after", "copied"),
    [(2 * BLOCK, 10 * BLOCK, 2 * BLOCK), (9 * BLOCK, 10, 3 * BLOCK)],
    ids=["grows", "shrinks"],
)
def test_cp_stops_at_the_first_end_of_a_file_that_changes(
    tmp_path: Path, before: int, after: int, copied: int
) -> None:
    """A source that grows or shrinks once three blocks were read is copied without a hole."""
    change = (
        "queue = uring.Ring.queue\n"
        "def queue_and_change(ring, op, *, user_data=None):\n"
        "    number = queue(ring, op, user_data=user_data)\n"
        f"    if isinstance(op, uring.Read) and op.offset == {2 * BLOCK}:\n"
        "        ring.submit_and_wait(3)\n"
        f"        os.truncate(sys.argv[1], {after})\n"
        "    return number\n"
        "uring.Ring.queue = queue_and_change"
    )
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(pattern(before))
    assert_succeeds(run_after(change, "cp.py", source, target), b"copied %d bytes\n" % copied)
    assert target.read_bytes() == pattern(copied)


@pytest.mark.slow
def test_cp_refuses_to_copy_a_file_onto_itself(tmp_path: Path) -> None:
    """Source and target under one name, a hard link or a symlink are refused, and unharmed."""
    source = tmp_path / "source"
    source.write_bytes(pattern(1000))
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "soft").symlink_to(source)
    for name in ("source", "hard", "soft"):
        assert_fails(run("cp.py", source, tmp_path / name), "are the same file")
    assert source.read_bytes() == pattern(1000)


@pytest.mark.slow
def test_cp_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe, a device and a directory are refused at once, on either side."""
    source = tmp_path / "source"
    source.write_bytes(b"text")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        assert_fails(run("cp.py", path, tmp_path / "target"), f"{path} is not a regular file")
        assert_fails(run("cp.py", source, path), f"{path} is not a regular file")
    assert not (tmp_path / "target").exists()


def test_cp_reports_a_missing_file_and_leaves_the_target_alone(tmp_path: Path) -> None:
    """A source that is not there is one line on stderr; the target keeps its contents."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    assert_fails(run("cp.py", tmp_path / "none", target), "No such file or directory: '.*none'")
    assert target.read_bytes() == b"precious"


def test_cp_reports_a_target_that_must_not_grow(tmp_path: Path) -> None:
    """A write that fails ends the copy with one line on stderr."""
    source = tmp_path / "source"
    source.write_bytes(pattern(6_000_000))
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    assert_fails(run_after(limit, "cp.py", source, tmp_path / "target"), "File too large")


def test_cp_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal stderr shows a bar, percentage, bytes and rate; the last line says 100 %."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(pattern(10_000_000))
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        command("cp.py", source, target), stdout=subprocess.PIPE, stderr=theirs, env=ENVIRONMENT
    ) as child:
        os.close(theirs)
        with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor
            while part := read_terminal(terminal):
                shown += part
        assert child.stdout is not None
        assert child.stdout.read() == b"copied 10000000 bytes\n"
    assert child.returncode == 0
    lines = shown.rstrip(b"\r\n").split(b"\r")
    assert len(lines) > 1
    shape = rb"\[#* *\]  *\d+% \d+ bytes, \d+ MiB/s "
    assert all(re.fullmatch(shape, line) for line in lines), lines
    assert lines[-1].startswith(b"[" + b"#" * 30 + b"] 100% 10000000 bytes, ")
    assert target.read_bytes() == source.read_bytes()


def read_terminal(terminal: BinaryIO) -> bytes:
    """Read what the other side of a pty shows; nothing once that is closed, which is an EIO."""
    try:
        return terminal.read(65536)
    except OSError:
        return b""


# ---- read_many ----


WAYS: Final = ("plain loop", "16 threads", "ring")
REFUSAL: Final = r"no O_DIRECT here: \[Errno 22\] Invalid argument(: '.*/records')?\n"


def assert_table(finished: Finished, places: Sequence[str]) -> None:
    """Check that there is a line for each kind of data, place and way, with two numbers."""
    rows = [f"{kind}, {place}" for place in places for kind in ("records", "files")]
    lines = finished.stdout.decode().splitlines()
    assert len(lines) == len(rows) * len(WAYS)
    expected = [(row, way) for row in rows for way in WAYS]
    for line, (row, way) in zip(lines, expected, strict=True):
        numbers = re.fullmatch(rf"{row} +{way} +(\d+\.\d\d) us +(\d+\.\d) times as fast", line)
        assert numbers is not None, line
        assert float(numbers[1]) > 0
        assert way != "plain loop" or numbers[2] == "1.0"


def assert_compares(finished: Finished) -> None:
    """Check for both places' lines; or, where there is no O_DIRECT, the first one's and why."""
    if finished.returncode == 0:
        assert finished.stderr == b""
        assert_table(finished, ("warm cache", "disk"))
    else:
        assert re.fullmatch(REFUSAL, finished.stderr.decode())
        assert_table(finished, ("warm cache",))


@pytest.mark.slow
def test_read_many_needs_no_arguments() -> None:
    """By itself it makes its data where they are on a disk, and prints a line for each way."""
    assert_compares(run("read_many.py"))


@pytest.mark.slow
@pytest.mark.parametrize(("records", "files"), [(1, 1), (300, 20), (20, 300)])
def test_read_many_compares_three_ways(tmp_path: Path, records: int, files: int) -> None:
    """It prints a line for each way with more records or more files, and leaves nothing behind."""
    sizes = ("--records", str(records), "--files", str(files))
    assert_compares(run("read_many.py", *sizes, "--dir", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_read_many_says_that_the_file_system_refuses_o_direct(tmp_path: Path) -> None:
    """Where O_DIRECT is refused, the lines of the cache are printed, and then the reason."""
    refuse = (
        "real_open = os.open\n"
        "def refuse(path, flags, *rest, **options):\n"
        "    if flags & os.O_DIRECT:\n"
        "        raise OSError(22, os.strerror(22), path)\n"
        "    return real_open(path, flags, *rest, **options)\n"
        "os.open = refuse"
    )
    sizes = ("--records", "20", "--files", "10")
    finished = run_after(refuse, "read_many.py", *sizes, "--dir", tmp_path)
    assert finished.returncode == 1
    assert re.fullmatch(REFUSAL, finished.stderr.decode())
    assert_table(finished, ("warm cache",))
    assert list(tmp_path.iterdir()) == []


LIES: Final = {
    "records, warm cache: the plain loop": "os.preadv = lambda *_: 4096",
    "records, warm cache: the 16 threads": (
        "import threading\n"
        "preadv, first = os.preadv, threading.get_ident()\n"
        "os.preadv = lambda *rest: threading.get_ident() == first and preadv(*rest)"
    ),
    "records, warm cache: the ring": (
        "Many = uring.ReadMany\n"
        "uring.ReadMany = lambda fd, memory, offsets: Many(fd, memory, offsets[::-1])"
    ),
    "files, warm cache: the plain loop": "os.readv = lambda *_: 4096",
    "files, warm cache: the ring": (
        "Many = uring.ReadMany\n"
        "def turned(fd, memory, offsets):\n"
        "    return Many(fd if isinstance(fd, int) else fd[::-1], memory, offsets)\n"
        "uring.ReadMany = turned"
    ),
}
"""What does not read what it should, or mixes it up -> how that is done."""


@pytest.mark.parametrize("where", LIES)
def test_read_many_finds_out_that_a_way_reads_other_bytes(tmp_path: Path, where: str) -> None:
    """A way that leaves memory as it was, or mixes up its parts, is named in one line."""
    sizes = ("--records", "20", "--files", "10")
    finished = run_after(LIES[where], "read_many.py", *sizes, "--dir", tmp_path)
    assert_fails(finished, f"{where} did not read what was written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_read_many_reports_what_it_cannot_do(tmp_path: Path) -> None:
    """A missing directory, too many files for the limit, and no ring are one line each."""
    assert_fails(run("read_many.py", "--dir", tmp_path / "none"), "No such file.*none")
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"
    arguments = ("--records", "1", "--files", "200", "--dir", tmp_path)
    assert_fails(run_after(limit, "read_many.py", *arguments), "Too many open files: '.*'")
    no_ring = (
        "Ring, (soft, hard) = uring.Ring, resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "def make(entries):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))\n"
        "    try:\n"
        "        return Ring(entries)\n"
        "    finally:\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "uring.Ring = make"
    )
    assert_fails(run_after(no_ring, "read_many.py", *arguments), "RLIMIT_NOFILE is 3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [("0", "must be in 1..100000"), ("100001", "must be in 1..100000"), ("x", "invalid int value")],
)
def test_read_many_refuses_sizes_out_of_range(option: str, message: str) -> None:
    """A count that is no number, below 1 or too large ends it with status 2 and the reason."""
    for name in ("--records", "--files"):
        finished = run("read_many.py", name, option)
        assert (finished.returncode, finished.stdout) == (2, b"")
        last = finished.stderr.decode().splitlines()[-1]
        assert re.search(rf"error: .*{name}.*{message}", last)


# ---- echo_server ----


class Server:
    """A running echo_server.py."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        assert child.stdout is not None
        greeting = re.fullmatch(rb"listening on 127\.0\.0\.1:(\d+)\n", child.stdout.readline())
        assert greeting is not None
        self.address = "127.0.0.1", int(greeting[1])

    def connect(self) -> socket.socket:
        """Return a client that is connected."""
        return socket.create_connection(self.address, timeout=SECONDS)

    def descriptors(self) -> int:
        """Return how many descriptors the server has open."""
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def wait_for_error(self) -> bytes:
        """Return the next line on stderr."""
        assert self.child.stderr is not None
        return self.child.stderr.readline()

    def stop(self) -> tuple[int, bytes, bytes]:
        """Send what Ctrl-C sends; return the exit status and what was still printed."""
        self.child.send_signal(signal.SIGINT)
        stdout, stderr = self.child.communicate(timeout=SECONDS)
        return self.child.returncode, stdout, stderr


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a server on a free port."""
    with running(command("echo_server.py", "--port", "0")) as server:
        yield server


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[Server]:
    """Run a server, and kill it in the end if it has not stopped."""
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as child:
        try:
            yield Server(child)
        finally:
            child.kill()


def echo(client: socket.socket, sent: bytes) -> bytes:
    """Send in one thread and receive in another until the server closes; return what came."""

    def send() -> None:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = b"".join(iter(lambda: client.recv(65536), b""))
    sender.join()
    return received


def send_until_full(client: socket.socket) -> None:
    """Send, and read nothing, until nothing more can be sent: so the server's send waits, too."""
    client.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(bytes(65536))


def test_echo_server_serves_fifty_connections_at_once(server: Server) -> None:
    """50 clients that are all connected get their own 100 KB back; the summary counts them."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(50)]
        sent = [pattern(100_000 + number)[number:] for number in range(50)]
        with ThreadPoolExecutor(50) as pool:
            received = list(pool.map(echo, clients, sent))
    assert received == sent
    assert server.stop() == (0, b"served 50 connections, 5000000 bytes\n", b"")


def test_echo_server_sends_on_when_a_send_is_partial(server: Server) -> None:
    """A client that sends 8 MB before it reads with small buffers gets every byte in order."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(SECONDS)
        client.connect(server.address)
        assert echo(client, pattern(8_000_000)) == pattern(8_000_000)
    assert server.stop() == (0, b"served 1 connections, 8000000 bytes\n", b"")


def test_echo_server_stops_while_connections_are_open(server: Server) -> None:
    """Ctrl-C with idle connections, and with one that does not read, ends it with status 0."""
    with server.connect() as idle, server.connect() as stuck:
        idle.sendall(b"x")
        assert idle.recv(1) == b"x"
        send_until_full(stuck)
        status, stdout, stderr = server.stop()
    assert (status, stderr) == (0, b"")
    assert re.fullmatch(rb"served 2 connections, \d+ bytes\n", stdout)


def assert_survives_resets(server: Server) -> None:
    """Reset two connections, one of them amid a send: a third one is served on."""
    with server.connect() as other:
        other.sendall(b"x")
        assert other.recv(1) == b"x"
        before = server.descriptors()
        for is_sending in (False, True):
            client = server.connect()
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            if is_sending:
                send_until_full(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        deadline = time.monotonic() + SECONDS
        while server.descriptors() > before:  # nothing else tells that the server has noticed
            assert time.monotonic() < deadline
        assert echo(other, b"still here") == b"still here"
    status, stdout, stderr = server.stop()
    assert (status, stderr) == (0, b"")
    assert stdout.startswith(b"served 3 connections, ")


def test_echo_server_survives_a_connection_that_is_reset(server: Server) -> None:
    """A reset ends that connection only, whether the server was receiving or sending."""
    assert_survives_resets(server)


@pytest.mark.slow
def test_echo_server_pauses_when_there_are_no_descriptors() -> None:
    """With its descriptors used up it says so, keeps serving, uses no processor, and recovers."""
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))"
    program = python_after(limit, "echo_server.py", "--port", "0")
    with running(program) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(12)]
        assert b"Too many open files" in server.wait_for_error()
        began = time.monotonic()
        for _ in range(2):
            assert b"Too many open files" in server.wait_for_error()
        assert time.monotonic() - began > 0.3  # two pauses of a quarter of a second
        clients[0].sendall(b"x")
        assert clients[0].recv(1) == b"x"
        assert processor_seconds(server.child.pid) < 1
        for client in clients:  # each one that ends makes room for the next
            assert echo(client, b"text") == b"text"
        status, stdout, _ = server.stop()
    assert (status, stdout) == (0, b"served 12 connections, 49 bytes\n")


def processor_seconds(pid: int) -> float:
    """Return how much processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_echo_server_reports_where_it_cannot_listen(server: Server) -> None:
    """A port in use and a host that is no address are one line each."""
    assert_fails(run("echo_server.py", "--port", str(server.address[1])), "in use")
    assert_fails(run("echo_server.py", "--host", "1.2.3.4.5"), "")


def test_echo_server_reports_a_port_out_of_range() -> None:
    """A port over 65535 ends it with a message (before it, create_server() leaks a socket)."""
    finished = run("echo_server.py", "--port", "65536")
    assert finished.returncode == 1
    assert finished.stderr.endswith(b"error: bind(): port must be 0-65535.\n")


# ---- echo_multishot ----


@pytest.fixture(params=[16, 1], ids=["16 buffers", "1 buffer"])
def multishot(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give a server with some buffers, or with one, on a free port."""
    sizes = ("--port", "0", "--buffers", str(request.param))
    with running(command("echo_multishot.py", *sizes)) as server:
        yield server


def assert_served(stopped: tuple[int, bytes, bytes], count: int, size: int) -> None:
    """Check that a server ended well, and what it says that it has done."""
    status, stdout, stderr = stopped
    assert (status, stderr) == (0, b"")
    summary = rb"served %d connections, %d bytes\nthe buffers ran out \d+ times\n" % (count, size)
    assert re.fullmatch(summary, stdout), stdout


def test_echo_multishot_shows_itself_without_arguments() -> None:
    """By itself it serves clients of its own, whose bytes come back, and ends with status 0."""
    finished = run("echo_multishot.py")
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert re.fullmatch(
        rb"listening on 127\.0\.0\.1:\d+\n"
        rb"51 clients got back the 13000000 bytes that they had sent\n"
        rb"served 51 connections, 13000000 bytes\n"
        rb"the buffers ran out \d+ times\n",
        finished.stdout,
    )


def test_echo_multishot_says_that_a_client_got_other_bytes() -> None:
    """When a byte is changed on its way back, it ends with one line on stderr."""
    change = (
        "Send = uring.Send\n"
        "class Changed(Send):\n"
        "    def _encode(self):\n"
        "        return Send(self.fd, bytes(len(self.buffer)))._encode()\n"
        "uring.Send = Changed"
    )
    assert_fails(
        run_after(change, "echo_multishot.py"), "a client did not get back what it had sent"
    )


def test_echo_multishot_stops_amid_its_own_clients() -> None:
    """Ctrl-C while its clients are at work ends it with one line on stderr, and does not hang."""
    slow = "import os; os.urandom = lambda count: bytes(count * 10)"
    with (
        running(python_after(slow, "echo_multishot.py")) as server,
        server.connect() as client,
    ):
        client.sendall(b"x")
        assert client.recv(1) == b"x"  # so it serves
        status, stdout, stderr = server.stop()
    assert (status, stdout) == (1, b"")
    assert re.fullmatch(rb"error: (a client did not get back|\[Errno).*\n", stderr), stderr


def test_echo_multishot_serves_fifty_connections_at_once(multishot: Server) -> None:
    """50 clients get their own 100 KB back, however few buffers there are."""
    with ExitStack() as stack:
        clients = [stack.enter_context(multishot.connect()) for _ in range(50)]
        sent = [pattern(100_000 + number)[number:] for number in range(50)]
        with ThreadPoolExecutor(50) as pool:
            received = list(pool.map(echo, clients, sent))
    assert received == sent
    assert_served(multishot.stop(), 50, 5_000_000)


def test_echo_multishot_keeps_the_bytes_of_a_slow_reader(multishot: Server) -> None:
    """Who sends 8 MB and reads with small buffers gets all in order; others are served, too."""
    with socket.socket() as client, multishot.connect() as stuck, multishot.connect() as other:
        send_until_full(stuck)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(SECONDS)
        client.connect(multishot.address)
        assert echo(client, pattern(8_000_000)) == pattern(8_000_000)
        assert echo(other, b"text") == b"text"
        memory = Path(f"/proc/{multishot.child.pid}/statm").read_text().split()[1]
        status, stdout, stderr = multishot.stop()
    assert (status, stderr) == (0, b"")
    assert stdout.startswith(b"served 3 connections, ")
    assert int(memory) * os.sysconf("SC_PAGE_SIZE") < 100_000_000


def test_echo_multishot_sends_what_waits_after_the_client_has_finished(multishot: Server) -> None:
    """Who sends more than is received at once, shuts down and then reads, gets all of it."""
    with multishot.connect() as client:
        client.sendall(pattern(500_000))
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(65536), b"")) == pattern(500_000)
    assert_served(multishot.stop(), 1, 500_000)


def test_echo_multishot_survives_a_connection_that_is_reset(multishot: Server) -> None:
    """A reset ends that connection only, and its descriptor is closed."""
    assert_survives_resets(multishot)


@pytest.mark.slow
def test_echo_multishot_pauses_when_there_are_no_descriptors() -> None:
    """With its descriptors used up it says so, uses no processor, and recovers."""
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))"
    with (
        running(python_after(limit, "echo_multishot.py", "--port", "0")) as server,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(server.connect()) for _ in range(12)]
        for _ in range(3):
            assert b"Too many open files" in server.wait_for_error()
        assert processor_seconds(server.child.pid) < 1
        for client in clients:  # each one that ends makes room for the next
            assert echo(client, b"text") == b"text"
        status, stdout, _ = server.stop()
    assert status == 0
    assert stdout.startswith(b"served 12 connections, 48 bytes\n")


def test_echo_multishot_reports_what_it_cannot_do(server: Server) -> None:
    """A port in use, one out of range, and a wrong number of buffers are one line each."""
    assert_fails(run("echo_multishot.py", "--port", str(server.address[1])), "in use")
    assert_fails(run("echo_multishot.py", "--buffers", "3"), "use 4")
    finished = run("echo_multishot.py", "--port", "65536")
    assert finished.returncode == 1
    assert finished.stderr.endswith(b"error: bind(): port must be 0-65535.\n")


# ---- aio_echo ----


@pytest.fixture(params=[16, 1], ids=["16 buffers", "1 buffer"])
def aio_echo(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give a server with some buffers, or with one, on a free port."""
    sizes = ("--port", "0", "--buffers", str(request.param))
    with running(command("aio_echo.py", *sizes)) as server:
        yield server


def test_aio_echo_shows_itself_without_arguments() -> None:
    """By itself it serves clients of its own, whose bytes come back, and ends with status 0."""
    finished = run("aio_echo.py")
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert re.fullmatch(
        rb"listening on 127\.0\.0\.1:\d+\n"
        rb"50 clients got back the 10000000 bytes that they had sent\n"
        rb"served 50 connections, 10000000 bytes\n",
        finished.stdout,
    )


def test_aio_echo_says_that_a_client_got_other_bytes() -> None:
    """When other bytes are sent than were received, it ends with one line on stderr."""
    change = (
        "Send = uring.Send\n"
        "uring.Send = lambda client, received: Send(client, bytes(len(received)))"
    )
    assert_fails(run_after(change, "aio_echo.py"), "a client did not get back what it had sent")


def test_aio_echo_serves_fifty_connections_at_once(aio_echo: Server) -> None:
    """50 clients get their own 100 KB back, however few buffers there are."""
    with ExitStack() as stack:
        clients = [stack.enter_context(aio_echo.connect()) for _ in range(50)]
        sent = [pattern(100_000 + number)[number:] for number in range(50)]
        with ThreadPoolExecutor(50) as pool:
            received = list(pool.map(echo, clients, sent))
    assert received == sent
    assert aio_echo.stop() == (0, b"served 50 connections, 5000000 bytes\n", b"")


def test_aio_echo_serves_others_while_clients_do_not_read(aio_echo: Server) -> None:
    """Twenty clients that read nothing keep no buffer from another; Ctrl-C ends all of them."""
    with ExitStack() as stack:
        for _ in range(20):
            send_until_full(stack.enter_context(aio_echo.connect()))
        other = stack.enter_context(aio_echo.connect())
        assert echo(other, pattern(300_000)) == pattern(300_000)
        status, stdout, stderr = aio_echo.stop()
    assert (status, stderr) == (0, b"")
    assert stdout.startswith(b"served 21 connections, ")


def test_aio_echo_survives_a_connection_that_is_reset(aio_echo: Server) -> None:
    """A reset ends that connection only, and its descriptor is closed."""
    assert_survives_resets(aio_echo)


@pytest.mark.slow
def test_aio_echo_pauses_when_there_are_no_descriptors() -> None:
    """With its descriptors used up it says so, uses no processor, and recovers."""
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))"
    with (
        running(python_after(limit, "aio_echo.py", "--port", "0")) as server,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(server.connect()) for _ in range(12)]
        for _ in range(3):
            assert b"Too many open files" in server.wait_for_error()
        assert processor_seconds(server.child.pid) < 1
        for client in clients:  # each one that ends makes room for the next
            assert echo(client, b"text") == b"text"
        status, stdout, _ = server.stop()
    assert (status, stdout) == (0, b"served 12 connections, 48 bytes\n")


def test_aio_echo_reports_what_it_cannot_do(server: Server) -> None:
    """A port in use, one out of range, and a wrong number of buffers are one line each."""
    assert_fails(run("aio_echo.py", "--port", str(server.address[1])), "in use")
    assert_fails(run("aio_echo.py", "--port", "0", "--buffers", "3"), "use 4")
    finished = run("aio_echo.py", "--port", "65536")
    assert finished.returncode == 1
    assert b"error: bind(): port must be 0-65535.\n" in finished.stderr


# ---- aio_static_server ----


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Make a directory to be served, beside what must not be."""
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index.html").write_bytes(b"<p>hello")
    (site / "a b.txt").write_bytes(b"text")
    (site / "empty").write_bytes(b"")
    (site / "large").write_bytes(pattern(3_000_000))
    (tmp_path / "secret").write_bytes(b"secret")
    (site / "out").symlink_to("../secret")
    (site / "in").symlink_to("index.html")
    os.mkfifo(site / "pipe")
    return site


@pytest.fixture
def static(site: Path) -> Iterator[Server]:
    """Serve it."""
    with running(command("aio_static_server.py", site, "--port", "0")) as server:
        yield server
        assert server.stop() == (0, b"", b"")


def exchanged(server: Server, sent: bytes, *, is_split: bool = False) -> bytes:
    """What comes back until the server closes, when all was sent at once or byte by byte."""
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in [sent[i : i + 1] for i in range(len(sent))] if is_split else [sent]:
            client.send(part)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_aio_static_server_answers_on_one_connection(static: Server, site: Path) -> None:
    """GET and HEAD of several files, and of one that is missing, share a connection."""
    client = http.client.HTTPConnection(*static.address, timeout=SECONDS)
    files = [("/", "index.html", "text/html"), ("/a%20b.txt?x=/..", "a b.txt", "text/plain")]
    files += [(f"/{name}", name, "application/octet-stream") for name in ("large", "empty", "in")]
    used = None
    for _ in range(3):
        for target, name, kind in files:
            for method in ("HEAD", "GET"):
                client.request(method, target)
                used = used or client.sock
                assert client.sock is used
                with client.getresponse() as response:
                    content = (site / name).read_bytes()
                    assert (response.status, response.headers["Content-Type"]) == (200, kind)
                    assert int(response.headers["Content-Length"]) == len(content)
                    date = parsedate_to_datetime(response.headers["Date"])
                    assert abs(date.timestamp() - time.time()) < SECONDS
                    assert response.read() == (content if method == "GET" else b"")
        client.request("GET", "/none")
        assert client.getresponse().read() == b"404 Not Found\n"
    client.close()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/none", 404),
        ("/large/none", 404),
        ("/pipe", 404),
        (f"/{'x' * 300}", 404),
        ("/%ff%fe", 404),
        ("/sub", 301),
        ("/sub/", 404),
        ("/%00", 400),
        ("/out", 403),
        ("/../secret", 403),
        ("/%2e%2e/secret", 403),
        ("/..%2fsecret", 403),
        ("/sub/../../secret", 403),
        ("//etc/passwd", 404),
        ("/sub/../index.html", 200),
        ("http://example.org/index.html", 200),
    ],
)
def test_aio_static_server_keeps_to_its_directory(static: Server, target: str, status: int) -> None:
    """Each target has its status, and nothing from outside is shown."""
    answer = exchanged(static, f"GET {target} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nConnection: close\r\n" in answer
    assert b"secret" not in answer


def test_aio_static_server_does_not_send_what_the_client_has(static: Server, site: Path) -> None:
    """With the file's entity tag it answers 304 and no more, until the file has changed."""
    client = http.client.HTTPConnection(*static.address, timeout=SECONDS)
    for content in (b"first", b"second"):
        (site / "page.html").write_bytes(content)
        client.request("GET", "/page.html")
        response = client.getresponse()
        assert response.read() == content
        tag = response.headers["ETag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            client.request("GET", "/page.html", headers={"If-None-Match": known})
            response = client.getresponse()
            assert (response.status, response.read()) == (304, b"")
            assert response.headers["ETag"] == tag
    client.close()


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-", range(3_000_000)),
        ("bytes=0-1", range(2)),
        ("bytes=131072-2999999", range(131_072, 3_000_000)),
        ("bytes=2999999-99999999", range(2_999_999, 3_000_000)),
        ("bytes=-7", range(2_999_993, 3_000_000)),
        ("bytes=-9999999", range(3_000_000)),
        ("bytes=3000000-", range(0)),
        ("bytes=-0", range(0)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        (f"bytes={'9' * 5000}-", None),
        ("lines=0-1", None),
    ],
)
def test_aio_static_server_sends_the_part_that_is_asked_for(
    static: Server, asked: str, part: range | None
) -> None:
    """One range is 206, or 416 if it is empty; what is no range that it knows, the whole file."""
    content, path = pattern(3_000_000), "/large"
    client = http.client.HTTPConnection(*static.address, timeout=SECONDS)
    for _ in range(2):  # on one connection, so that no byte is too many
        client.request("GET", path, headers={"Range": asked})
        with client.getresponse() as response:
            place, body = response.headers["Content-Range"], response.read()
        if part is None:
            assert (response.status, place, body) == (200, None, content)
        elif not part:
            assert (response.status, place) == (416, "bytes */3000000")
            assert body.startswith(b"416 ")
        else:
            assert (response.status, body) == (206, content[part.start : part.stop])
            assert place == f"bytes {part[0]}-{part[-1]}/3000000"
    client.close()


def test_aio_static_server_sends_parts_of_the_file_that_the_client_has(static: Server) -> None:
    """If-Range asks for a part of what it names and for the whole of all else; so does HEAD."""
    client = http.client.HTTPConnection(*static.address, timeout=SECONDS)
    client.request("HEAD", "/large", headers={"Range": "bytes=0-1"})
    response = client.getresponse()
    assert (response.status, response.read()) == (200, b"")
    assert response.headers["Accept-Ranges"] == "bytes"
    tag = response.headers["ETag"]
    for known, status in ((tag, 206), (f"W/{tag}", 200), ('"other"', 200)):
        fields = {"Range": "bytes=0-1", "If-Range": known}
        client.request("GET", "/large", headers=fields)
        with client.getresponse() as response:
            assert (response.status, len(response.read())) == (status, 2 if status == 206 else 3e6)
    client.request("GET", "/empty", headers={"Range": "bytes=0-"})
    assert client.getresponse().status == 200
    client.close()


def test_aio_static_server_calls_what_is_compressed_bytes(static: Server, site: Path) -> None:
    """A file that is compressed is not called what it would be without that."""
    (site / "page.html.gz").write_bytes(b"compressed")
    answer = exchanged(static, b"GET /page.html.gz HTTP/1.0\r\n\r\n")
    assert b"\r\nContent-Type: application/octet-stream\r\n" in answer


def test_aio_static_server_ends_with_clients_that_take_nothing(site: Path) -> None:
    """A client that does not read its response is left when that has taken too long."""
    hurry = "import asyncio\nasyncio.timeout = lambda _, timeout=asyncio.timeout: timeout(0.2)"
    arguments = ("aio_static_server.py", site, "--port", "0")
    with running(python_after(hurry, *arguments)) as server, server.connect() as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n" * 5)
        assert client.recv(9) == b"HTTP/1.1 "
        before = server.descriptors()
        deadline = time.monotonic() + SECONDS
        while server.descriptors() >= before:  # nothing else tells that it has given up
            assert time.monotonic() < deadline
        assert server.stop() == (0, b"", b"")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET index.html HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno field\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : space\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\ntext",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + bytes(20_000),
    ],
)
def test_aio_static_server_refuses_what_it_does_not_understand(static: Server, sent: bytes) -> None:
    """What is no request that it can answer is 400, and the end of the connection."""
    answer = exchanged(static, sent)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("is_split", [False, True])
def test_aio_static_server_answers_in_order(static: Server, *, is_split: bool) -> None:
    """Requests that come at once, or byte by byte, are answered one after the other."""
    requests = b"GET / HTTP/1.1\r\n\r\nDELETE / HTTP/1.1\r\n\r\nGET /empty HTTP/1.0\r\n\r\nGET /"
    answers = exchanged(static, requests, is_split=is_split).split(b"HTTP/1.1 ")
    assert [answer[:3] for answer in answers] == [b"", b"200", b"405", b"200"]
    assert answers[1].endswith(b"\r\n\r\n<p>hello")


def test_aio_static_server_lets_go_of_clients_that_leave(static: Server) -> None:
    """200 clients that leave amid a request or a response leave no descriptor open."""
    get = b"GET /large HTTP/1.1\r\n\r\n"
    assert exchanged(static, get.replace(b"1.1", b"1.0"))[-12:] == pattern(3_000_000)[-12:]
    before = static.descriptors()
    for number in range(200):
        with static.connect() as client:
            client.sendall(get[:9] if number % 2 else get * 3)
            if number % 3 == 0 and number % 2 == 0:
                assert client.recv(1000)[:9] == b"HTTP/1.1 "
            if number % 5 == 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + SECONDS
    while static.descriptors() > before:  # nothing else tells that the server has noticed
        assert time.monotonic() < deadline
    answer = exchanged(static, get.replace(b"1.1", b"1.0"))
    assert answer.partition(b"\r\n\r\n")[2] == pattern(3_000_000)


def test_aio_static_server_reports_what_it_cannot_do(server: Server, tmp_path: Path) -> None:
    """A directory that is none, and a port in use, are one line each."""
    assert_fails(run("aio_static_server.py", tmp_path / "none"), "No such file or directory")
    assert_fails(run("aio_static_server.py", tmp_path, "--port", str(server.address[1])), "in use")


# ---- aio_wc ----


def test_aio_wc_counts_as_wc_does(tmp_path: Path) -> None:
    """Lines, words and bytes of 300 files, with words across the parts that are read, and all."""
    paths = [tmp_path / f"file {number}" for number in range(300)]
    for number, path in enumerate(paths):
        path.write_bytes(b"a word\n" * number + b" x" * (number % 3) * 200_000)
    finished = run("aio_wc.py", *paths)
    assert (finished.returncode, finished.stderr) == (0, b"")
    total = [0, 0, 0]
    lines = finished.stdout.decode().splitlines()
    for path, line in zip(paths, lines, strict=False):
        content = path.read_bytes()
        expected = [content.count(b"\n"), len(content.split()), len(content)]
        assert line.split(maxsplit=3) == [*map(str, expected), str(path)]
        total = [a + b for a, b in zip(total, expected, strict=True)]
    assert lines[len(paths) :] == ["{:8} {:8} {:9} total, by way of io_uring".format(*total)]


def test_aio_wc_names_what_it_cannot_read(tmp_path: Path) -> None:
    """A file that is missing is one line on stderr, and the others are counted."""
    (tmp_path / "file").write_bytes(b"text\n")
    finished = run("aio_wc.py", tmp_path / "none", tmp_path / "file")
    assert finished.returncode == 1
    assert finished.stderr.decode() == f"{tmp_path / 'none'}: No such file or directory\n"
    assert finished.stdout.startswith(b"       1        1         5 ")


def test_aio_wc_says_in_one_line_what_it_cannot_do(tmp_path: Path) -> None:
    """A backend that there is not is one line on stderr."""
    (tmp_path / "file").write_bytes(b"text\n")
    wrong = "os.environ['URING_AIO_BACKEND'] = 'wrong'"
    assert_fails(run_after(wrong, "aio_wc.py", tmp_path / "file"), "not 'wrong'")


def test_aio_wc_ends_with_its_reader_and_with_ctrl_c(tmp_path: Path) -> None:
    """A reader that has seen enough, and Ctrl-C while a FIFO is waited for, end it in silence."""
    paths = [tmp_path / f"{'x' * 200}{number}" for number in range(400)]
    for path in paths:
        path.write_bytes(b"")
    with subprocess.Popen(
        command("aio_wc.py", *paths), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout
        assert child.stderr
        assert child.stdout.readline()
        child.stdout.close()
        assert (child.wait(SECONDS), child.stderr.read()) == (-signal.SIGPIPE, b"")
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(command("aio_wc.py", tmp_path / "fifo"), stderr=subprocess.PIPE) as child:
        assert child.stderr
        writing = None
        deadline = time.monotonic() + SECONDS
        while writing is None:  # until it is there to read
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):
                writing = os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        child.send_signal(signal.SIGINT)
        assert (child.wait(SECONDS), child.stderr.read()) == (-signal.SIGINT, b"")
        os.close(writing)


# ---- splice_proxy ----


@contextmanager
def proxied(preparation: str = "") -> Iterator[tuple[Server, socket.socket]]:
    """Give a proxy, and the listener of its target."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(SECONDS)
        arguments = ("0", f"127.0.0.1:{target.getsockname()[1]}")
        with running(python_after(preparation, "splice_proxy.py", *arguments)) as proxy:
            yield proxy, target


@pytest.mark.slow
def test_splice_proxy_compares_itself_with_a_plain_loop() -> None:
    """By itself it prints the rate of a loop, and its own."""
    finished = run("splice_proxy.py")
    assert (finished.returncode, finished.stderr) == (0, b"")
    rates = (
        rb"recv and send +(\d+) MiB/s\n"
        rb"splice +(\d+) MiB/s +(\d+\.\d\d) times as fast\n"
    )
    numbers = re.fullmatch(rates, finished.stdout)
    assert numbers is not None
    assert min(map(float, numbers.groups())) > 0


def test_splice_proxy_passes_bytes_on_in_both_directions() -> None:
    """Ten clients at once get from the target what it makes of what they have sent."""
    with proxied() as (proxy, target), ExitStack() as stack:
        sent = [pattern(300_000 + number)[number:] for number in range(10)]

        def serve(_: int) -> None:
            connection, _address = target.accept()
            with connection:
                received = b"".join(iter(lambda: connection.recv(65536), b""))
                connection.sendall(received[::-1])

        with ThreadPoolExecutor(20) as pool:
            served = [pool.submit(serve, number) for number in range(10)]
            clients = [stack.enter_context(proxy.connect()) for _ in range(10)]
            received = list(pool.map(echo, clients, sent))
            for each in served:
                each.result()
        assert received == [each[::-1] for each in sent]
        assert proxy.stop() == (0, b"", b"")


def test_splice_proxy_passes_on_what_a_slow_reader_takes() -> None:
    """8 MB come whole, and in order, to a target that reads late and with small buffers."""
    with proxied() as (proxy, target):
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with proxy.connect() as client, target.accept()[0] as server:
            sender = threading.Thread(target=client.sendall, args=(pattern(8_000_000),))
            sender.start()
            parts = 0
            digest = hashlib.sha256()
            while parts < 8_000_000:
                part = server.recv(65536)
                digest.update(part)
                parts += len(part)
            sender.join()
            assert digest.digest() == hashlib.sha256(pattern(8_000_000)).digest()
            assert proxy.stop() == (0, b"", b"")


@pytest.mark.parametrize("end", ["client", "target"])
def test_splice_proxy_closes_all_when_a_connection_is_reset(end: str) -> None:
    """A reset of either end reaches the other one, and leaves no descriptor open."""
    with proxied() as (proxy, target), proxy.connect() as idle, target.accept()[0] as other:
        idle.sendall(b"x")
        assert other.recv(1) == b"x"
        before = proxy.descriptors()
        with proxy.connect() as client, target.accept()[0] as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            ends = [client, server] if end == "client" else [server, client]
            ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            ends[0].close()
            with contextlib.suppress(ConnectionResetError):
                assert ends[1].recv(1) == b""
        deadline = time.monotonic() + SECONDS
        while proxy.descriptors() > before:  # nothing else tells that the proxy has noticed
            assert time.monotonic() < deadline
        assert proxy.stop() == (0, b"", b"")


def test_splice_proxy_keeps_no_thread_for_an_idle_connection() -> None:
    """Fifty connections that say nothing are waited for without a thread of the kernel's each."""
    with proxied() as (proxy, target), ExitStack() as stack:
        for _ in range(50):
            client = stack.enter_context(proxy.connect())
            server = stack.enter_context(target.accept()[0])
            client.sendall(b"x")
            assert server.recv(1) == b"x"
        threads = list(Path(f"/proc/{proxy.child.pid}/task").iterdir())
        assert len(threads) < 40
        assert proxy.stop() == (0, b"", b"")


def test_splice_proxy_says_that_the_target_is_not_there() -> None:
    """A target that refuses is one line on stderr; the client's connection ends, the proxy not."""
    with proxied() as (proxy, target):
        target.close()
        for _ in range(2):
            with proxy.connect() as client, contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            assert b"Connection refused" in proxy.wait_for_error()
        assert proxy.stop() == (0, b"", b"")


@pytest.mark.slow
def test_splice_proxy_says_that_bytes_were_changed() -> None:
    """When it does not pass on what it gets, its own check says so."""
    lose = (
        "result = uring.CQE.result\n"
        "def skip(cqe):\n"
        "    value = result(cqe)\n"
        "    lost = isinstance(cqe.op, uring.Splice) and cqe.op.length == 2**20 and value > 1\n"
        "    return value - 1 if lost else value\n"
        "uring.CQE.result = skip"
    )
    assert_fails(run_after(lose, "splice_proxy.py"), "what came out is not what went in")


def test_splice_proxy_reports_what_it_cannot_do(server: Server) -> None:
    """A port in use is one line; a target without a port ends it with status 2."""
    port = str(server.address[1])
    assert_fails(run("splice_proxy.py", port, "127.0.0.1:80"), "in use")
    for arguments in ([port], [port, "127.0.0.1"]):
        finished = run("splice_proxy.py", *arguments)
        assert finished.returncode == 2
        assert b"must be HOST:PORT" in finished.stderr


# ---- fixed_io ----


FIXED: Final = r"(page cache|O_DIRECT) +(read|write) +[\d.]+ us, registered +[\d.]+ us: (.*)"


def assert_copied(finished: Finished) -> None:
    """Check the lines; those of O_DIRECT are missing where it is refused."""
    places = ["page cache", "O_DIRECT"]
    if finished.returncode:
        assert finished.stderr.startswith(b"no O_DIRECT here: [Errno 22] Invalid argument")
        places.pop()
    else:
        assert finished.stderr == b""
    lines = [re.fullmatch(FIXED, line) for line in finished.stdout.decode().splitlines()]
    assert [line and line.group(1, 2) for line in lines] == [
        (place, what) for place in places for what in ("read", "write")
    ]
    for line in lines:
        assert line is not None
        assert re.fullmatch(r"no faster here|\d+\.\d\d times as fast", line[3])


@pytest.mark.parametrize("size", [None, 1, 4096, 100_001])
def test_fixed_io_copies_and_compares(tmp_path: Path, size: int | None) -> None:
    """A file of its own, or one of any size, is copied, and nothing is left behind."""
    source, copies = tmp_path / "source", tmp_path / "copies"
    copies.mkdir()
    source.write_bytes(pattern(size or 0))
    files = [] if size is None else [source]
    assert_copied(run("fixed_io.py", *files, "--dir", copies))
    assert list(copies.iterdir()) == []
    assert source.read_bytes() == pattern(size or 0)


@pytest.mark.parametrize("way", ["plain", "registered"])
def test_fixed_io_finds_out_that_a_copy_differs(tmp_path: Path, way: str) -> None:
    """A way that writes something else is named in one line."""
    name = "Write" if way == "plain" else "WriteFixed"
    move = f"Kind = uring.{name}\nuring.{name} = lambda fd, buffer, at: Kind(fd, buffer, at ^ 4096)"
    finished = run_after(move, "fixed_io.py", "--dir", tmp_path)
    assert_fails(finished, f"page cache, {way}: the copy differs from the file")
    assert list(tmp_path.iterdir()) == []


def test_fixed_io_refuses_what_it_cannot_copy(tmp_path: Path) -> None:
    """A missing file, an empty one, a directory and a device are one line each."""
    (tmp_path / "empty").touch()
    assert_fails(run("fixed_io.py", tmp_path / "none"), "No such file.*none")
    for path in (tmp_path / "empty", tmp_path, Path("/dev/zero")):
        assert_fails(run("fixed_io.py", path), f"{path} is not a regular file")
    assert_fails(run("fixed_io.py", "--dir", tmp_path / "none"), "No such file.*none")


# ---- read_only_ring ----


def test_read_only_ring_reads_what_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    """Each file is read whole; nine attempts are refused; one gets through, by another ring."""
    paths = [tmp_path / "one", tmp_path / "two", EXAMPLES / "read_only_ring.py"]
    paths[0].write_bytes(pattern(200_001))
    paths[1].touch()
    finished = run("read_only_ring.py", *paths[:2])
    assert (finished.returncode, finished.stderr) == (0, b"")
    lines = finished.stdout.decode().splitlines()
    sums = [
        f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"
        for data in map(Path.read_bytes, paths)
    ]
    assert lines[:2] == [f"{paths[0]}: {sums[0]}", f"{paths[1]}: {sums[1]}"]
    names = [re.match(r"refused: (\w+)\(", line) for line in lines[2:-1]]
    assert [name and name[1] for name in names] == [
        *("Write", "Openat", "Splice", "Nop", "Read", "Read"),
        *("unregister_files", "register_personality", "enable"),
    ]
    assert lines[-1] == f"let through: slot 0 has become {paths[2]}: {sums[2]}"


@pytest.mark.parametrize(
    ("way", "what"),
    [
        ("uring.Ring.register_restrictions = lambda ring, rules: None", "Write"),
        ("uring.Restriction.sqe_flags_required = uring.Restriction.sqe_flags_allowed", "Read"),
        (
            (
                "allow = uring.Restriction.allow_register\n"
                "more = uring.RegisterOpcode.REGISTER_PERSONALITY\n"
                "uring.Restriction.allow_register = lambda op: (allow(op), allow(more))"
            ),
            "register_personality",
        ),
    ],
)
def test_read_only_ring_finds_out_that_something_is_not_refused(
    tmp_path: Path, way: str, what: str
) -> None:
    """Where a restriction is missing, the first attempt that goes through is named."""
    path = tmp_path / "file"
    path.write_bytes(b"text")
    finished = run_after(way, "read_only_ring.py", path)
    assert_fails(finished, rf"{what}\(.* was not refused")
    assert path.read_bytes() == b"text"


def test_read_only_ring_reports_what_it_cannot_read(tmp_path: Path) -> None:
    """A missing file and a directory are one line each."""
    assert_fails(run("read_only_ring.py", tmp_path / "none"), "No such file.*none")
    assert_fails(run("read_only_ring.py", tmp_path), "Is a directory")


# ---- tree_stat ----


def make_tree(top: Path) -> tuple[int, int]:
    """Make a tree with more entries than one run takes: return their count, and their bytes."""
    for number in range(3):
        directory = top / f"directory {number}" / os.fsdecode(b"\xff")
        directory.mkdir(parents=True)
        for name in range(500):
            (directory / str(name)).write_bytes(bytes(name))
    (top / "loop").symlink_to(top)
    (top / "dangling").symlink_to("nothing")
    newest = top / "newest"
    newest.touch()
    os.utime(newest, (2**31, 2**31 - 1))
    sizes = [path.lstat().st_size for path in top.rglob("*")]
    return len(sizes), sum(sizes)


def test_tree_stat_adds_a_tree_up(tmp_path: Path) -> None:
    """It counts links, and names that are not UTF-8, follows no link, and names the newest."""
    count, size = make_tree(tmp_path)
    finished = run("tree_stat.py", tmp_path)
    assert (finished.returncode, finished.stderr) == (0, b"")
    first, *lines = finished.stdout.decode().splitlines()
    begin, end = f"{count} entries, {size} bytes; the last change: ", f"2038, {tmp_path}/newest"
    assert first.startswith(begin)
    assert first.endswith(end)
    ways = ("os.walk, os.lstat", "os.scandir, .stat", "ring")
    for line, way in zip(lines, ways, strict=True):
        assert re.fullmatch(rf"{way} +\d+\.\d\d\d s +\d+\.\d times as fast", line)


def test_tree_stat_takes_a_directory_with_nothing_in_it(tmp_path: Path) -> None:
    """Nothing is 0 entries and 0 bytes."""
    finished = run("tree_stat.py", tmp_path)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout.startswith(b"0 entries, 0 bytes")


def test_tree_stat_reports_what_is_no_directory(tmp_path: Path) -> None:
    """A missing directory and a file are one line each."""
    (tmp_path / "file").touch()
    assert_fails(run("tree_stat.py", tmp_path / "none"), "No such file.*none")
    assert_fails(run("tree_stat.py", tmp_path / "file"), "Not a directory.*file")


def test_tree_stat_finds_out_that_the_ways_differ(tmp_path: Path) -> None:
    """When the ring's answers are wrong, it says so in one line."""
    (tmp_path / "file").write_bytes(b"text")
    lie = "lstat = os.lstat\nos.lstat = lambda path: os.stat_result([0] * 10)"
    assert_fails(run_after(lie, "tree_stat.py", tmp_path), "the ways have not found the same")


@pytest.mark.slow
def test_tree_stat_is_faster_than_walking_a_large_tree() -> None:
    """A ring is not slower than os.walk and os.lstat; a quarter is left to noise."""
    finished = run("tree_stat.py", "/usr/lib")
    assert finished.returncode == 0
    factor = re.search(rb"ring .* s +(\d+\.\d) times as fast", finished.stdout)
    assert factor is not None
    assert float(factor[1]) > 0.75
