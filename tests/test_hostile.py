"""
Hostile programs: what must not happen, whatever a program does with the public API.

Each program under tests/hostile runs as a process of its own, with faulthandler, with a bound on
its time, and with warnings as errors unless its table says otherwise. It has to print that every
assertion held, to say nothing else, and to end with exit code 0.
"""

import pytest
from shared import run_hostile

pytestmark = pytest.mark.slow


def _run(module: str, name: str, *, warnings: str = "error", says: str = "") -> None:
    """Run one program; `says` is what its standard error must have, and "" is nothing at all."""
    assert run_hostile(module, name, warnings=warnings, says=says) == "held\n"


def test_dropped_buffer_is_written_and_no_other() -> None:
    """A buffer dropped in flight lives until its completion; what is allocated then is ours."""
    _run("memory", "dropped_buffer_is_written_and_no_other")


def test_resized_buffer_is_refused() -> None:
    """A bytearray cannot be resized in flight, gets its data, and can be resized afterwards."""
    _run("memory", "resized_buffer_is_refused")


def test_every_kind_of_buffer_is_pinned() -> None:
    """Whatever exports a buffer is filled, and cannot move or go away while it is in flight."""
    _run("memory", "every_kind_of_buffer_is_pinned")


def test_temporaries_live_until_the_kernel_has_read_them() -> None:
    """Paths, addresses, times and iovecs that nobody else holds are intact when they are read."""
    _run("memory", "temporaries_live_until_the_kernel_has_read_them")


def test_huge_buffer_is_refused() -> None:
    """5 GiB do not fit in a 32-bit length: ValueError, by each operation, and nothing is queued."""
    _run("memory", "huge_buffer_is_refused")


def test_wrong_arguments_leave_the_ring_as_it_was() -> None:
    """Every argument of every operation, of a wrong type or size: refused, and nothing changes."""
    _run("memory", "wrong_arguments_leave_the_ring_as_it_was")


def test_full_queue_says_so() -> None:
    """The fifth operation on a ring of 4 is SubmissionQueueFull; a chain of 5 never fits."""
    _run("queues", "full_queue_says_so")


def test_indexing_after_a_wrap_is_right() -> None:
    """Batches that lie across the end of the queue read the same by index, iteration and column."""
    _run("queues", "indexing_after_a_wrap_is_right")


def test_overflow_loses_nothing() -> None:
    """16 and 200 completions on a completion queue of 8: all of them come, once."""
    _run("queues", "overflow_loses_nothing")


def test_bad_opcode_amid_a_batch_holds_up_nobody() -> None:
    """NOP, opcode 200, NOP: three completions of one submit, the middle one EINVAL."""
    _run("queues", "bad_opcode_amid_a_batch_holds_up_nobody")


def test_one_user_data_may_be_shared() -> None:
    """1000 reads under one number: all memory stays until the last has ended, then none."""
    _run("queues", "one_user_data_may_be_shared")


def test_operation_may_be_queued_again_in_flight() -> None:
    """One operation value queued 8 times reads 8 times, under one number or under eight."""
    _run("queues", "operation_may_be_queued_again_in_flight")


def test_sleeping_poller_is_woken() -> None:
    """An SQPOLL thread that has gone to sleep is woken by submit and by a wait."""
    _run("queues", "sleeping_poller_is_woken")


def test_deferred_completions_show_up_when_peeked() -> None:
    """On a DEFER_TASKRUN ring a peek and a copy that do not wait find what is there."""
    _run("queues", "deferred_completions_show_up_when_peeked")


def test_peek_and_advance_are_checked() -> None:
    """Memory stays pinned after a peek; an advance past what is ready is refused whole."""
    _run("queues", "peek_and_advance_are_checked")


def test_silent_chains_release_everything() -> None:
    """Every chain of two and three with CQE_SKIP_SUCCESS ends, wherever it fails."""
    _run("queues", "silent_chains_release_everything")


def test_silent_chain_pins_until_its_last_completion() -> None:
    """The memory of a silent read stays until its chain has ended, whatever else completes."""
    _run("queues", "silent_chain_pins_until_its_last_completion")


