"""HTTP agents against a real server: what is sent, what each answer means, and that every bound holds."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engine import masking
from engine.adapters.agents.http_agents import HttpAgentInvoker
from engine.adapters.secrets import ConfiguredSecrets
from engine.domain.agent import PlanAgent
from engine.domain.agent_call import AgentFailure, AgentInvocation, FailureReason
from engine.domain.execution import Usage

LIMIT = 100_000


@dataclass
class FixedCall:
    execution_id: str = "flow-1"
    step_id: str = "step1[3]"
    attempt: int = 2
    idempotency_key: str = "flow-1/run/step1/1"
    deadline: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(seconds=30))
    context: list = field(default_factory=list)
    cancelled: bool = False

    def heartbeat(self, progress=None): ...
    def emit(self, text): ...


class Server(ThreadingHTTPServer):
    """Answers with what ``script`` does, and keeps what came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.script = lambda handler: handler.answer(200, b"{}")
        self.released = threading.Event()
        self.broken_off = threading.Event()

    def handle_error(self, request, client_address):
        """A client that went away is part of these tests."""

    @property
    def port(self):
        return self.server_address[1]

    def url(self, path="/call"):
        return f"http://127.0.0.1:{self.port}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.command, self.path, self.headers, body))
        self.server.script(self)

    do_PUT = do_PATCH = do_GET = do_POST  # noqa: N815 - names that the base class looks for

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def wait_until_broken_off(self):
        self.connection.settimeout(20)
        if self.connection.recv(1) == b"":
            self.server.broken_off.set()

    def log_message(self, *args): ...


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """What is remembered here would be masked in all later tests."""
    monkeypatch.setattr(masking, "_secrets", OrderedDict())
    monkeypatch.setattr(masking, "_masks", None)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
async def invoker(server):
    invoker = HttpAgentInvoker([f"127.0.0.1:{server.port}"], max_response_bytes=LIMIT)
    yield invoker
    await invoker.aclose()


def invocation(url, value=None, *, seconds=30, **config):
    agent = PlanAgent(agent_id="agent-x", version=1, kind="http", config={"url": url, **config})
    call = FixedCall(deadline=datetime.now(UTC) + timedelta(seconds=seconds))
    return AgentInvocation(agent=agent, input={} if value is None else value, call=call)


async def failure_of(invoker, asked):
    with pytest.raises(AgentFailure) as caught:
        await asyncio.wait_for(invoker.invoke_agent(asked), 10)
    return caught.value


