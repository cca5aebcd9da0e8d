"""What goes into a store comes out equal, small, and is refused with its place when it is no JSON."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from enum import StrEnum

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engine.adapters.codec import MAX_DECODED_BYTES, MAX_DEPTH, Codec
from engine.domain.hashing import canonical_json, content_hash
from engine.errors import InvalidInputError

LIMIT = 2**4095 - 1
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-LIMIT, max_value=LIMIT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=30,
)


def types_of(value):
    if isinstance(value, dict):
        return {key: types_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [types_of(item) for item in value]
    return type(value)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
@given(value=JSON, threshold=st.sampled_from([0, 20, 1024]))
def test_round_trip(compression, value, threshold):
    codec = Codec(threshold, compression)
    back = codec.decode(codec.encode(value))
    assert back == value
    assert types_of(back) == types_of(value)


@pytest.mark.parametrize(("compression", "header"), [("zstd", 0x11), ("gzip", 0x12)])
def test_compresses_above_the_threshold_and_reads_whatever_is_set(compression, header):
    value = {"text": "plan " * 400}
    data = Codec(1024, compression).encode(value)
    assert data[0] == header
    assert len(data) < 200
    assert Codec(0, "zstd").decode(data) == Codec(0, "gzip").decode(data) == value


def test_a_body_of_the_threshold_stays_plain_and_one_byte_more_does_not():
    value = "a" * 1021  # three bytes of MessagePack header
    assert Codec(1024).encode(value) == b"\x10" + msgpack.packb(value)
    assert Codec(1024).encode(value + "a")[0] == 0x11


def test_keeps_what_does_not_shrink():
    value = "".join(map(chr, range(0x20, 0x60)))
    assert Codec(0).encode(value) == b"\x10" + msgpack.packb(value)


def test_compressed_bodies_carry_a_checksum_and_their_size():
    parameters = zstandard.get_frame_parameters(Codec(0).encode("plan " * 400)[1:])
    assert parameters.has_checksum
    assert parameters.content_size == 2003


def test_equal_values_have_equal_bytes():
    value = {"text": "plan " * 400}
    assert Codec(0, "gzip").encode(value) == Codec(0, "gzip").encode(dict(value))
    assert Codec(0, "zstd").encode(value) == Codec(0, "zstd").encode(dict(value))


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"a": [1, {"b c": math.nan}]}, "a[1]['b c']", "nan"),
        ([math.inf], "[0]", "inf"),
        ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, "when", "datetime"),
        ({"a": {"b": (1, 2)}}, "a.b", "tuple"),
        ({"a": {1: 2}}, "a", "key 1 of type int"),
        ({"a": b"raw"}, "a", "bytes"),
        ({"a": {1, 2}}, "a", "set"),
        ({"a": Colour.RED}, "a", "Colour"),
        ({"a": [msgpack.ExtType(1, b"\x01")]}, "a[0]", "ExtType"),
        ({"a": "\ud800"}, "a", "surrogate"),
        ({"a": {"\ud800": 1}}, "a", "surrogate"),
        ({"a": 2**4095}, "a", "4095 bits"),
        (math.nan, "", "nan"),
    ],
)
def test_refuses_what_is_not_json_and_says_where(value, path, reason):
    with pytest.raises(InvalidInputError) as caught:
        Codec().encode(value)
    assert caught.value.details["path"] == path
    assert reason in caught.value.message


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_is_bounded():
    assert Codec().decode(Codec().encode(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(InvalidInputError, match="nested deeper than 128") as caught:
        Codec().encode({"a": nested(MAX_DEPTH)})
    assert str(caught.value.details["path"]).startswith("a[0][0]")


def test_an_endless_value_is_refused():
    loop: dict = {}
    loop["me"] = loop
    with pytest.raises(InvalidInputError, match="nested deeper"):
        Codec().encode(loop)


def test_a_value_that_could_not_be_read_again_is_refused():
    with pytest.raises(InvalidInputError) as caught:
        Codec().encode("a" * MAX_DECODED_BYTES)
    assert caught.value.details["limit_bytes"] == MAX_DECODED_BYTES


def test_one_codec_serves_many_threads():
    codec = Codec(0)
    values = [{"n": n, "text": f"step {n} " * 300} for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda value: codec.decode(codec.encode(value)), values)) == values


def test_canonical_json_is_one_text_for_equal_data():
    assert canonical_json({"b": [1.0, 1, None], "a": "é"}) == '{"a":"é","b":[1.0,1,null]}'.encode()
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash(1) != content_hash(1.0)
    # sha256 of "{}", so that hashes stored by one version are those of the next
    assert content_hash({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [math.nan, {"a": object()}, "\ud800", {"a": 1, 2: 3}])
def test_canonical_json_refuses_what_has_no_json(value):
    with pytest.raises(InvalidInputError, match="no JSON form"):
        canonical_json(value)
