"""
`python -m uring`: what this kernel, this process and this container allow, and a self-check.

First everything is gathered into one frozen `Report`; only then is it shown, as text or as JSON.
Gathering prints nothing, and what it cannot learn is None and never an exception. The text is
ASCII, so that it reads the same in a pipe, in a log and under LANG=C. With `--table` it is another
document: see `_table`.
"""

import argparse
import errno
import io
import itertools
import json
import os
import platform
import resource
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import attrs

from uring import _table
from uring._selfcheck import Check, Failure, describe, self_check
from uring.errors import SetupError, UringError
from uring.flags import Features, Opcode, SetupFlags
from uring.probe import Probe, probe

_Named = Opcode | SetupFlags | Features
_Kind = type[Opcode] | type[SetupFlags] | type[Features]

_DISABLED: Final = {
    None: "unknown: the file is not there (it came with Linux 6.6), or cannot be read",
    0: "everybody may use io_uring",
    1: "only CAP_SYS_ADMIN and the group in kernel.io_uring_group may use io_uring",
    2: "nobody may use io_uring",
}
_FILTERED: Final = 2  # SECCOMP_MODE_FILTER in linux/seccomp.h
_SECCOMP: Final = {
    None: "unknown: /proc/self/status does not say it, or cannot be read",
    0: "off",
    1: "strict",
    _FILTERED: "a filter is active",
}

_TABLES: Final[tuple[tuple[str, _Kind], ...]] = (
    ("Setup flags", SetupFlags),
    ("Features", Features),
    ("Opcodes", Opcode),
)
_COLUMNS: Final = 3
_WIDTH: Final = 80
_FIELD_INDENT: Final = 28


# ---- what there is to say ----


@attrs.frozen
class Limit:
    """One resource limit, in the unit of getrlimit(2); None means unlimited."""

    soft: int | None
    hard: int | None


