"""Where it ran: what a reader needs to know to compare the figures with their own."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGES = ["uring", "liburing", "uring-api"]
PLACE = ["processor", "cores", "kernel", "file system", "python"]
IN_MEMORY = {"tmpfs", "ramfs"}


def describe(folder: Path, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Describe the machine, the kernel, the file system, Python and the packages."""
    found = {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"Linux {platform.release()}",
        "file system": filesystem(folder),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def sentence(found: Mapping[str, str]) -> str:
    """Put the description into one line."""
    packages = dict(found)
    processor, cores, kernel, files, python = (packages.pop(name) for name in PLACE)
    place = f"{processor}, {cores} cores; {kernel}; files on {files}; {python}"
    return ", ".join([place, *(f"{name} {version}" for name, version in packages.items())])


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


class Busy:
    """How busy the machine is, from now on, with what is not this process."""

    def __init__(self) -> None:
        self._time = time.monotonic()
        self._idle = _idle_seconds()
        self._own = time.process_time()

    def others(self) -> float:
        """Return the share of all processors' time that others have had, 0..1."""
        passed = (time.monotonic() - self._time) * (os.cpu_count() or 1)
        used = passed - (_idle_seconds() - self._idle)
        return max(0.0, (used - (time.process_time() - self._own)) / passed)


def _idle_seconds() -> float:
    """Return what all processors have been idle, which the kernel measures: it samples the rest."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=6)
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
