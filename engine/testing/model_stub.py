"""A small server that speaks the OpenAI API and answers by a script, so that real clients can be tested offline.

It runs on an event loop in a thread of its own: callers may be synchronous or on any loop, and a caller that blocks
does not stop it. It is written on asyncio's protocols alone, because it must see a client go away while it answers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self, TypedDict, cast

from engine.testing import model_answers, model_wire
from engine.testing.model_answers import ModelAnswer, as_answer

if TYPE_CHECKING:
    from types import TracebackType

    from engine.domain.json import JsonObject, JsonValue

__all__ = ["ModelRequest", "ModelStub"]

_POLL_SECONDS: Final = 0.005
_DEFAULT_DIMENSION: Final = 256
_CHAT: Final = "/v1/chat/completions"
_EMBEDDINGS: Final = "/v1/embeddings"
_MODELS: Final = "/v1/models"


class ModelRequest(TypedDict):
    """A request as it came: header names in lower case, the body parsed."""

    method: str
    path: str
    headers: dict[str, str]
    body: JsonObject


class ModelStub:
    """An OpenAI-compatible server on a free port of 127.0.0.1, for ``async with`` or ``with``.

    A script says what chat requests are answered. Its forms:

    - ``"a text"``: that text;
    - ``{"title": "T"}``: structured output, in the way that the request asks for (see ``ModelStub.json``);
    - ``{"tool": "search", "arguments": {"q": "x"}}``: the use of a tool; ``ModelStub.tools(...)`` of several;
    - ``ModelStub.error(429, retry_after=2)``, ``ModelStub.refusal()``, ``.filtered()``, ``.too_long("...")``,
      ``.cut("...")``, ``.slow(2, "...")``, ``.trickle(2, "...")``, ``.held("...")``,
      ``.costing("...", input_tokens=10, output_tokens=5)``: what their names say, around any of the forms above;
    - a function of the request's body, plain or async, that returns any of these; it must not block;
    - a list of these: one a request, the last one again and again.

    Args:
        script: for every model that ``models`` does not name.
        models: model name to its own script. Without a script, other models are not found.
        embeddings: script of ``/v1/embeddings``: errors and slow answers; None stands for the vectors, which depend
            on the text alone.
        dimension: of a vector when the request does not ask for one.
        api_key: when given, requests with another are answered with 401.
        output_tool: start of the name of the tool by which a client takes structured output; that of pydantic-ai.

    Example:
        ``async with ModelStub([ModelStub.error(503), {"title": "T"}]) as stub: AsyncOpenAI(base_url=stub.base_url)``

    Raises:
        TypeError: a script holds something else.
    """

    json = staticmethod(model_answers.json)
    tools = staticmethod(model_answers.tools)
    error = staticmethod(model_answers.error)
    refusal = staticmethod(model_answers.refusal)
    filtered = staticmethod(model_answers.filtered)
    too_long = staticmethod(model_answers.too_long)
    costing = staticmethod(model_answers.costing)
    slow = staticmethod(model_answers.slow)
    trickle = staticmethod(model_answers.trickle)
    held = staticmethod(model_answers.held)
    cut = staticmethod(model_answers.cut)

    def __init__(
        self,
        script: object = None,
        *,
        models: Mapping[str, object] | None = None,
        embeddings: object = None,
        dimension: int = _DEFAULT_DIMENSION,
        api_key: str | None = None,
        output_tool: str = "final_result",
    ) -> None:
        self.requests: list[ModelRequest] = []
        """Every request so far, in order."""
        self.abandoned = 0
        """How many answers a client did not wait for."""
        self.connections = 0
        """Open connections."""
        self.connections_made = 0
        """All connections so far."""
        self.answering = 0
        """Answers under way."""
        self.most_answering = 0
        """The most of them at one time."""
        self.holding = 0
        """Answers that ``held`` keeps open now."""
        self.output_tool = output_tool
        self.dimension = dimension
        self._scripts = {model: _Script(own) for model, own in (models or {}).items()}
        self._script = None if script is None and models else _Script("Hello." if script is None else script)
        self._embeddings = _Script(embeddings)
        self._api_key = api_key
        self.faults: list[Exception] = []
        """What the script's functions have raised; the end of the block raises the first."""
        self._open: set[_Connection] = set()
        self._held: set[asyncio.Future[None]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._port = 0

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:<port>/v1``."""
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="model-stub")
        self._thread.start()
        self._port = started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections and the port; raises what a script's function has raised, unless the test failed."""
        thread, self._thread = self._thread, None
        if thread and self._loop and self._ending:
            self._loop.call_soon_threadsafe(self._ending.set)
            thread.join()
        if self.faults and error is None:
            raise self.faults[0]

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def release(self) -> None:
        """Let every answer that is held at the moment go on."""

        def let_go() -> None:
            for waiting in self._held:
                waiting.set_result(None)
            self._held.clear()

        if self._loop:
            self._loop.call_soon_threadsafe(let_go)

    async def until(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        """Wait for a condition on the stub: ``await stub.until(lambda: stub.abandoned == 1)``.

        Raises:
            TimeoutError: it did not come true.
        """
        give_up_at = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > give_up_at:
                raise TimeoutError(
                    f"Not so after {seconds} s: {len(self.requests)} requests, {self.answering} being answered, "
                    f"{self.holding} held, {self.abandoned} abandoned, {self.connections} connections"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _serve(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        try:
            server = await self._loop.create_server(lambda: _Connection(self, self._open), "127.0.0.1", 0, backlog=512)
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(server.sockets[0].getsockname()[1])
        await self._ending.wait()
        server.close()
        while self._open:
            for connection in tuple(self._open):
                connection.abort()
            await asyncio.sleep(0)
        await server.wait_closed()

    async def answer_of(self, request: ModelRequest) -> ModelAnswer:
        """Return what a request is answered, as its checks and the script say."""
        refused = self._refused(request)
        if refused is not None:
            return refused
        script = self._embeddings
        if request["path"] == _CHAT:
            script = self._scripts.get(str(request["body"]["model"]), self._script)
        if script is None:
            return model_answers.error(404, message=f"The model `{request['body']['model']}` does not exist.")
        try:
            return await script.next_answer(request["body"])
        except Exception as error:  # noqa: BLE001 - a script's function may raise anything; the stub's end raises it
            self.faults.append(error)
            return model_answers.error(500, message=f"The stub's script failed: {type(error).__name__}: {error}")

    def _refused(self, request: ModelRequest) -> ModelAnswer | None:
        method, path, body = request["method"], request["path"], request["body"]
        if self._api_key is not None and request["headers"].get("authorization") != f"Bearer {self._api_key}":
            return model_answers.error(401)
        if method == "GET" and path == _MODELS:
            known: list[JsonValue] = [{"id": name, "object": "model", "owned_by": "stub"} for name in self._scripts]
            return ModelAnswer(body={"object": "list", "data": known})
        if method != "POST" or path not in (_CHAT, _EMBEDDINGS):
            return model_answers.error(404, message=f"Unknown request URL: {method} {path}.")
        fault = model_wire.request_fault(body) if path == _CHAT else model_wire.embeddings_fault(body)
        return None if fault is None else model_answers.error(400, message=fault)

    async def held_open(self) -> None:
        """Wait for the next ``release``."""
        waiting = asyncio.get_running_loop().create_future()
        self._held.add(waiting)
        self.holding += 1
        try:
            await waiting
        finally:
            self.holding -= 1
            self._held.discard(waiting)


class _Script:
    """The entries of one script and how far it is."""

    def __init__(self, script: object) -> None:
        self._entries = cast("list[object]", script) if isinstance(script, list) else [script]
        if not self._entries:
            raise TypeError("A model's script holds at least one answer")
        for entry in self._entries:
            if not callable(entry):
                as_answer(entry)
        self._count = 0

    async def next_answer(self, body: JsonObject) -> ModelAnswer:
        entry = self._entries[min(self._count, len(self._entries) - 1)]
        self._count += 1
        if callable(entry):
            entry = cast("Callable[[JsonObject], object]", entry)(body)
            if inspect.isawaitable(entry):
                entry = cast("object", await entry)
        return as_answer(entry)


class _Connection(asyncio.Protocol):
    """One client's connection: a request, its answer, the next request."""

    def __init__(self, stub: ModelStub, connections: set[_Connection]) -> None:
        self._stub = stub
        self._connections = connections
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self._stub.connections += 1
        self._stub.connections_made += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._connections.discard(self)
        self._stub.connections -= 1
        if self._answering is not None:
            self._stub.abandoned += 1
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._begin_answer()

    def abort(self) -> None:
        """Close the connection without a further byte; an answer under way ends and does not count as abandoned."""
        answering, self._answering = self._answering, None
        if answering is not None and answering is not asyncio.current_task():
            answering.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _begin_answer(self) -> None:
        head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not end or self._answering is not None:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        if len(rest) < size:
            return
        self._received = bytearray(rest[size:])
        method, target, _ = first.split(" ", 2)
        self._answering = asyncio.create_task(self._answer(method, target.partition("?")[0], headers, rest[:size]))

    async def _answer(self, method: str, path: str, headers: dict[str, str], content: bytes) -> None:
        stub = self._stub
        body = _parsed(content)
        request: ModelRequest = {"method": method, "path": path, "headers": headers, "body": body or {}}
        stub.requests.append(request)
        number = len(stub.requests)
        stub.answering += 1
        stub.most_answering = max(stub.most_answering, stub.answering)
        try:
            if body is None:
                answer = model_answers.error(400, message="We could not parse the JSON body of your request.")
            else:
                answer = await stub.answer_of(request)
            await self._send(answer, self._pieces(request, answer, number, len(content)))
        except Exception as error:  # noqa: BLE001 - an answer that can't be written; the stub's end raises it
            stub.faults.append(error)
            self.abort()
            return
        finally:
            stub.answering -= 1
        self._answering = None
        if headers.get("connection", "").lower() == "close" and self._transport is not None:
            self._transport.close()
        else:
            self._begin_answer()

    def _pieces(self, request: ModelRequest, answer: ModelAnswer, number: int, request_bytes: int) -> list[bytes]:
        """The answer's bytes, in as many writes as it has pieces; the head goes with the first one."""
        body = request["body"]
        if answer.body is not None:
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            kind = "text/html" if isinstance(answer.body, str) else "application/json"
            return _whole(answer, text.encode(), kind, number)
        if request["path"] == _EMBEDDINGS:
            vectors = model_wire.embeddings(body, self._stub.dimension, request_bytes)
            return _whole(answer, json.dumps(vectors).encode(), "application/json", number)
        message = model_wire.composed(
            body, answer, number=number, request_bytes=request_bytes, output_tool=self._stub.output_tool
        )
        if not body.get("stream"):
            return _whole(answer, json.dumps(model_wire.completion(message)).encode(), "application/json", number)
        options = cast("JsonObject", body.get("stream_options") or {})
        events = model_wire.stream_events(message, include_usage=bool(options.get("include_usage")))
        pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        pieces[0] = _head(answer, "text/event-stream", number, "Transfer-Encoding: chunked") + pieces[0]
        pieces[-1] += b"0\r\n\r\n"
        return pieces

    async def _send(self, answer: ModelAnswer, pieces: list[bytes]) -> None:
        transport = self._transport
        if transport is None:
            return  # the client went away before it was answered
        if answer.wait:
            await asyncio.sleep(answer.wait)
        for sent, piece in enumerate(pieces):
            if answer.spread:
                await asyncio.sleep(answer.spread / len(pieces))
            if answer.cut_after == sent:
                self.abort()
                return
            if answer.held_after == sent or (answer.held_after is not None and len(pieces) == 1):
                await self._stub.held_open()
            transport.write(piece)
        if answer.cut_after is not None:
            self.abort()


def _parsed(content: bytes) -> JsonObject | None:
    try:
        body = cast("JsonValue", json.loads(content)) if content else {}
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _whole(answer: ModelAnswer, content: bytes, kind: str, number: int) -> list[bytes]:
    """Head and body in one write; half of the body when it is to be cut."""
    head = _head(answer, kind, number, f"Content-Length: {len(content)}")
    return [head + (content if answer.cut_after is None else content[: len(content) // 2])]


def _head(answer: ModelAnswer, kind: str, number: int, framing: str) -> bytes:
    reason = HTTPStatus(answer.status).phrase if answer.status in HTTPStatus._value2member_map_ else "Unknown"
    lines = [
        f"HTTP/1.1 {answer.status} {reason}",
        f"Content-Type: {kind}",
        framing,
        f"x-request-id: req_stub_{number}",
    ]
    if answer.retry_after is not None:
        lines.append(f"Retry-After: {answer.retry_after}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
