"""The composition root: settings in, an open engine out. With ``engine.stores`` the only place that imports adapters.

Making the parts connects to nothing; every one opens at its first use.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from engine.adapters.secrets import ConfiguredSecrets
from engine.errors import ConfigurationError, EngineError
from engine.services.agents import AgentService
from engine.services.analytics import AnalyticsService
from engine.services.context import ContextService
from engine.services.context_search import ContextSearch
from engine.services.copying import Catalogue, CopyService, Records
from engine.services.definitions import DefinitionService
from engine.services.execution_reads import ExecutionReads
from engine.services.executions import ExecutionService
from engine.services.graph import GraphService
from engine.services.handoffs import HandoffService
from engine.services.health import ComponentHealth, HealthService
from engine.services.indexing import IndexingService
from engine.services.operators import OperatorService
from engine.services.plans import PlanService
from engine.services.reconciliation import ReconciliationService
from engine.services.reindexing import ReindexingService
from engine.services.repair import ExecutionRepairs
from engine.services.verification import VerificationService
from engine.stores import EMBEDDED_FILE, Stores, open_stores

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from temporalio.client import Interceptor
    from temporalio.runtime import Runtime
    from temporalio.worker import Worker

    from engine.adapters.agents.tools.tool_source import AgentTools
    from engine.adapters.temporal.connection import TemporalConnection
    from engine.adapters.temporal.runtime import TemporalRuntime
    from engine.ports.agent_invoker import AgentInvoker
    from engine.ports.price_table import PriceTable
    from engine.settings import EngineSettings

_logger = logging.getLogger(__name__)

WORKER_GRACE: Final = timedelta(seconds=30)
EMBEDDED_GRACE: Final = timedelta(seconds=5)
"""An embedded worker stops with its program, and nobody waits half a minute for a program to end."""
STOP_MARGIN: Final = timedelta(seconds=30)
"""Beyond the grace: for cancelled calls to end, and for what they leave to be written."""


class EngineSession:
    """Everything an engine has open, on one event loop; made there, used there, closed there."""

    def __init__(self, settings: EngineSettings, invoker: AgentInvoker | None = None) -> None:
        from engine.adapters.temporal.runtime import TemporalRuntime
        from engine.adapters.temporal.worker_factory import INTERPRETER_VERSION
        from engine.adapters.write_behind import WriteBehindStateStore

        self.settings = settings
        self.stores = open_stores(settings)
        self._tracing = _open_tracing()
        self.connection = _open_connection(settings, [self._tracing.interceptor()] if self._tracing else [])
        embeds_worker = settings.worker == "embedded"
        self.runtime: TemporalRuntime = TemporalRuntime(
            self.connection, settings.task_queue, self.start_worker if embeds_worker else None
        )
        self._invoker = invoker
        stores = self.stores
        live = WriteBehindStateStore(stores.state)
        stores.closing.push_async_callback(live.aclose)
        self._live = live
        self.plans = PlanService(
            stores.definitions,
            stores.agents,
            stores.handoffs,
            stores.executions,
            stores.artifacts,
            live,
            _now,
            settings.retry_count,
            self._open_prices,
            settings.llm_base_url,
        )
        self.context, self.indexing = _open_context(stores, settings.batch_size)
        self.secrets = ConfiguredSecrets(os.environ, settings.secrets_dir, settings.secret_hosts)
        self.tools = self._open_tools()
        self.definitions = DefinitionService(
            stores.definitions, stores.source_definitions, stores.agents, _now, _suffix
        )
        self.agents = AgentService(stores.agents, _now, self.tools.why_unknown)
        self.handoffs = HandoffService(stores.handoffs, stores.agents, _now, _suffix)
        repairs = ExecutionRepairs(stores.executions, stores.state, _now)
        self.reads = ExecutionReads(stores.executions, stores.state, self.runtime, repairs)
        self.reconciliation = ReconciliationService(
            stores.executions,
            stores.state,
            self.runtime,
            repairs,
            _now,
            holder=_new_ulid(),
            batch_size=settings.batch_size,
        )
        self.verification = VerificationService(
            stores.executions, stores.state, self.runtime, repairs, _now, batch_size=settings.batch_size
        )
        self.executions = ExecutionService(
            self.plans, stores.executions, self.runtime, self.reads, _now, _new_ulid, INTERPRETER_VERSION
        )
        self.operators = OperatorService(stores.executions, self.runtime, self.reads)
        self.graph = GraphService(stores.graph, stores.agents)
        self.analytics = AnalyticsService(stores.analytics, stores.definitions, stores.agents, _now)
        self.health = HealthService(stores.checks, self._probe_runtime, _now)
        self._starting = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self._stop_worker: Callable[[], Awaitable[None]] | None = None
        self._grace = EMBEDDED_GRACE
        self._closed = False

    async def start_worker(self, grace: timedelta = EMBEDDED_GRACE) -> None:
        """Run a worker with its background tasks on this loop from now on; once.

        Raises:
            RuntimeUnavailableError: there is no server to work for.
        """
        async with self._starting:
            if self._worker is not None and not self._worker.done():
                return
            client = await self.connection.client()
            registered = await self.connection.registered_search_attributes()
            from engine.adapters.temporal.worker_factory import WORKFLOW_TASKS, WorkerParts, build_worker

            stores = self.stores
            executor = ThreadPoolExecutor(WORKFLOW_TASKS, thread_name_prefix="baton-workflow")
            # Its threads are idle by then, unless the worker has not ended: then nobody waits for them either.
            stores.closing.callback(executor.shutdown, wait=False)
            worker = build_worker(
                client,
                self.settings.task_queue,
                WorkerParts(
                    invoker=self._invoker or self._open_invoker(),
                    plans=self.plans,
                    executions=stores.executions,
                    artifacts=stores.artifacts,
                    state=self._live,
                    memory=self.context,
                    runtime=self.runtime,
                    search_attributes=sorted(registered),
                ),
                executor,
                grace=grace,
                runner=self.settings.workflow_runner,
            )
            self._grace = grace
            self._worker = asyncio.create_task(self._work(worker), name="baton worker")
            self._stop_worker = worker.shutdown

    async def _work(self, worker: Worker) -> None:
        """Run the worker with its background tasks, which end with it."""
        beside = [
            asyncio.create_task(self.reconciliation.run_forever(), name="baton reconciler"),
            asyncio.create_task(self.indexing.run_forever(), name="baton indexer"),
        ]
        try:
            await worker.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)

    async def worker_ended(self) -> None:
        """Wait until the worker has ended; raise what ended it."""
        if self._worker is not None:
            await asyncio.shield(self._worker)

    async def aclose(self) -> None:
        """End the worker gracefully, then let client, development server and stores go. Idempotent."""
        if self._closed:
            return
        self._closed = True
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self.stores.closing.aclose)
            closing.push_async_callback(self.connection.aclose)
            if self._tracing is not None:
                closing.push_async_callback(asyncio.to_thread, self._tracing.close)
            if self._worker is not None and self._stop_worker is not None:
                await self._end_worker(self._worker, self._stop_worker)

    async def _end_worker(self, worker: asyncio.Task[None], stop: Callable[[], Awaitable[None]]) -> None:
        """Stop the worker and wait for its end; one that does not end in time is left behind."""
        stopping = asyncio.ensure_future(stop())
        limit = (self._grace + STOP_MARGIN).total_seconds()
        await asyncio.wait([worker], timeout=limit)
        stopping.cancel()
        if not worker.done():
            _logger.error(
                "The worker has not ended within %g s and is left behind; look for an agent that goes on when it is "
                "cancelled, and end the process",
                limit,
            )
        elif (error := worker.exception()) is not None:
            _logger.error("The worker ended with an error: %s", error)

    def _open_invoker(self) -> AgentInvoker:
        from engine.adapters.agents.http_agents import HttpAgentInvoker
        from engine.adapters.agents.llm.invoker import LlmAgentInvoker
        from engine.adapters.agents.masking_invoker import MaskingAgentInvoker
        from engine.adapters.agents.python_agents import PythonAgentInvoker
        from engine.adapters.agents.routing import RoutingAgentInvoker

        settings = self.settings
        python = PythonAgentInvoker(settings.agent_modules)
        http = HttpAgentInvoker(settings.allowed_hosts, self.secrets)
        llm = LlmAgentInvoker(
            settings.allowed_hosts,
            self.secrets,
            self.tools,
            self._open_prices(),
            default_base_url=settings.llm_base_url,
        )
        for invoker in (python, http, llm):
            self.stores.closing.push_async_callback(invoker.aclose)
        return MaskingAgentInvoker(RoutingAgentInvoker({"python": python, "http": http, "llm": llm}))

    def _open_prices(self) -> PriceTable:
        from engine.adapters.agents.llm.prices import ModelPrices

        return ModelPrices(self.settings.prices_file)

    def _open_tools(self) -> AgentTools:
        from engine.adapters.agents.tools.mcp_servers import McpServerPlace
        from engine.adapters.agents.tools.tool_source import AgentTools

        settings = self.settings
        places = {
            name: McpServerPlace(command=server.command or (), env=server.env, url=server.url, headers=server.headers)
            for name, server in settings.mcp_servers.items()
        }
        tools = AgentTools(settings.agent_modules, places, self.secrets, settings.allowed_hosts)
        self.stores.closing.push_async_callback(tools.aclose)
        return tools

    async def _probe_runtime(self) -> tuple[ComponentHealth, ComponentHealth]:
        if self.connection.is_embedded and not self.connection.is_open:
            idle = "the embedded server and worker start with the first execution"
            return (
                ComponentHealth("up", backend="temporal", detail=idle),
                ComponentHealth("up", backend="embedded", detail=idle),
            )
        health = await self.runtime.check_health()
        missing = health.missing_search_attributes
        detail = f"search attributes not registered: {', '.join(missing)}" if missing else None
        temporal = ComponentHealth("up", "temporal", health.latency, health.version, detail)
        if await self.runtime.has_poller():
            return temporal, ComponentHealth("up", backend="temporal")
        from engine.services.execution_reads import NO_WORKER_HINT

        return temporal, ComponentHealth("no_worker", backend="temporal", detail=NO_WORKER_HINT)


class WorkerSession:
    """A worker program's worker, with all it needs.

    Attributes:
        address: of Temporal's frontend.
        ui_url: of Temporal's UI, or None when unknown.
        namespace: that is polled.
        task_queue: that is polled.
    """

    def __init__(self, session: EngineSession, address: str, ui_url: str | None, namespace: str) -> None:
        self._session = session
        self.address = address
        self.ui_url = ui_url
        self.namespace = namespace
        self.task_queue = session.settings.task_queue

    async def serve(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set or the worker fails; then end gracefully."""
        stopping = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(self._session.worker_ended())
        await asyncio.wait([stopping, ended], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if ended.done():
            ended.result()
        ended.cancel()
        await self.aclose()

    async def aclose(self) -> None:
        """End the worker gracefully and close everything."""
        await self._session.aclose()


async def open_worker(settings: EngineSettings) -> WorkerSession:
    """Connect and start a worker.

    Raises:
        RuntimeUnavailableError: there is no server, and none can be started.
        ConfigurationError: a store's address can't be read, or names no server.
    """
    session = EngineSession(settings)
    try:
        await session.start_worker(WORKER_GRACE)
        client = await session.connection.client()
    except (EngineError, asyncio.CancelledError):
        await session.aclose()
        raise
    address = client.service_client.config.target_host
    return WorkerSession(session, address, session.connection.ui_url, client.namespace)


@asynccontextmanager
async def open_copy(settings: EngineSettings, source: Literal["embedded", "configured"]) -> AsyncGenerator[CopyService]:
    """Have the embedded and the configured stores open, to copy from ``source`` to the other ones.

    Only what has a store of its own configured is copied.

    Raises:
        ConfigurationError: no store that could be copied to or from is configured, or there are no embedded ones.
    """
    if settings.neo4j_uri is None and settings.mongo_uri is None:
        raise ConfigurationError(
            "There are no configured stores to copy to or from; set neo4j_uri (for workflows, agents and handoffs), "
            "mongo_uri (for executions) or both",
            {"path": "neo4j_uri"},
        )
    if source == "embedded" and not (settings.data_dir / EMBEDDED_FILE).exists():
        raise ConfigurationError(
            f"There is nothing to copy: no {EMBEDDED_FILE} in {settings.data_dir}; correct data_dir",
            {"path": "data_dir"},
        )
    embedded = settings.model_copy(update=dict.fromkeys(("neo4j_uri", "mongo_uri", "redis_uri", "pinecone_api_key")))
    async with AsyncExitStack() as closing:
        sides: list[Stores] = []
        for side in (embedded, settings):
            stores = open_stores(side)
            closing.push_async_callback(stores.closing.aclose)
            sides.append(stores)
        first, second = sides if source == "embedded" else reversed(sides)
        catalogues = (
            Catalogue(first.definitions, first.agents, first.handoffs),
            Catalogue(second.definitions, second.agents, second.handoffs),
        )
        records = (Records(first.executions, first.artifacts), Records(second.executions, second.artifacts))
        yield CopyService(
            None if settings.neo4j_uri is None else catalogues,
            None if settings.mongo_uri is None else records,
            _now,
            settings.batch_size,
            settings.retry_count,
        )


def _open_connection(settings: EngineSettings, interceptors: list[Interceptor]) -> TemporalConnection:
    from engine.adapters.temporal.connection import TemporalConnection

    return TemporalConnection(
        settings.temporal_connect_config if settings.has_temporal_address() else None,
        settings.data_dir,
        settings.compression_threshold,
        interceptors,
        None if settings.metrics_address is None else _metrics_runtime(settings.metrics_address),
    )


def _open_context(stores: Stores, batch_size: int) -> tuple[ContextService, IndexingService]:
    indexing = IndexingService(
        stores.context,
        stores.vectors,
        stores.embedder,
        stores.executions,
        _now,
        holder=_new_ulid(),
        batch_size=batch_size,
    )
    search = ContextSearch(stores.context, stores.vectors, stores.words, stores.embedder, indexing)
    reindexing = ReindexingService(
        stores.context, stores.vectors, stores.executions, stores.artifacts, indexing, batch_size=batch_size
    )
    return ContextService(stores.context, search, indexing, reindexing, _now), indexing


def _open_tracing():  # noqa: ANN202
    from engine.observability import open_tracing

    return open_tracing()


@functools.cache
def _metrics_runtime(address: str) -> Runtime:
    # Kept, because it lets its port go only with the process, and an engine may be opened again.
    from engine.observability import prometheus_runtime

    return prometheus_runtime(address)


def _now() -> datetime:
    return datetime.now(UTC)


def _suffix() -> str:
    return secrets.token_hex(2)


def _new_ulid() -> str:
    from ulid import ULID

    return str(ULID()).lower()
