"""Tools registered in code: the decorator that gives a function a name under which agents may list it.

    @tool("tool-structure-generator")
    def generate(kind: str, depth: int = 2) -> dict: ...

Registering is the permission: whoever runs code in this process could call the function anyhow. One name stands for
one function in the whole process, so a second function under it is refused with both places, never chosen by the
order of imports.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["registered_tool", "tool"]

F = TypeVar("F", bound="Callable[..., object]")

_lock = threading.Lock()
_registered: dict[str, Callable[..., object]] = {}


@overload
def tool(named: F, /) -> F: ...
@overload
def tool(named: str, /) -> Callable[[F], F]: ...
def tool(named: F | str, /) -> F | Callable[[F], F]:
    """Register a function as a tool, under its own name (``@tool``) or another (``@tool("any text")``).

    The function stays as it is. Its parameters' annotations tell a model what to give, the first paragraph of its
    docstring what it is for; a parameter annotated ``AgentCall`` gets the call and is not shown to the model. Its
    module has to be imported in the worker: by the program, or by being listed in the setting ``agent_modules``.

    Raises:
        ValueError: another function has the name already, or the name is blank or holds a colon.
    """
    if not isinstance(named, str):
        _register(getattr(named, "__name__", type(named).__name__), named)
        return named
    name = named

    def register(function: F) -> F:
        _register(name, function)
        return function

    return register


def registered_tool(name: str) -> Callable[..., object] | None:
    """Return the function registered under ``name``, or None."""
    return _registered.get(name)


def _register(name: str, function: Callable[..., object]) -> None:
    if not name.strip() or ":" in name:
        raise ValueError(f"a tool's name must not be blank nor hold a colon, which {name!r} does; give it another")
    with _lock:
        known = _registered.get(name)
        # A module that is loaded anew brings the same function again.
        if known is not None and _place_of(known) != _place_of(function):
            raise ValueError(
                f"two functions are registered as the tool {name!r}: {_place_of(known)} and {_place_of(function)};"
                " give one of them another name"
            )
        _registered[name] = function


def _place_of(function: Callable[..., object]) -> str:
    qualified = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '?')}:{qualified}"