def test_lying_user_data_is_taken_by_its_value() -> None:
    """Subclasses of int that lie about themselves are taken by their value, or refused."""
    _run("queues", "lying_user_data_is_taken_by_its_value")


def test_odd_files_are_asked_before_anything_is_queued() -> None:
    """fileno() that queues, raises or closes the ring; descriptors that are subclasses of int."""
    _run("queues", "odd_files_are_asked_before_anything_is_queued")


def test_counters_wrap_on_a_ring_of_one() -> None:
    """A ring with one entry gives 70,000 numbers back in order, past the 16-bit wrap."""
    _run("queues", "counters_wrap_on_a_ring_of_one")


def test_close_is_a_barrier_for_workers() -> None:
    """After close() returns no worker of the kernel writes to memory that it was lent."""
    _run("lifetime", "close_is_a_barrier_for_workers")


def test_dropped_ring_does_not_touch_reused_memory() -> None:
    """A ring dropped with work in flight: what is allocated right afterwards is not written to."""
    _run("lifetime", "dropped_ring_does_not_touch_reused_memory")


def test_dropped_ring_is_as_safe_when_warnings_are_errors() -> None:
    """The same under -W error, where the warning is an exception in __del__."""
    _run("lifetime", "dropped_ring_is_as_safe_when_warnings_are_errors")


def test_hundred_dropped_rings_leak_nothing_and_warn() -> None:
    """100 rings dropped open: 100 ResourceWarnings that name the ring, and no descriptor left."""
    _run("lifetime", "hundred_dropped_rings_leak_nothing_and_warn")


def test_dropped_ring_ends_without_the_collector() -> None:
    """Dropping the last reference ends a ring there and then, as with files."""
    _run("lifetime", "dropped_ring_ends_without_the_collector")


def test_ten_thousand_rings_leak_nothing() -> None:
    """10,000 rings made, used and closed: the descriptors and the memory are as before."""
    _run("lifetime", "ten_thousand_rings_leak_nothing")


def test_use_after_close_and_before_init_is_refused() -> None:
    """Every call on a closed ring is RingClosedError; on one never made, an exception."""
    _run("lifetime", "use_after_close_and_before_init_is_refused")


def test_ring_is_not_made_twice() -> None:
    """Calling __init__ on a ring in use is refused, or at least frees nothing that is in flight."""
    _run("lifetime", "ring_is_not_made_twice")


def test_ring_is_not_copied() -> None:
    """A ring cannot be copied or pickled: two that share a queue would read completions twice."""
    _run("lifetime", "ring_is_not_copied")


def test_uncollected_descriptors_are_closed_with_the_ring() -> None:
    """What accept, openat and socket opened and nobody copied out is closed by close()."""
    _run("lifetime", "uncollected_descriptors_are_closed_with_the_ring")


def test_silent_success_opens_no_descriptor() -> None:
    """CQE_SKIP_SUCCESS on what makes a descriptor leaks none: nobody would learn its number."""
    _run("lifetime", "silent_success_opens_no_descriptor")


def test_disabled_ring_closes_at_once() -> None:
    """An R_DISABLED ring that refused its submit is closed without waiting for what never ran."""
    _run("lifetime", "disabled_ring_closes_at_once")


def test_ring_in_a_cycle_and_in_a_destructor_ends() -> None:
    """Rings in reference cycles, and in __del__ of others, are ended by the collector."""
    _run("lifetime", "ring_in_a_cycle_and_in_a_destructor_ends")


def test_exit_with_work_in_flight() -> None:
    """The interpreter ends with work in flight: promptly, with exit code 0."""
    _run("lifetime", "exit_with_work_in_flight", warnings="default", says="ResourceWarning")


def test_exit_with_daemon_threads_in_the_ring() -> None:
    """The interpreter ends while daemon threads wait on one ring and keep another busy."""
    _run(
        "lifetime",
        "exit_with_daemon_threads_in_the_ring",
        warnings="default",
        says="ResourceWarning",
    )


def test_exit_with_rings_born_at_the_end() -> None:
    """Rings that are made by exit handlers and destructors during the end do no harm."""
    _run("lifetime", "exit_with_rings_born_at_the_end", warnings="default", says="ResourceWarning")


