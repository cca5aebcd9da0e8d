"""Worker programs and the ledger of what their agents did, for every test of faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from worker_programs import Ledger, Workers

from engine import WorkflowEngine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def workers(engine_config: dict[str, object], tmp_path: Path, ledger: Ledger) -> Iterator[Workers]:
    """Worker programs on the test's queue and data; all are gone afterwards."""
    workers = Workers(engine_config, tmp_path, ledger)
    yield workers
    for program in workers.started:
        if program.process.poll() is None:
            program.kill()


@pytest.fixture
async def client_engine(engine_config: dict[str, object]) -> AsyncGenerator[WorkflowEngine]:
    """An engine without a worker, with the ledger's agent registered as ``agent-ledger``."""
    async with WorkflowEngine({**engine_config, "worker": "none"}) as engine:
        await engine.register_agent("Ledger", config={"function": "ledger_agents:work"})
        yield engine
