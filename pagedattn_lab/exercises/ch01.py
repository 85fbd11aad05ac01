"""Exercises of chapter 01: what a rank stores, how many requests fit for certain, what a lost cache costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise

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


def _rank_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[dict[str, int], int, int]:
        num_kv_heads = rng.choice([1, 2, 4, 8])
        config = {"num_hidden_layers": rng.randint(1, 80), "num_attention_heads": num_kv_heads * rng.choice([1, 2, 7])}
        config["hidden_size"] = config["num_attention_heads"] * rng.choice([64, 80, 128])
        if rng.random() < 0.7 or config["num_attention_heads"] != num_kv_heads:
            config["num_key_value_heads"] = num_kv_heads
        if rng.random() < 0.5:
            config["head_dim"] = rng.choice([64, 128, 256])
        return config, rng.choice([1, 2, 4, 8, 16]), rng.choice([1, 2, 4])

    about = "Layers, heads that a rank keeps, head_dim, bytes per element, and both keys and values."
    return [Case(tuple(case), f"Here {why}.") for *case, why in _RANK_CASES] + random_cases(2, 40, make, about)


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
    "01.1",
    "bytes_per_token_per_rank",
    "Bytes per token on one GPU of several",
    cases=_rank_cases,
    reference=_rank_reference,
    returns="a number of bytes",
    hints=(
        "Begin with one rank: what does each layer keep of a token?",
        "Without `num_key_value_heads` every query head has keys and values of its own; without `head_dim` it is "
        "`hidden_size // num_attention_heads`. `config.get(name, otherwise)` says that in one line.",
        "Only the heads are spread: a rank keeps `max(1, num_kv_heads // tensor_parallel_size)` of them.",
    ),
    explanation="Layers, `head_dim` and the two (keys and values) stay whole on every rank. Heads are divided, and "
    "where ranks outnumber them one head per rank is the least there can be: the same head is stored several times.",
    wrong={
        "ignore the ranks": lambda config, ranks, dtype_bytes: _whole_cache(config, dtype_bytes),
        "cut heads in pieces": lambda config, ranks, dtype_bytes: _whole_cache(config, dtype_bytes) // ranks,
        "copy all heads when ranks outnumber them": _all_heads_when_copied,
        "cache one entry per query head": _query_heads,
        "derive a head_dim that is stated": _head_dim_from_hidden_size,
        "forget the values": lambda config, ranks, dtype_bytes: _rank_reference(config, ranks, dtype_bytes) // 2,
        "assume two bytes per element": lambda config, ranks, dtype_bytes: _rank_reference(config, ranks, 2),
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


def _admit_cases() -> list[Case]:
    ragged = [(100, 50), (400, 200), (10, 10), (1, 1)]  # 149 + 599 + 19 + 1 tokens
    known = [
        (ragged, 8_000, 1_000, 10, "149 + 599 = 748 tokens exceed 700, and the requests behind must wait their turn."),
        (ragged, 8_670, 1_000, 10, "149 + 599 + 19 = 767 tokens fill 767 slots exactly; the last one has no room."),
        (ragged, 8_680, 1_000, 10, "149 + 599 + 19 + 1 tokens fill 768 slots exactly."),
        (ragged, 8_480, 1_000, 10, "748 slots are enough for two requests: an output's last token is never stored."),
        (ragged, 10**9, 1_000, 10, "Everything fits."),
        (ragged, 900, 1_000, 10, "The weights alone do not fit."),
        ([], 8_000, 1_000, 10, "The queue is empty."),
    ]

    def make(rng: random.Random) -> tuple[list[tuple[int, int]], int, int, int]:
        queue = [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(rng.randint(1, 12))]
        per_token, weights = rng.choice((7, 24, 50)), rng.randint(0, 200_000)
        return queue, weights + rng.randint(0, sum(map(sum, queue)) * per_token), weights, per_token

    about = "Add up what every request stores when it ends, in order."
    return [Case(tuple(case), about) for *case, about in known] + random_cases(3, 60, make, about)


def _admit_solution(requests: Requests, memory_bytes: int, weight_bytes: int, bytes_per_token: int) -> int:
    left, admitted = memory_bytes - weight_bytes, 0
    for prompt_len, output_len in requests:
        left -= (prompt_len + output_len - 1) * bytes_per_token
        if left < 0:
            break
        admitted += 1
    return admitted


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
    "01.2",
    "admit",
    "How many requests fit for certain",
    cases=_admit_cases,
    reference=_admit_solution,
    oracle=_admit_reference,
    returns="a number of requests",
    hints=(
        "What is there to give away? The memory holds the weights too.",
        "A request stores its prompt and its output, except the last token of the output.",
        "Go through the queue and subtract each request's bytes from what is left. At the first that does not fit, "
        "stop.",
    ),
    explanation="Each admitted request may grow to its full length, so its full length is subtracted when it is "
    "admitted. The first that does not fit ends the loop: with `continue` in place of `break` a short request would "
    "overtake.",
    wrong={
        "count prompts only": lambda requests, memory, weights, per_token: _admit(
            requests, memory - weights, lambda prompt, output: prompt * per_token
        ),
        "forget the weights": lambda requests, memory, weights, per_token: _admit_reference(
            requests, memory, 0, per_token
        ),
        "store the last token too": lambda requests, memory, weights, per_token: _admit(
            requests, memory - weights, lambda prompt, output: (prompt + output) * per_token
        ),
        "let short requests overtake": _admit_around,
        "plan with the mean length": _admit_mean,
        "plan with the longest request": _admit_longest,
    },
)
"""``answer(requests, memory_bytes, weight_bytes, bytes_per_token) -> int``: requests that can all run to their end."""

# --- positions_processed ------------------------------------------------------------------------------------------


def _positions_reference(prompt_len: int, output_len: int, lost_after: Sequence[int] = ()) -> int:
    once = prompt_len + output_len - 1
    again = sum(prompt_len + generated - 1 for generated in lost_after)
    return once + again


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


def _positions_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[int, int, list[int]]:
        output_len = rng.randint(1, 40)
        lost_after = rng.sample(range(1, output_len), rng.randint(0, min(4, output_len - 1)))
        return rng.randint(1, 60), output_len, sorted(lost_after)

    known = [
        Case((prompt, output, list(lost)), f"{why[0].upper()}{why[1:]}.")
        for prompt, output, lost, why in _POSITION_CASES
    ]
    return known + random_cases(4, 40, make, "Every loss costs what the cache held at that moment.")


positions_processed = Exercise(
    "01.3",
    "positions_processed",
    "The price of losing a cache",
    cases=_positions_cases,
    reference=_positions_reference,
    oracle=_simulate,
    returns="a number of positions",
    hints=(
        "Begin without any loss: which positions does the model process, and how often each?",
        "The prompt and every generated token except the last, once each. A loss adds what has to be processed again.",
        "After `g` generated tokens the cache held the prompt and `g - 1` of them: the newest had not been fed to the "
        "model yet, so it is processed once in any case.",
    ),
    explanation="Without losses it is `prompt_len + output_len - 1`. A loss after `g` tokens throws away what the "
    "cache held then, `prompt_len + g - 1` positions, and nothing else is done twice. Lost after every token, the sum "
    "is the quadratic number of attention without a cache.",
    wrong={
        "process the last token": lambda prompt, output, lost: _positions_reference(prompt, output, lost) + 1,
        "ignore the losses": lambda prompt, output, lost: _positions_reference(prompt, output),
        "recompute the prompt only": lambda prompt, output, lost: prompt + output - 1 + prompt * len(lost),
        "count the newest token as lost": lambda prompt, output, lost: (
            prompt + output - 1 + sum(prompt + generated for generated in lost)
        ),
        "cache nothing at all": lambda prompt, output, lost: sum(prompt + generated for generated in range(output)),
        "forget the prompt": lambda prompt, output, lost: output - 1 + sum(generated - 1 for generated in lost),
    },
)
"""``answer(prompt_len, output_len, lost_after) -> int``: token positions the model processes for one request."""
