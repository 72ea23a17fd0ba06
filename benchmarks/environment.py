"""
The environment that the benchmarks run in: this checkout of uring, its peers, matplotlib.

It is made once, and brought up to date when the checkout has changed, or the versions that its
pyproject.toml names.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# What a build needs.
SOURCES = ["LICENSE", "README.md", "build_uring.py", "pyproject.toml", "uring"]
BUILT = shutil.ignore_patterns("*.so", "*.o", "__pycache__")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where to run."""
    parser.add_argument(
        "--env", type=Path, default=HERE / ".venv", help="the environment's folder (%(default)s)"
    )
    parser.add_argument(
        "--no-install", action="store_true", help="run in this Python, with what it has"
    )


def enter(options: argparse.Namespace) -> None:
    """Go on in the environment: the program starts again there, unless told to stay here."""
    if options.no_install:
        return
    python = options.env.absolute() / "bin" / "python"
    bring_up_to_date(options.env.absolute(), python)
    os.execv(python, [str(python), *sys.argv, "--no-install"])


def bring_up_to_date(folder: Path, python: Path) -> None:
    """Make the environment, or install anew what has changed."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = copy_sources(Path(scratch))
        state = f"{sys.version}\n{digest(sources)}\n"
        stamp = folder / "uring-benchmarks"
        if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return
        say(f"installing into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, str(sources)], check=True)
        for package in peers(sources):  # one that does not install here is left out
            if subprocess.run([*pip, package], check=False).returncode:
                say(f"{package} does not install here: left out")
        stamp.write_text(state, encoding="utf-8")


def peers(sources: Path) -> list[str]:
    """Return what the dependency group `bench` names: the peers, and who draws the picture."""
    with (sources / "pyproject.toml").open("rb") as file:
        group: list[str] = tomllib.load(file)["dependency-groups"]["bench"]
    return group


def copy_sources(scratch: Path) -> Path:
    """Copy what a build needs, so that nothing is built, and nothing built is found, beside it."""
    copy = scratch / "uring"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=BUILT)
        else:
            shutil.copy(source, copy / name)
    return copy


def digest(folder: Path) -> str:
    """Return a hash of all files in a folder, names included."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        total.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return total.hexdigest()


def say(text: str) -> None:
    """Tell the user what takes so long."""
    print(text, file=sys.stderr, flush=True)
