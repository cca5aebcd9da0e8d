"""Moving in: everything that one set of stores holds, carried over to another set, as it is.

Ids, numbers of versions and instants stay, so that what is carried over is the same thing at another place. Each thing
is written so that what it needs is there before it: versions in their order and the archiving last, a record's
artifacts and steps before the record. So an interrupted copy is gone on with by running it again, and a copy of what is
there already writes nothing. What is there with another content is never touched, and named.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from engine.domain.execution import ArtifactRef, ExecutionRecord, StepRecord
from engine.errors import EngineError, StoreError
from engine.ports.execution_store import ExecutionFilter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
    from datetime import datetime

    from engine.domain.agent import Agent
    from engine.domain.definition import DefinitionVersion
    from engine.domain.handoff import Handoff
    from engine.domain.page import Page, Position
    from engine.ports.agent_store import AgentStore
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.definition_store import DefinitionStore
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.handoff_store import HandoffStore

__all__ = ["Catalogue", "CopyReport", "CopyService", "Kind", "LeftAlone", "Records", "Tally"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")

Kind: TypeAlias = Literal["workflows", "agents", "handoffs", "executions"]

_STATUSES: Final = ("active", "archived")
FIRST_WAIT_SECONDS: Final = 0.5
MOST_WAIT_SECONDS: Final = 4.0
AT_ONCE: Final = 8
"""Things copied side by side: most of the time is waiting for the other store."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The stores of what executions are made of, on one side."""

    definitions: DefinitionStore
    agents: AgentStore
    handoffs: HandoffStore


@dataclass(frozen=True, slots=True)
class Records:
    """The stores of what executions leave, on one side."""

    executions: ExecutionStore
    artifacts: ArtifactStore


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Something that was not carried over."""

    kind: Kind
    object_id: str
    reason: str
    """For people: why, and what to do."""


_Outcome: TypeAlias = bool | LeftAlone
"""Whether anything was written, or why nothing was."""


@dataclass(slots=True)
class Tally:
    """How much there is of a kind; versions of executions and handoffs are not counted."""

    source: int = 0
    source_versions: int = 0
    target: int = 0
    target_versions: int = 0
    copied: int = 0
    """Those of which anything was written."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy found and did."""

    tallies: dict[Kind, Tally] = field(default_factory=dict[Kind, Tally])
    """Counted on both sides at the end; only finished executions count."""
    left: list[LeftAlone] = field(default_factory=list[LeftAlone])


