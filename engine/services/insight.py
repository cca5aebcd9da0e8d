"""Reading what is stored: two versions of a definition side by side, its graph, and why a run went as it did.

An execution is shown with the version and the handoffs that it began with, also when its workflow was deleted since.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from engine.domain.definition_graph import definition_graph, frozen_handoffs, stored_handoffs
from engine.domain.diff import Change, diff_definitions
from engine.domain.explanation import Explanation, explain
from engine.domain.graph_mermaid import graph_mermaid
from engine.domain.graph_text import graph_text
from engine.domain.page import MAX_LIMIT
from engine.domain.plan import ExecutionPlan
from engine.domain.step_history import run_states, step_histories
from engine.errors import DefinitionNotFoundError, ExecutionNotFoundError, InvalidInputError, StoreError
from engine.ports.execution_store import ExecutionFilter
from engine.services.definitions import MAX_VERSION

if TYPE_CHECKING:
    from engine.domain.definition import DefinitionVersion
    from engine.domain.execution import ExecutionRecord
    from engine.domain.page import Position
    from engine.ports.definition_store import DefinitionStore
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.handoff_store import HandoffStore
    from engine.services.definitions import DefinitionService

__all__ = ["GRAPH_FORMATS", "DefinitionDiff", "GraphFormat", "InsightService"]

GraphFormat = Literal["text", "mermaid"]
GRAPH_FORMATS: Final[tuple[GraphFormat, ...]] = ("text", "mermaid")
MAX_PINNED: Final = 1000
"""Most executions in a diff."""
MAX_SCANNED: Final = 10_000
"""Most open executions that are looked through for them."""


@dataclass(frozen=True, slots=True)
class DefinitionDiff:
    """What lies between two versions, and who still runs an old one."""

    definition_id: str
    from_version: int
    to_version: int
    changes: list[Change]
    pinned: list[ExecutionRecord] = field(default_factory=list["ExecutionRecord"])
    """Open executions of other versions than the newest, the latest created first."""
    has_more: bool = False
    """There may be more of them."""


class InsightService:
    """Compares, draws and explains.

    Args:
        definitions: checks which versions may be read.
        versions: the same versions, those of deleted workflows too.
        handoffs: that hold for a workflow now.
        executions: records and frozen plans.
    """

    def __init__(
        self,
        definitions: DefinitionService,
        versions: DefinitionStore,
        handoffs: HandoffStore,
        executions: ExecutionStore,
    ) -> None:
        self._definitions = definitions
        self._versions = versions
        self._handoffs = handoffs
        self._executions = executions

    async def diff_definition(
        self, definition_id: str, from_version: int | None = None, to_version: int | None = None
    ) -> DefinitionDiff:
        """Return what changed between two versions, by default the newest and the one before.

        Args:
            definition_id: the workflow.
            from_version: None means the one before ``to_version``; of the first version itself.
            to_version: None means the newest.

        Raises:
            InvalidInputError: a version is no version number.
            DefinitionNotFoundError: no such workflow, a deleted one, or no such version (``details.version``).
        """
        for path, version in (("from_version", from_version), ("to_version", to_version)):
            _check_version(version, path)
        newest = await self._definitions.get_definition(definition_id)
        after = newest if to_version is None else await self._definitions.get_definition(definition_id, to_version)
        first = max(after.version - 1, 1) if from_version is None else from_version
        before = await self._definitions.get_definition(definition_id, first)
        pinned, has_more = await self._pinned(newest)
        return DefinitionDiff(
            definition_id,
            before.version,
            after.version,
            diff_definitions(before.definition, after.definition),
            pinned,
            has_more,
        )

    async def draw_graph(
        self,
        definition_id: str,
        graph_format: str = "mermaid",
        execution_id: str | None = None,
        version: int | None = None,
    ) -> str:
        """Return a workflow's graph.

        Args:
            definition_id: the workflow.
            graph_format: ``mermaid`` or ``text``.
            execution_id: shows where the steps of this execution stand, on the version that it runs.
            version: None means the newest, or the execution's.

        Raises:
            InvalidInputError: no such format, or the execution is of another workflow or version.
            DefinitionNotFoundError: no such workflow or version; a deleted workflow without ``execution_id``.
            ExecutionNotFoundError: no record of it.
        """
        if graph_format not in GRAPH_FORMATS:
            raise InvalidInputError(f"format must be one of {', '.join(GRAPH_FORMATS)}", {"path": "format"})
        _check_version(version, "version")
        draw = graph_text if graph_format == "text" else graph_mermaid
        if execution_id is None:
            stored = await self._definitions.get_definition(definition_id, version)
            agents = list(dict.fromkeys(step.agent_id for step in stored.definition.steps if step.agent_id))
            handoffs = await self._handoffs.list_handoffs_among(agents, definition_id)
            return draw(definition_graph(stored, stored_handoffs(handoffs)))
        record, plan = await self._frozen(execution_id)
        _check_belongs(record, definition_id, version)
        stored, steps = await asyncio.gather(self._version_of(record), self._executions.list_steps(execution_id))
        graph = definition_graph(stored, frozen_handoffs(plan))
        defined = {step.step.id for step in (*graph.main, *graph.final)}
        return draw(graph, run_states(record, step_histories(record, steps), defined))

    async def explain_execution(self, execution_id: str) -> Explanation:
        """Tell why each step of an execution, open or over, is where it is.

        Raises:
            ExecutionNotFoundError: no record of it.
        """
        record, plan = await self._frozen(execution_id)
        return explain(record, await self._executions.list_steps(execution_id), plan)

    async def _pinned(self, newest: DefinitionVersion) -> tuple[list[ExecutionRecord], bool]:
        query = ExecutionFilter(definition_id=newest.definition_id, is_open=True)
        pinned: list[ExecutionRecord] = []
        after: Position | None = None
        for _ in range(MAX_SCANNED // MAX_LIMIT):
            page = await self._executions.list_executions(query, limit=MAX_LIMIT, after=after)
            pinned += [record for record in page.items if record.version != newest.version]
            after = page.next
            if after is None or len(pinned) > MAX_PINNED:
                break
        return pinned[:MAX_PINNED], after is not None or len(pinned) > MAX_PINNED

    async def _frozen(self, execution_id: str) -> tuple[ExecutionRecord, ExecutionPlan]:
        record = await self._executions.get_execution(execution_id)
        if record is None:
            raise ExecutionNotFoundError(execution_id)
        encoded = await self._executions.get_plan(record.plan_hash)
        if encoded is None:
            raise StoreError(f"The plan {record.plan_hash} of execution {execution_id} is not in the store; restore it")
        return record, ExecutionPlan.model_validate_json(encoded)

    async def _version_of(self, record: ExecutionRecord) -> DefinitionVersion:
        stored = await self._versions.get_definition(record.definition_id, record.version)
        if stored is None:
            raise DefinitionNotFoundError(record.definition_id, record.version)
        return stored


def _check_version(version: object, path: str) -> None:
    is_number = isinstance(version, int) and not isinstance(version, bool) and 1 <= version < MAX_VERSION
    if version is not None and not is_number:
        raise InvalidInputError(f"{path} must be a whole number from 1", {"path": path})


def _check_belongs(record: ExecutionRecord, definition_id: str, version: int | None) -> None:
    if record.definition_id != definition_id:
        raise InvalidInputError(
            f"Execution {record.execution_id} is of workflow {record.definition_id}, not of {definition_id}",
            {"path": "execution_id", "workflow_id": record.definition_id},
        )
    if version is not None and version != record.version:
        raise InvalidInputError(
            f"Execution {record.execution_id} runs version {record.version}; leave version out",
            {"path": "version", "version": record.version},
        )
