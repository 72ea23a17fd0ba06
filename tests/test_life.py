"""
Life and death: rings that are dropped, left, forked and struck in the middle of every call.

Each program under tests/hostile runs as a process of its own. `URING_STRIKES` says how often the
calls are struck, and how: "signal:1000" is what runs by itself, and "signal:5000,asynchronous:5000"
is more of it (see hostile_tracer.py). How often it was in the end is shown with `pytest -rP`.
"""

import sys

import pytest
from shared import run_hostile

pytestmark = pytest.mark.slow


def _run(module: str, name: str, *, warnings: str = "error", says: str = "", code: int = 0) -> None:
    """Run one program, which may print figures; one that ends amid a call has not held yet."""
    stdout = run_hostile(module, name, warnings=warnings, says=says, code=code)
    sys.stdout.write(stdout)
    assert stdout.endswith("held\n") or code in {1, 5}, stdout


def test_struck_queue() -> None:
    """Whatever strikes queue(): the operation is queued or it is not, and all else is as it was."""
    _run("strikes", "struck_queue")


def test_struck_submit() -> None:
    """Whatever strikes submit(): each operation is submitted once, now or with the next one."""
    _run("strikes", "struck_submit")


def test_struck_submit_and_wait() -> None:
    """Whatever strikes submit_and_wait(): the same, and no completion is lost."""
    _run("strikes", "struck_submit_and_wait")


def test_struck_copy_cqe() -> None:
    """Whatever strikes copy_cqe(): the completion is handed out, or still there."""
    _run("strikes", "struck_copy_cqe")


def test_struck_copy_cqes() -> None:
    """Whatever strikes copy_cqes(): what it did not return is still there, and comes once."""
    _run("strikes", "struck_copy_cqes")


def test_struck_queue_all() -> None:
    """Whatever strikes queue_all(): all are queued or none, a chain is not split."""
    _run("strikes", "struck_queue_all")


def test_struck_waits() -> None:
    """Whatever strikes a wait: it ends, what came is still there, and others are not waited for."""
    _run("strikes", "struck_waits")


def test_struck_peek_and_advance() -> None:
    """Whatever strikes cq_advance(): what was peeked at is consumed, or it is still there."""
    _run("strikes", "struck_peek_and_advance")


def test_struck_run() -> None:
    """Whatever strikes run(): its operations end, its memory is free; others are left alone."""
    _run("strikes", "struck_run")


def test_struck_run_that_is_cut_off() -> None:
    """The same of a run whose time is over: what it began is cancelled, and ends."""
    _run("strikes", "struck_run_that_is_cut_off")


def test_struck_run_that_makes_descriptors() -> None:
    """Whatever strikes such a run(): descriptors are handed out or closed."""
    _run("strikes", "struck_run_that_makes_descriptors")


def test_struck_streams() -> None:
    """Whatever strikes a stream: closed then, it leaves nothing in flight, and others alone."""
    _run("strikes", "struck_streams")


def test_struck_close() -> None:
    """Whatever strikes close() or __exit__: close() once more closes it, and all memory is free."""
    _run("strikes", "struck_close")


def test_struck_setup() -> None:
    """Whatever strikes Ring(): no descriptor and no mapping stays behind."""
    _run("strikes", "struck_setup")


