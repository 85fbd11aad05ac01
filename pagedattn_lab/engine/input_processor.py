"""What comes in: a prompt as the model's tokens, and the tokens that may end its output (chapter 09).

Source: ``InputProcessor`` in vLLM's ``vllm/v1/engine/input_processor.py``, release 0.33.0, without pictures, sounds and
adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING

from pagedattn_lab.engine.sampling_params import EndTokens, SamplingParams
from pagedattn_lab.models import configured_stop_token_ids
from pagedattn_lab.request import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class InputProcessor:
    """Reads what a client sends as one model understands it.

    Args:
        model, tokenizer: as for :class:`pagedattn_lab.engine.llm_engine.LLMEngine`.

    Attributes:
        tokenizer: as given.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        ...                      num_attention_heads=4, eos_token_id=2)
        >>> inputs = InputProcessor(LlamaForCausalLM(config), None)
        >>> inputs.token_ids((7, 8, 9))
        [7, 8, 9]
        >>> inputs.end_tokens("Ada", SamplingParams(stop_token_ids=[5]))
        EndTokens(eos_token_id=2, stop_token_ids=frozenset({5}), held_back=frozenset({2, 5}))
        >>> inputs.token_ids([50])
        Traceback (most recent call last):
        ValueError: token id 50 is no word of this model: use 0 to 49
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.tokenizer, self._model = tokenizer, model
        self._eos_token_id, self._other_eos_token_ids = _eos_token_ids(model, tokenizer)

    @property
    def vocab_size(self) -> int:
        """How many words the model has."""
        return self._model.config.get_text_config().vocab_size

    def token_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Give a prompt's tokens, all of them words of the model.

        Raises:
            ValueError: a text that is none, or without a tokenizer; an empty prompt; or a token that is no word.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError(f"prompt {prompt!r} is a text, and there is no tokenizer: give token ids")
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"prompt {prompt!r} is no text: {error.reason}") from None
            token_ids = self.tokenizer(prompt)["input_ids"]
        else:
            token_ids = list(prompt)
        if not len(token_ids):
            raise ValueError("the prompt is empty: give it at least one token")
        vocab_size = self.vocab_size
        for token_id in token_ids:
            if not is_whole(token_id) or not 0 <= token_id < vocab_size:
                raise ValueError(f"token id {token_id!r} is no word of this model: use 0 to {vocab_size - 1}")
        return [index(token_id) for token_id in token_ids]  # NumPy's and tensors' become plain numbers

    def end_tokens(self, request_id: str, params: SamplingParams) -> EndTokens:
        """Say which tokens end a request.

        Raises:
            ValueError: its ``min_tokens`` would hold back every word of the model.
        """
        end_tokens = params.end_tokens(self._eos_token_id, self._other_eos_token_ids)
        if params.min_tokens and end_tokens.held_back.issuperset(range(self.vocab_size)):
            raise ValueError(
                f"request {request_id!r} would have nothing to draw from: min_tokens={params.min_tokens} holds back "
                "every token of this model, since each of them ends it; give fewer stop_token_ids"
            )
        return end_tokens


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int | None, list[int]]:
    """The tokenizer's end-of-sequence token, and others that the model's generation settings name."""
    eos = None if tokenizer is None else tokenizer.eos_token_id
    others = configured_stop_token_ids(model) or []
    if eos is None and others:
        eos = others[0]
    return eos, [token for token in others if token != eos]
