"""The guide's table of failure reasons, row by row on the real server."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runs import FAST_RETRIES, finish, start

from engine.domain.agent_call import AgentFailure, FailureReason

if TYPE_CHECKING:
    from runs import EngineFactory

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
TABLE = GUIDE.read_text(encoding="utf-8").partition("## Failure reasons")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no)[^|]* \|$", TABLE, re.MULTILINE))


def test_each_reason_has_its_row():
    assert list(ROWS) and set(ROWS) == {reason.value for reason in FailureReason}


@pytest.mark.parametrize("reason", list(ROWS))
async def test_a_reason_is_retried_or_falls_back_at_once_as_its_row_says(engine_factory: EngineFactory, reason: str):
    failure = AgentFailure(FailureReason(reason), f"It was {reason}", details={"why": "a test"})
    engine = engine_factory({"agent-a": [failure, {"by": "agent-a"}], "agent-b": {"by": "agent-b"}})
    step = {"id": "a", "agent_id": "agent-a", "retry_policy": FAST_RETRIES, "fallback": {"agent_id": "agent-b"}}
    result = await finish(engine, await start(engine, [step]))
    assert result["status"] == "completed"
    assert result["output"] == {"by": "agent-a" if ROWS[reason] == "yes" else "agent-b"}
    assert result["steps"]["a"]["attempts"] == 2


@pytest.mark.parametrize("reason", list(ROWS))
async def test_without_a_fallback_the_execution_fails_with_the_reason(engine_factory: EngineFactory, reason: str):
    failure = AgentFailure(FailureReason(reason), f"It was {reason}", details={"why": "a test"})
    engine = engine_factory({"agent-a": failure})
    result = await finish(
        engine, await start(engine, [{"id": "a", "agent_id": "agent-a", "retry_policy": FAST_RETRIES}])
    )
    assert (result["status"], result["steps"]["a"]["reason"]) == ("failed", reason)
    assert result["steps"]["a"]["attempts"] == (4 if ROWS[reason] == "yes" else 1)
    error = result["error"]
    assert error is not None
    assert (error["code"], error["details"]["reason"], error["details"]["why"]) == ("agent_error", reason, "a test")


async def test_a_providers_wait_replaces_the_policys(engine_factory: EngineFactory):
    failure = AgentFailure(FailureReason.RATE_LIMITED, "Later", retry_after=timedelta(seconds=0.2))
    engine = engine_factory({"agent-a": [failure, {"by": "agent-a"}]})
    slow = {"max_retries": 1, "initial_interval": 3600, "max_interval": 3600}
    result = await finish(engine, await start(engine, [{"id": "a", "agent_id": "agent-a", "retry_policy": slow}]))
    assert (result["status"], result["steps"]["a"]["attempts"]) == ("completed", 2)
