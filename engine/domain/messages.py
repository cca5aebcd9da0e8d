"""The wire: every message between client, workflow and activities, in one place.

Additive only: a field once written stays readable, because histories are replayed by later releases. Unknown
keys are ignored, so that an older worker can read a newer message. The interpreter's version rides in the start
envelope, so a change of behaviour is a plain branch on data.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.agent import PlanAgent
from engine.domain.carried import CarriedState, SettledStep
from engine.domain.context import ContextScope
from engine.domain.execution import (
    ArtifactRef,
    Cancellation,
    ErrorPayload,
    Event,
    ExecutionOptions,
    ExecutionStatus,
    ExecutionWarning,
    StepRecord,
    ToolCall,
    Usage,
    Value,
)
from engine.domain.json import JsonObject, JsonValue
from engine.domain.plan import ExecutionPlan

__all__ = [
    "ACTIVITY_COMPUTE_VALUE",
    "ACTIVITY_FINALIZE",
    "ACTIVITY_LOAD_PLAN",
    "ACTIVITY_RECORD_DECISIONS",
    "ACTIVITY_RECORD_TRANSITION",
    "ACTIVITY_REQUEST_CANCEL",
    "CANCEL_SIGNAL",
    "MAX_CALL_INPUT_BYTES",
    "MAX_DECLARED_BYTES",
    "MAX_INLINE_OUTPUT_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MAX_SENT_DECISIONS_BYTES",
    "AgentCallInput",
    "CallInput",
    "ChildResult",
    "ClosingCall",
    "CollectInput",
    "ComputeInput",
    "FailureDetails",
    "FinalizeInput",
    "FinalizeResult",
    "LoadPlanInput",
    "LoadPlanResult",
    "OperandRef",
    "ParentLink",
    "RecallInput",
    "RecordDecisionsInput",
    "RequestCancelInput",
    "RetryDelays",
    "StartEnvelope",
    "StepOutcome",
]

ACTIVITY_LOAD_PLAN: Final = "baton.load_plan"
ACTIVITY_FINALIZE: Final = "baton.finalize"
ACTIVITY_RECORD_DECISIONS: Final = "baton.record_decisions"
ACTIVITY_RECORD_TRANSITION: Final = "baton.record_transition"
ACTIVITY_COMPUTE_VALUE: Final = "baton.compute_value"
ACTIVITY_REQUEST_CANCEL: Final = "baton.request_cancel"
CANCEL_SIGNAL: Final = "cancel"

MAX_INLINE_OUTPUT_BYTES: Final = 32 * 1024
"""A larger output becomes a reference."""
MAX_PAYLOAD_BYTES: Final = 256 * 1024
"""No payload over it enters a history."""
MAX_CALL_INPUT_BYTES: Final = 128 * 1024
"""A call whose resolved input would be larger gets its operands by reference; the rest of the call needs room too."""
MAX_SENT_DECISIONS_BYTES: Final = 48 * 1024
"""As many of the decisions not yet recorded go with one call."""
MAX_DECLARED_BYTES: Final = 16 * 1024
"""A declared value that is larger stays in the artifact."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class ParentLink(_Message):
    """Of a child execution: whose step it is."""

    execution_id: str
    step_id: str
    depth: int
    """1 for the child of an execution that nobody's step started."""


class StartEnvelope(_Message):
    """Second argument of the workflow when Baton starts it; absent when Temporal alone does."""

    interpreter_version: int
    plan: ExecutionPlan | None = None
    plan_hash: str
    """The plan lies in the ExecutionStore under it when ``plan`` is absent; empty for a child, whose plan is
    compiled when it begins."""
    input_ref: ArtifactRef | None = None
    """The input when it is too large for history; the first argument is then null."""
    options: ExecutionOptions = Field(default_factory=ExecutionOptions)
    deadline_at: datetime | None = None
    search_attributes: list[str] = Field(default_factory=list[str])
    """Names that are registered in the namespace and may be upserted."""
    carried: CarriedState | None = None
    """Set on a run that continues another as new."""
    reused: list[SettledStep] = Field(default_factory=list[SettledStep])
    """Steps of a rerun that keep their recorded outcome."""
    parent: ParentLink | None = None
    """Set on a child."""
    version: int | None = None
    """Of the definition; set on a child."""