def test_wait_lets_other_threads_run() -> None:
    """While one thread waits, another counts on and ends the wait."""
    _run("threads", "wait_lets_other_threads_run")


def test_close_wakes_whoever_waits() -> None:
    """Threads that wait for 1, 100 and more than ever fit get RingClosedError at once."""
    _run("threads", "close_wakes_whoever_waits")


def test_close_is_a_barrier_under_a_waiter_whatever_the_user_data() -> None:
    """What wakes the waiters is not mistaken for the end of operations that chose user_data 0."""
    _run("threads", "close_is_a_barrier_under_a_waiter_whatever_the_user_data")


def test_producers_and_reapers_lose_nothing() -> None:
    """Four producers, a reaper that waits and one that polls: each of 24,000 numbers comes once."""
    _run("threads", "producers_and_reapers_lose_nothing")


def test_chains_stay_whole_while_others_submit() -> None:
    """A chain's broken first link cancels all of it, whatever three other threads submit."""
    _run("threads", "chains_stay_whole_while_others_submit")


def test_close_races_submitters_and_leaves_nothing() -> None:
    """close() while others queue and submit is prompt, and nothing stays in flight."""
    _run("threads", "close_races_submitters_and_leaves_nothing")


def test_close_races_waiters_and_hangs_nobody() -> None:
    """close() while threads are just about to wait ends all of them: no wait begins after it."""
    _run("threads", "close_races_waiters_and_hangs_nobody")


def test_wait_that_begins_during_a_close_is_refused() -> None:
    """A thread held up on its way into a wait, until the close is under way, does not get stuck."""
    _run("threads", "wait_that_begins_during_a_close_is_refused")


def test_eight_threads_close_at_once() -> None:
    """close() by eight threads at once closes the ring once, and raises in none."""
    _run("threads", "eight_threads_close_at_once")


def test_wrong_thread_is_told() -> None:
    """SINGLE_ISSUER from another thread: WrongThreadError from each call, and the owner goes on."""
    _run("threads", "wrong_thread_is_told")


def test_ring_outlives_its_threads() -> None:
    """Rings whose threads have ended, with work in flight, are closed promptly by another."""
    _run("threads", "ring_outlives_its_threads", says="kept until the process ends")


def test_fork_leaves_the_ring_to_the_parent() -> None:
    """The child is told; its own ring works; the parent's operation completes with its data."""
    _run("threads", "fork_leaves_the_ring_to_the_parent")


def test_fork_behind_pythons_back_is_noticed() -> None:
    """A fork(2) that Python did not make: the child's calls into the ring say fork, too."""
    _run("threads", "fork_behind_pythons_back_is_noticed")


def test_fork_while_another_thread_holds_every_lock() -> None:
    """The child of a fork in the middle of a close() or of heavy use does not hang on a lock."""
    _run("threads", "fork_while_another_thread_holds_every_lock")


def test_multiprocessing_works_beside_a_ring() -> None:
    """Processes forked or spawned use rings of their own, and the parent's is untouched."""
    _run("threads", "multiprocessing_works_beside_a_ring")


def test_fork_of_a_child_does_not_touch_memory_in_flight() -> None:
    """Data that arrives after a fork arrives in the parent's buffer only."""
    _run("threads", "fork_of_a_child_does_not_touch_memory_in_flight")


def test_handlers_run_during_waits_and_the_wait_goes_on() -> None:
    """Each kind of wait runs some 20 handlers, and ends with what it waited for, or in time."""
    _run("signals", "handlers_run_during_waits_and_the_wait_goes_on")


def test_handler_that_uses_the_ring_loses_nothing() -> None:
    """A handler every 0.2 ms that queues, submits and copies amid the same: each number once."""
    _run("signals", "handler_that_uses_the_ring_loses_nothing")


def test_ctrl_c_storm_leaves_the_ring_whole() -> None:
    """SIGINT every millisecond or so, caught and gone on: nothing doubled, nothing stuck."""
    _run("signals", "ctrl_c_storm_leaves_the_ring_whole")


