"""The contract of ``AgentGraph``: who uses whom, by the newest versions of what the other stores hold."""

from __future__ import annotations

import random
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.definition import Compensation, DefinitionVersion, Fallback, Step, WorkflowDefinition
from engine.domain.ids import MAX_ID_BYTES
from engine.ports.agent_graph import AgentUse
from tests.contract.samples import AWKWARD_TEXTS, NOW, agent, handoff, seconds, walk

if TYPE_CHECKING:
    from collections.abc import Sequence


def flow(definition_id: str, *steps: tuple[str, str] | tuple[str, str, str], version: int = 1) -> DefinitionVersion:
    """Steps are (id, agent) or (id, agent, fallback's agent)."""
    made = [
        Step(id=step[0], agent_id=step[1], fallback=Fallback(agent_id=step[2]) if len(step) == 3 else None)
        for step in steps
    ]
    return made_of(definition_id, made, version=version)


def made_of(
    definition_id: str, steps: Sequence[Step], final_steps: Sequence[Step] = (), version: int = 1
) -> DefinitionVersion:
    return DefinitionVersion(
        definition_id=definition_id,
        version=version,
        content_hash=f"sha256:{version}",
        definition=WorkflowDefinition(name="Flow", steps=[*steps], final_steps=[*final_steps]),
        created_at=NOW,
        updated_at=NOW + seconds(version),
    )


async def uses(stores: Any, agent_id: str, limit: int = 10) -> list[AgentUse]:
    return await walk(lambda after: stores.graph.list_agent_uses(agent_id, limit=limit, after=after), limit)


async def paths(stores: Any, source: str, target: str, max_hops: int = 6, limit: int = 100) -> list[list[str]]:
    return await stores.graph.find_handoff_paths(source, target, max_hops=max_hops, limit=limit)


async def register(stores: Any, *agent_ids: str) -> None:
    for agent_id in agent_ids:
        await stores.agents.insert_agent(agent(agent_id))


async def hand_off(stores: Any, *pairs: str) -> None:
    """Each pair is ``source>target``, in the order of creation."""
    for number, pair in enumerate(pairs):
        source, target = pair.split(">")
        made = handoff(f"h{number}-{pair}", source, target, created_at=NOW + seconds(number))
        assert await stores.handoffs.insert_handoff(made)


async def test_nobody_uses_what_is_not_there(agent_graph: Any) -> None:
    assert await uses(agent_graph, "nobody") == []
    assert await agent_graph.graph.list_agent_handoffs("nobody") == []
    assert await paths(agent_graph, "nobody", "anybody") == []


async def test_steps_come_in_the_definitions_order(agent_graph: Any) -> None:
    await agent_graph.definitions.insert_definition(
        flow("flow", ("z", "x"), ("m", "other", "x"), ("a", "x", "x"), ("b", "other"))
    )
    assert await uses(agent_graph, "x") == [
        AgentUse("flow", "agent", ("z", "a")),
        AgentUse("flow", "fallback", ("m", "a")),
    ]
    assert await uses(agent_graph, "other") == [AgentUse("flow", "agent", ("m", "b"))]


async def test_the_newest_version_counts(agent_graph: Any) -> None:
    await agent_graph.definitions.insert_definition(flow("flow", ("a", "old", "spare"), ("b", "kept")))
    await agent_graph.definitions.append_version(flow("flow", ("b", "new", "kept"), version=2))
    assert await uses(agent_graph, "old") == []
    assert await uses(agent_graph, "spare") == []
    assert await uses(agent_graph, "new") == [AgentUse("flow", "agent", ("b",))]
    assert await uses(agent_graph, "kept") == [AgentUse("flow", "fallback", ("b",))]
    assert not await agent_graph.definitions.append_version(flow("flow", ("c", "never"), version=2))
    assert await uses(agent_graph, "never") == []


async def test_archived_workflows_use_nobody(agent_graph: Any) -> None:
    await agent_graph.definitions.insert_definition(flow("gone", ("a", "x", "y")))
    await agent_graph.definitions.insert_definition(flow("here", ("a", "x", "y")))
    await hand_off(agent_graph, "x>z")
    await agent_graph.definitions.archive_definition("gone", NOW)
    assert await uses(agent_graph, "x") == [AgentUse("here", "agent", ("a",))]
    assert await uses(agent_graph, "y") == [AgentUse("here", "fallback", ("a",))]
    assert await uses(agent_graph, "z") == [AgentUse("here", "handoff", ("a",))]


