"""What compiling a definition fills in, once and for all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from plans import agent, handoff, plan_of, stored

from engine.domain.handoff import Handoff
from engine.domain.plan import ExecutionPlan, PlanRecall
from engine.domain.plan_compiler import compile_plan


def test_defaults_are_the_documented_ones_and_zero_retries_are_one_attempt():
    plan = plan_of([{"id": "a"}, {"id": "b", "retry_policy": {"max_retries": 0}}])
    a, b = plan.steps
    assert a.timeout == timedelta(seconds=300)
    assert a.total_timeout is None
    assert a.retry.maximum_attempts == 4
    assert a.retry.backoff_coefficient == 2
    assert a.retry.initial_interval == timedelta(seconds=1)
    assert a.retry.maximum_interval == timedelta(seconds=60)
    assert b.retry.maximum_attempts == 1


def test_a_steps_own_values_come_before_the_definitions_and_those_before_the_settings():
    plan = plan_of(
        [
            {"id": "a", "timeout": 5, "retry_policy": {"backoff_factor": 3}},
            {"id": "b", "total_timeout": 9, "retry_policy": {"max_retries": 1, "non_retryable": []}},
        ],
        defaults={
            "timeout": 7,
            "total_timeout": 70,
            "retry_policy": {"max_retries": 5, "initial_interval": 0.5, "non_retryable": ["timeout"]},
        },
    )
    a, b = plan.steps
    assert (a.timeout, b.timeout) == (timedelta(seconds=5), timedelta(seconds=7))
    assert (a.total_timeout, b.total_timeout) == (timedelta(seconds=70), timedelta(seconds=9))
    assert (a.retry.maximum_attempts, b.retry.maximum_attempts) == (6, 2)
    assert (a.retry.backoff_coefficient, b.retry.backoff_coefficient) == (3, 2)
    assert a.retry.initial_interval == b.retry.initial_interval == timedelta(seconds=0.5)
    assert (a.retry.non_retryable, b.retry.non_retryable) == (["timeout"], [])


def test_the_longest_interval_is_never_below_the_first():
    (step,) = plan_of([{"id": "a", "retry_policy": {"initial_interval": 90}}]).steps
    assert step.retry.maximum_interval >= step.retry.initial_interval


def test_references_become_dependencies_in_definition_order():
    plan = plan_of(
        [
            {
                "id": "last",
                "depends_on": ["b"],
                "input_mapping": {"x": "${steps.a.output.k}", "t": "<${steps.c.error}>"},
            },
            {"id": "a"},
            {"id": "b", "output_mapping": {"y": "${steps.a.output}"}},
            {"id": "c"},
        ]
    )
    by_id = {step.id: step for step in plan.steps}
    assert by_id["last"].depends_on == ["a", "b", "c"]
    assert by_id["b"].depends_on == ["a"]


def test_a_step_without_a_mapping_reads_the_input_and_its_dependencies():
    plan = plan_of([{"id": "a"}, {"id": "b"}, {"id": "c", "depends_on": ["b", "a"]}])
    assert plan.steps[2].input_mapping == {
        "input": "${input}",
        "steps": {"a": "${steps.a.output}", "b": "${steps.b.output}"},
    }


def test_the_output_is_that_of_the_last_steps():
    assert plan_of([{"id": "a"}, {"id": "b", "depends_on": ["a"]}]).output == "${steps.b.output}"
    assert plan_of([{"id": "a"}, {"id": "b"}]).output == {"a": "${steps.a.output}", "b": "${steps.b.output}"}
    assert plan_of([{"id": "a"}], output_mapping={"k": 1}).output == {"k": 1}


def test_what_mappings_read_below_an_output_or_the_input_is_declared():
    plan = plan_of(
        [
            {"id": "a", "input_mapping": {"t": "${input.topic}", "f": "${input.files[0].name}"}},
            {"id": "b", "input_mapping": {"x": "${steps.a.output.plan.title}", "whole": "${steps.a.output}"}},
            {"id": "c", "output_mapping": {"y": "${steps.a.output['odd key']}", "z": "${output.z}"}},
        ],
        output_mapping={"r": "${steps.b.output.r}", "t": "${input.topic}"},
    )
    by_id = {step.id: step for step in plan.steps}
    assert by_id["a"].declared == ["output.plan.title", 'output["odd key"]']
    assert by_id["b"].declared == ["output.r"]
    assert by_id["c"].declared == []
    assert plan.declared_input == ["input.topic", "input.files[0].name"]


def test_the_plan_holds_its_agents_and_its_hash_says_all_of_it():
    plan = plan_of([{"id": "a", "fallback": {"agent_id": "agent-b"}}])
    assert list(plan.agents) == ["agent-a", "agent-b"]
    assert plan.steps[0].agents == ["agent-a", "agent-b"]
    assert plan.agents["agent-b"].config == {"function": "m:f"}
    again = ExecutionPlan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert again.hash() == plan.hash()
    assert plan_of([{"id": "a"}]).hash() != plan.hash()


PAIR = [{"id": "s1", "agent_id": "agent-a"}, {"id": "s2", "agent_id": "agent-b", "depends_on": ["s1"]}]


def test_an_escalation_belongs_to_every_step_of_its_agent_and_brings_its_target_along():
    rescue = handoff(3, "agent-a", "agent-z", handoff_type="escalation")
    plan = plan_of(PAIR, [handoff(1, "agent-a", "agent-b"), handoff(2, "agent-b", "agent-a"), rescue])
    assert [[one.handoff_id for one in step.escalations] for step in plan.steps] == [["h3"], []]
    assert "agent-z" in plan.agents
    off = plan_of(PAIR, [rescue], handoffs="off")
    assert [step.escalations for step in off.steps] == [[], []]
    assert "agent-z" not in off.agents


def test_what_leads_to_no_step_is_followed_only_where_it_is_asked_for():
    acting = [handoff(1, "agent-a", "agent-b"), handoff(2, "agent-a", "agent-y"), handoff(3, "agent-y", "agent-z")]
    assert [step.follows for step in plan_of(PAIR, acting).steps] == [[], []]
    plan = plan_of(PAIR, acting, handoffs="follow")
    assert [[one.handoff_id for one in step.follows] for step in plan.steps] == [["h2"], []]
    assert {"agent-y", "agent-z"} <= set(plan.agents)
    assert plan.steps[0].handed == ["source_output"]


def test_handoffs_between_the_agents_of_dependent_steps_govern_the_edge_the_first_made_first():
    first, second = handoff(1, "agent-a", "agent-b"), handoff(2, "agent-a", "agent-b", handoff_type="parallel")
    back, rescue = handoff(3, "agent-b", "agent-a"), handoff(4, "agent-a", "agent-b", handoff_type="escalation")
    steps = [*PAIR, {"id": "s3", "agent_id": "agent-b"}, {"id": "s4", "agent_id": "agent-b", "depends_on": ["s3"]}]
    acting = [rescue, second, back, first]
    plan = plan_of(steps, acting)
    assert [[edge.handoff_id for edge in step.edges] for step in plan.steps] == [[], ["h1", "h2"], [], []]
    assert [step.edges for step in plan_of(steps, acting, handoffs="off").steps] == [[], [], [], []]


def test_an_edge_makes_its_source_hand_over_what_it_reads():
    acting = [
        handoff(1, "agent-a", "agent-b", "source_output.done", data_mapping={"odd key": "k"}),
        handoff(2, "agent-a", "agent-b", "input.kind = 'x'", data_mapping={"plan": "p"}),
    ]
    s1, s2 = plan_of(PAIR, acting).steps
    assert s1.handed == ['source_output["odd key"]', "source_output.done", "source_output.plan"]
    assert s2.handed == []
    assert plan_of(PAIR, acting).declared_input == ["input.kind"]


def test_what_a_condition_reads_is_a_dependency_and_declared():
    plan = plan_of([{"id": "b", "when": "steps.a.output.n > 1 and input.go and steps.c.error = null"}, *two("a", "c")])
    assert plan.steps[0].depends_on == ["a", "c"]
    assert plan.steps[1].declared == ["output.n"]
    assert plan.declared_input == ["input.go"]
    assert plan.output == "${steps.b.output}"


def two(*names: str) -> list[dict[str, object]]:
    return [{"id": name} for name in names]


@pytest.mark.parametrize("defaults", [None, {"retry_policy": {"max_retries": 5}}])
@pytest.mark.parametrize("own", [{}, {"retry_policy": {"max_retries": 5}}])
def test_what_runs_at_most_once_has_one_attempt_whatever_the_retries(own: dict[str, Any], defaults: Any):
    (step,) = plan_of([{"id": "a", "at_most_once": True, **own}], defaults=defaults).steps
    assert (step.at_most_once, step.retry.maximum_attempts) == (True, 1)


def test_how_a_step_decides_and_fails_is_taken_over():
    fallback = {"agent_id": "agent-b", "on": ["timeout"]}
    fields = {"when": "input.go", "join": "any", "on_error": "continue", "retry_policy": {"jitter": True}}
    first, second = plan_of(
        [{"id": "a", "fallback": fallback, **fields}, {"id": "b", "fallback": {"agent_id": "agent-b"}}],
        on_failure="finish",
    ).steps
    assert (first.when, first.join, first.on_error, first.retry.jitter) == ("input.go", "any", "continue", True)
    assert (first.fallback_reasons, second.fallback_reasons) == ([["timeout"]], [[]])
    assert (second.when, second.join, second.on_error, second.retry.jitter) == (None, "all", "fail", False)
    assert plan_of([{"id": "a"}], on_failure="finish").on_failure == "finish"
    assert plan_of([{"id": "a"}]).on_failure == "cancel"


def test_a_steps_own_jitter_comes_before_the_definitions():
    own = {"id": "b", "retry_policy": {"jitter": False}}
    a, b = plan_of([{"id": "a"}, own], defaults={"retry_policy": {"jitter": True}}).steps
    assert (a.retry.jitter, b.retry.jitter) == (True, False)


def reply_keys(step: dict[str, object], *more: dict[str, object], handoffs: tuple[Handoff, ...] = ()) -> list[str]:
    version = stored([{"id": "a", "agent_id": "agent-a", **step}, *({"agent_id": "agent-b", **item} for item in more)])
    agents = {"agent-a": agent("agent-a", "llm"), "agent-b": agent("agent-b")}
    plan = compile_plan(version, agents, [*handoffs], default_max_retries=3)
    assert all(step.reply_keys == [] for step in plan.steps[1:])
    return plan.steps[0].reply_keys


def test_a_model_is_asked_for_what_its_own_mapping_reads():
    mapping = {"plan": "${output.plan}", "first": "${output.tasks[0].name}", "topic": "${input.topic}"}
    assert reply_keys({"output_mapping": mapping}, {"id": "b", "input_mapping": {"x": "${steps.a.output.plan}"}}) == [
        "plan",
        "tasks",
    ]


def test_without_a_mapping_a_model_is_asked_for_what_later_steps_read():
    reader = {"id": "b", "input_mapping": {"x": "${steps.a.output.plan.title}", "all": "${steps.a.output}"}}
    assert reply_keys({}, reader) == ["plan"]
    assert reply_keys({}) == []
    assert reply_keys({}, {"id": "b", "depends_on": ["a"]}) == []


def test_a_model_is_asked_for_what_handoffs_read_and_no_mapping_sets():
    triggers = ("completion", "source_output.plan_complete = true")
    mapped = {"architecture_plan": "requirements", "extra": "more"}
    one = handoff(1, "agent-a", "agent-b", *triggers, data_mapping=mapped)
    other = handoff(2, "agent-b", "agent-b", *triggers, data_mapping=mapped)
    mapping = {"architecture_plan": "${output.plan}"}
    target = {"id": "b", "depends_on": ["a"]}
    assert reply_keys({"output_mapping": mapping}, target, handoffs=(one, other)) == ["plan", "extra", "plan_complete"]
    assert reply_keys({"output_mapping": mapping}, {"id": "b"}, handoffs=(one, other)) == ["plan"]


def test_a_recall_is_frozen_into_the_plan_and_what_it_reads_is_a_dependency():
    plan = plan_of([{"id": "b", "context": {"recall": "like ${steps.a.output.title}", "top_k": 2}}, {"id": "a"}])
    assert plan.steps[0].recall == PlanRecall(recall="like ${steps.a.output.title}", top_k=2, scope="workflow")
    assert plan.steps[0].depends_on == ["a"]
    assert plan.steps[1].declared == ["output.title"]
    assert plan.recalls
    assert not plan_of([{"id": "a"}]).recalls
