"""The client and the stores of the workflows' suites serve here too."""

from __future__ import annotations

from tests.workflows.conftest import client, stores

__all__ = ["client", "stores"]
