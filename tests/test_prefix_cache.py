"""Hashes that name contents: nothing collides, nothing depends on the machine, nothing is computed twice."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from hypothesis.strategies import DrawFn

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.prefix_cache import (
    SHA256_ROOT,
    HashIndex,
    block_hashes,
    hash_block_tokens,
    sha256,
)
from pagedattn_lab.request import Request


def same(data: bytes) -> bytes:
    """A hash that hides nothing: what it gives is what was serialised."""
    return data


def little(*numbers: int) -> bytes:
    """Numbers of 64 bits, least significant byte first."""
    return b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)


tokens = st.lists(st.one_of(st.integers(-2, 300), st.integers(-(2**63), 2**63 - 1)), max_size=4)
texts = st.text(st.characters(), max_size=4)  # lone surrogates too
keys = st.one_of(
    st.tuples(st.just("salt"), texts),
    st.tuples(st.just("lora"), texts),
    st.tuples(st.just("image"), texts, st.integers(-5, 5)),
)


@st.composite
def block(draw: DrawFn) -> tuple[bytes, tuple[int, ...], tuple]:
    return draw(st.binary(max_size=6)), tuple(draw(tokens)), tuple(draw(st.lists(keys, max_size=3)))


@given(block(), block())
@example((b"", (ord("1"),), ()), (b"1\0\0\0\0\0\0\0", (), ()))
@example((b"8;", (), ()), (b"", (), (("salt", "8;"),)))
@example((b"", (1,), (("salt", "a"),)), (b"", (1,), (("lora", "a"),)))
@example((b"", (), (("salt", 'a"],["lora","b'),)), (b"", (), (("salt", "a"), ("lora", "b"))))
@example((b"", (), (("image", "a", 1),)), (b"", (), (("image", "a", -1),)))
@example((b"", (), (("salt", "1"),)), (b"", (), (("salt", 1),)))
@example((b"", (), (("salt", "\U0001f600"),)), (b"", (), (("salt", "\ud83d\ude00"),)))
@example((b"", (), ()), (b"", (), ((),)))
@example((b"", (), (("salt", "ä"),)), (b"", (), (("salt", "\\u00e4"),)))
@example((b"", (int.from_bytes(b'[["salt"', "little"),), ()), (b"", (), (("salt", ""),)))
def test_different_blocks_give_different_bytes(one: tuple, other: tuple) -> None:
    """Catches parts that run into each other: one request could then name its block as another's."""
    data = [hash_block_tokens(*part, hash_function=same) for part in (one, other)]
    assert (data[0] == data[1]) == (one == other)
    assert hash_block_tokens(*one, hash_function=same) == data[0]


@given(block())
def test_what_is_serialised_can_be_read_back(one: tuple) -> None:
    """Catches a part that is left out or cut off, by reading the bytes back as the docstring describes them."""
    parent, token_ids, extra_keys = one
    written = hash_block_tokens(*one, hash_function=same)
    (num_parent, num_tokens), rest = (int.from_bytes(written[i : i + 8], "little") for i in (0, 8)), written[16:]
    assert rest[:num_parent] == parent
    numbers = rest[num_parent : num_parent + num_tokens]
    read = [int.from_bytes(numbers[i : i + 8], "little", signed=True) for i in range(0, num_tokens, 8)]
    assert tuple(read) == token_ids
    assert bool(rest[num_parent + num_tokens :]) == bool(extra_keys)


def test_the_same_bytes_on_every_machine() -> None:
    """Catches a serialisation that depends on byte order, on a version or on a random seed of Python."""
    first = hash_block_tokens(None, [-1, 0, 2**40], [("lora", "é"), ("image", "cat", -3), ("salt", "blue")])
    assert first.hex() == "045b68fc9b37bb6c7154ddc389c6f2532d3a3401e7a449c4eefa33e0f814ee38"
    assert (
        hash_block_tokens(first, [1, 2, 3]).hex() == "795f8b37b480732ccd805170460d83f02d99d6ed304816e586239f4c15c099ec"
    )
    written = hash_block_tokens(b"p", [1, -2], hash_function=same)
    assert written == little(1, 16) + b"p" + little(1, -2)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(1, 5),
    st.sampled_from([{}, {"cache_salt": "s"}]),
)
def test_a_chain_of_blocks(token_ids: list[int], block_size: int, extra: dict) -> None:
    """Catches a hash that leaves out its parent or its extra keys, however the request grew."""
    request = Request("Ada", token_ids[:1], **extra)
    grown = []
    for token_id in token_ids[1:]:
        request.append_token(token_id)
        grown = list(block_hashes(request, block_size))
    whole = block_hashes(Request("Bo", token_ids, **extra), block_size)
    assert whole == (grown or block_hashes(request, block_size)) and len(whole) == len(token_ids) // block_size
    parent = None
    for index, block_hash in enumerate(whole):
        span = (index * block_size, (index + 1) * block_size)
        parent = hash_block_tokens(parent, token_ids[slice(*span)], request.extra_keys(*span))
        assert block_hash == parent
    assert len(set(whole)) == len(whole)


