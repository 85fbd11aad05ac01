"""The history of how vLLM sizes a cache: release by release, what changed and where that is written.

Read in the sources of releases 0.6.6 to 0.33.0 and in the pull requests named. :mod:`~pagedattn_lab.budget.versions`
adds these changes up for one release.

Example:
    What somebody who moves from 0.19 to 0.21 will see in the log:

    >>> for change in changes_between((0, 19, 0), (0, 21, 0)):
    ...     print(".".join(map(str, change.since)), change.what)
    0.20.0 an estimate of what CUDA graphs take is taken off the cache, and gpu_memory_utilization is 0.92, not 0.9
    0.21.0 tokens are concurrency times max_model_len, where there were blocks // groups * block size before
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Release = tuple[int, int, int]

OLDEST: Release = (0, 6, 0)
NEWEST: Release = (0, 33, 0)
"""The releases between which changes are known."""


@dataclass(frozen=True)
class Change:
    """One thing that a release does otherwise than those before it.

    Attributes:
        since: the first release that does.
        what: what it does, in a sentence.
        source: the pull request of vllm-project/vllm, or the source in which it was read.
        fields: the fields of :class:`~pagedattn_lab.budget.versions.VLLMVersion` that it sets.
    """

    since: Release
    what: str
    source: str
    fields: Mapping[str, Any]


CHANGES = (
    Change(
        (0, 6, 5),
        "a chunk of a long prompt has 2048 tokens, where it had 512 before",
        "pull request 10544",
        {"chunk": 2048},
    ),
    Change(
        (0, 7, 0),
        "the log counts CUDA blocks, where it counted GPU blocks before",
        "vllm/executor/executor_base.py",
        {"lines": "# CUDA"},
    ),
    Change(
        (0, 7, 3),
        "the log counts cuda blocks, in small letters",
        "vllm/executor/executor_base.py",
        {"lines": "# cuda"},
    ),
    Change(
        (0, 8, 0),
        "engine V1 is the default: prompts are always computed in chunks, an H100 or H200 has larger batches, the log "
        "counts tokens, not blocks, and on Hopper latents have blocks of 64 tokens",
        "pull requests 12369, 12569 and 13596; vllm/platforms/cuda.py",
        {"tiers": "by name", "lines": "two lines", "latent_blocks": "FlashMLA"},
    ),
    Change(
        (0, 8, 5),
        "every GPU of 70 GiB has larger batches, smaller ones 256 requests at once",
        "pull request 17073",
        {"tiers": "70 GiB"},
    ),
    Change(
        (0, 9, 0),
        "an A100 goes back to the small batches",
        "pull request 17885",
        {"spares_a100": True},
    ),
    Change(
        (0, 9, 1),
        "windows have groups of their own and are charged as windows; the log says how much memory the cache gets",
        "pull request 19029; vllm/v1/core/kv_cache_utils.py, vllm/v1/worker/gpu_worker.py",
        {"several_groups": True, "formula": "groups", "available_line": "two places"},
    ),
    Change(
        (0, 11, 0),
        "layers of one kind may differ in width and share a table; on a B200 latents have blocks of 128 tokens",
        "UniformTypeKVCacheSpecs in vllm/v1/kv_cache_interface.py, vllm/platforms/cuda.py",
        {"mixed_widths": "one table", "latent_blocks": "CUTLASS"},
    ),
    Change(
        (0, 12, 0),
        "the largest bucket sets the size of groups if it is less than 1.25 times the smallest",
        "pull request 29303",
        {"near": 1.25},
    ),
    Change(
        (0, 14, 0),
        "GiB are printed without zeros at the end",
        "format_gib in vllm/utils/mem_utils.py",
        {"available_line": "rounded"},
    ),
    Change(
        (0, 16, 0),
        "on a B200 latents have blocks of 64 tokens",
        "vllm/platforms/cuda.py of 0.14 and 0.16",
        {"latent_blocks": "FlashInfer"},
    ),
    Change(
        (0, 18, 0),
        "1.25 became 1.5, and latents have the shortest blocks that the backend takes, 16 tokens or more",
        "pull request 36684; vllm/platforms/cuda.py",
        {"near": 1.5, "latent_blocks": "by backend"},
    ),
    Change(
        (0, 20, 0),
        "an estimate of what CUDA graphs take is taken off the cache, and gpu_memory_utilization is 0.92, not 0.9",
        "pull request 30515 brought the estimate, off at first; vllm/envs.py, vllm/config/cache.py",
        {"cuda_graphs_subtracted": True, "gpu_memory_utilization": 0.92},
    ),
    Change(
        (0, 21, 0),
        "tokens are concurrency times max_model_len, where there were blocks // groups * block size before",
        "issue 40691; vllm/v1/core/kv_cache_utils.py",
        {"formula": "request"},
    ),
    Change(
        (0, 26, 0),
        "windows keep what every step in flight has scheduled, two steps with asynchronous scheduling",
        "pull request 47728",
        {"settles_late": True},
    ),
    Change(
        (0, 28, 0),
        "a GPU of 160 GiB has still larger batches, and the log has one line for tokens and concurrency",
        "pull request 51726; vllm/v1/core/kv_cache_utils.py",
        {"tiers": "160 GiB", "lines": "one line"},
    ),
    Change(
        (0, 29, 0),
        "the null block is set aside in the check that one request fits, narrow pages are padded where longer blocks "
        "do not come out even, the second model runner is the default, and a CPU's blocks are multiples of 32 tokens",
        "pull request 47272; vllm/v1/core/kv_cache_utils.py, vllm/config/vllm.py, "
        "vllm/v1/attention/backends/cpu_attn.py",
        {"null_block": True, "mixed_widths": "all", "v2_runner": True, "cpu_blocks_of_32": True},
    ),
    Change(
        (0, 30, 0),
        "the log names the device, where it said GPU of a CPU too; under YaRN a model's own length is what its "
        "configuration says, where it was the original length times the factor",
        "vllm/v1/core/kv_cache_utils.py, _get_and_verify_max_len in vllm/config/model.py",
        {"lines": "device", "stretches_yarn": False},
    ),
    Change(
        (0, 32, 0),
        "Mamba-2 layers hand out a state in the middle of a prompt, so a request holds one more with prefix caching",
        "vllm/model_executor/layers/mamba/mamba_mixer2.py",
        {"prefill_checkpoints": "mamba2"},
    ),
    Change(
        (0, 33, 0),
        "gated delta nets do the same where FlashInfer computes them, on Hopper and Blackwell, and their blocks are "
        "multiples of 64 tokens there; a GB10 (DGX Spark) has the small batches whatever its memory; FlashInfer reads "
        "an nvfp4 cache on Ampere, Ada, Hopper and GeForce Blackwell too",
        "vllm/model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py, vllm/platforms/interface.py, "
        "vllm/engine/arg_utils.py; vllm/v1/attention/backends/flashinfer.py of 0.31 and 0.33",
        {"prefill_checkpoints": "all", "spares_gb10": True, "nvfp4_majors": (8, 9, 10, 12)},
    ),
)
"""All changes, oldest first."""


def changes_between(older: Release, newer: Release) -> list[Change]:
    """List what changed after one release, up to another."""
    return [change for change in CHANGES if older < change.since <= newer]
