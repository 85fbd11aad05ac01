"""Small tokenizers, each with another way to make a text of tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

BYTES = ("F0", "9F", "99", "82", "C3", "A9")
"""Of 🙂 and é, and of neither if they come in another order."""


def cleaning() -> PreTrainedTokenizerFast:
    """Words, pieces of words, and the clean-up that takes spaces away before ``.``, ``n't`` and around ``'``."""
    words = ["[UNK]", "page", "table", "##s", ".", "!", "'", "n't", "'s", "'ve", ",", "n", "\ufffd"]
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True, unk_token="[UNK]")


def cleaning_each_token() -> PreTrainedTokenizerFast:
    """The same, with the library's own clean-up of each token besides."""
    tokenizer = cleaning()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def bytelevel() -> PreTrainedTokenizerFast:
    """Bytes, some of them joined: a token may end in the middle of a character."""
    written = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    space, letter, emoji, accent = (written.pre_tokenize_str(text)[0][0] for text in (" ", "a", "🙂", "é"))
    tokens = [*sorted({space, letter, *emoji, *accent}), letter + emoji[0], 2 * letter, emoji[2:], "<end>"]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<end>"])


def sentencepiece() -> PreTrainedTokenizerFast:
    """``▁`` for a space, of which the text's first is dropped, and bytes for what has no token."""
    tokens = ["▁", "▁page", "table", "▁▁", "s", "<s>", *(f"<0x{byte}>" for byte in BYTES)]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<s>"])


class _InPython(PreTrainedTokenizer):
    """A tokenizer without the library of tokenizers, with spaces between tokens and none at the ends."""

    words = ("<unk>", "page", "table", ".", "'", "n't", "")

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return " ".join(tokens).strip()


def in_python() -> PreTrainedTokenizer:
    return _InPython(unk_token="<unk>", clean_up_tokenization_spaces=True)


KINDS = [cleaning, cleaning_each_token, bytelevel, sentencepiece, in_python]
TOKENIZERS = {make.__name__: make() for make in KINDS}
