"""The execution plan: a definition with everything resolved that a run needs, frozen at its start and hashed.

Compiling happens once, outside the workflow: defaults are filled in, references become dependencies, agents and
handoffs are embedded as they are now. The interpreter then never looks anything up, so an update of a definition
or an agent can't touch a running execution.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.agent import Agent, PlanAgent
from engine.domain.conditions import parse_condition, parse_trigger
from engine.domain.context import ContextScope
from engine.domain.definition import DefinitionVersion, RetryPolicySpec, Step, WorkflowDefinition
from engine.domain.execution import ExecutionWarning
from engine.domain.expressions import Path, Template, compile_template, parse_path, render_path
from engine.domain.handoff import Handoff
from engine.domain.hashing import content_hash
from engine.domain.json import JsonObject, JsonValue

__all__ = [
    "DEFAULT_INITIAL_INTERVAL",
    "DEFAULT_MAX_INTERVAL",
    "DEFAULT_STEP_TIMEOUT",
    "ExecutionPlan",
    "PlanEdge",
    "PlanRecall",
    "PlanStep",
    "RetryPolicy",
    "agent_ids_of",
    "compile_plan",
    "default_output_mapping",
    "step_dependencies",
]

T = TypeVar("T")

DEFAULT_STEP_TIMEOUT: Final = timedelta(seconds=300)
DEFAULT_INITIAL_INTERVAL: Final = timedelta(seconds=1)
DEFAULT_MAX_INTERVAL: Final = timedelta(seconds=60)
DEFAULT_BACKOFF: Final = 2.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class RetryPolicy(_Frozen):
    """Temporal's retry policy in Temporal's words; ``maximum_attempts`` is at least 1 (0 would mean unlimited)."""

    maximum_attempts: int
    backoff_coefficient: float
    initial_interval: timedelta
    maximum_interval: timedelta
    jitter: bool = False
    non_retryable: list[str] = Field(default_factory=list[str])
    """Failure reasons that end the call at once, beside those that always do."""


class PlanRecall(_Frozen):
    """What a step is reminded of."""

    recall: str
    """Template of the text to find neighbours of."""
    top_k: int
    scope: ContextScope


class PlanEdge(_Frozen):
    """A handoff that governs a dependency between two steps."""

    handoff_id: str
    source_step: str
    source_agent_id: str
    target_agent_id: str
    trigger_conditions: list[str]
    data_mapping: dict[str, str]


class PlanStep(_Frozen):
    """A step with nothing left to look up."""

    id: str
    name: str
    agents: list[str]
    """The agent, then its fallbacks."""
    input_mapping: JsonObject
    output_mapping: JsonObject | None
    depends_on: list[str]
    """Direct dependencies in definition order: those named and those referred to."""
    timeout: timedelta
    total_timeout: timedelta | None
    retry: RetryPolicy
    when: str | None = None
    join: Literal["all", "any", "settled"] = "all"
    on_error: Literal["fail", "continue"] = "fail"
    at_most_once: bool = False
    fallback_on: list[str] = Field(default_factory=list[str])
    """Reasons that the fallback is called for; empty: all."""
    edges: list[PlanEdge] = Field(default_factory=list[PlanEdge])
    """Handoffs from direct dependencies, the first made first."""
    handed: list[str] = Field(default_factory=list[str])
    """Paths (``source_output.plan``) that the edges to other steps read."""
    output_schema: JsonObject | None = None
    """JSON Schema of the agent's reply."""
    recall: PlanRecall | None = None
    reply_keys: list[str] = Field(default_factory=list[str])
    """Top keys of the reply that mappings and handoffs read, for model agents without a schema."""
    declared: list[str]
    """Paths (``output.plan.title``) below the step's output that mappings read: a large output stays a reference."""