class TestWhatIsSent:
    @pytest.mark.parametrize("method", [None, "POST", "put", "PATCH"])
    async def test_the_input_is_the_body_and_the_call_is_in_the_headers(self, server, invoker, method):
        server.script = lambda handler: handler.answer(201, '{"plan": "é"}'.encode())
        value = {"text": "ü\ud800", "n": [1, 2.5, None]}
        config = {} if method is None else {"method": method}
        asked = invocation(server.url("/a%20b?q=1#part"), value, headers={"X-Team": "blue"}, **config)
        reply = await invoker.invoke_agent(asked)
        assert reply.output == {"plan": "é"}
        assert reply.usage == Usage(requests=1)
        [(sent, path, headers, body)] = server.requests
        assert (sent, path) == ((method or "POST").upper(), "/a%20b?q=1")
        assert json.loads(body) == value
        assert dict(headers.items()) == {
            "Host": f"127.0.0.1:{server.port}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Content-Length": str(len(body)),
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": "baton",
            "Idempotency-Key": "flow-1/run/step1/1",
            "Baton-Execution-Id": "flow-1",
            "Baton-Step-Id": "step1[3]",
            "Baton-Attempt": "2",
            "X-Team": "blue",
        }

    @pytest.mark.parametrize(
        ("config", "told"),
        [
            ({"method": "GET"}, "method"),
            ({"method": 3}, "method"),
            ({"headers": []}, "headers"),
            ({"headers": {"Host": "elsewhere"}}, "Host"),
            ({"headers": {"content-LENGTH": "3"}}, "content-LENGTH"),
            ({"headers": {"Transfer-Encoding": "chunked"}}, "Transfer-Encoding"),
            ({"headers": {"idempotency-key": "mine"}}, "idempotency-key"),
            ({"headers": {"Baton-Attempt": "1"}}, "Baton-Attempt"),
            ({"headers": {"Accept": "text/html"}}, "Accept"),
            ({"headers": {"X-A": "1\r\nX-B: 2"}}, "X-A"),
            ({"headers": {"X-A": "é"}}, "X-A"),
            ({"headers": {"X-A": 1}}, "X-A"),
            ({"headers": {"X A": "1"}}, "X A"),
            ({"headers": {"": "1"}}, "headers"),
            ({"headers": {"Authorization": "Bearer ${secret.KEY}"}}, "Authorization"),
            ({"headers": {"X-A": "${input.key}"}}, "X-A"),
            ({"headers": {"X-A": "$${secret.KEY} ${KEY}"}}, "X-A"),
            ({"url": None}, "url"),
            ({"url": ""}, "url"),
            ({"url": 7}, "url"),
            ({"url": "call"}, "url"),
            ({"url": "http://"}, "url"),
            ({"url": "http://[::1"}, "url"),
            ({"url": "http://127.0.0.1:99999/"}, "port"),
            ({"url": "http://127.0.0.1:0/"}, "port"),
            ({"url": "http://a\nb/"}, "url"),
            ({"url": "file:///etc/passwd"}, "url"),
            ({"url": "ws://127.0.0.1/"}, "url"),
            ({"url": "http://127.0.0.1/${secret.KEY}"}, "secret"),
        ],
    )
    async def test_an_unusable_config_is_refused_before_any_connection(self, server, invoker, config, told):
        failure = await failure_of(invoker, invocation(**{"url": server.url(), **config}))
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert told in failure.message
        assert server.requests == []

    async def test_credentials_in_the_url_are_refused_and_not_repeated(self, server, invoker):
        failure = await failure_of(invoker, invocation(f"http://me:hunter2@127.0.0.1:{server.port}/?key=hunter3"))
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert "hunter" not in failure.message

    async def test_the_query_and_the_headers_are_not_logged(self, server, invoker, caplog):
        with caplog.at_level(logging.DEBUG):
            await invoker.invoke_agent(invocation(server.url("/?key=hunter3"), headers={"X-Key": "hunter4"}))
        assert len(server.requests) == 1
        assert "hunter" not in caplog.text

    async def test_a_user_agent_of_the_config_replaces_baton_s(self, server, invoker):
        await invoker.invoke_agent(invocation(server.url(), headers={"user-agent": "mine"}))
        assert server.requests[0][2].get_all("User-Agent") == ["mine"]

    async def test_no_cookie_is_kept_between_calls(self, server, invoker):
        server.script = lambda handler: handler.answer(200, b"{}", Set_Cookie="session=1; Path=/")
        for _ in range(2):
            await invoker.invoke_agent(invocation(server.url()))
        assert [request[2]["Cookie"] for request in server.requests] == [None, None]

    async def test_the_environment_s_proxy_is_not_used(self, server, invoker, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert (await invoker.invoke_agent(invocation(server.url()))).output == {}

    async def test_connections_are_used_again(self, server, invoker):
        ports = []
        server.script = lambda handler: (ports.append(handler.client_address[1]), handler.answer(200, b"{}"))
        for _ in range(3):
            await invoker.invoke_agent(invocation(server.url()))
        assert len(set(ports)) == 1


class TestSecretsInHeaders:
    @pytest.fixture
    def environ(self):
        return {}

    @pytest.fixture
    async def filling(self, server, environ):
        hosts = [f"127.0.0.1:{server.port}"]
        secrets = ConfiguredSecrets(environ, None, [f"BOUND=127.0.0.1:{server.port}", "ELSEWHERE=other.test"])
        invoker = HttpAgentInvoker(hosts, secrets=secrets, max_response_bytes=LIMIT)
        yield invoker
        await invoker.aclose()

    async def test_they_are_filled_in_at_each_call(self, server, filling, environ):
        headers = {"Authorization": "Bearer ${secret.KEY}", "X-Both": "${secret.KEY}:${secret.BOUND}", "X-Plain": "$5"}
        environ |= {"BATON_SECRET_KEY": "first-value", "BATON_SECRET_BOUND": "bound-value${secret.KEY}"}
        await filling.invoke_agent(invocation(server.url(), headers=headers))
        environ["BATON_SECRET_KEY"] = "second-value"
        await filling.invoke_agent(invocation(server.url(), headers=headers))
        sent = [[request[2].get_all(name) for name in headers] for request in server.requests]
        assert sent == [
            [["Bearer first-value"], ["first-value:bound-value${secret.KEY}"], ["$5"]],
            [["Bearer second-value"], ["second-value:bound-value${secret.KEY}"], ["$5"]],
        ]

    async def test_white_space_at_the_ends_is_not_sent(self, server, filling, environ):
        environ["BATON_SECRET_KEY"] = " with-a-space \t"
        await filling.invoke_agent(invocation(server.url(), headers={"X-Key": "${secret.KEY}", "X-A": " b "}))
        assert [server.requests[0][2][name] for name in ("X-Key", "X-A")] == ["with-a-space", "b"]

    @pytest.mark.parametrize(
        "value", ["line\nbreak", "line\rbreak\nX-B: 1", "not-ascii-é", "bell\x07bell", "del\x7fdel"]
    )
    async def test_a_value_that_no_header_can_carry_is_refused_by_name(self, server, filling, environ, value):
        environ["BATON_SECRET_KEY"] = value
        failure = await failure_of(filling, invocation(server.url(), headers={"X-Api": "k ${secret.KEY}"}))
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert "X-Api" in failure.message
        assert "KEY" in failure.message
        assert value not in failure.message
        assert server.requests == []

    @pytest.mark.parametrize(
        ("headers", "told"),
        [
            ({"X-A": "${secret.UNSET}"}, "BATON_SECRET_UNSET"),
            ({"X-A": "${secret.ELSEWHERE}"}, "secret_hosts"),
            ({"X-A": "${secret.HOME/../PATH}"}, "not of the form"),
            ({"X-A": "${secret.KEY"}, "not of the form"),
            ({"X-A": "${secret.KEY} ${input.a}"}, "X-A"),
        ],
    )
    async def test_what_can_t_be_filled_in_is_refused(self, server, filling, environ, headers, told):
        environ |= {"BATON_SECRET_KEY": "some-value", "BATON_SECRET_ELSEWHERE": "other-value"}
        failure = await failure_of(filling, invocation(server.url(), headers=headers))
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert told in failure.message
        assert "value" not in failure.message.replace("values", "")
        assert server.requests == []

    async def test_a_secret_that_an_error_body_repeats_is_masked_also_where_the_quote_is_cut(
        self, server, filling, environ
    ):
        environ["BATON_SECRET_KEY"] = secret = "sk-" + "0123456789abcdef" * 2
        for before in ("", "x" * 190, "x" * 790):
            body = f"{before}Bearer {secret}".encode()
            server.script = lambda handler, body=body: handler.answer(401, body, Content_Type="text/plain")
            failure = await failure_of(filling, invocation(server.url(), headers={"Authorization": "${secret.KEY}"}))
            assert failure.reason is FailureReason.UNAUTHORIZED
            assert "sk-0" not in failure.message
        body = (f"{secret}-" * 30).encode()
        server.script = lambda handler: handler.answer(401, body, Content_Type="text/plain")
        failure = await failure_of(filling, invocation(server.url(), headers={"Authorization": "${secret.KEY}"}))
        assert set(failure.message.partition("401: ")[2]) == {"*", "-"}

    async def test_a_redirect_takes_no_secret_along(self, server, filling, environ):
        environ["BATON_SECRET_KEY"] = "some-value"
        server.script = lambda handler: handler.answer(307, b"", Location=server.url("/other"))
        failure = await failure_of(filling, invocation(server.url(), headers={"X-A": "${secret.KEY}"}))
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert [request[1] for request in server.requests] == ["/call"]


class TestStatuses:
    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (301, "invalid_request"),
            (304, "invalid_request"),
            (400, "invalid_request"),
            (401, "unauthorized"),
            (403, "unauthorized"),
            (404, "invalid_request"),
            (408, "timeout"),
            (422, "invalid_request"),
            (429, "rate_limited"),
            (451, "refused"),
            (500, "unavailable"),
            (503, "unavailable"),
            (599, "unavailable"),
        ],
    )
    async def test_each_status_has_its_reason(self, server, invoker, status, reason):
        server.script = lambda handler: handler.answer(status, b"", X_Trace="hidden")
        failure = await failure_of(invoker, invocation(server.url(), headers={"Authorization": "Bearer abc"}))
        assert failure.reason == reason
        assert f"127.0.0.1 answered with status {status}" in failure.message
        assert failure.details == {"status": status, "host": "127.0.0.1"}
        assert failure.retry_after is None
        assert "abc" not in failure.message
        assert "hidden" not in failure.message

    @pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/json", "application/problem+json"])
    async def test_a_text_body_is_quoted_up_to_200_characters(self, server, invoker, kind):
        body = ("no\x1b[31m\n" + "é" * 5_000).encode()
        server.script = lambda handler: handler.answer(400, body, Content_Type=kind)
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.message.partition("400: ")[2] == "no [31m " + "é" * 192

    async def test_another_body_is_not_quoted(self, server, invoker):
        server.script = lambda handler: handler.answer(400, b"PNG" * 10, Content_Type="image/png")
        assert "PNG" not in (await failure_of(invoker, invocation(server.url()))).message

    async def test_an_error_body_that_never_ends_does_not_hide_the_status(self, server, invoker):
        def stall(handler):
            handler.send_response(429)
            handler.send_header("Content-Length", "1000")
            handler.send_header("Content-Type", "text/plain")
            handler.end_headers()
            handler.wfile.write(b"slow")
            server.released.wait(20)

        server.script = stall
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.reason is FailureReason.RATE_LIMITED
        assert failure.message.endswith("429: slow")

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("0", 0),
            ("7", 7),
            (" 120 ", 120),
            ("9" * 400, 86_400),
            ("-3", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ],
    )
    async def test_retry_after_in_seconds(self, server, invoker, status, value, seconds):
        server.script = lambda handler: handler.answer(status, b"", Retry_After=value)
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.retry_after == (None if seconds is None else timedelta(seconds=seconds))

    @pytest.mark.parametrize(("ahead", "least", "most"), [(3600, 3500, 3600), (-3600, 0, 0), (10**9, 86_400, 86_400)])
    async def test_retry_after_as_a_date(self, server, invoker, ahead, least, most):
        moment = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
        server.script = lambda handler: handler.answer(503, b"", Retry_After=moment)
        failure = await failure_of(invoker, invocation(server.url()))
        assert timedelta(seconds=least) <= failure.retry_after <= timedelta(seconds=most)

    async def test_other_statuses_ask_for_no_wait(self, server, invoker):
        server.script = lambda handler: handler.answer(500, b"", Retry_After="7")
        assert (await failure_of(invoker, invocation(server.url()))).retry_after is None


