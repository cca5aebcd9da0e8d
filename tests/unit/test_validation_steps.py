"""Which fields count for which type of step, and what each of them may hold."""

from __future__ import annotations

from typing import Any

import pytest
from documents import flow, found, only_issue, step
from jsonschema import Draft202012Validator

from engine.domain.flow_rules import MAX_ITEMS, MAX_WAIT_SECONDS, RESERVED_NAMES
from engine.domain.step_rules import FIELD_TYPES, MAX_FALLBACKS, NEEDED_FIELDS
from engine.domain.validation import definition_schema, parse_definition

SCHEMA: Any = Draft202012Validator(definition_schema())
OF_TYPE: dict[str, Any] = {
    "agent": "agent-x",
    "transform": {"n": "${input.n}"},
    "wait": {"seconds": 5},
    "approval": {"question": "Publish ${input.title}?"},
    "workflow": "other",
}
VALUES: dict[str, Any] = {
    **{NEEDED_FIELDS[kind]: value for kind, value in OF_TYPE.items()},
    "version": 2,
    "fallback": {"agent_id": "agent-y"},
    "retry_policy": {"max_retries": 1},
    "total_timeout": 900,
    "output_schema": {"type": "object"},
    "context": {"recall": "x"},
    "at_most_once": False,
    "input_mapping": {"a": 1},
    "output_mapping": {"a": "${output.a}"},
    "repeat_until": {"condition": "output.done"},
    "timeout": 60,
    "foreach": {"items": [1, 2]},
}
ANY_TYPE: dict[str, Any] = {
    "name": "A step",
    "depends_on": ["first"],
    "when": "input.n > 1",
    "join": "any",
    "on_error": "ask",
    "compensate": {"agent_id": "agent-undo", "input_mapping": {"of": "${steps.a.output}"}},
}


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": "a", "type": kind, NEEDED_FIELDS[kind]: OF_TYPE[kind], **fields}


def approval(**fields: Any) -> dict[str, Any]:
    return flow(typed("approval", approval={"question": "Go on?", **fields}))


def foreach(**fields: Any) -> dict[str, Any]:
    return flow(step(foreach={"items": "${input.files}", **fields}))


def wait(**fields: Any) -> dict[str, Any]:
    return flow(typed("wait", wait=fields))


@pytest.mark.parametrize("kind", NEEDED_FIELDS)
def test_a_step_with_all_the_fields_of_its_type_is_right_and_kept_unchanged(kind: str):
    fields = {field: value for field, value in VALUES.items() if kind in FIELD_TYPES[field] and value is not False}
    named = {} if kind == "agent" else {"type": kind}
    raw = flow(step("first"), {"id": "a", **named, **fields, **ANY_TYPE})
    parsed = parse_definition(raw)
    assert parsed.issues == []
    assert parsed.definition is not None
    assert parsed.definition.to_dict() == raw
    assert SCHEMA.is_valid(raw)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in NEEDED_FIELDS for field in VALUES if kind not in FIELD_TYPES[field]]
)
def test_a_field_of_another_type_is_refused(kind: str, field: str):
    issue = only_issue(flow(typed(kind, **{field: VALUES[field]})))
    assert (issue.severity, issue.code.value, issue.path) == ("error", "unknown_field", f"steps[0].{field}")
    assert f"this one is of type {kind}; take it out" in issue.message


@pytest.mark.parametrize("kind", NEEDED_FIELDS)
def test_a_type_without_its_own_field_is_refused(kind: str):
    assert found(flow({"id": "a", "type": kind})) == [("missing", f"steps[0].{NEEDED_FIELDS[kind]}")]
    assert found(flow({"id": "a", "type": kind, NEEDED_FIELDS[kind]: None})) == [
        ("missing", f"steps[0].{NEEDED_FIELDS[kind]}")
    ]


