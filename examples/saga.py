"""A journey that is booked wholly or not at all: what is booked is cancelled again when the last part fails.

.venv/bin/python examples/saga.py
"""

import asyncio
import logging
import sys

from engine import AgentFailure, EngineError, FailureReason, WorkflowEngine


def booking(order: dict) -> dict:
    """Book a part of the journey."""
    if order["what"] == "car" and order["people"] > 4:
        raise AgentFailure(FailureReason.REFUSED, f"No car for {order['people']} people")
    return {"note": f"{order['what']} for {order['people']}"}


def cancellation(booked: dict) -> dict:
    """Undo a booking."""
    return {"note": f"no {booked['note']}"}


def traveller(ending: dict) -> dict:
    """Get told how it ended."""
    return {"note": "Have a good journey" if ending["status"] == "completed" else f"Sorry: {ending['why']}"}


def part(what: str, *, after: list[str]) -> dict:
    """Return a step that books a part, with what undoes it."""
    return {
        "id": what,
        "agent_id": "agent-booking",
        "depends_on": after,
        "input_mapping": {"what": what, "people": "${input.people}"},
        "compensate": {
            "agent_id": "agent-cancellation",
            "input_mapping": {"note": f"${{steps.{what}.output.note}}"},
        },
    }


AGENTS = [booking, cancellation, traveller]
STEPS = [part("flight", after=[]), part("hotel", after=["flight"]), part("car", after=["hotel"])]
FINALLY = [
    {
        "id": "tell",
        "agent_id": "agent-traveller",
        "input_mapping": {"status": "${execution.status}", "why": "${execution.error.message ?? 'nothing'}"},
    }
]


async def main() -> None:
    """Book for two groups, for the second of which there is no car, and print the steps as they ended."""
    async with WorkflowEngine({"agent_modules": ["saga"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"saga:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Journey", steps=STEPS, **{"finally": FINALLY})
        for people in (2, 6):
            execution = await engine.execute_workflow(workflow_id, {"people": people})
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            print(f"{people} people: {result['status']}")
            for step_id, step in sorted(result["steps"].items(), key=lambda item: item[1]["completed_at"]):
                print(f"  {step_id} {step['status']}", step["output"]["note"] if step["output"] else "")


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
