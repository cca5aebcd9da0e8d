"""Records the replay corpus: ``python tests/replay/record.py`` runs every scenario and writes ``histories/``.

With names of scenarios (``recall``) only these are run, and all other histories stay as they are: what an earlier
release has written is worth more than what this one writes.

The runs are real: the engine, its worker and a development server of their own, on which continue-as-new is suggested
after few events so that its histories stay small. What names the recording machine is taken out before writing.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import getpass
import json
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deciding
from deciding import step, until_running
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from wire_schema import write_pinned

from engine import AgentFailure, FailureReason, WorkflowEngine, bootstrap
from engine.adapters.codec import decompress_zstd
from engine.adapters.temporal import dev_server_supervisor as supervisor
from engine.adapters.temporal.dev_server import find_binary
from engine.adapters.temporal.payloads import data_converter
from engine.errors import StoreError
from engine.testing import ScriptedAgentInvoker
from workflows.versions import INTERPRETER_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from engine.settings import EngineSettings

HISTORIES = Path(__file__).parent / "histories"
CONTINUE_AFTER_EVENTS = 60
_QUEUE = "replay"
_IDENTITY = "recorder"


class Stage:
    """A server, and engines on it with one agent script at a time."""

    def __init__(self, address: str, client: Client, folder: Path, closing: AsyncExitStack) -> None:
        self.address = address
        self.client = client
        self.folder = folder
        self.closing = closing
        self.recorded: list[tuple[str, str, str | None]] = []

    async def engine(self, scripts: Mapping[str, object]) -> WorkflowEngine:
        config = {
            "temporal_address": self.address,
            "worker": "embedded",
            "task_queue": _QUEUE,
            "data_dir": str(self.folder),
            "compression_threshold": 512,
        }
        engine = WorkflowEngine(config, invoker=ScriptedAgentInvoker(scripts))
        self.closing.push_async_callback(engine.aclose)
        for agent_id in scripts:
            await engine.register_agent(agent_id, config={"function": "scripted:agent"}, agent_id=agent_id)
        return engine

    async def run(
        self,
        name: str,
        scripts: Mapping[str, object],
        steps: list[dict[str, object]],
        *,
        meanwhile: Callable[[WorkflowEngine, str], Awaitable[None]] | None = None,
        options: dict[str, object] | None = None,
        expected: str = "completed",
        **fields: object,
    ) -> None:
        engine = await self.engine(scripts)
        workflow_id = await engine.create_workflow(name=f"Replay {name}", steps=steps, **fields)  # pyright: ignore[reportArgumentType] # a definition's fields
        execution = await engine.execute_workflow(workflow_id, {"topic": "replay"}, options)
        if meanwhile is not None:
            await meanwhile(engine, execution["execution_id"])
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
        if result["status"] != expected:
            raise SystemExit(f"{name} ended as {result['status']}, not {expected}: {result['error']}")
        self.recorded.append((name, execution["execution_id"], None))
        await engine.aclose()

    async def add_first_run(self, name: str) -> None:
        """Record the first run of the last execution as well, which continued as new."""
        last, execution_id, _ = self.recorded[-1]
        described = await self.client.get_workflow_handle(execution_id).describe()
        first = described.raw_description.workflow_execution_info.first_run_id
        if first == described.run_id:
            raise SystemExit(f"{name}: the server suggested no continue-as-new")
        self.recorded[-1] = (last, execution_id, described.run_id)
        self.recorded.append((name, execution_id, first))


_MAPPED: dict[str, object] = {"said": "${steps.s1.output.text}"}
"""An output that no call is, so that the workflow has to finalize."""


def chain(length: int) -> list[dict[str, object]]:
    first = step("s1", input_mapping={"topic": "${input.topic}"}, output_mapping={"text": "${output.text}"})
    rest = [
        step(
            f"s{index}",
            input_mapping={"before": f"${{steps.s{index - 1}.output.text}}"},
            output_mapping={"text": "${output.text}"},
        )
        for index in range(2, length + 1)
    ]
    return [first, *rest]


async def forever(_: object) -> None:
    await asyncio.Event().wait()


async def record_chain(stage: Stage) -> None:
    await stage.run("chain", {"worker": {"text": "done"}}, chain(3))


async def record_fan_out(stage: Stage) -> None:
    branches = [step(f"branch{index}", input_mapping={"index": index}) for index in range(4)]
    merge = step("merge", input_mapping={f"b{index}": f"${{steps.branch{index}.output}}" for index in range(4)})
    await stage.run("fan-out", {"worker": lambda given: {"seen": given}}, [*branches, merge])


async def record_retry(stage: Stage) -> None:
    script = [AgentFailure(FailureReason.UNAVAILABLE, "busy"), {"text": "done"}]
    await stage.run("retry", {"worker": script}, chain(1))


async def record_fallback(stage: Stage) -> None:
    scripts = {"broken": AgentFailure(FailureReason.REFUSED, "no"), "worker": {"text": "done"}}
    steps = [step("s1", "broken", fallback={"agent_id": "worker"}), step("s2", depends_on=["s1"])]
    await stage.run("fallback", scripts, steps)


async def record_failure(stage: Stage) -> None:
    scripts = {"broken": AgentFailure(FailureReason.REFUSED, "no"), "slow": forever}
    steps = [step("s1", "broken"), step("beside", "slow"), step("s2", depends_on=["s1"])]
    await stage.run("failure", scripts, steps, expected="failed")


async def record_timeout(stage: Stage) -> None:
    steps = [step("s1", timeout=0.3, retry_policy={"max_retries": 0})]
    await stage.run("timeout", {"worker": forever}, steps, expected="failed")


async def record_deadline(stage: Stage) -> None:
    await stage.run("deadline", {"worker": forever}, chain(2), options={"timeout": 0.5}, expected="failed")


async def record_deadline_kept(stage: Stage) -> None:
    await stage.run("deadline-kept", {"worker": {"text": "done"}}, chain(1), options={"timeout": 300})


async def record_cancel(stage: Stage) -> None:
    async def cancel(engine: WorkflowEngine, execution_id: str) -> None:
        await until_running(engine, execution_id)
        await engine.cancel_execution(execution_id, "enough")

    await stage.run("cancel", {"worker": forever}, chain(2), meanwhile=cancel, expected="cancelled")


async def record_signal_cancel(stage: Stage) -> None:
    async def signal(engine: WorkflowEngine, execution_id: str) -> None:
        await until_running(engine, execution_id)
        await stage.client.get_workflow_handle(execution_id).signal("cancel", "enough")

    await stage.run("signal-cancel", {"worker": forever}, chain(2), meanwhile=signal, expected="cancelled")


async def record_artifact(stage: Stage) -> None:
    reply = {"title": "large", "text": "0123456789abcdef" * 4096}
    steps = [
        step("s1", output_mapping={"title": "${output.title}", "text": "${output.text}"}),
        step("s2", input_mapping={"title": "${steps.s1.output.title}", "text": "${steps.s1.output.text}"}),
    ]
    await stage.run("artifact", {"worker": reply}, steps)


async def record_continue_as_new(stage: Stage) -> None:
    await stage.run("continued", {"worker": {"text": "done"}}, chain(12))
    await stage.add_first_run("continue-as-new")


async def record_started_without_plan(stage: Stage) -> None:
    engine = await stage.engine({"worker": {"text": "done"}})
    workflow_id = await engine.create_workflow(name="Replay started without plan", steps=chain(2))
    # The embedded worker runs from the first execution on.
    await engine.execute_workflow(workflow_id, {"topic": "replay"})
    handle = await stage.client.start_workflow(
        workflow_id, {"topic": "replay"}, id="replay-started-without-plan", task_queue=_QUEUE
    )
    await handle.result()
    stage.recorded.append(("started-without-plan", handle.id, None))
    await engine.aclose()


async def record_invalid_input(stage: Stage) -> None:
    engine = await stage.engine({"worker": {"text": "done"}})
    workflow_id = await engine.create_workflow(name="Replay invalid input", steps=chain(1))
    await engine.execute_workflow(workflow_id, {"topic": "replay"})
    handle = await stage.client.start_workflow(workflow_id, "no object", id="replay-invalid-input", task_queue=_QUEUE)
    await asyncio.gather(handle.result(), return_exceptions=True)
    stage.recorded.append(("invalid-input", handle.id, None))
    await engine.aclose()


async def record_resumed(stage: Stage) -> None:
    called = threading.Event()
    calls = 0

    async def lost_once(_: object) -> dict[str, str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            called.set()
            await asyncio.Event().wait()
        return {"text": "done"}

    async def lose_the_worker(engine: WorkflowEngine, execution_id: str) -> None:
        while not called.is_set():
            await asyncio.sleep(0.05)
        await engine.aclose()
        # Its activity ends as the worker does, and asking for the status starts another one.
        await engine.get_execution_status(execution_id)

    steps = [step("s1", retry_policy={"max_retries": 0}), step("s2", depends_on=["s1"])]
    await stage.run("resumed-after-worker-loss", {"worker": lost_once}, steps, meanwhile=lose_the_worker)


async def record_finalize_remote(stage: Stage) -> None:
    opened = bootstrap.open_stores

    def open_with_failing_end(settings: EngineSettings) -> bootstrap.Stores:
        stores = opened(settings)
        return dataclasses.replace(stores, executions=AwayAtTheEnd(stores.executions))  # pyright: ignore[reportArgumentType] # a port's double

    bootstrap.open_stores = open_with_failing_end
    try:
        await stage.run("finalize-remote", {"worker": {"text": "done"}}, chain(1), output_mapping=_MAPPED)
    finally:
        bootstrap.open_stores = opened


async def record_recall(stage: Stage) -> None:
    recall = {"recall": "what was said of ${input.topic}", "top_k": 2}
    steps = chain(2)
    steps[1] |= {"context": recall, "input_mapping": {"known": "${context}", "first": "${context[0].text}"}}
    await stage.run("recall", {"worker": {"text": "the topic is tea"}}, steps)


async def record_mapped_output(stage: Stage) -> None:
    await stage.run("mapped-output", {"worker": {"text": "done"}}, chain(1), output_mapping=_MAPPED)


class AwayAtTheEnd:
    """An ExecutionStore that takes the end of an execution only from the third try on."""

    def __init__(self, store: object) -> None:
        self._store = store
        self._tries = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def finalize_execution(self, *given: object) -> object:
        self._tries += 1
        if self._tries < 3:
            raise StoreError("The store does not answer; the recording wants it so")
        return await self._store.finalize_execution(*given)  # pyright: ignore[reportAttributeAccessIssue] # a store


SCENARIOS = (
    record_chain,
    record_fan_out,
    record_retry,
    record_fallback,
    record_failure,
    record_timeout,
    record_deadline,
    record_deadline_kept,
    record_cancel,
    record_signal_cancel,
    record_artifact,
    record_continue_as_new,
    record_started_without_plan,
    record_invalid_input,
    record_resumed,
    record_finalize_remote,
    record_mapped_output,
    record_recall,
    *deciding.SCENARIOS,
)


def scrubbed(value: Any, key: str = "") -> Any:
    """Take out what names the machine and the process: identities, sticky queues, stack traces."""
    match value:
        case dict():
            if value.get("kind") == "TASK_QUEUE_KIND_STICKY":
                return {**value, "name": "sticky"}
            return {name: scrubbed(item, name) for name, item in value.items()}
        case list():
            return [scrubbed(item, key) for item in value]
        case str() if key == "identity":
            return _IDENTITY
        case str() if key == "stackTrace":
            return ""
        case _:
            return value


def payload_texts(value: Any) -> list[bytes]:
    """Return every payload's bytes, unpacked."""
    match value:
        case {"metadata": dict(metadata), "data": str(data)} if "encoding" in metadata:
            encoding = base64.b64decode(metadata["encoding"])
            raw = base64.b64decode(data)
            return [Payload.FromString(decompress_zstd(raw)).data if encoding == b"binary/zstd" else raw]
        case dict():
            return [text for item in value.values() for text in payload_texts(item)]
        case list():
            return [text for item in value for text in payload_texts(item)]
        case _:
            return []


