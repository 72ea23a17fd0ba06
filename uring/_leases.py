"""
Provided buffers in Python's hands.

A completion names the buffer that the kernel took from a group by its id alone. Which bytes of it
are meant depends on what came before (incremental groups) and on what stands behind it in the ring
(bundles), so leases are made once for each completion, in the order of arrival, by a `Landing`.

Three rules.

1. A buffer is Python's from the completion that says so until the last view of it is gone; then,
   and not before, the kernel gets it back. Each stay is one `ffi.gc` object, which all views of it
   keep alive. So nobody ever sees a buffer change under his hands, and none is lost when a
   completion is dropped unread.
2. A look at the queue may be cut off and repeated. What it made counts only once the landing's mark
   `is_final`, which the reader stores together with everything else: see _completion.
3. The memory outlives the registration, the ring and the process's other uses of it: views keep it.
"""

import functools
import mmap
from typing import TYPE_CHECKING, Final, Self

from uring import _memory
from uring._ffi import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring._uring import CData

_give: Final = lib.uring_buffers_give
_BUF_SIZE: Final = 16  # struct io_uring_buf


class Lease:
    """
    What the kernel has put into provided buffers for one completion.

    The buffers go back to the kernel when the lease is released or dropped *and* no view of it is
    left, slices and arrays over it included. Use it as a context manager, or copy with `bytes()`.
    A lease that is held long makes the group run dry: operations then complete with ENOBUFS. An
    operation that sends from a view holds it, and so does the `CQE` of that operation.

    An empty one, which is false, stands for a completion that took no buffer: the end of a stream.
    """

    __slots__ = ("_views",)

    def __init__(self, views: tuple[memoryview, ...] = ()) -> None:
        self._views = views

    @property
    def views(self) -> tuple[memoryview, ...]:
        """The memory, in order: one view, or for a bundle one for each of its buffers."""
        return self._views

    @property
    def view(self) -> memoryview:
        """
        The memory as one view.

        Raises:
            ValueError: it is a bundle of several buffers -> use `views`, or `bytes()`.
        """
        if len(self._views) > 1:
            raise ValueError(f"the lease has {len(self._views)} buffers: use views, or bytes()")
        return self._views[0] if self._views else memoryview(b"")

    def __len__(self) -> int:
        return sum(map(len, self._views))

    def __bytes__(self) -> bytes:
        return b"".join(self._views)

    def release(self) -> None:
        """Let go of the memory: its views end, and the buffers go back to the kernel."""
        views, self._views = self._views, ()
        for view in views:
            try:
                view.release()
            except BufferError:  # an array is made of it: the buffer goes back when that is gone
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def __repr__(self) -> str:
        count = len(self._views)
        return f"<Lease of {len(self)} bytes in {count} buffer{'' if count == 1 else 's'}>"


