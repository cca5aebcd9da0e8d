"""What stands before every server: a deadline for each call, one kind of error, and a circuit that opens.

A dead server must cost its callers neither a minute nor itself a storm of connections. A call has one deadline, tries
and waiting for a connection included. After some outages in a row the circuit is open: calls fail at once, but for one
at a time, at most twice a second, that finds out whether the server is back. So its return is noticed by the first
call half a second later.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from engine.adapters.failures import FailureTable

__all__ = ["StoreGuard"]

FAILURES_TO_OPEN: Final = 5
PROBE_SECONDS: Final = 0.5

T = TypeVar("T")


class StoreGuard:
    """Runs the calls to one server; one for all stores on it.

    Args:
        failures: what the driver's exceptions mean.
        deadline: how long a call may take in all.
    """

    def __init__(self, failures: FailureTable, deadline: timedelta) -> None:
        self._failures = failures
        self._deadline = deadline
        self._outages = 0
        self._probed_at = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once, because the server was away for the last ones."""
        return self._outages >= FAILURES_TO_OPEN

    async def run(self, call: Callable[[], Awaitable[T]], deadline: timedelta | None = None) -> T:
        """Return what ``call`` returns; it is not repeated here.

        Args:
            call: talks to the driver.
            deadline: another one than usual, for a call that waits on purpose.

        Raises:
            StoreError: the driver's failure in our words, no answer in time, or the circuit is open.
        """
        if self.is_open:
            if time.monotonic() - self._probed_at < PROBE_SECONDS:
                raise self._failures.failure(
                    "has not answered of late and is given a moment; try again", "circuit_open"
                )
            self._probed_at = time.monotonic()
        seconds = (deadline or self._deadline).total_seconds()
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                answer = await call()
        except Exception as error:
            if isinstance(error, TimeoutError) and timeout.expired():
                self._outages += 1
                raise self._failures.failure(f"did not answer within {seconds:g} s", "timeout") from error
            failure = self._failures.explain(error)
            if failure is None:
                raise
            self._outages = self._outages + 1 if self._failures.is_outage(error) else 0
            raise failure from error
        self._outages = 0
        return answer
