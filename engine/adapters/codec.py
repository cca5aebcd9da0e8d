"""Every stored value is one header byte and a MessagePack body, and nothing in the bytes is trusted.

The high half of the header is the format's version, the low half how the body is compressed. Both
compressions are always readable, so a setting may change under stored data. Reading checks sizes before
memory is taken and lets only plain JSON data out: a store may hold what somebody else wrote.
"""

from __future__ import annotations

import gzip
import math
import re
import threading
import zlib
from itertools import chain
from typing import TYPE_CHECKING, Literal, cast

import msgpack
import zstandard

from engine.errors import InvalidInputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.domain.json import JsonValue

MAX_DECODED_BYTES = 65 * 1024 * 1024
"""Largest body in bytes, uncompressed: 64 MiB for a user's value and one for the record around it."""

MAX_DEPTH = 128
"""Deepest nesting of lists and objects; MessagePack itself ends at 511, pydantic's JSON at 200."""

MAX_VALUES = 10_000_000
"""Most values in one body, so that shared or looped Python objects can't grow without end."""

_VERSION = 1
_PLAIN, _ZSTD, _GZIP = 0, 1, 2
_MAX_WINDOW_BYTES = 8 * 1024 * 1024
_LARGE_INT_TYPE = 1
_MAX_INT_BYTES = 512
_MAX_SEARCHED = 1_000_000
_CONTAINERS = frozenset({dict, list})
_KEY_TYPES = frozenset({str})
_JSON_TYPES = _CONTAINERS | {str, int, float, bool, type(None)}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Codec:
    """JSON data to bytes and back. One instance serves any number of threads.

    Args:
        threshold_bytes: a packed body above this size is compressed, if that makes it smaller.
        compression: what writes use; reads know both.
    """

    def __init__(self, threshold_bytes: int = 1024, compression: Literal["zstd", "gzip"] = "zstd") -> None:
        self._threshold_bytes = threshold_bytes
        self._compression = compression

    def encode(self, value: JsonValue) -> bytes:
        """Return the bytes of ``value``; integers may have up to 4,095 bits.

        Raises:
            InvalidInputError: it is not plain JSON data (``details.path`` says where), is nested too deep
                or too large.
        """
        body = _pack(value)
        if len(body) > MAX_DECODED_BYTES:
            raise InvalidInputError(
                f"The value has {len(body)} bytes packed, at most {MAX_DECODED_BYTES} can be stored. "
                "Keep large data outside and pass a reference to it.",
                {"size_bytes": len(body), "limit_bytes": MAX_DECODED_BYTES},
            )
        if len(body) > self._threshold_bytes:
            if self._compression == "zstd":
                kind, packed = _ZSTD, compress_zstd(body)
            else:
                kind, packed = _GZIP, gzip.compress(body, compresslevel=6, mtime=0)
            if len(packed) < len(body):
                return bytes((_VERSION << 4 | kind,)) + packed
        return bytes((_VERSION << 4 | _PLAIN,)) + body

    def decode(self, data: bytes) -> JsonValue:
        """Return the value that ``encode`` was given.

        Raises:
            StoreError: the bytes are cut, damaged, too large, hostile, or of a newer version of Baton.
        """
        try:
            value = _unpack(_body_of(data))
        except (ValueError, OverflowError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise StoreError(
                f"A stored value can't be read: {reason}. Restore it from a backup, or delete it.",
                {"reason": reason, "size_bytes": len(data)},
            ) from error
        return value


def compress_zstd(data: bytes) -> bytes:
    """Return one zstd frame with its size declared and a checksum."""
    return _CONTEXTS.compressor.compress(data)


def declared_zstd_bytes(frame: bytes) -> int:
    """Return the decompressed size in bytes that ``frame`` declares.

    Raises:
        ValueError: it is no zstd frame, declares no size, or one above ``MAX_DECODED_BYTES``.
    """
    try:
        size = zstandard.get_frame_parameters(frame).content_size
    except zstandard.ZstdError as error:
        raise ValueError(f"no zstd frame ({error})") from error
    if size == zstandard.CONTENTSIZE_UNKNOWN:
        raise ValueError("the zstd frame declares no size")
    if size > MAX_DECODED_BYTES:
        raise ValueError(f"it declares {size} bytes, more than the {MAX_DECODED_BYTES} allowed")
    return size


def decompress_zstd(frame: bytes) -> bytes:
    """Return what ``compress_zstd`` was given.

    Raises:
        ValueError: the frame is damaged, followed by something else, or too large by its own word.
    """
    declared_zstd_bytes(frame)
    try:
        return _CONTEXTS.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged zstd frame ({error})") from error


# msgpack ships no types: these two are all that is used of it.
_packb = cast("Callable[..., bytes]", msgpack.packb)
_unpackb = cast("Callable[..., object]", msgpack.unpackb)


class _Contexts(threading.local):
    """zstd's contexts cost more to make than to use, and one serves one thread at a time."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)


_CONTEXTS = _Contexts()


def _body_of(data: bytes) -> bytes:
    if not data:
        raise ValueError("it is empty")
    version, kind = data[0] >> 4, data[0] & 0x0F
    if version > _VERSION:
        raise ValueError(
            f"a newer version of Baton wrote it (format {version}, this one knows {_VERSION}); upgrade Baton"
        )
    if version != _VERSION or kind > _GZIP:
        raise ValueError(f"unknown header {data[0]:#04x}")
    body = data[1:]
    if kind == _ZSTD:
        return decompress_zstd(body)
    if kind == _GZIP:
        return _gunzip(body)
    if len(body) > MAX_DECODED_BYTES:
        raise ValueError(f"it has {len(body)} bytes, more than the {MAX_DECODED_BYTES} allowed")
    return body


def _gunzip(data: bytes) -> bytes:
    # gzip's declared size is modulo 4 GiB and so proves nothing: the output itself is bounded.
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        body = stream.decompress(data, MAX_DECODED_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"damaged gzip stream ({error})") from error
    if len(body) > MAX_DECODED_BYTES:
        raise ValueError(f"it unpacks to more than the {MAX_DECODED_BYTES} bytes allowed")
    if not stream.eof or stream.unused_data:
        raise ValueError("the gzip stream is cut or followed by something else")
    return body


def _pack(value: JsonValue) -> bytes:
    if _is_plain(value):
        try:
            return _packb(value, default=_pack_large_int, strict_types=True)
        except (ValueError, TypeError, OverflowError) as error:
            raise _refusal(value) from error
    raise _refusal(value)


def _unpack(body: bytes) -> JsonValue:
    value = _unpackb(body, ext_hook=_unpack_large_int)
    if not _is_plain(value):
        raise ValueError("it holds something other than JSON data, or too much of it")
    return cast("JsonValue", value)


def _pack_large_int(value: object) -> msgpack.ExtType:
    if not isinstance(value, int) or value.bit_length() >= 8 * _MAX_INT_BYTES:
        raise TypeError(f"{type(value).__name__} can't be packed")
    size = value.bit_length() // 8 + 1
    return msgpack.ExtType(_LARGE_INT_TYPE, value.to_bytes(size, "big", signed=True))


def _unpack_large_int(code: int, data: bytes) -> int:
    if code != _LARGE_INT_TYPE or len(data) > _MAX_INT_BYTES:
        raise ValueError(f"unknown extension type {code}")
    return int.from_bytes(data, "big", signed=True)


def _is_plain(value: object) -> bool:
    """Say whether ``value`` is JSON data within the bounds.

    Level by level, with whole levels handed to the interpreter's own loops: a loop over single values
    costs more than packing them does.
    """
    level: list[object] = [value]
    seen = 0
    for _ in range(MAX_DEPTH + 1):
        kinds = set(map(type, level))
        if not kinds <= _JSON_TYPES:
            return False
        if float in kinds and not all(map(math.isfinite, [item for item in level if type(item) is float])):
            return False
        if kinds.isdisjoint(_CONTAINERS):
            return True
        below: list[object] = []
        if dict in kinds:
            for mapping in cast("list[dict[object, object]]", [item for item in level if type(item) is dict]):
                if not set(map(type, mapping)) <= _KEY_TYPES:
                    return False
                below += mapping.values()
        if list in kinds:
            below += chain.from_iterable(cast("list[list[object]]", [item for item in level if type(item) is list]))
        seen += len(below)
        if seen > MAX_VALUES:
            return False
        level = below
    return False


def _refusal(value: object) -> InvalidInputError:
    path, reason = _find_fault(value) or ("", f"holds more than {MAX_VALUES} values, or one that is none")
    place = path or "the value"
    return InvalidInputError(f"Only JSON data can be stored: {place} {reason}.", {"path": path, "reason": reason})


def _find_fault(value: object) -> tuple[str, str] | None:
    """Return the path of the first value that can't be stored and what is wrong with it."""
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    for _ in range(_MAX_SEARCHED):
        if not waiting:
            return None
        path, item, depth = waiting.pop()
        fault = _fault_of(item)
        if fault is None and isinstance(item, dict | list) and depth == MAX_DEPTH:
            fault = f"is nested deeper than {MAX_DEPTH} lists and objects; flatten it"
        if fault is not None:
            return path, fault
        if isinstance(item, dict):
            mapping = cast("dict[str, object]", item)
            children = [(_below(path, key), child, depth + 1) for key, child in mapping.items()]
        elif isinstance(item, list):
            items = cast("list[object]", item)
            children = [(f"{path}[{index}]", child, depth + 1) for index, child in enumerate(items)]
        else:
            continue
        waiting.extend(reversed(children))
    return None


def _below(path: str, key: str) -> str:
    if _BARE_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{key[:64]!r}]"


def _fault_of(item: object) -> str | None:
    kind = type(item)
    fault: str | None = None
    if isinstance(item, float) and not math.isfinite(item):
        fault = f"is {item}; use null or a text instead"
    elif kind is int and cast("int", item).bit_length() >= 8 * _MAX_INT_BYTES:
        fault = f"is an integer of more than {8 * _MAX_INT_BYTES - 1} bits; write it as a text"
    elif kind is str:
        fault = _fault_of_text(cast("str", item), "is")
    elif kind is dict:
        for key in cast("dict[object, object]", item):
            if type(key) is not str:
                return f"has the key {key!r:.80} of type {type(key).__name__}; keys are texts"
            fault = fault or _fault_of_text(key, "has a key that is")
    elif kind not in _JSON_TYPES:
        fault = f"is of type {kind.__name__}; convert it to text, a number, a list or an object"
    return fault


def _fault_of_text(text: str, verb: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{verb} a text with half a surrogate pair, which is no Unicode; repair or remove it"
    return None
