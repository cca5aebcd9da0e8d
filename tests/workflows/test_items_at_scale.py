"""Steps over many items, over lists inside large values, and with large items: right, whole, once each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from runs import Server, own_server, runs_of, start

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runs import EngineFactory


@pytest.fixture(scope="module")
async def short_runs() -> AsyncGenerator[Server]:
    """A server that suggests continuing as new after 1,000 events."""
    async with own_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=1000") as server:
        yield server


@pytest.fixture(scope="module")
async def strict() -> AsyncGenerator[Server]:
    """A server that ends a run after 900 events, and suggests continuing as new after 200."""
    # Temporal ends a run at the error limit.
    flags = [
        "limit.historyCount.suggestContinueAsNew=200",
        "limit.historyCount.error=900",
        "limit.historyCount.warn=800",
    ]
    async with own_server(*(part for flag in flags for part in ("--dynamic-config-value", flag))) as server:
        yield server


def over(items: object, **fields: Any) -> dict[str, Any]:
    return {"id": "each", "agent_id": "agent-a", "foreach": {"items": items, "max_concurrency": 50}, **fields}


async def test_a_list_inside_a_large_output(engine_factory: EngineFactory):
    calls: Counter[int] = Counter()

    def work(given: Any) -> object:
        calls[given["n"]] += 1
        return {"n": given["n"], "size": len(given["text"])}

    whole = {"list": [{"n": n, "text": f"{n:06d}" * 2900} for n in range(300)], "other": 1}
    engine = engine_factory({"agent-a": work, "agent-make": whole})
    steps = [
        {"id": "make", "agent_id": "agent-make"},
        over("${steps.make.output.list}", input_mapping={"n": "${item.n}", "text": "${item.text}"}),
    ]
    execution_id = await start(engine, steps)
    result = await engine.get_execution_result(execution_id, wait=60)
    assert result["output"] == [{"n": n, "size": 17400} for n in range(300)]
    assert calls == dict.fromkeys(range(300), 1)


async def test_a_list_inside_a_large_input(engine_factory: EngineFactory):
    calls: Counter[int] = Counter()

    def work(given: Any) -> object:
        calls[given["n"]] += 1
        return {"n": given["n"], "size": len(given["text"])}

    whole = {"list": [{"n": n, "text": f"{n:06d}" * 2900} for n in range(300)], "other": 1}
    engine = engine_factory({"agent-a": work})
    execution_id = await start(
        engine, [over("${input.list}", input_mapping={"n": "${item.n}", "text": "${item.text}"})], whole
    )
    result = await engine.get_execution_result(execution_id, wait=60)
    assert result["output"] == [{"n": n, "size": 17400} for n in range(300)]
    assert calls == dict.fromkeys(range(300), 1)


async def test_large_items_give_large_outputs(engine_factory: EngineFactory):
    def work(given: Any) -> object:
        return {"n": given["n"], "text": given["text"][::-1]}

    whole = {"list": [{"n": n, "text": f"{n:05d}" * 20_000} for n in range(100)]}
    engine = engine_factory(
        {"agent-a": work, "agent-b": lambda given: {"last": given["last"]["text"][:10], "n": given["n"]}}
    )
    steps = [
        over("${input.list}", input_mapping={"n": "${item.n}", "text": "${item.text}"}),
        {
            "id": "end",
            "agent_id": "agent-b",
            "input_mapping": {"last": "${steps.each.output[99]}", "n": "${steps.each.output[7].n}"},
        },
    ]
    execution_id = await start(engine, steps, whole)
    result = await engine.get_execution_result(execution_id, wait=60)
    assert result["output"] == {"last": "9900099000", "n": 7}


async def test_a_clean_up_over_many_items_goes_on_over_runs(engine_factory: EngineFactory, strict: Server):
    engine = engine_factory({"agent-a": lambda given: given}, temporal_address=strict.address)
    steps = [{"id": "a", "agent_id": "agent-a"}]
    final = [over("${input.list}", input_mapping={"n": "${item}"})]
    execution_id = await start(engine, steps, {"list": list(range(400))}, **{"finally": final})
    result = await engine.get_execution_result(execution_id, wait=30)
    assert (result["status"], len(result["steps"]["each"]["output"])) == ("completed", 400)
    assert len(await runs_of(strict.client, execution_id)) > 1


async def test_many_compensations_go_on_over_runs(engine_factory: EngineFactory, strict: Server):
    undone: list[int] = []

    def work(given: Any) -> object:
        if "fail" in given:
            raise ValueError("no")
        if "undo" in given:
            undone.append(given["undo"])
        return {}

    engine = engine_factory({"agent-a": work}, temporal_address=strict.address)
    steps = [
        {
            "id": f"s{n}",
            "agent_id": "agent-a",
            "input_mapping": {},
            "compensate": {"agent_id": "agent-a", "input_mapping": {"undo": n}},
        }
        for n in range(200)
    ]
    steps.append(
        {
            "id": "end",
            "agent_id": "agent-a",
            "input_mapping": {"fail": 1},
            "depends_on": [f"s{n}" for n in range(200)],
            "retry_policy": {"max_retries": 0},
        }
    )
    execution_id = await start(engine, steps)
    result = await engine.get_execution_result(execution_id, wait=45)
    assert result["status"] == "failed"
    assert sorted(undone) == list(range(200))


async def test_thousands_of_items_over_many_runs(engine_factory: EngineFactory, short_runs: Server):
    calls: Counter[int] = Counter()

    def work(given: Any) -> object:
        calls[given["n"]] += 1
        return {"n": given["n"]}

    engine = engine_factory({"agent-a": work}, temporal_address=short_runs.address)
    steps = [over("${input.list}", input_mapping={"n": "${item}"})]
    execution_id = await start(engine, steps, {"list": list(range(2_500))})
    result = await engine.get_execution_result(execution_id, wait=60)
    assert result["output"] == [{"n": n} for n in range(2_500)]
    assert calls == dict.fromkeys(range(2_500), 1)
    assert len(await runs_of(short_runs.client, execution_id)) > 1
