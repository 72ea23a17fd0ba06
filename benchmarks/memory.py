"""
See that memory and descriptors stay flat over millions of operations; see README.md.

    python benchmarks/memory.py
"""

import argparse

import environment


def main() -> None:
    """Read the command line, and go on in the environment."""
    parser = argparse.ArgumentParser(description="See that memory stays flat.")
    parser.add_argument(
        "--operations", type=int, default=10_000_000, help="of each kind (%(default)s)"
    )
    environment.add_options(parser)
    options = parser.parse_args()
    environment.enter(options)

    from flatness import examine  # noqa: PLC0415 -- it needs what the environment holds

    raise SystemExit(examine(options.operations))


if __name__ == "__main__":
    main()
