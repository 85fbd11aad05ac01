"""What arrives at a fleet: requests with a session, from a log or from synthetic conversations (chapter 11)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.studies.hit_rates import MOONCAKE_BLOCK_SIZE
from pagedattn_lab.workloads import TraceRequest, load_trace
from pagedattn_lab.workloads.lengths import sharegpt


class FleetRequest(NamedTuple):
    """One request.

    Attributes:
        arrival: seconds after the first one.
        prompt_len: tokens in the prompt.
        output_len: tokens that will be generated.
        hash_ids: one id per full block of the prompt, equal where whole prefixes are, and perhaps one for the rest.
        session: the conversation that it belongs to.
    """

    arrival: float
    prompt_len: int
    output_len: int
    hash_ids: tuple[int, ...]
    session: int


def chat_requests(
    seed: int = 0,
    *,
    block_size: int = 16,
    num_active: int = 64,
    mean_turns: float = 5.0,
    system_len: int = 300,
    longest: int = 4096,
    rate: float = 1.0,
) -> Iterator[FleetRequest]:
    """Talk as :func:`pagedattn_lab.workloads.conversations.chat` does, without end, in the memory of what is active.

    The conversations are the same, token for token. Blocks are numbered when they become full, so that nothing of a
    conversation is kept once it has ended. A turn arrives when chance says so, whether or not the answer before it has
    been given: think of a log of such turns.

    Args:
        seed: same seed, same requests.
        block_size: tokens per block.
        num_active: conversations that take turns, in random order.
        mean_turns: before one ends, at least 1.
        system_len: tokens of the system prompt with which all begin.
        longest: most tokens of a prompt.
        rate: requests per second; they arrive as a Poisson process.

    Raises:
        ValueError: a number below 1, or a rate that is not above 0.

    Example:
        >>> requests = chat_requests(num_active=1, system_len=32)
        >>> [(request.session, request.prompt_len, request.hash_ids) for request in (next(requests), next(requests))]
        [(0, 76, (0, 1, 2, 3)), (0, 340, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20))]
    """
    for name, value in (
        ("block_size", block_size), ("num_active", num_active), ("system_len", system_len), ("longest", longest)
    ):  # fmt: skip
        at_least_one(name, value)
    if mean_turns < 1:
        raise ValueError(f"mean_turns is {mean_turns}: a conversation has at least 1 turn")
    if not rate > 0:
        raise ValueError(f"a rate of {rate} requests per second: give one above 0")
    return _chat_requests(seed, block_size, num_active, mean_turns, system_len, longest, rate)


def _chat_requests(
    seed: int, block_size: int, num_active: int, mean_turns: float, system_len: int, longest: int, rate: float
) -> Iterator[FleetRequest]:
    rng, arrivals = random.Random(f"chat {seed}"), random.Random(f"arrivals {seed}")
    system_ids = tuple(range(system_len // block_size))
    num_ids, num_sessions, now = len(system_ids), num_active, 0.0
    # of each place: the session, the tokens so far, and the ids of their full blocks
    places = [(session, system_len, system_ids) for session in range(num_active)]
    goes_on = 1 - 1 / mean_turns
    for question_len, answer_len in sharegpt(seed):
        place = rng.randrange(num_active)
        session, length, ids = places[place]
        prompt_len = length + question_len
        if prompt_len > longest and length > system_len:
            session, ids, prompt_len = num_sessions, system_ids, system_len + question_len
            num_sessions += 1
        num_new = prompt_len // block_size - len(ids)
        ids = (*ids, *range(num_ids, num_ids + num_new))
        num_ids += num_new
        yield FleetRequest(now, prompt_len, answer_len, ids, session)
        now += arrivals.expovariate(rate)
        if rng.random() < goes_on:
            places[place] = session, prompt_len + answer_len, ids
        else:
            places[place] = num_sessions, system_len, system_ids
            num_sessions += 1


def log_requests(
    log: str | PathLike[str] | Iterable[TraceRequest], block_size: int = MOONCAKE_BLOCK_SIZE
) -> Iterator[FleetRequest]:
    """Read a log in Mooncake's format, and tell sessions from its chained hashes, for it names none.

    An id stands for a block and all before it. So a request goes on with a session if the last full block of that
    session's latest prompt is among its own; of several, with the longest. A request that does so is the latest one
    from then on: who goes back to an earlier turn begins a session, as does a prompt without a full block.

    Args:
        log: path of the file, or requests as :func:`pagedattn_lab.workloads.request_logs.load_trace` reads them.
        block_size: tokens per hashed block.

    Raises:
        MalformedTraceError, OSError: as for :func:`pagedattn_lab.workloads.request_logs.load_trace`.
        ValueError: a block size below 1, or requests without ``hash_ids``.

    Example:
        >>> log = [TraceRequest(0, 9, 1, (0, 1, 2)), TraceRequest(1, 9, 1, (0, 3, 4)), TraceRequest(2, 13, 1, (0, 1, 5, 6))]
        >>> [request.session for request in log_requests(log, block_size=4)]
        [0, 1, 0]
    """  # noqa: E501
    at_least_one("block_size", block_size)
    requests = load_trace(log) if isinstance(log, str | PathLike) else log
    return _with_sessions(requests, block_size)


def _with_sessions(requests: Iterable[TraceRequest], block_size: int) -> Iterator[FleetRequest]:
    latest: dict[int, int] = {}  # the last full block of a session's latest prompt -> the session
    num_sessions = 0
    for number, (arrival, prompt_len, output_len, hash_ids) in enumerate(requests, start=1):
        full = hash_ids[: prompt_len // block_size]
        if prompt_len >= block_size and not full:
            raise ValueError(
                f"request {number} has no hash_ids, which tell prompts that begin alike: give a log in "
                "Mooncake's format"
            )
        known = next((hash_id for hash_id in reversed(full) if hash_id in latest), None)
        if known is None:
            session = num_sessions
            num_sessions += 1
        else:
            session = latest.pop(known)
        if full:
            latest[full[-1]] = session
        yield FleetRequest(arrival, prompt_len, output_len, hash_ids, session)
