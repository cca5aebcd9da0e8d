"""What the fields of a step may hold, and which of them count for its type.

The rules read the raw document and leave wrong types to the structure: a part of the wrong type hides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeGuard

from engine.domain.agent_call import FailureReason
from engine.domain.flow_rules import check_approval, check_foreach, check_repeat_until, check_wait
from engine.domain.ids import MAX_ID_BYTES, is_public_id, is_step_id
from engine.domain.issues import IssueCode, IssueList, Location
from engine.domain.json_schema import check_schema
from engine.domain.structure import check_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.domain.json import JsonObject, JsonValue

__all__ = ["FIELD_TYPES", "MAX_FALLBACKS", "NEEDED_FIELDS", "check_reasons", "check_steps", "check_timeouts"]

MAX_FALLBACKS: Final = 20

NEEDED_FIELDS: Final = {
    "agent": "agent_id",
    "transform": "transform",
    "wait": "wait",
    "approval": "approval",
    "workflow": "workflow_id",
}
"""Each type of step, and the field that it can't be without."""
FIELD_TYPES: Final = {
    **{needed: (kind,) for kind, needed in NEEDED_FIELDS.items()},
    "version": ("workflow",),
    **dict.fromkeys(("fallback", "retry_policy", "total_timeout"), ("agent",)),
    **dict.fromkeys(("output_schema", "context", "at_most_once"), ("agent",)),
    **dict.fromkeys(("input_mapping", "output_mapping", "repeat_until", "timeout"), ("agent", "workflow")),
    "foreach": ("agent", "workflow", "transform"),
}
"""The fields that count for some types only, with these."""

_REASONS: Final = tuple(reason.value for reason in FailureReason)


def check_steps(document: JsonObject, faulty: Collection[Location], issues: IssueList) -> None:
    """Check each step of a definition, the ``finally`` ones too.

    Args:
        document: the definition as JSON data.
        faulty: places that have an issue already and are not in ``document``.
        issues: where faults go.
    """
    defaults = _object(document.get("defaults"))
    first_at: dict[str, str] = {}
    gone = set(faulty)
    for key in ("steps", "finally"):
        steps = document.get(key)
        for index, step in enumerate(steps if isinstance(steps, list) else []):
            if isinstance(step, dict):
                place: Location = (key, index)
                _check_step_id(step.get("id"), place, first_at, issues)
                _check_type(step, gone, issues, place)
                _check_fields(step, defaults, issues, place)
                if key == "finally":
                    _check_final_step(step, issues, place)


def _check_step_id(step_id: JsonValue, place: Location, first_at: dict[str, str], issues: IssueList) -> None:
    if not isinstance(step_id, str):
        return
    location: Location = (*place, "id")
    if not is_step_id(step_id):
        issues.error(
            IssueCode.INVALID_ID,
            location,
            "A step's id is 1 to 64 letters, digits, _ or -, beginning with a letter or _; rename it.",
        )
    elif step_id in first_at:
        issues.error(IssueCode.DUPLICATE_ID, location, f"{first_at[step_id]} has the id {step_id} too; rename one.")
    else:
        first_at[step_id] = f"{place[0]}[{place[1]}]"


def _check_type(step: JsonObject, gone: Collection[Location], issues: IssueList, place: Location) -> None:
    kind = step.get("type", "agent")
    if not isinstance(kind, str) or kind not in NEEDED_FIELDS or (*place, "type") in gone:
        return
    needed = NEEDED_FIELDS[kind]
    meant = [other for other, field in NEEDED_FIELDS.items() if field in step]
    if "type" not in step and len(meant) == 1 and meant != ["agent"]:
        kind = meant[0]
        message = f"type is missing; a step with {NEEDED_FIELDS[kind]} needs type: {kind}."
        issues.error(IssueCode.MISSING, (*place, "type"), message)
    elif needed not in step and (*place, needed) not in gone:
        issues.error(
            IssueCode.MISSING, (*place, needed), f"{needed} is missing; a step of type {kind} needs it, so add it."
        )
    for field in step:
        types = FIELD_TYPES.get(field)
        if types is not None and kind not in types:
            counts = " or ".join((", ".join(types[:-1]), types[-1])) if len(types) > 1 else types[0]
            issues.error(
                IssueCode.UNKNOWN_FIELD,
                (*place, field),
                f"{field} counts only in a step of type {counts}, and this one is of type {kind}; take it out.",
            )


