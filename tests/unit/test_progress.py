"""The reducer: what runs, what takes a failed call's place, how it ends, what it carries, what an event costs."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from plans import START, plan_of
from reducing import (
    FACTS,
    NOW,
    chain,
    complete,
    end_by,
    fail,
    ids,
    ids_of,
    outcome,
    progress_of,
)

from engine.domain.carried import CarriedState
from engine.domain.execution import (
    ArtifactRef,
    Cancellation,
    ExecutionStatus,
    ExecutionWarning,
    StepStatus,
    Usage,
    Value,
)
from engine.domain.messages import MAX_PAYLOAD_BYTES
from engine.domain.progress import MAX_PENDING_CALLS, ExecutionProgress, InvokeAgent
from engine.domain.unit_work import MAX_RESUMES

if TYPE_CHECKING:
    from types import FrameType

    from engine.domain.plan import ExecutionPlan


def test_a_chain_runs_one_by_one_whatever_its_order_in_the_definition():
    progress = progress_of([{"id": "c", "depends_on": ["b"]}, {"id": "a"}, {"id": "b", "depends_on": ["a"]}])
    order: list[str] = []
    while not progress.is_over:
        (action,) = progress.next_actions(NOW)
        order += ids([action])
        complete(progress, action, {"of": action.step.id})
    assert order == ["a", "b", "c"]
    assert progress.ending is not None
    assert progress.ending.status is ExecutionStatus.COMPLETED
    assert progress.output_input().inline == {"of": "c"}


def test_a_diamond_waits_for_both_of_its_sides():
    progress = progress_of(
        [
            {"id": "top"},
            {"id": "left", "depends_on": ["top"]},
            {"id": "right", "input_mapping": {"x": "${steps.top.output.x}"}},
            {"id": "join", "depends_on": ["left", "right"]},
        ]
    )
    (top,) = progress.next_actions(NOW)
    assert progress.next_actions(NOW) == []
    complete(progress, top, {"x": 7})
    left, right = progress.next_actions(NOW)
    assert ids([left, right]) == ["left", "right"]
    assert right.call.input.inline == {"x": 7}
    complete(progress, right, 2)
    assert progress.next_actions(NOW) == []
    complete(progress, left, 1)
    (join,) = progress.next_actions(NOW)
    assert join.call.input.inline == {"input": {}, "steps": {"left": 1, "right": 2}}


def test_a_fallback_has_an_address_of_its_own_and_knows_whom_it_replaces():
    progress = progress_of([{"id": "a", "fallback": {"agent_id": "agent-b"}}])
    (first,) = progress.next_actions(NOW)
    second = fail(progress, first, "timeout", "timeout", 4, usage=Usage(requests=4))
    assert second is not None
    assert (first.address, second.address) == ("a.1", "a.2")
    assert (second.call.agent.agent_id, second.call.fallback_from, second.call.prior_attempts) == (
        "agent-b",
        "agent-a",
        4,
    )
    (decided,) = second.call.decided
    assert (decided.n, decided.status, decided.agent_id, decided.reason) == (1, StepStatus.FAILED, "agent-a", "timeout")
    assert decided.events[0].type == "step.fell_back"
    complete(progress, second, 1, usage=Usage(requests=1))
    assert progress.steps["a"].attempts == 5
    assert progress.usage.requests == 5
    assert progress.ending is not None
    assert progress.ending.status is ExecutionStatus.COMPLETED


def test_a_failure_ends_it_stops_dispatch_and_closes_what_is_cancelled():
    progress = progress_of([{"id": "a"}, {"id": "b"}, {"id": "c", "depends_on": ["b"]}])
    a, b = progress.next_actions(NOW)
    assert fail(progress, a, "agent", "refused", details={"status": 451}) is None
    assert progress.ending is not None
    assert progress.ending.error is not None
    assert progress.ending.error.code == "agent_error"
    assert progress.ending.error.details == {"status": 451, "step_id": "a", "agent_id": "agent-a", "reason": "refused"}
    assert not progress.is_over
    assert fail(progress, b, "cancelled", "cancelled", 0) is None
    assert progress.is_over
    assert progress.next_actions(NOW) == []
    assert {step_id: step.status.value for step_id, step in progress.steps.items()} == {
        "a": "failed",
        "b": "cancelled",
        "c": "pending",
    }
    assert [(record.step_id, record.status.value) for record in progress.decided] == [
        ("a", "failed"),
        ("b", "cancelled"),
    ]


def test_an_outcome_that_comes_while_it_ends_is_kept():
    progress = progress_of([{"id": "a"}, {"id": "b"}])
    a, b = progress.next_actions(NOW)
    fail(progress, a)
    complete(progress, b, {"late": True})
    assert progress.steps["b"].status is StepStatus.COMPLETED
    assert progress.is_over
    assert progress.ending is not None
    assert progress.ending.status is ExecutionStatus.FAILED


def test_a_lost_worker_is_replaced_three_times_with_the_same_address():
    progress = progress_of([{"id": "a", "retry_policy": {"max_retries": 2}}])
    (action,) = progress.next_actions(NOW)
    assert not action.call.resumed
    activity_ids = [action.activity_id]
    for _ in range(MAX_RESUMES):
        again = fail(progress, action, "lost", "timeout", 3)
        assert again is not None
        assert (again.address, again.call.n, again.call.resumed) == (action.address, 1, True)
        assert again.maximum_attempts == 1
        activity_ids.append(again.activity_id)
        action = again
    assert activity_ids == ["a.1", "a.1.1", "a.1.2", "a.1.3"]
    assert fail(progress, action, "lost", "timeout", 1) is None
    assert progress.steps["a"].status is StepStatus.FAILED


def test_decisions_travel_with_the_next_call_and_come_back_when_they_were_not_recorded():
    progress = progress_of(
        [
            {"id": "a", "fallback": {"agent_id": "agent-b"}},
            {"id": "b", "depends_on": ["a"]},
            {"id": "c", "depends_on": ["b"]},
        ]
    )
    (first,) = progress.next_actions(NOW)
    second = fail(progress, first)
    assert second is not None
    assert progress.decided == []
    complete(progress, second, 1, decided_recorded=False)
    assert [record.agent_id for record in progress.decided] == ["agent-a"]
    (b,) = progress.next_actions(NOW)
    assert [record.agent_id for record in b.call.decided] == ["agent-a"]
    complete(progress, b, 1)
    assert progress.decided == []
    (c,) = progress.next_actions(NOW)
    complete(progress, c, {"x": 1}, unrecorded=True, usage=Usage(requests=1))
    (record,) = progress.take_decided()
    assert (record.step_id, record.status, record.usage.requests) == ("c", StepStatus.COMPLETED, 1)
    assert record.output == Value.of({"x": 1})


def test_a_failed_call_gives_its_decisions_back_in_order():
    progress = progress_of([{"id": "a", "fallback": {"agent_id": "agent-b"}}])
    (first,) = progress.next_actions(NOW)
    second = fail(progress, first)
    assert second is not None
    assert fail(progress, second) is None
    assert [(record.n, record.agent_id) for record in progress.take_decided()] == [(1, "agent-a"), (2, "agent-b")]


def test_one_call_takes_no_more_decisions_than_a_payload_holds():
    width = 40
    steps: list[dict[str, Any]] = [{"id": f"s{n}"} for n in range(width)]
    progress = progress_of([*steps, {"id": "end", "depends_on": [step["id"] for step in steps], "input_mapping": {}}])
    for action in progress.next_actions(NOW):
        complete(progress, action, "x" * 30_000, unrecorded=True)
    (end,) = progress.next_actions(NOW)
    assert end.call.decided
    assert len(end.call.model_dump_json()) <= MAX_PAYLOAD_BYTES
    assert len(end.call.decided) + len(progress.decided) == width
    assert [record.step_id for record in [*end.call.decided, *progress.decided]] == ids_of(steps)


@pytest.mark.parametrize("has_fallback", [False, True])
def test_a_missing_path_fails_the_step_uncalled_and_names_the_path(has_fallback: bool):
    extra: dict[str, Any] = {"fallback": {"agent_id": "agent-b"}} if has_fallback else {}
    progress = progress_of([{"id": "a"}, {"id": "b", "input_mapping": {"x": "${steps.a.output.y.z}"}, **extra}])
    (a,) = progress.next_actions(NOW)
    complete(progress, a, {"y": {}})
    assert progress.next_actions(NOW) == []
    assert progress.is_over
    assert progress.ending is not None
    assert progress.ending.error is not None
    assert progress.ending.error.code == "invalid_input"
    assert progress.ending.error.details["path"] == "steps.a.output.y.z"
    (record,) = progress.take_decided()
    assert (record.step_id, record.status, record.attempts) == ("b", StepStatus.FAILED, 0)


def test_a_missing_path_of_the_executions_output_fails_it():
    progress = progress_of([{"id": "a"}], output_mapping={"x": "${steps.a.output.x}"})
    (a,) = progress.next_actions(NOW)
    complete(progress, a, {})
    with pytest.raises(Exception, match=r"steps\.a\.output\.x") as caught:
        progress.output_input()
    progress.fail_output(caught.value)  # pyright: ignore[reportArgumentType] # MissingPathError, as the next line shows
    assert progress.ending is not None
    assert progress.ending.error is not None
    assert (progress.ending.status, progress.ending.error.code) == (ExecutionStatus.FAILED, "invalid_input")


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("cancel", "time_out", "cancelled"),
        ("cancel", "fail", "cancelled"),
        ("time_out", "cancel", "failed"),
        ("time_out", "fail", "failed"),
        ("fail", "cancel", "failed"),
        ("fail", "time_out", "failed"),
    ],
)
def test_the_first_end_stands(first: str, second: str, status: str):
    progress = progress_of([{"id": "a"}, {"id": "b", "depends_on": ["a"]}])
    (action,) = progress.next_actions(NOW)
    end_by(first, progress, action)
    stands = progress.ending
    end_by(second, progress, action)
    assert progress.ending is stands
    assert stands is not None
    assert stands.status.value == status
    assert not progress.has_ready


def test_the_deadlines_error_has_the_instant():
    deadline = START + timedelta(hours=1)
    progress = ExecutionProgress(plan_of([{"id": "a"}]), Value.of({}), replace(FACTS, deadline_at=deadline))
    (action,) = progress.next_actions(NOW)
    assert action.call.deadline_at == deadline
    progress.time_out()
    assert progress.ending is not None
    assert progress.ending.error is not None
    assert progress.ending.error.code == "execution_timeout"
    assert progress.ending.error.details == {"deadline_at": deadline.isoformat()}


def test_nothing_is_called_after_a_cancel_before_the_first_step():
    progress = progress_of(chain(2))
    progress.cancel(Cancellation(at=NOW))
    assert progress.next_actions(NOW) == []
    assert progress.is_over
    assert progress.decided == []


def test_a_wide_step_goes_in_windows_by_count():
    progress = progress_of([{"id": f"s{n}"} for n in range(MAX_PENDING_CALLS + 30)])
    window = progress.next_actions(NOW)
    assert len(window) == progress.running == MAX_PENDING_CALLS
    assert progress.next_actions(NOW) == []
    for action in window[:7]:
        complete(progress, action)
    assert ids(progress.next_actions(NOW)) == [f"s{MAX_PENDING_CALLS + n}" for n in range(7)]


def test_a_wide_step_goes_in_windows_by_bytes():
    text = "x" * 100_000
    progress = progress_of([{"id": f"s{n}", "input_mapping": {"t": "${input.t}"}} for n in range(60)], {"t": text})
    seen = 0
    while actions := progress.next_actions(NOW):
        assert sum(len(action.call.model_dump_json()) for action in actions) < 3 * 2**20
        seen += len(actions)
    assert seen == 60


def test_a_reset_run_outranks_what_it_was_made_of():
    later = NOW + timedelta(seconds=5)
    plan = plan_of([{"id": "a"}])
    (usual,) = ExecutionProgress(plan, Value.of({}), FACTS).next_actions(later)
    (reset,) = ExecutionProgress(plan, Value.of({}), replace(FACTS, was_reset=True)).next_actions(later)
    assert usual.call.run_started_at == START
    assert reset.call.run_started_at == later


# Carrying over.


def test_what_is_carried_is_what_the_rest_reads_and_it_stays_small():
    width = 120
    outputs = {f"s{n}": f"{n:>2000}" for n in range(width)}
    steps: list[dict[str, Any]] = [{"id": step_id, "input_mapping": {}} for step_id in outputs]
    steps.append({"id": "unread", "input_mapping": {}})
    steps.append({"id": "big", "input_mapping": {}})
    all_texts = "".join(f"${{steps.{step_id}.output}}" for step_id in outputs)
    mapping = {"all": all_texts, "big": "${steps.big.output.title}"}
    steps.append({"id": "end", "depends_on": [step["id"] for step in steps], "input_mapping": mapping})
    progress = progress_of(steps, output_mapping={"e": "${steps.end.output}"})
    progress.warnings.append(ExecutionWarning(code="x", message="seen"))
    for action in progress.next_actions(NOW):
        reference = ArtifactRef(artifact_id="art", size_bytes=9, declared={"output.title": "t" * 3000})
        output = Value(ref=reference) if action.step.id == "big" else outputs.get(action.step.id, "nobody reads it")
        complete(progress, action, output, usage=Usage(requests=1))
    carried = progress.carry()
    assert len(carried.model_dump_json()) <= MAX_PAYLOAD_BYTES
    by_id = {settled.step_id: settled for settled in carried.settled}
    assert by_id["unread"].output is None
    assert not by_id["unread"].in_record
    assert by_id["big"].in_record
    assert by_id["s0"].output == Value.of(outputs["s0"])
    assert by_id[f"s{width - 1}"].in_record

    wire = CarriedState.model_validate_json(carried.model_dump_json())
    following = ExecutionProgress(progress.plan, Value.of({}), replace(FACTS, run_id="run-2"), wire)
    assert following.usage.requests == width + 2
    assert [warning.message for warning in following.warnings] == ["seen"]
    (end,) = following.next_actions(NOW)
    operands = end.call.input.operands
    assert operands is not None
    assert operands["steps.s0.output"].inline == outputs["s0"]
    last = operands[f"steps.s{width - 1}.output"]
    assert (last.step_id, last.run_id, last.n) == (f"s{width - 1}", "run-1", 1)
    again = CarriedState.model_validate_json(following_without(following, end).model_dump_json())
    assert len(again.settled) == width + 2 + 1


def following_without(progress: ExecutionProgress, action: InvokeAgent) -> CarriedState:
    complete(progress, action, {})
    return progress.carry()


# The cost of an event.


def operations(progress: ExecutionProgress, actions: deque[InvokeAgent]) -> int:
    """Count the interpreter's instructions for one outcome and what it sets off."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
        return trace

    action = actions.popleft()
    result = outcome({"n": 1})
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        progress.apply_outcome(action.address, result, action.call)
        actions.extend(progress.next_actions(NOW))
    finally:
        sys.settrace(before)
    return count


