"""Tools of MCP servers, against real servers: programs over their standard streams, and one over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from engine.adapters.agents.tools.mcp_servers import McpServerPlace
from engine.adapters.agents.tools.tool_source import AgentTools
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.masking import remember_secret
from engine.ports.tools import ToolFailure

PROGRAMS = Path(__file__).parent / "mcp_programs"
SECRET = "hush-hush-4711"


@dataclass
class BoundedCall:
    deadline: datetime
    execution_id: str = "flow-1"
    step_id: str = "step1"
    attempt: int = 1
    idempotency_key: str = "flow-1/run/step1/1"
    context: list = field(default_factory=list)
    cancelled: bool = False

    def heartbeat(self, progress=None): ...
    def emit(self, text): ...


def within(seconds):
    return BoundedCall(datetime.now(UTC) + timedelta(seconds=seconds))


class OneSecret:
    """A source with one secret, which remembers where it was sent."""

    def __init__(self):
        self.hosts = []

    def fill_in(self, template, host):
        if "${secret.MISSING}" in template:
            raise AgentFailure(FailureReason.INVALID_REQUEST, "The secret MISSING is not set")
        if "${secret.KEY}" in template:
            self.hosts.append(host)
            remember_secret(SECRET)
        return template.replace("${secret.KEY}", SECRET)


def program(name, *arguments, **env):
    return McpServerPlace(command=[sys.executable, str(PROGRAMS / f"{name}.py"), *arguments], env=env)


@pytest.fixture
async def tools_of():
    """Make a source of tools with the given servers."""
    made = []

    def make(*, allowed_hosts=(), secrets=None, agent_modules=(), **servers):
        made.append(AgentTools(agent_modules, servers, secrets or OneSecret(), list(allowed_hosts)))
        return made[-1]

    yield make
    for source in made:
        await source.aclose()


async def resolved(source, *names, seconds=30):
    found = await source.resolve_tools(names, within(seconds))
    assert found.missing == {}
    return {tool.name: tool for tool in found.tools}


async def failure_of(source, *names, seconds=30):
    with pytest.raises(AgentFailure) as caught:
        await source.resolve_tools(names, within(seconds))
    return caught.value


async def told(tool, limit=30, **arguments):
    with pytest.raises(ToolFailure) as caught:
        await tool.invoke(arguments, within(limit))
    return str(caught.value)


async def number_from(tool):
    return int(await tool.invoke({}, within(30)))


async def gone(*pids):
    for _ in range(500):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a process is left")


async def test_a_servers_tools_are_called(tools_of):
    tools = await resolved(tools_of(desk=program("desk")), "mcp://desk")
    assert tools["add"].description == "Add two numbers."
    assert tools["add"].parameters["required"] == ["a", "b"]
    assert await tools["add"].invoke({"a": 1, "b": 2}, within(30)) == {"result": 3}
    assert await tools["say"].invoke({"text": "hello"}, within(30)) == "said hello"
    assert await tools["picture"].invoke({}, within(30)) == "[image of type image/png, 5 bytes, not shown]"


async def test_a_tool_that_fails_tells_why(tools_of):
    tools = await resolved(tools_of(desk=program("desk")), "mcp://desk/fail", "mcp://desk/add")
    assert "fail" in await told(tools["fail"], text="no such customer")
    assert "valid integer" in await told(tools["add"], a="x", b=1)


async def test_a_list_that_changed_is_fetched_anew(tools_of):
    source = tools_of(desk=program("desk"), plain=program("plain"))
    for server in ("desk", "plain"):
        tools = await resolved(source, f"mcp://{server}/*")
        assert "grown" not in tools
        await tools["grow"].invoke({}, within(30))
        for _ in range(100):
            tools = await resolved(source, f"mcp://{server}/*")
            if "grown" in tools:
                break
            await asyncio.sleep(0.01)
        assert "grown" in tools


async def test_a_list_is_fetched_once_and_whole(tools_of):
    source = tools_of(plain=program("plain"))
    for _ in range(3):
        tools = await resolved(source, "mcp://plain")
        assert len(tools) == 8
    assert await number_from(tools["listings"]) == 2


async def test_only_what_was_named_is_there_and_the_rest_is_told(tools_of):
    found = await tools_of(plain=program("plain")).resolve_tools(
        ["mcp://plain/echo", "mcp://plain/echoes", "mcp://other/x", "mcp://", "mcp://plain/*", "mcp://plain/echo"],
        within(30),
    )
    assert [tool.name for tool in found.tools][:2] == ["echo", "process"]
    assert len(found.tools) == 8
    assert list(found.missing) == ["mcp://plain/echoes", "mcp://other/x", "mcp://"]
    assert "has no tool echoes; it has process, listings" in found.missing["mcp://plain/echoes"]


async def test_equal_names_of_two_servers_are_told_apart(tools_of):
    source = tools_of(a=program("plain"), **{"b.c": program("plain")})
    tools = await resolved(source, "mcp://a/process", "mcp://b.c/process", "mcp://b.c/echo")
    assert list(tools) == ["process", "b_c_process", "echo"]
    assert await number_from(tools["process"]) != await number_from(tools["b_c_process"])


async def test_what_can_be_said_without_a_start_is_said(tools_of):
    source = tools_of(plain=program("plain"))
    assert source.why_unknown("mcp://plain/anything") is None
    assert source.why_unknown("mcp://plain") is None
    assert "names no server other" in source.why_unknown("mcp://other/x")
    assert "of the form mcp://server/tool" in source.why_unknown("mcp:///x")


async def test_a_server_that_ends_during_a_call_fails_it_and_starts_anew(tools_of):
    source = tools_of(desk=program("desk"))
    tools = await resolved(source, "mcp://desk")
    first = (await tools["process"].invoke({}, within(30)))["result"]
    text = await told(tools["leave"], code=7)
    assert "The MCP server desk ended" in text
    assert "exit code is 7" in text
    assert "leaving because I was told to" in text
    again = await resolved(source, "mcp://desk/process")
    second = (await again["process"].invoke({}, within(30)))["result"]
    assert second != first
    assert (await tools["process"].invoke({}, within(30)))["result"] == second


async def test_a_server_that_ended_between_calls_starts_anew(tools_of):
    tools = await resolved(tools_of(plain=program("plain")), "mcp://plain/process")
    first = await number_from(tools["process"])
    psutil.Process(first).kill()
    await gone(first)
    await asyncio.sleep(0.1)
    assert await number_from(tools["process"]) != first


@pytest.mark.parametrize(
    ("how", "seconds", "reason", "words"),
    [
        ("exits", 10, FailureReason.UNAVAILABLE, ["ended during its start", "code is 3", "the database is missing"]),
        ("hangs", 1, FailureReason.TIMEOUT, ["did not answer within", "waiting for something"]),
        ("garbage", 1, FailureReason.TIMEOUT, ["no JSON-RPC messages", "Welcome to the program!"]),
        ("flood", 20, FailureReason.UNAVAILABLE, ["a line of more than 8388608 bytes"]),
    ],
)
async def test_a_program_that_is_no_server_fails_the_call_with_its_words(tools_of, how, seconds, reason, words):
    source = tools_of(**{how: program("broken", how, KEY="${secret.KEY}")})
    before = psutil.Process().children()
    began = time.monotonic()
    failure = await failure_of(source, f"mcp://{how}/x", seconds=seconds)
    assert time.monotonic() - began < seconds + 1
    assert failure.reason is reason
    assert failure.details == {"mcp_server": how}
    assert SECRET not in failure.message
    for word in [f"The MCP server {how} ", *words]:
        assert word in failure.message
    started = set(psutil.Process().children()) - set(before)
    await source.aclose()
    await gone(*(child.pid for child in started))


async def test_a_program_that_does_not_exist_is_named(tools_of):
    failure = await failure_of(tools_of(none=McpServerPlace(command=["/no/such/program"])), "mcp://none")
    assert failure.reason is FailureReason.UNAVAILABLE
    assert failure.message == "The MCP server none can't be started: No such file or directory"


async def test_a_secret_that_is_missing_is_no_fault_of_the_server(tools_of):
    failure = await failure_of(tools_of(plain=program("plain", KEY="${secret.MISSING}")), "mcp://plain")
    assert (failure.reason, failure.message) == (FailureReason.INVALID_REQUEST, "The secret MISSING is not set")


async def test_a_broken_server_is_started_at_most_twice_a_second(tools_of):
    source = tools_of(exits=program("broken", "exits"))
    began = time.monotonic()
    for _ in range(4):
        await failure_of(source, "mcp://exits")
    assert time.monotonic() - began >= 1.5


async def test_calls_at_once_start_one_program(tools_of):
    source = tools_of(plain=program("plain"))
    found = await asyncio.gather(*(resolved(source, "mcp://plain/process") for _ in range(10)))
    assert len({await number_from(tools["process"]) for tools in found}) == 1
    again = await resolved(source, "mcp://plain/listings")
    assert await number_from(again["listings"]) == 2


async def test_a_program_sees_its_own_variables_and_the_basic_ones(tools_of, monkeypatch):
    monkeypatch.setenv("BATON_SECRET_OTHER", "private")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "private")
    secrets = OneSecret()
    source = tools_of(
        keyed=program("plain", KEY="${secret.KEY}", MODE="plain ${secret.KEY}"),
        bare=program("plain"),
        secrets=secrets,
    )
    tools = await resolved(source, "mcp://keyed/environment", "mcp://bare/environment")
    keyed = json.loads(await tools["environment"].invoke({}, within(30)))
    bare = json.loads(await tools["bare_environment"].invoke({}, within(30)))
    assert keyed["KEY"] == "***"
    assert keyed["MODE"] == "plain ***"
    assert "KEY" not in bare
    assert "PATH" in bare
    assert "private" not in str([keyed, bare])
    assert secrets.hosts == [None, None]


async def test_a_programs_errors_go_to_the_log_at_debug_level_without_secrets(tools_of, caplog, capfd):
    caplog.set_level(logging.DEBUG, "engine")
    await resolved(tools_of(plain=program("plain", KEY="${secret.KEY}")), "mcp://plain/echo")
    lines = [(record.levelname, record.message) for record in caplog.records if "plain is open" in record.message]
    assert lines == [("DEBUG", "MCP server plain: plain is open with ***")]
    assert any("a banner that is no message" in record.message for record in caplog.records)
    captured = capfd.readouterr()
    assert "plain is open" not in captured.out + captured.err


async def test_calls_of_one_server_run_at_once(tools_of):
    tools = await resolved(tools_of(desk=program("desk")), "mcp://desk/rest")
    results = await asyncio.gather(*(tools["rest"].invoke({"seconds": 0.5}, within(30)) for _ in range(20)))
    assert max(result["result"] for result in results) == 20


async def test_a_cancelled_call_returns_at_once_and_the_server_lives(tools_of):
    source = tools_of(desk=program("desk"), plain=program("plain"))
    tools = await resolved(source, "mcp://desk/rest", "mcp://desk/process", "mcp://plain/freeze")
    before = await tools["process"].invoke({}, within(30))
    for name, arguments in (("rest", {"seconds": 60}), ("freeze", {})):
        task = asyncio.create_task(tools[name].invoke(arguments, within(60)))
        await asyncio.sleep(0.2)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1
    assert await tools["process"].invoke({}, within(30)) == before


async def test_a_call_ends_with_the_deadline_and_a_frozen_server_starts_anew(tools_of):
    source = tools_of(plain=program("plain"))
    tools = await resolved(source, "mcp://plain")
    first = await number_from(tools["process"])
    text = await told(tools["freeze"], limit=0.3)
    assert "did not answer before the step's deadline" in text
    for _ in range(200):
        if not psutil.pid_exists(first):
            break
        await asyncio.sleep(0.05)
    assert await number_from(tools["process"]) != first


async def test_a_result_that_no_model_takes_is_refused(tools_of):
    tools = await resolved(tools_of(plain=program("plain")), "mcp://plain/big")
    assert "at most 1048576 go to a model" in await told(tools["big"])


async def test_closing_leaves_no_process(tools_of):
    source = tools_of(plain=program("plain"), desk=program("desk"))
    tools = await resolved(source, "mcp://plain", "mcp://desk/rest")
    pids = [await number_from(tools["process"]), await number_from(tools["child"])]
    frozen = asyncio.create_task(told(tools["freeze"]))
    resting = asyncio.create_task(told(tools["rest"], seconds=60))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await source.aclose()
    assert time.monotonic() - began < 5
    assert "ended" in await frozen
    assert "The MCP server desk ended" in await resting
    await gone(*pids)
    assert [child for child in psutil.Process().children() if "mcp_programs" in " ".join(child.cmdline())] == []
    assert "is stopping" in (await failure_of(source, "mcp://plain")).message


async def test_closing_does_not_wait_for_a_start(tools_of):
    source = tools_of(hangs=program("broken", "hangs"))
    starting = asyncio.create_task(failure_of(source, "mcp://hangs"))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await source.aclose()
    assert time.monotonic() - began < 5
    assert "stopped during its start" in (await starting).message


def test_another_loop_has_a_connection_of_its_own():
    source = AgentTools([], {"plain": program("plain")}, OneSecret(), [])
    pids = []

    async def use():
        tools = await resolved(source, "mcp://plain/process")
        pids.append(await number_from(tools["process"]))

    for _ in range(2):
        thread = threading.Thread(target=lambda: asyncio.run(use()))
        thread.start()
        thread.join(30)
    assert len(set(pids)) == 2
    # A loop that was closed in the ordinary way took its programs along, also without aclose.
    asyncio.run(gone(*pids))
    asyncio.run(source.aclose())


async def test_without_the_extra_the_way_to_it_is_told(tools_of, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("engine.adapters.agents.tools.mcp_")]:
        if name.rpartition(".")[2] in ("mcp_link", "mcp_http", "mcp_stdio", "mcp_results"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    failure = await failure_of(tools_of(plain=program("plain")), "mcp://plain")
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert "./baton install llm" in failure.message


def test_nothing_heavy_is_loaded_before_the_first_use():
    statement = (
        "import sys; from engine.adapters.agents.tools.tool_source import AgentTools;"
        "from engine.adapters.agents.tools.mcp_servers import McpServerPlace;"
        "source = AgentTools([], {'a': McpServerPlace(command=['x'])}, None, []);"
        "assert source.why_unknown('mcp://a/b') is None;"
        "print(sorted({'mcp', 'mcp_types', 'httpx2', 'pydantic_ai', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


class HttpDesk:
    """The server as a process of its own, at an address."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.process = None

    def start(self):
        command = [sys.executable, str(PROGRAMS / "desk.py"), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def desk_place():
    desk = HttpDesk()
    desk.start()
    yield desk
    desk.stop()


@pytest.fixture
def desk_at(desk_place):
    if desk_place.process.poll() is not None:
        desk_place.start()
    return desk_place


async def test_a_servers_tools_are_called_over_http(tools_of, desk_at):
    source = tools_of(desk=McpServerPlace(url=desk_at.url), allowed_hosts=[f"127.0.0.1:{desk_at.port}"])
    tools = await resolved(source, "mcp://desk")
    assert await tools["add"].invoke({"a": 1, "b": 2}, within(30)) == {"result": 3}
    assert "fail" in await told(tools["fail"], text="no")
    resting = (tools["rest"].invoke({"seconds": 0.5}, within(30)) for _ in range(20))
    assert max(result["result"] for result in await asyncio.gather(*resting)) == 20
    await tools["grow"].invoke({}, within(30))
    for _ in range(100):
        if "grown" in await resolved(source, "mcp://desk"):
            break
        await asyncio.sleep(0.01)
    assert "grown" in await resolved(source, "mcp://desk")


async def test_a_cancelled_call_over_http_returns_at_once(tools_of, desk_at):
    source = tools_of(desk=McpServerPlace(url=desk_at.url), allowed_hosts=["127.0.0.1"])
    tools = await resolved(source, "mcp://desk/rest")
    task = asyncio.create_task(tools["rest"].invoke({"seconds": 60}, within(60)))
    await asyncio.sleep(0.2)
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1
    assert "did not answer before the step's deadline" in await told(tools["rest"], limit=0.3, seconds=60)


async def test_a_server_that_went_away_is_found_again(tools_of, desk_at):
    source = tools_of(desk=McpServerPlace(url=desk_at.url), allowed_hosts=["127.0.0.1"])
    tools = await resolved(source, "mcp://desk/add")
    desk_at.stop()
    text = await told(tools["add"], a=1, b=2)
    assert "The MCP server desk" in text
    desk_at.start()
    tools = await resolved(source, "mcp://desk/add")
    assert await tools["add"].invoke({"a": 1, "b": 2}, within(30)) == {"result": 3}


class RecordingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.headers, body))
        status, headers = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_DELETE = do_POST  # noqa: N815 - names that the base class looks for

    def log_message(self, *args): ...


