"""Answers about workflows: definitions, their versions, what is wrong with one."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from pydantic import JsonValue

from engine.types.values import JsonObject

__all__ = [
    "Change",
    "Issue",
    "Pinned",
    "PinnedExecution",
    "Validation",
    "Workflow",
    "WorkflowDiff",
    "WorkflowItem",
    "WorkflowPage",
]


class Issue(TypedDict):
    """One finding of a validation."""

    severity: Literal["error", "warning"]
    code: str
    path: str
    message: str
    hint: str | None


class Validation(TypedDict):
    """Answer of ``validate_workflow``."""

    valid: bool
    issues: list[Issue]


# ``finally`` is a keyword, which the class form can't name.
_WithFinally = TypedDict("_WithFinally", {"finally": NotRequired[list[JsonObject]]})


class Workflow(_WithFinally):
    """Answer of ``get_workflow``: the definition's fields and where it stands."""

    workflow_id: str
    status: str
    version: int
    content_hash: str
    created_at: str
    updated_at: str
    name: str
    description: str | None
    tags: list[str]
    metadata: JsonObject
    steps: list[JsonObject]
    handoffs: NotRequired[str]
    on_failure: NotRequired[str]
    input_schema: NotRequired[JsonObject]
    defaults: NotRequired[JsonObject]
    output_mapping: NotRequired[JsonObject]
    max_handoffs: NotRequired[int]
    budget: NotRequired[JsonObject]
    cleanup_timeout: NotRequired[float]


class WorkflowItem(TypedDict):
    """A workflow in a list: without its steps."""

    workflow_id: str
    status: str
    version: int
    content_hash: str
    created_at: str
    updated_at: str
    name: str
    description: str | None
    tags: list[str]
    metadata: JsonObject
    step_count: int


class WorkflowPage(TypedDict):
    """Answer of ``list_workflows`` and ``list_workflow_versions``."""

    items: list[WorkflowItem]
    next_cursor: str | None


class Change(TypedDict):
    """One difference between two versions of a workflow."""

    path: str
    """Where: ``steps.plan.timeout``, by a step's id."""
    kind: Literal["added", "removed", "changed"]
    before: JsonValue
    """Null when it was added."""
    after: JsonValue
    """Null when it was removed."""


class PinnedExecution(TypedDict):
    """An open execution of an older version."""

    execution_id: str
    version: int
    status: str


class Pinned(TypedDict):
    """What still goes by an older version than the newest."""

    executions: list[PinnedExecution]
    """The latest created first, at most 1,000."""
    schedules: list[str]
    more: NotRequired[bool]
    """True when there may be more executions."""


class WorkflowDiff(TypedDict):
    """Answer of ``diff_workflow``."""

    workflow_id: str
    from_version: int
    to_version: int
    changes: list[Change]
    pinned: Pinned
