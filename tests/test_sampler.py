"""From logits to tokens: against an oracle in float64 that knows nothing of ours, and against transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pagedattn_lab.engine import sampler
from pagedattn_lab.engine.sampler import SamplingState, keep_min_p, keep_top_k, keep_top_p, sample_tokens
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.request import Request

EPS = float(np.finfo(np.float32).eps)


def state_of(
    prompt: Sequence[int] = (0,), output: Sequence[int] = (), held_back: Sequence[int] = (), number: int = 0,
    index: int = 0, engine_seed: int = 0, **params: Any,
) -> SamplingState:  # fmt: skip
    request = Request(f"request {number}", prompt)
    for token in output:
        request.append_token(token)
    return SamplingState(request, SamplingParams(**params), frozenset(held_back), engine_seed, number, index)


# --- the oracle: one row, float64, as the definitions read ---------------------------------------------------------


def oracle_scores(logits: np.ndarray, state: SamplingState) -> np.ndarray:
    """Logits after masks and penalties."""
    params, request = state.params, state.request
    scores = logits.astype(np.float64)
    output = request.output_token_ids
    if len(output) < params.min_tokens:
        scores[list(state.held_back)] = -np.inf
    for token in {*request.token_ids}:
        scores[token] = scores[token] / params.repetition_penalty if scores[token] > 0 else (
            scores[token] * params.repetition_penalty)  # fmt: skip
    for token in {*output}:
        scores[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return scores


def oracle_probs(logits: np.ndarray, state: SamplingState) -> tuple[np.ndarray, float]:
    """Probabilities of a draw, and how near the nearest decision of a filter was, relative to what it is about."""
    params = state.params
    scores = oracle_scores(logits, state) / params.temperature
    weights = np.exp(scores - scores.max())
    margin = math.inf
    if params.min_p:
        margin = min(margin, *(abs(float(weight) / params.min_p - 1) for weight in weights))
        weights[weights < params.min_p] = 0
    if 0 < params.top_k < len(weights):
        bar = sorted(weights)[-params.top_k]
        margin = min([margin, *(bar / weight - 1 for weight in weights if 0 < weight < bar)])
        weights[weights < bar] = 0
    if params.top_p < 1:
        whole, before = weights.sum(), 0.0
        for weight in sorted(weights, reverse=True):
            margin = min(margin, abs(before / whole - params.top_p))
            if before / whole >= params.top_p:
                break
            before, bar = before + weight, weight
        margin = min([margin, *(bar / weight - 1 for weight in weights if 0 < weight < bar)])
        weights[weights < bar] = 0
    return weights / weights.sum(), margin


rows_of_logits = st.lists(
    st.one_of(st.floats(-12, 12, width=32), st.sampled_from([-2.0, 0.0, 1.0, 1.5])), min_size=2, max_size=12
).map(np.float32)
rows_without_ties = st.lists(st.integers(-300, 300), min_size=2, max_size=12, unique=True).map(
    lambda numbers: np.float32(numbers) / 25
)
params_of_draws = st.fixed_dictionaries(
    {"temperature": st.floats(0.05, 2.0), "seed": st.integers(0, 50)},
    optional={
        "top_k": st.integers(1, 12), "top_p": st.floats(0.01, 1.0), "min_p": st.floats(0.0, 1.0),
        "repetition_penalty": st.floats(0.5, 3.0), "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
    },
)  # fmt: skip


@given(logits=rows_of_logits, params=params_of_draws, data=st.data())
def test_a_draw_is_what_the_definitions_say(logits: np.ndarray, params: dict[str, Any], data: st.DataObject) -> None:
    """Catches any step left out, done twice, in another order, on other tokens, or with another rule for ties, and a
    token drawn with another chance than its probability: the token is fixed by the number drawn.
    """
    tokens = st.integers(0, len(logits) - 1)
    prompt = data.draw(st.lists(tokens, min_size=1, max_size=5))
    state = state_of(prompt, data.draw(st.lists(tokens, max_size=6)), **params)
    probs, margin = oracle_probs(logits, state)
    # Where rounding decides about a token's being kept, either is right. Logits up to 12 x 3 / 0.05 are rounded to
    # float32 a few times over, and then become exponents.
    largest = np.abs(oracle_scores(logits, state)).max() / state.params.temperature
    rounding = 16 * EPS * max(1.0, largest)
    assume(margin > rounding)
    sums = probs.cumsum()
    drawn = state.draw()
    assume(np.abs(sums - drawn).min() > rounding)
    [sampled] = sample_tokens(torch.from_numpy(logits)[None], [state])
    assert sampled.token_id == int((sums <= drawn).sum())
    assert probs[sampled.token_id] > 0


@given(logits=rows_of_logits, data=st.data())
def test_greedy_is_the_largest_after_masks_and_penalties(logits: np.ndarray, data: st.DataObject) -> None:
    """Catches penalties that greedy requests go without, an end token that comes before ``min_tokens``, and one that is
    held back after.
    """
    tokens = st.integers(0, len(logits) - 1)
    state = state_of(
        data.draw(st.lists(tokens, min_size=1, max_size=5)), data.draw(st.lists(tokens, max_size=6)),
        data.draw(st.sets(tokens, max_size=len(logits) - 1)), temperature=0.0, min_tokens=data.draw(st.integers(0, 8)),
        repetition_penalty=data.draw(st.sampled_from([1.0, 0.5, 2.0])),
        frequency_penalty=data.draw(st.sampled_from([0.0, -1.0, 0.25])),
        presence_penalty=data.draw(st.sampled_from([0.0, -0.5, 2.0])),
    )  # fmt: skip
    scores = oracle_scores(logits, state)
    [sampled] = sample_tokens(torch.from_numpy(logits)[None], [state])
    assert scores[sampled.token_id] >= scores.max() - 8 * EPS * max(1.0, np.abs(scores[np.isfinite(scores)]).max())
    assert np.isfinite(scores[sampled.token_id])


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_greedy_takes_the_first_of_equals(dtype: torch.dtype, requires_grad: bool) -> None:
    """Catches another answer than that of torch's argmax, which ``generate`` of transformers takes: of ties, which are
    common in 16 bits, of NaN, which must not go unseen, and of rows that begin with what is masked.
    """
    logits = torch.randint(-4, 5, (40, 300), generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[3, 7:9], logits[4, :100], logits[5] = math.nan, -math.inf, 0
    states = [state_of(temperature=0.0, number=number) for number in range(len(logits))]
    got = [sampled.token_id for sampled in sample_tokens(logits.requires_grad_(requires_grad), states)]
    assert got == logits.float().argmax(-1).tolist() and got[3] == 7 and got[5] == 0


# --- chances ---------------------------------------------------------------------------------------------------------


def test_chances_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a token drawn too often or too seldom, one of no probability, and an end of the range with no token: all
    multiples of 1/1024 as numbers drawn give each token as many as its probability, to one.
    """
    weights = np.array([0.0, 1, 2, 0, 5, 8, 0])
    logits = torch.from_numpy(np.log(weights, where=weights > 0, out=np.full(7, -np.inf))).float()
    numbers = [step / 1024 for step in range(1024)]
    drawn = []
    for number in numbers:
        monkeypatch.setattr(SamplingState, "draw", lambda self, number=number: number)
        drawn.append(sample_tokens(logits[None], [state_of()])[0].token_id)
    counts = np.bincount(drawn, minlength=7)
    assert np.abs(counts - 1024 * weights / 16).max() <= 1 and counts[weights == 0].sum() == 0
    monkeypatch.setattr(SamplingState, "draw", lambda self: 1 - 2.0**-53)
    assert sample_tokens(logits[None], [state_of()])[0].token_id == 5


