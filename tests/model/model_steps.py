"""What each kind of step does, as plain generators: they yield what they wait for and are sent what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engine.domain.conditions import parse_condition
from engine.domain.expressions import MISSING, MissingPathError, compile_template, walk
from tests.model.model_definitions import INPUT
from tests.model.model_wants import (
    STOP,
    Answer,
    Failure,
    Reply,
    Skip,
    Steps,
    Want,
    fallbacks,
    instant,
    invalid,
    is_passing,
)

if TYPE_CHECKING:
    from tests.model.model_reference import Reference


class Values:
    """What expressions read, from one place in the run."""

    def __init__(self, run: Reference, part: str, more: dict[str, Any]) -> None:
        self.run, self.part, self.more = run, part, more

    def lookup(self, path: Any) -> Any:
        if path.root == "steps":
            return self.of_step(str(path.segments[0]), path.segments[1:])
        return walk(self.more[path.root], path.segments) if path.root in self.more else MISSING

    def of_step(self, name: str, segments: tuple[Any, ...]) -> Any:
        part, *below = segments
        if name == self.more.get("own step"):
            own = self.more["own output"]
            return None if own is None else walk(own, below)
        run, status = self.run, self.run.status[name]
        is_there = status == "completed" or (status == "skipped" and name in run.outputs)
        if part == "output":
            output = run.outputs.get(name) if is_there else None
            return None if output is None and not (is_there and status == "completed") else walk(output, below)
        if status == "failed" and (name in run.continued or self.part != "main"):
            return walk(run.errors[name].payload(), below)
        return None if status != "completed" else walk(None, below)


class StepWork:
    """The work of steps; the state of the run is the reference's."""

    def whole_step(self, step: dict[str, Any]) -> Steps:
        while True:
            result = yield from self.work(step)
            is_asking = isinstance(result, Failure) and step.get("on_error") == "ask"
            if not is_asking or not self.is_open:
                return result
            gate = Want("gate", step["id"], f"ask {result.address}", allowed=["retry", "skip", "fail"])
            self.status[step["id"]] = "waiting"
            answer = yield gate
            if answer is STOP:
                return STOP
            self.status[step["id"]] = "running"
            if answer.answer == "skip":
                data = answer.data
                return Skip(data["output"] if isinstance(data, dict) and "output" in data else data)
            if answer.answer == "fail":
                return result

    def work(self, step: dict[str, Any]) -> Steps:
        kind = step.get("type", "agent")
        if "foreach" in step:
            return (yield from self.foreach(step))
        if kind in ("agent", "workflow"):
            return (yield from self.unit(step))
        if kind == "transform":
            return self.transform(step)
        return (yield from (self.wait(step) if kind == "wait" else self.approval(step)))

    def next_address(self, step: dict[str, Any], item: int | None) -> str:
        key = (step["id"], item)
        self.counters[key] = self.counters.get(key, 0) + 1
        return f"{step['id']}{'' if item is None else f'[{item}]'}.{self.counters[key]}"

    def last_address(self, step: dict[str, Any]) -> str:
        return f"{step['id']}.{self.counters.get((step['id'], None), 0)}"

    def unit(self, step: dict[str, Any], item: int | None = None, value: Any = None) -> Steps:
        roots: dict[str, Any] = {}
        if item is not None:
            roots = {"item": value, "index": item, step["foreach"].get("as", "item"): value}
        repeat = step.get("repeat_until")
        output = None
        for iteration in range(1, (repeat["max_iterations"] if repeat else 1) + 1):
            own = {"own step": step["id"], "own output": output, "iteration": iteration} if repeat else {}
            end = yield from self.turn(step, item, {**roots, **own})
            if not isinstance(end, Reply):
                return end
            overlaid = {**end.value}
            output = end.value
            if "output_mapping" in step:
                output = self.resolve(step["output_mapping"], step["id"], output=end.value, **roots)
                overlaid |= output
            if item is None:
                self.handed[step["id"]] = overlaid
            more = {**roots, "output": overlaid, "iteration": iteration}
            if repeat and parse_condition(repeat["condition"]).evaluate(self.values(step["id"], **more)):
                return Reply(output)
        if repeat:
            self.warnings.append(("max_iterations", step["id"]))
        return Reply(output)

    def turn(self, step: dict[str, Any], item: int | None, roots: dict[str, Any]) -> Steps:
        is_agent = step.get("type", "agent") == "agent"
        chain = [(step.get("agent_id"), None), *((one["agent_id"], one.get("on")) for one in fallbacks(step))]
        position = 0
        while True:
            order = (self.order.get(step["id"], 999), item or 0)
            want = Want("agent" if is_agent else "child", step["id"], self.next_address(step, item), chain[position][0])
            want.make_input = lambda: self.input_of(step, roots)
            want.order, want.goes_on = order, position > 0
            end = yield want
            if not isinstance(end, Failure) or end.kind in ("input", "store") or not is_agent:
                return end
            later = (n for n in range(position + 1, len(chain)) if chain[n][1] is None or end.reason in chain[n][1])
            following = next(later, None)
            if following is None:
                return (yield from self.escalate(step, item, roots, end))
            position = following

    def escalate(self, step: dict[str, Any], item: int | None, roots: dict[str, Any], failure: Failure) -> Steps:
        if failure.kind not in ("agent", "timeout") or self.part_of(step["id"]) != "main":
            return failure
        end: Any = failure
        for handoff in self.handoffs:
            key = (step["id"], item, f"h{handoff['number']}")
            if handoff["source"] != step["agent_id"] or is_passing(handoff) or key in self.escalated:
                continue
            events = ["failure", *(["timeout"] * (end.reason == "timeout"))]
            error = {"code": end.code, "message": end.message, "reason": end.reason}
            taken = self.fires(handoff, events, ["failure"], {"error": error})
            self.lines.add((f"h{handoff['number']}", step["id"], step["id"], taken))
            if not taken:
                continue
            self.escalated.add(key)
            want = Want("agent", step["id"], self.next_address(step, item), handoff["target"], goes_on=True)
            mapping = handoff["data_mapping"]
            added = {target: error_part for key, target in mapping.items() if (error_part := {"error": error}.get(key))}
            want.make_input = lambda added=added: {**added, **self.input_of(step, roots, with_handed=False)}
            want.order = (self.order.get(step["id"], 999), item or 0)
            end = yield want
            if not isinstance(end, Failure) or end.kind not in ("agent", "timeout"):
                return end
        return end

    def input_of(self, step: dict[str, Any], roots: dict[str, Any], *, with_handed: bool = True) -> Any:
        name = step["id"]
        if name.endswith(":compensate"):
            source = name.removesuffix(":compensate")
            default = {"input": INPUT, "steps": {source: self.outputs[source]}}
            mapping = step.get("input_mapping")
            return default if mapping is None else self.resolve(mapping, name)
        if "handed input" in step:
            return step["handed input"]
        if "input_mapping" in step:
            own = self.resolve(step["input_mapping"], name, **roots)
        else:
            values = self.values(name)
            own = {"input": INPUT, "steps": {other: values.of_step(other, ("output",)) for other in self.needs[name]}}
            if "foreach" in step:
                own |= {"item": roots["item"], "index": roots["index"]}
        return {**self.added_inputs.get(name, {}), **own} if with_handed else own

    def resolve(self, mapping: Any, name: str, **roots: Any) -> Any:
        return compile_template(mapping).resolve(self.values(name, **roots))

    def foreach(self, step: dict[str, Any]) -> Steps:
        name = step["id"]
        try:
            items = self.resolve(step["foreach"]["items"], name)
        except MissingPathError as error:
            return invalid(error.path.text, f"{self.next_address(step, None)}")
        if not isinstance(items, list):
            return invalid("not a list", f"{self.next_address(step, None)}")
        result = yield Items(self, step, items, self.item_outputs.setdefault(name, {}))
        return result

    def transform(self, step: dict[str, Any], **roots: Any) -> Any:
        address = self.next_address(step, roots.get("index"))
        try:
            return Reply(self.resolve(step["transform"], step["id"], **roots))
        except MissingPathError as error:
            return invalid(error.path.text, address)

    def wait(self, step: dict[str, Any]) -> Steps:
        address = self.next_address(step, None)
        try:
            spec = self.resolve(step["wait"], step["id"])
        except MissingPathError as error:
            return invalid(error.path.text, address)
        seconds = spec.get("seconds", 0)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            return invalid("no number", address)
        until = datetime.fromisoformat(spec["until"]) if "until" in spec else None
        want = Want("timer", step["id"], address, until=until, seconds=seconds)
        end = yield want
        return STOP if end is STOP else Reply({"waited_until": instant(want.until)})

    def approval(self, step: dict[str, Any]) -> Steps:
        spec = step["approval"]
        for level in (1, 2):
            address = self.next_address(step, None)
            try:
                self.resolve(spec["question"], step["id"])
            except MissingPathError as error:
                return invalid(error.path.text, address)
            self.status[step["id"]] = "waiting"
            gate = Want(
                "gate",
                step["id"],
                address,
                seconds=spec.get("timeout"),
                allowed=spec.get("allowed", ["approve", "reject"]),
            )
            end = yield gate
            if end is STOP:
                return STOP
            if end.answer is None:
                if spec["on_timeout"] == "escalate" and level == 1:
                    continue
                if spec["on_timeout"] != "default":
                    return Failure("timeout", "timeout", address=address)
                end = Answer(spec["default"], at=end.at)
            if end.answer in spec.get("fail_on", ["reject"]):
                return Failure("agent", "refused", message=f"rejected by {end.by}", address=address)
            return Reply({"answer": end.answer, "data": end.data, "by": end.by, "at": instant(end.at)})
        raise AssertionError("two levels at most")


