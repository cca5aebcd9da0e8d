"""Every kind of issue has a document that has it, and a right document has none."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from documents import flow, found, only_issue, step
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain.definition import (
    Approval,
    Budget,
    Compensation,
    Fallback,
    ForEach,
    RepeatUntil,
    Step,
    StepDefaults,
    Wait,
    WorkflowDefinition,
)
from engine.domain.expressions import MAX_TEMPLATE_NODES
from engine.domain.issues import IssueCode, nearest_word
from engine.domain.validation import (
    MAX_STEPS,
    agent_issues,
    check_input,
    definition_schema,
    parse_definition,
    workflow_issues,
)

ROOT = Path(__file__).parents[2]

API_EXAMPLE: dict[str, Any] = {
    "name": "Feature Implementation Workflow",
    "description": "Workflow for implementing new features",
    "steps": [
        {
            "id": "step1",
            "name": "Architecture Planning",
            "agent_id": "agent-project-architect",
            "input_mapping": {"feature_request": "${input.feature_request}"},
            "output_mapping": {"architecture_plan": "${output.plan}"},
            "timeout": 60,
            "retry_policy": {"max_retries": 3, "backoff_factor": 2},
            "fallback": {"agent_id": "agent-fallback"},
        },
        {
            "id": "step2",
            "name": "Detail Development",
            "agent_id": "agent-detail",
            "input_mapping": {"architecture_plan": "${steps.step1.output.architecture_plan}"},
            "output_mapping": {"detailed_specs": "${output.specifications}"},
            "depends_on": ["step1"],
        },
    ],
    "tags": ["feature", "implementation"],
    "metadata": {"owner": "engineering", "priority": "high"},
}


def test_the_example_of_the_api_is_right_and_kept_unchanged():
    parsed = parse_definition(API_EXAMPLE)
    assert parsed.issues == []
    assert parsed.definition is not None
    assert parsed.definition.to_dict() == API_EXAMPLE


def test_nulls_are_fields_that_are_not_set():
    parsed = parse_definition(flow(step(timeout=None, retry_policy=None, depends_on=None), description=None, tags=None))
    assert parsed.definition is not None
    assert parsed.definition.to_dict() == flow()
    assert found({"name": None, "steps": [step()]}) == [("missing", "name")]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([], [("invalid_type", "")]),
        ({}, [("missing", "name"), ("missing", "steps")]),
        ({"name": "x", "steps": []}, [("invalid_value", "steps")]),
        ({"name": "x", "steps": {}}, [("invalid_type", "steps")]),
        ({"name": "", "steps": [step()]}, [("invalid_value", "name")]),
        ({"name": "  ", "steps": [step()]}, [("invalid_value", "name")]),
        ({"name": "x" * 201, "steps": [step()]}, [("limit_exceeded", "name")]),
        ({"name": 3, "steps": [step()]}, [("invalid_type", "name")]),
        ({"name": "x", "steps": [3]}, [("invalid_type", "steps[0]")]),
        ({"name": "x", "steps": [{"id": "a"}]}, [("missing", "steps[0].agent_id")]),
        (flow(tags=["t"] * 51), [("limit_exceeded", "tags")]),
        (flow(tags=["t" * 101, " "]), [("limit_exceeded", "tags[0]"), ("invalid_value", "tags[1]")]),
        (flow(tags=("a",)), [("invalid_value", "tags")]),
        (flow(metadata={"a": {1, 2}}), [("invalid_value", "metadata")]),
        (flow(metadata={"a": "\ud800"}), [("invalid_value", "metadata")]),
        (flow(metadata=[]), [("invalid_type", "metadata")]),
        (flow(step(timeout=float("nan"))), [("invalid_value", "steps[0].timeout")]),
        (flow(step(timeout=0)), [("invalid_value", "steps[0].timeout")]),
        (flow(step(timeout="60")), [("invalid_type", "steps[0].timeout")]),
        (flow(step(timeout=True)), [("invalid_type", "steps[0].timeout")]),
        (flow(step(total_timeout=-1)), [("invalid_value", "steps[0].total_timeout")]),
        (flow(step(retry_policy={"max_retries": 1.0})), [("invalid_type", "steps[0].retry_policy.max_retries")]),
        (flow(step(retry_policy={"max_retries": 1001})), [("invalid_value", "steps[0].retry_policy.max_retries")]),
        (flow(step("1a")), [("invalid_id", "steps[0].id")]),
        (flow(step("a" * 65)), [("invalid_id", "steps[0].id")]),
        (flow({"id": "a", "agent_id": "Agent X"}), [("invalid_id", "steps[0].agent_id")]),
        (flow(step(fallback={"agent_id": "-x"})), [("invalid_id", "steps[0].fallback.agent_id")]),
        (flow({"id": "a", "agent_id": 5}), [("invalid_type", "steps[0].agent_id")]),
        (flow({"id": "a", "agent_id": {1}}), [("invalid_value", "steps[0].agent_id")]),
        (flow(**{"finally": [step("z", timeout=float("nan"))]}), [("invalid_value", "finally[0].timeout")]),
        (flow(**{"finally": [{**step("z"), 5: 1}]}), [("invalid_type", "finally[0].5")]),
        (flow(**{"finally": {}}), [("invalid_type", "finally")]),
        (flow(**{"finally": [3]}), [("invalid_type", "finally[0]")]),
        (flow(final_steps=[]), [("unknown_field", "final_steps")]),
        (flow(budget={}), [("invalid_value", "budget")]),
        (flow(budget={"on_breach": "ask"}), [("invalid_value", "budget")]),
        (flow(budget={"tokens": 0}), [("invalid_value", "budget.tokens")]),
        (flow(budget={"usd": "2"}), [("invalid_type", "budget.usd")]),
        (flow(cleanup_timeout=0), [("invalid_value", "cleanup_timeout")]),
        (flow(cleanup_timeout=86401), [("invalid_value", "cleanup_timeout")]),
        (flow(handoffs="follow", max_handoffs=0), [("invalid_value", "max_handoffs")]),
        (flow(step(), step()), [("duplicate_id", "steps[1].id")]),
        (flow(step(), step("b", depends_on=["a", "a"])), [("duplicate_id", "steps[1].depends_on[1]")]),
        (flow(step(depends_on=["a"])), [("cycle", "steps[0].depends_on[0]")]),
        (flow(step(depends_on=[1])), [("invalid_type", "steps[0].depends_on[0]")]),
        (flow(input_schema={"type": "strin"}), [("invalid_schema", "input_schema.type")]),
        (flow(input_schema={"$ref": "http://example.com/x"}), [("invalid_schema", 'input_schema["$ref"]')]),
        (flow(input_schema={"$ref": "#/$defs/no"}), [("invalid_schema", 'input_schema["$ref"]')]),
        (
            flow(input_schema={"properties": {"a": {"pattern": "("}}}),
            [("invalid_schema", "input_schema.properties.a.pattern")],
        ),
        (
            flow(step(input_mapping={"a": {"b": ["${input.a"]}})),
            [("invalid_expression", "steps[0].input_mapping.a.b[0]")],
        ),
        (flow(step(input_mapping={"a": "${nothing.a}"})), [("invalid_expression", "steps[0].input_mapping.a")]),
        (flow(step(input_mapping={"a": "${output.a}"})), [("invalid_expression", "steps[0].input_mapping.a")]),
        (flow(step(output_mapping={"a": "${source_output.a}"})), [("invalid_expression", "steps[0].output_mapping.a")]),
        (flow(output_mapping={"a": "${output.a}"}), [("invalid_expression", "output_mapping.a")]),
        (flow(output_mapping={"a": "${steps.b.output}"}), [("unknown_step", "output_mapping.a")]),
        (flow(step(input_mapping={"a": "${steps}"})), [("invalid_expression", "steps[0].input_mapping.a")]),
        (flow(output_mapping={"a": "${steps.a}"}), [("invalid_expression", "output_mapping.a")]),
        (flow(output_mapping={"a": "${steps.a.outputs.b}"}), [("invalid_expression", "output_mapping.a")]),
        (flow(output_mapping={"a": "${execution.name}"}), [("invalid_expression", "output_mapping.a")]),
        (flow(step(input_mapping={"a": "${context}"})), [("invalid_expression", "steps[0].input_mapping.a")]),
        (flow(step(context={"recall": "${steps.b.output}"})), [("unknown_step", "steps[0].context.recall")]),
        (flow(step(context={"recall": "${context}"})), [("invalid_expression", "steps[0].context.recall")]),
        (flow(step(context={"recall": "${output.x}"})), [("invalid_expression", "steps[0].context.recall")]),
        (flow(step(context={"recall": ""})), [("invalid_value", "steps[0].context.recall")]),
        (flow(step(context={})), [("missing", "steps[0].context.recall")]),
        (flow(step(context={"recall": "x", "top_k": 0})), [("invalid_value", "steps[0].context.top_k")]),
        (flow(step(context={"recall": "x", "scope": "world"})), [("invalid_value", "steps[0].context.scope")]),
        (flow(step(output_schema={"type": "objct"})), [("invalid_schema", "steps[0].output_schema.type")]),
        (flow(step(input_mapping={"a": "${steps.a.output}"})), [("cycle", "steps[0].input_mapping.a")]),
        (
            flow(step(input_mapping={str(i): i for i in range(MAX_TEMPLATE_NODES)})),
            [("limit_exceeded", "steps[0].input_mapping")],
        ),
    ],
)
def test_each_mistake_is_found_where_it_is(raw: object, expected: list[tuple[str, str]]):
    parsed = parse_definition(raw)
    assert found(raw) == expected
    assert parsed.definition is None
    assert all(issue.severity == "error" and issue.message.strip() for issue in parsed.issues)


def test_what_decides_and_what_a_failure_does_are_kept_unchanged():
    raw = flow(
        step(
            when="${input.kind} = 'feature' and not input.off",
            on_error="continue",
            retry_policy={"jitter": True},
            fallback={"agent_id": "agent-y", "on": ["timeout", "rate_limited"]},
        ),
        step("b", join="settled", when="steps.a.error != null", at_most_once=True, retry_policy={"max_retries": 0}),
        step("c", join="any", when="execution.version = 2", depends_on=["a", "b"]),
        defaults={"retry_policy": {"jitter": True}},
        handoffs="off",
        on_failure="finish",
    )
    parsed = parse_definition(raw)
    assert parsed.issues == []
    assert parsed.definition is not None
    assert parsed.definition.to_dict() == raw


@pytest.mark.parametrize(
    ("raw", "path", "hint"),
    [
        (flow(step(join="al")), "steps[0].join", "all"),
        (flow(step(join="settld")), "steps[0].join", "settled"),
        (flow(step(on_error="continu")), "steps[0].on_error", "continue"),
        (flow(handoffs="edge"), "handoffs", "edges"),
        (flow(on_failure="finis"), "on_failure", "finish"),
        (flow(step(on_error="aks")), "steps[0].on_error", "ask"),
        (flow(budget={"tokens": 1, "on_breach": "aks"}), "budget.on_breach", "ask"),
    ],
)
def test_a_wrong_choice_has_a_hint(raw: object, path: str, hint: str):
    issue = only_issue(raw)
    assert (issue.code, issue.path) == (IssueCode.INVALID_VALUE, path)
    assert hint in (issue.hint or "")


@pytest.mark.parametrize(
    ("when", "code", "words"),
    [
        ("steps.b.output.ok = true", IssueCode.UNKNOWN_STEP, "There is no step b"),
        ("input.a =", IssueCode.INVALID_EXPRESSION, "at character"),
        ("input.a = b", IssueCode.INVALID_EXPRESSION, "at character"),
        ("", IssueCode.INVALID_EXPRESSION, "at character"),
        ("input.n + 1", IssueCode.INVALID_EXPRESSION, "at character"),
        ("output.done = true", IssueCode.INVALID_EXPRESSION, "output"),
        ("context[0].text = 'x'", IssueCode.INVALID_EXPRESSION, "context"),
        ("source_output.done = true", IssueCode.INVALID_EXPRESSION, "source_output"),
        ("execution.name = 'x'", IssueCode.INVALID_EXPRESSION, "has no name"),
        ("steps.a.output.x = 1", IssueCode.CYCLE, "reads itself"),
        (True, IssueCode.INVALID_TYPE, "must be text"),
    ],
)
def test_a_condition_that_can_not_be_decided_by_is_refused(when: object, code: IssueCode, words: str):
    issue = only_issue(flow(step(when=when)))
    assert (issue.code, issue.path) == (code, "steps[0].when")
    assert words in issue.message


def test_a_condition_reads_only_what_a_step_maps_and_makes_no_circle():
    mapping = {"plan": "${output.plan}"}
    unmapped = flow(step(output_mapping=mapping), step("b", when="steps.a.output.plam = 1"))
    issue = only_issue(unmapped)
    assert (issue.code, issue.path) == (IssueCode.UNMAPPED_OUTPUT, "steps[1].when")
    assert "plan" in (issue.hint or "")
    circle = flow(step(depends_on=["b"]), step("b", when="steps.a.output.x = 1"))
    assert [code for code, _ in found(circle)] == ["cycle"]


def test_a_reason_that_nothing_fails_for_is_a_warning_with_a_hint():
    raw = flow(step(fallback={"agent_id": "agent-y", "on": ["timout", "timeout"]}))
    issue = only_issue(raw)
    assert (issue.severity, issue.path) == ("warning", "steps[0].fallback.on[0]")
    assert "timeout" in (issue.hint or "")
    assert parse_definition(raw).definition is not None


def test_a_fallback_for_no_reason_and_retries_of_what_runs_once_contradict_themselves():
    raw = flow(
        step(fallback={"agent_id": "agent-y", "on": []}),
        step("b", at_most_once=True, retry_policy={"max_retries": 2}),
        step("c", at_most_once=True),
        defaults={"retry_policy": {"max_retries": 2}},
    )
    assert found(raw) == [
        ("invalid_value", "steps[0].fallback.on"),
        ("invalid_value", "steps[1].retry_policy.max_retries"),
    ]


def test_a_step_may_be_reminded_of_something_and_read_it():
    context = {"recall": "what is known of ${input.topic} and ${steps.a.output}?", "top_k": 3, "scope": "agent"}
    raw = flow(step(), step("b", context=context, input_mapping={"known": "${context}", "best": "${context[0].text}"}))
    assert found(raw) == []


def test_type_agent_is_fine_and_another_word_is_not():
    assert found(flow(step(type="agent"))) == []
    issue = only_issue(flow(step(type="agnt")))
    assert (issue.code, issue.hint) == (IssueCode.INVALID_VALUE, "Did you mean 'agent'?")


@pytest.mark.parametrize(
    ("raw", "path", "hint"),
    [
        (flow(descripton="x"), "descripton", "description"),
        (flow(step(timout=1)), "steps[0].timout", "timeout"),
        (flow(step(retry_policy={"max_retry": 1})), "steps[0].retry_policy.max_retry", "max_retries"),
        (flow(defaults={"total_timeot": 1}), "defaults.total_timeot", "total_timeout"),
        (flow(finaly=[]), "finaly", "finally"),
        (flow(budget={"tokens": 1, "agent_call": 2}), "budget.agent_call", "agent_calls"),
        (flow(step(foreach={"items": [], "tolerat": 1})), "steps[0].foreach.tolerat", "tolerate"),
        (flow(**{"finally": [step("z", timout=1)]}), "finally[0].timout", "timeout"),
        (flow(step(fallback=[{"agent_id": "b", "onn": []}])), "steps[0].fallback[0].onn", "on"),
    ],
)
def test_an_unknown_field_comes_with_the_one_that_was_meant(raw: object, path: str, hint: str):
    issue = only_issue(raw)
    assert (issue.code, issue.path, issue.hint) == (IssueCode.UNKNOWN_FIELD, path, f"Did you mean {hint!r}?")


def test_an_unknown_step_comes_with_the_one_that_was_meant():
    raw = flow(step("planning"), step("b", depends_on=["planing"], input_mapping={"x": "${steps.plannin.output}"}))
    issues = parse_definition(raw).issues
    assert [(issue.code, issue.path) for issue in issues] == [
        (IssueCode.UNKNOWN_STEP, "steps[1].depends_on[0]"),
        (IssueCode.UNKNOWN_STEP, "steps[1].input_mapping.x"),
    ]
    assert {issue.hint for issue in issues} == {"Did you mean 'planning'?"}


def test_a_key_that_the_step_does_not_map_is_an_error_that_names_the_mapped_ones():
    raw = flow(
        step("step1", output_mapping={"architecture_plan": "${output.plan}"}),
        step("b", input_mapping={"p": "${steps.step1.output.plan}", "q": "${steps.step1.output}"}),
    )
    issue = only_issue(raw)
    assert (issue.code, issue.path) == (IssueCode.UNMAPPED_OUTPUT, "steps[1].input_mapping.p")
    assert "step1 maps its output to architecture_plan; plan is not among them" in issue.message


def test_any_key_of_a_step_without_output_mapping_can_be_read():
    assert found(flow(step("a"), step("b", input_mapping={"p": "${steps.a.output.any[0].thing}"}))) == []


@pytest.mark.parametrize(
    ("second", "path"),
    [
        ({"depends_on": ["a"]}, "steps[0].depends_on[0]"),
        ({"input_mapping": {"x": "${steps.a.output.y}"}}, "steps[0].depends_on[0]"),
        ({"output_mapping": {"x": "${steps.a.error.code}"}}, "steps[0].depends_on[0]"),
    ],
)
def test_a_cycle_through_dependencies_and_references_is_printed(second: dict[str, Any], path: str):
    issue = only_issue(flow(step("a", depends_on=["b"]), step("b", **second)))
    assert (issue.code, issue.path) == (IssueCode.CYCLE, path)
    assert "a -> b -> a" in issue.message


def test_each_of_several_cycles_is_printed():
    raw = flow(
        step("a", depends_on=["b", "c"]),
        step("b", depends_on=["a"]),
        step("c", depends_on=["d"]),
        step("d", input_mapping={"x": "${steps.c.output}"}),
        step("after", depends_on=["d"]),
    )
    printed = [issue.message for issue in parse_definition(raw).issues]
    assert len(printed) == 2
    assert any("a -> b -> a;" in message for message in printed)
    assert any("c -> d -> c;" in message for message in printed)


def test_a_cycle_is_found_beside_an_expression_that_cannot_be_read():
    raw = flow(step("a", depends_on=["b"]), step("b", input_mapping={"bad": "${", "good": "${steps.a.output}"}))
    assert found(raw) == [("cycle", "steps[0].depends_on[0]"), ("invalid_expression", "steps[1].input_mapping.bad")]


def test_a_long_chain_is_checked_without_recursion_and_a_long_cycle_is_shortened():
    steps = [step("s0"), *(step(f"s{i}", depends_on=[f"s{i - 1}"]) for i in range(1, MAX_STEPS))]
    assert found(flow(*steps)) == []
    steps[0]["depends_on"] = [f"s{MAX_STEPS - 1}"]
    issue = only_issue(flow(*steps))
    assert issue.code == IssueCode.CYCLE
    assert len(issue.message) < 300
    assert found(flow(*steps, step("more"))) == [("limit_exceeded", "steps")]
    assert found(flow(*steps, **{"finally": [step("z")]})) == [("limit_exceeded", "steps")]


def test_a_definition_over_its_size_is_refused():
    assert found(flow(metadata={"text": "x" * (4 * 1024 * 1024)})) == [("limit_exceeded", "")]


def test_a_definition_nested_too_deep_is_refused():
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    assert found(flow(metadata={"deep": deep})) == [("limit_exceeded", "metadata")]
    looped: dict[str, Any] = {}
    looped["self"] = looped
    assert found(flow(metadata=looped)) == [("limit_exceeded", "metadata")]


def test_keys_that_are_no_text_are_named():
    assert found({**flow(), 5: 1}) == [("invalid_type", "")]
    assert found(flow({**step(), 5: 1})) == [("invalid_type", "steps[0].5")]


def test_positions_in_expressions_are_told():
    issue = only_issue(flow(step(input_mapping={"a": "see ${input..b}"})))
    assert "(at character 13)" in issue.message


def test_warnings_do_not_keep_a_definition_from_being_saved():
    raw = flow(
        step(
            timeout=60,
            total_timeout=30,
            retry_policy={"non_retryable": ["timout", "timeout"]},
            input_mapping={"t": "${input.topc}", "u": "${input.topic}"},
        ),
        input_schema={"type": "object", "properties": {"topic": {}}, "additionalProperties": False},
    )
    parsed = parse_definition(raw)
    assert parsed.definition is not None
    assert [(issue.severity, issue.code, issue.path) for issue in parsed.issues] == [
        ("warning", IssueCode.INVALID_VALUE, "steps[0].total_timeout"),
        ("warning", IssueCode.INVALID_VALUE, "steps[0].retry_policy.non_retryable[0]"),
        ("warning", IssueCode.UNKNOWN_FIELD, "steps[0].input_mapping.t"),
    ]
    assert parsed.issues[1].hint == "Did you mean 'timeout'?"
    assert parsed.issues[2].hint == "Did you mean 'topic'?"


def test_defaults_count_when_timeouts_are_compared():
    assert found(flow(defaults={"timeout": 60, "total_timeout": 30})) == [("invalid_value", "defaults.total_timeout")]
    assert found(flow(step(total_timeout=30), defaults={"timeout": 60})) == [
        ("invalid_value", "steps[0].total_timeout")
    ]
    assert found(flow(step(total_timeout=60), defaults={"timeout": 60})) == []


def test_an_open_schema_allows_any_key_of_the_input():
    schema = {"type": "object", "properties": {"topic": {}}}
    assert found(flow(step(input_mapping={"t": "${input.topc}"}), input_schema=schema)) == []


def test_issues_come_all_at_once_in_the_order_of_the_document():
    raw = {
        "steps": [{"agent_id": "agent-x", "id": "1", "timeout": "x"}, step("b", depends_on=["zz"], finaly=1)],
        "budget": {},
        "finally": [step("z", wen="x")],
        "tags": [""],
    }
    assert [path for _, path in found(raw)] == [
        "steps[0].id",
        "steps[0].timeout",
        "steps[1].depends_on[0]",
        "steps[1].finaly",
        "budget",
        "finally[0].wen",
        "tags[0]",
        "name",
    ]


def test_agents_that_do_not_exist_are_warnings():
    parsed = parse_definition(API_EXAMPLE)
    assert parsed.definition is not None
    issues = agent_issues(parsed.definition, {"agent-detail"})
    assert [(issue.severity, issue.code, issue.path) for issue in issues] == [
        ("warning", IssueCode.AGENT_NOT_FOUND, "steps[0].agent_id"),
        ("warning", IssueCode.AGENT_NOT_FOUND, "steps[0].fallback.agent_id"),
    ]


def test_every_mention_of_an_agent_or_a_workflow_that_does_not_exist_is_a_warning():
    raw = flow(
        step(fallback=[{"agent_id": "agent-y"}, {"agent_id": "agent-no"}], compensate={"agent_id": "agent-undo"}),
        {"id": "b", "type": "workflow", "workflow_id": "other", "compensate": {"agent_id": "agent-x"}},
        {"id": "c", "type": "workflow", "workflow_id": "articel"},
        **{"finally": [step("z", agent_id="agent-z", fallback={"agent_id": "agent-no"})]},
    )
    parsed = parse_definition(raw)
    assert parsed.definition is not None, parsed.issues
    assert [issue.path for issue in agent_issues(parsed.definition, {"agent-x", "agent-y"})] == [
        "steps[0].fallback[1].agent_id",
        "steps[0].compensate.agent_id",
        "finally[0].agent_id",
        "finally[0].fallback.agent_id",
    ]
    (issue,) = workflow_issues(parsed.definition, {"other", "article"})
    assert (issue.severity, issue.code, issue.path) == (
        "warning",
        IssueCode.WORKFLOW_NOT_FOUND,
        "steps[2].workflow_id",
    )
    assert issue.hint == "Did you mean 'article'?"


def test_the_most_handoffs_count_only_where_they_are_followed():
    assert found(flow(handoffs="follow", max_handoffs=3)) == []
    issue = only_issue(flow(max_handoffs=3))
    assert (issue.severity, issue.path) == ("warning", "max_handoffs")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"topic": {"type": "string", "maxLength": 5}, "count": {"type": ["integer", "null"]}},
    "required": ["topic", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"topic": "a", "count": 1}, []),
        ({"topic": "a", "count": None}, []),
        (5, [("invalid_type", "input_data")]),
        ({}, [("missing", "input_data.topic"), ("missing", "input_data.count")]),
        ({"topic": 1, "count": 1}, [("invalid_type", "input_data.topic")]),
        ({"topic": "private-text", "count": 1}, [("invalid_value", "input_data.topic")]),
        ({"topic": "a", "count": 1, "topik": 2}, [("unknown_field", "input_data.topik")]),
        ({"topic": "a", "count": float("inf")}, [("invalid_value", "input_data")]),
    ],
)
def test_input_is_checked_by_the_schema(value: Any, expected: list[tuple[str, str]]):
    issues = check_input(SCHEMA, value)
    assert [(issue.code.value, issue.path) for issue in issues] == expected
    assert not any("private-text" in issue.message for issue in issues)


def test_input_without_a_schema_only_has_to_be_json():
    assert check_input(None, [1, {"a": None}]) == []
    no_json: Any = {"a": object()}
    assert [issue.code for issue in check_input(None, no_json)] == [IssueCode.INVALID_VALUE]


def test_issues_of_an_input_are_bounded():
    schema: dict[str, Any] = {"items": {"type": "string"}}
    assert len(check_input(schema, list(range(1000)))) == 20
    assert 0 < len(check_input(SCHEMA, {str(i): i for i in range(10_000)})) < 50


def test_a_schema_that_never_ends_is_an_issue():
    assert [issue.code for issue in check_input({"$ref": "#"}, {"a": 1})] == [IssueCode.INVALID_SCHEMA]


def test_a_schema_makes_nothing_fetch_an_address():
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        issues = check_input({"$ref": f"http://127.0.0.1:{server.server_port}/schema.json"}, {"a": 1})
        server.shutdown()
        thread.join()
    assert [issue.code for issue in issues] == [IssueCode.INVALID_SCHEMA]
    assert asked == []


def test_the_shipped_schema_is_the_generated_one_and_takes_what_the_validator_takes():
    from jsonschema import Draft202012Validator

    shipped = json.loads((ROOT / "docs" / "definition.schema.json").read_text(encoding="utf-8"))
    assert shipped == definition_schema(), (
        "write json.dumps(definition_schema(), indent=2) to docs/definition.schema.json"
    )
    Draft202012Validator.check_schema(shipped)
    validator = Draft202012Validator(shipped)
    assert validator.is_valid(API_EXAMPLE)
    assert validator.is_valid(flow({"id": "a", "type": "wait", "wait": {"seconds": 1}}, **{"finally": [step("z")]}))
    wrong = [
        *(flow(foo=1), flow(step("1")), {"name": "x", "steps": []}, flow(step(timeout=0))),
        *(flow({"id": "a"}), flow(step(type="wait")), flow(step(transform={})), flow({"id": "a", "type": "approval"})),
        *(flow({"id": "a", "type": "wait", "wait": {}}), flow(budget={}), flow(final_steps=[])),
    ]
    for document in wrong:
        assert not validator.is_valid(document), document
        assert parse_definition(document).definition is None, document


def test_every_code_says_what_it_means():
    source = (ROOT / "engine" / "domain" / "issues.py").read_text(encoding="utf-8")
    for code in IssueCode:
        assert f'{code.name} = "{code.value}"\n    """' in source


