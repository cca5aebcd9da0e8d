"""The reference, told what happened: each line of a trace must be one that the specification allows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.model.model_reference import Reference
from tests.model.model_wants import STOP, Answer, DisagreementError, Failure, Reply, shown


class Replay(Reference):
    """The reference, driven by a trace."""

    def apply(self, entry: Any) -> None:
        """Take in one thing that happened, and check that it may have."""
        self.now = entry.at
        match entry.what:
            case "started":
                self.check_start(entry)
            case "opened":
                self.check_gate(entry)
            case "ended" | "fired":
                self.end_work(entry)
            case "answered":
                self.end_gate(entry.address, Answer(entry.answer, entry.data, entry.by, entry.at))
            case "expired":
                self.end_gate(entry.address, Answer(None, at=entry.at))
            case "paused":
                self.is_paused = True
            case "resumed":
                self.is_paused = False
            case "draining" | "carried":
                self.is_draining = entry.what == "draining"
            case "cancelled":
                self.cut(("cancelled", None, None), None)
            case "timed out":
                self.cut(("failed", "execution_timeout", None), {"code": "execution_timeout", "message": ""})
            case "clean-up timed out":
                self.stop_cleaning()
            case _:
                self.check_quiet()
        self.settle()

    def cut(self, ending: tuple[str, str | None, str | None], error: dict[str, Any] | None) -> None:
        """End it from outside, unless its end is decided."""
        if self.ending is None:
            if self.failing is None:
                self.error = error
            self.ending = self.failing or ending

    def stop_cleaning(self) -> None:
        if self.part in ("compensate", "finally"):
            self.clean_up_over = True
            self.warnings.append(("cleanup_timeout", None))
            self.close_waiting()

    def check_start(self, entry: Any) -> None:
        want = self.expected.pop(entry.address, None)
        if want is None and entry.address in self.closed:
            return
        if want is None:
            raise DisagreementError(f"{entry.address} is started, and should not be; expected: {sorted(self.expected)}")
        seen = (entry.kind, entry.agent, shown(entry.input), entry.due_at)
        due_at = want.until if want.kind == "timer" else None
        if seen != (want.kind, want.agent, shown(want.input), due_at):
            said = (want.kind, want.agent, shown(want.input), due_at)
            raise DisagreementError(f"{entry.address} is started as {seen}, and should be {said}")
        self.flight[entry.address] = want

    def check_gate(self, entry: Any) -> None:
        fits = [one for one in self.expected.values() if one.kind == "gate" and one.allowed == [*entry.allowed]]
        own = [one for one in fits if entry.address in (one.address, one.address.removeprefix("ask "))]
        asks = [one for one in fits if one.address.startswith("ask ") and one.step == entry.step]
        found = [*own, *asks]
        if not found and {entry.address, f"ask {entry.address}"} & self.closed:
            return
        if not found:
            raise DisagreementError(f"gate {entry.address} is opened, and should not be")
        want = found[0]
        until = None if want.seconds is None else entry.at + timedelta(seconds=want.seconds)
        if until != entry.due_at:
            raise DisagreementError(f"gate {entry.address} expires at {entry.due_at}, and should at {until}")
        del self.expected[want.address]
        self.flight[f"gate {entry.address}"] = want

    def end_gate(self, gate_id: str, answer: Answer) -> None:
        want = self.flight.pop(f"gate {gate_id}", None)
        if want is None:
            raise DisagreementError(f"gate {gate_id} ends, and is not open")
        want.resume(answer)

    def end_work(self, entry: Any) -> None:
        want = self.flight.pop(entry.address, None)
        if want is None:
            raise DisagreementError(f"{entry.address} ends, and is not at work")
        end = entry.end
        if entry.what == "fired":
            want.resume(Reply(None))
        elif end is None:
            want.resume(STOP)
        else:
            self.spent["tokens"] += end.tokens if want.kind == "agent" else 0
            self.spent["agent_calls"] += end.attempts if want.kind == "agent" else 0
            if end.reply is not None:
                want.resume(Reply(end.reply))
            elif self.clean_up_over if want.part != "main" else self.ending is not None:
                # What fails while it is being cancelled was cancelled.
                want.resume(STOP)
            else:
                code = {"input": "invalid_input", "store": "database_error"}.get(end.kind, "agent_error")
                want.resume(Failure(end.kind, end.reason, code, entry.message, address=entry.address))

    def check_quiet(self) -> None:
        held = self.is_held
        left = [one.address for one in self.expected.values() if one.kind != "gate" or not held]
        if left:
            raise DisagreementError(f"{', '.join(left)} should be started, and is not")
