"""Three model agents plan a feature for the project in the current folder; the workflow is that of docs/API.md.

export BATON_SECRET_OPENAI_API_KEY=...               # for OpenAI, or
export BATON_LLM_BASE_URL=http://localhost:11434/v1  # any other endpoint that speaks its API, with a key or none
export OPENAI_MODEL=...                              # unless it is to be gpt-4o-mini
.venv/bin/python examples/feature_workflow.py "Implement user authentication"
"""

import asyncio
import logging
import os
import sys
from pathlib import Path

from engine import AgentCall, EngineError, WorkflowEngine
from engine.tools import tool

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
PART = {"type": "object", "properties": {"name": {"type": "string"}, "does": {"type": "string"}}}
PARTS = {"type": "array", "minItems": 1, "items": {**PART, "required": ["name", "does"]}}
SPECIFICATIONS = {"type": "object", "properties": {"specifications": PARTS}, "required": ["specifications"]}
ARCHITECT = "Find out what the project has already. Then plan the feature: how it fits in, in at most ten lines."
DETAIL = "Part the plan into modules that can be built and tested one by one."
RELATIONSHIP = "Say in Mermaid, as a graph LR and nothing else, which of these parts needs which."

AGENTS = [
    ("Project Architect Agent", {"model": MODEL, "instructions": ARCHITECT}, ["files_that_mention"]),
    ("Detail Agent", {"model": MODEL, "instructions": DETAIL, "output_schema": SPECIFICATIONS}, []),
    ("Relationship Agent", {"model": MODEL, "instructions": RELATIONSHIP}, []),
]
STEPS = [
    {
        "id": "architecture",
        "agent_id": "agent-project-architect",
        "input_mapping": {"feature_request": "${input.feature_request}"},
        "output_mapping": {"architecture_plan": "${output.plan}"},  # so the model is asked for an object with `plan`
    },
    {
        "id": "detail",
        "agent_id": "agent-detail",
        "input_mapping": {"architecture_plan": "${steps.architecture.output.architecture_plan}"},
        "output_mapping": {"detailed_specs": "${output.specifications}"},  # of the agent's own output_schema
    },
    {
        "id": "relationship",
        "agent_id": "agent-relationship",
        "input_mapping": {"detailed_specs": "${steps.detail.output.detailed_specs}"},
        "output_mapping": {"relationships": "${output.text}"},  # free text, shown while it is written
    },
]


@tool
def files_that_mention(word: str, call: AgentCall) -> list[str]:
    """List up to ten Python files of the project that hold a word, a name or a part of one."""
    call.emit(f"looks for {word}\n")
    paths = [path for path in Path().rglob("*.py") if not any(part.startswith(".") for part in path.parts)]
    return [str(path) for path in sorted(paths) if word in path.read_text(encoding="utf-8", errors="ignore")][:10]


async def main(feature_request: str) -> str | None:
    """Print the plan; return what went wrong, if something did."""
    async with WorkflowEngine() as engine:
        for name, config, tools in AGENTS:
            await engine.register_agent(name=name, config=config, tools=tools)
        workflow_id = await engine.create_workflow(name="Feature Implementation Workflow", steps=STEPS)
        execution = await engine.execute_workflow(workflow_id, {"feature_request": feature_request})
        async for event in engine.watch_execution(execution["execution_id"]):
            is_text = event["type"] == "agent.progress"
            told = event["data"]["text"] if is_text else f"\n-- {event['type']} {event['step_id'] or ''}\n"
            print(told, end="", flush=True, file=sys.stderr)
        result = await engine.get_execution_result(execution["execution_id"], wait=30)
    if result["status"] != "completed":
        return result["error"]["message"]
    steps, used = result["steps"], result["usage"]
    print(steps["architecture"]["output"]["architecture_plan"], end="\n\n")
    for part in steps["detail"]["output"]["detailed_specs"]:
        print(f"- {part['name']}: {part['does']}")
    print("", steps["relationship"]["output"]["relationships"].strip(), "", sep="\n")
    cost = "unknown" if used["cost_usd"] is None else f"{used['cost_usd']:.6f} USD"
    print(f"{used['requests']} requests, {used['input_tokens']} + {used['output_tokens']} tokens, cost {cost}")
    return None


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # what fails is in the result, with its reason
    try:
        sys.exit(asyncio.run(main(" ".join(sys.argv[1:]) or "Implement user authentication")))
    except EngineError as error:
        sys.exit(error.message)
