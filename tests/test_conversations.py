"""Prompts that begin alike: ids of blocks agree exactly where tokens do, and a seed gives the same prompts."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pagedattn_lab.workloads.conversations import (
    SHARED_WORKLOADS,
    Piece,
    Prompt,
    chat,
    hashed,
    system_prompts,
    token_ids,
)

pieces = st.lists(st.builds(Piece, st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=4).map(tuple)


def length(prompt: Prompt) -> int:
    return sum(piece.length for piece in prompt.pieces)


@given(st.lists(pieces, min_size=1, max_size=8), st.integers(1, 7))
def test_ids_agree_exactly_where_tokens_do(parts: list[tuple[Piece, ...]], block_size: int) -> None:
    """Catches an id that forgets what came before, one that is never met again, and a last block taken for full.

    With 2**40 tokens to draw from, two different ones are never equal by chance.
    """
    requests = list(hashed([Prompt(each, 5) for each in parts], block_size))
    tokens = [token_ids(each, vocab_size=2**40) for each in parts]
    for request, mine in zip(requests, tokens, strict=True):
        assert request.prompt_len == len(mine) and len(request.hash_ids) == -(-len(mine) // block_size)
        for other, theirs in zip(requests, tokens, strict=True):
            for index, (one, two) in enumerate(zip(request.hash_ids, other.hash_ids, strict=False)):
                end = (index + 1) * block_size
                assert (one == two) == (mine[:end] == theirs[:end])
    ids = [hash_id for request in requests for hash_id in request.hash_ids]
    assert sorted(set(ids)) == list(range(len(set(ids))))


@pytest.mark.parametrize("name", SHARED_WORKLOADS)
@pytest.mark.parametrize("block_size", [1, 16, 100, 512])
def test_workloads_share_what_their_tokens_share(name: str, block_size: int) -> None:
    """Catches names that stand for two texts, or two for one, in the workloads themselves."""
    prompts = list(islice(SHARED_WORKLOADS[name](3), 40))
    requests = list(hashed(prompts, block_size))
    tokens = [token_ids(prompt.pieces, vocab_size=2**40) for prompt in prompts]
    for first, second in ((a, b) for a in range(0, 40, 3) for b in range(a)):
        common = sum(a == b for a, b in zip(requests[first].hash_ids, requests[second].hash_ids, strict=False))
        equal = next(
            (place for place, (a, b) in enumerate(zip(tokens[first], tokens[second], strict=False)) if a != b),
            min(len(tokens[first]), len(tokens[second])),
        )
        assert common == equal // block_size


@pytest.mark.parametrize("name", SHARED_WORKLOADS)
def test_a_seed_gives_the_same_prompts(name: str) -> None:
    """Catches prompts that depend on a clock or on what was drawn before, and a seed that is ignored."""
    make = SHARED_WORKLOADS[name]
    first = list(islice(make(0), 200))
    assert first == list(islice(make(0), 200)) != list(islice(make(1), 200))
    assert list(hashed(first, 16)) == list(hashed(first, 16))
    assert all(length(prompt) >= 1 and prompt.output_len >= 1 for prompt in first)
    assert [request.output_len for request in hashed(first, 16)] == [prompt.output_len for prompt in first]
    assert [request.arrival for request in hashed(first[:3], 16)] == [0, 1, 2]


def test_a_turn_repeats_its_conversation() -> None:
    """Catches a turn that loses what was said before, an answer of another length, and conversations that never end."""
    prompts = list(islice(chat(num_active=8, mean_turns=4, system_len=50, longest=10**6), 4_000))
    assert {prompt.pieces[0] for prompt in prompts} == {Piece("system", 50)}
    said: dict[str, tuple[Prompt, Prompt]] = {}
    turns = Counter()
    for number, prompt in enumerate(prompts):
        assert prompt.pieces[-1].name == f"question {number}"
        turns[len(prompt.pieces) // 2] += 1
        if len(prompt.pieces) > 2:
            *before, answer, _ = prompt.pieces
            last = said.pop(before[-1].name)  # nobody continues one turn twice
            assert tuple(before) == last.pieces
            assert answer == Piece(f"answer {before[-1].name.split()[1]}", last.output_len)
        said[prompt.pieces[-1].name] = prompt
    # Of 4,000 turns a quarter begin a conversation: 1,000 with a standard deviation of 27.
    assert 880 < turns[1] < 1_120
    assert 0.7 < turns[2] / turns[1] < 0.8 and max(turns) > 10


def test_long_conversations_start_anew() -> None:
    """Catches prompts beyond the limit, and a system prompt that is lost on the way."""
    prompts = list(islice(chat(num_active=4, mean_turns=1_000, longest=2_500), 2_000))
    assert max(map(length, prompts)) <= 2_500 and max(map(length, prompts)) > 2_300
    assert all(prompt.pieces[0] == Piece("system", 300) for prompt in prompts)
    assert sum(len(prompt.pieces) == 2 for prompt in prompts) > 100


def test_system_prompts_are_as_popular_as_asked() -> None:
    """Catches a popularity that is ignored or turned round, and a system prompt without its number."""
    for popularity, expected in ((1.0, 2.0), (0.0, 1.0), (2.0, 4.0)):
        prompts = list(islice(system_prompts(num_prompts=5, system_len=70, popularity=popularity), 6_000))
        times = Counter(prompt.pieces[0].name for prompt in prompts)
        assert set(times) == {f"system {number}" for number in range(5)}
        # The rarest of the two is drawn 600 times or more: 4 standard deviations are 16 % of it, 6 % with 4,000.
        assert times["system 0"] / times["system 1"] == pytest.approx(expected, rel=0.2)
        assert {prompt.pieces[0].length for prompt in prompts} == {70}
        assert len({prompt.pieces[1].name for prompt in prompts}) == 6_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chat(num_active=0), "num_active is 0"),
        (lambda: chat(system_len=0), "system_len is 0"),
        (lambda: chat(longest=0), "longest is 0"),
        (lambda: chat(mean_turns=0.5), "a conversation has at least 1 turn"),
        (lambda: system_prompts(num_prompts=0), "num_prompts is 0"),
        (lambda: system_prompts(system_len=0), "system_len is 0"),
        (lambda: system_prompts(popularity=-1), "popularity is -1: give 0 or more"),
        (lambda: hashed([], 0), "block_size is 0"),
    ],
)
def test_nonsense_is_refused_at_once(make, message: str) -> None:
    """Catches an error that waits until the first prompt is drawn."""
    with pytest.raises(ValueError, match=message):
        make()
