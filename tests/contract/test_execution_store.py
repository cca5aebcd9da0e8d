"""The contract of ``ExecutionStore``: records, pages and the end of an execution."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.execution import (
    ArtifactRef,
    Cancellation,
    ErrorPayload,
    Event,
    ExecutionOptions,
    ExecutionStatus,
    ExecutionWarning,
    StepStatus,
    Usage,
    Value,
)
from engine.ports.execution_store import ExecutionFilter
from tests.contract.samples import (
    AWKWARD_TEXTS,
    AWKWARD_VALUES,
    NOW,
    deep_value,
    ended,
    execution,
    seconds,
    step,
    walk,
)

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord
    from engine.ports.execution_store import ExecutionStore

RUN_1 = NOW + seconds(1)
RUN_2 = NOW + seconds(100)


async def _get(store: ExecutionStore, execution_id: str = "flow-1") -> ExecutionRecord:
    record = await store.get_execution(execution_id)
    assert record is not None
    return record


async def _list_ids(store: ExecutionStore, limit: int = 10, **query: Any) -> list[str]:
    given = ExecutionFilter(**query)
    found = await walk(lambda after: store.list_executions(given, limit=limit, after=after), limit)
    return [record.execution_id for record in found]


async def test_what_is_not_there_is_none(execution_store: ExecutionStore) -> None:
    assert await execution_store.get_execution("flow-1") is None
    assert await execution_store.get_plan("sha256:plan") is None
    assert await execution_store.get_step("flow-1", "run-1", "a", None, 1) is None
    assert await execution_store.list_steps("flow-1") == []
    assert await _list_ids(execution_store) == []
    assert await execution_store.repair_execution(execution(), expected=ExecutionStatus.PENDING) is False
    assert await execution_store.get_execution("flow-1") is None


async def test_a_record_and_its_plan_come_back_whole(execution_store: ExecutionStore) -> None:
    record = execution(
        options=ExecutionOptions(priority="high", timeout=timedelta(seconds=1.5), idempotency_key="k", tags=["x"]),
        input=Value(ref=ArtifactRef(artifact_id="sha256:1", size_bytes=9, declared={"input.a": [1]})),
        deadline_at=NOW + seconds(0.000001),
        events=[Event.at_instant("execution.started", NOW, note="x")],
        warnings=[ExecutionWarning(code="c", message="m", step_id="a")],
        usage=Usage(requests=1, cost_usd=0.25),
    )
    plan = bytes(range(256))
    assert await execution_store.create_execution(record, plan) is None
    assert await _get(execution_store) == record
    assert await execution_store.get_plan("sha256:plan") == plan


async def test_a_second_create_returns_the_first_and_writes_nothing(execution_store: ExecutionStore) -> None:
    first = execution()
    await execution_store.create_execution(first, b"plan")
    second = execution(input=Value.of("other"), plan_hash="sha256:other", tags=["late"])
    assert await execution_store.create_execution(second, b"other") == first
    assert await _get(execution_store) == first
    assert await execution_store.get_plan("sha256:other") is None
    assert await _list_ids(execution_store, tags=("late",)) == []


async def test_a_hundred_concurrent_creates_insert_one(execution_store: ExecutionStore) -> None:
    records = [execution(input=Value.of(number)) for number in range(100)]
    answers = await asyncio.gather(*(execution_store.create_execution(record, b"plan") for record in records))
    assert answers.count(None) == 1
    winner = records[answers.index(None)]
    assert all(answer in (None, winner) for answer in answers)
    assert await _get(execution_store) == winner


async def test_a_plan_known_to_be_stored_stays(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution("flow-1"), b"plan")
    await execution_store.create_execution(execution("flow-2"), None)
    await execution_store.create_execution(execution("flow-3"), b"plan")
    assert await execution_store.get_plan("sha256:plan") == b"plan"


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [7, 6, 5, 4, 3, 2, 1, 0]),
    ({"definition_id": "even"}, [6, 4, 2, 0]),
    ({"status": ExecutionStatus.FAILED}, [7, 6, 3, 2]),
    ({"definition_id": "odd", "status": ExecutionStatus.FAILED}, [7, 3]),
    ({"start_time": NOW + seconds(2), "end_time": NOW + seconds(5)}, [5, 4, 3, 2]),
    ({"end_time": NOW + seconds(1)}, [1, 0]),
    ({"start_time": NOW + seconds(6.5)}, [7]),
    ({"definition_id": "even", "start_time": NOW + seconds(3)}, [6, 4]),
    ({"status": ExecutionStatus.PENDING, "end_time": NOW + seconds(4)}, [4, 1, 0]),
    ({"definition_id": "odd", "status": ExecutionStatus.PENDING, "end_time": NOW + seconds(4)}, [1]),
    ({"tags": ("all",)}, [7, 6, 5, 4, 3, 2, 1, 0]),
    ({"tags": ("all", "third")}, [6, 3, 0]),
    ({"tags": ("third", "all"), "definition_id": "even"}, [6, 0]),
    ({"tags": ("third",), "status": ExecutionStatus.FAILED, "end_time": NOW + seconds(5)}, [3]),
    ({"tags": ("third",), "start_time": NOW + seconds(1)}, [6, 3]),
    ({"tags": ("none",)}, []),
    ({"definition_id": "nobody"}, []),
    ({"start_time": NOW + seconds(5), "end_time": NOW}, []),
]


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 20])
async def test_filters_combine_on_full_pages(execution_store: ExecutionStore, limit: int) -> None:
    for number in range(8):
        await execution_store.create_execution(
            execution(
                f"flow-{number}",
                definition_id="odd" if number % 2 else "even",
                status=ExecutionStatus.FAILED if number & 2 else ExecutionStatus.PENDING,
                created_at=NOW + seconds(number),
                tags=["all", "third"] if number % 3 == 0 else ["all"],
            ),
            None,
        )
    for query, expected in FILTERS:
        found = await _list_ids(execution_store, limit=limit, **query)
        assert found == [f"flow-{number}" for number in expected], query


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
async def test_ties_on_one_instant_are_on_one_page_each(execution_store: ExecutionStore, limit: int) -> None:
    ids = [f"flow-{number}" for number in range(5)]
    for execution_id in ids:
        await execution_store.create_execution(execution(execution_id, tags=["t"]), None)
    for query in ({}, {"tags": ("t",)}, {"status": ExecutionStatus.PENDING}, {"end_time": NOW}, {"start_time": NOW}):
        assert await _list_ids(execution_store, limit=limit, **query) == ids[::-1]


async def test_instants_of_any_precision_and_zone_are_in_order(execution_store: ExecutionStore) -> None:
    zone = NOW.astimezone().tzinfo
    instants = [NOW, NOW + seconds(0.000001), NOW + seconds(0.1), (NOW + seconds(0.5)).astimezone(zone)]
    for number, instant in enumerate(instants):
        await execution_store.create_execution(execution(f"flow-{number}", created_at=instant), None)
    assert await _list_ids(execution_store, limit=1) == ["flow-3", "flow-2", "flow-1", "flow-0"]
    assert await _list_ids(execution_store, end_time=NOW) == ["flow-0"]


async def test_pages_are_stable_while_executions_come_and_change(execution_store: ExecutionStore) -> None:
    for number in range(4):
        await execution_store.create_execution(execution(f"flow-{number}", created_at=NOW + seconds(number)), None)
    first = await execution_store.list_executions(ExecutionFilter(), limit=2, after=None)
    await execution_store.create_execution(execution("newer", created_at=NOW + seconds(9)), None)
    await execution_store.finalize_execution(ended("flow-3", created_at=NOW + seconds(3)), [])
    second = await execution_store.list_executions(ExecutionFilter(), limit=2, after=first.next)
    assert [r.execution_id for r in [*first.items, *second.items]] == ["flow-3", "flow-2", "flow-1", "flow-0"]
    assert second.next is None


async def test_a_list_by_status_follows_the_status(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    await execution_store.record_steps([step()], RUN_1)
    assert await _list_ids(execution_store, status=ExecutionStatus.PENDING) == []
    assert await _list_ids(execution_store, status=ExecutionStatus.RUNNING) == ["flow-1"]
    await execution_store.finalize_execution(ended(), [])
    assert await _list_ids(execution_store, status=ExecutionStatus.RUNNING, definition_id="flow") == []
    found = await execution_store.list_executions(
        ExecutionFilter(status=ExecutionStatus.COMPLETED, definition_id="flow"), limit=5, after=None
    )
    assert [record.status for record in found.items] == [ExecutionStatus.COMPLETED]


async def test_the_end_replaces_an_open_record_and_keeps_its_beginning(execution_store: ExecutionStore) -> None:
    begun = execution(options=ExecutionOptions(priority="high", tags=["x"]))
    await execution_store.create_execution(begun, b"plan")
    await execution_store.record_steps([step()], RUN_1)
    end = ended(
        input=Value.of("not this"),
        input_hash="sha256:not-this",
        plan_hash="sha256:not-this",
        step_ids=[],
        created_at=NOW + seconds(50),
        started_at=NOW + seconds(7),
        usage=Usage(requests=3, cost_usd=0.5),
    )
    expected = end.model_copy(
        update={
            "input": begun.input,
            "input_hash": begun.input_hash,
            "options": begun.options,
            "created_at": begun.created_at,
            "plan_hash": begun.plan_hash,
            "step_ids": begun.step_ids,
            "started_at": RUN_1,
        }
    )
    assert await execution_store.finalize_execution(end, []) == expected
    assert await _get(execution_store) == expected
    assert await execution_store.finalize_execution(end, []) == expected
    assert await _get(execution_store) == expected


async def test_the_end_of_an_unknown_execution_is_inserted(execution_store: ExecutionStore) -> None:
    end = ended(tags=["x"])
    assert await execution_store.finalize_execution(end, [step()]) == end
    assert await _get(execution_store) == end
    assert await _list_ids(execution_store, tags=("x",)) == ["flow-1"]
    assert await execution_store.list_steps("flow-1") == [step()]


async def test_within_a_run_the_longer_history_wins(execution_store: ExecutionStore) -> None:
    short = ended(history_length=20, output=Value.of("short"))
    long = ended(history_length=30, output=Value.of("long"))
    again = ended(history_length=30, output=Value.of("again"))
    assert await execution_store.finalize_execution(short, []) == short
    assert await execution_store.finalize_execution(long, []) == long
    assert await execution_store.finalize_execution(short, []) == long
    assert await _get(execution_store) == long
    assert await execution_store.finalize_execution(again, []) == again
    assert await _get(execution_store) == again


async def test_a_later_run_wins_over_an_earlier_one(execution_store: ExecutionStore) -> None:
    first = ended(history_length=500, status=ExecutionStatus.FAILED)
    second = ended(run_id="run-2", run_started_at=RUN_2, history_length=10)
    await execution_store.finalize_execution(first, [])
    assert await execution_store.finalize_execution(second, []) == second
    assert await execution_store.finalize_execution(first, []) == second
    assert await _get(execution_store) == second


async def test_an_earlier_run_does_not_end_a_later_open_one(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    await execution_store.record_steps([step(run_id="run-2")], RUN_2)
    standing = await execution_store.finalize_execution(ended(), [step("late")])
    assert (standing.status, standing.run_id) == (ExecutionStatus.RUNNING, "run-2")
    assert await _get(execution_store) == standing
    assert await execution_store.get_step("flow-1", "run-1", "late", None, 1) == step("late")


async def test_a_finalize_that_loses_still_stores_its_steps(execution_store: ExecutionStore) -> None:
    await execution_store.finalize_execution(ended(history_length=30), [])
    await execution_store.finalize_execution(ended(history_length=20), [step("b")])
    assert await execution_store.list_steps("flow-1") == [step("b")]


async def test_steps_given_to_finalize_obey_the_fence(execution_store: ExecutionStore) -> None:
    await execution_store.record_steps([step(token=200)], RUN_1)
    stale = step(token=100, status=StepStatus.CANCELLED)
    await execution_store.finalize_execution(ended(), [stale, step("b", token=150)])
    assert await execution_store.list_steps("flow-1") == [step("b", token=150), step(token=200)]


async def test_the_last_steps_take_the_end_with_them(execution_store: ExecutionStore) -> None:
    begun = execution()
    await execution_store.create_execution(begun, None)
    for _ in range(2):
        steps, end = await execution_store.record_last_steps([step(token=200)], ended(history_length=0))
        assert steps == [step(token=200)]
        assert end is not None
        assert end.status is ExecutionStatus.COMPLETED
        assert (end.input, end.created_at) == (begun.input, begun.created_at)
        assert await _get(execution_store) == end
    await execution_store.finalize_execution(ended(history_length=20, status=ExecutionStatus.CANCELLED), [])
    _, end = await execution_store.record_last_steps([step(token=200)], ended(history_length=0))
    assert end is not None
    assert end.status is ExecutionStatus.CANCELLED


async def test_no_end_is_written_with_a_step_that_is_refused(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    await execution_store.record_steps([step(token=200, status=StepStatus.RUNNING)], RUN_1)
    steps, end = await execution_store.record_last_steps([step(token=100)], ended(history_length=0))
    assert steps == [step(token=200, status=StepStatus.RUNNING)]
    assert end is None
    assert (await _get(execution_store)).status is ExecutionStatus.RUNNING


async def test_the_last_steps_of_an_earlier_run_do_not_end_a_later_one(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    await execution_store.record_steps([step(run_id="run-2")], RUN_2)
    _, end = await execution_store.record_last_steps([step(token=300)], ended(history_length=0))
    assert end is not None
    assert end.status is ExecutionStatus.RUNNING
    assert (await _get(execution_store)).run_id == "run-2"


async def test_a_run_starts_its_execution(execution_store: ExecutionStore) -> None:
    begun = execution()
    await execution_store.create_execution(begun, None)
    await execution_store.record_steps([step(status=StepStatus.RUNNING)], RUN_1)
    running = begun.model_copy(
        update={
            "status": ExecutionStatus.RUNNING,
            "run_id": "run-1",
            "run_started_at": RUN_1,
            "started_at": RUN_1,
        }
    )
    assert await _get(execution_store) == running
    await execution_store.record_steps([step()], RUN_1)
    assert await _get(execution_store) == running


async def test_a_run_starts_an_execution_that_was_recorded_for_it(execution_store: ExecutionStore) -> None:
    begun = execution(run_id="run-1", run_started_at=RUN_1)
    await execution_store.create_execution(begun, None)
    await execution_store.record_steps([step(run_id="run-0")], RUN_1 - seconds(1))
    assert await _get(execution_store) == begun
    await execution_store.record_steps([step()], RUN_1)
    record = await _get(execution_store)
    assert (record.status, record.started_at) == (ExecutionStatus.RUNNING, RUN_1)


async def test_a_claim_starts_its_execution_too(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    await execution_store.claim_step(step(status=StepStatus.RUNNING), RUN_1)
    assert (await _get(execution_store)).status is ExecutionStatus.RUNNING


@pytest.mark.parametrize("status", [ExecutionStatus.WAITING, ExecutionStatus.PAUSED])
async def test_a_step_does_not_wake_a_waiting_execution(
    execution_store: ExecutionStore, status: ExecutionStatus
) -> None:
    await execution_store.create_execution(execution(status=status), None)
    await execution_store.record_steps([step()], RUN_1)
    record = await _get(execution_store)
    assert (record.status, record.run_id) == (status, "run-1")


async def test_an_end_stays_when_its_own_run_writes_late(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    end = await execution_store.finalize_execution(ended(), [])
    await execution_store.record_steps([step(token=999)], RUN_1)
    await execution_store.record_steps([step(run_id="run-0", token=999)], RUN_1 - seconds(1))
    assert await _get(execution_store) == end


async def test_a_later_run_reopens_what_an_earlier_one_ended(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    events = [Event.at_instant("execution.started", RUN_1), Event.at_instant("execution.failed", NOW + seconds(11))]
    end = await execution_store.finalize_execution(
        ended(
            status=ExecutionStatus.FAILED,
            error=ErrorPayload(code="agent_error", message="no"),
            cancel=Cancellation(reason="r"),
            events=events,
        ),
        [],
    )
    await execution_store.record_steps([step(run_id="run-2", token=200)], RUN_2)
    record = await _get(execution_store)
    assert (record.status, record.run_id, record.run_started_at) == (ExecutionStatus.RUNNING, "run-2", RUN_2)
    assert (record.completed_at, record.output, record.error, record.cancel) == (None, None, None, None)
    assert (record.history_length, record.input, record.started_at) == (0, end.input, end.started_at)
    assert [event.type for event in record.events] == ["execution.started"]
    assert await _list_ids(execution_store, status=ExecutionStatus.RUNNING) == ["flow-1"]
    second = ended(run_id="run-2", run_started_at=RUN_2, history_length=5)
    assert (await execution_store.finalize_execution(second, [])).status is ExecutionStatus.COMPLETED


async def test_an_earlier_run_does_not_take_a_later_ones_record(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    await execution_store.record_steps([step(run_id="run-2", token=200)], RUN_2)
    owned = await _get(execution_store)
    await execution_store.record_steps([step(run_id="run-1", token=900)], RUN_1)
    assert await _get(execution_store) == owned


async def test_a_repair_needs_the_expected_status(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    failed = execution(status=ExecutionStatus.FAILED, error=ErrorPayload(code="internal_error", message="lost"))
    assert await execution_store.repair_execution(failed, expected=ExecutionStatus.RUNNING) is False
    assert (await _get(execution_store)).status is ExecutionStatus.PENDING
    assert await execution_store.repair_execution(failed, expected=ExecutionStatus.PENDING) is True
    assert await _get(execution_store) == failed
    assert await execution_store.repair_execution(failed, expected=ExecutionStatus.PENDING) is False


async def test_one_of_many_concurrent_repairs_wins(execution_store: ExecutionStore) -> None:
    await execution_store.create_execution(execution(), None)
    repairs = [ended(output=Value.of(number)) for number in range(20)]
    answers = await asyncio.gather(
        *(execution_store.repair_execution(record, expected=ExecutionStatus.PENDING) for record in repairs)
    )
    assert answers.count(True) == 1
    assert await _get(execution_store) == repairs[answers.index(True)]


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_and_tags_are_text(execution_store: ExecutionStore, text: str) -> None:
    bystander = execution("bystander", tags=["plain"])
    await execution_store.create_execution(bystander, b"plan")
    awkward = execution(text, definition_id=text, plan_hash=text, tags=[text], created_at=NOW + seconds(1))
    assert await execution_store.create_execution(awkward, b"") is None
    assert await execution_store.create_execution(awkward, b"x") == awkward
    assert await _get(execution_store, text) == awkward
    assert await execution_store.get_plan(text) == b""
    assert await _list_ids(execution_store, definition_id=text) == [text]
    assert await _list_ids(execution_store, tags=(text,)) == [text]
    assert await _list_ids(execution_store, limit=1) == [text, "bystander"]
    call = step(text, execution_id=text, run_id=text, agent_id=text, reason=text)
    assert await execution_store.record_steps([call], RUN_1) == [call]
    assert await execution_store.list_steps(text) == [call]
    assert await execution_store.get_step(text, text, text, None, 1) == call
    assert await execution_store.list_steps("bystander") == []
    assert await _get(execution_store, "bystander") == bystander


async def test_awkward_values_come_back_exactly(execution_store: ExecutionStore) -> None:
    for number, value in enumerate([*AWKWARD_VALUES, deep_value()]):
        record = execution(f"flow-{number}", input=Value.of(value))
        await execution_store.create_execution(record, None)
        stored = await _get(execution_store, record.execution_id)
        # The text tells 1 from 1.0 and from true, which equality does not.
        assert repr(stored.input.inline) == repr(value)
        call = step(execution_id=record.execution_id, output=Value.of(value))
        await execution_store.record_steps([call], RUN_1)
        [kept] = await execution_store.list_steps(record.execution_id)
        assert kept.output is not None
        assert repr(kept.output.inline) == repr(value)


async def test_health_names_the_backend(execution_store: ExecutionStore) -> None:
    health = await execution_store.check_health()
    assert health.backend
    assert health.version
