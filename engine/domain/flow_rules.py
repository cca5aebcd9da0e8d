"""What ``foreach``, ``repeat_until``, ``wait`` and ``approval`` may say beyond the types of their fields.

Expressions in them are checked with all others in ``references``; here is only what form they have to have.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

from engine.domain.conditions import RESERVED_WORDS
from engine.domain.expressions import ExpressionError, compile_template, parse_path
from engine.domain.issues import IssueCode, IssueList, Location
from engine.domain.json_schema import check_schema
from engine.domain.metrics import parse_instant
from engine.domain.structure import check_labels
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from engine.domain.json import JsonObject, JsonValue

__all__ = [
    "MAX_ALLOWED",
    "MAX_ANSWER_CHARS",
    "MAX_ITEMS",
    "MAX_WAIT_SECONDS",
    "RESERVED_NAMES",
    "check_approval",
    "check_foreach",
    "check_repeat_until",
    "check_wait",
]

MAX_ITEMS: Final = 10_000
"""Most items that a step is run for."""
MAX_WAIT_SECONDS: Final = 366 * 24 * 3600
MAX_ALLOWED: Final = 20
"""Most answers that a gate takes."""
MAX_ANSWER_CHARS: Final = 64
RESERVED_NAMES: Final = (
    *("input", "steps", "output", "execution", "context", "source_output", "index", "iteration"),
    *RESERVED_WORDS,
)
"""What an item can't be called, since it has a meaning in expressions."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_SHARE: Final = re.compile(r"(\d{1,3})%", re.ASCII)


def check_foreach(foreach: JsonObject, issues: IssueList, place: Location) -> None:
    """Check what the items are, what one is called, and how many may fail."""
    items = foreach.get("items")
    if isinstance(items, str):
        _check_single(items, "items must be one ${...} or a list", issues, (*place, "items"))
    elif isinstance(items, list) and len(items) > MAX_ITEMS:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            (*place, "items"),
            f"items has {len(items)} items; at most {MAX_ITEMS} are allowed. Split the list.",
        )
    name = foreach.get("as")
    if isinstance(name, str) and not _NAME.fullmatch(name):
        issues.error(
            IssueCode.INVALID_ID,
            (*place, "as"),
            "What an item is called is 1 to 64 letters, digits or _, not beginning with a digit; rename it.",
        )
    elif name in RESERVED_NAMES:
        message = f"{name} has a meaning of its own in expressions; call the item something else."
        issues.error(IssueCode.INVALID_VALUE, (*place, "as"), message)
    if not _can_tolerate(foreach.get("tolerate")):
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "tolerate"),
            'tolerate is how many items may fail: a whole number from 0, or a share from "0%" to "100%".',
        )


def _can_tolerate(tolerate: JsonValue) -> bool:
    if isinstance(tolerate, str):
        share = _SHARE.fullmatch(tolerate)
        return share is not None and int(share[1]) <= 100
    return not isinstance(tolerate, int) or tolerate >= 0


def check_repeat_until(step: JsonObject, issues: IssueList, place: Location) -> None:
    """Check that a step which is run again may be."""
    if isinstance(step.get("repeat_until"), dict) and step.get("at_most_once") is True:
        issues.error(
            IssueCode.INVALID_VALUE,
            place,
            "A step that is called at most once is not run again; take out repeat_until or at_most_once.",
        )


def check_wait(wait: JsonObject, issues: IssueList, place: Location) -> None:
    """Check that a wait has one end, which can be."""
    seconds, until = wait.get("seconds"), wait.get("until")
    if "seconds" not in wait and "until" not in wait:
        issues.error(IssueCode.MISSING, place, "Say how long to wait: add seconds, or until with an instant.")
    elif "seconds" in wait and "until" in wait:
        message = "seconds and until are two ends of one wait; take one of them out."
        issues.error(IssueCode.INVALID_VALUE, (*place, "until"), message)
    if isinstance(seconds, str):
        _check_single(seconds, "seconds must be a number or one ${...} of a number", issues, (*place, "seconds"))
    elif isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and not 0 <= seconds <= MAX_WAIT_SECONDS:
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "seconds"),
            f"seconds must be from 0 to {MAX_WAIT_SECONDS} (366 days).",
        )
    if isinstance(until, str) and not _has_path(until) and not _is_instant(until):
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "until"),
            "until must be an ISO 8601 instant with an offset, such as 2025-05-01T08:00:00+02:00, or hold ${...}.",
        )


def check_approval(approval: JsonObject, issues: IssueList, place: Location) -> None:
    """Check the answers of a gate, what its expiry does, and its form."""
    allowed = _texts(approval.get("allowed", ["approve", "reject"]))
    _check_allowed(allowed, issues, (*place, "allowed"))
    _check_expiry(approval, allowed, issues, place)
    _check_fail_on(approval, allowed, issues, place)
    for key in ("assignees", "escalate_to"):
        check_labels(approval.get(key), issues, (*place, key))
    form = approval.get("schema")
    if isinstance(form, dict):
        check_schema(form, issues, (*place, "schema"))