class LoadPlanInput(_Message):
    """Ask for the plan: by hash for a run that Baton started, by workflow type for one that it did not."""

    execution_id: str
    run_id: str
    run_started_at: datetime
    first_run_id: str | None = None
    """Of the chain of runs: another one than ``run_id`` when this run was reset or continues one."""
    definition_id: str
    plan_hash: str | None = None
    input: JsonValue = None
    version: int | None = None
    parent: ParentLink | None = None
    options: ExecutionOptions | None = None
    input_ref: ArtifactRef | None = None
    """The input of a child, when it is large."""


class LoadPlanResult(_Message):
    """The plan, frozen into history."""

    plan: ExecutionPlan | None = None
    plan_hash: str
    input_ref: ArtifactRef | None = None
    search_attributes: list[str] = Field(default_factory=list[str])
    """Names registered in the namespace, for a run that Baton's client did not start."""


class OperandRef(_Message):
    """Where an activity finds a value that a mapping reads: in an artifact, or in a step's record."""

    inline: JsonValue = None
    artifact_id: str | None = None
    step_id: str | None = None
    """The step whose recorded output holds it; its record's address has ``run_id``, ``item`` and ``n``."""
    item: int | None = None
    handed: bool = False
    """It is what the step has handed over."""
    n: int = 1
    run_id: str | None = None
    execution_input: bool = False
    """The value is the execution's input, in the execution's record."""
    segments: list[str | int] = Field(default_factory=list[str | int])
    """Path below the value found there."""


class CallInput(_Message):
    """An agent's input: resolved, or a mapping with its operands for the activity to resolve."""

    inline: JsonValue = None
    mapping: JsonValue = None
    operands: dict[str, OperandRef] | None = None
    """Path text to where its value is. A path that is not there takes its default or is null."""


class RecallInput(_Message):
    """What to recall before the agent is called."""

    query: CallInput
    top_k: int
    scope: ContextScope


class RetryDelays(_Message):
    """A retry policy's waits, for an activity that chooses them itself."""

    initial_interval: timedelta
    backoff_coefficient: float
    maximum_interval: timedelta


class ClosingCall(_Message):
    """If this call succeeds, the execution completes with its output: step and end are recorded at once."""

    plan_hash: str
    step_ids: list[str]
    """The plan's steps."""
    usage: Usage = Field(default_factory=Usage)
    """Of all calls before."""
    handoffs_taken: int = 0
    handoffs_refused: int = 0
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])


class AgentCallInput(_Message):
    """Input of an ``agent.<agent_id>`` activity."""

    execution_id: str
    definition_id: str
    version: int
    step_id: str
    step_name: str
    item: int | None = None
    iteration: int = 1
    n: int = 1
    agent: PlanAgent
    input: CallInput
    output_mapping: JsonObject | None = None
    output_operands: dict[str, OperandRef] = Field(default_factory=dict[str, OperandRef])
    """For paths of the output mapping that read something else than the agent's reply."""
    declared: list[str] = Field(default_factory=list[str])
    maximum_attempts: int = 1
    non_retryable: list[str] = Field(default_factory=list[str])
    run_started_at: datetime
    execution_started_at: datetime
    deadline_at: datetime | None = None
    prior_attempts: int = 0
    """Attempts of the step's earlier logical calls."""
    fallback_from: str | None = None
    """The agent that gave up, when this is a fallback's call."""
    resumed: bool = False
    """The same call scheduled again after a lost worker: look for a stored outcome first."""
    trace: bool = False
    tags: list[str] = Field(default_factory=list[str])
    decided: list[StepRecord] = Field(default_factory=list[StepRecord])
    """Decisions of the workflow that no activity has recorded yet."""
    closing: ClosingCall | None = None
    output_schema: JsonObject | None = None
    reply_keys: list[str] = Field(default_factory=list[str])
    recall: RecallInput | None = None
    handed: list[str] = Field(default_factory=list[str])
    """Paths (``source_output.plan_complete``) that handoffs read of the reply, overlaid by the mapped output."""
    delays: RetryDelays | None = None
    """Set when the waits between attempts are shortened at random."""
    events: list[Event] = Field(default_factory=list[Event])
    """What was decided about the step before it was dispatched; goes into its record."""
    remember_now: bool = False
    """Whether a later step may want to be reminded of this one's output: then it is stored before this one ends."""


