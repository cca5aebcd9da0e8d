"""The reconciler: what ended without any code of ours is made right though nobody reads it.

A run that is terminated or times out at the server tells nobody, and a starter may die between record and run. So one
process at a time, the holder of a lease, compares with Temporal: runs that the server has ended since a watermark,
and records that are open. Every write is guarded, so two at once, or a reader beside them, do no harm.

The work of a pass is bounded, and so is what it asks of Temporal: an open record whose run was seen running is left
alone for a pause that doubles. Runs that closed by their own code need no look: they wrote their end before they
closed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from engine.errors import EngineError, RuntimeUnavailableError, StoreError
from engine.ports.execution_store import ExecutionFilter
from engine.services.repair import Repair, ends_otherwise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.domain.execution import ExecutionRecord
    from engine.domain.page import Position
    from engine.ports.execution_runtime import ExecutionRuntime, RunStatus, RunSummary
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.state_store import StateStore
    from engine.services.repair import ExecutionRepairs

__all__ = ["Reconciled", "ReconciliationService"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE: Final = timedelta(seconds=5)
"""Between two passes."""
BUSY_PAUSE: Final = timedelta(seconds=1)
"""After a pass that left something for the next one."""
LEASE: Final = "reconciler"
LEASE_TTL: Final = timedelta(seconds=30)
SETTLING: Final = timedelta(seconds=10)
"""An open record younger than this is left alone; and the first pause of one whose run was seen running."""
LONGEST_PAUSE: Final = timedelta(minutes=5)
OVERLAP: Final = timedelta(seconds=60)
"""How late a closed run may come to Temporal's lists, and how far clocks may be apart."""
LIVE_STATE_PAUSE: Final = timedelta(seconds=30)
MARK_PAUSE: Final = timedelta(minutes=5)
"""A mark is written at least that often while nothing happens: a commit is not free."""
PAGES_A_PASS: Final = 5
CHECKS_AT_ONCE: Final = 8
_ENDED_BY_SERVER: Final[tuple[RunStatus, ...]] = ("terminated", "timed_out")


@dataclass(slots=True)
class Reconciled:
    """What a pass did."""

    checked: int = 0
    """Executions that Temporal was asked for."""
    repairs: list[Repair] = field(default_factory=list[Repair])
    is_whole: bool = True
    """Whether the pass came to the end of what it had to look at."""
    fault: Exception | None = None
    """Why an execution could not be looked at; one that is damaged keeps nobody from the others."""


@dataclass(slots=True)
class _Sweeps:
    """How far the holder of the lease has come; made anew by each one that takes it."""

    since: datetime
    """Runs that closed before have been looked at."""
    marked: datetime | None
    """``since`` as the lease's mark has it."""
    renew_at: datetime
    began_at: datetime | None = None
    """When the list of closed runs that is being read was begun."""
    after: bytes | None = None
    """Position in that list."""
    has_news: bool = False
    """Whether it has shown a run that had not been looked at."""
    settled: dict[str, datetime] = field(default_factory=dict[str, datetime])
    """Closed runs, by id, that the records agree with: they come again within the overlap."""
    position: Position | None = None
    """In the list of open records."""
    next_check: dict[str, tuple[datetime, timedelta]] = field(default_factory=dict[str, "tuple[datetime, timedelta]"])
    """Open executions that were seen running: when to ask again, and the pause behind that."""
    met: set[str] = field(default_factory=set[str])
    """Those that this round through the open records has come across."""
    live_at: datetime | None = None
    """When a round that also looks at live state was last begun."""
    looks_at_live: bool = False


