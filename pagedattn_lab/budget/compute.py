"""From a model, a GPU and settings to blocks, tokens and concurrency, step by step as vLLM goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pagedattn_lab.budget import memory
from pagedattn_lab.budget.attention_backends import block_size_multiple, gdn_prefill_backend, nvfp4_caution
from pagedattn_lab.budget.dtypes import cache_dtype, model_dtype
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.estimate import Estimate
from pagedattn_lab.budget.layers import LayerSpecs, layer_specs, layers_of_ranks, pipeline_ranks
from pagedattn_lab.budget.models import load_config
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.result import Budget, Rank
from pagedattn_lab.budget.versions import VLLMVersion, vllm_version
from pagedattn_lab.budget.weights import weight_bytes
from pagedattn_lab.kv_cache_groups import KVCacheGroup, bytes_per_block, project_groups
from pagedattn_lab.kv_cache_specs import RequestLimits
from pagedattn_lab.kv_config import text_fields

GIVEN = ("available_bytes", "kv_cache_memory_bytes", "num_gpu_blocks_override")
"""What makes a GPU unnecessary: any of these says how large the cache is."""

Parts = tuple[tuple[str, Estimate], ...]


def compute(options: Options) -> Budget:
    """Compute a budget, whether or not a request of full length fits.

    :attr:`~pagedattn_lab.budget.result.Budget.fit` says whether one does.

    Raises:
        BudgetError: model, GPU or version are unknown, or nothing says how much memory there is.
        UnknownLayoutError: vLLM lays the model's layers out in a way that is not known here.
    """
    version = vllm_version(options.vllm_version)
    config = load_config(options.model)
    gpu, total = (None, None) if options.gpu is None else memory.gpu_memory(options.gpu)
    if total is None and all(getattr(options, name) is None for name in GIVEN):
        raise BudgetError("nothing says how much memory there is: give gpu, or what vLLM says is available_bytes")
    max_model_len = options.max_model_len or _default_len(config, version)
    fields = text_fields(config)
    multiple, block_note = block_size_multiple(
        fields,
        cache_dtype(fields, options.kv_cache_dtype, model_dtype(fields, options.dtype), []),
        gpu=gpu,
        device=options.device,
        version=version,
        is_given=options.block_size is not None,
    )
    layers = layer_specs(
        config,
        block_size=options.block_size,
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        tensor_parallel_size=options.tensor_parallel_size,
        enable_prefix_caching=options.enable_prefix_caching,
        num_speculative_tokens=options.num_speculative_tokens,
        drafter=options.drafter,
        block_size_multiple=multiple,
        max_model_len=max_model_len,
        mamba_ssm_cache_dtype="float32" if options.device == "cpu" else "auto",
        gdn_prefill_backend=gdn_prefill_backend(gpu, version),
        prefill_checkpoints=version.prefill_checkpoints != "none",
    )
    groups = version.kv_cache_groups(layers.specs)
    if not groups:
        raise BudgetError(f"{config['name']} has no layer that keeps a cache: there are no blocks to count")
    num_tokens, num_seqs = version.batch_defaults(
        options.usage,
        total_bytes=0 if total is None else total.likely,
        gpu_name=gpu or "",
        max_model_len=max_model_len,
        device=options.device,
        world_size=options.tensor_parallel_size * options.pipeline_parallel_size,
    )
    num_tokens = options.max_num_batched_tokens or num_tokens
    num_seqs = options.max_num_seqs or min(num_seqs, num_tokens)
    if num_seqs > num_tokens:
        raise BudgetError(
            f"max_num_seqs = {num_seqs} is above max_num_batched_tokens = {num_tokens}, and each sequence needs a "
            "token in every step: vLLM refuses it. Lower the one, or raise the other"
        )
    in_flight = num_tokens * version.concurrent_batches(
        options.pipeline_parallel_size, async_scheduling=options.async_scheduling, device=options.device
    )
    limits = RequestLimits(max_model_len, in_flight, layers.mamba_cache_mode)
    share = options.gpu_memory_utilization or version.gpu_memory_utilization
    on_ranks = pipeline_ranks(layers.specs, options.pipeline_parallel_size, num_layers=layers.num_layers)
    groups_of_ranks = [tuple(project_groups(groups, rank)) for rank in on_ranks]
    parts = _parts(options, version, config, layers, num_tokens, num_seqs)
    available = _available(options, groups_of_ranks, parts, total, share)
    ranks = tuple(map(Rank, groups_of_ranks, parts, available))
    low, likely, high = (
        version.capacity(groups_of_ranks, [getattr(rank.available, which) for rank in ranks], limits)
        for which in ("low", "likely", "high")
    )
    cautions = _cautions(options, config, gpu, layers.kv_cache_dtype, version)
    notes = (*(note for note in (version.note, block_note) if note), *layers.notes, *cautions)
    return Budget(
        options, config["name"], gpu, version, config, layers.dtype, layers.kv_cache_dtype, layers.block_size,
        num_tokens, num_seqs, share, total, tuple(groups), ranks, limits, likely, low, high, notes,
    )  # fmt: skip


def _cautions(
    options: Options, config: Mapping[str, Any], gpu: str | None, kv_cache_dtype: str, version: VLLMVersion
) -> Iterator[str]:
    """What may keep a server from starting, though there is memory."""
    if too_long := longer_than_model(options, config):
        yield too_long
    if kv_cache_dtype == "nvfp4" and (
        caution := nvfp4_caution(text_fields(config), gpu=gpu, device=options.device, version=version)
    ):
        yield caution
    capability = memory.capability_without_fp8(gpu)
    if kv_cache_dtype.startswith(("fp8", "float8")) and capability:
        reads = "FlashInfer does" if capability >= "8" else "FlashInfer needs 8.0"
        yield (
            f"{gpu} has compute capability {capability}: vLLM's FlashAttention and Triton backends read no fp8 cache "
            f"below 8.9, {reads}"
        )


def longer_than_model(options: Options, config: Mapping[str, Any]) -> str:
    """Say by how much a length that was asked for exceeds the model's own, which vLLM refuses; else nothing."""
    asked = options.max_model_len
    if not asked or not isinstance(config.get("max_position_embeddings"), int):
        return ""
    own = model_max_len(config, vllm_version(options.vllm_version))
    if asked <= own:
        return ""
    return (
        f"{config['name']} takes {own:,} tokens, and max_model_len = {asked} is {asked - own:,} more: vLLM refuses it "
        "unless VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 is set, and what the model then writes may be nonsense. Use at most "
        f"{own}"
    )


