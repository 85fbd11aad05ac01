"""A second tier in host memory: what is evicted comes back as it was, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedattn_lab.block_table import take_copies
from pagedattn_lab.host_tier import HostTier
from pagedattn_lab.kv_events import MEDIUM_CPU, MEDIUM_GPU, AllBlocksCleared, BlockStored, KVCacheEvent, external_hash
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.prefix_cache import block_hashes
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request
from tests.helpers.draws import drawn

Slot = tuple[str | None, tuple[int, ...]] | None
"""What a slot holds: the salt and all tokens up to its own, as keys and values depend on them; ``None`` is poison."""


class StopHereError(Exception):
    """A copy broke off, or the model."""


def replay(known: dict[str, Counter[int]], events: Iterable[KVCacheEvent]) -> None:
    """Keep the books of a router, which sees nothing but events: how often each hash is known, in each memory."""
    for event in events:
        if isinstance(event, AllBlocksCleared):
            for hashes in known.values():
                hashes.clear()
            continue
        assert event.medium in known
        hashes = known[event.medium]
        for block_hash in event.block_hashes:
            if isinstance(event, BlockStored):
                hashes[block_hash] += 1
                assert event.medium == MEDIUM_GPU or hashes[block_hash] == 1, "one hash in two host blocks"
            else:
                assert hashes[block_hash] > 0, "removed, and was not there"
                hashes[block_hash] -= 1


class Tiered(RuleBasedStateMachine):
    """Requests that begin alike come, grow, fork, lose their blocks and go; steps are carried out, or break off.

    Every slot of both memories is written down. What nobody may read is poison, from the beginning and after each step.
    """

    @initialize(
        block_size=st.sampled_from([1, 2, 3, 4]),
        num_blocks=st.sampled_from([3, 5, 8, 14]),
        num_offload_blocks=st.sampled_from([1, 2, 5, 30]),
    )
    def begin(self, block_size: int, num_blocks: int, num_offload_blocks: int) -> None:
        self.block_size = block_size
        self.manager = KVCacheManager(
            num_blocks, block_size, enable_kv_cache_events=True, num_offload_blocks=num_offload_blocks
        )
        self.pool, self.tier = self.manager.block_pool, self.manager.tier
        self.device: dict[int, Slot] = {}
        self.host: dict[int, Slot] = {}
        self.means: dict[bytes, list[Slot]] = {}  # of each hash that was ever seen
        self.known = {MEDIUM_GPU: Counter[int](), MEDIUM_CPU: Counter[int]()}
        self.running: list[Request] = []
        self.scheduled: dict[str, int] = {}  # tokens of this step
        self.has_preempted = False  # such a step admits nobody
        self.born = 0

    # --- what a step does

    def slots(self, block_id: int) -> range:
        return range(block_id * self.block_size, (block_id + 1) * self.block_size)

    def copy(self, pairs: Sequence[tuple[int, int]], of: dict[int, Slot], to: dict[int, Slot], left: list[int]) -> None:
        """Copy blocks one after the other; break off in the middle of one when none is left."""
        assert len({destination for _, destination in pairs}) == len(pairs) and all(0 not in pair for pair in pairs)
        for source, destination in pairs:
            moved = [of.get(slot) for slot in self.slots(source)]
            if not left[0]:
                moved[-1] = None
            to.update(zip(self.slots(destination), moved, strict=True))
            left[0] -= 1
            if left[0] < 0:
                raise StopHereError

    def execute(self, fails_after: int = -1) -> None:
        """Carry a step out; break off after so many copies, or in the model if there are not so many."""
        left = [fails_after if fails_after >= 0 else 10**6]
        stores, loads = self.tier.copies()
        self.copy(stores, self.device, self.host, left)
        self.tier.complete_stores()
        self.copy(loads, self.host, self.device, left)
        self.tier.complete_loads()
        self.copy(take_copies(self.manager.tables.values()), self.device, self.device, [10**6])
        for request in self.running:
            if (num_new := self.scheduled.get(request.request_id, 0)) > 0:
                start = request.num_computed_tokens
                tokens = tuple(request.token_ids)
                for position, slot in enumerate(self.slot_mapping(request, start, start + num_new), start):
                    self.device[slot] = (request.cache_salt, tokens[: position + 1]) if fails_after < 0 else None
                if fails_after < 0:
                    request.num_computed_tokens += num_new
        if fails_after >= 0:
            raise StopHereError
        self.end_step()

    def slot_mapping(self, request: Request, start: int, stop: int) -> list[int]:
        return self.manager.tables[request.request_id].slot_mapping(start, stop)

    def end_step(self) -> None:
        """Poison what nobody may read, then read all that anybody may find or goes on with."""
        self.scheduled, self.has_preempted = {}, False
        for block in self.pool.blocks:
            if block.ref_cnt == 0 and block.block_hash is None:
                self.device.update(dict.fromkeys(self.slots(block.block_id)))
        for block_id in set(range(1 + self.tier.num_blocks)) - set(self.tier.contents.values()):
            self.host.update(dict.fromkeys(self.slots(block_id)))
        assert not self.tier.has_copies
        for block in self.pool.blocks:
            if block.block_hash is not None:
                assert [self.device.get(slot) for slot in self.slots(block.block_id)] == self.means[block.block_hash]
        for block_hash, block_id in self.tier.contents.items():
            assert [self.host.get(slot) for slot in self.slots(block_id)] == self.means[block_hash]
        for request in self.running:
            tokens = tuple(request.token_ids)
            for position, slot in enumerate(self.slot_mapping(request, 0, request.num_computed_tokens)):
                assert self.device.get(slot) == (request.cache_salt, tokens[: position + 1]), (request, position)

    def learn(self, request: Request) -> None:
        """Write down what the hashes of a request mean, before anything can be known by them."""
        tokens = tuple(request.token_ids)
        for place, block_hash in enumerate(block_hashes(request, self.block_size)):
            positions = range(place * self.block_size, (place + 1) * self.block_size)
            self.means[block_hash] = [(request.cache_salt, tokens[: position + 1]) for position in positions]

    def drop(self, request: Request) -> None:
        """Take a request's blocks, as the scheduler does: what was not computed is forgotten."""
        first = request.num_computed_tokens // self.block_size
        self.manager.evict_blocks(self.manager.block_ids(request.request_id)[first:])
        self.manager.free(request)
        self.running.remove(request)
        self.scheduled.pop(request.request_id, None)

    def state(self) -> object:
        """All that a call may change."""
        manager, tier = self.manager, self.tier
        queue = self.pool.free_block_queue.get_all_free_blocks()
        return (
            [(block.block_id, block.ref_cnt, block.block_hash) for block in self.pool.blocks],
            [block.block_id for block in queue],
            [(name, table.block_ids, table.num_tokens) for name, table in manager.tables.items()],
            (list(tier.contents.items()), list(tier._free), dict(tier._pins), tier.copies()),
            (repr(manager.stats), dict(manager._num_cached_blocks), len(manager.prefix_cache)),
        )

    # --- what happens

    @precondition(lambda self: not self.has_preempted)
    @rule(stem=st.integers(0, 1), cut=st.integers(0, 12), tail=st.lists(st.integers(0, 1), max_size=3),
          salt=st.sampled_from([None, None, "a"]), chunk=st.integers(0, 20))  # fmt: skip
    def admit(self, stem: int, cut: int, tail: list[int], salt: str | None, chunk: int) -> None:
        self.born += 1
        request = Request(f"request {self.born}", [stem] * cut + tail or [1], cache_salt=salt)
        self.learn(request)
        block_hashes(request, self.block_size)
        before = self.state()
        blocks, num_hits = self.manager.get_computed_blocks(request)
        assert self.state() == before and num_hits < request.num_tokens
        expected = block_hashes(request, self.block_size)[len(blocks) : (request.num_tokens - 1) // self.block_size]
        in_tier = num_hits // self.block_size - len(blocks)
        assert all(block_hash in self.tier.contents for block_hash in expected[:in_tier])
        assert in_tier == len(expected) or expected[in_tier] not in self.tier.contents
        left = request.num_tokens - num_hits
        num_new = min(chunk, left) or left
        new = self.manager.allocate_slots(request, num_new, blocks, in_tier * self.block_size)
        if new is None:
            assert self.state() == before
            return
        assert self.manager.block_ids(request.request_id) == [block.block_id for block in [*blocks, *new]]
        request.num_computed_tokens = num_hits
        self.scheduled[request.request_id] = num_new
        self.running.append(request)

    @precondition(lambda self: self.able())
    @rule(which=st.integers(0), token=st.integers(0, 1), chunk=st.integers(0, 9))
    def advance(self, which: int, token: int, chunk: int) -> None:
        request = self.able()[which % len(self.able())]
        if request.num_computed_tokens == request.num_tokens:
            request.append_token(token)
            self.learn(request)
        left = request.num_tokens - request.num_computed_tokens
        num_new = min(chunk, left) or left
        before = self.state()
        if self.manager.allocate_slots(request, num_new) is None:
            assert self.state() == before
        else:
            self.scheduled[request.request_id] = num_new

    def able(self) -> list[Request]:
        return [request for request in self.running if request.request_id not in self.scheduled]

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def fork(self, which: int) -> None:
        self.execute()
        self.born += 1
        self.running.append(self.manager.fork(self.running[which % len(self.running)], f"request {self.born}"))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def preempt(self, which: int) -> None:
        """In the middle of a step, also of one that was to bring its blocks back."""
        request = self.running[which % len(self.running)]
        first = request.num_computed_tokens // self.block_size
        blocks = self.manager.tables[request.request_id].blocks[first:]
        if self.scheduled.get(request.request_id) and any(block.ref_cnt > 1 for block in blocks):
            return  # somebody counts on what it writes in this step
        self.drop(request)
        self.has_preempted = True

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        self.execute()
        self.manager.free(self.running.pop(which % len(self.running)))

    @rule()
    def step(self) -> None:
        self.execute()

    @rule(fails_after=st.integers(0, 8))
    def step_fails(self, fails_after: int) -> None:
        with pytest.raises(StopHereError):
            self.execute(fails_after)
        self.manager.evict_blocks(self.tier.fail())
        for request in [request for request in self.running if request.request_id in self.scheduled]:
            self.drop(request)
        for table in self.manager.tables.values():
            assert table.pending_copy is None  # whoever waits for a copy is in the step
        self.end_step()

    @rule()
    def reset(self) -> None:
        may = not self.manager.tables and not self.tier.has_copies
        assert self.manager.reset_prefix_cache() == may
        assert not may or not len(self.tier)

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "manager"):
            return
        tier, contents = self.tier, self.tier.contents
        assert len(contents) <= tier.num_blocks
        assert sorted([*contents.values(), *tier._free]) == list(range(1, 1 + tier.num_blocks))
        stores, loads = tier.copies()
        assert {host for _, host in stores} | {host for host, _ in loads} <= set(contents.values())
        assert tier._pins == Counter(tier._loads.values())
        for host, block_id in loads:
            assert contents[self.pool.blocks[block_id].block_hash] == host
        entries = Counter(block_id for table in self.manager.tables.values() for block_id in table.block_ids)
        assert [block.ref_cnt for block in self.pool.blocks] == [entries[i] for i in range(self.pool.num_blocks)]
        replay(self.known, self.manager.take_events())
        on_device = Counter(external_hash(block.block_hash) for block in self.pool.blocks if block.block_hash)
        assert +self.known[MEDIUM_GPU] == on_device
        assert +self.known[MEDIUM_CPU] == Counter(map(external_hash, contents))

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.execute()
        for request in self.running:
            self.manager.free(request)
        assert self.pool.num_used_blocks == 0 and not self.tier._pins and self.manager.reset_prefix_cache()
        assert len(self.tier) == 0 and len(self.tier._free) == self.tier.num_blocks
        replay(self.known, self.manager.take_events())
        assert not any(map(Counter.total, self.known.values()))


