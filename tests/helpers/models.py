"""Small random models, and what transformers makes of a prompt without our cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

SMALL = {
    "vocab_size": 99, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_routed_experts": 4, "first_k_dense_replace": 1}
LATENTS = {"num_key_value_heads": 6, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 12,
           "qk_rope_head_dim": 8, "v_head_dim": 10}  # fmt: skip

WINDOW = 7  # tokens, of those in SPECIAL that have windows

SPECIAL = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "phi3": {},
    "gpt_neox": {"num_key_value_heads": 6},
    "gpt2": {"num_key_value_heads": 6, "n_embd": 48, "n_head": 6, "n_layer": 4, "n_positions": 64},
    "olmo2": {},
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0, "num_experts": 4,
                  "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "smollm3": {},
    "gpt_oss": {"head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "mimo_v2_flash": MOE | {"head_dim": 16, "v_head_dim": 10, "layer_types": ["full_attention"] * 4},
    "deepseek_v2": LATENTS | MOE,
    "deepseek_v3": LATENTS | MOE | {"n_group": 2, "topk_group": 1},
    "minicpm3": LATENTS,
}  # fmt: skip


def tiny(kind: str, **changes: object) -> PreTrainedModel:
    """Build a small random model whose logits are far apart, computing attention eagerly (soft-capping included)."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | SPECIAL[kind] | changes))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


EPSILON = torch.finfo(torch.float32).eps
TERMS = SMALL["num_hidden_layers"] * (SMALL["hidden_size"] + SMALL["intermediate_size"] + 3 * 24 + 3 * WINDOW)
"""Terms of the dot products that a logit hangs on, layer after layer: of the projections and the experts, of a score,
of what a latent is made of and into, and of a mean over tokens. Each may be rounded in another order."""


def up_to_stop(tokens: list[int], stop_token_ids: Collection[int]) -> list[int]:
    ends = [index + 1 for index, token in enumerate(tokens) if token in stop_token_ids]
    return tokens[: ends[0]] if ends else tokens


@torch.inference_mode()
def log_probs_of(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of what follows, from all tokens at once and without any cache."""
    return model(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].float().log_softmax(-1)


def greedy(model: PreTrainedModel, prompt: Sequence[int], max_tokens: int, stop: Collection[int] = ()) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < max_tokens and (not tokens or tokens[-1] not in stop):
        tokens.append(int(log_probs_of(model, [*prompt, *tokens]).argmax()))
    return tokens


@torch.inference_mode()
def expected_logits(model: PreTrainedModel, sequences: list[list[int]]) -> torch.Tensor:
    return torch.stack([model(torch.tensor([tokens]), use_cache=False).logits[0, -1] for tokens in sequences])


def assert_logits_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Each of the :data:`TERMS` may be rounded once, and none is larger than the largest logit by much."""
    largest = float(expected.abs().max())
    assert largest > 1, "logits so close to each other show nothing"
    assert float((got - expected).abs().max()) <= EPSILON * TERMS * largest


def assert_scores_close(
    got: list[float], expected: Sequence[float], lengths: Sequence[int], terms: int, largest: float, power: float = 0.0
) -> None:
    """Compare sums of float32 log-probabilities, divided by a power of their lengths.

    A log-probability hangs on dot products of ``terms`` terms, which may be added up in another order: it is off by
    ``terms`` roundings of a number as large as the ``largest`` logit at most, a sum by as many of these as it has.
    """
    assert len(got) == len(expected) == len(lengths)
    for score, other, length in zip(got, expected, lengths, strict=True):
        assert abs(score - other) <= EPSILON * terms * largest * length / length**power


def transformers_beams(
    model: PreTrainedModel, prompt: list[int], num_beams: int, max_tokens: int, stop: Collection[int], **rest: object
) -> tuple[list[list[int]], list[float]]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=num_beams, num_return_sequences=num_beams,
        max_new_tokens=max_tokens, do_sample=False, output_scores=True, return_dict_in_generate=True,
        generation_config=GenerationConfig(eos_token_id=sorted(stop) or None, pad_token_id=0), **rest,
    )  # fmt: skip
    sequences = [up_to_stop(tokens, stop) for tokens in output.sequences[:, len(prompt) :].tolist()]
    return sequences, output.sequences_scores.tolist()
