"""Outputs in the making: what has been chosen, what it says, and how it ended (chapter 09).

Source: ``RequestState`` and ``ParentRequest`` in vLLM's ``vllm/v1/engine/output_processor.py`` and
``parallel_sampling.py``, release 0.33.0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagedattn_lab.engine.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    RequestOutput,
    with_decoded_tokens,
)
from pagedattn_lab.engine.sampler import SampledToken, SamplingState
from pagedattn_lab.engine.stop import StopChecker
from pagedattn_lab.request import Request, RequestStatus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class RunningOutput:
    """One output in the making."""

    group: RunningRequest
    request: Request
    state: SamplingState
    checker: StopChecker
    num_cached_tokens: int | None = None  # of the prompt; None until it is first admitted
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def goes_on_with(self, token: SampledToken) -> bool:
        """Take the chosen token. If it ends the output, its request has it, and a status that says so."""
        if token.logprobs is not None:
            self.cumulative_logprob += token.logprobs[token.token_id].logprob
            self.logprobs.append(self.group.named(token.logprobs))
        update = self.checker.update(token.token_id)
        self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason
        if self.finish_reason is None:
            return True
        self.request.append_token(token.token_id)
        stopped = self.finish_reason == "stop"
        self.request.status = RequestStatus.FINISHED_STOPPED if stopped else RequestStatus.FINISHED_LENGTH_CAPPED
        return False

    def output(self) -> CompletionOutput:
        """Give it as far as it has come."""
        reports = self.state.params.logprobs is not None
        return CompletionOutput(
            self.state.index,
            self.checker.text,
            self.request.output_token_ids,
            self.cumulative_logprob if reports else None,
            list(self.logprobs) if reports else None,
            self.finish_reason,
            self.stop_reason,
        )


@dataclass
class RunningRequest:
    """What a client asked for: one prompt, and as many outputs as ``n`` says, each a request of the scheduler's."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    tokenizer: PreTrainedTokenizerBase | None
    sequences: list[RunningOutput] = field(default_factory=list)

    def named(self, logprobs: dict[int, Logprob]) -> dict[int, Logprob]:
        """Add to log-probabilities what their tokens say."""
        if self.tokenizer is None:
            return logprobs
        return with_decoded_tokens(logprobs, self.tokenizer.decode)

    def output(self) -> RequestOutput:
        """Give all outputs as far as they have come."""
        return RequestOutput(
            self.request_id,
            self.prompt,
            list(self.prompt_token_ids),
            [sequence.output() for sequence in self.sequences],
            finished=all(sequence.finish_reason is not None for sequence in self.sequences),
            num_cached_tokens=self.sequences[0].num_cached_tokens or 0,
        )
