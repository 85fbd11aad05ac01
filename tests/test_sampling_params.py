"""What a request may ask for: defaults, meanings and refusals, as vLLM's."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest

from pagedattn_lab.engine.outputs import CompletionOutput
from pagedattn_lab.engine.sampling_params import EndTokens, SamplingParams

# Read in vllm/sampling_params.py, release 0.33.0, class SamplingParams; strings and ids end up as empty there too.
DEFAULTS = {
    "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop": (), "stop_token_ids": (),
    "include_stop_str_in_output": False, "ignore_eos": False, "max_tokens": 16, "min_tokens": 0, "logprobs": None,
    "skip_special_tokens": True,
}  # fmt: skip


def test_defaults_are_vllms() -> None:
    """Catches a default that means something else than in vLLM."""
    assert dataclasses.asdict(SamplingParams()) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("n", [1, 16_384], [0, -1, 16_385, 1.0, True, "1", None]),
        ("presence_penalty", [-2, 2.0], [-2.1, 2.1, math.nan, math.inf, "1", None]),
        ("frequency_penalty", [-2, 2.0], [-2.1, 2.1, math.nan, -math.inf, "1", None]),
        ("repetition_penalty", [1e-9, 100.0], [0, -1.0, math.nan, math.inf, "1", None]),
        ("temperature", [0, 0.01, 2], [-0.1, 2.1, math.nan, math.inf, "1", None, True]),
        ("top_p", [1e-9, 1], [0, -0.1, 1.1, math.nan, "1", None]),
        ("top_k", [-1, 0, 1, 10**9], [-2, 1.0, math.nan, "1", None, True]),
        ("min_p", [0, 1], [-0.1, 1.1, math.nan, "1", None]),
        ("seed", [None, 0, 2**70, -5], [1.0, "1", True]),
        ("stop", [None, "a", [], ["a", "b"]], [[""], ["a", ""], [1], [None]]),
        ("stop_token_ids", [None, [], [3, 4]], [[1.0], ["1"], [True], [None]]),
        ("max_tokens", [None, 1, 10**9], [0, -1, 1.0, "1", True]),
        ("min_tokens", [0, 16], [-1, 17, 1.0, "1", None, True]),
        ("logprobs", [None, -1, 0, 20], [-2, 1.0, "1", math.nan]),
    ],
)
def test_limits(name: str, allowed: list[object], refused: list[object]) -> None:
    """Catches a limit that is off, a type that passes unseen, and a message that does not name the value."""
    for value in allowed:
        SamplingParams(**{name: value})
    for value in refused:
        wrong = next((item for item in value if item != "a"), None) if isinstance(value, list) else value
        with pytest.raises(ValueError, match=name) as raised:
            SamplingParams(**{name: value})
        assert repr(wrong) in str(raised.value)


def test_an_empty_stop_string_is_refused() -> None:
    """Catches a string that would end every output before it begins."""
    with pytest.raises(ValueError, match="stop has ''"):
        SamplingParams(stop="")


def test_other_forms() -> None:
    """Catches vLLM's other spellings of the same wish: one string, no seed as -1, a flag for one logprob, ids twice."""
    params = SamplingParams(stop="end", seed=-1, logprobs=True, stop_token_ids=[4, 3, 4])
    assert (params.stop, params.seed, params.logprobs, params.stop_token_ids) == (("end",), None, 1, (4, 3))


def test_greedy_ignores_what_only_changes_chances() -> None:
    """Catches a greedy request that is filtered for nothing, and one that asks for the same output twice."""
    params = SamplingParams(temperature=0, top_p=0.5, top_k=4, min_p=0.2)
    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)
    with pytest.raises(ValueError, match="n is 2"):
        SamplingParams(temperature=0.0, n=2)


def test_very_low_temperatures_are_raised_and_said_to_be() -> None:
    """Catches logits that overflow, a change without a word, and a warning where nothing changes."""
    with pytest.warns(UserWarning, match="raised to 0.01") as said:
        assert SamplingParams(temperature=1e-6, n=2, top_k=3).temperature == 0.01
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SamplingParams(temperature=0.01), SamplingParams(temperature=0.0)


def test_nothing_changes_afterwards() -> None:
    """Catches parameters of several requests that one of them could change, by a list that was passed, too."""
    stop = ["a"]
    params = SamplingParams(stop=stop)
    stop.append("b")
    assert params.stop == ("a",) and hash(params) == hash(SamplingParams(stop="a"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ignore_eos", "expected"),
    [
        (False, EndTokens(2, frozenset({3, 7}), frozenset({2, 3, 7}))),
        (True, EndTokens(None, frozenset({7}), frozenset({2, 3, 7}))),
    ],
)
def test_end_tokens(ignore_eos: bool, expected: EndTokens) -> None:
    """Catches a model's second end token that goes unseen or ends without its name, an ignored one that ends, and one
    that ``min_tokens`` does not hold back (vLLM holds back ignored ones, too).
    """
    params = SamplingParams(stop_token_ids=[7], ignore_eos=ignore_eos)
    assert params.end_tokens(2, [2, 3]) == expected
    assert params.end_tokens(None).eos_token_id is None


def test_a_stop_token_that_is_also_the_ignored_eos_ends() -> None:
    """Catches ``ignore_eos`` that overrules what was asked for by id."""
    assert SamplingParams(stop_token_ids=[2], ignore_eos=True).end_tokens(2).stop_token_ids == {2}


def test_an_output_is_finished_once_it_has_a_reason() -> None:
    """Catches an output that never ends, or has ended before it began."""
    assert not CompletionOutput(0, "", []).finished()
    assert CompletionOutput(0, "", [], finish_reason="abort").finished()
