"""A vLLM server as it was recorded, for ``vllm-check`` to ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pagedattn_lab.vllm_check.client import Client

URL = "http://127.0.0.1:8000"
FILE = Path(__file__).parents[1] / "vllm_check.json"
RECORDINGS: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
Answer = Callable[[httpx.Request], httpx.Response | None]


class Recorded:
    """Answers as vLLM did once, unless told to answer something else. Its counters move when it is sent prompts."""

    def __init__(self, name: str = "chat", instead: Answer = lambda request: None) -> None:
        self.answers: dict[str, list[dict[str, Any]]] = RECORDINGS[name]["answers"]
        self.options: list[str] = RECORDINGS[name]["options"]
        self.instead = instead
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/completions":
            self.bodies.append(json.loads(request.content))
        other = self.instead(request)
        if other is not None:
            return other
        if path not in self.answers:
            return httpx.Response(404, json={"error": {"message": "Not Found"}})
        answer = self.answers[path][-1 if self.bodies else 0]
        content = answer["text"]
        if path == "/v1/completions":
            body, content = self.bodies[-1], json.loads(content)
            content["usage"] |= {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
            content = json.dumps(content)
        return httpx.Response(answer["status"], text=content)

    def client(self) -> Client:
        return Client(URL, transport=httpx.MockTransport(self))


def in_place_of_the_network(patch: pytest.MonkeyPatch, answer: Answer) -> None:
    """Have every client that is made from now on ask this."""
    make, transport = Client.__init__, httpx.MockTransport(answer)
    patch.setattr(Client, "__init__", lambda self, *given, **_: make(self, *given, transport=transport))
