"""What an execution should do, said a second time: each step is a plain generator that asks for its calls in turn.

It shares with the reducer only the definition's document, templates and conditions. The order of events is taken from
a trace of the reducer's run: the reference says at each point which calls may and must run, with which input, and at
the end what everything has come to. So a difference is a fault of one of the two, never of the schedule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from engine.domain.conditions import parse_condition, parse_trigger
from engine.domain.expressions import MISSING, MissingPathError, walk
from tests.model.model_definitions import INPUT, Case
from tests.model.model_steps import Items, StepWork, Values
from tests.model.model_wants import STOP, Answer, Failure, Reply, Skip, Steps, Want, invalid, is_passing


class Reference(StepWork):
    """One execution.

    Args:
        case: what is executed.
        at: when it starts.
    """

    def __init__(self, case: Case, at: datetime) -> None:
        document = case.document
        self.case, self.document, self.now, self.started_at = case, document, at, at
        self.steps = {step["id"]: step for step in [*document["steps"], *document.get("finally", [])]}
        self.finals = [step["id"] for step in document.get("finally", [])]
        self.order = {name: index for index, name in enumerate(self.steps)}
        self.needs = {name: self.dependencies(step) for name, step in self.steps.items()}
        self.status = dict.fromkeys(self.steps, "pending")
        self.reasons: dict[str, str] = {}
        self.outputs: dict[str, Any] = {}
        self.errors: dict[str, Failure] = {}
        self.continued: set[str] = set()
        self.completions: list[str] = []
        self.counters: dict[tuple[str, int | None], int] = {}
        self.escalated: set[tuple[str, int | None, str]] = set()
        self.handed: dict[str, Any] = {}
        self.added_inputs: dict[str, dict[str, Any]] = {}
        self.lines: set[tuple[str, str, str, bool]] = set()
        self.warnings: list[tuple[str, str | None]] = []
        self.chains: dict[str, list[str]] = {}
        self.added = 0
        self.startable: dict[str, list[str]] = {}
        self.item_outputs: dict[str, dict[int, Any]] = {}
        self.queue: list[Want] = []
        self.expected: dict[str, Want] = {}
        self.flight: dict[str, Want] = {}
        self.closed: set[str] = set()
        self.groups: list[Items] = []
        self.ending: tuple[str, str | None, str | None] | None = None
        """Status, error's code and the step that decided it."""
        self.failing: tuple[str, str | None, str | None] | None = None
        self.error: dict[str, Any] | None = None
        self.concluded = ""
        """The status that clean-up reads."""
        self.begun: set[str] = set()
        """Steps that have had a call, a timer or a gate."""
        self.part = "main"
        self.to_compensate: list[str] = []
        self.final_failed = self.clean_up_over = False
        self.is_paused = self.is_draining = False
        self.spent = {"tokens": 0, "agent_calls": 0}
        budget = document.get("budget") or {}
        self.limits = {name: budget[name] for name in ("tokens", "agent_calls", "seconds") if name in budget}
        self.grants = dict(self.limits)
        self.on_breach = budget.get("on_breach", "fail")
        self.budget_gates = 0
        self.has_open_budget = False
        self.handoffs = sorted(case.handoffs, key=lambda made: made["number"])
        if document.get("handoffs", "edges") == "off":
            self.handoffs = []

    # What the document says.

    def dependencies(self, step: dict[str, Any]) -> list[str]:
        fields = ("input_mapping", "output_mapping", "when", "context", "foreach", "repeat_until", "approval", "wait")
        text = json.dumps([step.get(name) for name in (*fields, "transform")])
        named = {*step.get("depends_on", []), *re.findall(r"steps\.([A-Za-z_]\w*)", text)} - {step["id"]}
        own = self.finals if step["id"] in self.finals else [one["id"] for one in self.document["steps"]]
        return [name for name in own if name in named]

    def values(self, step: str, **more: Any) -> Values:
        roots: dict[str, Any] = {"input": INPUT, "execution": {"version": 3, "workflow_id": "flow"}, **more}
        part = self.part_of(step)
        if part != "main":
            roots["execution"] = {**roots["execution"], "status": self.concluded, "error": self.error}
        return Values(self, part, roots)

    def part_of(self, step: str) -> str:
        if step.endswith(":compensate"):
            return "compensate"
        return "finally" if step in self.finals else "main"

    def has_run(self, name: str) -> bool:
        return self.status[name] == "completed" or name in self.continued or self.reasons.get(name) == "operator"

    def is_settled(self, name: str) -> bool:
        return self.status[name] in ("completed", "failed", "skipped", "cancelled")

    # Dispatch: what has begun goes on first, then steps begin in the definition's order, until nothing more happens.

    def settle(self) -> None:
        while True:
            while self.move_on():
                pass
            for _, begin in sorted(self.candidates(), key=lambda one: one[0]):
                if begin():
                    break
            else:
                return

    def candidates(self) -> list[tuple[tuple[int, int], Callable[[], bool]]]:
        found: list[tuple[tuple[int, int], Callable[[], bool]]] = []
        for position, want in enumerate(self.queue):
            found.append(((-1, position), lambda want=want: self.begin(want)))
        if self.is_held or self.has_open_budget:
            return found
        for group in self.groups:
            found.append(((self.order[group.step["id"]], group.todo[0] if group.todo else 0), group.next_item))
        names = self.finals if self.part == "finally" else [name for name in self.steps if name not in self.finals]
        is_open = not self.final_failed and not self.clean_up_over if self.part == "finally" else self.is_open
        for name in names if is_open else ():
            if name in self.startable:
                found.append(((self.order[name], 0), lambda name=name: self.begin_added(name)))
            is_ready = self.status[name] == "pending" and name not in self.chains
            if is_ready and all(map(self.is_settled, self.needs[name])):
                found.append(((self.order[name], 0), lambda name=name: self.admit(name)))
        return found

    @property
    def is_open(self) -> bool:
        return self.part == "main" and self.ending is None and self.failing is None

    @property
    def is_held(self) -> bool:
        # A run that is ending is not continued as new, so nothing waits for the next one.
        drains = self.is_draining and self.failing is None and self.ending is None
        return self.part == "main" and (self.is_paused or drains or self.has_open_budget)

    def is_stopped(self, want: Want) -> bool:
        """Whether something will never be started."""
        if want.part == "main":
            return self.ending is not None or (self.failing is not None and not want.goes_on)
        return self.clean_up_over

    def begin(self, want: Want) -> bool:
        """Start what is wanted if that can be now; return whether anything changed."""
        if self.is_stopped(want):
            self.queue.remove(want)
            want.resume(STOP)
            return True
        if self.is_held and want.kind != "gate":
            return False
        if want.part == "main" and want.kind in ("agent", "child"):
            if self.has_open_budget:
                return False
            breached = self.breach()
            if breached:
                return self.over_budget(want)
        self.queue.remove(want)
        try:
            self.begun.add(want.step)
            want.input = want.make_input()
        except MissingPathError as error:
            want.resume(invalid(f"{error.path.text}", want.address))
            return True
        if want.kind == "timer":
            want.until = want.until or self.now + timedelta(seconds=want.seconds or 0)
            if want.until <= self.now:
                want.resume(Reply(None))
                return True
        self.expected[want.address] = want
        return True

    def breach(self) -> str | None:
        running = sum(1 for want in (*self.flight.values(), *self.expected.values()) if want.kind == "agent")
        spent = {
            "tokens": self.spent["tokens"],
            "agent_calls": self.spent["agent_calls"] + running,
            "seconds": (self.now - self.started_at).total_seconds(),
        }
        return next((name for name, limit in self.grants.items() if spent[name] >= limit), None)

    def spend_out(self) -> None:
        self.fail_execution("budget_exceeded", None, Failure("input", "budget", "budget_exceeded"))

    def over_budget(self, wanted: Want) -> bool:
        """The budget keeps a call from being made; who goes on although the execution has failed asks nobody."""
        if self.failing is not None:
            self.queue.remove(wanted)
            wanted.resume(STOP)
            return True
        if self.on_breach == "fail":
            self.spend_out()
            return True
        self.budget_gates += 1
        self.has_open_budget = True
        gate = Want("gate", "", f"execution:budget.{self.budget_gates}", allowed=["continue", "fail"])

        def answered(answer: Any) -> None:
            self.has_open_budget = False
            if isinstance(answer, Answer) and answer.answer == "continue":
                for name, amount in self.limits.items():
                    self.grants[name] += amount
            elif isinstance(answer, Answer):
                self.spend_out()

        gate.resume = answered
        self.expected[gate.address] = gate
        return True

    def run(self, generator: Steps, then: Callable[[Any], None], value: Any = None) -> None:
        """Drive a generator to its next want; hand its end on."""
        try:
            want = generator.send(value)
        except StopIteration as ended:
            then(ended.value)
            return
        if isinstance(want, Items):
            want.then = lambda result: self.run(generator, then, result)
            self.groups.append(want)
            return
        want.resume = lambda result: self.run(generator, then, result)
        want.part = self.part_of(want.step)
        self.queue.append(want)

    # Whether a step runs.

    def admit(self, name: str) -> bool:
        step = self.steps[name]
        ran = [self.has_run(other) for other in self.needs[name]]
        join = step.get("join", "all")
        if ran and not {"all": all(ran), "any": any(ran), "settled": True}[join]:
            return self.skip(name, "join")
        if name not in self.finals and not self.edges_hold(step):
            return self.skip(name, "handoff")
        if step.get("when") and not parse_condition(step["when"]).evaluate(self.values(name)):
            return self.skip(name, "when")
        self.status[name] = "running"
        self.run(self.whole_step(step), lambda result: self.ended(name, result))
        return True

    def skip(self, name: str, reason: str) -> bool:
        self.status[name], self.reasons[name] = "skipped", reason
        return True

    def edges_hold(self, step: dict[str, Any]) -> bool:
        added: dict[str, Any] = {}
        holds = True
        for source in self.needs[step["id"]]:
            edges = self.between(self.agent_of(source), self.agent_of(step["id"]))
            if not edges or self.status[source] == "skipped":
                continue
            taken = [edge for edge in edges if self.decide(edge, source, step["id"])]
            holds = holds and bool(taken)
            for key, target in (taken[0]["data_mapping"] if taken else {}).items():
                found = walk(self.handed.get(source, {}), (key,))
                if found is not MISSING:
                    added.setdefault(target, found)
        self.added_inputs[step["id"]] = added
        return holds

    def agent_of(self, name: str) -> str:
        return self.steps[name].get("agent_id", "")

    def between(self, source: str, target: str) -> list[dict[str, Any]]:
        if not source:
            return []
        return [one for one in self.handoffs if (one["source"], one["target"]) == (source, target) and is_passing(one)]

    def decide(self, handoff: dict[str, Any], source: str, target: str) -> bool:
        failure = self.errors.get(source) if self.status[source] == "failed" else None
        events = ["completion"] if failure is None else ["failure", *(["timeout"] * (failure.reason == "timeout"))]
        taken = self.fires(handoff, events, ["completion"], self.handed.get(source, {}))
        self.lines.add((f"h{handoff['number']}", source, target, taken))
        return taken

    def fires(self, handoff: dict[str, Any], events: list[str], default: list[str], source_output: Any) -> bool:
        trigger = parse_trigger(handoff["triggers"])
        values = self.values("", source_output=source_output)
        listened = [event for event in trigger.events if is_passing(handoff) or event != "completion"] or default
        heard = any(event in listened for event in events)
        return heard and all(condition.evaluate(values) for condition in trigger.conditions)

    # How a step ends, and the execution.

    def ended(self, name: str, result: Any) -> None:
        step = self.steps[name]
        if result is STOP:
            self.status[name] = "cancelled" if name in self.begun else "pending"
        elif isinstance(result, Skip):
            self.status[name], self.reasons[name], self.outputs[name] = "skipped", "operator", result.output
        elif isinstance(result, Reply):
            self.status[name], self.outputs[name] = "completed", result.value
            if "foreach" in step:
                self.handed[name] = result.value
            self.completions.append(name)
            self.follow(step)
        else:
            self.status[name], self.errors[name] = "failed", result
            self.handed.pop(name, None)
            self.fail_step(step, result)

    def fail_step(self, step: dict[str, Any], failure: Failure) -> None:
        name = step["id"]
        part = self.part_of(name)
        if part == "compensate":
            self.warnings.append(("compensation_failed", name))
        elif part == "main" and self.ending is not None:
            return
        elif step.get("on_error") == "continue":
            self.continued.add(name)
            self.warnings.append(("step_failed", name))
            self.follow(step)
        elif part == "main":
            self.fail_execution(failure.code, name, failure)
        elif not self.final_failed:
            self.final_failed = True
            if self.ending is not None and self.ending[0] == "completed":
                self.ending = ("failed", failure.code, name)
            else:
                self.warnings.append(("finally_failed", None))

    def fail_execution(self, code: str, name: str | None, failure: Failure) -> None:
        if self.ending is None and self.failing is None:
            self.error = failure.payload()
            if self.document.get("on_failure", "cancel") == "finish":
                self.failing = ("failed", code, name)
                self.close_waiting()
            else:
                self.ending = ("failed", code, name)

    def follow(self, step: dict[str, Any]) -> None:
        """Run what the handoffs of a step that has ended add."""
        name, agent = step["id"], step.get("agent_id")
        if self.document.get("handoffs") != "follow" or not agent or not self.is_open or self.part_of(name) != "main":
            return
        governed = {self.agent_of(other) for other in self.steps if name in self.needs[other]}
        row: list[str] = []
        for handoff in self.handoffs:
            target = handoff["target"]
            if handoff["source"] != agent or not is_passing(handoff) or target in governed:
                continue
            chain = [*self.chains.get(name, []), agent]
            added = f"{name}>{target}"
            if "foreach" in step or not self.may_follow(handoff, name, target, chain):
                self.lines.add((f"h{handoff['number']}", name, added, False))
                continue
            self.lines.add((f"h{handoff['number']}", name, added, True))
            whole, mapping = self.handed.get(name, {}), handoff["data_mapping"]
            handed = {to: whole[key] for key, to in mapping.items() if key in whole} if mapping else whole
            self.steps[added] = {"id": added, "agent_id": target, "handed input": handed}
            self.status[added], self.needs[added], self.order[added] = "pending", [], len(self.order)
            self.chains[added] = chain
            self.added += 1
            if handoff["type"] == "sequential":
                row.append(added)
            else:
                self.startable[added] = []
        if row:
            self.startable[row[0]] = row[1:]

    def may_follow(self, handoff: dict[str, Any], name: str, target: str, chain: list[str]) -> bool:
        failure = self.errors.get(name) if self.status[name] == "failed" else None
        events = ["completion"] if failure is None else ["failure", *(["timeout"] * (failure.reason == "timeout"))]
        if not self.fires(handoff, events, ["completion"], self.handed.get(name, {})):
            return False
        return target not in chain and self.added < self.document.get("max_handoffs", 10)

    def begin_added(self, name: str) -> bool:
        """Run an added step; the next one of its row becomes startable when it has ended."""
        row = self.startable.pop(name)

        def then(result: Any) -> None:
            self.ended(name, result)
            if row:
                self.startable[row[0]] = row[1:]

        self.status[name] = "running"
        self.run(self.whole_step(self.steps[name]), then)
        return True

    def move_on(self) -> bool:
        """Go from the main graph to compensations, to the finally steps and to the end."""
        if self.part == "main" and self.ending is not None:
            self.close_waiting()
        for group in [*self.groups]:
            group.end_if_done()
        if self.flight or self.expected or self.queue or self.groups:
            return False
        before = (self.part, len(self.to_compensate))
        if self.part == "main":
            self.leave_main()
        elif self.part == "compensate":
            self.next_compensation()
        elif self.part == "finally":
            left = [name for name in self.finals if not self.is_settled(name)]
            if not left or self.final_failed or self.clean_up_over:
                self.part = "over"
        return before != (self.part, len(self.to_compensate))

    def close_waiting(self) -> None:
        """What has ended, or is to end, asks nobody and waits for no instant any more."""
        for waiting in (self.expected, self.flight):
            for address in [address for address, want in waiting.items() if want.kind in ("gate", "timer")]:
                self.closed.add(address)
                waiting.pop(address).resume(STOP)

    def leave_main(self) -> None:
        mains = [name for name in self.steps if name not in self.finals]
        if self.ending is None and self.failing is not None:
            self.ending = self.failing
        if self.ending is None:
            if not all(map(self.is_settled, mains)):
                return
            self.ending = ("completed", None, None)
        self.part = "compensate"
        self.concluded = self.ending[0]
        if self.ending[0] != "completed":
            self.to_compensate = [n for n in reversed(self.completions) if "compensate" in self.steps[n]]

    def next_compensation(self) -> None:
        if not self.to_compensate or self.clean_up_over:
            self.to_compensate = []
            self.part = "finally"
            return
        source = self.to_compensate.pop(0)
        name = f"{source}:compensate"
        self.steps[name] = {"id": name, **self.steps[source]["compensate"]}
        self.status[name], self.needs[name], self.order[name] = "running", [], len(self.order)
        self.run(self.turn(self.steps[name], None, {}), lambda result: self.ended(name, result))

    def final_output(self) -> Any:
        """The execution's output; the text ``missing`` when its mapping reads what is not there."""
        mains = [step["id"] for step in self.document["steps"]]
        read = {name for main in mains for name in self.needs[main]}
        leaves = [name for name in mains if name not in read]
        mapping: Any = self.document.get("output_mapping")
        if not mapping:
            each = {name: f"${{steps.{name}.output}}" for name in leaves}
            mapping = each[leaves[0]] if len(leaves) == 1 else each
        try:
            return self.resolve(mapping, "")
        except MissingPathError:
            return "missing"
