"""Compute a log's figures again from the memory that it says is left, and say whether they come out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedattn_lab.budget import Budget, Estimate, Options, known_models
from pagedattn_lab.budget.compute import compute
from pagedattn_lab.vllm_log.memory import ROUNDING, gib
from pagedattn_lab.vllm_log.start_up_log import StartUpLog

OLDER = ("0.24", "0.17", "0.12", "0.8", "0.6")
"""Versions whose formulas are tried, beside the newest, if a log does not name its own."""

_GIVE = "give model, whose configuration to take (--model on the command line)"
_QUANTISED = re.compile(
    r"[-_.](?:fp8|fp4|nvfp4|mxfp4|awq|gptq|int[48]|w[48]a(?:8|16)|4bit|8bit|bnb|dynamic|autoround|quantized|marlin|gguf).*$"
)
_SUFFIX = re.compile(r"-(?:instruct|it|chat|hf)$")


@dataclass(frozen=True)
class Figure:
    """A figure of the log beside what it can be.

    Args:
        name: a field of :class:`~pagedattn_lab.vllm_log.start_up_log.StartUpLog`.
        logged: as the log has it.
        low: the least that follows from what is available, which the log rounds.
        high: the most.
    """

    name: str
    logged: float
    low: float
    high: float

    @property
    def comes_out(self) -> bool:
        """Whether the log's figure is one of those."""
        return self.low <= self.logged <= self.high

    @property
    def off_by(self) -> float:
        """How far the log's figure is from the nearest, over that: below zero if the log has less."""
        nearest = min(max(self.logged, self.low), self.high)
        return (self.logged - nearest) / nearest if nearest else float(self.logged != nearest)


@dataclass(frozen=True)
class Check:
    """Whether a log's figures come out.

    Args:
        comes_out: whether all do; None if the log does not name enough.
        said: that, in sentences.
        figures: what was compared.
        assumed: what the log does not say and what was taken instead, in a sentence each.
    """

    comes_out: bool | None
    said: str
    figures: tuple[Figure, ...] = ()
    assumed: tuple[str, ...] = ()


def check(log: StartUpLog, model: str | Path | Mapping[str, Any] | None = None) -> Check:
    """Compute blocks, tokens and concurrency again from what is available, by the formulas of the log's version.

    Args:
        log: what was read.
        model: whose configuration to take, if not that of the model which the log names: what
            :func:`pagedattn_lab.budget.models.load_config` takes. A name in the log is looked up among the well-known
            models and on this disk, not on the network.

    Example:
        >>> from pagedattn_lab.vllm_log import read_log
        >>> log = read_log('''
        ... INFO 10-10 13:01:02 [core.py:77] Initializing a V1 LLM engine (v0.10.2) with config: model='Qwen/Qwen3-14B'
        ... INFO 10-10 13:02:10 [gpu_worker.py:298] Available KV cache memory: 6.51 GiB
        ... INFO 10-10 13:02:10 [kv_cache_utils.py:864] GPU KV cache size: 42,656 tokens
        ... INFO 10-10 13:02:10 [kv_cache_utils.py:868] Maximum concurrency for 32,768 tokens per request: 1.30x
        ... ''')
        >>> check(log).said
        'It comes out: 6.51 GiB make 42,624 to 42,688 tokens, and the log says 42,656.'
    """
    if not any((log.kv_tokens is not None, log.num_blocks is not None, log.needed_bytes, log.original_max_model_len)):
        return Check(None, "The log does not say what the cache holds.")
    if log.available_bytes is None and log.num_gpu_blocks_override is None:
        return Check(None, "The log does not say how much memory is available for the cache.")
    assumed: list[str] = []
    if model is None:
        model, said = _model_of(log)
        if model is None:
            return Check(None, said)
        assumed += [said] if said else []
    missing = _missing(log)
    if missing:
        return Check(None, missing)
    named = re.match(r"v?(\d+\.\d+)(\.\d+)?", log.version or "")
    versions = (named[0].removeprefix("v"),) if named else _versions(log)
    first: Check | None = None
    for version in versions:
        try:
            ends = _ends(log, model, version)
        except ValueError as error:  # also of a layout that is not known
            return Check(None, f"It cannot be computed: {error}.")
        found = _compare(log, ends[0], ends[1], assumed + _assumed(log, ends[0], version if not named else None))
        first = first or found
        if found.comes_out:
            return found
    assert first is not None
    return first


