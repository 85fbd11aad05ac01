"""What a GPU has, and what is gone of it before the cache gets the rest: the part that no configuration can tell.

vLLM measures it. At start-up a worker loads the weights, runs one step with as many tokens as a step may have, and
looks how much memory that took at its peak. What is left of its share becomes the KV cache (``gpu_worker.py``,
``determine_available_memory``). Nobody else can know these figures, so each is an
:class:`~pagedattn_lab.budget.estimate.Estimate` here: a range that scales with what it depends on, and is fitted to
figures that vLLM has logged. A figure of one's own log replaces it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.estimate import Estimate, memory_of_one_gpu
from pagedattn_lab.hardware import COMPUTE_CAPABILITY, GPUS

MIB = 2**20

DRIVER_SHARES = {"GeForce": (0.96, 0.98, 0.99), "stacked": (0.98, 0.99, 1.0), "error correction": (0.9, 0.92, 0.94)}
"""How much of the memory that is built in a driver reports: least, likely, most, by the kind of memory.

Of the cards that we have a report of, GeForce cards have 96.8 % (RTX 5080) to 98.7 % (RTX 3090), and stacked memory
99 % (H100). Where GDDR memory corrects errors, the bits for that are taken from it: 91.1 % (T4) and 92.4 % (A10).
"""

STACKED_BANDWIDTH = 1.5e12
"""Bytes per second from which on a server's memory is stacked (HBM)."""

SAMPLER_BYTES = 14
"""Bytes per logit at the peak: the logits themselves in 16 and in 32 bits, their sorted copy, indices and sums.

Fitted to what vLLM 0.19 logged on an H100 with 1,024 rows of logits: Llama-3.1-8B 1.89 GiB, gemma-2-9b 3.65,
gemma-3-27b 3.99, DeepSeek-V2-Lite 1.93 (llm-d-planner, accuracy/results). The formula below misses these by at most
7 %.
"""

FP8_CAPABILITY = (8, 9)
"""Compute capability from which on a GPU converts numbers of 8 bits itself: Ada, Hopper, Blackwell."""

PEAK_RANGE = {"now": (0.75, 1.0, 1.5), "before 0.17": (0.4, 1.2, 2.7)}
"""By what to multiply the peak: least, likely, most.

Qwen3-14B took 5.64 GiB in vLLM 0.16, and 2.23 from 0.17 on. The oldest versions took less than the formula says for
small models (Qwen3-0.6B: 0.23 GiB), and more for others (Qwen2.5-7B on an RTX 4060: 1.42).
"""


def gpu_memory(gpu: str | int) -> tuple[str, Estimate]:
    """What a driver reports as the memory of a GPU, and its name.

    Args:
        gpu: a name of :data:`pagedattn_lab.hardware.GPUS`, however it is written, or a size such as ``"24GiB"`` or a
            number of bytes. A size is taken as what the driver reports.

    Raises:
        BudgetError: an unknown name, or one that several GPUs have, or neither a name nor a size.

    Example:
        >>> gpu_memory("NVIDIA GeForce RTX 4090")[0], gpu_memory("24GiB")[1].likely == 24 * 2**30
        ('RTX 4090', True)
    """
    if isinstance(gpu, bool) or not isinstance(gpu, int | str) or (isinstance(gpu, str) and not _plain(gpu)):
        raise BudgetError(f"gpu is {gpu!r}: give the name of a GPU, a size such as '24GiB', or a number of bytes")
    if isinstance(gpu, int):
        if gpu < 1:
            raise BudgetError(f"gpu is {gpu} bytes: give the name of a GPU, or a size above 0")
        return f"{gpu / GIB:.4g} GiB", Estimate.known(gpu, "given")
    if re.match(r"\s*[0-9.]", gpu):
        try:
            return gpu.strip(), Estimate.known(memory_of_one_gpu(gpu), "given")
        except ValueError as error:
            raise BudgetError(str(error)) from None
    names = {_plain(name): name for name in GPUS}
    wanted = _plain(gpu)
    found = [names[wanted]] if wanted in names else [name for plain, name in names.items() if plain.startswith(wanted)]
    if len(found) > 1:
        raise BudgetError(f"{gpu!r} may be {' or '.join(found)}: name one, or give its memory, such as 24GiB")
    if not found:
        close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(names[each] for each in close)}?" if close else f"known: {', '.join(GPUS)}."
        raise BudgetError(f"there is no GPU {gpu!r} in the table; {meant} Or give its memory, such as 24GiB")
    name = found[0]
    sheet = GPUS[name]
    if sheet.driver_gib is not None:
        return name, Estimate.printed(f"{sheet.driver_gib:.2f}GiB", f"reported by a driver: {sheet.driver_source}")
    low, likely, high = (int(share * sheet.gib * GIB) for share in DRIVER_SHARES[memory_kind(name)])
    return name, Estimate(low, high, likely, False, f"{sheet.gib:g} GiB built in, less what drivers keep")


def memory_kind(name: str) -> str:
    """Say which of :data:`DRIVER_SHARES` a GPU of the table has."""
    if name.startswith("RTX"):
        return "GeForce"
    return "stacked" if GPUS[name].bandwidth >= STACKED_BANDWIDTH else "error correction"


