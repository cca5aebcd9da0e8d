"""Which steps of an ended execution run again, and which keep what they came to.

A step keeps its outcome unless something that it rests on does not. That is a question of the graph, the recorded
outcomes and the input alone, so it is answered once, before anything starts, and a preview can tell it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.domain.conditions import parse_condition, parse_trigger
from engine.domain.definition_reads import compensation_id
from engine.domain.execution import StepRecord, StepStatus
from engine.domain.expressions import Missing, Path, RootsScope, compile_template, read_path
from engine.domain.hashing import canonical_json
from engine.domain.issues import nearest_word
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from engine.domain.json import JsonValue
    from engine.domain.plan import ExecutionPlan, PlanStep

__all__ = [
    "CALLING_TYPES",
    "OPERATOR",
    "RerunChoice",
    "all_had_part",
    "changed_paths",
    "check_chosen",
    "choose_steps",
    "reads_changed",
]

CALLING_TYPES: Final = ("agent", "workflow")
"""The types of step that take an input mapping."""
OPERATOR: Final = "operator"
"""Reason of a step's skip by an operator, who may have given its output."""
_DECIDED_SKIPS: Final = frozenset({"join", "handoff", "when", OPERATOR})
"""Reasons of skips that were decided, as opposed to steps that nobody came to."""
_MAX_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class RerunChoice:
    """What becomes of each step of a plan."""

    rerun: list[str]
    """In plan order; steps of ``finally``, which always run, come last."""
    reused: list[StepRecord] = field(default_factory=list[StepRecord])
    """The parent's record of each step that is kept, in plan order."""

    @property
    def reused_ids(self) -> list[str]:
        """The steps that are kept, in plan order."""
        return [record.step_id for record in self.reused]


def check_chosen(plan: ExecutionPlan, chosen: Iterable[str]) -> None:
    """Require that each of ``chosen`` is a step of the plan.

    Raises:
        InvalidInputError: one is not; the message has the nearest name.
    """
    known = {step.id: None for step in (*plan.steps, *plan.final_steps)}
    for name in chosen:
        if name in known:
            continue
        source = name.partition(">")[0].partition(":")[0]
        if source != name and source in known:
            hint = f"the run added it to step {source}; name that one"
        elif (near := nearest_word(name, known)) is not None:
            hint = f"did you mean {near!r}?"
        else:
            more = ", ..." if len(known) > _MAX_NAMED else ""
            hint = f"its steps are {', '.join(list(known)[:_MAX_NAMED])}{more}"
        raise InvalidInputError(
            f"from_step names {name!r}, which is no step of workflow {plan.definition_id}, version {plan.version}: "
            f"{hint}",
            {"path": "from_step", "step_id": name},
        )


def choose_steps(
    plan: ExecutionPlan,
    parent_plan: ExecutionPlan,
    records: Sequence[StepRecord],
    chosen: Collection[str] = (),
    changed_input: frozenset[str] = frozenset(),
) -> RerunChoice:
    """Decide which steps run again.

    Those that are chosen, that read other input than before, that have no outcome which stands or that were undone;
    and everything that rests on one of them.

    Args:
        plan: what the rerun runs.
        parent_plan: what the parent ran.
        records: all step records of the parent.
        chosen: ids that run again whatever they came to.
        changed_input: paths (``changed_paths``) at which the input is another one than the parent's.
    """
    outcomes = _outcomes(records)
    begun = {record.step_id for record in records}
    parents = {step.id: step for step in parent_plan.steps}
    kept: dict[str, StepRecord] = {}
    for step in plan.steps:
        outcome = outcomes.get(step.id)
        if outcome is None or step.id in chosen or compensation_id(step.id) in begun:
            continue
        reads_changed = bool(changed_input) and not changed_input.isdisjoint(_input_reads(step, outcome))
        if _stands(step, parents.get(step.id), outcome) and not reads_changed:
            kept[step.id] = outcome
    _drop_dependants(plan.steps, kept)
    rerun = [step.id for step in plan.steps if step.id not in kept]
    return RerunChoice(
        rerun=[*rerun, *(step.id for step in plan.final_steps)],
        reused=[kept[step.id] for step in plan.steps if step.id in kept],
    )


