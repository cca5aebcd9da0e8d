"""Agents behind an HTTP address: the mapped input is the JSON body, a JSON object is the answer.

Headers may refer to secrets, and nothing else of a config may: a URL is written into logs by whoever serves it.

One request a call, no retries and no redirects: the reason of a failure decides what happens next, and it is decided
elsewhere. The call's deadline bounds the whole of it, and the answer's size is bounded after decompression.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from engine.adapters.agents.allowed_hosts import AllowedHosts
from engine.adapters.agents.replies import checked_output
from engine.adapters.agents.statuses import reason_of_status, retry_after_of
from engine.domain.agent_call import AgentFailure, AgentReply, FailureReason
from engine.domain.json import MAX_VALUE_BYTES
from engine.masking import mask_text

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    import httpx2

    from engine.adapters.agents.checked_transport import CheckedTransport, Resolver
    from engine.domain.agent_call import AgentCall, AgentInvocation
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.secret_source import SecretSource

__all__ = ["HttpAgentInvoker"]

_CONNECT_TIMEOUT: Final = timedelta(seconds=5)
_EXCERPT_TIMEOUT: Final = timedelta(seconds=1)
_EXCERPT_CHARS: Final = 200
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_METHODS: Final = ("POST", "PUT", "PATCH")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_REFERENCE: Final = "${secret."
_OTHER_REFERENCE: Final = re.compile(r"\$\{(?!secret\.)")
_OWN_HEADERS: Final = frozenset((
    "accept", "accept-encoding", "baton-attempt", "baton-execution-id", "baton-step-id", "connection",
    "content-encoding", "content-length", "content-type", "expect", "host", "idempotency-key", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Target:
    url: httpx2.URL
    method: str
    headers: httpx2.Headers = field(repr=False)
    """``${secret.NAME}`` is not filled in yet."""

    @property
    def place(self) -> str:
        host = f"[{self.url.host}]" if ":" in self.url.host else self.url.raw_host.decode("ascii")
        return f"{host}:{self.url.port or _DEFAULT_PORTS[self.url.scheme]}"


class HttpAgentInvoker:
    """Calls agents of kind ``http``, whose config is ``{url, headers?, method?}``.

    A failure's ``details`` hold ``host`` and, once there is an answer, ``status``.

    Args:
        allowed_hosts: the setting of that name; empty allows no call.
        secrets: what fills ``${secret.NAME}`` in, for the URL's host; without it no header may refer to a secret.
        max_response_bytes: top size of an answer's decompressed body.
        resolve: name and port to addresses, instead of the system's resolver.
        tls: how servers are verified; None for the system's trust store.

    Raises:
        ConfigurationError: an entry of ``allowed_hosts`` can't be read.
    """

    def __init__(
        self,
        allowed_hosts: Sequence[str],
        secrets: SecretSource | None = None,
        *,
        max_response_bytes: int = MAX_VALUE_BYTES,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = AllowedHosts(allowed_hosts)
        self._secrets = secrets
        self._max_response_bytes = max_response_bytes
        self._resolve = resolve
        self._tls = tls
        self._transports: WeakKeyDictionary[asyncio.AbstractEventLoop, CheckedTransport] = WeakKeyDictionary()

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Send one request.

        Raises:
            AgentFailure: with its reason, for everything that the agent or the way to it did wrong.
        """
        import httpcore2
        import httpx2

        target = _target_of(invocation.agent.config)
        host = target.url.host
        remaining = (invocation.call.deadline - datetime.now(UTC)).total_seconds()
        try:
            async with asyncio.timeout(max(remaining, 0.0)):
                await self._fill_in(target)
                target.headers.update(_headers_of(invocation.call))
                return await self._send(target, invocation.input, remaining)
        except (TimeoutError, httpcore2.TimeoutException) as error:
            raise AgentFailure(
                FailureReason.TIMEOUT,
                f"The agent at {host} did not answer in time{_because(error)}",
                details={"host": host},
            ) from error
        except httpx2.DecodingError as error:
            raise AgentFailure(
                FailureReason.INVALID_OUTPUT,
                f"The answer of the agent at {host} can't be decompressed{_because(error)}",
                details={"host": host},
            ) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
            raise AgentFailure(
                FailureReason.UNAVAILABLE,
                f"The agent at {host} can't be reached, or broke the connection off{_because(error)}",
                details={"host": host},
            ) from error

    async def aclose(self) -> None:
        """Close the connections of the running event loop; those of an ended loop went with it."""
        transport = self._transports.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()

    async def _fill_in(self, target: _Target) -> None:
        given = ((name.decode("ascii"), value.decode("ascii")) for name, value in target.headers.raw)
        templates = {name: value for name, value in given if _REFERENCE in value}
        if not templates:
            return
        if self._secrets is None:
            raise _invalid(f"The header {next(iter(templates))} refers to a secret, and no source of secrets is open")
        # In a thread, because secrets may lie in files.
        target.headers.update(await asyncio.to_thread(_filled_in, templates, self._secrets, target.place))

    async def _send(self, target: _Target, content: JsonValue, remaining: float) -> AgentReply:
        import httpx2

        body = await asyncio.to_thread(_encode, content)
        limits = httpx2.Timeout(remaining, connect=min(_CONNECT_TIMEOUT.total_seconds(), remaining))
        request = httpx2.Request(
            target.method,
            target.url,
            headers=target.headers,
            content=body,
            extensions={"timeout": limits.as_dict()},
        )
        async with aclosing(await self._transport().handle_async_request(request)) as response:
            if not response.is_success:
                raise await _failure_of(response)
            answer = await self._read(response)
        output = await asyncio.to_thread(_decode, answer, target.url.host, response.status_code)
        return AgentReply(output)

    def _transport(self) -> CheckedTransport:
        from engine.adapters.agents.checked_transport import CheckedTransport, resolve_host

        loop = asyncio.get_running_loop()
        transport = self._transports.get(loop)
        if transport is None:
            transport = CheckedTransport(self._hosts, self._resolve or resolve_host, self._tls)
            self._transports[loop] = transport
        return transport

    async def _read(self, response: httpx2.Response) -> bytearray:
        answer = bytearray()
        async with aclosing(response.aiter_bytes()) as parts:
            async for part in parts:
                answer += part
                if len(answer) > self._max_response_bytes:
                    raise AgentFailure(
                        FailureReason.INVALID_OUTPUT,
                        f"The answer of the agent at {response.url.host} is larger than"
                        f" {self._max_response_bytes} bytes",
                        details={"status": response.status_code, "host": response.url.host},
                    )
        return answer


