"""From a definition to the plan that a run follows.

Compiling happens once, outside the workflow: defaults are filled in, references become dependencies, agents and
handoffs are embedded as they are now, and whatever somebody reads of a step's output is declared, so that a large
output can stay out of the run's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from engine.domain.agent import Agent, PlanAgent
from engine.domain.conditions import parse_condition, parse_trigger
from engine.domain.definition import DefinitionVersion, RetryPolicySpec, Step, StepDefaults
from engine.domain.definition_reads import (
    agent_ids_of,
    all_steps,
    by_creation,
    compensation_id,
    default_output_mapping,
    handed_agents,
    step_dependencies,
    step_reads,
)
from engine.domain.execution import BudgetLimits
from engine.domain.expressions import Path, compile_template, parse_path, render_path
from engine.domain.plan import (
    DEFAULT_STEP_TIMEOUT,
    ExecutionPlan,
    PlanApproval,
    PlanChild,
    PlanDefaults,
    PlanEdge,
    PlanForEach,
    PlanRecall,
    PlanRepeat,
    PlanStep,
    PlanWait,
    RetryPolicy,
    output_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.handoff import Handoff
    from engine.domain.json import JsonObject, JsonValue

__all__ = [
    "DEFAULT_INITIAL_INTERVAL",
    "DEFAULT_MAX_INTERVAL",
    "compile_plan",
]

T = TypeVar("T")

DEFAULT_INITIAL_INTERVAL: Final = timedelta(seconds=1)
DEFAULT_MAX_INTERVAL: Final = timedelta(seconds=60)
DEFAULT_BACKOFF: Final = 2.0
SOURCE_OUTPUT: Final = "source_output"


def compile_plan(
    stored: DefinitionVersion,
    agents: Mapping[str, Agent],
    handoffs: list[Handoff],
    default_max_retries: int,
    child_versions: Mapping[str, int] | None = None,
) -> ExecutionPlan:
    """Compile a valid definition.

    Args:
        stored: a version that passed validation.
        agents: every agent of ``agent_ids_of`` and ``handed_agents``, by id.
        handoffs: those whose source is one of these agents and that hold for this workflow.
        default_max_retries: for steps that set none.
        child_versions: the newest version of each workflow that a step executes and does not pin.
    """
    return _Compiler(stored, agents, handoffs, default_max_retries, child_versions or {}).plan()


@dataclass(slots=True)
class _Reads:
    """What is read of one step."""

    output: dict[str, None] = field(default_factory=dict[str, None])
    handed: dict[str, None] = field(default_factory=dict[str, None])


class _Compiler:
    def __init__(
        self,
        stored: DefinitionVersion,
        agents: Mapping[str, Agent],
        handoffs: list[Handoff],
        default_max_retries: int,
        child_versions: Mapping[str, int],
    ) -> None:
        definition = stored.definition
        self._stored = stored
        self._definition = definition
        self._agents = agents
        self._defaults = definition.defaults or StepDefaults()
        self._max_retries = default_max_retries
        self._child_versions = child_versions
        self._handoffs = [] if definition.handoffs == "off" else by_creation(handoffs)
        self._order = {step.id: index for index, step in enumerate(definition.steps)}
        self._final_order = {step.id: index for index, step in enumerate(definition.final_steps)}
        self._depends_on = {step.id: step_dependencies(step, self._order) for step in definition.steps}
        self._depends_on |= {step.id: step_dependencies(step, self._final_order) for step in definition.final_steps}
        self._mappings = {step.id: self._input_mapping(step) for step in all_steps(definition)}
        agent_of = {step.id: step.agent_id for step in definition.steps}
        self._agents_after: dict[str, set[str]] = {}
        """Step to the agents of the steps that wait for it."""
        for step in definition.steps:
            for source in self._depends_on[step.id]:
                self._agents_after.setdefault(source, set()).add(step.agent_id)
        self._edges = {step.id: self._edges_to(step, agent_of) for step in definition.steps}
        self._follows = {step.id: self._followed_from(step) for step in definition.steps}
        self._reads = {step_id: _Reads() for step_id in self._depends_on}
        self._input_reads: dict[str, None] = {}

    def plan(self) -> ExecutionPlan:
        definition = self._definition
        has_dependants = {name for step in definition.steps for name in self._depends_on[step.id]}
        leaves = [step.id for step in definition.steps if step.id not in has_dependants]
        output: JsonValue = definition.output_mapping or default_output_mapping(leaves)
        for step in all_steps(definition):
            self._collect(step)
        self._collect_paths(compile_template(output).paths)
        named = [*agent_ids_of(definition), *handed_agents(definition, self._handoffs)]
        follows = definition.handoffs == "follow"
        return ExecutionPlan(
            definition_id=self._stored.definition_id,
            version=self._stored.version,
            name=definition.name,
            description=definition.description,
            definition_hash=self._stored.content_hash,
            tags=definition.tags,
            steps=[self._plan_step(step) for step in definition.steps],
            final_steps=[self._plan_step(step) for step in definition.final_steps],
            output=output,
            declared_input=list(self._input_reads),
            agents={agent_id: _plan_agent(self._agents[agent_id]) for agent_id in named},
            on_failure=definition.on_failure,
            cleanup_timeout=timedelta(seconds=definition.cleanup_timeout),
            budget=None if definition.budget is None else BudgetLimits(**definition.budget.model_dump()),
            handoffs=[one for one in self._handoffs if one.handoff_type != "escalation"] if follows else [],
            escalations=[one for one in self._handoffs if one.handoff_type == "escalation"] if follows else [],
            max_handoffs=definition.max_handoffs,
            defaults=self._plan_defaults() if follows else None,
        )

    def _input_mapping(self, step: Step) -> JsonObject:
        if step.input_mapping is not None:
            return step.input_mapping
        mapping = _default_input_mapping(self._depends_on[step.id])
        return mapping if step.foreach is None else {"item": "${item}", "index": "${index}", **mapping}

    def _edges_to(self, step: Step, agent_of: Mapping[str, str]) -> list[PlanEdge]:
        """The handoffs between a step's direct dependencies and itself, the first made first."""
        return [
            PlanEdge(
                handoff_id=handoff.handoff_id,
                source_step=source,
                source_agent_id=handoff.source_agent_id,
                target_agent_id=handoff.target_agent_id,
                trigger_conditions=handoff.trigger_conditions,
                data_mapping=handoff.data_mapping,
            )
            for source in self._depends_on[step.id]
            for handoff in self._handoffs
            if handoff.handoff_type != "escalation"
            and (handoff.source_agent_id, handoff.target_agent_id) == (agent_of[source], step.agent_id)
        ]

    def _followed_from(self, step: Step) -> list[Handoff]:
        if self._definition.handoffs != "follow" or not step.agent_id:
            return []
        governed = self._agents_after.get(step.id, set())
        return [
            handoff
            for handoff in self._handoffs
            if handoff.handoff_type != "escalation"
            and handoff.source_agent_id == step.agent_id
            and handoff.target_agent_id not in governed
        ]

    def _collect(self, step: Step) -> None:
        self._collect_paths(compile_template(self._mappings[step.id]).paths)
        self._collect_paths(step_reads(step))
        if step.compensate is not None:
            mapping = step.compensate.input_mapping or _default_input_mapping([step.id])
            self._collect_paths(compile_template(mapping).paths)
        for edge in self._edges.get(step.id, ()):
            handed = self._reads[edge.source_step].handed
            handed.update(dict.fromkeys(render_path(SOURCE_OUTPUT, (key,)) for key in edge.data_mapping))
            self._collect_trigger(edge.trigger_conditions, handed)
        for handoff in self._follows.get(step.id, ()):
            handed = self._reads[step.id].handed
            keys = [(key,) for key in handoff.data_mapping] or [()]
            handed.update(dict.fromkeys(render_path(SOURCE_OUTPUT, key) for key in keys))
            self._collect_trigger(handoff.trigger_conditions, handed)
        if step.repeat_until is not None:
            own = [path for path in parse_condition(step.repeat_until.condition).paths if path.root == "output"]
            self._reads[step.id].handed.update(dict.fromkeys(render_path(SOURCE_OUTPUT, path.segments) for path in own))

    def _collect_trigger(self, conditions: list[str], handed: dict[str, None]) -> None:
        for path in _trigger_paths(conditions):
            if path.root == SOURCE_OUTPUT:
                handed[render_path(SOURCE_OUTPUT, path.segments)] = None
            else:
                self._collect_paths((path,))

    def _collect_paths(self, paths: tuple[Path, ...]) -> None:
        for path in paths:
            if path.root == "input" and path.segments:
                self._input_reads[render_path("input", path.segments)] = None
            elif path.root == "steps" and len(path.segments) > 2 and path.segments[1] == "output":
                read = self._reads.get(str(path.segments[0]))
                if read is not None:
                    read.output[render_path("output", path.segments[2:])] = None

    def _plan_step(self, step: Step) -> PlanStep:
        reads = self._reads[step.id]
        timeout = step.timeout or self._defaults.timeout
        total = step.total_timeout or self._defaults.total_timeout
        return PlanStep(
            id=step.id,
            name=step.name or step.id,
            type=step.type,
            agents=step.called_agents,
            input_mapping=self._mappings[step.id],
            output_mapping=step.output_mapping,
            depends_on=self._depends_on[step.id],
            timeout=timedelta(seconds=timeout) if timeout else DEFAULT_STEP_TIMEOUT,
            total_timeout=timedelta(seconds=total) if total else None,
            retry=self._retry_policy(step.retry_policy, at_most_once=step.at_most_once),
            when=step.when,
            join=step.join,
            on_error=step.on_error,
            at_most_once=step.at_most_once,
            fallback_reasons=[fallback.on or [] for fallback in step.fallbacks],
            edges=self._edges.get(step.id, []),
            escalations=self._escalations(step),
            follows=self._follows.get(step.id, []),
            handed=list(reads.handed),
            output_schema=step.output_schema,
            recall=PlanRecall(**step.context.model_dump()) if step.context else None,
            reply_keys=self._reply_keys(step),
            declared=list(reads.output),
            foreach=_plan_foreach(step),
            repeat=PlanRepeat(**step.repeat_until.model_dump()) if step.repeat_until else None,
            transform=step.transform,
            wait=PlanWait(**step.wait.model_dump()) if step.wait else None,
            approval=_plan_approval(step),
            child=self._plan_child(step),
            compensation=self._compensation(step),
        )

    def _escalations(self, step: Step) -> list[Handoff]:
        if step.id not in self._order:
            return []
        return [
            handoff
            for handoff in self._handoffs
            if handoff.handoff_type == "escalation" and handoff.source_agent_id == step.agent_id
        ]

    def _plan_child(self, step: Step) -> PlanChild | None:
        if step.workflow_id is None:
            return None
        version = step.version or self._child_versions.get(step.workflow_id, 1)
        timeout = None if step.timeout is None else timedelta(seconds=step.timeout)
        return PlanChild(definition_id=step.workflow_id, version=version, timeout=timeout)

    def _compensation(self, step: Step) -> PlanStep | None:
        if step.compensate is None:
            return None
        defaults = self._plan_defaults()
        return PlanStep(
            id=compensation_id(step.id),
            name=f"{step.name or step.id}: compensate",
            agents=[step.compensate.agent_id],
            input_mapping=step.compensate.input_mapping or _default_input_mapping([step.id]),
            output_mapping=None,
            depends_on=[],
            timeout=defaults.timeout,
            total_timeout=defaults.total_timeout,
            retry=defaults.retry,
            declared=[],
        )

    def _plan_defaults(self) -> PlanDefaults:
        timeout, total = self._defaults.timeout, self._defaults.total_timeout
        return PlanDefaults(
            timeout=timedelta(seconds=timeout) if timeout else DEFAULT_STEP_TIMEOUT,
            total_timeout=timedelta(seconds=total) if total else None,
            retry=self._retry_policy(None),
        )

    def _reply_keys(self, step: Step) -> list[str]:
        """What a model is asked for when it has no schema: the keys of its reply that somebody reads."""
        if not any(self._agents[agent_id].kind == "llm" for agent_id in step.called_agents):
            return []
        reads = self._reads[step.id]
        mapping = step.output_mapping
        read = [parse_path(text) for text in reads.output]
        paths = read if mapping is None else compile_template(mapping).paths
        keys = [path.segments[0] for path in paths if path.root == "output" and path.segments]
        mapped = mapping or {}
        keys += [key for text in reads.handed for key in parse_path(text).segments[:1] if key not in mapped]
        return list(dict.fromkeys(key for key in keys if isinstance(key, str)))

    def _retry_policy(self, own: RetryPolicySpec | None, *, at_most_once: bool = False) -> RetryPolicy:
        own = own or RetryPolicySpec()
        common = self._defaults.retry_policy or RetryPolicySpec()
        retries = 0 if at_most_once else _first(own.max_retries, common.max_retries, self._max_retries)
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


def _default_input_mapping(dependencies: list[str]) -> JsonObject:
    steps: JsonObject = {step_id: output_of(step_id) for step_id in dependencies}
    return {"input": "${input}", "steps": steps}


def _trigger_paths(texts: list[str]) -> tuple[Path, ...]:
    return tuple(path for condition in parse_trigger(texts).conditions for path in condition.paths)


def _plan_foreach(step: Step) -> PlanForEach | None:
    spec = step.foreach
    if spec is None:
        return None
    tolerate = spec.tolerate
    return PlanForEach(
        items=spec.items,
        name=spec.name,
        max_concurrency=spec.max_concurrency,
        tolerated=tolerate if isinstance(tolerate, int) else None,
        tolerated_share=0.0 if isinstance(tolerate, int) else float(tolerate.rstrip().removesuffix("%")) / 100,
    )


def _plan_approval(step: Step) -> PlanApproval | None:
    spec = step.approval
    if spec is None:
        return None
    fields = spec.model_dump(exclude={"timeout", "fail_on"})
    return PlanApproval(
        **fields,
        timeout=None if spec.timeout is None else timedelta(seconds=spec.timeout),
        fail_on=[answer for answer in spec.fail_on if answer in spec.allowed],
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