def changed_paths(plan: ExecutionPlan, before: JsonValue, after: JsonValue) -> frozenset[str]:
    """Return the paths into the input that a step or the output reads, and that resolve to another value now.

    Args:
        plan: whose steps read.
        before: the parent's input.
        after: the rerun's.
    """
    read = [*compile_template(plan.output).paths, *(path for step in plan.steps for path in _reads(step, whole=True))]
    paths = {_key(path): path for path in read if path.root == "input"}
    old, new = RootsScope({"input": before}), RootsScope({"input": after})
    return frozenset(key for key, path in paths.items() if not _same(read_path(old, path), read_path(new, path)))


def reads_changed(plan: ExecutionPlan, changed_input: frozenset[str]) -> bool:
    """Return whether the execution's own output reads one of these paths."""
    return any(path.root == "input" and _key(path) in changed_input for path in compile_template(plan.output).paths)


def all_had_part(step: PlanStep, record: StepRecord) -> bool:
    """Whether more than the first agents up to the recorded one may have had a part in an outcome."""
    is_one_call = step.foreach is None and step.repeat is None and record.status is StepStatus.COMPLETED
    return not (is_one_call and record.agent_id in step.agents)


def _outcomes(records: Iterable[StepRecord]) -> dict[str, StepRecord]:
    """The record that stands for each step as a whole."""
    outcomes: dict[str, StepRecord] = {}
    for record in records:
        current = outcomes.get(record.step_id)
        if record.item is None and (current is None or record.token >= current.token):
            outcomes[record.step_id] = record
    return outcomes


def _stands(step: PlanStep, parent: PlanStep | None, outcome: StepRecord) -> bool:
    match outcome.status:
        case StepStatus.COMPLETED:
            return True
        case StepStatus.FAILED:
            return parent is not None and parent.on_error == step.on_error == "continue"
        case StepStatus.SKIPPED:
            return outcome.reason in _DECIDED_SKIPS
        case _:
            return False


def _drop_dependants(steps: Sequence[PlanStep], kept: dict[str, StepRecord]) -> None:
    """Take out of ``kept`` what rests on a step that is not in it."""
    dependants: dict[str, list[str]] = {}
    for step in steps:
        for dependency in step.depends_on:
            dependants.setdefault(dependency, []).append(step.id)
    again = [step.id for step in steps if step.id not in kept]
    while again:
        resting = [name for name in dependants.get(again.pop(), ()) if name in kept]
        again += resting
        for name in resting:
            del kept[name]


def _input_reads(step: PlanStep, outcome: StepRecord) -> set[str]:
    return {_key(path) for path in _reads(step, whole=all_had_part(step, outcome)) if path.root == "input"}


def _reads(step: PlanStep, *, whole: bool) -> list[Path]:
    """Every path that decides what a step comes to; ``whole``: those of its escalations too."""
    templates: list[JsonValue] = [step.transform]
    if step.type in CALLING_TYPES:
        templates += [step.input_mapping, step.output_mapping]
    if step.recall is not None:
        templates.append(step.recall.recall)
    if step.foreach is not None:
        templates.append(step.foreach.items)
    if step.wait is not None:
        templates += [step.wait.seconds, step.wait.until]
    if step.approval is not None:
        templates.append(step.approval.question)
    paths = [path for template in templates if template is not None for path in compile_template(template).paths]
    conditions = [step.when, None if step.repeat is None else step.repeat.condition]
    paths += [path for text in conditions if text is not None for path in parse_condition(text).paths]
    for handoff in (*step.edges, *(step.escalations if whole else ())):
        paths += [path for one in parse_trigger(handoff.trigger_conditions).conditions for path in one.paths]
    return paths


def _key(path: Path) -> str:
    return f"{path.text} ?? {path.default!r}"


def _same(one: JsonValue | Missing, other: JsonValue | Missing) -> bool:
    if isinstance(one, Missing) or isinstance(other, Missing):
        return one is other
    return canonical_json(one) == canonical_json(other)
