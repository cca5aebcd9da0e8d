"""Agents that are models: one attempt is one conversation with an endpoint that speaks OpenAI's API.

No request is repeated here: a failure's reason decides what happens next, and it is decided elsewhere. The libraries
take seconds to import, so they are loaded in a thread at the first call; the worker's loop keeps its heartbeats.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from engine.adapters.agents.allowed_hosts import AllowedHosts
from engine.adapters.agents.llm.progress_text import ProgressText
from engine.adapters.agents.llm.prompts import output_form, prompt_of
from engine.adapters.agents.llm.spending import Spending
from engine.adapters.agents.replies import failure_of, log_failure
from engine.domain.agent_call import AgentFailure, AgentReply, FailureReason
from engine.domain.agent_config import LlmConfig
from engine.domain.execution import ExecutionWarning
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from engine.adapters.agents.checked_transport import Resolver
    from engine.adapters.agents.llm.model_clients import ModelClients
    from engine.domain.agent_call import AgentInvocation
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.price_table import PriceTable
    from engine.ports.secret_source import SecretSource
    from engine.ports.tools import ToolSource

__all__ = ["LlmAgentInvoker"]

_OPENAI_HOST: Final = "api.openai.com"
_DEFAULT_KEY: Final = "${secret.OPENAI_API_KEY}"
_NO_KEY: Final = "no-key"
"""What an endpoint gets that may need none."""
_HEADER_TEXT: Final = re.compile(r"[\x21-\x7e]+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_EXTRA: Final = ("openai", "pydantic_ai", "genai_prices")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Where a model is; ``base_url`` None is OpenAI's own."""

    base_url: str | None
    host: str
    port: int
    is_default_port: bool

    @property
    def entry(self) -> str:
        """Host and port as an entry of ``allowed_hosts``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def place(self) -> str:
        """The host, with its port when that is not the scheme's."""
        return self.entry.removesuffix(f":{self.port}") if self.is_default_port else self.entry


_OPENAI: Final = _Endpoint(None, _OPENAI_HOST, 443, is_default_port=True)


