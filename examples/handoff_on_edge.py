"""The handoff of docs/API.md in the workflow of docs/API.md: taken with a complete plan, refused with another one.

.venv/bin/python examples/handoff_on_edge.py
"""

import asyncio
import json
import logging
import sys

from engine import EngineError, WorkflowEngine


def architect(request: dict) -> dict:
    """Plan a feature; a request of two words is too short for a whole plan."""
    wish = request["feature_request"]
    return {"plan": f"{wish}: sessions, then views", "plan_complete": len(wish.split()) > 2}


def fallback(request: dict) -> dict:
    """Plan when the architect can't."""
    return {"plan": request["feature_request"], "plan_complete": False}


def detail(plan: dict) -> dict:
    """Part a plan into modules; what the handoff adds comes beside what the step's own mapping gives."""
    return {
        "specifications": [part.strip() for part in plan["detailed_requirements"].partition(":")[2].split(", then ")]
    }


AGENTS = {"Project Architect Agent": architect, "Fallback Agent": fallback, "Detail Agent": detail}
STEPS = [
    {
        "id": "step1",
        "name": "Architecture Planning",
        "agent_id": "agent-project-architect",
        "input_mapping": {"feature_request": "${input.feature_request}"},
        "output_mapping": {"architecture_plan": "${output.plan}"},
        "timeout": 60,
        "retry_policy": {"max_retries": 3, "backoff_factor": 2},
        "fallback": {"agent_id": "agent-fallback"},
    },
    {
        "id": "step2",
        "name": "Detail Development",
        "agent_id": "agent-detail",
        "input_mapping": {"architecture_plan": "${steps.step1.output.architecture_plan}"},
        "output_mapping": {"detailed_specs": "${output.specifications}"},
        "depends_on": ["step1"],
    },
]


async def main() -> None:
    """Ask for two features, and print what became of the second step each time."""
    async with WorkflowEngine({"agent_modules": ["handoff_on_edge"]}) as engine:
        for name, agent in AGENTS.items():
            await engine.register_agent(name=name, config={"function": f"handoff_on_edge:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Feature Implementation Workflow", steps=STEPS)
        await engine.create_handoff(
            source_agent_id="agent-project-architect",
            target_agent_id="agent-detail",
            handoff_type="sequential",
            data_mapping={"architecture_plan": "detailed_requirements"},
            trigger_conditions=["completion", "source_output.plan_complete = true"],
            workflow_id=workflow_id,  # without it the handoff holds for every workflow of the two agents
        )
        for wish in ("Implement user authentication system", "Something new"):
            execution = await engine.execute_workflow(workflow_id, {"feature_request": wish})
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            [handoff] = result["handoffs"]
            step = result["steps"]["step2"]
            print(wish)
            print("  handoff", "taken:" if handoff["taken"] else "refused:", handoff["reason"])
            print("  step2", step["status"], step["reason"] or json.dumps(step["output"]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
