"""What a rerun keeps of its parent: whether it may, in which form, and what that saves.

The kept part has to be what the plan of the rerun would make of it. Where a newer version says otherwise the rerun is
refused with reasons, rather than mixing two definitions in one result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.domain.carrying import settled_steps
from engine.domain.execution import Event, StepRecord, StepStatus, Usage, Value
from engine.domain.hashing import canonical_json
from engine.domain.ids import call_address
from engine.domain.plan_values import PlanValues
from engine.domain.rerun import CALLING_TYPES, OPERATOR, all_had_part
from engine.domain.step_state import StepState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from engine.domain.carried import SettledStep
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.plan import ExecutionPlan, PlanStep

__all__ = ["Difference", "Savings", "differences", "reused_record", "reused_steps", "savings"]

_NO_PART: Final = {
    **dict.fromkeys(("id", "name", "on_error", "follows", "handed", "declared", "reply_keys", "compensation"), True),
    **dict.fromkeys(("agents", "fallback_reasons", "escalations", "edges", "depends_on"), True),
    **dict.fromkeys(("timeout", "total_timeout", "retry", "at_most_once"), True),
    "approval": {"assignees", "escalate_to", "timeout"},
    "foreach": {"max_concurrency"},
}
"""What of a step has no part in an outcome that is recorded, or is looked at in a way of its own."""
_LIMITS: Final = {"timeout", "total_timeout", "retry", "at_most_once"}
"""What may have decided a failure."""
_NOT_OF_HANDOFF: Final = {"handoff_id", "created_at", "updated_at", "version", "status"}
_WRITTEN_AS: Final = {
    "agents": "agent_id",
    "fallback_reasons": "fallback",
    "repeat": "repeat_until",
    "child": "workflow_id",
    "recall": "context",
}
"""Fields of a plan's step that a definition calls otherwise."""
_OF_HANDOFFS: Final = ("edges", "escalations")
_CLOSING_EVENTS: Final = {
    StepStatus.COMPLETED: "step.completed",
    StepStatus.FAILED: "step.failed",
    StepStatus.SKIPPED: "step.skipped",
}
_MAX_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """Why a step's outcome can't be kept under another plan."""

    step_id: str
    path: str
    """As in a definition: ``steps[0].input_mapping``."""
    why: str


@dataclass(frozen=True, slots=True)
class Savings:
    """What the kept steps took when they ran."""

    agent_calls: int
    """Attempts."""
    tokens: int
    cost_usd: float | None
    seconds: float
    """From each step's first start to its last end."""


def differences(plan: ExecutionPlan, parent_plan: ExecutionPlan, reused: Iterable[StepRecord]) -> list[Difference]:
    """Return why steps that would be kept can't be: what decided their outcome is something else in ``plan``.

    What has no part in a recorded outcome may differ: names, limits that were not hit, agents that were not called,
    who was asked. A reply may hold keys that nobody reads any more, but not lack one that somebody reads now.
    """
    positions = {step.id: index for index, step in enumerate(plan.steps)}
    parents = {step.id: step for step in parent_plan.steps}
    found: list[Difference] = []
    for record in reused:
        index = positions[record.step_id]
        now, then = plan.steps[index], parents[record.step_id]
        parts, before = _deciding(now, record), _deciding(then, record)
        for name in parts:
            if parts[name] != before[name]:
                place = "handoffs" if name in _OF_HANDOFFS else f"steps[{index}].{_WRITTEN_AS.get(name, name)}"
                found.append(Difference(record.step_id, place, "it is not what the parent ran"))
        for agent_id in _called(now, record):
            if _agent_content(plan, agent_id) != _agent_content(parent_plan, agent_id):
                place = f"agents.{agent_id}"
                found.append(Difference(record.step_id, place, "the agent is not registered as it was for the parent"))
        if (unread := _unread_before(now, then)) and record.status is StepStatus.COMPLETED:
            why = f"{', '.join(unread[:_MAX_NAMED])} of its reply is read now, and was not kept for that"
            found.append(Difference(record.step_id, f"steps[{index}]", why))
    return found


def reused_record(record: StepRecord, execution_id: str, parent_id: str, at: datetime) -> StepRecord:
    """Return a step's record as the rerun keeps it: the outcome is there, what it cost stays with who paid.

    Args:
        record: of the parent; it may be kept from an earlier execution itself.
        execution_id: of the rerun.
        parent_id: of the parent.
        at: when the rerun was accepted.
    """
    source = record.reused_from or parent_id
    event_type = _CLOSING_EVENTS[record.status]
    data: JsonObject = {}
    for told in record.events:
        if told.type == event_type:
            data = told.data
    event = Event.at_instant(event_type, at, call_address(record.step_id, record.item, record.n), record.step_id)
    return record.model_copy(
        update={
            "execution_id": execution_id,
            "reused_from": source,
            "usage": Usage(),
            # Of a step that was run over a list its output is what is handed over.
            "handed": record.output if record.kind == "foreach" else record.handed,
            "events": [event.model_copy(update={"data": {**data, "reused_from": source}})],
        }
    )


