"""What two versions of a definition say differently."""

from __future__ import annotations

from typing import Any

import pytest

from engine.domain.definition import WorkflowDefinition
from engine.domain.diff import Change, diff_definitions

A = {"id": "a", "agent_id": "agent-a"}
B = {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]}


def defined(*steps: dict[str, Any], **fields: Any) -> WorkflowDefinition:
    return WorkflowDefinition.model_validate({"name": "Flow", "steps": [*steps], **fields})


def changes(before: WorkflowDefinition, after: WorkflowDefinition) -> list[tuple[str, str, object, object]]:
    return [(change.path, change.kind, change.before, change.after) for change in diff_definitions(before, after)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"timeout": 60}, ("steps.a.timeout", "added", None, 60)),
        ({"timeout": 60}, {}, ("steps.a.timeout", "removed", 60, None)),
        ({"timeout": 60}, {"timeout": 90}, ("steps.a.timeout", "changed", 60, 90)),
        ({"agent_id": "x"}, {"agent_id": "y"}, ("steps.a.agent_id", "changed", "x", "y")),
        (
            {"retry_policy": {"max_retries": 1, "jitter": True}},
            {"retry_policy": {"max_retries": 2, "jitter": True}},
            ("steps.a.retry_policy.max_retries", "changed", 1, 2),
        ),
        (
            {"input_mapping": {"x": {"any key": "${input.a}"}}},
            {"input_mapping": {"x": {"any key": "${input.b}"}}},
            ('steps.a.input_mapping.x["any key"]', "changed", "${input.a}", "${input.b}"),
        ),
        (
            {"input_mapping": {"list": [1, {"a": 1}]}},
            {"input_mapping": {"list": [1, {"a": 2}]}},
            ("steps.a.input_mapping.list", "changed", [1, {"a": 1}], [1, {"a": 2}]),
        ),
        (
            {"input_mapping": {"flag": True}},
            {"input_mapping": {"flag": 1}},
            ("steps.a.input_mapping.flag", "changed", True, 1),
        ),
        (
            {"foreach": {"items": "${input.a}", "as": "file"}},
            {"foreach": {"items": "${input.a}", "as": "page"}},
            ("steps.a.foreach.as", "changed", "file", "page"),
        ),
        ({"when": "true = true"}, {"when": None}, ("steps.a.when", "removed", "true = true", None)),
    ],
)
def test_a_change_is_told_by_the_name_of_its_field(before: dict[str, Any], after: dict[str, Any], expected: Any):
    assert changes(defined({**A, **before}), defined({**A, **after})) == [expected]


def test_steps_are_matched_by_id_and_not_by_place():
    first, new = {"id": "new", "agent_id": "agent-n"}, {"agent_id": "agent-n"}
    assert changes(defined(A, B), defined(first, A, B)) == [("steps.new", "added", None, new)]
    assert changes(defined(first, A, B), defined(A, B)) == [("steps.new", "removed", new, None)]


def test_a_moved_step_is_no_change():
    assert changes(defined(A, B), defined(B, A)) == []


def test_a_renamed_step_is_one_gone_and_one_new():
    assert [(path, kind) for path, kind, *_ in changes(defined(A), defined({**A, "id": "z"}))] == [
        ("steps.a", "removed"),
        ("steps.z", "added"),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"join": "all"}, {}),
        ({"depends_on": []}, {}),
        ({"fallback": {"agent_id": "f"}}, {"fallback": [{"agent_id": "f"}]}),
        ({"timeout": 60}, {"timeout": 60.0}),
        ({"input_mapping": {"a": 1, "b": 2}}, {"input_mapping": {"b": 2, "a": 1}}),
    ],
)
def test_what_means_the_same_is_no_change(one: dict[str, Any], other: dict[str, Any]):
    assert changes(defined({**A, **one}), defined({**A, **other})) == []


def test_fields_of_the_definition_and_its_finally_steps_are_compared_too():
    before = defined(A, name="Flow", tags=["x"], metadata={"owner": "a"}, **{"finally": [{"id": "f", "agent_id": "g"}]})
    after = defined(
        A,
        name="Stream",
        tags=["x", "y"],
        metadata={"owner": "b"},
        budget={"tokens": 5},
        **{"finally": [{"id": "f", "agent_id": "h"}]},
    )
    assert changes(before, after) == [
        ("name", "changed", "Flow", "Stream"),
        ("tags", "changed", ["x"], ["x", "y"]),
        ("metadata.owner", "changed", "a", "b"),
        ("budget", "added", None, {"tokens": 5}),
        ("finally.f.agent_id", "changed", "g", "h"),
    ]


def test_a_thousand_steps_with_one_change_give_one_change():
    steps = [{"id": f"s{number}", "agent_id": "agent-a"} for number in range(1000)]
    changed = [*steps[:500], {**steps[500], "timeout": 5}, *steps[501:]]
    assert diff_definitions(defined(*steps), defined(*changed)) == [Change("steps.s500.timeout", "added", None, 5)]
