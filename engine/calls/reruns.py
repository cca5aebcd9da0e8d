"""Executions that are run again, in part."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine import answers
from engine.arguments import plain, text
from engine.calls.base import Calls, on_own_loop
from engine.calls.executions import start_answer
from engine.errors import InvalidInputError
from engine.services.reruns import RerunService, parse_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine import types
    from engine.bootstrap import EngineSession
    from engine.calls.base import Document
    from engine.domain.json import JsonValue

__all__ = ["RerunCalls"]


class RerunCalls(Calls):
    """The calls of ``WorkflowEngine`` that run an execution again."""

    @on_own_loop
    async def rerun_execution(
        self,
        execution_id: str,
        from_step: str | Sequence[str] | None = None,
        input_data: Document | None = None,
        version: str = "original",
        preview: bool = False,  # noqa: FBT001, FBT002 - the call's documented form
    ) -> types.Rerun | types.RerunPreview:
        """Start an execution anew and keep what it came to, as far as it still holds.

        Args:
            execution_id: of an execution that is over; it stays as it is.
            from_step: the steps that run again, with everything that rests on them. None: what did not complete.
            input_data: other input; steps that read what has changed run again. None: the same input.
            version: ``original`` (the frozen plan) or ``latest`` (the newest version of workflow and agents).
            preview: only tell what would run, what would be kept and what that saves.

        Raises:
            ExecutionNotFoundError, DefinitionNotFoundError: there is no such execution, or its workflow was deleted.
            ConflictError: the execution is still open.
            InvalidInputError: an argument can't be used, nothing would run, or the newest version is another one in
                what would be kept (``details.reasons``).
        """
        session = self._session()
        given = cast("JsonValue", None if input_data is None else plain(input_data))
        request = parse_request(text(execution_id, "execution_id"), plain(from_step), given, version)
        if not isinstance(cast("object", preview), bool):
            raise InvalidInputError("preview must be true or false", {"path": "preview"})
        reruns = _reruns_of(session)
        if preview:
            return answers.rerun_preview(await reruns.preview_rerun(request))
        done = await reruns.rerun_execution(request)
        return answers.rerun(done, start_answer(session, self._settings, done.started))


def _reruns_of(session: EngineSession) -> RerunService:
    stores = session.stores
    return RerunService(
        session.plans, stores.definitions, stores.executions, stores.artifacts, session.reads, session.executions
    )
