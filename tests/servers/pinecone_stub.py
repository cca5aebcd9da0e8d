"""A stub of Pinecone: the vector API of its data plane, the description of an index, and its models for texts.

It is written to what the real SDK sends and reads. The index ``INDEX`` answers under the address itself, and every
other one under ``/<its name>``. ``/_control`` makes requests fail, wait or break off, counts them, and makes indexes.
As a program it prints its address, serves, and forgets everything when it or its parent ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import mul
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from engine.adapters.hashing_embedder import HashingEmbedder

API_KEY = "the-key-of-the-stub"
INDEX = "baton-test"
DIMENSION = 512
MAX_REQUEST_BYTES = 2 * 1024 * 1024
MAX_VECTORS = 1000
MAX_TEXTS = 96
MODELS = {"multilingual-e5-large": 1024, "llama-text-embed-v2": 1024, "of-another-kind": 0}

_DATA_ROUTES = ("vectors", "query", "describe_index_stats", "namespaces")
_CONTROL_ROUTES = ("indexes", "embed")
_DEFAULT_NAMESPACE = "__default__"


class _RefusedError(Exception):
    """An answer that is an error, in Pinecone's words."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "details": []}


@dataclass
class _Vector:
    values: list[float]
    metadata: dict[str, Any] | None


@dataclass
class _Index:
    name: str
    dimension: int = DIMENSION
    metric: str = "cosine"
    namespaces: dict[str, dict[str, _Vector]] = field(default_factory=dict)


@dataclass
class _Faults:
    """What happens to the next requests: ``times`` of them, or all when None."""

    fail: int | None = None
    delay: float = 0
    cut: bool = False
    times: int | None = 0
    retry_after: float | None = None


@dataclass
class _State:
    indexes: dict[str, _Index] = field(default_factory=lambda: {INDEX: _Index(INDEX)})
    faults: _Faults = field(default_factory=_Faults)
    requests: Counter[str] = field(default_factory=Counter)
    largest_bytes: int = 0
    largest_batch: int = 0
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> _Faults:
        with self.lock:
            faults = self.faults
            if faults.times is None:
                return faults
            if faults.times == 0:
                return _Faults()
            faults.times -= 1
            return faults


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    state: _State
    is_counted = False

    def finish(self) -> None:
        with self.state.lock:
            self.state.connections -= self.is_counted
        super().finish()

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(size)
        body = json.loads(content) if content else {}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "_control":
            self._send(200, _control(self.state, method, parts, body))
            return
        fault = self.state.next_fault()
        with self.state.lock:
            self.state.connections += not self.is_counted
            self.is_counted = True
            self.state.requests[f"{method} {_route(parts)}"] += 1
        if fault.delay:
            time.sleep(fault.delay)
        if fault.cut:
            self._cut()
            return
        if fault.fail:
            self._send(fault.fail, {"code": 14, "message": "forced by the test"}, fault.retry_after)
            return
        try:
            if self.headers.get("Api-Key") != API_KEY:
                raise _RefusedError(401, 16, "Invalid API Key")
            with self.state.lock:
                answer = _answer(self.state, self._address(), method, parts, body, parse_qs(url.query), size)
        except _RefusedError as error:
            self._send(error.status, error.body)
        else:
            self._send(200, answer)

    def _address(self) -> str:
        return "http://{}:{}".format(*self.server.server_address[:2])

    def _send(self, status: int, body: object, retry_after: float | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)
            self.wfile.flush()

    def _cut(self) -> None:
        """Reset the connection in the middle of the answer."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _route(parts: list[str]) -> str:
    """The request without an index's name, so that counts are by kind."""
    if parts[0] not in (*_DATA_ROUTES, *_CONTROL_ROUTES):
        parts = parts[1:]
    return "/" + "/".join(parts[:1] if parts[:1] == ["indexes"] else parts)


def _control(state: _State, method: str, parts: list[str], body: dict[str, Any]) -> object:
    with state.lock:
        if parts[1:] == ["indexes"]:
            state.indexes[body["name"]] = _Index(**body)
        elif parts[1:] == ["counts"] and method == "POST":
            state.requests.clear()
            state.largest_bytes = state.largest_batch = 0
        elif method == "POST":
            state.faults = _Faults(**body)
        return {
            "requests": dict(state.requests),
            "largest_bytes": state.largest_bytes,
            "largest_batch": state.largest_batch,
            "connections": state.connections,
        }


