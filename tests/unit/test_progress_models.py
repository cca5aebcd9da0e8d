"""The reducer against models of its own: random executions and random decisions, carried over or not."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from plans import handoff, plan_of
from reducing import (
    FACTS,
    NOW,
    PAD,
    complete,
    fail,
)

from engine.domain.carried import CarriedState
from engine.domain.execution import ExecutionStatus, StepStatus, Usage, Value
from engine.domain.progress import ExecutionProgress, InvokeAgent
from engine.domain.unit_work import MAX_RESUMES

if TYPE_CHECKING:
    from engine.domain.plan import ExecutionPlan


@dataclass
class Script:
    """How a random execution goes: its steps, and how each of its logical calls ends."""

    steps: list[dict[str, Any]]
    ends: dict[str, list[str]]
    """Step id to the end of each agent's call: ok, error or timeout."""
    lost: dict[str, int]
    seed: int


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    count = draw(st.integers(1, 8))
    steps: list[dict[str, Any]] = []
    ends: dict[str, list[str]] = {}
    lost: dict[str, int] = {}
    for number in range(count):
        step_id = f"s{number}"
        below = draw(st.lists(st.sampled_from([f"s{n}" for n in range(number)]), unique=True)) if number else []
        by_reference = draw(st.booleans())
        step: dict[str, Any] = {"id": step_id}
        if by_reference:
            step["input_mapping"] = {name: f"${{steps.{name}.output.by}}" for name in below}
        else:
            step["depends_on"] = below
        has_fallback = draw(st.booleans())
        if has_fallback:
            step["fallback"] = {"agent_id": "agent-b"}
        steps.append(step)
        endings = st.sampled_from(["ok", "ok", "ok", "error", "timeout"])
        ends[step_id] = [draw(endings) for _ in range(1 + has_fallback)]
        lost[step_id] = draw(st.integers(0, MAX_RESUMES))
    order = draw(st.permutations(steps))
    return Script(order, ends, lost, draw(st.integers(0, 2**32)))


def dependencies(step: dict[str, Any]) -> list[str]:
    return step.get("depends_on") or list(step.get("input_mapping", {}))


def model(script: Script) -> tuple[str, dict[str, str]]:
    """How it ends, and what each step's status is, when calls end in the order of a random choice."""
    choice = random.Random(script.seed)
    status = {step["id"]: "pending" for step in script.steps}
    calls = dict.fromkeys(status, 0)
    lost = dict(script.lost)
    failed = False
    while True:
        if not failed:
            for step in script.steps:
                if status[step["id"]] == "pending" and all(status[d] == "completed" for d in dependencies(step)):
                    status[step["id"]] = "running"
        running = [step["id"] for step in script.steps if status[step["id"]] == "running"]
        if not running:
            return ("failed" if failed else "completed"), status
        step_id = choice.choice(running)
        if failed:
            status[step_id] = "cancelled"
        elif lost[step_id]:
            lost[step_id] -= 1
        else:
            end = script.ends[step_id][calls[step_id]]
            calls[step_id] += 1
            if end == "ok":
                status[step_id] = "completed"
            elif calls[step_id] == len(script.ends[step_id]):
                status[step_id] = "failed"
                failed = True


def reduced(script: Script, *, carry_at: frozenset[int] = frozenset()) -> ExecutionProgress:
    """Run the reducer as the workflow does, carrying over to a new run after the events with these numbers."""
    choice = random.Random(script.seed)
    plan = plan_of(script.steps)
    progress = ExecutionProgress(plan, Value.of({}), FACTS)
    running: dict[str, InvokeAgent] = {}
    calls = dict.fromkeys(script.ends, 0)
    lost = dict(script.lost)
    events = 0
    draining = False
    while True:
        if not draining:
            running |= {action.step.id: action for action in progress.next_actions(NOW)}
        assert set(running) == {step_id for step_id, step in progress.steps.items() if step.status == "running"}
        if progress.is_over:
            return progress
        if draining and not running:
            wire = CarriedState.model_validate_json(progress.carry().model_dump_json())
            progress = ExecutionProgress(plan, Value.of({}), replace(FACTS, run_id=f"run-{events}"), wire)
            draining = False
            continue
        step_id = choice.choice([step["id"] for step in script.steps if step["id"] in running])
        action = running.pop(step_id)
        again: InvokeAgent | None = None
        if progress.ending is not None:
            fail(progress, action, "cancelled", "cancelled", 0)
        elif lost[step_id]:
            lost[step_id] -= 1
            again = fail(progress, action, "lost", "timeout", 1)
            assert again is not None
        else:
            end = script.ends[step_id][calls[step_id]]
            calls[step_id] += 1
            if end == "ok":
                complete(progress, action, {"by": step_id}, usage=Usage(requests=1))
            else:
                lost[step_id] = 0
                again = fail(progress, action, "agent" if end == "error" else "timeout", end)
        if again is not None:
            running[step_id] = again
        events += 1
        draining = draining or events in carry_at


