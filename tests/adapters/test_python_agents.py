"""Python agents: what may be called, where it runs, and that nothing a user's function does kills a worker."""

from __future__ import annotations

import asyncio
import logging
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from engine.adapters.agents.agent_threads import AgentLoops
from engine.adapters.agents.python_agents import PythonAgentInvoker
from engine.adapters.agents.replies import checked_output
from engine.adapters.agents.routing import RoutingAgentInvoker
from engine.domain.agent import PlanAgent
from engine.domain.agent_call import AgentFailure, AgentInvocation, FailureReason
from engine.domain.execution import Usage
from engine.request_context import request_id


@dataclass
class RecordedCall:
    execution_id: str = "flow-1"
    step_id: str = "step1"
    attempt: int = 2
    idempotency_key: str = "flow-1/run/step1/1"
    deadline: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(seconds=30))
    context: list = field(default_factory=list)
    cancelled: bool = False
    said: list = field(default_factory=list)

    def heartbeat(self, progress=None):
        self.said.append(("heartbeat", progress))

    def emit(self, text):
        self.said.append(("emit", text))


def invocation(function, value=None, call=None):
    agent = PlanAgent(agent_id="agent-x", version=1, kind="python", config={"function": function})
    return AgentInvocation(agent=agent, input={} if value is None else value, call=call or RecordedCall())


async def failure_of(invoker, function, value=None):
    with pytest.raises(AgentFailure) as caught:
        await asyncio.wait_for(invoker.invoke_agent(invocation(function, value)), 10)
    return caught.value


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write modules into a folder on the import path; they are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(path, source):
        *packages, name = path.split(".")
        folder = tmp_path
        for package in packages:
            folder = folder / package
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / f"{name}.py").write_text(textwrap.dedent(source))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
async def registered():
    """Make an invoker of functions given by name."""
    made = []

    def make(max_threads=4, **functions):
        made.append(PythonAgentInvoker([], max_threads=max_threads, functions=functions))
        return made[-1]

    yield make
    for invoker in made:
        await invoker.aclose()


class TestWhatMayBeCalled:
    async def test_a_function_under_an_allowed_package_is_called(self, modules):
        modules("shop.orders.agents", "def price(given, call): return {'price': given['n'] * 2, 'by': __name__}")
        invoker = PythonAgentInvoker(["shop"])
        reply = await invoker.invoke_agent(invocation("shop.orders.agents:price", {"n": 4}))
        assert reply.output == {"price": 8, "by": "shop.orders.agents"}
        assert reply.usage == Usage(requests=1)
        await invoker.aclose()

    @pytest.mark.parametrize("allowed", [[], ["shop"], ["shop_evil.agents.deeper"], [""], ["shop_evil.ag"], ["."]])
    async def test_a_module_outside_is_not_even_imported(self, modules, allowed):
        modules("shop_evil.agents", "def f(given): return {}")
        failure = await failure_of(PythonAgentInvoker(allowed), "shop_evil.agents:f")
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert "agent_modules" in failure.message
        assert "shop_evil" not in sys.modules

    @pytest.mark.parametrize(
        "name",
        [
            "shop.a:f.g",
            "shop.a:",
            ":f",
            "shop..a:f",
            ".shop:f",
            "shop.a:f:g",
            "shop.a:f()",
            "shop/a:f",
            "",
            None,
            3,
            {},
        ],
    )
    async def test_a_malformed_name_is_refused(self, modules, name):
        failure = await failure_of(PythonAgentInvoker(["shop"]), name)
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert "shop" not in sys.modules

    @pytest.mark.parametrize("name", ["system", "VALUE", "absent", "__builtins__", "lazy", "half", "odd"])
    async def test_only_functions_defined_in_the_module_count(self, modules, name):
        modules(
            "shop.agents",
            """
            from functools import partial
            from os import system
            VALUE = {"a": 1}
            half = partial(print)
            def __getattr__(name): return print
            class Odd:
                def __call__(self, given): return {}
                @property
                def __module__(self): raise AttributeError
            odd = Odd()
            """,
        )
        failure = await failure_of(PythonAgentInvoker(["shop.agents"]), f"shop.agents:{name}")
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert name in failure.message

    @pytest.mark.parametrize(
        ("source", "told"),
        [
            ("import not_there_at_all", "not_there_at_all"),
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("def broken(:", "SyntaxError"),
        ],
    )
    async def test_a_failing_import_is_an_error_with_its_message(self, modules, source, told):
        modules("shop.broken", source)
        failure = await failure_of(PythonAgentInvoker(["shop"]), "shop.broken:f")
        assert failure.reason is FailureReason.ERROR
        assert told in failure.message

    async def test_the_import_happens_off_the_loop_and_once(self, modules):
        modules(
            "shop.slow",
            """
            import threading
            IMPORTED_BY = threading.current_thread().name
            def f(given): return {"thread": IMPORTED_BY}
            """,
        )
        invoker = PythonAgentInvoker(["shop"])
        first = await invoker.invoke_agent(invocation("shop.slow:f"))
        assert first.output["thread"].startswith("baton-agent-")
        del sys.modules["shop.slow"]
        assert (await invoker.invoke_agent(invocation("shop.slow:f"))).output == first.output

    async def test_an_unregistered_name_is_refused(self, registered):
        failure = await failure_of(registered(known=lambda given: {}), "unknown")
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert "unknown" in failure.message


