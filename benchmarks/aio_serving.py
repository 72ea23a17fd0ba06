"""
Compare what serving costs with uring.aio, asyncio and uvloop; see README.md.

    python benchmarks/aio_serving.py

Makes its own environment, measures all in turn for some minutes, prints the figures, and refreshes
aio_serving.json and a table in docs/async.md.
"""

import options


def main() -> None:
    """Read the command line, and go on in the environment."""
    chosen = options.parse(
        "Compare what an echo costs a server's processor.",
        rounds=30,
        written="aio_serving.json and docs/async.md",
    )
    from aio_servers import compare  # noqa: PLC0415 -- it needs what the environment holds

    compare(rounds=chosen.rounds, only=chosen.only, folder=chosen.dir, write=chosen.is_written)


if __name__ == "__main__":
    main()
