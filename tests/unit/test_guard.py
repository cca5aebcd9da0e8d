"""A server that is away costs a caller its deadline at most, costs itself two tries a second, and is found again."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from engine.adapters import guard as guard_module
from engine.adapters.failures import Failure, FailureTable
from engine.adapters.guard import FAILURES_TO_OPEN, StoreGuard
from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SUBJECT = "The server db.example:1234 of db_uri"
PROBE_SECONDS = 0.1


class RefusedError(Exception):
    """What a driver raises when nobody listens."""


class BadQueryError(Exception):
    """What a driver raises when the server is there and says no."""


class Server:
    """What is behind a driver: answers, refuses or hangs, and counts who asks.

    Attributes:
        asked: how many calls have reached it.
        at_once: the most that were with it at the same time.
    """

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.hangs = False
        self.asked = 0
        self.at_once = 0
        self._now = 0

    async def answer(self) -> str:
        self.asked += 1
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            await asyncio.sleep(0)
            if self.hangs:
                await asyncio.Event().wait()
            if self.fault is not None:
                raise self.fault
            return "answer"
        finally:
            self._now -= 1


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "PROBE_SECONDS", PROBE_SECONDS)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def guard() -> StoreGuard:
    rows = [
        Failure(RefusedError, "can't be reached; start it", is_outage=True),
        Failure(BadQueryError, "refused the query"),
    ]
    return StoreGuard(FailureTable("db", SUBJECT, rows), timedelta(seconds=0.1))


async def reason_of(guard: StoreGuard, call: Callable[[], Awaitable[object]], **options: timedelta) -> object:
    with pytest.raises(StoreError) as raised:
        await guard.run(call, **options)
    assert str(raised.value).startswith(SUBJECT)
    assert raised.value.details["backend"] == "db"
    return raised.value.details["reason"]


async def open_circuit(guard: StoreGuard, server: Server) -> None:
    """Open it and use the probe that is due at once."""
    server.fault = RefusedError()
    for _ in range(FAILURES_TO_OPEN + 1):
        await reason_of(guard, server.answer)
    assert guard.is_open


async def closed(guard: StoreGuard, call: Callable[[], Awaitable[object]]) -> float:
    """Call until an answer comes; return after how many seconds."""
    began_at = time.monotonic()
    async with asyncio.timeout(10):
        while True:
            try:
                await guard.run(call)
            except StoreError:
                await asyncio.sleep(0.01)
            else:
                return time.monotonic() - began_at


async def test_an_answer_passes_through(guard: StoreGuard, server: Server):
    assert await guard.run(server.answer) == "answer"


async def test_a_driver_s_error_leaves_in_our_words_with_it_as_the_cause(guard: StoreGuard, server: Server):
    server.fault = RefusedError("redis://me:secret@db.example")
    with pytest.raises(StoreError) as raised:
        await guard.run(server.answer)
    assert raised.value.message == f"{SUBJECT} can't be reached; start it."
    assert raised.value.__cause__ is server.fault


async def test_an_error_that_is_no_driver_s_is_nobody_s_fault_but_ours(guard: StoreGuard, server: Server):
    server.fault = ZeroDivisionError()
    for _ in range(FAILURES_TO_OPEN + 1):
        with pytest.raises(ZeroDivisionError):
            await guard.run(server.answer)
    assert not guard.is_open


async def test_a_hanging_server_costs_the_deadline(guard: StoreGuard, server: Server):
    server.hangs = True
    with pytest.raises(StoreError) as raised:
        await guard.run(server.answer)
    assert raised.value.message == f"{SUBJECT} did not answer within 0.1 s."
    assert raised.value.details["reason"] == "timeout"


async def test_a_call_that_waits_on_purpose_has_a_deadline_of_its_own(guard: StoreGuard):
    async def waits() -> str:
        await asyncio.sleep(0.2)
        return "late"

    assert await guard.run(waits, timedelta(seconds=60)) == "late"


async def test_a_driver_s_own_timeout_is_the_driver_s_error(server: Server):
    """It comes before the deadline, so it means what the table says, and without a row it stays what it is."""
    server.fault = TimeoutError("connect")
    rows = [Failure(OSError, "can't be reached; start it", is_outage=True)]
    with_row = StoreGuard(FailureTable("db", SUBJECT, rows), timedelta(seconds=60))
    assert await reason_of(with_row, server.answer) == "TimeoutError"
    without = StoreGuard(FailureTable("db", SUBJECT, []), timedelta(seconds=60))
    with pytest.raises(TimeoutError, match="connect"):
        await without.run(server.answer)


async def test_a_driver_that_turns_the_deadline_into_its_own_error_is_understood(guard: StoreGuard):
    async def hides_the_cancellation() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as cancelled:
            raise RefusedError from cancelled

    assert await reason_of(guard, hides_the_cancellation) == "RefusedError"
    current = asyncio.current_task()
    assert current is not None
    assert not current.cancelling(), "the deadline's own cancellation was left on the caller"


async def test_the_circuit_opens_after_some_outages_in_a_row(guard: StoreGuard, server: Server):
    server.fault = RefusedError()
    for _ in range(FAILURES_TO_OPEN - 1):
        assert await reason_of(guard, server.answer) == "RefusedError"
        assert not guard.is_open
    await reason_of(guard, server.answer)
    assert guard.is_open


async def test_hanging_opens_it_too(guard: StoreGuard, server: Server):
    server.hangs = True
    for _ in range(FAILURES_TO_OPEN):
        assert await reason_of(guard, server.answer, deadline=timedelta(seconds=0.01)) == "timeout"
    assert guard.is_open


@pytest.mark.parametrize("between", [None, BadQueryError()], ids=["answer", "refused query"])
async def test_a_server_that_answers_between_is_not_away(guard: StoreGuard, server: Server, between: Exception | None):
    for _ in range(3):
        server.fault = RefusedError()
        for _ in range(FAILURES_TO_OPEN - 1):
            await reason_of(guard, server.answer)
        server.fault = between
        if between is None:
            await guard.run(server.answer)
        else:
            assert await reason_of(guard, server.answer) == "BadQueryError"
    assert not guard.is_open


async def test_refused_queries_never_open_it(guard: StoreGuard, server: Server):
    server.fault = BadQueryError()
    for _ in range(FAILURES_TO_OPEN * 2):
        assert await reason_of(guard, server.answer) == "BadQueryError"
    assert server.asked == FAILURES_TO_OPEN * 2


async def test_while_it_is_open_calls_fail_without_reaching_the_server(guard: StoreGuard, server: Server):
    await open_circuit(guard, server)
    asked = server.asked
    reasons = await asyncio.gather(*(reason_of(guard, server.answer) for _ in range(100)))
    assert set(reasons) == {"circuit_open"}
    assert server.asked == asked


async def test_one_call_at_a_time_finds_out_whether_the_server_is_back(guard: StoreGuard, server: Server):
    """Also when it hangs for longer than the pause between two such calls."""
    await open_circuit(guard, server)
    server.fault, server.hangs, server.asked, server.at_once = None, True, 0, 0
    until = time.monotonic() + PROBE_SECONDS * 6
    patient = timedelta(seconds=PROBE_SECONDS * 2.5)
    calls: list[asyncio.Task[object]] = []
    while time.monotonic() < until:
        calls.append(asyncio.create_task(reason_of(guard, server.answer, deadline=patient)))
        await asyncio.sleep(0.01)
    reasons = await asyncio.gather(*calls)
    assert set(reasons) == {"timeout", "circuit_open"}
    assert server.at_once == 1
    assert 2 <= server.asked <= 3


async def test_a_refusing_server_is_tried_once_a_pause(guard: StoreGuard, server: Server):
    await open_circuit(guard, server)
    server.asked = 0
    began_at = time.monotonic()
    while time.monotonic() - began_at < PROBE_SECONDS * 5:
        await asyncio.gather(*(reason_of(guard, server.answer) for _ in range(10)))
        await asyncio.sleep(0.005)
    assert 1 <= server.asked <= (time.monotonic() - began_at) / PROBE_SECONDS + 1


async def test_the_first_answer_closes_it_for_all(guard: StoreGuard, server: Server):
    await open_circuit(guard, server)
    server.fault = None
    assert await closed(guard, server.answer) < PROBE_SECONDS * 10
    assert await asyncio.gather(*(guard.run(server.answer) for _ in range(50))) == ["answer"] * 50


async def test_a_server_that_says_no_is_back_as_well(guard: StoreGuard, server: Server):
    await open_circuit(guard, server)
    server.fault = BadQueryError()
    await asyncio.sleep(PROBE_SECONDS * 1.5)
    assert await reason_of(guard, server.answer) == "BadQueryError"
    assert not guard.is_open


@pytest.mark.parametrize("end", ["cancelled", "our own error"])
async def test_a_probe_that_finds_nothing_out_lets_the_next_one_try(guard: StoreGuard, server: Server, end: str):
    await open_circuit(guard, server)
    await asyncio.sleep(PROBE_SECONDS * 1.5)
    if end == "cancelled":
        server.fault, server.hangs = None, True
        probe = asyncio.create_task(guard.run(server.answer))
        await asyncio.sleep(0.02)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
    else:
        server.fault = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await guard.run(server.answer)
    assert guard.is_open
    server.fault, server.hangs = None, False
    assert await closed(guard, server.answer) < PROBE_SECONDS * 10


async def test_a_caller_that_is_cancelled_says_nothing_about_the_server(guard: StoreGuard, server: Server):
    server.hangs = True
    for _ in range(FAILURES_TO_OPEN * 2):
        call = asyncio.create_task(guard.run(server.answer))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert server.asked == FAILURES_TO_OPEN * 2
    assert not guard.is_open


@pytest.fixture
def narrow(guard: StoreGuard) -> StoreGuard:
    """A guard of a driver with two connections."""
    return StoreGuard(guard._failures, timedelta(seconds=0.3), slots=2)


async def test_no_more_calls_at_once_than_there_are_connections(narrow: StoreGuard, server: Server):
    assert await asyncio.gather(*(narrow.run(server.answer) for _ in range(20))) == ["answer"] * 20
    assert server.at_once == 2


async def test_calls_get_their_turn_in_the_order_in_which_they_came(narrow: StoreGuard):
    """Also when those that come back at once, as a busy loop does, would take every slot that gets free."""
    order: list[int] = []

    async def call(number: int) -> None:
        order.append(number)
        await asyncio.sleep(0)

    async def comes_back(number: int) -> None:
        for _ in range(3):
            await narrow.run(lambda: call(number))

    await asyncio.gather(*(comes_back(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4] * 3


async def test_calls_that_wait_for_a_connection_end_when_it_opens(narrow: StoreGuard, server: Server):
    """They would try to connect, one after the other."""
    server.hangs = True
    deadlines = [0.01, 0.05, *(60 for _ in range(20))]
    calls = [asyncio.create_task(reason_of(narrow, server.answer, deadline=timedelta(seconds=s))) for s in deadlines]
    await asyncio.sleep(0.2)
    for _ in range(FAILURES_TO_OPEN - 2):
        narrow._count_outage(time.monotonic())
    async with asyncio.timeout(5):
        reasons = await asyncio.gather(*calls[:2], *calls[4:])
    assert reasons == ["timeout"] * 2 + ["circuit_open"] * 18
    assert server.asked == 4
    for call in calls[2:4]:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_call_that_found_no_connection_free_says_so(narrow: StoreGuard, server: Server):
    server.hangs = True
    holding = [asyncio.create_task(reason_of(narrow, server.answer)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="had no connection free within"):
        await narrow.run(server.answer, timedelta(seconds=0.02))
    await asyncio.gather(*holding)
    assert server.asked == 2


async def test_no_slot_is_ever_lost(narrow: StoreGuard, server: Server):
    """Callers are cancelled while they wait, while they call, and at the very moment of their turn."""
    chance = random.Random(8)
    for _ in range(50):
        calls = [asyncio.create_task(narrow.run(server.answer)) for _ in range(10)]
        for call in calls:
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert narrow._free == 2
    server.at_once = 0
    assert await asyncio.gather(*(narrow.run(server.answer) for _ in range(10))) == ["answer"] * 10
    assert server.at_once == 2


async def test_calls_older_than_the_last_answer_do_not_open_it(guard: StoreGuard, server: Server):
    """A crowd that waits for a small pool runs out of time all at once, while the server answers all the time."""
    server.hangs = True
    crowd = [asyncio.create_task(reason_of(guard, server.answer)) for _ in range(50)]
    await asyncio.sleep(0.02)
    server.hangs = False
    await guard.run(server.answer)
    assert await asyncio.gather(*crowd) == ["timeout"] * 50
    assert not guard.is_open


async def test_an_old_failure_does_not_open_it_again(guard: StoreGuard, server: Server):
    late = asyncio.Event()

    async def fails_late() -> None:
        await late.wait()
        raise RefusedError

    patient = timedelta(seconds=60)
    stragglers = [asyncio.create_task(reason_of(guard, fails_late, deadline=patient)) for _ in range(FAILURES_TO_OPEN)]
    await asyncio.sleep(0)
    await guard.run(server.answer)
    late.set()
    assert await asyncio.gather(*stragglers) == ["RefusedError"] * FAILURES_TO_OPEN
    assert not guard.is_open
    assert await guard.run(server.answer) == "answer"
