"""Who helps out depends on why somebody fails: a busy service and a poem need different translators.

.venv/bin/python examples/fallbacks.py
"""

import asyncio
import logging
import sys

from engine import AgentFailure, EngineError, FailureReason, WorkflowEngine

FAILURES = {
    "contract": (FailureReason.RATE_LIMITED, "Too many pages today"),
    "poem": (FailureReason.REFUSED, "A machine can't translate poems"),
    "secret": (FailureReason.UNAUTHORIZED, "Not for my eyes"),
}


def translator(text: dict) -> dict:
    """Translate, unless there is a reason not to."""
    if text["kind"] in FAILURES:
        raise AgentFailure(*FAILURES[text["kind"]])
    return {"by": "the first service"}


def other_service(_: dict) -> dict:
    """Translate at another service."""
    return {"by": "the other service"}


def poet(_: dict) -> dict:
    """Translate with feeling."""
    return {"by": "a poet"}


AGENTS = [translator, other_service, poet]
STEPS = [
    {
        "id": "translate",
        "agent_id": "agent-translator",
        "input_mapping": {"kind": "${input.kind}"},
        # Retries come first; a refusal and a missing permission are not retried.
        "retry_policy": {"max_retries": 1, "initial_interval": 0.1},
        "fallback": [
            {"agent_id": "agent-other-service", "on": ["rate_limited", "unavailable", "timeout"]},
            {"agent_id": "agent-poet", "on": ["refused"]},
        ],
    }
]


async def main() -> None:
    """Print who translated each text, after how many calls."""
    async with WorkflowEngine({"agent_modules": ["fallbacks"]}) as engine:
        for agent in AGENTS:
            await engine.register_agent(name=agent.__name__, config={"function": f"fallbacks:{agent.__name__}"})
        workflow_id = await engine.create_workflow(name="Translation", steps=STEPS)
        for kind in ("letter", *FAILURES):
            execution = await engine.execute_workflow(workflow_id, {"kind": kind})
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            outcome = result["output"]["by"] if result["output"] else result["error"]["message"]
            print(f"{kind}: {outcome} (calls: {result['steps']['translate']['attempts']})")


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
