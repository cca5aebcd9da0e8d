"""The contract of ``ExecutionStore``: the fence around step records, and claims."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING

import pytest

from engine.domain.execution import ErrorPayload, Event, ExecutionWarning, StepStatus, Usage, Value
from tests.contract.samples import NOW, event, execution, seconds, step

if TYPE_CHECKING:
    from engine.domain.execution import StepRecord
    from engine.ports.execution_store import ExecutionStore

RUN_1 = NOW + seconds(1)


async def _get(store: ExecutionStore, of: StepRecord) -> StepRecord | None:
    return await store.get_step(of.execution_id, of.run_id, of.step_id, of.item, of.n)


async def test_a_step_comes_back_whole(execution_store: ExecutionStore) -> None:
    whole = step(
        item=3,
        n=2,
        agent_version=7,
        attempts=4,
        input=Value.of({"a": 1}),
        output=Value.of({"b": [None]}),
        error=ErrorPayload(code="agent_error", message="m", details={"reason": "timeout"}),
        reason="timeout",
        usage=Usage(requests=2, input_tokens=10, output_tokens=20, tool_calls=1, cost_usd=0.125),
        events=[Event.at_instant("step.failed", NOW, "a[3].2", "a", x=1)],
        warnings=[ExecutionWarning(code="c", message="m")],
    )
    assert await execution_store.record_steps([whole], RUN_1) == [whole]
    assert await _get(execution_store, whole) == whole


async def test_no_steps_are_no_work(execution_store: ExecutionStore) -> None:
    assert await execution_store.record_steps([], RUN_1) == []


async def test_steps_of_an_unknown_execution_are_kept(execution_store: ExecutionStore) -> None:
    assert await execution_store.record_steps([step()], RUN_1) == [step()]
    assert await execution_store.get_execution("flow-1") is None
    assert await execution_store.create_execution(execution(), None) is None
    assert await execution_store.list_steps("flow-1") == [step()]


async def test_a_zombie_writes_late_and_gets_what_stands(execution_store: ExecutionStore) -> None:
    newer = step(token=200, output=Value.of("newer"))
    zombie = step(token=100, output=Value.of("zombie"), status=StepStatus.FAILED)
    await execution_store.record_steps([newer], RUN_1)
    assert await execution_store.record_steps([zombie], RUN_1) == [newer]
    assert await _get(execution_store, newer) == newer


async def test_an_equal_token_replaces_and_a_repeat_changes_nothing(execution_store: ExecutionStore) -> None:
    running = step(status=StepStatus.RUNNING, completed_at=None)
    done = step(output=Value.of(1))
    assert await execution_store.record_steps([running], RUN_1) == [running]
    for _ in range(2):
        assert await execution_store.record_steps([done], RUN_1) == [done]
        assert await execution_store.list_steps("flow-1") == [done]


async def test_a_greater_token_replaces(execution_store: ExecutionStore) -> None:
    await execution_store.record_steps([step(token=100)], RUN_1)
    retried = step(token=101, status=StepStatus.RETRYING, attempts=2)
    assert await execution_store.record_steps([retried], RUN_1) == [retried]
    assert await _get(execution_store, retried) == retried


async def test_a_list_answers_in_its_order(execution_store: ExecutionStore) -> None:
    await execution_store.record_steps([step("b", token=500)], RUN_1)
    given = [step("c", token=3), step("b", token=2), step("a", token=1)]
    assert await execution_store.record_steps(given, RUN_1) == [given[0], step("b", token=500), given[2]]


async def test_one_address_twice_in_a_list_obeys_the_fence(execution_store: ExecutionStore) -> None:
    answers = await execution_store.record_steps([step(token=2), step(token=1)], RUN_1)
    assert answers == [step(token=2), step(token=2)]


async def test_each_part_of_the_address_counts(execution_store: ExecutionStore) -> None:
    calls = [
        step(token=number, execution_id=execution_id, run_id=run_id, step_id=step_id, item=item, n=n)
        for number, (execution_id, run_id, step_id, item, n) in enumerate(
            itertools.product(("e", "e2"), ("r", "r2"), ("s", "s2"), (None, 0, 1), (1, 2)), start=1
        )
    ]
    for call in calls:
        assert await execution_store.record_steps([call], RUN_1) == [call]
    for call in calls:
        assert await _get(execution_store, call) == call
    assert await execution_store.list_steps("e") == calls[:24]
    without_items = [call for call in calls[:24] if call.item is None]
    assert await execution_store.list_steps("e", with_items=False) == without_items


async def test_steps_are_listed_by_token_over_all_runs(execution_store: ExecutionStore) -> None:
    await execution_store.record_steps([step("a", token=5), step("b", token=3)], RUN_1)
    await execution_store.record_steps([step("a", token=4, run_id="run-2")], RUN_1 + seconds(9))
    tokens = [record.token for record in await execution_store.list_steps("flow-1")]
    assert tokens == [3, 4, 5]


async def test_concurrent_writers_leave_the_greatest_token(execution_store: ExecutionStore) -> None:
    tokens = list(range(1, 101))
    random.Random(7).shuffle(tokens)
    answers = await asyncio.gather(*(execution_store.record_steps([step(token=token)], RUN_1) for token in tokens))
    assert (await _get(execution_store, step())) == step(token=100)
    for token, [answer] in zip(tokens, answers, strict=True):
        assert answer.token >= token


async def test_a_claim_of_nothing_stored_is_written(execution_store: ExecutionStore) -> None:
    claim = step(status=StepStatus.RUNNING, token=50, completed_at=None)
    assert await execution_store.claim_step(claim, RUN_1) == claim
    assert await _get(execution_store, claim) == claim


async def test_a_claim_meets_a_completed_call(execution_store: ExecutionStore) -> None:
    done = step(token=10, output=Value.of("made"))
    await execution_store.record_steps([done], RUN_1)
    assert await execution_store.claim_step(step(token=50, status=StepStatus.RUNNING), RUN_1) == done
    assert await _get(execution_store, done) == done


async def test_a_straggler_claims_nothing(execution_store: ExecutionStore) -> None:
    newer = step(token=90, status=StepStatus.RETRYING)
    await execution_store.record_steps([newer], RUN_1)
    assert await execution_store.claim_step(step(token=50, status=StepStatus.RUNNING), RUN_1) == newer
    assert await _get(execution_store, newer) == newer


@pytest.mark.parametrize("status", [StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.FAILED, StepStatus.CANCELLED])
async def test_a_claim_adds_up_usage_and_events_once(execution_store: ExecutionStore, status: StepStatus) -> None:
    spent = Usage(requests=1, input_tokens=100, cost_usd=0.5)
    more = Usage(requests=1, output_tokens=7)
    await execution_store.record_steps([step(token=10, status=status, usage=spent, events=[event(1)])], RUN_1)
    claim = step(token=20, status=StepStatus.RUNNING, attempts=2, usage=more, events=[event(2)])
    together = Usage(requests=2, input_tokens=100, output_tokens=7, cost_usd=0.5)
    expected = claim.model_copy(update={"usage": together, "events": [event(1), event(2)]})
    assert await execution_store.claim_step(claim, RUN_1) == expected
    assert await execution_store.claim_step(claim, RUN_1) == expected
    assert await _get(execution_store, claim) == expected


async def test_only_the_greatest_of_concurrent_claims_lasts(execution_store: ExecutionStore) -> None:
    claims = [step(token=token, status=StepStatus.RUNNING) for token in range(1, 21)]
    await asyncio.gather(*(execution_store.claim_step(claim, RUN_1) for claim in reversed(claims)))
    stored = await _get(execution_store, claims[0])
    assert stored is not None
    assert stored.token == 20


async def test_the_greatest_token_of_64_bits_is_kept(execution_store: ExecutionStore) -> None:
    await execution_store.record_steps([step(token=2**63 - 1)], RUN_1)
    assert await execution_store.record_steps([step(token=2**63 - 2)], RUN_1) == [step(token=2**63 - 1)]


async def test_large_steps_in_one_call(execution_store: ExecutionStore) -> None:
    many = [step(f"s{number}", token=number, output=Value.of("x" * 1000)) for number in range(1, 501)]
    assert await execution_store.record_steps(many, RUN_1) == many
    assert await execution_store.list_steps("flow-1") == many
