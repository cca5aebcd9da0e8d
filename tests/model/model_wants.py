"""What the reference's steps ask for, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class DisagreementError(AssertionError):
    """The reducer did something else than the specification says."""


@dataclass(frozen=True)
class Failure:
    """How a call or a step failed."""

    kind: str
    reason: str
    code: str = "agent_error"
    message: str = ""
    item: int | None = None
    address: str = ""
    """Of the call that failed last."""

    def payload(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "details": {"reason": self.reason}}


@dataclass(frozen=True)
class Reply:
    """A call's success."""

    value: Any


@dataclass(frozen=True)
class Answer:
    """A gate's end; ``answer`` is None when it expired."""

    answer: str | None
    data: Any = None
    by: str | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Skip:
    """What an operator put in the place of a step's output."""

    output: Any


class Stop:
    """The run ended before the step could go on."""


STOP = Stop()


@dataclass
class Want:
    """Something that a step waits for: a call, a timer or a gate."""

    kind: str
    """agent, child, timer or gate."""
    step: str
    address: str
    agent: str | None = None
    make_input: Callable[[], Any] = lambda: None
    input: Any = None
    until: datetime | None = None
    """When a timer fires; None: ``seconds`` after it was started."""
    seconds: float | None = None
    allowed: list[str] = field(default_factory=list[str])
    goes_on: bool = False
    """A fallback or an escalation: runs also while an execution that has failed may finish."""
    order: tuple[int, int] = (0, 0)
    resume: Callable[[Any], None] = lambda _: None
    part: str = "main"
    """main, compensate or finally."""


Steps = Generator[Any, Any, Any]


def shown(value: Any) -> Any:
    """A value as it is compared: of errors the words do not count, of times only the instant."""
    if isinstance(value, dict):
        if "code" in value and "message" in value:
            return {"code": value["code"]}
        return {key: shown(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shown(part) for part in value]
    return value.isoformat() if isinstance(value, datetime) else value


def instant(at: datetime) -> str:
    """An instant as outputs show it."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_passing(handoff: dict[str, Any]) -> bool:
    return handoff["type"] != "escalation"


def fallbacks(step: dict[str, Any]) -> list[dict[str, Any]]:
    given = step.get("fallback", [])
    return given if isinstance(given, list) else [given]


def invalid(message: str, address: str) -> Failure:
    return Failure("input", "invalid_request", "invalid_input", message, address=address)
