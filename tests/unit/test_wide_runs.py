"""What a wide run tells and warns of stays small: no payload grows with the number of its steps."""

from __future__ import annotations

from typing import Any

from reducing import NOW, complete, progress_of

from engine.domain.item_work import DEFAULT_CONCURRENCY
from engine.domain.messages import MAX_PAYLOAD_BYTES
from engine.domain.progress import ExecutionProgress
from engine.domain.unit_work import MAX_WARNINGS


def told(progress: ExecutionProgress) -> list[Any]:
    """Every transition that is due, as the workflow takes them."""
    transitions: list[Any] = []
    while progress.news.has_transition:
        transitions.append(progress.news.take_transition(NOW))
    return transitions


def test_a_thousand_gates_that_open_at_once_are_told_in_parts():
    steps = [{"id": f"a{n}", "type": "approval", "approval": {"question": "Go on? " * 20}} for n in range(1000)]
    progress = progress_of(steps)
    assert progress.next_actions(NOW) == []
    transitions = told(progress)
    assert max(len(change.model_dump_json()) for change in transitions) <= MAX_PAYLOAD_BYTES
    wanted = {f"a{n}.1" for n in range(1000)}
    assert {gate.gate_id for change in transitions for gate in change.gates} == wanted
    assert sorted(step.step_id for change in transitions for step in change.steps) == sorted(
        f"a{n}" for n in range(1000)
    )
    events = [event for change in transitions for event in change.events] + progress.news.take_events()
    opened = [event.data["gate_id"] for event in events if event.type == "gate.opened"]
    assert (len(opened), set(opened)) == (1000, wanted)


def test_of_very_many_warnings_the_first_are_kept():
    repeat = {"condition": "output.done", "max_iterations": 1}
    foreach = {"items": list(range(500)), "max_concurrency": 500}
    progress = progress_of([{"id": "a", "foreach": foreach, "repeat_until": repeat}])
    for action in progress.next_actions(NOW):
        complete(progress, action, {"done": False})
    assert progress.is_over
    assert {warning.code for warning in progress.warnings} == {"max_iterations"}
    assert len(progress.warnings) == MAX_WARNINGS


def test_a_foreach_that_names_no_concurrency_has_a_hundred_items_at_work():
    progress = progress_of([{"id": "a", "foreach": {"items": list(range(250))}}])
    actions = progress.next_actions(NOW)
    assert len(actions) == DEFAULT_CONCURRENCY == 100
    complete(progress, actions[0], {})
    (following,) = progress.next_actions(NOW)
    assert following.address == "a[100].1"
