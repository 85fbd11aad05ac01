"""Sampling: what one output would be if it were drawn alone, with blocks shared and copied."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from pagedattn_lab.engine.sampling import generate_greedily, sample
from pagedattn_lab.request import Request
from tests.helpers.engine import HIDDEN, PROMPT, engine_of, requests_of, shuffle, small
from tests.helpers.models import assert_scores_close, log_probs_of


def dense_sample(
    model: PreTrainedModel, prompt: Sequence[int], index: int, max_tokens: int, temperature: float, seed: int,
    stop: Collection[int],
) -> tuple[list[int], float]:  # fmt: skip
    """Draw one output by itself, without any cache."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    tokens: list[int] = []
    score = 0.0
    while len(tokens) < max_tokens and (not tokens or tokens[-1] not in stop):
        log_probs = log_probs_of(model, [*prompt, *tokens])
        token = int(torch.multinomial((log_probs / temperature).softmax(-1), 1, generator=generator))
        tokens.append(token)
        score += log_probs[token].item()
    return tokens, score


@pytest.mark.parametrize("temperature", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_samples_equal_those_drawn_alone(block_size: int, temperature: float) -> None:
    """Catches an output that reads or disturbs another's tokens, draws another's random numbers, goes on after its stop
    token, or is given another's score, and a score at the wrong temperature.
    """
    engine = engine_of(block_size)
    pool = engine.manager.block_pool
    shuffle(pool)
    [request] = requests_of([PROMPT])
    decoded = sample(engine, request, 6, 10, temperature=temperature, seed=5, stop_token_ids={3})
    alone = [dense_sample(small(), PROMPT, index, 10, temperature, 5, {3}) for index in range(6)]
    assert decoded.sequences == [tokens for tokens, _ in alone]
    largest = max(log_probs_of(small(), PROMPT).abs()).item()
    lengths = [len(tokens) for tokens in decoded.sequences]
    assert_scores_close(decoded.scores, [score for _, score in alone], lengths, HIDDEN, largest)
    assert len({*lengths}) > 1 and len({*map(tuple, decoded.sequences)}) > 3
    assert pool.num_used_blocks == 0


def test_samples_do_not_depend_on_how_many_there_are() -> None:
    """Catches generators that take turns, and seeds of which two give one output."""
    engine = engine_of()

    def outputs(n: int, seed: int) -> list[list[int]]:
        return sample(engine, Request("Ada", PROMPT), n, 9, temperature=2.0, seed=seed).sequences

    assert outputs(7, 3)[:2] == outputs(2, 3)
    seen = [tuple(tokens) for seed in range(4) for tokens in outputs(7, seed)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-46, 1e-60, 5e-324])
def test_temperature_zero_is_greedy(temperature: float) -> None:
    """Catches a division by 0, by a number that float32 rounds to 0, or so small that nothing is left to draw from."""
    engine = engine_of()
    expected = generate_greedily(engine, [Request("Ada", PROMPT)], 9)
    decoded = sample(engine, Request("Ada", PROMPT), 3, 9, temperature=temperature)
    assert decoded.sequences == expected * 3
    assert len({*decoded.scores}) == 1