@pytest.mark.parametrize(
    "call",
    [
        *("queue", "queue_all", "submit", "submit_and_wait", "waits", "copy_cqe", "copy_cqes"),
        *("peek_and_advance", "run", "close"),
    ],
)
def test_struck_by_a_tracer(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception at any opcode, as only a trace function can raise it, loses no memory in use."""
    monkeypatch.setenv("URING_STRIKES", "at_once:1000")
    _run("strikes", f"struck_{call}")


def test_struck_registering() -> None:
    """Whatever strikes registering: it is done, or not done, and can be undone and done again."""
    _run("registrations", "struck_registering")


def test_struck_tags() -> None:
    """Whatever strikes the registering of tags: their numbers are free when all is undone."""
    _run("registrations", "struck_tags")


def test_struck_groups() -> None:
    """Whatever strikes the making or the closing of a group: none stays that nobody can close."""
    _run("registrations", "struck_groups")


def test_struck_leases() -> None:
    """Whatever strikes the release of a lease, or its making: each buffer is there in the end."""
    _run("registrations", "struck_leases")


def test_struck_messages() -> None:
    """Whatever strikes a message: no number stays reserved, and no descriptor stays open."""
    _run("registrations", "struck_messages")


def test_struck_renaming() -> None:
    """Whatever strikes the update of a poll's number: it ends under one, and both are free."""
    _run("registrations", "struck_renaming")


def test_struck_calls() -> None:
    """Whatever strikes what is done at once, or the making of a batch: it is done, or it is not."""
    _run("registrations", "struck_calls")


def test_everything_in_one_cycle_goes() -> None:
    """A ring with all that hangs on it in reference cycles: nothing stays or is written."""
    _run("drops", "everything_in_one_cycle_goes")


def test_resurrected_ring_is_closed() -> None:
    """A ring that its __del__ brings back is closed, and says so; what is in flight was ended."""
    _run("drops", "resurrected_ring_is_closed")


def test_resurrected_by_another_it_works_on() -> None:
    """What another's __del__ brings back of a cycle, before the ring's own, is what it was."""
    _run("drops", "resurrected_by_another_it_works_on")


def test_weakref_callbacks_use_the_ring() -> None:
    """The callback of what was in flight, of a lease's view or of a stream: it may do anything."""
    _run("drops", "weakref_callbacks_use_the_ring")


def test_destructors_use_the_ring_that_lets_them_go() -> None:
    """What is in flight goes amid a copy, a run or a close: its __del__ may use this ring."""
    _run("drops", "destructors_use_the_ring_that_lets_them_go")


def test_threads_end_with_rings_of_their_own() -> None:
    """Rings of threads that end, in locals, thread-locals and cycles: they go, and so do files."""
    _run("drops", "threads_end_with_rings_of_their_own")


def test_ring_of_a_thread_that_ended_serves_others() -> None:
    """What a thread left in flight when it ended completes; the ring goes on in other threads."""
    _run("drops", "ring_of_a_thread_that_ended_serves_others")


def test_slices_of_registered_memoryviews_die_in_cycles() -> None:
    """Memoryviews, what is registered of them, slices and operations: collected in any order."""
    _run("drops", "slices_of_registered_memoryviews_die_in_cycles")


def test_polling_rings_are_dropped() -> None:
    """Rings with SQPOLL, and with mixed CQEs, dropped with work in flight: they go at once."""
    _run("drops", "polling_rings_are_dropped")


def test_child_does_what_it_likes_with_an_inherited_ring() -> None:
    """A child uses, closes and drops a ring and all that hangs on it: the parent goes on."""
    _run("forks", "child_does_what_it_likes_with_an_inherited_ring")


def test_child_ends_by_itself() -> None:
    """A child that ends as programs do, with an inherited ring in use: no word, and no wait."""
    _run("forks", "child_ends_by_itself")


def test_exec_keeps_no_ring() -> None:
    """A program that is executed, with fork or without, inherits no descriptor of a ring."""
    _run("forks", "exec_keeps_no_ring")


def test_forks_amid_calls_of_other_threads() -> None:
    """Forks while threads run, wait, queue and close: no child hangs, no thread is disturbed."""
    _run("forks", "forks_amid_calls_of_other_threads")


def test_multiprocessing_in_each_way() -> None:
    """Pools of each start method: own rings work, inherited ones say fork, none can be given."""
    _run("forks", "multiprocessing_in_each_way", warnings="ignore")


def test_wrong_threads_are_told_and_do_no_harm() -> None:
    """Every call that enters an owned ring is WrongThreadError elsewhere; the owner goes on."""
    _run("forks", "wrong_threads_are_told_and_do_no_harm")


def test_handlers_and_threads_close_under_every_wait() -> None:
    """Another thread, or a handler in the wait itself, closes the ring: every wait says closed."""
    _run("forks", "handlers_and_threads_close_under_every_wait")


def test_daemon_threads_are_told_why() -> None:
    """Daemon threads in each kind of wait: the error that each gets says that it is the end."""
    _run("exits", "daemon_threads_are_told_why", warnings="ignore")


def test_daemon_threads_that_say_nothing() -> None:
    """The same, where the threads take the error and go on at once with other rings."""
    _run("exits", "daemon_threads_that_say_nothing", warnings="ignore")


def test_handlers_before_the_package() -> None:
    """Exit handlers that run first find a ring that works, others one that is closed."""
    _run("exits", "handlers_before_the_package", warnings="ignore")


def test_globals_are_torn_down() -> None:
    """Rings in the globals of modules, in builtins and in cycles; destructors use them there."""
    _run("exits", "globals_are_torn_down", warnings="ignore")


def test_uncaught_exception_holds_the_ring() -> None:
    """An exception that nobody catches, whose traceback holds rings that are in use."""
    _run(
        "exits", "uncaught_exception_holds_the_ring", warnings="ignore", code=1, says="TimeoutError"
    )


def test_handler_ends_the_program_amid_a_wait() -> None:
    """sys.exit() in a handler, amid each kind of wait in turn: its exit code comes out."""
    _run("exits", "handler_ends_the_program_amid_a_wait", warnings="ignore", code=5)


def test_ended_at_once() -> None:
    """os._exit() with work in flight and threads in waits."""
    _run("exits", "ended_at_once", code=7)


def test_threads_go_on_behind_the_main_one() -> None:
    """A thread that is no daemon works on when the main one has ended: with a ring that works."""
    _run("exits", "threads_go_on_behind_the_main_one")


def test_subinterpreters_are_refused() -> None:
    """In a subinterpreter of either kind the import is an ImportError that says so."""
    _run("exits", "subinterpreters_are_refused")
