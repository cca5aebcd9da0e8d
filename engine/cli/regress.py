"""`baton regress`: what a changed definition does differently, on the answers that agents have given before."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

from engine.cli.invocation import ExitCode, Invocation, output_option, quiet_drivers
from engine.cli.printing import note, print_answer, print_fields, print_table, shown

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engine.domain.json import JsonObject, JsonValue
    from engine.testing.comparison import PathStep, RunComparison
    from engine.testing.recording import Recording

_T = TypeVar("_T")


@click.command()
@click.argument("execution_id", metavar="[EXECUTION]", required=False)
@click.option("--against", metavar="FILE", help="The definition to run, as it was or changed (YAML or JSON).")
@click.option("--recording", "recording_path", metavar="FILE.json", help="A kept recording instead of EXECUTION.")
@click.option("--save", "save_path", metavar="FILE.json", help="Keep the recording of EXECUTION there.")
@output_option
@click.pass_context
def regress(
    ctx: click.Context,
    execution_id: str | None,
    against: str | None,
    recording_path: str | None,
    save_path: str | None,
) -> None:
    """Run the definition in FILE on the input and the agents' answers of EXECUTION, and print what differs.

    Nothing is called and nothing is stored: the run takes place in a temporary folder, on a development server of its
    own, without waits and retries. Compared are the steps' path and the result. Exits 1 when something differs.
    """
    from engine.cli.reading import read_object
    from engine.cli.serving import make_sure_of_server
    from engine.testing import compare_runs, replay_recording

    if (execution_id is None) is (recording_path is None):
        raise click.UsageError("Give an EXECUTION, or --recording FILE.json.")
    if against is None and save_path is None:
        raise click.UsageError("Give --against FILE to run it, or --save FILE.json to keep the recording.")
    invocation = ctx.ensure_object(Invocation)
    definition = None if against is None else read_object(against, "a workflow definition")
    recording = _recording(invocation, execution_id, recording_path)
    if save_path is not None:
        recording.save(save_path)
        note(f"recorded {recording.execution_id} in {save_path}")
    if against is None or definition is None:
        return
    _note_partial(recording)
    make_sure_of_server()
    replayed = _run(replay_recording(recording, definition))
    found = compare_runs(recording, replayed)
    answer = {**_runs(recording, replayed), **found.to_dict()}
    print_answer(answer, invocation.output, lambda: _print(against, recording, replayed, found))
    if not found.is_equal:
        ctx.exit(ExitCode.EXECUTION_FAILED)


def _recording(invocation: Invocation, execution_id: str | None, path: str | None) -> Recording:
    from engine.testing import Recording

    if path is not None:
        return Recording.load(path)
    return invocation.call(lambda engine: Recording.take(engine, execution_id or ""))


def _run(replaying: Coroutine[object, object, _T]) -> _T:
    """Run it quietly: a failed step is part of the answer."""
    import asyncio

    from engine.observability import open_logging

    log = open_logging("ERROR", "text")
    try:
        with quiet_drivers():
            return asyncio.run(replaying)
    finally:
        log.close()


def _note_partial(recording: Recording) -> None:
    partial = [step_id for step_id, step in recording.steps.items() if any(not call.is_whole for call in step.calls)]
    if partial:
        note(
            f"Of the replies of {shown(partial)} only what their output_mapping read is known: a changed mapping may "
            "miss the rest, and output_schema is not checked there."
        )


def _runs(recording: Recording, replayed: Recording) -> JsonObject:
    return {
        "execution_id": recording.execution_id,
        "workflow_id": recording.workflow_id,
        "version": recording.version,
        "status_before": recording.status,
        "status_after": replayed.status,
    }


def _print(against: str, recording: Recording, replayed: Recording, found: RunComparison) -> None:
    print_fields(
        {
            "recorded": f"{recording.execution_id} ({recording.workflow_id}, version {recording.version}): "
            f"{recording.status}",
            "replayed": f"{against}: {replayed.status}",
            "path": _verdict(len(found.path)),
            "result": _verdict(len(found.result)),
        }
    )
    if found.path:
        click.echo()
        rows = [[one.step_id, _way(one.before), _way(one.after)] for one in found.path]
        print_table(["STEP", "RECORDED", "REPLAYED"], rows)
    for one in found.result:
        click.echo(f"\n{one.path}")
        click.echo(f"  recorded  {_value(one.before) if one.kind != 'added' else '-'}")
        click.echo(f"  replayed  {_value(one.after) if one.kind != 'removed' else '-'}")


def _verdict(count: int) -> str:
    return "equal" if not count else "1 difference" if count == 1 else f"{count} differences"


def _way(step: PathStep | None) -> str:
    if step is None:
        return "-"
    by = f" by {step.agent_id}" if step.agent_id else ""
    fallbacks = f", not by {shown(list(step.fell_back_from))}" if step.fell_back_from else ""
    after = f", after {shown(list(step.after))}" if step.after else ""
    return f"{step.status}{by}{fallbacks}{after}"


def _value(value: JsonValue) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