async def test_both_sides_of_a_handoff_use_each_other(agent_graph: Any) -> None:
    await agent_graph.definitions.insert_definition(flow("flow", ("a", "source"), ("b", "source"), ("c", "target")))
    await hand_off(agent_graph, "source>target", "source>target", "target>source")
    assert await uses(agent_graph, "target") == [
        AgentUse("flow", "agent", ("c",)),
        AgentUse("flow", "handoff", ("a", "b")),
    ]
    assert await uses(agent_graph, "source") == [
        AgentUse("flow", "agent", ("a", "b")),
        AgentUse("flow", "handoff", ("c",)),
    ]


async def test_a_partners_fallback_is_no_partner(agent_graph: Any) -> None:
    await agent_graph.definitions.insert_definition(flow("flow", ("a", "other", "source")))
    await hand_off(agent_graph, "source>target")
    assert await uses(agent_graph, "target") == []


async def test_every_fallback_of_a_chain_is_one(agent_graph: Any) -> None:
    chain = [Fallback(agent_id=agent_id, on=["timeout"]) for agent_id in ("x", "y", "x", "own")]
    steps = [Step(id="a", agent_id="own", fallback=chain), Step(id="b", agent_id="own", fallback=chain[1:2])]
    await agent_graph.definitions.insert_definition(made_of("flow", steps))
    assert await uses(agent_graph, "x") == [AgentUse("flow", "fallback", ("a",))]
    assert await uses(agent_graph, "y", limit=1) == [AgentUse("flow", "fallback", ("a", "b"))]
    assert await uses(agent_graph, "own", limit=1) == [
        AgentUse("flow", "agent", ("a", "b")),
        AgentUse("flow", "fallback", ("a",)),
    ]


async def test_compensations_and_final_steps_use_their_agents(agent_graph: Any) -> None:
    steps = [
        Step(id="a", agent_id="x", compensate=Compensation(agent_id="undo")),
        Step(id="b", agent_id="x", compensate=Compensation(agent_id="x")),
        Step(id="c", type="approval", compensate=Compensation(agent_id="undo")),
    ]
    final = [Step(id="z", agent_id="undo", fallback=Fallback(agent_id="spare")), Step(id="y", agent_id="x")]
    await agent_graph.definitions.insert_definition(made_of("flow", steps, final))
    assert await uses(agent_graph, "x") == [AgentUse("flow", "agent", ("a", "b", "y"))]
    assert await uses(agent_graph, "undo") == [AgentUse("flow", "agent", ("a", "c", "z"))]
    assert await uses(agent_graph, "spare") == [AgentUse("flow", "fallback", ("z",))]
    await agent_graph.definitions.append_version(made_of("flow", steps[:1], version=2))
    assert await uses(agent_graph, "undo") == [AgentUse("flow", "agent", ("a",))]
    assert await uses(agent_graph, "spare") == []


async def test_no_handoff_holds_in_the_clean_up(agent_graph: Any) -> None:
    steps = [
        Step(id="a", agent_id="x"),
        Step(id="b", agent_id="other", compensate=Compensation(agent_id="undo")),
        Step(id="c", agent_id="undo"),
    ]
    await agent_graph.definitions.insert_definition(made_of("flow", steps, [Step(id="z", agent_id="x")]))
    await agent_graph.definitions.insert_definition(made_of("undone", steps[:2]))
    await hand_off(agent_graph, "x>target", "undo>taker")
    assert await agent_graph.handoffs.insert_handoff(handoff("h", "undo", "bound", definition_id="undone"))
    assert await uses(agent_graph, "target") == [
        AgentUse("flow", "handoff", ("a",)),
        AgentUse("undone", "handoff", ("a",)),
    ]
    assert await uses(agent_graph, "taker") == [AgentUse("flow", "handoff", ("c",))]
    assert await uses(agent_graph, "bound") == []


async def test_a_step_without_an_agent_uses_nobody(agent_graph: Any) -> None:
    steps = [
        Step(id="a", type="transform", transform={"b": 1}),
        Step(id="w", type="workflow", workflow_id="other", depends_on=["a"]),
        Step(id="x", agent_id="x", depends_on=["w"]),
    ]
    await agent_graph.definitions.insert_definition(made_of("flow", steps))
    assert await uses(agent_graph, "x") == [AgentUse("flow", "agent", ("x",))]
    assert await uses(agent_graph, "") == []


