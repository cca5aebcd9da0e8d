"""``WorkflowEngine``: the whole API. Each method parses, delegates and renders, and holds no rule of its own.

Making one connects to nothing, and nothing needs to be opened: what a call needs opens with it, on a loop of the
engine's own, and closes with ``aclose``, the end of ``async with`` or the end of the caller's loop.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar, cast

from engine import answers, request_context
from engine.arguments import document, optional_text, plain, seconds, text
from engine.bootstrap import EngineSession
from engine.domain.metrics import format_instant
from engine.errors import EngineError, ExecutionNotFoundError
from engine.loop_thread import LoopThread
from engine.services.executions import parse_options
from engine.settings import EngineSettings

if TYPE_CHECKING:
    from types import TracebackType

    from engine import types
    from engine.domain.execution import Value
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.agent_invoker import AgentInvoker

__all__ = ["WorkflowEngine"]

Document = Mapping[str, object]
P = ParamSpec("P")
T = TypeVar("T")


def _on_own_loop(
    method: Callable[Concatenate[WorkflowEngine, P], Coroutine[object, object, T]],
) -> Callable[Concatenate[WorkflowEngine, P], Coroutine[object, object, T]]:
    """Run a method on the engine's own loop, under a new request id."""

    @functools.wraps(method)
    async def called(self: WorkflowEngine, *args: P.args, **kwargs: P.kwargs) -> T:
        with _request(_new_request_id()):
            return await self._thread().run(method(self, *args, **kwargs))  # pyright: ignore[reportPrivateUsage] # a part of the class

    return called


@contextmanager
def _request(request_id: str) -> Generator[None]:
    token = request_context.request_id.set(request_id)
    try:
        yield
    except EngineError as error:
        # One that a store's thread has raised does not know for whom.
        error.request_id = error.request_id or request_id
        raise
    finally:
        request_context.request_id.reset(token)


def _new_request_id() -> str:
    return f"req-{secrets.token_hex(6)}"


