"""Reruns: a new execution that keeps what another one came to, as far as it still holds.

The parent is read and never changed. Everything is worked out before anything is written, so a preview is the same
work without the start.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from engine.domain.execution import ExecutionStatus
from engine.domain.operands import declare
from engine.domain.plan import ExecutionPlan
from engine.domain.rerun import RerunChoice, changed_paths, check_chosen, choose_steps, reads_changed
from engine.domain.reused import Savings, differences, savings
from engine.errors import ConflictError, DefinitionNotFoundError, InvalidInputError, StoreError
from engine.services.executions import KeptPart, StartedExecution
from engine.services.plans import PreparedPlan

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord, StepRecord, Value
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.plan import PlanStep
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.definition_store import DefinitionStore
    from engine.ports.execution_store import ExecutionStore
    from engine.services.execution_reads import ExecutionReads
    from engine.services.executions import ExecutionService
    from engine.services.plans import PlanService

__all__ = ["RerunPreview", "RerunRequest", "RerunService", "StartedRerun", "parse_request"]

_MAX_REASONS: Final = 50
"""As many of the reasons against a rerun are told."""
_MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class RerunRequest:
    """What to run again, parsed."""

    execution_id: str
    """Of the parent."""
    from_steps: tuple[str, ...] | None = None
    """None: what did not complete."""
    input_data: JsonValue = None
    """None: the parent's."""
    version: Literal["original", "latest"] = "original"


@dataclass(frozen=True, slots=True)
class RerunPreview:
    """What a rerun would do."""

    choice: RerunChoice
    saves: Savings


