"""How many bytes a model's weights take on each GPU, and how sure that is.

The number of parameters is exact (:mod:`~pagedattn_lab.budget.parameters`), and so are the bytes of each in a dtype.
What a start-up log prints as "model loading" is a little more: tables of positions, second copies that a kernel asks
for, padding of quantised matrices, and what stood in memory for a moment while loading, because the log gives the
largest amount. So the result is a range. Its low end is the parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.budget.dtypes import model_dtype
from pagedattn_lab.budget.estimate import Estimate
from pagedattn_lab.budget.layers import layers_of_ranks
from pagedattn_lab.budget.model_types import TRANSFORMERS_BACKEND
from pagedattn_lab.budget.models import load_config
from pagedattn_lab.budget.parameters import Layer, Parameters, count_parameters
from pagedattn_lab.budget.quantization import Quantization, quantization_of
from pagedattn_lab.kv_config import read_head_dim, read_num_kv_heads, required, text_fields
from pagedattn_lab.kv_shape import DTYPE_BYTES

VOCABULARY_PADDING = 64
"""vLLM pads embeddings to a multiple of so many rows: ``vocab_parallel_embedding.py``."""

_TABLES_IN_FLOAT32 = {"gpt_oss"}

WHILE_LOADING = 0.01
"""What the log's figure may be above the weights and tables, as a share of them.