class ExecutionPlan(_Frozen):
    """What one execution runs."""

    definition_id: str
    version: int
    name: str
    description: str | None = None
    definition_hash: str
    tags: list[str]
    steps: list[PlanStep]
    """In definition order; dependencies may point forwards, cycles are impossible."""
    output: JsonValue
    """Template of the execution's output."""
    declared_input: list[str]
    """Paths (``input.topic``) below the input that mappings read."""
    agents: dict[str, PlanAgent]
    on_failure: Literal["cancel", "finish"] = "cancel"
    handoffs: list[Handoff] = Field(default_factory=list[Handoff])
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])

    @property
    def recalls(self) -> bool:
        """Whether any step is reminded of anything, so that every step's text must be findable at once."""
        return any(step.recall is not None for step in self.steps)

    def hash(self) -> str:
        """The content hash by which the plan is stored and referred to."""
        return content_hash(self.model_dump(mode="json"))


def agent_ids_of(definition: WorkflowDefinition) -> list[str]:
    """Every agent that the definition names, in order of first appearance."""
    ids: dict[str, None] = {}
    for step in definition.steps:
        ids[step.agent_id] = None
        if step.fallback is not None:
            ids[step.fallback.agent_id] = None
    return list(ids)


def step_dependencies(step: Step, templates: list[Template], order: dict[str, int]) -> list[str]:
    """The steps that must have settled before ``step``: named ones and referred ones, in definition order."""
    named = dict.fromkeys(step.depends_on)
    for paths in (*(template.paths for template in templates), _condition_paths(step)):
        named.update(dict.fromkeys(_referred_steps(paths)))
    return sorted(named, key=lambda step_id: order[step_id])


def _referred_steps(paths: tuple[Path, ...]) -> list[str]:
    return [str(path.segments[0]) for path in paths if path.root == "steps" and path.segments]


def default_output_mapping(leaves: list[str]) -> JsonValue:
    """The output of the only last step, or an object of the last steps' outputs by step id."""
    if len(leaves) == 1:
        return output_of(leaves[0])
    return {leaf: output_of(leaf) for leaf in leaves}


def output_of(step_id: str) -> str:
    """Return the mapping value that is a step's whole output."""
    return "${" + render_path("steps", (step_id, "output")) + "}"


def compile_plan(
    stored: DefinitionVersion,
    agents: dict[str, Agent],
    handoffs: list[Handoff],
    default_max_retries: int,
) -> ExecutionPlan:
    """Compile a valid definition.

    Args:
        stored: a version that passed validation.
        agents: every agent of ``agent_ids_of`` by id.
        handoffs: those that could touch this workflow; kept in the plan, with a warning for each that would act.
        default_max_retries: for steps that set none.
    """
    definition = stored.definition
    order = {step.id: index for index, step in enumerate(definition.steps)}
    templates = {step.id: _templates(step) for step in definition.steps}
    dependencies = {step.id: step_dependencies(step, templates[step.id], order) for step in definition.steps}
    has_dependants = {name for names in dependencies.values() for name in names}
    leaves = [step.id for step in definition.steps if step.id not in has_dependants]
    output: JsonValue = definition.output_mapping or default_output_mapping(leaves)

    reads: dict[str, dict[str, None]] = {step.id: {} for step in definition.steps}
    input_reads: dict[str, None] = {}
    mappings: dict[str, JsonObject] = {}
    for step in definition.steps:
        mapping = step.input_mapping
        if mapping is None:
            mapping = _default_input_mapping(dependencies[step.id])
            _collect_reads(compile_template(mapping).paths, reads, input_reads)
        mappings[step.id] = mapping
        for template in templates[step.id]:
            _collect_reads(template.paths, reads, input_reads)
    edges = {step.id: _edges_to(step, definition, dependencies[step.id], handoffs) for step in definition.steps}
    handed: dict[str, dict[str, None]] = {step.id: {} for step in definition.steps}
    for step in definition.steps:
        _collect_reads(_condition_paths(step), reads, input_reads)
        for edge in edges[step.id]:
            _collect_handed(edge, handed[edge.source_step])
            _collect_reads(_trigger_paths(edge.trigger_conditions), reads, input_reads)
    _collect_reads(compile_template(output).paths, reads, input_reads)

    asked = {
        step.id: _reply_keys(step, list(reads[step.id]), list(handed[step.id]), agents) for step in definition.steps
    }
    return ExecutionPlan(
        definition_id=stored.definition_id,
        version=stored.version,
        name=definition.name,
        description=definition.description,
        definition_hash=stored.content_hash,
        tags=definition.tags,
        steps=[
            _plan_step(
                step,
                definition,
                mappings[step.id],
                dependencies[step.id],
                list(reads[step.id]),
                asked[step.id],
                edges[step.id],
                list(handed[step.id]),
                default_max_retries,
            )
            for step in definition.steps
        ],
        output=output,
        declared_input=list(input_reads),
        agents={agent_id: _plan_agent(agents[agent_id]) for agent_id in agent_ids_of(definition)},
        on_failure=definition.on_failure,
        handoffs=handoffs,
        warnings=[warning for handoff in handoffs for warning in _handoff_warnings(handoff, definition)],
    )


