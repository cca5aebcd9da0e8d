"""An HTTP transport that goes only where ``AllowedHosts`` lets it, whoever builds its requests.

The name is resolved once, inside the connection pool's network layer, and the connection is made to an address of
that very answer: a second, different DNS answer has no moment to come in, while TLS and the Host header keep the
name. The pool stays keyed by name, so two names on one address never share a connection verified for one of them.
"""

from __future__ import annotations

import asyncio
import socket
from functools import cache
from typing import TYPE_CHECKING, Final, cast

import httpcore2
import httpx2

from engine.adapters.agents.allowed_hosts import AllowedHosts
from engine.domain.agent_call import AgentFailure, FailureReason

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence

    Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

__all__ = ["CheckedTransport", "resolve_host"]

_MAX_ADDRESSES: Final = 4
_MAX_CONNECTIONS: Final = 100
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Ask the system for the addresses of ``host``, in its order of preference.

    Raises:
        OSError: the name has no address, or nobody answered.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        # The resolver refuses a label of more than 63 characters this way.
        raise OSError(f"{host:.100} is no host name") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@cache
def _system_trust() -> ssl.SSLContext:
    # Reading the trust store takes tens of milliseconds, so it is done once a process.
    return httpx2.create_ssl_context(trust_env=False)


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends requests for the event loop it is first used on; the caller closes it.

    Used without a client on purpose: a client follows redirects, keeps cookies, reads the environment and logs whole
    URLs, a transport does none of it.

    Args:
        hosts: where it may go; anything else ends in an ``AgentFailure`` (invalid_request) before a connection.
        resolve: name and port to addresses.
        tls: how servers are verified; None for the system's trust store.
    """

    # httpx2's own transport takes no network backend; its pool, a public class of httpcore2, does.

    def __init__(self, hosts: AllowedHosts, resolve: Resolver, tls: ssl.SSLContext | None = None) -> None:
        self._hosts = hosts
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls or _system_trust(),
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_CheckedBackend(hosts, resolve),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request and return its response as soon as the headers are there; the caller closes it.

        Raises:
            AgentFailure: invalid_request, when the list does not allow the host or its address.
            httpcore2.TimeoutException: a timeout of the request's extensions passed.
            httpcore2.NetworkError: no connection, or it broke.
            httpcore2.ProtocolError: what answers does not speak HTTP.
        """
        url = request.url
        host = url.raw_host.decode("ascii")
        port = _DEFAULT_PORTS[url.scheme] if url.port is None else url.port
        if not self._hosts.allows(host, port):
            raise AgentFailure(
                FailureReason.INVALID_REQUEST,
                f"The host {host:.200} with port {port} is not allowed; add it to the setting `allowed_hosts`",
                details={"host": host[:200], "setting": "allowed_hosts"},
            )
        response = await self._pool.handle_async_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=cast("AsyncIterable[bytes]", request.stream),
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseStream(response),
            request=request,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _ResponseStream(httpx2.AsyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self, hosts: AllowedHosts, resolve: Resolver) -> None:
        self._hosts = hosts
        self._resolve = resolve
        # httpcore2 defines the class twice, once for installations without anyio, which hides its type.
        self._sockets = cast("httpcore2.AsyncNetworkBackend", httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                return await self._connect(host, port, timeout, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"no connection within {timeout} s") from error

    async def _connect(
        self,
        host: str,
        port: int,
        timeout: float | None,  # noqa: ASYNC109 - shared out to the addresses below
        local_address: str | None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            found = await self._resolve(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(f"the name can't be resolved: {error}") from error
        usable = [item for item in found if self._hosts.allows_address(host, port, item)][:_MAX_ADDRESSES]
        if found and not usable:
            raise AgentFailure(
                FailureReason.INVALID_REQUEST,
                f"The host {host:.200} resolves to {found[0]}, a loopback, link-local, multicast or metadata"
                f" address; such a one is called only when the setting `allowed_hosts` lists {_entry(found[0], port)}",
                details={"host": host[:200], "address": found[0], "setting": "allowed_hosts"},
            )
        last: Exception = httpcore2.ConnectError("the name has no address")
        for address in usable:
            try:
                return await self._sockets.connect_tcp(
                    address,
                    port,
                    None if timeout is None else timeout / len(usable),
                    local_address,
                    socket_options,
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last


def _entry(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
