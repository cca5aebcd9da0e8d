"""What the reducer decides, one thing at a time: failures, fallbacks, handoffs, skips, conditions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from plans import handoff, plan_of
from reducing import (
    FACTS,
    NOW,
    PAD,
    complete,
    end_by,
    fail,
    failure,
    ids,
    ids_of,
    progress_of,
)

from engine.domain.carried import CarriedState
from engine.domain.execution import ArtifactRef, ExecutionStatus, StepStatus, Value
from engine.domain.messages import MAX_PAYLOAD_BYTES
from engine.domain.progress import ExecutionProgress

if TYPE_CHECKING:
    from engine.domain.execution import Event


def test_with_finish_what_runs_may_end_and_nothing_new_starts():
    progress = progress_of([{"id": "a"}, {"id": "b"}, {"id": "c", "depends_on": ["b"]}], on_failure="finish")
    a, b = progress.next_actions(NOW)
    fail(progress, a)
    assert (progress.ending, progress.is_over, progress.has_ready) == (None, False, False)
    complete(progress, b, 1)
    assert progress.next_actions(NOW) == []
    assert progress.is_over
    assert progress.ending is not None
    assert progress.ending.error is not None
    assert progress.ending.error.details["step_id"] == "a"
    assert {name: state.status.value for name, state in progress.steps.items()} == {
        "a": "failed",
        "b": "completed",
        "c": "pending",
    }


def test_with_finish_a_running_step_still_has_its_fallback_its_resumes_and_may_fail_too():
    steps: list[dict[str, Any]] = [{"id": "a"}, {"id": "b", "fallback": {"agent_id": "agent-b"}}]
    progress = progress_of(steps, on_failure="finish")
    a, b = progress.next_actions(NOW)
    fail(progress, a, "agent", "refused")
    again = fail(progress, b, "lost", "timeout")
    assert again is not None
    fallback = fail(progress, again)
    assert fallback is not None
    assert fallback.call.closing is None
    assert fail(progress, fallback) is None
    assert progress.is_over
    assert progress.ending is not None
    assert progress.ending.error is not None
    assert progress.ending.error.details["reason"] == "refused"


@pytest.mark.parametrize("way", ["cancel", "time_out"])
def test_a_failure_that_waits_for_what_runs_stands_against_a_cancel_and_a_deadline(way: str):
    progress = progress_of([{"id": "a"}, {"id": "b"}], on_failure="finish")
    a, b = progress.next_actions(NOW)
    fail(progress, a)
    end_by(way, progress, b)
    assert progress.ending is not None
    assert progress.ending.error is not None
    assert progress.ending.error.details["step_id"] == "a"
    assert not progress.is_over
    assert fail(progress, b, "cancelled", "cancelled", 0) is None
    assert progress.is_over
    assert progress.steps["b"].status is StepStatus.CANCELLED


def test_with_finish_a_failure_of_the_last_running_step_ends_it_at_once():
    progress = progress_of(
        [{"id": "a"}, {"id": "b", "input_mapping": {"x": "${steps.a.output.x}"}}], on_failure="finish"
    )
    (a,) = progress.next_actions(NOW)
    complete(progress, a, {})
    assert progress.next_actions(NOW) == []
    assert progress.is_over
    assert progress.ending is not None
    assert progress.ending.status is ExecutionStatus.FAILED


@pytest.mark.parametrize("kind", ["lost", "agent", "timeout"])
def test_what_runs_at_most_once_is_not_called_again(kind: str):
    progress = progress_of([{"id": "a", "at_most_once": True}])
    (action,) = progress.next_actions(NOW)
    assert action.maximum_attempts == 1
    assert action.call.maximum_attempts == 1
    assert fail(progress, action, kind, "timeout") is None
    assert progress.steps["a"].status is StepStatus.FAILED
    assert progress.is_over


@pytest.mark.parametrize(
    ("kind", "reason", "is_called"),
    [
        ("agent", "rate_limited", True),
        ("timeout", "timeout", True),
        ("agent", "error", False),
        ("agent", "refused", False),
        ("store", "timeout", False),
        ("cancelled", "timeout", False),
    ],
)
def test_a_fallback_is_called_for_its_reasons_alone(kind: str, reason: str, is_called: bool):
    on = ["rate_limited", "timeout"]
    progress = progress_of([{"id": "a", "fallback": {"agent_id": "agent-b", "on": on}, "on_error": "continue"}])
    (action,) = progress.next_actions(NOW)
    second = fail(progress, action, kind, reason)
    assert (second is not None) is is_called
    if second is not None:
        assert second.call.agent.agent_id == "agent-b"
        assert fail(progress, second, "agent", "rate_limited") is None


def acting_pair(**fields: Any) -> ExecutionProgress:
    """A run in which ``a`` of agent-a has handed over to ``b`` of agent-b and is over."""
    steps = [{"id": "a"}, {"id": "b", "agent_id": "agent-b", "depends_on": ["a"], "input_mapping": {}, **fields}]
    acting = [
        handoff(1, "agent-a", "agent-b", "source_output.n = 2", data_mapping={"n": "first"}),
        handoff(2, "agent-a", "agent-b", data_mapping={"n": "second", "absent": "absent"}),
    ]
    progress = ExecutionProgress(plan_of(steps, acting), Value.of({}), FACTS)
    (a,) = progress.next_actions(NOW)
    complete(progress, a, {"mapped": True}, handed=Value.of({"n": 1}))
    return progress


def handoff_ids(events: list[Event]) -> list[str]:
    return [event.id for event in events if event.type.startswith("handoff.")]


def test_a_steps_first_call_takes_its_handoffs_and_what_they_hand_over_with_it():
    progress = acting_pair()
    (b,) = progress.next_actions(NOW)
    assert b.call.input.inline == {"second": 1}
    assert [(event.type, event.data["handoff_id"]) for event in b.call.events] == [
        ("handoff.refused", "h1"),
        ("handoff.taken", "h2"),
    ]
    refused = b.call.events[0].data
    assert (refused["source_step"], refused["target_step"], refused["source_agent_id"], refused["target_agent_id"]) == (
        "a",
        "b",
        "agent-a",
        "agent-b",
    )
    assert refused["values"] == {"source_output.n": 1}


def test_a_steps_own_input_comes_before_what_is_handed_over():
    progress = acting_pair(input_mapping={"second": "own", "other": "${steps.a.output.mapped}"})
    (b,) = progress.next_actions(NOW)
    assert b.call.input.inline == {"second": "own", "other": True}


@pytest.mark.parametrize("kind", ["agent", "cancelled"])
def test_handoffs_are_not_lost_nor_doubled_when_the_first_call_fails_for_good(kind: str):
    progress = acting_pair()
    (b,) = progress.next_actions(NOW)
    failed_at = NOW + timedelta(seconds=30)
    progress.apply_failure(b.address, failure(kind), b.call, failed_at)
    (record,) = progress.take_decided()
    assert handoff_ids(record.events) == handoff_ids(b.call.events)
    assert len(handoff_ids(record.events)) == 2
    assert record.events[-1].at == failed_at


def test_a_fallbacks_call_tells_of_no_handoff_again_and_a_resumed_one_does():
    progress = acting_pair(fallback={"agent_id": "agent-c"})
    (b,) = progress.next_actions(NOW)
    resumed = fail(progress, b, "lost", "timeout")
    assert resumed is not None
    assert handoff_ids(resumed.call.events) == handoff_ids(b.call.events)
    second = fail(progress, resumed)
    assert second is not None
    assert second.call.events == []
    assert second.call.input.inline == {"second": 1}
    (decided,) = second.call.decided
    assert handoff_ids(decided.events) == handoff_ids(b.call.events)


def test_handoffs_of_a_step_whose_input_can_not_be_resolved_are_told():
    progress = acting_pair(input_mapping={"x": "${steps.a.output.nothing}"})
    assert progress.next_actions(NOW) == []
    (record,) = progress.take_decided()
    assert (record.reason, len(handoff_ids(record.events))) == ("invalid_input", 2)


def test_a_key_that_a_large_reply_may_not_have_is_null_and_no_failure():
    steps = [{"id": "a"}, {"id": "b", "agent_id": "agent-b", "depends_on": ["a"], "input_mapping": {}}]
    acting = [handoff(1, "agent-a", "agent-b", data_mapping={"n": "n", "absent": "absent"})]
    progress = ExecutionProgress(plan_of(steps, acting), Value.of({}), FACTS)
    (a,) = progress.next_actions(NOW)
    large = ArtifactRef(artifact_id="art", size_bytes=99_999, declared={"source_output.n": 1})
    complete(progress, a, {}, handed=Value(ref=large))
    (b,) = progress.next_actions(NOW)
    assert b.call.input.mapping == {"n": "${steps.a.handed.n}", "absent": "${steps.a.handed.absent ?? null}"}
    assert b.call.input.operands is not None
    assert b.call.input.operands["steps.a.handed.absent"].artifact_id == "art"


def test_a_failure_that_is_passed_over_is_a_warning_and_can_be_read():
    reads = {"output": "${steps.a.output.x}", "error": "${steps.a.error.details.reason}"}
    steps = [{"id": "a", "on_error": "continue"}, {"id": "b", "input_mapping": reads}]
    progress = progress_of(steps)
    (a,) = progress.next_actions(NOW)
    fail(progress, a, "agent", "refused")
    (b,) = progress.next_actions(NOW)
    assert b.call.input.inline == {"output": None, "error": "refused"}
    assert [(warning.code, warning.step_id) for warning in progress.warnings] == [("step_failed", "a")]
    assert b.call.closing is not None
    assert b.call.closing.warnings == progress.warnings


def test_everything_below_a_skipped_step_is_null_in_a_mapping():
    reads = {"x": "${steps.a.output.x}", "e": "${steps.a.error.message}", "t": "<${steps.a.output.x.y}>"}
    progress = progress_of([{"id": "a", "when": "input.no"}, {"id": "b", "join": "settled", "input_mapping": reads}])
    (b,) = progress.next_actions(NOW)
    assert b.call.input.inline == {"x": None, "e": None, "t": "<null>"}


def test_skips_travel_with_the_next_call_and_the_last_one_still_closes():
    steps: list[dict[str, Any]] = [
        {"id": "a", "when": "input.no"},
        {"id": "b", "depends_on": ["a"]},
        {"id": "c"},
        {"id": "d", "join": "any", "depends_on": ["b", "c"], "input_mapping": {}},
    ]
    progress = progress_of(steps)
    (c,) = progress.next_actions(NOW)
    assert [record.step_id for record in c.call.decided] == ["a", "b"]
    assert c.call.closing is None
    complete(progress, c, {"n": 1}, decided_recorded=False)
    (d,) = progress.next_actions(NOW)
    assert [(record.step_id, record.status.value, record.reason) for record in d.call.decided] == [
        ("a", "skipped", "when"),
        ("b", "skipped", "join"),
    ]
    assert progress.decided == []
    assert d.call.closing is not None
    assert d.call.closing.step_ids == ["a", "b", "c", "d"]
    complete(progress, d, {"n": 2}, closed=True)
    assert progress.recorded_output == Value.of({"n": 2})


def test_a_skip_that_comes_last_is_left_for_the_end_and_no_call_closes():
    steps: list[dict[str, Any]] = [{"id": "a"}, {"id": "b", "depends_on": ["a"], "when": "steps.a.output.n = 2"}]
    progress = progress_of(steps)
    (a,) = progress.next_actions(NOW)
    assert a.call.closing is None
    complete(progress, a, {"n": 1})
    assert progress.next_actions(NOW) == []
    assert progress.is_over
    assert progress.ending is not None
    assert progress.ending.status is ExecutionStatus.COMPLETED
    assert progress.output_input().inline is None
    assert [(record.step_id, record.reason) for record in progress.take_decided()] == [("b", "when")]


def test_more_skips_than_a_call_has_room_for_keep_it_from_closing():
    width = 1200
    steps: list[dict[str, Any]] = [{"id": f"s{n}", "when": "input.no"} for n in range(width)]
    end = {"id": "end", "join": "settled", "depends_on": ids_of(steps), "input_mapping": {}}
    progress = progress_of([*steps, end])
    (action,) = progress.next_actions(NOW)
    assert action.call.closing is None
    assert len(action.call.model_dump_json()) <= MAX_PAYLOAD_BYTES
    assert len(action.call.decided) + len(progress.decided) == width


@pytest.mark.parametrize("on_error", ["fail", "continue"])
def test_a_condition_that_can_not_be_decided_fails_its_step(on_error: str):
    steps: list[dict[str, Any]] = [
        {"id": "a"},
        {"id": "b", "depends_on": ["a"], "when": "steps.a.output.text = 'x'", "on_error": on_error},
        {"id": "c", "depends_on": ["b"], "input_mapping": {"b": "${steps.b.output.x}"}},
    ]
    progress = progress_of(steps)
    (a,) = progress.next_actions(NOW)
    complete(progress, a, Value(ref=ArtifactRef(artifact_id="art", size_bytes=99_999)))
    after = progress.next_actions(NOW)
    assert progress.steps["b"].error is not None
    assert progress.steps["b"].error.code == "invalid_input"
    assert progress.steps["b"].error.details["path"] == "steps.a.output.text"
    assert ids(after) == (["c"] if on_error == "continue" else [])
    if on_error == "fail":
        assert progress.is_over


def test_a_condition_is_decided_alike_after_a_large_output_was_carried_over():
    steps: list[dict[str, Any]] = [
        {"id": "a"},
        {"id": "b", "depends_on": ["a"], "when": "steps.a.output.kind = 'x' and steps.a.output.absent = null"},
    ]
    progress = progress_of(steps)
    (a,) = progress.next_actions(NOW)
    complete(progress, a, {"kind": "x", "pad": PAD})
    wire = CarriedState.model_validate_json(progress.carry().model_dump_json())
    following = ExecutionProgress(progress.plan, Value.of({}), replace(FACTS, run_id="run-2"), wire)
    assert ids(following.next_actions(NOW)) == ["b"]
