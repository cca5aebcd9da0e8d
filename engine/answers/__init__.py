"""From records to the answers of ``engine.types``, by noun: one function a shape, no decisions."""

from __future__ import annotations

from engine.answers.agents import agent, agent_impact, agent_use, handoff
from engine.answers.analytics import unusable
from engine.answers.context import context_match
from engine.answers.executions import (
    current_steps,
    drift,
    event,
    execution,
    execution_item,
    execution_status,
    explanation,
    progress,
    repair,
    rerun,
    rerun_preview,
)
from engine.answers.gates import gate, gate_answer, gate_state
from engine.answers.results import StepTrace, execution_result
from engine.answers.values import error, instant, usage, warnings
from engine.answers.workflows import workflow, workflow_diff, workflow_item

__all__ = [
    "StepTrace",
    "agent",
    "agent_impact",
    "agent_use",
    "context_match",
    "current_steps",
    "drift",
    "error",
    "event",
    "execution",
    "execution_item",
    "execution_result",
    "execution_status",
    "explanation",
    "gate",
    "gate_answer",
    "gate_state",
    "handoff",
    "instant",
    "progress",
    "repair",
    "rerun",
    "rerun_preview",
    "unusable",
    "usage",
    "warnings",
    "workflow",
    "workflow_diff",
    "workflow_item",
]
