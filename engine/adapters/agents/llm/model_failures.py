"""What each way in which a model's call fails means, in one table for all endpoints.

    what happened                                             reason
    ------------------------------------------------------    ---------------
    401, 403                                                  unauthorized
    429 (its retry-after is the next retry's delay)           rate_limited
    408; the call's deadline; no connection within 5 s        timeout
    5xx (503 with its retry-after); no connection, or it      unavailable
      broke; a stream that ends before its end
    400, 404, 422 and other 4xx; a redirect; a prompt         invalid_request
      larger than the context window; a host that is not
      allowed; instructions or a schema that can't be used;
      a secret that is not there; the extra not installed
    451; a content filter, before or in the answer; the       refused
      model's own refusal
    no fitting output after two requests to repair it; cut    invalid_output
      off by max_tokens; larger than 64 MiB; no answer of
      this API
    no output within max_turns requests; anything else        error

An error inside an open stream has the reason of its status before one. A failure's ``details`` hold ``host`` and, when
they are known, ``status`` and the provider's ``code``. No failure has a cause: Temporal writes causes into its history.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

import httpcore2
import httpx2
from openai import APIError, APIStatusError
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    UnexpectedModelBehavior,
)

from engine.adapters.agents.replies import bounded_text
from engine.adapters.agents.statuses import reason_of_status, retry_after_of
from engine.domain.agent_call import AgentFailure, FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.domain.json import JsonObject

__all__ = ["failure_of_model", "is_rejection"]

_FILTER_CODES: Final = ("content_filter", "content_policy_violation", "moderation_blocked")
_ADDRESS_ADVICE: Final = "`base_url` must be the address, up to and with /v1, of an endpoint that streams"
_EXCERPT_CHARS: Final = 500
_TIMEOUTS: Final = (TimeoutError, httpcore2.TimeoutException, httpx2.TimeoutException)
_UNREADABLE: Final = (json.JSONDecodeError, UnicodeDecodeError)
_BROKEN: Final = (httpcore2.NetworkError, httpcore2.ProtocolError, httpx2.TransportError, OSError)


def is_rejection(error: BaseException) -> bool:
    """Whether the endpoint answered with an error's status, and so did no work."""
    return any(isinstance(cause, APIStatusError) for cause in _chain(error))


def failure_of_model(error: BaseException, host: str) -> AgentFailure:
    """Return the failure that an exception of a model's request means, after the table of this module."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, AgentFailure):
            return cause
    for cause in chain:
        if isinstance(cause, APIStatusError):
            return _of_status(cause, chain, host)
    for cause in chain:
        if isinstance(cause, _TIMEOUTS):
            what = f"The model's endpoint at {host} did not answer in time{_because(cause)}"
            return AgentFailure(FailureReason.TIMEOUT, what, details={"host": host})
        if isinstance(cause, _BROKEN):
            what = f"The model's endpoint at {host} can't be reached, or broke the connection off{_because(cause)}"
            return AgentFailure(FailureReason.UNAVAILABLE, what, details={"host": host})
    if isinstance(error, UnexpectedModelBehavior) or any(isinstance(cause, _UNREADABLE) for cause in chain):
        what = f"The endpoint at {host} gave no answer of the Chat Completions API; {_ADDRESS_ADVICE}"
        return AgentFailure(FailureReason.INVALID_OUTPUT, what, details={"host": host})
    if isinstance(error, ModelAPIError):
        return _inside_stream(error, host)
    text = bounded_text(f"{type(error).__name__}: {error}", _EXCERPT_CHARS)
    return AgentFailure(FailureReason.ERROR, f"The call of the model at {host} failed ({text})", details={"host": host})


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        here = here.__cause__ or here.__context__


def _of_status(error: APIStatusError, chain: list[BaseException], host: str) -> AgentFailure:
    status = error.status_code
    code = _code_of(error)
    details = _details(host, status, code)
    message = f"The model's endpoint at {host} answered with status {status}"
    if 300 <= status < 400:
        message += "; redirects are not followed: put the final address into `base_url`"
        return AgentFailure(FailureReason.INVALID_REQUEST, message, details=details)
    reason = _reason(status, code, chain)
    # Of a 401 only the code: providers quote the key there.
    said = code if status == 401 else _said(error)
    message += f": {said}" if said else ""
    if any(isinstance(cause, ModelContextWindowExceededError) for cause in chain):
        message += "; the prompt is larger than the model's context window: give it less"
    retry_after = retry_after_of(error.response.headers.get("retry-after")) if status in (429, 503) else None
    return AgentFailure(reason, message, retry_after, details)


def _inside_stream(error: ModelAPIError, host: str) -> AgentFailure:
    status = error.status_code if isinstance(error, ModelHTTPError) else None
    code = error.provider_error_code or error.provider_error_type
    cause = error.__cause__
    said = _said(cause) if isinstance(cause, APIError) else ""
    message = f"The model's endpoint at {host} broke its answer off with an error{f': {said}' if said else ''}"
    reason = FailureReason.ERROR if status is None else _reason(status, code, [error])
    if code in _FILTER_CODES:
        reason = FailureReason.REFUSED
    return AgentFailure(reason, message, details=_details(host, status, code))


def _reason(status: int, code: str | None, chain: list[BaseException]) -> FailureReason:
    if code in _FILTER_CODES:
        return FailureReason.REFUSED
    if any(isinstance(cause, ModelContextWindowExceededError) for cause in chain):
        return FailureReason.INVALID_REQUEST
    return reason_of_status(status)


def _details(host: str, status: int | None, code: str | None) -> JsonObject:
    details: JsonObject = {"host": host}
    if status is not None:
        details["status"] = status
    if code is not None:
        details["code"] = bounded_text(code, 100)
    return details


def _code_of(error: APIError) -> str | None:
    found = cast("tuple[object, ...]", (error.code, error.type))
    return next((value for value in found if isinstance(value, str) and value), None)


def _said(error: APIError) -> str:
    """The provider's own message, when its body has the API's form; another body may hold anything."""
    body = cast("object", error.body)
    if not isinstance(body, dict):
        return ""
    message = cast("dict[object, object]", body).get("message")
    text = message if isinstance(message, str) else ""
    return bounded_text("".join(item if item.isprintable() else " " for item in text).strip(), _EXCERPT_CHARS)


def _because(error: BaseException) -> str:
    text = bounded_text(str(error), 200)
    return f" ({text})" if text else ""
