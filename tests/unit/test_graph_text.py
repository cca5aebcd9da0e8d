"""A definition's graph as text and as a Mermaid flowchart."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.domain.definition import DefinitionVersion, WorkflowDefinition
from engine.domain.definition_graph import AddedStep, DefinitionGraph, RunStates, definition_graph, stored_handoffs
from engine.domain.execution import StepStatus
from engine.domain.graph_mermaid import MAX_CHARS, MAX_EDGES, graph_mermaid
from engine.domain.graph_text import WIDTH, graph_text
from engine.domain.handoff import Handoff
from engine.domain.step_words import ICONS

PAGE = (Path(__file__).parents[2] / "docs" / "reading-runs.md").read_text(encoding="utf-8")
START = datetime(2026, 11, 22, 12, tzinfo=UTC)
NASTY = [
    "end",
    '"quoted" [a](b){c}|d|',
    "`md` **x**",
    "#quot; &amp; ;",
    '%%{init: {"theme":"dark"}}%%',
    "style:x #35; classDef a:b;",
    "<script>alert(1)</script>",
    "a\n---\nb",
    "click n0 callback",
    "-->|x| n0",
    '"]; n9["x',
    "\x1b[31mred\x07",
    "x" * 5000,
]


def graph(
    steps: list[dict[str, Any]], acting: list[Handoff] | None = None, *, name: str = "Flow", **fields: Any
) -> DefinitionGraph:
    definition = WorkflowDefinition.model_validate(
        {"name": name, "steps": [{"agent_id": f"agent-{step['id']}", **step} for step in steps], **fields}
    )
    version = DefinitionVersion(
        definition_id="flow",
        version=3,
        content_hash="sha256:d",
        definition=definition,
        created_at=START,
        updated_at=START,
    )
    return definition_graph(version, stored_handoffs(acting or []))


def handoff(number: int, source: str, target: str, *conditions: str, **fields: Any) -> Handoff:
    made_at = START + timedelta(seconds=number)
    return Handoff(
        handoff_id=f"h{number}",
        source_agent_id=source,
        target_agent_id=target,
        trigger_conditions=[*conditions],
        created_at=made_at,
        updated_at=made_at,
        **fields,
    )


def wide(count: int) -> DefinitionGraph:
    middle = [{"id": f"m{number}", "depends_on": ["first"]} for number in range(count)]
    return graph([{"id": "first"}, *middle, {"id": "last", "depends_on": [step["id"] for step in middle]}])


def chain(count: int) -> DefinitionGraph:
    return graph([{"id": f"c{n}", "depends_on": [f"c{n - 1}"] if n else []} for n in range(count)])


def dense(levels: int, width: int) -> DefinitionGraph:
    return graph(
        [
            {"id": f"d{level}_{n}", "depends_on": [f"d{level - 1}_{m}" for m in range(width)] if level else []}
            for level in range(levels)
            for n in range(width)
        ]
    )


RICH = graph(
    [
        {
            "id": "plan",
            "fallback": [{"agent_id": "agent-f", "on": ["rate_limited", "timeout"]}, {"agent_id": "agent-g"}],
        },
        {"id": "detail", "depends_on": ["plan"], "when": "${input.kind} = 'feature'"},
        {
            "id": "files",
            "foreach": {"items": "${steps.plan.output.files}", "as": "file", "max_concurrency": 10, "tolerate": "10%"},
            "on_error": "continue",
            "compensate": {"agent_id": "agent-u"},
        },
        {
            "id": "loop",
            "depends_on": ["files", "detail"],
            "join": "any",
            "repeat_until": {"condition": "output.done = true", "max_iterations": 5},
        },
        {
            "id": "ship",
            "type": "approval",
            "agent_id": "",
            "approval": {
                "question": "Ship ${steps.loop.output.title}?",
                "assignees": ["anna"],
                "timeout": 60,
                "on_timeout": "default",
                "default": "approve",
            },
        },
        {"id": "rest", "type": "wait", "agent_id": "", "wait": {"seconds": 30}, "depends_on": ["ship"]},
        {"id": "end", "type": "transform", "agent_id": "", "transform": {"a": "${steps.rest.output}"}},
        {
            "id": "child",
            "type": "workflow",
            "agent_id": "",
            "workflow_id": "other",
            "version": 2,
            "depends_on": ["rest"],
            "join": "settled",
        },
    ],
    [
        handoff(1, "agent-plan", "agent-detail", "completion", "source_output.score > 0.5"),
        handoff(2, "agent-detail", "agent-t"),
        handoff(3, "agent-files", "agent-e", handoff_type="escalation"),
    ],
    handoffs="follow",
    **{
        "finally": [
            {"id": "report", "agent_id": "agent-r"},
            {"id": "mail", "agent_id": "agent-m", "input_mapping": {"a": "${steps.report.output}"}},
        ]
    },
)
RUN = RunStates(
    "flow-1",
    "running",
    {
        "plan": StepStatus.COMPLETED,
        "detail": StepStatus.SKIPPED,
        "files": StepStatus.FAILED,
        "loop": StepStatus.RETRYING,
        "ship": StepStatus.WAITING,
    },
    [
        AddedStep("detail>agent-t", "handoff", "detail", "agent-t", StepStatus.COMPLETED),
        AddedStep("detail>agent-t>agent-z", "handoff", "detail>agent-t", "agent-z", StepStatus.RUNNING),
        AddedStep("files:compensate", "compensation", "files", "agent-u", StepStatus.CANCELLED),
    ],
)
RICH_TEXT = """\
Flow (flow, version 3): 8 steps in 6 levels, 2 finally

  1  plan    agent-plan
             else agent-f on rate_limited, timeout
             else agent-g
  2  detail  agent-detail  after plan
             when ${input.kind} = 'feature'
             by handoff h1 from plan: completion, if source_output.score > 0.5
             hands over to agent-t by h2: completion
     files   agent-files  after plan
             \N{MULTIPLICATION SIGN} for each of ${steps.plan.output.files} as file, 10 at once, 10% may fail
             on error continue
             undone by agent-u
             escalates to agent-e by h3: failure
  3  loop    agent-loop  after any of detail, files (join any)
             ↻ until output.done = true, at most 5 turns
  4  ship    approval: Ship ${steps.loop.output.title}?  after loop
             answers approve, reject, of anna, within 60 s, then approve
  5  rest    wait 30 s  after ship
  6  end     transform  after rest
     child   workflow other, version 2  after rest, however they end (join settled)

