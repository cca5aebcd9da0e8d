"""Executions as Temporal runs: the port ``ExecutionRuntime`` over a client."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from engine.adapters.codec import compress_zstd
from engine.adapters.temporal.closes import describe_close, find_cancel_request, list_runs
from engine.adapters.temporal.connection import RPC_TIMEOUT, temporal_failures, unreachable
from engine.adapters.temporal.dev_server import search_attributes
from engine.adapters.temporal.updates import UPDATE_TIMEOUT, send_update
from engine.domain.step_table import plan_table
from engine.errors import ConflictError, InternalError, RuntimeUnavailableError
from engine.ports.execution_runtime import RunDescription, RuntimeHealth, StartedRun

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from engine.adapters.temporal.connection import TemporalConnection
    from engine.domain.execution import Cancellation
    from engine.domain.json import JsonObject
    from engine.domain.messages import StartEnvelope
    from engine.domain.plan import ExecutionPlan
    from engine.ports.execution_runtime import RunPage, RunStatus, StartRequest

MAX_INLINE_PLAN_BYTES: Final = 64 * 1024
"""Compressed; a larger plan is loaded by its hash."""
BACKSTOP: Final = timedelta(seconds=60)
"""Temporal's own timeout comes this much after the deadline and the clean-up."""
_PRIORITIES: Final = {"high": 1, "normal": 3, "low": 5}
_POLLER_MAX_AGE_SECONDS: Final = 1.0
_MAX_KNOWN_PLANS: Final = 1000
_SUMMARY_BYTES: Final = 400
START_TIMEOUT: Final = timedelta(seconds=3)
MAX_STARTS: Final = 8
"""Tries of one start while the server is alive and does not answer in time."""
_ALIVE_TIMEOUT: Final = timedelta(seconds=1.5)
_UNANSWERED: Final = (RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED)


