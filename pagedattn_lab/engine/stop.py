"""Where an output ends, and how much of its text is certain (chapter 09).

A token ends an output, or a string does. A string may lie across several tokens, so text that could be its beginning is
held back: what has been shown is never cut later.

Source: the rules are vLLM's (``vllm/v1/core/sched/utils.py`` for tokens, ``vllm/v1/engine/detokenizer.py`` for strings,
release 0.33.0), which holds back as many characters as the longest stop string has, less one. Here it is only what
matches so far, found as by Knuth, Morris and Pratt 1977, *Fast pattern matching in strings*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pagedattn_lab.engine.outputs import FinishReason
from pagedattn_lab.engine.sampling_params import EndTokens, SamplingParams
from pagedattn_lab.models.detokenize import IncrementalDetokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopUpdate(NamedTuple):
    """What one more token has brought.

    Attributes:
        text: that can be shown now; it follows what was shown before.
        finish_reason: ``"stop"`` or ``"length"``, or ``None`` if the output goes on.
        stop_reason: the string or the token that ended it; ``None`` for the end-of-sequence token.
    """

    text: str
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class StopChecker:
    """Take an output's tokens one by one; say what can be shown, and whether it has ended.

    Args:
        tokenizer: the model's; ``None``: there is no text, and so there are no stop strings.
        params: what the request wants.
        end_tokens: by :meth:`pagedattn_lab.engine.sampling_params.SamplingParams.end_tokens`.
        max_tokens: that the output may have; ``params.max_tokens``, or fewer if there is less room.
        prompt_token_ids: what the output follows.

    Attributes:
        text: all that has been shown.
        num_tokens: how many tokens have come.

    Raises:
        ValueError: stop strings without a tokenizer.

    Example:
        >>> from tokenizers import Tokenizer, decoders, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.BPE({"a": 0, "bE": 1, "Nc": 2}, []))
        >>> backend.decoder = decoders.ByteLevel()
        >>> params = SamplingParams(stop="END")
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        >>> checker = StopChecker(tokenizer, params, params.end_tokens(None), max_tokens=3)
        >>> [checker.update(token_id).text for token_id in (0, 1, 2)], checker.text
        (['a', 'b', 'ENc'], 'abENc')
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        params: SamplingParams,
        end_tokens: EndTokens,
        max_tokens: int,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        if params.stop and tokenizer is None:
            raise ValueError(f"stop is {params.stop!r}, and without a tokenizer there is no text to find it in")
        self._params, self._end_tokens, self._max_tokens = params, end_tokens, max_tokens
        self._detokenizer = None
        if tokenizer is not None:
            self._detokenizer = IncrementalDetokenizer(
                tokenizer, prompt_token_ids, skip_special_tokens=params.skip_special_tokens
            )
        self._matches = [_Match(stop) for stop in params.stop or ()]
        self._held = ""  # text that may be the beginning of a stop string, which is to be cut
        self.text = ""
        self.num_tokens = 0

    def update(self, token_id: int) -> StopUpdate:
        """Take one more token."""
        self.num_tokens += 1
        reason, stop_reason = self._ended_by(token_id)
        text = ""
        if self._detokenizer is not None:
            if reason != "stop" or self._params.include_stop_str_in_output:
                text += self._detokenizer.update(token_id)
            if reason is not None:
                text += self._detokenizer.finish()
        stop = self._take(text)
        if stop is not None:
            reason, stop_reason = "stop", stop
        return StopUpdate(self._show(all_of_it=reason is not None), reason, stop_reason)

    def finish(self) -> str:
        """Give the text that is still held back, when nothing more comes: the request was aborted."""
        if self._detokenizer is not None:
            self._take(self._detokenizer.finish())
        return self._show(all_of_it=True)

    def _ended_by(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Whether the output ends with a token, whatever its text is.

        That an end token comes before ``min_tokens`` is for the sampler to prevent.
        """
        if token_id == self._end_tokens.eos_token_id:
            return "stop", None
        if token_id in self._end_tokens.stop_token_ids:
            return "stop", token_id
        return ("length" if self.num_tokens >= self._max_tokens else None), None

    def _take(self, text: str) -> str | None:
        """Add new text, up to a stop string that it completes: of several the first, then the first listed."""
        counts = self.num_tokens > self._params.min_tokens
        for place, character in enumerate(text):
            ended = [match.stop for match in self._matches if match.takes(character)]
            if ended and counts:
                self._held += text[: place + 1]
                if not self._params.include_stop_str_in_output:
                    self._held = self._held[: -len(ended[0])]
                return ended[0]
        self._held += text
        return None

    def _show(self, *, all_of_it: bool) -> str:
        """Let go of what is held, but for what may be the beginning of a stop string."""
        is_certain = all_of_it or self._params.include_stop_str_in_output
        num_held = 0 if is_certain else max((match.length for match in self._matches), default=0)
        shown = self._held[: len(self._held) - num_held]
        self._held = self._held[len(shown) :]
        self.text += shown
        return shown


class _Match:
    """How much of a stop string is at the end of a text.

    Attributes:
        length: the longest beginning of ``stop``, shorter than it, that the text ends with.
    """

    def __init__(self, stop: str) -> None:
        self.stop, self.length = stop, 0
        # The longest beginning that each beginning ends with, itself excluded: what is left when a match breaks.
        self._shorter = [0]
        for character in stop[1:]:
            self._shorter.append(self._longest(self._shorter[-1], character))

    def takes(self, character: str) -> bool:
        """Add one character; whether it completes ``stop``."""
        self.length = self._longest(self.length, character)
        if self.length < len(self.stop):
            return False
        self.length = self._shorter[-1]  # the next one may overlap
        return True

    def _longest(self, length: int, character: str) -> int:
        """The longest beginning that a text ends with, of which a beginning of ``length`` was matched before."""
        while length and self.stop[length] != character:
            length = self._shorter[length - 1]
        return length + (self.stop[length] == character)