async def test_a_bound_handoff_counts_for_its_workflow_only(agent_graph: Any) -> None:
    for definition_id in ("bound", "free"):
        await agent_graph.definitions.insert_definition(flow(definition_id, ("a", "source"), ("b", "second")))
    handoffs = [
        handoff("h1", "source", "target", definition_id="bound"),
        handoff("h2", "second", "target", definition_id="nowhere"),
        handoff("h3", "source", "other", definition_id="bound"),
        handoff("h4", "source", "other"),
        handoff("h5", "source", "gone", status="deleted"),
    ]
    for made in handoffs:
        await agent_graph.handoffs.insert_handoff(made)
    assert await uses(agent_graph, "target") == [AgentUse("bound", "handoff", ("a",))]
    assert await uses(agent_graph, "other") == [
        AgentUse("bound", "handoff", ("a",)),
        AgentUse("free", "handoff", ("a",)),
    ]
    assert await uses(agent_graph, "gone") == []


async def test_an_inactive_agent_can_be_asked_about(agent_graph: Any) -> None:
    await register(agent_graph, "x")
    await agent_graph.agents.append_agent(agent("x", 2, status="inactive"))
    await agent_graph.definitions.insert_definition(flow("flow", ("a", "x")))
    await hand_off(agent_graph, "x>y")
    assert await uses(agent_graph, "x") == [AgentUse("flow", "agent", ("a",))]
    assert [made.source_agent_id for made in await agent_graph.graph.list_agent_handoffs("x")] == ["x"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 9])
async def test_pages_of_uses_are_full_and_in_order(agent_graph: Any, limit: int) -> None:
    await hand_off(agent_graph, "x>p", "q>x", "x>x")
    for number in (3, 1, 0, 2):
        await agent_graph.definitions.insert_definition(
            flow(f"flow-{number}", ("a", "x", "x"), ("b", "p" if number % 2 else "q"))
        )
    found = await uses(agent_graph, "x", limit)
    assert found == [
        AgentUse(f"flow-{number}", role, ("a", "b") if role == "handoff" else ("a",))
        for number in range(4)
        for role in ("agent", "fallback", "handoff")
    ]


async def test_handoffs_of_an_agent_are_oldest_first(agent_graph: Any) -> None:
    await hand_off(agent_graph, "x>a", "b>x", "a>b", "x>x", "x>a")
    await agent_graph.handoffs.insert_handoff(handoff("gone", "x", "a", status="deleted"))
    found = await agent_graph.graph.list_agent_handoffs("x")
    assert [made.handoff_id for made in found] == ["h0-x>a", "h1-b>x", "h3-x>x", "h4-x>a"]
    assert found[0] == await agent_graph.handoffs.get_handoff("h0-x>a")


async def test_paths_are_shortest_first_then_by_their_ids(agent_graph: Any) -> None:
    await register(agent_graph, *"abcdxy")
    await hand_off(agent_graph, "a>c", "a>b", "b>d", "c>d", "a>b", "b>c", "c>b", "d>x", "x>a", "a>a", "y>a", "c>a")
    every = [["a", "b", "d"], ["a", "c", "d"], ["a", "b", "c", "d"], ["a", "c", "b", "d"]]
    assert await paths(agent_graph, "a", "d") == every
    assert await paths(agent_graph, "a", "d", limit=3) == every[:3]
    assert await paths(agent_graph, "a", "d", max_hops=2) == every[:2]
    assert await paths(agent_graph, "a", "d", max_hops=1) == []
    assert await paths(agent_graph, "a", "y") == []
    assert await paths(agent_graph, "a", "a") == []
    assert (await paths(agent_graph, "y", "x"))[0] == ["y", "a", "b", "d", "x"]
    assert await paths(agent_graph, "y", "x", max_hops=3) == []


async def test_paths_lead_over_active_agents(agent_graph: Any) -> None:
    await register(agent_graph, *"abcd")
    await hand_off(agent_graph, "a>b", "b>d", "a>c", "c>d", "a>stranger", "stranger>d")
    await agent_graph.handoffs.insert_handoff(handoff("gone", "a", "d", status="deleted"))
    await agent_graph.agents.append_agent(agent("b", 2, status="inactive"))
    assert await paths(agent_graph, "a", "d") == [["a", "c", "d"]]
    assert await paths(agent_graph, "b", "d") == []
    await agent_graph.agents.append_agent(agent("d", 2, status="inactive"))
    assert await paths(agent_graph, "a", "d") == []


async def test_a_dense_graph_with_one_way_out_is_no_trap(agent_graph: Any) -> None:
    """Behind the door lies a crowd that knows only the way back through it: billions of ways, none of them out."""
    crowd = [f"c{number:02}" for number in range(12)]
    await register(agent_graph, "start", "door", "end", *crowd)
    pairs = [f"{one}>{other}" for one, other in permutations(crowd, 2)]
    ways = [f"door>{one}" for one in crowd] + [f"{one}>door" for one in crowd]
    await hand_off(agent_graph, "start>door", "door>end", *pairs, *ways)
    assert await paths(agent_graph, "start", "end", max_hops=14) == [["start", "door", "end"]]


