"""Exercises of chapter 11 agree with the library, and their promises can be kept in more than one way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.exercises import ch11, ch11_melting, ch11_router
from pagedattn_lab.exercises.ch11_fleet import (
    BLOCK_SIZE,
    Traffic,
    by_session,
    chase,
    chase_first,
    least_loaded,
    round_robin,
    weigh,
)
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import RequestLimits, SlidingWindowSpec
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.request import Request
from pagedattn_lab.studies.fleet import FleetRequest
from pagedattn_lab.studies.hit_rates import BlockCache
from tests.helpers.chapters import CHAPTERS
from tools import notebooks

CHOOSE = replace(ch11.choose, number="", seconds=60)  # not recorded; a machine may be busy with other tests
LOADS = [case.arguments for case in ch11.choose.cases()]


# --- 1: a window's page table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "block_size", "window", "table"),
    [
        (0, 4, 1, [7, 8, 9]),
        (10, 4, 8, [7, 8, 9]),
        (11, 4, 8, [0, 8, 9]),
        (11, 4, 1, [0, 0, 9]),
        (8, 4, 2, [0, 8, 9]),
        (8, 4, 1, [0, 0, 9]),
    ],
)
def test_a_window_by_hand(num_tokens: int, block_size: int, window: int, table: list[int]) -> None:
    """Catches a reference and an oracle that agree with each other and not with a count by hand."""
    for answer in (ch11.window_table.reference, ch11.window_table.oracle):
        assert answer is not None
        assert answer(num_tokens, block_size, window, [7, 8, 9]) == table


@settings(deadline=None)
@given(num_tokens=st.integers(0, 200), block_size=st.integers(1, 17), window=st.integers(1, 70))
def test_a_window_holds_what_chapter_10_budgets(num_tokens: int, block_size: int, window: int) -> None:
    """Catches a page table that holds more blocks than vLLM budgets for a window, or fewer than its tokens fill."""
    blocks = list(range(1, num_tokens // block_size + 2))
    held = sum(block > 0 for block in ch11.window_table.reference(num_tokens, block_size, window, blocks))
    spec = SlidingWindowSpec(block_size, 1, 1, "bfloat16", sliding_window=window)
    assert held <= spec.max_blocks_per_request(RequestLimits(num_tokens + 1, 1))
    assert held * block_size >= min(window, num_tokens + 1)


@settings(deadline=None)
@given(num_tokens=st.integers(1, 60), block_size=st.integers(1, 8), window=st.integers(1, 30), steps=st.integers(1, 4))
def test_a_window_is_that_of_the_librarys_manager(num_tokens: int, block_size: int, window: int, steps: int) -> None:
    """Catches a rule that is not vLLM's: the manager, which is compared with vLLM's own, has another page table."""
    spec = SlidingWindowSpec(block_size, 1, 1, "bfloat16", sliding_window=window)
    manager = GroupedKVCacheManager([KVCacheGroup(("layer",), (spec,))], num_blocks=200)
    request, handed_out = Request("Ada", range(num_tokens)), []
    for step in range(steps):  # a prompt in several parts, then the next token
        done, until = request.num_computed_tokens, num_tokens * (step + 1) // steps
        if until > done:
            (new,) = manager.allocate_slots(request, until - done)
            handed_out += [block.block_id for block in new]
            request.num_computed_tokens = until
    request.append_token(0)
    (new,) = manager.allocate_slots(request, 1)
    handed_out += [block.block_id for block in new]
    (table,) = manager.block_ids("Ada")
    for answer in (ch11.window_table.reference, ch11.window_table.oracle):
        assert answer is not None and answer(num_tokens, block_size, window, handed_out) == table


def test_a_block_for_tokens_to_come_is_not_said_to_be_read() -> None:
    """Catches a reason that is false: the next token reads nothing of a block that is ahead of it."""
    window = replace(ch11.window_table, number="")
    verdict = window.grade(window.wrong["take away blocks for tokens to come, too"])
    assert "it is for tokens to come: the next one is token " in verdict.message
    assert "are read" not in verdict.message


# --- 2: a replica that melts ------------------------------------------------------------------------------------------


def test_causes_that_a_log_tells_are_those_of_its_router() -> None:
    """Catches a definition of causes that does not tell routers apart: what each router does must be what is found."""
    found: dict[str, Counter[str]] = {}
    routers = {"chase": chase, "first": chase_first, "in turn": None, "weigh": weigh(3)}
    for name, router in routers.items():
        for seed in range(12):
            traffic = Traffic(3, 60, 60, 9, 0.8, 1, seed)
            log = ch11_melting.log_of(traffic, router or round_robin())
            found.setdefault(name, Counter())[ch11.melting_replica.reference(log, 3)["cause"]] += 1
    assert found["weigh"] == {"load": 12}
    assert found["chase"]["hits"] >= 8 and set(found["chase"]) <= {"hits", "ties"}
    assert found["in turn"]["neither"] >= 7
    assert set(found["first"]) <= {"hits", "ties"}


def test_every_finding_occurs() -> None:
    """Catches cases in which an answer that never says one of the causes is right, or always blames one replica."""
    found = [ch11.melting_replica.reference(*case.arguments) for case in ch11.melting_replica.cases()]
    causes = Counter(finding["cause"] for finding in found)
    assert set(causes) == {"hits", "ties", "neither", "load"} and min(causes.values()) >= 3, causes
    assert len({finding["replica"] for finding in found}) >= 3
    assert sum(finding["replica"] > 0 for finding in found) >= 8


def test_by_hand_cases_are_what_they_are_said_to_be() -> None:
    """Catches a case whose sentence tells another story than its log."""
    found = [ch11.melting_replica.reference(*case.arguments) for case in ch11_melting._melting_cases()[:11]]
    assert [finding["cause"] for finding in found] == [
        "load", "hits", "load", "hits", "ties", "load", "neither", "hits", "hits", "hits", "neither",
    ]  # fmt: skip
    assert [finding["drawn"] for finding in found[:4]] == [[], [1], [], [2]]
    assert found[9] == {"replica": 0, "drawn": [0, 1, 2, 3], "prefix": 4, "cause": "hits"}


def test_a_prefix_draws_requests_to_one_replica() -> None:
    """Catches an example in the chapter that does not show what the exercise is about."""
    log = ch11_melting.log_of(ch11_melting._EXAMPLE, chase)
    finding = ch11.melting_replica.reference(log, 3)
    assert finding["cause"] == "hits" and finding["prefix"] == 1 and len(finding["drawn"]) >= 5
    assert ch11.example_in_words().count("to replica 0") > len(log) / 2


def test_the_cause_is_judged_by_who_has_most() -> None:
    """Catches cases in which the cheapest other replica is always the one with most hits."""
    melting = replace(ch11.melting_replica, number="")
    verdict = melting.grade(
        melting.wrong["compare the hits with those of the cheapest other replica, and not with the most"]
    )
    assert verdict.passed is False and "“cause”: " in verdict.message


# --- 3: a latent's budget ---------------------------------------------------------------------------------------------


def test_latents_of_published_models() -> None:
    """Catches widths that are not those of the models: DeepSeek-V3 beside Llama-3.1-70B, on 1 GPU and on 8."""
    cases = [case.arguments for case in ch11.latent_budget.cases()]
    deepseek, llama = next(case[:2] for case in cases if case[0]["num_hidden_layers"] == 61)
    of_latents = KVShape(61, 1, 512 + 64, "bfloat16", value_dim=512, latent=True).bytes_per_token
    for num_gpus in (1, 8):
        of_heads = KVShape(80, 8 // num_gpus, 128, "bfloat16").bytes_per_token
        found = ch11.latent_budget.reference(deepseek, llama, num_gpus, 2**34, 64)
        assert found["bytes_per_token"] == (of_latents, of_heads)
        assert found["even_at"] == 8
        assert (found["tokens"][0] > found["tokens"][1]) == (num_gpus == 1)


def test_budgets_of_all_kinds_occur() -> None:
    """Catches cases that are all of one outcome."""
    found = [ch11.latent_budget.reference(*case.arguments) for case in ch11.latent_budget.cases()]
    assert sum(budget["even_at"] is None for budget in found) >= 5
    assert len({budget["even_at"] for budget in found}) >= 5
    assert sum(budget["tokens"][0] < budget["tokens"][1] for budget in found) >= 10
    assert sum(budget["tokens"][0] > budget["tokens"][1] for budget in found) >= 10


# --- 4: a router ------------------------------------------------------------------------------------------------------


class OneByOne:
    """A replica of the small fleets again, from the texts: one request at a time, a block a second."""

    def __init__(self, num_blocks: int) -> None:
        self.cache = BlockCache(num_blocks, BLOCK_SIZE)
        self.waiting: list[FleetRequest] = []
        self.ends: list[float] = []
        self.hit_tokens = 0

    def serve_until(self, now: float) -> None:
        """Begin with everybody whose turn comes before ``now``."""
        while self.waiting and (begin := max([self.waiting[0].arrival, *self.ends[-1:]])) < now:
            request = self.waiting.pop(0)
            hit_tokens = self.cache.serve(request.prompt_len, request.hash_ids)
            computed = request.prompt_len - hit_tokens + request.output_len - 1  # the prompt gives the first token
            self.ends.append(begin + computed / BLOCK_SIZE)
            self.hit_tokens += hit_tokens

    def load(self, now: float) -> int:
        return len(self.waiting) + sum(end >= now for end in self.ends)


@pytest.mark.parametrize("router", [chase, least_loaded, by_session, weigh(2)])
@pytest.mark.parametrize("seed", range(4))
def test_a_replica_serves_one_request_at_a_time_and_a_block_a_second(router: Callable[..., int], seed: int) -> None:
    """Catches a clock that is not the one of the texts: prices in blocks would be prices in something else."""
    traffic = Traffic(3, 40 + 10 * seed, 80, 9, 0.7, 1 + seed % 3, seed)
    replicas = [OneByOne(traffic.num_blocks) for _ in range(traffic.num_replicas)]

    def watched(request: FleetRequest, fleet: Any) -> int:
        for replica in replicas:
            replica.serve_until(request.arrival)
        loads = [replica.load(request.arrival) for replica in replicas]
        assert [fleet.load(at) for at in range(fleet.num_replicas)] == loads
        chosen = router(request, fleet)
        replicas[chosen].waiting.append(request)
        return chosen

    report = traffic.serve(watched)
    for replica in replicas:
        replica.serve_until(math.inf)
    assert report.num_finished == traffic.num_requests
    assert report.hit_tokens == sum(replica.hit_tokens for replica in replicas)
    assert report.seconds == max(replica.ends[-1] for replica in replicas if replica.ends)


@pytest.mark.parametrize("price", [1.5, 2, 3, 4, 5, 6])
def test_promises_can_be_kept_at_many_prices(price: float) -> None:
    """Catches a grader that wants one price, where many keep both promises."""
    assert CHOOSE.grade(weigh(price)).passed


def within_reach(request: Any, fleet: Any) -> int:
    """Most hits among the replicas that are not much busier than the idlest."""
    loads = [fleet.load(at) for at in range(fleet.num_replicas)]
    near = [at for at, load in enumerate(loads) if load <= min(loads) + 2]
    return max(near, key=lambda at: (fleet.hit_blocks(at, request), -loads[at]))


def unless_full(request: Any, fleet: Any) -> int:
    """Most hits, unless there are five requests already: then the idlest."""
    best = chase(request, fleet)
    return best if fleet.load(best) < 5 else least_loaded(request, fleet)


@pytest.mark.parametrize("router", [within_reach, unless_full])
def test_promises_can_be_kept_in_several_ways(router: Callable[..., int]) -> None:
    """Catches a grader that wants a sum of hits and load, where a limit on the queue does as well."""
    assert CHOOSE.grade(router).passed
    assert CHOOSE.grade(lambda *asked: np.int64(router(*asked))).passed


def test_each_promise_is_broken_by_who_looks_at_one_thing_only() -> None:
    """Catches loads in which load alone, or hits alone, would do; and routers by session that keep them everywhere."""
    melting = 0
    for traffic, promised in LOADS:
        chasing = traffic.serve(chase)
        assert max(replica.most_load for replica in chasing.replicas) >= 2 * ch11_router.MOST
        for router in (round_robin(), least_loaded, "least-loaded", "two-choices"):
            assert traffic.serve(router).hit_tokens < 0.95 * promised * BLOCK_SIZE
        melting += max(replica.most_load for replica in traffic.serve(by_session).replicas) > ch11_router.MOST
    assert melting >= 5


def test_the_librarys_router_keeps_both_promises() -> None:
    """Catches promises that the router which the chapter recommends does not keep."""
    for traffic, promised in LOADS:
        report = traffic.serve("prefix-load")
        assert report.hit_tokens >= 1.02 * promised * BLOCK_SIZE
        assert max(replica.most_load for replica in report.replicas) <= ch11_router.MOST - 1


@pytest.mark.parametrize("replica", [-1, 7, 1.0, None, "0", [0]])
def test_a_replica_that_is_none_is_said(replica: Any) -> None:
    """Catches an answer of another kind that ends in an error of the fleet's."""
    verdict = CHOOSE.grade(lambda request, fleet: replica)
    assert verdict.passed is False and ("replicas are 0 to 2" in verdict.message or replica is None), verdict


