"""Exercise 3 of chapter 11: what latents take under tensor parallelism, beside grouped-query attention."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import same
from pagedattn_lab.kv_cache_groups import fit_check, kv_cache_groups
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, KVCacheSpec, MLAAttentionSpec, RequestLimits

Config = Mapping[str, int]
Budget = dict[str, Any]

_GIB = 2**30


def _latent_budget(
    latent: Config, grouped: Config, tensor_parallel_size: int, available: int, block_size: int
) -> Budget:
    def of_grouped(num_gpus: int) -> int:
        heads = max(1, grouped["num_key_value_heads"] // num_gpus)
        return grouped["num_hidden_layers"] * heads * 2 * grouped["head_dim"] * 2

    of_latent = latent["num_hidden_layers"] * (latent["kv_lora_rank"] + latent["qk_rope_head_dim"]) * 2
    per_token = of_latent, of_grouped(tensor_parallel_size)
    num_blocks = [available // (block_size * num_bytes) for num_bytes in per_token]
    sizes = (2**power for power in range(grouped["num_key_value_heads"].bit_length()))
    return {
        "bytes_per_token": per_token,
        "tokens": tuple(max(0, number - 1) * block_size for number in num_blocks),
        "even_at": next((size for size in sizes if of_grouped(size) <= of_latent), None),
    }


def _by_the_library(
    latent: Config, grouped: Config, tensor_parallel_size: int, available: int, block_size: int
) -> Budget:
    """Let the library make the layers of one GPU, and count what they take."""

    def fitting(spec: KVCacheSpec, config: Config) -> tuple[int, int]:
        groups = kv_cache_groups({f"layers.{i}": spec for i in range(config["num_hidden_layers"])})
        per_token = config["num_hidden_layers"] * spec.page_size_bytes // block_size
        longest = max(1, available // per_token)
        return per_token, fit_check(groups, available, RequestLimits(longest, longest)).largest_model_len

    def of_grouped(num_gpus: int) -> KVCacheSpec:
        heads = max(1, grouped["num_key_value_heads"] // num_gpus)
        return FullAttentionSpec(block_size, heads, grouped["head_dim"], "bfloat16")

    width = latent["kv_lora_rank"] + latent["qk_rope_head_dim"]
    found = [
        fitting(MLAAttentionSpec(block_size, width, "bfloat16"), latent),
        fitting(of_grouped(tensor_parallel_size), grouped),
    ]
    enough = (size for size in (1, 2, 4, 8, 16, 32, 64, 128) if fitting(of_grouped(size), grouped)[0] <= found[0][0])
    return {
        "bytes_per_token": tuple(per_token for per_token, _ in found),
        "tokens": tuple(tokens // block_size * block_size for _, tokens in found),
        "even_at": next(enough, None),
    }


def _latent_config(num_layers: int, num_heads: int, rank: int = 512, rope: int = 64, nope: int = 128) -> Config:
    heads = {"num_hidden_layers": num_layers, "num_attention_heads": num_heads, "num_key_value_heads": num_heads}
    return heads | {"kv_lora_rank": rank, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": nope}


def _grouped_config(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int = 128) -> Config:
    heads = {"num_hidden_layers": num_layers, "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads}
    return heads | {"head_dim": head_dim}


_DEEPSEEK_V3 = _latent_config(61, 128)
_LLAMA_8B, _LLAMA_70B = _grouped_config(32, 32, 8), _grouped_config(80, 64, 8)


def _latent_cases() -> list[Case]:
    tiny, two = _latent_config(2, 4, 6, 2, 4), _grouped_config(2, 4, 2, 8)
    known = [
        Case(
            (tiny, two, 1, 4096, 4), "A latent is 6 + 2 numbers wide, whatever the heads. One block is the null block."
        ),
        Case((tiny, two, 2, 4096, 4), "Two GPUs share the KV heads of one model, and each keeps all latents."),
        Case((tiny, two, 4, 4096, 4), "Two KV heads for four GPUs: each keeps one, so some keep the same."),
        Case((tiny, two, 1, 200, 4), "Memory for one block is the null block, and memory for less is nothing."),
        Case((_latent_config(1, 4, 30, 2, 4), two, 1, 65536, 16), "The latent is as wide as both KV heads of a layer."),
        Case((_DEEPSEEK_V3, _LLAMA_70B, 1, 20 * _GIB, 64), "DeepSeek-V3 beside Llama-3.1-70B, on one GPU."),
        Case((_DEEPSEEK_V3, _LLAMA_70B, 8, 20 * _GIB, 64), "The same on eight GPUs: one of these two is not split."),
        Case((_DEEPSEEK_V3, _LLAMA_70B, 16, 20 * _GIB, 64), "Sixteen GPUs, eight KV heads."),
        Case((_latent_config(27, 16), _LLAMA_8B, 1, 10 * _GIB, 64), "DeepSeek-V2-Lite beside Llama-3.1-8B."),
        Case(
            (_DEEPSEEK_V3, _LLAMA_8B, 2, 20 * _GIB, 64), "Against fewer layers a latent is not always the smaller one."
        ),
    ]

    def make(rng: random.Random) -> tuple[Any, ...]:
        rank = rng.randint(4, 160)
        latent = _latent_config(
            rng.randint(1, 9), 2 ** rng.randint(0, 4), rank, rng.randint(1, rank), rng.randint(1, 9)
        )
        kv_heads = 2 ** rng.randint(0, 4)
        grouped = _grouped_config(rng.randint(1, 9), kv_heads * 2 ** rng.randint(0, 2), kv_heads, rng.randint(4, 40))
        num_gpus, block_size = 2 ** rng.randint(0, 5), rng.choice([1, 8, 16, 64])
        return latent, grouped, num_gpus, rng.randint(0, 2_000_000), block_size

    return known + random_cases(43, 80, make, "Two small models, on some GPUs.")


_SAY = {
    "bytes_per_token": "of the latent, count one vector a layer; of the other, a key and a value for each head that a "
    "GPU has.",
    "tokens": "count whole blocks of each model, and take the null block off.",
    "even_at": "compare what a token takes on one GPU, for 1, 2, 4, … GPUs; a head is the least that a GPU has.",
}


def _look_at_budget(_: tuple[Any, ...], expected: Budget, got: Budget) -> str | None:
    if got is None:
        return None
    return next((f"“{name}”: {words}" for name, words in _SAY.items() if not same(expected[name], got[name])), None)


def _with_a_mistake(mistake: str) -> Callable[..., Budget]:
    """Count like the reference, with one mistake."""

    def latent_budget(
        latent: Config, grouped: Config, tensor_parallel_size: int, available: int, block_size: int
    ) -> Budget:
        def of_grouped(num_gpus: int) -> int:
            heads = grouped["num_attention_heads" if mistake == "query heads" else "num_key_value_heads"]
            whole = grouped["num_hidden_layers"] * grouped["head_dim"] * 2 * (1 if mistake == "keys" else 2)
            return whole * heads // num_gpus if mistake == "parts" else whole * max(1, heads // num_gpus)

        def of_latent(num_gpus: int) -> int:
            width = latent["kv_lora_rank"] + (0 if mistake == "no positions" else latent["qk_rope_head_dim"])
            if mistake == "expanded":
                of_a_head = latent["qk_nope_head_dim"] + latent["qk_rope_head_dim"] + latent["v_head_dim"]
                width = of_a_head * max(1, latent["num_key_value_heads"] // num_gpus)
            whole = latent["num_hidden_layers"] * width * 2 * (2 if mistake == "twice" else 1)
            return whole // num_gpus if mistake == "split" else whole

        per_token = of_latent(tensor_parallel_size), of_grouped(tensor_parallel_size)

        def tokens(per_token: int) -> int:
            if mistake == "no blocks":
                return max(0, available // per_token - block_size)
            null = mistake != "no null block"
            return max(0, available // (block_size * per_token) - null) * block_size

        sizes = (2**power for power in range(8))
        even_at = next((size for size in sizes if of_grouped(size) <= of_latent(size)), None)
        return {"bytes_per_token": per_token, "tokens": tuple(map(tokens, per_token)), "even_at": even_at}

    return latent_budget


latent_budget = Exercise(
    "11.3",
    "latent_budget",
    "A latent's budget",
    cases=_latent_cases,
    reference=_latent_budget,
    oracle=_by_the_library,
    returns='a dictionary with "bytes_per_token", "tokens" and "even_at"',
    look=_look_at_budget,
    pure=True,
    hints=(
        "A latent is the key and the value of all heads. How often does a layer keep it, and what in `config.json` "
        "says how wide it is?",
        "It takes `(kv_lora_rank + qk_rope_head_dim) * 2` bytes a layer, on every GPU. The other takes a key and a "
        "value of `head_dim` numbers for each of `max(1, num_key_value_heads // tensor_parallel_size)` heads.",
        "Tokens: `max(0, available // (block_size * bytes_per_token) - 1) * block_size`. For `even_at` ask 1, 2, 4, … "
        "GPUs up to `num_key_value_heads`; from there on a token takes no fewer bytes.",
    ),
    explanation="A latent is small because it holds what all heads share, and for the same reason it cannot be dealt "
    "out to them: each GPU of a tensor-parallel group keeps a copy. Keys and values of grouped-query attention are "
    "dealt out, until each GPU has one head. So the two may draw level at some number of GPUs, and from there on the "
    "model with latents has room for fewer tokens on a GPU. Servers of such models can share out requests in the place "
    "of heads in their attention layers: then each GPU keeps latents of its own. "
    "To read on: the paper on DeepSeek-V2 (arXiv 2405.04434, section 2.1), and vLLM's page on "
    "data parallel deployment.",
    wrong={
        "split the latent over the GPUs": _with_a_mistake("split"),
        "leave out the part with positions": _with_a_mistake("no positions"),
        "count a latent twice, for key and value": _with_a_mistake("twice"),
        "keep each head's keys and values, which are made from the latent": _with_a_mistake("expanded"),
        "split a KV head over GPUs": _with_a_mistake("parts"),
        "keep keys only": _with_a_mistake("keys"),
        "count query heads": _with_a_mistake("query heads"),
        "count tokens one by one, not in blocks": _with_a_mistake("no blocks"),
        "forget the null block": _with_a_mistake("no null block"),
    },
)
"""Two budgets: ``latent_budget(latent, grouped, tensor_parallel_size, available, block_size)`` -> a dictionary."""
