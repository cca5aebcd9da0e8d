"""What compiling a definition fills in, once and for all."""

from __future__ import annotations

from datetime import timedelta

from plans import START, agent, plan_of, stored

from engine.domain.handoff import Handoff
from engine.domain.plan import ExecutionPlan, PlanRecall, compile_plan


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


def test_each_handoff_that_would_act_is_a_warning():
    version = stored([{"id": "s1", "agent_id": "agent-a"}, {"id": "s2", "agent_id": "agent-b", "depends_on": ["s1"]}])
    agents = {agent_id: agent(agent_id) for agent_id in ("agent-a", "agent-b")}
    edge = Handoff(
        handoff_id="h1", source_agent_id="agent-a", target_agent_id="agent-b", created_at=START, updated_at=START
    )
    back = edge.model_copy(update={"handoff_id": "h2", "source_agent_id": "agent-b", "target_agent_id": "agent-a"})
    rescue = edge.model_copy(update={"handoff_id": "h3", "handoff_type": "escalation"})
    plan = compile_plan(version, agents, [edge, back, rescue], 3)
    assert [(warning.code, warning.step_id) for warning in plan.warnings] == [
        ("unsupported", "s2"),
        ("unsupported", "s1"),
    ]
    assert "h1" in plan.warnings[0].message
    assert "h3" in plan.warnings[1].message


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
    handoff = Handoff(
        handoff_id="h",
        source_agent_id="agent-a",
        target_agent_id="agent-b",
        data_mapping={"architecture_plan": "requirements", "extra": "more"},
        trigger_conditions=["completion", "source_output.plan_complete = true"],
        created_at=START,
        updated_at=START,
    )
    other = handoff.model_copy(update={"handoff_id": "o", "source_agent_id": "agent-b"})
    mapping = {"architecture_plan": "${output.plan}"}
    assert reply_keys({"output_mapping": mapping}, handoffs=(handoff, other)) == ["plan", "extra", "plan_complete"]


def test_a_recall_is_frozen_into_the_plan_and_what_it_reads_is_a_dependency():
    plan = plan_of([{"id": "b", "context": {"recall": "like ${steps.a.output.title}", "top_k": 2}}, {"id": "a"}])
    assert plan.steps[0].recall == PlanRecall(recall="like ${steps.a.output.title}", top_k=2, scope="workflow")
    assert plan.steps[0].depends_on == ["a"]
    assert plan.steps[1].declared == ["output.title"]
    assert plan.recalls
    assert not plan_of([{"id": "a"}]).recalls
