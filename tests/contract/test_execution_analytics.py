"""The contract of ``ExecutionAnalytics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.execution import ExecutionStatus, StepStatus, Usage
from engine.ports.execution_store import Aggregates
from tests.contract.samples import NOW, ended, execution, seconds, step, transition

if TYPE_CHECKING:
    from engine.adapters.sqlite.execution_store import SqliteExecutionStore as Store

DAY = seconds(86400)
RUN_1 = NOW + seconds(1)


async def test_nothing_is_zero_and_no_price(execution_store: Store) -> None:
    assert await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY) == Aggregates()
    assert await execution_store.agent_aggregates("agent-a", NOW - DAY, NOW + DAY) == Aggregates()
    assert Aggregates().usage.cost_usd is None


async def test_executions_are_counted_by_how_they_ended(execution_store: Store) -> None:
    usage = Usage(requests=2, input_tokens=10, output_tokens=5, tool_calls=1)
    for number, length in enumerate((30, 10, 20)):
        await execution_store.finalize_execution(
            ended(f"done-{number}", completed_at=RUN_1 + seconds(length), usage=usage), []
        )
    await execution_store.finalize_execution(
        ended("failed", status=ExecutionStatus.FAILED, usage=Usage(cost_usd=0.5)), []
    )
    await execution_store.finalize_execution(ended("cancelled", status=ExecutionStatus.CANCELLED), [])
    await execution_store.create_execution(execution("open"), None)
    await execution_store.finalize_execution(ended("foreign", definition_id="other"), [])
    assert await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY) == Aggregates(
        count=6,
        completed=3,
        failed=1,
        cancelled=1,
        durations=[10.0, 20.0, 30.0],
        usage=Usage(requests=6, input_tokens=30, output_tokens=15, tool_calls=3, cost_usd=0.5),
    )


async def test_both_ends_of_the_range_count(execution_store: Store) -> None:
    for number in range(5):
        await execution_store.create_execution(execution(f"flow-{number}", created_at=NOW + seconds(number)), None)
        call = step(execution_id=f"flow-{number}", started_at=NOW + seconds(number))
        await execution_store.record_steps([call], RUN_1)
    start, end = NOW + seconds(1), NOW + seconds(3)
    assert (await execution_store.workflow_aggregates("flow", start, end)).count == 3
    assert (await execution_store.agent_aggregates("agent-a", start, end)).count == 3
    assert (await execution_store.agent_aggregates("agent-a", end, start)).count == 0


async def test_retries_and_fallbacks_of_an_execution_follow_its_steps(execution_store: Store) -> None:
    async def counted() -> tuple[int, int]:
        found = await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY)
        return found.retries, found.fallbacks

    await execution_store.create_execution(execution(), None)
    await execution_store.record_steps([step(token=1, status=StepStatus.RETRYING)], RUN_1)
    assert await counted() == (0, 0)
    for _ in range(2):
        await execution_store.record_steps([step(token=2, status=StepStatus.RETRYING, attempts=2)], RUN_1)
        assert await counted() == (1, 0)
    await execution_store.claim_step(step(token=3, status=StepStatus.RUNNING, attempts=3), RUN_1)
    assert await counted() == (2, 0)
    await execution_store.record_steps([step(token=1, attempts=9)], RUN_1)
    assert await counted() == (2, 0)
    await execution_store.record_steps([step(token=4, n=2, agent_id="agent-b")], RUN_1)
    assert await counted() == (2, 1)
    await execution_store.finalize_execution(ended(), [step("b", attempts=4)])
    assert await counted() == (5, 1)


async def test_each_turn_begins_with_the_steps_own_agent(execution_store: Store) -> None:
    """A fallback is another agent than the first call's, whatever was called just before."""
    turns = [("agent-a", 1), ("agent-b", 1), ("agent-a", 2), ("agent-c", 2), ("agent-b", 2)]
    calls = [step(token=n, n=n, agent_id=agent_id, iteration=turn) for n, (agent_id, turn) in enumerate(turns, start=1)]
    await execution_store.create_execution(execution(), None)
    for call in calls:
        await execution_store.record_steps([call], RUN_1)
    found = await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY)
    assert (found.retries, found.fallbacks) == (0, 3)
    counts = [await execution_store.agent_aggregates(f"agent-{name}", NOW - DAY, NOW + DAY) for name in "abc"]
    assert [(each.count, each.fallbacks) for each in counts] == [(2, 0), (2, 2), (1, 1)]


async def test_only_an_executions_own_calls_of_agents_count(execution_store: Store) -> None:
    usage = Usage(requests=2, input_tokens=9, cost_usd=1.5)
    kept = [
        step("a", attempts=3, usage=usage, reused_from="flow-0"),
        step("b", n=1, agent_id="agent-b", usage=usage, reused_from="flow-0"),
        step("b", n=2, usage=usage, reused_from="flow-0"),
    ]
    await execution_store.create_execution(execution(rerun_of="flow-0"), None, kept)
    others = [
        step("whole", kind="foreach", agent_id=None, attempts=9, usage=usage),
        step("child", kind="workflow", agent_id=None, attempts=2, usage=usage),
        step("made", kind="transform", agent_id=None),
        step("asked", kind="approval", attempts=2),
    ]
    await execution_store.record_steps(others, RUN_1)
    await execution_store.record_transition(transition(300, None, steps=[step("later", kind="wait", agent_id=None)]))
    for agent_id in ("agent-a", "agent-b", ""):
        assert await execution_store.agent_aggregates(agent_id, NOW - DAY, NOW + DAY) == Aggregates()
    assert await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY) == Aggregates(count=1)
    await execution_store.record_steps([step("c", usage=usage, attempts=2)], RUN_1)
    await execution_store.finalize_execution(ended(usage=usage), [])
    own = await execution_store.agent_aggregates("agent-a", NOW - DAY, NOW + DAY)
    assert (own.count, own.retries, own.fallbacks, own.usage) == (1, 1, 0, usage)
    whole = await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY)
    assert (whole.retries, whole.fallbacks, whole.usage) == (1, 0, usage)


