"""What the Neo4j adapters promise beyond the ports: their schema and plans, races, lost answers, a server that goes."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import pytest

from engine.adapters.codec import Codec
from engine.adapters.neo4j import agent_graph, agent_store, definition_store, handoff_store
from engine.adapters.neo4j.agent_graph import Neo4jAgentGraph
from engine.adapters.neo4j.agent_store import Neo4jAgentStore
from engine.adapters.neo4j.database import Neo4jDatabase, rows_of
from engine.adapters.neo4j.definition_store import Neo4jDefinitionStore
from engine.adapters.neo4j.handoff_store import Neo4jHandoffStore
from engine.adapters.neo4j.schema import SCHEMA, server_version
from engine.domain.definition import Compensation, DefinitionVersion, Fallback, Step, WorkflowDefinition
from engine.errors import StoreError
from engine.ports.agent_graph import AgentUse
from tests.contract.samples import NOW, agent, definition, handoff, seconds
from tests.servers import UnavailableError, are_required, free_port, neo4j

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from tests.servers import RunningServer

PASSWORD = "right-horse"
COMMIT = b"\x00\x02\xb0\x12\x00\x00"
"""The message as the driver sends it: a chunk of two bytes, then the end of the message."""
SCANS = (
    "AllNodesScan",
    "NodeByLabelScan",
    "UnionNodeByLabelsScan",
    "RelationshipTypeScan",
    "AllRelationshipsScan",
    "NodeIndexScan",
    "RelationshipIndexScan",
)


@pytest.fixture(name="server")
def server_of_all(neo4j_server: RunningServer) -> RunningServer:
    return neo4j_server


@pytest.fixture
async def database(server: RunningServer) -> AsyncIterator[Neo4jDatabase]:
    database = Neo4jDatabase(server.uri)
    await database.write(lambda tx: rows_of(tx, "MATCH (n) DETACH DELETE n"))
    yield database
    await database.aclose()


@asynccontextmanager
async def another(uri: str, **options: Any) -> AsyncGenerator[Neo4jDatabase]:
    database = Neo4jDatabase(uri, **options)
    try:
        yield database
    finally:
        await database.aclose()


def definitions_on(database: Neo4jDatabase) -> Neo4jDefinitionStore:
    return Neo4jDefinitionStore(database, Codec())


async def ask(database: Neo4jDatabase, statement: str, **parameters: object) -> list[dict[str, Any]]:
    rows = await database.write(lambda tx: rows_of(tx, statement, **parameters))
    return [row.data() for row in rows]


def flow(
    definition_id: str,
    steps: list[Step],
    version: int = 1,
    tags: list[str] | None = None,
    final_steps: Sequence[Step] = (),
) -> DefinitionVersion:
    return DefinitionVersion(
        definition_id=definition_id,
        version=version,
        content_hash="sha256:x",
        definition=WorkflowDefinition(name="Flow", steps=steps, final_steps=[*final_steps], tags=tags or []),
        created_at=NOW,
        updated_at=NOW,
    )


# The schema and the plans.


async def test_the_first_call_makes_the_schema_and_engines_may_do_so_at_once(server: RunningServer) -> None:
    async with another(server.uri) as first, another(server.uri) as second:
        for name, statement in SCHEMA.items():
            kind = "CONSTRAINT" if statement.startswith("CREATE CONSTRAINT") else "INDEX"
            await ask(first, f"DROP {kind} {name} IF EXISTS")
        async with another(server.uri) as third:
            await asyncio.gather(
                definitions_on(third).get_definition("x"),
                second.make_schema(),
                first.make_schema(),
                second.make_schema(),
            )
        shown = await ask(first, "SHOW INDEXES YIELD name, state WHERE name STARTS WITH 'baton_' RETURN name, state")
        assert {row["name"]: row["state"] for row in shown} == dict.fromkeys(SCHEMA, "ONLINE")
        unique = await ask(first, "SHOW CONSTRAINTS YIELD name WHERE name STARTS WITH 'baton_' RETURN name")
        assert {row["name"] for row in unique} == {
            name for name, statement in SCHEMA.items() if statement.startswith("CREATE CONSTRAINT")
        }
        await first.make_schema()


def statements() -> Iterator[tuple[str, str]]:
    for module in (definition_store, agent_store, handoff_store, agent_graph):
        for name, value in vars(module).items():
            if isinstance(value, str) and value.startswith(("MATCH", "MERGE", "UNWIND", "FOREACH")):
                yield f"{module.__name__.rpartition('.')[2]}.{name}", value


PARAMETERS: dict[str, object] = {
    "tenant": "default", "id": "flow-1", "ids": ["a"], "status": "active", "at": "~", "after_id": "", "count": 4,
    "tag": "t", "other_tags": ["u"], "tags": ["t"], "above": 0, "below": 9, "version": 1, "token": "t", "body": b"",
    "created_at": "2026", "agent_ids": ["a"],
    "steps": [{
        "step_id": "s", "position": 0, "agent_id": "a", "callees": [{"agent_id": "a", "is_clean_up": False}],
        "fallbacks": [{"agent_id": "a", "position": 0}],
    }],
    "pairs": [["s", "s"]], "capability": "c", "others": ["d"],
    "capabilities": ["c"], "source_agent_id": "a", "target_agent_id": "a", "definition_id": "flow-1", "after": "",
    "is_after_inclusive": True, "first": "", "last": "z",
}  # fmt: skip


def operators(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {**plan, "operatorType": plan["operatorType"].partition("@")[0]}
    for child in plan.get("children", ()):
        yield from operators(child)


async def plan_of(database: Neo4jDatabase, statement: str) -> list[dict[str, Any]]:
    async def explain(tx: Any) -> Any:
        return (await (await tx.run(f"EXPLAIN {statement}", PARAMETERS)).consume()).plan

    return list(operators(await database.write(explain)))


async def test_there_is_a_plan_for_every_statement_that_is_read() -> None:
    known = {statement for _, statement in statements()}
    listed = [
        s for module in (definition_store, agent_store, handoff_store, agent_graph) for s in module.READ_STATEMENTS
    ]
    assert known.issuperset(listed)
    assert len(known) > len(listed)


@pytest.mark.parametrize("number", range(len(list(statements()))))
async def test_no_statement_scans(database: Neo4jDatabase, number: int) -> None:
    name, statement = list(statements())[number]
    plan = await plan_of(database, statement)
    assert [step["operatorType"] for step in plan if step["operatorType"].endswith(SCANS)] == [], name
    if "._LIST" in name and not name.endswith(("_AMONG", "_VERSIONS")):
        assert "PartialTop" in {step["operatorType"] for step in plan}, "a page would sort all that match"


async def test_a_page_touches_its_own_rows_only(database: Neo4jDatabase) -> None:
    store = definitions_on(database)
    for number in range(60):
        tags = ["common", "even"] if number % 2 == 0 else ["common"]
        await store.insert_definition(definition(f"flow-{number:02}", tags=tags, created_at=NOW + seconds(number)))

    async def wide(statement: str, **parameters: object) -> list[tuple[object, ...]]:
        """The operators that saw more rows than a page needs, with what they did: the planner is free to change."""

        async def profile(tx: Any) -> Any:
            return (await (await tx.run(f"PROFILE {statement}", {**PARAMETERS, **parameters})).consume()).profile

        steps = list(operators(await database.read(profile)))
        return [(step["operatorType"], step["rows"], step["args"].get("Details")) for step in steps if step["rows"] > 6]

    at = "2026-03-01T12:00:30.000000+00:00"
    assert await wide(definition_store._LIST, at=at, after_id="flow-30") == []
    assert await wide(definition_store._LIST_TAGGED, at=at, after_id="flow-30", tag="common", other_tags=[]) == []


# The graph as others see it.


async def test_the_graph_shows_the_newest_version_and_keeps_the_older_bodies(database: Neo4jDatabase) -> None:
    store = definitions_on(database)
    first = flow("flow", [Step(id="a", agent_id="x"), Step(id="b", agent_id="y", depends_on=["a"])], tags=["one"])
    second = flow(
        "flow",
        [
            Step(
                id="a", agent_id="x", fallback=[Fallback(agent_id="z"), Fallback(agent_id="y"), Fallback(agent_id="z")]
            ),
            Step(id="c", agent_id="x", depends_on=["a", "a"], compensate=Compensation(agent_id="y")),
            Step(id="d", type="transform", transform={}, depends_on=["c", "a"]),
        ],
        version=2,
        tags=["two", "two"],
        final_steps=[Step(id="f", agent_id="z")],
    )
    assert await store.insert_definition(first)
    assert await store.append_version(second)
    shown = await ask(
        database,
        """MATCH (:Workflow {id: 'flow'})-[:HAS_VERSION]->(v)-[:HAS_STEP]->(s)
        RETURN v.version AS version, s.step_id AS step, s.agent_id AS agent,
            COLLECT { MATCH (s)-[u:USES_AGENT]->(a) RETURN [a.id, u.is_clean_up] ORDER BY a.id } AS uses,
            COLLECT { MATCH (s)-[:DEPENDS_ON]->(d) RETURN d.step_id ORDER BY d.step_id } AS depends_on,
            COLLECT { MATCH (s)-[f:FALLS_BACK_TO]->(a) RETURN a.id ORDER BY f.position } AS fallbacks
        ORDER BY s.position""",
    )
    main, undo = False, True
    assert [tuple(row.values()) for row in shown] == [
        (2, "a", "x", [["x", main]], [], ["z", "y", "z"]),
        (2, "c", "x", [["x", main], ["y", undo]], ["a"], []),
        (2, "d", None, [], ["a", "c"], []),
        (2, "f", "z", [["z", undo]], [], []),
    ]
    assert await ask(database, "MATCH (s:Step) RETURN count(s) AS n") == [{"n": 4}]
    assert await ask(database, "MATCH (:Workflow)-[:TAGGED]->(t) RETURN t.name AS tag") == [{"tag": "two"}]
    assert await store.get_definition("flow", 1) == first


async def test_the_graph_of_an_earlier_schema_is_brought_up(database: Neo4jDatabase, server: RunningServer) -> None:
    """As it was when steps had one fallback, and the index was on the steps."""
    earlier = flow("flow", [Step(id="a", agent_id="x", fallback=Fallback(agent_id="y")), Step(id="b", agent_id="x")])
    await definitions_on(database).insert_definition(earlier)
    await ask(database, "MATCH ()-[u:USES_AGENT|FALLS_BACK_TO]->() SET u = {}")
    await ask(database, "DROP INDEX baton_use_of_agent")
    await ask(database, "CREATE INDEX baton_step_by_agent FOR (s:Step) ON (s.tenant, s.agent_id, s.workflow_id)")
    assert await uses_of(database, "y") == []
    async with another(server.uri) as upgraded:
        assert await uses_of(upgraded, "x") == [AgentUse("flow", "agent", ("a", "b"))]
        assert await uses_of(upgraded, "y") == [AgentUse("flow", "fallback", ("a",))]
        names = await ask(upgraded, "SHOW INDEXES YIELD name WHERE name STARTS WITH 'baton_step' RETURN name")
        assert [row["name"] for row in names] == ["baton_step"]


async def test_agents_that_are_only_named_are_not_registered(database: Neo4jDatabase) -> None:
    agents = Neo4jAgentStore(database, Codec())
    await definitions_on(database).insert_definition(flow("flow", [Step(id="a", agent_id="x")]))
    await Neo4jHandoffStore(database, Codec()).insert_handoff(handoff("h", "x", "y"))
    assert await agents.get_agents(["x", "y"]) == {}
    assert (await agents.list_agents(capabilities=[], status=None, limit=5, after=None)).items == []
    assert await agents.append_agent(agent("x", 1)) is False
    assert await agents.insert_agent(agent("x", capabilities=["c"])) is True
    assert (await agents.list_agents(capabilities=["c"], status=None, limit=5, after=None)).items == [
        agent("x", capabilities=["c"])
    ]
    assert [use.definition_id for use in (await uses_of(database, "x"))] == ["flow"]


async def uses_of(database: Neo4jDatabase, agent_id: str) -> list[Any]:
    return (await Neo4jAgentGraph(database, Codec()).list_agent_uses(agent_id, limit=10, after=None)).items


async def test_a_definition_of_a_thousand_steps_is_stored_in_time(database: Neo4jDatabase) -> None:
    store = definitions_on(database)
    steps = [
        Step(id=f"s{number}", agent_id=f"agent-{number % 50}", depends_on=[f"s{number - 1}"] if number else [])
        for number in range(1000)
    ]
    large = flow("large", steps)
    assert await store.insert_definition(large)
    assert await store.append_version(flow("large", steps, version=2))
    assert await store.get_definition("large", 1) == large
    assert len((await uses_of(database, "agent-7"))[0].step_ids) == 20


# Races.


async def test_engines_that_race_agree_on_one_writer(database: Neo4jDatabase, server: RunningServer) -> None:
    async with another(server.uri) as second:
        stores = [definitions_on(database), definitions_on(second)]
        for version in range(1, 8):
            attempts = [
                definition("flow", version, name=f"By {number}", updated_at=NOW + seconds(number))
                for number in range(10)
            ]
            calls = [
                (stores[n % 2].insert_definition if version == 1 else stores[n % 2].append_version)(attempt)
                for n, attempt in enumerate(attempts)
            ]
            answers = await asyncio.gather(*calls)
            assert answers.count(True) == 1
            assert await stores[version % 2].get_definition("flow") == attempts[answers.index(True)]
        assert (await asyncio.gather(*(stores[n % 2].archive_definition("flow", NOW) for n in range(10)))).count(
            True
        ) == 1
    versions = await stores[0].list_versions("flow", limit=20, after=None)
    assert [version.version for version in versions.items] == [7, 6, 5, 4, 3, 2, 1]
    assert await ask(database, "MATCH (s:Step) RETURN count(s) AS n") == [{"n": 1}]


async def test_writes_that_share_agents_and_tags_do_not_wait_for_each_other_for_ever(
    database: Neo4jDatabase,
    server: RunningServer,
) -> None:
    names = [f"n{number}" for number in range(8)]

    async def write(number: int, on: Neo4jDatabase) -> list[bool]:
        order = names[number % 8 :] + names[: number % 8]
        if number % 2:
            order.reverse()
        steps = [Step(id=name, agent_id=name, fallback=Fallback(agent_id=order[0])) for name in order]
        return [
            await definitions_on(on).insert_definition(flow(f"flow-{number}", steps, tags=order)),
            await Neo4jHandoffStore(on, Codec()).insert_handoff(handoff(f"h{number}", order[0], order[1])),
            await Neo4jAgentStore(on, Codec()).insert_agent(agent(f"agent-{number}", capabilities=order)),
        ]

    async with another(server.uri) as second:
        answers = await asyncio.gather(*(write(number, (database, second)[number % 2]) for number in range(16)))
    assert answers == [[True] * 3] * 16


# A write whose answer is lost.


class Interceptor:
    """A proxy that can cut a connection behind a commit, before its answer, or change what the server says."""

    def __init__(self, uri: str, change: Callable[[bytes], bytes] = bytes) -> None:
        self._target = urlsplit(uri)
        self._change = change
        self._links: set[asyncio.Task[None]] = set()
        self.cuts_left = 0
        self.uri = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.uri = f"bolt://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        up_reader, up_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        cut = asyncio.Event()

        async def ask() -> None:
            while data := await reader.read(65536):
                if self.cuts_left and COMMIT in data:
                    self.cuts_left -= 1
                    cut.set()
                up_writer.write(data)

        async def answer() -> None:
            while (data := await up_reader.read(65536)) and not cut.is_set():
                writer.write(self._change(data))

        pumps = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.transport.abort()
            up_writer.transport.abort()
            self._links.discard(task)


async def test_a_write_whose_answer_is_lost_is_done_once_and_true(
    database: Neo4jDatabase, server: RunningServer
) -> None:
    async with Interceptor(server.uri) as proxy, another(proxy.uri) as cut:
        definitions, agents = definitions_on(cut), Neo4jAgentStore(cut, Codec())
        handoffs = Neo4jHandoffStore(cut, Codec())
        await definitions.get_definition("warm")
        for call in (
            lambda: definitions.insert_definition(definition(tags=["x"])),
            lambda: definitions.append_version(definition(version=2, tags=["y"])),
            lambda: definitions.archive_definition("flow", NOW),
            lambda: agents.insert_agent(agent(capabilities=["x"])),
            lambda: agents.append_agent(agent(version=2, capabilities=["y"])),
            lambda: handoffs.insert_handoff(handoff()),
        ):
            proxy.cuts_left = 1
            assert await call() is True
            assert proxy.cuts_left == 0
        assert await definitions.archive_definition("flow", NOW) is False
    counted = await ask(
        database,
        """RETURN COUNT { (:Workflow)-[:HAS_VERSION]->() } AS versions, COUNT { (:Workflow)-[:TAGGED]->() } AS tags,
        COUNT { (:Step) } AS steps, COUNT { (:Agent)-[:HAS_VERSION]->() } AS agent_versions,
        COUNT { (:Agent)-[:HAS_CAPABILITY]->() } AS capabilities, COUNT { ()-[:HANDS_OFF_TO]->() } AS handoffs""",
    )
    assert counted == [{"versions": 2, "tags": 1, "steps": 1, "agent_versions": 2, "capabilities": 1, "handoffs": 1}]


async def test_a_connection_that_always_breaks_behind_the_commit_is_an_outage(server: RunningServer) -> None:
    async with Interceptor(server.uri) as proxy, another(proxy.uri) as cut:
        store = definitions_on(cut)
        await store.get_definition("warm")
        proxy.cuts_left = 100
        with pytest.raises(StoreError, match="whether it has written is not known"):
            await store.insert_definition(definition("lost"))
        proxy.cuts_left = 0
        assert await store.insert_definition(definition("lost")) is True


async def test_the_same_record_again_is_the_same_write(database: Neo4jDatabase) -> None:
    store = definitions_on(database)
    assert await store.insert_definition(definition()) is True
    assert await store.append_version(definition(version=2)) is True
    assert await store.insert_definition(definition()) is True
    assert await store.append_version(definition(version=2)) is True
    assert await store.insert_definition(definition(updated_at=NOW + seconds(1))) is False
    assert await store.append_version(definition(version=2, updated_at=NOW + seconds(1))) is False
    assert (await store.get_definition("flow")) == definition(version=2)


# Connections.


async def test_making_and_closing_one_connects_to_nothing() -> None:
    database = Neo4jDatabase(f"bolt://127.0.0.1:{free_port()}")
    await database.aclose()
    await database.aclose()
    with pytest.raises(StoreError, match="closed by this process; make a new engine"):
        await definitions_on(database).get_definition("flow")


async def test_never_more_connections_than_the_pool_says(database: Neo4jDatabase, server: RunningServer) -> None:
    counted = "CALL dbms.listConnections() YIELD userAgent, clientAddress RETURN collect(clientAddress) AS all"
    before = set((await ask(database, counted))[0]["all"])
    most = 0
    async with another(server.uri, pool_size=3) as small:
        store = definitions_on(small)

        async def use(number: int) -> None:
            await store.insert_definition(definition(f"flow-{number}"))
            await store.get_definition(f"flow-{number}")

        calls = asyncio.gather(*(use(number) for number in range(30)))
        while not calls.done():
            most = max(most, len(set((await ask(database, counted))[0]["all"]) - before))
        await calls
        health = await store.check_health()
        assert (health.backend, health.version) == ("neo4j", server.version)
        assert health.detail == "0 of 3 connections in use"
    assert 1 <= most <= 3
    async with asyncio.timeout(10):
        while set((await ask(database, counted))[0]["all"]) - before:
            await asyncio.sleep(0.05)


async def test_callers_that_go_away_leave_no_connection_behind(server: RunningServer) -> None:
    async with another(server.uri, pool_size=2) as small:
        store = definitions_on(small)
        await store.insert_definition(definition("stays"))
        for milliseconds in range(0, 30, 2):
            calls = [asyncio.create_task(store.append_version(definition("stays", 2))) for _ in range(3)]
            await asyncio.sleep(milliseconds / 1000)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        found = await asyncio.gather(*(store.get_definition("stays", 1) for _ in range(10)))
        assert found == [definition("stays")] * 10
        assert (await store.check_health()).detail == "0 of 2 connections in use"


async def test_the_routing_scheme_works_too(server: RunningServer) -> None:
    async with another(server.uri.replace("bolt://", "neo4j://")) as routed:
        assert await definitions_on(routed).get_definition("nothing") is None


def _texts(error: StoreError) -> str:
    return f"{error} {error.details}"


async def test_a_dead_port_is_told_in_time_and_without_secrets() -> None:
    place = f"127.0.0.1:{free_port()}"
    async with another(f"bolt://{place}", user="me", password="hush-hush") as dead:
        began = time.monotonic()
        with pytest.raises(StoreError, match=rf"Neo4j at {place} \(neo4j_uri\) can't be reached; start it") as told:
            await definitions_on(dead).get_definition("flow")
        assert time.monotonic() - began < 5
        assert "hush" not in _texts(told.value)
        assert told.value.details["reason"] == "ServiceUnavailable"


async def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(keep, "127.0.0.1", 0) as silent:
        place = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        async with another(f"bolt://{place}") as hung:
            began = time.monotonic()
            with pytest.raises(StoreError, match=place):
                await definitions_on(hung).insert_definition(definition())
            assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("bolt://me:hush-hush@127.0.0.1:1", r"127.0.0.1:1 \(neo4j_uri\).* user and password in neo4j_user"),
        ("bolt://127.0.0.1:hush-hush", "the address .neo4j_uri. can't be used as it is written"),
        ("ftp://hush-hush", "can't be used as it is written; correct neo4j_uri"),
        ("bolt://no-such-host.invalid", r"no-such-host.invalid:7687 \(neo4j_uri\) can't be reached"),
    ],
)
async def test_an_address_that_is_none_is_told_without_what_it_holds(uri: str, says: str) -> None:
    async with another(uri) as wrong:
        with pytest.raises(StoreError, match=says) as told:
            await definitions_on(wrong).get_definition("flow")
        assert "hush-hush" not in _texts(told.value).replace("at hush-hush:7687", "")


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("Neo4j/5.26.30", ("5.26.30", True)),
        ("Neo4j/5.7.0", ("5.7.0", True)),
        ("Neo4j/5.6.0", ("5.6.0", False)),
        ("Neo4j/4.4.44", ("4.4.44", False)),
        ("Neo4j/2025.10.1", ("2025.10.1", True)),
        ("Neo4j/dev", ("dev", False)),
    ],
)
def test_the_servers_version_is_read(agent: str, expected: tuple[str, bool]) -> None:
    assert server_version(agent) == expected


async def test_an_older_server_is_refused(server: RunningServer) -> None:
    def older(data: bytes) -> bytes:
        return data.replace(b"Neo4j/5.26.", b"Neo4j/4.44.")

    async with Interceptor(server.uri, older) as proxy, another(proxy.uri) as old:
        for call in (definitions_on(old).get_definition("x"), old.make_schema(), old.check_health()):
            with pytest.raises(StoreError, match=r"is version 4\.44\.\d+; Baton needs 5\.7 or newer"):
                await call


# A server of the tests' own, which comes and goes.


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Any]]:
    try:
        neo4j.install()
    except UnavailableError as error:
        if are_required():
            raise
        pytest.skip(f"neo4j is not available: {error}")
    folder: Path = tmp_path_factory.mktemp("guarded-neo4j")
    state: dict[str, Any] = {"folder": folder, "port": free_port()}
    state["server"] = await neo4j.start(folder, PASSWORD, state["port"])
    yield state
    await state["server"].stop()


async def test_a_restart_under_a_live_driver_costs_no_call_after_it(guarded: dict[str, Any]) -> None:
    async with another(guarded["server"].uri, user=neo4j.USER, password=PASSWORD) as database:
        store = definitions_on(database)
        assert await store.insert_definition(definition("kept"))
        # All connections of the pool are there, and all will be dead.
        await asyncio.gather(*(store.get_definition("kept") for _ in range(30)))
        await guarded["server"].stop()
        with pytest.raises(StoreError, match="can't be reached"):
            await store.get_definition("kept")
        guarded["server"] = await neo4j.start(guarded["folder"], PASSWORD, guarded["port"])
        assert await store.get_definition("kept") == definition("kept")
        found = await asyncio.gather(*(store.get_definition("kept") for _ in range(30)))
        assert found == [definition("kept")] * 30
        # A server that has just started plans its first write for longer than a write may take on a busy machine.
        for _ in range(5):
            with suppress(StoreError):
                assert await store.append_version(definition("kept", 2))
                break
        assert await store.get_definition("kept") == definition("kept", 2)


async def test_a_wrong_password_names_the_settings_and_not_the_secret(guarded: dict[str, Any]) -> None:
    uri = guarded["server"].uri
    async with another(uri, user=neo4j.USER, password="wrong-horse") as wrong:
        for _ in range(2):
            with pytest.raises(StoreError, match="refused the log-in; correct neo4j_user and neo4j_password") as told:
                await definitions_on(wrong).get_definition("flow")
            assert "horse" not in _texts(told.value)
        with pytest.raises(StoreError, match=r"too many wrong passwords|refused the log-in"):
            for _ in range(5):
                await definitions_on(wrong).get_definition("flow")
    async with another(uri) as without:
        with pytest.raises(StoreError, match="neo4j_password"):
            await definitions_on(without).get_definition("flow")
