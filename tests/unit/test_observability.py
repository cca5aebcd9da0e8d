"""Logging and tracing never make the program wait, and say which execution a line belongs to."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from datetime import timedelta

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio.contrib.opentelemetry import TracingInterceptor

from engine import observability, request_context
from engine.errors import ConfigurationError
from engine.observability import (
    LOGGER_NAMES,
    LoggingHandle,
    mask_passwords,
    open_logging,
    open_tracing,
    prometheus_runtime,
    set_log_level,
)

LOGGER = logging.getLogger("engine.test")
NOW = timedelta(0)


class StuckStream(io.StringIO):
    """A pipe that nobody reads: a write waits until it is let go."""

    def __init__(self):
        super().__init__()
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def write(self, text):
        self.reached.set()
        assert self.let_go.wait(60)
        return super().write(text)


@pytest.fixture
def context():
    tokens = [
        (variable, variable.set(value))
        for variable, value in (
            (request_context.request_id, "req-1"),
            (request_context.execution_id, "exec-1"),
            (request_context.step_id, "step1"),
        )
    ]
    yield
    for variable, token in tokens:
        variable.reset(token)


def logged(form, log):
    stream = io.StringIO()
    handle = open_logging("info", form, stream)
    log()
    handle.close()
    return stream.getvalue()


def test_json_lines_carry_ids_extras_and_traceback(context):
    def log():
        try:
            raise OSError("redis://u:secret@host is down")
        except OSError:
            LOGGER.exception(
                "step %s failed", "a\nb", extra={"attempt": 2, "at": "mine", "tags": ("x", {1: float("nan")})}
            )

    line = logged("json", log)
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert entry["at"].endswith("Z")
    assert entry | {"at": "", "exception": ""} == {
        "at": "",
        "level": "ERROR",
        "logger": "engine.test",
        "message": "step a\nb failed",
        "request_id": "req-1",
        "execution_id": "exec-1",
        "step_id": "step1",
        "attempt": 2,
        "tags": ["x", {"1": "nan"}],
        "exception": "",
    }
    assert entry["exception"].endswith("OSError: redis://u:***@host is down")


def test_ids_are_absent_outside_of_a_call():
    entry = json.loads(logged("json", lambda: LOGGER.info("started")))
    assert [entry[name] for name in ("request_id", "execution_id", "step_id")] == [None] * 3


def test_text_lines(context):
    line = logged("text", lambda: LOGGER.warning("late by %d s", 3, extra={"queue": "baton"}))
    assert line.endswith(
        "Z WARNING  engine.test  late by 3 s  request_id=req-1 execution_id=exec-1 step_id=step1 queue=baton\n"
    )


def test_no_message_can_look_like_a_line_of_its_own():
    text = logged("text", lambda: LOGGER.info("ok\n2026-01-01T00:00:00.000Z ERROR    engine.x  forged\r!"))
    assert [line[:4] == "    " for line in text.splitlines()] == [False, True, True]


def test_a_message_is_what_it_was_when_it_was_logged():
    stream = StuckStream()
    handle = LoggingHandle("INFO", observability._render_json, stream)
    steps = ["a"]
    LOGGER.info("first")
    assert stream.reached.wait(60)
    LOGGER.info("steps %s", steps, extra={"steps": steps})
    steps.append("b")
    stream.let_go.set()
    handle.close()
    entry = json.loads(stream.getvalue().splitlines()[1])
    assert (entry["message"], entry["steps"]) == ("steps ['a']", ["a"])


def test_a_full_queue_drops_counts_and_tells_without_waiting():
    stream = StuckStream()
    handle = LoggingHandle("INFO", observability._render_text, stream, queue_lines=3)
    LOGGER.info("line 0")
    assert stream.reached.wait(60)
    for number in range(1, 11):
        LOGGER.info("line %d", number)  # would wait for ever here if it waited
    assert handle.dropped == 7
    stream.let_go.set()
    handle.close()
    lines = stream.getvalue().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines[:4]] == ["0", "1", "2", "3"]
    assert "7 log lines were dropped" in lines[4]
    assert len(lines) == 5


def test_closing_does_not_wait_for_a_stuck_stream():
    stream = StuckStream()
    handle = LoggingHandle("INFO", observability._render_text, stream, queue_lines=1)
    LOGGER.info("line")
    assert stream.reached.wait(60)
    LOGGER.info("queued")
    handle.close(NOW)
    assert "line" not in stream.getvalue()
    stream.let_go.set()
    handle._writer.join(60)
    assert not handle._writer.is_alive()
    assert "queued" in stream.getvalue()


def test_a_broken_stream_is_counted_and_raises_nothing():
    stream = io.StringIO()
    handle = open_logging("INFO", "text", stream)
    stream.close()
    LOGGER.info("lost")
    handle.close()
    assert handle.dropped == 1


def test_only_batons_loggers_are_touched_and_given_back(caplog):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    stream = io.StringIO()
    handle = open_logging("DEBUG", "text", stream)
    logging.getLogger("theirs").warning("not ours")
    for name in LOGGER_NAMES:
        logging.getLogger(f"{name}.x").debug("from %s", name)
    assert (root.level, list(root.handlers)) == before
    handle.close()
    handle.close()
    lines = stream.getvalue().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == list(LOGGER_NAMES)
    LOGGER.warning("after")
    assert stream.getvalue().count("after") == 0
    assert "after" in caplog.messages
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True)


def test_set_log_level_reaches_batons_loggers_only():
    root_level = logging.getLogger().level
    try:
        set_log_level("error")
        assert not LOGGER.isEnabledFor(logging.WARNING)
        assert logging.getLogger().level == root_level
    finally:
        for name in LOGGER_NAMES:
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize(("level", "form"), [("LOUD", "text"), ("INFO", "xml")])
def test_wrong_settings_are_refused(level, form):
    with pytest.raises(ConfigurationError, match="Use"):
        open_logging(level, form, io.StringIO())


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("bolt://neo4j:p4ss@db:7687 refused", "bolt://neo4j:***@db:7687 refused"),
        ("redis://:p4ss@db", "redis://:***@db"),
        ("mongodb+srv://u:p@ss:w/rd@db/x", "mongodb+srv://u:***@db/x"),
        ("'redis://a:1@x', 'redis://b:2@y'", "'redis://a:***@x', 'redis://b:***@y'"),
        ("redis://a:1@x redis://b:2@y", "redis://a:***@x redis://b:***@y"),
        ("see http://localhost:8233/namespaces and me@example.org", None),
        ("redis://db:6379/0", None),
    ],
)
def test_masking(text, masked):
    assert mask_passwords(text) == (masked or text)


def test_passwords_are_masked_in_messages_and_extras():
    line = logged("json", lambda: LOGGER.info("at %s", "redis://u:p4ss@h", extra={"uris": {"a": ["bolt://u:p4ss@h"]}}))
    assert "p4ss" not in line
    assert json.loads(line)["uris"] == {"a": ["bolt://u:***@h"]}


@pytest.fixture
def no_endpoint(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_configured_means_no_tracing(no_endpoint):
    assert open_tracing() is None


def test_spans_reach_the_exporter_under_the_services_name(no_endpoint):
    exporter = InMemorySpanExporter()
    handle = open_tracing("planner", exporter)
    with handle.tracer.start_as_current_span("outer"), handle.tracer.start_as_current_span("inner"):
        pass
    interceptor = handle.interceptor()
    handle.close()
    inner, outer = exporter.get_finished_spans()
    assert inner.parent.span_id == outer.context.span_id
    assert outer.resource.attributes["service.name"] == "planner"
    assert isinstance(interceptor, TracingInterceptor)
    assert interceptor.tracer is handle.tracer
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def test_the_programs_own_provider_is_used_and_left_open(no_endpoint, monkeypatch):
    exporter = InMemorySpanExporter()
    theirs = TracerProvider(shutdown_on_exit=False)
    theirs.add_span_processor(trace_processor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: theirs)
    handle = open_tracing()
    handle.close()
    with handle.tracer.start_as_current_span("after"):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["after"]


def trace_processor(exporter):
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    return SimpleSpanProcessor(exporter)


class StuckExporter(SpanExporter):
    """A collector that takes the connection and never answers."""

    def __init__(self):
        self.attempts = 0
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def export(self, spans):
        self.attempts += 1
        self.reached.set()
        assert self.let_go.wait(60)
        return SpanExportResult.FAILURE


def test_closing_does_not_wait_for_a_collector_that_never_answers(no_endpoint):
    exporter = StuckExporter()
    handle = open_tracing(exporter=exporter)
    handle.tracer.start_span("lost").end()
    handle.close()
    assert exporter.attempts == 1
    assert not exporter.let_go.is_set()
    exporter.let_go.set()


DEAD_COLLECTOR = """
import logging
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("opentelemetry").addHandler(Keep())
from engine.observability import open_tracing
handle = open_tracing()
handle.tracer.start_span("lost").end()
handle.close()
print(any("Failed to export" in line or "while exporting" in line for line in lines))
"""


def test_a_program_with_a_dead_collector_ends():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        ended = subprocess.run(
            [sys.executable, "-c", DEAD_COLLECTOR],
            env=environment,
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        )
    assert ended.stdout == "True\n"


def test_opening_logging_loads_nothing_heavy():
    code = (
        "import sys, engine.observability as o; h = o.open_logging('INFO'); h.close(); assert o.open_tracing() is None;"
        "print(sorted({'temporalio', 'opentelemetry', 'pydantic'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, timeout=60, capture_output=True, text=True
    )
    assert ended.stdout == "[]\n"


def test_metrics_are_served():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    runtime = prometheus_runtime(address)
    runtime.metric_meter.create_counter("baton_test").add(3)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert any(line.startswith("baton_test") and line.endswith(" 3") for line in text.splitlines())
    with pytest.raises(ConfigurationError, match=r"metrics_address.*in use"):
        prometheus_runtime(address)


@pytest.mark.parametrize("address", ["9464", "localhost:9464", "127.0.0.1:99999"])
def test_a_wrong_metrics_address_is_refused(address):
    with pytest.raises(ConfigurationError, match="metrics_address"):
        prometheus_runtime(address)
