"""S14: an agent's address leads nowhere that the operator did not list, whatever names, redirects and DNS say."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest

from engine.adapters.agents.allowed_hosts import AllowedHosts, is_guarded_address
from engine.adapters.agents.http_agents import HttpAgentInvoker
from engine.domain.agent import PlanAgent
from engine.domain.agent_call import AgentFailure, AgentInvocation, FailureReason
from engine.errors import ConfigurationError


@dataclass
class FixedCall:
    execution_id: str = "flow-1"
    step_id: str = "step1"
    attempt: int = 1
    idempotency_key: str = "flow-1/run/step1/1"
    deadline: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(seconds=10))
    context: list = field(default_factory=list)
    cancelled: bool = False

    def heartbeat(self, progress=None): ...
    def emit(self, text): ...


class Inside(BaseHTTPRequestHandler):
    """A service that must not be reached: it counts who comes, and sends on to wherever the path says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.visits.append((self.path, self.headers["Host"]))
        location = self.server.location
        self.send_response(307 if location else 200)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST  # noqa: N815 - a name that the base class looks for

    def log_message(self, *args): ...


class InsideServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that resets its kept connection is part of these tests."""


@pytest.fixture
def inside():
    server = InsideServer(("127.0.0.1", 0), Inside)
    server.visits, server.location = [], None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


async def call(allowed, url, *answers):
    """Call ``url``; name lookups give ``answers`` in turn, the last one again and again, or the system's answer."""
    left = list(answers)

    async def resolve(host, port):
        return left.pop(0) if len(left) > 1 else left[0]

    invoker = HttpAgentInvoker(allowed, resolve=resolve if answers else None)
    agent = PlanAgent(agent_id="agent-x", version=1, kind="http", config={"url": url})
    try:
        asked = AgentInvocation(agent=agent, input={}, call=FixedCall())
        return (await asyncio.wait_for(invoker.invoke_agent(asked), 10)).output
    finally:
        await invoker.aclose()


async def refusal(allowed, url, *answers):
    with pytest.raises(AgentFailure) as caught:
        await call(allowed, url, *answers)
    assert caught.value.reason is FailureReason.INVALID_REQUEST
    return caught.value


class TestTheList:
    @pytest.mark.parametrize(
        ("entries", "host", "port", "allowed"),
        [
            ([], "a.example", 443, False),
            (["a.example"], "a.example", 443, True),
            (["a.example"], "A.EXAMPLE.", 8443, True),
            (["A.Example."], "a.example", 443, True),
            (["a.example"], "b.a.example", 443, False),
            (["a.example"], "a.example.evil.test", 443, False),
            (["a.example"], "xa.example", 443, False),
            (["a.example:443"], "a.example", 443, True),
            (["a.example:443"], "a.example", 80, False),
            (["*.a.example"], "b.a.example", 443, True),
            (["*.a.example"], "c.b.a.example", 443, True),
            (["*.a.example"], "a.example", 443, False),
            (["*.a.example"], "ba.example", 443, False),
            (["*.a.example:8080"], "b.a.example", 443, False),
            (["[::1]:8080"], "::1", 8080, True),
            (["[::1]:8080"], "0:0:0:0:0:0:0:1", 8080, True),
            (["[::1]:8080"], "::1", 8081, False),
            (["::1"], "[::1]", 99, True),
            (["127.0.0.1"], "127.0.0.1", 80, True),
            (["127.0.0.1"], "localhost", 80, False),
            (["localhost"], "127.0.0.1", 80, False),
            (["127.0.0.1"], "127.0.0.11", 80, False),
        ],
    )
    def test_an_entry_names_exactly_what_it_says(self, entries, host, port, allowed):
        assert AllowedHosts(entries).allows(host, port) is allowed

    @pytest.mark.parametrize(
        "entry",
        [
            "",
            " ",
            "*",
            "*.",
            "a.*.example",
            "http://a.example",
            "a.example/path",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:x",
            "a b",
            "a\tb",
            "[::1",
            "[a.example]:80",
            "me@a.example",
            "ä.example",
            "-a.example",
            "a..example",
            "10.0.0.0/8",
            "${secret.X}",
        ],
    )
    def test_an_entry_of_no_known_form_is_refused_at_once(self, entry):
        with pytest.raises(ConfigurationError, match="allowed_hosts"):
            HttpAgentInvoker([entry])


GUARDED = [
    "127.0.0.1",
    "127.255.0.3",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "fd00:ec2::254",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
]
OPEN = ["93.184.216.34", "10.1.2.3", "192.168.1.1", "172.16.0.9", "2606:4700::1", "fd12::1", "64:ff9b::5db8:d822"]


@pytest.mark.parametrize("address", GUARDED)
class TestGuardedAddresses:
    async def test_a_listed_name_does_not_lead_there(self, address):
        failure = await refusal(["api.example", "*.example"], "http://api.example/", [address])
        assert "allowed_hosts" in failure.message
        assert address in failure.message
        assert failure.details["address"] == address

    def test_only_its_own_entry_opens_it(self, address):
        entry = f"[{address}]:8080" if ":" in address else f"{address}:8080"
        hosts = AllowedHosts(["api.example", entry])
        assert hosts.allows_address("api.example", 8080, address)
        assert not hosts.allows_address("api.example", 80, address)
        assert not hosts.allows_address("other.example", 8080, address)


