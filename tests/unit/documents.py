"""Definitions as people write them, and what the validator finds in them."""

from __future__ import annotations

from typing import Any

from engine.domain.issues import Issue
from engine.domain.validation import parse_definition


def step(step_id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "agent_id": "agent-x", **fields}


def flow(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "Flow", "steps": list(steps) or [step()], **fields}


def found(raw: object) -> list[tuple[str, str]]:
    return [(issue.code.value, issue.path) for issue in parse_definition(raw).issues]


def only_issue(raw: object) -> Issue:
    issues = parse_definition(raw).issues
    assert len(issues) == 1, issues
    return issues[0]
