"""People decide: a price list is printed when somebody has set the price, and not when somebody says no.

.venv/bin/python examples/approval.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine


def drafter(_: dict) -> dict:
    """Propose a price."""
    return {"price": 12}


def printer(order: dict) -> dict:
    """Print the list."""
    return {"note": f"{order['copies']} with a tea at {order['price']}, as {order['by']} says"}


AGENTS = [drafter, printer]
STEPS = [
    {"id": "draft", "agent_id": "agent-drafter", "input_mapping": {}},
    {
        "id": "release",
        "type": "approval",
        "approval": {
            "question": "Is ${steps.draft.output.price} right for a tea?",
            "assignees": ["ann"],  # a label to find gates by
            "schema": {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]},
        },
    },
    {
        "id": "paper",
        "type": "approval",
        "depends_on": ["release"],
        "approval": {
            "question": "On which paper?",
            "allowed": ["glossy", "plain"],
            "timeout": 0.2,  # nobody answers in time, so the default is taken
            "on_timeout": "default",
            "default": "plain",
            "fail_on": [],
        },
    },
    {
        "id": "print",
        "agent_id": "agent-printer",
        "input_mapping": {
            "copies": "100 ${steps.paper.output.answer} sheets",
            "price": "${steps.release.output.data.price}",
            "by": "${steps.release.output.by}",
        },
    },
]


async def main() -> None:
    """Answer the same question twice; answers come from anywhere, here from the process that started it."""
    async with WorkflowEngine({"agent_modules": ["approval"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"approval:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Price list", steps=STEPS)
        for answer, data in (("approve", {"price": 11.5}), ("reject", {"price": 0})):
            execution = await engine.execute_workflow(workflow_id)
            async for event in engine.watch_execution(execution["execution_id"]):
                if event["type"] == "gate.opened" and event["step_id"] == "release":
                    [gate] = (await engine.list_gates(workflow_id=workflow_id, assignee="ann"))["items"]
                    print(gate["question"], answer)
                    await engine.answer_gate(gate["execution_id"], gate["gate_id"], answer, by="ann", data=data)
            result = await engine.get_execution_result(execution["execution_id"])
            print("  " + (result["error"]["message"] if result["error"] else result["output"]["note"]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
