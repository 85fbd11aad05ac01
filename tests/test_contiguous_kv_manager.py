"""Contiguous memory behind the engine's interface: one run of blocks per request, whole from the start to the end."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedattn_lab.baselines.accounting import Account
from pagedattn_lab.baselines.contiguous import Reservation, max_length, next_power_of_two, oracle
from pagedattn_lab.baselines.kv_manager import ContiguousKVCacheManager
from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.request import Request, RequestStatus
from tests.helpers.draws import drawn

MAX_MODEL_LEN = 12


class Runs(RuleBasedStateMachine):
    """Requests come, grow token by token and go. With blocks of one token the allocators of chapter 02 must agree."""

    @initialize(
        reserve=st.sampled_from(["max", "pow2", "oracle"]),
        block_size=st.sampled_from([1, 1, 2, 3, 4]),
        num_blocks=st.integers(6, 40),
    )
    def begin(self, reserve: str, block_size: int, num_blocks: int) -> None:
        self.block_size, self.pool_size = block_size, num_blocks
        self.manager = ContiguousKVCacheManager(num_blocks, block_size, reserve, MAX_MODEL_LEN)
        num_slots = num_blocks - 1
        allocators = {
            "max": lambda: max_length(num_slots, MAX_MODEL_LEN),
            "pow2": lambda: next_power_of_two(num_slots, MAX_MODEL_LEN),
            "oracle": lambda: oracle(num_slots),
        }
        self.allocator = allocators[reserve]() if block_size == 1 else None
        self.running: dict[str, tuple[Request, Reservation | None]] = {}
        self.waiting: Request | None = None
        self.born = 0

    @rule(prompt_len=st.integers(1, 8), max_tokens=st.integers(1, 7), chunk=st.integers(1, 8))
    def arrive(self, prompt_len: int, max_tokens: int, chunk: int) -> None:
        self.born += 1
        request = Request(f"request {self.born}", [7] * prompt_len, max_tokens=max_tokens)
        before = self.state()
        try:
            self.manager.check_fits(request)
        except ValueError:
            with pytest.raises(ValueError, match=r"in a row|the most it may have"):
                self.manager.allocate_slots(request, 1)
            if self.allocator is not None and prompt_len + max_tokens - 1 <= MAX_MODEL_LEN:
                with pytest.raises(ValueError, match=r"never fits|exceeds"):
                    self.allocator.size(prompt_len, max_tokens)
            assert self.state() == before
            return
        num_new = min(chunk, prompt_len)
        blocks = self.manager.allocate_slots(request, num_new)
        reservation = None if self.allocator is None else self.allocator.allocate(prompt_len, max_tokens)
        if self.allocator is not None:
            start = None if reservation is None else reservation.region.start
            assert (None if blocks is None else blocks[0].block_id - 1) == start
        if blocks is None:
            assert self.state() == before
            self.waiting = request
            return
        assert [block.block_id for block in blocks] == self.manager.block_ids(request.request_id)
        request.num_computed_tokens = num_new
        self.running[request.request_id] = request, reservation

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def grow(self, which: int) -> None:
        """It always has room, up to the last token that it may have."""
        request, _ = list(self.running.values())[which % len(self.running)]
        if request.num_computed_tokens == request.num_tokens:
            if request.num_output_tokens == request.max_tokens - 1:  # the last token needs no slot
                return
            request.append_token(1)
        ids = self.manager.block_ids(request.request_id)
        assert self.manager.allocate_slots(request, request.num_tokens - request.num_computed_tokens) == []
        request.num_computed_tokens = request.num_tokens
        assert self.manager.block_ids(request.request_id) == ids

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        name = list(self.running)[which % len(self.running)]
        request, reservation = self.running.pop(name)
        self.manager.free(request)
        self.manager.free(request)
        if self.allocator is not None:
            self.allocator.free(reservation)

    def state(self) -> tuple:
        pool = self.manager.block_pool
        return (
            [block.ref_cnt for block in pool.blocks],
            {name: (table.block_ids, table.num_tokens) for name, table in self.manager.tables.items()},
            dict(self.manager.runs),
            self.manager.strip.gaps,
        )

    @invariant()
    def runs_are_runs(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager = self.manager
        assert manager.tables.keys() == manager.runs.keys() == self.running.keys()
        taken: list[int] = []
        for name, (request, _) in self.running.items():
            table, ids = manager.tables[name], manager.block_ids(name)
            assert ids == list(range(ids[0], ids[0] + len(ids))) and ids[0] >= 1
            assert table.num_tokens == request.num_computed_tokens
            first = ids[0] * self.block_size
            assert table.slot_mapping() == list(range(first, first + table.num_tokens))
            assert len(ids) * self.block_size >= request.num_prompt_tokens + request.max_tokens - 1
            taken += ids
        assert len(set(taken)) == len(taken)
        assert [block.ref_cnt for block in manager.block_pool.blocks] == [
            int(block_id in taken) for block_id in range(self.pool_size)
        ]
        account = manager.account(self.waiting)
        num_tokens = sum(request.num_computed_tokens for request, _ in self.running.values())
        assert account.token_states == num_tokens
        if self.allocator is not None:
            waiting = self.waiting
            size = 0 if waiting is None else self.allocator.size(waiting.num_prompt_tokens, waiting.max_tokens)
            theirs = self.allocator.account(num_tokens, size)
            assert account == theirs._replace(external=theirs.external + 1), "and the null block"

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for request, _ in self.running.values():
            self.manager.free(request)
        assert self.manager.block_pool.num_used_blocks == 0 and not self.manager.tables and not self.manager.runs
        fresh = type(self.manager.strip)(self.pool_size - 1)
        assert self.manager.strip.gaps == fresh.gaps


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=drawn(150), stateful_step_count=40)
TestRuns.__doc__ = "Catches runs that overlap, move or are too short, and an account that chapter 02 would refuse."


@pytest.mark.parametrize(
    ("reserve", "account"),
    [
        ("max", Account(6, 4, 6, external=4, free=16, rounding=0)),
        ("pow2", Account(6, 4, 4, external=4 + 2, free=16, rounding=2)),
        ("oracle", Account(6, 4, 0, external=4 + 6, free=16, rounding=6)),
    ],
)
def test_account(reserve: str, account: Account) -> None:
    """Catches rounding, to blocks or to a power of two of them, called anything but rounding.

    Memory is 36 slots, 4 of them the null block. A request of 6 tokens will have 10; 16, 6 + 8 or 10 slots are
    reserved, and 4 blocks taken. Whoever waits needs 4 blocks too.
    """
    manager = ContiguousKVCacheManager(9, 4, reserve, max_model_len=16)
    ada, bo = (Request(name, range(6), max_tokens=5) for name in ("Ada", "Bo"))
    assert [block.block_id for block in manager.allocate_slots(ada, 6)] == [1, 2, 3, 4]
    assert manager.account(bo) == account


@pytest.mark.parametrize("reserve", ["max", "pow2", "oracle"])
@pytest.mark.parametrize("budget", [None, 5])
def test_nobody_is_preempted(reserve: str, budget: int | None) -> None:
    """Catches a manager that a scheduler cannot use, and a request that runs and finds no room."""
    manager = ContiguousKVCacheManager(13, 4, reserve, max_model_len=16)
    scheduler = Scheduler(manager, max_num_batched_tokens=budget)
    requests = [Request(f"request {i}", [i] * (1 + 3 * i % 7), max_tokens=1 + 5 * i % 9) for i in range(30)]
    for request in requests:
        scheduler.add_request(request)
    most = 0
    while scheduler.has_unfinished:
        output = scheduler.schedule()
        assert output.requests and not output.preempted
        most = max(most, len(scheduler.running))
        scheduler.update(output)
        for request in output.requests:
            if request.num_computed_tokens == request.num_tokens:
                request.append_token(1)
                if request.num_output_tokens == request.max_tokens:
                    scheduler.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)
    assert manager.block_pool.num_used_blocks == 0 and all(request.num_preemptions == 0 for request in requests)
    assert most == 3 if reserve == "max" else most > 3


def test_refusals() -> None:
    """Catches a request that would wait for ever, a guess without anything to guess from, and shared blocks."""
    oracle_manager = ContiguousKVCacheManager(12, 4, "oracle", max_model_len=40)
    with pytest.raises(ValueError, match="needs 16 blocks of 4 tokens in a row, and the longest run has 8"):
        oracle_manager.check_fits(Request("Ada", range(30), max_tokens=5))
    with pytest.raises(ValueError, match="may come to 41 tokens in the cache, and 40 are"):
        oracle_manager.check_fits(Request("Ada", range(40), max_tokens=2))
    with pytest.raises(ValueError, match="has no max_tokens to reserve by"):
        oracle_manager.check_fits(Request("Ada", range(5)))
    with pytest.raises(ValueError, match="reserve is 'all': use one of max, pow2, oracle"):
        ContiguousKVCacheManager(12, 4, "all", max_model_len=40)

    manager = ContiguousKVCacheManager(12, 4, "max", max_model_len=16)
    ada = Request("Ada", range(5))
    assert manager.get_computed_blocks(ada) == ([], 0)
    for num_new, message in ((0, "num_new_tokens is 0"), (17, "computes 17 tokens, and 16 slots are reserved")):
        with pytest.raises(ValueError, match=message):
            manager.allocate_slots(ada, num_new)
    ada.num_computed_tokens = 3
    with pytest.raises(ValueError, match="holds no blocks, yet num_computed_tokens is 3"):
        manager.allocate_slots(ada, 2)
    ada.num_computed_tokens = 0
    assert not manager.runs and manager.strip.gaps == [(0, 11)]
    with pytest.raises(ValueError, match="needs 16 blocks of 4 tokens in a row"):
        oracle_manager.allocate_slots(Request("Ada", range(30), max_tokens=5), 30)
    assert len(manager.allocate_slots(ada, 5)) == 4
    ada.num_computed_tokens = 5
    for num_new, message in ((0, "num_new_tokens is 0"), (12, "computes 17 tokens, and 16 slots are reserved")):
        with pytest.raises(ValueError, match=message):
            manager.allocate_slots(ada, num_new)
    with pytest.raises(ValueError, match="contiguous memory shares nothing"):
        manager.fork(ada, "Bo")
    assert manager.swap_out(ada) is None and manager.take_events() == []
    assert not manager.reset_prefix_cache()
    manager.free(ada)
    assert manager.reset_prefix_cache() and manager.strip.gaps == [(0, 11)]
