"""Defects to be planted in netcomm/runtime, one at a time, each with tests that have to notice it."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.simulation.mutations import Mutation


@dataclass(frozen=True)
class RuntimeBug:
    """A defect, and tests that fail where it is planted. tests: `folder/module::function`, all of them quick."""

    mutation: Mutation
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.mutation.name


def _bug(name: str, where: str, old: str, new: str, *tests: str) -> RuntimeBug:
    return RuntimeBug(Mutation(name, f"runtime.{where}", old, new), tests)


def _bugs() -> Iterator[RuntimeBug]:
    # Handing over
    yield _bug(
        "a message is acknowledged while its callback runs",
        "handover:Handover.report",
        "- length_hint(self.left) - running",
        "- length_hint(self.left)",
        "unit/test_handover::test_the_message_whose_callback_runs_is_not_reported",
        "integration/test_dispatch::test_earlier_messages_are_acknowledged_while_a_later_callback_blocks",
    )
    yield _bug(
        "a batch that was held back is handed over from its beginning again",
        "handover:Handover.begin",
        "batch.payloads[handled:] if handled else batch.payloads",
        "batch.payloads",
        "integration/test_dispatch::test_messages_behind_one_whose_callback_removes_itself_are_held_back",
    )
    yield _bug(
        "nobody reports the callbacks behind a slow one",
        "handover:Handover.report_due",
        "self.attention = self.attention or self.report_at is None",
        "pass",
        "integration/test_dispatch::test_every_message_behind_a_slow_one_is_acknowledged_before_the_batch_ends",
    )
    yield _bug(
        "messages are lost when the last function is removed half-way",
        "callback_runner:CallbackRunner._attend",
        "self._held.appendleft(handover.batch)",
        "pass",
        "integration/test_dispatch::test_messages_behind_one_whose_callback_removes_itself_are_held_back",
    )
    yield _bug(
        "a batch that is held back half-way goes behind later ones",
        "callback_runner:CallbackRunner._attend",
        "self._held.appendleft(handover.batch)",
        "self._held.append(handover.batch)",
        "unit/test_peer_held::test_a_batch_that_is_held_back_half_way_stays_before_those_that_came_after_it",
    )
    yield _bug(
        "messages pass those that are held back",
        "callback_runner:CallbackRunner._dispatch_received",
        "if self._held:",
        "if False:",
        "unit/test_peer_held::test_what_has_come_in_behind_held_messages_is_handed_over_behind_them",
    )
    yield _bug(
        "messages behind one that a defect has passed over are acknowledged",
        "callback_runner:CallbackRunner.dispatch",
        "self._loop.fail(error)",
        "pass",
        "integration/test_handing_over::test_after_a_defect_in_handing_over_nothing_more_is_acknowledged",
    )
    # Leading and waiting
    yield _bug(
        "a callback that waits has no deputy",
        "leadership:Leadership.begin_work",
        "self._working = True",
        "pass",
        "integration/test_dispatch::test_a_callback_may_send_and_wait_for_the_delivery",
    )
    yield _bug(
        "the deputy is not told that a callback waits",
        "loop:Loop.wait_until",
        "self.leadership.await_deputy()",
        "pass",
        "integration/test_dispatch::test_a_callback_that_waits_does_not_wait_for_the_deputys_patience",
    )
    yield _bug(
        "the deputy is patient with a callback that waits, where the worker has led since it looked last",
        "leadership:Leadership.deputize",
        "kept = self._alarm.get(timeout=None if asleep else patience_s)",
        "kept = self._alarm.get(timeout=None if asleep else patience_s) and turns == self._turns",
        "integration/test_dispatch::test_a_callback_that_waits_does_not_wait_for_the_deputys_patience",
    )
    yield _bug(
        "a thread that has given up the lead is taken for the leader",
        "leadership:Leadership.release",
        "self._leader = 0",
        "pass",
        "integration/test_dispatch::test_a_callback_may_flush",
    )
    yield _bug(
        "a thread that waits alone is not woken",
        "loop:Loop._process_pending",
        "if work.awaited and self._waiters:",
        "if work.awaited and self._waiters > 1:",
        "integration/test_dispatch::test_a_callback_may_flush",
    )
    yield _bug(
        "a deadline that is sooner than the loop knows of is not noticed",
        "loop:Loop.call",
        "when < self._wake_at",
        "False",
        "integration/test_durable::test_a_message_expires_in_time_while_nothing_else_happens",
    )
    yield _bug(
        "what the storage's answer brings is left lying",
        "loop:Loop.on_storage_answer",
        "self.process_pending()",
        "pass",
        "integration/test_durable::test_delivered_means_that_the_receiver_has_stored_its_position",
    )
    yield _bug(
        "a peer that could not be read from in time is taken for dead",
        "loop:Loop._pass",
        "for event in link.poll(timeout, self._eager):",
        "node.tick(clocks.now())\n    for event in link.poll(timeout, self._eager):",
        "integration/test_dispatch::test_who_has_answered_a_ping_in_time_stays_connected_though_nobody_could_read",
    )
    # Sending
    yield _bug(
        "the rest of what a full queue took in part is sent twice",
        "sender:Sender._queue",
        "left -= taken",
        "pass",
        "integration/test_backpressure::test_a_send_that_waits_goes_on_when_there_is_room_and_everything_arrives_in_order",
    )
    yield _bug(
        "a subject lost where other messages may join",
        "sender:Sender.send",
        "may_be_joined = ttl is None and envelope is None and",
        "may_be_joined = ttl is None and",
        "integration/test_envelopes::test_thousands_of_them_between_plain_ones_keep_the_order",
    )
    yield _bug(
        "headers not stored",
        "group_commit:_appends",
        'delivery.envelope or b""',
        'b""',
        "integration/test_envelopes::test_they_survive_the_sender",
    )
    yield _bug(
        "a frame without room for the subject",
        "sender:Sender._to_payload",
        "(0 if envelope is None else len(envelope))",
        "0",
        "integration/test_envelopes::test_what_does_not_fit_into_a_frame_with_them_is_refused",
    )
    yield _bug(
        "what a finalizer sends is dropped where the queue is full",
        "loop:Loop.queue_deferred",
        "left.append((ident, entry))",
        "pass",
        "integration/test_reentrant::test_where_the_queue_is_full_what_was_deferred_waits_for_room_in_its_order",
    )
    yield _bug(
        "messages pass those that a finalizer has sent",
        "sender:Sender._queue_some",
        "if self.open_runs is not self._runs and self._is_behind_deferred(ident):",
        "if False:",
        "integration/test_reentrant::test_no_message_passes_one_that_was_deferred_and_waits_for_room",
        "integration/test_reentrant::test_what_the_thread_sends_next_does_not_pass_what_was_deferred",
    )
    yield _bug(
        "flush does not wait for what a finalizer has sent",
        "runtime:Runtime.flush",
        "return self._is_idle",
        "return self._messaging.peers.idle",
        "integration/test_reentrant::test_flush_waits_for_what_was_deferred",
    )
    # Storing
    yield _bug(
        "an interruption is told to all whose messages were being stored",
        "group_commit:GroupCommit._end",
        "batch is own or isinstance(error, Exception)",
        "True",
        "unit/test_group_commit::test_an_interruption_is_told_to_its_own_thread_alone",
        "integration/test_durable::test_an_interrupted_send_tells_those_whose_messages_it_was_storing",
    )
    yield _bug(
        "a message whose sender was told that it is not stored is sent after a restart",
        "group_commit:GroupCommit._end",
        "self._messaging.storage_sync.not_stored(batch.ident, batch.deliveries)",
        "pass",
        "unit/test_group_commit::test_what_was_stored_before_the_storage_raised_is_deleted_again",
    )
    yield _bug(
        "only the thread that stores hears that storing has failed",
        "group_commit:GroupCommit._end",
        "batch.error = error if",
        "batch.error = None if batch is not own else error if",
        "unit/test_group_commit::test_where_storing_fails_all_of_them_hear_of_it_and_nothing_is_queued",
    )
    yield _bug(
        "a storage request that failed is not tried again",
        "storage_worker:StorageWorker._work",
        "self._queue.put_back(job)",
        "pass",
        "unit/test_storage_worker::test_what_fails_together_is_tried_again_in_its_order",
        "integration/test_durable::test_a_backlog_waits_for_a_storage_that_fails_for_a_while",
    )
    yield _bug(
        "a storage that fails is asked again without a pause",
        "storage_worker:StorageWorker._gather",
        "timeout = max(self._retry_s, delay_s)",
        "timeout = delay_s",
        "unit/test_storage_worker::test_a_storage_that_fails_is_asked_again_after_pauses_that_double",
    )
    # The end
    yield _bug(
        "the end does not wait for callbacks",
        "runtime:Runtime._may_close",
        "self._messaging.storage_sync.all_stored and callbacks_are_done",
        "self._messaging.storage_sync.all_stored",
        "integration/test_lifecycle::test_terminate_hands_over_what_was_received_if_the_time_allows",
    )
    yield _bug(
        "the end does not wait for what a finalizer has sent",
        "runtime:Runtime._wind_down",
        "messaging.peers.may_end and not loop.has_deferred",
        "messaging.peers.may_end",
        "integration/test_reentrant::test_terminate_delivers_what_was_deferred",
    )
    yield _bug(
        "what a finalizer has sent ends without a word",
        "loop:Loop.discard_all",
        "while self._deferred:",
        "while False:",
        "integration/test_reentrant::test_a_deferred_message_that_is_never_sent_ends_discarded",
    )
    yield _bug(
        "callbacks are called after the end",
        "runtime:Runtime._stop_threads",
        "self._handover.mute()",
        "pass",
        "integration/test_lifecycle::test_terminate_with_a_stuck_callback_returns_in_time",
    )
    yield _bug(
        "a callback that terminates a peer is waited for by another thread that does",
        "runtime:Runtime.terminate",
        "elif in_callback and not self._handover.muted:",
        "elif False:",
        "integration/test_lifecycle::test_terminate_from_a_callback_that_another_thread_waits_for_counts_as_returned",
    )
    yield _bug(
        "a peer that has failed does not tell why",
        "lifecycle:Lifecycle.check",
        "if self.failure is not None:",
        "if False:",
        "integration/test_handing_over::test_who_uses_a_peer_that_has_failed_hears_the_cause",
    )
    yield _bug(
        "each peer has the whole time that a process is kept",
        "process:_terminate_all",
        "max(0.0, until - monotonic())",
        "EXIT_S",
        "unit/test_process::test_all_members_together_have_the_time_that_a_process_is_kept",
    )
    yield _bug(
        "a child that is forked while its parent ends is taken for ending",
        "process:is_ending",
        " and not _mark_is_inherited",
        "",
        "unit/test_process::test_a_child_that_is_forked_while_its_parent_ends_is_not_ending",
    )

    # On a thread of the program
    yield _bug(
        "what interrupts a callback is swallowed, and what was interrupted counts as handled",
        "manual_dispatcher:ManualDispatcher._handle_waiting",
        "except Exception:",
        "except BaseException:",
        "unit/test_manual_dispatcher::test_what_was_interrupted_is_handled_again_and_keeps_its_place",
    )
    yield _bug(
        "the descriptor tells of the end only once, and not where it comes while dispatch looks",
        "manual_dispatcher:ManualDispatcher._settle",
        "if self._items or self._stopped:",
        "if self._items:",
        "unit/test_manual_dispatcher::test_the_descriptor_is_readable_from_the_end_on",
        "unit/test_wake_ups::test_the_end_at_any_step_of_dispatch_is_told_to_the_main_loop",
    )
    yield _bug(
        "the node is told of callbacks when the next message comes",
        "loop:Loop.process_pending",
        "if self._handover.untold:",
        "if False:",
        "integration/test_manual_dispatch::test_messages_are_delivered_where_the_program_dispatches_and_not_before",
    )
    yield _bug(
        "what was interrupted is begun with from where the node was told last",
        "handover:Handover.begin",
        "batch.returned or batch.handled",
        "batch.handled",
        "unit/test_handover_noted::test_a_message_that_was_interrupted_comes_again_and_is_marked",
        "unit/test_handover_noted::test_a_batch_that_was_held_back_goes_on_behind_what_the_node_has_not_heard_of",
    )
    yield _bug(
        "a message that comes again is not marked",
        "handover:NotedHandover.begin",
        "batch.redelivered_below = max(batch.redelivered_below, seq + 1)",
        "pass",
        "unit/test_handover_noted::test_a_message_that_was_interrupted_comes_again_and_is_marked",
        "integration/test_manual_dispatch::test_a_message_whose_callback_was_interrupted_comes_again_and_no_other_does",
    )
    yield _bug(
        "the thread that dispatches waits at the end for what only it could handle",
        "manual_dispatcher:ManualDispatcher.goes_on_meanwhile",
        "return self._last_thread not in (None, get_ident())",
        "return True",
        "integration/test_manual_dispatch::test_the_thread_that_dispatches_does_not_wait_for_itself",
    )
    yield _bug(
        "KeyboardInterrupt in a callback goes to on_error",
        "callback_runner:CallbackRunner.__init__",
        "BaseException if dispatcher.owns_thread else Exception",
        "BaseException",
        "integration/test_manual_dispatch::test_a_message_whose_callback_was_interrupted_comes_again_and_no_other_does",
    )
    yield _bug(
        "a program that does not dispatch is not warned before something happens",
        "loop:Loop._next_deadline",
        "(self._handover.report_at, self._dispatcher.overdue_at)",
        "(self._handover.report_at,)",
        "integration/test_manual_dispatch::test_a_program_that_does_not_dispatch_is_warned_once",
    )
    yield _bug(
        "what comes while the descriptor is cleared is not told",
        "manual_dispatcher:ManualDispatcher._settle",
        "if self._items or self._stopped:",
        "if self._stopped:",
        "unit/test_wake_ups::test_what_comes_at_any_step_of_dispatch_wakes_the_main_loop",
    )
    yield _bug(
        "the descriptor is closed under a thread that waits for it",
        "manual_dispatcher:ManualDispatcher.close",
        "if self._thread_id in (None, get_ident()):",
        "if True:",
        "unit/test_wake_ups::test_a_descriptor_that_a_thread_is_about_to_wait_for_is_not_closed_before",
    )


BUGS = list(_bugs())
