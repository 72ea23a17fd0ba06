"""
`python -m uring`, run as a stranger runs it: on a terminal, in a pipe, and where much is forbidden.

This file is also a program: `test_main.py RESTRICTION... -- COMMAND...` forbids something to itself
and then becomes the command. Doing that between fork and exec of the test process would run Python
in a child of what may have threads by then.
"""

import errno
import json
import os
import pty
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

import uring
import uring.__main__ as command
import uring._selfcheck as selfcheck
from uring.flags import Features, Opcode, RegisterOpcode, SetupFlags, SQEFlags
from uring.operations import Nop, Readv

pytestmark = pytest.mark.slow  # each test starts an interpreter or two

COMMAND: Final = (sys.executable, "-m", "uring")
SECONDS: Final = 60.0

_IO_URING_SETUP: Final = 425
_IO_URING_REGISTER: Final = 427


# ---- forbidding ----


def become(arguments: list[str]) -> None:
    """Apply `seccomp:NUMBER:ERRNO` and `limit:NAME:VALUE`, then execute what follows ``--``."""
    sys.path.insert(0, str(Path(__file__).parent / "faults"))
    from fault_filters import refuse  # noqa: PLC0415 - only who is run as a program finds it

    end = arguments.index("--")
    for restriction in arguments[:end]:
        kind, what, value = restriction.split(":")
        if kind == "seccomp":
            refuse(int(what), int(value))
        else:
            resource.setrlimit(getattr(resource, what), (int(value), int(value)))
    os.execv(arguments[end + 1], arguments[end + 1 :])


