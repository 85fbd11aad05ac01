"""Read a start-up log line by line, whatever stands before the messages."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from pagedattn_lab.vllm_log.meanings import explain
from pagedattn_lab.vllm_log.start_up_log import LogLine, StartUpLog
from pagedattn_lab.vllm_log.words import recognise

FAILURES = ("too small", "nothing left", "card in use", "out of memory")
"""Kinds of lines after which there is no server."""

LONGEST = 100_000
"""Characters of a line that are looked at: none of vLLM's is longer, and patterns take time on what is."""

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_PLACE = re.compile(r"^.*?(?:\[[\w./-]+\.py:\d+\]|\b[\w./-]+\.py:\d+\])\s*")
_RANK = re.compile(r"\((?:[^()]*\) )?((?:Worker|VllmWorker|RayWorker|EngineCore|APIServer|ApiServer)\w*)([^)]*)\)")
_ANYWHERE = ("version", "batch", "requests at once", "running", "preempted")
"""Kinds of lines by which no start is begun: some also come before the version, or long after."""
_LEAST = ("kv_tokens", "max_concurrency")
_NAMES = {field.name for field in fields(StartUpLog)}


def read_log(text: str) -> StartUpLog:
    """Read a start-up log of vLLM: V0's words and V1's, of one rank or several, with colours, times and prefixes or not.

    Lines that say nothing of memory are passed over. A text without any such line gives a log without lines, and
    figures that are all None.

    Example:
        >>> log = read_log('''
        ... (EngineCore_DP0 pid=7) INFO 11-28 10:00:00 [gpu_worker.py:298] Available KV cache memory: 6.51 GiB
        ... (EngineCore_DP0 pid=7) INFO 11-28 10:00:00 [kv_cache_utils.py:864] GPU KV cache size: 42,656 tokens
        ... (EngineCore_DP0 pid=7) INFO 11-28 10:00:00 [kv_cache_utils.py:868] Maximum concurrency for 32,768 tokens per request: 1.30x
        ... ''')
        >>> log.kv_tokens, log.max_model_len, log.max_concurrency, [line.what for line in log.lines]
        (42656, 32768, 1.3, ['available', 'capacity', 'concurrency'])
    """  # noqa: E501
    facts: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    known: list[tuple[int, str, str, str, dict[str, Any]]] = []
    num_starts, begun, first = 0, False, 0
    for number, line in enumerate(text.split("\n"), 1):  # as editors count, to whom \\r is no line's end
        clean = _CONTROL.sub(" ", _COLOUR.sub("", line[:LONGEST])).rstrip()
        recognised = recognise(clean)
        if recognised is None:
            continue
        what, figures = recognised
        if what == "version" and begun:
            facts, ranks, begun, first = {}, {}, False, len(known)
        num_starts += not begun and what not in _ANYWHERE
        begun = begun or what not in _ANYWHERE
        rank = _rank(clean)
        new = {name: value for name, value in figures.items() if name in _NAMES} | _more(what, figures)
        if what in ("capacity", "concurrency"):  # in some versions one a rank, of which the least counts
            new |= {name: min(new[name], facts.get(name, new[name])) for name in _LEAST if name in new}
        facts |= new
        available = figures.get("available_bytes", figures.get("limiting_bytes"))
        if available is not None and (what != "too small" or not ranks):  # an error sets a block aside from some on
            ranks[rank or f"line {number}"] = available
        known.append((number, _message(clean), what, rank, figures))
    if ranks:
        facts["available_bytes"] = min(ranks.values())
        facts["available_by_rank"] = tuple(sorted(ranks.items()))
    log = StartUpLog(**facts, num_starts=num_starts)
    lines = [
        LogLine(number, message, what, *explain(what, figures, log), rank)
        for number, message, what, rank, figures in known[first:]
    ]
    return StartUpLog(**{**facts, "num_starts": num_starts, "lines": tuple(lines)})


def _more(what: str, figures: dict[str, Any]) -> dict[str, Any]:
    """What follows from a line beyond its figures."""
    more: dict[str, Any] = {}
    if what in FAILURES:
        more["failed"] = what
    if what == "windows charged in full":
        more["windows_charged_in_full"] = True
    if figures.get("pool") in ("CPU", "cpu") or figures.get("how") in ("Auto", "Explicitly"):
        more["device"] = "cpu"
    if what == "sum of memory" and figures.get("consumed") == "weight":
        more |= {"weights_bytes": figures["consumed_bytes"], "consumed_bytes": None}
    return more


def _message(line: str) -> str:
    """The line from behind the file that it names, or from behind the process, if it names one."""
    message = _PLACE.sub("", line, count=1)
    return (message if message != line else _RANK.sub("", line, count=1)).strip()


def _rank(line: str) -> str:
    """Which process said it, without the number of its process."""
    found = _RANK.search(line[:300])
    if found is None:
        return ""
    rank = re.search(r"rank=(\d+)", found[2])
    pid = re.search(r"pid=(\d+)", found[2])
    if rank:
        return f"{found[1]} {rank[1]}"
    return found[1] if found[1] not in ("VllmWorkerProcess", "RayWorkerWrapper") or not pid else f"{found[1]} {pid[1]}"