def test_the_largest_number_finds_a_token() -> None:
    """Catches a sum that rounding carries past the last token: many sums that are no power of 2, largest number."""

    class Last(SamplingState):
        def draw(self) -> float:
            return 1 - 2.0**-53

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 999, generator=generator)
    logits[:, -3:] = -math.inf
    states = [Last(Request("Ada", [0]), SamplingParams()) for _ in range(200)]
    assert {sampled.token_id for sampled in sample_tokens(logits, states)} == {995}


def test_sums_are_exact_in_a_large_vocabulary() -> None:
    """Catches sums in float32, where 60,000 chances of 1e-7 behind one of 0.994 are rounded to the steps of 6e-8 that
    it has there. In float64 it is less than a millionth of a chance.
    """

    class InTheTail(SamplingState):
        def draw(self) -> float:
            return 0.995 + 0.004 * super().draw()

    logits = torch.zeros(1, 60_000)
    logits[0, 0] = math.log(160 * 60_000)
    states = [InTheTail(Request("Ada", [0]), SamplingParams(), number=number) for number in range(64)]
    sums = logits.softmax(-1)[0].double().numpy().cumsum()
    places = [int(np.searchsorted(sums, state.draw() * sums[-1], side="right")) for state in states]
    assert [one.token_id for one in sample_tokens(logits.expand(64, -1), states)] == places


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_p": 0.49}, 1),
        ({"top_p": 0.51}, 2),
        ({"top_k": 2, "top_p": 0.6}, 1),  # of what top_k leaves, 2/3; of all, 1/2
        ({"min_p": 0.4, "top_p": 0.6}, 1),
        ({"temperature": 0.5, "min_p": 0.26}, 1),  # 1/4 as likely, once divided by the temperature
        ({"temperature": 2.0, "top_p": 0.45}, 2),
    ],
)
def test_filters_work_on_what_is_left(params: dict[str, Any], kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches top-p before top-k or min-p, and filters before the temperature."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log2() * math.log(2)
    found = set()
    for step in range(200):
        monkeypatch.setattr(SamplingState, "draw", lambda self, step=step: step / 200)
        found.add(sample_tokens(logits, [state_of(**params)])[0].token_id)
    assert found == set(range(kept))


def test_numbers_drawn_are_uniform_and_independent() -> None:
    """Catches numbers with a pattern: over tokens, over requests, over seeds, over outputs, and in pairs of neighbours.

    The statistic is chi-square over 64 cells for 25,600 numbers of fixed seeds; the bar is its 1 - 1e-6 quantile
    (136 for 63 degrees of freedom), so a right generator fails with 5e-6 for all five, and this one always passes.
    """

    def numbers(name: str) -> list[float]:
        if name == "tokens":
            state, found = state_of(seed=0), []
            for _ in range(25_600):
                found.append(state.draw())
                state.request.append_token(0)
            return found
        ways = {"number": {}, "index": {"seed": 3}, "engine_seed": {}, "seed": {}}
        return [state_of(**{name: value}, **ways[name]).draw() for value in range(25_600)]

    def chi_square(cells: list[int]) -> float:
        return float(((np.bincount(cells, minlength=64) - 400) ** 2 / 400).sum())

    found = {name: numbers(name) for name in ("tokens", "number", "index", "engine_seed", "seed")}
    for name, drawn in found.items():
        assert all(0 <= one < 1 for one in drawn)
        assert chi_square([int(64 * one) for one in drawn]) < 136, name
    pairs = [*zip(found["tokens"], found["tokens"][1:] + found["tokens"][:1], strict=True)]
    assert chi_square([8 * int(8 * one) + int(8 * two) for one, two in pairs]) < 136


def test_what_a_draw_depends_on() -> None:
    """Catches a seed that is not used, an engine's that overrides the request's own, and outputs that are the same."""
    own = {state_of(seed=5, number=number, engine_seed=engine).draw() for number in range(3) for engine in range(3)}
    assert len(own) == 1
    others = [(number, engine, index) for number in range(3) for engine in range(3) for index in range(3)]
    draws = {state_of(number=number, engine_seed=engine, index=index).draw() for number, engine, index in others}
    assert len(draws) == len(others)
    assert len({state_of(seed=seed, index=index).draw() for seed in (0, 1, -2, 2**70) for index in range(3)}) == 12


# --- who else is in the batch ----------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0}, {"temperature": 0.0, "logprobs": 2}, {}, {"temperature": 0.7, "seed": 4}, {"top_k": 3},
    {"top_p": 0.6}, {"top_p": 0.9, "top_k": 5, "temperature": 1.5}, {"min_p": 0.2, "logprobs": 0},
    {"repetition_penalty": 1.5, "temperature": 0.0}, {"presence_penalty": 1.0, "frequency_penalty": -0.5},
    {"temperature": 0.0, "min_tokens": 9}, {"min_tokens": 4, "logprobs": -1},
]  # fmt: skip