@dataclass(frozen=True, slots=True)
class StartedRerun:
    """A rerun that was accepted."""

    parent_id: str
    started: StartedExecution
    choice: RerunChoice


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A rerun that could be started."""

    parent: ExecutionRecord
    records: list[StepRecord]
    plan: PreparedPlan
    choice: RerunChoice
    input_data: JsonValue
    stored_input: Value


class RerunService:
    """Previews and starts reruns.

    Args:
        plans: compiles the newest version, and checks input.
        definitions: says whether the workflow is still there, and what input the parent's version takes.
        executions: has the parent.
        artifacts: has its large values.
        reads: makes the parent's record right when Temporal contradicts it.
        starts: starts executions.
    """

    def __init__(
        self,
        plans: PlanService,
        definitions: DefinitionStore,
        executions: ExecutionStore,
        artifacts: ArtifactStore,
        reads: ExecutionReads,
        starts: ExecutionService,
    ) -> None:
        self._plans = plans
        self._definitions = definitions
        self._executions = executions
        self._artifacts = artifacts
        self._reads = reads
        self._starts = starts

    async def preview_rerun(self, request: RerunRequest) -> RerunPreview:
        """Tell which steps would run and which be kept, and what that saves; raises as ``rerun_execution``."""
        prepared = await self._prepare(request)
        parent_id = prepared.parent.execution_id
        # A parent that is a rerun itself has outcomes that others paid for.
        taken: dict[str, set[str]] = {}
        for record in prepared.choice.reused:
            taken.setdefault(record.reused_from or parent_id, set()).add(record.step_id)
        paid: list[StepRecord] = []
        for execution_id, step_ids in taken.items():
            is_parent = execution_id == parent_id
            records = prepared.records if is_parent else await self._executions.list_steps(execution_id)
            paid += [record for record in records if record.step_id in step_ids]
        return RerunPreview(prepared.choice, savings(paid, await self._inner(paid)))

    async def rerun_execution(self, request: RerunRequest) -> StartedRerun:
        """Start a rerun.

        Raises:
            ExecutionNotFoundError: no such parent.
            DefinitionNotFoundError: the workflow was deleted.
            AgentNotFoundError: the newest version names an agent that is not there.
            ConflictError: the parent is still open.
            InvalidInputError: an unknown step, input that the schema refuses, nothing to run, or a kept part that
                the newest version changes (``details.reasons``). Nothing was written.
            RuntimeUnavailableError: Temporal does not answer.
        """
        prepared = await self._prepare(request)
        kept = prepared.choice.reused
        if request.version == "latest":
            steps = {step.id: step for step in prepared.plan.plan.steps}
            kept = [await self._declared_anew(steps[record.step_id], record) for record in kept]
        started = await self._starts.start_prepared(
            prepared.plan,
            prepared.stored_input,
            prepared.input_data,
            prepared.parent.options.model_copy(update={"idempotency_key": None}),
            KeptPart(prepared.parent.execution_id, prepared.choice.rerun, kept),
        )
        return StartedRerun(prepared.parent.execution_id, started, prepared.choice)

    async def _prepare(self, request: RerunRequest) -> _Prepared:
        parent = await self._reads.verified_record(request.execution_id)
        if not parent.status.is_terminal:
            raise ConflictError(
                f"Execution {request.execution_id} is still {parent.status}; wait for its end or cancel it first",
                {"execution_id": request.execution_id, "status": parent.status.value},
            )
        original, records = await asyncio.gather(
            self._original_plan(parent), self._executions.list_steps(request.execution_id)
        )
        plan = original
        if request.version == "latest":
            plan = await self._plans.prepare_plan(parent.definition_id)
        check_chosen(plan.plan, request.from_steps or ())
        before = await self._loaded(parent.input)
        after = before if request.input_data is None else request.input_data
        same_input = request.input_data is None and plan.plan_hash == parent.plan_hash
        stored_input = parent.input if same_input else await self._plans.stored_input(plan, after)
        changed = changed_paths(plan.plan, before, after)
        choice = choose_steps(plan.plan, original.plan, records, request.from_steps or (), changed)
        _require_equal(plan.plan, original.plan, choice)
        is_whole = len(choice.reused) == len(plan.plan.steps) and parent.status is ExecutionStatus.COMPLETED
        if is_whole and request.from_steps is None and plan.plan_hash == parent.plan_hash:
            _require_changed_output(parent, plan.plan, changed)
        return _Prepared(parent, records, plan, choice, after, stored_input)

    async def _original_plan(self, parent: ExecutionRecord) -> PreparedPlan:
        stored, encoded = await asyncio.gather(
            self._definitions.get_definition(parent.definition_id, parent.version),
            self._executions.get_plan(parent.plan_hash),
        )
        if stored is None or stored.status != "active":
            raise DefinitionNotFoundError(parent.definition_id)
        if encoded is None:
            raise StoreError(
                f"The plan {parent.plan_hash} of execution {parent.execution_id} is not in the store; restore it"
            )
        plan = ExecutionPlan.model_validate_json(encoded)
        return PreparedPlan(plan, parent.plan_hash, encoded, stored.definition.input_schema)

    async def _inner(self, records: list[StepRecord]) -> list[StepRecord]:
        """The step records of the child executions below some steps, at any depth."""
        found: list[StepRecord] = []
        level = records
        while children := [record.child_execution_id for record in level if record.child_execution_id is not None]:
            level = [record for child in children for record in await self._executions.list_steps(child)]
            found += level
        return found

    async def _loaded(self, value: Value) -> JsonValue:
        return value.inline if value.ref is None else await self._artifacts.get_artifact(value.ref.artifact_id)

    async def _declared_anew(self, step: PlanStep, record: StepRecord) -> StepRecord:
        """A large output's reference shows what the parent's plan read of it; the newest one may read more."""
        ref = None if record.output is None else record.output.ref
        if record.output is None or ref is None or {*ref.declared, *ref.absent, *ref.lengths}.issuperset(step.declared):
            return record
        value = await self._artifacts.get_artifact(ref.artifact_id)
        declared = declare(value, step.declared, (ref.artifact_id, ref.size_bytes))
        return record.model_copy(update={"output": record.output.model_copy(update={"ref": declared})})


def parse_request(execution_id: str, from_step: object, input_data: JsonValue, version: object) -> RerunRequest:
    """Parse what ``rerun_execution`` takes.

    Raises:
        InvalidInputError: ``from_step`` is neither a name nor a list of names, or ``version`` is unknown.
    """
    if version not in ("original", "latest"):
        raise InvalidInputError("version must be original or latest", {"path": "version"})
    return RerunRequest(execution_id, _parse_names(from_step), input_data, version)


def _parse_names(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = cast("list[object]", value if isinstance(value, list) else [value])
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidInputError(
            "from_step must be the id of a step or a list of them; leave it out to run what did not complete",
            {"path": "from_step"},
        )
    return tuple(cast("list[str]", names))


def _require_equal(plan: ExecutionPlan, original: ExecutionPlan, choice: RerunChoice) -> None:
    found = differences(plan, original, choice.reused)
    if not found:
        return
    named = list(dict.fromkeys(difference.step_id for difference in found))
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    reasons: list[JsonObject] = [
        {"step_id": difference.step_id, "path": difference.path, "why": difference.why}
        for difference in found[:_MAX_REASONS]
    ]
    raise InvalidInputError(
        f"Version {plan.version} of workflow {plan.definition_id} is not what the execution ran in steps that would be "
        f"kept: {', '.join(named[:_MAX_NAMED])}{more}; name them in from_step so that they run again, or take the "
        "original version",
        {"path": "version", "reasons": reasons},
    )


def _require_changed_output(parent: ExecutionRecord, plan: ExecutionPlan, changed_input: frozenset[str]) -> None:
    if not reads_changed(plan, changed_input):
        raise InvalidInputError(
            f"Nothing of execution {parent.execution_id} would run again: it completed, and no step reads other input; "
            "name the first step to run in from_step",
            {"path": "from_step", "execution_id": parent.execution_id},
        )
