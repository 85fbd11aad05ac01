"""From token ids to text, token by token (chapters 00 and 09).

What streams is never taken back. A tokenizer may still change the end of its text when more tokens come: a character
of several tokens is complete only with the last of them, and cleaning up (``" ."`` to ``"."``) reaches backwards. So a
text is given out only up to its last whole character, and never cleaned up.

Source: the two offsets follow vLLM's ``vllm/v1/engine/detokenizer.py``, and so does the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What decoders put in the place of bytes that are no character, or not yet."""

_PROMPT_CONTEXT = 5  # tokens of the prompt, of which some may be special and have no text


class IncrementalDetokenizer:
    """The text of one output, piece by piece as its tokens come.

    Args:
        tokenizer: from :func:`pagedattn_lab.models.load`.
        prompt_token_ids: what the output follows. Without it, some tokenizers drop a space in front of the output.
        skip_special_tokens: whether special tokens have no text.

    Example:
        >>> from tokenizers import Tokenizer, decoders, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.BPE({"H": 0, "i": 1, "Ċ": 2, "Ã": 3, "©": 4}, []))  # Ã© are the two bytes of é
        >>> backend.decoder = decoders.ByteLevel()
        >>> detokenizer = IncrementalDetokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
        >>> [detokenizer.update(token_id) for token_id in [0, 1, 3, 4, 2, 3]], detokenizer.finish()
        (['H', 'i', '', 'é', '\\n', ''], '�')
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        # What a fast tokenizer decodes with, asked directly: ten times as fast, and done for every token of a server.
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._skip_special_tokens = skip_special_tokens
        # Those that are needed still: context, then tokens whose text is not out.
        self._token_ids = list(prompt_token_ids[-_PROMPT_CONTEXT:])
        self._num_context = len(self._token_ids)

    def update(self, token_id: int) -> str:
        """Take one more token; give the text that is certain now, which may be empty."""
        self._token_ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):  # perhaps half a character: wait for the rest
            return ""
        del self._token_ids[: self._num_context]
        self._num_context = len(self._token_ids)
        return text

    def finish(self) -> str:
        """Give the text that was still held back; no token follows."""
        text = self._new_text()
        self._token_ids, self._num_context = [], 0
        return text

    def _new_text(self) -> str:
        """Text of the tokens behind the context, without which a tokenizer would drop the space in front of them."""
        context, both = self._decode(self._token_ids[: self._num_context]), self._decode(self._token_ids)
        if both.startswith(context):
            return both[len(context) :]
        return self._decode(self._token_ids[self._num_context :])  # they have spoiled what is out: read them alone

    def _decode(self, token_ids: list[int]) -> str:
        if self._backend is not None:
            return self._backend.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
        return self._tokenizer.decode(
            token_ids, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )


def detokenize(tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int]) -> str:
    """Give the whole text of an output: what :class:`IncrementalDetokenizer` streams, to the last character.

    Args:
        tokenizer: from :func:`pagedattn_lab.models.load`.
        token_ids: all tokens of the output.
    """
    detokenizer = IncrementalDetokenizer(tokenizer)
    return "".join([detokenizer.update(token_id) for token_id in token_ids]) + detokenizer.finish()