def _versions(log: StartUpLog) -> tuple[str, ...]:
    """Versions to try for a log that names none: the words of V0 say that it is old."""
    is_old = any(line.what == "profile of V0" or line.text.startswith("# ") for line in log.lines)
    newest = Options.vllm_version
    return (*reversed(OLDER), newest) if is_old else (newest, *OLDER)


def _ends(log: StartUpLog, model: Any, version: str) -> list[Budget]:
    """Budgets with the least and the most that the printed memory stands for."""
    ends = [compute(Options(**settings(log, model, version, end))) for end in (-ROUNDING, ROUNDING)]
    if any(line.what in ("available", "profile of V0") for line in log.lines) or not log.needed_bytes:
        return ends
    if not ends[0].version.null_block:
        return ends
    block = ends[0].binding.bytes_per_block  # the error alone says what is left, less the block that is set aside
    return [compute(Options(**settings(log, model, version, end + block))) for end in (-ROUNDING, ROUNDING)]


def settings(log: StartUpLog, model: Any, version: str, end: int = 0) -> dict[str, Any]:
    """Say what a log says as arguments of :class:`~pagedattn_lab.budget.options.Options`.

    Args:
        log: what was read.
        model: what to take for its model.
        version: what to take for its version.
        end: bytes to add to what is available.
    """
    given: dict[str, Any] = {
        "model": model,
        "vllm_version": version,
        "device": "cpu" if log.device == "cpu" else "gpu",
        "available_bytes": _available(log, end),
        "async_scheduling": None if log.async_scheduling is None else log.async_scheduling.startswith("enabled"),
        "block_size": None if _is_hybrid(log) else log.block_size,
        "drafter": "mtp" if (log.speculative_method or "").endswith("mtp") else None,
    }
    for name in (
        "max_model_len", "dtype", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size",
        "max_num_batched_tokens", "max_num_seqs", "gpu_memory_utilization", "num_gpu_blocks_override",
        "enable_prefix_caching", "num_speculative_tokens",
    ):  # fmt: skip
        given[name] = getattr(log, name)
    if log.original_max_model_len:
        given["max_model_len"] = log.original_max_model_len
    return {name: value for name, value in given.items() if value is not None}


def _is_hybrid(log: StartUpLog) -> bool:
    return any(line.what == "block of a hybrid" for line in log.lines)


def _available(log: StartUpLog, end: int) -> Estimate | list[Estimate] | None:
    """What each rank of the pipeline has, if the log names them all; else what the least has."""
    if log.kv_cache_memory_bytes is not None:
        return Estimate.known(log.kv_cache_memory_bytes, "the log")
    if log.available_bytes is None:
        return None
    ranks: dict[str, int] = {}
    for name, size in log.available_by_rank:
        number = re.search(r"PP(\d+)", name)
        if number:
            ranks[number[1].zfill(4)] = min(size, ranks.get(number[1].zfill(4), size))
    if len(ranks) == (log.pipeline_parallel_size or 1) > 1:
        return [Estimate.known(max(0, ranks[number] + end), "the log") for number in sorted(ranks)]
    return Estimate.known(max(0, log.available_bytes + end), "the log")


def _model_of(log: StartUpLog) -> tuple[str | None, str]:
    """The model to compute with, and what is to be said of it."""
    if log.model is None:
        return None, f"The log does not name the model: {_GIVE}."
    if (Path(log.model).expanduser() / "config.json").is_file():
        return log.model, ""
    for name in (log.model, _QUANTISED.sub("", log.model.lower().rstrip("/"))):
        for known in known_models():
            if _bare(name) == _bare(known):
                return known, "" if log.model == known else f"{log.model} is taken for {known}."
    return (
        None,
        f"{log.model} is not among the {len(known_models())} well-known models: {_GIVE}.",
    )


def _bare(name: str) -> str:
    return _SUFFIX.sub("", name.rstrip("/").rsplit("/", 1)[-1].lower())


def _missing(log: StartUpLog) -> str:
    """Why a log cannot be computed, though it names the memory; empty if it can."""
    if log.windows_charged_in_full:
        return "Windows are charged in full here, which a budget does not plan."
    method = log.speculative_method or ""
    if log.num_speculative_tokens and not (method.endswith("mtp") or method in ("ngram", "suffix")):
        return f"The layers of the draft model{method and f' ({method})'} are not known."
    return ""


