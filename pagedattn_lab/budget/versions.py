"""What changed from one release of vLLM to the next in how a cache is sized, and in what the log says of it.

A log is read against the release that wrote it: the same GPU, model and flags give other figures under another one.
:data:`~pagedattn_lab.budget.changes.CHANGES` is the history, and :func:`vllm_version` adds it up for one release.

Example:
    Blocks are blocks, but what the log calls tokens has changed: gemma-2-9b of chapter 10 under two releases.

    >>> from pagedattn_lab.kv_cache_specs import FullAttentionSpec, RequestLimits, SlidingWindowSpec
    >>> full = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=256, dtype="bfloat16")
    >>> window = SlidingWindowSpec(16, 8, 256, "bfloat16", sliding_window=4096)
    >>> specs = {f"layers.{i}": full if i % 2 else window for i in range(42)}
    >>> limits = RequestLimits(max_model_len=8192, max_in_flight_tokens=8192)
    >>> for release in ("0.19", "0.33"):
    ...     version = vllm_version(release)
    ...     groups = version.kv_cache_groups(specs)
    ...     found = version.capacity([groups], [21111 * 2752512], limits)
    ...     print(*version.capacity_lines(found, limits), sep="; ")
    GPU KV cache size: 168,880 tokens; Maximum concurrency for 8,192 tokens per request: 20.60x
    GPU KV cache size: 168,723 tokens, Maximum concurrency for 8,192 tokens per request: 20.60x
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pagedattn_lab import kv_cache_groups as planning
from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget.changes import NEWEST, OLDEST, Release, changes_between
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.kv_cache_groups import Formula, KVCacheCapacity, KVCacheGroup, UnknownLayoutError
from pagedattn_lab.kv_cache_specs import KVCacheSpec, RequestLimits

Usage = Literal["serve", "offline"]
"""``vllm serve``, or the class ``LLM`` in a program of one's own."""
Device = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class VLLMVersion:
    """How one release of vLLM sizes a cache.

    Attributes:
        release: the release, a patch included.
        newer: whether it is newer than what is known, and counted as the newest that is.
        formula: how tokens and concurrency are counted; see :func:`~pagedattn_lab.kv_cache_groups.capacity`.
        gpu_memory_utilization: the default.
        cuda_graphs_subtracted: whether an estimate of the CUDA graphs' memory is taken off what the cache gets.
        null_block: whether the check that one request fits sets a block aside for the null block.
        settles_late: whether windows keep what *all* steps in flight have scheduled, not only one step's tokens.
        several_groups: whether windows have groups of their own. Before, they were kept like full attention.
        near: see :func:`~pagedattn_lab.kv_cache_groups.kv_cache_groups`.
        mixed_widths: which layers of different widths it lays out as we do: ``"none"``, ``"one table"`` (all of one
            kind), or ``"all"``.
        v2_runner: whether the newer model runner is the default for all models; it has one more step in flight under
            pipeline parallelism.
        prefill_checkpoints: which state-space layers hand out a state in the middle of a prompt, for the prefix cache.
        latent_blocks: which kernel's block size is forced on latents: ``"none"``; ``"FlashMLA"`` on Hopper; besides,
            ``"CUTLASS"`` or ``"FlashInfer"`` on Blackwell; or ``"by backend"``, where none is forced.
        cpu_blocks_of_32: whether a CPU takes multiples of 32 tokens only.
        stretches_yarn: whether a model's own length under YaRN is the original one times the factor, whatever else the
            configuration says.
        nvfp4_majors: major compute capabilities of GPUs on which a backend reads an nvfp4 cache.
        chunk: tokens in a chunk of a prompt longer than 32,768, before V1.
        tiers: from how much memory on which batch defaults hold: ``"v0"``, ``"by name"``, ``"70 GiB"``, ``"160 GiB"``.
        spares_a100: whether an A100 keeps the small defaults.
        spares_gb10: whether a GB10 (DGX Spark) keeps the small defaults.
        lines: the wording: ``"# GPU"``, ``"# CUDA"``, ``"# cuda"``, ``"two lines"``, ``"one line"``, ``"device"``.
        available_line: how "Available KV cache memory" is printed: ``None``, ``"two places"`` or ``"rounded"``.
    """

    release: Release
    newer: bool = False
    formula: Formula = "block size"
    gpu_memory_utilization: float = 0.9
    cuda_graphs_subtracted: bool = False
    null_block: bool = False
    settles_late: bool = False
    several_groups: bool = False
    near: float = 1.0
    mixed_widths: Literal["none", "one table", "all"] = "none"
    v2_runner: bool = False
    prefill_checkpoints: Literal["none", "mamba2", "all"] = "none"
    latent_blocks: Literal["none", "FlashMLA", "CUTLASS", "FlashInfer", "by backend"] = "none"
    cpu_blocks_of_32: bool = False
    stretches_yarn: bool = True
    nvfp4_majors: tuple[int, ...] = (10,)
    chunk: int = 512
    tiers: Literal["v0", "by name", "70 GiB", "160 GiB"] = "v0"
    spares_a100: bool = False
    spares_gb10: bool = False
    lines: Literal["# GPU", "# CUDA", "# cuda", "two lines", "one line", "device"] = "# GPU"
    available_line: Literal["two places", "rounded"] | None = None

    def __str__(self) -> str:
        return ".".join(map(str, self.release))

    @property
    def note(self) -> str | None:
        """What to say of it beside every figure: that it is newer than what is known."""
        if not self.newer:
            return None
        return f"vLLM {self} is newer than what this book knows: counted as {'.'.join(map(str, NEWEST))} counts"

    def concurrent_batches(
        self, pipeline_parallel_size: int = 1, *, async_scheduling: bool | None = None, device: Device = "gpu"
    ) -> int:
        """Say how many steps' tokens a window must have room for, the factor in ``max_in_flight_tokens``.

        Args:
            pipeline_parallel_size: pipeline ranks, each with a step of its own.
            async_scheduling: whether the next step is scheduled before the last one's tokens are known; by default on
                a GPU. On a CPU it is always off.
            device: where the model runs.

        Example:
            >>> vllm_version("0.25").concurrent_batches(), vllm_version("0.26").concurrent_batches()
            (1, 2)
        """
        if not self.settles_late:
            return 1
        runs_ahead = device == "gpu" and async_scheduling is not False
        if runs_ahead and (self.v2_runner or pipeline_parallel_size == 1):
            return pipeline_parallel_size + 1
        return pipeline_parallel_size

    def batch_defaults(
        self,
        usage: Usage = "serve",
        *,
        total_bytes: int = 0,
        gpu_name: str = "",
        max_model_len: int = 1 << 30,
        device: Device = "gpu",
        world_size: int = 1,
    ) -> tuple[int, int]:
        """Say what ``max_num_batched_tokens`` and ``max_num_seqs`` are if nobody sets them.

        Args:
            usage: a server, or a program.
            total_bytes: memory of one GPU.
            gpu_name: its name, for what depends on it.
            max_model_len: the longest request.
            device: where the model runs.
            world_size: processes in all, tensor times pipeline ranks; for a CPU only.

        Example:
            >>> sizes = {"RTX 4090": 24, "A100-80GB": 80, "H100-80GB": 79.19, "B200": 178}
            >>> for name, gib in sizes.items():
            ...     print(name, vllm_version("0.33").batch_defaults(total_bytes=int(gib * 2**30), gpu_name=name))
            RTX 4090 (2048, 256)
            A100-80GB (2048, 256)
            H100-80GB (8192, 1024)
            B200 (16384, 1024)
        """
        serves, name = usage == "serve", gpu_name.lower()
        if self.tiers == "v0":
            return (self.chunk if max_model_len > 32768 else max(max_model_len, 2048)), 256
        large = total_bytes >= 70 * GIB
        if self.tiers == "by name":
            large = "h100" in name or "h200" in name
        elif (self.spares_a100 and "a100" in name) or (self.spares_gb10 and "gb10" in name):
            large = False
        if device == "cpu":
            tokens, seqs = (2048 if serves else 4096) * world_size, (128 if serves else 256) * world_size
        elif self.tiers == "160 GiB" and total_bytes >= 160 * GIB:
            tokens, seqs = 16384, 1024
        elif large:
            tokens, seqs = 8192 if serves else 16384, 1024
        else:
            tokens, seqs = 2048 if serves else 8192, 1024 if self.tiers == "by name" else 256
        tokens = min(tokens, seqs * max_model_len)
        return tokens, min(seqs, tokens)

    def kv_cache_groups(
        self, specs: Mapping[str, KVCacheSpec], *, hybrid_kv_cache_manager: bool = True
    ) -> list[KVCacheGroup]:
        """Form groups as this release does.

        Raises:
            UnknownLayoutError: also where it lays layers of different widths out in a way we do not know.
        """
        several = self.several_groups and hybrid_kv_cache_manager
        groups = planning.kv_cache_groups(specs, hybrid_kv_cache_manager=several, near=self.near)
        widths = {spec.page_size_bytes for spec in specs.values()}
        known = {"none": 0, "one table": 1, "all": len(groups)}[self.mixed_widths]
        if len(widths) > 1 and len(groups) > known:
            raise UnknownLayoutError(
                f"layers with pages of {' and '.join(f'{width:,}' for width in sorted(widths))} bytes: how vLLM {self} "
                "lays them out is not known here. Compute with 0.29 or later"
            )
        return groups

    def capacity(
        self,
        groups_of_ranks: Sequence[Sequence[KVCacheGroup]],
        available_bytes: Sequence[int],
        limits: RequestLimits,
    ) -> KVCacheCapacity:
        """Count what fits as this release does; see :func:`~pagedattn_lab.kv_cache_groups.capacity`."""
        return planning.capacity(groups_of_ranks, available_bytes, limits, formula=self.formula)

    def fit_check(
        self, groups: Sequence[KVCacheGroup], available_bytes: int, limits: RequestLimits
    ) -> planning.FitCheck:
        """Check as this release does whether one request fits; see :func:`~pagedattn_lab.kv_cache_groups.fit_check`."""
        return planning.fit_check(groups, available_bytes, limits, null_block=self.null_block)

    def available_lines(self, available_bytes: int) -> list[str]:
        """Print what the cache gets as this release does; nothing where a release does not.

        Example:
            >>> vllm_version("0.10").available_lines(4187593114), vllm_version("0.33").available_lines(4187593114)
            (['Available KV cache memory: 3.90 GiB'], ['Available KV cache memory: 3.9 GiB'])
        """
        if self.available_line is None:
            return []
        figure = f"{available_bytes / GIB:.2f}" if self.available_line == "two places" else format_gib(available_bytes)
        return [f"Available KV cache memory: {figure} GiB"]

    def capacity_lines(
        self,
        found: KVCacheCapacity,
        limits: RequestLimits,
        *,
        device: Device = "gpu",
        num_cpu_blocks: int | None = None,
    ) -> list[str]:
        """Print a capacity as this release does.

        Args:
            found: what fits.
            limits: what one request may take.
            device: where the model runs; older releases say GPU for a CPU too.
            num_cpu_blocks: blocks in the swap space, which the oldest releases print.

        Example:
            >>> found = KVCacheCapacity(5691, 512, 5691 / 512, 91056)
            >>> print(*vllm_version("0.6").capacity_lines(found, RequestLimits(8192, 8192)), sep="; ")
            # GPU blocks: 5691; Maximum concurrency for 8192 tokens per request: 11.12x
        """
        length, times = limits.max_model_len, f"{found.max_concurrency:.2f}x"
        if self.lines.startswith("#"):
            swap = "" if num_cpu_blocks is None else f", # CPU blocks: {num_cpu_blocks}"
            return [
                f"{self.lines} blocks: {found.num_blocks}{swap}",
                f"Maximum concurrency for {length} tokens per request: {times}",
            ]
        name = device.upper() if self.lines == "device" else "GPU"
        size = f"{name} KV cache size: {found.kv_tokens:,} tokens"
        concurrency = f"Maximum concurrency for {length:,} tokens per request: {times}"
        return [size, concurrency] if self.lines == "two lines" else [f"{size}, {concurrency}"]


