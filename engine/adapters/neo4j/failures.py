"""What the driver's exceptions mean, and where the server is without the secrets that its address may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from neo4j.exceptions import (
    AuthError,
    ClientError,
    ConfigurationError,
    ConnectionAcquisitionTimeoutError,
    DatabaseUnavailable,
    DriverError,
    Forbidden,
    IncompleteCommit,
    Neo4jError,
    ServiceUnavailable,
    SessionExpired,
    TransientError,
    UnsupportedServerProduct,
)

from engine.adapters.failures import Failure, FailureTable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["failures_of", "place_of"]

_DEFAULT_PORT: Final = 7687
_RATE_LIMIT: Final = "Neo.ClientError.Security.AuthenticationRateLimit"
_DATABASE_NOT_FOUND: Final = "Neo.ClientError.Database.DatabaseNotFound"
_TIMED_OUT: Final = "Neo.ClientError.Transaction.TransactionTimedOut"


def place_of(uri: str) -> str | None:
    """Return host and port in an address, or None when there are none."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return f"{host}:{port or _DEFAULT_PORT}" if host else None


def failures_of(place: str | None) -> FailureTable:
    """Return the table of the server at ``place``."""
    return FailureTable("neo4j", f"Neo4j at {place or 'the address'} (neo4j_uri)", _ROWS, _reason)


def _has_code(code: str) -> Callable[[Exception], bool]:
    return lambda error: isinstance(error, Neo4jError) and (error.code or "").startswith(code)


def _reason(error: Exception) -> str:
    code = error.code if isinstance(error, Neo4jError) else None
    return code or type(error).__name__


_ROWS: Final = (
    Failure(
        ClientError,
        "refuses the log-in for some seconds after too many wrong passwords; correct neo4j_user and neo4j_password "
        "and try again",
        when=_has_code(_RATE_LIMIT),
    ),
    Failure(AuthError, "refused the log-in; correct neo4j_user and neo4j_password"),
    Failure(
        Forbidden,
        "does not let neo4j_user do this; give the user the rights to read, write and make indexes",
    ),
    Failure(
        ConnectionAcquisitionTimeoutError,
        "had no free connection in time; raise connection_pool_size or ask less at once",
        # When the server hangs, this is how most callers notice.
        is_outage=True,
    ),
    Failure(UnsupportedServerProduct, "is no Neo4j server that this version of Baton can talk to; correct neo4j_uri"),
    Failure(
        ConfigurationError,
        "can't be used as it is written; correct neo4j_uri, for example bolt://host:7687",
    ),
    Failure(
        IncompleteCommit,
        "lost the connection while it was writing; whether it has written is not known",
        is_outage=True,
    ),
    Failure(
        ServiceUnavailable,
        "can't be reached; start it, or correct neo4j_uri (with +s when the server wants encryption)",
        is_outage=True,
    ),
    Failure(SessionExpired, "closed the connection; try again", is_outage=True),
    Failure(DatabaseUnavailable, "is not ready; it is starting, or its database is stopped", is_outage=True),
    Failure(ClientError, "has no such database; give neo4j_user a home database", when=_has_code(_DATABASE_NOT_FOUND)),
    Failure(Neo4jError, "did not finish in time and undid it; try again", when=_has_code(_TIMED_OUT), is_outage=True),
    Failure(TransientError, "is busy or short of memory and undid it; try again"),
    Failure(Neo4jError, "refused; its log says why"),
    Failure(DriverError, "can't be used; the cause says why"),
    Failure(OSError, "can't be reached; correct neo4j_uri or the network", is_outage=True),
)
