"""A workflow that decides: one of two branches, a failure that is handled, a handoff taken and one refused.

.venv/bin/python examples/decisions.py "The login page shows an error"
.venv/bin/python examples/decisions.py "How do I change my name?"
"""

import asyncio
import logging
import sys

from engine import AgentFailure, EngineError, FailureReason, WorkflowEngine


def sorter(ticket: dict) -> dict:
    """Tell what kind of message it is."""
    return {"kind": "bug" if "error" in ticket["message"] else "question"}


def developer(_: dict) -> dict:
    """Answer a bug."""
    return {"text": "A fix is on its way."}


def writer(_: dict) -> dict:
    """Answer a question."""
    return {"text": "The manual has a chapter on it."}


def clerk(answers: dict) -> dict:
    """Take the answer that there is; one to a question is for all."""
    return {"text": answers["fix"] or answers["explanation"], "for_all": answers["fix"] is None, "language": "en"}


def mailer(_: dict) -> dict:
    """Fail, as mail servers do."""
    raise AgentFailure(FailureReason.UNAVAILABLE, "The mail server is away")


def postbox(letter: dict) -> dict:
    """Keep what could not be sent."""
    return {"note": f"kept for later: {letter['why']}"}


def publisher(answer: dict) -> dict:
    """Show the answer to everybody; its language is what the clerk handed over."""
    return {"note": f"on the page of questions, in {answer['language']}"}


def archivist(_: dict) -> dict:
    """Put the answer away."""
    return {"note": "in the archive"}


AGENTS = [sorter, developer, writer, clerk, mailer, postbox, publisher, archivist]
STEPS = [
    {"id": "sort", "agent_id": "agent-sorter", "input_mapping": {"message": "${input.message}"}},
    # One of these two is run, the other one is skipped.
    {"id": "fix", "agent_id": "agent-developer", "depends_on": ["sort"], "when": "steps.sort.output.kind = 'bug'"},
    {"id": "explain", "agent_id": "agent-writer", "depends_on": ["sort"], "when": "steps.sort.output.kind != 'bug'"},
    {
        "id": "reply",
        "agent_id": "agent-clerk",
        "join": "any",  # with all, the default, the skipped branch would skip this, too
        "input_mapping": {"fix": "${steps.fix.output.text}", "explanation": "${steps.explain.output.text}"},
        "output_mapping": {"text": "${output.text}"},
    },
    {
        "id": "send",
        "agent_id": "agent-mailer",
        "input_mapping": {"text": "${steps.reply.output.text}"},
        "retry_policy": {"max_retries": 0},
        "on_error": "continue",  # the execution goes on, with a warning
    },
    {
        "id": "keep",
        "agent_id": "agent-postbox",
        "when": "steps.send.error != null",
        "input_mapping": {"text": "${steps.reply.output.text}", "why": "${steps.send.error.message}"},
    },
    # The clerk's handoffs decide about these two.
    {"id": "publish", "agent_id": "agent-publisher", "input_mapping": {"text": "${steps.reply.output.text}"}},
    {"id": "archive", "agent_id": "agent-archivist", "input_mapping": {"text": "${steps.reply.output.text}"}},
]
HANDOFFS = [
    # A handoff sees the clerk's whole reply, also what the step's output_mapping leaves out.
    ("agent-publisher", ["source_output.for_all = true"], {"language": "language"}),
    ("agent-archivist", ["source_output.for_all = false"], {}),
]


async def main(message: str) -> str | None:
    """Print what was run and why; return what went wrong, if something did."""
    async with WorkflowEngine({"agent_modules": ["decisions"]}) as engine:
        for agent in AGENTS:
            name = agent.__name__
            await engine.register_agent(name=name, config={"function": f"decisions:{name}"})
        workflow_id = await engine.create_workflow(name="Decisions", steps=STEPS)
        for target, conditions, mapping in HANDOFFS:
            await engine.create_handoff(
                "agent-clerk", target, data_mapping=mapping, trigger_conditions=conditions, workflow_id=workflow_id
            )
        execution = await engine.execute_workflow(workflow_id, {"message": message})
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
    if result["status"] != "completed":
        return result["error"]["message"]
    for step_id, step in result["steps"].items():
        print(step_id, step["status"], step["reason"] or (step["output"] or {}).get("note", ""))
    for handoff in result["handoffs"]:
        print("handoff to", handoff["target_step"], "taken:" if handoff["taken"] else "refused:", handoff["reason"])
    for warning in result["warnings"]:
        print(warning["message"])
    return None


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # the failure of the mailer is in the result
    try:
        sys.exit(asyncio.run(main(" ".join(sys.argv[1:]) or "The login page shows an error")))
    except EngineError as error:
        sys.exit(error.message)
