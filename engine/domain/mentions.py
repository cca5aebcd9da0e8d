"""Where a definition names agents and workflows: what has to exist when it is executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.domain.definition import Step, WorkflowDefinition
    from engine.domain.issues import Location

__all__ = ["agent_mentions", "workflow_mentions"]


def agent_mentions(definition: WorkflowDefinition) -> Iterator[tuple[str, Location]]:
    """Yield each agent that is named and where, repeated ones too: by steps, fallbacks and compensations."""
    for step, place in _steps(definition):
        if step.agent_id:
            yield step.agent_id, (*place, "agent_id")
        is_list = isinstance(step.fallback, list)
        for index, fallback in enumerate(step.fallbacks):
            yield fallback.agent_id, (*place, "fallback", *((index,) if is_list else ()), "agent_id")
        if step.compensate is not None:
            yield step.compensate.agent_id, (*place, "compensate", "agent_id")


def workflow_mentions(definition: WorkflowDefinition) -> Iterator[tuple[str, Location]]:
    """Yield each workflow that a step executes and where, repeated ones too."""
    for step, place in _steps(definition):
        if step.workflow_id is not None:
            yield step.workflow_id, (*place, "workflow_id")


def _steps(definition: WorkflowDefinition) -> Iterator[tuple[Step, Location]]:
    for key, steps in (("steps", definition.steps), ("finally", definition.final_steps)):
        for index, step in enumerate(steps):
            yield step, (key, index)
