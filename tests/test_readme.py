"""The README is run: its example, and its list of what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import uring

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_readme_example_runs_and_fails_where_it_says(ring_refusal: str) -> None:
    """The first block prints a file's bytes and the error that its comment shows."""
    assert not ring_refusal
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    content, error = done.stdout.splitlines()
    assert content == repr(Path("/etc/hostname").read_bytes())
    assert error == re.search(r"# (\[Errno 2\].*)", example)[1]  # type: ignore[index]  # the README has it, or the test fails here


def test_readme_names_every_operation() -> None:
    """The README's list of operations is the package's."""
    (names,) = re.findall(r"^Operations: (.*?);", README, re.MULTILINE | re.DOTALL)
    exported = {
        name
        for name in uring.__all__
        if isinstance(getattr(uring, name), type)
        and issubclass(getattr(uring, name), uring.Operation)
    }
    assert set(re.findall(r"`(\w+)`", names)) == exported - {"Operation"}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((\w[\w/.]*)\)", README))))
def test_readme_links_lead_somewhere(path: str) -> None:
    """Every relative link is a file of the repository."""
    assert (Path(__file__).parent.parent / path).exists() or path == "LICENSE"
