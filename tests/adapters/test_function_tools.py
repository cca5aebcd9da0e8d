"""Tools that are Python functions: what a model is told of them, where they run, and what comes back."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from engine.adapters.agents.tools.tool_source import AgentTools
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.masking import remember_secret
from engine.ports.tools import ToolFailure
from engine.tools import registered_tool, tool


@dataclass
class BoundedCall:
    deadline: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(seconds=30))
    execution_id: str = "flow-1"
    step_id: str = "step1"
    attempt: int = 1
    idempotency_key: str = "flow-1/run/step1/1"
    context: list = field(default_factory=list)
    cancelled: bool = False
    said: list = field(default_factory=list)

    def heartbeat(self, progress=None): ...

    def emit(self, text):
        self.said.append(text)


class NoSecrets:
    def fill_in(self, template, host):
        return template


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write modules into a folder on the import path; they are forgotten afterwards, as are their tools."""
    before = set(sys.modules)
    monkeypatch.setattr("engine.tools._registered", {})
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(path, source):
        *packages, name = path.split(".")
        folder = tmp_path
        for package in packages:
            folder = folder / package
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / f"{name}.py").write_text(textwrap.dedent(source))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
async def tools_of():
    """Make a source of tools that may load the given modules."""
    made = []

    def make(*agent_modules, max_threads=4):
        made.append(AgentTools(agent_modules, {}, NoSecrets(), [], max_threads=max_threads))
        return made[-1]

    yield make
    for source in made:
        await source.aclose()


@pytest.fixture
def shop(modules, tools_of):
    """A function that writes the module shop and returns its tool ``f``."""

    async def load(source, name="f"):
        modules("shop", source)
        found = await tools_of("shop").resolve_tools([f"shop:{name}"], BoundedCall())
        assert found.missing == {}
        return found.tools[0]

    return load


async def why_missing(source, name):
    found = await source.resolve_tools([name], BoundedCall())
    assert found.tools == []
    assert list(found.missing) == [name]
    return found.missing[name]


async def told(found, call=None, **arguments):
    with pytest.raises(ToolFailure) as caught:
        await asyncio.wait_for(found.invoke(arguments, call or BoundedCall()), 10)
    return str(caught.value)


async def test_a_model_is_told_of_name_purpose_and_arguments(shop):
    found = await shop(
        '''
        from typing import Annotated, Literal
        from pydantic import BaseModel, Field

        class Place(BaseModel):
            city: str

        def f(
            customer: int,
            place: Place,
            kind: Literal["new", "old"] = "new",
            schema: Annotated[list[str], Field(max_length=3)] = (),
            *,
            limit: int | None = None,
        ):
            """Find a customer's
            orders.

            Slow on Mondays.

            Args:
                customer: the customer's number,
                    as printed on the bill
                kind (str): how old
                limit: most orders: all of them when left out

            Returns:
                nothing: ever
            """
        '''
    )
    assert (found.name, found.description) == ("f", "Find a customer's orders.")
    assert found.parameters == {
        "$defs": {
            "Place": {
                "title": "Place",
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            }
        },
        "type": "object",
        "properties": {
            "customer": {"type": "integer", "description": "the customer's number, as printed on the bill"},
            "place": {"$ref": "#/$defs/Place"},
            "kind": {"enum": ["new", "old"], "type": "string", "description": "how old", "default": "new"},
            "schema": {"items": {"type": "string"}, "maxItems": 3, "type": "array"},
            "limit": {
                "anyOf": [{"type": "integer"}, {"type": "null"}],
                "description": "most orders: all of them when left out",
                "default": None,
            },
        },
        "required": ["customer", "place"],
        "additionalProperties": False,
    }


async def test_arguments_are_checked_and_converted(shop):
    found = await shop(
        """
        from datetime import date
        from pydantic import BaseModel

        class Place(BaseModel):
            city: str

        def f(day: date, place: Place, count: int = 3, model_config: str = "x"):
            return f"{day.year} {place.city} {count!r} {model_config}"
        """
    )
    arguments = {"day": "2025-05-01", "place": {"city": "Rom"}, "count": "7"}
    assert await found.invoke(arguments, BoundedCall()) == "2025 Rom 7 x"
    assert await told(found, day="x", place={}, other=1) == (
        "The arguments don't fit: day: Input should be a valid date or datetime, input is too short;"
        " place.city: Field required; other: Extra inputs are not permitted"
    )


