"""
What the kernel has written, of any bytes: decoded, or refused; never read beside, never a crash.

Control data, socket addresses, messages, statx, siginfo, epoll events, socket options and the
like, by the operations that decode them; and completions, with their columns, slices and joins,
beside a plain list of what they should be.
"""

import contextlib
import struct
from typing import Any, Final

from source import EDGES, Input, run, small_descriptors

import uring
from uring import CQE, SQE, Completions, _messages, _sockaddr
from uring._ffi import ffi
from uring._leases import Lease
from uring.completions import Answer

CDATA: Final = type(ffi.NULL)
DESCRIPTORS: Final = small_descriptors()
CQE_STRUCT: Final = struct.Struct("=QiI")


def rooms(descriptor: int) -> list[tuple[uring.Operation, int]]:
    """Operations with memory that the kernel fills, and the greatest result that it gives."""
    return [
        (uring.Recvmsg(descriptor, [bytearray(8)], ancbufsize=64, address=True), 2**31 - 1),
        (uring.Recvmsg(descriptor, [bytearray(8)]), 8),
        (uring.Accept(descriptor, address=True), 2**31 - 1),
        (uring.Statx("a"), 0),
        (uring.Waitid(0, 0, 4), 0),
        (uring.EpollWait(descriptor, maxevents=4), 4),
        (uring.Getsockopt(descriptor, level=1, optname=2, optlen=16), 16),
        (uring.Getsockname(descriptor), 0),
        (uring.Pipe(), 0),
        (uring.FilesAlloc([descriptor, descriptor]), 2),
        (uring.Getxattr("a", "user.b", size=32), 32),
        (uring.Fgetxattr(descriptor, "user.b", size=32), 32),
    ]


ROOMS: Final = rooms(DESCRIPTORS[0])
BIG: Final[list[uring.Operation]] = [uring.Nop(big_cqe=(1, 2)), uring.Nop()]


def control(source: Input) -> None:
    """Control data: what is found lies in it; what was encoded comes back."""
    encoded = source.take(source.below(300))
    found = _messages.parse_control(encoded)
    assert sum(len(data) for _, _, data in found) <= len(encoded)
    _messages.descriptors_in(found)
    whole = _messages.encode_control(found)
    assert _messages.parse_control(whole) == found


def address(source: Input) -> None:
    """A socket address: decoded, and the same bytes again where it has a form of its own."""
    family = source.pick([0, 1, 2, 10, 16, 40])
    encoded = struct.pack("=H", family) + source.take(126)
    decoded = _sockaddr.decode_sockaddr(encoded[: source.below(129)])
    if isinstance(decoded, tuple):
        again = _sockaddr.encode_sockaddr(decoded) if in_range(decoded) else b""
        assert not again or _sockaddr.decode_sockaddr(again) == decoded


def in_range(decoded: tuple[Any, ...]) -> bool:
    """Whether the kernel could have told this: flow labels have 20 bits."""
    return len(decoded) == 2 or decoded[2] < 2**20


def multishot(source: Input) -> None:
    """A received message in a provided buffer: its parts lie in the buffer."""
    buffer = source.take(source.below(400))
    lease = Lease((memoryview(buffer),))
    namelen, ancbufsize = source.below(129), source.below(300)
    with contextlib.suppress(ValueError):
        message = _messages.decode_multishot(lease, namelen, ancbufsize)
        assert message.payload is not None
        assert len(message.payload) == len(buffer) - 16 - namelen - ancbufsize
        message.descriptors()


def pins_of(memory: object, found: list[Any], depth: int = 0) -> None:
    """Every pin in what is held for an operation."""
    if isinstance(memory, CDATA):
        found.append(memory)
    elif isinstance(memory, tuple | list):
        for each in memory:
            pins_of(each, found, depth)
    elif depth < 4:
        for cls in type(memory).__mro__:
            for name in getattr(cls, "__slots__", ()):
                pins_of(getattr(memory, name, None), found, depth + 1)


def result(source: Input) -> None:
    """An operation whose memory has any bytes: a result or an OSError, and descriptors."""
    op, most = source.pick(ROOMS)
    _, memory = op._encode()
    found: list[Any] = []
    pins_of(memory, found)
    for pin in found:
        view = ffi.buffer(pin)
        with contextlib.suppress(TypeError):  # a pin of what is read-only
            start = source.below(len(view) + 1)
            taken = source.take(min(source.below(200), len(view) - start))
            view[start : start + len(taken)] = taken
    res = min(most, source.pick([0, 1, 2, 3, 4, -1, -11, -125, source.integer() & 0x7FFF]))
    cqe = CQE(5, res, source.byte(), Answer(op, memory))
    with contextlib.suppress(OSError, ValueError):  # ValueError: a slot that no kernel gives
        cqe.result()
    repr(cqe)
    list(op._descriptors(max(res, 0), memory, 0))


def completions(source: Input) -> None:
    """A sequence of completions is what the list of its CQEs is."""
    size = source.pick([16, 32, 40])
    count = source.below(12)
    raw = source.take(count * size).ljust(count * size, b"\0")
    subjects: list[Any] = [source.pick([None, *BIG]) for _ in range(count)]
    made = Completions(raw, subjects, cqe_size=size)
    plain = [CQE(*CQE_STRUCT.unpack_from(raw, place * size)) for place in range(count)]
    assert list(made) == plain
    assert len(made) == count
    assert made.user_data.tolist() == [cqe.user_data for cqe in plain]
    assert made.res.tolist() == [cqe.res for cqe in plain]
    assert made.flags.tolist() == [cqe.flags for cqe in plain]
    assert [made[place] for place in range(-count, count)] == plain + plain
    for place in (count, -count - 1, source.pick(EDGES) + count if source.chance(50) else count):
        with contextlib.suppress(IndexError):
            made[place]
            assert -count <= place < count
    cut = slice(*(source.pick([None, *range(-14, 14), 2**70, -(2**70)]) for _ in range(3)))
    with contextlib.suppress(ValueError):  # a step of 0
        part = made[cut]
        assert list(part) == plain[cut]
        assert list(made + part) == plain + plain[cut]
    assert hash(made) == hash(Completions(raw, cqe_size=size))
    assert made == Completions(raw, subjects, cqe_size=size)
    repr(made)
    with contextlib.suppress(OSError):
        made.raise_first()
        assert not [cqe for cqe in made if cqe.error is not None]
    for cqe in made:
        with contextlib.suppress(OSError):
            cqe.result()


def record(source: Input) -> None:
    """An SQE: the bytes, and the bytes again."""
    encoded = source.take(64).ljust(64, b"\0")
    assert SQE.decode(encoded).encode() == encoded


SUBJECTS: Final = (control, address, multishot, result, result, completions, record)


def one_input(encoded: bytes) -> None:
    """What the input says."""
    source = Input(encoded)
    source.pick(SUBJECTS)(source)


if __name__ == "__main__":
    run(one_input)
