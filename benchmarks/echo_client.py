"""
The client of the echo cases, in a process of its own: plain blocking sockets, driven by floor.c.

    echo_client.py LIBRARY PROCESSOR MESSAGE_SIZE DESCRIPTOR...

It ends when the other side closes its sockets.
"""

import os
import signal
import sys
from array import array
from pathlib import Path

import floor


def main() -> None:
    """Send a message on every connection, and another whenever one has come back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sockets end with the one who started us
    library, processor, size, *descriptors = sys.argv[1:]
    os.sched_setaffinity(0, {int(processor)})
    fds = array("i", map(int, descriptors))
    if floor.load(Path(library)).floor_client(floor.numbers(fds), len(fds), int(size)):
        raise SystemExit("echo_client: what came back is not what was sent")


main()