def refuse_traces_of_this_machine(name: str, history: Any, forbidden: list[str]) -> None:
    texts = [json.dumps(history).encode(), *payload_texts(history)]
    for word in forbidden:
        if any(word.encode() in text for text in texts):
            raise SystemExit(f"The history {name} names this machine: {word}")


async def write(stage: Stage, *, anew: bool) -> None:
    forbidden = [f"@{socket.gethostname()}", str(Path(__file__).parents[2]), str(stage.folder), f"{getpass.getuser()}@"]
    HISTORIES.mkdir(exist_ok=True)
    for old in HISTORIES.glob(f"v{INTERPRETER_VERSION}-*.json") if anew else ():
        old.unlink()
    for name, execution_id, run_id in stage.recorded:
        fetched = await stage.client.get_workflow_handle(execution_id, run_id=run_id).fetch_history()
        history = scrubbed(fetched.to_json_dict())
        refuse_traces_of_this_machine(name, history, forbidden)
        file = HISTORIES / f"v{INTERPRETER_VERSION}-{name}.json"
        file.write_text(json.dumps(history, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        sys.stderr.write(f"{file.name}: {len(history['events'])} events, {file.stat().st_size} bytes\n")


@asynccontextmanager
async def server(folder: Path) -> AsyncGenerator[tuple[str, Client]]:
    binary = find_binary()
    if binary is None:
        raise SystemExit("There is no Temporal server on this machine; run `./baton doctor --fix`")
    ports = supervisor._free_ports()
    arguments = [
        *supervisor.server_arguments(folder / "temporal.db", ports),
        *("--dynamic-config-value", f"limit.historyCount.suggestContinueAsNew={CONTINUE_AFTER_EVENTS}"),
    ]
    process = subprocess.Popen([str(binary.path), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not supervisor._answers(ports.http):
            if process.poll() is not None:
                raise SystemExit(f"The server ended with {process.returncode}")
            await asyncio.sleep(0.05)
        address = f"127.0.0.1:{ports.frontend}"
        yield address, await Client.connect(address, data_converter=data_converter(512), identity=_IDENTITY)
    finally:
        process.kill()
        process.wait()


async def main() -> None:
    """Run the scenarios, then write their histories and pin the wire's schema."""
    named = [f"record_{name.replace('-', '_')}" for name in sys.argv[1:]]
    chosen = [scenario for scenario in SCENARIOS if scenario.__name__ in named or not named]
    if named and len(chosen) != len(named):
        raise SystemExit(f"There are {', '.join(scenario.__name__.removeprefix('record_') for scenario in SCENARIOS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with server(folder) as (address, client), AsyncExitStack() as closing:
            stage = Stage(address, client, folder / "data", closing)
            for scenario in chosen:
                async with asyncio.timeout(60):
                    await scenario(stage)
            await write(stage, anew=not named)
    for fault in write_pinned():
        sys.stderr.write(f"wire_schema.json: {fault}; only right while no release has written it\n")


if __name__ == "__main__":
    asyncio.run(main())
