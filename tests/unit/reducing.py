"""What the tests of the reducer tell it, and the facts of a run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from plans import START, plan_of

from engine.domain.execution import Cancellation, Value
from engine.domain.messages import StepOutcome
from engine.domain.progress import CallFailure, ExecutionProgress, InvokeAgent, RunFacts

NOW = START + timedelta(minutes=1)
FACTS = RunFacts("flow-1", "run-1", START, START)
PAD = "x" * 3000


def progress_of(steps: list[dict[str, Any]], execution_input: object = None, **fields: Any) -> ExecutionProgress:
    return ExecutionProgress(plan_of(steps, **fields), Value.of(execution_input or {}), FACTS)  # pyright: ignore[reportArgumentType] # tests pass JSON


def outcome(output: Any = None, **fields: Any) -> StepOutcome:
    value = output if isinstance(output, Value) else Value.of(output)
    return StepOutcome(output=value, started_at=NOW, completed_at=NOW, token=1, **fields)


def failure(kind: Any = "agent", reason: str = "error", attempts: int = 1, **fields: Any) -> CallFailure:
    return CallFailure(kind, reason, f"it was {reason}", attempts, **fields)


def complete(progress: ExecutionProgress, action: InvokeAgent, output: Any = None, **fields: Any) -> None:
    progress.apply_outcome(action.address, outcome(output, **fields), action.call)


def fail(progress: ExecutionProgress, action: InvokeAgent, *args: Any, **fields: Any) -> InvokeAgent | None:
    """Let a call fail; return the call that takes its place, if one does."""
    progress.apply_failure(action.address, failure(*args, **fields), action.call, NOW)
    return replacement(progress)


def replacement(progress: ExecutionProgress) -> InvokeAgent | None:
    work = progress.work
    if work.resumed:
        return work.resumed.popleft()
    if not work.again:
        return None
    action = work.begin(work.again.popleft(), NOW)
    assert isinstance(action, InvokeAgent)
    return action


def ids(actions: list[InvokeAgent]) -> list[str]:
    return [action.step.id for action in actions]


def chain(length: int) -> list[dict[str, Any]]:
    return [{"id": f"s{n}", "depends_on": [f"s{n - 1}"] if n else []} for n in range(length)]


def ids_of(steps: list[dict[str, Any]]) -> list[str]:
    return [step["id"] for step in steps]


def end_by(way: str, progress: ExecutionProgress, action: InvokeAgent) -> None:
    match way:
        case "cancel":
            progress.cancel(Cancellation(reason="stop", at=NOW))
        case "time_out":
            progress.time_out()
        case _:
            fail(progress, action)
