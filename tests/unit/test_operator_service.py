"""What the operators' service asks of the stores and of the run, on the embedded stores and a run that obeys."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.schema import LIVE_STATE
from engine.adapters.sqlite.state_store import SqliteStateStore
from engine.domain.execution import ExecutionStatus
from engine.errors import ConflictError, ExecutionNotFoundError, InvalidInputError, StoreError
from engine.ports.execution_runtime import RunDescription
from engine.services.execution_reads import ExecutionReads
from engine.services.operators import MAX_ARGUMENT_BYTES, OperatorService
from engine.services.repair import ExecutionRepairs
from tests.contract.samples import NOW, ended, execution, gate, seconds, transition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine.domain.gate import GateRecord
    from engine.domain.json import JsonObject

RUNNING = {"status": ExecutionStatus.RUNNING, "run_id": "run-1", "run_started_at": NOW + seconds(1)}


@dataclass
class Run:
    """The one run of a test: what it is sent, what it says, and how Temporal describes it."""

    answer: JsonObject | Exception = field(default_factory=dict)
    status: Any = "running"
    sent: list[tuple[str, str, JsonObject]] = field(default_factory=list)
    connected: int = 0

    async def connect(self) -> None:
        self.connected += 1

    async def send_update(self, execution_id: str, name: str, argument: JsonObject) -> JsonObject:
        assert self.connected, "nothing is sent before there is a connection"
        self.sent.append((execution_id, name, argument))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def describe_run(self, execution_id: str) -> RunDescription:
        closed_at = None if self.status == "running" else NOW + seconds(9)
        return RunDescription("run-1", self.status, NOW + seconds(1), closed_at, 20, "flow")


class UnreadableGates:
    """A store whose gates can't be read."""

    def __init__(self, store: SqliteExecutionStore) -> None:
        self._store = store
        self.is_down = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def list_gates(self, *arguments: Any, **named: Any) -> Any:
        if self.is_down:
            raise StoreError("the store is away")
        return await self._store.list_gates(*arguments, **named)


class Setting:
    """A service on stores of its own."""

    def __init__(self, records: SqliteDatabase, live: SqliteDatabase) -> None:
        self.executions = SqliteExecutionStore(records, Codec())
        self.state = SqliteStateStore(live, Codec(), timedelta(hours=1))
        self.run = Run()
        self.service = self.service_on(self.executions)

    def service_on(self, executions: Any) -> OperatorService:
        repairs = ExecutionRepairs(executions, self.state, lambda: datetime.now(UTC))
        runtime: Any = self.run
        return OperatorService(executions, runtime, ExecutionReads(executions, self.state, runtime, repairs))

    async def has(self, execution_id: str = "flow-1", *gates: GateRecord, **changes: Any) -> None:
        await self.executions.create_execution(execution(execution_id, **{**RUNNING, **changes}), b"plan")
        await self.executions.record_transition(transition(execution_id=execution_id, gates=list(gates)))

    async def has_ended(self, execution_id: str = "flow-1") -> None:
        await self.executions.finalize_execution(ended(execution_id), [])

    async def ids(self, **query: Any) -> list[str]:
        items, _ = await self.service.list_gates(**query)
        return [f"{item.execution_id} {item.gate_id}" for item in items]


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    records, live = SqliteDatabase(tmp_path / "records.db"), SqliteDatabase(tmp_path / "live.db", LIVE_STATE)
    yield Setting(records, live)
    await records.aclose()
    await live.aclose()


def gate_of(execution_id: str, gate_id: str = "approve.1", **changes: Any) -> GateRecord:
    return gate(gate_id, execution_id=execution_id, **changes)


# Gates.


async def test_open_gates_are_listed_by_execution_workflow_and_assignee(setting: Setting):
    await setting.has("flow-1", gate_of("flow-1", assignees=["ann"]), gate_of("flow-1", "b.1", opened_at=NOW))
    await setting.has(
        "other-1", gate_of("other-1", definition_id="other", assignees=["ann", "bob"]), definition_id="other"
    )
    assert await setting.ids() == ["flow-1 b.1", "flow-1 approve.1", "other-1 approve.1"]
    assert await setting.ids(execution_id="flow-1") == ["flow-1 b.1", "flow-1 approve.1"]
    assert await setting.ids(definition_id="other") == ["other-1 approve.1"]
    assert await setting.ids(assignee="ann") == ["flow-1 approve.1", "other-1 approve.1"]
    assert await setting.ids(assignee="bob", execution_id="flow-1") == []
    assert await setting.ids(execution_id="none") == []


