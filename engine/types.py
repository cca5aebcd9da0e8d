"""What goes in and out of ``WorkflowEngine``: the shape of every answer.

Instants are ISO 8601 text in UTC, durations seconds. The page of answers in the docs is made from this module.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from pydantic import JsonValue

JsonObject = dict[str, JsonValue]


class Error(TypedDict):
    """An error inside an answer."""

    code: str
    message: str
    details: JsonObject


class Issue(TypedDict):
    """One finding of a validation."""

    severity: Literal["error", "warning"]
    code: str
    path: str
    message: str
    hint: str | None


class Validation(TypedDict):
    """Answer of ``validate_workflow``."""

    valid: bool
    issues: list[Issue]


class ExecutionWarning(TypedDict):
    """Something that did not stop an execution but should be read."""

    code: str
    message: str
    step_id: str | None


class Workflow(TypedDict):
    """Answer of ``get_workflow``: the definition's fields and where it stands."""

    workflow_id: str
    status: str
    version: int
    content_hash: str
    created_at: str
    updated_at: str
    name: str
    description: str | None
    tags: list[str]
    metadata: JsonObject
    steps: list[JsonObject]
    handoffs: NotRequired[str]
    on_failure: NotRequired[str]
    input_schema: NotRequired[JsonObject]
    defaults: NotRequired[JsonObject]
    output_mapping: NotRequired[JsonObject]


class WorkflowItem(TypedDict):
    """A workflow in a list: without its steps."""

    workflow_id: str
    status: str
    version: int
    content_hash: str
    created_at: str
    updated_at: str
    name: str
    description: str | None
    tags: list[str]
    metadata: JsonObject
    step_count: int


class WorkflowPage(TypedDict):
    """Answer of ``list_workflows`` and ``list_workflow_versions``."""

    items: list[WorkflowItem]
    next_cursor: str | None


class TemporalRun(TypedDict):
    """Where an execution is found in Temporal."""

    workflow_id: str
    run_id: str | None
    namespace: str
    task_queue: str
    ui_url: str | None


class Execution(TypedDict):
    """Answer of ``execute_workflow``."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    created_at: str
    deadline_at: str | None
    warnings: list[ExecutionWarning]
    temporal: TemporalRun


class Progress(TypedDict):
    """How many steps stand where."""

    total: int
    completed: int
    failed: int
    skipped: int
    running: int


class StepStatus(TypedDict):
    """A step in a status."""

    status: str
    agent_id: str | None
    attempts: int
    started_at: str | None
    completed_at: str | None
    error: Error | None


class Cancel(TypedDict):
    """Why, by whom and when an execution was cancelled."""

    reason: str | None
    by: str | None
    at: str | None


class ExecutionItem(TypedDict):
    """An execution in a list; ``progress`` and ``current_steps`` only while it is open."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    progress: Progress | None
    current_steps: list[str] | None
    error: Error | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    cancel: NotRequired[Cancel]


class ExecutionStatus(TypedDict):
    """Answer of ``get_execution_status``."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    progress: Progress
    current_steps: list[str]
    steps: dict[str, StepStatus]
    error: Error | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    hint: NotRequired[str]
    stale: NotRequired[bool]
    cancel: NotRequired[Cancel]


class ExecutionPage(TypedDict):
    """Answer of ``list_executions``."""

    items: list[ExecutionItem]
    next_cursor: str | None


class Usage(TypedDict):
    """What calls cost; an unknown price is null."""

    requests: int
    input_tokens: int
    output_tokens: int
    tool_calls: int
    cost_usd: float | None


class ToolCall(TypedDict):
    """One use of a tool by an agent."""

    name: str
    arguments: JsonValue
    """What the model gave; text, cut to 2,000 characters, when it is larger."""
    duration: float
    error: str | None
    """What went back to the model in place of a result."""


class ContextOrigin(TypedDict):
    """Where a context item came from; what is null was not named when it was added."""

    execution_id: str | None
    step_id: str | None
    agent_id: str | None


class RecalledItem(TypedDict):
    """A context item that a step was given; its text is in ``search_context`` and in the store."""

    item_id: str
    score: float
    source: ContextOrigin


class ContextMatch(TypedDict):
    """A line of ``search_context``, best first."""

    item_id: str
    text: str
    score: float
    """0 to 1, comparable within one answer."""
    source: ContextOrigin
    metadata: dict[str, JsonValue]
    created_at: str


class ReindexedContext(TypedDict):
    """Answer of ``reindex_context``."""

    items: int
    """Context items that are in the vector index now."""
    made: int
    """Of these, made from step records that had none."""
    left: int
    """Outputs that can't be read and texts that the embedder refuses; each is logged."""


