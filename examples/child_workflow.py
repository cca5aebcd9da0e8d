"""A workflow that calls another one: a new colleague's things are ordered, each by an execution of its own.

.venv/bin/python examples/child_workflow.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine


def supplier(order: dict) -> dict:
    """Name the price of a thing."""
    return {"price": {"laptop": 900, "chair": 250, "badge": 5}[order["article"]]}


def buyer(order: dict) -> dict:
    """Buy it."""
    return {"note": f"{order['article']} for {order['who']} at {order['price']}"}


def host(welcome: dict) -> dict:
    """Show somebody round."""
    return {"note": f"{welcome['who']} finds {len(welcome['ready'])} things ready, and {welcome['badge']}"}


AGENTS = [supplier, buyer, host]
ORDER = [
    {"id": "ask", "agent_id": "agent-supplier", "input_mapping": {"article": "${input.article}"}},
    {
        "id": "buy",
        "agent_id": "agent-buyer",
        "input_mapping": {
            "article": "${input.article}",
            "who": "${input.who}",
            "price": "${steps.ask.output.price}",
        },
    },
]


def onboarding(purchase: str) -> list[dict]:
    """Return the steps of the workflow that calls the workflow `purchase`."""
    return [
        {
            "id": "badge",
            "type": "workflow",
            "workflow_id": purchase,  # its version is the newest when the parent starts, or the one in `version`
            "input_mapping": {"article": "badge", "who": "${input.who}"},
            "output_mapping": {"note": "${output.note}"},
        },
        {
            "id": "things",
            "type": "workflow",
            "workflow_id": purchase,
            "foreach": {"items": "${input.things}", "as": "thing"},
            "input_mapping": {"article": "${thing}", "who": "${input.who}"},
        },
        {
            "id": "welcome",
            "agent_id": "agent-host",
            "input_mapping": {
                "who": "${input.who}",
                "badge": "${steps.badge.output.note}",
                "ready": "${steps.things.output}",
            },
        },
    ]


async def main() -> None:
    """Welcome somebody, then look into the execution that bought the badge."""
    async with WorkflowEngine({"agent_modules": ["child_workflow"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"child_workflow:{agent.__name__}"})
        purchase = await engine.create_workflow(name="Purchase", steps=ORDER)
        workflow_id = await engine.create_workflow(name="Onboarding", steps=onboarding(purchase))
        execution = await engine.execute_workflow(workflow_id, {"who": "Ana", "things": ["laptop", "chair"]})
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
        print(result["output"]["note"])
        for thing in result["steps"]["things"]["output"]:
            print("-", thing["note"])
        child_id = result["steps"]["badge"]["child_execution_id"]
        child = await engine.get_execution_result(child_id)
        print(child_id.removeprefix(execution["execution_id"]), child["workflow_id"], list(child["steps"]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
