"""Execution records as documents: what a step's write changes stands in fields, which count more than the body.

So a step's write starts, takes over or reopens its execution without unpacking an input that may be large. A body that
has ended under a status that has not is a reopened record: its end is left out when it is read. Everything else is
read, decided here, and written with a filter on all that was read, so that who comes in between is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, cast

from pymongo import ReplaceOne, UpdateOne

from engine.adapters.mongodb.schema import BEHIND_ALL, TENANT, Document, key, position
from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.standing import HELD, outranks, reopened, with_beginning
from engine.domain.execution import ExecutionRecord, ExecutionStatus

if TYPE_CHECKING:
    from engine.adapters.codec import Codec
    from engine.domain.page import Position
    from engine.ports.execution_store import ExecutionFilter

__all__ = [
    "EndWrite",
    "Query",
    "as_read",
    "end_write",
    "enter_run",
    "execution_document",
    "execution_key",
    "list_query",
    "read_execution",
]

_READ_FIELDS: Final = ("body", "status", "started_at", "run_id", "run_started_at", "history_length")
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Query:
    """A page of a list: its filter, and the index that has its order."""

    filter: Document
    index: str


@dataclass(frozen=True, slots=True)
class EndWrite:
    """What stands after an execution's end, and the write that makes it so; None when it stands already."""

    standing: ExecutionRecord
    operation: ReplaceOne[Document] | None = None
    document: Document | None = None
    """What the operation writes."""


def execution_key(execution_id: str) -> str:
    """Return the ``_id`` of an execution."""
    return key("execution", execution_id)


def execution_document(codec: Codec, record: ExecutionRecord) -> Document:
    """Return the document of a record."""
    usage = record.usage
    created_at = instant_text(record.created_at)
    duration = None
    if record.status is ExecutionStatus.COMPLETED and record.started_at is not None and record.completed_at is not None:
        duration = (record.completed_at - record.started_at).total_seconds()
    document: Document = {
        "_id": execution_key(record.execution_id),
        "kind": "execution",
        "tenant": TENANT,
        "position": position((created_at, record.execution_id)),
        "created_on": created_at[:10],
        "definition_id": record.definition_id,
        "status": record.status.value,
        "is_open": not record.status.is_terminal,
        "started_at": _text(record.started_at),
        "run_id": record.run_id,
        "run_started_at": _text(record.run_started_at),
        "entered_at": _entered_at(record),
        "history_length": record.history_length,
        "duration": duration,
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "tool_calls": usage.tool_calls,
        "cost_usd": usage.cost_usd,
        "body": pack(codec, record),
    }
    if record.options.tags:
        document["tags"] = record.options.tags
    if record.handoffs_taken or record.handoffs_refused:
        document |= {
            "has_handoffs": True,
            "handoffs_taken": record.handoffs_taken,
            "handoffs_refused": record.handoffs_refused,
        }
    return document


def read_execution(codec: Codec, document: Document) -> ExecutionRecord:
    """Return the record in a document. Raises ``StoreError`` when it can't be read."""
    record = unpack(codec, ExecutionRecord, cast("bytes", document["body"]))
    status = ExecutionStatus(cast("str", document["status"]))
    if record.status.is_terminal and not status.is_terminal:
        record = reopened(record)
    return record.model_copy(
        update={
            "status": status,
            "started_at": _instant(document["started_at"]),
            "run_id": document["run_id"],
            "run_started_at": _instant(document["run_started_at"]),
            "history_length": document["history_length"],
        }
    )


def as_read(document: Document) -> Document:
    """Return the filter that finds a document while it is still what was read."""
    return {"_id": document["_id"], **{field: document[field] for field in _READ_FIELDS}}


