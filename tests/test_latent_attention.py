"""Attention to latents equals attention to the keys and values that would be made of them, and takes less memory."""

from __future__ import annotations

import math

import pytest
import torch

from pagedattn_lab.attention import paged_attention
from pagedattn_lab.attention.latent import absorbed_query, expanded_output, latent_attention
from pagedattn_lab.kv_shape import KVShape
from tests.helpers.oracle import Batch, ragged_batch

RANK, NOPE, ROPE, VALUE = 20, 12, 8, 10
EPS = torch.finfo(torch.float64).eps


def latent_batch(
    seq_lens: list[int], query_lens: list[int], heads: int, block_size: int
) -> tuple[Batch, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Lay random latents out in scattered blocks, NaN in every slot that no token has, with random matrices."""
    batch = ragged_batch(
        seq_lens, query_lens, block_size=block_size, head_dim=RANK + ROPE, heads=1, kv_heads=1, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query = random(sum(query_lens), heads, NOPE + ROPE)
    w_uk, w_uv = random(heads, NOPE, RANK), random(heads, VALUE, RANK)
    rest = {"block_tables": batch.block_tables, "seq_lens": batch.seq_lens, "query_start_loc": batch.query_start_loc}
    return batch, (query, batch.key_cache, w_uk, w_uv), rest


def expanded(latents: torch.Tensor, w_uk: torch.Tensor, w_uv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make each head's keys and values, ``[..., num_heads, dim]``, of latents ``[..., 1, RANK + ROPE]``."""
    latent, rotated = latents[..., 0, :RANK], latents[..., RANK:]
    key = torch.einsum("...r,hnr->...hn", latent, w_uk)
    rotated = rotated.expand(*key.shape[:-1], ROPE)
    return torch.cat([key, rotated], dim=-1), torch.einsum("...r,hvr->...hv", latent, w_uv)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("heads", [1, 5, 16])
def test_equals_attention_to_what_the_latents_stand_for(heads: int, block_size: int, scale: float | None) -> None:
    """Catches a matrix of another head, a key without its rotated part, a value with it, and scores that are scaled by
    the width of a latent.
    """
    _, arguments, rest = latent_batch([1, 9, 40, 17], [1, 3, 1, 17], heads, block_size)
    query, latent_cache, w_uk, w_uv = arguments
    output = latent_attention(*arguments, **rest, scale=scale)
    key_cache, value_cache = expanded(latent_cache, w_uk, w_uv)
    assert key_cache.shape[2:] == (heads, NOPE + ROPE) and value_cache.shape[2:] == (heads, VALUE)
    expected = paged_attention(query, key_cache, value_cache, **rest, scale=scale)
    assert output.shape == expected.shape == (22, heads, VALUE)
    # A score is a sum of NOPE x RANK + ROPE products, taken in two orders; its error becomes a relative error of a
    # weight. The output is a mean over tokens of sums of RANK products. Twice, since either way may be off.
    factor = 1 / math.sqrt(NOPE + ROPE) if scale is None else scale
    sizes = expanded(latent_cache.abs().nan_to_num(), w_uk.abs(), w_uv.abs())
    largest_score = (query.abs().amax(0) * sizes[0].amax((0, 1))).sum(-1).max() * factor
    relative = 2 * EPS * ((NOPE + RANK + ROPE) * largest_score + 40 + RANK + 8)
    assert (output - expected).abs().max() <= 2 * relative * sizes[1].max()


def test_every_token_sees_itself_and_what_came_before() -> None:
    """Catches an agreement of two wrong answers: here attention is written out, without a page table."""
    batch, arguments, rest = latent_batch([6], [6], 2, 4)
    query, _, w_uk, w_uv = arguments
    output = latent_attention(*arguments, **rest)
    key, value = expanded(batch.dense[0][0], w_uk, w_uv)
    for at in range(6):
        for head in range(2):
            weights = torch.softmax(key[: at + 1, head] @ query[at, head] / math.sqrt(NOPE + ROPE), dim=0)
            torch.testing.assert_close(output[at, head], weights @ value[: at + 1, head], rtol=1e-12, atol=1e-12)


def test_projections_are_each_others_kind() -> None:
    """Catches a projection of the query that is not the transpose of the one of the key, on numbers counted by hand."""
    w = torch.tensor([[[1.0, 2], [3, 4], [5, 6]]])  # one head: three numbers of two
    query = torch.tensor([[[1.0, 10, 100, 7]]])
    assert absorbed_query(query, w).tolist() == [[[531, 642, 7]]]
    assert expanded_output(torch.tensor([[[1.0, 10]]]), w).tolist() == [[[21, 43, 65]]]


def test_deepseek_v3_keeps_71_times_less() -> None:
    """Catches a cache of latents that costs more than the paper says: 576 numbers for each of 61 layers."""
    latents = KVShape(61, 1, 512 + 64, "bfloat16", value_dim=512, latent=True)
    keys_and_values = KVShape(61, 128, 128 + 64, "bfloat16", value_dim=128)
    assert latents.bytes_per_token == 576 * 61 * 2 == 70_272
    assert keys_and_values.bytes_per_token == 128 * (192 + 128) * 61 * 2 == 4_997_120
    assert keys_and_values.bytes_per_token / latents.bytes_per_token == pytest.approx(71.1, abs=0.05)


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (1, 20), "query has shape"),
        (1, (3, 4, 1, RANK), "latent_cache has shape"),
        (1, (3, 4, 2, RANK + ROPE), "latent_cache has shape"),
        (2, (3, NOPE, RANK), r"w_uk \(3, 12, 20\)"),
        (2, (NOPE, RANK), r"w_uk \(12, 20\)"),
        (3, (3, VALUE, RANK), r"w_uv \(3, 10, 20\)"),
        (3, (2, VALUE, RANK + 1), r"w_uv \(2, 10, 21\)"),
    ],
)
def test_what_does_not_fit_is_named(index: int, shape: tuple[int, ...], message: str) -> None:
    """Catches matrices that broadcast over heads, and a latent whose rotated key is missing."""
    _, arguments, rest = latent_batch([3], [1], 2, 4)
    wrong = [*arguments]
    wrong[index] = torch.zeros(*shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        latent_attention(*wrong, **rest)
