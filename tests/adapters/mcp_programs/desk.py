"""A real MCP server for the tests, over standard input and output or, given a port, over streamable HTTP."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image

server = MCPServer("desk")
running = [0]


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(structured_output=False)
def say(text: str) -> str:
    return f"said {text}"


@server.tool()
def environment() -> dict[str, str]:
    return dict(os.environ)


@server.tool()
def process() -> int:
    return os.getpid()


@server.tool()
async def rest(seconds: float) -> int:
    """Rest, and tell how many rested at once at most."""
    running.append(running[-1] + 1)
    try:
        await asyncio.sleep(seconds)
    finally:
        running.append(running[-1] - 1)
    return max(running)


@server.tool()
def block(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@server.tool()
def fail(text: str) -> str:
    raise ValueError(text)


@server.tool()
def leave(code: int) -> str:
    print("leaving because I was told to", file=sys.stderr, flush=True)
    os._exit(code)


@server.tool(structured_output=False)
def picture() -> Image:
    return Image(data=b"12345", format="png")


@server.tool()
async def grow(ctx: Context) -> str:
    """Get one tool more."""
    server.add_tool(lambda: "new", name="grown", description="It was not there.")
    await ctx.notify_tools_changed()
    return "grown"


if __name__ == "__main__":
    print("desk is open", file=sys.stderr, flush=True)
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]), stateless_http="stateless" in sys.argv)
    else:
        server.run("stdio")
