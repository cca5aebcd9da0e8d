"""Reruns on the embedded stores: what is written, what is kept, what is refused with nothing written."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.agents.llm.prices import ModelPrices
from engine.adapters.codec import Codec
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.artifact_store import SqliteArtifactStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.handoff_store import SqliteHandoffStore
from engine.adapters.sqlite.schema import LIVE_STATE
from engine.adapters.sqlite.state_store import SqliteStateStore
from engine.domain.execution import (
    BudgetLimits,
    ErrorPayload,
    ExecutionStatus,
    StepRecord,
    StepStatus,
    Usage,
    Value,
    micros,
)
from engine.domain.operands import declare
from engine.errors import ConflictError, DefinitionNotFoundError, ExecutionNotFoundError, InvalidInputError, StoreError
from engine.ports.execution_runtime import RunDescription, StartedRun
from engine.ports.execution_store import ExecutionFilter
from engine.services.agents import AgentService
from engine.services.definitions import DefinitionService
from engine.services.execution_reads import ExecutionReads
from engine.services.executions import ExecutionService, parse_options
from engine.services.handoffs import HandoffService
from engine.services.plans import PlanService
from engine.services.repair import ExecutionRepairs
from engine.services.reruns import RerunRequest, RerunService, parse_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine.domain.execution import ExecutionRecord
    from engine.ports.execution_runtime import StartRequest

NOW = datetime(2026, 5, 1, tzinfo=UTC)
STEPS = [
    {"id": "plan", "agent_id": "agent-a", "input_mapping": {"topic": "${input.topic}"}},
    {"id": "write", "agent_id": "agent-a", "input_mapping": {"plan": "${steps.plan.output.plan}"}},
    {"id": "side", "agent_id": "agent-a", "input_mapping": {"n": "${input.n ?? 1}"}},
]


class Runtime:
    """Takes starts and says what each run came to."""

    def __init__(self) -> None:
        self.requests: list[StartRequest] = []

    async def connect(self) -> None:
        pass

    async def start_run(self, request: StartRequest) -> StartedRun:
        self.requests.append(request)
        return StartedRun(f"run-{len(self.requests)}", "default", "baton", None)

    async def describe_run(self, execution_id: str) -> RunDescription | None:
        return RunDescription("run-1", "running", NOW, None, 3, "flow")


class World:
    """A rerun service on real stores."""

    def __init__(self, database: SqliteDatabase, live: SqliteDatabase) -> None:
        codec, numbers = Codec(), itertools.count(1)
        self.now = NOW
        self.executions = SqliteExecutionStore(database, codec)
        self.artifacts = SqliteArtifactStore(database, codec)
        self.state = SqliteStateStore(live, codec, timedelta(hours=1))
        definitions, agents = SqliteDefinitionStore(database, codec), SqliteAgentStore(database, codec)
        handoffs = SqliteHandoffStore(database, codec)
        suffix = iter(map(str, itertools.count()))
        self.definitions = DefinitionService(definitions, definitions, agents, self.clock, lambda: next(suffix))
        self.agents = AgentService(agents, self.clock, lambda _: None)
        self.handoffs = HandoffService(handoffs, agents, self.clock, lambda: next(suffix))
        self.runtime = Runtime()
        runtime: Any = self.runtime
        self.plans = PlanService(
            definitions,
            agents,
            handoffs,
            self.executions,
            self.artifacts,
            self.state,
            self.clock,
            3,
            lambda: ModelPrices(None),
            None,
        )
        repairs = ExecutionRepairs(self.executions, self.state, self.clock)
        reads = ExecutionReads(self.executions, self.state, runtime, repairs)
        self.starts = ExecutionService(
            self.plans, self.executions, runtime, reads, self.clock, lambda: f"{next(numbers):03d}", 1
        )
        self.reruns = RerunService(self.plans, definitions, self.executions, self.artifacts, reads, self.starts)

    def clock(self) -> datetime:
        self.now += timedelta(seconds=10)
        return self.now

    async def prepare(self, **fields: Any) -> None:
        await self.agents.register_agent("A", None, [], [], {"function": "m:f"}, None)
        await self.definitions.create_definition({"name": "Flow", "steps": STEPS, **fields})

    async def ended(
        self,
        given: dict[str, Any] | None = None,
        *,
        options: dict[str, Any] | None = None,
        status: str = "failed",
        **outputs: Any,
    ) -> ExecutionRecord:
        """An execution that is over: steps with an output have completed, those with an error failed."""
        start = parse_options(options)
        record = (
            await self.starts.start_execution("flow", {"topic": "cats"} if given is None else given, start)
        ).record
        steps = [self.step(record.execution_id, step_id, output) for step_id, output in outputs.items()]
        return await self.end(record, steps, status)

    async def end(self, record: ExecutionRecord, steps: list[StepRecord], status: str) -> ExecutionRecord:
        at = self.clock()
        end = {
            "status": ExecutionStatus(status),
            "completed_at": at,
            "started_at": at,
            "run_id": "run",
            "run_started_at": at,
        }
        return await self.executions.finalize_execution(record.model_copy(update=end), steps)

    def step(self, execution_id: str, step_id: str, output: Any, **fields: Any) -> StepRecord:
        at = self.clock()
        failed = isinstance(output, Exception)
        return StepRecord(
            **{
                "execution_id": execution_id,
                "run_id": "run",
                "step_id": step_id,
                "token": micros(at),
                "status": StepStatus.FAILED if failed else StepStatus.COMPLETED,
                "agent_id": "agent-a",
                "attempts": 2,
                "output": None if failed else output if isinstance(output, Value) else Value.of(output),
                "error": ErrorPayload(code="agent_error", message=str(output)) if failed else None,
                "started_at": at,
                "completed_at": at + timedelta(seconds=3),
                "usage": Usage(requests=2, input_tokens=100, output_tokens=10, cost_usd=0.25),
                **fields,
            }
        )

    async def everything(self) -> list[Any]:
        page = await self.executions.list_executions(ExecutionFilter(), limit=100, after=None)
        steps = [await self.executions.list_steps(item.execution_id) for item in page.items]
        return [page.items, steps, len(self.runtime.requests)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database, live = SqliteDatabase(tmp_path / "records.db"), SqliteDatabase(tmp_path / "live.db", LIVE_STATE)
    made = World(database, live)
    await made.prepare(input_schema={"properties": {"topic": {"type": "string"}}})
    yield made
    await database.aclose()
    await live.aclose()


async def test_a_redrive_runs_what_failed_and_what_was_never_reached(world: World):
    parent = await world.ended(plan={"plan": "p"}, side=ValueError("no"))
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id))
    record = done.started.record
    assert (done.parent_id, done.choice.rerun, done.choice.reused_ids) == (
        parent.execution_id,
        ["write", "side"],
        ["plan"],
    )
    stored = await world.executions.get_execution(record.execution_id)
    assert stored is not None
    assert (stored.rerun_of, stored.rerun_steps, stored.status) == (parent.execution_id, ["write", "side"], "pending")
    assert (stored.input, stored.input_hash, stored.plan_hash) == (parent.input, parent.input_hash, parent.plan_hash)
    assert stored.execution_id not in (parent.execution_id, "")
    (kept,) = await world.executions.list_steps(record.execution_id)
    (plan_step, _) = await world.executions.list_steps(parent.execution_id)
    assert (kept.step_id, kept.output, kept.run_id, kept.n, kept.token) == (
        *("plan", plan_step.output, plan_step.run_id, plan_step.n, plan_step.token),
    )
    assert (kept.reused_from, kept.usage, [event.type for event in kept.events]) == (
        *(parent.execution_id, Usage(), ["step.completed"]),
    )
    request = world.runtime.requests[-1]
    assert [step.step_id for step in request.envelope.reused] == ["plan"]
    assert request.envelope.options == record.options
    assert await world.executions.get_execution(parent.execution_id) == parent


async def test_live_state_shows_the_kept_steps_from_the_start(world: World):
    parent = await world.ended(plan={"plan": "p"}, write=ValueError("no"), side={})
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id))
    live = await world.state.get_live_state(done.started.record.execution_id)
    assert live is not None
    assert live.execution.status == "pending"
    assert {step_id: step.status.value for step_id, step in live.steps.items()} == {
        "plan": "completed",
        "side": "completed",
    }


async def test_options_are_the_parents_but_for_the_key(world: World):
    options = {"priority": "high", "tags": ["t"], "trace": True, "timeout": 60, "idempotency_key": "k"}
    parent = await world.ended(options=options, plan={}, write={}, side={}, status="completed")
    tight = parent.options.model_copy(update={"budget": BudgetLimits(tokens=5)})
    await world.executions.repair_execution(
        parent.model_copy(update={"options": tight}), expected=ExecutionStatus.COMPLETED
    )
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id, ("write",)))
    record = done.started.record
    assert record.options == tight.model_copy(update={"idempotency_key": None})
    assert record.deadline_at == record.created_at + timedelta(seconds=60)
    again = await world.reruns.rerun_execution(RerunRequest(parent.execution_id, ("write",)))
    assert again.started.record.execution_id != record.execution_id


async def test_a_preview_writes_nothing_and_adds_up_every_call_of_what_is_kept(world: World):
    parent = (await world.starts.start_execution("flow", {}, parse_options(None))).record
    steps = [
        world.step(parent.execution_id, "plan", ValueError("no")),
        world.step(parent.execution_id, "plan", {"plan": "p"}, n=2, prior_attempts=2),
        world.step(parent.execution_id, "write", {}),
    ]
    parent = await world.end(parent, steps, "cancelled")
    before = await world.everything()
    preview = await world.reruns.preview_rerun(RerunRequest(parent.execution_id, ("write",)))
    assert (preview.choice.rerun, preview.choice.reused_ids) == (["write", "side"], ["plan"])
    assert (preview.saves.agent_calls, preview.saves.tokens, preview.saves.cost_usd) == (4, 220, 0.5)
    assert preview.saves.seconds == 13
    assert await world.everything() == before


async def test_a_kept_child_saves_what_its_own_steps_took(world: World):
    record = (await world.starts.start_execution("flow", {}, parse_options(None))).record
    cheap = {"usage": Usage(), "kind": "workflow", "agent_id": None}
    steps = [world.step(record.execution_id, "plan", {}, child_execution_id="inner", **cheap)]
    inner = [
        world.step("inner", "x", {}),
        world.step("inner", "y", {}, child_execution_id="innermost", **cheap),
        world.step("innermost", "z", {}),
    ]
    await world.executions.record_steps(inner, NOW)
    parent = await world.end(record, steps, "failed")
    saves = (await world.reruns.preview_rerun(RerunRequest(parent.execution_id))).saves
    assert (saves.agent_calls, saves.tokens, saves.cost_usd, saves.seconds) == (4, 220, 0.5, 3)


async def test_a_rerun_of_a_rerun_names_who_paid_and_saves_what_was_paid(world: World):
    first = await world.ended(plan={"plan": "p"}, write={"w": 1}, side={}, status="completed")
    second = (await world.reruns.rerun_execution(RerunRequest(first.execution_id, ("write",)))).started.record
    second = await world.end(second, [world.step(second.execution_id, "write", {"w": 2})], "completed")
    preview = await world.reruns.preview_rerun(RerunRequest(second.execution_id, ("side",)))
    assert preview.choice.reused_ids == ["plan", "write"]
    assert (preview.saves.agent_calls, preview.saves.tokens) == (4, 220)
    third = (await world.reruns.rerun_execution(RerunRequest(second.execution_id, ("side",)))).started.record
    kept = {step.step_id: step for step in await world.executions.list_steps(third.execution_id)}
    assert {step_id: step.reused_from for step_id, step in kept.items()} == {
        "plan": first.execution_id,
        "write": second.execution_id,
    }
    assert kept["write"].output == Value.of({"w": 2})
    assert third.rerun_of == second.execution_id


async def test_other_input_runs_what_reads_it_and_is_checked_first(world: World):
    parent = await world.ended(plan={"plan": "p"}, write={}, side={}, status="completed")
    request = RerunRequest(parent.execution_id, input_data={"topic": "cats", "n": 2})
    done = await world.reruns.rerun_execution(request)
    assert done.choice.rerun == ["side"]
    assert done.started.record.input == Value.of({"topic": "cats", "n": 2})
    assert done.started.record.input_hash != parent.input_hash
    for wrong in ({"topic": 5}, [], "x", 5, {"topic": float("nan")}):
        with pytest.raises(InvalidInputError):
            await world.reruns.rerun_execution(replace(request, input_data=wrong))
    done = await world.reruns.rerun_execution(replace(request, input_data={"topic": "dogs"}))
    assert done.choice.rerun == ["plan", "write"]


async def test_nothing_to_run_is_refused_unless_the_output_changes(world: World):
    parent = await world.ended(plan={"plan": "p"}, write={}, side={}, status="completed")
    for given in (None, {"topic": "cats"}, {"topic": "cats", "unread": 1}):
        with pytest.raises(InvalidInputError, match="Nothing of execution") as refused:
            await world.reruns.rerun_execution(RerunRequest(parent.execution_id, input_data=given))
        assert refused.value.details == {"path": "from_step", "execution_id": parent.execution_id}
    await world.definitions.update_definition("flow", {"output_mapping": {"t": "${input.unread ?? 0}"}})
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id, version="latest"))
    assert (done.choice.rerun, done.started.record.version) == ([], 2)
    newest = await world.end(done.started.record, [], "completed")
    done = await world.reruns.rerun_execution(
        RerunRequest(newest.execution_id, input_data={"topic": "cats", "unread": 1})
    )
    assert done.choice.rerun == []


async def test_a_failure_of_the_end_alone_can_be_run_again(world: World):
    parent = await world.ended(plan={"plan": "p"}, write={}, side={}, status="failed")
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id))
    assert (done.choice.rerun, len(done.choice.reused)) == ([], 3)


async def test_the_original_plan_is_the_frozen_one_and_the_latest_must_agree_in_what_is_kept(world: World):
    parent = await world.ended(plan={"plan": "p"}, write=ValueError("no"), side={})
    changed = [STEPS[0], {**STEPS[1], "retry_policy": {"max_retries": 7}}, {**STEPS[2], "input_mapping": {"m": 1}}]
    await world.definitions.update_definition("flow", {"steps": changed})
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id))
    assert (done.started.record.version, done.started.record.plan_hash) == (1, parent.plan_hash)
    before = await world.everything()
    latest = RerunRequest(parent.execution_id, version="latest")
    with pytest.raises(InvalidInputError, match="side; name them in from_step") as refused:
        await world.reruns.rerun_execution(latest)
    assert refused.value.details == {
        "path": "version",
        "reasons": [{"step_id": "side", "path": "steps[2].input_mapping", "why": "it is not what the parent ran"}],
    }
    assert await world.everything() == before
    done = await world.reruns.rerun_execution(replace(latest, from_steps=("side",)))
    assert (done.choice.rerun, done.started.record.version) == (["write", "side"], 2)
    assert world.runtime.requests[-1].plan.steps[1].retry.maximum_attempts == 8


async def test_a_step_that_is_new_runs_and_one_that_is_gone_is_left_out(world: World):
    parent = await world.ended(plan={"plan": "p"}, write={}, side={}, status="completed")
    new = {"id": "check", "agent_id": "agent-a", "input_mapping": {"w": "${steps.write.output}"}}
    await world.definitions.update_definition("flow", {"steps": [*STEPS[:2], new]})
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id, version="latest"))
    assert (done.choice.rerun, done.choice.reused_ids) == (["check"], ["plan", "write"])
    assert [step.step_id for step in await world.executions.list_steps(done.started.record.execution_id)] == [
        "plan",
        "write",
    ]


async def test_large_values_are_shared_and_show_what_the_newest_version_reads(world: World):
    large = {"plan": "p" * 50_000, "kind": "long", "size": 7}
    artifact = await world.artifacts.put_artifact(large)
    output = Value(ref=declare(large, ["output.plan"], artifact))
    given = {"topic": "cats", "text": "t" * 400_000}
    parent = await world.ended(given, plan=output, write=ValueError("no"), side={})
    assert parent.input.ref is not None
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id))
    assert done.started.record.input == parent.input
    assert done.started.record.input_hash == parent.input_hash
    changed = [STEPS[0], {**STEPS[1], "when": "steps.plan.output.kind = 'long'"}, STEPS[2]]
    await world.definitions.update_definition("flow", {"steps": changed})
    done = await world.reruns.rerun_execution(RerunRequest(parent.execution_id, version="latest"))
    kept = {step.step_id: step for step in await world.executions.list_steps(done.started.record.execution_id)}
    assert kept["plan"].output is not None
    assert kept["plan"].output.ref is not None
    assert kept["plan"].output.ref.artifact_id == artifact[0]
    assert kept["plan"].output.ref.declared == {"output.kind": "long"}


async def test_an_open_parent_is_a_conflict(world: World):
    record = (await world.starts.start_execution("flow", {}, parse_options(None))).record
    for ask in (world.reruns.rerun_execution, world.reruns.preview_rerun):
        with pytest.raises(ConflictError) as refused:
            await ask(RerunRequest(record.execution_id))
        assert refused.value.details == {"execution_id": record.execution_id, "status": "pending"}


async def test_what_is_not_there_is_named(world: World):
    with pytest.raises(ExecutionNotFoundError):
        await world.reruns.rerun_execution(RerunRequest("no-such"))
    parent = await world.ended(plan={"plan": "p"})
    with pytest.raises(InvalidInputError, match="did you mean 'write'"):
        await world.reruns.rerun_execution(RerunRequest(parent.execution_id, ("wrte",)))
    lost = parent.model_copy(update={"plan_hash": "sha256:lost"})
    await world.executions.repair_execution(lost, expected=ExecutionStatus.FAILED)
    with pytest.raises(StoreError, match="sha256:lost"):
        await world.reruns.rerun_execution(RerunRequest(parent.execution_id))
    await world.definitions.delete_definition("flow")
    for version in ("original", "latest"):
        with pytest.raises(DefinitionNotFoundError):
            await world.reruns.rerun_execution(RerunRequest(parent.execution_id, version=version))
    assert len(world.runtime.requests) == 1


def test_arguments_are_parsed():
    assert parse_request("e", None, None, "original") == RerunRequest("e")
    assert parse_request("e", "a", {}, "latest") == RerunRequest("e", ("a",), {}, "latest")
    assert parse_request("e", ["a", "b"], None, "original").from_steps == ("a", "b")
    for wrong in ("", [], [""], [1], 5, {"a": 1}, True):
        with pytest.raises(InvalidInputError, match="from_step must be"):
            parse_request("e", wrong, None, "original")
    for wrong in (None, 1, "newest", ""):
        with pytest.raises(InvalidInputError, match="version must be"):
            parse_request("e", None, None, wrong)