class StepResult(TypedDict):
    """A step in a result."""

    status: str
    agent_id: str | None
    attempts: int
    output: JsonValue
    error: Error | None
    reason: str | None
    started_at: str | None
    completed_at: str | None
    duration: float | None
    usage: Usage
    tool_calls: NotRequired[list[ToolCall]]
    """The tools that its agent used, in order; absent when it used none."""
    context: NotRequired[list[RecalledItem]]
    """What ``context.recall`` gave it, best first; absent when nothing was recalled."""
    input: NotRequired[JsonValue]
    """What its agent got; kept when the execution asked for a trace."""
    transcript: NotRequired[JsonValue]
    """Prompts and replies of a model agent as a list of messages; kept when the execution asked for a trace."""


class HandoffTaken(TypedDict):
    """A handoff that was decided about, taken or not."""

    handoff_id: str
    source_step: str
    target_step: str
    source_agent_id: str
    target_agent_id: str
    taken: bool
    reason: str | None
    """In words: that its trigger fired, or what kept it from being taken."""
    values: JsonObject
    """What its conditions read, by path."""
    at: str


class ExecutionResult(TypedDict):
    """Answer of ``get_execution_result``, for failed and cancelled executions too."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    output: JsonValue
    steps: dict[str, StepResult]
    handoffs: list[HandoffTaken]
    warnings: list[ExecutionWarning]
    usage: Usage
    error: Error | None
    started_at: str | None
    completed_at: str | None
    duration: float | None
    cancel: NotRequired[Cancel]


class Event(TypedDict):
    """One line of an execution's progress."""

    id: str
    type: str
    at: str
    step_id: str | None
    data: JsonObject


class AgentWarning(TypedDict):
    """Something that registration noticed."""

    code: str
    message: str


class Agent(TypedDict):
    """Answer of ``get_agent``."""

    agent_id: str
    name: str
    description: str | None
    capabilities: list[str]
    tools: list[str]
    config: JsonObject
    kind: str
    status: str
    version: int
    warnings: list[AgentWarning]
    created_at: str
    updated_at: str


class AgentPage(TypedDict):
    """Answer of ``list_agents``."""

    items: list[Agent]
    next_cursor: str | None


class Handoff(TypedDict):
    """Answer of ``get_handoff``."""

    handoff_id: str
    source_agent_id: str
    target_agent_id: str
    handoff_type: str
    data_mapping: dict[str, str]
    trigger_conditions: list[str]
    workflow_id: str | None
    status: str
    version: int
    created_at: str
    updated_at: str


class HandoffPage(TypedDict):
    """Answer of ``list_handoffs``."""

    items: list[Handoff]
    next_cursor: str | None


# Written as a call, because "as" is a word of Python.
AgentUse = TypedDict(
    "AgentUse", {"workflow_id": str, "steps": list[str], "as": Literal["agent", "fallback", "handoff"]}
)
AgentUse.__doc__ = """A workflow that uses an agent, and how: as a step's agent, as its fallback, or by a handoff."""


class AgentUsePage(TypedDict):
    """Answer of ``find_workflows``; a workflow that uses the agent in two ways comes twice."""

    items: list[AgentUse]
    next_cursor: str | None


class AgentImpact(TypedDict):
    """Answer of ``agent_impact``."""

    workflows: list[AgentUse]
    handoffs: list[Handoff]


class TimeRange(TypedDict):
    """The range that a report covers."""

    start: str
    end: str


class WorkflowMetrics(TypedDict):
    """Answer of ``get_workflow_metrics``."""

    workflow_id: str
    time_range: TimeRange
    metrics: dict[str, float | None]


class AgentPerformance(TypedDict):
    """Answer of ``get_agent_performance``."""

    agent_id: str
    time_range: TimeRange
    metrics: dict[str, float | None]


class Repair(TypedDict):
    """What was made right, in the record or in live state: its status before (null: there was none) and after."""

    execution_id: str
    what: Literal["record", "live_state"]
    before: str | None
    after: str


class Drift(TypedDict):
    """An execution that its places tell differently: its status in each (null: not there), and what is wrong."""

    execution_id: str
    record: str | None
    temporal: str | None
    live: str | None
    text: str


class Repairs(TypedDict):
    """Answer of ``repair_executions``; ``left`` is what only its starter or an operator can make right.

    ``live_state``: whether it answered, so that it was compared too.
    """

    checked: int
    live_state: bool
    repaired: list[Repair]
    left: list[Drift]


class Verification(TypedDict):
    """Answer of ``verify_executions``; ``live_state``: whether it answered, so that it was compared too."""

    checked: int
    live_state: bool
    drift: list[Drift]


class Component(TypedDict):
    """One part of the system in a health report; ``backend`` is null while it does not answer."""

    status: Literal["up", "degraded", "down", "no_worker"]
    backend: str | None
    latency_ms: float | None
    version: str | None
    detail: str | None


class SystemHealth(TypedDict):
    """Answer of ``get_system_health``."""

    status: Literal["healthy", "degraded", "unhealthy"]
    components: dict[str, Component]
    checked_at: str
