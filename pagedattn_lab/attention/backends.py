"""The backends of paged attention in one table, and the one rule by which ``"auto"`` picks (chapters 04, 07, 08)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pagedattn_lab.attention.reference import reference_attention


@dataclass(frozen=True)
class Backend:
    """One way to compute attention through a page table.

    Attributes:
        name: what callers ask for.
        run: from ``(query, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale)`` and, by name,
            ``softcap`` and ``sliding_window``, to the output. It checks nothing that
            :mod:`pagedattn_lab.attention.checks` does.
        fast_on: types of device on which it is compiled, so that ``"auto"`` prefers it there.
        suits_prompts: whether many queries of one sequence share what they read.
        softcap, sliding_window: whether it has them.
    """

    name: str
    run: Callable[..., torch.Tensor]
    fast_on: frozenset[str] = frozenset()
    suits_prompts: bool = True
    softcap: bool = True
    sliding_window: bool = True

    def lacks(self, softcap: float | None, sliding_window: int | None) -> str | None:
        """Name what a call asks for and this backend does not have, or give ``None``.

        Example:
            >>> BACKENDS["triton"].lacks(softcap=None, sliding_window=8)
            'sliding_window (8)'
        """
        if softcap is not None and not self.softcap:
            return f"softcap ({softcap})"
        if sliding_window is not None and not self.sliding_window:
            return f"sliding_window ({sliding_window})"
        return None


def _run_triton(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    softcap: None = None,
    sliding_window: None = None,
) -> torch.Tensor:
    # Imported late: Triton exists for Linux only, and the other backends must work without it.
    try:
        from pagedattn_lab.attention.triton_decode import triton_attention
    except ModuleNotFoundError as error:
        raise ImportError(
            'the "triton" backend needs the package triton, which is published for Linux only: '
            'use backend="reference" here, or run the book on Linux (WSL and Colab count)'
        ) from error
    return triton_attention(query, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("reference", reference_attention),
        Backend(
            "triton",
            _run_triton,
            fast_on=frozenset({"cuda"}),
            suits_prompts=False,
            softcap=False,
            sliding_window=False,
        ),
    )
}
"""Every backend by its name; the last that fits wins under ``"auto"``, and the first fits always."""

NAMES = ("auto", *BACKENDS)
"""What a caller may ask for."""


def choose(
    name: str,
    device: torch.device,
    *,
    prompts: bool,
    softcap: float | None = None,
    sliding_window: int | None = None,
) -> Backend:
    """Find the backend of a call.

    Under ``"auto"`` it is the fastest for the device that has what the call asks for; calls that hold prompts go to one
    that suits them. A backend asked for by name runs, or says what it lacks.

    Args:
        name: one of :data:`NAMES`.
        device: where the tensors are.
        prompts: whether a sequence has more than one query.
        softcap, sliding_window: as for :func:`pagedattn_lab.attention.paged_attention`.

    Raises:
        ValueError: an unknown name.
        NotImplementedError: the backend asked for lacks ``softcap`` or ``sliding_window``.

    Example:
        >>> cpu, gpu = torch.device("cpu"), torch.device("cuda")
        >>> choose("auto", cpu, prompts=False).name, choose("auto", gpu, prompts=False).name
        ('reference', 'triton')
        >>> choose("auto", gpu, prompts=True).name, choose("auto", gpu, prompts=False, softcap=30.0).name
        ('reference', 'reference')
    """
    check_name(name)
    if name == "auto":
        return next(
            (
                backend
                for backend in reversed(BACKENDS.values())
                if device.type in backend.fast_on
                and (backend.suits_prompts or not prompts)
                and not backend.lacks(softcap, sliding_window)
            ),
            BACKENDS["reference"],
        )
    backend = BACKENDS[name]
    missing = backend.lacks(softcap, sliding_window)
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
