"""A client of the session's development server, and the stores behind the engines of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from temporalio.client import Client

from engine.adapters.temporal.payloads import data_converter
from engine.bootstrap import Stores, open_stores
from engine.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.adapters.temporal.dev_server import DevServerLease


@pytest.fixture(scope="session")
async def client(dev_server: DevServerLease) -> Client:
    """A client as an operator's tool has it, with Baton's converter so that it can read payloads."""
    return await Client.connect(dev_server.address, data_converter=data_converter(1024))


@pytest.fixture
async def stores(engine_config: dict[str, object]) -> AsyncGenerator[Stores]:
    """The stores that the test's engines write, opened a second time."""
    opened = open_stores(EngineSettings.load(engine_config))
    yield opened
    await opened.closing.aclose()