def model_max_len(config: Mapping[str, Any], version: VLLMVersion | None = None) -> int:
    """Read how long a context the model allows: the most that vLLM takes as ``max_model_len``.

    Args:
        config: of the model.
        version: of vLLM; by default the newest that is known.

    Raises:
        BudgetError: the configuration does not say.

    Source: vLLM 0.33.0, ``_get_and_verify_max_len`` in ``vllm/config/model.py``. Up to 0.29 the length under YaRN was
    the original one times the factor; since 0.30 it is what the configuration says, which has the factor already.
    """
    longest = config.get("max_position_embeddings")
    if not isinstance(longest, int):
        raise BudgetError(f"{config['name']} does not say how long a context may be: give max_model_len")
    rope = _rope(config)
    if version is not None and version.stretches_yarn and rope["rope_type"] == "yarn" and not _is_gemma3(config):
        return int((rope.get("original_max_position_embeddings") or longest) * float(rope.get("factor") or 1))
    return int(longest * _stretch(config))


def _default_len(config: Mapping[str, Any], version: VLLMVersion) -> int:
    """What ``max_model_len`` is if nobody sets it: with longrope, longer contexts cost short texts something."""
    longest, rope = model_max_len(config, version), _rope(config)
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    return int(original) if original and rope["rope_type"] == "longrope" else longest


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the configuration says of positions, the kind under its newer name."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return {"rope_type": scaling.get("type"), **scaling}


def _is_gemma3(config: Mapping[str, Any]) -> bool:
    return "gemma3" in str(config.get("model_type"))


def _stretch(config: Mapping[str, Any]) -> float:
    """By what positions are stretched, where ``max_position_embeddings`` does not have the factor yet.

    It has that of other kinds, and of Gemma 3 (vLLM 0.33, ``_get_and_verify_max_len``).
    """
    scaling = _rope(config)
    is_left_out = scaling["rope_type"] in ("linear", "dynamic") and not _is_gemma3(config)
    return float(scaling.get("factor") or 1) if is_left_out else 1


def _parts(
    options: Options,
    version: VLLMVersion,
    config: Mapping[str, Any],
    layers: LayerSpecs,
    num_tokens: int,
    num_seqs: int,
) -> list[Parts]:
    """What takes memory beside the cache on each rank; nothing where the memory for the cache is given."""
    ranks = options.pipeline_parallel_size
    is_given = options.device == "cpu" or any(getattr(options, name) is not None for name in GIVEN)
    weights = options.per_rank("weights_bytes")
    if weights is None and is_given and "parameters" not in config:
        return [()] * ranks  # to count the weights would load transformers, and nothing here depends on them
    weights = weights or weight_bytes(
        config,
        dtype=layers.dtype,
        quantization=options.quantization,
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=ranks,
        drafter=options.drafter,
    )
    if is_given:
        return [(("weights", of_rank),) for of_rank in weights]
    columns: dict[str, Sequence[Estimate]] = {
        "weights": weights,
        "peak activation": options.per_rank("peak_activation_bytes")
        or [
            memory.peak_activation(
                config,
                num_tokens,
                num_seqs,
                tensor_parallel_size=options.tensor_parallel_size,
                has_sampler=rank == ranks - 1,
                before_0_17=version.release < (0, 17, 0),
            )
            for rank in range(ranks)
        ],
        "non-torch": options.per_rank("non_torch_bytes") or [memory.non_torch(options.tensor_parallel_size)] * ranks,
    }
    if version.cuda_graphs_subtracted:
        columns["CUDA graphs"] = options.per_rank("cuda_graph_bytes") or [
            memory.cuda_graphs(number) for number in layers_of_ranks(layers.num_layers, ranks)
        ]
    return [tuple((name, of_ranks[rank]) for name, of_ranks in columns.items()) for rank in range(ranks)]


def _available(
    options: Options,
    groups_of_ranks: Sequence[Sequence[KVCacheGroup]],
    parts: Sequence[Parts],
    total: Estimate | None,
    share: float,
) -> list[Estimate]:
    """Memory for the cache on each rank: as given, or what all else leaves."""
    if options.num_gpu_blocks_override is not None:
        blocks = options.num_gpu_blocks_override
        return [
            Estimate.known(blocks * bytes_per_block(groups), "num_gpu_blocks_override") for groups in groups_of_ranks
        ]
    given = options.per_rank("available_bytes") or options.per_rank("kv_cache_memory_bytes")
    if given is not None:
        return given
    if total is None:
        raise BudgetError("nothing says how much memory there is: give gpu, or what vLLM says is available_bytes")
    if options.device == "cpu":
        return [Estimate.known(total.likely, "given for the cache")] * len(parts)
    return [memory.available(total, share, tuple(part for _, part in of_rank)) for of_rank in parts]
