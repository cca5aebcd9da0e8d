"""What runs again and what is kept, against a model of 30 lines; and when a kept part is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import START, handoff, plan_of

from engine.domain.execution import ErrorPayload, Event, StepRecord, StepStatus, Usage, Value, micros
from engine.domain.rerun import changed_paths, check_chosen, choose_steps, reads_changed
from engine.domain.reused import differences, reused_record, reused_steps, savings
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from engine.domain.plan import ExecutionPlan

ENDS: dict[str, tuple[StepStatus, str | None]] = {
    "completed": (StepStatus.COMPLETED, None),
    "failed": (StepStatus.FAILED, "error"),
    "cancelled": (StepStatus.CANCELLED, "cancelled"),
    "lost": (StepStatus.RUNNING, None),
    "refused": (StepStatus.SKIPPED, "when"),
    "passed over": (StepStatus.SKIPPED, "operator"),
}


def record(step_id: str, end: str = "completed", execution_id: str = "e0", n: int = 1, **fields: Any) -> StepRecord:
    """The record of a call that ran a second after the one before."""
    status, reason = ENDS[end]
    at = START + timedelta(seconds=n)
    return StepRecord(
        **{
            "execution_id": execution_id,
            "run_id": f"run-{execution_id}",
            "step_id": step_id,
            "n": n,
            "token": micros(at),
            "status": status,
            "reason": reason,
            "agent_id": "agent-a",
            "attempts": 1,
            "started_at": at,
            "completed_at": at + timedelta(seconds=1),
            "output": Value.of({"by": execution_id, "step": step_id}) if end == "completed" else None,
            "error": ErrorPayload(code="agent_error", message="no") if end == "failed" else None,
            "usage": Usage(requests=1, input_tokens=10, output_tokens=5, cost_usd=0.5),
            "events": [Event.at_instant(f"step.{status.value}", at, f"{step_id}.{n}", step_id, told="then")],
            **fields,
        }
    )


@st.composite
def flows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Steps of 1 to 30, in an order that says nothing of who waits for whom."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 30)))]
    steps = [
        {
            "id": name,
            "depends_on": draw(st.lists(st.sampled_from(names[:index]), unique=True, max_size=4)) if index else [],
            "on_error": draw(st.sampled_from(["fail", "continue"])),
        }
        for index, name in enumerate(names)
    ]
    return draw(st.permutations(steps))


def some_of(steps: list[dict[str, Any]]) -> st.SearchStrategy[set[str]]:
    return st.sets(st.sampled_from([step["id"] for step in steps]), max_size=5)


def model(
    steps: list[dict[str, Any]], ends: dict[str, str], undone: set[str], chosen: set[str]
) -> tuple[set[str], set[str]]:
    """Who runs again and who is kept, in the plainest words."""
    again: set[str] = set()
    while True:
        before = len(again)
        for step in steps:
            end = ends.get(step["id"])
            stands = end in ("completed", "refused", "passed over") or (end, step["on_error"]) == ("failed", "continue")
            rests_on_it = any(name in again for name in step["depends_on"])
            if not stands or rests_on_it or step["id"] in undone | chosen:
                again.add(step["id"])
        if len(again) == before:
            return again, {step["id"] for step in steps} - again


@given(st.data())
def test_exactly_what_is_chosen_or_does_not_stand_runs_again_with_its_descendants(data: st.DataObject):
    steps = data.draw(flows())
    ends = {step["id"]: end for step in steps if (end := data.draw(st.sampled_from([*ENDS, "completed", None])))}
    undone, chosen = data.draw(some_of(steps)), data.draw(some_of(steps))
    plan = plan_of(steps)
    records = [record(name, "failed") for name in ends]
    records += [record(name, end, n=2) for name, end in ends.items()]
    records += [record(f"{name}:compensate", data.draw(st.sampled_from([*ENDS])), n=9) for name in undone]
    choice = choose_steps(plan, plan, data.draw(st.permutations(records)), chosen)
    again, kept = model(steps, ends, undone, chosen)
    order = [step["id"] for step in steps]
    assert choice.rerun == [name for name in order if name in again]
    assert choice.reused_ids == [name for name in order if name in kept]
    for one in choice.reused:
        copy = reused_record(one, "e1", "e0", START)
        assert one in records
        assert copy.output == one.output
        assert (copy.status, copy.reason, copy.error) == (one.status, one.reason, one.error)


@given(st.data())
def test_reruns_of_reruns_keep_what_each_step_last_came_to_and_say_where(data: st.DataObject):
    steps = data.draw(flows())
    plan = plan_of(steps)
    records = [record(step["id"]) for step in steps]
    for number in range(1, 5):
        execution_id, parent_id = f"e{number}", f"e{number - 1}"
        choice = choose_steps(plan, plan, records, data.draw(some_of(steps)))
        kept = [reused_record(one, execution_id, parent_id, START) for one in choice.reused]
        before = {one.step_id: one.output for one in records}
        assert {one.step_id: one.output for one in kept} == {name: before[name] for name in choice.reused_ids}
        for one in kept:
            assert one.output is not None
            assert one.output.inline == {"by": one.reused_from, "step": one.step_id}
            assert one.run_id == f"run-{one.reused_from}"
        records = [*kept, *(record(name, execution_id=execution_id) for name in choice.rerun)]
        assert {one.step_id for one in records} == {step["id"] for step in steps}
        assert all(one.execution_id == execution_id for one in records)


def chain(*ids: str, **fields: Any) -> ExecutionPlan:
    steps = [{"id": name, "depends_on": [*ids[:index]][-1:]} for index, name in enumerate(ids)]
    return plan_of(steps, **fields)


def test_steps_of_finally_always_run():
    plan = chain("a", "b", **{"finally": [{"id": "tidy", "agent_id": "agent-a"}]})
    records = [record("a"), record("b"), record("tidy")]
    choice = choose_steps(plan, plan, records, ["b"])
    assert (choice.rerun, choice.reused_ids) == (["b", "tidy"], ["a"])
    assert choose_steps(plan, plan, records).rerun == ["tidy"]


def test_a_step_of_a_list_is_kept_as_a_whole_and_its_items_say_nothing():
    plan = plan_of([{"id": "a", "foreach": {"items": "${input.list}"}}])
    items = [record("a", "failed", item=index, n=5) for index in range(3)]
    assert choose_steps(plan, plan, items).rerun == ["a"]
    whole = record("a", kind="foreach", agent_id=None)
    assert choose_steps(plan, plan, [*items, whole]).reused == [whole]


def test_a_failure_that_the_parent_went_on_from_is_not_one_that_the_newest_version_would_go_on_from():
    stops, goes_on = (plan_of([{"id": "a", "on_error": policy}]) for policy in ("fail", "continue"))
    failed = [record("a", "failed")]
    assert choose_steps(goes_on, goes_on, failed).reused_ids == ["a"]
    assert choose_steps(goes_on, stops, failed).rerun == ["a"]
    assert choose_steps(stops, goes_on, failed).rerun == ["a"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pln", "did you mean 'plan'?"),
        ("plan>agent-b", "the run added it to step plan"),
        ("plan:compensate", "the run added it to step plan"),
        ("zzz", "its steps are plan, write"),
    ],
)
def test_an_unknown_step_is_refused_with_a_hint(name: str, words: str):
    plan = chain("plan", "write")
    check_chosen(plan, ["plan", "write"])
    with pytest.raises(InvalidInputError) as refused:
        check_chosen(plan, ["plan", name])
    assert words in refused.value.message
    assert refused.value.details == {"path": "from_step", "step_id": name}


READS: dict[str, dict[str, Any]] = {
    "input_mapping": {"input_mapping": {"x": "about ${input.topic}"}},
    "output_mapping": {"output_mapping": {"x": "${output.x}", "t": "${input.topic}"}},
    "the default mapping": {"input_mapping": None},
    "the whole input": {"input_mapping": {"all": "${input}"}},
    "when": {"when": "input.topic = 'cats'"},
    "recall": {"context": {"recall": "${input.topic}"}},
    "foreach": {"foreach": {"items": "${input.topic}"}},
    "repeat_until": {"repeat_until": {"condition": "output.x = input.topic"}},
    "transform": {"type": "transform", "agent_id": "", "transform": {"x": "${input.topic}"}},
    "wait": {"type": "wait", "agent_id": "", "wait": {"seconds": "${input.topic}"}},
    "approval": {"type": "approval", "agent_id": "", "approval": {"question": "${input.topic}?"}},
    "workflow": {"type": "workflow", "agent_id": "", "workflow_id": "w", "input_mapping": {"t": "${input.topic}"}},
}


@pytest.mark.parametrize("reader", READS.values(), ids=[*READS])
def test_what_reads_input_that_changed_runs_again_with_what_rests_on_it(reader: dict[str, Any]):
    other = {"input_mapping": {"x": "${input.other ?? 1}"}}
    plan = plan_of(
        [
            {"id": "before", **other},
            {"id": "reader", "input_mapping": {}, **reader},
            {"id": "after", **other, "depends_on": ["reader"]},
        ]
    )
    records = [record("before"), record("reader"), record("after")]
    changed = changed_paths(plan, {"topic": "cats"}, {"topic": "dogs", "more": 1})
    assert choose_steps(plan, plan, records, changed_input=changed).rerun == ["reader", "after"]
    assert choose_steps(plan, plan, records, changed_input=frozenset()).rerun == []


def test_a_handoff_that_reads_the_input_counts_for_its_target():
    steps = [
        {"id": "a", "input_mapping": {}},
        {"id": "b", "agent_id": "agent-b", "input_mapping": {}, "depends_on": ["a"]},
    ]
    plan = plan_of(steps, [handoff(1, "agent-a", "agent-b", "input.topic = 'cats'")])
    changed = changed_paths(plan, {"topic": "cats"}, {"topic": "dogs"})
    assert choose_steps(plan, plan, [record("a"), record("b")], changed_input=changed).rerun == ["b"]


@pytest.mark.parametrize(
    ("path", "before", "after", "is_changed"),
    [
        ("input.a", {"a": 1}, {"a": 1, "b": 2}, False),
        ("input.a", {"a": 1}, {"a": 1.0}, True),
        ("input.a", {"a": 1}, {"a": True}, True),
        ("input.a", {"a": {"x": 1, "y": [2]}}, {"a": {"y": [2], "x": 1}}, False),
        ("input.a", {"a": None}, {}, True),
        ("input.a ?? 3", {"a": None}, {}, False),
        ("input.a ?? 3", {"a": 3}, {}, False),
        ("input.a ?? 4", {"a": 3}, {}, True),
        ("input.a[0].k", {"a": [{"k": "v"}, 1]}, {"a": [{"k": "v"}, 2]}, False),
        ("input", {"a": 1}, {"a": 1, "b": 2}, True),
    ],
)
def test_values_are_compared_where_they_are_read(path: str, before: Any, after: Any, is_changed: bool):
    plan = plan_of([{"id": "a", "input_mapping": {"x": f"${{{path}}}"}}])
    assert bool(changed_paths(plan, before, after)) is is_changed


def test_input_that_only_the_output_reads_is_a_change_of_the_output():
    plan = plan_of([{"id": "a", "input_mapping": {}}], output_mapping={"t": "${input.topic}"})
    changed = changed_paths(plan, {"topic": 1}, {"topic": 2})
    assert reads_changed(plan, changed)
    assert not reads_changed(plan, changed_paths(plan, {"topic": 1}, {"topic": 1}))
    assert choose_steps(plan, plan, [record("a")], changed_input=changed).rerun == []


BASE = {"id": "a", "input_mapping": {"x": 1}, "fallback": [{"agent_id": "agent-b"}, {"agent_id": "agent-c"}]}
CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "the name": ({"name": "Other"}, []),
    "limits": ({"timeout": 7, "total_timeout": 9, "retry_policy": {"max_retries": 9}}, []),
    "what follows a failure": ({"on_error": "continue", "compensate": {"agent_id": "agent-b"}}, []),
    "a fallback that was not called": ({"fallback": {"agent_id": "agent-c"}}, []),
    "the agent": ({"agent_id": "agent-b"}, ["steps[0].agent_id"]),
    "the input": ({"input_mapping": {"x": 2}}, ["steps[0].input_mapping"]),
    "the output": ({"output_mapping": {"x": "${output.x}"}}, ["steps[0].output_mapping"]),
    "the condition": ({"when": "input.x = 1"}, ["steps[0].when"]),
    "the join": ({"join": "any"}, ["steps[0].join"]),
    "the loop": ({"repeat_until": {"condition": "output.x = 1"}}, ["steps[0].repeat_until", "steps[0]"]),
    "the list": ({"foreach": {"items": [1]}}, ["steps[0].foreach"]),
    "the schema": ({"output_schema": {"type": "object"}}, ["steps[0].output_schema"]),
    "what is recalled": ({"context": {"recall": "x"}}, ["steps[0].context"]),
}


@pytest.mark.parametrize(("change", "paths"), CHANGES.values(), ids=[*CHANGES])
def test_a_kept_step_must_be_what_the_parent_ran(change: dict[str, Any], paths: list[str]):
    then, now = plan_of([BASE]), plan_of([{**BASE, **change}])
    found = differences(now, then, [record("a")])
    assert set(paths) <= {difference.path for difference in found}
    assert bool(paths) is bool(found)
    assert {difference.step_id for difference in found} <= {"a"}


def test_a_failure_is_kept_only_under_the_limits_that_it_failed_by():
    base = {**BASE, "on_error": "continue"}
    then, now = plan_of([base]), plan_of([{**base, "timeout": 7}])
    assert [one.path for one in differences(now, then, [record("a", "failed")])] == ["steps[0].timeout"]
    assert differences(then, then, [record("a", "failed")]) == []


def test_a_skipped_step_is_held_to_what_skipped_it():
    then = plan_of([{**BASE, "when": "input.x = 1"}])
    other_work = plan_of([{**BASE, "when": "input.x = 1", "agent_id": "agent-z", "input_mapping": {}}])
    other_condition = plan_of([{**BASE, "when": "input.x = 2"}])
    skipped = [record("a", "refused")]
    assert differences(other_work, then, skipped) == []
    assert [one.path for one in differences(other_condition, then, skipped)] == ["steps[0].when"]


def test_an_agent_registered_anew_counts_when_it_was_called():
    then = plan_of([BASE])
    config = {"function": "other:f"}
    changed = {
        agent_id: then.model_copy(
            update={"agents": {**then.agents, agent_id: then.agents[agent_id].model_copy(update={"config": config})}}
        )
        for agent_id in then.agents
    }
    assert [one.path for one in differences(changed["agent-a"], then, [record("a")])] == ["agents.agent-a"]
    assert differences(changed["agent-b"], then, [record("a")]) == []
    by_fallback = [record("a", agent_id="agent-b")]
    assert [one.path for one in differences(changed["agent-b"], then, by_fallback)] == ["agents.agent-b"]
    assert differences(changed["agent-c"], then, by_fallback) == []
    newer = then.agents["agent-a"].model_copy(update={"version": 2})
    renamed = then.model_copy(update={"agents": {**then.agents, "agent-a": newer}})
    assert differences(renamed, then, [record("a")]) == []


def test_handoffs_are_compared_by_what_they_say():
    steps = [{"id": "a"}, {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]}]
    then = plan_of(steps, [handoff(1, "agent-a", "agent-b", data_mapping={"k": "x"})])
    made_again = plan_of(steps, [handoff(2, "agent-a", "agent-b", data_mapping={"k": "x"})])
    other = plan_of(steps, [handoff(1, "agent-a", "agent-b", data_mapping={"k": "y"})])
    both = [record("a"), record("b", agent_id="agent-b")]
    assert differences(made_again, then, both) == []
    assert [(one.step_id, one.path) for one in differences(other, then, both)] == [("b", "handoffs")]


def test_a_kept_reply_must_hold_what_a_new_handoff_reads_of_it():
    steps = [{"id": "a"}, {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]}]
    then = plan_of(steps)
    now = plan_of(steps, [handoff(1, "agent-a", "agent-b", "source_output.done = true")])
    (found,) = differences(now, then, [record("a")])
    assert (found.step_id, found.path) == ("a", "steps[0]")
    assert "done" in found.why
    assert differences(then, now, [record("a")]) == []


def test_a_kept_record_costs_nothing_and_tells_once_where_it_comes_from():
    at = START + timedelta(days=1)
    one = record("a", n=3)
    copy = reused_record(one, "e1", "e0", at)
    assert (copy.execution_id, copy.reused_from, copy.usage) == ("e1", "e0", Usage())
    assert (copy.run_id, copy.n, copy.token, copy.started_at) == ("run-e0", 3, one.token, one.started_at)
    (event,) = copy.events
    assert (event.type, event.at, event.step_id) == ("step.completed", at, "a")
    assert event.data == {"told": "then", "reused_from": "e0"}
    again = reused_record(copy, "e2", "e1", at)
    assert (again.execution_id, again.reused_from) == ("e2", "e0")
    assert again.events[0].data == {"told": "then", "reused_from": "e0"}


def test_a_run_is_told_of_kept_steps_in_the_order_in_which_they_were_over():
    plan = chain("a", "b", "c", "d", output_mapping={"a": "${steps.a.output}"})
    records = [record("c", "passed over", n=3, output=Value.of(1)), record("a", n=1), record("b", "refused", n=2)]
    told = reused_steps(plan, records, START)
    assert [(one.step_id, one.status, one.n) for one in told] == [
        ("a", StepStatus.COMPLETED, 1),
        ("b", StepStatus.SKIPPED, 2),
        ("c", StepStatus.SKIPPED, 3),
    ]
    assert [one.is_supplied for one in told] == [False, False, True]
    assert [one.output for one in told] == [records[1].output, None, Value.of(1)]


def test_a_run_is_not_told_what_is_large_or_what_nobody_reads():
    plan = plan_of(
        [
            {"id": "large"},
            {"id": "unread"},
            {"id": "left", "input_mapping": {"x": "${steps.large.output.text}"}, "when": "steps.large.output.n = 1"},
        ],
        output_mapping={"x": 1},
    )
    large = record("large", output=Value.of({"text": "x" * 3000, "n": 1}))
    told = {one.step_id: one for one in reused_steps(plan, [large, record("unread")], START)}
    assert (told["large"].output, told["large"].in_record, told["large"].declared) == (None, True, {"output.n": 1})
    assert (told["unread"].output, told["unread"].in_record) == (None, False)


def test_savings_count_every_call_of_the_kept_steps_and_an_unknown_price_stays_unknown():
    first = record("a", "failed", n=1, attempts=3)
    second = record("a", n=4, attempts=2)
    waited = record("w", kind="wait", agent_id=None, usage=Usage(), n=2)
    found = savings([first, second, waited])
    assert (found.agent_calls, found.tokens, found.cost_usd) == (5, 30, 1.0)
    assert found.seconds == 4 + 1
    assert savings([waited]).cost_usd is None
