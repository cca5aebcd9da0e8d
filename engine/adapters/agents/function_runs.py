"""Runs of users' functions, of agents and of tools alike: off the worker's loop, observed, and ended together.

What is run returns its outcome as a value, a failure too: an event loop and a future take some exceptions of a user's
code (SystemExit, CancelledError) for their own, and complain of others when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from engine.adapters.agents.agent_threads import AgentLoops, AgentThreads
from engine.adapters.agents.observed_call import ObservedCall

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Coroutine, Generator

    from engine.domain.agent_call import AgentCall

__all__ = ["FunctionRuns"]

T = TypeVar("T")

_CLOSE_TIMEOUT: Final = timedelta(seconds=5)


class FunctionRuns:
    """Threads and event loops for users' functions, with what runs there.

    Args:
        max_threads: most sync functions that run at once; others wait.
    """

    def __init__(self, max_threads: int) -> None:
        self._threads = AgentThreads(max_threads)
        self._loops = AgentLoops()
        self._calls: set[ObservedCall] = set()

    async def load(self, function: Callable[[], T]) -> T:
        """Run what imports a user's module in a thread; raises what it raises."""
        return await self._threads.run(function)

    async def run(self, call: AgentCall, answer: Callable[[AgentCall], T]) -> T:
        """Return what ``answer`` makes of the call, in a thread and in the caller's context.

        Cancelling returns at once; the function sees ``call.cancelled``.

        Raises:
            AgentFailure: unavailable, when there is no thread for it.
        """
        context = contextvars.copy_context()
        with self._observed(call) as observed:
            return await self._threads.run(lambda: context.run(answer, observed))

    async def run_async(self, call: AgentCall, answer: Callable[[AgentCall], Coroutine[object, object, T]]) -> T:
        """As ``run`` on an event loop apart; cancelling also cancels the function where it awaits."""
        with self._observed(call) as observed:
            return await self._loops.run(partial(answer, observed))

    async def aclose(self) -> None:
        """Take no more calls and ask those that run to end; after 5 s what is stuck in a user's code is left behind."""
        give_up_at = time.monotonic() + _CLOSE_TIMEOUT.total_seconds()
        for call in tuple(self._calls):
            call.cancel()
        threads = self._threads.close() + self._loops.close(_CLOSE_TIMEOUT * 0.9)
        if threads:
            await asyncio.to_thread(_join, threads, give_up_at)

    @contextmanager
    def _observed(self, call: AgentCall) -> Generator[ObservedCall]:
        observed = ObservedCall(call)
        self._calls.add(observed)
        try:
            yield observed
        except asyncio.CancelledError:
            observed.cancel()
            raise
        finally:
            self._calls.discard(observed)


def _join(threads: list[threading.Thread], give_up_at: float) -> None:
    for thread in threads:
        thread.join(max(0.0, give_up_at - time.monotonic()))
