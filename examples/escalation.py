"""Escalation: a clerk who may not decide is not the end of a step, somebody above decides in his place.

.venv/bin/python examples/escalation.py
"""

import asyncio
import logging
import sys

from engine import AgentFailure, EngineError, FailureReason, WorkflowEngine


def clerk(claim: dict) -> dict:
    """Grant small refunds."""
    if claim["amount"] > 50:
        raise AgentFailure(FailureReason.REFUSED, f"{claim['amount']} is more than I may grant")
    return {"decision": "granted"}


def supervisor(claim: dict) -> dict:
    """Grant larger ones, and know what the clerk said: the handoff's data_mapping brings it."""
    return {"decision": f"granted, since the clerk says: {claim['problem']['message']}"}


def director(_: dict) -> dict:
    """Have the last word."""
    return {"decision": "granted half of it"}


AGENTS = [clerk, supervisor, director]
STEPS = [
    {
        "id": "refund",
        "agent_id": "agent-clerk",
        "input_mapping": {"amount": "${input.amount}"},
        "output_mapping": {"decision": "${output.decision}"},  # of whoever decides
    }
]
ESCALATIONS = [
    # The first one that fires is called; should it fail, the next one.
    ("agent-supervisor", {"error": "problem"}, ["failure", "input.amount <= 500"]),
    ("agent-director", {}, ["failure"]),
]


async def main() -> None:
    """Ask for three refunds, and print who decided."""
    async with WorkflowEngine({"agent_modules": ["escalation"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"escalation:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Refund", steps=STEPS)
        for target, mapping, conditions in ESCALATIONS:
            await engine.create_handoff(
                "agent-clerk", target, "escalation", mapping, conditions, workflow_id=workflow_id
            )
        for amount in (20, 80, 900):
            execution = await engine.execute_workflow(workflow_id, {"amount": amount})
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            step = result["steps"]["refund"]
            print(f"{amount}: {step['agent_id']} {step['output']['decision']}")
            for handoff in result["handoffs"]:
                print(
                    "   ", "to" if handoff["taken"] else "not to", handoff["target_agent_id"] + ":", handoff["reason"]
                )


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
