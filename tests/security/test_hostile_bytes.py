"""Whatever a store holds: plain JSON data comes out of it or a StoreError, and memory stays bounded."""

from __future__ import annotations

import gzip
import math
import os
import random
import subprocess
import sys
import tracemalloc

import msgpack
import pytest
import zstandard

from engine.adapters.codec import MAX_DECODED_BYTES, Codec
from engine.errors import StoreError

PLAIN, ZSTD, GZIP = b"\x10", b"\x11", b"\x12"
SEED = int(os.environ.get("BATON_TEST_SEED", "20261122"))


def zstd(data, **options):
    return ZSTD + zstandard.ZstdCompressor(**options).compress(data)


def deep(depth, header=b"\x91"):
    return PLAIN + header * depth + b"\x01"


GOOD = Codec().encode({"text": "plan " * 400})
GOOD_GZIP = Codec(compression="gzip").encode({"text": "plan " * 400})
UNSIZED = zstandard.ZstdCompressor().compressobj()

HOSTILE = {
    "nothing": b"",
    "header alone": PLAIN,
    "version 0": b"\x00\xc0",
    "unknown compression": b"\x1f\xc0",
    "extension type": PLAIN + msgpack.packb(msgpack.ExtType(42, b"x")),
    "extension type of ours, too long": PLAIN + msgpack.packb(msgpack.ExtType(1, b"x" * 513)),
    "timestamp": PLAIN + msgpack.packb(msgpack.Timestamp(1)),
    "broken timestamp": PLAIN + b"\xc7\x05\xff12345",
    "bytes": PLAIN + msgpack.packb({"a": b"x"}),
    "key of bytes": PLAIN + msgpack.packb({b"a": 1}),
    "key of int": PLAIN + msgpack.packb({1: 1}),
    "key of list": PLAIN + b"\x81\x90\x01",
    "nan": PLAIN + msgpack.packb([math.nan]),
    "text that is no UTF-8": PLAIN + b"\xa1\xff",
    "reserved byte": PLAIN + b"\xc1",
    "followed by something": PLAIN + b"\x01\x01",
    "nested 200": deep(200),
    "nested 1,020": deep(1020),
    "nested 100,000": deep(100_000),
    "nested maps": deep(1000, b"\x81\xa1a"),
    "list without its items": PLAIN + b"\xdd\xff\xff\xff\xff",
    "map without its items": PLAIN + b"\xdf\xff\xff\xff\xff",
    "text without its bytes": PLAIN + b"\xdb\xff\xff\xff\xff",
    "zstd: no frame": ZSTD + b"not a frame",
    "zstd: cut": GOOD[:-8],
    "zstd: wrong checksum": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    "zstd: followed by something": GOOD + b"x",
    "zstd: two frames": GOOD + GOOD[1:],
    "zstd: no declared size": ZSTD + UNSIZED.compress(b"\xc0") + UNSIZED.flush(),
    "zstd: declares less than it holds": GOOD[:6] + b"\xd8" + GOOD[7:],
    "zstd: declares more than it holds": GOOD[:6] + b"\xda" + GOOD[7:],
    "gzip: no stream": GZIP + b"not a stream",
    "gzip: cut": GOOD_GZIP[:-9],
    "gzip: wrong checksum": GOOD_GZIP[:-8] + bytes([GOOD_GZIP[-8] ^ 1]) + GOOD_GZIP[-7:],
    "gzip: followed by something": GOOD_GZIP + b"x",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_is_refused_as_a_store_fault(data):
    with pytest.raises(StoreError, match="can't be read: ") as caught:
        Codec().decode(data)
    assert caught.value.details["size_bytes"] == len(data)


@pytest.mark.parametrize("header", [b"\x20", b"\x21", b"\xf0"])
def test_says_that_a_newer_version_wrote_it(header):
    with pytest.raises(StoreError, match="newer version of Baton wrote it"):
        Codec().decode(header + GOOD[1:])


@pytest.mark.parametrize("kind", ["zstd", "gzip"])
def test_stops_a_bomb_at_the_top(kind):
    size = 4 * MAX_DECODED_BYTES
    zeros = bytes(size)
    bomb = zstd(zeros) if kind == "zstd" else GZIP + gzip.compress(zeros, 1)
    del zeros
    assert len(bomb) < size / 100
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="more than"):
            Codec().decode(bomb)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < (1_000_000 if kind == "zstd" else 2 * MAX_DECODED_BYTES + 10_000_000)


LENGTH_BOMB = """
import resource, sys
from engine.adapters.codec import Codec
from engine.errors import StoreError
# A thousand lists, each inside the other, each announcing a million items: 8 GB of room if believed.
data = b"\\x10" + b"\\xdd\\x00\\x0f\\x42\\x40" * 1000 + bytes(1_100_000)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    Codec().decode(data)
except StoreError as error:
    sys.exit(3 if "MemoryError" in error.message else 0)
sys.exit(4)
"""


def test_takes_no_room_for_items_that_are_not_there():
    ended = subprocess.run([sys.executable, "-c", LENGTH_BOMB], check=False, timeout=60)
    assert ended.returncode == 0


def plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in {str, int, bool} or (type(value) is float and math.isfinite(value))


def test_random_damage_gives_plain_data_or_a_store_fault():
    chance = random.Random(SEED)
    value = {"steps": [{"id": "a", "n": 2**70, "f": 0.5, "ok": True, "none": None, "text": "plan " * 9}] * 3}
    seeds = [Codec(2000).encode(value), Codec(0).encode(value), Codec(0, "gzip").encode(value)]
    refused = 0
    for _ in range(10_000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        try:
            assert plain(Codec().decode(bytes(data))), (SEED, bytes(data))
        except StoreError:
            refused += 1
    assert 0 < refused < 10_000
