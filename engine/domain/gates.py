"""The gates of a run: opened by the reducer, answered once by people, each found by its own id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.domain.carried import CarriedGate
from engine.domain.execution import Event, micros
from engine.domain.expressions import json_size
from engine.domain.gate import GateRecord, GateStatus
from engine.domain.issues import IssueList, issue_details, summary
from engine.domain.json_schema import check_value
from engine.domain.metrics import format_instant
from engine.errors import ConflictError, InvalidInputError

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.call_records import RunFacts
    from engine.domain.execution import StepRecord
    from engine.domain.gate import GateKind
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.plan import ExecutionPlan, PlanApproval
    from engine.domain.step_state import Unit

__all__ = ["ASK_ANSWERS", "BUDGET_ANSWERS", "Gate", "Gates"]

ASK_ANSWERS: Final = ("retry", "skip", "fail")
BUDGET_ANSWERS: Final = ("continue", "fail")
MAX_BY_CHARS: Final = 200
MAX_QUESTION_CHARS: Final = 4000
MAX_DATA_BYTES: Final = 32 * 1024
"""Most JSON of an answer's data: it becomes an output that every later run carries."""


@dataclass(slots=True)
class Gate:
    """A gate and what it holds."""

    record: GateRecord
    unit: Unit | None
    """None: it holds the whole run (``budget``)."""
    escalated: bool = False
    failed: StepRecord | None = None
    """Of the failed step that asks what to do; it waits meanwhile."""

    @property
    def is_open(self) -> bool:
        """Whether it can be answered."""
        return self.record.status == "open"


