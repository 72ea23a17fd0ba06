"""The README is run: its example, and its list of what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import uring

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


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
    _, example, _ = EXAMPLES
    size = min(Path("/usr/bin/env").stat().st_size, 64 * 4096)
    assert run_example(example) == [f"{size} bytes in 64 reads"]


def test_readme_stream_example_prints_what_was_sent_and_how_it_ended(ring_refusal: str) -> None:
    """The third block receives what its other end sends, and says why that is all."""
    assert not ring_refusal
    *_, example = EXAMPLES
    assert run_example(example) == ["b'hello'", "end of file"]


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


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((\w[\w/.]*)\)", README))))
def test_readme_links_lead_somewhere(path: str) -> None:
    """Every relative link is a file of the repository."""
    assert (Path(__file__).parent.parent / path).exists() or path == "LICENSE"