@pytest.mark.parametrize("kind", [kind for kind in NEEDED_FIELDS if kind != "agent"])
def test_a_forgotten_type_is_named(kind: str):
    issue = only_issue(flow({"id": "a", NEEDED_FIELDS[kind]: OF_TYPE[kind]}))
    assert (issue.code.value, issue.path) == ("missing", "steps[0].type")
    assert f"needs type: {kind}" in issue.message


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (flow(typed("workflow", workflow_id="A/b")), ("invalid_id", "steps[0].workflow_id")),
        (flow(typed("workflow", version=0)), ("invalid_value", "steps[0].version")),
        (flow(typed("transform", transform=[])), ("invalid_type", "steps[0].transform")),
        (flow(step(compensate={"agent_id": "A"})), ("invalid_id", "steps[0].compensate.agent_id")),
        (flow(step(compensate={})), ("missing", "steps[0].compensate.agent_id")),
        (flow(step(fallback=[])), ("invalid_value", "steps[0].fallback")),
        (flow(step(fallback=3)), ("invalid_type", "steps[0].fallback")),
        (flow(step(fallback=[{"agent_id": "agent-y"}, 4])), ("invalid_type", "steps[0].fallback[1]")),
        (flow(step(fallback=[{"agent_id": "-"}])), ("invalid_id", "steps[0].fallback[0].agent_id")),
        (flow(step(fallback=[{"agent_id": "b"}, {"on": ["error"]}])), ("missing", "steps[0].fallback[1].agent_id")),
        (flow(step(fallback=[{"agent_id": "b", "on": []}])), ("invalid_value", "steps[0].fallback[0].on")),
        (flow(step(fallback=[{"agent_id": "b"}] * (MAX_FALLBACKS + 1))), ("limit_exceeded", "steps[0].fallback")),
        (
            flow(step(at_most_once=True, repeat_until={"condition": "output.done"})),
            ("invalid_value", "steps[0].repeat_until"),
        ),
        (flow(step(repeat_until={})), ("missing", "steps[0].repeat_until.condition")),
        (
            flow(step(repeat_until={"condition": "output.a", "max_iterations": 0})),
            ("invalid_value", "steps[0].repeat_until.max_iterations"),
        ),
        (flow(step(foreach={})), ("missing", "steps[0].foreach.items")),
        (foreach(items=3), ("invalid_type", "steps[0].foreach.items")),
        (foreach(items="input.files"), ("invalid_expression", "steps[0].foreach.items")),
        (foreach(items="files: ${input.files}"), ("invalid_expression", "steps[0].foreach.items")),
        (foreach(items="${input.files"), ("invalid_expression", "steps[0].foreach.items")),
        (foreach(items=[0, {"a": "${nothing}"}]), ("invalid_expression", "steps[0].foreach.items[1].a")),
        (foreach(items=[0] * (MAX_ITEMS + 1)), ("limit_exceeded", "steps[0].foreach.items")),
        (foreach(max_concurrency=501), ("invalid_value", "steps[0].foreach.max_concurrency")),
        (foreach(**{"as": "1a"}), ("invalid_id", "steps[0].foreach.as")),
        (foreach(**{"as": "a-b"}), ("invalid_id", "steps[0].foreach.as")),
        (foreach(**{"as": "é"}), ("invalid_id", "steps[0].foreach.as")),
        (foreach(**{"as": 1}), ("invalid_type", "steps[0].foreach.as")),
        (foreach(name="file"), ("unknown_field", "steps[0].foreach.name")),
        (foreach(tolerate=-1), ("invalid_value", "steps[0].foreach.tolerate")),
        (foreach(tolerate="101%"), ("invalid_value", "steps[0].foreach.tolerate")),
        (foreach(tolerate="10"), ("invalid_value", "steps[0].foreach.tolerate")),
        (foreach(tolerate=1.5), ("invalid_type", "steps[0].foreach.tolerate")),
        (foreach(tolerate=True), ("invalid_type", "steps[0].foreach.tolerate")),
        (wait(), ("missing", "steps[0].wait")),
        (wait(seconds=1, until="${input.at}"), ("invalid_value", "steps[0].wait.until")),
        (wait(seconds=-1), ("invalid_value", "steps[0].wait.seconds")),
        (wait(seconds=MAX_WAIT_SECONDS + 1), ("invalid_value", "steps[0].wait.seconds")),
        (wait(seconds=True), ("invalid_type", "steps[0].wait.seconds")),
        (wait(seconds="5"), ("invalid_expression", "steps[0].wait.seconds")),
        (wait(seconds="${input.n}0"), ("invalid_expression", "steps[0].wait.seconds")),
        (wait(until="tomorrow"), ("invalid_value", "steps[0].wait.until")),
        (wait(until="2025-05-01T08:00:00"), ("invalid_value", "steps[0].wait.until")),
        (wait(until="0001-01-01T00:00:00+14:00"), ("invalid_value", "steps[0].wait.until")),
        (wait(until="$${input.at}"), ("invalid_value", "steps[0].wait.until")),
        (wait(until="${input.at"), ("invalid_expression", "steps[0].wait.until")),
        (approval(question=""), ("invalid_value", "steps[0].approval.question")),
        (approval(question="${output.x}"), ("invalid_expression", "steps[0].approval.question")),
        (approval(form={}), ("unknown_field", "steps[0].approval.form")),
        (approval(schema={"type": "objct"}), ("invalid_schema", "steps[0].approval.schema.type")),
        (approval(schema=[]), ("invalid_type", "steps[0].approval.schema")),
        (approval(allowed=[]), ("invalid_value", "steps[0].approval.allowed")),
        (approval(allowed=["yes", " "]), ("invalid_value", "steps[0].approval.allowed[1]")),
        (approval(allowed=["yes", "y" * 65]), ("invalid_value", "steps[0].approval.allowed[1]")),
        (approval(allowed=["yes", "yes"]), ("duplicate_id", "steps[0].approval.allowed[1]")),
        (approval(allowed=[str(i) for i in range(21)]), ("limit_exceeded", "steps[0].approval.allowed")),
        (approval(assignees=[""]), ("invalid_value", "steps[0].approval.assignees[0]")),
        (approval(timeout=0), ("invalid_value", "steps[0].approval.timeout")),
        (approval(on_timeout="fail"), ("invalid_value", "steps[0].approval.on_timeout")),
        (approval(timeout=1, on_timeout="default"), ("missing", "steps[0].approval.default")),
        (
            approval(timeout=1, on_timeout="default", default="aprove"),
            ("invalid_value", "steps[0].approval.default"),
        ),
        (approval(timeout=1, on_timeout="escalate"), ("missing", "steps[0].approval.escalate_to")),
        (approval(fail_on=["rejct"]), ("invalid_value", "steps[0].approval.fail_on[0]")),
    ],
)
def test_what_can_not_be_used_is_found_where_it_is(raw: dict[str, Any], expected: tuple[str, str]):
    issue = only_issue(raw)
    assert (issue.severity, issue.code.value, issue.path) == ("error", *expected)
    assert parse_definition(raw).definition is None


