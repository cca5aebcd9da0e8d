"""Writes of step records, fenced by their filters and gathered: one command for all that come together.

Each record is an upsert that matches what it may replace. What it may not replace it does not match, so that it tries
to insert and meets the ``_id`` that is there: that error of its own is the refusal, and the others of the command are
written. Two first writes may meet in the same way; so who was refused looks at what stands, and only a greater token
is a reason to give up. A command that was done and not acknowledged changes nothing when it is sent again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from pymongo import ReplaceOne, errors

from engine.adapters.batching import Batches, BatchFailure
from engine.adapters.mongodb.execution_documents import enter_run, execution_key
from engine.adapters.mongodb.schema import TENANT, Document, key, keys_below
from engine.adapters.packing import instant_text, pack
from engine.adapters.standing import is_agent_call
from engine.domain.execution import StepStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pymongo import UpdateOne

    from engine.adapters.codec import Codec
    from engine.adapters.mongodb.connection import MongoDatabase
    from engine.domain.execution import StepRecord

__all__ = ["DUPLICATE_KEY", "StepWrite", "StepWrites", "step_document", "step_key", "steps_range", "write_errors"]

DUPLICATE_KEY: Final = 11000
_PAUSE_SECONDS: Final = 0.002

Address = tuple[str, str, str, int | None, int]
"""Execution, run, step, item, n."""
_NO_ITEM: Final = -1


@dataclass(frozen=True, slots=True)
class StepWrite:
    """Step records of one execution to be written, each over what its guard matches.

    Args:
        documents: no two of one ``_id``.
        entering: (execution, run, start of the run) that has the execution from then on.
        over: the body that the only document must replace, None for none; without it the fence is the guard.
        is_swap: whether ``over`` counts.
    """

    documents: list[Document]
    entering: tuple[str, str, str] | None = None
    over: bytes | None = None
    is_swap: bool = False

    def operation(self, document: Document) -> ReplaceOne[Document]:
        """Return the write of one of the documents."""
        guard: Document = {"token": {"$lte": document["token"]}}
        if self.is_swap:
            # No record is without a body.
            guard = {"body": self.over}
        return ReplaceOne({"_id": document["_id"], **guard}, document, upsert=True)


@dataclass(slots=True)
class _Progress:
    """Where one write of a batch stands."""

    write: StepWrite
    left: list[int]
    standing: list[Document | None]
    failure: BatchFailure | None = None


@dataclass(slots=True)
class _Round:
    """One command: its operations, and whose each of them is."""

    operations: list[ReplaceOne[Document] | UpdateOne] = field(default_factory=list["ReplaceOne[Document] | UpdateOne"])
    owners: list[tuple[_Progress, int | None]] = field(default_factory=list["tuple[_Progress, int | None]"])


class StepWrites:
    """Gathers the writes of steps to one database."""

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._batches = Batches[StepWrite, "list[Document | None]"](self._write_all, database.batch_size)
        database.before_close(self._batches.aclose)

    async def write(self, write: StepWrite) -> list[Document | None]:
        """Write the records; return for each what stands in its place, None when it was written.

        Raises:
            StoreError: some may have been written.
        """
        size_bytes = sum(len(cast("bytes", document["body"])) for document in write.documents)
        return await self._batches.add(write, size_bytes)

    async def _write_all(self, writes: Sequence[StepWrite]) -> list[list[Document | None] | BatchFailure]:
        under_way = [
            _Progress(write, list(range(len(write.documents))), [None] * len(write.documents)) for write in writes
        ]

        async def write_until_settled() -> None:
            entering = {write.entering: None for write in writes if write.entering is not None}
            while todo := [progress for progress in under_way if progress.left and progress.failure is None]:
                await self._write_round(todo, list(entering))
                entering = {}

        await self._database.run(write_until_settled)
        return [progress.failure or progress.standing for progress in under_way]

    async def _write_round(self, todo: list[_Progress], entering: list[tuple[str, str, str]]) -> None:
        """Send one command with all that is left; keep in ``left`` what has to be tried again."""
        command = _Round()
        for run in entering:
            owner = next(progress for progress in todo if progress.write.entering == run)
            command.operations.append(enter_run(*run))
            command.owners.append((owner, None))
        for progress in todo:
            for place in progress.left:
                command.operations.append(progress.write.operation(progress.write.documents[place]))
                command.owners.append((progress, place))
            progress.left = []
        contested: list[tuple[_Progress, int]] = []
        try:
            await self._database.collection("executions").bulk_write(command.operations, ordered=False)
        except errors.BulkWriteError as error:
            for index, code, text in write_errors(error):
                progress, place = command.owners[index]
                if code == DUPLICATE_KEY and place is not None:
                    contested.append((progress, place))
                else:
                    # Its own, and nobody else's of this command.
                    cause = errors.WriteError(text, code)
                    failure = self._database.failures.explain(cause)
                    progress.failure = BatchFailure(failure or cause)
        if contested:
            await self._look_at_what_stands(contested)

    async def _look_at_what_stands(self, contested: list[tuple[_Progress, int]]) -> None:
        keys = [progress.write.documents[place]["_id"] for progress, place in contested]
        found = await self._database.collection("executions").find({"_id": {"$in": keys}}).to_list(None)
        stored = {document["_id"]: document for document in found}
        is_racing = False
        for progress, place in contested:
            document = progress.write.documents[place]
            standing = stored.get(document["_id"])
            if standing is not None and (progress.write.is_swap or _token(standing) > _token(document)):
                progress.standing[place] = standing
            else:
                # Another first write came in between, or what refused this one has no majority yet.
                progress.left.append(place)
                is_racing = True
        if is_racing:
            await asyncio.sleep(_PAUSE_SECONDS)


def step_key(address: Address) -> str:
    """Return the ``_id`` of the step record at an address."""
    execution_id, run_id, step_id, item, n = address
    return key("step", execution_id, run_id, step_id, _NO_ITEM if item is None else item, n)


def steps_range(execution_id: str) -> Document:
    """Return the filter that finds all step records of an execution by their ``_id``."""
    return {"_id": keys_below("step", execution_id)}


def step_document(codec: Codec, step: StepRecord, *, is_fallback: bool) -> Document:
    """Return the document of a step record."""
    usage = step.usage
    started_at = None if step.started_at is None else instant_text(step.started_at)
    duration = None
    if step.status is StepStatus.COMPLETED and step.started_at is not None and step.completed_at is not None:
        duration = (step.completed_at - step.started_at).total_seconds()
    # What calls no agent, or was called by another execution, is not measured.
    is_measured = is_agent_call(step)
    retries, fallbacks = (max(step.attempts - 1, 0), int(is_fallback)) if is_measured else (0, 0)
    document: Document = {
        "_id": step_key((step.execution_id, step.run_id, step.step_id, step.item, step.n)),
        "kind": "step",
        "tenant": TENANT,
        "token": step.token,
        "status": step.status.value,
        "agent_id": step.agent_id if is_measured else None,
        "duration": duration,
        "retries": retries,
        "fallbacks": fallbacks,
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "tool_calls": usage.tool_calls,
        "cost_usd": usage.cost_usd,
        "body": pack(codec, step),
    }
    if step.item is not None:
        document["item"] = step.item
    if is_measured and step.agent_id is not None and started_at is not None:
        document |= {"called_agent_id": step.agent_id, "started_at": started_at, "started_on": started_at[:10]}
    if retries or fallbacks:
        # One that never started counts whenever it is asked for.
        document |= {
            "is_repeated": True,
            "counted_at": started_at or "~",
            "execution": execution_key(step.execution_id),
        }
    return document


def write_errors(error: errors.BulkWriteError) -> list[tuple[int, int, str]]:
    """Return ``(index of the operation, code, text)`` of the writes that failed.

    Raises:
        WriteConcernError: the writes were made, and a majority did not confirm them.
    """
    details = cast("Mapping[str, Sequence[Mapping[str, object]]]", error.details)
    for unconfirmed in details.get("writeConcernErrors", []):
        raise errors.WriteConcernError(str(unconfirmed.get("errmsg")), cast("int | None", unconfirmed.get("code")))
    return [
        (cast("int", failed["index"]), cast("int", failed["code"]), str(failed.get("errmsg")))
        for failed in details.get("writeErrors", [])
    ]


def _token(document: Document) -> int:
    return cast("int", document["token"])
