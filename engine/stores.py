"""Which adapter is behind each port: a store with a setting of its own is used, every other one is embedded.

Each driver is imported inside the branch that chooses it, so that a run on embedded stores loads none. Making the
stores connects to nothing; every one opens at its first use, and there is never a silent way from one to another.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from engine.adapters.caching import CachedAgentStore, CachedDefinitionStore, CachedHandoffStore, ReadCache
from engine.adapters.codec import Codec
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import SecretStr

    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.ports.agent_graph import AgentGraph
    from engine.ports.agent_store import AgentStore
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.context_store import ContextStore
    from engine.ports.definition_store import DefinitionStore
    from engine.ports.embedder import Embedder
    from engine.ports.execution_store import ExecutionAnalytics, ExecutionStore
    from engine.ports.handoff_store import HandoffStore
    from engine.ports.health import HealthCheck
    from engine.ports.lexical_index import LexicalIndex
    from engine.ports.shared_cache import SharedCache
    from engine.ports.state_store import StateStore
    from engine.ports.vector_index import VectorIndex
    from engine.settings import EngineSettings

__all__ = ["EMBEDDED_FILE", "Stores", "open_stores"]

EMBEDDED_FILE: Final = "baton.db"
"""In ``data_dir``: all that is embedded and is the truth."""
LIVE_STATE_TTL: Final = timedelta(days=1)
DEFAULT_INDEX: Final = "baton"
"""Pinecone's index when neither its name nor its address is set."""

MakeSchema: TypeAlias = "Callable[[], Awaitable[None]]"


@dataclass(frozen=True, slots=True)
class Stores:
    """The ports over stores, with what keeps them open."""

    definitions: DefinitionStore
    source_definitions: DefinitionStore
    """``definitions`` without its cache."""
    agents: AgentStore
    handoffs: HandoffStore
    graph: AgentGraph
    executions: ExecutionStore
    analytics: ExecutionAnalytics
    artifacts: ArtifactStore
    context: ContextStore
    words: LexicalIndex | None
    """Over the items of ``context``; only the embedded store has one."""
    state: StateStore
    vectors: VectorIndex
    embedder: Embedder
    checks: Mapping[str, HealthCheck]
    """By component: ``definitions``, ``executions``, ``state`` and ``vectors``."""
    schemas: Mapping[str, MakeSchema]
    """By component: what makes the constraints and indexes of a configured store, as its first use does."""
    closing: AsyncExitStack


@dataclass(frozen=True, slots=True)
class _Catalogue:
    definitions: DefinitionStore
    agents: AgentStore
    handoffs: HandoffStore
    graph: AgentGraph
    check: HealthCheck
    make_schema: MakeSchema | None = None


@dataclass(frozen=True, slots=True)
class _Records:
    executions: ExecutionStore
    analytics: ExecutionAnalytics
    artifacts: ArtifactStore
    context: ContextStore
    check: HealthCheck
    make_schema: MakeSchema | None = None
    words: LexicalIndex | None = None


@dataclass(frozen=True, slots=True)
class _LiveStates:
    state: StateStore
    check: HealthCheck
    shared: SharedCache | None = None


@dataclass(frozen=True, slots=True)
class _Vectors:
    index: VectorIndex
    check: HealthCheck


def open_stores(settings: EngineSettings) -> Stores:
    """Choose an adapter for each store; nothing is opened yet.

    Raises:
        ConfigurationError: a store's address can't be read, or names no server; an embedder lacks what it needs.
    """
    codec = Codec(settings.compression_threshold, settings.compression)
    closing = AsyncExitStack()
    embedder = _embedder(settings, closing)
    database: SqliteDatabase | None = None
    if settings.neo4j_uri is None or settings.mongo_uri is None:
        from engine.adapters.sqlite.database import SqliteDatabase

        database = SqliteDatabase(settings.data_dir / EMBEDDED_FILE)
        closing.push_async_callback(database.aclose)
    catalogue = _catalogue(settings, database, codec, closing)
    records = _records(settings, database, codec, closing)
    live = _live_states(settings, codec, closing)
    vectors = _vectors(settings, embedder, closing)
    cache = ReadCache(codec, settings.cache_ttl, live.shared)
    made = {"definitions": catalogue.make_schema, "executions": records.make_schema}
    return Stores(
        definitions=CachedDefinitionStore(catalogue.definitions, cache),
        source_definitions=catalogue.definitions,
        agents=CachedAgentStore(catalogue.agents, cache),
        handoffs=CachedHandoffStore(catalogue.handoffs, cache),
        graph=catalogue.graph,
        executions=records.executions,
        analytics=records.analytics,
        artifacts=records.artifacts,
        context=records.context,
        words=records.words,
        state=live.state,
        vectors=vectors.index,
        embedder=embedder,
        checks={
            "definitions": catalogue.check,
            "executions": records.check,
            "state": live.check,
            "vectors": vectors.check,
        },
        schemas={name: make_schema for name, make_schema in made.items() if make_schema is not None},
        closing=closing,
    )


