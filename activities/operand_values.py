"""Mappings over values that had to stay out of the workflow: fetch what they read, then resolve them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.agent_call import AgentFailure, FailureReason
from engine.domain.expressions import (
    MISSING,
    Missing,
    MissingPathError,
    Path,
    ResolvedTooLargeError,
    RootsScope,
    compile_template,
    walk,
)
from engine.domain.issues import IssueList, summary
from engine.domain.json import MAX_VALUE_BYTES, json_fault
from engine.domain.json_schema import check_value
from engine.domain.operands import CONTEXT_ROOT, missing_path
from engine.errors import LimitExceededError, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.agent_call import AgentReply
    from engine.domain.execution import StepRecord
    from engine.domain.json import JsonValue
    from engine.domain.messages import AgentCallInput, CallInput, OperandRef
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.execution_store import ExecutionStore


async def resolved_input(
    call: AgentCallInput, context: list[JsonValue], executions: ExecutionStore, artifacts: ArtifactStore
) -> JsonValue:
    """The call's input, with ``context`` as what was recalled.

    Raises:
        MissingPathError: the mapping reads what is not there.
        LimitExceededError: it would be over 64 MiB.
        StoreError: an operand can't be fetched.
    """
    roots = RootsScope({CONTEXT_ROOT: context})
    return await resolve(call.input, call.execution_id, executions, artifacts, roots)


async def resolve(
    value: CallInput,
    execution_id: str,
    executions: ExecutionStore,
    artifacts: ArtifactStore,
    roots: RootsScope | None = None,
) -> JsonValue:
    """The inline value, or the mapping over its fetched operands; raises as ``resolved_input``."""
    if value.operands is None:
        return value.inline
    fetched = await fetch_operands(value.operands, execution_id, executions, artifacts)
    try:
        return compile_template(value.mapping).resolve(_Fetched(fetched, roots), max_bytes=MAX_VALUE_BYTES)
    except ResolvedTooLargeError as error:
        raise LimitExceededError("The resolved mapping is over 64 MiB; map fewer or smaller values") from error


def output_mapped(call: AgentCallInput, reply: AgentReply, operands: Mapping[str, JsonValue | Missing]) -> JsonValue:
    """The step's output: the reply, through the output mapping when there is one.

    Args:
        call: with the mapping.
        reply: of the agent.
        operands: what ``fetch_operands`` found for the mapping's other paths.

    Raises:
        AgentFailure: ``invalid_output``, when the reply is no JSON, does not fit the step's schema or lacks what the
            mapping reads.
    """
    fault = json_fault(reply.output)
    if fault is not None:
        raise AgentFailure(FailureReason.INVALID_OUTPUT, f"The agent's output is not JSON: {fault}")
    if call.output_schema is not None:
        issues = IssueList(reply.output, prefix=("output",))
        check_value(call.output_schema, reply.output, issues)
        if issues.has_errors():
            message = summary("The agent's output does not fit the step's output_schema", issues.in_order())
            raise AgentFailure(FailureReason.INVALID_OUTPUT, message)
    if call.output_mapping is None:
        return reply.output
    scope = _Fetched(operands, RootsScope({"output": reply.output}))
    try:
        return compile_template(call.output_mapping).resolve(scope, max_bytes=MAX_VALUE_BYTES)
    except MissingPathError as error:
        message = missing_path(f"The output mapping of step {call.step_id}", error)
        raise AgentFailure(FailureReason.INVALID_OUTPUT, message) from error
    except ResolvedTooLargeError as error:
        raise AgentFailure(FailureReason.INVALID_OUTPUT, "The mapped output is over 64 MiB") from error


async def fetch_operands(
    operands: Mapping[str, OperandRef],
    execution_id: str,
    executions: ExecutionStore,
    artifacts: ArtifactStore,
) -> dict[str, JsonValue | Missing]:
    """Fetch each operand's value, every source once; raises ``StoreError``."""
    sources: dict[tuple[object, ...], JsonValue] = {}
    fetched: dict[str, JsonValue | Missing] = {}
    for text, operand in operands.items():
        if not (operand.artifact_id or operand.step_id or operand.execution_input):
            fetched[text] = operand.inline
            continue
        source = (operand.artifact_id, operand.step_id, operand.item, operand.run_id, operand.n, operand.handed)
        if source not in sources:
            sources[source] = await _fetch(operand, execution_id, executions, artifacts)
        fetched[text] = walk(sources[source], operand.segments)
    return fetched


async def _fetch(
    operand: OperandRef, execution_id: str, executions: ExecutionStore, artifacts: ArtifactStore
) -> JsonValue:
    if operand.artifact_id:
        return await artifacts.get_artifact(operand.artifact_id)
    if operand.step_id:
        step = await executions.get_step(execution_id, operand.run_id or "", operand.step_id, operand.item, operand.n)
        if step is None or step.output is None:
            step = await _recorded_by_any_run(operand, execution_id, executions)
        value = None if step is None else step.handed if operand.handed else step.output
        what = f"output of step {operand.step_id}"
    else:
        record = await executions.get_execution(execution_id)
        value = record.input if record else None
        what = "input"
    if value is None:
        raise StoreError(f"The {what} of execution {execution_id} is not in the store")
    if value.ref is not None:
        return await artifacts.get_artifact(value.ref.artifact_id)
    return value.inline


async def _recorded_by_any_run(operand: OperandRef, execution_id: str, executions: ExecutionStore) -> StepRecord | None:
    """A run that an operator reset inherits steps which the run before it has recorded: the latest one stands."""
    recorded = [
        step
        for step in await executions.list_steps(execution_id)
        if (step.step_id, step.item, step.n) == (operand.step_id, operand.item, operand.n) and step.output is not None
    ]
    return recorded[-1] if recorded else None


class _Fetched:
    """Fetched operands by path text, before the roots of a scope."""

    def __init__(self, fetched: Mapping[str, JsonValue | Missing], rest: RootsScope | None) -> None:
        self._fetched = fetched
        self._rest = rest

    def lookup(self, path: Path) -> JsonValue | Missing:
        if path.text in self._fetched:
            return self._fetched[path.text]
        return MISSING if self._rest is None else self._rest.lookup(path)
