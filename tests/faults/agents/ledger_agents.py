"""Agents that write down every call, in a file that outlives the worker they run in."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine import AgentCall

FOLDER = Path(os.environ["LEDGER_FOLDER"])


async def work(given: dict[str, object], call: AgentCall) -> dict[str, object]:
    """Write the call down, wait while a file ``hold-<step>`` is there, write down its end."""
    note(call, "began")
    hold = FOLDER / f"hold-{call.step_id}"
    while hold.exists():
        await asyncio.sleep(0.02)
    await asyncio.sleep(float(given.get("seconds", 0)))  # pyright: ignore[reportArgumentType] # a number, by the tests
    note(call, "ended")
    return {"step": call.step_id}


def note(call: AgentCall, what: str) -> None:
    line = {
        "what": what,
        "execution": call.execution_id,
        "step": call.step_id,
        "attempt": call.attempt,
        "key": call.idempotency_key,
        "pid": os.getpid(),
    }
    descriptor = os.open(FOLDER / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)
