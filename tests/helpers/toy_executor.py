"""Steps without a model: every slot holds the tokens that its key and value depend on, so a wrong one shows."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

from pagedattn_lab.block_table import take_copies
from pagedattn_lab.engine.scheduler import Scheduler, SchedulerOutput
from pagedattn_lab.request import Request, RequestStatus


def next_token(tokens: Sequence[int]) -> int:
    """What the toy model says after some tokens: few different ones, that depend on all of them."""
    return zlib.crc32(bytes(token % 256 for token in tokens)) % 3


def expected_output(prompt: Sequence[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class ToyExecutor:
    """Carries a scheduler's steps out in dictionaries from slots to what they hold."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.manager = scheduler.manager
        self.block_size = self.manager.block_pool.block_size
        self.device: dict[int, tuple[int, ...] | None] = {}
        self.host: dict[int, tuple[int, ...] | None] = {}

    def copy(self, pairs: Sequence[tuple[int, int]], source: dict, destination: dict) -> None:
        moved = {
            to * self.block_size + i: source.get(block_id * self.block_size + i)
            for block_id, to in pairs
            for i in range(self.block_size)
        }
        destination.update(moved)

    def slots(self, request: Request, start: int, stop: int) -> list[int]:
        return self.manager.tables[request.request_id].slot_mapping(start, stop)

    def execute(self, output: SchedulerOutput) -> None:
        """Copy, write, then read every token back through the page tables, as attention would."""
        held = {block_id for request in output.requests for block_id in self.manager.block_ids(request.request_id)}
        assert {block_id for _, block_id in output.swap_in} <= held, "a copy to a block that nobody here holds"
        self.copy(output.swap_out, self.device, self.host)
        self.copy(output.swap_in, self.host, self.device)
        copies = take_copies(self.manager.tables[request.request_id] for request in output.requests)
        self.copy(copies, self.device, self.device)
        for request in output.requests:
            start, num_new_tokens = request.num_computed_tokens, output.num_scheduled_tokens[request.request_id]
            for position, slot in enumerate(self.slots(request, start, start + num_new_tokens), start):
                self.device[slot] = tuple(request.token_ids[: position + 1])
        for request in output.requests:
            stop = request.num_computed_tokens + output.num_scheduled_tokens[request.request_id]
            for position, slot in enumerate(self.slots(request, 0, stop)):
                assert self.device.get(slot) == tuple(request.token_ids[: position + 1]), (request, position)

    def fail(self, output: SchedulerOutput) -> None:
        """Fail in the middle: nothing was copied, and what was to be written is anything."""
        for request in output.requests:
            start, num_new_tokens = request.num_computed_tokens, output.num_scheduled_tokens[request.request_id]
            for slot in self.slots(request, start, start + num_new_tokens):
                self.device[slot] = None
        for pairs, memory in ((output.swap_out, self.host), (output.swap_in, self.device)):
            for _, block_id in pairs:
                for i in range(self.block_size):
                    memory[block_id * self.block_size + i] = None
        for request in output.requests:
            self.manager.tables[request.request_id].pending_copy = None

    def sample(self, output: SchedulerOutput) -> None:
        """Append the tokens that the step has led to, and finish who has all of its own."""
        for request in output.requests:
            if not request.status.is_finished and request.num_computed_tokens == request.num_tokens:
                request.append_token(next_token(request.token_ids))
                if request.num_output_tokens == request.max_tokens:
                    self.scheduler.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)

    def step(self) -> SchedulerOutput:
        output = self.scheduler.schedule()
        self.execute(output)
        self.scheduler.update(output)
        self.sample(output)
        return output


def check_books(scheduler: Scheduler) -> None:
    """Every block is counted once for each entry that names it, and only those that run hold any."""
    manager, pool = scheduler.manager, scheduler.manager.block_pool
    entries = Counter(block.block_id for table in manager.tables.values() for block in table.blocks)
    assert {block.block_id: block.ref_cnt for block in pool.blocks[1:] if block.ref_cnt} == dict(entries)
    free = pool.free_block_queue.get_all_free_blocks()
    assert len(free) == pool.num_free_blocks == pool.num_blocks - 1 - len(entries)
    assert sorted(manager.tables) == sorted(request.request_id for request in scheduler.running)
    for request in scheduler.running:
        assert request.status is RequestStatus.RUNNING
    for request in scheduler.waiting:
        assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) and request.num_computed_tokens == 0
    host = manager.swap_space
    assert sorted(host.tables if host else []) == sorted(request.request_id for request in scheduler.swapped)
    assert not host or host.block_pool.num_used_blocks == sum(len(table.blocks) for table in host.tables.values())
    for request in scheduler.swapped:
        assert request.status is RequestStatus.PREEMPTED and request.num_computed_tokens > 0