class TestAnswers:
    @pytest.mark.parametrize(
        ("body", "told"),
        [
            (b"", "has no body"),
            (b"<html>", "is no JSON"),
            (b'{"a": 1', "is no JSON"),
            (b'{"a": NaN}', "is no JSON"),
            (b'{"a": "\xff\xfe"}', "is no JSON"),
            (b'{"a": "\\ud800"}', "is no JSON"),
            (b"[" * 20_000, "is no JSON"),
            (b'{"a":' * 100 + b"1" + b"}" * 100, "64 levels"),
            (b'{"a": 1' + b"0" * 40 + b"}", "64 bits"),
            (b"[1]", "type list"),
            (b'"text"', "type str"),
            (b"null", "type NoneType"),
        ],
    )
    async def test_what_is_no_json_object_is_invalid_output(self, server, invoker, body, told):
        server.script = lambda handler: handler.answer(200, body)
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.reason is FailureReason.INVALID_OUTPUT
        assert told in failure.message
        assert failure.details == {"status": 200, "host": "127.0.0.1"}

    async def test_an_answer_of_the_top_size_passes_and_one_more_byte_does_not(self, server, invoker):
        frame = len(b'{"a": ""}')
        server.script = lambda handler: handler.answer(200, b'{"a": "%s"}' % (b"x" * (LIMIT - frame)))
        assert len((await invoker.invoke_agent(invocation(server.url()))).output["a"]) == LIMIT - frame
        server.script = lambda handler: handler.answer(200, b'{"a": "%s"}' % (b"x" * (LIMIT - frame + 1)))
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.reason is FailureReason.INVALID_OUTPUT
        assert f"larger than {LIMIT} bytes" in failure.message

    async def test_an_endless_answer_is_cut(self, server, invoker):
        def endless(handler):
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            try:
                while not server.released.is_set():
                    handler.wfile.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            except OSError:
                server.broken_off.set()

        server.script = endless
        failure = await failure_of(invoker, invocation(server.url()))
        assert "larger than" in failure.message
        assert await asyncio.to_thread(server.broken_off.wait, 10)

    async def test_gzip_is_read_and_a_bomb_is_cut(self, server, invoker):
        server.script = lambda handler: handler.answer(200, gzip.compress(b'{"a": 1}'), Content_Encoding="gzip")
        assert (await invoker.invoke_agent(invocation(server.url()))).output == {"a": 1}
        bomb = gzip.compress(gzip.compress(b" " * 20_000_000, 9), 9)
        assert len(bomb) < 10_000
        server.script = lambda handler: handler.answer(200, bomb, Content_Encoding="gzip, gzip")
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.reason is FailureReason.INVALID_OUTPUT
        assert "larger than" in failure.message

    async def test_broken_compression_is_invalid_output(self, server, invoker):
        server.script = lambda handler: handler.answer(200, b"no gzip at all", Content_Encoding="gzip")
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.reason is FailureReason.INVALID_OUTPUT
        assert "decompressed" in failure.message

    @pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", b"SSH-2.0-x\r\n\r\n"])
    async def test_a_broken_off_answer_is_unavailable(self, server, invoker, sent):
        def cut(handler):
            handler.wfile.write(sent)
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True

        server.script = cut
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.reason is FailureReason.UNAVAILABLE
        assert "127.0.0.1" in failure.message

    @pytest.mark.parametrize("line", [b"X-Filler: " + b"x" * 1000 + b"\r\n", b"x" * 1000])
    async def test_headers_without_end_are_cut(self, server, invoker, line):
        def flood(handler):
            try:
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not server.released.is_set():
                    handler.wfile.write(line)
            except OSError:
                server.broken_off.set()

        server.script = flood
        failure = await failure_of(invoker, invocation(server.url()))
        assert failure.reason is FailureReason.UNAVAILABLE
        assert await asyncio.to_thread(server.broken_off.wait, 10)

    async def test_interim_answers_without_end_are_ended_by_the_deadline(self, server, invoker):
        def delay(handler):
            try:
                while not server.released.wait(0.01):
                    handler.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            except OSError:
                server.broken_off.set()

        server.script = delay
        failure = await failure_of(invoker, invocation(server.url(), seconds=0.5))
        assert failure.reason is FailureReason.TIMEOUT
        assert await asyncio.to_thread(server.broken_off.wait, 10)

    async def test_a_closed_port_is_unavailable(self):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        invoker = HttpAgentInvoker([f"127.0.0.1:{port}"])
        failure = await failure_of(invoker, invocation(f"http://127.0.0.1:{port}/"))
        assert failure.reason is FailureReason.UNAVAILABLE
        await invoker.aclose()


