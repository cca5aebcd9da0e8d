"""From definitions to answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from engine import types
    from engine.domain.definition import DefinitionVersion
    from engine.services.insight import DefinitionDiff

__all__ = ["workflow", "workflow_diff", "workflow_item"]

_WRITTEN_FIELDS: Final = (
    "input_schema",
    "defaults",
    "output_mapping",
    "handoffs",
    "max_handoffs",
    "on_failure",
    "budget",
    "finally",
    "cleanup_timeout",
)
"""Fields that are shown when the definition says something else than the default."""


def workflow(stored: DefinitionVersion) -> types.Workflow:
    """Answer of ``get_workflow``."""
    content = stored.definition.to_dict()
    head = workflow_item(stored)
    answer: dict[str, object] = {**head, "steps": content["steps"]}
    del answer["step_count"]
    for key in _WRITTEN_FIELDS:
        if content.get(key) is not None:
            answer[key] = content[key]
    return answer  # pyright: ignore[reportReturnType] # built key by key from the definition


def workflow_item(stored: DefinitionVersion) -> types.WorkflowItem:
    """An item of ``list_workflows``."""
    definition = stored.definition
    return {
        "workflow_id": stored.definition_id,
        "status": stored.status,
        "version": stored.version,
        "content_hash": stored.content_hash,
        "created_at": format_instant(stored.created_at),
        "updated_at": format_instant(stored.updated_at),
        "name": definition.name,
        "description": definition.description,
        "tags": definition.tags,
        "metadata": definition.metadata,
        "step_count": len(definition.steps),
    }


def workflow_diff(found: DefinitionDiff) -> types.WorkflowDiff:
    """Answer of ``diff_workflow``."""
    answer: types.WorkflowDiff = {
        "workflow_id": found.definition_id,
        "from_version": found.from_version,
        "to_version": found.to_version,
        "changes": [
            {"path": change.path, "kind": change.kind, "before": change.before, "after": change.after}
            for change in found.changes
        ],
        "pinned": {
            "executions": [
                {"execution_id": record.execution_id, "version": record.version, "status": record.status.value}
                for record in found.pinned
            ],
            "schedules": [],
        },
    }
    if found.has_more:
        answer["pinned"]["more"] = True
    return answer
