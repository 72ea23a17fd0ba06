"""The list of mutants fits the sources: what it takes away is there, and so are its tests."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")
RECORD = """
[[mutant]]
name = "lock"
guard = "one thread at a time"
file = "uring/_core.py"
old = "self._lock = threading.RLock()"
new = "pass"
tests = ["test_mutants.py::test_every_record_fits"]
"""


def check(*arguments: str | Path) -> tuple[int, str]:
    """The exit code, and what is told."""
    command = [sys.executable, str(SCRIPT), "--check", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_every_record_fits() -> None:
    """Each text is in its file exactly once, and each test that is named is there."""
    assert check()[0] == 0, check()[1]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("", "", "1 mutants fit"),
        ("threading.RLock()", "threading.Lock()", "0 times in uring/_core.py"),
        ("self._lock = threading.RLock()", "self", "times in uring/_core.py"),
        ("uring/_core.py", "uring/_none.py", "0 times in uring/_none.py"),
        ("test_every_record_fits", "test_none", "there is no test_mutants.py::test_none"),
        ("test_mutants.py::", "test_none.py::", "there is no test_none.py"),
        ("::test_every_record_fits", "", "there is no test_mutants.py"),
        ('"pass"', '"self._lock = threading.RLock()"', "a mutant changes something"),
        ("[[mutant]]", "[[left]]", "what is left alone has a reason"),
        ("[[mutant]]", "[[mutants]]", "and not only mutant and left"),
        ("guard =", "gard =", "unexpected keyword argument 'gard'"),
    ],
)
def test_record_that_does_not_fit_is_told(old: str, new: str, told: str, tmp_path: Path) -> None:
    """A stale text, a test that is gone, a record of the wrong form: each is a complaint."""
    records = tmp_path / "records.toml"
    records.write_text(RECORD.replace(old, new) if old else RECORD, "utf-8")
    code, said = check("--records", records)
    assert told in said
    assert code == (1 if old else 0)


def test_records_of_one_name_are_told(tmp_path: Path) -> None:
    """A name stands for one guard."""
    records = tmp_path / "records.toml"
    records.write_text(2 * RECORD, "utf-8")
    assert "lock: there are several of that name" in check("--records", records)[1]
