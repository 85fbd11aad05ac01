"""Ask a running server: what it is, what its counters stand at, and for completions of token ids.

Source: the paths and the metrics' names are those of vLLM's ``vllm/entrypoints/openai`` and ``vllm/v1/metrics``,
releases 0.32.0 and 0.33.0.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pagedattn_lab.bench.serving import Load

COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens")
"""What is counted, as vLLM names it between ``vllm:`` and ``_total``."""


def printable(text: str) -> str:
    r"""Spell out what a terminal would obey rather than show: a server's words may hold anything.

    Example:
        >>> printable("red \x1b[31m, naïve, next\nline")
        'red \\x1b[31m, naïve, next\\nline'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class ServerError(RuntimeError):
    """A server that cannot be asked, or that answers something else. Its message says what, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class Snapshot:
    """What ``/metrics`` says at one moment.

    Attributes:
        cache_config: labels of ``vllm:cache_config_info``.
        counters: of :data:`COUNTERS`, each since the server was started.
        created: when each began to count, in seconds since 1970; empty if the server does not say.
        num_unfinished: requests that run or wait.
    """

    cache_config: Mapping[str, str]
    counters: Mapping[str, int]
    created: Mapping[str, float]
    num_unfinished: int

    def since(self, before: Snapshot) -> dict[str, int]:
        """How far each counter has come.

        Raises:
            ServerError: they began anew meanwhile.

        Example:
            >>> now = Snapshot({}, {"prompt_tokens": 7}, {}, 0)
            >>> now.since(Snapshot({}, {"prompt_tokens": 5}, {}, 0))
            {'prompt_tokens': 2}
        """
        spent = {name: count - before.counters[name] for name, count in self.counters.items()}
        if self.created != before.created or min(spent.values()) < 0:
            raise ServerError(
                "the server's counters began anew during the replay, so it was restarted: run the check again once it "
                "stays up"
            )
        return spent


def read_metrics(text: str, where: str) -> Snapshot:
    """Read what ``/metrics`` answers.

    Args:
        text: in Prometheus' format.
        where: the address, for messages.

    Raises:
        ServerError: it is no such text; a metric is missing or no count; or the server has several engines.
    """
    found: dict[str, float] = {}
    infos: list[Mapping[str, str]] = []
    try:
        for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
            if sample.name == "vllm:cache_config_info":
                infos.append(sample.labels)
            elif set(sample.labels) == {"engine", "model_name"}:
                found[sample.name.removeprefix("vllm:")] = sample.value
    except ValueError as error:
        raise ServerError(f"{where} is not in Prometheus' format ({error}): is this a vLLM server?") from None
    needed = [*(f"{name}_total" for name in COUNTERS), "num_requests_running", "num_requests_waiting"]
    missing = [name for name in needed if name not in found] + ["cache_config_info"] * (not infos)
    if missing:
        raise ServerError(
            f"{where} has no vllm:{missing[0]}: this is no current vLLM server, or it was started with "
            "--disable-log-stats"
        )
    for name in needed:
        if not 0 <= found[name] < math.inf:  # nor is it NaN
            raise ServerError(f"vllm:{name} at {where} is {found[name]}, not a count: restart the server")
    if len(infos) > 1:
        raise ServerError(
            f"{where} tells of {len(infos)} engines, each with a cache of its own: check a server that was started "
            "without --data-parallel-size"
        )
    return Snapshot(
        cache_config=infos[0],
        counters={name: int(found[f"{name}_total"]) for name in COUNTERS},
        created={
            name: found[f"{name}_created"] for name in COUNTERS if 0 <= found.get(f"{name}_created", -1) < math.inf
        },
        num_unfinished=int(found["num_requests_running"] + found["num_requests_waiting"]),
    )


class Client:
    """A connection to one server, made directly: proxies that the environment names are not used.

    Args:
        url: where it is, with or without ``/v1``.
        api_key: what it wants to be told, if anything.
        timeout: seconds to wait for one answer.
        transport: of httpx, in place of the network.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport, trust_env=False, limits=limits)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """Ask for a JSON object.

        Raises:
            ServerError: there is no answer, or another one.
        """
        return self._object(path, self._ask("GET", path))

    def get_if_there(self, path: str) -> Any:
        """Ask for JSON that not every server has.

        Returns:
            What it is; the text, if it is no JSON; ``None`` if this server answers anything but success.
        """
        answer = self._send("GET", path)
        if not answer.is_success:
            return None
        content = _json(answer)
        return answer.text if content is None else content

    def metrics(self) -> Snapshot:
        """Read what the counters stand at.

        Raises:
            ServerError: as for :func:`read_metrics`, or there is no answer.
        """
        return read_metrics(self._ask("GET", "/metrics").text, f"{self.url}/metrics")

    def replay(self, model: str, load: Load, clients: int, salt: str) -> None:
        """Send a load, and see each request through: as many tokens as it asks for, whatever they are.

        Args:
            model: the name that the server has for it.
            load: what to send, in this order.
            clients: how many requests are sent at once; the next one follows when one has been answered.
            salt: prompts share blocks only with those of the same salt, so that nothing is found of earlier loads.

        Raises:
            ServerError: a request is refused, or its answer has another length. The rest is not sent.
        """
        requests = enumerate(zip(load.prompts, load.output_lens, strict=True), 1)
        turn, ended = threading.Lock(), threading.Event()

        def client() -> None:
            while not ended.is_set():
                with _Turn(turn) as mine:
                    number, (prompt, output_len) = next(requests, (0, ((), 0)))
                    if not number:
                        return
                    who = f"request {number} of {len(load.prompts)}"
                    try:
                        self._complete(who, model, prompt, output_len, salt, mine)
                    except BaseException:
                        ended.set()
                        raise

        with ThreadPoolExecutor(clients) as pool:
            try:
                for each in [pool.submit(client) for _ in range(clients)]:
                    each.result()
            finally:
                ended.set()

    def settle(self, before: Snapshot, load: Load, seconds: float = 10.0) -> Snapshot:
        """Read the counters once they have caught up with a load: a server counts after it has answered.

        Args:
            before: what they stood at.
            load: what was sent since.
            seconds: how long to wait at most; then what is there is taken.

        Raises:
            ServerError: as for :meth:`metrics`, or they began anew.
        """
        end = time.monotonic() + seconds
        while True:
            now = self.metrics()
            spent = now.since(before)
            caught_up = spent["generation_tokens"] >= load.num_output_tokens and now.num_unfinished == 0
            if caught_up or time.monotonic() > end:
                return now
            time.sleep(0.1)

    def _complete(self, who: str, model: str, prompt: Sequence[int], output_len: int, salt: str, turn: _Turn) -> None:
        body = {
            "model": model, "prompt": list(prompt), "max_tokens": output_len, "temperature": 0.0, "ignore_eos": True,
            "cache_salt": salt,
        }  # fmt: skip
        answer = self._send("POST", "/v1/completions", json=body, extensions={"trace": turn.on_event})
        if not answer.is_success:
            raise ServerError(
                f"{who}, {len(prompt):,} tokens and {output_len:,} to come, was refused ({_reason(answer)}): the rest "
                "was not sent"
            )
        usage = self._object("/v1/completions", answer).get("usage")
        got = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (None, None)
        if got != (len(prompt), output_len):
            raise ServerError(
                f"{who} came back as {got[0]} + {got[1]} tokens, not {len(prompt)} + {output_len}: this server changes "
                "prompts, or does not heed ignore_eos"
            )

    def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        answer = self._send(method, path, **what)
        if answer.status_code == 401:
            raise ServerError(f"{self.url}{path} wants another key ({_reason(answer)}): give it with --api-key")
        if not answer.is_success:
            raise ServerError(
                f"{self.url}{path} answers {_reason(answer)}: --url must be a vLLM server's address, such as "
                "http://127.0.0.1:8000"
            )
        return answer

    def _send(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            return self._http.request(method, self.url + path, **what)
        except httpx.TimeoutException:
            raise ServerError(f"{self.url}{path} did not answer in time: raise --timeout") from None
        except httpx.DecodingError:
            raise ServerError(f"{self.url}{path} answers what cannot be decompressed: is this a vLLM server?") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ServerError(f"nothing answers at {self.url}{path} ({error}): is the server running there?") from None

    def _object(self, path: str, answer: httpx.Response) -> dict[str, Any]:
        content = _json(answer)
        if not isinstance(content, dict):
            raise ServerError(f"{self.url}{path} answers no JSON object: is this an OpenAI server?")
        return content


class _Turn:
    """Lets one client at a time take a request and write it, so that they arrive in order; answers may overlap."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._has = lock, False

    def __enter__(self) -> _Turn:
        self._lock.acquire()
        self._has = True
        return self

    def __exit__(self, *_: object) -> None:
        self._pass_on()

    def on_event(self, name: str, _: Mapping[str, Any]) -> None:
        """Called by httpx at every stage of a request."""
        if name.endswith("send_request_body.complete"):
            self._pass_on()

    def _pass_on(self) -> None:
        if self._has:
            self._has = False
            self._lock.release()


def _json(answer: httpx.Response) -> Any:
    """Read an answer; ``None`` if it is no JSON, or lists within lists without end."""
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None


def _reason(answer: httpx.Response) -> str:
    """Say why something was refused: the status, and the server's own words if it has any."""
    status = f"{answer.status_code} {answer.reason_phrase}"
    content = _json(answer)
    error = content.get("error", content) if isinstance(content, dict) else content
    words = (error.get("message") or error.get("detail")) if isinstance(error, dict) else None
    return f"{status}: {words}" if isinstance(words, str) and words != answer.reason_phrase else status
