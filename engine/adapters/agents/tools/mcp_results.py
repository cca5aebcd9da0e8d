"""What a model gets of an MCP tool's result: its structured content, else its texts, and a note for what is neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mcp_types import AudioContent, CallToolResult, EmbeddedResource, ImageContent, ResourceLink, TextContent
from mcp_types import TextResourceContents as TextResource

from engine.adapters.agents.tools.tool_results import checked_result, tool_failure
from engine.masking import mask_json

if TYPE_CHECKING:
    from mcp_types import ContentBlock

    from engine.domain.json import JsonValue

__all__ = ["result_of"]


def result_of(result: CallToolResult) -> JsonValue:
    """Return the result as JSON, without secrets that were resolved here.

    Raises:
        ToolFailure: the tool said that it failed, or the result is too large.
    """
    text = "\n".join(_text_of(block) for block in result.content)
    if result.is_error:
        raise tool_failure(text or "The tool failed and does not say why")
    structured = cast("object", result.structured_content)
    return mask_json(checked_result(text if structured is None else structured))


def _text_of(block: ContentBlock) -> str:
    match block:
        case TextContent():
            return block.text
        case ImageContent() | AudioContent():
            return f"[{block.type} of type {block.mime_type}, {_bytes_of(block.data)} bytes, not shown]"
        case ResourceLink():
            return f"[link to {block.uri}]"
        case EmbeddedResource():
            resource = block.resource
            if isinstance(resource, TextResource):
                return resource.text
            return f"[resource {resource.uri}, {_bytes_of(resource.blob)} bytes, not shown]"


def _bytes_of(base64_text: str) -> int:
    return len(base64_text.rstrip("=")) * 3 // 4
