"""What a definition names and reads: agents, and the steps that each of its steps waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.conditions import parse_condition
from engine.domain.expressions import Path, compile_template
from engine.domain.plan import output_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.definition import Step, WorkflowDefinition
    from engine.domain.handoff import Handoff
    from engine.domain.json import JsonValue

__all__ = [
    "agent_ids_of",
    "all_steps",
    "by_creation",
    "compensation_id",
    "default_output_mapping",
    "handed_agents",
    "step_dependencies",
    "step_reads",
]


def agent_ids_of(definition: WorkflowDefinition) -> list[str]:
    """Every agent that the definition names, in order of first appearance."""
    ids: dict[str, None] = {}
    for step in all_steps(definition):
        ids.update(dict.fromkeys(step.called_agents))
        if step.compensate is not None:
            ids[step.compensate.agent_id] = None
    return list(ids)


def handed_agents(definition: WorkflowDefinition, handoffs: list[Handoff]) -> list[str]:
    """The agents that handoffs may call beside those that the definition names, in order of first appearance.

    Call it again with the handoffs of the agents that it names: who is handed over to may hand over as well.
    """
    if definition.handoffs == "off":
        return []
    sources = {step.agent_id for step in definition.steps if step.agent_id}
    found: dict[str, None] = {}
    for handoff in by_creation(handoffs):
        if handoff.source_agent_id in sources and handoff.handoff_type == "escalation":
            found[handoff.target_agent_id] = None
    if definition.handoffs == "follow":
        reached = dict.fromkeys(sources)
        grown = True
        while grown:
            grown = False
            for handoff in by_creation(handoffs):
                is_new = handoff.source_agent_id in reached and handoff.target_agent_id not in reached
                if is_new and handoff.handoff_type != "escalation":
                    found[handoff.target_agent_id] = reached[handoff.target_agent_id] = None
                    grown = True
        for handoff in by_creation(handoffs):
            if handoff.source_agent_id in reached and handoff.handoff_type == "escalation":
                found[handoff.target_agent_id] = None
    named = set(agent_ids_of(definition))
    return [agent_id for agent_id in found if agent_id not in named]


def step_reads(step: Step) -> tuple[Path, ...]:
    """Every path that a step reads of its run before or while it runs."""
    templates: list[JsonValue] = [step.input_mapping, step.output_mapping, step.transform]
    if step.context is not None:
        templates.append(step.context.recall)
    if step.foreach is not None:
        templates.append(step.foreach.items)
    if step.approval is not None:
        templates.append(step.approval.question)
    if step.wait is not None:
        templates += [step.wait.seconds, step.wait.until]
    paths = [path for template in templates if template is not None for path in compile_template(template).paths]
    for condition in (step.when, step.repeat_until and step.repeat_until.condition):
        if condition is not None:
            paths += parse_condition(condition).paths
    return tuple(paths)


def step_dependencies(step: Step, order: Mapping[str, int]) -> list[str]:
    """The steps that must have settled before ``step``: named ones and those it reads, in definition order.

    Args:
        step: of a valid definition.
        order: position of each step that it can wait for, by id; reads of others make no dependency.
    """
    read = [str(path.segments[0]) for path in step_reads(step) if path.root == "steps" and path.segments]
    named = dict.fromkeys([*step.depends_on, *(name for name in read if name in order and name != step.id)])
    return sorted(named, key=lambda step_id: order[step_id])


def default_output_mapping(leaves: list[str]) -> JsonValue:
    """The output of the only last step, or an object of the last steps' outputs by step id."""
    if len(leaves) == 1:
        return output_of(leaves[0])
    return {leaf: output_of(leaf) for leaf in leaves}


def compensation_id(step_id: str) -> str:
    """The id of the step that a run adds to undo another."""
    return f"{step_id}:compensate"


def all_steps(definition: WorkflowDefinition) -> list[Step]:
    """The steps, and those of ``finally``."""
    return [*definition.steps, *definition.final_steps]


def by_creation(handoffs: list[Handoff]) -> list[Handoff]:
    """Handoffs, the first made first."""
    return sorted(handoffs, key=lambda handoff: (handoff.created_at, handoff.handoff_id))
