"""
What happens to rings that nobody closes: dropped, left open at exit, or inherited by a fork.

The rings that are open are known here by weak reference. What cannot be taken back from the kernel
in bounded time is kept for ever, for memory that is lost is better than memory that is overwritten.
"""

import atexit
import contextlib
import ctypes
import os
import sys
import weakref
from typing import Final, Protocol

CLOSE_SECONDS: Final = 30.0
"""How long `Ring.close()` may take: an fsync on a slow disk cannot be cancelled."""

DROP_SECONDS: Final = 1.0
"""How long a dropped ring may hold up the collector, or the exit of the interpreter."""


class Doomed(Protocol):
    """What a ring does when its end comes from outside."""

    def _abandon(self, why: str) -> None: ...
    def _die_in_child(self) -> None: ...


Refuge = list[Doomed | None]
"""A place for one ring, made while there was memory for it."""

_open: Final[dict[int, weakref.ref[Doomed]]] = {}
_refuges: Final[dict[int, Refuge]] = {}
_kept: Final[list[object]] = []


def watch(ring: Doomed) -> Refuge:
    """Remember an open ring; gives the place that keeps it when its end is cut off."""
    end_cut_off()
    refuge: Refuge = [None]
    _refuges[id(ring)] = refuge
    _open[id(ring)] = weakref.ref(ring)
    return refuge


def forget(ring: Doomed) -> None:
    """Forget a ring that is closed."""
    _open.pop(id(ring), None)
    _refuges.pop(id(ring), None)


def cut_off() -> list[Doomed]:
    """The rings whose end was cut off when nobody else had them any more."""
    return [ring for refuge in list(_refuges.values()) for ring in refuge if ring is not None]


def end_cut_off() -> None:
    """Try again to end those; whoever makes a ring comes by here."""
    for ring in cut_off():
        with contextlib.suppress(Exception):  # it stays where it is
            ring._abandon("was dropped without close()")


def keep_for_ever(memory: object) -> None:
    """Keep `memory` until the process is gone, the end of the interpreter included."""
    if not _kept and sys.implementation.name == "cpython":
        # One reference that nobody gives back: the list outlives the modules at exit, when
        # everything else is freed while the kernel may still be writing.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))
    _kept.append(memory)


def open_rings() -> list[Doomed]:
    """The rings of this process that are open."""
    referenced = [reference() for reference in list(_open.values())]
    return list({id(ring): ring for ring in [*referenced, *cut_off()] if ring is not None}.values())


def _at_exit() -> None:
    for ring in open_rings():
        ring._abandon("was still open when the interpreter ended")
    keep_for_ever(_refuges)  # what is still in there


def _in_child() -> None:
    for ring in open_rings():
        ring._die_in_child()
    _open.clear()
    _refuges.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