def enter_run(execution_id: str, run_id: str, run_started_at: str) -> UpdateOne:
    """Return the write that lets a run have its execution: start it, take it over, or reopen what an earlier run ended.

    It mostly changes nothing: the run that has the record already is the usual writer. A run that started before the
    owner changes nothing either, and neither does an execution that is not there.
    """
    entering: Document = {
        "_id": execution_key(execution_id),
        "entered_at": {"$lt": run_started_at},
    }
    # In a pipeline a text may be taken for a field, so none stands there bare.
    held = [{"$literal": status.value} for status in HELD]
    running = {"$literal": ExecutionStatus.RUNNING.value}
    entered: Document = {
        "status": {"$cond": [{"$in": ["$status", held]}, "$status", running]},
        "is_open": True,
        "started_at": {"$ifNull": ["$started_at", {"$literal": run_started_at}]},
        "run_id": {"$literal": run_id},
        "run_started_at": {"$literal": run_started_at},
        "entered_at": {"$literal": run_started_at},
        "history_length": 0,
    }
    return UpdateOne(entering, [{"$set": entered}])


def end_write(
    codec: Codec, end: ExecutionRecord, stored: Document | None, *, entered_at: datetime | None = None
) -> EndWrite:
    """Return what an execution's end makes of the stored document.

    Args:
        codec: packs and unpacks.
        end: the record of the end.
        stored: the document as it was read, None when there is none.
        entered_at: start of the run that enters the execution with the same write.
    """
    if stored is None:
        # Nothing has no kind, so this inserts, or meets the one that was inserted meanwhile.
        document = execution_document(codec, end)
        insert = ReplaceOne[Document]({"_id": document["_id"], "kind": None}, document, upsert=True)
        return EndWrite(end, insert, document)
    record = read_execution(codec, stored)
    if outranks(record, end):
        return EndWrite(record)
    if record.started_at is None and entered_at is not None:
        record = record.model_copy(update={"started_at": entered_at})
    standing = with_beginning(end, record)
    document = execution_document(codec, standing)
    return EndWrite(standing, ReplaceOne[Document](as_read(stored), document), document)


def list_query(query: ExecutionFilter, after: Position | None) -> Query | None:
    """Return how to find a page of a list, latest first; None when nothing can match."""
    if query.status is not None and query.is_open is not None and query.status.is_terminal is query.is_open:
        return None
    start = after or BEHIND_ALL
    if query.end_time is not None:
        # No id is less than the empty one, so this is just behind the last instant that counts.
        start = min(start, (instant_text(query.end_time + _MICROSECOND), ""))
    oldest = "" if query.start_time is None else instant_text(query.start_time)
    chosen: Document = {
        "kind": "execution",
        "tenant": TENANT,
        "position": {"$gte": oldest, "$lt": position(start)},
    }
    if query.definition_id is not None:
        chosen["definition_id"] = query.definition_id
    if query.status is not None:
        chosen["status"] = query.status.value
    elif query.is_open is not None:
        chosen["is_open"] = query.is_open
    if len(query.tags) == 1:
        chosen["tags"] = query.tags[0]
    elif query.tags:
        chosen["tags"] = {"$all": list(query.tags)}
    return Query(chosen, _index_for(query))


def _index_for(query: ExecutionFilter) -> str:
    """Return the index that has the list in order, with the least beside it to pass over."""
    if query.tags:
        return "executions_by_tag"
    if query.status is None and query.is_open:
        return "open_executions"
    match (query.definition_id, query.status):
        case (None, None):
            return "executions_by_time"
        case (None, _):
            return "executions_by_status"
        case (_, None):
            return "executions_by_definition"
        case _:
            return "executions_by_definition_status"


def _entered_at(record: ExecutionRecord) -> str:
    """Return after when a run has to have started to enter the record; a pending one awaits its own run too."""
    if record.run_started_at is None:
        return ""
    is_awaited = record.status is ExecutionStatus.PENDING
    return instant_text(record.run_started_at - _MICROSECOND if is_awaited else record.run_started_at)


def _text(instant: datetime | None) -> str | None:
    return None if instant is None else instant_text(instant)


def _instant(text: object) -> datetime | None:
    return None if text is None else datetime.fromisoformat(cast("str", text))
