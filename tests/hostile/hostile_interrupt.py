"""
Programs that are interrupted at every place where CPython may run a signal handler.

CPython runs handlers when a call returns, when a Python function starts and when a loop goes round.
The trace function below counts these places in the package's code and strikes at exactly one. So
each program is repeated until every place was struck: no chance, and no place left out.
"""

import dis
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, ClassVar, Self

from hostile_harness import (
    Tracked,
    descriptors,
    drain,
    join,
    main,
    once,
    program,
    settled_descriptors,
)

import uring

TraceFunction = Callable[[FrameType, str, Any], Any]

_PACKAGE = str(Path(uring.__file__).parent)
_AFTER = frozenset({"CALL", "PRECALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"})
_STEPS_MAX = 5_000  # of one attempt: ten times what any needs
_FAILURES_MAX = 8


class Stuck(BaseException):
    """The package goes round and round; no `except Exception` may stop this."""


class Strike:
    """Calls `handler` at one place: the `place`th at which a signal handler could run."""

    where: ClassVar[str] = ""
    """Where the last one struck; of the class, for `sweep` to find when an attempt has failed."""

    _names: ClassVar[dict[CodeType, dict[int, str]]] = {}

    def __init__(self, place: int, handler: Callable[[], None]) -> None:
        self.place = place
        self.handler = handler
        self.seen = 0
        Strike.where = "nowhere"
        self._before: dict[FrameType, str] = {}

    @property
    def struck(self) -> bool:
        """Whether there was such a place."""
        return self.seen > self.place

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        sys.settrace(None)
        self._before.clear()  # frames hold rings

    def _trace(self, frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        if event != "call" or not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._visit(frame)
        return self._step

    def _step(self, frame: FrameType, event: str, _argument: object) -> TraceFunction:
        if event == "opcode":
            code = frame.f_code
            if code not in self._names:
                self._names[code] = {i.offset: i.opname for i in dis.get_instructions(code)}
            name = self._names[code].get(frame.f_lasti, "")
            before = self._before.get(frame, "")
            self._before[frame] = name
            if before in _AFTER and not (before == "PRECALL" and name == "CALL"):
                self._visit(frame)
        elif event == "return":
            self._before.pop(frame, None)
        return self._step

    def _visit(self, frame: FrameType) -> None:
        self.seen += 1
        if self.seen - 1 == self.place:
            Strike.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            self.handler()
        elif self.seen > _STEPS_MAX:
            raise Stuck


def interrupt() -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def sweep(attempt: Callable[[int], "Strike"], *, least: int = 50) -> None:
    """Make an attempt for every place, and say at which ones it failed."""
    failures: dict[str, list[str]] = {}
    place = count = 0
    while count < _FAILURES_MAX:
        Strike.where = f"place {place}"
        try:
            if not attempt(place).struck:
                break
        except (Exception, Stuck) as error:  # noqa: BLE001 - all that goes wrong is shown below
            failures.setdefault(f"{type(error).__name__}: {error}"[:200], []).append(Strike.where)
            count += 1
        place += 1
    assert place > least or failures, place
    shown = [f"{what} <- {sorted(set(where))}" for what, where in failures.items()]
    assert not failures, f"of {place} places these failed:\n" + "\n".join(shown)


class Account:
    """A ring of NOPs, and every number that was queued on it or came back."""

    def __init__(self) -> None:
        self.ring = uring.Ring(8)
        self.queued: list[int] = []
        self.got: list[int] = []

    def queue(self, count: int = 1) -> None:
        """Queue NOPs, if there is room."""
        for _ in range(count):
            try:
                self.queued.append(self.ring.queue(uring.Nop()))
            except uring.SubmissionQueueFull:
                self.ring.submit()

    def copy(self, max_nr: int | None = None, wait_nr: int = 0) -> None:
        """Copy out, and take account of it."""
        self.got += self.ring.copy_cqes(max_nr, wait_nr=wait_nr, timeout=0.05).user_data.tolist()

    def settle(self) -> None:
        """Take all that is left; the ring must then be empty, usable and free for other threads."""
        self.got += [cqe.user_data for cqe in drain(self.ring, 1.0)]
        once(self.got)
        number = self.ring.queue(uring.Nop())
        assert self.ring.submit_and_wait(1, timeout=5) == 1
        assert [cqe.user_data for cqe in self.ring.copy_cqes()] == [number]
        seen: list[int] = []
        other = threading.Thread(target=lambda: seen.append(self.ring.in_flight), daemon=True)
        other.start()
        other.join(1.0)
        assert seen == [0], "the lock was left behind: another thread hangs"


def _handled(body: Callable[[Account], None], handler: Callable[[Account], None]) -> None:
    def attempt(place: int) -> Strike:
        account = Account()
        strike = Strike(place, lambda: handler(account))
        try:
            with strike:
                body(account)
            account.settle()
            assert set(account.got) == set(account.queued), "lost or made up"
        finally:
            if not account.ring.in_flight:
                account.ring.close()
        return strike

    sweep(attempt)


def _use_the_ring(account: Account) -> None:
    account.copy()
    account.queue(2)
    account.ring.submit()
    account.copy(1)
    account.queue()  # and leaves one behind, not submitted


def _work(account: Account) -> None:
    account.queue(2)
    account.queued += account.ring.queue_all([uring.Nop(), uring.Nop()])
    account.ring.submit()
    account.copy(2)
    account.queue()
    account.ring.submit_and_wait(1, timeout=1)
    account.copy(wait_nr=1)


@program
def handler_uses_the_ring_at_every_place() -> None:
    """A handler may queue, submit and copy in the middle of any call: each number comes once."""
    _handled(_work, _use_the_ring)


@program
def handler_uses_the_ring_while_it_is_looked_at() -> None:
    """A handler may do the same while a counter is read, and after a submit was cut off."""

    def look(account: Account) -> None:
        # A submit whose trimming was cut off leaves it to whoever looks next.
        account.queue(3)
        _cut_off_in(account, "_trim_placed")
        account.queue(1)
        assert account.ring.sq_ready() >= 0
        assert account.ring.in_flight >= 0
        assert account.ring.cq_ready() >= 0
        assert repr(account.ring.sq) + repr(account.ring.cq) + repr(account.ring)
        account.ring.submit()
        account.copy()

    _handled(look, _use_the_ring)


def _cut_off_in(account: Account, function: str) -> None:
    """Submit, and have Ctrl-C strike when `function` is entered."""
    old = sys.gettrace()

    def trace(frame: FrameType, _event: str, _argument: object) -> None:
        if frame.f_code.co_name == function:
            sys.settrace(None)
            raise KeyboardInterrupt

    sys.settrace(trace)
    try:
        account.ring.submit()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(old)


@program
def handler_queues_a_silent_chain_of_the_same_number() -> None:
    """A handler's chain with CQE_SKIP_SUCCESS keeps its memory, whatever number is being queued."""

    def attempt(place: int) -> Strike:
        inlet, outlet = os.pipe()
        ring = uring.Ring(8)
        alive: list[weakref.ref[Tracked]] = []

        def queue_chain() -> None:
            buffer = Tracked(8)
            silent = uring.Read(inlet, buffer, flags=uring.SQEFlags.CQE_SKIP_SUCCESS)
            with suppress(ValueError):  # it may be refused: the number is pending
                ring.queue_all(uring.link(silent, uring.Nop(user_data=5)))
                alive.append(weakref.ref(buffer))

        strike = Strike(place, queue_chain)
        try:
            with strike, suppress(ValueError):  # and so may this
                for _ in range(2):
                    ring.queue(uring.Nop(), user_data=5)
                    ring.queue(uring.Nop(), user_data=6)
            ring.submit()
            ring.copy_cqes(wait_nr=1, timeout=1)
            assert all(ref() is not None for ref in alive), "freed in flight"
            os.write(outlet, b"12345678")
            drain(ring, 1)
            ring.close()
        finally:
            os.close(inlet)
            os.close(outlet)
        return strike

    sweep(attempt, least=10)


@program
def handler_copies_during_an_advance() -> None:
    """A handler may take what another call is just advancing over: that call ends."""

    def advance(account: Account) -> None:
        account.queue(3)
        account.ring.submit()
        peeked = account.ring.peek_cqes()
        try:
            account.ring.cq_advance(len(peeked))
        except ValueError:
            return
        account.got += [n for n in peeked.user_data.tolist() if n not in account.got]

    def take(account: Account) -> None:
        account.copy()

    _handled(advance, take)


@program
def handler_closes_the_ring_at_every_place() -> None:
    """A handler may close the ring in the middle of any call: that ends well or says closed."""

    def attempt(place: int) -> Strike:
        before = settled_descriptors() if place % 50 == 0 else descriptors()
        account = Account()
        strike = Strike(place, account.ring.close)
        with strike:
            try:
                _work(account)
                account.ring.close()
            except uring.RingClosedError:
                pass
        account.ring.close()
        assert account.ring.closed
        assert account.ring.fd == -1
        assert account.ring.in_flight == 0, f"{account.ring.in_flight} in a closed ring"
        assert descriptors() == before
        return strike

    sweep(attempt)


@program
def close_is_idempotent_at_every_place() -> None:
    """A handler that closes the ring while it is being closed disturbs nobody."""

    def attempt(place: int) -> Strike:
        account = Account()
        account.queue(3)
        account.ring.submit()
        account.queue(1)
        strike = Strike(place, account.ring.close)
        with strike:
            account.ring.close()
        assert account.ring.fd == -1
        return strike

    sweep(attempt)


@program
def ctrl_c_at_every_place() -> None:
    """KeyboardInterrupt may leave any call: the ring stays whole, and loses no operation."""

    def attempt(place: int) -> Strike:
        account = Account()
        strike = Strike(place, interrupt)
        try:
            with suppress(KeyboardInterrupt), strike:
                _work(account)
            account.ring.submit_and_wait(1, timeout=0.01)  # with completions half handed out
            account.settle()
        finally:
            if not account.ring.in_flight:
                account.ring.close()
        return strike

    sweep(attempt)


@program
def ctrl_c_in_close_at_every_place() -> None:
    """KeyboardInterrupt may leave close(): calling it once more closes the ring."""
    inlet, outlet = os.pipe()

    def attempt(place: int) -> Strike:
        before = descriptors()
        account = Account()
        account.queue(3)
        account.ring.queue(uring.Read(inlet, bytearray(8)))
        account.ring.submit()
        account.queue(1)
        strike = Strike(place, interrupt)
        with suppress(KeyboardInterrupt), strike:
            account.ring.close()
        closer = threading.Thread(target=account.ring.close, daemon=True)
        account.ring.close()
        closer.start()
        join(closer, 2.0)
        assert account.ring.fd == -1
        assert descriptors() == before
        return strike

    sweep(attempt)
    os.close(outlet)


@program
def ctrl_c_in_setup_at_every_place() -> None:
    """KeyboardInterrupt may leave Ring(): no descriptor stays behind, and no other message."""
    failed: list[str] = []

    def note(unraisable: "sys.UnraisableHookArgs") -> None:
        # Struck on its way from Ring() to close() it was dropped open and says so; in __del__, too.
        if not isinstance(unraisable.exc_value, ResourceWarning | KeyboardInterrupt):
            failed.append(repr(unraisable.exc_value))

    sys.unraisablehook = note

    def attempt(place: int) -> Strike:
        before = descriptors()
        strike = Strike(place, interrupt)
        with suppress(KeyboardInterrupt), strike:
            uring.Ring(8).close()
        after = settled_descriptors()
        assert after == before, "a descriptor leaked"
        assert not failed, failed.pop()
        return strike

    sweep(attempt)


if __name__ == "__main__":
    main()
