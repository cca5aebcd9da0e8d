"""Recorded histories replay on today's interpreter, and a changed one is refused."""

from __future__ import annotations

import base64
import copy
import gc
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError
from wire_schema import current_schema, incompatibilities, read_pinned

from engine.adapters.codec import decompress_zstd
from engine.adapters.temporal.payloads import data_converter
from engine.domain import messages
from engine.domain.gate import Transition
from workflows.interpreter import InterpreterWorkflow
from workflows.versions import INTERPRETER_VERSION

FILES = sorted((Path(__file__).parent / "histories").glob("*.json"))
SCENARIOS = {
    "artifact",
    "budget",
    "cancel",
    "cancelled-clean-up",
    "chain",
    "child",
    "clean-up",
    "continue-as-new",
    "continued",
    "deadline",
    "deadline-kept",
    "decisions",
    "expired-gate",
    "failure",
    "fallback",
    "fan-out",
    "finalize-remote",
    "finish",
    "following",
    "gates",
    "handoffs",
    "inner",
    "invalid-input",
    "items",
    "items-before",
    "mapped-output",
    "recall",
    "rerun",
    "resumed-after-worker-loss",
    "retry",
    "signal-cancel",
    "started-without-plan",
    "timeout",
    "values",
}
RUNNERS = {"unsandboxed": UnsandboxedWorkflowRunner, "sandboxed": SandboxedWorkflowRunner}
INPUTS: dict[str, type[BaseModel]] = {
    "baton.load_plan": messages.LoadPlanInput,
    "baton.finalize": messages.FinalizeInput,
    "baton.record_decisions": messages.RecordDecisionsInput,
    "baton.record_transition": Transition,
    "baton.compute_value": messages.ComputeInput,
    "baton.request_cancel": messages.RequestCancelInput,
}
RESULTS: dict[str, type[BaseModel]] = {
    "baton.compute_value": messages.StepOutcome,
    "baton.load_plan": messages.LoadPlanResult,
    "baton.finalize": messages.FinalizeResult,
}
NESTED = {"plan", "agent", "usage", "options", "carried", "error", "cancel", "steps", "settled", "decided", "warnings"}


def history_of(scenario: str) -> dict[str, Any]:
    file = Path(__file__).parent / "histories" / f"v{INTERPRETER_VERSION}-{scenario}.json"
    return json.loads(file.read_text(encoding="utf-8"))


async def replay(history: dict[str, Any], runner: WorkflowRunner | None = None) -> None:
    started = history["events"][0]["workflowExecutionStartedEventAttributes"]
    replayer = Replayer(
        workflows=[InterpreterWorkflow],
        data_converter=data_converter(1024),
        workflow_runner=runner or UnsandboxedWorkflowRunner(),
    )
    await replayer.replay_workflow(WorkflowHistory.from_json(started["workflowId"], history))


