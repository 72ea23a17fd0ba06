"""
Read files through a ring that can do nothing else, and try everything else on it.

The files are registered while the ring is disabled; then it is restricted, for ever, and enabled.
Whoever gets that ring, and cannot make another one, has those files and no more. Who can make one
gets round it: messages of another ring come in, and put other files into its slots.

    python examples/read_only_ring.py FILE...
"""

import argparse
import errno
import hashlib
import os
import sys

import uring
from uring import Fixed, Restriction, Ring, SetupFlags, SQEFlags

RULES = [
    Restriction.allow_opcode(uring.Read),
    Restriction.sqe_flags_required(SQEFlags.FIXED_FILE),  # else it would read any descriptor
    Restriction.allow_register(uring.RegisterOpcode.REGISTER_SYNC_CANCEL),  # for close()
]


def digest(ring: Ring, file: Fixed) -> str:
    """Read a file to its end: its size, and its SHA-256."""
    size, sha256, buffer = 0, hashlib.sha256(), bytearray(64 * 1024)
    while count := ring.run([uring.Read(file, buffer, size)])[0].result():
        sha256.update(memoryview(buffer)[:count])
        size += count
    return f"{size} bytes, SHA-256 {sha256.hexdigest()}"


def try_the_rest(ring: Ring, path: str, other: int) -> None:
    """See that operations, ordinary descriptors, flags and registrations are refused."""
    buffer = bytearray(1)
    for op in (
        uring.Write(Fixed(0), buffer),
        uring.Openat(path),
        uring.Splice(fd_in=other, fd_out=Fixed(0), length=1),
        uring.Nop(),
        uring.Read(other, buffer),
        uring.Read(Fixed(0), buffer, flags=SQEFlags.ASYNC),
    ):
        if ring.run([op])[0].res != -errno.EACCES:
            sys.exit(f"error: {op!r} was not refused")
        print(f"refused: {op!r}")
    for call in (ring.unregister_files, ring.register_personality, ring.enable):
        try:
            call()
        except uring.RegisterError as error:
            if error.errno != errno.EACCES:
                raise
            print(f"refused: {call.__name__}()")
        else:
            sys.exit(f"error: {call.__name__}() was not refused")


def show(paths: list[str]) -> None:
    """Read each file; try the rest; and get round it, with another ring."""
    with Ring(8, flags=SetupFlags.R_DISABLED) as ring, Ring(1) as outside:
        other, *fds = [os.open(path, os.O_RDONLY) for path in (sys.argv[0], *paths)]
        files = ring.register_files(fds)
        ring.register_restrictions(RULES)
        ring.enable()
        for fd in fds:
            os.close(fd)  # the ring has the files
        for path, file in zip(paths, files, strict=True):
            print(f"{path}: {digest(ring, file)}")
        try_the_rest(ring, paths[0], other)
        outside.register_files([other])
        os.close(other)
        outside.queue(uring.MsgRingFd(ring, source=Fixed(0), slot=Fixed(0), target_user_data=1))
        outside.submit_and_wait(1)
        outside.copy_cqe().result()
        print(f"let through: slot 0 has become {sys.argv[0]}: {digest(ring, Fixed(0))}")


def main() -> None:
    """Read the command line, and show it."""
    parser = argparse.ArgumentParser(description="Read files through a ring that only can read.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    try:
        show(parser.parse_args().files)
    except (OSError, uring.UringError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
