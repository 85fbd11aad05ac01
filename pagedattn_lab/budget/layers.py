"""From a model's configuration to the spec of each layer, as vLLM 0.33.0 makes them.

A configuration says less than it seems to. Some models' windows are ignored, some hold for all layers, and a hybrid's
block is as long as its largest state asks for. What is not known here is refused by name, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.budget.attention_layers import Heads, chunks, windows
from pagedattn_lab.budget.dtypes import CACHE_DTYPES, cache_dtype, model_dtype
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.mlp_widths import refuse_uneven_widths
from pagedattn_lab.budget.model_types import MODEL_DTYPE_ONLY, attention_kinds, refuse_unknown_layout
from pagedattn_lab.budget.models import load_config
from pagedattn_lab.budget.state_layers import STATE_FAMILIES
from pagedattn_lab.kv_cache_groups import UnknownLayoutError
from pagedattn_lab.kv_cache_specs import KVCacheSpec, MambaCacheMode, MambaSpec
from pagedattn_lab.kv_config import read_num_kv_heads, required, text_fields

_ATTENTION = {"full_attention", "attention", "sliding_attention", "chunked_attention", "hybrid"}
_STATES = {"linear_attention", "mamba", "hybrid", "conv"}
_NOTHING = {"moe", "mlp"}
_DEFAULT_BLOCK_SIZE = 16
_FLASHINFER_CHECKPOINT = 64


@dataclass(frozen=True)
class LayerSpecs:
    """The spec of each layer that keeps something, and what was decided on the way.

    Attributes:
        specs: of one tensor-parallel rank, by name, in the model's order; a drafter's layers last.
        block_size: tokens in a block of attention. A hybrid's is as long as its state is large.
        dtype: of the model, after ``"auto"``.
        kv_cache_dtype: of keys and values, after ``"auto"``.
        num_layers: layers of the model, those that keep nothing included: pipeline ranks share them out.
        mamba_cache_mode: for :class:`~pagedattn_lab.kv_cache_specs.RequestLimits`.
        notes: what was derived, in a sentence each.
    """

    specs: dict[str, KVCacheSpec]
    block_size: int
    dtype: str
    kv_cache_dtype: str
    num_layers: int
    mamba_cache_mode: MambaCacheMode
    notes: tuple[str, ...]


def _user_block_size(block_size: int | None, multiple: int) -> int:
    if block_size is None:
        return _DEFAULT_BLOCK_SIZE if _DEFAULT_BLOCK_SIZE % multiple == 0 else multiple
    if block_size < 1 or block_size % multiple:
        raise BudgetError(
            f"block_size = {block_size} is no multiple of {multiple}, which the attention kernels ask for: use "
            f"{max(1, cdiv(block_size, multiple)) * multiple}"
        )
    return block_size


def layer_specs(
    config: Any,
    *,
    block_size: int | None = None,
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    enable_prefix_caching: bool = True,
    num_speculative_tokens: int = 0,
    drafter: Any = None,
    block_size_multiple: int = 16,
    max_model_len: int | None = None,
    mamba_ssm_cache_dtype: str = "auto",
    gdn_prefill_backend: str = "triton",
    prefill_checkpoints: bool = True,
) -> LayerSpecs:
    """Make the spec of each layer of a model, as one tensor-parallel rank of vLLM 0.33.0 keeps it.

    Args:
        config: what :func:`~pagedattn_lab.budget.models.load_config` takes.
        block_size: tokens in a block; by default 16, or the smallest that the kernels take. A hybrid may need more.
        dtype: of the model.
        kv_cache_dtype: of keys and values, one of :data:`~pagedattn_lab.budget.dtypes.CACHE_DTYPES`; ``"auto"`` is what
            the checkpoint asks for, else the model's dtype.
        tensor_parallel_size: GPUs that share each layer.
        enable_prefix_caching: whether state-space layers keep a state at block boundaries, so that others can start
            there. Without it their block is as long as ``max_model_len``.
        num_speculative_tokens: tokens that are guessed at a time.
        drafter: who guesses: ``"mtp"`` for the model's own layers, the configuration of an EAGLE head or of another
            model, or ``None`` for n-grams, which need no layer.
        block_size_multiple: what the attention kernels ask of a block size: 16 for FlashAttention and Triton.
        max_model_len: for state-space layers without prefix caching; by default what the model can do.
        mamba_ssm_cache_dtype: of recurrent states; ``"auto"`` is what the model asks for, else its dtype. On a CPU vLLM
            keeps them in float32.
        gdn_prefill_backend: the kernel of gated delta nets. vLLM takes ``"flashinfer"`` on Hopper and, with CUDA 13, on
            Blackwell; then blocks are multiples of 64 and a request may hold one more state.
        prefill_checkpoints: whether kernels hand out states in the middle of a prompt, as in 0.33.

    Raises:
        UnknownLayoutError: a model that vLLM lays out in a way that is not known here.
        BudgetError: heads or widths that do not divide, a block size or a dtype that vLLM does not take.
        ValueError: a figure that the configuration lacks.

    Example:
        A hybrid's block has to hold a whole state, and fp8 keys and values need twice the tokens for it:

        >>> bf16, fp8 = (layer_specs("Qwen3.5-27B", kv_cache_dtype=name) for name in ("auto", "fp8"))
        >>> bf16.block_size, fp8.block_size, len(bf16.specs)
        (784, 1568, 64)
        >>> print(bf16.notes[0])
        a block has 784 tokens, so that attention's page holds a state of 3,207,168 bytes, which is padded by 0.13 %
    """
    tp = _count("tensor_parallel_size", tensor_parallel_size)
    speculative = _count("num_speculative_tokens", num_speculative_tokens, least=0)
    fields = text_fields(load_config(config))
    refuse_unknown_layout(fields)
    notes: list[str] = []
    name = model_dtype(fields, dtype)
    kept_in = cache_dtype(fields, kv_cache_dtype, name, notes)
    if fields["model_type"] in MODEL_DTYPE_ONLY and kept_in != name:
        notes.append(f"vLLM keeps the cache of model type {fields['model_type']!r} in {name} all the same")
        kept_in = name
    heads = Heads.of(fields, tp)
    refuse_uneven_widths(fields, tp)
    if heads.latent and kept_in == "nvfp4":
        raise BudgetError("vLLM keeps no latents in nvfp4: use kv_cache_dtype fp8")
    kinds = attention_kinds(fields)
    number = len(kinds) if kinds else required(fields, "num_hidden_layers")
    if kinds and (unknown := set(kinds) - _ATTENTION - _STATES - _NOTHING):
        raise UnknownLayoutError(
            f"model type {fields['model_type']!r} has layers of kind {', '.join(sorted(unknown))}: their layout is not "
            "known here"
        )
    block = _user_block_size(block_size, block_size_multiple)
    mode: MambaCacheMode = "align" if enable_prefix_caching else "none"
    state: MambaSpec | None = None
    if kinds and set(kinds) & _STATES:
        family = STATE_FAMILIES.get(fields["model_type"])
        if family is None:
            raise UnknownLayoutError(f"what the states of model type {fields['model_type']!r} hold is not known here")
        checkpoints = prefill_checkpoints and (
            family.checkpoints == "always" or family.checkpoints == gdn_prefill_backend == "flashinfer"
        )
        state_dtype = mamba_ssm_cache_dtype if mamba_ssm_cache_dtype == "auto" else CACHE_DTYPES[mamba_ssm_cache_dtype]
        state_bytes = family.state(fields, name, tp, speculative, state_dtype).num_bytes
        align = max(block, block_size_multiple)
        if checkpoints and family.checkpoints == "flashinfer" and enable_prefix_caching:
            align = math.lcm(align, _FLASHINFER_CHECKPOINT)
        block, padded = _aligned(block, block_size_multiple, align, heads, kept_in, state_bytes, notes)
        longest = max_model_len or (block if enable_prefix_caching else required(fields, "max_position_embeddings"))
        state = MambaSpec(
            block if enable_prefix_caching else longest, state_bytes, padded, speculative, int(checkpoints)
        )
    window_of, chunk_of = windows(fields, number, notes), chunks(fields, number)
    specs: dict[str, KVCacheSpec] = {}
    for index in range(number):
        kind = kinds[index] if kinds else "full_attention"
        if kind in _ATTENTION:
            specs[f"model.layers.{index}.self_attn"] = heads.spec(block, kept_in, window_of[index], chunk_of[index])
        if kind in _STATES and state is not None:
            specs[f"model.layers.{index}.{STATE_FAMILIES[fields['model_type']].layer}"] = state
    specs |= _drafter_specs(fields, drafter, speculative, tp, block, kept_in, heads, notes)
    if heads.latent and tp > 1:
        notes.append(f"each of the {tp} GPUs keeps the whole latents: tensor parallelism does not split them")
    elif not heads.latent and (kv_heads := read_num_kv_heads(fields)) < tp:
        notes.append(f"{kv_heads} KV heads for {tp} GPUs: each is kept {tp // kv_heads} times")
    return LayerSpecs(specs, block, name, kept_in, number, mode if state else "none", tuple(notes))


def _count(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BudgetError(f"{name} is {value!r}: give a whole number of at least {least}")
    return value


def _aligned(
    block: int, multiple: int, align: int, heads: Heads, dtype: str, state_bytes: int, notes: list[str]
) -> tuple[int, int | None]:
    """Lengthen a hybrid's block until attention's page holds a state; give the block and the padded size of a state."""
    token = heads.spec(1, dtype).page_size_bytes
    needed = cdiv(align * cdiv(state_bytes, align * token), multiple) * multiple
    block = max(block, needed)
    page = block * token
    if page == state_bytes:
        return block, None
    notes.append(
        f"a block has {block} tokens, so that attention's page holds a state of {state_bytes:,} bytes, which is padded "
        f"by {100 * (page - state_bytes) / state_bytes:.2f} %"
    )
    return block, page


def _drafter_specs(
    fields: Mapping[str, Any],
    drafter: Any,
    num_speculative_tokens: int,
    tp: int,
    block: int,
    dtype: str,
    heads: Heads,
    notes: list[str],
) -> dict[str, KVCacheSpec]:
    """Make the specs of the layers that guess tokens: a model's own, an EAGLE head's or another model's."""
    if drafter is None:
        return {}
    if not num_speculative_tokens:
        raise BudgetError("a drafter, and num_speculative_tokens is 0: say how many tokens it guesses")
    if isinstance(drafter, str) and drafter == "mtp":
        number = fields["num_nextn_predict_layers"] or fields["mtp_num_hidden_layers"]
        if not number:
            raise BudgetError(
                "this model has no layers that predict further tokens (num_nextn_predict_layers): give a drafter's "
                "configuration"
            )
        if number > 1 or fields["model_type"] not in _ONE_MTP_LAYER:
            raise UnknownLayoutError(
                f"{number} prediction layers of model type {fields['model_type']!r}: their layout is not known here"
            )
        notes.append("the model's own prediction layer keeps a cache too")
        return {"drafter.layers.0.self_attn": heads.spec(block, dtype)}
    other = text_fields(load_config(drafter))
    refuse_unknown_layout(other)
    number = required(other, "num_hidden_layers")
    kinds = attention_kinds(other)
    if (kinds and set(kinds) - {"full_attention", "attention"}) or any(windows(other, number, [])):
        raise UnknownLayoutError("a drafter with windows, chunks or states of its own: its layout is not known here")
    notes.append(f"the drafter's {number} layer{'s' if number > 1 else ''} keep a cache too")
    own = Heads.of(other, tp)
    refuse_uneven_widths(other, tp)
    return {f"drafter.layers.{index}.self_attn": own.spec(block, dtype) for index in range(number)}


