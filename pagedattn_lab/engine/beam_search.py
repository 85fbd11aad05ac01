"""Beam search: the client of the one loop that keeps the most likely sequences (chapter 05).

Source: Kwon et al. 2023, section 4.4. It chooses as transformers' ``generate`` does (5.23,
``GenerationMixin._beam_search``), so the two can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import torch

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.engine.core import Choice, EngineCore, OnStep
from pagedattn_lab.engine.sampling import Decoded
from pagedattn_lab.request import Request

_LARGEST_EXPONENT = 600  # a float holds exp(709): what scores are divided by leaves them room


class _Beam(NamedTuple):
    """A sequence and its score: the sum of log-probabilities while it runs, and once it has ended that sum divided by
    ``length ** length_penalty``.
    """

    tokens: list[int]
    score: float


class _Continuation(NamedTuple):
    """One beam and one token more."""

    parent: int
    token: int
    total: float  # the sum of log-probabilities


class _Search:
    """The state between two steps: sequences that run, best first, and the best of those that have ended."""

    def __init__(
        self,
        num_beams: int,
        max_tokens: int,
        length_penalty: float,
        early_stopping: bool | Literal["never"],
        stop_token_ids: Collection[int],
    ) -> None:
        self.num_beams, self.max_tokens, self.stop_token_ids = num_beams, max_tokens, stop_token_ids
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.running, self.finished = [_Beam([], 0.0)], []
        self.length = 0  # of every running sequence, in new tokens

    def choose(self, _: Sequence[Request], logits: torch.Tensor) -> list[Choice]:
        """One step: score, split, stop or go on."""
        self.length += 1
        goes_on = self.split(self.score(logits))
        if self.is_over(goes_on):
            return []
        self.running = [_Beam([*self.running[parent].tokens, token], total) for parent, token, total in goes_on]
        return [Choice(parent, token) for parent, token, _ in goes_on]

    def score(self, logits: torch.Tensor) -> list[_Continuation]:
        """Phase 1: continue every sequence by every token, and keep the best, best first.

        With s stop tokens at most s x ``num_beams`` of the best can end, so (1 + s) x ``num_beams`` leave enough to go
        on with. At least twice ``num_beams`` are kept, as transformers does.

        Args:
            logits: ``[len(running), vocab_size]``.
        """
        num_kept = max(2, 1 + len(self.stop_token_ids)) * self.num_beams
        so_far = torch.tensor([beam.score for beam in self.running], device=logits.device)  # [len(running)]
        totals = (logits.float().log_softmax(-1) + so_far[:, None]).flatten()  # [len(running) * vocab_size]
        best = totals.topk(min(num_kept, len(totals)))
        places = (divmod(place, logits.shape[-1]) for place in best.indices.tolist())
        return [
            _Continuation(parent, token, total)
            for (parent, token), total in zip(places, best.values.tolist(), strict=True)
        ]

    def split(self, continuations: Sequence[_Continuation]) -> list[_Continuation]:
        """Phase 2: put aside what has ended, and give what goes on, at most ``num_beams`` of either.

        A sequence may end only from among the best ``num_beams`` of all: a worse one would have been dropped anyway.
        """
        goes_on: list[_Continuation] = []
        for rank, continuation in enumerate(continuations):
            parent, token, total = continuation
            if self.length == self.max_tokens or token in self.stop_token_ids:
                if rank < self.num_beams:
                    tokens = [*self.running[parent].tokens, token]
                    self.finished.append(_Beam(tokens, total / self.length**self.length_penalty))
            elif len(goes_on) < self.num_beams:
                goes_on.append(continuation)
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[: self.num_beams]
        return goes_on

    def is_over(self, goes_on: Sequence[_Continuation]) -> bool:
        """Phase 3: can nothing that runs still replace the worst of what has ended?"""
        if not goes_on:
            return True
        if len(self.finished) < self.num_beams:
            return False
        if self.early_stopping is True:
            return True
        # Judge the best one at its present length, or, if "never" and length is a merit, at the best within reach.
        reach = self.max_tokens if self.early_stopping == "never" and self.length_penalty > 0 else self.length
        return goes_on[0].total / reach**self.length_penalty <= self.finished[-1].score


def beam_search(
    engine: EngineCore,
    request: Request,
    num_beams: int,
    max_tokens: int,
    *,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    stop_token_ids: Collection[int] = (),
    on_step: OnStep | None = None,
) -> Decoded:
    """Keep the most likely sequences at every step, and return those that ended best.

    At each step every beam is continued by every token; the best ``num_beams`` of all become the next beams, so some
    beams have several children, which share its blocks, and others none.

    Args:
        engine: the model and its blocks.
        request: the prompt; one of the beams continues it, the others fork it. Read sequences from the result: a
            request lacks the last token, and none says which beam it was.
        num_beams: sequences kept at each step, and returned; fewer if there are not so many, as with more beams than
            words and one step (transformers fills up with repetitions).
        max_tokens: tokens of each at most.
        length_penalty: finite power of the length that scores are divided by: above 0 favours long outputs.
        early_stopping: ``True`` ends with the ``num_beams``-th finished sequence; ``False`` goes on while the best
            running one, judged at its present length, could still replace the worst of them; ``"never"`` judges it at
            the best length it could reach.
        stop_token_ids: a sequence ends with, and includes, the first of these.
        on_step: as for :meth:`pagedattn_lab.engine.core.EngineCore.run`.

    Returns:
        Sequences and scores, best first.

    Raises:
        NoFreeBlocksError: blocks ran out.
        ValueError: numbers below 1, an unknown ``early_stopping``, a ``length_penalty`` that leaves no finite scores,
            or a name that another request has.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from pagedattn_lab.model_runner import ModelRunner
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> engine = EngineCore(ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4))
        >>> decoded = beam_search(engine, Request("Ada", [7, 8, 9]), num_beams=2, max_tokens=4)
        >>> len(decoded.sequences), decoded.scores == sorted(decoded.scores, reverse=True)
        (2, True)
    """
    at_least_one("max_tokens", max_tokens)
    at_least_one("num_beams", num_beams)
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        raise ValueError(f"early_stopping is {early_stopping!r}: use True, False or 'never'")
    if not math.isfinite(length_penalty) or abs(length_penalty) * math.log(max_tokens) > _LARGEST_EXPONENT:
        raise ValueError(
            f"length_penalty is {length_penalty}: scores divided by lengths up to {max_tokens} to that power are no "
            "finite numbers; choose one nearer to 0"
        )
    search = _Search(num_beams, max_tokens, length_penalty, early_stopping, stop_token_ids)
    engine.run([request], search.choose, on_step)
    return Decoded([beam.tokens for beam in search.finished], [beam.score for beam in search.finished])
