"""Write down what vLLM's own planning makes of random layers and memory, for ``test_vllm_budget.py`` to compare.

Not part of the tests, which need no vLLM. To record anew, in an environment that has vLLM (a CPU build will do):

    VLLM_TARGET_DEVICE=cpu python tests/record_vllm_budget.py

Each run is one model, one server and the memory of its ranks: what groups vLLM forms, how many blocks, tokens and
requests fit, what it says if one request does not fit, and what length ``--max-model-len auto`` comes to. Layers are
written as arguments of our own specs; ``to_vllm`` makes vLLM's of them.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

RECORDED = Path(__file__).parent / "vllm_budget.json"
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 16,
    "max_position_embeddings": 1 << 22, "torch_dtype": "float32",
}  # fmt: skip
DTYPES = ("bfloat16", "bfloat16", "bfloat16", "float32", "float8_e4m3fn", "fp8_per_token_head", "nvfp4")
TOO_SMALL = re.compile(
    r"max seq len \((\d+)\), \(([\d.]+) GiB KV cache is needed, .* memory \((-?[\d.]+) GiB\)\."
    r"(?: Based on the available memory, the estimated maximum model length is (\d+)\.)?"
)


def to_vllm(spec: str, extra_retained_tokens: int = 0, **fields: Any) -> Any:
    """Make vLLM's spec of the arguments of ours. Scales and packing are what its backends publish."""
    import torch
    from vllm.model_executor.layers.attention.mla_attention import MLACommonBackend
    from vllm.utils.torch_utils import nvfp4_kv_cache_full_dim
    from vllm.v1 import kv_cache_interface as interface
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    made = getattr(interface, spec)
    if spec == "MambaSpec":
        return made(shapes=((fields.pop("state_bytes"),),), dtypes=(torch.int8,), **fields)
    dtype = fields.pop("dtype")
    mode = interface.KVQuantMode.NONE
    if dtype == "fp8_per_token_head":
        mode, dtype = interface.KVQuantMode.FP8_PER_TOKEN_HEAD, "float8_e4m3fn"
    elif dtype == "nvfp4":
        full_dim = nvfp4_kv_cache_full_dim(fields["head_size"])
        fields |= {"num_head_slots": 2 * fields["num_kv_heads"], "state_content_bytes": full_dim}
        mode, dtype = interface.KVQuantMode.NVFP4, "uint8"
    if spec == "MLAAttentionSpec":
        fields["num_kv_heads"] = 1
    layer = made(dtype=getattr(torch, dtype), kv_quant_mode=mode, **fields)
    backend = MLACommonBackend if spec == "MLAAttentionSpec" else TritonAttentionBackend
    return backend.customize_spec(layer)


