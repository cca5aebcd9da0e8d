"""Doubles of a store's port that fail around a real store, and engines that get one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from engine import bootstrap
from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from engine.bootstrap import Stores
    from engine.settings import EngineSettings


class DeafStore:
    """Refuses the first ``failures`` calls of some methods, with nothing written.

    Attributes:
        left: how many more calls of each are refused.
        refused: how many were.
    """

    def __init__(self, store: object, **failures: int) -> None:
        self.left = dict(failures)
        self.refused = 0
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in self.left:
            return method

        async def called(*args: object, **kwargs: object) -> object:
            if self.left[name] > 0:
                self.left[name] -= 1
                self.refused += 1
                raise StoreError(f"{name} does not answer; the test wants it so")
            return await method(*args, **kwargs)

        return called


def put_between(patch: pytest.MonkeyPatch, wrap: Callable[[Any], object], port: str = "executions") -> list[Any]:
    """Give engines that open from now on a double; return the list that the doubles will be in.

    Args:
        patch: takes it back at the test's end.
        wrap: makes the double around the real store.
        port: the field of ``Stores``.
    """
    doubles: list[Any] = []
    opened = bootstrap.open_stores

    def open_with_double(settings: EngineSettings) -> Stores:
        stores = opened(settings)
        doubles.append(wrap(getattr(stores, port)))
        return dataclasses.replace(stores, **{port: doubles[-1]})

    patch.setattr(bootstrap, "open_stores", open_with_double)
    return doubles