class Items:
    """The items of one foreach step at work."""

    def __init__(self, run: Reference, step: dict[str, Any], items: list[Any], known: dict[int, Any]) -> None:
        self.run, self.step, self.items, self.known = run, step, items, known
        self.todo = [n for n in range(len(items)) if n not in known]
        self.active = 0
        self.failures: list[Failure] = []
        self.then: Callable[[Any], None] = lambda _: None
        tolerate = step["foreach"].get("tolerate", 0)
        is_share = isinstance(tolerate, str)
        self.tolerated = len(items) * int(tolerate.rstrip("%")) // 100 if is_share else tolerate
        self.was_stopped = self.is_over = False

    @property
    def is_failed(self) -> bool:
        return len(self.failures) > self.tolerated

    def next_item(self) -> bool:
        run, step = self.run, self.step
        is_final = run.part_of(step["id"]) != "main"
        if self.is_over or not self.todo or self.is_failed:
            return False
        if not (not run.clean_up_over if is_final else run.is_open):
            return False
        if self.active >= (step["foreach"].get("max_concurrency") or 500):
            return False
        index = self.todo.pop(0)
        self.active += 1
        run.run(self.unit(index), lambda result: self.ended(index, result))
        return True

    def unit(self, index: int) -> Steps:
        if self.step.get("type") == "transform":
            name, value = self.step["foreach"].get("as", "item"), self.items[index]
            result = self.run.transform(self.step, **{"item": value, name: value}, index=index)
        else:
            result = yield from self.run.unit(self.step, index, self.items[index])
        return result

    def ended(self, index: int, result: Any) -> None:
        self.active -= 1
        if result is STOP:
            self.was_stopped = True
        elif isinstance(result, Reply):
            self.known[index] = result.value
        else:
            self.failures.append(replace(result, item=index))
        self.end_if_done()

    def end_if_done(self) -> None:
        """Hand the step's result on when no item is at work and none will be."""
        run = self.run
        is_final = run.part_of(self.step["id"]) != "main"
        stops = run.clean_up_over if is_final else not run.is_open
        if self.is_over or self.active or (self.todo and not self.is_failed and not stops):
            return
        self.is_over = True
        if self in run.groups:
            run.groups.remove(self)
        if self.is_failed:
            self.then(self.failures[self.tolerated])
        elif self.was_stopped or self.todo:
            self.then(STOP)
        else:
            if self.failures:
                run.warnings.append(("items_failed", self.step["id"]))
            self.then(Reply([self.known.get(n) for n in range(len(self.items))]))