class TestBounds:
    @pytest.mark.parametrize("dripping", [False, True])
    async def test_the_deadline_bounds_the_whole_call(self, server, invoker, dripping):
        def slow(handler):
            if dripping:
                handler.send_response(200)
                handler.send_header("Content-Length", "100000")
                handler.end_headers()
            while not server.released.wait(0.02):
                if dripping:
                    handler.wfile.write(b" ")

        server.script = slow
        failure = await failure_of(invoker, invocation(server.url(), seconds=0.3))
        assert failure.reason is FailureReason.TIMEOUT
        assert len(server.requests) == 1

    async def test_a_deadline_that_is_over_sends_nothing(self, server, invoker):
        failure = await failure_of(invoker, invocation(server.url(), seconds=-5))
        assert failure.reason is FailureReason.TIMEOUT
        assert server.requests == []

    async def test_cancelling_breaks_the_request_off(self, server, invoker):
        server.script = lambda handler: handler.wait_until_broken_off()
        task = asyncio.create_task(invoker.invoke_agent(invocation(server.url())))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.broken_off.wait, 10)

    def test_each_event_loop_has_its_own_client(self, server):
        invoker = HttpAgentInvoker([f"127.0.0.1:{server.port}"])

        async def call():
            reply = await invoker.invoke_agent(invocation(server.url()))
            await invoker.aclose()
            return reply.output

        results = []
        for _ in range(2):
            # In a thread, since the tests' own loop runs in this one.
            thread = threading.Thread(target=lambda: results.append(asyncio.run(call())))
            thread.start()
            thread.join()
        assert results == [{}, {}]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of its own for the name agent.test, as (certificate, key) files."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so no certificate can be made")
    folder = tmp_path_factory.mktemp("tls")
    files = (str(folder / "cert.pem"), str(folder / "key.pem"))
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=agent.test"
        " -addext subjectAltName=DNS:agent.test -out cert.pem -keyout key.pem"
    )
    subprocess.run(
        shlex.split(command),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return files


class TestTls:
    @pytest.fixture
    def names(self, server, certificate):
        names = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.sni_callback = lambda connection, name, _: names.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return names

    async def call(self, server, host, trusted):
        async def to_the_server(host, port):
            return ["127.0.0.1"]

        invoker = HttpAgentInvoker(
            [host, f"127.0.0.1:{server.port}"],
            resolve=to_the_server,
            tls=ssl.create_default_context(cafile=trusted) if trusted else None,
        )
        try:
            return await invoker.invoke_agent(invocation(f"https://{host}:{server.port}/"))
        finally:
            await invoker.aclose()

    async def test_the_name_is_kept_for_tls_and_host(self, server, names, certificate):
        assert (await self.call(server, "agent.test", certificate[0])).output == {}
        assert names == ["agent.test"]
        assert server.requests[0][2]["Host"] == f"agent.test:{server.port}"

    @pytest.mark.parametrize(("host", "trust"), [("agent.test", False), ("other.test", True)])
    async def test_an_unverified_server_gets_nothing(self, server, names, certificate, host, trust):
        with pytest.raises(AgentFailure, match="certificate") as caught:
            await self.call(server, host, certificate[0] if trust else None)
        assert caught.value.reason is FailureReason.UNAVAILABLE
        assert server.requests == []
