"""
Processes that are killed amid chains of a write and an fsync.

Each chain is reported, through a pipe, when the completion of its fsync has said so: whatever was
reported must stand in the file, whenever the process was killed.
"""

import errno
import mmap
import os
import random
import select
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NoReturn

from uring import Fsync, Ring, Write, link

BLOCK: Final = 4096
CHAINS: Final = 8  # in flight at once
FILE_BLOCKS: Final = 4096
_report: Final = struct.Struct("=II")


def content(turn: int, place: int) -> bytes:
    """What stands in a block: when it was written, and where."""
    return _report.pack(turn, place) * (BLOCK // _report.size)


def write_on(fd: int, reports: int, seed: int) -> NoReturn:
    """Write blocks in random places, for ever."""
    chance = random.Random(seed)
    memory = mmap.mmap(-1, CHAINS * BLOCK)
    parts = [memoryview(memory)[i * BLOCK : (i + 1) * BLOCK] for i in range(CHAINS)]
    turn = 0
    with Ring(2 * CHAINS) as ring:
        while True:
            turn += 1
            places = chance.sample(range(FILE_BLOCKS), CHAINS)
            for part, place in zip(parts, places, strict=True):
                part[:] = content(turn, place)
                ring.queue_all(
                    link(
                        Write(fd, part, offset=place * BLOCK, user_data=FILE_BLOCKS),
                        Fsync(fd, datasync=chance.random() < 0.5, user_data=place),
                    )
                )
            ring.submit()
            for _ in range(2 * CHAINS):
                cqe = ring.copy_cqe()
                assert cqe.res in {0, BLOCK}, cqe
                if cqe.user_data != FILE_BLOCKS:
                    os.write(reports, _report.pack(turn, cqe.user_data))


def round_of(path: str, flags: int, seed: int, seconds: float) -> int:
    """Kill one process, and look at the file: how many chains were reported."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    os.ftruncate(fd, FILE_BLOCKS * BLOCK)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            write_on(fd, write, seed)
        finally:
            os._exit(3)
    os.close(write)
    reported = bytearray()
    with os.fdopen(read, "rb", buffering=0) as pipe:
        reported += pipe.read(_report.size)  # it is at work
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                reported += pipe.read(1 << 16)
        os.kill(child, signal.SIGKILL)
        while more := pipe.read(1 << 16):
            reported += more
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL, f"seed {seed}: the writer ended with {status}"
    os.close(fd)
    latest: dict[int, int] = {}
    for turn, place in _report.iter_unpack(reported[: len(reported) // 8 * 8]):
        latest[place] = max(turn, latest.get(place, 0))
    with Path(path).open("rb") as file:
        for place, turn in latest.items():
            file.seek(place * BLOCK)
            found = file.read(BLOCK)
            written, where = _report.unpack_from(found)
            # What was under way when the process was killed may have come later, whole.
            assert where == place, f"seed {seed}: block {place} has that of {where}"
            assert written >= turn, f"seed {seed}: block {place} has {written}, reported {turn}"
            assert found == content(written, place), f"seed {seed}: block {place} is torn"
    return len(reported) // _report.size


def main() -> None:
    """Play as many rounds as the command line says; the last line has the figures."""
    rounds, seed = int(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(seed)
    total, kinds = 0, [0]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        path = f"{folder}/file"
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
            kinds.append(os.O_DIRECT)
        except OSError as error:
            assert error.errno == errno.EINVAL  # noqa: PT017 - this is no test
        for number in range(rounds):
            flags = kinds[number % len(kinds)]
            total += round_of(path, flags, chance.randrange(2**32), chance.uniform(0, 0.2))
    sys.stdout.write(f"{rounds} {total}\n")


if __name__ == "__main__":
    main()
