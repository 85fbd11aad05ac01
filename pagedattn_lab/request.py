"""One request: its tokens, how far it has come, and whom it may share blocks with (chapters 06 and 09).

Source: vLLM's ``vllm/v1/request.py``, release 0.33.0; counts and statuses have its names.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterable
from enum import Enum
from operator import index
from typing import Any

from pagedattn_lab.arithmetic import at_least_one

ExtraKey = tuple[str | int, ...]
"""What, beside tokens, decides what a block holds: a kind and its value."""


class RequestStatus(Enum):
    """Where a request is on its way."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "waiting again: it has lost its blocks to others"
    FINISHED_STOPPED = "finished: it chose a token that ends it"
    FINISHED_LENGTH_CAPPED = "finished: it has as many tokens as it may have"
    FINISHED_ABORTED = "finished: nobody wants the rest"
    FINISHED_ERROR = "finished: it could not be computed"

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is computed for the request.

        Example:
            >>> [status.name for status in RequestStatus if not status.is_finished]
            ['WAITING', 'RUNNING', 'PREEMPTED']
        """
        return self.name.startswith("FINISHED")


class Request:
    """The tokens of one request, and what else decides which blocks it may share.

    Args:
        request_id: its name, unique among running requests.
        token_ids: the prompt.
        cache_salt: requests share blocks only with those of the same salt.
        max_tokens: how many tokens of output it may have; ``None`` if whoever runs it says when it ends.
        priority: requests of a smaller number go first, where priorities count.
        arrival_time: when it came, on any clock in seconds; decides between equal priorities.

    Attributes:
        token_ids: prompt and output so far. It only grows: use :meth:`append_token`.
        num_prompt_tokens: how many of them are the prompt.
        num_computed_tokens: how many have keys and values in the cache; whoever runs the model advances it.
        status: where it is on its way; whoever runs it says so.
        num_preemptions: how often it has lost its blocks to others.
        shared_prefix_boundary: up to which token others have begun alike, though not all groups of layers remember it;
            0 if they do. :mod:`pagedattn_lab.kv_groups` notes it.
        hashes: of its full blocks (vLLM: ``block_hashes``), kept by :func:`pagedattn_lab.prefix_cache.block_hashes`, so
            that each is computed once.

    Raises:
        ValueError: no token, one that is no whole number of 64 bits, an empty salt, ``max_tokens`` below 1, or a
            ``priority`` or ``arrival_time`` that cannot be compared.

    Example:
        >>> request = Request("Ada", [5, 6, 7, 8, 9])
        >>> request.append_token(10)
        >>> request.num_tokens, request.num_prompt_tokens, request.output_token_ids
        (6, 5, [10])
    """

    def __init__(
        self,
        request_id: str,
        token_ids: Iterable[int],
        cache_salt: str | None = None,
        *,
        max_tokens: int | None = None,
        priority: int = 0,
        arrival_time: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.token_ids = _whole_numbers(request_id, token_ids)
        if not self.token_ids:
            raise ValueError(f"request {request_id!r} has no token: give it at least one")
        if cache_salt == "":
            raise ValueError(f"cache_salt of request {request_id!r} is empty: give a text, or None for none")
        if max_tokens is not None:
            at_least_one(f"max_tokens of request {request_id!r}", max_tokens)
        if not is_whole(priority) or not math.isfinite(arrival_time):
            raise ValueError(
                f"request {request_id!r} has priority {priority!r} and arrival_time {arrival_time!r}: give a whole "
                "number and a finite one, which others can be compared with"
            )
        self.cache_salt = cache_salt
        self.max_tokens = max_tokens
        self.priority = priority
        self.arrival_time = arrival_time
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_preemptions = 0
        self.shared_prefix_boundary = 0
        self.status = RequestStatus.WAITING
        self.hashes: dict[Hashable, list[bytes]] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output so far."""
        return len(self.token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """The tokens that were added to the prompt; a copy."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        """How many tokens were added to the prompt."""
        return len(self.token_ids) - self.num_prompt_tokens

    def append_token(self, token_id: int) -> None:
        """Add one token of output.

        Raises:
            ValueError: it is no whole number of 64 bits.
        """
        self.token_ids += _whole_numbers(self.request_id, (token_id,))

    def extra_keys(self, start: int, stop: int) -> tuple[ExtraKey, ...]:
        """What, beside tokens, decides the contents of a block of tokens ``start`` to ``stop - 1``.

        The salt is in the first block only: through the parents' hashes it is in all others too.

        Example:
            >>> request = Request("Ada", range(8), cache_salt="blue")
            >>> request.extra_keys(0, 4), request.extra_keys(4, 8)
            ((('salt', 'blue'),), ())
        """
        return (("salt", self.cache_salt),) if self.cache_salt is not None and start == 0 else ()

    def fork(self, request_id: str) -> Request:
        """Make a second request of the same tokens, as far computed as this one, that goes on by itself.

        It has no blocks yet: :meth:`pagedattn_lab.kv_manager.KVCacheManager.fork` gives it a share of this one's.

        Example:
            >>> first = Request("Ada", [5, 6])
            >>> first.append_token(7)
            >>> second = first.fork("Bo")
            >>> second.append_token(8)
            >>> first.output_token_ids, second.output_token_ids
            ([7], [7, 8])
        """
        twin = Request(
            request_id,
            self.token_ids,
            self.cache_salt,
            max_tokens=self.max_tokens,
            priority=self.priority,
            arrival_time=self.arrival_time,
        )
        twin.num_prompt_tokens, twin.num_computed_tokens = self.num_prompt_tokens, self.num_computed_tokens
        twin.num_preemptions, twin.status = self.num_preemptions, self.status
        twin.hashes = {key: list(hashes) for key, hashes in self.hashes.items()}
        return twin

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.num_prompt_tokens} + {self.num_output_tokens} tokens, "
            f"{self.num_computed_tokens} computed, {self.status.name})"
        )


def _whole_numbers(request_id: str, token_ids: Iterable[int]) -> list[int]:
    """Give token ids as plain numbers, whatever kind of whole number they came as (NumPy's, or a tensor's)."""
    tokens = list(token_ids)
    try:
        return array("q", tokens).tolist()
    except (TypeError, OverflowError):
        wrong = next(token for token in tokens if not is_whole(token))
        raise ValueError(
            f"token id {wrong!r} of request {request_id!r} cannot be used: give whole numbers of 64 bits"
        ) from None


def is_whole(token: Any) -> bool:
    """Whether something is a whole number of 64 bits, of whatever kind: Python's, NumPy's or a tensor's.

    Example:
        >>> is_whole(7), is_whole(7.0), is_whole(2**63)
        (True, False, False)
    """
    try:
        return -(2**63) <= index(token) < 2**63
    except TypeError:
        return False
