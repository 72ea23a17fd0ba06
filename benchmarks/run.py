"""
Compare uring with C, with its peers and with plain Python, side by side; see README.md.

    python benchmarks/run.py

Makes its own environment, measures all cases in turn for some minutes, prints the figures, and
refreshes results.json, results.png and the table in README.md.
"""

import options


def main() -> None:
    """Read the command line, and go on in the environment."""
    chosen = options.parse(
        "Compare uring with C and with its peers.",
        rounds=300,
        written="results.json, results.png and README.md",
    )
    from side_by_side import compare  # noqa: PLC0415 -- it needs what the environment holds

    compare(rounds=chosen.rounds, only=chosen.only, folder=chosen.dir, write=chosen.is_written)


if __name__ == "__main__":
    main()