async def test_handoffs_are_summed_over_the_executions_in_the_range(execution_store: Store) -> None:
    decided = [(0, 0), (2, 0), (0, 3), (1, 4), (50, 60)]
    for number, (taken, refused) in enumerate(decided):
        record = ended(
            f"flow-{number}",
            created_at=NOW + seconds(number),
            status=ExecutionStatus.FAILED if number % 2 else ExecutionStatus.COMPLETED,
            handoffs_taken=taken,
            handoffs_refused=refused,
        )
        await execution_store.finalize_execution(record, [])
        stored = await execution_store.get_execution(record.execution_id)
        assert stored is not None
        assert (stored.handoffs_taken, stored.handoffs_refused) == (taken, refused)
    await execution_store.finalize_execution(ended("foreign", definition_id="other", handoffs_taken=9), [])
    found = await execution_store.workflow_aggregates("flow", NOW, NOW + seconds(3))
    assert (found.count, found.handoffs_taken, found.handoffs_refused) == (4, 3, 7)
    found = await execution_store.workflow_aggregates("flow", NOW + seconds(1), NOW + seconds(2))
    assert (found.count, found.handoffs_taken, found.handoffs_refused) == (2, 2, 3)
    own = await execution_store.agent_aggregates("agent-a", NOW - DAY, NOW + DAY)
    assert (own.handoffs_taken, own.handoffs_refused) == (0, 0)


async def test_handoffs_count_once_whoever_writes_the_end(execution_store: Store) -> None:
    async def counted() -> tuple[int, int, int]:
        found = await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY)
        return found.count, found.handoffs_taken, found.handoffs_refused

    await execution_store.create_execution(execution(), None)
    assert await counted() == (1, 0, 0)
    for _ in range(2):
        closing = ended(history_length=0, handoffs_taken=1, handoffs_refused=2)
        await execution_store.record_last_steps([step()], closing)
        assert await counted() == (1, 1, 2)
    await execution_store.finalize_execution(ended(history_length=20, handoffs_taken=3, handoffs_refused=1), [])
    assert await counted() == (1, 3, 1)
    await execution_store.finalize_execution(ended(history_length=10, handoffs_taken=7), [])
    assert await counted() == (1, 3, 1)
    later = {"run_id": "run-2", "run_started_at": RUN_1 + seconds(50)}
    await execution_store.record_steps([step(run_id="run-2", token=900)], RUN_1 + seconds(50))
    await execution_store.finalize_execution(ended(**later), [])
    assert await counted() == (1, 0, 0)


async def test_steps_that_came_before_their_execution_count(execution_store: Store) -> None:
    calls = [step(attempts=3, status=StepStatus.FAILED), step(n=2, agent_id="agent-b")]
    await execution_store.record_steps(calls, RUN_1)
    await execution_store.finalize_execution(ended(), [])
    found = await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY)
    assert (found.retries, found.fallbacks) == (2, 1)


async def test_calls_of_an_agent_are_counted_by_how_they_ended(execution_store: Store) -> None:
    usage = Usage(requests=1, input_tokens=3, cost_usd=0.25)
    calls = [
        step("a", completed_at=NOW + seconds(7), usage=usage),
        step("b", completed_at=NOW + seconds(4), usage=usage, attempts=3),
        step("c", status=StepStatus.FAILED, attempts=2),
        step("d", status=StepStatus.CANCELLED),
        step("e", status=StepStatus.RETRYING, completed_at=None),
        step("f", status=StepStatus.SKIPPED, agent_id=None, started_at=None, completed_at=None),
        step("g", status=StepStatus.SKIPPED, started_at=None, completed_at=None),
        step("c", n=2, agent_id="agent-b", completed_at=NOW + seconds(3)),
        step("a", n=2, completed_at=NOW + seconds(3)),
    ]
    await execution_store.record_steps(calls, RUN_1)
    assert await execution_store.agent_aggregates("agent-a", NOW - DAY, NOW + DAY) == Aggregates(
        count=6,
        completed=3,
        failed=1,
        cancelled=1,
        durations=[1.0, 2.0, 5.0],
        retries=3,
        fallbacks=0,
        usage=Usage(requests=2, input_tokens=6, cost_usd=0.5),
    )
    fallback = await execution_store.agent_aggregates("agent-b", NOW - DAY, NOW + DAY)
    assert (fallback.count, fallback.fallbacks, fallback.durations) == (1, 1, [1.0])


async def test_a_reopened_execution_is_no_longer_completed(execution_store: Store) -> None:
    await execution_store.finalize_execution(ended(), [])
    await execution_store.record_steps([step(run_id="run-2", token=900)], RUN_1 + seconds(50))
    found = await execution_store.workflow_aggregates("flow", NOW - DAY, NOW + DAY)
    assert (found.count, found.completed, found.durations) == (1, 0, [])
