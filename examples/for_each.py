"""A step for each item of a list: the receipts of a journey are read side by side, and one may be unreadable.

.venv/bin/python examples/for_each.py
"""

import asyncio
import logging
import sys

from engine import AgentFailure, EngineError, FailureReason, WorkflowEngine


def reader(receipt: dict) -> dict:
    """Read what and how much was paid."""
    what, _, amount = receipt["text"].rpartition(" ")
    if not amount.replace(".", "").isdigit():
        raise AgentFailure(FailureReason.REFUSED, f"Receipt {receipt['number']} can't be read: {receipt['text']}")
    return {"what": what, "amount": float(amount)}


def accountant(report: dict) -> dict:
    """Add up what could be read; the output of the items is a list, with null for one that failed."""
    read = [receipt for receipt in report["receipts"] if receipt is not None]
    return {"total": sum(receipt["amount"] for receipt in read), "read": len(read)}


AGENTS = [reader, accountant]
STEPS = [
    {
        "id": "read",
        "agent_id": "agent-reader",
        "foreach": {"items": "${input.receipts}", "as": "receipt", "max_concurrency": 2, "tolerate": 1},
        "input_mapping": {"text": "${receipt}", "number": "${index}"},
    },
    {"id": "sum", "agent_id": "agent-accountant", "input_mapping": {"receipts": "${steps.read.output}"}},
]
JOURNEYS = [
    ["Train 48.50", "a stain of coffee", "Hotel 120.00", "Taxi 17.20"],
    ["a stain of coffee", "Train 48.50", "a stain of tea"],  # one more than is tolerated
]


async def main() -> None:
    """Print the sums of two journeys, or why there is none."""
    async with WorkflowEngine({"agent_modules": ["for_each"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"for_each:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Expenses", steps=STEPS)
        for receipts in JOURNEYS:
            execution = await engine.execute_workflow(workflow_id, {"receipts": receipts})
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            print(len(receipts), "receipts:", result["status"])
            for warning in result["warnings"]:
                print("  warning:", warning["message"])
            if result["output"]:
                print(f"  {result['output']['read']} were read, {result['output']['total']:.2f} in all")
            else:
                print(" ", result["error"]["message"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
