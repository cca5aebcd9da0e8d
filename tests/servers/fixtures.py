"""The servers as fixtures of a session: skipped with the reason where they can't be had, unless they are required."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest
from neo4j import GraphDatabase
from pymongo import MongoClient
from redis import Redis

from engine.adapters.codec import Codec
from engine.adapters.neo4j.agent_graph import Neo4jAgentGraph
from engine.adapters.neo4j.agent_store import Neo4jAgentStore
from engine.adapters.neo4j.database import Neo4jDatabase
from engine.adapters.neo4j.definition_store import Neo4jDefinitionStore
from engine.adapters.neo4j.handoff_store import Neo4jHandoffStore
from engine.errors import StoreError
from tests.contract import samples
from tests.servers import RunningServer, UnavailableError, are_required, pinecone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from types import ModuleType


EMBEDDED = "embedded"
ON_BOTH_STORES = pytest.mark.parametrize("store_settings", [EMBEDDED, "four stores"], indirect=True)
"""On a module: its tests run on the embedded stores and on the four servers."""

_databases = count(1)
_WARM_TRIES = 5


@asynccontextmanager
async def _running(module: ModuleType, factory: pytest.TempPathFactory) -> AsyncGenerator[RunningServer]:
    try:
        server: RunningServer = await module.start(factory.mktemp(module.__name__.rpartition(".")[2]))
    except UnavailableError as error:
        if are_required():
            raise
        pytest.skip(f"{module.NAME} is not available: {error}")
    yield server
    await server.stop()


async def _warm_up(uri: str) -> None:
    """Let a new server plan what it will be asked: on a busy machine the first time takes longer than a call may."""
    database, codec = Neo4jDatabase(uri), Codec()
    definitions, agents = Neo4jDefinitionStore(database, codec), Neo4jAgentStore(database, codec)
    handoffs, graph = Neo4jHandoffStore(database, codec), Neo4jAgentGraph(database, codec)
    first = samples.definition()
    asked: list[Callable[[], Awaitable[object]]] = [
        database.make_schema,
        lambda: agents.insert_agent(samples.agent()),
        lambda: agents.append_agent(samples.agent(version=2)),
        lambda: agents.get_agents(["agent-a"]),
        lambda: agents.list_agents(capabilities=[], status=None, limit=2, after=None),
        lambda: definitions.insert_definition(first),
        lambda: definitions.append_version(samples.definition(version=2)),
        lambda: definitions.get_definition("flow"),
        lambda: definitions.get_definition("flow", 1),
        lambda: definitions.list_definitions(tags=[], status="active", limit=2, after=None),
        lambda: definitions.list_versions("flow", limit=2, after=None),
        lambda: handoffs.insert_handoff(samples.handoff()),
        lambda: handoffs.list_handoffs_among(["agent-a"], "flow"),
        lambda: graph.list_agent_uses("agent-a", limit=2, after=None),
        lambda: definitions.archive_definition("flow", first.created_at),
    ]
    for ask in asked:
        for _ in range(_WARM_TRIES):
            try:
                await ask()
                break
            except StoreError:
                await asyncio.sleep(1)
    await database.aclose()


@pytest.fixture(scope="session")
async def redis_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningServer]:
    from tests.servers import redis

    async with _running(redis, tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="session")
async def neo4j_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningServer]:
    from tests.servers import neo4j

    async with _running(neo4j, tmp_path_factory) as server:
        await _warm_up(server.uri)
        yield server


@pytest.fixture(scope="session")
async def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningServer]:
    from tests.servers import mongodb

    async with _running(mongodb, tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="session")
async def pinecone_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningServer]:
    from tests.servers import pinecone

    async with _running(pinecone, tmp_path_factory) as server:
        yield server


@pytest.fixture
def store_settings(request: pytest.FixtureRequest) -> Generator[dict[str, object]]:
    """Settings of the stores: none for the embedded ones, or those of the four servers; see ``ON_BOTH_STORES``."""
    if getattr(request, "param", EMBEDDED) == EMBEDDED:
        yield {}
        return
    uris = {name: request.getfixturevalue(f"{name}_server").uri for name in ("neo4j", "mongo", "redis", "pinecone")}
    with GraphDatabase.driver(uris["neo4j"]) as driver:
        driver.execute_query("MATCH (n) DETACH DELETE n")
    with Redis.from_url(uris["redis"]) as redis:
        redis.flushdb()
    with MongoClient[dict[str, object]](uris["mongo"]) as client:
        name = f"baton-test-{next(_databases)}-{os.getpid()}"
        yield {
            "neo4j_uri": uris["neo4j"],
            "mongo_uri": urlunsplit(urlsplit(uris["mongo"])._replace(path=f"/{name}")),
            "redis_uri": uris["redis"],
            "pinecone_api_key": pinecone.API_KEY,
            "pinecone_host": uris["pinecone"],
        }
        client.drop_database(name)
