"""Where an output ends, and what of its text is shown when: nothing that is cut later, and all as soon as may be."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.engine.stop import StopChecker
from pagedattn_lab.models.detokenize import IncrementalDetokenizer, detokenize
from tests.helpers.tokenizers import TOKENIZERS

WORDS = ["a", "b", "ab", "aab", "ba", "c", "abcab", " a", "<end>"]
EOS = WORDS.index("<end>")


@functools.cache
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of few letters, so that stop strings overlap tokens and themselves, and bytes of é and 🙂."""
    written = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [word if word == "<end>" else written.pre_tokenize_str(word)[0][0] for word in WORDS]
    halves = [piece for text in ("é", "🙂") for piece in written.pre_tokenize_str(text)[0][0]]
    tokens += [token for token in dict.fromkeys(halves) if token not in tokens]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<end>"])


def checker_of(max_tokens: int = 100, eos: int | None = EOS, **params: Any) -> StopChecker:
    asked = SamplingParams(max_tokens=None, **params)
    return StopChecker(words(), asked, asked.end_tokens(eos), max_tokens)


def ids(*texts: str) -> list[int]:
    return [WORDS.index(text) for text in texts]


def oracle(token_ids: Sequence[int], params: SamplingParams, max_tokens: int) -> tuple[int, str, str | None, Any]:
    """How many tokens are taken, the text and the reasons: by the whole text so far, anew for each token, as the rules
    read.
    """
    detokenizer = IncrementalDetokenizer(words())
    pieces: list[str] = []
    for num, token in enumerate(token_ids, 1):
        reason: str | None = None
        stop_reason: Any = None
        if token == EOS and not params.ignore_eos:
            reason = "stop"
        elif token in params.stop_token_ids:
            reason, stop_reason = "stop", token
        elif num == max_tokens:
            reason = "length"
        piece = "" if reason == "stop" and not params.include_stop_str_in_output else detokenizer.update(token)
        pieces.append(piece + (detokenizer.finish() if reason else ""))
        text = "".join(pieces)
        if num > params.min_tokens:
            before = len(text) - len(pieces[-1])
            ends = [
                (place + len(stop), number, place, stop)
                for number, stop in enumerate(params.stop)
                for place in range(len(text))
                if text.startswith(stop, place) and place + len(stop) > before
            ]
            if ends:
                end, _, place, stop = min(ends)
                return num, text[: end if params.include_stop_str_in_output else place], "stop", stop
        if reason:
            return num, text, reason, stop_reason
    return len(token_ids), "".join(pieces), None, None


stops = st.lists(st.text("abc é\ufffd🙂", min_size=1, max_size=5), max_size=3)


@given(
    token_ids=st.lists(st.integers(0, len(words()) - 1), min_size=1, max_size=14), stop=stops,
    stop_token_ids=st.sets(st.integers(0, len(words()) - 1), max_size=2), include=st.booleans(),
    ignore_eos=st.booleans(), min_tokens=st.integers(0, 5), max_tokens=st.integers(5, 14),
)  # fmt: skip
@example(ids("a", "a", "a", "b"), ["aab"], set(), False, False, 0, 14)
@example(ids("aab", "abcab", "ba"), ["cabb", "bcabba"], set(), False, False, 0, 14)
@example(ids("a", "b", "ab"), ["ab"], set(), False, False, 2, 14)
@example(ids("a", "ba", "ba"), ["aba"], set(), False, False, 2, 14)
def test_outputs_end_where_the_rules_say(
    token_ids: list[int], stop: list[str], stop_token_ids: set[int], include: bool, ignore_eos: bool, min_tokens: int,
    max_tokens: int,
) -> None:  # fmt: skip
    """Catches a stop string missed across tokens or after a match that broke, found too early, in the wrong order or
    cut at the wrong place; text that is shown and then cut; text that is held back without need; the wrong reason.
    """
    params = SamplingParams(
        stop=stop, stop_token_ids=sorted(stop_token_ids), include_stop_str_in_output=include, ignore_eos=ignore_eos,
        min_tokens=min_tokens, max_tokens=None,
    )  # fmt: skip
    num, text, reason, stop_reason = oracle(token_ids, params, max_tokens)
    checker = StopChecker(words(), params, params.end_tokens(EOS), max_tokens)
    shown = ""
    for place, token in enumerate(token_ids[:num], 1):
        update = checker.update(token)
        shown += update.text
        assert checker.text == shown and text.startswith(shown)
        if place < num or reason is None:
            assert update.finish_reason is None and update.stop_reason is None
            whole = oracle(token_ids[:place], params, max_tokens)[1]
            beginnings = ["", *(one[:length] for one in stop for length in range(len(one)) if not include)]
            assert whole == shown + max((one for one in beginnings if whole.endswith(one)), key=len)
        else:
            assert (update.finish_reason, update.stop_reason) == (reason, stop_reason)
            assert shown == text
    if reason is None and not stop:
        assert shown + checker.finish() == detokenize(words(), token_ids)


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    """Catches text that is held back for as long as a stop string is (as vLLM does), or shown and then cut."""
    checker = checker_of(stop=["abcabc", "cc"])
    assert [checker.update(token).text for token in ids("ba", "ba", "b", "c", "b", "c", "c")] == [
        "b", "ab", "", "", "abcb", "", ""
    ]  # fmt: skip
    assert checker.text == "bababcb"


