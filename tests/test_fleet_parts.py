"""The parts of a fleet: its caches, its routers, its requests and its histogram."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.studies.fleet import (
    ExponentialServer,
    Failure,
    Fleet,
    FleetRequest,
    LogHistogram,
    PrefixEventsRouter,
    PrefixLoadRouter,
    Server,
    SessionRouter,
    chat_requests,
    log_requests,
    simulate,
)
from pagedattn_lab.studies.fleet.cache import ReplicaCache
from pagedattn_lab.studies.hit_rates import BlockCache
from pagedattn_lab.workloads import TraceRequest
from pagedattn_lab.workloads.conversations import chat, hashed
from tests.helpers.draws import drawn


@settings(max_examples=drawn(300), deadline=None)
@given(
    num_blocks=st.none() | st.integers(1, 14),
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 9), max_size=9), st.integers(0, 3)) | st.tuples(
            st.integers(0, 6).map(lambda n: list(range(n))), st.integers(0, 3)
        ),
        max_size=60,
    ),
)  # fmt: skip
def test_cache_equals_the_one_of_hits(num_blocks: int | None, prompts: list[tuple[list[int], int]]) -> None:
    """Catches another block found, kept or evicted than in ``hits``, with ids in any order, twice in a prompt or in
    several blocks; and a change that is not told, or told twice.
    """
    told: set[int] = set()

    def on_change(evicted: list[int], stored: list[int]) -> None:
        assert told.issuperset(evicted) and len(set(evicted)) == len(evicted)
        told.difference_update(evicted)
        assert told.isdisjoint(stored) and len(set(stored)) == len(stored)
        told.update(stored)

    expected, cache = BlockCache(num_blocks, 4), ReplicaCache(num_blocks, 4, on_change)
    for ids, rest in prompts:
        num_tokens = 4 * len(ids) + rest
        if not num_tokens:
            continue
        assert cache.fits(num_tokens) == (num_blocks is None or math.ceil(num_tokens / 4) <= num_blocks)
        if cache.fits(num_tokens):
            seen = cache.num_hits(ids, (num_tokens - 1) // 4)
            assert cache.serve(num_tokens, ids) == expected.serve(num_tokens, ids) == 4 * seen
            assert (len(cache), cache.evictions) == (len(expected), expected.evictions)
            assert sorted(cache.hash_ids()) == sorted(told) == sorted(expected._holders)


def test_only_sessions_of_a_failed_replica_move() -> None:
    """Catches a hash modulo the number of replicas, with which nearly all sessions move, and one heir for all."""
    fleet = Fleet(10, 5, 4, random.Random(0))
    router = SessionRouter()
    router.begin(fleet, random.Random(0))

    def homes() -> list[int]:
        return [router.choose(FleetRequest(0.0, 1, 1, (), session), fleet) for session in range(5000)]

    before = homes()
    assert max(Counter(before).values()) < 1.4 * 500 < 2 * min(Counter(before).values())
    fleet.alive ^= 1 << 3
    after = homes()
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old for old, _ in moved} == {3} and len(moved) == before.count(3)
    assert len({new for _, new in moved}) > 5
    fleet.alive ^= 1 << 3
    assert homes() == before


FAILURES = [Failure(100.0, 1, 50.0), Failure(200.0, 0)]


def test_without_delay_and_loss_events_tell_all() -> None:
    """Catches an index of events that learns too late, forgets, or does not forget a failed replica."""
    first, second = (
        simulate(islice(chat_requests(num_active=50, rate=8.0), 1500), 4, which, 400, 16, failures=FAILURES)
        for which in (PrefixEventsRouter(0, 0), "prefix")
    )
    assert dataclasses.replace(first, router="prefix") == second
    late = simulate(islice(chat_requests(num_active=50, rate=8.0), 1500), 4, PrefixEventsRouter(5.0, 0.1), 400, 16)
    assert late.num_finished == 1500 and late.hit_tokens != second.hit_tokens


def test_what_a_failed_replica_sent_does_not_count() -> None:
    """Catches an event that comes after its replica has failed, and tells of blocks that went with it; a removal of
    what the index never knew; and a lost removal that stays in the index for ever.
    """
    fleet, router = Fleet(2, 3, 4, random.Random(0)), PrefixEventsRouter(delay_s=2.0, loss=0.0)
    router.begin(fleet, random.Random(0))

    def depth(now: float, *hash_ids: int) -> int:
        fleet.now = now
        router.choose(FleetRequest(now, 1, 1, (), 0), fleet)  # learns what has come by now
        return router.levels(FleetRequest(now, 4 * len(hash_ids) + 1, 1, hash_ids, 0), fleet)[-1][0]

    router.stored(0, [2, 1], 0.0)
    assert (depth(1.0, 1, 2), depth(2.0, 1, 2)) == (0, 2)
    router.stored(0, [3], 2.0)
    router.cleared(0, [3, 2, 1], 3.0)
    assert (depth(3.0, 1), depth(4.0, 3)) == (0, 0)
    router.stored(0, [4, 5, 6], 4.0)
    router.removed(0, [9], 4.0)  # that it was stored has never come
    router.stored(0, [7], 5.0)  # and that 4 was removed never comes
    assert (depth(6.5, 4), depth(7.0, 4), depth(7.0, 5, 6, 7)) == (1, 0, 3)


class OneRemovalIsLost(PrefixEventsRouter):
    """Loses one event, and compares what it knows with what is cached."""

    def __init__(self, which: int) -> None:
        super().__init__(delay_s=0.0, loss=0.0)
        self.which, self.removals = which, 0
        self.depths: list[tuple[int, int]] = []  # of a prompt in the index, and in the cache
        self.differences: list[tuple[int, int]] = []  # ids in the index alone, and in the cache alone

    def removed(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        self.removals += 1
        if self.removals != self.which:
            super().removed(replica, hash_ids, now)

    def choose(self, request: FleetRequest, fleet: Fleet) -> int:  # type: ignore[override]
        super().choose(request._replace(hash_ids=()), fleet)  # learns what has come by now
        known, cached = self._known[0].keys(), set(fleet.caches[0].hash_ids())
        self.depths.append((self.levels(request, fleet)[-1][0], fleet.hit_blocks(0, request)))
        self.differences.append((len(known - cached), len(cached - known)))
        return super().choose(request, fleet)


@pytest.mark.parametrize("which", range(1, 9))
def test_a_lost_removal_does_not_cost_the_blocks_that_are_used_most(which: int) -> None:
    """Catches an index that forgets what was stored first, though each prompt finds it in the cache, and one that never
    forgets a block whose removal was lost.
    """
    router = OneRemovalIsLost(which)
    prompts = [(1, 2, 10 * turn, 10 * turn + 1) for turn in range(1, 30)]  # the first two blocks are in every prompt
    requests = [FleetRequest(10.0 * turn, 16, 1, prompt, turn) for turn, prompt in enumerate(prompts)]
    simulate(requests, 1, router, num_blocks=8, block_size=4)
    assert router.removals > which + 10
    assert router.depths == [(0, 0)] + [(2, 2)] * 28
    assert set(router.differences) == {(0, 0)}  # a full index forgets at once what a full cache did


def test_equals_are_drawn_alike() -> None:
    """Catches a replica that gets, beside its own share, that of those in front of it that are not in the set."""
    for num_replicas, among in ((8, 0b11100011), (3, 0b101), (70, 1 << 69 | 0b1001), (40, 2**40 - 1 - 0xFF00)):
        fleet, members = Fleet(num_replicas, 5, 4, random.Random(0)), among.bit_count()
        drawn = Counter(fleet.least_loaded(among) for _ in range(2000 * members))
        assert drawn.total() == 2000 * members and all(among >> replica & 1 for replica in drawn)
        assert all(
            abs(drawn[replica] - 2000) < 5 * 2000**0.5 for replica in range(num_replicas) if among >> replica & 1
        )


@settings(max_examples=drawn(100), deadline=None)
@given(data=st.data(), num_replicas=st.integers(1, 12))
def test_least_loaded_is_least(data: st.DataObject, num_replicas: int) -> None:
    """Catches a set of replicas by load that is not kept up, and one that is never drawn among equals."""
    fleet, loads = Fleet(num_replicas, 5, 4, random.Random(0)), [0] * num_replicas
    for _ in range(data.draw(st.integers(1, 30))):
        replica = data.draw(st.integers(0, num_replicas - 1))
        change = data.draw(st.integers(-loads[replica], 3))
        fleet.change_load(replica, change)
        loads[replica] += change
        among = data.draw(st.integers(1, 2**num_replicas - 1))
        members = [replica for replica in range(num_replicas) if among >> replica & 1]
        assert loads[fleet.least_loaded(among)] == min(loads[member] for member in members)
    assert [fleet.load(replica) for replica in range(num_replicas)] == loads
    best = {replica for replica in range(num_replicas) if loads[replica] == min(loads)}
    assert {fleet.least_loaded(fleet.alive) for _ in range(500)} == best


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_cheapest_replica_is_chosen(weight: float) -> None:
    """Catches an index that differs from the caches, a level that leaves a replica out, and a replica that costs more
    than another.
    """

    class Checked(PrefixLoadRouter):
        num_checks = 0
        tokens: list[int]

        def choose(self, request: FleetRequest, fleet: Fleet) -> int:  # type: ignore[override]
            levels = self.levels(request, fleet)
            depths = [fleet.hit_blocks(replica, request) for replica in range(4)]
            assert levels == [
                (depth, sum(1 << replica for replica in range(4) if depths[replica] >= depth))
                for depth in sorted({0, *depths})
                if depth or 0 in depths or not any(depths)
            ]
            self.num_checks += len(levels) > 1
            per_request = sum(self.tokens) / max(1, len(self.tokens))
            costs = [
                request.prompt_len - 16 * depths[replica] + weight * fleet.load(replica) * per_request
                for replica in range(4)
            ]
            replica = super().choose(request, fleet)
            assert costs[replica] == pytest.approx(min(costs))
            self.tokens.append(request.prompt_len - 16 * depths[replica])
            return replica

    router = Checked(weight)
    router.tokens = []
    simulate(islice(chat_requests(num_active=50, rate=8.0), 1000), 4, router, 400, 16)
    assert router.num_checks > 100


def test_chats_are_those_of_chapter_6() -> None:
    """Catches other conversations than those of ``chat``, ids that do not tell the same prefixes, and a session that
    goes on after its conversation or changes within it.
    """
    more = {"num_active": 20, "mean_turns": 8.0, "longest": 2000}
    names: dict[int, int] = {}
    begun: dict[int, tuple[int, ...]] = {}
    talks: dict[str, int] = {}  # a conversation goes by its first question
    prompts = list(islice(chat(5, **more), 3000))  # type: ignore[arg-type]
    expected = hashed(prompts, 16)
    mine = chat_requests(5, rate=3.0, **more)  # type: ignore[arg-type]
    last = None
    for prompt, want, request in zip(prompts, expected, mine, strict=False):
        assert talks.setdefault(prompt.pieces[1].name, request.session) == request.session
        assert (request.prompt_len, request.output_len) == (want.prompt_len, want.output_len)
        full = want.hash_ids[: want.prompt_len // 16]
        assert len(full) == len(request.hash_ids)
        for theirs, ours in zip(full, request.hash_ids, strict=True):
            assert names.setdefault(theirs, ours) == ours
        so_far = begun.get(request.session)
        assert so_far is None or request.hash_ids[: len(so_far)] == so_far
        begun[request.session] = request.hash_ids
        last = request
    assert len(set(names.values())) == len(names)
    assert last is not None and 3000 / last.arrival == pytest.approx(3.0, rel=0.1)
    assert len(set(talks.values())) == len(talks)


def test_sessions_are_told_from_hashes() -> None:
    """Catches conversations that are one for a system prompt in common, and turns that are not one conversation."""
    chats = list(islice(chat_requests(num_active=30, system_len=64), 1000))
    log = [TraceRequest(*request[:4]) for request in chats]
    told: dict[int, set[int]] = {}
    for request, guessed in zip(chats, log_requests(log, 16), strict=True):
        assert guessed[:4] == request[:4]
        told.setdefault(request.session, set()).add(guessed.session)
    assert sum(len(sessions) == 1 for sessions in told.values()) > 0.95 * len(told)
    assert len(set.union(*told.values())) > 0.95 * len(told)
    with pytest.raises(ValueError, match="request 1 has no hash_ids"):
        list(log_requests([TraceRequest(0.0, 20, 1)], 16))


@settings(max_examples=drawn(100), deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_within_half_a_percent(durations: list[float], level: float) -> None:
    """Catches a rank that is off by one, and buckets that are too wide."""
    histogram = LogHistogram()
    for duration in durations:
        histogram.add(duration)
    exact = sorted(durations)[math.ceil(level * len(durations)) - 1]
    assert histogram.quantile(level) == pytest.approx(exact, rel=0.00501)
    assert histogram.mean == pytest.approx(sum(durations) / len(durations))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Server(max_num_batched_tokens=10), "max_num_batched_tokens is 10"),
        (lambda: Server(max_num_seqs=0), "max_num_seqs"),
        (lambda: ExponentialServer(0.0), "mean_s is 0.0"),
        (lambda: PrefixEventsRouter(-1.0), "delay_s is -1.0"),
        (lambda: PrefixEventsRouter(0.0, 1.5), "loss is 1.5"),
        (lambda: PrefixLoadRouter(-1.0), "weight is -1.0"),
        (lambda: SessionRouter(0), "num_points"),
        (lambda: chat_requests(rate=0.0), "rate of 0.0"),
        (lambda: chat_requests(mean_turns=0.5), "mean_turns is 0.5"),
        (lambda: log_requests([], block_size=0), "block_size"),
    ],
)
def test_refusals_name_what_is_wrong(make: object, message: str) -> None:
    """Catches a setting that makes no sense."""
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