class Gates:
    """All gates of a run; ``changed`` and ``events`` are what has to be told about them."""

    def __init__(self, facts: RunFacts, plan: ExecutionPlan) -> None:
        self.changed: dict[str, GateRecord] = {}
        self.events: list[Event] = []
        self._facts = facts
        self._plan = plan
        self._gates: dict[str, Gate] = {}

    @property
    def open_gates(self) -> list[Gate]:
        """Those that can be answered, the first opened first."""
        return [gate for gate in self._gates.values() if gate.is_open]

    def find(self, gate_id: str) -> Gate | None:
        """Return a gate, open or not."""
        return self._gates.get(gate_id)

    def find_ask(self, step_id: str) -> Gate | None:
        """Return the open gate of a failed step."""
        for gate in self.open_gates:
            if gate.record.kind == "ask" and gate.record.step_id == step_id:
                return gate
        return None

    def open_approval(
        self, gate_id: str, unit: Unit, approval: PlanApproval, question: str, now: datetime, *, escalated: bool
    ) -> Gate:
        """Open the gate of an approval step, or its second one."""
        record = self._record(gate_id, "approval", unit, question, approval.allowed, now).model_copy(
            update={
                "form": approval.form,
                "assignees": approval.escalate_to if escalated else approval.assignees,
                "expires_at": None if approval.timeout is None else now + approval.timeout,
            }
        )
        return self._opened(Gate(record, unit, escalated), now)

    def open_ask(self, gate_id: str, unit: Unit, question: str, failed: StepRecord, now: datetime) -> Gate:
        """Open the gate of a failed step."""
        record = self._record(gate_id, "ask", unit, question, list(ASK_ANSWERS), now)
        return self._opened(Gate(record, unit, failed=failed), now)

    def open_budget(self, gate_id: str, question: str, now: datetime) -> Gate:
        """Open the gate of a budget that is spent."""
        record = self._record(gate_id, "budget", None, question, list(BUDGET_ANSWERS), now)
        return self._opened(Gate(record, None), now)

    def check(self, gate_id: JsonValue, answer: JsonValue, data: JsonValue, by: JsonValue) -> Gate:
        """Return the gate that an answer is for.

        Raises:
            InvalidInputError: there is no such gate, or the answer has the wrong form.
            ConflictError: the gate has been answered, or has expired.
        """
        if not isinstance(gate_id, str) or not isinstance(answer, str):
            raise InvalidInputError("Give gate_id and answer as texts", {"path": "gate_id"})
        if by is not None and (not isinstance(by, str) or len(by) > MAX_BY_CHARS):
            raise InvalidInputError(f"by must be a text of at most {MAX_BY_CHARS} characters", {"path": "by"})
        gate = self._gates.get(gate_id)
        if gate is None:
            known: list[JsonValue] = [gate.record.gate_id for gate in self.open_gates[:20]]
            raise InvalidInputError(
                f"There is no gate {gate_id[:200]}; open are: {', '.join(map(str, known)) or 'none'}",
                {"path": "gate_id", "open": known},
            )
        record = gate.record
        if not gate.is_open:
            stands = f" {record.answer} by {record.by or 'nobody named'}" if record.status == "answered" else ""
            raise ConflictError(
                f"Gate {gate_id} is {record.status}{stands}; an answer is taken once",
                {
                    "gate_id": gate_id,
                    "status": record.status,
                    "answer": record.answer,
                    "by": record.by,
                    "at": None if record.at is None else format_instant(record.at),
                },
            )
        if json_size(data, limit=MAX_DATA_BYTES) > MAX_DATA_BYTES:
            raise InvalidInputError(
                f"The data of an answer has at most {MAX_DATA_BYTES // 1024} KiB; hand over a reference instead",
                {"path": "data", "limit_bytes": MAX_DATA_BYTES},
            )
        if answer not in record.allowed:
            raise InvalidInputError(
                f"{answer[:200]} is no answer of gate {gate_id}; allowed are {', '.join(record.allowed)}",
                {"path": "answer", "allowed": list(record.allowed)},
            )
        self._check_data(record, answer, data)
        return gate

    def find_only(self, answer: str) -> Gate:
        """Return the only open gate that allows ``answer``.

        Raises:
            ConflictError: none is open.
            InvalidInputError: several are.
        """
        found = [gate for gate in self.open_gates if answer in gate.record.allowed]
        if not found:
            raise ConflictError(f"No gate is open that takes the answer {answer}", {"answer": answer})
        if len(found) > 1:
            ids: list[JsonValue] = [gate.record.gate_id for gate in found[:20]]
            raise InvalidInputError(
                f"{len(found)} gates are open; say which with gate_id: {', '.join(map(str, ids))}",
                {"path": "gate_id", "open": ids},
            )
        return found[0]

    def answer(self, gate: Gate, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        """Take an answer that was checked."""
        self._change(gate, "answered", now, answer=answer, data=data, by=by)
        self._tell(gate, "gate.answered", now, answer=answer, by=by)

    def expire(self, gate: Gate, now: datetime, answer: str | None) -> None:
        """Nobody has answered in time; ``answer`` is the default one."""
        self._change(gate, "expired", now, answer=answer)
        self._tell(gate, "gate.expired", now, answer=answer)

    def close(self, gate: Gate, now: datetime) -> None:
        """No answer is wanted any more."""
        self._change(gate, "closed", now)

    def carry(self) -> list[CarriedGate]:
        """Return all gates for the next run."""
        return [
            CarriedGate(
                record=gate.record if gate.is_open else _without_content(gate.record),
                failed=gate.failed if gate.is_open else None,
                item=gate.unit.item if gate.unit else None,
                n=gate.unit.state.n if gate.unit else 1,
                escalated=gate.escalated,
            )
            for gate in self._gates.values()
        ]

    def restore(self, carried: CarriedGate, unit: Unit | None) -> None:
        """Take a gate over from the run before."""
        self._gates[carried.record.gate_id] = Gate(carried.record, unit, carried.escalated, carried.failed)

    def _check_data(self, record: GateRecord, answer: str, data: JsonValue) -> None:
        is_refusal = record.kind == "approval" and data is None and record.form is not None and answer == "reject"
        if record.form is None or is_refusal:
            return
        issues = IssueList(data, prefix=("data",))
        check_value(record.form, data, issues)
        if issues.has_errors():
            found = issues.in_order()
            raise InvalidInputError(summary(f"The data for gate {record.gate_id}", found), issue_details(found))

    def _record(
        self, gate_id: str, kind: GateKind, unit: Unit | None, question: str, allowed: list[str], now: datetime
    ) -> GateRecord:
        return GateRecord(
            execution_id=self._facts.execution_id,
            gate_id=gate_id,
            definition_id=self._plan.definition_id,
            run_id=self._facts.run_id,
            token=micros(now),
            kind=kind,
            status="open",
            step_id=None if unit is None else unit.step_id,
            question=question[:MAX_QUESTION_CHARS],
            allowed=allowed,
            opened_at=now,
        )

    def _opened(self, gate: Gate, now: datetime) -> Gate:
        record = gate.record
        self._gates[record.gate_id] = gate
        self.changed[record.gate_id] = record
        expires_at = None if record.expires_at is None else format_instant(record.expires_at)
        shown: JsonObject = {"question": record.question, "kind": record.kind, "expires_at": expires_at}
        self._tell(gate, "gate.opened", now, **shown, allowed=[*record.allowed])
        return gate

    def _change(
        self,
        gate: Gate,
        status: GateStatus,
        now: datetime,
        *,
        answer: str | None = None,
        data: JsonValue = None,
        by: str | None = None,
    ) -> None:
        gate.record = gate.record.model_copy(
            update={
                "status": status,
                "token": micros(now),
                "run_id": self._facts.run_id,
                "answer": answer,
                "data": data,
                "by": by,
                "at": now,
            }
        )
        self.changed[gate.record.gate_id] = gate.record

    def _tell(self, gate: Gate, event_type: str, now: datetime, **data: JsonValue) -> None:
        shown: JsonObject = {"gate_id": gate.record.gate_id, **data}
        self.events.append(Event.at_instant(event_type, now, gate.record.gate_id, gate.record.step_id, **shown))


def _without_content(record: GateRecord) -> GateRecord:
    """What is needed of a gate that takes no answer any more: who has answered what, and when."""
    return record.model_copy(update={"data": None, "form": None, "question": "", "assignees": []})
