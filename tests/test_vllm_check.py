"""``vllm-check``: against what a real vLLM answered, against this book's own server, and against servers that fail."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from pagedattn_lab.bench.serving import Load
from pagedattn_lab.cli import main
from pagedattn_lab.cli import vllm_check as command
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.vllm_check.client import Client, Snapshot, read_metrics
from pagedattn_lab.vllm_check.predict import predict_replay
from pagedattn_lab.vllm_check.report import REPLAY, Check
from pagedattn_lab.vllm_check.server import Server, read_server, scheduler_limits
from pagedattn_lab.vllm_check.workload import make_workload
from tests.helpers.cli import assert_one_line, report_of
from tests.helpers.server import Served, engine, served, tiny
from tests.helpers.vllm_check import RECORDINGS, URL, Answer, Recorded, in_place_of_the_network
from tests.record_vllm_check import BOOK, reports


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Put answers in the place of the network, for the command."""
    return partial(in_place_of_the_network, monkeypatch)


# ------------------------------------------------------------------------------------------------------ a real vLLM


@pytest.mark.parametrize("name", RECORDINGS)
def test_what_vllm_did_was_predicted(
    name: str, reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a capacity other than vLLM's own, hits that are off by a hundredth, preemptions off by a fifth."""
    recorded = Recorded(name)
    reach(recorded)
    report, _ = report_of(capsys, "vllm-check", "--url", URL, *recorded.options)
    predicted, observed = report["predicted"], report["observed"]
    assert report["version"] == "0.32.0" and report["block_size"] == 32
    for exact in ("num_blocks", "kv_tokens", "max_concurrency", "prompt_tokens", "generation_tokens"):
        assert predicted[exact] == observed[exact] > 0, exact
    assert predicted["prefix_cache_queries"] == observed["prefix_cache_queries"]
    assert observed["prefix_cache_hits"] == pytest.approx(predicted["prefix_cache_hits"], rel=0.01)
    assert observed["num_preemptions"] == pytest.approx(predicted["num_preemptions"], rel=0.2)
    assert len(recorded.bodies) == report["workload"]["num_requests"]


def test_the_recordings_say_something() -> None:
    """Catches recordings in which nothing is found or nobody preempted, which any prediction would fit."""
    for name, least in (("chat", 10), ("system prompts", 5)):
        answers = RECORDINGS[name]["answers"]["/metrics"]
        before, after = (read_metrics(answer["text"], "here") for answer in answers)
        spent = after.since(before)
        assert spent["num_preemptions"] >= least and spent["prefix_cache_hits"] > 0.15 * spent["prompt_tokens"]


def test_the_books_table_is_current() -> None:
    """Catches a table in the book that shows other figures than the command does: python -m tests.record_vllm_check."""
    assert json.loads(BOOK.read_text()) == reports()


@pytest.mark.parametrize(("clients", "hits", "preemptions"), [(1, 10_976, 0), (8, 10_944, 2), (32, 10_656, 4)])
def test_how_requests_come_is_predicted_too(clients: int, hits: int, preemptions: int) -> None:
    """Catches a prediction for clients that are back at once: these are figures of vLLM 0.32.0 with 97 blocks of 32,
    which that prediction misses by a hundredth of the hits, or by a preemption.
    """
    server = Server(
        URL, "0.32.0", "smollm2", None, 1024, 32, 97, True, None, None, None, None, "auto", None, None, None, {}
    )
    load = make_workload("chat", 32, longest=1024, most_output=48).load
    figures = predict_replay(server, scheduler_limits(server, 32, 512), load, clients)
    assert (figures["prefix_cache_hits"], figures["num_preemptions"]) == (hits, preemptions)


def test_what_is_sent(reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a sampled request, an answer that may end early, prompts that find what an earlier check left behind,
    and requests out of order.
    """
    recorded = Recorded()
    salts = set()
    for _ in range(2):
        recorded.bodies.clear()
        reach(recorded)
        report_of(capsys, "vllm-check", "--url", URL, *recorded.options)
        assert {(body["temperature"], body["ignore_eos"], body["model"]) for body in recorded.bodies} == {
            (0, True, "smollm2")
        }
        salts |= {body["cache_salt"] for body in recorded.bodies}
        load = make_workload("chat", 100, longest=1024, most_output=128).load
        assert [tuple(body["prompt"]) for body in recorded.bodies] == list(load.prompts)
        assert [body["max_tokens"] for body in recorded.bodies] == list(load.output_lens)
    assert len(salts) == 2, "one for each replay"


def test_nothing_is_sent(reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a server that is loaded by whoever asks only what it has room for."""
    recorded = Recorded()
    reach(recorded)
    report, _ = report_of(capsys, "vllm-check", "--url", URL + "/v1/", "--requests", "0")
    assert not recorded.bodies and report["workload"] == {} and report["reasons"] == []
    assert set(report["observed"]) == {"num_blocks", "kv_tokens", "max_concurrency"}


def test_a_model_that_is_elsewhere(reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a check that fails since the model's configuration is not here, or that does not say how to give it."""
    cards = {"data": [{"id": "smollm2", "root": "/models/elsewhere/smollm2", "max_model_len": 1024}]}
    recorded = Recorded(instead=status("/v1/models", 200, json=cards))
    reach(recorded)
    report, _ = report_of(capsys, "vllm-check", "--url", URL, "--requests", "0")
    assert report["predicted"] == {} and report["observed"]["num_blocks"] == 129
    assert "/models/elsewhere/smollm2" in report["reasons"][0] and "--config names the model" in report["reasons"][0]
    options = "--requests", "0", "--config", "HuggingFaceTB/SmolLM2-135M-Instruct"
    report, _ = report_of(capsys, "vllm-check", "--url", URL, *options)
    assert report["predicted"]["kv_tokens"] == 4128 and report["reasons"] == []


def test_what_people_read(reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a column that is not the one above it, and a limit that seems known and was assumed."""
    recorded = Recorded()
    reach(recorded)
    assert main(["vllm-check", "--url", URL, "--max-num-seqs", "64", "--requests", "100", "--clients", "16"]) == 0
    printed = capsys.readouterr().out
    assert "max_num_seqs 64 (given); max_num_batched_tokens 2,048" in printed
    assert "Nobody said what max_num_batched_tokens 2,048 really is" in " ".join(printed.split())
    assert re.search(r"^blocks +129 +129 +0$", printed, flags=re.MULTILINE)
    assert re.search(r"^requests of full length +4\.03 +4\.03 +0$", printed, flags=re.MULTILINE)
    assert max(map(len, printed.splitlines())) <= 80


def test_limits_that_a_server_tells() -> None:
    """Catches an option that does not go before what the server says, and a default that does."""
    recorded = Recorded("chat with room")
    with recorded.client() as client:
        server = read_server(client, client.metrics())
    told, given = scheduler_limits(server), scheduler_limits(server, max_num_seqs=7)
    assert (told.max_num_seqs, told.max_num_batched_tokens, told.async_scheduling) == (32, 512, False)
    assert set(told.sources.values()) == {"told by the server"}
    assert given.max_num_seqs == 7 and given.sources["max_num_seqs"] == "given"
    assert (server.dtype, server.device, server.tensor_parallel_size) == ("bfloat16", "cpu", 1)


# --------------------------------------------------------------------------------------------------- this book's own


def write_log(path: Path, rows: list[tuple[int, int, list[int]]]) -> str:
    """Write prompts' and outputs' lengths and the ids of blocks in Mooncake's format."""
    lines = [
        {"timestamp": 0, "input_length": prompt_len, "output_length": output_len, "hash_ids": hash_ids}
        for prompt_len, output_len, hash_ids in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def in_step(server: Served, num_clients: int, num_requests: int) -> None:
    """Let the engine compute a step only when every client's next request is there, however fast the clients are."""
    llm, step, left = server.llm, server.engine.step, num_requests

    def step_when_all_are_there() -> list[RequestOutput]:
        nonlocal left
        while len(llm._collectors) < min(num_clients, left):
            llm._commands.get(timeout=60)()
        outputs = step()
        left -= sum(output.finished for output in outputs)
        return outputs

    server.engine.step = step_when_all_are_there


def test_our_own_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a server of ours that counts otherwise than its scheduler does alone, or lacks what vLLM's has."""
    tiny()[0].config.save_pretrained(tmp_path)
    options = "--vocab-size 12 --max-num-seqs 8 --max-num-batched-tokens 128 --clients 6"
    log = write_log(tmp_path / "log", [(40 + 7 * number % 60, 60, [number % 3]) for number in range(20)])
    with served(engine(num_blocks=25, block_size=16, max_num_seqs=8, max_num_batched_tokens=128)) as server:
        in_step(server, 6, 20)
        more = "--config", str(tmp_path), "--workload", log, *options.split()
        report, _ = report_of(capsys, "vllm-check", "--url", server.url, *more)
    predicted, observed = report["predicted"], report["observed"]
    assert predicted.pop("num_blocks") is None and observed.pop("num_blocks") == 25
    assert (observed["kv_tokens"], observed["max_concurrency"]) == (385, 1.0)  # 24 blocks, and the last needs no slot
    assert any("--available" in reason for reason in report["reasons"])
    exact = ("kv_tokens", "max_concurrency", "prompt_tokens", "generation_tokens", "prefix_cache_queries")
    assert {name: predicted[name] for name in exact} == {name: observed[name] for name in exact}
    assert observed["num_preemptions"] > 2
    assert observed["prefix_cache_hits"] == pytest.approx(predicted["prefix_cache_hits"], rel=0.05)
    assert observed["num_preemptions"] == pytest.approx(predicted["num_preemptions"], rel=0.5)


# ------------------------------------------------------------------------------------------------------------ the wire


CLIENTS = 4


@pytest.fixture
def slow_server() -> Iterator[tuple[str, list[int], list[int]]]:
    """A server that answers the oldest request only when as many have come as clients can have under way, and at first
    gives one more the time to come: its address, prompts' first tokens as they came, how many were there at once.
    """
    came: list[int] = []
    at_once: list[int] = []
    inside: set[int] = set()
    changed = threading.Condition()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            number = body["prompt"][0]
            with changed:
                inside.add(number)
                came.append(number)
                at_once.append(len(inside))
                changed.notify_all()
                assert changed.wait_for(lambda: number == min(inside) and len(inside) >= min(CLIENTS, 12 - number), 60)
            time.sleep(0.3 if number == 0 else 0)
            with changed:
                inside.remove(number)
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
            content = json.dumps({"usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            with changed:
                changed.notify_all()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", came, at_once
        server.shutdown()


def test_requests_are_sent_as_many_at_once_as_there_are_clients(slow_server: tuple[str, list[int], list[int]]) -> None:
    """Catches clients that wait for one another's answers, or more of them than were asked for."""
    url, came, at_once = slow_server
    with Client(url) as client:
        client.replay("toy", Load(tuple((number, 0) for number in range(12)), (3,) * 12), clients=CLIENTS, salt="x")
    # Each is written before the next one is; which of the first few the server then reads first is its own affair.
    assert sorted(came[:CLIENTS]) == list(range(CLIENTS)) and came[CLIENTS:] == list(range(CLIENTS, 12))
    assert max(at_once) == CLIENTS


# -------------------------------------------------------------------------------------------------------------- faults


def without(pattern: str) -> Answer:
    """Leave lines out of the metrics."""

    def answer(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/metrics":
            return None
        lines = RECORDINGS["chat"]["answers"]["/metrics"][0]["text"].splitlines(keepends=True)
        return httpx.Response(200, text="".join(line for line in lines if not re.search(pattern, line)))

    return answer


def status(path: str, code: int, **content: Any) -> Answer:
    return lambda request: httpx.Response(code, **content) if request.url.path == path else None


def changed(old: str, new: str, after: bool = False) -> Answer:
    """Change the metrics before the first completion, or after it."""
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response | None:
        sent.append(request.url.path)
        if request.url.path != "/metrics" or ("/v1/completions" in sent) != after:
            return None
        text = RECORDINGS["chat"]["answers"]["/metrics"][-1 if after else 0]["text"]
        assert re.search(old, text, flags=re.MULTILINE)
        return httpx.Response(200, text=re.sub(old, new, text, flags=re.MULTILINE))

    return answer


def refuses_the_third(request: httpx.Request) -> httpx.Response | None:
    if request.url.path == "/v1/completions" and json.loads(request.content)["prompt"] == list(THIRD):
        return httpx.Response(400, json={"error": {"message": "Token id 29999 is out of vocabulary"}})
    return None


THIRD = make_workload("chat", 3, longest=1024, most_output=128).load.prompts[2]


def down(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused", request=request)


def too_slow(request: httpx.Request) -> httpx.Response | None:
    if request.url.path == "/v1/completions":
        raise httpx.ReadTimeout("timed out", request=request)
    return None


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (down, f"nothing answers at {URL}/metrics ([Errno 111] Connection refused): is the server running there?"),
        (status("/metrics", 404), f"{URL}/metrics answers 404 Not Found: --url must be a vLLM server's address"),
        (status("/metrics", 401, json={"error": "who are you"}), "wants another key (401 Unauthorized): give it with"),
        (status("/metrics", 200, text="<html>hello</html>"), "/metrics is not in Prometheus' format"),
        (status("/metrics", 200, text=""), "/metrics has no vllm:prefix_cache_queries_total: this is no current vLLM"),
        (without("num_preemptions"), "/metrics has no vllm:num_preemptions_total"),
        (without("cache_config_info"), "/metrics has no vllm:cache_config_info"),
        (changed(',num_gpu_blocks="129"', ""), "does not say num_gpu_blocks: update the server"),
        (changed('num_gpu_blocks="129"', 'num_gpu_blocks="many"'), "num_gpu_blocks of vllm:cache_config_info is"),
        (changed(r"^(vllm:cache_config_info.*)engine=.0.(.*)$", r'\1engine="0"\2\n\1engine="1"\2'), "of 2 engines"),
        (changed(r"^(vllm:num_requests_running\{.*\}) 0.0$", r"\1 2.0"), "2 unfinished requests of somebody else"),
        (status("/v1/models", 404), f"{URL}/v1/models answers 404 Not Found"),
        (status("/v1/models", 200, text="hello"), "/v1/models answers no JSON object: is this an OpenAI server?"),
        (status("/v1/models", 200, json={"data": []}), "/v1/models lists no model"),
        (status("/v1/models", 200, json={"data": [{"id": "x"}]}), "does not say max_model_len of 'x'"),
        (status("/v1/models", 200, json={"data": 5}), "/v1/models lists no model"),
        (status("/v1/models", 200, json={"data": [{"id": 5, "max_model_len": 9}]}), "/v1/models lists no model"),
        (status("/v1/models", 200, json={"data": [{"id": "x", "max_model_len": "4096"}]}), "'4096', not a whole"),
        (status("/v1/models", 200, json={"data": [{"id": "x", "max_model_len": -3}]}), "of 'x' is -3, not a whole"),
        (status("/v1/models", 200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip")),
         "/v1/models answers what cannot be decompressed"),
        (changed(r"^(vllm:prefix_cache_queries_total\{.*\}) .*$", r"\1 NaN"),
         "vllm:prefix_cache_queries_total at http://127.0.0.1:8000/metrics is nan, not a count: restart the server"),
        (changed(r"^(vllm:generation_tokens_total\{.*\}) .*$", r"\1 +Inf"), "generation_tokens_total at http"),
        (changed(r"^(vllm:num_requests_waiting\{.*\}) .*$", r"\1 -1"), "/metrics is -1, not a count"),
        (changed(r"^(vllm:num_preemptions_total\{.*\}) .*$", r"\1 NaN", after=True), "is nan, not a count"),
        *((changed('max_concurrency="[^"]*"', f'max_concurrency="{value}"'), f"is '{value}', not a number from 0")
          for value in ("lots", "nan", "inf", "-1")),
        (changed('num_gpu_blocks="129"', f'num_gpu_blocks="{"9" * 5000}"'), "999', not a whole number from 2: is"),
        *((changed('num_gpu_blocks="129"', f'num_gpu_blocks="{value}"'),
           f"num_gpu_blocks of vllm:cache_config_info is '{value}', not a whole number from 2")
          for value in ("0", "-5", "1")),
        *((changed('block_size="32"', f'block_size="{value}"'), f"is '{value}', not a whole number from 1")
          for value in ("0", "-16")),
        (changed('kv_cache_size_tokens="4128"', 'kv_cache_size_tokens="-1"'), "is '-1', not a whole number from 0"),
        (refuses_the_third, "request 3 of 100, "),
        (refuses_the_third, "refused (400 Bad Request: Token id 29999 is out of vocabulary): the rest was not sent"),
        (too_slow, "/v1/completions did not answer in time: raise --timeout"),
        (status("/v1/completions", 200, json={"usage": None}), "came back as None + None tokens, not"),
        (status("/v1/completions", 200, json={"usage": [1]}), "came back as None + None tokens, not"),
        (changed(r"^(vllm:prompt_tokens_total\{.*\}) .*$", r"\1 9e9"), "during the replay, so it was restarted"),
        (changed(r"^(vllm:prompt_tokens_created\{.*\}) .*$", r"\1 5.0", after=True), "counters began anew during the"),
    ],
)  # fmt: skip
def test_a_server_that_fails(
    instead: Answer, message: str, reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a traceback, a table of nonsense, or a sentence that does not say what to do."""
    recorded = Recorded(instead=instead)
    reach(recorded)
    assert_one_line(capsys, ["vllm-check", "--url", URL, *recorded.options], 1, message)


def test_no_server_commands_the_terminal(reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a colour, a bell or a turned line that a server's words bring to the screen, in a table or an error."""
    evil = "m\x1b[31m\x07\u202e"
    card = {"id": evil, "root": f"/models/{evil}", "max_model_len": 1024}

    def answer(request: httpx.Request) -> httpx.Response | None:
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": f"0.1+{evil}"})
        if request.url.path == "/v1/completions":
            return httpx.Response(400, json={"error": {"message": evil}})
        return httpx.Response(200, json={"data": [card]}) if request.url.path == "/v1/models" else None

    reach(Recorded(instead=answer))
    assert main(["vllm-check", "--url", URL, "--requests", "0", "--config", "HuggingFaceTB/SmolLM2-135M-Instruct"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(r"m\x1b[31m\x07\u202e") == 3  # version, name, and the version in a reason
    assert printed.replace("\n", "").isprintable()
    assert_one_line(capsys, ["vllm-check", "--url", URL, "--model", "x"], 1, r"it has m\x1b[31m\x07\u202e")
    reach(Recorded(instead=answer))
    assert_one_line(capsys, ["vllm-check", "--url", URL], 1, r"Bad Request: m\x1b[31m\x07\u202e)")
    report, _ = report_of(capsys, "vllm-check", "--url", URL, "--requests", "0")
    assert report["model"] == evil, "JSON has the name as requests must give it"


@pytest.mark.parametrize(
    ("path", "content", "notes"),
    [
        ("/server_info", {"text": "VllmConfig(model='x')"}, ["What /server_info answers is \"VllmConfig(model='x')\""]),
        ("/server_info", {"text": "[" * 100_000}, ["What /server_info answers is '[[["]),
        ("/server_info", {"json": [1]}, ["What /server_info answers is [1]: "]),
        ("/server_info", {"json": {"vllm_config": "text form"}}, ["vllm_config of /server_info is 'text form': "]),
        (
            "/server_info",
            {"json": {"vllm_config": {"scheduler_config": [1], "model_config": 5, "device_config": "cuda"}}},
            [f"{name}_config of /server_info is " for name in ("model", "device", "scheduler")],
        ),
        (
            "/server_info",
            {"json": {"vllm_config": {"scheduler_config": {
                "max_num_seqs": "x", "max_num_batched_tokens": 0, "policy": 1, "watermark": 2, "async_scheduling": "no",
                "long_prefill_token_threshold": -1,
            }}}},
            ["max_num_seqs of /server_info is 'x': ", "max_num_batched_tokens of /server_info is 0: ", "policy of ",
             "watermark of /server_info is 2: ", "long_prefill_token_threshold of ", "async_scheduling of "],
        ),
        (
            "/server_info",
            {"json": {"vllm_config": {
                "parallel_config": {"tensor_parallel_size": True}, "device_config": {"device": {"type": "cuda"}},
                "model_config": {"dtype": 16},
            }}},
            ["dtype of /server_info is 16: ", "device of /server_info is {", "tensor_parallel_size of "],
        ),
        ("/version", {"json": {"version": [1]}}, ["version of /version is [1]: "]),
        ("/version", {"json": [1]}, ["What /version answers is [1]: "]),
        ("/version", {"text": "0.32.0 and more"}, ["What /version answers is '0.32.0 and more': "]),
        (
            "/v1/models",
            {"json": {"data": [{"id": "smollm2", "root": 7, "max_model_len": 1024}]}},
            ["root of /v1/models is 7: "],
        ),
    ],
)  # fmt: skip
def test_what_a_server_need_not_say_is_left_out_if_it_is_odd(
    path: str,
    content: dict[str, Any],
    notes: list[str],
    reach: Callable[[Answer], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches an error of Python's own, and a field that is dropped in silence or taken as it is."""
    recorded = Recorded(instead=status(path, 200, **content))
    reach(recorded)
    options = "--config", "HuggingFaceTB/SmolLM2-135M-Instruct"
    report, _ = report_of(capsys, "vllm-check", "--url", URL, "--requests", "0", *options)
    assert len(report["reasons"]) == len(notes)
    assert all(reason.startswith(note) for reason, note in zip(report["reasons"], notes, strict=True))
    assert all(
        reason.endswith(": this check cannot read that, and goes on without it.") for reason in report["reasons"]
    )
    assert report["predicted"]["num_blocks"] == report["observed"]["num_blocks"] == 129
    assert set(report["limit_sources"].values()) == {"default"}


def test_the_rest_is_not_sent(reach: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a hundred requests that follow one that was refused."""
    recorded = Recorded(instead=refuses_the_third)
    reach(recorded)
    assert_one_line(capsys, ["vllm-check", "--url", URL, "--clients", "20", "--requests", "100"], 1, "request 3 of 100")
    assert len(recorded.bodies) <= 22


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "127.0.0.1:8000"], "'127.0.0.1:8000' is not a server's address, such as http://127.0.0.1:8000"),
        (["--url", "http://"], "'http://' is not a server's address"),
        (["--url", "http://[::1:8000"], "is not a server's address"),
        (["--url", URL, "--workload", "chit"], "'chit' is neither a file nor one of chat, system-prompts"),
        (["--url", URL, "--clients", "0"], "'0' is not a whole number from 1 to 1000"),
        (["--requests", "3"], "required: --url"),
    ],
)
def test_wrong_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an option that is found wrong only when a server has been asked."""
    assert_one_line(capsys, ["vllm-check", *options], 2, message)


@pytest.mark.parametrize("name", command.NEEDED)
def test_without_the_extra(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, or a sentence that does not say what is missing."""
    found = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda module: None if module == name else found(module))
    assert_one_line(capsys, ["vllm-check", "--url", URL], 1, f"asking a server needs the package {name}, of the extra")


# ----------------------------------------------------------------------------------------------------------- workloads


def test_a_log_in_mooncakes_format(tmp_path: Path) -> None:
    """Catches equal ids that become other tokens, a block that is not 512 of them, and a prompt that grows too long."""
    rows = [(600, 9, [1, 2]), (1100, 9, [1, 2, 3]), (600, 9, [4, 2]), (5000, 9, list(range(10)))]
    path = write_log(tmp_path / "log", rows)
    first, second, third, long = make_workload(path, 9, longest=1200, most_output=99).load.prompts
    assert (len(first), len(second), len(third), len(long)) == (600, 1100, 600, 1191)
    assert first == second[:600] and first[512:] == third[512:] and first[511] != third[511]
    assert make_workload(path, 9, longest=1200, most_output=99).num_cut == 1
    assert make_workload(path, 2, longest=1200, most_output=5).load.output_lens == (5, 5)


def test_a_server_with_no_room() -> None:
    """Catches a prompt without a token."""
    with pytest.raises(ValueError, match="a request may have 1 tokens"):
        make_workload("chat", 1, longest=1, most_output=1)
    load = make_workload("chat", 3, longest=2, most_output=99).load
    assert [len(prompt) for prompt in load.prompts] == [1, 1, 1] and load.output_lens == (1, 1, 1)


# ------------------------------------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("queries", "prompt_tokens", "words"),
    [
        (100, 100, []),
        (100, 130, ["+30 tokens of prompts beside those sent", "Requests come when they come"]),
        (150, 100, ["pull request 48860", "Requests come when they come"]),
        (90, 100, ["Requests come when they come"]),
    ],
)
def test_why_figures_differ(queries: int, prompt_tokens: int, words: list[str]) -> None:
    """Catches excuses for figures that agree, and somebody else's tokens blamed on a release."""
    with Recorded("chat with room").client() as client:
        server = read_server(client, client.metrics())
    predicted: dict[str, float | None] = dict.fromkeys(REPLAY, 100)
    observed = predicted | {"prompt_tokens": prompt_tokens, "prefix_cache_queries": queries}
    reasons = list(Check(server, scheduler_limits(server), {"name": "chat"}, predicted, observed).reasons())
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_counters_that_do_not_say_since_when() -> None:
    """Catches a server that seems restarted, since what is no number equals nothing."""
    text = RECORDINGS["chat"]["answers"]["/metrics"][0]["text"]
    text = re.sub(r"^(vllm:prompt_tokens_created\{.*\}) .*$", r"\1 NaN", text, flags=re.MULTILINE)
    before, after = read_metrics(text, "here"), read_metrics(text, "here")
    assert "prompt_tokens" not in before.created and before.created
    assert set(after.since(before).values()) == {0}


def test_counters_that_lag() -> None:
    """Catches a server whose counters are read before they have caught up, and a wait without end."""
    recorded = Recorded()
    before, after = (answer["text"] for answer in recorded.answers["/metrics"])
    texts = [before, before, after]
    recorded.instead = status_from(texts)
    load = make_workload("chat", 100, longest=1024, most_output=128).load
    with recorded.client() as client:
        start: Snapshot = client.metrics()
        assert client.settle(start, load).since(start)["generation_tokens"] == load.num_output_tokens
        assert not texts
        recorded.instead = lambda request: httpx.Response(200, text=before)
        assert client.settle(start, load, seconds=0.2).since(start)["generation_tokens"] == 0


def status_from(texts: list[str]) -> Answer:
    return lambda request: httpx.Response(200, text=texts.pop(0))