@given(picks=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_a_request_gets_the_same_alone(picks: list[int], seed: int) -> None:
    """Catches a row that is given another's wish, number or report, and a batch that changes the model's logits."""
    logits = 2 * torch.randn(len(picks), 23, generator=torch.Generator().manual_seed(seed))
    states = [state_of([1, 2], [3, 3, 4], [5, 6], number=row, **KINDS[pick]) for row, pick in enumerate(picks)]
    before = logits.clone()
    together = sample_tokens(logits, states)
    assert torch.equal(logits, before)
    alone = [sample_tokens(logits[row : row + 1], [state])[0] for row, state in enumerate(states)]
    assert [one.token_id for one in together] == [one.token_id for one in alone]
    for one, two, state in zip(together, alone, states, strict=True):
        assert (one.logprobs is None) == (two.logprobs is None) == (state.params.logprobs is None)
        if one.logprobs is not None and two.logprobs is not None:
            assert one.logprobs.keys() == two.logprobs.keys()
            assert [info.rank for info in one.logprobs.values()] == [info.rank for info in two.logprobs.values()]


def test_computing_again_draws_nothing_anew() -> None:
    """Catches a stream of numbers that a step which failed, or a request computed again, has moved on."""
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    straight, disturbed = state_of(seed=1), state_of(seed=1)
    for _ in range(20):
        [expected] = sample_tokens(logits, [straight])
        assert {sample_tokens(logits, [disturbed])[0] for _ in range(3)} == {expected}
        resumed = state_of([0], disturbed.request.output_token_ids, seed=1)  # as after a restart
        assert sample_tokens(logits, [resumed]) == [expected]
        for state in (straight, disturbed):
            state.request.append_token(expected.token_id)
    assert len({*straight.request.output_token_ids}) > 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_greedy_batch_costs_one_argmax(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches work for wishes that nobody has: of torch's operations these, beside numpy's argmax, and no other."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    find, found = sampler._likeliest, []
    monkeypatch.setattr(sampler, "_likeliest", lambda scores: found.append(len(scores)) or find(scores))
    states = [state_of(number=number, temperature=0.0, held_back=[1]) for number in range(4)]
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    with Seen():
        sampled = sample_tokens(logits, states)
    assert [one.token_id for one in sampled] == logits.argmax(-1).tolist()
    assert found == [4]
    views = ("detach", "lift_fresh")  # on the way to numpy and back; nothing is computed
    assert [name for name in names if name not in views] == ([] if dtype == torch.float32 else ["_to_copy"])


# --- filters ---------------------------------------------------------------------------------------------------------


@given(logits=st.one_of(rows_of_logits, rows_without_ties), value=st.floats(0.02, 0.98), top_k=st.integers(1, 12))
def test_filters_are_those_of_transformers(logits: np.ndarray, value: float, top_k: int) -> None:
    """Catches a filter that differs where both define the same: everywhere but for top-p with ties, of which
    transformers keeps only some.
    """
    scores = torch.from_numpy(logits)[None]

    def kept(keep: Any, wanted: float) -> list[bool]:
        weights = scores.softmax(-1)
        keep(weights, [wanted])
        return (weights > 0)[0].tolist()

    def theirs(warper: Any) -> list[bool]:
        return warper(None, scores.clone()).isfinite()[0].tolist()

    assume(len({*scores.softmax(-1)[0].tolist()}) == len({*logits.tolist()}))  # or rounding makes ties
    assert kept(keep_top_k, top_k) == theirs(TopKLogitsWarper(min(top_k, len(logits))))
    probs = np.exp(logits.astype(np.float64) - logits.max())
    assume(np.abs(probs / value - 1).min() > 64 * EPS)
    assert kept(keep_min_p, value) == theirs(MinPLogitsWarper(value))
    sums = np.sort(probs / probs.sum())[::-1].cumsum()
    if len({*logits.tolist()}) == len(logits) and np.abs(sums - value).min() > 64 * EPS:
        assert kept(keep_top_p, value) == theirs(TopPLogitsWarper(value))


def test_bars_are_exact() -> None:
    """Catches a token more or less where a sum or a weight equals what is wanted; all are exact in binary."""
    for keep, wanted, kept in (
        (keep_top_p, 0.5, 1), (keep_top_p, 0.75, 2), (keep_min_p, 0.5, 2), (keep_min_p, 0.25, 3), (keep_top_k, 2, 2),
    ):  # fmt: skip
        weights = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]])
        keep(weights, [wanted])
        assert (weights > 0).sum() == kept, (keep, wanted)


