"""One engine for many clients: each gets its own tokens, and whatever becomes of a client or a step, nothing leaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from pagedattn_lab.engine.async_llm import AsyncLLM, EngineClosedError, OutputCollector, QueueFullError
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.engine.sampling_params import SamplingParams
from tests.helpers.server import Gate, OnDemand, assert_at_rest, engine, run, text_of

LONG = SamplingParams(temperature=0.0, max_tokens=1000)
SHORT = SamplingParams(temperature=0.0, max_tokens=8)


async def last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    return [output async for output in outputs][-1]


async def settled(llm: AsyncLLM) -> None:
    """Return when the engine's thread has done all that was asked of it so far."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    llm._commands.put(lambda: loop.call_soon_threadsafe(done.set))
    await done.wait()


def test_many_clients_at_once() -> None:
    """Catches tokens that reach another client, and an output that is not as long as the one before."""
    prompts = [letters * 3 for letters in ("abc", "bcd", "cde", "def", "efg", "fgh", "ghi", "hij", "ijk")]

    async def client(llm: AsyncLLM, prompt: str) -> str:
        outputs = [output async for output in llm.generate(prompt, SHORT)]
        texts = [output.outputs[0].text for output in outputs]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        return texts[-1]

    async def main() -> list[str]:
        async with AsyncLLM(of) as llm:
            return await asyncio.gather(*(client(llm, prompt) for prompt in prompts))

    of = engine()
    assert run(main()) == [text_of(prompt, 8) for prompt in prompts]
    assert_at_rest(of)


