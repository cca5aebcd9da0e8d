"""A definition as a graph of steps: who waits for whom, at which level, and which handoffs act where.

Made from one version and the handoffs that hold for it, without its agents: what is drawn or told of a definition must
not depend on whether its agents are registered yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from engine.domain.definition_reads import compensation_id, step_dependencies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.domain.definition import DefinitionVersion, Step
    from engine.domain.execution import StepStatus
    from engine.domain.handoff import Handoff
    from engine.domain.plan import ExecutionPlan

__all__ = [
    "COMPENSATE",
    "FOLLOWED",
    "AddedStep",
    "DefinitionGraph",
    "GraphEdge",
    "GraphHandoff",
    "GraphStep",
    "RunStates",
    "definition_graph",
    "frozen_handoffs",
    "stored_handoffs",
]

COMPENSATE: Final = compensation_id("")
"""Behind the id of the step that is undone."""
FOLLOWED: Final = ">"
"""Between a step and the agent that it was handed over to."""


@dataclass(frozen=True, slots=True)
class GraphHandoff:
    """A handoff between two agents, as far as a drawing shows it."""

    handoff_id: str
    source_agent_id: str
    target_agent_id: str
    trigger_conditions: tuple[str, ...]
    is_escalation: bool


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """A dependency, with the handoffs that govern it: one of them must fire."""

    source: str
    handoffs: list[GraphHandoff]


@dataclass(frozen=True, slots=True)
class GraphStep:
    """A step and what surrounds it."""

    step: Step
    edges: list[GraphEdge]
    """From its direct dependencies, in definition order."""
    level: int
    """From 0: one more than the highest of its dependencies."""
    leaving: list[GraphHandoff] = field(default_factory=list[GraphHandoff])
    """Handoffs that may add a step behind this one, and escalations of this one; the first made first."""


@dataclass(frozen=True, slots=True)
class AddedStep:
    """A step that no definition has: a handoff was followed, or a step was undone."""

    id: str
    kind: Literal["handoff", "compensation"]
    source: str
    """The step behind which it was added."""
    agent_id: str
    status: StepStatus


@dataclass(frozen=True, slots=True)
class RunStates:
    """Where the steps of one execution stand."""

    execution_id: str
    status: str
    steps: dict[str, StepStatus]
    """Of the steps that were heard of; the others are pending."""
    added: list[AddedStep] = field(default_factory=list[AddedStep])


@dataclass(frozen=True, slots=True)
class DefinitionGraph:
    """A version's steps in definition order."""

    version: DefinitionVersion
    main: list[GraphStep]
    final: list[GraphStep]


def stored_handoffs(handoffs: Iterable[Handoff]) -> list[GraphHandoff]:
    """Return handoffs for ``definition_graph``, the first made first."""
    return [
        GraphHandoff(
            handoff.handoff_id,
            handoff.source_agent_id,
            handoff.target_agent_id,
            tuple(handoff.trigger_conditions),
            handoff.handoff_type == "escalation",
        )
        for handoff in sorted(handoffs, key=lambda handoff: (handoff.created_at, handoff.handoff_id))
    ]


def frozen_handoffs(plan: ExecutionPlan) -> list[GraphHandoff]:
    """Return the handoffs that an execution began with, for ``definition_graph``."""
    found: dict[str, GraphHandoff] = {}
    for step in plan.steps:
        for edge in step.edges:
            found[edge.handoff_id] = GraphHandoff(
                edge.handoff_id,
                edge.source_agent_id,
                edge.target_agent_id,
                tuple(edge.trigger_conditions),
                is_escalation=False,
            )
        for handoff in stored_handoffs([*step.escalations, *step.follows]):
            found[handoff.handoff_id] = handoff
    return list(found.values())


def definition_graph(version: DefinitionVersion, handoffs: list[GraphHandoff]) -> DefinitionGraph:
    """Make the graph of a valid definition.

    Args:
        version: what to draw.
        handoffs: those that hold for it, of any agents, the first made first.
    """
    definition = version.definition
    acting = [] if definition.handoffs == "off" else handoffs
    return DefinitionGraph(
        version,
        _steps(definition.steps, acting, follows=definition.handoffs == "follow"),
        _steps(definition.final_steps, [], follows=False),
    )


def _steps(steps: list[Step], handoffs: list[GraphHandoff], *, follows: bool) -> list[GraphStep]:
    order = {step.id: index for index, step in enumerate(steps)}
    dependencies = {step.id: step_dependencies(step, order) for step in steps}
    levels = _levels(dependencies)
    between: dict[tuple[str, str], list[GraphHandoff]] = {}
    leaving: dict[str, list[GraphHandoff]] = {}
    for handoff in handoffs:
        if not handoff.is_escalation:
            between.setdefault((handoff.source_agent_id, handoff.target_agent_id), []).append(handoff)
        if handoff.is_escalation or follows:
            leaving.setdefault(handoff.source_agent_id, []).append(handoff)
    agents = {step.id: step.agent_id for step in steps if step.type == "agent"}
    targets: dict[str, set[str]] = {step.id: set() for step in steps}
    for step_id, names in dependencies.items():
        for name in names:
            targets[name].add(agents.get(step_id, ""))
    return [
        GraphStep(
            step,
            [
                GraphEdge(name, between.get((agents.get(name, ""), agents.get(step.id, "")), []))
                for name in dependencies[step.id]
            ],
            levels[step.id],
            [
                handoff
                for handoff in leaving.get(agents.get(step.id, ""), [])
                if handoff.is_escalation or handoff.target_agent_id not in targets[step.id]
            ],
        )
        for step in steps
    ]


def _levels(dependencies: dict[str, list[str]]) -> dict[str, int]:
    """Step to level. A definition has no cycles."""
    levels: dict[str, int] = {}
    dependants: dict[str, list[str]] = {step_id: [] for step_id in dependencies}
    missing = {step_id: len(names) for step_id, names in dependencies.items()}
    for step_id, names in dependencies.items():
        for name in names:
            dependants[name].append(step_id)
    ready = [step_id for step_id, count in missing.items() if not count]
    for step_id in ready:
        levels[step_id] = max((levels[name] + 1 for name in dependencies[step_id]), default=0)
        for dependant in dependants[step_id]:
            missing[dependant] -= 1
            if not missing[dependant]:
                ready.append(dependant)
    return levels