def test_each_block_is_hashed_once() -> None:
    """Catches hashing that starts over whenever a token is appended or the cache asks again."""
    hashed = []

    def counting(data: bytes) -> bytes:
        hashed.append(data)
        return sha256(data)

    index, other = HashIndex(4, counting), HashIndex(4, counting, root=b"another")
    request = Request("Ada", range(9), "salt")
    for token_id in range(90):
        index.find(request, 99)
        request.append_token(token_id)
    index.insert(request, [KVCacheBlock(i) for i in range(24)], 0, 24)
    assert len(hashed) == len(set(hashed)) == 24
    assert other.find(request, 99) == [] and len(hashed) == 48, "another root is another chain"
    assert HashIndex(3, counting, index.root).hashes(request)[0] != index.hashes(request)[0]


def test_what_a_block_depends_on() -> None:
    """Catches a salt that is lost, or that stands in more blocks than the first."""
    request = Request("Ada", range(12), "blue")
    assert [request.extra_keys(start, start + 4) for start in (0, 4, 8)] == [(("salt", "blue"),), (), ()]
    assert Request("Bo", range(8)).extra_keys(0, 4) == ()


def filled(index: HashIndex, request: Request, *block_ids: int) -> list[KVCacheBlock]:
    blocks = [KVCacheBlock(block_id) for block_id in block_ids]
    index.insert(request, blocks, 0, len(blocks))
    return blocks


def test_roots() -> None:
    """Catches a root that can be guessed under a weak hash, or that differs between caches under SHA-256."""
    assert HashIndex(2).root == HashIndex(4, sha256).root == SHA256_ROOT
    weak = [HashIndex(2, lambda data: data[-1:]) for _ in range(2)]
    assert weak[0].root != weak[1].root and len(weak[0].root) == 32
    assert HashIndex(2, same, root=b"known").root == b"known"
    assert HashIndex(2, root=b"").root == b""


def test_one_hash_may_name_several_blocks() -> None:
    """Catches a duplicate that hides or takes along the first block, and a miss that does not end the look-up."""
    index = HashIndex(2)
    ada = Request("Ada", [1, 2, 3, 4, 5, 6])
    first, second = filled(index, ada, 1, 2, 3), filled(index, Request("Bo", [1, 2, 3, 4, 5, 6]), 4, 5, 6)
    assert len(index) == 6 and index.find(ada, 3) == first and index.find(ada, 2) == first[:2]
    index.forget(first[1])
    index.forget(first[1])
    index.forget(KVCacheBlock(9))
    assert len(index) == 5 and index.find(ada, 3) == [first[0], second[1], first[2]]
    index.forget(second[1])
    assert index.find(ada, 3) == first[:1] and len(index) == 4, "the third blocks are there, but out of reach"
    index.clear()
    assert len(index) == 0 and index.find(ada, 3) == []


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0, 3), "blocks 0 to 3 of request 'Ada' cannot be cached: it has 3 blocks, 2 of them full"),
        ((-1, 1), "blocks -1 to 1"),
        ((2, 1), "blocks 2 to 1"),
        ((1, 2), "block 8 is cached already"),
    ],
)
def test_only_full_blocks_without_a_hash_are_cached(span: tuple[int, int], message: str) -> None:
    """Catches a half-full block in the cache, and a block with two names."""
    index, blocks = HashIndex(2), [KVCacheBlock(i) for i in (7, 8, 9)]
    blocks[1].block_hash = b"taken"
    with pytest.raises(ValueError, match=message):
        index.insert(Request("Ada", [1, 2, 3, 4, 5]), blocks, *span)
    assert len(index) == 0 and [block.block_hash for block in blocks] == [None, b"taken", None]


def test_a_weak_hash_collides() -> None:
    """Catches a comparison of tokens behind the hash: there is none, which is why the hash must not collide."""
    index = HashIndex(2, lambda data: bytes([sum(data) % 5]))
    [block] = filled(index, Request("Ada", [4, 6]), 1)
    assert index.find(Request("Eve", [6, 4]), 1) == [block] and index.find(Request("Bo", [6, 5]), 1) == []
