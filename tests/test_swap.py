"""Swapping to host memory: requests come back with what they had, wherever it lies then, and no block is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedattn_lab.block_table import take_copies
from pagedattn_lab.kv_cache import PagedKVCache
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request
from tests.helpers.draws import drawn

SHAPES = {
    "float32": (KVShape(2, 1, 4, "float32"), {}),
    "values of another width": (KVShape(1, 2, 4, "bfloat16", value_dim=3), {}),
    "fp8": (KVShape(1, 1, 4, "float8_e4m3fn"), {"k_scale": 0.1, "v_scale": 0.2}),
    "int8 per token and head": (KVShape(2, 2, 4, "int8_per_token_head"), {}),
    "fp8 per token and head": (KVShape(1, 1, 4, "fp8_per_token_head"), {}),
    "latents": (KVShape(2, 1, 4, "float32", value_dim=3, latent=True), {}),
    "latents in 8 bits": (KVShape(1, 1, 4, "fp8_per_token_head", value_dim=3, latent=True), {}),
}


def poison(tensors: Sequence[torch.Tensor], block_ids: Sequence[int]) -> None:
    """Make blocks unreadable: not a number, or the end of the range where the dtype has no such thing."""
    for tensor in tensors:
        bad = -128 if tensor.dtype == torch.int8 else float("nan")
        tensor[list(block_ids)] = torch.full_like(tensor[list(block_ids)], bad, dtype=torch.float32).to(tensor.dtype)


def rows_of(shape: KVShape, salt: str | None, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys and values of a sequence; each depends on all tokens up to its own, as a model's do."""
    checksum, numbers = crc32(repr(salt).encode()), []
    for token in tokens:
        checksum = crc32(bytes([token]), checksum)
        numbers.append([(checksum >> shift) % 199 / 16 - 6 for shift in (0, 5, 11, 17)])
    key = torch.tensor(numbers).reshape(-1, 1, 4) * torch.linspace(1, 2, shape.num_kv_heads)[:, None]
    return key, None if shape.latent else 1 - 2 * key[..., : shape.value_dim]


