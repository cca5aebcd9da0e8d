"""Comparing all that is known of executions with Temporal: records, live state and runs, each against the others.

Temporal's lists show where to look, and lag; so whatever seems to differ is asked for one by one, and once more after
a moment, because an execution that ends meanwhile differs for some milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from engine.domain.page import MAX_LIMIT
from engine.errors import ErrorCode, ExecutionNotFoundError, StoreError
from engine.outages import OutageLog
from engine.ports.execution_store import ExecutionFilter
from engine.services.repair import START_GRACE, Repair, contradicted, ends_otherwise, live_state_differs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from engine.domain.execution import ExecutionRecord, ExecutionStatus
    from engine.domain.page import Position
    from engine.ports.execution_runtime import ExecutionRuntime, RunDescription, RunStatus, RunSummary
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.state_store import StateStore
    from engine.services.repair import ExecutionRepairs

__all__ = ["Drift", "Repaired", "Verification", "VerificationService"]

_logger = logging.getLogger(__name__)

MOMENT: Final = timedelta(seconds=1)
"""Longer than it takes an end to get from the record to Temporal and to live state."""
CHECKS_AT_ONCE: Final = 8
_REFUSALS: Final = frozenset(
    {ErrorCode.WORKFLOW_NOT_FOUND, ErrorCode.AGENT_NOT_FOUND, ErrorCode.INVALID_INPUT, ErrorCode.UNSUPPORTED}
)


@dataclass(frozen=True, slots=True)
class Drift:
    """An execution that its places tell differently; None where it is not known."""

    execution_id: str
    record: ExecutionStatus | None
    temporal: RunStatus | None
    live: ExecutionStatus | None
    text: str
    """What is wrong."""


@dataclass(slots=True)
class Verification:
    """What a comparison has found."""

    checked: int
    """Executions compared."""
    drift: list[Drift] = field(default_factory=list[Drift])
    has_live: bool = True
    """Whether live state answered; without it records and Temporal are compared."""


@dataclass(slots=True)
class Repaired:
    """What a comparison has found and made right."""

    checked: int
    repairs: list[Repair]
    left: list[Drift]
    """What only its starter or an operator can make right."""
    has_live: bool = True
    """As in ``Verification``."""


class VerificationService:
    """Finds executions that records, live state and Temporal tell differently, and repairs them when asked to.

    Args:
        executions: the records.
        state: live state.
        runtime: Temporal; runs of the engine's task queue are compared.
        repairs: writes what is right.
        clock: the present.
        batch_size: page size of lists of records.
    """

    def __init__(
        self,
        executions: ExecutionStore,
        state: StateStore,
        runtime: ExecutionRuntime,
        repairs: ExecutionRepairs,
        clock: Callable[[], datetime],
        *,
        batch_size: int,
    ) -> None:
        self._executions = executions
        self._state = state
        self._runtime = runtime
        self._repairs = repairs
        self._clock = clock
        self._batch_size = batch_size
        self._outages = OutageLog(_logger, "Comparing live state")

    async def verify(self) -> Verification:
        """Compare all executions; return those that differ, by id.

        Raises:
            StoreError: the records do not answer, so that nothing can be said.
            RuntimeUnavailableError: Temporal does not answer.
        """
        runs = await self._current_runs()
        checked = len(runs)
        suspects: list[str] = []
        has_live = True
        position: Position | None = None
        while True:
            page = await self._executions.list_executions(ExecutionFilter(), limit=self._batch_size, after=position)
            states = await self._live_statuses([record.execution_id for record in page.items])
            has_live = has_live and states is not None
            for record in page.items:
                run = runs.pop(record.execution_id, None)
                checked += run is None
                if _is_suspect(record, run) or _live_differs(record, states):
                    suspects.append(record.execution_id)
            position = page.next
            if position is None:
                break
        return Verification(checked, await self._lasting(sorted([*suspects, *runs])), has_live)

    async def repair(self, execution_id: str | None = None) -> Repaired:
        """Compare one execution, or all, and make records and live state say what Temporal says.

        The reconciler's lease is of no concern here.

        Raises:
            ExecutionNotFoundError: no record of it.
            StoreError: the records do not answer.
            RuntimeUnavailableError: Temporal does not answer.
        """
        has_live = True
        if execution_id is None:
            found = await self.verify()
            checked, differing = found.checked, [drift.execution_id for drift in found.drift]
            has_live = found.has_live
        elif await self._executions.get_execution(execution_id) is None:
            raise ExecutionNotFoundError(execution_id)
        else:
            checked, differing = 1, [execution_id]
            has_live = await self._live_statuses(differing) is not None
        repairs = [repair for differs in differing for repair in await self._repair(differs)]
        return Repaired(checked, repairs, await self._lasting(differing), has_live)

    async def _repair(self, execution_id: str) -> list[Repair]:
        record = await self._executions.get_execution(execution_id)
        if record is None:
            return []
        repairs: list[Repair] = []
        repaired = await self._repairs.repair(record, await self._runtime.describe_run(execution_id))
        if repaired is not None:
            repairs.append(Repair(execution_id, "record", record.status, repaired.status))
        # Without a repair it may have changed meanwhile, and what is old must not be written to live state.
        record = repaired or await self._executions.get_execution(execution_id) or record
        states = await self._live_statuses([execution_id])
        is_wrong = _live_differs(record, states)
        if is_wrong or repaired is not None:
            await self._repairs.rebuild_live_state(record)
        if is_wrong and states is not None:
            before = states.get(execution_id)
            after = (await self._live_statuses([execution_id]) or {}).get(execution_id)
            if after not in (None, before):
                repairs.append(Repair(execution_id, "live_state", before, after))
        return repairs

    async def _live_statuses(self, execution_ids: list[str]) -> dict[str, ExecutionStatus] | None:
        """What live state says; None when it does not answer, which is no reason not to compare the rest."""
        try:
            states = await self._state.get_live_states(execution_ids)
        except StoreError as error:
            self._outages.failed(error)
            return None
        self._outages.worked()
        return {execution_id: state.execution.status for execution_id, state in states.items()}

    async def _current_runs(self) -> dict[str, RunSummary]:
        """The latest run of each execution that Temporal lists."""
        runs: dict[str, RunSummary] = {}
        after: bytes | None = None
        while True:
            page = await self._runtime.list_runs(limit=MAX_LIMIT, after=after)
            for run in page.items:
                known = runs.get(run.execution_id)
                if known is None or run.started_at > known.started_at:
                    runs[run.execution_id] = run
            after = page.next
            if after is None:
                return runs

    async def _lasting(self, execution_ids: Sequence[str]) -> list[Drift]:
        """Return what differs now and still does after a moment."""
        drift = await self._confirmed(execution_ids)
        if drift:
            await asyncio.sleep(MOMENT.total_seconds())
            drift = await self._confirmed([item.execution_id for item in drift])
        return drift

    async def _confirmed(self, execution_ids: Sequence[str]) -> list[Drift]:
        found: list[Drift] = []
        for start in range(0, len(execution_ids), CHECKS_AT_ONCE):
            chunk = execution_ids[start : start + CHECKS_AT_ONCE]
            found += [drift for drift in await asyncio.gather(*map(self._drift, chunk)) if drift is not None]
        return found

    async def _drift(self, execution_id: str) -> Drift | None:
        run, record, states = await asyncio.gather(
            self._runtime.describe_run(execution_id),
            self._executions.get_execution(execution_id),
            self._live_statuses([execution_id]),
        )
        text = _difference(record, run, states, self._clock())
        if text is None:
            return None
        live = (states or {}).get(execution_id)
        return Drift(execution_id, record and record.status, run and run.status, live, text)


def _is_suspect(record: ExecutionRecord, run: RunSummary | None) -> bool:
    """Whether a run, as a list shows it, may contradict the record."""
    if not record.status.is_terminal:
        return run is None or run.status != "running"
    return run is not None and (
        run.status == "running" or ends_otherwise(record, run.run_id, run.status, run.started_at)
    )


def _has_not_begun(run: RunDescription, now: datetime) -> bool:
    """Whether a run, started without Baton, has no record because it waits for a worker or was refused by one."""
    if run.status == "running":
        return now - run.started_at < START_GRACE
    return run.error is not None and run.error.code in _REFUSALS


def _live_differs(record: ExecutionRecord, states: dict[str, ExecutionStatus] | None) -> bool:
    return states is not None and live_state_differs(record, states.get(record.execution_id))


def _difference(
    record: ExecutionRecord | None,
    run: RunDescription | None,
    states: dict[str, ExecutionStatus] | None,
    now: datetime,
) -> str | None:
    """What is wrong with an execution, or None."""
    if record is None:
        return None if run is None or _has_not_begun(run, now) else "Temporal has a run of it, the records have nothing"
    if (right := contradicted(record, run, now)) is not None:
        return f"the record should be {right.status}" + (f": {right.error.message}" if right.error else "")
    if record.status.is_terminal and run is not None and run.status == "running":
        return "the record has an end, and the run goes on"
    if _live_differs(record, states):
        is_lost = record.execution_id not in (states or {})
        return "live state is lost" if is_lost else f"live state should be {record.status}"
    return None