def events_of(history: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the attributes of a kind of event, in order."""
    return [event[kind] for event in history["events"] if kind in event]


def value_of(payload: dict[str, Any]) -> Any:
    decoded = Payload(metadata={}, data=base64.b64decode(payload.get("data", "")))
    if base64.b64decode(payload["metadata"]["encoding"]) == b"binary/zstd":
        decoded = Payload.FromString(decompress_zstd(decoded.data))
    return json.loads(decoded.data) if decoded.data else None


def payload_of(value: Any) -> dict[str, Any]:
    encoded = {"encoding": base64.b64encode(b"json/plain").decode()}
    return {"metadata": encoded, "data": base64.b64encode(json.dumps(value).encode()).decode()}


def without_events(history: dict[str, Any], unwanted: set[int]) -> dict[str, Any]:
    """Return the history without the events of those ids, renumbered so that only their absence is wrong."""
    kept = [event for event in history["events"] if int(event["eventId"]) not in unwanted]
    numbers = {event["eventId"]: str(number) for number, event in enumerate(kept, 1)}

    def renumbered(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: renumbered(item, name) for name, item in value.items()}
        return numbers.get(value, value) if key.endswith("EventId") or key == "eventId" else value

    return {"events": [renumbered(event) for event in kept]}


def test_every_scenario_of_this_version_is_recorded():
    recorded = {file.stem.partition("-")[2] for file in FILES if file.stem.startswith(f"v{INTERPRETER_VERSION}-")}
    assert recorded >= SCENARIOS


def test_every_version_has_histories():
    recorded = {file.stem.partition("-")[0] for file in FILES}
    assert recorded == {f"v{version}" for version in range(1, INTERPRETER_VERSION + 1)}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_recorded_history_replays(file: Path, runner: str):
    await replay(json.loads(file.read_text(encoding="utf-8")), RUNNERS[runner]())


def test_the_histories_hold_what_they_are_recorded_for():
    def ids(scenario: str) -> list[str]:
        return [
            event["activityId"] for event in events_of(history_of(scenario), "activityTaskScheduledEventAttributes")
        ]

    assert ids("chain") == ["s1.1", "s2.1", "s3.1"]
    assert ids("fallback") == ["s1.1", "s1.2", "s2.1"]
    assert ids("resumed-after-worker-loss") == ["s1.1", "s1.1.1", "s2.1"]
    assert ids("finalize-remote")[0] == "s1.1"
    assert len(ids("finalize-remote")) == 2
    assert events_of(history_of("continue-as-new"), "workflowExecutionContinuedAsNewEventAttributes")
    assert events_of(history_of("cancel"), "workflowExecutionCanceledEventAttributes")
    assert events_of(history_of("signal-cancel"), "workflowExecutionCanceledEventAttributes")
    assert events_of(history_of("timeout"), "activityTaskTimedOutEventAttributes")
    assert events_of(history_of("deadline"), "timerFiredEventAttributes")
    started = events_of(history_of("started-without-plan"), "workflowExecutionStartedEventAttributes")[0]
    assert len(started["input"]["payloads"]) == 1
    retried = events_of(history_of("retry"), "activityTaskStartedEventAttributes")[0]
    assert retried["attempt"] == 2
    artifact = value_of(
        events_of(history_of("artifact"), "activityTaskCompletedEventAttributes")[0]["result"]["payloads"][0]
    )
    assert artifact["output"]["ref"]["artifact_id"]


async def test_another_activity_type_is_refused():
    history = history_of("chain")
    events_of(history, "activityTaskScheduledEventAttributes")[1]["activityType"]["name"] = "agent.somebody-else"
    with pytest.raises(NondeterminismError, match="somebody-else"):
        await replay(history)


async def test_another_activity_id_is_refused():
    history = history_of("chain")
    events_of(history, "activityTaskScheduledEventAttributes")[2]["activityId"] = "s3.2"
    with pytest.raises(NondeterminismError, match="s3"):
        await replay(history)


async def test_a_missing_step_is_refused():
    history = history_of("fan-out")
    scheduled = next(event for event in history["events"] if "activityTaskScheduledEventAttributes" in event)
    its_id = scheduled["eventId"]
    pair = {
        int(event["eventId"])
        for event in history["events"]
        if event["eventId"] == its_id
        or event.get("activityTaskStartedEventAttributes", {}).get("scheduledEventId") == its_id
        or event.get("activityTaskCompletedEventAttributes", {}).get("scheduledEventId") == its_id
    }
    assert len(pair) == 3
    with pytest.raises(NondeterminismError):
        await replay(without_events(history, pair))


async def test_an_end_that_a_call_recorded_needs_no_finalize():
    history = history_of("chain")
    assert not events_of(history, "markerRecordedEventAttributes")
    completed = events_of(history, "activityTaskCompletedEventAttributes")[-1]
    payloads = completed["result"]["payloads"]
    payloads[0] = payload_of({**value_of(payloads[0]), "closed": False})
    with pytest.raises(NondeterminismError):
        await replay(history)


async def test_a_missing_finalize_is_refused():
    history = history_of("mapped-output")
    marker = {int(event["eventId"]) for event in history["events"] if "markerRecordedEventAttributes" in event}
    assert len(marker) == 1
    with pytest.raises(NondeterminismError):
        await replay(without_events(history, marker))


async def test_another_plan_is_refused():
    history = history_of("chain")
    payloads = events_of(history, "workflowExecutionStartedEventAttributes")[0]["input"]["payloads"]
    envelope = value_of(payloads[1])
    envelope["plan"]["steps"][1]["id"] = "renamed"
    envelope["plan"]["steps"][2]["depends_on"] = ["s1"]
    payloads[1] = payload_of(envelope)
    with pytest.raises(NondeterminismError):
        await replay(history)


# The SDK drops the coroutine that it made before the instance; its log would keep it until another test.
@pytest.mark.filterwarnings("ignore:coroutine '_WorkflowInstanceImpl:RuntimeWarning")
async def test_a_history_of_a_newer_interpreter_waits_for_its_worker(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL, "temporalio")
    history = history_of("chain")
    payloads = events_of(history, "workflowExecutionStartedEventAttributes")[0]["input"]["payloads"]
    payloads[1] = payload_of({**value_of(payloads[1]), "interpreter_version": INTERPRETER_VERSION + 1})
    with pytest.raises(RuntimeError, match="interpreter version"):
        await replay(history)
    gc.collect()


def messages_in(history: dict[str, Any]) -> list[tuple[type[BaseModel], Any]]:
    """Return every message of a history with its model."""
    found: list[tuple[type[BaseModel], Any]] = []
    started = history["events"][0]["workflowExecutionStartedEventAttributes"]
    if len(started["input"]["payloads"]) > 1:
        found.append((messages.StartEnvelope, value_of(started["input"]["payloads"][1])))
    types: dict[str, str] = {}
    for event in history["events"]:
        if scheduled := event.get("activityTaskScheduledEventAttributes"):
            types[event["eventId"]] = name = scheduled["activityType"]["name"]
            model = INPUTS.get(name, messages.AgentCallInput)
            found.append((model, value_of(scheduled["input"]["payloads"][0])))
        if completed := event.get("activityTaskCompletedEventAttributes"):
            name = types[completed["scheduledEventId"]]
            result = value_of(completed["result"]["payloads"][0])
            if name.startswith("agent."):
                found.append((messages.StepOutcome, result))
            elif name in RESULTS:
                found.append((RESULTS[name], result))
        if failed := event.get("activityTaskFailedEventAttributes"):
            details = failed["failure"].get("applicationFailureInfo", {}).get("details", {}).get("payloads", [])
            found += [(messages.FailureDetails, value_of(detail)) for detail in details[:1]]
        marker = event.get("markerRecordedEventAttributes")
        if marker and "failure" not in marker:
            name = value_of(marker["details"]["data"]["payloads"][0])["activity_type"]
            found.append((RESULTS[name], value_of(marker["details"]["result"]["payloads"][0])))
    return found


def with_unknown_keys(value: Any) -> Any:
    """Return a message with a key that no release knows in it and in the messages inside it."""
    if isinstance(value, list):
        return [with_unknown_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {**{k: with_unknown_keys(v) if k in NESTED else v for k, v in value.items()}, "of_a_later_release": {"a": 1}}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_unknown_keys_are_ignored(file: Path):
    found = messages_in(json.loads(file.read_text(encoding="utf-8")))
    for model, value in found:
        assert model.model_validate(with_unknown_keys(value)) == model.model_validate(value)


def test_the_corpus_holds_every_message():
    seen = {model for file in FILES for model, _ in messages_in(json.loads(file.read_text(encoding="utf-8")))}
    assert seen >= {
        messages.AgentCallInput,
        messages.FailureDetails,
        messages.FinalizeResult,
        messages.LoadPlanResult,
        messages.RequestCancelInput,
        messages.StartEnvelope,
        messages.StepOutcome,
    }


async def test_a_history_of_a_later_release_replays():
    history = history_of("chain")
    payloads = events_of(history, "workflowExecutionStartedEventAttributes")[0]["input"]["payloads"]
    payloads[1] = payload_of(with_unknown_keys(value_of(payloads[1])))
    for completed in events_of(history, "activityTaskCompletedEventAttributes"):
        results = completed["result"]["payloads"]
        results[0] = payload_of(with_unknown_keys(value_of(results[0])))
    await replay(history)


def test_the_wire_only_grows():
    assert incompatibilities(read_pinned(), current_schema()) == []


def test_the_pinned_schema_is_of_today():
    """What was added is pinned with the next recording, so that it can't be taken away unnoticed."""
    assert set(read_pinned()) == set(current_schema())


def test_a_shrunk_wire_is_noticed():
    schema = current_schema()
    changed = copy.deepcopy(schema)
    del changed["StartEnvelope"]["properties"]["plan_hash"]
    changed["StepOutcome"]["properties"]["token"] = {"type": "string"}
    changed["FinalizeInput"]["required"].append("events")
    changed["ExecutionStatus"]["enum"].remove("cancelled")
    del changed["LoadPlanInput"]
    changed["AgentCallInput"]["additionalProperties"] = False
    assert sorted(fault.split(" ")[0] for fault in incompatibilities(schema, changed)) == [
        "AgentCallInput",
        "ExecutionStatus",
        "FinalizeInput.events",
        "LoadPlanInput",
        "StartEnvelope.plan_hash",
        "StepOutcome.token",
    ]
    assert incompatibilities(schema, schema) == []
