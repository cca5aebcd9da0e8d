"""What changed, how it looks and why it went so: a workflow is changed, drawn, run and explained.

.venv/bin/python examples/reading_runs.py
"""

import asyncio
import json
import logging
import sys

from engine import AgentFailure, EngineError, FailureReason, WorkflowEngine


def forecaster(_: dict) -> dict:
    """Fail, as the weather service is closed."""
    raise AgentFailure(FailureReason.UNAVAILABLE, "The weather service is closed")


def frog(_: dict) -> dict:
    """Tell the weather without a service."""
    return {"rain": True, "degrees": 18}


def gardener(weather: dict) -> dict:
    """Do what the weather asks for."""
    return {"note": f"in the garden at {weather['degrees']} degrees"}


AGENTS = [forecaster, frog, gardener]
FORECAST = {
    "id": "forecast",
    "agent_id": "agent-forecaster",
    "input_mapping": {},
    "retry_policy": {"max_retries": 0},
    "fallback": {"agent_id": "agent-frog"},
}
GARDEN = {"agent_id": "agent-gardener", "input_mapping": {"degrees": "${steps.forecast.output.degrees}"}}
BEFORE = [FORECAST, {"id": "water", **GARDEN}]
AFTER = [
    FORECAST,
    {"id": "water", **GARDEN, "when": "steps.forecast.output.rain = false"},
    {"id": "plant", **GARDEN, "when": "steps.forecast.output.degrees > 15"},
]


async def main() -> None:
    """Print the difference of two versions, the graph of a run and why its steps went as they did."""
    async with WorkflowEngine({"agent_modules": ["reading_runs"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"reading_runs:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Garden", steps=BEFORE)
        await engine.update_workflow(workflow_id, {"steps": AFTER})
        for change in (await engine.diff_workflow(workflow_id))["changes"]:
            print(change["kind"], change["path"], json.dumps(change["after"])[:60])

        execution = await engine.execute_workflow(workflow_id)
        await engine.get_execution_result(execution["execution_id"], wait=60)
        print(await engine.workflow_graph(workflow_id, "text", execution_id=execution["execution_id"]))
        explanation = await engine.explain_execution(execution["execution_id"])
        print(explanation["text"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