@settings(deadline=None, max_examples=300)
@given(scripts())
def test_random_executions_go_as_the_model_says(script: Script):
    progress = reduced(script)
    ending, statuses = model(script)
    assert progress.ending is not None
    assert progress.ending.status.value == ending
    assert {step_id: step.status.value for step_id, step in progress.steps.items()} == statuses
    seen = [record.step_id for record in progress.decided if record.status is StepStatus.CANCELLED]
    assert sorted(seen) == sorted(step_id for step_id, status in statuses.items() if status == "cancelled")


@settings(deadline=None, max_examples=300)
@given(scripts(), st.lists(st.booleans(), min_size=25, max_size=25))
def test_an_execution_that_is_carried_over_ends_as_one_that_is_not(script: Script, carries: list[bool]):
    carry_at = frozenset(number for number, is_carried in enumerate(carries, start=1) if is_carried)
    whole = reduced(script)
    carried = reduced(script, carry_at=carry_at)
    ending = carried.ending.status if carried.ending else ExecutionStatus.COMPLETED
    assert whole.ending is not None
    assert ending is whole.ending.status
    if ending is ExecutionStatus.COMPLETED:
        assert {step.status for step in carried.steps.values()} == {StepStatus.COMPLETED}
        assert carried.output_input() == whole.output_input()
        assert carried.usage == whole.usage
        assert {s: step.n for s, step in carried.steps.items()} == {s: step.n for s, step in whole.steps.items()}


# Deciding: a second model, of what DESIGN section 5 says about joins, handoffs, conditions and failures.

WHENS: dict[str, str] = {
    "always": "input.flag",
    "never": "input.nothing = 1",
    "value": "steps.{0}.output.v = 1",
    "error": "steps.{0}.error != null",
    "none": "steps.{0}.output = null",
}
TRIGGERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "completion": ("completion",),
    "failure": ("failure",),
    "timeout": ("timeout",),
    "either": ("failure", "completion"),
    "value": ("source_output.v = 1",),
    "flagged": ("failure", "completion", "input.flag"),
    "barred": ("completion", "input.nothing"),
}
AGENTS = ("agent-a", "agent-b", "agent-c")
"""Makes an output too large to be carried over in memory."""


@dataclass
class Decisions:
    """A random execution that decides: its steps, the handoffs between agents and how each call ends."""

    steps: list[dict[str, Any]]
    """With ``when`` as a pair of its kind and the step it reads."""
    pairs: list[tuple[str, str, str]]
    """Source agent, target agent and kind of trigger."""
    ends: dict[str, str]
    """one (``{v: 1}``), two (``{v: 2}``, padded), error or timeout."""
    on_failure: str
    seed: int

    def plan(self) -> ExecutionPlan:
        steps = [dict(step) for step in self.steps]
        for step in steps:
            kind, subject = step.pop("kind")
            if kind is not None:
                step["when"] = WHENS[kind].format(subject)
        handoffs = [
            handoff(number, source, target, *TRIGGERS[kind]) for number, (source, target, kind) in enumerate(self.pairs)
        ]
        return plan_of(steps, handoffs, on_failure=self.on_failure)