class TemporalRuntime:
    """Starts, cancels and describes runs through one connection."""

    def __init__(
        self,
        connection: TemporalConnection,
        task_queue: str,
        start_worker: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._connection = connection
        self._task_queue = task_queue
        self._start_worker = start_worker
        self._inlined: OrderedDict[str, bool] = OrderedDict()
        self._poller_seen: tuple[float, bool] = (float("-inf"), False)

    async def connect(self) -> None:
        """See ``ExecutionRuntime``."""
        await self._connection.client()
        if self._start_worker is not None:
            await self._start_worker()

    async def start_run(self, request: StartRequest) -> StartedRun:
        """See ``ExecutionRuntime``."""
        client = await self._connection.client()
        registered = await self._connection.registered_search_attributes()
        plan = request.plan
        envelope = request.envelope.model_copy(
            update={
                "plan": plan if self._is_inline(request.plan_hash, plan) else None,
                "search_attributes": sorted(registered),
            }
        )
        run_id = await self._start(client, request, envelope, registered)
        ui_url = self.ui_url(request.execution_id, run_id, client.namespace)
        return StartedRun(run_id, client.namespace, self._task_queue, ui_url)

    async def request_cancel(self, execution_id: str, reason: str | None) -> bool:
        """See ``ExecutionRuntime``."""
        client = await self._connection.client()
        async with _deadline(_address(client)):
            try:
                await client.get_workflow_handle(execution_id).cancel(reason=reason or "", rpc_timeout=RPC_TIMEOUT)
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    return False
                raise
        return True

    async def send_update(self, execution_id: str, name: str, argument: JsonObject) -> JsonObject:
        """See ``ExecutionRuntime``."""
        client = await self._connection.client()
        with temporal_failures(_address(client)):
            try:
                return await send_update(client, execution_id, name, argument)
            except TimeoutError as error:
                raise await self._unanswered(client, execution_id, name) from error

    async def describe_run(self, execution_id: str) -> RunDescription | None:
        """See ``ExecutionRuntime``."""
        client = await self._connection.client()
        async with _deadline(_address(client)):
            try:
                described = await client.get_workflow_handle(execution_id).describe(rpc_timeout=RPC_TIMEOUT)
                return await describe_close(client, described)
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    return None
                raise

    async def list_runs(
        self,
        *,
        statuses: Collection[RunStatus] = (),
        closed_since: datetime | None = None,
        limit: int,
        after: bytes | None,
    ) -> RunPage:
        """See ``ExecutionRuntime``."""
        client = await self._connection.client()
        async with _deadline(_address(client)):
            return await list_runs(client, self._task_queue, statuses, closed_since, limit, after)

    async def find_cancel_request(self, execution_id: str) -> Cancellation | None:
        """See ``ExecutionRuntime``."""
        client = await self._connection.client()
        with temporal_failures(_address(client)):
            return await find_cancel_request(client, execution_id)

    async def await_close(self, execution_id: str, wait: timedelta) -> bool:
        """See ``ExecutionRuntime``."""
        client = await self._connection.client()
        with temporal_failures(_address(client)):
            try:
                async with asyncio.timeout(wait.total_seconds()):
                    await client.get_workflow_handle(execution_id).result()
            except TimeoutError:
                return False
            except WorkflowFailureError:
                return True
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    return True
                raise
        return True

    async def has_poller(self) -> bool:
        """See ``ExecutionRuntime``; an answer is kept for a second."""
        from temporalio.api.enums.v1 import TaskQueueType
        from temporalio.api.taskqueue.v1 import TaskQueue
        from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

        seen_at, found = self._poller_seen
        if time.monotonic() - seen_at < _POLLER_MAX_AGE_SECONDS:
            return found
        client = await self._connection.client()
        with temporal_failures(_address(client)):
            answer = await client.workflow_service.describe_task_queue(
                DescribeTaskQueueRequest(
                    namespace=client.namespace,
                    task_queue=TaskQueue(name=self._task_queue),
                    task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
                ),
                timeout=RPC_TIMEOUT,
            )
        found = bool(answer.pollers)
        self._poller_seen = (time.monotonic(), found)
        return found

    async def check_health(self) -> RuntimeHealth:
        """See ``ExecutionRuntime``."""
        from temporalio.api.workflowservice.v1 import GetSystemInfoRequest

        client = await self._connection.client()
        began = time.monotonic()
        with temporal_failures(_address(client)):
            answer = await client.workflow_service.get_system_info(GetSystemInfoRequest(), timeout=RPC_TIMEOUT)
        latency = timedelta(seconds=time.monotonic() - began)
        missing = sorted(frozenset(search_attributes()) - await self._connection.registered_search_attributes())
        return RuntimeHealth(version=answer.server_version or None, latency=latency, missing_search_attributes=missing)

    def ui_url(self, execution_id: str, run_id: str | None, namespace: str) -> str | None:
        """Address of an execution's page, when the UI's is known."""
        base = self._connection.ui_url
        if base is None:
            return None
        page = f"{base}/namespaces/{quote(namespace, safe='')}/workflows/{quote(execution_id, safe='')}"
        return f"{page}/{quote(run_id, safe='')}/history" if run_id else page

    async def _start(
        self, client: Client, request: StartRequest, envelope: StartEnvelope, registered: frozenset[str]
    ) -> str:
        """Start the run and return its id; repeat a start that was not answered while the server is alive.

        A server under load may answer late; the id makes a repeated start join the run of the first one.
        """
        for last in (False,) * (MAX_STARTS - 1) + (True,):
            with temporal_failures(_address(client)):
                try:
                    return await self._start_once(client, request, envelope, registered)
                except WorkflowAlreadyStartedError as error:
                    raise ConflictError(
                        f"Execution {request.execution_id} has ended in Temporal",
                        {"execution_id": request.execution_id, "run_id": error.run_id},
                    ) from error
                except RPCError as error:
                    if last or error.status not in _UNANSWERED or not await _is_alive(client):
                        raise
        raise InternalError("The last start neither returned nor raised")

    async def _start_once(
        self, client: Client, request: StartRequest, envelope: StartEnvelope, registered: frozenset[str]
    ) -> str:
        plan = request.plan
        deadline = envelope.deadline_at
        handle = await client.start_workflow(
            plan.definition_id,
            args=[request.input, envelope],
            id=request.execution_id,
            task_queue=self._task_queue,
            execution_timeout=None if deadline is None else _left(deadline) + plan.cleanup_timeout + BACKSTOP,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            memo={"workflow_id": plan.definition_id, "version": plan.version, "plan_hash": request.plan_hash},
            search_attributes=_attributes(plan, envelope.options.tags, registered),
            priority=Priority(priority_key=_PRIORITIES[envelope.options.priority]),
            static_summary=_cut(f"{plan.name} (version {plan.version})"),
            static_details=plan_table(plan),
            request_eager_start=True,
            rpc_timeout=START_TIMEOUT,
        )
        return handle.result_run_id or handle.first_execution_run_id or ""

    async def _unanswered(self, client: Client, execution_id: str, name: str) -> RuntimeUnavailableError:
        """Return the error for an update without an answer, which names the likely cause."""
        seconds = int(UPDATE_TIMEOUT.total_seconds())
        try:
            async with asyncio.timeout(_ALIVE_TIMEOUT.total_seconds()):
                is_polled = await self.has_poller()
        except TimeoutError:
            return unreachable(_address(client))
        cause = (
            "Its worker may be busy or was just lost"
            if is_polled
            else "No worker polls the task queue; start one with `python worker.py` or `./baton worker`"
        )
        return RuntimeUnavailableError(
            f"Execution {execution_id} did not answer {name} within {seconds} s, and may yet take it. {cause}; look at "
            "the execution before you send it again",
            {"execution_id": execution_id, "update": name, "task_queue": self._task_queue},
        )

    def _is_inline(self, plan_hash: str, plan: ExecutionPlan) -> bool:
        known = self._inlined.get(plan_hash)
        if known is None:
            text = plan.model_dump_json().encode()
            known = len(text) <= MAX_INLINE_PLAN_BYTES or len(compress_zstd(text)) <= MAX_INLINE_PLAN_BYTES
            self._inlined[plan_hash] = known
            if len(self._inlined) > _MAX_KNOWN_PLANS:
                self._inlined.popitem(last=False)
        return known


@asynccontextmanager
async def _deadline(address: str) -> AsyncGenerator[None]:
    """Turn what goes wrong into our errors, no later than a call may take: the SDK's retries take longer."""
    try:
        async with asyncio.timeout(RPC_TIMEOUT.total_seconds()):
            with temporal_failures(address):
                yield
    except TimeoutError as error:
        raise unreachable(address) from error


async def _is_alive(client: Client) -> bool:
    try:
        return await client.service_client.check_health(timeout=_ALIVE_TIMEOUT)
    except RPCError:
        return False


def _address(client: Client) -> str:
    return client.service_client.config.target_host


def _left(deadline: datetime) -> timedelta:
    return max(deadline - datetime.now(UTC), timedelta(0))


def _attributes(plan: ExecutionPlan, tags: list[str], registered: frozenset[str]) -> TypedSearchAttributes:
    pairs = [
        SearchAttributePair(SearchAttributeKey.for_keyword("BatonWorkflow"), plan.definition_id),
        SearchAttributePair(SearchAttributeKey.for_int("BatonVersion"), plan.version),
        SearchAttributePair(SearchAttributeKey.for_keyword_list("BatonTags"), [*plan.tags, *tags]),
        SearchAttributePair(SearchAttributeKey.for_keyword("BatonTenant"), "default"),
    ]
    return TypedSearchAttributes([pair for pair in pairs if pair.key.name in registered])


def _cut(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= _SUMMARY_BYTES else encoded[: _SUMMARY_BYTES - 3].decode(errors="ignore") + "…"
