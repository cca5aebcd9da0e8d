"""`baton demo`: the whole of Baton on real work, without a key or anything set up before.

It stays quiet about what is the library's own business and shows what a user sees: steps, result, addresses. Where a
model can be called, it sums the report up in a step more; nothing else depends on one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import ExitCode, Invocation, output_option
from engine.cli.printing import note, part, print_answer, print_fields, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.facade import WorkflowEngine
    from engine.settings import EngineSettings

_CHECKOUT = Path(__file__).resolve().parents[2]
_AGENTS_PACKAGE = "examples"
_WIDTH = 100
_KEY_VARIABLE = "BATON_SECRET_OPENAI_API_KEY"
_DEFAULT_MODEL = "gpt-4o-mini"


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=Path("baton-review.md"),
    show_default=True,
    help="Where the report goes.",
)
@click.option("--keep", is_flag=True, help="Leave server, UI and worker running until Ctrl-C.")
@output_option
@click.pass_context
def demo(
    ctx: click.Context,
    path: Path | None,
    report: Path,
    keep: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Review the Python source tree PATH (default: Baton's own) with a workflow of four agents.

    Starts server and worker, registers the agents, stores the workflow, runs it with live progress and writes the
    report. With a key for OpenAI, or another endpoint in llm_base_url, a model (OPENAI_MODEL, else gpt-4o-mini) sums
    the report up.
    """
    from engine.cli.serving import make_sure_of_server

    invocation = ctx.ensure_object(Invocation)
    tree, report_path = _checked_tree(path or _CHECKOUT), _checked_report(report)
    settings = invocation.settings()
    model = _model(settings)
    if not settings.has_temporal_address():
        make_sure_of_server()
    overrides = {
        "agent_modules": list(dict.fromkeys([*settings.agent_modules, _AGENTS_PACKAGE])),
        "worker": "embedded",
    }
    stopped_by: list[ExitCode] = []

    async def use(engine: WorkflowEngine) -> Mapping[str, object]:
        result, ui_url = await _review(engine, tree, report_path, model)
        _print_review(invocation, result, ui_url)
        if keep:
            stopped_by.append(await _stay())
        return result

    # What goes wrong in a step is in the result, in the words of the agent: no need for a traceback as well.
    result = invocation.call(use, overrides=overrides, log_level="ERROR")
    if not settings.has_temporal_address():
        note("The server has ended; `./baton dev` here starts it and its UI again, with this execution in it.")
    if result["status"] != "completed":
        ctx.exit(ExitCode.EXECUTION_FAILED)
    ctx.exit(stopped_by[0] if stopped_by else ExitCode.OK)


def _checked_tree(path: Path) -> Path:
    from engine.errors import InvalidInputError

    tree = path.expanduser().absolute()
    if not tree.exists():
        raise InvalidInputError(
            f"There is nothing at {tree}; give an existing folder or Python file", {"path": str(path)}
        )
    if tree.is_file() and tree.suffix != ".py":
        raise InvalidInputError(f"{tree} is no Python file (.py); give one or a folder", {"path": str(path)})
    if tree.is_dir() and next(tree.rglob("*.py"), None) is None:
        raise InvalidInputError(
            f"No Python file (.py) was found below {tree}; give a folder that holds some", {"path": str(path)}
        )
    return tree


def _checked_report(report: Path) -> Path:
    from engine.errors import InvalidInputError

    path = report.expanduser().absolute()
    if path.suffix != ".md":
        raise InvalidInputError(f"--report takes the path of a Markdown file (.md), not {report}")
    if not path.parent.is_dir():
        raise InvalidInputError(f"There is no folder {path.parent} for the report; make it or choose another")
    return path


