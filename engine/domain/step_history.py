"""The calls, items and events of each step of an execution, put together from records in whatever order they came.

Of each address the greatest token stands. What has been decided and not yet called (a fallback, an answer that is
awaited) shows only in events, so a step's status is read from both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.domain.definition_graph import COMPENSATE, FOLLOWED, AddedStep, RunStates
from engine.domain.execution import Event, ExecutionRecord, StepRecord, StepStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["StepHistory", "open_gates", "run_states", "step_histories"]

_GATE_ENDS: Final = ("gate.answered", "gate.expired")


@dataclass(slots=True)
class StepHistory:
    """What is recorded of one step."""

    step_id: str
    calls: list[StepRecord] = field(default_factory=list[StepRecord])
    """Of the step as a whole, the earliest first."""
    items: dict[int, StepRecord] = field(default_factory=dict[int, StepRecord])
    """Item of a ``foreach`` to the last call for it."""
    item_calls: list[StepRecord] = field(default_factory=list[StepRecord])
    """All calls for items, the earliest first."""
    events: list[Event] = field(default_factory=list[Event])
    """Each once, in order."""
    is_over: bool = False
    """The execution is."""

    @property
    def last(self) -> StepRecord | None:
        """The last call of the step as a whole."""
        return self.calls[-1] if self.calls else None

    @property
    def is_added(self) -> bool:
        """Whether anything but refusals is recorded: so a step that no definition has is part of the run."""
        return bool(self.calls or self.items) or any(event.type == "handoff.taken" for event in self.events)

    @property
    def status(self) -> StepStatus:
        """Where the step stands."""
        if not self.is_over and open_gates(self.events):
            return StepStatus.WAITING
        if self.last is None:
            if not self.items:
                return StepStatus.PENDING
            return StepStatus.CANCELLED if self.is_over else StepStatus.RUNNING
        if not self.is_over and any(event.type == "step.fell_back" for event in self.last.events):
            return StepStatus.RUNNING
        return self.last.status


def step_histories(record: ExecutionRecord, records: Iterable[StepRecord]) -> dict[str, StepHistory]:
    """Return the history of each step that anything is recorded of, in the order in which they were first heard of."""
    standing: dict[tuple[str, str, int | None, int], StepRecord] = {}
    for found in records:
        address = (found.run_id, found.step_id, found.item, found.n)
        if address not in standing or standing[address].token <= found.token:
            standing[address] = found
    histories: dict[str, StepHistory] = {}

    def history(step_id: str) -> StepHistory:
        return histories.setdefault(step_id, StepHistory(step_id, is_over=record.status.is_terminal))

    calls = sorted(standing.values(), key=lambda call: (call.token, call.n))
    for call in calls:
        of_step = history(call.step_id)
        if call.item is None:
            of_step.calls.append(call)
        else:
            of_step.items[call.item] = call
            of_step.item_calls.append(call)
    events = {event.id: event for event in [*record.events, *(event for call in calls for event in call.events)]}
    for event_id in sorted(events):
        step_id = events[event_id].step_id
        if step_id is not None:
            history(step_id).events.append(events[event_id])
    return histories


def open_gates(events: Iterable[Event]) -> list[Event]:
    """Return the ``gate.opened`` of gates that have neither been answered nor expired."""
    opened: dict[str, Event] = {}
    for event in events:
        gate_id = str(event.data.get("gate_id"))
        if event.type == "gate.opened":
            opened[gate_id] = event
        elif event.type in _GATE_ENDS:
            opened.pop(gate_id, None)
    return list(opened.values())


def run_states(record: ExecutionRecord, histories: dict[str, StepHistory], defined: Collection[str]) -> RunStates:
    """Return where the steps of an execution stand; those that are not ``defined`` were added by the run."""
    added: list[AddedStep] = []
    for step_id, history in histories.items():
        if step_id in defined or not history.is_added:
            continue
        agent_id = history.last.agent_id if history.last else None
        if step_id.endswith(COMPENSATE):
            source = step_id.removesuffix(COMPENSATE)
            added.append(AddedStep(step_id, "compensation", source, agent_id or "", history.status))
        elif FOLLOWED in step_id:
            source, _, target = step_id.rpartition(FOLLOWED)
            added.append(AddedStep(step_id, "handoff", source, agent_id or target, history.status))
    statuses = {step_id: history.status for step_id, history in histories.items()}
    return RunStates(record.execution_id, record.status.value, statuses, added)
