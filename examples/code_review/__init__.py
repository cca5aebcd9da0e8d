"""A review of a Python source tree as four agents, so that a first run does real work without any key.

The agents need nothing but the standard library. Each reads the files itself and takes only names and
numbers from the steps before it: what travels between the steps stays small, and each may run on another
worker that sees the same files.
"""

from __future__ import annotations

from typing import Final

AGENTS: Final[list[dict[str, object]]] = [
    {
        "name": "Architecture",
        "description": "Finds the modules of a Python source tree: packages, sizes and public names.",
        "capabilities": ["code_review", "structure_analysis"],
        "tools": [],
        "agent_id": "agent-architecture",
        "config": {"function": "examples.code_review.agents:architecture"},
    },
    {
        "name": "Detail",
        "description": "Measures complexity, length and docstring cover of the functions in each module.",
        "capabilities": ["code_review", "complexity_analysis"],
        "tools": [],
        "agent_id": "agent-detail",
        "config": {"function": "examples.code_review.agents:detail"},
    },
    {
        "name": "Relationship",
        "description": "Follows the imports between the modules: cycles, layers and hubs.",
        "capabilities": ["code_review", "dependency_analysis"],
        "tools": [],
        "agent_id": "agent-relationship",
        "config": {"function": "examples.code_review.agents:relationship"},
    },
    {
        "name": "Report",
        "description": "Joins what the other agents found into one Markdown report with a Mermaid graph.",
        "capabilities": ["code_review", "reporting"],
        "tools": [],
        "agent_id": "agent-report",
        "config": {"function": "examples.code_review.agents:report"},
    },
]
"""What `register_agent` takes, one dict an agent."""