class CopyService:
    """Carries over workflows, agents, handoffs and finished executions.

    Args:
        catalogues: source and target; None: not to be copied.
        records: source and target; None: not to be copied.
        clock: the present, aware UTC.
        batch_size: items of a page and of a write.
        retries: tries after the first of what a store did not answer.
    """

    def __init__(
        self,
        catalogues: tuple[Catalogue, Catalogue] | None,
        records: tuple[Records, Records] | None,
        clock: Callable[[], datetime],
        batch_size: int,
        retries: int = 3,
    ) -> None:
        self._catalogues = catalogues
        self._records = records
        self._clock = clock
        self._batch_size = batch_size
        self._waits = [min(FIRST_WAIT_SECONDS * 2**number, MOST_WAIT_SECONDS) for number in range(retries)]

    async def count(self) -> dict[Kind, int]:
        """Return how much there is to look at, by kind in the order of copying.

        Raises:
            StoreError: the source does not answer.
        """
        counts: dict[Kind, int] = {}
        if self._catalogues is not None:
            source = self._catalogues[0]
            counts["agents"] = await _length(self._agents(source.agents))
            counts["handoffs"] = await _length(self._handoffs(source.handoffs))
            counts["workflows"] = await _length(self._definitions(source.definitions))
        if self._records is not None:
            counts["executions"] = await _length(self._executions(self._records[0].executions, is_open=False))
        return counts

    async def copy(self, looked_at: Callable[[Kind], None]) -> CopyReport:
        """Carry everything over; may be repeated at any time, also after it was interrupted.

        Args:
            looked_at: called after each thing, whether or not it had to be written.

        Raises:
            StoreError: a side does not answer; what was written stays.
        """
        report = CopyReport()
        if self._catalogues is not None:
            await self._copy_catalogue(*self._catalogues, _Counter(report, looked_at))
        if self._records is not None:
            await self._copy_records(*self._records, _Counter(report, looked_at))
        return report

    async def _copy_catalogue(self, source: Catalogue, target: Catalogue, counter: _Counter) -> None:
        await self._each(
            self._agents(source.agents),
            lambda agent: _copy_agent(source.agents, target.agents, agent),
            lambda agent, outcome: counter.counted("agents", outcome, agent.version),
        )
        await self._each(
            self._handoffs(source.handoffs),
            lambda handoff: _copy_handoff(target.handoffs, handoff),
            lambda _, outcome: counter.counted("handoffs", outcome),
        )
        await self._each(
            self._definitions(source.definitions),
            lambda newest: self._copy_definition(source.definitions, target.definitions, newest),
            lambda newest, outcome: counter.counted("workflows", outcome, newest.version),
        )
        async for agent in self._agents(target.agents):
            counter.found("agents", agent.version)
        async for _ in self._handoffs(target.handoffs):
            counter.found("handoffs")
        async for newest in self._definitions(target.definitions):
            counter.found("workflows", newest.version)

    async def _copy_records(self, source: Records, target: Records, counter: _Counter) -> None:
        async for record in self._executions(source.executions, is_open=True):
            why = f"it is {record.status}; let it end where it began, then run the copy again"
            counter.left(LeftAlone("executions", record.execution_id, why))
        await self._each(
            self._executions(source.executions, is_open=False),
            lambda record: self._copy_execution(source, target, record),
            lambda _, outcome: counter.counted("executions", outcome),
        )
        async for _ in self._executions(target.executions, is_open=False):
            counter.found("executions")

    async def _copy_definition(
        self, source: DefinitionStore, target: DefinitionStore, newest: DefinitionVersion
    ) -> _Outcome:
        definition_id = newest.definition_id
        # Lists are read past the cache, and nothing else would do before a write.
        there = (await target.list_versions(definition_id, limit=1, after=None)).items
        known = there[0].version if there else 0
        lacking: list[DefinitionVersion] = []
        async with aclosing(self._versions(source, definition_id)) as versions:
            async for version in versions:
                if version.version <= known:
                    stored = await target.get_definition(definition_id, version.version)
                    if stored is None or stored.content_hash != version.content_hash:
                        return _differs("workflows", definition_id, version.version)
                    break
                lacking.append(version)
        for version in reversed(lacking):
            active = version.model_copy(update={"status": "active"})
            if version.version == 1:
                is_written = await target.insert_definition(active)
            else:
                is_written = await target.append_version(active)
            if not is_written:
                # Another copy may have been first.
                stored = await target.get_definition(definition_id, version.version)
                if stored is None or stored.content_hash != version.content_hash:
                    return _in_the_way("workflows", definition_id)
        is_archived = newest.status == "archived" and await target.archive_definition(definition_id, self._clock())
        return is_archived or bool(lacking)

    async def _copy_execution(self, source: Records, target: Records, record: ExecutionRecord) -> _Outcome:
        execution_id = record.execution_id
        stored = await target.executions.get_execution(execution_id)
        if stored is None:
            steps = await source.executions.list_steps(execution_id)
            try:
                await self._copy_artifacts(source.artifacts, target.artifacts, record, steps)
            except StoreError as error:
                if "artifact_id" not in error.details:
                    raise
                return LeftAlone("executions", execution_id, error.message)
            await self._copy_steps(target.executions, record, steps)
            plan = await source.executions.get_plan(record.plan_hash)
            stored = await target.executions.create_execution(record, plan)
            if stored is None:
                return True
        if (stored.status, stored.run_id, stored.input_hash) == (record.status, record.run_id, record.input_hash):
            return False
        return LeftAlone("executions", execution_id, f"another one with this id is there, {stored.status}")

    async def _copy_steps(self, target: ExecutionStore, record: ExecutionRecord, steps: list[StepRecord]) -> None:
        runs: dict[str, list[StepRecord]] = {}
        # A call counts as one to a fallback by the call before it, which so has to be there.
        for step in sorted(steps, key=lambda step: step.n):
            runs.setdefault(step.run_id, []).append(step)
        started_at = record.run_started_at or record.created_at
        for of_run in runs.values():
            for start in range(0, len(of_run), self._batch_size):
                await target.record_steps(of_run[start : start + self._batch_size], started_at)

    async def _copy_artifacts(
        self, source: ArtifactStore, target: ArtifactStore, record: ExecutionRecord, steps: Sequence[StepRecord]
    ) -> None:
        for ref in _references(record, steps):
            artifact_id, _ = await target.put_artifact(await source.get_artifact(ref.artifact_id))
            if artifact_id != ref.artifact_id:
                raise StoreError(
                    f"The artifact {ref.artifact_id} does not hold what its name says; "
                    "restore the source from a backup, or run the execution again",
                    {"artifact_id": ref.artifact_id},
                )

    async def _each(
        self,
        items: AsyncGenerator[T],
        copy: Callable[[T], Awaitable[_Outcome]],
        counted: Callable[[T, _Outcome], None],
    ) -> None:
        """Copy items, some at once; the first failure that repeating does not cure ends it."""
        free = asyncio.Semaphore(AT_ONCE)

        async def run(item: T) -> None:
            try:
                counted(item, await self._retried(lambda: copy(item)))
            finally:
                free.release()

        try:
            async with aclosing(items), asyncio.TaskGroup() as group:
                async for item in items:
                    await free.acquire()
                    group.create_task(run(item))
        except* EngineError as failures:
            raise _first(failures) from failures

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        for seconds in self._waits:
            try:
                return await call()
            except StoreError as error:
                _logger.warning("Tried again in %g s: %s", seconds, error)
                await asyncio.sleep(seconds)
        return await call()

    def _agents(self, store: AgentStore) -> AsyncGenerator[Agent]:
        return self._items(
            lambda after: store.list_agents(capabilities=[], status=None, limit=self._batch_size, after=after)
        )

    def _handoffs(self, store: HandoffStore) -> AsyncGenerator[Handoff]:
        return self._items(
            lambda after: store.list_handoffs(
                source_agent_id=None, target_agent_id=None, definition_id=None, limit=self._batch_size, after=after
            )
        )

    async def _definitions(self, store: DefinitionStore) -> AsyncGenerator[DefinitionVersion]:
        for status in _STATUSES:
            async for newest in self._items(
                lambda after, status=status: store.list_definitions(
                    tags=[], status=status, limit=self._batch_size, after=after
                )
            ):
                yield newest

    def _versions(self, store: DefinitionStore, definition_id: str) -> AsyncGenerator[DefinitionVersion]:
        return self._items(lambda after: store.list_versions(definition_id, limit=self._batch_size, after=after))

    def _executions(self, store: ExecutionStore, *, is_open: bool) -> AsyncGenerator[ExecutionRecord]:
        query = ExecutionFilter(is_open=is_open)
        return self._items(lambda after: store.list_executions(query, limit=self._batch_size, after=after))

    async def _items(self, list_page: Callable[[Position | None], Awaitable[Page[T]]]) -> AsyncGenerator[T]:
        after: Position | None = None
        while True:
            page = await self._retried(partial(list_page, after))
            for item in page.items:
                yield item
            after = page.next
            if after is None:
                return


