"""
Compare uring with C, with its peers and with plain Python, side by side; see README.md.

    python benchmarks/run.py

Makes its own environment, measures all cases in turn for some minutes, prints the figures, and
refreshes results.json, results.png and the table in README.md.
"""

import argparse
from pathlib import Path

import environment


def main() -> None:
    """Read the command line, and go on in the environment."""
    parser = argparse.ArgumentParser(description="Compare uring with C and with its peers.")
    parser.add_argument(
        "--rounds", type=int, default=300, help="how often each case is measured (%(default)s)"
    )
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="measure the cases whose name has this in it"
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
        help="print only: leave results.json, results.png and README.md alone (as --only does)",
    )
    environment.add_options(parser)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    environment.enter(options)

    from side_by_side import compare  # noqa: PLC0415 -- it needs what the environment holds

    compare(
        rounds=options.rounds,
        only=options.only,
        folder=options.dir,
        write=not (options.only or options.no_write),
    )


if __name__ == "__main__":
    main()
