"""Write down which layers vLLM makes of a configuration and the bytes of its weights, for ``test_vllm_layers.py``.

Not part of the tests, which need no vLLM. To record anew, in an environment that has vLLM (a CPU build will do):

    VLLM_TARGET_DEVICE=cpu PYTHONPATH=. python tests/record_vllm_layers.py [--new | NAME ...]

Each model is built by vLLM itself, on torch's "meta" device, so large ones need no memory either. A server of several
GPUs is played by telling one process that its group is larger: nothing is sent while a model is built. Blocks are those
of vLLM's CPU backend: multiples of 32, 128 by default.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "vllm_layers.json"
ROOT = Path(__file__).parents[1]

SMALL = {
    "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 4096, "dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
DELTA = {
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "head_dim": 64, "linear_num_key_heads": 4,
    "linear_num_value_heads": 8, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
MAMBA2 = {"mamba_n_heads": 16, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 64, "mamba_expand": 2}


def case(architecture: str, model_type: str, /, **figures: Any) -> dict[str, Any]:
    """Make a small configuration; a figure of ``None`` takes one of :data:`SMALL` away."""
    config = {**SMALL, "architectures": [architecture], "model_type": model_type, **figures}
    return {name: value for name, value in config.items() if value is not None or name == "sliding_window"}


CASES: dict[str, dict[str, Any]] = {
    "llama": case("LlamaForCausalLM", "llama"),
    "llama, tied": case("LlamaForCausalLM", "llama", tie_word_embeddings=True, head_dim=64),
    "one KV head": case("LlamaForCausalLM", "llama", num_key_value_heads=1),
    "mistral, window": case("MistralForCausalLM", "mistral", sliding_window=128),
    "mistral, no window": case("MistralForCausalLM", "mistral", sliding_window=None),
    "ministral": case("MistralForCausalLM", "ministral", head_dim=32, sliding_window=128, layer_types=MIXED),
    "mixtral": case("MixtralForCausalLM", "mixtral", num_local_experts=4, sliding_window=None),
    "mixtral, window": case("MixtralForCausalLM", "mixtral", num_local_experts=4, sliding_window=64),
    "qwen2": case("Qwen2ForCausalLM", "qwen2", sliding_window=128, use_sliding_window=False),
    "qwen2, window": case(
        "Qwen2ForCausalLM", "qwen2", sliding_window=128, use_sliding_window=True, max_window_layers=0
    ),
    "qwen2, window from 4": case(
        "Qwen2ForCausalLM", "qwen2", sliding_window=128, use_sliding_window=True, max_window_layers=4
    ),
    "qwen2_moe, mixed": case(
        "Qwen2MoeForCausalLM", "qwen2_moe", sliding_window=128, use_sliding_window=True, max_window_layers=2,
        shared_expert_intermediate_size=128, **EXPERTS,
    ),
    "qwen3": case("Qwen3ForCausalLM", "qwen3", head_dim=64),
    "qwen3_moe": case("Qwen3MoeForCausalLM", "qwen3_moe", head_dim=64, **EXPERTS),
    "gemma": case("GemmaForCausalLM", "gemma", head_dim=64),
    "gemma2": case("Gemma2ForCausalLM", "gemma2", head_dim=64, sliding_window=128),
    "gemma3_text": case("Gemma3ForCausalLM", "gemma3_text", head_dim=64, sliding_window=128, num_hidden_layers=7),
    "gpt_oss": case(
        "GptOssForCausalLM", "gpt_oss", head_dim=64, sliding_window=128, num_local_experts=4, num_hidden_layers=5
    ),
    "phi3": case("Phi3ForCausalLM", "phi3", sliding_window=100),
    "phimoe": case("PhiMoEForCausalLM", "phimoe", sliding_window=100, num_local_experts=4),
    "cohere": case("CohereForCausalLM", "cohere"),
    "cohere2": case("Cohere2ForCausalLM", "cohere2", sliding_window=100),
    "exaone4": case(
        "Exaone4ForCausalLM", "exaone4", sliding_window=100, layer_types=MIXED, sliding_window_pattern=None
    ),
    "granite": case("GraniteForCausalLM", "granite"),
    "granitemoe": case("GraniteMoeForCausalLM", "granitemoe", num_local_experts=4),
    "nemotron": case("NemotronForCausalLM", "nemotron"),
    "stablelm": case("StableLmForCausalLM", "stablelm"),
    "glm4": case("Glm4ForCausalLM", "glm4", head_dim=32),
    "glm4_moe": case(
        "Glm4MoeForCausalLM", "glm4_moe", head_dim=32, n_routed_experts=4, moe_intermediate_size=128, n_shared_experts=1
    ),
    "olmoe": case("OlmoeForCausalLM", "olmoe", num_experts=4),
    "ernie4_5": case("Ernie4_5ForCausalLM", "ernie4_5"),
    "opt": case(
        "OPTForCausalLM", "opt", ffn_dim=512, word_embed_proj_dim=256, num_key_value_heads=None, intermediate_size=None
    ),
    "gpt2": case(
        "GPT2LMHeadModel", "gpt2", num_key_value_heads=None, intermediate_size=None, activation_function="gelu"
    ),
    "falcon": case("FalconForCausalLM", "falcon", num_key_value_heads=None, multi_query=True),
    "starcoder2": case("Starcoder2ForCausalLM", "starcoder2", sliding_window=128),
    "smollm3": case("SmolLM3ForCausalLM", "smollm3"),
    "olmo2": case("Olmo2ForCausalLM", "olmo2"),
    "olmo3": case("Olmo3ForCausalLM", "olmo3", sliding_window=128),
    "deepseek_v2": case(
        "DeepseekV2ForCausalLM", "deepseek_v2", kv_lora_rank=64, q_lora_rank=None, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1,
        topk_group=1, moe_intermediate_size=128, first_k_dense_replace=1, num_key_value_heads=8,
    ),
    "deepseek_v3": case(
        "DeepseekV3ForCausalLM", "deepseek_v3", kv_lora_rank=64, q_lora_rank=96, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1,
        topk_group=1, moe_intermediate_size=128, first_k_dense_replace=1, num_key_value_heads=8,
    ),
    "glm4_moe_lite": case(
        "Glm4MoeLiteForCausalLM", "glm4_moe_lite", kv_lora_rank=64, q_lora_rank=96, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1,
        topk_group=1, moe_intermediate_size=128, first_k_dense_replace=1, num_key_value_heads=8,
    ),
    "qwen3_next": case("Qwen3NextForCausalLM", "qwen3_next", shared_expert_intermediate_size=128, **DELTA, **EXPERTS),
    "qwen3_5": case("Qwen3_5ForCausalLM", "qwen3_5_text", mamba_ssm_dtype="float32", **DELTA),
    "olmo_hybrid": case("OlmoHybridForCausalLM", "olmo_hybrid", **{**DELTA, "head_dim": None}),
    "granitemoehybrid": case(
        "GraniteMoeHybridForCausalLM", "granitemoehybrid", mamba_d_conv=4, num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=128, layer_types=["mamba", "mamba", "attention", "mamba"],
        position_embedding_type="nope", **MAMBA2,
    ),
    "nemotron_h": case(
        "NemotronHForCausalLM", "nemotron_h", num_hidden_layers=6, hybrid_override_pattern="M-M*M-", head_dim=64,
        mamba_num_heads=16, mamba_head_dim=32, n_groups=4, ssm_state_size=64, conv_kernel=4, mlp_hidden_act="relu2",
    ),
    "falcon_h1": case(
        "FalconH1ForCausalLM", "falcon_h1", head_dim=64, mamba_d_conv=4, mamba_d_ssm=512, mamba_chunk_size=64, **MAMBA2,
    ),
    "jamba": case(
        "JambaForCausalLM", "jamba", attn_layer_period=4, attn_layer_offset=2, mamba_d_state=16, mamba_d_conv=4,
        mamba_expand=2, mamba_dt_rank=16, num_experts=4, expert_layer_period=2, expert_layer_offset=1,
    ),
    "lfm2": case(
        "Lfm2ForCausalLM", "lfm2", layer_types=["conv", "full_attention", "conv", "full_attention"], conv_L_cache=3,
        conv_dim=256, conv_bias=False, block_dim=256, block_ff_dim=512, block_multiple_of=32,
        block_auto_adjust_ff_dim=False,
    ),
}  # fmt: skip

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"tensor_parallel_size": 2},
    {"tensor_parallel_size": 8},
    {"block_size": 64},
    {"enable_prefix_caching": False},
    {"kv_cache_dtype": "fp8"},
)


def large() -> dict[str, dict[str, Any]]:
    """Well-known models in full size, by the tool that counts them."""
    spec = importlib.util.spec_from_file_location("known_models", ROOT / "tools" / "known_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = {
        "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
        "phi3": "Phi3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "mistral": "MistralForCausalLM",
        "mixtral": "MixtralForCausalLM",
        "gemma2": "Gemma2ForCausalLM", "opt": "OPTForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM",
        "qwen3_next": "Qwen3NextForCausalLM",
    }  # fmt: skip
    return {
        name: {**config, "architectures": [classes[config["model_type"]]]}
        for name, (config, _) in module.MODELS.items()
        if config["model_type"] in classes
    }


def main() -> None:
    """Record all models, or those that are named."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype

    wanted = sys.argv[1:]
    recorded = json.loads(RECORDED.read_text()) if wanted and RECORDED.exists() else {}
    if wanted == ["--new"]:
        wanted = [name for name in CASES | large() if name not in recorded]

    def build(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        tp = settings.get("tensor_parallel_size", 1)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            others = {name: value for name, value in settings.items() if name != "tensor_parallel_size"}
            others.setdefault("enable_prefix_caching", True)
            vllm_config = EngineArgs(
                model=folder, skip_tokenizer_init=True, load_format="dummy", max_model_len=2048, **others
            ).create_engine_config()
        vllm_config.parallel_config.tensor_parallel_size = tp
        with set_current_vllm_config(vllm_config):
            if not parallel_state.model_parallel_is_initialized():
                store = f"file://{tempfile.mkdtemp()}/store"
                parallel_state.init_distributed_environment(1, 0, store, 0, backend="gloo")
                parallel_state.initialize_model_parallel(1, 1)
                parallel_state._EP = parallel_state._EP or parallel_state.get_tp_group()  # made for mixtures only
            parallel_state.get_tp_group().world_size = tp
            vllm_config.model_config.verify_with_parallel_config(vllm_config.parallel_config)
            with set_default_torch_dtype(vllm_config.model_config.dtype), torch.device("meta"):
                model = initialize_model(vllm_config=vllm_config)
            current_platform.update_block_size_for_backend(vllm_config)
            layers = vllm_config.compilation_config.static_forward_context
            specs = {
                name: layer.get_kv_cache_spec(vllm_config)
                for name, layer in layers.items()
                if hasattr(layer, "get_kv_cache_spec")
            }
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return {
            "layers": [told(name, spec) for name, spec in specs.items() if spec is not None],
            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        }

    def told(name: str, spec: Any) -> list[Any]:
        index = next(int(part) for part in name.split(".") if part.isdigit())
        more = {
            field: getattr(spec, field)
            for field in ("sliding_window", "attention_chunk_size", "num_prefill_checkpoint_blocks")
            if getattr(spec, field, None)
        }
        return [index, type(spec).__name__, spec.block_size, spec.page_size_bytes, more]

    for name, config in (CASES | large()).items():
        if wanted and name not in wanted:
            continue
        runs: list[Any] = []
        for settings in SETTINGS if name in CASES else SETTINGS[:3]:
            try:
                runs.append([settings, build(config, settings)])
            except Exception as error:  # what vLLM refuses is worth knowing too
                runs.append([settings, {"error": " ".join(str(error).split())[:300]}])
            print(name, settings, str(runs[-1][1])[:250], file=sys.stderr, flush=True)
        recorded[name] = {"config": config, "runs": runs}
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in recorded.items())
        RECORDED.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
