"""Why steps are where they are, told from records."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import pytest

from engine import types
from engine.domain.agent import Agent
from engine.domain.definition import DefinitionVersion, WorkflowDefinition
from engine.domain.definition_reads import agent_ids_of
from engine.domain.execution import (
    Cancellation,
    ErrorPayload,
    Event,
    ExecutionRecord,
    ExecutionStatus,
    ExecutionWarning,
    StepRecord,
    StepStatus,
    Value,
    micros,
)
from engine.domain.explanation import Decision, Explanation, StepExplanation, explain
from engine.domain.explanation_text import WIDTH, explanation_text
from engine.domain.plan_compiler import compile_plan
from engine.domain.step_history import run_states, step_histories

if TYPE_CHECKING:
    from engine.domain.plan import ExecutionPlan

PAGE = (Path(__file__).parents[2] / "docs" / "reading-runs.md").read_text(encoding="utf-8")
START = datetime(2026, 11, 22, 12, tzinfo=UTC)
BROKE = ErrorPayload(code="agent_error", message="It broke", details={"reason": "rate_limited"})


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def plan_of(steps: list[dict[str, Any]], **fields: Any) -> ExecutionPlan:
    given = [{"agent_id": f"agent-{step['id']}", **step} if "type" not in step else step for step in steps]
    definition = WorkflowDefinition.model_validate({"name": "Flow", "steps": given, **fields})
    stored = DefinitionVersion(
        definition_id="flow",
        version=3,
        content_hash="sha256:d",
        definition=definition,
        created_at=START,
        updated_at=START,
    )
    agents = {
        agent_id: Agent(
            agent_id=agent_id,
            version=1,
            name=agent_id,
            kind="python",
            config={"function": "m:f"},
            content_hash="sha256:a",
            created_at=START,
            updated_at=START,
        )
        for agent_id in agent_ids_of(definition)
    }
    return compile_plan(stored, agents, [], default_max_retries=3)


def execution(status: ExecutionStatus = ExecutionStatus.RUNNING, **fields: Any) -> ExecutionRecord:
    return ExecutionRecord(
        execution_id="flow-1",
        definition_id="flow",
        version=3,
        plan_hash="sha256:p",
        status=status,
        input=Value.of({}),
        input_hash="sha256:i",
        created_at=START,
        **fields,
    )


def call(step_id: str, status: StepStatus = StepStatus.COMPLETED, second: float = 1, **fields: Any) -> StepRecord:
    given = {"started_at": at(second), "attempts": 1, "agent_id": f"agent-{step_id}", **fields}
    return StepRecord(
        execution_id="flow-1", run_id="run-1", step_id=step_id, token=micros(at(second)), status=status, **given
    )


def event(event_type: str, step_id: str | None = None, second: float = 1, **data: Any) -> Event:
    return Event.at_instant(event_type, at(second), f"{step_id}.{len(data)}", step_id, **data)


def handed(event_type: str, source: str, target: str, agent_id: str, **data: Any) -> Event:
    given = {"handoff_id": "h1", "reason": "its trigger fired", "values": {"source_output.score": 0.9}, **data}
    return event(
        event_type,
        target,
        source_step=source,
        target_step=target,
        source_agent_id=f"agent-{source}",
        target_agent_id=agent_id,
        **given,
    )


def told(
    plan: ExecutionPlan, *records: StepRecord, record: ExecutionRecord | None = None
) -> dict[str, StepExplanation]:
    explanation = explain(record or execution(), records, plan)
    assert_readable(explanation)
    return {step.step_id: step for step in explanation.steps}


def assert_readable(explanation: Explanation) -> None:
    assert all(step.because.endswith(".") and ".." not in step.because for step in explanation.steps)
    lines = explanation_text(explanation).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(line.isprintable() for line in lines)


TWO = plan_of([{"id": "a"}, {"id": "b", "depends_on": ["a"]}])


def test_a_step_ran_after_what_it_waited_for():
    steps = told(TWO, call("a"), call("b", second=2))
    assert (steps["a"].decision, steps["a"].because) == ("ran", "It ran with nothing to wait for.")
    assert (steps["b"].decision, steps["b"].because) == ("ran", "It ran after a (completed).")
    assert steps["b"].values == {"steps.a": "completed"}


def test_what_runs_now_is_not_told_as_if_it_were_over():
    steps = told(TWO, call("a", StepStatus.RUNNING))
    assert steps["a"].because == "It is running; it began with nothing to wait for."
    assert (steps["b"].decision, steps["b"].because) == ("not_reached", "It waits for a (running).")
    assert steps["b"].values == {"steps.a": "running"}
    retrying = told(TWO, call("a", StepStatus.RETRYING, attempts=2))["a"]
    assert retrying.because.startswith("It is called again after a failure; it began with nothing to wait for")


def test_a_skip_is_told_with_its_reason_and_values():
    skipped = event("step.skipped", "b", because="when", reason="input.x = 1 does not hold", values={"input.x": "two"})
    step = told(TWO, call("a"), call("b", StepStatus.SKIPPED, 2, reason="when", events=[skipped]))["b"]
    assert step.decision == "skipped"
    assert step.because == 'It was skipped: input.x = 1 does not hold (input.x = "two").'
    assert step.values == {"input.x": "two"}


def test_a_skip_without_its_event_says_no_more_than_that():
    assert told(TWO, call("b", StepStatus.SKIPPED, reason="join"))["b"].because == "It was skipped."


def test_a_condition_and_a_handoff_that_let_a_step_run_are_told():
    plan = plan_of([{"id": "a"}, {"id": "b", "depends_on": ["a"], "when": "input.x = 1", "join": "any"}])
    step = told(plan, call("a"), call("b", events=[handed("handoff.taken", "a", "b", "agent-b")]))["b"]
    assert step.because == (
        "It ran after a (completed) (join any), as its condition held (input.x = 1), by handoff h1 from a: "
        "its trigger fired (source_output.score = 0.9)."
    )
    assert step.values == {"source_output.score": 0.9, "steps.a": "completed"}


def test_a_fallback_is_told_with_what_made_it_necessary():
    gave_up = event("step.fell_back", "a", agent_id="agent-a", reason="rate_limited", message="Too many")
    records = [
        call("a", StepStatus.FAILED, attempts=3, error=BROKE, events=[gave_up]),
        call("a", second=9, n=2, agent_id="agent-f", attempts=1, prior_attempts=3),
    ]
    step = told(TWO, *records)["a"]
    assert step.decision == "fell_back"
    assert step.because == (
        "It ran with nothing to wait for; agent-a failed with rate_limited (Too many), so the next agent was called; "
        "it took 4 attempts, the last by agent-f."
    )
    between = told(TWO, records[0])["a"]
    assert (between.decision, between.status) == ("fell_back", StepStatus.RUNNING)


def test_an_escalation_is_told():
    taken = handed("handoff.taken", "a", "a", "agent-e", values={})
    step = told(TWO, call("a", n=2, agent_id="agent-e", events=[taken]))["a"]
    assert step.decision == "escalated"
    assert "handoff h1 escalated it to agent-e" in step.because
    refused = handed("handoff.refused", "a", "a", "agent-e", values={}, reason="step a ended as failed, not by timeout")
    step = told(TWO, call("a", StepStatus.FAILED, error=BROKE, reason="error", events=[refused]))["a"]
    assert step.decision == "failed"
    assert "handoff h1 to agent-e was refused: step a ended as failed, not by timeout" in step.because


def test_what_happened_to_thousands_of_items_is_told_in_a_few_words():
    plan = plan_of([{"id": "a", "foreach": {"items": "${input.list}"}}])
    items = [
        call(
            "a",
            second=item,
            item=item,
            n=2,
            agent_id="agent-e",
            events=[
                event("step.fell_back", "a", item, item=item, agent_id="agent-a", reason="error", message="It broke"),
                Event.at_instant(
                    "handoff.taken", at(item), "a", "a", source_step="a", target_step="a", handoff_id="h1", values={}
                ),
            ],
        )
        for item in range(1000)
    ]
    step = told(plan, *items, call("a", second=2000, kind="foreach", agent_id=None))["a"]
    assert step.decision == "ran"
    assert "1000 items: 1000 completed; 1000 calls for items fell back to the next agent" in step.because
    assert "995 more times so (escalation)" in step.because
    assert len(step.because) < 1000


def test_a_failure_is_told_with_attempts_reason_and_message():
    step = told(TWO, call("a", StepStatus.FAILED, attempts=4, error=BROKE, reason="rate_limited"))["a"]
    assert (step.decision, step.because) == ("failed", "It failed after 4 attempts with rate_limited: It broke.")
    assert step.values == {"attempts": 4, "error.code": "agent_error", "error.details.reason": "rate_limited"}
    plan = plan_of([{"id": "a", "on_error": "continue"}])
    assert told(plan, call("a", StepStatus.FAILED, error=BROKE))["a"].because.endswith("; its on_error is continue.")


def test_steps_behind_a_failure_are_not_reached_and_say_why():
    record = execution(
        ExecutionStatus.FAILED, error=ErrorPayload(code="agent_error", message="Step a failed: It broke")
    )
    plan = plan_of([{"id": "a"}, {"id": "b", "depends_on": ["a"]}, {"id": "c", "depends_on": ["b"]}])
    steps = told(plan, call("a", StepStatus.FAILED, error=BROKE), record=record)
    ended = "the execution failed (Step a failed: It broke)"
    assert steps["b"].because == f"It was not reached: {ended}; it depends on a (failed)."
    assert steps["c"].because == f"It was not reached: {ended}; it depends on b (not begun)."
    assert (steps["c"].decision, steps["c"].values) == ("not_reached", {"steps.b": "pending"})


def test_a_cancelled_step_says_how_the_execution_ended():
    record = execution(ExecutionStatus.CANCELLED, cancel=Cancellation(reason="too dear", by="anna"))
    steps = told(TWO, call("a", StepStatus.CANCELLED), record=record)
    assert steps["a"].decision == "cancelled"
    assert steps["a"].because == (
        "It was cancelled while it was at work, and the execution was cancelled by anna (too dear)."
    )
    before = told(TWO, call("a", StepStatus.CANCELLED, started_at=None), record=record)["a"]
    assert before.because.startswith("It was cancelled before it was called")


def test_a_followed_handoff_adds_a_step_that_names_it():
    taken = handed("handoff.taken", "a", "a>agent-t", "agent-t")
    refused = handed("handoff.refused", "a", "a>agent-u", "agent-u", handoff_id="h2", reason="limit", values={})
    steps = told(TWO, call("a", events=[taken, refused]), call("a>agent-t", second=2))
    assert list(steps) == ["a", "b", "a>agent-t"]
    assert steps["a>agent-t"].decision == "handed_over"
    assert steps["a>agent-t"].because == (
        "Step a handed over to agent-t by handoff h1: its trigger fired (source_output.score = 0.9)."
    )
    assert steps["a>agent-t"].values == {"source_output.score": 0.9}
    assert "handoff h2 to agent-u was refused: limit" in steps["a"].because
    before = told(TWO, call("a", events=[taken, refused]))
    assert list(before) == ["a", "b", "a>agent-t"]
    assert before["a>agent-t"].decision == "not_reached"
    assert before["a>agent-t"].because.startswith("Step a handed over to agent-t by handoff h1")
    assert before["a>agent-t"].because.endswith("; nothing is recorded of it yet.")


def test_what_was_undone_and_what_undid_it_are_told():
    record = execution(ExecutionStatus.FAILED, error=BROKE)
    steps = told(TWO, call("a"), call("a:compensate", second=2), record=record)
    assert steps["a:compensate"].decision == "compensated"
    assert steps["a:compensate"].because == ("It undoes step a, which had completed; the execution failed (It broke).")
    assert steps["a"].because.endswith("; it was undone by a:compensate.")
    failed = told(TWO, call("a"), call("a:compensate", StepStatus.FAILED, error=BROKE), record=record)["a:compensate"]
    assert failed.decision == "failed"


def test_finally_steps_are_told_apart():
    plan = plan_of(
        [{"id": "a"}],
        **{"finally": [{"id": "f", "agent_id": "x"}, {"id": "g", "agent_id": "x", "depends_on": ["f"]}]},
    )
    open_steps = told(plan, call("a", StepStatus.RUNNING))
    assert open_steps["f"].because == "It runs when the execution ends."
    assert open_steps["g"].because == "It runs when the execution ends, after f (not begun)."
    steps = told(plan, call("a"), call("f", second=2), call("g", second=3), record=execution(ExecutionStatus.COMPLETED))
    assert [steps[name].decision for name in "afg"] == ["ran", "finally", "finally"]
    assert steps["g"].because == "It ran at the end of the execution, after f (completed)."


def test_a_gate_is_told_while_it_is_open_and_when_it_is_answered():
    plan = plan_of([{"id": "ok", "type": "approval", "approval": {"question": "Ship?"}}])
    opened = event("gate.opened", "ok", gate_id="ok.1", question="Ship?", kind="approval")
    waiting = call("ok", StepStatus.WAITING, kind="approval", agent_id=None, attempts=0)
    step = told(plan, waiting, record=execution(ExecutionStatus.WAITING, events=[opened]))["ok"]
    assert (step.decision, step.status) == ("waited", StepStatus.WAITING)
    assert step.because == "It waits; it began with nothing to wait for; gate ok.1 was opened."
    answered = event("gate.answered", "ok", 5, gate_id="ok.1", answer="approve", by="anna")
    done = call("ok", kind="approval", agent_id=None, attempts=0, second=5)
    step = told(plan, done, record=execution(events=[opened, answered]))["ok"]
    assert step.decision == "waited"
    assert step.because.endswith("; gate ok.1 was answered approve by anna.")
    assert step.values == {"gate_id": "ok.1", "answer": "approve", "by": "anna"}


def test_a_failed_step_that_asks_is_waiting_until_it_is_answered():
    opened = event("gate.opened", "a", gate_id="a.1", question="Retry?", kind="ask")
    failed = call("a", StepStatus.FAILED, error=BROKE, reason="error")
    step = told(TWO, failed, record=execution(ExecutionStatus.WAITING, events=[opened]))["a"]
    assert (step.decision, step.status) == ("waited", StepStatus.WAITING)
    answered = event("gate.answered", "a", 5, gate_id="a.1", answer="skip", by="anna")
    skipped = event("step.skipped", "a", 5, because="operator", reason="skipped by anna", values={})
    records = [failed, call("a", StepStatus.SKIPPED, 5, reason="operator", events=[skipped])]
    step = told(TWO, *records, record=execution(events=[opened, answered]))["a"]
    assert step.decision == "skipped"
    assert step.because == "It was skipped by anna; gate a.1 was answered skip by anna."


def test_turns_and_items_are_counted():
    plan = plan_of(
        [
            {"id": "loop", "repeat_until": {"condition": "output.done = true", "max_iterations": 3}},
            {"id": "each", "foreach": {"items": "${input.list}"}},
        ]
    )
    items = [
        call("each", StepStatus.FAILED if item == 1 else StepStatus.COMPLETED, item=item, second=item)
        for item in range(3)
    ]
    whole = call("each", second=9, kind="foreach", agent_id=None)
    capped = ExecutionWarning(code="max_iterations", message="The cap was reached", step_id="loop")
    record = execution(ExecutionStatus.COMPLETED, warnings=[capped])
    turns = [call("loop", n=n, iteration=n, second=n) for n in (1, 2, 3)]
    steps = told(plan, *turns, *items, whole, record=record)
    assert steps["each"].because == "It ran with nothing to wait for; 3 items: 2 completed, 1 failed."
    assert "turn 3 of repeating until output.done = true" in steps["loop"].because
    assert steps["loop"].because.endswith("its last turn was the last one allowed.")
    assert told(plan, *items)["each"].status is StepStatus.RUNNING


def test_a_reused_outcome_names_the_execution_that_made_it():
    step = told(TWO, call("a", reused_from="flow-0"), record=execution(rerun_of="flow-0"))["a"]
    assert (step.decision, step.values) == ("reused", {"execution_id": "flow-0"})
    assert step.because == "Its outcome was taken over from execution flow-0."


def test_of_calls_at_one_address_the_greatest_token_stands():
    claimed = call("a", StepStatus.RETRYING, 1)
    steps = told(TWO, call("a", second=5), claimed)
    assert steps["a"].status is StepStatus.COMPLETED


def test_the_text_tells_how_the_execution_stands_and_folds_what_was_not_reached():
    plan = plan_of([{"id": f"s{number}", "depends_on": [f"s{number - 1}"] if number else []} for number in range(1000)])
    spent = event("budget.exceeded", None, limit="tokens", used=1200, allowed=1000)
    record = execution(
        ExecutionStatus.FAILED,
        error=ErrorPayload(code="budget_exceeded", message="The budget of tokens is spent"),
        events=[spent],
        rerun_of="flow-0",
    )
    text = explanation_text(explain(record, [call("s0")], plan))
    lines = text.splitlines()
    assert lines[:3] == [
        "flow-1 (version 3 of flow) is failed",
        "The execution failed (The budget of tokens is spent).",
        "It is a rerun of flow-0.",
    ]
    assert "budget.exceeded: limit tokens, used 1200, allowed 1000" in lines[3]
    assert " ✓ s0  ran          It ran with nothing to wait for." in lines
    assert any(line.startswith("Not reached, 999 steps: s1, s2") for line in lines)
    assert text.endswith("… 949 more")
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("status", list(ExecutionStatus))
def test_an_execution_of_which_no_step_is_recorded_is_told_too(status: ExecutionStatus):
    steps = told(TWO, record=execution(status))
    assert {step.decision for step in steps.values()} == {"not_reached"}


def test_states_for_a_drawing_hold_what_the_run_added():
    records = [call("a"), call("a>agent-t", StepStatus.RUNNING, 2), call("a:compensate", second=3)]
    record = execution()
    run = run_states(record, step_histories(record, records), {"a", "b"})
    assert run.steps["a"] is StepStatus.COMPLETED
    assert [(step.id, step.kind, step.source, step.status) for step in run.added] == [
        ("a>agent-t", "handoff", "a", StepStatus.RUNNING),
        ("a:compensate", "compensation", "a", StepStatus.COMPLETED),
    ]
    told_of = [handed(f"handoff.{end}", "a", f"a>{agent}", agent) for end, agent in (("taken", "t"), ("refused", "u"))]
    run = run_states(record, step_histories(record, [call("a", events=told_of)]), {"a", "b"})
    assert [(step.id, step.agent_id, step.status) for step in run.added] == [("a>t", "t", StepStatus.PENDING)]


def test_the_page_names_every_decision_and_shows_what_is_told():
    decisions = list(get_args(Decision))
    assert re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)[-len(decisions) :] == decisions
    assert list(get_args(get_type_hints(types.StepExplanation)["decision"])) == decisions
    plan = plan_of(
        [
            {"id": "plan", "agent_id": "agent-planner"},
            {"id": "bug", "depends_on": ["plan"]},
            {"id": "build", "depends_on": ["plan"]},
            {"id": "ship", "depends_on": ["build"]},
        ]
    )
    broke = ErrorPayload(code="agent_error", message="no tools")
    gave_up = event(
        "step.fell_back", "plan", agent_id="agent-planner", reason="rate_limited", message="Too many requests"
    )
    reason = "${steps.plan.output.kind} = 'bug' does not hold"
    values = {"steps.plan.output.kind": "feature"}
    records = [
        call("plan", StepStatus.FAILED, attempts=3, error=BROKE, events=[gave_up]),
        call("plan", second=2, n=2, agent_id="agent-fallback"),
        call("bug", StepStatus.SKIPPED, 3, events=[event("step.skipped", "bug", reason=reason, values=values)]),
        call("build", StepStatus.FAILED, 4, attempts=4, error=broke, reason="error"),
    ]
    failed = ErrorPayload(code="agent_error", message="Step build failed: no tools")
    record = execution(ExecutionStatus.FAILED, error=failed)
    record = record.model_copy(update={"execution_id": "flow-01k3v9m2rj7c4t0q8d5xw6yzab", "version": 1})
    assert f"{explanation_text(explain(record, records, plan))}\n```" in PAGE
