"""One call of a model: requests until the output fits, tools in between, repairs bounded.

The loop is Baton's own, on pydantic-ai's models: so every request, repair and tool is counted where it happens, each
bound is exact, and whatever ends the call, what it has cost is known. Importing this module takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, cast

from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from engine.adapters.agents.llm.model_failures import failure_of_model, is_rejection
from engine.adapters.agents.llm.tool_uses import AskedTool, ToolUses, parsed_arguments
from engine.adapters.agents.replies import bounded_text
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.domain.issues import IssueList
from engine.domain.json_schema import check_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_ai.messages import ModelMessage, ModelRequestPart
    from pydantic_ai.models import Model, StreamedResponse

    from engine.adapters.agents.llm.progress_text import ProgressText
    from engine.adapters.agents.llm.prompts import OutputForm, Prompt
    from engine.adapters.agents.llm.spending import Spending
    from engine.domain.agent_call import AgentCall
    from engine.domain.agent_config import LlmConfig
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.tools import Tool

__all__ = ["Conversation"]

_MAX_REPAIRS: Final = 2
_DEFAULT_MAX_TURNS: Final = 10
_OUTPUT_TOOL: Final = "final_result"
_OUTPUT_TOOL_DESCRIPTION: Final = "Gives the final answer."
_MAX_SHOWN_ISSUES: Final = 10


@dataclass(slots=True)
class Conversation:
    """One call; ``run`` is for one use."""

    model: Model
    host: str
    config: LlmConfig
    prompt: Prompt
    form: OutputForm
    tools: Sequence[Tool]
    call: AgentCall
    spending: Spending
    progress: ProgressText
    transcript: list[JsonValue] | None
    """Takes every message that was sent or received; None when nobody wants them."""
    _messages: list[ModelMessage] = field(init=False, default_factory=list["ModelMessage"])
    _output_tool: str = field(init=False, default=_OUTPUT_TOOL)

    async def run(self) -> JsonObject:
        """Return the output: an object that fits the form, or ``{"text": ...}``.

        Raises:
            AgentFailure: with its reason, after the table of ``model_failures``.
        """
        names = {tool.name for tool in self.tools}
        while self._output_tool in names:
            self._output_tool += "_"
        uses = ToolUses(self.tools, self.call, self.spending)
        self._open()
        max_turns = self.config.max_turns or _DEFAULT_MAX_TURNS
        faults = 0
        fault: str | None = None
        for _ in range(max_turns):
            response = await self._ask()
            output, fault, answers = await self._take(response, uses)
            if output is not None:
                return output
            faults += fault is not None
            if faults > _MAX_REPAIRS:
                break
            self._messages.append(ModelRequest(parts=answers))
        if fault is not None:
            raise self._failure(FailureReason.INVALID_OUTPUT, f"gave no fitting output: {fault}")
        raise self._failure(FailureReason.ERROR, f"came to no output in {max_turns} requests (`max_turns`)")

    def _open(self) -> None:
        instructions, text = self.prompt.instructions, self.prompt.text
        self._messages.append(ModelRequest(parts=[UserPromptPart(text)], instructions=instructions))
        if instructions is not None:
            self._note({"role": "system", "content": instructions})
        self._note({"role": "user", "content": text})

    async def _ask(self) -> ModelResponse:
        """Make one request and return its whole answer; its text is emitted while it comes."""
        self.spending.requests += 1
        try:
            request = model_request_stream(
                self.model,
                self._messages,
                model_settings=self._settings(),
                model_request_parameters=self._parameters(),
                instrument=False,
            )
            async with request as stream:
                try:
                    response = await self._read(stream)
                finally:
                    usage = stream.usage
                    if usage.input_tokens or usage.output_tokens:
                        self.spending.measured.append((usage.input_tokens, usage.output_tokens))
        except AgentFailure as failure:
            raise self._with_host(failure) from None
        except Exception as error:  # noqa: BLE001 - of three libraries; the table gives each its reason
            self.spending.rejected += is_rejection(error)
            raise self._with_host(failure_of_model(error, self.host)) from None
        self._messages.append(response)
        self._note(_noted(response))
        self._check_end(response, is_measured=not stream.usage.unmeasured_requests)
        return response

    async def _read(self, stream: StreamedResponse) -> ModelResponse:
        async for event in stream:
            match event:
                case PartStartEvent(part=TextPart(content=text)):
                    self.progress.add(text)
                case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                    self.progress.add(text)
                case _:
                    pass
        self.progress.flush()
        return stream.get()

    def _settings(self) -> ModelSettings:
        settings = ModelSettings()
        if self.config.temperature is not None:
            settings["temperature"] = self.config.temperature
        if self.config.max_tokens is not None:
            settings["max_tokens"] = self.config.max_tokens
        return settings

    def _parameters(self) -> ModelRequestParameters:
        functions = [_definition(tool.name, tool.parameters, tool.description, "function") for tool in self.tools]
        if self.form.schema is None:
            return ModelRequestParameters(function_tools=functions)
        output = _definition(self._output_tool, self.form.told_schema(), _OUTPUT_TOOL_DESCRIPTION, "output")
        return ModelRequestParameters(
            function_tools=functions, output_tools=[output], output_mode="tool", allow_text_output=False
        )

    def _check_end(self, response: ModelResponse, *, is_measured: bool) -> None:
        details = response.provider_details or {}
        if response.finish_reason == "content_filter":
            refusal = bounded_text(str(details.get("refusal") or ""), 500)
            what = f"refused: {refusal}" if refusal else "was stopped by a content filter"
            raise self._failure(FailureReason.REFUSED, what)
        if response.finish_reason == "length":
            raise self._failure(
                FailureReason.INVALID_OUTPUT, "was cut off at its token limit; raise `max_tokens`, or ask for less"
            )
        if "finish_reason" not in details and not is_measured:
            raise self._failure(FailureReason.UNAVAILABLE, "stopped in the middle of its answer")

    async def _take(
        self, response: ModelResponse, uses: ToolUses
    ) -> tuple[JsonObject | None, str | None, list[ModelRequestPart]]:
        """Return the output, or what is wrong with it, and what the model is told next."""
        parts = [part for part in response.parts if isinstance(part, ToolCallPart)]
        asked = [part for part in parts if not self._is_output(part)]
        texts = await uses.run([AskedTool(part.tool_name, part.args) for part in asked]) if asked else []
        answers: list[ModelRequestPart] = [self._told(part, text) for part, text in zip(asked, texts, strict=True)]
        outputs = [part for part in parts if self._is_output(part)]
        if outputs:
            output, fault = self._checked(outputs[0].args)
            if output is not None:
                return output, None, []
            answers += [self._told(part, f"Error: {fault} Give the whole answer again.") for part in outputs]
            return output, fault, answers
        if asked:
            return None, None, answers
        output, fault = self._from_text(response)
        if fault is not None:
            self._note({"role": "user", "content": fault})
            answers.append(UserPromptPart(fault))
        return output, fault, answers

    def _is_output(self, part: ToolCallPart) -> bool:
        return self.form.schema is not None and part.tool_name == self._output_tool

    def _told(self, part: ToolCallPart, text: str) -> ToolReturnPart:
        self._note({"role": "tool", "tool_call_id": part.tool_call_id, "name": part.tool_name, "content": text})
        return ToolReturnPart(tool_name=part.tool_name, content=text, tool_call_id=part.tool_call_id)

    def _from_text(self, response: ModelResponse) -> tuple[JsonObject | None, str | None]:
        text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
        if not text.strip():
            return None, "The answer was empty."
        if self.form.schema is None:
            return {"text": text}, None
        # Endpoints that know no forced tools answer with the object as text.
        output, fault = self._checked(_unfenced(text))
        if fault is not None:
            fault = f"{fault} Answer by calling {self._output_tool}, with an object that fits its schema."
        return output, fault

    def _checked(self, arguments: object) -> tuple[JsonObject | None, str | None]:
        output = parsed_arguments(arguments)
        if isinstance(output, str):
            return None, f"The answer can't be used: {output}."
        schema = self.form.schema or {}
        issues = IssueList(output, prefix=("output",))
        check_value(schema, output, issues)
        if not issues.has_errors():
            return output, None
        found = issues.in_order()[:_MAX_SHOWN_ISSUES]
        return None, f"The answer does not fit: {' '.join(f'{issue.path}: {issue.message}' for issue in found)}"

    def _failure(self, reason: FailureReason, what: str) -> AgentFailure:
        message = bounded_text(f"The model {self.config.model:.200} at {self.host} {what}")
        return AgentFailure(reason, message, details={"host": self.host})

    def _with_host(self, failure: AgentFailure) -> AgentFailure:
        failure.details = {"host": self.host, **failure.details}
        return failure

    def _note(self, message: JsonObject) -> None:
        if self.transcript is not None:
            self.transcript.append(cast("JsonValue", message))


def _definition(name: str, schema: JsonObject, description: str, kind: Literal["function", "output"]) -> ToolDefinition:
    # OpenAI's strict mode refuses a schema that says nothing, which pydantic-ai takes for fit for it.
    return ToolDefinition(
        name=name,
        parameters_json_schema=dict(schema),
        description=description,
        kind=kind,
        strict=False if _has_open_part(schema) else None,
    )


def _has_open_part(schema: JsonValue) -> bool:
    if isinstance(schema, list):
        return any(_has_open_part(part) for part in schema)
    if not isinstance(schema, dict):
        return False
    properties = schema.get("properties")
    named = [*properties.values()] if isinstance(properties, dict) else []
    return any(part in ({}, True) for part in (*named, schema.get("items"))) or any(
        _has_open_part(part) for part in (*named, *schema.values())
    )


def _noted(response: ModelResponse) -> JsonObject:
    text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    calls: list[JsonValue] = []
    for part in response.parts:
        if isinstance(part, ToolCallPart):
            given = parsed_arguments(part.args)
            calls.append(
                {
                    "id": part.tool_call_id,
                    "name": part.tool_name,
                    "arguments": given
                    if isinstance(given, dict)
                    else bounded_text(str(part.args), len(str(part.args))),
                }
            )
    noted: JsonObject = {"role": "assistant", "content": bounded_text(text, len(text))}
    return {**noted, "tool_calls": calls} if calls else noted


def _unfenced(text: str) -> str:
    """Return what stands between the fences of a Markdown block, when the text is one."""
    stripped = text.strip()
    if not (stripped.startswith("```") and stripped.endswith("```") and "\n" in stripped):
        return stripped
    return stripped[stripped.index("\n") : -3].strip()
