"""A loop: a sentence is shortened until it fits on the poster, or until four turns are over.

.venv/bin/python examples/repeat_until.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine


def editor(sentence: dict) -> dict:
    """Leave out the last part of the sentence of the turn before; there is none in the first turn."""
    text = sentence["before"] or sentence["text"]
    return {"text": text.rpartition(",")[0] or text}


STEPS = [
    {
        "id": "shorten",
        "agent_id": "agent-editor",
        # A step that is repeated may read its own output, that of the turn before.
        "input_mapping": {"text": "${input.text}", "before": "${steps.shorten.output.text}"},
        "repeat_until": {"condition": "size(output.text) <= input.room", "max_iterations": 4},
    }
]
TEXT = "Come to the fair, there will be music, there will be cake, and old cars, on Sunday, in the park"


async def main() -> None:
    """Shorten a sentence for two posters; one of them is too small for any of it."""
    async with WorkflowEngine({"agent_modules": ["repeat_until"]}) as engine:
        await engine.register_agent(name="Editor", config={"function": "repeat_until:editor"})
        workflow_id = await engine.create_workflow(name="Poster", steps=STEPS)
        for room in (60, 10):
            execution = await engine.execute_workflow(workflow_id, {"text": TEXT, "room": room})
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            print(f"room for {room}, {result['steps']['shorten'].get('iteration', 1)} turns")
            print(" ", result["output"]["text"])
            for warning in result["warnings"]:
                print("  warning:", warning["message"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
