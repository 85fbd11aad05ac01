"""What a request gets back (chapter 09).

Source: names as in vLLM's ``vllm/outputs.py`` and ``vllm/logprobs.py``, release 0.33.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """How likely the model held one token to be, before penalties and temperature.

    Attributes:
        logprob: natural logarithm of its probability.
        rank: how many tokens are at least as likely, itself included; 1 for the likeliest.
        decoded_token: its text by itself.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def with_decoded_tokens(logprobs: Mapping[int, Logprob], decode: Callable[[list[int]], str]) -> dict[int, Logprob]:
    """Add each token's text by itself.

    Args:
        logprobs: by token id.
        decode: of a tokenizer.

    Example:
        >>> with_decoded_tokens({7: Logprob(-0.5, 1)}, lambda token_ids: f"<{token_ids[0]}>")
        {7: Logprob(logprob=-0.5, rank=1, decoded_token='<7>')}
    """
    return {token_id: replace(info, decoded_token=decode([token_id])) for token_id, info in logprobs.items()}


@dataclass(frozen=True)
class CompletionOutput:
    """One output of a request, as far as it has come.

    Attributes:
        index: its number among the request's outputs.
        text: of its tokens, as far as it is certain.
        token_ids: with the token that ended it.
        cumulative_logprob: sum of the chosen tokens' log-probabilities; ``None`` unless ``logprobs`` were asked for.
        logprobs: for each token, the chosen one and the likeliest, by token id; ``None`` unless asked for.
        finish_reason: ``"stop"``: a token or a string ended it. ``"length"``: it has as many tokens as it may have.
            ``"abort"``: nobody wants the rest. ``"error"``: it cannot be had. ``None``: it goes on.
        stop_reason: the stop string or stop token that ended it; ``None`` for the end-of-sequence token.

    Example:
        >>> CompletionOutput(0, " blue", [4378], finish_reason="length").finished()
        True
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None


@dataclass(frozen=True)
class RequestOutput:
    """One request, as far as it has come.

    Attributes:
        request_id: its name.
        prompt: its text; ``None`` if it came as token ids.
        prompt_token_ids: its tokens.
        outputs: ``n`` of them.
        finished: whether nothing more comes of any.
        num_cached_tokens: how many tokens of the prompt were in the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
