"""Which blocks hold what already: a prefix cache by chained hashes (chapter 06).

A full block is known by a hash of everything that its keys and values depend on: the tokens before it, through its
parent's hash, its own tokens, and whatever else changes them. Equal hashes, equal contents; so strangers who begin with
the same tokens can read the same blocks.

Source: vLLM's ``vllm/v1/core/kv_cache_utils.py`` and ``block_pool.py``, release 0.33.0. Hashes are not those of vLLM
byte for byte: it serialises with pickle or CBOR, this module packs lengths, parent, tokens and keys itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.request import ExtraKey, Request

HashFunction = Callable[[bytes], bytes]
BYTES_PER_TOKEN = 8  # in what is hashed: token ids as 64-bit numbers


def sha256(data: bytes) -> bytes:
    """Hash with SHA-256: nobody can make two inputs with one hash, so the root of the chain may be known."""
    return hashlib.sha256(data).digest()


SHA256_ROOT = sha256(b"pagedattn_lab: the parent of every first block")
"""What stands for the parent's hash in a first block under SHA-256: the same everywhere, so caches agree."""


def block_hashes(
    request: Request, block_size: int, hash_function: HashFunction = sha256, root: bytes = SHA256_ROOT
) -> list[bytes]:
    """Hash every full block of a request; the request keeps them, so each is computed once however long it grows.

    Returns:
        The request's own list, with one hash per full block, in order.

    Raises:
        ValueError: a token id that is no whole number of 64 bits.

    Example:
        >>> request = Request("Ada", [5, 6, 7, 8, 9])
        >>> len(block_hashes(request, block_size=2))
        2
    """
    hashes = request.hashes.setdefault((block_size, hash_function, root), [])
    first, last = len(hashes), request.num_tokens // block_size
    if first == last:
        return hashes
    tokens = _as_bytes(request.token_ids[first * block_size : last * block_size])
    parent = hashes[-1] if hashes else root
    for index in range(first, last):
        begin = (index - first) * block_size * BYTES_PER_TOKEN
        block = tokens[begin : begin + block_size * BYTES_PER_TOKEN]
        keys = request.extra_keys(index * block_size, (index + 1) * block_size)
        parent = hash_function(_serialise(parent, block, keys))
        hashes.append(parent)
    return hashes


def hash_block_tokens(
    parent_block_hash: bytes | None,
    token_ids: Sequence[int],
    extra_keys: Sequence[ExtraKey] = (),
    hash_function: HashFunction = sha256,
) -> bytes:
    """Hash one full block.

    Args:
        parent_block_hash: hash of the block before it; ``None`` for a first block under SHA-256.
        token_ids: the tokens in the block.
        extra_keys: as :meth:`pagedattn_lab.request.Request.extra_keys` gives them.
        hash_function: from bytes to bytes.

    Example:
        >>> first = hash_block_tokens(None, [1, 2])
        >>> hash_block_tokens(first, [3, 4]) == hash_block_tokens(None, [3, 4])    # same tokens, another past
        False
        >>> block_hashes(Request("Ada", [1, 2, 3, 4]), 2) == [first, hash_block_tokens(first, [3, 4])]
        True
    """
    parent = SHA256_ROOT if parent_block_hash is None else parent_block_hash
    return hash_function(_serialise(parent, _as_bytes(token_ids), extra_keys))


def _as_bytes(token_ids: Sequence[int]) -> bytes:
    """Token ids as 64-bit numbers, least significant byte first on every machine."""
    try:
        return struct.pack(f"<{len(token_ids)}q", *token_ids)
    except struct.error:
        wrong = next(token for token in token_ids if not (isinstance(token, int) and -(2**63) <= token < 2**63))
        raise ValueError(f"token id {wrong!r} cannot be hashed: give whole numbers of 64 bits") from None


_lengths_as_bytes = struct.Struct("<QQ").pack


