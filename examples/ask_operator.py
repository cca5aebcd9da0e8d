"""A step that fails asks what to do: one is done again when the paper jam is cleared, one is passed over.

.venv/bin/python examples/ask_operator.py
"""

import asyncio
import logging
import sys

from engine import AgentFailure, EngineError, FailureReason, WorkflowEngine

JAMS = ["There is a paper jam."]


def printer(card: dict) -> dict:
    """Print a card; the first one gets stuck."""
    if JAMS:
        raise AgentFailure(FailureReason.UNAVAILABLE, JAMS.pop())
    return {"card": f"Dear {card['guest']}, come on Sunday"}


def courier(_: dict) -> dict:
    """Fail, as nobody works today."""
    raise AgentFailure(FailureReason.UNAVAILABLE, "There is no courier today.")


def book(journey: dict) -> dict:
    """Write down how a card went."""
    return {"note": f"'{journey['card']}' went by {journey['how']}"}


AGENTS = [printer, courier, book]
STEPS = [
    {
        "id": "print",
        "agent_id": "agent-printer",
        "input_mapping": {"guest": "${input.guest}"},
        "on_error": "ask",
    },
    {
        "id": "deliver",
        "agent_id": "agent-courier",
        "input_mapping": {"card": "${steps.print.output.card}"},
        "on_error": "ask",
    },
    {
        "id": "note",
        "agent_id": "agent-book",
        "input_mapping": {"card": "${steps.print.output.card}", "how": "${steps.deliver.output.how}"},
    },
]


async def main() -> None:
    """Invite somebody, and do what an operator does."""
    async with WorkflowEngine({"agent_modules": ["ask_operator"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"ask_operator:{agent.__name__}"})
        no_retries = {"retry_policy": {"max_retries": 0}}
        workflow_id = await engine.create_workflow(name="Invitation", steps=STEPS, defaults=no_retries)
        execution_id = (await engine.execute_workflow(workflow_id, {"guest": "Ana"}))["execution_id"]
        async for event in engine.watch_execution(execution_id):
            if event["type"] != "gate.opened":
                continue
            gate = await engine.get_gate(execution_id, event["data"]["gate_id"])
            print(gate["question"])
            if gate["step_id"] == "print":
                await engine.retry_step(execution_id, "print", by="ann")
            else:
                await engine.skip_step(execution_id, "deliver", {"how": "bicycle, Bob took it"}, by="bob")
        result = await engine.get_execution_result(execution_id)
    for step_id, step in result["steps"].items():
        print(step_id, step["status"], f"(calls: {step['attempts']})")
    print(result["output"]["note"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
