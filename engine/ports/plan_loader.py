"""What the ``load_plan`` activity needs of the services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.messages import LoadPlanInput, LoadPlanResult


class PlanLoader(Protocol):
    """Finds or makes the plan of a run."""

    async def load_plan(self, request: LoadPlanInput) -> LoadPlanResult:
        """Return the plan by its hash, or compile the active version of ``definition_id`` and make its record.

        Idempotent by the execution's id.

        Raises:
            DefinitionNotFoundError: a definite no; a store that does not answer is ``StoreError``.
            ConflictError: the id belongs to an execution that another run began.
            InvalidInputError, AgentNotFoundError, UnsupportedError: the definition can't be run as it stands.
        """
        ...
