"""S11: a secret that agents were given appears in nothing that Baton says or stores, whatever they do with it.

One run with agents that repeat their secrets in every way they can; then everything that came of it is searched. A
control marker, which is no secret and goes the same ways, shows that each search would have found one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import gzip
import io
import json
import logging
import os
import secrets
import sqlite3
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import Message
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio.api.common.v1 import Payload
from temporalio.client import Client

from engine import WorkflowEngine, observability
from engine.adapters.codec import Codec
from engine.adapters.temporal.payloads import ZstdPayloadCodec, data_converter
from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

CORES = {name: f"{name.lower()}core{secrets.token_hex(8)}" for name in ("VARIABLE", "NAMED", "MOUNTED", "KEY")}
VALUES = {name: f"sk/{core}+\"\\ '&<{name}>" for name, core in CORES.items() if name != "KEY"}
VALUES["KEY"] = f"sk-proj-{CORES['KEY']}"  # of an API, with no space
CONTROL = f"control{secrets.token_hex(8)}"

HEADERS = {
    "Authorization": "Bearer ${secret.VARIABLE}",
    "X-Named": "${secret.NAMED}",
    "X-Mounted": "key ${secret.MOUNTED}",
}
AGENTS = """
import logging
import os
import time

log = logging.getLogger("baton.agents")


def secret():
    return os.environ["BATON_SECRET_VARIABLE"]


def tell(given, call):
    call.heartbeat({"at": [secret(), given["control"]]})
    call.emit(f"{given['control']} working with {secret()}")
    log.warning("%s has %s", given["control"], secret(), extra={"key": [secret()], "n": {secret(): 1}})
    while not os.path.exists(given["until"]):
        time.sleep(0.01)
    return {"told": secret(), secret(): [repr(secret()), given["control"]]}


def large(given, call):
    return {"items": [f"{number} {given['control']} {secret()}" for number in range(3000)]}


def fail(given, call):
    try:
        raise ValueError(f"{given['control']} inner {secret()}")
    except ValueError as error:
        raise RuntimeError(f"{given['control']} outer {secret()}") from error


def fail_long(given, call):
    raise RuntimeError(given["control"] + "x" * (1990 - len(given["control"]) - 10) + secret())
