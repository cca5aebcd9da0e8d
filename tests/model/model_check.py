"""Compares a run of the reducer with the reference, and makes a case that differs as small as it can be."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from engine.domain.validation import parse_definition
from tests.model.model_definitions import Case, Noise, make_case
from tests.model.model_driver import START, Driver, Run
from tests.model.model_reference import Reference
from tests.model.model_replay import Replay
from tests.model.model_wants import DisagreementError, shown

Check = Callable[[Case], str | None]
MAX_SHRINKING = 1500
"""Cases that are tried while one is made smaller."""


def check(case: Case, drive: Callable[[Case], Run] | None = None) -> str | None:
    """Run a case and compare; return what differs, None when nothing does."""
    try:
        compare(case, Driver(case).drive() if drive is None else drive(case))
    except DisagreementError as error:
        return str(error)
    return None


def compare(case: Case, run: Run) -> None:
    """Compare a run with what it should have been.

    Raises:
        DisagreementError: they differ.
    """
    reference = Replay(case, START)
    reference.settle()
    for entry in run.entries:
        try:
            reference.apply(entry)
        except DisagreementError as error:
            raise DisagreementError(f"after {(entry.at - START).total_seconds():g} s: {error}") from None
    if run.stuck:
        raise DisagreementError(f"{run.stuck}; at work are {sorted(reference.flight)}")
    if reference.part != "over":
        left = sorted([*reference.flight, *(want.address for want in reference.queue)])
        raise DisagreementError(f"it is over, and should be at {reference.part}: {left}")
    compare_steps(reference, run)
    compare_end(reference, run)
    check_records(run)


def compare_steps(reference: Reference, run: Run) -> None:
    assert run.progress is not None
    states = run.progress.steps
    for name, status in reference.status.items():
        state = states.get(name)
        seen = "pending" if state is None else state.status.value
        if seen not in others_allowed(reference, name, status):
            raise DisagreementError(f"step {name} is {seen}, and should be {status}")
        if state is None:
            continue
        if state.output is not None and state.output.ref is None and status == "completed" == seen:
            want(f"the output of {name}", state.output.inline, reference.outputs[name])
        if seen == "failed" == status and state.error is not None:
            want(f"the error of {name}", state.error.code, reference.errors[name].code)
            item = reference.errors[name].item
            if item is not None:
                want(f"the failed item of {name}", state.error.details.get("item"), item)
    unknown = {name for name, state in states.items() if state.status.value != "pending"} - set(reference.status)
    if unknown:
        raise DisagreementError(f"nobody asked for {sorted(unknown)}")


def others_allowed(reference: Reference, name: str, status: str) -> set[str]:
    """What the specification leaves open about a step that was at work when the end was decided."""
    if reference.ending is not None and status in ("cancelled", "failed") and name not in reference.continued:
        decided_by = reference.ending[2] == name
        return {"failed"} if decided_by else {"cancelled", "failed"}
    return {status, "cancelled"} if status == "pending" and "foreach" in reference.steps[name] else {status}


def compare_end(reference: Reference, run: Run) -> None:
    assert run.progress is not None
    ending = run.progress.ending
    assert reference.ending is not None
    status, code, step = reference.ending
    want("the status", None if ending is None else ending.status.value, status)
    assert ending is not None
    want("the error's code", None if ending.error is None else ending.error.code, code)
    if ending.error is not None and step is not None and f"Step {step} failed" not in ending.error.message:
        raise DisagreementError(f"the error is {ending.error.message!r}, and should be that of {step}")
    if status == "completed":
        want("the output", run.output, reference.final_output())
    warned = {(warning.code, warning.step_id) for warning in run.progress.warnings}
    want("the warnings", sorted(warned, key=str), sorted(set(reference.warnings), key=str))
    once = Counter(warning.step_id for warning in run.progress.warnings if warning.code == "items_failed")
    want("warnings of items", [name for name, count in once.items() if count > 1], [])
    # A step that a budget kept from beginning tells of nothing.
    untold = {name for name, status in reference.status.items() if status == "pending" and ">" not in name}
    seen, wanted = ({line for line in lines if line[2] not in untold} for lines in (handoffs_of(run), reference.lines))
    want("the handoffs", sorted(seen), sorted(wanted))


def handoffs_of(run: Run) -> set[tuple[str, str, str, bool]]:
    """Return the lines of result.handoffs that the run told."""
    return {
        (str(data["handoff_id"]), str(data["source_step"]), str(data["target_step"]), event.type == "handoff.taken")
        for event in run.events
        if event.type.startswith("handoff.")
        for data in [event.data]
    }


def check_records(run: Run) -> None:
    """Every call that ended without an activity's record is recorded once, and no two events share an id."""
    recorded = Counter((record.step_id, record.item, record.n, record.status.value) for record in run.records)
    twice = [key for key, count in recorded.items() if count > 1 and key[3] != "waiting"]
    want("records written twice", twice, [])
    told = {(event.id, event.model_dump_json()) for event in run.events}
    ids = Counter(event_id for event_id, _ in told)
    want("events with one id", [event_id for event_id, count in ids.items() if count > 1], [])
    ended = {entry.address for entry in run.entries if entry.what == "ended"} - run.called
    addresses = {
        f"{record.step_id}{'' if record.item is None else f'[{record.item}]'}.{record.n}" for record in run.records
    }
    want("calls without a record", sorted(ended - addresses), [])


