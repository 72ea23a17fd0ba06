"""Check what the sdist and the wheel hold: all that is needed, and nothing else."""

import sys
import tarfile
import zipfile
from pathlib import Path

IN_SDIST = {
    "LICENSE",
    "README.md",
    "build_uring.py",
    "pyproject.toml",
    "uring/_batch.h",
    "uring/_buffers.h",
    "uring/_cdef.h",
    "uring/_queues.h",
    "uring/_resize.h",
    "uring/_shim.h",
    "uring/_uring.pyi",
    "uring/_waits.h",
    "uring/py.typed",
    "uring/ring.py",
}


def check_sdist(path: Path) -> None:
    """Everything that a build needs is there."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = IN_SDIST - names
    if missing:
        raise SystemExit(f"{path.name} lacks {sorted(missing)}")


def check_wheel(path: Path) -> None:
    """One binary for every Python from 3.11 on, the types, and nothing outside the package."""
    if "-cp311-abi3-linux_" not in path.name:
        raise SystemExit(f"{path.name} is not a stable-ABI wheel for Python 3.11")
    names = set(zipfile.ZipFile(path).namelist())
    strangers = [name for name in names if not name.startswith(("uring/", "uring-"))]
    missing = {"uring/_uring.abi3.so", "uring/_uring.pyi", "uring/py.typed"} - names
    if strangers or missing:
        raise SystemExit(f"{path.name}: strangers {strangers}, missing {sorted(missing)}")


def main() -> None:
    """Check each path that was given."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    for path in paths:
        (check_wheel if path.suffix == ".whl" else check_sdist)(path)
    print("checked", *(path.name for path in paths))


main()