class StepOutcome(_Message):
    """Result of an ``agent.<agent_id>`` activity that succeeded."""

    output: Value
    usage: Usage = Field(default_factory=Usage)
    attempts: int = 1
    started_at: datetime
    completed_at: datetime
    token: int
    unrecorded: bool = False
    """The store did not take the record; the workflow hands it on with its decisions."""
    decided_recorded: bool = True
    """Whether the ``decided`` list of the input was stored."""
    handed: Value | None = None
    """What ``AgentCallInput.handed`` asked for: an object of top keys, or a reference to it."""
    closed: bool = False
    """Whether the execution's end was recorded with it, as ``closing`` asked."""
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])


class FailureDetails(_Message):
    """First detail of the Application Error that a failed agent's activity raises."""

    attempt: int = 1
    usage: Usage = Field(default_factory=Usage)
    cause: Literal["agent", "input", "store", "unasked"] = "agent"
    """``input``: it could not be resolved. ``store``: the agent answered, and its output could not be kept.
    ``unasked``: a store kept the agent from being called at all. Only the first is the agent's fault."""
    details: JsonObject = Field(default_factory=dict[str, JsonValue])
    tool_calls: list[ToolCall] = Field(default_factory=list[ToolCall])
    """As many of the latest as fit into 16 KiB."""
    events: list[Event] = Field(default_factory=list[Event])
    """Start and retries of the call, the latest."""


class CollectInput(_Message):
    """Ask for the outputs of a step's items, as a list in item order with null where there is none."""

    count: int
    completed: list[tuple[int, int]]
    """First and last item of each stretch of items that have an output."""


class ComputeInput(_Message):
    """Input of ``compute_value``: make a value too large for history, and record the step that it is the output of."""

    execution_id: str
    run_started_at: datetime
    record: StepRecord
    """Of the step, without its output, its end and its token."""
    input: CallInput | None = None
    collect: CollectInput | None = None
    declared: list[str] = Field(default_factory=list[str])
    handed: list[str] = Field(default_factory=list[str])
    decided: list[StepRecord] = Field(default_factory=list[StepRecord])
    is_child_input: bool = False
    """Only the value is wanted, as a child's input; nothing is recorded."""


class ChildResult(_Message):
    """What a child returns to its parent."""

    output: Value = Field(default_factory=Value)
    usage: Usage = Field(default_factory=Usage)
    calls: int = 0
    """Agents' attempts."""


class RecordDecisionsInput(_Message):
    """Store decisions that would be too large to carry on."""

    execution_id: str
    run_id: str
    run_started_at: datetime
    decided: list[StepRecord] = Field(default_factory=list[StepRecord])


class RequestCancelInput(_Message):
    """Ask Temporal to cancel the run that asks."""

    execution_id: str
    run_id: str
    reason: str


class FinalizeInput(_Message):
    """The end of an execution, as the workflow decided it."""

    execution_id: str
    definition_id: str
    version: int
    plan_hash: str
    run_id: str
    run_started_at: datetime
    history_length: int
    status: ExecutionStatus
    output: CallInput | None = None
    """The output when completed, or its template with operands."""
    error: ErrorPayload | None = None
    cancel: Cancellation | None = None
    started_at: datetime
    completed_at: datetime
    usage: Usage = Field(default_factory=Usage)
    decided: list[StepRecord] = Field(default_factory=list[StepRecord])
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])
    step_ids: list[str] = Field(default_factory=list[str])
    """The plan's steps and those that the run has added, so that live state can be made anew."""
    events: list[Event] = Field(default_factory=list[Event])
    """Of the execution, before its end, that were not told yet."""
    handoffs_taken: int = 0
    handoffs_refused: int = 0


class FinalizeResult(_Message):
    """What the workflow returns or raises after its end was recorded."""

    output: Value = Field(default_factory=Value)
    status: ExecutionStatus
    error: ErrorPayload | None = None
    """Set when resolving the output failed and turned ``completed`` into ``failed``."""