@pytest.mark.parametrize("text", [text for text in AWKWARD_TEXTS if 0 < len(text) <= MAX_ID_BYTES])
async def test_awkward_ids_are_text(agent_graph: Any, text: str) -> None:
    await register(agent_graph, text, "end")
    await agent_graph.definitions.insert_definition(flow(text, ("a", text, text), ("b", "bystander")))
    assert await agent_graph.handoffs.insert_handoff(handoff(text, text, "end", definition_id=text))
    assert await uses(agent_graph, text, limit=1) == [
        AgentUse(text, "agent", ("a",)),
        AgentUse(text, "fallback", ("a",)),
    ]
    assert await uses(agent_graph, "end") == [AgentUse(text, "handoff", ("a",))]
    assert await paths(agent_graph, text, "end") == [[text, "end"]]


class Model:
    """What the port says, as plain data."""

    def __init__(self) -> None:
        self.flows: dict[str, DefinitionVersion] = {}
        self.archived: set[str] = set()
        self.active: set[str] = set()
        self.handoffs: list[Any] = []

    def uses(self, asked: str) -> list[AgentUse]:
        found: dict[tuple[str, Any], list[str]] = {}
        for flow_id, version in self.flows.items():
            for step in [] if flow_id in self.archived else version.definition.steps:
                roles = {"agent": step.agent_id == asked}
                roles["fallback"] = asked in [fallback.agent_id for fallback in step.fallbacks]
                pairs = [
                    {h.source_agent_id, h.target_agent_id} for h in self.handoffs if h.definition_id in (None, flow_id)
                ]
                roles["handoff"] = {step.agent_id, asked} in pairs
                for role in (role for role, holds in roles.items() if holds):
                    found.setdefault((flow_id, role), []).append(step.id)
        return [AgentUse(*key, tuple(step_ids)) for key, step_ids in sorted(found.items())]

    def paths(self, source: str, target: str, hops: int, limit: int) -> list[list[str]]:
        edges = {(h.source_agent_id, h.target_agent_id) for h in self.handoffs}
        found = [[source]] if source in self.active and source != target else []
        done: list[list[str]] = []
        for _ in range(hops):
            found = [[*p, n] for p in found for n in sorted(self.active - set(p)) if (p[-1], n) in edges]
            done += sorted(p for p in found if p[-1] == target)
            found = [p for p in found if p[-1] != target]
        return done[:limit]


@pytest.mark.parametrize("seed", range(4))
async def test_random_graphs_answer_as_the_model_does(agent_graph: Any, seed: int) -> None:
    chance, model = random.Random(seed), Model()
    agents, flows = [f"a{number}" for number in range(6)], [f"f{number}" for number in range(4)]
    for agent_id in agents[:5]:
        await register(agent_graph, agent_id)
        if chance.random() < 0.8:
            model.active.add(agent_id)
        else:
            await agent_graph.agents.append_agent(agent(agent_id, 2, status="inactive"))
    for number in range(10):
        bound_to = chance.choice([None, None, *flows])
        made = handoff(f"h{number}", *chance.choices(agents, k=2), definition_id=bound_to)
        await agent_graph.handoffs.insert_handoff(made)
        model.handoffs.append(made)
    for _ in range(14):
        flow_id = chance.choice(flows)
        steps = [(f"s{n}", *chance.choices(agents, k=chance.choice([1, 2]))) for n in range(chance.randint(1, 4))]
        version = model.flows[flow_id].version + 1 if flow_id in model.flows else 1
        made = flow(flow_id, *chance.sample(steps, len(steps)), version=version)
        store = agent_graph.definitions
        if await (store.insert_definition(made) if version == 1 else store.append_version(made)):
            model.flows[flow_id] = made
        if chance.random() < 0.15 and await store.archive_definition(flow_id, NOW):
            model.archived.add(flow_id)
    assert model.flows
    for agent_id in agents:
        assert await uses(agent_graph, agent_id, limit=chance.randint(1, 9)) == model.uses(agent_id)
        related = [h for h in model.handoffs if agent_id in (h.source_agent_id, h.target_agent_id)]
        assert await agent_graph.graph.list_agent_handoffs(agent_id) == related
    for source, target in [(one, other) for one in agents for other in agents]:
        hops, limit = chance.randint(1, 5), chance.choice([1, 3, 100])
        found = await paths(agent_graph, source, target, max_hops=hops, limit=limit)
        assert found == model.paths(source, target, hops, limit)
