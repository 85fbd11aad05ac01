"""From logits to tokens: masks, penalties, temperature, filters, and a draw (chapter 09).

In vLLM's order (``vllm/v1/sample/sampler.py``, release 0.33.0):

1. log-probabilities that are reported come from the model's own logits;
2. tokens that would end a request before ``min_tokens`` get a logit of -inf;
3. penalties: repetition, frequency, presence;
4. a request at temperature 0 takes the likeliest token (of equal ones the lowest id); for others,
5. logits are divided by the temperature, and filtered by min-p, top-k and top-p, each on what the one before has left;
6. a token is drawn.

**Ties.** Each filter sets a bar, and what reaches it stays. So tokens of equal probability stay or go together:
``top_k`` and ``top_p`` may keep more than they ask for, never fewer. (vLLM's ``top_p`` keeps some of those that tie, as
they come out of its sort.)

**Draws.** The draw for output token ``i`` is a number made from the request's seed and ``i``, not the next number of a
stream: a counter-based generator (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*), with BLAKE2b.
So a request that is preempted and computed again, or whose step has failed, draws as if nothing had happened, and who
else is in the batch cannot matter. A draw picks the first token at which the sum of probabilities in the order of ids,
in float64, passes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

import torch

from pagedattn_lab.engine.outputs import Logprob
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.request import Request

_FIRST_LOOK = 256  # so many of the likeliest usually reach top_p: sorting a whole vocabulary is far slower
_ROWS_AT_ONCE = 16  # on a CPU: memory for more is not kept between calls, and asking for it costs more than to draw


class SampledToken(NamedTuple):
    """What was chosen.

    Attributes:
        token_id: the token.
        logprobs: by token id, the chosen one first, then the likeliest; ``None`` unless the request asks for them.
    """

    token_id: int
    logprobs: dict[int, Logprob] | None = None


@dataclass(frozen=True)
class SamplingState:
    """One running output, as far as choosing its next token goes.

    Args:
        request: its prompt and its output so far.
        params: what it wants.
        held_back: tokens that cannot come before there are ``min_tokens``:
            :attr:`pagedattn_lab.engine.sampling_params.EndTokens.held_back`.
        engine_seed: what it draws from, together with ``number``, if it has no seed of its own.
        number: of the request in its engine.
        index: of the output among the ``n`` of its request.
    """

    request: Request
    params: SamplingParams
    held_back: frozenset[int] = frozenset()
    engine_seed: int = 0
    number: int = 0
    index: int = 0

    @cached_property
    def has_penalty(self) -> bool:
        """Whether what has been said changes what is said next."""
        params = self.params
        return (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)

    @cached_property
    def takes_the_likeliest(self) -> bool:
        """Whether, once no token is held back, the token is the largest of the model's logits and nothing else."""
        return self.params.temperature == 0 and self.params.logprobs is None and not self.has_penalty

    @property
    def holds_back(self) -> bool:
        """Whether the next token may not end the request."""
        return self.request.num_output_tokens < self.params.min_tokens and bool(self.held_back)

    @cached_property
    def prompt_token_ids(self) -> frozenset[int]:
        """The tokens of the prompt, each once."""
        return frozenset(self.request.token_ids[: self.request.num_prompt_tokens])

    def draw(self) -> float:
        """Give the number in [0, 1) that decides about the next token; the same one until that has been added.

        Example:
            >>> state = SamplingState(Request("Ada", [5]), SamplingParams(seed=1))
            >>> first = state.draw()
            >>> state.draw() == first
            True
            >>> state.request.append_token(6)
            >>> state.draw() == first
            False
        """
        position = self.request.num_output_tokens.to_bytes(8, "little")
        bits = int.from_bytes(blake2b(position, key=self._key, digest_size=8).digest(), "little")
        return (bits >> 11) * 2.0**-53  # as many bits as a float64 holds

    @cached_property
    def _key(self) -> bytes:
        seed = self.params.seed
        source = f"engine {self.engine_seed} request {self.number}" if seed is None else f"seed {seed}"
        return blake2b(f"{source} output {self.index}".encode()).digest()


