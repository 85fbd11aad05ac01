"""Text as it streams: nothing is taken back, and the whole is the same as without streaming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pagedattn_lab.cli import main
from pagedattn_lab.models.detokenize import IncrementalDetokenizer, detokenize
from tests.helpers.cli import report_of
from tests.helpers.tokenizers import BYTES, KINDS, TOKENIZERS, cleaning


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
