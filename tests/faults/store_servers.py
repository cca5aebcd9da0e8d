"""How an engine is told of each store's server: the one place where tests of faults say it."""

from __future__ import annotations

from typing import Final

from tests.servers.pinecone import API_KEY

SERVERS: Final = {
    "neo4j": "neo4j_server",
    "mongodb": "mongo_server",
    "redis": "redis_server",
    "pinecone": "pinecone_server",
}
"""Store to the fixture of its server."""


def store_config(store: str, uri: str) -> dict[str, object]:
    """The settings that name a store's server."""
    match store:
        case "neo4j":
            return {"neo4j_uri": uri}
        case "mongodb":
            return {"mongo_uri": uri}
        case "redis":
            return {"redis_uri": uri}
        case "pinecone":
            return {"pinecone_api_key": API_KEY, "pinecone_host": uri}
        case _:
            raise ValueError(f"no store {store}")