def run(
    *arguments: str,
    under: tuple[str, ...] = (),
    program: tuple[str, ...] = COMMAND,
    env: dict[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m uring` to its end, forbidden what `under` says."""
    start = (sys.executable, __file__, *under, "--", *program) if under else program
    return subprocess.run(
        [*start, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=os.environ | env if env else None,
    )


def seccomp(number: int, error: int) -> str:
    """Name the restriction; skip where this file has no filter for the machine."""
    if os.uname().machine not in {"x86_64", "aarch64"}:  # see fault_filters
        pytest.skip(f"no filter is written for {os.uname().machine}")
    return f"seccomp:{number}:{error}"


def parsed(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The JSON object that was printed, alone."""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert done.stderr == ""
    return found


def names(rows: list[dict[str, Any]]) -> list[str]:
    """The names in a table."""
    return [row["name"] for row in rows]


def squeezed(text: str) -> str:
    """Undo the wrapping."""
    return " ".join(text.split())


# ---- where io_uring works ----


@pytest.mark.usefixtures("ring")
def test_text_says_that_all_is_well() -> None:
    """With rings to be had it exits 0, says so, and every check is ok."""
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("uring ")
    assert lines[-1] == "io_uring works here."
    rows = [line.split() for line in lines]
    assert ["nop", "ok"] in rows
    assert ["readv", "ok"] in rows
    assert ["writev", "+", "fsync", "ok"] in rows


@pytest.mark.usefixtures("ring")
def test_text_has_every_name_and_its_release() -> None:
    """Each setup flag, feature and opcode stands in a table with its release and yes or no."""
    text = squeezed(run().stdout)
    for kind in (SetupFlags, Features, Opcode):
        for member in kind:
            assert f"{member.name} {member.since} yes" in text or (
                f"{member.name} {member.since} no" in text
            )


@pytest.mark.usefixtures("ring")
def test_text_in_a_pipe_is_plain_ascii_of_80_columns() -> None:
    """In a pipe under LANG=C there is no escape, no other than ASCII, and no line too long."""
    text = run(env={"LANG": "C", "LC_ALL": "C", "TERM": "xterm"}).stdout
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.usefixtures("ring")
def test_json_has_all_that_the_text_has() -> None:
    """--json prints one object: what is allowed, all names with their support, every check."""
    done = run("--json")
    found = parsed(done)
    assert done.returncode == 0
    assert found["ok"] is found["ring"] is True
    assert found["failure"] is None
    assert found["kernel"] == os.uname().release
    assert names(found["setup_flags"]) == [flag.name for flag in SetupFlags]
    assert names(found["features"]) == [feature.name for feature in Features]
    assert names(found["opcodes"]) == [opcode.name for opcode in Opcode]
    assert found["opcodes"][0] == {"name": "NOP", "value": 0, "since": "5.1", "supported": True}
    assert [(check["name"], check["ok"]) for check in found["checks"]] == [
        ("nop", True),
        ("readv", True),
        ("writev + fsync", True),
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert found["limits"]["RLIMIT_NOFILE"] == {"soft": soft, "hard": hard}


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize("limit", ["RLIMIT_NOFILE:6", "RLIMIT_MEMLOCK:0"])
def test_checks_hold_under_small_limits(limit: str) -> None:
    """Six descriptors, or no locked memory, are enough for it, and it shows the limit."""
    name, value = limit.split(":")
    done = run("--json", under=(f"limit:{limit}",))
    found = parsed(done)
    assert found["limits"][name]["soft"] == int(value)
    assert found["failure"] is None
    assert done.returncode == 0


@pytest.mark.usefixtures("ring")
def test_checks_name_tmpdir_when_no_directory_can_be_written() -> None:
    """Where no temporary file can be made, nop holds, the others say TMPDIR, the status is 1."""
    done = run("--json", under=("limit:RLIMIT_FSIZE:0",))  # stops the superuser as well
    checks = parsed(done)["checks"]
    assert done.returncode == 1
    assert [check["ok"] for check in checks] == [True, False, False]
    assert all("set TMPDIR" in check["error"] for check in checks[1:])


@pytest.mark.usefixtures("ring")
def test_checks_fail_when_the_file_does_not_take_it_all() -> None:
    """A file that takes a part only fails the checks, with both counts."""
    done = run(under=("limit:RLIMIT_FSIZE:5000",))
    assert done.returncode == 1
    assert "5000 and should be 12550" in squeezed(done.stdout)
    assert done.stdout.endswith("io_uring does not work here: 2 of 3 checks failed.\n")


@pytest.mark.usefixtures("ring")
def test_status_is_1_when_the_kernel_may_not_be_asked() -> None:
    """With io_uring_register(2) refused the checks still run, and the report says what is not."""
    done = run(under=(seccomp(_IO_URING_REGISTER, errno.EPERM),))
    text = squeezed(done.stdout)
    assert done.returncode == 1
    assert "asking the kernel no: EPERM" in text
    assert "seccomp=unconfined" in text
    assert text.count(" ok") == 3
    assert "works here in part" in text


@pytest.mark.usefixtures("ring")
def test_table_says_what_the_running_kernel_has() -> None:
    """--table prints the document with yes or no behind each release, and exits 0."""
    done = run("--table")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Linux {os.uname().release}, says" in done.stdout
    found = uring.probe()
    for member in (*Opcode, *SetupFlags, *Features, *RegisterOpcode):
        answer = "yes" if found.supports(member) else "no"
        assert re.search(rf"\| {member.name} +\| {member.since}[^|]*\| {answer} ", done.stdout)


# ---- where it is forbidden ----


def test_table_is_whole_where_rings_are_forbidden() -> None:
    """Under a filter --table has every row, unknown with the errno and the reason; it exits 1."""
    done = run("--table", under=(seccomp(_IO_URING_SETUP, errno.EPERM),))
    assert (done.returncode, done.stderr) == (1, "")
    assert "--security-opt seccomp=unconfined" in done.stdout
    for member in (*Opcode, *SQEFlags, *SetupFlags, *Features, *RegisterOpcode):
        assert re.search(
            rf"\| {member.name} +\| {member.since}[^|]*\| unknown \(EPERM\) ", done.stdout
        )


def test_table_without_probing_asks_no_kernel() -> None:
    """With --no-probe the document has no such column, wherever it is printed; it exits 0."""
    done = run("--table", "--no-probe", under=(seccomp(_IO_URING_SETUP, errno.EPERM),))
    assert (done.returncode, done.stderr) == (0, "")
    assert "| Here" not in done.stdout
    assert done.stdout == run("--table", "--no-probe").stdout


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_text_names_seccomp_when_a_filter_refuses_rings(error: int) -> None:
    """Under a filter it exits 1, names the errno, seccomp and Docker's option; no traceback."""
    done = run(under=(seccomp(_IO_URING_SETUP, error),))
    text = squeezed(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"io_uring no: {errno.errorcode[error]}" in text
    assert "a seccomp filter is active in this process (Docker" in text
    assert "--security-opt seccomp=unconfined" in text
    assert text.endswith("io_uring does not work here: no ring can be made.")


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_json_names_seccomp_when_a_filter_refuses_rings(error: int) -> None:
    """Under a filter --json is one whole object, with the reason and null for what is unknown."""
    done = run("--json", under=(seccomp(_IO_URING_SETUP, error),))
    found = parsed(done)
    assert done.returncode == 1
    assert found["ok"] is found["ring"] is False
    assert found["seccomp"]["value"] == 2  # SECCOMP_MODE_FILTER
    failure = found["failure"]
    assert (failure["errno"], failure["errno_name"]) == (error, errno.errorcode[error])
    assert "seccomp=unconfined" in failure["message"]
    assert found["checks"] == []
    assert names(found["opcodes"]) == [opcode.name for opcode in Opcode]
    assert {row["supported"] for row in found["opcodes"]} == {None}


def test_ring_raises_setup_error_when_a_filter_refuses_rings() -> None:
    """Under a filter `Ring()` raises SetupError with EPERM, naming seccomp and Docker's option."""
    script = (
        "import uring\n"
        "try:\n"
        "    uring.Ring()\n"
        "except uring.SetupError as error:\n"
        "    print(error.errno, error)\n"
    )
    done = run(
        under=(seccomp(_IO_URING_SETUP, errno.EPERM),), program=(sys.executable, "-c", script)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{errno.EPERM} ")
    assert "seccomp" in done.stdout
    assert "--security-opt seccomp=unconfined" in done.stdout


def test_text_names_the_limit_when_no_descriptor_is_left() -> None:
    """With all descriptors taken it exits 1 and names RLIMIT_NOFILE with its value."""
    script = (
        "import resource, sys, uring.__main__ as command\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "sys.exit(command.main([]))\n"
    )
    done = run(program=(sys.executable, "-c", script))
    text = squeezed(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert "io_uring no: EMFILE" in text or "io_uring no: EPERM" in text
    assert "RLIMIT_NOFILE 3 descriptors" in text


# ---- where the output goes ----


@pytest.mark.parametrize("unbuffered", ["", "1"])  # a buffer is flushed once more, at exit
@pytest.mark.parametrize("arguments", [(), ("--json",), ("--help",), ("--table",)])
def test_output_survives_a_closed_pipe(arguments: tuple[str, ...], unbuffered: str) -> None:
    """A reader who went away gets no traceback, and the status is not a crash's."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(write_end)
    assert done.stderr == ""
    assert done.returncode in {0, 1}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_to_a_full_device_is_a_failure(unbuffered: str) -> None:
    """What cannot be written is said in one line on stderr, and the status is 1."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            COMMAND,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def on_a_terminal(env: dict[str, str]) -> str:
    """What it writes when stdout is a terminal."""
    ours, theirs = pty.openpty()
    base = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    child = subprocess.Popen(
        COMMAND, stdout=theirs, stderr=theirs, stdin=theirs, env=base | {"TERM": "xterm"} | env
    )
    os.close(theirs)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError as error:
        if error.errno != errno.EIO:  # how Linux says that the other side is closed
            raise
    finally:
        os.close(ours)
        child.wait(timeout=SECONDS)
    return b"".join(chunks).decode()


def test_terminal_gets_colours() -> None:
    """On a terminal the verdict is coloured, and every colour is switched off again."""
    text = on_a_terminal({})
    assert "\x1b[1m" in text
    assert text.count("\x1b[") == 2 * text.count("\x1b[0m")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminal_gets_no_colours_when_it_asks_so(env: dict[str, str]) -> None:
    """NO_COLOR, and a terminal that is dumb, switch colours off."""
    text = on_a_terminal(env)
    assert "io_uring" in text
    assert "\x1b" not in text


def test_help_says_what_the_status_means() -> None:
    """--help exits 0 and names --json and the exit status."""
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout
    assert "exit status is 0" in squeezed(done.stdout)


def test_arguments_that_are_wrong_exit_2() -> None:
    """Options unknown or at odds exit 2, with the usage on stderr and nothing on stdout."""
    for arguments in (["--bogus"], ["--no-probe"], ["--json", "--no-probe"], ["--json", "--table"]):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: python -m uring" in done.stderr


# ---- in this process: what a run cannot show ----


def _report(**changes: Any) -> command.Report:
    values: dict[str, Any] = {
        "kernel": "5.5.0",
        "machine": "riscv64",
        "python": "CPython 3.11.0",
        "version": "1.0",
        "io_uring_disabled": None,
        "seccomp": None,
        "memlock": command.Limit(None, None),
        "nofile": command.Limit(1024, None),
        "probe": None,
        "failure": selfcheck.Failure(errno.EOPNOTSUPP, "too old"),
        "has_ring": True,
        "checks": (selfcheck.Check("nop", None),),
    }
    return command.Report(**values | changes)


def test_report_is_not_ok_without_a_probe() -> None:
    """Checks that hold do not make up for a kernel that could not be asked."""
    assert not _report().ok


def test_text_shows_what_is_unlimited_or_unknown() -> None:
    """None is shown as unlimited for a limit and as unknown for a setting."""
    text = command.render_text(_report(io_uring_disabled=7), colour=False)
    assert "RLIMIT_MEMLOCK            unlimited\n" in text
    assert "RLIMIT_NOFILE             1024 descriptors, hard limit unlimited\n" in text
    assert "seccomp                   unknown" in text
    assert "7: a value that this version of uring does not know" in text


def test_text_does_not_call_failed_what_was_not_tried() -> None:
    """After a failed nop the other checks read as not tried, and one failure is counted."""
    checks = (
        selfcheck.Check("nop", "broken"),
        selfcheck.Check("readv", "not tried, since nop failed", is_tried=False),
    )
    text = command.render_text(_report(checks=checks), colour=False)
    assert "readv                     not tried, since nop failed\n" in text
    assert text.endswith("1 of 2 checks failed.\n")


def test_self_check_tries_nothing_more_when_nop_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nop fails, no other check is made, and each says so."""

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(selfcheck, "_check_nop", fail)
    checks = list(selfcheck.self_check())
    assert checks[0] == selfcheck.Check("nop", "injected")
    assert [check.is_tried for check in checks] == [True, False, False]


@pytest.mark.usefixtures("ring")
def test_self_check_sees_a_write_that_did_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writev that succeeds without writing fails its check."""
    monkeypatch.setattr(selfcheck, "Writev", lambda *_arguments: Nop())
    check = list(selfcheck.self_check())[2]
    assert check.error == "the count of bytes written is 0 and should be 12550"


@pytest.mark.usefixtures("ring")
def test_self_check_compares_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A readv that returns the right count but the wrong bytes fails its check."""
    monkeypatch.setattr(
        selfcheck, "Readv", lambda file, buffers: Readv(file, [bytearray(len(b)) for b in buffers])
    )
    check = list(selfcheck.self_check())[1]
    assert check.error == "what was read is not what is in the file"


@pytest.mark.usefixtures("ring")
def test_self_check_does_not_blame_seccomp_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that fails with EPERM is shown as it is, without a guess at the sandbox."""

    def refuse_file() -> None:
        raise PermissionError(errno.EPERM, "injected")

    monkeypatch.setattr(selfcheck, "_check_readv", refuse_file)
    assert list(selfcheck.self_check())[1].error == "injected"


if __name__ == "__main__":
    become(sys.argv[1:])