@pytest.mark.parametrize("how", ["break", "close", "cancel", "time-out"])
def test_a_client_that_leaves_is_forgotten(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a request that goes on for nobody, or that takes others along."""

    async def client(llm: AsyncLLM, begun: asyncio.Event) -> None:
        outputs = llm.generate("abc", LONG)
        async for _ in outputs:
            begun.set()
            if how == "break":
                break
            if how == "close":
                await outputs.aclose()

    async def main() -> None:
        async with AsyncLLM(of) as llm:
            model = OnDemand(llm, monkeypatch, free=2)
            begun = asyncio.Event()
            leaving = asyncio.create_task(client(llm, begun))
            if how == "time-out":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(leaving, 0.05)
            else:
                await begun.wait()
            if how == "cancel":
                leaving.cancel()
            await asyncio.wait([leaving])
            while llm._collectors:
                await settled(llm)  # a step each time; nobody else lets the model compute one
            model.open()
            output = await last(llm.generate("defg", SHORT))
            assert output.outputs[0].text == text_of("defg", 8)
            await settled(llm)
            assert_at_rest(of)
            assert not llm._collectors and not llm._latest

    of = engine()
    run(main())
    assert of.metrics.totals.num_generation_tokens < 100


def test_a_client_that_leaves_before_it_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a request that is taken in for a task that was cancelled while it waited for the answer."""

    async def main() -> None:
        async with AsyncLLM(of) as llm:
            first = asyncio.create_task(last(llm.generate("abc", SHORT)))
            await asyncio.to_thread(gate.arrived.acquire)  # now the engine is in a step, and hears nobody
            second = asyncio.create_task(last(llm.generate("bcd", LONG)))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            gate.open()
            assert (await first).outputs[0].text == text_of("abc", 8)
            await settled(llm)
            assert_at_rest(of)
            assert of.metrics.totals.num_requests == 1

    of = engine()
    gate = Gate(of, monkeypatch)
    run(main())


def test_a_step_that_fails_fails_its_own_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an error that reaches those who waited, a client that waits for ever, or blocks that stay behind."""
    seen = []

    async def main() -> list[RequestOutput]:
        async with AsyncLLM(of) as llm:
            clients = [asyncio.create_task(last(llm.generate(prompt, SHORT))) for prompt in ("abc", "bcd", "cde")]
            await asyncio.sleep(0)  # all have asked, and the engine is at most in its first step
            for _ in range(4):  # in the second and those after it, two run
                gate.step()
            await asyncio.to_thread(wait_for_both)
            gate.step(RuntimeError("the model is out of order"))
            gate.open()
            return [*await asyncio.gather(*clients), await last(llm.generate("def", SHORT))]

    def wait_for_both() -> None:
        for _ in range(5):
            gate.arrived.acquire()

    of = engine(max_num_seqs=2)
    of.metrics.loggers.append(seen.append)
    gate = Gate(of, monkeypatch)
    first, second, third, fourth = run(main())
    for output, prompt in ((first, "abc"), (second, "bcd")):
        assert output.finished and output.outputs[0].finish_reason == "error"
        tokens = output.outputs[0].token_ids
        assert 0 < len(tokens) < 8 and text_of(prompt, 8).startswith(output.outputs[0].text)
    for output, prompt in ((third, "cde"), (fourth, "def")):
        assert output.outputs[0].finish_reason == "length" and output.outputs[0].text == text_of(prompt, 8)
    assert_at_rest(of)
    ends = [stats.finish_reason for stats in seen if hasattr(stats, "finish_reason")]
    assert sorted(ends) == ["error", "error", "length", "length"]


def test_a_first_step_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a client without any token yet, of whom nothing is known that could end."""

    async def main() -> RequestOutput:
        async with AsyncLLM(of) as llm:
            gate.step(RuntimeError("the model is out of order"))
            gate.open()
            return await last(llm.generate([0, 1, 2], SamplingParams(n=2, max_tokens=4)))

    of = engine()
    gate = Gate(of, monkeypatch)
    output = run(main())
    assert [one.finish_reason for one in output.outputs] == ["error", "error"]
    assert output.prompt_token_ids == [0, 1, 2] and output.finished
    assert_at_rest(of)


def test_an_engine_that_breaks_tells_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches clients that wait for ever for an engine that is no more, now or later."""

    def broken() -> list[RequestOutput]:
        raise ZeroDivisionError("a mistake in the engine itself")

    async def main() -> None:
        llm = AsyncLLM(of)
        results = await asyncio.gather(
            *(last(llm.generate(prompt, SHORT)) for prompt in ("abc", "bcd")), return_exceptions=True
        )
        assert all(isinstance(result, EngineClosedError) for result in results)
        assert any(isinstance(result.__cause__, ZeroDivisionError) for result in results)
        assert llm.is_closed
        with pytest.raises(EngineClosedError, match="broke"):
            await last(llm.generate("cde", SHORT))
        await llm.shutdown()

    of = engine()
    monkeypatch.setattr(of, "step", broken)
    run(main())


def test_who_asks_while_an_engine_breaks_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a client that waits for ever, since nobody reads any more what it asked for."""
    asked = threading.Event()

    def broken() -> list[RequestOutput]:
        assert asked.wait(60)
        raise ZeroDivisionError("a mistake in the engine itself")

    async def main() -> list[object]:
        llm = AsyncLLM(of)
        await llm.add_request(OutputCollector(), "Ada", "abc", SHORT)
        late = asyncio.create_task(last(llm.generate("bcd", SHORT)))
        await asyncio.sleep(0)  # it has asked, and the engine is in its step
        asked.set()
        results = await asyncio.gather(late, return_exceptions=True)
        await llm.shutdown()
        return results

    of = engine()
    monkeypatch.setattr(of, "step", broken)
    [result] = run(main())
    assert isinstance(result, EngineClosedError)


def test_what_the_engine_refuses_its_client_hears() -> None:
    """Catches a refusal that ends the thread, is swallowed, or leaves the name taken."""

    async def main() -> None:
        async with AsyncLLM(of) as llm:
            for prompt, params in (([], SHORT), ("abc", SamplingParams(max_tokens=10**6)), ("abc" * 900, SHORT)):
                with pytest.raises(ValueError):
                    await last(llm.generate(prompt, params, "Ada"))
            output = await last(llm.generate("abc", SHORT, "Ada"))
            assert output.request_id == "Ada" and output.outputs[0].text == text_of("abc", 8)

    of = engine()
    run(main())
    assert_at_rest(of)


def test_a_name_is_taken_until_its_request_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second request of one name that takes the first one's place, or ends it when it is refused."""

    async def main() -> None:
        async with AsyncLLM(of) as llm:
            model = OnDemand(llm, monkeypatch, free=1)
            first = llm.generate("abc", SamplingParams(temperature=0.0, max_tokens=60), "Ada")
            await anext(first)
            with pytest.raises(ValueError, match="Ada"):
                await last(llm.generate("bcd", SHORT, "Ada"))
            model.open()
            tokens = [len(output.outputs[0].token_ids) async for output in first]
            assert tokens[-1] == 60
            assert (await last(llm.generate("bcd", SHORT, "Ada"))).outputs[0].text == text_of("bcd", 8)

    of = engine()
    run(main())


def test_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a queue without an end, one that is full while somebody could still run, and one that stays full."""

    async def main() -> None:
        async with AsyncLLM(of, max_num_waiting=1) as llm:
            with pytest.raises(QueueFullError, match="at most 1 may"):
                await last(llm.generate("abc", SamplingParams(n=4, max_tokens=1)))
            assert len((await last(llm.generate("abc", SamplingParams(n=3, max_tokens=1)))).outputs) == 3
            model = OnDemand(llm, monkeypatch)
            held = OutputCollector()
            for name in ("Ada", "Bo", "Cleo"):  # two run, one waits
                await llm.add_request(held, name, "abc", LONG)
            with pytest.raises(QueueFullError, match="1 requests wait for one of 2"):
                await last(llm.generate("abc", SHORT))
            llm.abort(held)
            model.open()
            assert (await last(llm.generate("abc", SHORT))).outputs[0].text == text_of("abc", 8)

    of = engine(max_num_seqs=2)
    run(main())
    assert_at_rest(of)


@pytest.mark.parametrize("drain", [True, False])
def test_shutdown(drain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a shutdown that cuts off what runs though it should not, or waits though it should not."""

    async def main() -> tuple[RequestOutput, RequestOutput]:
        llm = AsyncLLM(of)
        model = OnDemand(llm, monkeypatch)
        if drain:
            model.open()
        params = SamplingParams(temperature=0.0, max_tokens=40) if drain else LONG
        clients = [asyncio.create_task(last(llm.generate(prompt, params))) for prompt in ("abc", "bcd")]
        await settled(llm)
        await llm.shutdown(drain)
        assert llm.is_closed and not llm._thread.is_alive()
        with pytest.raises(EngineClosedError, match="shut down"):
            await last(llm.generate("cde", SHORT))
        return await asyncio.gather(*clients)

    of = engine(num_blocks=1000)
    for output, prompt in zip(run(main()), ("abc", "bcd"), strict=True):
        assert output.finished
        if drain:
            assert output.outputs[0].text == text_of(prompt, 40)
        else:
            assert output.outputs[0].finish_reason == "abort" and len(output.outputs[0].token_ids) < 1000
    assert_at_rest(of)


def test_a_loop_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an engine that breaks, or goes on for nobody, when a client's event loop was closed without a word."""
    of = engine()
    gate = Gate(of, monkeypatch)
    llm = AsyncLLM(of)

    async def vanish() -> None:
        await llm.add_request(OutputCollector(), "Ada", "abc", LONG)

    run(vanish())
    gate.open()

    async def other() -> RequestOutput:
        output = await last(llm.generate("bcd", SHORT))
        await settled(llm)
        assert_at_rest(of)
        await llm.shutdown()
        return output

    assert run(other()).outputs[0].text == text_of("bcd", 8)
