"""The radix tree against a dictionary of whole prefixes, and on trees small enough to draw."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.prefix_cache import HashIndex
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request
from tests.helpers.draws import drawn

Name = tuple[str | None, tuple[int, ...]]


class Prefixes:
    """What the tree should know: for every salt and every prefix of whole blocks, a block."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.blocks: dict[Name, int] = {}

    def find(self, salt: str | None, tokens: list[int], num_blocks: int) -> list[int]:
        found = []
        for stop in range(self.block_size, num_blocks * self.block_size + 1, self.block_size):
            if (salt, tuple(tokens[:stop])) not in self.blocks:
                break
            found.append(self.blocks[salt, tuple(tokens[:stop])])
        return found

    def num_matching_tokens(self, salt: str | None, tokens: list[int]) -> int:
        """The longest common beginning with anything cached under the same salt, token by token."""
        longest = 0
        for known_salt, known in self.blocks:
            common = next((i for i, (a, b) in enumerate(zip(known, tokens, strict=False)) if a != b), None)
            common = min(len(known), len(tokens)) if common is None else common
            if known_salt == salt:
                longest = max(longest, common)
        return longest

    def insert(self, salt: str | None, tokens: list[int], ids: list[int], start: int) -> None:
        for index in range(start, len(ids)):
            stop = (index + 1) * self.block_size
            before = tuple(tokens[: stop - self.block_size])
            if not before or (salt, before) in self.blocks:
                self.blocks.setdefault((salt, tuple(tokens[:stop])), ids[index])

    def forget(self, block_id: int) -> None:
        for salt, tokens in [name for name, known in self.blocks.items() if known == block_id]:
            for name in [name for name in self.blocks if name[0] == salt and name[1][: len(tokens)] == tokens]:
                del self.blocks[name]


steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert", "grow", "grow", "forget", "look", "clear"]),
        st.lists(st.integers(0, 1), min_size=1, max_size=14),
        st.sampled_from([None, "s"]),
        st.integers(0, 30),
    ),
    max_size=25,
)


@settings(max_examples=drawn(400))
@given(st.sampled_from([1, 2, 3, 4]), steps)
def test_any_history(block_size: int, history: list[tuple]) -> None:
    """Catches a run cut or joined wrongly, an orphan that stays, a duplicate that replaces, a salt that is ignored,
    and a request that goes on in another's place when it grows."""
    tree, plain, blocks = RadixTree(block_size), Prefixes(block_size), [KVCacheBlock(0)]
    inserted: list[tuple[list[int], str | None, list[KVCacheBlock]]] = []
    for kind, tokens, salt, number in history:
        start, own = number % (len(tokens) // block_size + 1), []
        if kind == "grow" and inserted:
            before, salt, own = inserted[number % len(inserted)]
            tokens, start = before + tokens, len(own)
        request = Request("Ada", tokens, cache_salt=salt)
        full = len(tokens) // block_size
        if kind in ("insert", "grow"):
            new = [KVCacheBlock(len(blocks) + i) for i in range(full - len(own))]
            blocks += new
            tree.insert(request, own + new, start, full)
            plain.insert(salt, tokens, [block.block_id for block in own + new], start)
            inserted.append((tokens, salt, own + new))
        elif kind == "forget":
            tree.forget(blocks[number % len(blocks)])
            plain.forget(number % len(blocks))
        elif kind == "clear" and number < 3:
            tree.clear()
            plain.blocks.clear()
            for block in blocks:
                block.block_hash = None  # as the pool does
        num_blocks = min(number, full)
        assert [block.block_id for block in tree.find(request, num_blocks)] == plain.find(salt, tokens, num_blocks)
        assert tree.num_matching_tokens(request) == plain.num_matching_tokens(salt, tokens)
        known = set(plain.blocks.values())
        assert len(tree) == len(plain.blocks) == len(known)
        assert [block.block_hash is not None for block in blocks] == [block.block_id in known for block in blocks]


@settings(max_examples=drawn(100))
@given(st.integers(1, 3), st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=6))
def test_finds_what_hashes_find(block_size: int, prompts: list[list[int]]) -> None:
    """Catches a tree that finds other blocks than the hash index as long as nothing is evicted."""
    tree, index = RadixTree(block_size), HashIndex(block_size)
    number = 0
    for tokens in prompts:
        request = Request("Ada", tokens)
        full = len(tokens) // block_size
        for cache in (tree, index):
            found = cache.find(request, full)
            new = [KVCacheBlock(number + i) for i in range(len(found), full)]
            cache.insert(request, found + new, len(found), full)
        number += full
    for tokens in prompts:
        request = Request("Bo", tokens)
        by_tree, by_hash = ([block.block_id for block in cache.find(request, 99)] for cache in (tree, index))
        assert by_tree == by_hash


