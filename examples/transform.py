"""Data in another shape, without an agent: an order of a web shop becomes what the parcel service wants.

.venv/bin/python examples/transform.py
"""

import asyncio
import json
import logging
import sys
import textwrap

from engine import EngineError, WorkflowEngine

STEPS = [
    {
        "id": "contents",
        "type": "transform",
        "foreach": {"items": "${input.lines}", "as": "line"},
        "transform": {"position": "${index}", "text": "${line.count} x ${line.article}"},
    },
    {
        "id": "parcel",
        "type": "transform",
        "transform": {
            "to": "${input.customer.name}, ${input.customer.city}",  # a text is filled in
            "country": "${input.customer.country ?? 'PT'}",  # a default for what may be missing
            "contents": "${steps.contents.output}",  # a lone path keeps its type, here a list
            "first": "${input.lines[0].article}",
            "insured": True,  # what is no text is left as it is
            "label": "$${barcode}",  # the parcel service's own template, not a path
        },
    },
]
ORDERS = [
    {
        "customer": {"name": "Ana Reis", "city": "Porto"},
        "lines": [{"count": 2, "article": "teapot"}, {"count": 1, "article": "tray"}],
    },
    {"customer": {"name": "Rui Dias"}, "lines": [{"count": 1, "article": "cup"}]},
]


async def main() -> None:
    """Print the parcel of an order, and what is wrong with an order that lacks a town."""
    async with WorkflowEngine() as engine:
        workflow_id = await engine.create_workflow(name="Parcel", steps=STEPS)
        for order in ORDERS:
            execution = await engine.execute_workflow(workflow_id, order)
            result = await engine.get_execution_result(execution["execution_id"], wait=60)
            if result["status"] == "completed":
                for key, value in result["output"].items():
                    print(key, json.dumps(value))
            else:
                print(textwrap.fill(result["error"]["message"], 100))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    try:
        asyncio.run(main())
    except EngineError as error:
        sys.exit(error.message)
