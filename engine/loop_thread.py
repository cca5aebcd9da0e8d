"""An engine's own event loop, in a thread of its own.

An engine is used from loops that it does not own: one that ends without a word (``asyncio.run`` cancels every task at
once, and a Temporal worker's pollers do not survive that), one that blocks in user code, one after another. So client,
stores and embedded worker live on a loop here, and calls come over from wherever they are made. A watch task on each
caller's loop notices when the loop ends, and the last one closes the engine.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from engine.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["LoopThread"]

T = TypeVar("T")


class Closing(Protocol):
    """What lives on the loop."""

    async def aclose(self) -> None:
        """Let everything go."""
        ...


S = TypeVar("S", bound=Closing)


class LoopThread(Generic[S]):
    """Runs coroutines on its own loop for callers on others.

    Args:
        make: makes what lives on the loop, there; what it raises, the constructor raises.
    """

    def __init__(self, make: Callable[[], S]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="baton-engine", daemon=True)
        self._watchers: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[object]] = set()
        self._closing: Future[None] | None = None
        self._thread.start()
        try:
            self.content: S = asyncio.run_coroutine_threadsafe(_made(make), self._loop).result()
        except BaseException:
            self._end()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it takes calls."""
        return self._closing is None

    async def run(self, coroutine: Coroutine[object, object, T]) -> T:
        """Run a coroutine there and return its result here; a cancelled call returns once the coroutine has ended.

        Raises:
            RuntimeUnavailableError: it was closed meanwhile.
        """
        self._watch_this_loop()
        ended: Future[asyncio.Task[T]] = Future()
        begun: list[asyncio.Task[T]] = []

        def begin() -> None:
            if self._closing is not None:
                coroutine.close()
                ended.set_exception(_closed())
                return
            begun.append(self._loop.create_task(coroutine))
            self._calls.add(begun[0])
            begun[0].add_done_callback(self._calls.discard)
            begun[0].add_done_callback(ended.set_result)

        def cancel() -> None:
            begun[0].cancel()

        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError as error:
            coroutine.close()
            raise _closed() from error
        waiting = asyncio.wrap_future(ended)
        try:
            task = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            # The loop is not closed before every call has ended.
            if not ended.done():
                self._loop.call_soon_threadsafe(cancel)
            task = await waiting
            if not task.cancelled():
                task.exception()
            raise
        if task.cancelled():
            raise _closed()
        return task.result()

    async def aclose(self) -> None:
        """End the calls under way, close the content and end the thread. Idempotent."""
        watcher = self._watchers.pop(asyncio.get_running_loop(), None)
        if watcher is not None and watcher is not asyncio.current_task():
            watcher.cancel()
        if self._closing is None:
            self._closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            await asyncio.wrap_future(self._closing)
        finally:
            self._end()

    async def _close(self) -> None:
        if calls := tuple(self._calls):
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        await self.content.aclose()

    def _watch_this_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if loop not in self._watchers:
            self._watchers = {known: task for known, task in self._watchers.items() if not known.is_closed()}
            self._watchers[loop] = loop.create_task(self._until_the_loop_ends(), name="baton engine's watch")

    async def _until_the_loop_ends(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            if self._watchers.pop(loop, None) is not None and not self._watchers and self._closing is None:
                await self.aclose()
            raise

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _end(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _closed() -> RuntimeUnavailableError:
    return RuntimeUnavailableError("The engine was closed during this call; call again, which opens it anew")


async def _made(make: Callable[[], S]) -> S:
    return make()