@attrs.frozen
class Report:
    """All that `python -m uring` knows."""

    kernel: str
    machine: str
    python: str
    version: str
    """Of this package."""

    io_uring_disabled: int | None
    """The sysctl kernel.io_uring_disabled; None where there is none."""

    seccomp: int | None
    """The seccomp mode of this process, as proc(5) has it."""

    memlock: Limit
    nofile: Limit
    probe: Probe | None
    failure: Failure | None
    """Why there is no probe, or None."""

    has_ring: bool
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether a ring could be made, the kernel said what it has, and every check held."""
        return self.probe is not None and all(check.error is None for check in self.checks)


# ---- gathering ----


def gather() -> Report:
    """Learn everything; never raises for what this machine refuses."""
    found, failure, has_ring = _ask()
    system = os.uname()
    return Report(
        kernel=system.release,
        machine=system.machine,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        version=_version(),
        io_uring_disabled=_number(_read("/proc/sys/kernel/io_uring_disabled")),
        seccomp=_seccomp_mode(),
        memlock=_limit(resource.RLIMIT_MEMLOCK),
        nofile=_limit(resource.RLIMIT_NOFILE),
        probe=found,
        failure=failure,
        has_ring=has_ring,
        checks=tuple(self_check()) if has_ring else (),
    )


def _ask() -> tuple[Probe | None, Failure | None, bool]:
    """What the kernel has, or why it does not say; and whether rings are to be had."""
    try:
        return probe(), None, True
    except SetupError as error:
        return None, describe(error), False
    except UringError as error:
        return None, describe(error), True


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None


def _seccomp_mode() -> int | None:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("Seccomp:"):
            return _number(line.removeprefix("Seccomp:"))
    return None


def _limit(which: int) -> Limit:
    soft, hard = (None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(which))
    return Limit(soft, hard)


def _version() -> str:
    try:
        return metadata.version("uring")
    except metadata.PackageNotFoundError:  # a checkout that nobody installed; or no descriptor left
        return "(version unknown)"


# ---- showing: as JSON ----


def render_json(report: Report) -> str:
    """The report as one JSON object; what is not known is null, a limit of null is unlimited."""
    failure = report.failure
    found = report.probe
    shown: dict[str, object] = {
        "ok": report.ok,
        "uring": report.version,
        "kernel": report.kernel,
        "machine": report.machine,
        "python": report.python,
        "ring": report.has_ring,
        "failure": failure and attrs.asdict(failure) | {"errno_name": _errno_name(failure.errno)},
        "io_uring_disabled": {
            "value": report.io_uring_disabled,
            "meaning": _meaning(_DISABLED, report.io_uring_disabled),
        },
        "seccomp": {"value": report.seccomp, "meaning": _meaning(_SECCOMP, report.seccomp)},
        "limits": {
            "RLIMIT_MEMLOCK": attrs.asdict(report.memlock),
            "RLIMIT_NOFILE": attrs.asdict(report.nofile),
        },
        "setup_flags": [_json_row(member, found) for member in SetupFlags],
        "features": [_json_row(member, found) for member in Features],
        "opcodes": [_json_row(member, found) for member in Opcode],
        "last_register_opcode": found and found.last_register_opcode,
        "checks": [
            {
                "name": check.name,
                "tried": check.is_tried,
                "ok": check.error is None,
                "error": check.error,
            }
            for check in report.checks
        ],
    }
    return json.dumps(shown, indent=2) + "\n"


def _json_row(member: _Named, found: Probe | None) -> dict[str, object]:
    return {
        "name": member.name,
        "value": int(member),
        "since": member.since,
        "supported": None if found is None else found.supports(member),
    }


def _meaning(meanings: Mapping[int | None, str], value: int | None) -> str:
    return meanings.get(value, "a value that this version of uring does not know")


def _errno_name(number: int | None) -> str | None:
    return None if number is None else errno.errorcode.get(number, str(number))


# ---- showing: as text ----


@attrs.frozen
class _Ink:
    """Colours, or nothing at all."""

    is_used: bool

    def bold(self, text: str) -> str:
        return self._paint("1", text)

    def good(self, text: str) -> str:
        return self._paint("32", text)

    def bad(self, text: str) -> str:
        return self._paint("31", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.is_used else text


def render_text(report: Report, *, colour: bool) -> str:
    """The report for people."""
    ink = _Ink(colour)
    lines = [
        ink.bold(f"uring {report.version}")
        + f", Linux {report.kernel} on {report.machine}, {report.python}",
        "",
        *_allowed_lines(report, ink),
        "",
    ]
    if report.probe is not None:
        for title, kind in _TABLES:
            lines += [*_table_lines(title, kind, report.probe, ink), ""]
    if report.checks:
        lines += [ink.bold("Self-check"), *_check_lines(report.checks, ink), ""]
    lines.append(_verdict(report, ink))
    return "\n".join(lines) + "\n"


def _allowed_lines(report: Report, ink: _Ink) -> Iterator[str]:
    yield ink.bold("What is allowed here")
    if report.has_ring:
        yield _field("io_uring", ink.good("yes") + ": a ring can be made")
    failure = report.failure
    if failure is not None:
        name = "asking the kernel" if report.has_ring else "io_uring"
        yield _field(name, f"{ink.bad('no')}: {_errno_name(failure.errno)}")
        yield from _wrapped(failure.message, _FIELD_INDENT)
    yield _field("kernel.io_uring_disabled", _explained(_DISABLED, report.io_uring_disabled))
    yield _field("seccomp", _explained(_SECCOMP, report.seccomp))
    yield _field("RLIMIT_MEMLOCK", _shown_limit(report.memlock, "bytes"))
    yield _field("RLIMIT_NOFILE", _shown_limit(report.nofile, "descriptors"))
    if report.probe is not None and report.probe.last_register_opcode is not None:
        last = report.probe.last_register_opcode
        yield _field("io_uring_register(2)", f"opcodes 0 to {last}")


def _field(name: str, value: str) -> str:
    return f"  {name:<{_FIELD_INDENT - 4}}  {value}"


def _explained(meanings: Mapping[int | None, str], value: int | None) -> str:
    meaning = _meaning(meanings, value)
    return meaning if value is None else f"{value}: {meaning}"


def _shown_limit(limit: Limit, unit: str) -> str:
    soft = "unlimited" if limit.soft is None else f"{limit.soft} {unit}"
    return soft if limit.soft == limit.hard else f"{soft}, hard limit {limit.hard or 'unlimited'}"


def _wrapped(text: str, indent: int) -> list[str]:
    """Wrap at spaces only: what is long is an option or a path, to be copied whole."""
    margin = " " * indent
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table_lines(title: str, kind: _Kind, found: Probe, ink: _Ink) -> Iterator[str]:
    """Name, first release, and whether it is there; the order runs down the columns."""
    members: list[_Named] = list(kind)
    count = sum(found.supports(member) for member in members)
    yield ink.bold(title) + f": {count} of {len(members)}, each with the Linux that first had it"
    height = -(-len(members) // _COLUMNS)
    columns = [members[start : start + height] for start in range(0, len(members), height)]
    widths = [max(len(str(member.name)) for member in column) for column in columns]
    for row in itertools.zip_longest(*columns):
        cells = [
            f"{member.name:<{width}} {member.since or '?':>4} {_mark(found, member, ink)}"
            for member, width in zip(row, widths, strict=True)
            if member is not None
        ]
        yield "  " + "  ".join(cells).rstrip()


def _mark(found: Probe, member: _Named, ink: _Ink) -> str:
    return ink.good("yes") if found.supports(member) else ink.bad("no ")


def _check_lines(checks: Sequence[Check], ink: _Ink) -> Iterator[str]:
    for check in checks:
        if check.error is None:
            yield _field(check.name, ink.good("ok"))
        elif not check.is_tried:
            yield _field(check.name, check.error)
        else:
            yield _field(check.name, ink.bad("failed"))
            yield from _wrapped(check.error, _FIELD_INDENT)


def _verdict(report: Report, ink: _Ink) -> str:
    if report.ok:
        return ink.good("io_uring works here.")
    if not report.has_ring:
        return ink.bad("io_uring does not work here: no ring can be made.")
    failed = sum(check.error is not None and check.is_tried for check in report.checks)
    if failed:
        count = f"{failed} of {len(report.checks)} checks failed"
        return ink.bad(f"io_uring does not work here: {count}.")
    return ink.bad("io_uring works here in part: the kernel could not be asked what it has.")


# ---- showing: the kernel's interface ----


def _table_here() -> tuple[str, bool]:
    """The table with what the running kernel has, and whether it could be asked."""
    found, failure, _ = _ask()
    release = os.uname().release
    if failure is None:
        return _table.render(_table.Here(release, found)), True
    name = _errno_name(failure.errno) or ""
    return _table.render(_table.Here(release, None, name, failure.message)), False


# ---- the command ----


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uring",
        description=(
            "Say what this kernel, this process and this container allow of io_uring; then use it,"
            " and look at the outcome."
        ),
        epilog=(
            "The exit status is 0 when a ring can be made, the kernel says what it has, and every"
            " check holds; 1 when not; 2 for wrong arguments. With --table it is 1 when the kernel"
            " does not say what it has. Nothing is changed on this machine but for temporary files."
            " Colours are for terminals only; NO_COLOR turns them off."
        ),
        add_help=False,  # it would print by itself, and not survive a closed pipe
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: null is what is not known, or a limit that is unlimited",
    )
    form.add_argument(
        "--table",
        action="store_true",
        help=(
            "print the kernel's interface instead, in Markdown: each opcode, flag and feature, what"
            " stands for it in uring, the Linux that first had it, and whether it is here"
        ),
    )
    parser.add_argument(
        "--no-probe",
        action="store_true",
        help=(
            "with --table: leave out what is here, which makes the table the same on every machine;"
            " it is kept so in docs/kernel-interface.md"
        ),
    )
    return parser


def _wants_colour() -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":  # https://no-color.org
        return False
    return sys.stdout.isatty()


def _write(text: str) -> bool:
    """Write to stdout: False when that failed, other than by a reader who has seen enough."""
    if sys.stdout is None:  # closed by whoever started us
        return True
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path in a message may be anything
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes once more at exit, and would complain.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if isinstance(error, BrokenPipeError):
            return True
        sys.stderr.write(f"python -m uring: cannot write to stdout: {error.strerror}\n")
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.help:
        return 0 if _write(parser.format_help()) else 1
    if options.no_probe and not options.table:
        parser.error("--no-probe goes with --table")
    if options.table:
        text, ok = (_table.render(), True) if options.no_probe else _table_here()
    else:
        report = gather()
        ok = report.ok
        if options.json:
            text = render_json(report)
        else:
            text = render_text(report, colour=sys.stdout is not None and _wants_colour())
    is_written = _write(text)
    return 0 if ok and is_written else 1


if __name__ == "__main__":
    sys.exit(main())
