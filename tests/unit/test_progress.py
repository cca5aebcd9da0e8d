"""The reducer against a model of its own: what runs, what takes a failed call's place, how it ends, what it carries."""

from __future__ import annotations

import random
import sys
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import START, handoff, plan_of

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
from engine.domain.messages import MAX_PAYLOAD_BYTES, StepOutcome
from engine.domain.progress import MAX_PENDING_CALLS, CallFailure, ExecutionProgress, InvokeAgent, RunFacts
from engine.domain.unit_work import MAX_RESUMES

if TYPE_CHECKING:
    from types import FrameType

    from engine.domain.execution import Event
    from engine.domain.plan import ExecutionPlan

NOW = START + timedelta(minutes=1)
FACTS = RunFacts("flow-1", "run-1", START, START)


def progress_of(steps: list[dict[str, Any]], execution_input: object = None, **fields: Any) -> ExecutionProgress:
    return ExecutionProgress(plan_of(steps, **fields), Value.of(execution_input or {}), FACTS)  # pyright: ignore[reportArgumentType] # tests pass JSON


def outcome(output: Any = None, **fields: Any) -> StepOutcome:
    value = output if isinstance(output, Value) else Value.of(output)
    return StepOutcome(output=value, started_at=NOW, completed_at=NOW, token=1, **fields)


def failure(kind: Any = "agent", reason: str = "error", attempts: int = 1, **fields: Any) -> CallFailure:
    return CallFailure(kind, reason, f"it was {reason}", attempts, **fields)


def complete(progress: ExecutionProgress, action: InvokeAgent, output: Any = None, **fields: Any) -> None:
    progress.apply_outcome(action.address, outcome(output, **fields), action.call)


def fail(progress: ExecutionProgress, action: InvokeAgent, *args: Any, **fields: Any) -> InvokeAgent | None:
    """Let a call fail; return the call that takes its place, if one does."""
    progress.apply_failure(action.address, failure(*args, **fields), action.call, NOW)
    return replacement(progress)


def replacement(progress: ExecutionProgress) -> InvokeAgent | None:
    work = progress.work
    if work.resumed:
        return work.resumed.popleft()
    if not work.again:
        return None
    action = work.begin(work.again.popleft(), NOW)
    assert isinstance(action, InvokeAgent)
    return action


def ids(actions: list[InvokeAgent]) -> list[str]:
    return [action.step.id for action in actions]


def chain(length: int) -> list[dict[str, Any]]:
    return [{"id": f"s{n}", "depends_on": [f"s{n - 1}"] if n else []} for n in range(length)]


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


def ids_of(steps: list[dict[str, Any]]) -> list[str]:
    return [step["id"] for step in steps]


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


def end_by(way: str, progress: ExecutionProgress, action: InvokeAgent) -> None:
    match way:
        case "cancel":
            progress.cancel(Cancellation(reason="stop", at=NOW))
        case "time_out":
            progress.time_out()
        case _:
            fail(progress, action)


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


@dataclass
class Script:
    """How a random execution goes: its steps, and how each of its logical calls ends."""

    steps: list[dict[str, Any]]
    ends: dict[str, list[str]]
    """Step id to the end of each agent's call: ok, error or timeout."""
    lost: dict[str, int]
    seed: int


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    count = draw(st.integers(1, 8))
    steps: list[dict[str, Any]] = []
    ends: dict[str, list[str]] = {}
    lost: dict[str, int] = {}
    for number in range(count):
        step_id = f"s{number}"
        below = draw(st.lists(st.sampled_from([f"s{n}" for n in range(number)]), unique=True)) if number else []
        by_reference = draw(st.booleans())
        step: dict[str, Any] = {"id": step_id}
        if by_reference:
            step["input_mapping"] = {name: f"${{steps.{name}.output.by}}" for name in below}
        else:
            step["depends_on"] = below
        has_fallback = draw(st.booleans())
        if has_fallback:
            step["fallback"] = {"agent_id": "agent-b"}
        steps.append(step)
        endings = st.sampled_from(["ok", "ok", "ok", "error", "timeout"])
        ends[step_id] = [draw(endings) for _ in range(1 + has_fallback)]
        lost[step_id] = draw(st.integers(0, MAX_RESUMES))
    order = draw(st.permutations(steps))
    return Script(order, ends, lost, draw(st.integers(0, 2**32)))


def dependencies(step: dict[str, Any]) -> list[str]:
    return step.get("depends_on") or list(step.get("input_mapping", {}))


