"""The contract of ``ArtifactStore``."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from engine.errors import LimitExceededError, StoreError
from tests.contract.samples import AWKWARD_TEXTS, AWKWARD_VALUES, deep_value

if TYPE_CHECKING:
    from engine.ports.artifact_store import ArtifactStore

MEBIBYTE = 1024 * 1024


async def test_values_come_back_exactly(artifact_store: ArtifactStore) -> None:
    for value in [*AWKWARD_VALUES, deep_value()]:
        artifact_id, size_bytes = await artifact_store.put_artifact(value)
        assert size_bytes > 0
        assert repr(await artifact_store.get_artifact(artifact_id)) == repr(value)


async def test_equal_content_is_one_artifact(artifact_store: ArtifactStore) -> None:
    value = {"a": ["x" * 5000]}
    answers = await asyncio.gather(*(artifact_store.put_artifact(value) for _ in range(10)))
    assert len(set(answers)) == 1
    other = await artifact_store.put_artifact({"a": ["y" * 5000]})
    assert other not in answers
    assert await artifact_store.get_artifact(answers[0][0]) == value


async def test_equal_but_different_values_are_two_artifacts(artifact_store: ArtifactStore) -> None:
    ids = {(await artifact_store.put_artifact(value))[0] for value in (1, 1.0, True, "1", [1])}
    assert len(ids) == 5


async def test_the_size_is_that_before_compression(artifact_store: ArtifactStore) -> None:
    _, size_bytes = await artifact_store.put_artifact("x" * MEBIBYTE)
    assert MEBIBYTE < size_bytes < MEBIBYTE + 16


async def test_a_value_of_many_chunks_comes_back(artifact_store: ArtifactStore) -> None:
    source = random.Random(7)
    value = {"parts": [source.randbytes(MEBIBYTE).hex() for _ in range(7)]}
    artifact_id, size_bytes = await artifact_store.put_artifact(value)
    assert size_bytes > 12 * MEBIBYTE
    assert await artifact_store.get_artifact(artifact_id) == value
    assert await artifact_store.put_artifact(value) == (artifact_id, size_bytes)


@pytest.mark.parametrize("mebibytes", [64, 66])
async def test_a_value_over_the_limit_is_refused(artifact_store: ArtifactStore, mebibytes: int) -> None:
    with pytest.raises(LimitExceededError):
        await artifact_store.put_artifact("x" * (mebibytes * MEBIBYTE))


@pytest.mark.parametrize("text", [*AWKWARD_TEXTS, "sha256:" + "0" * 64])
async def test_what_is_not_there_is_lost(artifact_store: ArtifactStore, text: str) -> None:
    with pytest.raises(StoreError):
        await artifact_store.get_artifact(text)


async def test_health_names_the_backend(artifact_store: ArtifactStore) -> None:
    health = await artifact_store.check_health()
    assert health.backend
