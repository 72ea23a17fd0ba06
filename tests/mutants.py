"""
Take each guard of the library away, one at a time, and see the tests fail.

`python tests/mutants.py` tries every record of mutants.toml in a copy of the tree: it puts `new` in
the place of `old`, builds the shim again if that is in a header, and runs the tests that are named.
A guard that no test misses is reported, and the exit code is 1. With --check nothing is run: it
looks whether the records still fit the sources and the tests, and so does the suite.

The tests run in processes of their own, for some mutants crash them and others hang; both count as
noticed. Everything is put into a temporary folder, or with --scratch into one that is used again.
Needs what the project's own build needs, and as long as a few hundred short test runs.
"""

import argparse
import ast
import contextlib
import importlib.util
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

TESTS: Final = Path(__file__).resolve().parent
TREE: Final = TESTS.parent
RECORDS: Final = TESTS / "mutants.toml"
COPIED: Final = (
    *("uring", "tests", "docs", "examples", "benchmarks"),
    *("pyproject.toml", "build_uring.py", "README.md", "CHANGELOG.md", "LICENSE"),
)
SECONDS: Final = 90.0  # what the slowest of the tests needs ten times over
SURVIVED: Final = "SURVIVED"
_NO_TEST_RAN: Final = frozenset({2, 3, 4, 5})
"""Exit codes of pytest: interrupted, broken, called in a wrong way, nothing found."""


class UsageError(Exception):
    """The records do not fit, or what should have worked without a mutant does not."""


@attrs.frozen
class Mutant:
    """One guard, and how it is taken away; or, with a reason, why it is left alone."""

    name: str
    guard: str
    file: str
    old: str
    new: str = ""
    tests: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    seconds: float = SECONDS
    """After which it counts as noticed, for it hangs."""
    reason: str = ""

    @property
    def is_compiled(self) -> bool:
        """Whether the shim must be built again."""
        return self.file.endswith(".h")


@attrs.frozen
class Outcome:
    """What became of one mutant."""

    mutant: Mutant
    noticed_by: str
    seconds: float


# ---- the records ----


def load(path: Path) -> tuple[list[Mutant], list[Mutant]]:
    """Read the records: (those to be tried, those that are left alone)."""
    found = tomllib.loads(path.read_text("utf-8"))
    kinds = {kind: [_record(each) for each in found.pop(kind, [])] for kind in ("mutant", "left")}
    if found:
        raise UsageError(f"{path.name} has {sorted(found)}, and not only mutant and left")
    return kinds["mutant"], kinds["left"]


def _record(fields: dict[str, Any]) -> Mutant:
    try:
        return Mutant(**fields)
    except TypeError as error:
        raise UsageError(f"{fields.get('name', fields)}: {error}") from error


