"""Where execution records, step records and frozen plans live, and the questions asked over many of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from engine.domain.execution import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from engine.domain.execution import ExecutionRecord, ExecutionStatus, StepRecord
    from engine.domain.gate import GateRecord, Transition
    from engine.domain.page import Page, Position


@dataclass(frozen=True, slots=True)
class ExecutionFilter:
    """Which executions a list shows; None does not filter."""

    definition_id: str | None = None
    status: ExecutionStatus | None = None
    start_time: datetime | None = None
    """Created at or after."""
    end_time: datetime | None = None
    """Created at or before."""
    tags: tuple[str, ...] = ()
    """All of them."""
    is_open: bool | None = None
    """True: only those that are not over."""


@dataclass(frozen=True, slots=True)
class GateFilter:
    """Which open gates a list shows; None does not filter."""

    execution_id: str | None = None
    definition_id: str | None = None
    assignee: str | None = None
    """Among the gate's assignees."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do what one process at a time does, for a limited time."""

    mark: str | None
    """What the last holder left: how far it had come."""


@dataclass(frozen=True, slots=True)
class Aggregates:
    """Counts and sums over a time range; formulas over them are in ``domain.metrics``."""

    count: int = 0
    """Executions created, or logical agent calls started, in the range."""
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    durations: list[float] = field(default_factory=list[float])
    """Seconds from start to end of the completed ones, ascending."""
    retries: int = 0
    """Attempts after the first of each logical call."""
    fallbacks: int = 0
    """Logical calls made to a fallback agent."""
    handoffs_taken: int = 0
    """Of the executions; an agent has none."""
    handoffs_refused: int = 0
    usage: Usage = field(default_factory=Usage)


class ExecutionStore(Protocol):
    """Execution and step records.

    Writes are acknowledged only when they would survive a crash of the machine. Every write is idempotent: repeated
    with the same arguments it changes nothing. Every method raises ``StoreError`` when the store does not answer.
    """

    async def create_execution(
        self, record: ExecutionRecord, plan: bytes | None, steps: Sequence[StepRecord] = ()
    ) -> ExecutionRecord | None:
        """Insert a record and its frozen plan (under ``record.plan_hash``) in one transaction.

        Return None when inserted; when the execution exists, the stored record, with nothing written. ``plan`` is
        None when the caller knows it to be stored. ``steps`` are what a rerun keeps of its parent, written with the
        record; a store without transactions writes them before it.
        """
        ...

    async def get_execution(self, execution_id: str) -> ExecutionRecord | None:
        """Return the record, or None."""
        ...

    async def list_executions(
        self, query: ExecutionFilter, *, limit: int, after: Position | None
    ) -> Page[ExecutionRecord]:
        """Return records, latest created first. ``after``: ``(created_at as ISO text, execution_id)``."""
        ...

    async def get_plan(self, plan_hash: str) -> bytes | None:
        """Return the frozen plan as it was given to ``create_execution``, or None."""
        ...

    async def record_steps(self, steps: list[StepRecord], run_started_at: datetime) -> list[StepRecord]:
        """Write step records of one run in one transaction; return, in order, what stands for each afterwards.

        Fence, per address (execution, run, step, item, n): a stored record with a greater token stands, and is
        returned in place of the given one; an equal or smaller one is replaced. The execution's record leaves
        ``pending`` for ``running``, takes the run's id, and its ``started_at`` is set if it was not. A record that
        an earlier run ended (``run_started_at`` smaller) is reopened as ``running`` (the run was reset by an
        operator); one that this run or a later one ended stays ended. An unknown execution is not an error: the
        step records are kept.
        """
        ...

    async def claim_step(self, claim: StepRecord, run_started_at: datetime) -> StepRecord:
        """Announce an attempt after the first, before its agent is called, in one find-and-update.

        Return the stored record when it is completed (the call has been made: use its output) or has a greater
        token (this attempt is a straggler); else write ``claim``, with the stored usage added to the claim's and the
        stored events before the claim's, and return what was written. Then ``token`` equals the claim's.
        """
        ...

    async def get_step(
        self, execution_id: str, run_id: str, step_id: str, item: int | None, n: int
    ) -> StepRecord | None:
        """Return the record at an address, or None."""
        ...

    async def list_steps(self, execution_id: str, *, with_items: bool = True) -> list[StepRecord]:
        """Return the step records of all runs of an execution, by token; those of a ``foreach``'s items when asked."""
        ...

    async def finalize_execution(self, record: ExecutionRecord, steps: list[StepRecord]) -> ExecutionRecord:
        """Write an execution's end, with step records not yet stored, in one transaction; return what stands.

        ``record`` is whole (used to insert when none is stored) and terminal. A stored record keeps its input,
        input_hash, options, created_at, deadline_at, plan_hash, step_ids and its events (to which the record's are
        added, in place of those of an earlier end), and ``started_at`` if set. It stands when a later
        run owns it (a greater ``run_started_at``), or when this run ended it with a greater ``history_length``;
        else it is replaced. Steps obey the fence of ``record_steps``.
        """
        ...

    async def record_last_steps(
        self, steps: list[StepRecord], end: ExecutionRecord
    ) -> tuple[list[StepRecord], ExecutionRecord | None]:
        """Write the last steps of a run as ``record_steps`` does and, if each was written, the execution's end.

        Return what stands for each step, and of the end as ``finalize_execution`` does; None for an end that was not
        written because a step was refused. A store without transactions writes the steps first.
        """
        ...

    async def record_transition(self, change: Transition) -> None:
        """Write a change of status, gates and steps in one transaction.

        The status and the events are written unless the record has ended in this run or a later one, or a later run
        owns it; the status not when its ``status_token`` is greater, an event not when it is there already (by id). A
        record that is ``pending`` or owned by an earlier run is taken over as by ``record_steps``. Of each gate
        (execution, gate) the greater token stands, an equal one is replaced. Steps obey the fence of
        ``record_steps``. An unknown execution is not an error: gates and steps are kept. A store without transactions
        writes gates and steps first.
        """
        ...

    async def get_gate(self, execution_id: str, gate_id: str) -> GateRecord | None:
        """Return a gate, open or not, or None."""
        ...

    async def list_gates(self, query: GateFilter, *, limit: int, after: Position | None) -> Page[GateRecord]:
        """Return gates with status ``open``, oldest first.

        ``after``: ``(opened_at as ISO text, execution_id and gate_id joined by a line feed)``.
        """
        ...

    async def repair_execution(self, record: ExecutionRecord, *, expected: ExecutionStatus) -> bool:
        """Replace the record when its stored status still is ``expected``; return whether it was."""
        ...

    async def acquire_lease(self, name: str, holder: str, ttl: timedelta) -> Lease | None:
        """Take or renew a lease for ``ttl`` from now by the store's clock; None while another holder has it."""
        ...

    async def leave_mark(self, name: str, holder: str, mark: str) -> bool:
        """Store how far the holder of a lease has come; False, with nothing written, when it has lost the lease."""
        ...

    async def release_lease(self, name: str, holder: str) -> None:
        """Give a lease back before its time; nothing happens when it was lost. The mark stays."""
        ...


class ExecutionAnalytics(Protocol):
    """Questions over many records. Results may lag 5 s. Raises ``StoreError`` like the store itself."""

    async def workflow_aggregates(self, definition_id: str, start: datetime, end: datetime) -> Aggregates:
        """Aggregate the executions of a definition that were created in ``[start, end]``."""
        ...

    async def agent_aggregates(self, agent_id: str, start: datetime, end: datetime) -> Aggregates:
        """Aggregate the logical calls of an agent that started in ``[start, end]``."""
        ...
