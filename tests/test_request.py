"""A request keeps its tokens to itself, as plain numbers, and a fork goes its own way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.prefix_cache import HashIndex, block_hashes
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request, RequestStatus


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": []}, "'Ada' has no token"),
        ({"cache_salt": ""}, "cache_salt of request 'Ada' is empty"),
        ({"token_ids": ["a"]}, "token id 'a' of request 'Ada' cannot be used"),
        ({"token_ids": [1, 2.0]}, "token id 2.0"),
        ({"token_ids": [1, 2**63]}, "token id 9223372036854775808"),
        ({"token_ids": [-(2**63) - 1, 1]}, "token id -9223372036854775809"),
        ({"token_ids": [1, None]}, "token id None"),
        ({"token_ids": [torch.tensor(1.0)]}, "token id tensor"),
        ({"max_tokens": 0}, "max_tokens of request 'Ada' is 0"),
    ],
)
def test_impossible_requests_are_refused(change: dict, message: str) -> None:
    """Catches an empty salt, which would be no salt for one caller and a salt for another."""
    with pytest.raises(ValueError, match=message):
        Request(**{"request_id": "Ada", "token_ids": [1], **change})


def test_a_request_keeps_its_own_tokens() -> None:
    """Catches a list of the caller's that grows under the request, and its hashes that then no longer fit."""
    mine = [1, 2, 3]
    request = Request("Ada", mine)
    mine.append(4)
    request.append_token(5)
    assert request.token_ids == [1, 2, 3, 5] and mine == [1, 2, 3, 4]


def test_a_token_that_is_refused_changes_nothing() -> None:
    """Catches a token appended before it was looked at: hashing would fail over it later, in the middle of a step."""
    request = Request("Ada", [1, 2])
    with pytest.raises(ValueError, match=r"token id 0\.5 of request 'Ada'"):
        request.append_token(0.5)
    assert request.token_ids == [1, 2]


@pytest.mark.parametrize(
    "of",
    [torch.tensor, lambda ids: list(torch.tensor(ids)), np.array, lambda ids: np.array(ids, dtype=np.int32), tuple],
)
@pytest.mark.parametrize("index", [HashIndex, RadixTree])
def test_tokens_of_any_kind_are_found(of: object, index: type) -> None:
    """Catches tensors as tokens, which one index finds and the other does not, since a tensor is hashed by identity."""
    known, block = index(2), KVCacheBlock(1)
    known.insert(Request("Ada", of([1, 2, 3])), [block], 0, 1)
    request = Request("Bo", of([1, 2, 4]))
    request.append_token(of([5])[0])
    assert known.find(request, 1) == [block] and known.holds(request, [block])
    assert request.token_ids == [1, 2, 4, 5] and {type(token) for token in request.token_ids} == {int}


def test_prompt_and_output() -> None:
    """Catches an output that loses its first token, or a prompt that grows."""
    request = Request("Ada", [1, 2])
    assert request.output_token_ids == [] and request.num_output_tokens == 0
    request.append_token(7)
    request.append_token(8)
    assert (request.num_prompt_tokens, request.output_token_ids, request.num_tokens) == (2, [7, 8], 4)


def test_a_fork_goes_its_own_way() -> None:
    """Catches a fork that shares a list of tokens or of hashes with its parent, or forgets its salt or its count."""
    ada = Request("Ada", [1, 2, 3, 4], "blue", max_tokens=9, priority=2, arrival_time=1.5)
    ada.num_computed_tokens, ada.num_preemptions, ada.status = 4, 3, RequestStatus.RUNNING
    ada.append_token(5)
    first = list(block_hashes(ada, 2))
    bo = ada.fork("Bo")
    assert vars(bo) | {"request_id": "Ada"} == vars(ada)
    bo.append_token(6)
    ada.append_token(7)
    assert block_hashes(bo, 2)[:2] == block_hashes(ada, 2)[:2] == first
    assert block_hashes(bo, 2)[2] == block_hashes(Request("Cy", [1, 2, 3, 4, 5, 6], "blue"), 2)[2]
    assert block_hashes(ada, 2)[2] == block_hashes(Request("Dora", [1, 2, 3, 4, 5, 7], "blue"), 2)[2]
    assert ada.output_token_ids == [5, 7] and bo.output_token_ids == [5, 6]


@pytest.mark.parametrize("rest", [{"priority": None}, {"priority": "high"}, {"arrival_time": math.nan}])
def test_what_cannot_be_compared_is_refused(rest: dict[str, Any]) -> None:
    """Catches a request that takes a place in a queue in which no other finds its own any more."""
    with pytest.raises(ValueError, match=r"request 'Ada' has priority .* which others can be compared with"):
        Request("Ada", [1], **rest)