_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.?(?:post|rc|dev|a|b)\d+)*(?:\+\S*)?")


def vllm_version(text: str) -> VLLMVersion:
    """Read a version as vLLM prints it, and say how that release sizes a cache.

    A build between two releases (``0.19.1rc1.dev301``) counts as the one it names.

    Raises:
        BudgetError: no version, or older than what is known.

    Example:
        >>> version = vllm_version("v0.11.2.post1")
        >>> str(version), version.formula, version.gpu_memory_utilization
        ('0.11.2', 'groups', 0.9)
        >>> vllm_version("0.40").note
        'vLLM 0.40.0 is newer than what this book knows: counted as 0.33.0 counts'
    """
    read = _VERSION.fullmatch(text.strip())
    if read is None:
        raise BudgetError(f"{text!r} is not a version of vLLM: give one like '0.33' or '0.11.2'")
    release: Release = (int(read[1]), int(read[2]), int(read[3] or 0))
    if release < OLDEST:
        raise BudgetError(f"vLLM {text}: changes are known from 0.6 on. For a nightly build give the release before it")
    fields: dict[str, Any] = {}
    for change in changes_between(OLDEST, release):
        fields |= change.fields
    return VLLMVersion(release, release[:2] > NEWEST[:2], **fields)


def format_gib(number: int) -> str:
    """Print bytes as GiB the way vLLM does: rounded to two places, without zeros at the end."""
    return str(round(number / GIB, 2))


def padding_lines(groups: Sequence[KVCacheGroup]) -> list[str]:
    """Print what vLLM says of padding layers, one line for each kind of layer that has some.

    Example:
        >>> from pagedattn_lab.kv_cache_specs import FullAttentionSpec, SlidingWindowSpec
        >>> full = FullAttentionSpec(block_size=16, num_kv_heads=16, head_size=128, dtype="bfloat16")
        >>> window = SlidingWindowSpec(16, 16, 128, "bfloat16", sliding_window=1024)
        >>> specs = {f"layers.{i}": full if i % 6 == 5 else window for i in range(62)}
        >>> padding_lines(planning.kv_cache_groups(specs))
        ['Add 8 padding layers, may waste at most 15.38% KV cache memory']
    """
    buckets: dict[int, tuple[int, int]] = {}
    for group in groups:
        layers, padding = buckets.get(group.bucket, (0, 0))
        buckets[group.bucket] = layers + len(group.layers), padding + group.padding_layers
    return [
        f"Add {padding} padding layers, may waste at most {padding / layers * 100:.2f}% KV cache memory"
        for layers, padding in buckets.values()
        if padding
    ]