"""
MODEL_ANSWERS = ("echo", "unauthorized", "failing", "broken")
HTTP_ANSWERS = ("echo", "text", "problem", "unauthorized", "broken", "garbage", "no-json", "gzip", "redirect", "large")


def forms_of(core: str, value: str) -> list[str]:
    """What may not appear: the part that no encoder changes, and the forms that hide it."""
    data = value.encode()
    return [
        core,
        core[: len(core) - 4],
        base64.b64encode(data).decode().rstrip("="),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        data.hex(),
    ]


FORBIDDEN = [form for name, core in CORES.items() for form in forms_of(core, VALUES[name])]


def found_in(text: str) -> list[str]:
    return [form for form in FORBIDDEN if form in text]


class Echo(BaseHTTPRequestHandler):
    """Repeats what it was sent in the way that its path names."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/chat/completions"):
            self.server.keys.append(self.headers["Authorization"])  # type: ignore[attr-defined]
            self.answer_as_model(self.path.split("/")[1], f"{CONTROL} seen {self.headers['Authorization']}")
            return
        sent = [self.headers[name] for name in HEADERS]
        self.server.came.append(sent)  # type: ignore[attr-defined]
        text = f"{given['control']} " + " ".join(sent)
        match self.path.strip("/"):
            case "echo":
                coded = [base64.b64encode(item.partition(" ")[2].encode()).decode() for item in sent]
                coded += [urllib.parse.quote(item) for item in sent]
                answer = {"control": given["control"], "sent": sent, "coded": coded, text: {"deep": [[text]]}}
                self.answer(200, json.dumps(answer).encode())
            case "text":
                self.answer(500, text.encode(), Content_Type="text/plain")
            case "problem":
                body = json.dumps({"title": given["control"] + "x" * 100, "seen": sent}).encode()
                self.answer(400, body, Content_Type="application/problem+json", X_Seen=sent[0])
            case "unauthorized":
                self.answer(401, text.encode(), Content_Type="text/plain", WWW_Authenticate=f"Bearer seen={sent[0]}")
            case "broken":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + json.dumps(sent).encode())
                self.close_connection = True
            case "garbage":
                self.wfile.write(f"{text}\r\n\r\n".encode())
                self.close_connection = True
            case "no-json":
                self.answer(200, text.encode())
            case "gzip":
                self.answer(200, gzip.compress(b"x")[:4] + text.encode(), Content_Encoding="gzip")
            case "redirect":
                self.answer(302, b"", Location=f"/{urllib.parse.quote(text)}")
            case _:
                self.answer(200, json.dumps({"items": [text] * 3000}).encode())

    def answer_as_model(self, kind: str, text: str) -> None:
        if kind in ("unauthorized", "failing"):
            error = {"error": {"message": text, "type": text, "code": text, "param": None}}
            status = 401 if kind == "unauthorized" else 500
            self.answer(status, json.dumps(error).encode(), Content_Type="application/json", X_Request_Id=text)
            return
        head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
        delta = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        used = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        chunks = [{**head, "choices": [delta]}]
        if kind == "echo":
            chunks += [{**head, "choices": [last]}, {**head, "choices": [], "usage": used}]
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        events += "data: [DONE]\n\n" if kind == "echo" else f"data: {{{text}\n\n"
        self.answer(200, events.encode(), Content_Type="text/event-stream")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Not to standard error."""


@contextlib.contextmanager
def echo_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    server.came, server.keys = [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Outputs:
    """Everything that came out, by where."""

    texts: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    sent: list[list[str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def add(self, name: str, *values: object) -> None:
        text = "\n".join(value if isinstance(value, str) else json.dumps(value) + repr(value) for value in values)
        self.texts[name] = self.texts.get(name, "") + text


@pytest.fixture(scope="module")
async def outputs(dev_server, tmp_path_factory) -> AsyncIterator[Outputs]:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "planted_agents.py").write_text(AGENTS)
    (folder / "mounted").mkdir()
    (folder / "mounted" / "MOUNTED").write_text(VALUES["MOUNTED"] + "\n")
    (folder / "named").write_text(VALUES["NAMED"])
    exporter = InMemorySpanExporter()
    opened = observability.open_tracing
    streams = {"text": io.StringIO(), "json": io.StringIO()}
    others = io.StringIO()
    other_lines = logging.StreamHandler(others)
    root = logging.getLogger()
    level = root.level
    with pytest.MonkeyPatch.context() as patch, echo_server() as server:
        patch.setenv("BATON_SECRET_VARIABLE", VALUES["VARIABLE"])
        patch.setenv("BATON_SECRET_KEY", VALUES["KEY"])
        patch.setenv("BATON_SECRET_NAMED_FILE", str(folder / "named"))
        patch.syspath_prepend(folder)
        patch.setattr(observability, "open_tracing", lambda: opened(exporter=exporter))
        handles = [observability.open_logging("debug", form, stream) for form, stream in streams.items()]
        # A program's own handlers get what the libraries say.
        root.addHandler(other_lines)
        root.setLevel(logging.DEBUG)
        config = {
            "temporal_address": dev_server.address,
            "worker": "embedded",
            "task_queue": f"secrets-{os.getpid()}",
            "data_dir": str(folder / "data"),
            "agent_modules": ["planted_agents"],
            "allowed_hosts": [f"127.0.0.1:{server.server_port}"],
            "secret_hosts": [f"VARIABLE=127.0.0.1:{server.server_port}"],
            "secrets_dir": str(folder / "mounted"),
        }
        told = Outputs()
        try:
            async with WorkflowEngine(config) as engine:
                client = await Client.connect(dev_server.address, data_converter=data_converter(1024))
                await Run(engine, client, told, f"http://127.0.0.1:{server.server_port}", folder / "until").all()
        finally:
            root.removeHandler(other_lines)
            root.setLevel(level)
            for handle in reversed(handles):
                handle.close()
        told.sent, told.keys = server.came, server.keys  # type: ignore[attr-defined]
    for form, stream in streams.items():
        told.add(f"log lines as {form}", stream.getvalue())
    told.add("log lines of libraries", others.getvalue())
    told.add("spans", *(span.to_json() for span in exporter.get_finished_spans()))
    told.add("stored", *stored(folder / "data"))
    yield told


@dataclass
class Run:
    """Lets the agents loose and collects what every call says."""

    engine: WorkflowEngine
    client: Client
    told: Outputs
    url: str
    until: Path

    async def all(self) -> None:
        for name in HTTP_ANSWERS:
            config = {"kind": "http", "url": f"{self.url}/{name}", "headers": HEADERS}
            await self.engine.register_agent(name=f"http {name}", config=config)
        for name in MODEL_ANSWERS:
            config = {"model": "m-1", "base_url": f"{self.url}/{name}/v1", "api_key": "${secret.KEY}"}
            await self.engine.register_agent(name=f"model {name}", config=config)
        for name in ("tell", "large", "fail", "fail_long"):
            config = {"function": f"planted_agents:{name}"}
            await self.engine.register_agent(name=f"python {name}", config=config)
        # The first resolves the secrets; what a worker has never read it can't know.
        await self.run("http-echo")
        for name in HTTP_ANSWERS[1:]:
            await self.run(f"http-{name}")
        for name in MODEL_ANSWERS:
            await self.run(f"model-{name}")
        for name in ("large", "fail", "fail-long"):
            await self.run(f"python-{name}")
        await self.run("python-tell", self.look_at_the_open_call)
        await self.ask()
        for kind in ("executions", "agents", "workflows"):
            self.told.add("lists", await getattr(self.engine, f"list_{kind}")(limit=100))
        gc.collect()
        ours = (item for item in gc.get_objects() if is_ours(item))
        self.told.add("repr", CONTROL, repr(self.engine), *(repr(item) for item in ours))

    async def run(self, name: str, meanwhile: Any = None) -> None:
        step = {
            "id": "s",
            "agent_id": f"agent-{name}",
            "input_mapping": {"control": "${input.control}", "until": "${input.until}"},
            "retry_policy": {"max_retries": 1, "initial_interval": 0.1},
            "timeout": 30,
        }
        workflow_id = await self.engine.create_workflow(name=name, steps=[step])
        given = {"control": CONTROL, "until": str(self.until)}
        started = await self.engine.execute_workflow(workflow_id, given, {"trace": True})
        execution_id = started["execution_id"]
        watching = asyncio.create_task(self.watch(execution_id))
        if meanwhile is not None:
            await meanwhile(execution_id)
        result = await self.engine.get_execution_result(execution_id, wait=60)
        await watching
        self.told.results[name] = result
        self.told.add("answers", result, await self.engine.get_execution_status(execution_id))
        history = await self.client.get_workflow_handle(execution_id).fetch_history()
        for event in history.events:
            self.told.add("history", *[text async for text in texts_of(event)])
        described = await self.client.get_workflow_handle(execution_id).describe()
        self.told.add("history", *[text async for text in texts_of(described.raw_description)])

    async def watch(self, execution_id: str) -> None:
        async for event in self.engine.watch_execution(execution_id):
            self.told.add("events", event)

    async def look_at_the_open_call(self, execution_id: str) -> None:
        handle = self.client.get_workflow_handle(execution_id)
        async with asyncio.timeout(30):
            while True:
                described = (await handle.describe()).raw_description
                if any(pending.HasField("heartbeat_details") for pending in described.pending_activities):
                    break
                await asyncio.sleep(0.05)
        self.told.add("heartbeats", *[text async for text in texts_of(described)])
        self.told.add("answers", await self.engine.get_execution_status(execution_id))
        self.until.write_text("")

    async def ask(self) -> None:
        engine = self.engine
        self.told.add("answers", await engine.get_system_health(), await engine.verify_executions())
        self.told.add("answers", await engine.get_agent("agent-http-echo"))
        self.told.add("answers", await engine.get_agent_performance("agent-http-echo"))
        self.told.add("answers", await engine.get_workflow_metrics("http-echo"))


def is_ours(item: object) -> bool:
    module = getattr(type(item), "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in ("engine", "activities", "workflows")


async def texts_of(message: Message) -> AsyncIterator[str]:
    """All that a message of Temporal holds, with its payloads decoded."""
    yield str(message)
    for payload in payloads_of(message):
        [decoded] = await ZstdPayloadCodec().decode([payload])
        yield decoded.data.decode("utf-8", "replace")


def payloads_of(message: Message) -> Iterator[Payload]:
    if isinstance(message, Payload):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        is_map = descriptor.message_type.GetOptions().map_entry
        is_one = isinstance(value, Message)
        for item in [value] if is_one else value.values() if is_map else value:
            if isinstance(item, Message):
                yield from payloads_of(item)


def stored(folder: Path) -> Iterable[str]:
    """All bytes of a data folder's files, and every packed value in their tables."""
    codec = Codec()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        yield path.read_bytes().decode("latin-1")
        if path.suffix != ".db":
            continue
        with contextlib.closing(sqlite3.connect(path)) as database:
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        if isinstance(value, bytes):
                            with contextlib.suppress(StoreError):
                                yield json.dumps(codec.decode(value))
                        else:
                            yield str(value)