@st.composite
def deciding(draw: st.DrawFn) -> Decisions:
    count = draw(st.integers(1, 12))
    steps: list[dict[str, Any]] = []
    for number in range(count):
        below = draw(st.lists(st.sampled_from(range(number)), unique=True, max_size=4)) if number else []
        subjects = [f"s{n}" for n in below]
        kinds = [None, None, "always", "never", *(("value", "error", "none") if subjects else ())]
        kind = draw(st.sampled_from(kinds))
        subject = draw(st.sampled_from(subjects)) if subjects else ""
        is_named = kind not in ("value", "error", "none") or draw(st.booleans())
        steps.append(
            {
                "id": f"s{number}",
                "agent_id": draw(st.sampled_from(AGENTS)),
                "depends_on": subjects if is_named else [name for name in subjects if name != subject],
                "join": draw(st.sampled_from(["all", "all", "any", "settled"])),
                "on_error": draw(st.sampled_from(["continue", "continue", "fail"])),
                "kind": (kind, subject),
            }
        )
    pair = st.tuples(st.sampled_from(AGENTS), st.sampled_from(AGENTS), st.sampled_from([*TRIGGERS]))
    pairs = draw(st.lists(pair.filter(lambda drawn: drawn[0] != drawn[1]), max_size=5))
    endings = st.sampled_from(["one", "one", "one", "two", "error", "timeout"])
    ends = {step["id"]: draw(endings) for step in steps}
    on_failure = draw(st.sampled_from(["cancel", "finish"]))
    return Decisions(draw(st.permutations(steps)), pairs, ends, on_failure, draw(st.integers(0, 2**32)))


class Reference:
    """What DESIGN says, by looking at every step again after every event."""

    def __init__(self, script: Decisions) -> None:
        self.script = script
        self.status = {step["id"]: "pending" for step in script.steps}
        self.agent = {step["id"]: step["agent_id"] for step in script.steps}
        self.failed = False

    def needs(self, step: dict[str, Any]) -> set[str]:
        kind, subject = step["kind"]
        return {*step["depends_on"], *([subject] if kind in ("value", "error", "none") else [])}

    def has(self, name: str, kind: str) -> bool:
        """Whether a settled step's value, error or null output is there; at this point failed is passed over."""
        is_one = self.status[name] == "completed" and self.script.ends[name] == "one"
        return {"value": is_one, "error": self.status[name] == "failed", "none": self.status[name] != "completed"}[kind]

    def fires(self, source: str, kind: str) -> bool:
        done, end = self.status[source] == "completed", self.script.ends[source]
        match kind:
            case "default" | "completion":
                return done
            case "failure":
                return not done
            case "timeout":
                return end == "timeout"
            case "value":
                return done and end == "one"
            case "barred":
                return False
            case _:
                return True

    def runs(self, step: dict[str, Any]) -> bool:
        needs = self.needs(step)
        have_run = [name for name in needs if self.status[name] != "skipped"]
        wanted = {"all": len(needs), "any": min(len(needs), 1), "settled": 0}[step["join"]]
        if len(have_run) < wanted:
            return False
        for source in have_run:
            pair = (self.agent[source], step["agent_id"])
            kinds = [kind for *of, kind in self.script.pairs if tuple(of) == pair]
            if kinds and not any(self.fires(source, kind) for kind in kinds):
                return False
        kind, subject = step["kind"]
        return kind in (None, "always") or (kind != "never" and self.has(subject, kind))

    def dispatch(self) -> None:
        over, news = ("completed", "failed", "skipped"), True
        while news and not self.failed:
            news = False
            for step in self.script.steps:
                if self.status[step["id"]] == "pending" and all(self.status[n] in over for n in self.needs(step)):
                    self.status[step["id"]] = "running" if self.runs(step) else "skipped"
                    news = True

    def run(self) -> str:
        choice = random.Random(self.script.seed)
        while True:
            self.dispatch()
            running = [step for step in self.script.steps if self.status[step["id"]] == "running"]
            if not running:
                return "failed" if self.failed else "completed"
            step = choice.choice(running)
            if self.failed and self.script.on_failure == "cancel":
                self.status[step["id"]] = "cancelled"
                continue
            fails = self.script.ends[step["id"]] in ("error", "timeout")
            self.status[step["id"]] = "failed" if fails else "completed"
            self.failed = self.failed or (fails and step["on_error"] == "fail")