def test_ties_stay_or_go_together() -> None:
    """Catches a filter that keeps some of those that tie, by their place or by chance."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]])
    for keep, wanted in ((keep_top_k, 3), (keep_top_p, 0.9), (keep_min_p, math.exp(-2.0) * 0.999)):
        weights = logits.softmax(-1)
        keep(weights, [wanted])
        assert (weights > 0).all(), keep
    for keep, wanted in ((keep_top_k, 2), (keep_top_p, 0.75), (keep_min_p, math.exp(-2.0) * 1.001)):
        weights = logits.softmax(-1)
        keep(weights, [wanted])
        assert (weights > 0).tolist() == [[False, True, False, True, False]], keep


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0])
def test_top_p_of_a_large_vocabulary(spread: float) -> None:
    """Catches a bar that is taken from the first look although more tokens are needed: with rows that need one token,
    some hundreds and nearly all, in one batch.
    """
    logits = spread * torch.randn(6, 9000, generator=torch.Generator().manual_seed(0))
    logits[0, 7] += 30
    top_p = [0.9, 0.5, 0.9, 0.99, 0.999, 0.02]
    weights = logits.softmax(-1)
    probs = weights.double().numpy()
    keep_top_p(weights, top_p)
    for row, wanted in enumerate(top_p):
        whole = probs[row].sum()
        order = np.sort(probs[row])[::-1]
        num = int((order.cumsum() < wanted * whole).sum()) + 1
        assert (weights[row] > 0).sum().item() == (probs[row] >= order[num - 1]).sum()


@given(logits=rows_of_logits, data=st.data(), penalty=st.floats(0.2, 4.0))
def test_repetition_is_that_of_transformers(logits: np.ndarray, data: st.DataObject, penalty: float) -> None:
    """Catches a penalty on other tokens, or that raises a negative logit."""
    tokens = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=8))
    scores = torch.from_numpy(logits)[None]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), scores)
    state = state_of(tokens[:1], tokens[1:], temperature=0.0, repetition_penalty=penalty)
    assert torch.equal(sampler._penalize(scores, [state]), expected)


# --- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [0, 1, 3, 6, 50, -1])
def test_logprobs_are_the_models_own(num: int) -> None:
    """Catches log-probabilities after penalties or temperature, ranks from 0, and a chosen token that is left out."""
    logits = torch.tensor([[1.0, 4.0, 2.0, 4.0, -1.0, 0.0]])
    state = state_of([1], [3], [1, 3], min_tokens=5, temperature=0.0, frequency_penalty=2.0, logprobs=num)
    [sampled] = sample_tokens(logits, [state])
    assert sampled.token_id == 2 and sampled.logprobs is not None
    expected = (logits[0].double() - logits[0].double().logsumexp(-1)).tolist()
    assert next(iter(sampled.logprobs)) == 2
    assert len(sampled.logprobs) == {0: 1, 1: 2, 3: 3, 6: 6, 50: 6, -1: 6}[num]
    for token, info in sampled.logprobs.items():
        assert info.logprob == pytest.approx(expected[token], abs=8 * EPS * 5)
    assert sampled.logprobs[2].rank == 3
    assert [info.rank for token, info in sorted(sampled.logprobs.items(), key=lambda item: item[1].rank or 0)] == (
        [3] if num == 0 else [1, 3] if num == 1 else [*range(1, 7)][: len(sampled.logprobs)]
    )


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_name_the_request() -> None:
    """Catches a batch that is answered although a row has no meaning, or with another's name."""
    logits = torch.zeros(3, 4)
    states = [state_of(number=number) for number in range(3)]
    with pytest.raises(ValueError, match="2 states for 3 rows"):
        sample_tokens(logits, states[:2])
    for wrong in (math.nan, math.inf):
        logits[1, 2] = wrong
        with pytest.raises(ValueError, match="'request 1' has nothing to draw from"):
            sample_tokens(logits, states)
    with pytest.raises(ValueError, match="min_tokens=2 holds back every token"):
        sample_tokens(torch.zeros(1, 4), [state_of(held_back=range(4), min_tokens=2)])
    assert sample_tokens(torch.zeros(0, 4), []) == []


def test_an_end_token_beyond_the_vocabulary_is_no_harm() -> None:
    """Catches an index error for a tokenizer's end token that the model cannot choose anyway."""
    [sampled] = sample_tokens(torch.tensor([[0.0, 1.0]]), [state_of(held_back=[1, 2, -1], min_tokens=1, temperature=0)])
    assert sampled.token_id == 0
