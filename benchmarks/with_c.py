"""The tasks in C: floor.c, called through ctypes, which costs one call for all the repeats."""

import ctypes
import os
from array import array
from collections.abc import Sequence
from typing import Literal

import floor
from ways import Way, Ways
from work import BLOCK, ENTRIES, GROWTH, MESSAGE, NOPS, READS, Line, Work

READV, READ = 1, 22  # the kernel's numbers of the two operations


class Floor:
    """One ring, in C."""

    name = "C"

    def __init__(self, work: Work) -> None:
        self.work = work
        self.floor = floor.load(work.floor)
        self.ring = self.floor.floor_open(ENTRIES)
        if not self.ring:
            error = ctypes.get_errno()
            raise OSError(error, f"floor.c: no ring: {os.strerror(error)}")
        self.kept: list[array[int]] = []  # whose addresses C was given
        file = work.file.fileno()
        buffers = [floor.address(buffer) for buffer in work.buffers]
        pairs = [self._iovecs(pair) for pair in work.pairs]
        self.ways: Ways = {
            "nop256": self._nop(NOPS, NOPS),
            "nop1": self._nop(NOPS, 1),
            "read64": self._read(READ, file, buffers, BLOCK, READS),
            "read1": self._read(READ, file, buffers, BLOCK, 1),
            "readv64": self._read(READV, file, pairs, len(work.pairs[0]), READS),
            "chain": self._chain(work.written.fileno(), work.parts),
        }
        if work.direct != -1:
            pages = [floor.address(page) for page in work.pages]
            self.ways["direct64"] = self._read(READ, work.direct, pages, BLOCK, READS)
        for name, line in work.lines.items():
            self.ways[f"echo {name}"] = self._echo(line)
        for count in GROWTH:
            self.ways[f"run {count}"] = self._nop(count, ENTRIES)

    def close(self) -> None:
        """Leave the ring to the end of the process."""

    def _keep(self, typecode: Literal["i", "q", "L", "Q"], values: Sequence[int]) -> int:
        """Return the address of numbers that stay where they are."""
        kept = array(typecode, values)
        self.kept.append(kept)
        return floor.numbers(kept)

    def _iovecs(self, buffers: Sequence[bytearray]) -> int:
        """Return the address of the struct iovecs of some buffers."""
        words = [word for buffer in buffers for word in (floor.address(buffer), len(buffer))]
        return self._keep("L", words)

    def _nop(self, count: int, batch: int) -> Way:
        """`count` NOPs, `batch` at once."""
        nop, ring = self.floor.floor_nop, self.ring
        return lambda repeats: nop(ring, repeats, count, batch)

    def _read(self, opcode: int, fd: int, addresses: Sequence[int], length: int, batch: int) -> Way:
        """64 reads, `batch` at once."""
        read, ring = self.floor.floor_read, self.ring
        where, offsets = self._keep("Q", addresses), self._keep("q", self.work.offsets)
        return lambda repeats: read(ring, repeats, opcode, fd, where, length, offsets, READS, batch)

    def _chain(self, fd: int, parts: Sequence[bytearray]) -> Way:
        """A writev, and linked to it an fsync."""
        chain, ring, iovecs = self.floor.floor_chain, self.ring, self._iovecs(parts)
        return lambda repeats: chain(ring, repeats, fd, iovecs, len(parts))

    def _echo(self, line: Line) -> Way:
        """One recv or send in flight on each connection."""
        echo, ring, count, trips = self.floor.floor_echo, self.ring, len(line.fds), line.trips
        fds = self._keep("i", line.fds)
        buffers = self._keep("Q", [floor.address(buffer) for buffer in line.buffers])
        return lambda repeats: echo(ring, repeats, fds, buffers, MESSAGE, count, trips)
