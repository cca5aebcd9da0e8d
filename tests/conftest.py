"""What suites on a real Temporal share: one development server a session, and engines that work on it."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from itertools import count
from typing import TYPE_CHECKING, Protocol

import pytest

from engine import WorkflowEngine
from engine.adapters.temporal.dev_server import DevServerLease, acquire_dev_server
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

_queues = count(1)


class EngineFactory(Protocol):
    """Makes an engine with an embedded worker that the fixture closes at the end of the test."""

    def __call__(self, scripts: Mapping[str, object] | None = None, **config: object) -> WorkflowEngine:
        """Agents follow ``scripts`` (see ``ScriptedAgentInvoker``), or are real ones when there are none."""
        ...


@pytest.fixture(scope="session")
async def dev_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[DevServerLease]:
    """The development server of the session."""
    lease = await acquire_dev_server(tmp_path_factory.mktemp("temporal"))
    yield lease
    await lease.aclose()


@pytest.fixture
def engine_config(dev_server: DevServerLease, tmp_path: Path, store_settings: dict[str, object]) -> dict[str, object]:
    """Settings of an engine on the session's server: its own data and its own task queue."""
    return {
        **store_settings,
        "temporal_address": dev_server.address,
        "worker": "embedded",
        "task_queue": f"test-{os.getpid()}-{next(_queues)}",
        "data_dir": str(tmp_path / "data"),
    }


@pytest.fixture
async def engine_factory(engine_config: dict[str, object]) -> AsyncGenerator[EngineFactory]:
    """See ``EngineFactory``. All engines of one test share data and queue unless ``config`` says otherwise."""
    async with AsyncExitStack() as closing:

        def make(scripts: Mapping[str, object] | None = None, **config: object) -> WorkflowEngine:
            invoker = None if scripts is None else ScriptedAgentInvoker(scripts)
            engine = WorkflowEngine({**engine_config, **config}, invoker=invoker)
            closing.push_async_callback(engine.aclose)
            return engine

        yield make
