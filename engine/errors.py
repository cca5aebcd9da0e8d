"""One exception tree for everything Baton raises, keyed by durable error codes.

A code is what programs branch on and never changes its meaning; a message is for people and may be
reworded. Each class carries its code, rebuilds from a pickle, and renders the error object of the API.

    EngineError
    ├── InvalidInputError              invalid_input
    │   └── ConfigurationError         invalid_input (settings; the CLI exits with 3)
    ├── UnsupportedError               unsupported
    ├── NotFoundError
    │   ├── DefinitionNotFoundError    workflow_not_found
    │   ├── ExecutionNotFoundError     execution_not_found
    │   ├── AgentNotFoundError         agent_not_found
    │   └── HandoffNotFoundError       handoff_not_found
    ├── ConflictError                  conflict
    ├── LimitExceededError             limit_exceeded
    ├── BudgetExceededError            budget_exceeded
    ├── AgentError                     agent_error
    ├── ExecutionTimeoutError          execution_timeout
    ├── StoreError                     database_error (retryable)
    ├── RuntimeUnavailableError        runtime_unavailable (retryable)
    ├── PermissionDeniedError          permission_denied
    └── InternalError                  internal_error
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from engine.request_context import current_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class ErrorCode(StrEnum):
    """The durable identifiers of failure classes."""

    WORKFLOW_NOT_FOUND = "workflow_not_found"
    EXECUTION_NOT_FOUND = "execution_not_found"
    AGENT_NOT_FOUND = "agent_not_found"
    HANDOFF_NOT_FOUND = "handoff_not_found"
    INVALID_INPUT = "invalid_input"
    UNSUPPORTED = "unsupported"
    CONFLICT = "conflict"
    LIMIT_EXCEEDED = "limit_exceeded"
    BUDGET_EXCEEDED = "budget_exceeded"
    AGENT_ERROR = "agent_error"
    EXECUTION_TIMEOUT = "execution_timeout"
    DATABASE_ERROR = "database_error"
    RUNTIME_UNAVAILABLE = "runtime_unavailable"
    PERMISSION_DENIED = "permission_denied"
    INTERNAL_ERROR = "internal_error"


class EngineError(Exception):
    """Root of all errors.

    Args:
        message: what went wrong and what to do about it, for people. Never holds a secret.
        details: JSON data for programs: ids, paths, issues.
        request_id: the facade call it belongs to (``req-...``); taken from the context when absent.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL_ERROR
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        details: Mapping[str, object] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = dict(details or {})
        self.request_id = request_id or current_request_id()

    def __reduce__(self) -> tuple[Callable[..., EngineError], tuple[object, ...]]:
        return _rebuild, (type(self), self.message, self.details, self.request_id)

    def to_response(self) -> dict[str, object]:
        """Render the error object of the API: ``{"error": {code, message, details, request_id}}``."""
        return {
            "error": {
                "code": self.code.value,
                "message": self.message,
                "details": self.details,
                "request_id": self.request_id,
            }
        }


def _rebuild(cls: type[EngineError], message: str, details: dict[str, object], request_id: str | None) -> EngineError:
    error = cls.__new__(cls)
    EngineError.__init__(error, message, details, request_id)
    return error


class InvalidInputError(EngineError):
    """What the caller gave can't be used; nothing was written."""

    code = ErrorCode.INVALID_INPUT


class ConfigurationError(InvalidInputError):
    """The settings can't be used: an unknown key, a wrong type, a file that does not parse."""


class UnsupportedError(EngineError):
    """A call, store, field or agent kind that is not built; different from an invalid one."""

    code = ErrorCode.UNSUPPORTED


class NotFoundError(EngineError):
    """Nothing is stored under the id; the constructor of each subclass takes that id."""

    noun: ClassVar[str] = "Object"
    key: ClassVar[str] = "id"

    def __init__(self, object_id: str, details: Mapping[str, object] | None = None) -> None:
        super().__init__(f"{self.noun} with ID {object_id} not found", {self.key: object_id, **(details or {})})


class DefinitionNotFoundError(NotFoundError):
    """No such workflow, a deleted one, or no such version of it (``details.version``)."""

    code = ErrorCode.WORKFLOW_NOT_FOUND
    noun = "Workflow"
    key = "workflow_id"

    def __init__(self, object_id: str, version: int | None = None) -> None:
        super().__init__(object_id, None if version is None else {"version": version})
        if version is not None:
            self.message = f"Version {version} of workflow {object_id} not found"
            self.args = (self.message,)


class ExecutionNotFoundError(NotFoundError):
    """No record of such an execution."""

    code = ErrorCode.EXECUTION_NOT_FOUND
    noun = "Execution"
    key = "execution_id"


class AgentNotFoundError(NotFoundError):
    """No such agent, or no longer an active one."""

    code = ErrorCode.AGENT_NOT_FOUND
    noun = "Agent"
    key = "agent_id"


class HandoffNotFoundError(NotFoundError):
    """No such handoff."""

    code = ErrorCode.HANDOFF_NOT_FOUND
    noun = "Handoff"
    key = "handoff_id"


class ConflictError(EngineError):
    """The request contradicts what is stored: an id taken, a key used with other input."""

    code = ErrorCode.CONFLICT


class LimitExceededError(EngineError):
    """A stated limit was passed; the details name it."""

    code = ErrorCode.LIMIT_EXCEEDED


class BudgetExceededError(EngineError):
    """An execution spent what its budget allows."""

    code = ErrorCode.BUDGET_EXCEEDED


class AgentError(EngineError):
    """An agent's call failed; ``details.reason`` says in which of the known ways."""

    code = ErrorCode.AGENT_ERROR


class ExecutionTimeoutError(EngineError):
    """An execution passed its deadline."""

    code = ErrorCode.EXECUTION_TIMEOUT


class StoreError(EngineError):
    """A store did not answer, or what it holds can't be read."""

    code = ErrorCode.DATABASE_ERROR
    retryable = True


class RuntimeUnavailableError(EngineError):
    """Temporal can't be reached, or none is there; the message names the command that starts one."""

    code = ErrorCode.RUNTIME_UNAVAILABLE
    retryable = True


class PermissionDeniedError(EngineError):
    """The caller may not do this."""

    code = ErrorCode.PERMISSION_DENIED


class InternalError(EngineError):
    """A fault of Baton's own."""