def test_a_router_needs_only_what_the_chapter_names() -> None:
    """Catches a reference that uses something that other fleets do not have."""
    fleet = SimpleNamespace(num_replicas=2, load=lambda replica: 0, hit_blocks=lambda replica, request: replica)
    for answer in (ch11.choose.reference, *ch11.choose.wrong.values()):
        assert answer(SimpleNamespace(hash_ids=(1, 2), prompt_len=40, session=3), fleet) in (0, 1)


def test_the_router_of_the_chapter_keeps_both_promises() -> None:
    """Catches loads on which what section 7 has readers run is refused, with what it remembers or afresh."""
    path = next(path for path in CHAPTERS if path.stem.startswith("11_"))
    (cell,) = (cell for cell in notebooks.code_cells(notebooks.read(path)) if cell.id == "mine")
    namespace: dict[str, Any] = {}
    exec(cell.source, namespace)
    router = namespace["Mine"]()
    for _ in range(3):
        verdict = CHOOSE.grade(router.choose)
        assert verdict.passed, verdict
    for traffic, promised in LOADS:
        report = traffic.serve(namespace["Mine"]().choose)
        assert report.hit_tokens >= promised * BLOCK_SIZE
        assert max(replica.most_load for replica in report.replicas) <= ch11_router.MOST


