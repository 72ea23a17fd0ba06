"""The command line of the comparisons."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import environment


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    rounds: int
    only: str
    dir: Path
    is_written: bool


def parse(description: str, *, rounds: int, written: str) -> Options:
    """Read the command line, and go on in the environment."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="how often each is measured (%(default)s)"
    )
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="measure what has this in its name"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=environment.HERE,
        help="where the files to read and write are made; on a disk (%(default)s)",
    )
    parser.add_argument(
        "--no-write",
        action="store_true",
        help=f"print only: leave {written} alone (as --only does)",
    )
    environment.add_options(parser)
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    environment.enter(given)
    is_written = not (given.only or given.no_write)
    return Options(given.rounds, given.only, given.dir, is_written)
