"""Doubles of a store's port that fail around a real store, and engines that get one."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

from engine import bootstrap
from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from engine.bootstrap import Stores
    from engine.settings import EngineSettings

WRITES = (
    "create_execution",
    "record_steps",
    "record_last_steps",
    "claim_step",
    "finalize_execution",
    "repair_execution",
)


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


class LossyStore:
    """Does what it is asked and now and then loses the answer, so that the caller can't know.

    Attributes:
        lost: how many answers were.
    """

    def __init__(self, store: object, share: float, seed: int) -> None:
        self.lost = 0
        self._store = store
        self._share = share
        self._chance = random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in WRITES:
            return method

        async def called(*args: object, **kwargs: object) -> object:
            answer = await method(*args, **kwargs)
            if self._chance.random() < self._share:
                self.lost += 1
                raise StoreError(f"The answer of {name} was lost; the test wants it so")
            return answer

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