def _serialise(parent: bytes, tokens: bytes, extra_keys: Sequence[ExtraKey]) -> bytes:
    """Write a block's identity down in one way only, from which all three parts can be read back.

    The lengths of parent and tokens come first, so no two different triples give the same bytes; parts that could run
    into each other would let one block pass for another.
    """
    keys = b""
    if extra_keys:
        keys = json.dumps(extra_keys, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return _lengths_as_bytes(len(parent), len(tokens)) + parent + tokens + keys


@dataclass
class PrefixCacheStats:
    """What a prefix cache was good for.

    A request that was preempted finds its own blocks again if they are still there, which says nothing of prompts that
    begin alike: it is counted apart, as in vLLM, whose metrics leave it out.

    Attributes:
        requests: requests admitted after a look-up, for the first time.
        queries: their tokens.
        hits: how many of these were found in cached blocks.
        preempted_requests: requests admitted again.
        preempted_queries: their tokens, those of their outputs so far among them.
        preempted_hits: how many of these were found.
        evictions: blocks that lost their contents to make room.
        external_hits, preempted_external_hits: tokens found in host memory and copied back. They are not among the
            hits, which are found in blocks of the device, as in vLLM.
    """

    requests: int = 0
    queries: int = 0
    hits: int = 0
    preempted_requests: int = 0
    preempted_queries: int = 0
    preempted_hits: int = 0
    evictions: int = 0
    external_hits: int = 0
    preempted_external_hits: int = 0

    @property
    def hit_rate(self) -> float:
        """Tokens found, wherever they were, over tokens looked for; 0 if there were none."""
        return (self.hits + self.external_hits) / self.queries if self.queries else 0.0

    def record(self, num_tokens: int, num_hits: int, preempted: bool, num_external_hits: int = 0) -> None:
        """Count a request that has been admitted.

        Example:
            >>> stats = PrefixCacheStats()
            >>> stats.record(40, 32, preempted=False); stats.record(44, 44, preempted=True)
            >>> stats.hit_rate, stats.preempted_hits
            (0.8, 44)
        """
        if preempted:
            self.preempted_requests += 1
            self.preempted_queries += num_tokens
            self.preempted_hits += num_hits
            self.preempted_external_hits += num_external_hits
        else:
            self.requests += 1
            self.queries += num_tokens
            self.hits += num_hits
            self.external_hits += num_external_hits


class PrefixIndex(Protocol):
    """Where to look up which blocks hold the first tokens of a request.

    :class:`HashIndex` answers by hash, as vLLM does, :class:`pagedattn_lab.radix_tree.RadixTree` by walking a tree of
    tokens, as SGLang does. It marks a block that it knows through ``block_hash``; the pool reads the mark.
    """

    block_size: int

    def find(self, request: Request, num_blocks: int) -> list[KVCacheBlock]:
        """Give the blocks that hold the request's first tokens, at most ``num_blocks``, up to the first miss."""

    def holds(self, request: Request, blocks: Sequence[KVCacheBlock]) -> bool:
        """Say whether these blocks, found earlier, still hold the request's first tokens."""

    def insert(self, request: Request, blocks: Sequence[KVCacheBlock], start: int, stop: int) -> None:
        """Make blocks ``start`` to ``stop - 1`` of a request known, all of them full and the ones before them known."""

    def forget(self, block: KVCacheBlock) -> None:
        """Drop a block whose contents are about to go; a block that is not known is none of its business."""

    def clear(self) -> None:
        """Drop every block."""

    def __len__(self) -> int:
        """Count the blocks that are known."""


def check_cacheable(request: Request, blocks: Sequence[KVCacheBlock], start: int, stop: int, block_size: int) -> None:
    """Refuse what no index may take in.

    Raises:
        ValueError: one of blocks ``start`` to ``stop - 1`` is cached already, or is not full.
    """
    num_full_blocks = request.num_tokens // block_size
    if not 0 <= start <= stop <= min(len(blocks), num_full_blocks):
        raise ValueError(
            f"blocks {start} to {stop} of request {request.request_id!r} cannot be cached: it has {len(blocks)} "
            f"blocks, {num_full_blocks} of them full"
        )
    for block in blocks[start:stop]:
        if block.block_hash is not None:
            raise ValueError(f"block {block.block_id} is cached already: start behind it")


def _mark(block_hash: bytes, group_idx: int) -> Hashable:
    """What a block of a group of layers is known by: groups keep other keys and values of the same tokens."""
    return (block_hash, group_idx) if group_idx else block_hash


def hash_and_group(mark: Hashable) -> tuple[bytes, int] | None:
    """Read a block's mark: the hash of its tokens and the group of layers that it belongs to; ``None`` for no mark."""
    if isinstance(mark, bytes):
        return mark, 0
    return mark if isinstance(mark, tuple) else None


class HashIndex:
    """Cached blocks by hash. One hash may name several: page tables only ever grow, so a block that was computed twice
    stays twice.

    Where layers form several groups (:mod:`pagedattn_lab.kv_groups`), a block belongs to one of them, ``group_idx``,
    and is found by that one alone.

    Args:
        block_size: tokens per block.
        hash_function: from bytes to bytes. If two blocks with different contents can be given one hash, one request
            reads what another wrote.
        root: parent of first blocks. By default the published :data:`SHA256_ROOT`, or with another hash function 32
            random bytes: whoever does not know where a chain starts cannot compute collisions in advance.

    Example:
        >>> blocks, index = [KVCacheBlock(1), KVCacheBlock(2)], HashIndex(block_size=2)
        >>> index.insert(Request("Ada", [1, 2, 3, 4, 5]), blocks, 0, 2)
        >>> [block.block_id for block in index.find(Request("Bo", [1, 2, 3, 9]), num_blocks=2)]
        [1]
        >>> index.find(Request("Cy", [1, 2, 3, 4], cache_salt="blue"), num_blocks=2)
        []
    """

    def __init__(self, block_size: int, hash_function: HashFunction = sha256, root: bytes | None = None) -> None:
        self.block_size, self.hash_function = block_size, hash_function
        default = SHA256_ROOT if hash_function is sha256 else os.urandom(32)
        self.root = default if root is None else root
        self._blocks: dict[Hashable, dict[int, KVCacheBlock]] = {}

    def find(self, request: Request, num_blocks: int, group_idx: int = 0) -> list[KVCacheBlock]:
        """Look hashes up one after the other and stop at the first miss. Of several blocks the oldest is given."""
        found: list[KVCacheBlock] = []
        hashes = self.hashes(request)[:num_blocks]
        for mark in (_mark(block_hash, group_idx) for block_hash in hashes) if group_idx else hashes:
            blocks = self._blocks.get(mark)
            if blocks is None:
                break
            found.append(next(iter(blocks.values())))
        return found

    def find_one(self, request: Request, index: int, group_idx: int = 0) -> KVCacheBlock | None:
        """Look one full block of a request up, whatever is known of those before it: windows do not read them."""
        blocks = self._blocks.get(_mark(self.hashes(request)[index], group_idx))
        return None if blocks is None else next(iter(blocks.values()))

    def holds(self, request: Request, blocks: Sequence[KVCacheBlock], start: int = 0, group_idx: int = 0) -> bool:
        """Compare the marks of blocks ``start`` and following with a request's hashes: nothing is looked up."""
        hashes = self.hashes(request)[start : start + len(blocks)]
        return [block.block_hash for block in blocks] == [_mark(block_hash, group_idx) for block_hash in hashes]

    def insert(
        self,
        request: Request,
        blocks: Sequence[KVCacheBlock],
        start: int,
        stop: int,
        group_idx: int = 0,
        only: Collection[int] | None = None,
    ) -> None:
        """Give blocks ``start`` to ``stop - 1`` their hashes, or ``only`` those of them that are named.

        Raises:
            ValueError: a block has a hash already, or is not full; none of them is changed.
        """
        hashes = self.hashes(request)
        check_cacheable(request, blocks, start, stop, self.block_size)
        for index in range(start, stop) if only is None else only:
            block, mark = blocks[index], _mark(hashes[index], group_idx)
            block.block_hash = mark
            self._blocks.setdefault(mark, {})[block.block_id] = block

    def forget(self, block: KVCacheBlock) -> None:
        """Drop one block; others of the same hash stay."""
        blocks = self._blocks.get(block.block_hash)
        if blocks is not None and blocks.pop(block.block_id, None) is not None and not blocks:
            del self._blocks[block.block_hash]

    def clear(self) -> None:
        """Drop every block."""
        self._blocks.clear()

    def hashes(self, request: Request) -> list[bytes]:
        """Hashes of a request's full blocks under this index's function and root."""
        return block_hashes(request, self.block_size, self.hash_function, self.root)

    def __len__(self) -> int:
        return sum(map(len, self._blocks.values()))
