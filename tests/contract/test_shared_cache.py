"""The contract of ``SharedCache``."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.contract.samples import AWKWARD_TEXTS

if TYPE_CHECKING:
    from engine.ports.shared_cache import SharedCache

LONG = timedelta(minutes=5)


async def _until_listening(cache: SharedCache) -> float:
    async with asyncio.timeout(10):
        while cache.listening_since is None:
            await asyncio.sleep(0.01)
    return cache.listening_since


async def _until_heard(news: list[str], count: int) -> None:
    async with asyncio.timeout(10):
        while len(news) < count:
            await asyncio.sleep(0.01)


async def test_what_is_not_there_is_left_out(shared_cache: SharedCache) -> None:
    assert await shared_cache.get_entries([]) == {}
    assert await shared_cache.get_entries([("group", "a"), ("other", "b")]) == {}
    await shared_cache.put_entries({}, LONG)


async def test_entries_come_back_as_they_were_put(shared_cache: SharedCache) -> None:
    entries = {("group", "a"): b"\x00\xff", ("group", "b"): b"", ("other", "a"): b"x" * 100_000}
    await shared_cache.put_entries(entries, LONG)
    assert await shared_cache.get_entries([*entries, ("group", "c"), ("third", "a"), ("group", "a")]) == entries


async def test_a_later_entry_replaces_an_earlier_one(shared_cache: SharedCache) -> None:
    await shared_cache.put_entries({("group", "a"): b"1"}, LONG)
    await shared_cache.put_entries({("group", "a"): b"2"}, LONG)
    assert await shared_cache.get_entries([("group", "a")]) == {("group", "a"): b"2"}


async def test_a_group_is_dropped_as_a_whole_and_alone(shared_cache: SharedCache) -> None:
    await shared_cache.put_entries({("group", "a"): b"1", ("group", "b"): b"2", ("other", "a"): b"3"}, LONG)
    await shared_cache.drop_group("group")
    keys = [("group", "a"), ("group", "b"), ("other", "a")]
    assert await shared_cache.get_entries(keys) == {("other", "a"): b"3"}


async def test_what_was_read_before_a_drop_is_not_kept_after_it(shared_cache: SharedCache) -> None:
    await shared_cache.drop_group("group")
    await shared_cache.put_entries({("group", "a"): b"old", ("other", "a"): b"1"}, LONG)
    assert await shared_cache.get_entries([("group", "a"), ("other", "a")]) == {("other", "a"): b"1"}


async def test_a_group_takes_entries_again_ten_seconds_after_its_drop(shared_cache: SharedCache) -> None:
    await shared_cache.drop_group("group")
    dropped_at = time.monotonic()
    async with asyncio.timeout(30):
        while not await shared_cache.get_entries([("group", "a")]):
            await shared_cache.put_entries({("group", "a"): b"1"}, LONG)
            await asyncio.sleep(0.2)
    assert 9.5 < time.monotonic() - dropped_at < 15


async def test_an_entry_lasts_no_longer_than_its_time_to_live(shared_cache: SharedCache) -> None:
    await shared_cache.put_entries({("group", "a"): b"1"}, timedelta(milliseconds=400))
    await asyncio.sleep(0.2)
    # An entry of the same group that comes later prolongs nothing.
    await shared_cache.put_entries({("group", "b"): b"2"}, timedelta(milliseconds=400))
    assert ("group", "a") in await shared_cache.get_entries([("group", "a")])
    await asyncio.sleep(0.25)
    assert await shared_cache.get_entries([("group", "a")]) == {}


async def test_a_shorter_time_to_live_counts_in_a_group_that_has_a_longer_one(shared_cache: SharedCache) -> None:
    await shared_cache.put_entries({("group", "a"): b"1"}, LONG)
    await shared_cache.put_entries({("group", "b"): b"2"}, timedelta(milliseconds=200))
    await asyncio.sleep(0.3)
    assert await shared_cache.get_entries([("group", "b")]) == {}


async def test_every_listener_hears_every_drop_its_own_process_included(shared_cache: SharedCache) -> None:
    first: list[str] = []
    second: list[str] = []
    assert shared_cache.listening_since is None
    shared_cache.listen(first.append)
    shared_cache.listen(second.append)
    since = await _until_listening(shared_cache)
    assert since <= time.monotonic()
    for group in ("a", "b", "a"):
        await shared_cache.drop_group(group)
    await _until_heard(second, 3)
    assert first == second == ["a", "b", "a"]
    assert shared_cache.listening_since == since


async def test_puts_are_no_news(shared_cache: SharedCache) -> None:
    news: list[str] = []
    shared_cache.listen(news.append)
    await _until_listening(shared_cache)
    await shared_cache.put_entries({("group", "a"): b"1"}, LONG)
    await shared_cache.drop_group("end")
    await _until_heard(news, 1)
    assert news == ["end"]


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_names_are_text(shared_cache: SharedCache, text: str) -> None:
    news: list[str] = []
    shared_cache.listen(news.append)
    await _until_listening(shared_cache)
    await shared_cache.put_entries({(text, text): b"1", ("bystander", text): b"2"}, LONG)
    assert await shared_cache.get_entries([(text, text)]) == {(text, text): b"1"}
    await shared_cache.drop_group(text)
    await _until_heard(news, 1)
    assert news == [text]
    assert await shared_cache.get_entries([(text, text), ("bystander", text)]) == {("bystander", text): b"2"}
