"""The examples of one construct each as a user runs them: each is a script of its own, and prints its story."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COLUMNS = 100
TESTED_ELSEWHERE = {"decisions", "feature_workflow"}
VARYING = ((re.compile(r"-[0-9a-z]{26}\b"), "-<ulid>"), (re.compile(r"\b\d+\.\d s$"), "<seconds>"))
"""What differs from run to run: the random part of an id, and how long a step took."""
PRINTED = {
    "handoff_on_edge": """\
Implement user authentication system
  handoff taken: its trigger fired
  step2 completed {"detailed_specs": ["sessions", "views"]}
Something new
  handoff refused: source_output.plan_complete = true does not hold
  step2 skipped handoff
""",
    "handoffs_followed": """\
alarm: checkout is slow
alarm>agent-status-page: Published: checkout is slow, we are on it
alarm>agent-engineer: Repaired checkout
alarm>agent-engineer>agent-reviewer: To be watched: a full disk
no handoff to agent-lawyer: source_output.data_lost = true does not hold
""",
    "escalation": """\
20: agent-clerk granted
80: agent-supervisor granted, since the clerk says: 80 is more than I may grant
    to agent-supervisor: its trigger fired
900: agent-director granted half of it
    not to agent-supervisor: input.amount <= 500 does not hold
    to agent-director: its trigger fired
""",
    "fallbacks": """\
letter: the first service (calls: 1)
contract: the other service (calls: 3)
poem: a poet (calls: 2)
secret: Step translate failed: Not for my eyes (calls: 1)
""",
    "for_each": """\
4 receipts: completed
  warning: 1 of 4 items of step read failed; they give null
  3 were read, 185.70 in all
3 receipts: failed
  Step read failed: Receipt 2 can't be read: a stain of tea
""",
    "repeat_until": """\
room for 60, 3 turns
  Come to the fair, there will be music, there will be cake
room for 10, 4 turns
  Come to the fair, there will be music
  warning: shorten ended at turn 4: its condition does not hold
""",
    "transform": """\
to "Ana Reis, Porto"
country "PT"
contents [{"position": 0, "text": "2 x teapot"}, {"position": 1, "text": "1 x tray"}]
first "teapot"
insured true
label "${barcode}"
Step parcel failed: The mapping of step parcel reads input.customer.city, which is not there; map
it, or give a default with ??
""",
    "wait": """\
Ana
  office_hours completed <seconds>
  invoice completed Invoice to Ana
  grace completed <seconds>
  look_up completed
  remind skipped
Rui
  office_hours completed <seconds>
  invoice completed Invoice to Rui
  grace completed <seconds>
  look_up completed
  remind completed Reminder to Rui
""",
    "child_workflow": """\
Ana finds 2 things ready, and badge for Ana at 5
- laptop for Ana at 900
- chair for Ana at 250
/badge.1 purchase ['ask', 'buy']
""",
    "approval": """\
Is 12 right for a tea? approve
  100 plain sheets with a tea at 11.5, as ann says
Is 12 right for a tea? reject
  Step release failed: rejected by ann
""",
    "ask_operator": """\
Step print has failed: There is a paper jam. Retry it, skip it with an output, or fail?
Step deliver has failed: There is no courier today. Retry it, skip it with an output, or fail?
print completed (calls: 2)
deliver skipped (calls: 1)
note completed (calls: 1)
'Dear Ana, come on Sunday' went by bicycle, Bob took it
""",
    "saga": """\
2 people: completed
  flight completed flight for 2
  hotel completed hotel for 2
  car completed car for 2
  tell completed Have a good journey
6 people: failed
  flight completed flight for 6
  hotel completed hotel for 6
  car failed
  hotel:compensate completed no hotel for 6
  flight:compensate completed no flight for 6
  tell completed Sorry: Step car failed: No car for 6 people
""",
    "pause_resume": """\
held by ops, while the editor says yes
paused {'check': 'completed', 'send': 'pending'}
resumed by ops
sent: The fair is on Sunday
""",
    "budget": """\
The budget of 2 agent calls is spent (2). Go on? continue
  found in Faro
The budget of 2 agent calls is spent (2). Go on? fail
  The budget was spent, and ann said to fail
The budget of 1 agent calls is spent (1). Go on? fail
  The budget was spent, and ann said to fail
""",
    "rerun": """\
| Portugal has rivers. Portugal has towns. |
would run ['write', 'layout'] and keep ['research']
calls saved: 1
| Portugal has rivers! Portugal has towns! |
research was kept
write ran again
layout ran again
then only ['layout']
""",
    "reading_runs": """\
added steps.water.when "steps.forecast.output.rain = false"
added steps.plant {"agent_id": "agent-gardener", "input_mapping": {"degrees":
Garden (garden, version 2): 3 steps in 2 levels
execution garden-<ulid> is completed: 2 completed, 1 skipped

  1  ✓ forecast  agent-forecaster
                 else agent-frog
  2  ↷ water     agent-gardener  after forecast
                 when steps.forecast.output.rain = false
     ✓ plant     agent-gardener  after forecast
                 when steps.forecast.output.degrees > 15
garden-<ulid> (version 2 of garden) is completed

 ✓ forecast  fell_back    It ran with nothing to wait for; agent-forecaster failed with unavailable
                          (The weather service is closed), so the next agent was called; it took 2
                          attempts, the last by agent-frog.
 ↷ water     skipped      It was skipped: steps.forecast.output.rain = false does not hold
                          (steps.forecast.output.rain = true).
 ✓ plant     ran          It ran after forecast (completed), as its condition held
                          (steps.forecast.output.degrees > 15).
""",
}


async def run(name, folder, dev_server):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BATON_", "TEMPORAL_"))}
    environment |= {
        "BATON_TEMPORAL_ADDRESS": dev_server.address,
        "BATON_WORKER": "embedded",
        "BATON_TASK_QUEUE": f"example-{name}-{os.getpid()}-{folder.name}",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": str(CHECKOUT),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", EXAMPLES / f"{name}.py"),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, complaints = (part.decode() for part in await process.communicate())
    assert (process.returncode, complaints) == (0, "")
    return [line.rstrip() for line in printed.splitlines()]


def told(line):
    for pattern, name in VARYING:
        line = pattern.sub(name, line)
    return line


@pytest.mark.parametrize("name", PRINTED)
async def test_an_example_tells_its_story(name, tmp_path, dev_server):
    lines = await run(name, tmp_path, dev_server)
    assert [told(line) for line in lines] == PRINTED[name].splitlines()
    assert [line for line in lines if len(line) > COLUMNS] == []


async def test_an_example_can_be_run_again_where_it_has_run(tmp_path, dev_server):
    first = await run("saga", tmp_path, dev_server)
    assert await run("saga", tmp_path, dev_server) == first


def test_each_example_is_run_and_readme_names_it():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(PRINTED) | TESTED_ELSEWHERE
    assert [name for name in sorted(names) if f"`{name}.py`" not in README] == []


def test_readme_shows_what_the_saga_prints():
    assert f"```text\n{PRINTED['saga']}```\n" in README, "examples/README.md shows another output than this"
