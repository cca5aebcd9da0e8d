"""A limit to what a run may spend: each search in an archive costs, and after two somebody is asked.

.venv/bin/python examples/budget.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine

ARCHIVES = ["Lisbon", "Porto", "Braga", "Faro"]


def searcher(order: dict) -> dict:
    """Look for a letter in the archive whose turn it is; it lies in the last one."""
    archive = ARCHIVES[order["turn"] - 1]
    return {"archive": archive, "found": archive == ARCHIVES[-1]}


STEPS = [
    {
        "id": "search",
        "agent_id": "agent-searcher",
        "input_mapping": {"turn": "${iteration}"},
        "repeat_until": {"condition": "output.found", "max_iterations": len(ARCHIVES)},
    }
]
BUDGET = {"agent_calls": 2, "on_breach": "ask"}


async def main() -> None:
    """Search twice: once somebody grants two searches more, once nobody does. Then with less from the start."""
    async with WorkflowEngine({"agent_modules": ["budget"]}) as engine:
        await engine.register_agent(name="Searcher", config={"function": "budget:searcher"})
        workflow_id = await engine.create_workflow(name="Lost letter", steps=STEPS, budget=BUDGET)
        for answer, limits in (("continue", {}), ("fail", {}), ("fail", {"agent_calls": 1})):
            execution = await engine.execute_workflow(workflow_id, {}, {"budget": limits} if limits else None)
            async for event in engine.watch_execution(execution["execution_id"]):
                if event["type"] == "gate.opened":
                    gate = await engine.get_gate(execution["execution_id"], event["data"]["gate_id"])
                    print(gate["question"], answer)
                    await engine.answer_gate(gate["execution_id"], gate["gate_id"], answer, by="ann")
            result = await engine.get_execution_result(execution["execution_id"])
            print("  " + (result["error"]["message"] if result["error"] else f"found in {result['output']['archive']}"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
