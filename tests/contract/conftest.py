"""Which adapters each port's suite runs over: a new one is a line in ``ADAPTERS``."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.artifact_store import SqliteArtifactStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.handoff_store import SqliteHandoffStore
from engine.adapters.sqlite.schema import LIVE_STATE
from engine.adapters.sqlite.state_store import SqliteStateStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    OpenStore = Callable[[Path], AbstractAsyncContextManager[Any]]


def embedded(store: type[Any]) -> OpenStore:
    @asynccontextmanager
    async def open_store(folder: Path) -> AsyncGenerator[Any]:
        database = SqliteDatabase(folder / "baton.db")
        yield store(database, Codec())
        await database.aclose()

    return open_store


def embedded_state(ttl: timedelta) -> OpenStore:
    @asynccontextmanager
    async def open_store(folder: Path) -> AsyncGenerator[Any]:
        database = SqliteDatabase(folder / "live.db", LIVE_STATE)
        yield SqliteStateStore(database, Codec(), ttl)
        await database.aclose()

    return open_store


ADAPTERS: dict[str, dict[str, OpenStore]] = {
    "definition_store": {"sqlite": embedded(SqliteDefinitionStore)},
    "agent_store": {"sqlite": embedded(SqliteAgentStore)},
    "handoff_store": {"sqlite": embedded(SqliteHandoffStore)},
    "execution_store": {"sqlite": embedded(SqliteExecutionStore)},
    "artifact_store": {"sqlite": embedded(SqliteArtifactStore)},
    "state_store": {"sqlite": embedded_state(timedelta(hours=1))},
    "fleeting_state_store": {"sqlite": embedded_state(timedelta(milliseconds=600))},
}


def _port(port: str) -> Any:
    @pytest.fixture(name=port, params=sorted(ADAPTERS[port]))
    async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Any]:
        async with ADAPTERS[port][request.param](tmp_path) as store:
            yield store

    return opened


definition_store = _port("definition_store")
agent_store = _port("agent_store")
handoff_store = _port("handoff_store")
execution_store = _port("execution_store")
artifact_store = _port("artifact_store")
state_store = _port("state_store")
fleeting_state_store = _port("fleeting_state_store")
