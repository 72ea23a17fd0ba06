"""
Send one NOP through a ring: queue, submit, wait, copy out; and look at the counters on the way.

The counters are those that the program shares with the kernel: the kernel takes submissions at the
head of the one queue (sq), and posts completions at the tail of the other (cq).

    python examples/nop.py
"""

import argparse
import sys

import uring


def show(moment: str, ring: uring.Ring) -> None:
    """Print both queues' counters, and what is in flight."""
    print(f"{moment}:")
    print(f"  sq: head={ring.sq.head} tail={ring.sq.tail} sqe_tail={ring.sq.sqe_tail}")
    print(f"  cq: head={ring.cq.head} tail={ring.cq.tail}")
    print(f"  in flight: {ring.in_flight}")


def run(entries: int) -> None:
    """Make a ring, and have it do nothing, once."""
    with uring.Ring(entries) as ring:
        show("before", ring)

        user_data = ring.queue(uring.Nop())
        show("queued", ring)

        ring.submit_and_wait(1)
        show("submitted and completed", ring)

        cqe = ring.copy_cqe()
        show("copied out", ring)

        print(f"the completion: {cqe}")
        if cqe.error is not None:
            raise cqe.error
        if cqe.user_data != user_data:
            raise RuntimeError("that is somebody else's completion")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Send one NOP through an io_uring.")
    parser.add_argument("--entries", type=int, default=8, help="the ring's size; a power of two")
    arguments = parser.parse_args()
    try:
        run(arguments.entries)
    except (OSError, ValueError, uring.UringError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
