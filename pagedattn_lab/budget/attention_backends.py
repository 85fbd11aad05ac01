"""Which kernels vLLM takes on a GPU, as far as a budget has to know: they say how long a block may be.

A block has 16 tokens unless the kernels ask for more. Those for latents (multi-head latent attention) often do, and
which of them runs depends on the GPU and on the dtype that the cache is kept in.

Source: vLLM 0.33.0, ``_get_backend_priorities`` in ``vllm/platforms/cuda.py``, ``check_and_update_config`` in
``vllm/platforms/cpu.py``, and the backends in ``vllm/v1/attention/backends``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagedattn_lab.budget.versions import VLLMVersion
from pagedattn_lab.hardware import COMPUTE_CAPABILITY, GPUS
from pagedattn_lab.kv_config import read_head_dim

_HOPPER, _BLACKWELL, _GEFORCE_BLACKWELL = 9, 10, 12
"""Major compute capabilities: Hopper, and Blackwell in data centres and on GeForce cards."""

_FLASHINFER_LATENT_HEADS = (64, 128, 192)
"""Head sizes without positions that FlashInfer's kernel for latents takes."""

_NVFP4_MISREAD = 64
"""The head size that FlashInfer's older kernels misread in nvfp4."""

_CPU_MULTIPLE, _CPU_BLOCK = 32, 128
"""What a CPU's kernels ask of a block size, and the size that they have by default."""


def block_size_multiple(
    fields: Mapping[str, Any],
    kv_cache_dtype: str,
    *,
    gpu: str | None,
    device: str,
    version: VLLMVersion,
    is_given: bool = False,
) -> tuple[int, str]:
    """Say of what number of tokens a block is a multiple, and what to note of that.

    Where nobody gives a block size, vLLM takes 16 if the backend that it likes best takes 16, else the smallest that
    this one takes. A size that is given may rule that backend out; another one of its list then takes multiples of 16.

    Args:
        fields: of the model, as :func:`~pagedattn_lab.kv_config.text_fields` gives them.
        kv_cache_dtype: of the cache, as a spec has it.
        gpu: its name in :data:`pagedattn_lab.hardware.GPUS`; anything else is a GPU that is not known.
        device: ``"gpu"`` or ``"cpu"``.
        version: of vLLM.
        is_given: whether a block size is given.

    Returns:
        The multiple, and a sentence; empty if a block has 16 tokens as usual.

    Example:
        The latents of DeepSeek-V3 have blocks of another length for each way to keep them:

        >>> from pagedattn_lab.budget.versions import vllm_version
        >>> fields = {"kv_lora_rank": 512, "qk_nope_head_dim": 128}
        >>> newest = vllm_version("0.33")
        >>> for gpu, dtype in (("H200", "bfloat16"), ("H200", "float8_e4m3fn"), ("B200", "bfloat16")):
        ...     block_size_multiple(fields, dtype, gpu=gpu, device="gpu", version=newest)[0]
        16
        64
        32
    """
    latent = bool(fields["kv_lora_rank"])
    if device == "cpu":
        if latent:
            return 16, "" if is_given else "a CPU keeps latents in blocks of 16 tokens, one with AMX in blocks of 128"
        if is_given:
            return (_CPU_MULTIPLE if version.cpu_blocks_of_32 else 16), ""
        return _CPU_BLOCK, ""
    if not latent or is_given:
        return 16, ""
    capability = COMPUTE_CAPABILITY.get(gpu or "")
    if capability is None:
        return 16, (
            "blocks of 16 tokens are assumed: which kernel reads latents, and so how long a block is, depends on the "
            "GPU. Name it, or give block_size"
        )
    backend, tokens = _latent_backend(fields, kv_cache_dtype, capability[0], version)
    return tokens, "" if tokens == 16 else f"on {gpu} {backend} reads the latents, in blocks of {tokens} tokens"


def gdn_prefill_backend(gpu: str | None, version: VLLMVersion) -> str:
    """Name what computes the prompts of gated delta nets: FlashInfer on Hopper, and on Blackwell under CUDA 13.

    Before 0.33 that did not show in the cache. A GPU that is not known counts as one where Triton does it.

    Example:
        >>> from pagedattn_lab.budget.versions import vllm_version
        >>> gdn_prefill_backend("H200", vllm_version("0.33")), gdn_prefill_backend("L40S", vllm_version("0.33"))
        ('flashinfer', 'triton')

    Source: ``_resolve_gdn_prefill_backend`` in ``vllm/model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py``.
    """
    major, _ = COMPUTE_CAPABILITY.get(gpu or "", (0, 0))
    by_flashinfer = version.prefill_checkpoints == "all" and major in (_HOPPER, _BLACKWELL, _GEFORCE_BLACKWELL)
    return "flashinfer" if by_flashinfer else "triton"


def nvfp4_caution(fields: Mapping[str, Any], *, gpu: str | None, device: str, version: VLLMVersion) -> str:
    """Say what keeps vLLM from an nvfp4 cache of a model; nothing if nothing does, or if the GPU is not known.

    FlashInfer alone reads one (``supports_kv_cache_dtype`` and ``supports_combination`` in ``flashinfer.py``).

    Example:
        >>> from pagedattn_lab.budget.versions import vllm_version
        >>> fields = {"head_dim": 128, "model_type": "llama"}
        >>> nvfp4_caution(fields, gpu="T4", device="gpu", version=vllm_version("0.33"))
        'T4 has compute capability 7.5: vLLM 0.33.0 reads an nvfp4 cache on 8.x, 9.x, 10.x and 12.x only'
    """
    if device == "cpu":
        return "vLLM reads no nvfp4 cache on a CPU"
    if gpu not in GPUS:
        return ""
    majors = version.nvfp4_majors
    major, minor = COMPUTE_CAPABILITY.get(gpu, (0, 0))
    if major not in majors:
        *others, last = [f"{each}.x" for each in majors]
        where = f"{', '.join(others)} and {last}" if others else last
        which = f"compute capability {major}.{minor}" if major else "no compute capability, being AMD's"
        return f"{gpu} has {which}: vLLM {version} reads an nvfp4 cache on {where} only"
    if major != _BLACKWELL and (read_head_dim(fields) == _NVFP4_MISREAD or fields["model_type"] == "gpt_oss"):
        return f"on {gpu} vLLM refuses an nvfp4 cache for heads of 64 elements, and for attention sinks"
    return ""


def _latent_backend(fields: Mapping[str, Any], dtype: str, major: int, version: VLLMVersion) -> tuple[str, int]:
    """Name the backend for latents that vLLM likes best, and its block size nearest to 16."""
    flashinfer = fields["qk_nope_head_dim"] in _FLASHINFER_LATENT_HEADS
    forced = version.latent_blocks
    if major == _HOPPER:
        if forced != "none" and forced != "by backend":
            return "FlashMLA", 64
        quantised = dtype not in ("float16", "bfloat16")
        return ("FlashMLA", 64) if quantised and forced == "by backend" else ("FlashAttention", 16)
    if major == _BLACKWELL and forced in ("by backend", "FlashInfer", "CUTLASS"):
        if flashinfer and forced != "CUTLASS":
            return "FlashInfer", 32 if forced == "by backend" else 64
        return "CUTLASS", 128
    return "Triton", 16