def _catalogue(
    settings: EngineSettings, database: SqliteDatabase | None, codec: Codec, closing: AsyncExitStack
) -> _Catalogue:
    if settings.neo4j_uri is not None:
        from engine.adapters.neo4j.agent_graph import Neo4jAgentGraph
        from engine.adapters.neo4j.agent_store import Neo4jAgentStore
        from engine.adapters.neo4j.database import Neo4jDatabase
        from engine.adapters.neo4j.definition_store import Neo4jDefinitionStore
        from engine.adapters.neo4j.handoff_store import Neo4jHandoffStore

        server = Neo4jDatabase(
            settings.neo4j_uri.get_secret_value(),
            settings.neo4j_user,
            _shown(settings.neo4j_password),
            settings.connection_pool_size,
        )
        closing.push_async_callback(server.aclose)
        definitions = Neo4jDefinitionStore(server, codec)
        return _Catalogue(
            definitions,
            Neo4jAgentStore(server, codec),
            Neo4jHandoffStore(server, codec),
            Neo4jAgentGraph(server, codec),
            definitions,
            server.make_schema,
        )
    from engine.adapters.sqlite.agent_graph import SqliteAgentGraph
    from engine.adapters.sqlite.agent_store import SqliteAgentStore
    from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
    from engine.adapters.sqlite.handoff_store import SqliteHandoffStore

    database = _present(database)
    stored = SqliteDefinitionStore(database, codec)
    return _Catalogue(
        stored,
        SqliteAgentStore(database, codec),
        SqliteHandoffStore(database, codec),
        SqliteAgentGraph(database, codec),
        stored,
    )


def _records(
    settings: EngineSettings, database: SqliteDatabase | None, codec: Codec, closing: AsyncExitStack
) -> _Records:
    if settings.mongo_uri is not None:
        from engine.adapters.mongodb.artifact_store import MongoArtifactStore
        from engine.adapters.mongodb.connection import MongoDatabase
        from engine.adapters.mongodb.context_store import MongoContextStore
        from engine.adapters.mongodb.execution_store import MongoExecutionStore

        server = MongoDatabase(
            settings.mongo_uri.get_secret_value(),
            settings.mongo_driver,
            settings.connection_pool_size,
            settings.batch_size,
        )
        closing.push_async_callback(server.aclose)
        executions = MongoExecutionStore(server, codec)
        return _Records(
            executions,
            executions,
            MongoArtifactStore(server, codec),
            MongoContextStore(server, codec),
            executions,
            server.make_schema,
        )
    from engine.adapters.sqlite.artifact_store import SqliteArtifactStore
    from engine.adapters.sqlite.context_store import SqliteContextStore
    from engine.adapters.sqlite.execution_store import SqliteExecutionStore

    database = _present(database)
    recorded = SqliteExecutionStore(database, codec)
    context = SqliteContextStore(database, codec)
    return _Records(recorded, recorded, SqliteArtifactStore(database, codec), context, recorded, words=context)


def _live_states(settings: EngineSettings, codec: Codec, closing: AsyncExitStack) -> _LiveStates:
    if settings.redis_uri is not None:
        from engine.adapters.redis.connection import RedisDatabase
        from engine.adapters.redis.shared_cache import RedisSharedCache
        from engine.adapters.redis.state_store import RedisStateStore

        server = RedisDatabase(settings.redis_uri.get_secret_value(), settings.connection_pool_size)
        closing.push_async_callback(server.aclose)
        state, shared = RedisStateStore(server, codec, LIVE_STATE_TTL), RedisSharedCache(server)
        closing.push_async_callback(shared.aclose)
        return _LiveStates(state, state, shared)
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.adapters.sqlite.schema import LIVE_STATE
    from engine.adapters.sqlite.state_store import SqliteStateStore

    database = SqliteDatabase(settings.data_dir / "live.db", LIVE_STATE)
    closing.push_async_callback(database.aclose)
    embedded = SqliteStateStore(database, codec, LIVE_STATE_TTL)
    return _LiveStates(embedded, embedded)


def _embedder(settings: EngineSettings, closing: AsyncExitStack) -> Embedder:
    if settings.embedder == "openai":
        from engine.adapters.openai_embedder import OpenAIEmbedder

        if settings.embedding_model is None:
            raise ConfigurationError(
                "embedder is openai, which needs embedding_model, for example text-embedding-3-small",
                {"path": "embedding_model"},
            )
        remote = OpenAIEmbedder(
            settings.embedding_model,
            _shown(settings.embedding_api_key),
            settings.embedding_base_url,
            settings.embedding_dimension,
            pool_size=settings.connection_pool_size,
        )
        closing.push_async_callback(remote.aclose)
        return remote
    if settings.embedder == "pinecone":
        from engine.adapters.pinecone_embedder import PineconeEmbedder

        if settings.pinecone_api_key is None:
            raise ConfigurationError("embedder is pinecone, which needs pinecone_api_key", {"path": "pinecone_api_key"})
        hosted = PineconeEmbedder(
            settings.pinecone_api_key.get_secret_value(),
            settings.embedding_model,
            settings.embedding_dimension,
            pool_size=settings.connection_pool_size,
        )
        closing.push_async_callback(hosted.aclose)
        return hosted
    from engine.adapters.hashing_embedder import HashingEmbedder

    return HashingEmbedder()


def _vectors(settings: EngineSettings, embedder: Embedder, closing: AsyncExitStack) -> _Vectors:
    if settings.pinecone_api_key is not None:
        from engine.adapters.pinecone import PineconeVectorIndex

        index = PineconeVectorIndex(
            settings.pinecone_api_key.get_secret_value(),
            settings.pinecone_index or (None if settings.pinecone_host else DEFAULT_INDEX),
            settings.pinecone_host,
            dimension=embedder.dimension,
            pool_size=settings.connection_pool_size,
        )
        closing.push_async_callback(index.aclose)
        return _Vectors(index, index)
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.adapters.sqlite.schema import VECTORS
    from engine.adapters.sqlite.vector_index import SqliteVectorIndex

    database = SqliteDatabase(settings.data_dir / "vectors.db", VECTORS)
    closing.push_async_callback(database.aclose)
    embedded = SqliteVectorIndex(database)
    return _Vectors(embedded, embedded)


def _present(database: SqliteDatabase | None) -> SqliteDatabase:
    if database is None:
        raise TypeError("an embedded store needs the embedded database")
    return database


def _shown(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
