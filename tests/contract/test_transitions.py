"""The contract of ``ExecutionStore``: what changes an execution beside the calls of agents."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.execution import Event, ExecutionStatus, StepStatus, Usage, Value
from engine.ports.execution_store import ExecutionFilter
from tests.contract.samples import NOW, ended, execution, gate, seconds, step, transition

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord
    from engine.ports.execution_store import ExecutionStore

RUN_1 = NOW + seconds(1)
RUN_2 = NOW + seconds(100)
RUNNING, WAITING, PAUSED = ExecutionStatus.RUNNING, ExecutionStatus.WAITING, ExecutionStatus.PAUSED
HELD = [WAITING, PAUSED]
OPENED = Event.at_instant("gate.opened", NOW + seconds(2), "approve.1", gate_id="approve.1")
ANSWERED = Event.at_instant("gate.answered", NOW + seconds(3), "approve.1", gate_id="approve.1")


async def _get(store: ExecutionStore, execution_id: str = "flow-1") -> ExecutionRecord:
    record = await store.get_execution(execution_id)
    assert record is not None
    return record


async def _begin(store: ExecutionStore, **changes: Any) -> ExecutionRecord:
    """An execution that run-1 has begun."""
    await store.create_execution(execution(**changes), None)
    await store.record_steps([step(token=1)], RUN_1)
    return await _get(store)


async def test_status_events_gates_and_steps_are_written(execution_store: ExecutionStore) -> None:
    begun = await _begin(execution_store, events=[Event.at_instant("execution.started", NOW)])
    decided = step("skipped", 200, status=StepStatus.SKIPPED, agent_id=None, started_at=None, reason="when")
    change = transition(200, WAITING, events=[OPENED], gates=[gate()], steps=[decided])
    for _ in range(2):
        await execution_store.record_transition(change)
        assert await _get(execution_store) == begun.model_copy(
            update={"status": WAITING, "status_token": 200, "events": [*begun.events, OPENED]}
        )
        assert await execution_store.get_gate("flow-1", "approve.1") == gate()
        assert await execution_store.list_steps("flow-1") == [step(token=1), decided]


async def test_what_is_held_goes_on_with_another_transition(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    await execution_store.record_transition(transition(200, WAITING, events=[OPENED]))
    await execution_store.record_transition(transition(300, RUNNING, events=[OPENED, ANSWERED]))
    record = await _get(execution_store)
    assert (record.status, record.status_token, record.events) == (RUNNING, 300, [OPENED, ANSWERED])


async def test_no_status_leaves_it_and_its_token(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    await execution_store.record_transition(transition(200, PAUSED))
    await execution_store.record_transition(transition(300, None, events=[ANSWERED]))
    record = await _get(execution_store)
    assert (record.status, record.status_token, record.events) == (PAUSED, 200, [ANSWERED])


async def test_a_late_transition_brings_its_events_and_changes_no_status(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    await execution_store.record_transition(transition(300, RUNNING, events=[ANSWERED], gates=[gate(token=300)]))
    standing = await _get(execution_store)
    late = transition(200, WAITING, events=[OPENED], gates=[gate(token=200), gate("b.1", token=200)])
    await execution_store.record_transition(late)
    assert await _get(execution_store) == standing.model_copy(update={"events": [ANSWERED, OPENED]})
    assert await execution_store.get_gate("flow-1", "approve.1") == gate(token=300)
    assert await execution_store.get_gate("flow-1", "b.1") == gate("b.1", token=200)


async def test_steps_of_a_transition_obey_the_fence(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    await execution_store.record_steps([step("b", 300)], RUN_1)
    await execution_store.record_transition(
        transition(200, WAITING, steps=[step("b", 200, status=StepStatus.WAITING), step("c", 200)])
    )
    assert await execution_store.list_steps("flow-1") == [step(token=1), step("c", 200), step("b", 300)]


@pytest.mark.parametrize("status", [None, RUNNING, *HELD])
async def test_a_pending_execution_is_taken_over(execution_store: ExecutionStore, status: ExecutionStatus) -> None:
    begun = execution(run_id="run-1", run_started_at=RUN_1)
    await execution_store.create_execution(begun, None)
    await execution_store.record_transition(transition(200, status))
    record = await _get(execution_store)
    assert (record.status, record.run_id) == (status or RUNNING, "run-1")
    assert (record.started_at, record.run_started_at) == (RUN_1, RUN_1)


@pytest.mark.parametrize("status", [None, *HELD])
async def test_a_later_run_reopens_what_an_earlier_one_ended(
    execution_store: ExecutionStore, status: ExecutionStatus
) -> None:
    await execution_store.create_execution(execution(), None)
    await execution_store.finalize_execution(
        ended(events=[OPENED, Event.at_instant("execution.completed", NOW + seconds(11))]), []
    )
    change = transition(200, status, run_id="run-2", run_started_at=RUN_2, events=[ANSWERED])
    await execution_store.record_transition(change)
    record = await _get(execution_store)
    assert (record.status, record.run_id, record.run_started_at) == (status or RUNNING, "run-2", RUN_2)
    assert (record.output, record.completed_at, record.history_length) == (None, None, 0)
    assert (record.started_at, record.events) == (RUN_1, [OPENED, ANSWERED])


async def test_a_later_run_keeps_an_execution_held(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    await execution_store.record_transition(transition(200, PAUSED))
    await execution_store.record_transition(transition(300, None, run_id="run-2", run_started_at=RUN_2))
    record = await _get(execution_store)
    assert (record.status, record.run_id) == (PAUSED, "run-2")


async def test_an_earlier_run_changes_nothing_of_a_later_ones_record(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    await execution_store.record_steps([step(token=2, run_id="run-2")], RUN_2)
    owned = await _get(execution_store)
    await execution_store.record_transition(transition(900, WAITING, events=[OPENED], gates=[gate(token=900)]))
    assert await _get(execution_store) == owned
    assert await execution_store.get_gate("flow-1", "approve.1") == gate(token=900)


async def test_an_end_stays_when_its_own_run_changes_late(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    end = await execution_store.finalize_execution(ended(), [])
    await execution_store.record_transition(transition(900, WAITING, events=[OPENED]))
    await execution_store.record_transition(transition(900, WAITING, run_id="run-0", run_started_at=NOW))
    assert await _get(execution_store) == end


async def test_what_is_known_of_no_execution_is_kept(execution_store: ExecutionStore) -> None:
    await execution_store.record_transition(transition(200, WAITING, gates=[gate()], steps=[step()]))
    assert await execution_store.get_execution("flow-1") is None
    assert await execution_store.get_gate("flow-1", "approve.1") == gate()
    assert await execution_store.list_steps("flow-1") == [step()]


@pytest.mark.parametrize("status", HELD)
async def test_no_step_wakes_what_a_transition_holds(execution_store: ExecutionStore, status: ExecutionStatus) -> None:
    await _begin(execution_store)
    await execution_store.record_transition(transition(200, status))
    held = await _get(execution_store)
    await execution_store.record_steps([step("b", 300, status=StepStatus.RUNNING)], RUN_1)
    await execution_store.claim_step(step("b", 400, status=StepStatus.RUNNING, attempts=2), RUN_1)
    assert await _get(execution_store) == held
    await execution_store.record_steps([step("b", 500, run_id="run-2")], RUN_2)
    assert (await _get(execution_store)).status is status


@pytest.mark.parametrize("status", HELD)
async def test_what_is_held_is_open_until_it_ends(execution_store: ExecutionStore, status: ExecutionStatus) -> None:
    async def listed(**query: Any) -> bool:
        return bool((await execution_store.list_executions(ExecutionFilter(**query), limit=5, after=None)).items)

    await _begin(execution_store)
    await execution_store.record_transition(transition(200, status, events=[OPENED]))
    assert await listed(is_open=True)
    assert await listed(status=status)
    assert not await listed(status=RUNNING)
    end = await execution_store.finalize_execution(ended(status=ExecutionStatus.CANCELLED), [])
    assert (end.status, end.events) == (ExecutionStatus.CANCELLED, [OPENED])
    assert not await listed(is_open=True)
    assert not await listed(status=status)


async def test_concurrent_transitions_leave_the_greatest_token(execution_store: ExecutionStore) -> None:
    await _begin(execution_store)
    tokens = [*range(100, 120)]
    await asyncio.gather(
        *(
            execution_store.record_transition(
                transition(token, HELD[token % 2], gates=[gate(token=token, question=f"{token}?")])
            )
            for token in tokens
        ),
        *(execution_store.record_steps([step(f"s{token}", token)], RUN_1) for token in tokens),
    )
    record = await _get(execution_store)
    assert (record.status, record.status_token) == (HELD[1], 119)
    assert await execution_store.get_gate("flow-1", "approve.1") == gate(token=119, question="119?")
    assert len(await execution_store.list_steps("flow-1")) == len(tokens) + 1


async def test_an_end_and_a_transition_at_once_leave_an_end(execution_store: ExecutionStore) -> None:
    for number in range(10):
        execution_id = f"flow-{number}"
        await execution_store.create_execution(execution(execution_id), None)
        await asyncio.gather(
            execution_store.record_transition(transition(200, WAITING, execution_id=execution_id)),
            execution_store.finalize_execution(ended(execution_id), []),
        )
        assert (await _get(execution_store, execution_id)).status is ExecutionStatus.COMPLETED


async def test_lineage_stays_with_the_record(execution_store: ExecutionStore) -> None:
    lineage = {"parent_execution_id": "above", "rerun_of": "before", "rerun_steps": ["b"]}
    begun = execution(**lineage)
    await execution_store.create_execution(begun, None)
    assert await _get(execution_store) == begun
    await execution_store.record_transition(transition(200, WAITING))
    end = await execution_store.finalize_execution(ended(), [])
    assert {name: getattr(end, name) for name in lineage} == lineage
    assert await _get(execution_store) == end


async def test_a_rerun_begins_with_the_steps_that_it_keeps(execution_store: ExecutionStore) -> None:
    kept = [step("a", 5, run_id="", reused_from="flow-0", output=Value.of(1)), step("b", 6, run_id="", item=3)]
    begun = execution(rerun_of="flow-0", rerun_steps=["c"])
    assert await execution_store.create_execution(begun, b"plan", kept) is None
    assert await _get(execution_store) == begun
    assert await execution_store.list_steps("flow-1") == kept
    assert await execution_store.get_plan("sha256:plan") == b"plan"
    again = [step("d", 7, run_id="")]
    assert await execution_store.create_execution(begun, b"plan", again) == begun
    assert await execution_store.list_steps("flow-1") == kept


async def test_new_fields_of_a_step_come_back_whole(execution_store: ExecutionStore) -> None:
    call = step(
        kind="workflow",
        agent_id=None,
        iteration=3,
        child_execution_id="flow-1/a.1",
        reused_from="flow-0",
        usage=Usage(requests=2, cost_usd=0.5),
    )
    await execution_store.record_steps([call], RUN_1)
    assert await execution_store.list_steps("flow-1") == [call]