def _templates(step: Step) -> list[Template]:
    recall: JsonObject | None = None if step.context is None else {"recall": step.context.recall}
    mappings = (step.input_mapping, step.output_mapping, recall)
    return [compile_template(mapping) for mapping in mappings if mapping is not None]


def _default_input_mapping(dependencies: list[str]) -> JsonObject:
    steps: JsonObject = {step_id: output_of(step_id) for step_id in dependencies}
    return {"input": "${input}", "steps": steps}


def _collect_reads(paths: tuple[Path, ...], reads: dict[str, dict[str, None]], input_reads: dict[str, None]) -> None:
    for path in paths:
        if path.root == "input" and path.segments:
            input_reads[render_path("input", path.segments)] = None
        elif path.root == "steps" and len(path.segments) > 2 and path.segments[1] == "output":
            # A handoff may read steps that this workflow does not have.
            reads.get(str(path.segments[0]), {})[render_path("output", path.segments[2:])] = None


def _plan_step(
    step: Step,
    definition: WorkflowDefinition,
    input_mapping: JsonObject,
    depends_on: list[str],
    declared: list[str],
    reply_keys: list[str],
    edges: list[PlanEdge],
    handed: list[str],
    default_max_retries: int,
) -> PlanStep:
    defaults = definition.defaults
    timeout = step.timeout or (defaults and defaults.timeout)
    total = step.total_timeout or (defaults and defaults.total_timeout)
    return PlanStep(
        id=step.id,
        name=step.name or step.id,
        agents=[step.agent_id, *([step.fallback.agent_id] if step.fallback else [])],
        input_mapping=input_mapping,
        output_mapping=step.output_mapping,
        depends_on=depends_on,
        timeout=timedelta(seconds=timeout) if timeout else DEFAULT_STEP_TIMEOUT,
        total_timeout=timedelta(seconds=total) if total else None,
        retry=_retry_policy(step, defaults and defaults.retry_policy, default_max_retries),
        when=step.when,
        join=step.join,
        on_error=step.on_error,
        at_most_once=step.at_most_once,
        fallback_on=(step.fallback and step.fallback.on) or [],
        edges=edges,
        handed=handed,
        output_schema=step.output_schema,
        recall=PlanRecall(**step.context.model_dump()) if step.context else None,
        reply_keys=reply_keys,
        declared=declared,
    )


def _reply_keys(step: Step, declared: list[str], handed: list[str], agents: dict[str, Agent]) -> list[str]:
    """What a model is asked for when it has no schema: the keys of its reply that somebody reads."""
    called = [step.agent_id, *([step.fallback.agent_id] if step.fallback else [])]
    if not any(agents[agent_id].kind == "llm" for agent_id in called):
        return []
    mapping = step.output_mapping
    paths = [parse_path(text) for text in declared] if mapping is None else compile_template(mapping).paths
    keys = [path.segments[0] for path in paths if path.root == "output" and path.segments]
    mapped = mapping or {}
    keys += [key for text in handed for key in parse_path(text).segments[:1] if key not in mapped]
    return list(dict.fromkeys(key for key in keys if isinstance(key, str)))