class _Counter:
    """Keeps a report, and tells of each thing that was looked at."""

    def __init__(self, report: CopyReport, looked_at: Callable[[Kind], None]) -> None:
        self._report = report
        self._looked_at = looked_at

    def counted(self, kind: Kind, outcome: _Outcome, versions: int = 1) -> None:
        tally = self._tally(kind)
        tally.source += 1
        tally.source_versions += versions
        if isinstance(outcome, LeftAlone):
            self.left(outcome)
        else:
            tally.copied += outcome
        self._looked_at(kind)

    def found(self, kind: Kind, versions: int = 1) -> None:
        tally = self._tally(kind)
        tally.target += 1
        tally.target_versions += versions

    def left(self, thing: LeftAlone) -> None:
        self._report.left.append(thing)

    def _tally(self, kind: Kind) -> Tally:
        return self._report.tallies.setdefault(kind, Tally())


async def _copy_agent(source: AgentStore, target: AgentStore, newest: Agent) -> _Outcome:
    there = await target.get_agent(newest.agent_id)
    known = there.version if there else 0
    common = min(known, newest.version)
    if common:
        ours = await source.get_agent(newest.agent_id, common)
        theirs = await target.get_agent(newest.agent_id, common)
        if ours is None or theirs is None or ours.content_hash != theirs.content_hash:
            return _differs("agents", newest.agent_id, common)
    for number in range(known + 1, newest.version + 1):
        agent = await source.get_agent(newest.agent_id, number)
        if agent is None:
            raise StoreError(f"Version {number} of agent {newest.agent_id} is missing; restore it from a backup")
        is_written = await (target.insert_agent(agent) if number == 1 else target.append_agent(agent))
        if not is_written:
            stored = await target.get_agent(newest.agent_id, number)
            if stored is None or stored.content_hash != agent.content_hash:
                return _in_the_way("agents", newest.agent_id)
    return known < newest.version


async def _copy_handoff(target: HandoffStore, handoff: Handoff) -> _Outcome:
    # A store may take an equal one once more for the same write, so it is asked first.
    stored = await target.get_handoff(handoff.handoff_id)
    if stored is None:
        if await target.insert_handoff(handoff):
            return True
        stored = await target.get_handoff(handoff.handoff_id)
    if stored == handoff:
        return False
    return LeftAlone("handoffs", handoff.handoff_id, "another one with this id is there")


def _differs(kind: Kind, object_id: str, version: int) -> LeftAlone:
    return LeftAlone(kind, object_id, f"version {version} has other content there; give one of the two another id")


def _in_the_way(kind: Kind, object_id: str) -> LeftAlone:
    return LeftAlone(
        kind, object_id, "it is archived there, or was changed there at this moment; look at it and run the copy again"
    )


def _references(record: ExecutionRecord, steps: Iterable[StepRecord]) -> list[ArtifactRef]:
    values = [record.input, record.output, *(value for step in steps for value in (step.input, step.output))]
    found = [value.ref for value in values if value is not None and value.ref is not None]
    return list({ref.artifact_id: ref for ref in found}.values())


async def _length(items: AsyncGenerator[object]) -> int:
    count = 0
    async for _ in items:
        count += 1
    return count


def _first(failures: BaseExceptionGroup[EngineError]) -> EngineError:
    """The first of those that ended what was done at once; the others say the same, mostly."""
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
