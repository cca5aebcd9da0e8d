"""A deadline that a busy event loop does not use up.

Some tenths of a second are soon gone while a process starts forty executions at once, and its server is not to blame.
So time counts in short ticks, and a tick that comes late, because the loop had other things to do, does not count.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

__all__ = ["responsive_timeout"]

TICK_SECONDS: Final = 0.02


@asynccontextmanager
async def responsive_timeout(limit: timedelta) -> AsyncGenerator[None]:
    """Run what is inside for at most ``limit`` of time in which the loop was responsive.

    Raises:
        TimeoutError: that time is over.
    """
    loop = asyncio.get_running_loop()
    left = limit.total_seconds()

    def wait() -> asyncio.TimerHandle:
        return loop.call_at(loop.time() + TICK_SECONDS, tick, loop.time())

    def tick(began_at: float) -> None:
        nonlocal left, timer
        if loop.time() - began_at < 2 * TICK_SECONDS:
            left -= loop.time() - began_at
        if left < TICK_SECONDS / 2:
            timeout.reschedule(loop.time())
        else:
            timer = wait()

    async with asyncio.timeout(None) as timeout:
        timer = wait()
        try:
            yield
        finally:
            timer.cancel()
