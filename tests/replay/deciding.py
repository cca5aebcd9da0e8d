"""Scenarios of the replay corpus in which definitions decide: each construct once, as small as it can be."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from engine import AgentFailure, FailureReason

if TYPE_CHECKING:
    from record import Stage

    from engine import WorkflowEngine

QUICK = {"max_retries": 2, "initial_interval": 0.05}
ONCE = {"max_retries": 0}
BROKEN = AgentFailure(FailureReason.ERROR, "It broke; the recording wants it so")


def step(step_id: str, agent_id: str = "worker", **fields: object) -> dict[str, object]:
    return {"id": step_id, "agent_id": agent_id, "retry_policy": QUICK, **fields}


async def until_running(engine: WorkflowEngine, execution_id: str) -> None:
    while not (await engine.get_execution_status(execution_id))["current_steps"]:
        await asyncio.sleep(0.05)


async def until_gate(engine: WorkflowEngine, execution_id: str) -> str:
    while True:
        gates: Any = (await engine.list_gates(execution_id=execution_id))["items"]
        if gates:
            return gates[0]["gate_id"]
        await asyncio.sleep(0.05)


async def slow(_: object) -> object:
    await asyncio.sleep(0.5)
    return {"text": "done"}


async def record_decisions(stage: Stage) -> None:
    """A step skipped by its condition, one by its join, and a failure that is passed over and handled."""
    steps = [
        step("s1", when="input.topic = 'another'"),
        step("s2", depends_on=["s1"]),
        step("s3", "breaker", on_error="continue", retry_policy=ONCE),
        step("s4", join="settled", when="steps.s3.error != null", input_mapping={"said": "${steps.s1.output.text}"}),
    ]
    await stage.run("decisions", {"worker": {"text": "done"}, "breaker": BROKEN}, steps)


async def record_handoffs(stage: Stage) -> None:
    """One handoff taken, with data, and one refused."""
    scripts = {"worker": {"text": "done", "ok": True}, "taker": {"text": "taken"}, "other": {"text": "never"}}
    engine = await stage.engine(scripts)
    taken = ["completion", "source_output.ok = true"]
    await engine.create_handoff("worker", "taker", data_mapping={"text": "said"}, trigger_conditions=taken)
    await engine.create_handoff("worker", "other", trigger_conditions=["source_output.ok = false"])
    await engine.aclose()
    steps = [step("s1"), step("s2", "taker", depends_on=["s1"]), step("s3", "other", depends_on=["s1"])]
    await stage.run("handoffs", scripts, steps)


async def record_following(stage: Stage) -> None:
    """Handoffs that add steps one after the other, and one that takes over a failing step."""
    scripts = {"asker": {"text": "a"}, "first": {"text": "b"}, "second": {"text": "c"}, "faulty": BROKEN, "rescuer": {}}
    engine = await stage.engine(scripts)
    await engine.create_handoff("asker", "first", data_mapping={"text": "said"})
    await engine.create_handoff("asker", "second")
    await engine.create_handoff("faulty", "rescuer", "escalation", data_mapping={"error": "why"})
    await engine.aclose()
    await stage.run(
        "following", scripts, [step("s1", "asker"), step("s2", "faulty", retry_policy=ONCE)], handoffs="follow"
    )


async def record_finish(stage: Stage) -> None:
    """A failure while another step runs, which may end first."""
    steps = [step("s1"), step("s2", "breaker", retry_policy=ONCE), step("s3", depends_on=["s1"])]
    scripts = {"worker": slow, "breaker": BROKEN}
    await stage.run("finish", scripts, steps, expected="failed", on_failure="finish")


async def record_items(stage: Stage) -> None:
    """Items two at a time, one failing and tolerated; continued as new in between; then a loop that ends."""
    foreach = {"items": list(range(12)), "as": "number", "max_concurrency": 2, "tolerate": 1}

    def work(given: dict[str, Any]) -> object:
        if given.get("number") == 3:
            raise AgentFailure(FailureReason.REFUSED, "not this one")
        return {"text": "done", "turn": given.get("turn")}

    steps = [
        step("s1", foreach=foreach, input_mapping={"number": "${number}"}),
        step(
            "s2",
            depends_on=["s1"],
            input_mapping={"turn": "${iteration}", "before": "${steps.s2.output.turn ?? null}"},
            repeat_until={"condition": "output.turn = 3"},
        ),
    ]
    await stage.run("items", {"worker": work}, steps)
    await stage.add_first_run("items-before")


async def record_values(stage: Stage) -> None:
    """What calls no agent: a transform, a large one, a wait."""
    steps: list[dict[str, object]] = [
        step("s1"),
        {"id": "small", "type": "transform", "transform": {"said": "${steps.s1.output.text}"}},
        {"id": "large", "type": "transform", "transform": {"all": "${steps.s1.output.pad} ${steps.s1.output.pad}"}},
        {"id": "pause", "type": "wait", "wait": {"seconds": 0.2}, "depends_on": ["small", "large"]},
    ]
    await stage.run("values", {"worker": {"text": "done", "pad": "x" * 20_000}}, steps)


async def record_child(stage: Stage) -> None:
    """A child execution."""
    engine = await stage.engine({"worker": {"text": "done"}})
    child = await engine.create_workflow("Replay inner", [step("inner")])  # pyright: ignore[reportArgumentType] # a step
    await engine.aclose()
    steps: list[dict[str, object]] = [
        {"id": "s1", "type": "workflow", "workflow_id": child, "input_mapping": {"topic": "${input.topic}"}}
    ]
    await stage.run("child", {"worker": {"text": "done"}}, steps)
    execution_id = stage.recorded[-1][1]
    stage.recorded.append(("inner", f"{execution_id}/s1.1", None))


async def record_gates(stage: Stage) -> None:
    """An approval, a failed step that is retried, a pause."""

    async def act(engine: WorkflowEngine, execution_id: str) -> None:
        gate_id = await until_gate(engine, execution_id)
        await engine.answer_gate(execution_id, gate_id, "approve", by="ada", data={"note": "good"})
        gate_id = await until_gate(engine, execution_id)
        await engine.pause_execution(execution_id, by="ada", reason="lunch")
        await engine.retry_step(execution_id, "s2", by="ada")
        await engine.resume_execution(execution_id, by="ada")

    steps: list[dict[str, object]] = [
        {"id": "s1", "type": "approval", "approval": {"question": "Go on with ${input.topic}?", "timeout": 60}},
        step("s2", "faulty", depends_on=["s1"], on_error="ask", retry_policy=ONCE),
    ]
    await stage.run("gates", {"faulty": [BROKEN, {"text": "done"}]}, steps, meanwhile=act)


async def record_expired_gate(stage: Stage) -> None:
    """A gate that nobody answers, and the second one, whose default is taken."""
    approval = {"question": "Go on?", "timeout": 0.2, "on_timeout": "escalate", "escalate_to": ["boss"]}
    steps: list[dict[str, object]] = [{"id": "s1", "type": "approval", "approval": approval}]
    await stage.run("expired-gate", {}, steps, expected="failed")


async def record_clean_up(stage: Stage) -> None:
    """Completed steps are undone, and ``finally`` runs."""
    steps = [
        step("s1", compensate={"agent_id": "undo"}),
        step("s2", depends_on=["s1"], compensate={"agent_id": "undo"}),
        step("s3", "breaker", depends_on=["s2"], retry_policy=ONCE),
    ]
    last = step("last", input_mapping={"ended": "${execution.status}"})
    scripts = {"worker": {"text": "done"}, "undo": {}, "breaker": BROKEN}
    await stage.run("clean-up", scripts, steps, expected="failed", **{"finally": [last]})


async def record_cancelled_clean_up(stage: Stage) -> None:
    """A cancellation, after which ``finally`` runs shielded."""

    async def cancel(engine: WorkflowEngine, execution_id: str) -> None:
        await until_running(engine, execution_id)
        await engine.cancel_execution(execution_id, "enough")

    async def forever(_: object) -> None:
        await asyncio.Event().wait()

    scripts = {"slow": forever, "worker": {"text": "done"}}
    fields: dict[str, Any] = {"finally": [step("last")]}
    steps = [step("s1", "slow")]
    await stage.run("cancelled-clean-up", scripts, steps, meanwhile=cancel, expected="cancelled", **fields)


async def record_budget(stage: Stage) -> None:
    """A budget that is spent; somebody says to go on."""

    async def act(engine: WorkflowEngine, execution_id: str) -> None:
        gate_id = await until_gate(engine, execution_id)
        await engine.answer_gate(execution_id, gate_id, "continue", by="ada")

    steps = [step("s1"), step("s2", depends_on=["s1"])]
    budget = {"agent_calls": 1, "on_breach": "ask"}
    await stage.run("budget", {"worker": {"text": "done"}}, steps, meanwhile=act, budget=budget)


async def record_rerun(stage: Stage) -> None:
    """A rerun from the second step on."""
    scripts = {"worker": {"text": "done"}}
    await stage.run("rerun-parent", scripts, [step("s1"), step("s2", input_mapping={"of": "${steps.s1.output.text}"})])
    _, parent, _ = stage.recorded.pop()
    engine = await stage.engine(scripts)
    rerun = await engine.rerun_execution(parent, from_step="s2")
    execution_id = str(rerun["execution_id"])  # pyright: ignore[reportGeneralTypeIssues, reportTypedDictNotRequiredAccess] # no preview
    await engine.get_execution_result(execution_id, wait=60)
    stage.recorded.append(("rerun", execution_id, None))
    await engine.aclose()


SCENARIOS = (
    record_decisions,
    record_handoffs,
    record_following,
    record_finish,
    record_items,
    record_values,
    record_child,
    record_gates,
    record_expired_gate,
    record_clean_up,
    record_cancelled_clean_up,
    record_budget,
    record_rerun,
)