@pytest.mark.parametrize("router", [weigh(1), weigh(8), by_session])
def test_a_price_must_be_of_some_size(router: Callable[..., int]) -> None:
    """Catches loads that any price passes, or a home for each conversation."""
    assert CHOOSE.grade(router).passed is False


def test_who_never_looks_at_hits_is_not_told_to_follow_them() -> None:
    """Catches a mistake found by its result: a fixed replica melts as the first one with most hits does."""
    for replica in (0, 1):
        verdict = CHOOSE.grade(lambda request, fleet, replica=replica: replica)
        assert verdict.passed is False and "melts" in verdict.message
        assert "follow hits" not in verdict.message and "cached" not in verdict.message, verdict
        assert ("You seem to send everybody to the first replica." in verdict.remarks) == (replica == 0)
    verdict = CHOOSE.grade(lambda request, fleet: chase(request, fleet))
    assert "You seem to follow hits alone." in verdict.remarks and "Blocks that are cached" in verdict.message


def test_a_fleet_cannot_be_changed() -> None:
    """Catches a fleet whose caches an answer may fill, and one whose numbers it may set."""

    def fills(request: Any, fleet: Any) -> int:
        for cache in fleet.caches:
            cache.serve(request.prompt_len, request.hash_ids)
        return least_loaded(request, fleet)

    def sets(request: Any, fleet: Any) -> int:
        fleet.block_size = 1
        return weigh(3)(request, fleet)

    assert CHOOSE.grade(fills).passed is False and CHOOSE.grade(sets).passed is False
    seen: list[Any] = []
    CHOOSE.grade(lambda request, fleet: seen.append(fleet) or 0)
    public = {name for name in dir(seen[0]) if not name.startswith("_")}
    assert public == {"num_replicas", "block_size", "load", "hit_blocks", "is_alive"}
