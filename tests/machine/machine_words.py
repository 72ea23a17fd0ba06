"""
Memory that shows what was done to it, and bytes that say where they belong.

Every byte that is sent belongs to a word of 32 bits, which names the write that it comes from and
its place in that. So whoever finds bytes, wherever he does, knows whether they belong there, and
whether they were there before: a `Channel` keeps account of each word. All lengths are whole words.
A `Target` is what the kernel is given to write to: bytes of one value, with guards around.
"""

import array
import contextlib
import os
import socket
from typing import Final

import attrs

WORD: Final = 4
CANARY: Final = 0xA5
GUARD: Final = 32
_INDEX_BITS: Final = 10
WORDS_MAX: Final = 1 << _INDEX_BITS
"""In one write."""


class Memory(bytearray):
    """A bytearray that can be weakly referenced."""

    __slots__ = ("__weakref__",)


class Target:
    """Memory for the kernel to write to; without a guard it is lent as the bytearray itself."""

    __slots__ = ("guard", "memory", "size")

    def __init__(self, size: int, *, guard: int = GUARD) -> None:
        self.size = size
        self.guard = guard
        self.memory: Memory | memoryview = Memory(bytes([CANARY]) * (size + 2 * guard))

    @classmethod
    def of(cls, memory: Memory) -> "Target":
        """The target that has this memory, with a guard."""
        target = cls(0)
        target.memory, target.size = memory, len(memory) - 2 * GUARD
        return target

    def lend(self) -> memoryview | Memory:
        """What an operation is given."""
        if not self.guard:
            return self.memory
        return memoryview(self.memory)[self.guard : self.guard + self.size]

    def own(self) -> Memory:
        """Its memory, which is no part of other memory."""
        assert isinstance(self.memory, Memory)
        return self.memory

    def filled(self, length: int) -> bytes:
        """The first bytes; all behind those, and around them, must be as they were."""
        start = self.guard
        assert length <= self.size
        whole = bytes(self.memory)
        for part in (whole[:start], whole[start + length :]):
            assert part == bytes([CANARY]) * len(part), f"written beyond {length}: {whole.hex(' ')}"
        return whole[start : start + length]

    def found(self) -> bytes:
        """The bytes that somebody has written from the start on; behind those all must be whole."""
        inside = bytes(self.memory[self.guard : self.guard + self.size])
        return self.filled(len(inside.rstrip(bytes([CANARY]))))

    def assert_guarded(self) -> None:
        """The guards must be as they were, whatever is in between."""
        guard = bytes([CANARY]) * self.guard
        end = self.guard + self.size
        assert bytes(self.memory[: self.guard]) == guard
        assert bytes(self.memory[end : end + self.guard]) == guard


def assert_resizable(memory: Memory) -> None:
    """Nobody may have pinned it."""
    memory.append(0)
    del memory[-1]


def assert_pinned(memory: Memory) -> None:
    """Somebody must have."""
    try:
        memory.append(0)
    except BufferError:
        return
    raise AssertionError("memory in flight is not pinned")


def filled(targets: list[Target], length: int) -> bytes:
    """The bytes of a vector, filled from its first part on."""
    found = []
    for target in targets:
        part = min(length, target.size)
        found.append(target.filled(part))
        length -= part
    assert length == 0, "the kernel says that it wrote more than there was room for"
    return b"".join(found)


@attrs.define(eq=False)
class Write:
    """What one write sends: so many words, of which the first `sent` count when it has ended."""

    number: int
    count: int
    sent: int | None = None
    """How many were sent; None as long as nobody knows."""
    seen: set[int] = attrs.field(factory=set)

    def content(self) -> bytes:
        """Its bytes."""
        first = self.number << _INDEX_BITS
        return array.array("I", range(first, first + self.count)).tobytes()

    def end(self, res: int) -> None:
        """Note how many bytes the kernel says that it took."""
        assert res % WORD == 0, f"{res} bytes of whole words were sent"
        assert 0 <= res <= self.count * WORD
        self.sent = res // WORD
        assert not self.seen or max(self.seen) < self.sent, "more came than was sent"

    def assert_arrived(self, *, is_all: bool) -> None:
        """What was sent must have come, and nothing else."""
        seen, sent = len(self.seen), self.sent
        assert self.seen == set(range(seen)) or not is_all, f"{self} came in pieces"
        assert seen <= self.count
        if sent is not None:
            assert seen == sent if is_all else seen <= sent, f"of {sent} words {seen} came"


class Channel:
    """One way of bytes: a pipe, or a pair of sockets; and what is under way in it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_socket = kind != "pipe"
        self.is_shut = False
        """Whether the end of the file stands behind what is in it."""
        self.is_lossy = False
        """Whether words were taken that nobody has looked at."""
        self.writes: dict[int, Write] = {}
        self.got: set[int] = set()
        self._ends: list[socket.socket] = []
        if kind == "pipe":
            self.reader, self.writer = os.pipe()
            return
        if kind == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as server:
                left = socket.create_connection(server.getsockname())
                right, _ = server.accept()
            for end in (left, right):  # no TIME_WAIT: there are many of these
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            left, right = socket.socketpair()
        self._ends = [left, right]
        self.reader, self.writer = right.fileno(), left.fileno()

    def plan(self, number: int, count: int) -> Write:
        """Plan a write, which nobody has made yet."""
        self.writes[number] = write = Write(number, count)
        return write

    @property
    def is_roomy(self) -> bool:
        """Whether another write fits, whatever of those before was read."""
        under_way = sum(each.count - len(each.seen) for each in self.writes.values())
        return under_way * WORD < 16384

    def feed(self, number: int, count: int) -> None:
        """Write at once."""
        write = self.plan(number, count)
        write.end(os.write(self.writer, write.content()))

    def shut(self) -> None:
        """End it; of a pipe only when nothing in flight names its end."""
        if self.is_shut:
            return
        self.is_shut = True
        if self._ends:
            self._ends[0].shutdown(socket.SHUT_WR)
        else:
            os.close(self.writer)

    def arrived(self, content: bytes) -> None:
        """Account for bytes that were read."""
        assert len(content) % WORD == 0, f"{len(content)} bytes of whole words came"
        for word in array.array("I", content):
            number, index = word >> _INDEX_BITS, word & (WORDS_MAX - 1)
            assert number in self.writes, f"{word:#x} is not of this channel"
            write = self.writes[number]
            limit = write.count if write.sent is None else write.sent
            assert index < limit, f"word {index} of {limit}"
            assert index not in write.seen, f"word {index} of {number} came twice"
            write.seen.add(index)

    def finish(self) -> None:
        """Take out what is left, now that nothing is in flight, and settle the account."""
        self.shut()
        if not self._ends:  # the writer may still be open in a ring's table, which goes later
            os.set_blocking(self.reader, False)
        for end in self._ends:
            end.settimeout(10)
        with contextlib.suppress(BlockingIOError):
            while content := self._read():
                self.arrived(content)
        for write in self.writes.values():
            write.assert_arrived(is_all=not self.is_lossy)

    def _read(self) -> bytes:
        return self._ends[1].recv(65536) if self._ends else os.read(self.reader, 65536)

    def close(self) -> None:
        """Close both ends."""
        if self._ends:
            for end in self._ends:
                end.close()
            return
        os.close(self.reader)
        if not self.is_shut:
            os.close(self.writer)