def _retry_policy(step: Step, common: RetryPolicySpec | None, default_max_retries: int) -> RetryPolicy:
    own = step.retry_policy or RetryPolicySpec()
    common = common or RetryPolicySpec()
    retries = 0 if step.at_most_once else _first(own.max_retries, common.max_retries, default_max_retries)
    initial = _first(own.initial_interval, common.initial_interval, DEFAULT_INITIAL_INTERVAL.total_seconds())
    longest = _first(own.max_interval, common.max_interval, DEFAULT_MAX_INTERVAL.total_seconds())
    return RetryPolicy(
        maximum_attempts=int(retries) + 1,
        backoff_coefficient=_first(own.backoff_factor, common.backoff_factor, DEFAULT_BACKOFF),
        initial_interval=timedelta(seconds=initial),
        maximum_interval=timedelta(seconds=max(initial, longest)),
        jitter=bool(common.jitter if own.jitter is None else own.jitter),
        non_retryable=_first(own.non_retryable, common.non_retryable, []),
    )


def _first(*choices: T | None) -> T:
    return next(choice for choice in choices if choice is not None)


def _plan_agent(agent: Agent) -> PlanAgent:
    return PlanAgent(
        agent_id=agent.agent_id,
        version=agent.version,
        kind=agent.kind,
        config=agent.config,
        tools=agent.tools,
    )


def _condition_paths(step: Step) -> tuple[Path, ...]:
    return () if step.when is None else parse_condition(step.when).paths


def _trigger_paths(texts: list[str]) -> tuple[Path, ...]:
    return tuple(path for condition in parse_trigger(texts).conditions for path in condition.paths)


def _edges_to(
    step: Step, definition: WorkflowDefinition, dependencies: list[str], handoffs: list[Handoff]
) -> list[PlanEdge]:
    """The handoffs between a step's direct dependencies and itself, the first made first."""
    if definition.handoffs == "off":
        return []
    agent_of = {other.id: other.agent_id for other in definition.steps}
    ordered = sorted(handoffs, key=lambda handoff: (handoff.created_at, handoff.handoff_id))
    return [
        PlanEdge(
            handoff_id=handoff.handoff_id,
            source_step=source,
            source_agent_id=handoff.source_agent_id,
            target_agent_id=handoff.target_agent_id,
            trigger_conditions=handoff.trigger_conditions,
            data_mapping=handoff.data_mapping,
        )
        for source in dependencies
        for handoff in ordered
        if handoff.handoff_type != "escalation"
        and (handoff.source_agent_id, handoff.target_agent_id) == (agent_of[source], step.agent_id)
    ]


def _collect_handed(edge: PlanEdge, handed: dict[str, None]) -> None:
    for key in edge.data_mapping:
        handed[render_path("source_output", (key,))] = None
    for path in _trigger_paths(edge.trigger_conditions):
        if path.root == "source_output":
            handed[render_path("source_output", path.segments)] = None


def _handoff_warnings(handoff: Handoff, definition: WorkflowDefinition) -> list[ExecutionWarning]:
    if handoff.handoff_type != "escalation" or definition.handoffs == "off":
        return []
    return [
        ExecutionWarning(
            code="unsupported",
            message=(
                f"Handoff {handoff.handoff_id} ({handoff.handoff_type}, {handoff.source_agent_id} to "
                f"{handoff.target_agent_id}) is stored but not acted on yet: a failure of step {step.id} is not "
                "escalated"
            ),
            step_id=step.id,
        )
        for step in definition.steps
        if step.agent_id == handoff.source_agent_id
    ]