async def test_gates_come_in_pages_whose_cursors_belong_to_their_filter(setting: Setting):
    gates = [gate_of("flow-1", f"g.{n}", opened_at=NOW + seconds(n)) for n in range(5)]
    await setting.has("flow-1", *gates)
    found: list[str] = []
    cursor = None
    while True:
        items, cursor = await setting.service.list_gates(limit=2, cursor=cursor)
        found += [item.gate_id for item in items]
        if cursor is None:
            break
    assert found == [f"g.{n}" for n in range(5)]
    _, cursor = await setting.service.list_gates(limit=2)
    with pytest.raises(InvalidInputError, match="another list or filter"):
        await setting.service.list_gates(execution_id="flow-1", cursor=cursor)


async def test_a_gate_of_an_execution_that_is_over_is_left_out_and_closed(setting: Setting):
    await setting.has("flow-1", gate_of("flow-1"), gate_of("flow-1", "b.1"))
    await setting.has("flow-2", gate_of("flow-2"))
    await setting.has_ended("flow-1")
    before = await setting.executions.get_execution("flow-1")
    assert await setting.ids() == ["flow-2 approve.1"]
    assert await setting.executions.get_execution("flow-1") == before
    statuses = [
        (await setting.service.get_gate(execution_id, "approve.1")).status for execution_id in ("flow-1", "flow-2")
    ]
    assert statuses == ["closed", "open"]
    stored = await setting.executions.get_gate("flow-1", "b.1")
    assert stored is not None
    assert stored.status == "closed"


async def test_an_answer_that_is_written_while_a_gate_is_closed_stands(setting: Setting):
    await setting.has("flow-1", gate_of("flow-1"))
    await setting.has_ended("flow-1")
    stale = await setting.executions.get_gate("flow-1", "approve.1")
    answered = gate_of("flow-1", token=150, status="answered", answer="approve", by="ann", at=NOW + seconds(5))
    await setting.executions.record_transition(transition(gates=[answered]))

    class Late(UnreadableGates):
        """A list that was read before the answer came."""

        async def list_gates(self, *arguments: Any, **named: Any) -> Any:
            page = await self._store.list_gates(*arguments, **named)
            page.items.append(stale)
            return page

    items, _ = await setting.service_on(Late(setting.executions)).list_gates()
    assert items == []
    assert await setting.executions.get_gate("flow-1", "approve.1") == answered


async def test_a_gate_that_is_read_alone_has_its_answer_or_is_closed_with_its_execution(setting: Setting):
    answered = gate_of("flow-1", "a.1", status="answered", answer="approve", by="ann", at=NOW + seconds(5))
    await setting.has("flow-1", gate_of("flow-1"), answered)
    assert await setting.service.get_gate("flow-1", "a.1") == answered
    assert (await setting.service.get_gate("flow-1", "approve.1")).status == "open"
    await setting.has_ended("flow-1")
    assert (await setting.service.get_gate("flow-1", "approve.1")).status == "closed"
    assert await setting.service.get_gate("flow-1", "a.1") == answered
    with pytest.raises(InvalidInputError) as unknown:
        await setting.service.get_gate("flow-1", "none.1")
    assert unknown.value.details["path"] == "gate_id"
    with pytest.raises(ExecutionNotFoundError):
        await setting.service.get_gate("none", "a.1")


async def test_a_status_goes_without_gates_while_they_can_not_be_read(setting: Setting):
    await setting.has("flow-1", gate_of("flow-1"), gate_of("flow-1", "b.1", opened_at=NOW))
    store = UnreadableGates(setting.executions)
    service = setting.service_on(store)
    assert await service.open_gate_ids("flow-1") is None
    store.is_down = False
    assert await service.open_gate_ids("flow-1") == ["b.1", "approve.1"]
    assert await service.open_gate_ids("flow-2") == []


# Acts.

ACTS: list[tuple[str, JsonObject, Any]] = [
    (
        "answer_gate",
        {"gate_id": "approve.1", "answer": "approve", "data": {"n": [1]}, "by": "ann"},
        lambda service, of: service.answer_gate(of, "approve.1", "approve", data={"n": [1]}, by="ann"),
    ),
    (
        "answer_gate",
        {"gate_id": "approve.1", "answer": "reject"},
        lambda service, of: service.answer_gate(of, "approve.1", "reject", data=None, by=None),
    ),
    (
        "pause",
        {"by": "ann", "reason": "lunch"},
        lambda service, of: service.pause_execution(of, by="ann", reason="lunch"),
    ),
    ("pause", {}, lambda service, of: service.pause_execution(of, by=None, reason=None)),
    ("resume", {"by": "ann"}, lambda service, of: service.resume_execution(of, by="ann")),
    ("retry_step", {"step_id": "a", "by": "ann"}, lambda service, of: service.retry_step(of, "a", by="ann")),
    (
        "skip_step",
        {"step_id": "a", "output": {"x": 1}, "by": "ann"},
        lambda service, of: service.skip_step(of, "a", output={"x": 1}, by="ann"),
    ),
    ("skip_step", {"step_id": "a"}, lambda service, of: service.skip_step(of, "a", output=None, by=None)),
]


