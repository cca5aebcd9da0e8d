"""Leases as rows: who may do what one process at a time does, until when by this machine's clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.sqlite.schema import TENANT
from engine.ports.execution_store import Lease

if TYPE_CHECKING:
    import sqlite3
    from datetime import timedelta

__all__ = ["give_lease", "put_mark", "take_lease"]

_TAKE: Final = """INSERT INTO leases (tenant, name, holder, expires_at) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (tenant, name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
    WHERE holder = ?3 OR expires_at <= ?5"""
_GET_MARK: Final = "SELECT mark FROM leases WHERE tenant = ? AND name = ?"
_PUT_MARK: Final = "UPDATE leases SET mark = ? WHERE tenant = ? AND name = ? AND holder = ? AND expires_at > ?"
_GIVE: Final = "UPDATE leases SET expires_at = 0 WHERE tenant = ? AND name = ? AND holder = ?"


def take_lease(connection: sqlite3.Connection, name: str, holder: str, ttl: timedelta) -> Lease | None:
    """Take or renew a lease; None, with nothing written, while another holder has it."""
    now = time.time()
    if connection.execute(_TAKE, (TENANT, name, holder, now + ttl.total_seconds(), now)).rowcount == 0:
        return None
    (mark,) = cast("tuple[str | None]", connection.execute(_GET_MARK, (TENANT, name)).fetchone())
    return Lease(mark)


def put_mark(connection: sqlite3.Connection, name: str, holder: str, mark: str) -> bool:
    """Store the mark of a lease that is still held; return whether it is."""
    return connection.execute(_PUT_MARK, (mark, TENANT, name, holder, time.time())).rowcount == 1


def give_lease(connection: sqlite3.Connection, name: str, holder: str) -> None:
    """End a lease, if it is still held."""
    connection.execute(_GIVE, (TENANT, name, holder))
