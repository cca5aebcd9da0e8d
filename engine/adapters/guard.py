"""What stands before every server: a deadline for each call, one kind of error, and a circuit that opens.

A dead server must cost its callers neither a minute nor itself a storm of connections. A call has one deadline, tries
and waiting for a connection included. After some outages in a row the circuit is open: calls fail at once, but for one
at a time, at most twice a second, that finds out whether the server is back. So its return is noticed by the first
call half a second later. An outage counts only when no call that was made later has been answered: what began before
the last answer says nothing about the server of now.

Calls wait for their turn here and not in the driver's pool, first come, first served: those that wait when the circuit
opens fail with it, instead of trying to connect one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from engine.adapters.failures import FailureTable
    from engine.errors import StoreError

__all__ = ["StoreGuard"]

FAILURES_TO_OPEN: Final = 5
PROBE_SECONDS: Final = 0.5

T = TypeVar("T")


class StoreGuard:
    """Runs the calls to one server; one for all stores on it.

    Args:
        failures: what the driver's exceptions mean.
        deadline: how long a call may take in all.
        slots: most calls at the same time, as many as the driver has connections; None: any number.
    """

    def __init__(self, failures: FailureTable, deadline: timedelta, slots: int | None = None) -> None:
        self._failures = failures
        self._deadline = deadline
        self._outages = 0
        self._answered_at = float("-inf")
        self._probed_at = float("-inf")
        self._is_probing = False
        self._free = slots
        self._waiting: deque[asyncio.Future[bool]] = deque()

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
        limit = self._deadline if deadline is None else deadline
        if not self.is_open:
            return await self._bounded(call, limit)
        if self._is_probing or time.monotonic() - self._probed_at < PROBE_SECONDS:
            raise self._refusal()
        self._is_probing = True
        self._probed_at = time.monotonic()
        try:
            return await self._bounded(call, limit)
        finally:
            self._is_probing = False

    async def _bounded(self, call: Callable[[], Awaitable[T]], limit: timedelta) -> T:
        began_at = time.monotonic()
        timeout = asyncio.timeout(limit.total_seconds())
        has_slot = False
        try:
            async with timeout:
                await self._take_slot()
                has_slot = True
                try:
                    answer = await call()
                finally:
                    self._leave_slot()
        except Exception as error:
            if isinstance(error, TimeoutError) and timeout.expired():
                self._count_outage(began_at)
                says = "did not answer" if has_slot else "had no connection free"
                raise self._failures.failure(f"{says} within {limit.total_seconds():g} s", "timeout") from error
            failure = self._failures.explain(error)
            if failure is None:
                raise
            if self._failures.is_outage(error):
                self._count_outage(began_at)
            else:
                self._take_answer()
            raise failure from error
        self._take_answer()
        return answer

    async def _take_slot(self) -> None:
        if self._free is None:
            return
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            is_given = await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.done() and turn.result():
                self._leave_slot()
            raise
        if not is_given:
            raise self._refusal()

    def _leave_slot(self) -> None:
        if self._free is None:
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1

    def _refusal(self) -> StoreError:
        return self._failures.failure("has not answered of late and is given a moment; try again", "circuit_open")

    def _take_answer(self) -> None:
        self._outages = 0
        self._answered_at = time.monotonic()

    def _count_outage(self, began_at: float) -> None:
        if began_at < self._answered_at:
            return
        self._outages += 1
        if self.is_open:
            for turn in self._waiting:
                if not turn.done():
                    turn.set_result(False)
            self._waiting.clear()