TestTiered = Tiered.TestCase
TestTiered.settings = settings(max_examples=drawn(150), stateful_step_count=40, deadline=None)
TestTiered.__doc__ = (
    "Catches anything read that was not written there, a block lost or kept in two places, and a router misled."
)


# Examples worked out by hand.


def tier_of(*names: str, num_blocks: int = 3) -> HostTier:
    """A tier that holds these contents, the first of them the oldest."""
    tier = HostTier(num_blocks, block_size=4)
    for place, name in enumerate(names, 11):
        tier.store(name.encode(), place)
    tier.complete_stores()
    return tier


def test_the_oldest_is_given_up() -> None:
    """Catches another order than least recently used, and use that is not seen: stored again, and pinned."""
    tier = tier_of("a", "b", "c")
    tier.store(b"a", 21)
    assert tier.copies().stores == [], "it is there already"
    tier.store(b"d", 22)
    assert list(tier.contents) == [b"c", b"a", b"d"] and tier.copies().stores == [(22, 2)]
    tier.complete_stores()
    tier.pin([b"c", b"d"])
    assert list(tier.contents) == [b"a", b"d", b"c"], "the end of a prompt goes before its beginning"
    assert tier.find([b"a", b"d", b"b", b"c"]) == 2 and list(tier.contents) == [b"a", b"d", b"c"]


