"""The scheduler by itself: random loads on a toy model, faults at every step, and examples worked out by hand.

Its order and its blocks are compared with vLLM's own scheduler in ``test_vllm_scheduler.py``.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.engine.scheduler_output import SchedulerOutput
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus
from tests.helpers.draws import drawn
from tests.helpers.toy_executor import ToyExecutor, check_books, expected_output

ABORTED = RequestStatus.FINISHED_ABORTED


def make(
    num_blocks: int = 9, block_size: int = 4, caching: bool = True, num_host_blocks: int = 0, **options: Any
) -> Scheduler:
    return Scheduler(KVCacheManager(num_blocks, block_size, caching, num_host_blocks=num_host_blocks), **options)


def names(requests: Any) -> list[str]:
    return [request.request_id for request in requests]


def draw_requests(rng: random.Random, num_requests: int, max_num_tokens: int) -> list[Request]:
    """Prompts that begin alike, on and off the ends of blocks, each small enough for the pool."""
    requests = []
    for number in range(num_requests):
        num_tokens = rng.randint(1, max_num_tokens)
        max_tokens = rng.randint(1, max_num_tokens - num_tokens + 1)
        prompt = ([0] * rng.randint(0, 12) + [1] * max_num_tokens)[:num_tokens]
        salt = rng.choice([None, None, "a"])
        requests.append(
            Request(str(number), prompt, salt, max_tokens=max_tokens, priority=rng.randint(0, 2), arrival_time=number)
        )
    return requests


LOADS = {
    "block_size": st.sampled_from([1, 2, 3, 4]),
    "num_blocks": st.integers(3, 14),
    "caching": st.booleans(),
    "budget": st.sampled_from([None, 1, 2, 3, 5, 8, 20]),
    "max_num_seqs": st.sampled_from([None, 1, 2, 4]),
    "threshold": st.sampled_from([None, 1, 3]),
    "policy": st.sampled_from(["fcfs", "priority"]),
    "num_host_blocks": st.sampled_from([None, 0, 3, 20]),
    "watermark": st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.6]),
    "seed": st.integers(0, 10**6),
}


class Load:
    """A scheduler, a toy model, and requests that come while others run."""

    def __init__(self, load: dict[str, Any]) -> None:
        self.rng = random.Random(load["seed"])
        self.scheduler = make(
            load["num_blocks"],
            load["block_size"],
            load["caching"],
            load["num_host_blocks"] or 0,
            preemption="recompute" if load["num_host_blocks"] is None else "swap",
            max_num_batched_tokens=load["budget"],
            max_num_seqs=load["max_num_seqs"],
            policy=load["policy"],
            watermark=load["watermark"],
            long_prefill_token_threshold=load["threshold"],
        )
        self.toy = ToyExecutor(self.scheduler)
        capacity = (load["num_blocks"] - 1) * load["block_size"]
        self.requests = draw_requests(self.rng, self.rng.randint(1, 9), capacity)
        self.given = {request.request_id: request.num_tokens for request in self.requests}  # tokens not chosen here
        self.coming = list(self.requests)
        self.num_steps = 0

    def arrive(self) -> None:
        while self.coming and self.rng.random() < 0.5:
            self.scheduler.add_request(self.coming.pop(0))

    @property
    def goes_on(self) -> bool:
        self.num_steps += 1
        assert self.num_steps < 3000, "this does not end"
        return bool(self.coming) or self.scheduler.has_unfinished

    def fork(self, request: Request) -> None:
        """Let a second one go on with a token of its own, before the first has the one that follows."""
        twin = self.scheduler.fork(request, f"{request.request_id}+{self.num_steps}")
        twin.append_token(3)
        self.given[twin.request_id] = twin.num_tokens
        self.requests.append(twin)

    def check_end(self) -> None:
        assert not self.scheduler.running and not self.scheduler.waiting and not self.scheduler.swapped
        assert self.scheduler.manager.block_pool.num_used_blocks == 0
        for request in self.requests:
            assert request.status is not ABORTED or request.num_computed_tokens == 0  # it has no blocks
            if request.status is not ABORTED:
                start = self.given[request.request_id]
                given, chosen = request.token_ids[:start], request.token_ids[start:]
                assert chosen == expected_output(given, len(chosen)) and request.num_output_tokens == request.max_tokens


@settings(max_examples=drawn(150), deadline=None)
@given(load=st.fixed_dictionaries(LOADS))
def test_every_request_gets_its_tokens(load: dict[str, Any]) -> None:
    """Catches a block lost, counted twice or read before it was written, under any budget, order, watermark or policy,
    with forks, with clients that vanish, also in the middle of a step, and with steps that fail.
    """
    run = Load(load)
    scheduler, rng = run.scheduler, run.rng
    while run.goes_on:
        run.arrive()
        output = scheduler.schedule()
        chance = rng.random()
        if chance < 0.1:
            run.toy.fail(output)
            if chance < 0.05 and output.requests:
                scheduler.finish(rng.choice(output.requests), ABORTED)
            scheduler.roll_back(output)
        else:
            run.toy.execute(output)
            if chance < 0.15 and output.requests:
                scheduler.finish(rng.choice(output.requests), ABORTED)
            scheduler.update(output)
            check_books(scheduler)
            running = [request for request in output.requests if request in scheduler.running]
            done = [request for request in running if request.num_computed_tokens == request.num_tokens]
            if done and chance > 0.95 and len(scheduler.running) != scheduler.max_num_seqs:
                parent = rng.choice(done)
                if parent.num_output_tokens + 1 < parent.max_tokens:
                    run.fork(parent)
            run.toy.sample(output)
        check_books(scheduler)
        alive = [*scheduler.running, *scheduler.waiting, *scheduler.swapped]
        if alive and rng.random() < 0.05:
            scheduler.finish(rng.choice(alive), ABORTED)
            check_books(scheduler)
    run.check_end()


@settings(max_examples=drawn(150), deadline=None)
@given(load=st.fixed_dictionaries(LOADS | {"policy": st.just("fcfs"), "num_host_blocks": st.none()}))
def test_nobody_is_overtaken_and_everybody_waits_a_bounded_time(load: dict[str, Any]) -> None:
    """Catches a preempted request that goes to the back of the line, or an oldest one that loses its blocks: whoever
    runs was added before whoever waits, and each ends after at most the steps that it and earlier ones have tokens.
    """
    run = Load(load)
    scheduler, bounds, num_steps, last_bound = run.scheduler, {}, 0, 0
    while run.goes_on:
        before = len(run.coming)
        run.arrive()
        for request in run.requests[len(run.requests) - before : len(run.requests) - len(run.coming)]:
            last_bound = max(num_steps, last_bound) + request.num_prompt_tokens + request.max_tokens - 1
            bounds[request.request_id] = last_bound
        output = run.toy.step()
        num_steps += 1
        order = [int(name) for name in names([*scheduler.running, *scheduler.waiting])]
        assert order == sorted(order)
        for request in output.requests:
            assert num_steps <= bounds[request.request_id], request
    run.check_end()


@settings(max_examples=drawn(100), deadline=None)
@given(load=st.fixed_dictionaries(LOADS | {"policy": st.just("priority")}))
def test_the_most_urgent_is_admitted_first(load: dict[str, Any]) -> None:
    """Catches an order of arrival, or of preemption, where priorities count."""
    run = Load(load)
    while run.goes_on:
        run.arrive()
        before = {*run.scheduler.waiting, *run.scheduler.swapped}
        output = run.toy.step()
        admitted = before & set(output.requests)
        for request in (*run.scheduler.waiting, *run.scheduler.swapped):
            key = request.priority, request.arrival_time
            assert all((other.priority, other.arrival_time) <= key for other in admitted)
    run.check_end()


# --- faults at every place


class Faulty(KVCacheManager):
    """Refuses, or fails, when one of its methods is called for the n-th time."""

    def __init__(self, method: str, fails_at: int, error: Exception | None, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.method, self.fails_at, self.error, self.num_calls = method, fails_at, error, 0

    def meddle(self, method: str, *arguments: Any) -> Any:
        if method == self.method:
            self.num_calls += 1
            if self.num_calls == self.fails_at:
                if self.error is not None:
                    raise self.error
                return None
        return getattr(super(), method)(*arguments)

    def allocate_slots(self, *arguments: Any) -> Any:
        return self.meddle("allocate_slots", *arguments)

    def swap_out(self, *arguments: Any) -> Any:
        return self.meddle("swap_out", *arguments)

    def swap_in(self, *arguments: Any) -> Any:
        return self.meddle("swap_in", *arguments)


class Fault(Exception):
    pass


def run_with_fault(policy: str, preemption: str, caching: bool, **fault: Any) -> Faulty:
    """Serve six requests that begin alike with too few blocks, and go on after the fault as if nothing had been."""
    manager = Faulty(num_blocks=8, block_size=2, enable_prefix_caching=caching, num_host_blocks=12, **fault)
    scheduler = Scheduler(manager, policy=policy, preemption=preemption, max_num_batched_tokens=6)
    toy, requests = ToyExecutor(scheduler), []
    for number in range(6):
        requests.append(Request(str(number), [0] * (1 + number % 3), max_tokens=5 + number, priority=-(number % 3)))
        scheduler.add_request(requests[-1])
    num_steps = 0
    while scheduler.has_unfinished:
        num_steps += 1
        assert num_steps < 300, "this does not end"
        with suppress(Fault):
            toy.step()
        check_books(scheduler)
    assert manager.block_pool.num_used_blocks == 0
    for number, request in enumerate(requests):
        assert request.output_token_ids == expected_output([0] * (1 + number % 3), 5 + number)
    return manager


@pytest.mark.parametrize("error", [None, Fault()], ids=["refused", "failed"])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize(
    ("preemption", "method"),
    [("recompute", "allocate_slots"), ("swap", "allocate_slots"), ("swap", "swap_out"), ("swap", "swap_in")],
)
def test_blocks_refused_at_every_place(
    policy: str, preemption: str, caching: bool, method: str, error: Exception | None
) -> None:
    """Catches a request that is lost, or blocks that leak or are read unwritten, when one call is refused or fails."""
    num_calls = run_with_fault(policy, preemption, caching, method=method, fails_at=0, error=None).num_calls
    assert num_calls > (50 if method == "allocate_slots" else 2)
    for place in range(1, num_calls + 1):
        run_with_fault(policy, preemption, caching, method=method, fails_at=place, error=error)


# --- by hand


def test_the_last_one_is_preempted_and_stands_in_front() -> None:
    """Catches another victim, a victim that is told of a step or a count that it has lost, and somebody admitted in a
    step that preempted.
    """
    scheduler = make(num_blocks=6, block_size=2, caching=False, max_num_seqs=2)
    ada, bo, cy = (Request(name, [1, 2, 3, 4], max_tokens=6) for name in ("Ada", "Bo", "Cy"))
    for request in (ada, bo, cy):
        scheduler.add_request(request)
    toy = ToyExecutor(scheduler)
    assert names(toy.step().requests) == ["Ada", "Bo"]  # two blocks each; a fifth is free
    output = toy.step()
    assert output.num_scheduled_tokens == {"Ada": 1} and output.preempted == (bo,)
    assert (bo.status, bo.num_computed_tokens, bo.num_preemptions) == (RequestStatus.PREEMPTED, 0, 1)
    assert names(scheduler.running) == ["Ada"] and names(scheduler.waiting) == ["Bo", "Cy"]
    assert (output.total_num_scheduled_tokens, output.swap_out, output.swap_in) == (1, (), ())


def test_a_preempted_request_finds_its_own_blocks() -> None:
    """Catches blocks that a preempted request computes again though the cache still holds them, and a hit rate that
    counts what a request finds of itself: vLLM counts that apart.
    """
    scheduler = make(num_blocks=6, block_size=2)
    ada, bo = Request("Ada", [1, 2, 3, 4], max_tokens=3), Request("Bo", [5, 6, 7, 8], max_tokens=3)
    scheduler.add_request(ada)
    scheduler.add_request(bo)
    toy = ToyExecutor(scheduler)
    assert [toy.step().num_scheduled_tokens for _ in range(4)] == [
        {"Ada": 4, "Bo": 4},
        {"Ada": 1},  # Bo lost blocks 3 and 4, which still hold its tokens
        {"Ada": 1},
        {"Bo": 1},
    ]
    stats = scheduler.manager.stats
    assert bo.num_preemptions == 1 and (stats.requests, stats.queries, stats.hits) == (2, 8, 0)
    assert (stats.preempted_requests, stats.preempted_queries, stats.preempted_hits) == (1, 5, 4)


def test_what_can_never_fit_is_refused_at_once() -> None:
    """Catches a request that waits for ever, one that is refused though all its tokens but the last have a slot, and a
    refused one that stays behind.
    """
    scheduler = make(num_blocks=5, block_size=4)
    with pytest.raises(
        ValueError, match="'Ada' needs 5 blocks of 4 tokens for 10 tokens and up to 8 more, and there are 4"
    ):
        scheduler.add_request(Request("Ada", range(10), max_tokens=8))
    with pytest.raises(ValueError, match="needs 5 blocks"):
        scheduler.add_request(Request("Ada", range(17)))
    assert not scheduler.has_unfinished and not scheduler.waiting
    ada = Request("Ada", range(10), max_tokens=7)
    scheduler.add_request(ada)
    toy = ToyExecutor(scheduler)
    while scheduler.has_unfinished:
        toy.step()
    assert ada.output_token_ids == expected_output(range(10), 7)


def test_one_that_outgrows_all_blocks_is_told_and_the_others_go_on() -> None:
    """Catches steps without end for a request without ``max_tokens``, which nobody could refuse."""
    scheduler = make(num_blocks=4, block_size=2)
    ada, bo = Request("Ada", [1, 2]), Request("Bo", [1, 3], max_tokens=3)
    scheduler.add_request(ada)
    scheduler.add_request(bo)
    toy = ToyExecutor(scheduler)
    with pytest.raises(NoFreeBlocksError, match="'Ada' has grown to 7 tokens, which need 4 blocks, and there are 3"):
        for _ in range(30):
            toy.step()
    check_books(scheduler)
    scheduler.finish(ada, RequestStatus.FINISHED_ERROR)
    while scheduler.has_unfinished:
        toy.step()
    assert bo.output_token_ids == expected_output([1, 3], 3) and ada.status is RequestStatus.FINISHED_ERROR


def test_the_watermark_holds_back_who_waits_only() -> None:
    """Catches a watermark that holds back one that runs, or anybody while nothing runs."""
    scheduler = make(num_blocks=9, block_size=2, watermark=0.5)  # 4 blocks stay free
    ada, bo, cy = (Request(name, [number] * 6, max_tokens=9) for number, name in enumerate(("Ada", "Bo", "Cy")))
    scheduler.add_request(ada)
    scheduler.add_request(bo)
    toy = ToyExecutor(scheduler)
    assert names(toy.step().requests) == ["Ada"]  # 3 of 8 blocks; with 3 more, 2 would be left
    for _ in range(7):
        assert names(toy.step().requests) == ["Ada"]
    assert len(scheduler.manager.block_ids("Ada")) == 7  # below the watermark now
    scheduler.finish(ada, ABORTED)
    scheduler.add_request(cy)
    assert names(toy.step().requests) == ["Bo"]


def test_swapped_requests_come_back_before_anyone_is_admitted() -> None:
    """Catches a small request that slips in front of a swapped one, and a swapped one that computes anything again."""
    scheduler = make(num_blocks=6, block_size=2, caching=False, num_host_blocks=4, preemption="swap")
    ada, bo = Request("Ada", [1, 2, 3, 4], max_tokens=3), Request("Bo", [5, 6, 7, 8], max_tokens=3)
    scheduler.add_request(ada)
    scheduler.add_request(bo)
    toy = ToyExecutor(scheduler)
    toy.step()
    scheduler.add_request(cy := Request("Cy", [9], max_tokens=1))
    output = toy.step()
    assert output.preempted == (bo,) and [block_id for block_id, _ in output.swap_out] == [3, 4]
    assert names(scheduler.swapped) == ["Bo"] and bo.num_computed_tokens == 4
    assert toy.step().num_scheduled_tokens == {"Ada": 1}  # one block is free: Cy's, but Bo is first
    output = toy.step()
    assert output.num_scheduled_tokens == {"Bo": 1, "Cy": 1} and len(output.swap_in) == 2
    toy.step()
    assert bo.output_token_ids == expected_output([5, 6, 7, 8], 3) and cy.status.is_finished


def test_without_room_on_the_host_it_is_recomputed() -> None:
    """Catches a request lost between the device and a host that is full."""
    scheduler = make(num_blocks=6, block_size=2, caching=False, num_host_blocks=2, preemption="swap")
    ada, bo = Request("Ada", [1, 2, 3, 4], max_tokens=3), Request("Bo", [5, 6, 7, 8], max_tokens=3)
    scheduler.add_request(ada)
    scheduler.add_request(bo)
    toy = ToyExecutor(scheduler)
    toy.step()
    assert toy.step().preempted == (bo,) and names(scheduler.waiting) == ["Bo"] and not scheduler.swapped


def test_blocks_of_a_step_that_somebody_lost_are_forgotten() -> None:
    """Catches a block that is found though nobody computed it: its owner had tokens in the step and was preempted."""
    scheduler = make(num_blocks=5, block_size=2, policy="priority")
    ada = Request("Ada", [1, 2, 3], max_tokens=3, priority=1)
    bo = Request("Bo", [4, 5, 6, 7], max_tokens=3)
    scheduler.add_request(ada)
    toy = ToyExecutor(scheduler)
    toy.step()  # Ada holds 2 blocks and has 4 tokens
    scheduler.add_request(bo)
    scheduler.running.append(scheduler.waiting.popleft())  # as if Bo had been admitted beside it, with the other two
    scheduler.manager.allocate_slots(bo, 4)
    bo.num_computed_tokens, bo.status = 4, RequestStatus.RUNNING
    bo.append_token(8)
    output = scheduler.schedule()  # Ada's token fills a block; then Bo needs one more, and Ada is the less urgent
    assert output.preempted == (ada,) and output.num_scheduled_tokens == {"Bo": 1}
    blocks, num_hit_tokens = scheduler.manager.get_computed_blocks(Request("Cy", [*ada.token_ids, 9]))
    assert num_hit_tokens == 2 and len(blocks) == 1


def test_those_behind_a_victim_take_its_tokens_and_their_turn() -> None:
    """Catches a request that loses its turn because one in front of it was preempted, or a budget that stays spent."""
    scheduler = make(num_blocks=8, block_size=2, caching=False, policy="priority")
    toy = ToyExecutor(scheduler)
    ada, bo, cy = (
        Request(name, [1, 2, 3], max_tokens=9, priority=priority)
        for name, priority in zip("ABC", (2, 0, 1), strict=True)
    )
    for request in (ada, bo, cy):
        scheduler.add_request(request)
        toy.step()
    assert scheduler.running == [ada, bo, cy] and scheduler.manager.block_pool.num_free_blocks == 0
    scheduler.max_num_batched_tokens = 2  # Ada and Bo would take them; but Bo needs a block, and Ada is the victim
    output = toy.step()
    assert output.preempted == (ada,) and output.num_scheduled_tokens == {"B": 1, "C": 1}


def test_a_step_that_failed_leaves_nothing_to_be_found() -> None:
    """Catches blocks of a failed step in the cache: of one that was to compute them, of one that shared them at once,
    and of one whose client has gone meanwhile.
    """
    for gone in (None, 0, 1):
        scheduler = make(block_size=2)
        pair = [Request(name, [1, 2, 3, 4, 5], max_tokens=2) for name in ("Ada", "Bo")]
        for request in pair:
            scheduler.add_request(request)
        output = scheduler.schedule()
        assert output.num_scheduled_tokens == {"Ada": 5, "Bo": 1}
        if gone is not None:
            scheduler.finish(pair[gone], ABORTED)
        scheduler.roll_back(output)
        check_books(scheduler)
        left = [request for request in pair if not request.status.is_finished]
        assert list(scheduler.waiting) == left and all(request.num_preemptions == 1 for request in left)
        assert scheduler.manager.get_computed_blocks(Request("Cy", [1, 2, 3, 4, 5])) == ([], 0)


def test_a_long_prompt_leaves_tokens_to_others() -> None:
    """Catches a threshold that is not kept, or that is kept for one who is alone."""
    scheduler = make(max_num_batched_tokens=8, long_prefill_token_threshold=3)
    scheduler.add_request(Request("Ada", range(20), max_tokens=1))
    toy = ToyExecutor(scheduler)
    assert toy.step().num_scheduled_tokens == {"Ada": 8}
    scheduler.add_request(Request("Bo", range(30, 36), max_tokens=1))
    assert toy.step().num_scheduled_tokens == {"Ada": 3, "Bo": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "lifo"}, "policy is 'lifo'"),
        ({"preemption": "drop"}, "preemption is 'drop'"),
        ({"watermark": 1.0}, "watermark is 1.0"),
        ({"watermark": -0.1}, "watermark is -0.1"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"long_prefill_token_threshold": 0}, "long_prefill_token_threshold is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    """Catches a limit of 0 taken for none."""
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_misuse_is_refused_and_changes_nothing() -> None:
    """Catches a step counted twice or never, a name taken twice, and an end that is none."""
    scheduler = make(max_num_seqs=1)
    ada, bo = Request("Ada", [1, 2], max_tokens=2), Request("Bo", [3], max_tokens=2)
    scheduler.add_request(ada)
    with pytest.raises(ValueError, match="a request 'Ada' already"):
        scheduler.add_request(Request("Ada", [1]))
    begun = Request("Cy", [1])
    begun.num_computed_tokens = 1
    with pytest.raises(ValueError, match="has begun elsewhere"):
        scheduler.add_request(begun)
    with pytest.raises(ValueError, match="does not run here"):
        scheduler.fork(ada, "Twin")
    output = scheduler.schedule()
    with pytest.raises(RuntimeError, match="has not ended"):
        scheduler.schedule()
    with pytest.raises(RuntimeError, match="a step is under way"):
        scheduler.fork(ada, "Twin")
    for end in (scheduler.update, scheduler.roll_back):
        with pytest.raises(ValueError, match="not the step that was scheduled last"):
            end(SchedulerOutput((ada,), {"Ada": 2}))
    scheduler.update(output)
    with pytest.raises(ValueError, match="not the step that was scheduled last"):
        scheduler.update(output)
    assert ada.num_computed_tokens == 2
    with pytest.raises(ValueError, match="a request 'Ada' already"):
        scheduler.fork(ada, "Ada")
    with pytest.raises(ValueError, match="max_num_seqs is 1"):
        scheduler.fork(ada, "Twin")
    with pytest.raises(ValueError, match="status PREEMPTED is not the end"):
        scheduler.finish(ada, RequestStatus.PREEMPTED)
    with pytest.raises(ValueError, match=r"'Bo'.*was not added here"):
        scheduler.finish(bo, ABORTED)
    assert not scheduler.schedule().requests  # nobody has said how Ada goes on
    scheduler.finish(ada, ABORTED)
    scheduler.finish(ada, RequestStatus.FINISHED_STOPPED)
    assert ada.status is ABORTED and not scheduler.has_unfinished and not scheduler.requests
    scheduler.update(scheduler.schedule())  # nothing to do is no mistake


def test_one_that_has_nothing_to_compute_holds_nobody_up() -> None:
    """Catches a step that ends at a request whose next token has not been chosen yet."""
    scheduler = make()
    ada, bo = Request("Ada", [1, 2], max_tokens=2), Request("Bo", [3], max_tokens=2)
    scheduler.add_request(ada)
    scheduler.add_request(bo)
    scheduler.update(scheduler.schedule())
    bo.append_token(4)
    assert scheduler.schedule().num_scheduled_tokens == {"Bo": 1}
