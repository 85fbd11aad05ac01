"""How far rounding can drive two right answers apart (appendix A2)."""

from __future__ import annotations

import math

import torch


def tolerance(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> float:
    """Bound the difference between two ways of computing attention over the same keys and values.

    With ``u`` half of the machine epsilon, a score of ``d`` products is off by at most about ``d u`` times the largest
    score there can be. An error in a score becomes a relative error of its weight, in numerator and denominator; the
    two sums over ``n`` tokens add ``n u`` each; the output is a mean of values, so all of it scales with the largest of
    them. Two ways may each be off by that much. The formula has ``d + 10`` for ``d`` and ``4 n + 8`` for ``n``: a
    margin for scaling, the exponential, the rescaling of an online softmax and the division. Scores are scaled by
    ``1 / sqrt(head_dim)``.

    In ``dtype``, each way rounds its results, and may round its weights before they meet the values, as tensor cores
    need them: together twice the epsilon of ``dtype``. Caches in 8 bits are another matter: what they round is no
    matter of order.

    Args:
        query: ``[..., head_dim]``.
        key, value: ``[num_tokens, ..., head_dim]``, without NaN.
        num_tokens: tokens that one query sees at most; by default ``len(key)``.
        dtype: in which results are stored, and weights perhaps; by default that of ``query``. Sums are taken in
            float32 at least.

    Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1, for sums of products.

    Example:
        >>> query, key, value = torch.ones(4), torch.ones(9, 4), torch.ones(9, 4)
        >>> tolerance(query, key, value) < 1e-4 < tolerance(query, key, value, dtype=torch.float16)
        True
    """
    dtype = query.dtype if dtype is None else dtype
    compute = torch.promote_types(query.dtype, torch.float32)
    num_tokens = len(key) if num_tokens is None else num_tokens
    unit, head_dim = torch.finfo(compute).eps / 2, query.shape[-1]
    norms = (tensor.to(compute).norm(dim=-1).max() for tensor in (query, key))
    largest_score = math.prod(norms) / math.sqrt(head_dim)
    relative = 4 * unit * ((head_dim + 10) * largest_score + 4 * num_tokens + 8)
    return float((relative + 2 * torch.finfo(dtype).eps) * value.to(compute).abs().max())
