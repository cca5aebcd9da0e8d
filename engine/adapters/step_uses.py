"""Which agents the steps of a definition use, for stores that keep uses beside the definition.

What runs in the clean-up uses agents too: final steps and compensations. No handoff holds there, so a store keeps
apart what does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.domain.definition import Step, WorkflowDefinition

__all__ = ["AgentCallee", "StepUses", "step_uses"]


@dataclass(frozen=True, slots=True)
class AgentCallee:
    """An agent that a step calls, or calls to undo it."""

    agent_id: str
    is_clean_up: bool


@dataclass(frozen=True, slots=True)
class StepUses:
    """A step, and whom it uses."""

    step: Step
    position: int
    """Among all steps, the final ones last."""
    callees: tuple[AgentCallee, ...]
    """No agent twice."""
    fallbacks: tuple[str, ...]
    """Agents in the order of their turns; one may come again, for other reasons."""


def step_uses(definition: WorkflowDefinition) -> Iterator[StepUses]:
    """Give the steps of a definition, in its order, with the agents that each of them uses."""
    for position, step in enumerate([*definition.steps, *definition.final_steps]):
        callees: dict[str, bool] = {}
        if step.agent_id:
            callees[step.agent_id] = position >= len(definition.steps)
        if step.compensate is not None:
            callees.setdefault(step.compensate.agent_id, True)
        yield StepUses(
            step,
            position,
            tuple(AgentCallee(agent_id, is_clean_up) for agent_id, is_clean_up in callees.items()),
            tuple(fallback.agent_id for fallback in step.fallbacks),
        )