def _target_of(config: JsonObject) -> _Target:
    import httpx2

    text = config.get("url")
    try:
        url = httpx2.URL(text if isinstance(text, str) else "")
    except httpx2.InvalidURL as error:
        raise _invalid("`url` can't be parsed; give an absolute http or https URL") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise _invalid("`url` must be an absolute http or https URL")
    if url.port is not None and not 0 < url.port < 2**16:
        raise _invalid("`url` has a port outside of 1 to 65535")
    if url.userinfo:
        raise _invalid("`url` holds a user name or password; send credentials in `headers`")
    method = config.get("method", "POST")
    if not isinstance(method, str) or method.upper() not in _METHODS:
        raise _invalid(f"`method` must be one of {', '.join(_METHODS)}, which carry the input as their body")
    given = config.get("headers")
    if given is not None and not isinstance(given, dict):
        raise _invalid("`headers` must be an object of header names and texts")
    headers = httpx2.Headers({"User-Agent": "baton"})
    for name, value in (given or {}).items():
        headers[name] = _checked_header(name, value)
    if _REFERENCE in str(text):
        raise _invalid("`url` refers to a secret; secrets are for headers alone")
    return _Target(url.copy_with(fragment=None), method.upper(), headers)


def _checked_header(name: str, value: JsonValue) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise _invalid(f"`headers` has the name {name!a:.100}, which HTTP does not allow")
    if name.lower() in _OWN_HEADERS:
        raise _invalid(f"`headers` sets {name}, which Baton sets itself; take it out")
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise _invalid(f"The value of the header {name} must be a text of printable ASCII characters")
    if _OTHER_REFERENCE.search(value):
        raise _invalid(
            f"The header {name} refers to something else than a secret; only ${{secret.NAME}} is filled in, and values"
            " of the execution belong into the input, which is the body"
        )
    return value.strip(" \t")