class ReconciliationService:
    """Repairs records and live state that Temporal contradicts.

    Args:
        executions: whose records are repaired; it keeps the lease too.
        state: live state that may be lost.
        runtime: Temporal, the truth.
        repairs: writes what is right.
        clock: the present.
        holder: names this process among those that want the lease.
        batch_size: page size of lists.
    """

    def __init__(
        self,
        executions: ExecutionStore,
        state: StateStore,
        runtime: ExecutionRuntime,
        repairs: ExecutionRepairs,
        clock: Callable[[], datetime],
        *,
        holder: str,
        batch_size: int,
    ) -> None:
        self._executions = executions
        self._state = state
        self._runtime = runtime
        self._repairs = repairs
        self._clock = clock
        self._holder = holder
        self._batch_size = batch_size
        self._sweeps: _Sweeps | None = None
        self._failing: set[str] = set()

    async def run_forever(self) -> None:
        """Make a pass every five seconds until cancelled; then give the lease back.

        Nothing that goes wrong ends it. An outage is logged when it begins and when it is over.
        """
        pause = PAUSE
        try:
            while True:
                await asyncio.sleep(pause.total_seconds())
                pause = PAUSE
                try:
                    outcome = await self.reconcile_once()
                except EngineError as error:
                    self._begin_outage("The reconciler", error)
                except Exception:
                    _logger.exception("A pass of the reconciler failed; it goes on with the next one")
                else:
                    self._end_outage("The reconciler")
                    if outcome is not None and not outcome.is_whole:
                        pause = BUSY_PAUSE
        finally:
            await self._release()

    async def reconcile_once(self) -> Reconciled | None:
        """Make one pass; None when another process has the lease.

        Raises:
            StoreError: the execution store does not answer, or a record is damaged, once all others have been looked
                at. Live state that can't be read is no reason to stop.
            RuntimeUnavailableError: Temporal does not answer.
        """
        sweeps = await self._hold_lease()
        if sweeps is None:
            return None
        outcome = Reconciled()
        await self._sweep_closed(sweeps, outcome)
        await self._sweep_open(sweeps, outcome)
        if outcome.fault is not None:
            raise outcome.fault
        return outcome

    async def _hold_lease(self) -> _Sweeps | None:
        """Renew the lease when half of its time is over; what a former holder left is where to begin."""
        now = self._clock()
        if self._sweeps is not None and now < self._sweeps.renew_at:
            return self._sweeps
        lease = await self._executions.acquire_lease(LEASE, self._holder, LEASE_TTL)
        if lease is None:
            self._sweeps = None
            return None
        renew_at = now + LEASE_TTL / 2
        if self._sweeps is not None:
            self._sweeps.renew_at = renew_at
            return self._sweeps
        marked = None if lease.mark is None else datetime.fromisoformat(lease.mark)
        self._sweeps = _Sweeps(since=marked or now - OVERLAP, marked=marked, renew_at=renew_at)
        return self._sweeps

    async def _release(self) -> None:
        if self._sweeps is None:
            return
        self._sweeps = None
        try:
            await self._executions.release_lease(LEASE, self._holder)
        except StoreError as error:
            _logger.warning("The reconciler's lease was not given back and runs out by itself: %s", error)

    async def _sweep_closed(self, sweeps: _Sweeps, outcome: Reconciled) -> None:
        """Look at runs that the server has ended, from where the last pass stopped, and move the watermark."""
        for _ in range(PAGES_A_PASS):
            sweeps.began_at = sweeps.began_at or self._clock()
            try:
                page = await self._runtime.list_runs(
                    statuses=_ENDED_BY_SERVER, closed_since=sweeps.since, limit=self._batch_size, after=sweeps.after
                )
            except EngineError:
                # The position may be none any more, so the list is begun anew.
                sweeps.began_at = sweeps.after = None
                raise
            fresh = [run for run in page.items if run.run_id not in sweeps.settled]
            await _each(fresh, lambda run: self._check_closed(run, sweeps, outcome), outcome)
            sweeps.has_news = sweeps.has_news or bool(fresh)
            sweeps.after = page.next
            if page.next is None:
                await self._move_watermark(sweeps, max(sweeps.since, sweeps.began_at - OVERLAP))
                return
        outcome.is_whole = False

    async def _move_watermark(self, sweeps: _Sweeps, since: datetime) -> None:
        sweeps.since = since
        sweeps.began_at = None
        sweeps.settled = {run_id: closed_at for run_id, closed_at in sweeps.settled.items() if closed_at >= since}
        if sweeps.has_news or sweeps.marked is None or since - sweeps.marked >= MARK_PAUSE:
            if not await self._executions.leave_mark(LEASE, self._holder, since.isoformat()):
                self._sweeps = None
            sweeps.marked = since
            sweeps.has_news = False

    async def _check_closed(self, run: RunSummary, sweeps: _Sweeps, outcome: Reconciled) -> None:
        record = await self._executions.get_execution(run.execution_id)
        # Without a record there is nothing to repair: a run that was started by hand and never began.
        if record is not None and (
            not record.status.is_terminal or ends_otherwise(record, run.run_id, run.status, run.started_at)
        ):
            await self._check(record, sweeps, outcome)
        sweeps.settled[run.run_id] = run.closed_at or run.started_at

    async def _sweep_open(self, sweeps: _Sweeps, outcome: Reconciled) -> None:
        """Look at open records, from where the last pass stopped, latest first."""
        now = self._clock()
        if sweeps.position is None:
            sweeps.met.clear()
            sweeps.looks_at_live = sweeps.live_at is None or now - sweeps.live_at >= LIVE_STATE_PAUSE
            sweeps.live_at = now if sweeps.looks_at_live else sweeps.live_at
        query = ExecutionFilter(is_open=True, end_time=now - SETTLING)
        for _ in range(PAGES_A_PASS):
            page = await self._executions.list_executions(query, limit=self._batch_size, after=sweeps.position)
            sweeps.met.update(record.execution_id for record in page.items)
            due = [record for record in page.items if _is_due(sweeps, record, now)]
            await _each(due, lambda record: self._check(record, sweeps, outcome), outcome)
            if sweeps.looks_at_live:
                await self._rebuild_lost(page.items, outcome)
            sweeps.position = page.next
            if page.next is None:
                sweeps.next_check = {key: pause for key, pause in sweeps.next_check.items() if key in sweeps.met}
                return
        outcome.is_whole = False

    async def _check(self, record: ExecutionRecord, sweeps: _Sweeps, outcome: Reconciled) -> None:
        """Ask Temporal, and repair; or note when to ask again."""
        execution_id = record.execution_id
        run = await self._runtime.describe_run(execution_id)
        outcome.checked += 1
        repaired = await self._repairs.repair(record, run)
        if repaired is not None:
            outcome.repairs.append(Repair(execution_id, "record", record.status, repaired.status))
            await self._repairs.rebuild_live_state(repaired)
        elif run is not None and run.status == "running":
            now = self._clock()
            _, pause = sweeps.next_check.get(execution_id, (now, SETTLING))
            sweeps.next_check[execution_id] = (now + pause, min(pause * 2, LONGEST_PAUSE))

    async def _rebuild_lost(self, records: list[ExecutionRecord], outcome: Reconciled) -> None:
        repaired = {repair.execution_id for repair in outcome.repairs}
        records = [record for record in records if record.execution_id not in repaired]
        if not records:
            return
        try:
            states = await self._state.get_live_states([record.execution_id for record in records])
        except StoreError as error:
            self._begin_outage("The rebuilding of live state", error)
            return
        self._end_outage("The rebuilding of live state")
        for record in records:
            if record.execution_id not in states:
                await self._repairs.rebuild_live_state(record)
                outcome.repairs.append(Repair(record.execution_id, "live_state", None, record.status))

    def _begin_outage(self, who: str, error: EngineError) -> None:
        if who not in self._failing:
            self._failing.add(who)
            _logger.warning("%s is hindered until this is over: %s", who, error)

    def _end_outage(self, who: str) -> None:
        if who in self._failing:
            self._failing.discard(who)
            _logger.info("%s works again", who)


def _is_due(sweeps: _Sweeps, record: ExecutionRecord, now: datetime) -> bool:
    at, _ = sweeps.next_check.get(record.execution_id, (now, SETTLING))
    return at <= now


async def _each(items: Sequence[T], check: Callable[[T], Awaitable[None]], outcome: Reconciled) -> None:
    """Check all, some at once; what goes wrong with one is kept in ``outcome``, unless Temporal does not answer."""
    for start in range(0, len(items), CHECKS_AT_ONCE):
        checks = [check(item) for item in items[start : start + CHECKS_AT_ONCE]]
        for result in await asyncio.gather(*checks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, RuntimeUnavailableError):
                outcome.fault = outcome.fault or result
            elif result is not None:
                raise result
