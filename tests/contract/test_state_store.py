"""The contract of ``StateStore``."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from engine.domain.execution import Cancellation, ErrorPayload, ExecutionStatus, LiveState, StepStatus
from tests.contract.samples import AWKWARD_TEXTS, AWKWARD_VALUES, NOW, event, live_head, live_step

if TYPE_CHECKING:
    from engine.domain.execution import Event
    from engine.ports.state_store import StateStore

AT_ONCE = timedelta(0)
PATIENTLY = timedelta(seconds=20)


async def _read(store: StateStore, after: str | None = None, limit: int = 5000) -> tuple[list[Event], str | None]:
    return await store.read_events("flow-1", after=after, limit=limit, wait=AT_ONCE)


async def test_what_is_not_there_is_none(state_store: StateStore) -> None:
    assert await state_store.get_live_state("flow-1") is None
    assert await state_store.get_live_states(["flow-1", "flow-2"]) == {}
    assert await state_store.get_live_states([]) == {}
    assert await _read(state_store) == ([], None)


async def test_head_and_steps_come_back_whole(state_store: StateStore) -> None:
    head = live_head(
        status=ExecutionStatus.CANCELLED,
        started_at=NOW,
        completed_at=NOW,
        error=ErrorPayload(code="c", message="m", details={"$a.b": 1}),
        cancel=Cancellation(reason="r", by="b", at=NOW),
    )
    steps = [live_step("a", agent_id="x", attempts=2, started_at=NOW), live_step("b", status=StepStatus.FAILED)]
    await state_store.record_transition("flow-1", execution=head, steps=steps)
    state = await state_store.get_live_state("flow-1")
    assert state == LiveState(execution=head, steps={"a": steps[0], "b": steps[1]})


async def test_steps_without_a_head_count_as_nothing_until_it_comes(state_store: StateStore) -> None:
    await state_store.record_transition("flow-1", steps=[live_step()])
    assert await state_store.get_live_state("flow-1") is None
    assert await state_store.get_live_states(["flow-1"]) == {}
    await state_store.record_transition("flow-1", execution=live_head())
    assert await state_store.get_live_state("flow-1") == LiveState(execution=live_head(), steps={"a": live_step()})


async def test_an_empty_transition_makes_no_state(state_store: StateStore) -> None:
    await state_store.record_transition("flow-1")
    assert await state_store.get_live_state("flow-1") is None


async def test_smaller_tokens_replace_nothing(state_store: StateStore) -> None:
    head = live_head(token=20, status=ExecutionStatus.COMPLETED)
    done = live_step(token=20, status=StepStatus.COMPLETED)
    await state_store.record_transition("flow-1", execution=head, steps=[done])
    await state_store.record_transition("flow-1", execution=live_head(token=10), steps=[live_step(token=10)])
    assert await state_store.get_live_state("flow-1") == LiveState(execution=head, steps={"a": done})


@pytest.mark.parametrize("token", [20, 21])
async def test_equal_and_greater_tokens_replace(state_store: StateStore, token: int) -> None:
    await state_store.record_transition("flow-1", execution=live_head(token=20), steps=[live_step(token=20)])
    head = live_head(token=token, status=ExecutionStatus.FAILED)
    failed = live_step(token=token, status=StepStatus.FAILED)
    await state_store.record_transition("flow-1", execution=head, steps=[failed])
    assert await state_store.get_live_state("flow-1") == LiveState(execution=head, steps={"a": failed})


async def test_each_entry_has_a_fence_of_its_own(state_store: StateStore) -> None:
    await state_store.record_transition("flow-1", execution=live_head(token=5), steps=[live_step("a", token=50)])
    late = [live_step("a", token=40), live_step("b", token=1)]
    await state_store.record_transition("flow-1", execution=live_head(token=6), steps=late)
    state = await state_store.get_live_state("flow-1")
    assert state is not None
    assert state.execution.token == 6
    assert {step_id: step.token for step_id, step in state.steps.items()} == {"a": 50, "b": 1}


async def test_microsecond_tokens_are_exact(state_store: StateStore) -> None:
    token = 2**53 + 1
    await state_store.record_transition("flow-1", execution=live_head(token=token), steps=[live_step(token=token)])
    await state_store.record_transition(
        "flow-1", execution=live_head(token=token - 1), steps=[live_step(token=token - 1)]
    )
    state = await state_store.get_live_state("flow-1")
    assert state is not None
    assert (state.execution.token, state.steps["a"].token) == (token, token)


async def test_many_states_come_in_one_answer(state_store: StateStore) -> None:
    for number in range(3):
        await state_store.record_transition(f"flow-{number}", execution=live_head(f"flow-{number}"))
    await state_store.record_transition("headless", steps=[live_step()])
    states = await state_store.get_live_states(["flow-2", "flow-0", "nobody", "headless", "flow-0"])
    assert {key: state.execution.execution_id for key, state in states.items()} == {
        "flow-0": "flow-0",
        "flow-2": "flow-2",
    }


async def test_events_are_read_in_order_of_writing(state_store: StateStore) -> None:
    written = [event(3), event(1), event(2)]
    await state_store.record_transition("flow-1", events=written[:2])
    await state_store.record_transition("flow-2", events=[event(9)])
    await state_store.record_transition("flow-1", events=written[2:])
    events, position = await _read(state_store)
    assert events == written
    assert position is not None
    assert await _read(state_store, position) == ([], position)


async def test_a_reader_goes_on_where_it_was(state_store: StateStore) -> None:
    await state_store.record_transition("flow-1", events=[event(number) for number in range(5)])
    first, position = await _read(state_store, limit=2)
    second, position = await _read(state_store, position, limit=2)
    await state_store.record_transition("flow-1", events=[event(5)])
    third, position = await _read(state_store, position, limit=10)
    assert [*first, *second, *third] == [event(number) for number in range(6)]
    assert (len(first), len(second)) == (2, 2)


async def test_a_repeated_event_may_come_twice_and_is_never_lost(state_store: StateStore) -> None:
    for _ in range(2):
        await state_store.record_transition("flow-1", events=[event(1), event(2)])
    events, _ = await _read(state_store)
    assert {found.id for found in events} == {event(1).id, event(2).id}


async def test_no_wait_answers_at_once(state_store: StateStore) -> None:
    async with asyncio.timeout(10):
        assert await state_store.read_events("flow-1", after=None, limit=1, wait=AT_ONCE) == ([], None)


async def test_a_short_wait_for_nothing_ends(state_store: StateStore) -> None:
    async with asyncio.timeout(10):
        found = await state_store.read_events("flow-1", after=None, limit=1, wait=timedelta(milliseconds=120))
    assert found == ([], None)


async def test_waiting_readers_all_get_the_event(state_store: StateStore) -> None:
    await state_store.record_transition("flow-1", events=[event(0)])
    _, position = await _read(state_store)
    readers = [
        asyncio.create_task(state_store.read_events("flow-1", after=position, limit=5, wait=PATIENTLY))
        for _ in range(5)
    ]
    other = asyncio.create_task(state_store.read_events("flow-2", after=None, limit=5, wait=PATIENTLY))
    await asyncio.sleep(0.1)
    await state_store.record_transition("flow-1", events=[event(1)])
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*readers)
    assert all(events == [event(1)] for events, _ in answers)
    assert len({found for _, found in answers}) == 1
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_cancelled_reader_leaves_the_others_alone(state_store: StateStore) -> None:
    reading = asyncio.create_task(state_store.read_events("flow-1", after=None, limit=5, wait=PATIENTLY))
    leaving = asyncio.create_task(state_store.read_events("flow-1", after=None, limit=5, wait=PATIENTLY))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await state_store.record_transition("flow-1", events=[event(1)])
    async with asyncio.timeout(10):
        events, _ = await reading
    assert events == [event(1)]
    with pytest.raises(asyncio.CancelledError):
        await leaving


@pytest.mark.parametrize("position", ["", "-", "0", "abc", "99999999999999999999-x", "5-0123456789abcdef", "1-1", "é"])
async def test_a_position_of_no_stream_starts_over(state_store: StateStore, position: str) -> None:
    await state_store.record_transition("flow-1", events=[event(1), event(2)])
    events, _ = await _read(state_store, position)
    assert events == [event(1), event(2)]


async def test_a_long_stream_keeps_its_newest_events(state_store: StateStore) -> None:
    for start in range(0, 3000, 100):
        await state_store.record_transition("flow-1", events=[event(start + number) for number in range(100)])
    events, _ = await _read(state_store)
    numbers = [found.data["number"] for found in events]
    assert numbers == list(range(3000 - len(numbers), 3000))
    assert 1000 <= len(numbers) <= 1300


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_are_text(state_store: StateStore, text: str) -> None:
    await state_store.record_transition("bystander", execution=live_head("bystander"), steps=[live_step()])
    head = live_head(text)
    await state_store.record_transition(text, execution=head, steps=[live_step(text)], events=[event(1, text=text)])
    assert await state_store.get_live_state(text) == LiveState(execution=head, steps={text: live_step(text)})
    events, _ = await state_store.read_events(text, after=None, limit=5, wait=AT_ONCE)
    assert events == [event(1, text=text)]
    bystander = await state_store.get_live_state("bystander")
    assert bystander is not None
    assert list(bystander.steps) == ["a"]


async def test_awkward_values_in_events_come_back_exactly(state_store: StateStore) -> None:
    await state_store.record_transition("flow-1", events=[event(1, values=AWKWARD_VALUES)])
    [found], _ = await _read(state_store)
    assert repr(found.data["values"]) == repr(AWKWARD_VALUES)


async def test_everything_has_a_time_to_live(fleeting_state_store: StateStore) -> None:
    store = fleeting_state_store
    await store.record_transition("flow-1", execution=live_head(token=9), steps=[live_step()], events=[event(1)])
    _, position = await _read(store)
    async with asyncio.timeout(10):
        while await store.get_live_state("flow-1") is not None:
            await asyncio.sleep(0.02)
    assert (await _read(store))[0] == []
    # What comes after the end of its time begins anew: no old step, no old token, no old event.
    await store.record_transition("flow-1", execution=live_head(token=1), events=[event(2)])
    assert (await store.get_live_states(["flow-1"]))["flow-1"] == LiveState(execution=live_head(token=1))
    assert (await _read(store, position))[0] == [event(2)]


async def test_each_write_gives_the_whole_its_full_time_again(fleeting_state_store: StateStore) -> None:
    store = fleeting_state_store
    await store.record_transition("flow-1", execution=live_head(), steps=[live_step("first")])
    for number in range(10):
        await store.record_transition("flow-1", steps=[live_step("again", token=number)])
        await asyncio.sleep(0.1)
    state = await store.get_live_state("flow-1")
    assert state is not None
    assert set(state.steps) == {"first", "again"}


async def test_health_names_the_backend(state_store: StateStore) -> None:
    health = await state_store.check_health()
    assert health.backend