Of the five unquantised figures in ``tests/test_budget_weights.py`` the largest is 0.6 % above (gemma-3-27b).
"""


def weight_bytes(
    config: Any,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    partition: list[int] | None = None,
    drafter: Any = None,
) -> list[Estimate]:
    """Estimate the bytes of weights on one GPU of each pipeline rank.

    Args:
        config: what :func:`~pagedattn_lab.budget.models.load_config` takes. Parameters of a model that is not well
            known are counted through transformers.
        dtype: of what is not quantised.
        quantization: how matrices are stored, for example ``"fp8"``, ``"awq"``, ``"bitsandbytes"``; by default what the
            configuration says, and ``"none"`` ignores that.
        tensor_parallel_size: GPUs that share each layer.
        pipeline_parallel_size: ranks that share the layers.
        partition: layers of each rank.
        drafter: the configuration of a model or EAGLE head that guesses tokens; it is loaded by the last rank.

    Raises:
        BudgetError: a quantisation that is not known here, parameters that cannot be counted, or ranks without layers.

    Example:
        >>> (alone,) = weight_bytes("meta-llama/Llama-3.1-8B")
        >>> f"{alone.low / 2**30:.2f} to {alone.high / 2**30:.2f} GiB, likely {alone.likely / 2**30:.2f}"
        '14.96 to 15.14 GiB, likely 14.99'
        >>> print(alone.source)
        8,030,261,248 parameters in bfloat16, with tables of positions; the log's peak while loading may be 1 % above
    """
    fields = text_fields(loaded := load_config(config))
    name = model_dtype(fields, dtype)
    parameters = parameters_of(loaded)
    method = quantization_of(fields["quantization_config"], quantization)
    tp, ranks = tensor_parallel_size, pipeline_parallel_size
    shares = layers_of_ranks(len(parameters.layers), ranks, partition)
    estimates = []
    first = 0
    for rank, share in enumerate(shares):
        layers = [_layer_bytes(layer, fields, name, method, tp) for layer in parameters.layers[first : first + share]]
        first += share
        low, likely, high = (sum(sizes) for sizes in zip(*layers, strict=True)) if layers else (0, 0, 0)
        outside = _outside_bytes(parameters, fields, name, tp, first=rank == 0, last=rank == ranks - 1)
        tables = _position_tables(fields, name) + _latent_copies(fields, name, tp, share) if layers else 0
        most = int((high + outside + tables) * (1 + WHILE_LOADING))
        estimates.append((low + outside, likely + outside + tables, most))
    source = _source(parameters, name, method, ranks, tp)
    found = [Estimate(low, high, likely, False, source) for low, likely, high in estimates]
    if drafter is not None and drafter != "mtp":
        guesses = weight_bytes(drafter, dtype=name, tensor_parallel_size=tp)
        found[-1] = found[-1] + guesses[0]
    return found


def parameters_of(config: Mapping[str, Any]) -> Parameters:
    """Give a model's numbers of parameters: those known here, or those counted now.

    Args:
        config: from :func:`~pagedattn_lab.budget.models.load_config`.

    Raises:
        BudgetError: see :func:`~pagedattn_lab.budget.parameters.count_parameters`.
    """
    known = config.get("parameters")
    return Parameters.from_json(known) if known else count_parameters(config.get("published") or config)


def _layer_bytes(
    layer: Layer, fields: Mapping[str, Any], dtype: str, method: Quantization, tp: int
) -> tuple[int, int, int]:
    """Bytes of one layer on one GPU: at least, probably and at most."""
    kv_copies = 1 if fields["kv_lora_rank"] else cdiv(tp, read_num_kv_heads(fields))
    numbers = {
        "linear": cdiv(layer.get("linear", 0), tp),
        "kv": cdiv(layer.get("kv", 0) * kv_copies, tp),
        "experts": cdiv(layer.get("experts", 0), tp),
        "replicated": layer.get("replicated", 0),
    }
    small = layer.get("small", 0) * DTYPE_BYTES[dtype]
    low, likely, high = small // tp, small, small  # biases are split with their matrices, norms are not
    for part, number in numbers.items():
        least, most = method.bytes_per_parameter(part, DTYPE_BYTES[dtype])
        padded, padded_most = _padding(fields, tp) if method.name == "mxfp4" and part == "experts" else (1.0, 1.0)
        low, high = low + int(number * least), high + int(number * most * padded_most)
        likely += int(number * least * padded)
    return low, likely, high


def _padding(fields: Mapping[str, Any], tp: int) -> tuple[float, float]:
    """By how much kernels for mxfp4 enlarge experts, as a factor: on most GPUs, and at most.

    Source: ``mxfp4_round_up_hidden_size_and_intermediate_size`` in ``vllm/model_executor/layers/fused_moe/oracle``.
    Marlin makes the inner width a multiple of 128 and the outer one of 256; others differ.
    """
    outer = required(fields, "hidden_size")
    inner = cdiv(fields["moe_intermediate_size"] or required(fields, "intermediate_size"), tp)
    outer_padded = cdiv(outer, 256) * 256 / outer
    return outer_padded * cdiv(inner, 128) * 128 / inner, outer_padded * cdiv(inner, 256) * 256 / inner


def _outside_bytes(
    parameters: Parameters, fields: Mapping[str, Any], dtype: str, tp: int, *, first: bool, last: bool
) -> int:
    """Bytes on one GPU of embeddings, the last norm and encoders; embeddings are split by rows, and padded."""
    rows = required(fields, "vocab_size")
    padded = cdiv(cdiv(rows, VOCABULARY_PADDING) * VOCABULARY_PADDING, tp)
    number = 0
    if first:
        number += cdiv(parameters.embedding * padded, rows) + cdiv(parameters.vision, tp)
    if last:
        tied = 0 if first else parameters.embedding  # the last rank needs a copy of its own
        number += cdiv((parameters.lm_head or tied) * padded, rows) + parameters.other
    return number * DTYPE_BYTES[dtype]


def _position_tables(fields: Mapping[str, Any], dtype: str) -> int:
    """Bytes of the sines and cosines that vLLM keeps for every position of a model, once for each kind of layer."""
    given = fields["rope_parameters"]
    if not given or not fields["max_position_embeddings"] or fields["model_type"] in TRANSFORMERS_BACKEND:
        return 0
    if fields["position_embedding_type"] == "nope":  # Granite 4 rotates nothing
        return 0
    width = fields["qk_rope_head_dim"] if fields["kv_lora_rank"] else read_head_dim(fields)
    in_float32 = fields["model_type"] in _TABLES_IN_FLOAT32
    number_bytes = 4 if in_float32 else DTYPE_BYTES[dtype]
    total = 0
    for rope in [rope for rope in given.values() if isinstance(rope, Mapping)] or [given]:
        share = rope.get("partial_rotary_factor") or fields["partial_rotary_factor"] or 1
        positions = fields["max_position_embeddings"]
        if rope.get("rope_type") == "yarn":
            positions = int((rope.get("original_max_position_embeddings") or positions) * rope["factor"])
        total += positions * int(width * share) * number_bytes
    return total


def _latent_copies(fields: Mapping[str, Any], dtype: str, tp: int, num_layers: int) -> int:
    """Bytes of the projections from latents that vLLM keeps a second time, in the shape that decoding needs.

    Source: ``process_weights_after_loading`` in ``vllm/model_executor/layers/attention/mla_attention.py``.
    """
    if not fields["kv_lora_rank"]:
        return 0
    heads = cdiv(required(fields, "num_attention_heads"), tp)
    width = required(fields, "qk_nope_head_dim") + required(fields, "v_head_dim")
    return num_layers * heads * width * fields["kv_lora_rank"] * DTYPE_BYTES[dtype]


def _source(parameters: Parameters, dtype: str, method: Quantization, ranks: int, tp: int) -> str:
    stored = f"in {dtype}" if method.name == "none" else f"in {method.name}, the rest in {dtype}"
    where = "" if ranks * tp == 1 else f", shared by {ranks * tp} GPUs"
    return (
        f"{parameters.total:,} parameters {stored}{where}, with tables of positions; the log's peak while loading may "
        f"be {100 * WHILE_LOADING:.0f} % above"
    )
