"""Which Python functions a stored name may reach: those defined in an allowed module, and those registered in code.

Nothing is imported before the allow-list has said yes, and a name is looked up in the module's own dictionary, so
that neither an import path nor a re-exported ``os.system`` gives a stored record more than the operator meant.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.adapters.agents.replies import bounded_text, failure_of, log_failure
from engine.domain.agent_call import AgentFailure, FailureReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.domain.json import JsonValue

__all__ = ["AgentFunction", "AgentFunctions", "is_async_function"]

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentFunction:
    """A user's function and how it wants to be called."""

    name: str
    function: Callable[..., object]
    takes_call: bool
    is_async: bool


class AgentFunctions:
    """Finds functions by the name in an agent's config.

    Args:
        agent_modules: import paths whose modules, and all below them, may be loaded; empty allows none.
        functions: name without a colon to function.
    """

    def __init__(self, agent_modules: Sequence[str], functions: Mapping[str, Callable[..., object]]) -> None:
        self._allowed = [tuple(path.split(".")) for path in agent_modules]
        self._registered = dict(functions)
        self._known: dict[str, AgentFunction] = {}

    def find(self, name: JsonValue) -> AgentFunction | None:
        """Return the function if no import is needed for it, or None when ``load`` has to.

        Raises:
            AgentFailure: invalid_request, when the name may not be called or can't be.
        """
        if not isinstance(name, str) or not name:
            raise _invalid("The agent's config needs `function`, as package.module:name")
        known = self._known.get(name)
        if known is not None:
            return known
        if ":" in name:
            self._check_allowed(name)
            return None
        if name not in self._registered:
            raise _invalid(
                f"No function is registered under the name {name!a:.200}; write `function` as package.module:name"
            )
        return self._remember(name, self._registered[name])

    def load(self, name: str) -> AgentFunction:
        """Import the function's module, which may take long and runs its code, and return the function.

        Raises:
            AgentFailure: error, when the import fails; invalid_request, when the module has no such function, or
                the function is none of an agent.
        """
        return self._remember(name, self.import_function(name))

    def import_function(self, name: str) -> Callable[..., object]:
        """As ``load``, of a function with parameters of any kind."""
        path, attribute = self._check_allowed(name)
        try:
            module = importlib.import_module(path)
        except BaseException as error:  # noqa: BLE001 - a module's code may raise anything, SystemExit too
            log_failure(_logger, f"the import of the agent's module {path} failed", error)
            raise AgentFailure(
                FailureReason.ERROR,
                bounded_text(f"The agent's module {path} can't be imported: {failure_of(error).message}"),
            ) from None
        function: object = vars(module).get(attribute)
        if not callable(function) or getattr(function, "__module__", None) != path:
            raise _invalid(f"The module {path} defines no function {attribute}; imported names don't count")
        return function

    def _check_allowed(self, name: str) -> tuple[str, str]:
        path, _, attribute = name.partition(":")
        parts = tuple(path.split("."))
        if not attribute.isidentifier() or not all(part.isidentifier() for part in parts):
            raise _invalid(f"The function {name!a:.200} is not of the form package.module:name, with one undotted name")
        if not any(parts[: len(prefix)] == prefix for prefix in self._allowed):
            raise _invalid(
                f"The module {path!a:.200} is not allowed; add it, or a package above it, to the setting"
                " `agent_modules`",
                setting="agent_modules",
            )
        return path, attribute

    def _remember(self, name: str, function: Callable[..., object]) -> AgentFunction:
        known = AgentFunction(name, function, _takes_call(name, function), is_async_function(function))
        self._known[name] = known
        return known


def _takes_call(name: str, function: Callable[..., object]) -> bool:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        # Functions in C may hide their signature; the documented one is assumed.
        return True
    if _binds(signature, 2):
        positional = [item for item in signature.parameters.values() if item.kind in _POSITIONAL]
        # A second parameter with a default is the user's own option unless it is called `call`.
        return len(positional) < 2 or positional[1].default is inspect.Parameter.empty or positional[1].name == "call"
    if _binds(signature, 1):
        return False
    raise _invalid(
        f"The function {name} must take (input, call) or (input); it takes {bounded_text(str(signature), 200)}"
    )


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def is_async_function(function: Callable[..., object]) -> bool:
    """Whether calling it makes a coroutine."""
    called = getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is async counts too
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def _invalid(message: str, setting: str | None = None) -> AgentFailure:
    return AgentFailure(
        FailureReason.INVALID_REQUEST, message, details={"setting": setting} if setting is not None else None
    )
