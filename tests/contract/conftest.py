"""Which adapters each port's suite runs over: a new one is a line in ``ADAPTERS``, with the server that it needs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import pytest

from engine.adapters.codec import Codec
from engine.adapters.hashing_embedder import HashingEmbedder
from engine.adapters.mongodb.artifact_store import MongoArtifactStore
from engine.adapters.mongodb.connection import MongoDatabase
from engine.adapters.mongodb.context_store import MongoContextStore
from engine.adapters.mongodb.execution_store import MongoExecutionStore
from engine.adapters.neo4j.agent_graph import Neo4jAgentGraph
from engine.adapters.neo4j.agent_store import Neo4jAgentStore
from engine.adapters.neo4j.database import Neo4jDatabase, rows_of
from engine.adapters.neo4j.definition_store import Neo4jDefinitionStore
from engine.adapters.neo4j.handoff_store import Neo4jHandoffStore
from engine.adapters.openai_embedder import OpenAIEmbedder
from engine.adapters.pinecone import PineconeVectorIndex
from engine.adapters.pinecone_embedder import PineconeEmbedder
from engine.adapters.redis.connection import RedisDatabase
from engine.adapters.redis.shared_cache import RedisSharedCache
from engine.adapters.redis.state_store import RedisStateStore
from engine.adapters.sqlite.agent_graph import SqliteAgentGraph
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.artifact_store import SqliteArtifactStore
from engine.adapters.sqlite.context_store import SqliteContextStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.handoff_store import SqliteHandoffStore
from engine.adapters.sqlite.schema import LIVE_STATE, VECTORS
from engine.adapters.sqlite.state_store import SqliteStateStore
from engine.adapters.sqlite.vector_index import SqliteVectorIndex
from engine.testing.model_answers import ModelAnswer
from engine.testing.model_stub import ModelStub
from tests.servers import pinecone
from tests.servers.mongodb import scratch_database

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.servers import RunningServer

    OpenStore = Callable[[Path, RunningServer | None], AbstractAsyncContextManager[Any]]
    Adapter = tuple[OpenStore, str | None]
    """How to open it, and the fixture of the server that it is opened on."""

_indexes = count(1)


@dataclass(frozen=True)
class GraphStores:
    """A graph and the stores that it asks."""

    graph: Any
    definitions: Any
    agents: Any
    handoffs: Any


def together(*kinds: type[Any]) -> Any:
    return lambda database, codec: GraphStores(*(kind(database, codec) for kind in kinds))


def embedded(store: Callable[..., Any]) -> Adapter:
    @asynccontextmanager
    async def open_store(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
        database = SqliteDatabase(folder / "baton.db")
        yield store(database, Codec())
        await database.aclose()

    return open_store, None


def embedded_state(ttl: timedelta) -> Adapter:
    @asynccontextmanager
    async def open_store(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
        database = SqliteDatabase(folder / "live.db", LIVE_STATE)
        yield SqliteStateStore(database, Codec(), ttl)
        await database.aclose()

    return open_store, None


def on_neo4j(store: Callable[..., Any]) -> Adapter:
    @asynccontextmanager
    async def open_store(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
        assert server is not None
        database = Neo4jDatabase(server.uri)
        await database.write(lambda tx: rows_of(tx, "MATCH (n) DETACH DELETE n"))
        yield store(database, Codec())
        await database.aclose()

    return open_store, "neo4j_server"


def on_mongo(store: Callable[..., Any], driver: Literal["motor", "pymongo"]) -> Adapter:
    @asynccontextmanager
    async def open_store(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
        assert server is not None
        # Generous, since a busy machine is no concern of the contract.
        async with scratch_database(server.uri) as uri:
            database = MongoDatabase(uri, driver, deadline=timedelta(seconds=10))
            yield store(database, Codec())
            await database.aclose()

    return open_store, "mongo_server"


def on_redis(make: Callable[[RedisDatabase], Any]) -> Adapter:
    @asynccontextmanager
    async def open_store(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
        assert server is not None
        # Generous, since a busy machine is no concern of the contract.
        database = RedisDatabase(server.uri, pool_size=10, deadline=timedelta(seconds=10))
        await database.ask(("FLUSHDB",))
        yield make(database)
        await database.aclose()

    return open_store, "redis_server"


def redis_state(ttl: timedelta) -> Adapter:
    return on_redis(lambda database: RedisStateStore(database, Codec(), ttl))


@asynccontextmanager
async def embedded_vectors(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
    database = SqliteDatabase(folder / "vectors.db", VECTORS)
    yield SqliteVectorIndex(database)
    await database.aclose()


@asynccontextmanager
async def pinecone_vectors(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
    assert server is not None
    name = f"index-{next(_indexes)}"
    pinecone.control(server.uri, "indexes", name=name, dimension=8)
    index = PineconeVectorIndex(pinecone.API_KEY, name, None, dimension=8, control_host=server.uri)
    yield index
    await index.aclose()


@asynccontextmanager
async def hashing_embedder(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
    yield HashingEmbedder()


async def _hashed(body: dict[str, Any]) -> ModelAnswer:
    """Vectors in which order and signs count too, which those of the stub itself leave out."""
    made = await HashingEmbedder().embed_texts(body["input"], "document")
    data = [{"index": place, "embedding": [5 * value for value in values]} for place, values in enumerate(made)]
    return ModelAnswer(body={"object": "list", "data": data[::-1], "model": body["model"]})


@asynccontextmanager
async def openai_embedder(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
    with ModelStub(embeddings=_hashed, api_key="the-key") as stub:
        embedder = OpenAIEmbedder("a-model", "the-key", stub.base_url, 512)
        yield embedder
        await embedder.aclose()


@asynccontextmanager
async def pinecone_embedder(folder: Path, server: RunningServer | None) -> AsyncGenerator[Any]:
    assert server is not None
    embedder = PineconeEmbedder(pinecone.API_KEY, control_host=server.uri)
    yield embedder
    await embedder.aclose()


ADAPTERS: dict[str, dict[str, Adapter]] = {
    "definition_store": {"neo4j": on_neo4j(Neo4jDefinitionStore), "sqlite": embedded(SqliteDefinitionStore)},
    "agent_store": {"neo4j": on_neo4j(Neo4jAgentStore), "sqlite": embedded(SqliteAgentStore)},
    "handoff_store": {"neo4j": on_neo4j(Neo4jHandoffStore), "sqlite": embedded(SqliteHandoffStore)},
    "agent_graph": {
        "neo4j": on_neo4j(together(Neo4jAgentGraph, Neo4jDefinitionStore, Neo4jAgentStore, Neo4jHandoffStore)),
        "sqlite": embedded(together(SqliteAgentGraph, SqliteDefinitionStore, SqliteAgentStore, SqliteHandoffStore)),
    },
    "execution_store": {
        "mongodb-motor": on_mongo(MongoExecutionStore, "motor"),
        "mongodb-pymongo": on_mongo(MongoExecutionStore, "pymongo"),
        "sqlite": embedded(SqliteExecutionStore),
    },
    "artifact_store": {
        "mongodb-motor": on_mongo(MongoArtifactStore, "motor"),
        "mongodb-pymongo": on_mongo(MongoArtifactStore, "pymongo"),
        "sqlite": embedded(SqliteArtifactStore),
    },
    "context_store": {
        "mongodb-motor": on_mongo(MongoContextStore, "motor"),
        "mongodb-pymongo": on_mongo(MongoContextStore, "pymongo"),
        "sqlite": embedded(SqliteContextStore),
    },
    "lexical_store": {"sqlite": embedded(SqliteContextStore)},
    "state_store": {"sqlite": embedded_state(timedelta(hours=1)), "redis": redis_state(timedelta(hours=1))},
    "fleeting_state_store": {
        "sqlite": embedded_state(timedelta(milliseconds=600)),
        "redis": redis_state(timedelta(milliseconds=600)),
    },
    "shared_cache": {"redis": on_redis(RedisSharedCache)},
    "vector_index": {"sqlite": (embedded_vectors, None), "pinecone": (pinecone_vectors, "pinecone_server")},
    "embedder": {
        "hashing": (hashing_embedder, None),
        "openai": (openai_embedder, None),
        "pinecone": (pinecone_embedder, "pinecone_server"),
    },
}


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> dict[str, RunningServer]:
    """Those that the adapters chosen for this test need, by fixture; asked for here, where no loop runs yet."""
    chosen = [ADAPTERS[port][name] for port, name in request.node.callspec.params.items() if port in ADAPTERS]
    return {server: request.getfixturevalue(server) for _, server in chosen if server is not None}


def _port(port: str) -> Any:
    @pytest.fixture(name=port, params=sorted(ADAPTERS[port]))
    async def opened(
        request: pytest.FixtureRequest, tmp_path: Path, servers: dict[str, RunningServer]
    ) -> AsyncGenerator[Any]:
        open_store, server = ADAPTERS[port][request.param]
        async with open_store(tmp_path, None if server is None else servers[server]) as store:
            yield store

    return opened


definition_store = _port("definition_store")
agent_store = _port("agent_store")
handoff_store = _port("handoff_store")
agent_graph = _port("agent_graph")
execution_store = _port("execution_store")
artifact_store = _port("artifact_store")
context_store = _port("context_store")
lexical_store = _port("lexical_store")
state_store = _port("state_store")
fleeting_state_store = _port("fleeting_state_store")
shared_cache = _port("shared_cache")
vector_index = _port("vector_index")
embedder = _port("embedder")