def test_ctrl_c_ends_every_wait() -> None:
    """One SIGINT ends each kind of wait at once, and the ring stays usable."""
    _run("signals", "ctrl_c_ends_every_wait")


def test_handler_uses_the_ring_at_every_place() -> None:
    """A handler may queue, submit and copy in the middle of any call: each number comes once."""
    _run("interrupt", "handler_uses_the_ring_at_every_place")


def test_handler_uses_the_ring_while_it_is_looked_at() -> None:
    """A handler may do the same while a counter is read, and after a submit was cut off."""
    _run("interrupt", "handler_uses_the_ring_while_it_is_looked_at")


def test_handler_queues_a_silent_chain_of_the_same_number() -> None:
    """A handler's chain with CQE_SKIP_SUCCESS keeps its memory, whatever number is being queued."""
    _run("interrupt", "handler_queues_a_silent_chain_of_the_same_number")


def test_handler_copies_during_an_advance() -> None:
    """A handler may take what another call is just advancing over: that call ends."""
    _run("interrupt", "handler_copies_during_an_advance")


def test_handler_closes_the_ring_at_every_place() -> None:
    """A handler may close the ring in the middle of any call: that ends well or says closed."""
    _run("interrupt", "handler_closes_the_ring_at_every_place")


def test_close_is_idempotent_at_every_place() -> None:
    """A handler that closes the ring while it is being closed disturbs nobody."""
    _run("interrupt", "close_is_idempotent_at_every_place")


def test_ctrl_c_at_every_place() -> None:
    """KeyboardInterrupt may leave any call: the ring stays whole, and loses no operation."""
    _run("interrupt", "ctrl_c_at_every_place")


def test_ctrl_c_in_close_at_every_place() -> None:
    """KeyboardInterrupt may leave close(): calling it once more closes the ring."""
    _run("interrupt", "ctrl_c_in_close_at_every_place")


def test_ctrl_c_in_setup_at_every_place() -> None:
    """KeyboardInterrupt may leave Ring(): no descriptor and no message stays behind."""
    _run("interrupt", "ctrl_c_in_setup_at_every_place")


def test_ctrl_c_at_every_place_of_a_run() -> None:
    """KeyboardInterrupt may leave a run anywhere: no descriptor, pin or operation stays behind."""
    _run("running", "ctrl_c_at_every_place_of_a_run")


def test_ctrl_c_at_every_place_of_a_run_that_is_cancelled() -> None:
    """The same for a run whose time is over, also while it cancels what is in flight."""
    _run("running", "ctrl_c_at_every_place_of_a_run_that_is_cancelled")


def test_handler_uses_the_ring_at_every_place_of_a_run() -> None:
    """A handler may run, queue, submit, copy and look amid a run: each gets its own results."""
    _run("running", "handler_uses_the_ring_at_every_place_of_a_run")


def test_handler_closes_the_ring_at_every_place_of_a_run() -> None:
    """A handler may close the ring amid a run: that says closed, and nothing stays behind."""
    _run("running", "handler_closes_the_ring_at_every_place_of_a_run")


def test_garbage_is_collected_at_every_place_of_a_run() -> None:
    """The collector may run anywhere in a run, with the table looked at: nothing in use goes."""
    _run("running", "garbage_is_collected_at_every_place_of_a_run")


def test_ctrl_c_storm_over_runs_leaves_the_ring_whole() -> None:
    """SIGINT every millisecond or so amid runs that hang: nothing is pinned, open or in flight."""
    _run("running", "ctrl_c_storm_over_runs_leaves_the_ring_whole")


def test_dropped_batches_and_rings_live_as_long_as_their_run() -> None:
    """What only a run still refers to, the ring and the batch, is there until it has ended."""
    _run("running", "dropped_batches_and_rings_live_as_long_as_their_run")


def test_cancelled_run_does_not_touch_reused_memory() -> None:
    """After a run has ended with its timeout no worker of the kernel writes to what it was lent."""
    _run("running", "cancelled_run_does_not_touch_reused_memory")