class WorkflowEngine:
    """Durable agent workflows: definitions, executions, agents, handoffs and what is known of them.

    Every method raises ``EngineError`` with a code of ``errors.ErrorCode``. May be shared by tasks, and used again on
    another event loop.

    Args:
        config: settings by key; what is left out comes from ``BATON_*`` variables, ``baton.toml`` and defaults.
        profile: which profile of ``baton.toml``.
        invoker: calls the agents of the embedded worker, in the place of the kinds that are built in; see
            ``engine.testing``.

    Raises:
        ConfigurationError: an unknown key or a wrong value, all of them named.
    """

    def __init__(
        self,
        config: Document | None = None,
        *,
        profile: str | None = None,
        invoker: AgentInvoker | None = None,
    ) -> None:
        self._settings = EngineSettings.load(config, profile=profile)
        self._invoker = invoker
        self._opening = threading.Lock()
        self._opened: LoopThread[EngineSession] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the embedded worker gracefully and let everything go. The engine can be used again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()

    # Workflows.

    @_on_own_loop
    async def create_workflow(
        self,
        name: str,
        steps: Sequence[Document],
        description: str | None = None,
        tags: Sequence[str] | None = None,
        metadata: Document | None = None,
        *,
        workflow_id: str | None = None,
        **fields: object,
    ) -> str:
        """Store a workflow and return its id: a slug of the name unless ``workflow_id`` is given.

        ``fields`` are the definition's other fields: ``input_schema``, ``defaults``, ``output_mapping``.

        Raises:
            InvalidInputError: with every issue in ``details.issues``.
            ConflictError: ``workflow_id`` is taken.
        """
        session = self._session()
        given = {"description": description, "tags": tags, "metadata": metadata, **fields}
        document = {"name": name, "steps": steps, **{key: v for key, v in given.items() if v is not None}}
        stored = await session.definitions.create_definition(plain(document), optional_text(workflow_id, "workflow_id"))
        return stored.definition_id

    @_on_own_loop
    async def validate_workflow(self, definition: Document) -> types.Validation:
        """Report every issue of a definition without storing it."""
        session = self._session()
        issues = await session.definitions.validate_definition(plain(definition))
        valid = all(issue.severity != "error" for issue in issues)
        return {"valid": valid, "issues": [cast("types.Issue", issue.model_dump(mode="json")) for issue in issues]}

    @_on_own_loop
    async def get_workflow(self, workflow_id: str, version: int | None = None) -> types.Workflow:
        """Return a workflow, its newest version unless another is asked for."""
        session = self._session()
        return answers.workflow(await session.definitions.get_definition(text(workflow_id, "workflow_id"), version))

    @_on_own_loop
    async def update_workflow(self, workflow_id: str, updates: Document) -> bool:
        """Store a new version in which ``updates`` replace fields (null removes one); True.

        Equal content makes no new version. Running executions keep the version they started with.
        """
        session = self._session()
        await session.definitions.update_definition(text(workflow_id, "workflow_id"), plain(updates))
        return True

    @_on_own_loop
    async def list_workflows(
        self,
        tags: Sequence[str] | None = None,
        status: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> types.WorkflowPage:
        """Return a page of workflows that have all ``tags``, newest first."""
        session = self._session()
        items, following = await session.definitions.list_definitions(
            cast("list[str] | None", plain(tags)), status, limit, cursor
        )
        return {"items": [answers.workflow_item(item) for item in items], "next_cursor": following}

    @_on_own_loop
    async def list_workflow_versions(
        self, workflow_id: str, limit: int | None = None, cursor: str | None = None
    ) -> types.WorkflowPage:
        """Return a page of a workflow's versions, newest first."""
        session = self._session()
        items, following = await session.definitions.list_versions(text(workflow_id, "workflow_id"), limit, cursor)
        return {"items": [answers.workflow_item(item) for item in items], "next_cursor": following}

    @_on_own_loop
    async def delete_workflow(self, workflow_id: str) -> bool:
        """Archive a workflow: reads no longer find it, running executions finish, records stay; True."""
        session = self._session()
        await session.definitions.delete_definition(text(workflow_id, "workflow_id"))
        return True

    # Executions.

    @_on_own_loop
    async def execute_workflow(
        self,
        workflow_id: str,
        input_data: Document | None = None,
        execution_options: Document | None = None,
    ) -> types.Execution:
        """Start an execution and return at once.

        ``execution_options``: ``priority`` (high, normal, low), ``timeout`` (seconds for the whole), ``trace``,
        ``idempotency_key`` (the same key and input return the same execution), ``version``, ``tags``.
        """
        session = self._session()
        start = parse_options(document(execution_options, "execution_options"))
        given = cast("JsonValue", plain({} if input_data is None else input_data))
        started = await session.executions.start_execution(text(workflow_id, "workflow_id"), given, start)
        record = started.record
        namespace = self._settings.temporal_namespace
        ui_url = session.runtime.ui_url(record.execution_id, record.run_id, namespace)
        return answers.execution(record, started.run, namespace, self._settings.task_queue, ui_url)

    @_on_own_loop
    async def get_execution_status(self, execution_id: str) -> types.ExecutionStatus:
        """Return where an execution stands, never older than a second while it is open."""
        session = self._session()
        return answers.execution_status(await session.reads.read_status(text(execution_id, "execution_id")))

    @_on_own_loop
    async def get_execution_result(self, execution_id: str, wait: float = 0) -> types.ExecutionResult:
        """Return how an execution ended; a failed or cancelled one does not raise.

        Args:
            execution_id: of the execution.
            wait: seconds to wait for its end.

        Raises:
            InvalidInputError: it is still open after ``wait`` seconds.
        """
        session = self._session()
        patience = seconds(wait, "wait")
        result = await session.reads.read_result(text(execution_id, "execution_id"), patience)
        outputs = {step_id: await self._loaded(session, record.output) for step_id, record in result.steps.items()}
        traces = {
            step_id: answers.StepTrace(
                await self._loaded(session, record.input), await self._loaded(session, record.transcript)
            )
            for step_id, record in result.steps.items()
            if record.input is not None or record.transcript is not None
        }
        return answers.execution_result(result, await self._loaded(session, result.record.output), outputs, traces)

    @_on_own_loop
    async def get_execution_input(self, execution_id: str) -> JsonValue:
        """Return what an execution was started with.

        Raises:
            ExecutionNotFoundError: there is none with this id.
        """
        session = self._session()
        record = await session.stores.executions.get_execution(text(execution_id, "execution_id"))
        if record is None:
            raise ExecutionNotFoundError(execution_id)
        return await self._loaded(session, record.input)

    @_on_own_loop
    async def list_executions(
        self,
        workflow_id: str | None = None,
        status: str | None = None,
        start_time: str | datetime | None = None,
        end_time: str | datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> types.ExecutionPage:
        """Return a page of executions, latest first; the times bound their creation."""
        session = self._session()
        items, live, following = await session.executions.list_executions(
            definition_id=optional_text(workflow_id, "workflow_id"),
            status=status,
            start_time=start_time.isoformat() if isinstance(start_time, datetime) else start_time,
            end_time=end_time.isoformat() if isinstance(end_time, datetime) else end_time,
            tags=plain(tags),
            limit=limit,
            cursor=cursor,
        )
        page = [answers.execution_item(item, live.get(item.execution_id)) for item in items]
        return {"items": page, "next_cursor": following}

    @_on_own_loop
    async def cancel_execution(self, execution_id: str, reason: str | None = None) -> bool:
        """Ask for cancellation; True when it was asked for, False when the execution is over."""
        session = self._session()
        why = optional_text(reason, "reason")
        return await session.executions.cancel_execution(text(execution_id, "execution_id"), why)

    @_on_own_loop
    async def repair_executions(self, execution_id: str | None = None) -> types.Repairs:
        """Compare all executions, or one, with Temporal now and make records and live state say what it says."""
        session = self._session()
        done = await session.verification.repair(optional_text(execution_id, "execution_id"))
        return {
            "checked": done.checked,
            "live_state": done.has_live,
            "repaired": [answers.repair(made) for made in done.repairs],
            "left": [answers.drift(found) for found in done.left],
        }

    @_on_own_loop
    async def verify_executions(self) -> types.Verification:
        """Compare the records and live state of all executions with Temporal; nothing is changed."""
        found = await self._session().verification.verify()
        return {
            "checked": found.checked,
            "live_state": found.has_live,
            "drift": [answers.drift(item) for item in found.drift],
        }

    async def watch_execution(self, execution_id: str, from_event: str | None = None) -> AsyncIterator[types.Event]:
        """Yield an execution's events until it is over, from the one behind ``from_event`` (an event's id)."""
        request_id = _new_request_id()
        with _request(request_id):
            thread = self._thread()
            after = optional_text(from_event, "from_event")
            events = thread.content.reads.watch(text(execution_id, "execution_id"), after)
        try:
            while True:
                with _request(request_id):
                    event = await thread.run(anext(events, None))
                if event is None:
                    return
                yield answers.event(event)
        finally:
            if thread.is_open:
                await thread.run(events.aclose())

    # Agents.

    @_on_own_loop
    async def register_agent(
        self,
        name: str,
        description: str | None = None,
        capabilities: Sequence[str] | None = None,
        tools: Sequence[str] | None = None,
        config: Document | None = None,
        agent_id: str | None = None,
    ) -> str:
        """Register an agent, or a new version of it, and return its id: derived from the name unless given."""
        session = self._session()
        agent = await session.agents.register_agent(
            name,
            description,
            cast("list[str] | None", plain(capabilities)),
            cast("list[str] | None", plain(tools)),
            cast("JsonObject | None", plain(config)),
            optional_text(agent_id, "agent_id"),
        )
        return agent.agent_id

    @_on_own_loop
    async def get_agent(self, agent_id: str) -> types.Agent:
        """Return an agent's newest version."""
        session = self._session()
        return answers.agent(await session.agents.get_agent(text(agent_id, "agent_id")))

    @_on_own_loop
    async def list_agents(
        self,
        capabilities: Sequence[str] | None = None,
        status: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> types.AgentPage:
        """Return a page of agents that have all ``capabilities``, newest first."""
        session = self._session()
        wanted = cast("list[str] | None", plain(capabilities))
        items, following = await session.agents.list_agents(wanted, status, limit, cursor)
        return {"items": [answers.agent(item) for item in items], "next_cursor": following}

    # Handoffs.

    @_on_own_loop
    async def create_handoff(
        self,
        source_agent_id: str,
        target_agent_id: str,
        handoff_type: str = "sequential",
        data_mapping: Mapping[str, str] | None = None,
        trigger_conditions: Sequence[str] | None = None,
        *,
        workflow_id: str | None = None,
    ) -> str:
        """Store a handoff rule and return its id. Handoffs are stored and checked, and not acted on yet."""
        session = self._session()
        handoff = await session.handoffs.create_handoff(
            source_agent_id,
            target_agent_id,
            handoff_type,
            cast("dict[str, str] | None", plain(data_mapping)),
            cast("list[str] | None", plain(trigger_conditions)),
            workflow_id,
        )
        return handoff.handoff_id

    @_on_own_loop
    async def get_handoff(self, handoff_id: str) -> types.Handoff:
        """Return a handoff."""
        session = self._session()
        return answers.handoff(await session.handoffs.get_handoff(text(handoff_id, "handoff_id")))

    @_on_own_loop
    async def list_handoffs(
        self,
        source_agent_id: str | None = None,
        target_agent_id: str | None = None,
        workflow_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> types.HandoffPage:
        """Return a page of handoffs, oldest first."""
        session = self._session()
        items, following = await session.handoffs.list_handoffs(
            optional_text(source_agent_id, "source_agent_id"),
            optional_text(target_agent_id, "target_agent_id"),
            optional_text(workflow_id, "workflow_id"),
            limit,
            cursor,
        )
        return {"items": [answers.handoff(item) for item in items], "next_cursor": following}

    # Who uses whom.

    @_on_own_loop
    async def find_workflows(
        self, agent_id: str, limit: int | None = None, cursor: str | None = None
    ) -> types.AgentUsePage:
        """Return a page of the active workflows that use an agent in their newest version, by their ids."""
        session = self._session()
        items, following = await session.graph.find_definitions(text(agent_id, "agent_id"), limit, cursor)
        return {"items": [answers.agent_use(item) for item in items], "next_cursor": following}

    @_on_own_loop
    async def agent_impact(self, agent_id: str) -> types.AgentImpact:
        """Return all workflows and handoffs that would miss an agent."""
        session = self._session()
        return answers.agent_impact(await session.graph.agent_impact(text(agent_id, "agent_id")))

    @_on_own_loop
    async def handoff_paths(self, source: str, target: str, max_hops: int = 6) -> list[list[str]]:
        """Return the paths of agent ids from ``source`` to ``target`` along handoffs, at most 100, shortest first."""
        session = self._session()
        return await session.graph.handoff_paths(text(source, "source"), text(target, "target"), max_hops)

    # What is known.

    @_on_own_loop
    async def get_workflow_metrics(
        self, workflow_id: str, time_range: str | Document | None = None, metrics: Sequence[str] | None = None
    ) -> types.WorkflowMetrics:
        """Return counts, rates and durations of a workflow's executions; no ``metrics`` means all."""
        session = self._session()
        start, end, values = await session.analytics.workflow_metrics(
            text(workflow_id, "workflow_id"), plain(time_range), plain(metrics)
        )
        return {
            "workflow_id": workflow_id,
            "time_range": {"start": format_instant(start), "end": format_instant(end)},
            "metrics": values,
        }

    @_on_own_loop
    async def get_agent_performance(
        self, agent_id: str, time_range: str | Document | None = None, metrics: Sequence[str] | None = None
    ) -> types.AgentPerformance:
        """Return counts, rates and durations of an agent's calls; no ``metrics`` means all."""
        session = self._session()
        start, end, values = await session.analytics.agent_performance(
            text(agent_id, "agent_id"), plain(time_range), plain(metrics)
        )
        return {
            "agent_id": agent_id,
            "time_range": {"start": format_instant(start), "end": format_instant(end)},
            "metrics": values,
        }

    async def get_system_health(self) -> types.SystemHealth:
        """Report how Temporal, the workers and the stores are; never raises."""
        try:
            return await self._health_report()
        except EngineError as error:
            return answers.unusable(error, datetime.now(UTC))

    # Context.

    @_on_own_loop
    async def add_context(
        self,
        text: str,
        scope: str = "workflow",
        workflow_id: str | None = None,
        agent_id: str | None = None,
        execution_id: str | None = None,
        metadata: Document | None = None,
    ) -> str:
        """Keep a text for steps to be reminded of, and return its item id.

        Args:
            text: 1 to 32,000 characters.
            scope: ``workflow``, ``agent`` or ``execution``: whose id must be given. It is found under every id that is.
            workflow_id: of the workflow whose executions may recall it.
            agent_id: of the agent whose calls may recall it.
            execution_id: of the execution that may recall it.
            metadata: JSON to filter by in ``search_context``.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
        """
        return await self._session().context.add_context(
            text,
            scope=scope,
            workflow_id=workflow_id,
            agent_id=agent_id,
            execution_id=execution_id,
            metadata=cast("JsonObject | None", plain(metadata)),
        )

    @_on_own_loop
    async def search_context(
        self,
        query: str,
        scope: str | None = None,
        workflow_id: str | None = None,
        agent_id: str | None = None,
        execution_id: str | None = None,
        top_k: int = 5,
        filter: Document | None = None,  # noqa: A002 - the call's documented name
    ) -> list[types.ContextMatch]:
        """Return the texts nearest to ``query``, best first: of the scope whose id is given, or of all ids given.

        Args:
            query: what to look for.
            scope: ``workflow``, ``agent`` or ``execution``: whose id must be given.
            workflow_id: only texts of this workflow.
            agent_id: only texts of this agent.
            execution_id: only texts of this execution.
            top_k: 1 to 100.
            filter: metadata keys (and ``step_id``) to the values that they must have.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
            ConflictError: the vectors were made by another embedder than the configured one.
        """
        matches = await self._session().context.search_context(
            query,
            scope=scope,
            workflow_id=workflow_id,
            agent_id=agent_id,
            execution_id=execution_id,
            top_k=top_k,
            filter=cast("JsonObject | None", plain(filter)),
        )
        return [answers.context_match(match) for match in matches]

    @_on_own_loop
    async def reindex_context(self) -> types.ReindexedContext:
        """Make all vectors anew with the configured embedder, from the stored texts and the step records."""
        counts = await self._session().context.reindex()
        return {"items": counts.items, "made": counts.made, "left": counts.left}

    # Inside.

    @_on_own_loop
    async def _health_report(self) -> types.SystemHealth:
        return cast("types.SystemHealth", await self._session().health.report())

    def _session(self) -> EngineSession:
        return self._thread().content

    def _thread(self) -> LoopThread[EngineSession]:
        with self._opening:
            if self._opened is None or not self._opened.is_open:
                self._opened = LoopThread(lambda: EngineSession(self._settings, self._invoker))
            return self._opened

    async def _loaded(self, session: EngineSession, value: Value | None) -> JsonValue:
        if value is None:
            return None
        return value.inline if value.ref is None else await session.stores.artifacts.get_artifact(value.ref.artifact_id)
