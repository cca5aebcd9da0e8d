"""What a run leaves to the one that continues it as new, and how that one takes it up.

Small values that somebody still reads are carried themselves; a larger one is read from its record. Nothing is
scheduled at that moment: what has begun waits for its next call, an instant or an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.actions import Ending
from engine.domain.carried import CarriedEnding, CarriedItems, CarriedState, CarriedUnit, SettledStep
from engine.domain.cleanup import Cleanup
from engine.domain.execution import ExecutionStatus, StepStatus
from engine.domain.expressions import MISSING, Missing, compile_template, json_size, render_path
from engine.domain.foreach import stretches
from engine.domain.messages import MAX_DECLARED_BYTES
from engine.domain.operands import Unavailable
from engine.domain.plan_values import condition_paths, read_steps
from engine.domain.step_state import ItemStates, StepState, Unit
from engine.domain.waits import EXPIRES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.domain.execution import Value
    from engine.domain.expressions import Path
    from engine.domain.json import JsonValue
    from engine.domain.plan import ExecutionPlan, PlanStep
    from engine.domain.plan_values import PlanValues
    from engine.domain.progress import ExecutionProgress

__all__ = ["carry", "restore", "reuse", "settled_steps"]

CARRIED_INLINE_BYTES: Final = 2 * 1024
CARRIED_TOTAL_BYTES: Final = 96 * 1024
MAX_CARRIED_ERROR_CHARS: Final = 300


def settled_steps(
    plan: ExecutionPlan, values: PlanValues, states: dict[str, StepState], order: Iterable[str], left: list[PlanStep]
) -> list[SettledStep]:
    """Return the steps that are over, as a run needs them that goes on with others.

    Args:
        plan: of the run.
        values: over ``states``.
        states: of all steps.
        order: ids of the steps that are over, in the order in which they ended.
        left: the steps that are not over: only what these, or the execution's output, read is kept.
    """
    needed = {str(path.segments[0]) for path in compile_template(plan.output).paths if path.root == "steps"}
    decisive: dict[str, list[Path]] = {}
    handing: set[str] = set()
    for step in left:
        needed |= read_steps(step)
        handing |= {edge.source_step for edge in step.edges}
        for path in compile_template(step.input_mapping).paths:
            if path.root == "steps" and path.segments[1:2] == ("handed",):
                handing.add(str(path.segments[0]))
        for path in condition_paths(step):
            if path.root == "steps" and path.segments[1:2] == ("output",):
                decisive.setdefault(str(path.segments[0]), []).append(path)
    settled: list[SettledStep] = []
    room_bytes = CARRIED_TOTAL_BYTES
    for step_id in order:
        step, used_bytes = _settled(step_id, states[step_id], room_bytes, keep=step_id in needed)
        room_bytes -= used_bytes
        if step_id in handing:
            step, used_bytes = _with_handed(step, states[step_id], room_bytes)
            room_bytes -= used_bytes
        if step.in_record and step_id in decisive:
            step, used_bytes = _with_known(step, decisive[step_id], values, room_bytes)
            room_bytes -= used_bytes
        settled.append(step)
    return settled


def _settled(step_id: str, state: StepState, room_bytes: int, *, keep: bool) -> tuple[SettledStep, int]:
    limit_bytes = min(CARRIED_INLINE_BYTES, room_bytes)
    size_bytes = 0 if state.output is None else _carried_size(state.output, limit_bytes)
    is_small = state.output is not None and size_bytes <= limit_bytes
    has_output = keep and (state.has_run and not state.is_continued)
    error = state.error if state.status is StepStatus.FAILED else None
    if error is not None:
        details = {
            key: value for key, value in error.details.items() if key in ("reason", "step_id", "agent_id", "item")
        }
        error = error.model_copy(update={"message": error.message[:MAX_CARRIED_ERROR_CHARS], "details": details})
    step = SettledStep(
        step_id=step_id,
        run_id=state.run_id,
        n=state.n,
        output=state.output if has_output and is_small else None,
        in_record=has_output and not is_small,
        status=state.status,
        is_continued=state.is_continued,
        is_supplied=state.is_supplied,
        is_reused=state.is_reused,
        error=error,
    )
    return step, size_bytes if has_output and is_small else 0


def _with_handed(step: SettledStep, state: StepState, room_bytes: int) -> tuple[SettledStep, int]:
    """Add what was handed over; a large value stays in the record, with what is declared of it."""
    handed = state.output if state.items is not None else state.handed
    if handed is None:
        return step.model_copy(update={"handed_in_record": state.handed_in_record}), 0
    limit_bytes = min(MAX_DECLARED_BYTES, room_bytes)
    size_bytes = _carried_size(handed, limit_bytes)
    if size_bytes > limit_bytes:
        return step.model_copy(update={"handed_in_record": True}), 0
    return step.model_copy(update={"handed": handed}), size_bytes


def _with_known(step: SettledStep, paths: list[Path], values: PlanValues, room_bytes: int) -> tuple[SettledStep, int]:
    """Add what conditions will read of an output that is not carried over itself."""
    declared: dict[str, JsonValue] = {}
    absent: list[str] = []
    lengths: dict[str, int] = {}
    used_bytes = 0
    for path in paths:
        located = values.locate(path)
        key = render_path("output", path.segments[2:])
        try:
            if not isinstance(located, Missing) and (length := located.read_length()) is not None:
                lengths[key] = length
            value = MISSING if isinstance(located, Missing) else located.read()
        except Unavailable:
            continue
        if isinstance(value, Missing):
            absent.append(key)
            continue
        size_bytes = json_size(value, limit=MAX_DECLARED_BYTES)
        if size_bytes <= min(MAX_DECLARED_BYTES, room_bytes - used_bytes):
            declared[key] = value
            used_bytes += size_bytes
    return step.model_copy(update={"declared": declared, "absent": absent, "lengths": lengths}), used_bytes


def carry(progress: ExecutionProgress) -> CarriedState:
    """Return what the next run needs; nothing may be scheduled."""
    plan, work, following = progress.plan, progress.work, progress.following
    all_steps = [*plan.steps, *following.added, *plan.final_steps]
    left = [step for step in all_steps if not progress.steps[step.id].status.is_terminal]
    left += [step for ones in following.queued.values() for step in ones]
    cleanup = progress.cleanup
    order = [*progress.main.settled_order, *([] if cleanup is None else cleanup.frontier.settled_order)]
    may_undo = [step.compensation for step in plan.steps if step.compensation is not None]
    left += [step for step in may_undo if step.id not in progress.steps]
    settled = settled_steps(plan, progress.values, progress.steps, order, left)
    open_ids = {step.id for step in left}
    return CarriedState(
        started_at=progress.facts.started_at,
        settled=settled,
        decided=progress.take_decided(),
        usage=progress.usage,
        warnings=progress.warnings[len(plan.warnings) :],
        added=following.added,
        queued=[step for ones in following.queued.values() for step in ones],
        queued_after={after: [step.id for step in ones] for after, ones in following.queued.items()},
        units=[*(_carried_unit(unit, "call", None) for unit in work.again), *_waiting_units(progress)],
        items=_open_items(progress, [step.id for step in all_steps if step.id in open_ids]),
        gates=progress.gates.carry(),
        paused=progress.is_paused,
        calls=progress.budget.calls,
        grants=progress.budget.grants,
        breaches=progress.budget.breaches,
        handoffs_taken=progress.admissions.taken,
        handoffs_refused=progress.admissions.refused,
        ending=_carried_ending(progress),
    )


def _open_items(progress: ExecutionProgress, step_ids: list[str]) -> list[CarriedItems]:
    found: list[CarriedItems] = []
    for step_id in step_ids:
        state = progress.steps[step_id]
        if state.items is not None:
            found.append(_carried_items(step_id, state.items, state))
    return found


def _waiting_units(progress: ExecutionProgress) -> list[CarriedUnit]:
    waiting = [
        _carried_unit(unit, "instant", progress.work.due_at[address])
        for address, unit in progress.work.timers.items()
        if not address.endswith(EXPIRES)
    ]
    waiting += [
        _carried_unit(gate.unit, "gate", gate.record.expires_at)
        for gate in progress.gates.open_gates
        if gate.unit is not None
    ]
    return waiting


def _carried_unit(unit: Unit, waits_for: str, due_at: object) -> CarriedUnit:
    state = unit.state
    is_small = state.output is not None and _carried_size(state.output, CARRIED_INLINE_BYTES) <= CARRIED_INLINE_BYTES
    return CarriedUnit.model_validate(
        {
            "step_id": unit.step_id,
            "item": unit.item,
            "n": state.n,
            "run_id": state.run_id,
            "choice": state.choice,
            "iteration": state.iteration,
            "attempts": state.attempts,
            "started_at": state.started_at,
            "output": state.output if is_small else None,
            "output_n": state.output_n,
            "in_record": state.output is not None and not is_small,
            "error": state.error,
            "escalated": sorted(state.escalated),
            "waits_for": waits_for,
            "due_at": due_at,
        }
    )


def _carried_items(step_id: str, items: ItemStates, state: StepState) -> CarriedItems:
    return CarriedItems(
        step_id=step_id,
        n=state.n,
        count=items.count,
        tolerated=items.tolerated,
        next=items.next,
        again=items.again,
        completed=stretches({*items.outputs, *items.recorded}),
        failed=items.failed,
        calls=items.calls,
        error=items.error,
        attempts=state.attempts,
        started_at=state.started_at,
    )


def _carried_ending(progress: ExecutionProgress) -> CarriedEnding | None:
    ending, cleanup = progress.ending, progress.cleanup
    if ending is None:
        return None
    undo = [] if cleanup is None else [step.id for step in cleanup.undo]
    return CarriedEnding(
        status=ending.status,
        error=ending.error,
        cancel=ending.cancel,
        cleanup_started_at=None if cleanup is None else cleanup.started_at,
        cancelled=[name for name, state in progress.steps.items() if state.status is StepStatus.CANCELLED],
        compensations=undo,
        failed=None if cleanup is None else cleanup.failed,
    )


def reuse(progress: ExecutionProgress, reused: Sequence[SettledStep]) -> None:
    """Take over the steps of a rerun that keep their outcome; what handoffs add behind them runs again."""
    for settled in reused:
        _restore_step(progress, settled)
    progress.main.restart()
    for settled in reused:
        step = progress.plan_steps[settled.step_id]
        if step.follows and settled.status is not StepStatus.SKIPPED:
            progress.follow(step, progress.steps[step.id], progress.facts.started_at)
    if progress.main.unsettled == 0:
        progress.ending = Ending(ExecutionStatus.COMPLETED)


def restore(progress: ExecutionProgress, carried: CarriedState) -> None:
    """Go on where the run before stood."""
    work = progress.work
    work.usage = carried.usage
    work.decided = list(carried.decided)
    work.warnings.extend(carried.warnings)
    progress.is_paused = carried.paused
    progress.budget.calls = carried.calls
    progress.budget.breaches = carried.breaches
    progress.admissions.taken = carried.handoffs_taken
    progress.admissions.refused = carried.handoffs_refused
    if carried.grants is not None:
        progress.budget.grants = carried.grants
    _restore_added(progress, carried)
    final_ids = {step.id for step in progress.plan.final_steps}
    for settled in carried.settled:
        if settled.step_id not in final_ids:
            _restore_step(progress, settled)
    if carried.ending is not None:
        _restore_ending(progress, carried.ending)
    for settled in carried.settled:
        if settled.step_id in final_ids:
            _restore_step(progress, settled)
    for items in carried.items:
        _restore_items(progress, items)
    _restore_units(progress, carried)
    progress.main.restart()
    if progress.cleanup is not None:
        progress.cleanup.frontier.restart()
    progress.admissions.readmit(
        [progress.plan_steps[step_id] for step_id, state in progress.steps.items() if state.is_open]
    )
    for items in carried.items:
        progress.frontier_of(progress.plan_steps[items.step_id]).push(items.step_id)
    progress.news.tell_status()


def _restore_added(progress: ExecutionProgress, carried: CarriedState) -> None:
    queued = {step.id: step for step in carried.queued}
    for after, ids in carried.queued_after.items():
        progress.following.queued[after] = [queued[step_id] for step_id in ids]
    for step in carried.added:
        progress.following.added.append(step)
        progress.add_step(step)


def _restore_step(progress: ExecutionProgress, settled: SettledStep) -> None:
    state = progress.steps[settled.step_id]
    state.status = settled.status
    state.is_continued = settled.status is StepStatus.FAILED and settled.is_continued
    state.is_supplied = settled.is_supplied
    state.is_reused = settled.is_reused
    state.error = settled.error
    state.handed = settled.handed
    state.handed_in_record = settled.handed_in_record
    if settled.status is not StepStatus.COMPLETED:
        progress.admissions.must_join = True
    state.n = settled.n
    state.run_id = settled.run_id
    state.output = settled.output
    state.in_record = settled.in_record
    state.known = {**settled.declared, **dict.fromkeys(settled.absent, MISSING)}
    state.lengths = settled.lengths
    progress.frontier_of(progress.plan_steps[settled.step_id]).settle(settled.step_id)


def _restore_ending(progress: ExecutionProgress, ending: CarriedEnding) -> None:
    progress.ending = Ending(ending.status, ending.error, ending.cancel)
    for step_id in ending.cancelled:
        if step_id in progress.steps:
            progress.steps[step_id].status = StepStatus.CANCELLED
    if ending.cleanup_started_at is None:
        return
    by_id = {step.compensation.id: step.compensation for step in progress.plan.steps if step.compensation is not None}
    undo = [by_id[step_id] for step_id in ending.compensations]
    cleanup = Cleanup(progress, undo, ending.cleanup_started_at)
    cleanup.failed = ending.failed
    progress.open_clean_up(cleanup)


def _restore_items(progress: ExecutionProgress, carried: CarriedItems) -> None:
    state = progress.steps[carried.step_id]
    state.status = StepStatus.RUNNING
    state.n = carried.n
    state.run_id = progress.facts.run_id
    state.attempts = carried.attempts
    state.started_at = carried.started_at
    state.items = ItemStates(
        count=carried.count,
        tolerated=carried.tolerated,
        next=carried.next,
        again=list(carried.again),
        recorded={item for first, last in carried.completed for item in range(first, last + 1)},
        failed=dict(carried.failed),
        calls=dict(carried.calls),
        error=carried.error,
    )


def _restore_units(progress: ExecutionProgress, carried: CarriedState) -> None:
    work = progress.work
    units: dict[tuple[str, int | None], Unit] = {}
    for one in carried.units:
        unit = _restored_unit(progress, one)
        units[one.step_id, one.item] = unit
        if one.waits_for == "call":
            work.again.append(unit)
        elif one.waits_for == "instant" and one.due_at is not None:
            timer = work.waits.start_timer(f"{one.step_id}.{one.n}", unit, one.due_at, unit.step.name)
            progress.due.append(timer)
    for gate in carried.gates:
        step_id = gate.record.step_id
        unit = None if step_id is None else units.get((step_id, gate.item))
        progress.gates.restore(gate, unit)
        due_at = gate.record.expires_at
        if gate.record.status == "open" and unit is not None and due_at is not None:
            name = f"gate {gate.record.gate_id} expires"
            progress.due.append(work.waits.start_timer(gate.record.gate_id + EXPIRES, unit, due_at, name))


def _restored_unit(progress: ExecutionProgress, carried: CarriedUnit) -> Unit:
    step = progress.plan_steps.get(carried.step_id)
    if step is None:
        raise ValueError(f"The plan has no step {carried.step_id}")
    state = progress.steps[step.id]
    if carried.item is not None:
        state = StepState()
        items = progress.steps[step.id].items
        if items is not None:
            items.open[carried.item] = state
    state.status = StepStatus.RUNNING if carried.waits_for == "call" else StepStatus.WAITING
    state.n = carried.n
    state.run_id = carried.run_id
    state.choice = carried.choice
    state.iteration = carried.iteration
    state.attempts = carried.attempts
    state.started_at = carried.started_at
    state.output = carried.output
    state.output_n = carried.output_n
    state.in_record = carried.in_record
    state.error = carried.error
    state.escalated = set(carried.escalated)
    return Unit(step, state, carried.item)


def _carried_size(value: Value, limit_bytes: int) -> int:
    return json_size(value.inline if value.ref is None else value.ref.declared, limit=limit_bytes)