finally, however it ended
  1  report  agent-r
  2  mail    agent-m  after report"""


def test_the_text_shows_order_types_conditions_and_what_surrounds_each_step():
    assert graph_text(RICH) == RICH_TEXT


def test_the_text_of_a_run_shows_states_and_what_the_run_added():
    lines = graph_text(RICH, RUN).splitlines()
    assert lines[1] == (
        "execution flow-1 is running: 5 pending, 1 retrying, 1 waiting, 1 completed, 1 failed, 1 skipped"
    )
    icons = {line[5:].split()[1]: line[5:].split()[0] for line in lines if line[5:6] in "·▶↻◔✓✗↷⊘" and line[5:6]}
    assert icons == {
        "plan": "✓",
        "detail": "↷",
        "files": "✗",
        "loop": "↻",
        "ship": "◔",
        "rest": "·",
        "end": "·",
        "child": "·",
        "report": "·",
        "mail": "·",
        "detail>agent-t": "✓",
        "detail>agent-t>agent-z": "▶",
        "files:compensate": "⊘",
    }
    assert "agent-z, handed over by detail>agent-t" in lines[lines.index("added by this run") + 4]
    assert lines[-1].strip() == "agent-u, undoes files"


def test_a_handoff_governs_only_edges_between_its_agents():
    drawn = graph(
        [{"id": "a"}, {"id": "b", "depends_on": ["a"]}, {"id": "c", "depends_on": ["b"]}],
        [handoff(1, "agent-a", "agent-b"), handoff(2, "agent-a", "agent-c"), handoff(3, "agent-b", "agent-a")],
    )
    assert [[given.handoff_id for edge in step.edges for given in edge.handoffs] for step in drawn.main] == [
        [],
        ["h1"],
        [],
    ]
    assert [step.leaving for step in drawn.main] == [[], [], []]


@pytest.mark.parametrize(
    ("mode", "edges", "leaving"), [("edges", ["h1"], ["h3"]), ("follow", ["h1"], ["h2", "h3"]), ("off", [], [])]
)
def test_what_handoffs_do_depends_on_the_definition(mode: str, edges: list[str], leaving: list[str]):
    acting = [
        handoff(2, "agent-a", "agent-t"),
        handoff(1, "agent-a", "agent-b"),
        handoff(3, "agent-a", "agent-e", "timeout", handoff_type="escalation"),
    ]
    first, second = graph([{"id": "a"}, {"id": "b", "depends_on": ["a"]}], acting, handoffs=mode).main
    assert [given.handoff_id for edge in second.edges for given in edge.handoffs] == edges
    assert [given.handoff_id for given in first.leaving] == leaving


def test_every_field_that_reads_a_step_makes_it_wait():
    reading: list[dict[str, Any]] = [
        {"depends_on": ["a"]},
        {"input_mapping": {"x": "${steps.a.output}"}},
        {"output_mapping": {"x": "${steps.a.output.y}"}},
        {"when": "steps.a.error != null"},
        {"context": {"recall": "about ${steps.a.output}"}},
        {"foreach": {"items": "${steps.a.output}"}},
        {"repeat_until": {"condition": "steps.a.output.x = output.x"}},
        {"type": "transform", "transform": {"x": ["${steps.a.output}"]}},
        {"type": "wait", "wait": {"until": "${steps.a.output.at}"}},
        {"type": "approval", "approval": {"question": "${steps.a.output}?"}},
    ]
    for fields in reading:
        step = graph([{"id": "a"}, {"id": "b", **fields}]).main[1]
        assert ([edge.source for edge in step.edges], step.level) == (["a"], 1), fields
    alone = graph([{"id": "b", "repeat_until": {"condition": "steps.b.output.x = 1"}}]).main[0]
    assert (alone.edges, alone.level) == ([], 0)


@pytest.mark.parametrize(("drawn", "most_lines"), [(wide(1000), 30), (chain(1000), 50), (dense(40, 25), 210)])
def test_a_thousand_steps_stay_readable(drawn: DefinitionGraph, most_lines: int):
    lines = graph_text(drawn).splitlines()
    assert len(lines) <= most_lines
    assert max(map(len, lines)) <= WIDTH


def test_a_folded_level_says_how_many_and_which_are_left_out():
    lines = graph_text(wide(1000)).splitlines()
    assert "     … 990 more, m10 to m999" in lines
    assert any("after m0, m1, m2, m3, m4, m5, m6, … 993 more" in line for line in lines)
    assert "  …  … 960 more in levels 38 to 997, c37 to c996" in graph_text(chain(1000)).splitlines()


def test_a_folded_level_of_a_run_shows_what_went_wrong():
    run = RunStates("flow-1", "running", {"m0": StepStatus.COMPLETED, "m500": StepStatus.FAILED})
    drawn = graph_text(wide(1000), run)
    assert "✗ m500" in drawn
    assert "… 990 more, m9 to m999: 990 pending" in drawn
    assert '["m500<br/>agent-m500"]' in graph_mermaid(wide(1000), run)


def test_the_flowchart_shows_conditions_handoffs_and_the_end():
    lines = [line.strip() for line in graph_mermaid(RICH).splitlines()]
    assert lines[0] == "flowchart TD"
    assert 'subgraph cleanup["finally"]' in lines
    assert "main ==> cleanup" in lines
    assert 'n0["plan<br/>agent-plan<br/>else agent-f on rate_limited, timeout<br/>else agent-g"]' in lines
    assert (
        'n0 -.->|"handoff on completion, if source_output.score #62; 0.5<br/>'
        "when $#123;input.kind#125; = 'feature'\"| n1"
    ) in lines
    assert "n0 --> n2" in lines
    assert 'n2 -.->|"escalation on failure"| a1' in lines
    assert 'n1 -.->|"handoff on completion"| a0' in lines
    assert {'a0("agent-t")', 'a1("agent-e")'} <= set(lines)
    shapes = [re.fullmatch(r'\w+([\[({/]+)".*"([\])}/]+)', line) for line in lines[2:10]]
    assert [shape and shape.groups() for shape in shapes] == [
        *[("[", "]")] * 4,
        ("{{", "}}"),
        ("([", "])"),
        ("[/", "/]"),
        ("[[", "]]"),
    ]
    assert not any(line.startswith("class") for line in lines)


def test_the_flowchart_of_a_run_has_a_class_for_each_state():
    drawn = graph_mermaid(RICH, RUN)
    classes = dict(re.findall(r"^  class (\S+) (\w+)$", drawn, re.MULTILINE))
    assert classes == {
        "n0,r0": "completed",
        "n2": "failed",
        "n1": "skipped",
        "n3,r1": "running",
        "n4": "waiting",
        "r2": "cancelled",
        "n5,n6,n7,f8,f9": "pending",
    }
    assert set(classes.values()) == set(re.findall(r"^  classDef (\w+) ", drawn, re.MULTILINE))
    assert 'n1 -.->|"handed over"| r0' in drawn
    assert 'r0 -.->|"handed over"| r1' in drawn
    assert 'n2 -.->|"undone by"| r2' in drawn
    assert 'agent-t")' not in drawn.replace('r0("detail#62;agent-t<br/>agent-t")', "")


@pytest.mark.parametrize("text", NASTY)
def test_no_text_of_a_user_changes_the_drawing(text: str):
    quoted = text.replace("'", "").replace("\\", "")[:1000]

    def drawing(said: str) -> DefinitionGraph:
        return graph(
            [
                {"id": "end", "name": said},
                {"id": "b", "depends_on": ["end"], "when": f"input.x = '{said}'"},
                {"id": "c", "type": "approval", "approval": {"question": said}, "depends_on": ["b"]},
            ],
            [handoff(1, "agent-end", "agent-b", f"source_output.x = '{said}'")],
            name=said,
            **{"finally": [{"id": "f", "agent_id": "x"}]},
        )

    plain, nasty = graph_mermaid(drawing("plain")).splitlines(), graph_mermaid(drawing(quoted)).splitlines()
    assert [re.sub(r'".*"', '""', line) for line in nasty] == [re.sub(r'".*"', '""', line) for line in plain]
    for label in re.findall(r'"(.*)"', "\n".join(nasty)):
        bare = re.sub(r"#\d+;|<br/>", "", label)
        assert not set(bare) & set('"<>|[](){}`#;:&%\\'), label
        assert bare.isprintable()
    lines = graph_text(drawing(quoted)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("drawn", [wide(1000), chain(1000), dense(40, 25)])
def test_a_flowchart_stays_within_what_mermaid_draws(drawn: DefinitionGraph):
    text = graph_mermaid(drawn)
    arrows = [line for line in text.splitlines() if "->" in line]
    assert 0 < len(arrows) <= MAX_EDGES
    assert len(text) <= MAX_CHARS
    assert "more steps" in text


def test_a_drawing_is_the_same_every_time():
    assert graph_mermaid(RICH, RUN) == graph_mermaid(RICH, RUN)
    assert graph_text(RICH, RUN) == graph_text(RICH, RUN)


def test_the_page_shows_what_is_drawn():
    drawn = graph(
        [
            {
                "id": "plan",
                "agent_id": "agent-planner",
                "fallback": {"agent_id": "agent-fallback", "on": ["rate_limited", "timeout"]},
            },
            {"id": "build", "agent_id": "agent-builder", "depends_on": ["plan"], "when": "${input.kind} = 'feature'"},
            {
                "id": "ship",
                "type": "approval",
                "agent_id": "",
                "approval": {
                    "question": "Ship ${steps.build.output.title}?",
                    "assignees": ["anna"],
                    "timeout": 60,
                    "on_timeout": "default",
                    "default": "approve",
                },
            },
            {"id": "tell", "agent_id": "agent-teller", "depends_on": ["build"]},
        ],
        [
            handoff(1, "agent-planner", "agent-builder", "source_output.score > 0.5"),
            handoff(3, "agent-teller", "agent-lead", handoff_type="escalation"),
        ],
        **{"finally": [{"id": "report", "agent_id": "agent-reporter"}]},
    )
    states = {"plan": StepStatus.COMPLETED, "build": StepStatus.RUNNING}
    run = RunStates("flow-01k3v9m2rj7c4t0q8d5xw6yzab", "running", states)
    assert f"```text\n{graph_text(drawn, run)}\n```" in PAGE
    assert re.findall(r"^\| `(\W)` \| (\w+)", PAGE, re.MULTILINE) == [
        (icon, status.value if status is not StepStatus.RETRYING else "called") for status, icon in ICONS.items()
    ]
