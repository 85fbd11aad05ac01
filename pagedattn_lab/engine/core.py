"""The one loop: schedule, compute a step, let a client choose, go on (chapters 05, 06 and 09).

A prompt reaches the kernel in one way only::

    Request -> Scheduler -> KVCacheManager -> BlockTable -> attention metadata -> ModelRunner -> layer -> backend

What differs between greedy decoding, sampling, beam search and a server is the choice that follows a step, so that is
all that a client brings: :func:`~pagedattn_lab.engine.sampling.generate_greedily`,
:func:`~pagedattn_lab.engine.sampling.sample`, :func:`~pagedattn_lab.engine.beam_search.beam_search`,
:class:`~pagedattn_lab.engine.llm_engine.LLMEngine`.

Source: ``EngineCore.step`` in vLLM's ``vllm/v1/engine/core.py``, release 0.33.0, which schedules, executes and updates
in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, NamedTuple

import torch

from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.engine.scheduler import Scheduler, SchedulerOutput
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.prefix_cache import PrefixIndex
from pagedattn_lab.request import Request, RequestStatus


class Choice(NamedTuple):
    """How one request goes on after a step.

    Attributes:
        parent: index, among those of the step, of the request that is continued.
        token: what it is continued with.
    """

    parent: int
    token: int


Choose = Callable[[Sequence[Request], torch.Tensor], Sequence[Choice]]
"""A client: from the requests of a step and ``[num_seqs, vocab_size]`` logits that follow their last tokens to what
goes on. A request may go on several times. One that does not go on has ended: its last token and its status are the
client's to set, or else the status becomes ``FINISHED_ABORTED``."""

OnStep = Callable[[Sequence[BlockTable], Sequence[int], int], None]
"""Called at every step but the first, once blocks have been found for its tokens and before they are computed: with the
page tables of the step, for each the index of the one that it continues from the step before, and how many blocks are
copied before anything is written."""


