"""A definition's graph as a Mermaid flowchart, for pages and wikis.

Nodes have ids of their own, because a step may be called ``end``. Of labels every character that means something to
Mermaid or to HTML is written as its code, so that no text of a user can change the drawing. Mermaid refuses more than
500 edges or 50,000 characters; a graph that comes near is folded until it fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.execution import StepStatus
from engine.domain.graph_layout import fold
from engine.domain.step_words import counted, line, step_in_words, step_notes, trigger_in_words

if TYPE_CHECKING:
    from engine.domain.definition import Step
    from engine.domain.definition_graph import DefinitionGraph, GraphStep, RunStates

__all__ = ["graph_mermaid"]

MAX_EDGES: Final = 450
MAX_CHARS: Final = 45_000
MAX_LABEL_CHARS: Final = 60
_FOLDS: Final = ((10, 40), (5, 30), (3, 15), (1, 10), (1, 4))
"""Most steps of a level and most levels, tried in this order."""
_SAFE: Final = frozenset(" ,.-+=/!?_'$*~^@…↻\N{MULTIPLICATION SIGN}")
_SHAPES: Final = {
    "agent": ("[", "]"),
    "transform": ("[/", "/]"),
    "wait": ("([", "])"),
    "approval": ("{{", "}}"),
    "workflow": ("[[", "]]"),
}
_STYLES: Final = {
    "completed": "fill:#d9f2dd,stroke:#2e7d32,color:#111",
    "failed": "fill:#fadbd8,stroke:#c62828,color:#111",
    "skipped": "fill:#eeeeee,stroke:#9e9e9e,color:#555,stroke-dasharray:4 3",
    "running": "fill:#d6eaf8,stroke:#1565c0,color:#111",
    "waiting": "fill:#fff3cd,stroke:#b8860b,color:#111",
    "cancelled": "fill:#ead9f2,stroke:#7b1fa2,color:#111",
    "pending": "fill:#ffffff,stroke:#bdbdbd,color:#555",
}


def graph_mermaid(graph: DefinitionGraph, run: RunStates | None = None) -> str:
    """Draw a graph as a Mermaid flowchart, with the states of one execution when they are given."""
    text = ""
    for most_steps, most_levels in _FOLDS:
        chart = _Chart(graph, run, most_steps, most_levels)
        text = chart.text()
        if chart.edge_count <= MAX_EDGES and len(text) <= MAX_CHARS:
            break
    return text


class _Chart:
    """One drawing at one fold."""

    def __init__(self, graph: DefinitionGraph, run: RunStates | None, most_steps: int, most_levels: int) -> None:
        self._graph = graph
        self._run = run
        self._most = (most_steps, most_levels)
        self._nodes: dict[str, str] = {}
        """Step to node; hidden steps share one."""
        self._agents: dict[str, str] = {}
        """Agent that no step stands for to node."""
        self._edges: dict[str, None] = {}
        self._classes: dict[str, list[str]] = {}
        self._count = 0

    @property
    def edge_count(self) -> int:
        return len(self._edges)

    def text(self) -> str:
        graph = self._graph
        lines = ["flowchart TD"]
        if graph.final:
            lines += [f'  subgraph main["{_escaped(graph.version.definition.name)}"]']
        lines += self._section(graph.main, "n")
        if graph.final:
            lines += ["  end", '  subgraph cleanup["finally"]', *self._section(graph.final, "f"), "  end"]
            self._edges["main ==> cleanup"] = None
        lines += self._added()
        lines += [f'  {node}("{_escaped(agent_id)}")' for agent_id, node in self._agents.items()]
        lines += [f"  {edge}" for edge in self._edges]
        if self._run is not None:
            shown = [name for name in _STYLES if name in self._classes]
            lines += [f"  classDef {name} {_STYLES[name]}" for name in shown]
            lines += [f"  class {','.join(self._classes[name])} {name}" for name in shown]
        return "\n".join(lines)

    def _section(self, steps: list[GraphStep], prefix: str) -> list[str]:
        lines: list[str] = []
        indent = "    " if self._graph.final else "  "
        for level in fold(steps, self._run, *self._most):
            for step in level.shown:
                node = self._nodes[step.step.id] = f"{prefix}{self._count}"
                self._count += 1
                left, right = _SHAPES[step.step.type]
                lines.append(f'{indent}{node}{left}"{_label(step)}"{right}')
                self._mark(node, self._status(step.step.id))
            if level.hidden:
                node = f"{prefix}{self._count}"
                self._count += 1
                self._nodes |= {step.step.id: node for step in level.hidden}
                lines.append(f'{indent}{node}["… {counted(len(level.hidden), "more step")}"]')
        for step in steps:
            self._connect(step)
        return lines

    def _connect(self, step: GraphStep) -> None:
        target = self._nodes[step.step.id]
        condition = step.step.when if _is_on_edge(step) else None
        for edge in step.edges:
            source = self._nodes[edge.source]
            if source == target:
                continue
            label = [f"when {line(condition, MAX_LABEL_CHARS)}"] if condition is not None else []
            for handoff in edge.handoffs:
                self._edge(source, "-.->", [f"handoff on {trigger_in_words(handoff)}", *label], target)
            if not edge.handoffs:
                self._edge(source, "-->", label, target)
        followed = {added.id for added in (self._run.added if self._run else []) if added.kind == "handoff"}
        for handoff in step.leaving:
            if f"{step.step.id}>{handoff.target_agent_id}" in followed:
                continue
            agent = self._agents.setdefault(handoff.target_agent_id, f"a{len(self._agents)}")
            kind = "escalation" if handoff.is_escalation else "handoff"
            self._edge(target, "-.->", [f"{kind} on {trigger_in_words(handoff)}"], agent)

    def _edge(self, source: str, arrow: str, label: list[str], target: str) -> None:
        words = f'|"{_lines(label)}"|' if label else ""
        self._edges[f"{source} {arrow}{words} {target}"] = None

    def _added(self) -> list[str]:
        if self._run is None:
            return []
        lines: list[str] = []
        for added in self._run.added[: MAX_EDGES // 4]:
            self._nodes[added.id] = f"r{len(lines)}"
            lines.append(f'  {self._nodes[added.id]}("{_lines([added.id, added.agent_id])}")')
            self._mark(self._nodes[added.id], added.status)
        for added in self._run.added:
            if added.id in self._nodes and added.source in self._nodes:
                label = "handed over" if added.kind == "handoff" else "undone by"
                self._edge(self._nodes[added.source], "-.->", [label], self._nodes[added.id])
        return lines

    def _status(self, step_id: str) -> StepStatus:
        return StepStatus.PENDING if self._run is None else self._run.steps.get(step_id, StepStatus.PENDING)

    def _mark(self, node: str, status: StepStatus) -> None:
        shown = StepStatus.RUNNING if status is StepStatus.RETRYING else status
        self._classes.setdefault(shown.value, []).append(node)


def _is_on_edge(step: GraphStep) -> bool:
    """Whether a step's condition is written on the edge to it: only where there is just one."""
    return step.step.when is not None and len(step.edges) == 1


def _label(step: GraphStep) -> str:
    return _lines([*_title(step.step), *_join(step), *step_notes(step.step)])


def _title(step: Step) -> list[str]:
    name = [] if step.name is None or step.name == step.id else [line(step.name, MAX_LABEL_CHARS)]
    return [step.id, *name, step_in_words(step)]


def _join(step: GraphStep) -> list[str]:
    said = [f"join {step.step.join}"] if step.step.join != "all" else []
    if step.step.when is not None and not _is_on_edge(step):
        said.append(f"when {step.step.when}")
    return said


def _lines(texts: list[str]) -> str:
    return "<br/>".join(_escaped(text) for text in texts)


def _escaped(text: str) -> str:
    cut = line(text, MAX_LABEL_CHARS)
    return "".join(char if char.isalnum() or char in _SAFE else f"#{ord(char)};" for char in cut)
