"""What an HTTP status of an agent or a provider means: one table, so that all that speak HTTP retry alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from engine.domain.agent_call import FailureReason

__all__ = ["reason_of_status", "retry_after_of"]

_MAX_RETRY_AFTER: Final = timedelta(days=1)
_REASON_OF_STATUS: Final = {
    401: FailureReason.UNAUTHORIZED,
    403: FailureReason.UNAUTHORIZED,
    408: FailureReason.TIMEOUT,
    429: FailureReason.RATE_LIMITED,
    451: FailureReason.REFUSED,
}


def reason_of_status(status: int) -> FailureReason:
    """Return the reason of a failure with ``status``, any but 2xx: 5xx is unavailable, the unknown invalid_request."""
    known = _REASON_OF_STATUS.get(status)
    if known is not None:
        return known
    return FailureReason.UNAVAILABLE if status >= 500 else FailureReason.INVALID_REQUEST


def retry_after_of(header: str | None) -> timedelta | None:
    """Return the wait that a Retry-After header asks for (seconds or a date), at most a day; None when it is no such.

    Only an answer with 429 or 503 asks for one; whoever calls this has looked at the status.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text[:9])), _MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(wait, timedelta(0)), _MAX_RETRY_AFTER)
