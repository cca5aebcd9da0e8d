"""What a run tells of itself: spans, metrics and log lines, from real runs, and never at the run's cost."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engine import WorkflowEngine, observability
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

STEPS: list[dict[str, object]] = [
    {"id": "one", "agent_id": "agent-a"},
    {"id": "two", "agent_id": "agent-b", "depends_on": ["one"]},
]
SCRIPTS: dict[str, object] = {"agent-a": {"n": 1}, "agent-b": {"n": 2}}


async def run(engine: WorkflowEngine) -> Any:
    for name in "ab":
        await engine.register_agent(name=name, config={"function": "m:f"})
    workflow_id = await engine.create_workflow(name="traced", steps=STEPS)
    started = await engine.execute_workflow(workflow_id, {"secret": "not for spans"}, {"trace": True})
    return await engine.get_execution_result(started["execution_id"], wait=30)


# Spans.


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch):
    """Where the spans of engines made in the test go; they are all there once the engine is closed."""
    exporter = InMemorySpanExporter()
    opened = observability.open_tracing
    monkeypatch.setattr(observability, "open_tracing", lambda: opened(exporter=exporter))
    return exporter


async def test_a_run_is_one_trace_with_a_span_for_the_run_and_each_step(engine_config, exporter):
    async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker(SCRIPTS)) as engine:
        result = await run(engine)
    spans = exporter.get_finished_spans()
    by_name: dict[str, ReadableSpan] = {span.name: span for span in spans}
    start, whole = by_name["StartWorkflow:traced"], by_name["RunWorkflow:traced"]
    assert start.parent is None
    assert whole.parent is not None
    assert whole.parent.span_id == start.context.span_id
    for agent_id in ("agent-a", "agent-b"):
        called = by_name[f"RunActivity:agent.{agent_id}"]
        scheduled = by_name[f"StartActivity:agent.{agent_id}"]
        assert called.parent is not None
        assert called.parent.span_id == scheduled.context.span_id
        assert called.attributes["temporalWorkflowID"] == result["execution_id"]
    assert {span.context.trace_id for span in spans} == {start.context.trace_id}
    assert all(span.resource.attributes["service.name"] == "baton" for span in spans)
    assert "not for spans" not in "".join(span.to_json() for span in spans)


async def test_spans_of_the_callers_trace_are_its_parents(engine_config, exporter):
    """The call goes over to the engine's own loop, and the caller's span with it."""
    tracing = observability.open_tracing()
    assert tracing is not None
    async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker(SCRIPTS)) as engine:
        with tracing.tracer.start_as_current_span("mine") as mine:
            await run(engine)
    tracing.close()
    [start] = [span for span in exporter.get_finished_spans() if span.name == "StartWorkflow:traced"]
    assert start.parent is not None
    assert start.parent.span_id == mine.get_span_context().span_id


async def test_a_failed_call_is_an_error_in_its_span(engine_config, exporter):
    scripts = {**SCRIPTS, "agent-b": ValueError("no such luck")}
    async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker(scripts)) as engine:
        for name in "ab":
            await engine.register_agent(name=name, config={"function": "m:f"})
        steps = [STEPS[0], {**STEPS[1], "retry_policy": {"max_retries": 0}}]
        await engine.create_workflow(name="traced", steps=steps)
        started = await engine.execute_workflow("traced")
        await engine.get_execution_result(started["execution_id"], wait=30)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["RunActivity:agent.agent-a"].status.is_ok
    assert not spans["RunActivity:agent.agent-b"].status.is_ok


class Collector(BaseHTTPRequestHandler):
    """Takes spans as an OTLP collector does."""

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.append((self.path, request))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Not to standard error."""


async def test_spans_go_to_the_collector_that_the_environment_names(engine_config, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.taken = []  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker(SCRIPTS)) as engine:
            await run(engine)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    taken: list[tuple[str, ExportTraceServiceRequest]] = server.taken  # type: ignore[attr-defined]
    assert {path for path, _ in taken} == {"/v1/traces"}
    resources = [resource for _, request in taken for resource in request.resource_spans]
    names = {span.name for resource in resources for scope in resource.scope_spans for span in scope.spans}
    assert {"StartWorkflow:traced", "RunActivity:agent.agent-b"} <= names
    services = [item.value.string_value for item in resources[0].resource.attributes if item.key == "service.name"]
    assert services == ["mine"]


async def test_a_collector_that_is_not_there_fails_nothing(engine_config, monkeypatch, unused_tcp_port, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused_tcp_port}")
    async with asyncio.timeout(30):
        async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker(SCRIPTS)) as engine:
            assert (await run(engine))["status"] == "completed"


