"""From a user's words to token ids (chapters 00 and 06)."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, system: str | None = None) -> list[int]:
    """Turn a user's words into token ids, through the chat template if the tokenizer has one.

    Args:
        tokenizer: from :func:`pagedattn_lab.models.load`.
        text: what the user says.
        system: what every conversation begins with: the chat template's system message; without a template, a text in
            front. By default whatever the template brings itself.

    Raises:
        ValueError: the chat template takes no system message.
    """
    if tokenizer.chat_template is None:
        return tokenizer((system or "") + text)["input_ids"]
    conversation = [{"role": "user", "content": text}]
    if system is not None:
        conversation.insert(0, {"role": "system", "content": system})
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
    except TemplateError as error:
        if system is None:
            raise
        raise ValueError(f"the chat template takes no system message ({error}): put it into the prompt") from error


def encode_prefix(tokenizer: PreTrainedTokenizerBase, system: str) -> list[int]:
    """Give the tokens that every prompt behind one system message begins with, whatever the user says.

    Raises:
        ValueError: the chat template takes no system message.
    """
    pair = zip(*(encode_prompt(tokenizer, text, system) for text in ("a", "b")), strict=False)
    return [token for token, _ in takewhile(lambda both: both[0] == both[1], pair)]
