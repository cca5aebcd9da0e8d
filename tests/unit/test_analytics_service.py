"""What is asked of analytics, and the answers over records in the embedded store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.domain.execution import ErrorPayload, ExecutionRecord, ExecutionStatus, StepRecord, StepStatus, Usage, Value
from engine.errors import AgentNotFoundError, DefinitionNotFoundError, InvalidInputError
from engine.services.agents import AgentService
from engine.services.analytics import AnalyticsService
from engine.services.definitions import DefinitionService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = datetime(2025, 5, 31, tzinfo=UTC)


class Setting:
    """A workflow with three executions, one of them two months old."""

    def __init__(self, database: SqliteDatabase) -> None:
        codec = Codec()
        definitions, agents = SqliteDefinitionStore(database, codec), SqliteAgentStore(database, codec)
        self.executions = SqliteExecutionStore(database, codec)
        self.definitions = DefinitionService(definitions, definitions, agents, lambda: NOW, lambda: "s")
        self.agents = AgentService(agents, lambda: NOW, lambda _: None)
        self.service = AnalyticsService(self.executions, definitions, agents, lambda: NOW)

    async def fill(self) -> None:
        await self.definitions.create_definition({"name": "Flow", "steps": [{"id": "a", "agent_id": "agent-x"}]})
        await self.agents.register_agent("X", config={"model": "m"})
        await self.add("one", ExecutionStatus.COMPLETED, NOW - timedelta(days=1), 4)
        await self.add("two", ExecutionStatus.FAILED, NOW - timedelta(days=20), 9)
        await self.add("old", ExecutionStatus.COMPLETED, NOW - timedelta(days=60), 100)

    async def add(self, execution_id: str, status: ExecutionStatus, at: datetime, seconds: int) -> None:
        end = at + timedelta(seconds=seconds)
        failed = status == ExecutionStatus.FAILED
        record = ExecutionRecord(
            execution_id=execution_id,
            definition_id="flow",
            version=1,
            plan_hash="plan",
            status=status,
            input=Value.of({}),
            input_hash="input",
            step_ids=["a"],
            created_at=at,
            started_at=at,
            completed_at=end,
            run_id="run",
            run_started_at=at,
            history_length=10,
            error=ErrorPayload(code="agent_error", message="no") if failed else None,
        )
        call = StepRecord(
            execution_id=execution_id,
            run_id="run",
            step_id="a",
            token=1,
            status=StepStatus.FAILED if failed else StepStatus.COMPLETED,
            agent_id="agent-x",
            attempts=3,
            started_at=at,
            completed_at=end,
            usage=Usage(requests=1, input_tokens=10),
        )
        await self.executions.finalize_execution(record, [call])


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    database = SqliteDatabase(tmp_path / "records.db")
    made = Setting(database)
    await made.fill()
    yield made
    await database.aclose()


async def test_a_workflow_is_measured_over_its_last_30_days(setting: Setting):
    start, end, metrics = await setting.service.workflow_metrics("flow", metrics=["execution_count", "success_rate"])
    assert (start, end) == (NOW - timedelta(days=30), NOW)
    assert metrics == {"execution_count": 2, "success_rate": 0.5}
    _, _, recent = await setting.service.workflow_metrics(
        "flow", "last_7_days", ["execution_count", "average_duration"]
    )
    assert recent == {"execution_count": 1, "average_duration": 4.0}
    span = {"start": "2025-01-01T00:00:00Z", "end": "2025-12-31T00:00:00Z"}
    _, _, whole = await setting.service.workflow_metrics("flow", span)
    assert (whole["execution_count"], whole["p95_duration"]) == (3, 100.0)


async def test_an_agent_is_measured_by_its_calls(setting: Setting):
    _, _, metrics = await setting.service.agent_performance("agent-x", "last_30_days", ["call_count", "error_count"])
    assert metrics == {"call_count": 2, "error_count": 1}
    _, _, whole = await setting.service.agent_performance("agent-x")
    assert (whole["retry_count"], whole["input_tokens"]) == (4, 20)


async def test_a_deleted_workflow_can_still_be_measured(setting: Setting):
    await setting.definitions.delete_definition("flow")
    _, _, metrics = await setting.service.workflow_metrics("flow", metrics=["execution_count"])
    assert metrics == {"execution_count": 2}


async def test_what_does_not_exist_is_not_found(setting: Setting):
    with pytest.raises(DefinitionNotFoundError):
        await setting.service.workflow_metrics("unknown")
    with pytest.raises(AgentNotFoundError):
        await setting.service.agent_performance("agent-unknown")


@pytest.mark.parametrize(
    ("arguments", "path"), [({"time_range": "last_month"}, "time_range"), ({"metrics": ["speed"]}, "metrics[0]")]
)
async def test_what_cannot_be_read_is_named_before_anything_is_asked(setting: Setting, arguments: Any, path: str):
    for call in (
        setting.service.workflow_metrics("unknown", **arguments),
        setting.service.agent_performance("agent-unknown", **arguments),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await call
        assert caught.value.details["path"] == path