PLACES = [
    "answers",
    "events",
    "heartbeats",
    "history",
    "lists",
    "log lines as json",
    "log lines as text",
    "log lines of libraries",
    "repr",
    "stored",
]


@pytest.mark.parametrize("place", [*PLACES, "spans"])
async def test_no_secret_appears_in(outputs, place):
    assert found_in(outputs.texts[place]) == []


@pytest.mark.parametrize("place", [item for item in PLACES if item != "lists"])
async def test_a_text_that_is_no_secret_is_found_in(outputs, place):
    assert CONTROL in outputs.texts[place]


async def test_the_search_finds_every_form():
    for name, value in VALUES.items():
        core = CORES[name]
        for text in (value, json.dumps(value), repr(value), urllib.parse.quote(value)):
            assert core in found_in(f"before {text} after")
        assert found_in(value[: value.index(core) + len(core) - 4] + "…")
        assert found_in(base64.b64encode(value.encode()).decode())


async def test_the_agents_got_their_secrets(outputs):
    whole = [f"Bearer {VALUES['VARIABLE']}", VALUES["NAMED"], f"key {VALUES['MOUNTED']}"]
    # Of those that fail, what may be retried came twice.
    assert len(outputs.sent) >= len(HTTP_ANSWERS)
    assert all(sent == whole for sent in outputs.sent)
    assert len(outputs.keys) >= len(MODEL_ANSWERS)
    assert set(outputs.keys) == {f"Bearer {VALUES['KEY']}"}


