"""Text as it streams: nothing is taken back, and the whole is the same as without streaming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizer, PreTrainedTokenizerFast

from pagedattn_lab.cli import main
from pagedattn_lab.models.detokenize import IncrementalDetokenizer, detokenize
from tests.helpers.cli import report_of

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


def is_character(tokens: list[str]) -> bool:
    """Whether each run of byte tokens is valid UTF-8."""
    runs = "".join(token[3:5] if token.startswith("<0x") else " " for token in tokens).split()
    try:
        return all(bytes.fromhex(run).decode() for run in runs)
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_pieces_make_the_whole(name: str, data: st.DataObject) -> None:
    """Catches a piece lost, doubled or out too early, a space dropped where one piece ends, half a character given
    out, text of special tokens, and a clean-up that would have to be taken back.
    """
    tokenizer = TOKENIZERS[name]
    token_ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=14))
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.update(token_id) for token_id in token_ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    rest = detokenizer.finish()
    assert "".join(pieces) + rest == detokenize(tokenizer, token_ids)
    if is_character(tokenizer.convert_ids_to_tokens(token_ids)):
        whole = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces) + rest == whole
    assert detokenizer.finish() == "", "text was given out twice"


def test_bytes_that_are_no_character_spoil_nothing_that_is_out() -> None:
    """Catches a whole character that is lost, or repeated, because the tokenizer reads a run of bytes as one."""
    tokenizer = TOKENIZERS["sentencepiece"]
    emoji, half = (tokenizer.convert_tokens_to_ids([f"<0x{byte}>" for byte in run]) for run in (BYTES[:4], BYTES[:1]))
    table = tokenizer.convert_tokens_to_ids(["table"])
    assert tokenizer.decode([*emoji, *half, *table]) == "\ufffd" * 5 + "table"
    assert detokenize(tokenizer, [*emoji, *half, *table]) == "🙂\ufffdtable"
    assert detokenize(tokenizer, [*emoji, *half]) == "🙂\ufffd"
    assert detokenize(tokenizer, [*emoji, *emoji]) == "🙂🙂"


def test_pieces_come_as_soon_as_they_can() -> None:
    """Catches text held back to the end, which would equal the whole and be no stream."""
    tokenizer = TOKENIZERS["cleaning"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    words = ["page", "##s", "'", "n", "."]
    assert [detokenizer.update(token) for token in tokenizer.convert_tokens_to_ids(words)] == [
        "page", "s", " '", " n", " ."
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(words)) == "pages'n."  # cleaned up, from the third on anew


def test_cost_does_not_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a text that is decoded from its beginning for each token."""
    tokenizer = cleaning()
    lengths = []
    decode = IncrementalDetokenizer._decode
    monkeypatch.setattr(
        IncrementalDetokenizer, "_decode", lambda self, ids: lengths.append(len(ids)) or decode(self, ids)
    )
    assert detokenize(tokenizer, [1] * 200) == " ".join(["page"] * 200)
    assert max(lengths) == 2


@pytest.mark.parametrize(("make", "prompt"), list(zip(KINDS[:4], ("page", "page", "a a", "s"), strict=True)))
def test_generate_streams_what_json_says(
    make: Callable[[], PreTrainedTokenizerFast], prompt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches streamed text that differs from the text of the report."""
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    streams = set()
    for seed in range(6):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=1.0, eos_token_id=None, bos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        arguments = ["generate", prompt, "--model", str(tmp_path), "--max-tokens"]
        report, _ = report_of(capsys, *arguments, "24")
        assert main([*arguments, "24"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(report["text"] + "\n\n")
        assert report["text"] == report["outputs"][0]["text"] == detokenize(tokenizer, report["outputs"][0]["tokens"])
        streams.add(report["text"])
    assert len(streams) == 6
