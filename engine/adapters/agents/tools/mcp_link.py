"""One connection to an MCP server, from its start to its end, held open by a task of its own.

The scopes of the ``mcp`` package must be left by the task that entered them, so that task is the connection's owner
and calls come from others. A call runs in a task too: cancelling it must return at once, and the package's own
way out waits for the server to take the news.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar, cast

from mcp import Client, MCPError
from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST, ToolListChangedNotification
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from engine.adapters.agents.replies import bounded_text
from engine.adapters.agents.tools.mcp_http import FAULT_CODE
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.masking import mask_text

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from mcp.client.client import Transport  # pyright: ignore[reportPrivateImportUsage] # exported nowhere
    from mcp.client.session import IncomingMessage
    from mcp_types import CallToolResult
    from mcp_types import Tool as ListedTool

    from engine.adapters.agents.tools.mcp_voice import ServerVoice
    from engine.domain.json import JsonObject

__all__ = ["McpLink"]

START_SECONDS: Final = 20.0
_CANCEL_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 8.0
_MAX_PAGES: Final = 100
_logger = logging.getLogger(__name__)

T = TypeVar("T")


class McpLink:
    """Starts at once and ends when it is told to, or when the server does.

    Args:
        transport: makes the way to the server; gets a function to be called when the way ends.
        voice: what the transport hears of the server.
        wait: seconds before the start.
    """

    def __init__(self, transport: Callable[[Callable[[], None]], Transport], voice: ServerVoice, wait: float) -> None:
        self._transport = transport
        self._voice = voice
        self._settled = asyncio.Event()
        self._over = asyncio.Event()
        self._limit: asyncio.Timeout | None = None
        self._is_stopped = False
        self._client: Client | None = None
        self._failure: AgentFailure | None = None
        self._tools: Sequence[ListedTool] | None = None
        self._listing: asyncio.Task[Sequence[ListedTool]] | None = None
        self._may_keep_tools = True
        self._changes = 0
        self._calls: set[asyncio.Task[object]] = set()
        self._checking: asyncio.Task[None] | None = None
        # Without the context of the call that happens to come first: its spans and ids are not this task's.
        self._owner = asyncio.create_task(
            self._own(wait), name=f"baton-mcp-{voice.server}", context=contextvars.Context()
        )

    @property
    def is_over(self) -> bool:
        """Whether it takes no more calls."""
        return self._over.is_set()

    async def list_tools(self, seconds: float) -> Sequence[ListedTool]:
        """Return the server's tools, kept until it says that they changed.

        Raises:
            AgentFailure: unavailable or timeout, or what the server's answer means.
        """
        seconds = min(seconds, START_SECONDS)
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._settled.wait()
                if self._client is None:
                    raise self._ended()
                return self._tools if self._tools is not None else await self._fetched(self._client)
        except TimeoutError:
            self._check_soon()
            raise self._failed(FailureReason.TIMEOUT, f"did not answer within {seconds:.1f} s") from None
        except MCPError as error:
            raise await self._failure_of_answer(error) from None
        except AgentFailure:
            raise
        except Exception as error:
            # A strange answer may trip the package anywhere.
            raise self._failed(FailureReason.UNAVAILABLE, f"answers with what is no list of tools: {error}") from error

    async def call_tool(self, name: str, arguments: JsonObject, seconds: float) -> CallToolResult:
        """Call a tool.

        Raises:
            AgentFailure: nothing came back; the message says why.
        """
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._settled.wait()
                if self._client is None:
                    raise self._ended()
                return await self._run(self._client.call_tool(name, dict(arguments)))
        except TimeoutError:
            self._check_soon()
            raise self._failed(FailureReason.TIMEOUT, "did not answer before the step's deadline") from None
        except MCPError as error:
            raise await self._failure_of_answer(error) from None
        except AgentFailure:
            raise
        except Exception as error:
            raise self._failed(FailureReason.INVALID_OUTPUT, f"answers with what is no result: {error}") from error

    def stop(self) -> None:
        """Let it end."""
        self._is_stopped = True
        self._over.set()
        if self._limit is not None and not self._limit.expired() and not self._settled.is_set():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """End it, with the server's program if it has one, within 8 s."""
        self.stop()
        _, stuck = await asyncio.wait([self._owner], timeout=_CLOSE_SECONDS)
        if stuck:
            _logger.warning("the connection to the MCP server %s does not end; it is given up", self._voice.server)
            self._owner.cancel()

    async def _own(self, wait: float) -> None:
        listener: asyncio.Task[None] | None = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._over.wait()
                return
            async with (
                asyncio.timeout(START_SECONDS) as self._limit,
                Client(self._transport(self._over.set), cache=None, message_handler=self._take_message) as client,
            ):
                self._limit.reschedule(None)
                capabilities = client.server_capabilities.tools
                if client.protocol_version in MODERN_PROTOCOL_VERSIONS and capabilities and capabilities.list_changed:
                    listener = asyncio.create_task(self._listen(client))
                self._client = client
                self._settled.set()
                await self._over.wait()
                self._client = None
                await _cancelled([*self._calls, *filter(None, (listener, self._checking))])
        except TimeoutError:
            what = "was stopped during its start" if self._is_stopped else f"did not start within {START_SECONDS:.0f} s"
            self._failure = self._failed(FailureReason.TIMEOUT, what)
        except Exception as error:  # noqa: BLE001 - whatever ended it is told to those who call
            self._failure = self._failure_of_start(error)
        finally:
            self._client = None
            self._over.set()
            self._settled.set()

    async def _listen(self, client: Client) -> None:
        """Hear of changes of the list, as servers of the newer protocol tell them; without that no list is kept."""
        try:
            async with client.listen(tools_list_changed=True) as changes:
                self._forget_tools()
                async for _ in changes:
                    self._forget_tools()
        except (MCPError, RuntimeError, TimeoutError) as error:
            _logger.debug("MCP server %s tells no more changes of its tools: %s", self._voice.server, error)
        self._may_keep_tools = False
        self._forget_tools()

    async def _take_message(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._forget_tools()

    def _forget_tools(self) -> None:
        self._changes += 1
        self._tools = None
        self._listing = None

    async def _fetch_tools(self, client: Client) -> Sequence[ListedTool]:
        changes = self._changes
        tools: list[ListedTool] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        if self._may_keep_tools and changes == self._changes:
            self._tools = tools
        return tools

    async def _fetched(self, client: Client) -> Sequence[ListedTool]:
        """Fetch the list, once for all who want it now."""
        listing = self._listing
        if listing is None or listing.done():
            listing = self._listing = self._begun(self._fetch_tools(client))
        return await self._outcome(listing)

    async def _run(self, work: Coroutine[object, object, T]) -> T:
        task = self._begun(work)
        try:
            return await self._outcome(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _begun(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._forget_call)
        return task

    async def _outcome(self, task: asyncio.Task[T]) -> T:
        await asyncio.wait([task])
        if task.cancelled():
            raise await self._end()
        return task.result()

    def _forget_call(self, task: asyncio.Task[object]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            # Nobody may be there any more to take it.
            task.exception()

    def _check_soon(self) -> None:
        """See whether a server that did not answer is there at all; otherwise end the connection."""
        client = self._client
        if client is not None and self._checking is None:
            self._checking = asyncio.create_task(self._check(client))

    async def _check(self, client: Client) -> None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._run(self._fetch_tools(client))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no list
            _logger.warning("MCP server %s does not answer (%s); it starts anew", self._voice.server, error)
            self.stop()
        finally:
            self._checking = None

    async def _failure_of_answer(self, error: MCPError) -> AgentFailure:
        if error.code == CONNECTION_CLOSED or (error.code == INVALID_REQUEST and error.message == "Session terminated"):
            self.stop()
            return await self._end()
        return self._meaning_of(error)

    def _meaning_of(self, error: MCPError) -> AgentFailure:
        refusal = self._voice.refusal
        if refusal is not None and error.message in refusal.message:
            return AgentFailure(refusal.reason, refusal.message, details=refusal.details)
        if error.code == FAULT_CODE:
            return self._failed(FailureReason.UNAVAILABLE, f"can't be used: {error.message}")
        return self._failed(FailureReason.UNAVAILABLE, f"answers with an error: {error.message}")

    def _failure_of_start(self, error: Exception) -> AgentFailure:
        cause = _first_leaf(error)
        if isinstance(cause, AgentFailure):
            return cause
        if isinstance(cause, MCPError):
            if cause.code == CONNECTION_CLOSED:
                return self._failed(FailureReason.UNAVAILABLE, "ended during its start")
            return self._meaning_of(cause)
        if isinstance(cause, OSError):
            return self._failed(FailureReason.UNAVAILABLE, f"can't be started: {cause.strerror or cause}")
        _logger.warning("the connection to the MCP server %s failed", self._voice.server, exc_info=error)
        return self._failed(FailureReason.UNAVAILABLE, f"can't be used: {type(cause).__name__}: {cause}")

    async def _end(self) -> AgentFailure:
        # The owner learns how the program ended, which is worth a moment.
        await asyncio.wait([self._owner], timeout=_CHECK_SECONDS)
        return self._ended()

    def _ended(self) -> AgentFailure:
        failure = self._failure
        if failure is not None:
            return AgentFailure(failure.reason, failure.message, details=failure.details)
        return self._failed(FailureReason.UNAVAILABLE, "ended")

    def _failed(self, reason: FailureReason, what: str) -> AgentFailure:
        return AgentFailure(
            reason,
            mask_text(bounded_text(f"The MCP server {self._voice.server} {what}{self._voice.story()}")),
            details={"mcp_server": self._voice.server},
        )


async def _cancelled(tasks: Sequence[asyncio.Task[object] | asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


def _first_leaf(error: BaseException) -> BaseException:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return _first_leaf(group.exceptions[0])
    return error
