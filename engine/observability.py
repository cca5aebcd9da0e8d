"""What a program says about itself never makes its work wait.

Log lines go through one bounded queue to a thread that writes them; when nobody takes them away, lines are
dropped and counted rather than the event loop stopped. Spans leave in batches from a thread of their own,
and a collector that does not answer costs a program at most a second at its end.

Nothing here is done by importing Baton: the worker program and the CLI open logging, and a program that
uses the library keeps its own. Heavy libraries are loaded only when they are asked for.
"""

from __future__ import annotations

import copy
import json
import logging
import logging.handlers
import math
import os
import queue
import re
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TextIO, cast

from engine import request_context
from engine.errors import ConfigurationError
from engine.masking import mask_json, mask_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer
    from temporalio.contrib.opentelemetry import TracingInterceptor
    from temporalio.runtime import Runtime

LOGGER_NAMES = ("activities", "baton", "engine", "workflows")
"""The loggers that are Baton's; all others belong to the program around it."""

_QUEUE_LINES = 10_000
_CLOSE_TIMEOUT = timedelta(seconds=2)
_EXPORT_SECONDS = 1.0
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_IDS = ("request_id", "execution_id", "step_id")
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Starts at a fixed text and is bounded, so that no line takes more than linear time.
_URI_PASSWORD = re.compile(r"://([^\s:/@\"'<>]{0,256}):[^\s\"'<>]{1,256}@")


def set_log_level(level: str) -> None:
    """Set the level of Baton's loggers and of no other.

    Args:
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case.

    Raises:
        ConfigurationError: it is none of these.
    """
    name = _level_name(level)
    for logger_name in LOGGER_NAMES:
        logging.getLogger(logger_name).setLevel(name)


def mask_passwords(text: str) -> str:
    """Return ``text`` with the passwords of all URIs in it replaced: ``redis://user:***@host``."""
    return _URI_PASSWORD.sub(r"://\1:***@", text)


def _clean(text: str) -> str:
    # Before a text is rendered, because rendering breaks up what has several lines.
    return mask_passwords(mask_text(text))


def open_logging(
    level: str,
    format: Literal["text", "json"] = "text",  # noqa: A002 - the word users write: log_format
    stream: TextIO | None = None,
) -> LoggingHandle:
    """Write the lines of Baton's loggers to ``stream`` from a thread of its own.

    Until the handle is closed these loggers do not pass lines on to the root logger, so that none is
    written twice. A program calls this once.

    Args:
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case.
        format: ``text`` for people, or ``json``: one object a line with ``at``, ``level``, ``logger``,
            ``message``, ``request_id``, ``execution_id``, ``step_id`` and what was given as ``extra``.
        stream: where to; standard error when absent.

    Raises:
        ConfigurationError: no such level or format.
    """
    if format not in {"text", "json"}:
        raise ConfigurationError(f"Unknown log_format {format!r}. Use text or json.", {"key": "log_format"})
    return LoggingHandle(_level_name(level), _render_json if format == "json" else _render_text, stream)


class LoggingHandle:
    """Open logging; made by ``open_logging``."""

    def __init__(
        self,
        level: str,
        render: Callable[[logging.LogRecord], str],
        stream: TextIO | None = None,
        *,
        queue_lines: int = _QUEUE_LINES,
    ) -> None:
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(queue_lines)
        self._handler = _BoundedQueueHandler(self._lines)
        self._stream = stream or sys.stderr
        self._render = render
        self._reported = 0
        self._unwritten = 0
        self._closed = False
        self._writer = threading.Thread(target=self._write_lines, name="baton-logging", daemon=True)
        self._before = [(logger.name, logger.level, logger.propagate) for logger in _loggers()]
        for logger in _loggers():
            logger.setLevel(level)
            logger.propagate = False
            logger.addHandler(self._handler)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """How many lines were not written, because the queue was full or the stream broken."""
        return self._handler.dropped + self._unwritten

    def close(self, timeout: timedelta = _CLOSE_TIMEOUT) -> None:
        """Give the loggers back as they were and write what is queued, for at most ``timeout``.

        A second call does nothing.
        """
        if self._closed:
            return
        for name, level, propagate in self._before:
            logger = logging.getLogger(name)
            logger.removeHandler(self._handler)
            logger.setLevel(level)
            logger.propagate = propagate
        self._handler.close()
        self._closed = True
        deadline = time.monotonic() + timeout.total_seconds()
        try:
            self._lines.put(None, timeout=timeout.total_seconds())
        except queue.Full:
            return  # nobody takes lines away; the writer ends once somebody does, or with the process
        self._writer.join(max(0.0, deadline - time.monotonic()))

    def _write_lines(self) -> None:
        while (record := self._lines.get()) is not None:
            self._write(self._render(record))
            if self._lines.empty():
                self._report_dropped()
                if self._closed:
                    return
        self._report_dropped()

    def _report_dropped(self) -> None:
        missing = self.dropped - self._reported
        if missing > 0:
            self._reported += missing
            notice = logging.LogRecord(
                "engine.observability",
                logging.WARNING,
                __file__,
                0,
                "%d log lines were dropped: the stream did not take them in time",
                (missing,),
                None,
            )
            self._write(self._render(_with_ids(notice)))

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A closed or broken stream is the one thing that can't be reported by writing to it: counted.
            self._unwritten += 1
            self._reported += 1