def test_what_is_about_to_be_read_stays() -> None:
    """Catches a host block that is given to others while a copy from it waits."""
    tier = tier_of("a", "b", num_blocks=2)
    tier.pin([b"a", b"b"])
    tier.store(b"c", 31)
    assert tier.copies() == ([], []) and list(tier.contents) == [b"b", b"a"]
    tier.load(b"a", 31)
    tier.load(b"b", 32)
    tier.store(b"d", 33)
    assert tier.copies() == ([], [(1, 31), (2, 32)])
    tier.complete_loads()
    tier.store(b"d", 33)
    assert list(tier.contents) == [b"a", b"d"]


def test_a_tier_of_one_block() -> None:
    """Catches a place that two contents of one step share, and a copy to it that is made all the same."""
    tier = tier_of(num_blocks=1)
    tier.store(b"a", 5)
    tier.store(b"b", 6)
    assert tier.copies().stores == [(6, 1)] and list(tier.contents) == [b"b"]
    tier.pin([b"b"])
    tier.load(b"b", 6)  # back to where it came from, by way of the host: nothing is lost
    assert tier.copies() == ([(6, 1)], [(1, 6)])


@pytest.mark.parametrize("num_completed", [0, 1, 2])
def test_what_was_not_copied_is_forgotten(num_completed: int) -> None:
    """Catches a half copy that can be found, and contents dropped that are right: by how far the step came."""
    tier = tier_of("a")
    tier.pin([b"a"])
    tier.store(b"b", 7)
    tier.load(b"a", 7)
    for complete in (tier.complete_stores, tier.complete_loads)[:num_completed]:
        complete()
    assert tier.fail() == ([] if num_completed == 2 else [7])
    assert list(tier.contents) == ([b"a", b"b"] if num_completed else [b"a"])
    assert not tier.has_copies and not tier._pins and len(tier._free) == (1 if num_completed else 2)


