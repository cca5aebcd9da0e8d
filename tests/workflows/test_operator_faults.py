"""Operators and faults: answers that race, that are too large, that come before a plan, between two runs, or too late."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from runs import Gate, Server, closed, decoded_sizes, echo, ended, events_of, finish, own_server, runs_of, start, until
from temporalio.client import WorkflowUpdateFailedError

from engine import EngineError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runs import EngineFactory
    from temporalio.client import Client

    from engine import WorkflowEngine
    from engine.bootstrap import Stores


@pytest.fixture(scope="module")
async def short_runs() -> AsyncGenerator[Server]:
    """A server that suggests continuing as new after 60 events."""
    async with own_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=60") as server:
        yield server


def approval(step_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "approval", "approval": {"question": f"{step_id}?", **fields}}


async def create_and_start(engine: WorkflowEngine, steps: list[dict[str, Any]], given: Any = None, **fields: Any) -> str:
    options = fields.pop("options", None)
    agents = {step["agent_id"] for step in [*steps, *fields.get("finally_", [])] if "agent_id" in step}
    agents |= {step["compensate"]["agent_id"] for step in steps if "compensate" in step}
    for agent_id in sorted(agents):
        await engine.register_agent(agent_id, config={"function": "scripts:answer"}, agent_id=agent_id)
    if "finally_" in fields:
        fields["finally"] = fields.pop("finally_")
    workflow_id = await engine.create_workflow(fields.pop("name", "Flow"), steps, **fields)
    return (await engine.execute_workflow(workflow_id, given, options))["execution_id"]


async def open_ids(engine: WorkflowEngine, execution_id: str) -> list[str]:
    return [gate["gate_id"] for gate in (await engine.list_gates(execution_id, limit=1000))["items"]]


async def until_open(engine: WorkflowEngine, execution_id: str, count: int) -> list[str]:
    found: list[str] = []

    async def are_open() -> bool:
        found[:] = await open_ids(engine, execution_id)
        return len(found) == count

    await until(are_open, f"{count} gates are open")
    return found


def noise(size: int, seed: int = 1) -> str:
    """A text that does not compress to nothing."""
    return random.Random(seed).randbytes(size // 2).hex()


async def test_two_answers_at_one_instant_one_stands(engine_factory: EngineFactory):
    engine, other = engine_factory({}), engine_factory({})
    for _ in range(5):
        execution_id = await create_and_start(engine, [approval("a", data_schema={})]) if False else await create_and_start(engine, [approval("a")])
        (gate_id,) = await until_open(engine, execution_id, 1)
        words = ["approve", "reject", "approve", "reject"]
        got = await asyncio.gather(
            *(
                (engine, other)[n % 2].answer_gate(execution_id, gate_id, word, by=f"p{n}")
                for n, word in enumerate(words)
            ),
            return_exceptions=True,
        )
        taken = [one for one in got if isinstance(one, dict)]
        refused = [one for one in got if isinstance(one, EngineError)]
        assert (len(taken), len(refused)) == (1, 3), got
        assert {one.code for one in refused} == {ErrorCode.CONFLICT}
        assert all(one.details["answer"] == taken[0]["answer"] for one in refused), [one.details for one in refused]
        gate = await engine.get_gate(execution_id, gate_id)
        assert (gate["answer"], gate["by"]) == (taken[0]["answer"], taken[0]["by"])


async def test_twenty_gates_answered_in_any_order_keep_their_answers(engine_factory: EngineFactory):
    engine = engine_factory({})
    steps = [approval(f"a{n}") for n in range(20)]
    execution_id = await create_and_start(engine, steps)
    ids = await until_open(engine, execution_id, 20)
    random.Random(4).shuffle(ids)
    await asyncio.gather(*(engine.answer_gate(execution_id, i, "approve", by=i, data={"for": i}) for i in ids))
    result = await finish(engine, execution_id)
    assert result["status"] == "completed", result["error"]
    for n in range(20):
        output = result["output"][f"a{n}"]
        assert (output["by"], output["data"]) == (f"a{n}.1", {"for": f"a{n}.1"})


async def test_large_answers_given_at_once_are_all_kept(engine_factory: EngineFactory):
    engine = engine_factory({})
    steps = [approval(f"a{n}") for n in range(20)]
    execution_id = await create_and_start(engine, steps)
    ids = await until_open(engine, execution_id, 20)
    await asyncio.gather(
        *(engine.answer_gate(execution_id, i, "approve", data={"text": noise(240_000, n)}) for n, i in enumerate(ids))
    )
    result = await finish(engine, execution_id)
    assert result["status"] == "completed", result["error"]
    assert all(result["output"][f"a{n}"]["data"]["text"] for n in range(20))


async def test_large_answers_are_carried_to_the_next_run(engine_factory: EngineFactory, short_runs: Server):
    engine = engine_factory({"agent-a": {}}, temporal_address=short_runs.address)
    steps = [approval(f"a{n}", ) | {"depends_on": [f"a{n - 1}"] if n else []} for n in range(12)]
    execution_id = await create_and_start(engine, steps)
    for n in range(12):
        (gate_id,) = await until_open(engine, execution_id, 1)
        await engine.answer_gate(execution_id, gate_id, "approve", data={"text": noise(240_000, n)})
        if n < 11:
            async def following(n: int = n) -> bool:
                return await open_ids(engine, execution_id) == [f"a{n + 1}.1"]
            await until(following, "the next")
    result = await finish(engine, execution_id)
    assert result["status"] == "completed", result["error"]
    assert len(await runs_of(short_runs.client, execution_id)) > 1


async def churn(engine: WorkflowEngine, execution_id: str, times: int = 12) -> None:
    """Make history longer without doing anything."""
    for _ in range(times):
        await engine.pause_execution(execution_id)
        await engine.resume_execution(execution_id)


async def test_gate_across(engine_factory: EngineFactory, short_runs: Server):
    engine = engine_factory({"agent-a": {}}, temporal_address=short_runs.address)
    steps = [approval("a"), approval("b", timeout=20), {"id": "w", "type": "wait", "wait": {"seconds": 4}}]
    execution_id = await create_and_start(engine, steps)
    ids = await until_open(engine, execution_id, 2)
    await engine.answer_gate(execution_id, "a.1", "approve", by="ann")
    await churn(engine, execution_id)
    assert len(await runs_of(short_runs.client, execution_id)) > 1
    with pytest.raises(EngineError) as caught:
        await engine.answer_gate(execution_id, "a.1", "reject", by="bob")
    assert caught.value.code is ErrorCode.CONFLICT
    assert caught.value.details["answer"] == "approve"
    await engine.answer_gate(execution_id, "b.1", "approve", by="cid")
    result = await finish(engine, execution_id)
    assert result["status"] == "completed", result["error"]
    assert result["output"]["b"]["by"] == "cid"


async def test_pause_across(engine_factory: EngineFactory, short_runs: Server):
    engine = engine_factory({"agent-a": {}}, temporal_address=short_runs.address)
    steps = [approval("a"), {"id": "b", "agent_id": "agent-a", "depends_on": ["a"]}]
    execution_id = await create_and_start(engine, steps)
    await until_open(engine, execution_id, 1)
    for _ in range(9):
        await churn(engine, execution_id, 1)
        await engine.pause_execution(execution_id)
        runs = await runs_of(short_runs.client, execution_id)
        if len(runs) > 1: print("CAN paused"); break
        await engine.resume_execution(execution_id)
    else: pytest.fail("no")
    assert (await engine.get_execution_status(execution_id))["status"] == "paused"
    await engine.answer_gate(execution_id, "a.1", "approve")
    await asyncio.sleep(1)
    status = await engine.get_execution_status(execution_id)
    assert (status["status"], status["steps"]["b"]["status"]) == ("paused", "pending")
    await engine.resume_execution(execution_id)
    assert (await finish(engine, execution_id))["status"] == "completed"


async def test_budget_gate_across(engine_factory: EngineFactory, short_runs: Server):
    engine = engine_factory({"agent-a": echo}, temporal_address=short_runs.address)
    steps = [{"id": f"s{n}", "agent_id": "agent-a"} for n in range(4)]
    steps.append({"id": "f", "agent_id": "agent-a", "foreach": {"items": [1, 2, 3]}})
    execution_id = await create_and_start(engine, steps, budget={"agent_calls": 2, "on_breach": "ask"})
    k = 0
    while True:
        async def more() -> bool:
            return bool(await open_ids(engine, execution_id)) or (await engine.get_execution_status(execution_id))["status"] == "completed"
        await until(more, "gate or end")
        ids = await open_ids(engine, execution_id)
        if not ids: break
        k += 1
        await churn(engine, execution_id, 10)
        await engine.answer_gate(execution_id, ids[0], "continue")
        async def gone() -> bool:
            return await open_ids(engine, execution_id) != ids
        await until(gone, "gate is gone")
    result = await finish(engine, execution_id)
    print("breaches", k, len(await runs_of(short_runs.client, execution_id)))
    assert (result["status"], k) == ("completed", 3)


async def test_ask_gate_across(engine_factory: EngineFactory, short_runs: Server):
    calls = []
    def flaky(given):
        calls.append(given)
        if len(calls) < 4: raise ValueError("no")
        return {"ok": True}
    engine = engine_factory({"agent-a": flaky}, temporal_address=short_runs.address)
    steps = [{"id": "s", "agent_id": "agent-a", "on_error": "ask", "retry_policy": {"max_retries": 0}}]
    execution_id = await create_and_start(engine, steps)
    for n in range(3):
        (gate,) = await until_open(engine, execution_id, 1)
        assert gate == f"s.{n + 1}"
        await churn(engine, execution_id, 10)
        await engine.retry_step(execution_id, "s")
        async def gone() -> bool:
            return gate not in await open_ids(engine, execution_id)
        await until(gone, "gone")
    result = await finish(engine, execution_id)
    assert (result["status"], result["steps"]["s"]["attempts"]) == ("completed", 4)


async def test_items_ask_across(engine_factory: EngineFactory, short_runs: Server):
    seen = []
    def flaky(given):
        seen.append(given["index"])
        if given["index"] % 10 == 3 and seen.count(given["index"]) < 3: raise ValueError("no")
        return given["item"]
    engine = engine_factory({"agent-a": flaky}, temporal_address=short_runs.address)
    steps = [{"id": "s", "agent_id": "agent-a", "on_error": "ask", "retry_policy": {"max_retries": 0},
              "input_mapping": {"item": "${item}", "index": "${index}"}, "foreach": {"items": "${input.list}", "tolerate": 1, "max_concurrency": 4}}]
    execution_id = await create_and_start(engine, steps, {"list": [{"v": n} for n in range(40)]})
    for n in range(9):
        async def either() -> bool:
            return bool(await open_ids(engine, execution_id)) or (await engine.get_execution_status(execution_id))["status"] not in ("running", "waiting", "pending", "paused")
        await until(either, "gate or end")
        ids = await open_ids(engine, execution_id)
        if not ids: break
        await churn(engine, execution_id, 10)
        await engine.retry_step(execution_id, "s")
        async def gone() -> bool:
            return await open_ids(engine, execution_id) != ids
        await until(gone, "gone")
    result = await finish(engine, execution_id)
    print(n, result["status"], result["warnings"], {i: seen.count(i) for i in set(seen) if seen.count(i) > 1}, len(await runs_of(short_runs.client, execution_id)))
    assert result["status"] == "completed"
    print([i for i, o in enumerate(result["output"]) if o != {"v": i}])


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_child_ended_by_hand(engine_factory: EngineFactory, client: Client, how: str):
    engine = engine_factory({"agent-a": {}})
    child = await engine.create_workflow("Child", [approval("g")])
    steps = [{"id": "b", "type": "workflow", "workflow_id": child}]
    parent = await engine.create_workflow("Parent", steps)
    execution_id = (await engine.execute_workflow(parent))["execution_id"]
    child_id = f"{execution_id}/b.1"
    async def there() -> bool:
        try: return bool(await open_ids(engine, child_id))
        except EngineError: return False
    await until(there, "child")
    if how == "cancel": await engine.cancel_execution(child_id)
    else: await client.get_workflow_handle(child_id).terminate()
    result = await finish(engine, execution_id)
    print(how, result["status"], result["error"], result["steps"])
    assert result["status"] == "failed"


DEEP: Any = None
def deep(n):
    v = 1
    for _ in range(n): v = [v]
    return v

@pytest.mark.parametrize("name", ["number", "list"] + ["deep900"] * 0)
async def test_odd_updates(engine_factory: EngineFactory, client: Client, name: str):
    import json
    from temporalio.api.common.v1 import Payload
    from temporalio.common import RawValue
    engine = engine_factory({})
    execution_id = await create_and_start(engine, [approval("a"), approval("b")])
    await until_open(engine, execution_id, 2)
    good = {"gate_id": "a.1", "answer": "approve"}
    def raw(text): return RawValue(Payload(metadata={"encoding": b"json/plain"}, data=text.encode()))
    args = {"number": [5], "list": [[1]], "text": ["x"], "unknown": [good | {"x": 1}], "types": [{"gate_id": ["a.1"], "answer": 7, "by": {}}],
        "deep200": [raw(json.dumps(good)[:-1] + ', "data": ' + "[" * 200 + "]" * 200 + "}")],
        "deep300": [raw(json.dumps(good)[:-1] + ', "data": ' + "[" * 300 + "]" * 300 + "}")],
        "deep900": [raw(json.dumps(good)[:-1] + ', "data": ' + "[" * 900 + "]" * 900 + "}")],
        "surrogate": [raw('{"gate_id": "a.1", "answer": "approve", "data": "\\ud800"}')],
        "bysurrogate": [raw('{"gate_id": "a.1", "answer": "approve", "by": "\\ud800"}')],
        "infinite": [raw('{"gate_id": "a.1", "answer": "approve", "data": 1e999}')],
        "big": [raw('{"gate_id": "a.1", "answer": "approve", "data": ' + "9" * 4000 + '}')],
        "mb": [good | {"data": noise(1_000_000)}],
        "mb3": [good | {"data": noise(3_800_000)}],
        "two": [good, 2],
    }[name]
    handle = client.get_workflow_handle(execution_id)
    try:
        async with asyncio.timeout(6):
            got = await handle.execute_update("answer_gate", args=args, rpc_timeout=__import__("datetime").timedelta(seconds=6))
            print("RESULT", name, "taken", str(got)[:200])
    except WorkflowUpdateFailedError as error:
        print("RESULT", name, "refused", repr(error.cause)[:300])
    except BaseException as error:
        print("RESULT", name, "OTHER", repr(error)[:300])
    for gate_id in await open_ids(engine, execution_id):
        try:
            async with asyncio.timeout(8):
                await engine.answer_gate(execution_id, gate_id, "approve")
        except BaseException as error:
            print("RESULT", name, "answer of", gate_id, repr(error)[:200])
    try:
        async with asyncio.timeout(8):
            result = await finish(engine, execution_id)
    except TimeoutError:
        for e in (await events_of(client, execution_id))[-14:]:
            print("RESULT", e.event_id, str(e.event_type), str(e)[-500:].replace("\n", " ") if "fail" in str(e).lower() else "")
        d = await handle.describe()
        print("RESULT pending", d.raw_description.pending_activities, d.raw_description.pending_workflow_task)
        raise
    print("RESULT", name, result["status"], str(result["output"])[:150])
    assert result["status"] == "completed"


async def child_gate(engine, child_id):
    async def there() -> bool:
        try: return bool(await open_ids(engine, child_id))
        except EngineError: return False
    await until(there, "child")


async def test_parent_terminated(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-a": {}})
    child = await engine.create_workflow("Child", [approval("g")])
    parent = await engine.create_workflow("Parent", [{"id": "b", "type": "workflow", "workflow_id": child}])
    execution_id = (await engine.execute_workflow(parent))["execution_id"]
    child_id = f"{execution_id}/b.1"
    await child_gate(engine, child_id)
    await client.get_workflow_handle(execution_id).terminate()
    result = await finish(engine, execution_id)
    print("RESULT parent", result["status"], result["error"])
    result = await finish(engine, child_id)
    print("RESULT child", result["status"], result["error"])


@pytest.mark.parametrize("what", ["open", "done"])
async def test_parent_reset(engine_factory: EngineFactory, client: Client, what: str):
    from runs import temporal_cli
    engine = engine_factory({"agent-a": {}})
    child = await engine.create_workflow("Child", [approval("g")])
    parent = await engine.create_workflow("Parent", [{"id": "b", "type": "workflow", "workflow_id": child}, approval("z") | {"depends_on": ["b"]}])
    execution_id = (await engine.execute_workflow(parent))["execution_id"]
    child_id = f"{execution_id}/b.1"
    await child_gate(engine, child_id)
    if what == "done":
        await engine.answer_gate(child_id, "g.1", "approve")
        await until_open(engine, execution_id, 1)
    await temporal_cli(client, "workflow", "reset", "--workflow-id", execution_id, "--event-id", "4", "--reason", "again")
    await asyncio.sleep(2)
    for n in range(20):
        await asyncio.sleep(0.5)
        status = await engine.get_execution_status(execution_id)
        ids = await open_ids(engine, child_id)
        if ids: await engine.answer_gate(child_id, ids[0], "approve"); print("RESULT answered child")
        ids = await open_ids(engine, execution_id)
        if ids and n > 4: await engine.answer_gate(execution_id, ids[0], "approve"); print("RESULT answered parent")
        if status["status"] in ("completed", "failed", "cancelled"): break
    result = await finish(engine, execution_id)
    print("RESULT parent", what, result["status"], result["error"], {k: v["status"] for k, v in result["steps"].items()})


async def test_reset_gates_answered_later(engine_factory: EngineFactory, client: Client, stores: Stores):
    from runs import temporal_cli
    calls = []
    engine = engine_factory({"agent-a": lambda g: calls.append(1) or {}})
    execution_id = await create_and_start(engine, [approval("a"), {"id": "c", "agent_id": "agent-a", "depends_on": ["a"]}, approval("b") | {"depends_on": ["c"]}])
    await until_open(engine, execution_id, 1)
    await engine.answer_gate(execution_id, "a.1", "approve", by="ann")
    async def b() -> bool: return await open_ids(engine, execution_id) == ["b.1"]
    await until(b, "b")
    await temporal_cli(client, "workflow", "reset", "--workflow-id", execution_id, "--event-id", "4", "--reason", "again")
    await asyncio.sleep(2)
    for n in range(12):
        await asyncio.sleep(0.5)
        ids = await open_ids(engine, execution_id)
        status = await engine.get_execution_status(execution_id)
        print("RESULT", ids, status["status"], {k: v["status"] for k, v in status["steps"].items()}, (await engine.get_gate(execution_id, "a.1"))["status"])
        if status["status"] not in ("running", "waiting", "pending", "paused"): break
        if ids:
            got = await engine.answer_gate(execution_id, ids[0], "approve", by="bob")
            print("RESULT", got)
    result = await ended(engine, stores, client, execution_id)
    print("RESULT", result["status"], result["output"], len(calls))


@pytest.mark.parametrize("where", ["gate", "paused", "wait", "child", "compensation", "finally", "budget", "ask"])
async def test_cancel_twice(engine_factory: EngineFactory, stores: Stores, client: Client, where: str):
    slow = Gate({})
    def fails(_): raise ValueError("no")
    engine = engine_factory({"agent-a": {}, "agent-slow": slow, "agent-f": fails})
    fields = {}
    done = {"id": "d", "agent_id": "agent-a", "compensate": {"agent_id": "agent-slow" if where == "compensation" else "agent-a"}}
    nr = {"retry_policy": {"max_retries": 0}}
    match where:
        case "gate" | "paused": step = approval("x")
        case "wait": step = {"id": "x", "type": "wait", "wait": {"seconds": 60}}
        case "child":
            child = await engine.create_workflow("Child", [approval("g")])
            step = {"id": "x", "type": "workflow", "workflow_id": child}
        case "compensation" | "finally": step = {"id": "x", "agent_id": "agent-f"} | nr
        case "ask": step = {"id": "x", "agent_id": "agent-f", "on_error": "ask"} | nr
        case "budget":
            step = {"id": "x", "agent_id": "agent-a"}
            fields["budget"] = {"agent_calls": 1, "on_breach": "ask"}
    fields["finally_"] = [{"id": "fin", "agent_id": "agent-slow" if where == "finally" else "agent-a"}]
    execution_id = await create_and_start(engine, [done, step | {"depends_on": ["d"]}], **fields)
    if where in ("gate", "paused", "ask", "budget"): await until_open(engine, execution_id, 1)
    if where == "paused": await engine.pause_execution(execution_id)
    if where == "child": await child_gate(engine, f"{execution_id}/x.1")
    if where == "wait":
        async def w() -> bool: return (await engine.get_execution_status(execution_id))["steps"]["x"]["status"] == "waiting"
        await until(w, "wait")
    if where in ("compensation", "finally"): await until(lambda: slow.attempts, "slow")
    handle = client.get_workflow_handle(execution_id)
    got = await asyncio.gather(engine.cancel_execution(execution_id, "one"), handle.signal("cancel", "two"), handle.cancel(), return_exceptions=True)
    await asyncio.sleep(0.5)
    slow.is_open = True
    result = await ended(engine, stores, client, execution_id)
    print("RESULT", where, got, result["status"], {k: v["status"] for k, v in result["steps"].items()}, result["warnings"], slow.cancelled)
    if where in ("compensation", "finally"):
        assert (result["status"], slow.cancelled) == ("failed", 0)
    else: assert result["status"] == "cancelled"
    assert result["steps"]["fin"]["status"] == "completed"
    assert result["steps"]["d:compensate"]["status"] == "completed"
    assert await open_ids(engine, execution_id) == []


@pytest.mark.parametrize("where", ["gate", "paused", "ask", "budget", "child"])
async def test_deadline(engine_factory: EngineFactory, stores: Stores, client: Client, where: str):
    def fails(_): raise ValueError("no")
    engine = engine_factory({"agent-a": {}, "agent-f": fails})
    fields = {}
    nr = {"retry_policy": {"max_retries": 0}}
    match where:
        case "gate" | "paused": step = approval("x")
        case "child":
            child = await engine.create_workflow("Child", [approval("g")])
            step = {"id": "x", "type": "workflow", "workflow_id": child}
        case "ask": step = {"id": "x", "agent_id": "agent-f", "on_error": "ask"} | nr
        case "budget":
            step = {"id": "x", "agent_id": "agent-a"}
            fields["budget"] = {"agent_calls": 1, "on_breach": "ask"}
    execution_id = await create_and_start(engine, [{"id": "d", "agent_id": "agent-a", "compensate": {"agent_id": "agent-a"}}, step | {"depends_on": ["d"]}], options={"timeout": 2.5}, **fields)
    if where == "paused":
        await until_open(engine, execution_id, 1)
        await engine.pause_execution(execution_id)
        await engine.answer_gate(execution_id, "x.1", "approve")
    result = await ended(engine, stores, client, execution_id)
    print("RESULT", where, result["status"], result["error"]["code"], {k: v["status"] for k, v in result["steps"].items()})
    assert result["error"]["code"] == "execution_timeout"
    if where == "child":
        c = await finish(engine, f"{execution_id}/x.1")
        print("RESULT child", c["status"])


async def test_three_deep_and_fifty(engine_factory: EngineFactory, stores: Stores, client: Client):
    engine = engine_factory({"agent-a": echo})
    await engine.register_agent("agent-a", config={"function": "scripts:answer"}, agent_id="agent-a")
    w = await engine.create_workflow("L0", [{"id": "s", "agent_id": "agent-a", "input_mapping": {"n": "${input.n}"}}])
    for level in range(1, 4):
        w = await engine.create_workflow(f"L{level}", [{"id": "s", "type": "workflow", "workflow_id": w, "input_mapping": {"n": "${input.n}"}}])
    top = await engine.create_workflow("Top", [{"id": "f", "type": "workflow", "workflow_id": w, "foreach": {"items": "${input.list}"}, "input_mapping": {"n": "${item}"}}])
    import time
    t = time.monotonic()
    execution_id = (await engine.execute_workflow(top, {"list": list(range(50))}))["execution_id"]
    result = await engine.get_execution_result(execution_id, wait=60)
    print("RESULT", result["status"], result["error"], time.monotonic() - t)
    assert result["output"] == [{"n": n} for n in range(50)]
