"""A fleet taken step by step: slow, and obvious."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pagedattn_lab.hardware import StepTime
from pagedattn_lab.studies.fleet import Failure, FleetRequest
from pagedattn_lab.studies.hit_rates import BlockCache


@dataclass
class Served:
    """What became of one request.

    Attributes:
        number: requests count from 0.
        request: which.
        sent_to: replicas, one after the other.
        found: tokens found each time that it began.
        left: tokens of its prompt to be computed; ``None``: it has not begun.
        given: tokens that it got since it began.
        first_token: when it got its first one.
        end: when it got its last one.
    """

    number: int
    request: FleetRequest
    sent_to: list[int] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    left: int | None = None
    given: int = 0
    first_token: float | None = None
    end: float | None = None


@dataclass
class Replica:
    """Its cache, its requests in the order in which they were sent, and the step that it takes."""

    cache: BlockCache
    jobs: list[Served] = field(default_factory=list)
    alive: bool = True
    step_end: float | None = None
    chunks: dict[int, int] = field(default_factory=dict)
    busy: float = 0.0
    step_start: float = 0.0


def serve_fleet(
    requests: Sequence[FleetRequest],
    num_replicas: int,
    place: Callable[[FleetRequest, list[int], list[bool]], int],
    num_blocks: int,
    block_size: int,
    step_time: StepTime,
    budget: int,
    seats: int,
    failures: Sequence[Failure] = (),
) -> tuple[list[Served], list[float]]:
    """Take every step of every replica by itself.

    Args:
        place: which replica gets a request, given the loads and who is alive.

    Returns:
        What became of each request, and how long each replica worked.
    """
    replicas = [Replica(BlockCache(num_blocks, block_size)) for _ in range(num_replicas)]
    all_served = [Served(number, request) for number, request in enumerate(requests)]
    coming, failing, homeless = list(all_served), sorted(failures), []
    back: list[tuple[float, int]] = []

    def send(job: Served) -> None:
        alive = [replica.alive for replica in replicas]
        if not any(alive):
            homeless.append(job)
            return
        which = place(job.request, [len(replica.jobs) for replica in replicas], alive)
        job.sent_to.append(which)
        replicas[which].jobs.append(job)

    while True:
        moments = [replica.step_end for replica in replicas if replica.step_end is not None]
        moments += [job.request.arrival for job in coming[:1]]
        if moments or homeless:
            moments += [failure.time for failure in failing] + [time for time, _ in back]
        if not moments:
            return all_served, [replica.busy for replica in replicas]
        now = min(moments)
        for time, which in sorted(back):
            if time == now:
                back.remove((time, which))
                replicas[which].alive = True
                waiting, homeless[:] = homeless[:], []
                for job in waiting:
                    send(job)
        for failure in [failure for failure in failing if failure.time == now]:
            failing.remove(failure)
            replica = replicas[failure.replica]
            replica.alive = False
            if failure.down_s < math.inf:
                back.append((now + failure.down_s, failure.replica))
            if replica.step_end is not None:
                replica.busy += now - replica.step_start
            jobs, replica.jobs, replica.step_end = replica.jobs, [], None
            replica.cache = BlockCache(num_blocks, block_size)
            for job in sorted(jobs, key=lambda job: job.number):
                job.left, job.given = None, 0
                send(job)
        while coming and coming[0].request.arrival == now:
            job = coming.pop(0)
            if math.ceil(job.request.prompt_len / block_size) <= num_blocks:
                send(job)
        for replica in replicas:
            if replica.step_end == now:
                replica.busy += now - replica.step_start
                end_step(replica, now)
            elif replica.step_end is not None:
                continue
            begin_step(replica, now, step_time, budget, seats)


def end_step(replica: Replica, now: float) -> None:
    """Give a token to all whose prompts are complete."""
    for job in list(replica.jobs):
        if job.number not in replica.chunks:
            continue
        if job.left:
            job.left -= replica.chunks[job.number]
        if not job.left:
            job.given += 1
            if job.first_token is None:
                job.first_token = now
            if job.given == job.request.output_len:
                job.end = now
                replica.jobs.remove(job)


def begin_step(replica: Replica, now: float, step_time: StepTime, budget: int, seats: int) -> None:
    """Say what each request computes, and how long it takes."""
    chunks: dict[int, int] = {}
    for job in replica.jobs:
        if job.left == 0:
            chunks[job.number] = 1
            budget -= 1
            seats -= 1
    for job in replica.jobs:
        if job.left != 0 and budget > 0 and seats > 0:
            if job.left is None:
                found = replica.cache.serve(job.request.prompt_len, job.request.hash_ids)
                assert found is not None
                job.found.append(found)
                job.left = job.request.prompt_len - found
            chunks[job.number] = min(job.left, budget)
            budget -= chunks[job.number]
            seats -= 1
    replica.chunks = chunks
    if not chunks:
        replica.step_end = None
        return
    held = 0
    for job in replica.jobs:
        if job.number in chunks:
            left = job.left - chunks[job.number] if job.left else 0
            held += job.request.prompt_len - left + job.given
    replica.step_start, replica.step_end = now, now + step_time.seconds(held, sum(chunks.values()))
