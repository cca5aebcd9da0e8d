"""The interpreter under Temporal's sandbox, which refuses what would not replay: one pass over each kind of end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runs import FAST_RETRIES, EngineFactory, Gate, closed, create, echo, ended, finish, start, until

from engine.domain.agent_call import AgentFailure, FailureReason

if TYPE_CHECKING:
    from temporalio.client import Client

    from engine.bootstrap import Stores


async def test_every_kind_of_end_is_reached_in_the_sandbox(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    gate = Gate()
    engine = engine_factory(
        {
            "agent-echo": echo,
            "agent-flaky": [AgentFailure(FailureReason.UNAVAILABLE, "not yet"), {"ok": True}],
            "agent-no": [AgentFailure(FailureReason.REFUSED, "no")],
            "agent-gate": gate,
            "agent-big": {"text": "x" * 300_000},
        },
        workflow_runner="sandboxed",
    )
    steps: list[dict[str, Any]] = [
        {"id": "a", "agent_id": "agent-flaky", "retry_policy": FAST_RETRIES},
        {"id": "b", "agent_id": "agent-no", "fallback": {"agent_id": "agent-echo"}, "depends_on": ["a"]},
        {"id": "big", "agent_id": "agent-big"},
        {
            "id": "c",
            "agent_id": "agent-echo",
            "input_mapping": {"t": "${steps.big.output.text}", "b": "${steps.b.output}"},
        },
    ]
    completed = await start(engine, steps, {"x": 1})
    result = await ended(engine, stores, client, completed)
    assert result["output"] == {"t": "x" * 300_000, "b": {"input": {"x": 1}, "steps": {"a": {"ok": True}}}}

    failed = await start(engine, [{"id": "a", "agent_id": "agent-no"}], name="Failing")
    assert (await ended(engine, stores, client, failed))["status"] == "failed"

    waiting = await create(engine, [{"id": "a", "agent_id": "agent-gate"}], name="Waiting")
    timed_out = (await engine.execute_workflow(waiting, None, {"timeout": 0.5}))["execution_id"]
    assert (await ended(engine, stores, client, timed_out))["error"]["code"] == "execution_timeout"

    for by_signal in (False, True):
        calls = len(gate.attempts)
        started = await engine.execute_workflow(waiting)
        await until(lambda calls=calls: len(gate.attempts) > calls, "the step runs")
        handle = client.get_workflow_handle(started["execution_id"])
        await (handle.signal("cancel", "stop") if by_signal else handle.cancel(reason="stop"))
        cancelled = await ended(engine, stores, client, handle.id)
        assert (cancelled["status"], cancelled["cancel"]["reason"]) == ("cancelled", "stop")

    by_hand = await client.start_workflow(
        "flow",
        {"x": 2},
        id=f"{started['temporal']['task_queue']}-by-hand",
        task_queue=started["temporal"]["task_queue"],
    )
    await closed(client, by_hand.id)
    assert (await finish(engine, by_hand.id))["status"] == "completed"