class TestHowItIsCalled:
    @pytest.mark.parametrize("kind", ["sync", "async", "input only", "option", "async object"])
    async def test_each_shape_of_function_is_called(self, registered, kind):
        def sync(given, call):
            return {"input": given, "key": call.idempotency_key}

        async def asynchronous(given, call):
            await asyncio.sleep(0)
            return {"input": given, "key": call.idempotency_key}

        def with_option(given, temperature=0.5):
            return {"input": given, "key": temperature}

        class Callable:
            async def __call__(self, given, call):
                return {"input": given, "key": call.attempt}

        function, key = {
            "sync": (sync, "flow-1/run/step1/1"),
            "async": (asynchronous, "flow-1/run/step1/1"),
            "input only": (lambda given: {"input": given, "key": None}, None),
            "option": (with_option, 0.5),
            "async object": (Callable(), 2),
        }[kind]
        reply = await registered(f=function).invoke_agent(invocation("f", {"a": [1]}))
        assert reply.output == {"input": {"a": [1]}, "key": key}

    async def test_a_function_of_three_arguments_is_refused(self, registered):
        failure = await failure_of(registered(f=lambda a, b, c: {}), "f")
        assert failure.reason is FailureReason.INVALID_REQUEST
        assert "(input, call)" in failure.message

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_context_variables_reach_the_function_and_stay_its_own(self, registered, asynchronous):
        def seen(given):
            found = request_id.get()
            request_id.set("changed")
            return {"request_id": found}

        async def seen_async(given):
            return seen(given)

        token = request_id.set("req-7")
        try:
            reply = await registered(f=seen_async if asynchronous else seen).invoke_agent(invocation("f"))
            assert reply.output == {"request_id": "req-7"}
            assert request_id.get() == "req-7"
        finally:
            request_id.reset(token)

    async def test_what_the_call_says_is_passed_on(self, registered):
        def talks(given, call):
            call.heartbeat({"done": 1})
            call.emit("half way")
            return {"cancelled": call.cancelled, "context": call.context}

        call = RecordedCall(context=["x"], cancelled=True)
        reply = await registered(f=talks).invoke_agent(invocation("f", call=call))
        assert reply.output == {"cancelled": True, "context": ["x"]}
        assert call.said == [("heartbeat", {"done": 1}), ("emit", "half way")]

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_blocking_function_does_not_stall_the_worker(self, registered, asynchronous):
        release = threading.Event()

        def blocks(given):
            return {"released": release.wait(20)}

        async def blocks_its_loop(given):
            return blocks(given)

        task = asyncio.create_task(
            registered(f=blocks_its_loop if asynchronous else blocks).invoke_agent(invocation("f"))
        )
        await asyncio.sleep(0.05)
        assert not task.done()
        release.set()
        assert (await task).output == {"released": True}

    async def test_no_more_than_the_bound_run_at_once(self, registered):
        running, most, lock, release = 0, 0, threading.Lock(), threading.Event()

        def counts(given):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            release.wait(20)
            with lock:
                running -= 1
            return {"n": given["n"]}

        invoker = registered(max_threads=3, f=counts)
        tasks = [asyncio.create_task(invoker.invoke_agent(invocation("f", {"n": n}))) for n in range(10)]
        await until(lambda: running == 3)
        await asyncio.sleep(0.02)
        release.set()
        assert [reply.output["n"] for reply in await asyncio.gather(*tasks)] == list(range(10))
        assert most == 3


class OddError(Exception):
    def __str__(self):
        raise SystemExit(9)


