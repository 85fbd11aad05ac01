"""Exercises of chapter 01: what a rank stores, the longest text that fits, what a lost cache costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

# --- longest_context ----------------------------------------------------------------------------------------------

Config = Mapping[str, Any]
_FULL, _WINDOW, _STATE = "full_attention", "sliding_attention", "linear_attention"

_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "max_position_embeddings": 1000}
# a token takes 2 * 4 * 4 = 32 elements a layer
_LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131_072,
}  # its config.json
_HYBRID = _SMALL | {"layer_types": [_WINDOW, _FULL], "sliding_window": 10}
_STATES = _SMALL | {"num_hidden_layers": 4, "layer_types": [_STATE, _STATE, _STATE, _FULL]}
_ALL_WINDOWS = _SMALL | {"layer_types": [_WINDOW, _WINDOW], "sliding_window": 10}

_LONGEST_CASES: tuple[tuple[Config, int, int, int, str], ...] = (
    (_SMALL, 1_000 + 50 * 128, 1_000, 2, "2 layers * 32 elements * 2 bytes are 128 a token: 50 are cached, one is not"),
    (_SMALL, 1_000 + 51 * 128 - 1, 1_000, 2, "one byte is missing for the 51st token in the cache"),
    (_SMALL, 1_000 + 50 * 64, 1_000, 1, "an 8-bit cache stores one byte per element"),
    (_SMALL, 10**9, 1_000, 2, "the memory would hold more than the model allows"),
    (
        _SMALL,
        1_000 + 999 * 128,
        1_000,
        2,
        "999 in the cache and the last token of the output: all that the model allows",
    ),
    (_SMALL, 1_000 + 128, 1_000, 2, "room for one token of prompt; the one of output needs none"),
    (_SMALL, 1_000 + 127, 1_000, 2, "not even one token of prompt fits"),
    (_SMALL, 500, 1_000, 2, "the weights alone do not fit"),
    (_SMALL | {"num_key_value_heads": 1}, 1_000 + 50 * 32, 1_000, 2, "one KV head serves four query heads"),
    (_SMALL | {"head_dim": 8}, 1_000 + 50 * 256, 1_000, 2, "head_dim is stated, and is not hidden_size / heads"),
    (_LLAMA_8B, 16 * 2**30, 16_060_522_496, 2, "8 billion parameters of two bytes leave about 1 GiB of 16"),
    (_LLAMA_8B, 80 * 2**30, 16_060_522_496, 2, "the memory would hold more than the model allows"),
    (_HYBRID, 1_000 + 8 * 128, 1_000, 2, "8 tokens are inside the window, so both layers keep them all"),
    (_HYBRID, 1_000 + 10 * 64 + 40 * 64, 1_000, 2, "one layer keeps 10 tokens at most, the other all 40"),
    (_STATES, 1_000 + 40 * 64, 1_000, 2, "one layer of four keeps keys and values"),
    (_ALL_WINDOWS, 1_000 + 10 * 128, 1_000, 2, "no layer keeps more than 10 tokens, however long the text"),
    (_ALL_WINDOWS, 1_000 + 9 * 128, 1_000, 2, "the windows do not fill"),
)


def _longest_reference(config: Config, memory_bytes: int, weight_bytes: int, dtype_bytes: int) -> int:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    entry = 2 * config.get("num_key_value_heads", heads) * head_dim * dtype_bytes  # of one token, in one layer
    kinds = config.get("layer_types", ["full_attention"] * config["num_hidden_layers"])
    full, windows = kinds.count("full_attention"), kinds.count("sliding_attention")

    def cached(num_tokens: int) -> int:
        in_window = min(num_tokens, config.get("sliding_window", 0))
        return (full * num_tokens + windows * in_window) * entry

    low, high = 1, config["max_position_embeddings"]
    while low < high:  # the longest lies between: halve the range
        middle = (low + high + 1) // 2
        if cached(middle - 1) <= memory_bytes - weight_bytes:  # the last token has no entry
            low = middle
        else:
            high = middle - 1
    return low if low > 1 else 0


def _longest_by_division(config: Config, memory_bytes: int, weight_bytes: int, dtype_bytes: int) -> int:
    """Divide what is left: by all layers as long as windows fill, then by those that keep everything."""
    left, limit = memory_bytes - weight_bytes, config["max_position_embeddings"]
    of_a_layer = _rank_reference({**config, "num_hidden_layers": 1}, 1, dtype_bytes)
    kinds = config.get("layer_types") or [_FULL] * config["num_hidden_layers"]
    full, windows, window = kinds.count(_FULL), kinds.count(_WINDOW), config.get("sliding_window", 0)
    if left < 0:
        return 0
    entries = left // of_a_layer
    if full + windows == 0:
        return limit
    filling = entries // (full + windows)
    tokens = filling
    if windows and filling >= window:  # the windows are full
        tokens = (entries - windows * window) // full if full else limit
    return min(tokens + 1, limit) if tokens else 0


def _longest_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[dict[str, Any], int, int, int]:
        num_kv_heads, num_layers = rng.choice([1, 2, 4]), rng.randint(1, 12)
        config: dict[str, Any] = {"num_hidden_layers": num_layers, "num_attention_heads": num_kv_heads}
        config["max_position_embeddings"] = rng.choice([64, 512, 2048])
        if rng.random() < 0.6:
            config["num_attention_heads"], config["num_key_value_heads"] = 4 * num_kv_heads, num_kv_heads
        config["hidden_size"] = config["num_attention_heads"] * rng.choice([4, 8])
        if rng.random() < 0.3:
            config["head_dim"] = 16
        if rng.random() < 0.6:
            config["layer_types"] = rng.choices([_FULL, _WINDOW, _STATE], k=num_layers)
            if _WINDOW in config["layer_types"]:
                config["sliding_window"] = rng.randint(1, 100)
        weights, dtype_bytes = rng.randint(0, 100_000), rng.choice([1, 2, 4])
        per_token = _rank_reference(config, 1, dtype_bytes)
        return config, weights + rng.randint(0, 1500) * per_token + rng.randint(-1, 1), weights, dtype_bytes

    about = "What does a token take in one layer, and how many tokens does each layer keep?"
    known = [Case(tuple(case), f"{why[0].upper()}{why[1:]}.") for *case, why in _LONGEST_CASES]
    return known + random_cases(5, 60, make, about)


def _longest_without(name: str) -> Callable[..., int]:
    """Answer as if a field were not in the file."""

    def answer(config: Config, memory_bytes: int, weight_bytes: int, dtype_bytes: int) -> int:
        left = {key: value for key, value in config.items() if key != name}
        return _longest_reference(left, memory_bytes, weight_bytes, dtype_bytes)

    return answer


def _longest_with_all_stored(config: Config, memory_bytes: int, weight_bytes: int, dtype_bytes: int) -> int:
    longest = _longest_reference(config, memory_bytes, weight_bytes, dtype_bytes)
    unlimited = _longest_reference(
        {**config, "max_position_embeddings": 2**40}, memory_bytes, weight_bytes, dtype_bytes
    )
    return longest - 1 if longest == unlimited and longest else longest


longest_context = Exercise(
    "01.2",
    "longest_context",
    "The longest text that fits",
    cases=_longest_cases,
    reference=_longest_reference,
    oracle=_longest_by_division,
    returns="a number of tokens",
    hints=(
        "What is left beside the weights? And what does one token take in one layer?",
        "Write a function `cached(num_tokens)`: the bytes of a cache with so many tokens, summed over the layers. A "
        "layer with a window keeps `min(num_tokens, config['sliding_window'])` of them.",
        "A request of `n` tokens has `n - 1` in the cache. Look for the largest `n` up to `max_position_embeddings` "
        "for which `cached(n - 1)` fits; a loop is fast enough.",
    ),
    explanation="Windows bend the line: up to the window every layer grows, then only those with full attention. So "
    "count what a text of a given length takes, and look for the longest that fits, here by halving the range. One "
    "token more than the cache holds is possible, for the last one has no entry.",
    wrong={
        "forget the weights": lambda config, memory, weights, dtype_bytes: _longest_reference(
            config, memory, 0, dtype_bytes
        ),
        "store the last token too": _longest_with_all_stored,
        "ignore what the model allows": lambda config, memory, weights, dtype_bytes: _longest_reference(
            {**config, "max_position_embeddings": 2**40}, memory, weights, dtype_bytes
        ),
        "let every layer keep everything": _longest_without("layer_types"),
        "leave out the layers with a window": _longest_without("sliding_window"),
        "cache one entry per query head": _longest_without("num_key_value_heads"),
        "derive a head_dim that is stated": _longest_without("head_dim"),
        "assume two bytes per element": lambda config, memory, weights, dtype_bytes: _longest_reference(
            config, memory, weights, 2
        ),
    },
)
"""``answer(config, memory_bytes, weight_bytes, dtype_bytes) -> int``: most tokens of one request, output included."""

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