def _filled_in(templates: dict[str, str], secrets: SecretSource, place: str) -> dict[str, str]:
    filled: dict[str, str] = {}
    for name, template in templates.items():
        value = secrets.fill_in(template, place)
        if not _HEADER_VALUE.fullmatch(value):
            named = ", ".join(dict.fromkeys(re.findall(r"\$\{secret\.([^{}]*)\}", template)))
            raise _invalid(
                f"The header {name} can't carry the secret {named}, which holds a line break or a character that is"
                " no printable ASCII"
            )
        # White space at an end is no part of a header's value, and no client sends it.
        filled[name] = value.strip(" \t")
    return filled


def _invalid(what: str) -> AgentFailure:
    return AgentFailure(FailureReason.INVALID_REQUEST, f"The agent's config can't be used: {what}")


def _headers_of(call: AgentCall) -> dict[str, str]:
    return {
        "Accept": "application/json",
        "Accept-Encoding": "gzip, deflate",
        "Content-Type": "application/json",
        "Idempotency-Key": call.idempotency_key,
        "Baton-Execution-Id": call.execution_id,
        "Baton-Step-Id": call.step_id,
        "Baton-Attempt": str(call.attempt),
    }


def _encode(content: JsonValue) -> bytes:
    # Escaped to ASCII, so that no text of the input is beyond the encoding.
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def _decode(answer: bytearray, host: str, status: int) -> JsonObject:
    import pydantic_core

    details: JsonObject = {"status": status, "host": host}
    try:
        output: object = pydantic_core.from_json(answer, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        what = f"is no JSON ({error})" if answer else "has no body"
        raise AgentFailure(
            FailureReason.INVALID_OUTPUT, f"The answer of the agent at {host} {what}", details=details
        ) from error
    try:
        return checked_output(output)
    except AgentFailure as failure:
        failure.details = details
        raise


async def _failure_of(response: httpx2.Response) -> AgentFailure:
    status = response.status_code
    host = response.url.host
    message = f"The agent at {host} answered with status {status}"
    if 300 <= status < 400:
        message += "; redirects are not followed: put the final address into `url`"
    else:
        excerpt = await _excerpt_of(response)
        message += f": {excerpt}" if excerpt else ""
    retry_after = retry_after_of(response.headers.get("retry-after")) if status in (429, 503) else None
    return AgentFailure(reason_of_status(status), message, retry_after, {"status": status, "host": host})


async def _excerpt_of(response: httpx2.Response) -> str:
    import httpcore2
    import httpx2

    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind.startswith("text/") or kind == "application/json" or kind.endswith("+json")):
        return ""
    start = bytearray()
    broken = (
        TimeoutError,
        httpx2.HTTPError,
        httpcore2.TimeoutException,
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
    )
    # The status is the answer; a body that never came whole only makes the message shorter.
    with suppress(*broken):
        async with asyncio.timeout(_EXCERPT_TIMEOUT.total_seconds()), aclosing(response.aiter_bytes()) as parts:
            async for part in parts:
                start += part
                if len(start) >= 4 * _EXCERPT_CHARS:
                    break
    text = start[: 4 * _EXCERPT_CHARS].decode("utf-8", "replace")
    # Masked before it is cut, since half a secret is masked by nobody.
    text = mask_text(text, is_cut=True)
    return "".join(item if item.isprintable() else " " for item in text)[:_EXCERPT_CHARS].strip()


def _because(error: BaseException) -> str:
    text = mask_text(str(error))
    return f" ({text[:200]})" if text else ""