def reused_steps(plan: ExecutionPlan, records: Sequence[StepRecord], at: datetime) -> list[SettledStep]:
    """Return what a run is told of the steps that it takes over, in the order in which they were over.

    What is large, or what nobody reads any more, is left out: it is in the records.

    Args:
        plan: of the run.
        records: as ``reused_record`` made them.
        at: when the rerun was accepted.
    """
    states = {step.id: StepState() for step in (*plan.steps, *plan.final_steps)}
    for record in records:
        states[record.step_id] = StepState(
            status=record.status,
            agent_id=record.agent_id,
            n=record.n,
            run_id=record.run_id,
            output=record.output,
            error=record.error,
            handed=record.handed,
            is_continued=record.status is StepStatus.FAILED,
            is_supplied=record.status is StepStatus.SKIPPED and record.reason == OPERATOR,
            is_reused=True,
        )
    order = [record.step_id for record in sorted(records, key=lambda record: record.token)]
    left = [step for step in (*plan.steps, *plan.final_steps) if not states[step.id].status.is_terminal]
    left += [step.compensation for step in plan.steps if step.compensation is not None]
    values = PlanValues(plan, Value(), "", at, states)
    told = settled_steps(plan, values, states, order, left)
    # Handoffs that add a step are decided anew, and read what was handed over.
    handing = {step.id for step in plan.steps if step.follows}
    return [
        one.model_copy(update={"handed": states[one.step_id].handed}) if one.step_id in handing else one for one in told
    ]


def savings(records: Sequence[StepRecord], inner: Sequence[StepRecord] = ()) -> Savings:
    """Sum up what steps took, over all their calls.

    Args:
        records: of the steps, as they were written where the steps ran.
        inner: of the steps of their child executions, whose time is that of the steps.
    """
    usage = Usage()
    agent_calls = 0
    for record in (*records, *inner):
        usage += record.usage
        if record.kind == "agent":
            agent_calls += record.attempts
    spans: dict[tuple[str, str], tuple[datetime, datetime]] = {}
    for record in records:
        if record.started_at is None or record.completed_at is None:
            continue
        start, end = spans.get(key := (record.execution_id, record.step_id), (record.started_at, record.completed_at))
        spans[key] = (min(start, record.started_at), max(end, record.completed_at))
    return Savings(
        agent_calls=agent_calls,
        tokens=usage.input_tokens + usage.output_tokens,
        cost_usd=usage.cost_usd,
        seconds=sum((end - start).total_seconds() for start, end in spans.values()),
    )


def _called(step: PlanStep, record: StepRecord) -> list[str]:
    """The agents that had a part in a step's outcome."""
    if record.status is StepStatus.SKIPPED:
        return []
    if all_had_part(step, record):
        return [*step.agents, *(handoff.target_agent_id for handoff in step.escalations)]
    return step.agents[: step.agents.index(record.agent_id or "") + 1]


def _deciding(step: PlanStep, record: StepRecord) -> dict[str, object]:
    """The parts of a step that decide what it comes to, in a form that can be compared."""
    decided: dict[str, object] = {
        "depends_on": sorted(step.depends_on),
        "join": step.join,
        "when": step.when,
        "edges": sorted(canonical_json(edge.model_dump(exclude={"handoff_id"})) for edge in step.edges),
    }
    if record.status is StepStatus.SKIPPED:
        return decided
    called = _called(step, record)
    decided |= step.model_dump(mode="json", exclude=_NO_PART)
    decided |= {"agents": called, "fallback_reasons": step.fallback_reasons[: max(len(called) - 1, 0)]}
    if step.type not in CALLING_TYPES:
        decided["input_mapping"] = None
    escalations = step.escalations if all_had_part(step, record) else []
    decided["escalations"] = [handoff.model_dump(exclude=_NOT_OF_HANDOFF) for handoff in escalations]
    if record.status is StepStatus.FAILED:
        decided |= step.model_dump(mode="json", include=_LIMITS)
    return decided


def _agent_content(plan: ExecutionPlan, agent_id: str) -> JsonValue:
    agent = plan.agents.get(agent_id)
    return None if agent is None else agent.model_dump(mode="json", exclude={"version"})


def _unread_before(now: PlanStep, then: PlanStep) -> list[str]:
    """What is read of a step's reply now, and may not have been asked for or kept when it ran."""
    keys = [key for key in now.reply_keys if key not in then.reply_keys]
    handed = [] if "source_output" in then.handed else [path for path in now.handed if path not in then.handed]
    return list(dict.fromkeys([*keys, *(path.removeprefix("source_output.") for path in handed)]))
