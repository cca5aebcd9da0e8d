"""The servers as fixtures of a session: skipped with the reason where they can't be had, unless they are required."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.servers import RunningServer, UnavailableError, are_required

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import ModuleType


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


@pytest.fixture(scope="session")
async def redis_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningServer]:
    from tests.servers import redis

    async with _running(redis, tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="session")
async def neo4j_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningServer]:
    from tests.servers import neo4j

    async with _running(neo4j, tmp_path_factory) as server:
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
