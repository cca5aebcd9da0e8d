"""The agent of tests that need an execution to stay open."""

from __future__ import annotations

import asyncio


class Slow:
    """An agent that waits until it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.free = False

    async def __call__(self, given: object) -> dict[str, int]:
        self.calls += 1
        call = self.calls
        while not self.free:
            await asyncio.sleep(0.02)
        return {"call": call}
