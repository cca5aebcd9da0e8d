"""The Temporal worker: the interpreter, the activities, and settings that suit a small machine.

The figures are from measurements on two cores: more pollers slow a burst down, and the workflow thread pool must
be as large as the number of workflow tasks, because waiting for a thread counts against the deadlock detector.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from temporalio.exceptions import ApplicationError
from temporalio.worker import PollerBehaviorSimpleMaximum, UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.agent_activities import AgentActivities
from activities.record_activities import RecordActivities
from activities.value_activities import ValueActivities
from workflows.interpreter import InterpreterWorkflow
from workflows.versions import INTERPRETER_VERSION

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from temporalio.client import Client

    from engine.ports.agent_invoker import AgentInvoker
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.context_memory import ContextMemory
    from engine.ports.execution_runtime import ExecutionRuntime
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.plan_loader import PlanLoader
    from engine.ports.state_store import StateStore

__all__ = ["INTERPRETER_VERSION", "WORKFLOW_TASKS", "WorkerParts", "build_worker"]

WORKFLOW_TASKS: Final = 32
"""And threads in the executor."""
_ACTIVITIES: Final = 300
_POLLERS: Final = 10
STICKY_PATIENCE: Final = timedelta(seconds=5)
"""After a worker was lost, its runs are offered to others: sooner than an operator's call gives up (10 s)."""
_EAGER_ACTIVITIES: Final = 10


class _FailuresOnce(logging.Filter):
    """Keeps the SDK from logging a failure that an activity reports on purpose: it was logged where it happened."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, ApplicationError) and str(record.msg).startswith("Completing activity as failed"))


_FAILURES_ONCE: Final = _FailuresOnce()


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What the activities work with."""

    invoker: AgentInvoker
    plans: PlanLoader
    executions: ExecutionStore
    artifacts: ArtifactStore
    state: StateStore
    memory: ContextMemory
    runtime: ExecutionRuntime
    search_attributes: list[str]
    """Baton's own that the namespace has registered."""


def build_worker(
    client: Client,
    task_queue: str,
    parts: WorkerParts,
    executor: ThreadPoolExecutor,
    *,
    grace: timedelta,
    runner: Literal["unsandboxed", "sandboxed"],
) -> Worker:
    """Build the worker; running it is the caller's.

    Args:
        client: shared with the starter in one process, so that starts are eager.
        task_queue: to poll.
        parts: what the activities work with.
        executor: of ``WORKFLOW_TASKS`` threads, for workflow tasks; the caller shuts it down after the worker.
        grace: how long running calls may go on after a stop was asked for.
        runner: the sandbox guards against non-determinism in tests and doubles the cost.
    """
    agents = AgentActivities(parts.invoker, parts.executions, parts.artifacts, parts.state, parts.memory)
    records = RecordActivities(
        parts.plans, parts.executions, parts.artifacts, parts.state, parts.runtime, parts.search_attributes
    )
    values = ValueActivities(parts.executions, parts.artifacts, parts.state)
    logging.getLogger("temporalio.activity").addFilter(_FAILURES_ONCE)
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[InterpreterWorkflow],
        activities=[
            agents.invoke_agent,
            records.load_plan,
            records.finalize,
            records.record_decisions,
            records.record_transition,
            values.compute_value,
            records.request_cancel,
        ],
        workflow_runner=UnsandboxedWorkflowRunner() if runner == "unsandboxed" else SandboxedWorkflowRunner(),
        workflow_task_executor=executor,
        max_concurrent_workflow_tasks=WORKFLOW_TASKS,
        sticky_queue_schedule_to_start_timeout=STICKY_PATIENCE,
        max_concurrent_activities=_ACTIVITIES,
        workflow_task_poller_behavior=PollerBehaviorSimpleMaximum(_POLLERS),
        activity_task_poller_behavior=PollerBehaviorSimpleMaximum(_POLLERS),
        max_eager_activity_reservations_per_workflow_task=_EAGER_ACTIVITIES,
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=grace,
        max_workflow_task_external_storage_concurrency=1,
        build_id=f"baton-interpreter-{INTERPRETER_VERSION}",
    )