def _check_fields(step: JsonObject, defaults: JsonObject, issues: IssueList, place: Location) -> None:
    check_name(step.get("name"), issues, (*place, "name"))
    _check_id(step.get("agent_id"), "An agent's id", issues, (*place, "agent_id"))
    _check_id(step.get("workflow_id"), "A workflow's id", issues, (*place, "workflow_id"))
    compensate = _object(step.get("compensate"))
    _check_id(compensate.get("agent_id"), "An agent's id", issues, (*place, "compensate", "agent_id"))
    check_reasons(step.get("retry_policy"), issues, (*place, "retry_policy"))
    _check_fallbacks(step.get("fallback"), issues, (*place, "fallback"))
    _check_repeats(step, issues, place)
    schema = step.get("output_schema")
    if isinstance(schema, dict):
        check_schema(schema, issues, (*place, "output_schema"))
    if "timeout" in step or "total_timeout" in step:
        check_timeouts(step, defaults, issues, place)
    check_foreach(_object(step.get("foreach")), issues, (*place, "foreach"))
    check_repeat_until(step, issues, (*place, "repeat_until"))
    if isinstance(step.get("wait"), dict):
        check_wait(_object(step.get("wait")), issues, (*place, "wait"))
    if isinstance(step.get("approval"), dict):
        check_approval(_object(step.get("approval")), issues, (*place, "approval"))


def _check_final_step(step: JsonObject, issues: IssueList, place: Location) -> None:
    if step.get("type") == "approval":
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "type"),
            "Nobody is asked in finally steps, which end within cleanup_timeout; ask in a main step.",
        )
    if step.get("on_error") == "ask":
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "on_error"),
            "Nobody is asked in finally steps, which end within cleanup_timeout; use fail or continue.",
        )
    if "compensate" in step:
        issues.error(
            IssueCode.UNKNOWN_FIELD,
            (*place, "compensate"),
            "Compensations run before the finally steps, so these have none; take it out.",
        )


def _check_id(given: JsonValue, what: str, issues: IssueList, location: Location) -> None:
    if isinstance(given, str) and not is_public_id(given):
        issues.error(
            IssueCode.INVALID_ID,
            location,
            f"{what} is 1 to {MAX_ID_BYTES} of a-z, 0-9, - _ and ., not beginning with - or .; correct it.",
        )


def _check_fallbacks(fallback: JsonValue, issues: IssueList, place: Location) -> None:
    if isinstance(fallback, dict):
        _check_fallback(fallback, issues, place)
    elif isinstance(fallback, list):
        if not fallback:
            message = "A list of fallbacks names one at least; add one, or leave fallback out."
            issues.error(IssueCode.INVALID_VALUE, place, message)
        if len(fallback) > MAX_FALLBACKS:
            issues.error(
                IssueCode.LIMIT_EXCEEDED,
                place,
                f"The step has {len(fallback)} fallbacks; at most {MAX_FALLBACKS} are allowed.",
            )
        for index, other in enumerate(fallback):
            _check_fallback(_object(other), issues, (*place, index))


def _check_fallback(fallback: JsonObject, issues: IssueList, place: Location) -> None:
    _check_id(fallback.get("agent_id"), "An agent's id", issues, (*place, "agent_id"))
    check_reasons(fallback, issues, place, "on")
    if fallback.get("on") == []:
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "on"),
            "A fallback for no reason is never called; name reasons, or leave on out to call it for all.",
        )


def check_reasons(part: JsonValue, issues: IssueList, place: Location, key: str = "non_retryable") -> None:
    """Add a warning for each failure reason below ``key`` that no call of Baton's own fails for."""
    reasons = _object(part).get(key)
    for index, reason in enumerate(reasons if isinstance(reasons, list) else []):
        if isinstance(reason, str) and reason not in _REASONS:
            issues.warn(
                IssueCode.INVALID_VALUE,
                (*place, key, index),
                f"No call of Baton's own fails for this reason; the known ones are {', '.join(_REASONS)}.",
                issues.did_you_mean(reason, _REASONS),
            )


def _check_repeats(step: JsonObject, issues: IssueList, place: Location) -> None:
    retries = _object(step.get("retry_policy")).get("max_retries")
    if step.get("at_most_once") is True and _is_number(retries) and retries > 0:
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "retry_policy", "max_retries"),
            "A call that is made at most once has no retries; take out max_retries or at_most_once.",
        )


def check_timeouts(spec: JsonObject, defaults: JsonObject, issues: IssueList, place: Location) -> None:
    """Add a warning when one attempt may take longer than all of them together."""
    if spec.get("type", "agent") != "agent":
        return
    timeout = spec.get("timeout", defaults.get("timeout"))
    total = spec.get("total_timeout", defaults.get("total_timeout"))
    if not _is_number(timeout) or not _is_number(total) or timeout <= total:
        return
    key = "total_timeout" if "total_timeout" in spec else "timeout"
    issues.warn(
        IssueCode.INVALID_VALUE,
        (*place, key),
        f"One attempt may take {timeout:g} s but all together only {total:g} s, so timeout never counts; "
        "raise total_timeout or lower timeout.",
    )


def _is_number(value: JsonValue) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}