class Model:
    """Random layers: the kinds there are, and which layer is of which."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.block_size = rng.choice([16, 16, 16, 32, 64, 128, 784])
        self.dtype = rng.choice(DTYPES)
        self.heads, self.width = rng.choice([1, 2, 3, 8]), rng.choice([64, 128, 256])
        self.kinds: list[dict[str, Any]] = []
        self.layers: list[int] = []
        build = rng.choice(
            [self.alike, self.windows, self.windows, self.chunks, self.latents, self.states, self.only_windows]
        )
        build()
        if rng.random() < 0.35:
            self.drafter()

    def attention(self, spec: str = "FullAttentionSpec", **fields: Any) -> dict[str, Any]:
        common = {
            "block_size": self.block_size,
            "num_kv_heads": self.heads,
            "head_size": self.width,
            "dtype": self.dtype,
        }
        return {"spec": spec, **common, **fields}

    def pattern(self, kinds: list[dict[str, Any]], share: int) -> None:
        """One layer of the first kind after each ``share`` of the others, by turns or by chance."""
        self.kinds = kinds
        length = self.rng.randint(2, 40)
        for number in range(length):
            other = self.rng.randint(1, len(kinds) - 1) if len(kinds) > 1 else 0
            self.layers.append(0 if number % (share + 1) == share else other)

    def alike(self) -> None:
        kinds = [self.attention()]
        if self.rng.random() < 0.3:
            kinds.append(self.attention(head_size_v=64) if self.dtype != "nvfp4" else self.attention(num_kv_heads=4))
        self.pattern(kinds, 1)

    def windows(self) -> None:
        kinds = [
            self.attention(),
            self.attention("SlidingWindowSpec", sliding_window=self.rng.choice([128, 129, 1000, 4097])),
        ]
        if self.rng.random() < 0.3:
            kinds.append(self.attention("SlidingWindowSpec", sliding_window=512))
        if self.rng.random() < 0.3:
            kinds[1] |= {"num_kv_heads": self.heads * self.rng.choice([2, 3]), "head_size": 64}
        self.pattern(kinds, self.rng.choice([1, 1, 3, 5]))

    def only_windows(self) -> None:
        widths = self.rng.choice([[4097], [4096, 1025], [100, 200, 300]])
        self.pattern([self.attention("SlidingWindowSpec", sliding_window=width) for width in widths], 1)

    def chunks(self) -> None:
        self.pattern([self.attention(), self.attention("ChunkedLocalAttentionSpec", attention_chunk_size=8192)], 3)

    def latents(self) -> None:
        self.dtype = self.rng.choice(["bfloat16", "float8_e4m3fn", "fp8_per_token_head"])
        latent = {"spec": "MLAAttentionSpec", "block_size": self.block_size, "head_size": 576, "dtype": self.dtype}
        other = self.rng.choice([None, "wide", "wide", "window", "window", "chunk", "state"])
        kinds = [latent]
        if other == "wide":
            kinds.append({**latent, "head_size": self.rng.choice([288, 132])})
        elif other == "window":
            kinds.append(self.attention("SlidingWindowSpec", sliding_window=2048))
        elif other == "chunk":
            kinds.append(self.attention("ChunkedLocalAttentionSpec", attention_chunk_size=2048))
        elif other == "state":
            page = to_vllm(**latent).page_size_bytes
            kinds.append({"spec": "MambaSpec", "block_size": self.block_size, "state_bytes": page - 1})
        self.pattern(kinds, 1)

    def states(self) -> None:
        kinds = [self.attention()]
        page = to_vllm(**kinds[0]).page_size_bytes
        state = {
            "spec": "MambaSpec",
            "block_size": self.block_size,
            "state_bytes": max(1, page * self.rng.choice([1, 3, 4]) // 4),
            "page_size_padded": page if self.rng.random() < 0.8 else None,
            "num_speculative_blocks": self.rng.choice([0, 0, 2]),
            "num_prefill_checkpoint_blocks": self.rng.choice([0, 0, 1]),
        }
        self.pattern([*kinds, state], self.rng.choice([1, 3, 7]))

    def drafter(self) -> None:
        """Layers of another size at the end: one, or a few."""
        dtype = self.dtype if self.rng.random() < 0.7 else "bfloat16"
        kind = self.attention(
            num_kv_heads=self.rng.choice([self.heads, 2, 5]), head_size=self.rng.choice([self.width, 64])
        )
        kind["dtype"] = dtype
        if self.rng.random() < 0.3:
            kind |= {"spec": "SlidingWindowSpec", "sliding_window": 2048}
        self.kinds.append(kind)
        self.layers += [len(self.kinds) - 1] * self.rng.choice([1, 1, 3])


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    from vllm.v1.core import kv_cache_planning

    said: list[str] = []
    with mock.patch.object(kv_cache_planning.logger, "warning", lambda text, *values: said.append(text % values)):
        yield said


def make_config() -> Any:
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(MODEL))
        model_config = ModelConfig(model=folder, skip_tokenizer_init=True, dtype="float32")
    return VllmConfig(
        model_config=model_config,
        cache_config=CacheConfig(block_size=16, enable_prefix_caching=False),
        scheduler_config=SchedulerConfig(
            max_model_len=8192, is_encoder_decoder=False, max_num_batched_tokens=8192, max_num_seqs=256
        ),
    )


def plan(config: Any, ranks: list[dict[str, Any]], memory: list[int], groups: list[Any]) -> dict[str, Any]:
    """Let vLLM plan, and take down the capacity or what it says if there is none."""
    from vllm.v1.core.kv_cache_planning import get_kv_cache_configs
    from vllm.v1.core.kv_cache_utils import generate_scheduler_kv_cache_config, get_kv_cache_capacity

    try:
        configs = get_kv_cache_configs(config, ranks, memory, groups)
    except ValueError as error:
        said = TOO_SMALL.search(str(error))
        if said:
            return {"too_small": [said[2], said[3], int(said[4] or 0)]}
        assert "No available memory" in str(error) or "even a single token" in str(error), error
        return {"too_small": None}
    tokens, concurrency = get_kv_cache_capacity(config, generate_scheduler_kv_cache_config(configs))
    return {"num_blocks": configs[0].num_blocks, "kv_tokens": tokens, "max_concurrency": concurrency}


def record(config: Any, seed: int) -> dict[str, Any]:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_planning import (
        _pool_bytes_per_block,
        _project_kv_cache_groups_to_worker,
        get_global_kv_cache_groups,
    )

    rng = random.Random(seed)
    model = Model(rng)
    extra_retained = rng.choice([0, 0, 0, 2])
    for kind in model.kinds:
        if kind["spec"] == "SlidingWindowSpec" and extra_retained:
            kind["extra_retained_tokens"] = extra_retained
    cuts = sorted(rng.sample(range(1, len(model.layers)), min(rng.choice([0, 0, 0, 1, 2]), len(model.layers) - 1)))
    bounds = [0, *cuts, len(model.layers)]
    max_model_len = rng.choice([100, 2048, 8192, 40960, 131072])
    run: dict[str, Any] = {
        "kinds": model.kinds,
        "layers": model.layers,
        "bounds": bounds,
        "hybrid_kv_cache_manager": rng.random() < 0.85,
        "max_model_len": max_model_len,
        "mamba_cache_mode": rng.choice(["none", "align"]),
        "override": rng.choice([None, None, None, None, 500]),
    }
    config.model_config.max_model_len = config.model_config.original_max_model_len = max_model_len
    config.scheduler_config.max_num_batched_tokens = rng.choice([512, 2048, 8192])
    config.scheduler_config.async_scheduling = rng.random() < 0.5
    config.scheduler_config.disable_hybrid_kv_cache_manager = not run["hybrid_kv_cache_manager"]
    config.cache_config.kv_cache_layout = "LBNHC"
    config.cache_config.mamba_cache_mode = run["mamba_cache_mode"]
    config.cache_config.num_gpu_blocks_override = run["override"]
    run["max_in_flight_tokens"] = config.max_in_flight_tokens

    specs = [to_vllm(**kind) for kind in model.kinds]
    names = [f"layers.{number}" for number in range(len(model.layers))]
    ranks = [
        {names[number]: specs[model.layers[number]] for number in range(first, last)}
        for first, last in pairwise(bounds)
    ]
    lookahead = property(lambda _: extra_retained + 1)
    with mock.patch.object(VllmConfig, "num_prefill_lookahead_tokens", lookahead), noted_warnings() as said:
        try:
            groups = get_global_kv_cache_groups(config, ranks)
        except (AssertionError, NotImplementedError, ValueError) as error:
            return {**run, "refused": type(error).__name__}
        run["padding"] = [text for text in said if "padding" in text]
        run["groups"] = [[names.index(name) for name in group.layer_names] for group in groups]
        run["block_sizes"] = [group.kv_cache_spec.block_size for group in groups]
        projected = [_project_kv_cache_groups_to_worker(groups, rank) for rank in ranks]
        run["bytes_per_block"] = [_pool_bytes_per_block(config, groups) for groups in projected]
        blocks = rng.choice([1, 3, 40, 1000, 20000, 20000, 300000])
        run["available_bytes"] = [
            width * blocks + rng.randint(0, width * rng.choice([0, 1, 50])) for width in run["bytes_per_block"]
        ]
        run["planned"] = plan(config, ranks, run["available_bytes"], groups)
        config.model_config.original_max_model_len = -1
        run["auto"] = plan(config, ranks, run["available_bytes"], groups)
        run["auto"]["max_model_len"] = config.model_config.max_model_len
    return run


def main() -> None:
    """Record four hundred plans."""
    import vllm

    config = make_config()
    runs = ",\n".join(json.dumps(record(config, seed), separators=(",", ":")) for seed in range(400))
    RECORDED.write_text(f'{{"vllm": "{vllm.__version__}", "runs": [\n{runs}\n]}}\n')
    print(f"wrote {RECORDED}")


if __name__ == "__main__":
    main()