OVER = ("completed", "failed", "skipped")


def decide(script: Decisions, carry_at: frozenset[int] = frozenset()) -> tuple[ExecutionProgress, list[str]]:
    """Run the reducer as the workflow does; also return the ids of all decided events that it made known."""
    choice = random.Random(script.seed)
    plan = script.plan()
    progress = ExecutionProgress(plan, Value.of({"flag": True}), FACTS)
    running: dict[str, InvokeAgent] = {}
    told: list[str] = []
    events, draining = 0, False
    while not progress.is_over:
        for action in [] if draining else progress.next_actions(NOW):
            running[action.step.id] = action
            told += told_by(action)
            assert all(progress.steps[name].status.value in OVER for name in action.step.depends_on)
        if progress.is_over:
            break
        if not running:
            assert draining
            wire = CarriedState.model_validate_json(progress.carry().model_dump_json())
            progress = ExecutionProgress(plan, Value.of({"flag": True}), replace(FACTS, run_id=f"run-{events}"), wire)
            draining = False
            continue
        action = running.pop(choice.choice([step["id"] for step in script.steps if step["id"] in running]))
        end = script.ends[action.step.id]
        if progress.ending is not None:
            assert fail(progress, action, "cancelled", "cancelled", 0) is None
        elif end in ("error", "timeout"):
            assert fail(progress, action, "agent" if end == "error" else "timeout", end) is None
        else:
            output = {"v": 1} if end == "one" else {"v": 2, "pad": PAD}
            complete(progress, action, output, handed=Value.of({"v": output["v"]}))
        events += 1
        draining = draining or events in carry_at
    told += [event.id for record in progress.take_decided() for event in record.events]
    return progress, told


def told_by(action: InvokeAgent) -> list[str]:
    return [event.id for event in [*action.call.events, *(e for r in action.call.decided for e in r.events)]]


def handoff_lines(script: Decisions, reference: Reference) -> int:
    """How many handoffs were decided: of each step whose join let pass, those from sources that were not skipped."""
    count = 0
    for step in script.steps:
        needs = reference.needs(step)
        have_run = [name for name in needs if reference.status[name] in ("completed", "failed")]
        wanted = {"all": len(needs), "any": min(len(needs), 1), "settled": 0}[step["join"]]
        if reference.status[step["id"]] in ("pending", "cancelled") or len(have_run) < wanted:
            continue
        count += sum(
            (reference.agent[name], step["agent_id"]) == (s, t) for name in have_run for s, t, _ in script.pairs
        )
    return count


@settings(deadline=None, max_examples=200)
@given(deciding())
def test_random_decisions_go_as_the_design_says(script: Decisions):
    reference = Reference(script)
    ending = reference.run()
    progress, told = decide(script)
    assert progress.ending is not None
    assert {name: state.status.value for name, state in progress.steps.items()} == reference.status
    assert progress.ending.status.value == ending
    assert progress.running == 0
    if ending == "completed":
        assert {state.status.value for state in progress.steps.values()} <= set(OVER)
        assert len({event for event in told if "handoff." in event}) == handoff_lines(script, reference)
    skipped = [name for name, state in progress.steps.items() if state.status is StepStatus.SKIPPED]
    assert len({event for event in told if "step.skipped" in event}) == len(skipped)


@settings(deadline=None, max_examples=200)
@given(deciding(), st.frozensets(st.integers(1, 12), max_size=6))
def test_a_new_run_decides_as_the_old_one_would_have(script: Decisions, carry_at: frozenset[int]):
    # A run that lets its calls end before it carries over changes which call a failure catches; that is no decision.
    script.steps = [{**step, "on_error": "continue"} for step in script.steps]
    whole, told = decide(script)
    carried, told_again = decide(script, carry_at)
    assert {name: state.status for name, state in carried.steps.items()} == {
        name: state.status for name, state in whole.steps.items()
    }
    assert carried.ending is not None
    assert carried.ending == whole.ending
    assert set(told_again) == set(told)
    assert sorted(warning.message for warning in carried.warnings) == sorted(w.message for w in whole.warnings)
    assert carried.output_input().inline == whole.output_input().inline or carried.output_input().operands