@pytest.fixture
def recorder():
    server = ThreadingHTTPServer(("127.0.0.1", 0), RecordingHandler)
    server.daemon_threads = True
    server.requests = []
    server.answer = (200, {})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/mcp"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("allowed", [[], ["example.com"], ["localhost"]])
async def test_a_host_that_is_not_listed_gets_nothing(tools_of, recorder, allowed):
    failure = await failure_of(tools_of(far=McpServerPlace(url=recorder.url), allowed_hosts=allowed), "mcp://far")
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert "allowed_hosts" in failure.message
    assert recorder.requests == []


@pytest.mark.parametrize(
    ("answer", "reason", "word"),
    [
        ((401, {}), FailureReason.UNAUTHORIZED, "HTTP 401"),
        ((503, {}), FailureReason.UNAVAILABLE, "HTTP 503"),
        ((307, {"Location": "/elsewhere"}), FailureReason.INVALID_REQUEST, "redirect"),
        ((200, {"Content-Type": "text/html"}), FailureReason.UNAVAILABLE, "text/html"),
    ],
)
async def test_an_answer_that_is_none_fails_with_its_reason(tools_of, recorder, answer, reason, word):
    recorder.answer = answer
    place = McpServerPlace(url=recorder.url, headers={"Authorization": "Bearer ${secret.KEY}"})
    secrets = OneSecret()
    failure = await failure_of(tools_of(far=place, allowed_hosts=["127.0.0.1"], secrets=secrets), "mcp://far")
    assert failure.reason is reason
    assert "MCP server far" in failure.message
    assert word in failure.message
    assert {headers["Authorization"] for headers, _ in recorder.requests} == {f"Bearer {SECRET}"}
    assert set(secrets.hosts) == {f"127.0.0.1:{recorder.server_address[1]}"}


