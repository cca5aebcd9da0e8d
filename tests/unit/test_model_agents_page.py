"""The page on model agents: its scripts print what it says, its files can be used, its links lead somewhere."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.adapters.agents.llm import conversation, tool_uses
from engine.adapters.agents.llm.prices import ModelPrices
from engine.adapters.agents.tools.mcp_link import START_SECONDS
from engine.settings import EngineSettings
from engine.testing import ModelStub

if TYPE_CHECKING:
    from engine.adapters.temporal.dev_server import DevServerLease
    from engine.domain.json import JsonObject

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "model-agents.md").read_text(encoding="utf-8")
_SCRIPT = r"^```python\n# (?P<name>[a-z_]+\.py)\n(?P<text>.*?)^```$(?:\n\nprints\n\n```text\n(?P<printed>.*?)^```$)?"
SCRIPTS = {found["name"]: found for found in re.finditer(_SCRIPT, PAGE, re.MULTILINE | re.DOTALL)}


def told_the_note(body: JsonObject) -> str:
    """Answer with what the tool has found, as a model would."""
    messages = body["messages"]
    assert isinstance(messages, list)
    return "You have to call Ishmael." if "call Ishmael" in str(messages[-1]) else "Nobody."


def told_the_hours(body: JsonObject) -> str:
    return "At six on Fridays." if "closes at six" in str(body["messages"]) else "I do not know."


ANSWERS = {
    "first.py": "Pequod",
    "librarian.py": [
        ModelStub.costing(
            {"tool": "shelf_of", "arguments": {"title": "Moby-Dick"}}, input_tokens=100, output_tokens=10
        ),
        ModelStub.costing({"title": "Moby-Dick", "shelf": "shelf A7"}, input_tokens=100, output_tokens=10),
        ModelStub.costing({"title": "Moby-Dick", "shelf": "A7"}, input_tokens=200, output_tokens=20),
    ],
    "notes.py": [{"tool": "find_note", "arguments": {"word": "call"}}, told_the_note],
    "memory.py": told_the_hours,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def written(folder: Path) -> Path:
    for name, found in SCRIPTS.items():
        (folder / name).write_text(found["text"], encoding="utf-8")
    return folder


def test_every_script_that_prints_is_run():
    assert {name for name, found in SCRIPTS.items() if found["printed"]} == set(ANSWERS)
    assert len(SCRIPTS) == len(blocks("python"))


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_script_prints_what_the_page_says(name: str, dev_server: DevServerLease, tmp_path: Path):
    (written(tmp_path) / "prices.toml").write_text('["gpt-4o-mini"]\ninput = 0.15\noutput = 0.6\n', encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BATON_", "TEMPORAL_"))}
    async with ModelStub(ANSWERS[name]) as stub:
        environment |= {
            "BATON_TEMPORAL_ADDRESS": dev_server.address,
            "BATON_WORKER": "embedded",
            "BATON_TASK_QUEUE": f"page-{name}-{os.getpid()}",
            "BATON_LLM_BASE_URL": stub.base_url,
            "BATON_PRICES_FILE": "prices.toml",
        }
        ran = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", name),
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        printed, complaints = (part.decode() for part in await ran.communicate())
    assert ran.returncode == 0, complaints
    assert printed == SCRIPTS[name]["printed"]


def test_the_settings_and_prices_can_be_used(tmp_path: Path):
    settings, prices = blocks("toml")
    (tmp_path / "baton.toml").write_text(settings, encoding="utf-8")
    loaded = EngineSettings.load({}, environ={}, cwd=tmp_path)
    assert set(loaded.mcp_servers) == set(tomllib.loads(settings)["profile"]["default"]["mcp_servers"])
    (tmp_path / "prices.toml").write_text(prices, encoding="utf-8")
    table = ModelPrices(tmp_path / "prices.toml")
    assert table.cost_of("gpt-4o-mini", None, 1_000_000, 1_000_000) == pytest.approx(0.75)
    assert table.cost_of("qwen3:8b", "http://localhost:11434/v1", 10, 10) == 0
    assert table.cost_of("qwen3:8b", "https://models.example/v1", 10, 10) is None


async def test_a_registered_tool_can_be_imported(tmp_path: Path):
    program = "import registered, asyncio; print(asyncio.run(registered.structure('app')))"
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=written(tmp_path), stdout=subprocess.PIPE
    )
    assert (await ran.communicate())[0] == b"{'kind': 'app', 'folders': ['src', 'tests']}\n"


@pytest.mark.parametrize(
    "text",
    [
        f"does not start within {START_SECONDS:g} s,",
        f"may have {tool_uses._MAX_RESULT_CHARS:,} characters",
        f"`max_turns` is {conversation._DEFAULT_MAX_TURNS} unless set",
        f"at most {tool_uses._MAX_TOGETHER} at once",
    ],
)
def test_a_figure_is_that_of_the_code(text: str):
    assert text in PAGE.replace("\n", " ")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        file = (DOCS / path).resolve() if path else DOCS / "model-agents.md"
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        known = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in known, target