def model(script: Script) -> tuple[str, dict[str, str]]:
    """How it ends, and what each step's status is, when calls end in the order of a random choice."""
    choice = random.Random(script.seed)
    status = {step["id"]: "pending" for step in script.steps}
    calls = dict.fromkeys(status, 0)
    lost = dict(script.lost)
    failed = False
    while True:
        if not failed:
            for step in script.steps:
                if status[step["id"]] == "pending" and all(status[d] == "completed" for d in dependencies(step)):
                    status[step["id"]] = "running"
        running = [step["id"] for step in script.steps if status[step["id"]] == "running"]
        if not running:
            return ("failed" if failed else "completed"), status
        step_id = choice.choice(running)
        if failed:
            status[step_id] = "cancelled"
        elif lost[step_id]:
            lost[step_id] -= 1
        else:
            end = script.ends[step_id][calls[step_id]]
            calls[step_id] += 1
            if end == "ok":
                status[step_id] = "completed"
            elif calls[step_id] == len(script.ends[step_id]):
                status[step_id] = "failed"
                failed = True


def reduced(script: Script, *, carry_at: frozenset[int] = frozenset()) -> ExecutionProgress:
    """Run the reducer as the workflow does, carrying over to a new run after the events with these numbers."""
    choice = random.Random(script.seed)
    plan = plan_of(script.steps)
    progress = ExecutionProgress(plan, Value.of({}), FACTS)
    running: dict[str, InvokeAgent] = {}
    calls = dict.fromkeys(script.ends, 0)
    lost = dict(script.lost)
    events = 0
    draining = False
    while True:
        if not draining:
            running |= {action.step.id: action for action in progress.next_actions(NOW)}
        assert set(running) == {step_id for step_id, step in progress.steps.items() if step.status == "running"}
        if progress.is_over:
            return progress
        if draining and not running:
            wire = CarriedState.model_validate_json(progress.carry().model_dump_json())
            progress = ExecutionProgress(plan, Value.of({}), replace(FACTS, run_id=f"run-{events}"), wire)
            draining = False
            continue
        step_id = choice.choice([step["id"] for step in script.steps if step["id"] in running])
        action = running.pop(step_id)
        again: InvokeAgent | None = None
        if progress.ending is not None:
            fail(progress, action, "cancelled", "cancelled", 0)
        elif lost[step_id]:
            lost[step_id] -= 1
            again = fail(progress, action, "lost", "timeout", 1)
            assert again is not None
        else:
            end = script.ends[step_id][calls[step_id]]
            calls[step_id] += 1
            if end == "ok":
                complete(progress, action, {"by": step_id}, usage=Usage(requests=1))
            else:
                lost[step_id] = 0
                again = fail(progress, action, "agent" if end == "error" else "timeout", end)
        if again is not None:
            running[step_id] = again
        events += 1
        draining = draining or events in carry_at


@settings(deadline=None, max_examples=300)
@given(scripts())
def test_random_executions_go_as_the_model_says(script: Script):
    progress = reduced(script)
    ending, statuses = model(script)
    assert progress.ending is not None
    assert progress.ending.status.value == ending
    assert {step_id: step.status.value for step_id, step in progress.steps.items()} == statuses
    seen = [record.step_id for record in progress.decided if record.status is StepStatus.CANCELLED]
    assert sorted(seen) == sorted(step_id for step_id, status in statuses.items() if status == "cancelled")


@settings(deadline=None, max_examples=300)
@given(scripts(), st.lists(st.booleans(), min_size=25, max_size=25))
def test_an_execution_that_is_carried_over_ends_as_one_that_is_not(script: Script, carries: list[bool]):
    carry_at = frozenset(number for number, is_carried in enumerate(carries, start=1) if is_carried)
    whole = reduced(script)
    carried = reduced(script, carry_at=carry_at)
    ending = carried.ending.status if carried.ending else ExecutionStatus.COMPLETED
    assert whole.ending is not None
    assert ending is whole.ending.status
    if ending is ExecutionStatus.COMPLETED:
        assert {step.status for step in carried.steps.values()} == {StepStatus.COMPLETED}
        assert carried.output_input() == whole.output_input()
        assert carried.usage == whole.usage
        assert {s: step.n for s, step in carried.steps.items()} == {s: step.n for s, step in whole.steps.items()}


# Deciding: a second model, of what DESIGN section 5 says about joins, handoffs, conditions and failures.

WHENS: dict[str, str] = {
    "always": "input.flag",
    "never": "input.nothing = 1",
    "value": "steps.{0}.output.v = 1",
    "error": "steps.{0}.error != null",
    "none": "steps.{0}.output = null",
}
TRIGGERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "completion": ("completion",),
    "failure": ("failure",),
    "timeout": ("timeout",),
    "either": ("failure", "completion"),
    "value": ("source_output.v = 1",),
    "flagged": ("failure", "completion", "input.flag"),
    "barred": ("completion", "input.nothing"),
}
AGENTS = ("agent-a", "agent-b", "agent-c")
PAD = "x" * 3000
"""Makes an output too large to be carried over in memory."""


