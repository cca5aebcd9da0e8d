"""Runs the chosen cases side by side, since many of them only wait for a timer; each test waits for its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tests.conformance.case_runner import run_case
from tests.conformance.cases import load
from tests.workflows.conftest import client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from temporalio.client import Client

    from engine.adapters.temporal.dev_server import DevServerLease
    from tests.conformance.case_checks import Observed
    from tests.conformance.cases import Case

__all__ = ["CaseRuns", "client"]

FOLDER = Path(__file__).parent
AT_ONCE = 6

CaseRuns: TypeAlias = "dict[str, asyncio.Task[tuple[Case, Observed, list[str]]]]"
"""By the case's name: what it is, what it showed, and which of its actions went wrong."""


@pytest.fixture(scope="session")
async def case_runs(
    request: pytest.FixtureRequest, dev_server: DevServerLease, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[CaseRuns]:
    """The runs of all cases that this session tests, begun in the order of their tests."""
    room = asyncio.Semaphore(AT_ONCE)
    folder = tmp_path_factory.mktemp("conformance")

    async def run(name: str) -> tuple[Case, Observed, list[str]]:
        async with room:
            case = load(FOLDER / f"{name}.yaml")
            config: dict[str, object] = {
                "temporal_address": dev_server.address,
                "worker": "embedded",
                "task_queue": f"conformance-{os.getpid()}-{name}",
                "data_dir": str(folder / name),
            }
            return case, *await run_case(case, config, client)

    runs: CaseRuns = {name: asyncio.create_task(run(name)) for name in _chosen(request.session)}
    yield runs
    for task in runs.values():
        task.cancel()
    await asyncio.gather(*runs.values(), return_exceptions=True)


def _chosen(session: pytest.Session) -> list[str]:
    return [item.callspec.params["case_name"] for item in session.items if "case_runs" in item.fixturenames]  # pyright: ignore[reportAttributeAccessIssue] # of every parametrised item