def cyclic():
    value = {}
    value["again"] = [value, value]
    return value


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def shared():
    value = []
    for _ in range(60):
        value = [value, value]
    return {"a": value}


class Text(str):
    __slots__ = ()


POISON_RETURNS = {
    "nothing": (None, "NoneType"),
    "list": ([1], "list"),
    "set": ({"a": {1}}, "output.a"),
    "tuple": ({"a": [{"b": (1,)}]}, "output.a[0].b"),
    "bytes": ({"a": b"x"}, "bytes"),
    "nan": ({"a": float("nan")}, "output.a"),
    "big integer": ({"a": 2**70}, "64 bits"),
    "key": ({"a": {1: 2}}, "not a string"),
    "subclass": ({"a": Text("x")}, "Text"),
    "cyclic": (cyclic(), "output"),
    "deep": (deep(10_000), "64 levels"),
    "shared": (shared(), "items"),
    "surrogate": ({"a": ["\ud800"]}, "surrogate"),
    "surrogate key": ({"a": {"\udfff": 1}}, "surrogate"),
    "date": ({"a": datetime.now(UTC)}, "datetime"),
}
POISON_RAISES = {
    "ValueError": (ValueError("no good"), "ValueError: no good"),
    "empty": (KeyError(), "KeyError"),
    "exit": (SystemExit(2), "SystemExit: 2"),
    "interrupt": (KeyboardInterrupt(), "KeyboardInterrupt"),
    "generator": (GeneratorExit("x"), "GeneratorExit: x"),
    "cancelled": (asyncio.CancelledError(), "ancelled"),
    "stop": (StopIteration(3), "Stop"),
    "unprintable": (OddError(), "OddError"),
    "surrogate": (ValueError("a\ud800b"), "ValueError: a?b"),
    "memory": (MemoryError(), "MemoryError"),
    "group": (BaseExceptionGroup("many", [SystemExit(1), ValueError(2)]), "BaseExceptionGroup: many"),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
class TestPoison:
    def as_agent(self, asynchronous, function):
        async def agent(given):
            await asyncio.sleep(0)
            return function(given)

        return agent if asynchronous else function

    @pytest.mark.parametrize("name", POISON_RETURNS)
    async def test_what_is_no_json_object_is_invalid_output(self, registered, asynchronous, name):
        value, told = POISON_RETURNS[name]
        invoker = registered(f=self.as_agent(asynchronous, lambda given: value))
        failure = await failure_of(invoker, "f")
        assert failure.reason is FailureReason.INVALID_OUTPUT
        assert told in failure.message
        assert len(failure.message) < 1000

    @pytest.mark.parametrize("name", POISON_RAISES)
    async def test_whatever_is_raised_is_an_error_and_the_next_call_works(self, registered, asynchronous, name):
        error, told = POISON_RAISES[name]

        def f(given):
            if given.get("well"):
                return {"ok": True}
            raise error

        invoker = registered(f=self.as_agent(asynchronous, f))
        failure = await failure_of(invoker, "f")
        assert failure.reason is FailureReason.ERROR
        assert told in failure.message
        assert "Traceback" not in failure.message
        assert failure.__cause__ is None
        assert (await invoker.invoke_agent(invocation("f", {"well": True}))).output == {"ok": True}

    async def test_a_long_message_is_cut_and_the_traceback_is_logged(self, registered, asynchronous, caplog):
        def wrong_on_this_line(given):
            raise ValueError("x" * 1_000_000)

        with caplog.at_level(logging.WARNING):
            failure = await failure_of(registered(f=self.as_agent(asynchronous, wrong_on_this_line)), "f")
        assert failure.message.startswith("ValueError: xxx")
        assert len(failure.message) == 2_000
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "wrong_on_this_line" in record.getMessage()
        assert len(record.getMessage()) < 25_000

    async def test_an_agent_failure_of_the_function_passes_through(self, registered, asynchronous):
        def f(given):
            raise AgentFailure(FailureReason.RATE_LIMITED, "slow down", timedelta(seconds=3), {"plan": "free"})

        failure = await failure_of(registered(f=self.as_agent(asynchronous, f)), "f")
        assert (failure.reason, failure.message) == (FailureReason.RATE_LIMITED, "slow down")
        assert (failure.retry_after, failure.details) == (timedelta(seconds=3), {"plan": "free"})

    @pytest.mark.parametrize(
        "failure",
        [
            AgentFailure("no_such_reason", "x"),
            AgentFailure(FailureReason.ERROR, "x", details={"a": {1, 2}}),
            AgentFailure(FailureReason.ERROR, "x", details=cyclic()),
        ],
        ids=["reason", "details", "cyclic"],
    )
    async def test_a_malformed_agent_failure_is_an_error(self, registered, asynchronous, failure):
        def f(given):
            raise failure

        found = await failure_of(registered(f=self.as_agent(asynchronous, f)), "f")
        assert found.reason is FailureReason.ERROR
        assert found.details == {}
        assert "AgentFailure" in found.message


class TestCancelling:
    async def test_a_sync_function_sees_it_and_the_caller_does_not_wait(self, registered):
        started, ended = threading.Event(), threading.Event()
        release = threading.Event()

        def watches(given, call):
            started.set()
            while not call.cancelled:
                release.wait(0.005)
            call.emit("too late")
            call.heartbeat()
            release.wait(20)
            ended.set()
            return {}

        call = RecordedCall()
        task = asyncio.create_task(registered(f=watches).invoke_agent(invocation("f", call=call)))
        await until(started.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended.is_set()
        release.set()
        await until(ended.is_set)
        assert call.said == []

    async def test_an_async_function_is_cancelled_on_its_loop(self, registered):
        started, cleaned = threading.Event(), threading.Event()

        async def waits(given, call):
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cleaned.set()
                raise

        task = asyncio.create_task(registered(f=waits).invoke_agent(invocation("f")))
        await until(started.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(cleaned.is_set)

    async def test_an_async_function_that_refuses_to_end_does_not_hold_the_caller(self, registered, caplog):
        started, asked, release = threading.Event(), threading.Event(), threading.Event()

        async def refuses(given, call):
            started.set()
            while not release.is_set():
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    asked.set()
            raise ValueError("nobody waits for this")

        invoker = registered(f=refuses)
        task = asyncio.create_task(invoker.invoke_agent(invocation("f")))
        await until(started.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(asked.is_set)
        release.set()
        await invoker.aclose()
        assert "never retrieved" not in caplog.text

    async def test_a_call_that_waits_for_a_thread_never_starts(self, registered):
        release, ran = threading.Event(), []

        def f(given):
            ran.append(given["n"])
            release.wait(20)
            return {}

        invoker = registered(max_threads=1, f=f)
        first = asyncio.create_task(invoker.invoke_agent(invocation("f", {"n": 1})))
        await until(lambda: ran)
        second = asyncio.create_task(invoker.invoke_agent(invocation("f", {"n": 2})))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        await first
        await invoker.invoke_agent(invocation("f", {"n": 3}))
        assert ran == [1, 3]

    async def test_abandoned_threads_make_room_up_to_a_limit_and_give_it_back(self, registered):
        release, running = threading.Event(), []

        def hangs(given):
            running.append(given)
            release.wait(20)
            return {}

        invoker = registered(max_threads=2, hangs=hangs, quick=lambda given: {"ok": True})

        async def abandon():
            count = len(running)
            task = asyncio.create_task(invoker.invoke_agent(invocation("hangs")))
            await until(lambda: len(running) > count)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        await abandon()
        assert (await invoker.invoke_agent(invocation("quick"))).output == {"ok": True}
        await abandon()
        failure = await failure_of(invoker, "quick")
        assert failure.reason is FailureReason.UNAVAILABLE
        assert "call.cancelled" in failure.message
        assert failure.details == {"abandoned_threads": 2}
        release.set()
        await until(lambda: not agent_threads())
        assert (await invoker.invoke_agent(invocation("quick"))).output == {"ok": True}

    async def test_calls_that_wait_are_told_when_the_limit_is_reached(self, registered):
        release, running = threading.Event(), []

        def hangs(given):
            running.append(given)
            release.wait(20)
            return {}

        invoker = registered(max_threads=1, hangs=hangs)
        first = asyncio.create_task(invoker.invoke_agent(invocation("hangs")))
        await until(lambda: running)
        second = asyncio.create_task(invoker.invoke_agent(invocation("hangs")))
        await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(AgentFailure) as caught:
            await asyncio.wait_for(second, 10)
        assert caught.value.reason is FailureReason.UNAVAILABLE
        assert len(running) == 1
        release.set()

    async def test_a_blocked_loop_is_left_and_used_again_when_it_answers(self):
        loops = AgentLoops(unanswered_after=timedelta(milliseconds=50))
        release = threading.Event()

        async def blocks():
            release.wait(20)

        async def where():
            return threading.current_thread().name

        blocked = asyncio.create_task(loops.run(blocks))
        await asyncio.sleep(0.01)
        blocked.cancel()
        lost = asyncio.create_task(loops.run(where))
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(loops.run(where), 10) == "baton-agent-loop-2"
        release.set()
        assert await asyncio.wait_for(lost, 10) == "baton-agent-loop-1"
        assert await asyncio.wait_for(loops.run(where), 10) == "baton-agent-loop-1"
        for thread in loops.close(timedelta(seconds=1)):
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()


def agent_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("baton-agent")]


class TestTheLoopSurvives:
    async def test_a_stray_task_that_exits_does_not_end_the_loop(self, registered, caplog):
        async def leaves_a_task(given):
            async def exits():
                raise SystemExit(4)

            stray = asyncio.create_task(exits())
            await asyncio.sleep(0.02)
            return {"done": stray.done()}

        invoker = registered(f=leaves_a_task)
        assert (await invoker.invoke_agent(invocation("f"))).output == {"done": True}
        assert (await invoker.invoke_agent(invocation("f"))).output == {"done": True}

    async def test_a_sync_function_that_returns_a_coroutine_is_told_how(self, registered):
        async def inner():
            return {}

        failure = await failure_of(registered(f=lambda given: inner()), "f")
        assert failure.reason is FailureReason.INVALID_OUTPUT
        assert "async def" in failure.message


class TestClosing:
    async def test_no_thread_is_left_and_later_calls_are_refused(self, registered):
        async def asynchronous(given):
            return {}

        invoker = registered(a=asynchronous, s=lambda given: {})
        await invoker.invoke_agent(invocation("a"))
        await invoker.invoke_agent(invocation("s"))
        await invoker.aclose()
        assert agent_threads() == []
        for name in ("a", "s"):
            failure = await failure_of(invoker, name)
            assert failure.reason is FailureReason.UNAVAILABLE

    async def test_what_runs_is_asked_to_end(self, registered):
        started = threading.Barrier(3)

        def watches(given, call):
            started.wait(20)
            while not call.cancelled:
                threading.Event().wait(0.005)
            return {"saw": True}

        async def waits(given):
            await asyncio.to_thread(started.wait, 20)
            await asyncio.sleep(60)

        invoker = registered(s=watches, a=waits)
        sync = asyncio.create_task(invoker.invoke_agent(invocation("s")))
        asynchronous = asyncio.create_task(invoker.invoke_agent(invocation("a")))
        await asyncio.to_thread(started.wait, 20)
        await invoker.aclose()
        assert (await asyncio.wait_for(sync, 10)).output == {"saw": True}
        with pytest.raises(AgentFailure) as caught:
            await asyncio.wait_for(asynchronous, 10)
        assert caught.value.reason is FailureReason.UNAVAILABLE
        assert agent_threads() == []

    async def test_a_stuck_function_does_not_keep_the_process(self):
        # In a process of its own, because the promise is about the process's end.
        program = """
import asyncio, threading
from engine.adapters.agents.python_agents import PythonAgentInvoker
from test_python_agents import invocation

async def main():
    started = threading.Event()
    def stuck(given):
        started.set()
        threading.Event().wait()
    invoker = PythonAgentInvoker([], functions={"f": stuck})
    task = asyncio.create_task(invoker.invoke_agent(invocation("f")))
    while not started.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print("left")

asyncio.run(main())
"""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=__file__.rpartition("/")[0]
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert (out.strip(), process.returncode) == (b"left", 0)


class TestRouting:
    async def test_the_kind_chooses_the_invoker(self, registered):
        router = RoutingAgentInvoker({"python": registered(f=lambda given: {"ok": 1})})
        assert (await router.invoke_agent(invocation("f"))).output == {"ok": 1}

    async def test_a_kind_without_invoker_is_told(self, registered):
        router = RoutingAgentInvoker({"python": registered()})
        agent = PlanAgent(agent_id="agent-y", version=1, kind="llm", config={"model": "m"})
        with pytest.raises(AgentFailure, match="kind llm, which is unsupported") as caught:
            await router.invoke_agent(AgentInvocation(agent=agent, input={}, call=RecordedCall()))
        assert caught.value.reason is FailureReason.INVALID_REQUEST


def test_a_large_plain_output_passes():
    output = {"items": [{"n": n, "text": "é" * 10} for n in range(50_000)]}
    assert checked_output(output) is output