@pytest.mark.parametrize(("name", "argument", "act"), ACTS)
async def test_an_act_is_an_update_with_what_was_given(setting: Setting, name: str, argument: JsonObject, act: Any):
    await setting.has("flow-1", gate_of("flow-1"))
    setting.run.answer = {"gate_id": "approve.1", "answer": "approve", "by": "ann", "at": "now"}
    answer = await act(setting.service, "flow-1")
    assert setting.run.sent == [("flow-1", name, argument)]
    assert answer == (setting.run.answer if name == "answer_gate" else None)


@pytest.mark.parametrize(("name", "argument", "act"), ACTS)
async def test_what_is_over_or_unknown_is_not_bothered(setting: Setting, name: str, argument: JsonObject, act: Any):
    await setting.has("flow-1", gate_of("flow-1"))
    await setting.has_ended("flow-1")
    with pytest.raises(ConflictError) as over:
        await act(setting.service, "flow-1")
    assert over.value.details["execution_id"] == "flow-1"
    assert over.value.details["status"] == ("closed" if name == "answer_gate" else "completed")
    assert over.value.details.get("gate_id") == argument.get("gate_id")
    assert "is completed" in over.value.message
    with pytest.raises(ExecutionNotFoundError):
        await act(setting.service, "none")
    assert (setting.run.sent, setting.run.connected) == ([], 0)


async def test_a_late_answer_is_told_the_one_that_stands(setting: Setting):
    answered = gate_of("flow-1", status="answered", answer="reject", by="bob", at=NOW + seconds(5))
    await setting.has("flow-1", answered)
    await setting.has_ended("flow-1")
    with pytest.raises(ConflictError) as late:
        await setting.service.answer_gate("flow-1", "approve.1", "approve", data=None, by=None)
    assert late.value.details == {
        "execution_id": "flow-1",
        "gate_id": "approve.1",
        "status": "answered",
        "answer": "reject",
        "by": "bob",
        "at": "2026-03-01T12:00:05.000000Z",
    }
    with pytest.raises(InvalidInputError, match="no gate"):
        await setting.service.answer_gate("flow-1", "none.1", "approve", data=None, by=None)


async def test_a_refusal_of_the_run_is_handed_on(setting: Setting):
    await setting.has("flow-1", gate_of("flow-1"))
    for refusal in (ConflictError("answered", {"answer": "reject"}), InvalidInputError("not allowed")):
        setting.run.answer = refusal
        with pytest.raises(type(refusal)) as raised:
            await setting.service.answer_gate("flow-1", "approve.1", "approve", data=None, by=None)
        assert raised.value is refusal


async def test_a_run_that_has_ended_unnoticed_is_recorded_when_it_is_acted_on(setting: Setting):
    await setting.has("flow-1", gate_of("flow-1"))
    setting.run.answer, setting.run.status = ConflictError("no open run"), "terminated"
    with pytest.raises(ConflictError) as over:
        await setting.service.pause_execution("flow-1", by=None, reason=None)
    assert over.value.details == {"execution_id": "flow-1", "status": "cancelled"}
    record = await setting.executions.get_execution("flow-1")
    assert record is not None
    assert record.status is ExecutionStatus.CANCELLED
    assert await setting.ids() == []


async def test_what_is_too_large_to_hand_over_is_refused_by_its_largest_part(setting: Setting):
    await setting.has("flow-1", gate_of("flow-1"))
    fitting = "x" * (MAX_ARGUMENT_BYTES - 100)
    await setting.service.skip_step("flow-1", "a", output=fitting, by="ann")
    for path, act in {
        "data": setting.service.answer_gate("flow-1", "approve.1", "approve", data=fitting * 2, by="ann"),
        "output": setting.service.skip_step("flow-1", "a", output=[fitting, fitting], by=None),
        "reason": setting.service.pause_execution("flow-1", by="ann", reason=fitting * 2),
    }.items():
        with pytest.raises(InvalidInputError) as refused:
            await act
        assert refused.value.details == {"path": path, "limit_bytes": MAX_ARGUMENT_BYTES}
    with pytest.raises(InvalidInputError, match="by must be"):
        await setting.service.resume_execution("flow-1", by="x" * 201)
    assert len(setting.run.sent) == 1
