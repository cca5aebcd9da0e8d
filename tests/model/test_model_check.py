"""The reducer against an independent reference on random executions, and the check against faults it must find."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.validation import parse_definition
from tests.model.model_check import check, checked, report, shrink
from tests.model.model_definitions import AGENTS, make_case
from tests.model.model_driver import Driver, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.domain.plan import ExecutionPlan
    from tests.model.model_definitions import Case
    from tests.model.model_driver import Run

CASES = 400
BATCH = 50
TRIED_FOR_A_FAULT = 400
"""Cases in which a fault that was put in must show."""


def test_every_case_is_a_definition_that_can_be_saved():
    refused = {
        seed: [issue.message for issue in parsed.issues]
        for seed in range(CASES)
        if (parsed := parse_definition(make_case(seed).document)).definition is None
    }
    assert refused == {}


def test_cases_use_every_field_that_decides():
    text = json.dumps([[make_case(seed).document, make_case(seed).handoffs] for seed in range(CASES)])
    fields = (
        "depends_on when join foreach tolerate max_concurrency repeat_until fallback on_error on_failure handoffs "
        "max_handoffs at_most_once compensate finally budget output_mapping input_mapping approval wait transform "
        "workflow_id cleanup_timeout sequential parallel escalation settled follow ask"
    )
    assert [word for word in fields.split() if f'"{word}"' not in text] == []
    assert [agent for agent in AGENTS if agent not in text] == []


@pytest.mark.parametrize("first", range(0, CASES, BATCH))
def test_random_executions_go_as_the_reference_says(first: int):
    for seed in range(first, first + BATCH):
        difference = checked(seed)
        assert difference is None, difference


def of_steps(plan: ExecutionPlan, change: Callable[[Any], dict[str, Any]]) -> ExecutionPlan:
    """The plan with changes to fields of each main step."""
    steps = [step.model_copy(update=change(step)) for step in plan.steps]
    return plan.model_copy(update={"steps": steps})


def swapped_joins(plan: ExecutionPlan) -> ExecutionPlan:
    swapped = {"any": "all", "all": "any", "settled": "settled"}
    return of_steps(plan, lambda step: {"join": swapped[step.join]})


def no_condition(plan: ExecutionPlan) -> ExecutionPlan:
    return of_steps(plan, lambda step: {"when": None})


def one_turn_more(plan: ExecutionPlan) -> ExecutionPlan:
    def change(step: Any) -> dict[str, Any]:
        repeat = step.repeat
        more = repeat and repeat.model_copy(update={"max_iterations": repeat.max_iterations + 1})
        return {"repeat": more}

    return of_steps(plan, change)


def one_failure_more(plan: ExecutionPlan) -> ExecutionPlan:
    def change(step: Any) -> dict[str, Any]:
        foreach = step.foreach
        return {"foreach": foreach and foreach.model_copy(update={"tolerated": (foreach.tolerated or 0) + 1})}

    return of_steps(plan, change)


def fallbacks_backwards(plan: ExecutionPlan) -> ExecutionPlan:
    def change(step: Any) -> dict[str, Any]:
        return {"agents": [*step.agents[:1], *reversed(step.agents[1:])]}

    return of_steps(plan, change)


def any_reason(plan: ExecutionPlan) -> ExecutionPlan:
    return of_steps(plan, lambda step: {"fallback_reasons": [[] for _ in step.fallback_reasons]})


def nothing_undone(plan: ExecutionPlan) -> ExecutionPlan:
    return of_steps(plan, lambda _: {"compensation": None})


def no_handoffs_on_edges(plan: ExecutionPlan) -> ExecutionPlan:
    return of_steps(plan, lambda _: {"edges": []})


def nobody_escalates(plan: ExecutionPlan) -> ExecutionPlan:
    return of_steps(plan, lambda _: {"escalations": []})


def failures_passed_over(plan: ExecutionPlan) -> ExecutionPlan:
    return of_steps(plan, lambda step: {"on_error": "continue" if step.on_error == "fail" else step.on_error})


def other_on_failure(plan: ExecutionPlan) -> ExecutionPlan:
    return plan.model_copy(update={"on_failure": "finish" if plan.on_failure == "cancel" else "cancel"})


def no_finally(plan: ExecutionPlan) -> ExecutionPlan:
    return plan.model_copy(update={"final_steps": []})


def no_budget(plan: ExecutionPlan) -> ExecutionPlan:
    return plan.model_copy(update={"budget": None})


def one_handoff_less(plan: ExecutionPlan) -> ExecutionPlan:
    return plan.model_copy(update={"max_handoffs": plan.max_handoffs - 1})


FAULTS = (
    swapped_joins,
    no_condition,
    one_turn_more,
    one_failure_more,
    fallbacks_backwards,
    any_reason,
    nothing_undone,
    no_handoffs_on_edges,
    nobody_escalates,
    failures_passed_over,
    other_on_failure,
    no_finally,
    no_budget,
    one_handoff_less,
)


def first_caught(drive: Callable[[Case], Run]) -> int | None:
    """The first seed whose case agrees without a fault and differs with it."""
    for seed in range(TRIED_FOR_A_FAULT):
        case = make_case(seed)
        if check(case, drive) is not None and check(case) is None:
            return seed
    return None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_reducer_that_decides_otherwise_is_caught(fault: Callable[[ExecutionPlan], ExecutionPlan]):
    assert first_caught(lambda case: Driver(case, fault(plan_of(case))).drive()) is not None


def test_a_lost_and_a_repeated_record_are_caught():
    def lossy(case: Case) -> Run:
        run = Driver(case).drive()
        run.records = [record for record in run.records if record.status != "failed"]
        return run

    def repeating(case: Case) -> Run:
        run = Driver(case).drive()
        run.records += [record for record in run.records if record.status != "waiting"][:1]
        return run

    assert first_caught(lossy) is not None
    assert first_caught(repeating) is not None


def test_two_events_of_one_id_are_caught():
    def confusing(case: Case) -> Run:
        run = Driver(case).drive()
        run.events += [event.model_copy(update={"type": "other"}) for event in run.events[:1]]
        return run

    assert first_caught(confusing) is not None


def test_a_failing_case_is_made_small_and_told_with_its_seed():
    def fails(case: Case) -> str | None:
        return check(case, lambda one: Driver(one, no_finally(plan_of(one))).drive())

    seed = first_caught(lambda case: Driver(case, no_finally(plan_of(case))).drive())
    assert seed is not None
    small = shrink(make_case(seed), fails)
    difference = fails(small)
    assert difference is not None
    assert len(small.document["steps"]) == len(small.document["finally"]) == 1
    told = report(small, difference)
    assert f"seed {seed}" in told
    assert json.dumps(small.document, indent=1) in told
