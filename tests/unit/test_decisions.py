"""Whether a step runs, row by row: its join, the handoffs on its edges, its condition, and what is shown of them."""

from __future__ import annotations

from typing import Any

import pytest
from plans import START, handoff, plan_of

from engine.domain.decisions import (
    MAX_SHOWN_BYTES,
    MAX_SHOWN_STEPS,
    MAX_SHOWN_TOTAL_BYTES,
    Admission,
    TooLargeToDecideError,
    admit,
)
from engine.domain.execution import ArtifactRef, ErrorPayload, StepStatus, Value
from engine.domain.json import JsonValue
from engine.domain.plan_values import PlanValues
from engine.domain.step_state import StepState

COMPLETED = StepState(status=StepStatus.COMPLETED, output=Value.of({"n": 1}))
SKIPPED = StepState(status=StepStatus.SKIPPED)


def failed(reason: str = "error", *, goes_on: bool = True) -> StepState:
    error = ErrorPayload(code="agent_error", message="It broke", details={"reason": reason})
    return StepState(status=StepStatus.FAILED, error=error, is_continued=goes_on)


def completed(output: JsonValue = None, handed: JsonValue | Value = None) -> StepState:
    value = handed if isinstance(handed, Value) or handed is None else Value.of(handed)
    return StepState(status=StepStatus.COMPLETED, output=Value.of(output), handed=value)


def decided(
    states: dict[str, StepState], *handoffs: Any, execution_input: JsonValue | Value = None, **fields: Any
) -> Admission:
    """The admission of a step of agent-z that depends on steps ``a``, ``b`` ... of agent-a, agent-b ..."""
    steps = [{"id": name, "agent_id": f"agent-{name}"} for name in states]
    steps.append({"id": "z", "agent_id": "agent-z", "depends_on": [*states], **fields})
    plan = plan_of(steps, [*handoffs])
    value = execution_input if isinstance(execution_input, Value) else Value.of(execution_input or {})
    all_states = {**states, "z": StepState()}
    return admit(plan.steps[-1], all_states, PlanValues(plan, value, "flow-1", START, all_states))


GOES_ON = failed()
FAILED = failed(goes_on=False)


@pytest.mark.parametrize(
    ("join", "states", "runs"),
    [
        ("all", [], True),
        ("all", [COMPLETED, COMPLETED], True),
        ("all", [COMPLETED, GOES_ON], True),
        ("all", [COMPLETED, SKIPPED], False),
        ("all", [COMPLETED, FAILED], False),
        ("all", [SKIPPED], False),
        ("any", [], True),
        ("any", [COMPLETED, SKIPPED], True),
        ("any", [GOES_ON, SKIPPED], True),
        ("any", [SKIPPED, SKIPPED], False),
        ("any", [FAILED, SKIPPED], False),
        ("settled", [], True),
        ("settled", [SKIPPED, SKIPPED], True),
        ("settled", [FAILED], True),
        ("settled", [GOES_ON, COMPLETED], True),
    ],
)
def test_a_join_looks_at_what_has_run(join: str, states: list[StepState], runs: bool):
    admission = decided(dict(zip("abc", states, strict=False)), join=join)
    assert admission.refused_by == (None if runs else "join")
    assert bool(admission.reason) is not runs


def test_a_refused_join_names_the_steps_that_it_missed():
    admission = decided({"a": COMPLETED, "b": SKIPPED, "c": FAILED})
    assert admission.reason == "join is all, and b, c did not complete"
    assert admission.values == {"steps.b": "skipped", "steps.c": "failed"}
    assert decided({"a": SKIPPED}, join="any").reason == "join is any, and none of its dependencies has completed"


def test_a_refused_join_of_very_many_steps_stays_small():
    admission = decided({f"s{number}": SKIPPED for number in range(3000)})
    assert admission.reason.endswith("s4 and 2995 more did not complete")
    assert len(admission.values) == MAX_SHOWN_STEPS


DONE = "source_output.done = true"