class Swapping(RuleBasedStateMachine):
    """Requests that begin alike come, grow, fork, swap out and in, and go; their keys and values are real tensors.

    What is known here is what each request's tokens are, and nothing of blocks. Whatever no request can read is poison.
    """

    @initialize(
        shape=st.sampled_from(sorted(SHAPES)),
        block_size=st.sampled_from([1, 2, 3, 4]),
        num_blocks=st.sampled_from([3, 5, 8, 14]),
        num_host_blocks=st.sampled_from([2, 4, 9, 30]),
        kind=st.sampled_from(["hash", "hash", "tree", "none"]),
    )
    def begin(self, shape: str, block_size: int, num_blocks: int, num_host_blocks: int, kind: str) -> None:
        self.shape, scales = SHAPES[shape]
        self.block_size = block_size
        index = RadixTree(block_size) if kind == "tree" else None
        self.manager = KVCacheManager(num_blocks, block_size, kind != "none", index, num_host_blocks=num_host_blocks)
        self.pool, self.host_pool = self.manager.block_pool, self.manager.swap_space.block_pool
        self.cache = PagedKVCache(self.shape, num_blocks, block_size, num_host_blocks=num_host_blocks, **scales)
        self.scratch = PagedKVCache(self.shape, 100, block_size, **scales)
        poison(self.cache._in_blocks(), range(num_blocks))
        poison(self.cache._host, range(num_host_blocks))
        self.running: list[Request] = []
        self.swapped: list[Request] = []
        self.scheduled: dict[str, int] = {}  # tokens of this step
        self.outs: list[tuple[int, int]] = []
        self.ins: list[tuple[int, int]] = []
        self.born = 0

    def execute(self) -> None:
        """Carry a step out, then read everything that anybody may read."""
        manager, cache = self.manager, self.cache
        cache.copy_out(self.outs)
        cache.copy_in(self.ins)
        cache.copy_blocks(take_copies(manager.tables.values()))
        for request in self.running:
            start = request.num_computed_tokens
            request.num_computed_tokens += self.scheduled.get(request.request_id, 0)
            if request.num_computed_tokens > start:
                key, value = rows_of(self.shape, request.cache_salt, request.token_ids[: request.num_computed_tokens])
                slots = manager.tables[request.request_id].slot_mapping(start)
                for layer in range(self.shape.num_layers):
                    cache.write(layer, key[start:], None if value is None else value[start:], slots)
        self.scheduled, self.outs, self.ins = {}, [], []
        poison(cache._in_blocks(), [b.block_id for b in self.pool.blocks if b.ref_cnt == 0 and b.block_hash is None])
        poison(cache._host, [b.block_id for b in self.host_pool.blocks if b.ref_cnt == 0])
        for request in self.running:
            self.read(request)

    def read(self, request: Request) -> None:
        """What is read is what was written, to the bit: 8 bits are compared with what a cache of 8 bits makes of it."""
        table, num_tokens = self.manager.tables[request.request_id], request.num_computed_tokens
        assert table.num_tokens == num_tokens
        rows = rows_of(self.shape, request.cache_salt, request.token_ids[:num_tokens])
        slots = list(range(self.block_size, self.block_size + num_tokens))
        for layer in range(self.shape.num_layers):
            self.scratch.write(layer, *rows, slots)
            for got, expected in zip(
                self.cache.gather(layer, table.slot_mapping()), self.scratch.gather(layer, slots), strict=True
            ):
                assert torch.equal(got, expected)

    def state(self) -> tuple:
        """Everything that a refusal must leave as it is."""
        manager, pools = self.manager, (self.pool, self.host_pool)
        tables = [*manager.tables.items(), *manager.swap_space.tables.items()]
        return (
            [(block.ref_cnt, block.block_hash) for pool in pools for block in pool.blocks],
            [block.block_id for pool in pools for block in pool.free_block_queue.get_all_free_blocks()],
            [(name, table.block_ids, table.num_tokens, table.pending_copy) for name, table in tables],
            repr(manager.stats),
            manager.prefix_cache and len(manager.prefix_cache),
        )

    def is_read_in_this_step(self, request: Request) -> bool:
        """Whether somebody else counts on what the request writes in this step."""
        first = request.num_computed_tokens // self.block_size
        return any(block.ref_cnt > 1 for block in self.manager.tables[request.request_id].blocks[first:]) and (
            self.scheduled.get(request.request_id, 0) > 0
        )

    def reads_of_this_step(self, request: Request) -> bool:
        """Whether the request found, when it was admitted, what another writes only at the end of this step."""
        tables = self.manager.tables
        written = {
            block_id
            for other in self.running
            if other is not request and self.scheduled.get(other.request_id, 0) > 0
            for block_id in tables[other.request_id].block_ids[other.num_computed_tokens // self.block_size :]
        }
        return not written.isdisjoint(
            tables[request.request_id].block_ids[: -(-request.num_computed_tokens // self.block_size)]
        )

    def may_grow(self, request: Request) -> bool:
        return request.request_id not in self.scheduled

    @rule(stem=st.integers(0, 1), cut=st.integers(0, 12), tail=st.lists(st.integers(0, 1), max_size=3),
          salt=st.sampled_from([None, None, "a"]), chunk=st.integers(0, 20))  # fmt: skip
    def admit(self, stem: int, cut: int, tail: list[int], salt: str | None, chunk: int) -> None:
        self.born += 1
        request = Request(f"request {self.born}", [stem] * cut + tail or [1], cache_salt=salt)
        blocks, num_hits = self.manager.get_computed_blocks(request)
        left = request.num_tokens - num_hits
        num_new = min(chunk, left) or left
        if self.manager.allocate_slots(request, num_new, blocks) is not None:
            request.num_computed_tokens = num_hits
            self.scheduled[request.request_id] = num_new
            self.running.append(request)

    @precondition(lambda self: any(map(self.may_grow, self.running)))
    @rule(which=st.integers(0), token=st.integers(0, 1), chunk=st.integers(0, 9))
    def advance(self, which: int, token: int, chunk: int) -> None:
        able = list(filter(self.may_grow, self.running))
        request = able[which % len(able)]
        if request.num_computed_tokens == request.num_tokens:
            request.append_token(token)
        left = request.num_tokens - request.num_computed_tokens
        num_new = min(chunk, left) or left
        if self.manager.allocate_slots(request, num_new) is not None:
            self.scheduled[request.request_id] = num_new

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def fork(self, which: int) -> None:
        self.execute()
        self.born += 1
        twin = self.manager.fork(self.running[which % len(self.running)], f"request {self.born}")
        self.running.append(twin)

    @precondition(lambda self: self.running and not self.ins)
    @rule(which=st.integers(0))
    def swap_out(self, which: int) -> None:
        """Whoever runs may have to go, also in the middle of a step that it is a part of.

        A scheduler preempts before it admits, so nobody goes who needs what this step writes, or writes what another
        needs.
        """
        request = self.running[which % len(self.running)]
        if self.is_read_in_this_step(request) or self.reads_of_this_step(request):
            return
        before, num_computed = self.state(), request.num_computed_tokens
        needed = -(-num_computed // self.block_size)
        fits = needed <= self.host_pool.num_free_blocks
        pairs = self.manager.swap_out(request)
        assert request.num_computed_tokens == num_computed
        if not fits:
            assert pairs is None and self.state() == before
            return
        assert len(pairs) == needed and self.manager.block_ids(request.request_id) == []
        self.outs += pairs
        self.scheduled.pop(request.request_id, None)
        self.running.remove(request)
        self.swapped.append(request)

    @precondition(lambda self: self.swapped and not self.outs)
    @rule(which=st.integers(0), goes_on=st.booleans())
    def swap_in(self, which: int, goes_on: bool) -> None:
        request = self.swapped[which % len(self.swapped)]
        before, num_computed = self.state(), request.num_computed_tokens
        needed = -(-num_computed // self.block_size)
        fits = needed <= self.pool.num_free_blocks
        pairs = self.manager.swap_in(request)
        if not fits:
            assert pairs is None and self.state() == before
            return
        assert len(pairs) == needed and request.num_computed_tokens == num_computed
        self.ins += pairs
        self.swapped.remove(request)
        self.running.append(request)
        if not goes_on:
            self.scheduled[request.request_id] = 0

    @precondition(lambda self: self.swapped or self.running)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        """Between steps, whoever runs, or is swapped out, may go."""
        self.execute()
        everybody = self.running + self.swapped
        request = everybody[which % len(everybody)]
        self.manager.free(request)
        (self.running if request in self.running else self.swapped).remove(request)

    @rule()
    def step(self) -> None:
        self.execute()

    @rule()
    def refused(self) -> None:
        before = self.state()
        for request in self.swapped:
            with pytest.raises(ValueError, match=r"is swapped out|yet num_computed_tokens"):
                self.manager.allocate_slots(request, 1)
            with pytest.raises(ValueError, match="holds no blocks that could be swapped out"):
                self.manager.swap_out(request)
        for request in self.running:
            with pytest.raises(ValueError, match="is not swapped out"):
                self.manager.swap_in(request)
        if self.swapped or any(map(self.manager.block_ids, self.manager.tables)):
            assert not self.manager.reset_prefix_cache()
        assert self.state() == before

    @invariant()
    def counts_are_entries(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager = self.manager
        assert manager.tables.keys() == {request.request_id for request in self.running}
        assert manager.swap_space.tables.keys() == {request.request_id for request in self.swapped}
        for pool, tables in ((self.pool, manager.tables), (self.host_pool, manager.swap_space.tables)):
            entries = Counter(block_id for table in tables.values() for block_id in table.block_ids)
            free = {block.block_id for block in pool.free_block_queue.get_all_free_blocks()}
            assert [block.ref_cnt for block in pool.blocks] == [entries[i] for i in range(pool.num_blocks)]
            assert free == set(range(1, pool.num_blocks)) - entries.keys() and len(free) == pool.num_free_blocks
        assert all(block.ref_cnt <= 1 and block.block_hash is None for block in self.host_pool.blocks)

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.execute()
        for request in self.running + self.swapped:
            self.manager.free(request)
        assert self.pool.num_used_blocks == self.host_pool.num_used_blocks == 0
        assert not self.manager.tables and not self.manager.swap_space.tables and not self.manager._num_cached_blocks
        assert self.manager.reset_prefix_cache()


TestSwapping = Swapping.TestCase
TestSwapping.settings = settings(max_examples=drawn(120), stateful_step_count=40)
TestSwapping.__doc__ = (
    "Catches a request that comes back with anything but its own tokens, and a block lost on the way."
)


# Examples worked out by hand.


def test_a_block_that_waits_for_its_copy_is_read_from_its_source() -> None:
    """Catches a private copy swapped out before anything was copied to it."""
    manager = KVCacheManager(num_blocks=6, block_size=4, num_host_blocks=4)
    ada = Request("Ada", range(6))
    assert manager.allocate_slots(ada, 6) is not None
    ada.num_computed_tokens = 6
    bo = manager.fork(ada, "Bo")
    bo.append_token(9)
    assert [block.block_id for block in manager.allocate_slots(bo, 1)] == [3]
    assert manager.swap_out(bo) == [(1, 1), (2, 2)], "block 3 is empty still; Ada's block 2 holds the tokens"
    assert take_copies(manager.tables.values()) == [] and bo.num_computed_tokens == 6
    assert manager.block_ids("Ada") == [1, 2]
    assert [block.ref_cnt for block in manager.block_pool.blocks[1:4]] == [1, 1, 0]
    assert manager.swap_in(bo) == [(1, 3), (2, 4)], "blocks of its own: a swap does not bring sharing back"


@pytest.mark.parametrize("tree", [False, True])
def test_what_comes_back_is_found_again(tree: bool) -> None:
    """Catches a request whose later blocks nobody can find, since those before them are not known any more."""
    index = RadixTree(2) if tree else None
    manager = KVCacheManager(num_blocks=5, block_size=2, index=index, num_host_blocks=4)
    ada, bo = Request("Ada", range(5)), Request("Bo", range(50, 57))
    assert manager.allocate_slots(ada, 5) is not None
    ada.num_computed_tokens = 5
    assert manager.swap_out(ada) == [(1, 1), (2, 2), (3, 3)]
    assert manager.allocate_slots(bo, 7) is not None, "all four blocks: what Ada's held is forgotten"
    assert manager.get_computed_blocks(Request("Cy", range(5)))[1] == 0 and manager.swap_in(ada) is None
    manager.free(bo)
    assert manager.swap_in(ada) == [(1, 1), (2, 2), (3, 4)]
    assert manager.get_computed_blocks(Request("Cy", range(5)))[1] == 4, "at once"
    ada.append_token(5)
    assert manager.allocate_slots(ada, 1) == []
    found, num_hits = manager.get_computed_blocks(Request("Cy", range(7)))
    assert num_hits == 6 and [block.block_id for block in found] == manager.block_ids("Ada")


def test_tokens_that_were_not_computed_are_not_kept() -> None:
    """Catches a block that stays known although the step that was to fill it was called off for its request."""
    manager = KVCacheManager(num_blocks=6, block_size=2, num_host_blocks=4)
    ada = Request("Ada", range(9))
    assert manager.allocate_slots(ada, 3) is not None
    ada.num_computed_tokens = 3
    assert manager.allocate_slots(ada, 4) is not None and len(manager.prefix_cache) == 3
    assert manager.swap_out(ada) == [(1, 1), (2, 2)]
    assert manager.get_computed_blocks(Request("Bo", range(9)))[1] == 2 and len(manager.prefix_cache) == 1


def test_a_swapped_request_is_still_there() -> None:
    """Catches its name given away, its contents out of date after a reset, and host blocks that nobody gives back."""
    manager = KVCacheManager(num_blocks=6, block_size=2, num_host_blocks=4)
    ada, bo = Request("Ada", range(4)), Request("Bo", [7])
    for request in (ada, bo):
        assert manager.allocate_slots(request, request.num_tokens) is not None
        request.num_computed_tokens = request.num_tokens
    assert manager.swap_out(ada) == [(1, 1), (2, 2)]
    ada.num_computed_tokens = 0
    with pytest.raises(ValueError, match="'Ada' is swapped out: call swap_in"):
        manager.allocate_slots(ada, 1)
    with pytest.raises(ValueError, match="'Ada' holds blocks already"):
        manager.fork(bo, "Ada")
    manager.free(bo)
    assert not manager.reset_prefix_cache(), "its keys and values would come back to life with it"
    manager.free(ada)
    assert manager.swap_space.block_pool.num_used_blocks == 0 and manager.reset_prefix_cache()


def test_without_host_memory() -> None:
    """Catches a manager that loses a request's blocks though it cannot keep them anywhere."""
    manager = KVCacheManager(num_blocks=6, block_size=2)
    ada = Request("Ada", range(4))
    assert manager.allocate_slots(ada, 4) is not None
    assert manager.swap_out(ada) is None and manager.block_ids("Ada") == [1, 2]
    with pytest.raises(ValueError, match="num_host_blocks is 0"):
        manager.swap_in(ada)
    with pytest.raises(ValueError, match="at least 2"):
        KVCacheManager(num_blocks=6, block_size=2, num_host_blocks=1)


def test_more_computed_than_there_is() -> None:
    """Catches a swapped request that claims tokens which no block holds."""
    manager = KVCacheManager(num_blocks=6, block_size=2, num_host_blocks=9)
    ada = Request("Ada", range(9))
    assert manager.allocate_slots(ada, 3) is not None
    ada.num_computed_tokens = 4
    with pytest.raises(ValueError, match="has 3 tokens in its blocks: cannot keep 4"):
        manager.swap_out(ada)
    assert manager.block_ids("Ada") == [1, 2] and not manager.swap_space.tables


@pytest.mark.parametrize(
    ("out", "back"),
    [([(0, 1)], [(0, 1)]), ([(1, 0)], [(1, 0)]), ([(6, 1)], [(3, 1)]), ([(1, 3)], [(1, 6)]), ([(-1, 1)], [(-1, 1)]),
     ([(1, 1), (2, 1)], [(1, 1), (2, 1)])],
)  # fmt: skip
def test_bad_copies_are_refused(out: list[tuple[int, int]], back: list[tuple[int, int]]) -> None:
    """Catches numbers checked against the memory on the other side, and a copy half done."""
    cache = PagedKVCache(KVShape(2, 1, 4, "float32"), num_blocks=6, block_size=2, num_host_blocks=3)
    cache.write(0, torch.ones(2, 1, 4), torch.ones(2, 1, 4), [2, 4])
    with pytest.raises(ValueError, match=r"cannot be copied|named twice"):
        cache.copy_out([(1, 2), *out])
    assert not any(tensor.any() for tensor in cache._host)
    cache.copy_out([(1, 2), (2, 1)])
    with pytest.raises(ValueError, match=r"cannot be copied|named twice"):
        cache.copy_in([(2, 5), *back])
    assert not cache.key_caches[0][5].any()
    cache.copy_in([(2, 5), (1, 3)])
    assert cache.key_caches[0][5, 0].eq(1).all() and cache.key_caches[0][3, 0].eq(1).all()


def test_host_bytes() -> None:
    """Catches scales, or a value that lies in its latent, priced twice or not at all; and memory nobody asked for."""
    for shape, scales in SHAPES.values():
        with_host = PagedKVCache(shape, num_blocks=6, block_size=2, num_host_blocks=3, **scales)
        assert (
            with_host.num_host_bytes == 3 * shape.bytes_per_block(2)
            and 2 * with_host.num_host_bytes == with_host.num_bytes
        )
        assert PagedKVCache(shape, num_blocks=6, block_size=2, **scales).num_host_bytes == 0
    with pytest.raises(ValueError, match="num_host_blocks is -1"):
        PagedKVCache(KVShape(1, 1, 4, "float32"), num_blocks=6, block_size=2, num_host_blocks=-1)
