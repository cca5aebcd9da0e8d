"""Executions, their steps and their frozen plans in MongoDB, without transactions: the order of the writes is enough.

A plan is there before the record that names it, and the steps of a run before its end; a write that fails in between
is repeated whole by its caller, and what it wrote the first time it finds and leaves. Nothing is derived at a write: a
workflow's count of retries is asked of the steps. What competes is settled by filters: see ``step_writes`` for the
fence, ``execution_documents`` for the end. A step costs one command: it and its execution's start share a collection,
and a run's last step takes the end with it in the same ordered command, which the fence's refusal cuts short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from pymongo import errors

from engine.adapters.mongodb.analytics import agent_aggregates, workflow_aggregates
from engine.adapters.mongodb.execution_documents import (
    EndWrite,
    as_read,
    end_write,
    execution_document,
    execution_key,
    list_query,
    read_execution,
)
from engine.adapters.mongodb.gates import MongoGates
from engine.adapters.mongodb.leases import MongoLeases
from engine.adapters.mongodb.schema import Document, key
from engine.adapters.mongodb.step_writes import (
    DUPLICATE_KEY,
    StepWrite,
    StepWrites,
    step_document,
    step_key,
    steps_range,
    write_errors,
)
from engine.adapters.packing import instant_text, unpack
from engine.adapters.standing import claimed, is_agent_call, transitioned
from engine.domain.execution import ExecutionRecord, StepRecord
from engine.domain.page import Page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from pymongo import ReplaceOne
    from pymongo.asynchronous.collection import AsyncCollection

    from engine.adapters.codec import Codec
    from engine.adapters.mongodb.connection import MongoDatabase
    from engine.domain.execution import ExecutionStatus
    from engine.domain.gate import GateRecord, Transition
    from engine.domain.page import Position
    from engine.ports.execution_store import Aggregates, ExecutionFilter, GateFilter, Lease
    from engine.ports.health import StoreHealth

__all__ = ["MongoExecutionStore"]

_MAX_KNOWN_PLANS: Final = 4096

_Address = tuple[str, str, str, int | None, int]


class MongoExecutionStore:
    """An ``ExecutionStore`` and ``ExecutionAnalytics`` on MongoDB; whoever made the database closes it."""

    def __init__(self, database: MongoDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec
        self._writes = StepWrites(database)
        self._gates = MongoGates(database, codec)
        self._leases = MongoLeases(database)
        self._known_plans: dict[str, None] = {}

    async def create_execution(
        self, record: ExecutionRecord, plan: bytes | None, steps: Sequence[StepRecord] = ()
    ) -> ExecutionRecord | None:
        """Insert a record and, before it, its plan and its steps; return None, or the record that was there first."""
        document = self._sized(execution_document(self._codec, record), f"execution {record.execution_id}")
        unknown = None if record.plan_hash in self._known_plans else plan
        if steps or unknown is not None:
            # One that exists writes nothing, and nearly every plan is known here.
            if (stored := await self.get_execution(record.execution_id)) is not None:
                return stored
            if unknown is not None:
                await self._put_plan(record.plan_hash, unknown)
            if steps:
                await self._put_steps(steps, None)

        async def insert() -> bool:
            try:
                await self._executions.insert_one(document)
            except errors.DuplicateKeyError:
                return False
            return True

        while not await self._database.run(insert):
            if (stored := await self.get_execution(record.execution_id)) is not None:
                return stored
        return None

    async def get_execution(self, execution_id: str) -> ExecutionRecord | None:
        """Return the record, or None."""
        document = await self._find(execution_key(execution_id))
        return None if document is None else read_execution(self._codec, document)

    async def list_executions(
        self, query: ExecutionFilter, *, limit: int, after: Position | None
    ) -> Page[ExecutionRecord]:
        """Return records, latest created first."""
        listed = list_query(query, after)
        if listed is None:
            return Page([])
        found = await self._database.run(
            lambda: self._executions.find(
                listed.filter, sort=[("position", -1)], limit=limit + 1, hint=listed.index
            ).to_list(None)
        )
        records = [read_execution(self._codec, document) for document in found[:limit]]
        if len(found) <= limit:
            return Page(records)
        return Page(records, (instant_text(records[-1].created_at), records[-1].execution_id))

    async def get_plan(self, plan_hash: str) -> bytes | None:
        """Return the frozen plan, or None."""
        found = await self._database.run(lambda: self._plans.find_one({"_id": key(plan_hash)}))
        return None if found is None else cast("bytes", found["body"])

    async def record_steps(self, steps: list[StepRecord], run_started_at: datetime) -> list[StepRecord]:
        """Write step records of one run behind the fence; return what stands for each."""
        if not steps:
            return []
        return await self._put_steps(steps, (steps[0].execution_id, steps[0].run_id, instant_text(run_started_at)))

    async def record_last_steps(
        self, steps: list[StepRecord], end: ExecutionRecord
    ) -> tuple[list[StepRecord], ExecutionRecord | None]:
        """Write the last steps of a run and, if each was written, the execution's end; return what stands of both."""
        entered_at = end.run_started_at or end.created_at
        latest = _latest(steps)
        documents = await self._step_documents(list(latest.values()))
        write = StepWrite(documents)
        while True:
            stored = await self._find(execution_key(end.execution_id))
            ending = end_write(self._codec, end, stored, entered_at=entered_at)
            if ending.operation is None:
                break
            # An end that is written has entered the run too.
            operations = [*(write.operation(document) for document in documents), self._sized_end(ending)]
            refused = await self._written_in_order(operations)
            if refused is None:
                return [latest[_address(step)] for step in steps], ending.standing
            if refused < len(documents):
                break
        standing = await self.record_steps(steps, entered_at)
        if any(stands.token > step.token for stands, step in zip(standing, steps, strict=True)):
            return standing, None
        return standing, await self._end(end, entered_at)

    async def claim_step(self, claim: StepRecord, run_started_at: datetime) -> StepRecord:
        """Announce an attempt; return the stored record when it is completed or newer, else what was written.

        It is read, and replaced if it still is what was read: usage and events that are added up are packed.
        """
        entering = (claim.execution_id, claim.run_id, instant_text(run_started_at))
        while True:
            document = await self._find(step_key(_address(claim)))
            stored = None if document is None else self._step_in(document)
            standing = claimed(claim, stored)
            if standing is None:
                return cast("StepRecord", stored)
            over = None if document is None else cast("bytes", document["body"])
            documents = await self._step_documents([standing])
            [refused] = await self._writes.write(StepWrite(documents, entering, over, is_swap=True))
            if refused is None:
                return standing

    async def get_step(
        self, execution_id: str, run_id: str, step_id: str, item: int | None, n: int
    ) -> StepRecord | None:
        """Return the record at an address, or None."""
        document = await self._find(step_key((execution_id, run_id, step_id, item, n)))
        return None if document is None else self._step_in(document)

    async def list_steps(self, execution_id: str, *, with_items: bool = True) -> list[StepRecord]:
        """Return the step records of all runs of an execution by token; equal ones by address."""
        wanted = steps_range(execution_id) if with_items else {**steps_range(execution_id), "item": None}
        found = await self._database.run(lambda: self._executions.find(wanted, {"body": 1}).to_list(None))
        # Items written by an older Baton have no field to tell them by.
        steps = [step for step in map(self._step_in, found) if with_items or step.item is None]
        steps.sort(key=lambda step: (step.token, step.run_id, step.step_id, step.item or 0, step.n))
        return steps

    async def finalize_execution(self, record: ExecutionRecord, steps: list[StepRecord]) -> ExecutionRecord:
        """Write the steps not yet stored, then the execution's end; return what stands."""
        if steps:
            await self._put_steps(steps, None)
        return await self._end(record)

    async def record_transition(self, change: Transition) -> None:
        """Write gates and steps, then the change of status."""
        await self._gates.put(change.gates)
        if change.steps:
            await self._put_steps(change.steps, None)
        while (stored := await self._find(execution_key(change.execution_id))) is not None:
            standing = transitioned(read_execution(self._codec, stored), change)
            if standing is None:
                return
            document = self._sized(execution_document(self._codec, standing), f"execution {change.execution_id}")
            if await self._swapped(stored, document):
                return

    async def get_gate(self, execution_id: str, gate_id: str) -> GateRecord | None:
        """Return a gate, open or not, or None."""
        return await self._gates.get(execution_id, gate_id)

    async def list_gates(self, query: GateFilter, *, limit: int, after: Position | None) -> Page[GateRecord]:
        """Return open gates, oldest first."""
        return await self._gates.list_open(query, limit, after)

    async def repair_execution(self, record: ExecutionRecord, *, expected: ExecutionStatus) -> bool:
        """Replace the record when its stored status still is ``expected``; return whether it was."""
        document = self._sized(execution_document(self._codec, record), f"execution {record.execution_id}")
        while True:
            stored = await self._find(execution_key(record.execution_id))
            if stored is None or stored["status"] != expected.value:
                return False
            if await self._swapped(stored, document):
                return True

    async def acquire_lease(self, name: str, holder: str, ttl: timedelta) -> Lease | None:
        """Take or renew a lease; None while another holder has it."""
        return await self._leases.acquire(name, holder, ttl)

    async def leave_mark(self, name: str, holder: str, mark: str) -> bool:
        """Store how far the holder has come; False when it has lost the lease."""
        return await self._leases.leave_mark(name, holder, mark)

    async def release_lease(self, name: str, holder: str) -> None:
        """Give a lease back before its time; the mark stays."""
        await self._leases.release(name, holder)

    async def workflow_aggregates(self, definition_id: str, start: datetime, end: datetime) -> Aggregates:
        """Aggregate the executions of a definition that were created in ``[start, end]``."""
        return await workflow_aggregates(self._database, definition_id, start, end)

    async def agent_aggregates(self, agent_id: str, start: datetime, end: datetime) -> Aggregates:
        """Aggregate the logical calls of an agent that started in ``[start, end]``."""
        return await agent_aggregates(self._database, agent_id, start, end)

    async def check_health(self) -> StoreHealth:
        """Ask the primary for a document."""
        return await self._database.check_health()

    async def make_schema(self) -> None:
        """Make the indexes that are missing, however long that takes on a large database."""
        await self._database.make_schema()

    @property
    def _executions(self) -> AsyncCollection[Document]:
        return self._database.collection("executions")

    @property
    def _plans(self) -> AsyncCollection[Document]:
        return self._database.collection("plans")

    async def _find(self, document_id: str) -> Document | None:
        return await self._database.run(lambda: self._executions.find_one({"_id": document_id}))

    async def _put_plan(self, plan_hash: str, plan: bytes) -> None:
        self._database.check_size(plan, f"plan {plan_hash}")

        async def put() -> None:
            try:
                await self._plans.insert_one({"_id": key(plan_hash), "body": plan})
            except errors.DuplicateKeyError:
                # It is named by its content.
                return

        await self._database.run(put)
        if len(self._known_plans) >= _MAX_KNOWN_PLANS:
            self._known_plans.clear()
        self._known_plans[plan_hash] = None

    async def _put_steps(self, steps: Sequence[StepRecord], entering: tuple[str, str, str] | None) -> list[StepRecord]:
        latest = _latest(steps)
        write = StepWrite(await self._step_documents(list(latest.values())), entering)
        standing = dict(latest)
        for address, document in zip(latest, await self._writes.write(write), strict=True):
            if document is not None:
                standing[address] = self._step_in(document)
        return [standing[_address(step)] for step in steps]

    async def _step_documents(self, steps: Sequence[StepRecord]) -> list[Document]:
        """Return the documents of steps.

        A call is a fallback's when the first one at its address, with which each turn begins, was to another agent.
        """
        agents = {_address(step): step.agent_id if is_agent_call(step) else None for step in steps}
        first = {_first(step) for step in steps if step.n > 1}
        if missing := first - agents.keys():
            keys = {step_key(address): address for address in missing}
            found = await self._database.run(
                lambda: self._executions.find({"_id": {"$in": list(keys)}}, {"agent_id": 1}).to_list(None)
            )
            for document in found:
                agents[keys[cast("str", document["_id"])]] = cast("str | None", document["agent_id"])
        documents: list[Document] = []
        for step in steps:
            own_agent = agents.get(_first(step)) if step.n > 1 else None
            is_fallback = None not in (own_agent, step.agent_id) and own_agent != step.agent_id
            document = step_document(self._codec, step, is_fallback=is_fallback)
            documents.append(self._sized(document, f"step {step.step_id} of {step.execution_id}"))
        return documents

    async def _written_in_order(self, operations: Sequence[ReplaceOne[Document]]) -> int | None:
        """Send operations in one ordered command; return the first that met another record, None when none did."""

        async def write() -> int | None:
            try:
                done = await self._executions.bulk_write(operations, ordered=True)
            except errors.BulkWriteError as error:
                for index, code, text in write_errors(error):
                    if code != DUPLICATE_KEY:
                        raise errors.WriteError(text, code) from error
                    return index
                raise
            # Steps insert or replace; an end whose filter matched nothing does neither.
            is_whole = done.matched_count + done.upserted_count == len(operations)
            return None if is_whole else len(operations) - 1

        return await self._database.run(write)

    async def _end(self, end: ExecutionRecord, entered_at: datetime | None = None) -> ExecutionRecord:
        while True:
            stored = await self._find(execution_key(end.execution_id))
            ending = end_write(self._codec, end, stored, entered_at=entered_at)
            if ending.operation is None or await self._written_in_order([self._sized_end(ending)]) is None:
                return ending.standing

    async def _swapped(self, stored: Document, document: Document) -> bool:
        done = await self._database.run(lambda: self._executions.replace_one(as_read(stored), document))
        return done.matched_count == 1

    def _sized(self, document: Document, what: str) -> Document:
        self._database.check_size(cast("bytes", document["body"]), what)
        return document

    def _sized_end(self, ending: EndWrite) -> ReplaceOne[Document]:
        if ending.operation is None or ending.document is None:
            raise TypeError("an end that stands is not written")
        self._sized(ending.document, f"execution {ending.standing.execution_id}")
        return ending.operation

    def _step_in(self, document: Document) -> StepRecord:
        return unpack(self._codec, StepRecord, cast("bytes", document["body"]))


def _latest(steps: Sequence[StepRecord]) -> dict[_Address, StepRecord]:
    """Return for each address the record that stands among those given: the greatest token, the last of equal ones."""
    latest: dict[_Address, StepRecord] = {}
    for step in steps:
        known = latest.get(_address(step))
        if known is None or step.token >= known.token:
            latest[_address(step)] = step
    return latest


def _address(step: StepRecord) -> _Address:
    return (step.execution_id, step.run_id, step.step_id, step.item, step.n)


def _first(step: StepRecord) -> _Address:
    return (step.execution_id, step.run_id, step.step_id, step.item, 1)