@pytest.mark.parametrize(
    ("source", "conditions", "taken"),
    [
        (completed(), [], True),
        (completed(), ["completion"], True),
        (completed(), ["failure"], False),
        (completed(), ["failure", "completion"], True),
        (completed(), ["timeout", "failure"], False),
        (failed(), [], False),
        (failed(), ["failure"], True),
        (failed(), ["timeout"], False),
        (failed("timeout"), ["timeout"], True),
        (failed("timeout"), ["failure"], True),
        (failed("timeout"), ["completion"], False),
        (completed(handed={"done": True}), [DONE], True),
        (completed(handed={"done": False}), [DONE], False),
        (completed(handed={}), [DONE], False),
        (completed(), [DONE], False),
        (completed(handed={"done": True}), ["failure", DONE], False),
        (completed(handed={"done": True}), [DONE, "source_output.n > 1"], False),
        (completed(handed={"done": True, "n": 2}), ["completion", DONE, "source_output.n > 1"], True),
        (completed({"n": 1}), ["steps.a.output.n = 1"], False),
        (failed(), ["failure", "steps.a.error = null"], True),
        (failed(), ["failure", "source_output.done"], False),
        (completed(), ["input.kind = 'x' and execution.workflow_id = 'flow'"], True),
        (completed(), ["source_output.absent = null"], True),
    ],
)
def test_an_edge_lets_pass_what_its_trigger_fires_for(source: StepState, conditions: list[str], taken: bool):
    admission = decided({"a": source}, handoff(1, "agent-a", "agent-z", *conditions), execution_input={"kind": "x"})
    (decision,) = admission.handoffs
    assert decision.is_taken is taken
    assert admission.refused_by == (None if taken else "handoff")
    assert decision.reason


def test_a_handoff_tells_what_it_was_refused_for():
    edge = handoff(1, "agent-a", "agent-z", "source_output.n > 1", "source_output.done")
    admission = decided({"a": completed(handed={"n": 1, "done": True})}, edge)
    assert admission.reason == "no handoff from step a was taken: source_output.n > 1 does not hold"
    assert admission.values == {"source_output.n": 1, "source_output.done": True}
    by_event = decided({"a": failed()}, edge)
    assert by_event.handoffs[0].reason == "step a ended as failed, not by completion"


def test_one_of_several_handoffs_of_an_edge_is_enough_and_the_first_taken_one_maps():
    three = [
        handoff(3, "agent-a", "agent-z", data_mapping={"k": "third"}),
        handoff(1, "agent-a", "agent-z", "source_output.n = 0", data_mapping={"k": "first"}),
        handoff(2, "agent-a", "agent-z", "source_output.n = 1", data_mapping={"k": "second"}),
    ]
    admission = decided({"a": completed(handed={"n": 1})}, *three)
    assert admission.refused_by is None
    assert [(line.edge.handoff_id, line.is_taken) for line in admission.handoffs] == [
        ("h1", False),
        ("h2", True),
        ("h3", True),
    ]
    assert [edge.handoff_id for edge in admission.mappings] == ["h2"]


def test_every_edge_with_handoffs_has_to_let_pass_and_each_maps():
    edges = [
        handoff(1, "agent-a", "agent-z", "source_output.n = 1"),
        handoff(2, "agent-b", "agent-z", "source_output.n = 1"),
    ]
    yes, no = completed(handed={"n": 1}), completed(handed={"n": 2})
    both = decided({"a": yes, "b": yes, "c": COMPLETED}, *edges)
    assert (both.refused_by, [edge.handoff_id for edge in both.mappings]) == (None, ["h1", "h2"])
    one = decided({"a": yes, "b": no}, *edges)
    assert (one.refused_by, [line.is_taken for line in one.handoffs]) == ("handoff", [True, False])
    assert "from step b" in one.reason


def test_a_skipped_source_decides_nothing():
    edges = [handoff(1, "agent-a", "agent-z", "source_output.n = 1"), handoff(2, "agent-b", "agent-z")]
    admission = decided({"a": SKIPPED, "b": COMPLETED}, *edges, join="any")
    assert (admission.refused_by, [line.edge.handoff_id for line in admission.handoffs]) == (None, ["h2"])
    alone = decided({"a": SKIPPED}, edges[0], join="settled")
    assert (alone.refused_by, alone.handoffs) == (None, [])


def test_the_join_comes_before_the_handoffs_and_those_before_the_condition():
    never = handoff(1, "agent-a", "agent-z", "source_output.never")
    by_join = decided({"a": COMPLETED, "b": SKIPPED}, never, when="input.never")
    assert (by_join.refused_by, by_join.handoffs) == ("join", [])
    by_handoff = decided({"a": COMPLETED}, never, when="input.never")
    assert (by_handoff.refused_by, len(by_handoff.handoffs)) == ("handoff", 1)
    by_when = decided({"a": COMPLETED}, handoff(1, "agent-a", "agent-z"), when="input.never")
    assert (by_when.refused_by, [line.is_taken for line in by_when.handoffs]) == ("when", [True])


