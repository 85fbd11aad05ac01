"""Exercises of chapter 01: what a rank stores, how many requests fit for certain, what a lost cache costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pagedattn_lab.exercises import Exercise

# --- bytes_per_token_per_rank -------------------------------------------------------------------------------------

_GQA = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192}
_MHA = {"num_hidden_layers": 40, "num_attention_heads": 40, "hidden_size": 5120}
_MQA = {"num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 2048}
_WIDE = {
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 5120,
    "head_dim": 128,
}

_RANK_CASES = (
    (_GQA, 1, 2, "without tensor parallelism a rank stores all 8 KV heads"),
    (_GQA, 1, 1, "an 8-bit cache stores one byte per element"),
    (_GQA, 4, 2, "4 ranks share 8 KV heads, 2 each"),
    (_GQA, 8, 2, "8 ranks share 8 KV heads, 1 each"),
    (_GQA, 16, 2, "16 ranks and 8 KV heads: a head is not cut, each rank keeps a copy of one"),
    (_MHA, 1, 2, "without num_key_value_heads every query head has keys and values of its own"),
    (_MHA, 4, 4, "40 heads over 4 ranks, in float32"),
    (_MQA, 4, 2, "a single KV head is copied to every rank"),
    (_WIDE, 2, 2, "this configuration states head_dim, and it is not hidden_size / num_attention_heads"),
)


def _rank_reference(config: Mapping[str, int], tensor_parallel_size: int, dtype_bytes: int) -> int:
    num_kv_heads = config.get("num_key_value_heads", config["num_attention_heads"])
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return 2 * config["num_hidden_layers"] * max(1, num_kv_heads // tensor_parallel_size) * head_dim * dtype_bytes


def _rank_check(answer: Callable[..., Any]) -> None:
    for config, ranks, dtype_bytes, why in _RANK_CASES:
        expected, got = _rank_reference(config, ranks, dtype_bytes), answer(dict(config), ranks, dtype_bytes)
        assert got == expected, (
            f"{config} on {ranks} rank(s) with {dtype_bytes} byte(s) per element gives {expected}, not {got}: {why}"
        )


def _whole_cache(config: Mapping[str, int], dtype_bytes: int) -> int:
    return _rank_reference(config, 1, dtype_bytes)


def _all_heads_when_copied(config: Mapping[str, int], ranks: int, dtype_bytes: int) -> int:
    num_kv_heads = config.get("num_key_value_heads", config["num_attention_heads"])
    return _whole_cache(config, dtype_bytes) // (ranks if num_kv_heads >= ranks else 1)


def _head_dim_from_hidden_size(config: Mapping[str, int], ranks: int, dtype_bytes: int) -> int:
    return _rank_reference({k: v for k, v in config.items() if k != "head_dim"}, ranks, dtype_bytes)


def _query_heads(config: Mapping[str, int], ranks: int, dtype_bytes: int) -> int:
    return _rank_reference({k: v for k, v in config.items() if k != "num_key_value_heads"}, ranks, dtype_bytes)


bytes_per_token_per_rank = Exercise(
    check=_rank_check,
    reference=_rank_reference,
    wrong={
        "ignores the ranks": lambda config, ranks, dtype_bytes: _whole_cache(config, dtype_bytes),
        "cuts heads in pieces": lambda config, ranks, dtype_bytes: _whole_cache(config, dtype_bytes) // ranks,
        "copies all heads when ranks outnumber them": _all_heads_when_copied,
        "caches one entry per query head": _query_heads,
        "derives head_dim that is stated": _head_dim_from_hidden_size,
        "forgets the values": lambda config, ranks, dtype_bytes: _rank_reference(config, ranks, dtype_bytes) // 2,
        "assumes two bytes": lambda config, ranks, dtype_bytes: _rank_reference(config, ranks, 2),
    },
)
"""``answer(config, tensor_parallel_size, dtype_bytes) -> int``: bytes of keys and values one token leaves on a rank."""

# --- admit --------------------------------------------------------------------------------------------------------

Requests = Sequence[tuple[int, int]]


def _admit(requests: Requests, budget: int, cost: Callable[[int, int], int]) -> int:
    """Count the requests at the head of the queue that a budget covers."""
    for count, (prompt_len, output_len) in enumerate(requests):
        budget -= cost(prompt_len, output_len)
        if budget < 0:
            return count
    return len(requests)


def _admit_reference(requests: Requests, memory_bytes: int, weight_bytes: int, bytes_per_token: int) -> int:
    return _admit(requests, memory_bytes - weight_bytes, lambda prompt, output: (prompt + output - 1) * bytes_per_token)


def _admit_cases() -> list[tuple[Requests, int, int, int, str]]:
    ragged = [(100, 50), (400, 200), (10, 10), (1, 1)]  # 149 + 599 + 19 + 1 tokens
    cases = [
        (ragged, 8_000, 1_000, 10, "149 + 599 = 748 tokens exceed 700, and the requests behind must wait their turn"),
        (ragged, 8_670, 1_000, 10, "149 + 599 + 19 = 767 tokens fill 767 slots exactly; the last one has no room"),
        (ragged, 8_680, 1_000, 10, "149 + 599 + 19 + 1 tokens fill 768 slots exactly"),
        (ragged, 8_480, 1_000, 10, "748 slots are enough for two requests: an output's last token is never stored"),
        (ragged, 10**9, 1_000, 10, "everything fits"),
        (ragged, 900, 1_000, 10, "the weights alone do not fit"),
        ([], 8_000, 1_000, 10, "an empty queue"),
    ]
    rng = random.Random(0)
    for _ in range(20):
        queue = [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(rng.randint(1, 40))]
        memory, weights, per_token = rng.randint(20_000, 900_000), rng.randint(0, 200_000), rng.choice((7, 24, 50))
        cases.append((queue, memory, weights, per_token, "add up what every request stores when it ends, in order"))
    return cases


def _admit_check(answer: Callable[..., Any]) -> None:
    for requests, memory, weights, per_token, why in _admit_cases():
        expected, got = (
            _admit_reference(requests, memory, weights, per_token),
            answer(list(requests), memory, weights, per_token),
        )
        shown = f"{requests[:4]}{' and more' if len(requests) > 4 else ''}"
        assert got == expected, (
            f"requests {shown} with {memory} bytes, {weights} of them weights, at {per_token} bytes per token: "
            f"{expected} can be admitted, not {got} ({why})"
        )


def _admit_around(requests: Requests, memory_bytes: int, weight_bytes: int, bytes_per_token: int) -> int:
    budget, count = memory_bytes - weight_bytes, 0
    for prompt_len, output_len in requests:
        cost = (prompt_len + output_len - 1) * bytes_per_token
        if cost <= budget:
            budget, count = budget - cost, count + 1
    return count


def _admit_mean(requests: Requests, memory_bytes: int, weight_bytes: int, bytes_per_token: int) -> int:
    if not requests:
        return 0
    mean = sum(prompt + output - 1 for prompt, output in requests) / len(requests)
    return max(0, min(len(requests), int((memory_bytes - weight_bytes) / (mean * bytes_per_token))))


def _admit_longest(requests: Requests, memory_bytes: int, weight_bytes: int, bytes_per_token: int) -> int:
    longest = max((prompt + output - 1 for prompt, output in requests), default=1)
    return max(0, min(len(requests), (memory_bytes - weight_bytes) // (longest * bytes_per_token)))


admit = Exercise(
    check=_admit_check,
    reference=_admit_reference,
    wrong={
        "counts prompts only": lambda requests, memory, weights, per_token: _admit(
            requests, memory - weights, lambda prompt, output: prompt * per_token
        ),
        "forgets the weights": lambda requests, memory, weights, per_token: _admit_reference(
            requests, memory, 0, per_token
        ),
        "stores the last token too": lambda requests, memory, weights, per_token: _admit(
            requests, memory - weights, lambda prompt, output: (prompt + output) * per_token
        ),
        "lets short requests overtake": _admit_around,
        "plans with the mean length": _admit_mean,
        "plans with the longest request": _admit_longest,
    },
)
"""``answer(requests, memory_bytes, weight_bytes, bytes_per_token) -> int``: requests that can all run to their end."""

# --- positions_processed ------------------------------------------------------------------------------------------


def _positions_reference(prompt_len: int, output_len: int, lost_after: Sequence[int] = ()) -> int:
    return prompt_len + output_len - 1 + sum(prompt_len + generated - 1 for generated in lost_after)


def _simulate(prompt_len: int, output_len: int, lost_after: Sequence[int]) -> int:
    """Count positions the slow way: what is known and not in the cache must be processed before the next token."""
    processed = cached = 0
    for generated in range(output_len):
        if generated in lost_after:
            cached = 0
        known = prompt_len + generated
        processed, cached = processed + known - cached, known
    return processed


_POSITION_CASES = (
    (5, 1, (), "the prompt alone gives the first token, and the request ends there"),
    (5, 4, (), "the prompt once, then each generated token except the last"),
    (1, 7, (), "a prompt of one token"),
    (5, 4, (1,), "after 1 token the cache held the 5 of the prompt; they are processed again"),
    (5, 4, (3,), "after 3 tokens the cache held 5 + 2 positions: the third had not been processed yet"),
    (23, 40, (4, 9, 30), "every loss costs what the cache held at that moment"),
    (6, 5, (1, 2, 3, 4), "a cache lost after every token is no cache at all: 6 + 7 + 8 + 9 + 10 positions"),
)


def _positions_check(answer: Callable[..., Any]) -> None:
    for prompt_len, output_len, lost_after, why in _POSITION_CASES:
        expected, got = _simulate(prompt_len, output_len, lost_after), answer(prompt_len, output_len, list(lost_after))
        assert got == expected, (
            f"prompt of {prompt_len}, {output_len} tokens generated, cache lost after {list(lost_after)}: "
            f"{expected} positions are processed, not {got} ({why})"
        )


positions_processed = Exercise(
    check=_positions_check,
    reference=_positions_reference,
    wrong={
        "processes the last token": lambda prompt, output, lost: _positions_reference(prompt, output, lost) + 1,
        "ignores the losses": lambda prompt, output, lost: _positions_reference(prompt, output),
        "recomputes the prompt only": lambda prompt, output, lost: prompt + output - 1 + prompt * len(lost),
        "counts the newest token as lost": lambda prompt, output, lost: (
            prompt + output - 1 + sum(prompt + generated for generated in lost)
        ),
        "never caches": lambda prompt, output, lost: sum(prompt + generated for generated in range(output)),
        "forgets the prompt": lambda prompt, output, lost: output - 1 + sum(generated - 1 for generated in lost),
    },
)
"""``answer(prompt_len, output_len, lost_after) -> int``: token positions the model processes for one request."""