def complaints(mutants: Sequence[Mutant], left: Sequence[Mutant], sources: Path) -> Iterator[str]:
    """Say what does not fit the package in the folder `sources`, or the tests beside this file."""
    names = [mutant.name for mutant in (*mutants, *left)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: there are several of that name"
    for mutant in (*mutants, *left):
        path = sources / mutant.file
        count = path.read_text("utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1 or not mutant.old.strip():
            yield f"{mutant.name}: its text is {count} times in {mutant.file}, and must be once"
    for mutant in left:
        if not mutant.reason or mutant.tests or mutant.new:
            yield f"{mutant.name}: what is left alone has a reason, and no more"
    for mutant in mutants:
        if mutant.new == mutant.old or mutant.reason or not mutant.tests:
            yield f"{mutant.name}: a mutant changes something, and names tests that notice"
        for test in mutant.tests:
            file, _, function = test.partition("::")
            if function.partition("[")[0] not in _functions(TESTS / file):
                yield f"{mutant.name}: there is no {test}"


_known: dict[Path, set[str]] = {}


def _functions(path: Path) -> set[str]:
    """The tests in a file."""
    if path not in _known:
        tree = ast.parse(path.read_text("utf-8")) if path.is_file() else None
        body = [] if tree is None else tree.body
        _known[path] = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return _known[path]


# ---- trying them ----


def run(command: Sequence[str | Path], cwd: Path, seconds: float) -> tuple[int | None, str]:
    """Run a program with all that it starts: (its exit code, or None for a hang; its output)."""
    environment = os.environ | {"PYTHONPATH": str(cwd)}
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _running.add(process.pid)
    try:
        told, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        end(process.pid)  # also what a test has left behind
        process.wait()
        _running.discard(process.pid)
    return process.returncode, told


_running: set[int] = set()


def end(group: int) -> None:
    """End a program with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def must(command: Sequence[str | Path], cwd: Path) -> None:
    """Run a program that has to work."""
    code, told = run(command, cwd, 600)
    if code != 0:
        raise UsageError(f"{' '.join(map(str, command))} failed:\n{told}")


class Workshop:
    """A copy of the tree with the shim built beside the sources, in which mutants are tried."""

    def __init__(self, folder: Path, python: Path) -> None:
        self._tree = folder
        self._python = python
        self._binary = folder / "uring" / "_uring.abi3.so"
        self._writes = time.time_ns()

    def prepare(self) -> None:
        """Copy the tree and build it."""
        shutil.rmtree(self._tree, ignore_errors=True)
        self._tree.mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.so", ".hypothesis")
        for name in COPIED:
            if (TREE / name).is_dir():
                shutil.copytree(TREE / name, self._tree / name, ignore=ignored)
            elif (TREE / name).exists():
                shutil.copy2(TREE / name, self._tree / name)
        self.build()

    def copy(self, folder: Path) -> "Workshop":
        """Make another one like this."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._tree, folder)
        return Workshop(folder, self._python)

    def build(self) -> None:
        """Build the shim in its place."""
        script = "from setuptools import setup; setup()"
        must([self._python, "-c", script, "-q", "build_ext", "--inplace", "--force"], self._tree)

    def test(self, tests: Sequence[str], seconds: float, *options: str) -> list[str]:
        """Run tests: what has failed."""
        named = [f"tests/{test}" for test in tests]
        always = ["-q", "--tb=no", "-rfE", "--require-ring", "-p", "no:cacheprovider"]
        command = [str(self._python), "-m", "pytest", *always, *options, *named]
        code, told = run(command, self._tree, seconds)
        if code is None:
            return [f"hang of more than {seconds:g} s"]
        if code in _NO_TEST_RAN:
            raise UsageError(f"the tests could not be run ({code}):\n{told}")
        failed = [line for line in told.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if code == 0 or failed:
            return [line.split()[1].removeprefix("tests/") for line in failed]
        return [f"crash (signal {-code})" if code < 0 else f"exit code {code}"]

    def check_tests(self, tests: Sequence[str]) -> None:
        """See all tests pass that are to notice something; those that fail have a second try."""
        failed = self.test(tests, 60 * SECONDS)
        if failed and "::" in failed[0]:
            failed = self.test(failed, 20 * SECONDS)
        if failed:
            raise UsageError(f"without any mutant the tests fail: {failed}")

    def trial(self, mutant: Mutant, *, is_thorough: bool) -> str:
        """Apply a mutant, test, and put everything back: what `test` says."""
        path = self._tree / mutant.file
        before = path.read_text("utf-8")
        built = self._binary.read_bytes() if mutant.is_compiled else b""
        files = [*dict.fromkeys(test.partition("::")[0] for test in mutant.tests)]
        try:
            self._write(path, before.replace(mutant.old, mutant.new))
            if mutant.is_compiled:
                self.build()
            found = self.test(mutant.tests, mutant.seconds, "-x")
            if not found and is_thorough:
                found = self.test(files, 4 * SECONDS, "-x")
        finally:
            self._write(path, before)
            if built:
                self._binary.unlink(missing_ok=True)  # who still maps the other one keeps it
                self._binary.write_bytes(built)
        return found[0] if found else SURVIVED

    def _write(self, path: Path, text: str) -> None:
        """Write so that Python sees it: it goes by whole seconds and sizes."""
        path.write_text(text, "utf-8")
        self._writes += 2_000_000_000
        os.utime(path, ns=(self._writes, self._writes))


def try_all(workshops: Sequence[Workshop], mutants: Sequence[Mutant], *, is_thorough: bool) -> int:
    """Try mutants, in several places at once, and print each as it is done: how many survived."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome | Exception | None] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)

    def work(workshop: Workshop) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                mutant, start = waiting.get_nowait(), time.monotonic()
                try:
                    found = workshop.trial(mutant, is_thorough=is_thorough)
                    done.put(Outcome(mutant, found, time.monotonic() - start))
                except (UsageError, OSError) as error:
                    done.put(UsageError(f"{mutant.name}: {error}"))
        done.put(None)

    threads = [threading.Thread(target=work, args=[each], daemon=True) for each in workshops]
    for thread in threads:
        thread.start()
    outcomes: list[Outcome] = []
    broken: list[Exception] = []
    left = len(threads)
    while left:
        outcome = done.get()
        if outcome is None:
            left -= 1
        elif isinstance(outcome, Exception):
            broken.append(outcome)
            say(f"BROKEN    {outcome}")
        else:
            outcomes.append(outcome)
            mutant = outcome.mutant
            say(
                f"{mutant.name:<38} {mutant.file.removeprefix('uring/'):<24}"
                f" {outcome.seconds:5.1f} s  {outcome.noticed_by}"
            )
    survivors = [each.mutant for each in outcomes if each.noticed_by is SURVIVED]
    noticed = len(outcomes) - len(survivors)
    say(f"\n{len(outcomes)} guards taken away, {noticed} times a test noticed")
    for mutant in survivors:
        say(f"{SURVIVED}: {mutant.name}: {mutant.guard} ({mutant.file})")
    return len(survivors) + len(broken)


def say(line: str) -> None:
    """Print, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# ---- the command line ----


def prepared(folder: Path, jobs: int) -> list[Workshop]:
    """Make an environment and as many workshops as there are jobs."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        must([sys.executable, "-m", "venv", folder / "venv"], folder)
        must([python, "-m", "pip", "install", "-q", "--upgrade", "pip"], folder)
        groups = ["--group", "test", "--group", "build", "attrs"]
        must([python, "-m", "pip", "install", "-q", *groups], TREE)
    first = Workshop(folder / "tree0", python)
    first.prepare()
    return [first, *(first.copy(folder / f"tree{place}") for place in range(1, jobs))]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--check", action="store_true", help="only look whether the records fit")
    add("--only", metavar="TEXT", action="append", help="those with this in their name or file")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    add("--unchecked", action="store_true", help="believe that the tests pass without a mutant")
    add("--thorough", action="store_true", help="run the whole files, where no named test notices")
    add("--scratch", type=Path, metavar="FOLDER", help="work in this folder, and keep it")
    add("--records", type=Path, default=RECORDS, help="another list of mutants")
    return parser.parse_args()


def main() -> int:
    """Try the mutants, or check them: the exit code."""
    given = arguments()
    mutants, left = load(given.records)
    if given.check:
        package = importlib.util.find_spec("uring")
        assert package is not None
        wrong = [*complaints(mutants, left, Path(str(package.origin)).parents[1])]
        say("\n".join(wrong) or f"{len(mutants)} mutants fit, {len(left)} guards are left alone")
        return len(wrong) > 0
    for complaint in complaints(mutants, left, TREE):
        raise UsageError(complaint)
    wanted = given.only or [""]
    chosen = [
        mutant for mutant in mutants if any(o in f"{mutant.name} {mutant.file}" for o in wanted)
    ]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.ExitStack() as stack:
        folder = given.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        workshops = prepared(folder.resolve(), max(1, given.jobs))
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        if not given.unchecked:
            start = time.monotonic()
            workshops[0].check_tests(tests)
            say(f"{len(tests)} tests pass as it is, in {time.monotonic() - start:.0f} s\n")
        survivors = try_all(workshops, chosen, is_thorough=given.thorough)
    for mutant in left:
        say(f"left alone: {mutant.name} ({mutant.file}): {mutant.reason}")
    return min(survivors, 1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"{error}")
    finally:
        for group in list(_running):
            end(group)
