"""The bound on rounding: no right answer is ever outside it, and a wrong one is far outside."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from pagedattn_lab.attention import paged_attention
from pagedattn_lab.attention.tolerance import tolerance
from tests.helpers.draws import drawn


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(key @ query / query.shape[-1] ** 0.5, dim=0)
    return weights @ value


@settings(max_examples=drawn(60))
@given(
    st.integers(1, 300),
    st.sampled_from([8, 64, 80, 256]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([0.1, 1.0, 5.0]),
    st.integers(0, 99),
)
def test_right_answers_are_inside(length: int, dim: int, dtype: torch.dtype, spread: float, seed: int) -> None:
    """Catches a bound that forgets the length, the head dimension, the sizes of scores and values, or the dtype."""
    generator = torch.Generator().manual_seed(seed)
    query = (torch.randn(dim, generator=generator) * spread).to(dtype)
    key, value = ((torch.randn(length, dim, generator=generator) * spread).to(dtype) for _ in range(2))
    exact = attend(query.double(), key.double(), value.double())
    order = torch.randperm(length, generator=generator)
    for keys, values in ((key, value), (key[order], value[order])):
        ours = attend(query.float(), keys.float(), values.float()).to(dtype)
        assert (ours.double() - exact).abs().max() <= tolerance(query, key, value)


def test_rounded_weights_are_inside() -> None:
    """Catches a bound that forgets that kernels round their weights: the same tokens, in two orders, one kernel.

    Relative to a maximum of one score, all weights are rounded down by nearly half of bfloat16's epsilon; relative to
    that of the other, up. Which of them a tile has for its maximum is a question of the order.
    """
    key, value = torch.zeros(17, 16, 1, 16), torch.ones(17, 16, 1, 16)  # block 0 is the null block
    key[1, 0, 0, 0], key[16, 15, 0, 0] = 1.3515625, 1.359375
    value[1:4] = 1.0078125
    query, lens = torch.zeros(1, 1, 16), torch.tensor([256], dtype=torch.int32)
    query[0, 0, 0] = 4.0
    tensors = [tensor.bfloat16() for tensor in (query, key, value)]
    outputs = []
    for order in (slice(None), torch.arange(255, -1, -1)):
        caches = [cache.clone() for cache in tensors[1:]]
        for cache in caches:
            cache[1:] = cache[1:].flatten(0, 1)[order].view_as(cache[1:])
        table = torch.arange(1, 17, dtype=torch.int32)[None]
        outputs.append(paged_attention(tensors[0], *caches, table, lens, backend="triton"))
    apart = (outputs[0].double() - outputs[1].double()).abs().max()
    limit = tolerance(tensors[0], tensors[1][1:].flatten(0, 1), tensors[2][1:].flatten(0, 1))
    assert torch.finfo(torch.bfloat16).eps * 1.0078125 < apart <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_block_is_outside(dtype: torch.dtype) -> None:
    """Catches a bound so wide that it excuses reading one wrong block of three."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((64,), (48, 64), (48, 64)))
    wrong = value.clone()
    wrong[16:32] = value[:16]
    change = attend(query.double(), key.double(), wrong.double()) - attend(query.double(), key.double(), value.double())
    assert change.abs().max() > 2 * tolerance(query, key, value)


def test_it_grows_with_what_it_is_derived_from() -> None:
    """Catches a constant in place of a derivation."""
    query, key, value = torch.ones(16), torch.ones(10, 16), torch.ones(10, 16)
    base = tolerance(query, key, value)
    assert tolerance(query, key, value, num_tokens=1_000) > 10 * base
    assert tolerance(10 * query, key, value) > 5 * base and tolerance(query, key, 3 * value) == pytest.approx(3 * base)
    assert tolerance(query, key, value, dtype=torch.float16) > torch.finfo(torch.float16).eps
    assert tolerance(query.double(), key.double(), value.double()) < 1e-6 * base