@dataclass
class Decisions:
    """A random execution that decides: its steps, the handoffs between agents and how each call ends."""

    steps: list[dict[str, Any]]
    """With ``when`` as a pair of its kind and the step it reads."""
    pairs: list[tuple[str, str, str]]
    """Source agent, target agent and kind of trigger."""
    ends: dict[str, str]
    """one (``{v: 1}``), two (``{v: 2}``, padded), error or timeout."""
    on_failure: str
    seed: int

    def plan(self) -> ExecutionPlan:
        steps = [dict(step) for step in self.steps]
        for step in steps:
            kind, subject = step.pop("kind")
            if kind is not None:
                step["when"] = WHENS[kind].format(subject)
        handoffs = [
            handoff(number, source, target, *TRIGGERS[kind]) for number, (source, target, kind) in enumerate(self.pairs)
        ]
        return plan_of(steps, handoffs, on_failure=self.on_failure)


@st.composite
def deciding(draw: st.DrawFn) -> Decisions:
    count = draw(st.integers(1, 12))
    steps: list[dict[str, Any]] = []
    for number in range(count):
        below = draw(st.lists(st.sampled_from(range(number)), unique=True, max_size=4)) if number else []
        subjects = [f"s{n}" for n in below]
        kinds = [None, None, "always", "never", *(("value", "error", "none") if subjects else ())]
        kind = draw(st.sampled_from(kinds))
        subject = draw(st.sampled_from(subjects)) if subjects else ""
        is_named = kind not in ("value", "error", "none") or draw(st.booleans())
        steps.append(
            {
                "id": f"s{number}",
                "agent_id": draw(st.sampled_from(AGENTS)),
                "depends_on": subjects if is_named else [name for name in subjects if name != subject],
                "join": draw(st.sampled_from(["all", "all", "any", "settled"])),
                "on_error": draw(st.sampled_from(["continue", "continue", "fail"])),
                "kind": (kind, subject),
            }
        )
    pair = st.tuples(st.sampled_from(AGENTS), st.sampled_from(AGENTS), st.sampled_from([*TRIGGERS]))
    pairs = draw(st.lists(pair.filter(lambda drawn: drawn[0] != drawn[1]), max_size=5))
    endings = st.sampled_from(["one", "one", "one", "two", "error", "timeout"])
    ends = {step["id"]: draw(endings) for step in steps}
    on_failure = draw(st.sampled_from(["cancel", "finish"]))
    return Decisions(draw(st.permutations(steps)), pairs, ends, on_failure, draw(st.integers(0, 2**32)))


class Reference:
    """What DESIGN says, by looking at every step again after every event."""

    def __init__(self, script: Decisions) -> None:
        self.script = script
        self.status = {step["id"]: "pending" for step in script.steps}
        self.agent = {step["id"]: step["agent_id"] for step in script.steps}
        self.failed = False

    def needs(self, step: dict[str, Any]) -> set[str]:
        kind, subject = step["kind"]
        return {*step["depends_on"], *([subject] if kind in ("value", "error", "none") else [])}

    def has(self, name: str, kind: str) -> bool:
        """Whether a settled step's value, error or null output is there; at this point failed is passed over."""
        is_one = self.status[name] == "completed" and self.script.ends[name] == "one"
        return {"value": is_one, "error": self.status[name] == "failed", "none": self.status[name] != "completed"}[kind]

    def fires(self, source: str, kind: str) -> bool:
        done, end = self.status[source] == "completed", self.script.ends[source]
        match kind:
            case "default" | "completion":
                return done
            case "failure":
                return not done
            case "timeout":
                return end == "timeout"
            case "value":
                return done and end == "one"
            case "barred":
                return False
            case _:
                return True

    def runs(self, step: dict[str, Any]) -> bool:
        needs = self.needs(step)
        have_run = [name for name in needs if self.status[name] != "skipped"]
        wanted = {"all": len(needs), "any": min(len(needs), 1), "settled": 0}[step["join"]]
        if len(have_run) < wanted:
            return False
        for source in have_run:
            pair = (self.agent[source], step["agent_id"])
            kinds = [kind for *of, kind in self.script.pairs if tuple(of) == pair]
            if kinds and not any(self.fires(source, kind) for kind in kinds):
                return False
        kind, subject = step["kind"]
        return kind in (None, "always") or (kind != "never" and self.has(subject, kind))

    def dispatch(self) -> None:
        over, news = ("completed", "failed", "skipped"), True
        while news and not self.failed:
            news = False
            for step in self.script.steps:
                if self.status[step["id"]] == "pending" and all(self.status[n] in over for n in self.needs(step)):
                    self.status[step["id"]] = "running" if self.runs(step) else "skipped"
                    news = True

    def run(self) -> str:
        choice = random.Random(self.script.seed)
        while True:
            self.dispatch()
            running = [step for step in self.script.steps if self.status[step["id"]] == "running"]
            if not running:
                return "failed" if self.failed else "completed"
            step = choice.choice(running)
            if self.failed and self.script.on_failure == "cancel":
                self.status[step["id"]] = "cancelled"
                continue
            fails = self.script.ends[step["id"]] in ("error", "timeout")
            self.status[step["id"]] = "failed" if fails else "completed"
            self.failed = self.failed or (fails and step["on_error"] == "fail")