def grown(tree: RadixTree, *prompts: list[int]) -> list[list[KVCacheBlock]]:
    made, number = [], 0
    for tokens in prompts:
        blocks = [KVCacheBlock(number + i) for i in range(len(tokens) // tree.block_size)]
        number += len(blocks)
        tree.insert(Request("Ada", tokens), blocks, 0, len(blocks))
        made.append(blocks)
    return made


def test_a_parent_takes_its_children_along() -> None:
    """Catches children that stay marked when the block before them goes, and siblings that go too."""
    tree = RadixTree(2)
    long, branch, other = grown(tree, [1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 4, 4], [9, 9])
    assert [block.block_hash for block in branch] == [None, None, (4, 4)], "a path exists once"
    tree.forget(long[1])
    assert len(tree) == 2 and tree.find(Request("Bo", [1, 1, 2, 2, 4, 4]), 3) == long[:1]
    assert [block.block_hash is None for block in [*long, *branch, *other]] == [False, *[True] * 5, False]
    tree.insert(Request("Cy", [1, 1, 2, 2, 4, 4]), [long[0], *branch[1:]], 1, 3)
    assert tree.find(Request("Bo", [1, 1, 2, 2, 4, 4]), 3) == [long[0], *branch[1:]]


def num_nodes(tree: RadixTree) -> int:
    return len({id(node) for node in tree._nodes.values()})


def test_runs_are_kept_in_one_piece() -> None:
    """Catches a node for every block, which a look-up would walk one by one, and a request that cannot go on where it
    stopped."""
    tree = RadixTree(2)
    request, blocks = Request("Ada", [1, 1]), [KVCacheBlock(number) for number in range(5)]
    tree.insert(request, blocks, 0, 1)
    for stop in range(2, 6):  # a block at a time, as in decoding
        request.append_token(stop)
        request.append_token(stop)
        tree.insert(request, blocks, stop - 1, stop)
    assert num_nodes(tree) == 1 and tree.find(request, 5) == blocks
    grown(tree, [1, 1, 2, 2, 9, 9])
    assert num_nodes(tree) == 3, "what both share, and what each has alone"


def test_a_run_cut_above_a_branch() -> None:
    """Catches a branch that does not know its parent after the run above it was cut: it could not be forgotten."""
    tree = RadixTree(1)
    _, [*_, branch], _ = grown(tree, [1, 1, 1], [1, 1, 2], [1, 3])
    tree.forget(branch)
    assert len(tree) == 4 and [len(tree.find(Request("Bo", tokens), 3)) for tokens in ([1, 1, 1], [1, 1, 2])] == [3, 2]


def test_a_path_that_has_gone_is_not_continued() -> None:
    """Catches a block hung below the root, where it would be found for a prompt that begins with its tokens."""
    tree = RadixTree(2)
    [[first]] = grown(tree, [1, 1])
    tree.forget(first)
    tree.insert(Request("Ada", [1, 1, 2, 2]), [first, late := KVCacheBlock(7)], 1, 2)
    assert len(tree) == 0 and late.block_hash is None and tree.find(Request("Bo", [2, 2]), 1) == []


def test_tokens_inside_a_block() -> None:
    """Catches a partial match that ignores a salt or stops at whole blocks; and one of more tokens than there are."""
    tree = RadixTree(4)
    ada = Request("Ada", [1, 2, 3, 4, 5, 6, 7, 8])
    tree.insert(ada, [KVCacheBlock(1), KVCacheBlock(2)], 0, 2)

    def matching(*token_ids: int, salt: str | None = None) -> int:
        return tree.num_matching_tokens(Request("Bo", token_ids, salt))

    assert [matching(*range(1, n + 1)) for n in range(1, 10)] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert matching(1, 2, 3, 4, 5, 9) == 5 and matching(2) == 0 and matching(1, 2, 3, 9, 5, 6) == 3
    assert matching(*range(1, 9), salt="s") == 0


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0, 3), "blocks 0 to 3 of request 'Ada' cannot be cached: it has 3 blocks, 2 of them full"),
        ((-1, 1), "blocks -1 to 1"),
        ((2, 1), "blocks 2 to 1"),
        ((1, 2), "block 8 is cached already"),
    ],
)
def test_only_full_blocks_without_a_mark_are_cached(span: tuple[int, int], message: str) -> None:
    """Catches a half-full block in the tree, and a block in two places."""
    tree, blocks = RadixTree(2), [KVCacheBlock(i) for i in (7, 8, 9)]
    blocks[1].block_hash = "taken"
    with pytest.raises(ValueError, match=message):
        tree.insert(Request("Ada", [1, 2, 3, 4, 5]), blocks, *span)
    assert len(tree) == 0 and [block.block_hash for block in blocks] == [None, "taken", None]
