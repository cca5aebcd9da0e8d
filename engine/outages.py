"""What goes on failing is logged twice: when it begins, and when it is over, with how much was lost in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

__all__ = ["OutageLog"]


class OutageLog:
    """The failures in a row of one thing that its callers go on without.

    Args:
        logger: where the two lines go.
        what: begins each of them.
    """

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._failures = 0
        self._began_at = 0.0

    def failed(self, error: object) -> None:
        """Count a failure; the first in a row is logged with its reason."""
        if self._failures == 0:
            self._began_at = time.monotonic()
            self._logger.warning("%s fails, and says so once until it works again: %s", self._what, error)
        self._failures += 1

    def worked(self) -> None:
        """Say that it works; after failures that is logged with their number."""
        if self._failures:
            seconds = time.monotonic() - self._began_at
            self._logger.warning("%s works again, after %d failures in %.1f s", self._what, self._failures, seconds)
            self._failures = 0