@dataclass(slots=True)
class _OnLoop:
    """What belongs to one event loop."""

    clients: ModelClients | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class LlmAgentInvoker:
    """Calls agents of kind ``llm``; see ``LlmConfig`` for their config.

    Args:
        allowed_hosts: the setting of that name. OpenAI's own host and that of ``default_base_url`` need no entry.
        secrets: fills ``api_key`` in. An agent without that setting uses the secret ``OPENAI_API_KEY``, and an
            endpoint other than OpenAI's is called without a key when there is no such secret for it.
        tools: finds the agent's tools.
        prices: what tokens cost.
        default_base_url: the endpoint of agents that name none; None for OpenAI's.
        resolve: name and port to addresses, instead of the system's resolver.
        tls: how servers are verified; None for the system's trust store.

    Raises:
        ConfigurationError: an entry of ``allowed_hosts`` or ``default_base_url`` can't be read.
    """

    def __init__(
        self,
        allowed_hosts: Sequence[str],
        secrets: SecretSource,
        tools: ToolSource,
        prices: PriceTable,
        *,
        default_base_url: str | None = None,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        own = [_OPENAI.entry]
        if default_base_url is not None:
            endpoint = _parse(default_base_url)
            if endpoint is None:
                raise ConfigurationError(
                    "`llm_base_url` must be an address like https://host/v1, without credentials and query",
                    {"setting": "llm_base_url"},
                )
            own.append(endpoint.entry)
        self._hosts = AllowedHosts([*allowed_hosts, *own])
        self._secrets = secrets
        self._tools = tools
        self._prices = prices
        self._default_base_url = default_base_url
        self._resolve = resolve
        self._tls = tls
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _OnLoop] = WeakKeyDictionary()

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Hold one conversation; its text is emitted while it comes.

        Cancelling ends the request under way and the tools at once.

        Raises:
            AgentFailure: with its reason, what the call has cost and the tools that it used.
        """
        config = _config_of(invocation.agent.config)
        endpoint = self._endpoint_of(config)
        spending = Spending()
        progress = ProgressText(invocation.call.emit)
        remaining = (invocation.call.deadline - datetime.now(UTC)).total_seconds()
        try:
            async with asyncio.timeout(max(remaining, 0.0)):
                output, warnings, transcript = await self._converse(invocation, config, endpoint, spending, progress)
        except TimeoutError:
            failure = AgentFailure(
                FailureReason.TIMEOUT,
                f"The model {config.model:.200} at {endpoint.place} came to no output before the call's deadline",
                details={"host": endpoint.place},
            )
        except asyncio.CancelledError:
            progress.discard()
            raise
        except AgentFailure as known:
            failure = known
        except Exception as error:  # noqa: BLE001 - whatever went wrong in here is the outcome of the call
            log_failure(_logger, f"the call of agent {invocation.agent.agent_id} failed", error)
            failure = failure_of(error)
        else:
            usage = spending.usage(self._prices, config.model, endpoint.base_url)
            return AgentReply(output, usage, spending.tool_calls, warnings, transcript)
        finally:
            progress.flush()
        failure.usage = spending.usage(self._prices, config.model, endpoint.base_url)
        failure.tool_calls = spending.tool_calls
        # Outside of the handlers and without a cause: a cause is written into Temporal's history.
        raise failure from None

    async def aclose(self) -> None:
        """Close the connections of the running event loop; those of an ended loop went with it."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None and here.clients is not None:
            await here.clients.aclose()

    async def _converse(
        self,
        invocation: AgentInvocation,
        config: LlmConfig,
        endpoint: _Endpoint,
        spending: Spending,
        progress: ProgressText,
    ) -> tuple[JsonObject, list[ExecutionWarning], JsonValue]:
        prompt = prompt_of(invocation, config)
        form = output_form(config, invocation.output_schema, invocation.reply_keys)
        key, keyless_because = await self._key_for(config, endpoint)
        clients = await self._clients()
        found = await self._tools.resolve_tools(invocation.agent.tools, invocation.call)

        from engine.adapters.agents.llm.conversation import Conversation

        transcript: list[JsonValue] | None = [] if invocation.trace else None
        conversation = Conversation(
            model=clients.model(config.model, endpoint.base_url, key),
            host=endpoint.place,
            config=config,
            prompt=prompt,
            form=form,
            tools=found.tools,
            call=invocation.call,
            spending=spending,
            progress=progress,
            transcript=transcript,
        )
        try:
            output = await conversation.run()
        except AgentFailure as failure:
            if keyless_because and failure.reason is FailureReason.UNAUTHORIZED:
                failure.message += f"; it was called without a key: {keyless_because}"
            raise
        warnings = [
            ExecutionWarning(code="unknown_tool", message=f"The tool {name} was left out: {why}")
            for name, why in found.missing.items()
        ]
        return output, warnings, transcript

    def _endpoint_of(self, config: LlmConfig) -> _Endpoint:
        base_url = config.base_url or self._default_base_url
        endpoint = _OPENAI if base_url is None else _parse(base_url)
        if endpoint is None:
            raise _invalid("`base_url` must be an address like https://host/v1, without credentials and query")
        if not self._hosts.allows(endpoint.host, endpoint.port):
            raise AgentFailure(
                FailureReason.INVALID_REQUEST,
                f"The host {endpoint.place:.200} is not allowed; add it to the setting `allowed_hosts`",
                details={"host": endpoint.place[:200], "setting": "allowed_hosts"},
            )
        return endpoint

    async def _key_for(self, config: LlmConfig, endpoint: _Endpoint) -> tuple[str, str | None]:
        """Return the key, and why it is none when an endpoint is called without.

        The default key goes to OpenAI and to the operator's ``llm_base_url`` only, never where a stored config points.
        """
        if config.api_key is None and endpoint.base_url not in (None, self._default_base_url):
            return _NO_KEY, f"this endpoint is the agent's own; write api_key: {_DEFAULT_KEY} to send it that secret"
        try:
            key = await asyncio.to_thread(self._secrets.fill_in, config.api_key or _DEFAULT_KEY, endpoint.entry)
        except AgentFailure as failure:
            if config.api_key is not None or endpoint.base_url is None:
                raise
            return _NO_KEY, failure.message
        if not _HEADER_TEXT.fullmatch(key):
            raise _invalid("the secret of `api_key` must be printable ASCII characters without spaces")
        return key, None

    async def _clients(self) -> ModelClients:
        here = self._loops.setdefault(asyncio.get_running_loop(), _OnLoop())
        async with here.opening:
            if here.clients is None:
                here.clients = await asyncio.to_thread(self._open_clients)
        return here.clients

    def _open_clients(self) -> ModelClients:
        try:
            from engine.adapters.agents.llm.model_clients import ModelClients
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRA:
                raise
            raise AgentFailure(
                FailureReason.INVALID_REQUEST,
                "Model agents need the extra `llm`, which is not installed here; get it with: ./baton install llm",
                details={"extra": "llm"},
            ) from None
        for module in ("engine.adapters.agents.llm.conversation", "jsonschema"):
            importlib.import_module(module)
        return ModelClients(self._hosts, self._resolve, self._tls)


def _config_of(config: JsonObject) -> LlmConfig:
    try:
        return LlmConfig.model_validate(config)
    except ValidationError as error:
        # Places only: a value may be a secret that stands in the wrong one.
        places = ", ".join(".".join(map(str, found["loc"])) for found in error.errors(include_input=False))
        raise _invalid(f"these settings are missing or of the wrong type: {places:.300}") from None


def _parse(base_url: str) -> _Endpoint | None:
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not host or "@" in parts.netloc or parts.query or parts.fragment:
        return None
    own = _DEFAULT_PORTS[parts.scheme]
    if host == _OPENAI_HOST and parts.scheme == "https" and port in (None, 443) and parts.path.rstrip("/") == "/v1":
        return _OPENAI
    return _Endpoint(base_url, host, own if port is None else port, is_default_port=port in (None, own))


def _invalid(what: str) -> AgentFailure:
    return AgentFailure(FailureReason.INVALID_REQUEST, f"The agent's config can't be used: {what}")
