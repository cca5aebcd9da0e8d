"""Handoffs that add steps: an alarm wakes two agents at once, and one of them hands over further.

The workflow has a single step. Who else is called is decided by what it finds.

.venv/bin/python examples/handoffs_followed.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine


def triage(alarm: dict) -> dict:
    """Find out what an alarm is about."""
    return {"service": alarm["service"], "says": f"{alarm['service']} is slow", "data_lost": False}


def status_page(found: dict) -> dict:
    """Tell the customers."""
    return {"says": f"Published: {found['headline']}, we are on it"}


def engineer(found: dict) -> dict:
    """Repair it. The handoff has no data_mapping, so this is the whole of what triage found."""
    return {"says": f"Repaired {found['service']}", "cause": "a full disk"}


def lawyer(_: dict) -> dict:
    """Write to the authorities."""
    return {"says": "Reported"}


def reviewer(repair: dict) -> dict:
    """Draw a lesson from a repair."""
    return {"says": f"To be watched: {repair['cause']}"}


AGENTS = [triage, status_page, engineer, lawyer, reviewer]
STEPS = [{"id": "alarm", "agent_id": "agent-triage", "input_mapping": {"service": "${input.service}"}}]
HANDOFFS = [
    # Source, target, data_mapping, trigger_conditions.
    ("agent-triage", "agent-status-page", {"says": "headline"}, None),
    ("agent-triage", "agent-engineer", None, None),
    ("agent-triage", "agent-lawyer", None, ["source_output.data_lost = true"]),
    ("agent-engineer", "agent-reviewer", {"cause": "cause"}, ["source_output.cause != null"]),
]


async def main() -> None:
    """Raise an alarm, and print the steps that came of it."""
    async with WorkflowEngine({"agent_modules": ["handoffs_followed"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"handoffs_followed:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Alarm", steps=STEPS, handoffs="follow", max_handoffs=5)
        for source, target, mapping, conditions in HANDOFFS:
            await engine.create_handoff(source, target, "parallel", mapping, conditions, workflow_id=workflow_id)
        execution = await engine.execute_workflow(workflow_id, {"service": "checkout"})
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
    for step_id, step in result["steps"].items():
        print(f"{step_id}: {step['output']['says']}")
    for handoff in result["handoffs"]:
        if not handoff["taken"]:
            print("no handoff to", handoff["target_agent_id"] + ":", handoff["reason"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
