"""One short visit to each configured store, for `baton doctor`: all at once, each on its own."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.settings import EngineSettings
    from engine.stores import Stores


@dataclass(frozen=True)
class StoreProbe:
    """What a store said.

    Attributes:
        component: as in the health report.
        found: backend, version and more, for people.
        fault: why it can't be used; empty when it can.
        is_made: its constraints and indexes were seen to.
    """

    component: str
    found: str = ""
    fault: str = ""
    is_made: bool = False


async def probe_stores(
    settings: EngineSettings, components: Sequence[str], *, make_schemas: bool
) -> dict[str, StoreProbe]:
    """Ask stores how they are; return what each said by its component.

    Args:
        settings: of the stores.
        components: which, by their names in the health report.
        make_schemas: make the constraints and indexes that are missing.

    Raises:
        ConfigurationError: a store's address can't be read, or names no server.
    """
    from engine.stores import open_stores

    stores = open_stores(settings)
    async with aclosing(stores.closing):
        probes = await asyncio.gather(*(_probe(stores, component, make=make_schemas) for component in components))
    return {probe.component: probe for probe in probes}


async def _probe(stores: Stores, component: str, *, make: bool) -> StoreProbe:
    make_schema = stores.schemas.get(component)
    try:
        if make and make_schema is not None:
            await make_schema()
        health = await stores.checks[component].check_health()
    except EngineError as error:
        return StoreProbe(component, fault=error.message)
    told = [f"{health.backend} {health.version or ''}".strip(), health.detail]
    return StoreProbe(component, ", ".join(part for part in told if part), is_made=make and make_schema is not None)