@pytest.mark.parametrize(
    ("params", "texts", "expected"),
    [
        ({"stop": "ab"}, ["c", "a", "ba"], ("c", "stop", "ab")),
        ({"stop": "ab", "include_stop_str_in_output": True}, ["c", "a", "ba"], ("cab", "stop", "ab")),
        ({}, ["c", "<end>"], ("c", "stop", None)),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, ["c", "<end>"], ("c<end>", "stop", None)),
        ({"skip_special_tokens": False}, ["c", "<end>"], ("c", "stop", None)),
        ({"ignore_eos": True, "skip_special_tokens": False}, ["c", "<end>", "a", "b"], ("c<end>ab", "length", None)),
        ({"stop_token_ids": [EOS]}, ["c", "<end>"], ("c", "stop", None)),
        ({"stop_token_ids": [1], "ignore_eos": True}, ["a", "b"], ("a", "stop", 1)),
        ({"stop_token_ids": [1], "include_stop_str_in_output": True}, ["a", "b"], ("ab", "stop", 1)),
        ({}, ["a", "b", "c", "a"], ("abca", "length", None)),
        ({"stop": "ca"}, ["a", "b", "c", "a"], ("ab", "stop", "ca")),
        ({"stop": "cab"}, ["a", "b", "c", "a"], ("abca", "length", None)),
        ({"stop": ["b", "ab"]}, ["c", "ab"], ("ca", "stop", "b")),
        ({"stop": ["ab", "b"]}, ["c", "ab"], ("c", "stop", "ab")),
    ],
)
def test_reasons(params: dict[str, Any], texts: list[str], expected: tuple[str, str, Any]) -> None:
    """Catches a reason that differs from vLLM's: by name for a stop token and string, none for the model's own end."""
    checker = checker_of(max_tokens=4, **params)
    *_, last = [checker.update(token) for token in ids(*texts)]
    assert (checker.text, last.finish_reason, last.stop_reason) == expected


def test_an_output_that_is_broken_off_shows_what_it_has() -> None:
    """Catches text that is lost, or doubled, when a client leaves in the middle of a stop string or a character."""
    checker = checker_of(stop="abc")
    half = words().convert_tokens_to_ids("ð")
    assert [checker.update(token).text for token in [*ids("ab"), half]] == ["", ""]
    assert (checker.finish(), checker.text, checker.finish()) == ("ab\ufffd", "ab\ufffd", "")


def test_without_a_tokenizer_there_is_no_text() -> None:
    """Catches ids that are decoded without a tokenizer, an end that is missed, and a stop string that never can be."""
    params = SamplingParams()
    checker = StopChecker(None, params, params.end_tokens(2), 5)
    assert checker.update(1) == ("", None, None) and checker.update(2) == ("", "stop", None)
    with pytest.raises(ValueError, match="without a tokenizer"):
        StopChecker(None, SamplingParams(stop="a"), params.end_tokens(2), 5)


def test_a_long_stop_string_costs_no_more_for_each_token() -> None:
    """Catches a match that begins anew at every place: steps are counted, not timed."""
    checker = checker_of(max_tokens=10_000, stop="a" * 4000 + "c")
    [match] = checker._matches
    match.stop = steps = _Counted(match.stop)
    for _ in range(3000):
        checker.update(0)
    assert checker.text == "" and steps.reads < 3 * 3000
    assert checker.update(1).text == "a" * 3000 + "b" and steps.reads < 5 * 3000


class _Counted(str):
    """A string that counts how often it is looked at."""

    reads = 0

    def __getitem__(self, key: Any) -> str:
        self.reads += 1
        return super().__getitem__(key)


def test_the_space_behind_the_prompt_is_kept() -> None:
    """Catches an output that is decoded as a text of its own: sentencepiece drops the first space of a text."""
    tokenizer = TOKENIZERS["sentencepiece"]
    page, special = tokenizer.convert_tokens_to_ids(["▁page", "<s>"])
    for prompt, expected in (([], "page"), ([page], " page"), ([page, special, special], " page")):
        detokenizer = IncrementalDetokenizer(tokenizer, prompt)
        assert detokenizer.update(page) + detokenizer.finish() == expected


def test_special_tokens_have_text_if_asked() -> None:
    """Catches a wish that is not passed on."""
    shown = IncrementalDetokenizer(words(), skip_special_tokens=False).update(EOS)
    assert (shown, IncrementalDetokenizer(words()).update(EOS)) == ("<end>", "")