def test_close_races_runs_and_hangs_nobody() -> None:
    """close() at any moment of three threads' runs: each ends soon, pins and files are free."""
    _run("running", "close_races_runs_and_hangs_nobody")


def test_fork_amid_a_run_leaves_it_to_the_parent() -> None:
    """The child of a fork amid a run is told and has rings of its own; the parent's run goes on."""
    _run("running", "fork_amid_a_run_leaves_it_to_the_parent")


def test_fork_in_a_handler_of_a_run_leaves_it_to_the_parent() -> None:
    """A handler that forks amid a run: in the child the run says fork, in the parent it goes on."""
    _run("running", "fork_in_a_handler_of_a_run_leaves_it_to_the_parent")


def test_exit_with_runs_in_daemon_threads() -> None:
    """The interpreter ends while daemon threads run batches that hang, and others that do not."""
    _run("running", "exit_with_runs_in_daemon_threads", warnings="default", says="ResourceWarning")


def test_threads_that_end_in_a_run_leave_the_ring_usable() -> None:
    """Runs that were begun by threads that have ended since left nothing that is mistaken later."""
    _run("running", "threads_that_end_in_a_run_leave_the_ring_usable")


def test_ctrl_c_around_leases() -> None:
    """KeyboardInterrupt may leave any call on leases: no buffer is lost, or there twice."""
    _run("buffers", "ctrl_c_around_leases")


def test_ctrl_c_around_bundles() -> None:
    """The same of bundles, and of incremental groups."""
    _run("buffers", "ctrl_c_around_bundles")


def test_ctrl_c_around_incremental_groups() -> None:
    """What an interrupted look made of a buffer that is being filled does not count."""
    _run("buffers", "ctrl_c_around_incremental_groups")


def test_ctrl_c_around_groups() -> None:
    """KeyboardInterrupt may leave register and close: no group stays that nobody can close."""
    _run("buffers", "ctrl_c_around_groups")


def test_ctrl_c_around_puts() -> None:
    """KeyboardInterrupt may leave put() and the sending: every buffer is free in the end."""
    _run("buffers", "ctrl_c_around_puts")


def test_ctrl_c_around_streams() -> None:
    """KeyboardInterrupt may leave a stream: closed then, it leaves no descriptor and no buffer."""
    _run("buffers", "ctrl_c_around_streams")


def test_ctrl_c_around_messages() -> None:
    """KeyboardInterrupt may leave the sending of a message: no completion ends another's."""
    _run("buffers", "ctrl_c_around_messages")


def test_finalizers_use_the_ring_as_leases_go() -> None:
    """Leases in cycles whose finalizers receive, give back and look: nothing is lost."""
    _run("buffers", "finalizers_use_the_ring_as_leases_go")


def test_child_reads_its_lease_and_disturbs_nobody() -> None:
    """After a fork the child's lease stays as it was; nothing that it does reaches the parent."""
    _run("buffers", "child_reads_its_lease_and_disturbs_nobody")


def test_child_exits_with_leases_and_streams() -> None:
    """A child that ends by itself, with leases and a stream alive: no word, and no wait."""
    _run("buffers", "child_exits_with_leases_and_streams", warnings="ignore")


def test_threads_give_back_while_groups_come_and_go() -> None:
    """Six threads release leases while the group is closed and its number used again."""
    _run("buffers", "threads_give_back_while_groups_come_and_go")


def test_threads_race_for_one_number() -> None:
    """A close that comes late never unregisters the group that has the number by then."""
    _run("buffers", "threads_race_for_one_number")


def test_other_threads_release_leases_of_a_single_issuer() -> None:
    """With SINGLE_ISSUER any thread may give leases back; only the owner may close the group."""
    _run("buffers", "other_threads_release_leases_of_a_single_issuer")


def test_dropped_ring_with_groups_and_multishots() -> None:
    """A ring that is dropped with groups, a multishot and unread data warns, and leaves nothing."""
    _run(
        "buffers",
        "dropped_ring_with_groups_and_multishots",
        warnings="default",
        says="ResourceWarning",
    )


def test_exit_with_everything_alive() -> None:
    """The interpreter ends with leases, streams, groups and sends alive: no crash and no hang."""
    _run("buffers", "exit_with_everything_alive", warnings="default", says="ResourceWarning")