OVER = ("completed", "failed", "skipped")


def decide(script: Decisions, carry_at: frozenset[int] = frozenset()) -> tuple[ExecutionProgress, list[str]]:
    """Run the reducer as the workflow does; also return the ids of all decided events that it made known."""
    choice = random.Random(script.seed)
    plan = script.plan()
    progress = ExecutionProgress(plan, Value.of({"flag": True}), FACTS)
    running: dict[str, InvokeAgent] = {}
    told: list[str] = []
    events, draining = 0, False
    while not progress.is_over:
        for action in [] if draining else progress.next_actions(NOW):
            running[action.step.id] = action
            told += told_by(action)
            assert all(progress.steps[name].status.value in OVER for name in action.step.depends_on)
        if progress.is_over:
            break
        if not running:
            assert draining
            wire = CarriedState.model_validate_json(progress.carry().model_dump_json())
            progress = ExecutionProgress(plan, Value.of({"flag": True}), replace(FACTS, run_id=f"run-{events}"), wire)
            draining = False
            continue
        action = running.pop(choice.choice([step["id"] for step in script.steps if step["id"] in running]))
        end = script.ends[action.step.id]
        if progress.ending is not None:
            assert fail(progress, action, "cancelled", "cancelled", 0) is None
        elif end in ("error", "timeout"):
            assert fail(progress, action, "agent" if end == "error" else "timeout", end) is None
        else:
            output = {"v": 1} if end == "one" else {"v": 2, "pad": PAD}
            complete(progress, action, output, handed=Value.of({"v": output["v"]}))
        events += 1
        draining = draining or events in carry_at
    told += [event.id for record in progress.take_decided() for event in record.events]
    return progress, told


def told_by(action: InvokeAgent) -> list[str]:
    return [event.id for event in [*action.call.events, *(e for r in action.call.decided for e in r.events)]]


def handoff_lines(script: Decisions, reference: Reference) -> int:
    """How many handoffs were decided: of each step whose join let pass, those from sources that were not skipped."""
    count = 0
    for step in script.steps:
        needs = reference.needs(step)
        have_run = [name for name in needs if reference.status[name] in ("completed", "failed")]
        wanted = {"all": len(needs), "any": min(len(needs), 1), "settled": 0}[step["join"]]
        if reference.status[step["id"]] in ("pending", "cancelled") or len(have_run) < wanted:
            continue
        count += sum(
            (reference.agent[name], step["agent_id"]) == (s, t) for name in have_run for s, t, _ in script.pairs
        )
    return count


@settings(deadline=None, max_examples=200)
@given(deciding())
def test_random_decisions_go_as_the_design_says(script: Decisions):
    reference = Reference(script)
    ending = reference.run()
    progress, told = decide(script)
    assert progress.ending is not None
    assert {name: state.status.value for name, state in progress.steps.items()} == reference.status
    assert progress.ending.status.value == ending
    assert progress.running == 0
    if ending == "completed":
        assert {state.status.value for state in progress.steps.values()} <= set(OVER)
        assert len({event for event in told if "handoff." in event}) == handoff_lines(script, reference)
    skipped = [name for name, state in progress.steps.items() if state.status is StepStatus.SKIPPED]
    assert len({event for event in told if "step.skipped" in event}) == len(skipped)


@settings(deadline=None, max_examples=200)
@given(deciding(), st.frozensets(st.integers(1, 12), max_size=6))
def test_a_new_run_decides_as_the_old_one_would_have(script: Decisions, carry_at: frozenset[int]):
    # A run that lets its calls end before it carries over changes which call a failure catches; that is no decision.
    script.steps = [{**step, "on_error": "continue"} for step in script.steps]
    whole, told = decide(script)
    carried, told_again = decide(script, carry_at)
    assert {name: state.status for name, state in carried.steps.items()} == {
        name: state.status for name, state in whole.steps.items()
    }
    assert carried.ending is not None
    assert carried.ending == whole.ending
    assert set(told_again) == set(told)
    assert sorted(warning.message for warning in carried.warnings) == sorted(w.message for w in whole.warnings)
    assert carried.output_input().inline == whole.output_input().inline or carried.output_input().operands


# Deciding: one thing at a time.


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
