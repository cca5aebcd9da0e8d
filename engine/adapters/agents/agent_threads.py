"""Where users' code runs: never on the worker's event loop, and never able to hold the process.

Sync functions get a thread a call, async ones share an event loop in a thread of its own. A thread can't be stopped
from outside, so a cancelled call is *abandoned*: it no longer counts against the bound, up to a limit. All threads
are daemons, which the standard pool's are not, because a function that never returns must not keep a worker from
leaving. A loop that a function blocks is left to it, and the next calls get another.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from engine.domain.agent_call import AgentFailure, FailureReason

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["AgentLoops", "AgentThreads"]

T = TypeVar("T")

_MAX_LOOPS: Final = 8
_logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Work(Generic[T]):
    run: Callable[[], T]
    future: Future[T] = field(default_factory=Future)
    abandoned: bool = False
    ended: bool = False


class AgentThreads:
    """A bounded number of daemon threads, each started for a call and gone when nothing waits.

    Args:
        max_threads: most calls that run at once; others wait. As many more may be abandoned and still running.
    """

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._lock = threading.Lock()
        self._waiting: deque[_Work[object]] = deque()
        self._threads: set[threading.Thread] = set()
        self._numbers = itertools.count(1)
        self._active = 0
        self._abandoned = 0
        self._closed = False

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a thread; cancelling returns at once and leaves the thread to end by itself.

        Raises:
            AgentFailure: unavailable, when too many abandoned calls still run or this is closed.
        """
        work = _Work(function)
        self._start(work)  # pyright: ignore[reportArgumentType] # a queue of works of any result
        try:
            return await asyncio.wrap_future(work.future)
        except asyncio.CancelledError:
            self._abandon(work)  # pyright: ignore[reportArgumentType] # the same
            raise

    def close(self) -> list[threading.Thread]:
        """Take no more calls, fail those that wait, and return the threads that still run."""
        with self._lock:
            self._closed = True
            self._fail_waiting(_stopping())
            return list(self._threads)

    def _start(self, work: _Work[object]) -> None:
        with self._lock:
            if self._closed:
                raise _stopping()
            if self._abandoned >= self._max_threads:
                raise self._exhausted()
            if self._active >= self._max_threads:
                self._waiting.append(work)
            else:
                self._spawn(work)

    def _spawn(self, work: _Work[object]) -> None:
        thread = threading.Thread(
            target=self._serve, args=(work,), name=f"baton-agent-{next(self._numbers)}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise AgentFailure(FailureReason.UNAVAILABLE, f"No thread can be started for the agent: {error}") from error
        self._threads.add(thread)
        self._active += 1

    def _serve(self, work: _Work[object] | None) -> None:
        while work is not None:
            if work.future.set_running_or_notify_cancel():
                try:
                    result = work.run()
                except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the future
                    work.future.set_exception(error)
                else:
                    work.future.set_result(result)
                    del result
            work = self._next(work)

    def _next(self, ended: _Work[object]) -> _Work[object] | None:
        with self._lock:
            ended.ended = True
            if ended.abandoned:
                self._abandoned -= 1
            else:
                self._active -= 1
            if self._waiting and self._active < self._max_threads:
                self._active += 1
                return self._waiting.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _abandon(self, work: _Work[object]) -> None:
        with self._lock:
            if work in self._waiting:
                self._waiting.remove(work)
                return
            if work.ended:
                return
            work.abandoned = True
            self._active -= 1
            self._abandoned += 1
            if self._abandoned >= self._max_threads:
                self._fail_waiting(self._exhausted())
            elif self._waiting:
                freed = self._waiting.popleft()
                try:
                    self._spawn(freed)
                except AgentFailure as failure:
                    freed.future.set_exception(failure)

    def _fail_waiting(self, failure: AgentFailure) -> None:
        while self._waiting:
            work = self._waiting.popleft()
            if work.future.set_running_or_notify_cancel():
                work.future.set_exception(failure)

    def _exhausted(self) -> AgentFailure:
        return AgentFailure(
            FailureReason.UNAVAILABLE,
            f"{self._abandoned} cancelled calls of sync agents still hold their threads; let these functions look at"
            " `call.cancelled` or bound their waits, or restart the worker",
            details={"abandoned_threads": self._abandoned},
        )


class AgentLoops:
    """An event loop for users' async functions, and another when one of these blocks it.

    Args:
        unanswered_after: how long a loop may leave a knock unanswered before it counts as blocked.
    """

    def __init__(self, unanswered_after: timedelta = timedelta(seconds=5)) -> None:
        self._unanswered_after = unanswered_after
        self._lock = threading.Lock()
        self._loops: list[_LoopThread] = []
        self._closed = False

    async def run(self, start: Callable[[], Coroutine[object, object, T]]) -> T:
        """Run the coroutine that ``start`` makes; cancelling asks it to end and returns at once.

        Raises:
            AgentFailure: unavailable, when all the loops are blocked or this is closed.
        """
        return await asyncio.wrap_future(self._free_loop().submit(start()))

    def close(self, timeout: timedelta) -> list[threading.Thread]:
        """Cancel what runs, and return the threads; each ends within ``timeout`` unless a function blocks it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for loop in self._loops:
                    loop.stop(timeout)
            return [loop.thread for loop in self._loops]

    def _free_loop(self) -> _LoopThread:
        with self._lock:
            if self._closed:
                raise _stopping()
            for loop in self._loops:
                if loop.answers_within(self._unanswered_after):
                    return loop
            if len(self._loops) >= _MAX_LOOPS:
                raise AgentFailure(
                    FailureReason.UNAVAILABLE,
                    f"Async agents block all {_MAX_LOOPS} event loops; make the blocking functions sync (`def`), which"
                    " gives each a thread, or restart the worker",
                )
            self._loops.append(_LoopThread(f"baton-agent-loop-{len(self._loops) + 1}"))
            return self._loops[-1]


class _LoopThread:
    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = False
        self._knocked_at: float | None = None
        self._winding_down: asyncio.Task[None] | None = None
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def submit(self, coroutine: Coroutine[object, object, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def answers_within(self, wait: timedelta) -> bool:
        """Whether the last knock was answered or is recent; knocks again."""
        knocked_at = self._knocked_at
        if knocked_at is None:
            self._knocked_at = time.monotonic()
            self._loop.call_soon_threadsafe(self._answer)
            return True
        return time.monotonic() - knocked_at <= wait.total_seconds()

    def _answer(self) -> None:
        self._knocked_at = None

    def stop(self, timeout: timedelta) -> None:
        self._loop.call_soon_threadsafe(self._begin_to_stop, timeout)

    def _begin_to_stop(self, timeout: timedelta) -> None:
        self._winding_down = self._loop.create_task(self._wind_down(timeout))

    async def _wind_down(self, patience: timedelta) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=patience.total_seconds())
        self._stopped = True
        self._loop.stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._stopped:
            try:
                self._loop.run_forever()
            except BaseException:
                # The loop passes on a SystemExit of a task that a user's function left behind.
                _logger.warning("a task started by an agent's function tried to end the process", exc_info=True)
        self._loop.close()


def _stopping() -> AgentFailure:
    return AgentFailure(FailureReason.UNAVAILABLE, "The worker is stopping and calls no more agents; retry elsewhere")
