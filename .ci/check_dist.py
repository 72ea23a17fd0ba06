"""Check what the sdist and the wheel hold: all that is needed, and nothing else."""

import subprocess
import sys
import tarfile
import tempfile
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
    "uring/_cq.h",
    "uring/_map.h",
    "uring/_resize.h",
    "uring/_shim.h",
    "uring/_sq.h",
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
    wheel = zipfile.ZipFile(path)
    names = set(wheel.namelist())
    strangers = [name for name in names if not name.startswith(("uring/", "uring-"))]
    missing = {"uring/_uring.abi3.so", "uring/_uring.pyi", "uring/py.typed"} - names
    if strangers or missing:
        raise SystemExit(f"{path.name}: strangers {strangers}, missing {sorted(missing)}")
    check_binary(wheel.read("uring/_uring.abi3.so"))


def check_binary(binary: bytes) -> None:
    """What an attacker could use is not there: writable code or tables, other people's names."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(binary)
        file.flush()
        headers, names = (
            subprocess.run(
                ["readelf", *options, file.name], check=True, capture_output=True, text=True
            ).stdout
            for options in (["--wide", "--segments", "--dynamic"], ["--wide", "--dyn-syms"])
        )
    segments = {line.split()[0]: line.split() for line in headers.splitlines() if line.split()}
    if "GNU_RELRO" not in segments or "NOW" not in headers:
        raise SystemExit("the tables of the binary stay writable: no full RELRO")
    if "TEXTREL" in headers:
        raise SystemExit("the code of the binary is written to when it is loaded: TEXTREL")
    if "E" in segments["GNU_STACK"][6]:
        raise SystemExit("the stack can be executed")
    symbols = [line.split() for line in names.splitlines() if line.strip()[:1].isdigit()]
    exported = {symbol[7] for symbol in symbols if len(symbol) > 7 and symbol[6] != "UND"}
    if exported != {"PyInit__uring"}:
        raise SystemExit(f"the binary exports {sorted(exported)}, not its one function")


def main() -> None:
    """Check each path that was given."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    for path in paths:
        (check_wheel if path.suffix == ".whl" else check_sdist)(path)
    print("checked", *(path.name for path in paths))


main()
