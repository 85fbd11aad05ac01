"""From a user's words to token ids (chapters 00 and 06)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")

PROBES = ("a", "B", "7", " a", "\n\na", ".", "'s", "\u0301", "\u4e00")
"""Beginnings of what a user may say. Each pulls at the end of the text in front in another way: a letter goes on with a
word, a space or a line joins spaces, an accent changes a letter.
"""


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


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Turn a conversation into the token ids behind which the assistant speaks next.

    Args:
        tokenizer: from :func:`pagedattn_lab.models.load`.
        messages: each with its ``"role"`` and ``"content"``.

    Raises:
        ValueError: the tokenizer has no chat template, or it does not take this conversation.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, ">": 2}, [])))
        >>> tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}>"
        >>> encode_conversation(tokenizer, [{"role": "user", "content": "ab"}])
        [0, 1, 2]
    """
    if tokenizer.chat_template is None:
        raise ValueError("the model has no chat template, so it knows no conversations: send it a plain text")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"]
    except TemplateError as error:
        raise ValueError(f"the chat template does not take this conversation: {error}") from error


def encode_prefix(tokenizer: PreTrainedTokenizerBase, system: str) -> list[int]:
    """Give the tokens that every prompt behind one system message begins with, whatever the user says.

    The last tokens of a text are not safe from what follows: behind ``foot``, ``ball`` may make one token of both. A
    token across the border begins with the last characters of the text in front. Where the vocabulary has such a token,
    the tokens of the text without these characters count too, and what all have in common is the prefix.

    Raises:
        ValueError: the chat template takes no system message.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> vocabulary = {"a": 0, "b": 1, "c": 2, "bc": 3}
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [("b", "c")])))
        >>> encode_prompt(tokenizer, "c", system="aab"), encode_prompt(tokenizer, "a", system="aab")
        ([0, 0, 3], [0, 0, 1, 0])
        >>> encode_prefix(tokenizer, "aab")
        [0, 0]
    """
    prompts = [encode_prompt(tokenizer, text, system) for text in PROBES]
    is_plain = tokenizer.chat_template is None
    front = system if is_plain else "".join(_common([_render(tokenizer, text, system) for text in PROBES]))
    shorter = [tokenizer(text, add_special_tokens=is_plain)["input_ids"] for text in _cut(tokenizer, front)]
    return _common([*prompts, *shorter])


def _common(sequences: Sequence[Sequence[T]]) -> list[T]:
    """What all sequences begin with."""
    return [items[0] for items in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))]


def _render(tokenizer: PreTrainedTokenizerBase, text: str, system: str) -> str:
    conversation = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


def _cut(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[str]:
    """Give the text without its last characters, for all of them with which a longer token of the vocabulary begins.

    A vocabulary writes a text as it is, with ``▁`` for each space, or byte by byte in an alphabet of its own; and
    ``##`` stands in front of a token that goes on with a word.
    """
    from tokenizers import pre_tokenizers

    tokens = sorted(tokenizer.get_vocab())
    tail = text[-max(map(len, tokens)) :]
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(tail)
    for written, is_bytes in ((tail, False), (tail.replace(" ", "▁"), False), ("".join(w for w, _ in in_bytes), True)):
        for length in range(1, len(written) + 1):
            end = written[-length:]
            if _begins_longer(tokens, end) or _begins_longer(tokens, f"##{end}"):
                yield text.encode()[:-length].decode(errors="ignore") if is_bytes else text[:-length]


def _begins_longer(tokens: list[str], start: str) -> bool:
    """Say whether one of the sorted tokens begins with ``start`` and goes on."""
    index = bisect_right(tokens, start)
    return index < len(tokens) and tokens[index].startswith(start)
