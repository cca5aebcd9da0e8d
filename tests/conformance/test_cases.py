"""What makes a file a case, and that a case which expects something else is told so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance.case_checks import Observed, differences
from tests.conformance.cases import Case, CaseError, load

if TYPE_CHECKING:
    from pathlib import Path

STEP: dict[str, Any] = {"id": "a", "agent_id": "agent-a"}
CASE: dict[str, Any] = {
    "title": "T",
    "definition": {"name": "Flow", "steps": [STEP]},
    "agents": {"agent-a": [{"reply": {}}]},
    "expect": {},
}
RAN = Observed(
    result={
        "status": "failed",
        "output": None,
        "error": {"code": "agent_error", "message": "Step a failed: It broke", "details": {"step_id": "a"}},
        "warnings": [{"code": "step_failed", "message": "m", "step_id": "a"}],
        "handoffs": [
            {
                "source_step": "a",
                "source_agent_id": "agent-a",
                "target_agent_id": "agent-b",
                "taken": True,
                "reason": "its trigger fired",
            }
        ],
        "steps": {
            "a": {"status": "failed", "output": None, "started_at": "2026-01-01T00:00:01Z", "completed_at": "2026-02"},
            "b": {"status": "completed", "output": {"at": "2026-01-01T00:00:00Z", "n": 1}, "started_at": "2026-01"},
        },
    },
    events=[
        {"type": "step.failed", "step_id": "a", "data": {}},
        {"type": "gate.opened", "step_id": "b", "data": {"gate_id": "b.1", "question": "?"}},
    ],
    inputs={"agent-a": [{"n": 1}, {"n": True}]},
    at_once={"agent-a": 2},
)


def expecting(**expect: Any) -> list[str]:
    return differences(Case.model_validate(CASE | {"expect": expect}).expect, RAN)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("title: T\ndefinition: {}\nexpect: {stauts: failed}", "expect.stauts"),
        ("title: T\ndefinition: {}\nexpect: {}\nactons: []", "actons"),
        ("title: T\ndefinition: {}\nexpect: {}\nactions: [{pause: true, cancel: x}]", "an action has one key"),
        ("title: T\ndefinition: {}\nexpect: {}\nagents: {a: [{reply: 1, fail: error}]}", "give one of"),
        ("title: T\ndefinition: {}\nexpect: {}\nagents: {a: [{fail: slow}]}", "agents.a.otherwise.0.fail"),
        ("title: T\ndefinition: {steps: [{agent_id: agent-x}]}\nexpect: {}", "no script for agent-x"),
        ("title: T\ndefinition: {steps: [{workflow_id: child}]}\nexpect: {}", "no workflow child"),
        ("title: T\ndefinition: {}\nexpect: {order: [[a]]}", "expect.order.0"),
        ("title: T\ndefinition: {}", "expect: Field required"),
    ],
)
def test_what_is_no_case_is_told_with_its_place(tmp_path: Path, text: str, fault: str):
    path = tmp_path / "case.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaseError) as raised:
        load(path)
    assert fault in str(raised.value)


def test_a_script_goes_by_a_key_of_the_input():
    script = {"by": "item", "cases": {"b": [{"fail": "error"}], "1": [{"reply": 1}]}, "else": [{"echo": True}]}
    agent = Case.model_validate(CASE | {"agents": {"agent-a": script}}).agents["agent-a"]
    assert [agent.replies_to({"item": item})[0] for item in ("b", 1, "c")] == ["b", "1", ""]
    assert agent.replies_to({"item": "b"})[1][0].fail == "error"
    assert agent.replies_to({})[1][0].echo is True


@pytest.mark.parametrize(
    "expect",
    [
        {"status": "failed", "output": None, "warnings": ["step_failed"]},
        {"error": {"code": "agent_error", "message_contains": "broke", "details": {"step_id": "a"}}},
        {"steps": {"b": {"output": {"at": "<instant>", "n": "<any>"}, "output_has": {"n": 1}}}},
        {"events": ["step.failed a", {"type": "gate.opened", "data": {"gate_id": "b.1"}}], "no_events": ["x"]},
        {"calls": {"agent-a": 2, "agent-b": 0}, "at_once": {"agent-a": 2}, "inputs": {"agent-a": [{"n": 1}, "<any>"]}},
        {"handoffs": [{"taken": True, "reason_contains": "fired"}]},
    ],
)
def test_what_is_as_expected_is_no_difference(expect: dict[str, Any]):
    assert expecting(**expect) == []


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ({"refused": {"code": "conflict"}}, "not refused"),
        ({"status": "completed"}, "status"),
        ({"output": {}}, "output"),
        ({"error": None}, "error"),
        ({"error": {"code": "conflict"}}, "error.code"),
        ({"error": {"message_contains": "other"}}, "without 'other'"),
        ({"error": {"details": {"step_id": "b"}}}, "error.details.step_id"),
        ({"cancel": "enough"}, "cancel.reason"),
        ({"warnings": []}, "warnings"),
        ({"steps": {"c": {}}}, "no step c"),
        ({"steps": {"a": {"status": "completed"}}}, "steps.a.status"),
        ({"steps": {"b": {"output": {"n": 1}}}}, "steps.b.output.at is there"),
        ({"steps": {"b": {"output_has": {"n": True}}}}, "steps.b.output.n"),
        ({"steps": {"b": {"output_has": {"m": 1}}}}, "steps.b.output.m is missing"),
        ({"steps": {"a": {}}, "only": True}, "nobody expected: b"),
        ({"order": [["a", "b"]]}, "a ended at"),
        ({"order": [["b", "a"]]}, "b ended at None"),
        ({"calls": {"agent-a": 3}}, "calls of agent-a"),
        ({"at_once": {"agent-a": 1}}, "at once"),
        ({"inputs": {"agent-a": [{"n": 1}, {"n": 1}]}}, "inputs of agent-a[1].n"),
        ({"inputs": {"agent-a": [{"n": 1}]}}, "has 2 items, not 1"),
        ({"handoffs": []}, "1 handoffs, not 0"),
        ({"handoffs": [{"taken": False}]}, "taken"),
        ({"handoffs": [{"reason_contains": "limit"}]}, "without 'limit'"),
        ({"events": ["gate.opened b", "step.failed a"]}, "no event 'step.failed a'"),
        ({"events": [{"type": "gate.opened", "data": {"gate_id": "b.2"}}]}, "no event"),
        ({"no_events": ["gate.opened"]}, "there is an event"),
        ({"rerun": ["a"]}, "rerun"),
    ],
)
def test_what_is_not_as_expected_is_said(expect: dict[str, Any], said: str):
    (line, *_) = expecting(**expect)
    assert said in line


def test_a_refusal_that_nobody_expected_is_said():
    refused = Observed(refusal={"code": "invalid_input", "message": "No", "details": {}})
    (line,) = differences(Case.model_validate(CASE | {"expect": {"status": "completed"}}).expect, refused)
    assert "it was refused" in line
