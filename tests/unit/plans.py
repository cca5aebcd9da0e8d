"""Plans for the tests of what runs them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engine.domain.agent import Agent, AgentKind
from engine.domain.definition import DefinitionVersion, WorkflowDefinition
from engine.domain.plan import agent_ids_of, compile_plan

if TYPE_CHECKING:
    from engine.domain.plan import ExecutionPlan

START = datetime(2026, 11, 22, 12, tzinfo=UTC)


def agent(agent_id: str, kind: AgentKind = "python") -> Agent:
    return Agent(
        agent_id=agent_id,
        version=1,
        name=agent_id,
        kind=kind,
        config={"function": "m:f"} if kind == "python" else {"model": "m"},
        content_hash="sha256:a",
        created_at=START,
        updated_at=START,
    )


def stored(steps: list[dict[str, Any]], **fields: Any) -> DefinitionVersion:
    return DefinitionVersion(
        definition_id="flow",
        version=3,
        content_hash="sha256:d",
        definition=WorkflowDefinition.model_validate({"name": "Flow", "steps": steps, **fields}),
        created_at=START,
        updated_at=START,
    )


def plan_of(steps: list[dict[str, Any]], **fields: Any) -> ExecutionPlan:
    """The plan of a definition; a step without ``agent_id`` has ``agent-a``."""
    version = stored([{"agent_id": "agent-a", **step} for step in steps], **fields)
    agents = {agent_id: agent(agent_id) for agent_id in agent_ids_of(version.definition)}
    return compile_plan(version, agents, [], default_max_retries=3)