def _answer(
    state: _State,
    address: str,
    method: str,
    parts: list[str],
    body: dict[str, Any],
    query: dict[str, list[str]],
    size: int,
) -> object:
    if parts[0] == "indexes" and len(parts) == 2:
        return _describe_index(state, address, parts[1])
    if parts == ["embed"]:
        state.largest_batch = max(state.largest_batch, len(body["inputs"]))
        return _embed(body)
    name = INDEX
    if parts[0] not in _DATA_ROUTES:
        name, *parts = parts
    index = state.indexes.get(name)
    if index is None:
        raise _RefusedError(404, 5, f"Index {name} not found")
    match (method, parts):
        case "POST", ["vectors", "upsert"]:
            state.largest_bytes = max(state.largest_bytes, size)
            state.largest_batch = max(state.largest_batch, len(body["vectors"]))
            return _upsert(index, body, size)
        case "POST", ["query"]:
            return _query(index, body)
        case "POST", ["vectors", "delete"]:
            return _delete(index, body)
        case "POST", ["vectors", "update"]:
            return _update(index, body)
        case "POST", ["describe_index_stats"]:
            return _stats(index)
        case "GET", ["vectors", "fetch"]:
            return _fetch(index, query)
        case "GET", ["vectors", "list"]:
            return _list(index, query)
        case "GET", ["namespaces"]:
            found = [_namespace(index, name) for name in sorted(index.namespaces)]
            return {"namespaces": found, "pagination": None, "total_count": len(found)}
        case "GET", ["namespaces", namespace]:
            return _namespace(index, namespace)
    raise _RefusedError(404, 5, f"{method} /{'/'.join(parts)} not found")