@pytest.mark.parametrize("address", OPEN)
def test_other_addresses_need_only_the_name(address):
    assert not is_guarded_address(ip_address(address))
    assert AllowedHosts(["api.example"]).allows_address("api.example", 80, address)


@pytest.mark.parametrize("answer", ["", "no address", "127.0.0.1.evil", "0x7f000001"])
def test_what_is_no_address_is_never_connected_to(answer):
    assert not AllowedHosts(["api.example"]).allows_address("api.example", 80, answer)


class TestAttacks:
    async def test_an_empty_list_allows_nothing(self, inside):
        failure = await refusal([], f"http://127.0.0.1:{inside.server_port}/")
        assert "allowed_hosts" in failure.message
        assert inside.visits == []

    async def test_a_listed_service_is_reached(self, inside):
        assert await call([f"127.0.0.1:{inside.server_port}"], f"http://127.0.0.1:{inside.server_port}/x") == {}
        assert inside.visits == [("/x", f"127.0.0.1:{inside.server_port}")]

    async def test_localhost_is_reached_by_its_own_entry(self, inside):
        assert await call(["localhost"], f"http://localhost:{inside.server_port}/") == {}
        assert await call(["localhost"], f"http://localhost:{inside.server_port}/", ["::1", "127.0.0.1"]) == {}
        assert len(inside.visits) == 2

    async def test_localhost_leads_to_loopback_alone(self):
        await refusal(["localhost"], "http://localhost/", ["169.254.169.254"])

    @pytest.mark.parametrize(
        "spelling", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1.", "[::ffff:7f00:1]"]
    )
    async def test_other_spellings_of_loopback_are_not_let_in(self, inside, spelling):
        url = f"http://{spelling}:{inside.server_port}/"
        await refusal(["api.example"], url)
        assert inside.visits == []

    async def test_a_listed_odd_spelling_is_still_checked_as_the_address_it_becomes(self, inside):
        await refusal(["2130706433"], f"http://2130706433:{inside.server_port}/")
        assert inside.visits == []

    async def test_a_name_is_resolved_once_and_that_answer_is_connected_to(self, inside):
        port = inside.server_port
        asked = []

        async def resolve(host, port):
            asked.append(host)
            return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

        invoker = HttpAgentInvoker(["api.example", f"127.0.0.1:{port}"], resolve=resolve)
        agent = PlanAgent(agent_id="a", version=1, kind="http", config={"url": f"http://api.example:{port}/"})
        await invoker.invoke_agent(AgentInvocation(agent=agent, input={}, call=FixedCall()))
        await invoker.aclose()
        assert asked == ["api.example"]
        assert inside.visits == [("/", f"api.example:{port}")]

    async def test_a_name_that_is_bound_anew_to_loopback_is_refused(self, inside):
        port = inside.server_port
        calls = [["127.0.0.1"], ["::ffff:127.0.0.1"]]
        for answer in calls:
            await refusal(["api.example"], f"http://api.example:{port}/", answer)
        assert inside.visits == []

    async def test_among_several_addresses_only_open_ones_are_tried(self, inside):
        port = inside.server_port
        # 127.0.0.2 is listed and nothing listens there; 127.0.0.1 is a live service that is not listed.
        with pytest.raises(AgentFailure) as caught:
            await call(["api.example", "127.0.0.2"], f"http://api.example:{port}/", ["127.0.0.1", "127.0.0.2"])
        assert caught.value.reason is FailureReason.UNAVAILABLE
        assert inside.visits == []

    @pytest.mark.parametrize(
        "location", ["http://169.254.169.254/latest/meta-data/", "/elsewhere", "http://[", "http://\x80:99999999/"]
    )
    async def test_a_redirect_is_not_followed(self, inside, location):
        inside.location = location
        url = f"http://127.0.0.1:{inside.server_port}/first"
        failure = await refusal([f"127.0.0.1:{inside.server_port}"], url)
        assert "redirects are not followed" in failure.message
        assert failure.details["status"] == 307
        assert [path for path, _ in inside.visits] == ["/first"]

    async def test_an_unknown_name_is_unavailable(self):
        invoker = HttpAgentInvoker(["*.example"], resolve=fails)
        agent = PlanAgent(agent_id="a", version=1, kind="http", config={"url": "http://a.example/"})
        with pytest.raises(AgentFailure, match="can't be resolved") as caught:
            await invoker.invoke_agent(AgentInvocation(agent=agent, input={}, call=FixedCall()))
        assert caught.value.reason is FailureReason.UNAVAILABLE
        await invoker.aclose()

    async def test_a_label_too_long_for_the_resolver_is_unavailable(self):
        with pytest.raises(AgentFailure, match="no host name") as caught:
            await call(["*.example"], f"http://{'a' * 64}.example/")
        assert caught.value.reason is FailureReason.UNAVAILABLE


async def fails(host, port):
    raise OSError("no such name")