def _assumed(log: StartUpLog, budget: Budget, version: str | None) -> list[str]:
    said = []
    if version:
        said.append(f"The log does not name its version: computed as {version} does.")
    if budget.version.note:
        said.append(f"{budget.version.note}.")
    if log.max_model_len is None:
        said.append(f"The log does not say max_model_len: taken as {budget.max_model_len:,}, the model's.")
    if len(budget.groups) > 1 and log.max_num_batched_tokens is None:
        said.append(f"The log does not say max_num_batched_tokens: taken as {budget.max_num_batched_tokens:,}.")
    if log.kv_cache_dtype is None:
        said.append(f"The log does not say the cache's dtype: taken as {budget.kv_cache_dtype}.")
    if log.tensor_parallel_size is None:
        said.append("The log does not say how many ranks share a layer: taken as one.")
    return said


def _compare(log: StartUpLog, low: Budget, high: Budget, assumed: list[str]) -> Check:
    """Compare what the log says with what the two ends of its available memory give."""
    figures = []
    if _is_hybrid(log) and log.block_size:
        figures.append(Figure("block_size", log.block_size, low.block_size, high.block_size))
    if log.needed_bytes:
        needed = low.fit.needed_bytes
        figures.append(Figure("needed_bytes", log.needed_bytes, needed - ROUNDING, needed + ROUNDING))
    longest = [end.fit.largest_model_len for end in (low, high)]
    if log.estimated_max_model_len:
        figures.append(Figure("estimated_max_model_len", log.estimated_max_model_len, longest[0], longest[1]))
    if log.original_max_model_len and log.max_model_len:
        figures.append(Figure("max_model_len", log.max_model_len, longest[0], longest[1]))
    elif log.kv_tokens is not None:
        figures.append(Figure("kv_tokens", log.kv_tokens, low.kv_tokens, high.kv_tokens))
    if log.num_blocks is not None:
        figures.append(Figure("num_blocks", log.num_blocks, low.num_blocks, high.num_blocks))
    if log.max_concurrency is not None and not log.original_max_model_len:
        ends = (low.max_concurrency - 0.0051, high.max_concurrency + 0.0051)
        figures.append(Figure("max_concurrency", log.max_concurrency, *ends))
    wrong = [figure for figure in figures if not figure.comes_out]
    figure, right = (wrong or figures)[0], not wrong
    said = (
        f"It {'comes' if right else 'does not come'} out: {_expected(log, figure)}, and the log says "
        f"{_number(figure.logged, figure.name)}"
    )
    if right:
        return Check(True, said + ".", tuple(figures), tuple(assumed))
    said += f", {abs(figure.off_by):.1%} {'less' if figure.off_by < 0 else 'more'}."
    return Check(False, " ".join([said, *_reasons(log, figure, bool(assumed))]), tuple(figures), tuple(assumed))


_NOUNS = {
    "estimated_max_model_len": "tokens of the longest request that fits",
    "kv_tokens": "tokens",
    "max_concurrency": "requests at once",
    "max_model_len": "tokens of the longest request that fits",
    "num_blocks": "blocks",
}


def _expected(log: StartUpLog, figure: Figure) -> str:
    """What follows, with the noun that belongs to it."""
    low, high = (_number(value, figure.name) for value in (figure.low, figure.high))
    span = low if low == high else f"{low} to {high}"
    if figure.name in ("needed_bytes", "block_size"):
        return f"one request takes {span}" if figure.name == "needed_bytes" else f"a block has {span} tokens"
    source = "the blocks asked for" if log.available_bytes is None else gib(log.available_bytes)
    return f"{source} make {span} {_NOUNS[figure.name]}"


def _number(value: float, name: str) -> str:
    if name == "needed_bytes":
        return gib(int(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _reasons(log: StartUpLog, figure: Figure, is_assumed: bool) -> list[str]:
    ranks = (log.tensor_parallel_size or 1) * (log.pipeline_parallel_size or 1)
    reasons = []
    if figure.off_by < 0 and ranks > 1 and len(log.available_by_rank) < ranks:
        reasons.append("The log has not the memory of every rank, and the one with the least counts.")
    if figure.off_by > 0.5 and (log.kv_cache_dtype or "auto") == "auto":
        reasons.append("Perhaps the checkpoint asks for an 8-bit cache.")
    return [*reasons, "Something assumed may be wrong; see below."] if is_assumed else reasons
