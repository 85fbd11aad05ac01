"""Beam search: the sequences and scores of transformers' own, with blocks shared and copied."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection

import pytest
import torch
from transformers import PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.engine.beam_search import beam_search
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.engine.sampling import Decoded
from pagedattn_lab.request import Request
from pagedattn_lab.studies.block_savings import Sharing
from tests.helpers.draws import ENGINE
from tests.helpers.engine import PROMPT, VOCAB, engine_of, requests_of, shuffle, small
from tests.helpers.models import assert_scores_close, greedy, log_probs_of, tiny, transformers_beams


def assert_beams_equal(
    engine: EngineCore, prompt: list[int], num_beams: int, max_tokens: int, stop: Collection[int], **rest: object
) -> Decoded:
    """Compare one search with transformers'."""
    model, pool = engine.runner.model, engine.manager.block_pool
    settings = {name: value for name, value in rest.items() if name != "on_step"}
    sequences, scores = transformers_beams(model, prompt, num_beams, max_tokens, stop, **settings)
    shuffle(pool)
    [request] = requests_of([prompt])
    decoded = beam_search(engine, request, num_beams, max_tokens, stop_token_ids=stop, **rest)
    assert decoded.sequences == sequences
    logits = model(torch.tensor([prompt])).logits
    config = model.config
    terms = max(config.hidden_size, getattr(config, "intermediate_size", 0))
    power = rest.get("length_penalty", 1.0)
    assert_scores_close(decoded.scores, scores, [*map(len, sequences)], terms, logits.abs().max().item(), power)
    assert pool.num_used_blocks == 0
    return decoded


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_beams_equal_transformers(block_size: int, early_stopping: bool | str) -> None:
    """Catches beams that go on from another's keys, too few candidates, a penalty by the wrong length, and a search
    that ends too early or too late.
    """
    ended, lengths = 0, set()
    for seed, length_penalty in enumerate((-1.0, 0.0, 0.5, 1.0, 2.0)):
        stop = ({3}, {3, 4, 5}, set())[seed % 3]
        engine = engine_of(block_size, model=small(seed))
        for num_beams in (2, 3, 5, 8):
            decoded = assert_beams_equal(
                engine, PROMPT[: 3 + seed], num_beams, 9, stop, length_penalty=length_penalty,
                early_stopping=early_stopping,
            )  # fmt: skip
            ended += sum(bool(stop & {*tokens}) for tokens in decoded.sequences)
            lengths |= {len(tokens) for tokens in decoded.sequences}
    assert ended > 20 and len(lengths) > 3, "hardly any sequence ended by itself: nothing about stopping was tested"


def test_every_setting_of_the_penalty_and_of_stopping_matters() -> None:
    """Catches settings that are not looked at, and cases that would agree with transformers whatever a setting did."""
    found: dict[tuple, list] = {}
    for seed, power, early_stopping in itertools.product((0, 1, 6), (-0.5, 0.0, 2.0), (True, False, "never")):
        decoded = assert_beams_equal(
            engine_of(model=small(seed)), PROMPT, 4, 12, {3, 4}, length_penalty=power, early_stopping=early_stopping
        )
        found.setdefault((power, early_stopping), []).append(decoded.sequences)
    assert found[-0.5, False] != found[0.0, False] != found[2.0, False]
    assert found[2.0, True] != found[2.0, False] != found[2.0, "never"]


def test_every_beam_could_end() -> None:
    """Catches too few candidates where several stop tokens are the likeliest words of all."""
    likeliest = log_probs_of(small(), PROMPT).topk(4).indices.tolist()
    decoded = assert_beams_equal(engine_of(), PROMPT, 2, 6, {*likeliest}, length_penalty=3.0, early_stopping="never")
    assert max(map(len, decoded.sequences)) > 1


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma2"])
def test_beams_of_other_families(kind: str) -> None:
    """Catches sharing that works with one family's positions, heads or windows only."""
    assert_beams_equal(engine_of(model=tiny(kind, vocab_size=20)), PROMPT, 4, 10, {2}, length_penalty=0.5)


@pytest.fixture(scope="module")
def real() -> tuple[PreTrainedModel, Callable[[str], list[int]], set[int]]:
    """The book's model, what turns a text into its prompt, and its stop tokens."""
    model, tokenizer = models.load(dtype=torch.float32)
    return model, functools.partial(models.encode_prompt, tokenizer), models.stop_token_ids(model, tokenizer)


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"), [(2, 1.0, False), (6, 2.0, "never")], ids=["two", "six"]
)
def test_beams_of_the_real_model(real: tuple, num_beams: int, length_penalty: float, early_stopping: object) -> None:
    """Catches what random weights hide: rotary positions and the model's own stop tokens."""
    model, encode, stop = real
    sharing = Sharing()
    assert_beams_equal(
        engine_of(16, model=model), encode("Name three rivers."), num_beams, 8, stop, length_penalty=length_penalty,
        early_stopping=early_stopping, on_step=lambda tables, parents, copied: sharing.observe(tables, copied),
    )  # fmt: skip
    assert sharing.saving > 0.3


def test_one_beam_is_greedy() -> None:
    """Catches a search that needs a second beam."""
    decoded = beam_search(engine_of(), Request("Ada", PROMPT), 1, 8)
    assert decoded.sequences == [greedy(small(), PROMPT, 8)]


def test_beams_that_find_everything() -> None:
    """Catches a search that misses sequences although it keeps as many as there are."""
    width, length = VOCAB**2, 3
    decoded = beam_search(engine_of(num_blocks=2000), Request("Ada", PROMPT), width, length, length_penalty=0.0)
    first = log_probs_of(small(), PROMPT)
    second = torch.stack([log_probs_of(small(), [*PROMPT, one]) for one in range(VOCAB)])
    pairs = itertools.product(range(VOCAB), repeat=2)
    third = torch.stack([log_probs_of(small(), [*PROMPT, *pair]) for pair in pairs]).reshape(VOCAB, VOCAB, VOCAB)
    totals = first[:, None, None] + second[:, :, None] + third
    best = totals.flatten().topk(width).indices
    assert decoded.sequences == torch.stack(torch.unravel_index(best, totals.shape), dim=1).tolist()