def test_it_comes_back() -> None:
    """Catches hits of the tier that are not counted, a last token that is not computed, and copies in another order."""
    manager = KVCacheManager(num_blocks=5, block_size=2, num_offload_blocks=4)
    ada, bo = Request("Ada", range(8)), Request("Bo", range(50, 58))
    manager.allocate_slots(ada, 8)
    manager.free(ada)
    manager.allocate_slots(bo, 8)  # takes all of Ada's blocks, the end of her prompt first
    assert manager.tier.copies() == ([(4, 1), (3, 2), (2, 3), (1, 4)], [])
    manager.tier.complete_stores()
    manager.free(bo)
    again = Request("Ada", range(8))
    assert manager.get_computed_blocks(again) == ([], 6)
    assert len(manager.allocate_slots(again, 2, [], 6)) == 4 and manager.block_ids("Ada") == [1, 2, 3, 4]
    # Ada's last block is not read, so there was one place for Bo's four. His beginning was evicted last, and has it.
    assert manager.tier.copies() == ([(4, 1)], [(4, 1), (3, 2), (2, 3)])
    assert (manager.stats.hits, manager.stats.external_hits, manager.stats.queries) == (0, 6, 24)


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_copy_that_nobody_waits_for_is_not_made(is_forgotten: bool) -> None:
    """Catches a block that is read before its contents have come back to it, or written after others have taken it: a
    request was to be reloaded, and in the same step it lost its blocks to another.
    """
    manager = KVCacheManager(num_blocks=3, block_size=2, num_offload_blocks=4)
    for name, tokens in (("Ada", range(4)), ("Bo", range(50, 54))):
        manager.allocate_slots(Request(name, tokens), 4)
        manager.tier.complete_stores()
        manager.free(Request(name, tokens))
    before = manager.tier.contents
    cleo = Request("Cleo", range(3))
    manager.allocate_slots(cleo, 1, [], 2)
    (host, block) = manager.tier.copies().loads[0]
    assert host == before[block_hashes(cleo, 2)[0]]
    if is_forgotten:
        manager.evict_blocks([block])
    manager.free(cleo)
    stores = manager.tier.copies().stores
    manager.allocate_slots(Request("Cy", range(90, 94)), 4)
    assert block in manager.block_ids("Cy") and manager.tier.copies() == (stores, []) and not manager.tier._pins
    manager.tier.complete_stores()
    assert manager.tier.find(block_hashes(Request("Ada", range(4)), 2)[:1]) == 1