class Block:
    """The memory of one group, and what the kernel has been told of it."""

    __slots__ = (
        "_array",
        "_bids",
        "_freed",
        "_memory",
        "_places",
        "array_address",
        "count",
        "free",
        "given",
        "is_incremental",
        "is_unsure",
        "lengths",
        "shim",
        "size",
        "turn",
    )

    def __init__(self, count: int, size: int, *, is_incremental: bool, is_outgoing: bool) -> None:
        self.count = count
        self.size = size
        self.is_incremental = is_incremental
        self.free = list(range(count))[::-1] if is_outgoing else None
        """Of a group to send from: the ids of the buffers that are ours to fill."""
        self.given: dict[int, int] = {}
        """And of the others: the turn, which is how many were given before it."""
        self.turn = 0
        self.is_unsure = False
        """Whether a send has failed, which tells but the first of the buffers that it took."""
        self.lengths = [size] * count
        """How many bytes of each buffer were given to the kernel."""
        # Private, so that the child of a fork has what it was lent as it was at that moment.
        private = mmap.mmap(-1, count * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory, _ = _memory.pinned(private, write=True)
        array = mmap.mmap(-1, count * _BUF_SIZE)
        self._array, _ = _memory.pinned(array, write=True)
        self.array_address = _memory.address_of(self._array)
        self._bids = ffi.new("uint16_t[]", count)
        self._places = ffi.new("uint16_t[]", count)
        # The struct itself, beside what frees its array: the collector may run that first, and a
        # buffer that goes in the same cycle comes here afterwards.
        self.shim = ffi.new("struct uring_buffers *")
        self._freed = ffi.gc(self.shim, lib.uring_buffers_free)
        self.shim.memory = _memory.address_of(self._memory)
        self.shim.size, self.shim.entries = size, count
        self.shim.bids, self.shim.places = self._bids, self._places
        self.shim.ring = self._array
        if lib.uring_buffers_init(self.shim) < 0:
            raise MemoryError("the page that tells forks apart could not be mapped")

    def give(self, bid: int) -> None:
        """Give a buffer to the kernel for it to be filled."""
        _give(self.shim, bid, self.size)

    def take_back(self, bid: int, turn: int | None) -> None:
        """Take back a buffer that was sent, if it was not taken back and given anew meanwhile."""
        given, free = self.given, self.free
        if free is not None and bid in given and given[bid] == turn:  # no call to the last line
            del given[bid]
            free.append(bid)

    def waiting(self, head: int) -> set[int]:
        """The ids of the buffers that the kernel has not taken, if it has taken `head` in all."""
        mask = self.count - 1
        tail = int(self.shim.tail)
        return {self._bids[(head + i) & mask] for i in range((tail - head) & 0xFFFF)}

    def part(self, bid: int) -> memoryview:
        """The memory of a buffer, for who fills it."""
        return memoryview(ffi.buffer(self._memory))[bid * self.size : (bid + 1) * self.size]

    def stay(self, bid: int, mark: "CData") -> memoryview:
        """The memory of a buffer until its last view is gone: then it is given back."""
        back: Callable[[CData], object]
        if self.free is None:
            back = _Return(lib.uring_buffers_return, self.shim, bid, mark)
            back.block = self
        else:
            back = _Free(self, bid, mark)
        lent = ffi.gc(ffi.addressof(self._memory, bid * self.size), back)
        return memoryview(ffi.buffer(lent, self.size))

    def behind(self, bid: int) -> int:
        """The buffer that stands behind this one in the ring."""
        return lib.uring_buffers_behind(self.shim, bid, 1)


class _Return(functools.partial[int]):
    """What happens when the last view of a buffer is gone: the kernel gets it back."""

    __slots__ = ("block",)
    block: Block
    """What has the memory."""


class _Free:
    """The same of a buffer that was sent: it is there to be filled again."""

    __slots__ = ("_bid", "_block", "_mark", "_turn")

    def __init__(self, block: Block, bid: int, mark: "CData") -> None:
        self._block = block
        self._bid = bid
        self._mark = mark
        self._turn = block.given.get(bid)

    def __call__(self, _lent: "CData") -> None:
        if self._mark.is_final:
            self._block.take_back(self._bid, self._turn)


Stays = dict[Block, tuple[int, memoryview, int]]
"""Of incremental groups, the buffer that is being filled: (its id, its memory, how far it is)."""


class Landing:
    """The buffers that one look at the completion queue has found."""

    __slots__ = ("mark", "sent", "stays")

    def __init__(self, stays: Stays) -> None:
        self.mark = ffi.new("struct uring_mark *")
        """
        Whether these completions are had, so that what was made for them counts.

        Apart, for what it marks is in `stays`: no cycle.
        """
        self.stays = dict(stays)
        """`stays` as they are after these completions."""
        self.sent: list[Lease] = []
        """Buffers that were sent: they go back as soon as this is final and gone."""

    def lease(self, block: Block, bid: int, length: int, *, has_more: bool) -> Lease:
        """
        Make the lease of the next completion: `length` bytes from buffer `bid` on.

        Args:
            block: the group's.
            bid: the buffer that the completion names.
            length: how many bytes it is about.
            has_more: whether the kernel goes on filling the last buffer (CQE_F_BUF_MORE).
        """
        known = self.stays.get(block)
        if known is not None and has_more and known[0] == bid:  # most of all, in one buffer
            _, memory, start = known
            stop = start + length
            if stop <= block.lengths[bid]:
                self.stays[block] = bid, memory, stop
                return Lease((memory[start:stop],))
        views = []
        left = length
        while True:
            known = self.stays.pop(block, None)
            if known is None or known[0] != bid:
                known = (bid, block.stay(bid, self.mark), 0)
            _, memory, start = known
            stop = start + min(left, block.lengths[bid] - start)
            views.append(memory[start:stop])
            left -= stop - start
            if left <= 0 or stop == start == 0:  # all, or a length that cannot be
                break
            bid = block.behind(bid)
        if has_more:
            self.stays[block] = (bid, memory, stop)
        return Lease(tuple(views))
