"""What the suites of this folder share: agents that wait for a word, and looks at a run from all its sides."""

from __future__ import annotations

import asyncio
import socket
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Awaitable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError

from engine.adapters.temporal.dev_server_binary import find_binary
from engine.adapters.temporal.payloads import data_converter, unpacked_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

    from temporalio.api.history.v1 import HistoryEvent
    from temporalio.client import WorkflowExecutionDescription

    from engine import WorkflowEngine
    from engine.bootstrap import Stores
    from engine.domain.agent_call import AgentCall

EngineFactory: TypeAlias = "Callable[..., WorkflowEngine]"
"""``engine_factory(scripts, **config)``: an engine of the test, with an embedded worker."""

FAST_RETRIES: dict[str, Any] = {"max_retries": 3, "initial_interval": 0.05, "backoff_factor": 1, "max_interval": 0.05}
PATIENCE_SECONDS = 30.0

_TEMPORAL = {
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.RUNNING: "running",
}


class Gate:
    """An agent that answers only once it is opened, and says how often it was called and cancelled."""

    def __init__(self, answer: dict[str, Any] | None = None) -> None:
        self.attempts: list[int] = []
        self.cancelled = 0
        self.is_open = False
        self._answer: dict[str, Any] = answer or {}

    async def __call__(self, _: object, call: AgentCall) -> object:
        self.attempts.append(call.attempt)
        try:
            while not self.is_open:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._answer


def echo(given: object) -> object:
    """An agent that answers what it was asked."""
    return given


async def until(holds: Callable[[], object | Awaitable[object]], what: str) -> None:
    """Wait for a condition, patiently but not for ever."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = holds()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < deadline, f"not so after {PATIENCE_SECONDS:g} s: {what}"
        await asyncio.sleep(0.02)


async def register(engine: WorkflowEngine, *agent_ids: str) -> None:
    """Register agents whose calls a script answers."""
    for agent_id in agent_ids:
        await engine.register_agent(agent_id, config={"function": "scripts:answer"}, agent_id=agent_id)


async def create(engine: WorkflowEngine, steps: Sequence[Mapping[str, Any]], name: str = "Flow", **fields: Any) -> str:
    """Register the agents of ``steps`` and store the workflow."""
    agents = {step["agent_id"] for step in steps} | {s["fallback"]["agent_id"] for s in steps if "fallback" in s}
    await register(engine, *sorted(agents))
    return await engine.create_workflow(name, steps, **fields)


async def start(
    engine: WorkflowEngine,
    steps: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **fields: Any,
) -> str:
    """Store a workflow, start one execution of it and return its id."""
    workflow_id = await create(engine, steps, **fields)
    return (await engine.execute_workflow(workflow_id, given, options))["execution_id"]


async def finish(engine: WorkflowEngine, execution_id: str) -> dict[str, Any]:
    """Wait for the end and return the result."""
    return cast("dict[str, Any]", await engine.get_execution_result(execution_id, wait=PATIENCE_SECONDS))


async def ended(engine: WorkflowEngine, stores: Stores, client: Client, execution_id: str) -> dict[str, Any]:
    """Wait for the end, require that Temporal, record, live state and result say the same, return the result."""
    described = await closed(client, execution_id)
    result = await finish(engine, execution_id)
    record = await stores.executions.get_execution(execution_id)
    live = await stores.state.get_live_state(execution_id)
    status = await engine.get_execution_status(execution_id)
    assert described.status is not None
    assert record is not None
    assert live is not None
    said = {
        "temporal": _TEMPORAL[described.status],
        "record": record.status.value,
        "live state": live.execution.status.value,
        "status": status["status"],
        "result": result["status"],
    }
    assert len(set(said.values())) == 1, said
    assert record.run_id == described.run_id
    steps = cast("dict[str, Any]", status["steps"])
    differing = {
        step_id: (steps[step_id]["status"], step["status"])
        for step_id, step in result["steps"].items()
        if steps[step_id]["status"] != step["status"]
    }
    assert not differing, f"in status and in result: {differing}"
    return result


async def closed(client: Client, execution_id: str) -> WorkflowExecutionDescription:
    """Wait until Temporal has closed the execution's current run."""
    described: list[WorkflowExecutionDescription] = []

    async def is_closed() -> bool:
        described[:] = [await client.get_workflow_handle(execution_id).describe()]
        return described[0].status is not WorkflowExecutionStatus.RUNNING

    await until(is_closed, "Temporal has closed the run")
    return described[0]


