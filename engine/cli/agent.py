"""`baton agent`: what steps can call."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import Invocation, output_option
from engine.cli.printing import (
    HANDOFF_COLUMNS,
    USE_COLUMNS,
    instant,
    note,
    print_answer,
    print_fields,
    print_json,
    print_page,
    print_rows,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.facade import WorkflowEngine

_FIELDS = ("agent_id", "name", "description", "capabilities", "tools", "config")


@click.group()
def agent() -> None:
    """Register and read agents."""


@agent.command()
@click.argument("file", metavar="FILE")
@output_option
@click.pass_obj
def register(invocation: Invocation, file: str) -> None:
    """Register the agent in FILE, or a list of them (YAML or JSON; - reads standard input).

    An agent has name, description, capabilities, tools and config; config has function, url or model.
    """
    from engine.cli.reading import read_objects

    agents = read_objects(file, "an agent")
    answers = [{"agent_id": agent_id} for agent_id in invocation.call(lambda engine: register_all(engine, agents))]
    if invocation.output == "json":
        print_json(answers[0] if len(answers) == 1 else answers, "json")
    else:
        for answer in answers:
            print_answer(answer, invocation.output, lambda answer=answer: click.echo(answer["agent_id"]))


@agent.command()
@click.argument("agent_id", metavar="ID")
@output_option
@click.pass_obj
def get(invocation: Invocation, agent_id: str) -> None:
    """Show the agent ID."""
    found = cast("Mapping[str, object]", invocation.call(lambda engine: engine.get_agent(agent_id)))
    print_answer(found, invocation.output, lambda: print_fields(found))


@agent.command("list")
@click.option("--capability", "capabilities", multiple=True, help="Only those that have it; repeatable.")
@click.option("--status", default="active", show_default=True)
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@output_option
@click.pass_obj
def list_(invocation: Invocation, capabilities: tuple[str, ...], status: str, limit: int, cursor: str | None) -> None:
    """List agents."""
    page = invocation.call(
        lambda engine: engine.list_agents(
            capabilities=list(capabilities) if capabilities else None, status=status, limit=limit, cursor=cursor
        )
    )
    print_page(
        cast("Mapping[str, object]", page),
        invocation.output,
        {
            "AGENT": lambda item: item.get("agent_id"),
            "VERSION": lambda item: item.get("version"),
            "UPDATED (UTC)": lambda item: instant(item.get("updated_at")),
            "CAPABILITIES": lambda item: item.get("capabilities"),
        },
    )


@agent.command()
@click.argument("agent_id", metavar="ID")
@output_option
@click.pass_obj
def impact(invocation: Invocation, agent_id: str) -> None:
    """Show which workflows and handoffs would miss the agent ID."""
    found = invocation.call(lambda engine: engine.agent_impact(agent_id))

    def render() -> None:
        if not (found["workflows"] or found["handoffs"]):
            note("nothing uses it")
        if found["workflows"]:
            print_rows(cast("Sequence[Mapping[str, object]]", found["workflows"]), USE_COLUMNS)
        if found["workflows"] and found["handoffs"]:
            click.echo()
        if found["handoffs"]:
            print_rows(cast("Sequence[Mapping[str, object]]", found["handoffs"]), HANDOFF_COLUMNS)

    print_answer(found, invocation.output, render)


async def register_all(engine: WorkflowEngine, agents: Sequence[Mapping[str, object]]) -> list[str]:
    """Register agents in their order and return their ids.

    Raises:
        InvalidInputError: an agent has a key that is none of an agent's; nothing was registered then.
    """
    import difflib

    from engine.errors import InvalidInputError

    for index, one in enumerate(agents):
        for key in one:
            if key not in _FIELDS:
                near = difflib.get_close_matches(key, _FIELDS, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; an agent has {', '.join(_FIELDS)}"
                raise InvalidInputError(f"An agent has no key {key!r}{hint}", {"path": f"[{index}].{key}"})
        if not one.get("name"):
            raise InvalidInputError("An agent needs a name", {"path": f"[{index}].name"})
    register_agent = cast("Callable[..., Awaitable[str]]", engine.register_agent)
    return [await register_agent(**one) for one in agents]
