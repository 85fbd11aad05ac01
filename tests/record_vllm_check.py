"""Write what a vLLM server really answers to ``vllm-check``: python -m tests.record_vllm_check URL NAME OPTIONS...

``tests/test_vllm_check.py`` answers with it again. OPTIONS are those of ``vllm-check``; NAME is that of the recording in
``vllm_check.json``. Of ``/metrics``, buckets and what is not vLLM's are left out, of ``/server_info`` what nobody reads,
and of the completions all but the first. A path of the recording's machine is replaced by the model's name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx

from pagedattn_lab.cli import main
from pagedattn_lab.vllm_check import client

FILE = Path(__file__).with_name("vllm_check.json")
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


if __name__ == "__main__":
    url, name, *options = sys.argv[1:]
    recorder, make = Recorder(), client.Client.__init__
    client.Client.__init__ = lambda self, *given: make(self, *given, transport=recorder)
    if main(["vllm-check", "--url", url, *options]) == 0:
        metrics = recorder.answers["/metrics"]
        recorder.answers["/metrics"] = [metrics[0], metrics[-1]]
        recordings = json.loads(FILE.read_text()) if FILE.exists() else {}
        recordings[name] = {"options": options, "answers": recorder.answers}
        FILE.write_text(json.dumps(recordings, indent=1) + "\n")
