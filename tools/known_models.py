"""Write ``pagedattn_lab/budget/known_models.json``: the figures of well-known models and how many parameters they have.

    python tools/known_models.py            # write the file
    python tools/known_models.py --check    # say what would change

A configuration holds the figures that size a model, as its publisher gives them in the ``config.json`` on the Hugging
Face Hub, under the id given. What is left out is what the model's class in transformers takes by default. Parameters
are counted by building the model without memory, on torch's "meta" device. The number beside a configuration is what
the publisher's safetensors files count, without layers that only guess tokens ahead (MTP) and without buffers. The
script writes nothing if the count does not come out at it. 0 stands where no such number is at hand: OPT-66B and 175B
are in other formats (their figures: Zhang et al. 2022, "OPT: Open Pre-trained Transformer Language Models", table 1),
and the files of Qwen3.5-27B, 55.56 GB, hold one MTP layer besides.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "pagedattn_lab" / "budget" / "known_models.json"


def decoder(kind: str, layers: int, hidden: int, inner: int, heads: int, kv: int, vocab: int, **more: Any) -> dict:
    """Name the figures that every decoder has; a dtype of bfloat16 is the rule."""
    return {
        "model_type": kind, "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab, "dtype": "bfloat16", **more,
    }  # fmt: skip


def opt(layers: int, hidden: int, heads: int) -> dict:
    """Name the figures of an OPT."""
    return {
        "model_type": "opt", "num_hidden_layers": layers, "hidden_size": hidden, "word_embed_proj_dim": hidden,
        "ffn_dim": 4 * hidden, "num_attention_heads": heads, "vocab_size": 50272, "max_position_embeddings": 2048,
        "dtype": "float16",
    }  # fmt: skip


def llama3(layers: int, hidden: int, inner: int, heads: int, **more: Any) -> dict:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
    return decoder("llama", layers, hidden, inner, heads, 8, 128256, max_position_embeddings=131072, rope_scaling=rope,
                   rope_theta=500000.0, **more)  # fmt: skip


def qwen3(layers: int, hidden: int, inner: int, heads: int, kv: int = 8, **more: Any) -> dict:
    more = {"model_type": "qwen3", "max_position_embeddings": 40960, "head_dim": 128, **more}
    return decoder(more.pop("model_type"), layers, hidden, inner, heads, kv, 151936, **more)


def qwen2_5(context: int) -> dict:
    return decoder("qwen2", 28, 3584, 18944, 28, 4, 152064, max_position_embeddings=context, sliding_window=131072,
                   use_sliding_window=False, max_window_layers=28)  # fmt: skip


def gemma2(layers: int, hidden: int, inner: int, heads: int, kv: int, head_dim: int) -> dict:
    return decoder("gemma2", layers, hidden, inner, heads, kv, 256000, head_dim=head_dim, sliding_window=4096,
                   max_position_embeddings=8192)  # fmt: skip


def gemma3(layers: int, hidden: int, inner: int, heads: int, kv: int, head_dim: int) -> dict:
    text = decoder("gemma3_text", layers, hidden, inner, heads, kv, 262208, head_dim=head_dim, sliding_window=1024,
                   max_position_embeddings=131072)  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 896,
              "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
              "vision_use_head": False}  # fmt: skip
    return {"model_type": "gemma3", "text_config": text, "vision_config": vision, "dtype": "bfloat16"}


def gpt_oss(layers: int, experts: int) -> dict:
    return decoder("gpt_oss", layers, 2880, 2880, 64, 8, 201088, head_dim=64, num_local_experts=experts,
                   sliding_window=128, max_position_embeddings=131072,
                   quantization_config={"quant_method": "mxfp4"})  # fmt: skip


LLAMA4_SCOUT: dict[str, Any] = {
    "model_type": "llama4", "dtype": "bfloat16",
    "text_config": decoder(
        "llama4_text", 48, 5120, 8192, 40, 8, 202048, head_dim=128, intermediate_size_mlp=16384, num_local_experts=16,
        max_position_embeddings=10485760, attention_chunk_size=8192, interleave_moe_layer_step=1,
    ),
    "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 1408, "intermediate_size": 5632,
                      "num_attention_heads": 16, "num_hidden_layers": 34, "image_size": 336, "patch_size": 14,
                      "projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 4096},
}  # fmt: skip

QWEN3_5_27B = {
    "model_type": "qwen3_5", "dtype": "bfloat16", "tie_word_embeddings": False,
    "text_config": decoder(
        "qwen3_5_text", 64, 5120, 17408, 24, 4, 248320, head_dim=256, linear_num_key_heads=16,
        linear_num_value_heads=48, linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
        mamba_ssm_dtype="float32", max_position_embeddings=262144, mtp_num_hidden_layers=1, tie_word_embeddings=False,
    ),
    "vision_config": {"model_type": "qwen3_5", "hidden_size": 1152, "intermediate_size": 4304, "depth": 27,
                      "num_heads": 16, "out_hidden_size": 5120, "patch_size": 16, "spatial_merge_size": 2,
                      "temporal_patch_size": 2, "num_position_embeddings": 2304},
}  # fmt: skip

DEEPSEEK_ROPE = {"type": "yarn", "rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
                 "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
DEEPSEEK_V2_LITE = decoder(
    "deepseek_v2", 27, 2048, 10944, 16, 16, 102400, kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, first_k_dense_replace=1, n_routed_experts=64, n_shared_experts=2,
    num_experts_per_tok=6, moe_intermediate_size=1408, n_group=1, topk_group=1, max_position_embeddings=163840,
    rope_scaling=DEEPSEEK_ROPE, tie_word_embeddings=False,
)  # fmt: skip
DEEPSEEK_V3 = decoder(
    "deepseek_v3", 61, 7168, 18432, 128, 128, 129280, kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, first_k_dense_replace=3, n_routed_experts=256, n_shared_experts=1,
    num_experts_per_tok=8, moe_intermediate_size=2048, n_group=8, topk_group=4, num_nextn_predict_layers=1,
    max_position_embeddings=163840, rope_scaling=DEEPSEEK_ROPE, tie_word_embeddings=False,
    quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                         "activation_scheme": "dynamic"},
)  # fmt: skip
QWEN3_NEXT = decoder(
    "qwen3_next", 48, 2048, 5120, 16, 2, 151936, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=32,
    linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4, num_experts=512,
    num_experts_per_tok=10, moe_intermediate_size=512, shared_expert_intermediate_size=512, decoder_sparse_step=1,
    max_position_embeddings=262144, tie_word_embeddings=False, num_nextn_predict_layers=1,
)  # fmt: skip

MODELS: dict[str, tuple[dict, int]] = {
    "meta-llama/Llama-3.1-8B": (llama3(32, 4096, 14336, 32), 8_030_261_248),
    "meta-llama/Llama-3.1-70B": (llama3(80, 8192, 28672, 64), 70_553_706_496),
    "meta-llama/Llama-3.2-1B": (llama3(16, 2048, 8192, 32, head_dim=64, tie_word_embeddings=True), 1_235_814_400),
    "meta-llama/Llama-3.2-3B": (llama3(28, 3072, 8192, 24, head_dim=128, tie_word_embeddings=True), 3_212_749_824),
    "meta-llama/Llama-4-Scout-17B-16E": (
        {**LLAMA4_SCOUT, "text_config": {**LLAMA4_SCOUT["text_config"], "max_position_embeddings": 262144}},
        108_641_793_536,
    ),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (LLAMA4_SCOUT, 108_641_793_536),
    "Qwen/Qwen2.5-7B": (qwen2_5(131072), 7_615_616_512),
    "Qwen/Qwen2.5-7B-Instruct": (qwen2_5(32768), 7_615_616_512),
    "Qwen/Qwen3-0.6B": (qwen3(28, 1024, 3072, 16, tie_word_embeddings=True), 596_049_920),
    "Qwen/Qwen3-4B": (qwen3(36, 2560, 9728, 32, tie_word_embeddings=True), 4_022_468_096),
    "Qwen/Qwen3-8B": (qwen3(36, 4096, 12288, 32), 8_190_735_360),
    "Qwen/Qwen3-14B": (qwen3(40, 5120, 17408, 40), 14_768_307_200),
    "Qwen/Qwen3-32B": (qwen3(64, 5120, 25600, 64), 32_762_123_264),
    "Qwen/Qwen3-30B-A3B": (
        qwen3(48, 2048, 6144, 32, 4, model_type="qwen3_moe", num_experts=128, num_experts_per_tok=8,
              moe_intermediate_size=768), 30_532_122_624,
    ),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (QWEN3_NEXT, 79_674_391_296),
    "Qwen/Qwen3.5-27B": (QWEN3_5_27B, 0),
    "mistralai/Mistral-7B-v0.1": (
        decoder("mistral", 32, 4096, 14336, 32, 8, 32000, sliding_window=4096, max_position_embeddings=32768),
        7_241_732_096,
    ),
    "mistralai/Mistral-7B-v0.3": (
        decoder("mistral", 32, 4096, 14336, 32, 8, 32768, sliding_window=None, max_position_embeddings=32768),
        7_248_023_552,
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        decoder("mixtral", 32, 4096, 14336, 32, 8, 32000, num_local_experts=8, max_position_embeddings=32768),
        46_702_792_704,
    ),
    "google/gemma-2-2b": (gemma2(26, 2304, 9216, 8, 4, 256), 2_614_341_888),
    "google/gemma-2-9b": (gemma2(42, 3584, 14336, 16, 8, 256), 9_241_705_984),
    "google/gemma-2-27b": (gemma2(46, 4608, 36864, 32, 16, 128), 27_227_128_320),
    "google/gemma-3-4b-it": (gemma3(34, 2560, 10240, 8, 4, 256), 4_300_079_472),
    "google/gemma-3-12b-it": (gemma3(48, 3840, 15360, 16, 8, 256), 12_187_325_040),
    "google/gemma-3-27b-it": (gemma3(62, 5376, 21504, 32, 16, 128), 27_432_406_640),
    "openai/gpt-oss-20b": (gpt_oss(24, 32), 20_914_757_184),
    "openai/gpt-oss-120b": (gpt_oss(36, 128), 116_829_156_672),
    "deepseek-ai/DeepSeek-V2-Lite": (DEEPSEEK_V2_LITE, 15_706_484_224),
    "deepseek-ai/DeepSeek-V3": (DEEPSEEK_V3, 671_026_404_352),
    "microsoft/Phi-3-mini-4k-instruct": (
        decoder("phi3", 32, 3072, 8192, 32, 32, 32064, sliding_window=2047, max_position_embeddings=4096),
        3_821_079_552,
    ),
    "microsoft/phi-4": (
        decoder("phi3", 40, 5120, 17920, 40, 10, 100352, sliding_window=None, max_position_embeddings=16384),
        14_659_507_200,
    ),
    "facebook/opt-125m": (opt(12, 768, 12), 125_239_296),
    "facebook/opt-13b": (opt(40, 5120, 40), 12_853_473_280),
    "facebook/opt-66b": (opt(64, 9216, 72), 0),
    "facebook/opt-175b": (opt(96, 12288, 96), 0),
    "HuggingFaceTB/SmolLM2-135M": (
        decoder("llama", 30, 576, 1536, 9, 3, 49152, max_position_embeddings=8192, tie_word_embeddings=True),
        134_515_008,
    ),
}  # fmt: skip

ALSO = {
    "google/gemma-3-4b-it": ["google/gemma-3-4b", "google/gemma-3-4b-pt"],
    "google/gemma-3-12b-it": ["google/gemma-3-12b", "google/gemma-3-12b-pt"],
    "google/gemma-3-27b-it": ["google/gemma-3-27b", "google/gemma-3-27b-pt"],
    "mistralai/Mistral-7B-v0.1": ["mistralai/Mistral-7B-Instruct-v0.1"],
    "mistralai/Mistral-7B-v0.3": ["mistralai/Mistral-7B-Instruct-v0.3"],
    "mistralai/Mixtral-8x7B-v0.1": ["mistralai/Mixtral-8x7B-Instruct-v0.1"],
    "Qwen/Qwen3-Next-80B-A3B-Instruct": ["Qwen/Qwen3-Next-80B-A3B-Thinking"],
    "meta-llama/Llama-3.1-8B": ["meta-llama/Meta-Llama-3.1-8B"],
    "meta-llama/Llama-3.1-70B": ["meta-llama/Llama-3.3-70B-Instruct"],
}
"""Models of exactly the same figures, under other names."""


def entry(name: str) -> dict[str, Any]:
    """Count one model and read its figures."""
    from pagedattn_lab.budget.parameters import count_parameters
    from pagedattn_lab.kv_config import text_fields

    published, total = MODELS[name]
    parameters = count_parameters(published)
    counted = parameters.total
    print(f"{name}: {counted:,} parameters", file=sys.stderr)
    if total and counted != total:
        sys.exit(f"{name}: counted {counted:,}, published {total:,}")
    fields = {key: value for key, value in text_fields(published).items() if value is not None}
    fields["dtype"] = str(fields["dtype"]).removeprefix("torch.")
    for name_of in ("rope_scaling", "per_layer_config"):  # in rope_parameters too; a view of the class
        fields.pop(name_of, None)
    return {"config": fields, "parameters": parameters.to_json(), **({"also": ALSO[name]} if name in ALSO else {})}


def main() -> None:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    models = ",\n".join(f'  "{name}": {json.dumps(entry(name), sort_keys=True)}' for name in MODELS)
    text = f'{{"source": "tools/known_models.py", "models": {{\n{models}\n}}}}\n'
    if check:
        sys.exit(0 if FILE.read_text(encoding="utf-8") == text else f"{FILE} is not what this script writes")
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
