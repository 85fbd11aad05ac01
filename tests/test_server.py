"""The server, by the official client: the engine's own tokens in OpenAI's shapes, and a reason for every refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from pagedattn_lab.engine.async_llm import AsyncLLM
from pagedattn_lab.engine.sampling_params import SamplingParams
from tests.helpers.server import (
    MODEL,
    MODEL_LEN,
    Gate,
    OnDemand,
    Served,
    alone,
    assert_at_rest,
    engine,
    run,
    served,
    text_of,
)

GREEDY = {"model": MODEL, "temperature": 0.0}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(engine(num_blocks=1000)) as one:
        yield one


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return server.client()


# ------------------------------------------------------------------------------------------------------ completions


def test_completion(client: openai.OpenAI) -> None:
    """Catches other tokens than the engine's own, and counts that do not add up."""
    answer = client.completions.create(**GREEDY, prompt="abc", max_tokens=8)
    assert answer.object == "text_completion" and answer.model == MODEL and answer.id.startswith("cmpl-")
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, text_of("abc", 8), "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 8, 11)


def test_streamed_completion(client: openai.OpenAI) -> None:
    """Catches a stream that repeats or loses text, ends twice, or gives no account when asked for one."""
    create = client.completions.create
    chunks = list(create(**GREEDY, prompt="abc", max_tokens=9, stream=True, stream_options={"include_usage": True}))
    *parts, account = chunks
    assert "".join(part.choices[0].text for part in parts) == text_of("abc", 9)
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert account.choices == [] and account.usage.total_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in create(**GREEDY, prompt="abc", max_tokens=2, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_outputs(client: openai.OpenAI, stream: bool) -> None:
    """Catches choices under another number than their prompt's, and texts that are mixed up."""
    prompts = ["abc", "defg"]
    params = {"n": 3, "seed": 5, "max_tokens": 12, "temperature": 1.0, "stop": ["a", "d", "h"]}  # some end early
    answer = client.completions.create(model=MODEL, prompt=prompts, stream=stream, **params)
    texts, reasons = dict.fromkeys(range(6), ""), {index: [] for index in range(6)}
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    expected = [output.text for prompt in prompts for output in alone(prompt, **params).outputs]
    assert list(texts.values()) == expected and len(set(map(len, expected))) > 2
    assert all(len(of_one) == 1 for of_one in reasons.values()), "each ends once"


def test_token_ids_echo_and_stop(client: openai.OpenAI) -> None:
    """Catches token ids taken for something else, an echo of one output only, and a stop string in the text."""
    create = client.completions.create
    assert create(**GREEDY, prompt=[0, 1, 2], max_tokens=8).choices[0].text == text_of("abc", 8)
    echoed = create(**GREEDY, prompt=[[0, 1, 2], [3, 4, 5, 6]], max_tokens=4, echo=True)
    assert [choice.text for choice in echoed.choices] == ["abc" + text_of("abc", 4), "defg" + text_of("defg", 4)]
    streamed = create(**GREEDY, prompt="abc", max_tokens=4, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abc" + text_of("abc", 4)
    text = text_of("abc", 30)
    stop = text[5:7]
    stopped = create(**GREEDY, prompt="abc", max_tokens=30, stop=[stop]).choices[0]
    assert stopped.text == text[: text.index(stop)] and stopped.finish_reason == "stop"
    assert stopped.stop_reason == stop


def test_vllms_own_parameters(client: openai.OpenAI) -> None:
    """Catches a parameter that is accepted and not handed on."""
    plain = {"prompt": "abcabcabc", "max_tokens": 12}
    token = alone("abcabcabc", temperature=0.0).outputs[0].token_ids[1]  # what would be the second one
    for extra in (
        {"top_k": 1, "temperature": 1.5},
        {"min_p": 0.9, "temperature": 1.5, "seed": 3},
        {"repetition_penalty": 1.8, "temperature": 0.0},
        {"presence_penalty": 1.9, "temperature": 0.0},
        {"frequency_penalty": 1.9, "temperature": 0.0},
        {"top_p": 0.3, "temperature": 1.5, "seed": 3},
        {"stop_token_ids": [0, 1, 2, 3, 4, 5], "temperature": 0.0, "include_stop_str_in_output": True},
        {"stop_token_ids": [token], "min_tokens": 5, "temperature": 0.0},
    ):
        answer = client.completions.create(model=MODEL, **plain, extra_body=extra)
        [expected] = alone(plain["prompt"], max_tokens=12, **extra).outputs
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected.text, expected.finish_reason), (
            extra
        )
        assert answer.usage.completion_tokens == len(expected.token_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    """Catches log-probabilities of other tokens, or a list that loses one on its way."""
    expected = alone("abc", temperature=0.0, max_tokens=5, logprobs=2).outputs[0]
    rows = expected.logprobs
    chosen = [row[token].logprob for row, token in zip(rows, expected.token_ids, strict=True)]
    got = client.completions.create(**GREEDY, prompt="abc", max_tokens=5, logprobs=2, stream=stream)
    parts = [chunk.choices[0].logprobs for chunk in (got if stream else [got])]
    assert [each for part in parts for each in part.token_logprobs] == pytest.approx(chosen)
    assert "".join([each for part in parts for each in part.tokens]) == expected.text
    assert [each for part in parts for each in part.text_offset] == [0, 1, 2, 3, 4]
    assert all(len(top) == 2 for part in parts for top in part.top_logprobs)
    messages = [{"role": "user", "content": "abc"}]
    chat = client.chat.completions.create(
        **GREEDY, messages=messages, max_tokens=4, logprobs=True, top_logprobs=3, stream=stream
    )
    entries = [
        entry for chunk in (chat if stream else [chat]) for entry in (chunk.choices[0].logprobs or Nothing).content
    ]
    assert "".join(entry.token for entry in entries) == text_of("abck", 4)
    for entry in entries:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob
        assert bytes(entry.bytes).decode() == entry.token


class Nothing:
    content: tuple[Any, ...] = ()


# ------------------------------------------------------------------------------------------------- chat, models, health


def test_chat(client: openai.OpenAI) -> None:
    """Catches a conversation that reaches the model in another form than the chat template's."""
    messages = [
        {"role": "system", "content": "ab"},
        {"role": "user", "content": [{"type": "text", "text": "cd"}]},
        {"role": "assistant", "content": "e", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "f"},
    ]
    answer = client.chat.completions.create(**GREEDY, messages=messages, max_completion_tokens=8)
    assert answer.object == "chat.completion" and answer.usage.prompt_tokens == len("abkcdkekfk")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == text_of("abkcdkekfk", 8)
    chunks = list(client.chat.completions.create(**GREEDY, messages=messages, max_tokens=8, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[0].choices[0].delta.content
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == text_of("abkcdkekfk", 8)
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[0].object == "chat.completion.chunk"


def test_a_chat_may_go_on_to_the_end_of_the_context(client: openai.OpenAI) -> None:
    """Catches a default length of a chat's answer that is short, or more than fits."""
    answer = client.chat.completions.create(**GREEDY, messages=[{"role": "user", "content": "a" * 2000}])
    assert answer.usage.prompt_tokens == 2001 and answer.usage.total_tokens == MODEL_LEN


def test_models_and_health(client: openai.OpenAI, server: Served) -> None:
    """Catches a list that a client cannot choose from."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).max_model_len == MODEL_LEN
    with pytest.raises(openai.NotFoundError, match="no model 'huge' here: this server has 'tiny'"):
        client.models.retrieve("huge")
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200


def test_metrics_and_the_prefix_cache(client: openai.OpenAI, server: Served) -> None:
    """Catches metrics of another engine, and hits that nobody is told of."""
    prompt = "la" * 20
    assert (
        client.completions.create(**GREEDY, prompt=prompt, max_tokens=2).usage.prompt_tokens_details.cached_tokens == 0
    )
    again = client.completions.create(**GREEDY, prompt=prompt, max_tokens=2)
    assert again.usage.prompt_tokens_details.cached_tokens == 36
    salted = client.completions.create(**GREEDY, prompt=prompt, max_tokens=2, extra_body={"cache_salt": "x"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0
    server.settle()
    answer = httpx.get(f"{server.url}/metrics", trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")
    totals = server.engine.metrics.totals
    for name, value in (
        ("vllm:kv_cache_usage_perc", 0), ("vllm:num_requests_running", 0),
        ("vllm:generation_tokens_total", totals.num_generation_tokens),
        ("vllm:prefix_cache_hits_total", totals.prefix_cache_hits),
        ("vllm:time_to_first_token_seconds_count", totals.num_first_tokens),
    ):  # fmt: skip
        assert f'{name}{{engine="0",model_name="{MODEL}"}} {float(value)}\n' in answer.text


# ------------------------------------------------------------------------------------------------------------ refusals

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
OK = {"model": MODEL, "prompt": "abc"}
USER = [{"role": "user", "content": "abc"}]
REFUSED = [
    (COMPLETIONS, OK | {"prompt": "abc" * 700}, 400, "2100 tokens", None),
    (COMPLETIONS, OK | {"prompt": "abc" * 700}, 400, "blocks of 4", None),
    (COMPLETIONS, OK | {"max_tokens": 2046}, 400, "at most 2048 tokens", None),
    (COMPLETIONS, OK | {"model": "huge"}, 404, "no model 'huge' here: this server has 'tiny'", "model"),
    (COMPLETIONS, OK | {"n": "two"}, 400, "n: Input should be a valid integer, not 'two'", "n"),
    (COMPLETIONS, OK | {"n": True}, 400, "n: Input should be a valid integer, not True", "n"),
    (COMPLETIONS, OK | {"n": 0}, 400, "n is 0", None),
    (COMPLETIONS, OK | {"temperature": -1}, 400, "temperature is -1", None),
    (COMPLETIONS, OK | {"temperature": "hot"}, 400, "temperature: Input should be a valid number", "temperature"),
    (COMPLETIONS, OK | {"top_p": 0}, 400, "top_p is 0", None),
    (COMPLETIONS, OK | {"max_tokens": 0}, 400, "max_tokens is 0", None),
    (COMPLETIONS, OK | {"min_tokens": 20}, 400, "min_tokens is 20, above max_tokens=16", None),
    (COMPLETIONS, OK | {"logprobs": -1}, 400, "logprobs: ", "logprobs"),
    (COMPLETIONS, OK | {"logit_bias": {"5": 3}}, 400, "no parameter logit_bias", "logit_bias"),
    (COMPLETIONS, OK | {"echo": True, "logprobs": 1}, 400, "echo with logprobs", None),
    (COMPLETIONS, OK | {"stream_options": {"include_usage": True}}, 400, "set stream to true", None),
    (COMPLETIONS, OK | {"cache_salt": ""}, 400, "cache_salt: ", "cache_salt"),
    (COMPLETIONS, OK | {"stop": 5}, 400, "stop: Input should be a valid list, not 5", "stop"),
    (COMPLETIONS, OK | {"seed": 2**70}, 400, "seed: ", "seed"),
    (COMPLETIONS, OK | {"priority": 3}, 400, "--scheduling-policy priority", "priority"),
    (COMPLETIONS, {"model": MODEL}, 400, "prompt is missing", "prompt"),
    (COMPLETIONS, OK | {"prompt": ""}, 400, "", None),
    (COMPLETIONS, OK | {"prompt": []}, 400, "prompt: give a text", "prompt"),
    (COMPLETIONS, OK | {"prompt": ["abc", 1]}, 400, "prompt: give a text", "prompt"),
    (COMPLETIONS, OK | {"prompt": [5, 999]}, 400, "999", None),
    (COMPLETIONS, OK | {"prompt": ["abc", "abc" * 700]}, 400, "2100 tokens", None),
    (CHAT, {"messages": []}, 400, "messages: ", "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content is missing", "messages.0.content"),
    (CHAT, {"messages": [{"role": "tool", "content": "abc"}]}, 400, "does not take this conversation: no tools", None),
    (CHAT, {"messages": USER, "top_logprobs": 2}, 400, "set logprobs to true", None),
    (CHAT, {"messages": USER, "tools": []}, 400, "no parameter tools", "tools"),
    (CHAT, {"messages": USER, "max_tokens": 2045}, 400, "at most 2048 tokens", None),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "reads no others",
     "messages.0.content"),
    (COMPLETIONS, [1, 2], 400, "no JSON object", None),
    ("/v1/embeddings", {}, 404, "POST /v1/embeddings: Not Found", None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "words", "param"), REFUSED)
def test_refusals(server: Served, path: str, body: Any, status: int, words: str, param: str | None) -> None:
    """Catches bad input that is answered with a success, with 422 or 500, without a reason, or in another shape."""
    answer = httpx.post(server.url + path, json=body, trust_env=False)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert words in error["message"]
    if param is not None:
        assert error["param"] == param
    server.settle()
    assert_at_rest(server.engine)


def test_a_body_that_is_no_json(server: Served) -> None:
    """Catches a web page's form, for which no browser asks before it is sent, that is read as JSON."""
    for content_type, body in (("application/json", "{"), ("text/plain", json.dumps(OK)), (None, json.dumps(OK))):
        headers = {} if content_type is None else {"Content-Type": content_type}
        answer = httpx.post(server.url + COMPLETIONS, content=body, headers=headers, trust_env=False)
        assert answer.status_code == 400 and "JSON" in answer.json()["error"]["message"]


def test_the_official_client_raises_the_official_errors(client: openai.OpenAI) -> None:
    """Catches an error that the client cannot tell from another."""
    with pytest.raises(openai.BadRequestError, match="temperature is 3") as caught:
        client.completions.create(model=MODEL, prompt="abc", temperature=3)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="huge", prompt="abc")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


HOSTS = [
    ("localhost:{port}", 200), ("127.0.0.1:{port}", 200), ("[::1]:{port}", 200), ("LocalHost", 200),
    ("evil.example", 403), ("localhost.evil.example:{port}", 403), ("127.0.0.1.evil.example", 403), ("[::1", 403),
]  # fmt: skip


@pytest.mark.parametrize(("host", "status"), HOSTS)
def test_only_known_hosts(server: Served, host: str, status: int) -> None:
    """Catches DNS rebinding: a page of another host, whose name now leads here, that may read answers."""
    host = host.format(port=server.url.rpartition(":")[2])
    answer = httpx.get(f"{server.url}/v1/models", headers={"Host": host}, trust_env=False)
    assert answer.status_code == status
    if status == 403:
        assert "--allowed-host" in answer.json()["error"]["message"]


def test_no_other_pages(server: Served) -> None:
    """Catches headers that let a page of another origin read what the server says, or send it JSON."""
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method, path in (("OPTIONS", COMPLETIONS), ("GET", "/v1/models"), ("GET", "/metrics")):
        answer = httpx.request(method, server.url + path, headers=origin, trust_env=False)
        assert answer.status_code == (405 if method == "OPTIONS" else 200)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_hosts_and_keys_of_ones_own() -> None:
    """Catches a name that was allowed and is refused, a key that is not asked for, or asked for by those who check."""
    with served(engine(), allowed_hosts=["models.example", "127.0.0.1"], api_key="secret") as server:
        get = {"headers": {"Host": "models.example:80"}, "trust_env": False}
        assert httpx.get(f"{server.url}/health", **get).status_code == 200
        assert httpx.get(f"{server.url}/v1/models", **get).status_code == 401
        assert server.client(api_key="secret").models.list().data
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            server.client(api_key="guess").models.list()
    with served(engine(), allowed_hosts=["*"]) as server:
        assert httpx.get(f"{server.url}/health", headers={"Host": "any"}, trust_env=False).status_code == 200


# ------------------------------------------------------------------------------------------- faults, crowds, the end


def test_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a queue that grows for ever, and a refusal that does not say when to come back."""
    with served(engine(max_num_seqs=1), max_num_waiting=1) as server:
        model = OnDemand(server.llm, monkeypatch)
        client = server.client()
        streams = [client.completions.create(**GREEDY, prompt="abc", max_tokens=1000, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="at most 1 may") as caught:
            client.completions.create(**GREEDY, prompt="abc", max_tokens=1)
        assert caught.value.response.headers["retry-after"] == "1" and caught.value.code == "queue_full"
        model.open()
        for stream in streams:
            stream.close()
        patient = client.with_options(max_retries=5)  # until the server has noticed that both have gone
        assert patient.completions.create(**GREEDY, prompt="abc", max_tokens=8).choices[0].text == text_of("abc", 8)


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches half an answer that looks like a whole one, and a failure that reaches who came later."""
    of = engine()
    gate = Gate(of, monkeypatch)
    with served(of) as server:
        client = server.client()
        gate.step()
        gate.step(RuntimeError("the model is out of order"))
        gate.open()
        with pytest.raises(openai.APIError, match="the model failed in a step") as caught:
            answer = client.completions.create(**GREEDY, prompt="abc", max_tokens=8, stream=stream)
            list(answer)
        assert stream or caught.value.status_code == 500
        assert client.completions.create(**GREEDY, prompt="abc", max_tokens=8).choices[0].text == text_of("abc", 8)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an answer that is computed to its end for nobody."""

    async def main(server: Served) -> None:
        client = server.async_client()
        create = client.completions.create(**GREEDY, prompt="abc", max_tokens=2000, stream=stream)
        if stream:
            answer = await create
            await anext(aiter(answer))
            await answer.close()
        else:
            asking = asyncio.create_task(create)
            while not server.engine.core.scheduler.running:  # until it has arrived
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
        await client.close()
        while server.engine.has_unfinished_requests():
            await asyncio.sleep(0)

    of = engine(num_blocks=1000)
    with served(of) as server:
        OnDemand(server.llm, monkeypatch, free=2)
        run(main(server))
        server.settle()
        assert_at_rest(of)
    assert of.metrics.totals.num_generation_tokens < 100


def test_two_hundred_clients_of_which_a_third_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an answer that is lost, another's, or incomplete, and blocks that stay held, under preemption."""
    num_clients, num_tokens = 200, 12
    prompts = [
        f"{'abcdefghijkl'[number % 12]}{'abcdefgh'[number % 8]}{'abcde'[number % 5]}" for number in range(num_clients)
    ]
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens)
    expected = [output.outputs[0].text for output in engine().generate(prompts, params)]
    finished = []
    of = engine(num_blocks=120, max_num_seqs=64)
    of.metrics.loggers.append(finished.append)

    async def one(client: openai.AsyncOpenAI, number: int) -> str | None:
        body = GREEDY | {"prompt": prompts[number], "max_tokens": num_tokens}
        if number % 3 == 0:  # hangs up, after some tokens or at once
            stream = await client.completions.create(**body | {"max_tokens": 400}, stream=True)
            for _ in range(number % 4):
                await anext(aiter(stream))
            await stream.close()
            return None
        if number % 3 == 1:
            return (await client.completions.create(**body)).choices[0].text
        return "".join([part.choices[0].text async for part in await client.completions.create(**body, stream=True)])

    async def main(server: Served) -> list[str | None]:
        async with server.async_client() as client:
            asking = asyncio.gather(*(one(client, number) for number in range(num_clients)))
            while len(server.llm._collectors) + server.llm._commands.qsize() < num_clients:  # until all have come
                await asyncio.sleep(0.001)
            gate.open()
            return await asking

    gate = Gate(of, monkeypatch)
    with served(of) as server:
        texts = run(main(server))
        metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    for number, text in enumerate(texts):
        assert text == (None if number % 3 == 0 else expected[number]), number
    reasons = [stats.finish_reason for stats in finished if hasattr(stats, "finish_reason")]
    assert len(reasons) == num_clients and reasons.count("length") >= 133 and set(reasons) <= {"length", "abort"}
    assert reasons.count("abort") > 30
    assert "vllm:num_preemptions_total" in metrics and of.metrics.totals.num_preempted_reqs > 0
    assert_at_rest(of)


def test_priorities_are_for_engines_that_have_them() -> None:
    """Catches a priority that is taken and not heeded."""
    with served(engine(policy="priority")) as server:
        answer = server.client().completions.create(**GREEDY, prompt="abc", max_tokens=8, extra_body={"priority": -3})
        assert answer.choices[0].text == text_of("abc", 8)


def test_what_comes_during_the_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches new requests that are taken while the server waits for the last ones, which must finish."""
    of = engine(num_blocks=1000)
    gate = Gate(of, monkeypatch)
    with served(of) as server, ThreadPoolExecutor(1) as threads:
        client = server.client()
        stream = client.completions.create(**GREEDY, prompt="abc", max_tokens=8, stream=True)
        threads.submit(lambda: asyncio.run(shut_down(server.llm)))
        gate.step()
        while not server.llm.is_closed:
            pass
        with pytest.raises(openai.InternalServerError, match="shut down") as caught:
            client.completions.create(**GREEDY, prompt="abc")
        assert caught.value.status_code == 503
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 503
        gate.open()
        assert "".join(part.choices[0].text for part in stream) == text_of("abc", 8)


async def shut_down(llm: AsyncLLM) -> None:
    await llm.shutdown(drain=True)