def test_nearest_word_ignores_case_and_gives_up_on_long_words():
    assert nearest_word("TIMEOUT", ["timeout", "total"]) == "timeout"
    assert nearest_word("zzz", ["timeout"]) is None
    assert nearest_word("t" * 101, ["t" * 100]) is None


PART_KEYS = sorted(
    {"id", "a", "kind"}
    | {
        field.alias or name
        for model in (ForEach, RepeatUntil, Approval, Wait, Budget, Compensation, Fallback, StepDefaults)
        for name, field in model.model_fields.items()
    }
)
scraps = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("${steps.a.output.b}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PART_KEYS), inner, max_size=3),
    max_leaves=8,
)
names = [*(field.alias or name for name, field in WorkflowDefinition.model_fields.items()), "x"]
step_names = [*Step.model_fields, "x"]
kinds = st.sampled_from(["agent", "transform", "wait", "workflow", "approval", "x"])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(names), scraps),
    st.lists(st.dictionaries(st.sampled_from(step_names), scraps | kinds) | scraps, max_size=3),
)
def test_whatever_comes_in_is_answered(top: dict[str, Any], steps: list[Any]):
    for raw in (top, {**top, "steps": steps}, {"name": "x", "steps": steps}, flow(**{"finally": steps})):
        parsed = parse_definition(raw)
        assert (parsed.definition is None) == any(issue.severity == "error" for issue in parsed.issues)
        keys = [(issue.code, issue.path, issue.message) for issue in parsed.issues]
        assert len(keys) == len(set(keys))
