"""What a request wants of its output: how tokens are chosen, and when it ends (chapter 09).

Names, defaults, meanings and refusals are vLLM's (``vllm/sampling_params.py``, release 0.33.0). Only what this engine
can do is here, and a value of the wrong type is refused too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_MAX_N = 16_384
_COLDEST = 0.01  # the lowest temperature above 0: dividing by less may overflow


class EndTokens(NamedTuple):
    """The tokens that end one request.

    Attributes:
        eos_token_id: ends it without a ``stop_reason``; ``None`` if there is none, or it is ignored.
        stop_token_ids: end it, and are its ``stop_reason``.
        held_back: cannot be chosen before there are ``min_tokens`` tokens (vLLM: ``all_stop_token_ids``).
    """

    eos_token_id: int | None
    stop_token_ids: frozenset[int]
    held_back: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it ends.

    Args:
        n: how many outputs; at most 16,384, and 1 if ``temperature`` is 0.
        presence_penalty: taken from the logit of every token that the output has already; -2 to 2.
        frequency_penalty: taken from a token's logit as often as the output has it; -2 to 2.
        repetition_penalty: a logit above 0 is divided by it, another is multiplied, if the token is in the prompt or
            the output; above 0, and 1 changes nothing.
        temperature: logits are divided by it; 0 to 2. 0 always takes the likeliest, and values below 0.01 become 0.01.
        top_p: draw only from the fewest likeliest tokens that have this probability together; above 0, at most 1.
        top_k: draw only from this many likeliest tokens; 0 or -1 for all.
        min_p: draw only from tokens at least this many times as likely as the likeliest; 0 to 1.
        seed: what is drawn depends on this and on the output's number alone; ``None`` (or -1): on the engine's seed.
        stop: strings that end the output. The text is cut in front of them.
        stop_token_ids: tokens that end the output. They stay in ``token_ids`` and have no text.
        include_stop_str_in_output: the text keeps what ended it: the stop string, or the last token's text.
        ignore_eos: go on after the model's end-of-sequence token.
        max_tokens: tokens of each output at most; ``None``: as many as the engine has room for.
        min_tokens: no token and no string ends an output before it has this many.
        logprobs: for how many of the likeliest tokens to report the log-probability, besides the chosen token; -1 for
            all tokens.
        skip_special_tokens: whether special tokens have no text.

    Raises:
        ValueError: a value out of range or of the wrong type.

    Example:
        >>> SamplingParams(temperature=0.8, top_p=0.95, stop="\\n").stop
        ('\\n',)
        >>> SamplingParams(temperature=-1.0)
        Traceback (most recent call last):
        ValueError: temperature is -1.0: give a number from 0 to 2
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        self._set(stop=_texts(self.stop), stop_token_ids=_token_ids(self.stop_token_ids))
        if self.logprobs is True:
            self._set(logprobs=1)
        self._check_numbers()
        if self.seed == -1:
            self._set(seed=None)
        if self.temperature == 0:
            if self.n > 1:
                raise ValueError(f"n is {self.n} with temperature 0: all outputs would be the same; use n=1")
            self._set(top_p=1.0, top_k=0, min_p=0.0)
        elif self.temperature < _COLDEST:
            warnings.warn(f"temperature {self.temperature} is raised to {_COLDEST}", stacklevel=3)
            self._set(temperature=_COLDEST)

    def _set(self, **values: Any) -> None:
        """Write what was given in another form; nobody but ``__post_init__`` may."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        _whole("n", self.n, 1, _MAX_N)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        if not _is_number(self.repetition_penalty) or not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty!r}: give a finite number above 0")
        _within("temperature", self.temperature, 0, 2)
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}: give a number above 0 and at most 1")
        _whole("top_k", self.top_k, -1)
        _within("min_p", self.min_p, 0, 1)
        if self.seed is not None:
            _whole("seed", self.seed)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, above max_tokens={self.max_tokens}: lower one of them")
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, -1)

    def end_tokens(self, eos_token_id: int | None, other_eos_token_ids: Collection[int] = ()) -> EndTokens:
        """Say which tokens end a request of a model.

        Args:
            eos_token_id: the tokenizer's end-of-sequence token.
            other_eos_token_ids: others that the model's generation config names. They count as stop tokens.

        Example:
            >>> SamplingParams(stop_token_ids=[5]).end_tokens(2, [2, 3])
            EndTokens(eos_token_id=2, stop_token_ids=frozenset({3, 5}), held_back=frozenset({2, 3, 5}))
            >>> SamplingParams(ignore_eos=True).end_tokens(2).eos_token_id is None
            True
        """
        asked = frozenset(self.stop_token_ids or ())
        primary = frozenset(() if eos_token_id is None else (eos_token_id,))
        others = frozenset(other_eos_token_ids) - primary
        return EndTokens(
            None if self.ignore_eos else eos_token_id,
            asked if self.ignore_eos else asked | others,
            asked | others | primary,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(name: str, value: object, low: int, high: int) -> None:
    if not _is_number(value) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}: give a number from {low} to {high}")


def _whole(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        limits = "" if low == -math.inf else f" from {low}" if high == math.inf else f" from {low} to {high}"
        raise ValueError(f"{name} is {value!r}: give a whole number{limits}")


def _texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop has {text!r}: give strings that are not empty")
    return texts


def _token_ids(stop_token_ids: Sequence[int] | None) -> tuple[int, ...]:
    token_ids = tuple(stop_token_ids or ())
    for token_id in token_ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise ValueError(f"stop_token_ids has {token_id!r}: give whole numbers")
    return tuple(dict.fromkeys(token_ids))