async def test_without_a_collector_nothing_of_opentelemetry_is_loaded(engine_config):
    program = f"""
import asyncio, sys
from engine import WorkflowEngine
from engine.testing import ScriptedAgentInvoker
async def main():
    async with WorkflowEngine({engine_config!r}, invoker=ScriptedAgentInvoker({{"agent-a": {{}}}})) as engine:
        await engine.register_agent(name="a", config={{"function": "m:f"}})
        await engine.create_workflow(name="untraced", steps=[{{"id": "s", "agent_id": "agent-a"}}])
        started = await engine.execute_workflow("untraced")
        print((await engine.get_execution_result(started["execution_id"], wait=30))["status"])
asyncio.run(main())
print(sorted(name for name in sys.modules if name.startswith("opentelemetry.sdk")))
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", program), stdout=asyncio.subprocess.PIPE
    )
    assert (await process.communicate())[0].decode() == "completed\n[]\n"


async def test_the_programs_own_tracer_provider_is_used_and_left_open(engine_config):
    program = f"""
import asyncio, json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
from engine import WorkflowEngine
from engine.testing import ScriptedAgentInvoker
async def main():
    async with WorkflowEngine({engine_config!r}, invoker=ScriptedAgentInvoker({{"agent-a": {{}}}})) as engine:
        await engine.register_agent(name="a", config={{"function": "m:f"}})
        await engine.create_workflow(name="traced", steps=[{{"id": "s", "agent_id": "agent-a"}}])
        with trace.get_tracer("mine").start_as_current_span("mine"):
            started = await engine.execute_workflow("traced")
        await engine.get_execution_result(started["execution_id"], wait=30)
asyncio.run(main())
with trace.get_tracer("mine").start_as_current_span("after the engine"):
    pass
spans = exporter.get_finished_spans()
print(json.dumps(sorted({{span.name for span in spans}})))
print(len({{span.context.trace_id for span in spans}}))
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", program), stdout=asyncio.subprocess.PIPE
    )
    names, traces = (await process.communicate())[0].decode().splitlines()
    assert {"mine", "StartWorkflow:traced", "RunActivity:agent.agent-a", "after the engine"} <= set(json.loads(names))
    assert traces == "2"


# Metrics.


async def scrape(address: str) -> str:
    def read() -> str:
        with urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return answer.read().decode()

    return await asyncio.to_thread(read)


async def test_a_workers_metrics_are_served_where_the_setting_says_also_when_it_is_opened_again(
    engine_config, unused_tcp_port
):
    address = f"127.0.0.1:{unused_tcp_port}"
    config = {**engine_config, "metrics_address": address}
    engine = WorkflowEngine(config, invoker=ScriptedAgentInvoker(SCRIPTS))
    assert (await run(engine))["status"] == "completed"
    text = await scrape(address)
    assert "temporal_workflow_completed" in text
    assert "temporal_activity_execution_latency" in text
    await engine.aclose()
    assert (await run(engine))["status"] == "completed"
    assert "temporal_workflow_completed" in await scrape(address)
    await engine.aclose()


# Log lines.


AGENTS = """
import logging

log = logging.getLogger("baton.agents")

def plain(given, call):
    log.info("plain is at work")
    return {}

async def eager(given, call):
    log.info("eager is at work")
    return {}
"""


async def test_log_lines_name_the_request_the_execution_and_the_step(engine_config, tmp_path, monkeypatch):
    (tmp_path / "logging_agents.py").write_text(AGENTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    stream = io.StringIO()
    handle = observability.open_logging("info", "json", stream)
    config = {**engine_config, "agent_modules": ["logging_agents"]}
    try:
        async with WorkflowEngine(config) as engine:
            for name in ("plain", "eager"):
                await engine.register_agent(name=name, config={"function": f"logging_agents:{name}"})
            steps = [{"id": f"is-{name}", "agent_id": f"agent-{name}"} for name in ("plain", "eager")]
            await engine.create_workflow(name="logged", steps=steps)
            started = await engine.execute_workflow("logged")
            result = await engine.get_execution_result(started["execution_id"], wait=30)
            await engine.create_handoff("agent-nobody", "agent-plain")
        logging.getLogger("engine.outside").info("outside of any call")
    finally:
        handle.close()
    assert result["status"] == "completed"
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    said = {line["message"]: line for line in lines}
    for name in ("plain", "eager"):
        line = said[f"{name} is at work"]
        assert (line["execution_id"], line["step_id"]) == (started["execution_id"], f"is-{name}")
    [about_handoff] = [line for line in lines if "agent-nobody" in line["message"]]
    assert about_handoff["request_id"].startswith("req-")
    outside = said["outside of any call"]
    assert [outside[name] for name in ("request_id", "execution_id", "step_id")] == [None] * 3