def capability_without_fp8(gpu: str | None) -> str:
    """Give a GPU's compute capability if it is below 8.9, so that not all backends read an fp8 cache; else nothing.

    vLLM 0.33's Triton backend refuses an fp8 cache below 8.9 (``triton_attn.py``), FlashAttention below 9.0. FlashInfer
    takes one from 8.0 on. Older versions failed while they compiled (vllm-project/vllm, issue 26431).

    Example:
        >>> capability_without_fp8("RTX 3090"), capability_without_fp8("RTX 4090"), capability_without_fp8("24GiB")
        ('8.6', '', '')
    """
    capability = COMPUTE_CAPABILITY.get(gpu or "", FP8_CAPABILITY)
    return "" if capability >= FP8_CAPABILITY else ".".join(map(str, capability))


def _plain(name: str) -> str:
    words = re.sub(r"nvidia|geforce|amd|instinct|tesla", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


def peak_activation(
    config: Mapping[str, Any],
    num_tokens: int,
    num_seqs: int,
    *,
    tensor_parallel_size: int = 1,
    has_sampler: bool = True,
    before_0_17: bool = False,
) -> Estimate:
    """Memory that one step takes at its peak, beside weights and cache.

    Two things compete. Sampling holds a row of logits for every sequence, over all the vocabulary, several times. The
    step itself holds what its widest layer makes of all its tokens. Experts have work space of their own, which stays.

    Args:
        config: the model's ``config.json``.
        num_tokens: most tokens in a step, ``max_num_batched_tokens``.
        num_seqs: most sequences in a step, ``max_num_seqs``.
        tensor_parallel_size: GPUs that share each layer.
        has_sampler: whether this rank samples; only the last of a pipeline does.
        before_0_17: vLLM 0.16 and older took more.
    """
    text = config.get("text_config") or config
    hidden, vocab = _figure(text, "hidden_size", "d_model", "n_embd"), _figure(text, "vocab_size")
    wide = _figure(text, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden)
    experts = _figure(text, "num_experts_per_tok", "num_experts_per_token", "experts_per_token", default=0)
    of_expert = _figure(text, "moe_intermediate_size", default=wide)
    if experts and "moe_intermediate_size" not in text:
        wide = hidden  # no layer is as wide as all experts: each token goes through a few
    step = num_tokens * (6 * wide // tensor_parallel_size + 8 * hidden)
    sampler = SAMPLER_BYTES * min(num_seqs, num_tokens) * vocab if has_sampler else 0
    work_space = 2 * num_tokens * experts * (3 * of_expert // tensor_parallel_size + hidden)
    middle = max(step, sampler) + 6 * num_tokens * hidden + work_space
    low, likely, high = PEAK_RANGE["before 0.17" if before_0_17 else "now"]
    if "vision_config" in config or "audio_config" in config:
        high += 1  # encoders are run too, with as many images as a step may have
    source = f"{num_tokens:,} tokens and {min(num_seqs, num_tokens):,} rows of logits, fitted to logs of H100s"
    return Estimate(int(low * middle), int(high * middle), int(likely * middle), False, source)


def non_torch(tensor_parallel_size: int = 1) -> Estimate:
    """Memory that PyTorch does not see: the driver's context, kernels, and buffers that GPUs talk through."""
    if tensor_parallel_size == 1:
        return Estimate(30 * MIB, 700 * MIB, 256 * MIB, False, "0.03 to 0.39 GiB in logs of single GPUs")
    return Estimate(200 * MIB, 2600 * MIB, 1024 * MIB, False, "0.20 GiB (RTX 3090) to 2.07 (H100) in logs of several")


def cuda_graphs(num_layers: int) -> Estimate:
    """Memory of recorded graphs, which vLLM sets aside before the cache from 0.20.0 on (pull request 30515).

    Args:
        num_layers: of one rank.
    """
    likely = 12 * MIB * num_layers
    return Estimate(likely // 4, 4 * likely, likely, False, "0.26 to 1.4 GiB in logs, more with more layers")


def available(total: Estimate, utilization: float, parts: tuple[Estimate, ...]) -> Estimate:
    """What is left for keys and values of a GPU's share: ``ceil(total * utilization)``, less everything else.

    Example:
        Llama-3.1-8B on an H100, as vLLM 0.19 logged it: 58.11 GiB, and every part to two decimals.

        >>> parts = [Estimate.printed(size) for size in ("79.19GiB", "14.99GiB", "1.89GiB", "0.25GiB")]
        >>> left = available(parts[0], 0.95, tuple(parts[1:]))
        >>> round(left.low / 2**30, 2), round(left.high / 2**30, 2)
        (58.08, 58.12)
    """
    low, likely, high = (
        math.ceil(size * utilization) - sum(each)
        for size, each in (
            (total.low, [part.high for part in parts]),
            (total.likely, [part.likely for part in parts]),
            (total.high, [part.low for part in parts]),
        )
    )
    exact = total.exact and all(part.exact for part in parts)
    return Estimate(low, high, likely, exact, f"{utilization:g} of the GPU, less all else")


def _figure(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int):
            return value
        if isinstance(value, list) and value and isinstance(value[0], int):
            return max(value)
    if default is None:
        raise BudgetError(f"the configuration has no {names[0]}: add it, it says how much memory a step takes")
    return default
