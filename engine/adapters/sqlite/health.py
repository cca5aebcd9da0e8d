"""A database is well when it takes a write: an empty transaction finds a lock, a lost right and a broken file."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from engine.ports.health import StoreHealth

if TYPE_CHECKING:
    from engine.adapters.sqlite.database import SqliteDatabase

__all__ = ["database_health"]


async def database_health(database: SqliteDatabase) -> StoreHealth:
    """Begin and commit an empty transaction.

    Raises:
        StoreError: the file can't be written.
    """
    await database.write(lambda connection: connection.execute("SELECT count(*) FROM sqlite_master").fetchone())
    return StoreHealth(backend="sqlite", version=sqlite3.sqlite_version, detail=str(database.path))
