"""Plans: compiled from what the stores hold now, once for each combination of versions.

A plan depends only on immutable versions, so a compiled one is kept in memory under their hashes; what is asked of
the stores at each start is which versions are current.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.domain.budgets import narrowed
from engine.domain.definition_reads import agent_ids_of, handed_agents
from engine.domain.execution import Event, ExecutionOptions, ExecutionRecord, ExecutionStatus, Value
from engine.domain.expressions import json_size
from engine.domain.hashing import content_hash
from engine.domain.issues import issue_details, summary
from engine.domain.json import MAX_VALUE_BYTES, json_fault
from engine.domain.live import live_execution, live_step
from engine.domain.messages import MAX_PAYLOAD_BYTES, LoadPlanInput, LoadPlanResult
from engine.domain.operands import declare
from engine.domain.plan import ExecutionPlan
from engine.domain.plan_compiler import compile_plan
from engine.domain.validation import check_input
from engine.errors import (
    AgentNotFoundError,
    ConflictError,
    DefinitionNotFoundError,
    InvalidInputError,
    LimitExceededError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from engine.domain.agent import Agent
    from engine.domain.definition import DefinitionVersion, WorkflowDefinition
    from engine.domain.execution import BudgetLimits, StepRecord
    from engine.domain.handoff import Handoff
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.agent_store import AgentStore
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.definition_store import DefinitionStore
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.handoff_store import HandoffStore
    from engine.ports.price_table import PriceTable
    from engine.ports.state_store import StateStore

__all__ = ["PlanService", "PreparedPlan"]

_MAX_KEPT: Final = 256

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedPlan:
    """A compiled plan with its hash and its stored form."""

    plan: ExecutionPlan
    plan_hash: str
    encoded: bytes
    input_schema: JsonObject | None


class PlanService:
    """Compiles plans and makes the records of runs that Temporal alone started; satisfies ``PlanLoader``."""

    def __init__(
        self,
        definitions: DefinitionStore,
        agents: AgentStore,
        handoffs: HandoffStore,
        executions: ExecutionStore,
        artifacts: ArtifactStore,
        state: StateStore,
        clock: Callable[[], datetime],
        default_max_retries: int,
        open_prices: Callable[[], PriceTable],
        default_base_url: str | None,
    ) -> None:
        """Take the ports, how to open the price table when a budget needs it, and where models are without base_url."""
        self._definitions = definitions
        self._agents = agents
        self._handoffs = handoffs
        self._executions = executions
        self._artifacts = artifacts
        self._state = state
        self._clock = clock
        self._default_max_retries = default_max_retries
        self._open_prices = open_prices
        self._default_base_url = default_base_url
        self._kept: OrderedDict[tuple[object, ...], PreparedPlan] = OrderedDict()
        self._latest: OrderedDict[tuple[str, int | None], ExecutionPlan] = OrderedDict()

    async def prepare_plan(self, definition_id: str, version: int | None = None) -> PreparedPlan:
        """Compile the plan of a workflow as it stands now.

        Raises:
            DefinitionNotFoundError: no such workflow or version, or a deleted one.
            AgentNotFoundError: a step names an agent that is not registered or not active.
        """
        stored, agents, handoffs = await self._current_parts(definition_id, version)
        children = await self._child_versions(stored.definition)
        key = (
            definition_id,
            stored.version,
            *children.items(),
            *((agent.agent_id, agent.version) for agent in agents.values()),
            *((handoff.handoff_id, handoff.version) for handoff in handoffs),
        )
        kept = self._kept.get(key)
        if kept is None:
            kept = self._compile(stored, agents, handoffs, children)
            self._kept[key] = kept
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        self._latest[definition_id, version] = kept.plan
        if len(self._latest) > _MAX_KEPT:
            self._latest.popitem(last=False)
        return kept

    async def check_budget(self, plan: ExecutionPlan, given: BudgetLimits | None) -> None:
        """Refuse a budget in US dollars when a model's price is not known: its spending could not be counted.

        Raises:
            InvalidInputError: with the models in ``details.models``.
        """
        limits = narrowed(plan.budget, given)
        if limits is None or limits.usd is None:
            return
        unpriced = await asyncio.to_thread(self._unpriced_models, plan)
        if unpriced:
            raise InvalidInputError(
                f"budget.usd needs the price of every model, and there is none of {', '.join(unpriced)}; put it into "
                "the file that prices_file names, or limit tokens instead",
                {"path": "budget.usd", "models": unpriced},
            )

    def _unpriced_models(self, plan: ExecutionPlan) -> list[str]:
        prices = self._open_prices()
        unpriced: dict[str, None] = {}
        for agent in plan.agents.values():
            model, base_url = agent.config.get("model"), agent.config.get("base_url") or self._default_base_url
            if agent.kind != "llm" or not isinstance(model, str):
                continue
            if prices.cost_of(model, base_url if isinstance(base_url, str) else None, 1000, 1000) is None:
                unpriced[model] = None
        return list(unpriced)

    async def stored_input(self, prepared: PreparedPlan, input_data: JsonValue) -> Value:
        """Check an execution's input and put it into the ArtifactStore when it is large.

        Raises:
            InvalidInputError: no JSON object, or one that the definition's ``input_schema`` refuses, or too large.
        """
        if not isinstance(input_data, dict):
            raise InvalidInputError('input_data must be an object, such as {"topic": "..."}', {"path": "input_data"})
        fault = json_fault(input_data, "input_data")
        if fault is not None:
            raise InvalidInputError(f"{fault}; pass plain JSON data", {"path": "input_data"})
        issues = check_input(prepared.input_schema, input_data)
        if issues:
            raise InvalidInputError(summary("input_data", issues), issue_details(issues))
        size = json_size(input_data, limit=MAX_VALUE_BYTES)
        if size > MAX_VALUE_BYTES:
            raise _too_large()
        if size <= MAX_PAYLOAD_BYTES:
            return Value.of(input_data)
        try:
            artifact = await self._artifacts.put_artifact(input_data)
        except LimitExceededError as error:
            raise _too_large() from error
        return Value(ref=declare(input_data, prepared.plan.declared_input, artifact))

    async def load_plan(self, request: LoadPlanInput) -> LoadPlanResult:
        """See ``PlanLoader``; a workflow id that was used before is a ``ConflictError``."""
        if request.plan_hash is not None:
            encoded = await self._executions.get_plan(request.plan_hash)
            if encoded is None:
                raise StoreError(
                    f"The plan {request.plan_hash} of execution {request.execution_id} is not in the store; restore it"
                )
            return LoadPlanResult(plan=ExecutionPlan.model_validate_json(encoded), plan_hash=request.plan_hash)
        existing = await self._executions.get_execution(request.execution_id)
        if (
            existing is not None
            and existing.run_id not in (None, request.run_id)
            and request.first_run_id == request.run_id
            and not _is_same_child(existing, request)
        ):
            raise ConflictError(
                f"The workflow id {request.execution_id} was used by an execution before; start with another one",
                {"execution_id": request.execution_id, "run_id": existing.run_id},
            )
        if existing is not None and (encoded := await self._executions.get_plan(existing.plan_hash)):
            # The run was reset, or the first try's answer was lost: it goes on with what it froze.
            return LoadPlanResult(
                plan=ExecutionPlan.model_validate_json(encoded),
                plan_hash=existing.plan_hash,
                input_ref=existing.input.ref,
            )
        prepared = await self.prepare_plan(request.definition_id, request.version)
        given = request.input
        if request.input_ref is not None:
            given = await self._artifacts.get_artifact(request.input_ref.artifact_id)
        stored_input = await self.stored_input(prepared, given)
        options = request.options or ExecutionOptions()
        await self.check_budget(prepared.plan, options.budget)
        record = new_record(request.execution_id, prepared, stored_input, given, options, self._clock()).model_copy(
            update={
                "run_id": request.run_id,
                "run_started_at": request.run_started_at,
                "parent_execution_id": request.parent.execution_id if request.parent else None,
            }
        )
        await self._executions.create_execution(record, prepared.encoded)
        await self.publish_start(record)
        return LoadPlanResult(plan=prepared.plan, plan_hash=prepared.plan_hash, input_ref=stored_input.ref)

    async def publish_start(self, record: ExecutionRecord, steps: Sequence[StepRecord] = ()) -> None:
        """Write the head of an execution's live state, and the steps that it begins with.

        A state store that is down costs nothing but speed.
        """
        try:
            await self._state.record_transition(
                record.execution_id,
                execution=live_execution(record),
                steps=[live_step(step) for step in steps],
                events=[*record.events, *(event for step in steps for event in step.events)],
            )
        except StoreError as error:
            _logger.warning("Live state of %s was not written: %s", record.execution_id, error)

    async def _current_parts(
        self, definition_id: str, version: int | None
    ) -> tuple[DefinitionVersion, dict[str, Agent], list[Handoff]]:
        """What a plan is made of, as the stores have it now.

        All at once when the agents are those of the last time, as they are unless the definition has changed since.
        """
        latest = self._latest.get((definition_id, version))
        if latest is not None:
            wanted = list(latest.agents)
            stored, agents, handoffs = await asyncio.gather(
                self._definitions.get_definition(definition_id, version),
                self._agents.get_agents(wanted),
                self._handoffs.list_handoffs_among(wanted, definition_id),
            )
            is_current = stored is not None and stored.content_hash == latest.definition_hash
            if stored is not None and is_current and stored.status == "active":
                needed = [*agent_ids_of(stored.definition), *handed_agents(stored.definition, handoffs)]
                if set(needed) <= set(wanted):
                    return stored, _usable_agents(stored, agents, needed), handoffs
        stored = await self._stored_definition(definition_id, version)
        wanted = agent_ids_of(stored.definition)
        while True:
            handoffs = await self._handoffs.list_handoffs_among(wanted, definition_id)
            more = [agent_id for agent_id in handed_agents(stored.definition, handoffs) if agent_id not in wanted]
            if not more:
                break
            wanted += more
        return stored, _usable_agents(stored, await self._agents.get_agents(wanted), wanted), handoffs

    async def _child_versions(self, definition: WorkflowDefinition) -> dict[str, int]:
        """The newest version of each workflow that a step executes; a pinned one has to be there as well.

        Raises:
            DefinitionNotFoundError: there is no such workflow or version.
        """
        newest: dict[str, int] = {}
        for step in (*definition.steps, *definition.final_steps):
            if step.workflow_id is None or (step.version is None and step.workflow_id in newest):
                continue
            child = await self._stored_definition(step.workflow_id, step.version)
            if step.version is None:
                newest[step.workflow_id] = child.version
        return newest

    async def _stored_definition(self, definition_id: str, version: int | None) -> DefinitionVersion:
        stored = await self._definitions.get_definition(definition_id, version)
        if stored is None and version is not None and await self._definitions.get_definition(definition_id):
            raise DefinitionNotFoundError(definition_id, version)
        if stored is None or stored.status != "active":
            raise DefinitionNotFoundError(definition_id)
        return stored

    def _compile(
        self,
        stored: DefinitionVersion,
        agents: dict[str, Agent],
        handoffs: list[Handoff],
        children: dict[str, int],
    ) -> PreparedPlan:
        plan = compile_plan(stored, agents, handoffs, self._default_max_retries, children)
        encoded = plan.model_dump_json().encode()
        return PreparedPlan(plan, plan.hash(), encoded, stored.definition.input_schema)


def _usable_agents(stored: DefinitionVersion, agents: dict[str, Agent], wanted: list[str]) -> dict[str, Agent]:
    for agent_id in wanted:
        agent = agents.get(agent_id)
        if agent is None or agent.status != "active":
            raise AgentNotFoundError(agent_id, {"workflow_id": stored.definition_id})
    return {agent_id: agents[agent_id] for agent_id in wanted}


def _is_same_child(existing: ExecutionRecord, request: LoadPlanInput) -> bool:
    """Whether a closed execution was a child of the same parent, which was reset and starts it again."""
    parent = request.parent
    return parent is not None and existing.status.is_terminal and existing.parent_execution_id == parent.execution_id


def new_record(
    execution_id: str,
    prepared: PreparedPlan,
    stored_input: Value,
    input_data: JsonValue,
    options: ExecutionOptions,
    now: datetime,
) -> ExecutionRecord:
    """The record of an execution that has been accepted and not begun."""
    plan = prepared.plan
    started = Event.at_instant("execution.started", now, execution_id, version=plan.version)
    return ExecutionRecord(
        execution_id=execution_id,
        definition_id=plan.definition_id,
        version=plan.version,
        plan_hash=prepared.plan_hash,
        status=ExecutionStatus.PENDING,
        input=stored_input,
        input_hash=content_hash(input_data),
        options=options,
        step_ids=[step.id for step in (*plan.steps, *plan.final_steps)],
        created_at=now,
        deadline_at=None if options.timeout is None else now + options.timeout,
        warnings=plan.warnings,
        events=[started],
    )


def _too_large() -> InvalidInputError:
    return InvalidInputError(
        f"input_data is larger than {MAX_VALUE_BYTES // 2**20} MiB; pass a reference to it instead",
        {"path": "input_data", "limit_bytes": MAX_VALUE_BYTES},
    )
