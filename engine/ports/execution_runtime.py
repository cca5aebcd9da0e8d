"""What runs executions: Temporal, seen from the services."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime, timedelta

    from engine.domain.execution import Cancellation, ErrorPayload, Value
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.messages import StartEnvelope
    from engine.domain.plan import ExecutionPlan


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A run to be started."""

    execution_id: str
    plan: ExecutionPlan
    plan_hash: str
    input: JsonValue
    """The input, or None when ``envelope.input_ref`` has it."""
    envelope: StartEnvelope
    """Without the plan; the runtime embeds it when it is small enough."""


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run that Temporal has accepted."""

    run_id: str
    namespace: str
    task_queue: str
    ui_url: str | None
    """Address of the execution's page, when a UI is known."""


RunStatus = Literal["running", "completed", "failed", "cancelled", "terminated", "timed_out"]


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What Temporal says of an execution's current run."""

    run_id: str
    status: RunStatus
    started_at: datetime
    closed_at: datetime | None
    history_length: int
    definition_id: str
    """The Workflow Type."""
    output: Value | None = None
    """Of a completed run, as it was returned."""
    error: ErrorPayload | None = None
    """Of a failed run."""
    close_reason: str | None = None
    """Of a terminated or cancelled run, if one was given."""
    closed_by: str | None = None
    """Identity of who terminated or cancelled it."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as lists show it."""

    execution_id: str
    run_id: str
    status: RunStatus
    started_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Runs, and the position behind them when more follow."""

    items: list[RunSummary]
    next: bytes | None = None


@dataclass(frozen=True, slots=True)
class RuntimeHealth:
    """Temporal's own state, for the health report."""

    version: str | None
    latency: timedelta
    missing_search_attributes: list[str] = field(default_factory=list[str])


class ExecutionRuntime(Protocol):
    """Starts, cancels and describes runs.

    Every method gives up within its deadline (5 s unless it waits for something by its nature) with
    ``RuntimeUnavailableError``, whose message says which command starts a server.
    """

    async def connect(self) -> None:
        """Reach the server (and, where the worker is embedded, start both), so that a start can be tried."""
        ...

    async def start_run(self, request: StartRequest) -> StartedRun:
        """Start a run, or join the one that is open under this id.

        Raises:
            ConflictError: a run with this id has ended.
        """
        ...

    async def request_cancel(self, execution_id: str, reason: str | None) -> bool:
        """Ask for cancellation; return False when no open run has this id."""
        ...

    async def send_update(self, execution_id: str, name: str, argument: JsonObject) -> JsonObject:
        """Send an Update to the current run and return what its handler returned, waiting up to 10 s.

        Raises:
            InvalidInputError, ConflictError: the run's validator refused it; nothing has changed.
            ConflictError: no open run has this id.
            RuntimeUnavailableError: no answer in time; whether it was taken is unknown. Without a worker the message
                says so.
        """
        ...

    async def find_cancel_request(self, execution_id: str) -> Cancellation | None:
        """Return the latest cancellation request of the current run: why, by whom, when; or None."""
        ...

    async def describe_run(self, execution_id: str) -> RunDescription | None:
        """Return the current run, its close included, or None when Temporal does not know the id."""
        ...

    async def list_runs(
        self,
        *,
        statuses: Collection[RunStatus] = (),
        closed_since: datetime | None = None,
        limit: int,
        after: bytes | None,
    ) -> RunPage:
        """Return a page of the task queue's runs, earlier runs of an execution among them; it may lag some seconds.

        A run that went on as another one is left out. Open ones come first, then the latest closed.

        Args:
            statuses: only those; none for all.
            closed_since: only those that closed then or later, by the server's clock.
            limit: most runs of the page.
            after: ``next`` of the page before; None for the first.
        """
        ...

    async def await_close(self, execution_id: str, wait: timedelta) -> bool:
        """Wait until the execution's current run has closed; return whether it has within ``wait``."""
        ...

    async def has_poller(self) -> bool:
        """Return whether a worker polls the task queue."""
        ...

    async def check_health(self) -> RuntimeHealth:
        """Ask the server for its version and the namespace's search attributes."""
        ...
