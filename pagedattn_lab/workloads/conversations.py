"""Synthetic prompts that begin alike: system prompts, and chats of many turns (chapter 10).

A prompt is a list of named pieces, so that two prompts share a prefix exactly where their pieces agree. From pieces
follow the ids of blocks of any size, as a trace with ``hash_ids`` has them, and token ids for a page table.

Lengths of questions and answers are those of :func:`~pagedattn_lab.workloads.lengths.sharegpt`; everything else, how
many turns, how long a system prompt, how popular, is an assumption, chosen to show effects rather than to match any
service.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.workloads.arrivals import TraceRequest
from pagedattn_lab.workloads.lengths import sharegpt


class Piece(NamedTuple):
    """A stretch of a prompt: pieces of one name hold the same tokens wherever they stand.

    Attributes:
        name: what it is.
        length: its tokens, at least 1.
    """

    name: str
    length: int


class Prompt(NamedTuple):
    """What a user sends, and how long the answer becomes.

    Attributes:
        pieces: in order.
        output_len: tokens of the answer.
    """

    pieces: tuple[Piece, ...]
    output_len: int


def chat(
    seed: int = 0, *, num_active: int = 64, mean_turns: float = 5.0, system_len: int = 300, longest: int = 4096
) -> Iterator[Prompt]:
    """Talk in many conversations at once, without end; every turn sends the whole conversation so far again.

    All begin with one system prompt. After each turn a conversation ends with a chance that makes ``mean_turns`` the
    mean, or because it has grown too long, and a new one takes its place.

    Args:
        seed: same seed, same conversations.
        num_active: conversations that take turns, in random order.
        mean_turns: before one ends, at least 1.
        system_len: tokens of the system prompt.
        longest: most tokens of a prompt.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> prompts = chat(num_active=1)
        >>> [piece.name for piece in next(prompts).pieces]
        ['system', 'question 0']
        >>> [piece.name for piece in next(prompts).pieces]
        ['system', 'question 0', 'answer 0', 'question 1']
    """
    for name, value in (("num_active", num_active), ("system_len", system_len), ("longest", longest)):
        at_least_one(name, value)
    if mean_turns < 1:
        raise ValueError(f"mean_turns is {mean_turns}: a conversation has at least 1 turn")
    return _chat(seed, num_active, mean_turns, system_len, longest)


def _chat(seed: int, num_active: int, mean_turns: float, system_len: int, longest: int) -> Iterator[Prompt]:
    rng = random.Random(f"chat {seed}")
    system = (Piece("system", system_len),)
    conversations: list[tuple[Piece, ...]] = [system] * num_active
    for turn, (question_len, answer_len) in enumerate(sharegpt(seed)):
        place = rng.randrange(num_active)
        pieces = (*conversations[place], Piece(f"question {turn}", question_len))
        if sum(piece.length for piece in pieces) > longest:
            pieces = (*system, pieces[-1])
        yield Prompt(pieces, answer_len)
        goes_on = rng.random() < 1 - 1 / mean_turns
        conversations[place] = (*pieces, Piece(f"answer {turn}", answer_len)) if goes_on else system


def system_prompts(
    seed: int = 0, *, num_prompts: int = 100, system_len: int = 1000, popularity: float = 1.0
) -> Iterator[Prompt]:
    """Ask single questions of many applications, without end; each application has a system prompt of its own.

    Args:
        seed: same seed, same questions.
        num_prompts: how many applications.
        system_len: tokens of each system prompt.
        popularity: the ``k``-th application is asked ``1 / k ** popularity`` times as often as the first; 0: all alike.

    Raises:
        ValueError: a number below 1, or a negative popularity.

    Example:
        >>> next(system_prompts())
        Prompt(pieces=(Piece(name='system 8', length=1000), Piece(name='question 0', length=44)), output_len=194)
    """
    for name, value in (("num_prompts", num_prompts), ("system_len", system_len)):
        at_least_one(name, value)
    if popularity < 0:
        raise ValueError(f"popularity is {popularity}: give 0 or more")
    weights = list(accumulate(1 / rank**popularity for rank in range(1, num_prompts + 1)))
    return _system_prompts(seed, system_len, weights)


def _system_prompts(seed: int, system_len: int, weights: list[float]) -> Iterator[Prompt]:
    rng = random.Random(f"system prompts {seed}")
    for turn, (question_len, answer_len) in enumerate(sharegpt(seed)):
        [which] = rng.choices(range(len(weights)), cum_weights=weights)
        yield Prompt((Piece(f"system {which}", system_len), Piece(f"question {turn}", question_len)), answer_len)


SHARED_WORKLOADS: dict[str, Callable[[int], Iterator[Prompt]]] = {"chat": chat, "system-prompts": system_prompts}


def hashed(prompts: Iterable[Prompt], block_size: int) -> Iterator[TraceRequest]:
    """Give each prompt the ids of its blocks: equal exactly where two prompts agree up to a block's end.

    As in Mooncake's trace, a last block that is not full has an id too. Prompts arrive one second after another.

    Args:
        prompts: what to send.
        block_size: tokens per block.

    Raises:
        ValueError: ``block_size`` is below 1.

    Example:
        >>> ask = Prompt((Piece("system", 40), Piece("question 0", 10)), 5), Prompt((Piece("system", 40),), 5)
        >>> [request.hash_ids for request in hashed(ask, block_size=16)]
        [(0, 1, 2, 3), (0, 1, 4)]
    """
    at_least_one("block_size", block_size)
    return _hashed(prompts, block_size)


def _hashed(prompts: Iterable[Prompt], block_size: int) -> Iterator[TraceRequest]:
    ids: dict[tuple[int, tuple[tuple[str, int, int], ...]], int] = {}
    for arrival, prompt in enumerate(prompts):
        parent, hash_ids = -1, []
        for content in _blocks(prompt.pieces, block_size):
            parent = ids.setdefault((parent, content), len(ids))
            hash_ids.append(parent)
        length = sum(piece.length for piece in prompt.pieces)
        yield TraceRequest(float(arrival), length, prompt.output_len, tuple(hash_ids))


def _blocks(pieces: Iterable[Piece], block_size: int) -> Iterator[tuple[tuple[str, int, int], ...]]:
    """Cut pieces into blocks: for each, the parts of pieces in it, as name, first token and end."""
    block: list[tuple[str, int, int]] = []
    room = block_size
    for name, length in pieces:
        start = 0
        while start < length:
            stop = min(length, start + room)
            block.append((name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield tuple(block)
                block, room = [], block_size
    if block:
        yield tuple(block)


def token_ids(pieces: Iterable[Piece], vocab_size: int = 50_000) -> list[int]:
    """Spell pieces out in tokens, by chance but the same for the same name.

    Example:
        >>> token_ids([Piece("system", 3)]) == token_ids([Piece("system", 5)])[:3]
        True
    """
    tokens: list[int] = []
    for name, length in pieces:
        tokens += random.Random(f"piece {name}").choices(range(vocab_size), k=length)
    return tokens
