"""Time ranges and metrics: what people ask for, as instants and as formulas over counts.

A percentile is the nearest rank: of N durations in ascending order the p-th is number ceil(p / 100 * N), so it is
always one that was measured. What can't be known (a rate of nothing, an unknown price) is None, never 0.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from engine.domain.issues import nearest_word
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.domain.execution import Usage

__all__ = [
    "DEFAULT_TIME_RANGE",
    "METRIC_NAMES",
    "MetricSubject",
    "compute_metrics",
    "format_instant",
    "parse_instant",
    "parse_metric_names",
    "parse_time_range",
]

MetricSubject = Literal["workflow", "agent"]

DEFAULT_TIME_RANGE: Final = "last_30_days"
_UNITS: Final = ("minutes", "hours", "days", "weeks")
_MAX_COUNT_DIGITS: Final = 9
_RANGE_ADVICE: Final = (
    'Give "last_<number>_minutes", "_hours", "_days" or "_weeks", such as "last_30_days", '
    'or {"start": ..., "end": ...} with ISO 8601 instants.'
)


class Aggregates(Protocol):
    """Counts and sums over a time range, as the port of the analytics returns them."""

    @property
    def count(self) -> int: ...
    @property
    def completed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def cancelled(self) -> int: ...
    @property
    def durations(self) -> Sequence[float]:
        """Seconds of the completed ones, ascending."""
        ...

    @property
    def retries(self) -> int: ...
    @property
    def fallbacks(self) -> int: ...
    @property
    def handoffs_taken(self) -> int: ...
    @property
    def handoffs_refused(self) -> int: ...
    @property
    def usage(self) -> Usage: ...


def parse_instant(text: object, path: str = "time") -> datetime:
    """Return the aware UTC instant of an ISO 8601 text; without an offset it is taken as UTC.

    Raises:
        InvalidInputError: it is none; ``details.path`` is ``path``.
    """
    refused = InvalidInputError(f"{path} must be an ISO 8601 instant, such as 2025-05-01T00:00:00Z", {"path": path})
    if not isinstance(text, str):
        raise refused
    try:
        instant = datetime.fromisoformat(text)
        aware = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
        return aware.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise refused from error


def format_instant(instant: datetime) -> str:
    """Return ISO 8601 in UTC with microseconds: ``2025-05-01T00:00:00.000000Z``.

    Raises:
        ValueError: the instant is naive; inside, instants are aware.
    """
    if instant.tzinfo is None:
        raise ValueError("a naive datetime is no instant")
    return instant.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_time_range(value: object, now: datetime) -> tuple[datetime, datetime]:
    """Return ``(start, end)``, aware UTC, both included.

    Args:
        value: ``last_<n>_minutes|hours|days|weeks`` up to ``now``, ``{"start", "end"}`` in ISO 8601, or None for
            the last 30 days.
        now: the present, aware UTC.

    Raises:
        InvalidInputError: anything else, or a start after the end; ``details.path`` names the culprit.
    """
    if value is None:
        value = DEFAULT_TIME_RANGE
    if isinstance(value, str):
        return _last(value, now), now
    if not isinstance(value, dict):
        raise _bad_range()
    bounds = cast("dict[object, object]", value)
    if set(bounds) != {"start", "end"}:
        raise _bad_range()
    start = parse_instant(bounds["start"], "time_range.start")
    end = parse_instant(bounds["end"], "time_range.end")
    if start > end:
        raise InvalidInputError(
            "time_range.start must not be after time_range.end; exchange them", {"path": "time_range.start"}
        )
    return start, end


def _last(text: str, now: datetime) -> datetime:
    match text.split("_"):
        case ["last", count, unit] if (
            unit in _UNITS and count.isascii() and count.isdigit() and len(count) <= _MAX_COUNT_DIGITS and int(count)
        ):
            try:
                return now - timedelta(**{unit: int(count)})
            except OverflowError as error:
                raise _bad_range("reaches back before the year 1") from error
        case _:
            raise _bad_range()


def _bad_range(why: str = "can't be read") -> InvalidInputError:
    return InvalidInputError(f"time_range {why}. {_RANGE_ADVICE}", {"path": "time_range"})


def _success_rate(of: Aggregates) -> float | None:
    ended = of.completed + of.failed
    return of.completed / ended if ended else None


def _average(of: Aggregates) -> float | None:
    return sum(of.durations) / len(of.durations) if of.durations else None


def _percentile(percent: int) -> Callable[[Aggregates], float | None]:
    def nearest_rank(of: Aggregates) -> float | None:
        rank = -(-percent * len(of.durations) // 100)
        return of.durations[rank - 1] if of.durations else None

    return nearest_rank


_SHARED: Final[dict[str, Callable[[Aggregates], float | None]]] = {
    "success_rate": _success_rate,
    "average_duration": _average,
    "p50_duration": _percentile(50),
    "p95_duration": _percentile(95),
    "error_count": lambda of: of.failed,
    "cancelled_count": lambda of: of.cancelled,
    "retry_count": lambda of: of.retries,
    "fallback_count": lambda of: of.fallbacks,
    "input_tokens": lambda of: of.usage.input_tokens,
    "output_tokens": lambda of: of.usage.output_tokens,
    "tool_calls": lambda of: of.usage.tool_calls,
    "cost_usd": lambda of: of.usage.cost_usd,
}
_FORMULAS: Final[dict[MetricSubject, dict[str, Callable[[Aggregates], float | None]]]] = {
    "workflow": {
        "execution_count": lambda of: of.count,
        **_SHARED,
        "handoffs_taken": lambda of: of.handoffs_taken,
        "handoffs_refused": lambda of: of.handoffs_refused,
    },
    "agent": {"call_count": lambda of: of.count, **_SHARED},
}
METRIC_NAMES: Final[dict[MetricSubject, tuple[str, ...]]] = {
    "workflow": tuple(_FORMULAS["workflow"]),
    "agent": tuple(_FORMULAS["agent"]),
}
"""What can be asked for, in the order of an answer with all of them."""


def parse_metric_names(names: object, subject: MetricSubject) -> tuple[str, ...]:
    """Return the metrics that are asked for; None or an empty list asks for all.

    Raises:
        InvalidInputError: no list of known names; ``details.path`` is ``metrics`` or ``metrics[<index>]``.
    """
    known = METRIC_NAMES[subject]
    if names is None:
        return known
    if not isinstance(names, (list, tuple)):
        raise InvalidInputError(f"metrics must be a list of names; known are {', '.join(known)}", {"path": "metrics"})
    asked: dict[str, None] = {}
    for index, name in enumerate(cast("Sequence[object]", names)):
        if not isinstance(name, str) or name not in known:
            near = nearest_word(name, known) if isinstance(name, str) else None
            guess = f"; did you mean {near!r}?" if near else "."
            raise InvalidInputError(
                f"There is no metric {name!r:.60}{guess} Known are {', '.join(known)}",
                {"path": f"metrics[{index}]"},
            )
        asked[name] = None
    return tuple(asked) or known


def compute_metrics(aggregates: Aggregates, names: object, subject: MetricSubject) -> dict[str, float | None]:
    """Return the metrics by name.

    Args:
        aggregates: counts and sums over the time range.
        names: which ones; None means all of ``METRIC_NAMES[subject]``.
        subject: whose they are.

    Returns:
        Counts and tokens as integers, ``success_rate`` as a fraction of completed in completed and failed,
        durations in seconds, ``cost_usd`` in dollars; None where nothing can be said.

    Raises:
        InvalidInputError: as ``parse_metric_names``.
    """
    formulas = _FORMULAS[subject]
    return {name: formulas[name](aggregates) for name in parse_metric_names(names, subject)}
