"""Write what a vLLM server really answers to ``vllm-check``: python -m tests.record_vllm_check URL NAME OPTIONS...

``tests/test_vllm_check.py`` answers with it again. OPTIONS are those of ``vllm-check``; NAME is that of the recording
in ``vllm_check.json``. The book's table is written too, from all recordings; without arguments only that. Of
``/metrics``, buckets and what is not vLLM's are left out, of ``/server_info`` what nobody reads, and of the completions
all but the first. A path of the recording's machine is replaced by the model's name.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from pagedattn_lab.cli import main
from pagedattn_lab.vllm_check import client
from tests.helpers.vllm_check import FILE, RECORDINGS, URL, Recorded, in_place_of_the_network

BOOK = Path(__file__).parents[1] / "book" / "vllm_check.json"
SERVER_INFO = {
    "model_config": ("dtype", "max_model_len"),
    "scheduler_config": (
        "max_num_seqs", "max_num_batched_tokens", "policy", "watermark", "long_prefill_token_threshold",
        "async_scheduling",
    ),
    "parallel_config": ("tensor_parallel_size",),
    "device_config": ("device",),
}  # fmt: skip


class Recorder(httpx.HTTPTransport):
    """Sends requests on, and keeps each path's answers in order."""

    def __init__(self) -> None:
        super().__init__(limits=httpx.Limits(max_connections=None))
        self.answers: dict[str, list[dict[str, Any]]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        answer.read()
        kept = self.answers.setdefault(request.url.path, [])
        if request.method == "GET" or not kept:
            kept.append({"status": answer.status_code, "text": trimmed(request.url.path, answer)})
        return answer


def trimmed(path: str, answer: httpx.Response) -> str:
    """What the check may need of an answer."""
    if path == "/metrics":
        lines = answer.text.splitlines(keepends=True)
        return "".join(line for line in lines if "vllm:" in line and "_bucket{" not in line)
    if path == "/server_info" and answer.is_success:
        config = answer.json()["vllm_config"]
        return json.dumps(
            {"vllm_config": {part: {name: config[part][name] for name in names} for part, names in SERVER_INFO.items()}}
        )
    if path == "/v1/models":
        content = answer.json()
        for card in content["data"]:
            card["root"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
        return json.dumps(content)
    return answer.text


def record(url: str, name: str, *options: str) -> None:
    """Check a server, and keep what it answered."""
    recorder, make = Recorder(), client.Client.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.Client, "__init__", lambda self, *given: make(self, *given, transport=recorder))
        if main(["vllm-check", "--url", url, *options]):
            return
    metrics = recorder.answers["/metrics"]
    recorder.answers["/metrics"] = [metrics[0], metrics[-1]]
    RECORDINGS[name] = {"options": list(options), "answers": recorder.answers}
    FILE.write_text(json.dumps(RECORDINGS, indent=1) + "\n")


def reports() -> dict[str, Any]:
    """What ``vllm-check`` says of every recording."""
    found = {}
    for name in RECORDINGS:
        recorded = Recorded(name)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
            in_place_of_the_network(patch, recorded)
            assert main(["vllm-check", "--url", URL, *recorded.options, "--json"]) == 0
        found[name] = json.loads(printed.getvalue())
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(*sys.argv[1:])
    BOOK.write_text(json.dumps(reports(), indent=1) + "\n")