async def test_answers_and_failures_show_the_mask_in_place_of_a_secret(outputs):
    output = outputs.results["http-echo"]["output"]
    assert output["sent"] == ["Bearer ***", "***", "key ***"]
    assert output[f"{CONTROL} Bearer *** *** key ***"] == {"deep": [[f"{CONTROL} Bearer *** *** key ***"]]}
    assert outputs.results["python-tell"]["output"] == {"told": "***", "***": ["'***'", CONTROL]}
    assert outputs.results["python-large"]["output"]["items"][-1] == f"2999 {CONTROL} ***"
    assert outputs.results["http-large"]["output"]["items"] == [f"{CONTROL} Bearer *** *** key ***"] * 3000
    assert outputs.results["model-echo"]["output"] == {"text": f"{CONTROL} seen Bearer ***"}
    for name, told in {
        "model-unauthorized": "***",
        "model-failing": "***",
        "http-text": f"500: {CONTROL} Bearer *** *** key ***",
        "http-unauthorized": f"401: {CONTROL} Bearer *** *** key ***",
        "http-problem": "***",
        "http-garbage": "***",
        "python-fail": f"RuntimeError: {CONTROL} outer ***",
        "python-fail-long": "***…",
    }.items():
        assert outputs.results[name]["status"] == "failed"
        assert told in outputs.results[name]["error"]["message"], name
    for name in ("model-broken", "http-broken", "http-no-json", "http-gzip", "http-redirect"):
        assert outputs.results[name]["status"] == "failed"


async def test_lines_of_users_agents_show_the_mask(outputs):
    lines = [json.loads(line) for line in outputs.texts["log lines as json"].splitlines()]
    [told] = [line for line in lines if line["message"] == f"{CONTROL} has ***"]
    assert (told["key"], told["n"]) == (["***"], {"***": 1})
    failed = [line["message"] for line in lines if "the agent's function" in line["message"]]
    assert len(failed) == 4
    assert all("***" in message for message in failed)
    assert f"{CONTROL} has ***" in outputs.texts["log lines as text"]
