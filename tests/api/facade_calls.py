"""Every call with arguments that it takes and those that it refuses, and how a refusal is looked at."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from engine import EngineError, WorkflowEngine

if TYPE_CHECKING:
    pass

STEP: dict[str, object] = {"id": "s", "agent_id": "agent-a", "input_mapping": {}}
FAST = {"retry_policy": {"max_retries": 0}}


def cyclic() -> dict[str, object]:
    circle: dict[str, object] = {}
    circle["again"] = [circle]
    return circle


def nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


NOT_TEXT = [5, True, b"x", "", "half \ud800", ["a"], {"a": 1}]
NOT_LABELS = [5, "a", [5], {"a": 1}, ["half \ud800"], [["a"]]]
NOT_LIMIT = [0, -1, 1001, True, 2.5, "3", 10**30]
NOT_CURSOR = [5, True, "", "broken", "cursor-token", "x" * 5000, "bm90IGpzb24", ["a"], "\ud800"]
NOT_JSON = [
    {"a": math.nan},
    {"a": -math.inf},
    {"a": 2**64},
    {"a": {1, 2}},
    {"a": b"bytes"},
    {"a": object()},
    {"a": datetime.now(UTC)},
    {1: "a"},
    {"a": "half \ud800"},
    cyclic(),
    nested(65),
]
NOT_TIME = [5, True, "", "yesterday", "2025-13-01", "0001-01-01T00:00:00+14:00", ["2025-01-01"]]
NOT_RANGE = [5, True, "", "last_week", "last_0_days", "last_-1_days", {"start": "2025-01-01"}, ["last_1_days"]]
NOT_METRICS = [5, "execution_count", ["nonsense"], [5], {"a": 1}]
NOT_VERSION = [0, -1, True, "1", 1.0, 10**30]
TOO_LARGE = 256 * 1024
NOT_ID = [*NOT_TEXT, "UPPER", "-dash", "a b", "a/b", "x" * 101, "é"]

GOOD: dict[str, dict[str, object]] = {
    "create_workflow": {"name": "New", "steps": [STEP]},
    "validate_workflow": {},
    "get_workflow": {"workflow_id": "w"},
    "update_workflow": {"workflow_id": "w", "updates": {"name": "Changed"}},
    "list_workflows": {},
    "list_workflow_versions": {"workflow_id": "w"},
    "delete_workflow": {},
    "execute_workflow": {"workflow_id": "w"},
    "get_execution_status": {},
    "get_execution_result": {},
    "list_executions": {},
    "cancel_execution": {},
    "watch_execution": {},
    "list_gates": {},
    "get_gate": {"gate_id": "s.1"},
    "answer_gate": {"gate_id": "s.1", "answer": "approve"},
    "diff_workflow": {"workflow_id": "w"},
    "workflow_graph": {"workflow_id": "w"},
    "explain_execution": {},
    "rerun_execution": {"from_step": "s"},
    "pause_execution": {},
    "resume_execution": {},
    "retry_step": {"step_id": "s"},
    "skip_step": {"step_id": "s"},
    "register_agent": {"name": "New", "config": {"function": "m:f"}},
    "get_agent": {},
    "list_agents": {},
    "create_handoff": {"source_agent_id": "agent-a", "target_agent_id": "agent-b"},
    "get_handoff": {},
    "list_handoffs": {},
    "get_workflow_metrics": {"workflow_id": "w"},
    "get_agent_performance": {"agent_id": "agent-a"},
    "find_workflows": {"agent_id": "agent-a"},
    "agent_impact": {"agent_id": "agent-a"},
    "handoff_paths": {"source": "agent-a", "target": "agent-b"},
    "repair_executions": {},
    "verify_executions": {},
    "get_execution_input": {},
    "add_context": {"text": "a text", "workflow_id": "w"},
    "search_context": {"query": "a text"},
    "reindex_context": {},
}
BAD: dict[str, dict[str, list[Any]]] = {
    "create_workflow": {
        "name": [5, True, "", None, ["a"], "half \ud800", "x" * 300],
        "steps": [5, "a", None, [], {}, [5], [{}], [{**STEP, "id": "1x"}], [STEP, STEP], [{**STEP, "nonsense": 1}]],
        "description": [5, ["a"], "half \ud800"],
        "tags": [*NOT_LABELS, {"a"}],
        "metadata": [5, "a", [], *NOT_JSON],
        "workflow_id": NOT_ID,
        "input_schema": [5, {"type": "nonsense"}, {"$ref": "http://somewhere/else"}],
        "output_mapping": [5, [], {"a": "${nonsense.x}"}, {"a": "${steps.none.output}"}],
        "defaults": [5, {"timeout": "1"}, {"nonsense": 1}],
        "nonsense": [1],
    },
    "validate_workflow": {"definition": [None, 5, "a", [STEP], True]},
    "get_workflow": {"workflow_id": NOT_TEXT, "version": NOT_VERSION},
    "update_workflow": {
        "workflow_id": NOT_TEXT,
        "updates": [None, 5, "a", [], {"nonsense": 1}, {"steps": []}, {"name": None}, {"name": math.nan}, cyclic()],
    },
    "list_workflows": {
        "tags": NOT_LABELS,
        "status": [5, "", "deleted", ["active"]],
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "list_workflow_versions": {"workflow_id": NOT_TEXT, "limit": NOT_LIMIT, "cursor": NOT_CURSOR},
    "delete_workflow": {"workflow_id": NOT_TEXT},
    "execute_workflow": {
        "workflow_id": NOT_TEXT,
        "input_data": [5, "a", [], True, *NOT_JSON],
        "execution_options": [
            *(5, "a", [], {"nonsense": 1}, {1: 2}),
            *({"priority": value} for value in (5, "urgent", ["high"])),
            *({"timeout": value} for value in (0, -1, True, "5", math.nan, math.inf, 10**9)),
            *({"trace": value} for value in (1, "yes")),
            *({"idempotency_key": value} for value in (5, "", "a b", "a/b", "é", "a\n", "x" * 201, ["a"])),
            *({"version": value} for value in (0, -1, True, "1", 1.5, 10**30)),
            *({"tags": value} for value in NOT_LABELS),
            *({"budget": value} for value in (5, "a", [], {}, {"nonsense": 1}, {"tokens": 1.5}, {"usd": 0})),
            *({"budget": {"seconds": value}} for value in (0, -1, True, "5", None, math.nan, math.inf)),
        ],
    },
    "get_execution_status": {"execution_id": NOT_TEXT},
    "get_execution_result": {"execution_id": NOT_TEXT, "wait": [None, -1, True, "1", math.nan, math.inf, 10**30]},
    "list_executions": {
        "workflow_id": NOT_TEXT,
        "status": [5, "", "done", True, ["failed"]],
        "start_time": NOT_TIME,
        "end_time": NOT_TIME,
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
        "tags": NOT_LABELS,
    },
    "cancel_execution": {"execution_id": NOT_TEXT, "reason": NOT_TEXT},
    "watch_execution": {"execution_id": NOT_TEXT, "from_event": [*NOT_TEXT, "no-event"]},
    "list_gates": {
        "execution_id": NOT_TEXT,
        "workflow_id": NOT_TEXT,
        "assignee": NOT_TEXT,
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "get_gate": {"execution_id": NOT_TEXT, "gate_id": [*NOT_TEXT, "none.1"]},
    "diff_workflow": {"workflow_id": NOT_TEXT, "from_version": NOT_VERSION, "to_version": NOT_VERSION},
    "workflow_graph": {
        "workflow_id": NOT_TEXT,
        "format": [5, None, "", "svg", ["text"]],
        "execution_id": NOT_TEXT,
        "version": NOT_VERSION,
    },
    "explain_execution": {"execution_id": NOT_TEXT},
    "rerun_execution": {
        "execution_id": NOT_TEXT,
        "from_step": [5, True, "", [], [5], ["s", ""], {"a": 1}, "nowhere"],
        "input_data": [5, "a", [], True, *NOT_JSON],
        "version": [5, None, "", "newest", 1],
        "preview": [5, None, "yes"],
    },
    "answer_gate": {
        "execution_id": NOT_TEXT,
        "gate_id": [*NOT_TEXT, "none.1"],
        "answer": [*NOT_TEXT, None],
        "by": [*NOT_TEXT, "x" * 201],
        "data": [*NOT_JSON, "x" * TOO_LARGE],
    },
    "pause_execution": {"execution_id": NOT_TEXT, "by": NOT_TEXT, "reason": [*NOT_TEXT, "x" * TOO_LARGE]},
    "resume_execution": {"execution_id": NOT_TEXT, "by": NOT_TEXT},
    "retry_step": {"execution_id": NOT_TEXT, "step_id": NOT_TEXT, "by": NOT_TEXT},
    "skip_step": {
        "execution_id": NOT_TEXT,
        "step_id": NOT_TEXT,
        "output": [*NOT_JSON, "x" * TOO_LARGE],
        "by": NOT_TEXT,
    },
    "register_agent": {
        "name": [5, True, "", None, ["a"], "half \ud800"],
        "description": [5, ["a"]],
        "capabilities": NOT_LABELS,
        "tools": NOT_LABELS,
        "config": [
            5,
            None,
            [],
            {},
            {"nonsense": 1},
            {"function": 5},
            {"function": "m:f", "url": "http://x"},
            *NOT_JSON,
        ],
        "agent_id": NOT_ID,
    },
    "get_agent": {"agent_id": NOT_TEXT},
    "list_agents": {
        "capabilities": NOT_LABELS,
        "status": [5, "", "deleted"],
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "create_handoff": {
        "source_agent_id": NOT_ID,
        "target_agent_id": [*NOT_ID, "agent-a"],
        "handoff_type": [5, "", "nonsense"],
        "data_mapping": [5, [], {"a": 5}, {"": "a"}, {"a": "b", "c": "b"}],
        "trigger_conditions": [5, "completion", [5], ["source_output.a ="], ["a"] * 1000],
        "workflow_id": NOT_ID,
    },
    "get_handoff": {"handoff_id": NOT_TEXT},
    "list_handoffs": {
        "source_agent_id": NOT_TEXT,
        "target_agent_id": NOT_TEXT,
        "workflow_id": NOT_TEXT,
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "get_workflow_metrics": {"workflow_id": NOT_TEXT, "time_range": NOT_RANGE, "metrics": NOT_METRICS},
    "get_agent_performance": {"agent_id": NOT_TEXT, "time_range": NOT_RANGE, "metrics": NOT_METRICS},
    "find_workflows": {"agent_id": NOT_TEXT, "limit": NOT_LIMIT, "cursor": NOT_CURSOR},
    "agent_impact": {"agent_id": NOT_TEXT},
    "handoff_paths": {"source": NOT_TEXT, "target": NOT_TEXT, "max_hops": [0, -1, 11, True, "6", 1.5]},
    "repair_executions": {"execution_id": NOT_TEXT},
    "verify_executions": {},
    "get_execution_input": {"execution_id": NOT_TEXT},
    "add_context": {
        "text": [5, True, "", None, ["a"], "half \ud800", "x" * 32_001],
        "scope": [5, "", None, "world"],
        "workflow_id": NOT_TEXT,
        "agent_id": NOT_TEXT,
        "execution_id": NOT_TEXT,
        "metadata": [5, "a", [], *NOT_JSON],
    },
    "search_context": {
        "query": [5, True, "", None, ["a"], "half \ud800"],
        "scope": [5, "", "world"],
        "workflow_id": NOT_TEXT,
        "agent_id": NOT_TEXT,
        "execution_id": NOT_TEXT,
        "top_k": [0, -1, 101, True, "5", 1.5, None],
        "filter": [5, "a", [], *NOT_JSON],
    },
    "reindex_context": {},
}


async def fault_of(engine: WorkflowEngine, call: str, arguments: dict[str, object]) -> EngineError:
    """The error that the call ends with; it has a request id and what its code promises."""
    with pytest.raises(EngineError) as raised:
        if call == "watch_execution":
            async for _ in getattr(engine, call)(**arguments):
                pass
        else:
            await getattr(engine, call)(**arguments)
    error = raised.value
    assert error.request_id is not None
    assert error.request_id.startswith("req-")
    assert error.to_response()["error"]["request_id"] == error.request_id  # type: ignore[index]
    return error


def paths_of(error: EngineError) -> list[str]:
    issues: Any = error.details.get("issues", [])
    return [str(error.details["path"])] if "path" in error.details else [issue["path"] for issue in issues]
