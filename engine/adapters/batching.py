"""Writes that come together go together: what is asked for while a write is under way becomes the next one.

The first item of an idle store is written at once, with what was asked for in the same turn of the loop. While a
write is under way the others wait for it, but 2 ms at the most and only until a batch is full: then another write goes
out beside it. So an idle store costs nobody a wait, and a busy one is written to in few large pieces.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["BatchFailure", "Batches"]

MAX_WAIT_SECONDS: Final = 0.002
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""A batch that is larger would keep small writes waiting, and might not pass in time."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """The answer of an item that failed while others of its batch did not."""

    error: Exception


@dataclass(slots=True, eq=False)
class _Asked(Generic[Item, Answer]):
    item: Item
    size_bytes: int
    future: asyncio.Future[Answer]


class Batches(Generic[Item, Answer]):
    """Gathers the writes to one store; used on one event loop.

    Args:
        write: writes a batch and returns one answer, or a ``BatchFailure``, for each item in order. What it raises
            is every item's failure.
        max_items: of a batch.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | BatchFailure]]],
        max_items: int,
    ) -> None:
        self._write = write
        self._max_items = max_items
        self._waiting: list[_Asked[Item, Answer]] = []
        self._waiting_bytes = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None

    async def add(self, item: Item, size_bytes: int = 0) -> Answer:
        """Write an item with those that come together with it; return its answer.

        A caller cancelled while it waits may or may not have written.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked[Item, Answer](item, size_bytes, loop.create_future())
        self._waiting.append(asked)
        self._waiting_bytes += size_bytes
        if len(self._waiting) >= self._max_items or self._waiting_bytes >= MAX_BATCH_BYTES:
            self._send()
        elif self._timer is None:
            # Who asks in this turn of the loop comes along, and that is no wait.
            wait = MAX_WAIT_SECONDS if self._under_way else 0
            self._timer = loop.call_later(wait, self._send) if wait else loop.call_soon(self._send)
        return await asked.future

    async def aclose(self) -> None:
        """Write what waits, and return when nothing is under way. Nothing may be added from then on."""
        while self._waiting or self._under_way:
            self._send()
            await asyncio.wait(self._under_way)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [asked for asked in self._waiting if not asked.future.done()]
        self._waiting, self._waiting_bytes = [], 0
        if batch:
            task = asyncio.get_running_loop().create_task(self._run(batch), name="baton batch")
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting and not self._under_way:
            self._send()

    async def _run(self, batch: list[_Asked[Item, Answer]]) -> None:
        try:
            answers = await self._write([asked.item for asked in batch])
        except Exception as error:  # noqa: BLE001 - raised where each answer is awaited
            for asked in batch:
                if not asked.future.done():
                    asked.future.set_exception(_own(error))
            return
        except asyncio.CancelledError:
            for asked in batch:
                asked.future.cancel()
            raise
        for asked, answer in zip(batch, answers, strict=True):
            if asked.future.done():
                continue
            if isinstance(answer, BatchFailure):
                asked.future.set_exception(answer.error)
            else:
                asked.future.set_result(answer)


def _own(error: Exception) -> Exception:
    """Return an exception for one caller alone, because raising one adds to its traceback."""
    if not isinstance(error, EngineError):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
