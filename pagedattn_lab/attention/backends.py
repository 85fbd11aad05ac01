"""The backends of paged attention in one table, and the one rule by which ``"auto"`` picks (chapters 04, 07, 08)."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pagedattn_lab.attention.cascade import Cascade, Prefix, can_cascade, cascade_attention, prefix_product
from pagedattn_lab.attention.quantize import triton_has_float8
from pagedattn_lab.attention.reference import reference_attention
from pagedattn_lab.attention.variant import PLAIN, Variant

MAX_DIM = 1024
"""Elements of a key or a value that a tile of the Triton kernels has room for."""


@dataclass(frozen=True)
class Call:
    """What of a call decides which backend can run it.

    Attributes:
        device: type of device, such as ``"cpu"``.
        dtype, cache_dtype: of query and of the two caches.
        head_dim, value_dim: elements of a key and of a value.
        prompts: whether a sequence has more than one query.
        variant: what the layer does besides a plain causal softmax.
    """

    device: str
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype = torch.float32
    head_dim: int = 64
    value_dim: int = 64
    prompts: bool = False
    variant: Variant = PLAIN

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        *,
        prompts: bool,
        variant: Variant = PLAIN,
    ) -> Call:
        """Describe a call by its tensors, which are those of :func:`pagedattn_lab.attention.paged_attention`."""
        return cls(
            query.device.type,
            query.dtype,
            key_cache.dtype,
            key_cache.shape[3],
            value_cache.shape[3],
            prompts,
            variant,
        )


def _lacks_nothing(call: Call) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One way to compute attention through a page table.

    Attributes:
        name: what callers ask for.
        run: from ``(query, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale, variant)`` to the
            output. It checks nothing that :mod:`pagedattn_lab.attention.checks` does. If there is a ``prefix``, it
            takes ``return_lse=True`` and then gives the log-sum-exps of the scores too, ``[num_tokens, num_heads]``.
        lacks: from a call to a few words on what this backend does not have of it, or ``None``.
        fast_on: types of device on which it is compiled, so that ``"auto"`` prefers it there.
        suits_prompts: whether many queries of one sequence share what they read.
        package: what it needs besides torch; ``"auto"`` passes it over where that is not installed.
        prefix: how it attends to blocks that several sequences begin with, once for all of them; ``None`` for the
            reference, an oracle, which has none of that.
    """

    name: str
    run: Callable[..., torch.Tensor]
    lacks: Callable[[Call], str | None] = _lacks_nothing
    fast_on: frozenset[str] = frozenset()
    suits_prompts: bool = True
    package: str | None = None
    prefix: Prefix | None = None

    def attend(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        block_tables: torch.Tensor,
        seq_lens: torch.Tensor,
        query_start_loc: torch.Tensor,
        scale: float,
        variant: Variant = PLAIN,
        cascade: Cascade | None = None,
    ) -> torch.Tensor:
        """Run it, after a cascade over shared prefixes if there is one and this backend and variant allow it."""
        if cascade is None or self.prefix is None or not can_cascade(variant):
            lens = (seq_lens, query_start_loc)
            return self.run(query, key_cache, value_cache, block_tables, *lens, scale, variant)
        tensors = (query, key_cache, value_cache)
        return cascade_attention(self.run, self.prefix, *tensors, cascade, query_start_loc, scale, variant)


def _triton_decode_lacks(call: Call) -> str | None:
    options = call.variant.asked_for()
    if options:
        return f"{options[0]} ({getattr(call.variant, options[0])})"
    if call.head_dim != call.value_dim:
        return f"values of {call.value_dim} elements beside keys of {call.head_dim}"
    return None


def _run_triton_decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    variant: Variant = PLAIN,
) -> torch.Tensor:
    with _triton_needed():
        from pagedattn_lab.attention.triton_decode import triton_attention
    return triton_attention(query, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale)


def _triton_lacks(call: Call) -> str | None:
    if call.dtype == torch.float64:
        return "float64"
    if max(call.head_dim, call.value_dim) > MAX_DIM:
        return f"heads of more than {MAX_DIM} elements ({max(call.head_dim, call.value_dim)})"
    if call.device == "cuda" and call.cache_dtype == torch.float8_e4m3fn and not triton_has_float8():
        major, minor = torch.cuda.get_device_capability()
        return f"float8_e4m3fn on GPUs before compute capability 8.9 (this one has {major}.{minor})"
    return None