class EngineCore:
    """A model runner, a scheduler, and the one manager that hands the runner's blocks out.

    Args:
        runner: the model and its cache. Give it to one engine at a time: two would hand out the same blocks.
        enable_prefix_caching: whether full blocks are remembered after, and while, they are used.
        index: where cached blocks are looked up, as for :class:`pagedattn_lab.kv_manager.KVCacheManager`.
        manager: another manager of the runner's blocks, in place of one made from the two arguments before. A runner
            with groups of layers has a :class:`pagedattn_lab.kv_groups.GroupedKVCacheManager` of the same groups.
        options: of :class:`pagedattn_lab.engine.scheduler.Scheduler`. Without any, all requests run in every step.

    Attributes:
        manager: the blocks; it lives as long as the engine, and so does its prefix cache.
        scheduler: who runs next.

    With groups of layers a request goes on once in each step: nothing is forked, so several outputs of one prompt are
    requests of their own, which share its blocks by the prefix cache.

    Raises:
        ValueError: an index, a manager or an option that does not fit, or a tier without host blocks in the cache.

    Example:
        Two requests go on with token 7 once, and then end:

        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> engine = EngineCore(ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4))
        >>> requests = [Request("Ada", [3, 4, 5]), Request("Bo", [6])]
        >>> def choose(running, logits):
        ...     return [Choice(i, 7) for i, request in enumerate(running) if not request.num_output_tokens]
        >>> engine.run(requests, choose)
        >>> [request.token_ids for request in requests], engine.manager.block_pool.num_used_blocks
        ([[3, 4, 5, 7], [6, 7]], 0)
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        enable_prefix_caching: bool = True,
        index: PrefixIndex | None = None,
        manager: KVCacheManager | GroupedKVCacheManager | None = None,
        **options: Any,
    ) -> None:
        self.runner = runner
        cache = runner.cache
        self._num_forks = 0  # they give forks their names
        self._parents: tuple[int, ...] | None = None  # of those that go on, as the last step's requests were numbered
        self._is_running = False
        if manager is None and runner.groups is None:
            manager = KVCacheManager(cache.num_blocks, cache.block_size, enable_prefix_caching, index)
        elif manager is None:
            if index is not None:
                raise ValueError("groups of layers are looked up by hash: leave the index away, or the runner's groups")
            most = options.get("max_num_batched_tokens")
            manager = GroupedKVCacheManager(
                runner.groups, cache.num_blocks, enable_prefix_caching, max_num_batched_tokens=most
            )
        if getattr(manager, "groups", None) != runner.groups:
            raise ValueError("the manager and the runner have different groups of layers: give both the same")
        if manager.tier is not None and manager.tier.num_blocks >= cache.num_host_blocks:
            raise ValueError(
                f"the manager has a tier of {manager.tier.num_blocks} blocks, numbered from 1, and the runner has "
                f"{cache.num_host_blocks} host blocks: make it with num_host_blocks={manager.tier.num_blocks + 1}"
            )
        self.manager = manager
        self.scheduler = Scheduler(self.manager, **options)

    def step(self, choose: Choose, on_scheduled: Callable[[SchedulerOutput], None] | None = None) -> SchedulerOutput:
        """Schedule, execute, and let a client choose how requests go on whose tokens have all been computed.

        If anything of it fails, the step is rolled back: its requests wait again, without blocks.

        Args:
            choose: is given those requests, in the order of the batch, and their logits; not called if there are none.
            on_scheduled: is told of the step before it is computed; what it raises fails the step.

        Returns:
            What was computed; no requests if none can run.
        """
        output = self.scheduler.schedule()
        try:
            if on_scheduled is not None:
                on_scheduled(output)
            sampled, logits = self._execute(output)
            choices = _plain(choose(sampled, logits), len(sampled)) if sampled else []
            if self.runner.groups is not None:
                _refuse_forks(choices, sampled)
        except BaseException:
            self.scheduler.roll_back(output)
            raise
        self.scheduler.update(output)
        self._go_on(sampled, choices)
        return output

    def run(self, requests: Sequence[Request], choose: Choose, on_step: OnStep | None = None) -> None:
        """Take requests to their end, all in one batch, which shrinks and grows as the client chooses.

        Requests that begin alike share blocks, even if they start in the same step. Every block has been given back
        when this ends, however it ends; those with a hash stay in the prefix cache. Nobody is preempted, since a choice
        may weigh all requests against each other.

        Args:
            requests: without blocks. Their tokens grow.
            choose: says how each goes on.
            on_step: is told of every step but the first.

        Raises:
            NoFreeBlocksError: blocks ran out.
            ValueError: one name given to two requests, or to one that holds blocks already; a prompt that all blocks
                together cannot hold; limits of the scheduler that leave a request out of a step; a choice of a request
                that is not there, of what is no token, or of one request twice with groups of layers; ``on_step`` with
                groups of layers, since it is told of one page table each.
            RuntimeError: called from within a run, by a client or by ``on_step``, or while others wait or run.
        """
        if self._is_running or self.scheduler.has_unfinished:
            raise RuntimeError(
                "a run is under way: blocks of its step are known and not computed yet; let it end first"
            )
        if on_step is not None and self.runner.groups is not None:
            raise ValueError("on_step is told of one page table for each request, and there is one for each group here")
        requests = list(requests)
        names = [request.request_id for request in requests]
        taken = self.manager.tables.keys() & set(names)
        if len(set(names)) < len(names) or taken:
            raise ValueError(
                f"requests {names} and those that hold blocks already, {list(self.manager.tables)}, share a name: "
                "give every request its own"
            )
        self._parents = None

        def on_scheduled(output: SchedulerOutput) -> None:
            self._insist_on_all(output)
            if on_step is not None and self._parents is not None:
                tables = tuple(self.manager.tables[request.request_id] for request in output.requests)
                on_step(tables, self._parents, sum(table.pending_copy is not None for table in tables))

        self._is_running = True
        try:
            for request in requests:
                request.status = RequestStatus.WAITING  # it may have ended before, and goes on
                self.scheduler.add_request(request)
            while self.scheduler.has_unfinished:
                self.step(choose, on_scheduled)
        finally:
            for request in self.scheduler.requests:  # none unless something failed
                self._end(request)
            self._is_running = False

    def _insist_on_all(self, output: SchedulerOutput) -> None:
        """Refuse a step that leaves a request out: whoever chooses may need all of them."""
        scheduler, num_left_out = self.scheduler, len(self.scheduler.requests) - len(output.requests)
        if not num_left_out:
            return
        num_tokens, most = output.total_num_scheduled_tokens, scheduler.max_num_batched_tokens
        if num_tokens == most or len(scheduler.running) == scheduler.max_num_seqs:
            raise ValueError(
                f"{num_left_out} of {len(scheduler.requests)} requests are left out of a step by "
                f"max_num_batched_tokens={most} or max_num_seqs={scheduler.max_num_seqs}, and a choice may need all: "
                "raise the limit"
            )
        request, pool = scheduler.waiting[0], self.manager.block_pool
        num_hit_tokens = self.manager.get_computed_blocks(request)[1]
        raise NoFreeBlocksError(
            f"request {request.request_id!r} needs blocks for {request.num_tokens - num_hit_tokens} more tokens, and "
            f"{pool.num_free_blocks} blocks are free"
        )

    def _execute(self, output: SchedulerOutput) -> tuple[tuple[Request, ...], torch.Tensor]:
        """Compute a step.

        Returns:
            The requests whose tokens have all been computed with it, and ``[num_sampled, vocab_size]`` logits.
        """
        requests, cache = output.requests, self.runner.cache
        cache.copy_out(output.swap_out)
        cache.copy_in(output.swap_in)
        if self.manager.tier is not None:
            cache.copy_out(output.stores)
            self.manager.tier.complete_stores()  # whatever fails from here on, these are right
            cache.copy_in(output.loads)
            self.manager.tier.complete_loads()
        if not requests:
            return (), torch.empty(0)
        query_lens = [output.num_scheduled_tokens[request.request_id] for request in requests]
        tables = [self.manager.tables[request.request_id] for request in requests]
        token_ids: list[int] = []
        sampled: list[int] = []  # which of the batch
        for place, (request, query_len) in enumerate(zip(requests, query_lens, strict=True)):
            stop = request.num_computed_tokens + query_len
            token_ids += request.token_ids[request.num_computed_tokens : stop]
            if stop == request.num_tokens:
                sampled.append(place)
        input_batch = self.runner.input_batch
        if self.runner.groups is None:
            metadata = input_batch.prepare(tables, query_lens)
        else:
            metadata = input_batch.prepare_groups(list(zip(*tables, strict=True)), query_lens)
        logits = self.runner.execute(token_ids, metadata, sampled)
        return tuple(requests[place] for place in sampled), logits

    def _go_on(self, before: Sequence[Request], choices: Sequence[Choice]) -> None:
        """Continue requests as chosen: the first that continues one takes it over, others fork it, the rest end."""
        taken: set[int] = set()
        children: list[Request] = []
        for parent, _ in choices:
            request = before[parent]
            if parent in taken:
                request = self.scheduler.fork(request, self._name_of_fork(request))
            taken.add(parent)
            children.append(request)
        for place, request in enumerate(before):
            if place not in taken:
                self._end(request)
        self._parents = tuple(choice.parent for choice in choices)
        if list(self._parents) != sorted(taken):  # the client will find them in the order in which it chose
            places = {request.request_id: place for place, request in enumerate(children)}
            self.scheduler.running.sort(key=lambda request: places.get(request.request_id, -1))
        for request, (_, token) in zip(children, choices, strict=True):
            request.append_token(token)

    def _name_of_fork(self, request: Request) -> str:
        """Find a name that nobody has."""
        while True:
            self._num_forks += 1
            name = f"{request.request_id} ({self._num_forks})"
            if name not in self.manager.tables:
                return name

    def _end(self, request: Request) -> None:
        """Give a request's blocks back."""
        ended = request.status.is_finished  # its client said how
        self.scheduler.finish(request, request.status if ended else RequestStatus.FINISHED_ABORTED)
        request.num_computed_tokens = 0


def _plain(choices: Sequence[Choice], num_requests: int) -> list[Choice]:
    """Check choices before anything changes, and give them as plain numbers: tensors as indices would all differ."""
    plain = [Choice(index(parent), index(token)) for parent, token in choices]
    for parent, _ in plain:
        if not 0 <= parent < num_requests:
            raise ValueError(f"a choice continues request {parent} of {num_requests}: give an index among them")
    return plain


def _refuse_forks(choices: Sequence[Choice], requests: Sequence[Request]) -> None:
    """Refuse to continue one request twice, while the step can still be rolled back."""
    continued: set[int] = set()
    for parent, _ in choices:
        if parent in continued:
            raise ValueError(
                f"request {requests[parent].request_id!r} would go on twice, and with groups of layers nothing is "
                "forked: let each output be a request of its own, or keep all layers in one table"
            )
        continued.add(parent)