def sample_tokens(logits: torch.Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
    """Choose the next token of each request.

    Requests that take the likeliest token and ask for nothing else cost one argmax, if all in the batch are such.

    Args:
        logits: ``[num_seqs, vocab_size]``, any float dtype; they are not changed. Computation is in float32.
        states: of each, in the same order.

    Raises:
        ValueError: more or fewer states than rows, or a row that leaves nothing to draw from.

    Example:
        >>> states = [SamplingState(Request("Ada", [5]), SamplingParams(temperature=0, logprobs=1))]
        >>> [sampled] = sample_tokens(torch.tensor([[1.0, 3.0, 2.0]]), states)
        >>> sampled.token_id, round(sampled.logprobs[1].logprob, 2)
        (1, -0.41)
    """
    if len(states) != len(logits):
        raise ValueError(f"{len(states)} states for {len(logits)} rows of logits: give one for each row")
    if not states:
        return []
    scores = logits.float()
    if all(state.takes_the_likeliest and not state.holds_back for state in states):
        return [SampledToken(token) for token in _likeliest(scores).tolist()]
    scores = _penalize(_hold_back(scores, states), states)
    drawn = [row for row, state in enumerate(states) if state.params.temperature > 0]
    tokens = (
        _likeliest(scores)
        if len(drawn) < len(states)
        else torch.empty(len(states), dtype=torch.long, device=scores.device)
    )
    at_once = _ROWS_AT_ONCE if scores.device.type == "cpu" else len(states)
    for start in range(0, len(drawn), at_once):
        rows = drawn[start : start + at_once]
        tokens[rows] = _draw(scores[rows], [states[row] for row in rows])
    chosen: list[int] = tokens.tolist()
    reports = _logprobs(logits, tokens, states)
    return [SampledToken(token, reports.get(row)) for row, token in enumerate(chosen)]


def _likeliest(scores: torch.Tensor) -> torch.Tensor:
    """Give the place of each row's largest number, the first of equal ones; NaN counts as the largest.

    On a CPU numpy finds it some ten times as fast as torch.
    """
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    return torch.from_numpy(scores.detach().numpy().argmax(-1))


def _hold_back(scores: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    """Give end tokens that may not come yet a logit of -inf, in a copy."""
    vocab_size = scores.shape[-1]  # a token beyond it cannot come anyway
    places = [
        (row, token)
        for row, state in enumerate(states)
        if state.holds_back
        for token in state.held_back
        if 0 <= token < vocab_size
    ]
    if not places:
        return scores
    rows, tokens = torch.tensor(places, device=scores.device).T
    return scores.index_put((rows, tokens), scores.new_tensor(-math.inf))


def _penalize(scores: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    """Change the logits of tokens that have come before, in a copy; no other token is touched."""
    tokens: list[int] = []
    counts: list[int] = []  # in the output
    lengths: list[int] = []  # how many of these tokens are the row's
    for state in states:
        seen: Collection[int] = ()
        if state.has_penalty:
            in_output = Counter(state.request.output_token_ids)
            repeats = state.params.repetition_penalty != 1
            seen = in_output.keys() | state.prompt_token_ids if repeats else in_output.keys()
            tokens.extend(seen)
            counts.extend(map(in_output.__getitem__, seen))
        lengths.append(len(seen))
    if not tokens:
        return scores
    device = scores.device
    rows = torch.arange(len(states), device=device).repeat_interleave(torch.tensor(lengths, device=device))
    repetition, frequency, presence = torch.tensor(
        [
            # A penalty that float32 rounds to 0 or infinity would leave logits that are no numbers.
            (min(max(one.repetition_penalty, 1e-30), 1e30), one.frequency_penalty, one.presence_penalty)
            for one in (state.params for state in states)
        ],
        device=device,
    )[rows].T
    count = torch.tensor(counts, device=device)
    index = rows, torch.tensor(tokens, device=device)
    values = scores[index]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * count
    values -= presence * (count > 0)
    return scores.index_put(index, values)


def _draw(scores: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    """Draw a token for each row, all of a temperature above 0.

    Args:
        scores: ``[num_rows, vocab_size]``, float32.
    """
    params = [state.params for state in states]
    weights = (scores / scores.new_tensor([one.temperature for one in params])[:, None]).softmax(-1)
    _filter(weights, keep_min_p, {row: one.min_p for row, one in enumerate(params) if one.min_p > 0})
    _filter(weights, keep_top_k, {row: one.top_k for row, one in enumerate(params) if one.top_k > 0})
    _filter(weights, keep_top_p, {row: one.top_p for row, one in enumerate(params) if one.top_p < 1})
    sums = weights.cumsum(-1, dtype=torch.float64)
    wholes = sums[:, -1:]
    if not wholes.isfinite().all():
        row = wholes.isfinite().flatten().tolist().index(False)
        raise ValueError(
            f"request {states[row].request.request_id!r} has nothing to draw from: its logits are not finite, or "
            f"min_tokens={params[row].min_tokens} holds back every token"
        )
    draws = torch.tensor([[state.draw()] for state in states], dtype=torch.float64, device=scores.device)
    # At most 1 - 2^-53 times the whole, which float64 rounds to less than the whole: some token's sum is above it.
    return torch.searchsorted(sums, draws * wholes, right=True)[:, 0]


def _filter(
    weights: torch.Tensor, keep: Callable[[torch.Tensor, Sequence[Any]], None], wanted: Mapping[int, float]
) -> None:
    """Filter the rows that want it."""
    if len(wanted) == len(weights):
        keep(weights, list(wanted.values()))
    elif wanted:
        rows = list(wanted)
        part = weights[rows]
        keep(part, list(wanted.values()))
        weights[rows] = part


def _keep(weights: torch.Tensor, bars: torch.Tensor) -> None:
    """Set what is below its row's bar to 0: several times as fast as ``masked_fill_`` on a CPU."""
    weights *= torch.ge(weights, bars, out=torch.empty_like(weights))


def keep_min_p(weights: torch.Tensor, min_p: Sequence[float]) -> None:
    """Keep tokens at least ``min_p`` times as likely as the likeliest.

    Args:
        weights: ``[num_rows, vocab_size]``, float32: probabilities, up to a factor for each row. What is not kept
            becomes 0, in place.
        min_p: of each row, above 0.

    Example:
        >>> weights = torch.tensor([[0.5, 0.3, 0.2]])
        >>> keep_min_p(weights, [0.5])
        >>> weights
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    _keep(weights, weights.amax(-1, keepdim=True) * weights.new_tensor(min_p)[:, None])


def keep_top_k(weights: torch.Tensor, top_k: Sequence[int]) -> None:
    """Keep the ``top_k`` likeliest tokens, and those that tie with the last of them.

    Args:
        weights: as for :func:`keep_min_p`.
        top_k: of each row, above 0.

    Example:
        >>> weights = torch.tensor([[0.4, 0.3, 0.3]])
        >>> keep_top_k(weights, [2])
        >>> weights
        tensor([[0.4000, 0.3000, 0.3000]])
    """
    nums = [min(num, weights.shape[-1]) for num in top_k]
    last = torch.tensor(nums, device=weights.device)[:, None] - 1
    _keep(weights, weights.topk(max(nums), dim=-1).values.gather(1, last))


def keep_top_p(weights: torch.Tensor, top_p: Sequence[float]) -> None:
    """Keep the fewest likeliest tokens with a probability of ``top_p`` together, and those that tie with the last.

    A token stays if those before it, likeliest first, have less than ``top_p``. So the likeliest always stays.

    Args:
        weights: as for :func:`keep_min_p`.
        top_p: of each row, above 0.

    Example:
        >>> weights = torch.tensor([[0.5, 0.3, 0.2]])
        >>> keep_top_p(weights, [0.6])
        >>> weights
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    vocab_size = weights.shape[-1]
    wanted = (
        weights.sum(-1, keepdim=True, dtype=torch.float64) * weights.new_tensor(top_p, dtype=torch.float64)[:, None]
    )
    bars = torch.zeros_like(weights[:, :1])
    rows, num_looked_at = torch.arange(len(weights), device=weights.device), 0
    while len(rows) and num_looked_at < vocab_size:
        num_looked_at = min(max(_FIRST_LOOK, 16 * num_looked_at), vocab_size)
        likeliest = (weights if len(rows) == len(weights) else weights[rows]).topk(num_looked_at, dim=-1).values
        sums = likeliest.cumsum(-1, dtype=torch.float64)
        num_before = (sums[:, :-1] < wanted[rows]).sum(-1, keepdim=True)  # the last that is kept
        bars[rows] = likeliest.gather(1, num_before)
        rows = rows[sums[:, -1] < wanted[rows, 0]]
    _keep(weights, bars)


def _logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, states: Sequence[SamplingState]
) -> dict[int, dict[int, Logprob]]:
    """For rows that ask: log-probabilities by the model's own logits, of the chosen token and of the likeliest."""
    vocab_size = logits.shape[-1]
    wanted = {row: state.params.logprobs for row, state in enumerate(states) if state.params.logprobs is not None}
    if not wanted:
        return {}
    rows = list(wanted)
    nums = [vocab_size if num == -1 else min(num, vocab_size) for num in wanted.values()]
    logprobs = logits[rows].float().log_softmax(-1)
    own = logprobs.gather(1, tokens[rows, None])
    ranks = (logprobs >= own).sum(-1)
    top = logprobs.topk(max(nums), dim=-1)
    reports = {}
    for row, num, token, logprob, rank, ids, values in zip(
        rows, nums, tokens[rows].tolist(), own[:, 0].tolist(), ranks.tolist(), top.indices.tolist(),
        top.values.tolist(), strict=True,
    ):  # fmt: skip
        reports[row] = {token: Logprob(logprob, rank)}
        reports[row].update((ids[place], Logprob(values[place], place + 1)) for place in range(num))
    return reports
