"""``serve``, as a process of its own: it says where it is, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from pagedattn_lab.cli import main
from pagedattn_lab.cli import serve as command
from tests.helpers.cli import assert_one_line
from tests.helpers.draws import BENCH
from tests.helpers.server import text_of, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as somebody may have saved it."""
    folder = tmp_path_factory.mktemp("tiny")
    for part in tiny():
        part.save_pretrained(folder)
    return folder


SLOWLY = """
import sys
import time
from pathlib import Path

from pagedattn_lab.cli import main
from pagedattn_lab.model_runner import ModelRunner

execute, hurry = ModelRunner.execute, Path(sys.argv.pop(1))


def slowly(*arguments, **options):
    if not hurry.exists():
        time.sleep(0.25)
    return execute(*arguments, **options)


ModelRunner.execute = slowly
sys.exit(main())
"""
"""The program, with a model that takes its time until a file is there: nobody is served while a test gets on."""


@contextmanager
def process(hurry: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """Start ``serve``; gives the process and what it said when it was ready."""
    command = [sys.executable, "-c", SLOWLY, str(hurry), "serve", *options, "--port", "0", "--attention", "reference"]
    started = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    try:
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(started.stdout.readline())
            assert lines[-1], started.stderr.read()
        yield started, json.loads("".join(lines))
    finally:
        started.kill()
        started.communicate()


@pytest.mark.when_changed(*BENCH)
@pytest.mark.parametrize("signals", [1, 2])
def test_told_to_stop(folder: Path, signals: int, tmp_path: Path) -> None:
    """Catches an answer cut short by one signal, a second signal that has to wait, and a wrong exit status."""
    options = [str(folder), "--num-blocks", "600", "--block-size", "4"]
    hurry = tmp_path / "hurry"
    with process(hurry, *options) as (server, report):
        assert report["url"].startswith("http://127.0.0.1:") and report["num_blocks"] == 599
        num_tokens = 250 if signals == 1 else 2000
        with openai.OpenAI(
            base_url=report["url"],
            api_key="none",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        ) as client:
            body = {"model": str(folder), "prompt": "abc", "temperature": 0.0}
            stream = iter(client.completions.create(**body, max_tokens=num_tokens, stream=True))
            texts = [next(stream).choices[0].text]
            server.send_signal(signal.SIGTERM)
            with pytest.raises(openai.InternalServerError, match="shut down") as caught:
                while True:  # until the signal has arrived
                    client.completions.create(**body, max_tokens=1)
            assert caught.value.status_code == 503
            if signals == 1:
                hurry.touch()
                texts += [chunk.choices[0].text for chunk in stream]
                assert "".join(texts) == text_of("abc", num_tokens)
            else:
                server.send_signal(signal.SIGTERM)
                with pytest.raises((openai.APIError, httpx.HTTPError)):
                    texts += [chunk.choices[0].text for chunk in stream]
        output, errors = server.communicate(timeout=60)
        assert output == ""
        assert server.returncode == (0 if signals == 1 else 1)
        assert "finishing what was begun; Ctrl-C again stops at once" in errors
        assert errors.count("\n") == signals and ("stopped before everyone" in errors) == (signals == 2), errors


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a model that is loaded for a port that cannot be had, or for a host that is not here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert_one_line(capsys, ["serve", "--port", port], 1, f"cannot listen on port {port} of 127.0.0.1")
    assert_one_line(capsys, ["serve", "--host", "no.such.host.invalid"], 1, "give another --port or --host")


@pytest.mark.parametrize("name", command.NEEDED)
def test_without_the_extra(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, or a sentence that does not say what is missing."""
    found = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda module: None if module == name else found(module))
    assert_one_line(capsys, ["serve", "missing/model"], 1, f"serving needs the package {name}, of the extra")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--port", "70000"], 2, "'70000' is not a whole number from 0 to 65535"),
        (["--num-blocks", "9", "--kv-memory", "1GiB"], 2, "not allowed with argument"),
        (["--num-blocks", "1"], 2, "'1' is not a whole number of at least 2"),
        (["--watermark", "1"], 2, "'1' is not a share from 0 to below 1"),
        (["--kv-memory", "900TiB"], 1, "900 TiB for keys and values exceed the"),
        (["--num-blocks", "999999999999"], 1, "lower --num-blocks"),
        (["--max-model-len", "5000"], 1, "max_model_len is 5000"),
        (["no/such/model/at/all"], 1, "neither a folder nor an id"),
    ],
)
def test_wrong_options(
    options: list[str], status: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an option that is taken for something else, or whose refusal comes as a traceback."""
    model = [] if options[0][0] != "-" else [str(folder)]
    assert_one_line(capsys, ["serve", "--port", "0", *options, *model], status, message)


def test_what_an_engine_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an option that does not arrive."""
    made = []
    monkeypatch.setattr(command, "_serve", lambda arguments, engine, name, listener: made.append(engine) or 0)
    options = (
        "--num-blocks 50 --block-size 8 --max-num-seqs 7 --max-num-batched-tokens 33 --max-model-len 100 "
        "--no-enable-prefix-caching --watermark 0.25 --scheduling-policy priority --attention reference "
        "--dtype bfloat16"
    )
    assert main(["serve", str(folder), "--port", "0", *options.split()]) == 0
    [engine] = made
    scheduler, manager = engine.core.scheduler, engine.core.manager
    assert (manager.block_pool.num_free_blocks, manager.block_pool.block_size, manager.prefix_cache) == (49, 8, None)
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens, engine.max_model_len) == (7, 33, 100)
    assert (scheduler.watermark, scheduler.policy, str(engine.model.dtype)) == (0.25, "priority", "torch.bfloat16")
    assert main(["serve", str(folder), "--port", "0", "--kv-memory", "1MiB", "--attention", "reference"]) == 0
    per_block = 16 * 2 * 2 * 2 * 8 * 4  # tokens, keys and values, layers, heads, head_dim, bytes
    assert made[1].core.manager.block_pool.num_free_blocks == 2**20 // per_block - 1
    assert made[1].core.manager.prefix_cache is not None
