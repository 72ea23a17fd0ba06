"""Where it ran: what a reader needs to know to compare the figures with their own."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ["uring", "liburing", "uring-api"]
IN_MEMORY = {"tmpfs", "ramfs"}


def describe(folder: Path) -> dict[str, str]:
    """Describe the machine, the kernel, the file system, Python and the packages."""
    found = {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"Linux {platform.release()}",
        "file system": filesystem(folder),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def sentence(found: Mapping[str, str]) -> str:
    """Put the description into one line."""
    place = (
        f"{found['processor']}, {found['cores']} cores; {found['kernel']};"
        f" files on {found['file system']}; {found['python']}"
    )
    return ", ".join([place, *(f"{name} {found[name]}" for name in PACKAGES)])


def processor() -> str:
    """Return the processor's model as the kernel names it, or its architecture."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def filesystem(path: Path) -> str:
    """Return the type of the file system that a path is on: of the longest mount point above it."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, kind = line.partition(" - ")
        mounts[Path(fields.split()[4].replace("\\040", " "))] = kind.split()[0]
    path = path.resolve()
    return next((mounts[each] for each in (path, *path.parents) if each in mounts), "unknown")
