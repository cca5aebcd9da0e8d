"""What the stores know of one run, read at once: the calls with their values, the frozen plan's handoffs, the gates.

A recording needs more of a run than the API shows: each turn, item and fallback has a record of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from engine.calls.base import on_own_loop
from engine.domain.plan import ExecutionPlan
from engine.errors import DefinitionNotFoundError, ExecutionNotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.domain.definition import WorkflowDefinition
    from engine.domain.execution import ExecutionRecord, StepRecord
    from engine.domain.gate import GateRecord
    from engine.domain.handoff import Handoff
    from engine.domain.json import JsonValue
    from engine.domain.plan import PlanEdge
    from engine.facade import WorkflowEngine
    from engine.ports.execution_store import ExecutionStore

__all__ = ["CallRecord", "RunRecords", "read_run"]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """The record of one logical call, and what is behind its references."""

    record: StepRecord
    input: JsonValue
    output: JsonValue
    handed: JsonValue


@dataclass(frozen=True, slots=True)
class RunRecords:
    """One run."""

    execution: ExecutionRecord
    definition: WorkflowDefinition
    """Of the version that ran."""
    calls: list[CallRecord]
    """The earliest first."""
    gates: list[GateRecord]
    """The first opened first."""
    handoffs: list[Handoff | PlanEdge]
    """Of the frozen plan; where order decides, the first made first."""


@on_own_loop
async def read_run(engine: WorkflowEngine, execution_id: str) -> RunRecords:
    """Read one run.

    Raises:
        ExecutionNotFoundError: there is no such execution.
        DefinitionNotFoundError: the store does not have its version.
        StoreError: the store is not there, or has lost the plan.
    """
    stores = engine._session().stores  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # read like a call of the engine
    execution = await stores.executions.get_execution(execution_id)
    if execution is None:
        raise ExecutionNotFoundError(execution_id)
    encoded = await stores.executions.get_plan(execution.plan_hash)
    if encoded is None:
        raise StoreError(f"The plan {execution.plan_hash} of execution {execution_id} is not in the store; restore it")
    stored = await stores.definitions.get_definition(execution.definition_id, execution.version)
    if stored is None:
        raise DefinitionNotFoundError(execution.definition_id, execution.version)
    records = await stores.executions.list_steps(execution_id)
    gates = await _gates(stores.executions, execution, None)
    # What a rerun has kept was called in another run, where its turns, items and gates are.
    kept = {record.step_id: record.reused_from for record in records if record.reused_from is not None}
    for payer_id in dict.fromkeys(kept.values()):
        payer = await stores.executions.get_execution(payer_id)
        paid = {step_id for step_id, of_step in kept.items() if of_step == payer_id}
        if payer is not None:
            records = [record for record in records if record.step_id not in paid]
            records += [record for record in await stores.executions.list_steps(payer_id) if record.step_id in paid]
            gates = [*await _gates(stores.executions, payer, paid), *gates]
    records.sort(key=lambda record: (record.token, record.n))
    calls = [
        CallRecord(
            record,
            await engine._loaded(engine._session(), record.input),  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the same
            await engine._loaded(engine._session(), record.output),  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the same
            await engine._loaded(engine._session(), record.handed),  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the same
        )
        for record in records
    ]
    plan = ExecutionPlan.model_validate_json(encoded)
    return RunRecords(execution, stored.definition, calls, gates, _handoffs(plan))


async def _gates(executions: ExecutionStore, record: ExecutionRecord, step_ids: set[str] | None) -> list[GateRecord]:
    """The gates that a run has opened, those of some steps only unless None."""
    opened = [
        event
        for event in sorted(record.events, key=lambda event: event.id)
        if event.type == "gate.opened" and (step_ids is None or event.step_id in step_ids)
    ]
    gate_ids = dict.fromkeys(str(event.data["gate_id"]) for event in opened)
    gates = [await executions.get_gate(record.execution_id, gate_id) for gate_id in gate_ids]
    return [gate for gate in gates if gate is not None]


def _handoffs(plan: ExecutionPlan) -> list[Handoff | PlanEdge]:
    """Every handoff of a plan once, in an order that holds in each of its lists."""
    lists: list[Sequence[Handoff | PlanEdge]] = [plan.handoffs, plan.escalations]
    for step in plan.steps:
        lists += [step.edges, step.escalations, step.follows]
    found: dict[str, Handoff | PlanEdge] = {}
    order: TopologicalSorter[str] = TopologicalSorter()
    for handoffs in lists:
        before: tuple[str, ...] = ()
        for handoff in handoffs:
            order.add(handoff.handoff_id, *before)
            before = (handoff.handoff_id,)
            # An edge does not tell its type.
            if handoff.handoff_id not in found or not hasattr(handoff, "source_step"):
                found[handoff.handoff_id] = handoff
    return [found[handoff_id] for handoff_id in order.static_order()]