_ONE_MTP_LAYER = {
    "deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
}  # fmt: skip
"""Model types whose prediction layer keeps a cache like a layer of full attention."""


def pipeline_ranks(
    specs: Mapping[str, KVCacheSpec],
    pipeline_parallel_size: int,
    partition: Sequence[int] | None = None,
    *,
    num_layers: int | None = None,
) -> list[dict[str, KVCacheSpec]]:
    """Share a model's layers out among pipeline ranks, as vLLM does.

    What does not divide goes to the ranks before the last, one layer each, from the last but one backwards: the last
    has the output embedding to keep. A drafter runs on the last rank.

    Args:
        specs: see :attr:`LayerSpecs.specs`.
        pipeline_parallel_size: ranks.
        partition: layers of each rank, as in ``VLLM_PP_LAYER_PARTITION``.
        num_layers: see :attr:`LayerSpecs.num_layers`; by default up to the last layer named in ``specs``.

    Raises:
        BudgetError: more ranks than layers, or a partition that does not add up.

    Example:
        >>> specs = layer_specs("Llama-3.2-3B").specs
        >>> [len(rank) for rank in pipeline_ranks(specs, 3)], [len(rank) for rank in pipeline_ranks(specs, 2, [10, 18])]
        ([9, 10, 9], [10, 18])

    Source: ``get_pp_indices`` in ``vllm/distributed/utils.py``.
    """
    number = _count("pipeline_parallel_size", pipeline_parallel_size)
    indices = {name: int(name.split(".")[2]) for name in specs if not name.startswith("drafter.")}
    total = num_layers if num_layers is not None else max(indices.values(), default=-1) + 1
    shares = layers_of_ranks(total, number, partition)
    ranks: list[dict[str, KVCacheSpec]] = [{} for _ in shares]
    ends = [sum(shares[: rank + 1]) for rank in range(number)]
    for name, spec in specs.items():
        rank = number - 1 if name not in indices else next(r for r, end in enumerate(ends) if indices[name] < end)
        ranks[rank][name] = spec
    return ranks


def layers_of_ranks(num_layers: int, pipeline_parallel_size: int, partition: Sequence[int] | None = None) -> list[int]:
    """Count the layers of each pipeline rank; see :func:`pipeline_ranks`.

    Raises:
        BudgetError: more ranks than layers, or a partition that does not add up.

    Example:
        >>> layers_of_ranks(62, 4)
        [15, 16, 16, 15]
    """
    if partition is not None:
        if len(partition) != pipeline_parallel_size or sum(partition) != num_layers or min(partition) < 0:
            raise BudgetError(
                f"a partition of {list(partition)} for {num_layers} layers on {pipeline_parallel_size} ranks: give one "
                f"number for each rank, {num_layers} together"
            )
        return list(partition)
    if pipeline_parallel_size > num_layers:
        raise BudgetError(
            f"pipeline_parallel_size = {pipeline_parallel_size} for {num_layers} layers: a rank would have none, "
            f"use at most {num_layers}"
        )
    each, rest = divmod(num_layers, pipeline_parallel_size)
    return [each + (1 <= pipeline_parallel_size - 1 - rank <= rest) for rank in range(pipeline_parallel_size)]
