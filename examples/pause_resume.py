"""A run is held and goes on: while it is paused an editor may still say yes, but nothing is sent.

.venv/bin/python examples/pause_resume.py
"""

import asyncio
import logging
import sys

from engine import EngineError, WorkflowEngine


def mailer(letter: dict) -> dict:
    """Send a letter to all readers."""
    return {"note": f"sent: {letter['text']}"}


STEPS = [
    {"id": "check", "type": "approval", "approval": {"question": "Send '${input.text}'?"}},
    {
        "id": "send",
        "agent_id": "agent-mailer",
        "depends_on": ["check"],
        "input_mapping": {"text": "${input.text}"},
    },
]


async def main() -> None:
    """Pause, approve and resume, and print how the execution stands meanwhile."""
    async with WorkflowEngine({"agent_modules": ["pause_resume"]}) as engine:
        await engine.register_agent(name="Mailer", config={"function": "pause_resume:mailer"})
        workflow_id = await engine.create_workflow(name="Newsletter", steps=STEPS)
        execution_id = (await engine.execute_workflow(workflow_id, {"text": "The fair is on Sunday"}))["execution_id"]
        async for event in engine.watch_execution(execution_id):
            if event["type"] == "gate.opened":
                print("held by ops, while the editor says yes")
                await engine.pause_execution(execution_id, by="ops", reason="the mail server is being repaired")
                await engine.answer_gate(execution_id, event["data"]["gate_id"], "approve", by="editor")
            elif event["type"] == "step.completed" and event["step_id"] == "check":
                status = await engine.get_execution_status(execution_id)
                print(status["status"], {step_id: step["status"] for step_id, step in status["steps"].items()})
                print("resumed by ops")
                await engine.resume_execution(execution_id, by="ops")
        print((await engine.get_execution_result(execution_id))["output"]["note"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
