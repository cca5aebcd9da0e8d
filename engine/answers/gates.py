"""From gates to answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine.answers.values import instant
from engine.domain.metrics import format_instant, parse_instant

if TYPE_CHECKING:
    from engine import types
    from engine.domain.gate import GateRecord
    from engine.domain.json import JsonObject

__all__ = ["gate", "gate_answer", "gate_state"]


def gate(stored: GateRecord) -> types.Gate:
    """An item of ``list_gates``."""
    return {
        "gate_id": stored.gate_id,
        "execution_id": stored.execution_id,
        "workflow_id": stored.definition_id,
        "step_id": stored.step_id,
        "kind": stored.kind,
        "question": stored.question,
        "allowed": stored.allowed,
        "schema": stored.form,
        "assignees": stored.assignees,
        "opened_at": format_instant(stored.opened_at),
        "expires_at": instant(stored.expires_at),
    }


def gate_state(stored: GateRecord) -> types.GateState:
    """Answer of ``get_gate``."""
    return {
        **gate(stored),
        "status": stored.status,
        "answer": stored.answer,
        "data": stored.data,
        "by": stored.by,
        "at": instant(stored.at),
    }


def gate_answer(taken: JsonObject) -> types.GateAnswer:
    """Answer of ``answer_gate``, from what the run said."""
    return cast("types.GateAnswer", {**taken, "at": format_instant(parse_instant(taken["at"], "at"))})
