"""Every Triton kernel of the library by name, and what the library launches for a batch (chapter 08).

A kernel is not compiled from a list of types written beside it, which would drift. The function that launches it is
called, and its launch is kept. So a new kernel needs two things here: a function that starts it, and an entry in
:data:`KERNELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import at_least_one, cdiv

if TYPE_CHECKING:
    import torch

    from pagedattn_lab.attention.launch import Launch

DTYPES = ("bfloat16", "float16", "float32")
"""Of queries, keys and values."""

CONTEXT_LEN = 4096
"""Tokens of each sequence in a batch that is compiled for."""

NUM_SEQS = 8
"""Sequences in that batch."""


@dataclass(frozen=True)
class Batch:
    """A batch of sequences, each with one query: the arguments of the functions that launch kernels.

    Only shapes, strides, dtypes and addresses matter, since nothing is run. The cache has two blocks.
    """

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    scale: float

    @classmethod
    def of(cls, dtype: str, head_dim: int, num_heads: int, num_kv_heads: int, block_size: int) -> Batch:
        """Make one on the CPU.

        Raises:
            ValueError: a number below 1, an unknown dtype, or heads that cannot share KV heads evenly.
        """
        import torch

        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
        sizes = {"head_dim": head_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "block_size": block_size}
        for name, size in sizes.items():
            at_least_one(name, size)
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} heads cannot share {num_kv_heads} KV heads evenly: give a multiple")
        key_cache = torch.empty(2, block_size, num_kv_heads, head_dim, dtype=getattr(torch, dtype))
        return cls(
            query=torch.empty(NUM_SEQS, num_heads, head_dim, dtype=key_cache.dtype),
            key_cache=key_cache,
            value_cache=torch.empty_like(key_cache),
            block_tables=torch.ones(NUM_SEQS, cdiv(CONTEXT_LEN, block_size), dtype=torch.int32),
            seq_lens=torch.full((NUM_SEQS,), CONTEXT_LEN, dtype=torch.int32),
            query_start_loc=torch.arange(NUM_SEQS + 1, dtype=torch.int32),
            scale=head_dim**-0.5,
        )


@dataclass(frozen=True)
class Kernel:
    """One kernel that can be compiled.

    Attributes:
        name: of the ``@triton.jit`` function.
        start: does to a batch what the library does: it launches that kernel, and perhaps others.
    """

    name: str
    start: Callable[[Batch], Any]


def _decode(batch: Batch) -> None:
    from pagedattn_lab.attention.triton_decode import triton_attention

    triton_attention(**vars(batch))


def _grouped(batch: Batch, splits: int = 1) -> None:
    from pagedattn_lab.attention.triton_split import decode_attention

    tensors = (batch.query, batch.key_cache, batch.value_cache, batch.block_tables, batch.seq_lens)
    decode_attention(*tensors, batch.scale, splits=splits)


def _split(batch: Batch) -> None:
    _grouped(batch, splits=16)


def _prefill(batch: Batch) -> None:
    from pagedattn_lab.attention.triton_prefill import prefill_attention

    prefill_attention(**vars(batch))


def _cache(batch: Batch) -> None:
    from pagedattn_lab.attention.triton_cache import reshape_and_cache

    _, block_size, *row = batch.key_cache.shape
    new = batch.key_cache.new_empty(NUM_SEQS, *row)  # one token a sequence
    slots = block_size + batch.query_start_loc[:-1].long() % block_size  # of block 1
    reshape_and_cache(new, new.clone(), batch.key_cache, batch.value_cache, slots)


KERNELS = {
    "decode": Kernel("paged_decode_kernel", _decode),
    "grouped": Kernel("paged_grouped_kernel", _grouped),
    "split": Kernel("paged_grouped_kernel", _split),
    "merge": Kernel("merge_splits_kernel", _split),
    "prefill": Kernel("paged_prefill_kernel", _prefill),
    "cache": Kernel("reshape_and_cache_kernel", _cache),
}
"""Every kernel by the name that a reader gives it."""


def keep_launch(name: str, batch: Batch) -> Launch:
    """Find out what the library launches for a batch, without running it.

    Args:
        name: one of :data:`KERNELS`.
        batch: whose tensors it gets.

    Raises:
        ValueError: an unknown name, or a batch for which the library does not launch that kernel or refuses to.
        ImportError: Triton is not installed.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel {name!r} is unknown: use one of {', '.join(KERNELS)}")
    need_triton()
    from pagedattn_lab.attention.launch import kept_launches

    kernel = KERNELS[name]
    with kept_launches() as launches:
        kernel.start(batch)
    for launch in launches:
        if launch.kernel.__name__ == kernel.name:
            return launch
    names = ", ".join(launch.kernel.__name__ for launch in launches) or "nothing"
    raise ValueError(f"for this batch the library launches {names}, not {kernel.name}")


def need_triton() -> None:
    """Say what to do where Triton is missing.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            "compiling needs the package triton, which is published for Linux only: "
            "run this on Linux (WSL and Colab count)"
        ) from error