@pytest.mark.parametrize(
    ("when", "states", "runs"),
    [
        ("input.kind = 'x'", {}, True),
        ("${input.kind} = 'y'", {}, False),
        ("input.kind", {}, False),
        ("input.absent", {}, False),
        ("not input.absent", {}, True),
        ("input.absent > 1 or input.absent <= 1", {}, False),
        ("input.absent.deeper[3] = null", {}, True),
        ("${input.absent ?? 3} = 3", {}, True),
        ("steps.a.output.n = 1", {"a": COMPLETED}, True),
        ("steps.a.output = null", {"a": SKIPPED}, True),
        ("steps.a.output.n = null", {"a": SKIPPED}, True),
        ("steps.a.error = null", {"a": SKIPPED}, True),
        ("steps.a.error.message = null", {"a": SKIPPED}, True),
        ("steps.a.error = null", {"a": COMPLETED}, True),
        ("steps.a.error != null", {"a": GOES_ON}, True),
        ("steps.a.error.details.reason = 'error'", {"a": GOES_ON}, True),
        ("steps.a.output.n = null", {"a": GOES_ON}, True),
    ],
)
def test_a_condition_takes_what_is_missing_for_null(when: str, states: dict[str, StepState], runs: bool):
    admission = decided(states, when=when, join="settled", execution_input={"kind": "x"})
    assert admission.refused_by == (None if runs else "when")


def test_a_condition_that_does_not_hold_shows_what_it_read():
    states: dict[str, StepState] = {"a": completed({"n": 3, "list": [1, 2]})}
    when = "steps.a.output.n = 4 and input.absent and size(steps.a.output.list) = 2"
    admission = decided(states, when=when)
    assert admission.reason == f"{when} does not hold"
    assert admission.values == {"steps.a.output.n": 3, "input.absent": None, "steps.a.output.list": [1, 2]}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * (MAX_SHOWN_BYTES - 2), "x" * (MAX_SHOWN_BYTES - 2)),
        ("x" * MAX_SHOWN_BYTES, "x" * 200 + "…"),
        (["x" * MAX_SHOWN_BYTES], "(too large to be shown)"),
    ],
    ids=["fits", "text", "list"],
)
def test_a_large_value_is_cut_where_it_is_shown(value: JsonValue, shown: JsonValue):
    admission = decided({}, when="input.v = 1", execution_input={"v": value})
    assert admission.values == {"input.v": shown}


def test_the_values_of_one_decision_stay_small_together():
    names = [f"v{number}" for number in range(60)]
    when = " and ".join(f"input.{name} = 1" for name in names)
    admission = decided({}, when=when, execution_input=dict.fromkeys(names, "x" * (MAX_SHOWN_BYTES - 2)))
    assert admission.refused_by == "when"
    assert len(str(admission.values)) < MAX_SHOWN_TOTAL_BYTES + 2 * MAX_SHOWN_BYTES


LARGE = Value(ref=ArtifactRef(artifact_id="art", size_bytes=99_999, declared={"input.kind": "x"}))


def test_a_condition_on_a_value_that_is_not_in_memory_says_which():
    with pytest.raises(TooLargeToDecideError, match=r"input\.text.*16 KiB") as caught:
        decided({}, when="input.kind = 'x' and input.text = 'y'", execution_input=LARGE)
    assert caught.value.path.text == "input.text"
    assert decided({}, when="input.kind = 'x' or input.text = 'y'", execution_input=LARGE).refused_by is None
    in_record = StepState(status=StepStatus.COMPLETED, in_record=True)
    with pytest.raises(TooLargeToDecideError, match=r"steps\.a\.output\.n"):
        decided({"a": in_record}, when="steps.a.output.n = 1")


def test_a_handoff_decides_by_what_was_declared_of_a_large_reply():
    handed = Value(ref=ArtifactRef(artifact_id="art", size_bytes=99_999, declared={"source_output.done": True}))
    source = completed(handed=handed)
    assert decided({"a": source}, handoff(1, "agent-a", "agent-z", DONE)).refused_by is None
    with pytest.raises(TooLargeToDecideError, match="text"):
        decided({"a": source}, handoff(1, "agent-a", "agent-z", DONE, "source_output.text = 'x'"))


def test_a_large_value_that_only_another_condition_needs_is_shown_as_too_large():
    admission = decided({}, when="input.kind = 'y' and input.text = 'y'", execution_input=LARGE)
    assert admission.values == {"input.kind": "x", "input.text": "(too large to be shown)"}
