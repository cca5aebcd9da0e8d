"""What every call of the facade stands on: a loop of the engine's own, a request id, and the parts of an open engine.

Nothing is opened by making an engine: the first call opens it, and so does the first one behind a close.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from engine import request_context
from engine.bootstrap import EngineSession
from engine.errors import EngineError
from engine.loop_thread import LoopThread

if TYPE_CHECKING:
    from engine.domain.execution import Value
    from engine.domain.json import JsonValue
    from engine.ports.agent_invoker import AgentInvoker
    from engine.settings import EngineSettings

__all__ = ["Calls", "Document", "new_request_id", "on_own_loop", "request"]

Document = Mapping[str, object]
C = TypeVar("C", bound="Calls")
P = ParamSpec("P")
T = TypeVar("T")


def on_own_loop(
    method: Callable[Concatenate[C, P], Coroutine[object, object, T]],
) -> Callable[Concatenate[C, P], Coroutine[object, object, T]]:
    """Run a method on the engine's own loop, under a new request id."""

    @functools.wraps(method)
    async def called(self: C, *args: P.args, **kwargs: P.kwargs) -> T:
        with request(new_request_id()):
            return await self._thread().run(method(self, *args, **kwargs))  # pyright: ignore[reportPrivateUsage] # a part of the class

    return called


@contextmanager
def request(request_id: str) -> Generator[None]:
    """Make ``request_id`` that of all that is logged and raised inside."""
    token = request_context.request_id.set(request_id)
    try:
        yield
    except EngineError as error:
        # One that a store's thread has raised does not know for whom.
        error.request_id = error.request_id or request_id
        raise
    finally:
        request_context.request_id.reset(token)


def new_request_id() -> str:
    """Return an id by which one call is found again in logs."""
    return f"req-{secrets.token_hex(6)}"


class Calls:
    """The parts of an engine that its calls share."""

    def __init__(self, settings: EngineSettings, invoker: AgentInvoker | None) -> None:
        self._settings = settings
        self._invoker = invoker
        self._opening = threading.Lock()
        self._opened: LoopThread[EngineSession] | None = None

    def _session(self) -> EngineSession:
        return self._thread().content

    def _thread(self) -> LoopThread[EngineSession]:
        with self._opening:
            if self._opened is None or not self._opened.is_open:
                self._opened = LoopThread(lambda: EngineSession(self._settings, self._invoker))
            return self._opened

    async def _loaded(self, session: EngineSession, value: Value | None) -> JsonValue:
        if value is None:
            return None
        return value.inline if value.ref is None else await session.stores.artifacts.get_artifact(value.ref.artifact_id)
