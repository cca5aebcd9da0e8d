"""A budget in dollars is taken only where every model has a price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import EngineFactory

PRICES = """
["house-model"]
input = 1.0
output = 2.0
"""


@pytest.mark.parametrize("where", ["definition", "options"])
async def test_a_model_without_a_price_refuses_a_budget_in_dollars(engine_factory: EngineFactory, where: str):
    async with engine_factory({"agent-a": {}}) as engine:
        await engine.register_agent("A", config={"model": "no-such-model"}, agent_id="agent-a")
        budget = {"usd": 1.5}
        fields: dict[str, Any] = {"budget": budget} if where == "definition" else {}
        workflow_id = await engine.create_workflow("Flow", [{"id": "a", "agent_id": "agent-a"}], **fields)
        options = {"budget": budget} if where == "options" else None
        with pytest.raises(InvalidInputError) as refused:
            await engine.execute_workflow(workflow_id, {}, options)
        assert refused.value.details == {"path": "budget.usd", "models": ["no-such-model"]}
        assert (await engine.list_executions())["items"] == []


async def test_a_price_of_the_operators_own_is_enough(engine_factory: EngineFactory, tmp_path: Path):
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    async with engine_factory({"agent-a": {"text": "done"}}, prices_file=str(prices)) as engine:
        await engine.register_agent("A", config={"model": "house-model"}, agent_id="agent-a")
        workflow_id = await engine.create_workflow("Flow", [{"id": "a", "agent_id": "agent-a"}], budget={"usd": 1})
        execution = await engine.execute_workflow(workflow_id)
        result = await engine.get_execution_result(execution["execution_id"], wait=30)
        assert result["status"] == "completed"
