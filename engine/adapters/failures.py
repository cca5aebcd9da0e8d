"""A driver's exception becomes a ``StoreError`` by a table, so that each adapter's knowledge of its driver is data.

The sentences are constants: a driver's own text may hold an address with its password, and so never enters a
message. It stays reachable as the cause.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

__all__ = ["Failure", "FailureTable"]


def _type_name(error: Exception) -> str:
    return type(error).__name__


@dataclass(frozen=True, slots=True)
class Failure:
    """One row: an exception of the driver, and what to tell people about it.

    Args:
        error: the exception's class; subclasses match too.
        says: goes on from the table's subject: what is wrong and what to do.
        when: narrows the match, by an error code for example; None takes every instance.
        is_outage: the store could not be reached or did not answer; several in a row open the circuit.
    """

    error: type[Exception]
    says: str
    when: Callable[[Exception], bool] | None = None
    is_outage: bool = False


class FailureTable:
    """The failures of one opened store.

    Args:
        backend: ``sqlite``, ``neo4j``, ...; becomes ``details.backend``.
        subject: begins each message, without secrets: ``The database /data/baton.db``.
        rows: the first match counts, so the driver's root class comes last.
        reason: the driver's own short name of an error, for ``details.reason``; default: its class.
    """

    def __init__(
        self,
        backend: str,
        subject: str,
        rows: Sequence[Failure],
        reason: Callable[[Exception], str] = _type_name,
    ) -> None:
        self._backend = backend
        self._subject = subject
        self._rows = tuple(rows)
        self._reason = reason

    def explain(self, error: Exception) -> StoreError | None:
        """Return the error to raise in place of ``error``, with it as the cause; None when no row matches."""
        row = self._row(error)
        if row is None:
            return None
        failure = self.failure(row.says, self._reason(error))
        failure.__cause__ = error
        return failure

    def is_outage(self, error: Exception) -> bool:
        """Return whether ``error`` means that the store could not be reached or did not answer."""
        row = self._row(error)
        return row is not None and row.is_outage

    def failure(self, says: str, reason: str) -> StoreError:
        """Return an error about this store that no driver raised."""
        return StoreError(f"{self._subject} {says}.", {"backend": self._backend, "reason": reason})

    @contextmanager
    def translated(self) -> Generator[None]:
        """Run driver calls; what they raise and the table knows leaves as ``StoreError``."""
        try:
            yield
        except Exception as error:
            failure = self.explain(error)
            if failure is None:
                raise
            raise failure from error

    def _row(self, error: Exception) -> Failure | None:
        for row in self._rows:
            if isinstance(error, row.error) and (row.when is None or row.when(error)):
                return row
        return None