def _model(settings: EngineSettings) -> str | None:
    """Return the model that sums up; without one, say how to get there."""
    from engine.cli.doctor import absent_llm_packages

    key_file = None if settings.secrets_dir is None else settings.secrets_dir / "OPENAI_API_KEY"
    has_key = bool(os.environ.get(_KEY_VARIABLE) or os.environ.get(f"{_KEY_VARIABLE}_FILE"))
    is_there = settings.llm_base_url is not None or has_key or (key_file is not None and key_file.is_file())
    lacking = ["run `./baton install llm`"] if absent_llm_packages() else []
    if not is_there:
        lacking.append(f"set {_KEY_VARIABLE}, or BATON_LLM_BASE_URL for another endpoint than OpenAI's")
    if lacking:
        note(f"For a summary by a model: {', then '.join(lacking)}.")
        return None
    return os.environ.get("OPENAI_MODEL") or _DEFAULT_MODEL


async def _review(
    engine: WorkflowEngine, tree: Path, report_path: Path, model: str | None
) -> tuple[Mapping[str, object], object]:
    from engine.cli.agent import register_all
    from engine.cli.reading import read_object
    from engine.cli.run import store
    from engine.cli.watching import follow
    from examples.code_review import AGENTS
    from examples.code_review.summary import summary_agents, with_summary

    registered = await register_all(engine, AGENTS if model is None else [*AGENTS, *summary_agents(model)])
    note(f"registered {shown(registered)}")
    definition = read_object(str(_CHECKOUT / "examples" / "code_review" / "workflow.yaml"), "a workflow definition")
    if model is not None:
        definition = with_summary(definition)
    workflow_id = await store(engine, definition)
    note(f"reviewing {tree}")
    execution = await engine.execute_workflow(
        workflow_id=workflow_id, input_data={"path": str(tree), "report_path": str(report_path)}
    )
    ui_url = part(cast("Mapping[str, object]", execution), "temporal").get("ui_url")
    note(f"started {execution['execution_id']}")
    if ui_url:
        note(f"Temporal UI: {ui_url}")
    return await follow(engine, execution["execution_id"]), ui_url


def _print_review(invocation: Invocation, result: Mapping[str, object], ui_url: object) -> None:
    from engine.cli.watching import print_result

    def render() -> None:
        if result["status"] != "completed":
            print_result(result)
            return
        output = part(result, "output")
        click.echo()
        click.echo(click.wrap_text(shown(output.get("summary")), _WIDTH))
        for finding in cast("list[object]", output.get("findings") or []):
            click.echo(click.wrap_text(shown(finding), _WIDTH, initial_indent="  - ", subsequent_indent="    "))
        _print_model_summary(result)
        unreadable = cast("list[Mapping[str, object]]", output.get("unreadable") or [])
        if unreadable:
            click.echo(f"\nNot reviewed, because they can't be read ({len(unreadable)}):")
            for row in unreadable:
                click.echo(f"  - {shown(row.get('path'))}: {shown(row.get('reason'))}")
        click.echo()
        duration = result.get("duration")
        took = f" in {duration:.1f} s" if isinstance(duration, int | float) else ""
        print_fields(
            {
                "report": output.get("report_path"),
                "execution": result.get("execution_id"),
                "status": f"{result['status']}{took}",
                "Temporal UI": ui_url,
            }
        )

    print_answer(result, invocation.output, render)


def _print_model_summary(result: Mapping[str, object]) -> None:
    step = part(part(result, "steps"), "summary")
    if step.get("agent_id") != "agent-summary":
        return  # there is none, or its fallback has repeated the figures
    cost = part(step, "usage").get("cost_usd")
    told = f"{cost:.6f} USD" if isinstance(cost, int | float) else "unknown"
    click.echo(f"\nIn a model's words (cost: {told}):\n")
    click.echo(click.wrap_text(shown(part(result, "output").get("model_summary")), _WIDTH, preserve_paragraphs=True))


async def _stay() -> ExitCode:
    from engine.cli.serving import stop_on_signals

    note("Server, UI and worker stay until Ctrl-C.")
    with stop_on_signals() as stop:
        await stop.event.wait()
    return stop.exit_code
