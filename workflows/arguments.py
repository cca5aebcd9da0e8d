"""A run's arguments, parsed without raising on what a user sent.

An exception in ``@workflow.init`` fails the workflow task and is retried for ever, so bad arguments become a value
that ``run`` fails with. Only what a right worker could still handle raises: an envelope of a newer interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from engine.domain.json import JsonValue
    from engine.domain.messages import StartEnvelope
    from workflows.versions import INTERPRETER_VERSION

_MAX_SHARED_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class RunArguments:
    """What a run was started with."""

    input: JsonValue
    envelope: StartEnvelope | None

    @property
    def interpreter_version(self) -> int:
        """The version of behaviour that this run follows."""
        return self.envelope.interpreter_version if self.envelope else INTERPRETER_VERSION


@dataclass(frozen=True, slots=True)
class InvalidArguments:
    """Why the arguments can't be used."""

    message: str


class NewerInterpreterError(Exception):
    """A newer worker started this run; its task waits for a worker of that release."""


def parse_arguments(args: Sequence[RawValue]) -> RunArguments | InvalidArguments:
    """Read ``[input]`` or ``[input, envelope]``.

    Raises:
        NewerInterpreterError: the envelope's version is greater than this worker's.
    """
    converter = workflow.payload_converter()
    try:
        execution_input: JsonValue = converter.from_payload(args[0].payload) if args else {}
    except Exception as error:  # noqa: BLE001 - whatever a foreign payload does, the run must fail and not its task
        return InvalidArguments(f"The input is not JSON: {error}")
    envelope: StartEnvelope | None = None
    if len(args) > 1:
        try:
            envelope = _envelope(args[1].payload)
        except (ValidationError, ValueError, RuntimeError) as error:
            _require_known_version(converter.from_payload(args[1].payload))
            return InvalidArguments(f"The second argument is no start envelope; start with the input alone: {error}")
        _require_known_version({"interpreter_version": envelope.interpreter_version})
    if envelope is not None and envelope.input_ref is not None:
        return RunArguments(None, envelope)
    if execution_input is None:
        execution_input = {}
    if not isinstance(execution_input, dict):
        return InvalidArguments('The input must be a JSON object, such as {"topic": "..."}')
    return RunArguments(execution_input, envelope)


def _envelope(payload: Payload) -> StartEnvelope:
    """Executions of one workflow begin with the same bytes, so that a hundred at once may share what is in them."""
    if payload.metadata.get("encoding") == b"json/plain" and len(payload.data) <= _MAX_SHARED_BYTES:
        return _parsed(payload.data)
    return workflow.payload_converter().from_payload(payload, StartEnvelope)


@functools.lru_cache(maxsize=64)
def _parsed(data: bytes) -> StartEnvelope:
    return StartEnvelope.model_validate_json(data)


def _require_known_version(envelope: object) -> None:
    match envelope:
        case {"interpreter_version": int(version)} if version > INTERPRETER_VERSION:
            raise NewerInterpreterError(
                f"This run needs interpreter version {version}; this worker has {INTERPRETER_VERSION}"
            )
        case _:
            pass
