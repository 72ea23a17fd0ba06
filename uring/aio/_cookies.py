"""
The positions of text files: where to begin to decode, and how many characters to skip then.

A number that io.TextIOWrapper makes is understood here, and the other way round. It has five parts:
a position in bytes, where the decoder can begin with nothing buffered; its state there; how many
bytes to decode at once; how many characters of those to skip; and whether the decoder must be told
that it is the end to give them all.
"""

import struct
from typing import Any, Final

import attrs

_PARTS: Final = struct.Struct("<qiiib")


@attrs.define
class Cookie:
    """The parts of such a number."""

    start: int
    flags: int = 0
    feed: int = 0
    skip: int = 0
    needs_eof: bool = False

    @classmethod
    def unpack(cls, number: int) -> "Cookie":
        """Take one apart."""
        start, flags, feed, skip, needs_eof = _PARTS.unpack(number.to_bytes(_PARTS.size, "little"))
        return cls(start, flags, feed, skip, bool(needs_eof))

    def pack(self) -> int:
        """Make the number; refuse the states of a decoder that do not fit in it, as io does."""
        try:
            parts = _PARTS.pack(self.start, self.flags, self.feed, self.skip, self.needs_eof)
        except struct.error as error:
            raise OverflowError(f"the state of the decoder does not fit: {error}") from None
        return int.from_bytes(parts, "little")

    @property
    def is_start(self) -> bool:
        """Whether the decoder is as new there."""
        return self.start == 0 and self.flags == 0

    def set_up(self, decoder: Any) -> None:
        """Have the decoder be as it was at the start."""
        if self.is_start:  # some have no state that stands for the beginning
            decoder.reset()
        else:
            decoder.setstate((b"", self.flags))


def locate(decoder: Any, start: Cookie, data: bytes, used: int, ratio: float) -> Cookie:
    """
    Find the position of a character.

    Args:
        decoder: whose state is used, and not restored.
        start: where `data` begins.
        data: bytes that have been decoded from there.
        used: which character of those it is, counted from 0.
        ratio: how many bytes a character has, about.
    """
    base, missing = _jump(decoder, start, data, used, ratio)
    place = attrs.evolve(base, skip=missing)
    return place if missing == 0 else _step(decoder, place, data[base.start - start.start :])


def _jump(decoder: Any, start: Cookie, data: bytes, used: int, ratio: float) -> tuple[Cookie, int]:
    """Guess a position before it with nothing buffered; give how many are missing from there."""
    length = int(ratio * used)
    retreat = 1
    while length > 0:
        start.set_up(decoder)
        count = len(decoder.decode(data[:length]))
        if count > used:
            length -= retreat
            retreat *= 2
            continue
        buffered, flags = decoder.getstate()
        if not buffered:
            return Cookie(start.start + length, flags), used - count
        length -= len(buffered)
        retreat = 1
    start.set_up(decoder)
    return Cookie(start.start, start.flags), used


def _step(decoder: Any, place: Cookie, data: bytes) -> Cookie:
    """Go on byte by byte, and note the last position where nothing was buffered."""
    count = 0
    for byte in data:
        count += len(decoder.decode(bytes([byte])))
        place.feed += 1
        buffered, flags = decoder.getstate()
        if not buffered and count <= place.skip:
            place.start += place.feed
            place.skip -= count
            place.flags = flags
            place.feed = count = 0
        if count >= place.skip:
            return place
    count += len(decoder.decode(b"", final=True))
    place.needs_eof = True
    if count < place.skip:
        raise OSError("can't reconstruct logical file position")
    return place