def attributes_of(described: WorkflowExecutionDescription) -> dict[str, object]:
    """The search attributes of a run by name."""
    pairs: Any = described.typed_search_attributes
    return {pair.key.name: pair.value for pair in pairs}


async def events_of(client: Client, execution_id: str, run_id: str | None = None) -> list[HistoryEvent]:
    """The whole event history of a run, the current one unless another is asked for."""
    history = await client.get_workflow_handle(execution_id, run_id=run_id).fetch_history()
    return list(history.events)


async def runs_of(client: Client, execution_id: str) -> list[str]:
    """Run ids of a chain of runs that continued as new, the last first."""
    chain: list[str] = []
    run_id = (await client.get_workflow_handle(execution_id).describe()).run_id
    while run_id:
        chain.append(run_id)
        first = (await events_of(client, execution_id, run_id))[0]
        run_id = first.workflow_execution_started_event_attributes.continued_execution_run_id
    return chain


@dataclass(frozen=True, slots=True)
class Server:
    """A development server of a test's own."""

    address: str
    client: Client


@asynccontextmanager
async def own_server(*flags: str) -> AsyncGenerator[Server]:
    """Start a server in memory with Baton's flags for speed and none of its search attributes, plus ``flags``."""
    binary = find_binary()
    assert binary is not None, "there is no Temporal server; run ./baton doctor --fix"
    port, ui_port = free_ports(2)
    speed = [f"history.{queue}ProcessorMaxPollRPS=10000" for queue in ("transfer", "timer", "visibility")]
    options = ["--ip", "127.0.0.1", "--port", str(port), "--ui-port", str(ui_port), "--log-level", "error"]
    for value in (*speed, "system.enableActivityEagerExecution=true"):
        options += ["--dynamic-config-value", value]
    process = await asyncio.create_subprocess_exec(
        str(binary.path), "server", "start-dev", "--headless", *options, *flags, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        address = f"127.0.0.1:{port}"
        yield Server(address, await connected(address))
    finally:
        process.terminate()
        await process.wait()


async def connected(address: str, namespace: str = "default") -> Client:
    """Connect as an operator's tool would, as soon as the server answers."""
    found: list[Client] = []

    async def answers() -> bool:
        try:
            client = await Client.connect(address, namespace=namespace, data_converter=data_converter(1024))
            await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=namespace))
        except (RuntimeError, RPCError):
            return False
        found.append(client)
        return True

    await until(answers, f"the server at {address} answers")
    return found[0]


async def temporal_cli(client: Client, *arguments: str, namespace: str | None = "default") -> str:
    """Run Temporal's own CLI against the client's server; return what it printed."""
    binary = find_binary()
    assert binary is not None
    where = ["--address", client.service_client.config.target_host]
    if namespace is not None:
        where += ["--namespace", namespace]
    process = await asyncio.create_subprocess_exec(str(binary.path), *arguments, *where, stdout=PIPE, stderr=STDOUT)
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def payloads_in(message: Message) -> Iterator[Payload]:
    """Every payload inside a message of Temporal's."""
    if isinstance(message, Payload):
        yield message
        return
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        for item in [value] if isinstance(value, Message) else _items_of(value):
            if isinstance(item, Message):
                yield from payloads_in(item)


def _items_of(repeated: Any) -> list[object]:
    return list(repeated.values() if hasattr(repeated, "values") else repeated)


def decoded_sizes(events: Sequence[HistoryEvent]) -> list[int]:
    """The size of each payload in a history, as it is when decoded."""
    return [unpacked_bytes(payload) for event in events for payload in payloads_in(event)]