async def test_an_annotated_call_is_handed_over_and_not_shown(shop):
    found = await shop(
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            from engine import AgentCall
            from nowhere import Thing

        def f(n: int, by: AgentCall | None = None) -> Thing:
            by.emit("working")
            return [n, by.step_id]
        """
    )
    assert list(found.parameters["properties"]) == ["n"]
    call = BoundedCall()
    assert await found.invoke({"n": 1}, call) == [1, "step1"]
    assert call.said == ["working"]
    assert "Extra inputs" in await told(found, n=1, by={})


async def test_a_function_without_annotations_takes_any_json(shop):
    found = await shop("def f(a, b=None, *rest, **others): return [a, b, rest, others]")
    assert found.parameters == {
        "type": "object",
        "properties": {"a": {}, "b": {"default": None}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert await found.invoke({"a": {"x": [1]}}, BoundedCall()) == [{"x": [1]}, None, [], {}]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def f(a, /): ...", "its parameter a can't be given by name"),
        ("import threading\ndef f(a: threading.Lock): ...", "its parameters have no JSON Schema"),
        ("def f(a: 'Nothing'): ...", "its annotations can't be read: name 'Nothing' is not defined"),
    ],
)
async def test_a_function_that_no_model_can_call_is_left_out(modules, tools_of, source, why):
    modules("shop", source)
    assert why in await why_missing(tools_of("shop"), "shop:f")


async def test_what_is_not_allowed_is_not_even_imported(modules, tools_of):
    modules("secret_shop", "def f(): ...")
    source = tools_of("shop")
    assert "agent_modules" in source.why_unknown("secret_shop:f")
    assert "agent_modules" in await why_missing(source, "secret_shop:f")
    assert "secret_shop" not in sys.modules
    assert "of the form package.module:name" in source.why_unknown("shop:f.g")
    assert source.why_unknown("shop.orders:anything") is None


async def test_an_import_that_takes_too_long_ends_with_the_deadline(modules, tools_of):
    modules("shop", "import time\ntime.sleep(2)\ndef f(): ...")
    call = BoundedCall(deadline=datetime.now(UTC) + timedelta(seconds=0.2))
    began = time.monotonic()
    with pytest.raises(AgentFailure, match="take longer to import") as caught:
        await tools_of("shop").resolve_tools(["shop:f"], call)
    assert caught.value.reason is FailureReason.TIMEOUT
    assert time.monotonic() - began < 1


async def test_what_is_not_there_is_left_out_with_the_reason(modules, tools_of):
    modules("shop", "from os import getcwd")
    modules("broken_shop", "raise SystemExit('closed')")
    source = tools_of("shop", "broken_shop")
    assert "defines no function f" in await why_missing(source, "shop:f")
    assert "imported names don't count" in await why_missing(source, "shop:getcwd")
    assert "SystemExit: closed" in await why_missing(source, "broken_shop:f")


@pytest.mark.parametrize(
    ("returned", "result"),
    [
        ("'text'", "text"),
        ("None", None),
        ("[1, {'a': 2.5}]", [1, {"a": 2.5}]),
        ("Place(city='Rom')", {"city": "Rom"}),
        ("[Place(city='Rom')]", [{"city": "Rom"}]),
        ("(date(2025, 5, 1), {1})", ["2025-05-01", [1]]),
    ],
)
async def test_results_become_json(shop, returned, result):
    found = await shop(
        f"""
        from datetime import date
        from pydantic import BaseModel

        class Place(BaseModel):
            city: str

        def f(): return {returned}
        """
    )
    assert await found.invoke({}, BoundedCall()) == result


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("object()", "not JSON"),
        ("float('nan')", "not JSON"),
        ("'x' * 2_000_000", "2000000 bytes; at most 1048576"),
        ("later()", "declare the function itself `async def`"),
    ],
)
async def test_a_result_that_is_none_is_told(shop, returned, words):
    found = await shop(f"async def later(): ...\ndef f(): return {returned}")
    assert words in await told(found)


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("raised", "text"),
    [
        ("ValueError('no such customer')", "ValueError: no such customer"),
        ("KeyError('hush-hush-4712')", "KeyError: '***'"),
        ("SystemExit(1)", "SystemExit: 1"),
        ("KeyboardInterrupt()", "KeyboardInterrupt"),
    ],
)
async def test_what_a_tool_raises_goes_back_as_text(shop, kind, raised, text):
    remember_secret("hush-hush-4712")
    found = await shop(f"{kind} f(): raise {raised}")
    assert await told(found) == text


async def test_a_long_message_is_bounded(shop):
    assert len(await told(await shop("def f(): raise ValueError('x' * 100_000)"))) == 2_000


async def test_functions_run_off_the_loop(shop, modules, tools_of):
    modules("other", "import threading\nasync def g(): return threading.current_thread().name")
    sync = await shop("import threading\ndef f(): return threading.current_thread().name")
    found = await tools_of("other").resolve_tools(["other:g"], BoundedCall())
    names = [await item.invoke({}, BoundedCall()) for item in (sync, *found.tools)]
    assert threading.current_thread().name not in names
    assert all(name.startswith("baton-agent") for name in names)


@pytest.mark.parametrize(
    ("kind", "waits"),
    [
        ("def", "while not call.cancelled: time.sleep(0.01)"),
        ("def", "time.sleep(3)"),
        ("async def", "await asyncio.sleep(60)"),
    ],
)
async def test_a_cancelled_call_returns_at_once(shop, kind, waits):
    found = await shop(
        f"""
        import asyncio, time
        from engine import AgentCall

        {kind} f(call: AgentCall):
            call.emit("begun")
            {waits}
        """
    )
    call = BoundedCall()
    task = asyncio.create_task(found.invoke({}, call))
    while not call.said:
        await asyncio.sleep(0.01)
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1


async def test_a_tool_ends_with_the_steps_deadline(shop):
    found = await shop("import asyncio\nasync def f(): await asyncio.sleep(60)")
    call = BoundedCall(deadline=datetime.now(UTC) + timedelta(seconds=0.2))
    assert await told(found, call) == "The tool did not end before the step's deadline"


async def test_calls_run_at_once_and_wait_in_turn(modules, tools_of):
    modules("shop", "import time\ndef f(): time.sleep(0.2); return 1")
    found = await tools_of("shop", max_threads=10).resolve_tools(["shop:f"], BoundedCall())
    began = time.monotonic()
    results = await asyncio.gather(*(found.tools[0].invoke({}, BoundedCall()) for _ in range(20)))
    assert results == [1] * 20
    assert 0.4 <= time.monotonic() - began < 2


async def test_equal_names_are_told_apart_and_a_repeat_is_one(modules, tools_of):
    for name in ("east", "west", "north"):
        modules(f"shop.{name}", f"def price(): return {name!r}")
    names = ["shop.east:price", "shop.west:price", "shop.east:price", "shop.north:price"]
    found = await tools_of("shop").resolve_tools(names, BoundedCall())
    assert [item.name for item in found.tools] == ["price", "price_2", "price_3"]
    assert [await item.invoke({}, BoundedCall()) for item in found.tools] == ["east", "west", "north"]


async def test_names_fit_every_provider(modules, tools_of):
    long = "a" * 80
    modules("shop", f"def größe(): return 1\ndef {long}(): return 2\ndef {long}b(): return 3")
    found = await tools_of("shop").resolve_tools(["shop:größe", f"shop:{long}", f"shop:{long}b"], BoundedCall())
    assert [item.name for item in found.tools] == ["gr_e", "a" * 64, "a" * 62 + "_2"]


async def test_a_registered_function_is_found_by_its_name(modules, tools_of):
    @tool("tool-structure-generator")
    def generate(kind: str):
        return f"{kind} structure"

    @tool
    def analyse(n: int):
        return n

    source = tools_of()
    assert generate("plain") == "plain structure"
    assert source.why_unknown("tool-structure-generator") is None
    found = await source.resolve_tools(["tool-structure-generator", "analyse"], BoundedCall())
    assert [item.name for item in found.tools] == ["generate", "analyse"]
    assert await found.tools[0].invoke({"kind": "web"}, BoundedCall()) == "web structure"


async def test_a_function_registered_anew_takes_the_place(modules, tools_of):
    source = tools_of()
    for number in (1, 2):

        @tool
        def count():
            return number  # noqa: B023 - it is called within the turn

        found = await source.resolve_tools(["count"], BoundedCall())
        assert await found.tools[0].invoke({}, BoundedCall()) == number


async def test_a_listed_module_is_imported_for_the_tools_that_it_registers(modules, tools_of):
    modules("shop.deep", "raise RuntimeError('only the listed modules themselves are imported')")
    modules("shop.tools", "from engine.tools import tool\n@tool('price of all')\ndef f(): return 5")
    source = tools_of("shop", "shop.tools")
    assert source.why_unknown("price of all") is None
    assert "shop.tools" not in sys.modules
    found = await source.resolve_tools(["price of all"], BoundedCall())
    assert await found.tools[0].invoke({}, BoundedCall()) == 5
    assert "shop.deep" not in sys.modules


async def test_a_name_that_nothing_registers_is_left_out(modules, tools_of, caplog):
    modules("shop", "raise ValueError('closed today')")
    empty = tools_of()
    for source in (empty.why_unknown("nothing"), await why_missing(empty, "nothing")):
        assert "no function is registered under this name" in source
        assert "agent_modules" in source
    listed = tools_of("shop")
    assert listed.why_unknown("nothing") is None
    with caplog.at_level(logging.WARNING):
        why = await why_missing(listed, "nothing")
    assert why == (
        "no function is registered under this name; the module shop can't be imported: ValueError: closed today"
    )
    assert "closed today" in caplog.text


def test_a_name_stands_for_one_function(modules):
    def first(): ...

    def second(): ...

    tool("one name")(first)
    tool("one name")(first)
    with pytest.raises(ValueError, match=r"'one name': .*first and .*second; give one of them another name"):
        tool("one name")(second)
    assert registered_tool("one name") is first


@pytest.mark.parametrize("name", ["", " ", "a:b", "mcp://a/b"])
def test_a_name_that_could_not_be_found_is_refused(modules, name):
    with pytest.raises(ValueError, match="colon"):
        tool(name)(len)


def test_the_decorator_loads_nothing_heavy():
    statement = (
        "import sys, engine.tools; print(sorted({'pydantic', 'temporalio', 'httpx2', 'mcp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_closed_source_calls_nothing(shop, modules, tools_of):
    modules("shop", "def f(): return 1")
    source = tools_of("shop")
    found = await source.resolve_tools(["shop:f"], BoundedCall())
    await source.aclose()
    assert "is stopping" in await told(found.tools[0])