class OlderHandler(RecordingHandler):
    """A server of the older protocol, with sessions that it forgets when ``sessions`` is emptied."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        session = self.headers.get("mcp-session-id")
        match asked["method"]:
            case "initialize":
                session = f"session-{len(self.server.requests)}"
                self.server.sessions.add(session)
                info = {"name": "older", "version": "1"}
                version = asked["params"]["protocolVersion"]
                self.reply(asked, session, protocolVersion=version, capabilities={"tools": {}}, serverInfo=info)
            case "tools/list" if session in self.server.sessions:
                self.reply(asked, session, tools=[{"name": "session", "inputSchema": {"type": "object"}}])
            case "tools/call" if session in self.server.sessions:
                self.reply(asked, session, content=[{"type": "text", "text": session}])
            case _:
                self.send_response(202 if "id" not in asked else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
        self.server.requests.append(asked["method"])

    def do_GET(self):
        self.send_response(405)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_DELETE = do_GET  # noqa: N815 - as above

    def reply(self, asked, session, **result):
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode()
        self.send_response(200)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.send_header("Mcp-Session-Id", session)
        self.end_headers()
        self.wfile.write(body)


async def test_a_session_that_the_server_forgot_is_begun_anew(tools_of, recorder):
    recorder.RequestHandlerClass = OlderHandler
    recorder.sessions = set()
    source = tools_of(older=McpServerPlace(url=recorder.url), allowed_hosts=["127.0.0.1"])
    tools = await resolved(source, "mcp://older")
    first = await tools["session"].invoke({}, within(30))
    assert await tools["session"].invoke({}, within(30)) == first
    recorder.sessions.clear()
    assert "The MCP server older ended" in await told(tools["session"])
    assert await tools["session"].invoke({}, within(30)) not in (first, None)


@pytest.mark.parametrize(
    ("value", "words"), [("${secret.MISSING}", "The secret MISSING is not set"), ("a\nb", "characters that no header")]
)
async def test_a_header_that_cannot_be_made_sends_nothing(tools_of, recorder, value, words):
    place = McpServerPlace(url=recorder.url, headers={"X-Key": value})
    failure = await failure_of(tools_of(far=place, allowed_hosts=["127.0.0.1"]), "mcp://far")
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert words in failure.message
    assert recorder.requests == []


async def test_nobody_at_the_address_is_unavailable(tools_of):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/mcp"
    failure = await failure_of(tools_of(far=McpServerPlace(url=url), allowed_hosts=["127.0.0.1"]), "mcp://far")
    assert failure.reason is FailureReason.UNAVAILABLE
    assert "can't be reached" in failure.message