def cost_in(plan: ExecutionPlan) -> int:
    progress = ExecutionProgress(plan, Value.of({}), FACTS)
    actions = deque(progress.next_actions(NOW))
    for _ in range(20):
        action = actions.popleft()
        complete(progress, action, {"n": 1})
        actions.extend(progress.next_actions(NOW))
    return operations(progress, actions)


@pytest.mark.parametrize("fields", [{}, {"when": "execution.version = 3", "on_error": "continue"}], ids=["", "decided"])
def test_an_event_costs_as_much_in_a_chain_of_ten_thousand_as_in_one_of_a_hundred(fields: dict[str, Any]):
    short, long = (cost_in(plan_of([step | fields for step in chain(length)])) for length in (100, 10_000))
    assert long <= short * 1.1


def test_only_the_last_call_takes_the_end_with_it() -> None:
    progress = progress_of(
        [
            {"id": "a", "agent_id": "agent-a"},
            {"id": "b", "agent_id": "agent-a", "depends_on": ["a"], "fallback": {"agent_id": "agent-b"}},
        ]
    )
    (first,) = progress.next_actions(NOW)
    assert first.call.closing is None
    complete(progress, first, {"n": 1}, usage=Usage(requests=2))
    (last,) = progress.next_actions(NOW)
    assert last.call.closing is not None
    assert (last.call.closing.step_ids, last.call.closing.usage) == (["a", "b"], Usage(requests=2))
    fallback = fail(progress, last, usage=Usage(requests=1))
    assert fallback is not None
    assert fallback.call.decided
    assert fallback.call.closing is not None
    assert fallback.call.closing.usage == Usage(requests=3)
    complete(progress, fallback, {"n": 2}, closed=True)
    assert progress.recorded_output == Value.of({"n": 2})