def test_the_tier_goes_on_where_the_device_ends() -> None:
    """Catches a tier that is searched from the first block on, or behind a gap."""
    manager = KVCacheManager(num_blocks=6, block_size=2, num_offload_blocks=5)
    ada, bo = Request("Ada", range(10)), Request("Bo", range(50, 56))
    manager.allocate_slots(ada, 10)
    manager.free(ada)
    manager.allocate_slots(bo, 6)
    manager.tier.complete_stores()
    manager.free(bo)
    blocks, num_hits = manager.get_computed_blocks(Request("Cleo", [*range(10), 7]))
    assert [block.block_id for block in blocks] == [1, 2] and num_hits == 10
    other = Request("Cleo", [*range(6), 9, 9, 9])
    assert manager.get_computed_blocks(other)[1] == 6
    assert manager.get_computed_blocks(Request("Cleo", range(10), cache_salt="blue")) == ([], 0)


@pytest.mark.parametrize("num_external", [1, 4, 8, -2])
def test_hits_that_are_out_of_date(num_external: int) -> None:
    """Catches tokens taken from the tier that it does not have: too many, half a block, none."""
    manager = KVCacheManager(num_blocks=3, block_size=2, num_offload_blocks=1)
    ada = Request("Ada", range(4))
    manager.allocate_slots(ada, 4)
    manager.free(ada)
    bo = Request("Bo", [50, 51])
    manager.allocate_slots(bo, 2)
    manager.tier.complete_stores()
    manager.free(bo)
    cleo = Request("Cleo", range(6))
    with pytest.raises(ValueError, match=f"host memory does not hold {num_external} tokens for request 'Cleo'"):
        manager.allocate_slots(cleo, 1, [], num_external)
    assert not manager.tables and manager.block_pool.num_free_blocks == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": RadixTree(2)}, "RadixTree has no hashes: a tier needs a HashIndex"),
        ({"enable_prefix_caching": False}, "there is no prefix cache: a tier needs a HashIndex"),
        ({"num_host_blocks": 3}, "give one of the two"),
        ({"num_offload_blocks": -1}, "num_offload_blocks is -1"),
    ],
)
def test_what_has_no_tier(options: dict[str, object], message: str) -> None:
    """Catches a tier that could find nothing, or that shares its host blocks with swapped requests."""
    with pytest.raises(ValueError, match=message):
        KVCacheManager(**{"num_blocks": 5, "block_size": 2, "num_offload_blocks": 4} | options)