@pytest.mark.parametrize(
    "raw",
    [
        flow(step(fallback=[{"agent_id": "agent-y", "on": ["timeout"]}, {"agent_id": "agent-z"}])),
        foreach(items=[]),
        foreach(items=[1, {"a": "${input.b}"}], tolerate=0),
        foreach(items="${steps.b.output.files ?? null}") | {"steps": [foreach()["steps"][0], step("b")]},
        foreach(tolerate="0%", max_concurrency=500),
        foreach(tolerate="100%", **{"as": "item"}),
        foreach(**{"as": "_file2"}),
        wait(seconds=0),
        wait(seconds=MAX_WAIT_SECONDS),
        wait(seconds="${input.seconds ?? 5}"),
        wait(until="2025-05-01T08:00:00Z"),
        wait(until="2025-05-01T08:00:00+02:00"),
        wait(until="${input.day}T08:00:00Z"),
        approval(allowed=["yes", "no"], fail_on=["no"], schema={"type": "object"}, assignees=["editors"]),
        approval(allowed=["yes", "no"]),
        approval(fail_on=[]),
        approval(timeout=5),
        approval(timeout=5, on_timeout="fail"),
        approval(timeout=5, on_timeout="default", default="reject"),
        approval(timeout=5, on_timeout="escalate", escalate_to=["boss"]),
        flow(budget={"seconds": 5, "on_breach": "ask"}, cleanup_timeout=5),
    ],
)
def test_what_can_be_used_is_kept_unchanged(raw: dict[str, Any]):
    parsed = parse_definition(raw)
    assert parsed.issues == []
    assert parsed.definition is not None
    again = parse_definition(parsed.definition.to_dict())
    assert (again.issues, again.definition) == ([], parsed.definition)
    assert SCHEMA.is_valid(raw)