def test_a_last_call_that_is_made_again_takes_the_end_with_it_only_if_it_still_may() -> None:
    progress = progress_of([{"id": "a", "agent_id": "agent-a"}])
    (action,) = progress.next_actions(NOW)
    assert action.call.closing is not None
    again = fail(progress, action, "lost")
    assert again is not None
    assert again.call.closing is not None
    progress.operators.pause("ann", None, NOW)
    again = fail(progress, again, "lost")
    assert again is not None
    assert again.call.closing is None


@pytest.mark.parametrize(
    ("steps", "fields"),
    [
        ([{"id": "a", "agent_id": "agent-a"}], {"output_mapping": {"n": "${steps.a.output.n}"}}),
        ([{"id": "a", "agent_id": "agent-a"}, {"id": "b", "agent_id": "agent-a"}], {}),
    ],
    ids=["its output is mapped", "two last steps"],
)
def test_an_end_that_has_to_be_worked_out_is_not_for_a_call(
    steps: list[dict[str, Any]], fields: dict[str, Any]
) -> None:
    progress = progress_of(steps, **fields)
    actions = progress.next_actions(NOW)
    for action in actions:
        assert action.call.closing is None
        complete(progress, action, {"n": 1})
    assert progress.is_over
    assert progress.recorded_output is None


def test_a_cancelled_execution_has_no_recorded_end() -> None:
    progress = progress_of([{"id": "a", "agent_id": "agent-a"}])
    (action,) = progress.next_actions(NOW)
    progress.cancel(Cancellation(at=NOW))
    complete(progress, action, {"n": 1}, closed=True)
    assert progress.recorded_output is None
    assert progress.ending is not None
    assert progress.ending.status is ExecutionStatus.CANCELLED
