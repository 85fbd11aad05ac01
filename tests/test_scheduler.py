"""The scheduler by itself: random loads on a toy model, faults at every step, and examples worked out by hand.

Its order and its blocks are compared with vLLM's own scheduler in ``test_vllm_scheduler.py``.
"""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus
from tests.helpers.toy_executor import ToyExecutor, check_books, expected_output

ABORTED = RequestStatus.FINISHED_ABORTED


def make(num_blocks: int = 9, block_size: int = 4, caching: bool = True, **options: Any) -> Scheduler:
    return Scheduler(KVCacheManager(num_blocks, block_size, caching), **options)


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
            max_num_batched_tokens=load["budget"],
            max_num_seqs=load["max_num_seqs"],
            policy=load["policy"],
            watermark=load["watermark"],
            long_prefill_token_threshold=load["threshold"],
        )
        self.toy = ToyExecutor(self.scheduler)
        capacity = (load["num_blocks"] - 1) * load["block_size"]
        self.requests = draw_requests(self.rng, self.rng.randint(1, 9), capacity)
        self.prompts = {request.request_id: list(request.token_ids) for request in self.requests}
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

    def check_end(self) -> None:
        assert not self.scheduler.running and not self.scheduler.waiting and not self.scheduler.swapped
        assert self.scheduler.manager.block_pool.num_used_blocks == 0
        for request in self.requests:
            if request.status is not ABORTED:
                prompt = self.prompts[request.request_id]
                assert request.output_token_ids == expected_output(prompt, request.max_tokens), request


@settings(max_examples=150, deadline=None)
@given(load=st.fixed_dictionaries(LOADS))
def test_every_request_gets_its_tokens(load: dict[str, Any]) -> None:
    """Catches a block lost, counted twice or read before it was written, under any budget, order, watermark or policy,
    with clients that vanish, also in the middle of a step, and with steps that fail.
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
            run.toy.sample(output)
        check_books(scheduler)
        alive = [*scheduler.running, *scheduler.waiting, *scheduler.swapped]
        if alive and rng.random() < 0.05:
            scheduler.finish(rng.choice(alive), ABORTED)
            check_books(scheduler)
    run.check_end()


@settings(max_examples=150, deadline=None)
@given(load=st.fixed_dictionaries(LOADS | {"policy": st.just("fcfs")}))
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