@pytest.mark.parametrize(
    ("raw", "path", "words"),
    [
        (approval(default="approve"), "default", "set that, or take it out"),
        (approval(escalate_to=["boss"]), "escalate_to", "set that, or take it out"),
        (approval(fail_on=["approve", "reject"]), "fail_on", "never completes"),
        (approval(allowed=["reject"]), "allowed", "never completes"),
    ],
)
def test_what_never_counts_is_a_warning(raw: dict[str, Any], path: str, words: str):
    issue = only_issue(raw)
    assert (issue.severity, issue.path) == ("warning", f"steps[0].approval.{path}")
    assert words in issue.message
    assert parse_definition(raw).definition is not None


@pytest.mark.parametrize("name", [name for name in RESERVED_NAMES if name.isidentifier()])
def test_an_item_is_not_called_what_has_a_meaning_already(name: str):
    issue = only_issue(foreach(**{"as": name}))
    assert (issue.code.value, issue.path) == ("invalid_value", "steps[0].foreach.as")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (flow(step(fallback=3)), "fallback must be an object or a list, not a number."),
        (foreach(items=None, tolerate=0) | {"steps": [step(foreach={"items": {}})]}, "items must be text or a list"),
        (foreach(tolerate=[]), "tolerate must be a whole number or text, not a list."),
        (wait(seconds={}), "seconds must be a number or text, not an object."),
        (flow(step(fallback=[{"agent_id": 5}])), "agent_id must be text, not a number."),
        (flow(step(fallback=[5])), "fallback[0] must be an object, not a number."),
    ],
)
def test_where_several_types_are_taken_all_are_named_or_the_one_that_was_meant(raw: dict[str, Any], message: str):
    assert message in only_issue(raw).message


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (foreach(items="input.files"), "'${input.files}'"),
        (wait(seconds="input.n"), "'${input.n}'"),
        (approval(timeout=1, on_timeout="default", default="aprove"), "'approve'"),
        (approval(fail_on=["rejct"]), "'reject'"),
        (flow(step(type="workfow")), "'workflow'"),
    ],
)
def test_a_likely_correction_is_the_hint(raw: dict[str, Any], hint: str):
    assert only_issue(raw).hint == f"Did you mean {hint}?"


def test_a_fallback_in_a_list_says_which_reason_nothing_fails_for():
    issue = only_issue(flow(step(fallback=[{"agent_id": "b"}, {"agent_id": "c", "on": ["timeout", "timout"]}])))
    assert (issue.severity, issue.path) == ("warning", "steps[0].fallback[1].on[1]")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "approval", "agent_id": None, "approval": {"question": "?"}}, ("invalid_value", "finally[0].type")),
        ({"on_error": "ask"}, ("invalid_value", "finally[0].on_error")),
        ({"compensate": {"agent_id": "agent-y"}}, ("unknown_field", "finally[0].compensate")),
        ({"id": "a"}, ("duplicate_id", "finally[0].id")),
        ({"id": "1"}, ("invalid_id", "finally[0].id")),
        ({"agent_id": None}, ("missing", "finally[0].agent_id")),
        ({"wait": {"seconds": 1}}, ("unknown_field", "finally[0].wait")),
    ],
)
def test_a_finally_step_asks_nobody_undoes_nothing_and_is_checked_like_others(
    fields: dict[str, Any], expected: tuple[str, str]
):
    issue = only_issue(flow(**{"finally": [{**step("z"), **fields}]}))
    assert (issue.code.value, issue.path) == expected


def test_an_id_that_stands_in_steps_and_finally_is_told_where_it_stood():
    issue = only_issue(flow(step(), step("b"), **{"finally": [step("z"), step("b")]}))
    assert issue.path == "finally[1].id"
    assert issue.message == "steps[1] has the id b too; rename one."