def test_groups_beyond_the_memory_limit() -> None:
    """Groups that do not fit in the memory are a clear error, and leave nothing."""
    _run("buffers", "groups_beyond_the_memory_limit")


def test_memory_of_a_closed_group_is_nobody_elses() -> None:
    """Groups that are closed under receives: what is allocated next is never written."""
    _run("buffers", "memory_of_a_closed_group_is_nobody_elses")


def test_message_does_not_reach_the_next_ring_of_that_number() -> None:
    """A message whose ring is closed before it is sent does not go to the ring made after it."""
    _run("numbers", "message_does_not_reach_the_next_ring_of_that_number")


def test_message_to_no_ring_does_not_reach_one_that_is_made_later() -> None:
    """A descriptor that was no ring, or not open, when the message was queued: none gets it."""
    _run("numbers", "message_to_no_ring_does_not_reach_one_that_is_made_later")


def test_messages_keep_no_descriptor() -> None:
    """What a message is sent by is one descriptor for each ring, closed with it."""
    _run("numbers", "messages_keep_no_descriptor")


def test_lying_target_of_a_message_is_taken_at_its_word() -> None:
    """What counts of a target is what it said for the record, whatever it says afterwards."""
    _run("numbers", "lying_target_of_a_message_is_taken_at_its_word")


def test_refused_number_leaves_what_has_it_alone() -> None:
    """A number that is refused for being in use: whoever has it ends as ever, and none with it."""
    _run("numbers", "refused_number_leaves_what_has_it_alone")


def test_refused_operation_takes_no_claim_with_it() -> None:
    """What waits under a number keeps its claim when another with that number is refused."""
    _run("numbers", "refused_operation_takes_no_claim_with_it")


def test_shared_message_keeps_its_number() -> None:
    """Messages that share a user_data: their numbers stay theirs, for nobody knows who failed."""
    _run("numbers", "shared_message_keeps_its_number")


def test_rings_that_message_each_other_do_not_deadlock() -> None:
    """Two threads, each with a ring, whose messages to the other all fail: both go on."""
    _run("numbers", "rings_that_message_each_other_do_not_deadlock")


def test_fork_amid_messages_does_not_hang_the_child() -> None:
    """The child lets go of messages that were promised to a ring which a thread had locked."""
    _run("numbers", "fork_amid_messages_does_not_hang_the_child")


def test_peer_pidfd_that_would_be_cut_off_is_refused() -> None:
    """SO_PEERPIDFD with too little room: the kernel would make it, and nobody could close it."""
    _run("numbers", "peer_pidfd_that_would_be_cut_off_is_refused")


def test_lying_ints_do_not_get_past_a_check() -> None:
    """Sizes, flags and options that lie about themselves: taken by their value, or refused."""
    _run("numbers", "lying_ints_do_not_get_past_a_check")


def test_lying_paths_end_with_a_null_byte() -> None:
    """A str whose encode() gives what it likes: it has no null byte in it, and one behind it."""
    _run("numbers", "lying_paths_end_with_a_null_byte")


def test_buffer_select_needs_a_group() -> None:
    """BUFFER_SELECT on what has memory of its own: no buffer of a group is taken for it."""
    _run("numbers", "buffer_select_needs_a_group")


def test_memoryview_dies_in_a_cycle_with_what_lends_it() -> None:
    """The collector clears a memoryview and what has pinned it, in whatever order it likes."""
    _run("numbers", "memoryview_dies_in_a_cycle_with_what_lends_it")


@pytest.mark.parametrize(
    "name",
    [
        "ctrl_c_frees_all_buffers",
        "ctrl_c_ends_a_run_of_trio",
        "collector_at_every_allocation",
        "coroutines_closed_by_another_threads_collector",
        "loop_closed_under_its_tasks",
        "exit_with_work_in_flight",
        "forks_within_a_running_loop",
        "storms_of_cancellations",
    ],
)
def test_loops(name: str) -> None:
    """What is done to an event loop does no harm to the memory and descriptors of its ring."""
    _run("loops", name)