def _check_allowed(allowed: dict[int, str], issues: IssueList, place: Location) -> None:
    if len(allowed) > MAX_ALLOWED:
        message = f"allowed has {len(allowed)} answers; at most {MAX_ALLOWED} are allowed."
        issues.error(IssueCode.LIMIT_EXCEEDED, place, message)
    seen: set[str] = set()
    for index, answer in allowed.items():
        if not answer.strip() or len(answer) > MAX_ANSWER_CHARS:
            message = f"An answer has 1 to {MAX_ANSWER_CHARS} characters and is not blank; write another one."
            issues.error(IssueCode.INVALID_VALUE, (*place, index), message)
        elif answer in seen:
            issues.error(IssueCode.DUPLICATE_ID, (*place, index), f"{answer} is named twice; remove one of them.")
        seen.add(answer)


def _check_expiry(approval: JsonObject, allowed: dict[int, str], issues: IssueList, place: Location) -> None:
    on_timeout = approval.get("on_timeout")
    if on_timeout is not None and "timeout" not in approval:
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "on_timeout"),
            "Without a timeout the gate never expires, so on_timeout never counts; add timeout or take it out.",
        )
    answer = approval.get("default")
    if on_timeout == "default" and "default" not in approval:
        issues.error(
            IssueCode.MISSING,
            (*place, "default"),
            "default is missing; on_timeout: default needs the answer that it gives, so add it.",
        )
    if isinstance(answer, str) and answer not in allowed.values():
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "default"),
            f"default must be one of the allowed answers: {_listed(allowed)}.",
            issues.did_you_mean(answer, set(allowed.values())),
        )
    elif answer is not None and on_timeout != "default":
        issues.warn(
            IssueCode.INVALID_VALUE,
            (*place, "default"),
            "default counts only with on_timeout: default; set that, or take it out.",
        )
    escalate_to = approval.get("escalate_to", [])
    if on_timeout == "escalate" and escalate_to == []:
        issues.error(
            IssueCode.MISSING,
            (*place, "escalate_to"),
            "escalate_to is missing; on_timeout: escalate needs those who are asked then, so name one at least.",
        )
    elif on_timeout != "escalate" and escalate_to != []:
        issues.warn(
            IssueCode.INVALID_VALUE,
            (*place, "escalate_to"),
            "escalate_to counts only with on_timeout: escalate; set that, or take it out.",
        )


def _check_fail_on(approval: JsonObject, allowed: dict[int, str], issues: IssueList, place: Location) -> None:
    is_given = "fail_on" in approval
    fail_on = _texts(approval.get("fail_on", ["reject"]))
    answers = set(allowed.values())
    for index, answer in fail_on.items() if is_given else ():
        if answer not in answers:
            issues.error(
                IssueCode.INVALID_VALUE,
                (*place, "fail_on", index),
                f"fail_on names allowed answers only: {_listed(allowed)}.",
                issues.did_you_mean(answer, answers),
            )
    if answers and answers <= set(fail_on.values()):
        issues.warn(
            IssueCode.INVALID_VALUE,
            (*place, "fail_on" if is_given else "allowed"),
            "Every allowed answer fails the step, so it never completes; allow another one, or shorten fail_on.",
        )


def _check_single(text: str, rule: str, issues: IssueList, place: Location) -> None:
    """Add an issue when ``text`` can be read but is not exactly one path."""
    try:
        template = compile_template(text)
    except ExpressionError:
        return
    if template.single is None:
        issues.error(IssueCode.INVALID_EXPRESSION, place, f"{rule}; correct it.", _as_path(text))


def _has_path(text: str) -> bool:
    """Whether ``text`` is made during a run; what can't be read has an issue of its own."""
    try:
        return bool(compile_template(text).paths)
    except ExpressionError:
        return True


def _as_path(text: str) -> str | None:
    try:
        return f"Did you mean {'${' + parse_path(text).text + '}'!r}?"
    except ExpressionError:
        return None


def _is_instant(text: str) -> bool:
    try:
        parse_instant(text)
    except InvalidInputError:
        return False
    return datetime.fromisoformat(text).tzinfo is not None


def _texts(values: JsonValue) -> dict[int, str]:
    items = values if isinstance(values, list) else []
    return {index: item for index, item in enumerate(items) if isinstance(item, str)}


def _listed(allowed: dict[int, str]) -> str:
    return ", ".join(answer[:MAX_ANSWER_CHARS] for answer in list(allowed.values())[:MAX_ALLOWED])
