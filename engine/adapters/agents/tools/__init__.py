"""The tools that a model may call: users' Python functions and the tools of MCP servers."""
