"""
Compare awaiting an operation of uring.aio with threads and with other packages; see README.md.

    python benchmarks/aio_reads.py

Makes its own environment, measures all in turn for some minutes, prints the figures, and refreshes
aio_results.json, aio_results.png and the tables in docs/async.md. One of the packages needs Python
3.12.
"""

import options


def main() -> None:
    """Read the command line, and go on in the environment."""
    chosen = options.parse(
        "Compare uring.aio with threads and with its peers.",
        rounds=30,
        written="aio_results.json, aio_results.png and docs/async.md",
    )
    from aio_side_by_side import compare  # noqa: PLC0415 -- it needs what the environment holds

    compare(rounds=chosen.rounds, only=chosen.only, folder=chosen.dir, write=chosen.is_written)


if __name__ == "__main__":
    main()
