"""Random executions, each made of one number: a definition with its handoffs, and how every call of it goes.

What happens to a call follows from the seed and the call's address alone, never from the order of events; so a case
keeps its outcomes while steps are taken out of it, and two runs of it differ only in what decides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from engine.domain.agent import Agent
from engine.domain.definition import DefinitionVersion, WorkflowDefinition
from engine.domain.handoff import Handoff

if TYPE_CHECKING:
    from datetime import datetime

AGENTS = ("agent-a", "agent-b", "agent-c", "agent-d", "agent-e")
REASONS = ("error", "timeout", "rate_limited", "invalid_output", "refused")
REPLY_KEYS = ("v", "w", "ok", "list", "o")
INPUT: dict[str, Any] = {"n": 2, "flag": True, "word": "x", "items": [3, 1, 2], "none": [], "soon": 5}
CHILD = "child-flow"
TRIGGERS: tuple[tuple[str, ...], ...] = (
    (),
    ("completion",),
    ("failure",),
    ("timeout",),
    ("failure", "completion"),
    ("source_output.v > 0",),
    ("source_output.ok", "completion"),
    ("failure", "completion", "input.flag"),
    ("completion", "input.n > 5"),
    ("failure", "source_output.error.reason = 'refused'"),
)


@dataclass(frozen=True)
class Noise:
    """What operators, deadlines and long histories do to a run, in seconds since its start."""

    pauses: tuple[tuple[float, float], ...] = ()
    """Instants of a pause and its resume."""
    carries: tuple[float, ...] = ()
    """When the run is to be continued as new."""
    cancel_at: float | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class Case:
    """One execution to be checked."""

    seed: int
    document: dict[str, Any]
    """As ``create_workflow`` takes it."""
    handoffs: tuple[dict[str, Any], ...] = ()
    trouble: float = 0.0
    """Share of the calls that fail."""
    noise: Noise = field(default_factory=Noise)

    def chance(self, *words: object) -> random.Random:
        """The source of chance for one thing that has a name."""
        return random.Random("/".join(map(str, (self.seed, *words))))


@dataclass(frozen=True)
class CallEnd:
    """How a call of an agent or a child goes."""

    after: float
    """Seconds."""
    reply: dict[str, Any] | None
    """None: it fails."""
    kind: str = "agent"
    reason: str = "error"
    attempts: int = 1
    tokens: int = 0
    losses: int = 0
    """How often its worker is lost before it ends so."""


def call_end(case: Case, address: str) -> CallEnd:
    """Return how the call at an address goes."""
    chance = case.chance("call", address)
    after = round(chance.uniform(1, 60), 3)
    tokens = chance.randrange(0, 200)
    losses = chance.choice((0,) * 12 + (1, 2, 4))
    attempts = chance.choice((1, 1, 1, 2, 3))
    reply: dict[str, Any] = {
        "v": chance.randrange(4),
        "w": chance.choice(("x", "y", "z")),
        "ok": chance.random() < 0.5,
        "list": [chance.randrange(4) for _ in range(chance.randrange(5))],
        "o": {"k": chance.randrange(3)},
    }
    if chance.random() < 0.1:
        del reply[chance.choice(REPLY_KEYS)]
    if chance.random() >= case.trouble:
        return CallEnd(after, reply, attempts=attempts, tokens=tokens, losses=losses)
    reason = chance.choice(REASONS)
    kind = "timeout" if reason == "timeout" else chance.choice(("agent", "agent", "agent", "agent", "store", "input"))
    if kind in ("store", "input"):
        reason = {"store": "error", "input": "invalid_request"}[kind]
    return CallEnd(after, None, kind, reason, attempts, tokens, losses)


def cancelled_after(case: Case, address: str) -> float | None:
    """Seconds that a call takes to obey a cancellation; None when it ends in its own way instead."""
    chance = case.chance("cancel", address)
    return None if chance.random() < 0.3 else round(chance.uniform(0.1, 5), 3)


@dataclass(frozen=True)
class GateEnd:
    """Who answers a gate, with what and when."""

    after: float
    answer: str
    data: Any = None
    by: str = "ann"


def gate_end(case: Case, gate_id: str, allowed: list[str], *, can_wait: bool, retries: int) -> GateEnd | None:
    """Return how a gate is answered; None when nobody answers, which only happens where waiting ends by itself.

    Args:
        case: of the gate.
        gate_id: of the gate.
        allowed: the answers it takes.
        can_wait: whether the gate expires.
        retries: how often ``retry`` was answered already, so that a run ends.
    """
    chance = case.chance("gate", gate_id)
    after = round(chance.uniform(1, 150), 3)
    answer = chance.choice(allowed)
    if can_wait and chance.random() < 0.4:
        return None
    if answer in ("retry", "continue") and retries >= 3:
        answer = "fail"
    data = None
    if answer == "skip" and chance.random() < 0.7:
        data = {"output": {key: chance.randrange(4) for key in REPLY_KEYS}}
    return GateEnd(after, answer, data)


def make_case(seed: int) -> Case:
    """Make the case of a number."""
    maker = _Maker(random.Random(seed))
    document = maker.document()
    return Case(seed, document, maker.handoffs(), maker.chance.choice((0.0, 0.05, 0.15, 0.3, 0.5)), maker.noise())


class _Maker:
    """Makes one definition."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.keys: dict[str, tuple[str, ...]] = {}
        """Step to what can be read below its output; empty: only the whole."""
        self.handoff_mode = chance.choice(("edges", "edges", "follow", "follow", "off"))
        self.agents = AGENTS[: chance.choice((2, 3, 3, 5))]

    def rarely(self, share: float) -> bool:
        return self.chance.random() < share

    def document(self) -> dict[str, Any]:
        chance = self.chance
        count = chance.choice((1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10, 14, 20, 40))
        steps = [self.step(f"s{n}", [f"s{m}" for m in range(n)]) for n in range(count)]
        document: dict[str, Any] = {
            "name": "Flow",
            "handoffs": self.handoff_mode,
            "on_failure": chance.choice(("cancel", "finish")),
        }
        if self.handoff_mode == "follow" and self.rarely(0.4):
            document["max_handoffs"] = chance.choice((1, 2, 3))
        if self.rarely(0.15):
            document["budget"] = self.budget()
        if self.rarely(0.3):
            names = chance.sample([step["id"] for step in steps], min(count, 2))
            document["output_mapping"] = {name: self.read(name, safely=not self.rarely(0.1)) for name in names}
        if self.rarely(0.35):
            finals: list[str] = []
            document["finally"] = []
            for n in range(chance.choice((1, 1, 2, 3))):
                document["finally"].append(self.final_step(f"f{n}", finals, [step["id"] for step in steps]))
                finals.append(f"f{n}")
            if self.rarely(0.15):
                document["cleanup_timeout"] = chance.choice((20, 60))
        elif self.rarely(0.1):
            document["cleanup_timeout"] = 20
        chance.shuffle(steps)
        document["steps"] = steps
        return document

    def budget(self) -> dict[str, Any]:
        name, amounts = self.chance.choice(
            (("agent_calls", (1, 2, 4, 8, 16)), ("tokens", (100, 400, 1500)), ("seconds", (20, 60, 150)))
        )
        return {name: self.chance.choice(amounts), "on_breach": self.chance.choice(("fail", "ask"))}

    def handoffs(self) -> tuple[dict[str, Any], ...]:
        chance = self.chance
        made: list[dict[str, Any]] = []
        pairs: set[tuple[str, str]] = set()
        for number in range(chance.choice((0, 0, 2, 3, 5, 8, 12))):
            source, target = chance.sample(self.agents, 2)
            kind = chance.choice(("sequential", "parallel", "parallel", "escalation"))
            if self.handoff_mode == "follow" and kind != "escalation":
                # Two of one pair would run the same step twice.
                if (source, target) in pairs:
                    continue
                pairs.add((source, target))
            mapping = {"v": f"h{number}_v", "error": f"h{number}_error"} if self.rarely(0.6) else {}
            triggers = list(chance.choice(TRIGGERS))
            if any("failure" in t or "timeout" in t for t in triggers):
                mapping = {"v": f"h{number}_v"}
            if kind == "escalation":
                mapping = chance.choice(({}, {"error": f"h{number}_error"}))
            made.append(
                {
                    "number": number,
                    "source": source,
                    "target": target,
                    "type": kind,
                    "triggers": triggers,
                    "data_mapping": mapping,
                }
            )
        return tuple(made)

    def noise(self) -> Noise:
        chance = self.chance
        kind = chance.choice(("none", "none", "none", "none", "pause", "carry", "carry", "both", "cancel", "deadline"))
        pauses: list[tuple[float, float]] = []
        at = 0.0
        for _ in range(chance.choice((1, 2, 3)) if kind in ("pause", "both") else 0):
            start = at + round(chance.uniform(0, 80), 3)
            at = start + round(chance.uniform(0.5, 60), 3)
            pauses.append((start, at))
        carries = [round(chance.uniform(0, 250), 3) for _ in range(3)] if kind in ("carry", "both") else []
        return Noise(
            tuple(pauses),
            tuple(sorted(carries)),
            round(chance.uniform(0, 200), 3) if kind == "cancel" else None,
            round(chance.uniform(5, 300), 3) if kind == "deadline" else None,
        )

    def read(self, name: str, *, safely: bool) -> str:
        """A reference to something below a step's output."""
        keys = self.keys[name]
        if not keys or self.rarely(0.15):
            return f"${{steps.{name}.output}}"
        default = " ?? 0" if safely else ""
        return f"${{steps.{name}.output.{self.chance.choice(keys)}{default}}}"

    def condition(self, names: list[str]) -> str:
        chance = self.chance
        parts: list[str] = []
        for _ in range(chance.choice((1, 1, 1, 2))):
            if not names or self.rarely(0.25):
                parts.append(chance.choice(("input.flag", "input.n > 1", "input.n > 9", "execution.version = 3")))
                continue
            name = chance.choice(names)
            key = f".{chance.choice(self.keys[name])}" if self.keys[name] else "[0]"
            parts.append(
                chance.choice(
                    (
                        f"steps.{name}.output{key} >= 1",
                        f"steps.{name}.output{key} != 2",
                        f"has(steps.{name}.output{key})",
                        f"steps.{name}.error != null",
                        f"steps.{name}.error = null",
                        f"steps.{name}.error.details.reason = 'timeout'",
                        f"steps.{name}.output = null",
                        f"not (steps.{name}.output{key} = 1)",
                        f"${{steps.{name}.output{key}}} in [0, 1, 'x', true]",
                    )
                )
            )
        return chance.choice((" and ", " or ")).join(parts)

    def step(self, step_id: str, before: list[str]) -> dict[str, Any]:
        chance = self.chance
        kind = chance.choice(("agent",) * 13 + ("transform", "transform", "wait", "workflow", "workflow", "approval"))
        below = chance.sample(before[-8:], min(len(before[-8:]), chance.choice((0, 1, 1, 1, 2, 2, 3))))
        step: dict[str, Any] = {"id": step_id}
        if kind != "agent":
            step["type"] = kind
        named = [name for name in below if self.rarely(0.6)]
        if named:
            step["depends_on"] = named
        if self.rarely(0.3):
            step["when"] = self.condition(below)
        if below:
            step["join"] = chance.choice(("all", "all", "all", "any", "any", "settled"))
        step["on_error"] = chance.choice(("fail", "fail", "fail", "continue", "continue", "continue", "ask"))
        if self.rarely(0.25) and kind != "approval":
            step["compensate"] = self.compensation(step_id)
        self.work(step, kind, [name for name in below if name not in named] or below)
        return step

    def final_step(self, step_id: str, finals: list[str], mains: list[str]) -> dict[str, Any]:
        chance = self.chance
        kind = chance.choice(("agent", "agent", "agent", "transform", "wait", "workflow"))
        step: dict[str, Any] = {"id": step_id}
        if kind != "agent":
            step["type"] = kind
        below = chance.sample(finals, min(len(finals), chance.choice((0, 1, 2))))
        if below:
            step["depends_on"] = below
            step["join"] = chance.choice(("all", "any", "settled"))
        if self.rarely(0.4):
            step["when"] = chance.choice(
                (
                    "execution.status = 'failed'",
                    "execution.status != 'cancelled'",
                    "execution.error != null",
                    "execution.error.code = 'agent_error'",
                    self.condition(mains[:4]),
                )
            )
        step["on_error"] = chance.choice(("fail", "continue"))
        self.work(step, kind, chance.sample(mains, min(len(mains), 2)))
        if kind == "agent" and self.rarely(0.3):
            step["input_mapping"] = {"status": "${execution.status}", "error": "${execution.error}"}
        return step

    def compensation(self, step_id: str) -> dict[str, Any]:
        made: dict[str, Any] = {"agent_id": self.chance.choice(self.agents)}
        if self.rarely(0.5):
            made["input_mapping"] = {"undo": f"${{steps.{step_id}.output}}", "status": "${execution.status}"}
        elif self.rarely(0.1):
            made["input_mapping"] = {"undo": "${input.nothing}"}
        return made

    def work(self, step: dict[str, Any], kind: str, below: list[str]) -> None:
        """Add what is the matter of the step's type."""
        make = {
            "agent": self.agent_work,
            "transform": self.transform_work,
            "wait": self.wait_work,
            "workflow": self.workflow_work,
            "approval": self.approval_work,
        }[kind]
        make(step, below)
        if "foreach" in step:
            self.keys[step["id"]] = ()

    def mapping(self, step: dict[str, Any], below: list[str]) -> dict[str, Any]:
        mapping: dict[str, Any] = {name: self.read(name, safely=not self.rarely(0.15)) for name in below}
        if self.rarely(0.4):
            mapping["n"] = "${input.n}"
        if self.rarely(0.1):
            mapping["text"] = "${input.word}-${execution.version}"
        if "foreach" in step:
            mapping["it"] = "${" + step["foreach"].get("as", "item") + "}"
            mapping["at"] = "${index}"
        if "repeat_until" in step:
            mapping["turn"] = "${iteration}"
            mapping["last"] = f"${{steps.{step['id']}.output.v ?? 9}}"
        return mapping

    def call_work(self, step: dict[str, Any], below: list[str]) -> None:
        """Add what agents and child workflows have in common."""
        chance = self.chance
        if self.rarely(0.17):
            step["foreach"] = self.foreach(below)
        if self.rarely(0.17):
            step["repeat_until"] = {
                "condition": chance.choice(
                    (
                        "output.v >= 2",
                        "output.ok",
                        "iteration >= 2",
                        "output.v = input.n or iteration > 2",
                        "output.n = 2",
                    )
                ),
                "max_iterations": chance.choice((1, 2, 3, 4)),
            }
        if self.rarely(0.55):
            step["input_mapping"] = self.mapping(step, below)
        if self.rarely(0.3):
            step["output_mapping"] = {"v": "${output.v ?? 1}", "n": "${input.n}", "raw": "${output}"}
            self.keys[step["id"]] = ("v", "n")
        else:
            self.keys[step["id"]] = REPLY_KEYS

    def foreach(self, below: list[str]) -> dict[str, Any]:
        chance = self.chance
        items: Any = chance.choice(("${input.items}", [1, 2, 3, 4, 5], [{"k": 1}, {"k": 2}, 3], "${input.none}"))
        if self.rarely(0.05):
            items = "${input.n}"
        listed = [name for name in below if "list" in self.keys[name] or not self.keys[name]]
        if listed and self.rarely(0.4):
            name = chance.choice(listed)
            items = f"${{steps.{name}.output{'.list' if self.keys[name] else ''}}}"
        made: dict[str, Any] = {"items": items}
        if self.rarely(0.4):
            made["as"] = "one"
        if self.rarely(0.5):
            made["max_concurrency"] = chance.choice((1, 2, 3))
        if self.rarely(0.6):
            made["tolerate"] = chance.choice((1, 2, "50%", "34%", "100%", "10%"))
        return made

    def agent_work(self, step: dict[str, Any], below: list[str]) -> None:
        chance = self.chance
        step["agent_id"] = chance.choice(self.agents)
        self.call_work(step, below)
        if self.rarely(0.3):
            others = chance.sample([name for name in AGENTS if name != step["agent_id"]], chance.choice((1, 1, 2, 3)))
            chain = [
                {"agent_id": name, **({"on": chance.sample(REASONS, 2)} if self.rarely(0.5) else {})} for name in others
            ]
            step["fallback"] = chain[0] if len(chain) == 1 and self.rarely(0.5) else chain
        if "repeat_until" not in step and self.rarely(0.1):
            step["at_most_once"] = True

    def workflow_work(self, step: dict[str, Any], below: list[str]) -> None:
        step["workflow_id"] = CHILD
        step["version"] = 1
        self.call_work(step, below)

    def transform_work(self, step: dict[str, Any], below: list[str]) -> None:
        made: dict[str, Any] = {"v": "${input.n}", "t": "a ${input.word}"}
        made |= {name: self.read(name, safely=not self.rarely(0.2)) for name in below}
        if self.rarely(0.3):
            step["foreach"] = self.foreach(below)
            made["it"] = "${item}"
            if self.rarely(0.5):
                made["k"] = "${item.k}"
        step["transform"] = made
        self.keys[step["id"]] = ("v", "t")

    def wait_work(self, step: dict[str, Any], below: list[str]) -> None:
        chance = self.chance
        whole = [name for name in below if "v" in self.keys[name]]
        choices: list[Any] = [{"seconds": 0}, {"seconds": 12.5}, {"seconds": 70}, {"seconds": "${input.soon}"}]
        choices += [{"seconds": "${input.word}"}, {"until": "2026-11-22T12:01:00+00:00"}]
        choices += [{"seconds": f"${{steps.{name}.output.v}}"} for name in whole] * 4
        step["wait"] = chance.choice(choices)
        self.keys[step["id"]] = ("waited_until",)

    def approval_work(self, step: dict[str, Any], below: list[str]) -> None:
        chance = self.chance
        made: dict[str, Any] = {"question": "Go on?"}
        if below and self.rarely(0.5):
            made["question"] = f"Go on with {self.read(below[0], safely=True)}?"
        allowed = ["approve", "reject"]
        if self.rarely(0.3):
            allowed = ["yes", "no", "later"]
            made["allowed"] = allowed
            made["fail_on"] = ["no"]
        if self.rarely(0.5):
            made["timeout"] = chance.choice((30, 90))
            made["on_timeout"] = chance.choice(("default", "escalate", "fail"))
            if made["on_timeout"] == "default":
                made["default"] = chance.choice(allowed)
            if made["on_timeout"] == "escalate":
                made["escalate_to"] = ["boss"]
        made["assignees"] = ["ann"]
        step["approval"] = made
        self.keys[step["id"]] = ("answer", "by")


def stored_definition(case: Case, at: datetime) -> DefinitionVersion:
    """Return the case's definition as a store gives it."""
    return DefinitionVersion(
        definition_id="flow",
        version=3,
        content_hash="sha256:d",
        definition=WorkflowDefinition.model_validate(case.document),
        created_at=at,
        updated_at=at,
    )


def stored_handoffs(case: Case, at: datetime) -> list[Handoff]:
    """Return the case's handoffs; a smaller number was made earlier."""
    return [
        Handoff(
            handoff_id=f"h{made['number']}",
            source_agent_id=made["source"],
            target_agent_id=made["target"],
            handoff_type=made["type"],
            data_mapping=made["data_mapping"],
            trigger_conditions=made["triggers"],
            created_at=at + timedelta(seconds=made["number"]),
            updated_at=at + timedelta(seconds=made["number"]),
        )
        for made in case.handoffs
    ]


def stored_agents(at: datetime) -> dict[str, Agent]:
    """Return the agents of all cases by id."""
    return {
        agent_id: Agent(
            agent_id=agent_id,
            version=1,
            name=agent_id,
            kind="python",
            config={"function": "m:f"},
            content_hash="sha256:a",
            created_at=at,
            updated_at=at,
        )
        for agent_id in AGENTS
    }
