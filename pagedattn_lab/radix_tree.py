"""The other data structure for the same job: a radix tree over tokens (chapter 06).

A path from the root spells tokens; an edge that nothing branches off is kept in one piece and split when a request
leaves it half-way. No hash is computed, so none can collide; in exchange, a look-up compares every token.

Source: SGLang's RadixAttention, Zheng et al. 2024, section 3, and ``python/sglang/srt/mem_cache/radix_cache.py``;
matching inside a block as TensorRT-LLM's partial reuse does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.prefix_cache import check_cacheable
from pagedattn_lab.request import ExtraKey, Request

BlockKey = tuple[tuple[ExtraKey, ...], tuple[int, ...]]
"""What a block adds to the path: its extra keys and its tokens."""


class _Node:
    """A run of blocks that nothing branches off, and what follows it by the first block of each."""

    __slots__ = ("blocks", "children", "keys", "parent")

    def __init__(self, keys: list[BlockKey], blocks: list[KVCacheBlock], parent: _Node | None) -> None:
        self.keys, self.blocks, self.parent = keys, blocks, parent
        self.children: dict[BlockKey, _Node] = {}


class RadixTree:
    """Cached blocks by the tokens that lead to them; takes the place of :class:`pagedattn_lab.prefix_cache.HashIndex`.

    A path exists once: a block that was computed twice is known once, and the second copy is an ordinary block. When a
    block goes, everything behind it goes too, because nothing could reach it.

    Args:
        block_size: tokens per block. With 1, as in SGLang, every common token is shared.

    Example:
        >>> blocks, tree = [KVCacheBlock(1), KVCacheBlock(2)], RadixTree(block_size=4)
        >>> tree.insert(Request("Ada", [1, 2, 3, 4, 5, 6, 7, 8]), blocks, 0, 2)
        >>> bo = Request("Bo", [1, 2, 3, 4, 5, 6, 9, 9])
        >>> [block.block_id for block in tree.find(bo, num_blocks=2)], tree.num_matching_tokens(bo)
        ([1], 6)
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.clear()

    def find(self, request: Request, num_blocks: int) -> list[KVCacheBlock]:
        """Walk down as long as whole blocks agree."""
        path = self._walk(self._keys(request, 0, num_blocks), self._root)
        return [block for node, used in path for block in node.blocks[:used]]

    def holds(self, request: Request, blocks: Sequence[KVCacheBlock]) -> bool:
        """Walk down once more: a block's mark tells its own tokens, not the path that leads to it."""
        return self.find(request, len(blocks)) == list(blocks)

    def num_matching_tokens(self, request: Request) -> int:
        """Count the first tokens that lie in cached blocks, those in the first part of a block included.

        A block that agrees only in part can be used if it is copied first, as after a fork. One with other extra keys
        counts as not agreeing at all.
        """
        keys = self._keys(request, 0, request.num_tokens // self.block_size)
        node, used, depth = self._end(keys, self._root)
        rest = request.token_ids[depth * self.block_size :][: self.block_size]
        extra = request.extra_keys(depth * self.block_size, (depth + 1) * self.block_size)
        nexts = [node.keys[used]] if used < len(node.keys) else list(node.children)
        partial = max((_num_common(rest, tokens) for keys, tokens in nexts if keys == extra), default=0)
        return depth * self.block_size + partial

    def insert(self, request: Request, blocks: Sequence[KVCacheBlock], start: int, stop: int) -> None:
        """Hang blocks ``start`` to ``stop - 1`` of a request below the path of those before them.

        Blocks for which the tree has others already stay out of it, as do those whose path has gone.

        Raises:
            ValueError: a block is in the tree already, or is not full; nothing is changed.
        """
        check_cacheable(request, blocks, start, stop, self.block_size)
        parent = self._nodes.get(blocks[start - 1].block_id) if start else None
        if parent is not None and parent.blocks[-1] is blocks[start - 1]:
            begin = start  # the blocks before lead here: a request that grows does not walk its whole path again
        else:
            begin, parent = 0, self._root
        keys = self._keys(request, begin, stop)
        node, used, depth = self._end(keys, parent)
        if begin + depth < start or begin + depth == stop:
            return
        if used < len(node.keys):
            self._split(node, used)
        new_keys, added = keys[depth:], list(blocks[begin + depth : stop])
        if node.children or node is self._root:
            child = node.children[new_keys[0]] = _Node(new_keys, added, node)
        else:  # nothing else follows: the run grows
            child = node
            child.keys += new_keys
            child.blocks += added
        for block, (_, tokens) in zip(added, new_keys, strict=True):
            block.block_hash = tokens
            self._nodes[block.block_id] = child

    def forget(self, block: KVCacheBlock) -> None:
        """Drop a block and what follows it; blocks dropped on the way lose their mark."""
        node = self._nodes.get(block.block_id)
        if node is None:
            return
        at = len(node.blocks) - 1 if node.blocks[-1] is block else node.blocks.index(block)  # ends mostly go first
        dropped = self._split(node, at) if at else node
        assert dropped.parent is not None  # only the root has none, and it holds no block
        del dropped.parent.children[dropped.keys[0]]
        nodes = [dropped]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            for block in node.blocks:
                block.block_hash = None
                del self._nodes[block.block_id]

    def clear(self) -> None:
        """Drop every block; their marks stay, for the pool to take away."""
        self._root = _Node([], [], None)
        self._nodes: dict[int, _Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def _keys(self, request: Request, first: int, stop: int) -> list[BlockKey]:
        """What blocks ``first`` to ``stop - 1`` of a request add to the path, one after the other."""
        starts = range(first * self.block_size, stop * self.block_size, self.block_size)
        spans = [(start, start + self.block_size) for start in starts]
        return [(request.extra_keys(*span), tuple(request.token_ids[slice(*span)])) for span in spans]

    def _walk(self, keys: Sequence[BlockKey], node: _Node) -> Iterator[tuple[_Node, int]]:
        """Go down from a node along ``keys``: each node on the way, with the number of its blocks that agree."""
        depth = 0
        while depth < len(keys) and (child := node.children.get(keys[depth])) is not None:
            used = _num_common(child.keys, islice(keys, depth, None))
            yield child, used
            depth += used
            if used < len(child.keys):
                return
            node = child

    def _end(self, keys: Sequence[BlockKey], node: _Node) -> tuple[_Node, int, int]:
        """Where the walk ends: the last node, how many of its blocks agree, and how many of ``keys`` do."""
        path = list(self._walk(keys, node))
        last, used = path[-1] if path else (node, len(node.keys))
        return last, used, sum(used for _, used in path)

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut a run in two: the node keeps the first ``at`` blocks, a child takes the rest."""
        rest = _Node(node.keys[at:], node.blocks[at:], node)
        rest.children = node.children
        for child in rest.children.values():
            child.parent = rest
        del node.keys[at:], node.blocks[at:]
        node.children = {rest.keys[0]: rest}
        for block in rest.blocks:
            self._nodes[block.block_id] = rest
        return rest


def _num_common(first: Iterable[object], second: Iterable[object]) -> int:
    """Count the leading items that two sequences have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
