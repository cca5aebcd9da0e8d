"""One short visit to a configured Temporal server, for `baton doctor`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from engine.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from temporalio.client import Client


@dataclass(frozen=True)
class ServerProbe:
    """What a server said.

    Attributes:
        version: of the server.
        absent_attributes: search attributes of Baton's that its namespace does not have.
    """

    version: str
    absent_attributes: list[str]


async def probe_server(connect_config: Mapping[str, object], *, timeout_seconds: float, register: bool) -> ServerProbe:
    """Ask a server for its version and search attributes.

    Args:
        connect_config: arguments of ``Client.connect``.
        timeout_seconds: for the whole visit.
        register: add search attributes that are absent.

    Raises:
        RuntimeUnavailableError: no answer, or a refusal; the message has the server's own words.
    """
    from temporalio.client import Client
    from temporalio.service import RPCError

    address = connect_config.get("target_host")
    try:
        async with asyncio.timeout(timeout_seconds):
            client = await cast("Callable[..., Awaitable[Client]]", Client.connect)(**connect_config)
            return await _ask(client, register=register)
    except (RuntimeError, RPCError, TimeoutError) as error:
        raise RuntimeUnavailableError(
            f"{address} does not answer as a Temporal server ({str(error) or 'no answer in time'}). "
            "Start it, or correct temporal_address, temporal_namespace or TLS."
        ) from error


async def _ask(client: Client, *, register: bool) -> ServerProbe:
    from temporalio.api.enums.v1 import IndexedValueType
    from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
    from temporalio.api.workflowservice.v1 import GetSystemInfoRequest

    from engine.adapters.temporal.dev_server import search_attributes

    system = await client.workflow_service.get_system_info(GetSystemInfoRequest())
    wanted = search_attributes()
    listing = ListSearchAttributesRequest(namespace=client.namespace)
    there = (await client.operator_service.list_search_attributes(listing)).custom_attributes
    absent = [name for name in wanted if name not in there]
    if absent and register:
        types = {name: IndexedValueType.Value(f"INDEXED_VALUE_TYPE_{_screaming(wanted[name])}") for name in absent}
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(namespace=client.namespace, search_attributes=types)
        )
        absent = []
    return ServerProbe(system.server_version, absent)


def _screaming(name: str) -> str:
    """``KeywordList`` -> ``KEYWORD_LIST``, as the wire names it."""
    return "".join(f"_{letter}" if letter.isupper() and at else letter for at, letter in enumerate(name)).upper()
