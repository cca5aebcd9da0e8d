"""Updates through the runtime, against a real server: what is answered, refused, late, or sent to nobody."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from engine.adapters.temporal import runtime as runtime_module
from engine.adapters.temporal import updates
from engine.adapters.temporal.connection import TemporalConnection
from engine.adapters.temporal.payloads import data_converter
from engine.adapters.temporal.runtime import TemporalRuntime
from engine.domain.messages import StartEnvelope
from engine.domain.plan import ExecutionPlan
from engine.errors import ConflictError, InternalError, InvalidInputError, RuntimeUnavailableError
from engine.ports.execution_runtime import StartRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from engine.adapters.temporal.dev_server import DevServerLease

_numbers = count(1)
ISSUES = [{"path": "data.note", "message": "is missing"}]


@workflow.defn(name="asking")
class AskingWorkflow:
    """Takes one answer, refuses what the validator does not like, and ends when it is told to."""

    def __init__(self) -> None:
        self.answer: str | None = None
        self.is_over = False

    @workflow.run
    async def run(self) -> str | None:
        await workflow.wait_condition(lambda: self.is_over)
        return self.answer

    @workflow.signal
    def end(self) -> None:
        self.is_over = True

    @workflow.update(name="answer_gate")
    async def take(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["answer"] == "hang":
            await workflow.wait_condition(lambda: self.is_over)
            await workflow.wait_condition(lambda: False)
        if given["answer"] == "late":
            raise ApplicationError("it was answered meanwhile", {"answer": self.answer}, type="conflict")
        self.answer = given["answer"]
        return {"gate_id": given["gate_id"], "answer": self.answer, "data": given.get("data")}

    @take.validator
    def check(self, given: dict[str, Any]) -> None:
        if self.answer is not None:
            raise ApplicationError("approve.1 is answered", {"answer": {"answer": self.answer}}, type="conflict")
        if given["answer"] == "bare":
            raise ApplicationError("no details", type="conflict")
        if given["answer"] == "wrong":
            raise ApplicationError("wrong data", {"issues": ISSUES}, type="invalid_input")
        if given["answer"] == "fault":
            raise ValueError("the run's own fault")


class Asked:
    """A runtime on a queue of its own, and the executions that the test begins there."""

    def __init__(self, client: Client, runtime: TemporalRuntime, queue: str) -> None:
        self.client = client
        self.runtime = runtime
        self.queue = queue

    async def begin(self) -> str:
        execution_id = f"asking-{os.getpid()}-{next(_numbers)}"
        await self.client.start_workflow("asking", id=execution_id, task_queue=self.queue)
        return execution_id

    async def send(self, execution_id: str, answer: str, **given: Any) -> dict[str, Any]:
        argument = {"gate_id": "approve.1", "answer": answer, **given}
        return await self.runtime.send_update(execution_id, "answer_gate", argument)

    async def end(self, execution_id: str) -> None:
        handle = self.client.get_workflow_handle(execution_id)
        await handle.signal("end")
        await handle.result()

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        async with Worker(
            self.client,
            task_queue=self.queue,
            workflows=[AskingWorkflow],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            yield


@pytest.fixture
async def asked(dev_server: DevServerLease, tmp_path: Path) -> AsyncGenerator[Asked]:
    queue = f"asked-{os.getpid()}-{next(_numbers)}"
    client = await Client.connect(dev_server.address, data_converter=data_converter(1024))
    connection = TemporalConnection(lambda: {"target_host": dev_server.address}, tmp_path, 1024, [], None)
    yield Asked(client, TemporalRuntime(connection, queue), queue)
    await connection.aclose()


async def test_a_handlers_answer_comes_back(asked: Asked) -> None:
    async with asked.worker():
        execution_id = await asked.begin()
        data = {"": None, "text": "x" * 5000, "list": [1, 1.5, {"a": True}]}
        answer = await asked.send(execution_id, "approve", data=data)
        assert answer == {"gate_id": "approve.1", "answer": "approve", "data": data}
        await asked.end(execution_id)


async def test_a_refusal_is_our_error_and_changes_nothing(asked: Asked) -> None:
    async with asked.worker():
        execution_id = await asked.begin()
        with pytest.raises(InvalidInputError, match="wrong data") as wrong:
            await asked.send(execution_id, "wrong")
        assert wrong.value.details == {"issues": ISSUES}
        with pytest.raises(ConflictError, match="no details") as bare:
            await asked.send(execution_id, "bare")
        assert bare.value.details == {}
        assert await asked.send(execution_id, "approve")
        with pytest.raises(ConflictError, match=r"approve\.1 is answered") as second:
            await asked.send(execution_id, "reject")
        assert second.value.details == {"answer": {"answer": "approve"}}
        history = await asked.client.get_workflow_handle(execution_id).fetch_history()
        accepted = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
        assert [event.event_type for event in history.events].count(accepted) == 1
        await asked.end(execution_id)


async def test_a_handler_may_refuse_too(asked: Asked) -> None:
    async with asked.worker():
        execution_id = await asked.begin()
        with pytest.raises(ConflictError, match="it was answered meanwhile") as late:
            await asked.send(execution_id, "late")
        assert late.value.details == {"answer": None}
        await asked.end(execution_id)


async def test_a_fault_is_no_refusal(asked: Asked) -> None:
    async with asked.worker():
        execution_id = await asked.begin()
        with pytest.raises(InternalError, match="the run's own fault"):
            await asked.send(execution_id, "fault")
        with pytest.raises(InternalError, match="unheard_of"):
            await asked.runtime.send_update(execution_id, "unheard_of", {})
        await asked.end(execution_id)


async def test_what_is_over_or_unknown_takes_nothing(asked: Asked) -> None:
    async with asked.worker():
        execution_id = await asked.begin()
        await asked.end(execution_id)
        for nobody in (execution_id, "nobody"):
            with pytest.raises(ConflictError, match="The execution is over") as over:
                await asked.send(nobody, "approve")
            assert over.value.details == {"execution_id": nobody}


async def test_a_run_that_ends_before_it_answers_is_over(asked: Asked) -> None:
    async with asked.worker():
        execution_id = await asked.begin()
        sending = asyncio.create_task(asked.send(execution_id, "hang"))
        await asyncio.sleep(0.5)
        assert not sending.done()
        with pytest.warns(RuntimeWarning, match="TMPRL1102"):
            await asked.end(execution_id)
            with pytest.raises(ConflictError, match="The execution is over"):
                await sending


async def test_nobody_is_waited_for_in_vain(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    execution_id = await asked.begin()
    began_at = time.monotonic()
    with pytest.raises(RuntimeUnavailableError, match="No worker polls the task queue") as alone:
        await asked.send(execution_id, "approve")
    assert time.monotonic() - began_at < 3
    assert alone.value.details["execution_id"] == execution_id
    async with asked.worker():
        await asked.end(execution_id)


async def test_a_handler_that_hangs_is_given_up(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    async with asked.worker():
        execution_id = await asked.begin()
        with pytest.raises(RuntimeUnavailableError, match="Its worker may be busy"):
            await asked.send(execution_id, "hang")
        await asked.client.get_workflow_handle(execution_id).terminate()


async def test_who_is_cancelled_while_it_waits_is_cancelled(asked: Asked) -> None:
    async with asked.worker():
        execution_id = await asked.begin()
        sending = asyncio.create_task(asked.send(execution_id, "hang"))
        await asyncio.sleep(0.5)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asked.client.get_workflow_handle(execution_id).terminate()


@pytest.mark.parametrize("cleanup", [timedelta(seconds=300), timedelta(seconds=7)])
async def test_temporals_own_timeout_leaves_room_for_the_clean_up(asked: Asked, cleanup: timedelta) -> None:
    plan = ExecutionPlan(
        definition_id="asking",
        version=1,
        name="Asking",
        definition_hash="sha256:x",
        tags=[],
        steps=[],
        output=None,
        declared_input=[],
        agents={},
        cleanup_timeout=cleanup,
    )
    deadline_at = datetime.now(UTC) + timedelta(seconds=100)
    execution_id = f"asking-{os.getpid()}-{next(_numbers)}"
    envelope = StartEnvelope(interpreter_version=1, plan_hash=plan.hash(), deadline_at=deadline_at)
    await asked.runtime.start_run(StartRequest(execution_id, plan, plan.hash(), {}, envelope))
    handle = asked.client.get_workflow_handle(execution_id)
    raw = (await handle.describe()).raw_description
    timeout = raw.execution_config.workflow_execution_timeout.ToTimedelta()
    await handle.terminate()
    expected = timedelta(seconds=160) + cleanup
    assert expected - timedelta(seconds=5) <= timeout <= expected


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (updates, runtime_module):
        monkeypatch.setattr(module, "UPDATE_TIMEOUT", timedelta(seconds=1))