def want(subject: str, seen: Any, wanted: Any) -> None:
    seen, wanted = shown(seen), shown(wanted)
    if seen != wanted:
        raise DisagreementError(f"{subject}: {seen!r}, and should be {wanted!r}")


# Smaller cases.


def shrink(case: Case, fails: Check) -> Case:
    """Take parts out of a failing case while it still fails."""
    tried = 0
    while True:
        for smaller in smaller_cases(case):
            tried += 1
            if tried > MAX_SHRINKING:
                return case
            if is_valid(smaller) and fails_still(smaller, fails):
                case = smaller
                break
        else:
            return case


def fails_still(case: Case, fails: Check) -> bool:
    try:
        return fails(case) is not None
    except Exception:  # noqa: BLE001 - a crash is a failure too
        return True


def is_valid(case: Case) -> bool:
    """Whether ``create_workflow`` would take the case's definition."""
    return parse_definition(case.document).definition is not None


def smaller_cases(case: Case) -> Iterator[Case]:
    if case.noise != Noise():
        yield replace(case, noise=Noise())
        yield replace(case, noise=replace(case.noise, pauses=case.noise.pauses[:1], carries=case.noise.carries[:1]))
    for index in range(len(case.handoffs)):
        yield replace(case, handoffs=case.handoffs[:index] + case.handoffs[index + 1 :])
    for part in ("steps", "finally"):
        for index in range(len(case.document.get(part, []))):
            if part == "finally" or len(case.document["steps"]) > 1:
                yield replace(case, document=without_step(case.document, part, index))
    for key in case.document:
        if key not in ("name", "steps"):
            yield replace(case, document={name: value for name, value in case.document.items() if name != key})
    for part in ("steps", "finally"):
        for index, step in enumerate(case.document.get(part, [])):
            for key in step:
                if key not in ("id", "type", "agent_id", "wait", "transform", "approval", "workflow_id"):
                    yield replace(case, document=without_field(case.document, part, index, key))
    for index, handoff in enumerate(case.handoffs):
        for key, empty in (("triggers", []), ("data_mapping", {})):
            if handoff[key]:
                changed = {**handoff, key: empty}
                yield replace(case, handoffs=(*case.handoffs[:index], changed, *case.handoffs[index + 1 :]))


def without_field(document: dict[str, Any], part: str, index: int, key: str) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    del changed[part][index][key]
    return changed


def without_step(document: dict[str, Any], part: str, index: int) -> dict[str, Any]:
    """Take a step out, with everything that reads it."""
    changed = copy.deepcopy(document)
    name = changed[part].pop(index)["id"]
    if not changed.get("finally", True):
        del changed["finally"]
    for step in [*changed["steps"], *changed.get("finally", [])]:
        step["depends_on"] = [other for other in step.get("depends_on", []) if other != name]
        for key in [key for key, value in step.items() if reads(value, name)]:
            value = step[key]
            if key in ("input_mapping", "transform", "output_mapping"):
                step[key] = {inner: one for inner, one in value.items() if not reads(one, name)}
            elif key == "foreach":
                step[key] = {**value, "items": [1, 2, 3]}
            elif key == "wait":
                step[key] = {"seconds": 5}
            elif key == "approval":
                step[key] = {**value, "question": "Go on?"}
            else:
                del step[key]
    if reads(changed.get("output_mapping"), name):
        del changed["output_mapping"]
    return changed


def reads(value: Any, name: str) -> bool:
    return f"steps.{name}." in json.dumps(value)


def report(case: Case, difference: str) -> str:
    """Return what to print about a case that failed."""
    lines = [f"seed {case.seed} (trouble {case.trouble}): {difference}", json.dumps(case.document, indent=1)]
    lines += [json.dumps(handoff) for handoff in case.handoffs]
    if case.noise != Noise():
        lines.append(repr(case.noise))
    return "\n".join(lines)


def checked(seed: int, fails: Check = check) -> str | None:
    """Check the case of a number; return a report of the smallest case that fails, None when it is right."""
    case = make_case(seed)
    if not fails_still(case, fails):
        return None
    small = shrink(case, fails)
    try:
        difference = fails(small)
    except Exception as error:  # noqa: BLE001 - a crash is told as what differs
        difference = f"{type(error).__name__}: {error}"
    return report(small, difference or "it does not fail any more")
