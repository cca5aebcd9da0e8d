"""Waiting without a process that waits: an invoice is sent, and a reminder when it is not paid in time.

.venv/bin/python examples/wait.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine

PAID = {"Ana"}


def post(letter: dict) -> dict:
    """Send a letter."""
    return {"note": f"{letter['what']} to {letter['to']}"}


def ledger(question: dict) -> dict:
    """Look up whether somebody has paid."""
    return {"paid": question["who"] in PAID}


AGENTS = [post, ledger]
STEPS = [
    # Not before an instant; one that is past is no wait.
    {"id": "office_hours", "type": "wait", "wait": {"until": "${input.opens_at}"}},
    {
        "id": "invoice",
        "agent_id": "agent-post",
        "depends_on": ["office_hours"],
        "input_mapping": {"what": "Invoice", "to": "${input.customer}"},
    },
    # In real life 30 days. The timer is Temporal's: workers may stop and start meanwhile.
    {"id": "grace", "type": "wait", "depends_on": ["invoice"], "wait": {"seconds": "${input.grace_seconds}"}},
    {
        "id": "look_up",
        "agent_id": "agent-ledger",
        "depends_on": ["grace"],
        "input_mapping": {"who": "${input.customer}"},
    },
    {
        "id": "remind",
        "agent_id": "agent-post",
        "when": "steps.look_up.output.paid = false",
        "input_mapping": {"what": "Reminder", "to": "${input.customer}"},
    },
]


async def main() -> None:
    """Send two invoices; one is paid while the execution waits."""
    async with WorkflowEngine({"agent_modules": ["wait"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"wait:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Invoice", steps=STEPS)
        for customer in ("Ana", "Rui"):
            order = {"customer": customer, "opens_at": "2025-01-02T08:00:00Z", "grace_seconds": 0.4}
            execution = await engine.execute_workflow(workflow_id, order)
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            print(customer)
            for step_id, step in result["steps"].items():
                waited = f"{step['duration']:.1f} s" if step_id in ("office_hours", "grace") else ""
                print(f"  {step_id} {step['status']}", waited or (step["output"] or {}).get("note", ""))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
