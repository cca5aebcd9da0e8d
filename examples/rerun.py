"""Run again what has to be, and keep the rest: an article in another tone, on the same research.

.venv/bin/python examples/rerun.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine


def researcher(question: dict) -> dict:
    """Find facts, which takes long and costs."""
    return {"facts": [f"{question['topic']} has rivers", f"{question['topic']} has towns"]}


def writer(order: dict) -> dict:
    """Write an article."""
    end = "!" if order["tone"] == "merry" else "."
    return {"text": " ".join(fact + end for fact in order["facts"])}


def layouter(article: dict) -> dict:
    """Put it on a page."""
    return {"page": f"| {article['text']} |"}


AGENTS = [researcher, writer, layouter]
STEPS = [
    {"id": "research", "agent_id": "agent-researcher", "input_mapping": {"topic": "${input.topic}"}},
    {
        "id": "write",
        "agent_id": "agent-writer",
        "input_mapping": {"facts": "${steps.research.output.facts}", "tone": "${input.tone}"},
    },
    {"id": "layout", "agent_id": "agent-layouter", "input_mapping": {"text": "${steps.write.output.text}"}},
]


async def main() -> None:
    """Run, look what a rerun with other input would do, and do it."""
    async with WorkflowEngine({"agent_modules": ["rerun"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"rerun:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Article", steps=STEPS)
        execution = await engine.execute_workflow(workflow_id, {"topic": "Portugal", "tone": "sober"})
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
        print(result["output"]["page"])

        merry = {"topic": "Portugal", "tone": "merry"}
        preview = await engine.rerun_execution(execution["execution_id"], input_data=merry, preview=True)
        print("would run", preview["rerun"], "and keep", preview["reused"])
        print("calls saved:", preview["saves"]["agent_calls"])

        again = await engine.rerun_execution(execution["execution_id"], input_data=merry)
        result = await engine.get_execution_result(again["execution_id"], wait=60)
        print(result["output"]["page"])
        for step_id, step in result["steps"].items():
            print(step_id, "was kept" if "reused_from" in step else "ran again")

        last = await engine.rerun_execution(again["execution_id"], from_step="layout")
        print("then only", last["rerun"])
        await engine.get_execution_result(last["execution_id"], wait=60)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
