"""
From an operation to its record: encoded, looked at, numbered, with what it promises to others.

Nothing here is queued yet: what is refused leaves the ring as it was.
"""

import errno
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from uring import _teardown
from uring._checks import check_range
from uring._claims import FIRST_DRAWN, Record, Subject
from uring._core import Core
from uring._pledges import UNKNOWN_RING, Alias, MessagePledge, Pledge, Promised, RenamePledge
from uring._setup import RingParams
from uring.completions import Answer
from uring.errors import UnsupportedError
from uring.flags import Opcode, SetupFlags
from uring.probe import known_opcodes
from uring.sqe import SQE_SIZE, UINT64_MAX, Queueable
from uring.sqe import encoded as encode

if TYPE_CHECKING:
    from uring._uring import CData


def reached_by(fd: int) -> tuple[Promised | None, Alias | None]:
    """
    What a message to this descriptor is for: a ring of this process, or None when it is no ring.

    The second is by what the message is to go there; None when the descriptor is not open.

    Raises:
        ValueError: it is a ring of somebody else, or nobody can tell.
        OSError: EMFILE, there is no room for one more descriptor.
    """
    for ring in _teardown.open_rings():
        if isinstance(ring, Core) and ring._fd == fd:
            alias = ring._held.alias
            if alias is None:
                alias = Alias(fd)
            if ring._fd == fd and ring._refusal is None:  # so it was the ring's until now
                ring._held.alias = alias
                return ring, alias
    try:
        alias = Alias(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None, None
    try:
        is_ring = str(Path(f"/proc/self/fd/{alias.fd}").readlink()) == "anon_inode:[io_uring]"
    except OSError:  # it is open; so there is no /proc that would tell
        is_ring = True
    if is_ring:
        raise ValueError(UNKNOWN_RING)
    return None, alias


class RecordSide(Core):
    """Making records."""

    def __init__(self, shim: "CData", inbox: "CData", params: RingParams) -> None:
        super().__init__(shim, inbox, params)
        self._has_sqe128 = bool(params.flags & SetupFlags.SQE128)
        self._next_number = FIRST_DRAWN

    def _record(self, op: Queueable, user_data: int | None) -> Record:
        try:
            prepared = op._prepared
            encoded, pins = prepared or encode(op)
        except (AttributeError, TypeError):
            self._check_operation(op)
            raise
        if op._is_probed:
            self._check_opcode(op, encoded[0])
        if op._notifies:  # its completions must be looked at: see _ending()
            self._is_plain = False
            self._in_flight.has_pledges = True
        if not prepared and len(encoded) != SQE_SIZE and not self._has_sqe128:
            raise ValueError(
                f"{op!r} has an SQE of {len(encoded)} bytes, which takes a ring with"
                " SetupFlags.SQE128"
            )
        if user_data is None:
            user_data = op.user_data
            if user_data is None:
                return self._draw(1), encoded, self._subject(op, pins), pins
        if type(user_data) is not int or not 0 <= user_data <= UINT64_MAX:
            user_data = check_range("user_data", user_data, 0, UINT64_MAX)
        if pins is None:
            return user_data, encoded, op, None
        return user_data, encoded, self._subject(op, pins), pins

    def _draw(self, count: int) -> int:
        """The first of `count` numbers in a row that nobody has had."""
        while True:
            number = self._next_number  # no call between this and the store
            self._next_number = number + count
            in_flight = self._in_flight
            if not in_flight.has_high or not in_flight.is_claimed(range(number, number + count)):
                return number

    def _pledged(self, op: Queueable, record: Record) -> Record:
        """See to what an operation does besides its own completion; it is then its record."""
        number, encoded, _, pins = record
        if op._lends_to_ring:
            address, length = struct.unpack_from("=QI", encoded, 16)
            self._held.provided[address, length * int.from_bytes(encoded[4:8], sys.byteorder)] = (
                pins
            )
            return record
        # From the record: an object may tell another number the next time that it is asked.
        fd, off, addr = struct.unpack_from("=iQQ", encoded, 4)
        pledge: Pledge
        if op._message() is not None:
            target, alias = reached_by(fd)
            fd = -1 if alias is None else alias.fd
            encoded = encoded[:4] + fd.to_bytes(4, sys.byteorder, signed=True) + encoded[8:]
            if target is None or alias is None:
                return number, encoded, record[2], (pins, alias)
            pledge = MessagePledge(target, off, alias)
        elif op._renaming() is not None:
            pledge = RenamePledge(self, (addr, off))
        else:
            return record
        self._is_plain = False
        self._in_flight.has_pledges = True
        return number, encoded, Answer(op, pledge), pledge

    def _subject(self, op: Queueable, pins: object) -> Subject:
        return Answer(op, pins) if pins is not None and op._keeps_memory else op

    def _check_opcode(self, op: Queueable, number: int) -> None:
        known = known_opcodes(self._shim)
        if known is not None and number not in known:
            opcode = Opcode(number)
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                f"this kernel lacks {type(op).__name__}: {opcode.name} needs Linux {opcode.since}",
            )

    def _check_operation(self, op: object) -> None:
        if not isinstance(op, Queueable):
            what = type(op).__name__
            if isinstance(op, type):
                what = "a class: make an instance of it"
            elif isinstance(op, tuple | list):
                what += ": pass it to queue_all() or run()"
            raise TypeError(f"the ring queues operations and SQEs, not {what}")