def _run_triton(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    variant: Variant = PLAIN,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    with _triton_needed():
        from pagedattn_lab.attention.triton_prefill import prefill_attention
        from pagedattn_lab.attention.triton_split import decode_attention
    lse = query.new_empty(query.shape[:2], dtype=torch.float32) if return_lse else None
    tensors = (query, key_cache, value_cache, block_tables, seq_lens)
    if len(query) == len(seq_lens):
        output = decode_attention(*tensors, scale, variant, lse=lse)
    else:
        output = prefill_attention(*tensors, query_start_loc, scale, variant, lse)
    return output if lse is None else (output, lse)


def _triton_prefix(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with _triton_needed():
        from pagedattn_lab.attention.triton_prefill import prefix_attention
    return prefix_attention(*arguments)


@contextmanager
def _triton_needed() -> Iterator[None]:
    """Say what to do where Triton is missing. It exists for Linux only, so whoever needs it imports it late."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            'the "triton" backends need the package triton, which is published for Linux only: '
            'use backend="reference" here, or run the book on Linux (WSL and Colab count)'
        ) from error


def _cpu_lacks(call: Call) -> str | None:
    if call.device != "cpu":
        return f"tensors on {call.device}"
    for name, dtype in (("queries", call.dtype), ("caches", call.cache_dtype)):
        if dtype not in (torch.float32, torch.bfloat16):
            return f"{name} of {dtype}"
    return None


def _run_cpu(*arguments: Any, **options: Any) -> Any:
    # Imported late: numba is optional, and takes a while to load.
    try:
        from pagedattn_lab.attention.cpu import cpu_attention
    except ImportError as error:
        raise ImportError(
            f'the "cpu" backend needs the package numba, which cannot be imported here ({error}): '
            "install it with pip install 'pagedattn-lab[cpu]', or use backend=\"reference\""
        ) from error
    return cpu_attention(*arguments, **options)


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("reference", reference_attention),
        Backend("triton_decode", _run_triton_decode, _triton_decode_lacks, suits_prompts=False, package="triton"),
        Backend("cpu", _run_cpu, _cpu_lacks, fast_on=frozenset({"cpu"}), package="numba", prefix=prefix_product),
        Backend(
            "triton", _run_triton, _triton_lacks, fast_on=frozenset({"cuda"}), package="triton", prefix=_triton_prefix
        ),
    )
}
"""Every backend by its name; the last that fits wins under ``"auto"``, and the first fits always."""

NAMES = ("auto", *BACKENDS)
"""What a caller may ask for."""


def choose(name: str, call: Call) -> Backend:
    """Find the backend of a call.

    Under ``"auto"`` it is the fastest for the device that has what the call asks for; calls that hold prompts go to one
    that suits them. A backend asked for by name runs, or says what it lacks.

    Args:
        name: one of :data:`NAMES`.
        call: what is to be computed, and where.

    Raises:
        ValueError: an unknown name.
        NotImplementedError: the backend asked for lacks something that the call asks for.

    Example:
        >>> choose("auto", Call("cuda")).name, choose("cpu", Call("cpu")).name
        ('triton', 'cpu')
        >>> choose("auto", Call("cuda", prompts=True, variant=Variant(softcap=30.0))).name
        'triton'
        >>> choose("auto", Call("cuda", torch.float64)).name
        'reference'
    """
    check_name(name)
    if name == "auto":
        return next(
            (
                backend
                for backend in reversed(BACKENDS.values())
                if call.device in backend.fast_on
                and (backend.package is None or _is_installed(backend.package))
                and (backend.suits_prompts or not call.prompts)
                and not backend.lacks(call)
            ),
            BACKENDS["reference"],
        )
    backend = BACKENDS[name]
    missing = backend.lacks(call)
    if missing:
        raise NotImplementedError(f'the {name} backend has no {missing} yet: use backend="reference"')
    return backend


def check_name(name: str) -> None:
    """Refuse a backend that does not exist.

    Raises:
        ValueError: it is none of :data:`NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is unknown: use one of {', '.join(NAMES)}")