class _BoundedQueueHandler(logging.handlers.QueueHandler):
    """Puts records into the queue without ever waiting for room in it."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__(lines)
        self._lines = lines
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The message and extras are read here, since they may change; tracebacks and JSON are the writer's.
        prepared = _with_ids(copy.copy(record))
        prepared.msg, prepared.args = record.getMessage(), None
        prepared.__dict__.update(_extras(record))
        return prepared

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1


@dataclass(frozen=True)
class TracingHandle:
    """Where spans go; made by ``open_tracing``."""

    tracer: Tracer
    shut_down: Callable[[], None] | None

    def interceptor(self) -> TracingInterceptor:
        """Return the interceptor for ``Client.connect``; workers made with that client use it too.

        An execution started by a client has a span for its run and for each step. One that was started
        from Temporal alone has no parent, and then a span for each step only: a run's own span could not
        be tied to anything after a replay.
        """
        from temporalio.contrib.opentelemetry import TracingInterceptor

        return TracingInterceptor(self.tracer)

    def close(self) -> None:
        """Send the spans that are left, for at most a second. Leaves a provider of the user's open."""
        if self.shut_down is not None:
            # The SDK waits up to 30 s for a collector; a daemon thread is what may be left behind.
            sender = threading.Thread(target=self.shut_down, name="baton-tracing-close", daemon=True)
            sender.start()
            sender.join(_EXPORT_SECONDS)


def open_tracing(service_name: str = "baton", exporter: SpanExporter | None = None) -> TracingHandle | None:
    """Return where spans go, or None when nobody asked for any.

    The program's own global tracer provider is used when it has set one. Else a provider of Baton's own is
    made, never a global one, that sends OTLP over HTTP to where the standard variables
    ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_ENDPOINT`` say. With neither there are no
    spans, also for an execution that asks for ``trace``: that is no error.

    Args:
        service_name: ``service.name`` of the spans, unless ``OTEL_SERVICE_NAME`` says another.
        exporter: send spans there and nowhere else.
    """
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if exporter is None:
        if theirs := _tracer_of_program():
            return TracingHandle(theirs, None)
        if not endpoint:
            return None
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": service_name}).merge(OTELResourceDetector().detect())
    # Its own hook at exit would wait for a dead collector: closing the handle is the caller's.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or _otlp_exporter()))
    return TracingHandle(provider.get_tracer("baton"), provider.shutdown)


def prometheus_runtime(metrics_address: str) -> Runtime:
    """Return a Temporal runtime that serves its metrics at ``http://<metrics_address>/metrics``.

    Args:
        metrics_address: an IP address and a port, ``127.0.0.1:9464``.

    Raises:
        ConfigurationError: it is no such address, or it is taken.
    """
    from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

    try:
        return Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=metrics_address)))
    except ValueError as error:
        raise ConfigurationError(
            f"metrics_address {metrics_address!r} can't be used: {error}. Give a free IP address and port, "
            "such as 127.0.0.1:9464.",
            {"key": "metrics_address", "value": metrics_address},
        ) from error


def _tracer_of_program() -> Tracer | None:
    # Who has set a provider has loaded the API; loading it to find nothing would cost every start.
    if "opentelemetry.trace" not in sys.modules and "OTEL_PYTHON_TRACER_PROVIDER" not in os.environ:
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else provider.get_tracer("baton")


def _otlp_exporter() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(timeout=_EXPORT_SECONDS)


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(name) for name in LOGGER_NAMES]


def _level_name(level: str) -> str:
    if level.upper() not in _LEVELS:
        raise ConfigurationError(f"Unknown log_level {level!r}. Use one of {', '.join(_LEVELS)}.", {"key": "log_level"})
    return level.upper()


def _with_ids(record: logging.LogRecord) -> logging.LogRecord:
    for name in _IDS:
        if name not in record.__dict__:
            record.__dict__[name] = getattr(request_context, name).get()
    return record


def _extras(record: logging.LogRecord) -> dict[str, object]:
    given = cast("dict[str, object]", record.__dict__)
    return {name: _masked(value) for name, value in given.items() if name not in _STANDARD_FIELDS and name not in _IDS}


def _masked(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return mask_json(value)
    if isinstance(value, float):
        return mask_json(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_clean(str(key)): _masked(item) for key, item in cast("dict[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in cast("list[object]", value)]
    return _clean(str(value))


def _at(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(record: logging.LogRecord) -> str | None:
    if record.exc_info and record.exc_info[0] is not None:
        return _clean("".join(traceback.format_exception(*record.exc_info)).rstrip())
    return None


def _render_json(record: logging.LogRecord) -> str:
    line: dict[str, object] = {
        "at": _at(record),
        "level": record.levelname,
        "logger": record.name,
        "message": _clean(record.getMessage()),
        **{name: _masked(record.__dict__[name]) for name in _IDS},
    }
    if exception := _traceback(record):
        line["exception"] = exception
    return json.dumps(_extras(record) | line, ensure_ascii=False)


def _render_text(record: logging.LogRecord) -> str:
    fields = {name: _masked(record.__dict__[name]) for name in _IDS if record.__dict__[name]} | _extras(record)
    text = _clean(record.getMessage())
    if fields:
        text += "  " + " ".join(f"{name}={value}" for name, value in fields.items())
    if exception := _traceback(record):
        text += "\n" + exception
    # Lines after the first are indented, so that no message can look like a line of its own.
    return f"{_at(record)} {record.levelname:<8} {record.name}  " + "\n    ".join(text.splitlines())