def _describe_index(state: _State, address: str, name: str) -> object:
    index = state.indexes.get(name)
    if index is None:
        message = f"Resource {name} not found"
        raise _RefusedError(404, 5, message)
    vectors = {"type": "dense_vector", "dimension": index.dimension, "metric": index.metric}
    return {
        "name": name,
        "host": address if name == INDEX else f"{address}/{name}",
        "status": {"ready": True, "state": "Ready"},
        "schema": {"fields": {"values": vectors}},
        "deployment": {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"},
        "deletion_protection": "disabled",
        "tags": None,
        "dimension": index.dimension,
        "metric": index.metric,
    }


def _embed(body: dict[str, Any]) -> object:
    parameters, texts = body.get("parameters") or {}, [one["text"] for one in body["inputs"]]
    if body["model"] not in MODELS:
        raise _RefusedError(404, 5, f"Model {body['model']} not found")
    if parameters.get("input_type") not in ("passage", "query"):
        raise _RefusedError(400, 3, "input_type must be passage or query")
    if not 1 <= len(texts) <= MAX_TEXTS or not all(text.strip() for text in texts):
        raise _RefusedError(400, 3, f"1 to {MAX_TEXTS} texts that are not empty")
    if not MODELS[body["model"]]:
        sparse = {"vector_type": "sparse", "sparse_values": [1.0], "sparse_indices": [1]}
        return {"model": body["model"], "vector_type": "sparse", "data": [sparse], "usage": {"total_tokens": 1}}
    dimension = parameters.get("dimension", MODELS[body["model"]])
    made = asyncio.run(HashingEmbedder().embed_texts(texts, "document"))
    # The model sees a difference between passages and queries, and gives no unit lengths.
    mark = 0.1 if parameters["input_type"] == "query" else 0.0
    data = [[3 * value for value in (*values, mark, *[0.0] * dimension)][:dimension] for values in made]
    entries = [{"values": values, "vector_type": "dense"} for values in data]
    return {"model": body["model"], "vector_type": "dense", "data": entries, "usage": {"total_tokens": len(texts)}}


def _space(index: _Index, name: str | None) -> dict[str, _Vector]:
    return index.namespaces.get(name or _DEFAULT_NAMESPACE, {})


def _check_values(index: _Index, values: list[float]) -> None:
    if len(values) != index.dimension:
        raise _RefusedError(
            400, 3, f"Vector dimension {len(values)} does not match the dimension of the index {index.dimension}"
        )


def _upsert(index: _Index, body: dict[str, Any], size: int) -> object:
    if size > MAX_REQUEST_BYTES:
        raise _RefusedError(400, 11, f"message length too large: found {size} bytes, the limit is: 2097152 bytes")
    if len(body["vectors"]) > MAX_VECTORS:
        raise _RefusedError(400, 3, "The number of vectors is too large")
    for vector in body["vectors"]:
        if not (vector["id"].isascii() and 0 < len(vector["id"]) <= 512):
            raise _RefusedError(400, 3, "Vector ID must be ASCII of 1 to 512 characters")
        _check_values(index, vector["values"])
        if not any(vector["values"]):
            raise _RefusedError(400, 3, "Dense vectors must contain at least one non-zero value.")
    space = index.namespaces.setdefault(body.get("namespace") or _DEFAULT_NAMESPACE, {})
    for vector in body["vectors"]:
        space[vector["id"]] = _Vector(vector["values"], vector.get("metadata"))
    return {"upsertedCount": len(body["vectors"])}


def _query(index: _Index, body: dict[str, Any]) -> object:
    if not 1 <= body["topK"] <= 10_000:
        raise _RefusedError(400, 3, "topK must be between 1 and 10000")
    space = _space(index, body.get("namespace"))
    values = space[body["id"]].values if "id" in body else body["vector"]
    _check_values(index, values)
    matches = []
    for item_id, vector in space.items():
        if not _passes(vector.metadata or {}, body.get("filter") or {}):
            continue
        match = {"id": item_id, "score": _cosine(values, vector.values), "values": []}
        if body.get("includeValues"):
            match["values"] = vector.values
        if body.get("includeMetadata") and vector.metadata is not None:
            match["metadata"] = vector.metadata
        matches.append(match)
    matches.sort(key=lambda match: -match["score"])
    return {
        "matches": matches[: body["topK"]],
        "namespace": body.get("namespace") or "",
        "usage": {"readUnits": 1},
    }


def _cosine(left: list[float], right: list[float]) -> float:
    lengths = math.hypot(*left) * math.hypot(*right)
    return sum(map(mul, left, right)) / lengths if lengths else 0.0


def _passes(metadata: dict[str, Any], condition: dict[str, Any]) -> bool:
    for key, wanted in condition.items():
        if key == "$and":
            passes = all(_passes(metadata, part) for part in wanted)
        elif key == "$or":
            passes = any(_passes(metadata, part) for part in wanted)
        elif key.startswith("$"):
            raise _RefusedError(400, 3, f"{key} is not a valid operator")
        else:
            tests = wanted if isinstance(wanted, dict) else {"$eq": wanted}
            passes = all(_compare(metadata.get(key), operator, value) for operator, value in tests.items())
        if not passes:
            return False
    return True


def _compare(found: object, operator: str, value: Any) -> bool:
    has = found if isinstance(found, list) else [found]
    match operator:
        case "$eq":
            return value in has
        case "$ne":
            return value not in has
        case "$in":
            return any(one in value for one in has)
        case "$nin":
            return not any(one in value for one in has)
        case "$exists":
            return (found is not None) == value
    raise _RefusedError(400, 3, f"{operator} is not a valid operator")


def _delete(index: _Index, body: dict[str, Any]) -> object:
    name = body.get("namespace") or _DEFAULT_NAMESPACE
    if name not in index.namespaces:
        raise _RefusedError(404, 5, "Namespace not found")
    space = index.namespaces[name]
    if len(body.get("ids") or []) > MAX_VECTORS:
        raise _RefusedError(400, 3, "The number of ids is too large")
    for item_id in body.get("ids") or []:
        space.pop(item_id, None)
    if body.get("filter"):
        for item_id in [key for key, vector in space.items() if _passes(vector.metadata or {}, body["filter"])]:
            del space[item_id]
    if body.get("deleteAll") or not space:
        del index.namespaces[name]
    return {}


def _update(index: _Index, body: dict[str, Any]) -> object:
    vector = _space(index, body.get("namespace")).get(body["id"])
    if vector is None:
        return {}
    if "values" in body:
        _check_values(index, body["values"])
        vector.values = body["values"]
    if "setMetadata" in body:
        vector.metadata = {**(vector.metadata or {}), **body["setMetadata"]}
    return {}


def _stats(index: _Index) -> object:
    counts = {name: {"vectorCount": len(space)} for name, space in index.namespaces.items()}
    return {
        "namespaces": counts,
        "dimension": index.dimension,
        "indexFullness": 0,
        "totalVectorCount": sum(count["vectorCount"] for count in counts.values()),
        "metric": index.metric,
        "vectorType": "dense",
    }


def _fetch(index: _Index, query: dict[str, list[str]]) -> object:
    name = query.get("namespace", [""])[0]
    space = _space(index, name)
    found = {key: space[key] for key in query.get("ids", []) if key in space}
    vectors = {key: {"id": key, "values": one.values, "metadata": one.metadata} for key, one in found.items()}
    return {"vectors": vectors, "namespace": name, "usage": {"readUnits": 1}}


def _list(index: _Index, query: dict[str, list[str]]) -> object:
    name = query.get("namespace", [""])[0]
    prefix = query.get("prefix", [""])[0]
    behind = query.get("paginationToken", [""])[0]
    limit = int(query.get("limit", ["100"])[0])
    found = [key for key in sorted(_space(index, name)) if key.startswith(prefix) and key > behind]
    page = {"vectors": [{"id": key} for key in found[:limit]], "namespace": name, "usage": {"readUnits": 1}}
    if len(found) > limit:
        page["pagination"] = {"next": found[limit - 1]}
    return page


def _namespace(index: _Index, name: str) -> object:
    if name not in index.namespaces:
        raise _RefusedError(404, 5, "Namespace not found")
    return {"name": name, "record_count": str(len(index.namespaces[name]))}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": _State()})) as server:
        print("http://{}:{}".format(*server.server_address[:2]), flush=True)
        server.serve_forever()
