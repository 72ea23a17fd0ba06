"""The README and the page on event loops are run: their examples, and the list of what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import uring

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ASYNC = (ROOT / "docs" / "async.md").read_text(encoding="utf-8")


def examples_in(text: str) -> list[str]:
    """The Python in it."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


EXAMPLES = examples_in(README)
LINKS = [
    (name, path)
    for name, text in (("README.md", README), ("docs/async.md", ASYNC))
    for path in sorted(set(re.findall(r"\]\(([^)\s#]+)", text)))
    if "://" not in path
]


def run_example(example: str) -> list[str]:
    """The lines that it prints."""
    command = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_readme_example_runs_and_fails_where_it_says(ring_refusal: str) -> None:
    """The first block prints a file's bytes and the error that its comment shows."""
    assert not ring_refusal
    example, *_ = EXAMPLES
    content, error = run_example(example)
    assert content == repr(Path("/etc/hostname").read_bytes())
    assert error == re.search(r"# (\[Errno 2\].*)", example)[1]  # type: ignore[index]  # the README has it, or the test fails here


def test_readme_batch_example_reads_what_the_file_has(ring_refusal: str) -> None:
    """The second block reports as many bytes as the file has in its first 64 blocks."""
    assert not ring_refusal
    _, example, *_ = EXAMPLES
    size = min(Path("/usr/bin/env").stat().st_size, 64 * 4096)
    assert run_example(example) == [f"{size} bytes in 64 reads"]


def test_readme_stream_example_prints_what_was_sent_and_how_it_ended(ring_refusal: str) -> None:
    """The third block receives what its other end sends, and says why that is all."""
    assert not ring_refusal
    _, _, example, _ = EXAMPLES
    assert run_example(example) == ["b'hello'", "end of file"]


def test_readme_async_example_counts_lines(ring_refusal: str) -> None:
    """The fourth block prints how many lines the file has, and its size."""
    assert not ring_refusal
    *_, example = EXAMPLES
    path = Path("/etc/passwd")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert run_example(example) == [f"{len(lines)} lines", f"{path.stat().st_size} bytes"]


def test_readme_names_every_operation() -> None:
    """The README's list of operations is the package's."""
    (section,) = re.findall(r"^## Operations\n(.*?)\nAnd ", README, re.MULTILINE | re.DOTALL)
    exported = {
        name
        for name in uring.__all__
        if isinstance(getattr(uring, name), type)
        and issubclass(getattr(uring, name), uring.Operation)
    }
    assert set(re.findall(r"`(\w+)`", section)) == exported - {"Operation"}


def test_readme_names_every_example() -> None:
    """The README's table of examples is the folder's."""
    named = re.findall(r"^\| \[`examples/(\w+\.py)[^`]*`\]\(examples/\1\) ", README, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", examples_in(ASYNC))
def test_async_example_prints_what_it_says(ring_refusal: str, example: str) -> None:
    """Each block of the page prints what stands as comments behind its print() calls."""
    assert not ring_refusal
    assert run_example(example) == re.findall(r"print\(.*\)  # (.*)$", example, re.MULTILINE)


@pytest.mark.parametrize("loop", ["trio", "uvloop"])
def test_async_first_example_runs_on_every_loop(ring_refusal: str, loop: str) -> None:
    """With the last line as the page says, it prints the same."""
    assert not ring_refusal
    last = {"trio": "trio.run(main)", "uvloop": "uvloop.run(main())"}[loop]
    assert f"`{last}`" in ASYNC
    example, *_ = examples_in(ASYNC)
    changed = example.replace("asyncio.run(main())", f"import {loop}; {last}")
    assert run_example(changed) == run_example(example) != []


def test_async_examples_are_there() -> None:
    """The page has examples, and each says what it prints."""
    assert examples_in(ASYNC)
    assert all(")  # " in example for example in examples_in(ASYNC))


@pytest.mark.parametrize(("text", "path"), LINKS)
def test_links_lead_somewhere(text: str, path: str) -> None:
    """Every relative link is a file of the repository."""
    assert (ROOT / text).parent.joinpath(path).exists() or path == "LICENSE"
