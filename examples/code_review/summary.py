"""An optional fifth step: a model says in a few sentences what the report comes to.

It gets the report's figures and findings, with the names of modules and functions in them, and no source code. When
it can't be had, a fallback repeats the figures, so that a review never fails for want of a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.domain.json import JsonObject

_INSTRUCTIONS: Final = (
    "You are given the figures and findings of a code review. Say in three or four plain sentences, for those who "
    "work on this code, what matters most and what to do first. Name no figure or file that you were not given."
)
_STEP: Final[JsonObject] = {
    "id": "summary",
    "name": "Summary",
    "agent_id": "agent-summary",
    "depends_on": ["report"],
    "input_mapping": {
        "figures": "${steps.report.output.summary}",
        "findings": "${steps.report.output.findings}",
    },
    "output_mapping": {"text": "${output.text}"},
    "timeout": 60,
    "retry_policy": {"max_retries": 1},
    "fallback": {"agent_id": "agent-figures"},
}


def summary_agents(model: str) -> list[dict[str, object]]:
    """What `register_agent` takes: the model that sums up, and the fallback that repeats the figures."""
    return [
        {
            "name": "Summary",
            "description": "Says in a few sentences what the report comes to.",
            "capabilities": ["code_review", "reporting"],
            "tools": [],
            "agent_id": "agent-summary",
            "config": {"model": model, "instructions": _INSTRUCTIONS, "max_tokens": 1_000},
        },
        {
            "name": "Figures",
            "description": "Repeats the report's figures where no model can be had.",
            "capabilities": ["code_review", "reporting"],
            "tools": [],
            "agent_id": "agent-figures",
            "config": {"function": "examples.code_review.summary:figures"},
        },
    ]


def with_summary(definition: JsonObject) -> JsonObject:
    """Return the definition with the step `summary` at its end and its text as `model_summary` in the output."""
    steps, output_mapping = definition["steps"], definition["output_mapping"]
    if not isinstance(steps, list) or not isinstance(output_mapping, dict):
        raise TypeError("the definition must have steps and an output_mapping")
    return {
        **definition,
        "steps": [*steps, _STEP],
        "output_mapping": {**output_mapping, "model_summary": "${steps.summary.output.text}"},
    }


def figures(input: JsonObject) -> JsonObject:  # noqa: A002 - the interface's own name
    """Return the figures as `text`, in place of what a model would have said of them."""
    return {"text": input["figures"]}
